"""Which section a man page is of, from its text: csv files with text, label, package.

Source: the man pages of the Debian 12 packages in ``manpages.txt``, taken with apt-get at the
versions and with the SHA-256 there (amd64). Licences: those of the packages, most of them GPL,
LGPL, BSD or MIT, others Apache-2.0, the curl, OpenSSL, PostgreSQL and X11 licences; each stands in
/usr/share/doc/PACKAGE/copyright of its package. Nothing of them is in this repository, and what
this script writes is under the same licences.

    python benchmarks/datasets/manpages.py out/manpages

writes train.csv, val.csv and test.csv. The labels are 1 commands, 3 functions, 5 files, 7 overviews
and 8 administration; section 2 is left out, since it has but one package. A text is the first 3,000
characters of a page as a terminal shows it, without the lines that say its section, and of
references such as ls(1) the name alone. All pages of a package are on one side, which a hash of its
name decides. Of a section and package at most 40 pages are taken, chosen by a hash; a held-out page
of which more than half of the runs of five words stand in the pages to learn from is left out. It
needs groff (apt-get install groff-base), and about four minutes.
"""

import argparse
import csv
import gzip
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.datasets.debian import deb, read_list
from benchmarks.datasets.shared_runs import overlap, without_near
from benchmarks.datasets.sides import fraction, side_of

LIST = Path(__file__).with_suffix(".txt")
SECTIONS = ("1", "3", "5", "7", "8")
SIDES = {"test": 0.2, "val": 0.1, "train": 0.7}
"""Side -> its share of the packages."""
MOST = 40
"""Pages of a section in a package."""
LETTERS = 3000
"""Of a page."""
LEAST = 200
"""Characters below which a page says nothing, as one that refers to another."""
HASH = "sections 4"
"""What is hashed with a package's name: of "sections 0", "sections 1", ... the first by which each
side has at least nine pages of every section; chosen before anything was learned from them."""
REFERENCE = re.compile(r"(?<=[\w.+-])\s?\([1-9][a-zA-Z]{0,6}\)")


class Page(NamedTuple):
    """A row of a table."""

    text: str
    label: str
    package: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Take, clean, split, write; print what there is."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path, help="the folder for train.csv, val.csv, test.csv")
    parser.add_argument("--debs", type=Path, help="where the packages are, or are put [out/debs]")
    parser.add_argument("--packages", type=int, help="only the first N of the list, for a trial")
    args = parser.parse_args(arguments)
    debs = args.debs or args.out / "debs"
    pages = [
        page
        for package in read_list(LIST)[: args.packages]
        for page in pages_of(deb(package, debs, LIST), package.name)
    ]
    sides = split(pages)
    args.out.mkdir(parents=True, exist_ok=True)
    for side, rows in sides.items():
        with (args.out / f"{side}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([Page._fields, *rows])
        counts = Counter(page.label for page in rows)
        amounts = ", ".join(f"{counts[section]} of section {section}" for section in SECTIONS)
        packages = len({page.package for page in rows})
        print(f"{side}: {len(rows)} pages of {packages} packages, {amounts}")
    print(*overlap(sides, page_words), sep="\n")
    return 0


# --- from the packages to their pages -------------------------------------------------------------


def pages_of(file: Path, package: str) -> list[Page]:
    """Some pages of each section, each text once; of two sections with one text, neither."""
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(["dpkg-deb", "-x", str(file.resolve()), name], check=True)
        root = Path(name) / "usr" / "share" / "man"
        files = [
            (section, path)
            for section in SECTIONS
            for path in sorted(
                (p for p in (root / f"man{section}").glob("*.gz") if not p.is_symlink()),
                key=lambda p: fraction(p.name),
            )[:MOST]
        ]
        with ThreadPoolExecutor(2) as pool:
            texts = list(pool.map(lambda pair: cleaned(rendered(pair[1])), files))
    labels: dict[str, set[str]] = {}
    for (section, _), text in zip(files, texts, strict=True):
        labels.setdefault(text, set()).add(section)
    return [
        Page(text, min(sections), package)
        for text, sections in sorted(labels.items())
        if len(text) >= LEAST and len(sections) == 1
    ]


def rendered(file: Path) -> str:
    """A page as a terminal shows it."""
    command = ["groff", "-mandoc", "-Tutf8", "-P-cbou", "-rLL=100n", "-rHY=0", "-Kutf8"]
    source = gzip.decompress(file.read_bytes())
    result = subprocess.run(command, input=source, capture_output=True, check=False)
    return result.stdout.decode("utf-8", "replace")


def cleaned(text: str) -> str:
    """Without the lines at the top and the bottom, which name the section, and without the section
    in references; white space of a page says little, and is one space or one end of a line."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return REFERENCE.sub("", "\n".join(lines[1:-1]))[:LETTERS].strip()


# --- from pages to sides --------------------------------------------------------------------------


def split(pages: Iterable[Page]) -> dict[str, list[Page]]:
    """Side -> its pages; a package is on one side, and what is learned is not asked for."""
    sides: dict[str, list[Page]] = {side: [] for side in SIDES}
    for page in pages:
        sides[side_of(f"{HASH} {page.package}", SIDES)].append(page)
    return without_near(sides, page_words)


def page_words(page: Page) -> tuple[str, ...]:
    """The words of a page, in lower case."""
    return tuple(page.text.lower().split())


if __name__ == "__main__":
    sys.exit(main())
