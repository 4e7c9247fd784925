"""The report as one page: no scripts, nothing loaded from elsewhere, plots drawn as SVG.

Lines are labelled where they end and differ in strength, not in hue, so that the page can be read
without colours; every plot says in words what it shows. ``render(report)`` is the way in.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from addnorm.lab.profile import Design, Report, Spread, conditions, digits, slope

# --- scales ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """A plot's box: a share of the depth from left to right, a logarithmic value upwards."""

    width: int
    height: int
    left: int
    right: int
    low: float  # log10 of the values at the edges
    high: float
    top: int = 10
    bottom: int = 34

    def x(self, share: float) -> float:
        """Where a share of the depth is."""
        return self.left + share * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        """Where a value is; what lies beyond the edges is drawn on them."""
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.height - self.bottom - min(max(share, 0.0), 1.0) * self.rise

    @property
    def rise(self) -> int:
        """The height of the plot proper."""
        return self.height - self.top - self.bottom


def drawable(value: float) -> bool:
    """Whether a value has a place on a logarithmic axis."""
    return 0.0 < value < math.inf


def extent(values: Sequence[float]) -> tuple[float, float]:
    """log10 of the edges that hold all values, at least a decade apart, at most 16."""
    logs = [math.log10(v) for v in values if drawable(v)] or [0.0]
    low, high = min(logs) - 0.1, max(logs) + 0.1
    if high - low < 1.0:
        middle = (low + high) / 2
        low, high = middle - 0.5, middle + 0.5
    return max(low, high - 16.0), high


def ticks(low: float, high: float) -> list[float]:
    """Powers of ten within the edges, also 2 and 5 times those where there would be few."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    step = max(1, math.ceil((high - low) / 5))
    told = [10.0**k for k in powers if k % step == 0 and low <= k <= high]
    if len(told) < 3 and step == 1:
        told = [m * 10.0**k for k in powers for m in (1, 2, 5)]
    return [t for t in told if low <= math.log10(t) <= high]


def power(value: float) -> str:
    """A tick's label: 0.01, 1, 50, 10⁻⁶."""
    k = round(math.log10(value))
    if -3 <= k <= 4 or not math.isclose(value, 10.0**k):
        return f"{value:g}"
    return "10" + str(k).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


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


def _points(frame: Frame, values: Sequence[float]) -> Iterator[list[str]]:
    """The runs of drawable values."""
    run: list[str] = []
    for i, v in enumerate(values):
        if drawable(v):
            run.append(f"{frame.x(i / max(1, len(values) - 1)):.1f} {frame.y(v):.1f}")
        elif run:
            yield run
            run = []
    if run:
        yield run


def _line(frame: Frame, values: Sequence[float]) -> str:
    return "".join("M" + "L".join(run) for run in _points(frame, values))


def _band(frame: Frame, curve: Sequence[Spread]) -> str:
    low, high = [s.low for s in curve], [s.high for s in curve]
    if not all(map(drawable, low + high)):
        return ""
    over, under = next(_points(frame, high)), next(_points(frame, low))
    return "M" + "L".join(over + under[::-1]) + "Z"


def _axes(frame: Frame) -> str:
    left, right = frame.x(0), frame.x(1)
    floor = frame.height - frame.bottom
    parts = []
    for t in ticks(frame.low, frame.high):
        y = frame.y(t)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{power(t)}</text>')
    for share, text, anchor in ((0, "0", "start"), (0.5, "depth", "middle"), (1, "L", "end")):
        place = f'x="{frame.x(share):.1f}" y="{floor + 17}"'
        parts.append(f'<text {place} text-anchor="{anchor}">{text}</text>')
    parts.append(f'<path class="axis" d="M{left} {floor}H{right}"/>')
    return "".join(parts)


def _figure(frame: Frame, body: str, words: str) -> str:
    return (
        f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" '
        f'aria-label="{escape(words)}">{body}</svg>'
    )


