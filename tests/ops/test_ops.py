"""Add & Norm itself: against float64, at the edges of what floats can hold, and in dispatch.

Tolerances, unless a test derives its own:

``EXACT`` for two float64 evaluations of one formula, relative to the largest entry where that
exceeds one. An output entry is a few sums over at most 11 numbers, a gradient of a factor one over
66: below 10^3 roundings of 1.1e-16 each if all had one sign, a margin of ten for the division by
deviations down to 0.3. A wrong term shows at 1e-2 or more.

``CLOSE`` for float32 statistics against float64 of the same input. A sum over D entries is taken in
blocks, so that its relative error is a few roundings of 6e-8, not D of them; mean, second mean,
mean square, root and product add up to below 20 of them, 1.2e-6, on normalized values that stay
below 6. The worst seen is 1e-6, and 1e-5 is what the documentation promises.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from addnorm import ops
from addnorm.ops import reference
from tests.references import norms, tape
from tests.references.tape import Array, Var

EXACT = 1e-12
CLOSE = 1e-5
KINDS = ("layer", "rms")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
DIGITS = {torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}  # bits of the significand
B, T, D = 2, 3, 11


@pytest.fixture(scope="module", params=["reference", "aten"], autouse=True)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """All below holds of the definition, and of what serves eager calls on CPUs."""
    with ops.reference_only() if request.param == "reference" else nullcontext():
        yield request.param


FACTORS: dict[str, tuple[int, ...]] = {"scalar": (), "channel": (D,), "sample": (B, 1, 1)}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)


def numpy(t: Tensor) -> Array:
    return t.detach().double().numpy()


def grad(t: Tensor) -> Tensor:
    assert t.grad is not None
    return t.grad


def expected(
    kind: str,
    tensors: dict[str, Tensor | float | None],
    eps: float,
    offset: float,
    dy: Tensor,
    dstream: Tensor | None,
) -> tuple[Array, Array, dict[str, Array]]:
    """normed, stream and the gradients of sum(normed * dy + stream * dstream), in float64."""
    v = {
        k: Var(numpy(t) if isinstance(t, Tensor) else t)
        for k, t in tensors.items()
        if t is not None
    }
    weight, bias = v.get("weight", Var(1.0 - offset)), v.get("bias", Var(0.0))

    def norm(s: Var) -> Var:
        if kind == "rms":
            return norms.rms_norm(s, weight, eps, offset) + bias
        return norms.layer_norm(s, weight + offset, bias, eps)

    keep, gain = v.get("keep", Var(1.0)), v.get("gain", Var(1.0))
    if "residual" in v:
        normed, stream = norms.add_norm(norm, v["residual"], v["x"], keep, gain)
    else:
        stream = gain * v["x"]
        normed = norm(stream)
    loss = (normed * numpy(dy)).sum()
    if dstream is not None:
        loss = loss + (stream * numpy(dstream)).sum()
    tape.backward(loss, 1.0)
    return normed.value, stream.value, {k: var.grad for k, var in v.items()}


def close(what: str, actual: Tensor, want: Array, tolerance: float) -> None:
    """Within ``tolerance`` of the largest value, where that exceeds one."""
    assert actual.shape == want.shape, f"{what}: {tuple(actual.shape)} instead of {want.shape}"
    if want.size:
        error, scale = np.abs(numpy(actual) - want).max(), max(1.0, np.abs(want).max())
        assert error <= tolerance * scale, f"{what}: off by {error:.3g} of {scale:.3g}"


def half_unit(want: Array, dtype: torch.dtype) -> Array:
    """Half a unit in the last place of ``want`` in a dtype: what the final rounding may cost."""
    if dtype in (torch.float32, torch.float64):
        return np.zeros_like(want)  # within CLOSE
    exponent = np.frexp(np.abs(want) + CLOSE)[1]  # |want| = m * 2^exponent with m in [0.5, 1)
    smallest = math.log2(torch.finfo(dtype).smallest_normal) + 1  # below it units shrink no more
    return np.asarray(np.ldexp(0.5, np.maximum(exponent, int(smallest)) - DIGITS[dtype]))


def accurate(what: str, actual: Tensor, want: Array) -> None:
    """Every entry within CLOSE, and the rounding of the output's dtype, of float64."""
    assert actual.shape == want.shape, f"{what}: {tuple(actual.shape)} instead of {want.shape}"
    excess = np.abs(numpy(actual) - want) - half_unit(want, actual.dtype)
    assert not np.isnan(excess).any(), f"{what}: NaN"
    assert excess.size == 0 or excess.max() <= CLOSE, f"{what}: off by {excess.max():.3g}"


