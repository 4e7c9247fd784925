"""From logits to the distribution that is sampled, and one draw from it.

The order is fixed, and every step may be left out:

1. repetition penalty r over the distinct ids of prompt and output: a logit above 0 is divided by r,
   any other multiplied (Keskar et al. 2019, arXiv 1909.05858)
2. presence and frequency penalties over the ids of the output: logit - presence * [n > 0] -
   frequency * n, for an id that came n times (OpenAI)
3. what is not allowed: -inf
4. temperature 0: the largest logit, the lowest id among equals; else logits / temperature
5. top_k: the k largest, and all that equal the k-th (Fan et al. 2018, arXiv 1805.04833)
6. top_p: the fewest of the most probable whose probabilities reach p, the one that crosses p
   included, lower ids first among equals (Holtzman et al. 2020, arXiv 1904.09751)
7. min_p: what has at least min_p times the largest probability (Nguyen et al. 2024, arXiv
   2407.01082)
8. the rest is scaled to sum to 1
"""

import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from addnorm.errors import Mendable
from addnorm.ops.reference import accumulate_dtype

ENOUGH = 512  # this many of the most probable tokens usually reach top_p: the rest is not sorted
MOST_PENALTY = 1e6  # far beyond any use, and what float32 holds is not left
BLOCK = 64  # random numbers drawn at a time, for each row


