"""Position codes. What is added to the tokens, and what acts inside attention.

Tables are computed from the positions where they are used and held in no buffer: a model built on
the meta device and filled later has nothing to lose, and any length works.
"""

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor, nn

from addnorm.ops.reference import accumulate_dtype

# --- added to the tokens --------------------------------------------------------------------------


@final
class Sinusoidal(nn.Module):
    """PE(p, 2i) = sin(p / 10000^(2i/dim)), PE(p, 2i + 1) = cos(the same) (Vaswani et al. 2017).

    ``sinusoidal(positions)`` (..., T) -> (..., T, dim), in float64 for float64 positions. Any
    length.

    ``dim``: the width of the code; an odd one lacks the last cosine.
    ``base``: of the wavelengths, which go from 2 pi to 2 pi * base.
    """

    def __init__(self, dim: int, base: float = 10000.0) -> None:
        super().__init__()
        self.dim, self.base = dim, base

    def forward(self, positions: Tensor) -> Tensor:
        angle = _angles(positions, self.dim, self.base)  # (..., T, ceil(dim / 2))
        return torch.stack((angle.sin(), angle.cos()), -1).flatten(-2)[..., : self.dim]

    def extra_repr(self) -> str:
        return f"{self.dim}, base={self.base:g}"


@final
class Learned(nn.Module):
    """A learned vector for each position, as in GPT-2: (..., T) -> (..., T, dim). One that is not
    there is a ``ValueError``, except under a compiler, which cannot look at values.

    ``length``: how many positions there are: 0, 1, ..., length - 1.
    ``dim``: the width of the vectors.
    ``std``: the standard deviation with which they begin.
    """

    def __init__(self, length: int, dim: int, std: float = 0.02) -> None:
        super().__init__()
        self.length, self.std = length, std
        self.weight = nn.Parameter(torch.empty(length, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with standard deviation ``std``."""
        nn.init.normal_(self.weight, std=self.std)

    def forward(self, positions: Tensor) -> Tensor:
        """The vectors at whole-number positions from 0 to ``length`` - 1; a ``ValueError`` for
        others."""
        if not torch.compiler.is_compiling() and positions.numel():
            low, high = positions.aminmax()
            if low < 0 or high >= self.length:
                raise ValueError(
                    f"position {int(high if high >= self.length else low)} is outside the "
                    f"{self.length} learned ones"
                )
        return nn.functional.embedding(positions, self.weight)

    def extra_repr(self) -> str:
        return f"{self.length}, {self.weight.shape[1]}"


# --- inside attention -----------------------------------------------------------------------------


class AttentionPosition(nn.Module, ABC):
    """A position code that acts on queries and keys or on their products."""

    @abstractmethod
    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Queries or keys (B, H, T, head_dim) at ``positions`` (T,) or (B, T)."""

    @abstractmethod
    def bias(self, queries: Tensor, keys: Tensor, dtype: torch.dtype) -> Tensor | None:
        """What is added to the logits, (H, T, S) in ``dtype``, for queries (T,) and keys (S,) by
        number; None: nothing."""


@final
class RoPE(AttentionPosition):
    """Pairs (x_j, x_{j + d/2}) are rotated by position * base^(-2j/d) (Su et al. 2021).

    The pairing is that of Llama and Hugging Face ("rotate half"), not of the paper's neighbours.

    ``head_dim``: the width d of a head; even.
    ``base``: of the frequencies.
    """

    def __init__(self, head_dim: int, base: float = 10000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"RoPE rotates pairs: head_dim must be even, got {head_dim}")
        self.head_dim, self.base = head_dim, base

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        if x.shape[-1] != self.head_dim:
            raise ValueError(f"RoPE for heads of {self.head_dim} got heads of {x.shape[-1]}")
        wide = accumulate_dtype(x)
        angle = _angles(positions.to(wide), self.head_dim, self.base)  # (T, d/2) or (B, T, d/2)
        if angle.dim() == 3:
            angle = angle[:, None]  # (B, 1, T, d/2)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def bias(self, queries: Tensor, keys: Tensor, dtype: torch.dtype) -> None:
        return None

    def extra_repr(self) -> str:
        return f"{self.head_dim}, base={self.base:g}"


@final
class ALiBi(AttentionPosition):
    """logits - slope_h * (i - j), no position code else (Press et al. 2022, arXiv 2108.12409).

    Without a causal mask the distance counts both ways, |i - j|.

    ``n_heads``: how many heads there are, each with its slope.
    """

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads

    def slopes(self) -> list[float]:
        """2^(-8/H), 2^(-16/H), ... for a power of two; others borrow every second of the next."""
        power = 2 ** math.floor(math.log2(self.n_heads))
        own = [2.0 ** (-8.0 * (h + 1) / power) for h in range(power)]
        between = [2.0 ** (-4.0 * (2 * h + 1) / power) for h in range(self.n_heads - power)]
        return own + between

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        return x

    def bias(self, queries: Tensor, keys: Tensor, dtype: torch.dtype) -> Tensor:
        distance = (queries[:, None] - keys[None, :]).abs()  # (T, S)
        slopes = torch.tensor(self.slopes(), dtype=dtype, device=queries.device)
        return -slopes[:, None, None] * distance  # (H, T, S)

    def extra_repr(self) -> str:
        return f"{self.n_heads}"


def _angles(positions: Tensor, dim: int, base: float) -> Tensor:
    """positions * base^(-2j / dim) for j < dim / 2, in float32 or better: (..., ceil(dim / 2))."""
    wide = accumulate_dtype(positions)
    pair = torch.arange(0, dim, 2, device=positions.device, dtype=wide)
    return positions.to(wide)[..., None] * torch.exp(pair * (-math.log(base) / dim))