def accurate_rows(what: str, actual: Tensor, want: Array, scale: Array) -> None:
    """Every row within CLOSE of its own scale: gradients of rows differ in magnitude."""
    error = np.abs(numpy(actual) - want).max(-1)
    worst = (error / np.maximum(scale, np.finfo(np.float64).tiny)).max(initial=0.0)
    assert not np.isnan(worst), f"{what}: NaN"
    assert worst <= CLOSE, f"{what}: off by {worst:.3g}, relative"


def gradient_scale(stream: Array, kind: str, eps: float, g: Array) -> Array:
    """r max|g| of every row: the terms of r (g - m(g) - x^ m(g x^)) before they cancel."""
    centred = stream - stream.mean(-1, keepdims=True) if kind == "layer" else stream
    return np.asarray(np.abs(g).max(-1) / np.sqrt((centred**2).mean(-1) + eps))


def check(x: Tensor, kind: str, residual: Tensor | None = None, eps: float = 1e-5) -> None:
    """Values and the gradient of x against float64 of the same input."""
    leaf = x.detach().requires_grad_()
    # The stored sum is what is normalized; without this the check would be of the sum's rounding.
    rounded_sum = ops.settle(x, residual).detach()
    dy = randn(*x.shape, seed=9, dtype=x.dtype)
    want, _, grads = expected(kind, {"x": rounded_sum}, eps, 0.0, dy, None)
    y, stream = ops.add_norm(leaf, residual, kind=kind, eps=eps)
    assert y.dtype == x.dtype
    accurate(f"{kind} values", y, want)
    torch.testing.assert_close(stream.detach(), rounded_sum, rtol=0, atol=0)
    if x.dtype == torch.float32 and (residual is None or residual.dtype == torch.float32):
        y.backward(dy)
        scale = gradient_scale(numpy(rounded_sum), kind, eps, numpy(dy))
        accurate_rows(f"{kind} gradient", grad(leaf), grads["x"], scale)


# --- the definition -------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("factor", ["numbers", *FACTORS])
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_equation(kind: Any, with_residual: bool, factor: str, offset: float) -> None:
    shape = FACTORS.get(factor)
    tensors: dict[str, Any] = {
        "x": randn(B, T, D, seed=1),
        "residual": randn(B, T, D, seed=2) if with_residual else None,
        "weight": randn(D, seed=3),
        "bias": randn(D, seed=4),
        "keep": 0.7 if shape is None else 1.0 + 0.3 * randn(*shape, seed=5),
        "gain": -1.3 if shape is None else 1.0 + 0.3 * randn(*shape, seed=6),
    }
    if not with_residual:
        tensors["keep"] = 1.0
    leaves = {k: t.requires_grad_() for k, t in tensors.items() if isinstance(t, Tensor)}
    dy, dstream = randn(B, T, D, seed=7), randn(B, T, D, seed=8)
    y, stream = ops.add_norm(**tensors, kind=kind, eps=1e-3, weight_offset=offset)
    torch.autograd.backward([y, stream], [dy, dstream])
    want_y, want_stream, grads = expected(kind, tensors, 1e-3, offset, dy, dstream)
    close("normed", y, want_y, EXACT)
    close("stream", stream, want_stream, EXACT)
    for name, leaf in leaves.items():
        close(f"gradient of {name}", grad(leaf), grads[name], EXACT)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("has_weight", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_weight_and_bias_may_be_absent(kind: Any, has_weight: bool, has_bias: bool) -> None:
    x = randn(B, T, D, seed=1).requires_grad_()
    weight = randn(D, seed=3).requires_grad_() if has_weight else None
    bias = randn(D, seed=4).requires_grad_() if has_bias else None
    dy = randn(B, T, D, seed=7)
    y, _ = ops.add_norm(x, None, weight, bias, kind=kind, eps=1e-3)
    y.backward(dy)
    tensors: dict[str, Any] = {"x": x, "weight": weight, "bias": bias}
    want, _, grads = expected(kind, tensors, 1e-3, 0.0, dy, None)
    close("normed", y, want, EXACT)
    for name, leaf in tensors.items():
        if leaf is not None:
            close(f"gradient of {name}", grad(leaf), grads[name], EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_eps_is_added_to_the_mean_square_inside_the_root(kind: Any) -> None:
    """A row of +-1 has mean square 1: 1 / sqrt(1 + 3) is 1 / 2, with eps outside it were 1 / 4."""
    x = torch.tensor([[1.0, -1.0]])
    y, _ = ops.add_norm(x, kind=kind, eps=3.0)
    assert y.tolist() == [[0.5, -0.5]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (D,), (B, 1, 1)], ids=str)
def test_gradcheck(kind: Any, shape: tuple[int, ...]) -> None:
    """First and second derivatives by finite differences, in every input at once."""
    d = 3
    factor = (d,) if shape == (D,) else shape
    inputs = [randn(B, 2, d, seed=1), randn(B, 2, d, seed=2), randn(d, seed=3), randn(d, seed=4)]
    inputs += [1.0 + 0.3 * randn(*factor, seed=5), 1.0 + 0.3 * randn(*factor, seed=6)]
    inputs = [t.requires_grad_() for t in inputs]

    def f(x: Tensor, h: Tensor, w: Tensor, b: Tensor, keep: Tensor, gain: Tensor) -> Any:
        return ops.add_norm(x, h, w, b, kind=kind, eps=1e-2, keep=keep, gain=gain)

    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_without_residual(kind: Any) -> None:
    inputs = [t.requires_grad_() for t in (randn(2, 3, seed=1), randn(3, seed=3))]

    def f(x: Tensor, w: Tensor) -> Any:
        return ops.add_norm(x, None, w, kind=kind, eps=1e-2, weight_offset=1.0)

    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 3, 768, 8193, 65536])
