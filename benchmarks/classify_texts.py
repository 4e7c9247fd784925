"""A classifier beside TF-IDF with logistic regression, on texts with labels in csv files.

    python benchmarks/datasets/manpages.py out/manpages
    python benchmarks/classify_texts.py out/manpages --out out/manpages/runs

DATA has train.csv, val.csv and test.csv with the columns text and label, and perhaps a third,
package: what texts have in common. The baseline is scikit-learn's at its best: TF-IDF of words and
pairs of words, or of characters, sublinear or not, and the strength of the regression's penalty are
what is right for most texts of val.csv. Ours is the recipe, for each seed the model that is best on
val.csv. Both learn from train.csv alone, and are asked once for test.csv. ``--name gpt --recipe
classify_gpt2 --set init_from=FOLDER`` puts another model beside the same baseline.

The difference is paired: of each text, how often ours is right less whether the baseline is. Its
interval of 95 % is by 10,000 draws of packages (of texts, where there are none) and of seeds. ``>``
or ``<`` stands only where the interval leaves out 0, else ``equal``.

What is done is in OUT/results.json, and is not done again; a run that was stopped goes on.
``--tiny`` is a trial: few steps, few settings.
"""

import argparse
import csv
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from addnorm import load, train
from addnorm.tasks.recipes import RECIPES
from addnorm.training.display import Display

DRAWS = 10_000
FEATURES: dict[str, dict[str, Any]] = {
    "words": {"token_pattern": r"\w+|[^\w\s]", "ngram_range": (1, 1)},
    "words and pairs": {"token_pattern": r"\w+|[^\w\s]", "ngram_range": (1, 2)},
    "1 to 3 characters": {"analyzer": "char", "ngram_range": (1, 3)},
    "2 to 5 characters in words": {"analyzer": "char_wb", "ngram_range": (2, 5)},
}
STRENGTHS = (1.0, 10.0, 100.0)
TINY = {"steps": 20, "warmup": 2, "model.context_length": 32, "model.dim": 16, "eval_every": 10}


class Rows(NamedTuple):
    """The texts of a file, with what is right, and what they have in common with others."""

    texts: list[str]
    labels: list[str]
    groups: list[str]


class Difference(NamedTuple):
    """Ours less the baseline, and its interval."""

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> str:
        """What may be said."""
        return ">" if self.low > 0 else "<" if self.high < 0 else "equal"

    def __str__(self) -> str:
        return f"{self.mean:+.2%} [{self.low:+.2%}, {self.high:+.2%}]: {self.sign}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Learn what is not learned yet, and print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path, help="a folder with train.csv, val.csv, test.csv")
    parser.add_argument("--out", type=Path, required=True, help="where runs and results are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--name", default="ours", help="what the model is called in the results")
    parser.add_argument("--recipe", default="classify_text", choices=RECIPES)
    parser.add_argument("--set", nargs="*", default=[], help="settings, key=value")
    parser.add_argument("--tiny", action="store_true", help="a trial")
    args = parser.parse_args(arguments)
    changes = dict(word.split("=", 1) for word in args.set)
    if args.tiny:
        changes = {**TINY, **changes}
    sides = {name: read(args.data / f"{name}.csv") for name in ("train", "val", "test")}
    results = Results(args.out, sides)
    key = "TF-IDF, trial" if args.tiny else "TF-IDF"
    if key not in results.content:
        results.add(key, baseline(sides, 1 if args.tiny else None), sides["test"])
    runs = [f"{args.name}, seed {seed}" for seed in args.seeds]
    for seed, run in zip(args.seeds, runs, strict=True):
        wish = {"recipe": args.recipe, **changes}
        if run not in results.content:
            results.add(run, learned(args, seed, changes) | {"settings": wish}, sides["test"])
        elif results.content[run]["settings"] != wish:
            sys.exit(f"{args.out} has {run} with other settings: give another --name")
    rights = [results.right(run) for run in (key, *runs)]
    for run in (key, *runs):
        entry = results.content[run]
        print(f"{run}: {entry['accuracy']:.2%}, {entry['minutes']:.1f} minutes, {entry['what']}")
    mean = statistics.mean(results.content[run]["accuracy"] for run in runs)
    print(f"{args.name}: {mean:.2%} in the mean of {len(runs)} seeds")
    difference = compared(np.stack(rights[1:]), rights[0], sides["test"].groups)
    print(f"{args.name} less TF-IDF: {difference}")
    return 0


