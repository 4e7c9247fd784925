"""Text to token ids on disk, once: ``prepare``.

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
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final, get_args

import numpy as np

from addnorm import disk
from addnorm.data.packing import batches, cuttable, dtype_for, encoded, encoder_for
from addnorm.data.prepared import FORMAT, META, SPLITS, Prepared, checksum, sample
from addnorm.data.sources import DataError, Source
from addnorm.data.split import DocumentPart, Rule, Survey, pieces
from addnorm.data.tokenizer import Tokenizer, TokenizerError
from addnorm.progress import ProgressBar

__all__ = ["prepare", "training_texts"]

SHARD = 1 << 28  # tokens in a file at most
STALE = 3600  # seconds without a write after which an unfinished folder is taken for abandoned

PATIENCE = 2.0  # seconds without a progress bar
INTERVAL = 30.0  # seconds between the lines that stand for it where there is no terminal


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

    BPE is done with the threads of the ``tokenizers`` package. ``workers``: how many processes
    tokenize, instead of this one: worth it from some 100 MB on; a script that asks for them needs
    the usual ``if __name__ == "__main__"``.

    A document too long for memory is tokenized in pieces, which have the ids of the whole: each cut
    is tried first. Only text with no whitespace for two million characters is cut anywhere.

    Whoever is killed leaves nothing that is taken for finished, and two that prepare the same at
    once both end well. ``progress``: a bar on a terminal, else a line now and then; None: only if
    it takes more than a few seconds.
    """
    _check_options(val_fraction, split, workers)
    with ProgressBar(
        in_bytes=True,
        patience=0.0 if progress else PATIENCE,
        interval=INTERVAL,
        hidden=progress is False,
    ) as bar:
        bar.begin(f"hashing {source.name}")
        request = _Request(source, source.identity(), tokenizer, val_fraction, split)
        folder = cache / request.key()
        return Prepared.open(folder) if folder.exists() else _prepare(folder, request, workers, bar)


@final
@dataclass(frozen=True)
class _Request:
    """What is to be prepared, with all that decides what it becomes.

    ``content``: the source's identity, which takes as long to find as reading the text.
    """

    source: Source
    content: str
    tokenizer: Tokenizer
    val_fraction: float
    split: Rule

    def key(self) -> str:
        """The folder's name."""
        decides = [FORMAT, self.content, self.tokenizer.identity, self.tokenizer.eos_id]
        decides += [self.split, self.val_fraction]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]

    def summary(self, rule: str) -> dict[str, Any]:
        """What ``meta.json`` says of it, with the rule by which it is split in fact."""
        return {
            "source": self.source.name,
            "content": self.content[:16],
            "tokenizer": self.tokenizer.identity,
            "vocab_size": self.tokenizer.vocab_size,
            "eos_id": self.tokenizer.eos_id,
            "rule": rule,
            "val_fraction": self.val_fraction,
        }


def _prepare(folder: Path, request: _Request, workers: int | None, bar: ProgressBar) -> Prepared:
    """Count the text, and tokenize it into a folder that is not there yet; if somebody else has
    finished it in the meantime, theirs is taken. ``workers`` as in ``prepare``; ``bar`` is told
    what is being done. A ``DataError`` where the text cannot be used."""
    source = request.source
    bar.begin(f"counting {source.name}")
    survey = Survey(source, request.val_fraction, bar)
    rule = survey.rule(request.split)
    bar.begin(f"tokenizing {source.name}", survey.bytes)
    try:
        meta = _write(
            folder,
            pieces(source, survey, rule),
            request.tokenizer,
            request.summary(rule),
            survey.bytes,
            workers,
            bar,
        )
    except _FinishedElsewhere:  # somebody else was faster
        return Prepared.open(folder)
    except TokenizerError as error:  # a character that it does not have
        raise DataError(f"{source.name}: {error}") from None
    return Prepared.of(folder, meta, reused=False)


def _check_options(val_fraction: float, split: str, workers: int | None) -> None:
    """Raise a DataError if one of these options of ``prepare`` makes no sense."""
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction is {val_fraction}: more than 0 and less than 1")
    if split not in get_args(Rule):
        raise DataError(f"no split {split!r}, only {', '.join(map(repr, get_args(Rule)))}")
    if workers is not None and workers < 1:
        raise DataError(f"workers is {workers}: at least 1")


def training_texts(
    source: Source, *, val_fraction: float = 0.1, split: Rule = "auto"
) -> Iterator[str]:
    """The text that ``prepare`` takes for training with the same options, in pieces, after a pass
    over all of it: what a tokenizer may learn from."""
    survey = Survey(source, val_fraction, ProgressBar(hidden=True))
    for piece in pieces(source, survey, survey.rule(split)):
        if piece.split == "train":
            yield piece.text


