"""The joins: how a branch reads the stream and how its output is written back, one paper each.

Plain addition is ``addnorm.stream.Add``. A join that is not of the form keep * h + gain * v adds at
once. What a join needs at the two ends of the stack, (Stream, valid) -> Stream, stands beside it.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from addnorm import ops
from addnorm.norms import as_norm
from addnorm.ops.reference import Scale, accumulate_dtype, without_autocast
from addnorm.stream import AddNorm, Join, Plain, Site, Stream, read

# --- in place of plain addition -------------------------------------------------------------------


@final
class Replace(Plain):
    """f(x): what is left of a sublayer without its residual connection."""

    keeps = False

    def write(self, carry: Tensor, v: Tensor, taps: dict[str, Tensor]) -> Stream:
        return Stream(v.to(carry.dtype), taps=taps)


@final
class Scaled(Plain):
    """keep * x + f(x), with a fixed ``keep``: DeepNorm's alpha (Wang et al. 2022, arXiv
    2203.00555)."""

    defers = True

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = keep

    def write(self, carry: Tensor, v: Tensor, taps: dict[str, Tensor]) -> Stream:
        return Stream(carry, v, keep=self.keep, taps=taps)

    def extra_repr(self) -> str:
        return f"keep={self.keep:.6g}"


@final
class Dual(Plain):
    """x + f(x), and f(x) also onto a second stream that is never normalized: d + f(x).

    ResiDual (Xie et al. 2023, arXiv 2304.14802). The second stream travels as the tap "dual"; the
    stack begins with ``Fork`` and ends with ``Rejoin``.
    """

    def write(self, carry: Tensor, v: Tensor, taps: dict[str, Tensor]) -> Stream:
        return Stream(carry, v, taps={**taps, "dual": ops.settle(v, taps["dual"])})


@final
class Fork(nn.Module):
    """d_0 = x_0, at the entrance of a ResiDual stack."""

    def forward(self, s: Stream, valid: Tensor | None = None) -> Stream:
        return s._replace(taps={**(s.taps or {}), "dual": s.h})


@final
class Rejoin(nn.Module):
    """x + N(d), at the exit of a ResiDual stack; ``norm`` is N."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = as_norm(norm)

    def forward(self, s: Stream, valid: Tensor | None = None) -> Stream:
        assert s.taps is not None, "Rejoin needs the tap that Fork set"
        return Stream(s.settle(), self.norm(s.taps["dual"], valid=valid), taps=s.taps)


@final
class Slerp(Plain):
    """unit(h + a * (unit(f(h)) - h)): a step along the sphere (nGPT, Loshchilov et al. 2024,
    arXiv 2410.01131).

    a = |alpha| * start * sqrt(dim) elementwise; alpha is stored at 1 / sqrt(dim), the scale of the
    weights, so that one learning rate fits both.

    ``dim``: the width of the stream.
    ``start``: the step's size at init.
    """

    normalizes = "the stream itself, to unit length"

    def __init__(self, dim: int, start: float = 0.05) -> None:
        super().__init__()
        self.dim, self.start = dim, start
        self.alpha = nn.Parameter(torch.full((dim,), 1.0 / math.sqrt(dim)))

    def reset_parameters(self) -> None:
        """An effective step of ``start``."""
        nn.init.constant_(self.alpha, 1.0 / math.sqrt(self.dim))

    def write(self, carry: Tensor, v: Tensor, taps: dict[str, Tensor]) -> Stream:
        """One step; the stream ``carry`` is of unit length already, which ``Unit`` began with."""
        wide = accumulate_dtype(carry, v)
        h = carry.to(wide)  # (B, T, D)
        step = self.alpha.to(wide).abs() * (self.start * math.sqrt(self.dim))
        h = unit(h + step * (unit(v.to(wide)) - h))
        return Stream(h.to(carry.dtype), taps=taps)

    def extra_repr(self) -> str:
        return f"{self.dim}, start={self.start:g}"


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """x / ||x||, and 0 where x is 0."""
    return nn.functional.normalize(x, dim=dim, eps=torch.finfo(x.dtype).tiny)


@final
class Unit(nn.Module):
    """What enters an nGPT stack is put on the unit sphere."""

    def forward(self, s: Stream, valid: Tensor | None = None) -> Stream:
        h = s.settle()
        return Stream(unit(h.to(accumulate_dtype(h))).to(h.dtype), taps=s.taps)