class Results:
    """OUT/results.json: of each model, which texts of the test it gets right."""

    def __init__(self, out: Path, sides: dict[str, Rows]) -> None:
        self.file = out / "results.json"
        rows = json.dumps([sides[name] for name in sorted(sides)])
        data = hashlib.sha256(rows.encode()).hexdigest()[:16]
        self.content: dict[str, Any] = {"data": data}
        if self.file.exists():
            self.content = json.loads(self.file.read_text())
        if self.content["data"] != data:
            sys.exit(f"{self.file} is of other texts: give another --out")

    def add(self, name: str, entry: dict[str, Any], test: Rows) -> None:
        """A model, by its ``answers``; written at once."""
        pairs = zip(entry.pop("answers"), test.labels, strict=True)
        right = "".join("01"[answer == label] for answer, label in pairs)
        self.content[name] = {**entry, "accuracy": right.count("1") / len(right), "right": right}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        work = self.file.with_suffix(".new")
        work.write_text(json.dumps(self.content, indent=1))
        work.replace(self.file)

    def right(self, name: str) -> np.ndarray[Any, Any]:
        """1 for a text that a model gets right."""
        return np.array([float(c) for c in self.content[name]["right"]])


def read(file: Path) -> Rows:
    """A table with a first line; without packages each text is one."""
    csv.field_size_limit(sys.maxsize)
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    groups = [row.get("package") or str(i) for i, row in enumerate(rows)]
    return Rows([row["text"] for row in rows], [row["label"] for row in rows], groups)


def baseline(sides: dict[str, Rows], most: int | None) -> dict[str, Any]:
    """The best of all features and strengths on val, asked for test."""
    begin, candidates = time.time(), []
    for name, sublinear in list(product(FEATURES, (True, False)))[:most]:
        features = TfidfVectorizer(min_df=2, sublinear_tf=sublinear, **FEATURES[name])
        x = features.fit_transform(sides["train"].texts)
        val, test = (features.transform(sides[side].texts) for side in ("val", "test"))
        for strength in STRENGTHS[:most]:
            model = LogisticRegression(C=strength, max_iter=2000)
            model.fit(x, sides["train"].labels)
            accuracy = float(model.score(val, sides["val"].labels))
            what = f"{name}, {'log tf' if sublinear else 'tf'}, C {strength:g}"
            candidates.append((accuracy, what, model.predict(test).tolist()))
            print(f"  TF-IDF of {what}: {accuracy:.2%} of val", flush=True)
    accuracy, what, answers = max(candidates, key=lambda entry: entry[0])
    minutes = (time.time() - begin) / 60
    return {"answers": answers, "what": what, "val": accuracy, "minutes": minutes}


def learned(args: argparse.Namespace, seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    """One seed of ours; a run that is there goes on."""
    data = {"data": str(args.data / "train.csv"), "val_data": str(args.data / "val.csv")}
    config = RECIPES[args.recipe]().changed({**data, **changes, "seed": seed})
    out = args.out / f"{args.name}-{seed}"
    there = (out / "run.json").exists()
    run = train(config, out=out, resume=there, display=Display(quiet=True))
    answers = load(out / "best").predict(read(args.data / "test.csv").texts)
    minutes = json.loads((out / "run.json").read_text())["elapsed_s"] / 60
    return {
        "answers": [answer["label"] for answer in answers],
        "what": f"{args.recipe}, {run.step} steps",
        "val": run.best,
        "minutes": minutes,
    }


def compared(
    ours: np.ndarray[Any, Any], base: np.ndarray[Any, Any], groups: Sequence[str]
) -> Difference:
    """Of (seeds, texts) and of (texts,): the mean difference, and its interval by the bootstrap
    over groups of texts and over seeds."""
    _, place = np.unique(np.array(groups), return_inverse=True)
    sizes = np.bincount(place).astype(float)
    sums = np.stack([np.bincount(place, weights=row - base) for row in ours])  # (seeds, groups)
    rng = np.random.default_rng(0)
    means = np.empty(DRAWS)
    for i in range(DRAWS):
        seeds = rng.integers(len(ours), size=len(ours))
        of_groups = rng.integers(len(sizes), size=len(sizes))
        means[i] = sums[seeds][:, of_groups].sum() / (len(ours) * sizes[of_groups].sum())
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(float((ours - base).mean()), float(low), float(high))


if __name__ == "__main__":
    sys.exit(main())
