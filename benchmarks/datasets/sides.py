"""On which side of a data set something is, from its name alone."""

import hashlib
from collections.abc import Mapping
from itertools import accumulate


def side_of(key: str, shares: Mapping[str, float]) -> str:
    """Where it stands; ``shares`` are those of the sides, together 1."""
    place = fraction(key)
    ends = zip(shares, accumulate(shares.values()), strict=True)
    return next((name for name, end in ends if place < end), [*shares][-1])


def fraction(text: str) -> float:
    """A number from 0 to 1 that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
