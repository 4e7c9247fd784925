"""The page of a run: ``write(folder)`` makes report.html from the run's other files.

It can be made again at any time, of a run that is going on, stopped or diverged: whatever is not
there yet is said not to be.
"""

import math
import signal
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from addnorm import disk
from addnorm.pages import run_pictures
from addnorm.pages.curves import Curve, evenly_chosen
from addnorm.pages.look import clean, document
from addnorm.pages.numbers import DASH, as_float, duration, exact, large, number
from addnorm.pages.run_advice import commands
from addnorm.pages.run_charts import metric_chart, rate_and_gradient, stream, throughput
from addnorm.pages.run_story import Story, as_count
from addnorm.words import plural

NAME = "report.html"
ROWS = 100  # of the table of evaluations
LINES, LETTERS, MOST = 10, 800, 4000  # of a sample: seen at once, at once, at all


def write(folder: Path) -> Path:
    """Read the run in ``folder`` and write its report there; returns where."""
    disk.write_text(folder / NAME, render(Story.read(folder)))
    return folder / NAME


# --- words ----------------------------------------------------------------------------------------


def as_text(value: object) -> str:
    """A setting's value as one would type it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


TITLES = {
    "val_loss": "held-out loss",
    "accuracy": "held-out accuracy",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
}


def _title(metric: str) -> str:
    return TITLES.get(metric, f"held-out {metric}")


def _subject_clause(story: Story) -> str:
    """What is trained, on what, as text that begins a sentence: "A model of 4 layers ..., on
    my.txt"."""
    c = story.config
    words = str(story.state.get("noun", "A model"))
    if c.get("init_from"):
        words += f" that began as {c['init_from']}"
    elif "model.n_layers" in c:
        words += f" of {c['model.n_layers']} layers and width {c.get('model.dim')}"
        if "model.scheme" in c:
            words += f", Add & Norm as {c['model.scheme']}"
        if "model.cell" in c:
            words += f", {c['model.cell']}"
    data = str(c.get("data") or "")
    name = data if data.startswith("hf:") else Path(data).name  # the settings tell the whole path
    return words + (f", on {name}" if name else "")


def _outcome_clause(story: Story) -> str:
    """How it ended, or how far it is, as text: "finished after 500 steps"."""
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
    """The figures that one looks for first, as HTML: best and last metric, how much was seen, in
    what time."""
    state, train, evaluations = story.state, story.train, story.evaluations
    metric = story.metric
    points = evaluations.points(metric)
    facts: list[tuple[str, str, str]] = []
    best = as_float(state.get("best"))
    if math.isfinite(best):
        facts.append((f"best {_title(metric)}", exact(best), _where_best(story, best)))
    if points:
        step, value = points[-1]
        whole = evaluations.records[-1].get("whole") is True
        facts.append(
            (
                f"last {_title(metric)}",
                exact(value),
                f"step {step:,}" + (", on all that is held out" if whole else ""),
            )
        )
    else:
        facts.append((_title(metric), DASH, "no evaluation yet"))
    bits = evaluations.points("bits_per_byte")
    if bits:
        facts.append(("bits per byte", exact(bits[-1][1]), _compressors(state.get("compressed"))))
    counts = [as_float(state.get("tokens")), *train.values("tokens")[-1:]]
    tokens = max((c for c in counts if math.isfinite(c)), default=0.0)
    facts.append(
        (f"{story.unit} seen", large(tokens), f"{tokens:,.0f} in {plural(story.step, 'step')}")
    )
    times = [as_float(state.get("elapsed_s")), *train.values("elapsed_s")[-1:]]
    finite = [t for t in times if math.isfinite(t)]
    facts.append(("time", duration(max(finite, default=math.nan)), "evaluations included"))
    speeds = Curve(train.points("tokens_per_s"), story.step).values
    if speeds:
        facts.append((f"{story.unit}/s", number(statistics.median(speeds)), "median of the steps"))
    cells = (
        f"<div><dt>{clean(name)}</dt><dd>{value}</dd><dd class='small'>{clean(about)}</dd></div>"
        for name, value, about in facts
    )
    return f'<dl class="facts">{"".join(cells)}</dl>'


def _where_best(story: Story, best: float) -> str:
    """The step of the best value, in words; "" if no record has it. An evaluation of everything is
    not compared: what is, at that step too, is the part that all evaluations see."""
    for record in story.evaluations.records:
        if record.get(story.metric) == best:
            return f"step {record['step']:,}"
    whole = [r["step"] for r in story.evaluations.records if r.get("whole") is True]
    return f"step {whole[-1]:,}, on what every evaluation sees" if whole else ""


def _compressors(compressed: object) -> str:
    """The bits per byte that general compressors need for the same bytes, by their names, from
    ``compressed`` in run.json."""
    if not isinstance(compressed, dict) or not compressed:
        return "on all that is held out"
    return ", ".join(f"{name}: {exact(as_float(bits))}" for name, bits in compressed.items())


