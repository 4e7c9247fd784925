"""Conversations in English and Chinese: .jsonl files of messages, for a model that answers.

Source: the package chatterbot-corpus 1.3.3 of PyPI (github.com/gunthercox/chatterbot-corpus), with
the SHA-256 below, folders data/english and data/chinese. Licence: BSD 3-clause, Gunther Cox, as the
package says. Nothing of it is in this repository, and what this script writes is under the same
licence.

    python benchmarks/datasets/chatterbot.py out/chatterbot

writes english/train.jsonl, val.jsonl and test.jsonl, and the same in chinese/: a conversation a
line. More than half of the English ones are copies of others, which are left out. Conversations
that begin alike, but for signs and capitals, are on one side, which a hash of the first turn
decides; where more than ten begin so, they are for learning. In line 35 of english/trivia.yml the
dash of a list is missing, so that a question and its answer would be one text; it is put there. A
text has no spaces at its ends.
"""

import argparse
import json
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from addnorm.data.dialogues import ASSISTANT, Dialogue, read_dialogues, to_object
from benchmarks.datasets.pypi import downloaded
from benchmarks.datasets.shared_runs import Units, letters, runs_of_all, shared, words
from benchmarks.datasets.sides import fraction, side_of

PACKAGE = "chatterbot-corpus==1.3.3"
SHA256 = "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154"
FOLDER = "chatterbot_corpus/data"
LANGUAGES = ("english", "chinese")
SIDES = {"test": 0.2, "val": 0.1, "train": 0.7}
"""Side -> its share of the first turns."""
CROWD = 10
"""Conversations that begin alike from which on they are not held out: they would be much of what is
measured."""
WITHOUT_DASH = ("english/trivia.yml", 35)
"""A file, and its line that should begin with two dashes and has one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, and say what is in them."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path, help="a folder")
    out = parser.parse_args(arguments).out
    with tempfile.TemporaryDirectory() as name:
        corpus = extracted(downloaded(PACKAGE, SHA256, Path(name)), Path(name) / "corpus")
        every = {language: read_dialogues(corpus / language) for language in LANGUAGES}
    for language, dialogues in every.items():
        different = cleaned(dialogues)
        sides = split(different)
        write(out / language, sides)
        print(f"{language}: {len(dialogues):,} conversations, {len(different):,} different ones")
        for line in report(sides, language):
            print(f"{language}: {line}")
    return 0


def extracted(wheel: Path, folder: Path) -> Path:
    """The folder, with the corpus of each language in it."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            name = member.removeprefix(f"{FOLDER}/")
            if member.endswith(".yml") and name.split("/")[0] in LANGUAGES:
                text = archive.read(member).decode()
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(mended(name, text), encoding="utf-8")
    return folder


def mended(name: str, text: str) -> str:
    """The text of a file, with the dash that one of them lacks."""
    file, number = WITHOUT_DASH
    if name != file:
        return text
    lines = text.split("\n")
    line = lines[number - 1]
    if not line.startswith("- ") or line.startswith("- - "):
        raise SystemExit(f"{name}:{number} does not lack a dash: is it another version?")
    lines[number - 1] = f"- {line}"
    return "\n".join(lines)


def cleaned(dialogues: Iterable[Dialogue]) -> list[Dialogue]:
    """Each once, without spaces at the ends of its turns."""
    stripped = (tuple(t._replace(text=t.text.strip()) for t in one) for one in dialogues)
    return list(dict.fromkeys(stripped))


def split(dialogues: Iterable[Dialogue]) -> dict[str, list[Dialogue]]:
    """Side -> its conversations; those that begin alike are on one side."""
    groups: dict[str, list[Dialogue]] = defaultdict(list)
    for dialogue in dialogues:
        groups[opening(dialogue)].append(dialogue)
    sides: dict[str, list[Dialogue]] = {side: [] for side in SIDES}
    for key in sorted(groups, key=fraction):
        group = groups[key]
        sides[side_of(key, SIDES) if len(group) <= CROWD else "train"] += group
    return sides


def opening(dialogue: Dialogue) -> str:
    """The first turn by its letters and digits; by all its signs, if it has no other."""
    return letters(dialogue[0].text) or dialogue[0].text


def write(folder: Path, sides: Mapping[str, Iterable[Dialogue]]) -> None:
    """A file for each side."""
    folder.mkdir(parents=True, exist_ok=True)
    for side, dialogues in sides.items():
        lines = [json.dumps(to_object(one), ensure_ascii=False) + "\n" for one in dialogues]
        (folder / f"{side}.jsonl").write_text("".join(lines), encoding="utf-8")


def report(sides: Mapping[str, Sequence[Dialogue]], language: str) -> list[str]:
    """What there is on each side, and what the others share with the one to learn from."""
    lines = []
    own = {
        side: runs_of_all(units(one, language) for one in answers(sides[side])) for side in SIDES
    }
    for side, dialogues in sides.items():
        size = sum(len(text.encode()) for text in answers(dialogues))
        first = len({opening(one) for one in dialogues})
        lines.append(
            f"{side}: {len(dialogues):,} conversations with {first:,} first turns, "
            f"{len(answers(dialogues)):,} answers of {size:,} bytes"
        )
    kind = "characters" if language == "chinese" else "words"
    for side in ("val", "test"):
        both, every = shared(own[side], own["train"])
        lines.append(
            f"of the {every:,} runs of five {kind} in the answers of {side}, {both:,} are in those "
            f"of train ({both / max(every, 1):.1%})"
        )
    return lines


def answers(dialogues: Iterable[Dialogue]) -> list[str]:
    """The texts of the assistant's turns."""
    return [turn.text for one in dialogues for turn in one if turn.role == ASSISTANT]


def units(text: str, language: str) -> Units:
    """What runs are made of: words, in Chinese characters."""
    return letters(text) if language == "chinese" else words(text)


if __name__ == "__main__":
    sys.exit(main())
