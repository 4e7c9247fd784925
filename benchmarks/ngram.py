"""An n-gram model over the ids of tokens: interpolated Kneser-Ney, modified.

S. F. Chen and J. Goodman, An empirical study of smoothing techniques for language modeling,
Computer Speech & Language 13 (1999) 359-394, whose equation (26) has the discounts; built after
K. Heafield's code of it (github.com/kpu/kenlm, lm/builder, commit 03e9cb9: adjust_counts.cc,
initial_probabilities.cc, interpolate.cc). For an n-gram g = h w, h being what stands before w,

    a(g)     how often g occurs, if it has the full order or stands at the beginning of a row;
             of any other, how many different tokens stand before it
    p(w | h) = (a(h w) - D(a(h w))) / A(h) + gamma(h) p(w | h'),   A(h) = sum over v of a(h v)
    gamma(h) = (D_1 N_1(h) + D_2 N_2(h) + D_3+ N_3+(h)) / A(h)
    Y = n_1 / (n_1 + 2 n_2),   D_k = k - (k + 1) Y n_(k+1) / n_k,   for k = 1, 2, 3 and more

with h' being h without its first token, N_k(h) how many tokens v have a(h v) = k, and n_k how many
n-grams of that order have a(g) = k. Where h was never seen, p(w | h) = p(w | h'); below the
unigrams every token of the vocabulary is as probable as any other. An order of which n_1 to n_4 are
not all there, or give a discount that makes no sense, has the discounts 0.5, 1, 1.5, as kenlm's
--discount_fallback has them.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

START = -1
"""Before a row: an id that no token has."""
FALLBACK = (0.5, 1.0, 1.5)

Gram = tuple[int, ...]
Discounts = tuple[float, float, float]
"""Of what occurs once, twice, and more often."""


class NGrams:
    """What follows what in rows of ids.

    ``rows``: what it learns from. ``vocabulary``: how many ids there are, from 0 on. ``order``: the
    longest n-gram. ``discounts``: of each order from 1 on; None: those of the data.
    """

    def __init__(
        self,
        rows: Iterable[Sequence[int]],
        vocabulary: int,
        order: int = 5,
        discounts: Sequence[Discounts] | None = None,
    ) -> None:
        if order < 1:
            raise ValueError(f"order must be at least 1, got {order}")
        if discounts is not None and len(discounts) != order:
            raise ValueError(f"{order} orders, and discounts of {len(discounts)}")
        self.vocabulary, self.order = vocabulary, order
        counts = adjusted_counts(rows, order)
        self.discounts = [discounts_of(c) for c in counts] if discounts is None else [*discounts]
        self.after: dict[Gram, dict[int, int]] = defaultdict(dict)
        """What stands before -> token -> its adjusted count there."""
        for of_order in counts:
            for gram, count in of_order.items():
                self.after[gram[:-1]][gram[-1]] = count
        self.sums = {context: self._sum(context) for context in self.after}
        """What stands before -> (sum of adjusted counts, what the discounts take of it)."""

    def _sum(self, context: Gram) -> tuple[int, float]:
        counts = self.after[context].values()
        return sum(counts), sum(self._discount(len(context), count) for count in counts)

    def _discount(self, length: int, count: int) -> float:
        """Of an n-gram with so many tokens before its last one."""
        return self.discounts[length][min(count, 3) - 1]

    def probability(self, token: int, before: Sequence[int]) -> float:
        """Of a token, where all of its row that stands ``before`` it is known."""
        return self._after(token, self._context((START, *before), len(before) + 1))

    def nats(self, row: Sequence[int], places: Iterable[int]) -> float:
        """-log of the probabilities of the tokens at some places of a row, each after all before
        it, summed."""
        sequence = (START, *row)
        return -sum(math.log(self._after(row[i], self._context(sequence, i + 1))) for i in places)

    def _context(self, sequence: Gram, end: int) -> Gram:
        """As much as counts of what stands before a place of a row that has its start."""
        return sequence[max(end - self.order + 1, 0) : end]

    def _after(self, token: int, context: Gram) -> float:
        """The probability of a token after a context that is no longer than one counts."""
        p = 1 / self.vocabulary
        for first in range(len(context), -1, -1):
            if (some := context[first:]) not in self.sums:
                break  # nor was a longer one seen
            whole, free = self.sums[some]
            count = self.after[some].get(token, 0)
            own = count - self._discount(len(some), count) if count else 0.0
            p = (own + free * p) / whole
        return p


def adjusted_counts(rows: Iterable[Sequence[int]], order: int) -> list[Counter[Gram]]:
    """a(g) of every n-gram, a counter for each order."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for row in rows:
        sequence = (START, *row)
        for end in range(1, len(sequence)):
            # the longest that ends here: of the full order, or from the start on
            gram = sequence[max(end - order + 1, 0) : end + 1]
            counts[len(gram) - 1][gram] += 1
    for longer, shorter in zip(counts[:0:-1], counts[-2::-1], strict=True):
        shorter.update(gram[1:] for gram in longer)
    return counts


def discounts_of(counts: Counter[Gram]) -> Discounts:
    """Those of an order, from how many of its n-grams have each of the counts 1 to 4."""
    often = Counter(counts.values())
    n = [often[k] for k in range(5)]
    if not all(n[1:]):
        return FALLBACK
    y = n[1] / (n[1] + 2 * n[2])
    one, two, more = (k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3))
    if not (0 <= one <= 1 and 0 <= two <= 2 and 0 <= more <= 3):
        return FALLBACK
    return one, two, more
