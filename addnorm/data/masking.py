"""Which tokens a masked language model is asked for, and what stands there instead.

Of the tokens of a row a share is drawn, 15 % in Devlin et al. 2019 (arXiv 1810.04805, section 3.1):
in 80 % of these places stands [MASK], in 10 % any other token, in 10 % the token itself, so that
the model cannot tell which places are asked for. With whole words, all pieces of a word are drawn
together, as in BERT's later models (https://github.com/google-research/bert, "Whole Word Masking").
What is drawn depends on the key alone: the same row has the same masks in every process and after
every restart.
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from addnorm.data.tokenizer import Tokenizer

IGNORED = -100
"""The target of a place that is not asked for."""
MASK, OTHER = 0.8, 0.1
"""The shares of the places with [MASK], and with any other token."""


class MaskedRow(NamedTuple):
    """What a model sees, and what it is asked for, both (T,)."""

    ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    """The token that was there; ``IGNORED`` where none is asked for."""


@final
class Masking:
    """Draws the places of a row.

    ``tokenizer``: has a token for mask; its special tokens are never drawn.
    ``share``: how many of the tokens of a row are asked for, in (0, 1); one at least.
    ``whole_words``: whether the pieces of a word are drawn together.
    """

    def __init__(self, tokenizer: Tokenizer, share: float, whole_words: bool = False) -> None:
        self.share, self.whole_words = share, whole_words
        self.mask = tokenizer.role_id("mask")
        special = {*tokenizer.special.values()}
        # of each id: whether it may be drawn, and whether a word begins with it
        self._ordinary = np.ones(tokenizer.vocab_size, bool)
        self._begins = np.ones(tokenizer.vocab_size, bool)
        for i in range(tokenizer.vocab_size):
            try:
                # so a WordPiece writes what begins a word, and no other tokenizer has a mask
                self._begins[i] = tokenizer.token_bytes(i)[:1] == b" "
            except ValueError:  # a gap in the vocabulary
                self._ordinary[i] = False
            self._ordinary[i] &= i not in special
        self._others = np.flatnonzero(self._ordinary)

    def row(self, ids: NDArray[np.int64], key: Sequence[int]) -> MaskedRow:
        """The row with masks; ``key``: numbers of 0 and more, which decide what is drawn."""
        rng = np.random.default_rng(key)
        places = self._places(ids, rng)
        targets = np.full(len(ids), IGNORED, np.int64)
        targets[places] = ids[places]
        masked_ids, lot = ids.copy(), rng.random(len(places))
        others = rng.choice(self._others, len(places)) if len(self._others) else ids[places]
        masked_ids[places[lot < MASK]] = self.mask
        replaced = (lot >= MASK) & (lot < MASK + OTHER)
        masked_ids[places[replaced]] = others[replaced]
        return MaskedRow(masked_ids, targets)

    def _places(self, ids: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """The places, rising, where a token is asked for: single ones, or words in a random order
        until there are enough; none if the row has special tokens only."""
        places = np.flatnonzero(self._ordinary[ids])
        wish = max(round(self.share * len(places)), 1)
        if not self.whole_words or not len(places):
            return np.sort(rng.permutation(places)[:wish])
        # a word begins where its first piece stands, or behind what is no word
        opens = self._begins[ids[places]] | (np.diff(places, prepend=-2) > 1)
        words = np.split(places, np.flatnonzero(opens)[1:] if opens[0] else np.flatnonzero(opens))
        words_asked: list[NDArray[np.int64]] = []
        count = 0
        for i in rng.permutation(len(words)):
            if count and count + len(words[i]) > wish:
                continue
            words_asked.append(words[i])
            count += len(words[i])
            if count >= wish:
                break
        return np.sort(np.concatenate(words_asked))
