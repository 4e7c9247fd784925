"""Classifiers of pictures beside baselines: groups, that nothing is done twice, the page."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sklearn", reason="the baseline is scikit-learn's")

from benchmarks import batch_norms
from benchmarks import classify_images as benchmark


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Light pictures and dark ones; train as folders, the others as arrays."""
    place, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for side, n in (("train", 24), ("val", 8), ("test", 8)):
        labels = np.arange(n) % 2
        images = (rng.integers(0, 60, (n, 8, 8)) + 150 * labels[:, None, None]).astype(np.uint8)
        if side != "train":
            np.savez(place / f"{side}.npz", images=images, labels=labels)
            continue
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            file = place / side / str(label) / f"tree_{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return place


def test_a_trial_is_not_done_twice(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(data), "--out", str(tmp_path / "out"), "--tiny", "--seeds", "1"]
    words += ["--set", "model.height=8", "model.width=8", "save_every=10"]
    assert benchmark.main(words) == 0
    first = capsys.readouterr().out
    assert "| scikit-learn on pixels | 100.00% |" in first
    assert "SVM, radial kernel, C 1, gamma 0.25 of scale: 100.00% of val" in first
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results["pixels, trial"]["answers"]) == 8
    assert np.shape(results["ours, seed 1"]["probabilities"]) == (8, 2)
    assert np.allclose(np.sum(results["ours, seed 1"]["probabilities"], 1), 1, atol=1e-3)
    assert benchmark.main(words) == 0
    assert capsys.readouterr().out == first[first.index("| model |") :]
    with pytest.raises(SystemExit, match="with other settings: give another --name"):
        benchmark.main([*words, "steps=30"])
    assert "The worst errors" in (tmp_path / "out" / "errors-ours.html").read_text() or (
        results["ours, seed 1"]["accuracy"] == 1.0
    )


def test_pictures_of_one_drawing_are_a_group(data: Path) -> None:
    rows = benchmark.rows(benchmark.listed(data, "train"))
    assert {*rows.groups} == {"0/tree", "1/tree"}
    assert len({*rows.texts}) == 24
    assert len({*benchmark.rows(benchmark.listed(data, "test")).groups}) == 8
    names = ("a/Cat_07.png", "cat 12.PNG", "b/12.png", "cat-2b.png")
    assert [benchmark.stem(name) for name in names] == ["cat", "cat", "12", "cat-2b"]


def test_the_worst_errors_are_shown(data: Path, tmp_path: Path) -> None:
    entries = benchmark.listed(data, "test")
    sides = {side: benchmark.rows(benchmark.listed(data, side)) for side in benchmark.SIDES}
    results = benchmark.TextResults(tmp_path, sides)
    p = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]] * 2
    results.add("one", {"answers": ["0"] * 8, "probabilities": p})
    results.add("base", {"answers": ["0"] * 8})
    gallery = benchmark.worst(results, entries, "base", ["one"])
    assert [item["head"] for item in gallery["items"]] == [
        *["0, taken for 1"] * 2,
        *["1, taken for 0"] * 2,
    ]
    assert gallery["caption"].startswith("4 of 8")
    assert gallery["items"][0]["notes"] == [["probability", "80.0%"], ["scikit-learn says", "0"]]


def test_norms_at_small_batches(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_norms, "BATCHES", (1, 4))
    words = [str(data), "--out", str(tmp_path), "--tiny", "--seeds", "1"]
    words += ["--set", "model.height=8", "model.width=8", "model.hidden=8"]
    assert batch_norms.main(words) == 0
    first = capsys.readouterr().out
    assert "| norm | batch 1 | batch 4 |" in first
    assert "| BatchNorm | " in first
    content = json.loads((tmp_path / "results.json").read_text())
    assert len(content) == 6
    run = json.loads((tmp_path / "batch-4-seed-1" / "run.json").read_text())
    assert "batch" in json.dumps(run)
    assert batch_norms.main(words) == 0
    assert capsys.readouterr().out == first[first.index("| norm |") :]
    two = {
        f"{n}, {b}, seed {s}": 0.5 + 0.1 * s
        for n in batch_norms.NORMS
        for b in (1, 4)
        for s in (1, 2)
    }
    assert "| LayerNorm | 65.0% ± 63.5% | 65.0% ± 63.5% |" in batch_norms.table(two, [1, 2])
