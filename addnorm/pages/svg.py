"""Plots: scales, ticks, axes, lines."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import final

from addnorm.pages.numbers import plain, power

# --- scales ---------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Frame:
    """A plot's box: a share of the width from left to right, a value upwards."""

    width: int
    height: int
    left: int
    right: int
    low: float  # what ``measure`` makes of the values at the edges
    high: float
    top: int = 10
    bottom: int = 34
    measure: Callable[[float], float] = math.log10  # float: an even axis

    def x(self, share: float) -> float:
        """Where a share of the width is."""
        return self.left + share * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        """Where a value is; what lies beyond the edges is drawn on them."""
        share = (self.measure(value) - self.low) / (self.high - self.low)
        return self.floor - min(max(share, 0.0), 1.0) * self.rise

    @property
    def log(self) -> bool:
        """Whether the axis of values is logarithmic."""
        return self.measure is math.log10

    def has_place(self, value: float) -> bool:
        """Whether a value can be drawn, on an edge if it lies beyond."""
        return drawable(value) if self.log else math.isfinite(value)

    def holds(self, value: float) -> bool:
        """Whether a value has a place between the edges."""
        return self.has_place(value) and self.low <= self.measure(value) <= self.high

    @property
    def rise(self) -> int:
        """The height of the plot proper."""
        return self.height - self.top - self.bottom

    @property
    def floor(self) -> int:
        """Where the horizontal axis is."""
        return self.height - self.bottom


def drawable(value: float) -> bool:
    """Whether a value has a place on a logarithmic axis."""
    return 0.0 < value < math.inf


def extent(values: Iterable[float], most: float = 16.0) -> tuple[float, float]:
    """(low, high): log10 of the edges that hold all values above 0, at least one and at most
    ``most`` decades apart; then the smallest are below."""
    logs = [math.log10(v) for v in values if drawable(v)] or [0.0]
    low, high = min(logs) - 0.1, max(logs) + 0.1
    if high - low < 1.0:
        middle = (low + high) / 2
        low, high = middle - 0.5, middle + 0.5
    return max(low, high - most), high


def even_extent(values: Iterable[float]) -> tuple[float, float]:
    """(low, high): the edges of an even axis that hold all finite values, with some room; never the
    same, also where there is one value or none."""
    finite = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    room = 0.06 * (high - low)
    if room <= 1e-9 * max(abs(low), abs(high)):
        room = 0.1 * abs(high) or 0.5
    return low - room, high + room


def ticks(low: float, high: float) -> list[float]:
    """Powers of ten within the edges, also 2 and 5 times those where there would be few. The edges
    are given as log10, as ``extent`` has them; the values are not."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    step = max(1, math.ceil((high - low) / 5))
    values = [10.0**k for k in powers if k % step == 0 and low <= k <= high]
    if len(values) < 3 and step == 1:
        values = [m * 10.0**k for k in powers for m in (1, 2, 5)]
    return [t for t in values if low <= math.log10(t) <= high]


def even_ticks(low: float, high: float, most: int = 5) -> tuple[list[float], float]:
    """(about ``most`` round numbers within the edges, how far they are apart); ``low`` must be
    below ``high``."""
    rough = (high - low) / most
    base = 10.0 ** math.floor(math.log10(rough))
    step = next(m * base for m in (1, 2, 5, 10) if m * base >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)], step


def value_labels(frame: Frame) -> list[tuple[float, str]]:
    """(value, label) of the lines across a plot."""
    if frame.log:
        return [(t, power(t)) for t in ticks(frame.low, frame.high)]
    values, apart = even_ticks(frame.low, frame.high)
    return [(t, plain(t, apart)) for t in values]


def spread(ideal: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels between ``low`` and ``high``, one for each of ``ideal`` in its order: as
    near as possible to where they are wanted, ``gap`` apart, or less where they would not fit."""
    order = sorted(range(len(ideal)), key=ideal.__getitem__)
    gap = min(gap, (high - low) / max(1, len(ideal) - 1))
    # Least squares under an order is the pooling of neighbours that violate it.
    pools: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        total, count = ideal[i] - rank * gap, 1
        while pools and pools[-1][0] / pools[-1][1] > total / count:
            before = pools.pop()
            total, count = total + before[0], count + before[1]
        pools.append((total, count))
    free = [total / count for total, count in pools for _ in range(count)]
    last = high - (len(ideal) - 1) * gap
    places = [0.0] * len(ideal)
    for rank, i in enumerate(order):
        places[i] = min(max(free[rank], low), last) + rank * gap
    return places


# --- drawing --------------------------------------------------------------------------------------


def runs(frame: Frame, points: Iterable[tuple[float, float]]) -> list[list[str]]:
    """(share, value) as coordinates "x y", a list for each piece: cut where a value has no place,
    none of them empty."""
    pieces: list[list[str]] = [[]]
    for share, value in points:
        if frame.has_place(value):
            pieces[-1].append(f"{frame.x(share):.1f} {frame.y(value):.1f}")
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def trace(frame: Frame, points: Iterable[tuple[float, float]]) -> str:
    """(share, value) as a path."""
    return "".join("M" + "L".join(run) for run in runs(frame, points))


def evenly(values: Sequence[float]) -> list[tuple[float, float]]:
    """(share, value) of values that stand equally far apart."""
    return [(i / max(1, len(values) - 1), v) for i, v in enumerate(values)]


def grid(
    frame: Frame, upwards: Iterable[tuple[float, str]], across: Iterable[tuple[float, str]]
) -> str:
    """The axes: (value, label) as lines, (share, label) under the floor. Labels are SVG already:
    no text of a user's."""
    left, right = frame.x(0), frame.x(1)
    parts = []
    for value, label in upwards:
        y = frame.y(value)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for share, label in across:
        anchor = "start" if share <= 0 else "end" if share >= 1 else "middle"
        place = f'x="{frame.x(share):.1f}" y="{frame.floor + 17}"'
        parts.append(f'<text {place} text-anchor="{anchor}">{label}</text>')
    parts.append(f'<path class="axis" d="M{left} {frame.floor}H{right}"/>')
    return "".join(parts)
