"""How words are spoken: a translator from letters to phonemes, on the CMU Pronouncing Dictionary.

    python benchmarks/translate.py --seeds 1 2 3

trains the recipe ``translate`` on words, and has it speak words that it has never seen. PER is the
number of phonemes to be inserted, deleted or replaced over the number of those that are right, WER
the share of words in which there is one to mend; of a word that is spoken in several ways the
nearest counts. Phonemes are without stress, as they are in what is published on this dictionary.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from addnorm.data.pairs import read_pairs
from addnorm.pretrained import load
from addnorm.tasks.recipes import translate
from addnorm.training.config import Config
from addnorm.training.run import train

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the other files of benchmarks/
from benchmarks.datasets import cmudict

SETTINGS = {
    "tokenizer": "characters",
    "target_tokenizer": "bpe:330",  # every phoneme is a token or two
    "rows_per_step": "128",
    "steps": "6000",
    "model.context_length": "48",
    "score_pairs": "200",
}


class ErrorRates(NamedTuple):
    """Both from 0 to 1, and more where too much is said."""

    per: float
    wer: float
    words: int


def main() -> None:
    """Print the error rates."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--words", type=int, help="speak only so many words of the test")
    parser.add_argument("--set", nargs="*", default=[], help="settings, key=value")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        cmudict.write(data, cmudict.entries(cmudict.download()))
        spoken = references(data / "test.tsv", args.words)
        rates = []
        for seed in args.seeds:
            start = time.monotonic()
            config = settings(data, dict(word.split("=", 1) for word in args.set))
            run = train(config, out=Path(name) / f"run{seed}", seed=seed)
            minutes = (time.monotonic() - start) / 60
            answers = load(run.folder).predict(list(spoken), beams=args.beams, batch_size=128)
            outputs = {answer["input"]: answer.get("output", "") for answer in answers}
            rates.append(error_rates(outputs, spoken))
            print(f"seed {seed}: {in_words(rates[-1])}, {minutes:.1f} min of training", flush=True)
        print(
            f"median: PER {statistics.median(r.per for r in rates):.2%}, "
            f"WER {statistics.median(r.wer for r in rates):.2%}"
        )


def settings(data: Path, changes: Mapping[str, str]) -> Config:
    """The recipe, for words."""
    files = {"data": str(data / "train.tsv"), "val_data": str(data / "val.tsv")}
    return translate().changed(SETTINGS, files, changes)


def references(file: Path, most: int | None) -> dict[str, list[str]]:
    """Word -> the ways in which it is spoken."""
    ways = defaultdict(list)
    for row in read_pairs(str(file)).rows:
        ways[row.source].append(row.target)
    return dict(list(ways.items())[:most])


def error_rates(outputs: Mapping[str, str], spoken: Mapping[str, Sequence[str]]) -> ErrorRates:
    """Over all words; of several ways the one with the lowest error rate counts."""
    errors = phonemes = wrong = 0
    for word, ways in spoken.items():
        answer = outputs[word].split()
        distances = [(distance(answer, way.split()), len(way.split())) for way in ways]
        nearest, length = min(distances, key=lambda pair: (pair[0] / pair[1], pair[0]))
        errors, phonemes, wrong = errors + nearest, phonemes + length, wrong + (nearest > 0)
    return ErrorRates(errors / phonemes, wrong / len(spoken), len(spoken))


def distance(one: Sequence[str], other: Sequence[str]) -> int:
    """How many to insert, delete or replace (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def in_words(rates: ErrorRates) -> str:
    """The figures in a line."""
    return f"PER {rates.per:.2%}, WER {rates.wer:.2%} of {rates.words:,} words"


if __name__ == "__main__":
    main()
