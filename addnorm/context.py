"""What a branch may look at besides its input: masks, positions, an encoder's output, a cache."""

from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, Protocol

from torch import Tensor


class Cache(Protocol):
    """What attention needs of a key-value cache. ``key`` names the sublayer that asks."""

    def length(self, key: Hashable) -> int | Tensor:
        """How many tokens are there already; a 0-dimensional tensor where a compiler must not take
        the number for a constant."""

    def update(self, key: Hashable, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k and v (B, heads, T, head_dim); return all there are, the new ones last. Where
        the length is a tensor, slots for tokens to come may follow."""

    def lead(self, places: int) -> None:
        """Said before the first ``update``: so many places of a model's own, an adapter's prompt,
        come before the first token. ``length`` counts them, whoever fills the cache does not."""

    def memory(
        self, key: Hashable, make: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """The keys and values of the encoder's output, made at the first call and kept."""


class StateCache(Protocol):
    """What a recurrent model needs of a cache. ``key`` names the layers that ask."""

    def length(self, key: Hashable) -> int | Tensor:
        """How many tokens were read, as of ``Cache``."""

    def state(self, key: Hashable) -> tuple[Tensor, ...] | None:
        """What the forwards before this one have left, rows first; None: there were none."""

    def leave(self, key: Hashable, state: tuple[Tensor, ...]) -> None:
        """The state after this forward's tokens, rows first."""


class Memory(NamedTuple):
    """The encoder's output, for cross-attention, and who may look at it."""

    x: Tensor
    """(B, S, D)."""
    valid: Tensor | None = None
    """(B, S), boolean: True = real token of the encoder."""
    attend: Tensor | None = None
    """(T, S), (B, T, S) or (B, H, T, S), boolean: True = may look."""
    bias: Tensor | None = None
    """Added to the attention logits; shapes as ``attend``."""


class Context(NamedTuple):
    """What the caller of a stack says besides its input, to all sublayers alike. Forward writes to
    nothing of it but the cache. Masks say what *may* happen.
    """

    valid: Tensor | None = None
    """(B, S), boolean: True = real token, those in the cache first."""
    attend: Tensor | None = None
    """(T, S), (B, T, S) or (B, H, T, S), boolean: True = may look."""
    bias: Tensor | None = None
    """Added to the attention logits; shapes as ``attend``."""
    positions: Tensor | None = None
    """(T,) or (B, T), of the tokens in x; None: 0, 1, ..."""
    memory: Memory | None = None
    """What cross-attention looks at."""
    cache: Cache | None = None
    """Keys and values of earlier tokens, to which attention appends."""


class Here(NamedTuple):
    """What a branch may look at besides its input: ``branch(u, here)``, made anew for each call."""

    ctx: Context = Context()
    key: Hashable = None  # names the sublayer in the cache
    taps: Mapping[str, Tensor] | None = None  # what earlier sublayers left on the stream
    offers: dict[str, Tensor] | None = None  # what this one leaves there; None: no stream is around
