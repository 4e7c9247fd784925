"""The page of the designs: ``write(folder)`` makes schemes.html from the schemes.json beside it."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, final

from addnorm import disk, reading
from addnorm.pages.curves import Pixel
from addnorm.pages.look import document, figure
from addnorm.pages.numbers import as_float, number, slope, with_minus
from addnorm.pages.plot import Plot
from addnorm.pages.svg import Frame, drawable, evenly, extent, spread, trace
from addnorm.spread import Spread

NAME, NUMBERS = "schemes.html", "schemes.json"
WORDS = ("text", "label", "equations", "papers", "init", "note")
"""What schemes.json says of a design besides numbers, as it stands there."""


def write(folder: Path) -> Path:
    """Read the numbers in ``folder`` and write their page there; returns where."""
    page = folder / NAME
    disk.write_text(page, render(reading.json_object(folder / NUMBERS)))
    return page


# --- what is known --------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Design:
    """What is known of one design; numbers by what they measure and by the number of blocks."""

    text: str
    label: str
    equations: Sequence[str]
    papers: Sequence[str]
    init: str
    note: str
    curves: Mapping[str, Mapping[int, Sequence[Spread]]]
    values: Mapping[str, Mapping[int, Spread]]
    exponents: Mapping[str, Spread | None]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Design":
        """From an entry of "designs" in schemes.json, as ``lab.measurement`` writes it: nothing is
        checked."""
        return cls(
            **{name: entry[name] for name in WORDS},
            curves={
                which: {int(depth): _spreads_of(columns) for depth, columns in by_depth.items()}
                for which, by_depth in entry["curves"].items()
            },
            values={
                quantity: {int(depth): _spread_of(value) for depth, value in by_depth.items()}
                for quantity, by_depth in entry["values"].items()
            },
            exponents={
                quantity: None if value is None else _spread_of(value)
                for quantity, value in entry["exponents"].items()
            },
        )


def _spread_of(entry: Mapping[str, Any]) -> Spread:
    return Spread(*(as_float(entry[name]) for name in ("median", "low", "high")))


def _spreads_of(columns: Mapping[str, Sequence[Any]]) -> list[Spread]:
    rows = zip(columns["median"], columns["low"], columns["high"], strict=True)
    return [Spread(*map(as_float, row)) for row in rows]


# --- drawing --------------------------------------------------------------------------------------

ACROSS = [(0.0, "0"), (0.5, "depth"), (1.0, "L")]
WHAT = {"stream": "Residual RMS", "gradient": "Gradient RMS"}
LONG = {
    "stream": "root mean square of the residual stream",
    "gradient": "root mean square of the loss's gradient with respect to the stream",
}


@final
class Charts:
    """The charts of one quantity, ``which`` is "stream" or "gradient", all on the same scale."""

    def __init__(self, designs: Sequence[Design], depths: Sequence[int], which: str) -> None:
        self.designs, self.depths, self.which = designs, depths, which
        curves = [d.curves[which][depth] for d in designs for depth in depths]
        self.low, self.high = extent([v for c in curves for s in c for v in (s.low, s.high)])
        self.small = Frame(380, 210, 46, 44, self.low, self.high)
        self.large = Frame(450, 430, 46, 184, self.low, self.high)

    def _deep(self, design: Design) -> list[float]:
        return [s.median for s in design.curves[self.which][self.depths[-1]]]

    def context(self) -> str:
        """All designs at the largest depth, once for the page: what each panel stands before."""
        lines = "".join(trace(self.small, evenly(self._deep(d))) for d in self.designs)
        return f'<path id="all-{self.which}" d="{lines}"/>'

    def overview(self) -> str:
        """All designs at the largest depth, each labelled at its end."""
        plot = Plot(self.large)
        plot.axes(ACROSS)
        frame, right = self.large, self.large.x(1)
        ends = []
        for d in self.designs:
            visible = [v for v in self._deep(d) if drawable(v)]
            ends.append(frame.y(visible[-1]) if visible else frame.y(10.0**frame.low))
        places = spread(ends, 15, frame.top + 6, frame.floor)
        for d, end, place in zip(self.designs, ends, places, strict=True):
            label = d.label if len(d.label) <= 26 else d.label[:25] + "…"
            plot.add('<g class="one">')
            plot.line(evenly(self._deep(d)), "hit")
            plot.line(evenly(self._deep(d)))
            plot.add(
                f'<path class="lead" d="M{right:.1f} {end:.1f}l6 0L{right + 16:.1f} {place:.1f}"/>'
                f'<text class="name" x="{right + 19:.1f}" y="{place + 4:.1f}">{escape(label)}'
                "</text></g>"
            )
        designs = "; ".join(f"{d.label} {_ends(self._deep(d))}" for d in self.designs)
        words = f"{LONG[self.which]} at {self.depths[-1]} blocks, from entrance to end: {designs}."
        return plot.svg(words)

    def panel(self, design: Design) -> str:
        """One design at every depth, before all the others."""
        plot = Plot(self.small)
        curves = {depth: design.curves[self.which][depth] for depth in self.depths}
        plot.add(f'<use href="#all-{self.which}" class="others"/>')
        plot.axes(ACROSS)
        plot.band(_band(curves[self.depths[-1]]))
        medians = {depth: [s.median for s in curve] for depth, curve in curves.items()}
        for i, values in enumerate(medians.values()):
            plot.line(evenly(values), strength=0.4 + 0.6 * (i + 1) / len(curves))
        ends = [(plot.frame.y(v[-1]), i) for i, v in enumerate(medians.values()) if drawable(v[-1])]
        plot.beside(self._end_labels(ends), gap=12, indent=6, down=4)
        depths = "; ".join(f"{depth} blocks: {_ends(values)}" for depth, values in medians.items())
        words = f"{design.label}: {LONG[self.which]}, from entrance to end. {depths}."
        return plot.svg(words)

    def _end_labels(self, ends: Sequence[tuple[float, int]]) -> list[tuple[float, str]]:
        """(height, numbers of blocks) for the ends of lines, (height, which depth); one label for
        lines that end together."""
        groups: list[list[tuple[float, int]]] = []
        for end in sorted(ends):
            if groups and end[0] - groups[-1][-1][0] < 7:  # pixels: two labels would touch
                groups[-1].append(end)
            else:
                groups.append([end])
        labels = []
        for group in groups:
            which = sorted(i for _, i in group)
            run = len(which) > 1 and which == list(range(which[0], which[-1] + 1))
            blocks = [str(self.depths[i]) for i in which]
            text = f"{blocks[0]}–{blocks[-1]}" if run else " ".join(blocks)  # noqa: RUF001
            labels.append((sum(y for y, _ in group) / len(group), text))
        return labels


def _band(curve: Sequence[Spread]) -> list[Pixel]:
    """From the lowest to the highest seed at each place of a curve; [] where not all of it can be
    drawn."""
    if not all(drawable(v) for s in curve for v in (s.low, s.high)):
        return []
    shares = (share for share, _ in evenly([s.median for s in curve]))
    return [Pixel(share, s.low, s.high, s.median) for share, s in zip(shares, curve, strict=True)]


def _ends(values: Sequence[float]) -> str:
    """The first and the last value, in words."""
    return f"{number(values[0])} to {number(values[-1])}"


# --- the table ------------------------------------------------------------------------------------


@final
class Strip:
    """Exponents on a common scale, one small plot for each row of the table.

    ``exponents``: those of all rows, None where one is not defined. The scale holds them all and
    -0.5 to 0.5, but no more than -3 to 3: what explodes would flatten the rest.
    """

    WIDTH, HEIGHT = 120, 18

    def __init__(self, exponents: Sequence[Spread | None]) -> None:
        edges = [v for e in exponents if e is not None for v in (e.low, e.high)]
        self.low = max(-3.0, math.floor(2 * min([*edges, -0.5])) / 2)
        self.high = min(3.0, math.ceil(2 * max([*edges, 0.5])) / 2)

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
        """The numbers over the column, as SVG."""
        return self._svg(
            "".join(
                f'<text x="{self.x(m):.1f}" y="14" text-anchor="middle">'
                f"{with_minus(f'{m:g}')}</text>"
                for m in self._marks()
            )
        )

    def row(self, e: Spread | None) -> str:
        """The interval over the seeds and its median, as SVG; None: the scale alone."""
        body = [
            f'<path class="{"axis" if m == 0 else "grid"}" d="M{self.x(m):.1f} 0V{self.HEIGHT}"/>'
            for m in self._marks()
        ]
        if e is not None:
            body.append(f'<path class="line" d="M{self.x(e.low):.1f} 9H{self.x(e.high):.1f}"/>')
            body.append(f'<circle class="dot" cx="{self.x(e.median):.1f}" cy="9" r="4"/>')
        return self._svg("".join(body))


def _slope(e: Spread | None) -> str:
    """An exponent with its extremes over the seeds, as HTML."""
    if e is None:
        return '<span class="muted">not defined</span>'
    median, low, high = (with_minus(slope(v)) for v in (e.median, e.low, e.high))
    return f"<b>{median}</b> <small>{low} … {high}</small>"


def _table(designs: Sequence[Design], depths: Sequence[int]) -> str:
    """The table of all designs: values at the largest depth, and how they grow with depth."""
    deep = depths[-1]
    columns = {
        "stream_mean_square": ("Stream", "mean square"),
        "last_mlp_gradient": ("Gradient", "last MLP, norm"),
    }
    strips = {q: Strip([d.exponents[q] for d in designs]) for q in columns}
    heads = "".join(
        f'<th role="columnheader" scope="col" class="num">{title}<br><small>{what}'
        f'</small></th><th role="columnheader" scope="col"><small>grows as L to the</small><br>'
        f"{strips[q].scale()}</th>"
        for q, (title, what) in columns.items()
    )
    rows = []
    for i, d in enumerate(designs):
        cells = "".join(
            f'<td role="cell" class="num" data-head="{title}, {what}">'
            f"{number(d.values[q][deep].median)}</td>"
            f'<td role="cell" class="slope" data-head="grows as L to the">'
            f"{strips[q].row(d.exponents[q])}<span>{_slope(d.exponents[q])}</span></td>"
            for q, (title, what) in columns.items()
        )
        rows.append(
            f'<tr role="row"><th role="rowheader" scope="row"><a href="#design-{i}">'
            f"{escape(d.label)}</a></th>{cells}"
            f'<td role="cell" class="num" data-head="Gradient, first / last MLP">'
            f"{number(d.values['first_to_last'][deep].median)}</td></tr>"
        )
    blocks = ", ".join(map(str, depths))
    return (
        '<table role="table"><caption>Medians over the seeds, with the lowest and the highest. '
        f"Exponents are fitted over L = {blocks} blocks.</caption>"
        f'<thead role="rowgroup"><tr role="row"><th role="columnheader" scope="col">Design</th>'
        f'{heads}<th role="columnheader" scope="col" class="num">Gradient<br>'
        f'<small>first / last MLP</small></th></tr></thead><tbody role="rowgroup">'
        f"{''.join(rows)}</tbody></table>"
    )


# --- the page -------------------------------------------------------------------------------------


def _equation(text: str) -> str:
    """With an arrow."""
    return escape(text.replace("<-", "←"))


def _paper(text: str) -> str:
    """With the arXiv numbers as links."""
    link = r'<a href="https://arxiv.org/abs/\1">\1</a>'
    return re.sub(r"\b(\d{4}\.\d{4,5})\b", link, escape(text))


def _card(i: int, design: Design, charts: Sequence[Charts], deep: int) -> str:
    """The section of one design, the ``i``-th, to which the table links; ``deep`` is the largest
    depth."""
    equations = "".join(f'<p class="equation">{_equation(e)}</p>' for e in design.equations)
    papers = "".join(f"<p>{_paper(p)}</p>" for p in dict.fromkeys(design.papers))
    note = f"<p><strong>{escape(design.note)}</strong></p>" if design.note else ""
    name = "" if design.label == design.text else f"<p><code>{escape(design.text)}</code></p>"
    figures = "".join(figure(c.panel(design), WHAT[c.which]) for c in charts)
    return (
        f'<section class="card" id="design-{i}"><div><h3>{escape(design.label)}</h3>{name}'
        f'{equations}<div class="small">{papers}<p>Init at L = {deep}: {escape(design.init)}.</p>'
        f"{note}</div></div>{figures}</section>"
    )


def render(numbers: Mapping[str, Any]) -> str:
    """The page, as HTML; ``numbers`` are those of schemes.json, whole as ``lab.measurement`` writes
    them."""
    designs = [Design.of(entry) for entry in numbers["designs"]]
    depths = sorted(numbers["setup"]["depths"])
    deep = depths[-1]
    charts = [Charts(designs, depths, which) for which in WHAT]
    overview = "".join(figure(c.overview(), f"{WHAT[c.which]}, {deep} blocks") for c in charts)
    cards = "".join(_card(i, d, charts, deep) for i, d in enumerate(designs))
    shared = "".join(c.context() for c in charts)
    versions = ", ".join(f"{k} {v}" for k, v in numbers["versions"].items())
    body = f"""<svg width="0" height="0" aria-hidden="true"><defs>{shared}</defs></svg>
