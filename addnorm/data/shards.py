"""Text to token ids on disk, once: ``prepare``; and back by memory map: ``Prepared``.

    <cache>/<key>/meta.json           what is in it: the last file written
                  train-00000.bin     ids, little-endian, uint16 where the vocabulary allows it
                  train-starts.bin    int64: the index of each document's first token
                  val-00000.bin ...

A document is stored as the end-of-text token, if the tokenizer has one, and its ids: so the token
before a document's first character is that which ended the document before, as GPT-2 was trained.

The text is read three times: to hash it, to count, and to tokenize; learning a tokenizer from it
takes two passes more. Memory holds a few megabytes of it, however long it or one of its documents
is.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import time
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple, final, get_args

import numpy as np
from numpy.typing import NDArray

from addnorm import disk, reading
from addnorm.data.cuts import CUT, WHITESPACE
from addnorm.data.sources import DataError, Source
from addnorm.data.tokenizer import Tokenizer, TokenizerError
from addnorm.progress import ProgressBar

__all__ = ["Prepared", "Split", "Summary", "Tokens", "prepare", "training_texts"]

Rule = Literal["auto", "documents", "tail"]

FORMAT = 1  # changes whenever the same text would give other files
META = "meta.json"
SPLITS = ("train", "val")

SHARD = 1 << 28  # tokens in a file at most
BATCH = 1 << 20  # characters tokenized at a time
ENOUGH = 20  # documents, from which on "auto" keeps documents whole
FULL = 10**9  # bytes up to which every byte is checked when a data set is opened
STALE = 3600  # seconds without a write after which an unfinished folder is taken for abandoned
SAMPLES, SAMPLE = 64, 1 << 16  # of a file: how many pieces, of how many bytes

PATIENCE = 2.0  # seconds without a progress bar
INTERVAL = 30.0  # seconds between the lines that stand for it where there is no terminal

MARGIN = 500  # characters on each side with which a cut is tried
TRIES = 1000  # places tried before more text is waited for
LONGEST = 1 << 21  # characters without a harmless cut, after which the text is cut anywhere
REMEMBERED = 1 << 21  # characters of words whose ids are remembered

# GPT-2's words; one that other than ASCII follows is taken with all up to the next whitespace. `re`
# does not know \p{L} and \p{N}, the letters and numbers of all scripts; for ASCII they are these.
WORD = re.compile(
    r"(?:'(?:[stmd]|re|ve|ll)| ?(?:[A-Za-z]+|[0-9]+|[!-/:-@\[-`{-~\x00-\x08\x0e-\x1f\x7f]+))"
    rf"(?:[^\x00-\x7f{WHITESPACE}][^{WHITESPACE}]*)?"
    f"| ?[^{WHITESPACE}]+|[{WHITESPACE}]+(?![^{WHITESPACE}])|[{WHITESPACE}]+"
)


# --- what was prepared ----------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Split:
    """How much there is of one split; ``bytes`` is of its text in UTF-8."""

    documents: int
    tokens: int
    bytes: int


@final
@dataclass(frozen=True)
class Summary:
    """What a prepared data set holds. ``rule`` is "documents" or "tail"."""

    source: str
    content: str  # the source's identity, its first 16 digits
    tokenizer: str  # the tokenizer's identity
    vocab_size: int
    eos_id: int | None
    rule: str
    val_fraction: float
    splits: dict[str, Split]

    def __str__(self) -> str:
        rules = {
            "documents": f"whole documents, those with the lowest {self.val_fraction:g} of hashes",
            "tail": f"the last {self.val_fraction:g} of each document",
        }
        return "\n".join(
            [
                f"{self.source} (content {self.content}, tokenizer {self.tokenizer})",
                *(
                    f"{name:5} {s.documents:,} documents, {s.tokens:,} tokens, {s.bytes:,} bytes"
                    for name, s in self.splits.items()
                ),
                f"validation: {rules[self.rule]}",
            ]
        )


@final
class Tokens:
    """The ids of one split, read by memory map."""

    def __init__(self, folder: Path, name: str, meta: dict[str, Any]):
        self._made_of = (folder, name, meta)
        found = meta["splits"][name]
        self.name = name
        self.documents: int = found["documents"]
        self.bytes: int = found["bytes"]
        """Of the UTF-8 of the text, for bits per byte."""
        self.starts: NDArray[np.int64] = np.memmap(folder / found["starts"], "<i8", mode="r")
        """The index of each document's first token."""
        self._shards = [
            np.memmap(folder / file, meta["dtype"], mode="r") for file in found["shards"]
        ]
        self._firsts = np.cumsum([0, *map(len, self._shards)]).tolist()

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokens, self._made_of  # a process of its own maps the files again

    def __len__(self) -> int:
        """The number of tokens."""
        return self._firsts[-1]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """The tokens start ... stop - 1, read-only; copied only where they are in several files."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of the {len(self)} in {self.name}")
        here = bisect_right(self._firsts, start, hi=len(self._shards)) - 1
        parts = []
        for first, shard in zip(self._firsts[here:], self._shards[here:], strict=False):
            parts.append(shard[max(start - first, 0) : stop - first])
            if stop <= first + len(shard):
                break
        return np.asarray(parts[0] if len(parts) == 1 else np.concatenate(parts))


@final
@dataclass(frozen=True)
class Prepared:
    """One prepared data set on disk. ``reused``: it was there already."""

    folder: Path
    summary: Summary
    reused: bool
    _meta: dict[str, Any] = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> "Prepared":
        """What ``prepare`` wrote there. Up to a gigabyte, every byte is compared with its SHA-256;
        beyond that the sizes, and 64 pieces of each file. ``verify`` compares all."""
        meta = _read_meta(folder)
        size = sum(file["bytes"] for file in meta["files"].values())
        with reading.system_errors(folder, DataError):
            _check(folder, meta, full=size <= FULL)
        return cls._of(folder, meta, reused=True)

    @classmethod
    def _of(cls, folder: Path, meta: dict[str, Any], reused: bool) -> "Prepared":
        counts = ("documents", "tokens", "bytes")
        splits = {name: Split(*(meta["splits"][name][c] for c in counts)) for name in SPLITS}
        return cls(folder, Summary(**meta["summary"], splits=splits), reused, meta)

    def split(self, name: str) -> Tokens:
        """ "train" or "val"."""
        if name not in SPLITS:
            raise ValueError(f"no split {name!r}, only {' and '.join(map(repr, SPLITS))}")
        return Tokens(self.folder, name, self._meta)

    def verify(self) -> None:
        """Compare every byte with what was written; a DataError names the file that differs."""
        with reading.system_errors(self.folder, DataError):
            _check(self.folder, self._meta, full=True)


def prepare(
    source: Source,
    tokenizer: Tokenizer,
    cache: Path,
    *,
    val_fraction: float = 0.1,
    split: Rule = "auto",
    workers: int | None = None,
    progress: bool | None = None,
) -> Prepared:
    """Tokenize a source into ``cache/<key>/``, or find that this was done before.

    The key is a hash of the content, the tokenizer, and how validation is split off; paths and
    times are not in it. ``split`` says how:

    * "documents": a document is validation if the hash of its text is in the lowest
      ``val_fraction`` of all hashes. Adding documents moves none, and copies stay together. If one
      side would be empty, it gets the document with the lowest, or highest, hash.
    * "tail": the last ``val_fraction`` of each document's characters is validation, as in nanoGPT.
    * "auto": documents if there are at least 20, else tail.

    BPE is done with the threads of the ``tokenizers`` package. With ``workers``, so many processes
    tokenize: worth it from some 100 MB on; a script that asks for them needs the usual
    ``if __name__ == "__main__"``.

    A document too long for memory is tokenized in pieces, which have the ids of the whole: each cut
    is tried first. Only text with no whitespace for two million characters is cut anywhere.

    Whoever is killed leaves nothing that is taken for finished, and two that prepare the same at
    once both end well. ``progress``: a bar on a terminal, else a line now and then; None: only if
    it takes more than a few seconds.
    """
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction is {val_fraction}: more than 0 and less than 1")
    if split not in get_args(Rule):
        raise DataError(f"no split {split!r}, only {', '.join(map(repr, get_args(Rule)))}")
    if workers is not None and workers < 1:
        raise DataError(f"workers is {workers}: at least 1")
    with ProgressBar(
        in_bytes=True,
        patience=0.0 if progress else PATIENCE,
        interval=INTERVAL,
        hidden=progress is False,
    ) as bar:
        bar.begin(f"hashing {source.name}")
        content = source.identity()
        decides = [FORMAT, content, tokenizer.identity, tokenizer.eos_id, split, val_fraction]
        folder = cache / hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
        if folder.exists():
            return Prepared.open(folder)
        bar.begin(f"counting {source.name}")
        survey = _Survey(source, val_fraction, bar)
        rule = survey.rule(split)
        pieces = _whole(source, survey) if rule == "documents" else _cut_off(source, survey)
        summary = {
            "source": source.name,
            "content": content[:16],
            "tokenizer": tokenizer.identity,
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
            "rule": rule,
            "val_fraction": val_fraction,
        }
        bar.begin(f"tokenizing {source.name}", survey.bytes)
        try:
            meta = _write(folder, pieces, tokenizer, summary, survey.bytes, workers, bar)
        except _Done:  # somebody else was faster
            return Prepared.open(folder)
        except TokenizerError as error:  # a character that it does not have
            raise DataError(f"{source.name}: {error}") from None
    return Prepared._of(folder, meta, reused=False)


def training_texts(
    source: Source, *, val_fraction: float = 0.1, split: Rule = "auto"
) -> Iterator[str]:
    """The text that ``prepare`` takes for training, in pieces: what a tokenizer may learn from."""
    survey = _Survey(source, val_fraction, ProgressBar(hidden=True))
    whole = survey.rule(split) == "documents"
    for piece in _whole(source, survey) if whole else _cut_off(source, survey):
        if piece.split == "train":
            yield piece.text


# --- which text goes where ------------------------------------------------------------------------


class _Piece(NamedTuple):
    """Text of one document and split; ``first`` and ``last`` of what that split gets of it."""

    split: str
    text: str
    first: bool
    last: bool


@final
class _Survey:
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


def _whole(source: Source, survey: _Survey) -> Iterator[_Piece]:
    """Documents as they are, to the side that their hash says."""
    index, first = 0, True
    for text, ends in source.parts():
        number = survey.hashes.get(index)
        if number is None:
            number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
        yield _Piece("val" if number < survey.threshold else "train", text, first, ends)
        index, first = index + ends, ends


def _cut_off(source: Source, survey: _Survey) -> Iterator[_Piece]:
    """The first characters of each document to train, the last to val."""
    index = done = 0
    for text, ends in source.parts():
        length = survey.lengths.get(index, len(text))
        cut = int(length * (1 - survey.val_fraction))  # as nanoGPT: int(len(text) * 0.9)
        here = min(max(cut - done, 0), len(text))
        if here:
            yield _Piece("train", text[:here], done == 0, done + here == cut)
        if here < len(text):
            yield _Piece("val", text[here:], done <= cut, ends)
        index, done = (index + 1, 0) if ends else (index, done + len(text))


def _cuttable(pieces: Iterable[_Piece], encoder: "_Encoder") -> Iterator[_Piece]:
    """The text in pieces of LONGEST at most, cut where the ids do not show it."""
    rest, first = "", False
    for piece in pieces:
        text, first, start = rest + piece.text, first or piece.first, 0
        while start < len(text):
            some = text[start : start + LONGEST]
            at_end = start + len(some) == len(text)
            end = len(some) if at_end and piece.last else encoder.cut(some)
            if end:
                yield _Piece(piece.split, some[:end], first, piece.last)
                first = False
            start += end
            if at_end:
                break
        rest = text[start:]


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
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


class _Encoder(ABC):
    """A tokenizer, with ids as the bytes that are written."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of each text."""

    def cut(self, text: str) -> int:
        """How much of the text may be encoded without knowing how it goes on; 0 if nothing."""
        return len(text)


