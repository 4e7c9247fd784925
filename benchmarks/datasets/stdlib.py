"""Which package of Python's standard library a function is from: csv files with text, label, file.

Source: Python 3.11.2 as Debian 12 has it, the packages in ``stdlib.txt``, taken with apt-get at the
versions and with the SHA-256 there. Licence: the Python Software Foundation's, version 2;
/usr/share/doc/PACKAGE/copyright of each package names the parts under others. Nothing of it is in
this repository, and what this script writes is under the same licences.

    python benchmarks/datasets/stdlib.py out/stdlib

writes train.csv, val.csv and test.csv. A text is the body of a function or method, at least five
lines, without its name and arguments, since a name may give the package away; what stands in a
function is part of it, and no text of its own. A label is a package in which at least twelve files
have such functions. All functions of a file are on one side, which a hash of its path decides; of a
file at most 40 are taken, chosen by a hash. What two packages have alike is left out, and so is a
held-out function of which more than half of the runs of five words stand in one to learn from. It
takes a few seconds.
"""

import argparse
import ast
import csv
import subprocess
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.datasets.debian import deb, read_list
from benchmarks.datasets.shared_runs import overlap, without_near
from benchmarks.datasets.sides import fraction, side_of

LIST = Path(__file__).with_suffix(".txt")
LIBRARY = Path("usr/lib/python3.11")
APART = {"test", "tests", "idle_test", "lib-dynload"}
"""Folders that are passed over."""
SIDES = {"test": 0.2, "val": 0.1, "train": 0.7}
"""Side -> its share of the files."""
LEAST_LINES = 5
"""Of a function."""
LEAST_FILES = 12
"""Of a package, with functions."""
MOST = 40
"""Functions of a file."""
HASH = "files 207"
"""What is hashed with a file's path: of "files 0", "files 1", ... the first by which each side has
at least ten functions of every package; chosen before anything was learned from them."""


class Function(NamedTuple):
    """A row of a table."""

    text: str
    label: str
    file: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Take, split, write; print what there is."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path, help="the folder for train.csv, val.csv, test.csv")
    parser.add_argument("--debs", type=Path, help="where the packages are, or are put [out/debs]")
    args = parser.parse_args(arguments)
    debs = args.debs or args.out / "debs"
    with tempfile.TemporaryDirectory() as name:
        for package in read_list(LIST):
            file = deb(package, debs, LIST).resolve()
            subprocess.run(["dpkg-deb", "-x", str(file), name], check=True)
        sides = split(labelled(functions(Path(name) / LIBRARY)))
    args.out.mkdir(parents=True, exist_ok=True)
    for side, rows in sides.items():
        with (args.out / f"{side}.csv").open("w", encoding="utf-8", newline="") as table:
            csv.writer(table).writerows([Function._fields, *rows])
        counts = Counter(row.label for row in rows)
        each = ", ".join(f"{label} {counts[label]}" for label in sorted(counts))
        print(f"{side}: {len(rows)} functions of {len({row.file for row in rows})} files: {each}")
    print(*overlap(sides, row_words), sep="\n")
    return 0


# --- from files to functions ----------------------------------------------------------------------


def functions(library: Path) -> list[Function]:
    """Those of all packages in a folder, some of each file."""
    rows = []
    for file in sorted(library.glob("*/**/*.py")):
        path = file.relative_to(library)
        if APART.isdisjoint(path.parts):
            texts = sorted(set(bodies(file.read_text(encoding="utf-8"))), key=fraction)
            rows += [Function(text, path.parts[0], path.as_posix()) for text in texts[:MOST]]
    return rows


def bodies(source: str) -> Iterator[str]:
    """The bodies of the functions in a module, without those inside other functions."""
    lines = source.splitlines()
    with warnings.catch_warnings():  # of old ways to write a string
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    for node in outermost(tree):
        body = lines[node.body[0].lineno - 1 : node.end_lineno]
        if len(body) >= LEAST_LINES:
            yield "\n".join(body)


def outermost(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions below a node that are in no other function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        else:
            yield from outermost(child)


def labelled(rows: Iterable[Function]) -> list[Function]:
    """The functions of packages with enough files, each text once; of two packages with one text,
    neither."""
    rows = list(rows)
    files: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        files[row.label].add(row.file)
    by_text: dict[str, list[Function]] = defaultdict(list)
    for row in rows:
        if len(files[row.label]) >= LEAST_FILES:
            by_text[row.text].append(row)
    return [some[0] for some in by_text.values() if len({row.label for row in some}) == 1]


# --- from functions to sides ----------------------------------------------------------------------


def split(rows: Iterable[Function]) -> dict[str, list[Function]]:
    """Side -> its functions; a file is on one side, and what is learned is not asked for."""
    sides: dict[str, list[Function]] = {side: [] for side in SIDES}
    for row in rows:
        sides[side_of(f"{HASH} {row.file}", SIDES)].append(row)
    return without_near(sides, row_words)


def row_words(row: Function) -> tuple[str, ...]:
    """What stands between white space in a function, in lower case."""
    return tuple(row.text.lower().split())


if __name__ == "__main__":
    sys.exit(main())
