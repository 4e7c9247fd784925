"""Questions on the options of man pages: ours beside a picker of sentences by TF-IDF.

    python benchmarks/datasets/manoptions.py out/manoptions
    python benchmarks/answer.py out/manoptions --seeds 1 2 3

The baseline says the sentence of the passage that is most like the question: the cosine of TF-IDF
over words and options as they stand there, IDF from the passages to learn from. A page has an
option in one line and what it does in the next, so a second baseline, which is told of that, says
the sentence after the most alike one. Both say that there is no answer where the cosine is below a
threshold, the best one for F1 on val.json.

Ours begins with a BERT that has learned to fill masks in the questions of train.json, each beside
what it is about, so that it knows where a word of the one stands in the other.

EM and F1 are SQuAD's, of all questions of test.json. The intervals are bootstraps over pages, whose
questions are alike: 95 % of 2,000 draws of as many pages; that of a difference draws the same pages
for both. Ours is the mean over the seeds. What is done is kept in --out, one file for each seed,
and a run that was stopped goes on.
"""

import argparse
import json
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import addnorm
from addnorm.data.squad import SquadQuestion, read_squad
from addnorm.tasks.recipes import answer, pretrain_bert
from addnorm.training.run import train
from addnorm.uses.answer_scores import score

DRAWS = 2000
THRESHOLDS = 200  # that are tried
EXCERPT = 500  # characters of a passage beside a question
PRETRAINING = {
    "tokenizer": "wordpiece-cased:4096",
    "whole_words": True,
    "model.context_length": 256,
    "steps": 3000,
}
FINETUNING = {"optimizer": "muon", "lr": "1e-3", "muon_lr": "1e-3", "steps": "1500"}
WORD = re.compile(r"-{0,2}\w[\w-]*")
SENTENCE = re.compile(r"[^\n]*?(?:[.!?](?=\s)|\n|$)")

SIDES = ("train", "val", "test")

Scores = NDArray[np.float64]  # (questions, 2): exact match, F1


class Guess(NamedTuple):
    """An answer, and how sure it is."""

    text: str
    likeness: float


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path, help="the folder of train.json, val.json, test.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("out/answer"))
    parser.add_argument("--pretrain", nargs="*", default=[], help="settings of it, key=value")
    parser.add_argument("--set", nargs="*", default=[], help="settings, key=value")
    args = parser.parse_args()
    learn, val, test = (read_squad(args.data / f"{s}.json").questions for s in SIDES)
    print(f"{len(learn):,} questions to learn from, {len(val):,} to tune on, {len(test):,} asked")
    rows: dict[str, Scores] = {}
    for name, shift in (("TF-IDF, the sentence", 0), ("TF-IDF, the one after", 1)):
        rows[name] = baseline(Picker(learn, shift), val, test)
        print(line(name, rows[name], test), flush=True)
    start = pretrained(args, learn)
    seeds = []
    for seed in args.seeds:
        seeds.append(ours(args, start, seed, test))
        print(line(f"ours, seed {seed}", seeds[-1], test), flush=True)
    mean = np.mean(seeds, axis=0)
    print(line("ours, mean", mean, test))
    f1s = [float(s[:, 1].mean()) for s in seeds]
    if len(f1s) > 1:
        print(f"F1 over the seeds: {min(f1s):.4f} to {max(f1s):.4f}")
    for name, scores in rows.items():
        print(verdict(name, mean, scores, test))


def pretrained(args: argparse.Namespace, learn: Sequence[SquadQuestion]) -> Path:
    """The folder of the BERT that ours begins with; one without any step has random weights."""
    folder = args.out / "pretrain"
    texts = args.out / "pretrain.jsonl"
    args.out.mkdir(parents=True, exist_ok=True)
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in excerpts(learn)))
    config = pretrain_bert().changed(PRETRAINING, {"data": str(texts)}, assigned(args.pretrain))
    run = train(config, out=folder, resume=(folder / "run.json").exists())
    return run.folder / "model"


def excerpts(rows: Sequence[SquadQuestion], seed: int = 0) -> list[str]:
    """Each question with ``EXCERPT`` characters of its passage around the answer, or around any
    place where it has none; in a random order."""
    rng = random.Random(seed)
    texts = []
    for row in rows:
        place = row.answers[0].start if row.answers else rng.randrange(len(row.context))
        first = max(place - rng.randrange(EXCERPT), 0)
        texts.append(f"{row.question}\n{row.context[first : first + EXCERPT]}")
    rng.shuffle(texts)
    return texts


def assigned(words: Sequence[str]) -> dict[str, str]:
    """key=value as a layer of settings."""
    return dict(word.split("=", 1) for word in words)


def ours(args: argparse.Namespace, start: Path, seed: int, test: Sequence[SquadQuestion]) -> Scores:
    """Of each question exact match and F1, from the file of the seed or from a training that begins
    with the model in ``start``."""
    settings = {"data": str(args.data / "train.json"), "val_data": str(args.data / "val.json")}
    settings |= {"init_from": str(start), **FINETUNING, **assigned(args.set)}
    file = args.out / f"seed{seed}.json"
    if file.exists():
        record = json.loads(file.read_text())
        if record["settings"] != settings or record["ids"] != [row.id for row in test]:
            raise SystemExit(f"{file} is of other settings or data: delete it, or choose --out")
        return np.array(record["scores"])
    folder = args.out / f"run{seed}"
    config = answer().changed(settings)
    run = train(config, out=folder, resume=(folder / "run.json").exists(), seed=seed)
    items = [{"context": row.context, "question": row.question} for row in test]
    guesses = addnorm.load(run.folder).predict(items)
    scores = [
        score(guess.get("answer", ""), [a.text for a in row.answers])
        for guess, row in zip(guesses, test, strict=True)
    ]
    record = {"settings": settings, "ids": [row.id for row in test], "scores": scores}
    file.write_text(json.dumps(record))
    return np.array(scores)


