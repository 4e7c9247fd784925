"""Logs of mixed quality in two small worlds: Taxi-v3, and FrozenLake 8x8, which is slippery.

    python benchmarks/datasets/episodes.py out/episodes

The worlds are gymnasium's (1.2.3, MIT licence; Taxi is Dietterich's, 2000); the logs are made here,
by this rule. A table of Q-values is learned (Watkins 1989) by one who acts at random with a share
that falls from 1 to 0.1 over the episodes of learning. At each of some stages, of which the first
is before anything was learned, so that all is random, the table is kept, and 20,000 steps are
logged of one who does what it says, but at random with a share of 0.1, and the episode that is
under way then comes to its end. All episodes are put together in a random order. Nothing says of
an episode which stage it is of. The same --seed gives the same files.

OUT has taxi.jsonl and lake.jsonl, an episode a line as ``addnorm train --recipe decide`` reads
them, and for each a line in stages.json: the mean return of the episodes of each stage.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import gymnasium
import numpy as np

STEPS = 20_000  # that are logged at each stage, at least
LEAST = 0.1  # the share of what is done at random, at the end of learning and in the logs
RATE, DISCOUNT = 0.1, 0.99

Log = dict[str, list[Any]]


class World(NamedTuple):
    """An environment, and how it is learned and logged."""

    env: str
    stages: tuple[int, ...]
    """Episodes of learning after which is logged."""
    falling: int
    """Episodes over which the share of what is done at random falls."""


WORLDS = {
    "taxi": World("Taxi-v3", (0, 300, 600, 1_200, 3_000), 1500),
    "lake": World("FrozenLake8x8-v1", (0, 3_000, 6_000, 12_000, 24_000), 18_000),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both logs."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of all that is random [0]")
    parser.add_argument("--worlds", nargs="+", default=[*WORLDS], choices=WORLDS)
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    means = {}
    for name in args.worlds:
        stages = [*logs(WORLDS[name], args.seed)]
        means[name] = [
            {"learned": n, "episodes": len(rows), "return": round(mean_return(rows), 3)}
            for n, rows in zip(WORLDS[name].stages, stages, strict=True)
        ]
        rows = [row for stage in stages for row in stage]
        order = np.random.default_rng([args.seed, 1]).permutation(len(rows))
        text = "".join(json.dumps(rows[i], separators=(",", ":")) + "\n" for i in order)
        (args.out / f"{name}.jsonl").write_text(text)
        words = ", ".join(f"{m['return']:g} after {m['learned']:,}" for m in means[name])
        print(f"{name}: {len(rows):,} episodes; return {words} episodes of learning")
    (args.out / "stages.json").write_text(json.dumps(means, indent=1) + "\n")
    return 0


def mean_return(rows: Sequence[Log]) -> float:
    """Of some episodes."""
    return float(np.mean([sum(row["rewards"]) for row in rows]))


def logs(world: World, seed: int) -> Iterator[list[Log]]:
    """The episodes of each stage."""
    whole = gymnasium.make(world.env)
    env: Any = whole.unwrapped
    spec: Any = whole.spec
    chances = Chances(env.P, env.initial_state_distrib, spec.max_episode_steps)
    rng = Random(seed)
    table = [[0.0] * len(env.P[0]) for _ in env.P]
    count = 0
    for stage in world.stages:
        for n in range(count, stage):
            share = max(LEAST, 1 - (1 - LEAST) * n / world.falling)
            episode(chances, table, share, rng, learn=True)
        count = stage
        share = LEAST if stage else 1.0
        rows: list[Log] = []
        while sum(len(row["states"]) for row in rows) < STEPS:
            rows.append(episode(chances, table, share, rng))
        yield rows


class Chances(NamedTuple):
    """What an environment of gymnasium's toy texts does, which holds it as a table."""

    steps: Any
    """State -> action -> (probability, next state, reward, whether that is the end) of each way."""
    start: Any
    """How probable each state is at the beginning."""
    most: int
    """Steps after which an episode is cut."""


def episode(
    chances: Chances, table: list[list[float]], share: float, rng: Random, learn: bool = False
) -> Log:
    """One from beginning to end, of one who does what is best by the table, of equals any, and with
    a probability of ``share`` anything. With ``learn`` the table is changed by each step."""
    [state] = rng.choices(range(len(chances.start)), chances.start)
    log: Log = {"states": [], "actions": [], "rewards": []}
    over = False
    while not over and len(log["states"]) < chances.most:
        row = table[state]
        if rng.random() < share:
            action = int(rng.random() * len(row))
        else:
            most = max(row)
            action = rng.choice([i for i, value in enumerate(row) if value == most])
        ways = chances.steps[state][action]
        [(_, after, reward, over)] = rng.choices(ways, [p for p, *_ in ways])
        for name, value in (("states", state), ("actions", action), ("rewards", reward)):
            log[name].append(int(value))
        if learn:
            later = 0.0 if over else DISCOUNT * max(table[after])
            row[action] += RATE * (reward + later - row[action])
        state = int(after)
    return log


if __name__ == "__main__":
    sys.exit(main())
