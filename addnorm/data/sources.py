"""Where text comes from: a file, a folder, JSON lines, a dataset of the Hugging Face hub.

A source gives documents, always in the same order, and a hash of their content. A document may be
larger than memory: ``parts`` gives it in pieces of a megabyte or two, and nothing here ever holds
more than that, a line of JSON excepted.
"""

import codecs
import hashlib
import json
import os
import re
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, final

from addnorm import reading
from addnorm.errors import Mendable
from addnorm.words import did_you_mean

__all__ = ["DataError", "Source", "Texts", "open_source"]

SEPARATOR = "<|endoftext|>"
"""A line that holds this and nothing else stands between two documents."""

SEPARATOR_LINE = re.compile(rf"(?m)^{re.escape(SEPARATOR)}\r?(?:\n|\Z)")

CHUNK = 1 << 20  # bytes of a file read at a time
PART = 1 << 20  # characters: a document with fewer comes in one part

# Not text, whatever the bytes: found by the name, so that gigabytes need not be looked at.
NOT_TEXT = """
    .7z .a .arrow .avi .avif .bin .bmp .bz2 .ckpt .class .dat .db .deb .dll .dmg .doc .docx .dylib
    .egg .eot .exe .feather .flac .gguf .gif .gz .h5 .hdf5 .heic .ico .idx .iso .jar .jpeg .jpg .lz4
    .mkv .mo .mov .mp3 .mp4 .msgpack .npy .npz .o .odt .ogg .onnx .otf .parquet .pdf .pickle .pkl
    .png .ppt .pptx .pt .pth .pyc .pyd .pyo .rar .rpm .safetensors .so .sqlite .sqlite3 .tar .tgz
    .tif .tiff .ttf .wasm .wav .webm .webp .whl .woff .woff2 .xls .xlsx .xz .zip .zst
"""
BINARY = frozenset(NOT_TEXT.split())
# Text, whatever the bytes: one of these that is not UTF-8 is an error and not left out.
TEXT = frozenset((".jsonl", ".md", ".py", ".rst", ".tex", ".txt"))
PROBE = 8000  # bytes at the start of a file in which a zero byte says that it is no text, as in git

# Parts of the standard library that are tests, or not of the standard library.
NOT_STDLIB = ("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__")


class DataError(Mendable):
    """Text or a prepared data set that cannot be used; the message says why and what to do."""


@final
class _NotUtf8(DataError):
    """Bytes that are not text; a file of a folder that is not named like a text may have them."""


class Source(ABC):
    """Documents in a fixed order.

    ``name``: what was asked for, as messages say it.
    """

    name: str

    @abstractmethod
    def parts(self) -> Iterator[tuple[str, bool]]:
        """The text of one document after the other, and whether the document ends here. What is
        shorter than PART characters comes in one part; no part is empty."""

    @abstractmethod
    def identity(self) -> str:
        """SHA-256 (hex) of the content: of the bytes, and in a folder of the relative names, but of
        no path and no time."""

    def documents(self) -> Iterator[str]:
        """Whole documents, each of which must fit into memory; ``parts`` has no such limit."""
        texts: list[str] = []
        for text, ends in self.parts():
            texts.append(text)
            if ends:
                yield "".join(texts)
                texts = []


def open_source(text: str) -> Source:
    """The source that is meant by a word on the command line.

    ==============================  ================================================================
    ``book.txt``                    a file of UTF-8; lines of ``<|endoftext|>`` separate documents
    ``folder``                      all files in it that are UTF-8, each as above or below; hidden
                                    files and files like .png and .zip are left out
    ``a.jsonl``, ``a.jsonl#key``    one JSON object per line, its ``text`` or ``key`` a document
    ``hf:name``,                    a dataset of the Hugging Face hub, streamed: once to count,
    ``hf:name:config:split#column`` once to read, and twice more if a tokenizer is learned from it;
                                    split ``train`` and column ``text`` if not said otherwise
    ``stdlib``                      the source of this Python's standard library, 11 to 13 MB
    ==============================  ================================================================

    Documents with nothing but whitespace are left out. A byte order mark is no part of the text.
    """
    if text == "stdlib":
        return _Folder(text, Path(sysconfig.get_paths()["stdlib"]), stdlib=True)
    if text.startswith("hf:"):
        return _Hub(text)
    key = "text"
    path = reading.place(text, DataError)
    if not path.exists() and ".jsonl#" in text:
        name, _, key = text.rpartition("#")
        path = reading.place(name, DataError)
        if not key:
            raise DataError(f"{text}: no key after the #")
    if path.is_dir():
        return _Folder(text, path)
    if not path.exists():
        raise DataError(_missing(path))
    if not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    return _Single(text, _File(path, path.name, key))


