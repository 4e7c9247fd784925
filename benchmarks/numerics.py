"""Every figure of docs/numerics.md, as the tables that stand there.

    python benchmarks/numerics.py

Errors are largest differences from the float64 equation (tests/references/norms.py) at the same
rounded input. All inputs come from fixed seeds; the last digits of an error depend on the order in
which a processor adds. A second, on any machine.
"""

import platform
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from addnorm import ops
from addnorm.ops.reference import safe_unit
from tests.references import norms, tape
from tests.references.tape import Array, Var

EPS = 1e-5


def main() -> None:
    """Print all tables, in the order of the document."""
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, {platform.machine()}")
    with ops.reference_only():
        stored_stream()
        dtypes()
        mean_and_spread()
        magnitudes()
        cast_orders()
        parameter_gradients()
        autocast()
    kernels()
    explained()


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64 numbers of one seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def table(title: str, head: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """A Markdown table under a title."""
    head = list(head)
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


def exact(x: Tensor, kind: str, eps: float = EPS) -> Array:
    """The equation in float64."""
    s = x.detach().double().numpy()
    y = norms.rms_norm(s, 1.0, eps) if kind == "rms" else norms.layer_norm(s, 1.0, 0.0, eps)
    return y.value


def error(y: Tensor, want: Array) -> str:
    """The largest difference, "NaN" if there is one."""
    difference = np.abs(y.detach().double().numpy() - want).max()
    return "NaN" if np.isnan(difference) else f"{difference:.1e}"


def gradient_error(f: Callable[[Tensor], Tensor], x: Tensor, kind: str) -> str:
    """The largest error of the gradient of x, relative to the terms it is the difference of.

    The gradient is r (g - mean(g) - x^ mean(g x^)): relative to r max|g|, row by row.
    """
    dy = randn(*x.shape, seed=7).float()
    leaf, wide = x.clone().requires_grad_(), Var(x.double().numpy())
    f(leaf).backward(dy)
    equation = norms.rms_norm(wide, 1.0, EPS)
    if kind == "layer":
        equation = norms.layer_norm(wide, 1.0, 0.0, EPS)
    tape.backward(equation, dy.double().numpy())
    s = wide.value - (wide.value.mean(-1, keepdims=True) if kind == "layer" else 0.0)
    r = 1.0 / np.sqrt((s**2).mean(-1, keepdims=True) + EPS)
    scale = r * np.abs(dy.numpy()).max(-1, keepdims=True)
    assert leaf.grad is not None
    difference = (np.abs(leaf.grad.double().numpy() - wide.grad) / scale).max()
    return "NaN" if np.isnan(difference) else f"{difference:.1e}"


def ours(x: Tensor, kind: str = "layer") -> Tensor:
    """``add_norm`` of x alone."""
    return ops.add_norm(x, kind="rms" if kind == "rms" else "layer", eps=EPS)[0]


def torchs(x: Tensor, kind: str = "layer") -> Tensor:
    """What torch computes."""
    if kind == "rms":
        return F.rms_norm(x, x.shape[-1:], eps=EPS)
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def moments(x: Tensor) -> Tensor:
    """LayerNorm by var = E[x^2] - E[x]^2, as it is often written; never below 0."""
    mean = x.mean(-1, keepdim=True)
    var = ((x * x).mean(-1, keepdim=True) - mean * mean).clamp(min=0.0)
    return (x - mean) * torch.rsqrt(var + EPS)


def two_pass(x: Tensor) -> Tensor:
    """LayerNorm by var = E[(x - E[x])^2], the mean subtracted once."""
    s = x - x.mean(-1, keepdim=True)
    return s * torch.rsqrt((s * s).mean(-1, keepdim=True) + EPS)


def stored_stream() -> None:
    """What becomes of the statistics and of small additions when the stream is stored."""
    # x in float32, so that y shows where the statistics come from and not its own rounding
    x, h = (0.1 * randn(256, 768, seed=1)).float(), (4 + randn(256, 768, seed=2)).bfloat16()
    y, stream = ops.add_norm(x, h, kind="rms", eps=EPS)
    rows = [
        ["the stored stream", error(y, exact(stream, "rms"))],
        ["the sum before it was stored", error(y, exact(x.double() + h.double(), "rms"))],
    ]
    title = (
        "RMSNorm (256, 768), float32 x, bfloat16 stream: largest difference of y from the norm of"
    )
    table(title, ["", "difference"], rows)

    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        h = torch.ones(1, 8, dtype=dtype)
        for _ in range(64):
            _, h = ops.add_norm(torch.full((1, 8), 2.0**-10, dtype=torch.bfloat16), h, eps=EPS)
        rows.append([name(dtype), f"{h[0, 0].item():.4f}"])
    table("1 + 64 * 2^-10 = 1.0625, added one by one", ["stream", "sum"], rows)


def name(dtype: torch.dtype) -> str:
    """A dtype without its prefix."""
    return str(dtype).removeprefix("torch.")


def dtypes() -> None:
    """What comes out in which dtype."""
    rows = []
    low, single, double = torch.bfloat16, torch.float32, torch.float64
    for x, residual, weight in (
        (single, None, single),
        (low, None, low),
        (low, low, low),
        (low, low, single),
        (low, single, low),
        (low, single, single),
        (single, low, single),
        (single, single, low),
        (double, double, single),
    ):
        u = randn(4, 8, seed=1).to(x).requires_grad_()
        h = None if residual is None else randn(4, 8, seed=2).to(residual).requires_grad_()
        w = torch.ones(8, dtype=weight, requires_grad=True)
        y, stream = ops.add_norm(u, h, w, eps=EPS)
        y.sum().backward()
        wide = "float64" if stream.dtype == double else "float32"
        gradients = [t.grad.dtype for t in (u, h, w) if t is not None and t.grad is not None]
        assert gradients == [t.dtype for t in (u, h, w) if t is not None]
        names = (name(x), "-" if residual is None else name(residual), name(weight))
        rows.append([*names, wide, name(y.dtype), name(stream.dtype)])
    head = ["x", "residual", "weight", "statistics in", "y", "stream"]
    table("dtypes (each gradient has the dtype of what it belongs to)", head, rows)


def mean_and_spread() -> None:
    """A large mean beside a small spread: where the mean's own rounding error shows."""
    rows = []
    for mean, spread in ((0.0, 1.0), (1e2, 1e-2), (1e4, 1.0), (1e4, 1e-2), (1e6, 1.0)):
        x = (mean + spread * randn(256, 768, seed=1)).float()
        want = exact(x, "layer")
        errors = [error(f(x), want) for f in (moments, torchs, two_pass, ours)]
        rows.append([f"{mean:g}", f"{spread:g}", *errors])
    head = ["mean", "spread", "E[x²] - E[x]²", "F.layer_norm", "two-pass", "add_norm"]
    table("float32 LayerNorm (256, 768), largest error of y", head, rows)

    x = (1e4 + 1e-2 * randn(256, 768, seed=1)).float()
    _, their_mean, r = torch.native_layer_norm(x, (768,), None, None, EPS)
    wide = x.double()
    off = (their_mean - wide.mean(-1, keepdim=True)).abs().max().item()
    exact_r = (wide.var(-1, correction=0, keepdim=True) + EPS).rsqrt()
    print(
        f"\nAt mean 10000 and spread 0.01 the mean that F.layer_norm finds is off by {off:.1e}, "
        f"its 1 / sqrt(var + eps) by {(r / exact_r - 1).abs().max().item():.1%}."
    )


def magnitudes() -> None:
    """Rows whose squares, or the cube of 1 / rms in the gradient, leave the range of float32."""
    peaks = torch.tensor([1.0, 1e12, 2e12, 1e20, 1e30, -3e38])
    units = safe_unit(peaks[:, None])[:, 0].log2()
    rows = [[f"{p:.0e}", f"2^{u:.0f}"] for p, u in zip(peaks.abs(), units, strict=True)]
    table("What a float32 row is divided by", ["largest absolute value", "divided by"], rows)

    for kind, long in (("layer", "LayerNorm"), ("rms", "RMSNorm")):
        both = [lambda x, kind=kind: torchs(x, kind), lambda x, kind=kind: ours(x, kind)]
        rows = []
        for magnitude in (1.0, 1e9, 1e14, 1e16, 1e18, 1e20, 1e30, 1e37):
            x = (magnitude * randn(16, 64, seed=1)).float()
            want = exact(x, kind)
            values = [error(f(x), want) for f in both]
            grads = [gradient_error(f, x, kind) for f in both]
            rows.append([f"{magnitude:.0e}", *values, *grads])
        torchs_name = "F.layer_norm" if kind == "layer" else "F.rms_norm"
        head = ["magnitude", f"y: {torchs_name}", "y: add_norm"]
        head += [f"gradient: {torchs_name}", "gradient: add_norm"]
        table(f"float32 {long} (16, 64) by magnitude of the input, largest error", head, rows)

    rows = []
    for value in (0.1, 1e4, 1e18, 1e30):
        x = torch.full((1, 768), value)
        largest = [error(f(x), np.zeros(1)) for f in (two_pass, torchs, ours)]
        rows.append([f"{value:g}", *largest])
    head = ["value", "two-pass", "F.layer_norm", "add_norm"]
    table("float32 LayerNorm of a constant row of 768, largest |y| (0 is right)", head, rows)


def cast_orders() -> None:
    """Rounding before the weight, or after it."""
    x, w = randn(1024, 768, seed=1).bfloat16(), (1 + 0.3 * randn(768, seed=3)).bfloat16()
    want = exact(x, "rms", 1e-6) * w.double().numpy()
    unit = np.ldexp(1.0, np.frexp(np.abs(want))[1] - 8)  # bfloat16 has 8 significant bits
    outputs = {
        cast: ops.add_norm(x, None, w, kind="rms", eps=1e-6, cast=cast)[0]
        for cast in ("fp32", "llama")
    }
    rows = [
        [f'"{cast}"', f"{(np.abs(y.double().numpy() - want) / unit).max():.2f}"]
        for cast, y in outputs.items()
    ]
    head = ["cast", "largest error in units of the last place"]
    table("bfloat16 RMSNorm (1024, 768) with a bfloat16 weight", head, rows)
    a, b = (y.double().numpy() for y in outputs.values())
    share, most = (a != b).mean(), (np.abs(a - b) / unit).max()
    print(f"\nThe two differ in {share:.0%} of the entries, by at most {most:.0f} unit.")


def parameter_gradients() -> None:
    """The gradients of weight and bias over 20,000 rows of bfloat16."""
    x, dy = randn(20_000, 256, seed=1).bfloat16(), (1 + randn(20_000, 256, seed=7)).bfloat16()
    normed = exact(x, "layer")
    wide = dy.double().numpy()
    want = (wide * normed).sum(0), wide.sum(0)
    rows = []
    for title, f in (
        ("add_norm", lambda w, b: ops.add_norm(x, None, w, b, eps=EPS)[0]),
        ("F.layer_norm", lambda w, b: F.layer_norm(x, (256,), w, b, EPS)),
    ):
        w = torch.ones(256, dtype=torch.bfloat16, requires_grad=True)
        b = torch.zeros(256, dtype=torch.bfloat16, requires_grad=True)
        f(w, b).backward(dy)
        assert w.grad is not None
        assert b.grad is not None
        rows.append([title, *compared((w.grad, b.grad), want)])
    sums = [torch.zeros(256, dtype=torch.bfloat16) for _ in range(2)]
    terms = dy * torch.from_numpy(normed).bfloat16()
    for term, g in zip(terms, dy, strict=True):
        sums[0] += term
        sums[1] += g
    rows.append(["summed in bfloat16", *compared(sums, want)])
    rounded = [torch.from_numpy(t).bfloat16() for t in want]
    rows.append(["float64, rounded to bfloat16", *compared(rounded, want)])
    head = ["", "weight, largest error", "bias, largest error"]
    table("bfloat16 LayerNorm (20000, 256), gradients of the parameters", head, rows)


def compared(tensors: Iterable[Tensor], want: Iterable[Array]) -> list[str]:
    """Largest errors beside the largest value."""
    return [
        f"{np.abs(a.double().numpy() - b).max():.2g} of {np.abs(b).max():.0f}"
        for a, b in zip(tensors, want, strict=True)
    ]


def autocast() -> None:
    """What autocast makes of it."""
    x, w = randn(256, 768, seed=1).bfloat16(), torch.ones(768, dtype=torch.bfloat16)
    functions: dict[str, Callable[[], Tensor]] = {
        "add_norm, layer": lambda: ops.add_norm(x, None, w, eps=EPS)[0],
        "add_norm, rms": lambda: ops.add_norm(x, None, w, kind="rms", eps=EPS)[0],
        "F.layer_norm": lambda: F.layer_norm(x, (768,), w, None, EPS),
        "F.rms_norm": lambda: F.rms_norm(x, (768,), w, EPS),
    }
    rows = []
    for title, f in functions.items():
        plain = f()
        with torch.autocast("cpu", torch.bfloat16):
            under = f()
        same = "yes" if plain.dtype == under.dtype and torch.equal(plain, under) else "no"
        rows.append([title, name(plain.dtype), name(under.dtype), same])
    head = ["", "y without", "y under autocast", "same bits"]
    table("bfloat16 x and weight, torch.autocast('cpu', bfloat16)", head, rows)


def kernels() -> None:
    """What serves eager calls on CPUs beside the reference: its errors, and how long both take."""

    def seconds(x: Tensor, kind: str) -> float:
        leaf, dy = x.clone().requires_grad_(), torch.ones_like(x)
        times = []
        for _ in range(50):
            before = time.perf_counter()
            ours(leaf, kind).backward(dy)
            times.append(time.perf_counter() - before)
        return statistics.median(times)

    rows = []
    for kind in ("layer", "rms"):
        for mean in (0.0, 1.0, 3.0, 100.0):
            x = (randn(768, 256) + mean).float()
            errors, times = [], []
            for only in (ops.reference_only(), nullcontext()):
                with only:
                    errors += [error(ours(x, kind), exact(x, kind))]
                    errors += [gradient_error(partial(ours, kind=kind), x, kind)]
                    times.append(seconds(x, kind))
            rows.append([kind, mean, *errors[:2], *errors[2:], f"{times[0] / times[1]:.1f}"])
    head = ["", "mean", "y", "gradient", "y, torch's kernel", "gradient, torch's kernel", "times"]
    table("torch's kernels beside the reference", head, rows)


def explained() -> None:
    """What ``explain()`` says: after all of the above, and with a kernel that declines."""
    print("\nexplain(), in this process so far:\n")
    print(ops.explain())

    def forward(call: ops.NormCall) -> ops.NormOutput:
        raise ops.Declined(f"no code for {call.x.device.type}")

    def backward(*_: object) -> tuple[Tensor, Tensor | None, Tensor | None]:
        raise AssertionError("it declined")

    withdraw = ops.register(ops.NormKernel("example", forward, backward))
    ops.add_norm(torch.ones(2, 8), eps=EPS)
    withdraw()
    print("\nand after one call with a kernel that declined it:\n")
    print(ops.explain())


if __name__ == "__main__":
    main()
