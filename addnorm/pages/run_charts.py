"""The plots of a run's page: metrics, learning rate, gradient, stream, throughput.

Curves are thinned to one place per pixel, at which the lowest and the highest value stay, so that a
single step that leapt is seen among a hundred thousand.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from addnorm.pages.curves import Curve, Place, band, evenly_chosen, smooth
from addnorm.pages.look import clean
from addnorm.pages.numbers import exact, number, plain, power
from addnorm.pages.run_story import Story, as_float
from addnorm.pages.svg import (
    Frame,
    even_extent,
    even_ticks,
    extent,
    figure,
    grid,
    names,
    ticks,
    trace,
)
from addnorm.words import a_few, plural

MOMENTS = (0.0, 0.05, 0.2, 0.5, 1.0)  # shares of a run at which the stream is drawn by layer
EARLY, LONG = 0.05, 1000  # the share of a run of so many steps whose loss may be beyond the plot
CROSS, WEDGE = "\u00d7", "▽"  # how marks in plots are told
WIDE, NARROW, HALF = (1120, 360), (358, 250), (480, 260)
Line = Sequence[tuple[float, float]]  # share, value


def _frame(size: tuple[int, int], edges: tuple[float, float], log: bool, right: int = 12) -> Frame:
    measure: Callable[[float], float] = math.log10 if log else float
    return Frame(*size, 56, right, *edges, top=16, measure=measure)


def _axes(frame: Frame, last: int) -> str:
    """Values upwards, steps from left to right."""
    if frame.measure is math.log10:
        upwards = [(t, power(t)) for t in ticks(frame.low, frame.high)]
    else:
        told, apart = even_ticks(frame.low, frame.high)
        upwards = [(t, plain(t, apart)) for t in told]
    # Seven pixels for a digit, and as much again between two numbers.
    fit = (frame.width - frame.left - frame.right) // (14 * len(f"{last:,}") + 20)
    steps, _ = even_ticks(0, max(1, last), max(2, min(8, fit)))
    across = [(t / max(1, last), f"{t:,.0f}" if t else "step 0") for t in steps if t == int(t)]
    return grid(frame, upwards, across)


def _raw(frame: Frame, places: Sequence[Place]) -> str:
    return f'<path class="raw" d="{band(frame, places)}"/>'


def _line(frame: Frame, line: Line) -> str:
    return f'<path class="line" d="{trace(frame, line)}"/>'


def _crosses(frame: Frame, shares: Iterable[float]) -> str:
    """Where a number is not finite."""
    d = "".join(f"M{x} {frame.top - 12}l8 8m0-8l-8 8" for x in _apart(frame, shares))
    return f'<path class="cross" d="{d}"/>' if d else ""


def _wedges(frame: Frame, shares: Iterable[float]) -> str:
    """Where a step was left out."""
    d = "".join(f"M{x} {frame.top - 12}h8l-4 8z" for x in _apart(frame, shares))
    return f'<path class="wedge" d="{d}"/>' if d else ""


def _apart(frame: Frame, shares: Iterable[float]) -> list[str]:
    """Left edges of marks 8 wide, one for each pixel."""
    return list(dict.fromkeys(f"{frame.x(share) - 4:.0f}" for share in shares))


def _end(line: Line) -> float | None:
    """Its last value that can be drawn."""
    return next((v for _, v in reversed(line) if math.isfinite(v)), None)


class HeldOut:
    """An evaluation's metric over the steps, before the training's own, if that has the same."""

    def __init__(self, story: Story, metric: str, column: str) -> None:
        self.last = story.step
        # At first the loss falls so far that on one axis with that nothing else could be seen.
        self.early = EARLY if self.last >= LONG else 0.0
        self.train = Curve(story.train.points(column), self.last)
        records = story.evaluations.records
        found = [(r["step"], as_float(r[metric]), r.get("whole")) for r in records if metric in r]
        self.glances = Curve([(s, v) for s, v, whole in found if whole is not True], self.last)
        self.whole = Curve([(s, v) for s, v, whole in found if whole is True], self.last)

    def draw(self, size: tuple[int, int], words: str) -> str:
        """The plot at one size."""
        places = self.train.thinned(size[0] - 126)
        line: Line = smooth(places)
        held: Line = [(self.glances.share(s), v) for s, v in self.glances.points]
        inside = [v for share, v in [*line, *held] if share >= self.early and math.isfinite(v)]
        inside += self.whole.values
        log = bool(inside) and min(inside) > 0 and max(inside) > 30 * min(inside)
        frame = _frame(size, self._edges(inside, places, log), log, right=70)
        places = [p for p in places if p.share >= self.early or frame.holds(p.low)]
        line, held = _inside(frame, line), _inside(frame, held)
        parts = [_axes(frame, self.last), _raw(frame, places), _line(frame, line)]
        parts.append(f'<path class="held" d="{trace(frame, evenly_chosen(held, 400))}"/>')
        for points, kind, radius in ((self.glances, "dot", 3.5), (self.whole, "ring", 5)):
            for step, value in evenly_chosen(points.points, size[0] // 12):
                if frame.holds(value):
                    place = f'cx="{frame.x(points.share(step)):.1f}" cy="{frame.y(value):.1f}"'
                    parts.append(
                        f'<circle class="{kind}" {place} r="{radius}">'
                        f"<title>step {step:,}: {exact(value)}</title></circle>"
                    )
        parts.append(_crosses(frame, map(self.train.share, self.train.broken)))
        ends = [(_end(line), "training"), (_end(held), "held out")]
        parts.append(names(frame, [(v, name) for v, name in ends if v is not None]))
        return figure(frame, "".join(parts), words)

    def _edges(
        self, inside: Sequence[float], places: Sequence[Place], log: bool
    ) -> tuple[float, float]:
        """All that is smooth, and of the single steps what is not too far from it."""
        if log:
            return extent(inside, most=math.inf)
        low, high = min(inside, default=0.0), max(inside, default=1.0)
        room = 0.35 * (high - low) or 0.1 * abs(high)
        least = min((p.low for p in places if math.isfinite(p.low)), default=low)
        most = max((p.high for p in places if math.isfinite(p.high)), default=high)
        return even_extent([max(min(least, low), low - room), min(max(most, high), high + room)])


def _inside(frame: Frame, line: Line) -> Line:
    """With gaps where it is beyond the edges."""
    return [(share, v if frame.holds(v) else math.nan) for share, v in line]


def held_out(story: Story, metric: str, column: str, title: str) -> str:
    """A metric of the evaluations and the training's own ``column``."""
    plot = HeldOut(story, metric, column)
    words = _told(plot)
    drawn = "".join(
        f'<div class="{name}">{plot.draw(size, f"{title} over the steps. {words}")}</div>'
        for name, size in (("wide", WIDE), ("narrow", NARROW))
    )
    return (
        f"<figure><figcaption>{clean(title)}</figcaption>{drawn}"
        f'<p class="small">{words}</p></figure>'
    )