@final
class _ByBytes(_Encoder):
    """Ids are bytes."""

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        return [np.frombuffer(text.encode(), np.uint8).astype("<u2").tobytes() for text in texts]


@final
class _ByCharacters(_Encoder):
    """Ids from a table over all code points."""

    def __init__(self, tokenizer: Tokenizer, dtype: str):
        self._tokenizer, self._dtype = tokenizer, dtype
        self._table = np.full(sys.maxunicode + 1, tokenizer.vocab_size, np.uint32)
        for id in range(tokenizer.vocab_size):
            self._table[ord(tokenizer.decode([id]))] = id

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        found = []
        for text in texts:
            ids = self._table[np.frombuffer(text.encode("utf-32-le"), "<u4")]
            if ids.max() == self._tokenizer.vocab_size:
                self._tokenizer.encode(text)  # says which characters it does not have
            found.append(ids.astype(self._dtype).tobytes())
        return found


@final
class _ByPairs(_Encoder):
    """Any BPE. Where a long document may be cut depends on how it splits text into words."""

    def __init__(self, tokenizer: Tokenizer, dtype: str):
        self._tokenizer, self._dtype = tokenizer, dtype

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        return [np.array(ids, self._dtype).tobytes() for ids in self._tokenizer.encode_batch(texts)]

    def cut(self, text: str) -> int:
        """The last place where the ids around it are the same with the cut as without."""
        tries, width = 0, MARGIN
        stop = len(text) - MARGIN  # what follows decides too
        while stop > 0 and tries < TRIES:
            start = max(0, stop - width)
            for match in reversed([*CUT.finditer(text, start, stop + 1)]):
                tries += 1
                if self._harmless(text, match.end()):
                    return match.end()
            stop, width = start, 2 * width
        return len(text) if len(text) >= LONGEST else 0

    def _harmless(self, text: str, place: int) -> bool:
        left, right = text[max(0, place - MARGIN) : place], text[place : place + MARGIN]
        whole, *halves = self._tokenizer.encode_batch([left + right, left, right])
        return whole == halves[0] + halves[1]


