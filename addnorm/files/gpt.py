"""Weights in and out: GPT-2's published format, and our own for every other design.

``load`` and ``save`` are ``GPT.from_pretrained`` and ``GPT.save_pretrained``. Nothing here needs
transformers. docs/gpt2.md says what is read, what is refused, and how parity was measured.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from safetensors.torch import save_file
from torch import Tensor

from addnorm import reading
from addnorm.files import config_json, folders
from addnorm.files.config_json import IDENTITY, SavedTokenizer, why_not_gpt2
from addnorm.files.folders import CONFIG, WeightsError, read_json
from addnorm.files.register import Beginning, Loaded, ModelKind, tokenizer_beside
from addnorm.files.tensors import SAFETENSORS_DTYPES, StoredTensor, entries
from addnorm.models.gpt import GPT
from addnorm.models.gpt_classifier import GPTClassifier
from addnorm.models.gpt_config import GPTConfig
from addnorm.words import a_few

__all__ = ["WeightsError", "WeightsReport", "check", "load", "save", "why_not_gpt2"]

log = logging.getLogger(__name__)

# --- the table ------------------------------------------------------------------------------------


class TensorNames(NamedTuple):
    """One stored tensor and what becomes of it."""

    theirs: str
    ours: tuple[str, ...]  # several: theirs holds them one after the other
    transposed: bool = False  # GPT-2's Conv1D stores (in, out), nn.Linear (out, in)


# Block i is the sublayers a = 2 i, attention, and m = 2 i + 1, the MLP.
ENDS = (
    TensorNames("wte.weight", ("tokens.weight",)),
    TensorNames("wpe.weight", ("positions.weight",)),
    TensorNames("ln_f.weight", ("stack.final.norm.weight",)),
    TensorNames("ln_f.bias", ("stack.final.norm.bias",)),
)
UNTIED = TensorNames("lm_head.weight", ("head.weight",))
QKV = ("stack.subs.{a}.branch.q", "stack.subs.{a}.branch.k", "stack.subs.{a}.branch.v")
BLOCK = (
    TensorNames("h.{i}.ln_1.weight", ("stack.subs.{a}.pre.norm.weight",)),
    TensorNames("h.{i}.ln_1.bias", ("stack.subs.{a}.pre.norm.bias",)),
    TensorNames("h.{i}.attn.c_attn.weight", tuple(f"{x}.weight" for x in QKV), transposed=True),
    TensorNames("h.{i}.attn.c_attn.bias", tuple(f"{x}.bias" for x in QKV)),
    TensorNames("h.{i}.attn.c_proj.weight", ("stack.subs.{a}.branch.out.weight",), transposed=True),
    TensorNames("h.{i}.attn.c_proj.bias", ("stack.subs.{a}.branch.out.bias",)),
    TensorNames("h.{i}.ln_2.weight", ("stack.subs.{m}.pre.norm.weight",)),
    TensorNames("h.{i}.ln_2.bias", ("stack.subs.{m}.pre.norm.bias",)),
    TensorNames("h.{i}.mlp.c_fc.weight", ("stack.subs.{m}.branch.up.weight",), transposed=True),
    TensorNames("h.{i}.mlp.c_fc.bias", ("stack.subs.{m}.branch.up.bias",)),
    TensorNames("h.{i}.mlp.c_proj.weight", ("stack.subs.{m}.branch.down.weight",), transposed=True),
    TensorNames("h.{i}.mlp.c_proj.bias", ("stack.subs.{m}.branch.down.bias",)),
)
WRAPPERS = {"transformer", "module", "_orig_mod", "gpt"}
"""Names that GPT2LMHeadModel, DistributedDataParallel, torch.compile and addnorm.hf put around."""
MASKS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
"""Causal masks that transformers stored as buffers until 2023: nothing that was learned."""


def gpt2_rows(config: GPTConfig) -> list[TensorNames]:
    """All rows of the table for such a model: its ends, then block by block."""
    rows = [*ENDS] if config.tied else [*ENDS, UNTIED]
    for i in range(config.n_layers):
        place = {"i": i, "a": 2 * i, "m": 2 * i + 1}
        for theirs, ours, transposed in BLOCK:
            names = tuple(o.format(**place) for o in ours)
            rows.append(TensorNames(theirs.format(**place), names, transposed))
    return rows


# --- reading --------------------------------------------------------------------------------------


@final
@dataclass
class WeightsReport:
    """What was found in a folder."""

    folder: Path
    format: str  # "gpt2" or "addnorm_gpt"
    files: list[str]
    dtypes: list[str]
    ignored: list[str]  # stored tensors that hold nothing learned
    verified: bool  # whether there are checksums, of every file that counts
    unsealed: list[str]  # files of which the checksums that are there say nothing

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.format}, {', '.join(self.dtypes)}, {', '.join(self.files)}"]
        verdict = "checksums agree" if self.verified or self.unsealed else "without checksums"
        lines.append(
            verdict + (f", but not of {', '.join(self.unsealed)}" if self.unsealed else "")
        )
        if self.ignored:
            some = ", ".join(self.ignored[:3]) + (", ..." if len(self.ignored) > 3 else "")
            lines.append(f"ignored {len(self.ignored)} causal masks or copies ({some})")
        return "; ".join(lines)


def load(
    path_or_id: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = torch.float32,
    dropout: float | None = None,
) -> tuple[GPT, WeightsReport]:
    """A model in evaluation mode, whole and checked, or a ``WeightsError``.

    ``dtype`` None keeps each tensor's own. ``dropout`` replaces what the folder says.
    """
    model, report, _ = load_with(path_or_id, dtype=dtype, dropout=dropout)
    return model, report


def load_with(
    path_or_id: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None,
    dropout: float | None,
    head: str | None = None,
) -> tuple[GPT, WeightsReport, Tensor | None]:
    """What ``load`` gives, and the weight of the stored tensor ``head``, which is a head for
    something else than tokens; None where ``head`` is. With one the model's own head is its
    embedding, as nothing else is stored for it."""
    folder = folders.find(path_or_id)
    weight: Tensor | None = None
    with reading.system_errors(folder, WeightsError):
        model, card, sources, report = _inspect(folder, dropout, head)
        state: dict[str, Tensor] = {}
        for row, entry in sources:
            t = folders.finite(entry.file, row.theirs, entry.read())
            if dtype is not None:
                t = folders.finite(entry.file, f"{row.theirs} as {dtype}", t.to(dtype))
            t = t.T if row.transposed else t
            if not row.ours:
                weight = t.clone()
                continue
            for name, part in zip(row.ours, t.chunk(len(row.ours)), strict=True):
                state[name] = part.clone(memory_format=torch.contiguous_format)
    model.load_state_dict(state, strict=True, assign=True)
    model.tokenizer_identity = card.get(IDENTITY)
    log.info("%s", report)
    return model.eval(), report, weight


def check(folder: Path) -> WeightsReport:
    """Everything that ``load`` checks, the values included, without a model in memory."""
    with reading.system_errors(folder, WeightsError):
        _, _, sources, report = _inspect(folder, None)
        for row, entry in sources:
            folders.finite(entry.file, row.theirs, entry.read())
    return report


Sources = list[tuple[TensorNames, StoredTensor]]


def _inspect(
    folder: Path, dropout: float | None, head: str | None = None
) -> tuple[GPT, dict[str, Any], Sources, WeightsReport]:
    """All checks that need no values; a ``WeightsError`` says what is wrong. Returns (a model on
    the meta device, what config.json says, the row of the table and the stored tensor for each of
    its values, the report). ``head``: the name of a stored head that is not for tokens, and is left
    to the caller: its row has no names of ours."""
    card, config = config_json.read(folder, dropout)
    config = config if head is None else dataclasses.replace(config, tied=True)
    kind = card["model_type"]
    tensors, ignored = _tensors(folder, copies=kind == "gpt2" and config.tied)
    _check_depth(folder, config, tensors, kind)
    model, shapes = _empty(config)
    rows = gpt2_rows(config) if kind == "gpt2" else [TensorNames(name, (name,)) for name in shapes]
    rows += [] if head is None else [TensorNames(head, ())]
    _check_names(folder, rows, tensors)
    for row in rows:
        _check_one(folder, row, tensors[row.theirs], shapes, config)
    files = sorted({e.file for e in tensors.values()})
    dtypes = sorted({e.dtype for e in tensors.values()})
    verified, unsealed = folders.seal(folder, files)
    config_json.check_tokenizer(folder, config.vocab_size, card.get(IDENTITY))
    report = WeightsReport(folder, kind, files, dtypes, ignored, verified, unsealed)
    return model, card, [(row, tensors[row.theirs]) for row in rows], report


def _empty(config: GPTConfig) -> tuple[GPT, dict[str, tuple[int, ...]]]:
    """A model without memory, and the shape of each of its tensors."""
    with torch.device("meta"):
        model = GPT(config)
    return model, {name: tuple(p.shape) for name, p in model.state_dict().items()}


def _bare(name: str) -> str:
    """A tensor's name without what wrappers of the model put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _tensors(folder: Path, copies: bool) -> tuple[dict[str, StoredTensor], list[str]]:
    """(name in the table -> entry, the stored names that were left out).

    ``copies``: the head may be stored again beside the embedding; then the two must be one.
    """
    by_name: dict[str, tuple[str, StoredTensor]] = {}
    ignored = []
    for full_name, entry in entries(folder).items():
        name = _bare(full_name)
        if MASKS.fullmatch(name):
            ignored.append(full_name)
        elif name in by_name:
            raise WeightsError(
                f"{folder / entry.file}: {full_name} and {by_name[name][0]} are both {name}"
            )
        else:
            by_name[name] = full_name, entry
    if copies and UNTIED.theirs in by_name and "wte.weight" in by_name:
        (full_name, head), (_, wte) = by_name.pop(UNTIED.theirs), by_name["wte.weight"]
        alike = (head.dtype, head.shape) == (wte.dtype, wte.shape)
        if not alike or not torch.equal(head.read(), wte.read()):
            raise WeightsError(
                f"{folder / head.file}: {full_name} is not wte.weight, and {CONFIG} says that they "
                'are tied: set "tie_word_embeddings": false there if the model has its own head'
            )
        ignored.append(full_name)
    return {name: entry for name, (_, entry) in by_name.items()}, ignored


