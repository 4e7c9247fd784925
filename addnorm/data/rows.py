"""Rows of unlike length: as a batch, and in parts where one is longer than a model reads."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WINDOWS = 8
"""Of a row longer than the context, side by side with halves in common; the parts of a longer one
lie further apart, so that a book takes no longer to judge than a chapter."""


def windows(ids: NDArray[np.int64], context: int) -> list[NDArray[np.int64]]:
    """The parts by which a text is judged: the whole of it, if it fits into ``context`` ids; else
    at most ``WINDOWS`` of that length, from its beginning to its end at equal distances."""
    if len(ids) <= context:
        return [ids]
    count = min(-(-2 * len(ids) // context) - 1, WINDOWS)
    starts = np.linspace(0, len(ids) - context, count).round().astype(np.int64)
    return [ids[start : start + context] for start in starts]


def padded(rows: Sequence[NDArray[np.int64]], fill: int = 0) -> dict[str, Tensor]:
    """``ids`` and ``valid``, which is True for what is real, both (rows, longest), of rows of
    unlike length, with ``fill`` behind the shorter ones."""
    length = max((len(row) for row in rows), default=1)
    ids = torch.full((len(rows), length), fill)
    valid = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.from_numpy(row)
        valid[i, : len(row)] = True
    return {"ids": ids, "valid": valid}


def part_of(ids: NDArray[np.int64], room: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """As much of a text as has room, from anywhere in it."""
    start = rng.integers(max(len(ids) - room, 0) + 1)
    return ids[start : start + room]


def thinned(ids: NDArray[np.int64], share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """A text less a share of its tokens, which is ``share`` in the mean; a rate of its own for each
    text, so that whole ones are seen too. One is never left out whole."""
    keep = rng.random(len(ids)) >= rng.uniform(0, 2 * share)
    return ids[keep] if keep.any() else ids


def padded_frames(rows: Sequence[Tensor], length: int | None = None) -> dict[str, Tensor]:
    """``features`` (rows, mels, longest) of rows (mels, frames) of unlike length, with zeros behind
    the shorter ones, and ``valid`` (rows, longest), True for what is real. ``length``: of all rows,
    where it is greater than the longest."""
    frames = max([row.shape[1] for row in rows] + ([] if length is None else [length]))
    features = torch.zeros(len(rows), rows[0].shape[0], frames)
    valid = torch.zeros(len(rows), frames, dtype=torch.bool)
    for i, row in enumerate(rows):
        features[i, :, : row.shape[1]] = row
        valid[i, : row.shape[1]] = True
    return {"features": features, "valid": valid}