@final
class _ByWords(_Encoder):
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
        rows = [WORD.findall(text) for text in texts]
        needed = set[str]().union(*rows) - self._recent.keys()
        known = needed & self._older.keys()
        self._recent.update((word, self._older[word]) for word in known)
        new = [*(needed - known)]
        self._recent.update(zip(new, self._pairs.encode(new), strict=True))
        encoded = [b"".join(map(self._recent.__getitem__, row)) for row in rows]
        self._size += sum(map(len, needed))
        if self._size > REMEMBERED:
            self._older, self._recent, self._size = self._recent, {}, 0
        return encoded

    def cut(self, text: str) -> int:
        return self._pairs.cut(text)


def _dtype(tokenizer: Tokenizer) -> str:
    return "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"


def _encoder(tokenizer: Tokenizer) -> _Encoder:
    dtype = _dtype(tokenizer)
    if tokenizer.kind == "bytes":
        return _ByBytes()
    if tokenizer.kind == "characters":
        return _ByCharacters(tokenizer, dtype)
    return (_ByWords if tokenizer.has_gpt2_words else _ByPairs)(tokenizer, dtype)


def _encoded(
    batches: Iterable[list[_Piece]], tokenizer: Tokenizer, encoder: _Encoder, workers: int | None
) -> Iterator[tuple[list[_Piece], list[bytes]]]:
    """Batches with their ids, in order."""
    if workers is None:
        for batch in batches:
            yield batch, encoder.encode([piece.text for piece in batch])
        return
    # spawn: a process that has used threads, as torch and tokenizers do, must not be forked.
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (tokenizer,)) as pool:
        waiting: deque[tuple[list[_Piece], Future[list[bytes]]]] = deque()
        try:
            for batch in batches:
                work = pool.submit(_work, [piece.text for piece in batch])
                waiting.append((batch, work))
                if len(waiting) > workers + 1:
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


