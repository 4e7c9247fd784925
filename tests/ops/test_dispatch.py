"""Which implementation serves a call: a toy kernel beside the reference, and torch's own.

``EXACT`` is that of test_ops: two float64 evaluations of one formula.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from addnorm import ops
from addnorm.ops.aten import KERNEL
from addnorm.ops.kernel import NormCall, NormKernel, NormOutput, NormSpec
from addnorm.ops.offers import Declined, KernelCalls
from tests.ops.test_ops import EXACT, KINDS, Opaque, close, grad, numpy, randn


@pytest.fixture(scope="module", autouse=True)
def nothing_else() -> Iterator[None]:
    with ops.reference_only():
        yield


class Toy:
    """A kernel for rows of at most 64 with a weight, backward by the textbook formulas.

    With x^ the normalized row, r = 1 / root, g = dy * (weight_offset + weight), m the row's mean:
    LayerNorm dx = r (g - m(g) - x^ m(g x^)), RMSNorm dx = r (g - x^ m(g x^)); dweight = sum dy x^,
    dbias = sum dy; and what comes to the stream from its other reader is added to dx.
    """

    def __init__(self) -> None:
        self.forwards = self.backwards = 0
        self.kernel = NormKernel("toy", self.forward, self.backward)

    def forward(self, call: NormCall) -> NormOutput:
        if call.weight is None:
            raise Declined("needs a weight")
        if call.x.shape[-1] > 64:
            raise Declined("rows of at most 64")
        assert not torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu"), (
            "this code says itself what is computed in what"
        )
        self.forwards += 1
        stream = ops.settle(call.x, call.residual, call.keep, call.gain)
        wide = torch.float64 if stream.dtype == torch.float64 else torch.float32
        s = stream.to(wide)
        if call.spec.kind == "layer":
            s = s - s.mean(-1, keepdim=True)
        r = ((s * s).mean(-1, keepdim=True) + call.spec.eps).rsqrt()
        y = s * r * (call.weight.to(wide) + call.spec.weight_offset)
        if call.bias is not None:
            y = y + call.bias.to(wide)
        return NormOutput(y.to(call.x.dtype), stream, (s * r, r))

    def backward(
        self,
        dy: Tensor,
        dstream: Tensor | None,
        stream: Tensor,
        statistics: tuple[Tensor, ...],
        weight: Tensor | None,
        bias: Tensor | None,
        spec: NormSpec,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        assert not torch.is_grad_enabled(), "this code has no derivative"
        assert not torch.is_autocast_enabled("cpu")
        self.backwards += 1
        xhat, r = statistics
        assert weight is not None
        dy = dy.to(xhat.dtype)
        g = dy * (weight.to(xhat.dtype) + spec.weight_offset)
        d = g - xhat * (g * xhat).mean(-1, keepdim=True)
        if spec.kind == "layer":
            d = d - g.mean(-1, keepdim=True)
        rows = tuple(range(dy.dim() - 1))
        d = (r * d).to(stream.dtype)  # each is stored as the stream is
        d = d if dstream is None else d + dstream
        return d, (dy * xhat).sum(rows).to(weight.dtype), dy.sum(rows).to(weight.dtype)


@contextmanager
def offered(kernel: NormKernel) -> Iterator[None]:
    withdraw = ops.register(kernel)
    try:
        yield
    finally:
        withdraw()


@pytest.fixture
def toy() -> Iterator[Toy]:
    toy = Toy()
    with offered(toy.kernel):
        yield toy


def calls(implementation: str, why: str) -> int:
    return sum(
        row.calls
        for row in ops.explain().rows
        if row == KernelCalls("add_norm", implementation, why, row.calls)
    )


def test_explain_names_implementation_reason_and_count(toy: Toy) -> None:
    x, w = randn(2, 8), randn(8)
    long = randn(2, 65)
    rows = [
        ("toy", "offered first"),
        ("reference", "toy: needs a weight"),
        ("reference", "toy: rows of at most 64"),
    ]
    before = [calls(*row) for row in rows]
    for _ in range(3):
        ops.add_norm(x, None, w, eps=1e-5)
    for _ in range(2):
        ops.add_norm(x, eps=1e-5)
    ops.add_norm(long, None, randn(65), eps=1e-5)
    after = [calls(*row) for row in rows]
    assert [b - a for a, b in zip(before, after, strict=True)] == [3, 2, 1]
    assert toy.forwards == 3
    text = str(ops.explain())
    for (name, why), n in zip(rows, after, strict=True):
        assert f"add_norm, {name}: {n} calls ({why})" in text


def never(call: NormCall) -> NormOutput:
    raise Declined("never")


def test_the_last_kernel_offered_is_asked_first(toy: Toy) -> None:
    second = Toy()
    picky = NormKernel("picky", never, second.backward)
    x, w = randn(2, 8), randn(8)
    with offered(second.kernel):
        ops.add_norm(x, None, w, eps=1e-5)
        assert (second.forwards, toy.forwards) == (1, 0)
    with offered(picky):
        ops.add_norm(x, None, w, eps=1e-5)
        assert (second.forwards, toy.forwards) == (1, 1)
        assert calls("toy", "picky: never") == 1
        before = calls("reference", "picky: never; toy: needs a weight")
        ops.add_norm(x, eps=1e-5)
        assert calls("reference", "picky: never; toy: needs a weight") == before + 1


def test_a_kernel_is_not_autocasts_to_decide(toy: Toy) -> None:
    x, w = randn(2, 8).requires_grad_(), randn(8)
    plain, _ = ops.add_norm(x, None, w, eps=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = ops.add_norm(x, None, w, eps=1e-5)
        y.sum().backward()
    assert torch.equal(y, plain)
    assert (toy.forwards, toy.backwards) == (2, 1)


def test_a_withdrawn_kernel_is_asked_no_more() -> None:
    toy = Toy()
    withdraw = ops.register(toy.kernel)
    ops.add_norm(randn(2, 8), None, randn(8), eps=1e-5)
    withdraw()
    ops.add_norm(randn(2, 8), None, randn(8), eps=1e-5)
    assert toy.forwards == 1


def test_arguments_are_checked_before_a_kernel_sees_them(toy: Toy) -> None:
    with pytest.raises(ValueError, match="weight must have shape"):
        ops.add_norm(randn(2, 8), None, randn(7), eps=1e-5)
    assert toy.forwards == 0


WIRES: dict[str, dict[str, Any]] = {
    "x alone": {},
    "x alone, gain 2": {"gain": 2.0},
    "x alone, learned gain": {"gain": (8,)},
    "x alone, keep without effect": {"keep": (8,)},
    "residual": {"residual": True},
    "residual, numbers": {"residual": True, "keep": 0.5, "gain": -2.0},
    "residual, scalars": {"residual": True, "keep": (), "gain": ()},
    "residual, one entry": {"residual": True, "keep": (1,), "gain": (1,)},
    "residual, channels": {"residual": True, "keep": (8,), "gain": (8,)},
    "residual, samples": {"residual": True, "keep": (2, 1, 1), "gain": (2, 1, 1)},
    "residual, keep only": {"residual": True, "keep": (8,)},
    "residual, gain only": {"residual": True, "gain": (2, 1, 1)},
}


def run_wire(
    wire: dict[str, Any], kind: Any, dtype: torch.dtype, bias: bool = True, frozen: str = ""
) -> dict[str, Tensor | None]:
    """Output, stream and all gradients of one call; ``frozen`` tensors get no gradient."""
    tensors: dict[str, Any] = {"x": randn(2, 3, 8, seed=1, dtype=dtype)}
    if wire.get("residual"):
        tensors["residual"] = randn(2, 3, 8, seed=2, dtype=dtype)
    tensors["weight"] = randn(8, seed=3, dtype=dtype)
    if bias:
        tensors["bias"] = randn(8, seed=4, dtype=dtype)
    for seed, name in ((5, "keep"), (6, "gain")):
        value = wire.get(name, 1.0)
        if isinstance(value, tuple):
            value = (1.0 + 0.3 * randn(*value, seed=seed)).to(dtype)
        tensors[name] = value
    leaves = {
        k: t.requires_grad_() for k, t in tensors.items() if isinstance(t, Tensor) and k != frozen
    }
    y, stream = ops.add_norm(**tensors, kind=kind, eps=1e-3, weight_offset=1.0)
    dy, dstream = randn(2, 3, 8, seed=7, dtype=dtype), randn(2, 3, 8, seed=8, dtype=dtype)
    torch.autograd.backward([y, stream], [dy, dstream])
    grads = {f"gradient of {k}": leaf.grad for k, leaf in leaves.items()}
    return {"normed": y.detach(), "stream": stream.detach(), **grads}


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_kernel_gets_the_gradients_of_the_reference(wire: str, kind: str, dtype: Any) -> None:
    """In float64 to rounding. In bfloat16 both round the stream's gradient where they store it, but
    not the same terms of it: a unit of 2^-7 of the largest entry, and as much again for what is
    computed from it. What factors get is held to a finer bound below.
    """
    want = run_wire(WIRES[wire], kind, dtype)
    toy = Toy()
    with offered(toy.kernel):
        actual = run_wire(WIRES[wire], kind, dtype)
    assert (toy.forwards, toy.backwards) == (1, 1)
    tolerance = EXACT if dtype == torch.float64 else 2.0**-6
    assert actual.keys() == want.keys()
    for name, tensor in want.items():
        if tensor is None:
            assert actual[name] is None, f"{name}: the reference has none"
        else:
            mine = actual[name]
            assert mine is not None, f"{name} is missing"
            assert mine.dtype == tensor.dtype
            close(name, mine, numpy(tensor), tolerance)


@pytest.mark.parametrize("frozen", ["x", "residual", "weight", "bias", "keep", "gain"])
def test_a_kernel_may_serve_where_something_is_frozen(toy: Toy, frozen: str) -> None:
    wire = WIRES["residual, channels"]
    actual = run_wire(wire, "layer", torch.float64, frozen=frozen)
    toy_calls = toy.backwards
    whole = run_wire(wire, "layer", torch.float64)
    assert (toy_calls, toy.backwards) == (1, 2)
    assert actual.keys() == whole.keys() - {f"gradient of {frozen}"}
    for name, tensor in actual.items():
        assert tensor is not None
        other = whole[name]
        assert other is not None
        close(name, tensor, numpy(other), EXACT)


def test_a_kernel_may_serve_without_bias_and_without_gradients(toy: Toy) -> None:
    run_wire(WIRES["residual"], "layer", torch.float64, bias=False)
    x, w = randn(2, 8), randn(8)
    y, _ = ops.add_norm(x, None, w, eps=1e-5)
    assert not y.requires_grad
    assert (toy.forwards, toy.backwards) == (2, 1)
    with torch.no_grad():
        y, _ = ops.add_norm(x.requires_grad_(), None, w, eps=1e-5)
    assert not y.requires_grad


@pytest.mark.parametrize("read", ["normed", "stream"])
def test_a_kernel_of_whose_outputs_one_is_read(read: str) -> None:
    """What nobody reads has gradient zero, not None."""
    results = []
    for offer in (offered(Toy().kernel), nullcontext()):
        x, h, w = (randn(*s, seed=n).requires_grad_() for n, s in enumerate([(2, 8), (2, 8), (8,)]))
        with offer:
            y, stream = ops.add_norm(x, h, w, eps=1e-5)
        (y if read == "normed" else stream).pow(2).sum().backward()
        results.append([torch.zeros_like(t) if t.grad is None else t.grad for t in (x, h, w)])
    for a, b in zip(*results, strict=True):
        close("gradient", a, numpy(b), EXACT)


@pytest.mark.parametrize("factor", ["keep", "gain"])
def test_learned_factors_get_float32_sums_from_a_kernel_too(toy: Toy, factor: str) -> None:
    """The gradient of a float32 factor on a bfloat16 stream: products and sum in float32.

    4096 terms; bound: 32 float32 roundings of the sum of absolute terms, as for the weight above.
    Products rounded to bfloat16 are off by some 2^-9 / sqrt(4096) = 3e-5 of it, the bound is 2e-6.
    """
    x, h = (randn(64, 64, seed=s, dtype=torch.bfloat16) for s in (1, 2))
    dstream = randn(64, 64, seed=8, dtype=torch.bfloat16)
    scale = torch.tensor(0.75, requires_grad=True)
    factors: dict[str, Any] = {factor: scale}
    _, stream = ops.add_norm(x, h, torch.ones(64), eps=1e-5, **factors)
    stream.backward(dstream)
    assert toy.backwards == 1
    terms = numpy(dstream) * numpy(h if factor == "keep" else x)
    assert abs(grad(scale).item() - terms.sum()) <= 32 * 2.0**-24 * np.abs(terms).sum()


@pytest.mark.timeout(60)  # differentiating the stream along with the weight would never end
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_residual", [True, False])
def test_a_gradient_of_a_gradient_goes_through_the_reference(
    toy: Toy, kind: Any, with_residual: bool
) -> None:
    """``Toy.backward`` raises under grad mode, and what it does there would have no derivative."""
    inputs = [randn(2, 3, seed=1), randn(3, seed=3), randn(3, seed=4), 1.0 + 0.3 * randn(3, seed=6)]
    if with_residual:
        inputs += [randn(2, 3, seed=2), 1.0 + 0.3 * randn(3, seed=5)]
    inputs = [t.requires_grad_() for t in inputs]

    def f(
        x: Tensor,
        w: Tensor,
        b: Tensor,
        gain: Tensor,
        h: Tensor | None = None,
        keep: Tensor | float = 1.0,
    ) -> Any:
        return ops.add_norm(x, h, w, b, kind=kind, eps=1e-2, keep=keep, gain=gain)

    assert torch.autograd.gradcheck(f, inputs)
    assert toy.backwards > 0
    assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", KINDS)
def test_create_graph_changes_no_gradient(kind: Any) -> None:
    """First gradients that can be differentiated again, and second ones, equal the reference's.

    gradgradcheck would not see a wrong first one, of which the second is the right derivative.
    """
    shapes: list[tuple[int, ...]] = [(2, 3, 4), (2, 3, 4), (4,), (4,), (4,), (2, 1, 1)]
    results = []
    for offer in (offered(Toy().kernel), nullcontext()):
        inputs = [randn(*s, seed=n).requires_grad_() for n, s in enumerate(shapes)]
        x, h, w, b, keep, gain = inputs
        with offer:
            outputs = ops.add_norm(x, h, w, b, kind=kind, eps=1e-2, keep=keep, gain=gain)
        cotangents = [randn(2, 3, 4, seed=s).requires_grad_() for s in (7, 8)]
        first = torch.autograd.grad(outputs, inputs, cotangents, create_graph=True)
        penalty = sum((g.square().sum() for g in first), torch.zeros(()))
        second = torch.autograd.grad(penalty, [*inputs, *cotangents], materialize_grads=True)
        results.append([*first, *second])
    for n, (a, c) in enumerate(zip(*results, strict=True)):
        close(f"gradient {n}", a, numpy(c), EXACT)


def test_a_gradient_of_a_gradient_with_frozen_parameters() -> None:
    """A gradient penalty on the input alone, as for a critic."""
    results = []
    for offer in (offered(Toy().kernel), nullcontext()):
        x, w = randn(2, 4, seed=1).requires_grad_(), randn(4, seed=3)
        with offer:
            y, _ = ops.add_norm(x, None, w, eps=1e-2)
        (g,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(g.pow(2).sum(), x)[0])
    close("second gradient", results[0], numpy(results[1]), EXACT)


def test_under_compile_the_reference_serves(toy: Toy) -> None:
    """One graph, no call of the kernel, and the same values and gradients."""

    def f(x: Tensor, h: Tensor, w: Tensor, keep: Tensor) -> Any:
        return ops.add_norm(x, h, w, kind="layer", eps=1e-5, keep=keep)

    torch.compiler.reset()
    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    results = []
    for g in (compiled, f):
        shapes: list[tuple[int, ...]] = [(2, 3, 8), (2, 3, 8), (8,), ()]
        inputs = [randn(*s, seed=n).requires_grad_() for n, s in enumerate(shapes)]
        y, stream = g(*inputs)
        torch.autograd.backward([y, stream], [randn(2, 3, 8, seed=7), randn(2, 3, 8, seed=8)])
        results.append([y.detach(), stream.detach(), *(grad(t) for t in inputs)])
        if g is compiled:
            assert (toy.forwards, toy.backwards) == (0, 0)
    assert (toy.forwards, toy.backwards) == (1, 1)
    for a, b in zip(*results, strict=True):
        close("compiled", a, numpy(b), EXACT)


# --- torch's own kernels, on CPUs -----------------------------------------------------------------


@pytest.fixture
def aten() -> Iterator[None]:
    with offered(KERNEL):
        yield


SERVED = "aten", "offered first"


def test_torchs_kernels_are_offered_by_themselves() -> None:
    code = (
        "import torch; from addnorm import ops; "
        "ops.add_norm(torch.randn(3, 8), kind='layer', eps=1e-5); "
        "print([row.implementation for row in ops.explain().rows if row.calls])"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert process.stdout.strip() == "['aten']"


def with_means(*deviations: float) -> Tensor:
    """Rows whose means are so many of their standard deviations."""
    x = randn(len(deviations), 256)
    x = (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, correction=0)
    return x + torch.tensor(deviations)[:, None]


FAR = "a row's mean is far above its spread"


@pytest.mark.parametrize(
    ("x", "options", "why"),
    [
        (randn(3, 8), {}, ""),
        (with_means(3.9, 0.0, -3.9), {}, ""),
        (with_means(0.0, 4.1, 0.0), {}, FAR),
        (with_means(0.0, 0.0, -4.1), {}, FAR),
        (with_means(0.0, 0.0, -4.1), {"kind": "rms"}, ""),
        (randn(3, 8, dtype=torch.bfloat16), {}, ""),
        (randn(3, 8), {"cast": "llama", "kind": "rms"}, ""),
        (randn(3, 8) + 100.0, {}, FAR),
        (randn(3, 8) + 100.0, {"kind": "rms"}, ""),
        (1e120 * randn(3, 8), {}, "a row is huge"),
        (1e120 * randn(3, 8), {"kind": "rms"}, "a row is huge"),
        (randn(3, 8) * torch.tensor([[1.0], [torch.nan], [1.0]]), {"kind": "rms"}, "a row is huge"),
        (randn(0, 8), {}, "there is no row"),
        (torch.nn.Buffer(randn(3, 8)), {}, ""),
        (randn(3, 8).as_subclass(Opaque), {}, "for plain tensors"),
        (
            randn(3, 8, dtype=torch.bfloat16),
            {"cast": "llama", "kind": "rms"},
            "cast='llama' rounds before the weight",
        ),
        (torch.empty(3, 8, device="meta"), {}, "for CPUs"),
    ],
    ids=str,
)
def test_what_torchs_kernels_serve(
    aten: None, x: Tensor, options: dict[str, Any], why: str
) -> None:
    row = ("reference", f"aten: {why}") if why else SERVED
    before = calls(*row)
    ops.add_norm(x, **{"kind": "layer", "eps": 1e-5, **options})
    assert calls(*row) == before + 1


@pytest.mark.parametrize("mean", [0.0, 1.0, 3.9])
def test_a_mean_below_four_deviations_costs_three_bits_at_most(aten: None, mean: float) -> None:
    """The largest value, about 4, has an error of some units of 2^-22, those of r and the product;
    s r + (-mean r) as many of mean r. Eight of each."""
    x = randn(64, 256)
    x = ((x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True) + mean).float()
    before = calls(*SERVED)
    actual, _ = ops.add_norm(x, kind="layer", eps=1e-5)
    assert calls(*SERVED) == before + 1
    want, _ = ops.add_norm(x.double(), kind="layer", eps=1e-5)
    assert (actual.double() - want).abs().max() <= 8 * 2.0**-24 * (4 + mean)


def test_layer_norm_is_torchs_to_the_last_bit(aten: None) -> None:
    x, w, b = (
        randn(*s, seed=n, dtype=torch.float32) for n, s in enumerate([(5, 48), (48,), (48,)])
    )
    actual, _ = ops.add_norm(x, None, w, b, kind="layer", eps=1e-5)
    assert torch.equal(actual, torch.nn.functional.layer_norm(x, (48,), w, b, 1e-5))


def test_transforms_and_forward_mode_are_the_references(aten: None) -> None:
    x, w = randn(3, 8), randn(8)

    def norm(t: Tensor) -> Tensor:
        return ops.add_norm(t, None, w, kind="layer", eps=1e-5)[0]

    before = calls(*SERVED)
    _, along, *_ = torch.func.jvp(norm, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(along, torch.zeros_like(x), rtol=0, atol=1e-12)
    assert torch.func.vmap(torch.func.grad(lambda t: norm(t).sum()))(x).shape == x.shape
    with forward_ad.dual_level():
        dual = norm(forward_ad.make_dual(x, x))
        tangent = forward_ad.unpack_dual(dual).tangent
    assert tangent is not None
    assert calls(*SERVED) == before


def test_one_tensor_elsewhere_is_enough(aten: None) -> None:
    """All have to be on the CPU, not some."""
    x, weight = randn(3, 8), torch.ones(8, device="meta")
    spec = NormSpec(kind="layer", eps=1e-5, weight_offset=0.0, cast="fp32")
    call = NormCall(x, None, weight, None, 1.0, 1.0, spec)
    with pytest.raises(Declined, match="for CPUs"):
        KERNEL.forward(call)
    KERNEL.forward(call._replace(weight=randn(8)))


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_row_alone_has_the_gradients_of_a_row_among_others(aten: None, kind: Any) -> None:
    x, weight, bias, dy = (randn(8, seed=n) for n in range(4))
    results = []
    for shape in [(8,), (1, 8)]:
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        y, _ = ops.add_norm(leaves[0].reshape(shape), None, *leaves[1:], kind=kind, eps=1e-5)
        y.backward(dy.reshape(shape))
        results.append([grad(t) for t in leaves])
    for alone, among in zip(*results, strict=True):
        assert torch.equal(alone, among)


def test_nothing_but_the_reference(aten: None) -> None:
    before = calls(*SERVED)
    with ops.reference_only():
        ops.add_norm(randn(2, 8), eps=1e-5)
    assert calls(*SERVED) == before
    ops.add_norm(randn(2, 8), eps=1e-5)
    assert calls(*SERVED) == before + 1
