"""Charts: what has no place in one is left out, and what is drawn can be read without seeing it."""

import math
import re

from addnorm.pages.curves import Pixel
from addnorm.pages.plot import Plot
from addnorm.pages.svg import Frame
from tests.strict_html import Page

LOG = Frame(100, 100, 10, 10, 0.0, 2.0, top=10, bottom=10)


def test_a_chart_has_words() -> None:
    (svg,) = Page(Plot(LOG).svg('a "b" & c')).all("svg")
    assert svg["role"] == "img"
    assert svg["aria-label"] == 'a "b" & c'
    assert svg["viewbox"] == "0 0 100 100"


def test_what_is_said_later_lies_above() -> None:
    plot = Plot(LOG)
    plot.axes([(0.0, "0")])
    plot.band([Pixel(0.0, 1.0, 10.0, 3.0), Pixel(1.0, 1.0, 10.0, 3.0)])
    plot.line([(0.0, 1.0), (1.0, 100.0)], strength=0.5)
    plot.line([(0.0, 1.0)], "held")
    kinds = re.findall(r'path class="(\w+)"', plot.svg(""))
    assert kinds[-3:] == ["band", "line", "held"]
    assert set(kinds[:-3]) == {"grid", "axis"}
    faint = Page(plot.svg("")).all("path")[-2]
    assert faint["style"] == "opacity:0.50;stroke-width:1.50"
    assert faint["d"] == "M10.0 90.0L90.0 10.0"


def test_what_has_no_place_is_left_out() -> None:
    plot = Plot(LOG)
    plot.dots([(0.5, v, f"{v}") for v in (0.0, 1000.0, math.nan, 10.0)], "dot", 3)
    plot.names([(None, "none"), (0.0, "zero"), (math.inf, "infinite"), (10.0, "ten")])
    plot.limit(0.0, "zero")
    plot.limit(1000.0, "beyond")
    plot.limit(math.nan, "nan")
    plot.crosses([])
    page = Page(plot.svg(""))
    assert page.words == "10.0" + "ten"
    assert [c["cx"] for c in page.all("circle")] == ["50.0"]
    assert not page.all("path")


def test_a_limit_is_named() -> None:
    plot = Plot(LOG)
    plot.limit(10.0, "clip <10>")
    page = Page(plot.svg(""))
    assert page.all("path") == [{"class": "limit", "d": "M10 50.0H90"}]
    assert page.words == "clip <10>"


def test_marks_are_one_for_each_pixel() -> None:
    plot = Plot(LOG)
    plot.crosses([0.5, 0.501, 1.0])
    plot.wedges([0.0])
    cross, wedge = Page(plot.svg("")).all("path")
    assert cross["d"] == "M46 -2l8 8m0-8l-8 8M86 -2l8 8m0-8l-8 8"
    assert wedge["d"] == "M6 -2h8l-4 8z"
