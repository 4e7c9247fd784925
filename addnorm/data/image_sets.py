"""Pictures with labels, from the formats that people have: folders, tables, idx, npz, zip.

What a set holds is listed here and read later, by ``data.decoding`` in several threads: an
``ImageEntry`` has the bytes of a picture, and makes the picture of them.
"""

import gzip
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from addnorm import reading
from addnorm.data.images import (
    SUFFIXES,
    ImageError,
    ImageValues,
    decode_image,
    image_from_array,
    is_image_name,
)
from addnorm.data.labelled import LINES, TABLES, class_folders, class_name, read_table
from addnorm.data.sources import DataError
from addnorm.words import a_few, plural

IMAGE: Final = ("image", "file_name", "file", "path", "filename")
"""What a column or key with the name of a picture is called, the first that is there counting."""
FORMATS: Final = (
    "a folder with a sub-folder of pictures per label, a .csv, .tsv or .jsonl with image and "
    "label, MNIST's idx files, an .npz with images and labels, or one .zip"
)
IMAGES: Final = ("images", "image", "x", "X", "data", "pixels", "x_train", "train_images")
LABELS: Final = ("labels", "label", "y", "targets", "y_train", "train_labels")
"""What the arrays of an .npz are called, the first that is there counting; where there are two
arrays, they may have any names."""
CLASS_NAMES: Final = ("names", "classes", "class_names")
"""What the array with the names of the classes of an .npz is called, where there is one."""
IDX: Final = "-ubyte"
LARGEST: Final = 1 << 28  # bytes of one file in a zip


@final
@dataclass(frozen=True)
class ImageEntry:
    """One picture of a set, not read yet."""

    name: str
    """What the user knows it by: its file, or its place in a file."""
    label: str
    """Its class; "" where a set has no labels."""
    raw: Callable[[], bytes]
    """All that it is, in bytes, the same for the same picture; an ``ImageError`` if that is
    nothing."""
    decode: Callable[[bytes], ImageValues]
    """The picture of these bytes."""

    def read(self) -> ImageValues:
        """The picture, as it is displayed; an ``ImageError`` says why there is none."""
        return self.decode(self.raw())


@final
@dataclass(frozen=True)
class ImageSet:
    """What there is, in an order that does not depend on the system."""

    entries: Sequence[ImageEntry]
    remarks: Sequence[str] = field(default=())
    """What is odd about it, in sentences, with names of files."""


def file_entry(file: Path, label: str = "") -> ImageEntry:
    """A picture in a file of its own."""
    name = str(file)
    return ImageEntry(
        name, label, partial(reading.raw, file, ImageError), partial(decode_image, name=name)
    )


def read_image_set(path: str | Path) -> ImageSet:
    """All pictures of a file or folder with their labels; a ``DataError`` where it is none of the
    FORMATS, holds none, or a line of it is wrong."""
    place = reading.place(path, DataError)
    if not place.exists():
        raise DataError(f"{path} is not a folder or file: give {FORMATS}")
    kind = place.suffix.lower()
    if place.is_dir():
        result = _folder(place)
    elif kind in (*TABLES, *LINES):
        result = _table(place)
    elif kind == ".npz":
        result = _arrays(place)
    elif kind == ".zip":
        result = _zip(place)
    elif IDX in place.name:
        result = _idx(place)
    else:
        raise DataError(f"{path} is none of the formats for pictures with labels: {FORMATS}")
    if not result.entries:
        raise DataError(f"{path} holds no picture")
    return result


# --- folders --------------------------------------------------------------------------------------


def _folder(folder: Path) -> ImageSet:
    """The pictures of each sub-folder, whose name is their label, or the idx files of MNIST."""
    with reading.system_errors(folder, DataError):
        idx = sorted(p for p in folder.iterdir() if IDX in p.name and "-images" in p.name)
        names = class_folders(folder)
    if len(idx) == 1 and not names:
        return _idx(idx[0])
    if idx and not names:
        raise DataError(
            f"{folder} has {a_few([p.name for p in idx])}: name one of these files for data, and "
            "another for val_data"
        )
    if not names:
        raise DataError(f"{folder} has no sub-folders: there must be one of pictures per label")
    entries, others = list[ImageEntry](), list[Path]()
    for name in names:
        with reading.system_errors(folder / name, DataError):
            files = sorted(p for p in (folder / name).rglob("*") if p.is_file())
        files = [p for p in files if not p.name.startswith(".")]
        pictures = [p for p in files if is_image_name(p)]
        others += [p for p in files if not is_image_name(p)]
        if pictures and all(p.parent.parent == folder / name for p in pictures):
            inner = sorted({p.parent.name for p in pictures})
            if len(inner) > 1:
                raise DataError(
                    f"{folder / name} has no pictures of its own, but the folders {a_few(inner)}: "
                    f"if these are the classes, give data={folder / name}"
                )
        entries += [file_entry(p, name) for p in pictures]
    return ImageSet(entries, _passed_over(others))


