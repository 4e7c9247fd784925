"""Pictures of pictures: what a model gets wrong of them, and what it looks at, for
``addnorm.pages.run_pictures``, as JSON has them.
"""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from addnorm.data.images import ImageValues, to_png
from addnorm.tasks.examples import WORST, Picture
from addnorm.tasks.labelled_images import ImageRows
from addnorm.tasks.targets import Targets
from addnorm.words import plural

LOOKS = 6  # pictures of what is looked at
GLOW = np.array([255.0, 120.0, 0.0])  # the colour of what is looked at
STRONGEST = 0.7  # share of that colour where it is looked at most


def shot(fitted: ImageValues, head: str, notes: Sequence[Sequence[str]]) -> dict[str, Any]:
    """An item of a gallery: a picture (channels, height, width) in 8 bits under words."""
    image = in_colours(fitted)
    png = base64.b64encode(to_png(image)).decode()
    return {"png": png, "width": image.shape[1], "head": head, "notes": [list(n) for n in notes]}


def in_colours(fitted: ImageValues) -> ImageValues:
    """(channels, height, width) -> (height, width, 3)."""
    image = fitted.transpose(1, 2, 0)
    return np.ascontiguousarray(np.repeat(image, 3, 2) if image.shape[2] == 1 else image)


def worst_images(targets: Targets, rows: ImageRows, p: Tensor) -> list[Picture]:
    """Of held-out pictures and the probabilities (pictures, classes) that a model gives them: the
    errors of which it is surest. Nothing if all are right."""
    answer, sureness = p.argmax(-1).numpy(), p.amax(-1).numpy()
    wrong = np.flatnonzero(answer != rows.labels)
    if not len(wrong):
        return []
    worst = wrong[np.argsort(-sureness[wrong], kind="stable")][:WORST]
    items = [
        shot(
            rows.at([i])[0],
            f"{targets.classes[rows.labels[i]]}, taken for {targets.classes[answer[i]]}",
            [["probability", f"{sureness[i]:.1%}"], ["picture", _short(rows.names[i])]],
        )
        for i in worst
    ]
    return [
        {
            "kind": "gallery",
            "title": "The worst errors",
            "caption": f"{len(wrong):,} of {plural(len(rows), 'held-out picture')} wrong; those of "
            "which the model is surest.",
            "items": items,
        }
    ]


@final
class ImageLook(NamedTuple):
    """What a model looks at in a picture: its place among the rows, and a share for each patch."""

    place: int
    shares: NDArray[np.float64]  # (rows, columns)


def chosen_places(rows: ImageRows) -> list[int]:
    """The first held-out picture of each of the first few classes."""
    first = {int(label): i for i, label in reversed([*enumerate(rows.labels)])}
    return [first[label] for label in sorted(first)][:LOOKS]


def image_looks(targets: Targets, rows: ImageRows, p: Tensor, looks: Sequence[ImageLook]) -> Any:
    """The pictures with a glow over the patches that are looked at."""
    if not looks:
        return []
    items = []
    for look in looks:
        answer, label = int(p[look.place].argmax()), int(rows.labels[look.place])
        head = targets.classes[label]
        head += "" if answer == label else f", taken for {targets.classes[answer]}"
        items.append(shot(_glowing(rows.at([look.place])[0], look.shares), head, []))
    return [
        {
            "kind": "gallery",
            "title": "What it looks at",
            "caption": "The more a patch glows, the more of it reaches what the label is read off, "
            "in the mean over heads and layers.",
            "items": items,
        }
    ]


def _glowing(fitted: ImageValues, shares: NDArray[np.float64]) -> ImageValues:
    """A picture (channels, height, width) with each patch in its colour, as (3, height, width)."""
    image = in_colours(fitted).astype(np.float64)
    height, width = image.shape[:2]
    rows = np.minimum(np.arange(height) * shares.shape[0] // height, shares.shape[0] - 1)
    columns = np.minimum(np.arange(width) * shares.shape[1] // width, shares.shape[1] - 1)
    strength = STRONGEST * shares[rows][:, columns] / max(float(shares.max()), 1e-12)
    mixed = image * (1.0 - strength[..., None]) + GLOW * strength[..., None]
    return np.rint(mixed).astype(np.uint8).transpose(2, 0, 1)


def _short(name: str) -> str:
    """The end of a file's name: its folder and itself."""
    return "/".join(Path(name).parts[-2:])
