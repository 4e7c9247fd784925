"""What ``addnorm lint`` prints at a terminal: a report, or where two models differ."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.text import Text

from addnorm.linting.findings import SEVERITIES, Finding, Ignore, IgnoredFinding, Unknown
from addnorm.words import a_few, plural

if TYPE_CHECKING:
    from addnorm.anatomy.difference_report import Difference

WIDTH = 100  # of what is printed, at most
NARROWEST = 40  # below that words would be cut, and a terminal wraps lines itself
GLUE = "\ue000"  # a blank at which no line is broken, until it is printed
LOUD = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
ITEMS = 4  # of a list in the evidence


def terminal_console(file: IO[str] | None = None) -> Console:
    """For lines as wide as the terminal, within limits; ``file``: where they go, if not there."""
    console = Console(file=file, highlight=False, markup=False, emoji=False)
    columns = shutil.get_terminal_size((WIDTH, 0)).columns  # COLUMNS counts in a pipe as well
    console.width = max(min(columns, WIDTH), NARROWEST)
    return console


class Printable(Protocol):
    """What is printed of a ``Report``."""

    @property
    def findings(self) -> Sequence[Finding]:
        """All of them, the gravest first."""

    @property
    def unknown(self) -> Sequence[Unknown]:
        """What could not be decided."""

    @property
    def checked(self) -> Sequence[str]:
        """The rules that ran."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was looked at."""

    @property
    def ignored(self) -> Sequence[IgnoredFinding]:
        """What is meant."""

    @property
    def unused_ignores(self) -> Sequence[Ignore]:
        """Those with nothing to ignore."""

    @property
    def ran(self) -> bool:
        """Whether the model could be run."""


def print_report(
    report: Printable, console: Console, *, remark: str = "", notes: bool | str = False
) -> None:
    """Print a report, for a reader who is tired and knows nothing of this program.

    ``remark``: what one must know of how the model came to be. ``notes``: whether notes are printed
    in full instead of a line each at the end, or how one gets to see them in full.
    """
    _print_wrapped(_header(report.facts, remark), console)
    if not report.ran:
        console.print()
        for one in report.unknown:
            _print_indented(Text(f"It could not be examined: {one.why}", style="bold red"), console)
        return
    folded = []
    consequences = _unused_by_cause(report.findings)
    inside = {id(f) for group in consequences.values() for f in group}
    for finding in report.findings:
        if id(finding) in inside:
            continue
        if finding.severity == "note" and notes is not True:
            folded.append(finding)
        else:
            console.print()
            _print_finding(finding, console, consequences.get(id(finding), ()))
    if folded:
        console.print()
        for finding in folded:
            console.print(_folded_line(finding), no_wrap=True, overflow="ellipsis")
        console.print(Text(f"      {notes or '--notes'} prints notes in full", style="dim"))
    if report.unknown:
        console.print()
        _print_unknown(report, console)
    if report.ignored or report.unused_ignores:
        console.print()
        _print_ignored(report, console)
    console.print()
    _print_wrapped(_verdict(report), console)


_CAUSES = ("dead-branch", "ignores-memory", "no-residual")
"""Rules whose errors leave parameters unused."""


def _modules(finding: Finding) -> list[str]:
    """The paths of all modules with this finding, see ``_OTHERS``."""
    others = next((finding.evidence[n] for n in _OTHERS if n in finding.evidence), ())
    return [finding.module, *(others if isinstance(others, list | tuple) else ())]


def _unused_by_cause(findings: Sequence[Finding]) -> dict[int, list[Finding]]:
    """{id of an error: warnings of unused parameters}, where the error is one of ``_CAUSES`` and
    all modules of the warning are its modules or inside them. A warning has one cause at most."""
    consequences: dict[int, list[Finding]] = {}
    causes = [f for f in findings if f.rule in _CAUSES and f.severity == "error" and f.module]
    for finding in findings:
        for cause in causes:
            if (finding.rule, finding.severity) == ("unused-parameter", "warning") and all(
                any(m == c or m.startswith(f"{c}.") for c in _modules(cause))
                for m in _modules(finding)
            ):
                consequences.setdefault(id(cause), []).append(finding)
                break
    return consequences