<main>
<header>
<p class="kicker">addnorm schemes</p>
<h1>Add &amp; Norm before training</h1>
<p class="lead">How large the residual stream gets, how large the gradients are that come back along
it, and how both grow with depth: {len(designs)} ways to wire the same Transformer, measured
at initialization, before a single step.</p>
<p class="small">{escape(numbers["model"])}</p>
</header>
<h2>At a glance</h2>
<div class="pair">{overview}</div>
<h2>Growth with depth</h2>
<p>The mean square of the stream at its end, and the norm of the loss's gradient for the last MLP's
down weight, at {deep} blocks; and the power of the number of blocks L with which they grow: 0 is
flat, 1 grows like L, &minus;½ falls like 1/√L.</p>
{_table(designs, depths)}
<h2>Design by design</h2>
<p>One line for each number of blocks, labelled with it at its end; the shaded band spans the seeds
at {deep} blocks. Faint: all other designs. In the equations x is the stream, f a branch (attention
or MLP), N a norm.</p>
{cards}
<h2>Measure it again</h2>
<pre tabindex="0"><code>{escape(numbers["command"])}</code></pre>
<p class="small">{escape(versions)}. All numbers, for every seed, are in schemes.json beside this
page. Initialization shows how signals start, not how training ends: a design that looks calm here
can still train worse.</p>
</main>"""
    return document("Add & Norm before training", body, STYLE)


STYLE = """
.equation{font-family:ui-monospace,monospace;font-size:.875rem;background:var(--code);
padding:.35em .6em;border-radius:4px}
.others{fill:none;stroke:var(--others);stroke-width:1}
.one .lead{stroke:var(--rule)}
.hit{stroke:transparent;stroke-width:9}
.one:hover .line{stroke-width:3.5}
.one:hover .name{font-weight:700}
.pair svg:has(.one:hover) .one:not(:hover){opacity:.3}
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
@media (max-width:640px){.card{grid-template-columns:minmax(0,1fr);gap:14px}}
@media print{.card{break-inside:avoid}}
"""
