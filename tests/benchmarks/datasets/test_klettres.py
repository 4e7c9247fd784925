"""Spoken letters: a package made by hand, since a test takes nothing from the network."""

import io
from pathlib import Path

import numpy as np
import pytest

from benchmarks.datasets import klettres
from benchmarks.datasets.klettres import VOICES, Sound, languages, letters, read_sounds
from tests.benchmarks.datasets.debs import package

ROOT = "usr/share/klettres"


def test_a_letter_is_taken_before_a_syllable_of_its_name() -> None:
    names = ["en/syllab/a", "en/alpha/A", "en/alpha/B", "fr/syllab/ad-1"]
    files = [(f"./{ROOT}/{name}.ogg", name.encode()) for name in names]
    assert read_sounds(files) == [
        Sound("en", "a", b"en/alpha/A"),
        Sound("en", "b", b"en/alpha/B"),
        Sound("fr", "ad-1", b"fr/syllab/ad-1"),
    ]


def test_letters_are_split_by_voice_and_languages_by_text() -> None:
    folders = ("de", "en", "en_GB", "es", "fr", "it", "pt_BR", "ru")
    texts = [one + other for one in "abcdefgh" for other in ["", *"aeiou"]]
    sounds = [
        Sound(folder, text, f"{folder} {text}".encode()) for folder in folders for text in texts
    ]
    sides = letters(sounds)
    assert {one.sound.folder for one in sides["test"]} == {"en_GB"}
    assert {one.sound.folder for one in sides["val"]} == {"pt_BR"}
    assert {one.sound.folder for one in sides["train"]} == {"de", "en", "es", "it"}
    assert all({one.label for one in some} == {*"abcdefgh"} for some in sides.values())
    every = [folder for some in VOICES.values() for folder in some]
    assert len({*every}) == len(every)
    sides = languages(sounds)
    assert all(
        {one.label for one in some} == {"de", "en", "es", "fr", "it"} for some in sides.values()
    )
    own = {side: {one.sound.text for one in some} for side, some in sides.items()}
    assert sum(map(len, own.values())) == len(set().union(*own.values())) == len(texts)


def test_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile = pytest.importorskip("soundfile")

    def ogg(seed: int) -> bytes:
        wave = np.random.default_rng(seed).uniform(-0.5, 0.5, 8000)
        with io.BytesIO() as file:
            soundfile.write(file, wave, 8000, format="OGG", subtype="VORBIS")
            return file.getvalue()

    same = ogg(0)
    names = ("en/alpha/A", "en_GB/alpha/a", "de/alpha/b", "pt_BR/alpha/c", "ru/alpha/U0411")
    files = {f"{ROOT}/{name}.ogg": same if "en" in name else ogg(i) for i, name in enumerate(names)}
    files[f"{ROOT}/en.txt"] = b"x"
    monkeypatch.setattr(klettres, "deb", lambda *_: package(tmp_path, files))
    assert klettres.main([str(tmp_path / "out")]) == 0
    written_files = sorted(
        str(p.relative_to(tmp_path / "out" / "letters"))
        for p in tmp_path.rglob("letters/*/*/*.ogg")
    )
    assert written_files == [
        "test/a/en_GB-a.ogg",
        "train/a/en-a.ogg",
        "train/b/de-b.ogg",
        "val/c/pt_BR-c.ogg",
    ]
    lines = capsys.readouterr().out
    assert "letters, train: 2 recordings, 0.0 minutes, of the voices de, en: a 1, b 1" in lines
    assert "letters, test: 1 recordings are in train too" in lines
