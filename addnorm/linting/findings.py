"""What lint has to say: findings with their evidence, and what it could not decide."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, final

Severity = Literal["error", "warning", "note"]
"""It does not work as meant; it may not; its author should know."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
WHOLE = "lint"
"""In the place of a rule: that the model could not be examined at all."""
Evidence = Mapping[str, float | int | bool | str | Sequence[float | int | str]]


@final
@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, or that its author should know."""

    rule: str
    severity: Severity
    module: str
    """The path of the module concerned, as in ``named_modules``; "" is the model itself."""
    evidence: Evidence
    """What was measured, by name. Never empty: a finding without evidence is a guess."""
    message: str
    """What is wrong and what follows from it."""
    remedy: str
    """What to do."""
    file: str = ""
    """Where the forward of the module, or of the nearest one around it that is not torch's own, is
    written; "" where that is no file."""
    line: int = 0
    """Of that file, counted from 1."""

    def __post_init__(self) -> None:
        if not self.evidence:
            raise ValueError(f"{self.rule}: a finding without evidence is a guess")
        if self.severity not in SEVERITIES:
            raise ValueError(f"{self.rule}: severity {self.severity!r}")


@final
@dataclass(frozen=True, kw_only=True)
class Unknown:
    """What could not be decided, which is not the same as fine."""

    rule: str
    module: str
    why: str
    broke: bool = False
    """The rule could not be asked: the model fails where the rule runs it. False: it was, and what
    it saw does not decide."""


@final
@dataclass(frozen=True, kw_only=True)
class Ignore:
    """That findings of a rule are meant."""

    rule: str
    module: str = "*"
    """The paths of the modules for which it holds, with ``*`` for anything."""
    reason: str = ""
    where: str = ""
    """Who says so: a file with its line, or an option."""


@final
@dataclass(frozen=True)
class IgnoredFinding:
    """A finding that is meant, and by which word it is."""

    finding: Finding
    ignore: Ignore


@final
@dataclass(frozen=True)
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
        tuple(merged(findings)), tuple(unknown.values()), tuple(dict.fromkeys(checked)), facts
    )


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """The gravest first, and the same mistake in all layers of a stack once, by paths that differ
    in numbers alone."""
    groups: dict[tuple[str, str, str, str], list[Finding]] = {}
    for one in findings:
        layer = re.sub(r"\d+", "*", one.module)
        groups.setdefault((one.rule, one.severity, layer, one.remedy), []).append(one)
    each = [_one_of(group) for group in groups.values()]
    return sorted(each, key=lambda f: SEVERITIES.index(f.severity))


def _one_of(group: Sequence[Finding]) -> Finding:
    """The first finding of a group, with the other modules as the evidence ``also_in``, which no
    rule declares."""
    first = group[0]
    others = list(dict.fromkeys(f.module for f in group[1:] if f.module != first.module))
    if not others:
        return first
    return replace(first, evidence={**first.evidence, "also_in": others})
