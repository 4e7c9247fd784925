"""What reads the texts of a classification: a model of our own, or one that begins elsewhere."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from addnorm.data.tokenizer import Tokenizer
from addnorm.files import classifier
from addnorm.models.classifier import ClassifierConfig, TextClassifier
from addnorm.models.texts import TextFrame
from addnorm.training.memory import counted


class Body(ABC):
    """A model that gives logits (B, classes) of ids and of which of them are real, and what a
    training has to know of it before there is one.

    ``frame``: how much of a text it reads at once. ``config``: its choices, with ``n_layers``,
    ``dim`` and ``scheme`` among them.
    """

    frame: TextFrame
    config: Any

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
        """What the model is; runs from before there were texts of several labels do not say so."""
        aside = ("dropout", *(() if self.config.several else ("several",)))
        return {"model": {k: v for k, v in asdict(self.config).items() if k not in aside}}

    def because(self) -> str:
        """With the table of pairs."""
        return f"{super().because()}, model.pairs={self.config.pairs}"
