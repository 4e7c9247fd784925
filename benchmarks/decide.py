"""A model that acts for as much return as it is asked for, beside two that clone what was done.

    python benchmarks/datasets/episodes.py out/episodes
    python benchmarks/decide.py out/episodes --out out/decide

In each world of DATA there are, all by the recipe ``decide`` and learned from the same logs:

* ours, which reads the return that is still to come, and is asked for several returns;
* cloning, the same model without the return;
* the best tenth, the same model without the return, from the tenth of the episodes with the highest
  returns (10 %BC of Chen et al. 2021).

Each acts in 100 episodes for each return, which begin alike for all: of seed s those with the seeds
from 1,000,000 s on. An action is drawn by its probability, as in the paper's code; beside it stands
what comes of always taking the most probable one. Ours is compared by what it reaches for the last
return of its world in ``WORLDS``, about the highest that there is. The settings were chosen on
other logs (--seed 7 of the first command) and episodes with other seeds.

Intervals are those of a mean over seeds, of 95 % by Student's t; of a difference they are paired by
seed. ``>`` or ``<`` stands only where the interval leaves out 0, else ``equal``. What is done is in
OUT/results.json, and is not done again; a run that was stopped goes on. OUT/WORLD.html is a picture
of what is reached against what was asked. ``--tiny`` is a trial.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from addnorm import load, train
from addnorm.data.episodes import read_episodes
from addnorm.pages.look import clean, document
from addnorm.pages.reached import reached_chart
from addnorm.pages.run import STYLE
from addnorm.progress import ProgressBar
from addnorm.tasks.recipes import RECIPES
from addnorm.training.display import Display
from addnorm.training.fit import Stopped
from benchmarks.intervals import Interval, t_half


class World(NamedTuple):
    """Where is acted, and which returns are asked for; the last one is compared."""

    env: str
    returns: tuple[float, ...]


WORLDS = {
    "taxi": World("Taxi-v3", (-200.0, -100.0, -50.0, -20.0, 0.0, 8.0)),
    "lake": World("FrozenLake8x8-v1", (0.0, 0.25, 0.5, 0.75, 1.0)),
}
CLONE = {"model.returns": "false"}
METHODS: dict[str, dict[str, Any]] = {
    "ours": {},
    "cloning": CLONE,
    "best tenth": {**CLONE, "best_share": 0.1},
}
BY_DRAW, BY_MODE = "drawn", "most probable"
HEATS = {BY_DRAW: 1.0, BY_MODE: 0.0}
TINY = {"steps": 10, "warmup": 2, "model.dim": 16, "eval_every": 5, "save_every": 5}
EPISODES, APART = 100, 1_000_000
TOGETHER = 100
"""Environments at a time."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Learn what is not learned yet, let it act, print the tables and draw the pictures."""
    args = options(arguments)
    results = Results(args.out)
    changes = dict(word.split("=", 1) for word in args.set)
    for name in args.worlds:
        for seed in args.seeds:
            for method in METHODS:
                run(args, results, name, method, seed, {**(TINY if args.tiny else {}), **changes})
        print(table(results, name, args.seeds))
        file = args.out / f"{name}.html"
        totals = [e.total for e in read_episodes(str(args.data / f"{name}.jsonl")).rows]
        file.write_text(page(results, name, args.seeds, totals), encoding="utf-8")
        print(f"{file}\n")
    return 0


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path, help="a folder with taxi.jsonl and lake.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="where runs and results are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(1, 11)])
    parser.add_argument("--worlds", nargs="+", default=[*WORLDS], choices=WORLDS)
    parser.add_argument("--set", nargs="*", default=[], help="settings, key=value")
    parser.add_argument("--tiny", action="store_true", help="a trial")
    args = parser.parse_args(arguments)
    args.episodes = 3 if args.tiny else EPISODES
    return args


class Results:
    """OUT/results.json: of each run what it reaches. ``out``: the folder."""

    def __init__(self, out: Path) -> None:
        self.file = out / "results.json"
        self.content: dict[str, Any] = {}
        if self.file.exists():
            self.content = json.loads(self.file.read_text())

    def add(self, key: str, entry: dict[str, Any]) -> None:
        """A run; written at once."""
        self.content[key] = entry
        self.file.parent.mkdir(parents=True, exist_ok=True)
        work = self.file.with_suffix(".new")
        work.write_text(json.dumps(self.content, indent=1))
        work.replace(self.file)

    def reached(self, world: str, method: str, seed: int, how: str = BY_DRAW) -> list[float]:
        """The mean return for each return that was asked for."""
        means: list[float] = self.content[key_of(world, method, seed)][how]["return_mean"]
        return means


