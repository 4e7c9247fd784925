"""Sounds as they might have been: faster or slower, in noise, with parts that are not heard.

Each is a function of a generator of random numbers, so that what a step sees follows from its
number. References: Ko et al. 2015 (speed), Park et al. 2019 (arXiv 1904.08779, SpecAugment, with
the count of time masks growing with the length as in Park et al. 2020, 1912.05533).
"""

import math

import numpy as np
from torch import Tensor

from addnorm.data.audio import Samples, resample

SNR = 5.0, 40.0
"""dB, of the sound above the noise."""
LOUDNESS = 8.0  # dB, up or down
BANDS, FRAMES = 20, 40
"""The most that one mask of SpecAugment hides: bands of 80, and frames, 100 a second."""
MASKS = 2
"""Of the bands, and of the frames in the first two seconds; one more for each two after."""


def at_speed(samples: Samples, speed: float) -> Samples:
    """The same at another speed, to a hundredth, and at another pitch with it."""
    return resample(samples, round(100 * speed), 100)


def in_noise(samples: Samples, rng: np.random.Generator) -> Samples:
    """With noise of a random loudness and colour, from white to one that falls by 6 dB an octave
    (pink is in the middle), and louder or softer as a whole."""
    noise = rng.standard_normal(len(samples))
    spectrum = np.fft.rfft(noise)
    spectrum /= np.arange(1, len(spectrum) + 1) ** rng.uniform(0.0, 1.0)
    noise = np.fft.irfft(spectrum, len(samples))
    level = _root_mean_square(samples) * 10 ** (-rng.uniform(*SNR) / 20)
    gain = 10 ** (rng.uniform(-LOUDNESS, LOUDNESS) / 20)
    noisy = samples + noise * (level / max(_root_mean_square(noise), 1e-12))
    return (gain * noisy).astype(np.float32)


def _root_mean_square(x: np.ndarray) -> float:
    return math.sqrt(float(np.mean(np.square(x, dtype=np.float64))))


def masked(features: Tensor, rng: np.random.Generator) -> Tensor:
    """SpecAugment without warping: some bands, and some stretches of time, are what all of the
    features (mels, frames) are in the mean. At most a fifth of the frames is hidden at once."""
    mels, frames = features.shape
    out, mean = features.clone(), features.mean()
    for _ in range(MASKS):
        width = int(rng.integers(mels * BANDS // 80 + 1))
        first = int(rng.integers(mels - width + 1))
        out[first : first + width] = mean
    for _ in range(MASKS + max(frames - 200, 0) // 200):
        width = int(rng.integers(min(FRAMES, frames // 5) + 1))
        first = int(rng.integers(frames - width + 1))
        out[:, first : first + width] = mean
    return out