def _curves(story: Story) -> str:
    """The charts of loss and metric over the steps, and the table of evaluations, as HTML."""
    if not story.records:
        return "<p>There are no steps yet.</p>"
    parts = [metric_chart(story, "val_loss", "loss", "Loss")]
    if story.metric != "val_loss":
        title = _title(story.metric)
        title = title[:1].upper() + title[1:]
        parts.append(metric_chart(story, story.metric, story.metric, title))
    return "".join(parts) + _evaluations(story)


def _evaluations(story: Story) -> str:
    """A folded table of the evaluations, ``ROWS`` of them at most; "" where there is none."""
    names, records = story.metrics, story.evaluations.records
    if not records or not names:
        return ""
    heads = "".join(f'<th scope="col" class="num">{clean(_title(n))}</th>' for n in names)
    rows = []
    for r in evenly_chosen(records, ROWS):
        cells = "".join(
            f'<td class="num">{exact(as_float(r[n])) if n in r else ""}</td>' for n in names
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


def _output(story: Story) -> str:
    """What the model wrote, and what its task shows of its answers, each with its heading, as
    HTML."""
    step, content = story.pictures
    tables = run_pictures.pictures(content)
    parts = [f"<h2>Answers after step {step:,}</h2>{tables}"] if tables else []
    if story.samples or not tables:
        parts.append(f"<h2>What it wrote</h2>{_samples(story)}")
    return "".join(parts)


def _samples(story: Story) -> str:
    """Samples of the first and the last evaluation, side by side, as HTML."""
    if not story.samples:
        return "<p>There are no samples yet.</p>"
    ends = [story.samples[0], *story.samples[1:][-1:]]
    columns = []
    for step, texts in ends:
        blocks = "".join(map(_sample, texts)) or "<p>Nothing.</p>"
        columns.append(f"<div><h3>Step {step:,}</h3>{blocks}</div>")
    return f'<div class="pair">{"".join(columns)}</div>'


def _sample(text: str) -> str:
    """A sample as HTML: its beginning, and more of it, up to ``MOST`` letters, on demand."""
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
    """The tables of every setting, as HTML: those that were chosen first, those at the default
    folded."""
    config = story.config
    if not config:
        return "<p>There are no settings yet.</p>"
    defaults = story.defaults
    if not defaults:
        rows = [(key, as_text(value)) for key, value in config.items()]
        return _table(f"{plural(len(rows), 'setting')}.", ("Setting", "Value"), rows)
    mine = [k for k in config if k not in defaults or config[k] != defaults[k]]
    rest = [k for k in config if k not in mine]
    parts = [
        _table(
            f"{plural(len(mine), 'setting')} not at the default.",
            ("Setting", "Value", "Default"),
            [
                (k, as_text(config[k]), as_text(defaults[k]) if k in defaults else DASH)
                for k in mine
            ],
        )
    ]
    if rest:
        count = f"{plural(len(rest), 'setting')} at the default"
        table = _table(count + ".", ("Setting", "Value"), [(k, as_text(config[k])) for k in rest])
        parts.append(f"<details><summary>{count}</summary>{table}</details>")
    return "".join(parts)


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of code, as HTML: the first cell of a row is its head. ``heads`` are HTML already,
    all else any text."""
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
    """What the run ran on, by the keys of run.json that ``ENVIRONMENT`` has."""
    rows = [(name, as_text(story.state[k])) for k, name in ENVIRONMENT.items() if k in story.state]
    if not rows:
        return "<p>There is no run.json yet, or it cannot be read.</p>"
    return _table("What the run ran on.", ("What", "Is"), rows)


def render(story: Story) -> str:
    """The page of a run, as HTML."""
    failure = ""
    if story.failure and story.failure not in signal.Signals.__members__:
        failure = f'<p class="failure">{clean(story.failure)}</p>'
    mishaps = []
    skipped = sum(r.get("skipped") is True for r in story.train.records)
    skipped = max(skipped, as_count(story.state.get("skipped")) or 0)
    if skipped:
        mishaps.append(f"{plural(skipped, 'step')} left out")
    if rollbacks := as_count(story.state.get("rollbacks")):
        mishaps.append(f"{plural(rollbacks, 'time')} back to a checkpoint")
    lead = f"{_subject_clause(story)}: {_outcome_clause(story)}" + "".join(
        f"; {what}" for what in mishaps
    )
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
{rate_and_gradient(story)}
<h2>The residual stream</h2>
{stream(story)}
<h2>Throughput</h2>
{throughput(story)}
{_output(story)}
<h2>Settings</h2>
{_settings(story)}
<h2>Environment</h2>
{_environment(story)}
<h2>Going on</h2>
{commands(story)}
<p class="small">All numbers are in metrics.jsonl beside this page, the samples in samples.jsonl,
the settings in config.toml.</p>
</main>"""
    return document(story.name, body, STYLE + run_pictures.STYLE)


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
