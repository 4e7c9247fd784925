"""A check: rules that are decided together, on the subject or on who notices a change in it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from addnorm.anatomy.arguments import NoSequence
from addnorm.anatomy.influence import Study, study
from addnorm.linting.report import Finding, Unknown
from addnorm.linting.subject import Subject

Said = Iterator[Finding | Unknown]


@dataclass(frozen=True)
class Check:
    """Some rules that are decided together."""

    rules: tuple[str, ...]
    run: Callable[[Subject], Said]


def decided(*rules: str) -> Callable[[Callable[[Study, Subject], Said]], Check]:
    """A rule on the study; where there can be no study, an Unknown for each of its names."""

    def wrap(rule: Callable[[Study, Subject], Said]) -> Check:
        def run(subject: Subject) -> Said:
            try:
                s = study(subject.specimen)
            except NoSequence as error:
                for name in rules:
                    yield Unknown(rule=name, module="", why=str(error))
                return
            yield from rule(s, subject)

        return Check(rules, run)

    return wrap
