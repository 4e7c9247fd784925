"""The chatterbot corpus: what is read of it, and what is on which side."""

import zipfile
from pathlib import Path

import pytest

from addnorm.data.dialogues import Dialogue, Turn, read_dialogues
from benchmarks.datasets import chatterbot
from benchmarks.datasets.chatterbot import CROWD, SIDES, cleaned, mended, report, split, write

TRIVIA = "conversations:\n- - Which one?\n  - This\n- And which now?\n  - '22'\n- - Why?\n  - So\n"


def talk(*texts: str) -> Dialogue:
    return tuple(Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))


def test_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chatterbot, "WITHOUT_DASH", ("english/trivia.yml", 4))
    wheel = tmp_path / "corpus.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("english/trivia.yml", "english/LICENSE", "german/trivia.yml"):
            archive.writestr(f"{chatterbot.FOLDER}/{name}", TRIVIA)
        archive.writestr(
            f"{chatterbot.FOLDER}/chinese/ai.yml", "conversations:\n- - 你好\n  - 好\n"
        )
    folder = chatterbot.extracted(wheel, tmp_path / "corpus")
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == ["ai.yml", "trivia.yml"]
    english = read_dialogues(folder / "english")
    assert [one[1].text for one in english] == ["This", "22", "So"]
    assert english[1] == talk("And which now?", "22")
    with pytest.raises(SystemExit, match=r"english/trivia\.yml:4 does not lack a dash"):
        mended("english/trivia.yml", (folder / "english/trivia.yml").read_text())


def test_each_is_there_once() -> None:
    assert cleaned([talk("a ", "b"), talk("a", "b "), talk("a", "c")]) == [
        talk("a", "b"),
        talk("a", "c"),
    ]


def test_what_begins_alike_is_on_one_side(tmp_path: Path) -> None:
    twins = [talk(f"{text}{i}{mark}", mark) for i in range(90) for text in "aB" for mark in "?!"]
    crowd = [talk("Hello.", f"answer {i}") for i in range(CROWD + 1)]
    sides = split([*twins, *crowd, talk("?", "?")])
    assert sum(map(len, sides.values())) == len(twins) + len(crowd) + 1
    first = {side: {chatterbot.opening(one) for one in sides[side]} for side in SIDES}
    assert sum(map(len, first.values())) == len(set().union(*first.values())) == 182
    assert all(len(keys) > 9 for keys in first.values())
    assert {*crowd} <= {*sides["train"]}
    write(tmp_path, sides)
    assert {side: read_dialogues(tmp_path / f"{side}.jsonl") for side in SIDES} == sides


def test_what_sides_share() -> None:
    sides = {
        "test": [talk("x", "one, two three four FIVE six")],
        "val": [talk("y", "another")],
        "train": [talk("z", "One two three four five.", "one", "seven")],
    }
    lines = report(sides, "english")
    assert lines[2] == "train: 1 conversations with 1 first turns, 2 answers of 29 bytes"
    assert lines[4] == (
        "of the 2 runs of five words in the answers of test, 1 are in those of train (50.0%)"
    )
    sides["test"] = [talk("甲", "一二三。四五六")]
    sides["train"] = [talk("乙", "一二三四五")]
    assert (
        "of the 2 runs of five characters in the answers of test, 1 are"
        in (report(sides, "chinese")[4])
    )
