"""Chat models beside n-grams, on a handful of conversations: the same tokens, and what the interval
says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from addnorm.data.dialogues import Turn, to_object
from benchmarks import chat, intervals

TINY = ["model.dim=16", "model.n_layers=1", "steps=2", "warmup=1", "eval_every=1", "save_every=1",
        "model.context_length=48", "precision=fp32", "threads=1"]  # fmt: skip


def test_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chat, "TRIES", chat.TRIES[:2])
    monkeypatch.setattr(chat, "ORDERS", [2])
    monkeypatch.setattr(intervals, "DRAWS", 50)
    data, out = tmp_path / "data" / "english", tmp_path / "out"
    data.mkdir(parents=True)
    for side, count in (("train", 20), ("val", 4), ("test", 5)):
        talks = [
            [Turn("user", f"{side} {i}"), Turn("assistant", "yes " * (20 if i == 3 else 2))]
            for i in range(count)
        ]
        lines = [json.dumps(to_object(talk)) + "\n" for talk in talks]
        (data / f"{side}.jsonl").write_text("".join(lines))
    words = [str(tmp_path / "data"), "--out", str(out), "--languages", "english", "--seeds", "1",
             "--set", *TINY, f"cache={tmp_path}"]  # fmt: skip
    assert chat.main(words) == 0
    printed = capsys.readouterr().out
    assert "| 2-grams, discounts " in printed
    # four answers of 8 bytes and an end; of the long one what has room beside its question
    assert "perplexity of ours > that of theirs; 5 conversations, 76 tokens, 72 bytes" in printed
    results = out / "english" / "results.jsonl"
    lines = results.read_text().splitlines()
    assert [json.loads(line)["key"].get("seed") for line in lines] == [0, 0, 1, None]
    assert chat.main(words) == 0
    assert capsys.readouterr().out == printed
    assert results.read_text().splitlines() == lines, "nothing is measured again"


def test_intervals() -> None:
    rng = np.random.default_rng(1)
    weights = rng.integers(1, 20, size=200).astype(float)
    values = np.stack([weights * 2 + rng.normal(size=200), weights * 3 + rng.normal(size=200)])
    estimate = intervals.ratio(values, weights)
    assert estimate.mean == pytest.approx(values.sum() / (2 * weights.sum()))
    assert (estimate.low, estimate.high) == pytest.approx((2, 3), abs=0.05), "the seeds' part"
    alone = intervals.ratio(values[:1], weights)
    assert 0 < alone.high - alone.low < 0.1
    signs: dict[str, Any] = {"<": (-2, -3, -1), ">": (2, 1, 3), "equal": (0.5, -0.5, 1.5)}
    for sign, numbers in signs.items():
        assert intervals.Interval(*numbers).sign == sign
