"""Captions by the nearest picture, on pictures of one colour."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import nearest_pictures
from benchmarks.nearest_pictures import Captions, Setting, nearest, scores, tune, vectors


def plain(grey: int) -> Image.Image:
    return Image.new("RGB", (40, 30), (grey, grey, grey))


def striped(first: int, second: int) -> Image.Image:
    picture = plain(first)
    picture.paste((second, second, second), (0, 0, 20, 30))
    return picture


def test_rows_are_pixels_and_a_pattern_has_no_brightness() -> None:
    row = vectors([striped(0, 255)], Setting(2, False, False))
    assert row.tolist() == [[1, 0, 1, 0]]
    assert vectors([plain(9)], Setting(2, True, False)).shape == (1, 12)
    light, dark = vectors([striped(200, 240), striped(10, 50)], Setting(2, True, True))
    np.testing.assert_allclose(light, dark, atol=1e-6)
    assert np.abs(vectors([plain(7)], Setting(2, True, True))).max() < 1e-6


def test_the_nearest_texts_come_first_and_once() -> None:
    texts = ["a", "a", "b", "c", "d", "e", "f"]
    train = Captions([plain(30 * i) for i in range(7)], texts)
    some = Captions([plain(25), plain(185)], ["a", "f"])
    assert nearest(train, some, Setting(2, False, False)) == [[*"abcde"], [*"fedcb"]]


def test_the_setting_is_what_val_says() -> None:
    train = Captions([striped(0, 100), striped(255, 155)], ["left", "right"])
    val = Captions([striped(150, 250), striped(90, 0)], ["left", "right"])
    setting = tune(train, val)
    assert setting.centred, "the pattern tells, the brightness does not"


def test_the_command_and_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scores([["a", "b"], ["c", "d"]], ["a", "d"]) == pytest.approx(
        {"exact_match": 50, "recall_at_1": 0.5, "recall_at_5": 1.0, "chrf": 50.0}, abs=20
    )
    monkeypatch.setattr(nearest_pictures, "SETTINGS", [Setting(4, False, False)])
    for side, shift in (("train", 0), ("val", 4), ("test", 8)):
        lines = []
        for i in range(6):
            plain(40 * i + shift).save(tmp_path / f"{side}{i}.png")
            lines.append(json.dumps({"image": f"{side}{i}.png", "text": f"grey of {i}"}) + "\n")
        (tmp_path / f"{side}.jsonl").write_text("".join(lines))
    assert nearest_pictures.main([str(tmp_path), "--out", str(tmp_path / "x.json")]) == 0
    table = json.loads((tmp_path / "x.json").read_text())
    assert table["test"] == pytest.approx(
        {"exact_match": 100, "chrf": 100, "recall_at_1": 1, "recall_at_5": 1, "chance": 1 / 6}
    )
    assert "test: exact_match 100, chrf 100" in capsys.readouterr().out
