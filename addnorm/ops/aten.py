"""Add & Norm on CPUs by torch's own kernels: the same numbers as the reference in a third of the
passes, for eager mode.

LayerNorm is ``aten::native_layer_norm`` and its backward. It computes s r + (-mean r), which loses
the digits by which the mean is above the spread: with up to ``MEAN`` of it, three bits. RMSNorm has
no such kernel on CPUs; its backward is written out, which leaves half of the passes of autograd's.
Rows for which either is not exact are the reference's, and known by their mean and r alone.

With s the stored stream, w the weight with its offset, r = 1 / sqrt(mean(s^2) + eps), g = w * dy:

    RMSNorm    ds = r (g - s r^2 mean(g s)),    dw = sum over rows of dy s r
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from addnorm.ops.kernel import NormCall, NormKernel, NormOutput, NormSpec
from addnorm.ops.offers import Declined
from addnorm.ops.reference import accumulate_dtype, least_square, limit, settle

MEAN = 4.0  # of a row, in its standard deviations


def forward(call: NormCall) -> NormOutput:
    """A ``NormKernel.forward``. The statistics, r and with LayerNorm the mean before it, are one
    number for each row; by them it is seen whether the rows were fit for this kernel, else
    ``Declined``."""
    _check(call)
    x, spec = call.x, call.spec
    stream = settle(x, call.residual, call.keep, call.gain)
    s = stream.to(accumulate_dtype(stream))  # (..., D)
    eps = max(spec.eps, least_square(s.dtype))
    weight = _factor(call.weight, spec, s.dtype)
    bias = _as(s.dtype, call.bias)
    if spec.kind == "layer":
        y, mean, r = torch.native_layer_norm(s, s.shape[-1:], weight, bias, eps)
        if not bool((mean.abs() * r).amax() <= MEAN):
            raise Declined("a row's mean is far above its spread")
        statistics: tuple[Tensor, ...] = (mean, r)
    else:
        r = torch.rsqrt((s * s).mean(-1, keepdim=True) + eps)  # (..., 1)
        y = s * r
        if weight is not None:
            y *= weight
        if bias is not None:
            y += bias
        statistics = (r,)
    if not bool(r.amin() * limit(s.dtype) >= 1.0):
        raise Declined("a row is huge")
    return NormOutput(y.to(x.dtype), stream, statistics)


def _check(call: NormCall) -> None:
    """Raises ``Declined`` for a call that needs more than values that can be looked at and a first
    derivative."""
    tensors = [t for t in call if isinstance(t, Tensor)]
    if any(t.device.type != "cpu" for t in tensors):
        raise Declined("for CPUs")
    if not call.x.numel():
        raise Declined("there is no row")
    if any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors):
        raise Declined("for plain tensors")
    if torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
        raise Declined("not while operations are traced or recorded")
    if torch._C._are_functorch_transforms_active():
        raise Declined("not under a transform of torch.func")
    if any(forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise Declined("it has no forward-mode derivative")
    residual = call.x if call.residual is None else call.residual
    if call.spec.cast == "llama" and call.x.dtype != accumulate_dtype(residual):
        raise Declined("cast='llama' rounds before the weight")


def backward(
    dy: Tensor,
    dstream: Tensor | None,
    stream: Tensor,
    statistics: tuple[Tensor, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    spec: NormSpec,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """A ``NormKernel.backward``: (gradient of the stream, with ``dstream`` in it, of the weight, of
    the bias), None for a weight or bias that there is not. ``statistics`` are those of
    ``forward``."""
    s = stream.to(accumulate_dtype(stream))
    w = _factor(weight, spec, s.dtype)
    dy = dy.to(s.dtype)
    dweight: Tensor | None
    dbias: Tensor | None
    if spec.kind == "layer":
        mean, r = statistics
        mask = [True, weight is not None, bias is not None]
        d, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
            dy, s, s.shape[-1:], mean, r, w, _as(s.dtype, bias), mask
        )
    else:
        (r,) = statistics
        g = dy if w is None else dy * w
        inner = torch.linalg.vecdot(g, s).unsqueeze(-1) * (r * r / s.shape[-1])  # (..., 1)
        d = torch.addcmul(g, s, inner, value=-1.0).mul_(r)
        dweight = None if weight is None else _over_rows((dy * s).mul_(r))
        dbias = None if bias is None else _over_rows(dy)
    dweight = None if weight is None else _as(weight.dtype, dweight)
    dbias = None if bias is None else _as(bias.dtype, dbias)
    d = d.to(stream.dtype)
    return d if dstream is None else d + dstream, dweight, dbias


def _as(dtype: torch.dtype, t: Tensor | None) -> Tensor | None:
    return None if t is None else t.to(dtype)


def _factor(weight: Tensor | None, spec: NormSpec, dtype: torch.dtype) -> Tensor | None:
    """The weight with its offset, in a dtype."""
    if weight is None or spec.weight_offset == 0.0:
        return _as(dtype, weight)
    return weight.to(dtype) + spec.weight_offset


def _over_rows(t: Tensor) -> Tensor:
    return t.sum(tuple(range(t.dim() - 1))) if t.dim() > 1 else t


KERNEL = NormKernel("aten", forward, backward)
