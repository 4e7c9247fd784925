"""Scales and axes of plots."""

import math

import pytest

from addnorm.pages.numbers import plain
from addnorm.pages.svg import even_extent, even_ticks


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
