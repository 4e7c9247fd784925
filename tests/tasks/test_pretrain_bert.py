"""Pre-training a BERT: rows and masks, what is measured, beginning elsewhere, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import addnorm
from addnorm.cli import main
from addnorm.data.masking import IGNORED
from addnorm.settings import SettingsError
from addnorm.tasks import Config
from addnorm.tasks.pretrain_bert import PretrainBertTask
from addnorm.tasks.recipes import RECIPES

WORDS = "the cat sat on a mat and the dog lay under it while birds sang in old trees by the sea"
TEXT = "\n".join(" ".join(WORDS.split()[i % 7 : i % 7 + 9]) for i in range(300))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pretrain")
    (place / "text.txt").write_text(TEXT)
    return place


def config(folder: Path, **changes: Any) -> Config:
    small = {
        "data": str(folder / "text.txt"),
        "cache": str(folder / "cache"),
        "tokenizer": "wordpiece:120",
        "tokens_per_step": 12 * 16,
        "model.dim": 16,
        "model.n_layers": 1,
        "model.context_length": 16,
        "steps": 12,
        "warmup": 2,
        "eval_every": 6,
        "lr": 1e-2,
        "device": "cpu",
    }
    return RECIPES["pretrain_bert"]().changed({**small, **changes})


@pytest.fixture(scope="module")
def task(folder: Path) -> PretrainBertTask:
    task = config(folder).build()
    assert isinstance(task, PretrainBertTask)
    return task


def test_rows(task: PretrainBertTask) -> None:
    whole = task.batch("train", 3, 5, 0, 1)
    parts = [task.batch("train", 3, 5, rank, 5) for rank in range(5)]
    for name, t in whole.items():
        assert t.shape == (12, 16)
        for rank, part in enumerate(parts):
            assert torch.equal(part[name], t[rank::5])
    assert torch.equal(task.row("train", 3, 5)["ids"], whole["ids"][:1])
    assert task.batch("train", 3, 5, 12, 13)["ids"].shape[0] == 0
    ids, targets = whole["ids"], whole["targets"]
    truth = torch.where(targets == IGNORED, ids, targets)
    assert (truth[:, 0] == 2).all()
    assert (truth[:, -1] == 3).all()
    assert not torch.equal(ids, task.batch("train", 4, 5, 0, 1)["ids"])


def test_the_whole_of_what_is_held_out_is_measured(task: PretrainBertTask) -> None:
    torch.manual_seed(0)
    model, tokens = task.model(), task.tokens["val"]
    windows = -(-len(tokens) // 14)
    assert len(tokens) % 14  # the last window is shorter
    batch = task._held_out(range(windows))
    truth = torch.where(batch["targets"] == IGNORED, batch["ids"], batch["targets"])
    text = torch.cat([row[v][1:-1] for row, v in zip(truth, batch["valid"], strict=True)])
    assert text.tolist() == tokens.read(0, len(tokens)).tolist()
    with torch.no_grad():
        nats, count, parts = task.loss(model.eval(), batch)
    metrics = task.evaluate(model)
    assert metrics["val_loss"] == pytest.approx(float(nats / count), rel=1e-5)
    assert metrics["masked_accuracy"] == pytest.approx(int(parts["masked_accuracy"]) / int(count))
    (worst,) = task.pictures()
    assert len(worst["items"]) == min(5, windows)
    whole = task.tokenizer.decode(text.tolist())
    for item in worst["items"]:  # without what the model says it is the text
        words = "".join(part for part, marks in item["text"] if marks != "ours")
        assert "".join(words.split()) in "".join(whole.split())
    assert 1 <= len(task.sample(model)) <= 3
    assert all("[" in line for line in task.sample(model))


@pytest.mark.parametrize("scheme", ["post_norm", "sandwich"])
def test_from_nothing_to_a_folder(
    folder: Path, tmp_path: Path, scheme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    design = {"model.scheme": scheme}
    if scheme == "post_norm":
        design |= {"model.position": "learned", "model.pooling": "first"}
    whole = config(folder, **design, **{"steps": 30, "whole_words": True})
    run = tmp_path / "run"
    assert not addnorm.train(whole, out=run, until=7).finished
    assert main(["train", "--resume", str(run)]) == 0
    assert "masked_accuracy" in capsys.readouterr().out
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 0.5
    model = addnorm.load(run).model
    assert model.config.scheme == scheme
    card = json.loads((run / "model" / "config.json").read_text())
    assert card["model_type"] == ("bert" if scheme == "post_norm" else "addnorm_bert")
    assert main(["train", "--resume", str(run), "masked=0.2"]) == 2
    assert "masked" in capsys.readouterr().err


def test_on_from_a_model(folder: Path, task: PretrainBertTask, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = task.model()
    task.save(model, tmp_path / "m")
    base = RECIPES["pretrain_bert"]().changed(
        {
            "data": str(folder / "text.txt"),
            "cache": str(folder / "cache"),
            "init_from": str(tmp_path / "m"),
            "tokens_per_step": 12 * 16,
            "dropout": 0.25,
        }
    )
    other = base.build()
    again = other.model()
    assert torch.equal(again.tokens.weight, model.tokens.weight)
    assert torch.equal(again.decoder.bias, model.decoder.bias)
    assert again.config.dropout == 0.25
    assert other.facts()["start"]
    assert "start" not in task.facts()
    headless = addnorm.Bert.from_pretrained(tmp_path / "m", head="none")
    headless.save_pretrained(tmp_path / "body", tokenizer=task.tokenizer)
    body = base.changed({"init_from": str(tmp_path / "body")}).build().model()
    assert body.decoder is not None
    assert torch.equal(body.tokens.weight, model.tokens.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "bytes"}, "tokenizer=bytes: a tokenizer of kind 'bytes' has no token for"),
        ({"masked": 0.0}, "masked must be between 0 and 1"),
        ({"model.context_length": 2}, "model.context_length must be at least 3"),
        ({"tokens_per_step": 0}, "tokens_per_step must be at least 1"),
        ({"tokenizer": "wordpiece:9"}, "at least 100 and at most 1,048,576, as in wordpiece:4096"),
        ({"init_from": "/nowhere", "tokenizer": "wordpiece:120"}, "has no effect|tokenizer"),
    ],
)
def test_what_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        config(folder, **changes).build()


def test_a_language_model_refuses_what_loses_text(folder: Path) -> None:
    language = RECIPES["char_cpu"]().changed(
        {
            "data": str(folder / "text.txt"),
            "cache": str(folder / "cache"),
            "tokenizer": "wordpiece:120",
        }
    )
    with pytest.raises(SettingsError, match="wordpiece loses case and spacing"):
        language.build()


def test_learned_by_heart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [
        f"data={folder / 'text.txt'}",
        f"cache={folder / 'cache'}",
        *("tokenizer=wordpiece:120", "tokens_per_step=192", "model.dim=32", "model.n_layers=1"),
        *("model.context_length=16", "device=cpu", "lr=1e-2"),
    ]
    assert main(["train", "--recipe", "pretrain_bert", "--overfit", "8", *settings]) == 0
    assert "overfit: PASS" in capsys.readouterr().out
