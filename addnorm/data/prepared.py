"""Token ids on disk, read by memory map: ``Prepared``, one folder that ``prepare`` wrote."""

import hashlib
import json
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from addnorm import disk, reading
from addnorm.data.sources import DataError

__all__ = ["Prepared", "Split", "Summary", "Tokens"]

FORMAT = 1  # changes whenever the same text would give other files
META = "meta.json"
SPLITS = ("train", "val")

FULL = 10**9  # bytes up to which every byte is checked when a data set is opened
SAMPLES, SAMPLE = 64, 1 << 16  # of a file: how many pieces, of how many bytes


@final
@dataclass(frozen=True)
class Split:
    """How much there is of one split.

    ``documents``, ``tokens``: how many; ``bytes``: the size of the text in UTF-8.
    """

    documents: int
    tokens: int
    bytes: int


@final
@dataclass(frozen=True)
class Summary:
    """What a prepared data set holds.

    ``source``: what was asked for; ``content``: the first 16 digits of its identity.
    ``tokenizer``: the identity of the tokenizer, ``vocab_size`` and ``eos_id`` as it has them.
    ``rule``: how validation was split off, by "documents" or by "tail"; ``val_fraction``: how much.
    ``splits``: what there is of "train" and of "val".
    """

    source: str
    content: str
    tokenizer: str
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
    """The ids of one split, read by memory map.

    ``folder``: a prepared data set; ``name``: of the split; ``meta``: what its meta.json says.
    """

    def __init__(self, folder: Path, name: str, meta: dict[str, Any]):
        self._made_of = (folder, name, meta)
        record = meta["splits"][name]
        self.name = name
        self.documents: int = record["documents"]
        self.bytes: int = record["bytes"]
        """The size of the text in UTF-8, for bits per byte."""
        self.starts: NDArray[np.int64] = np.memmap(folder / record["starts"], "<i8", mode="r")
        """The index of each document's first token."""
        self._shards = [
            np.memmap(folder / file, meta["dtype"], mode="r") for file in record["shards"]
        ]
        # The index of each shard's first token, and the number of all.
        self._firsts = np.cumsum([0, *map(len, self._shards)]).tolist()

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokens, self._made_of  # a process of its own maps the files again

    def __len__(self) -> int:
        """The number of tokens."""
        return self._firsts[-1]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """The tokens start ... stop - 1, read-only; copied only where they are in several files. An
        IndexError where there are not so many."""
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
    """One prepared data set on disk.

    ``folder``: where it is; ``summary``: what it holds; ``reused``: whether it was there already.
    """

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
        return cls.of(folder, meta, reused=True)

    @classmethod
    def of(cls, folder: Path, meta: dict[str, Any], reused: bool) -> "Prepared":
        """The data set of a folder whose meta.json is read already."""
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


# --- checking -------------------------------------------------------------------------------------


def _read_meta(folder: Path) -> dict[str, Any]:
    """What the meta.json of a folder says, but for its checksum; a DataError unless it is as
    ``prepare`` wrote it, in this format."""
    path = folder / META
    if not path.exists():
        raise DataError(f"{folder} is not a prepared data set: it has no {META}")
    try:
        meta = reading.json_object(path, DataError)
        recorded = reading.field(meta, "checksum", str, path, DataError)
    except DataError as error:
        raise _damaged(folder, str(error)) from None
    del meta["checksum"]
    if recorded != checksum(meta):
        raise _damaged(folder, f"{META} is not what was written")
    if meta["format"] != FORMAT:
        raise DataError(
            f"{folder} has format {meta['format']}, this version of addnorm reads {FORMAT}: "
            "prepare the text again"
        )
    return meta


def _check(folder: Path, meta: dict[str, Any], full: bool) -> None:
    """Raise a DataError unless the files are as meta.json says: by every byte, or (not ``full``) by
    their sizes and the pieces of ``sample``."""
    for name, expected in meta["files"].items():
        path, size = folder / name, expected["bytes"]
        if full:
            wrong = disk.difference(path, size, expected["sha256"])
        else:
            wrong = disk.wrong_size(path, size)
            if wrong is None and sample(path, size) != expected["sample"]:
                wrong = "is not what was written"
        if wrong is not None:
            raise _damaged(folder, f"{name} {wrong}")


def sample(path: Path, size: int) -> str:
    """A hash of pieces of a file of ``size`` bytes, the first and the last among them."""
    hash = hashlib.sha256()
    with path.open("rb") as file:
        for place in np.linspace(0, max(0, size - SAMPLE), SAMPLES, dtype=np.int64).tolist():
            file.seek(place)
            hash.update(file.read(SAMPLE))
    return hash.hexdigest()


def checksum(meta: dict[str, Any]) -> str:
    """The checksum of what ``meta.json`` says."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _damaged(folder: Path, what: str) -> DataError:
    return DataError(
        f"the data set in {folder} is damaged: {what}. Delete the folder and try again"
    )
