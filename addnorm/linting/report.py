"""A report: all findings of one lint, what could not be decided, and what is meant."""

import html
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, final

from addnorm.linting.findings import (
    NOTE,
    SEVERITIES,
    WHOLE,
    Finding,
    Ignore,
    IgnoredFinding,
    Severity,
    Unknown,
    without_repeats,
)
from addnorm.words import plural


@final
@dataclass(frozen=True, repr=False)
class Report:
    """All findings, the gravest first."""

    findings: tuple[Finding, ...] = ()
    unknown: tuple[Unknown, ...] = ()
    checked: tuple[str, ...] = ()
    """The rules that ran."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What was looked at: the model's class, its parameters, what was found in it, seconds."""
    ignored: tuple[IgnoredFinding, ...] = ()
    """The findings that somebody means. They do not count."""
    unused_ignores: tuple[Ignore, ...] = ()
    """Those whose rule ran and had nothing to ignore."""

    @property
    def ran(self) -> bool:
        """The model could be run, so that there is something to say of it."""
        return not any(u.rule == WHOLE for u in self.unknown)

    @property
    def ok(self) -> bool:
        """The model ran, and every rule on it; no finding is an error."""
        broken = any(u.broke for u in self.unknown)
        return self.ran and not broken and not self.of("error")

    def of(self, severity: Severity) -> list[Finding]:
        """The findings of one severity."""
        return [f for f in self.findings if f.severity == severity]

    def without(self, rules: Iterable[str]) -> "Report":
        """The report as if the rules of these names were not; ``facts`` stay as they are."""
        gone = set(rules)
        return replace(
            self,
            findings=tuple(f for f in self.findings if f.rule not in gone),
            unknown=tuple(u for u in self.unknown if u.rule not in gone),
            checked=tuple(r for r in self.checked if r not in gone),
        )

    def __str__(self) -> str:
        from addnorm.linting.report_text import print_report, terminal_console  # rich is slow

        out = io.StringIO()
        print_report(self, terminal_console(out), notes=f'report.of("{NOTE}")')
        return out.getvalue().rstrip("\n")

    def __repr__(self) -> str:
        """What is printed: a shell, pytest and a notebook without HTML show it."""
        return str(self)

    def _repr_html_(self) -> str:
        parts = [f"<b>{html.escape(str(self.facts.get('model', 'report')))}</b>: {self._count()}"]
        parts += [finding.to_html(summary=finding.severity == NOTE) for finding in self.findings]
        lines = [f"could not decide {u.rule}: {u.why}" for u in self.unknown]
        for one in self.ignored:
            place = one.finding.module or "the model"
            lines.append(f"ignored: {one.finding.rule} in {place}. {one.ignore.reason}")
        parts += [f"<div>{html.escape(line)}</div>" for line in lines]
        return "\n".join(parts)

    def _count(self) -> str:
        """How many findings there are of each severity."""
        if not self.ran:
            return "could not be examined"
        counts = [(len(self.of(severity)), severity) for severity in SEVERITIES]
        words = [plural(n, severity) for n, severity in counts if n]
        return f"{', '.join(words) or 'nothing found'} by {plural(len(self.checked), 'rule')}"

    def to_json(self) -> str:
        """All of it."""
        return json.dumps({"ok": self.ok, "ran": self.ran, **asdict(self)}, indent=2, default=str)


def gathered(
    said: Iterable[Finding | Unknown], checked: Iterable[str], facts: Mapping[str, Any]
) -> Report:
    """The report of what the rules said, of which those ``checked`` ran."""
    findings = []
    unknown: dict[tuple[str, str, str], Unknown] = {}
    for one in said:
        if isinstance(one, Finding):
            findings.append(one)
        else:
            unknown.setdefault((one.rule, one.module, one.why), one)
    return Report(
        tuple(without_repeats(findings)),
        tuple(unknown.values()),
        tuple(dict.fromkeys(checked)),
        facts,
    )