WHAT = {"stream": "Residual RMS", "gradient": "Gradient RMS"}
LONG = {
    "stream": "root mean square of the residual stream",
    "gradient": "root mean square of the loss's gradient with respect to the stream",
}


class Plots:
    """The plots of one quantity, all on the same scale."""

    def __init__(self, report: Report, which: str) -> None:
        self.which, self.depths = which, sorted(report.setup.depths)
        self.designs = report.designs
        curves = [d.curve(depth, which) for d in report.designs for depth in self.depths]
        self.low, self.high = extent([v for c in curves for s in c for v in (s.low, s.high)])
        self.small = Frame(380, 210, 46, 44, self.low, self.high)
        self.large = Frame(450, 430, 46, 184, self.low, self.high)

    def _deep(self, design: Design) -> list[float]:
        return [s.median for s in design.curve(self.depths[-1], self.which)]

    def context(self) -> str:
        """All designs at the largest depth, once for the page: what each panel stands before."""
        lines = "".join(_line(self.small, self._deep(d)) for d in self.designs)
        return f'<path id="all-{self.which}" d="{lines}"/>'

    def overview(self) -> str:
        """All designs at the largest depth, each labelled at its end."""
        frame = self.large
        ends = []
        for d in self.designs:
            shown = [v for v in self._deep(d) if drawable(v)]
            ends.append(frame.y(shown[-1]) if shown else frame.y(10.0**frame.low))
        places = spread(ends, 15, frame.top + 6, frame.height - frame.bottom)
        body = [_axes(frame)]
        right = frame.x(1)
        for d, end, place in zip(self.designs, ends, places, strict=True):
            label = d.label if len(d.label) <= 26 else d.label[:25] + "…"
            body.append(
                f'<g class="one"><path class="hit" d="{_line(frame, self._deep(d))}"/>'
                f'<path class="line" d="{_line(frame, self._deep(d))}"/>'
                f'<path class="lead" d="M{right:.1f} {end:.1f}l6 0L{right + 16:.1f} {place:.1f}"/>'
                f'<text class="name" x="{right + 19:.1f}" y="{place + 4:.1f}">{escape(label)}'
                "</text></g>"
            )
        told = "; ".join(f"{d.label} {_ends(self._deep(d))}" for d in self.designs)
        words = f"{LONG[self.which]} at {self.depths[-1]} blocks, from entrance to end: {told}."
        return _figure(frame, "".join(body), words)

    def panel(self, design: Design) -> str:
        """One design at every depth, before all the others."""
        frame = self.small
        curves = [design.curve(depth, self.which) for depth in self.depths]
        body = [f'<use href="#all-{self.which}" class="others"/>', _axes(frame)]
        body.append(f'<path class="band" d="{_band(frame, curves[-1])}"/>')
        ends: list[tuple[float, int]] = []
        for i, curve in enumerate(curves):
            medians = [s.median for s in curve]
            strength = 0.4 + 0.6 * (i + 1) / len(curves)
            style = f"opacity:{strength:.2f};stroke-width:{0.8 + 1.4 * strength:.2f}"
            body.append(f'<path class="line" style="{style}" d="{_line(frame, medians)}"/>')
            if drawable(medians[-1]):
                ends.append((frame.y(medians[-1]), i))
        body.append(self._end_labels(ends))
        told = "; ".join(
            f"{depth} blocks: {_ends([s.median for s in curve])}"
            for depth, curve in zip(self.depths, curves, strict=True)
        )
        words = f"{design.label}: {LONG[self.which]}, from entrance to end. {told}."
        return _figure(frame, "".join(body), words)

    def _end_labels(self, ends: list[tuple[float, int]]) -> str:
        """The number of blocks beside each line; one label for lines that end together."""
        groups: list[list[tuple[float, int]]] = []
        for end in sorted(ends):
            if groups and end[0] - groups[-1][-1][0] < 7:
                groups[-1].append(end)
            else:
                groups.append([end])
        wanted = [sum(y for y, _ in g) / len(g) for g in groups]
        places = spread(wanted, 12, self.small.top + 4, self.small.height - self.small.bottom)
        parts = []
        for group, place in zip(groups, places, strict=True):
            which = sorted(i for _, i in group)
            run = len(which) > 1 and which == list(range(which[0], which[-1] + 1))
            told = [str(self.depths[i]) for i in which]
            text = f"{told[0]}–{told[-1]}" if run else " ".join(told)  # noqa: RUF001
            at = f'x="{self.small.x(1) + 6:.1f}" y="{place + 4:.1f}"'
            parts.append(f'<text class="name" {at}>{text}</text>')
        return "".join(parts)


