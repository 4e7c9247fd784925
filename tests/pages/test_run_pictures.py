"""What a task shows, on the page of its run; whatever the file holds."""

import json
from pathlib import Path
from typing import Any

import pytest

from addnorm.pages.run import write
from addnorm.pages.run_pictures import pictures
from tests.strict_html import Page

MATRIX = {
    "kind": "matrix",
    "title": "Mixed up",
    "caption": "3 of 4",
    "rows": ["<a>", "b"],
    "columns": ["<a>", "b"],
    "values": [[1, 1], [0, 1234]],
}
TABLE = {
    "kind": "table",
    "title": "Errors",
    "caption": "worst",
    "heads": ["text", "n", "p"],
    "rows": [["<b>x</b>", 3, 0.25], ["y" * 700, 4000, 0.5]],
}
HEAT = {
    "kind": "heat",
    "title": "Looks",
    "caption": "where",
    "maps": [{"rows": ["<x>", "y"], "columns": ["a", "中文"], "values": [[0.1, 0.9], [0.0, 0.45]]}],
}
ITEM = {
    "head": "What <is> it?",
    "text": [["before ", ""], ["this", "ours"], [" or ", ""], ["<that>", "right evil"]],
    "notes": [["ours", "nothing"]],
}
PASSAGES = {"kind": "passages", "title": "Worst", "caption": "marks", "items": [ITEM]}


PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
SHOT = {"png": PNG, "width": 28, "head": "a <cat>", "notes": [["right", "dog"]]}
GALLERY = {"kind": "gallery", "title": "Worst", "caption": "five", "items": [SHOT]}


def test_a_gallery() -> None:
    wrong: list[Any] = [None, {"png": 3}, {"png": '"><script>'}, {**SHOT, "png": PNG * 50_000}]
    page = Page(f"<main>{pictures([{**GALLERY, 'items': [*wrong, SHOT]}])}</main>")
    (image,) = page.all("img")
    assert image["src"] == f"data:image/png;base64,{PNG}"
    assert (image["alt"], image["width"], image["class"]) == ("a <cat>", "112", "grain")
    assert "right" in page.words
    assert "five" in page.words
    (image,) = Page(
        f"<main>{pictures([{**GALLERY, 'items': [SHOT | {'width': 640}]}])}</main>"
    ).all("img")
    assert "width" not in image
    assert pictures([{**GALLERY, "items": wrong}]) == ""


def test_a_matrix_and_a_table() -> None:
    page = Page(f"<main>{pictures([MATRIX, TABLE])}</main>")
    for words in ("Mixed up", "<a>", "1,234", "<b>x</b>", "4,000", "0.25", "3 of 4", "worst"):
        assert words in page.words
    assert "y" * 601 not in page.words
    assert not page.all("b")
    shades = [cell["class"] for cell in page.all("td")[:4]]
    assert shades == ["num shade2", "num shade2", "num shade0", "num shade4"]


def test_a_map_and_passages() -> None:
    page = Page(f"<main>{pictures([HEAT, PASSAGES])}</main>")
    for words in ("<x>", "中文", "What <is> it?", "before this or <that>", "where", "marks"):
        assert words in page.words
    assert [mark["class"] for mark in page.all("mark")] == ["ours", "right"]
    assert [rect["fill-opacity"] for rect in page.all("rect")] == ["0.11", "1.00", "0.50"]


@pytest.mark.parametrize(
    "wrong",
    [
        *(None, 3, "x", {}, {"kind": "film"}, {"kind": ["matrix"]}, {**MATRIX, "values": [[1, 2]]}),
        *({**MATRIX, "columns": None}, {**MATRIX, "values": [[1], [2]]}, {**TABLE, "heads": []}),
        *({**TABLE, "rows": [[1]]}, {**TABLE, "rows": 7}, {"kind": "matrix"}, {"kind": "table"}),
        *({**HEAT, "maps": [None, {"rows": ["a"], "columns": [], "values": [[]]}]},),
        *({**HEAT, "maps": [{"rows": ["a"], "columns": ["b"], "values": [[1, 2]]}]},),
        *({**PASSAGES, "items": [4, {"text": [["a"]]}, {}]}, {**PASSAGES, "items": "x"}),
    ],
)
def test_what_is_not_understood_is_left_out(wrong: Any) -> None:
    assert pictures([wrong]) == ""
    assert pictures([wrong, TABLE]) == pictures([TABLE])


def test_they_stand_on_the_page(tmp_path: Path) -> None:
    content = {"step": 1200, "pictures": [MATRIX]}
    (tmp_path / "pictures.json").write_text(json.dumps(content))
    page = Page(write(tmp_path).read_text())
    assert "Answers after step 1,200" in page.words
    assert "no samples yet" not in page.words
    for broken in ("[1", '{"pictures": 3}', '{"pictures": [1]}', "null"):
        (tmp_path / "pictures.json").write_text(broken)
        assert "no samples yet" in Page(write(tmp_path).read_text()).words
