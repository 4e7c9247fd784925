"""The norms: tensor in, tensor out, and the residual addition on the way if one is given.

    y = norm(x)
    y, stream = norm(x, residual, keep, gain)      stream = keep * residual + gain * x, y its norm

The second form is what ``addnorm.stream.AddNorm`` calls, so that a fused kernel has one place to go
and forward hooks on the norm fire either way.

Dtype policy, the same for all and independent of autocast: statistics and parameters are used in
float32 (float64 for float64 inputs), y has the dtype of x, the stream that of the residual.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from addnorm import ops
from addnorm.ops.reference import Cast, Scale, accumulate_dtype, safe_unit


class Norm(nn.Module, ABC):
    """What every norm is: an addition, where there is a residual, and then the norm itself.

    A new one is a ``Settled``. What does both at once, as a kernel can, is a ``Norm`` and says so
    in ``add``.
    """

    crosses_tokens: ClassVar[bool] = False
    """Whether the statistics run over several tokens: then a causal stack must refuse the norm."""

    axis: ClassVar[int] = -1
    """Where the features are."""

    def __init__(self, dim: int | None, **parameters: tuple[tuple[int, ...], float] | None) -> None:
        """``dim`` features (None: whatever comes), and each parameter as (shape, value at init) or
        None where the norm goes without.

        A single number has shape (1,): FSDP2 cannot shard what has no dimension.
        """
        super().__init__()
        self.dim = dim
        self._initial = {name: p[1] for name, p in parameters.items() if p is not None}
        for name, p in parameters.items():
            parameter = None if p is None else nn.Parameter(torch.full(*p))
            self.register_parameter(name, parameter)

    def reset_parameters(self) -> None:
        """Back to the values at init."""
        for name, value in self._initial.items():
            nn.init.constant_(self.get_parameter(name), value)

    @abstractmethod
    def add(
        self, x: Tensor, residual: Tensor | None, keep: Scale, gain: Scale, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``(norm(stream), stream)`` with ``stream = keep * residual + gain * x``.

        ``valid`` (B, T), True = real token, matters only where statistics cross tokens.
        """

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        keep: Scale = 1.0,
        gain: Scale = 1.0,
        valid: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """``norm(x)`` alone; with a residual ``(norm(stream), stream)``; a ``ValueError`` for
        another number of features. The arguments are those of ``add``."""
        if self.dim is not None and x.shape[self.axis :][:1] != (self.dim,):
            raise ValueError(
                f"{type(self).__name__} of {self.dim} features got {tuple(x.shape)}: it expects "
                f"{self.dim} on {'the last axis' if self.axis == -1 else f'axis {self.axis}'}"
            )
        y, stream = self.add(x, residual, keep, gain, valid)
        return y if residual is None else (y, stream)


