"""Numbers as pages write them."""

import math

from addnorm.pages.numbers import duration, exact


def test_durations_and_values() -> None:
    told = [duration(s) for s in (0.25, 59.6, 69.2, 3600, 11520, 90000, math.nan)]
    assert told == ["0.2 s", "1 min", "1 min 9 s", "1 h", "3 h 12 min", "1 d 1 h", "\u2013"]
    told = [exact(v) for v in (2.43704, 0.0, 0.001234, 12345.6, -0.5, math.nan)]
    assert told == ["2.4370", "0.0000", "0.001234", "1.235e+04", "\u22120.5000", "NaN"]
