"""``--prove-resume`` passes where a resume is exact, and says what is lost where it is not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from addnorm.models.gpt_config import GPTConfig
from addnorm.settings import SettingsError
from addnorm.tasks.language import LanguageSettings
from addnorm.tasks.prove import COMMAND, child, prove
from addnorm.training.config import Config
from addnorm.training.loop_settings import LoopSettings
from tests.processes import begin

BROKEN = Path(__file__).parents[1] / "broken_resume.py"


def config(tmp_path: Path) -> Config:
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven eight nine ten eleven twelve. " * 40)
    return Config(
        task=LanguageSettings(
            data=str(text),
            tokens_per_step=64,
            dropout=0.2,
            cache=tmp_path / "cache",
            model=GPTConfig(vocab_size=1, context_length=8, dim=8, n_layers=1, n_heads=2),
        ),
        loop=LoopSettings(steps=50, threads=1, lr=1e-2),
    )


class Forked:
    """A training of the proof, as ``subprocess`` has it, without a new interpreter."""

    def __init__(self, order: Path) -> None:
        self._process = begin(child, json.loads(order.read_text()))

    def communicate(self) -> tuple[str, None]:
        self._process.join()
        return "", None

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode


def test_a_resume_that_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first training is started as all are; the other seven need not import torch as well."""
    commands: list[tuple[str, ...]] = []

    def start(command: list[str], **options: Any) -> Any:
        commands.append(tuple(command[:-1]))
        return popen(command, **options) if len(commands) == 1 else Forked(Path(command[-1]))

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    told: list[str] = []
    proof = prove(config(tmp_path), told.append)
    assert commands == [COMMAND] * 8
    assert proof.difference is None
    assert str(proof).startswith("PASS")
    assert len(proof.compared) == 4
    assert [line[:6] for line in told] == ["1 of 4", "2 of 4", "3 of 4", "4 of 4"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("forget_random_numbers", "the random numbers: 0.cpu differs"),
        ("replay_data", "the position in the data: shift is 0 in one run and -[12]"),
        ("forget_the_optimizer", "the optimizer: .* differs"),
    ],
)
def test_a_resume_that_is_broken(tmp_path: Path, what: str, named: str) -> None:
    import re

    proof = prove(config(tmp_path), lambda line: None, [sys.executable, str(BROKEN), what])
    assert str(proof).startswith("FAIL: ")
    assert proof.difference is not None
    assert re.search(named, proof.difference)


def test_a_training_that_fails_by_itself(tmp_path: Path) -> None:
    wrong = config(tmp_path).changed({"val_fraction": 0.5})
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises((SettingsError, ValueError), match="too short to split"):
        prove(wrong, lambda line: None)