def test_widths(kind: str, width: int) -> None:
    check(randn(3, width, seed=1, dtype=torch.float32), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 65535, 65536, 65537])
def test_rows(kind: str, rows: int) -> None:
    check(randn(rows, 8, seed=1, dtype=torch.float32), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtypes(kind: str, dtype: torch.dtype) -> None:
    x, residual = randn(64, 768, seed=1, dtype=dtype), randn(64, 768, seed=2, dtype=dtype)
    check(x, kind)
    check(x, kind, residual)
    check(x, kind, residual.float())


@pytest.mark.parametrize("width", [3, 768, 65536])
def test_a_mean_of_1e4_and_a_spread_of_1e_minus_2(width: int) -> None:
    """Where E[x^2] - E[x]^2 has no digit left, and where one subtraction of a rounded mean shows.

    ``eps`` is far below the variance of 1e-4, so that it hides nothing.
    """
    x = (randn(16, width, seed=1) * 1e-2 + 1e4).float()
    check(x, "layer", eps=1e-12)
    s = x - x.mean(-1, keepdim=True)
    once = s * torch.rsqrt((s * s).mean(-1, keepdim=True) + 1e-12)
    want, _, _ = expected("layer", {"x": x}, 1e-12, 0.0, x, None)
    if width == 768:
        assert np.abs(numpy(once) - want).max() > 100 * CLOSE, "the input is too easy"


# 1e14 to 1e18: the squares fit into float32, the cube of 1 / rms does not. 3e18: they hardly fit.
MAGNITUDES = [1e-30, 1e-3, 1e3, 1e9, 1e11, 1e14, 1e16, 1e18, 3e18, 1e20, 1e25, 1e30, 1e37]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 8, 768])
@pytest.mark.parametrize("magnitude", MAGNITUDES, ids="{:.0e}".format)
def test_magnitudes(kind: str, width: int, magnitude: float) -> None:
    """Values and gradients at every magnitude that float32 can hold."""
    check((randn(5, width, seed=1) * magnitude).float(), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_large_rows_in_bfloat16(kind: str) -> None:
    for magnitude in (1e18, 1e25, 1e30, 1e37):
        check((randn(5, 768, seed=1) * magnitude).bfloat16(), kind)


@pytest.mark.parametrize("magnitude", [1e10, 1e18, 1e20, 1e30], ids="{:.0e}".format)
def test_large_rows_with_a_larger_mean(magnitude: float) -> None:
    """What takes a large row into range must not round it: its spread is in the last bits."""
    x = (magnitude * (1.0 + 1e-6 * randn(16, 768, seed=1))).float()
    check(x, "layer")
    check(x, "layer", eps=1e3)  # nothing beside a spread of 1e4 and more


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_one_batch_keep_their_own_scale(kind: str) -> None:
    scales = torch.tensor([1e-30, 1e-6, 1.0, 1e6, 1e16, 1e18, 1e22, 1e30, 1e37]).double()
    check((randn(9, 768, seed=1) * scales[:, None]).float(), kind)


def test_largest_floats_of_either_sign() -> None:
    """max - (-max) is the largest difference there is, twice what float32 can hold."""
    largest = torch.finfo(torch.float32).max
    x = torch.tensor([[largest, -largest, largest, -largest], [largest, 0.0, 0.0, 0.0]])
    check(x, "layer")
    check(x, "rms")


@pytest.mark.parametrize("width", [3, 768, 65536])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4 + 0.3, 1.7e10, 1.1e18, 1e20, 1e30, -1e37])
def test_zero_variance_gives_exactly_the_bias(value: float, width: int) -> None:
    """And finite gradients: r (g - mean g) with r = 1 / sqrt(eps), by the backward formula.

    Above 4e9 neighbouring floats are 256 apart: eps is nothing beside that, and the gradient only
    has to be finite.
    """
    x = torch.full((2, width), value, dtype=torch.float32).requires_grad_()
    weight, bias = (randn(width, seed=s, dtype=torch.float32) for s in (3, 4))
    dy = randn(2, width, seed=7, dtype=torch.float32)
    y, _ = ops.add_norm(x, None, weight, bias, kind="layer", eps=1e-5)
    assert torch.equal(y.detach(), bias.expand(2, width))
    y.backward(dy)
    assert grad(x).isfinite().all()
    if abs(value) < 4e9:
        g, r = numpy(dy) * numpy(weight), 1.0 / math.sqrt(1e-5)
        scale = r * np.abs(g).max(-1)
        accurate_rows("gradient", grad(x), r * (g - g.mean(-1, keepdims=True)), scale)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_rows(kind: Any) -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    y, _ = ops.add_norm(x, kind=kind, eps=1e-6)
    assert torch.equal(y.detach(), torch.zeros(2, 8))
    dy = randn(2, 8, dtype=torch.float32)
    y.backward(dy)
    centre = dy.mean(-1, keepdim=True) if kind == "layer" else 0.0
    accurate_rows("gradient", grad(x), numpy(dy - centre) * 1e3, 1e3 * numpy(dy.abs().amax(-1)))
    with_none = torch.zeros(2, 8, requires_grad=True)
    y, _ = ops.add_norm(with_none, kind=kind, eps=0.0)
    assert torch.equal(y.detach(), torch.zeros(2, 8))
    y.backward(dy)
    assert grad(with_none).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_non_finite_rows_stay_nan_and_alone(kind: Any, poison: float, implementation: str) -> None:
    """To the bit by the reference; a kernel hands such a call over to it, which rounds anew."""
    tolerance = 0.0 if implementation == "reference" else CLOSE
    x = randn(4, 8, seed=1, dtype=torch.float32)
    x[1, 3] = poison
    leaf, clean = x.clone().requires_grad_(), x[[0, 2, 3]].clone().requires_grad_()
    dy = randn(4, 8, seed=2, dtype=torch.float32)
    y, stream = ops.add_norm(leaf, kind=kind, eps=1e-5)
    assert y[1].isnan().all(), "a broken row must not look healthy"
    assert torch.equal(stream.nan_to_num(), x.nan_to_num())
    y.backward(dy)
    others, _ = ops.add_norm(clean, kind=kind, eps=1e-5)
    others.backward(dy[[0, 2, 3]])
    torch.testing.assert_close(y[[0, 2, 3]], others, rtol=0, atol=tolerance)
    torch.testing.assert_close(grad(leaf)[[0, 2, 3]], grad(clean), rtol=0, atol=tolerance)
    assert grad(leaf)[1].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "layout",
    [
        lambda t: t[:, ::2, 1:9],
        lambda t: t.transpose(0, 1)[..., :8],
        lambda t: t.transpose(1, 2),
        lambda t: t[:1, :1].expand(4, 5, -1),
        lambda t: t[..., :1].expand(-1, -1, 8),
        lambda t: t.flip(-1)[:, :, ::3],
        lambda t: t[:0],
        lambda t: t[:, :0],
    ],
    ids=["sliced", "rows swapped", "transposed", "expanded", "constant", "strided", "0", "(B, 0)"],
)
def test_any_layout(kind: Any, layout: Callable[[Tensor], Tensor]) -> None:
    """A view gives what its copy gives, values and gradients; x and the residual each a view."""
    base = randn(6, 10, 12, seed=1, dtype=torch.float32)
    results = []
    for copy in (False, True):
        x, h = base.clone().requires_grad_(), base.roll(1).requires_grad_()
        u, r = (layout(t).contiguous() if copy else layout(t) for t in (x, h))
        w = randn(u.shape[-1] * 2, seed=3, dtype=torch.float32).requires_grad_()
        weight = w[::2].clone() if copy else w[::2]
        y, stream = ops.add_norm(u, r, weight, weight, kind=kind, eps=1e-5)
        assert y.shape == stream.shape == u.shape
        if y.numel():
            tensors: dict[str, Any] = {"x": stream, "weight": weight, "bias": weight}
            accurate("values", y, expected(kind, tensors, 1e-5, 0.0, y, None)[0])
        dy = randn(*y.shape, seed=7, dtype=torch.float32)
        torch.autograd.backward([y, stream], [dy, dy])
        results.append((y.detach(), stream.detach(), grad(x), grad(h), grad(w)))
    for actual, copied in zip(*results, strict=True):
        close("view and copy", actual, numpy(copied), CLOSE)


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    shape=st.lists(st.integers(1, 5), max_size=2),
    width=st.integers(1, 300),
    stride=st.integers(1, 3),
    swap=st.booleans(),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(FLOATS),
    wide_residual=st.sampled_from([None, False, True]),
    exponent=st.floats(-30, 36),
    mean=st.sampled_from([0.0, 1.0, 1e3]),
    seed=st.integers(0, 2**16),
)
def test_any_input(
    shape: list[int],
    width: int,
    stride: int,
    swap: bool,
    kind: str,
    dtype: torch.dtype,
    wide_residual: bool | None,
    exponent: float,
    mean: float,
    seed: int,
) -> None:
    if dtype == torch.float16:
        exponent = exponent / 10 - 1  # up to 400, times a mean of 1e3, twice: still below 65504
        mean = min(mean, 10.0)

    def make(seed: int, dtype: torch.dtype) -> Tensor:
        sizes = (*shape, width * stride)
        values = ((randn(*sizes, seed=seed) + mean) * 10**exponent).to(dtype)[..., ::stride]
        return values.transpose(0, -1) if swap else values

    x = make(seed, dtype)
    if wide_residual is None:
        check_any(x, kind, None)
    else:
        check_any(x, kind, make(seed + 1, torch.float32 if wide_residual else dtype))


