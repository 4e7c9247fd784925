"""Emoji in three styles: packages made by hand, since a test takes nothing from the network."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets import emoji, npm
from benchmarks.datasets.emoji import STYLES, code_of, of_openmoji, of_twitter, read_names, split

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><path fill="#f00" d="{}"/></svg>'
CIRCLE = "M36 6a30 30 0 1 0 .1 0z"


def archive(file: Path, contents: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w:gz") as tar:
        for name, content in contents.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def png(width: int, height: int) -> bytes:
    with io.BytesIO() as file:
        Image.new("RGBA", (width, height), (0, 0, 255, 255)).save(file, "PNG")
        return file.getvalue()


def names_file(folder: Path) -> Path:
    table = {"😀": {"default": ["face"], "tts": ["grinning face"]}, "{": {"tts": ["brace"]}}
    table |= {"☹": {"tts": ["frowning face"]}, "🇫🇷": {"tts": ["flag"]}, "x": {"default": ["y"]}}
    content = json.dumps({"annotations": {"annotations": table}}).encode()
    return archive(folder / "names.tgz", {"annotations/en/annotations.json": content})


def test_names_are_those_of_one_character(tmp_path: Path) -> None:
    file = names_file(tmp_path)
    names = {"1f600": "grinning face", "007b": "brace", "2639": "frowning face"}
    assert read_names(file, "en") == names
    with pytest.raises(SystemExit, match="no names in the language 'xx'"):
        read_names(file, "xx")
    files = ["a/1F600.svg", "2639-fe0f.png", "1F468-200D-1F466.svg", "index.js"]
    assert [code_of(name) for name in files] == ["1f600", "2639", "", ""]


def test_pictures_are_whole_on_white_and_square(tmp_path: Path) -> None:
    names = {"1f600": "grinning face", "2639": "frowning face"}
    drawing = SVG.format(CIRCLE).encode()
    drawings = {f"color/svg/{name}.svg": drawing for name in ("1F600", "1F601", "1F468-200D-1F466")}
    pictures = of_openmoji(archive(tmp_path / "a.tgz", drawings), names)
    assert [*pictures] == ["1f600"]
    pixels = np.asarray(pictures["1f600"])
    assert pixels.shape == (64, 64, 3)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[32, 32].tolist() == [255, 0, 0]
    wide = {"img/twitter/64/2639-fe0f.png": png(64, 32), "img/twitter/64/x.png": png(9, 9)}
    pictures = of_twitter(archive(tmp_path / "b.tgz", wide), names)
    assert [*pictures] == ["2639"]
    pixels = np.asarray(pictures["2639"])
    assert pixels[4, 32].tolist() == [255, 255, 255]
    assert pixels[32, 4].tolist() == [0, 0, 255]


def test_a_style_is_held_out_and_its_emoji_are_on_one_side() -> None:
    names = {f"{i:04x}": f"name {i}" for i in range(0x1F600, 0x1F664)}
    for style in STYLES:
        sides = split(names, style)
        assert len(sides["train"]) == 200
        assert not any(f"/{style}/" in row.image for row in sides["train"])
        assert all(f"/{style}/" in row.image for row in sides["val"] + sides["test"])
        assert 10 <= len(sides["val"]) <= 30
        texts = [row.text for row in sides["val"] + sides["test"]]
        assert sorted(texts) == sorted(names.values())


def test_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = [f"{i:x}" for i in range(0x1F600, 0x1F614)]
    rng = np.random.default_rng(0)
    own = {
        style: {
            code: Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            for code in [*codes, *([style] if style == "noto" else [])]
        }
        for style in STYLES
    }
    monkeypatch.setattr(npm, "archive", lambda *_: tmp_path)
    monkeypatch.setattr(emoji, "deb", lambda *_: tmp_path)
    monkeypatch.setattr(emoji, "read_names", lambda *_: {code: f"name {code}" for code in codes})
    for style, name in zip(STYLES, ("of_openmoji", "of_twitter", "of_noto"), strict=True):
        monkeypatch.setattr(emoji, name, lambda *_, style=style: own[style])
    assert emoji.main([str(tmp_path / "out")]) == 0
    lines = (tmp_path / "out" / "test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {*rows[0]} == {"image", "text"}
    assert all((tmp_path / "out" / row["image"]).is_file() for row in rows)
    assert "noto: 21 emoji of one character, 20 in all styles" in capsys.readouterr().out
