"""What our pages share: numbers, scales, lines, and the look of the page.

A page is one HTML file: nothing is loaded from elsewhere, no script runs, plots are SVG. Lines are
labelled where they end and differ in strength, not in hue, so that a page can be read without
colours; every plot says in words what it shows.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

# --- numbers --------------------------------------------------------------------------------------

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


# --- text -----------------------------------------------------------------------------------------


def clean(value: object) -> str:
    """Any text as a page may hold it: escaped, and with signs for what no page may hold."""
    return escape("".join(map(_letter, str(value))))


def _letter(c: str) -> str:
    code = ord(c)
    if code < 32 and c not in "\n\t":
        return chr(0x2400 + code)  # the sign for this control character
    unfit = 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or code & 0xFFFE == 0xFFFE
    return "\ufffd" if unfit else c


# --- scales ---------------------------------------------------------------------------------------


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

    def holds(self, value: float) -> bool:
        """Whether a value has a place between the edges."""
        there = drawable(value) if self.measure is math.log10 else math.isfinite(value)
        return there and self.low <= self.measure(value) <= self.high

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
    """log10 of the edges that hold all values, at least a decade apart, at ``most`` so many."""
    logs = [math.log10(v) for v in values if drawable(v)] or [0.0]
    low, high = min(logs) - 0.1, max(logs) + 0.1
    if high - low < 1.0:
        middle = (low + high) / 2
        low, high = middle - 0.5, middle + 0.5
    return max(low, high - most), high


def even_extent(values: Iterable[float]) -> tuple[float, float]:
    """Edges of an even axis that hold all values, with some room; never the same."""
    known = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(known), max(known)
    room = 0.06 * (high - low)
    if room <= 1e-9 * max(abs(low), abs(high)):
        room = 0.1 * abs(high) or 0.5
    return low - room, high + room


def ticks(low: float, high: float) -> list[float]:
    """Powers of ten within the edges, also 2 and 5 times those where there would be few."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    step = max(1, math.ceil((high - low) / 5))
    told = [10.0**k for k in powers if k % step == 0 and low <= k <= high]
    if len(told) < 3 and step == 1:
        told = [m * 10.0**k for k in powers for m in (1, 2, 5)]
    return [t for t in told if low <= math.log10(t) <= high]


def even_ticks(low: float, high: float, most: int = 5) -> tuple[list[float], float]:
    """At ``most`` so many round numbers within the edges, and how far they are apart."""
    rough = (high - low) / most
    base = 10.0 ** math.floor(math.log10(rough))
    step = next(m * base for m in (1, 2, 5, 10) if m * base >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)], step


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels: as near as possible to where they are wanted, in order, ``gap`` apart."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    gap = min(gap, (high - low) / max(1, len(wanted) - 1))
    # Least squares under an order is the pooling of neighbours that violate it.
    pools: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        total, count = wanted[i] - rank * gap, 1
        while pools and pools[-1][0] / pools[-1][1] > total / count:
            before = pools.pop()
            total, count = total + before[0], count + before[1]
        pools.append((total, count))
    free = [total / count for total, count in pools for _ in range(count)]
    last = high - (len(wanted) - 1) * gap
    places = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        places[i] = min(max(free[rank], low), last) + rank * gap
    return places


# --- drawing --------------------------------------------------------------------------------------


def runs(frame: Frame, points: Iterable[tuple[float, float]]) -> list[list[str]]:
    """(share, value) as coordinates, cut where a value has no place."""
    found: list[list[str]] = [[]]
    for share, value in points:
        there = drawable(value) if frame.measure is math.log10 else math.isfinite(value)
        if there:
            found[-1].append(f"{frame.x(share):.1f} {frame.y(value):.1f}")
        elif found[-1]:
            found.append([])
    return [run for run in found if run]


def trace(frame: Frame, points: Iterable[tuple[float, float]]) -> str:
    """(share, value) as a path."""
    return "".join("M" + "L".join(run) for run in runs(frame, points))


def evenly(values: Sequence[float]) -> list[tuple[float, float]]:
    """(share, value) of values that stand equally far apart."""
    return [(i / max(1, len(values) - 1), v) for i, v in enumerate(values)]


def grid(
    frame: Frame, upwards: Iterable[tuple[float, str]], across: Iterable[tuple[float, str]]
) -> str:
    """The axes: (value, label) as lines, (share, label) under the floor."""
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


def figure(frame: Frame, body: str, words: str) -> str:
    """The plot, and what it shows in words."""
    return (
        f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" '
        f'aria-label="{clean(words)}">{body}</svg>'
    )


# --- curves over steps ----------------------------------------------------------------------------

SMOOTH = 0.04  # the share of a curve that one place of a smooth line is the middle of


class Place(NamedTuple):
    """What one pixel stands for: the finite values of its steps."""

    share: float  # of the width
    low: float
    high: float
    median: float


