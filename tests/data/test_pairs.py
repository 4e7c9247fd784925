"""Pairs of source and target: every format, and what is wrong in a file by its line."""

import gettext
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from addnorm.data.pairs import read_pairs
from addnorm.data.sources import DataError

PO = """\
# a translation
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\\n"
"Plural-Forms: nplurals=2; plural=n != 1;\\n"

#: a.c:3
msgid "&Open \\"%s\\"\\n"
msgstr "Öffne \\"%s\\"\\n"

msgctxt "menu"
msgid ""
"two "
"lines"
msgstr ""
"zwei "
"Zeilen"

#, c-format, fuzzy
#| msgid "Old"
msgid "Perhaps"
msgstr "Vielleicht"

#, c-format
msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d Datei"
msgstr[1] "%d Dateien"

msgid "Not yet"
msgstr ""

#~ msgid "Gone"
#~ msgstr "Weg"
"""
WANT = [
    ('&Open "%s"\n', 'Öffne "%s"\n'),
    ("two lines", "zwei Zeilen"),
    ("%d file", "%d Datei"),
    ("%d files", "%d Dateien"),
]


def pairs(path: object) -> list[tuple[str, str]]:
    return [(row.source, row.target) for row in read_pairs(str(path)).rows]


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def catalogue(messages: Mapping[str, str], order: str = "<") -> bytes:
    """A .mo as gettext's manual describes it."""
    parts = [
        text.encode() for text in (*sorted(messages), *(messages[k] for k in sorted(messages)))
    ]
    count = len(messages)
    start, table, data = 28 + 16 * count, b"", b""
    for part in parts:
        table += struct.pack(f"{order}2I", len(part), start + len(data))
        data += part + b"\0"
    head = struct.pack(f"{order}7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, start)
    return head + table + data


def test_tables_lines_and_files_side_by_side(tmp_path: Path) -> None:
    want = [("a b", "c"), ('say "x"', "d")]
    lines = "".join(f"{s}\t{t}\n" for s, t in want)
    for text in (lines, f"source\ttarget\n{lines}", f"\ufeffsource\ttarget\r\n\n{lines}"):
        assert pairs(write(tmp_path, "a.tsv", text)) == want
    assert pairs(write(tmp_path, "b.tsv", "Source\ttarget\n" + lines)) == [
        ("Source", "target"),
        *want,
    ]
    json = '{"source": "a b", "target": "c", "id": 3}\n\n{"target": "d", "source": "say \\"x\\""}\n'
    assert pairs(write(tmp_path, "a.jsonl", json)) == want
    write(tmp_path, "a,1.en", 'a b\nsay "x"\n')
    write(tmp_path, "a.de", "c\nd\n")
    assert pairs(f"{tmp_path}/a,1.en,{tmp_path}/a.de") == want
    results = read_pairs(str(write(tmp_path, "c.tsv", "a\tb\n \tc\nd\t\n")))
    assert [row.where for row in results.rows] == [f"{tmp_path}/c.tsv:1"]
    assert results.remarks == [
        f"2 pairs with an empty side left out ({tmp_path}/c.tsv:2, {tmp_path}/c.tsv:3)"
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "a\tb\nab\n", r"a.tsv:2: 0 tabs, and a line is a source, one tab, a target"),
        ("a.tsv", "a\tb\tc\n", r"a.tsv:1: 2 tabs"),
        ("a.tsv", "source\ttarget\n", "a.tsv holds no pair of source and target"),
        ("a.tsv", "", "holds no pair"),
        ("a.jsonl", '{"source": "a"}', r"a.jsonl:1: the object has source, and no target"),
        ("a.jsonl", '{"source": "a", "target": 3}', "target must be a text, got 3"),
        ("a.jsonl", '{"source": "a", "target": "b"}\n[1]', r"a.jsonl:2: expected an object, got"),
        ("a.jsonl", '{"source": "a"', r"a.jsonl:1 is not valid JSON"),
        ("a.csv", "a,b", "none of the formats for pairs: give a .tsv"),
        ("a.po", 'msgid "a"\nmsgid "b"\n', r"a.po:2: a second msgid in one message"),
        ("a.po", 'msgid "a"\n\nhello\n', r"a.po:3: expected msgid, msgstr, .* got 'hello'"),
        ("a.po", 'msgid "a" "b"\nmsgstr "c"', r"a.po:1: this is not one text in quotes"),
        ("a.po", 'msgid "a\\x"\nmsgstr "c"', r"a.po:1: this is not one text in quotes"),
        ("a.po", 'msgid "a"\n# end\n', r"a.po:1: a msgid without a msgstr"),
        ("a.po", 'msgstr "a"\n', "a msgstr without a msgid"),
        ("a.po", 'msgid ""\nmsgstr "charset=klingon"\n', "its charset is klingon, which Python"),
        ("a.mo", "msgid", "does not begin as a .mo does"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_pairs(str(write(tmp_path, name, text)))


def test_files_of_unequal_length_and_missing_ones_are_named(tmp_path: Path) -> None:
    one, two = write(tmp_path, "a.en", "a\nb\n"), write(tmp_path, "a.de", "c\nd\ne\nf\n")
    with pytest.raises(DataError, match=r"a.de:3: this line has no other side: .*a.en has 2 lines"):
        read_pairs(f"{one},{two}")
    with pytest.raises(DataError, match=r"there is no file .*a.fr"):
        read_pairs(f"{one},{tmp_path}/a.fr")
    with pytest.raises(DataError, match=r"there is no file .*b.tsv: give a .tsv"):
        read_pairs(f"{tmp_path}/b.tsv")


def test_po_has_what_is_translated_and_sure(tmp_path: Path) -> None:
    assert pairs(write(tmp_path, "a.po", PO)) == WANT
    where = [row.where for row in read_pairs(str(tmp_path / "a.po")).rows]
    assert where[0] == f"{tmp_path}/a.po:8"
    latin = PO.replace("UTF-8", "ISO-8859-1").encode("latin-1")
    (tmp_path / "b.po").write_bytes(latin)
    assert pairs(tmp_path / "b.po") == WANT
    (tmp_path / "b.po").write_bytes(PO.encode("latin-1"))
    with pytest.raises(DataError, match=r"b.po is not UTF-8, as it says: byte \d+ is 0xd6"):
        read_pairs(str(tmp_path / "b.po"))
    one_form = 'msgid "%d a"\nmsgid_plural "%d as"\nmsgstr[0] "%d 个"\n'
    assert pairs(write(tmp_path, "c.po", one_form)) == [("%d a", "%d 个"), ("%d as", "%d 个")]


@pytest.mark.parametrize("order", ["<", ">"])
def test_mo_has_the_same(tmp_path: Path, order: str) -> None:
    messages = {
        "": "Content-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=2; plural=n!=1;\n",
        '&Open "%s"\n': 'Öffne "%s"\n',
        "menu\x04two lines": "zwei Zeilen",
        "%d file\0%d files": "%d Datei\0%d Dateien",
    }
    file = tmp_path / "a.mo"
    file.write_bytes(catalogue(messages, order))
    assert sorted(pairs(file)) == sorted(WANT)
    with file.open("rb") as opened:  # and Python reads that file as we do
        assert gettext.GNUTranslations(opened).ngettext("%d file", "%d files", 2) == "%d Dateien"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"a.mo is damaged or cut short: compile it again"):
        read_pairs(str(file))
