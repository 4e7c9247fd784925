"""What a picture is called, by the nearest picture: beside which captions are measured.

    python benchmarks/datasets/emoji.py out/emoji
    python benchmarks/nearest_pictures.py out/emoji --out out/nearest_pictures.json

DATA has train.jsonl, val.jsonl and test.jsonl with {"image", "text"} in a line, files named
relative to them. A picture is given the text of the picture of train that is nearest in pixels. How
small pictures are made, whether they keep their colours, and whether the mean is taken off (so that
what counts is the pattern, by the cosine) is what is right for most of val; test is asked once.
Printed are exact_match and chrf of the first text, 0 to 100, and recall_at_1 and recall_at_5 of
texts, 0 to 1. ``chance`` is the recall of a text taken blindly.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.datasets.alike import on_white

SIZES = (8, 12, 16, 24, 32)
AT = (1, 5)
"""How many texts are named."""


class Setting(NamedTuple):
    """What of a picture is compared."""

    size: int
    coloured: bool
    centred: bool


SETTINGS = [Setting(*values) for values in itertools.product(SIZES, (True, False), (True, False))]


class Captions(NamedTuple):
    """Pictures and what they are called."""

    pictures: list[Image.Image]
    texts: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune on val, ask test once, print both."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path, help="a folder with the three files")
    parser.add_argument("--out", type=Path, help="a json for the figures")
    args = parser.parse_args(arguments)
    sides = {side: read(args.data / f"{side}.jsonl") for side in ("train", "val", "test")}
    setting = tune(sides["train"], sides["val"])
    results: dict[str, Any] = {"setting": setting._asdict()}
    for side in ("val", "test"):
        results[side] = scores(nearest(sides["train"], sides[side], setting), sides[side].texts)
        results[side]["chance"] = 1 / len({*sides["train"].texts})
        print(f"{side}: " + ", ".join(f"{key} {value:.4g}" for key, value in results[side].items()))
    print(f"{setting.size} pixels, colours {setting.coloured}, without the mean {setting.centred}")
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def read(file: Path) -> Captions:
    """The pictures of a file, in colours on white, and their texts."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    pictures = []
    for row in rows:
        with Image.open(file.parent / row["image"]) as picture:
            pictures.append(on_white(picture))
    return Captions(pictures, [row["text"] for row in rows])


def tune(train: Captions, val: Captions) -> Setting:
    """The setting that is right for most of val; the first of several."""
    results = []
    for setting in SETTINGS:
        first = [texts[0] for texts in nearest(train, val, setting)]
        results.append(np.mean([a == b for a, b in zip(first, val.texts, strict=True)]))
        print(f"  {setting}: {results[-1]:.2%} of val", flush=True)
    return SETTINGS[int(np.argmax(results))]


def nearest(train: Captions, others: Captions, setting: Setting) -> list[list[str]]:
    """Of each of the others the different texts of train by how near their pictures are, as many
    as are asked for."""
    rows, wishes = (vectors(one.pictures, setting) for one in (train, others))
    distances = (rows**2).sum(axis=1) - 2 * wishes @ rows.T  # (others, train), but for a constant
    results = []
    for order in np.argsort(distances, axis=1, kind="stable"):
        texts: dict[str, None] = {}
        for i in order:
            texts[train.texts[i]] = None
            if len(texts) == max(AT):
                break
        results.append([*texts])
    return results


def vectors(pictures: Sequence[Image.Image], setting: Setting) -> NDArray[np.float64]:
    """One row a picture, (N, D)."""
    size = (setting.size, setting.size)
    mode = "RGB" if setting.coloured else "L"
    small = [p.convert(mode).resize(size, Image.Resampling.BOX) for p in pictures]
    rows = np.stack([np.asarray(one, dtype=np.float64).ravel() / 255 for one in small])
    if setting.centred:
        rows -= rows.mean(axis=1, keepdims=True)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-9)
    return rows


def scores(answers: Sequence[Sequence[str]], texts: Sequence[str]) -> dict[str, float]:
    """How often the text is the first, or among the first five, and how near the first one is."""
    import sacrebleu

    first = [some[0] for some in answers]
    pairs = [*zip(answers, texts, strict=True)]
    recalls = {f"recall_at_{k}": float(np.mean([t in some[:k] for some, t in pairs])) for k in AT}
    chrf = sacrebleu.corpus_chrf(first, [list(texts)]).score
    return {"exact_match": 100 * recalls["recall_at_1"], "chrf": float(chrf), **recalls}


if __name__ == "__main__":
    sys.exit(main())
