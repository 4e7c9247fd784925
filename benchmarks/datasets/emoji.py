"""Emoji in three styles and what they are called: pictures with their text, one style unseen.

Sources: npm's packages openmoji 17.0.0 (pictures as SVG), emoji-datasource-twitter 16.0.0 (the PNG
files of Twemoji) and cldr-annotations-full 48.2.0 (names), with the SHA-512 below, and Debian's
package fonts-noto-color-emoji with the SHA-256 below. Licences: OpenMoji CC BY-SA 4.0 (c) OpenMoji,
Twemoji CC BY 4.0 (c) Twitter and other contributors, Noto Color Emoji OFL 1.1 (c) Google, CLDR
Unicode-3.0. Nothing of them is in this repository, and what this script writes is under the same
licences.

    python benchmarks/datasets/emoji.py out/emoji
    python benchmarks/datasets/emoji.py out/emoji-de --language de --test-style twemoji

writes pictures/STYLE/CODE.png (64 by 64 pixels, in colours on white) and train.jsonl, val.jsonl and
test.jsonl with {"image", "text"} in a line. Train has two styles, with all names; test and val have
the third, val of a fifth of the emoji, which a hash of the code decides, and test of the others. So
every name of the test has been seen, in drawings by other hands: what is measured is the step to
another style.

Taken are the emoji that are one character and are in all three styles: none with a skin tone or of
several characters (flags, families, most professions), which differ from each other by little. It
needs the packages Pillow and resvg-py (which draws SVG), npm, and about a minute.
"""

import argparse
import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.datasets import npm
from benchmarks.datasets.alike import closest, on_white, reduced
from benchmarks.datasets.debian import Package, contents, deb
from benchmarks.datasets.folders import megabytes, write_readme
from benchmarks.datasets.sides import fraction

OPENMOJI = (
    "openmoji@17.0.0",
    "EBnYrNGdcdw+OSXmENeNE1yBNRu6tOraTmoOyUbJkTmvT/+XETp8RZLSJFzD3lrPc5N9CzsyPnRTk0Vp4UaI9w==",
)
TWITTER = (
    "emoji-datasource-twitter@16.0.0",
    "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
)
NAMES = (
    "cldr-annotations-full@48.2.0",
    "DV7A+rEcgUSNTRsVGNGqBZRmAkGfwhGHO5Q1dRwzBoBnVrHWp804JP7/QJdEc66iHmx3+zLWVIMCFLm0lW7PUQ==",
)
NOTO = Package(
    "fonts-noto-color-emoji",
    "2.042-0+deb12u1",
    "a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751",
)
STYLES = ("openmoji", "twemoji", "noto")
VAL = 0.2
"""The share of the emoji whose picture in the third style is in val."""
SIDE = 64
"""Pixels."""
FONT_SIZE = 109
"""The only size of Noto's bitmaps."""
NEAR = 0.05
"""The distance up to which two pictures are nearly the same."""

Pictures = dict[str, Image.Image]
"""An emoji's code, such as 1f600 -> how a style draws it."""


class Row(NamedTuple):
    """A line of a file."""

    image: str
    text: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Take, draw, split, write; print what there is."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path, help="the folder for pictures/ and the three files")
    parser.add_argument("--language", default="en", help="of the names: en, de, zh, ... [en]")
    parser.add_argument("--test-style", choices=STYLES, default="noto", help="[noto]")
    parser.add_argument("--archives", type=Path, help="where they are, or are put [out/archives]")
    args = parser.parse_args(arguments)
    folder = args.archives or args.out / "archives"
    names = read_names(npm.archive(*NAMES, folder), args.language)
    styles = {
        "openmoji": of_openmoji(npm.archive(*OPENMOJI, folder), names),
        "twemoji": of_twitter(npm.archive(*TWITTER, folder), names),
        "noto": of_noto(deb(NOTO, folder, Path(__file__)), names),
    }
    codes = sorted(set.intersection(*({*pictures} for pictures in styles.values())))
    write_readme(args.out, __doc__)
    for style, pictures in styles.items():
        (args.out / "pictures" / style).mkdir(parents=True, exist_ok=True)
        for code in codes:
            pictures[code].save(args.out / "pictures" / style / f"{code}.png")
    sides = split({code: names[code] for code in codes}, args.test_style)
    for side, rows in sides.items():
        lines = [json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows]
        (args.out / f"{side}.jsonl").write_text("".join(lines), encoding="utf-8")
    for style, pictures in styles.items():
        print(f"{style}: {len(pictures):,} emoji of one character, {len(codes):,} in all styles")
    print("\n".join(summary(args.out, sides)))
    print(f"{args.out / 'pictures'}: {megabytes(args.out / 'pictures')}")
    return 0


