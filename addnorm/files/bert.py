"""A BERT's weights in and out: the published format, and our own for every other design.

``load`` and ``save`` are ``Bert.from_pretrained`` and ``Bert.save_pretrained``. Nothing here needs
transformers, whose folders are read as safetensors.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from safetensors.torch import save_file
from torch import Tensor

from addnorm import reading
from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable
from addnorm.files import bert_json, folders
from addnorm.files.bert_json import LABELLED, ONE, PUBLISHED, SEVERAL, why_not_published
from addnorm.files.config_json import IDENTITY, SavedTokenizer, check_tokenizer
from addnorm.files.folders import CONFIG, SAFETENSORS, WeightsError
from addnorm.files.own import checked_tensors
from addnorm.files.published import check_names, check_tensor
from addnorm.files.register import Beginning, Loaded, ModelKind, tokenizer_beside
from addnorm.files.tensors import StoredTensor, entries
from addnorm.models.bert import Bert
from addnorm.models.bert_config import BertConfig
from addnorm.models.texts import TextFrame, probabilities
from addnorm.temporary import evaluation_mode
from addnorm.uses.answers import Answers
from addnorm.uses.label_sets import LabelSets
from addnorm.uses.labels import Labels
from addnorm.uses.use import Use
from addnorm.words import a_few

__all__ = ["KIND", "BertReport", "load", "save", "why_not_published"]

log = logging.getLogger(__name__)

# --- the table ------------------------------------------------------------------------------------

# Block i is the sublayers a = 2 i, attention, and m = 2 i + 1, the MLP.
MODULES = {
    "embeddings.word_embeddings": "tokens",
    "embeddings.position_embeddings": "positions",
    "embeddings.token_type_embeddings": "types",
    "embeddings.LayerNorm": "norm",
    "encoder.layer.{i}.attention.self.query": "stack.subs.{a}.branch.q",
    "encoder.layer.{i}.attention.self.key": "stack.subs.{a}.branch.k",
    "encoder.layer.{i}.attention.self.value": "stack.subs.{a}.branch.v",
    "encoder.layer.{i}.attention.output.dense": "stack.subs.{a}.branch.out",
    "encoder.layer.{i}.attention.output.LayerNorm": "stack.subs.{a}.post.norm",
    "encoder.layer.{i}.intermediate.dense": "stack.subs.{m}.branch.up",
    "encoder.layer.{i}.output.dense": "stack.subs.{m}.branch.down",
    "encoder.layer.{i}.output.LayerNorm": "stack.subs.{m}.post.norm",
    "pooler.dense": "pooler",
    "cls.predictions": "decoder",
    "cls.predictions.transform.dense": "decoder.transform",
    "cls.predictions.transform.LayerNorm": "decoder.norm",
}
"""A module of transformers' -> ours; parameters have the same names in both. ``i`` is the block."""
HEADS = {"classify": "classifier", "tokens": "classifier", "answer": "qa_outputs"}
"""What transformers calls the last layer."""
WRAPPERS = {"bert", "module", "_orig_mod"}
"""Names that the models with a head, DistributedDataParallel and torch.compile put around."""
BUFFERS = re.compile(r"embeddings\.(position_ids|token_type_ids)")
"""Numbers 0, 1, 2, ..., which transformers stored until 2023: nothing that was learned."""
UNUSED = re.compile(r"cls\.seq_relationship\..*")
"""What pre-training leaves and no head reads: whether one sentence follows the other."""
COPIES = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
"""Stored again -> what it must be equal to."""
OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}
"""What TensorFlow called the parameters of a norm."""


def published_name(ours: str, config: BertConfig) -> str:
    """What transformers calls a parameter of ours, without what a wrapper puts in front."""
    module, _, parameter = ours.rpartition(".")
    match = re.fullmatch(r"stack\.subs\.(\d+)\.(.*)", module)
    sub = 0 if match is None else int(match[1])
    if match is not None:
        module = f"stack.subs.{{{'m' if sub % 2 else 'a'}}}.{match[2]}"
    theirs = HEADS[config.head] if module == "head" else _BY_OURS[module]
    return f"{theirs.format(i=sub // 2)}.{parameter}"


