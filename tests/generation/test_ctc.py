"""CTC: sums over all rows of frames that say a text, and what a language model changes."""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pytest

from addnorm.generation.ctc import Prefix, greedy, prefix_beams

BLANK = 3
RNG = np.random.default_rng(0)


def logprobs(frames: int, sharpness: float = 1.0) -> np.ndarray:
    logits = sharpness * RNG.standard_normal((frames, 4))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def collapsed(row: Sequence[int]) -> Prefix:
    """What a row of frames says: repetitions once, then without blanks."""
    return tuple(token for token, _ in itertools.groupby(row) if token != BLANK)


def exhaustive(x: np.ndarray) -> dict[Prefix, float]:
    """Text -> its probability, row by row."""
    sums: dict[Prefix, float] = defaultdict(float)
    for row in itertools.product(range(4), repeat=len(x)):
        sums[collapsed(row)] += math.exp(sum(x[t, token] for t, token in enumerate(row)))
    return sums


class Language:
    """Tokens that depend on the one before them; texts end by their length."""

    TABLE = np.log(np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1], [0.3, 0.3, 0.3, 0.1]]))

    def after(self, prefixes: Sequence[Prefix]) -> np.ndarray:
        return np.stack([self.TABLE[prefix[-1] if prefix else 0] for prefix in prefixes])

    def end(self, prefix: Prefix) -> float:
        return -0.3 * len(prefix)

    def whole(self, text: Prefix) -> float:
        nats = sum(self.after([text[:i]])[0, token] for i, token in enumerate(text))
        return float(nats) + self.end(text)


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_with_all_beams_the_sums_are_those_of_all_rows(frames: int) -> None:
    x = logprobs(frames)
    want = exhaustive(x)
    best = prefix_beams(x, BLANK, 1000)
    assert {text.ids for text in best} == want.keys()
    for text in best:
        assert math.exp(text.ctc) == pytest.approx(want[text.ids])
        assert text.score == text.ctc
    assert [text.score for text in best] == sorted((t.score for t in best), reverse=True)


def test_a_language_model_is_added_once_a_token() -> None:
    x, language = logprobs(5), Language()
    want = {
        ids: math.log(p) + 0.8 * language.whole(ids) + 0.4 * len(ids)
        for ids, p in exhaustive(x).items()
    }
    best = prefix_beams(x, BLANK, 1000, language, 0.8, 0.4)
    assert best[0].ids == max(want, key=want.__getitem__)
    for text in best:
        assert text.score == pytest.approx(want[text.ids])


def test_few_beams_find_what_is_clear() -> None:
    x = logprobs(7, sharpness=6.0)
    want = exhaustive(x)
    assert prefix_beams(x, BLANK, 4)[0].ids == max(want, key=want.__getitem__)
    assert len(prefix_beams(x, BLANK, 4)) == 4


def test_the_sum_may_be_another_text_than_the_best_row() -> None:
    """Graves 2012, figure 7.5: nothing is the best row, and a text the likelier."""
    x = np.log(np.array([[0.4, 1e-9, 1e-9, 0.6]] * 2))
    assert greedy(x, BLANK) == ()
    assert prefix_beams(x, BLANK, 2)[0].ids == (0,)


def test_greedy_takes_repetitions_for_one_unless_a_blank_is_between() -> None:
    rows = [0, 0, 3, 0, 1, 1, 3, 3, 2]
    assert greedy(np.log(np.eye(4)[rows] + 1e-9), BLANK) == (0, 0, 1, 2) == collapsed(rows)
