"""Recordings for a training: read whole, divided into what is learned from and what is held out,
and looked at for what a user should know before he trains on them.

A recording is held out by a hash of what is said in it, or of its sound where labels are learned,
or because it stands in a place of its own for that: a sentence that two voices say stays on one
side. Sounds are in memory as 16 bits, about 115 MB an hour.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from addnorm.data.audio import RATE, Samples, log_mel
from addnorm.data.audio_augment import at_speed, in_noise, masked
from addnorm.data.recordings import HeardSound, Recordings, read_sounds
from addnorm.data.sources import DataError
from addnorm.data.split import HASHES, text_hash
from addnorm.models.frames import FrameConfig
from addnorm.words import a_few, plural

STEPS = 32767  # of 16 bits
HOP = 160  # samples in a frame of the features


@final
class Clip(NamedTuple):
    """A recording in memory."""

    file: Path
    values: NDArray[np.int16]
    text: str

    @property
    def samples(self) -> Samples:
        """At 16 kHz, between -1 and 1."""
        return self.values.astype(np.float32) / np.float32(STEPS)

    @property
    def frames(self) -> int:
        """Of its features."""
        return max(len(self.values) // HOP, 1)


@final
@dataclass(frozen=True)
class Clips:
    """What there is to learn from, and to measure on."""

    train: Sequence[Clip]
    val: Sequence[Clip]
    remarks: Sequence[str] = field(default=())
    """What is odd about the recordings, in sentences."""


def read_clips(
    data: str,
    val_data: str,
    val_fraction: float,
    most_frames: int,
    read: Callable[[str], Recordings],
    key: Callable[[HeardSound], str],
) -> Clips:
    """The recordings of ``data``, the share ``val_fraction`` of them held out by a hash of what
    ``key`` says of each; or all to learn from, if those to hold out are in ``val_data``, "" for
    none. ``read``: what reads their list. Recordings of more than ``most_frames`` frames are left
    out, and told; a ``DataError`` where a side is empty."""
    own = _sounds(data, read, most_frames)
    if val_data:
        others = _sounds(val_data, read, most_frames)
        train, val = own.sounds, others.sounds
        remarks = [*own.remarks, *others.remarks]
        learned = {key(sound) for sound in train}
        if common := sum(key(sound) in learned for sound in val):
            remarks.append(
                f"{plural(common, 'recording')} of {val_data} say what is said in {data} too: what "
                "is measured on them may be learned by heart"
            )
    else:
        remarks, train, val = list(own.remarks), [], []
        for sound in own.sounds:
            (val if text_hash(key(sound)) / HASHES < val_fraction else train).append(sound)
    for side, what in ((train, "learn from"), (val, "hold out")):
        if not side:
            raise DataError(
                f"{data} has too few recordings: of {len(own.sounds):,}, with "
                f"val_fraction={val_fraction:g}, none is left to {what}"
            )
    return Clips([_clip(sound) for sound in train], [_clip(sound) for sound in val], remarks)


class _Sounds(NamedTuple):
    sounds: list[HeardSound]
    remarks: list[str]


def _sounds(data: str, read: Callable[[str], Recordings], most_frames: int) -> _Sounds:
    """All recordings of a place that are short enough, with what is odd about them."""
    recordings = read(data)
    sounds, remarks = read_sounds(recordings.rows)
    long = [s for s in sounds if len(s.sound.samples) // HOP > most_frames]
    if long:
        remarks.append(
            f"{plural(len(long), 'recording')} of more than {most_frames * HOP / RATE:g} seconds "
            f"left out ({a_few(s.row.file.name for s in long)}): raise model.frames, or cut them"
        )
    short = [s for s in sounds if len(s.sound.samples) // HOP <= most_frames]
    return _Sounds(short, [*recordings.remarks, *remarks])


def _clip(sound: HeardSound) -> Clip:
    values = (sound.sound.samples.clip(-1.0, 1.0) * STEPS).round().astype(np.int16)
    return Clip(sound.row.file, values, sound.row.text)


# --- as it might have sounded ---------------------------------------------------------------------


class Variation(NamedTuple):
    """How recordings to learn from differ from what was recorded."""

    speed: float
    """The share by which they are faster or slower."""
    noise: float
    """The share of those with noise."""
    masks: bool
    """Whether some of each is hidden."""


def step_features(
    clips: Sequence[Clip],
    keys: Sequence[tuple[int, int, int]],
    config: FrameConfig,
    variation: Variation | None,
    rank: int,
    world: int,
) -> tuple[list[Tensor], int]:
    """(the features of every world-th of a step's clips, from rank on; the frames of the longest of
    all, to which they are to be filled up, so that a row is the same on any number of processes).

    ``keys``: of each clip (seed, epoch, number), from which its variation is drawn; None of that:
    as they were recorded.
    """
    if variation is None:
        speeds = [1.0] * len(clips)
    else:
        speeds = [clip_speed(*key, variation.speed) for key in keys]
    longest = max(
        int(-(-len(clip.values) // speed) // HOP) + 1
        for clip, speed in zip(clips, speeds, strict=True)
    )
    features = [
        log_mel(clip.samples, config.n_mels)
        if variation is None
        else varied_features(clip, config, speed, variation, key)
        for clip, key, speed in list(zip(clips, keys, speeds, strict=True))[rank::world]
    ]
    return features, min(longest, config.frames)


def clip_speed(seed: int, epoch: int, number: int, speed: float) -> float:
    """How fast the clip of a number is in an epoch: as it is, or by a share of ``speed`` faster or
    slower."""
    rng = np.random.default_rng([seed, epoch, number, 0])
    return 1.0 + speed * float(rng.integers(-1, 2))


def varied_features(
    clip: Clip,
    config: FrameConfig,
    speed: float,
    variation: Variation,
    key: tuple[int, int, int],
) -> Tensor:
    """The features of a clip at a speed, with noise and masks as ``variation`` has them. ``key``:
    (seed, epoch, number), which what is random follows from."""
    rng, samples = np.random.default_rng([*key, 1]), clip.samples
    if speed != 1.0:
        samples = at_speed(samples, speed)
    if rng.random() < variation.noise:
        samples = in_noise(samples, rng)
    features = log_mel(samples, config.n_mels)[:, : config.frames]
    return masked(features, rng) if variation.masks else features