def _unused_clause(findings: Sequence[Finding]) -> str:
    """A clause, "and 2 parameters inside it are never read", to follow the message of an error.

    Counts the parameters of these findings, which are the warnings of ``unused-parameter`` that
    ``_unused_by_cause`` has for that error, once for every module with the finding: those that are
    never read, and those that are read and never trained.
    """
    phrases = []
    for read, what in ((False, "never read"), (True, "read and never trained")):
        count = 0
        for f in findings:
            names = f.evidence.get("parameters", ())
            if bool(f.evidence.get("read_by_the_forward")) is read and isinstance(names, list):
                count += len(names) * len(_modules(f))
        if count:
            phrases.append(
                f"{plural(count, 'parameter')} inside it {'is' if count == 1 else 'are'} {what}"
            )
    return "and " + ", ".join(phrases)


def _header(facts: Mapping[str, Any], remark: str) -> Text:
    """What was looked at, in a line; ``facts`` are those of a report of ``lint``, or of the kit of
    ``addnorm.testing``."""
    if "model" not in facts:
        return Text("; ".join(f"{name} {_short(value)}" for name, value in facts.items()))
    parts = [
        plural(facts["parameters"], "parameter"),
        plural(facts.get("residual_connections", 0), "residual connection"),
        plural(facts.get("attentions", 0), "attention"),
        plural(facts.get("norms", 0), "norm"),
    ]
    inputs = facts.get("inputs", {})
    source = "made-up inputs" if facts.get("inputs_made_up") else "inputs"
    shapes = ", ".join(
        f"{name + ' ' if not name.isdecimal() else ''}({f',{GLUE}'.join(map(str, shape))})"
        for name, shape in inputs.items()
    )
    duration = f"{facts['seconds']:.1f}s" + (f" on {source} {shapes}" if shapes else "")
    header = Text(str(facts["model"]), style="bold")
    header.append(f": {', '.join(parts)}; {duration}", style="not bold")
    if remark:
        header.append(f"\n{remark}", style="not bold")
    return header


def _title(finding: Finding) -> Text:
    """The first line of a finding: how severe it is, the rule, the place."""
    return Text.assemble(
        (f"{finding.severity:<9}", LOUD[finding.severity]),
        (finding.rule, "bold"),
        f"  {_place(finding)}",
    )


_OTHERS = ("also_in", "also")
"""Evidence that lists the other modules with the same finding: ``report.gathered`` writes the
first, ``rules.norm_cases.joined`` the second, with five of them and the number as ``modules``."""


def _place(finding: Finding) -> str:
    """The module, and how many others."""
    others = next((finding.evidence[n] for n in _OTHERS if n in finding.evidence), ())
    count = finding.evidence.get("modules")
    more = count - 1 if isinstance(count, int) else len(others) if others else 0  # type: ignore[arg-type]
    return (finding.module or "(the model)") + (f" and {more} more" if more else "")


def _print_finding(finding: Finding, console: Console, inside: Sequence[Finding] = ()) -> None:
    """Print a finding in full; ``inside`` are the unused parameters that it causes."""
    console.print(_title(finding), soft_wrap=False)
    evidence = "  ".join(
        f"{name}={_short(value)}" for name, value in finding.evidence.items() if name not in _OTHERS
    )
    _print_indented(Text(_sentence(finding)), console)
    _print_indented(Text(evidence, style="dim"), console, "seen")
    if inside:
        _print_indented(Text(_unused_clause(inside)), console)
    _print_indented(Text(finding.remedy, style="green"), console, "fix")


def _print_indented(text: Text, console: Console, label: str = "") -> None:
    """Print it wrapped, with its label to the left."""
    _print_beside(text, console, (f"  {label:<6}" if label else "  ", "dim"))


def _print_beside(text: Text, console: Console, start: tuple[str, str]) -> None:
    """Print it wrapped to the right of ``start``, (text, style), which is printed once."""
    head, style = start
    for line in text.wrap(console, console.width - len(head)):
        line.rstrip()
        console.print(Text.assemble((head, style), line))
        head = " " * len(head)


def _print_wrapped(text: Text, console: Console) -> None:
    """Print it wrapped, without blanks at the ends of lines; a GLUE in it becomes a blank."""
    for line in text.wrap(console, console.width):
        line.rstrip()
        line.plain = line.plain.replace(GLUE, " ")
        console.print(line)


