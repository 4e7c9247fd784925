"""The task of classifying sounds: it learns, resumes, and answers; what is wrong is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import addnorm
from addnorm.cli import main
from addnorm.data.audio import write_wav
from addnorm.data.sources import DataError
from addnorm.models.sounds import SoundConfig
from addnorm.settings import SettingsError
from addnorm.tasks.classify_sounds import ClassifySoundsSettings, ClassifySoundsTask
from addnorm.tasks.overfit import overfit
from addnorm.training.checkpoint import Checkpoints
from addnorm.training.config import Config
from addnorm.training.display import Display
from addnorm.training.loop_settings import LoopSettings
from tests.tasks.recordings import spoken
from tests.training.test_training import same

QUIET = Display(quiet=True)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds") / "a"
    for label in ("ab", "ba", "cd"):
        (folder / label).mkdir(parents=True)
        for i in range(14):
            write_wav(folder / label / f"{i}.wav", spoken(label, seed=i), 16_000)
    return folder


def config(sounds: Path, **changes: Any) -> Config:
    about = ClassifySoundsSettings(
        data=str(sounds),
        val_fraction=0.3,
        rows_per_step=12,
        dropout=0.0,
        label_smoothing=0.0,
        masks=False,
        model=SoundConfig(
            classes=1, n_mels=20, frames=100, dim=24, encoder_layers=1, n_heads=2, kernel=3
        ),
    )
    loop = LoopSettings(
        steps=70, lr=8e-3, warmup=5, eval_every=35, save_every=30, threads=1, precision="fp32"
    )
    return Config(task=about, loop=loop).changed(changes)


def test_it_learns_resumes_and_answers(
    sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wishes = config(sounds)
    run = addnorm.train(wishes, out=tmp_path / "a", display=QUIET)
    assert run.metrics["accuracy"] > 0.9
    addnorm.train(wishes, out=tmp_path / "b", until=40, display=QUIET)
    addnorm.train(wishes, out=tmp_path / "b", resume=True, display=QUIET)
    a, b = (Checkpoints(tmp_path / n / "checkpoints").load() for n in "ab")
    assert same(a.tensors, b.tensors)
    write_wav(tmp_path / "silent.wav", np.zeros(999, np.float32), 16_000)
    files = [str(sounds / "cd" / "0.wav"), str(tmp_path / "silent.wav")]
    assert main(["predict", str(run.folder), *files, "--json", "--top", "2"]) == 1
    good, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert good["label"] == "cd"
    assert len(good["probabilities"]) == 2
    assert "is silent" in bad["error"]
    assert main(["eval", str(run.folder), str(sounds), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["accuracy"] > 0.9
    assert figures["sounds"] == 42
    assert "What is taken for what" in (run.folder / "report.html").read_text()


@pytest.mark.parametrize("scheme", ["pre_norm", "deepnorm"])
def test_eight_are_learned_by_heart(sounds: Path, scheme: str) -> None:
    assert not overfit(config(sounds, **{"model.scheme": scheme}), 8).reason


def test_rows_of_a_step_are_the_same_on_any_number_of_processes(sounds: Path) -> None:
    task = config(sounds, noise=1.0, rows_per_step=7).build()
    assert isinstance(task, ClassifySoundsTask)
    alone = task.batch("train", 5, 9, 0, 1)
    for rank in range(3):
        part = task.batch("train", 5, 9, rank, 3)
        assert all(torch.equal(part[name], alone[name][rank::3]) for name in alone)


def test_wrong_settings_and_data(sounds: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"speed": 0.9}, "speed must be from 0 to 0.5"),
        ({"noise": 2.0}, "noise must be a share"),
        ({"label_smoothing": 1.0}, "label_smoothing must be in"),
        ({"val_fraction": 1.0}, "val_fraction must be between"),
    ):
        with pytest.raises(SettingsError, match=message):
            config(sounds, **changes)
    (tmp_path / "x" / "one").mkdir(parents=True)
    for i in range(9):
        write_wav(tmp_path / "x" / "one" / f"{i}.wav", spoken("ab", seed=i), 16_000)
    with pytest.raises(DataError, match="nothing to tell apart: the only label is one"):
        config(tmp_path / "x").build()
    with pytest.raises(DataError, match=r"no sound to learn from has the label 'one'"):
        config(sounds, val_data=str(tmp_path / "x")).build()