@final
class Texts(Source):
    """Documents that are in memory already.

    ``documents``: the text of each; those with nothing but whitespace are left out.
    ``name``: what messages call them.
    """

    def __init__(self, documents: Iterable[str], name: str = "texts"):
        if isinstance(documents, str):
            raise TypeError("Texts takes several documents: Texts([text]) for one")
        valid = (_valid(text, f"{name}: document {i}") for i, text in enumerate(documents))
        self.name, self._documents = name, [text for text in valid if text.strip()]
        if not self._documents:
            raise DataError(f"{name}: no text in it")

    def parts(self) -> Iterator[tuple[str, bool]]:
        """Each document in one part."""
        for text in self._documents:
            yield text, True

    def identity(self) -> str:
        """A hash of the documents and their order."""
        return _hash("texts", *(_sha(text.encode()) for text in self._documents))


# --- files ----------------------------------------------------------------------------------------


@final
class _File:
    """One file of text or JSON lines, in a folder or alone.

    ``name``: what it is called in its folder, which is part of the folder's identity. ``key``: of
    the text in each JSON object; nothing if the file is no .jsonl.
    """

    def __init__(self, path: Path, name: str, key: str = "text"):
        self.path, self.name = path, name
        self.key = key if path.suffix.lower() == ".jsonl" else None
        self._stamp: tuple[int, int] | None = None  # size and time of the first look

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the bytes; a DataError if they are not UTF-8."""
        sha = hashlib.sha256()
        decoder = self._decoder()
        for chunk in self._chunks():
            sha.update(chunk)
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
        return sha.hexdigest()

    @property
    def kind(self) -> str:
        """What decides, with the bytes, which documents are in the file."""
        return "text" if self.key is None else f"jsonl#{self.key}"

    def looks_like_text(self) -> bool:
        """Whether it may be text, by its name, or else by its first bytes; only ``hash`` reads all
        of it."""
        if self.path.suffix.lower() in BINARY:
            return False
        if self.path.suffix.lower() in TEXT:
            return True
        with reading.system_errors(self.path, DataError), self.path.open("rb") as file:
            start = file.read(PROBE)
        try:
            codecs.getincrementaldecoder("utf-8")().decode(start)
        except UnicodeDecodeError:
            return False
        return b"\0" not in start

    def parts(self) -> Iterator[tuple[str, bool]]:
        """As ``Source.parts``."""
        if self.key is None:
            yield from _split(self._text())
            return
        for number, line in enumerate(self._lines(), 1):
            if line.strip() and (text := self._record(number, line)).strip():
                yield text, True

    def _chunks(self) -> Iterator[bytes]:
        """The bytes; a DataError if the file is not what it was when it was first read."""
        with reading.system_errors(self.path, DataError), self.path.open("rb") as file:
            self._check(file.fileno())
            while chunk := file.read(CHUNK):
                yield chunk
            self._check(file.fileno())

    def _decoder(self) -> reading.Utf8Decoder:
        """A new decoder, for one pass; it raises _NotUtf8, with advice by the file's suffix."""
        suffix = self.path.suffix.lower()
        hint = f"a {suffix} file is not text: unpack or convert it first"
        usual = "convert the file first"
        return reading.Utf8Decoder(self.path, _NotUtf8, hint if suffix in BINARY else usual)

    def _check(self, file: int) -> None:
        """Raise if the file, by its descriptor, has changed since the first look."""
        status = os.fstat(file)
        stamp = (status.st_size, status.st_mtime_ns)
        if self._stamp not in (None, stamp):
            raise DataError(
                f"{self.path} was changed while it was being read: begin again when it is complete"
            )
        self._stamp = stamp

    def _text(self) -> Iterator[str]:
        decoder = self._decoder()
        for chunk in self._chunks():
            yield decoder.decode(chunk)
        yield decoder.decode(b"", final=True)

    def _lines(self) -> Iterator[str]:
        """Cut at newlines only: JSON may hold the other characters that str.splitlines cuts at."""
        begin: list[str] = []  # of a line that is not at its end yet
        for text in self._text():
            *complete, rest = text.split("\n")
            for line in complete:
                yield "".join([*begin, line])
                begin = []
            begin.append(rest)
        yield "".join(begin)

    def _record(self, number: int, line: str) -> str:
        """The text of one line of JSON, whose number is for messages; a DataError if it is no
        object with a text under ``key``."""
        where = f"{self.path}, line {number}"
        record = reading.json_value(line, where, DataError)
        if not isinstance(record, dict):
            raise DataError(f"{where}: expected an object, found {_in_short(record)}")
        if self.key not in record:
            keys = ", ".join(map(repr, list(record)[:10])) or "none"
            raise DataError(
                f"{where}: no key {self.key!r}, only {keys}. Name another as {self.name}#KEY"
            )
        return _valid(record[self.key], f"{where}: {self.key!r}")


