"""What is reached against what was asked: the points where they belong, and nothing of nonsense."""

import re
from typing import Any

import pytest

from addnorm.pages.reached import reached_chart
from addnorm.pages.run_pictures import pictures

CONTENT: dict[str, Any] = {
    "kind": "reached",
    "title": "Reached & asked",
    "caption": "a < b",
    "asked": [0, 10],
    "reached": [1.0, 8.0],
    "spread": [0.5, 2.0],
    "levels": [[3.0, "mean <of> it"]],
}


def test_the_points_stand_where_they_belong() -> None:
    chart = reached_chart(CONTENT)
    assert chart.count("<svg") == 2  # for wide windows and for narrow ones
    assert "asked 10: reached 8, spread 2" in chart
    assert "mean &lt;of&gt; it" in chart
    wide = chart.partition("<svg")[2].partition("</svg>")[0]
    places = re.findall(r'<circle class="dot" cx="([\d.]+)" cy="([\d.]+)"', wide)
    (x0, y0), (x1, y1) = [(float(x), float(y)) for x, y in places]
    assert x0 < x1
    assert y0 > y1  # more is higher
    other = reached_chart({**CONTENT, "asked": [10, 0], "reached": [8.0, 1.0], "spread": [2, 0.5]})
    assert other == chart  # in whatever order
    page = pictures([CONTENT])
    assert "Reached &amp; asked" in page
    assert "a &lt; b" in page


@pytest.mark.parametrize(
    "changes",
    [
        {"asked": []},
        {"asked": [1]},
        {"reached": "x"},
        {"reached": [1.0, "x"]},
        {"spread": [1.0, float("nan")]},
        {"asked": [None, 1]},
    ],
)
def test_nonsense_is_left_out(changes: dict[str, Any]) -> None:
    assert reached_chart({**CONTENT, **changes}) == ""
    assert pictures([{**CONTENT, **changes}]) == ""


def test_one_point_and_odd_levels() -> None:
    one = {**CONTENT, "asked": [5], "reached": [5], "spread": [0], "levels": [[1], "x", ["a", "b"]]}
    assert "asked 5: reached 5" in reached_chart(one)
    assert reached_chart([]) == ""
