"""Texts with labels, from the formats that people have: folders, tables, lines of JSON."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from addnorm import reading
from addnorm.data.sources import DataError, open_source
from addnorm.errors import value_in_short

TEXT, LABEL = ("text", "sentence"), ("label_desc", "label_des", "label")
"""What a column or key is called, the first that is there counting; CLUE says ``sentence``, and
writes its labels as numbers beside what they mean."""
TABLES = {".csv": ",", ".tsv": "\t"}
LINES = (".jsonl", ".json")
FORMATS = (
    "a folder with a sub-folder of texts per label, a .csv or .tsv with the columns text and "
    'label, or a .jsonl of objects such as {"text": "...", "label": "..."}'
)


class Labelled(NamedTuple):
    """A text, and its label."""

    text: str
    label: str


def read_labelled(path: str | Path) -> list[Labelled]:
    """All texts of a file or folder, in their order; a ``DataError`` says which line is wrong."""
    place = reading.place(path, DataError)
    if place.is_dir():
        return _folder(place)
    kind = place.suffix.lower()
    if kind not in (*TABLES, *LINES):
        raise DataError(f"{path} is none of the formats for texts with labels: {FORMATS}")
    rows = list(_table(place, TABLES[kind]) if kind in TABLES else _objects(place))
    if not rows:
        raise DataError(f"{path} holds no text")
    return rows


def _folder(folder: Path) -> list[Labelled]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[:1] not in "._")
    if not names:
        raise DataError(f"{folder} has no sub-folders: there must be one of texts per label")
    return [
        Labelled(text, name)
        for name in names
        for text in open_source(str(folder / name)).documents()
    ]


def _table(file: Path, delimiter: str) -> Iterator[Labelled]:
    lines = csv.reader(io.StringIO(reading.text(file, DataError)), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(lines, [])]
        text, label = (_column(header, names, file) for names in (TEXT, LABEL))
        for row in lines:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{file}:{lines.line_num}: {len(row)} fields, and the first line names "
                    f"{len(header)}: a field that holds a {delimiter!r} or a quote needs quotes"
                )
            yield _labelled(row[text], row[label], f"{file}:{lines.line_num}")
    except csv.Error as error:
        raise DataError(f"{file}:{lines.line_num}: {error}") from None


def _column(header: list[str], names: tuple[str, ...], file: Path) -> int:
    for name in names:
        if name in header:
            return header.index(name)
    raise DataError(
        f"{file} has no column {names[-1] if names is LABEL else names[0]}: its first line names "
        f"{', '.join(header) or 'nothing'}"
    )


def _objects(file: Path) -> Iterator[Labelled]:
    for number, line in enumerate(reading.lines(file, DataError), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        value = reading.json_value(line, where, DataError)
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected an object, got {value_in_short(value)}")
        yield _labelled(_key(value, TEXT, where), _key(value, LABEL, where), where)


def _key(value: Mapping[str, Any], names: tuple[str, ...], where: str) -> Any:
    for name in names:
        if name in value:
            return value[name]
    raise DataError(
        f"{where}: the object has {', '.join(value) or 'nothing'}, and no "
        f"{names[-1] if names is LABEL else names[0]}"
    )


def _labelled(text: Any, label: Any, where: str) -> Labelled:
    if not isinstance(text, str):
        raise DataError(f"{where}: text must be a text, got {value_in_short(text)}")
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise DataError(f"{where}: label must be a text, got {value_in_short(label)}")
    name = str(label).strip()
    if not name:
        raise DataError(f"{where}: the label is empty")
    return Labelled(text, name)
