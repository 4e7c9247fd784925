"""Which tokens a step sees: a function of the seed and a number, with nothing to save or restore.

The windows of all epochs form one endless sequence. Whoever asks for numbers 96 to 127 gets the
same rows in one piece or in four, on one machine or on eight, in a new run or a resumed one; so
data is neither repeated nor left out when a batch size or a world size changes.
"""

from typing import final

import numpy as np
from numpy.typing import NDArray

from addnorm.data.order import order_key, shuffled
from addnorm.data.prepared import Tokens
from addnorm.data.sources import DataError

__all__ = ["Windows", "document_of"]


@final
class Windows:
    """Windows of context + 1 tokens of a split, in an order that depends on (seed, epoch) only.

    ``tokens``: the split; ``context``: how many tokens of a window are predicted; ``seed``: what
    decides the order of every epoch.

    A window's last token is the next one's first: each token is predicted once. In each epoch every
    window comes exactly once, in an order of its own, and the windows are cut at an offset of its
    own (0 to context - 1), so that no token stands at the same place of a window for ever. What is
    before the offset and after the last whole window waits for an epoch with another offset.
    """

    def __init__(self, tokens: Tokens, context: int, seed: int) -> None:
        if context < 1:
            raise ValueError(f"context is {context}: a window has at least one token")
        if len(tokens) < context + 1:
            raise DataError(
                f"the {tokens.name} split has {len(tokens)} tokens, fewer than a window of "
                f"context + 1 = {context + 1}: use a shorter context, or more text"
            )
        self._tokens, self._context, self._seed = tokens, context, seed
        # One less than what fits at offset 0, so that the same number fits at every offset.
        self._windows = max(1, len(tokens) // context - 1)
        self._offsets = min(context, len(tokens) - self._windows * context)

    def __len__(self) -> int:
        """Windows in one epoch."""
        return self._windows

    def epoch(self, number: int) -> int:
        """The epoch that a window belongs to, from 0."""
        return number // self._windows

    def starts(self, first: int, count: int) -> NDArray[np.int64]:
        """Where in the split each of the windows first, first + 1, ... begins: the index of its
        first token, (count,). A ``ValueError`` below 0."""
        if first < 0 or count < 0:
            raise ValueError(f"windows {first} to {first + count}: numbers start at 0")
        numbers = np.arange(first, first + count, dtype=np.int64)
        starts = np.empty(count, np.int64)
        epochs = numbers // self._windows
        for epoch in range(self.epoch(first), self.epoch(first + count - 1) + 1 if count else 0):
            here = epochs == epoch
            key = _key(self._seed, epoch)
            offset = int(key[-1] % np.uint64(self._offsets))
            order = shuffled(numbers[here] % self._windows, self._windows, key[:-1])
            starts[here] = offset + order * self._context
        return starts

    def rows(self, first: int, count: int, every: int = 1) -> NDArray[np.int64]:
        """The ids of the windows number first, first + 1, ..., of which only each ``every``-th is
        read: (ceil(count / every), context + 1)."""
        starts = self.starts(first, count)[::every]
        rows = np.empty((len(starts), self._context + 1), np.int64)
        for row, start in zip(rows, starts.tolist(), strict=True):
            row[:] = self._tokens.read(start, start + len(row))
        return rows

    def documents(self, first: int, count: int, every: int = 1) -> NDArray[np.int64]:
        """The number of the document that each token of these windows belongs to, in the shape of
        ``rows``."""
        indices = self.starts(first, count)[::every, None] + np.arange(self._context + 1)
        return document_of(self._tokens, indices)


def document_of(tokens: Tokens, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of the document that each token, by its index, belongs to."""
    return np.searchsorted(tokens.starts, indices, side="right") - 1


# --- the order ------------------------------------------------------------------------------------


def _key(seed: int, epoch: int) -> NDArray[np.uint64]:
    """The key of an epoch's order, and a random number for its offset."""
    return order_key(f"addnorm windows, seed {seed}, epoch {epoch}", more=1)
