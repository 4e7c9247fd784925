"""Pages of manuals, with boxes of their lines and words in COCO's json.

Sources: the PDF files of the Debian 12 packages in ``documents.txt``, taken with apt-get at the
versions and with the SHA-256 there (amd64). Licences: those of the packages, most of them GPL or
FDL, others MIT, BSD, LPPL; each stands in /usr/share/doc/PACKAGE/copyright of its package. Nothing
of them is in this repository, and what this script writes is under the same licences.

    python benchmarks/datasets/documents.py out/documents
    python benchmarks/datasets/documents.py out/documents-parts --part 192 --height 792

writes pictures/SIDE/NAME.png, grey, and for each side two files: SIDE.json has the lines as the
category ``line``, SIDE-words.json the words as ``word``. Pages are 640 pixels high unless --height
says so. With --part, a picture is a square of that many pixels out of a page, four of each page,
where there is something to be read; a box is then around what is in the part, and what reaches less
than two pixels into it has none.

Where words are, PDFium says: the boxes are those of the glyphs themselves. A line is what stands in
a row with gaps of at most one and a half times its height, so that columns and cells of a table are
lines of their own. Left out: text that cannot be seen on the page; pages with fewer than five lines
or with rotated text.

All files of a package are on one side, which a hash of its name decides: at most four of a package,
the largest, and at most ten pages of a file, at equal distances. It needs pypdfium2, and takes some
minutes.
"""

import argparse
import gzip
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.datasets.coco import Annotations, Box
from benchmarks.datasets.debian import contents, deb, read_list
from benchmarks.datasets.folders import megabytes, write_readme
from benchmarks.datasets.shared_runs import runs_of_all, shared
from benchmarks.datasets.sides import fraction, side_of

LIST = Path(__file__).with_suffix(".txt")
SIDES = {"test": 0.2, "val": 0.1, "train": 0.7}
"""Side -> its share of the packages."""
HASH = "documents 0"
"""What is hashed with a package's name."""
FILES, PAGES = 4, 10
"""The most files of a package, and pages of a file."""
FEWEST = 5
"""Lines of a page."""
PARTS = 4
"""Parts of a page, with --part."""
GAP = 1.5
"""The widest gap in a line, in heights of the line."""
OVERLAP = 0.3
"""The least part of the lower of two boxes' heights that they share in one line."""
DARK = 200
"""The grey from which on down a pixel belongs to a letter."""
LEAST = 2.0
"""Pixels of a box that have to be in a part, if it has that many."""
FLAT = 0.5
"""Pixels of a side below which there is nothing to be seen."""


class Piece(NamedTuple):
    """A text and its box: left, top, right, bottom, from the upper left corner."""

    text: str
    left: float
    top: float
    right: float
    bottom: float

    @property
    def height(self) -> float:
        """From top to bottom."""
        return self.bottom - self.top

    def scaled(self, factor: float) -> "Piece":
        """In other units."""
        return Piece(self.text, *(value * factor for value in self[1:]))

    def inside(self, left: int, top: int, size: tuple[int, int]) -> "Piece | None":
        """What is in a rectangle of (width, height), from its corner; None, if that is hardly
        anything."""
        x = [min(max(value - left, 0), size[0]) for value in (self.left, self.right)]
        y = [min(max(value - top, 0), size[1]) for value in (self.top, self.bottom)]
        part = Piece(self.text, x[0], y[0], x[1], y[1])
        edges = ((part.right - part.left, self.right - self.left), (part.height, self.height))
        return part if all(edge >= min(LEAST, whole) for edge, whole in edges) else None


class Page(NamedTuple):
    """A picture and what can be read on it."""

    name: str
    picture: Image.Image
    words: list[Piece]
    lines: list[Piece]


