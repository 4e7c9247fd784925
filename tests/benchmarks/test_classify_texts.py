"""A classifier beside TF-IDF: the interval by hand, and that nothing is done twice."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the baseline is scikit-learn's")

from benchmarks import classify_texts as benchmark


def test_the_interval_says_equal_where_it_is() -> None:
    rng = np.random.default_rng(1)
    groups = [str(i // 4) for i in range(400)]
    base = (rng.random(400) < 0.8).astype(float)
    same = np.stack([base, base])
    difference = benchmark.compared(same, base, groups)
    assert difference == (0.0, 0.0, 0.0)
    assert difference.sign == "equal"
    better = np.stack([np.maximum(base, rng.random(400) < 0.5) for _ in range(2)])
    difference = benchmark.compared(better, base, groups)
    assert difference.low < difference.mean < difference.high
    assert difference.mean == pytest.approx(float((better - base).mean()))
    assert difference.sign == ">"
    # of a mean over 100 groups of 4 by the textbook, without what seeds add
    sums = (better.mean(0) - base).reshape(100, 4).mean(1)
    error = 1.96 * sums.std() / 10
    assert difference.high - difference.low == pytest.approx(2 * error, rel=0.25)
    assert benchmark.compared(1 - better, 1 - base, groups).sign == "<"


def test_a_trial_is_not_done_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side, n in (("train", 24), ("val", 8), ("test", 8)):
        rows = [
            f"{'cat dog' if i % 2 else 'oak elm'} {i},{'ab'[i % 2]},p{i // 2}" for i in range(n)
        ]
        (tmp_path / f"{side}.csv").write_text("\n".join(["text,label,package", *rows]) + "\n")
    words = [str(tmp_path), "--out", str(tmp_path / "out"), "--tiny", "--seeds", "1"]
    words += ["--set", "tokenizer=bytes", "model.pairs=0", "model.n_layers=1", "save_every=10"]
    assert benchmark.main(words) == 0
    first = capsys.readouterr().out
    assert "ours less TF-IDF" in first
    results = (tmp_path / "out" / "results.json").read_text()
    assert len(json.loads(results)["TF-IDF, trial"]["right"]) == 8
    assert benchmark.main(words) == 0
    assert capsys.readouterr().out == first.partition("val\n")[2]
    assert (tmp_path / "out" / "results.json").read_text() == results
    with pytest.raises(SystemExit, match="with other settings: give another --name"):
        benchmark.main([*words, "steps=30"])
    (tmp_path / "test.csv").write_text("text,label\ncat,b\n")
    with pytest.raises(SystemExit, match="is of other texts: give another --out"):
        benchmark.main(words)
