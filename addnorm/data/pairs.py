"""Pairs of a source and its target, from the formats that people have.

Tables, lines of JSON, two files side by side, and the catalogues of gettext, .po and .mo. These
last are read here, in half a page each: the format is small and does not change, and a library for
it names no line where something is wrong.
"""

import ast
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

from addnorm import reading
from addnorm.data.sources import DataError
from addnorm.errors import value_in_short
from addnorm.words import a_few, plural

HEADER = "source\ttarget"  # a first line that is no pair
FORMATS = (
    "a .tsv (source, tab, target), a .jsonl of objects such as "
    '{"source": "...", "target": "..."}, two files of lines as A,B, a .po or a .mo'
)
SUFFIXES = (".tsv", ".jsonl", ".json", ".po", ".mo")
MAGIC = 0x950412DE  # at the beginning of a .mo, in the byte order of its numbers
CONTEXT = "\x04"  # between the context of a message in a .mo and the message


class Pair(NamedTuple):
    """A source, and what it is in the other language."""

    source: str
    target: str
    where: str
    """FILE:LINE, or the file and the number of the message."""


@final
@dataclass(frozen=True)
class Pairs:
    """What a file holds."""

    rows: list[Pair]
    remarks: list[str]
    """What was left out, in sentences."""


def read_pairs(data: str) -> Pairs:
    """All pairs, in their order; a ``DataError`` says which line is wrong.

    A pair of which a side is empty is left out, and told; in catalogues that is what is not
    translated yet. Of .po, what is marked as fuzzy or obsolete is left out too. Of a message with
    plural forms there are two pairs: of the singular with the first form, of the plural with the
    last. Marks for accelerator keys and places to fill stay what they are.
    """
    place = reading.place(data, DataError)
    if not place.exists() and "," in data:
        rows = list(_side_by_side(data))
    else:
        rows = list(_reader(data, place)(place))
    complete = [row for row in rows if row.source.strip() and row.target.strip()]
    if not complete:
        raise DataError(f"{data} holds no pair of source and target")
    remarks = []
    if empty := [row.where for row in rows if not (row.source.strip() and row.target.strip())]:
        remarks.append(
            f"{plural(len(empty), 'pair')} with an empty side left out ({a_few(empty, 2)})"
        )
    return Pairs(complete, remarks)


def with_sides(names: Sequence[str]) -> list[str]:
    """The same names, but two that are of no format for pairs as ``A,B``: files of sources and of
    targets, line by line."""
    sides = [name for name in names if Path(name).suffix.lower() not in SUFFIXES]
    if len(names) == len(sides) == 2 and not any("," in name for name in names):
        return [",".join(names)]
    return list(names)


def _reader(data: str, place: Path) -> Callable[[Path], Iterator[Pair]]:
    """What reads a file, by the end of its name; a ``DataError`` if there is no file, or of none of
    the FORMATS. ``data``: what the user gave, for messages; ``place``: the path that it stands
    for."""
    readers = {".tsv": _table, ".jsonl": _objects, ".json": _objects, ".po": _po, ".mo": _mo}
    if not place.exists():
        raise DataError(f"there is no file {data}: give {FORMATS}")
    if place.is_dir() or place.suffix.lower() not in readers:
        raise DataError(f"{data} is none of the formats for pairs: give {FORMATS}")
    return readers[place.suffix.lower()]


