"""How much of some texts stands in others, counted in runs of five: words of a text, or letters.

A text is here a sequence of units, the letters of a string or a tuple of words; which they are, the
data set says.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

RUN = 5
"""Units of a run."""

NEAR = 0.5
"""The share of a text's runs from which on it is known already, if they are learned."""

Units = str | tuple[str, ...]
Row = TypeVar("Row")


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


# --- of the sides of a data set -------------------------------------------------------------------


def without_near(
    sides: Mapping[str, Sequence[Row]], units: Callable[[Row], Units]
) -> dict[str, list[Row]]:
    """The sides ``train``, ``val`` and ``test``, the last two without what is near to what is
    learned. ``units``: of a row those that are counted in runs."""
    learned = runs_of_all(map(units, sides["train"]))
    rest = {
        side: [row for row in sides[side] if shared(runs(units(row)), learned).share <= NEAR]
        for side in ("val", "test")
    }
    return {side: rest[side] if side in rest else list(rows) for side, rows in sides.items()}


def overlap(sides: Mapping[str, Sequence[Row]], units: Callable[[Row], Units]) -> list[str]:
    """Of ``val`` and ``test`` how much of their runs is learned, in words. ``units``: as above."""
    learned = runs_of_all(map(units, sides["train"]))
    lines = []
    for side in ("val", "test"):
        share = shared(runs_of_all(map(units, sides[side])), learned).share
        lines.append(f"{side}: {share:.1%} of its runs of five words are in train")
    return lines
