"""A check: rules that are decided together, on the subject or on who notices a change in it; and
the register of all checks, from which all lists of rules come.

Most measurements decide several rules, so a check is a function with the rules that it decides
beside it, and not a method of one of them. To add one from anywhere, decorate it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import final

from torch.optim import Optimizer

from addnorm.anatomy.arguments import NoSequence
from addnorm.anatomy.influence import Influence, influence_of
from addnorm.errors import Mendable
from addnorm.linting.findings import Finding, Unknown
from addnorm.linting.rule import FAMILIES, Rule
from addnorm.linting.subject import Subject
from addnorm.words import near_names

Answers = Iterator[Finding | Unknown]
"""What a check yields: its findings, and what it could not decide; nothing where all is well."""


@final
@dataclass(frozen=True)
class Check:
    """Some rules that are decided together."""

    rules: tuple[Rule, ...]
    run: Callable[[Subject], Answers]
    """What it raises but for ``Undeclared`` counts as Unknown, for each of the rules."""
    asks_optimizer: bool = False
    """Where no optimizer is given, these rules are not asked at all."""

    @property
    def names(self) -> tuple[str, ...]:
        """Those of its rules."""
        return tuple(rule.name for rule in self.rules)


CHECKS: list[Check] = []
"""All checks, in the order in which they run."""


def decides(*rules: Rule) -> Callable[[Callable[[Subject], Answers]], Check]:
    """The check of these rules, by what is measured on the subject."""
    return lambda run: _registered(Check(rules, run))


def on_influence(*rules: Rule) -> Callable[[Callable[[Influence, Subject], Answers]], Check]:
    """The check of these rules, by the influence of changes; if none can be made, an Unknown for
    each of them."""

    def wrap(check: Callable[[Influence, Subject], Answers]) -> Check:
        def run(subject: Subject) -> Answers:
            try:
                s = influence_of(subject.specimen)
            except NoSequence as error:
                yield from (rule.unknown(str(error)) for rule in rules)
                return
            yield from check(s, subject)

        return _registered(Check(rules, run))

    return wrap


def on_optimizer(*rules: Rule) -> Callable[[Callable[[Optimizer, Subject], Answers]], Check]:
    """The check of these rules, by the optimizer that the model is to be trained with."""

    def wrap(check: Callable[[Optimizer, Subject], Answers]) -> Check:
        def run(subject: Subject) -> Answers:
            if subject.optimizer is not None:
                yield from check(subject.optimizer, subject)

        return _registered(Check(rules, run, asks_optimizer=True))

    return wrap


def _registered(check: Check) -> Check:
    """The check itself, which from now on is among ``CHECKS``; ValueError if the name of one of its
    rules is taken by another rule."""
    for rule in check.rules:
        other = rules_by_name().get(rule.name, rule)
        if other is not rule:
            raise ValueError(f"there is another rule that is called {rule.name}")
    CHECKS.append(check)
    return check


# --- all rules ------------------------------------------------------------------------------------


@final
class UnknownRule(Mendable):
    """There is no rule of that name; the message names the nearest ones."""


def rules_by_name() -> dict[str, Rule]:
    """Every rule that some check decides, family by family."""
    rules = dict.fromkeys(rule for check in CHECKS for rule in check.rules)
    families = dict.fromkeys([*FAMILIES, *(rule.family for rule in rules)])
    return {rule.name: rule for family in families for rule in rules if rule.family == family}


def rules_named(names: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of these names; an ``UnknownRule`` if there is none."""
    rules = rules_by_name()
    for name in names:
        if name not in rules:
            near = near_names(name, rules)
            near = near or [r for r in rules if set(r.split("-")) & set(name.split("-"))][:3]
            hint = f"did you mean {' or '.join(near)}?" if near else "see addnorm lint --rules"
            raise UnknownRule(f"unknown rule {name!r}; {hint}")
    return tuple(rules[name] for name in names)
