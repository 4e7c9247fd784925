"""Digits and letters by twenty synthetic voices: wavs with NeMo's manifests, voices unseen.

Sources: the programs espeak-ng 1.51 and flite 2.2 of Debian 12, by the packages in ``voices.txt``,
taken with apt-get and unpacked, not installed. Licences: espeak-ng GPL-3 or later, flite a BSD
licence of Carnegie Mellon University, as /usr/share/doc/PACKAGE/copyright says; what they speak is
not a part of them. Nothing of them is in this repository.

    python benchmarks/datasets/voices.py out/voices

writes wavs/VOICE/NAME.wav (mono, 16 bits, 22,050 Hz of espeak-ng and 16,000 Hz of flite), and for
each side two manifests with {"audio_filepath", "duration", "text"} in a line: words-SIDE.jsonl has
single digits and letters, as "label" too, and SIDE.jsonl has these and rows of two to six. A text
has digits as words and letters as they are: "three b k nine".

Each voice says each of the 36 words four times, slower and faster, higher and lower (flite only
slower and faster), and forty rows, which a hash of the voice's name decides. A side has whole
voices. Those of flite were recorded from people (kal16, slt, awb, rms); those of espeak-ng are one
program with other settings of its throat, so that an unseen one of these is nearer to the others
than another person would be. It takes some minutes.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import wave
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.datasets.debian import deb, read_list
from benchmarks.datasets.folders import megabytes, write_readme

LIST = Path(__file__).with_suffix(".txt")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = {
    **{"a": "ay", "b": "bee", "c": "see", "d": "dee", "e": "ee", "f": "eff", "g": "gee"},
    **{"h": "aitch", "i": "eye", "j": "jay", "k": "kay", "l": "el", "m": "em", "n": "en"},
    **{"o": "oh", "p": "pee", "q": "cue", "r": "are", "s": "ess", "t": "tee", "u": "you"},
    **{"v": "vee", "w": "double-you", "x": "ex", "y": "why", "z": "zee"},
}
WORDS = {**{digit: digit for digit in DIGITS}, **LETTERS}
"""What stands in a text -> how it is spelt for the programs, which might read "a" as an article."""
VOICES = {
    "train": (
        *("flite-kal16", "flite-slt", "en-us", "en-us+m1", "en-us+m3", "en-us+m5", "en-us+m7"),
        *("en-us+f1", "en-us+f2", "en-us+f4", "en-us+klatt2", "en-us+Annie", "en-gb-scotland"),
    ),
    "val": ("flite-awb", "en-us+m4", "en-us+linda"),
    "test": ("flite-rms", "en-us+m6", "en-us+f3", "en-us+Andy"),
}
"""Side -> its voices: of flite, or of espeak-ng a language and a variant (en-gb has
none: its variants sound the same)."""
ROWS, LENGTHS = 40, (2, 6)
"""The rows of a voice, and how many words they have, from and to."""
SPEEDS, PITCHES = (135, 185), (35, 60)
"""Words a minute, and espeak-ng's pitch."""
USUAL = 160
"""Words a minute that are flite's usual speed."""


class Utterance(NamedTuple):
    """What a voice says, and how."""

    name: str
    text: str
    speed: int
    pitch: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Unpack, speak, write; print what there is."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path, help="the folder for the manifests and wavs/")
    parser.add_argument("--debs", type=Path, help="where the packages are, or are put [out/debs]")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        for package in read_list(LIST):
            file = deb(package, args.debs or args.out / "debs", LIST)
            subprocess.run(["dpkg-deb", "-x", file, name], check=True)
        spoken = {
            voice: speak(Path(name), voice, args.out / "wavs" / voice)
            for voices in VOICES.values()
            for voice in voices
        }
    write_readme(args.out, __doc__)
    for side, voices in VOICES.items():
        lines = [line for voice in voices for line in spoken[voice]]
        write(args.out / f"{side}.jsonl", lines)
        single = [{**one, "label": one["text"]} for one in lines if " " not in str(one["text"])]
        write(args.out / f"words-{side}.jsonl", single)
    print("\n".join(summary(args.out)))
    print(f"{args.out / 'wavs'}: {megabytes(args.out / 'wavs')}")
    return 0