# --- the baseline ---------------------------------------------------------------------------------


class Picker:
    """Says a sentence of the passage: the one that is most like the question, or, with a shift of
    1, the one after it.

    ``learn``: whose passages the IDF is from.
    """

    def __init__(self, learn: Sequence[SquadQuestion], shift: int) -> None:
        contexts = {row.context for row in learn}
        often = Counter(word for text in contexts for word in {*words(text)})
        self.idf = {w: math.log((1 + len(contexts)) / (1 + n)) + 1 for w, n in often.items()}
        self.rarest = math.log(1 + len(contexts)) + 1
        self.shift = shift

    def guess(self, row: SquadQuestion) -> Guess:
        """The sentence, and the cosine; of equal ones the first."""
        parts = sentences(row.context)
        query = self.vector(row.question)
        cosines = [cosine(query, self.vector(part)) for part in parts]
        best = max(range(len(parts)), key=lambda i: cosines[i])
        return Guess(parts[min(best + self.shift, len(parts) - 1)], cosines[best])

    def vector(self, text: str) -> dict[str, float]:
        """Word -> its count times its IDF."""
        return {w: n * self.idf.get(w, self.rarest) for w, n in Counter(words(text)).items()}


def baseline(picker: Picker, val: Sequence[SquadQuestion], test: Sequence[SquadQuestion]) -> Scores:
    """Of each question of test exact match and F1, by the best threshold on val."""
    guesses = [picker.guess(row) for row in val]
    answered = measured(guesses, val, 0.0)[:, 1]
    silent = measured(guesses, val, math.inf)[:, 1]
    likeness = np.array([guess.likeness for guess in guesses])
    thresholds = np.quantile(likeness, np.linspace(0, 1, THRESHOLDS))
    f1s = [float(np.where(likeness >= t, answered, silent).mean()) for t in thresholds]
    best = float(thresholds[int(np.argmax(f1s))])
    return measured([picker.guess(row) for row in test], test, best)


def measured(guesses: Sequence[Guess], rows: Sequence[SquadQuestion], threshold: float) -> Scores:
    """Of each question exact match and F1, where what is less alike is no answer."""
    return np.array(
        [
            score(guess.text if guess.likeness >= threshold else "", [a.text for a in row.answers])
            for guess, row in zip(guesses, rows, strict=True)
        ]
    )


def sentences(text: str) -> list[str]:
    """A passage's sentences and lines, each without the spaces around it."""
    return [part for match in SENTENCE.finditer(text) if (part := match[0].strip())]


def words(text: str) -> list[str]:
    """Words in lower case, options as they are: -a is not -A."""
    return [w if w.startswith("-") else w.lower() for w in WORD.findall(text)]


def cosine(a: dict[str, float], b: dict[str, float]) -> float:
    """Of two vectors; 0 for an empty one."""
    norms = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
    return sum(v * b.get(w, 0.0) for w, v in a.items()) / norms if norms else 0.0


# --- intervals ------------------------------------------------------------------------------------


def interval(
    values: NDArray[np.float64], groups: Sequence[str], seed: int = 0
) -> tuple[float, float]:
    """95 % of the means over as many groups, drawn with repetition."""
    names = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    which = np.array([names[name] for name in groups])
    sums = np.bincount(which, weights=values, minlength=len(names))
    counts = np.bincount(which, minlength=len(names))
    draws = np.random.default_rng(seed).integers(len(names), size=(DRAWS, len(names)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def line(name: str, scores: Scores, rows: Sequence[SquadQuestion]) -> str:
    """A row of the table: EM and F1 with their intervals, and of questions that have an answer."""
    pages = [row.title for row in rows]
    cells = []
    for column, noun in enumerate(("EM", "F1")):
        low, high = interval(scores[:, column], pages)
        cells.append(f"{noun} {scores[:, column].mean():.4f} [{low:.4f}, {high:.4f}]")
    has = np.array([bool(row.answers) for row in rows])
    for noun, part in (("with an answer", has), ("without", ~has)):
        if part.any():
            cells.append(f"F1 {noun} {scores[part, 1].mean():.4f}")
    return f"{name:22} {'  '.join(cells)}"


def verdict(name: str, mine: Scores, theirs: Scores, rows: Sequence[SquadQuestion]) -> str:
    """Whether ours is better by the interval of the difference."""
    pages = [row.title for row in rows]
    parts = []
    for column, noun in enumerate(("EM", "F1")):
        difference = mine[:, column] - theirs[:, column]
        low, high = interval(difference, pages)
        word = "more" if low > 0 else "less" if high < 0 else "equal"
        parts.append(f"{noun} {difference.mean():+.4f} [{low:+.4f}, {high:+.4f}]: {word}")
    return f"ours beside {name}: {'; '.join(parts)}"


if __name__ == "__main__":
    main()
