"""Scenes of clip art: drawings made by hand, since a test takes nothing from the network."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets import clipart_scenes
from benchmarks.datasets.clipart_scenes import CLASSES, GROUNDS, class_of, cut_out, scene
from benchmarks.datasets.openclipart import Drawing
from tests.benchmarks.datasets.debs import package
from tests.benchmarks.datasets.test_openclipart import ROOT, png


def shape(colour: tuple[int, int, int], top: int = 10) -> Image.Image:
    """A rectangle of 60 by 40 pixels on a clear ground."""
    picture = Image.new("RGBA", (100, 80))
    picture.paste((*colour, 255), (20, top, 80, top + 40))
    picture.putpixel((20, top), (0, 0, 0, 0))
    return picture


def test_classes_are_folders_and_photographs_are_on_one_side() -> None:
    assert class_of("animals/birds/penguin/tux") == "bird"
    assert class_of("animals/mammals_of_the_sea/x") == class_of("tools/axe") == ""
    names = [name for side in GROUNDS.values() for name in side]
    assert len(names) == len({*names}) == 9


def test_drawings_are_cut_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    full = Image.new("RGB", (50, 50), "red")
    line = Image.new("RGBA", (100, 100))
    line.paste((0, 0, 0, 255), (0, 0, 100, 2))
    line.paste((0, 0, 0, 255), (0, 0, 2, 100))
    pictures = {
        "animals/birds/owl": shape((255, 0, 0)),
        "animals/birds/line": line,
        "food/fruit/square": full,
        "recreation/games/cards/ace": full,
        "tools/axe": shape((0, 0, 0)),
    }
    files = [(f"./{ROOT}/{name}.png", png(picture)) for name, picture in pictures.items()]
    drawings, rest = cut_out(files)
    assert [(one.label, one.picture.size) for one in drawings] == [
        ("bird", (60, 40)),
        ("card", (50, 50)),
    ]
    assert rest == {"hardly anything to be seen": 1, "not on a clear ground": 1}


def test_a_scene_is_the_same_for_a_seed_and_its_masks_are_what_is_seen() -> None:
    colours = {"bird": (255, 0, 0), "bug": (0, 255, 0), "card": (0, 0, 255)}
    drawings = [Drawing(label, shape(colour), label) for label, colour in colours.items()]
    grounds = [Image.new("RGB", (300, 200), "white")]
    counts = set()
    for number in range(40):
        picture, objects = scene(f"x {number}", drawings, grounds, 96)
        again, _ = scene(f"x {number}", drawings, grounds, 96)
        assert picture.tobytes() == again.tobytes()
        counts.add(len(objects))
        pixels = np.asarray(picture).astype(int)
        total = np.zeros((96, 96), int)
        for label, mask in objects:
            total += mask
            near = np.abs(pixels - colours[label]).max(axis=2) < 130
            assert near[mask].mean() > 0.9, "edges alone are mixed"
            assert mask.any()
        assert total.max() <= 1, "a pixel belongs to one object"
    assert {1, 2, 3} <= counts


def test_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    rng = np.random.default_rng(0)
    contents = {}
    for label in ("bird", "fruit"):
        for letter in "abcdefghijklmno":
            colours = rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)
            colours[..., 3] = 255
            colours[0, 0] = 0
            picture = Image.fromarray(colours).resize((64, 64), Image.Resampling.NEAREST)
            contents[f"{ROOT}/{CLASSES[label]}{letter}{label}.png"] = png(picture)
    wheel = tmp_path / "pictures.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in (name for side in GROUNDS.values() for name in side):
            archive.writestr(f"skimage/data/{name}", png(Image.new("L", (90, 70), 128)))
    monkeypatch.setattr(clipart_scenes, "deb", lambda *_: package(tmp_path, contents))
    monkeypatch.setattr(clipart_scenes, "downloaded", lambda *_: wheel)
    command = [str(tmp_path / "out"), "--size", "64", "--train", "9", "--val", "2", "--test", "3"]
    assert clipart_scenes.main(command) == 0
    table = json.loads((tmp_path / "out" / "test.json").read_text())
    assert [image["file_name"] for image in table["images"]] == [
        f"pictures/test/0000{i}.jpg" for i in range(3)
    ]
    assert all((tmp_path / "out" / image["file_name"]).is_file() for image in table["images"])
    assert len(table["categories"]) == 10
    for one in table["annotations"]:
        left, top, width, height = one["bbox"]
        assert 0 <= left < left + width <= 64
        assert 0 <= top < top + height <= 64
        assert one["area"] <= width * height
        assert one["segmentation"]["size"] == [64, 64]
    lines = capsys.readouterr().out
    assert "train: 9 scenes with" in lines
    assert "test: 0 drawings are nearly one of train" in lines