def check_any(x: Tensor, kind: str, residual: Tensor | None) -> None:
    """``check`` without gradients: rows may have zero variance here."""
    rounded_sum = ops.settle(x, residual)
    # A float64 mean of equal numbers can be off by a rounding, which eps may not hide: then the
    # answer is known instead.
    flat = (rounded_sum == rounded_sum[..., :1]).all(-1, keepdim=True)
    want, _, _ = expected(kind, {"x": rounded_sum}, 1e-5, 0.0, rounded_sum, None)
    if kind == "layer":
        want = np.where(flat.numpy(), 0.0, want)
    y, stream = ops.add_norm(x, residual, kind=kind, eps=1e-5)
    assert torch.equal(stream, rounded_sum)
    assert y.dtype == x.dtype
    accurate("values", y, want)


# --- the stream and the dtypes --------------------------------------------------------------------


def test_without_residual_and_factor_the_stream_is_x() -> None:
    x = randn(2, 8, dtype=torch.bfloat16)
    assert ops.add_norm(x, eps=1e-5)[1] is x
    doubled = ops.add_norm(x, eps=1e-5, gain=2.0)[1]
    assert doubled.dtype == torch.bfloat16
    assert torch.equal(doubled, 2 * x)


@pytest.mark.parametrize("residual", [None, *FLOATS, torch.float64], ids=str)
@pytest.mark.parametrize("weight", [*FLOATS, torch.float64], ids=str)
@pytest.mark.parametrize("x", [*FLOATS, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_dtype_table(kind: Any, x: Any, weight: Any, residual: Any) -> None:
    """y as x, the stream as the residual, each gradient as what it belongs to, all accurate."""
    u = randn(4, 64, seed=1, dtype=x).requires_grad_()
    h = None if residual is None else randn(4, 64, seed=2, dtype=residual).requires_grad_()
    w = (1.0 + 0.1 * randn(64, seed=3)).to(weight).requires_grad_()
    b = randn(64, seed=4, dtype=weight).requires_grad_()
    y, stream = ops.add_norm(u, h, w, b, kind=kind, eps=1e-5)
    assert y.dtype == x
    assert stream.dtype == (x if residual is None else residual)
    tensors: dict[str, Any] = {"x": stream, "weight": w, "bias": b}
    dy = randn(4, 64, seed=7, dtype=x)
    want, _, grads = expected(kind, tensors, 1e-5, 0.0, dy, None)
    accurate("values", y, want)
    y.backward(dy)
    for name, leaf in (("weight", w), ("bias", b)):
        accurate(f"gradient of {name}", grad(leaf), grads[name])
    for leaf in (u, h):
        if leaf is not None:
            # The stream's gradient is stored as the stream is, then as the leaf is.
            unit = sum(2.0 ** -DIGITS.get(d, 53) for d in (stream.dtype, leaf.dtype))
            close("gradient of the stream", grad(leaf), grads["x"], CLOSE + unit)
            assert grad(leaf).dtype == leaf.dtype


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_statistics_are_those_of_the_stored_stream(kind: Any, dtype: torch.dtype) -> None:
    """The next reader sees the rounded sum, so the rounded sum is what has to be normalized."""
    h = (4 + randn(16, 64, seed=2)).to(dtype)
    x = (0.01 * randn(16, 64, seed=1)).to(dtype)
    y, stream = ops.add_norm(x, h, kind=kind, eps=1e-5)
    assert torch.equal(stream, (x.float() + h.float()).to(dtype))
    want, _, _ = expected(kind, {"x": stream}, 1e-5, 0.0, y, None)
    accurate("of the stored stream", y, want)
    unrounded, _, _ = expected(kind, {"x": x.double() + h.double()}, 1e-5, 0.0, y, None)
    with pytest.raises(AssertionError):
        accurate("of the unrounded sum", y, unrounded)


def test_a_float32_stream_keeps_what_bfloat16_branches_add() -> None:
    """64 additions of 2^-10 to a stream of ones: each is below half a unit of bfloat16."""
    x = torch.full((1, 8), 2.0**-10, dtype=torch.bfloat16)
    h = torch.ones(1, 8)
    for _ in range(64):
        y, h = ops.add_norm(x, h, eps=1e-5)
        assert y.dtype == torch.bfloat16
    assert torch.equal(h, torch.full((1, 8), 1.0 + 64 * 2.0**-10))


def test_the_sum_is_taken_in_float32_and_rounded_once() -> None:
    """Products with keep and gain are not rounded to bfloat16 before they are added."""
    x, h = (randn(64, 64, seed=s, dtype=torch.bfloat16) for s in (1, 2))
    for keep, gain in ((0.3, 0.7), (torch.tensor(0.3), torch.full((64,), 0.7))):
        stream = ops.add_norm(x, h, eps=1e-5, keep=keep, gain=gain)[1]
        a, b = (numpy(t) if isinstance(t, Tensor) else t for t in (keep, gain))
        want = a * numpy(h) + b * numpy(x)
        exponent = np.frexp(np.abs(want))[1]
        # half a unit of bfloat16, and three float32 roundings of terms below 4
        assert (np.abs(numpy(stream) - want) <= np.ldexp(0.5, exponent - 8) + 4 * 2.0**-22).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_cast_orders_equal_the_published_models_to_the_last_bit(dtype: torch.dtype) -> None:
    """Llama and T5 round the normalized value, then multiply; Gemma rounds after the weight."""
    x, w = randn(256, 512, seed=1, dtype=dtype), 0.3 * randn(512, seed=3)
    eps = 1e-6
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)

    weight = (1.0 + w).to(dtype)
    llama = weight * normed.to(dtype)
    actual, _ = ops.add_norm(x, None, weight, kind="rms", eps=eps, cast="llama")
    assert torch.equal(actual, llama)
    once, _ = ops.add_norm(x, None, weight, kind="rms", eps=eps)
    assert torch.equal(once, (normed * weight.float()).to(dtype))
    assert not torch.equal(once, llama), "the input does not tell the two orders apart"

    offset = w.to(dtype)
    gemma = (normed * (1.0 + offset.float())).type_as(x)
    actual, _ = ops.add_norm(x, None, offset, kind="rms", eps=eps, weight_offset=1.0)
    assert torch.equal(actual, gemma)


@pytest.mark.parametrize("kind", KINDS)
def test_cast_orders_have_one_gradient(kind: Any) -> None:
    """Rounding has derivative one: both orders have the gradient of the formula.

    The gradient of x is rounded where it is stored, with "llama" also where the normalized value
    was: 2^-9 each. "llama" multiplies by the rounded value, so that is what the weight's gradient
    sums: 2^-9 of the terms, and 2^-9 where it is stored.
    """
    dy = randn(4, 64, seed=7, dtype=torch.bfloat16)
    for cast in ("fp32", "llama"):
        x = randn(4, 64, seed=1, dtype=torch.bfloat16).requires_grad_()
        w = randn(64, seed=3, dtype=torch.bfloat16).requires_grad_()
        y, _ = ops.add_norm(x, None, w, kind=kind, eps=1e-5, cast=cast)
        y.backward(dy)
        want, _, grads = expected(kind, {"x": x, "weight": w}, 1e-5, 0.0, dy, None)
        close("gradient of x", grad(x), grads["x"], CLOSE + 2.0**-8)
        terms = (np.abs(numpy(dy)) * np.abs(want / numpy(w))).sum(0).max()
        close("gradient of weight", grad(w), grads["weight"], 2.0**-8 * max(1.0, terms))


@pytest.mark.parametrize("kind", KINDS)
def test_weight_and_bias_gradients_are_accumulated_in_float32(kind: Any) -> None:
    """20,000 rows in bfloat16: the error against float64 is that of the final rounding.

    Slack: 32 float32 roundings of the sum of absolute terms, for the normalized values (7 of them)
    and a sum in blocks (2 log2(20000) = 29, never all of one sign). Summed in bfloat16 the bias
    stagnates at 256 of 20,000; products rounded to bfloat16 and summed in float32 are off by 0.2
    where this slack is 0.04.
    """
    rows, d = 20_000, 256
    x = randn(rows, d, seed=1, dtype=torch.bfloat16)
    dy = (1.0 + randn(rows, d, seed=7)).bfloat16()
    dy[:, : d // 2] -= 1.0  # sums that stay near 0, where rounding a term shows
    w = torch.ones(d, dtype=torch.bfloat16, requires_grad=True)
    b = torch.zeros(d, dtype=torch.bfloat16, requires_grad=True)
    y, _ = ops.add_norm(x, None, w, b, kind=kind, eps=1e-5)
    y.backward(dy)
    want, _, grads = expected(kind, {"x": x, "weight": w, "bias": b}, 1e-5, 0.0, dy, None)
    terms = {"weight": np.abs(numpy(dy) * want).sum(0), "bias": np.abs(numpy(dy)).sum(0)}

    def excess(name: str, actual: Tensor) -> float:
        bound = half_unit(grads[name], torch.bfloat16) + 32 * 2.0**-24 * terms[name]
        return float((np.abs(numpy(actual) - grads[name]) / bound).max())

    assert excess("weight", grad(w)) <= 1.0
    assert excess("bias", grad(b)) <= 1.0
    products = (dy * torch.from_numpy(want).bfloat16()).float().sum(0).bfloat16()
    assert excess("weight", products) > 1.0, "the data would not show products in bfloat16"
    total = torch.zeros(d, dtype=torch.bfloat16)
    for row in dy:
        total += row
    assert excess("bias", total) > 1.0, "the data would not show a sum in bfloat16"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(kind: Any, dtype: torch.dtype) -> None:
    def run() -> list[Tensor]:
        x, h = (randn(8, 64, seed=s, dtype=dtype).requires_grad_() for s in (1, 2))
        w, b = (randn(64, seed=s, dtype=torch.float32).requires_grad_() for s in (3, 4))
        keep = torch.tensor(0.7, requires_grad=True)
        y, stream = ops.add_norm(x, h, w, b, kind=kind, eps=1e-5, keep=keep)
        torch.autograd.backward([y, stream], [torch.ones_like(y), torch.ones_like(stream)])
        return [y, stream, *(grad(t) for t in (x, h, w, b, keep))]

    plain = run()
    with torch.autocast("cpu", torch.bfloat16):
        under = run()
    for a, b in zip(plain, under, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


# --- wrong arguments ------------------------------------------------------------------------------

X = torch.ones(B, T, D)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X.long(),), {}, r"x must be floating point, got torch.int64"),
        ((X.to(torch.complex64),), {}, r"x must be floating point, got torch.complex64"),
        ((X, X.long()), {}, r"residual.*torch.int64"),
        ((X, None, torch.ones(D).long()), {}, r"weight.*torch.int64"),
        ((X, None, None, torch.ones(D).long()), {}, r"bias.*torch.int64"),
        ((torch.tensor(1.0),), {}, r"nothing to normalize over in x of shape \(\)"),
        ((X[..., :0],), {}, r"nothing to normalize over in x of shape \(2, 3, 0\)"),
        ((X, X[0]), {}, r"residual must have shape \(2, 3, 11\).*got \(3, 11\)"),
        ((X, X[..., :1]), {}, r"residual must have shape \(2, 3, 11\).*got \(2, 3, 1\)"),
        ((X, None, X[0]), {}, r"weight must have shape \(11,\).*got \(3, 11\)"),
        ((X, None, torch.ones(1)), {}, r"weight must have shape \(11,\).*got \(1,\)"),
        ((X, None, None, torch.ones(D + 1)), {}, r"bias must have shape \(11,\).*got \(12,\)"),
        ((X, X), {"keep": torch.ones(4, 1, 1)}, r"keep.*\(4, 1, 1\)"),
        ((X, X), {"gain": torch.ones(5, B, 1, 1)}, r"gain.*\(5, 2, 1, 1\)"),
        ((X,), {"gain": torch.ones(5, B, 1, 1)}, r"gain.*\(5, 2, 1, 1\)"),
        ((X,), {"gain": torch.ones(1, B, 1, 1)}, r"gain.*\(1, 2, 1, 1\) does not broadcast"),
        ((X,), {"kind": "batch"}, r"kind must be 'layer' or 'rms', got 'batch'"),
        ((X,), {"cast": "gemma"}, r"cast must be 'fp32' or 'llama', got 'gemma'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(arguments: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        ops.add_norm(*arguments, eps=1e-5, **options)


# --- what is left out where no row is huge --------------------------------------------------------


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("eps", [1e-5, 0.0, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_shortcut_gives_the_same_bits(
    kind: str, eps: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is left out there is left out because it changes nothing; what would change, is not:
    ordinary rows, one huge row among them, constant ones, overflow, NaN, and nothing at all."""
    g = torch.Generator().manual_seed(0)
    ordinary = torch.randn(4, 7, generator=g, dtype=torch.float64)
    huge = ordinary.clone()
    huge[1] *= 1e30
    broken = ordinary.clone()
    broken[2, 3] = math.nan
    endless = ordinary.clone()
    endless[0, 0] = math.inf
    constant = torch.full((2, 7), 3.0, dtype=torch.float64)
    for x in (ordinary, 1e11 * ordinary, huge, broken, endless, constant, ordinary[:0]):
        x = x.to(dtype)
        results = []
        for with_shortcut in (False, True):
            with monkeypatch.context() as patch:
                if not with_shortcut:
                    patch.setattr(reference, "calm", lambda s: False)
                p = x.clone().requires_grad_()
                out = ops.add_norm(p, x, kind=kind, eps=eps)
                (out[0] * torch.linspace(-1, 1, 7, dtype=dtype)).sum().backward()
                results.append((*out, p.grad))
        for a, b in zip(*results, strict=True):
            assert torch.equal(a.nan_to_num(nan=7.0), b.nan_to_num(nan=7.0))


class Opaque(Tensor):
    """A tensor whose values are elsewhere: nothing of it becomes a number."""

    def __float__(self) -> float:
        raise TypeError("not here")

    __bool__ = __float__


def test_where_no_value_can_be_looked_at_the_long_way_is_taken() -> None:
    """Under vmap, and while a graph is traced, whose answer must hold for huge rows too."""
    x = torch.randn(3, 2, 7, dtype=torch.float64)

    def norm(t: Tensor) -> Tensor:
        return ops.add_norm(t, kind="layer", eps=1e-5)[0]

    torch.testing.assert_close(torch.func.vmap(norm)(x), norm(x))
    per_row = torch.func.vmap(torch.func.grad(lambda t: norm(t).square().sum()))(x)
    assert per_row.shape == x.shape
    graph = make_fx(norm)(x)
    for scale in (1.0, 1e200):
        torch.testing.assert_close(graph(scale * x), norm(scale * x))
    torch.testing.assert_close(norm(x.as_subclass(Opaque)).as_subclass(Tensor), norm(x))


def test_a_huge_row_is_seen_in_inference() -> None:
    """The shortcut is not taken for it: the answer is the scaled row's."""
    x = torch.tensor([[1.0, 2.0, 4.0]])
    with torch.inference_mode():
        big, _ = ops.add_norm(x * 2.0**100, kind="rms", eps=0.0)
        small, _ = ops.add_norm(x, kind="rms", eps=0.0)
    assert torch.equal(big, small)


@pytest.mark.parametrize("kind", KINDS)
def test_without_eps_rows_of_ten_to_the_minus_ten_are_normalized(kind: Any) -> None:
    """What keeps backward finite is 5e-26 in float32, 5e-6 of these rows' mean square."""
    x = randn(4, 64)
    want = ops.add_norm(x, kind=kind, eps=0.0)[0]
    actual = ops.add_norm((1e-10 * x).float(), kind=kind, eps=0.0)[0]
    close("y", actual, numpy(want), 2 * CLOSE)


def test_tensors_without_values_have_shapes() -> None:
    x = torch.empty(2, 8, device="meta")
    y, stream = ops.add_norm(x, x, kind="rms", eps=1e-5)
    assert (y.device.type, y.shape, stream.shape) == ("meta", x.shape, x.shape)
