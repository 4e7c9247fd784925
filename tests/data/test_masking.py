"""Masks: the share, what stands in their place, whole words, and that only the key decides."""

import numpy as np
import pytest

from addnorm.data.masking import IGNORED, Masking
from addnorm.data.tokenizer import Tokenizer, TokenizerError

TEXT = "unaffable cats and dogs sing unbelievable songs to affable cattle today " * 40


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(
        "un aff able cat s dog sing be liev song to day tle and " * 9, 100, "wordpiece"
    )


@pytest.fixture(scope="module")
def ids(tokenizer: Tokenizer) -> np.ndarray:
    return np.array([2, *tokenizer.encode(TEXT), 3])


def test_shares(tokenizer: Tokenizer, ids: np.ndarray) -> None:
    masking = Masking(tokenizer, 0.15)
    rows = [masking.row(ids, [seed, n]) for seed in range(8) for n in range(20)]
    places = np.array([row.targets != IGNORED for row in rows])
    assert (places.sum(1) == round(0.15 * (ids > 4).sum())).all()
    assert not places[:, [0, -1]].any()  # no special token
    ids_in, truth = np.array([row.ids for row in rows]), np.array([ids] * 160)
    assert (ids_in[~places] == truth[~places]).all()
    assert (np.array([row.targets for row in rows])[places] == truth[places]).all()
    # four standard errors of a share of 0.8 of all draws
    bound = 4 * 0.4 / places.sum() ** 0.5
    assert abs((ids_in[places] == 4).mean() - 0.8) < bound
    assert abs((ids_in[places] == truth[places]).mean() - 0.1) < bound + 0.01  # or drawn by chance
    others = ids_in[places & (ids_in != 4) & (ids_in != truth)]
    assert len({*others.tolist()}) > 10
    assert others.min() > 4


def test_only_the_key_decides(tokenizer: Tokenizer, ids: np.ndarray) -> None:
    one, other = Masking(tokenizer, 0.15), Masking(tokenizer, 0.15)
    for key in ([1, 2], [1, 3], [2, 2], [1 << 32, 2]):
        assert (one.row(ids, key).ids == other.row(ids, key).ids).all()
    assert len({one.row(ids, [s, n]).ids.tobytes() for s in range(3) for n in range(3)}) == 9


def test_whole_words(tokenizer: Tokenizer, ids: np.ndarray) -> None:
    masking = Masking(tokenizer, 0.15, whole_words=True)
    begins = [tokenizer.token_bytes(i)[:1] == b" " for i in ids.tolist()]
    assert not all(begins)
    for n in range(10):
        at = masking.row(ids, [n]).targets != IGNORED
        for place in range(1, len(ids)):
            if not begins[place]:  # a word is asked for as a whole, or not at all
                assert at[place] == at[place - 1]
        assert 0.1 < at.mean() < 0.2
    # a separator ends a word: the pieces on both sides of it are two
    piece = int(ids[begins.index(False)])
    at = masking.row(np.array([piece, 3, piece, piece] * 9), [0]).targets.reshape(9, 4) != IGNORED
    assert (at[:, 2] == at[:, 3]).all()
    assert (at[:, 0] != at[:, 2]).any()
    # a window may begin inside of a word
    middle = ids[next(i for i, b in enumerate(begins) if not b) :]
    assert (masking.row(middle, [0]).targets != IGNORED).any()


def test_rows_with_little_in_them(tokenizer: Tokenizer) -> None:
    for masking in (Masking(tokenizer, 0.15), Masking(tokenizer, 0.15, whole_words=True)):
        assert (masking.row(np.array([2, 3, 3]), [0]).targets == IGNORED).all()
        alone = masking.row(np.array([2, 30, 3]), [0])
        assert alone.targets.tolist() == [IGNORED, 30, IGNORED]
    with pytest.raises(TokenizerError, match="has no token for mask"):
        Masking(Tokenizer.bytes(), 0.15)
