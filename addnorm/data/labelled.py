"""Texts with labels, and texts without, from the formats that people have: folders, tables, lines
of JSON."""

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from addnorm import reading
from addnorm.data.sources import DataError, open_source
from addnorm.errors import Mendable, value_in_short

TEXT, LABEL = ("text", "sentence"), ("label_desc", "label_des", "label")
"""What a column or key is called, the first that is there counting; CLUE says ``sentence``, and
writes its labels as numbers beside what they mean."""
TABLES = {".csv": ",", ".tsv": "\t"}
"""What a table's name ends with -> what stands between its fields."""
LINES = (".jsonl", ".json")
SEPARATOR = "|"
"""Between the labels of a text that has several, in a table."""
FORMATS = (
    "a folder with a sub-folder of texts per label, a .csv or .tsv with the columns text and "
    'label, or a .jsonl of objects such as {"text": "...", "label": "..."}'
)


UNLABELLED = (
    "a .txt with a text a line, a .csv or .tsv with the column text, a .jsonl of objects such as "
    '{"text": "..."}, or a folder of texts'
)


class Labelled(NamedTuple):
    """A text, and its label."""

    text: str
    label: str


class LabelSet(NamedTuple):
    """A text, and its labels, each once; it may have none."""

    text: str
    labels: tuple[str, ...]


class Entry(NamedTuple):
    """A text with what a file says of its label, which may be anything."""

    text: str
    label: Any
    where: str
    """The file, and the line of it in which it ends; or the folder."""
    table: bool
    """Whether it is a cell of a table, where a list cannot be written."""

    def one_label(self) -> Labelled:
        """With the one label that it must have: a list or an empty one is a ``DataError``."""
        if isinstance(self.label, list):
            short = value_in_short(self.label)
            raise DataError(
                f"{self.where}: label must be a text, got {short}: each text has one label here"
            )
        name = class_name(self.label, self.where)
        if not name:
            raise DataError(f"{self.where}: the label is empty")
        return Labelled(self.text, name)

    def label_set(self) -> LabelSet:
        """With as many as there are, in their order: a list, or in a table a cell such as ``a|b``.
        An empty one among others is a ``DataError``."""
        several = self.label if isinstance(self.label, list) else [self.label]
        if self.table:
            several = str(self.label).split(SEPARATOR)
        names = [class_name(label, self.where) for label in several]
        if not all(names) and names != [""]:
            raise DataError(f"{self.where}: one of the labels is empty")
        return LabelSet(self.text, tuple(dict.fromkeys(filter(None, names))))


def read_labelled(path: str | Path) -> list[Labelled]:
    """All texts of a file or folder, in their order, each of one label; a ``DataError`` says which
    line is wrong."""
    return [entry.one_label() for entry in read_entries(path)]


def read_label_sets(path: str | Path) -> list[LabelSet]:
    """The same where a text may have several labels or none: a list in JSON, ``a|b`` in a table."""
    return [entry.label_set() for entry in read_entries(path)]


def read_entries(path: str | Path) -> list[Entry]:
    """All texts of a file or folder, in their order, with what it says of their labels, unchecked.
    A ``DataError`` where it is none of the FORMATS, or holds no text."""
    place = reading.place(path, DataError)
    if place.is_dir():
        return _folder(place)
    kind = place.suffix.lower()
    if kind not in (*TABLES, *LINES):
        raise DataError(f"{path} is none of the formats for texts with labels: {FORMATS}")
    rows = read_table(place)
    if not rows:
        raise DataError(f"{path} holds no text")
    return rows


def read_unlabelled(path: str | Path) -> list[str]:
    """The texts of a file or folder, in their order, without looking at labels; texts without a
    word are left out."""
    place = reading.place(path, DataError)
    kind = place.suffix.lower()
    if not place.exists():
        raise DataError(f"{path} is not there: give {UNLABELLED}")
    if place.is_dir():
        return list(open_source(str(place)).documents())
    if kind == ".txt":
        texts = [line.rstrip("\r") for line in reading.lines(place, DataError)]
    elif kind in TABLES:
        content = reading.text(place, DataError)
        texts = [row.text for row in _table(place, TABLES[kind], content, labelled=False)]
    elif kind in LINES:
        content = reading.text(place, DataError)
        texts = [row.text for row in _objects(place, content, labelled=False)]
    else:
        raise DataError(f"{path} is none of the formats for texts without labels: {UNLABELLED}")
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise DataError(f"{path} holds no text")
    return texts


def read_table(file: Path, names: Sequence[str] = TEXT, text: str | None = None) -> list[Entry]:
    """All rows of a table or lines of JSON with labels; what is labelled, such as the name of a
    picture, is in the column or under the key that is called as the first of ``names`` there.
    ``text``: what the file says, where it has been read already. A ``DataError`` says which line is
    wrong."""
    kind = file.suffix.lower()
    content = reading.text(file, DataError) if text is None else text
    if kind in TABLES:
        return list(_table(file, TABLES[kind], content, names=names))
    return list(_objects(file, content, names=names))


def _folder(folder: Path) -> list[Entry]:
    """The texts of each sub-folder, whose name is their label; a ``DataError`` if there is none, or
    one without texts."""
    names = class_folders(folder)
    if not names:
        raise DataError(f"{folder} has no sub-folders: there must be one of texts per label")
    return [
        Entry(text, name, str(folder / name), table=False)
        for name in names
        for text in open_source(str(folder / name)).documents()
    ]


