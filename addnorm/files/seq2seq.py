"""A sequence-to-sequence model's folder: MarianMT's format, and our own for every other design.

Beside the weights stand the tokenizers, of source and target or one for both.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from addnorm import reading
from addnorm.data.tokenizer import Tokenizer
from addnorm.data.tokenizer.pair import TokenizerPair, pair, read_pair
from addnorm.errors import Mendable, value_in_short
from addnorm.files import folders, marian
from addnorm.files.folders import CONFIG, SAFETENSORS, WeightsError, read_json
from addnorm.files.marian import MarianTensor
from addnorm.files.own import checked_tensors
from addnorm.files.register import Loaded, ModelKind
from addnorm.files.tensors import SAFETENSORS_DTYPES, StoredTensor, entries
from addnorm.generation.search import SearchRules
from addnorm.models.seq2seq import Seq2Seq
from addnorm.models.seq2seq_config import Seq2SeqConfig
from addnorm.positions import Sinusoidal
from addnorm.uses.translation import Translation
from addnorm.words import a_few

MODEL_TYPE = "addnorm_seq2seq"
RULES = "rules"
"""The key of our config.json that holds the rules of generation."""
TABLES = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
"""Marian's sines, which older folders store."""
ROUNDING = 1e-4  # of those, at the place of the last token


class Seq2SeqReport(NamedTuple):
    """What was found in a folder."""

    folder: Path
    format: str
    """What config.json says as model_type."""
    files: list[str]
    """The files of the weights."""


def load(
    path_or_id: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = torch.float32,
    dropout: float | None = None,
) -> tuple[Seq2Seq, Seq2SeqReport]:
    """A model in evaluation mode, whole and checked, or a ``WeightsError``.

    ``dtype`` None keeps each tensor's own. ``dropout`` replaces what the folder says, everywhere.
    """
    folder = folders.find(path_or_id)
    with reading.system_errors(folder, WeightsError):
        kind = read_json(folder / CONFIG).get("model_type")
        if kind == marian.MODEL_TYPE:
            config, rules = marian.read_config(folder, dropout)
            rows = marian.tensors(config)
        elif kind == MODEL_TYPE:
            config, rules = _read_own(folder, dropout)
            rows = []
        else:
            raise WeightsError(
                f"{folder / CONFIG}: model_type is {value_in_short(kind)}, expected "
                f"{marian.MODEL_TYPE} or {MODEL_TYPE}"
            )
        with torch.device("meta"):
            model = Seq2Seq(config)
        shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        rows = rows or [MarianTensor(name, (name,)) for name in shapes]
        by_name = entries(folder)
        _check_tables(folder, by_name, config)
        files = sorted({entry.file for entry in by_name.values()})
        folders.seal(folder, files)
        state = _state(folder, rows, by_name, shapes)
    for name, t in state.items():
        state[name] = t if dtype is None else folders.finite(str(folder), name, t.to(dtype))
    model.load_state_dict(state, strict=True, assign=True)
    model.rules = rules
    return model.eval(), Seq2SeqReport(folder, str(kind), files)


def _state(
    folder: Path,
    rows: list[MarianTensor],
    by_name: Mapping[str, StoredTensor],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Tensor]:
    """Our names -> values, in the stored types; a ``WeightsError`` where copies are not alike, or
    something is missing or left over. ``rows``: all tensors of the model. ``by_name``: what is
    stored. ``shapes``: by our names."""
    names = {name for row in rows for name in row.theirs} | set(TABLES)
    if extra := sorted(by_name.keys() - names):
        raise WeightsError(
            f"{folder / by_name[extra[0]].file} holds {a_few(extra)}, which the model of {CONFIG} "
            "has no place for: it is of another model, or one with parts that addnorm lacks"
        )
    optional = {"logits_bias"}  # transformers takes a missing one for zeros
    missing = [
        row.theirs[0]
        for row in rows
        if row.ours not in optional and not any(name in by_name for name in row.theirs)
    ]
    if missing:
        raise WeightsError(
            f"{folder}: {a_few(missing)} are missing from the weights: the file was cut, or is of "
            "another kind of model"
        )
    state = {}
    for row in rows:
        copies = [name for name in row.theirs if name in by_name]
        if not copies:
            state[row.ours] = torch.zeros(shapes[row.ours])
            continue
        for name in copies:
            state[row.ours] = _value(folder, name, by_name[name], shapes[row.ours], state, row.ours)
    return state


