"""What CTC has heard: the text of which the frames make most, alone or beside a language model.

CTC says at each frame a token or nothing, the *blank*; a text is what is left when repetitions are
taken for one and blanks are left out, so that many rows of frames say the same text (Graves et al.
2006). ``greedy`` takes the best row. ``prefix_beams`` sums over rows (Graves 2012, section 7.5.3;
Hannun et al. 2014, arXiv 1408.2873, algorithm 1), and can ask a language model at each new token,
whose log-probability is added with a weight, and a bonus for each token (shallow fusion).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, final

import numpy as np
from numpy.typing import NDArray

NOTHING = -math.inf
LEAST = -12.0  # a token of this log-probability at a frame is not tried: 6e-6

LogProbs = NDArray[np.float64]
Prefix = tuple[int, ...]


class NextToken(Protocol):
    """What a language model of the recognizer's tokens says."""

    def after(self, prefixes: Sequence[Prefix]) -> LogProbs:
        """(prefixes, ids): the log-probability of what follows each of them."""

    def end(self, prefix: Prefix) -> float:
        """The log-probability that a text ends here."""


class CTCText(NamedTuple):
    """A text that was found."""

    ids: Prefix
    ctc: float
    """The log-probability that the frames say it, the sum over all rows that were followed."""
    score: float
    """That, and what the language model adds."""


def greedy(logprobs: LogProbs, blank: int) -> Prefix:
    """The text of the best row of ``logprobs`` (frames, ids)."""
    best = logprobs.argmax(1).tolist()
    return tuple(
        token
        for before, token in zip([blank, *best], best, strict=False)
        if token not in (blank, before)
    )


@final
class _Beam:
    """A prefix: the log-probabilities of the rows that say it and end with a blank, and of those
    that end with its last token.

    ``language``: what the language model adds for it. ``after``: what that says of the next token;
    None: it was not asked.
    """

    def __init__(self, language: float, after: LogProbs | None) -> None:
        self.blank = self.token = NOTHING
        self.language, self.next = language, after

    @property
    def total(self) -> float:
        """Of all rows that say the prefix."""
        return _sum(self.blank, self.token)


def prefix_beams(
    logprobs: LogProbs,
    blank: int,
    beams: int,
    language: NextToken | None = None,
    weight: float = 0.0,
    bonus: float = 0.0,
) -> list[CTCText]:
    """At most ``beams`` texts, the best first, of ``logprobs`` (frames, ids).

    ``language``: a language model, of which ``weight`` times the log-probability counts; ``bonus``
    is added for each token.
    """
    current: dict[Prefix, _Beam] = {(): _Beam(0.0, None)}
    current[()].blank = 0.0

    def rank(item: tuple[Prefix, _Beam]) -> float:
        return item[1].total + item[1].language + bonus * len(item[0])

    for frame in logprobs:
        tokens = [i for i in np.flatnonzero(frame > LEAST).tolist() if i != blank]
        if language is not None and tokens:
            _ask(language, current)
        new: dict[Prefix, _Beam] = {}
        for prefix, beam in current.items():
            total, same = beam.total, _place(new, prefix, beam)
            same.blank = _sum(same.blank, total + frame[blank])
            last = prefix[-1] if prefix else None
            if last is not None:
                same.token = _sum(same.token, beam.token + frame[last])
            for token in tokens:
                # a repetition is one token unless a blank stands between
                before = beam.blank if token == last else total
                if before == NOTHING:
                    continue
                longer = (*prefix, token)
                added = 0.0 if beam.next is None else weight * float(beam.next[token])
                other = current.get(longer)
                place = _place(new, longer, other, beam.language + added)
                place.token = _sum(place.token, before + frame[token])
        best = sorted(new.items(), key=rank, reverse=True)[:beams]
        current = dict(best)
    results = []
    for prefix, beam in current.items():
        ends = 0.0 if language is None else weight * language.end(prefix)
        score = beam.total + beam.language + ends + bonus * len(prefix)
        results.append(CTCText(prefix, beam.total, score))
    return sorted(results, key=lambda text: -text.score)


def _place(
    new: dict[Prefix, _Beam], prefix: Prefix, old: _Beam | None, language: float = 0.0
) -> _Beam:
    """The beam of a prefix at the next frame; what a language model says of it stays the same."""
    if prefix not in new:
        new[prefix] = _Beam(language, None) if old is None else _Beam(old.language, old.next)
    return new[prefix]


def _ask(language: NextToken, current: Mapping[Prefix, _Beam]) -> None:
    """Have a language model say what follows each prefix, where it has not yet."""
    new = [prefix for prefix, beam in current.items() if beam.next is None]
    if new:
        for prefix, logprobs in zip(new, language.after(new), strict=True):
            current[prefix].next = logprobs


def _sum(a: float, b: float) -> float:
    """log(e^a + e^b)."""
    if a < b:
        a, b = b, a
    return a if b == NOTHING else a + math.log1p(math.exp(b - a))
