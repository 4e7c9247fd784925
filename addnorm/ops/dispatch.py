"""``add_norm``, the one door to Add & Norm.

It checks its arguments, offers the call to the kernels in turn and falls back to the reference; a
kernel's backward becomes a gradient here.

Under ``torch.compile`` the reference always serves: the compiler fuses it with its neighbours,
which it cannot do with an opaque kernel.
"""

from typing import Any, final

import torch
from torch import Tensor

from addnorm.ops import aten
from addnorm.ops.kernel import NormCall, NormKernel, NormOutput, NormSpec
from addnorm.ops.offers import Offers
from addnorm.ops.reference import (
    Cast,
    NormKind,
    Scale,
    accumulate_dtype,
    normalize,
    scaled,
    settle,
    without_autocast,
)

OFFERS = Offers("add_norm", aten.KERNEL)
"""In this order; ``ops.register`` puts others before them."""

# What ``_Fused.forward`` gets after ctx, kernel, spec and output, by its place among the arguments:
# so does autograd number them.
X, RESIDUAL, WEIGHT, BIAS, KEEP, GAIN = range(3, 9)


def add_norm(
    x: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    kind: NormKind = "layer",
    eps: float,
    keep: Scale = 1.0,
    gain: Scale = 1.0,
    weight_offset: float = 0.0,
    cast: Cast = "fp32",
) -> tuple[Tensor, Tensor]:
    """Add & Norm in one call: ``(normed, stream)``.

    ``stream = keep * residual + gain * x`` in the residual's dtype (without a residual
    ``gain * x`` in x's dtype, and x itself when gain is 1); ``normed`` is its LayerNorm or RMSNorm
    over the last dimension, in x's dtype. ``keep`` and ``gain`` are numbers or tensors that
    broadcast against x, such as (), (dim,) or (B, 1, 1), and receive gradients.
    """
    call = NormCall(x, residual, weight, bias, keep, gain, NormSpec(kind, eps, weight_offset, cast))
    _check(call)
    if torch.compiler.is_compiling():
        return by_definition(call)
    return OFFERS.serve(lambda kernel: by_kernel(kernel, call), lambda: by_definition(call))


def by_kernel(kernel: NormKernel, call: NormCall) -> tuple[Tensor, Tensor]:
    """``add_norm`` by one kernel, with its gradient; ``Declined`` if it does not serve the call."""
    with torch.no_grad(), without_autocast(call.x):
        output = kernel.forward(call)
    normed, *stream = _Fused.apply(kernel, call.spec, output, *call[:-1])
    return normed, stream[0] if stream else call.x


def by_definition(call: NormCall) -> tuple[Tensor, Tensor]:
    """``add_norm`` by the reference, with autograd's gradient."""
    stream = settle(call.x, call.residual, call.keep, call.gain)
    normed = normalize(stream, call.weight, call.bias, **call.spec._asdict(), dtype=call.x.dtype)
    return normed, stream


def _check(call: NormCall) -> None:
    """Raise a TypeError or ValueError if the arguments of ``add_norm`` do not fit together."""
    x, spec = call.x, call.spec
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"add_norm: nothing to normalize over in x of shape {tuple(x.shape)}")
    width = x.shape[-1:]
    for name, t, shape in (
        ("x", x, x.shape),
        ("residual", call.residual, x.shape),
        ("weight", call.weight, width),
        ("bias", call.bias, width),
    ):
        if t is None:
            continue
        if not t.is_floating_point():
            raise TypeError(f"add_norm: {name} must be floating point, got {t.dtype}")
        if t.shape != shape:
            raise ValueError(
                f"add_norm: {name} must have shape {tuple(shape)} beside x of shape "
                f"{tuple(x.shape)}, got {tuple(t.shape)}"
            )
    for name, factor in (("keep", call.keep), ("gain", call.gain)):
        if isinstance(factor, Tensor) and not _broadcasts(factor.shape, x.shape):
            raise ValueError(
                f"add_norm: {name} of shape {tuple(factor.shape)} does not broadcast to x of shape "
                f"{tuple(x.shape)}"
            )
    if spec.kind not in ("layer", "rms"):
        raise ValueError(f"add_norm: kind must be 'layer' or 'rms', got {spec.kind!r}")
    if spec.cast not in ("fp32", "llama"):
        raise ValueError(f"add_norm: cast must be 'fp32' or 'llama', got {spec.cast!r}")


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    trailing = to[len(to) - len(shape) :]
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(shape, trailing, strict=True))


