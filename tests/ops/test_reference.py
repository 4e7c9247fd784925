"""The gradients that are written out in ops/reference.py, against autograd of its forward.

Both are float64. A gradient's entry is r times a difference of at most three terms, each a product
of some ten factors and of sums over at most 11 numbers, so that either way of taking it is off by
below 10^3 roundings of 1.1e-16 of the largest term: ``EXACT`` of it, as in test_ops. The largest
term is r max|g| sqrt(D), since |x^| <= sqrt(D) (``gradient_scale``).
"""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from addnorm.ops import reference
from addnorm.ops.reference import normalize, normalize_backward, settle, settle_backward
from tests.ops.test_ops import EXACT, FACTORS, KINDS, B, D, T, close, gradient_scale, numpy, randn

MAGNITUDES: dict[str, list[float]] = {  # of each of the B * T rows
    "ordinary": [1.0] * 6,
    "small": [1e-6] * 6,
    "huge": [1e60, 1e100, 1e140, 1e180, 1e250, 1e300],
    "one of them huge": [1.0, 1.0, 1e120, 1.0, 1e-3, 1.0],
}


def rows(of: str, kind: str) -> Tensor:
    """Random rows of a magnitude; RMSNorm's with a mean, LayerNorm's without more than chance."""
    magnitudes = torch.tensor(MAGNITUDES[of], dtype=torch.float64).view(B, T, 1)
    return magnitudes * (randn(B, T, D, seed=1) + (kind == "rms"))


def scale_of(stream: Tensor, kind: str, eps: float, g: Tensor) -> np.ndarray:
    """The largest term of every row's gradient; rows are taken into the range of squares first."""
    peak = numpy(stream.abs().amax(-1, keepdim=True))
    peak = np.maximum(peak, 1e-300)
    r = gradient_scale(numpy(stream) / peak, kind, 0.0, numpy(g)) / peak[..., 0]
    return np.minimum(r, np.abs(numpy(g)).max(-1) / eps**0.5) * D**0.5


@pytest.mark.parametrize("of", MAGNITUDES)
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_norms_gradients_are_autograds(
    kind: Any, weighted: bool, offset: float, of: str
) -> None:
    stream = rows(of, kind).requires_grad_()
    weight = randn(D, seed=3).requires_grad_() if weighted else None
    bias, dy = randn(D, seed=4).requires_grad_(), randn(B, T, D, seed=7)
    options: dict[str, Any] = {"kind": kind, "eps": 1e-3, "weight_offset": offset, "cast": "fp32"}
    y = normalize(stream, weight, bias, **options, dtype=torch.float64)
    leaves = [stream, bias] if weight is None else [stream, bias, weight]
    dstream, dbias, *dweight = torch.autograd.grad(y, leaves, dy)
    actual = normalize_backward(dy, stream.detach(), weight, **options)
    g = dy if weight is None else dy * (weight.detach() + offset)
    scale = scale_of(stream.detach(), kind, 1e-3, g)[..., None]
    close(
        "gradient of the stream",
        actual.stream / torch.from_numpy(scale),
        numpy(dstream) / scale,
        EXACT,
    )
    close("gradient of bias", actual.bias, numpy(dbias), EXACT)
    for want in dweight:
        close("gradient of weight", actual.weight, numpy(want), EXACT)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4 + 0.3, -1e120])
def test_of_rows_without_variance(value: float) -> None:
    """eps alone is under the root then; above 1e102 a floor that only has to be finite."""
    stream = torch.full((2, D), value, dtype=torch.float64, requires_grad=True)
    dy = randn(2, D, seed=7)
    options: dict[str, Any] = {"kind": "layer", "eps": 1e-3, "weight_offset": 0.0, "cast": "fp32"}
    y = normalize(stream, None, None, **options, dtype=torch.float64)
    (want,) = torch.autograd.grad(y, stream, dy)
    actual = normalize_backward(dy, stream.detach(), None, **options).stream
    scale = want.abs().max()
    close("gradient of the stream", actual / scale, numpy(want / scale), EXACT)


