"""What reads the texts of a classification: a model of our own, or one that begins elsewhere."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from addnorm.adapt import Adapt, folded
from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable
from addnorm.files import classifier, folders, register
from addnorm.files.register import Beginning, Loaded
from addnorm.models.classifier import TRANSFORMER, ClassifierConfig, TextClassifier
from addnorm.models.texts import TextFrame
from addnorm.pretrained import model_folder
from addnorm.settings import SettingsError
from addnorm.tasks.beginnings import put_adapter
from addnorm.tasks.earlier import HEAD, rows_by_label
from addnorm.training.memory import counted


class Body(ABC):
    """A model that gives logits (B, classes) of ids and of which of them are real, and what a
    training has to know of it before there is one.

    ``frame``: how much of a text it reads at once. ``config``: its choices, with ``n_layers``,
    ``dim`` and ``scheme`` among them. ``before``: the classifier that it goes on as; None: its head
    is new.
    """

    frame: TextFrame
    config: Any
    before: Loaded | None = None

    @abstractmethod
    def model(self) -> nn.Module:
        """A new one, from torch's global generator; or what it begins as."""

    @abstractmethod
    def counts(self) -> tuple[int, int]:
        """Parameters, and those that are trained."""

    @abstractmethod
    def save(
        self, model: nn.Module, folder: Path, tokenizer: Tokenizer, labels: Sequence[str]
    ) -> None:
        """Write the model for ``addnorm.load``."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What a resumed run must find unchanged."""

    def design(self) -> str:
        """Which of its kind it is, in a word or a scheme."""
        return str(self.config.scheme)

    def because(self) -> str:
        """The settings that decide its size, as one writes them."""
        names = ("context_length", "dim", "n_layers")
        return ", ".join(f"model.{n}={getattr(self.config, n)}" for n in names)


@final
class OwnEncoder(Body):
    """A ``TextClassifier`` from scratch.

    ``config``: its choices.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        self.config, self.frame = config, TextFrame(config.context_length)

    def model(self) -> TextClassifier:
        """A new one."""
        return TextClassifier(self.config)

    def counts(self) -> tuple[int, int]:
        """All are trained."""
        return counted(self._empty, self.config.n_layers)

    def _empty(self, layers: int) -> TextClassifier:
        """The model with ``layers`` layers, on the meta device."""
        with torch.device("meta"):
            return TextClassifier(replace(self.config, n_layers=layers))

    def save(
        self, model: nn.Module, folder: Path, tokenizer: Tokenizer, labels: Sequence[str]
    ) -> None:
        """In its own format."""
        assert isinstance(model, TextClassifier)
        classifier.write(model, folder, tokenizer, labels)

    def facts(self) -> dict[str, Any]:
        """What the model is; runs from before there were texts of several labels, and recurrent
        bodies, do not say so."""
        aside = ["dropout", *([] if self.config.several else ["several"])]
        aside += ["body"] if self.config.body == TRANSFORMER else []
        return {"model": {k: v for k, v in asdict(self.config).items() if k not in aside}}

    def design(self) -> str:
        """The scheme of a Transformer, or what cells it has."""
        body: str = self.config.body
        return super().design() if body == TRANSFORMER else body

    def because(self) -> str:
        """With the table of pairs."""
        return f"{super().because()}, model.pairs={self.config.pairs}"


@final
class Pretrained(Body):
    """A model that others made, with a head of its own, all of it trained or an adapter in it.

    ``init_from``: its folder or hub id. ``classes``: how many there are. ``several``: whether a
    text may have several. ``dropout``: that of the model in training. ``adapt``: the adapter.
    ``names``: those of the classes, where a classifier that is there goes on: its head keeps what
    it knows of the same names. None: the head is new.

    The model is read once already here, for its tokenizer, its frame and its size; a
    ``SettingsError`` says why a classifier cannot begin as it.
    """

    def __init__(
        self,
        init_from: str,
        classes: int,
        several: bool,
        dropout: float,
        adapt: Adapt,
        names: Sequence[str] | None = None,
    ) -> None:
        self.init_from, self.adapt, self.names = init_from, adapt, names or ()
        self.choices = classes, several, dropout
        try:
            self.folder = model_folder(init_from)
            self.start = folders.identity(self.folder)
            kind = register.kind_in(self.folder)
            if kind.classifier is None:
                raise Mendable(f"it is {kind.noun}, and a classifier cannot begin as one")
            self._begin: Any = kind.classifier
            if names is not None:
                self.before = self._classifier()
            beginning = self._adapted()
        except Mendable as error:
            raise SettingsError(f"init_from={init_from}: {error}") from None
        self.tokenizer, self.frame = beginning.tokenizer, beginning.frame
        self.config: Any = beginning.model.config
        parameters = list(beginning.model.parameters())
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        self._counts = sum(p.numel() for p in parameters), trained

    def _adapted(self) -> Beginning:
        """The model anew from its folder, with a new head and the adapter in it. The head is
        trained whatever the adapter leaves alone."""
        beginning: Beginning = self._begin(self.folder, *self.choices)
        if self.before is not None:
            old, labels = dict(self.before.model.named_parameters()), self.before.labels or ()
            with torch.no_grad():
                for name, p in beginning.head.named_parameters():
                    p.copy_(rows_by_label(old[HEAD + name], p, labels, self.names))
        put_adapter(self.adapt, beginning.model)
        beginning.head.requires_grad_(True)
        return beginning

    def _classifier(self) -> Loaded:
        """What is in the folder, if it has labels; else a ``Mendable``."""
        loaded = register.read(self.folder, torch.float32)
        if loaded.labels is None:
            raise Mendable(
                "it has learned no labels: earlier.data is for a classifier that goes on learning"
            )
        return loaded

    def model(self) -> nn.Module:
        """With the weights there."""
        return self._adapted().model

    def counts(self) -> tuple[int, int]:
        """Beside an adapter the head is trained."""
        return self._counts

    def save(
        self, model: nn.Module, folder: Path, tokenizer: Tokenizer, labels: Sequence[str]
    ) -> None:
        """As the kind of model that it is; an adapter is folded into its weights first, so that
        nobody needs it any more."""
        plain = model if self.adapt.kind == "none" else folded(model)
        register.kind_of(plain).write(plain, folder, tokenizer, labels)

    def facts(self) -> dict[str, Any]:
        """Which weights it began with, and what it is."""
        model = {k: v for k, v in asdict(self.config).items() if not k.endswith("dropout")}
        return {"start": self.start, "model": model}

    def because(self) -> str:
        """The model decides."""
        return f"init_from={self.init_from}"
