"""How fast ``addnorm train`` is while other programs compute, and with threads that wait otherwise.

    python -m benchmarks.busy                       # a table: some 20 minutes
    python -m benchmarks.busy --busy 0 1 --rounds 5

Every round runs each way of waiting once beside each number of endless loops, one after the other.
Printed are medians over the rounds of the tokens per second of a run's steps, the first two left
out; a run is ended after --limit seconds, and then counted by the steps it has done. Nothing else
may run meanwhile.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

WAYS = {
    "spinning, as GNU's OpenMP comes": {"GOMP_SPINCOUNT": "300000"},
    "spinning shortly": {"GOMP_SPINCOUNT": "3000"},
    "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "what the command chooses": {},
}
MODELS = {
    "the demo's model": [],
    "24 layers of width 64": ["model.n_layers=24", "model.dim=64", "model.n_heads=4"],
}
SETTINGS = ["samples=0", "eval_every=0", "save_every=0", "watch_every=0", "glance_tokens=2048"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Training beside other programs, measured.")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--limit", type=float, default=40.0)
    args = parser.parse_args()
    trained("the demo's model", 0, "spinning shortly", 1, limit=600)  # the data is tokenized once
    speeds: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    for _ in range(args.rounds):
        for model in MODELS:
            for busy in args.busy:
                for way in WAYS:
                    speed = trained(model, busy, way, args.steps, args.limit)
                    speeds[model, busy, way].append(speed)
                    print(f"{model}, {busy} busy, {way}: {speed:.0f}", file=sys.stderr, flush=True)
    for model in MODELS:
        print(f"\n| {model} | {' | '.join(f'{busy} busy' for busy in args.busy)} |")
        print("|---|" + "---:|" * len(args.busy))
        for way in WAYS:
            cells = [f"{statistics.median(speeds[model, busy, way]):,.0f}" for busy in args.busy]
            print(f"| {way} | {' | '.join(cells)} |")


def trained(model: str, busy: int, way: str, steps: int, limit: float) -> float:
    """Tokens per second of one run beside so many endless loops."""
    time.sleep(2)  # until the run before has given its memory back: a command looks around
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    with tempfile.TemporaryDirectory() as out:
        words = [*SETTINGS, *MODELS[model], f"steps={steps}", "--out", f"{out}/run"]
        run = subprocess.Popen(
            [sys.executable, "-m", "addnorm", "train", *words],
            env={**os.environ, **WAYS[way]},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            run.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()
        metrics = Path(out) / "run" / "metrics.jsonl"
        lines = metrics.read_text().split("\n") if metrics.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    speeds = [row["tokens_per_s"] for row in rows if "tokens_per_s" in row]
    return statistics.median(speeds[2:] or speeds or [0.0])


if __name__ == "__main__":
    main()