def _passed_over(others: Sequence[Any]) -> list[str]:
    """A sentence on the files that are no pictures by their names; nothing if there are none."""
    if not others:
        return []
    return [
        f"{plural(len(others), 'file')} whose name is not that of a picture "
        f"({', '.join(SUFFIXES[:3])}, ...) left out: {a_few(others)}"
    ]


# --- tables ---------------------------------------------------------------------------------------


def _table(file: Path) -> ImageSet:
    """The pictures that a table or lines of JSON name, relative to the folder it is in."""
    return ImageSet(
        [
            file_entry(file.parent / row.text, row.one_label().label)
            for row in read_table(file, IMAGE)
        ]
    )


# --- arrays ---------------------------------------------------------------------------------------


def _array_set(
    images: NDArray[Any], labels: Sequence[str], file: Path, what: str = "picture"
) -> ImageSet:
    """The pictures of an array, one for each place of its first dimension."""
    entries = []
    for i, label in enumerate(labels):
        name = f"{file}: {what} {i}"
        raw = partial(_bytes_of, images, i)
        decode = partial(_image_of_bytes, dtype=images.dtype, shape=images.shape[1:], name=name)
        entries.append(ImageEntry(name, label, raw, decode))
    return ImageSet(entries)


def _bytes_of(images: NDArray[Any], i: int) -> bytes:
    return images[i].tobytes()


def _image_of_bytes(
    content: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], name: str
) -> ImageValues:
    return image_from_array(np.frombuffer(content, dtype).reshape(shape), name)


def _arrays(file: Path) -> ImageSet:
    """An .npz with an array of pictures and one of labels, and perhaps the names of the classes."""
    with reading.system_errors(file, DataError):
        try:
            with np.load(file, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
        except (ValueError, zipfile.BadZipFile, EOFError, KeyError, NotImplementedError) as error:
            raise DataError(f"{file} is no .npz of arrays, or damaged: {error}") from None
    of_images, of_labels = _names_in(arrays, file)
    images, labels = arrays[of_images], arrays[of_labels]
    if images.ndim not in (3, 4) or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"{file}: pictures of the shape {images.shape} and labels of the shape {labels.shape}: "
            "expected (pictures, height, width) or (pictures, height, width, 3), and (pictures,)"
        )
    key = next((name for name in CLASS_NAMES if name in arrays), None)
    others = [name for name in arrays if name not in (of_images, of_labels, key)]
    remarks = [f"{file}: the arrays {a_few(others, 6)} are not read"] if others else []
    if key is None:
        names = [_array_label(v, file) for v in labels.tolist()]
        return ImageSet(_array_set(images, names, file).entries, remarks)
    names = [str(name) for name in arrays[key].tolist()]
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(names):
        raise DataError(
            f"{file}: labels must be places in {key}, 0 to {len(names) - 1}, got "
            f"{labels.min()} to {labels.max()}"
        )
    entries = _array_set(images, [names[i] for i in labels.tolist()], file).entries
    return ImageSet(entries, remarks)


def _names_in(arrays: dict[str, NDArray[Any]], file: Path) -> tuple[str, str]:
    """What the arrays of pictures and of labels are called in a file."""
    one, other = (next((n for n in names if n in arrays), None) for names in (IMAGES, LABELS))
    if one is not None and other is not None:
        return one, other
    if len(arrays) == 2:
        first, second = sorted(arrays, key=lambda name: -arrays[name].ndim)
        if arrays[second].ndim == 1 and len(arrays[first]) == len(arrays[second]):
            return first, second
    names = IMAGES if one is None else LABELS
    raise DataError(
        f"{file} has the arrays {a_few(arrays, 6) or 'none'}, and none is called "
        f"{' or '.join(names)}"
    )