def class_folders(folder: Path) -> list[str]:
    """The sub-folders of a folder, each of which holds the texts of one label."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[:1] not in "._")


def _table(
    file: Path,
    delimiter: str,
    content: str,
    labelled: bool = True,
    names: Sequence[str] = TEXT,
) -> Iterator[Entry]:
    """The rows of a .csv or .tsv, as ``_cells`` reads them. ``labelled``: whether a column of
    labels is asked for; else the label is None. ``names``: as in ``read_table``."""
    rows = _cells(file, delimiter, content)
    _, header = next(rows)
    text = _column(header, names, file, delimiter)
    label = _column(header, LABEL, file, delimiter) if labelled else None
    for where, row in rows:
        yield Entry(row[text], None if label is None else row[label], where, table=True)


def read_columns(file: Path) -> Iterator[dict[str, str]]:
    """The rows of a .csv or .tsv, each by the names of its columns, whatever these are; a
    ``DataError`` says which line is wrong."""
    rows = _cells(file, TABLES[file.suffix.lower()], reading.text(file, DataError))
    _, header = next(rows)
    return (dict(zip(header, row, strict=True)) for _, row in rows)


def column_names(file: Path) -> list[str]:
    """The columns that the first line of a .csv or .tsv names, or the keys of the first object of a
    .jsonl; nothing of another file, or of one that cannot be read."""
    kind = file.suffix.lower()
    if kind not in (*TABLES, LINES[0]) or not file.is_file():
        return []
    try:
        with file.open(encoding="utf-8-sig") as lines:
            first = next(lines, "")
        if kind in TABLES:
            return [name.strip() for name in next(csv.reader([first], delimiter=TABLES[kind]), [])]
        value = reading.json_value(first, str(file))
    except (OSError, UnicodeDecodeError, csv.Error, Mendable):
        return []
    return list(value) if isinstance(value, dict) else []


def _cells(file: Path, delimiter: str, content: str) -> Iterator[tuple[str, list[str]]]:
    """(where it is, its cells) of each row of a .csv or .tsv, the first of which names the columns;
    empty lines are passed over. What csv cannot read, and a row of another length, is a
    ``DataError``. ``content``: that of the file."""
    lines = csv.reader(io.StringIO(content), delimiter=delimiter, strict=True)
    # A text may be a book. The limit is one of the whole process, so it is put back at the end.
    longest = csv.field_size_limit(sys.maxsize)
    begin = 1  # the line on which the row that is read begins
    try:
        header = [name.strip() for name in next(lines, [])]
        begin = lines.line_num + 1
        yield f"{file}:{lines.line_num}", header
        for row in lines:
            where, begin = f"{file}:{lines.line_num}", lines.line_num + 1
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{where}: {len(row)} fields, and the first line names {len(header)}: a field "
                    f"that holds a {delimiter!r} or a quote needs quotes"
                )
            yield where, row
    except csv.Error as error:
        raise DataError(
            f"{file}:{lines.line_num}: {error}: a quote in the row that begins on line {begin} is "
            "not closed, or one that is part of a field is not doubled"
        ) from None
    finally:
        csv.field_size_limit(longest)


def _column(header: list[str], names: Sequence[str], file: Path, delimiter: str) -> int:
    """The place of the first of ``names``, such as TEXT or LABEL, in the header; where none is, a
    ``DataError`` says which is wanted, and whether another delimiter seems to have been used."""
    for name in names:
        if name in header:
            return header.index(name)
    other = next((c for c in ";\t," if c != delimiter and c in "".join(header)), None)
    raise DataError(
        f"{file} has no column {names[-1] if names is LABEL else names[0]}: its first line names "
        f"{', '.join(header) or 'nothing'}"
        + (f". Between the fields there must be {delimiter!r}, not {other!r}" if other else "")
    )


def _objects(
    file: Path, content: str, labelled: bool = True, names: Sequence[str] = TEXT
) -> Iterator[Entry]:
    """The objects of a file, one in each line; empty lines are passed over, and another is a
    ``DataError``. The label may be anything here: ``Entry`` checks it. ``labelled``: whether one is
    asked for; else it is None. ``content``, ``names``: as in ``_table``."""
    for number, line in enumerate(reading.split_lines(content), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        value = reading.json_value(line, where, DataError)
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected an object, got {value_in_short(value)}")
        text = _key(value, names, where)
        if not isinstance(text, str):
            raise DataError(f"{where}: {names[0]} must be a text, got {value_in_short(text)}")
        yield Entry(text, _key(value, LABEL, where) if labelled else None, where, table=False)


def _key(value: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    """What an object has under the first of ``names``, such as TEXT or LABEL, in it; a
    ``DataError`` if none is."""
    for name in names:
        if name in value:
            return value[name]
    raise DataError(
        f"{where}: the object has {', '.join(value) or 'nothing'}, and no "
        f"{names[-1] if names is LABEL else names[0]}"
    )


def class_name(label: Any, where: str) -> str:
    """A label as a name, without spaces around it: a text, or a whole number in digits; anything
    else is a ``DataError``. It may be empty: that is for the caller to see."""
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise DataError(f"{where}: label must be a text, got {value_in_short(label)}")
    return str(label).strip()
