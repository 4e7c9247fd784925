"""How words are spoken: a translator from letters to phonemes, on the CMU Pronouncing Dictionary.

    python benchmarks/datasets/cmudict.py out/cmudict
    python benchmarks/translate.py out/cmudict --out out/translate_words

trains the recipe ``translate`` on words with each seed, and has the model that is best on val speak
words that it has never seen. PER is the number of phonemes to be inserted, deleted or replaced over
the number of those that are right, WER the share of words in which there is one to mend; of a word
that is spoken in several ways the nearest counts. Phonemes are without stress, as they are in what
is published on this dictionary. The interval is that of a t distribution over the seeds, 95 %. What
is done is kept in OUT, and a second call goes on from there.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from addnorm.data.pairs import read_pairs
from addnorm.tasks.recipes import translate
from addnorm.training.config import Config
from addnorm.uses.edits import edits
from benchmarks.intervals import t_half
from benchmarks.translators import outputs_of

SETTINGS = {
    "tokenizer": "characters",
    "target_tokenizer": "bpe:330",  # it ends with 322: bytes, and each phoneme as one token
    "rows_per_step": "128",
    "steps": "4500",
    "optimizer": "muon",
    "lr": "1e-3",
    "muon_lr": "2e-3",
    "warmup": "50",
    "model.dim": "192",
    "model.context_length": "48",
    "threads": "1",
    "score_pairs": "0",
}
PUBLISHED = """\
| published, on other parts of the dictionary | PER | WER |
|---|---|---|
| Phonetisaurus, the same dictionary (README of cmusphinx/g2p-seq2seq) | - | 33.9 % |
| Transformer of 2 layers, 256 wide, the same dictionary (there) | - | about 31 % |
| bidirectional LSTM with alignments, an older dictionary (Yao & Zweig 2015) | 5.45 % | 23.55 % |
"""
"""What others have measured. The older dictionary (PRONALSYL, 2007) is an easier one: on it the
same Phonetisaurus has 24.4 %, and the same Transformer 20.2 %."""


class ErrorRates(NamedTuple):
    """Both from 0 to 1, and more where too much is said."""

    per: float
    wer: float
    words: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Learn what is not learned yet, and print the error rates."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path, help="a folder with train.tsv, val.tsv, test.tsv")
    parser.add_argument("--out", type=Path, required=True, help="where all that is done is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--words", type=int, help="speak only so many words of the test")
    parser.add_argument("--set", nargs="*", default=[], help="settings, key=value")
    args = parser.parse_args(arguments)
    spoken = references(args.data / "test.tsv", args.words)
    config = settings(args.data, dict(word.split("=", 1) for word in args.set))
    rates, minutes = [], []
    for seed in args.seeds:
        run = outputs_of(config, args.out / f"seed{seed}", seed, list(spoken), args.beams)
        rates.append(error_rates(dict(zip(spoken, run.texts, strict=True)), spoken))
        minutes.append(run.minutes)
        print(f"seed {seed}: {in_words(rates[-1])}, {run.what}, {run.minutes:.1f} min", flush=True)
    print(table(rates, minutes))
    return 0


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
        distances = [(edits(answer, way.split()), len(way.split())) for way in ways]
        nearest, length = min(distances, key=lambda pair: (pair[0] / pair[1], pair[0]))
        errors, phonemes, wrong = errors + nearest, phonemes + length, wrong + (nearest > 0)
    return ErrorRates(errors / phonemes, wrong / len(spoken), len(spoken))


def table(rates: Sequence[ErrorRates], minutes: Sequence[float]) -> str:
    """The mean over the seeds with its interval, and what is published, as Markdown."""
    cells = [interval([getattr(r, name) for r in rates]) for name in ("per", "wer")]
    lines = [
        f"{rates[0].words:,} words, {len(rates)} seeds, {statistics.mean(minutes):.1f} minutes of "
        "the processor each",
        "",
        "| | PER | WER |",
        "|---|---|---|",
        f"| the recipe `translate` | {' | '.join(cells)} |",
        "",
    ]
    return "\n".join([*lines, PUBLISHED])


def interval(values: Sequence[float]) -> str:
    """The mean, and half of its interval where there are several."""
    mean = f"{statistics.mean(values):.2%}"
    half = t_half(values)
    return mean if half is None else f"{mean} ± {half:.2%}"


def in_words(rates: ErrorRates) -> str:
    """The figures in a line."""
    return f"PER {rates.per:.2%}, WER {rates.wer:.2%} of {rates.words:,} words"


if __name__ == "__main__":
    sys.exit(main())