def _array_label(value: Any, file: Path) -> str:
    """The name of a class from an array: a text or a whole number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return class_name(value, str(file))


# --- idx, MNIST's format --------------------------------------------------------------------------


def _idx(file: Path) -> ImageSet:
    """The pictures of a file such as train-images-idx3-ubyte, and the labels beside it in
    train-labels-idx1-ubyte; either may be compressed with gzip."""
    name = file.name.removesuffix(".gz")
    if "labels" in name:
        raise DataError(f"{file} has labels: name the file of the pictures beside it")
    beside = name.replace("images", "labels").replace("idx3", "idx1")
    places = [file.parent / beside, file.parent / f"{beside}.gz"]
    other = next((p for p in places if p.exists()), None)
    if other is None:
        raise DataError(
            f"{file} has pictures, and there is no {beside} with their labels beside it"
        )
    images, labels = _idx_array(file, 3), _idx_array(other, 1)
    if len(images) != len(labels):
        raise DataError(
            f"{file} has {plural(len(images), 'picture')}, and {other.name} "
            f"{plural(len(labels), 'label')}"
        )
    return _array_set(images, [str(label) for label in labels.tolist()], file)


def _idx_array(file: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array in an idx file: two bytes 0, one for the type, one for the number of dimensions,
    their sizes as big-endian numbers of 32 bits, the values (http://yann.lecun.com/exdb/mnist)."""
    content = reading.raw(file, DataError)
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, ValueError) as error:
            raise DataError(f"{file} is damaged or cut short: {error}") from None
    head = 4 + 4 * dimensions
    if len(content) < head or content[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(
            f"{file} is no idx file of bytes with {plural(dimensions, 'dimension')}: it begins "
            f"with {content[:4].hex(' ') or 'nothing'}"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:head])
    values = np.frombuffer(content, np.uint8, offset=head)
    size = int(np.prod(shape, dtype=object))
    if values.size != size:
        raise DataError(
            f"{file} has {values.size:,} values, and its head says {size:,}: get it again"
        )
    return values.reshape(shape)


# --- zip ------------------------------------------------------------------------------------------


def _zip(file: Path) -> ImageSet:
    """One zip with a folder of pictures per label, or with a table that names them. A folder around
    all of it does not matter."""
    with reading.system_errors(file, DataError):
        try:
            archive = zipfile.ZipFile(file)
        except zipfile.BadZipFile:
            raise DataError(f"{file} is no zip, or cut short") from None
    infos = {
        info.filename: info
        for info in archive.infolist()
        if not info.is_dir() and not _is_hidden(info.filename)
    }
    if too_large := [name for name, info in infos.items() if info.file_size > LARGEST]:
        raise DataError(f"{file}: {too_large[0]} is larger than {LARGEST:,} bytes")
    if locked := [name for name, info in infos.items() if info.flag_bits & 1]:
        raise DataError(f"{file}: {locked[0]} is encrypted: unpack it first")
    tables = [n for n in infos if PurePosixPath(n).suffix.lower() in (*TABLES, ".jsonl")]
    pictures = sorted(n for n in infos if is_image_name(n))
    if len(tables) > 1:
        raise DataError(f"{file} has the tables {a_few(tables)}: there may be one")
    if tables:
        return ImageSet(list(_zip_table(file, archive, tables[0], set(infos))))
    depth = _common_depth(pictures)
    if flat := [n for n in pictures if len(PurePosixPath(n).parts) <= depth + 1]:
        raise DataError(
            f"{file}: {a_few(flat)} in no folder: there must be one of pictures per label"
        )
    others = [f"{file}: {name}" for name in infos if name not in pictures]
    entries = [
        _zip_entry(file, archive, name, PurePosixPath(name).parts[depth]) for name in pictures
    ]
    return ImageSet(entries, _passed_over(others))


def _is_hidden(name: str) -> bool:
    return any(part[:1] == "." or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _common_depth(names: Sequence[str]) -> int:
    """How many folders are around all of these, but for the last, which is the label."""
    depth, parts = 0, [PurePosixPath(name).parts for name in names]
    while parts and len({p[depth] for p in parts}) == 1 and min(map(len, parts)) > depth + 2:
        depth += 1
    return depth


def _zip_entry(file: Path, archive: zipfile.ZipFile, name: str, label: str) -> ImageEntry:
    full = f"{file}: {name}"
    return ImageEntry(
        full, label, partial(_zip_bytes, archive, name, full), partial(decode_image, name=full)
    )


def _zip_bytes(archive: zipfile.ZipFile, name: str, full: str) -> bytes:
    """The content of a file in a zip, from any thread; an ``ImageError`` where it is damaged."""
    try:
        return archive.read(name)
    except KeyError:
        raise ImageError(f"{full} is not in the zip") from None
    except Exception as error:  # BadZipFile, zlib.error, EOFError: there is no common base
        raise ImageError(f"{full} is damaged: {error}") from None


def _zip_table(
    file: Path, archive: zipfile.ZipFile, table: str, names: set[str]
) -> Iterator[ImageEntry]:
    """The pictures that a table in a zip names, relative to where it is in there."""
    content = _zip_bytes(archive, table, f"{file}: {table}")
    text = reading.Utf8Decoder(f"{file}: {table}", DataError).decode(content, final=True)
    for row in read_table(file.parent / Path(table).name, IMAGE, text=text):
        name = str(PurePosixPath(table).parent / row.text)
        yield _zip_entry(file, archive, name, row.one_label().label)
