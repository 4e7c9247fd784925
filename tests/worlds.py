"""Small worlds in which a model acts, with gymnasium's two methods and without the package."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np


class Doors:
    """Three times one of three doors is taken, and behind door n are n coins. The state is the
    number of doors taken."""

    steps, actions = 3, 3

    def reset(self, *, seed: int | None = None) -> tuple[Any, Any]:
        self.count, self.seed = 0, seed
        return self.count, {}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        assert type(action) is int
        self.count += 1
        return self.count, action, self.count == self.steps, False, {}


class Slope:
    """One is moved to a place, and gets less the further it is from 0; in numbers."""

    def __init__(self) -> None:
        low, high = np.array([[-1.0]], np.float32), np.array([[1.0]], np.float32)
        self.action_space = SimpleNamespace(shape=(1, 1), low=low, high=high, dtype=np.float32)

    def reset(self, *, seed: int | None = None) -> tuple[Any, Any]:
        self.place = np.random.default_rng(seed).normal(size=2)
        return self.place, {}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        assert action.shape == (1, 1)
        assert action.dtype == np.float32
        assert abs(action.item()) <= 1
        self.place = self.place + action.item()
        return self.place, -abs(float(self.place[0])), False, False, {}


def doors_at_random(file: Path, episodes: int = 300, seed: int = 0) -> Path:
    """Episodes of one who takes any door."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(episodes):
        actions = rng.integers(3, size=3).tolist()
        lines.append({"states": [0, 1, 2], "actions": actions, "rewards": actions})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file
