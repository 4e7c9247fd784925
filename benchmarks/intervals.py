"""Intervals of 95 %: by a t distribution over seeds, and by the bootstrap over seeds and parts."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t, of 1 to 9 degrees of freedom."""


class Interval(NamedTuple):
    """A figure, and the ends of its interval."""

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> str:
        """What may be said of a difference."""
        return ">" if self.low > 0 else "<" if self.high < 0 else "equal"


def t_half(values: Sequence[float]) -> float | None:
    """Half of the interval of a mean; None of one value, or of more than ten."""
    if not 2 <= len(values) <= len(T_975) + 1:
        return None
    return T_975[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))


def ratio(values: NDArray[np.float64], weights: NDArray[np.float64]) -> Interval:
    """Of (seeds, parts) and of (parts,): the sum of values over that of weights, in the mean of the
    seeds, with its interval by draws of as many parts and of as many seeds."""
    rng = np.random.default_rng(0)
    draws = np.empty(DRAWS)
    for i in range(DRAWS):
        seeds = rng.integers(len(values), size=len(values))
        parts = rng.integers(len(weights), size=len(weights))
        draws[i] = values[seeds][:, parts].sum() / (len(values) * weights[parts].sum())
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(values.sum() / (len(values) * weights.sum()), float(low), float(high))
