"""A check: rules that are decided together, on the subject or on who notices a change in it.

Most measurements decide several rules, so a check is a function with the rules that it decides
beside it, and not a method of one of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

from addnorm.anatomy.arguments import NoSequence
from addnorm.anatomy.influence import Influence, influence_of
from addnorm.linting.report import Finding, Unknown
from addnorm.linting.rule import Rule
from addnorm.linting.subject import Subject

Answers = Iterator[Finding | Unknown]
Said = Answers


@final
@dataclass(frozen=True)
class Check:
    """Some rules that are decided together."""

    rules: tuple[str, ...]
    run: Callable[[Subject], Answers]


def decides(*rules: Rule) -> Callable[[Callable[[Subject], Answers]], Check]:
    """The check of these rules, by what is measured on the subject."""
    return lambda run: Check(tuple(rule.name for rule in rules), run)


def on_influence(
    *rules: Rule | str,
) -> Callable[[Callable[[Influence, Subject], Answers]], Check]:
    """The check of these rules, by the influence of changes; if none can be made, an Unknown for
    each of them."""
    names = tuple(rule if isinstance(rule, str) else rule.name for rule in rules)

    def wrap(check: Callable[[Influence, Subject], Answers]) -> Check:
        def run(subject: Subject) -> Answers:
            try:
                s = influence_of(subject.specimen)
            except NoSequence as error:
                for name in names:
                    yield Unknown(rule=name, module="", why=str(error))
                return
            yield from check(s, subject)

        return Check(names, run)

    return wrap
