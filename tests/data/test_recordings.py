"""Recordings with their texts or labels: every format, and what is wrong in one by its line."""

import json
from pathlib import Path

import numpy as np
import pytest

from addnorm.data.audio import write_wav
from addnorm.data.recordings import read_labelled_sounds, read_recordings, read_sounds
from addnorm.data.sources import DataError

TONE = (0.3 * np.sin(np.arange(4_000) / 4)).astype(np.float32)


def sound(file: Path, rate: int = 16_000) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_wav(file, TONE, rate)
    return file


def ljspeech(folder: Path, text: str) -> Path:
    for name in ("a", "b"):
        sound(folder / "wavs" / f"{name}.wav")
    (folder / "metadata.csv").write_text(text)
    return folder


def manifest(file: Path, *objects: object) -> Path:
    file.write_text("\n".join(map(json.dumps, objects)))
    return file


def test_ljspeech(tmp_path: Path) -> None:
    """Of three fields the text as it is spoken; quotes are nothing special."""
    rows = read_recordings(ljspeech(tmp_path, 'a|It is 5|it is five\n\nb|"he"\n')).rows
    assert [(row.file.name, row.text) for row in rows] == [
        ("a.wav", "it is five"),
        ("b.wav", '"he"'),
    ]
    assert rows[1].where.endswith("metadata.csv:3")


def test_an_empty_text_is_left_out_and_told(tmp_path: Path) -> None:
    recordings = read_recordings(ljspeech(tmp_path, "a|yes\nb| \n"))
    assert len(recordings.rows) == 1
    assert "1 sound without a text left out" in recordings.remarks[0]
    assert "metadata.csv:2" in recordings.remarks[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a|yes\nc|no", r"metadata.csv:2: there is no file .*c\.wav; of 2 sounds 1 are missing"),
        ("a|yes\nb", r"metadata.csv:2: 1 field, and a line is id\|text"),
        ("a| ", "holds no sound with a text"),
        ("", "holds no sound with a text"),
    ],
)
def test_what_is_wrong_in_metadata(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_recordings(ljspeech(tmp_path, text))


def test_a_manifest(tmp_path: Path) -> None:
    sound(tmp_path / "x" / "a.wav")
    rows = read_recordings(
        manifest(
            tmp_path / "m.jsonl",
            {"audio_filepath": "x/a.wav", "text": "all", "duration": 0.2},
            {"audio_filepath": "x/a.wav", "text": "part", "duration": 0.1, "offset": 0.05},
        )
    ).rows
    (whole, part), remarks = read_sounds(rows)
    assert remarks == []
    assert len(whole.sound.samples) == 4_000
    assert len(part.sound.samples) == 1_600


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"text": "a"}, r"m\.jsonl:1: the object has text, and no audio_filepath"),
        ({"audio_filepath": "a.wav"}, "and no text"),
        ({"audio_filepath": "a.wav", "text": 3}, "text must be a text, got 3"),
        ({"audio_filepath": "no.wav", "text": "a"}, r"m\.jsonl:1: there is no file .*no\.wav"),
        ({"audio_filepath": "a.wav", "text": "a", "offset": -1}, "offset must be seconds, got -1"),
        ([1], "expected an object"),
    ],
)
def test_what_is_wrong_in_a_manifest(tmp_path: Path, value: object, message: str) -> None:
    sound(tmp_path / "a.wav")
    with pytest.raises(DataError, match=message):
        read_recordings(manifest(tmp_path / "m.jsonl", value))


def test_other_places_are_refused(tmp_path: Path) -> None:
    for name, message in (("no", "there is no"), (".", "has no metadata.csv")):
        with pytest.raises(DataError, match=message):
            read_recordings(tmp_path / name)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match="none of the formats for sounds"):
        read_recordings(tmp_path / "a.txt")


def test_class_folders_and_labels_of_a_manifest(tmp_path: Path) -> None:
    for name in ("yes/a.wav", "no/a.wav", "no/deep/b.wav"):
        sound(tmp_path / "data" / name)
    (tmp_path / "data" / "no" / "notes.txt").write_text("passed over")
    rows = read_labelled_sounds(tmp_path / "data").rows
    assert [row.text for row in rows] == ["no", "no", "yes"]
    file = manifest(tmp_path / "m.jsonl", {"audio_filepath": "data/yes/a.wav", "label": "yes"})
    assert read_labelled_sounds(file).rows[0].text == "yes"
    (tmp_path / "data" / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no sounds"):
        read_labelled_sounds(tmp_path / "data")


def test_sounds_that_cannot_be_used_are_counted_by_name(tmp_path: Path) -> None:
    ljspeech(tmp_path, "a|yes\nb|no\n")
    sound(tmp_path / "wavs" / "b.wav", 8_000)
    rows = read_recordings(tmp_path).rows
    _, remarks = read_sounds(rows)
    assert remarks == ["1 file was resampled from 8,000 Hz (b.wav)"]
    write_wav(tmp_path / "wavs" / "a.wav", np.zeros(100, np.float32), 16_000)
    sounds, remarks = read_sounds(rows)
    assert len(sounds) == 1
    assert "1 sound left out" in remarks[1]
    assert "a.wav is silent" in remarks[1]
    with pytest.raises(DataError, match="none of 1 sound can be used"):
        read_sounds(rows[:1])
