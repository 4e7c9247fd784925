"""A classifier beside TF-IDF and beside sentence embeddings, on texts with labels in csv files.

    python benchmarks/datasets/manpages.py out/manpages
    python benchmarks/classify_texts.py out/manpages --out out/manpages/runs

DATA has train.csv, val.csv and test.csv with the columns text and label, and perhaps a third: what
texts have in common, as the package of a page. The baselines are scikit-learn's at their best:

* TF-IDF of words and pairs of words, or of characters, sublinear or not, with logistic regression;
* vectors of the texts by a small published model (``benchmarks/embeddings.py``), with the nearest
  mean of a class, the nearest texts, or logistic regression. ``--embeddings use`` leaves out the
  model that is for English.

Which of them, how many neighbours, and how strong the penalty is what is right for most texts of
val.csv. Ours is the recipe, for each seed the model that is best on val.csv. All learn from
train.csv alone, and are asked once for test.csv. ``--name gpt --recipe classify_gpt2 --set
init_from=FOLDER`` puts another model beside the same baselines.

The difference is paired: of each text, how often ours is right less whether the baseline is. Its
interval of 95 % is by 10,000 draws of groups (of texts, where there are none) and of seeds. ``>``
or ``<`` stands only where the interval leaves out 0, else ``equal``.

What is done is in OUT/results.json, and is not done again; a run that was stopped goes on. The five
errors of which ours is surest are in OUT/errors-NAME.html, to be read. ``--tiny`` is a trial: few
steps, few settings.
"""

import argparse
import hashlib
import json
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from addnorm import load
from addnorm.pages.look import clean, document
from addnorm.tasks.recipes import RECIPES
from benchmarks.baselines import SIDES, Rows, embedding, read, tfidf
from benchmarks.embeddings import EMBEDDINGS
from benchmarks.intervals import Interval, ratio
from benchmarks.results import Results
from benchmarks.trainings import minutes, whole_run

TINY = {"steps": 20, "warmup": 2, "model.context_length": 32, "model.dim": 16, "eval_every": 10}
WORST = 5
"""Errors on the page."""
LETTERS = 1000
"""Of a text there."""


class Mistake(NamedTuple):
    """A text that ours gets wrong in the mean of its seeds."""

    text: str
    right: str
    answer: str
    probability: float
    others: dict[str, str]
    """Baseline -> its answer."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Learn what is not learned yet, print the table and write the page."""
    args = options(arguments)
    changes = dict(word.split("=", 1) for word in args.set)
    if args.tiny:
        changes = {**TINY, **changes}
    sides = {name: read(args.data / f"{name}.csv") for name in SIDES}
    results = TextResults(args.out, sides)
    bases = baselines(args, results, sides)
    runs = [f"{args.name}, seed {seed}" for seed in args.seeds]
    for seed, run in zip(args.seeds, runs, strict=True):
        wish = {"recipe": args.recipe, **changes}
        if run not in results.content:
            entry = learned(args, seed, changes, results)
            results.add(run, entry | {"settings": wish})
            print(f"  {run}: {entry['val']:.2%} of val", flush=True)
        elif results.content[run]["settings"] != wish:
            sys.exit(f"{args.out} has {run} with other settings: give another --name")
    print(table(results, bases, args.name, runs))
    mistakes = worst(results, bases, runs)
    for mistake in mistakes:
        others = ", ".join(f"{name}: {answer}" for name, answer in mistake.others.items())
        print(f"{mistake.right}, not {mistake.answer} ({mistake.probability:.0%}; {others}):")
        print(f"  {' '.join(mistake.text.split())[:200]}")
    file = args.out / f"errors-{args.name}.html"
    file.write_text(page(f"Errors of {args.name} on {args.data.name}", mistakes), encoding="utf-8")
    print(file)
    return 0


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path, help="a folder with train.csv, val.csv, test.csv")
    parser.add_argument("--out", type=Path, required=True, help="where runs and results are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--name", default="ours", help="what the model is called in the results")
    parser.add_argument("--recipe", default="classify_text", choices=RECIPES)
    parser.add_argument("--set", nargs="*", default=[], help="settings, key=value")
    parser.add_argument(
        "--embeddings", nargs="*", default=list(EMBEDDINGS), choices=EMBEDDINGS, metavar="MODEL"
    )
    models = Path("out/embeddings")
    parser.add_argument("--models", type=Path, default=models, help=f"for their weights [{models}]")
    parser.add_argument("--tiny", action="store_true", help="a trial")
    return parser.parse_args(arguments)


def baselines(
    args: argparse.Namespace, results: "TextResults", sides: dict[str, Rows]
) -> dict[str, str]:
    """Each baseline and its name in the results, where it is after this: TF-IDF, and of the
    embeddings those that are best on val."""
    most, trial = (1, ", trial") if args.tiny else (None, "")
    makers = {f"TF-IDF{trial}": partial(tfidf, sides, most)}
    for name in args.embeddings:
        makers[f"embeddings of {name}{trial}"] = partial(embedding, sides, name, args.models, most)
    for name, make in makers.items():
        if name not in results.content:
            results.add(name, make())
    first, *others = makers
    bases = {"TF-IDF": first}
    if others:
        bases["embeddings"] = max(others, key=lambda name: results.content[name]["val"])
    return bases


