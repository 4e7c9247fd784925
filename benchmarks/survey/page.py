"""The figures of a third, as Markdown."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.survey.verdicts import Verdict, verdict_of


def figures(results: Sequence[dict[str, Any]]) -> list[str]:
    """What became of the architectures, a row for each library."""
    libraries = dict.fromkeys(result["family"].split()[0] for result in results)
    head = (
        "| library | architectures | built | linted | no inputs | crash | over time | an error"
        " | a warning | unknown answers | median s | worst s |"
    )
    lines = [head, "|---|" + "---:|" * 11]
    for library in (*libraries, "all"):
        of_it = [r for r in results if library in ("all", r["family"].split()[0])]
        lines.append("| " + " | ".join(map(str, (library, *_cells(of_it)))) + " |")
    return lines


def _cells(results: Sequence[dict[str, Any]]) -> Iterable[object]:
    states = Counter(result["state"] for result in results)
    linted = [result for result in results if result["state"] == "linted"]
    yield len(results)
    yield len(results) - states["not built"]
    yield len(linted)
    yield states["no inputs"]
    yield states["crash"] + states["killed"]
    yield sum(count for state, count in states.items() if state.startswith("over"))
    for severity in ("error", "warning"):
        yield sum(any(f["severity"] == severity for f in r["findings"]) for r in linted)
    undecided = sum(len({u["rule"] for u in r["unknown"]}) for r in linted)
    questions = sum(r["questions"] for r in linted)
    yield f"{undecided / questions:.1%}" if questions else "-"
    seconds = [r["seconds"] for r in linted] or [0.0]
    yield f"{statistics.median(seconds):.1f}"
    yield f"{max(seconds):.1f}"


def judgements(results: Sequence[dict[str, Any]], table: Sequence[Verdict]) -> list[str]:
    """Architectures with an error or a warning, by rule and by what was judged of it."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for result in results:
        pairs = {
            (f["severity"], f["rule"], _judged(table, result["name"], f)) for f in _grave(result)
        }
        for severity, rule, judgement in pairs:
            counts.setdefault((severity, rule), Counter())[judgement] += 1
    columns = ("true", "by design", "false", "no verdict")
    lines = ["| | rule | " + " | ".join(columns) + " |", "|---|---|" + "---:|" * len(columns)]
    for (severity, rule), row in sorted(counts.items()):
        cells = " | ".join(str(row[column]) for column in columns)
        lines.append(f"| {severity} | `{rule}` | {cells} |")
    return lines


def _grave(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [f for f in result["findings"] if f["severity"] != "note"]


def _judged(table: Sequence[Verdict], name: str, finding: dict[str, Any]) -> str:
    verdict = verdict_of(table, name, finding)
    return verdict.judgement if verdict is not None else "no verdict"