def _ends(values: Sequence[float]) -> str:
    return f"{number(values[0])} to {number(values[-1])}"


# --- the table ------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three digits, or a dash where there is no number."""
    return digits(value).replace("-", "−") if math.isfinite(value) else "–"  # noqa: RUF001


def signed(value: float) -> str:
    """An exponent."""
    return slope(value).replace("-", "−")  # noqa: RUF001


class Strip:
    """Exponents on a common scale, one small plot for each row of the table."""

    WIDTH, HEIGHT = 120, 18

    def __init__(self, exponents: Sequence[Spread | None]) -> None:
        known = [v for e in exponents if e is not None for v in (e.low, e.high)]
        self.low = max(-3.0, math.floor(2 * min([*known, -0.5])) / 2)
        self.high = min(3.0, math.ceil(2 * max([*known, 0.5])) / 2)

    def x(self, value: float) -> float:
        """Where an exponent is; what lies beyond the edges is drawn on them."""
        share = (value - self.low) / (self.high - self.low)
        return 8 + min(max(share, 0.0), 1.0) * (self.WIDTH - 16)

    def _marks(self) -> list[float]:
        step = 0.5 if self.high - self.low <= 2 else 1.0
        first = math.ceil(self.low / step)
        return [k * step for k in range(first, math.floor(self.high / step) + 1)]

    def _svg(self, body: str) -> str:
        box = (
            f'width="{self.WIDTH}" height="{self.HEIGHT}" viewBox="0 0 {self.WIDTH} {self.HEIGHT}"'
        )
        return f'<svg class="strip" {box} aria-hidden="true">{body}</svg>'

    def scale(self) -> str:
        """The numbers over the column."""
        return self._svg(
            "".join(
                f'<text x="{self.x(m):.1f}" y="14" text-anchor="middle">'
                f"{f'{m:g}'.replace('-', '−')}</text>"  # noqa: RUF001
                for m in self._marks()
            )
        )

    def row(self, e: Spread | None) -> str:
        """The interval over the seeds and its median."""
        body = [
            f'<path class="{"axis" if m == 0 else "grid"}" d="M{self.x(m):.1f} 0V{self.HEIGHT}"/>'
            for m in self._marks()
        ]
        if e is not None:
            body.append(f'<path class="line" d="M{self.x(e.low):.1f} 9H{self.x(e.high):.1f}"/>')
            body.append(f'<circle class="dot" cx="{self.x(e.median):.1f}" cy="9" r="4"/>')
        return self._svg("".join(body))


def _slope(e: Spread | None) -> str:
    if e is None:
        return '<span class="muted">not defined</span>'
    return f"<b>{signed(e.median)}</b> <small>{signed(e.low)} … {signed(e.high)}</small>"


