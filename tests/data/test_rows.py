"""Rows of unlike length: padded, and cut where one is too long."""

import numpy as np

from addnorm.data.rows import padded, windows


def test_windows_reach_from_one_end_to_the_other() -> None:
    for n, context in ((5, 8), (8, 8), (9, 8), (31, 8), (1000, 8)):
        parts = windows(np.arange(n), context)
        assert parts[0][0] == 0
        assert parts[-1][-1] == n - 1
        assert all(len(w) == min(n, context) for w in parts)
        assert len(parts) <= 8
        if n <= 4 * context:  # nothing is left out, as long as eight windows are enough
            assert set(np.concatenate(parts).tolist()) == set(range(n))


def test_padding_is_behind_and_marked() -> None:
    batch = padded([np.array([5, 6]), np.array([], np.int64), np.array([7, 8, 9])], fill=4)
    assert batch["ids"].tolist() == [[5, 6, 4], [4, 4, 4], [7, 8, 9]]
    assert batch["valid"].sum(1).tolist() == [2, 0, 3]
    assert batch["valid"][0].tolist() == [True, True, False]