# --- from the packages to pictures ----------------------------------------------------------------


def code_of(file: str) -> str:
    """The character of a file name such as 2639-FE0F.svg, in lower case and without the selector
    that asks for colours; nothing, if it has several."""
    code = Path(file).stem.lower().removesuffix("-fe0f")
    return code if re.fullmatch(r"[0-9a-f]{4,6}", code) else ""


def read_names(file: Path, language: str) -> dict[str, str]:
    """The code of a character -> its short name in CLDR."""
    pattern = re.compile(rf"package/annotations/{re.escape(language)}/annotations\.json")
    texts = [content for _, content in npm.contents(file, pattern)]
    if not texts:
        sys.exit(f"{file} has no names in the language {language!r}; others are en, de, fr, zh")
    table = json.loads(texts[0])["annotations"]["annotations"]
    return {
        f"{ord(sign):04x}": entry["tts"][0]
        for sign, entry in table.items()
        if len(sign) == 1 and entry.get("tts")
    }


def of_openmoji(file: Path, names: Mapping[str, str]) -> Pictures:
    """Those of one character that have a name."""
    pattern = re.compile(r"package/color/svg/[0-9A-F-]+\.svg")
    return {
        code: square(svg(content.decode()))
        for name, content in npm.contents(file, pattern)
        if (code := code_of(name)) in names
    }


def of_twitter(file: Path, names: Mapping[str, str]) -> Pictures:
    """Those of one character that have a name."""
    pattern = re.compile(r"package/img/twitter/64/[0-9a-f-]+\.png")
    return {
        code: square(Image.open(io.BytesIO(content)))
        for name, content in npm.contents(file, pattern)
        if (code := code_of(name)) in names
    }


def of_noto(file: Path, names: Mapping[str, str]) -> Pictures:
    """Those of one character that have a name; the font has all in one size, as pixels."""
    ((_, content),) = contents(file, re.compile(r".*/NotoColorEmoji\.ttf"))
    font = ImageFont.truetype(io.BytesIO(content), FONT_SIZE)
    pictures = {}
    for code in names:
        sign = chr(int(code, 16))
        left, top, right, bottom = map(round, font.getbbox(sign))
        if bottom > top:  # what is not in the font has no height
            picture = Image.new("RGBA", (right - left, bottom - top))
            draw = ImageDraw.Draw(picture)
            draw.text((-left, -top), sign, font=font, embedded_color=True)
            pictures[code] = square(picture)
    return pictures


def svg(text: str) -> Image.Image:
    """A drawing as pixels, twice as many as are needed."""
    import resvg_py

    content = resvg_py.svg_to_bytes(svg_string=text, width=2 * SIDE, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(content)))


def square(picture: Image.Image) -> Image.Image:
    """The whole picture in the middle of a white square of SIDE pixels."""
    flat = on_white(picture)
    side = max(flat.size)
    ground = Image.new("RGB", (side, side), "white")
    ground.paste(flat, ((side - flat.width) // 2, (side - flat.height) // 2))
    return ground.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


# --- sides ----------------------------------------------------------------------------------------


def split(names: Mapping[str, str], test_style: str) -> dict[str, list[Row]]:
    """Side -> its rows, by code: two styles to learn from, of the third val and test."""
    sides: dict[str, list[Row]] = {"train": [], "val": [], "test": []}
    for code, name in sorted(names.items()):
        for style in STYLES:
            held_out = "val" if fraction(f"emoji {code}") < VAL else "test"
            side = held_out if style == test_style else "train"
            sides[side].append(Row(f"pictures/{style}/{code}.png", name))
    return sides


def summary(folder: Path, sides: Mapping[str, Sequence[Row]]) -> list[str]:
    """What there is on each side, and how near the others come to the pictures of train."""
    pixels = {
        side: np.stack([reduced(Image.open(folder / row.image)) for row in rows])
        for side, rows in sides.items()
    }
    names = {row.text for row in sides["train"]}
    lines = [f"train: {len(sides['train']):,} pictures with {len(names):,} names"]
    for side in ("val", "test"):
        distance = closest(pixels[side], pixels["train"])
        own = {row.text for row in sides[side]}
        lines.append(
            f"{side}: {len(sides[side]):,} pictures with {len(own):,} names, of which "
            f"{len(own - names)} are not in train; {(distance <= NEAR).sum()} pictures are nearly "
            f"one of train ({NEAR} and less away), the nearest is {distance.min():.3f} away, "
            f"the median {np.median(distance):.3f}"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