def _table(report: Report) -> str:
    deep = max(report.setup.depths)
    columns = {
        "stream_mean_square": ("Stream", "mean square"),
        "last_mlp_gradient": ("Gradient", "last MLP, norm"),
    }
    strips = {q: Strip([d.exponent(q) for d in report.designs]) for q in columns}
    heads = "".join(
        f'<th role="columnheader" scope="col" class="num">{title}<br><small>{what}'
        f'</small></th><th role="columnheader" scope="col"><small>grows as L to the</small><br>'
        f"{strips[q].scale()}</th>"
        for q, (title, what) in columns.items()
    )
    rows = []
    for i, d in enumerate(report.designs):
        cells = "".join(
            f'<td role="cell" class="num" data-head="{title}, {what}">'
            f"{number(d.value(deep, q).median)}</td>"
            f'<td role="cell" class="slope" data-head="grows as L to the">'
            f"{strips[q].row(d.exponent(q))}<span>{_slope(d.exponent(q))}</span></td>"
            for q, (title, what) in columns.items()
        )
        rows.append(
            f'<tr role="row"><th role="rowheader" scope="row"><a href="#design-{i}">'
            f"{escape(d.label)}</a></th>{cells}"
            f'<td role="cell" class="num" data-head="Gradient, first / last MLP">'
            f"{number(d.value(deep, 'first_to_last').median)}</td></tr>"
        )
    return (
        '<table role="table"><caption>Medians over the seeds, with the lowest and the highest. '
        f"Exponents are fitted over L = {_listed(sorted(report.setup.depths))} blocks.</caption>"
        f'<thead role="rowgroup"><tr role="row"><th role="columnheader" scope="col">Design</th>'
        f'{heads}<th role="columnheader" scope="col" class="num">Gradient<br>'
        f'<small>first / last MLP</small></th></tr></thead><tbody role="rowgroup">'
        f"{''.join(rows)}</tbody></table>"
    )


# --- the page -------------------------------------------------------------------------------------


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _equation(text: str) -> str:
    """With an arrow."""
    return escape(text.replace("<-", "←"))


def _paper(text: str) -> str:
    """With the arXiv numbers as links."""
    link = r'<a href="https://arxiv.org/abs/\1">\1</a>'
    return re.sub(r"\b(\d{4}\.\d{4,5})\b", link, escape(text))


def _card(i: int, design: Design, plots: Sequence[Plots], deep: int) -> str:
    equations = "".join(f'<p class="equation">{_equation(e)}</p>' for e in design.equations)
    papers = "".join(f"<p>{_paper(p)}</p>" for p in dict.fromkeys(design.papers))
    note = f"<p><strong>{escape(design.note)}</strong></p>" if design.note else ""
    name = "" if design.label == design.text else f"<p><code>{escape(design.text)}</code></p>"
    figures = "".join(
        f"<figure><figcaption>{WHAT[p.which]}</figcaption>{p.panel(design)}</figure>" for p in plots
    )
    return (
        f'<section class="card" id="design-{i}"><div><h3>{escape(design.label)}</h3>{name}'
        f'{equations}<div class="small">{papers}<p>Init at L = {deep}: {escape(design.init)}.</p>'
        f"{note}</div></div>{figures}</section>"
    )