class _Mixed(NamedTuple):
    """What ``Hyper.read`` leaves for its ``write``."""

    rest: Tensor  # (n, B, T, D), A_r^T H in float32 or better
    depth: Tensor  # (n, B, T), B: the weight of the branch's output in each stream
    dtype: torch.dtype  # of the streams


@final
class Hyper(Join):
    """n streams, read as a mixture and written with a mixture (dynamic hyper-connections, Zhu et
    al. 2024, arXiv 2409.19606, eq. 2 and 10-13).

        u = A_m^T H,   H' = A_r^T H + B^T f(N(u))
        [A_m A_r] = alpha + alpha_scale * tanh(N(H) alpha_fn),   B = beta + beta_scale * tanh(...)

    At init A_m picks stream (index mod n), A_r is the identity, B is all ones and the dynamic part
    is 0: every stream is then the one of pre-norm. H has shape (n, B, T, D). The mixing runs in
    float32 whatever autocast says: it *is* the residual stream.

    ``site``: where the sublayer sits: its index, its width and the norm N of H.
    ``n``: how many streams there are; at least 1.
    """

    normalizes = "what the mixtures depend on"

    def __init__(self, site: Site, n: int) -> None:
        super().__init__()
        self.n, self.first = n, site.index % n
        self.norm = as_norm(site.norm(site.dim))
        self.alpha = nn.Parameter(torch.empty(n, n + 1))
        self.alpha_fn = nn.Parameter(torch.empty(site.dim, n + 1))
        self.alpha_scale = nn.Parameter(torch.empty(1))
        self.beta = nn.Parameter(torch.empty(n))
        self.beta_fn = nn.Parameter(torch.empty(site.dim))
        self.beta_scale = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Equal to pre-norm; the dynamic part may grow from 0."""
        with torch.no_grad():
            self.alpha.zero_()
            self.alpha[self.first, 0] = 1.0
            self.alpha[:, 1:].fill_diagonal_(1.0)
        nn.init.ones_(self.beta)
        for dynamic in (self.alpha_fn, self.beta_fn):
            nn.init.zeros_(dynamic)
        for scale in (self.alpha_scale, self.beta_scale):
            nn.init.constant_(scale, 0.01)  # the paper's

    def read(self, s: Stream, pre: AddNorm | None, valid: Tensor | None) -> tuple[Tensor, Any]:
        """(A_m^T H, normed if there is a ``pre``; a ``_Mixed``)."""
        streams = s.settle()  # (n, B, T, D)
        wide = accumulate_dtype(streams)
        h = streams.to(wide)
        normed = self.norm(h, valid=None if valid is None else valid.expand(self.n, *valid.shape))
        with without_autocast(h):
            mix = torch.tanh(normed @ self.alpha_fn.to(wide)) * self.alpha_scale.to(wide)
            mix = mix + self.alpha.to(wide)[:, None, None, :]  # (n, B, T, n + 1)
            depth = torch.tanh(normed @ self.beta_fn.to(wide)) * self.beta_scale.to(wide)
            depth = depth + self.beta.to(wide)[:, None, None]  # (n, B, T)
            mixed = torch.einsum("kbtj,kbtd->jbtd", mix, h)  # (n + 1, B, T, D)
        u, _ = read(Stream(mixed[0].to(streams.dtype)), pre, valid)
        return u, _Mixed(mixed[1:], depth, streams.dtype)

    def write(self, carry: Any, v: Tensor, taps: dict[str, Tensor]) -> Stream:
        mixed: _Mixed = carry
        h = mixed.rest + mixed.depth[..., None] * v  # (n, B, T, D)
        return Stream(h.to(mixed.dtype), taps=taps)

    def extra_repr(self) -> str:
        return f"n={self.n}, reads stream {self.first} at first"


@final
class Expand(nn.Module):
    """x repeated ``n`` times, at the entrance of a hyper-connected stack: (n, B, T, D), a view in
    which all n are the same memory."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, s: Stream, valid: Tensor | None = None) -> Stream:
        h = s.settle()
        return Stream(h.expand(self.n, *h.shape), taps=s.taps)


