"""A classifier of pictures beside scikit-learn's best on their pixels.

    python benchmarks/datasets/mnist.py out/mnist
    python benchmarks/classify_images.py out/mnist --out out/mnist/runs \\
        --set model.height=28 model.width=28
    python benchmarks/datasets/openclipart.py out/openclipart
    python benchmarks/classify_images.py out/openclipart --out out/openclipart/runs \\
        --set augment.flip=0.5 augment.crop=0.6 augment.mixup=0.2

DATA has train, val and test, each a folder with one of pictures for each class, or an .npz. The
baseline is the best on val of a support vector machine with a radial kernel and of logistic
regression, on pixels from 0 to 1 that have passed the same frame as ours. Ours is the recipe, for
each seed the model that is best on val. All learn from train alone, and are asked once for test.

The difference is paired: of each picture, how often ours is right less whether the baseline is. Its
interval of 95 % is by 10,000 draws of groups and of seeds; a group are the pictures of a class
whose names differ in numbers at the end alone, in an .npz each picture. ``>`` or ``<`` stands only
where the interval leaves out 0, else ``equal``.

What is done is in OUT/results.json, and is not done again; a run that was stopped goes on. The five
errors of which ours is surest are in OUT/errors-NAME.html, to be looked at. ``--tiny`` is a trial.
"""

import argparse
import base64
import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from addnorm import load
from addnorm.data.decoding import Decoders
from addnorm.data.image_sets import ImageEntry, read_image_set
from addnorm.data.images import ImageFrame, ImageValues, is_grey, to_png
from addnorm.files.vision import image_shares
from addnorm.models.vision import ViT
from addnorm.pages import run_pictures
from addnorm.pages.look import clean, document
from addnorm.tasks.recipes import RECIPES
from benchmarks.baselines import SIDES, Candidate, Rows, best
from benchmarks.classify_texts import WORST, TextResults, table
from benchmarks.trainings import minutes, whole_run

TINY = {"steps": 20, "warmup": 2, "model.dim": 16, "model.n_layers": 1, "eval_every": 10}
STRENGTHS = (1.0, 3.0, 10.0, 100.0)
WIDTHS = (0.25, 0.5, 1.0, 2.0)
"""Of the radial kernel: gamma over 1 / (features * their variance)."""
PENALTIES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
NUMBERS = re.compile(r"[\W_]*\d+$")
BASE = "pixels"
AT_ONCE = 256


def main(arguments: Sequence[str] | None = None) -> int:
    """Learn what is not learned yet, print the table and write the page."""
    args = options(arguments)
    changes = dict(word.split("=", 1) for word in args.set)
    if args.tiny:
        changes = {**TINY, **changes}
    entries = {side: listed(args.data, side) for side in SIDES}
    sides = {side: rows(of_side) for side, of_side in entries.items()}
    results = TextResults(args.out, sides)
    key = f"{BASE}{', trial' if args.tiny else ''}"
    if key not in results.content:
        config = RECIPES[args.recipe]().changed(changes)
        shape: Any = config.task
        frame = ImageFrame(shape.model.height, shape.model.width, 3, shape.fit)
        results.add(key, best(pixels(entries, sides, frame, 1 if args.tiny else None), sides))
    runs = [f"{args.name}, seed {seed}" for seed in args.seeds]
    for seed, run in zip(args.seeds, runs, strict=True):
        wish = {"recipe": args.recipe, **changes}
        if run not in results.content:
            entry = learned(args, seed, changes, results, entries["test"])
            results.add(run, entry | {"settings": wish})
            print(f"  {run}: {entry['val']:.2%} of val", flush=True)
        elif results.content[run]["settings"] != wish:
            sys.exit(f"{args.out} has {run} with other settings: give another --name")
    print(table(results, {"scikit-learn on pixels": key}, args.name, runs))
    file = args.out / f"errors-{args.name}.html"
    title = f"Errors of {args.name} on {args.data.name}"
    gallery = worst(results, entries["test"], key, runs)
    body = f"<main><h1>{clean(title)}</h1>{run_pictures.pictures([gallery])}</main>"
    file.write_text(document(title, body, run_pictures.STYLE), encoding="utf-8")
    print(file)
    return 0


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path, help="a folder with train, val and test")
    parser.add_argument("--out", type=Path, required=True, help="where runs and results are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--name", default="ours", help="what the model is called in the results")
    parser.add_argument("--recipe", default="classify_images", choices=RECIPES)
    parser.add_argument("--set", nargs="*", default=[], help="settings, key=value")
    parser.add_argument("--tiny", action="store_true", help="a trial")
    return parser.parse_args(arguments)


def place(data: Path, side: str) -> Path:
    """Where the pictures of a side are."""
    file = data / f"{side}.npz"
    return file if file.exists() else data / side


def listed(data: Path, side: str) -> list[ImageEntry]:
    """The pictures of a side, in their order."""
    return list(read_image_set(place(data, side)).entries)


