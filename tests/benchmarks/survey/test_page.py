"""The survey's figures are counted right."""

from typing import Any

from benchmarks.survey.page import figures, judgements
from benchmarks.survey.verdicts import Verdict


def line(name: str, state: str, severity: str = "", **more: Any) -> dict[str, Any]:
    finding = {"rule": "double-norm", "severity": severity, "module": "norm"}
    return {
        "name": name,
        "family": name.split()[0] + " some",
        "state": state,
        "seconds": 1.0,
        "questions": 40,
        "findings": [finding] if severity else [],
        "unknown": [],
    } | more


RESULTS = [
    line("a one", "linted", "error"),
    line("a two", "linted", "note", seconds=4.0, unknown=[{"rule": "x"}, {"rule": "x"}]),
    line("a three", "not built"),
    line("b four", "over 60 s"),
]


def test_a_row_for_each_library() -> None:
    rows = figures(RESULTS)[2:]
    assert rows == [
        "| a | 3 | 2 | 2 | 0 | 0 | 0 | 1 | 0 | 1.2% | 2.5 | 4.0 |",
        "| b | 1 | 1 | 0 | 0 | 0 | 1 | 0 | 0 | - | 0.0 | 0.0 |",
        "| all | 4 | 3 | 2 | 0 | 0 | 1 | 1 | 0 | 1.2% | 2.5 | 4.0 |",
    ]


def test_notes_need_no_judgement_and_the_rest_is_counted() -> None:
    assert judgements(RESULTS, [])[2:] == ["| error | `double-norm` | 0 | 0 | 0 | 1 |"]
    table = [Verdict("a *", "double-norm", "by design", "why")]
    assert judgements(RESULTS, table)[2:] == ["| error | `double-norm` | 0 | 1 | 0 | 0 |"]
