"""Folders of transformers whose tensors are ours under other names: read and written by a table.

The table says of each of our parameters which stored tensors it is, one after the other along the
first dimension, and in which shapes they are stored. What is missing, left over, of another shape
or not finite is refused by name.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from addnorm.errors import value_in_short
from addnorm.files import folders
from addnorm.files.config_json import GPT2_ACTIVATIONS
from addnorm.files.folders import CONFIG, WeightsError
from addnorm.files.tensors import SAFETENSORS_DTYPES, StoredTensor, entries
from addnorm.words import a_few


class StoredPiece(NamedTuple):
    """A tensor as it is stored."""

    name: str
    shape: tuple[int, ...]


Table = Mapping[str, Sequence[StoredPiece]]
"""Our parameter -> the stored tensors that it is; none: it is not stored, and 0 everywhere."""


class PublishedState(NamedTuple):
    """What a folder holds of a model."""

    values: dict[str, Tensor]
    """By the names of our parameters, tensors of their own."""
    ignored: list[str]
    """Stored names that no part of the model reads."""


def read_state(
    folder: Path,
    table: Table,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype | None,
    *,
    bare: Callable[[str], str] = lambda name: name,
    unread: Callable[[str], bool] = lambda name: False,
) -> PublishedState:
    """The values of our parameters, whose ``shapes`` these are; a ``WeightsError`` says what is
    wrong. ``dtype`` None keeps what is stored. ``bare``: a stored name as the table has it.
    ``unread``: of such a name, whether it is passed over."""
    source = {bare(name): entry for name, entry in entries(folder).items()}
    ignored = [name for name in source if unread(name)]
    tensors = {name: entry for name, entry in source.items() if name not in ignored}
    pieces = {piece.name: piece.shape for row in table.values() for piece in row}
    check_names(folder, pieces, tensors)
    for name, shape in pieces.items():
        check_tensor(folder, name, tensors[name], shape)
    folders.seal(folder, sorted({entry.file for entry in tensors.values()}))
    values = {}
    for ours, row in table.items():
        parts = [_value(tensors[piece.name], piece.name, dtype) for piece in row]
        shape = shapes[ours]
        parts = [part.reshape(-1, *shape[1:]) for part in parts]
        values[ours] = torch.cat(parts) if parts else torch.zeros(shape, dtype=dtype)
    return PublishedState(values, ignored)


def check_names(folder: Path, names: Collection[str], tensors: Mapping[str, StoredTensor]) -> None:
    """Raise a ``WeightsError`` unless what is stored, ``tensors``, are those of these names, no
    more and no fewer."""
    if missing := [name for name in names if name not in tensors]:
        raise WeightsError(
            f"{folder}: {a_few(missing)} are missing from the weights: a file was cut, or is of "
            f"another kind of model than {CONFIG} says"
        )
    if extra := sorted(tensors.keys() - {*names}):
        raise WeightsError(
            f"{folder / tensors[extra[0]].file} holds {a_few(extra)}, which the model of {CONFIG} "
            "has no place for: it is of another model, or one with parts that addnorm lacks"
        )


def check_tensor(folder: Path, name: str, entry: StoredTensor, shape: tuple[int, ...]) -> None:
    """Raise a ``WeightsError`` unless a stored tensor has this shape, and a type that weights
    have."""
    where, dtypes = f"{folder / entry.file}: {name}", SAFETENSORS_DTYPES.values()
    if entry.dtype not in dtypes:
        raise WeightsError(
            f"{where} is {entry.dtype}: weights are {', '.join(dtypes)}. Quantized or packed ones "
            "are not read: use the original"
        )
    if entry.shape != shape:
        raise WeightsError(
            f"{where} has shape {entry.shape}, expected {shape} by {CONFIG}: the weights and it "
            "belong to different models"
        )


def _value(entry: StoredTensor, name: str, dtype: torch.dtype | None) -> Tensor:
    """A tensor of its own, finite."""
    t = folders.finite(entry.file, name, entry.read())
    if dtype is not None:
        t = folders.finite(entry.file, f"{name} as {dtype}", t.to(dtype))
    return t.clone()


def as_published(table: Table, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters as they are stored; one without a row of pieces is left out."""
    tensors = {}
    for name, row in table.items():
        sizes = [torch.Size(piece.shape).numel() for piece in row]
        for piece, part in zip(row, ours[name].flatten().split(sizes) if row else (), strict=True):
            tensors[piece.name] = part.reshape(piece.shape).contiguous()
    return tensors


# --- what config.json says ------------------------------------------------------------------------


def activation_of(card: Mapping[str, Any], key: str, usual: str) -> str:
    """Our name of an activation of a config.json; a ``WeightsError`` for one we do not have."""
    name = card.get(key, usual)
    if not isinstance(name, str) or name not in GPT2_ACTIVATIONS:
        raise WeightsError(
            f"{key}={value_in_short(name)} is not implemented, only {', '.join(GPT2_ACTIVATIONS)}"
        )
    return GPT2_ACTIVATIONS[name]


def label_names(card: Mapping[str, Any]) -> tuple[str, ...]:
    """The names under id2label, in order; without it there are ``num_labels``, or two, LABEL_0 and
    so on, as in transformers. A ``WeightsError`` where these make no sense."""
    names = card.get("id2label")
    if names is None:
        count = card.get("num_labels", card.get("_num_labels", 2))
        if type(count) is not int or count < 1:
            raise WeightsError(f"num_labels={value_in_short(count)} is not a number of labels")
        return tuple(f"LABEL_{i}" for i in range(count))
    places = [str(i) for i in range(len(names))] if isinstance(names, dict) else []
    if not places or sorted(names) != sorted(places):
        raise WeightsError(
            f"id2label={value_in_short(names)} does not name the places 0, 1, ... in order"
        )
    if wrong := [names[i] for i in places if not isinstance(names[i], str)]:
        raise WeightsError(f"id2label has {value_in_short(wrong[0])} for a name")
    return tuple(names[i] for i in places)