class Settled(Norm, ABC):
    """A norm that gets the stream with the addition done, and keeps the dtype policy by itself.

    ``dim``: the features, None: whatever comes; ``parameters``: each as (shape, value at init).

    Example, with one parameter for each feature::

        class PeakNorm(Settled):
            def __init__(self, dim: int) -> None:
                super().__init__(dim, weight=((dim,), 1.0))

            def normalize(self, s: Tensor, valid: Tensor | None) -> Tensor:
                return self.weight.to(s.dtype) * s / s.abs().amax(-1, keepdim=True)
    """

    @abstractmethod
    def normalize(self, s: Tensor, valid: Tensor | None) -> Tensor:
        """The norm of the stream ``s``, in whose dtype the statistics and the parameters are used.

        ``valid`` (B, T), True = real token, matters only where statistics cross tokens.
        """

    def add(
        self, x: Tensor, residual: Tensor | None, keep: Scale, gain: Scale, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        stream = ops.settle(x, residual, keep, gain)
        y = self.normalize(stream.to(accumulate_dtype(stream)), valid)
        return y.to(x.dtype), stream


@final
class LayerNorm(Norm):
    """y = weight * (x - mean) / sqrt(var + eps) + bias over the last dimension (Ba et al. 2016).

    The variance is the biased one.

    ``dim``: the size of the last dimension.
    ``eps``: added to the variance; at least 0.
    ``bias``: False leaves the bias out, as in PaLM.
    ``affine``: False leaves weight and bias out, as in OLMo 1.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True, *, affine: bool = True):
        super().__init__(
            dim,
            weight=((dim,), 1.0) if affine else None,
            bias=((dim,), 0.0) if affine and bias else None,
        )
        self.eps = eps

    def add(
        self, x: Tensor, residual: Tensor | None, keep: Scale, gain: Scale, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return ops.add_norm(
            x, residual, self.weight, self.bias, kind="layer", eps=self.eps, keep=keep, gain=gain
        )

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps:g}, bias={self.bias is not None}"


@final
class UnbiasedLayerNorm(Settled):
    """y = weight * (x - mean) / (std + eps) + bias, std with n - 1 and eps outside the root.

    Not LayerNorm, but a widely copied tutorial's; kept for weights that were trained with it.

    ``dim``: the size of the last dimension; at least 2.
    ``eps``: added to the standard deviation; at least 0.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, dim: int, eps: float = 1e-6):
        if dim < 2:
            raise ValueError(f"the unbiased standard deviation needs dim >= 2, got {dim}")
        super().__init__(dim, weight=((dim,), 1.0), bias=((dim,), 0.0))
        self.eps = eps

    def normalize(self, s: Tensor, valid: Tensor | None) -> Tensor:
        unit = safe_unit(s)  # 1, but for huge rows: their squares would overflow
        s = s / unit
        s = s - s.mean(-1, keepdim=True)
        s = s - s.mean(-1, keepdim=True)  # what rounding left of the mean, see ops.reference
        std = _length(s) / math.sqrt(s.shape[-1] - 1)
        # The floor keeps 1 / y^2 of backward finite where a huge row is constant.
        y = s / (std + (self.eps / unit).clamp(min=torch.finfo(s.dtype).tiny ** 0.5))
        return y * self.weight.to(y.dtype) + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps:g}"


@final
class RMSNorm(Norm):
    """y = (weight_offset + weight) * x / sqrt(mean(x^2) + eps) (Zhang & Sennrich 2019).

    ``dim``: the size of the last dimension.
    ``eps``: added to the mean square; at least 0.
    ``weight_offset``: 1 stores the weight around zero, so that weight decay pulls the factor to 1
    (Gemma).
    ``cast``: "llama" rounds to x's dtype before the weight (Llama, T5), "fp32" after it.
    ``affine``: False leaves the weight out (OLMo 1 style).
    """

    weight: Tensor | None

    def __init__(
        self,
        dim: int,
        eps: float = 1e-6,
        *,
        weight_offset: float = 0.0,
        cast: Cast = "fp32",
        affine: bool = True,
    ):
        super().__init__(dim, weight=((dim,), 1.0 - weight_offset) if affine else None)
        self.eps, self.weight_offset, self.cast = eps, weight_offset, cast

    def add(
        self, x: Tensor, residual: Tensor | None, keep: Scale, gain: Scale, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return ops.add_norm(
            x,
            residual,
            self.weight,
            kind="rms",
            eps=self.eps,
            keep=keep,
            gain=gain,
            weight_offset=self.weight_offset if self.weight is not None else 0.0,
            cast=self.cast,
        )

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps:g}, weight_offset={self.weight_offset:g}"


@final
class L2Norm(Norm):
    """y = sqrt(dim) * x / ||x||, no parameters: RMSNorm without its weight (nanochat, modded).

    ``dim``: the size of the last dimension.
    ``eps``: added to the mean square; at least 0.
    """

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__(dim)
        self.eps = eps

    def add(
        self, x: Tensor, residual: Tensor | None, keep: Scale, gain: Scale, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return ops.add_norm(x, residual, kind="rms", eps=self.eps, keep=keep, gain=gain)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps:g}"


