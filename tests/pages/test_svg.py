"""Scales and axes of plots."""

import math

import pytest

from addnorm.pages.numbers import plain, power
from addnorm.pages.svg import (
    Frame,
    even_extent,
    even_ticks,
    evenly,
    extent,
    spread,
    ticks,
    trace,
)


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.0, 200.0, ["0", "50", "100", "150", "200"]),
        (2.39, 4.22, ["2.5", "3.0", "3.5", "4.0"]),
        (0.0, 1.06e-3, ["0", "0.0005", "0.0010"]),
        (0.0, 6e-5, ["0", "2·10⁻⁵", "4·10⁻⁵", "6·10⁻⁵"]),
        (-1.0, 1.0, ["−1.0", "−0.5", "0", "0.5", "1.0"]),  # noqa: RUF001
        (0.0, 250_000.0, ["0", "50,000", "100,000", "150,000", "200,000", "250,000"]),
        (1e9, 3e9, ["1.0·10⁹", "1.5·10⁹", "2.0·10⁹", "2.5·10⁹", "3.0·10⁹"]),
        (2.4431, 2.4439, ["2.4432", "2.4434", "2.4436", "2.4438"]),
    ],
)
def test_even_ticks_are_round_and_told_apart(low: float, high: float, told: list[str]) -> None:
    found, apart = even_ticks(low, high)
    assert [plain(t, apart) for t in found] == told


@pytest.mark.parametrize(
    "values", [[], [2.0], [0.0], [1.0, 1.0 + 1e-12], [-3e199, 1e199], [1e-320]]
)
def test_even_extents_hold_their_values_and_are_never_empty(values: list[float]) -> None:
    low, high = even_extent(values)
    assert all(low < v < high for v in values)
    assert math.isfinite(high - low)
    assert even_ticks(low, high)[0]


def test_lines_are_where_the_values_are() -> None:
    """Frame 100 x 100 with 10 at every side: share 0.5 is at 50, value 10 of 1..100 as well."""
    frame = Frame(100, 100, 10, 10, 0.0, 2.0, top=10, bottom=10)
    assert trace(frame, evenly([1.0, 10.0, 100.0])) == "M10.0 90.0L50.0 50.0L90.0 10.0"
    assert trace(frame, evenly([1.0, math.nan, 1e9])) == "M10.0 90.0M90.0 10.0"


@pytest.mark.parametrize(("low", "high"), [(-5.2, 1.3), (-0.5, 0.5), (0.1, 1.1), (-300.0, -290.0)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    told = ticks(low, high)
    assert 2 <= len(told) <= 8
    assert all(low <= math.log10(t) <= high for t in told)
    assert len({power(t) for t in told}) == len(told)


def test_extent_holds_all_values_and_at_most_16_decades() -> None:
    low, high = extent([1e-3, 5.0, 0.0, math.inf])
    assert low < -3
    assert high > math.log10(5)
    low, high = extent([2.0, 2.0])
    assert high - low == pytest.approx(1.0)
    low, high = extent([1e-40, 1.0])
    assert high - low == pytest.approx(16.0)
    assert extent([]) == (-0.5, 0.5)


def test_labels_keep_their_order_and_distance() -> None:
    assert spread([5.0, 50.0], 10, 0, 100) == [5.0, 50.0]  # nothing to do
    assert spread([50.0, 50.0, 50.0], 10, 0, 100) == [40.0, 50.0, 60.0]  # around their place
    places = spread([98.0, 1.0, 99.0, 97.0], 10, 0, 100)
    assert places == [90.0, 1.0, 100.0, 80.0]  # pushed back inside, in order
    crowded = sorted(spread([7.0] * 30, 10, 0, 100))
    assert crowded[0] >= 0
    assert crowded[-1] <= 100.0 + 1e-9
