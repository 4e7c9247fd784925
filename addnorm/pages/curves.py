"""Curves over steps: thinned to one place per pixel, smoothed, drawn as a band."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from addnorm.pages.svg import Frame, even_ticks, runs

SMOOTH = 0.04  # the share of a curve that one place of a smooth line is the middle of


class Pixel(NamedTuple):
    """What one pixel stands for: the finite values of its steps."""

    share: float  # of the width
    low: float
    high: float
    median: float


@final
@dataclass(frozen=True)
class Curve:
    """(step, value), steps growing, seen from step 0 to ``last``."""

    points: Sequence[tuple[int, float]]
    last: int

    @property
    def finite_points(self) -> list[tuple[int, float]]:
        """Those with a finite value."""
        return [(s, v) for s, v in self.points if math.isfinite(v)]

    @property
    def values(self) -> list[float]:
        """The finite values."""
        return [v for _, v in self.finite_points]

    @property
    def broken(self) -> list[int]:
        """The steps whose value is not finite."""
        return [s for s, v in self.points if not math.isfinite(v)]

    def share(self, step: float) -> float:
        """Where a step is."""
        return min(1.0, step / max(1, self.last))

    def thinned(self, pixels: int) -> list[Pixel]:
        """One place per pixel that has steps, so that a single step that leapt is still seen; NaN
        where none of them has a number."""
        pixel: dict[int, list[tuple[int, float]]] = {}
        for point in self.points:
            pixel.setdefault(min(pixels - 1, int(self.share(point[0]) * pixels)), []).append(point)
        places = []
        for points in pixel.values():
            share = self.share(sum(step for step, _ in points) / len(points))
            finite = [v for _, v in points if math.isfinite(v)] or [math.nan]
            places.append(Pixel(share, min(finite), max(finite), statistics.median(finite)))
        return places


def smooth(places: Sequence[Pixel]) -> list[tuple[float, float]]:
    """(share, value): the mean of the middle half of the places around, as many on either side, so
    that no single step moves it and the ends of a falling curve are where they are. A gap stays."""
    half = round(SMOOTH / 2 * len(places))
    line = []
    for i, place in enumerate(places):
        near = min(half, i, len(places) - 1 - i)
        around = places[i - near : i + near + 1]
        finite = sorted(p.median for p in around if math.isfinite(p.median))
        middle = finite[len(finite) // 4 : len(finite) - len(finite) // 4]
        value = math.nan if math.isnan(place.median) else statistics.fmean(middle)
        line.append((place.share, value))
    return line


def band(frame: Frame, places: Sequence[Pixel]) -> str:
    """The path of an area from the lowest to the highest of each place, a line where each has one
    step; cut where a value has no place in the frame."""
    least = 10.0**frame.low if frame.log else -math.inf
    over = runs(frame, [(p.share, max(p.high, least)) for p in places])
    under = runs(frame, [(p.share, max(p.low, least)) for p in places])
    return "".join(
        "M" + "L".join(up + down[::-1]) + "Z" for up, down in zip(over, under, strict=True)
    )


def last_value(line: Sequence[tuple[float, float]]) -> float | None:
    """The last finite value."""
    return next((value for _, value in reversed(line) if math.isfinite(value)), None)


def step_labels(frame: Frame, last: int) -> list[tuple[float, str]]:
    """(share, label) of some steps from 0 to ``last``."""
    # Seven pixels for a digit, and as much again between two numbers.
    fit = (frame.width - frame.left - frame.right) // (14 * len(f"{last:,}") + 20)
    steps, _ = even_ticks(0, max(1, last), max(2, min(8, fit)))
    labels = [(t / max(1, last), f"{t:,.0f}") for t in steps if t and t == int(t)]
    room = frame.width - frame.left - frame.right
    behind = [(share, label) for share, label in labels if share * room > 46 + 4 * len(label)]
    return [(0.0, "step 0"), *behind]


def evenly_chosen(points: Sequence[Any], most: int) -> Sequence[Any]:
    """At most ``most`` of them, which is at least 2, evenly chosen, first and last among them."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]
