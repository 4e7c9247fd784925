"""The definition of Add & Norm, in plain differentiable PyTorch.

    stream = keep * residual + gain * x          stored, so rounded, in the residual's dtype
    normed = weight * standardize(stream) + bias in x's dtype

Every faster implementation is tested against this file and may differ from it in rounding only.
Gradients are autograd's; at the end of the file they are written out, for whoever writes a kernel.
What is decided here, and measured in docs/numerics.md:

* Statistics are taken from the *stored* stream: the next reader sees exactly what was normalized.
* They are computed in float32 (float64 for a float64 stream), whatever autocast says: every cast
  below is explicit, so no operation is left for autocast to decide.
* The mean is subtracted twice. The float32 mean of numbers near 1e4 is off by up to 1e-3, and that
  error would be squared into the variance; the mean of the remainder removes it.
* A row so large that squares or their inverse powers would leave the range is divided by a power
  of two near its largest absolute value first: normalization does not see the factor, except in
  eps, which is divided by its square.
* Weight and bias are applied in the precision of the statistics, so that their gradients are
  accumulated there as well, whatever dtype they are stored in.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

NormKind = Literal["layer", "rms"]
"""LayerNorm or RMSNorm, see ``standardize``."""
Cast = Literal["fp32", "llama"]
"""Where the rounding to the output's dtype is, see ``normalize``."""
Scale = float | Tensor
"""A factor: a number, or a tensor that broadcasts to what it multiplies and may be learned."""


def accumulate_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any of the tensors is, float32 otherwise."""
    double = any(t.dtype == torch.float64 for t in tensors)
    return torch.float64 if double else torch.float32


def autocast_applies(t: Tensor) -> bool:
    """Whether autocast is on for the tensor's device (some devices have none)."""
    device = t.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(t: Tensor) -> AbstractContextManager[Any]:
    """For products that belong to the residual stream and must keep its precision."""
    return torch.autocast(t.device.type, enabled=False) if autocast_applies(t) else nullcontext()


def is_one(scale: Scale) -> bool:
    """Whether a factor is the constant 1, so that the multiplication can be left out."""
    return not isinstance(scale, Tensor) and scale == 1.0


def scaled(scale: Scale, x: Tensor, dtype: torch.dtype) -> Tensor:
    """``scale * x`` in ``dtype``; a constant 1 costs no multiplication."""
    x = x.to(dtype)
    if is_one(scale):
        return x
    return (scale.to(dtype) if isinstance(scale, Tensor) else scale) * x


def settle(x: Tensor, residual: Tensor | None, keep: Scale = 1.0, gain: Scale = 1.0) -> Tensor:
    """The Add: ``keep * residual + gain * x`` in float32 or better, stored as the residual is.

    Without a residual ``gain * x``, stored as x is, and x itself if the gain is 1; ``keep`` is then
    of no matter.
    """
    if residual is None:
        return x if is_one(gain) else scaled(gain, x, accumulate_dtype(x)).to(x.dtype)
    wide = accumulate_dtype(x, residual)
    total = scaled(keep, residual, wide) + scaled(gain, x, wide)
    return total.to(residual.dtype)


def safe_unit(s: Tensor) -> Tensor:
    """What to divide a row of ``s``, in float32 or float64, by before squaring it: its scale where
    that is huge, otherwise 1; (..., 1) for (..., D), a constant to autograd.

    Huge is where the variance to the power -3/2, which backward needs, is about to underflow:
    1e12 in float32, long before the squares themselves overflow. The scale is the power of two
    below the largest absolute value, so that the division is exact.
    """
    integer, exponent = (
        (torch.int64, 0x7FF0_0000_0000_0000)
        if s.dtype == torch.float64
        else (torch.int32, 0x7F80_0000)
    )
    with torch.no_grad():
        # vector_norm(inf) would say it in one call, and takes fifteen times as long on CPUs
        peak = s.abs().amax(-1, keepdim=True)  # (..., 1)
        scale = (peak.view(integer) & exponent).view(s.dtype)
        return torch.where(peak > limit(s.dtype), scale, torch.ones_like(peak))


