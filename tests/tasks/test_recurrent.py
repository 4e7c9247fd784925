"""A recurrent language model is trained, stopped, gone on with and asked as a GPT is."""

from pathlib import Path
from typing import Any

import pytest
import torch

from addnorm.cli import main
from addnorm.models.recurrent import CELLS, RecurrentConfig, RecurrentLM
from addnorm.records import read
from addnorm.settings import SettingsError, help_texts
from addnorm.tasks import Config, LanguageSettings, RecurrentSettings, train
from addnorm.tasks.overfit import overfit
from addnorm.training.loop_settings import LoopSettings


def config(tmp_path: Path, **changes: Any) -> Config:
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven eight nine ten eleven twelve. " * 40)
    task = RecurrentSettings(
        data=str(text),
        tokens_per_step=64,
        dropout=0.2,
        samples=1,
        cache=tmp_path / "cache",
        model=RecurrentConfig(vocab_size=1, context_length=8, dim=16, n_layers=2),
    )
    loop = LoopSettings(steps=8, threads=1, device="cpu", precision="fp32", lr=1e-2, warmup=2)
    return Config(task=task, loop=loop).changed(changes)


def losses(run: Path) -> list[float]:
    return [r["loss"] for r in read(run / "metrics.jsonl") if "loss" in r]


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With dropout and masked documents; then it writes, is measured, and has its page."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    about = config(tmp_path, document_mask=True)
    assert not train(about, out=run, until=5).finished
    assert main(["train", "--resume", str(run), "model.cell=gru"]) == 2
    assert "model.cell=gru" in capsys.readouterr().err
    assert main(["train", "--resume", str(run)]) == 0
    assert train(about, out=whole).finished
    assert losses(run) == losses(whole)
    words = capsys.readouterr().out
    assert "layer_norm_lstm, 2 layers of width 16, context 8" in words
    assert "LSTM" in (run / "report.html").read_text().upper()
    assert main(["generate", str(run), "one", "--max-new-tokens", "5", "--seed", "0"]) == 0
    assert capsys.readouterr().out.startswith("one")
    assert main(["eval", str(run), str(tmp_path / "text.txt")]) == 0
    assert "bits per byte" in capsys.readouterr().out


@pytest.mark.parametrize("cell", CELLS)
def test_rows_are_learned_by_heart(cell: str, tmp_path: Path) -> None:
    small = {"model.cell": cell, "model.dim": 24, "model.n_layers": 1}
    outcome = overfit(config(tmp_path, **small), 4)
    assert str(outcome).startswith("overfit: PASS")


def test_windows_begin_without_a_past(tmp_path: Path) -> None:
    """The loss of a row is what it is alone, whatever was read before."""
    task = config(tmp_path).build()
    torch.manual_seed(0)
    model = task.model().eval()
    assert isinstance(model, RecurrentLM)
    batch = task.batch("train", 0, 0, 0, 1)
    whole = task.loss(model, batch)[0]
    parts = [task.loss(model, {"ids": row[None]})[0] for row in batch["ids"]]
    # sums of 64 numbers near 5.5: 64 * 350 * 6e-8 at worst
    assert sum(parts).item() == pytest.approx(whole.item(), abs=2e-3)


def test_what_has_no_effect_is_refused(tmp_path: Path) -> None:
    for changes, words in (
        ({"optimizer": "muon"}, "optimizer=muon is for the matrices of a Transformer's blocks"),
        ({"model.cell": "lsmt"}, "unknown cell 'lsmt'; did you mean lstm"),
        ({"init_from": "x"}, "unknown setting 'init_from'"),
        ({"tokenizer": "wordpiece:300"}, "loses case and spacing"),
    ):
        with pytest.raises(SettingsError, match=words):
            config(tmp_path, **changes).build()


def test_settings_of_all_language_models_have_their_help() -> None:
    """That of the class they stand in, unless another says something else."""
    one, other = help_texts(RecurrentSettings), help_texts(LanguageSettings)
    assert one["data"] == other["data"]
    assert one["dropout"] != other["dropout"]
    assert "init_from" in other.keys() - one.keys()
