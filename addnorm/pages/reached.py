"""A chart of what is reached against what was asked: points with their spread, and a thin line on
which both are the same."""

import math
from collections.abc import Sequence
from typing import Any

from addnorm.pages.curves import Pixel
from addnorm.pages.numbers import as_float, number, plain
from addnorm.pages.plot import Plot
from addnorm.pages.svg import Frame, even_extent, even_ticks

SIZES = {"wide": (1120, 360), "narrow": (358, 260)}  # of a chart in pixels, by the window
PIECES = 200  # of the thin line, which is cut where it leaves the chart


def reached_chart(content: Any) -> str:
    """``asked``, ``reached`` and ``spread``, lists of numbers as they stand in a file, and
    ``levels``, [value, name] of lines across: a chart as HTML; "" where they do not fit
    together."""
    if not isinstance(content, dict):
        return ""
    lists = [_numbers(content.get(key)) for key in ("asked", "reached", "spread")]
    if not lists[0] or len({len(values) for values in lists}) != 1:
        return ""
    points = sorted(zip(*lists, strict=True))
    if not all(math.isfinite(value) for point in points for value in point):
        return ""
    levels = [
        (as_float(level[0]), str(level[1]))
        for level in _list(content.get("levels"))
        if len(_list(level)) == 2
    ]
    return "".join(
        f'<div class="{name}">{_draw(points, levels, size)}</div>' for name, size in SIZES.items()
    )


def _draw(
    points: Sequence[tuple[float, ...]], levels: Sequence[tuple[float, str]], size: tuple[int, int]
) -> str:
    """The chart at one size in pixels; ``points`` are (asked, reached, spread), ``levels`` (value,
    name)."""
    heights = [value for _, y, spread in points for value in (y - spread, y + spread)]
    heights += [value for value, _ in levels if math.isfinite(value)]
    low, high = even_extent([x for x, _, _ in points])
    frame = Frame(*size, 64, 130, *even_extent(heights), measure=float)

    def share(x: float) -> float:
        """Where a return that was asked for is."""
        return (x - low) / (high - low)

    plot = Plot(frame)
    values, apart = even_ticks(low, high, 8 if size[0] > 600 else 4)
    plot.axes([(share(x), plain(x, apart)) for x in values])
    plot.band([Pixel(share(x), y - spread, y + spread, y) for x, y, spread in points])
    same = [low + (high - low) * i / PIECES for i in range(PIECES + 1)]
    plot.line([(share(x), x if frame.holds(x) else math.nan) for x in same], "limit")
    plot.line([(share(x), y) for x, y, _ in points])
    titles = [
        (share(x), y, f"asked {number(x)}: reached {number(y)}, spread {number(spread)}")
        for x, y, spread in points
    ]
    plot.dots(titles, "dot", 3.5)
    for value, _ in levels:
        plot.line([(0.0, value), (1.0, value)], "limit")
    plot.names([*levels, (points[-1][1], "reached")])
    words = "; ".join(f"asked {number(x)}, reached {number(y)}" for x, y, _ in points)
    return plot.svg(words)


def _numbers(values: Any) -> list[float]:
    return [as_float(value) for value in _list(values)]


def _list(value: Any) -> Sequence[Any]:
    """Empty for what is none."""
    return value if isinstance(value, list) else []