class TextResults:
    """OUT/results.json: of each model, what it answers to the texts of the test.

    ``out``: the folder. ``sides``: what there is to learn from and to be asked for.
    """

    def __init__(self, out: Path, sides: dict[str, Rows]) -> None:
        self.store, self.test = Results(out / "results.json"), sides["test"]
        self.labels = sorted({label for rows in sides.values() for label in rows.labels})
        rows = json.dumps([sides[name] for name in sorted(sides)])
        data = hashlib.sha256(rows.encode()).hexdigest()[:16]
        self.content = self.store.content
        if self.content.setdefault("data", data) != data:
            sys.exit(f"{self.store.file} is of other texts: give another --out")

    def add(self, name: str, entry: dict[str, Any]) -> None:
        """A model, by its ``answers``; written at once."""
        accuracy = float(self._right(entry["answers"]).mean())
        self.store.add(name, {**entry, "accuracy": accuracy})

    def right(self, name: str) -> NDArray[np.float64]:
        """1 for a text that a model gets right."""
        return self._right(self.content[name]["answers"])

    def _right(self, answers: Sequence[str]) -> NDArray[np.float64]:
        """1 for each answer that is the label of its text."""
        pairs = zip(answers, self.test.labels, strict=True)
        return np.array([float(answer == label) for answer, label in pairs])


def learned(
    args: argparse.Namespace, seed: int, changes: dict[str, Any], results: TextResults
) -> dict[str, Any]:
    """One seed of ours; a run that is there goes on."""
    data = {"data": str(args.data / "train.csv"), "val_data": str(args.data / "val.csv")}
    config = RECIPES[args.recipe]().changed({**data, **changes, "seed": seed})
    out = args.out / f"{args.name}-{seed}"
    run = whole_run(config, out)
    labels = results.labels
    answers = load(out / "best").predict(results.test.texts, top=len(labels))
    every = [answer["probabilities"] for answer in answers]
    return {
        "answers": [answer["label"] for answer in answers],
        "probabilities": [[round(p.get(label, 0.0), 4) for label in labels] for p in every],
        "what": f"{args.recipe}, {run.step} steps",
        "val": run.best,
        "minutes": minutes(out),
    }


# --- what comes of it -----------------------------------------------------------------------------


def table(results: TextResults, bases: dict[str, str], name: str, runs: Sequence[str]) -> str:
    """In Markdown: each baseline with what ours is better by, each seed, and their mean."""
    ours = np.stack([results.right(run) for run in runs])
    lines = [f"| model | accuracy | {name} less it | minutes | what |", "|---|---|---|---|---|"]
    for title, key in [*bases.items(), *((run, run) for run in runs)]:
        entry, difference = results.content[key], ""
        if key not in runs:
            difference = in_words(compared(ours, results.right(key), results.test.groups))
        lines.append(
            f"| {title} | {entry['accuracy']:.2%} | {difference} | {entry['minutes']:.1f} | "
            f"{entry['what']}; {entry['val']:.2%} of val |"
        )
    mean = statistics.mean(results.content[run]["accuracy"] for run in runs)
    lines.append(f"| {name}, mean of {len(runs)} | {mean:.2%} | | | |")
    return "\n".join(lines)


def compared(
    ours: NDArray[np.float64], base: NDArray[np.float64], groups: Sequence[str]
) -> Interval:
    """Of (seeds, texts) and of (texts,): the mean difference, and its interval by the bootstrap
    over groups of texts and over seeds."""
    _, place = np.unique(np.array(groups), return_inverse=True)
    sums = np.array([np.bincount(place, row - base) for row in ours], float)  # (seeds, groups)
    return ratio(sums, np.bincount(place).astype(float))


def in_words(difference: Interval) -> str:
    """A difference with its interval, and what may be said of it."""
    return "{:+.2%} [{:+.2%}, {:+.2%}] ".format(*difference) + difference.sign


def worst(results: TextResults, bases: dict[str, str], runs: Sequence[str]) -> list[Mistake]:
    """The errors of which ours is surest, by the mean of its seeds."""
    test, labels = results.test, results.labels
    p = np.mean([results.content[run]["probabilities"] for run in runs], axis=0)
    answers = [labels[i] for i in p.argmax(1)]
    wrong = [i for i, label in enumerate(test.labels) if answers[i] != label]
    return [
        Mistake(
            test.texts[i],
            test.labels[i],
            answers[i],
            float(p[i].max()),
            {name: results.content[key]["answers"][i] for name, key in bases.items()},
        )
        for i in sorted(wrong, key=lambda i: -p[i].max())[:WORST]
    ]


def page(title: str, mistakes: Sequence[Mistake]) -> str:
    """The errors in HTML, as all pages look."""
    parts = []
    for i, mistake in enumerate(mistakes, 1):
        text = mistake.text if len(mistake.text) <= LETTERS else f"{mistake.text[:LETTERS]} ..."
        others = ", ".join(f"{name} {clean(answer)}" for name, answer in mistake.others.items())
        parts.append(
            f"<h2>{i}. {clean(mistake.right)}, taken for {clean(mistake.answer)}</h2>"
            f"<p>With a probability of {mistake.probability:.1%} in the mean of the seeds. What "
            f"the others say: {others}.</p><pre>{clean(text)}</pre>"
        )
    lead = f"<p class='lead'>The {len(mistakes)} of which the model is surest.</p>"
    return document(title, f"<main><h1>{clean(title)}</h1>{lead}{''.join(parts)}</main>", "")


if __name__ == "__main__":
    sys.exit(main())