_BY_OURS = {ours: theirs for theirs, ours in MODULES.items()}


# --- reading --------------------------------------------------------------------------------------


@final
@dataclass
class BertReport:
    """What was found in a folder."""

    folder: Path
    format: str
    """ "bert" or "addnorm_bert"."""
    files: list[str]
    ignored: list[str]
    """Stored tensors that no part of the model reads."""
    new: list[str]
    """Parameters of a new head, which the folder does not have."""
    verified: bool
    """Whether there are checksums, of every file that counts."""

    def __str__(self) -> str:
        words = [f"{self.folder}: {self.format}, {', '.join(self.files)}"]
        words.append("checksums agree" if self.verified else "without checksums")
        if self.ignored:
            words.append(f"not read: {a_few(self.ignored)}")
        if self.new:
            words.append(f"new: {a_few(self.new)}")
        return "; ".join(words)


class Stored(NamedTuple):
    """A folder that was checked, but for the values: they are read by ``value``."""

    folder: Path
    card: dict[str, Any]
    config: BertConfig
    labels: tuple[str, ...] | None
    tensors: dict[str, StoredTensor]
    """By the names of our parameters."""
    report: BertReport

    def value(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """A tensor of its own, finite."""
        entry = self.tensors[name]
        t = folders.finite(entry.file, name, entry.read())
        if dtype is not None:
            t = folders.finite(entry.file, f"{name} as {dtype}", t.to(dtype))
        return t.clone()


def load(
    path_or_id: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = torch.float32,
    dropout: float | None = None,
    head: str | None = None,
    labels: Sequence[str] | None = None,
    several: bool | None = None,
) -> tuple[Bert, BertReport]:
    """A model in evaluation mode, whole and checked, or a ``WeightsError``.

    ``dtype`` None keeps each tensor's own. ``dropout`` replaces what the folder says. With another
    ``head`` than the folder's, or other ``labels``, the last layer is new, and what it shares with
    the folder's model is read. ``several``: whether a text may have several labels; None: as the
    folder says.
    """
    folder = folders.find(path_or_id)
    with reading.system_errors(folder, WeightsError):
        source = inspect(folder, dropout)
        config, names = _target(source, head, labels)
        if several is not None:
            config = dataclasses.replace(config, several=several)
        same = (config.head, names) == (source.config.head, source.labels)
        # on the CPU what is new is filled as in a new model; else all values are the folder's
        with torch.device("cpu" if not same else "meta"):
            model = Bert(config)
        state = model.state_dict()
        shared = [n for n in state if n in source.tensors and (same or not n.startswith("head."))]
        values = {name: source.value(name, dtype) for name in shared}
        for name in state.keys() - values.keys():
            values[name] = state[name] if dtype is None else state[name].to(dtype)
        model.load_state_dict(values, strict=True, assign=True)
    source.report.new = [name for name in state if name not in shared]
    source.report.ignored += [name for name in source.tensors if name not in shared]
    model.tokenizer_identity, model.labels = source.card.get(IDENTITY), names
    log.info("%s", source.report)
    return model.eval(), source.report


def _target(
    source: Stored, head: str | None, labels: Sequence[str] | None
) -> tuple[BertConfig, tuple[str, ...] | None]:
    """(the configuration of the model that is asked for, the names of its labels, None where the
    head has none). ``source``: what the folder has; ``head`` and ``labels`` None: that. A
    ``WeightsError`` where the two do not go together."""
    config = source.config
    names = source.labels if labels is None else tuple(labels)
    head = config.head if head is None else head
    if labels is not None and head not in LABELLED:
        raise WeightsError(f"the head {head} has no labels: leave them out")
    if head not in LABELLED:
        names = None
    elif not names:
        raise WeightsError(f"say what the new head {head} chooses from, with labels")
    if head == config.head:
        pooling = config.pooling
    else:  # a new head may read what a pooler makes, also where the folder has none
        pooling = "first" if config.pooling == "none" else config.pooling
    changed = dataclasses.replace(
        config, head=head, pooling=pooling, labels=config.labels if names is None else len(names)
    )
    return changed, names


def inspect(folder: Path, dropout: float | None = None) -> Stored:
    """All checks that need no values: what the model is, and where its values are. A
    ``WeightsError`` says what is wrong; ``dropout`` replaces the folder's, None: as it says."""
    source = entries(folder)
    pickles = sorted({e.file for e in source.values() if not e.file.endswith(".safetensors")})
    if pickles:
        raise WeightsError(
            f"{folder} has its weights in {pickles[0]}, and a BERT is read from {SAFETENSORS} only:"
            " open it once with transformers and save_pretrained"
        )
    pooler = any("pooler.dense.weight" in name for name in source)
    card, config, labels = bert_json.read(folder, pooler, dropout)
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in Bert(config).state_dict().items()}
    if card["model_type"] == PUBLISHED:
        if reasons := why_not_published(config):
            raise WeightsError(f"{folder / CONFIG}: {'; '.join(reasons)}")
        if pooler:  # beside a head that does not read it, too: another may
            shapes |= {"pooler.weight": (config.dim, config.dim), "pooler.bias": (config.dim,)}
        tensors, ignored = _by_our_names(folder, source, shapes, config)
    else:
        tensors, ignored = dict(source), []
        check_names(folder, shapes, tensors)
    for name, shape in shapes.items():
        check_tensor(folder, name, tensors[name], shape)
    files = sorted({entry.file for entry in tensors.values()})
    verified, _ = folders.seal(folder, files)
    check_tokenizer(folder, config.vocab_size, card.get(IDENTITY))
    report = BertReport(folder, card["model_type"], files, ignored, [], verified)
    return Stored(folder, card, config, labels, tensors, report)