@final
class Collapse(nn.Module):
    """The sum of the n streams, at the exit."""

    def forward(self, s: Stream, valid: Tensor | None = None) -> Stream:
        h = s.settle()
        return Stream(h.sum(0, dtype=h.dtype), taps=s.taps)  # else autocast's, on GPUs


# --- around another join --------------------------------------------------------------------------


class Around(Join, ABC):
    """A join that alters another, ``base``: whether it defers, keeps and normalizes is the base's
    to say."""

    def __init__(self, base: Join) -> None:
        super().__init__()
        self.base = base
        self.defers, self.keeps, self.normalizes = base.defers, base.keeps, base.normalizes


class Weighing(Around, ABC):
    """A factor on f(x), whatever the base does with it."""

    @abstractmethod
    def factor(self, v: Tensor) -> Scale:
        """What the branch's output is multiplied with; 1.0 leaves it as it is."""

    def read(self, s: Stream, pre: AddNorm | None, valid: Tensor | None) -> tuple[Tensor, Any]:
        return self.base.read(s, pre, valid)

    def write(self, carry: Any, v: Tensor, taps: dict[str, Tensor]) -> Stream:
        return self.base.weigh(carry, v, self.factor(v), taps)


@final
class LearnedGain(Weighing):
    """A learned factor on f(x), whatever the join does with it.

    ReZero: a scalar that starts at 0 (Bachlechner et al. 2020, arXiv 2003.04887). LayerScale: a
    vector that starts small (Touvron et al. 2021, arXiv 2103.17239).

    ``base``: the join that it is put around.
    ``shape``: (1,) for a scalar, (dim,) for a vector.
    ``start``: the value at init.
    """

    def __init__(self, base: Join, shape: tuple[int, ...], start: float) -> None:
        super().__init__(base)
        self.start = start
        self.gain = nn.Parameter(torch.full(shape, start))

    def reset_parameters(self) -> None:
        """Back to the value at init."""
        nn.init.constant_(self.gain, self.start)

    def factor(self, v: Tensor) -> Scale:
        return self.gain

    def extra_repr(self) -> str:
        return f"{tuple(self.gain.shape)}, start={self.start:g}"


@final
class DropPath(Weighing):
    """f(x) left out for a whole sample with probability p in training, and scaled up by 1 / (1 - p)
    otherwise (stochastic depth, Huang et al. 2016, arXiv 1603.09382).

    ``base``: the join that it is put around.
    ``p``: the probability, in [0, 1).
    """

    def __init__(self, base: Join, p: float) -> None:
        super().__init__(base)
        self.p = p

    def factor(self, v: Tensor) -> Scale:
        if not self.training or self.p == 0.0:
            return 1.0
        shape = (v.shape[0],) + (1,) * (v.dim() - 1)  # (B, 1, 1)
        return torch.empty(shape, device=v.device).bernoulli_(1.0 - self.p) / (1.0 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p:.4g}"


@final
class OpensParallel(Around):
    """Opens a parallel block: what its branch reads is kept for the block's other branches, which
    have ``JoinsParallel``, as the tap "block_input"."""

    def read(self, s: Stream, pre: AddNorm | None, valid: Tensor | None) -> tuple[Tensor, Any]:
        u, carry = self.base.read(s, pre, valid)
        return u, (u, carry)

    def write(self, carry: Any, v: Tensor, taps: dict[str, Tensor]) -> Stream:
        u, carry = carry
        return self.base.write(carry, v, {**taps, "block_input": u})


@final
class JoinsParallel(Around):
    """In a parallel block that ``OpensParallel`` opened: reads what the block's first branch read,
    the tap "block_input" (Wang & Komatsuzaki 2021, GPT-J; Chowdhery et al. 2022, PaLM). That was
    normed already, so the scheme puts no norm before this branch; one that is given is ignored."""

    def read(self, s: Stream, pre: AddNorm | None, valid: Tensor | None) -> tuple[Tensor, Any]:
        _, carry = self.base.read(s, None, valid)
        assert s.taps is not None, "JoinsParallel needs the tap that OpensParallel set"
        return s.taps["block_input"], carry

    def write(self, carry: Any, v: Tensor, taps: dict[str, Tensor]) -> Stream:
        return self.base.write(carry, v, taps)
