"""Boxes of lines or words by connected components: what a detector is measured beside.

    python benchmarks/datasets/documents.py out/documents
    python benchmarks/line_boxes.py out/documents --out out/line_boxes.json
    python benchmarks/line_boxes.py out/documents --suffix -words

A page is ink or paper; ink that is no more than some pixels apart, across and down, is closed to
one piece (scipy's binary closing by a rectangle), and the box around each connected piece is a
line. The rectangle, and how much ink a piece has at least, are those with the best AP on val.json;
test.json is then asked once. AP is that of COCO by pycocotools, over boxes; since all boxes have
the score 1, a precision belongs to each recall up to the one that is reached. ``--pictures`` takes
the first of val only, for a trial.
"""

import argparse
import contextlib
import io
import itertools
import json
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from benchmarks.datasets.coco import Box

INK = 160
"""The grey below which there is ink."""
ACROSS = (2, 3, 4, 6, 9, 13, 18, 25)
DOWN = (1, 2)
LEAST = (1, 8)
"""Pixels of ink in a piece."""
MOST = 1000
"""Boxes of a picture that are counted: all; COCO's usual 100 is less than the words of a page."""


class Setting(NamedTuple):
    """How far ink may be apart, and how much of it there is at least."""

    across: int
    down: int
    least: int


SETTINGS = [Setting(*values) for values in itertools.product(ACROSS, DOWN, LEAST)]


class Page(NamedTuple):
    """A picture of the json by its number, and where it has ink."""

    number: int
    ink: NDArray[np.bool_]  # (H, W)


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune on val, ask test once, print both."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path, help="a folder with val.json and test.json")
    parser.add_argument("--suffix", default="", help="of the files: -words for words-boxes")
    parser.add_argument("--pictures", type=int, help="only the first N of val")
    parser.add_argument("--out", type=Path, help="a json for the figures")
    args = parser.parse_args(arguments)
    begin = time.time()
    file = args.data / f"val{args.suffix}.json"
    pages = read_pages(file, args.pictures)
    setting = tune(file, pages)
    results: dict[str, Any] = {"setting": setting._asdict()}
    for side in ("val", "test"):
        file = args.data / f"{side}{args.suffix}.json"
        results[side] = precision(file, boxes_of_all(read_pages(file, None), setting))
        print(f"{side}: AP {results[side]['ap']:.3f}, AP50 {results[side]['ap50']:.3f}")
    print(f"closing of {setting.across} by {setting.down}, {setting.least} pixels of ink and more")
    results["minutes"] = (time.time() - begin) / 60
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def read_pages(file: Path, most: int | None) -> list[Page]:
    """The pictures that a json names."""
    pages = []
    for image in json.loads(file.read_text())["images"][:most]:
        with Image.open(file.parent / image["file_name"]) as picture:
            pages.append(Page(image["id"], np.asarray(picture.convert("L")) < INK))
    return pages


def tune(file: Path, pages: Sequence[Page]) -> Setting:
    """The setting with the best AP; the first of several."""
    best, highest = SETTINGS[0], -1.0
    for setting in SETTINGS:
        ap = precision(file, boxes_of_all(pages, setting))["ap"]
        print(
            f"  {setting.across} by {setting.down}, {setting.least} and more: AP {ap:.3f}",
            flush=True,
        )
        if ap > highest:
            best, highest = setting, ap
    return best


def boxes_of_all(pages: Iterable[Page], setting: Setting) -> dict[int, list[Box]]:
    """A picture's number -> the boxes in it."""
    return {page.number: boxes(page.ink, setting) for page in pages}


def boxes(ink: NDArray[np.bool_], setting: Setting) -> list[Box]:
    """The boxes around the connected pieces of ink, from the top."""
    size = (setting.down, setting.across)
    edge = [(length, length) for length in size]
    closed = ndimage.binary_closing(np.pad(ink, edge), np.ones(size))
    inner = closed[size[0] : closed.shape[0] - size[0], size[1] : closed.shape[1] - size[1]]
    labels, count = ndimage.label(inner, np.ones((3, 3)))
    amounts = ndimage.sum_labels(ink, labels, range(1, count + 1))
    rows = []
    for place, amount in zip(ndimage.find_objects(labels), amounts, strict=True):
        if amount >= setting.least:
            down, across = place
            height, width = down.stop - down.start, across.stop - across.start
            rows.append((float(across.start), float(down.start), float(width), float(height)))
    return rows


def precision(file: Path, boxes_there: dict[int, list[Box]]) -> dict[str, float]:
    """``ap`` and ``ap50`` by pycocotools over the pictures that are named, 0 to 1."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rows = [
        {"image_id": number, "category_id": 1, "bbox": list(box), "score": 1.0}
        for number, some in boxes_there.items()
        for box in some
    ]
    if not rows:
        return {"ap": 0.0, "ap50": 0.0}
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools with NumPy 2
        truth = COCO(str(file))
        judge = COCOeval(truth, truth.loadRes(rows), "bbox")
        judge.params.imgIds = [*boxes_there]
        judge.params.maxDets = [1, 10, MOST]
        judge.evaluate()
        judge.accumulate()
    table = judge.eval["precision"][..., 0, -1]  # (thresholds, recalls, categories)
    return {"ap": _mean(table), "ap50": _mean(table[0])}


def _mean(values: NDArray[Any]) -> float:
    """Of those that are known: pycocotools writes -1 for a category without boxes."""
    present = values[values > -1]
    return float(present.mean()) if present.size else 0.0


if __name__ == "__main__":
    sys.exit(main())
