"""The report of a run as one page: ``write(folder)`` makes report.html from the run's other files.

It can be made again at any time, of a run that is going on, stopped or diverged: whatever is not
there yet is said not to be. Curves are thinned to one place per pixel, at which the lowest and the
highest value stay, so that a single step that leapt is seen among a hundred thousand.
"""

import math
import shlex
import signal
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from addnorm import reading
from addnorm.errors import Mendable
from addnorm.pages.curves import Curve, Place, band, smooth
from addnorm.pages.look import clean, document
from addnorm.pages.numbers import number, plain, power
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
from addnorm.records import objects, read
from addnorm.words import a_few, plural

NAME = "report.html"
MOMENTS = (0.0, 0.05, 0.2, 0.5, 1.0)  # shares of a run at which the stream is drawn by layer
EARLY, LONG = 0.05, 1000  # the share of a run of so many steps whose loss may be beyond the plot
ROWS = 100  # of the table of evaluations
LINES, LETTERS, MOST = 10, 800, 4000  # of a sample: seen at once, at once, at all
CROSS, WEDGE = "\u00d7", "▽"  # how marks in plots are told
DASH = "\u2013"
HUGE = 1e200  # from where on sums could overflow: told as infinite
PLACE = ("step", "tokens", "elapsed_s", "whole")


def write(folder: Path) -> Path:
    """Read the run in ``folder`` and write its report there; returns where."""
    text = render(Story.read(folder))
    work = folder / f".{NAME}"
    work.write_text(text, encoding="utf-8")
    return work.replace(folder / NAME)


# --- what is known --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """What the files of a run tell; anything may be missing."""

    folder: Path
    state: Mapping[str, Any] = field(default_factory=dict)  # run.json
    records: Sequence[Mapping[str, Any]] = ()  # metrics.jsonl
    samples: Sequence[tuple[int, Sequence[str]]] = ()  # step, texts
    models: Sequence[str] = ()  # of "model" and "best", those that are there

    @classmethod
    def read(cls, folder: Path) -> "Story":
        """From a run's folder."""
        return cls(
            folder,
            _object(folder / "run.json"),
            read(folder / "metrics.jsonl"),
            _samples(folder / "samples.jsonl"),
            [name for name in ("model", "best") if (folder / name).is_dir()],
        )

    @property
    def name(self) -> str:
        """The folder's own."""
        return self.folder.name or self.folder.resolve().name or str(self.folder)

    @cached_property
    def train(self) -> "Table":
        """The training steps of the run."""
        return Table([r for r in self.records if "whole" not in r])

    @cached_property
    def evaluations(self) -> "Table":
        """The evaluations of the run."""
        return Table([r for r in self.records if "whole" in r])

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings of the run by key."""
        return _mapping(self.state.get("config"))

    @property
    def step(self) -> int:
        """How far it came."""
        told = [_whole(self.state.get("step")), *self.train.steps[-1:]]
        return max((s for s in told if s is not None), default=0)

    @property
    def steps(self) -> int | None:
        """How far it was to go."""
        return _whole(self.config.get("steps"))

    @property
    def finished(self) -> bool:
        """Whether the run has done its last step."""
        return self.state.get("finished") is True

    @property
    def failure(self) -> str:
        """Why it stopped, if something stopped it."""
        told = self.state.get("failure")
        return told if isinstance(told, str) and not self.finished else ""

    @property
    def unit(self) -> str:
        """What the steps count."""
        return str(self.state.get("unit", "targets"))

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What the settings are by themselves; empty where the run did not note it down."""
        return _mapping(self.state.get("defaults"))

    @property
    def metric(self) -> str:
        """What says that a model is better: as the run told, or what its evaluations have first."""
        told = self.state.get("metric")
        return told if isinstance(told, str) else next(iter(self.metrics), "val_loss")

    @property
    def metrics(self) -> list[str]:
        """What evaluations measure, all names in the order in which they came."""
        names = (n for r in self.evaluations.records for n in r if n not in PLACE)
        return list(dict.fromkeys(names))


class Table:
    """Records of one kind by step."""

    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        self.records = [r for r in records if _whole(r.get("step")) is not None]
        self.steps: list[int] = [r["step"] for r in self.records]

    def values(self, name: str) -> list[float]:
        """A column; NaN where it has no number."""
        return [_number(r.get(name)) for r in self.records]

    def points(self, name: str) -> list[tuple[int, float]]:
        """(step, value) where there is a record with it."""
        return [(r["step"], _number(r[name])) for r in self.records if name in r]


