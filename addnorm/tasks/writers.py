"""The model that a language task trains: a GPT, new or one that is there, or a recurrent one."""

from abc import ABC, abstractmethod
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from addnorm.adapt import Adapt
from addnorm.data.tokenizer import Tokenizer
from addnorm.files import recurrent
from addnorm.models.gpt import GPT
from addnorm.models.gpt_config import GPTConfig
from addnorm.models.recurrent import RecurrentConfig, RecurrentLM
from addnorm.tasks.beginnings import config_beside, put_adapter, save_model
from addnorm.training.memory import counted


class Writer(ABC):
    """A language model, and what a training has to know of it before there is one.

    ``config``: its choices, with ``vocab_size``, ``context_length``, ``dim``, ``n_layers`` and
    ``dropout`` among them.
    """

    config: Any
    kind: type[nn.Module]
    """Of the models; what is wrapped in another is not asked for samples."""

    @abstractmethod
    def model(self) -> nn.Module:
        """A new one, from torch's global generator; or what it begins as."""

    @abstractmethod
    def empty(self, layers: int) -> nn.Module:
        """The model with ``layers`` layers, on the meta device."""

    @abstractmethod
    def save(self, model: nn.Module, folder: Path, tokenizer: Tokenizer) -> None:
        """Write the model for ``addnorm.load``."""

    @abstractmethod
    def because(self) -> str:
        """The settings that decide its size, as one writes them."""

    @abstractmethod
    def introduction(self) -> list[str]:
        """What it is, in words, and how many parameters it has."""

    def counts(self) -> tuple[int, int]:
        """Parameters, and those that are trained."""
        return counted(self.empty, self.config.n_layers)

    def facts(self) -> dict[str, Any]:
        """What a resumed run must find unchanged."""
        return {"model": {k: v for k, v in asdict(self.config).items() if k != "dropout"}}

    def _size(self, design: str) -> str:
        """The line with its number of parameters and its shape; ``design``: what kind of model it
        is, in a word, such as the scheme."""
        c, (parameters, _) = self.config, self.counts()
        return (
            f"model: {parameters:,} parameters, {design}, {c.n_layers} layers of width {c.dim}, "
            f"context {c.context_length}, vocabulary {c.vocab_size:,}"
        )


@final
class GPTWriter(Writer):
    """A ``GPT``.

    ``config``: its choices; an adapter may leave less of the context. ``adapt``: what is trained
    beside it, if anything. ``init_from``: where it begins; None: it is new. ``start``: a hash of
    the weights there; None: it is new. ``tokenizer``: its own, for a prompt that begins as a text.
    """

    kind = GPT

    def __init__(
        self,
        config: GPTConfig,
        adapt: Adapt,
        init_from: str | None = None,
        start: str | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.base, self.config = config, config_beside(adapt, config)
        self.adapt, self.init_from, self.start, self.tokenizer = adapt, init_from, start, tokenizer

    def model(self) -> GPT:
        """A new model, or the one that ``init_from`` names."""
        if self.init_from is None:
            return GPT(self.config)
        model = GPT.from_pretrained(self.init_from, dropout=self.config.dropout)
        put_adapter(self.adapt, model, self.tokenizer)
        return model

    def empty(self, layers: int) -> GPT:
        """With the adapter."""
        with torch.device("meta"):
            model = GPT(replace(self.base, n_layers=layers))
            put_adapter(self.adapt, model, self.tokenizer)
        return model

    def save(self, model: nn.Module, folder: Path, tokenizer: Tokenizer) -> None:
        """For ``GPT.from_pretrained``, and for adapters too."""
        save_model(model, self.adapt, folder, tokenizer)

    def because(self) -> str:
        """With those of the adapter."""
        fields = {
            "model": ("context_length", "dim", "n_layers", "hidden", "vocab_multiple"),
            "adapt": () if self.adapt.kind == "none" else ("rank", "init_rank", "length", "width"),
        }
        of = {"model": self.config, "adapt": self.adapt}
        return ", ".join(
            f"{part}.{n}={getattr(of[part], n)}" for part, names in fields.items() for n in names
        )

    def facts(self) -> dict[str, Any]:
        """Which weights it began with, too."""
        return super().facts() | ({} if self.start is None else {"start": self.start})

    def introduction(self) -> list[str]:
        """Whether only an adapter is trained."""
        kind = self.adapt.kind
        adapter = f"only an adapter is trained: {kind}, {self.counts()[1]:,} parameters"
        return [*([] if kind == "none" else [adapter]), self._size(self.config.scheme)]


@final
class RecurrentWriter(Writer):
    """A ``RecurrentLM`` from scratch.

    ``config``: its choices.
    """

    kind = RecurrentLM

    def __init__(self, config: RecurrentConfig) -> None:
        self.config = config

    def model(self) -> RecurrentLM:
        """A new one."""
        return RecurrentLM(self.config)

    def empty(self, layers: int) -> RecurrentLM:
        """With the same cells."""
        with torch.device("meta"):
            return RecurrentLM(replace(self.config, n_layers=layers))

    def save(self, model: nn.Module, folder: Path, tokenizer: Tokenizer) -> None:
        """In its own format."""
        assert isinstance(model, RecurrentLM)
        recurrent.write(model, folder, tokenizer, None)

    def because(self) -> str:
        """Of the model."""
        names = ("context_length", "dim", "n_layers", "cell")
        return ", ".join(f"model.{n}={getattr(self.config, n)}" for n in names)

    def introduction(self) -> list[str]:
        """With the cell."""
        return [self._size(self.config.cell)]
