"""Phrases that many messages share: near names, a few of many, counts, an error in a line."""

import difflib
from collections.abc import Iterable

CUTOFF = 0.6
"""How alike a name must be to be offered, from 0 to 1: typing errors are nearly always above."""
NEAR = 3  # names that are offered at most
LONGEST_LINE = 200  # characters
LARGE, VAST = 1e3, 1e6  # where digits behind the point say nothing, and where none but three do


def near_names(name: object, names: Iterable[object], cutoff: float = CUTOFF) -> list[str]:
    """Those of the known names that may be meant, the nearest first; ``dim`` is also near
    ``model.dim``, whose last part it is."""
    texts = [str(n) for n in names]
    near = difflib.get_close_matches(str(name), texts, n=NEAR, cutoff=cutoff)
    return near + [n for n in texts if n.rpartition(".")[2] == name and n not in near]


def did_you_mean(name: object, names: Iterable[object], cutoff: float = CUTOFF) -> str:
    """``did you mean relu or silu?``, or nothing where no known name is near."""
    near = near_names(name, names, cutoff)
    return f"did you mean {' or '.join(near)}?" if near else ""


def a_few(items: Iterable[object], most: int = 3, between: str = ", ") -> str:
    """The first of them, and how many more there are: ``a, b, c and 4 more``."""
    texts = [str(item) for item in items]
    listed = between.join(texts[:most])
    return f"{listed} and {len(texts) - most:,} more" if len(texts) > most else listed


def plural(number: int, noun: str) -> str:
    """``1 token``, ``1,234 tokens``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def figure(value: float) -> str:
    """A measurement in digits: four behind the point, none behind it where it is large, as the
    perplexity of a model that has learned nothing is, or three in all."""
    if abs(value) < LARGE:
        return f"{value:.4f}"
    return f"{value:,.0f}" if abs(value) < VAST else f"{value:.3g}"


def first_line(text: str, longest: int = LONGEST_LINE) -> str:
    """The first line with something in it, cut; nothing of a text that has none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:longest]


def error_in_a_line(error: BaseException, longest: int = LONGEST_LINE) -> str:
    """``ValueError: what it says``, the first line of it, cut; only the type if it says nothing."""
    line = first_line(str(error), longest)
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