def _object(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none that can be read."""
    try:
        return reading.json_object(file)
    except Mendable:
        return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    """Empty for what is none."""
    return value if isinstance(value, dict) else {}


def _samples(file: Path) -> list[tuple[int, list[str]]]:
    """The texts by step, the last of a step counting."""
    found: dict[int, list[str]] = {}
    for told in objects(file):
        step = _whole(told.get("step"))
        if step is not None and isinstance(told.get("samples"), list):
            found[step] = [str(text) for text in told["samples"]]
    return sorted(found.items())


def _whole(value: Any) -> int | None:
    """A count that can be drawn."""
    there = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**15
    return value if there else None


def _number(value: Any) -> float:
    """A number; NaN for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    if abs(value) > HUGE:
        return math.copysign(math.inf, value)
    return float(value)


# --- drawing --------------------------------------------------------------------------------------

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
        found = [(r["step"], _number(r[metric]), r.get("whole")) for r in records if metric in r]
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
        parts.append(f'<path class="held" d="{trace(frame, _some(held, 400))}"/>')
        for points, kind, radius in ((self.glances, "dot", 3.5), (self.whole, "ring", 5)):
            for step, value in _some(points.points, size[0] // 12):
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


def _some(points: Sequence[Any], most: int) -> Sequence[Any]:
    """At most so many, evenly chosen, the last one among them."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


# --- words ----------------------------------------------------------------------------------------


def exact(value: float) -> str:
    """Four decimals, or four digits of what is small or large."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"  # noqa: RUF001
    short = f"{value:.4f}" if value == 0 or 1e-2 <= abs(value) < 1e4 else f"{value:.4g}"
    return short.replace("-", "−")  # noqa: RUF001


def duration(seconds: float) -> str:
    """69 as 1 min 9 s."""
    if not math.isfinite(seconds):
        return DASH
    whole = round(seconds)
    for size, unit, part, of in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size:,} {unit}" + (f" {rest} {of}" if rest else "")
    return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"


def large(count: float) -> str:
    """7,223,115,776 as 7.223 billion."""
    for least, size, unit in (
        (1e12, 1e12, "trillion"),
        (1e9, 1e9, "billion"),
        (1e7, 1e6, "million"),
    ):
        if count >= least:
            return f"{count / size:.4g} {unit}"
    return f"{count:,.0f}"


def shown(value: object) -> str:
    """A setting's value as one would type it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _steps(steps: Sequence[int]) -> str:
    return a_few([f"{step:,}" for step in steps], 10)


TITLES = {
    "val_loss": "held-out loss",
    "accuracy": "held-out accuracy",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
}


def _title(metric: str) -> str:
    return TITLES.get(metric, f"held-out {metric}")


def _what(story: Story) -> str:
    """What is trained, on what."""
    c = story.config
    words = str(story.state.get("noun", "A model"))
    if c.get("init_from"):
        words += f" that began as {c['init_from']}"
    elif "model.n_layers" in c:
        words += f" of {c['model.n_layers']} layers and width {c.get('model.dim')}"
        words += f", Add & Norm as {c.get('model.scheme')}"
    data = str(c.get("data") or "")
    name = data if data.startswith("hf:") else Path(data).name  # the settings tell the whole path
    return words + (f", on {name}" if name else "")


def _how(story: Story) -> str:
    """How it ended, or how far it is."""
    so_far = f"{story.step:,} of {story.steps:,} steps" if story.steps else f"{story.step:,} steps"
    at = f"step {story.step:,}" + (f" of {story.steps:,}" if story.steps else "")
    if story.finished:
        return f"finished after {plural(story.step, 'step')}"
    if story.failure in signal.Signals.__members__:
        return f"stopped by {story.failure} at {at}"
    if story.failure:
        # Training stops itself where loss or gradient are not finite, and says so in these words.
        return f"{'diverged' if 'finite' in story.failure else 'broke off'} after {at}"
    return f"not finished, {so_far} so far" if story.step else "no step is done yet"


# --- the parts of the page ------------------------------------------------------------------------


def _facts(story: Story) -> str:
    """The figures that one looks for first."""
    state, train, evaluations = story.state, story.train, story.evaluations
    metric = story.metric
    points = evaluations.points(metric)
    told: list[tuple[str, str, str]] = []
    best = _number(state.get("best"))
    if math.isfinite(best):
        told.append((f"best {_title(metric)}", exact(best), _where_best(story, best)))
    if points:
        step, value = points[-1]
        whole = evaluations.records[-1].get("whole") is True
        told.append(
            (
                f"last {_title(metric)}",
                exact(value),
                f"step {step:,}" + (", on all that is held out" if whole else ""),
            )
        )
    else:
        told.append((_title(metric), DASH, "no evaluation yet"))
    bits = evaluations.points("bits_per_byte")
    if bits:
        told.append(("bits per byte", exact(bits[-1][1]), _beside(state.get("compressed"))))
    counts = [_number(state.get("tokens")), *train.values("tokens")[-1:]]
    tokens = max((c for c in counts if math.isfinite(c)), default=0.0)
    told.append(
        (f"{story.unit} seen", large(tokens), f"{tokens:,.0f} in {plural(story.step, 'step')}")
    )
    times = [_number(state.get("elapsed_s")), *train.values("elapsed_s")[-1:]]
    known = [t for t in times if math.isfinite(t)]
    told.append(("time", duration(max(known, default=math.nan)), "evaluations included"))
    speeds = Curve(train.points("tokens_per_s"), story.step).values
    if speeds:
        told.append((f"{story.unit}/s", number(statistics.median(speeds)), "median of the steps"))
    cells = (
        f"<div><dt>{clean(name)}</dt><dd>{value}</dd><dd class='small'>{clean(about)}</dd></div>"
        for name, value, about in told
    )
    return f'<dl class="facts">{"".join(cells)}</dl>'


def _where_best(story: Story, best: float) -> str:
    """The step of the best value. An evaluation of everything is not compared: what is, at that
    step too, is the part that all evaluations see."""
    for record in story.evaluations.records:
        if record.get(story.metric) == best:
            return f"step {record['step']:,}"
    whole = [r["step"] for r in story.evaluations.records if r.get("whole") is True]
    return f"step {whole[-1]:,}, on what every evaluation sees" if whole else ""


def _beside(compressed: object) -> str:
    """What general compressors need for the same bytes."""
    if not isinstance(compressed, dict) or not compressed:
        return "on all that is held out"
    return ", ".join(f"{name}: {exact(_number(bits))}" for name, bits in compressed.items())


def _curves(story: Story) -> str:
    """Loss and metric over the steps, and the table of evaluations."""
    if not story.records:
        return "<p>There are no steps yet.</p>"
    parts = [_held_out(story, "val_loss", "loss", "Loss")]
    if story.metric != "val_loss":
        title = _title(story.metric)
        parts.append(_held_out(story, story.metric, story.metric, title[:1].upper() + title[1:]))
    return "".join(parts) + _evaluations(story)


def _held_out(story: Story, metric: str, column: str, title: str) -> str:
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


def _evaluations(story: Story) -> str:
    names, records = story.metrics, story.evaluations.records
    if not records or not names:
        return ""
    heads = "".join(f'<th scope="col" class="num">{clean(_title(n))}</th>' for n in names)
    rows = []
    for r in _some(records, ROWS):
        cells = "".join(
            f'<td class="num">{exact(_number(r[n])) if n in r else ""}</td>' for n in names
        )
        step = f"{r['step']:,}" + (" <small>all</small>" if r.get("whole") is True else "")
        rows.append(f'<tr><th scope="row" class="num">{step}</th>{cells}</tr>')
    count = plural(len(records), "evaluation")
    some = f", {ROWS} of them, evenly chosen" if len(records) > ROWS else ""
    return (
        f"<details><summary>{count} as a table</summary><div class='scroll' tabindex='0'><table>"
        f"<caption>{count}{some}. The last one of a run sees all that is held out.</caption>"
        f'<thead><tr><th scope="col" class="num">step</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def _steering(story: Story) -> str:
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
    clip = _number(story.config.get("clip"))
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


def _stream(story: Story) -> str:
    """The residual stream by layer at several moments, and of three layers over the steps."""
    told = [(r["step"], r["stream_rms"]) for r in story.train.records if "stream_rms" in r]
    found = [(s, [_number(v) for v in values]) for s, values in told if isinstance(values, list)]
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


def _throughput(story: Story) -> str:
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


def _written(story: Story) -> str:
    """Samples of the first and the last evaluation."""
    if not story.samples:
        return "<p>There are no samples yet.</p>"
    told = [story.samples[0], *story.samples[1:][-1:]]
    columns = []
    for step, texts in told:
        blocks = "".join(map(_sample, texts)) or "<p>Nothing.</p>"
        columns.append(f"<div><h3>Step {step:,}</h3>{blocks}</div>")
    return f'<div class="pair">{"".join(columns)}</div>'


def _sample(text: str) -> str:
    """Its beginning, and more of it on demand."""
    head = "\n".join(text.split("\n")[:LINES])[:LETTERS]
    rest = text[len(head) : MOST]
    block = f'<pre class="sample" tabindex="0">{clean(head)}</pre>'
    if rest:
        cut = len(text) - MOST
        note = f"<p class='small'>{cut:,} letters more in samples.jsonl.</p>" if cut > 0 else ""
        block += (
            f"<details><summary>more</summary><pre class='sample' tabindex='0'>{clean(rest)}</pre>"
            f"{note}</details>"
        )
    return block


def _settings(story: Story) -> str:
    """Every key; what was chosen first."""
    config = story.config
    if not config:
        return "<p>There are no settings yet.</p>"
    defaults = story.defaults
    if not defaults:
        rows = [(key, shown(value)) for key, value in config.items()]
        return _table(f"{plural(len(rows), 'setting')}.", ("Setting", "Value"), rows)
    mine = [k for k in config if k not in defaults or config[k] != defaults[k]]
    rest = [k for k in config if k not in mine]
    parts = [
        _table(
            f"{plural(len(mine), 'setting')} not at the default.",
            ("Setting", "Value", "Default"),
            [(k, shown(config[k]), shown(defaults[k]) if k in defaults else DASH) for k in mine],
        )
    ]
    if rest:
        count = f"{plural(len(rest), 'setting')} at the default"
        table = _table(count + ".", ("Setting", "Value"), [(k, shown(config[k])) for k in rest])
        parts.append(f"<details><summary>{count}</summary>{table}</details>")
    return "".join(parts)


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{h}</th>' for h in heads)
    body = "".join(
        f'<tr><th scope="row"><code>{clean(row[0])}</code></th>'
        + "".join(f"<td><code>{clean(cell)}</code></td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f"<table class='plain'><caption>{clean(caption)}</caption><thead><tr>{top}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


ENVIRONMENT = {
    "addnorm": "addnorm",
    "torch": "PyTorch",
    "python": "Python",
    "machine": "machine",
    "device": "device",
    "precision": "precision",
    "processes": "processes",
    "threads": "threads of each",
    "command": "command",
    "written": "run.json written",
}


def _environment(story: Story) -> str:
    rows = [(name, shown(story.state[k])) for k, name in ENVIRONMENT.items() if k in story.state]
    if not rows:
        return "<p>There is no run.json yet, or it cannot be read.</p>"
    return _table("What the run ran on.", ("What", "Is"), rows)


def _onward(story: Story) -> str:
    """Commands that go on from here."""
    folder, config = shlex.quote(str(story.folder)), story.config
    several = _whole(story.state.get("processes")) or 1
    start = f"torchrun --standalone --nproc-per-node {several} -m " if several > 1 else ""
    resume = f"{start}addnorm train --resume {folder}"
    told: list[tuple[str, str]] = []
    if "task" not in config:
        told.append(
            (
                "Go on, in Python, with the same task:",
                f"addnorm.train(task, out={str(story.folder)!r}, loop=loop, resume=True)",
            )
        )
    elif story.finished:
        told.append(
            (
                "Go on for longer:",
                f"{resume} steps={2 * (story.steps or story.step)}",
            )
        )
    elif story.failure and story.failure not in signal.Signals.__members__:
        rate = _number(config.get("lr"))
        lower = f" lr={rate / 2:g}" if math.isfinite(rate) else ""
        told.append(
            (
                "Go on from the last checkpoint, with half the learning rate:",
                f"{resume}{lower}",
            )
        )
    else:
        told.append(("Go on from the last checkpoint:", resume))
    commands = _mapping(story.state.get("commands"))
    if commands and story.models:
        best = story.folder / "best" if "best" in story.models else story.folder
        model = shlex.quote(str(best))
        told += [(f"{what}:", str(how).replace("{model}", model)) for what, how in commands.items()]
    elif commands:
        told.append(("No model is saved yet.", ""))
    return "".join(
        f"<p>{clean(what)}</p>"
        + (f'<pre tabindex="0"><code>{clean(how)}</code></pre>' if how else "")
        for what, how in told
    )


def render(story: Story) -> str:
    """The page."""
    failure = ""
    if story.failure and story.failure not in signal.Signals.__members__:
        failure = f'<p class="failure">{clean(story.failure)}</p>'
    lost = []
    skipped = sum(r.get("skipped") is True for r in story.train.records)
    skipped = max(skipped, _whole(story.state.get("skipped")) or 0)
    if skipped:
        lost.append(f"{plural(skipped, 'step')} left out")
    if rollbacks := _whole(story.state.get("rollbacks")):
        lost.append(f"{plural(rollbacks, 'time')} back to a checkpoint")
    lead = f"{_what(story)}: {_how(story)}" + "".join(f"; {what}" for what in lost)
    body = f"""<main>
<header>
<p class="kicker">addnorm train</p>
<h1>{clean(story.name)}</h1>
<p class="lead">{clean(lead)}.</p>
{failure}
</header>
{_facts(story)}
<h2>Learning</h2>
{_curves(story)}
<h2>Learning rate and gradient</h2>
{_steering(story)}
<h2>The residual stream</h2>
{_stream(story)}
<h2>Throughput</h2>
{_throughput(story)}
<h2>What it wrote</h2>
{_written(story)}
<h2>Settings</h2>
{_settings(story)}
<h2>Environment</h2>
{_environment(story)}
<h2>Going on</h2>
{_onward(story)}
<p class="small">All numbers are in metrics.jsonl beside this page, the samples in samples.jsonl,
the settings in config.toml.</p>
</main>"""
    return document(story.name, body, STYLE)


STYLE = """
h1,.lead,.failure,dd{overflow-wrap:anywhere}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(148px,1fr));gap:18px 28px;
margin:28px 0 0}
.facts dt{color:var(--muted);font-size:.875rem}
.facts dd{margin:0}
.facts dt+dd{font-size:1.6rem;line-height:1.25;font-weight:600;font-variant-numeric:tabular-nums}
.failure{border-left:4px solid var(--ink);padding:.2em 0 .2em 14px;white-space:pre-wrap}
h2+figure+figure,figure+details{margin-top:18px}
p+.pair{margin-top:14px}
.narrow{display:none}
.raw{fill:var(--line)!important;fill-opacity:.16;stroke:var(--line);stroke-opacity:.3}
.held{stroke:var(--ink);stroke-width:1;stroke-dasharray:2 3}
.dot{fill:var(--ink)}
.ring{fill:var(--bg);stroke:var(--ink);stroke-width:1.8}
.limit{stroke:var(--muted);stroke-dasharray:5 4}
.cross{stroke:var(--ink);stroke-width:1.6}
.wedge{stroke:var(--ink);stroke-width:1.2}
summary{cursor:pointer;color:var(--line);padding:.35em 0;font-size:.9375rem;width:fit-content}
.scroll{overflow-x:auto}
.scroll table{width:auto}
.scroll th,.scroll td{white-space:nowrap}
.plain td,.plain th{overflow-wrap:anywhere;vertical-align:top}
.plain th:first-child{width:32%}
.sample{font:.8125rem/1.45 ui-monospace,monospace;margin:.6em 0 .2em}
@media (max-width:900px){.pair{grid-template-columns:minmax(0,1fr)}}
@media (max-width:640px){.wide{display:none}.narrow{display:block}.pair svg text{font-size:14px}
.facts{grid-template-columns:repeat(2,minmax(0,1fr));gap:16px}.facts dt+dd{font-size:1.3rem}
.plain{table-layout:fixed}.plain code{font-size:.75rem}.plain th:first-child{width:46%}
.plain th:nth-child(3){width:24%}}
@media print{figure,.facts div{break-inside:avoid}}
"""
