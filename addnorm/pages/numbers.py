"""Numbers as a page writes them."""

import math

RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def digits(value: float) -> str:
    """Three digits: 0.0434, 56, 5,738, 7.13e-05."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


def number(value: float) -> str:
    """Three digits, or a dash where there is no number."""
    return digits(value).replace("-", "−") if math.isfinite(value) else "–"  # noqa: RUF001


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
        return f"{value:,.{max(0, -fine)}f}".replace("-", "−")  # noqa: RUF001
    mantissa, _, exponent = f"{value:.{max(0, size - fine)}e}".partition("e")
    return f"{mantissa}·10{str(int(exponent)).translate(RAISED)}".replace("-", "−")  # noqa: RUF001