def calm(s: Tensor) -> bool:
    """Whether it is known at once that no row is huge, which spares a good part of the work.

    Asked on the CPU only, where a value can be looked at for nothing, and where it can be at all:
    not while tracing, nor under a transform such as vmap.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if s.device.type != "cpu" or type(s) is not Tensor or not s.numel():
        return False
    try:
        least, most = torch.aminmax(s.detach())
        return max(-float(least), float(most)) <= limit(s.dtype) and not bool(most.isnan())
    except RuntimeError:  # what torch raises where a value cannot be read
        return False


def limit(dtype: torch.dtype) -> float:
    """The largest absolute value in a row that is not huge, see ``safe_unit``; with a margin, since
    without its mean a row may be twice as large."""
    return float(0.25 * torch.finfo(dtype).tiny ** (-1 / 3))


def least_square(dtype: torch.dtype) -> float:
    """What a mean square is at least, so that its power -3/2 in backward stays finite."""
    return float(torch.finfo(dtype).tiny ** (2 / 3))


def centred(stream: Tensor, kind: NormKind, eps: float) -> tuple[Tensor, Tensor, float | Tensor]:
    """(rows without their mean, for "rms" with it, divided where they are huge; 1 / sqrt(their mean
    square + eps), (..., 1); the divisor, 1 or (..., 1)). The product of the first two is
    ``standardize``."""
    s = stream.to(accumulate_dtype(stream))  # (..., D)
    least = least_square(s.dtype)
    floor: float | Tensor = max(eps, least)
    unit: float | Tensor = 1.0
    if not calm(s):
        unit = safe_unit(s)
        s = s / unit
        # A huge row that is constant has no variance and no eps left: it gives 0, as in backward.
        floor = (eps / unit / unit).clamp(min=least)
    if kind == "layer":
        s = s - s.mean(-1, keepdim=True)
        s = s - s.mean(-1, keepdim=True)
    square = (s * s).mean(-1, keepdim=True)  # (..., 1)
    return s, torch.rsqrt(square + floor), unit


def standardize(stream: Tensor, kind: NormKind, eps: float) -> Tensor:
    """The Norm without its parameters, in the precision of the statistics.

    ``layer``: (s - mean(s)) / sqrt(var(s) + eps) with the biased variance (Ba et al. 2016).
    ``rms``: s / sqrt(mean(s^2) + eps) (Zhang & Sennrich 2019, eps inside the root as LLMs have it).
    """
    s, r, _ = centred(stream, kind, eps)
    return s * r


def normalize(
    stream: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    kind: NormKind,
    eps: float,
    weight_offset: float,
    cast: Cast,
    dtype: torch.dtype,
) -> Tensor:
    """The Norm: ``(weight_offset + weight) * standardize(stream) + bias``, rounded to ``dtype``.

    ``cast="llama"`` rounds the standardized value to ``dtype`` before the weight, as Llama and T5
    do; ``"fp32"`` rounds once, at the end, as Gemma and torch do. In bfloat16 they differ by up to
    one unit in the last place, which is what a published checkpoint was trained with.
    """
    y = standardize(stream, kind, eps)  # (..., D)
    wide = y.dtype
    if cast == "llama":
        y = y.to(dtype).to(wide)
    if weight is not None:
        w = weight.to(wide)
        y = y * (w if weight_offset == 0.0 else w + weight_offset)
    if bias is not None:
        y = y + bias.to(wide)
    return y.to(dtype)


# --- backward, written out ------------------------------------------------------------------------


class NormGradients(NamedTuple):
    """The gradients of the stream, the weight and the bias, in the precision of the statistics."""

    stream: Tensor
    weight: Tensor
    bias: Tensor


def normalize_backward(
    dy: Tensor,
    stream: Tensor,
    weight: Tensor | None,
    *,
    kind: NormKind,
    eps: float,
    weight_offset: float,
    cast: Cast,
) -> NormGradients:
    """The gradients of ``normalize``, given that of its output.

    With x^ the standardized row, r = 1 / sqrt(mean square + eps), g = (weight_offset + weight) * dy
    and m the mean of a row:

        layer:  dstream = r (g - m(g) - x^ m(g x^))
        rms:    dstream = r (g - x^ m(g x^))
        dweight = sum over rows of dy x^,  dbias = sum over rows of dy

    Rounding has derivative one, so that ``cast`` matters in dweight only: there x^ is what the
    weight was multiplied by. The divisor of a huge row is a constant.
    """
    s, r, unit = centred(stream, kind, eps)
    xhat = s * r  # (..., D)
    g = dy.to(xhat.dtype)
    rows = tuple(range(dy.dim() - 1))
    multiplied = xhat.to(dy.dtype).to(xhat.dtype) if cast == "llama" else xhat
    dweight = (g * multiplied).sum(rows) if rows else g * multiplied
    dbias = g.sum(rows) if rows else g
    if weight is not None:
        g = g * (weight.to(xhat.dtype) + weight_offset)
    d = g - xhat * (g * xhat).mean(-1, keepdim=True)
    if kind == "layer":
        d = d - g.mean(-1, keepdim=True)
    return NormGradients(d * (r / unit), dweight, dbias)


class SettleGradients(NamedTuple):
    """The gradients of the tensors among the arguments of ``settle``, None for the others."""

    x: Tensor
    residual: Tensor | None
    keep: Tensor | None
    gain: Tensor | None


def settle_backward(
    d: Tensor, x: Tensor, residual: Tensor | None, keep: Scale = 1.0, gain: Scale = 1.0
) -> SettleGradients:
    """The gradients of ``settle``, given that of the stream from all who read it.

        dx = gain d,  dresidual = keep d,  dgain = sum of d x,  dkeep = sum of d residual

    A factor's is summed over everything that it was broadcast to, in float32 or better.
    """

    def summed(factor: Scale, of: Tensor) -> Tensor | None:
        if not isinstance(factor, Tensor):
            return None
        wide = accumulate_dtype(d, of)
        return (d.to(wide) * of.to(wide)).sum_to_size(factor.shape).to(factor.dtype)

    dx = scaled(gain, d, accumulate_dtype(d)).to(x.dtype)
    if residual is None:
        return SettleGradients(dx, None, None, summed(gain, x))
    dresidual = scaled(keep, d, accumulate_dtype(d)).to(residual.dtype)
    return SettleGradients(dx, dresidual, summed(keep, residual), summed(gain, x))
