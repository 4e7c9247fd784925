"""Recordings of an exchange: packages made by hand, since a test takes nothing from the network."""

import gzip
import io
import wave
from pathlib import Path

import pytest

from benchmarks.datasets import asterisk, debian
from benchmarks.datasets.asterisk import Recording, clean, near, split, spoken, without_remarks
from tests.benchmarks.datasets.debs import package

TEXTS = """\ufeff; Sounds in English

beep: [a simple beep]
silence/1: (1 second of silence)
letters/at: at [@]
vm-intro: Leave it  after the tone. (a tone sounds)
vm-doubt: Say [it] again
press: press: Press 1, or *. It's H.323!
Upper: Upper.
long: long
none:
"""


def wav(seconds: float) -> bytes:
    with io.BytesIO() as file:
        with wave.open(file, "wb") as out:
            out.setparams((1, 2, 8000, 0, "NONE", ""))
            out.writeframes(bytes(2 * int(8000 * seconds)))
        return file.getvalue()


def recording(number: int, text: str) -> Recording:
    return Recording(f"r{number:03}", text, spoken(text, "en"), wav(0.1), 0.1)


def test_the_list_is_pinned_and_has_two_packages_of_each_language() -> None:
    packages = debian.read_list(asterisk.LIST)
    assert len(packages) == 2 * len(asterisk.KEYS)
    assert all(len(p.sha256) == 64 for p in packages)


def test_what_is_spoken_of_a_text() -> None:
    assert without_remarks("IAX (note: does not say 2)") == "IAX"
    assert [without_remarks(t) for t in ("[tones]", "<beep>", "(2 seconds)")] == [""] * 3
    assert spoken("Press 10, then the * key: it's O\u2019Hare.", "en") == (
        "press one zero then the star key it's o'hare"
    )
    assert spoken("Нажмите 2 или #", "ru") == "нажмите два или решётка"
    assert spoken("...", "en") == ""
    assert all(len(keys.split()) == 12 for keys in asterisk.KEYS.values())


def test_from_packages_to_a_folder_in_the_form_of_ljspeech(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = "usr/share/asterisk/sounds/en_US"
    names = ("beep", "silence/1", "letters/at", "vm-intro", "vm-doubt", "press", "upper", "none")
    sounds = {f"{root}/{name}.wav": wav(0.5) for name in names}
    sounds |= {f"{root}/long.wav": wav(31), f"{root}/other.wav": wav(1)}
    texts = {"usr/share/doc/x/core-sounds-en.txt.gz": gzip.compress(TEXTS.encode())}
    files = {
        "asterisk-core-sounds-en": package(tmp_path / "a", texts),
        "asterisk-core-sounds-en-wav": package(tmp_path / "b", sounds),
    }
    monkeypatch.setattr(asterisk, "deb", lambda p, *_: files[p.name])
    monkeypatch.setattr(asterisk, "side_of", lambda *_: "train")
    assert asterisk.main([str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "train" / "metadata.csv").read_text().splitlines() == [
        "letters-at|at|at",
        "press|Press 1, or *. It's H.323!|press one or star it's h three two three",
        "upper|Upper.|upper",
        "vm-intro|Leave it after the tone.|leave it after the tone",
    ]
    names_there = sorted(p.name for p in (tmp_path / "out" / "train" / "wavs").iterdir())
    assert names_there == ["letters-at.wav", "press.wav", "upper.wav", "vm-intro.wav"]
    assert (tmp_path / "out" / "test" / "metadata.csv").read_text() == ""
    assert "Creative Commons" in (tmp_path / "out" / "README.md").read_text()
    lines = capsys.readouterr().out
    for line in (
        "left out, a tone, a noise or silence: 2 (beep, silence/1)",
        "left out, no text goes with it: 2 (none, other)",
        "left out, the text leaves open what was said: 1 (vm-doubt)",
        "left out, longer than 30 s: 1 (long)",
        "train: 4 recordings, 0.0 minutes",
    ):
        assert line in lines


def test_a_lost_letter_is_a_doubt_and_a_question_is_none() -> None:
    sounds = {name: wav(0.1) for name in "abc"}
    texts = {"a": "Non pu? essere.", "b": "Quale cartella? Premere 1.", "c": "cos?come"}
    recordings, rest = clean(sounds, texts, "it")
    assert [row.name for row in recordings] == ["b"]
    assert rest == {"the text leaves open what was said": ["a", "c"]}


def test_a_sentence_is_on_one_side_and_one_word_is_for_learning() -> None:
    sentences = [f"please press the key {i} and then number {i}" for i in "abcdefghijklmnopqrst"]
    twins = [recording(i, f"{mark} {one}!") for i, one in enumerate(sentences) for mark in " ."]
    words = [recording(100 + i, text) for i, text in enumerate(("one", "two", "key", "star"))]
    menus = [
        recording(200 + i, f"to hear the next message press six or {i % 10} for {i // 10}")
        for i in range(asterisk.CROWD + 1)
    ]
    sides = split([*twins, *words, *menus])
    assert sum(map(len, sides.values())) == len(twins) + len(words) + len(menus)
    assert {*words, *menus} <= {*sides["train"]}
    texts = {side: {row.spoken for row in rows} for side, rows in sides.items()}
    assert texts["test"]
    assert texts["val"]
    assert sum(map(len, texts.values())) == len(set().union(*texts.values()))
    assert near(["a b c d e f", "x a b c d e", "a b c", "a b c"]) == [(0, 1), (2, 3)]
    lines = asterisk.summary(sides, {})
    assert "  0 of its sentences are in train" in lines[2]
