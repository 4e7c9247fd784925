"""The benchmark of recognizers: what is counted, the list of what is learned, the table."""

import json
from pathlib import Path

import pytest

from benchmarks.transcribe import counts, manifest, table
from tests.tasks.recordings import ljspeech


def test_counts_are_sentence_by_sentence() -> None:
    sentences = counts(["One two", "", "pound KEY!"], ["one too", "zero", "pound key"])
    assert sentences.wrong_words == [1, 1, 0]
    assert sentences.words == [2, 1, 2]
    assert sentences.wrong_letters == [1, 4, 0]
    assert sentences.letters == [7, 4, 9]


def test_recordings_of_several_places_are_one_list(tmp_path: Path) -> None:
    folders = [ljspeech(tmp_path / name, ["ab", "cd"]) for name in ("one", "two")]
    other = manifest([str(folders[1])], tmp_path / "other.jsonl")
    file = manifest([str(folders[0]), str(other)], tmp_path / "all.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["text"] for row in rows] == ["ab", "cd"] * 2
    assert all(Path(row["audio_filepath"]).is_file() for row in rows)
    assert "one" in rows[0]["audio_filepath"]
    assert "two" in rows[3]["audio_filepath"]


def test_the_table_has_a_row_for_each_way() -> None:
    names = ("best row", "beams", "beams and language model")
    content = {f"{name}, seed {seed}": ["one two", "no"] for name in names for seed in (1, 2)}
    text = table({**content, "pocketsphinx": ["one", ""]}, ["one two", "zero"], [1, 2], [3.0, 5.0])
    assert "2 sentences, 3 words; 2 seeds, 4.0 minutes each" in text
    assert "| pocketsphinx | 66.7%" in text
    assert text.count("| the recipe `transcribe`, ") == 3
    assert text.count("33.3% [0.0%, 100.0%]") == pytest.approx(3)