@final
class ScaleNorm(Settled):
    """y = g * x / max(||x||, eps), one learned scalar g = sqrt(dim) at first (Nguyen 2019).

    ``dim``: the size of the last dimension.
    ``eps``: the least length that a vector is divided by; at least 0.
    """

    weight: Tensor

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__(dim, weight=((1,), math.sqrt(dim)))
        self.eps = eps

    def normalize(self, s: Tensor, valid: Tensor | None) -> Tensor:
        unit = safe_unit(s)  # 1, but for huge rows: their squares would overflow
        s = s / unit
        return self.weight.to(s.dtype) * s / torch.maximum(_length(s), self.eps / unit)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps:g}"


@final
class DyT(Settled):
    """y = weight * tanh(alpha * x) + bias: no statistics at all (Zhu et al. 2025).

    The published LLaMA runs use another alpha for attention than elsewhere and no bias.

    ``dim``: the size of the last dimension.
    ``alpha``: where the learned scalar begins.
    ``bias``: False leaves the bias out.
    """

    alpha: Tensor
    weight: Tensor
    bias: Tensor | None

    def __init__(self, dim: int, alpha: float = 0.5, bias: bool = True):
        super().__init__(
            dim, alpha=((1,), alpha), weight=((dim,), 1.0), bias=((dim,), 0.0) if bias else None
        )
        self.start = alpha

    def normalize(self, s: Tensor, valid: Tensor | None) -> Tensor:
        y = torch.tanh(self.alpha.to(s.dtype) * s) * self.weight.to(s.dtype)
        if self.bias is not None:
            y = y + self.bias.to(s.dtype)
        return y

    def extra_repr(self) -> str:
        return f"{self.dim}, alpha={self.start:g}, bias={self.bias is not None}"


@final
class ChannelsFirstLayerNorm(Norm):
    """LayerNorm over the channels of an image (B, C, H, W), each pixel on its own (ConvNeXt).

    Not GroupNorm(1, C), which also takes its statistics over the pixels.

    ``dim``: the number of channels, C.
    ``eps``: added to the variance; at least 0.
    """

    axis = 1
    weight: Tensor
    bias: Tensor

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__(dim, weight=((dim,), 1.0), bias=((dim,), 0.0))
        self.eps = eps

    def add(
        self, x: Tensor, residual: Tensor | None, keep: Scale, gain: Scale, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if x.dim() < 3:
            raise ValueError(f"expected an image (B, {self.dim}, ...), got {tuple(x.shape)}")
        stream = ops.settle(x, residual, keep, gain)
        y, _ = ops.add_norm(
            stream.movedim(1, -1), None, self.weight, self.bias, kind="layer", eps=self.eps
        )
        return y.movedim(-1, 1).to(x.dtype), stream

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps:g}"


@final
class BatchNorm(Settled):
    """Each channel over all real tokens of the batch (Ioffe & Szegedy 2015). For comparison only.

    Training and evaluation compute different functions, padding must be masked out of the
    statistics (``valid``), and a token sees every other one: refused in causal stacks. The running
    statistics are written in forward, so activation checkpointing updates them twice a step.

    ``dim``: the number of channels, the size of the last dimension.
    ``eps``: added to the variance; at least 0.
    ``momentum``: the share of the newest batch in the running statistics, from 0 to 1.
    """

    crosses_tokens = True
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__(dim, weight=((dim,), 1.0), bias=((dim,), 0.0))
        self.eps, self.momentum = eps, momentum
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def reset_parameters(self) -> None:
        """Back to the values at init, the running statistics to those of a standard normal."""
        super().reset_parameters()
        nn.init.zeros_(self.running_mean)
        nn.init.ones_(self.running_var)

    def normalize(self, s: Tensor, valid: Tensor | None) -> Tensor:
        """In training by the moments of this batch, which also go into the running ones; in
        evaluation by those."""
        s = _without_padding(s, valid)  # (..., T, D)
        if self.training:
            mean, var, count = _masked_moments(s, valid, tuple(range(s.dim() - 1)))  # (1, 1, D)
            with torch.no_grad():
                unbiased = var.flatten() * count / (count - 1).clamp(min=1)
                self.running_mean.lerp_(mean.flatten().to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        else:
            mean, var = self.running_mean.to(s.dtype), self.running_var.to(s.dtype)
        y = (s - mean) * torch.rsqrt(var + self.eps)
        return y * self.weight.to(s.dtype) + self.bias.to(s.dtype)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps:g}, momentum={self.momentum:g}"


