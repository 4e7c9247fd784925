"""Which tokens a step sees: every window once in an epoch, however it is asked for."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from addnorm.data.sources import DataError
from addnorm.data.windows import Windows
from tests.data.samples import quick


class Counting:
    """Tokens whose id is their index; documents of 10."""

    name = "train"

    def __init__(self, length: int):
        self.ids = np.arange(length)
        self.starts = np.arange(0, length, 10)

    def __len__(self):
        return len(self.ids)

    def read(self, start, stop):
        assert 0 <= start <= stop <= len(self.ids)
        return self.ids[start:stop]


def test_the_order_never_changes():
    """A run that is resumed with a later version sees the data it would have seen."""
    starts = Windows(Counting(10_000), 64, 1337).starts(153, 5)
    assert starts.tolist() == [8573, 2557, 7320, 6488, 6296]


@quick
@given(length=st.integers(2, 300), context=st.integers(1, 40), seed=st.integers(0, 2**70))
def test_each_epoch_has_every_window_once(length, context, seed):
    if length < context + 1:
        return
    made = Windows(Counting(length), context, seed)
    assert len(made) >= max(1, length // context - 1)
    for epoch in range(3):
        starts = made.starts(epoch * len(made), len(made))
        assert {made.epoch(epoch * len(made) + i) for i in range(len(made))} == {epoch}
        offset = starts.min()
        assert np.array_equal(np.sort(starts), offset + context * np.arange(len(made)))
        assert 0 <= offset < context
        assert starts.max() + context + 1 <= length
        if length >= 2 * context:  # what is left out at the ends, together
            assert length - (len(made) * context + 1) < 2 * context


@pytest.mark.parametrize("length", [17, 18, 24, 31, 32, 33, 47, 48])
def test_short_splits_have_windows_too(length):
    starts = Windows(Counting(length), 16, 0).starts(0, 100)
    assert starts.min() >= 0
    assert starts.max() + 17 <= length
    offsets = {int(start) % 16 for start in starts}
    assert len(offsets) == 1 if length == 17 else len(offsets) > 1


@settings(quick, max_examples=25)
@given(cuts=st.lists(st.integers(0, 120), max_size=8))
def test_windows_do_not_depend_on_how_they_are_asked_for(cuts):
    made = Windows(Counting(500), 16, 3)
    whole = made.rows(0, 120)
    edges = sorted({0, 120, *cuts})
    found = [made.rows(a, b - a) for a, b in pairwise(edges)]
    assert np.array_equal(np.concatenate(found), whole)
    assert np.array_equal(whole, made.starts(0, 120)[:, None] + np.arange(17))
    assert whole.dtype == np.int64


def test_epochs_differ_in_order_and_offset():
    made = Windows(Counting(2000), 16, 3)
    n = len(made)
    epochs = [made.starts(e * n, n) for e in range(40)]
    assert len({starts.min() for starts in epochs}) > 10, "each at an offset of its own"
    assert len({tuple((starts - starts.min()).tolist()) for starts in epochs}) == 40
    assert not np.array_equal(epochs[0], Windows(Counting(2000), 16, 4).starts(0, n))
    assert np.array_equal(epochs[5], Windows(Counting(2000), 16, 3).starts(5 * n, n))
    seen = np.unique(made.rows(0, 40 * n))
    assert len(seen) > 1990, "what one epoch leaves out at the ends, another has"


def test_documents_of_a_window():
    made = Windows(Counting(500), 16, 3)
    assert np.array_equal(made.documents(5, 40), made.rows(5, 40) // 10)


def test_windows_of_what_was_prepared(sample):
    _, prepared = sample
    tokens = prepared.split("train")
    made = Windows(tokens, 100, 0)
    rows, starts = made.rows(0, len(made)), made.starts(0, len(made))
    whole = tokens.read(0, len(tokens))
    assert np.array_equal(rows, np.stack([whole[s : s + 101] for s in starts]))
    begins = rows == 256  # a document begins with the end of the one before
    found = made.documents(0, len(made))
    assert np.array_equal(np.diff(found, axis=1) > 0, begins[:, 1:])


def test_windows_that_cannot_be(sample):
    with pytest.raises(
        DataError, match=r"the train split has 16 tokens, fewer than .* context \+ 1 = 17"
    ):
        Windows(Counting(16), 16, 0)
    assert len(Windows(Counting(17), 16, 0)) == 1
    with pytest.raises(ValueError, match=r"context is 0"):
        Windows(Counting(16), 0, 0)
    with pytest.raises(ValueError, match=r"numbers start at 0"):
        Windows(Counting(100), 16, 0).rows(-1, 3)
    assert Windows(Counting(100), 16, 0).rows(3, 0).shape == (0, 17)
