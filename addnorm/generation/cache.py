"""A key-value cache in memory that is set aside beforehand: ``context.Cache`` for generation.
Of a recurrent model it has the state instead: ``context.StateCache``.

Buffers (B, heads, capacity, head_dim) are made at the first forward and filled from the left. When
they are full they are replaced by larger ones; capacities are 256, 1024, 4096, ..., so that this is
rare. In eager mode attention gets a view of the filled part: nothing is copied and nothing needs to
be masked. A compiler gets the whole buffers and the length as a tensor: then every step has the
same shapes, and it compiles once for the prompt and once for each capacity.
"""

from collections.abc import Callable, Hashable
from typing import final

import torch
from torch import Tensor

FIRST, FACTOR = 256, 4  # of the capacities; 512 tokens then cost a compiler three compilations


@final
class StaticCache:
    """Keys and values of all sublayers, whose lengths are the same; or a state.

    Around every forward the caller says ``reserve(new)`` before and ``advance(new)`` after it. A
    forward that was interrupted has then changed nothing: the next one writes to the same slots.

    ``limit``: how many tokens come at most, so that no capacity is larger.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.filled = 0
        self.capacity = 0
        self.front = 0  # slots before those of the tokens, which are not counted by the caller
        self.traced = False  # whether a compiler has seen it: shapes should then stay what they are
        self._fresh = True  # no forward is done yet
        self._slot: Tensor | None = None  # the slots in use, for a compiler
        self._own: dict[Hashable, tuple[Tensor, Tensor]] = {}
        self._memory: dict[Hashable, tuple[Tensor, Tensor]] = {}
        self._states: dict[Hashable, tuple[Tensor, ...]] = {}
        self._left: dict[Hashable, tuple[Tensor, ...]] = {}  # by the last forward

    # --- for the caller ---------------------------------------------------------------------------

    def reserve(self, new: int) -> None:
        """Make room for ``new`` more tokens; a ``ValueError`` where ``limit`` is less than that."""
        need = self.filled + new
        if need <= self.capacity:
            return
        if self.limit is not None and need > self.limit:
            raise ValueError(f"{need} tokens do not fit into a cache limited to {self.limit}")
        self.capacity = max(self.capacity, FIRST)
        while self.capacity < need:
            self.capacity *= FACTOR
        if self.limit is not None:
            self.capacity = min(self.capacity, self.limit)
        for key, (k, v) in self._own.items():
            self._own[key] = self._widened(k), self._widened(v)

    def advance(self, new: int) -> None:
        """What the last forward wrote, of ``new`` tokens, is there from now on."""
        self.filled += new
        self._fresh = False
        self._states |= self._left
        self._left = {}
        if self._slot is None:
            device = next(iter((self._own | self._states).values()))[0].device
            self._slot = torch.zeros((), dtype=torch.long, device=device)
        self._slot.fill_(self.front + self.filled)

    def keep(self, rows: Tensor, *, same_memory: bool = False) -> None:
        """Only these rows of the batch, in this order, some perhaps several times.

        ``same_memory``: the rows change places with rows of the same encoder's output only.
        """
        for store in (self._own,) if same_memory else (self._own, self._memory):
            for key, (k, v) in store.items():
                store[key] = k.index_select(0, rows), v.index_select(0, rows)
        for key, state in self._states.items():
            self._states[key] = tuple(s.index_select(0, rows) for s in state)

    # --- for attention ----------------------------------------------------------------------------

    def lead(self, places: int) -> None:
        """Of the slots, so many are in front of those for tokens: ``limit`` does not count them."""
        self.front = places

    def length(self, key: Hashable) -> int | Tensor:
        """How many slots are in use, those in front included; a tensor under a compiler."""
        if self._fresh:
            return 0
        if torch.compiler.is_compiling():
            assert self._slot is not None
            return self._slot
        return self.front + self.filled

    def update(self, key: Hashable, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, Hkv, T, D) and return all; under a compiler with the slots not yet filled.

        ``filled`` stays until ``advance``: all sublayers write to the same slots. The first forward
        gets back what it gave, since there is nothing before it.
        """
        if torch.compiler.is_compiling():
            self.traced = True
        if self._fresh:
            self._own[key] = self._widened(k), self._widened(v)
            return k, v
        keys, values = self._own[key]
        if torch.compiler.is_compiling():
            assert self._slot is not None
            slots = self._slot + torch.arange(k.shape[-2], device=k.device)
            keys.index_copy_(2, slots, k)
            values.index_copy_(2, slots, v)
            return keys, values
        first = self.front + self.filled
        end = first + k.shape[-2]
        keys[:, :, first:end] = k
        values[:, :, first:end] = v
        return keys[:, :, :end], values[:, :, :end]

    def memory(
        self, key: Hashable, make: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of an encoder's output for the sublayer ``key``: what ``make`` returns,
        which is called the first time and kept."""
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]

    # --- for a recurrent model --------------------------------------------------------------------

    def state(self, key: Hashable) -> tuple[Tensor, ...] | None:
        """That of the last forward which ``advance`` followed."""
        return self._states.get(key)

    def leave(self, key: Hashable, state: tuple[Tensor, ...]) -> None:
        """Counts from the next ``advance`` on."""
        self._left[key] = state

    # --- buffers ----------------------------------------------------------------------------------

    def _widened(self, t: Tensor) -> Tensor:
        """A tensor (B, Hkv, S, D) at the beginning of a buffer of ``capacity`` slots and those in
        front. The others are 0: attention multiplies what is masked by 0, which must not give
        NaN."""
        wide = t.new_zeros(*t.shape[:2], self.front + self.capacity, t.shape[-1])
        wide[:, :, : t.shape[-2]] = t
        return wide
