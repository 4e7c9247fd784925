"""Curves over steps: what of a value stays when many steps share a pixel."""

import math

import pytest

from addnorm.pages.curves import Curve, Pixel, band, smooth
from addnorm.pages.svg import Frame


def test_places_are_lowest_highest_and_median() -> None:
    curve = Curve([(1, 5.0), (2, 1.0), (3, 3.0), (6, math.nan), (8, 7.0), (9, math.nan)], 10)
    places = curve.thinned(5)  # steps 0-1, 2-3, 4-5, 6-7, 8-10
    assert places[0] == Pixel(0.1, 5.0, 5.0, 5.0)
    assert places[1] == Pixel(0.25, 1.0, 3.0, 2.0)
    assert math.isnan(places[2].median)
    assert places[3] == Pixel(pytest.approx(0.85), 7.0, 7.0, 7.0)
    assert len(places) == 4
    assert curve.broken == [6, 9]


def test_a_smooth_line_keeps_its_ends_and_passes_spikes_over() -> None:
    falling = [Pixel(i / 100, v, v, v) for i, v in enumerate(float(100 - i) for i in range(100))]
    line = smooth(falling)
    # A straight line is what it was: the mean of places on either side; sums of a few numbers < 101
    # are exact.
    assert [v for _, v in line] == [p.median for p in falling]
    falling[50] = Pixel(0.5, 1e9, 1e9, 1e9)
    for (_, v), p in zip(smooth(falling), line, strict=True):
        assert abs(v - p[1]) <= 1.0
    falling[50] = Pixel(0.5, math.nan, math.nan, math.nan)
    assert math.isnan(smooth(falling)[50][1])
    assert all(math.isfinite(v) for i, (_, v) in enumerate(smooth(falling)) if i != 50)


def test_bands_go_there_and_back_and_have_gaps() -> None:
    frame = Frame(100, 100, 0, 0, 0.0, 10.0, top=0, bottom=0, measure=float)
    places = [Pixel(0.0, 1.0, 2.0, 1.5), Pixel(0.5, 3.0, 4.0, 3.5)]
    assert band(frame, places) == "M0.0 80.0L50.0 60.0L50.0 70.0L0.0 90.0Z"
    gap = Pixel(0.7, math.nan, math.nan, math.nan)
    assert band(frame, [*places, gap, Pixel(1.0, 5.0, 5.0, 5.0)]).count("M") == 2
    log = Frame(100, 100, 0, 0, 0.0, 2.0, top=0, bottom=0)
    assert band(log, [Pixel(0.0, 0.0, 10.0, 5.0)]) == "M0.0 50.0L0.0 100.0Z"  # 0: on the floor