def _told(plot: HeldOut) -> str:
    """A curve in words."""
    words = []
    line = smooth(plot.train.thinned(1000))
    known = plot.train.known
    if known:
        first, last = next(v for _, v in line if math.isfinite(v)), _end(line)
        low, high = min(known, key=_second), max(known, key=_second)
        assert last is not None
        words.append(
            f"Training, smoothed: {exact(first)} at first, {exact(last)} at the end; the lowest "
            f"single step {exact(low[1])} (step {low[0]:,}), the highest {exact(high[1])} (step "
            f"{high[0]:,})."
        )
        if plot.early:
            words.append(
                f"Values above the plot in the first {plot.early:.0%} of the steps are cut off."
            )
    if broken := plot.train.broken:
        words.append(f"{CROSS} not finite at {plural(len(broken), 'step')}: {_steps(broken)}.")
    if points := plot.glances.points:
        (s0, v0), (s1, v1) = points[0], points[-1]
        words.append(f"Held out, dots: {exact(v0)} at step {s0:,}")
        words[-1] += f" to {exact(v1)} at step {s1:,}." if s1 > s0 else "."
    if plot.whole.points:
        step, value = plot.whole.points[-1]
        words.append(f"Ring, on all that is held out: {exact(value)} at step {step:,}.")
    if not plot.glances.points and not plot.whole.points:
        words.append("There is no evaluation yet.")
    return " ".join(words)


