"""MFCC and a support vector machine, on tones."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.fft import dct

from addnorm.data.audio import log_mel, write_wav
from benchmarks import sound_words
from benchmarks.sound_words import cepstrum, pooled

RATE = 16000


def tone(pitch: float, seed: int = 0, silence: float = 0.0) -> np.ndarray:
    """Half a second with overtones and a little noise, and silence before and after."""
    time = np.arange(RATE // 2) / RATE
    wave = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in (1, 2, 3)) / 4
    wave = wave + np.random.default_rng(seed).normal(0, 0.01, len(time))
    rest = np.zeros(int(silence * RATE))
    return np.concatenate([rest, wave, rest]).astype(np.float32)


def test_the_cepstrum_is_that_of_the_mels_without_silence() -> None:
    wave = tone(300)
    frames = cepstrum(wave)
    assert frames.shape[1] == 13
    mels = log_mel(wave).numpy().T
    whole = dct(mels.astype(float), type=2, axis=1, norm="ortho")[:, :13]
    np.testing.assert_allclose(frames, whole[: len(frames)], atol=1e-5)
    longer = cepstrum(tone(300, silence=0.4))
    assert abs(len(longer) - len(frames)) <= 4, "silence at the ends does not count"
    assert cepstrum(np.zeros(400, np.float32)).shape[1] == 13


def test_a_row_has_means_differences_and_deviation() -> None:
    frames = np.arange(24.0).reshape(8, 3)
    row = pooled(frames, 2)
    means = [frames[:4].mean(axis=0), frames[4:].mean(axis=0)]
    expected = np.concatenate([*means, means[1] - means[0], frames.std(axis=0)])
    np.testing.assert_allclose(row, expected)
    assert pooled(frames[:1], 5).shape == (3 * 10,), "fewer frames than parts"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound_words, "PARTS", (2,))
    monkeypatch.setattr(sound_words, "STRENGTHS", (10.0,))
    for i, (side, count) in enumerate((("train", 4), ("val", 2), ("test", 2))):
        for label, pitch in (("low", 200.0), ("high", 700.0)):
            (tmp_path / side / label).mkdir(parents=True)
            for number in range(count):
                wave = tone(pitch * (1 + 0.02 * number), 10 * i + number, 0.1 * number)
                write_wav(tmp_path / side / label / f"{number}.wav", wave, RATE)
    assert sound_words.main([str(tmp_path), "--out", str(tmp_path / "x.json")]) == 0
    table = json.loads((tmp_path / "x.json").read_text())
    assert table["test"] == 1
    assert table["answers"] == ["high", "high", "low", "low"]
