"""Fine-tuning a BERT: from scratch, from a BERT, several labels, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import addnorm
from addnorm import Bert, BertConfig, Tokenizer
from addnorm.cli import main
from addnorm.errors import Mendable
from addnorm.tasks import Config
from addnorm.tasks.recipes import RECIPES

ANIMALS = ["a cat purrs", "the dog barks", "one horse runs", "my cat sleeps", "the old dog eats"]
PLANTS = ["a rose blooms", "the oak grows", "one tulip opens", "my rose fades", "an old oak falls"]
ENDS = ["today", "in may", "at noon", "again", "for long", "near us", "slowly", "alone"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finetune")
    rows = [
        (f"{t} {e}", label)
        for label, ts in (("animal", ANIMALS), ("plant", PLANTS))
        for t in ts
        for e in ENDS
    ]
    (place / "d.csv").write_text("text,label\n" + "".join(f"{t},{label}\n" for t, label in rows))
    lines = [{"text": t, "label": [label, "old"] if "old" in t else [label]} for t, label in rows]
    (place / "d.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place


def config(folder: Path, **changes: Any) -> Config:
    small = {
        "data": str(folder / "d.csv"),
        "cache": str(folder / "cache"),
        "tokenizer": "wordpiece:120",
        "rows_per_step": 16,
        "model.dim": 16,
        "model.n_layers": 1,
        "model.context_length": 12,
        "steps": 60,
        "warmup": 5,
        "eval_every": 30,
        "lr": 1e-2,
        "dropout": 0.0,
        "device": "cpu",
        "val_fraction": 0.2,
    }
    return RECIPES["finetune_bert"]().changed({**small, **changes})


@pytest.mark.parametrize("scheme", ["post_norm", "pre_norm"])
def test_from_nothing_to_a_prediction(
    folder: Path, tmp_path: Path, scheme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    whole = config(folder, **{"model.scheme": scheme})
    assert not addnorm.train(whole, out=run, until=20).finished
    assert main(["train", "--resume", str(run)]) == 0
    capsys.readouterr()
    assert main(["predict", str(run), "the cat barks today", "the oak fades", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["label"] for one in answers] == ["animal", "plant"]
    assert main(["eval", str(run), str(folder / "d.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] > 0.95
    card = json.loads((run / "model" / "config.json").read_text())
    assert card["model_type"] == ("bert" if scheme == "post_norm" else "addnorm_bert")
    assert main(["lint", str(run)]) == 0


def test_several_labels(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    addnorm.train(config(folder, data=str(folder / "d.jsonl"), steps=120), out=run)
    loaded = addnorm.load(run)
    assert loaded.model.config.several
    assert loaded.card["problem_type"] == "multi_label_classification"
    one, other = loaded.predict(["the old dog eats today", "a rose blooms in may"])
    assert (set(one["labels"]), other["labels"]) == ({"animal", "old"}, ["plant"])


def test_from_a_bert(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(" ".join((*ANIMALS, *PLANTS)) * 3, 110, "wordpiece")
    shape: dict[str, Any] = {"dim": 12, "n_layers": 1, "n_heads": 3, "context_length": 9}
    torch.manual_seed(0)
    start = Bert(BertConfig(vocab_size=tokenizer.vocab_size, **shape, head="none"))
    start.save_pretrained(tmp_path / "m", tokenizer=tokenizer)
    base = RECIPES["finetune_bert"]().changed(
        {"data": str(folder / "d.csv"), "init_from": str(tmp_path / "m"), "dropout": 0.25}
    )
    task = base.build()
    model = task.model()
    assert isinstance(model, Bert)
    assert torch.equal(model.tokens.weight, start.tokens.weight)
    assert torch.equal(model.pooler.weight, start.pooler.weight)  # it was there
    assert model.config.labels == 2
    assert model.config.dropout == model.config.attention_dropout == 0.25
    batch = task.batch("train", 0, 0, 0, 1)
    assert (batch["ids"][:, 0] == tokenizer.role_id("cls")).all()
    ends = batch["valid"].sum(1) - 1
    assert (batch["ids"][range(32), ends] == tokenizer.role_id("sep")).all()
    task.save(model, tmp_path / "out")
    assert addnorm.load(tmp_path / "out").labels == ("animal", "plant")
    sizes: dict[str, Any] = {"dim": 8, "n_layers": 1, "n_heads": 1, "context_length": 8}
    gpt = addnorm.GPT(addnorm.GPTConfig(vocab_size=257, **sizes))
    addnorm.save(gpt, tmp_path / "gpt", tokenizer=Tokenizer.bytes())
    with pytest.raises(Mendable, match="is no BERT"):
        base.changed({"init_from": str(tmp_path / "gpt")}).build()
    bare = tmp_path / "bare"
    start.save_pretrained(bare)
    with pytest.raises(Mendable, match="has no tokenizer"):
        base.changed({"init_from": str(bare)}).build()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "bytes"}, "tokenizer=bytes: a tokenizer of kind 'bytes' has no token for"),
        ({"model.context_length": 2}, "context_length=2 has no room for a text"),
        ({"model.pooling": "none"}, "pooling"),
        ({"token_dropout": 0.7}, r"token_dropout must be in \[0, 0.5\]"),
        ({"data": ""}, "data is not set"),
        ({"data": "/nowhere.csv"}, "data=/nowhere.csv"),
    ],
)
def test_what_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Mendable, match=message):
        config(folder, **changes).build()


def test_learned_by_heart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [
        *(f"data={folder / 'd.csv'}", f"cache={folder / 'cache'}", "tokenizer=wordpiece:120"),
        *("model.dim=16", "model.n_layers=1", "model.context_length=12", "device=cpu", "lr=1e-2"),
    ]
    assert main(["train", "--recipe", "finetune_bert", "--overfit", "8", *settings]) == 0
    assert "overfit: PASS" in capsys.readouterr().out
