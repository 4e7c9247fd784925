"""MNIST's digits: a small file made by hand, since a test takes nothing from the network."""

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.datasets import mnist
from benchmarks.datasets.mnist import Digits, read, split, summary


@pytest.fixture(scope="module")
def text() -> str:
    """Four pictures of each digit, all different."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 784))
    rows = [[*row, i // 4] for i, row in enumerate(pixels.tolist())]
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


def test_a_line_is_a_picture_and_its_digit(text: str) -> None:
    digits = read(text)
    assert digits.images.shape == (40, 28, 28)
    assert digits.images.dtype == np.uint8
    assert digits.labels.tolist() == [i // 4 for i in range(40)]
    first = [int(value) for value in text.split("\n")[0].split(",")]
    assert digits.images[0, 1, 2] == first[28 + 2]
    with pytest.raises(SystemExit, match="is not from 0 to 255"):
        read(text.replace(text.split(",")[0], "256", 1))


def test_sides_have_as_many_of_each_digit_and_no_picture_twice(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist, "HELD_OUT", {"test": 1, "val": 1})
    digits = read(text)
    sides = split(digits)
    assert [*sides] == ["train", "val", "test"]
    counts = {side: np.bincount(some.labels).tolist() for side, some in sides.items()}
    assert counts == {"train": [2] * 10, "val": [1] * 10, "test": [1] * 10}
    images = {image.tobytes() for some in sides.values() for image in some.images}
    assert images == {image.tobytes() for image in digits.images}
    label = {image.tobytes(): label for image, label in zip(*digits, strict=True)}
    assert all(
        label[image.tobytes()] == digit
        for s in sides.values()
        for image, digit in zip(*s, strict=True)
    )
    assert sides["train"].labels.tolist() != sorted(sides["train"].labels), "digits are mixed"


def test_what_sides_share_is_said() -> None:
    image = np.zeros((1, 28, 28), np.uint8)
    some = {
        "train": Digits(image, np.array([3])),
        "val": Digits(image, np.array([3])),
        "test": Digits(image + np.uint8(255), np.array([5])),
    }
    lines = summary(some)
    assert lines[0] == "train: 1 pictures, of the digits 3:1"
    assert lines[3].startswith("val: 1 pictures stand in train too")
    assert lines[4].startswith("test: 0 pictures stand in train too; from the nearest one there")
    assert "at least 1.000 away" in lines[4]


def test_the_files(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "digits.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(mnist.MEMBER, gzip.compress(text.encode()))
    monkeypatch.setattr(mnist, "downloaded", lambda *_: wheel)
    monkeypatch.setattr(mnist, "HELD_OUT", {"test": 1, "val": 1})
    assert mnist.main([str(tmp_path / "out")]) == 0
    with np.load(tmp_path / "out" / "train.npz") as file:
        assert {*file} == {"images", "labels"}
        assert (file["images"].shape, file["labels"].shape) == ((20, 28, 28), (20,))
    assert "Creative Commons" in (tmp_path / "out" / "README.md").read_text()
