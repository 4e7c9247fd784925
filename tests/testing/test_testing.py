"""The kit for authors of norms: right norms pass, and each mistake is called by its name."""

import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from addnorm import norms, ops
from addnorm.testing import check_add_norm, check_norm, reference

Body = Callable[[Tensor, float], Tensor]


def mean(x: Tensor) -> Tensor:
    return x.mean(-1, keepdim=True)


def var(x: Tensor, correction: int = 0) -> Tensor:
    return x.var(-1, keepdim=True, correction=correction)


def square(x: Tensor) -> Tensor:
    return x.pow(2).mean(-1, keepdim=True)


def wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def layer(body: Body) -> Callable[..., Tensor]:
    """A function of the kit's signature, statistics in float32."""

    def fn(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
        return (body(wide(x), eps) * weight + bias).to(x.dtype)

    return fn


def rms(body: Body) -> Callable[..., Tensor]:
    def fn(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
        return (body(wide(x), eps) * weight).to(x.dtype)

    return fn


def good(x: Tensor, e: float) -> Tensor:
    return (x - mean(x)) * torch.rsqrt(var(x) + e)


def named(report) -> set[str]:
    """What is wrong beyond a note."""
    return {f.rule for f in report.findings if f.severity != "note"}


# torch's LayerNorm on the CPU adds the gradients of its parameters up in bfloat16: they are a
# running sum's to the last digit, off by 2 % over 384 rows.
IN_TORCH = {"gradient-weight-low-precision", "gradient-bias-low-precision"}


def transformers_norm(path: str, name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        models = pytest.importorskip(f"transformers.models.{path}")
        return getattr(models, name)(48)

    return make


RIGHT = {
    "torch LayerNorm": ("layer", lambda: nn.LayerNorm(48)),
    "torch LayerNorm, no bias": ("layer", lambda: nn.LayerNorm(48, bias=False)),
    "torch RMSNorm": ("rms", lambda: nn.RMSNorm(48, eps=1e-6)),
    "torch RMSNorm, own eps": ("rms", lambda: nn.RMSNorm(48)),
    "LlamaRMSNorm": ("rms", transformers_norm("llama.modeling_llama", "LlamaRMSNorm")),
    "T5LayerNorm": ("rms", transformers_norm("t5.modeling_t5", "T5LayerNorm")),
    "GemmaRMSNorm": ("rms", transformers_norm("gemma.modeling_gemma", "GemmaRMSNorm")),
    "LayerNorm": ("layer", lambda: norms.LayerNorm(48)),
    "LayerNorm, no affine": ("layer", lambda: norms.LayerNorm(48, affine=False)),
    "RMSNorm": ("rms", lambda: norms.RMSNorm(48)),
    "RMSNorm, llama": ("rms", lambda: norms.RMSNorm(48, cast="llama")),
    "RMSNorm, 1 + w": ("rms", lambda: norms.RMSNorm(48, weight_offset=1.0)),
    "L2Norm": ("rms", lambda: norms.L2Norm(48)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_norm_passes(name: str) -> None:
    kind, make = RIGHT[name]
    compiled = name in ("torch RMSNorm", "LayerNorm")
    report = check_norm(make(), kind, backend="aot_eager" if compiled else None)
    assert report.ok, report.findings
    assert named(report) <= (IN_TORCH if name.startswith("torch LayerNorm") else set())
    assert {u.rule for u in report.unknown} == (set() if compiled else {"compile"})


def test_functions_pass_and_are_checked_with_the_parameters_they_take() -> None:
    def plain(x, weight, bias, eps):
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    def bare(x):
        return F.rms_norm(x, x.shape[-1:], None, 1e-6)

    assert check_norm(plain, eps=1e-7, backend=None).ok
    assert check_norm(bare, "rms", eps=1e-6, backend=None).ok
    assert not check_norm(bare, "rms", eps=1e-5, backend=None).ok
    weight = torch.linspace(-1, 1, 24)
    report = check_norm(plain, weight=weight, bias=False, backend=None)
    assert not report.ok  # bias is needed by this one: it says so instead of raising
    assert report.findings[0].rule == "call"


def test_orders_of_rounding_are_told_and_no_mistake() -> None:
    report = check_norm(norms.RMSNorm(48, cast="llama"), "rms", backend=None)
    assert [f.rule for f in report.findings] == ["cast-order"]
    report = check_norm(norms.RMSNorm(48), "rms", backend=None)
    assert not report.findings


WRONG: dict[str, tuple[str, str, Callable[..., Tensor]]] = {
    "unbiased": (
        "layer",
        "norm-unbiased-variance",
        layer(lambda x, e: (x - mean(x)) / (var(x, 1) + e).sqrt()),
    ),
    "annotated": (
        "layer",
        "norm-unbiased-variance",
        layer(lambda x, e: (x - mean(x)) / (x.std(-1, keepdim=True) + e)),
    ),
    "annotated, eps": (
        "layer",
        "norm-eps-outside-sqrt",
        layer(lambda x, e: (x - mean(x)) / (x.std(-1, keepdim=True) + e)),
    ),
    "eps outside": (
        "layer",
        "norm-eps-outside-sqrt",
        layer(lambda x, e: (x - mean(x)) / (var(x).sqrt() + e)),
    ),
    "rms eps outside": (
        "rms",
        "norm-eps-outside-sqrt",
        rms(lambda x, e: x / (square(x).sqrt() + e)),
    ),
    "no eps": ("layer", "eps-missing", layer(lambda x, e: (x - mean(x)) / var(x).sqrt())),
    "rms no eps": ("rms", "eps-missing", rms(lambda x, e: x / square(x).sqrt())),
    "eps squared": ("layer", "eps-size", layer(lambda x, e: good(x, e * e))),
    "another eps": ("rms", "eps-size", rms(lambda x, e: x * torch.rsqrt(square(x) + 1e-5))),
    "over time": (
        "layer",
        "norm-wrong-axis",
        layer(lambda x, e: good(x.transpose(-1, -2), e).transpose(-1, -2)),
    ),
    "over the batch": (
        "layer",
        "norm-batch-dependent",
        layer(lambda x, e: (x - x.mean(0)) / (x.var(0, correction=0) + e).sqrt()),
    ),
    "over everything": (
        "layer",
        "norm-wrong-axis",
        layer(lambda x, e: (x - x.mean()) / (x.var(correction=0) + e).sqrt()),
    ),
    "sum": (
        "layer",
        "sum-not-mean",
        layer(lambda x, e: (x - mean(x)) / (x.shape[-1] * var(x) + e).sqrt()),
    ),
    "rms sum": (
        "rms",
        "sum-not-mean",
        rms(lambda x, e: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + e)),
    ),
    "variance": ("layer", "norm-not-normalizing", layer(lambda x, e: (x - mean(x)) / (var(x) + e))),
    "times": (
        "layer",
        "norm-not-normalizing",
        layer(lambda x, e: (x - mean(x)) * (var(x) + e).sqrt()),
    ),
    "centre": ("layer", "norm-not-normalizing", layer(lambda x, e: x - mean(x))),
    "nothing": ("rms", "norm-not-normalizing", rms(lambda x, e: x)),
    "mean kept": ("layer", "mean-not-removed", layer(lambda x, e: x * torch.rsqrt(square(x) + e))),
    "mean kept above": (
        "layer",
        "mean-not-removed",
        layer(lambda x, e: x * torch.rsqrt(var(x) + e)),
    ),
    "mean removed": ("rms", "mean-removed", rms(good)),
    "mean absolute": (
        "rms",
        "unknown-formula",
        rms(lambda x, e: x / (x.abs().mean(-1, keepdim=True) + e)),
    ),
    "factor": ("rms", "constant-factor", rms(lambda x, e: 1.25 * x * torch.rsqrt(square(x) + e))),
    "difference of squares": (
        "layer",
        "cancellation",
        layer(lambda x, e: (x - mean(x)) / (square(x) - mean(x) ** 2 + e).sqrt()),
    ),
    "own dtype": (
        "layer",
        "norm-low-precision",
        lambda x, weight, bias, eps=1e-5: good(x, eps) * weight + bias,
    ),
    "rms own dtype": (
        "rms",
        "norm-low-precision",
        lambda x, weight, eps=1e-6: x * torch.rsqrt(square(x) + eps) * weight,
    ),
    "bf16 inside": (
        "rms",
        "norm-low-precision",
        rms(lambda x, e: (x * torch.rsqrt(square(x.bfloat16()) + e)).to(x.dtype)),
    ),
    "bias first": (
        "layer",
        "affine",
        lambda x, weight, bias, eps=1e-5: (F.layer_norm(x, x.shape[-1:], eps=eps) + bias) * weight,
    ),
    "no bias": (
        "layer",
        "bias-ignored",
        lambda x, weight, bias, eps=1e-5: F.layer_norm(x, x.shape[-1:], weight, None, eps),
    ),
    "no weight": (
        "layer",
        "weight-ignored",
        lambda x, weight, bias, eps=1e-5: F.layer_norm(x, x.shape[-1:], None, bias, eps),
    ),
    "float32 out": (
        "rms",
        "output-dtype",
        lambda x, weight, eps=1e-6: (
            wide(x) * torch.rsqrt(square(wide(x)) + eps) * weight.to(wide(x).dtype)
        ),
    ),
    "both detached": (
        "layer",
        "gradient-detached-statistics",
        layer(lambda x, e: (x - mean(x).detach()) * torch.rsqrt(var(x).detach() + e)),
    ),
    "variance detached": (
        "layer",
        "gradient-dropped-variance-term",
        layer(lambda x, e: (x - mean(x)) * torch.rsqrt(var(x).detach() + e)),
    ),
    "mean detached": (
        "layer",
        "gradient-dropped-mean-term",
        layer(lambda x, e: (x - mean(x).detach()) * torch.rsqrt(var(x) + e)),
    ),
    "rms detached": (
        "rms",
        "gradient-detached-statistics",
        rms(lambda x, e: x * torch.rsqrt(square(x).detach() + e)),
    ),
    "all detached": (
        "rms",
        "gradient-missing",
        lambda x, weight, eps=1e-6: rms(lambda x, e: x * torch.rsqrt(square(x) + e))(
            x, weight, eps
        ).detach(),
    ),
    "random": (
        "layer",
        "nondeterministic",
        layer(lambda x, e: good(x, e) + 1e-3 * torch.randn_like(x)),
    ),
    "among others": (
        "layer",
        "norm-batch-dependent",
        layer(lambda x, e: good(x, e) * (1.0 if x.numel() > x.shape[-1] else 1.01)),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_called_by_its_name(name: str) -> None:
    kind, rule, fn = WRONG[name]
    report = check_norm(fn, kind, dim=40, backend=None)
    assert rule in named(report), report.findings
    assert report.ok is (rule == "gradient-weight-low-precision")
    assert all(f.evidence and f.message and f.remedy for f in report.findings)


def test_a_mistake_of_the_formula_is_named_alone() -> None:
    """Not with all that follows from it."""
    for name in ("unbiased", "eps outside", "mean kept", "factor", "centre", "over time", "sum"):
        kind, rule, fn = WRONG[name]
        assert named(check_norm(fn, kind, dim=40, backend=None)) == {rule}


class Backward(torch.autograd.Function):
    """LayerNorm with a backward of one's own, and what goes wrong there."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, fault):
        s = wide(x)
        r = torch.rsqrt(var(s) + eps)
        hat = (s - mean(s)) * r
        ctx.save_for_backward(hat, r, weight)
        ctx.fault, ctx.dtype = fault, x.dtype
        return (hat * weight + bias).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        hat, r, weight = ctx.saved_tensors
        fault = ctx.fault
        wide_dy = dy.to(hat.dtype)
        g = wide_dy * weight
        dx = {
            "mean": r * (g - hat * mean(g * hat)),
            "variance": r * (g - mean(g)),
            "weight": r * (wide_dy - mean(wide_dy) - hat * mean(wide_dy * hat)),
        }.get(fault, r * (g - mean(g) - hat * mean(g * hat)))
        terms = (wide_dy * hat).flatten(0, -2) if dy.dim() > 1 else (wide_dy * hat)[None]
        rows = wide_dy.flatten(0, -2) if dy.dim() > 1 else wide_dy[None]
        dweight = {"average": terms.mean(0), "first": terms[:24].sum(0)}.get(fault, terms.sum(0))
        if fault == "rounded":
            dweight = torch.zeros_like(weight, dtype=dy.dtype)
            for row in terms.to(dy.dtype):
                dweight = dweight + row
        dbias = rows[::2].sum(0) if fault == "half the bias" else rows.sum(0)
        if fault == "in place":
            dy.mul_(2.0)
        return dx.to(ctx.dtype), dweight.to(weight.dtype), dbias.to(weight.dtype), None, None


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("none", None),
        ("mean", "gradient-dropped-mean-term"),
        ("variance", "gradient-dropped-variance-term"),
        ("weight", "norm-bad-gradient"),
        ("average", "gradient-weight"),
        ("first", "gradient-weight"),
        ("rounded", "gradient-weight-low-precision"),
        ("half the bias", "gradient-bias"),
        ("in place", "writes-inputs"),
    ],
)
def test_a_hand_written_backward(fault: str, rule: str | None) -> None:
    def fn(x, weight, bias, eps=1e-5):
        return Backward.apply(x, weight, bias, eps, fault)

    assert named(check_norm(fn, dim=40, backend=None)) == (set() if rule is None else {rule})


def test_memory_is_read_by_its_strides_and_not_written() -> None:
    def packed(x, weight, bias, eps=1e-5):
        flat = torch.as_strided(x, x.shape, torch.empty(x.shape).stride()) if x.numel() else x
        return F.layer_norm(flat, x.shape[-1:], weight, bias, eps)

    def in_place(x, weight, bias, eps=1e-5):
        y = F.layer_norm(x.clone(), x.shape[-1:], weight, bias, eps)
        x.detach().copy_(y)
        return y

    def two_axes_only(x, weight, bias, eps=1e-5):
        if x.dim() == 4 or not x.numel():
            raise ValueError("at most 3 axes")
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    assert "strides" in named(check_norm(packed, dim=40, backend=None))
    assert named(check_norm(in_place, dim=40, backend=None)) == {"writes-inputs"}
    report = check_norm(two_axes_only, dim=40, backend=None)
    assert report.ok
    assert named(report) - IN_TORCH == {"leading-shapes", "empty-batch"}


class Once(nn.Module):
    """Normal in evaluation, over the batch while training."""

    def forward(self, x: Tensor) -> Tensor:
        y = good(wide(x), 1e-5)
        return (y - y.mean(0) if self.training else y).to(x.dtype)


def test_training_mode_counts() -> None:
    assert named(check_norm(Once(), dim=40, backend=None)) == {"norm-batch-dependent"}


def test_what_cannot_be_compiled_is_said() -> None:
    def breaks(x, weight, eps=1e-6):
        torch._dynamo.graph_break()
        return F.rms_norm(x, x.shape[-1:], weight, eps)

    assert "compile" in named(check_norm(breaks, "rms", dim=40, backend="eager"))

    def missing(graph, inputs):
        raise RuntimeError("no compiler here")

    report = check_norm(nn.RMSNorm(40, eps=1e-6), "rms", backend=missing)
    assert report.ok
    assert [(u.rule, "no compiler here" in u.why) for u in report.unknown] == [("compile", True)]


def test_it_leaves_the_callers_world_alone() -> None:
    norm = nn.LayerNorm(24).train()
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    state = torch.random.get_rng_state()
    check_norm(norm, backend=None)
    assert torch.equal(state, torch.random.get_rng_state())
    assert norm.training
    assert all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())
    assert all(p.grad is None for p in norm.parameters())


def test_import_is_cheap() -> None:
    """Nothing but torch, and none of addnorm's models, norms or kernels; the face of the package
    says where models are stored."""
    code = (
        "import sys, torch; known = set(sys.modules); import addnorm.testing;"
        "new = {m.split('.')[0] for m in set(sys.modules) - known};"
        "print(sorted(new - set(sys.stdlib_module_names)));"
        "print(sorted(m for m in sys.modules if m.startswith('addnorm.')"
        " and m.split('.')[1] not in ('testing', 'linting', 'anatomy', 'errors', 'words',"
        " 'temporary', 'version') and not 'addnorm.models.storage'.startswith(m)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines() == ["['addnorm']", "[]"]


# Addition and norm --------------------------------------------------------------------------------


def F_norm(s, weight, bias, eps):
    return F.layer_norm(s, s.shape[-1:], weight, bias, eps)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_our_own_addition_and_norm_passes(kind: str) -> None:
    def with_bias(x, residual, weight, bias, eps):
        return ops.add_norm(x, residual, weight, bias, kind="layer", eps=eps)

    def without(x, residual, weight, eps):
        return ops.add_norm(x, residual, weight, kind="rms", eps=eps)

    report = check_add_norm(with_bias if kind == "layer" else without, kind, backend=None)
    assert not report.findings, report.findings
    assert not check_add_norm(norms.RMSNorm(24), "rms", backend=None).findings


class Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, bias, eps, fault):
        stream = x + residual
        with torch.enable_grad():
            held = [t.detach().requires_grad_() for t in (stream, weight, bias)]
            y = F_norm(held[0], held[1], held[2], eps)
        ctx.held, ctx.y, ctx.fault = held, y, fault
        return y.detach(), stream

    @staticmethod
    def backward(ctx, dy, dstream):
        ds, dweight, dbias = torch.autograd.grad(ctx.y, ctx.held, dy, retain_graph=True)
        whole = ds + dstream
        dx = ds if ctx.fault == "stream dropped" else whole
        dresidual = {"stream dropped": ds, "residual dropped": ds, "no residual": None}
        return dx, dresidual.get(ctx.fault, whole), dweight, dbias, None, None


def fused(fault):
    def fn(x, residual, weight, bias, eps=1e-5):
        return Fused.apply(x, residual, weight, bias, eps, fault)

    return fn


SUMS = {
    "stream is x": (
        "stream-wrong",
        lambda x, r, weight, bias, eps=1e-5: (F_norm(x + r, weight, bias, eps), x + 0),
    ),
    "stream is y": (
        "stream-wrong",
        lambda x, r, weight, bias, eps=1e-5: (F_norm(x + r, weight, bias, eps),) * 2,
    ),
    "norm of x": (
        "norm-not-of-sum",
        lambda x, r, weight, bias, eps=1e-5: (F_norm(x, weight, bias, eps), x + r),
    ),
    "norm, then add": (
        "norm-not-of-sum",
        lambda x, r, weight, bias, eps=1e-5: (F_norm(x, weight, bias, eps) + r, x + r),
    ),
    "stream detached": (
        "gradient-missing",
        lambda x, r, weight, bias, eps=1e-5: (F_norm(x + r, weight, bias, eps), (x + r).detach()),
    ),
    "residual detached": (
        "gradient-residual",
        lambda x, r, weight, bias, eps=1e-5: (F_norm(x + r.detach(), weight, bias, eps), x + r),
    ),
    "residual overwritten": (
        "writes-inputs",
        lambda x, r, weight, bias, eps=1e-5: (
            F_norm(x + r, weight, bias, eps),
            r.detach().add_(x.detach()),
        ),
    ),
    "one output": ("call", lambda x, r, weight, bias, eps=1e-5: F_norm(x + r, weight, bias, eps)),
    "unbiased": (
        "norm-unbiased-variance",
        lambda x, r, weight, bias, eps=1e-5: (
            layer(lambda s, e: (s - mean(s)) / (var(s, 1) + e).sqrt())(x + r, weight, bias, eps),
            x + r,
        ),
    ),
    "dstream dropped": ("gradient-stream-dropped", fused("stream dropped")),
    "dstream dropped for one": ("gradient-stream-dropped", fused("residual dropped")),
    "no gradient for one": ("gradient-residual", fused("no residual")),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_mistake_around_the_sum_is_called_by_its_name(name: str) -> None:
    rule, fn = SUMS[name]
    report = check_add_norm(fn, dim=40, backend=None)
    assert not report.ok
    assert rule in named(report), report.findings


def test_the_fused_function_is_right_without_a_fault() -> None:
    assert named(check_add_norm(fused("none"), dim=40, backend=None)) <= IN_TORCH


def test_the_rounding_of_the_stream_is_told() -> None:
    def unrounded(x, residual, weight, bias, eps=1e-5):
        y = layer(good)(wide(x) + wide(residual), weight, bias, eps)
        return y.to(x.dtype), x + residual

    report = check_add_norm(unrounded, dim=40, backend=None)
    assert report.ok
    assert "stream-rounding" in {f.rule for f in report.of("note")}


# Nothing is tuned to one shape --------------------------------------------------------------------

dims = st.integers(2, 300)
epsilons = st.floats(-12, -3).map(lambda power: 10.0**power)


@settings(max_examples=8, deadline=None)
@given(dim=dims, eps=epsilons, fault=st.sampled_from(["none", "unbiased", "outside", "size"]))
def test_any_width_and_eps(dim: int, eps: float, fault: str) -> None:
    bodies: dict[str, Body] = {
        "none": good,
        "unbiased": lambda x, e: (x - mean(x)) / (var(x, 1) + e).sqrt(),
        "outside": lambda x, e: (x - mean(x)) / (var(x).sqrt() + e),
        "size": lambda x, e: good(x, 3 * e),
    }
    # An eps outside the root that is small beside the smallest rows probed, 1e-8, is not to be
    # seen, and harmless.
    if fault == "outside" and eps < 1e-11:
        return
    report = check_norm(
        layer(bodies[fault]), dim=dim, eps=eps, dtypes=[torch.float32], backend=None
    )
    expected = {
        "none": set(),
        "unbiased": {"norm-unbiased-variance"},
        "outside": {"norm-eps-outside-sqrt"},
        "size": {"eps-size"},
    }
    assert named(report) == expected[fault], report.findings


def test_the_reference_is_the_equation() -> None:
    x = torch.tensor([[1.0, 3.0]])
    y = reference(x, torch.tensor([2.0, 2.0]), torch.tensor([1.0, 0.0]), "layer", 3.0)
    assert torch.equal(y, torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    y = reference(torch.tensor([[1.0, 7.0]]), None, None, "rms", 0.0)
    assert torch.allclose(y, torch.tensor([[0.2, 1.4]], dtype=torch.float64))
    assert math.isclose(float(reference(x, None, None, "rms", 4.0)[0, 1]), 1.0)
