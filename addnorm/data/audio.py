"""Sound: files of any rate as one channel of numbers, and what is heard in them at each moment.

Plain 16-bit wav is read by the standard library, all other formats by soundfile, an extra. A file
becomes one channel at the rate that is asked for; whatever is done to it on the way is told.

The mel scale is Slaney's (Auditory Toolbox, 1998): linear to 1 kHz, logarithmic above; a filter is
a triangle on it, of area 1. ``log_mel`` is Whisper's (Radford et al. 2022, arXiv 2212.04356).
"""

import math
import wave
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from addnorm import reading
from addnorm.data.sources import DataError
from addnorm.errors import Mendable
from addnorm.words import a_few, error_in_a_line, plural

EXTRA = "needs soundfile to be read: pip install 'addnorm[audio]'"
RATE = 16_000
"""Samples a second that speech is read at, as by most recognizers."""
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au")
"""What the names of files of sound end with."""
FULL = 0.9999
"""The largest that a sample is; more at once than a share ``CLIPPED`` of all are cut off."""
CLIPPED = 1e-3
SILENT = 1e-4  # of the full scale, -80 dB: below it all over, nothing can be heard
ZEROS, ROLLOFF = 12, 0.95
"""Of the filter of ``resample``: zero crossings on either side, and the share of the band that
passes."""

Samples = NDArray[np.float32]
"""One channel, between -1 and 1."""


class Sound(NamedTuple):
    """One channel of a file, and what was done to get it."""

    samples: Samples
    rate: int
    """Of the samples, in a second."""
    remarks: tuple[str, ...] = ()
    """What is odd about the file, or was changed, as words that follow its name: ``was resampled
    from 8,000 Hz``."""

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate


# --- files ----------------------------------------------------------------------------------------


def read_sound(file: Path, rate: int = RATE, start: float = 0.0, length: float = 0.0) -> Sound:
    """A file of sound at ``rate``: channels are mixed into one, in equal shares, and another rate
    is resampled; both are told, and so is what is clipped or cut short.

    ``start`` and ``length`` choose a part of it, in seconds; a length of 0 is all that follows.
    A ``DataError`` where there is nothing to be heard: no file, none of a known format, no sample,
    silence, a value that is no number.
    """
    remarks = []
    if plain := _plain_wav(file):
        channels, own_rate, missing = plain
        if missing:
            remarks.append("is cut short")
    else:
        channels, own_rate = _by_soundfile(file)
    first = round(start * own_rate)
    channels = channels[first : first + round(length * own_rate) if length else None]
    if not len(channels):
        raise DataError(f"{file} has no sound{f' after {start:g} seconds' if start else ''}")
    if not np.isfinite(channels).all():
        raise DataError(f"{file} holds values that are no numbers: it is damaged")
    if np.abs(channels).max() < SILENT:
        raise DataError(f"{file} is silent")
    if (np.abs(channels) >= FULL).mean() > CLIPPED:
        remarks.append("is clipped")
    if channels.shape[1] > 1:
        remarks.append(f"had {channels.shape[1]} channels mixed into one")
    samples = channels.mean(1, dtype=np.float32)
    if own_rate != rate:
        remarks.append(f"was resampled from {own_rate:,} Hz")
        samples = resample(samples, own_rate, rate)
    return Sound(samples, rate, tuple(remarks))


def is_sound(file: Path) -> bool:
    """Whether a name ends as those of files of sound do."""
    return file.suffix.lower() in SUFFIXES


def remarks_on(sounds: Iterable[tuple[Path, Sound]]) -> list[str]:
    """What is odd about files, in sentences: how many, and the names of the first of them."""
    by_remark: dict[str, list[str]] = {}
    for file, sound in sounds:
        for remark in sound.remarks:
            by_remark.setdefault(remark, []).append(file.name)
    sentences = []
    for remark, names in by_remark.items():
        verb, rest = remark.split(" ", 1)
        verb = verb if len(names) == 1 else {"is": "are", "was": "were"}.get(verb, verb)
        sentences.append(f"{plural(len(names), 'file')} {verb} {rest} ({a_few(names)})")
    return sentences


def _plain_wav(file: Path) -> tuple[Samples, int, int] | None:
    """(samples (n, channels), rate, how many the file promises and does not hold) of a wav of 16
    bits; None: it is something else."""
    with reading.system_errors(file, DataError):
        try:
            with wave.open(str(file), "rb") as stream:
                if stream.getsampwidth() != 2:
                    return None
                channels, rate, promised = (
                    stream.getnchannels(),
                    stream.getframerate(),
                    stream.getnframes(),
                )
                data = stream.readframes(promised)
        except (wave.Error, EOFError):
            return None
    count = len(data) // (2 * channels)
    values = np.frombuffer(data, "<i2", count * channels).astype(np.float32) / np.float32(32768)
    return values.reshape(count, channels), rate, promised - count


def _by_soundfile(file: Path) -> tuple[Samples, int]:
    """(samples (n, channels), rate) of any format that soundfile knows; else a ``DataError``."""
    try:
        library = import_module("soundfile")
    except ImportError:
        raise DataError(f"{file} is no wav of 16 bits, and {EXTRA}") from None
    try:
        samples, rate = library.read(file, dtype="float32", always_2d=True)
    except (library.LibsndfileError, RuntimeError, OSError, TypeError) as error:
        raise DataError(f"{file} is no sound that can be read: {error_in_a_line(error)}") from None
    return samples, int(rate)


