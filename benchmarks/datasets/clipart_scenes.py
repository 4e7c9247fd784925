"""Scenes of clip art on photographs, with boxes and masks in COCO's json.

Sources: Debian's package openclipart-png 0.18 (public domain; its SHA-256 stands in openclipart.py)
and photographs of the package scikit-image 0.26.0 of PyPI, with the SHA-256 below, in the public
domain or under CC0, as its documentation says of each: astronaut, hubble_deep_field (NASA), rocket
(SpaceX), brick, grass, gravel (CC0Textures), camera (Lav Varshney), chelsea (Stefan van der Walt),
coffee (Rachel Michetti). Nothing of them is in this repository. The scenes are made by this script:
no camera has seen them.

    python benchmarks/datasets/clipart_scenes.py out/clipart_scenes
    python benchmarks/datasets/clipart_scenes.py out/scenes-256 --size 256 --train 1000

writes train.json, val.json and test.json with categories, boxes and masks (uncompressed run
lengths), and the pictures beside them in pictures/SIDE/NUMBER.jpg. A scene is a square part of a
photograph with one to five drawings of ten classes, each mirrored or not, its longer side from a
quarter to six tenths of the picture's. A later one may cover an earlier one, of which then at least
half is to be seen; a box is around what is seen. Classes are drawn with equal chances, then a
drawing of the class.

The drawings of a side are in no other one: variants stay together, as openclipart.py says. Each
side has photographs of its own. Only drawings on a clear ground are taken, which fill at least 0.3
of their box; flags and cards are full. All chances depend on the number of the scene alone. It
takes some minutes.
"""

import argparse
import io
import sys
import tempfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.datasets.alike import closest
from benchmarks.datasets.coco import Annotations, box_of
from benchmarks.datasets.debian import contents, deb
from benchmarks.datasets.folders import megabytes, write_readme
from benchmarks.datasets.openclipart import (
    FILE,
    LARGEST,
    NEAR,
    PACKAGE,
    Drawing,
    choose,
    rows_of,
    split,
)
from benchmarks.datasets.pypi import downloaded

PHOTOGRAPHS = "scikit-image==0.26.0"
SHA256 = "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af"
"""Of the wheel for Linux, x86-64 and Python 3.11."""
GROUNDS = {
    "train": ("astronaut.png", "brick.png", "camera.png", "grass.png", "hubble_deep_field.jpg"),
    "val": ("chelsea.png", "gravel.png"),
    "test": ("coffee.png", "rocket.jpg"),
}
CLASSES = {
    "bird": "animals/birds/",
    "bug": "animals/bugs/",
    "card": "recreation/games/cards/",
    "dessert": "food/desserts/",
    "flag": "signs_and_symbols/flags/",
    "fruit": "food/fruit/",
    "home": "buildings/homes/",
    "mammal": "animals/mammals/",
    "music": "recreation/music/",
    "smiley": "people/smilies/",
}
"""Class -> the folder of its drawings."""
FILLED = 0.3
"""The least share of its box that a drawing covers."""
CUT = 128
"""The alpha from which on a pixel belongs to a drawing."""
STORED = 200
"""Pixels of the longer side in which drawings wait."""
MOST = 5
"""Drawings of a scene."""
LENGTHS = (0.25, 0.6)
"""The longer side of a drawing, as a share of the scene's, from and to."""
VISIBLE = 0.5
"""The least share of a drawing that is seen."""
QUALITY = 92
"""Of the JPEG."""


class Placed(NamedTuple):
    """A drawing in a scene."""

    label: str
    mask: NDArray[np.bool_]  # (H, W): where it is seen


