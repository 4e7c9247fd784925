"""Reports for other programs: annotations of GitHub, and SARIF."""

from pathlib import Path
from typing import Any

import pytest

from addnorm.cli.lint_formats import github_lines, sarif
from addnorm.linting import Finding, Ignore, IgnoredFinding, Report

FILE = Path(__file__)


def finding(**changes: Any) -> Finding:
    values = {
        "rule": "no-residual",
        "severity": "error",
        "module": "h.0",
        "evidence": {"count": 2},
        "message": "100 % of it: a, b\nand c.",
        "remedy": "Add it.",
        "file": str(FILE),
        "line": 12,
    }
    return Finding(**{**values, **changes})


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FILE.parent)


def test_annotations() -> None:
    report = Report((finding(), finding(severity="note", module="", file="", line=0)))
    assert github_lines(report, None) == [
        "::error file=test_lint_formats.py,line=12,title=addnorm%3A no-residual in h.0::"
        "100 %25 of it: a, b%0Aand c. Add it.",
        "::notice title=addnorm%3A no-residual in the model::100 %25 of it: a, b%0Aand c. Add it.",
    ]
    # what is torch's own is told at the file that was asked about
    (_, second) = github_lines(report, FILE.parent.parent / "a,b.py")
    name = str(FILE.parent.parent / "a,b.py").replace(",", "%2C")
    assert second.startswith(f"::notice file={name},line=1,title=")


def test_sarif() -> None:
    one = IgnoredFinding(
        finding(rule="double-norm"), Ignore(rule="double-norm", reason="r", where="m.py:3")
    )
    other = IgnoredFinding(finding(), Ignore(rule="no-residual", where="--ignore"))
    reports = [(Report((finding(),), ignored=(one, other)), None), (Report(), FILE)]
    log = sarif(reports)
    (run,) = log["runs"]
    assert log["version"] == "2.1.0"
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["no-residual", "double-norm"]
    assert all(rule["help"]["markdown"] for rule in run["tool"]["driver"]["rules"])
    first, second, third = run["results"]
    assert (first["ruleId"], first["level"]) == ("no-residual", "error")
    assert first["properties"] == {"evidence": {"count": 2}}
    (location,) = first["locations"]
    assert location == {
        "logicalLocations": [{"fullyQualifiedName": "h.0", "kind": "module"}],
        "physicalLocation": {
            "artifactLocation": {"uri": "test_lint_formats.py"},
            "region": {"startLine": 12},
        },
    }
    assert "suppressions" not in first
    assert second["suppressions"] == [{"kind": "inSource", "justification": "r"}]
    assert third["suppressions"] == [{"kind": "external"}]


def test_what_is_in_no_file_has_no_place() -> None:
    report = Report((finding(file="", line=0, module=""),))
    ((result,),) = (run["results"] for run in sarif([(report, None)])["runs"])
    assert result["locations"] == [
        {"logicalLocations": [{"fullyQualifiedName": ".", "kind": "module"}]}
    ]
