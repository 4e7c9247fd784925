"""Recordings for tests: a letter is a tone, a space is silence, a text one after the other."""

from pathlib import Path

import numpy as np

from addnorm.data.audio import Samples, write_wav

TONES = {"a": 500.0, "b": 900.0, "c": 1600.0, "d": 2800.0}
SECONDS = 0.14  # of a letter


def spoken(text: str, rate: int = 16_000, seed: int = 0) -> Samples:
    rng = np.random.default_rng([seed, *text.encode()])
    t = np.arange(round(rate * SECONDS)) / rate
    fade = np.minimum(1, np.minimum(t, t[::-1]) / 0.02)
    parts = [0.3 * np.sin(2 * np.pi * TONES.get(c, 0.0) * t) * fade for c in text]
    whole = np.concatenate(parts)
    return (whole + 0.003 * rng.standard_normal(len(whole))).astype(np.float32)


def texts(count: int, seed: int = 0) -> list[str]:
    """Of two or three words, each other than the others."""
    rng = np.random.default_rng(seed)
    some: dict[str, None] = {}
    while len(some) < count:
        words = ["".join(rng.choice(list("abcd"), rng.integers(1, 4))) for _ in range(2)]
        some[" ".join(words)] = None
    return list(some)


def ljspeech(folder: Path, lines: list[str], rate: int = 16_000) -> Path:
    (folder / "wavs").mkdir(parents=True)
    for i, text in enumerate(lines):
        write_wav(folder / "wavs" / f"r{i}.wav", spoken(text, rate), rate)
    table = "\n".join(f"r{i}|{text.upper()}.|{text}" for i, text in enumerate(lines))
    (folder / "metadata.csv").write_text(table)
    return folder
