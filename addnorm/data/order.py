"""An order of any number of things, of which every place is found by itself, without a table.

key = order_key("windows, seed 0, epoch 3")
shuffled(np.arange(96, 128), len(things), key)  # which things come at these places
"""

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

ROUNDS: Final = 64
"""How often pairs are swapped. After r rounds a place is uniform but for 2**-r."""


def order_key(name: str, more: int = 0) -> NDArray[np.uint64]:
    """What decides an order, the same for the same name: two random numbers for each round of
    ``shuffled``, and ``more`` of them behind, for whatever else the name is to decide."""
    data = hashlib.shake_256(name.encode()).digest(8 * (2 * ROUNDS + more))
    return np.frombuffer(data, "<u8")


def shuffled(x: NDArray[np.int64], n: int, key: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The place of each x, from 0 to n - 1, in a pseudo-random order of these numbers, in memory
    for x only. ``key``: of ``order_key``, without the numbers that ``more`` puts behind.

    Swap-or-not (Hoang, Morris & Rogaway 2012, "An Enciphering Scheme Based on a Card Shuffle",
    arXiv 1208.1176): a round pairs x with K - x modulo n, and swaps the two or not as a hash of the
    pair says. Each round is its own inverse, so all of them together are a bijection for any n.
    """
    size = np.uint64(n)
    x = x.astype(np.uint64)
    for pivot, salt in key.reshape(-1, 2):
        pivot = pivot % size
        other = np.where(x <= pivot, pivot - x, pivot + size - x)
        pair = np.maximum(x, other) ^ salt
        # The multipliers and shifts are those of SplitMix64 (Steele, Lea & Flood 2014).
        pair = (pair ^ (pair >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        pair = (pair ^ (pair >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = np.where(pair >> np.uint64(63), other, x)
    return x.astype(np.int64)