def key_of(world: str, method: str, seed: int) -> str:
    """What a run is called in the results."""
    return f"{world}, {method}, seed {seed}"


def run(
    args: argparse.Namespace,
    results: Results,
    name: str,
    method: str,
    seed: int,
    changes: dict[str, Any],
) -> None:
    """Learn one model and let it act, unless that is done; a training that is there goes on."""
    key, wish = key_of(name, method, seed), {**METHODS[method], **changes}
    if key in results.content:
        if results.content[key]["settings"] != {k: str(v) for k, v in wish.items()}:
            sys.exit(f"{results.file} has {key} with other settings: give another --out")
        return
    data = {"data": str(args.data / f"{name}.jsonl"), "seed": seed, "watch_every": 0}
    config = RECIPES["decide"]().changed({**data, **wish})
    out = args.out / key.replace(", ", "-").replace(" ", "_")
    try:
        train(config, out=out, resume=(out / "run.json").exists(), display=Display(quiet=True))
    except Stopped as stop:
        sys.exit(f"{out} is saved at step {stop.step}: the same command goes on")
    entry: dict[str, Any] = {"settings": {k: str(v) for k, v in wish.items()}}
    use, world = load(out).use(), WORLDS[name]
    for how, heat in HEATS.items():
        returns = world.returns if how == BY_DRAW else world.returns[-1:]
        more = {"returns": [*returns]} if method == "ours" else {}
        act = {"env": world.env, "episodes": args.episodes, "seed": APART * seed}
        wishes = use.with_defaults({**act, **more, "temperature": heat})
        with ProgressBar(key, hidden=not sys.stderr.isatty()) as bar:
            entry[how] = use.evaluate([], wishes, batch_size=TOGETHER, bar=bar)
    entry["minutes"] = json.loads((out / "run.json").read_text())["elapsed_s"] / 60
    results.add(key, entry)
    print(f"  {key}: {results.reached(name, method, seed)[-1]:.2f}", flush=True)


# --- what comes of it -----------------------------------------------------------------------------


def interval(values: Sequence[float]) -> Interval:
    """Of a mean over seeds; of one seed it has no ends."""
    mean = statistics.fmean(values)
    half = t_half(values)
    half = float("inf") if half is None else half
    return Interval(mean, mean - half, mean + half)


def table(results: Results, name: str, seeds: Sequence[int]) -> str:
    """In Markdown: what each method reaches, and what ours reaches more."""
    lines = [
        f"| {name}, {len(seeds)} seeds | {BY_DRAW} | ours less it | {BY_MODE} | ours less it |",
        "|---|---|---|---|---|",
    ]
    wish = WORLDS[name].returns[-1]
    for method in METHODS:
        title = f"ours, asked for {wish:g}" if method == "ours" else method
        cells = [title]
        for how in HEATS:
            ours, theirs = (
                [results.reached(name, one, seed, how)[-1] for seed in seeds]
                for one in ("ours", method)
            )
            difference = interval([a - b for a, b in zip(ours, theirs, strict=True)])
            cells.append("{:.2f} [{:.2f}, {:.2f}]".format(*interval(theirs)))
            words = "{:+.2f} [{:+.2f}, {:+.2f}] ".format(*difference) + difference.sign
            cells.append("" if method == "ours" else words)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(results: Results, name: str, seeds: Sequence[int], totals: Sequence[float]) -> str:
    """What is reached against what was asked, in the mean of the seeds, beside the clones and the
    data, whose returns are ``totals``; in HTML, as all pages look."""
    rows = np.array([results.reached(name, "ours", seed) for seed in seeds])
    levels = [
        [statistics.fmean(results.reached(name, method, seed)[-1] for seed in seeds), method]
        for method in METHODS
        if method != "ours"
    ]
    content = {
        "asked": [*WORLDS[name].returns],
        "reached": rows.mean(0).tolist(),
        "spread": rows.std(0).tolist(),
        "levels": [*levels, [statistics.fmean(totals), "mean of the logs"]],
    }
    title = f"{WORLDS[name].env}: reached and asked"
    lead = (
        f"Ours in the mean of {len(seeds)} seeds, with their standard deviation, for each return "
        "that was asked for; on the thin slanting line both are the same. Across: what the clones "
        "reach, which cannot be asked for anything."
    )
    body = f"<main><h1>{clean(title)}</h1><p class='lead'>{lead}</p>{reached_chart(content)}</main>"
    return document(title, body, STYLE)


if __name__ == "__main__":
    sys.exit(main())