@final
class _Fused(torch.autograd.Function):
    """A kernel with a gradient.

    ``output`` is what ``kernel.forward`` gave for the tensors after it, computed outside, without
    gradients: here it only gets its place in the graph. A gradient that must itself be
    differentiable (create_graph) is taken through the reference, from the stream that the kernel
    stored. A stream that is x itself is not an output: x is there.
    """

    @staticmethod
    def forward(
        ctx: Any,
        kernel: NormKernel,
        spec: NormSpec,
        output: NormOutput,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        keep: Scale,
        gain: Scale,
    ) -> tuple[Tensor, ...]:
        """``(normed, stream)``, or ``(normed,)`` where the stream is x."""
        normed, stream, statistics = output
        ctx.set_materialize_grads(False)
        # x and residual are kept only where a learned factor needs them: everything else follows
        # from the stream, which the next reader keeps anyway.
        needs = ctx.needs_input_grad
        ctx.save_for_backward(
            stream if stream is not x else None,
            x if needs[GAIN] or stream is x else None,
            residual if needs[KEEP] else None,  # None as well where there is no residual to keep
            weight,
            bias,
            keep if isinstance(keep, Tensor) else None,
            gain if isinstance(gain, Tensor) else None,
            *statistics,
        )
        ctx.kernel, ctx.spec, ctx.dtype = kernel, spec, x.dtype
        # a factor that is a tensor is among those saved
        ctx.keep = None if isinstance(keep, Tensor) else keep
        ctx.gain = None if isinstance(gain, Tensor) else gain
        return (normed,) if stream is x else (normed, stream)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dstream: Tensor | None = None) -> tuple[Any, ...]:
        """A gradient for each argument of ``forward``, None for what is no tensor or wants none.
        ``dy`` or ``dstream`` is None where nobody reads that output."""
        stream, x, residual, weight, bias, keep, gain, *statistics = ctx.saved_tensors
        keep = ctx.keep if keep is None else keep
        gain = ctx.gain if gain is None else gain
        stream = x if stream is None else stream
        if dy is None:
            dy = torch.zeros_like(stream, dtype=ctx.dtype)
        # With create_graph the gradients are recorded, and a kernel's could not be.
        gradients = _differentiated if torch.is_grad_enabled() else ctx.kernel.backward
        with without_autocast(stream):
            d, dweight, dbias = gradients(
                dy, dstream, stream, tuple(statistics), weight, bias, ctx.spec
            )
        needs = ctx.needs_input_grad
        wide = accumulate_dtype(d)
        dx = scaled(gain, d, wide).to(ctx.dtype) if needs[X] else None
        dresidual = scaled(keep, d, wide).to(d.dtype) if needs[RESIDUAL] else None
        dkeep = None if residual is None else _summed(d, residual, keep)
        dgain = _summed(d, x, gain) if needs[GAIN] else None
        return (
            None,
            None,
            None,
            dx,
            dresidual,
            dweight if needs[WEIGHT] else None,
            dbias if needs[BIAS] else None,
            dkeep,
            dgain,
        )


def _summed(d: Tensor, operand: Tensor, factor: Tensor) -> Tensor:
    """The gradient of a learned factor on ``operand``, ``d`` being that of the stream, accumulated
    in float32 or better over all to which it was broadcast."""
    wide = accumulate_dtype(d, operand)
    return (d.to(wide) * operand.to(wide)).sum_to_size(factor.shape).to(factor.dtype)


def _differentiated(
    dy: Tensor,
    dstream: Tensor | None,
    stream: Tensor,
    statistics: tuple[Tensor, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    spec: NormSpec,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """A ``NormKernel.backward`` by the reference, differentiable again: (gradient of the stream, of
    the weight, of the bias), None for what wants none.

    Taken with respect to views: the stream itself was made from weight and bias, and the search for
    their gradients would go on through it, into the backward that asks here.
    """
    with torch.enable_grad():
        s = stream.view_as(stream) if stream.requires_grad else stream.detach().requires_grad_()
        w = None if weight is None else weight.view_as(weight)
        b = None if bias is None else bias.view_as(bias)
        normed = normalize(s, w, b, **spec._asdict(), dtype=dy.dtype)
    leaves = [t for t in (s, w, b) if t is not None and t.requires_grad]
    grads = iter(torch.autograd.grad(normed, leaves, dy, create_graph=True))
    d = next(grads)
    d = d if dstream is None else d + dstream
    dweight = next(grads) if w is not None and w.requires_grad else None
    dbias = next(grads) if b is not None and b.requires_grad else None
    return d, dweight, dbias
