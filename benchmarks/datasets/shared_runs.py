"""How much of some texts stands in others, counted in runs of five: words of a text, or letters.

A text is here a sequence of units, the letters of a string or a tuple of words; which they are, the
data set says.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

RUN = 5
"""Units of a run."""

Units = str | tuple[str, ...]


class Shared(NamedTuple):
    """How many different runs there are in both, and how many there ``every`` are."""

    both: int
    every: int

    @property
    def share(self) -> float:
        """Those in both, 0 to 1."""
        return self.both / max(self.every, 1)


def words(text: str) -> tuple[str, ...]:
    """The words alone, in lower case."""
    return tuple(re.findall(r"\w+", text.lower()))


def letters(text: str) -> str:
    """The letters and digits alone, in lower case."""
    return re.sub(r"[\W_]+", "", text.lower())


def runs(text: Units) -> set[Any]:
    """The different runs of a text; none, if it has fewer than five units."""
    return {text[i : i + RUN] for i in range(len(text) - RUN + 1)}


def runs_of_all(texts: Iterable[Units]) -> set[Any]:
    """The different runs of several texts; none goes over the end of a text."""
    return set().union(*map(runs, texts))


def shared(some: set[Any], others: set[Any]) -> Shared:
    """Of ``some`` runs those that ``others`` have too."""
    return Shared(len(some & others), len(some))