def write_wav(file: Path, samples: Samples | Tensor, rate: int) -> None:
    """Write one channel as a wav of 16 bits; what is beyond -1 and 1 is clipped."""
    values = np.asarray(samples, np.float32).clip(-1.0, 1.0)
    with reading.system_errors(file, Mendable, "write"), wave.open(str(file), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(rate)
        stream.writeframes((values * 32767).round().astype("<i2").tobytes())


# --- rates ----------------------------------------------------------------------------------------


def resample(samples: Samples, old: int, new: int) -> Samples:
    """The same sound at another rate, as many seconds long.

    Band-limited interpolation (Smith & Gossett 1984): each new sample is the sum of those around
    it, weighted by a sinc under a Hann window, which cuts off what the lower of the two rates
    cannot hold. The weights repeat after new / gcd(old, new) samples.
    """
    if old == new:
        return samples
    divisor = math.gcd(old, new)
    old, new = old // divisor, new // divisor
    count = -(-len(samples) * new // old)
    cutoff = ROLLOFF * min(old, new) / old  # of the old band
    reach = math.ceil(ZEROS / cutoff)
    around = np.arange(-reach, reach + 1)
    padded = np.pad(samples, (reach, reach + old))
    views = np.lib.stride_tricks.sliding_window_view(padded, len(around))
    out = np.empty(count, np.float32)
    for phase in range(min(new, count)):
        place, rest = divmod(phase * old, new)
        t = (around - rest / new) * cutoff  # in zero crossings
        weights = np.sinc(t) * np.cos(np.pi / 2 * t / (reach * cutoff + cutoff)) ** 2 * cutoff
        of_phase = views[place::old][: len(out[phase::new])]
        out[phase::new] = of_phase @ weights.astype(np.float32)
    return out


# --- what is heard --------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class MelFront:
    """Energies by bands of pitch, moment by moment.

    ``rate``: samples a second.
    ``n_mels``: bands.
    ``window``: samples of one moment, under a Hann window.
    ``hop``: samples from one moment to the next.
    ``low``, ``high``: Hz, from where to where the bands reach.
    """

    rate: int = RATE
    n_mels: int = 80
    window: int = 400
    hop: int = 160
    low: float = 0.0
    high: float = 8000.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= self.rate / 2:
            raise Mendable(
                f"the bands reach from {self.low:g} to {self.high:g} Hz: they must lie between 0 "
                f"and half the rate, {self.rate / 2:g}"
            )

    def filters(self) -> Tensor:
        """(n_mels, window // 2 + 1): how much each band takes of each frequency."""
        return _filters(self)

    def spectrum(self, samples: Samples | Tensor) -> Tensor:
        """Complex amplitudes, (window // 2 + 1, frames): one frame each ``hop`` samples from the
        first on, so that there are 1 + samples // hop, the sound mirrored at its ends."""
        x = torch.as_tensor(samples, dtype=torch.float32)
        if len(x) <= self.window // 2:  # too short to be mirrored
            x = torch.nn.functional.pad(x, (0, self.window // 2 + 1 - len(x)))
        hann = torch.hann_window(self.window)
        return torch.stft(x, self.window, self.hop, window=hann, return_complex=True)

    def energies(self, samples: Samples | Tensor, power: float = 2.0) -> Tensor:
        """(n_mels, frames) of |amplitude| ** power, summed by the bands."""
        return self.filters() @ self.spectrum(samples).abs() ** power


@cache
def _filters(front: MelFront) -> Tensor:
    """The triangles of a front, each of area 1 in Hz."""
    edges = _hz(np.linspace(_mel(front.low), _mel(front.high), front.n_mels + 2))
    frequencies = np.linspace(0.0, front.rate / 2, front.window // 2 + 1)
    widths = np.diff(edges)
    slopes = edges[:, None] - frequencies  # (n_mels + 2, frequencies)
    up, down = -slopes[:-2] / widths[:-1, None], slopes[2:] / widths[1:, None]
    areas = 2.0 / (edges[2:] - edges[:-2])
    triangles = np.maximum(0.0, np.minimum(up, down)) * areas[:, None]
    return torch.from_numpy(triangles.astype(np.float32))


LINEAR = 3 / 200  # mels a Hz below BREAK
BREAK = 1000.0  # Hz
OCTAVE = math.log(6.4) / 27  # of a mel above


def _mel(hz: float) -> float:
    """A frequency on Slaney's scale."""
    return hz * LINEAR if hz < BREAK else BREAK * LINEAR + math.log(hz / BREAK) / OCTAVE


def _hz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    """The frequencies of places on Slaney's scale."""
    above = BREAK * np.exp(OCTAVE * (mels - BREAK * LINEAR))
    return np.where(mels < BREAK * LINEAR, mels / LINEAR, above)


def log_mel(wave: Samples | Tensor, n_mels: int = 80) -> Tensor:
    """Whisper's features of a sound at 16 kHz: (n_mels, frames), a frame each 160 samples.

    log10 of the energies, at least -10 and at most 8 below the greatest of the sound; then
    (x + 4) / 4. The last frame of the spectrum is left out, so that there are samples // 160 of
    them; at least one.
    """
    x = torch.as_tensor(wave, dtype=torch.float32)
    if x.dim() != 1 or not len(x):
        raise Mendable(f"a sound is one row of samples, got the shape {tuple(x.shape)}")
    energies = MelFront(n_mels=n_mels).energies(x)
    energies = energies[:, : max(energies.shape[1] - 1, 1)]
    logs = energies.clamp(min=1e-10).log10()
    return (torch.maximum(logs, logs.max() - 8.0) + 4.0) / 4.0
