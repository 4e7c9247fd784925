"""How many faults lint finds, and how often it cries wolf.

    make bench-lint                                  # everything
    python -m benchmarks.lint --seen --only gpt      # the seen faults with "gpt" in their names

A fault is found if its rule (or, where a fault says ``either``, one that names the mistake as well)
is among the findings of the faulty model and not among those of its correct twin. On correct
models, a finding counts as a false alarm unless the model really has that defect, which its
``known`` then says. "Unknown" is a miss on a fault.

Exit status 1 if a target is missed: recall of 95 % on the seen faults, at most 5 % unknown on
correct models, no false alarm that is an error. The recall on the unseen ones has no target.
"""

import argparse
import json
import logging
import multiprocessing
import os
import platform
import statistics
import sys
import textwrap
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from addnorm.words import a_few
from benchmarks.lint_hosts import FAMILIES, RULES, Case, Fault, Make, available, built

PAGE = Path(__file__).resolve().parent.parent / "docs" / "lint_measured.md"
SEEN = ("benchmarks.lint_faults", "benchmarks.lint_faults_more")
UNSEEN = "benchmarks.lint_faults_unseen"
RECALL, UNKNOWN = 0.95, 0.05
SEVERITIES = ("error", "warning", "note")
FOREIGN = ("hf_", "torch_", "x_")
ELSEWHERE = (
    "A set of faults and correct models was written elsewhere and not shown to the authors of the"
    " rules. On it, lint at commit 4a36125 found 79 % of 173 faults, and reported an error on 14 of"
    " 197 correct models (7 %). This is what to expect for a model that is new to lint, not the"
    " figures below."
)
FIRST_LOOK = (
    "Of 71 faults that nobody had looked at while the first rules were made, 58 were found at first"
    " sight (81.7 %); since then they count among the seen ones."
)


@dataclass(frozen=True)
class Outcome:
    """What lint said of one model."""

    kind: str  # "seen", "unseen" or "control"; a twin is a control
    name: str
    findings: tuple[tuple[str, str, str, str], ...]  # rule, severity, module, message
    unknown: tuple[tuple[str, str, str], ...]  # rule, module, why
    checked: tuple[str, ...]
    seconds: float
    crash: str = ""

    @property
    def rules(self) -> set[str]:
        """Those with a finding."""
        return {f[0] for f in self.findings}

    @property
    def undecided(self) -> set[str]:
        """Those that could not tell of some part of the model."""
        return {u[0] for u in self.unknown}


# --- running --------------------------------------------------------------------------------------