# --- writing --------------------------------------------------------------------------------------


@final
class _FinishedElsewhere(Exception):
    """The folder was finished by somebody else."""


def _write(
    folder: Path,
    texts: Iterable[DocumentPart],
    tokenizer: Tokenizer,
    summary: dict[str, Any],
    size: int,
    workers: int | None,
    bar: ProgressBar,
) -> dict[str, Any]:
    """Write all files into a folder of another name, which is renamed when they are on the disk.

    ``size``: the bytes of text that the survey counted; if now it is another number, the source was
    changed. ``bar`` advances with them. Returns what meta.json says, but for its checksum.
    """
    dtype, encoder = dtype_for(tokenizer), encoder_for(tokenizer)
    eos = b"" if tokenizer.eos_id is None else np.array([tokenizer.eos_id], dtype).tobytes()
    part = _part(folder)
    try:
        with ExitStack() as stack:
            writers = {name: stack.enter_context(_Writer(part, name, dtype)) for name in SPLITS}
            batch_by_batch = batches(cuttable(texts, encoder))
            for batch, rows in encoded(batch_by_batch, tokenizer, encoder, workers):
                for piece, ids in zip(batch, rows, strict=True):
                    writer, text = writers[piece.split], len(piece.text.encode())
                    if piece.first:
                        writer.begin(eos)
                    writer.add(ids, text)
                    bar.advance(text)
        splits = {name: writer.meta() for name, writer in writers.items()}
        for name, counts in splits.items():
            if not counts["bytes"]:
                raise DataError(
                    f"{summary['source']}: too short to split, with val_fraction="
                    f"{summary['val_fraction']:g} nothing is left for {name}"
                )
        if sum(counts["bytes"] for counts in splits.values()) != size:
            raise DataError(f"{summary['source']} was changed while it was being read")
        files = {name: record for w in writers.values() for name, record in w.files.items()}
        meta = {"format": FORMAT, "dtype": dtype, "summary": summary, "splits": splits}
        meta |= {"files": files}
        content = json.dumps({**meta, "checksum": checksum(meta)}, indent=1)
        _Out(part / META).finish(content.encode())
        try:
            disk.show(part, folder)
        except OSError:
            if folder.exists():
                raise _FinishedElsewhere from None
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
            last_write = max((p.stat().st_mtime for p in (old, *old.iterdir())), default=0.0)
            if last_write < time.time() - STALE:
                shutil.rmtree(old, ignore_errors=True)
        part = disk.hidden_beside(folder)
        part.mkdir()
    except OSError as error:
        raise _unwritten(folder.parent, error) from None
    return part


def _unwritten(cache: Path, error: OSError) -> DataError:
    """The error for a cache that cannot be written to, a full disk as well."""
    return DataError(f"cannot write to {cache}: {error.strerror}")


@final
class _Out:
    """A file that is hashed while it is written: to read gigabytes again would take as long."""

    def __init__(self, path: Path):
        self.path, self.size = path, 0
        self._file, self._sha = path.open("xb"), hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Append bytes; a DataError where the disk takes no more."""
        try:
            self._file.write(data)
        except OSError as error:
            raise _unwritten(self.path.parent.parent, error) from None
        self._sha.update(data)
        self.size += len(data)

    def finish(self, data: bytes = b"") -> dict[str, Any]:
        """Append ``data``, and close it when it is on the disk; returns what is recorded of it:
        "bytes", "sha256" and "sample". A DataError where the disk takes no more."""
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
            "sample": sample(self.path, self.size),
        }

    def close(self) -> None:
        """Without waiting for the disk, when something went wrong."""
        with suppress(OSError):
            self._file.close()


@final
class _Writer:
    """The files of one split, ``name``, in ``folder``. ``files``: name -> what is recorded of it,
    of all of them once the block that this was opened for is left."""

    def __init__(self, folder: Path, name: str, dtype: str):
        self._folder, self._name, self._width = folder, name, np.dtype(dtype).itemsize
        self._documents = self._tokens = self._text = 0
        self._starts = _Out(folder / f"{name}-starts.bin")
        self._shards = [_Out(folder / f"{name}-00000.bin")]
        self.files: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        outs = (self._starts, self._shards[-1])  # the shards before are finished
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
        """The ids of a text of ``text`` bytes, into as many files as it takes."""
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
        """What meta.json says of the split, by the keys that ``Tokens`` and ``Prepared`` read."""
        return {
            "documents": self._documents,
            "tokens": self._tokens,
            "bytes": self._text,
            "starts": self._starts.path.name,
            "shards": [out.path.name for out in self._shards],
        }
