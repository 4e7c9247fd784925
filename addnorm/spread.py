"""A number that was measured several times: its median and its extremes."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Spread:
    """Median and extremes over several seeds or repetitions; NaN where there is no number."""

    median: float
    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> "Spread":
        """The spread of one value or more; NaN if one of them is."""
        if any(math.isnan(v) for v in values):
            return cls(math.nan, math.nan, math.nan)
        return cls(statistics.median(values), min(values), max(values))
