"""Drawings by what they are of: clip art in folders of animals, food, tools and so on.

Source: Debian's package openclipart-png 0.18, taken with apt-get, with the SHA-256 below. Licence:
public domain (Creative Commons Public Domain Dedication), /usr/share/doc/openclipart-png/copyright
there. Nothing of it is in this repository.

    python benchmarks/datasets/openclipart.py out/openclipart
    python benchmarks/datasets/openclipart.py out/openclipart-96 --size 96

writes train/, val/ and test/ with a folder for each class and PNG files in it: colours on white,
without margins, at most 64 pixels wide and high. The classes are the folders in which the package
sorts its drawings.

Variants of a drawing are on one side: those whose names differ in numbers at the end alone, those
of which 16 by 16 pixels differ by at most 0.04 (root of the mean square; white to black is 1), and
what is so connected over others. Of such a group at most ten are taken, which a hash decides, else
1,400 stars would be the largest class; of a class at most 400. A hash of its first name says where
a group comes in its class; the first are test, up to a fifth of the class, the next val, up to a
tenth, and what is too large for these is for learning.

Left out: links, by which a drawing is in a second folder; the folder unsorted, and those with less
than ten drawings, unless --all is said; what is blank on white; pictures of more than 25 million
pixels, of which one alone takes a gigabyte to read. It takes about two minutes.
"""

import argparse
import io
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops

from benchmarks.datasets.alike import Rows, closest, near, on_white, reduced
from benchmarks.datasets.debian import Package, contents, deb
from benchmarks.datasets.folders import megabytes, write_readme
from benchmarks.datasets.groups import connected
from benchmarks.datasets.sides import fraction

PACKAGE = Package(
    "openclipart-png",
    "1:0.18+dfsg-19",
    "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
)
FILE = re.compile(r"\./usr/share/openclipart/png/(.+)\.png")
SIDES = {"test": 0.2, "val": 0.1}
"""Side -> its share of the drawings of a class; the rest is to learn from."""
NEAR = 0.04
"""The distance up to which two pictures are of the same drawing."""
MOST_OF_GROUP = 10
MOST_OF_CLASS = 400
LEAST = 10
"""Drawings of a class."""
NO_CLASS = ("unsorted",)
BLANK = 0.02
"""The deviation of the pixels of ``reduced`` up to which nothing is seen."""
FAINT = 8
"""Up to which difference from white, of 255, a pixel belongs to the margin."""
LARGEST = 25_000_000
"""Pixels."""
VARIANT = re.compile(r"(?:[_.\- ]+(?:r|copy|small|big|large)|[_.\- ]*\d+)$")
"""What a name has at its end if it is one of several variants: a number, or a word."""


class Drawing(NamedTuple):
    """A picture, where the package has it, such as animals/birds/owl_01, and its class."""

    name: str
    picture: Image.Image
    label: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Take, shrink, split, write; print what there is."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path, help="the folder for train/, val/ and test/")
    parser.add_argument("--size", type=int, default=64, help="the most pixels of a side [64]")
    parser.add_argument("--all", action="store_true", help="all 22 folders, however small")
    parser.add_argument("--debs", type=Path, help="where the package is, or is put [out/debs]")
    args = parser.parse_args(arguments)
    file = deb(PACKAGE, args.debs or args.out / "debs", Path(__file__))
    drawings, rest = read(contents(file, FILE), args.size)
    classes = choose(drawings, args.all)
    sides = split(classes)
    write_readme(args.out, __doc__)
    for side, some in sides.items():
        for drawing in some:
            name = drawing.name.removeprefix(f"{drawing.label}/").replace("/", "-")
            path = args.out / side / drawing.label / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            drawing.picture.save(path)
    every = Counter(drawing.label for drawing in drawings)
    rest |= {
        f"{label}: no class, or fewer than {LEAST}": count
        for label, count in every.items()
        if not any(label == drawing.label for some in classes for drawing in some)
    }
    print("\n".join(summary(sides, rest)))
    for side in sides:
        print(f"{args.out / side}: {megabytes(args.out / side)}")
    return 0


def read(files: Iterable[tuple[str, bytes]], size: int) -> tuple[list[Drawing], dict[str, int]]:
    """The drawings, small and on white; and why others are left out -> how many."""
    drawings = []
    rest: Counter[str] = Counter()
    Image.MAX_IMAGE_PIXELS = None  # there is a limit of our own below
    for name, content in files:
        match = FILE.fullmatch(name)
        assert match is not None
        with Image.open(io.BytesIO(content)) as picture:
            if picture.width * picture.height > LARGEST:
                rest["too large"] += 1
                continue
            small = shrink(picture, size)
        if reduced(small).std() <= BLANK:
            rest["blank on white"] += 1
        else:
            drawings.append(Drawing(match[1], small, match[1].split("/")[0]))
    return sorted(drawings, key=lambda drawing: drawing.name), dict(rest)


