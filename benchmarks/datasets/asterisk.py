"""What a telephone exchange says, by one voice a language: recordings with their texts.

Sources: the Debian 12 packages in ``asterisk.txt``, taken with apt-get at the versions and with the
SHA-256 there: the core sounds of Asterisk 1.6.1 as wav (mono, 8 kHz, 16 bits), and their texts.
Licence: Creative Commons BY-SA 3.0, and BY 3.0 for it and ru; voices: Allison Smith (en, es), June
Wallack (fr), Carlo Flora (it), Maxim Topal (ru), as /usr/share/doc/PACKAGE/copyright of each says.
Nothing of them is in this repository, and what this script writes is under the same licences.

    python benchmarks/datasets/asterisk.py out/asterisk
    python benchmarks/datasets/asterisk.py out/asterisk-fr --language fr

writes train/, val/ and test/, each in LJSpeech's form: wavs/NAME.wav, and metadata.csv with
NAME|text|spoken in a line. ``text`` is what the package says, without remarks in brackets;
``spoken`` is that in lower case, with digits and the keys * and # as words and without punctuation:
what a recognizer has to write. Digits of a number are said one by one.

A side has whole groups of sentences, which a hash decides: the same sentence is never on two sides,
nor two of which half of the shorter one's runs of five words stand in the other. A single word or
letter is for learning, since nobody can know one that was never heard; so is a group of more than
ten. Left out, by name in what this script prints: tones, noises and silence; recordings that no
text goes with; texts that leave open what was said; recordings of more than 30 seconds. Since all
sides have the same voice, what is measured is unseen sentences, not unseen voices. It takes a few
seconds.
"""

import argparse
import gzip
import io
import re
import sys
import wave
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.datasets.debian import contents, deb, read_list
from benchmarks.datasets.folders import megabytes, write_readme
from benchmarks.datasets.groups import connected
from benchmarks.datasets.shared_runs import runs, runs_of_all, shared
from benchmarks.datasets.sides import side_of

LIST = Path(__file__).with_suffix(".txt")
SIDES = {"test": 0.2, "val": 0.1, "train": 0.7}
"""Side -> its share of the groups of sentences with two words or more."""
NEAR = 0.5
"""The share of the shorter sentence's runs from which on two are near-duplicates."""
CROWD = 10
"""Sentences of a group from which on it is not held out: it would be much of what is measured."""
LONGEST = 30.0
"""Seconds."""
KEYS = {  # 0 to 9, * and #
    "en": "zero one two three four five six seven eight nine star pound",
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve asterisco número",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf étoile dièse",
    "it": "zero uno due tre quattro cinque sei sette otto nove asterisco cancelletto",
    "ru": "ноль один два три четыре пять шесть семь восемь девять звёздочка решётка",
}
SLIPS = {
    "en": {
        "exclaimation-point": "exclamation point",
        "umute": "unmute",
        "represenatives": "representatives",
        "Un-indentified or witheld": "Unidentified or withheld",
    }
}
"""Language -> what is misspelt in its texts, and how it is spelt."""
REMARK = re.compile(r"\([^)]*\)|<[^>]*>|\[\W*\]")
DOUBT = re.compile(r"[\[\]\ufffd]|\w\? +[^\W\d_A-ZÀ-ÞА-Я]|\w\?\w")
"""A word that may be spoken or not, or a letter that was lost and stands as a question mark."""
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


class Recording(NamedTuple):
    """A file of sound, and what it says."""

    name: str
    text: str
    spoken: str
    sound: bytes
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Take, clean, split, write; print what there is."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path, help="the folder for train/, val/ and test/")
    parser.add_argument("--language", choices=KEYS, default="en", help="[en]")
    parser.add_argument("--debs", type=Path, help="where the packages are, or are put [out/debs]")
    args = parser.parse_args(arguments)
    packages = {package.name: package for package in read_list(LIST)}
    name = f"asterisk-core-sounds-{args.language}"
    files = [deb(packages[n], args.debs or args.out / "debs", LIST) for n in (name, f"{name}-wav")]
    texts = read_texts(files[0], args.language)
    recordings, rest = clean(read_sounds(files[1]), texts, args.language)
    sides = split(recordings)
    write_readme(args.out, __doc__)
    for side, some in sides.items():
        write(args.out / side, some)
        print(f"{args.out / side}: {megabytes(args.out / side)}")
    print("\n".join(summary(sides, rest)))
    return 0


# --- from the packages to recordings --------------------------------------------------------------


def read_texts(file: Path, language: str) -> dict[str, str]:
    """Name of a recording, in lower case -> what it says; a line is ``name: text``, or begins with
    a semicolon as a remark."""
    pattern = re.compile(rf".*/core-sounds-{language}\.txt\.gz")
    ((_, content),) = contents(file, pattern)
    texts = {}
    for line in gzip.decompress(content).decode("utf-8-sig").splitlines():
        name, colon, text = line.partition(":")
        if colon and not line.startswith(";"):
            texts[name.strip().lower()] = " ".join(text.split()).removeprefix(f"{name}: ")
    return texts


