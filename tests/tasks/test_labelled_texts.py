"""Texts with labels for a training: what is held out, and what is said of odd data."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from addnorm.data.sources import DataError
from addnorm.data.split import HASHES, text_hash
from addnorm.tasks.labelled_texts import Several, read_texts

SHARE = 0.25


def table(file: Path, rows: Sequence[tuple[str, str]]) -> Path:
    file.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in rows))
    return file


def held_out(number: int, side: bool = True) -> list[str]:
    """Texts that are held out, or are not, by the definition."""
    texts = (f"text {i}" for i in range(1000))
    return [t for t in texts if (text_hash(t) / HASHES < SHARE) is side][:number]


LEARNED, APART = held_out(6, False), held_out(6)


def test_every_format_is_divided_alike(tmp_path: Path) -> None:
    rows = [(text, "ab"[i % 2]) for i, text in enumerate(sorted(LEARNED + APART))]
    rows.sort(key=lambda row: row[1])
    for i, (text, label) in enumerate(rows):
        (tmp_path / "folder" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / label / f"{i:03}.txt").write_text(text)
    objects = [json.dumps({"sentence": t, "label": "0", "label_desc": n}) for t, n in rows]
    (tmp_path / "clue.json").write_text("\n".join(objects))
    places = [table(tmp_path / "a.csv", rows), tmp_path / "clue.json", tmp_path / "folder"]
    first, *others = [read_texts(place, None, SHARE) for place in places]
    assert {t.text for t in first.val} == set(APART)
    assert first.classes == ["a", "b"]
    assert not first.several
    assert not first.remarks
    assert others == [first, first]


def test_a_text_is_held_out_by_what_it_is(tmp_path: Path) -> None:
    """Adding one moves no other, and one that comes twice stays on one side."""
    rows = [(text, "ab"[i % 2]) for i, text in enumerate(LEARNED + APART)]
    before = read_texts(table(tmp_path / "a.csv", rows), None, SHARE)
    more = [("new", "a"), *rows, (APART[0], "b")]
    after = read_texts(table(tmp_path / "b.csv", more), None, SHARE)
    assert set(before.train) <= set(after.train)
    assert set(before.val) <= set(after.val)
    assert APART[0] not in {t.text for t in after.train}
    assert "1 text with different labels in different places" in " ".join(after.remarks)


def test_of_every_label_there_is_a_text_to_learn_from(tmp_path: Path) -> None:
    rows = [(t, "common") for t in (*LEARNED, *APART[:2])]
    rows += [(APART[2], "once"), (APART[3], "twice"), (APART[4], "twice")]
    texts = read_texts(table(tmp_path / "a.csv", rows), None, SHARE)
    names = [
        {texts.classes[i] for t in side for i in t.labels} for side in (texts.train, texts.val)
    ]
    assert names == [{"common", "once", "twice"}, {"common", "twice"}]
    learned = {t.text for t in texts.train}
    assert max(APART[3:5], key=text_hash) in learned
    (remark,) = texts.remarks
    assert "no held-out text has the label once (1)" in remark


def test_a_file_to_hold_out(tmp_path: Path) -> None:
    data = table(tmp_path / "a.csv", [("x", "a"), ("y", "b"), (APART[0], "b")])
    val = table(tmp_path / "b.csv", [("z", "b"), ("x", "a")])
    texts = read_texts(data, val, 0.1)
    assert [t.text for t in texts.train] == ["x", "y", APART[0]]
    assert [t.text for t in texts.val] == ["z", "x"]
    assert f"1 text of {val} stand in {data} too" in " ".join(texts.remarks)
    other = table(tmp_path / "c.csv", [("z", "b"), ("x", "c")])
    with pytest.raises(DataError, match=r"c\.csv:3: no text in .*a\.csv has the label 'c'"):
        read_texts(data, other, 0.1)


@pytest.mark.parametrize("labels", ["auto", "several"])
def test_several_labels(tmp_path: Path, labels: Several) -> None:
    rows = [
        {"text": t, "label": [["a"], ["b", "a", "b"], []][i % 3]} for i, t in enumerate(LEARNED)
    ]
    rows += [{"text": t, "label": "a"} for t in APART]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = read_texts(tmp_path / "a.jsonl", None, SHARE, labels)
    assert texts.several
    assert [t.labels for t in texts.train] == [(0,), (0, 1), ()] * 2
    with pytest.raises(DataError, match=r"a\.jsonl:1: label must be a text, got \['a'\]"):
        read_texts(tmp_path / "a.jsonl", None, SHARE, "one")


def test_several_labels_in_a_table(tmp_path: Path) -> None:
    cells = ["a|b", "a", "", "b", "a | b", "b"]
    file = table(tmp_path / "a.csv", [*zip(LEARNED, cells, strict=True), (APART[0], "a")])
    texts = read_texts(file, None, SHARE, "several")
    assert [t.labels for t in texts.train] == [(0, 1), (0,), (), (1,), (0, 1), (1,)]
    with pytest.raises(DataError, match=r"a\.csv:4: the label is empty"):
        read_texts(file, None, SHARE)
    file.write_text(file.read_text().replace(",\n", ",c\n").replace("a | b", "a|"))
    with pytest.raises(DataError, match=r"a\.csv:6: one of the labels is empty"):
        read_texts(file, None, SHARE, "several")
    one = read_texts(file, None, SHARE)
    assert one.classes == ["a", "a|", "a|b", "b", "c"]
    assert r"2 labels with a | in it, the first in " in " ".join(one.remarks)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("x", "a"), ("y", "a")], r"has nothing to tell apart: of all texts, 2, the label is a"),
        ([(LEARNED[0], "a"), (LEARNED[1], "b")], r"too few texts: with val_fraction=0.25 none is"),
    ],
)
def test_what_cannot_be_learned(tmp_path: Path, rows: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_texts(table(tmp_path / "a.csv", rows), None, SHARE)


def test_an_empty_text_is_kept_and_said(tmp_path: Path) -> None:
    rows = [(LEARNED[0], "a"), ("", "b"), (LEARNED[1], "b"), (APART[0], "a")]
    texts = read_texts(table(tmp_path / "a.csv", rows), None, SHARE)
    assert len(texts.train) + len(texts.val) == 4
    assert any("1 text without a word, the first in" in r and "a.csv:3" in r for r in texts.remarks)
