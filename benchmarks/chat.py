"""Conversations that nobody has seen: how probable a model of the recipe chat finds their answers,
beside n-grams.

    python benchmarks/datasets/chatterbot.py out/chatterbot
    python benchmarks/chat.py out/chatterbot --out out/chat

In English and in Chinese. First the recipe learns once with each of ``TRIES`` and seed 0, and the
settings are taken by which val.jsonl has the fewest bits per byte; then it learns with each of
--seeds. Of each run the model of the best evaluation counts, which on so few conversations comes
before the last step. The n-grams are modified Kneser-Ney (ngram.py) over the ids of whole
conversations, questions and answers alike, with the same tokenizer; their order and discounts are
those that are best on val. Both are asked for the same tokens of test.jsonl: those of the answers
and their ends, each after all of the conversation before it that the model's context holds.

Intervals are 95 %, by the bootstrap over conversations and, of ours, over seeds. The sign says how
our perplexity stands to theirs: < or > where the interval of the difference says so, else equal.

Each run is a folder of --out, and goes on where it stopped; what is measured is a line of
results.jsonl there and is not measured again.
"""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from addnorm import GPT, Tokenizer
from addnorm.data.chat import ChatRow, ChatTokenizer
from addnorm.data.dialogues import read_dialogues
from addnorm.pretrained import chat_tokenizer, load
from addnorm.tasks.recipes import chat
from addnorm.training.display import Display
from addnorm.training.run import train
from addnorm.uses.dialogue_scores import answer_bytes, score_rows
from benchmarks.datasets.chatterbot import LANGUAGES, SIDES
from benchmarks.intervals import Interval, ratio
from benchmarks.ngram import Discounts, NGrams

TRIES: tuple[dict[str, Any], ...] = (
    {"tokenizer": "bytes", "dropout": 0.1},
    {"tokenizer": "bytes", "dropout": 0.3},
    {"tokenizer": "bpe:512", "dropout": 0.1},
    {"tokenizer": "bpe:512", "dropout": 0.3},
)
COMMON: dict[str, Any] = {
    **{"model.dim": 128, "model.n_heads": 4, "rows_per_step": 16, "samples": 0},
    **{"steps": 500, "warmup": 50, "eval_every": 25, "save_every": 100, "watch_every": 0},
}
ORDERS = range(2, 9)
FIXED = (0.5, 0.6, 0.7, 0.8, 0.9)
"""One discount for all counts, beside those that the data has."""
Array = np.ndarray[Any, np.dtype[np.float64]]


class Talks(NamedTuple):
    """What is asked of a side: of each conversation its rows, and how many tokens and bytes their
    answers have."""

    rows: list[list[ChatRow]]
    tokens: list[int]
    bytes: list[int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is not measured yet, and print a table for each language."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n", maxsplit=1)[0])
    parser.add_argument(
        "data", type=Path, help="a folder with the languages, and in each the sides"
    )
    parser.add_argument("--out", type=Path, required=True, help="where runs and results are kept")
    parser.add_argument("--languages", nargs="+", default=[*LANGUAGES])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", nargs="*", default=[], help="settings of all runs, key=value")
    args = parser.parse_args(arguments)
    changes = {**COMMON, **dict(word.split("=", 1) for word in args.set)}
    for language in args.languages:
        bench = Bench(args.data / language, args.out / language, changes)
        tries = [bench.trained({**wish, "seed": 0}) for wish in TRIES]
        for wish, run in zip(TRIES, tries, strict=True):
            print(f"{language}, {wish}: {run['val']:.3f} bits per byte of val", flush=True)
        wish = min(zip(TRIES, tries, strict=True), key=lambda pair: pair[1]["val"])[0]
        runs = [bench.trained({**wish, "seed": seed}) for seed in args.seeds]
        print(f"\n{language}, {wish}\n{table(runs, bench.counted(wish))}\n", flush=True)
    return 0


# --- what is measured -----------------------------------------------------------------------------


