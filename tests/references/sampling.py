"""What a sampler draws from, straight-line in float64, and a test whether it does.

`distribution` follows this order, each step on what the one before has left:

1. repetition penalty r (Keskar et al. 2019, arXiv 1909.05858, in the form for logits of either
   sign): for each distinct id of the history, prompt and generated: z / r if z > 0, else z * r;
2. presence and frequency penalty: z - presence * [count > 0] - frequency * count, the counts over
   what was generated, without the prompt;
3. ids that are banned or not allowed: z = -inf;
4. temperature t: z / t; t = 0 is probability 1 on the largest logit, the lowest id among equals;
5. top-k: all z that are not below the k-th largest, so that equals at the border all stay;
6. top-p (Holtzman et al. 2020, arXiv 1904.09751): the softmax in descending order, the lower id
   first among equals, up to and with the id whose probability brings the sum to p;
7. min-p (Nguyen et al. 2024, arXiv 2407.01082): probabilities, renormalized after top-p, that are
   at least min_p times the largest;
8. renormalize.

Whether a sum reaches p, or a probability is exactly min_p times another, is decided in float64 and
may go either way within some 1e-15: comparisons must stay away from these borders. Equal logits
stay equal through every step.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def softmax(logits: Array) -> Array:
    """exp(z) / sum exp(z), with -inf giving exactly 0."""
    e = np.exp(logits - logits.max())
    return np.array(e / e.sum())


def distribution(
    logits: Sequence[float] | NDArray[Any],
    history: Sequence[int] = (),
    *,
    generated: Sequence[int] = (),
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    banned: Collection[int] = (),
    allowed: Collection[int] | None = None,
) -> Array:
    """The probability of each id to come next; `history` holds the prompt and `generated`."""
    z = np.array(logits, dtype=np.float64)  # (V,)
    if z.ndim != 1 or np.isnan(z).any() or np.isposinf(z).any():
        raise ValueError("logits must be (V,), finite or -inf")
    if temperature < 0.0 or repetition_penalty <= 0.0:
        raise ValueError("a temperature is not negative, and a repetition penalty is positive")
    if (top_k is not None and top_k < 1) or (top_p is not None and top_p <= 0.0):
        raise ValueError("top-k and top-p keep at least one id")
    if min_p is not None and not 0.0 <= min_p <= 1.0:
        raise ValueError("min-p is a share of the largest probability")

    # 1. repetition penalty
    for i in set(history):
        z[i] = z[i] / repetition_penalty if z[i] > 0.0 else z[i] * repetition_penalty

    # 2. presence and frequency penalty
    for i in set(generated):
        count = list(generated).count(i)
        z[i] = z[i] - presence_penalty - frequency_penalty * count

    # 3. what must not be drawn
    for i in range(len(z)):
        if i in banned or (allowed is not None and i not in allowed):
            z[i] = -np.inf
    if np.isneginf(z).all():
        raise ValueError("no id is left to draw")

    # 4. temperature
    if temperature == 0.0:
        greedy = np.zeros_like(z)
        greedy[int(np.argmax(z))] = 1.0  # argmax returns the first of equals
        return greedy
    with np.errstate(over="ignore"):  # towards t = 0 all but the largest go to -inf, and rightly
        z = (z - z.max()) / temperature  # the shift cancels in the softmax

    # 5. top-k
    if top_k is not None and top_k < len(z):
        kth_largest = sorted(z, reverse=True)[top_k - 1]
        z = np.where(z >= kth_largest, z, -np.inf)

    # 6. top-p
    p = softmax(z)
    if top_p is not None and top_p < 1.0:  # the sum of all may fall short of 1.0 by rounding
        survivors = np.zeros_like(p)
        total = 0.0
        for i in sorted(range(len(p)), key=lambda i: (-p[i], i)):
            survivors[i] = p[i]
            total = total + p[i]
            if total >= top_p:
                break
        p = survivors / survivors.sum()

    # 7. min-p
    if min_p is not None:
        p = np.where(p >= min_p * p.max(), p, 0.0)

    # 8. renormalize
    return np.array(p / p.sum())


# --- goodness of fit ------------------------------------------------------------------------------


def upper_gamma(a: float, x: float) -> float:
    """Q(a, x), the regularized upper incomplete gamma function, for a > 0 and x >= 0.

    Below a + 1 by the series of 1 - Q, above by the continued fraction of Q (DLMF 8.7.1 and 8.9.2,
    the latter in Lentz's way), each up to changes of 1e-15. The relative error of Q, compared with
    50 digits for a from 0.5 to 500 and Q down to 1e-200, is below 1e-12; it is mostly that of the
    factor exp(-x + a log x - log Gamma(a)), a few a units in the last place.
    """
    if x <= 0.0:
        return 1.0
    factor = math.exp(-x + a * math.log(x) - math.lgamma(a))
    if x < a + 1.0:
        term = total = 1.0 / a
        n = 0
        while term > 1e-17 * total:
            n += 1
            term *= x / (a + n)
            total += term
        return 1.0 - factor * total
    b = x + 1.0 - a
    c, d = math.inf, 1.0 / b
    h, n = d, 0
    while True:
        n += 1
        b += 2.0
        d = 1.0 / (b - n * (n - a) * d)
        c = b - n * (n - a) / c
        h *= c * d
        if abs(c * d - 1.0) < 1e-15:
            return factor * h


def chi_square_p(
    counts: Sequence[int] | NDArray[Any], probabilities: Sequence[float] | NDArray[Any]
) -> float:
    """P(a statistic at least as large | the counts are draws from the probabilities), by Pearson's
    X^2 = sum (count - expected)^2 / expected, which is chi-square with (cells - 1) degrees.

    That is an approximation, good where at least 5 are expected in each cell: so the cells with the
    smallest expectation are taken together until they have 5. A draw of something impossible gives
    0. The p-value of the chi-square distribution itself is exact to 1e-12 (`upper_gamma`).
    """
    observed = np.array(counts, dtype=np.float64)
    p = np.array(probabilities, dtype=np.float64)
    if observed.shape != p.shape or (observed < 0).any() or (p < 0.0).any():
        raise ValueError("counts and probabilities are (V,), and not negative")
    if abs(p.sum() - 1.0) > 1e-9 or observed.sum() == 0:
        raise ValueError("probabilities sum to one, and something was drawn")
    if (observed[p == 0.0] > 0).any():
        return 0.0
    cells: list[tuple[float, float]] = []  # (expected, observed)
    pool = (0.0, 0.0)
    # By expectation and id only: which cells are joined must not depend on what was drawn.
    for i in sorted(range(len(p)), key=lambda i: (p[i], i)):
        expected, count = p[i] * observed.sum(), observed[i]
        pool = (pool[0] + expected, pool[1] + count)
        if pool[0] >= 5.0:
            cells.append(pool)
            pool = (0.0, 0.0)
    if cells:  # what is left over has less than 5
        cells[-1] = (cells[-1][0] + pool[0], cells[-1][1] + pool[1])
    if len(cells) < 2:
        return 1.0  # nothing to compare
    statistic = sum((count - expected) ** 2 / expected for expected, count in cells)
    return upper_gamma((len(cells) - 1) / 2.0, statistic / 2.0)
