"""Logs of mixed quality: by the rule that is stated, and such as the recipe reads."""

import json
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("gymnasium")

from addnorm.data.episodes import read_episodes
from benchmarks.datasets import episodes
from benchmarks.datasets.episodes import Chances, World, episode, main

CHAIN = {
    0: {0: [(1.0, 0, -1, False)], 1: [(1.0, 1, 0, False)]},
    1: {0: [(1.0, 0, 0, False)], 1: [(0.5, 0, 0, False), (0.5, 2, 5, True)]},
    2: {0: [(1.0, 2, 0, True)], 1: [(1.0, 2, 0, True)]},
}
"""State -> action -> ways: 1 leads on, sometimes."""
START = Chances(CHAIN, [1.0, 0.0, 0.0], 30)


def test_who_learns_gets_better() -> None:
    rng, table = Random(0), [[0.0, 0.0] for _ in CHAIN]
    for _ in range(300):
        episode(START, table, 0.5, rng, learn=True)
    assert table[0][1] > table[0][0]
    assert table[1][1] > table[1][0]
    # of state 1 the value v = 0.99 (5 + 0.99 v) / 2 + ..., between 5 / 2 and 5
    assert 2.5 < table[1][1] < 5
    before = json.dumps(table)
    good = [episode(START, table, 0.1, rng) for _ in range(50)]
    assert json.dumps(table) == before  # who only acts learns nothing
    bad = [episode(START, table, 1.0, rng) for _ in range(50)]
    assert sum(sum(row["rewards"]) for row in good) > sum(sum(row["rewards"]) for row in bad)
    assert all(row["states"][0] == 0 for row in good)
    assert max(len(row["states"]) for row in bad) <= 30
    share = sum(a for row in bad for a in row["actions"]) / sum(len(r["actions"]) for r in bad)
    assert share == pytest.approx(0.5, abs=0.15)  # at random


def test_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "WORLDS", {"lake": World("FrozenLake8x8-v1", (0, 20), 10)})
    monkeypatch.setattr(episodes, "STEPS", 300)
    for name in ("a", "b"):
        assert main([str(tmp_path / name), "--seed", "3", "--worlds", "lake"]) == 0
    a, b = ((tmp_path / name / "lake.jsonl").read_text() for name in "ab")
    assert a == b
    rows = read_episodes(str(tmp_path / "a" / "lake.jsonl")).rows
    stages = json.loads((tmp_path / "a" / "stages.json").read_text())["lake"]
    assert sum(stage["episodes"] for stage in stages) == len(rows)
    assert sum(len(row.rewards) for row in rows) >= 600
    assert max(int(row.states.max()) for row in rows) < 64
    assert all(int(row.states[0]) == 0 for row in rows)