def _side_by_side(data: str) -> Iterator[Pair]:
    """The lines of two files, given as A,B, which must have as many. Since a name may have commas
    in it, the first comma counts on both sides of which there is a file."""
    words = data.split(",")
    splits = [(",".join(words[:i]), ",".join(words[i:])) for i in range(1, len(words))]
    places = [tuple(reading.place(word.strip(), DataError) for word in both) for both in splits]
    both = next((pair for pair in places if all(p.is_file() for p in pair)), None)
    if both is None:
        missing = [p for p in places[0] if not p.is_file()]
        raise DataError(f"there is no file {a_few(missing)}: give {FORMATS}")
    source, target = (reading.lines(file, DataError) for file in both)
    if len(source) != len(target):
        short, long = sorted(((len(source), both[0]), (len(target), both[1])))
        raise DataError(
            f"{long[1]}:{short[0] + 1}: this line has no other side: {short[1]} has "
            f"{plural(short[0], 'line')}, and {long[1]} has {long[0]:,}"
        )
    for number, (one, other) in enumerate(zip(source, target, strict=True), 1):
        yield Pair(one, other, f"{both[0]}:{number}")


def _table(file: Path) -> Iterator[Pair]:
    """The lines of a .tsv: a source, one tab, a target, without quotes; empty lines, and a first
    one that is HEADER, are passed over. A ``DataError`` names another."""
    for number, line in enumerate(reading.lines(file, DataError), 1):
        if not line.strip() or (number == 1 and line == HEADER):
            continue
        sides = line.split("\t")
        if len(sides) != 2:
            raise DataError(
                f"{file}:{number}: {plural(len(sides) - 1, 'tab')}, and a line is a source, one "
                "tab, a target"
            )
        yield Pair(sides[0], sides[1], f"{file}:{number}")


def _objects(file: Path) -> Iterator[Pair]:
    """The objects of a .jsonl, one in each line; empty lines are passed over. A ``DataError`` names
    one that has no two texts under source and target."""
    for number, line in enumerate(reading.lines(file, DataError), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        value = reading.json_value(line, where, DataError)
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected an object, got {value_in_short(value)}")
        sides = []
        for name in ("source", "target"):
            if name not in value:
                keys = ", ".join(value) or "nothing"
                raise DataError(f"{where}: the object has {keys}, and no {name}")
            if not isinstance(value[name], str):
                short = value_in_short(value[name])
                raise DataError(f"{where}: {name} must be a text, got {short}")
            sides.append(value[name])
        yield Pair(sides[0], sides[1], where)


# --- gettext --------------------------------------------------------------------------------------


def _forms(ids: list[str], texts: list[str], where: str) -> Iterator[Pair]:
    """The pairs of a message: singular with the first form, plural with the last, if the plural is
    another text. ``ids``: singular and perhaps plural; ``texts``: their translations."""
    yield Pair(ids[0], texts[0], where)
    if len(ids) > 1 and ids[1] != ids[0]:
        yield Pair(ids[1], texts[-1], where)


def _decoded(data: bytes, where: object) -> str:
    """The text of ``data``, by the charset that is named in it; UTF-8 if none is. A ``DataError``
    that names ``where`` if that is not its charset."""
    match = re.search(rb"charset=([\w.-]+)", data)
    name = match[1].decode() if match and match[1] != b"CHARSET" else "utf-8"
    try:
        return data.decode(name).removeprefix("\ufeff")
    except LookupError:
        raise DataError(f"{where} says that its charset is {name}, which Python lacks") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not {name}, as it says: byte {error.start} is 0x{data[error.start]:02x}"
        ) from None


@final
class _Message:
    """One of a .po, while its lines are read.

    ``fields``: msgid, msgstr and so on -> its text so far. ``last``: the field whose text the next
    line in quotes goes on with; "" before the first. ``line``: where the message begins.
    """

    def __init__(self, line: int) -> None:
        self.line, self.fuzzy = line, False
        self.fields: dict[str, str] = {}
        self.last = ""

    def pairs(self, file: Path) -> Iterator[Pair]:
        """Its pairs; none where it is the header, marked as fuzzy, or not translated in all forms.
        A ``DataError`` where a half of it is missing."""
        ids = [self.fields[name] for name in ("msgid", "msgid_plural") if name in self.fields]
        texts = [text for name, text in self.fields.items() if name.startswith("msgstr")]
        where = f"{file}:{self.line}"
        if ids and not texts:
            raise DataError(f"{where}: a msgid without a msgstr")
        if texts and not ids:
            raise DataError(f"{where}: a msgstr without a msgid")
        if ids and ids[0] and not self.fuzzy and all(texts):
            yield from _forms(ids, texts, where)


