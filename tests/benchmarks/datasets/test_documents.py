"""Boxes of lines and words: a PDF made by hand, since a test takes nothing from the network."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets import debian, documents
from benchmarks.datasets.documents import Page, Piece, lines_of, pages, parts, pdfs, words_of
from tests.benchmarks.datasets.debs import package

ROWS = ("Open the file", "and close it", "left              right", "again", "one more", "last")


def pdf(rows: tuple[str, ...], extra: str = "", sheets: int = 1) -> bytes:
    """A PDF with a row every 50 points from 750 down, 20 points high, on pages of 600 by 800."""
    text = "".join(
        f"BT /F 20 Tf 100 {750 - 50 * i} Td ({row}) Tj ET\n" for i, row in enumerate(rows)
    )
    stream = text + extra
    kids = " ".join(f"{5 + i} 0 R" for i in range(sheets))
    bodies = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids[{kids}]/Count {sheets}>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        f"<</Length {len(stream)}>>stream\n{stream}\nendstream",
    ]
    page = "<</Type/Page/Parent 2 0 R/MediaBox[0 0 600 800]/Contents 4 0 R"
    bodies += [page + "/Resources<</Font<</F 3 0 R>>>>>>"] * sheets
    out, places = "%PDF-1.4\n", []
    for number, body in enumerate(bodies, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    size = len(places) + 1
    out += f"xref\n0 {size}\n0000000000 65535 f \n{table}"
    return (
        out + f"trailer<</Size {size}/Root 1 0 R>>\nstartxref\n{out.index('xref')}\n%%EOF"
    ).encode()


def box(text: str, left: float, top: float, right: float, bottom: float) -> Piece:
    return Piece(text, left, top, right, bottom)


def test_the_list_is_pinned_and_all_sides_have_some() -> None:
    packages = debian.read_list(documents.LIST)
    assert len({p.name for p in packages}) == len(packages) > 25
    sides = [documents.side_of(f"{documents.HASH} {p.name}", documents.SIDES) for p in packages]
    assert all(sides.count(side) >= 3 for side in documents.SIDES)


def test_words_and_lines() -> None:
    letters = [box(sign, 10 * i, 0, 10 * i + 8, 10) for i, sign in enumerate("ab cd")]
    letters += [box("\r", 0, 0, 0, 0), box("\n", 0, 0, 0, 0), box("e", 0, 12, 8, 30)]
    words = words_of(letters)
    assert words[:2] == [box("ab", 0, 0, 18, 10), box("cd", 30, 0, 48, 10)]
    assert [word.text for word in words] == ["ab", "cd", "", "e", ""]
    assert lines_of(words) == [box("ab cd", 0, 0, 48, 10), box("e", 0, 12, 8, 30)]
    column = [box("a", 0, 0, 8, 10), box("b", 22, 2, 30, 10), box("c", 60, 0, 68, 10)]
    assert [line.text for line in lines_of(column)] == ["a b", "c"]
    stairs = [box("a", 0, 0, 8, 10), box("b", 10, 9, 18, 19), box("c", 0, 9, 8, 19)]
    assert [line.text for line in lines_of(stairs)] == ["a", "b", "c"]


def test_boxes_are_where_the_ink_is() -> None:
    white = "1 g BT /F 20 Tf 100 300 Td (hidden) Tj ET 0 g BT /F 20 Tf 560 250 Td (outside) Tj ET"
    (page,) = pages(pdf(ROWS, white), "x", 1600)
    assert (page.name, page.picture.size, page.picture.mode) == ("x-0001", (1200, 1600), "L")
    texts = [line.text for line in page.lines]
    assert texts[:5] == ["Open the file", "and close it", "left", "right", "again"]
    assert len(texts) == 8
    assert [word.text for word in page.words][:3] == ["Open", "the", "file"]
    assert not any(word.text in ("hidden", "") for word in page.words)
    pixels = np.asarray(page.picture)
    assert page.words[-1].text == "outside"
    for word in page.words[:-1]:
        left, top, right, bottom = (round(value) for value in word[1:])
        inside = pixels[top:bottom, left:right] < 128
        for axis in (0, 1):
            ink = np.asarray(inside.any(axis=axis)).tolist()
            assert ink[1], word
            assert ink[-2], word
        rim = pixels[top - 3 : bottom + 3, left - 3 : right + 3].copy()
        rim[2:-2, 2:-2] = 255
        assert rim.min() > 128, word
    assert page.lines[-1].right == 1200, "cut at the edge of the page"


def test_pages_that_say_little_or_are_turned_are_left_out() -> None:
    assert not [*pages(pdf(ROWS[:3]), "x", 400)]
    assert not [*pages(pdf(ROWS, "BT /F 9 Tf 0 1 -1 0 300 300 Tm (turned) Tj ET"), "x", 400)]
    names = [page.name for page in pages(pdf(ROWS, sheets=25), "x", 200)]
    assert len(names) == documents.PAGES
    assert names[:2] == ["x-0001", "x-0003"]


def test_parts_have_what_is_in_them() -> None:
    picture = Image.new("L", (100, 100), 255)
    picture.paste(0, (0, 40, 100, 60))
    line = box("x", 0, 40, 100, 60)
    page = Page("x", picture, [line], [line])
    squares = parts(page, 30)
    for square in squares:
        ((_, left, top, right, bottom),) = square.lines
        pixels = np.asarray(square.picture)
        assert (left, right) == (0, 30)
        assert (pixels[round(top) : round(bottom)] == 0).all()
        assert (pixels == 0).sum() == 30 * (bottom - top)
    assert len({square.name for square in squares}) == len(squares) > 1
    assert line.inside(0, 59, (30, 30)) is None, "less than two pixels"
    assert parts(page, 300)[0].picture.size == (300, 300)


def test_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = pdf(ROWS)
    files = {"usr/share/doc/x/b.pdf": content, "usr/share/doc/x/a.pdf.gz": gzip.compress(content)}
    file = package(tmp_path, files)
    assert pdfs(file) == [("a", content)]
    monkeypatch.setattr(documents, "deb", lambda *_: file)
    monkeypatch.setattr(documents, "side_of", lambda *_: "val")
    command = [str(tmp_path / "out"), "--packages", "2", "--height", "320"]
    assert documents.main(command) == 0
    first, second = (p.name for p in debian.read_list(documents.LIST)[:2])
    table = json.loads((tmp_path / "out" / "val.json").read_text())
    names = [f"pictures/val/{name}-a-0001.png" for name in (first, second)]
    assert [image["file_name"] for image in table["images"]] == names
    with Image.open(tmp_path / "out" / names[0]) as picture:
        assert picture.size == (240, 320)
    assert [c["name"] for c in table["categories"]] == ["line"]
    assert len(table["annotations"]) == 14
    words = json.loads((tmp_path / "out" / "val-words.json").read_text())
    assert len(words["annotations"]) == 24
    lines = capsys.readouterr().out
    assert (
        "val: 2 pictures of 2 pages with 14 lines (7.0 each) and 24 words, of 2 packages" in lines
    )
