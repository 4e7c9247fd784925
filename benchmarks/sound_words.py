"""Single words by MFCC and a support vector machine: beside which sounds are classified.

    python benchmarks/datasets/klettres.py out/klettres
    python benchmarks/sound_words.py out/klettres/letters --out out/sound_words.json
    python benchmarks/sound_words.py out/voices --names words-{}.jsonl

Of each sound the 13 mel cepstral coefficients, without silence at the ends, are averaged over equal
parts of its length, as are their differences from part to part, and their deviation over the
whole. Numbers are scaled to the same spread; the kernel is a Gaussian. How many parts, the penalty
C and the kernel's width are those that are right for most of val; test is asked once.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from addnorm.data.audio import log_mel
from addnorm.data.recordings import read_labelled_sounds, read_sounds
from benchmarks.baselines import SIDES, Candidate, Rows, best

COEFFICIENTS = 13
QUIET = 0.3
"""Of the span from the quietest to the loudest frame, what counts as silence at the ends."""
PARTS = (3, 5, 8)
STRENGTHS = (1.0, 10.0, 100.0)
WIDTHS = (0.3, 1.0, 3.0)
"""Of the kernel, as shares of scikit-learn's gamma=scale."""

Frames = NDArray[np.float64]  # (frames, coefficients)


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune on val, ask test once, print both."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("data", type=Path, help="a folder with the three sides")
    parser.add_argument("--names", default="{}", help="of a side's folder or manifest in it [{}]")
    parser.add_argument("--out", type=Path, help="a json for the figures")
    args = parser.parse_args(arguments)
    frames, sides = {}, {}
    for side in SIDES:
        rows = read_labelled_sounds(args.data / args.names.format(side)).rows
        sounds, remarks = read_sounds(rows)
        print("\n".join(f"{side}: {remark}" for remark in remarks), end="\n" if remarks else "")
        frames[side] = [cepstrum(np.asarray(one.sound.samples)) for one in sounds]
        labels = [one.row.text for one in sounds]
        sides[side] = Rows([str(one.row.file) for one in sounds], labels, labels)
    entry = best(candidates(frames), sides)
    right = [a == b for a, b in zip(entry["answers"], sides["test"].labels, strict=True)]
    entry["test"] = sum(right) / len(right)
    print(f"{entry['what']}: {entry['val']:.2%} of val, {entry['test']:.2%} of test")
    if args.out:
        args.out.write_text(json.dumps(entry, ensure_ascii=False, indent=1) + "\n")
    return 0


def candidates(frames: dict[str, list[Frames]]) -> Iterator[Candidate]:
    """All settings."""
    for count in PARTS:
        tables = [np.stack([pooled(one, count) for one in frames[side]]) for side in SIDES]
        for strength in STRENGTHS:
            for width in WIDTHS:
                gamma = width / tables[0].shape[1]  # as "scale" is after the scaling
                model = make_pipeline(StandardScaler(), SVC(C=strength, gamma=gamma))
                what = f"MFCC in {count} parts, SVM, C {strength:g}, width {width:g}"
                yield Candidate(what, model, (tables[0], tables[1], tables[2]))


def cepstrum(wave: NDArray[Any]) -> Frames:
    """The mel cepstrum of a sound at 16 kHz, from the first frame that is loud to the last."""
    mels = log_mel(wave.astype(np.float32)).numpy().T.astype(np.float64)  # (frames, mels)
    loudness = mels.mean(axis=1)
    span = loudness.max() - loudness.min()
    loud = np.flatnonzero(loudness >= loudness.min() + QUIET * span)
    values = dct(mels[loud[0] : loud[-1] + 1], type=2, axis=1, norm="ortho")
    return np.asarray(values[:, :COEFFICIENTS], dtype=np.float64)


def pooled(frames: Frames, count: int) -> NDArray[np.float64]:
    """One row: means over ``count`` parts, their differences, the deviation over the whole."""
    ends = np.linspace(0, len(frames), count + 1)
    means = np.stack(
        [
            frames[min(int(a), len(frames) - 1) : max(int(b), int(a) + 1)].mean(axis=0)
            for a, b in pairwise(ends)
        ]
    )
    rows = [means.ravel(), np.diff(means, axis=0).ravel(), frames.std(axis=0)]
    return np.concatenate(rows)


if __name__ == "__main__":
    sys.exit(main())
