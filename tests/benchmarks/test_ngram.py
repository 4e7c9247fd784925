"""n-grams beside what others make of the same rows: nltk, and a count that is slow and plain."""

import math
import random
from collections.abc import Sequence

import pytest
from nltk.lm import KneserNeyInterpolated
from nltk.util import everygrams

from benchmarks.ngram import FALLBACK, START, NGrams, adjusted_counts, discounts_of

VOCABULARY = 9  # ids 7 and 8 are in no row


@pytest.fixture(scope="module")
def rows() -> list[list[int]]:
    """Some tokens often follow their predecessor; the last row is one token."""
    rng = random.Random(0)
    rows = [[rng.randrange(7)] for _ in range(31)]
    for row in rows[:-1]:
        for _ in range(rng.randrange(1, 25)):
            row.append((row[-1] + 1) % 7 if rng.random() < 0.6 else rng.randrange(7))
    return rows


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one(rows: list[list[int]], order: int) -> None:
    model = NGrams(rows, VOCABULARY, order)
    contexts = [[], [3], [0, 1, 2, 3, 4], [7], [1, 8], rows[0], rows[1] + rows[2], [6, 1, 6, 1, 6]]
    for before in contexts:
        every = [model.probability(token, before) for token in range(VOCABULARY)]
        assert sum(every) == pytest.approx(1.0, abs=1e-12)
        assert min(every) > 0
        assert every[7] == every[8]


class Slow:
    """The same from the definitions, read off all rows anew for each n-gram."""

    def __init__(self, rows: Sequence[Sequence[int]], order: int) -> None:
        self.rows, self.order = [(START, *row) for row in rows], order
        self.discounts = [self.three(length) for length in range(1, order + 1)]

    def adjusted(self, gram: tuple[int, ...]) -> int:
        n = len(gram)
        where = [
            (r, i)
            for r, row in enumerate(self.rows)
            for i in range(len(row))
            if row[i : i + n] == gram
        ]
        if n == self.order or gram[0] == START:
            return len(where)
        return len({self.rows[r][i - 1] for r, i in where})

    def three(self, length: int) -> Sequence[float]:
        starts = {row[i : i + length] for row in self.rows for i in range(len(row) - length + 1)}
        counts = [self.adjusted(gram) for gram in starts if gram != (START,)]
        n = [counts.count(k) for k in range(5)]
        if 0 in n[1:]:
            return FALLBACK
        y = n[1] / (n[1] + 2 * n[2])
        three = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
        return three if all(0 <= d <= k for k, d in enumerate(three, 1)) else FALLBACK

    def probability(self, token: int, context: tuple[int, ...]) -> float:
        lower = self.probability(token, context[1:]) if context else 1 / VOCABULARY
        counts = [self.adjusted((*context, v)) for v in range(VOCABULARY)]
        if not any(counts):
            return lower
        less = [self.discounts[len(context)][min(c, 3) - 1] if c else 0.0 for c in counts]
        return (counts[token] - less[token] + sum(less) * lower) / sum(counts)


def test_as_a_slow_count_has_it(rows: list[list[int]]) -> None:
    own = 0
    for order in (1, 2, 3):
        model, plain = NGrams(rows, VOCABULARY, order), Slow(rows, order)
        for expected, discounts in zip(plain.discounts, model.discounts, strict=True):
            assert discounts == pytest.approx(tuple(expected), rel=1e-12)
        own += sum(discounts != FALLBACK for discounts in model.discounts)
        for before in ([], [3], [2, 3], [3, 2, 3], [8]):
            context = (START, *before)[max(len(before) + 2 - order, 0) :]
            for token in (0, 4, 7):
                expected = plain.probability(token, context)
                assert model.probability(token, before) == pytest.approx(expected, rel=1e-12)
    assert own, "some have the discounts of the rows"


def test_with_one_discount_it_is_nltks(rows: list[list[int]]) -> None:
    """Which has none for single tokens, and counts the start of a row as any other token: so where
    all of its context lies in the row, or begins with it, both are alike."""
    words = [["start", *map(str, row)] for row in rows]
    theirs = KneserNeyInterpolated(3, discount=0.4)
    names = ["start", *map(str, range(VOCABULARY))]
    theirs.fit([everygrams(row, max_len=3) for row in words], names)
    one = (0.4, 0.4, 0.4)
    ours = NGrams(rows, VOCABULARY, 3, [(0.0, 0.0, 0.0), one, one])
    for before in ([3], [2, 3], [3, 6], [5, 0, 1, 2], [1, 5]):
        context = ("start", *map(str, before))[-2:]
        for token in range(7):
            expected = theirs.unmasked_score(str(token), context)
            assert ours.probability(token, before) == pytest.approx(expected, rel=1e-12)


def test_the_nats_of_some_places(rows: list[list[int]]) -> None:
    model = NGrams(rows, VOCABULARY)
    row = [1, 2, 3, 8, 5, 6, 0, 1]
    expected = -sum(math.log(model.probability(row[i], row[:i])) for i in (0, 2, 7))
    assert model.nats(row, [0, 2, 7]) == pytest.approx(expected, rel=1e-12)


def test_counts_and_discounts() -> None:
    counts = adjusted_counts([[1, 2, 1], [1, 2]], 3)
    assert counts[2] == {(START, 1, 2): 2, (1, 2, 1): 1}
    assert counts[1] == {(START, 1): 2, (1, 2): 1, (2, 1): 1}
    assert counts[0] == {(1,): 2, (2,): 1}
    # n = 8, 4, 2, 1: Y = 1/2
    often = [1] * 8 + [2] * 4 + [3] * 2 + [4] + [9] * 3
    assert discounts_of(type(counts[0])({(i,): c for i, c in enumerate(often)})) == (0.5, 1.25, 2.0)
    assert discounts_of(counts[0]) == FALLBACK
    with pytest.raises(ValueError, match="3 orders, and discounts of 1"):
        NGrams([[1]], 2, 3, [FALLBACK])