def shrink(picture: Image.Image, size: int) -> Image.Image:
    """On white, without white margins, with at most ``size`` pixels on a side; a smaller one stays
    as it is."""
    clear = picture.convert("RGBA")
    step = max(clear.size) // (8 * size)
    small = on_white(clear.reduce(step) if step > 1 else clear)
    visible = ImageChops.invert(small).point(lambda value: 255 * (value > FAINT))
    small = small.crop(visible.getbbox())
    small.thumbnail((size, size), Image.Resampling.LANCZOS)
    return small


# --- sides ----------------------------------------------------------------------------------------


def stem(name: str) -> str:
    """The name of a drawing, without its folder and what tells variants apart."""
    word, shorter = "", name.split("/")[-1].lower()
    while word != shorter:
        word, shorter = shorter, VARIANT.sub("", shorter).rstrip("_.- ")
    return word or name


def groups(drawings: Sequence[Drawing]) -> list[list[Drawing]]:
    """Variants of a drawing together, by name and by pixels."""
    stems: dict[str, list[int]] = defaultdict(list)
    for i, drawing in enumerate(drawings):
        stems[stem(drawing.name)].append(i)
    pairs = [pair for some in stems.values() for pair in pairwise(some)]
    pairs += near(rows_of(drawings), NEAR)
    return [[drawings[i] for i in group] for group in connected(len(drawings), pairs)]


def choose(drawings: Sequence[Drawing], everything: bool) -> list[list[Drawing]]:
    """The groups of those that are taken: none too large, and no class too large or too small."""
    labels = Counter(drawing.label for drawing in drawings)
    classes = {
        label
        for label, count in labels.items()
        if everything or (count >= LEAST and label not in NO_CLASS)
    }
    counts: Counter[str] = Counter()
    choice = []
    for group in sorted(groups(drawings), key=lambda some: fraction(some[0].name)):
        some: list[Drawing] = []
        for drawing in sorted(group, key=lambda one: fraction(one.name)):
            label = drawing.label
            if label in classes and len(some) < MOST_OF_GROUP and counts[label] < MOST_OF_CLASS:
                some.append(drawing)
                counts[label] += 1
        if some:
            choice.append(some)
    return choice


def split(choice: Iterable[Sequence[Drawing]]) -> dict[str, list[Drawing]]:
    """Side -> its drawings; a group is on one side, and of each class there is something on each,
    as long as there are groups."""
    classes: dict[str, list[Sequence[Drawing]]] = defaultdict(list)
    for group in choice:
        classes[group[0].label].append(group)
    sides: dict[str, list[Drawing]] = {side: [] for side in ("train", *reversed(SIDES))}
    for label in sorted(classes):
        total = sum(map(len, classes[label]))
        waiting = [*classes[label]]
        for side, share in SIDES.items():
            room = max(1, int(share * total))
            for group in [*waiting]:
                if len(group) <= room and len(waiting) > 1:
                    waiting.remove(group)
                    sides[side] += group
                    room -= len(group)
        for group in waiting:
            sides["train"] += group
    return {side: sorted(some, key=lambda one: one.name) for side, some in sides.items()}


def rows_of(drawings: Sequence[Drawing]) -> Rows:
    """What is compared of each, (N, D)."""
    return np.stack([reduced(drawing.picture) for drawing in drawings])


def summary(sides: Mapping[str, Sequence[Drawing]], rest: Mapping[str, int]) -> list[str]:
    """What there is on each side, what it shares with train, and what is left out."""
    lines = []
    rows = {side: rows_of(some) for side, some in sides.items()}
    for side, some in sides.items():
        labels = Counter(drawing.label for drawing in some)
        each = ", ".join(f"{label} {count}" for label, count in labels.most_common())
        lines.append(f"{side}: {len(some):,} drawings of {len(labels)} classes: {each}")
        if side != "train":
            distance = closest(rows[side], rows["train"])
            stems = {stem(d.name) for d in some} & {stem(d.name) for d in sides["train"]}
            lines.append(
                f"  of these {(distance <= NEAR).sum()} are nearly one of train, and {len(stems)} "
                f"names are there too; the most frequent class has "
                f"{max(labels.values()) / len(some):.1%}"
            )
    lines += [f"left out, {reason}: {count}" for reason, count in sorted(rest.items())]
    return lines


if __name__ == "__main__":
    sys.exit(main())
