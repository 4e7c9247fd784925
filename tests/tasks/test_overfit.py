"""Whether a model can learn a few rows: it can where all is well, and it is said what is wrong."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from addnorm.cli import main
from addnorm.settings import SettingsError
from addnorm.tasks import ClassifySettings, Config, LanguageSettings
from addnorm.tasks.overfit import overfit
from addnorm.training.task import Batch
from tests.tasks.test_prove import config as language
from tests.training.test_training import Toy, loop

KEYS = {"threads": 1, "device": "cpu", "precision": "fp32", "lr": 1e-2}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reviews")
    for label, words in (("good", "fine nice great"), ("bad", "poor weak awful")):
        (folder / label).mkdir()
        for i in range(40):
            text = " ".join(words.split()[j % 3] for j in range(i, 2 * i + 3))
            (folder / label / f"{i}.txt").write_text(f"{text} {i}")
    return folder


def test_what_is_well_passes(tmp_path: Path, reviews: Path) -> None:
    """With dropout and smoothed labels in the settings, which are left out."""
    text = language(tmp_path).changed({**KEYS, "tokens_per_step": 64, "model.dim": 16})
    classes = Config(task=ClassifySettings(data=str(reviews), cache=tmp_path)).changed(
        {**KEYS, "model.dim": 16, "model.n_layers": 1, "model.n_heads": 2, "dropout": 0.3}
    )
    for config in (text, classes):
        steps: list[int] = []
        outcome = overfit(config, 4, progress=lambda step, *_: steps.append(step))  # noqa: B023
        assert str(outcome).startswith("overfit: PASS: the loss of 4 rows went from ")
        assert outcome.last < 0.12 < outcome.first
        assert steps == list(range(1, outcome.steps + 1))


class Wrong(Toy):
    """Rows that cannot be learned, for one of several reasons."""

    def __init__(self, why: str) -> None:
        super().__init__(dtype=torch.float32)
        self.why = why

    def batch(self, split: str, seed: int, step: int, rank: int, world: int) -> Batch:
        batch = dict(super().batch(split, seed, step, rank, world))
        if self.why == "ambiguous":
            batch["x"] = torch.zeros_like(batch["x"])
        if self.why == "no targets":
            batch["counts"] = torch.zeros_like(batch["counts"])
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        total, count, parts = super().loss(model, batch)
        if self.why == "detached":
            total = total.detach() + 0.0 * sum(p.sum() for p in model.parameters())
        return total * (math.nan if self.why == "nan" else 1.0), count, parts


@pytest.mark.parametrize(
    ("why", "words"),
    [
        ("ambiguous", "It no longer falls: two rows with the same input and different targets"),
        ("no targets", "None of these rows has targets to learn"),
        ("detached", "The gradient is 0"),
        ("nan", "are not both finite"),
    ],
)
def test_what_is_wrong_is_said(why: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = LanguageSettings()
    monkeypatch.setattr(LanguageSettings, "build", lambda self, choices: Wrong(why))
    outcome = overfit(Config(task=settings, loop=loop(lr=3e-2)), 6, steps=150)
    assert str(outcome).startswith("overfit: FAIL: the loss of 6 rows went from ")
    assert words in outcome.reason


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, a status, and nothing written; more rows than a step has are refused."""
    file = tmp_path / "config.toml"
    config: dict[str, Any] = {**KEYS, "model.dim": 16, "tokens_per_step": 32}
    file.write_text(language(tmp_path).changed(config).to_toml())
    words = ["train", "--config", str(file), "--out", str(tmp_path / "run"), "--overfit"]
    assert main([*words, "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("overfit: PASS")
    assert printed.count("\n") == 1
    assert main([*words, "2", "lr=1e-9"]) == 1
    assert capsys.readouterr().out.startswith("overfit: FAIL")
    assert not (tmp_path / "run").exists()
    assert main([*words, "5"]) == 2
    assert "--overfit 5: a step has 4 rows" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="at least 1, got 0"):
        overfit(language(tmp_path), 0)