def main(arguments: Sequence[str] | None = None) -> int:
    """Take, draw, split, write; print what there is."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path, help="the folder for the files and pictures/")
    parser.add_argument("--height", type=int, default=640, help="pixels of a page [640]")
    parser.add_argument("--part", type=int, help="pixels of a square part [whole pages]")
    parser.add_argument("--packages", type=int, help="only the first N of the list, for a trial")
    parser.add_argument("--debs", type=Path, help="where the packages are, or are put [out/debs]")
    args = parser.parse_args(arguments)
    sides: dict[str, Side] = {side: Side() for side in ("train", "val", "test")}
    for package in read_list(LIST)[: args.packages]:
        side = sides[side_of(f"{HASH} {package.name}", SIDES)]
        side.packages.append(package.name)
        folder = args.out / "pictures" / next(name for name, one in sides.items() if one is side)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in pdfs(deb(package, args.debs or args.out / "debs", LIST)):
            for page in pages(content, f"{package.name}-{name}", args.height):
                side.texts.append(tuple(word.text for word in page.words))
                for one in parts(page, args.part) if args.part else [page]:
                    one.picture.save(folder / f"{one.name}.png")
                    side.add(f"pictures/{folder.name}/{one.name}.png", one)
    write_readme(args.out, __doc__)
    for name, side in sides.items():
        side.lines.write(args.out / f"{name}.json")
        side.words.write(args.out / f"{name}-words.json")
    print("\n".join(summary(sides)))
    print(f"{args.out / 'pictures'}: {megabytes(args.out / 'pictures')}")
    return 0


class Side:
    """What has been gathered for a side."""

    def __init__(self) -> None:
        self.packages: list[str] = []
        self.texts: list[tuple[str, ...]] = []
        self.lines, self.words = Annotations(["line"]), Annotations(["word"])

    def add(self, file_name: str, page: Page) -> None:
        """A page or a part of one, with its boxes."""
        for annotations, pieces, label in (
            (self.lines, page.lines, "line"),
            (self.words, page.words, "word"),
        ):
            image = annotations.add_image(file_name, page.picture.size)
            for piece in pieces:
                annotations.add(image, label, box_of(piece))


def box_of(piece: Piece) -> Box:
    """Left, top, width, height, to a hundredth of a pixel."""
    left, top, right, bottom = (round(value, 2) for value in piece[1:])
    return left, top, round(right - left, 2), round(bottom - top, 2)


# --- from packages to pages -----------------------------------------------------------------------


def pdfs(file: Path) -> list[tuple[str, bytes]]:
    """(name, content) of the largest in a package, each content once."""
    every: dict[bytes, str] = {}
    for name, packed in contents(file, re.compile(r".*\.pdf(\.gz)?")):
        content = gzip.decompress(packed) if name.endswith(".gz") else packed
        stem = Path(name.removesuffix(".gz")).stem
        every[content] = min(stem, every.get(content, stem))
    largest = sorted(every, key=len, reverse=True)[:FILES]
    return sorted((every[content], content) for content in largest)


def pages(content: bytes, name: str, height: int) -> Iterator[Page]:
    """Some pages of a PDF, as they look."""
    import pypdfium2 as pdfium

    document = pdfium.PdfDocument(content)
    count = len(document)
    for number in sorted({i * count // PAGES for i in range(PAGES)}):
        sheet = document[number]
        factor = height / sheet.get_height()
        picture = sheet.render(scale=factor, grayscale=True).to_pil().convert("L")
        letters = characters(sheet)
        if letters is None:
            continue
        every = [word.scaled(factor) for word in words_of(letters)]
        pixels = np.asarray(picture)
        visible = [
            word
            for one in every
            if (word := one.inside(0, 0, picture.size)) is not None and is_visible(word, pixels)
        ]
        rows = lines_of(visible)
        if len(rows) >= FEWEST:
            words = [word for word in visible if word.text]
            yield Page(f"{name}-{number + 1:04}", picture, words, rows)


def characters(sheet: object) -> list[Piece] | None:
    """Those of a page of PDFium in the order of reading, with white space; None, if some are
    rotated. ``sheet`` is a pypdfium2.PdfPage."""
    import pypdfium2.raw as pdfium_c

    text = sheet.get_textpage()  # type: ignore[attr-defined]
    left, _, _, top = sheet.get_bbox()  # type: ignore[attr-defined]
    letters = []
    for i in range(text.count_chars()):
        if abs(pdfium_c.FPDFText_GetCharAngle(text, i)) > 0.01 or sheet.get_rotation():  # type: ignore[attr-defined]
            return None
        x, low, right, high = text.get_charbox(i)
        sign = chr(pdfium_c.FPDFText_GetUnicode(text, i))
        letters.append(Piece(sign, x - left, top - high, right - left, top - low))
    return letters


def words_of(letters: Iterable[Piece]) -> list[Piece]:
    """Runs of letters between white space, each with the box around them; a new line of the text
    stands as an empty word."""
    words: list[Piece] = []
    run: list[Piece] = []
    for letter in [*letters, Piece("\n", 0, 0, 0, 0)]:
        if not letter.text.isspace() and letter.text != "\0":
            run.append(letter)
            continue
        if run:
            words.append(around(run, ""))
            run = []
        if letter.text in "\r\n" and words and words[-1].text:
            words.append(Piece("", 0, 0, 0, 0))
    return words


def lines_of(words: Iterable[Piece]) -> list[Piece]:
    """Words that stand in a row, without wide gaps."""
    rows: list[list[Piece]] = []
    fresh = True
    for word in words:
        if word.text:
            if fresh or not continues(around(rows[-1], " "), word):
                rows.append([])
            rows[-1].append(word)
        fresh = not word.text
    return [around(row, " ") for row in rows]


def continues(line: Piece, word: Piece) -> bool:
    """Whether a word stands in a line, after what is there."""
    common = min(line.bottom, word.bottom) - max(line.top, word.top)
    gap = word.left - line.right
    lower, higher = sorted((line.height, word.height))
    return common >= OVERLAP * lower and -higher <= gap <= GAP * higher


def around(pieces: Sequence[Piece], between: str) -> Piece:
    """All as one."""
    return Piece(
        between.join(piece.text for piece in pieces),
        min(piece.left for piece in pieces),
        min(piece.top for piece in pieces),
        max(piece.right for piece in pieces),
        max(piece.bottom for piece in pieces),
    )


def is_visible(word: Piece, pixels: NDArray[np.uint8]) -> bool:
    """Whether something dark is in the box of a word on the page; ends of lines always are."""
    if not word.text:
        return True
    left, top = (max(int(value), 0) for value in (word.left, word.top))
    part = pixels[top : int(word.bottom) + 1, left : int(word.right) + 1]
    flat = min(word.right - word.left, word.height) < FLAT
    return not flat and bool(part.size) and int(part.min()) < DARK


def parts(page: Page, side: int) -> list[Page]:
    """Squares of a page that have something to be read, at places which a hash decides."""
    squares = []
    width, height = page.picture.size
    for number in range(PARTS):
        left = int(fraction(f"left {number} {page.name}") * max(width - side, 0))
        top = int(fraction(f"top {number} {page.name}") * max(height - side, 0))
        inside = [
            [piece for one in pieces if (piece := one.inside(left, top, (side, side))) is not None]
            for pieces in (page.words, page.lines)
        ]
        if inside[1]:
            picture = Image.new("L", (side, side), 255)
            picture.paste(page.picture.crop((left, top, left + side, top + side)))
            squares.append(Page(f"{page.name}-{number}", picture, *inside))
    return squares


# --- what there is --------------------------------------------------------------------------------


def summary(sides: Mapping[str, Side]) -> list[str]:
    """How much there is on each side, and what the others share with train."""
    lines = []
    learned = runs_of_all(sides["train"].texts)
    for name, side in sides.items():
        count = len(side.lines.images)
        lines.append(
            f"{name}: {count:,} pictures of {len(side.texts):,} pages with "
            f"{len(side.lines.objects):,} lines ({len(side.lines.objects) / max(count, 1):.1f} "
            f"each) and {len(side.words.objects):,} words, of {len(side.packages)} packages: "
            f"{', '.join(side.packages)}"
        )
        if name != "train":
            part = shared(runs_of_all(side.texts), learned)
            lines.append(f"  {part.share:.1%} of its runs of five words are in train")
    return lines


if __name__ == "__main__":
    sys.exit(main())