def _check_depth(
    folder: Path, config: GPTConfig, tensors: Mapping[str, StoredTensor], kind: str
) -> None:
    """Raise a ``WeightsError`` if the weights have another number of blocks than config.json says:
    first, since it says more than a long list of missing names. ``tensors``: by the names that the
    table has for this ``kind``, which is config.json's model_type."""
    pattern = r"h\.(\d+)\." if kind == "gpt2" else r"stack\.subs\.(\d+)\."
    places = [int(m[1]) for name in tensors if (m := re.match(pattern, name))]
    blocks = max(places, default=-1) + 1
    blocks = blocks if kind == "gpt2" else -(-blocks // 2)  # of two sublayers each, in ours
    if blocks != config.n_layers:
        raise WeightsError(
            f"{folder / CONFIG} is of a model of {config.n_layers} blocks, and the weights beside "
            f"it have {blocks}: they belong to different models"
        )


def _check_names(
    folder: Path, rows: list[TensorNames], tensors: Mapping[str, StoredTensor]
) -> None:
    """Raise unless the files hold a tensor for each row of the table, and no other."""
    expected = [row.theirs for row in rows]
    files = ", ".join(sorted({e.file for e in tensors.values()}))
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise WeightsError(
            f"{folder}: missing from {files}: {a_few(missing)}. The file was cut, or is of another "
            "kind of model"
        )
    extra = sorted(tensors.keys() - set(expected))
    if extra:
        raise WeightsError(
            f"{folder / tensors[extra[0]].file} holds {a_few(extra)}, which the model of {CONFIG} "
            "has no place for: it is of another model, or one with parts that addnorm lacks"
        )


def _check_one(
    folder: Path,
    row: TensorNames,
    entry: StoredTensor,
    shapes: Mapping[str, tuple[int, ...]],
    config: GPTConfig,
) -> None:
    """Raise a ``WeightsError`` if one stored tensor, ``entry``, has another dtype or shape than
    ``row`` and the model need, from its header. ``shapes``: of the model's own tensors."""
    where, dtypes = f"{folder / entry.file}: {row.theirs}", SAFETENSORS_DTYPES.values()
    if entry.dtype not in dtypes:
        raise WeightsError(
            f"{where} is {entry.dtype}: weights are {', '.join(dtypes)}. Quantized or packed ones "
            "are not read: use the original"
        )
    if not row.ours:
        _check_head(where, entry, config)
        return
    one = shapes[row.ours[0]]
    shape = (sum(shapes[name][0] for name in row.ours), *one[1:])
    shape = shape[::-1] if row.transposed else shape
    if entry.shape == shape:
        return
    if row.ours[0] in ("tokens.weight", "head.weight") and entry.shape[1:] == shape[1:]:
        raise WeightsError(
            f"{where} has {entry.shape[0]} tokens, and the vocabulary of {CONFIG} is "
            f"{config.vocab_size}"
            + (f", padded to {shape[0]}" if shape[0] != config.vocab_size else "")
        )
    turned = row.transposed and entry.shape == shape[::-1]  # a common mistake of converters
    hint = ": it is stored as nn.Linear has it, transposed" if turned else ""
    raise WeightsError(f"{where} has shape {entry.shape}, expected {shape}{hint}")


def _check_head(where: str, entry: StoredTensor, config: GPTConfig) -> None:
    """Raise unless a head that is not for tokens has rows, as many as it may be, of the model's
    width."""
    if len(entry.shape) != 2 or not entry.shape[0] or entry.shape[1] != config.dim:
        raise WeightsError(
            f"{where} has shape {entry.shape}, expected a row of {config.dim} for each label"
        )


# --- writing --------------------------------------------------------------------------------------


def _own(model: GPT) -> dict[str, Tensor]:
    """The model's tensors by their names without wrappers; a ``WeightsError`` where two would have
    the same."""
    state = model.state_dict()
    names: dict[str, str] = {}
    for full in state:
        if (first := names.setdefault(_bare(full), full)) != full:
            raise WeightsError(f"{first} and {full} of the model would both be {_bare(full)}")
    return {name: state[full] for name, full in names.items()}


def save(
    model: GPT,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    tokenizer: SavedTokenizer | None = None,
) -> None:
    """Write a model, and the tokenizer beside it if one is given.

    ``format``: "gpt2", which transformers reads as it is, or "addnorm"; None takes GPT-2's where
    it can say what the model is. If a tokenizer is given, the model belongs to it from then on:
    its ``tokenizer_identity`` is set, in memory too.
    """
    config = model.config
    reasons = why_not_gpt2(config)
    if format not in (None, "gpt2", "addnorm"):
        raise WeightsError(f"format is 'gpt2', 'addnorm' or None, got {format!r}")
    if format == "gpt2" and reasons:
        raise WeightsError(f"GPT-2's format cannot say what this model is: {'; '.join(reasons)}")
    tensors, eos = plain_tensors(model), id_of_end(config, tokenizer)
    if format == "addnorm" or reasons:
        card = config_json.to_own(config, eos)
    else:
        card, tensors = config_json.to_gpt2(config, eos), as_gpt2(config, tensors)
    write_folder(model, path, card, tensors, tokenizer)


def plain_tensors(model: GPT) -> dict[str, Tensor]:
    """The model's tensors by their names without wrappers; a ``WeightsError`` where they are not
    what its config says, as with an adapter in it."""
    if model.front:
        raise WeightsError(
            "the model has a prompt in front of its text, which is no part of its weights: "
            "addnorm.save writes it beside the model, and an export to ONNX into the graph"
        )
    tensors, shapes = _own(model), _empty(model.config)[1]
    odd = [
        n for n in tensors.keys() | shapes if n not in tensors or tensors[n].shape != shapes.get(n)
    ]
    if odd:
        raise WeightsError(
            f"{a_few(sorted(odd))} of the model are not what its config says: merge adapters and "
            "undo other changes before saving (peft: merge_and_unload)"
        )
    return tensors


def write_folder(
    model: GPT,
    path: str | os.PathLike[str],
    card: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    tokenizer: SavedTokenizer | None,
) -> None:
    """Write a folder of ``tensors``, which must be finite, of ``card`` as config.json, and of the
    tokenizer. ``model``: whose they are; from then on it belongs to the tokenizer, by its
    ``tokenizer_identity``."""
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        raise WeightsError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, and the model's vocabulary is "
            f"{model.config.vocab_size}"
        )
    values = {
        name: folders.finite("the model", name, t.detach()).cpu().contiguous()
        for name, t in tensors.items()
    }
    identity = model.tokenizer_identity if tokenizer is None else tokenizer.identity
    card = {**card, "dtype": str(model.tokens.weight.dtype).removeprefix("torch.")}
    card |= {} if identity is None else {IDENTITY: identity}

    def fill(folder: Path) -> None:
        """All files of the folder, which is empty."""
        folders.write_json(folder / CONFIG, card)
        # transformers asks for this mark of the framework
        save_file(values, folder / folders.SAFETENSORS, metadata={"format": "pt"})
        if tokenizer is not None:
            tokenizer.save(folder)

    folders.write(Path(path).expanduser(), fill)
    model.tokenizer_identity = identity


