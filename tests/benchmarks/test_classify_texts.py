"""A classifier beside its baselines: the interval by hand, that nothing is done twice, the page."""

import json
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the baseline is scikit-learn's")

from addnorm.training.fit import Stopped
from benchmarks import baselines
from benchmarks import classify_texts as benchmark
from benchmarks.embeddings import Vectors


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


def cats(texts: Sequence[str], models: Path) -> Vectors:
    """Vectors that say whether there is a cat, and little else."""
    rng = np.random.default_rng(0)
    return np.array([["cat" in t, len(t) % 3] + rng.normal(size=2) / 9 for t in texts], np.float32)


def noise(texts: Sequence[str], models: Path) -> Vectors:
    """Vectors that say nothing."""
    return np.random.default_rng(len(texts)).normal(size=(len(texts), 2)).astype(np.float32)


def write(folder: Path) -> None:
    """Three small files."""
    for side, n in (("train", 24), ("val", 8), ("test", 8)):
        rows = [
            f"{'cat <b>' if i % 2 else 'oak elm'} {i},{'ab'[i % 2]},p{i // 2}" for i in range(n)
        ]
        (folder / f"{side}.csv").write_text("\n".join(["text,label,package", *rows]) + "\n")


def test_a_trial_is_not_done_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    monkeypatch.setattr(baselines, "EMBEDDINGS", {"minilm": noise, "use": cats})
    words = [str(tmp_path), "--out", str(tmp_path / "out"), "--tiny", "--seeds", "1"]
    words += ["--set", "tokenizer=bytes", "model.pairs=0", "model.n_layers=1", "save_every=10"]

    def stop(*_: object, **__: object) -> None:
        raise Stopped(signal.SIGTERM, 10)

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.trainings.train", stop)
        with pytest.raises(SystemExit, match="at step 10: the same command"):
            benchmark.main(words)
    there = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(there) == {
        "data",
        "TF-IDF, trial",
        "embeddings of minilm, trial",
        "embeddings of use, trial",
    }
    assert "of val" in capsys.readouterr().out
    assert benchmark.main(words) == 0
    first = capsys.readouterr().out
    assert "| embeddings | 100.00% |" in first
    assert "use, nearest mean; 100.00% of val |" in first
    assert "of val" not in first[: first.index("  ours, seed 1: ")], "baselines are not done again"
    results = (tmp_path / "out" / "results.json").read_text()
    assert len(json.loads(results)["TF-IDF, trial"]["answers"]) == 8
    assert np.shape(json.loads(results)["ours, seed 1"]["probabilities"]) == (8, 2)
    assert benchmark.main(words) == 0
    assert capsys.readouterr().out == first[first.index("| model |") :]
    assert (tmp_path / "out" / "results.json").read_text() == results
    with pytest.raises(SystemExit, match="with other settings: give another --name"):
        benchmark.main([*words, "steps=30"])
    (tmp_path / "test.csv").write_text("text,label\ncat,b\n")
    with pytest.raises(SystemExit, match="is of other texts: give another --out"):
        benchmark.main(words)


def test_the_worst_errors(tmp_path: Path) -> None:
    write(tmp_path)
    sides = {name: benchmark.read(tmp_path / f"{name}.csv") for name in benchmark.SIDES}
    assert sides["test"].groups == ["p0", "p0", "p1", "p1", "p2", "p2", "p3", "p3"]
    results = benchmark.TextResults(tmp_path / "out", sides)
    first, second = [0.9, 0.9, 0.2, 0.4] + [0.7, 0.3] * 2, [0.9, 0.7, 0.6, 0.2] + [0.7, 0.3] * 2
    for name, row in (("one", first), ("two", second)):
        results.add(name, {"answers": ["a"] * 8, "probabilities": [[p, 1 - p] for p in row]})
    results.add("words", {"answers": ["a"] * 8})
    mistakes = benchmark.worst(results, {"TF-IDF": "words"}, ["one", "two"])
    assert [(m.text, m.right, m.answer) for m in mistakes] == [
        ("cat <b> 1", "b", "a"),
        ("oak elm 2", "a", "b"),
    ]
    assert [m.probability for m in mistakes] == pytest.approx([0.8, 0.6])
    html = benchmark.page("Errors", mistakes)
    assert "<h2>1. b, taken for a</h2>" in html
    assert "TF-IDF a" in html
    assert "<pre>cat &lt;b&gt; 1</pre>" in html
