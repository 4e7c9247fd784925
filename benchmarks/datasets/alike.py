"""How far pictures are from each other, and which are nearly the same.

A distance is the root of the mean squared difference of two rows, such as those of ``reduced``:
pixels from 0 to 1, so that it is 0 for the same picture and 1 for white beside black.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 16
"""Pixels to which ``reduced`` shrinks a side: enough to see what a drawing shows."""
BLOCK = 1000
"""Rows that are compared at a time, for the memory."""

Rows = NDArray[np.float32]  # (N, D)


def reduced(picture: Image.Image) -> Rows:
    """The picture on white, in 16 by 16 pixels of three colours, as one row, (D,)."""
    small = on_white(picture).resize((SIDE, SIDE), Image.Resampling.BOX)
    return (np.asarray(small, dtype=np.float32).ravel() / 255).astype(np.float32)


def on_white(picture: Image.Image) -> Image.Image:
    """In colours, without an alpha channel."""
    clear = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")


def closest(some: Rows, others: Rows) -> NDArray[Any]:
    """Of each row the distance to the nearest of the others, (N,)."""
    return np.concatenate([block.min(axis=1) for _, block in _distances(some, others)])


def near(rows: Rows, limit: float) -> list[tuple[int, int]]:
    """The pairs (i, j), i < j, of which the distance is at most ``limit``."""
    return [
        (start + int(i), int(j))
        for start, block in _distances(rows, rows)
        for i, j in np.argwhere(block <= limit)
        if start + i < j
    ]


def _distances(some: Rows, others: Rows) -> Iterator[tuple[int, NDArray[Any]]]:
    """(where a block of ``some`` begins, its distances to all others)."""
    wide = others.astype(np.float64)
    squares = (wide**2).sum(axis=1)
    for start in range(0, len(some), BLOCK):
        block = some[start : start + BLOCK].astype(np.float64)
        product = (block**2).sum(axis=1)[:, None] + squares - 2 * block @ wide.T
        yield start, np.sqrt(product.clip(0) / some.shape[1])