def read_sounds(file: Path) -> dict[str, bytes]:
    """Name of a recording, such as digits/1 -> the content of its wav."""
    pattern = re.compile(r".*/sounds/[^/]+/.*\.wav")
    return {
        name.split("/sounds/")[1].partition("/")[2].removesuffix(".wav"): content
        for name, content in sorted(contents(file, pattern))
    }


def clean(
    sounds: Mapping[str, bytes], texts: Mapping[str, str], language: str
) -> tuple[list[Recording], dict[str, list[str]]]:
    """Those that say what their text says; and why others are left out -> their names."""
    recordings = []
    rest: dict[str, list[str]] = defaultdict(list)
    for name, sound in sounds.items():
        text = without_remarks(texts.get(name.lower(), ""))
        for slip, word in SLIPS.get(language, {}).items():
            text = text.replace(slip, word)
        seconds = length(sound)
        if not texts.get(name.lower()):
            rest["no text goes with it"].append(name)
        elif not (words := spoken(text, language)):
            rest["a tone, a noise or silence"].append(name)
        elif DOUBT.search(text):
            rest["the text leaves open what was said"].append(name)
        elif seconds > LONGEST:
            rest[f"longer than {LONGEST:g} s"].append(name)
        else:
            recordings.append(Recording(name.replace("/", "-"), text, words, sound, seconds))
    return recordings, dict(rest)


def without_remarks(text: str) -> str:
    """What is spoken of a text; nothing, if all of it is a remark."""
    text = " ".join(REMARK.sub(" ", text).replace("|", " ").split())
    return "" if re.fullmatch(r"\[[^\]]*\]", text) else text


def spoken(text: str, language: str) -> str:
    """The words, in lower case, with a space between them."""
    for sign, word in zip("0123456789*#", KEYS[language].split(), strict=True):
        text = text.replace(sign, f" {word} ")
    return " ".join(WORD.findall(text.lower().replace("\u2019", "'")))


def length(sound: bytes) -> float:
    """Seconds of a wav."""
    with wave.open(io.BytesIO(sound)) as file:
        return file.getnframes() / file.getframerate()


# --- from recordings to sides ---------------------------------------------------------------------


def split(recordings: Sequence[Recording]) -> dict[str, list[Recording]]:
    """Side -> its recordings, by name; sentences that are nearly the same are on one side."""
    sides: dict[str, list[Recording]] = {side: [] for side in ("train", "val", "test")}
    rows = sorted(recordings)
    for group in connected(len(rows), near([row.spoken for row in rows])):
        some = [rows[i] for i in group]
        single = any(len(row.spoken.split()) == 1 for row in some)
        key = min(row.spoken for row in some)
        sides["train" if single or len(some) > CROWD else side_of(key, SIDES)] += some
    return {side: sorted(some) for side, some in sides.items()}


def near(sentences: Sequence[str]) -> list[tuple[int, int]]:
    """(i, j), i < j: sentences that are the same, or share half of the shorter one's runs."""
    own = [runs(tuple(sentence.split())) or {sentence} for sentence in sentences]
    return [
        (i, j)
        for j in range(len(own))
        for i in range(j)
        if len(own[i] & own[j]) >= NEAR * min(len(own[i]), len(own[j]))
    ]


def write(folder: Path, recordings: Iterable[Recording]) -> None:
    """A folder in LJSpeech's form."""
    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    lines = []
    for row in recordings:
        (folder / "wavs" / f"{row.name}.wav").write_bytes(row.sound)
        lines.append(f"{row.name}|{row.text}|{row.spoken}\n")
    (folder / "metadata.csv").write_text("".join(lines), encoding="utf-8")


def summary(
    sides: Mapping[str, Sequence[Recording]], rest: Mapping[str, Sequence[str]]
) -> list[str]:
    """What there is on each side, what the others share with train, and what is left out."""
    lines = []
    vocabulary = {word for row in sides["train"] for word in row.spoken.split()}
    learned = runs_of_all(tuple(row.spoken.split()) for row in sides["train"])
    for side, some in sides.items():
        words = [word for row in some for word in row.spoken.split()]
        lines.append(
            f"{side}: {len(some)} recordings, {sum(row.seconds for row in some) / 60:.1f} minutes, "
            f"{len(words):,} words, {len(set(words)):,} different ones"
        )
        if side != "train":
            new = sum(word not in vocabulary for word in words)
            part = shared(runs_of_all(tuple(row.spoken.split()) for row in some), learned)
            same = {row.spoken for row in some} & {row.spoken for row in sides["train"]}
            lines.append(
                f"  {len(same)} of its sentences are in train, of its runs of five words "
                f"{part.share:.1%}; {new} of its words are not ({new / max(len(words), 1):.1%})"
            )
    for reason, names in rest.items():
        lines.append(f"left out, {reason}: {len(names)} ({', '.join(names)})")
    return lines


if __name__ == "__main__":
    sys.exit(main())
