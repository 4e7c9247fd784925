"""An order of rows: a permutation for any number, and as random as it should be."""

from collections import Counter

import numpy as np

from addnorm.data.order import order_key, shuffled


def test_the_order_is_a_permutation_for_any_number():
    for n in range(1, 2001):
        key = order_key(f"{n} things")
        key = key if n % 100 == 0 else key[:16]  # the rounds are all alike: 8 of them show it
        places = shuffled(np.arange(n), n, key)
        assert np.array_equal(np.sort(places), np.arange(n)), n


def test_all_orders_are_equally_frequent():
    orders = 1200
    found = Counter(
        tuple(shuffled(np.arange(4), 4, order_key(f"seed {seed}, epoch {epoch}")).tolist())
        for seed in range(12)
        for epoch in range(100)
    )
    assert len(found) == 24
    expected = orders / 24
    # Chi-square with 23 degrees of freedom: its mean is 23, and 1 in 100 000 is above 66.
    assert sum((count - expected) ** 2 / expected for count in found.values()) < 66


def test_places_and_neighbours_are_uniform():
    n, epochs = 1000, 400
    orders = np.array([shuffled(np.arange(n), n, order_key(f"epoch {e}")) for e in range(epochs)])
    # Where window i goes, in 20 classes, for all i at once; then how far i and i + 1 are apart.
    # Chi-square with 19 degrees of freedom: 1 in 100 000 is above 59. The counts of one epoch are
    # not independent of each other, which makes the sum smaller, not larger.
    for i in (0, 1, 499, 998, 999):
        counts = np.bincount(orders[:, i] // (n // 20), minlength=20)
        assert ((counts - epochs / 20) ** 2 / (epochs / 20)).sum() < 59
    steps = ((orders[:, 1:] - orders[:, :-1]) % n).ravel()
    counts = np.bincount((steps - 1) * 20 // (n - 1), minlength=20)
    assert ((counts - steps.size / 20) ** 2 / (steps.size / 20)).sum() < 59
