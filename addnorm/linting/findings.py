"""What lint has to say: findings with their evidence, and what it could not decide."""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

Severity = Literal["error", "warning", "note"]
"""It does not work as meant; it may not; its author should know."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
ERROR, WARNING, NOTE = SEVERITIES
COLORS = {ERROR: "#c0392b", WARNING: "#b9770e", NOTE: "#2874a6"}  # seen on white and on black
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

    def __str__(self) -> str:
        place = f" ({self.file}:{self.line})" if self.file else ""
        title = f"{self.severity}: {self.rule} in {self.module or 'the model'}{place}"
        return f"{title}\n  {self.message}\n  {self.remedy}"

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self, summary: bool = False) -> str:
        """As a notebook shows it; ``summary``: closed, with its message to be opened."""
        color = COLORS[self.severity]
        title = html.escape(f"{self.rule} in {self.module or 'the model'}")
        evidence = "  ".join(f"{name}={value}" for name, value in self.evidence.items())
        parts = [
            self.message,
            self.remedy,
            evidence,
            f"{self.file}:{self.line}" if self.file else "",
        ]
        texts = "".join(f"<div>{html.escape(part)}</div>" for part in parts if part)
        return (
            f'<details style="border-left:3px solid {color};padding-left:8px;margin:6px 0"'
            f"{'' if summary else ' open'}>"
            f'<summary><b style="color:{color}">{self.severity}</b> {title}</summary>{texts}'
            "</details>"
        )


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


def without_repeats(findings: Iterable[Finding]) -> list[Finding]:
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
