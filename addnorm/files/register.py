"""Which kinds of models there are, and how each is read, written and asked; open to others.

A kind is known by what its folders say as ``model_type`` in config.json. Whoever brings a model
registers its kind, from inside the package or outside, and ``addnorm.load``, ``addnorm.save`` and
``addnorm predict`` know it from then on::

    register(ModelKind(("toy",), Toy, "a toy", read=read_toy, write=write_toy))
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, final

import torch
from torch import nn

from addnorm.data.tokenizer import Tokenizer
from addnorm.data.tokenizer.pair import TokenizerPair
from addnorm.errors import Mendable, value_in_short
from addnorm.files import folders
from addnorm.files.folders import CONFIG, WeightsError
from addnorm.models.texts import TextFrame
from addnorm.uses.use import Answer, Use


class Loaded(NamedTuple):
    """A model from disk, and what was kept with it."""

    model: nn.Module
    """The model, in evaluation mode."""
    tokenizer: Tokenizer | TokenizerPair | None
    """The tokenizer beside the model, or those of what it reads and what it writes; None: there is
    none."""
    labels: tuple[str, ...] | None
    """What each place of the model's answer is called; None: a model that has no such places."""
    card: Mapping[str, Any]
    """What config.json says, as it stands there."""

    def use(self) -> Use:
        """What one does with it, ready for that; a ``Mendable`` if there is nothing but the model
        itself."""
        kind = kind_of(self.model)
        if kind.use is None:
            raise Mendable(f"it is {kind.noun}, of which nothing is asked: {kind.instead}")
        return kind.use(self)

    def predict(self, inputs: Sequence[str | Mapping[str, Any]], **options: Any) -> list[Answer]:
        """The answers of ``addnorm predict --json`` as objects, in the order of the inputs; the
        options are the command's, as in ``beams=4``."""
        return self.use().predict(inputs, **options)


class Beginning(NamedTuple):
    """A classifier that begins as a model of another kind."""

    model: nn.Module
    """``model(ids, valid)`` are logits; ``config`` has its choices."""
    head: nn.Module
    """The part of it that is new."""
    tokenizer: Tokenizer
    """The tokenizer beside the other model."""
    frame: TextFrame
    """How much of a text it reads at once."""


@final
@dataclass(frozen=True)
class ModelKind:
    """What there is to know of one kind of models."""

    model_types: tuple[str, ...]
    """What config.json may say as model_type, each a format of its own; as in
    ``gpt2/GPT2ForSequenceClassification`` where it must name an architecture too."""
    model: type[nn.Module]
    """The class of the models."""
    noun: str
    """What a message calls one, as "a text classifier"."""
    read: Callable[[Path, torch.dtype | None], Loaded]
    """From a folder, its tensors as a dtype, or as they are stored; what is wrong is a
    ``WeightsError``."""
    write: Callable[[Any, Path, Tokenizer | None, Sequence[str] | None], None]
    """(model, folder, tokenizer, labels): the folder that ``read`` takes, whole or not at all."""
    use: Callable[[Loaded], Use] | None = None
    """What one does with such a model; None: it is not asked for answers."""
    instead: str = ""
    """How a model that has no use is used, for messages."""
    writes: bool = False
    """Whether it continues texts: a ``generation.LanguageModel``."""
    classifier: Callable[[Path, int, bool, float], Beginning] | None = None
    """(folder, classes, several, dropout): a classifier that begins as the model in a folder;
    ``several``: whether a text may have several classes. None: none can begin so."""


_KINDS: dict[str, ModelKind] = {}


def register(kind: ModelKind) -> None:
    """Make a kind known; a model_type that is known already, of another class, is an error."""
    for name in kind.model_types:
        other = _KINDS.get(name, kind)
        if _full_name(other.model) != _full_name(kind.model):  # a notebook's cell may run again
            raise ValueError(f"model_type {name!r} is registered already, for {other.noun}")
    _KINDS.update(dict.fromkeys(kind.model_types, kind))


def is_known(model_type: object) -> TypeGuard[str]:
    """Whether there is a kind whose config.json says this."""
    return isinstance(model_type, str) and model_type in _KINDS


def _full_name(kind: type[nn.Module]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def kind_of(model: nn.Module) -> ModelKind:
    """The kind that a model is of; a ``WeightsError`` if it is of none that is registered."""
    for kind in _KINDS.values():
        if isinstance(model, kind.model):
            return kind
    names = sorted({kind.model.__name__ for kind in _KINDS.values()})
    raise WeightsError(
        f"there is no format for a {type(model).__name__}, only for {', '.join(names)}; of a model "
        "that is compiled or wrapped, save the one inside"
    )


def read(folder: Path, dtype: torch.dtype | None) -> Loaded:
    """The model in a folder, by what its config.json says that it is; ``dtype`` None leaves the
    tensors as they are stored."""
    return kind_in(folder).read(folder, dtype)


def kind_in(folder: Path) -> ModelKind:
    """The kind of the model in a folder, by its config.json: one that names an architecture of it
    before one that does not. A ``WeightsError`` if it is of none that is registered."""
    card = folders.read_json(folder / CONFIG)
    name, architectures = card.get("model_type"), card.get("architectures")
    for architecture in architectures if isinstance(architectures, list) else []:
        if is_known(full := f"{name}/{architecture}"):
            return _KINDS[full]
    if not is_known(name):
        raise WeightsError(
            f"{folder / CONFIG}: model_type is {value_in_short(name)}, expected one of "
            f"{', '.join(known for known in _KINDS if '/' not in known)}"
        )
    return _KINDS[name]


def tokenizer_beside(folder: Path) -> Tokenizer | None:
    """The tokenizer in a model's folder; None: there is none. A damaged one is an error."""
    if not any(os.path.lexists(folder / name) for name in folders.TOKENIZERS):
        return None
    try:
        return Tokenizer.from_pretrained(folder)
    except Mendable as error:
        raise WeightsError(f"the tokenizer beside the model cannot be read: {error}") from None