KEYWORD = re.compile(r'(msgctxt|msgid|msgid_plural|msgstr|msgstr\[\d+\])\s*(".*")\s*')


def _po(file: Path) -> Iterator[Pair]:
    """The messages of a .po. One ends where the next begins: with a comment, a msgctxt or a msgid
    behind a msgstr. Obsolete ones stand in comments (#~), and so are passed over."""
    message = _Message(1)
    text = _decoded(reading.raw(file, DataError), file)
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if line.startswith("#"):
            if message.fields.keys() - {"msgctxt"} and "msgstr" in message.last:
                yield from message.pairs(file)
                message = _Message(number)
            message.fuzzy |= line.startswith("#,") and "fuzzy" in re.split(r"[,\s]+", line)
            continue
        if not line:
            continue
        match = KEYWORD.fullmatch(line)
        if match is not None:
            name, quoted = match[1], match[2]
            if name in ("msgctxt", "msgid") and "msgstr" in message.last:
                yield from message.pairs(file)
                message = _Message(number)
            if name in message.fields:
                raise DataError(f"{file}:{number}: a second {name} in one message")
            message.fields[name], message.last = "", name
            if name == "msgid":
                message.line = number
        elif line.startswith('"') and message.last:
            quoted = line
        else:
            raise DataError(
                f"{file}:{number}: expected msgid, msgstr, a text in quotes or a comment, got "
                f"{value_in_short(line)}"
            )
        message.fields[message.last] += _unquoted(quoted, f"{file}:{number}")
    yield from message.pairs(file)


def _unquoted(quoted: str, where: str) -> str:
    """What a text in double quotes means, with C's escapes, which are Python's too; a ``DataError``
    that names ``where`` if it is not one such text."""
    try:
        text = ast.literal_eval(quoted)
    except (SyntaxError, ValueError):
        text = None
    if not isinstance(text, str) or re.search(r'(?<!\\)(\\\\)*"', quoted[1:-1]):
        raise DataError(f"{where}: this is not one text in quotes: {value_in_short(quoted)}")
    return text


def _mo(file: Path) -> Iterator[Pair]:
    """The messages of a .mo: behind the magic number, a version, how many there are, and where the
    two tables of (length, place) begin, of sources and of translations. The empty source is the
    header."""
    data = reading.raw(file, DataError)
    order = next((o for o in "<>" if data[:4] == struct.pack(f"{o}I", MAGIC)), None)
    if order is None:
        raise DataError(f"{file} does not begin as a .mo does: it is damaged or something else")
    damaged = DataError(f"{file} is damaged or cut short: compile it again with msgfmt")
    try:
        _, count, ids, texts = struct.unpack_from(f"{order}4I", data, 4)
        table = [
            struct.unpack_from(f"{order}2I", data, first + 8 * i)
            for first in (ids, texts)
            for i in range(count)
        ]
    except struct.error:
        raise damaged from None
    if any(start + length > len(data) for length, start in table):
        raise damaged
    parts = [data[start : start + length] for length, start in table]
    header = next((text for id, text in zip(parts, parts[count:], strict=False) if not id), b"")
    match = re.search(rb"charset=([\w.-]+)", header)
    # _decoded looks for the charset in what it decodes: it is put before each text, and taken off
    before = b"" if match is None else match[0] + b"\n"
    for i, (id, text) in enumerate(zip(parts[:count], parts[count:], strict=True), 1):
        if id:
            where = f"{file}: message {i}"
            source, target = (_decoded(before + part, where)[len(before) :] for part in (id, text))
            yield from _forms(
                source.partition(CONTEXT)[2].split("\0")
                if CONTEXT in source
                else source.split("\0"),
                target.split("\0"),
                where,
            )