@final
class _Single(Source):
    """One file."""

    def __init__(self, name: str, file: _File):
        self.name, self._file = name, file

    def parts(self) -> Iterator[tuple[str, bool]]:
        return self._file.parts()

    def identity(self) -> str:
        return _hash(self._file.kind, self._file.hash)


@final
class _Folder(Source):
    """All text below a folder; ``stdlib``: only what belongs to Python's standard library."""

    def __init__(self, name: str, folder: Path, stdlib: bool = False):
        self.name, self._folder, self._stdlib = name, folder, stdlib
        if not any(file.looks_like_text() for file in self._candidates()):
            raise DataError(f"{folder}: no text in this folder (hidden files are left out)")

    @cached_property
    def _files(self) -> list[_File]:
        """Those that are text, sorted by name; all are read whole for that, once. A DataError where
        one is not that is named like a text."""
        files = []
        for file in self._candidates():
            if not file.looks_like_text():
                continue
            try:
                _ = file.hash  # reads it whole, as UTF-8
            except _NotUtf8:
                if file.path.suffix.lower() in TEXT:
                    raise
                continue  # an odd file that only began like text
            files.append(file)
        return files

    def parts(self) -> Iterator[tuple[str, bool]]:
        for file in self._files:
            yield from file.parts()

    def identity(self) -> str:
        return _hash("folder", *(part for f in self._files for part in (f.kind, f.name, f.hash)))

    def _candidates(self) -> Sequence[_File]:
        """All files that may be text, sorted by name."""
        files = []
        leave_out = NOT_STDLIB if self._stdlib else ()
        with reading.system_errors(self._folder, DataError):
            # onerror: by default a folder that may not be listed is left out in silence
            for folder, below, names in os.walk(self._folder, onerror=_raise):
                below[:] = [b for b in below if not b.startswith(".") and b not in leave_out]
                for name in names:
                    path = Path(folder, name)
                    if name.startswith(".") or not path.is_file():
                        continue  # a broken link, a socket
                    if not self._stdlib or path.suffix == ".py":
                        files.append(_File(path, path.relative_to(self._folder).as_posix()))
        return sorted(files, key=lambda file: file.name)