@final
@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen. The default is the model's own distribution.

    ``temperature``: logits are divided by it; 0 is greedy and takes the most probable token.
    ``top_k``: only the k most probable tokens, and all that are as probable as the k-th.
    ``top_p``: only the fewest of the most probable tokens whose probabilities add up to p.
    ``min_p``: only tokens with at least ``min_p`` times the largest probability.
    ``repetition_penalty``: above 1, ids of the prompt and the output become less probable.
    ``presence_penalty``: subtracted from the logit of every id in the output.
    ``frequency_penalty``: subtracted once for each time that an id is in the output.

    The formulas, and the order in which all of this acts, stand above in this file.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value: float | None = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if isinstance(value, np.number):
                value = value.item()
                object.__setattr__(self, field.name, value)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{field.name} must be a number, got {value!r}")
            if not abs(value) <= sys.float_info.max:  # nan, infinity, 10**400
                raise Mendable(f"{field.name} must be finite, got {value}")
        if self.temperature < 0:
            raise Mendable(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise Mendable(f"top_k must be a whole number of at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise Mendable(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise Mendable(f"min_p must be between 0 and 1, got {self.min_p}")
        if not 1 / MOST_PENALTY <= self.repetition_penalty <= MOST_PENALTY:
            raise Mendable(
                f"repetition_penalty must be between {1 / MOST_PENALTY:g} and {MOST_PENALTY:g}, 1 "
                f"for none, got {self.repetition_penalty}"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if abs(getattr(self, name)) > MOST_PENALTY:
                raise Mendable(
                    f"{name} must be between {-MOST_PENALTY:g} and {MOST_PENALTY:g}, 0 for none, "
                    f"got {getattr(self, name)}"
                )

    @property
    def penalizes(self) -> bool:
        """Whether what came before matters."""
        return self.repetition_penalty != 1.0 or self.counts

    @property
    def counts(self) -> bool:
        """Whether it matters how often a token came."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


# --- the distribution -----------------------------------------------------------------------------


def penalized(
    logits: Tensor,
    sampling: Sampling,
    present: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Steps 1 and 2, in float32 or better: (B, V) -> (B, V).

    ``present`` (B, V) is True for ids of prompt and output, ``counts`` (B, V) says how often an id
    is in the output.
    """
    x = logits.to(accumulate_dtype(logits))
    r = sampling.repetition_penalty
    if r != 1.0 and present is not None:
        x = torch.where(present, torch.where(x > 0, x / r, x * r), x)
    if sampling.counts and counts is not None:
        n = counts.to(x.dtype)
        x = x - sampling.presence_penalty * (n > 0).to(n.dtype) - sampling.frequency_penalty * n
    return x


def masked(x: Tensor, candidates: Tensor | None) -> Tensor:
    """Step 3: ``candidates`` (B, V) or (V,) is True where a token may come."""
    return x if candidates is None else x.masked_fill(~candidates, -math.inf)


def distribution(
    logits: Tensor,
    sampling: Sampling,
    present: Tensor | None = None,
    counts: Tensor | None = None,
    candidates: Tensor | None = None,
) -> Tensor:
    """All steps: probabilities (B, V) in float32, or float64 for float64 logits. ``present`` and
    ``counts`` as in ``penalized``, ``candidates`` as in ``masked``; None: the step is left out."""
    x = masked(penalized(logits, sampling, present, counts), candidates)
    if sampling.temperature == 0.0:
        return torch.zeros_like(x).scatter_(-1, x.argmax(-1, keepdim=True), 1.0)
    return _filtered(x, sampling)


def _filtered(x: Tensor, sampling: Sampling) -> Tensor:
    """Steps 4 to 8 at a temperature above 0, of logits after step 3, (B, V): probabilities."""
    # Less the largest first: dividing by a small temperature then overflows to -inf at worst. One
    # so small that it is 0 in this dtype would make 0 / 0.
    x = (x - x.amax(-1, keepdim=True)) / max(float(sampling.temperature), torch.finfo(x.dtype).tiny)
    if sampling.top_k is not None and sampling.top_k < x.shape[-1]:
        border = x.topk(sampling.top_k, sorted=True).values[..., -1:]
        x = x.masked_fill(x < border, -math.inf)
    p = x.softmax(-1)
    if sampling.top_p is not None and sampling.top_p < 1.0:
        p = p.masked_fill(~_nucleus(p, sampling.top_p), 0.0)
    if sampling.min_p is not None:
        p = p.masked_fill(p < sampling.min_p * p.amax(-1, keepdim=True), 0.0)
    return p / p.sum(-1, keepdim=True)


def _nucleus(p: Tensor, top_p: float) -> Tensor:
    """Which tokens are among the fewest most probable that reach ``top_p``, boolean (B, V). Only
    ENOUGH are looked at first: a whole row is sorted where these do not reach it."""
    values = p.topk(min(ENOUGH, p.shape[-1])).values
    total = values.double().cumsum(-1)  # (B, n)
    if (total[..., -1] < top_p).any():
        values = p.sort(-1, descending=True).values
        total = values.double().cumsum(-1)
    # the place of the one that crosses; all, if rounding keeps the sum below
    place = (total < top_p).sum(-1, keepdim=True).clamp(max=values.shape[-1] - 1)
    border = values.gather(-1, place)
    above = p > border
    # of those that equal the border, as many as there are places up to the one that crosses
    equal = p == border
    room = place + 1 - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))


# --- the draw -------------------------------------------------------------------------------------


def choose(x: Tensor, sampling: Sampling, u: Tensor | None) -> Tensor:
    """One id for each row, (B,), from logits after step 3 and ``u`` (B,) uniform in [0, 1), None
    where the temperature is 0."""
    if sampling.temperature == 0.0:
        return x.argmax(-1)
    assert u is not None, "sampling needs random numbers"
    return draw(_filtered(x, sampling), u)


def draw(p: Tensor, u: Tensor) -> Tensor:
    """The first id whose cumulative probability exceeds u, for probabilities (B, V) and u (B,)."""
    total = p.double().cumsum(-1)  # (B, V)
    whole = total[..., -1:]
    # u just below 1 must not round up to the whole, which no id exceeds
    target = torch.minimum(u[..., None] * whole, whole.nextafter(torch.zeros_like(whole)))
    return torch.searchsorted(total, target, right=True)[..., 0]


@final
class Uniforms:
    """Random numbers for the rows of a batch, each row from a generator of its own.

    ``seeds``: one for each row; ``device``: where the numbers are needed.

    A row's numbers depend on its seed alone, not on the batch or the device.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.device = device
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._block = torch.empty(len(seeds), 0)
        self._next = 0

    def now(self) -> Tensor:
        """One number in [0, 1) for each row, (B,), in float64; the same until ``advance``."""
        if self._next == self._block.shape[1]:
            rows = [torch.rand(BLOCK, generator=g, dtype=torch.float64) for g in self._generators]
            self._block, self._next = torch.stack(rows).to(self.device), 0
        return self._block[:, self._next]

    def advance(self) -> None:
        """On to the next number."""
        self._next += 1

    def keep(self, places: Sequence[int]) -> None:
        """Only these rows, in this order."""
        self._generators = [self._generators[i] for i in places]
        self._block = self._block[list(places)]