def main() -> None:
    """Run what was asked for; print it, write it, judge it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("seen", "unseen", "controls"):
        parser.add_argument(f"--{name}", action="store_true", help="only these (default: all)")
    parser.add_argument("--only", default="", help="only names that contain this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", action="store_true", help=f"write docs/{PAGE.name}")
    parser.add_argument("--json", type=Path, help="write every finding there")
    parser.add_argument("--lint", default="addnorm:lint", help="module:function, another lint")
    args = parser.parse_args()
    chosen = [k for k in ("seen", "unseen", "controls") if getattr(args, k)]
    chosen = chosen or ["seen", "unseen", "controls"]
    if args.write and (args.only or len(chosen) < 3):
        sys.exit("--write is for the whole benchmark: leave out --only and the choice")

    faults = {k: [f for f in _faults(k) if args.only in f.name] for k in ("seen", "unseen")}
    faults = {k: v if k in chosen else [] for k, v in faults.items()}
    controls = [c for c in _controls() if "controls" in chosen and args.only in c.name]
    if "unseen" not in chosen:  # nor are their hosts to be seen
        controls = [c for c in controls if getattr(c.make, "__module__", "") != UNSEEN]
    twins = {_twin(f.host) for v in faults.values() for f in v}
    tasks = [(k, f.name) for k, v in faults.items() for f in v]
    tasks += [("control", n) for n in sorted({c.name for c in controls} | twins)]
    if not tasks:
        sys.exit(f"nothing is called {args.only!r}")
    outcomes = _run(tasks, args.jobs, args.lint)

    result = judged(faults, [c.name for c in controls], outcomes)
    text = page(result)
    print(text)
    if args.json:
        details = {"result": result, "outcomes": [asdict(o) for o in outcomes.values()]}
        args.json.write_text(json.dumps(details, indent=1))
    for line in result["told"]:
        print(line, file=sys.stderr)
    if args.write:
        PAGE.write_text(text)
    for line in result["missed targets"]:
        print(f"target missed: {line}", file=sys.stderr)
    sys.exit(bool(result["missed targets"]))


def _faults(kind: str) -> list[Fault]:
    modules = SEEN if kind == "seen" else (UNSEEN,)
    return [fault for module in modules for fault in import_module(module).FAULTS]


def _controls() -> list[Any]:
    """The controls, the twins of all faults among them."""
    from benchmarks.lint_controls import CONTROLS, Control

    controls = list(CONTROLS)
    for module in (*SEEN[1:], UNSEEN):
        file = import_module(module)
        known: dict[str, dict[str, str]] = getattr(file, "KNOWN", {})
        for name, make in file.MORE_HOSTS.items():
            if available(name):
                controls.append(Control(_twin(name), make, known.get(name, {})))
    return controls


def _twin(host: str) -> str:
    return f"host {host}"


def _run(tasks: Sequence[tuple[str, str]], jobs: int, lint: str) -> dict[tuple[str, str], Outcome]:
    """Every task, in processes of one thread each."""
    context = multiprocessing.get_context("spawn")
    outcomes: dict[tuple[str, str], Outcome] = {}
    with Progress(transient=True) as progress:
        bar = progress.add_task("models", total=len(tasks))
        with ProcessPoolExecutor(jobs, context, _quiet) as pool:
            running = [pool.submit(_examined, kind, name, lint) for kind, name in tasks]
            for future in as_completed(running):
                outcome = future.result()
                outcomes[outcome.kind, outcome.name] = outcome
                progress.advance(bar)
    return outcomes


def _quiet() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def _make(kind: str, name: str) -> Make:
    entries: Iterable[Any] = _controls() if kind == "control" else _faults(kind)
    found: Make = next(e.make for e in entries if e.name == name)
    return found


def _examined(kind: str, name: str, lint: str) -> Outcome:
    """What lint says of one model; what it raises is told, and counts as having said nothing."""
    module, function = lint.split(":")
    call: Callable[..., Any] = getattr(import_module(module), function)
    case: Case = built(name, _make(kind, name))
    start = time.perf_counter()
    try:
        report = call(case.model, case.inputs, causal=case.causal, optimizer=case.optimizer)
    except Exception:
        return Outcome(kind, name, (), (), (), time.perf_counter() - start, traceback.format_exc())
    seconds = time.perf_counter() - start
    return Outcome(
        kind,
        name,
        tuple((f.rule, f.severity, f.module, f.message) for f in report.findings),
        tuple((u.rule, u.module, u.why) for u in report.unknown),
        tuple(report.checked),
        seconds,
    )


# --- judging --------------------------------------------------------------------------------------


def judged(
    faults: dict[str, list[Fault]],
    controls: Sequence[str],
    outcomes: dict[tuple[str, str], Outcome],
) -> dict[str, Any]:
    """All figures of the page, as plain data."""
    result: dict[str, Any] = {"recall": {}, "missed": [], "missed targets": [], "told": []}
    hosts = {f.host for some in faults.values() for f in some}
    result["hosts"] = len(hosts)
    result["foreign hosts"] = sum(h.startswith(FOREIGN) for h in hosts)
    result["seconds"] = sum(o.seconds for o in outcomes.values())
    for kind, some in faults.items():
        if not some:
            continue
        table: dict[str, Counter[str]] = {}
        for fault in some:
            mine = outcomes[kind, fault.name]
            twin = outcomes["control", _twin(fault.host)]
            right = {fault.rule, *(fault.also if fault.either else ())}
            found = bool(right & (mine.rules - twin.rules))
            unknown = not found and fault.rule in mine.undecided
            table.setdefault(fault.rule, Counter()).update(
                faults=1, found=int(found), unknown=int(unknown)
            )
            if not found:
                also = sorted(set(fault.also) & (mine.rules - twin.rules))
                why = "crash" if mine.crash else "unknown" if unknown else "silent"
                why = "the twin has it too" if fault.rule in mine.rules & twin.rules else why
                result["missed"].append([kind, fault.rule, fault.name, why, also])
                if kind == "seen":  # the unseen ones are to stay so
                    result["told"].append(f"missed: {fault.rule}: {fault.name} ({why}; {also})")
        result["recall"][kind] = {r: dict(table[r]) for r in RULES if r in table}
        recall = sum(t["found"] for t in table.values()) / len(some)
        if kind == "seen" and recall < RECALL:
            result["missed targets"].append(f"recall on {kind} faults {recall:.1%} < {RECALL:.0%}")
    result["controls"] = _judged_controls(controls, outcomes, result) if controls else None
    return result


def _judged_controls(
    names: Sequence[str], outcomes: dict[tuple[str, str], Outcome], result: dict[str, Any]
) -> dict[str, Any]:
    """False alarms, unknowns, crashes and seconds."""
    known = {c.name: dict(c.known) for c in _controls()}
    alarms: dict[str, dict[str, list[str]]] = {}
    true: list[tuple[str, str, str]] = []
    crashed = []
    undecided = asked = 0
    for name in names:
        outcome = outcomes["control", name]
        if outcome.crash:
            crashed.append(name)
            result["told"].append(f"crash: {name}: {outcome.crash.strip().splitlines()[-1]}")
        asked += len(outcome.checked)
        undecided += len(outcome.undecided & set(outcome.checked))
        gravest = {f[0]: f[1] for f in sorted(outcome.findings, key=_mildest_first)}
        for rule, severity in gravest.items():
            if rule in known[name]:
                true.append((name, rule, known[name][rule]))
            else:
                alarms.setdefault(rule, {s: [] for s in SEVERITIES})[severity].append(name)
    seconds = [outcomes["control", n].seconds for n in names]
    errors = sorted({n for rows in alarms.values() for n in rows["error"]})
    share = undecided / asked if asked else 1.0
    missed = result["missed targets"]
    if errors:
        missed.append(f"false alarms that are errors on {len(errors)} controls: {errors}")
    if share > UNKNOWN:
        missed.append(f"unknown on controls {share:.1%} > {UNKNOWN:.0%}")
    if crashed:
        missed.append(f"lint raised an exception on {crashed}")
    return {
        "count": len(names),
        "alarms": alarms,
        "with an alarm": {
            s: len({n for rows in alarms.values() for n in rows[s]}) for s in SEVERITIES
        },
        "true": true,
        "unknown": share,
        "asked": asked,
        "crashed": crashed,
        "median seconds": statistics.median(seconds),
        "worst seconds": max(seconds),
        "slowest": max(names, key=lambda n: outcomes["control", n].seconds),
    }


def _mildest_first(finding: tuple[str, str, str, str]) -> int:
    return -SEVERITIES.index(finding[1])


# --- the page -------------------------------------------------------------------------------------


def page(result: dict[str, Any]) -> str:
    """The measured figures as Markdown."""
    from addnorm import __version__

    recall = result["recall"]
    faults = sum(row["faults"] for table in recall.values() for row in table.values())
    correct = (result["controls"] or {}).get("count", 0)
    versions = f"torch {torch.__version__.split('+')[0]} and Python {platform.python_version()}"
    lines = [
        "# What lint finds, measured",
        "",
        *_paragraph(
            "Correct models are broken in one place each, and lint is asked what is wrong with"
            " them; then it is given correct models and asked the same. A fault counts as found if"
            " its rule is among the findings and not among those of the unbroken twin (for a few"
            " faults a second rule counts as well, which is declared with the fault); an answer of"
            ' "unknown" is a miss. A finding on a correct model counts as a false alarm, unless the'
            " model really has that defect."
        ),
        "## What was run",
        "",
        *_paragraph(
            f"{faults} faults in {result['hosts']} models, {result['foreign hosts']} of which come"
            f" with transformers, torch or x-transformers, and {correct} correct models, with"
            f" addnorm {__version__}, {versions}: {result['seconds']:.0f} seconds of lint on one"
            " thread. To run it again:"
        ),
        "```bash",
        "make bench-lint                              # everything, one process for each core",
        "python -m benchmarks.lint --write            # the same, and write this page",
        "python -m benchmarks.lint --seen --only gpt  # the seen faults with gpt in their names",
        "python -m benchmarks.lint --json all.json    # every finding",
        "```",
        "",
        *_paragraph(
            f"The targets are a recall of {RECALL:.0%} on the seen faults, at most {UNKNOWN:.0%}"
            " undecided on correct models, and no false alarm that is an error; the exit status"
            " says whether they are met. The faults are in `benchmarks/lint_faults*.py`, each as"
            " the correct code and the broken code that replaces it."
        ),
    ]
    lines += ["## On models from elsewhere", "", *_paragraph(ELSEWHERE)]
    alarms = (result["controls"] or {}).get("alarms", {})
    for kind, title in (("seen", "The seen faults"), ("unseen", "The unseen third")):
        if kind not in recall:
            continue
        total = Counter[str]()
        for row in recall[kind].values():
            total.update(row)
        lines += [
            f"## {title}",
            "",
            f"{total['found']} of {total['faults']} found: {_share(total)}.",
            "",
        ]
        if kind == "unseen":
            lines += [
                *_paragraph(
                    "Nobody looked at these while the rules were made, and none of their models is"
                    " among the others; but they were written in this project, for these rules. The"
                    " first run found 93 of 99 (93.9 %), with one false alarm that was an error"
                    " (docs/log.md); that alarm and one of the six missed faults have been looked"
                    " at since."
                ),
                "| family | faults | found | recall | unknown |",
                "|---|---:|---:|---:|---:|",
            ]
            for family, rules in FAMILIES.items():
                some = Counter[str]()
                for rule in rules:
                    some.update(recall[kind].get(rule, {}))
                if some["faults"]:
                    lines.append(f"| {family} {_cells(some)}")
        else:
            lines += [
                *_paragraph("These were known while the rules were made. " + FIRST_LOOK),
                "| rule | faults | found | recall | unknown |",
                "|---|---:|---:|---:|---:|",
            ]
            lines += [f"| `{rule}` {_cells(Counter(row))}" for rule, row in recall[kind].items()]
        lines.append("")
    if result["controls"]:
        lines += _control_lines(result["controls"], alarms)
    return "\n".join(lines).rstrip() + "\n"


def _paragraph(text: str) -> list[str]:
    return [*textwrap.wrap(text, 100), ""]


def _share(row: Counter[str]) -> str:
    return f"{row['found'] / row['faults']:.1%}"


def _cells(row: Counter[str]) -> str:
    return f"| {row['faults']} | {row['found']} | {_share(row)} | {row['unknown']} |"


def _control_lines(controls: dict[str, Any], alarms: dict[str, Any]) -> list[str]:
    some = controls["with an alarm"]
    lines = [
        "## Correct models",
        "",
        *_paragraph(
            f"{controls['count']} correct models, on which the rules were tuned: this is no"
            " estimate for other models. Models with a false alarm that is an error:"
            f" {some['error']}; a warning: {some['warning']}; a note: {some['note']}. Undecided:"
            f" {controls['unknown']:.1%} of {controls['asked']} questions (one rule asked of one"
            f" model). Seconds for a model, on one thread: median"
            f" {controls['median seconds']:.1f}, worst {controls['worst seconds']:.1f}"
            f" ({controls['slowest']})."
        ),
    ]
    if alarms:
        lines += [
            "| rule | models with an error | warning | note | which |",
            "|---|---:|---:|---:|---|",
        ]
        for rule in sorted(alarms):
            rows = alarms[rule]
            which = [n for s in SEVERITIES for n in rows[s]]
            counts = " | ".join(str(len(rows[s])) for s in SEVERITIES)
            lines.append(f"| `{rule}` | {counts} | {a_few(which, 4)} |")
        lines.append("")
    if controls["true"]:
        lines += ["Findings on these models that are true:", ""]
        lines += [f"- {name}, `{rule}`: {why}." for name, rule, why in controls["true"]]
        lines.append("")
    return lines


if __name__ == "__main__":
    main()
