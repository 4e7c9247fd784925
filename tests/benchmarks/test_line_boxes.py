"""Boxes by connected components, on pages of bars."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import line_boxes
from benchmarks.datasets.coco import Annotations
from benchmarks.line_boxes import Page, Setting, boxes, precision


def page(gap: int) -> np.ndarray:
    """Two lines of three words of 10 by 6 pixels."""
    ink = np.zeros((40, 60), bool)
    for top in (4, 20):
        for i in range(3):
            left = 2 + i * (10 + gap)
            ink[top : top + 6, left : left + 10] = True
    return ink


def test_a_closing_joins_what_is_near_and_nothing_else() -> None:
    ink = page(3)
    ink[38, 50] = True
    words = boxes(ink, Setting(1, 1, 2))
    assert words[:3] == [(2, 4, 10, 6), (15, 4, 10, 6), (28, 4, 10, 6)]
    assert len(words) == 6, "a speck of one pixel is none"
    assert boxes(ink, Setting(4, 1, 2)) == [(2, 4, 36, 6), (2, 20, 36, 6)]
    assert len(boxes(ink, Setting(3, 1, 2))) == 6, "the gap is three pixels"
    assert boxes(ink, Setting(4, 11, 1))[0] == (2, 4, 36, 22)
    whole = np.ones((5, 8), bool)
    assert boxes(whole, Setting(5, 3, 1)) == [(0, 0, 8, 5)]
    assert boxes(~whole, Setting(5, 3, 1)) == []


def write(folder: Path, side: str, gap: int) -> None:
    annotations = Annotations(["line"])
    for number in range(2):
        name = f"{side}{number}.png"
        ink = page(gap)
        Image.fromarray(np.where(ink, 0, 255).astype(np.uint8)).save(folder / name)
        image = annotations.add_image(name, (60, 40))
        for top in (4, 20):
            annotations.add(image, "line", (2, top, 30 + 2 * gap, 6))
    annotations.write(folder / f"{side}.json")


def test_precision_is_that_of_coco(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    write(tmp_path, "val", 3)
    right = {1: [(2.0, 4.0, 36.0, 6.0), (2.0, 20.0, 36.0, 6.0)]}
    assert precision(tmp_path / "val.json", right) == {"ap": 1, "ap50": 1}
    half = {1: right[1][:1]}
    assert precision(tmp_path / "val.json", half)["ap50"] == pytest.approx(51 / 101)
    shorter = {1: [(2.0, 4.0, 36.0, 4.0), (2.0, 20.0, 36.0, 4.0)]}  # an overlap of two thirds
    result = precision(tmp_path / "val.json", shorter)
    assert result["ap50"] == 1
    assert result["ap"] == pytest.approx(0.4), "of .5, .55 ... .95 four are passed"
    assert precision(tmp_path / "val.json", {1: []}) == {"ap": 0, "ap50": 0}
    many = {n: [(1.0 * i % 60, 30.0, 1.0, 1.0) for i in range(150)] + right[1] for n in (1, 2)}
    assert precision(tmp_path / "val.json", many)["ap50"] > 0, "more than 100 boxes count"


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycocotools")
    write(tmp_path, "val", 3)
    write(tmp_path, "test", 2)
    settings = [Setting(1, 1, 1), Setting(5, 1, 1), Setting(5, 15, 1)]
    monkeypatch.setattr(line_boxes, "SETTINGS", settings)
    assert line_boxes.main([str(tmp_path), "--out", str(tmp_path / "x.json")]) == 0
    table = json.loads((tmp_path / "x.json").read_text())
    assert table["setting"] == {"across": 5, "down": 1, "least": 1}
    assert table["test"] == {"ap": 1, "ap50": 1}
    assert "test: AP 1.000, AP50 1.000" in capsys.readouterr().out
    assert line_boxes.tune(tmp_path / "val.json", [Page(1, page(3))]) == settings[1]