_worker: list[_Encoder] = []  # of a process that only tokenizes: one


def _start_worker(tokenizer: Tokenizer) -> None:
    _worker.append(_encoder(tokenizer))


def _work(texts: list[str]) -> list[bytes]:
    return _worker[0].encode(texts)


# --- writing --------------------------------------------------------------------------------------


@final
class _Done(Exception):
    """The folder was finished by somebody else."""


def _write(
    folder: Path,
    pieces: Iterable[_Piece],
    tokenizer: Tokenizer,
    summary: dict[str, Any],
    size: int,
    workers: int | None,
    bar: ProgressBar,
) -> dict[str, Any]:
    """Write all files into a folder of another name, which is renamed when they are on the disk."""
    dtype, encoder = _dtype(tokenizer), _encoder(tokenizer)
    eos = b"" if tokenizer.eos_id is None else np.array([tokenizer.eos_id], dtype).tobytes()
    part = _part(folder)
    try:
        with ExitStack() as stack:
            writers = {name: stack.enter_context(_Writer(part, name, dtype)) for name in SPLITS}
            batches = _batches(_cuttable(pieces, encoder))
            for batch, rows in _encoded(batches, tokenizer, encoder, workers):
                for piece, ids in zip(batch, rows, strict=True):
                    writer, text = writers[piece.split], len(piece.text.encode())
                    if piece.first:
                        writer.begin(eos)
                    writer.add(ids, text)
                    bar.advance(text)
        splits = {name: writer.meta() for name, writer in writers.items()}
        for name, found in splits.items():
            if not found["bytes"]:
                raise DataError(
                    f"{summary['source']}: too short to split, with val_fraction="
                    f"{summary['val_fraction']:g} nothing is left for {name}"
                )
        if sum(found["bytes"] for found in splits.values()) != size:
            raise DataError(f"{summary['source']} was changed while it was being read")
        files = {name: found for w in writers.values() for name, found in w.files.items()}
        meta = {"format": FORMAT, "dtype": dtype, "summary": summary, "splits": splits}
        meta |= {"files": files}
        content = json.dumps({**meta, "checksum": _checksum(meta)}, indent=1)
        _Out(part / META).finish(content.encode())
        try:
            disk.show(part, folder)
        except OSError:
            if folder.exists():
                raise _Done from None
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)  # gone already, if all went well
    return meta


