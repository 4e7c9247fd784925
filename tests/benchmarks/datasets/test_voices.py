"""Synthetic voices: a program that copies a sound, since a test takes nothing from the network."""

import json
import wave
from pathlib import Path

import pytest

from benchmarks.datasets import debian, voices
from benchmarks.datasets.voices import PITCHES, SPEEDS, VOICES, WORDS, Utterance, utterances


def wav(file: Path, seconds: float) -> None:
    with wave.open(str(file), "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(bytes(2 * int(8000 * seconds)))


def test_the_list_is_pinned_and_a_voice_is_on_one_side() -> None:
    packages = debian.read_list(voices.LIST)
    assert {"espeak-ng", "flite"} <= {p.name for p in packages}
    assert all(len(p.sha256) == 64 for p in packages)
    every = [voice for side in VOICES.values() for voice in side]
    assert len({*every}) == len(every) == 20


def test_every_word_is_said_in_all_manners_and_rows_depend_on_the_voice() -> None:
    assert len(WORDS) == 36
    one = utterances("x")
    assert one == utterances("x")
    assert len({utterance.name for utterance in one}) == len(one)
    single = [utterance for utterance in one if " " not in utterance.text]
    assert len({(u.text, u.speed, u.pitch) for u in single}) == 36 * len(SPEEDS) * len(PITCHES)
    rows = [utterance.text.split() for utterance in one if " " in utterance.text]
    assert len(rows) == voices.ROWS
    assert {len(row) for row in rows} == {2, 3, 4, 5, 6}
    assert {word for row in rows for word in row} <= {*WORDS}
    assert rows != [u.text.split() for u in utterances("y") if " " in u.text]


def test_a_letter_is_spelt_for_the_programs() -> None:
    utterance = Utterance("row", "a nine w", SPEEDS[0], PITCHES[0])
    words = voices.command("en-us+m1", utterance, Path("/r"), Path("o.wav"))
    assert words[0] == "/r/usr/bin/espeak-ng"
    assert words[-1] == "ay, nine, double-you"
    assert [words[words.index(key) + 1] for key in ("-v", "-s", "-w")] == [
        *("en-us+m1", str(SPEEDS[0]), "o.wav")
    ]
    words = voices.command("flite-slt", utterance, Path("/r"), Path("o.wav"))
    assert words[0] == "/r/usr/bin/flite"
    assert words[words.index("-voice") + 1] == "slt"
    slow = float(words[words.index("--setf") + 1].partition("=")[2])
    words = voices.command("flite-slt", utterance._replace(speed=SPEEDS[1]), Path("/r"), Path("o"))
    assert slow > float(words[words.index("--setf") + 1].partition("=")[2])


def test_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sounds = {"en-us": 0.5, "en-us+m1": 0.25, "flite-slt": 0.5}
    for name, seconds in sounds.items():
        wav(tmp_path / f"{name}.wav", seconds)
    sides = {"train": ("en-us",), "val": ("en-us+m1",), "test": ("flite-slt",)}
    monkeypatch.setattr(voices, "VOICES", sides)
    monkeypatch.setattr(voices, "WORDS", {"one": "one", "b": "bee"})
    monkeypatch.setattr(voices, "ROWS", 3)
    monkeypatch.setattr(voices, "read_list", lambda _: [])

    def copy(voice: str, utterance: Utterance, root: Path, file: Path) -> list[str]:
        return ["cp", str(tmp_path / f"{voice}.wav"), str(file)]

    monkeypatch.setattr(voices, "command", copy)
    out = tmp_path / "out"
    assert voices.main([str(out)]) == 0
    lines = [json.loads(line) for line in (out / "val.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 4 + 3
    assert lines[0] == {
        "audio_filepath": "wavs/en-us+m1/one-0.wav",
        "duration": 0.25,
        "text": "one",
    }
    assert all((out / line["audio_filepath"]).is_file() for line in lines)
    words = [json.loads(line) for line in (out / "words-val.jsonl").read_text().splitlines()]
    assert [line["text"] for line in words] == ["one"] * 4 + ["b"] * 4
    assert all(line["label"] == line["text"] for line in words)
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].endswith("each 4 times, and 3 rows; 0 recordings of train")
    assert printed[2].endswith("1 recordings of train"), "the same sound on two sides is told"

    monkeypatch.setattr(voices, "command", lambda *_: ["cp", "nothing", "nowhere"])
    with pytest.raises(SystemExit, match="cp does not run"):
        voices.speak(tmp_path, "x", tmp_path / "x")
