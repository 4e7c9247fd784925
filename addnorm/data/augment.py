"""Pictures varied at random, as decided by a seed and the number of the row alone: the same row of
the same step is the same picture on any number of processes, and after a resume.

- crop: Szegedy et al. 2015, "Going Deeper with Convolutions" (arXiv 1409.4842), section 6: a part
  with a random share of the area, its sides in a ratio of 3/4 to 4/3.
- erase: Zhong et al. 2020, "Random Erasing Data Augmentation" (arXiv 1708.04896): a rectangle of 2
  to 33 % of the area, in a ratio of 0.3 to 3.3, filled with noise.
- mixup: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization" (arXiv 1710.09412).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from addnorm.settings import AtResume, SettingsError, setting

RATIO = 3 / 4, 4 / 3
ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 1 / 0.3)
LIMITS = {"shift": (0.0, 0.5), "turn": (0.0, 180.0), "flip": (0.0, 1.0), "erase": (0.0, 1.0)}
"""What each may be, both ends included."""


@final
@dataclass(frozen=True, kw_only=True)
class Augment:
    """How pictures to learn from are varied, others each time."""

    crop: float = setting(1.0, AtResume.WITH_NOTICE)
    """The least share of a picture's area that is looked at, the part being anywhere in it and
    brought to the size of the whole; 1: always all of it."""
    shift: float = setting(0.0, AtResume.WITH_NOTICE)
    """By how much of its height and width a picture is moved at most."""
    turn: float = setting(0.0, AtResume.WITH_NOTICE)
    """By how many degrees a picture is turned at most, either way."""
    flip: float = setting(0.0, AtResume.WITH_NOTICE)
    """How probable it is that left and right change places; for what may be seen in a mirror."""
    erase: float = setting(0.0, AtResume.WITH_NOTICE)
    """How probable it is that noise stands in place of a rectangle."""
    mixup: float = setting(0.0, AtResume.WITH_NOTICE)
    """Above 0: each picture is mixed with another, both labels counting by their shares, which are
    drawn from Beta(mixup, mixup)."""

    def __post_init__(self) -> None:
        if not 0.0 < self.crop <= 1.0:
            raise SettingsError(f"augment.crop must be in (0, 1], got {self.crop:g}")
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise SettingsError(
                    f"augment.{name} must be in [{least:g}, {most:g}], got {value:g}"
                )
        if not 0.0 <= self.mixup <= 100.0:
            raise SettingsError(f"augment.mixup must be in [0, 100], got {self.mixup:g}")

    @property
    def moves(self) -> bool:
        """Whether pixels change places."""
        return self.crop < 1.0 or any((self.shift, self.turn, self.flip))


class _Change(NamedTuple):
    """What happens to one picture."""

    matrix: list[list[float]]  # from places in what comes out to places in the picture, -1 to 1
    erased: tuple[float, float, float, float] | None  # top, left, height, width, as shares
    noise: int  # the seed of what is put there
    share: float  # of the picture, where it is mixed with another


def _change(augment: Augment, seed: int, number: int, aspect: float) -> _Change:
    """What happens to row ``number``, counted over all steps; ``aspect``: the width of a picture
    over its height. Everything is drawn whatever is asked for, so that no choice changes
    another."""
    rng = np.random.default_rng([seed, number])
    area = rng.uniform(augment.crop, 1.0)
    ratio = math.exp(rng.uniform(*np.log(RATIO)))
    place = rng.uniform(-1.0, 1.0, 2)
    shift = rng.uniform(-2.0 * augment.shift, 2.0 * augment.shift, 2)
    turn = math.radians(rng.uniform(-augment.turn, augment.turn))
    mirror = -1.0 if rng.random() < augment.flip else 1.0
    erases = rng.random() < augment.erase
    erased = _rectangle(rng)
    noise = int(rng.integers(1 << 31))
    share = float(rng.beta(augment.mixup, augment.mixup)) if augment.mixup else 1.0
    if augment.crop < 1.0:
        wide, high = min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))
    else:
        wide, high = 1.0, 1.0
    cos, sin = math.cos(turn), math.sin(turn)
    matrix = [
        [wide * mirror * cos, -high * sin / aspect, place[0] * (1 - wide) + shift[0]],
        [wide * mirror * sin * aspect, high * cos, place[1] * (1 - high) + shift[1]],
    ]
    return _Change(matrix, erased if erases else None, noise, share)


def _rectangle(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """(top, left, height, width) of what is erased, as shares of the picture."""
    area, ratio = rng.uniform(*ERASED_AREA), math.exp(rng.uniform(*np.log(ERASED_RATIO)))
    high, wide = min(1.0, math.sqrt(area * ratio)), min(1.0, math.sqrt(area / ratio))
    return rng.uniform(0, 1 - high), rng.uniform(0, 1 - wide), high, wide


def varied(pictures: Tensor, numbers: Sequence[int], seed: int, augment: Augment) -> Tensor:
    """(B, channels, height, width), 0 to 255, as float32: each picture as it is varied in the row
    of that number, counted over all steps. What comes in from outside of a picture is its border.
    Mixing is for ``mixed``."""
    height, width = pictures.shape[-2:]
    changes = [_change(augment, seed, n, width / height) for n in numbers]
    x = pictures.to(torch.float32)
    if augment.moves and len(x):
        matrix = torch.tensor([c.matrix for c in changes], dtype=torch.float32)
        grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    if not augment.erase:
        return x
    x = x.clone()
    for picture, change in zip(x, changes, strict=True):
        if change.erased is not None:
            top, left, high, wide = change.erased
            rows = slice(round(top * height), round((top + high) * height))
            columns = slice(round(left * width), round((left + wide) * width))
            part = picture[:, rows, columns]
            noise = np.random.default_rng(change.noise).uniform(0, 255, part.shape)
            part.copy_(torch.from_numpy(noise))
    return x


def shares(numbers: Sequence[int], seed: int, augment: Augment) -> Tensor:
    """(B,) in float32: how much of each row is its own picture, where it is mixed with another's;
    at least a half, so that the row's own label stays the first."""
    own = [_change(augment, seed, n, 1.0).share for n in numbers]
    return torch.tensor([max(share, 1.0 - share) for share in own], dtype=torch.float32)


def mixed(pictures: Tensor, others: Tensor, share: Tensor) -> Tensor:
    """share * pictures + (1 - share) * others, with a ``share`` for each."""
    weight = share.view(-1, 1, 1, 1)
    return weight * pictures + (1.0 - weight) * others
