"""A map of squares, whatever it is made of."""

from typing import Any

import pytest

from addnorm.pages.heat import heat_map, numbers
from tests.strict_html import Page


def square(n: int, **changes: Any) -> dict[str, Any]:
    names = [str(i) for i in range(n)]
    values = [[float(i == k) for i in range(n)] for k in range(n)]
    return {"rows": names, "columns": names, "values": values, **changes}


def test_every_row_is_said_in_words() -> None:
    content = square(3, rows=["first", "second", "a name that is much too long"])
    page = Page(heat_map(content, 1.0))
    assert page.all("svg")[0]["aria-label"].startswith("Most of each row: first: 0; second: 1;")
    assert "a name that is much too long" not in page.words
    assert len(page.all("rect")) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        *(None, {}, square(61), square(0), square(2, rows=["a"]), square(2, values=[[1, 2]])),
        *(square(2, values=[[1], [2]]), square(2, values=3), square(2, rows="ab")),
    ],
)
def test_what_does_not_fit_is_not_drawn(wrong: Any) -> None:
    assert heat_map(wrong, 1.0) == ""


def test_what_is_no_number_is_not_drawn() -> None:
    content = square(2, values=[["x", None], [True, 1e400]])
    assert all(v != v or v > 1e300 for row in numbers(content) for v in row)
    assert len(Page(heat_map(content, 1.0)).all("rect")) == 1