class Bench:
    """The measurements on one language.

    ``data``: a folder with the sides; ``out``: where runs and results are kept; ``changes``: the
    settings that all runs have.
    """

    def __init__(self, data: Path, out: Path, changes: dict[str, Any]) -> None:
        self.data, self.out, self.changes = data, out, changes
        out.mkdir(parents=True, exist_ok=True)
        self.file = out / "results.jsonl"
        content = b"".join((data / f"{side}.jsonl").read_bytes() for side in SIDES)
        self.identity = hashlib.sha256(content).hexdigest()[:16]

    def result(self, what: dict[str, Any]) -> dict[str, Any] | None:
        """What was measured before of these settings, on this data."""
        key = {"data": self.identity, **self.changes, **what}
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        return next((line for line in map(json.loads, lines) if line["key"] == key), None)

    def add(self, what: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
        """Write it down."""
        line = {"key": {"data": self.identity, **self.changes, **what}, **figures}
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return line

    def folder(self, wish: dict[str, Any]) -> Path:
        """Where a run with these settings is."""
        key = json.dumps({"data": self.identity, **self.changes, **wish}, sort_keys=True)
        return self.out / hashlib.sha256(key.encode()).hexdigest()[:12]

    def trained(self, wish: dict[str, Any]) -> dict[str, Any]:
        """A run of the recipe: bits per byte of val, nats of each conversation of test."""
        if (line := self.result(wish)) is not None:
            return line
        files = {key: str(self.data / f"{side}.jsonl") for key, side in
                 (("data", "train"), ("val_data", "val"))}  # fmt: skip
        config = chat().changed(files, self.changes, wish)
        folder = self.folder(wish)
        run = train(
            config, out=folder, resume=(folder / "run.json").exists(), display=Display(quiet=True)
        )
        model, tokenizer = opened(folder)
        val, test = (self.talks(side, model, tokenizer) for side in ("val", "test"))
        nats = {
            name: [score_rows(model, tokenizer, rows).nats for rows in talks.rows]
            for name, talks in (("val", val), ("test", test))
        }
        card = json.loads((folder / "run.json").read_text())
        return self.add(
            wish,
            {
                "val": sum(nats["val"]) / math.log(2) / sum(val.bytes),
                "nats": nats["test"],
                "tokens": test.tokens,
                "bytes": test.bytes,
                "steps": run.step,
                "minutes": card["elapsed_s"] / 60,
            },
        )

    def counted(self, wish: dict[str, Any]) -> dict[str, Any]:
        """The n-grams that are best on val, with the tokenizer of these settings."""
        what = {"n-grams": wish["tokenizer"]}
        if (line := self.result(what)) is not None:
            return line
        model, tokenizer = opened(self.folder({**wish, "seed": 0}))
        learned = [
            row.ids.tolist()
            for dialogue in read_dialogues(self.data / "train.jsonl")
            for row in tokenizer.rows(dialogue, sys.maxsize)
        ]
        val, test = (self.talks(side, model, tokenizer) for side in ("val", "test"))
        best = (math.inf, 0, "", [0.0])
        for order in ORDERS:
            choices: dict[str, list[Discounts] | None] = {"of the data": None}
            choices |= {f"{d:g}": [(d, d, d)] * order for d in FIXED}
            for name, discounts in choices.items():
                grams = NGrams(learned, tokenizer.vocab_size, order, discounts)
                bits = sum(nats_of(grams, val)) / math.log(2) / sum(val.bytes)
                if bits < best[0]:
                    best = (bits, order, name, nats_of(grams, test))
        bits, order, name, nats = best
        figures = {"val": bits, "order": order, "discounts": name, "nats": nats}
        return self.add(what, {**figures, "tokens": test.tokens, "bytes": test.bytes})

    def talks(self, side: str, model: GPT, tokenizer: ChatTokenizer) -> Talks:
        """What is asked of a side."""
        context = model.config.context_length
        dialogues = read_dialogues(self.data / f"{side}.jsonl")
        rows = [tokenizer.rows(dialogue, context) for dialogue in dialogues]
        tokens = [sum(int(row.target.sum()) for row in some) for some in rows]
        return Talks(rows, tokens, [answer_bytes(tokenizer, some) for some in rows])


def opened(folder: Path) -> tuple[GPT, ChatTokenizer]:
    """The best model of a run, and what makes ids of its conversations."""
    loaded = load(folder / "best")
    assert isinstance(loaded.model, GPT)
    assert isinstance(loaded.tokenizer, Tokenizer)
    tokenizer = chat_tokenizer(folder / "best", loaded.tokenizer)
    assert tokenizer is not None
    return loaded.model, tokenizer


def nats_of(grams: NGrams, talks: Talks) -> list[float]:
    """Of the answers of each conversation."""
    return [
        sum(grams.nats(row.ids.tolist(), row.target.nonzero()[0].tolist()) for row in rows)
        for rows in talks.rows
    ]


# --- the table ------------------------------------------------------------------------------------


def table(runs: Sequence[dict[str, Any]], base: dict[str, Any]) -> str:
    """Ours, the n-grams, and the difference."""
    ours, theirs = np.array([run["nats"] for run in runs]), np.array([base["nats"]])
    tokens, size = np.array(base["tokens"], float), np.array(base["bytes"], float)
    assert all(run["tokens"] == base["tokens"] for run in runs), "the same tokens"
    minutes = sum(run["minutes"] for run in runs) / len(runs)
    name = f"{base['order']}-grams, discounts {base['discounts']}"
    lines = ["| | perplexity a token | bits per byte |", "|---|---|---|"]
    for label, nats in ((name, theirs), (f"ours, {len(runs)} seeds, {minutes:.1f} min each", ours)):
        per_token, per_byte = ratio(nats, tokens), ratio(nats / math.log(2), size)
        lines.append(f"| {label} | {in_words(exponential(per_token))} | {in_words(per_byte)} |")
    per_token, per_byte = ratio(ours - theirs, tokens), ratio((ours - theirs) / math.log(2), size)
    cells = [in_words(exponential(per_token)), in_words(per_byte)]
    lines.append(f"| ours over theirs; less theirs | {' | '.join(cells)} |")
    amounts = f"{len(tokens)} conversations, {tokens.sum():,.0f} tokens, {size.sum():,.0f} bytes"
    return "\n".join([*lines, f"\nperplexity of ours {per_token.sign} that of theirs; {amounts}"])


def in_words(interval: Interval) -> str:
    """A figure with its interval."""
    return "{:.3f} [{:.3f}, {:.3f}]".format(*interval)


def exponential(interval: Interval) -> Interval:
    """Of nats per token, the perplexity."""
    return Interval(*map(math.exp, interval))


if __name__ == "__main__":
    sys.exit(main())