@final
class GroupNorm(Settled):
    """Groups of channels over all real tokens of a sample (Wu & He 2018). For comparison only.

    It equals LayerNorm only for one group and one token. Refused in causal stacks.

    ``dim``: the number of channels, the size of the last dimension.
    ``groups``: into how many the channels are divided; divides ``dim``.
    ``eps``: added to the variance; at least 0.
    """

    crosses_tokens = True

    weight: Tensor
    bias: Tensor

    def __init__(self, dim: int, groups: int = 1, eps: float = 1e-5):
        if dim % groups:
            raise ValueError(f"{groups} groups do not divide {dim} channels")
        super().__init__(dim, weight=((dim,), 1.0), bias=((dim,), 0.0))
        self.groups, self.eps = groups, eps

    def normalize(self, s: Tensor, valid: Tensor | None) -> Tensor:
        s = _without_padding(s, valid)  # (..., T, D)
        s = s.unflatten(-1, (self.groups, -1))  # (..., T, G, C)
        mean, var, _ = _masked_moments(s, valid, (-3, -1))  # (..., 1, G, 1)
        y = ((s - mean) * torch.rsqrt(var + self.eps)).flatten(-2)
        return y * self.weight.to(y.dtype) + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return f"{self.dim}, groups={self.groups}, eps={self.eps:g}"


@final
class Foreign(Norm):
    """Anybody's tensor-to-tensor ``module`` as a Norm: the addition first, then the module."""

    def __init__(self, module: nn.Module):
        super().__init__(None)
        self.module = module

    def add(
        self, x: Tensor, residual: Tensor | None, keep: Scale, gain: Scale, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        stream = ops.settle(x, residual, keep, gain)
        return self.module(stream).to(x.dtype), stream


def refuse_crossing(stack: nn.Module) -> None:
    """Raise a ``ValueError`` if a norm in ``stack`` takes its statistics over several tokens; only
    to be asked of a causal one."""
    for name, module in stack.named_modules():
        if isinstance(module, Norm) and module.crosses_tokens:
            raise ValueError(
                f"{type(module).__name__} at {name} takes its statistics over several tokens: in a "
                "causal stack every token would see those after it. Use a norm of one token, or "
                "side='encoder'"
            )


def as_norm(module: nn.Module) -> Norm:
    """The module itself if it is a Norm, otherwise wrapped as one."""
    return module if isinstance(module, Norm) else Foreign(module)


def _length(s: Tensor) -> Tensor:
    """||s|| over the last axis, and a gradient of 0 where s is 0.

    By ``sum``, which adds in pairs: vector_norm adds one after the other where s is strided, and
    loses two digits at width 768.
    """
    square = (s * s).sum(-1, keepdim=True)
    return square.clamp(min=torch.finfo(s.dtype).tiny).sqrt()


def _without_padding(s: Tensor, valid: Tensor | None) -> Tensor:
    """Padding may hold anything, NaN included: 0 instead."""
    return s if valid is None else torch.where(valid[..., None], s, 0.0)


def _masked_moments(
    s: Tensor, valid: Tensor | None, dims: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, biased variance, how many entries went in) over ``dims``, padding left out.

    Mean and variance have size 1 where s has ``dims``; the count is one number, the largest of all
    statistics and at least 1. ``valid`` has the leading dimensions of s; the remaining ones are
    broadcast. Padding in s must be 0 already, ``_without_padding``: here it is multiplied by 0,
    which NaN survives.
    """
    if valid is None:
        mask = torch.ones_like(s)
    else:
        shape = valid.shape + (1,) * (s.dim() - valid.dim())
        mask = valid.reshape(shape).to(s.dtype).expand_as(s)
    count = mask.sum(dims, keepdim=True).clamp(min=1.0)
    mean = (s * mask).sum(dims, keepdim=True) / count
    centred = (s - mean) * mask
    mean = mean + centred.sum(dims, keepdim=True) / count  # plus what rounding left of it
    centred = (s - mean) * mask
    var = (centred * centred).sum(dims, keepdim=True) / count
    return mean, var, count.amax()