def _value(
    folder: Path,
    name: str,
    entry: StoredTensor,
    shape: tuple[int, ...],
    state: Mapping[str, Tensor],
    ours: str,
) -> Tensor:
    """The value of ``entry``, which is stored under ``name``, in the ``shape`` of our parameter
    ``ours``; a ``WeightsError`` where it has another. If ``state`` has that parameter already, from
    another name, it must be the same to the bit."""
    where = f"{folder / entry.file}: {name}"
    if entry.dtype not in SAFETENSORS_DTYPES.values():
        raise WeightsError(
            f"{where} is {entry.dtype}: weights are {', '.join(SAFETENSORS_DTYPES.values())}"
        )
    row_of_one = (1, *shape)  # the bias of Marian's head
    if entry.shape not in (shape, row_of_one):
        raise WeightsError(
            f"{where} has shape {entry.shape}, expected {shape}: the weights and {CONFIG} "
            "belong to different models"
        )
    value = folders.finite(entry.file, name, entry.read()).reshape(shape).clone()
    if ours in state and not torch.equal(state[ours], value):
        raise WeightsError(
            f"{where} is not the other copy of this table, and {CONFIG} says that they are tied"
        )
    return value


def _check_tables(folder: Path, by_name: Mapping[str, StoredTensor], config: Seq2SeqConfig) -> None:
    """Raise a ``WeightsError`` where positions are stored that are not the sines of Marian:
    ``load`` passes them over, and computes the sines. ``by_name``: what is stored."""
    for name in TABLES:
        if name not in by_name:
            continue
        table = by_name[name].read().float()
        code = Sinusoidal(config.dim)(torch.arange(len(table), dtype=torch.float64)).float()
        want = torch.cat((code[:, ::2], code[:, 1::2]), -1)
        if table.shape != want.shape or (table - want).abs().max() > ROUNDING:
            raise WeightsError(
                f"{folder / by_name[name].file}: {name} are not the sines of Marian: positions "
                "that were learned are not read"
            )


def _read_own(folder: Path, dropout: float | None) -> tuple[Seq2SeqConfig, SearchRules]:
    """(the model's choices, the rules of its search) by our config.json; a field that it lacks has
    the default, but for vocab_size. ``dropout`` replaces all of the folder's; None: as it says. A
    ``WeightsError`` says what is wrong with it."""
    file = folder / CONFIG
    card = read_json(file)
    fields = {f.name for f in dataclasses.fields(Seq2SeqConfig)}
    values = {name: value for name, value in card.items() if name in fields}
    if "vocab_size" not in values:
        raise WeightsError(f"{file} does not say what vocab_size is")
    if dropout is not None:
        values |= dict.fromkeys(("dropout", "attention_dropout", "hidden_dropout"), dropout)
    rules = reading.field(card, RULES, dict, file, WeightsError)
    names = {f.name for f in dataclasses.fields(SearchRules)}
    try:
        banned = tuple(tuple(word) for word in rules.get("banned", ()))
        return Seq2SeqConfig(**values), SearchRules(
            **{k: v for k, v in rules.items() if k in names and k != "banned"}, banned=banned
        )
    except (Mendable, TypeError) as error:
        raise WeightsError(f"{file}: {error}") from None


