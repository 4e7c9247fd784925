"""What the commands that ask a model have in common: how it searches its answers."""

from dataclasses import dataclass
from typing import Annotated, Any, final

from addnorm.cli.arguments import optional


@final
@dataclass(frozen=True)
class Search:
    """How a model that writes its answers looks for them."""

    beams: Annotated[int | None, optional("N")] = None
    """Translations: how many are kept while one is searched, 4 by default; 1 takes the next best
    token."""
    length_penalty: Annotated[float | None, optional("X")] = None
    """Translations: a log-probability is divided by the length to the power of X, 1 by default."""


@final
@dataclass(frozen=True)
class Spans:
    """How a model that finds its answers in a passage looks for them."""

    threshold: Annotated[float | None, optional("X")] = None
    """Answers in passages: one whose score is below X is not given, 0 by default; the score is by
    how much its logits are above those of no answer."""
    max_answer: Annotated[int | None, optional("N")] = None
    """Answers in passages: the most tokens that one has, 64 by default."""


def choices(**options: Any) -> dict[str, Any]:
    """Those of the options that somebody chose."""
    return {name: value for name, value in options.items() if value is not None}
