"""Letters and syllables as children's software speaks them: sounds in folders by what they are.

Source: Debian's package klettres-data 22.12, taken with apt-get, with the SHA-256 below. Licence:
GPL-2 or later, /usr/share/doc/klettres-data/copyright there. Nothing of it is in this repository,
and what this script writes is under the same licence.

    python benchmarks/datasets/klettres.py out/klettres

writes two sets of ogg files, each with train/, val/ and test/ and a folder for each class in it.

letters/: a to z, each said once by the voice of a language. A side has whole voices: test is
British English, val Brazilian Portuguese, and train seven others, American English among them. So
the voice is unseen, and of the test the language is not; letters have other names in other
languages, and train has five to seven recordings of each.

languages/: de, en, es, fr and it, from letters and syllables. What is written decides by a hash on
which side it is, in all languages alike, so that what is spoken is unseen. A language has one voice
here, English two, on all sides: a classifier may go by the voice, and this measures no more than
telling six recordings' speakers apart. It takes a few seconds, and soundfile for the lengths.
"""

import argparse
import hashlib
import io
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.datasets.debian import Package, contents, deb
from benchmarks.datasets.folders import megabytes, write_readme
from benchmarks.datasets.sides import side_of

PACKAGE = Package(
    "klettres-data",
    "4:22.12.3-1",
    "1186d257a19e84230856baea0b0b1ded8be9195080fcdb2588970b5cd937f5a8",
)
FILE = re.compile(r"\./usr/share/klettres/([A-Za-z_]+)/(alpha|syllab)/([^/]+)\.ogg")
VOICES = {
    "train": ("de", "en", "es", "hu", "it", "lt", "nds"),
    "val": ("pt_BR",),
    "test": ("en_GB",),
}
"""Side -> the languages whose files are named after the letters."""
LANGUAGES = {"de": "de", "en": "en", "en_GB": "en", "es": "es", "fr": "fr", "it": "it"}
"""Folder of the package -> class."""
SIDES = {"test": 0.25, "val": 0.15, "train": 0.6}
"""Side -> its share of what is written."""


class Sound(NamedTuple):
    """A recording of a letter or a syllable."""

    folder: str
    text: str
    content: bytes


class Example(NamedTuple):
    """A recording, and its class."""

    label: str
    sound: Sound


def main(arguments: Sequence[str] | None = None) -> int:
    """Take, split, write; print what there is."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path, help="the folder for letters/ and languages/")
    parser.add_argument("--debs", type=Path, help="where the package is, or is put [out/debs]")
    args = parser.parse_args(arguments)
    file = deb(PACKAGE, args.debs or args.out / "debs", Path(__file__))
    sounds = read_sounds(contents(file, FILE))
    write_readme(args.out, __doc__)
    for name, sides in (("letters", letters(sounds)), ("languages", languages(sounds))):
        for side, some in sides.items():
            for label, sound in some:
                path = args.out / name / side / label / f"{sound.folder}-{sound.text}.ogg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(sound.content)
        print("\n".join(f"{name}, {line}" for line in summary(sides)))
    print(f"{args.out}: {megabytes(args.out / 'letters')}, {megabytes(args.out / 'languages')}")
    return 0


def read_sounds(files: Iterable[tuple[str, bytes]]) -> list[Sound]:
    """All of the package, by folder and text, in lower case; of a text that is both a letter and a
    syllable, the letter."""
    sounds: dict[tuple[str, str], Sound] = {}
    for name, content in sorted(files):
        match = FILE.fullmatch(name)
        assert match is not None
        folder, text = match[1], match[3].lower()
        sounds.setdefault((folder, text), Sound(folder, text, content))
    return list(sounds.values())


def letters(sounds: Sequence[Sound]) -> dict[str, list[Example]]:
    """Side -> a to z by its voices."""
    return {
        side: [
            Example(sound.text, sound)
            for sound in sounds
            if sound.folder in folders and re.fullmatch("[a-z]", sound.text)
        ]
        for side, folders in VOICES.items()
    }


def languages(sounds: Sequence[Sound]) -> dict[str, list[Example]]:
    """Side -> the five languages; a text is on one side in all of them."""
    sides: dict[str, list[Example]] = {side: [] for side in ("train", "val", "test")}
    for sound in sounds:
        if sound.folder in LANGUAGES:
            side = side_of(f"klettres {sound.text}", SIDES)
            sides[side].append(Example(LANGUAGES[sound.folder], sound))
    return sides


def summary(sides: Mapping[str, Sequence[Example]]) -> list[str]:
    """What there is on each side, and which recordings are in train too."""
    import soundfile

    lines = []
    for side, some in sides.items():
        counts = Counter(example.label for example in some)
        folders = sorted({example.sound.folder for example in some})
        seconds = sum(soundfile.info(io.BytesIO(one.sound.content)).duration for one in some)
        each = ", ".join(f"{label} {count}" for label, count in sorted(counts.items()))
        lines.append(
            f"{side}: {len(some)} recordings, {seconds / 60:.1f} minutes, of the voices "
            f"{', '.join(folders)}: {each}"
        )
        if side != "train":
            both = digests(some) & digests(sides["train"])
            lines.append(f"{side}: {len(both)} recordings are in train too")
    return lines


def digests(examples: Iterable[Example]) -> set[str]:
    """What tells recordings apart."""
    return {hashlib.sha256(example.sound.content).hexdigest() for example in examples}


if __name__ == "__main__":
    sys.exit(main())
