"""Every option of every command, and every setting of a training, as options.txt lists them.

A change that is meant is a change of that file, which this command writes anew:

    .venv/bin/python -m tests.cli.test_options
"""

import contextlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from addnorm import settings
from addnorm.cli import COMMANDS, main
from addnorm.tasks import (
    AnswerSettings,
    ChatSettings,
    ClassifyImagesSettings,
    ClassifySettings,
    ClassifySoundsSettings,
    Config,
    DecideSettings,
    FinetuneBertSettings,
    LanguageSettings,
    PretrainBertSettings,
    RecurrentSettings,
    TranscribeSettings,
    TranslateSettings,
)
from addnorm.training.loop_settings import LoopSettings

KINDS = {
    "language": LanguageSettings,
    "classify": ClassifySettings,
    "classify_images": ClassifyImagesSettings,
    "pretrain_bert": PretrainBertSettings,
    "finetune_bert": FinetuneBertSettings,
    "answer": AnswerSettings,
    "translate": TranslateSettings,
    "transcribe": TranscribeSettings,
    "classify_sounds": ClassifySoundsSettings,
    "chat": ChatSettings,
    "decide": DecideSettings,
    "recurrent_language": RecurrentSettings,
    "loop": LoopSettings,
}
FILE = Path(__file__).with_name("options.txt")


def options(*command: str) -> Iterator[str]:
    """What help says of a command's arguments, but for what they mean: one a line."""
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    narrow = patch.dict(os.environ, {"COLUMNS": "80"})  # else boxes may stand side by side
    with narrow, contextlib.redirect_stdout(stdout), pytest.raises(SystemExit):
        main([*command, "--help"])
    text = stdout.buffer.getvalue().decode("utf-8")
    inside = "\n".join(re.findall("^│ (.*?) *│$", text, re.MULTILINE))
    for block in re.split(r"\n(?! )", inside):
        argument, _, meaning = re.sub(r"\n +", "  ", block).partition("  ")
        if re.match("-(?!h,)", argument) or argument.strip("[ .]").isupper():
            note = re.search(r"\((default: .*|required|repeatable)\)$", " ".join(meaning.split()))
            yield " ".join([*command, argument, note[0] if note else ""]).rstrip()
    for name in re.findall(r"^ +• (\w+)", inside, re.MULTILINE):
        yield from options(*command, name)


def keys() -> Iterator[str]:
    """The settings of every kind of training: key, default and type."""
    for name, part in KINDS.items():
        defaults = settings.defaults_to_json(part)
        for key, kind, _ in settings.entries(part()):
            default = json.dumps(defaults[key])
            yield f"train {name}: {key}={default}, {settings.type_in_words(kind)}"
    sinks = json.dumps(Config(task=LanguageSettings()).sinks)
    yield f"train: sinks={sinks}, words separated by commas"


def lines() -> list[str]:
    return [line for command in COMMANDS for line in options(command.name)] + [*keys()]


def test_options_and_settings_are_those_that_are_listed() -> None:
    """Whoever removes or renames one breaks somebody's script: it shall not happen unseen."""
    assert lines() == FILE.read_text(encoding="utf-8").splitlines(), __doc__


if __name__ == "__main__":
    FILE.write_text("\n".join(lines()) + "\n", encoding="utf-8")
