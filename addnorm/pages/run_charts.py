"""The plots of a run's page: metrics, learning rate, gradient, stream, throughput.

Curves are thinned to one place per pixel, at which the lowest and the highest value stay, so that a
single step that leapt is seen among a hundred thousand.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import final

from addnorm.pages.curves import (
    Curve,
    Pixel,
    evenly_chosen,
    last_value,
    smooth,
    step_labels,
)
from addnorm.pages.look import clean, figure
from addnorm.pages.numbers import as_float, exact, number
from addnorm.pages.plot import Plot
from addnorm.pages.run_story import Story
from addnorm.pages.svg import Frame, even_extent, evenly, extent
from addnorm.words import a_few, plural

MOMENTS = (0.0, 0.05, 0.2, 0.5, 1.0)  # shares of a run at which the stream is drawn by layer
EARLY, LONG = 0.05, 1000  # the share of a run of LONG steps whose loss may be beyond the plot
CROSS, WEDGE = "\u00d7", "▽"  # how marks in plots are told
WIDE, NARROW, HALF = 1120, 358, (480, 260)  # width of the window's plots; size of one of a pair
Size = tuple[int, int]  # width and height in pixels
Line = Sequence[tuple[float, float]]  # share of the width, value


def _plot(size: Size, edges: tuple[float, float], log: bool, right: int = 12) -> Plot:
    """An empty plot; ``edges`` as ``extent`` or, of an even axis, ``even_extent`` gives them, and
    ``right`` the room for names in pixels."""
    measure: Callable[[float], float] = math.log10 if log else float
    return Plot(Frame(*size, 56, right, *edges, top=16, measure=measure))


def _for_any_window(draw: Callable[[Size], str], wide: int, narrow: int) -> str:
    """A chart for wide windows and one for narrow ones, of these heights: the page shows one."""
    sizes = {"wide": (WIDE, wide), "narrow": (NARROW, narrow)}
    return "".join(f'<div class="{name}">{draw(size)}</div>' for name, size in sizes.items())


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


@final
class MetricChart:
    """An evaluation's metric over the steps, before the training's own, if that has the same.

    ``metric``: a name in the records of evaluations. ``column``: that of the same in the records of
    training steps; one that they have not draws no line.
    """

    def __init__(self, story: Story, metric: str, column: str) -> None:
        self.last = story.step
        # At first the loss falls so far that on one axis with that nothing else could be seen.
        self.early = EARLY if self.last >= LONG else 0.0
        self.train = Curve(story.train.points(column), self.last)
        records = story.evaluations.records
        values = [(r["step"], as_float(r[metric]), r.get("whole")) for r in records if metric in r]
        # evaluations of a part of what is held out, and of all of it
        self.glances = Curve([(s, v) for s, v, whole in values if whole is not True], self.last)
        self.whole = Curve([(s, v) for s, v, whole in values if whole is True], self.last)

    def draw(self, size: Size, words: str) -> str:
        """The chart at one size in pixels; ``words`` say what it shows to those who do not see it.
        The axis is logarithmic where values differ by more than 30 times."""
        places = self.train.thinned(size[0] - 126)
        line: Line = smooth(places)
        validation: Line = [(self.glances.share(s), v) for s, v in self.glances.points]
        inside = [
            v for share, v in [*line, *validation] if share >= self.early and math.isfinite(v)
        ]
        inside += self.whole.values
        log = bool(inside) and min(inside) > 0 and max(inside) > 30 * min(inside)
        plot = _plot(size, self._edges(inside, places, log), log, right=70)
        line, validation = _inside(plot.frame, line), _inside(plot.frame, validation)
        plot.axes(step_labels(plot.frame, self.last))
        plot.band([p for p in places if p.share >= self.early or plot.frame.holds(p.low)], "raw")
        plot.line(line)
        plot.line(evenly_chosen(validation, 400), "held")
        for curve, kind, radius in ((self.glances, "dot", 3.5), (self.whole, "ring", 5)):
            points = evenly_chosen(curve.points, size[0] // 12)
            titles = [(curve.share(s), v, f"step {s:,}: {exact(v)}") for s, v in points]
            plot.dots(titles, kind, radius)
        plot.crosses(map(self.train.share, self.train.broken))
        plot.names([(last_value(line), "training"), (last_value(validation), "held out")])
        return plot.svg(words)

    def _edges(
        self, inside: Sequence[float], places: Sequence[Pixel], log: bool
    ) -> tuple[float, float]:
        """(low, high): the edges of the axis of values, as log10 if ``log``: they hold ``inside``,
        which is smooth, and on an even axis of the single steps in ``places`` what is not too far
        from it."""
        if log:
            return extent(inside, most=math.inf)
        low, high = min(inside, default=0.0), max(inside, default=1.0)
        room = 0.35 * (high - low) or 0.1 * abs(high)
        least = min((p.low for p in places if math.isfinite(p.low)), default=low)
        most = max((p.high for p in places if math.isfinite(p.high)), default=high)
        return even_extent([max(min(least, low), low - room), min(max(most, high), high + room)])


def _inside(frame: Frame, line: Line) -> Line:
    """The line with gaps (NaN) where it is beyond the edges."""
    return [(share, v if frame.holds(v) else math.nan) for share, v in line]


def metric_chart(story: Story, metric: str, column: str, title: str) -> str:
    """The chart of a metric of the evaluations and of the training's own ``column``, with
    ``title``, any text, above and what it shows in words below, as HTML."""
    chart = MetricChart(story, metric, column)
    words = _in_words(chart)
    label = f"{title} over the steps. {words}"
    charts = _for_any_window(lambda size: chart.draw(size, label), 360, 250)
    return figure(charts, clean(title), words)


def _in_words(chart: MetricChart) -> str:
    """What a chart shows, in sentences; under it, and for those who cannot see it."""
    words = []
    line = smooth(chart.train.thinned(1000))
    finite = chart.train.finite_points
    if finite:
        first, last = next(v for _, v in line if math.isfinite(v)), last_value(line)
        low, high = min(finite, key=_second), max(finite, key=_second)
        assert last is not None
        words.append(
            f"Training, smoothed: {exact(first)} at first, {exact(last)} at the end; the lowest "
            f"single step {exact(low[1])} (step {low[0]:,}), the highest {exact(high[1])} (step "
            f"{high[0]:,})."
        )
        if chart.early:
            words.append(
                f"Values above the plot in the first {chart.early:.0%} of the steps are cut off."
            )
    if broken := chart.train.broken:
        words.append(f"{CROSS} not finite at {plural(len(broken), 'step')}: {_steps(broken)}.")
    if points := chart.glances.points:
        (s0, v0), (s1, v1) = points[0], points[-1]
        words.append(f"Held out, dots: {exact(v0)} at step {s0:,}")
        words[-1] += f" to {exact(v1)} at step {s1:,}." if s1 > s0 else "."
    if chart.whole.points:
        step, value = chart.whole.points[-1]
        words.append(f"Ring, on all that is held out: {exact(value)} at step {step:,}.")
    if not chart.glances.points and not chart.whole.points:
        words.append("There is no evaluation yet.")
    return " ".join(words)


def _second(pair: tuple[int, float]) -> float:
    return pair[1]


def _steps(steps: Sequence[int]) -> str:
    return a_few([f"{step:,}" for step in steps], 10)


def rate_and_gradient(story: Story) -> str:
    """The charts of learning rate and gradient norm, as HTML."""
    if not story.train.steps:
        return "<p>There are no steps yet.</p>"
    return f'<div class="pair">{_rate(story)}{_gradient(story)}</div>'


def _rate(story: Story) -> str:
    """The chart of the learning rate over the steps, as HTML."""
    curve = Curve(story.train.points("lr"), story.step)
    plot = _plot(HALF, (0.0, even_extent([0.0, *curve.values])[1]), log=False)
    plot.axes(step_labels(plot.frame, story.step))
    plot.line([(p.share, p.median) for p in curve.thinned(HALF[0] - 68)])
    points = curve.finite_points
    words = "There are no numbers."
    if points:
        top = max(points, key=_second)
        words = (
            f"From {number(points[0][1])} to {number(top[1])} at step {top[0]:,}, "
            f"{number(points[-1][1])} at the end."
        )
    return figure(plot.svg(f"Learning rate. {words}"), "Learning rate", words)


def _gradient(story: Story) -> str:
    """The chart of the gradient's norm; a step that was left out has a wedge over it, or a cross if
    its gradient was not finite."""
    curve = Curve(story.train.points("grad_norm"), story.step)
    places = curve.thinned(HALF[0] - 112)
    clip = as_float(story.config.get("clip"))
    plot = _plot(HALF, extent(curve.values, most=math.inf), log=True, right=56)
    plot.axes(step_labels(plot.frame, story.step))
    plot.limit(clip, f"clip {clip:g}")
    plot.band(places, "raw")
    plot.line(smooth(places))
    skipped = [r["step"] for r in story.train.records if r.get("skipped") is True]
    wedged = sorted(set(skipped) - set(curve.broken))
    plot.crosses(map(curve.share, curve.broken))
    plot.wedges(map(curve.share, wedged))
    words = _gradient_in_words(curve, clip, wedged)
    if not curve.broken and not skipped:
        words = f"{words} No step was left out.".lstrip()
    return figure(plot.svg(f"Norm of the gradient. {words}"), "Gradient norm", words)


def _gradient_in_words(curve: Curve, clip: float, wedged: Sequence[int]) -> str:
    """``wedged`` are the steps that were left out though their gradient was finite; ``clip`` is NaN
    or 0 where nothing is clipped."""
    words = []
    if points := curve.finite_points:
        top = max(points, key=_second)
        words.append(
            f"Median {number(statistics.median(curve.values))}, largest {number(top[1])} at step "
            f"{top[0]:,}."
        )
    if clip > 0:
        over = sum(v > clip for v in curve.values)
        words.append(f"Clipped to {clip:g} at {plural(over, 'step')}.")
    if broken := curve.broken:
        words.append(f"{CROSS} not finite at {plural(len(broken), 'step')}: {_steps(broken)}.")
    if wedged:
        words.append(f"{WEDGE} left out {plural(len(wedged), 'step')}: {_steps(wedged)}.")
    return " ".join(words)


def stream(story: Story) -> str:
    """The charts of the residual stream by layer at several moments, and of three layers over the
    steps, as HTML; a sentence where nothing was measured."""
    lists = [(r["step"], r["stream_rms"]) for r in story.train.records if "stream_rms" in r]
    rows = [(s, [as_float(v) for v in values]) for s, values in lists if isinstance(values, list)]
    size = len(rows[-1][1]) if rows else 0
    rows = [(s, values) for s, values in rows if len(values) == size]
    if not size:
        why = " (watch_every is 0)" if story.config.get("watch_every") == 0 else ""
        return f"<p>There are no measurements of the stream yet{why}.</p>"
    return (
        "<p>The root mean square of the residual stream after each sublayer, on one row of the "
        "step's data. With pre-norm it is usual that it grows with depth, because every branch "
        "adds to it, and that it grows in training; with post-norm every layer ends in a norm, and "
        "it stays flat. A layer that leaps away from its neighbours, or a growth that does not "
        "slow down, can come before a divergence."
        f'</p><div class="pair">{_by_layer(rows)}{_over_steps(rows, story.step)}</div>'
    )


def _by_layer(rows: Sequence[tuple[int, list[float]]]) -> str:
    """The chart of the stream over the layers, at the steps nearest to ``MOMENTS``; ``rows`` are
    (step, RMS after each sublayer)."""
    last = rows[-1][0]
    nearest = [
        min((abs(step - m * last), step, values) for step, values in rows)[1:] for m in MOMENTS
    ]
    moments = sorted(dict(nearest).items())
    size = len(moments[0][1])
    plot = _plot(HALF, extent(v for _, values in moments for v in values), log=True, right=92)
    marks = sorted({1, (size + 1) // 2, size})
    plot.axes(((i - 1) / max(1, size - 1), f"{i}" if i > 1 else "sublayer 1") for i in marks)
    for i, (_, values) in enumerate(moments):
        plot.line(evenly(values), strength=0.25 + 0.75 * (i + 1) / len(moments))
    plot.names((values[-1], f"step {step:,}") for step, values in moments)
    words = "; ".join(
        f"step {step:,}: {exact(values[0])} after sublayer 1, {exact(values[-1])} after sublayer "
        f"{size}"
        for step, values in (moments[0], moments[-1])[: len(moments)]
    )
    return figure(
        plot.svg(f"RMS of the stream after each sublayer. {words}."),
        f"By layer, sublayers 1 to {size}, faint to dark in time",
        _sentence(words),
    )


def _over_steps(rows: Sequence[tuple[int, list[float]]], last: int) -> str:
    """The chart of three layers over the steps up to ``last``; ``rows`` as in ``_by_layer``."""
    size = len(rows[0][1])
    layers = sorted({0, (size - 1) // 2, size - 1})
    curves = {i: Curve([(step, values[i]) for step, values in rows], last) for i in layers}
    plot = _plot(HALF, extent(v for c in curves.values() for v in c.values), log=True, right=92)
    plot.axes(step_labels(plot.frame, last))
    ends = []
    for i, curve in curves.items():
        line = [(p.share, p.median) for p in curve.thinned(HALF[0] - 148)]
        plot.line(line)
        ends.append((last_value(line), f"sublayer {i + 1}"))
    plot.names(ends)
    words = "; ".join(
        f"sublayer {i + 1}: {exact(curve.points[0][1])} to {exact(curve.points[-1][1])}"
        for i, curve in curves.items()
    )
    return figure(
        plot.svg(f"RMS of the stream over the steps. {words}."),
        "Over the steps: first, middle, last sublayer",
        _sentence(words),
    )


def throughput(story: Story) -> str:
    """The chart of how much each step got done in a second, as HTML."""
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

    def draw(size: Size) -> str:
        places = curve.thinned(size[0] - 68)
        plot = _plot(size, edges, log=False)
        plot.axes(step_labels(plot.frame, story.step))
        plot.band(places, "raw")
        plot.line(smooth(places))
        return plot.svg(words)

    return figure(_for_any_window(draw, 220, 200), words=clean(words))