def utterances(voice: str) -> list[Utterance]:
    """All that a voice says; the same for the same name."""
    manners = [(speed, pitch) for speed in SPEEDS for pitch in PITCHES]
    every = [
        Utterance(f"{word}-{i}", word, *manner)
        for word in WORDS
        for i, manner in enumerate(manners)
    ]
    rng = np.random.default_rng([*hashlib.sha256(voice.encode()).digest()])
    for number in range(ROWS):
        count = int(rng.integers(LENGTHS[0], LENGTHS[1] + 1))
        text = " ".join(rng.choice([*WORDS], count).tolist())
        every.append(Utterance(f"row-{number:02}", text, *manners[int(rng.integers(len(manners)))]))
    return every


def speak(root: Path, voice: str, folder: Path) -> list[dict[str, str | float]]:
    """Write what a voice says into a folder; the lines of the manifest, whose folder is two up."""
    folder.mkdir(parents=True, exist_ok=True)
    library = root / "usr" / "lib" / "x86_64-linux-gnu"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library)}

    def one(utterance: Utterance) -> dict[str, str | float]:
        file = folder / f"{utterance.name}.wav"
        words = command(voice, utterance, root, file)
        result = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        if result.returncode or not file.exists():
            sys.exit(
                f"{Path(words[0]).name} does not run: {result.stderr.strip()}\n"
                "If it lacks a library of sound: apt-get install libasound2 libpulse0"
            )
        path = f"wavs/{voice}/{file.name}"
        return {"audio_filepath": path, "duration": seconds(file), "text": utterance.text}

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, utterances(voice)))


def command(voice: str, utterance: Utterance, root: Path, file: Path) -> list[str]:
    """How a program is made to say it."""
    text = ", ".join(WORDS[word] for word in utterance.text.split())
    program, _, name = voice.partition("-")
    if program == "flite":
        stretch = USUAL / utterance.speed + (0.05 if utterance.pitch == PITCHES[0] else -0.05)
        manner = ["-voice", name, "--setf", f"duration_stretch={stretch:.3f}"]
        return [f"{root}/usr/bin/flite", *manner, "-t", text, "-o", str(file)]
    manner = ["-v", voice, "-s", str(utterance.speed), "-p", str(utterance.pitch)]
    data = f"--path={root}/usr/lib/x86_64-linux-gnu"
    return [f"{root}/usr/bin/espeak-ng", data, *manner, "-w", str(file), text]


def seconds(file: Path) -> float:
    """How long a wav is."""
    with wave.open(str(file)) as sound:
        return round(sound.getnframes() / sound.getframerate(), 3)


def write(file: Path, lines: Sequence[Mapping[str, str | float]]) -> None:
    """A manifest."""
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def summary(folder: Path) -> list[str]:
    """What there is on each side, and which recordings are on two."""
    lines = []
    sounds: dict[str, set[bytes]] = {}
    for side, voices in VOICES.items():
        rows = [json.loads(line) for line in (folder / f"{side}.jsonl").read_text().splitlines()]
        single = [row for row in rows if " " not in row["text"]]
        counts = Counter(row["text"] for row in single)
        minutes = sum(row["duration"] for row in rows) / 60
        sounds[side] = {
            hashlib.sha256((folder / row["audio_filepath"]).read_bytes()).digest() for row in rows
        }
        lines.append(
            f"{side}: {len(rows):,} recordings, {minutes:.1f} minutes, of {len(voices)} voices "
            f"({', '.join(voices)}): {len(single):,} single words, {len(counts)} different ones, "
            f"each {min(counts.values())} times, and {len(rows) - len(single)} rows; "
            f"{len(sounds[side] & sounds['train']) if side != 'train' else 0} recordings of train"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
