"""Acting beside cloning: nothing is done twice, and the table and the picture say what is there."""

import json
from pathlib import Path

import pytest

from benchmarks import decide as benchmark
from benchmarks.decide import BY_DRAW, BY_MODE, METHODS, Results, World, interval, key_of
from tests.worlds import doors_at_random


def test_a_trial_is_not_done_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    doors_at_random(tmp_path / "doors.jsonl", 60)
    world = World("tests.worlds:Doors", (0.0, 6.0))
    monkeypatch.setattr(benchmark, "WORLDS", {"doors": world})
    words = [str(tmp_path), "--out", str(tmp_path / "out"), "--tiny", "--seeds", "1"]
    words += ["--set", "model.n_layers=1", "threads=1", "device=cpu"]
    assert benchmark.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in lines[:3]] == [
        "doors, ours, seed 1",
        "doors, cloning, seed 1",
        "doors, best tenth, seed 1",
    ]
    there = json.loads((tmp_path / "out" / "results.json").read_text())
    ours = there["doors, ours, seed 1"]
    assert ours[BY_DRAW]["return_asked"] == [0.0, 6.0]
    assert ours[BY_MODE]["return_asked"] == [6.0]
    assert there["doors, cloning, seed 1"][BY_DRAW]["return_asked"] == [None]
    monkeypatch.setattr(benchmark, "train", None)  # it would be called
    assert benchmark.main(words) == 0
    assert capsys.readouterr().out.splitlines() == lines[3:]
    with pytest.raises(SystemExit, match="with other settings: give another --out"):
        benchmark.main([*words, "lr=0.1"])


def test_the_table_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paired by seed: a difference that is the same in each has no width."""
    monkeypatch.setattr(benchmark, "WORLDS", {"w": World("e", (0.0, 5.0))})
    results = Results(tmp_path)
    for method, more in zip(METHODS, (2.0, 1.0, 2.0), strict=True):
        for seed in (1, 2, 3):
            by_draw = {"return_mean": [0.0, seed + more]}
            by_mode = {"return_mean": [seed + (seed == 2) * more]}
            results.add(key_of("w", method, seed), {BY_DRAW: by_draw, BY_MODE: by_mode})
    rows = benchmark.table(results, "w", (1, 2, 3)).splitlines()[2:]
    assert "| 3.00 [0.52, 5.48] | +1.00 [+1.00, +1.00] > |" in rows[1]
    assert "+0.00 [+0.00, +0.00] equal" in rows[2]
    assert rows[1].endswith("equal |")
    page = benchmark.page(results, "w", (1, 2, 3), [1.0, 2.0])
    assert "asked 5: reached 4" in page
    assert "mean of the logs" in page
    assert interval([1.0, 2.0, 3.0]).low == pytest.approx(2 - 4.303 / 3**0.5)
