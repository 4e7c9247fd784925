"""A heat map: a square for each of some rows and columns, the darker the larger its value."""

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

from addnorm.pages.numbers import as_float
from addnorm.pages.plot import Plot
from addnorm.pages.svg import Frame

SQUARE = 22  # pixels
MOST = 60  # rows, and columns
LETTERS = 14  # of a name
NARROW, WIDE = 7.5, 13  # pixels of a letter, and of one of Chinese
SLANT = math.radians(55)  # of the names above the columns


def heat_map(content: Any, most: float) -> str:
    """``rows`` and ``columns``, names as any text, and ``values``, as they stand in a file: a chart
    as HTML, as wide as it has to be; "" where they do not fit together. A value of ``most`` is the
    darkest."""
    if not isinstance(content, dict):
        return ""
    rows, columns = ([*map(_name, _list(content.get(key)))] for key in ("rows", "columns"))
    values = numbers(content)
    fitting = len(values) == len(rows) and all(len(row) == len(columns) for row in values)
    sizes = len(rows), len(columns)
    if not fitting or not min(sizes) > 0 or max(sizes) > MOST:
        return ""
    left = 12 + max(map(_width, rows))
    top = 12 + max(map(_width, columns)) * math.sin(SLANT)
    right = 8 + _width(columns[-1]) * math.cos(SLANT)
    width = round(left + SQUARE * len(columns) + right)
    height = round(top + SQUARE * len(rows) + 4)
    frame = Frame(
        width,
        height,
        round(left),
        round(right),
        low=0,
        high=len(rows),
        top=round(top),
        bottom=4,
        measure=float,
    )
    plot = Plot(frame)
    plot.squares([[value / most for value in row] for row in values])
    plot.around(rows, columns, math.degrees(SLANT))
    words = "; ".join(
        f"{name}: {columns[max(range(len(row)), key=row.__getitem__)]}"
        for name, row in zip(rows, values, strict=True)
    )
    return f"<figure style='width:{width}px'>{plot.svg(f'Most of each row: {words}')}</figure>"


def numbers(content: Any) -> list[list[float]]:
    """The ``values`` of a map as numbers, NaN for what is none."""
    rows = _list(content.get("values")) if isinstance(content, dict) else []
    return [[as_float(value) for value in _list(row)] for row in rows]


def _name(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"


def _width(text: str) -> float:
    """Pixels of a name, about."""
    return sum(WIDE if unicodedata.east_asian_width(c) in "WF" else NARROW for c in text)


def _list(value: Any) -> Sequence[Any]:
    """Empty for what is none."""
    return value if isinstance(value, list) else []
