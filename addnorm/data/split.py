"""Which text is for training and which is held out: by a hash of each document, or its end."""

import hashlib
from collections.abc import Iterator
from typing import Literal, NamedTuple, final

from addnorm.data.sources import DataError, Source
from addnorm.progress import ProgressBar

Rule = Literal["auto", "documents", "tail"]

ENOUGH = 20  # documents, from which on "auto" keeps documents whole


class DocumentPart(NamedTuple):
    """Text of one document that goes to one split.

    ``split``: "train" or "val"; ``text``: what goes there; ``first``, ``last``: whether it is the
    first, and the last, that this split gets of the document.
    """

    split: str
    text: str
    first: bool
    last: bool


HASHES = 1 << 64
"""How many different hashes of a text there are: those below a fraction of it are held out."""


def text_hash(text: str) -> int:
    """A number from 0 to HASHES - 1 that depends on the text alone."""
    hash = _new_hash()
    hash.update(text.encode())
    return int.from_bytes(hash.digest())


def _new_hash() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=8)


@final
class Survey:
    """What must be known before the first token is written, from one pass over the text.

    ``source``: the text; ``val_fraction``: how much of it is to be held out; ``bar``: advances with
    the bytes that are read.
    """

    def __init__(self, source: Source, val_fraction: float, bar: ProgressBar):
        self.val_fraction = val_fraction
        self.documents = self.bytes = 0
        self.lengths: dict[int, int] = {}  # characters of the documents that come in several parts
        self.hashes: dict[int, int] = {}  # and their hashes
        self._name = source.name
        self._low, self._high = HASHES, -1  # the lowest and the highest hash of a document
        hash, characters, parts = _new_hash(), 0, 0
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
            hash, characters, parts = _new_hash(), 0, 0
        if not self.documents:
            raise DataError(f"{source.name}: no text in it")

    def rule(self, wish: Rule) -> str:
        """ "documents" or "tail": what the setting ``wish`` comes to for this text.

        Documents that are all alike, a single one among them, have one hash, and so cannot be
        divided by it: "auto" is then "tail", and "documents" a ``DataError``.
        """
        same = self._low == self._high
        if wish == "auto":
            return "documents" if self.documents >= ENOUGH and not same else "tail"
        if wish == "documents" and same:
            what = "one document" if self.documents == 1 else "copies of one document"
            raise DataError(f"{self._name} is {what}: split it by tail, or give more documents")
        return wish

    @property
    def threshold(self) -> int:
        """Documents with a lower hash are validation; both sides get one at least."""
        return min(max(int(self.val_fraction * HASHES), self._low + 1), self._high)


def pieces(source: Source, survey: Survey, rule: str) -> Iterator[DocumentPart]:
    """The text of a source, each piece with the split that it goes to; ``rule`` is the survey's."""
    return _by_documents(source, survey) if rule == "documents" else _by_tail(source, survey)


def _by_documents(source: Source, survey: Survey) -> Iterator[DocumentPart]:
    """Documents as they are, to the side that their hash says. ``survey`` is of the same source: it
    has the hashes of documents that come in several parts."""
    index, first = 0, True
    for text, ends in source.parts():
        number = survey.hashes.get(index)
        if number is None:  # the document is this one part
            number = text_hash(text)
        yield DocumentPart("val" if number < survey.threshold else "train", text, first, ends)
        index, first = index + ends, ends


def _by_tail(source: Source, survey: Survey) -> Iterator[DocumentPart]:
    """The first characters of each document to train, the last to val. ``survey`` is of the same
    source: it has the lengths of documents that come in several parts."""
    index = before = 0  # documents, and characters of this one, that are behind us
    for text, ends in source.parts():
        length = survey.lengths.get(index, len(text))
        cut = int(length * (1 - survey.val_fraction))  # as nanoGPT: int(len(text) * 0.9)
        here = min(max(cut - before, 0), len(text))
        if here:
            yield DocumentPart("train", text[:here], before == 0, before + here == cut)
        if here < len(text):
            yield DocumentPart("val", text[here:], before <= cut, ends)
        index, before = (index + 1, 0) if ends else (index, before + len(text))
