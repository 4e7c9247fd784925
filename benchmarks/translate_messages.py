"""What programs say, from English: a translator beside a translation memory, and beside eole.

    python benchmarks/datasets/messages.py out/messages
    python benchmarks/translate_messages.py out/messages/de --out out/translate_de

DATA has train.tsv, val.tsv and test.tsv; the test is a whole package that nobody has learned from.
``ours`` is the recipe ``translate`` with each seed, the model that is best on val. ``memory``
answers with the translation of the nearest source in train: by the cosine of TF-IDF of runs of n
characters, with the n that has the highest BLEU on val. ``source`` answers with the source, which
shows what marks and names alone are worth. ``--eole COMMAND`` trains eole on the same pairs and the
same ids of the same tokenizer, with as many layers of the same width, until it has had as many
minutes of the processor as our training with that seed.

BLEU and chrF are sacrebleu's over the test, the mean over the seeds. The interval of a difference
is 95 % of 1,000 draws of sentences, the same for both, and of the seeds of each; "more" or "less"
stands only where it leaves out 0, else "equal". What is done is kept in OUT, and a second call goes
on from there.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sklearn.feature_extraction.text import TfidfVectorizer

from addnorm.data.pairs import Pair, read_pairs
from addnorm.tasks.recipes import translate
from addnorm.training.config import Config
from addnorm.uses.translation_scores import is_chinese
from benchmarks import eole_runs
from benchmarks.translators import Outputs, digest, outputs_of, read, write

DRAWS = 1000
RUNS = range(2, 7)
"""Characters of the runs that a memory may go by."""
SETTINGS = {
    "tokenizer": "bpe:6000",
    "model.context_length": "160",
    "threads": "1",
    "score_pairs": "0",
}
Score = BLEU | CHRF
Statistics = NDArray[np.float64]
"""What a score is computed from: sums over sentences, (sentences, numbers)."""


class Difference(NamedTuple):
    """Ours less another, and its interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        word = "more" if self.low > 0 else "less" if self.high < 0 else "equal"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]: {word}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Learn what is not learned yet, and print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path, help="a folder with train.tsv, val.tsv, test.tsv")
    parser.add_argument("--out", type=Path, required=True, help="where all that is done is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--set", nargs="*", default=[], help="settings, key=value")
    parser.add_argument("--eole", help="the command of an eole that is installed")
    args = parser.parse_args(arguments)
    sides = {n: read_pairs(str(args.data / f"{n}.tsv")).rows for n in ("train", "val", "test")}
    sources, references = ([row[i] for row in sides["test"]] for i in (0, 1))
    config = settings(args.data, dict(word.split("=", 1) for word in args.set))
    arms: dict[str, list[Outputs]] = {
        "source": [Outputs(sources, 0.0, "as it is")],
        "memory": [memory(sides, args.out / "memory.json")],
        "ours": [],
    }
    for seed in args.seeds:
        folder = args.out / f"seed{seed}"
        mine = outputs_of(config, folder, seed, sources, args.beams)
        arms["ours"].append(mine)
        print(f"ours, seed {seed}: {mine.what}, {mine.minutes:.1f} min", flush=True)
        if args.eole:
            arms.setdefault("eole", []).append(
                eole_runs.outputs_of(
                    args.eole, config, folder, seed, sides, args.beams, mine.minutes
                )
            )
    print(table(arms, references))
    return 0


def settings(data: Path, changes: Mapping[str, str]) -> Config:
    """The recipe, for messages."""
    files = {"data": str(data / "train.tsv"), "val_data": str(data / "val.tsv")}
    return translate().changed(SETTINGS, files, changes)


# --- the translation memory -----------------------------------------------------------------------


def memory(sides: Mapping[str, Sequence[Pair]], file: Path) -> Outputs:
    """What it answers to test, by the runs of characters that are best on val; from the file, if it
    is there."""
    wish = {
        name: digest([text for row in rows for text in row[:2]]) for name, rows in sides.items()
    }
    earlier = read(file, wish)
    if earlier is not None:
        return earlier
    references = [row.target for row in sides["val"]]
    metric = scores(references)[0]
    best, answers = -1.0, Outputs([], 0.0, "")
    for n in RUNS:
        val, test = nearest(sides["train"], [sides["val"], sides["test"]], n)
        bleu = metric.corpus_score(val, [references]).score
        print(f"memory, runs of {n} characters: BLEU {bleu:.2f} on val", flush=True)
        if bleu > best:
            best, answers = bleu, Outputs(test, 0.0, f"runs of {n} characters")
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file, wish, answers)
    return answers


