"""The reference for sampling checked on its own: worked examples, and every step another way.

Tolerance EXACT: two float64 evaluations of a softmax over some ten logits of order ten, each with
an error of |z| u in the exponent and some ten roundings, u = 1.1e-16: below 1e-14. A step that is
left out or in the wrong place shows at the order of 1e-2.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.references.sampling import chi_square_p, distribution, softmax, upper_gamma

EXACT = 1e-13
LOGITS = [2.0, 1.0, 0.5, -1.0, -3.0]


def assert_equal(actual, weights) -> None:
    """The probabilities are the weights, normalized."""
    expected = np.array(weights, dtype=np.float64)
    np.testing.assert_allclose(actual, expected / expected.sum(), rtol=0, atol=EXACT)


def logs(*weights: float) -> list[float]:
    return [math.log(w) if w else -math.inf for w in weights]


# --- one step at a time ---------------------------------------------------------------------------


def test_nothing_asked_for_is_the_softmax() -> None:
    assert_equal(distribution(LOGITS), [math.exp(z) for z in LOGITS])
    assert_equal(distribution(logs(1, 2, 5)), [1, 2, 5])
    assert_equal(distribution([1000.0, 1000.0, -math.inf]), [1, 1, 0])


def test_repetition_penalty_divides_above_zero_and_multiplies_below() -> None:
    p = distribution(LOGITS, [0, 3, 3, 3], repetition_penalty=2.0)  # 3 counts once
    assert_equal(p, [math.exp(z) for z in (1.0, 1.0, 0.5, -2.0, -3.0)])


def test_presence_and_frequency_count_what_was_generated() -> None:
    p = distribution(
        LOGITS, [0, 1, 1, 4], generated=[1, 1, 4], presence_penalty=0.5, frequency_penalty=0.25
    )
    assert_equal(p, [math.exp(z) for z in (2.0, 0.0, 0.5, -1.0, -3.75)])


def test_repetition_penalty_comes_before_the_others() -> None:
    p = distribution([2.0, 0.0], [0], generated=[0], repetition_penalty=2.0, presence_penalty=2.0)
    assert_equal(p, [math.exp(-1.0), 1.0])  # the other order gives exp(0)


def test_banned_and_allowed() -> None:
    assert_equal(distribution(logs(1, 2, 3, 4), banned={3}), [1, 2, 3, 0])
    assert_equal(distribution(logs(1, 2, 3, 4), allowed={1, 3}), [0, 2, 0, 4])
    assert_equal(distribution(logs(1, 2, 3, 4), banned={3}, allowed={1, 3}), [0, 1, 0, 0])
    with pytest.raises(ValueError, match="no id is left"):
        distribution(LOGITS, allowed=set())
    with pytest.raises(ValueError, match="no id is left"):
        distribution(LOGITS, banned=range(5), temperature=0.0)


def test_temperature() -> None:
    assert_equal(distribution(logs(1, 2, 3), temperature=0.5), [1, 4, 9])
    assert_equal(distribution(logs(1, 4, 9), temperature=2.0), [1, 2, 3])
    assert_equal(distribution([1.0, 3.0, 3.0], temperature=1e-308), [0, 1, 1])


def test_temperature_zero_is_the_largest_and_the_lowest_id_among_equals() -> None:
    assert_equal(distribution([1.0, 3.0, 3.0], temperature=0.0), [0, 1, 0])
    assert_equal(distribution([1.0, 3.0, 3.0], temperature=0.0, banned={1}), [0, 0, 1])
    # Penalties move the largest; what keeps the most probable changes nothing.
    p = distribution([3.0, 2.0], [0], repetition_penalty=2.0, temperature=0.0, top_k=1, top_p=0.1)
    assert_equal(p, [0, 1])


def test_top_k_keeps_all_equals_at_the_border() -> None:
    weights = [1, 3, 2, 3, 2, 5]
    assert_equal(distribution(logs(*weights), top_k=1), [0, 0, 0, 0, 0, 5])
    assert_equal(distribution(logs(*weights), top_k=2), [0, 3, 0, 3, 0, 5])
    assert_equal(distribution(logs(*weights), top_k=3), [0, 3, 0, 3, 0, 5])
    assert_equal(distribution(logs(*weights), top_k=4), [0, 3, 2, 3, 2, 5])
    assert_equal(distribution(logs(*weights), top_k=100), weights)
    assert_equal(distribution(logs(1, 2, 3), banned={2}, top_k=3), [1, 2, 0])


def test_top_p_keeps_the_one_that_crosses_and_the_lower_id_first() -> None:
    weights = [10, 40, 10, 30, 10]
    assert_equal(distribution(logs(*weights), top_p=0.3), [0, 1, 0, 0, 0])
    assert_equal(distribution(logs(*weights), top_p=0.41), [0, 4, 0, 3, 0])
    assert_equal(distribution(logs(*weights), top_p=0.75), [1, 4, 0, 3, 0])
    assert_equal(distribution(logs(*weights), top_p=0.85), [1, 4, 1, 3, 0])
    assert_equal(distribution(logs(*weights), top_p=1.0), weights)
    # A sum of float64 that stays below 1 must not lose what is left, nor keep what has nothing.
    many = [1.0] * 997 + [1e-17]
    assert (distribution(logs(*many), top_p=1.0) > 0).all()


def test_top_p_reads_what_top_k_and_temperature_left() -> None:
    weights = [40, 30, 20, 10]
    assert_equal(distribution(logs(*weights), top_p=0.55), [4, 3, 0, 0])
    assert_equal(distribution(logs(*weights), top_k=2, top_p=0.55), [1, 0, 0, 0])  # 4/7 > 0.55
    assert_equal(distribution(logs(*weights), temperature=0.5, top_p=0.53), [1, 0, 0, 0])  # 16/30


def test_min_p_is_a_share_of_the_largest() -> None:
    weights = [40, 30, 19, 11]
    assert_equal(distribution(logs(*weights), min_p=0.5), [4, 3, 0, 0])
    assert_equal(distribution(logs(*weights), min_p=0.45), [40, 30, 19, 0])
    assert_equal(distribution(logs(*weights), min_p=0.0), weights)
    assert_equal(distribution(logs(*weights), min_p=1.0), [1, 0, 0, 0])
    assert_equal(distribution(logs(*weights), top_p=0.8, min_p=0.7), [4, 3, 0, 0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"repetition_penalty": 0.0},
        {"top_k": 0},
        {"top_p": 0.0},
        {"min_p": 1.5},
        {"logits": [math.nan, 1.0]},
        {"logits": [math.inf, 1.0]},
        {"logits": [[1.0]]},
    ],
)
def test_what_has_no_meaning_is_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"temperature|top-k|min-p|logits"):
        distribution(**{"logits": LOGITS, **wrong})


# --- all steps, another way -----------------------------------------------------------------------


def by_search(weights, top_k, top_p, min_p) -> list[Fraction]:
    """The same in rational numbers, each rule by its definition over all sets of ids."""
    ids = range(len(weights))
    if top_k is not None:  # kept: fewer than k are larger
        weights = [w if sum(v > w for v in weights) < top_k else 0 for w in weights]
    total = sum(weights)
    if top_p is not None:
        smallest = next(
            n
            for n in range(1, len(weights) + 1)
            if any(
                sum(weights[i] for i in subset) >= top_p * total
                for subset in itertools.combinations(ids, n)
            )
        )
        # of that many, the set with the largest sum; combinations come with the lower ids first
        best = max(
            itertools.combinations(ids, smallest),
            key=lambda subset: sum(weights[i] for i in subset),
        )
        weights = [w if i in best else 0 for i, w in enumerate(weights)]
    if min_p is not None:
        weights = [w if w >= min_p * max(weights) else 0 for w in weights]
    return [Fraction(w, sum(weights)) for w in weights]


# Weights are small integers, so that sums and ratios are multiples of 1/63 and 1/9: shares that are
# never one of these keep away from the borders, where rounding decides.
SHARE = st.integers(0, 100).map(lambda n: Fraction(n, 101) + Fraction(1, 1009))


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=7),
    st.none() | st.integers(1, 8),
    st.none() | SHARE,
    st.none() | SHARE,
)
def test_top_k_top_p_and_min_p_by_definition(weights, top_k, top_p, min_p) -> None:
    floats = {"top_p": top_p and float(top_p), "min_p": min_p and float(min_p)}
    p = distribution(logs(*weights), top_k=top_k, **floats)
    expected = by_search(weights, top_k, top_p, min_p)
    np.testing.assert_allclose(p, [float(x) for x in expected], rtol=0, atol=EXACT)


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=6), st.data())
def test_always_a_distribution_in_which_the_largest_stays(logits, data) -> None:
    ids = st.lists(st.integers(0, len(logits) - 1), max_size=6)
    history, banned = data.draw(ids), set(data.draw(ids))
    banned.discard(0)
    settings = {
        "generated": history[len(history) // 2 :],
        "temperature": data.draw(st.sampled_from([0.0, 0.1, 1.0, 3.0])),
        "repetition_penalty": data.draw(st.sampled_from([1.0, 1.3])),
        "presence_penalty": data.draw(st.floats(-2, 2)),
        "frequency_penalty": data.draw(st.floats(-2, 2)),
        "banned": banned,
    }
    whole = distribution(logits, history, **settings)
    p = distribution(logits, history, **settings, top_k=3, top_p=0.7, min_p=0.1)
    assert abs(p.sum() - 1.0) < EXACT
    assert (p >= 0.0).all()
    assert not p[list(banned)].any()
    assert p[int(np.argmax(whole))] > 0.0
    positive = p > 0.0
    np.testing.assert_allclose(
        p[positive], whole[positive] / whole[positive].sum(), rtol=EXACT, atol=0
    )


# --- goodness of fit ------------------------------------------------------------------------------

GAMMA = 1e-12  # what upper_gamma promises, relative


@pytest.mark.parametrize("x", [1e-3, 0.1, 0.49, 1.0, 2.0, 5.0, 7.3, 30.0, 150.0])
def test_upper_gamma_has_its_closed_forms(x: float) -> None:
    assert upper_gamma(1.0, x) == pytest.approx(math.exp(-x), rel=GAMMA)
    assert upper_gamma(0.5, x) == pytest.approx(math.erfc(math.sqrt(x)), rel=GAMMA)
    for a in (2, 5, 20):  # the chance of fewer than a events where x are expected
        terms = [math.exp(-x + k * math.log(x) - math.lgamma(k + 1)) for k in range(a)]
        assert upper_gamma(a, x) == pytest.approx(math.fsum(terms), rel=GAMMA)
    for a in (0.5, 1.5, 7.5, 40.5):
        step = math.exp(-x + a * math.log(x) - math.lgamma(a + 1.0))
        assert upper_gamma(a + 1.0, x) == pytest.approx(upper_gamma(a, x) + step, rel=GAMMA)


def test_upper_gamma_at_the_ends() -> None:
    assert upper_gamma(3.0, 0.0) == 1.0
    assert upper_gamma(3.0, 1000.0) == 0.0  # exp(-1000) is below the smallest double
    # quantiles that every table of chi-square has
    for degrees, x in ((1, 3.841458820694124), (5, 11.070497693516351), (10, 18.307038053275146)):
        assert upper_gamma(degrees / 2, x / 2) == pytest.approx(0.05, rel=GAMMA)


def test_chi_square_by_hand() -> None:
    # 60 of 100 where 50 are expected: X^2 = 4 with one degree, 0.0455
    assert chi_square_p([60, 40], [0.5, 0.5]) == pytest.approx(math.erfc(math.sqrt(2)), rel=GAMMA)
    # two degrees: exp(-X^2 / 2), X^2 = (3^2 + 3^2) / 30
    assert chi_square_p([33, 30, 27], [1 / 3] * 3) == pytest.approx(math.exp(-0.3), rel=GAMMA)
    assert chi_square_p([50, 50, 0], [0.5, 0.5, 0.0]) == 1.0


def test_small_cells_are_taken_together() -> None:
    # of 100: 2 + 3 expected make one cell, 4 + 6 the next, 85 the last; whatever their order
    counts, expected = [5, 2, 88, 1, 4], [0.03, 0.02, 0.85, 0.04, 0.06]
    x = (7 - 5) ** 2 / 5 + (5 - 10) ** 2 / 10 + (88 - 85) ** 2 / 85
    assert chi_square_p(counts, expected) == pytest.approx(math.exp(-x / 2), rel=GAMMA)
    # of 20, 4 in each: 4 + 4 and 4 + 4 in the order of the ids; what is left joins the last cell
    x = (10 - 8) ** 2 / 8 + (10 - 12) ** 2 / 12
    p = chi_square_p([6, 4, 3, 5, 2], [0.2] * 5)
    assert p == pytest.approx(math.erfc(math.sqrt(x / 2)), rel=GAMMA)
    assert chi_square_p([3, 3, 4], [0.3, 0.3, 0.4]) == 1.0  # one cell has nothing to compare with


def test_what_cannot_happen_has_no_chance() -> None:
    assert chi_square_p([99, 1], [1.0, 0.0]) == 0.0
    assert chi_square_p([100, 0], [1.0, 0.0]) == 1.0
    for counts, p in (([1, 2], [0.5, 0.4]), ([0, 0], [0.5, 0.5]), ([1], [0.5, 0.5]), ([-1], [1.0])):
        with pytest.raises(ValueError, match=r"counts|sum to one"):
            chi_square_p(counts, p)


def test_p_values_are_uniform_for_the_right_distribution_and_small_for_another() -> None:
    rng = np.random.default_rng(0)
    right = softmax(np.linspace(3.0, -3.0, 12))
    wrong = softmax(np.linspace(3.0, -3.0, 12) / 1.5)
    draws = rng.multinomial(2000, right, size=1000)
    p = np.sort([chi_square_p(counts, right) for counts in draws])
    # Kolmogorov-Smirnov: the largest distance from uniform exceeds 1.95 / sqrt(n) once in a
    # thousand seeds; the chi-square approximation itself is off by less than 0.01 at 5 per cell.
    distance = np.abs(p - (np.arange(1000) + 0.5) / 1000).max()
    assert distance < 1.95 / math.sqrt(1000) + 0.01
    # Of a temperature 50 % too high X^2 is noncentral: d = 11 degrees and a lambda of
    # 2000 sum (p - q)^2 / q = 221, so mean d + lambda = 232 and standard deviation
    # sqrt(2 (d + 2 lambda)) = 30. Five of them below is 82, where p < 1e-12.
    assert max(chi_square_p(counts, wrong) for counts in draws[:100]) < 1e-11
