"""Pictures that are nearly the same."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets import alike
from benchmarks.datasets.alike import closest, near, reduced
from benchmarks.datasets.groups import connected


def test_a_picture_is_seen_on_white_and_small() -> None:
    clear = Image.new("RGBA", (40, 20), (255, 0, 0, 0))
    assert (reduced(clear) == 1).all()
    half = Image.new("L", (32, 32), 0)
    half.paste(255, (16, 0, 32, 32))
    row = reduced(half).reshape(16, 16, 3)
    assert (row[:, :8] == 0).all()
    assert (row[:, 8:] == 1).all()


def test_distances_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).random((25, 12), dtype=np.float32)
    rows[20] = rows[3]
    rows[21] = rows[3] + np.float32(0.01)
    table = np.sqrt(((rows[:, None] - rows[None]) ** 2).mean(axis=2))
    monkeypatch.setattr(alike, "BLOCK", 4)  # so that there are several blocks, and a rest
    np.testing.assert_allclose(closest(rows[:9], rows[9:]), table[:9, 9:].min(axis=1), atol=1e-6)
    assert near(rows, 0.02) == [(3, 20), (3, 21), (20, 21)]
    assert near(rows, 0.001) == [(3, 20)]


def test_groups_are_connected_over_others() -> None:
    assert connected(6, [(4, 1), (1, 2), (5, 3)]) == [[0], [1, 2, 4], [3, 5]]
    assert connected(0, []) == []
