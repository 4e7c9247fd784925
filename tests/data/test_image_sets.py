"""Sets of pictures in every format, and what is wrong with them by name."""

import gzip
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from addnorm.data.image_sets import ImageSet, read_image_set
from addnorm.data.images import ImageError
from addnorm.data.sources import DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 5, 4, 3)).astype(np.uint8)
LABELS = ["b", "a", "b", "a", "c", "c"]


def png(file: Path, i: int) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(IMAGES[i]).save(file)
    return file.name


def idx(values: np.ndarray) -> bytes:
    return (
        bytes((0, 0, 8, values.ndim))
        + struct.pack(f">{values.ndim}I", *values.shape)
        + values.tobytes()
    )


def folder(place: Path) -> Path:
    for i, label in enumerate(LABELS):
        png(place / "set" / label / f"{i}.png", i)
    return place / "set"


def table(place: Path) -> Path:
    rows = [
        f"pictures/{png(place / 'pictures' / f'{i}.png', i)},{label}"
        for i, label in enumerate(LABELS)
    ]
    (place / "set.csv").write_text("\n".join(["image,label", *rows]))
    return place / "set.csv"


def lines(place: Path) -> Path:
    rows = [{"file_name": png(place / f"{i}.png", i), "label": n} for i, n in enumerate(LABELS)]
    (place / "set.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return place / "set.jsonl"


def arrays(place: Path) -> Path:
    np.savez(place / "set.npz", images=IMAGES, labels=np.array(LABELS))
    return place / "set.npz"


def numbered(place: Path) -> Path:
    names = sorted({*LABELS})
    numbers = [names.index(label) for label in LABELS]
    np.savez(place / "set.npz", x=IMAGES / 255.0, y=np.array(numbers), names=np.array(names))
    return place / "set.npz"


def packed(place: Path) -> Path:
    inner = folder(place)
    with zipfile.ZipFile(place / "set.zip", "w") as archive:
        for file in sorted(inner.rglob("*.png")):
            archive.write(file, f"around/all/{file.relative_to(inner)}")
        archive.writestr("__MACOSX/around/._x.png", b"x")
    return place / "set.zip"


def packed_table(place: Path) -> Path:
    file = table(place)
    with zipfile.ZipFile(place / "set.zip", "w") as archive:
        archive.write(file, "top/set.csv")
        for picture in sorted((place / "pictures").iterdir()):
            archive.write(picture, f"top/pictures/{picture.name}")
    return place / "set.zip"


def content(images: ImageSet) -> list[tuple[str, bytes]]:
    return sorted((e.label, e.read().tobytes()) for e in images.entries)


WAYS = (folder, table, lines, arrays, numbered, packed, packed_table)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_format_holds_the_same(way: Callable[[Path], Path], tmp_path: Path) -> None:
    images = read_image_set(way(tmp_path))
    assert content(images) == sorted((n, IMAGES[i].tobytes()) for i, n in enumerate(LABELS))
    assert not images.remarks
    names = [e.name for e in images.entries]
    assert len(set(names)) == len(LABELS)
    assert all(name.startswith(str(tmp_path)) for name in names)
    assert [e.raw() for e in images.entries] == [e.raw() for e in images.entries]


@pytest.mark.parametrize("compressed", [False, True])
def test_idx(tmp_path: Path, compressed: bool) -> None:
    grey = IMAGES[..., 0]
    parts = {"images-idx3": idx(grey), "labels-idx1": idx(np.arange(6, dtype=np.uint8))}
    for name, data in parts.items():
        end = ".gz" if compressed else ""
        (tmp_path / f"t10k-{name}-ubyte{end}").write_bytes(
            gzip.compress(data) if compressed else data
        )
    for place in (tmp_path, next(tmp_path.glob("*images*"))):
        images = read_image_set(place)
        assert [e.label for e in images.entries] == list("012345")
        assert all((e.read()[..., 2] == grey[i]).all() for i, e in enumerate(images.entries))
    labels = next(tmp_path.glob("*labels*"))
    with pytest.raises(DataError, match="has labels: name the file of the pictures"):
        read_image_set(labels)
    next(tmp_path.glob("*images*")).with_name(f"train-images-idx3-ubyte{end}").write_bytes(b"")
    with pytest.raises(DataError, match="name one of these files for data"):
        read_image_set(tmp_path)
    with pytest.raises(DataError, match="there is no train-labels-idx1-ubyte"):
        read_image_set(tmp_path / f"train-images-idx3-ubyte{end}")
    labels.write_bytes(idx(np.arange(5, dtype=np.uint8)))
    with pytest.raises(DataError, match=r"6 pictures, and .* 5 labels"):
        read_image_set(tmp_path / f"t10k-images-idx3-ubyte{end}")
    labels.write_bytes(idx(np.arange(5, dtype=np.uint8))[:-1])
    with pytest.raises(DataError, match="has 4 values, and its head says 5"):
        read_image_set(tmp_path / f"t10k-images-idx3-ubyte{end}")
    labels.write_bytes(b"\x1f\x8bzip")
    with pytest.raises(DataError, match="damaged or cut short"):
        read_image_set(tmp_path / f"t10k-images-idx3-ubyte{end}")
    labels.write_bytes(b"\0\0\x0d\1")
    with pytest.raises(
        DataError, match="no idx file of bytes with 1 dimension: it begins with 00 00 0d"
    ):
        read_image_set(tmp_path / f"t10k-images-idx3-ubyte{end}")


def test_arrays_of_other_names(tmp_path: Path) -> None:
    """Two of any names; Keras's, of which one side is read and the other is told."""
    np.savez(tmp_path / "a.npz", np.array(LABELS), IMAGES)
    assert content(read_image_set(tmp_path / "a.npz"))[0] == ("a", IMAGES[1].tobytes())
    test = {"x_test": IMAGES, "y_test": np.arange(6)}
    np.savez(tmp_path / "b.npz", x_train=IMAGES[:4], y_train=np.arange(4) % 2, **test)
    images = read_image_set(tmp_path / "b.npz")
    assert len(images.entries) == 4
    assert images.remarks == [f"{tmp_path / 'b.npz'}: the arrays x_test, y_test are not read"]


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    place = folder(tmp_path)
    (place / "a" / "notes.txt").write_text("x")
    (place / "a" / ".hidden.png").write_text("x")
    (place / "b" / "deeper").mkdir()
    png(place / "b" / "deeper" / "0.png", 0)
    images = read_image_set(place)
    assert len(images.entries) == 7
    (remark,) = images.remarks
    assert remark.startswith("1 file whose name is not that of a picture (.png, .jpg, .jpeg, ...)")
    assert "notes.txt" in remark


def test_a_picture_that_is_missing_says_so_when_it_is_read(tmp_path: Path) -> None:
    file = table(tmp_path)
    (tmp_path / "pictures" / "3.png").unlink()
    missing = read_image_set(file).entries[3]
    with pytest.raises(ImageError, match=r"3\.png: No such file"):
        missing.read()
    (tmp_path / "other").mkdir()
    archive = packed_table(tmp_path / "other")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("top/more.txt", "x")
    good = archive.read_bytes()
    at = good.index(b"IDAT") + 10
    archive.write_bytes(good[:at] + b"\xff\xff" + good[at + 2 :])
    errors = 0
    for entry in read_image_set(archive).entries:
        try:
            entry.read()
        except ImageError as error:
            errors += "is damaged" in str(error)
    assert errors == 1


def spoilt(name: str, place: Path) -> Path:
    """A set that cannot be read, by a word."""
    if name == "empty":
        (place / "set" / "a").mkdir(parents=True)
    elif name == "flat":
        png(place / "set" / "0.png", 0)
    elif name == "nested":
        for label in ("a", "b"):
            png(place / "set" / "train" / label / "0.png", 0)
    elif name == "label":
        (place / "set.csv").write_text("image,label\nx.png,\n")
        return place / "set.csv"
    elif name == "column":
        (place / "set.csv").write_text("picture,label\nx.png,a\n")
        return place / "set.csv"
    elif name == "number":
        (place / "set.jsonl").write_text('{"image": 3, "label": "a"}')
        return place / "set.jsonl"
    elif name == "zip":
        (place / "set.zip").write_bytes(b"PK no")
        return place / "set.zip"
    elif name == "flat zip":
        with zipfile.ZipFile(place / "set.zip", "w") as archive:
            archive.writestr("0.png", b"x")
        return place / "set.zip"
    elif name == "npz":
        (place / "set.npz").write_bytes(b"no")
        return place / "set.npz"
    elif name == "txt":
        (place / "set.txt").write_text("x")
        return place / "set.txt"
    else:
        np.savez(place / "set.npz", **NPZ[name])
        return place / "set.npz"
    return place / "set"


NPZ: dict[str, dict[str, Any]] = {
    "names": {"pictures": IMAGES, "labels": np.array(LABELS), "more": np.arange(6)},
    "lengths": {"images": IMAGES, "labels": np.array(LABELS[:5])},
    "places": {"images": IMAGES, "labels": np.arange(6), "names": np.array(["a", "b"])},
    "objects": {"images": IMAGES, "labels": np.array(LABELS, dtype=object)},
    "fractions": {"images": IMAGES, "labels": np.arange(6) / 4},
}


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "empty": "holds no picture",
        "flat": "has no sub-folders: there must be one of pictures per label",
        "nested": r"has no pictures of its own, but the folders a, b: .* give data=.*train",
        "label": r"set\.csv:2: the label is empty",
        "column": "has no column image",
        "number": r"set\.jsonl:1: image must be a text, got 3",
        "zip": "is no zip, or cut short",
        "flat zip": "0.png in no folder",
        "npz": r"is no \.npz of arrays, or damaged",
        "txt": "none of the formats for pictures",
        "missing": "is not a folder or file",
        "names": "none is called images or image",
        "lengths": r"labels of the shape \(5,\)",
        "places": "labels must be places in names, 0 to 1, got 0 to 5",
        "objects": r"is no \.npz of arrays",
        "fractions": "label must be a text, got 0.25",
    }.items(),
)
def test_what_is_wrong_is_named(name: str, message: str, tmp_path: Path) -> None:
    place = tmp_path / "missing" if name == "missing" else spoilt(name, tmp_path)
    with pytest.raises(DataError, match=message):
        read_image_set(place)
