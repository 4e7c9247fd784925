"""A recurrent language model's folder: whole, checked, and asked by every command."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import addnorm
from addnorm import Tokenizer
from addnorm.cli import main
from addnorm.files.folders import WeightsError
from addnorm.models.recurrent import CELLS, RecurrentConfig, RecurrentLM
from tests.nets import stir

BYTES = Tokenizer.bytes()


def tiny(cell: str = "layer_norm_lstm") -> RecurrentLM:
    torch.manual_seed(0)
    config = RecurrentConfig(vocab_size=257, context_length=16, dim=8, n_layers=2, cell=cell)
    return stir(RecurrentLM(config)).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    addnorm.save(tiny(), tmp_path / "model", tokenizer=BYTES)
    return tmp_path / "model"


@pytest.mark.parametrize("cell", CELLS)
def test_what_is_written_is_read(cell: str, tmp_path: Path) -> None:
    model, ids = tiny(cell), torch.arange(24).view(2, 12)
    addnorm.save(model, tmp_path / "m", tokenizer=BYTES)
    loaded = addnorm.load(tmp_path / "m")
    assert isinstance(loaded.model, RecurrentLM)
    assert loaded.model.config == model.config
    assert loaded.tokenizer is not None
    assert loaded.model.tokenizer_identity == loaded.tokenizer.identity == BYTES.identity
    assert torch.equal(loaded.model(ids), model(ids))
    assert addnorm.load(tmp_path / "m", dtype=torch.float64).model(ids).dtype == torch.float64
    addnorm.save(loaded.model, tmp_path / "alone")
    alone = addnorm.load(tmp_path / "alone", dtype=None)
    assert alone.tokenizer is None
    assert isinstance(alone.model, RecurrentLM)
    assert alone.model.tokenizer_identity == BYTES.identity
    assert torch.equal(alone.model(ids), model(ids))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cell": "rnn"}, "config.json: unknown cell 'rnn'"),
        ({"cell": "lstm"}, "belong to different models"),
        ({"n_layers": 3}, "belong to different models: body.cell"),
        ({"bidirectional": True}, "bidirectional=True is not an option of addnorm"),
        ({"dim": None}, "dim must be a whole number"),
        ({"addnorm_tokenizer": 5}, "addnorm_tokenizer"),
    ],
)
def test_a_folder_that_was_changed(folder: Path, changes: dict[str, Any], words: str) -> None:
    (folder / "addnorm_checksums.json").unlink()
    card = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**card, **changes}))
    with pytest.raises(WeightsError, match=words):
        addnorm.load(folder)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="a language model has no labels"):
        addnorm.save(tiny(), tmp_path / "m", labels=["a"])
    small = RecurrentLM(RecurrentConfig(vocab_size=9, dim=4))
    with pytest.raises(WeightsError, match="257 tokens, and the model's vocabulary is 9"):
        addnorm.save(small, tmp_path / "m", tokenizer=BYTES)
    with torch.no_grad():
        small.tokens.weight[3, 1] = float("nan")
    with pytest.raises(WeightsError, match=r"tokens\.weight"):
        addnorm.save(small, tmp_path / "m")
    assert not (tmp_path / "m").exists()


# --- commands -------------------------------------------------------------------------------------


def test_commands_ask_it_as_any_language_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("to be, or not to be: that is the question. " * 3)
    for beyond in ("slide", "extend"):
        words = ["generate", str(folder), "to be", "or not to", "--json", "--no-eos"]
        assert main([*words, "--seed", "0", "--max-new-tokens", "40", "--beyond", beyond]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [len(row["ids"]) for row in rows] == [40, 40]
    assert main(["eval", str(folder), str(tmp_path / "text.txt"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    model = tiny()
    likelihood = addnorm.perplexity(model, (tmp_path / "text.txt").read_text(), tokenizer=BYTES)
    assert figures["nats"] == pytest.approx(likelihood.nats)
    assert main(["lint", str(folder), "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {(f["rule"], f["severity"]) for f in findings} == {("shared-norm", "note")}


def test_commands_that_it_is_not_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(folder), "x"]) == 2
    assert "a recurrent language model, of which nothing is asked" in capsys.readouterr().err
    for kind in ("hf", "onnx", "gguf"):
        assert main(["export", kind, str(folder), "--out", str(tmp_path / "out")]) == 2
        message = capsys.readouterr().err
        assert "is a recurrent language model, and what this command writes is read" in message
    assert not (tmp_path / "out").exists()
