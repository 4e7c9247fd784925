"""Clip art: drawings made by hand, since a test takes nothing from the network."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets import openclipart
from benchmarks.datasets.openclipart import Drawing, choose, groups, read, shrink, split, stem
from tests.benchmarks.datasets.debs import package

ROOT = "usr/share/openclipart/png"


def picture(seed: int, size: int = 32) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))


def drawing(name: str, image: Image.Image) -> Drawing:
    return Drawing(name, image, name.split("/")[0])


def png(image: Image.Image) -> bytes:
    with io.BytesIO() as file:
        image.save(file, "PNG")
        return file.getvalue()


def test_variants_have_one_stem() -> None:
    names = ("animals/owl_01", "x/Owl_02", "owl", "owl_r", "owl2_small", "owl - 3")
    assert {stem(name) for name in names} == {"owl"}
    assert stem("computer/70a002") == "70a"
    assert stem("numbers/007") == "numbers/007", "nothing would be left"


def test_pictures_are_small_and_on_white_without_margins() -> None:
    wide = Image.new("RGBA", (1200, 500), (0, 0, 0, 0))
    wide.paste((255, 0, 0, 255), (100, 50, 300, 350))
    wide.paste((250, 250, 250, 255), (600, 0, 700, 100))
    wide.paste((0, 0, 255, 255), (300, 250, 700, 350))
    small = shrink(wide, 64)
    assert (small.size, small.mode) == ((64, 32), "RGB")
    assert small.getpixel((5, 16)) == (255, 0, 0)
    assert small.getpixel((50, 5)) == (255, 255, 255)
    assert shrink(picture(0, 20), 64).size == (20, 20)
    assert shrink(Image.new("L", (300, 1)), 64).size == (64, 1)
    assert shrink(Image.new("RGBA", (90, 90)), 64).size == (64, 64), "nothing is seen in it"


def test_what_cannot_be_seen_or_is_too_large_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openclipart, "LARGEST", 2000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    contents = {"b": picture(0), "a/c": Image.new("RGBA", (9, 9)), "d": Image.new("L", (50, 50))}
    files = [(f"./{ROOT}/{name}.png", png(image)) for name, image in contents.items()]
    drawings, rest = read(files, 64)
    assert [drawing.name for drawing in drawings] == ["b"]
    assert rest == {"blank on white": 1, "too large": 1}


def test_groups_are_by_name_and_by_pixels() -> None:
    twin = Image.fromarray(np.asarray(picture(1)) // 2 * 2)
    drawings = [
        drawing("animals/owl_01", picture(0)),
        drawing("animals/owl_02", picture(1)),
        drawing("people/bird", twin),
        drawing("people/man", picture(2)),
    ]
    assert sorted(len(group) for group in groups(drawings)) == [1, 3]


def test_classes_and_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openclipart, "MOST_OF_CLASS", 40)
    letters = "abcdefghijklmnopqrstuvwxy"
    names = [f"animals/{one}{other}" for one in letters[:10] for other in letters[:5]]
    names += [f"shapes/star{i}" for i in range(30)] + [f"shapes/{one}" for one in letters]
    names += [f"unsorted/{one}" for one in letters] + [f"logos/{one}" for one in letters[:9]]
    drawings = [drawing(name, picture(i, 16)) for i, name in enumerate(names)]
    sides = split(choose(drawings, False))
    every = [drawing.name for some in sides.values() for drawing in some]
    assert len(every) == len({*every})
    for side, least in {"train": 27, "val": 4, "test": 8}.items():
        labels = [drawing.label for drawing in sides[side]]
        assert {*labels} == {"animals", "shapes"}
        assert labels.count("animals") >= least - 1
    stars = {side: [d for d in some if "star" in d.name] for side, some in sides.items()}
    assert sorted(map(len, stars.values())) == [0, 0, openclipart.MOST_OF_GROUP]
    assert {d.label for group in choose(drawings, True) for d in group} >= {"logos", "unsorted"}


def test_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"{ROOT}/{k}/x/{chr(97 + i)}{k}.png": i for k in ("food", "tools") for i in range(20)}
    contents = {name: png(picture(100 * ("food" in name) + i)) for name, i in files.items()}
    monkeypatch.setattr(openclipart, "deb", lambda *_: package(tmp_path, contents))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert openclipart.main([str(tmp_path / "out"), "--size", "16"]) == 0
    names = [path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.png")]
    assert len(names) == 40
    assert {name.parts[:2] for name in names} == {
        (side, label) for side in ("train", "val", "test") for label in ("food", "tools")
    }
    assert all(name.stem.startswith("x-") for name in names)
    lines = capsys.readouterr().out
    assert "test: 8 drawings of 2 classes: food 4, tools 4" in lines
    assert "of these 0 are nearly one of train, and 0 names are there too" in lines