def rows(entries: Sequence[ImageEntry]) -> Rows:
    """What is right of each picture, and which of them are of one drawing; in place of a text the
    hash of its file."""
    names = [hashlib.sha256(entry.raw()).hexdigest()[:16] for entry in entries]
    groups = [
        entry.name if ".npz" in entry.name else f"{entry.label}/{stem(entry.name)}"
        for entry in entries
    ]
    return Rows(names, [entry.label for entry in entries], groups)


def stem(name: str) -> str:
    """The name of a file without its end, and without numbers at its end."""
    plain = Path(name).stem.lower()
    return NUMBERS.sub("", plain) or plain


def fitted(entries: Sequence[ImageEntry], frame: ImageFrame) -> ImageValues:
    """(pictures, channels, height, width) in 8 bits."""

    def read(entry: ImageEntry) -> ImageValues:
        return frame.fitted(entry.read())

    with Decoders(read) as decoders:
        return np.stack([outcome.sure() for outcome in decoders.outcomes(entries)])


def pixels(
    entries: dict[str, list[ImageEntry]],
    sides: dict[str, Rows],
    frame: ImageFrame,
    most: int | None,
) -> Iterator[Candidate]:
    """scikit-learn's on pixels, grey ones once. ``most``: settings of each kind; None: all."""
    grey = all(is_grey(entry.read()) for entry in entries["train"])
    values = [fitted(entries[side], frame)[:, : 1 if grey else 3] for side in SIDES]
    train, val, test = (v.reshape(len(v), -1).astype(np.float64) / 255.0 for v in values)
    scale = 1.0 / (train.shape[1] * train.var())
    for strength, width in list(product(STRENGTHS, WIDTHS))[:most]:
        model: Any = SVC(C=strength, gamma=width * scale)
        what = f"SVM, radial kernel, C {strength:g}, gamma {width:g} of scale"
        yield Candidate(what, model, (train, val, test))
    scaler = StandardScaler().fit(train)
    scaled = tuple(scaler.transform(v) for v in (train, val, test))
    for penalty in PENALTIES[:most]:
        model = LogisticRegression(C=penalty, max_iter=2000)
        yield Candidate(f"logistic regression, C {penalty:g}", model, scaled)


def learned(
    args: argparse.Namespace,
    seed: int,
    changes: dict[str, Any],
    results: TextResults,
    test: Sequence[ImageEntry],
) -> dict[str, Any]:
    """One seed of ours; a run that is there goes on."""
    data = {"data": str(place(args.data, "train")), "val_data": str(place(args.data, "val"))}
    config = RECIPES[args.recipe]().changed({**data, **changes, "seed": seed})
    out = args.out / f"{args.name}-{seed}"
    run = whole_run(config, out)
    p = shares(out / "best", test, results.labels)
    return {
        "answers": [results.labels[i] for i in p.argmax(1)],
        "probabilities": p.round(4).tolist(),
        "what": f"{args.recipe}, {run.step} steps",
        "val": run.best,
        "minutes": minutes(out),
    }


def shares(
    model: Path, entries: Sequence[ImageEntry], labels: Sequence[str]
) -> NDArray[np.float64]:
    """(pictures, labels): how probable a model finds each label of each picture; 0 for one that it
    does not know."""
    loaded = load(model)
    vit, names = loaded.model, loaded.labels
    assert isinstance(vit, ViT)
    assert names is not None
    frame = vit.image_frame()
    parts = []
    for first in range(0, len(entries), AT_ONCE):
        part = fitted(entries[first : first + AT_ONCE], frame)
        parts.append(image_shares(vit, frame.pixels(torch.from_numpy(part))).numpy())
    p = np.zeros((len(entries), len(labels)))
    p[:, [labels.index(name) for name in names]] = np.concatenate(parts)
    return p


def worst(
    results: TextResults, entries: Sequence[ImageEntry], base: str, runs: Sequence[str]
) -> dict[str, Any]:
    """The errors of which ours is surest, by the mean of its seeds, as a gallery."""
    labels, right = results.labels, results.test.labels
    p = np.mean([results.content[run]["probabilities"] for run in runs], axis=0)
    answers = [labels[i] for i in p.argmax(1)]
    wrong = [i for i, label in enumerate(right) if answers[i] != label]
    items = []
    for i in sorted(wrong, key=lambda i: -p[i].max())[:WORST]:
        image = entries[i].read()
        notes = [["probability", f"{p[i].max():.1%}"]]
        notes += [["scikit-learn says", results.content[base]["answers"][i]]]
        items.append(
            {
                "png": base64.b64encode(to_png(image)).decode(),
                "width": image.shape[1],
                "head": f"{right[i]}, taken for {answers[i]}",
                "notes": notes,
            }
        )
    caption = f"{len(wrong)} of {len(right)} pictures wrong in the mean of the seeds."
    return {"kind": "gallery", "title": "The worst errors", "caption": caption, "items": items}


if __name__ == "__main__":
    sys.exit(main())
