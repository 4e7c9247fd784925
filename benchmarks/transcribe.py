"""What is said in recordings: the recipe ``transcribe`` beside pocketsphinx, on unseen sentences.

    python benchmarks/datasets/asterisk.py out/asterisk
    python benchmarks/datasets/voices.py out/voices
    python benchmarks/transcribe.py out/asterisk --more out/voices/train.jsonl --out out/transcribe

trains the recipe with each seed on train, and on what ``--more`` names, takes the model that is
best on val, and has it write down test: by the best row of frames, by prefix beams, and by beams
beside a language model of characters, which is learned from the texts of train; how much that
counts is what is best on val. WER and CER are those of ``addnorm eval``, over all sentences
together. Beside it stands pocketsphinx with the acoustic model, the dictionary and the language
model of American English that it brings (pip install pocketsphinx), which has never heard this
voice, nor read these sentences. Intervals of 95 % are by the bootstrap over sentences and seeds.
What is done is kept in OUT, and a second call goes on from there.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from addnorm import load
from addnorm.data.recordings import HeardSound, read_recordings, read_sounds
from addnorm.progress import ProgressBar
from addnorm.tasks.recipes import char_cpu, transcribe
from addnorm.training.config import Config
from addnorm.uses.edits import edits
from addnorm.uses.transcription import Transcription
from addnorm.uses.transcription_scores import plain
from benchmarks.intervals import Interval, ratio
from benchmarks.results import Results
from benchmarks.trainings import minutes, whole_run

SETTINGS = {"threads": "1"}
LANGUAGE = {
    "model.dim": "96",
    "model.n_layers": "2",
    "steps": "600",
    "eval_every": "100",
    "threads": "1",
}
WEIGHTS = (0.2, 0.4, 0.7)
"""Of the language model."""
BATCH = 16


class Counts(NamedTuple):
    """Of each sentence: how many words and letters are wrong, and how many there are."""

    wrong_words: list[int]
    words: list[int]
    wrong_letters: list[int]
    letters: list[int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Learn what is not learned yet, write down the test, and print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path, help="a folder with train, val and test")
    parser.add_argument("--more", nargs="*", default=[], help="more recordings to learn from")
    parser.add_argument("--out", type=Path, required=True, help="where all that is done is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", nargs="*", default=[], help="settings, key=value")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    changes = dict(word.split("=", 1) for word in args.set)
    train = manifest([str(args.data / "train"), *args.more], args.out / "train.jsonl")
    results = Results(args.out / "results.json")
    sides = {side: read_sounds(read_recordings(args.data / side).rows)[0] for side in SIDES}
    references = [plain(sound.row.text) for sound in sides["test"]]
    results.measured("pocketsphinx", lambda: sphinx(sides["test"]))
    whole_run(language(args.data, args.out), args.out / "language")
    for seed in args.seeds:
        out = args.out / f"seed{seed}"
        whole_run(recognizer(train, args.data, changes, seed), out)
        for name, texts in transcripts(out, args.out / "language", sides).items():
            results.measured(f"{name}, seed {seed}", lambda texts=texts: texts)
    spent = [minutes(args.out / f"seed{seed}") for seed in args.seeds]
    print(table(results.content, references, args.seeds, spent))
    return 0


SIDES = ("val", "test")


def manifest(places: Sequence[str], file: Path) -> Path:
    """All recordings of these places, in one list."""
    rows = [row for place in places for row in read_recordings(place).rows]
    lines = (
        {"audio_filepath": str(row.file.resolve()), "text": row.text}
        | ({"offset": row.start, "duration": row.length} if row.start or row.length else {})
        for row in rows
    )
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return file


def recognizer(train: Path, data: Path, changes: Mapping[str, str], seed: int) -> Config:
    """The recipe."""
    files = {"data": str(train), "val_data": str(data / "val"), "seed": seed}
    return transcribe().changed(SETTINGS, files, changes)


def language(data: Path, out: Path) -> Config:
    """A model of the characters of what is said in train, a sentence a line."""
    texts = [plain(row.text) for row in read_recordings(data / "train").rows]
    file = out / "sentences.txt"
    file.write_text("\n".join(["", *texts, ""]), encoding="utf-8")
    return char_cpu().changed(LANGUAGE, {"data": str(file)})


def transcripts(
    run: Path, lm: Path, sides: Mapping[str, Sequence[HeardSound]]
) -> dict[str, list[str]]:
    """Way of searching -> what a run hears in test."""
    loaded, lm_loaded = load(run), load(lm)
    use = loaded.use()
    assert isinstance(use, Transcription)
    references = [plain(sound.row.text) for sound in sides["val"]]

    def hearing(side: str, **options: Any) -> list[str]:
        """The texts of a side."""
        sounds = [use.as_heard("", sound.sound.samples).features for sound in sides[side]]
        with ProgressBar(hidden=True) as bar:
            return use.transcripts(sounds, use.with_defaults(options), BATCH, bar)

    def errors(weight: float) -> int:
        """Words of val that are wrong with the language model of this weight."""
        return sum(counts(hearing("val", lm=lm_loaded, lm_weight=weight), references).wrong_words)

    best = min(WEIGHTS, key=errors)
    return {
        "best row": hearing("test", beams=1),
        "beams": hearing("test"),
        "beams and language model": hearing("test", lm=lm_loaded, lm_weight=best),
    }


def sphinx(sounds: Sequence[HeardSound]) -> list[str]:
    """What pocketsphinx hears, with the models that it brings."""
    from pocketsphinx import Decoder

    texts = []
    for sound in sounds:
        decoder = Decoder(samprate=16000, loglevel="FATAL")
        values = (np.asarray(sound.sound.samples).clip(-1, 1) * 32767).astype("<i2")
        decoder.start_utt()
        decoder.process_raw(values.tobytes(), full_utt=True)
        decoder.end_utt()
        hypothesis = decoder.hyp()
        texts.append("" if hypothesis is None else plain(hypothesis.hypstr))
    return texts


def counts(outputs: Sequence[str], references: Sequence[str]) -> Counts:
    """Sentence by sentence; both are plain texts."""
    pairs = list(zip(map(plain, outputs), references, strict=True))
    return Counts(
        [edits(a.split(), b.split()) for a, b in pairs],
        [len(b.split()) for _, b in pairs],
        [edits(a, b) for a, b in pairs],
        [len(b) for _, b in pairs],
    )


def table(
    content: Mapping[str, list[str]],
    references: Sequence[str],
    seeds: Sequence[int],
    spent: Sequence[float],
) -> str:
    """The rates with their intervals, as Markdown."""
    lines = [
        f"{len(references):,} sentences, {sum(len(r.split()) for r in references):,} words; "
        f"{len(seeds)} seeds, {statistics.mean(spent):.1f} minutes each",
        "",
        "| | WER | CER |",
        "|---|---|---|",
    ]
    for name in ("best row", "beams", "beams and language model"):
        runs = [content[f"{name}, seed {seed}"] for seed in seeds]
        lines.append(f"| the recipe `transcribe`, {name} | {rates(runs, references)} |")
    lines.append(f"| pocketsphinx | {rates([content['pocketsphinx']], references)} |")
    return "\n".join(lines)


def rates(runs: Sequence[Sequence[str]], references: Sequence[str]) -> str:
    """Word and character error rate of some seeds, in cells."""
    every = [counts(texts, references) for texts in runs]
    words = ratio(np.array([c.wrong_words for c in every], float), np.array(every[0].words, float))
    letters = ratio(
        np.array([c.wrong_letters for c in every], float), np.array(every[0].letters, float)
    )
    return f"{in_words(words)} | {in_words(letters)}"


def in_words(rate: Interval) -> str:
    """A rate with its interval."""
    return f"{rate.mean:.1%} [{rate.low:.1%}, {rate.high:.1%}]"


if __name__ == "__main__":
    sys.exit(main())