def _second(pair: tuple[int, float]) -> float:
    return pair[1]


def _steps(steps: Sequence[int]) -> str:
    return a_few([f"{step:,}" for step in steps], 10)


def steering(story: Story) -> str:
    """Learning rate and gradient norm."""
    train, last = story.train, story.step
    if not train.steps:
        return "<p>There are no steps yet.</p>"
    rate = Curve(train.points("lr"), last)
    frame = _frame(HALF, even_extent([0.0, *rate.values]), log=False)
    frame = replace(frame, low=0.0)
    line = [(p.share, p.median) for p in rate.thinned(HALF[0] - 68)]
    known = rate.known
    words = "There are no numbers."
    if known:
        top = max(known, key=_second)
        words = (
            f"From {number(known[0][1])} to {number(top[1])} at step {top[0]:,}, "
            f"{number(known[-1][1])} at the end."
        )
    drawn = figure(frame, _axes(frame, last) + _line(frame, line), f"Learning rate. {words}")
    return (
        f'<div class="pair"><figure><figcaption>Learning rate</figcaption>{drawn}'
        f'<p class="small">{words}</p></figure>{_gradient(story)}</div>'
    )


def _gradient(story: Story) -> str:
    train, last = story.train, story.step
    curve = Curve(train.points("grad_norm"), last)
    places = curve.thinned(HALF[0] - 112)
    clip = as_float(story.config.get("clip"))
    frame = _frame(HALF, extent(curve.values, most=math.inf), log=True, right=56)
    parts = [_axes(frame, last)]
    if clip > 0 and frame.low < math.log10(clip) < frame.high:
        y = frame.y(clip)
        parts.append(f'<path class="limit" d="M{frame.x(0)} {y:.1f}H{frame.x(1)}"/>')
        parts.append(names(frame, [(clip, f"clip {clip:g}")]))
    parts += [_raw(frame, places), _line(frame, smooth(places))]
    broken = curve.broken
    left = [r["step"] for r in train.records if r.get("skipped") is True]
    wedged = sorted(set(left) - set(broken))
    parts.append(_crosses(frame, map(curve.share, broken)))
    parts.append(_wedges(frame, map(curve.share, wedged)))
    words = []
    if known := curve.known:
        top = max(known, key=_second)
        words.append(
            f"Median {number(statistics.median(curve.values))}, largest {number(top[1])} at step "
            f"{top[0]:,}."
        )
    if clip > 0:
        over = sum(v > clip for v in curve.values)
        words.append(f"Clipped to {clip:g} at {plural(over, 'step')}.")
    if broken:
        words.append(f"{CROSS} not finite at {plural(len(broken), 'step')}: {_steps(broken)}.")
    if wedged:
        words.append(f"{WEDGE} left out {plural(len(wedged), 'step')}: {_steps(wedged)}.")
    if not broken and not left:
        words.append("No step was left out.")
    text = " ".join(words)
    drawn = figure(frame, "".join(parts), f"Norm of the gradient. {text}")
    return (
        f'<figure><figcaption>Gradient norm</figcaption>{drawn}<p class="small">{text}</p></figure>'
    )


def stream(story: Story) -> str:
    """The residual stream by layer at several moments, and of three layers over the steps."""
    told = [(r["step"], r["stream_rms"]) for r in story.train.records if "stream_rms" in r]
    found = [(s, [as_float(v) for v in values]) for s, values in told if isinstance(values, list)]
    size = len(found[-1][1]) if found else 0
    found = [(s, values) for s, values in found if len(values) == size]
    if not size:
        why = " (watch_every is 0)" if story.config.get("watch_every") == 0 else ""
        return f"<p>There are no measurements of the stream yet{why}.</p>"
    return (
        "<p>The root mean square of the residual stream after each sublayer, on one row of the "
        "step's data. With pre-norm it is usual that it grows with depth, because every branch "
        "adds to it, and that it grows in training; with post-norm every layer ends in a norm, and "
        "it stays flat. A layer that leaps away from its neighbours, or a growth that does not "
        "slow down, can come before a divergence."
        f'</p><div class="pair">{_by_layer(found)}{_over_steps(found, story.step)}</div>'
    )


