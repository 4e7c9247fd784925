"""The set of tasks is open: one from outside is trained, resumed, reported, and asked."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm.cli import main
from addnorm.files import register as kinds
from addnorm.records import read
from addnorm.settings import AtResume, SettingsError, setting
from addnorm.tasks import Config, LanguageSettings, TaskSettings, register, train
from addnorm.training import config as config_module
from addnorm.training.config import NOTHING, usual
from addnorm.training.task import Batch, Best, Task
from tests.files.test_register import KIND, WordCount, write

# --- a task from outside --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CountSettings(TaskSettings):
    name = "count"
    rows: int = setting(8, AtResume.BY_TUNING)
    """Texts in one step."""

    def build(self, choices: Mapping[str, Any] = NOTHING) -> "CountTask":
        return CountTask(self.rows)


class CountTask(Task):
    best, noun, unit = Best("val_loss", "min"), "A counter of words", "texts"

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def model(self) -> WordCount:
        return WordCount(0.0)

    def batch(self, split: str, seed: int, step: int, rank: int, world: int) -> Batch:
        numbers = torch.Generator().manual_seed(hash((split == "val", seed, step)))
        return {"n": torch.randint(1, 7, (self.rows,), generator=numbers)[rank::world]}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        logits = model(["a " * n for n in batch["n"].tolist()])
        nll = F.cross_entropy(logits, (batch["n"] > 3).long(), reduction="sum")
        return nll, torch.tensor(len(logits)), {}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        total, count, _ = self.loss(model, self.batch("val", 0, 0, 0, 1))
        return {"val_loss": float(total / count)}

    def save(self, model: nn.Module, folder: Path) -> None:
        write(model, folder, None, None)


# --------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (config_module, kinds):
        monkeypatch.setattr(module, "_KINDS", dict(module._KINDS))
    register(CountSettings)
    kinds.register(KIND)
    return


def test_a_task_from_outside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    config = Config(task=CountSettings()).changed({"steps": 30, "lr": 0.1, "device": "cpu"})
    assert not train(config, out=run, until=12).finished
    assert "texts/s" in capsys.readouterr().out
    assert main(["train", "--resume", str(run)]) == 0
    assert main(["train", "--resume", str(run), "rows=4", "steps=50"]) == 2
    message = capsys.readouterr().err
    assert "rows=4 would make" in message
    assert "begin" not in message  # it has no init_from
    assert main(["train", "--config", str(run / "config.toml"), "--out", str(other)]) == 0
    losses = [[r["loss"] for r in read(f / "metrics.jsonl") if "loss" in r] for f in (run, other)]
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]
    page = (run / "report.html").read_text()
    assert "A counter of words" in page
    assert "texts" in page
    capsys.readouterr()
    assert main(["predict", str(run), "a b c d e f", "a"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["long", "short"]


def test_what_is_registered() -> None:
    register(CountSettings)  # again, as a cell of a notebook may
    assert usual() == LanguageSettings()
    other: Any = dataclass(frozen=True)(type("Other", (CountSettings,), {}))
    with pytest.raises(ValueError, match=r"task 'count' is registered already, by tests\.tasks"):
        register(other)
    with pytest.raises(TypeError, match="Plain is not a dataclass: put @register above"):
        register(type("Plain", (TaskSettings,), {"name": "plain"}))
    with pytest.raises(SettingsError, match=r"unknown task 'cuont'; did you mean count"):
        Config.from_json({"task": "cuont"})
