"""Where numbers go: every value as it was, whatever ended the run; and the optional sinks."""

import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from addnorm.training.config import ConfigError
from addnorm.training.sinks import JSONLines, open_sinks, read, scalars


def test_lines_are_there_at_once_and_hold_what_was_measured(tmp_path: Path) -> None:
    sink = JSONLines(tmp_path / "metrics.jsonl")
    sink.write({"step": 1, "loss": math.nan, "grad_norm": math.inf})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())  # before it is closed
    assert math.isnan(line["loss"])
    assert line["grad_norm"] == math.inf
    sink.close()


def test_a_line_that_a_kill_cut_off(tmp_path: Path) -> None:
    """It is passed over, and what comes after it is not glued to it."""
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    sink = JSONLines(file)
    sink.write({"step": 2, "loss": 2.0})
    sink.close()
    assert [r["loss"] for r in read(file)] == [1.0, 2.0]


def test_the_last_line_of_a_step_counts(tmp_path: Path) -> None:
    """Of steps and of evaluations each for itself, in the order of the steps."""
    file = tmp_path / "metrics.jsonl"
    records: list[dict[str, Any]] = [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 2, "val_loss": 5.0, "whole": False},
        {"step": 3, "loss": 3.0},
        {"step": 2, "loss": 2.5},
        {"step": 2, "val_loss": 6.0, "whole": False},
    ]
    file.write_text("".join(json.dumps(r) + "\n" for r in records) + "\xff not json\n")
    found = read(file)
    assert [r["step"] for r in found] == [1, 2, 2, 3]
    assert {r["loss"] for r in found if "loss" in r} == {1.0, 2.5, 3.0}
    assert [r["val_loss"] for r in found if "whole" in r] == [6.0]


def test_scalars() -> None:
    record = {"step": 3, "loss": 1.5, "skipped": True, "stream_rms": [1.0, 2.0], "name": "x"}
    assert list(scalars(record)) == [
        ("loss", 1.5),
        ("stream_rms/000", 1.0),
        ("stream_rms/001", 2.0),
    ]


def test_tensorboard_and_wandb_get_every_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            told.append(folder)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            told.append((name, value, step))

        def close(self) -> None:
            told.append("closed")

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            told.append((values, step))

        def finish(self) -> None:
            told.append("finished")

    def init(**given: Any) -> Run:
        told.append(given)
        return Run()

    board, wandb = ModuleType("torch.utils.tensorboard"), ModuleType("wandb")
    monkeypatch.setattr(board, "SummaryWriter", Writer, raising=False)
    monkeypatch.setattr(wandb, "init", init, raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    sinks = open_sinks(("tensorboard", "wandb"), tmp_path, {"lr": 0.1})
    for sink in sinks:
        sink.write({"step": 7, "loss": 1.5})
        sink.close()
    assert told[0] == str(tmp_path / "tensorboard")
    assert told[1]["config"] == {"lr": 0.1}
    assert told[2:] == [("loss", 1.5, 7), "closed", ({"loss": 1.5}, 7), "finished"]
    assert [r["loss"] for r in read(tmp_path / "metrics.jsonl")] == [1.5]


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb",) * 2]
)
def test_what_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"sinks={name} needs .*pip install 'addnorm\[log\]'"):
        open_sinks((name,), tmp_path, {})