def nearest(pairs: Sequence[Pair], asking: Sequence[Sequence[Pair]], n: int) -> list[list[str]]:
    """Of each source that is asked for, the translation of the nearest one that is known; of
    equally near ones the first."""
    features = TfidfVectorizer(analyzer="char", ngram_range=(n, n), sublinear_tf=True)
    table = features.fit_transform([row.source for row in pairs]).T.tocsr()
    texts = []
    for rows in asking:
        questions = features.transform([row.source for row in rows])
        places: list[int] = []
        for first in range(0, len(rows), 64):
            places += (questions[first : first + 64] @ table).toarray().argmax(1).tolist()
        texts.append([pairs[i].target for i in places])
    return texts


# --- scores and their intervals -------------------------------------------------------------------


def scores(references: Sequence[str]) -> tuple[Score, Score]:
    """BLEU and chrF, for the language of the references."""
    return BLEU(tokenize="zh" if is_chinese(references) else "13a"), CHRF()


def sums(score: Score, texts: Sequence[str], references: Sequence[str]) -> Statistics:
    """What sacrebleu adds up over the sentences, one row each: its own bootstrap does the same, but
    knows no seeds."""
    rows = score._extract_corpus_statistics(texts, [references])
    return np.array(rows, np.float64)


def value(score: Score, rows: Statistics) -> float:
    """The score of all rows together, which are already multiplied by how often each counts."""
    return float(score._compute_score_from_stats(rows.sum(0).tolist()).score)


def difference(
    score: Score, ours: Sequence[Statistics], others: Sequence[Statistics]
) -> Difference:
    """Of the means over the seeds: the difference, and its interval by draws of sentences and of
    the seeds of each side."""
    rng = np.random.default_rng(0)
    count = len(ours[0])

    def mean(sides: Sequence[Statistics], weights: NDArray[np.float64]) -> float:
        return statistics.mean(value(score, rows * weights[:, None]) for rows in sides)

    differences = []
    for _ in range(DRAWS):
        weights = np.bincount(rng.integers(count, size=count), minlength=count).astype(float)
        draw = [
            [side[i] for i in rng.integers(len(side), size=len(side))] for side in (ours, others)
        ]
        differences.append(mean(draw[0], weights) - mean(draw[1], weights))
    once = np.ones(count)
    low, high = np.quantile(differences, [0.025, 0.975])
    return Difference(mean(ours, once) - mean(others, once), float(low), float(high))


def table(arms: Mapping[str, Sequence[Outputs]], references: Sequence[str]) -> str:
    """The figures, and the differences, as Markdown."""
    metrics = scores(references)
    rows = {
        name: [[sums(metric, run.texts, references) for run in runs] for metric in metrics]
        for name, runs in arms.items()
    }
    lines = [
        f"{len(references):,} messages, the mean over the seeds (their least and greatest)",
        "",
        "| | BLEU | chrF | exact | minutes | |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in arms.items():
        cells = [
            spread([value(metric, one) for one in ones], ".2f")
            for metric, ones in zip(metrics, rows[name], strict=True)
        ]
        exact = [
            sum(a == b for a, b in zip(run.texts, references, strict=True)) / len(references)
            for run in runs
        ]
        minutes = statistics.mean(run.minutes for run in runs)
        cells += [spread(exact, ".1%"), f"{minutes:.1f}" if minutes else "-", runs[0].what]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| ours less | BLEU | chrF |", "|---|---|---|"]
    for name in arms:
        if name != "ours":
            both = [
                str(difference(metric, rows["ours"][i], rows[name][i]))
                for i, metric in enumerate(metrics)
            ]
            lines.append(f"| {name} | {' | '.join(both)} |")
    names = [f"{type(metric).__name__} {metric.get_signature()}" for metric in metrics]
    return "\n".join([*lines, "", *names])


def spread(values: Sequence[float], form: str) -> str:
    """The mean, and where there are several the least and the greatest."""
    mean = format(statistics.mean(values), form)
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    sys.exit(main())
