"""Median and extremes of what was measured several times."""

import math

from addnorm.spread import Spread


def test_median_and_extremes() -> None:
    assert Spread.over([3.0, -1.0, 7.0, 4.0]) == Spread(3.5, -1.0, 7.0)
    assert Spread.over([2.0]) == Spread(2.0, 2.0, 2.0)


def test_one_that_is_no_number_leaves_none() -> None:
    spread = Spread.over([1.0, math.nan, 2.0])
    assert all(math.isnan(v) for v in (spread.median, spread.low, spread.high))
