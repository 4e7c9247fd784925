"""Numbers as pages write them."""

import math

import pytest

from addnorm.pages.numbers import digits, duration, exact, number, power, slope, with_minus


def test_durations_and_values() -> None:
    told = [duration(s) for s in (0.25, 59.6, 69.2, 3600, 11520, 90000, math.nan)]
    assert told == ["0.2 s", "1 min", "1 min 9 s", "1 h", "3 h 12 min", "1 d 1 h", "\u2013"]
    told = [exact(v) for v in (2.43704, 0.0, 0.001234, 12345.6, -0.5, math.nan)]
    assert told == ["2.4370", "0.0000", "0.001234", "1.235e+04", "\u22120.5000", "NaN"]


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.04336, "0.0434"), (56.04, "56"), (5738.2, "5,738"), (7.131e-5, "7.13e-05"), (0.0, "0")],
)
def test_digits(value: float, told: str) -> None:
    assert digits(value) == told
    assert number(value) == with_minus(told)
    assert number(-1.0) == "\u22121"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_digits_where_there_is_no_number(value: float) -> None:
    assert digits(value) == "-"
    assert number(value) == "\u2013"


def test_slopes_are_never_minus_zero() -> None:
    assert slope(-0.0001) == "+0.00"
    assert slope(-0.516) == "-0.52"


def test_powers_of_ten() -> None:
    told = [power(v) for v in (0.001, 1.0, 50.0, 1e4, 1e-6, 1e12)]
    assert told == ["0.001", "1", "50", "10000", "10⁻⁶", "10¹²"]
