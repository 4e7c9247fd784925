"""Which text is for training and which is held out: by a hash of each document, or its end."""

import hashlib
from collections.abc import Iterator
from typing import Literal, NamedTuple, final

from addnorm.data.sources import DataError, Source
from addnorm.progress import ProgressBar

Rule = Literal["auto", "documents", "tail"]

ENOUGH = 20  # documents, from which on "auto" keeps documents whole


class Piece(NamedTuple):
    """Text of one document and split; ``first`` and ``last`` of what that split gets of it."""

    split: str
    text: str
    first: bool
    last: bool


@final
class Survey:
    """What must be known before the first token is written, from one pass over the text."""

    def __init__(self, source: Source, val_fraction: float, bar: ProgressBar):
        self.val_fraction = val_fraction
        self.documents = self.bytes = 0
        self.lengths: dict[int, int] = {}  # characters of the documents that come in several parts
        self.hashes: dict[int, int] = {}  # and their hashes
        self._name, self._low, self._high = source.name, 1 << 64, -1
        hash, characters, parts = hashlib.blake2b(digest_size=8), 0, 0
        for text, ends in source.parts():
            data = text.encode()
            hash.update(data)
            characters, parts = characters + len(text), parts + 1
            self.bytes += len(data)
            bar.advance(len(data))
            if not ends:
                continue
            number = int.from_bytes(hash.digest())
            self._low, self._high = min(self._low, number), max(self._high, number)
            if parts > 1:
                self.lengths[self.documents], self.hashes[self.documents] = characters, number
            self.documents += 1
            hash, characters, parts = hashlib.blake2b(digest_size=8), 0, 0
        if not self.documents:
            raise DataError(f"{source.name}: no text in it")

    def rule(self, asked: Rule) -> str:
        """ "documents" or "tail"."""
        same = self._low == self._high
        if asked == "auto":
            return "documents" if self.documents >= ENOUGH and not same else "tail"
        if asked == "documents" and same:
            what = "one document" if self.documents == 1 else "copies of one document"
            raise DataError(f"{self._name} is {what}: split it by tail, or give more documents")
        return asked

    @property
    def threshold(self) -> int:
        """Documents with a lower hash are validation; both sides get one at least."""
        return min(max(int(self.val_fraction * 2**64), self._low + 1), self._high)


def whole(source: Source, survey: Survey) -> Iterator[Piece]:
    """Documents as they are, to the side that their hash says."""
    index, first = 0, True
    for text, ends in source.parts():
        number = survey.hashes.get(index)
        if number is None:
            number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
        yield Piece("val" if number < survey.threshold else "train", text, first, ends)
        index, first = index + ends, ends


def cut_off(source: Source, survey: Survey) -> Iterator[Piece]:
    """The first characters of each document to train, the last to val."""
    index = done = 0
    for text, ends in source.parts():
        length = survey.lengths.get(index, len(text))
        cut = int(length * (1 - survey.val_fraction))  # as nanoGPT: int(len(text) * 0.9)
        here = min(max(cut - done, 0), len(text))
        if here:
            yield Piece("train", text[:here], done == 0, done + here == cut)
        if here < len(text):
            yield Piece("val", text[here:], done <= cut, ends)
        index, done = (index + 1, 0) if ends else (index, done + len(text))