def save(
    model: Seq2Seq,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    tokenizer: Tokenizer | TokenizerPair | None = None,
) -> None:
    """Write a model, and its tokenizers beside it if they are given.

    ``format``: "marian", which transformers reads as it is, or "addnorm"; None takes Marian's where
    it can say what the model is.
    """
    config = model.config
    reasons = marian.why_not_marian(config)
    if format not in (None, "marian", "addnorm"):
        raise WeightsError(f"format is 'marian', 'addnorm' or None, got {format!r}")
    if format == "marian" and reasons:
        raise WeightsError(f"Marian's format cannot say what this model is: {a_few(reasons)}")
    both = pair(tokenizer, tokenizer) if isinstance(tokenizer, Tokenizer) else tokenizer
    _check_pair(both, config)
    tensors = checked_tensors(model, partial(Seq2Seq, config))
    dtype = str(model.tokens.weight.dtype).removeprefix("torch.")
    if format == "addnorm" or reasons:
        rules = dataclasses.asdict(model.rules)
        cards = {
            CONFIG: {
                "model_type": MODEL_TYPE,
                **dataclasses.asdict(config),
                RULES: rules,
                "dtype": dtype,
            }
        }
    else:
        card, how = marian.to_cards(config, model.rules, dtype)
        cards, tensors = {CONFIG: card, folders.GENERATION: how}, _as_marian(config, tensors)

    def fill(folder: Path) -> None:
        """All files of the folder, which is empty."""
        for name, card in cards.items():
            folders.write_json(folder / name, card)
        # transformers asks for this mark of the framework
        save_file(tensors, folder / SAFETENSORS, metadata={"format": "pt"})
        if both is not None:
            both.save(folder)

    folders.write(Path(path).expanduser(), fill)


def _as_marian(config: Seq2SeqConfig, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's tensors by Marian's names. The bias of the logits is there in any case, (1, ids),
    as transformers has it: zeros where the model has none."""
    zeros = torch.zeros(config.targets, dtype=ours["tokens.weight"].dtype)
    state = {row.theirs[0]: ours.get(row.ours, zeros) for row in marian.tensors(config)}
    state["final_logits_bias"] = state["final_logits_bias"][None]
    return state


def _check_pair(both: TokenizerPair | None, config: Seq2SeqConfig) -> None:
    """Raise a ``WeightsError`` where one of the tokenizers has more ids than the model; fewer are
    no harm. None: there are no tokenizers to be checked."""
    if both is None:
        return
    sizes = (
        ("source", both.source.vocab_size, config.vocab_size),
        ("target", both.target.vocab_size, config.targets),
    )
    for side, size, most in sizes:
        if size > most:
            raise WeightsError(
                f"the tokenizer of the {side} has {size} tokens, and the model's vocabulary is "
                f"{most}"
            )


# --- for the register -----------------------------------------------------------------------------


def read(folder: Path, dtype: torch.dtype | None) -> Loaded:
    """The model and its tokenizers."""
    model, report = load(folder, dtype=dtype)
    both = read_pair(report.folder)
    _check_pair(both, model.config)
    return Loaded(model, both, None, read_json(report.folder / CONFIG))


def write(
    model: Seq2Seq,
    folder: Path,
    tokenizer: Tokenizer | TokenizerPair | None,
    labels: Sequence[str] | None,
) -> None:
    """Write the folder that ``read`` takes, as ``save`` does; ``labels`` must be None."""
    if labels is not None:
        raise WeightsError("a sequence-to-sequence model has no labels: leave them out")
    save(model, folder, tokenizer=tokenizer)


def use(loaded: Loaded) -> Translation:
    """What one asks of such a model: translations. A ``Mendable`` where the folder has no
    tokenizers."""
    model, both, _, _ = loaded
    assert isinstance(model, Seq2Seq)
    if not isinstance(both, TokenizerPair):
        raise Mendable(
            "there is no tokenizer beside the model, only ids can be translated: "
            "Seq2Seq.from_pretrained(...).generate(ids)"
        )
    return Translation(model, both)


KIND = ModelKind(
    (marian.MODEL_TYPE, MODEL_TYPE),
    Seq2Seq,
    "a sequence-to-sequence model",
    read,
    write,
    use,
)
