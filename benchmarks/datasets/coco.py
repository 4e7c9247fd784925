"""Boxes and masks of pictures in COCO's json."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]
"""Left, top, width, height, in pixels."""


class Annotations:
    """A file of one side, while it grows.

    Args:
        labels: the names of the categories, of which the first has the number 1.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)
        self.images: list[dict[str, Any]] = []
        self.objects: list[dict[str, Any]] = []

    def add_image(self, file_name: str, size: tuple[int, int]) -> int:
        """The number of a new picture, which the file is named relative to the json; ``size`` is
        (width, height)."""
        number = len(self.images) + 1
        width, height = size
        image = {"id": number, "file_name": file_name, "width": width, "height": height}
        self.images.append(image)
        return number

    def add(self, image: int, label: str, box: Box, mask: NDArray[np.bool_] | None = None) -> None:
        """An object of a picture; without a mask its box is its outline."""
        left, top, width, height = box
        right, bottom = left + width, top + height
        outline = [left, top, right, top, right, bottom, left, bottom]
        self.objects.append(
            {
                "id": len(self.objects) + 1,
                "image_id": image,
                "category_id": self.labels.index(label) + 1,
                "bbox": list(box),
                "area": width * height if mask is None else int(mask.sum()),
                "segmentation": [outline] if mask is None else run_lengths(mask),
                "iscrowd": 0,
            }
        )

    def write(self, file: Path) -> None:
        """All as one json."""
        categories = [{"id": i, "name": label} for i, label in enumerate(self.labels, 1)]
        table = {"images": self.images, "annotations": self.objects, "categories": categories}
        file.write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, list[int]]:
    """COCO's uncompressed form of a mask (H, W): how many pixels of the background come first, then
    how many of the object, and so on, down the columns from left to right."""
    pixels = mask.T.ravel()
    ends = np.flatnonzero(np.diff(pixels)) + 1
    counts = np.diff(np.concatenate([[0], ends, [pixels.size]]))
    start = [0] if pixels.size and pixels[0] else []
    return {"counts": [*start, *map(int, counts)], "size": list(mask.shape)}


def box_of(mask: NDArray[np.bool_]) -> Box:
    """The box around the pixels of a mask that has some."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top