def _part(folder: Path) -> Path:
    """A new folder to write to. A data set may have gigabytes, so what processes left that were
    killed is cleared away, once it is so old that nobody can be writing to it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for old in folder.parent.glob(f".{folder.name}.*"):
            written = max((p.stat().st_mtime for p in (old, *old.iterdir())), default=0.0)
            if written < time.time() - STALE:
                shutil.rmtree(old, ignore_errors=True)
        part = disk.hidden_beside(folder)
        part.mkdir()
    except OSError as error:
        raise _unwritten(folder.parent, error) from None
    return part


def _unwritten(cache: Path, error: OSError) -> DataError:
    return DataError(f"cannot write to {cache}: {error.strerror}")


@final
class _Out:
    """A file that is hashed while it is written: to read gigabytes again would take as long."""

    def __init__(self, path: Path):
        self.path, self.size = path, 0
        self._file, self._sha = path.open("xb"), hashlib.sha256()

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise _unwritten(self.path.parent.parent, error) from None
        self._sha.update(data)
        self.size += len(data)

    def finish(self, data: bytes = b"") -> dict[str, Any]:
        """Close it when it is on the disk; returns what is recorded of it."""
        self.write(data)
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            self.close()
            raise _unwritten(self.path.parent.parent, error) from None
        return {
            "bytes": self.size,
            "sha256": self._sha.hexdigest(),
            "sample": _sample(self.path, self.size),
        }

    def close(self) -> None:
        """Without waiting for the disk, when something went wrong."""
        with suppress(OSError):
            self._file.close()


@final
class _Writer:
    """The files of one split."""

    def __init__(self, folder: Path, name: str, dtype: str):
        self._folder, self._name, self._width = folder, name, np.dtype(dtype).itemsize
        self._documents = self._tokens = self._text = 0
        self._starts = _Out(folder / f"{name}-starts.bin")
        self._shards = [_Out(folder / f"{name}-00000.bin")]
        self.files: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        outs = (self._starts, self._shards[-1])
        try:
            if kind is None:
                self.files |= {out.path.name: out.finish() for out in outs}
        finally:
            for out in outs:
                out.close()

    def begin(self, eos: bytes) -> None:
        """Begin a document: note where, and write its end-of-text token."""
        self._starts.write(np.array([self._tokens], "<i8").tobytes())
        self._documents += 1
        self.add(eos, 0)

    def add(self, ids: bytes, text: int) -> None:
        """Ids of so many bytes of text, into as many files as it takes."""
        self._text += text
        self._tokens += len(ids) // self._width
        while ids:
            out = self._shards[-1]
            if out.size == SHARD * self._width:
                self.files[out.path.name] = out.finish()
                out = _Out(self._folder / f"{self._name}-{len(self._shards):05}.bin")
                self._shards.append(out)
            room = SHARD * self._width - out.size
            out.write(ids[:room])
            ids = ids[room:]

    def meta(self) -> dict[str, Any]:
        """What is recorded of the split."""
        return {
            "documents": self._documents,
            "tokens": self._tokens,
            "bytes": self._text,
            "starts": self._starts.path.name,
            "shards": [out.path.name for out in self._shards],
        }


# --- checking -------------------------------------------------------------------------------------


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / META
    if not path.exists():
        raise DataError(f"{folder} is not a prepared data set: it has no {META}")
    try:
        meta = reading.json_object(path, DataError)
        recorded = reading.field(meta, "checksum", str, path, DataError)
    except DataError as error:
        raise _damaged(folder, str(error)) from None
    del meta["checksum"]
    if recorded != _checksum(meta):
        raise _damaged(folder, f"{META} is not what was written")
    if meta["format"] != FORMAT:
        raise DataError(
            f"{folder} has format {meta['format']}, this version of addnorm reads {FORMAT}: "
            "prepare the text again"
        )
    return meta


def _check(folder: Path, meta: dict[str, Any], full: bool) -> None:
    for name, expected in meta["files"].items():
        path, size = folder / name, expected["bytes"]
        if full:
            wrong = disk.difference(path, size, expected["sha256"])
        else:
            wrong = disk.wrong_size(path, size)
            if wrong is None and _sample(path, size) != expected["sample"]:
                wrong = "is not what was written"
        if wrong is not None:
            raise _damaged(folder, f"{name} {wrong}")


def _sample(path: Path, size: int) -> str:
    """A hash of pieces of a file, the first and the last among them."""
    hash = hashlib.sha256()
    with path.open("rb") as file:
        for place in np.linspace(0, max(0, size - SAMPLE), SAMPLES, dtype=np.int64).tolist():
            file.seek(place)
            hash.update(file.read(SAMPLE))
    return hash.hexdigest()


def _checksum(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _damaged(folder: Path, what: str) -> DataError:
    return DataError(
        f"the data set in {folder} is damaged: {what}. Delete the folder and try again"
    )


# --- telling --------------------------------------------------------------------------------------