def _split(chunks: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """The ``parts`` of a file of text, from its text in chunks of any size. A document that is
    nothing but whitespace is left out, unless it is so long that its beginning is out already."""
    texts: list[str] = []
    size, in_parts = 0, False  # of the document that is not at its end yet, and if parts are out
    for text in _between_separators(chunks):
        if text is not None:
            if size >= PART:
                yield "".join(texts), False
                texts, size, in_parts = [], 0, True
            texts.append(text)
            size += len(text)
            continue
        document = "".join(texts)
        if in_parts or document.strip():
            yield document, True
        texts, size, in_parts = [], 0, False


def _between_separators(chunks: Iterable[str]) -> Iterator[str | None]:
    """Text that is not empty, and None where a document ends, the last one included."""
    rest, fresh = "", True  # fresh: rest begins a line
    for chunk in chain(chunks, (None,)):
        rest += chunk or ""
        line = len(rest) - (rest.rfind("\n") + 1)  # characters of the last, incomplete line
        may_separate = chunk is not None and line <= len(SEPARATOR) + len("\r")
        end, start = len(rest) - (line if may_separate else 0), 0
        for match in SEPARATOR_LINE.finditer(rest, 0, end):
            if match.start() == 0 and not fresh:
                continue
            if match.start() > start:
                yield rest[start : match.start()]
            yield None
            start = match.end()
        if end > start:
            yield rest[start:end]
        fresh = rest[end - 1] == "\n" if end else fresh
        rest = rest[end:]
    yield None


# --- the hub --------------------------------------------------------------------------------------


@final
class _Hub(Source):
    """A column of a dataset of the Hugging Face hub, streamed at one revision."""

    def __init__(self, name: str):
        self.name = name
        where, _, column = name.removeprefix("hf:").partition("#")
        repository, config, split, *more = (*where.split(":"), "", "")
        if any(more) or not repository or ("#" in name and not column):
            raise DataError(f"{name}: expected hf:NAME or hf:NAME:CONFIG:SPLIT#COLUMN")
        self._repository, self._config = repository, config or None
        self._split, self._column = split or "train", column or "text"
        try:
            self._datasets: Any = import_module("datasets")
        except ImportError as error:
            raise DataError(
                f"{name} needs the datasets package ({error}): pip install 'addnorm[data]'"
            ) from None

    @cached_property
    def _revision(self) -> str:
        """The commit that is read, asked for once: what is pushed in the meantime changes nothing.
        A DataError where the hub does not say."""
        from huggingface_hub import HfApi

        try:
            return str(HfApi().dataset_info(self._repository).sha)
        except Exception as error:  # of its own, the network's: no common base
            raise self._failed(error) from error

    def identity(self) -> str:
        """A hash of the repository's commit, which is itself a hash of the content."""
        what = (self._repository, self._revision, self._config or "", self._split, self._column)
        return _hash("hf", *what)

    def parts(self) -> Iterator[tuple[str, bool]]:
        """Each row's text in one part, as it comes from the network; what fails is a DataError."""
        try:
            rows = self._datasets.load_dataset(
                self._repository,
                self._config,
                split=self._split,
                revision=self._revision,
                streaming=True,
            )
        except DataError:
            raise
        except Exception as error:
            raise self._failed(error) from error
        number = 0
        for number, row in enumerate(self._read(rows), 1):
            if self._column not in row:
                raise DataError(
                    f"{self.name}: no column {self._column!r}, only "
                    f"{', '.join(map(repr, row))}. Name one as "
                    f"{self.name.partition('#')[0]}#COLUMN"
                )
            text = _valid(row[self._column], f"{self.name}, row {number}: {self._column!r}")
            if text.strip():
                yield text, True

    def _read(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The rows; an error of the network in between is a DataError."""
        try:
            yield from rows
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> DataError:
        return DataError(
            f"{self.name} could not be read from the Hugging Face hub ({type(error).__name__}: "
            f"{error}). Without a network: download the text where there is one, and give a file"
        )


# --- helpers --------------------------------------------------------------------------------------


def _raise(error: OSError) -> None:
    """For os.walk, which else goes on."""
    raise error


def _missing(path: Path) -> str:
    """The message for a path that is not there, with the nearest name that is."""
    if not path.parent.is_dir():
        return f"there is no {path}: not even the folder {path.parent}"
    with reading.system_errors(path.parent, DataError):
        names = sorted(p.name for p in path.parent.iterdir() if not p.name.startswith("."))
    hint = did_you_mean(path.name, [*names, "stdlib"])
    return f"there is no {path}{hint and f'; {hint}'}"


def _valid(value: Any, where: str) -> str:
    """The value, if it is Unicode text; ``where`` names it in the DataError if not."""
    if not isinstance(value, str):
        raise DataError(f"{where} is {_in_short(value)}, not a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} has half of a surrogate pair at character {error.start}, which no Unicode "
            "text has"
        ) from None
    return value


def _in_short(value: Any) -> str:
    """A value as JSON, for a message, in 40 characters at most."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _hash(*parts: str) -> str:
    return _sha(json.dumps(parts).encode())
