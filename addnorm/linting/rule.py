"""A rule: what it looks for, with what evidence, in which cases, and in which words.

A file of ``rules/`` is one rule or a family of rules, and reads like their pages: the words first,
then how the mistake is measured. Beside the words of a case stands how grave it is, and nowhere
else, so that this can be judged in one place; a measurement decides which case it is.

    SCALE = Rule(
        "attention-scale",
        "1/sqrt(d) is missing, doubled, misplaced or of the wrong width",
        family="Attention",
        evidence={"factor": "what q k^T is multiplied by", "width": "of one head"},
        cases={"unscaled": Case("error", "The logits are multiplied by {factor:.3g}, not by "
                                         "{right:.3g}.", "Divide by sqrt({width}).")},
    )

    @decides(SCALE)
    def scale(subject: Subject) -> Answers:
        ...
        yield SCALE("unscaled", path, factor=1.0, width=64, words={"right": 1 / 8})

The name of a rule is written once, so no finding can misspell it. A case that is not among the
rule's, evidence that it does not declare, and a word that is missing or not used in the sentence
raise an ``Undeclared``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, final

from addnorm.linting.findings import SEVERITIES, Finding, Severity, Unknown

PAGES = Path(__file__).parent / "pages"

FAMILIES = (
    "Norms by themselves",
    "The residual stream",
    "Branches",
    "Attention",
    "Who sees whom",
    "Parameters and their initialization",
    "The optimizer (give it to `lint`)",
)
"""In this order; families of other rules follow."""


@final
class Undeclared(Exception):
    """A check says what its rule does not declare: a mistake in the check, not in the model."""


@final
@dataclass(frozen=True)
class Case:
    """One way to make a mistake: how grave it is, what is wrong, and what to do.

    In both texts ``{name}``, with a format such as ``{name:.3g}``, stands for evidence of that
    name, for a word that the check adds, or, as ``{module}``, for the path of the module.
    """

    severity: Severity
    message: str
    remedy: str

    @property
    def blanks(self) -> set[str]:
        """The names that the texts have to be given."""
        pieces = (*Formatter().parse(self.message), *Formatter().parse(self.remedy))
        return {name for _, name, _, _ in pieces if name is not None}


@final
@dataclass(frozen=True, eq=False)
class Rule:
    """One kind of mistake, of which a model is asked whether it has it."""

    name: str
    finds: str
    """What it finds, in a line."""
    family: str
    """The rules with which it is listed; ``FAMILIES`` has ours."""
    evidence: Mapping[str, str]
    """The names of what is measured, each with what it is. One that ends in ``*`` stands for all
    that begin like it."""
    cases: Mapping[str, Case]

    def __post_init__(self) -> None:
        for case, words in self.cases.items():
            if words.severity not in SEVERITIES:
                raise Undeclared(f"{self.name}, {case!r}: severity {words.severity!r}")
        if {"module", "words"} & self.evidence.keys():
            raise Undeclared(f"{self.name}: evidence cannot be called module or words")

    def __call__(
        self, case: str, module: str, /, *, words: Mapping[str, Any] | None = None, **evidence: Any
    ) -> Finding:
        """The finding for the module at a path: this case, with the evidence and ``words`` filled
        in. Each word has to be in its sentences, and each blank filled; else an ``Undeclared``."""
        if case not in self.cases:
            raise Undeclared(f"{self.name}: {case!r} is none of its cases: {', '.join(self.cases)}")
        foreign = [key for key in evidence if not self.declares(key)]
        if foreign:
            raise Undeclared(f"{self.name}, {case!r}: it does not declare {', '.join(foreign)}")
        text, added = self.cases[case], words or {}
        unused = added.keys() - text.blanks
        if unused:
            raise Undeclared(f"{self.name}, {case!r}: no sentence has {', '.join(sorted(unused))}")
        values = {"module": module, **evidence, **added}
        try:
            message, remedy = text.message.format(**values), text.remedy.format(**values)
        except (LookupError, ValueError, TypeError) as error:
            raise Undeclared(f"{self.name}, {case!r}: {type(error).__name__}: {error}") from error
        return Finding(
            rule=self.name,
            severity=text.severity,
            module=module,
            evidence=evidence,
            message=message,
            remedy=remedy,
        )

    def unknown(self, why: str, module: str = "") -> Unknown:
        """It could not be decided, and why."""
        return Unknown(rule=self.name, module=module, why=why)

    def declares(self, key: str) -> bool:
        """Whether evidence may be called so."""
        stems = (name[:-1] for name in self.evidence if name.endswith("*"))
        return key in self.evidence or any(key.startswith(stem) for stem in stems)

    @property
    def page(self) -> str:
        """Its page, in Markdown: of our rules one that was written, of others what they declare."""
        path = PAGES / f"{self.name}.md"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        cases = [f"- {case.severity}: {case.message}" for case in self.cases.values()]
        return "\n".join([f"# {self.name}", "", f"It finds {self.finds}.", "", *cases, ""]) + (
            f"\n{self.evidence_table}\n"
        )

    @property
    def evidence_table(self) -> str:
        """What its evidence is called, in Markdown."""
        rows = [f"| `{name}` | {what} |" for name, what in self.evidence.items()]
        return "\n".join(["| evidence | is |", "|---|---|", *rows])

    @property
    def severities(self) -> tuple[Severity, ...]:
        """How grave it may be, the gravest first."""
        each = {case.severity for case in self.cases.values()}
        return tuple(severity for severity in SEVERITIES if severity in each)