@dataclass(frozen=True)
class Curve:
    """(step, value), steps growing, seen from step 0 to ``last``."""

    points: Sequence[tuple[int, float]]
    last: int

    @property
    def known(self) -> list[tuple[int, float]]:
        """Those with a finite value."""
        return [(s, v) for s, v in self.points if math.isfinite(v)]

    @property
    def values(self) -> list[float]:
        """The finite values."""
        return [v for _, v in self.known]

    @property
    def broken(self) -> list[int]:
        """The steps whose value is not finite."""
        return [s for s, v in self.points if not math.isfinite(v)]

    def share(self, step: float) -> float:
        """Where a step is."""
        return min(1.0, step / max(1, self.last))

    def thinned(self, pixels: int) -> list[Place]:
        """One place per pixel that has steps, so that a single step that leapt is still seen; NaN
        where none of them has a number."""
        pixel: dict[int, list[tuple[int, float]]] = {}
        for point in self.points:
            pixel.setdefault(min(pixels - 1, int(self.share(point[0]) * pixels)), []).append(point)
        places = []
        for held in pixel.values():
            share = self.share(sum(step for step, _ in held) / len(held))
            known = [v for _, v in held if math.isfinite(v)] or [math.nan]
            places.append(Place(share, min(known), max(known), statistics.median(known)))
        return places


def smooth(places: Sequence[Place]) -> list[tuple[float, float]]:
    """(share, value): the mean of the middle half of the places around, as many on either side, so
    that no single step moves it and the ends of a falling curve are where they are. A gap stays."""
    half = round(SMOOTH / 2 * len(places))
    found = []
    for i, place in enumerate(places):
        near = min(half, i, len(places) - 1 - i)
        around = places[i - near : i + near + 1]
        known = sorted(p.median for p in around if math.isfinite(p.median))
        middle = known[len(known) // 4 : len(known) - len(known) // 4]
        value = math.nan if math.isnan(place.median) else statistics.fmean(middle)
        found.append((place.share, value))
    return found


def band(frame: Frame, places: Sequence[Place]) -> str:
    """From the lowest to the highest; a line where each pixel has one step."""
    least = 10.0**frame.low if frame.measure is math.log10 else -math.inf
    over = runs(frame, [(p.share, max(p.high, least)) for p in places])
    under = runs(frame, [(p.share, max(p.low, least)) for p in places])
    return "".join(
        "M" + "L".join(up + down[::-1]) + "Z" for up, down in zip(over, under, strict=True)
    )


def names(frame: Frame, ends: Sequence[tuple[float, str]]) -> str:
    """(value, label) beside the right edge, at or near the values."""
    places = spread([frame.y(v) for v, _ in ends], 14, frame.top, frame.floor)
    return "".join(
        f'<text class="name" x="{frame.x(1) + 9:.1f}" y="{place + 4:.1f}">{clean(label)}</text>'
        for place, (_, label) in zip(places, ends, strict=True)
    )


# --- the page -------------------------------------------------------------------------------------


def document(title: str, body: str, style: str) -> str:
    """The whole file; ``style`` comes after what all pages have."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{clean(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


STYLE = """
:root{--bg:#fbfaf7;--ink:#1c1e22;--muted:#5a5f69;--rule:#d8d4ca;--grid:#e9e6de;--line:#174a8c;
--others:#dedad0;--code:#f1eee6}
@media (prefers-color-scheme:dark){:root{--bg:#15171b;--ink:#e8e6e0;--muted:#a5a9b2;--rule:#3a3e47;
--grid:#262a31;--line:#8dbbff;--others:#30343d;--code:#1f2228}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,sans-serif;
-webkit-text-size-adjust:100%}
main{max-width:1160px;margin:0 auto;padding:40px 20px 64px}
h1{font-size:clamp(1.9rem,5vw,2.9rem);line-height:1.1;letter-spacing:-.02em;margin:.1em 0 .4em}
h2{margin:2.4em 0 .5em;padding-top:.7em;border-top:1px solid var(--rule);font-size:1.35rem}
h3{margin:0 0 .3em;font-size:1.1rem}
p{margin:.4em 0;max-width:74ch}
a{color:var(--line);text-underline-offset:2px}
a:focus-visible,pre:focus-visible,summary:focus-visible{outline:2px solid var(--line);
outline-offset:2px}
.kicker{color:var(--muted);font:600 .9rem ui-monospace,monospace}
.lead{font-size:1.15rem}
.small,small,caption,.muted{color:var(--muted)}
.small,caption{font-size:.875rem}
small{font-size:.8125rem;font-weight:400}
strong{font-weight:600;color:var(--ink)}
code{font-family:ui-monospace,monospace;font-size:.875rem}
pre{background:var(--code);padding:12px;border-radius:4px;white-space:pre-wrap;
overflow-wrap:anywhere}
figure{margin:0;min-width:0}
figcaption{font-weight:600;font-size:.9rem;margin-bottom:2px}
svg{display:block;max-width:100%;overflow:visible}
figure svg{width:100%;height:auto}
svg text{font:12px system-ui,sans-serif;fill:var(--muted)}
svg .name{fill:var(--ink)}
svg path{fill:none}
.grid{stroke:var(--grid)}
.axis{stroke:var(--rule)}
.line{stroke:var(--line);stroke-width:1.6;stroke-linejoin:round;stroke-linecap:round}
.band{fill:var(--line)!important;opacity:.16}
.dot{fill:var(--line)}
.pair{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:28px}
table{border-collapse:collapse;width:100%;margin-top:12px;font-size:.9375rem}
caption{text-align:left;padding-bottom:8px}
th,td{text-align:left;padding:5px 10px 5px 0;border-bottom:1px solid var(--grid);
vertical-align:middle;font-weight:400}
thead th{vertical-align:bottom;font-weight:600;border-bottom-color:var(--rule)}
.num{text-align:right;padding-right:18px;font-variant-numeric:tabular-nums}
@media (max-width:640px){
main{padding:24px 16px 48px}.pair{grid-template-columns:minmax(0,1fr)}
h2{margin-top:1.8em}}
"""