def _folded_line(finding: Finding) -> Text:
    line = _title(finding)
    line.append(f"  {_sentence(finding)}", style="dim")
    return line


def _print_unknown(report: Printable, console: Console) -> None:
    """Print what could not be decided, a line for each reason."""
    console.print(Text("could not decide", style="bold magenta"))
    whys: dict[str, list[str]] = {}
    for unknown in report.unknown:
        where = f" ({unknown.module})" if unknown.module else ""
        whys.setdefault(unknown.why, []).append(unknown.rule + where)
    for why, rules in whys.items():
        line = Text(a_few(rules, 6))
        line.append(f": {why}", style="dim")
        _print_indented(line, console)


def _print_ignored(report: Printable, console: Console) -> None:
    """Print a line for each finding that is meant, and for each ignore that does nothing."""
    from addnorm.linting.check import rules_by_name

    for one in report.ignored:
        line = Text.assemble(("ignored  ", "dim"), one.finding.rule, f"  {_place(one.finding)}")
        line.append(f"  {_by_whom(one.ignore)}", style="dim")
        _print_wrapped(line, console)
    for ignore in report.unused_ignores:
        is_rule = ignore.rule in rules_by_name()
        why = "there is nothing to ignore: take it out" if is_rule else "there is no such rule"
        line = Text.assemble(("unused   ", "yellow"), f"ignore of {ignore.rule}")
        line.append(f"  {_by_whom(ignore)}; {why}", style="dim")
        _print_wrapped(line, console)


def _by_whom(ignore: Ignore) -> str:
    """Who ignores a rule, where, and why."""
    modules = f" for {ignore.module}" if ignore.module != "*" else ""
    reason = f": {ignore.reason}" if ignore.reason else ""
    return f"by {seen_from_here(ignore.where)}{modules}{reason}"


def seen_from_here(file: str) -> str:
    """A file as one names it in the current folder, if it is in there."""
    path, here = Path(file), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else file


def _verdict(report: Printable) -> Text:
    """How many findings there are of each severity, by how many rules, and where to read more."""
    from addnorm.linting.check import rules_by_name

    counts = [
        (severity, sum(f.severity == severity for f in report.findings)) for severity in SEVERITIES
    ]
    totals = [plural(n, severity) for severity, n in counts if n]
    ran = len(report.checked)
    undecided = len({u.rule for u in report.unknown})
    verdict = Text(style="bold")
    if totals:
        worst = next(severity for severity, n in counts if n)
        verdict.append(", ".join(totals), style=LOUD[worst])
        verdict.append(f" by {ran} rules")
    else:
        verdict.append(f"nothing found by {ran - undecided} rules", style="bold green")
    if undecided:
        verdict.append(f"; {plural(undecided, 'rule')} could not decide")
    if report.ignored:
        verdict.append(f"; {len(report.ignored)} ignored")
    rule = report.findings[0].rule if totals else ""
    if rule in rules_by_name():
        verdict.append(f"\naddnorm lint --explain {rule} says more", style="not bold dim")
    return verdict


def _sentence(finding: Finding) -> str:
    """The message, with a capital unless it begins with a module's name."""
    text = finding.message
    starts_with_name = bool(finding.module) and text.startswith(finding.module.split(".")[0])
    return text if starts_with_name else text[:1].upper() + text[1:]


def _short(value: Any) -> str:
    """A value of the evidence, short, as one writes it behind ``name=``."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        items = ",".join(_short(v) for v in value[:ITEMS])
        more = f",+{len(value) - ITEMS}" if len(value) > ITEMS else ""
        return f"[{items}{more}]"
    text = str(value)
    return f'"{text}"' if " " in text else text


def print_difference(difference: "Difference", a: str, b: str, console: Console) -> None:
    """Print where two models first differ, or that they do not. ``a``, ``b``: what the user called
    them."""
    console.print(Text(f"A  {a}\nB  {b}"))
    console.print()
    for label, text in difference.lines():
        _print_beside(Text(text), console, (f"{label:<10}", "bold"))
    console.print()
    style = "bold green" if difference.same else "bold red"
    _print_wrapped(Text(difference.verdict(), style=style), console)
