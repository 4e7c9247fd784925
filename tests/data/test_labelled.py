"""Texts with labels, from every format, and what is said of files that are not one."""

from pathlib import Path

import pytest

from addnorm.data.labelled import Labelled, read_labelled, read_unlabelled
from addnorm.data.sources import DataError

WANT = [Labelled('a "b", c', "good"), Labelled("two\nlines", "7"), Labelled("", "good")]


def written(tmp_path: Path, name: str, text: str) -> Path:
    file = tmp_path / name
    file.write_bytes(text.encode())
    return file


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'text,label\n"a ""b"", c",good\n"two\nlines",7\n,good\n'),
        ("a.csv", '\ufefflabel,id,text\r\ngood,1,"a ""b"", c"\r\n7,2,"two\nlines"\r\ngood,3,\r\n'),
        ("a.tsv", 'text\tlabel\n"a ""b"", c"\tgood\n"two\nlines"\t7\n\tgood\n'),
        (
            "a.jsonl",
            '{"text": "a \\"b\\", c", "label": "good"}\n\n{"text": "two\\nlines", "label": 7}\n'
            '{"text": "", "label": "good"}',
        ),
        (
            "clue.json",
            '{"sentence": "a \\"b\\", c", "label": "1", "label_desc": "good"}\n'
            '{"sentence": "two\\nlines", "label": "1", "label_desc": "7"}\n'
            '{"sentence": "", "label": "1", "label_desc": "good"}\n',
        ),
    ],
)
def test_every_format_says_the_same(tmp_path: Path, name: str, text: str) -> None:
    assert read_labelled(written(tmp_path, name, text)) == WANT


def test_a_folder_of_folders(tmp_path: Path) -> None:
    for name, text in (("good/1.txt", "fine"), ("bad/1.txt", "poor"), ("_left/out.txt", "x")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    assert read_labelled(tmp_path) == [Labelled("poor", "bad"), Labelled("fine", "good")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "text,kind\nx,y\n", r"a\.csv has no column label: its first line names text, k"),
        ("a.csv", "words,label\nx,y\n", r"no column text: its first line names words, label"),
        ("a.csv", "", r"no column text: its first line names nothing"),
        ("a.csv", "text,label\nx,y\na, b,y\n", r"a\.csv:3: 3 fields, and the first line names 2"),
        ("a.csv", "text,label\nx,\n", r"a\.csv:2: the label is empty"),
        ("a.csv", 'text,label\n"x"y,z\n', r"a\.csv:2: .*begins on line 2 is not closed"),
        ("a.csv", 'text,label\n\n"x,y\nz,y\n"a",y\n', r"a\.csv:5: .*begins on line 3 is not cl"),
        ("a.csv", "text,label\n", r"a\.csv holds no text"),
        ("a.jsonl", '{"text": "x", "label": "y"}\n{"text": "x"', r"a\.jsonl:2"),
        ("a.jsonl", '{"text": "x", "kind": "y"}', r"a\.jsonl:1: the object has text, kind, and no"),
        ("a.jsonl", '{"text": 3, "label": "y"}', r"a\.jsonl:1: text must be a text, got 3"),
        ("a.jsonl", '{"text": "x", "label": true}', r"a\.jsonl:1: label must be a text, got True"),
        ("a.jsonl", "[1]", r"a\.jsonl:1: expected an object, got"),
        ("a.txt", "x", r"a\.txt is none of the formats for texts with labels: a folder with"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_labelled(written(tmp_path, name, text))


def test_a_folder_without_sub_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no sub-folders"):
        read_labelled(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", 'one, "1"\r\n\ntwo'),
        ("a.csv", 'id,text\n1,"one, ""1"""\n2,two\n3, \n'),
        ("a.tsv", 'text\tlabel\n"one, ""1"""\tx\ntwo\t\n'),
        ("a.jsonl", '{"text": "one, \\"1\\""}\n{"text": "two", "label": null}\n{"text": ""}'),
    ],
)
def test_texts_without_labels(tmp_path: Path, name: str, text: str) -> None:
    assert read_unlabelled(written(tmp_path, name, text)) == ['one, "1"', "two"]


def test_a_folder_without_labels(tmp_path: Path) -> None:
    written(tmp_path, "a.txt", "two\nlines")
    assert read_unlabelled(tmp_path) == ["two\nlines"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", " \n", r"a\.txt holds no text"),
        ("a.csv", "label\nx\n", r"a\.csv has no column text: its first line names label"),
        ("a.jsonl", '{"label": "x"}', r"a\.jsonl:1: the object has label, and no text"),
        ("a.pdf", "x", r"a\.pdf is none of the formats for texts without labels: a \.txt with"),
    ],
)
def test_what_holds_no_texts(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_unlabelled(written(tmp_path, name, text))
