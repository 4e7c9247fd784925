"""Text to the bytes of its ids, a batch at a time, in one process or in several."""

import re
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import final

import numpy as np

from addnorm.data.cuts import ENCODING_LIMIT, WHITESPACE, harmless_cut
from addnorm.data.sources import DataError
from addnorm.data.split import DocumentPart
from addnorm.data.tokenizer import Tokenizer

BATCH = 1 << 20  # characters tokenized at a time
REMEMBERED = 1 << 21  # characters of words whose ids are remembered

# GPT-2's words; one that other than ASCII follows is taken with all up to the next whitespace. `re`
# does not know \p{L} and \p{N}, the letters and numbers of all scripts; for ASCII they are these.
WORD = re.compile(
    r"(?:'(?:[stmd]|re|ve|ll)| ?(?:[A-Za-z]+|[0-9]+|[!-/:-@\[-`{-~\x00-\x08\x0e-\x1f\x7f]+))"
    rf"(?:[^\x00-\x7f{WHITESPACE}][^{WHITESPACE}]*)?"
    f"| ?[^{WHITESPACE}]+|[{WHITESPACE}]+(?![^{WHITESPACE}])|[{WHITESPACE}]+"
)


def cuttable(pieces: Iterable[DocumentPart], encoder: "Encoder") -> Iterator[DocumentPart]:
    """The same text in pieces that the encoder can take by themselves: of ENCODING_LIMIT characters
    at most, and cut where the ids do not show it. Text without such a place waits for what follows
    in its document, so that a piece may have text of several of ``pieces``."""
    rest, first = "", False
    for piece in pieces:
        text, first, start = rest + piece.text, first or piece.first, 0
        while start < len(text):
            some = text[start : start + ENCODING_LIMIT]
            at_end = start + len(some) == len(text)
            end = len(some) if at_end and piece.last else encoder.cut(some)
            if end:
                yield DocumentPart(piece.split, some[:end], first, piece.last)
                first = False
            start += end
            if at_end:
                break
        rest = text[start:]


def batches(pieces: Iterable[DocumentPart]) -> Iterator[list[DocumentPart]]:
    """The pieces in their order, in batches of BATCH characters together, or of a few more; the
    last one may have fewer, and none is empty."""
    batch: list[DocumentPart] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# --- text to ids ----------------------------------------------------------------------------------


class Encoder(ABC):
    """A tokenizer, with ids as the bytes that are written."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of each text, none of which is empty, in the dtype that ``dtype_for`` names."""

    def cut(self, text: str) -> int:
        """How much of the text may be encoded without knowing how it goes on; 0 if nothing."""
        return len(text)


@final
class _ByBytes(Encoder):
    """The tokenizer whose ids are the bytes of UTF-8."""

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        return [np.frombuffer(text.encode(), np.uint8).astype("<u2").tobytes() for text in texts]


@final
class _ByCharacters(Encoder):
    """The tokenizer of characters: ids from a table over all code points, in ``dtype``. A character
    that it does not have is a TokenizerError."""

    def __init__(self, tokenizer: Tokenizer, dtype: str):
        self._tokenizer, self._dtype = tokenizer, dtype
        self._table = np.full(sys.maxunicode + 1, tokenizer.vocab_size, np.uint32)
        special = set(tokenizer.special.values())  # which no text has, whatever they are called
        for id in {*range(tokenizer.vocab_size)} - special:
            self._table[ord(tokenizer.decode([id]))] = id

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """By the table; an id of vocab_size in it stands for a character that there is not."""
        rows = []
        for text in texts:
            ids = self._table[np.frombuffer(text.encode("utf-32-le"), "<u4")]
            if ids.max() == self._tokenizer.vocab_size:
                self._tokenizer.encode(text)  # says which characters it does not have
            rows.append(ids.astype(self._dtype).tobytes())
        return rows


