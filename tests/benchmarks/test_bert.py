"""The benchmark of pre-training: what is drawn, what the table says, what goes on from where."""

import argparse
import json
from pathlib import Path

import pytest

import addnorm
from addnorm.data.labelled import Labelled
from benchmarks import bert

ROWS = [Labelled(f"text number {i} of them", "neg" if i % 4 else "pos") for i in range(400)]


def test_samples() -> None:
    rows = bert.sample_of(ROWS, 0.1, seed=1)
    assert [row.label for row in rows] == ["neg"] * 30 + ["pos"] * 10
    assert rows == bert.sample_of(ROWS, 0.1, seed=1) != bert.sample_of(ROWS, 0.1, seed=2)
    assert len(bert.sample_of(ROWS, 1e-6, seed=1)) == 2


def test_table() -> None:
    accuracy = {"pre-trained": [0.8, 0.82, 0.84], "from scratch": [0.7, 0.71, 0.72]}
    results = {
        f"0.01 {seed} {arm}": {"accuracy": accuracy[arm][seed - 1], "texts": 140}
        for arm in bert.ARMS
        for seed in (1, 2, 3)
    }
    # 4.303 * 0.02 / sqrt(3) is 5.0 %; the difference is 0.1, 0.11, 0.12, its error 0.01 / sqrt(3)
    line = bert.table(results, [0.01], [1, 2, 3]).splitlines()[-1]
    assert line == "| 1% (140) | 82.0 ± 5.0 | 71.0 ± 2.5 | 11.0 ± 2.5 | 19.1 |"
    assert bert.interval([0.5]) == "50.0"


def test_what_is_there_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = argparse.Namespace(
        data=tmp_path,
        out=tmp_path / "out",
        shares=[0.05],
        seeds=[1],
        lrs=[1e-3],
        epochs=1,
        pretrain=[
            *("tokenizer=wordpiece:150", "model.dim=8", "model.n_layers=1", "steps=2"),
            *("warmup=1", "model.context_length=16", "tokens_per_step=64"),
        ],
        finetune=["steps=2", "warmup=1", "eval_every=2", "save_every=2"],
    )
    for side in ("train", "val", "test"):
        bert.write(tmp_path / f"{side}.csv", ROWS if side == "train" else ROWS[:40])
    monkeypatch.setattr(bert, "arguments", lambda: args)
    assert bert.main() == 0
    results = json.loads((args.out / bert.RESULTS).read_text())
    assert results.keys() == {f"0.05 1 {arm}" for arm in bert.ARMS}
    models = [addnorm.Bert.from_pretrained(args.out / name) for name in ("pretrained", "scratch")]
    assert models[0].config == models[1].config
    assert not models[0].tokens.weight.equal(models[1].tokens.weight)
    monkeypatch.setattr(bert, "train", lambda *a, **k: pytest.fail("trained again"))
    assert bert.main() == 0
