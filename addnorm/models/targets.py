"""A model that has read its sources, as the language model of their targets: what a search asks."""

from collections.abc import Iterator
from typing import Any, Protocol, final

from torch import Tensor, nn

from addnorm.context import Cache
from addnorm.errors import Mendable


class TargetConfig(Protocol):
    """What is chosen of the targets of a model."""

    @property
    def targets(self) -> int:
        """How many ids a target may have."""

    @property
    def context_length(self) -> int:
        """The most tokens of a target."""


class TargetWriter(Protocol):
    """A model that writes targets beside what it has read: ``writer(None, ids, valid, memory=,
    cache=, last=)`` are logits of what follows each of ``ids``."""

    @property
    def config(self) -> TargetConfig: ...

    def __call__(self, source: None, ids: Tensor, valid: Tensor | None, **rest: Any) -> Any: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def modules(self) -> Iterator[nn.Module]: ...


@final
class TargetModel:
    """A ``LanguageModel`` of targets: ``model`` after it has read its sources.

    ``model``: reads and writes.
    ``memory``: (B, S, D), what it has read, a row for each row of ids.
    ``valid``: (B, S), True for real tokens of the sources; None: all are.
    """

    def __init__(self, model: TargetWriter, memory: Tensor, valid: Tensor | None) -> None:
        self.model, self.memory, self.valid = model, memory, valid
        self.vocab_size, self.context_length = model.config.targets, model.config.context_length

    @property
    def config(self) -> "TargetModel":
        """Has ``vocab_size`` and ``context_length``, those of the target."""
        return self

    def __call__(
        self,
        ids: Tensor,
        valid: Tensor | None = None,
        *,
        cache: Cache | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Logits of what follows each of ``ids``, (rows, T), a row for each of the memory.
        ``valid`` is what a ``LanguageModel`` takes, and must be None here."""
        if valid is not None:
            raise Mendable("targets are not padded before their start")
        logits: Tensor = self.model(
            None, ids, self.valid, memory=self.memory, cache=cache, last=last
        )
        return logits

    def keep(self, rows: Tensor) -> None:
        """Only these rows of the sources, in this order, some of them several times."""
        self.memory = self.memory.index_select(0, rows)
        self.valid = None if self.valid is None else self.valid.index_select(0, rows)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The model's."""
        return self.model.parameters()

    def modules(self) -> Iterator[nn.Module]:
        """The model's."""
        return self.model.modules()