def _bare(name: str) -> str:
    """A stored name without wrappers, as transformers calls it now."""
    name = ".".join(part for part in name.split(".") if part not in WRAPPERS)
    for old, new in OLD_NAMES.items():
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


def _by_our_names(
    folder: Path,
    source: Mapping[str, StoredTensor],
    shapes: Mapping[str, tuple[int, ...]],
    config: BertConfig,
) -> tuple[dict[str, StoredTensor], list[str]]:
    """(our name -> entry, the stored names that were left out, as they stand in the file).
    ``source``: all that is stored. ``shapes``: those of the model's parameters, by our names. What
    is missing, left over, twice there or no copy of what it should be is a ``WeightsError``."""
    by_name: dict[str, tuple[str, StoredTensor]] = {}
    ignored = []
    for full, entry in source.items():
        name = _bare(full)
        if BUFFERS.fullmatch(name):
            ignored.append(full)
            continue
        if name in by_name:
            raise WeightsError(
                f"{folder / entry.file}: {full} and {by_name[name][0]} are both {name}"
            )
        by_name[name] = full, entry
    for copy, original in COPIES.items():
        if copy not in by_name:
            continue
        full, entry = by_name.pop(copy)
        if original not in by_name and config.head == "masked":  # a folder may have the copy alone
            by_name[original] = full, entry
            continue
        ignored.append(full)
        if original in by_name and not _equal(entry, by_name[original][1]):
            raise WeightsError(
                f"{folder / entry.file}: {full} is not {by_name[original][0]}, and in addnorm the "
                "decoder of a BERT is its embedding"
            )
    names = {name: published_name(name, config) for name in shapes}
    for name in [n for n in by_name if n not in names.values() and UNUSED.fullmatch(n)]:
        ignored.append(by_name.pop(name)[0])
    check_names(folder, [*names.values()], {name: entry for name, (_, entry) in by_name.items()})
    return {ours: by_name[theirs][1] for ours, theirs in names.items()}, ignored


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two stored tensors are the same to the bit; their values are read for it."""
    alike = (one.dtype, one.shape) == (other.dtype, other.shape)
    return alike and torch.equal(one.read(), other.read())


# --- writing --------------------------------------------------------------------------------------


def save(
    model: Bert,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    tokenizer: SavedTokenizer | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Write a model, and the tokenizer beside it if one is given.

    ``format``: "bert", which transformers reads as it is, or "addnorm"; None takes BERT's where it
    can say what the model is. ``labels``: the names of what the head chooses from; None: those that
    the model was loaded with, else LABEL_0, LABEL_1, ... The model's ``labels`` and
    ``tokenizer_identity`` are afterwards those that were written.
    """
    config = model.config
    reasons = why_not_published(config)
    if format not in (None, PUBLISHED, "addnorm"):
        raise WeightsError(f"format is 'bert', 'addnorm' or None, got {format!r}")
    if format == PUBLISHED and reasons:
        raise WeightsError(f"BERT's format cannot say what this model is: {'; '.join(reasons)}")
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise WeightsError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, and the model's vocabulary is "
            f"{config.vocab_size}"
        )
    names = _names(model, labels)
    tensors = checked_tensors(model, partial(Bert, config))
    if format == "addnorm" or reasons:
        card = bert_json.to_own(config, names)
    else:
        card = bert_json.to_published(config, names)
        prefix = "" if config.head == "none" else "bert."
        by_theirs = {published_name(name, config): t for name, t in tensors.items()}
        outside = ("cls.", *HEADS.values())
        tensors = {n if n.startswith(outside) else prefix + n: t for n, t in by_theirs.items()}
    card["dtype"] = str(model.tokens.weight.dtype).removeprefix("torch.")
    identity = model.tokenizer_identity if tokenizer is None else tokenizer.identity
    card |= {} if identity is None else {IDENTITY: identity}

    def fill(folder: Path) -> None:
        folders.write_json(folder / CONFIG, card)
        save_file(tensors, folder / SAFETENSORS, metadata={"format": "pt"})
        if tokenizer is not None:
            tokenizer.save(folder)

    folders.write(Path(path).expanduser(), fill)
    model.tokenizer_identity, model.labels = identity, names