def render(report: Report) -> str:
    """The page."""
    setup = report.setup
    deep = max(setup.depths)
    plots = [Plots(report, which) for which in WHAT]
    overview = "".join(
        f"<figure><figcaption>{WHAT[p.which]}, {deep} blocks</figcaption>{p.overview()}</figure>"
        for p in plots
    )
    cards = "".join(_card(i, d, plots, deep) for i, d in enumerate(report.designs))
    shared = "".join(p.context() for p in plots)
    versions = ", ".join(f"{k} {v}" for k, v in report.versions.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Add &amp; Norm before training</title>
<style>{STYLE}</style>
</head>
<body>
<svg width="0" height="0" aria-hidden="true"><defs>{shared}</defs></svg>
<main>
<header>
<p class="kicker">addnorm schemes</p>
<h1>Add &amp; Norm before training</h1>
<p class="lead">How large the residual stream gets, how large the gradients are that come back along
it, and how both grow with depth: {len(report.designs)} ways to wire the same Transformer, measured
at initialization, before a single step.</p>
<p class="small">{escape(conditions(setup))}</p>
</header>
<h2>At a glance</h2>
<div class="pair">{overview}</div>
<h2>Growth with depth</h2>
<p>The mean square of the stream at its end, and the norm of the loss's gradient for the last MLP's
down weight, at {deep} blocks; and the power of the number of blocks L with which they grow: 0 is
flat, 1 grows like L, &minus;½ falls like 1/√L.</p>
{_table(report)}
<h2>Design by design</h2>
<p>One line for each number of blocks, labelled with it at its end; the shaded band spans the seeds
at {deep} blocks. Faint: all other designs. In the equations x is the stream, f a branch (attention
or MLP), N a norm.</p>
{cards}
<h2>Measure it again</h2>
<pre tabindex="0"><code>{escape(report.command)}</code></pre>
<p class="small">{escape(versions)}. All numbers, for every seed, are in schemes.json beside this
page. Initialization shows how signals start, not how training ends: a design that looks calm here
can still train worse.</p>
</main>
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
a:focus-visible,pre:focus-visible{outline:2px solid var(--line);outline-offset:2px}
.kicker{color:var(--muted);font:600 .9rem ui-monospace,monospace}
.lead{font-size:1.15rem}
.small,small,caption,.muted{color:var(--muted)}
.small,caption{font-size:.875rem}
small{font-size:.8125rem;font-weight:400}
strong{font-weight:600;color:var(--ink)}
code,.equation{font-family:ui-monospace,monospace;font-size:.875rem}
.equation{background:var(--code);padding:.35em .6em;border-radius:4px}
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
.others{fill:none;stroke:var(--others);stroke-width:1}
.one .lead{stroke:var(--rule)}
.hit{stroke:transparent;stroke-width:9}
.dot{fill:var(--line)}
.one:hover .line{stroke-width:3.5}
.one:hover .name{font-weight:700}
.pair svg:has(.one:hover) .one:not(:hover){opacity:.3}
.pair{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:28px}
table{border-collapse:collapse;width:100%;margin-top:12px;font-size:.9375rem}
caption{text-align:left;padding-bottom:8px}
th,td{text-align:left;padding:5px 10px 5px 0;border-bottom:1px solid var(--grid);
vertical-align:middle;font-weight:400}
thead th{vertical-align:bottom;font-weight:600;border-bottom-color:var(--rule)}
.num{text-align:right;padding-right:18px;font-variant-numeric:tabular-nums}
.slope{white-space:nowrap;font-variant-numeric:tabular-nums}
.slope svg,.slope span{display:inline-block;vertical-align:middle}
.slope svg{margin-right:10px}
.card{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1.2fr) minmax(0,1.2fr);gap:28px;
padding:22px 0;border-bottom:1px solid var(--grid);scroll-margin-top:8px}
.card:last-of-type{border:0}
.card:target h3{text-decoration:underline;text-decoration-thickness:3px}
@media (max-width:900px){
.card{grid-template-columns:repeat(2,minmax(0,1fr))}.card>div{grid-column:1/-1}
thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
table,tbody,tr,tbody th,td,caption{display:block}
tr{display:grid;grid-template-columns:auto 1fr;gap:0 14px;padding:12px 0;
border-bottom:1px solid var(--grid)}
tbody th{grid-column:1/-1;font-weight:600}
th,td{border:0;padding:3px 0}.num{text-align:left}
td::before{content:attr(data-head);display:block;color:var(--muted);font-size:.8125rem}
.slope{white-space:normal}
td:last-child{grid-column:1/-1}td:last-child::before{display:inline;margin-right:.8em}}
@media (max-width:640px){
main{padding:24px 16px 48px}.pair,.card{grid-template-columns:minmax(0,1fr)}.card{gap:14px}
h2{margin-top:1.8em}}
@media print{.card{break-inside:avoid}}
"""
