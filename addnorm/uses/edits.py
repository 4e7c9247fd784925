"""How far one sequence is from another: the fewest insertions, deletions and replacements."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def edits(a: Sequence[Any], b: Sequence[Any]) -> int:
    """The items to insert, to leave out and to replace that make one sequence of the other
    (Levenshtein 1966); a text is a sequence of its characters."""
    numbers = {item: i for i, item in enumerate(dict.fromkeys([*a, *b]))}
    other = np.array([numbers[item] for item in b], np.int64)
    places = np.arange(len(b) + 1)
    row = places
    for n, item in enumerate(a, 1):
        replaced = np.minimum(row[:-1] + (other != numbers[item]), row[1:] + 1)
        row = np.concatenate([[n], replaced])
        row = np.minimum.accumulate(row - places) + places  # what is inserted
    return int(row[-1])
