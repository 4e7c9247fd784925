"""A check: rules that are decided together, on the subject or on who notices a change in it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

from addnorm.anatomy.arguments import NoSequence
from addnorm.anatomy.influence import Influence, influence_of
from addnorm.linting.report import Finding, Unknown
from addnorm.linting.subject import Subject

Said = Iterator[Finding | Unknown]


@final
@dataclass(frozen=True)
class Check:
    """Some rules that are decided together."""

    rules: tuple[str, ...]
    run: Callable[[Subject], Said]


def on_influence(*rules: str) -> Callable[[Callable[[Influence, Subject], Said]], Check]:
    """A rule on the influence of changes; if none can be made, an Unknown for each of its names."""

    def wrap(rule: Callable[[Influence, Subject], Said]) -> Check:
        def run(subject: Subject) -> Said:
            try:
                s = influence_of(subject.specimen)
            except NoSequence as error:
                for name in rules:
                    yield Unknown(rule=name, module="", why=str(error))
                return
            yield from rule(s, subject)

        return Check(rules, run)

    return wrap
