"""Questions on passages as a model reads them: windows of what is too long, and the best span.

    [CLS] question [SEP] part of the passage [SEP]

The parts have as many tokens as there is room for, and each begins ``stride`` tokens after the one
before, until one ends where the passage ends. A model says of each token how well an answer begins,
and ends, with it; the score of a span is the sum of the two, and that of "no answer" the sum at
[CLS]. Over the windows of a passage the best span counts, and the least score of no answer, since a
window without the answer has none however sure the others are (Devlin et al. 2019, arXiv
1810.04805, and run_squad.py in its code, https://github.com/google-research/bert).
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from addnorm.data.rows import padded
from addnorm.data.sources import DataError
from addnorm.data.tokenizer import Tokenizer

LONGEST_ANSWER = 64
"""Tokens that an answer has at most, where nobody says how many."""
LEAST_ROOM = 0.25
"""Of the model's length is left to the passage, whatever the question."""


class PassageTokens(NamedTuple):
    """A text's ids, and the characters at which each begins and ends."""

    ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


class PassageWindow(NamedTuple):
    """What a model reads at once: ``size`` tokens of a passage, from its token ``first`` on, stand
    in ``ids`` from ``place`` on; ``types`` is 1 for them."""

    ids: NDArray[np.int64]
    types: NDArray[np.int64]
    place: int
    first: int
    size: int

    def places(self, tokens: PassageTokens, start: int, end: int) -> tuple[int, int]:
        """Where in ``ids`` the characters from start to end begin and end; (0, 0), that is [CLS],
        where they are not all in this window, or no token has any of them."""
        first = int(np.searchsorted(tokens.ends, start, side="right"))
        last = int(np.searchsorted(tokens.starts, end, side="left")) - 1
        if not self.first <= first <= last < self.first + self.size:
            return 0, 0
        return first - self.first + self.place, last - self.first + self.place


class Span(NamedTuple):
    """An answer: characters of the passage, and by how much its score is above that of no answer;
    None, None: there is none."""

    start: int | None
    end: int | None
    score: float


@final
class PassageReader:
    """Makes windows for a model that reads ``length`` tokens at once.

    ``tokenizer``: the model's; it has tokens for cls and sep.
    """

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length
        self._begin, self._end = tokenizer.role_id("cls"), tokenizer.role_id("sep")

    def tokens(self, text: str) -> PassageTokens:
        """A passage, or a question."""
        ids, places = self.tokenizer.encode_with_places(text)
        starts, ends = np.array(places, np.int64).reshape(-1, 2).T
        return PassageTokens(np.array(ids, np.int64), starts, ends)

    def windows(
        self, question: PassageTokens, passage: PassageTokens, stride: int | None = None
    ) -> list[PassageWindow]:
        """All that is read for a question, from the passage's beginning to its end. ``stride``: how
        many tokens further each begins, at most as many as there is room for; None: half of that.
        A ``DataError`` where the question leaves too little room."""
        room = self.length - len(question.ids) - 3  # [CLS] and two [SEP]
        if room < max(1, LEAST_ROOM * self.length):
            raise DataError(
                f"the question has {len(question.ids)} tokens, and the model reads {self.length} of"
                f" question and passage together, of which {LEAST_ROOM:.0%} are for the passage: "
                "shorten the question"
            )
        stride = min(stride or max(1, room // 2), room)
        last = max(len(passage.ids) - room, 0)
        front = np.array([self._begin, *question.ids, self._end])
        rows = []
        for first in range(0, last + stride, stride):
            part = passage.ids[first : first + room]
            ids = np.concatenate([front, part, [self._end]])
            types = (np.arange(len(ids)) >= len(front)).astype(np.int64)
            rows.append(PassageWindow(ids, types, len(front), first, len(part)))
        return rows


def window_batch(windows: Sequence[PassageWindow]) -> dict[str, Tensor]:
    """``ids``, ``valid`` (which of them are real) and ``types`` of windows of unlike length, each
    (windows, longest)."""
    batch = padded([window.ids for window in windows])
    return {**batch, "types": padded([window.types for window in windows])["ids"]}


def best_spans(logits: Tensor, windows: Sequence[PassageWindow], longest: int) -> Tensor:
    """(windows, 4) in float64 of logits (windows, T, 2): the score of no answer; the score of the
    best span of at most so many tokens, and the places of its first and last one. Of equal ones the
    first counts; a window without a token of the passage has -inf. A ``FloatingPointError`` where
    logits are not finite; those outside of a window's passage, but for [CLS], do not matter."""
    start, end = logits.double().unbind(-1)  # (B, T)
    null = start[:, 0] + end[:, 0]
    place = torch.arange(start.shape[1], device=start.device)
    first = torch.tensor([[w.place] for w in windows], device=start.device)
    size = torch.tensor([[w.size] for w in windows], device=start.device)
    outside = (place < first) | (place >= first + size)
    longest = min(longest, start.shape[1])
    start = start.masked_fill(outside, -torch.inf)
    end = end.masked_fill(outside, -torch.inf)
    after = torch.nn.functional.pad(end, (0, longest - 1), value=-torch.inf)
    sums = start[..., None] + after.unfold(1, longest, 1)  # (B, T, longest)
    which = sums.flatten(1).argmax(-1)  # the first of equal ones, which max does not promise
    best = sums.flatten(1).gather(1, which[:, None])[:, 0]
    begin = which // longest
    spans = torch.stack([null, best, begin.double(), (begin + which % longest).double()], -1)
    broken = ~(null.isfinite() & (best.isfinite() | (size[:, 0] == 0)))
    if bool(broken.any()):
        raise FloatingPointError(
            "the scores of an answer are not finite: the weights or the activations hold NaN or "
            "overflow"
        )
    return spans


def best_answer(
    scores: Tensor, windows: Sequence[PassageWindow], tokens: PassageTokens, threshold: float
) -> Span:
    """The best answer of a passage from what ``best_spans`` says of its windows, in ``scores``: a
    span whose score is above that of no answer by ``threshold`` or more, or none. ``windows``: all
    of the passage, in the order of ``scores``; ``tokens``: of the passage."""
    null = float(scores[:, 0].min())
    window = int(scores[:, 1].argmax())
    _, best, begin, end = scores[window].tolist()
    margin = best - null
    if margin == -torch.inf or margin < threshold:
        return Span(None, None, margin)
    shift = windows[window].first - windows[window].place
    first, last = int(begin) + shift, int(end) + shift
    return Span(int(tokens.starts[first]), int(tokens.ends[last]), margin)
