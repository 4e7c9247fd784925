"""What is trained: a ``Task``. The loop knows no language model, no image and no class of text.

A batch is a mapping of tensors whose first dimension are rows; the loop cuts it into micro-batches
and moves it to the device. ``loss`` returns sums, not means: the loop divides once per optimizer
step by the count over all micro-batches and processes, so that accumulation is the large batch,
however unevenly the targets are spread. A step that has no target on any process teaches nothing:
it is left out, weights and optimizer stay as they are.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from addnorm.training.memory import Needs

Batch = Mapping[str, Tensor]
"""Name -> tensor, rows first."""


class Best(NamedTuple):
    """Which metric says that a model is better, and which way."""

    metric: str
    direction: Literal["min", "max"]

    def better(self, new: float, old: float | None) -> bool:
        """Whether ``new`` is better than the best so far; None: there is none yet. NaN never is."""
        if old is None:
            return new == new
        return new < old if self.direction == "min" else new > old


class Task(ABC):
    """One thing to learn: all that a run needs to know of it, and nothing of how it is trained."""

    best: Best
    noun = "A model"
    """What is trained, at the beginning of a sentence."""
    unit = "targets"
    """What the loss is summed over, in the plural."""
    commands: Mapping[str, str] = MappingProxyType({})
    """What one does with the model -> how, on the command line; ``{model}`` is its folder."""

    @abstractmethod
    def model(self) -> nn.Module:
        """A new model on the CPU, initialized from torch's global generator."""

    @abstractmethod
    def batch(self, split: str, seed: int, step: int, rank: int, world: int) -> Batch:
        """The rows of one process for one optimizer step: a pure function of its arguments.

        The rows of all processes together depend on (split, seed, step) only.
        """

    def row(self, split: str, seed: int, step: int) -> Batch:
        """One row of a step, to be looked at; a task that can read it alone should."""
        return {name: t[:1] for name, t in self.batch(split, seed, step, 0, 1).items()}

    def needs(self, micro_rows: int | None, processes: int) -> Needs | None:
        """How much memory it takes at least; None: nobody knows, and it is tried."""
        return None

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(sum, count, parts): the loss summed over ``count`` targets, and sums to be told.

        Rows may have no target: their sum is 0, computed by the model all the same, so that every
        process has gradients to add up.
        """

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metric -> value on all that was held out; every process calls it and gets the same."""

    def glance(self, model: nn.Module) -> dict[str, float]:
        """``evaluate`` on a fixed part of what is held out, for the curve while training."""
        return self.evaluate(model)

    def sample(self, model: nn.Module) -> list[str]:
        """What the model does, in words, for whoever watches; nothing, if there is nothing."""
        return []

    def alarm(self) -> str:
        """In words, what the last evaluation shows to be wrong, such as a model that gives the same
        answer to everything; "" if there is nothing to tell."""
        return ""

    def pictures(self) -> list[dict[str, Any]]:
        """What the last evaluation showed, for the report: tables as ``pages.run_pictures`` has
        them."""
        return []

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write a model for its users; nothing, if it has no format of its own."""
        return None

    def facts(self) -> dict[str, Any]:
        """What a resumed run must find unchanged, JSON: data, tokenizer, rows per step."""
        return {}

    def beside(self) -> dict[str, Any]:
        """What to compare the result with, for the report; computed once, at the end."""
        return {}

    def introduction(self) -> list[str]:
        """Lines for the user before the first step: what the data is, what follows from it."""
        return []
