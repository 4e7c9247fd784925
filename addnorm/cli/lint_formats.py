"""Reports of lint for other programs: annotations of GitHub, and SARIF.

SARIF 2.1.0 is https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html; the commands of a
GitHub workflow are https://docs.github.com/actions/reference/workflow-commands-for-github-actions.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from addnorm.linting.report_text import seen_from_here
from addnorm.version import __version__

if TYPE_CHECKING:
    from addnorm.linting import Finding, IgnoredFinding, Report

COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}
"""Severity -> what GitHub calls it."""
SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def github_lines(report: "Report", fallback: Path | None) -> list[str]:
    """An annotation for each finding. ``fallback``: the file to which those belong that are in no
    file of their own."""
    lines = []
    for finding in report.findings:
        file, line = _place(finding, fallback)
        title = f"{finding.rule} in {finding.module or 'the model'}"
        values = {"file": file, "line": line, "title": f"addnorm: {title}"} if file else {}
        values = values or {"title": f"addnorm: {title}"}
        head = ",".join(f"{k}={_escaped(str(v), ':,')}" for k, v in values.items())
        text = _escaped(f"{finding.message} {finding.remedy}")
        lines.append(f"::{COMMANDS[finding.severity]} {head}::{text}")
    return lines


def sarif(reports: Sequence[tuple["Report", Path | None]]) -> dict[str, Any]:
    """One log of the reports of several models, each with the fallback for what is in no file."""
    from addnorm.linting.check import rules_by_name

    rules = rules_by_name()
    results = [result for report, fallback in reports for result in _results(report, fallback)]
    names = list(dict.fromkeys(result["ruleId"] for result in results))
    driver = {
        "name": "addnorm",
        "version": __version__,
        "rules": [
            {
                "id": name,
                "shortDescription": {"text": rules[name].finds},
                "help": {"text": rules[name].page, "markdown": rules[name].page},
            }
            for name in names
        ],
    }
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _results(report: "Report", fallback: Path | None) -> Iterable[dict[str, Any]]:
    """Those of one report; what is ignored is suppressed."""
    for finding in report.findings:
        yield _result(finding, fallback)
    for one in report.ignored:
        yield {**_result(one.finding, fallback), "suppressions": [_suppression(one)]}


def _result(finding: "Finding", fallback: Path | None) -> dict[str, Any]:
    """One finding."""
    file, line = _place(finding, fallback)
    location: dict[str, Any] = {
        "logicalLocations": [{"fullyQualifiedName": finding.module or ".", "kind": "module"}]
    }
    if file:
        artifact = {"uri": Path(file).as_posix()}
        location["physicalLocation"] = {
            "artifactLocation": artifact,
            "region": {"startLine": line},
        }
    return {
        "ruleId": finding.rule,
        "level": finding.severity,
        "message": {"text": f"{finding.message} {finding.remedy}"},
        "locations": [location],
        "properties": {"evidence": dict(finding.evidence)},
    }


def _suppression(one: "IgnoredFinding") -> dict[str, str]:
    """Who means the finding: the code itself, or an option."""
    kind = "inSource" if ".py:" in one.ignore.where else "external"
    words = {"justification": one.ignore.reason} if one.ignore.reason else {}
    return {"kind": kind, **words}


def _place(finding: "Finding", fallback: Path | None) -> tuple[str, int]:
    """(file, line) of a finding, as one names it from here; ("", 0): it has none."""
    file, line = (finding.file, finding.line) if finding.file else (str(fallback or ""), 1)
    if not file:
        return "", 0
    return seen_from_here(str(Path(file).resolve())), line


def _escaped(text: str, more: str = "") -> str:
    """As a command of a workflow has it; ``more``: what a property's value may not have either."""
    for sign in "%\r\n" + more:
        text = text.replace(sign, f"%{ord(sign):02X}")
    return text
