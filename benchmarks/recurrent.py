"""Recurrent models beside a Transformer: one text, one size, the same time on one thread.

    python benchmarks/recurrent.py --seconds 600 --seeds 1 2 3 --out out/recurrent.jsonl

Each body (a pre-norm Transformer, and LSTM and GRU without layer normalization and with it) gets
the width at which its number of parameters comes nearest to --parameters, and trains for --seconds
on the source of Python's library. Only the time of the steps counts, not that of evaluations. The
learning rate rises over the first steps and then stays, so that no body has to know beforehand how
many steps there will be; of several --lr each body takes the one that served it best with seed 0,
which is not in the table. With the defaults that is 25 trainings, or 4 h 10 min.

The same seed means the same rows in the same order, so the difference between two bodies is taken
seed by seed. Intervals are Student's t, 95 %.

Every finished training is a line of --out; what is there with these settings is not done again.
"""

import argparse
import contextlib
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from addnorm.models.gpt_config import GPTConfig
from addnorm.models.recurrent import CELLS, RecurrentConfig
from addnorm.records import Record
from addnorm.tasks.language import LanguageSettings, LanguageTask
from addnorm.tasks.language_settings import LanguageModelSettings
from addnorm.tasks.recurrent import RecurrentSettings
from addnorm.training.fit import Course, Observer, fit
from addnorm.training.loop_settings import LoopSettings
from benchmarks.intervals import t_half

BODIES = ("transformer", *CELLS)
WIDTHS = range(32, 1025, 8)  # multiples of what four heads and pairs of RoPE need
MARKS = 8  # evaluations, at equal distances in time
PAIRS = (("layer_norm_lstm", "lstm"), ("layer_norm_gru", "gru"), ("layer_norm_lstm", "transformer"))


class OutOfTime(Exception):
    """The training had its seconds."""


class Clock(Observer):
    """Measures the model at equal distances in time, and ends the training after ``seconds``."""

    def __init__(self, task: LanguageTask, seconds: float) -> None:
        self.task, self.seconds = task, seconds
        self.spent, self.begin = 0.0, 0.0
        self.points: list[dict[str, float]] = []

    def before_step(self, course: Course) -> Record:
        """The step's time begins."""
        self.begin = perf_counter()
        return {}

    def stepped(self, course: Course, record: Record) -> None:
        """A point where one is due."""
        self.spent += perf_counter() - self.begin
        if self.spent < self.seconds * (len(self.points) + 1) / MARKS:
            return
        with course.trainer.looking() as model:
            loss = self.task.glance(model)["val_loss"]
        self.points.append({"seconds": self.spent, "tokens": course.trainer.seen, "val_loss": loss})
        if self.spent >= self.seconds:
            raise OutOfTime


def main() -> None:
    """Train what is not there yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--parameters", type=int, default=1_500_000)
    parser.add_argument("--tokenizer", default="bpe:1024")
    parser.add_argument("--context", type=int, default=128, help="tokens in a window")
    parser.add_argument("--tokens-per-step", type=int, default=2048)
    parser.add_argument("--bodies", nargs="+", default=[*BODIES], choices=BODIES)
    parser.add_argument("--out", type=Path, default=Path("out/recurrent.jsonl"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rates = {body: best_rate(body, args) for body in args.bodies}
    rows = {
        body: [result(body, rates[body], seed, args) for seed in args.seeds] for body in args.bodies
    }
    show(rows, rates, args)


def best_rate(body: str, args: argparse.Namespace) -> float:
    """The learning rate with which a training of seed 0 ends best."""
    if len(args.lr) == 1:
        return float(args.lr[0])
    ends = {rate: result(body, rate, 0, args)["points"][-1]["val_loss"] for rate in args.lr}
    return min(ends, key=lambda rate: ends[rate])


def result(body: str, rate: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One training, from the file if it is there."""
    names = ("seconds", "parameters", "tokenizer", "context", "tokens_per_step")
    key = {"body": body, "lr": rate, "seed": seed, **{n: getattr(args, n) for n in names}}
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    for line in map(json.loads, lines):
        if line["key"] == key:
            return dict(line)
    task = make(body, args)
    clock = Clock(task, args.seconds)
    loop = LoopSettings(
        steps=1 << 40,
        seed=seed,
        lr=rate,
        schedule="constant",
        warmup=50,
        precision="fp32",
        compile="false",
        threads=1,
        device="cpu",
        eval_every=0,
        save_every=0,
        watch_every=0,
    )
    with contextlib.suppress(OutOfTime):
        fit(task, loop, [clock])
    line = {"key": key, "size": task.writer.counts()[0], "points": clock.points}
    with args.out.open("a") as file:
        file.write(json.dumps(line) + "\n")
    end = clock.points[-1]
    print(f"{body}, lr {rate:g}, seed {seed}: {end['val_loss']:.4f}", flush=True)
    return line