def test_of_a_mean_far_above_the_spread() -> None:
    """Both find the mean twice; what remains are the roundings of the difference."""
    stream = (1e4 + 1e-2 * randn(B, T, D, seed=1)).requires_grad_()
    dy, weight = randn(B, T, D, seed=7), randn(D, seed=3)
    options: dict[str, Any] = {"kind": "layer", "eps": 1e-12, "weight_offset": 0.0, "cast": "fp32"}
    y = normalize(stream, weight, None, **options, dtype=torch.float64)
    (want,) = torch.autograd.grad(y, stream, dy)
    actual = normalize_backward(dy, stream.detach(), weight, **options).stream
    scale = gradient_scale(numpy(stream), "layer", 1e-12, numpy(dy * weight))[..., None] * D**0.5
    close("gradient of the stream", actual / torch.from_numpy(scale), numpy(want) / scale, EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_gradient_sums_what_the_weight_was_multiplied_by(kind: Any) -> None:
    """A float64 stream with bfloat16 outputs: autograd rounds the gradient on its way through the
    rounded value as well, 2^-8 of it, the formula does not; the sum for the weight is exact."""
    stream = randn(B, T, D, seed=1).requires_grad_()
    weight, dy = randn(D, seed=3).requires_grad_(), randn(B, T, D, seed=7, dtype=torch.bfloat16)
    options: dict[str, Any] = {"kind": kind, "eps": 1e-3, "weight_offset": 0.0}
    gradients = {}
    for cast in ("llama", "fp32"):
        y = normalize(stream, weight, None, **options, cast=cast, dtype=torch.bfloat16)
        dstream, dweight = torch.autograd.grad(y, [stream, weight], dy)
        actual = normalize_backward(dy, stream.detach(), weight, **options, cast=cast)
        close("gradient of weight", actual.weight, numpy(dweight), EXACT)
        scale = gradient_scale(numpy(stream), kind, 1e-3, numpy(dy) * numpy(weight))[..., None]
        scale = scale * D**0.5
        tolerance = 2.0**-8 if cast == "llama" else EXACT
        close(
            "of the stream",
            actual.stream / torch.from_numpy(scale),
            numpy(dstream) / scale,
            tolerance,
        )
        gradients[cast] = actual.weight
    assert not torch.equal(gradients["llama"], gradients["fp32"]), (
        "the input does not tell the two apart"
    )


@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize("keep", ["number", *FACTORS])
@pytest.mark.parametrize("gain", ["number", *FACTORS])
@pytest.mark.parametrize("with_residual", [True, False])
def test_the_adds_gradients_are_autograds(
    with_residual: bool, gain: str, keep: str, one_row: bool
) -> None:
    """Numbers and tensors that broadcast, over everything that they were broadcast to."""
    shape = (1, 1, D) if one_row else (B, T, D)

    def factor(name: str, number: float, seed: int) -> float | Tensor:
        if name == "number":
            return number
        sizes = (1, 1, 1) if one_row and name == "sample" else FACTORS[name]
        return (1.0 + 0.3 * randn(*sizes, seed=seed)).requires_grad_()

    x = randn(*shape, seed=1).requires_grad_()
    residual = randn(*shape, seed=2).requires_grad_() if with_residual else None
    k, g = factor(keep, 0.7, 5), factor(gain, -1.3, 6)
    d = randn(*shape, seed=8)
    actual = settle_backward(d, x, residual, k, g)
    arguments = {"x": x, "residual": residual, "keep": k, "gain": g}
    leaves = {name: t for name, t in arguments.items() if isinstance(t, Tensor)}
    gradients = torch.autograd.grad(
        settle(x, residual, k, g), list(leaves.values()), d, allow_unused=True
    )
    for (name, leaf), want in zip(leaves.items(), gradients, strict=True):
        mine = getattr(actual, name)
        if want is None:  # keep, where there is nothing to keep
            assert mine is None
        else:
            assert mine.dtype == leaf.dtype
            close(f"gradient of {name}", mine, numpy(want), EXACT)
    for name in arguments.keys() - leaves.keys():
        assert getattr(actual, name) is None


@pytest.mark.parametrize(("x", "residual"), [*product((torch.bfloat16, torch.float32), repeat=2)])
def test_each_gradient_has_the_dtype_of_what_it_belongs_to(
    x: torch.dtype, residual: torch.dtype
) -> None:
    """And factors are summed in float32: 4096 products of 1 and 1 + 2^-7, which bfloat16 would stop
    adding up at 256."""
    d = torch.ones(4096, 1, dtype=residual)
    u, h = torch.full((4096, 1), 1 + 2.0**-7, dtype=x), torch.ones(4096, 1, dtype=residual)
    keep, gain = torch.ones(1), torch.ones(())
    actual = settle_backward(d, u, h, keep, gain)
    assert actual.residual is not None
    assert actual.keep is not None
    assert actual.gain is not None
    assert (actual.x.dtype, actual.residual.dtype) == (x, residual)
    assert (actual.keep.item(), actual.gain.item()) == (4096.0, 4096 * (1 + 2.0**-7))


def test_one_row_alone_has_no_rows_to_sum_over() -> None:
    dy, stream = randn(D, seed=7), randn(D, seed=1)
    actual = normalize_backward(
        dy, stream, None, kind="rms", eps=1e-3, weight_offset=0.0, cast="fp32"
    )
    assert torch.equal(actual.bias, dy)
    assert torch.equal(actual.weight, dy * reference.standardize(stream, "rms", 1e-3))