def _names(model: Bert, labels: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names of the labels to be written: ``labels``, else the model's, else LABEL_0 and so on;
    None for a head that has none. A ``WeightsError`` where ``labels`` do not fit the head."""
    config = model.config
    if config.head not in LABELLED:
        if labels is not None:
            raise WeightsError(f"a BERT with the head {config.head} has no labels: leave them out")
        return None
    names = model.labels if labels is None else tuple(labels)
    names = names or tuple(f"LABEL_{i}" for i in range(config.labels))
    if len(names) != config.labels or len(set(names)) != len(names):
        raise WeightsError(
            f"the model chooses from {config.labels} labels: give as many names, all different, "
            f"got {a_few(names, 5)}"
        )
    return names


# --- for the register -----------------------------------------------------------------------------


def _read(folder: Path, dtype: torch.dtype | None) -> Loaded:
    """The model, its tokenizer if there is one, the names of its labels, and config.json."""
    model, report = load(folder, dtype=dtype)
    card = folders.read_json(report.folder / CONFIG)
    return Loaded(model, tokenizer_beside(report.folder), model.labels, card)


def _write(
    model: Bert, folder: Path, tokenizer: SavedTokenizer | None, labels: Sequence[str] | None
) -> None:
    """``save`` in the format that fits, as the register calls it."""
    save(model, folder, tokenizer=tokenizer, labels=labels)


USES: dict[str, Callable[[Loaded], Use]] = {}
"""Head -> what one does with such a model; whoever has a use for a head puts it here."""


def use(loaded: Loaded) -> Use:
    """What one asks of the model, by its head; a ``Mendable`` where nothing is asked of such a one,
    or where the folder has no tokenizer."""
    model = loaded.model
    assert isinstance(model, Bert)
    if model.kind not in USES:
        raise Mendable(
            f"it is a BERT with the head {model.kind}, of which nothing is asked: train it for a "
            "use first, such as addnorm train --recipe finetune_bert init_from=FOLDER"
        )
    if loaded.tokenizer is None:
        raise Mendable("it has no tokenizer: put its tokenizer.json or vocab.txt beside the model")
    return USES[model.kind](loaded)


def _labels(loaded: Loaded) -> Use:
    """What one asks of a BERT with the head classify: the label of a text, or its labels; of one
    that is longer than the context, by the mean over windows. A ``Mendable`` where the folder's
    head does something else, such as a regression."""
    model, tokenizer, labels, card = loaded
    assert isinstance(model, Bert)
    assert isinstance(tokenizer, Tokenizer)
    assert labels is not None
    problem, several = card.get("problem_type"), model.config.several
    if problem not in (None, ONE, SEVERAL) or (len(labels) < 2 and not several):
        raise Mendable(
            f"it answers with {len(labels)} numbers for problem_type={problem}, not with one of "
            "several labels: call the model itself"
        )
    frame = frame_of(model.config, tokenizer)
    shares = partial(probabilities, model, tokenizer=tokenizer, frame=frame, several=several)
    return (LabelSets if several else Labels)(shares, labels)


USES["classify"] = _labels


def _spans(loaded: Loaded) -> Answers:
    """What one asks of a BERT with the head answer: answers to questions on passages. ``use`` has
    seen that it has a tokenizer."""
    model, tokenizer = loaded.model, loaded.tokenizer
    assert isinstance(model, Bert)
    assert isinstance(tokenizer, Tokenizer)
    return Answers(partial(span_logits, model), tokenizer, model.config.context_length)


USES["answer"] = _spans


def span_logits(model: Bert, ids: Tensor, valid: Tensor, types: Tensor) -> Tensor:
    """(B, T, 2) in float32 on the CPU: how well an answer begins, and ends, with each token. The
    three inputs are (B, T), as ``data.passages.window_batch`` has them; the model's head must be
    answer."""
    device = next(model.parameters()).device
    types = types.clamp(max=model.config.types - 1)  # a model may have one type only
    with evaluation_mode(model.modules()), torch.inference_mode():
        return model(ids.to(device), valid.to(device), types.to(device)).float().cpu()


def frame_of(config: BertConfig, tokenizer: Tokenizer) -> TextFrame:
    """What a BERT reads of a text at once: [CLS], a part of it, [SEP]. A ``Mendable`` where the
    tokenizer has no such tokens, or the context no room between them."""
    around = (tokenizer.role_id("cls"),), (tokenizer.role_id("sep"),)
    frame = TextFrame(config.context_length, *around)
    if frame.room < 1:
        raise WeightsError(f"context_length={config.context_length} has no room for a text")
    return frame


def _beginning(folder: Path, classes: int, several: bool, dropout: float) -> Beginning:
    """A classifier of ``classes`` with the weights of the model there, but for its head, which is
    new whatever head the folder has. Its labels have no names yet: who saves it gives them.
    ``several``: whether a text may have several. ``dropout`` replaces the folder's."""
    tokenizer = tokenizer_beside(folder)
    if tokenizer is None:
        raise WeightsError(f"{folder} has no tokenizer, which would make ids of the texts")
    # names that no folder has, so that the head is new
    names = [f"class {i}" for i in range(classes)]
    model, _ = load(folder, dropout=dropout, head="classify", labels=names, several=several)
    model.labels = None
    assert model.head is not None
    return Beginning(model, model.head, tokenizer, frame_of(model.config, tokenizer))


KIND = ModelKind(
    (PUBLISHED, bert_json.OWN), Bert, "a BERT", _read, _write, use, classifier=_beginning
)