def make(body: str, args: argparse.Namespace) -> LanguageTask:
    """The task with a model of the size that was asked for."""
    common: dict[str, Any] = {
        "data": "stdlib",
        "tokenizer": args.tokenizer,
        "tokens_per_step": args.tokens_per_step,
    }

    def of_width(width: int) -> LanguageModelSettings:
        shape: dict[str, Any] = {"vocab_size": 1, "context_length": args.context, "dim": width}
        if body == "transformer":
            config = GPTConfig(n_layers=4, n_heads=4, position="rope", **shape)
            return LanguageSettings(model=config, **common)
        return RecurrentSettings(model=RecurrentConfig(n_layers=2, cell=body, **shape), **common)

    task = of_width(WIDTHS[0]).build()
    width = nearest_width(task, args.parameters)
    task.writer.config = task.config = replace(task.config, dim=width)
    return task


def nearest_width(task: LanguageTask, parameters: int) -> int:
    """Of ``WIDTHS``, that of a model with this many parameters."""

    def distance(width: int) -> int:
        task.writer.config = replace(task.config, dim=width)
        return abs(task.writer.counts()[0] - parameters)

    low, high = 0, len(WIDTHS) - 1
    while high - low > 2:  # the distance falls, and then rises
        third = (high - low) // 3
        if distance(WIDTHS[low + third]) < distance(WIDTHS[high - third]):
            high -= third
        else:
            low += third
    return min((WIDTHS[i] for i in range(low, high + 1)), key=distance)


# --- the tables -----------------------------------------------------------------------------------


def show(
    rows: dict[str, list[dict[str, Any]]], rates: dict[str, float], args: argparse.Namespace
) -> None:
    """Loss against time and tokens, and the differences."""
    print(
        f"\ntorch {torch.__version__}, one thread, {args.seconds:g} s each, seeds "
        f"{', '.join(map(str, args.seeds))}; held-out nats per token"
    )
    fewest = min(run["points"][-1]["tokens"] for runs in rows.values() for run in runs)
    print("\n| body | parameters | lr | tokens/s | 1/4 of the time | 1/2 | all | at "
          f"{fewest:,.0f} tokens |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for body, runs in rows.items():
        speed = statistics.median(
            run["points"][-1]["tokens"] / run["points"][-1]["seconds"] for run in runs
        )
        ways: list[Callable[[dict[str, Any]], float]] = [
            *(lambda run, i=i: run["points"][i]["val_loss"] for i in (1, 3, MARKS - 1)),
            lambda run: at_tokens(run["points"], fewest),
        ]
        cells = [interval([way(run) for run in runs]) for way in ways]
        print(
            f"| {body} | {runs[0]['size']:,} | {rates[body]:g} | {speed:,.0f} | "
            f"{' | '.join(cells)} |"
        )
    print(
        "\n| difference, seed by seed | after all of the time | at as many tokens |\n|---|---|---|"
    )
    for one, other in PAIRS:
        if one in rows and other in rows:
            both = list(zip(rows[one], rows[other], strict=True))
            ends = [a["points"][-1]["val_loss"] - b["points"][-1]["val_loss"] for a, b in both]
            alike = [
                at_tokens(a["points"], fewest) - at_tokens(b["points"], fewest) for a, b in both
            ]
            print(f"| {one} - {other} | {interval(ends)} | {interval(alike)} |")


def at_tokens(points: Sequence[dict[str, float]], tokens: float) -> float:
    """The loss after so many tokens, linear in their logarithm between two points; before the first
    point, or after the last one, that one's."""
    before = [p for p in points if p["tokens"] <= tokens]
    after = [p for p in points if p["tokens"] > tokens]
    if not before or not after:
        return (before or after[:1])[-1]["val_loss"]
    a, b = before[-1], after[0]
    share = math.log(tokens / a["tokens"]) / math.log(b["tokens"] / a["tokens"])
    return a["val_loss"] + share * (b["val_loss"] - a["val_loss"])


def interval(values: Sequence[float]) -> str:
    """The mean, and half of its 95 % interval."""
    mean, half = f"{statistics.mean(values):.3f}", t_half(values)
    return mean if half is None else f"{mean} ± {half:.3f}"


if __name__ == "__main__":
    main()
