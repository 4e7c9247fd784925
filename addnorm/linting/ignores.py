"""Findings that somebody has looked at and means: each ignore with its reason.

An ignore stands in the code, inside of the class of the module concerned or of one around it,

    scale = 1.0  # addnorm: ignore[attention-scale] the query is normalized

or is given to ``lint``. What it left out is listed in the report, and so is an ignore that left
out nothing: the mistake is mended, or the name is wrong.
"""

import inspect
import linecache
import re
import tokenize
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import final

from torch import nn

from addnorm.linting.findings import Finding, Ignore, IgnoredFinding, Unknown, without_repeats
from addnorm.linting.places import is_of_a_user, modules_around

COMMENT = re.compile(r"#\s*addnorm:\s*ignore\[([^\]]*)\]\s*(.*)")


@final
@dataclass
class Ignores:
    """All ignores that hold for a model.

    ``model``: the user's own. ``wishes``: those that were given to ``lint``.
    """

    model: nn.Module
    wishes: Sequence[Ignore]
    _effective: set[Ignore] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        classes = {c for module in self.model.modules() for c in type(module).__mro__}
        self._by_class = {c: [*comments(c)] for c in classes if issubclass(c, nn.Module)}

    def sorted_out(
        self, answers: Iterable[Finding | Unknown]
    ) -> tuple[list[Finding | Unknown], list[IgnoredFinding]]:
        """(what is not ignored, what is)."""
        rest: list[Finding | Unknown] = []
        ignored: dict[Ignore, list[Finding]] = {}
        for answer in answers:
            ignore = self._of(answer)
            if ignore is None:
                rest.append(answer)
            elif isinstance(answer, Finding):
                ignored.setdefault(ignore, []).append(answer)
            else:
                ignored.setdefault(ignore, [])
        self._effective |= ignored.keys()
        return rest, [
            IgnoredFinding(f, i) for i, several in ignored.items() for f in without_repeats(several)
        ]

    def unused(self, checked: Collection[str], rules: Collection[str]) -> tuple[Ignore, ...]:
        """Those that left out nothing although their rule is among those ``checked``, and those
        whose rule is none of all ``rules``."""
        every = [*self.wishes, *(i for several in self._by_class.values() for i in several)]
        return tuple(
            i
            for i in dict.fromkeys(every)
            if i not in self._effective and (i.rule in checked or i.rule not in rules)
        )

    def _of(self, answer: Finding | Unknown) -> Ignore | None:
        """The first ignore that holds for an answer; one for some modules alone leaves what could
        not be decided."""
        for wish in self.wishes:
            if wish.rule != answer.rule:
                continue
            is_finding = isinstance(answer, Finding)
            if wish.module == "*" or (is_finding and fnmatchcase(answer.module, wish.module)):
                return wish
        if isinstance(answer, Finding):
            for module in modules_around(self.model, answer.module):
                for kind in type(module).__mro__:
                    for ignore in self._by_class.get(kind, ()):
                        if ignore.rule == answer.rule:
                            return ignore
        return None


def comments(kind: type) -> Iterator[Ignore]:
    """The ignores that stand as comments inside of a class."""
    try:
        file = inspect.getsourcefile(kind)
        if file is None or not is_of_a_user(file):
            return
        linecache.checkcache(file)  # it may have been written anew
        # to find where a class begins, Python parses its file: not where there is nothing to find
        if not any(map(COMMENT.search, linecache.getlines(file))):
            return
        lines, first = inspect.getsourcelines(kind)
    except (OSError, TypeError):  # made in a shell, or by C
        return
    remaining = iter(lines)
    try:
        tokens = [*tokenize.generate_tokens(lambda: next(remaining, ""))]
    except (tokenize.TokenError, IndentationError):
        return
    for token in tokens:
        match = COMMENT.match(token.string) if token.type == tokenize.COMMENT else None
        if match is not None:
            where = f"{file}:{first + token.start[0] - 1}"
            for rule in match[1].split(","):
                yield Ignore(rule=rule.strip(), reason=match[2].strip(), where=where)