def main(arguments: Sequence[str] | None = None) -> int:
    """Take, split, compose, write; print what there is."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path, help="the folder for the three files and pictures/")
    parser.add_argument("--size", type=int, default=128, help="pixels of a scene's side [128]")
    for side, count in (("train", 4000), ("val", 300), ("test", 600)):
        parser.add_argument(f"--{side}", type=int, default=count, help=f"scenes [{count}]")
    parser.add_argument("--debs", type=Path, help="where the package is, or is put [out/debs]")
    args = parser.parse_args(arguments)
    file = deb(PACKAGE, args.debs or args.out / "debs", Path(__file__).parent / "openclipart.py")
    drawings, rest = cut_out(contents(file, FILE))
    sides = split(choose(drawings, everything=True))
    with tempfile.TemporaryDirectory() as name:
        photographs = read_photographs(downloaded(PHOTOGRAPHS, SHA256, Path(name)))
    write_readme(args.out, __doc__)
    for side, some in sides.items():
        grounds = [photographs[name] for name in GROUNDS[side]]
        annotations = Annotations([*CLASSES])
        (args.out / "pictures" / side).mkdir(parents=True, exist_ok=True)
        for number in range(getattr(args, side)):
            picture, objects = scene(f"{side} {number}", some, grounds, args.size)
            file_name = f"pictures/{side}/{number:05}.jpg"
            picture.save(args.out / file_name, quality=QUALITY)
            image = annotations.add_image(file_name, picture.size)
            for label, mask in objects:
                annotations.add(image, label, box_of(mask), mask)
        annotations.write(args.out / f"{side}.json")
        print(summary(side, annotations, some), flush=True)
    print("\n".join(shared(sides, rest)))
    print(f"{args.out / 'pictures'}: {megabytes(args.out / 'pictures')}")
    return 0


# --- drawings and photographs ---------------------------------------------------------------------


def class_of(name: str) -> str:
    """The class of a drawing by its place in the package; nothing, if it has none."""
    return next((label for label, start in CLASSES.items() if name.startswith(start)), "")


def cut_out(files: Iterable[tuple[str, bytes]]) -> tuple[list[Drawing], dict[str, int]]:
    """The drawings of the classes, with their alpha; and why others are left out -> how many."""
    drawings = []
    rest: Counter[str] = Counter()
    Image.MAX_IMAGE_PIXELS = None  # there is a limit of our own below
    for name, content in files:
        match = FILE.fullmatch(name)
        assert match is not None
        if not (label := class_of(match[1])):
            continue
        with Image.open(io.BytesIO(content)) as picture:
            if picture.width * picture.height > LARGEST:
                rest["too large"] += 1
                continue
            clear = picture.convert("RGBA")
        step = max(clear.size) // (2 * STORED)
        small = clear.reduce(step) if step > 1 else clear
        small = small.crop(solid(small).getbbox())
        small.thumbnail((STORED, STORED), Image.Resampling.LANCZOS)
        covered = (np.asarray(solid(small)) > 0).mean()
        if covered < FILLED or min(small.size) < STORED // 20:
            rest["hardly anything to be seen"] += 1
        elif covered == 1 and label not in ("flag", "card"):
            rest["not on a clear ground"] += 1
        else:
            drawings.append(Drawing(match[1], small, label))
    return sorted(drawings, key=lambda drawing: drawing.name), dict(rest)


def solid(picture: Image.Image) -> Image.Image:
    """255 where a picture covers what is below it."""
    return picture.getchannel("A").point(lambda value: 255 * (value >= CUT))


def read_photographs(wheel: Path) -> dict[str, Image.Image]:
    """File name -> the picture, in colours."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: Image.open(io.BytesIO(archive.read(f"skimage/data/{name}"))).convert("RGB")
            for names in GROUNDS.values()
            for name in names
        }


# --- scenes ---------------------------------------------------------------------------------------


def scene(
    seed: str, drawings: Sequence[Drawing], grounds: Sequence[Image.Image], size: int
) -> tuple[Image.Image, list[Placed]]:
    """A picture of ``size`` by ``size`` pixels, and what is in it; the same for the same seed."""
    rng = np.random.default_rng([*seed.encode()])
    classes: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in drawings:
        classes[drawing.label].append(drawing)
    picture = part(grounds[int(rng.integers(len(grounds)))], size, rng)
    objects: list[Placed] = []
    areas: list[int] = []
    for _ in range(rng.integers(1, MOST + 1)):
        some = classes[[*classes][int(rng.integers(len(classes)))]]
        drawing = some[int(rng.integers(len(some)))]
        layer = place(drawing.picture, size, rng)
        mask = np.asarray(solid(layer)) > 0
        left = [one.mask & ~mask for one in objects]
        if any(m.sum() < VISIBLE * area for m, area in zip(left, areas, strict=True)):
            continue
        picture.paste(layer, (0, 0), layer)
        objects = [one._replace(mask=m) for one, m in zip(objects, left, strict=True)]
        objects.append(Placed(drawing.label, mask))
        areas.append(int(mask.sum()))
    return picture, objects


def part(photograph: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """A square of it, from half to all of its shorter side, mirrored or not."""
    side = int(rng.uniform(0.5, 1) * min(photograph.size))
    left, top = (int(rng.integers(edge - side + 1)) for edge in photograph.size)
    square = photograph.crop((left, top, left + side, top + side))
    return mirrored(square, rng).resize((size, size), Image.Resampling.LANCZOS)


def place(picture: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """A drawing somewhere on a clear ground, wholly on it."""
    scale = rng.uniform(*LENGTHS) * size / max(picture.size)
    width, height = (max(2, round(scale * edge)) for edge in picture.size)
    small = mirrored(picture, rng).resize((width, height), Image.Resampling.LANCZOS)
    layer = Image.new("RGBA", (size, size))
    layer.paste(small, (int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))))
    return layer


def mirrored(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """In half of the cases, left to right."""
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else picture


# --- what there is --------------------------------------------------------------------------------


def summary(side: str, annotations: Annotations, drawings: Sequence[Drawing]) -> str:
    """A line of how many there are."""
    numbers = Counter(annotations.labels[one["category_id"] - 1] for one in annotations.objects)
    labels = Counter(drawing.label for drawing in drawings)
    each = ", ".join(f"{label} {numbers[label]:,} of {labels[label]}" for label in CLASSES)
    return (
        f"{side}: {len(annotations.images):,} scenes with {len(annotations.objects):,} objects of "
        f"{len(drawings)} drawings: {each}"
    )


def shared(sides: Mapping[str, Sequence[Drawing]], rest: Mapping[str, int]) -> list[str]:
    """What the others share with train, and what is left out."""
    lines = []
    rows = {side: rows_of(some) for side, some in sides.items()}
    for side in ("val", "test"):
        distance = closest(rows[side], rows["train"])
        lines.append(f"{side}: {(distance <= NEAR).sum()} drawings are nearly one of train")
    return lines + [f"left out, {reason}: {count}" for reason, count in sorted(rest.items())]


if __name__ == "__main__":
    sys.exit(main())