@final
class _ByPairs(Encoder):
    def __init__(self, tokenizer: Tokenizer, dtype: str):
        self._tokenizer, self._dtype = tokenizer, dtype

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        return [np.array(ids, self._dtype).tobytes() for ids in self._tokenizer.encode_batch(texts)]

    def cut(self, text: str) -> int:
        """The last harmless place; anywhere, once the text is too long to wait for one."""
        place = harmless_cut(text, self._tokenizer.encode_batch)
        return place or (len(text) if len(text) >= ENCODING_LIMIT else 0)


@final
class _ByWords(Encoder):
    """A BPE with GPT-2's words.

    Most words of a text came before: their ids are remembered, and joining those is five times
    faster than to split and merge again. What was not seen for a while is forgotten.
    """

    def __init__(self, tokenizer: Tokenizer, dtype: str):
        self._pairs = _ByPairs(tokenizer, dtype)
        self._recent: dict[str, bytes] = {}
        self._older: dict[str, bytes] = {}
        self._size = 0  # characters in _recent

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """By words: only those that were not seen lately go through the tokenizer."""
        rows = [WORD.findall(text) for text in texts]
        missing = set[str]().union(*rows) - self._recent.keys()
        again = missing & self._older.keys()
        self._recent.update((word, self._older[word]) for word in again)
        new = [*(missing - again)]
        self._recent.update(zip(new, self._pairs.encode(new), strict=True))
        encoded = [b"".join(map(self._recent.__getitem__, row)) for row in rows]
        self._size += sum(map(len, missing))
        if self._size > REMEMBERED:
            self._older, self._recent, self._size = self._recent, {}, 0
        return encoded

    def cut(self, text: str) -> int:
        return self._pairs.cut(text)


def dtype_for(tokenizer: Tokenizer) -> str:
    """The dtype of the ids on disk: two bytes where the vocabulary allows it."""
    return "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"


def encoder_for(tokenizer: Tokenizer) -> Encoder:
    """The quickest for its kind."""
    dtype = dtype_for(tokenizer)
    if tokenizer.kind == "bytes":
        return _ByBytes()
    if tokenizer.kind == "characters":
        return _ByCharacters(tokenizer, dtype)
    return (_ByWords if tokenizer.has_gpt2_words else _ByPairs)(tokenizer, dtype)


def encoded(
    batches: Iterable[list[DocumentPart]],
    tokenizer: Tokenizer,
    encoder: Encoder,
    workers: int | None,
) -> Iterator[tuple[list[DocumentPart], list[bytes]]]:
    """(batch, the bytes of the ids of each piece in it), in order. ``workers``: how many processes
    encode; None: this one does, by ``encoder``, which is the ``tokenizer``'s. A ``DataError`` where
    a process dies."""
    if workers is None:
        for batch in batches:
            yield batch, encoder.encode([piece.text for piece in batch])
        return
    # spawn: a process that has used threads, as torch and tokenizers do, must not be forked.
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (tokenizer,)) as pool:
        waiting: deque[tuple[list[DocumentPart], Future[list[bytes]]]] = deque()
        try:
            for batch in batches:
                work = pool.submit(_work, [piece.text for piece in batch])
                waiting.append((batch, work))
                if len(waiting) > workers + 1:  # enough that nobody waits, and no more in memory
                    batch, work = waiting.popleft()
                    yield batch, work.result()
            for batch, work in waiting:
                yield batch, work.result()
        except BrokenProcessPool:
            raise DataError(
                "a process that tokenizes has died. In a script, call this under "
                'if __name__ == "__main__"; if it was killed for memory, use fewer workers'
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_worker: list[Encoder] = []  # of a process that only tokenizes: one


def _start_worker(tokenizer: Tokenizer) -> None:
    """What a process does first: make its own encoder, which cannot be sent."""
    _worker.append(encoder_for(tokenizer))


def _work(texts: list[str]) -> list[bytes]:
    return _worker[0].encode(texts)
