"""BatchNorm, GroupNorm and LayerNorm in a Vision Transformer, at small batches: same steps.

    python benchmarks/datasets/mnist.py out/mnist
    python benchmarks/batch_norms.py out/mnist --out out/mnist/norms

The comparison of the articles: BatchNorm (Ioffe & Szegedy 2015) takes its statistics over a batch,
and suffers where that is small (Wu & He 2018, "Group Normalization", arXiv 1803.08494); LayerNorm
looks at one token, and GroupNorm with one group at one picture. A model is trained with each norm
at each batch, with as many steps; the learning rate goes with the root of the batch, as suits Adam
(Malladi et al. 2022, arXiv 2205.10287). All else is the same. The figures are of the test pictures,
by the last weights, mean and interval of 95 % over seeds by Student's t.

DATA is as for classify_images.py. What is done is in OUT/results.json, and is not done again.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from addnorm.tasks.recipes import RECIPES
from benchmarks.classify_images import listed, place, rows, shares
from benchmarks.intervals import t_half
from benchmarks.results import Results
from benchmarks.trainings import whole_run

NORMS = {"layer": "LayerNorm", "group": "GroupNorm", "batch": "BatchNorm"}
BATCHES = (1, 2, 8, 32)
FULL = 32
"""The batch that the learning rate is for."""
SMALL: dict[str, Any] = {
    "steps": 600,
    "warmup": 30,
    "eval_every": 0,
    "save_every": 0,
    "lr": 4e-3,
    "optimizer": "adamw",
    "model.height": 28,
    "model.width": 28,
    "model.dim": 64,
    "model.n_layers": 3,
    "model.hidden": 128,
}
TINY = {"steps": 8, "warmup": 2, "model.dim": 8, "model.n_layers": 1, "model.n_heads": 1}


def main(arguments: Sequence[str] | None = None) -> int:
    """Learn what is not learned yet, and print the table."""
    args = options(arguments)
    changes = {**SMALL, **(TINY if args.tiny else {}), **dict(w.split("=", 1) for w in args.set)}
    test = listed(args.data, "test")
    right, labels = rows(test).labels, sorted({*rows(test).labels})
    results = Results(args.out / "results.json")
    for seed in args.seeds:
        for batch in BATCHES:
            for norm in NORMS:
                key = f"{norm}, {batch}, seed {seed}"
                if key in results.content:
                    continue
                out = args.out / key.replace(", ", "-").replace(" ", "-")
                p = shares(learned(args, out, norm, batch, seed, changes) / "model", test, labels)
                answers = [labels[i] for i in p.argmax(1)]
                hits = [a == b for a, b in zip(answers, right, strict=True)]
                results.add(key, sum(hits) / len(hits))
                print(f"  {key}: {results.content[key]:.2%}", flush=True)
    print(table(results.content, args.seeds))
    return 0


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path, help="a folder with train, val and test")
    parser.add_argument("--out", type=Path, required=True, help="where runs and results are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", nargs="*", default=[], help="settings, key=value")
    parser.add_argument("--tiny", action="store_true", help="a trial")
    return parser.parse_args(arguments)


def learned(
    args: argparse.Namespace, out: Path, norm: str, batch: int, seed: int, changes: dict[str, Any]
) -> Path:
    """The folder of a run; one that is there goes on."""
    data = {"data": str(place(args.data, "train")), "val_data": str(place(args.data, "val"))}
    own = {"model.norm": norm, "rows_per_step": batch, "seed": seed}
    own["lr"] = float(changes["lr"]) * math.sqrt(batch / FULL)
    config = RECIPES["classify_images"]().changed({**data, **changes, **own})
    whole_run(config, out)
    return out


def table(content: dict[str, float], seeds: Sequence[int]) -> str:
    """In Markdown: a row for each norm, a column for each batch."""
    lines = [f"| norm | {' | '.join(f'batch {batch}' for batch in BATCHES)} |"]
    lines.append("|---" * (1 + len(BATCHES)) + "|")
    for norm, name in NORMS.items():
        cells = []
        for batch in BATCHES:
            values = [content[f"{norm}, {batch}, seed {seed}"] for seed in seeds]
            half = t_half(values)
            cells.append(
                f"{statistics.mean(values):.1%}" + ("" if half is None else f" ± {half:.1%}")
            )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