def as_gpt2(config: GPTConfig, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's tensors, by name as ``plain_tensors`` has them, as a GPT2LMHeadModel names, joins
    and turns them; for a model of which ``why_not_gpt2`` says nothing."""
    # what pads the vocabulary is ours alone
    ours = {**ours, "tokens.weight": ours["tokens.weight"][: config.vocab_size]}
    tensors = {}
    for row in gpt2_rows(config):
        t = torch.cat([ours[name] for name in row.ours])
        tensors[f"transformer.{row.theirs}"] = t.T if row.transposed else t
    return tensors


def id_of_end(config: GPTConfig, tokenizer: SavedTokenizer | None) -> int | None:
    """The id that ends a text, for config.json; None: there is none. Without a tokenizer it is
    GPT-2's, if the vocabulary has GPT-2's size."""
    if tokenizer is not None:
        return tokenizer.eos_id
    return 50256 if config.vocab_size == 50257 else None


# --- for the register -----------------------------------------------------------------------------


def refuse_labels(labels: Sequence[str] | None) -> None:
    """Raise if there are labels: a language model answers with tokens, and its tokenizer has their
    names."""
    if labels is not None:
        raise WeightsError("a language model has no labels: leave them out")


def _read(folder: Path, dtype: torch.dtype | None) -> Loaded:
    model, report = load(folder, dtype=dtype)
    tokenizer = tokenizer_beside(report.folder)
    return Loaded(model, tokenizer, None, read_json(report.folder / CONFIG))


def _write(
    model: GPT, folder: Path, tokenizer: SavedTokenizer | None, labels: Sequence[str] | None
) -> None:
    refuse_labels(labels)
    save(model, folder, tokenizer=tokenizer)


def _beginning(folder: Path, classes: int, several: bool, dropout: float) -> Beginning:
    """A classifier of ``classes`` with the weights of the model there, but for its head, which is
    new. ``several``: whether a text may have several. ``dropout`` replaces the folder's."""
    tokenizer = tokenizer_beside(folder)
    if tokenizer is None:
        raise WeightsError(f"{folder} has no tokenizer, which would make ids of the texts")
    start, _ = load(folder, dropout=dropout)
    model, weights = GPTClassifier(start.config, classes, several), start.state_dict()
    model.gpt.load_state_dict({name: weights[name] for name in model.gpt.state_dict()})
    return Beginning(model, model.head, tokenizer, model.frame)


KIND = ModelKind(
    ("gpt2", config_json.GPT_TYPE),
    GPT,
    "a language model",
    _read,
    _write,
    instead="addnorm generate continues a text with it, addnorm chat talks with it if it has "
    "learned from conversations, addnorm eval measures how probable it finds a text, and addnorm "
    "predict with --pattern and --words labels one",
    classifier=_beginning,
    writes=True,
)
