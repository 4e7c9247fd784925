"""Episodes: what is read, refused and told, returns to go, and windows by hand."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from addnorm.data.episodes import Episode, Steps, best_part, read_episodes, to_go
from addnorm.data.sources import DataError


def file_of(folder: Path, *rows: Mapping[str, Any] | str) -> str:
    file = folder / "episodes.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    file.write_text("".join(f"{line}\n" for line in lines))
    return str(file)


def episode(states: Any = (0, 1), actions: Any = (1, 0), rewards: Any = (0, 1.5)) -> dict[str, Any]:
    return {"states": [*states], "actions": [*actions], "rewards": [*rewards]}


def test_what_is_read(tmp_path: Path) -> None:
    """Numbers or vectors; a last state in which nothing was done is passed over."""
    more = {**episode(states=(0, 1, 9)), "seed": 3}
    data = read_episodes(file_of(tmp_path, episode(), more, "", episode((), (), ())))
    assert len(data.rows) == 2
    assert data.rows[0].identity() == data.rows[1].identity()
    assert data.rows[0].states.tolist() == [0, 1]
    assert data.rows[0].total == 1.5
    assert data.remarks == [
        f"1 episode without a step is left out ({tmp_path / 'episodes.jsonl'}:4)"
    ]
    vectors = episode([[0.5, 1], [2, 3]], [[1], [0.25]])
    [row] = read_episodes(file_of(tmp_path, vectors)).rows
    assert row.states.shape == (2, 2)
    assert row.actions.tolist() == [[1], [0.25]]
    assert row.identity() != data.rows[0].identity()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"states": [0'], r"jsonl:1 is not valid JSON"),
        (["[1]"], r"jsonl:1: expected an object, got a list"),
        ([{"states": [0], "actions": [0]}], r"jsonl:1: 'rewards' is missing"),
        ([episode(rewards=(0,))], r"jsonl:1 has 2 states, 2 actions, 1 reward: there must be one"),
        ([episode(), episode(states=(0, -1))], r"jsonl:2: states\[1\] is the number -1, expected"),
        ([episode(states=(0, 0.5))], r"states\[1\] is the number 0.5, expected a whole number"),
        ([episode(actions=(True, 0))], r"actions\[0\] is true, expected a whole number from 0 on"),
        (
            [episode(states=(1, 10**9))],
            r"states\[1\] is the number 1000000000, .* from 0 on to 268",
        ),
        (
            [episode(rewards=(0, float("nan")))],
            r"rewards\[1\] is the number nan, expected a finite",
        ),
        ([episode([[1], [1, 2]])], r"states\[1\] is a list of 2, expected a list of 1 as before"),
        ([episode([[1], 2])], r"states\[1\] is the number 2, expected a list of 1 as before"),
        ([episode([[], []])], r"states\[0\] is a list of 0, expected a list of 1"),
        ([episode([["a"], [1]])], r"states\[0\]\[0\] is the text 'a', expected a finite number"),
        (
            [episode(), episode([[1], [2]])],
            r"jsonl:2: states are lists of numbers, 1 in each, and in .*jsonl:1 whole numbers",
        ),
        ([episode((), (), ())], r"has no episode with a step in it"),
        ([], r"has no episode with a step in it"),
    ],
)
def test_what_is_wrong_is_named(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_episodes(file_of(tmp_path, *rows))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a file of episodes: give a \.jsonl file"):
        read_episodes(str(tmp_path / "x.csv"))
    with pytest.raises(DataError, match="No such file"):
        read_episodes(str(tmp_path / "x.jsonl"))


def test_returns_to_go() -> None:
    assert to_go(np.array([1.0, -2.0, 0.5])).tolist() == [-0.5, -1.5, 0.5]


def rows(*lengths: int) -> list[Episode]:
    """Episodes whose states count on through all of them."""
    first, episodes = 0, []
    for n in lengths:
        states = np.arange(first, first + n)
        episodes.append(Episode(states, states % 3, np.ones(n)))
        first += n
    return episodes


def test_windows() -> None:
    steps = Steps(rows(4, 2))
    windows = steps.windows(np.array([1, 2, 5]), 3)
    assert windows["valid"].tolist() == [[True] * 3, [True, True, False], [True, False, False]]
    assert windows["states"][0].tolist() == [1, 2, 3]
    assert windows["states"][windows["valid"]].tolist() == [1, 2, 3, 2, 3, 5]
    assert windows["times"][0].tolist() == [1, 2, 3]
    assert windows["returns"][1, :2].tolist() == [2.0, 1.0]
    assert steps.every(3).tolist() == [0, 3, 4]
    every = steps.windows(steps.every(3), 3)
    assert every["states"][every["valid"]].tolist() == [*range(6)]


def test_every_step_begins_a_window_in_each_epoch() -> None:
    steps = Steps(rows(7, 5))
    whole = steps.firsts(0, 36, seed=1)
    for epoch in range(3):
        assert sorted(whole[12 * epoch : 12 * (epoch + 1)]) == [*range(12)]
    assert whole[:12].tolist() != whole[12:24].tolist()
    parts = [steps.firsts(i, i + 9, seed=1) for i in range(0, 36, 9)]
    assert np.concatenate(parts).tolist() == whole.tolist()
    assert steps.firsts(0, 12, seed=2).tolist() != whole[:12].tolist()


def test_the_best_part() -> None:
    episodes = rows(2, 5, 1, 5)  # the return is the length
    assert [len(e.rewards) for e in best_part(episodes, 0.5)] == [5, 5]
    assert best_part(episodes, 0.25) == [episodes[1]]
    assert best_part(episodes, 0.01) == [episodes[1]]
    assert best_part(episodes, 1.0) == episodes
    assert len(best_part(rows(*[1] * 10), 0.3)) == 3  # 0.3 * 10 is a little less than 3


def test_minari(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its library gives, one observation more than actions; and what there is of other
    shapes."""
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(DataError, match=r"need minari .*pip install 'addnorm\[decisions\]'"):
        read_episodes("minari:a/b-v0")
    parts: dict[str, Any] = {"observations": np.zeros((3, 2, 2)), "actions": np.array([1, 0])}

    def load(name: str, download: bool) -> Any:
        if name != "a/b-v0":
            raise ValueError("there is none")
        one = SimpleNamespace(id=4, rewards=np.array([1.0, 2.0]), **parts)
        return SimpleNamespace(iterate_episodes=lambda: iter([one]))

    monkeypatch.setitem(sys.modules, "minari", SimpleNamespace(load_dataset=load))
    [row] = read_episodes("minari:a/b-v0").rows
    assert row.states.shape == (2, 4)
    assert row.actions.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"Minari cannot open x: ValueError: there is none"):
        read_episodes("minari:x")
    for name, value, message in (
        ("observations", {"image": np.zeros((3, 2))}, r"states consist of several parts \(image\)"),
        ("actions", np.array([0, -1]), "actions are numbers below 0"),
        ("observations", np.full((3, 1), np.nan), "states are not all finite"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(parts, name, value)
            with pytest.raises(DataError, match=f"minari:a/b-v0, episode 4: {message}"):
                read_episodes("minari:a/b-v0")
