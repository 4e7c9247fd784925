"""Sounds as they might have been: speed, noise, SpecAugment, each a function of its generator."""

import numpy as np
import torch

from addnorm.data.audio_augment import BANDS, FRAMES, at_speed, in_noise, masked


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


TONE = (0.3 * np.sin(2 * np.pi * 500 * np.arange(8_000) / 16_000)).astype(np.float32)


def test_a_faster_sound_is_shorter_and_higher() -> None:
    for speed in (0.9, 1.1):
        out = at_speed(TONE, speed)
        assert abs(len(out) - 8_000 / speed) <= 1
        peak = np.abs(np.fft.rfft(out)).argmax() * 16_000 / len(out)
        assert abs(peak - 500 * speed) < 4


def test_noise_is_as_loud_as_its_range_says_and_follows_from_the_seed() -> None:
    ratios = []
    for seed in range(30):
        out = in_noise(TONE, rng(seed))
        assert np.array_equal(out, in_noise(TONE, rng(seed)))
        gain = np.dot(out, TONE) / np.dot(TONE, TONE)
        rest = out / gain - TONE
        ratios.append(10 * np.log10(np.mean(TONE**2) / np.mean(rest**2)))
        assert -8.5 < 20 * np.log10(gain) < 8.5
    assert 4 < min(ratios) < 15
    assert 30 < max(ratios) < 41


def test_masks_hide_bands_and_stretches_behind_the_mean() -> None:
    x = torch.randn(80, 500)
    counts = []
    for seed in range(20):
        out = masked(x, rng(seed))
        assert torch.equal(out, masked(x, rng(seed)))
        hidden = out != x
        assert bool((out[hidden] == x.mean()).all())
        bands, frames = hidden.all(1).sum(), hidden.all(0).sum()
        assert bands <= 2 * BANDS
        assert frames <= 3 * FRAMES
        counts.append(int(hidden.sum()))
    assert max(counts) > 0.2 * x.numel()
    assert masked(x[:, :3], rng(1)).shape == (80, 3)
