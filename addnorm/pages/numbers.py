"""Numbers as pages and tables write them: with a minus sign on a page, with a hyphen, which every
font has, in a terminal."""

import math
from typing import Any

DASH = "\u2013"
HUGE = 1e200  # from where on sums could overflow: told as infinite
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def with_minus(text: str) -> str:
    """With minus signs for its hyphens."""
    return text.replace("-", "−")  # noqa: RUF001


def digits(value: float) -> str:
    """Three digits, in a terminal: 0.0434, 56, 5,738, 7.13e-05; a hyphen where there is none."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


def number(value: float) -> str:
    """Three digits, on a page; a dash where there is no number."""
    return with_minus(digits(value)) if math.isfinite(value) else DASH


def slope(value: float) -> str:
    """An exponent, in a terminal: +0.52; nothing is negative zero."""
    return f"{round(value, 2) + 0.0:+.2f}"


def power(value: float) -> str:
    """The label of a tick on a logarithmic axis: 0.01, 1, 50, 10⁻⁶."""
    k = round(math.log10(value))
    if -3 <= k <= 4 or not math.isclose(value, 10.0**k):
        return f"{value:g}"
    return "10" + str(k).translate(RAISED)


def plain(value: float, step: float) -> str:
    """The label of a tick on an even axis whose ticks are ``step`` apart: 2.45, 20,000, 5·10⁻⁵."""
    if value == 0:
        return "0"
    size, fine = math.floor(math.log10(abs(value))), math.floor(math.log10(step) + 1e-9)
    if fine >= -4 and size < 7:
        return with_minus(f"{value:,.{max(0, -fine)}f}")
    mantissa, _, exponent = f"{value:.{max(0, size - fine)}e}".partition("e")
    return with_minus(f"{mantissa}·10{str(int(exponent)).translate(RAISED)}")


def exact(value: float) -> str:
    """Four decimals, or four digits of what is small or large."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else with_minus("∞" if value > 0 else "-∞")
    short = f"{value:.4f}" if value == 0 or 1e-2 <= abs(value) < 1e4 else f"{value:.4g}"
    return with_minus(short)


def duration(seconds: float) -> str:
    """Seconds in words, of two units at most: 69 as 1 min 9 s; a dash for what is not finite."""
    if not math.isfinite(seconds):
        return DASH
    whole = round(seconds)
    for size, unit, part, of in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size:,} {unit}" + (f" {rest} {of}" if rest else "")
    return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"


def large(count: float) -> str:
    """A count that is not negative, in words where it is large: 7,223,115,776 as 7.223 billion."""
    for least, size, unit in (
        (1e12, 1e12, "trillion"),
        (1e9, 1e9, "billion"),
        (1e7, 1e6, "million"),
    ):
        if count >= least:
            return f"{count / size:.4g} {unit}"
    return f"{count:,.0f}"


def as_float(value: Any) -> float:
    """A number that was read from a file; NaN for what is none, infinite beyond ``HUGE``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    if abs(value) > HUGE:
        return math.copysign(math.inf, value)
    return float(value)