def _by_layer(found: Sequence[tuple[int, list[float]]]) -> str:
    last = found[-1][0]
    nearest = [
        min((abs(step - m * last), step, values) for step, values in found)[1:] for m in MOMENTS
    ]
    moments = sorted(dict(nearest).items())
    size = len(moments[0][1])
    frame = _frame(HALF, extent(v for _, values in moments for v in values), log=True, right=92)
    upwards = [(t, power(t)) for t in ticks(frame.low, frame.high)]
    marks = sorted({1, (size + 1) // 2, size})
    across = [((i - 1) / max(1, size - 1), f"{i}" if i > 1 else "sublayer 1") for i in marks]
    parts = [grid(frame, upwards, across)]
    ends = []
    for i, (step, values) in enumerate(moments):
        line = [(k / max(1, size - 1), v) for k, v in enumerate(values)]
        strength = 0.25 + 0.75 * (i + 1) / len(moments)
        style = f"opacity:{strength:.2f};stroke-width:{0.8 + 1.4 * strength:.2f}"
        parts.append(f'<path class="line" style="{style}" d="{trace(frame, line)}"/>')
        if values[-1] > 0 and math.isfinite(values[-1]):
            ends.append((values[-1], f"step {step:,}"))
    parts.append(names(frame, ends))
    told = "; ".join(
        f"step {step:,}: {exact(values[0])} after sublayer 1, {exact(values[-1])} after sublayer "
        f"{size}"
        for step, values in (moments[0], moments[-1])[: len(moments)]
    )
    drawn = figure(frame, "".join(parts), f"RMS of the stream after each sublayer. {told}.")
    return (
        f"<figure><figcaption>By layer, sublayers 1 to {size}, faint to dark in time</figcaption>"
        f'{drawn}<p class="small">{told[:1].upper() + told[1:]}.</p></figure>'
    )


def _over_steps(found: Sequence[tuple[int, list[float]]], last: int) -> str:
    size = len(found[0][1])
    layers = sorted({0, (size - 1) // 2, size - 1})
    curves = [Curve([(step, values[i]) for step, values in found], last) for i in layers]
    lines = [[(p.share, p.median) for p in curve.thinned(HALF[0] - 148)] for curve in curves]
    frame = _frame(HALF, extent(v for c in curves for v in c.values), log=True, right=92)
    parts = [_axes(frame, last)]
    ends, told = [], []
    for i, curve, line in zip(layers, curves, lines, strict=True):
        parts.append(_line(frame, line))
        end = _end(line)
        if end is not None and end > 0:
            ends.append((end, f"sublayer {i + 1}"))
        told.append(
            f"sublayer {i + 1}: {exact(curve.points[0][1])} to {exact(curve.points[-1][1])}"
        )
    parts.append(names(frame, ends))
    words = "; ".join(told)
    drawn = figure(frame, "".join(parts), f"RMS of the stream over the steps. {words}.")
    return (
        f"<figure><figcaption>Over the steps: first, middle, last sublayer</figcaption>{drawn}"
        f'<p class="small">{words[:1].upper() + words[1:]}.</p></figure>'
    )


def throughput(story: Story) -> str:
    """How much each step got done in a second."""
    curve = Curve(story.train.points("tokens_per_s"), story.step)
    if not curve.values:
        return "<p>There are no steps yet.</p>"
    # The axis holds what is usual: one step that took no time at all would flatten the rest.
    usual = sorted(p.median for p in curve.thinned(200) if math.isfinite(p.median))
    edges = 0.0, 1.25 * max(usual[int(0.98 * (len(usual) - 1))], 1e-9)
    words = (
        f"{story.unit.capitalize()} per second: median {number(statistics.median(curve.values))}, "
        f"slowest step {number(min(curve.values))}, fastest {number(max(curve.values))}. "
        "Evaluations and saves are not counted."
    )
    drawn = []
    for name, size in (("wide", (WIDE[0], 220)), ("narrow", (NARROW[0], 200))):
        places = curve.thinned(size[0] - 68)
        frame = _frame(size, edges, log=False)
        body = _axes(frame, story.step) + _raw(frame, places) + _line(frame, smooth(places))
        drawn.append(f'<div class="{name}">{figure(frame, body, words)}</div>')
    return f'<figure>{"".join(drawn)}<p class="small">{words}</p></figure>'
