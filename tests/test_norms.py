"""Every norm against its equation, in every dtype, at its edges; and AddNorm, which calls them.

``EXACT`` and ``CLOSE`` are derived in ops/test_ops.py; the sums here are of the same lengths.
"""

import copy
import inspect
import io
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from addnorm import ops, schemes
from addnorm.context import Context
from addnorm.models.transformer import decoder, encoder
from addnorm.norms import (
    BatchNorm,
    ChannelsFirstLayerNorm,
    DyT,
    Foreign,
    GroupNorm,
    L2Norm,
    LayerNorm,
    Norm,
    RMSNorm,
    ScaleNorm,
    UnbiasedLayerNorm,
    as_norm,
)
from addnorm.stream import AddNorm
from tests.ops.test_ops import CLOSE, EXACT, accurate, accurate_rows, close, grad, numpy, randn
from tests.references import norms, tape
from tests.references.tape import Array, Var

D = 12
TOKENS, IMAGE = (3, 5, D), (3, D, 2, 5)
ALL = np.ones((3, 5), dtype=np.bool_)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

Parameters = dict[str, Var]


@dataclass(frozen=True)
class Case:
    """A norm, its equation, and what it starts with."""

    make: Callable[[int], Norm]
    equation: Callable[[Var, Parameters], Var]
    initial: dict[str, float] = field(default_factory=dict)
    eps: float | None = None
    shape: tuple[int, ...] = TOKENS
    factor: tuple[int, ...] = (D,)  # the shape of one factor per channel


AFFINE = {"weight": 1.0, "bias": 0.0}
CASES: dict[str, Case] = {
    "LayerNorm": Case(
        LayerNorm, lambda x, p: norms.layer_norm(x, p["weight"], p["bias"], 1e-5), AFFINE, 1e-5
    ),
    "LayerNorm, no bias": Case(
        lambda d: LayerNorm(d, 1e-3, bias=False),
        lambda x, p: norms.layer_norm(x, p["weight"], 0.0, 1e-3),
        {"weight": 1.0},
        1e-3,
    ),
    "LayerNorm, not affine": Case(
        lambda d: LayerNorm(d, affine=False),
        lambda x, p: norms.layer_norm(x, 1.0, 0.0, 1e-5),
        {},
        1e-5,
    ),
    "UnbiasedLayerNorm": Case(
        UnbiasedLayerNorm,
        lambda x, p: norms.layer_norm_unbiased(x, p["weight"], p["bias"], 1e-6),
        AFFINE,
        1e-6,
    ),
    "UnbiasedLayerNorm, large eps": Case(
        lambda d: UnbiasedLayerNorm(d, 0.5),
        lambda x, p: norms.layer_norm_unbiased(x, p["weight"], p["bias"], 0.5),
        AFFINE,
        0.5,
    ),
    "RMSNorm": Case(
        RMSNorm, lambda x, p: norms.rms_norm(x, p["weight"], 1e-6), {"weight": 1.0}, 1e-6
    ),
    "RMSNorm, unit offset": Case(
        lambda d: RMSNorm(d, 1e-2, weight_offset=1.0),
        lambda x, p: norms.rms_norm(x, p["weight"], 1e-2, 1.0),
        {"weight": 0.0},
        1e-2,
    ),
    "RMSNorm, not affine": Case(
        lambda d: RMSNorm(d, affine=False), lambda x, p: norms.rms_norm(x, 1.0, 1e-6), {}, 1e-6
    ),
    "RMSNorm, not affine, unit offset": Case(
        lambda d: RMSNorm(d, affine=False, weight_offset=1.0),
        lambda x, p: norms.rms_norm(x, 1.0, 1e-6),
        {},
        1e-6,
    ),
    "L2Norm": Case(L2Norm, lambda x, p: norms.l2_norm(x, 1e-6), {}, 1e-6),
    "ScaleNorm": Case(
        ScaleNorm,
        lambda x, p: norms.scale_norm(x, p["weight"], 1e-5),
        {"weight": math.sqrt(D)},
        1e-5,
    ),
    "ScaleNorm, clamped": Case(  # ||x|| of a dozen normal numbers is about 3.5: below and above
        lambda d: ScaleNorm(d, 3.5),
        lambda x, p: norms.scale_norm(x, p["weight"], 3.5),
        {"weight": math.sqrt(D)},
        3.5,
    ),
    "DyT": Case(
        DyT,
        lambda x, p: norms.dyt(x, p["alpha"], p["weight"], p["bias"]),
        {"alpha": 0.5, **AFFINE},
    ),
    "DyT, no bias": Case(
        lambda d: DyT(d, 0.8, bias=False),
        lambda x, p: norms.dyt(x, p["alpha"], p["weight"], 0.0),
        {"alpha": 0.8, "weight": 1.0},
    ),
    "ChannelsFirstLayerNorm": Case(
        ChannelsFirstLayerNorm,
        lambda x, p: norms.channels_first_layer_norm(x, p["weight"], p["bias"], 1e-6),
        AFFINE,
        1e-6,
        IMAGE,
        (D, 1, 1),
    ),
    "BatchNorm": Case(
        BatchNorm, lambda x, p: norms.batch_norm(x, ALL, p["weight"], p["bias"], 1e-5), AFFINE, 1e-5
    ),
    "GroupNorm": Case(
        GroupNorm,
        lambda x, p: norms.group_norm(x, ALL, 1, p["weight"], p["bias"], 1e-5),
        AFFINE,
        1e-5,
    ),
    "GroupNorm, 3 groups": Case(
        lambda d: GroupNorm(d, 3, 1e-2),
        lambda x, p: norms.group_norm(x, ALL, 3, p["weight"], p["bias"], 1e-2),
        AFFINE,
        1e-2,
    ),
}
every_norm = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def stirred(case: Case, dtype: torch.dtype = torch.float64, dim: int = D) -> Norm:
    """The norm with parameters away from where they start: 1 and 0 hide what they do."""
    norm = case.make(dim).to(dtype)
    with torch.no_grad():
        for seed, p in enumerate(norm.parameters()):
            p.add_(0.3 * randn(*p.shape, seed=20 + seed, dtype=dtype))
    return norm


def reference(case: Case, norm: Norm, s: Tensor) -> Array:
    """The equation at the parameters that the norm has, in float64."""
    p = {k: Var(numpy(v)) for k, v in norm.named_parameters()}
    return case.equation(Var(numpy(s)), p).value


# --- the equations --------------------------------------------------------------------------------


def test_every_class_is_in_the_table() -> None:
    kinds = {type(case.make(D)) for case in CASES.values()}
    classes = {c for _, c in inspect.getmembers(sys.modules[Norm.__module__], inspect.isclass)}
    ours = {c for c in classes if issubclass(c, Norm) and not inspect.isabstract(c)}
    assert kinds | {Foreign} == ours


@every_norm
@pytest.mark.parametrize("wire", ["x", "residual", "numbers", "scalars", "channels", "samples"])
def test_equals_the_equation(case: Case, wire: str) -> None:
    """Values, the stream, and the gradient of everything that has one."""
    norm = stirred(case)
    x = randn(*case.shape, seed=1).requires_grad_()
    leaves = {"x": x, **dict(norm.named_parameters())}
    residual: Tensor | None = None
    keep: Any = 1.0
    gain: Any = 1.0
    if wire != "x":
        residual = randn(*case.shape, seed=2).requires_grad_()
        leaves["residual"] = residual
    if wire == "numbers":
        keep, gain = 0.6, -1.2
    elif wire in ("scalars", "channels", "samples"):
        sample = (3,) + (1,) * (len(case.shape) - 1)
        shape = {"scalars": (), "channels": case.factor, "samples": sample}[wire]
        keep, gain = (1.0 + 0.3 * randn(*shape, seed=s) for s in (5, 6))
        leaves |= {"keep": keep.requires_grad_(), "gain": gain.requires_grad_()}

    dy, dstream = randn(*case.shape, seed=7), randn(*case.shape, seed=8)
    v = {k: Var(numpy(t)) for k, t in leaves.items()}
    if residual is None:
        y, stream = norm(x), x
        want_stream = v["x"]
        want = case.equation(want_stream, v)
    else:
        y, stream = norm(x, residual, keep, gain)
        want, want_stream = norms.add_norm(
            lambda s: case.equation(s, v),
            v["residual"],
            v["x"],
            v.get("keep", Var(1.0 if wire == "residual" else 0.6)),
            v.get("gain", Var(1.0 if wire == "residual" else -1.2)),
        )
    close("y", y, want.value, EXACT)
    close("stream", stream, want_stream.value, EXACT)
    torch.autograd.backward([y, stream], [dy, dstream])
    tape.backward((want * numpy(dy) + want_stream * numpy(dstream)).sum(), 1.0)
    for name, leaf in leaves.items():
        close(f"gradient of {name}", grad(leaf), v[name].grad, EXACT)


@every_norm
def test_gradcheck(case: Case) -> None:
    norm = stirred(case)
    x, residual = (randn(*case.shape, seed=s)[:2, ..., :2, :] for s in (1, 2))
    if case.shape == IMAGE:
        x, residual = (t[..., :2] for t in (x, residual))
    inputs = [t.contiguous().requires_grad_() for t in (x, residual)]
    names = [k for k, _ in norm.named_parameters()]

    def f(x: Tensor, residual: Tensor, *parameters: Tensor) -> Any:
        return torch.func.functional_call(
            norm, dict(zip(names, parameters, strict=True)), (x, residual, 0.7, 1.1)
        )

    assert torch.autograd.gradcheck(f, [*inputs, *norm.parameters()])


@every_norm
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_sum_is_normalized_as_a_tensor_of_its_own_would_be(case: Case, dtype: Any) -> None:
    """norm(x, residual, keep, gain) = (norm(stream), stream), to the last bit."""
    norm = stirred(case, dtype)
    x, residual = (randn(*case.shape, seed=s, dtype=dtype) for s in (1, 2))
    gain = torch.full(case.factor, 0.7, dtype=dtype)
    y, stream = norm(x, residual, 0.5, gain)
    assert torch.equal(stream, ops.settle(x, residual, 0.5, gain))
    assert torch.equal(norm(stream), y)
    assert torch.is_tensor(norm(x))


def test_what_the_literature_says_of_the_gradients() -> None:
    """LayerNorm's gradient has no mean and is orthogonal to its output, RMSNorm's to its input.

    In exact arithmetic with eps = 0 and no weight; both scale invariances say so. RMSNorm's has a
    mean, which tells its backward from LayerNorm's.
    """
    dy = randn(64, D, seed=7)
    for norm in (LayerNorm(D, 0.0, affine=False), RMSNorm(D, 0.0, affine=False), L2Norm(D, 0.0)):
        x = randn(64, D, seed=1).requires_grad_()
        y = norm(x)
        y.backward(dy)
        dx = grad(x)
        assert (dx * y).sum(-1).abs().max() < EXACT
        assert (dx.sum(-1).abs().max() < EXACT) == isinstance(norm, LayerNorm)


def test_layer_norm_is_rms_norm_of_the_centred_row() -> None:
    x = randn(*TOKENS, seed=1)
    centred = x - x.mean(-1, keepdim=True)
    rms = RMSNorm(D, 1e-5, affine=False)(centred)
    close("LayerNorm", LayerNorm(D, affine=False)(x), numpy(rms), EXACT)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (LayerNorm(D), nn.LayerNorm(D)),
        (LayerNorm(D, bias=False), nn.LayerNorm(D, bias=False)),
        (LayerNorm(D, affine=False), nn.LayerNorm(D, elementwise_affine=False)),
        (RMSNorm(D), nn.RMSNorm(D, eps=1e-6)),
        (RMSNorm(D, affine=False), nn.RMSNorm(D, eps=1e-6, elementwise_affine=False)),
    ],
    ids=lambda m: repr(m).split("\n")[0],
)
def test_torchs_own_norms_have_our_parameters_and_values(ours: Norm, theirs: nn.Module) -> None:
    """A state_dict moves between the two; an ordinary input is normalized alike."""
    ours, theirs = copy.deepcopy(ours).double(), copy.deepcopy(theirs).double()
    for p in theirs.parameters():
        nn.init.normal_(p)
    ours.load_state_dict(theirs.state_dict())
    x = randn(*TOKENS, seed=1)
    close("y", ours(x), numpy(theirs(x)), EXACT)


# --- as they come ---------------------------------------------------------------------------------


@every_norm
def test_defaults(case: Case) -> None:
    norm = case.make(D)
    values = {k: p.unique().tolist() for k, p in norm.named_parameters()}
    single = {"ScaleNorm": ["weight"], "DyT": ["alpha"]}.get(type(norm).__name__, [])
    assert values == {k: [float(np.float32(v))] for k, v in case.initial.items()}
    for k, p in norm.named_parameters():
        assert p.shape == ((1,) if k in single else (D,))
        assert p.dtype == torch.float32
    assert getattr(norm, "eps", None) == case.eps


def test_what_crosses_tokens_says_so() -> None:
    assert {type(c.make(D)) for c in CASES.values() if c.make(D).crosses_tokens} == {
        BatchNorm,
        GroupNorm,
    }


@every_norm
def test_a_token_is_normalized_by_itself_unless_the_norm_says_otherwise(case: Case) -> None:
    norm, x = stirred(case), randn(*case.shape, seed=1)
    other = x.clone()
    other[1:] += 1.0  # other samples
    other[0, ..., 1:, :] += 1.0  # other tokens, or other rows of the image
    same = torch.allclose(norm(x)[0, ..., 0, :], norm(other)[0, ..., 0, :], rtol=0, atol=EXACT)
    assert same != norm.crosses_tokens


@every_norm
def test_state_dict_round_trip(case: Case) -> None:
    norm = stirred(case, torch.float32)
    norm(randn(*case.shape, seed=1, dtype=torch.float32))  # BatchNorm's buffers move as well
    file = io.BytesIO()
    torch.save(norm.state_dict(), file)
    file.seek(0)
    fresh = case.make(D)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    x = randn(*case.shape, seed=2, dtype=torch.float32)
    assert torch.equal(fresh.eval()(x), norm.eval()(x))


@every_norm
def test_reset_parameters_fills_what_came_from_the_meta_device(case: Case) -> None:
    with torch.device("meta"):
        norm = case.make(D)
    norm.to_empty(device="cpu")
    with torch.no_grad():
        for t in norm.state_dict().values():
            t.fill_(math.nan)
    norm.reset_parameters()
    want = case.make(D).state_dict()
    state = norm.state_dict()
    assert state.keys() == want.keys()
    for name, t in want.items():
        assert torch.equal(state[name], t), name


@every_norm
@pytest.mark.parametrize("width", [1, D - 1, 2 * D])
def test_another_width_is_refused(case: Case, width: int) -> None:
    """Also where no weight would notice, and where broadcasting would hide it."""
    shape = [width if n == D else n for n in case.shape]
    with pytest.raises(ValueError, match=rf"\b{D}\b"):
        case.make(D)(torch.ones(shape))


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="unbiased standard deviation needs dim >= 2, got 1"):
        UnbiasedLayerNorm(1)
    with pytest.raises(ValueError, match="5 groups do not divide 12 channels"):
        GroupNorm(12, 5)
    norm = ChannelsFirstLayerNorm(D)
    for shape in [(3, 2, 5, D), (3, D), (D,)]:
        with pytest.raises(ValueError, match=r"an image \(B, 12, \.\.\.\)|expects 12 on axis 1"):
            norm(torch.ones(shape))
    with pytest.raises(TypeError, match="abstract"):
        Norm(D)  # type: ignore[abstract]


def test_channels_first_is_layer_norm_of_every_pixel() -> None:
    norm = stirred(CASES["ChannelsFirstLayerNorm"])
    plain = LayerNorm(D, 1e-6).double()
    plain.load_state_dict(norm.state_dict())
    for shape in [IMAGE, (2, D, 7), (2, D, 3, 2, 2)]:
        x = randn(*shape, seed=1)
        assert torch.equal(norm(x).movedim(1, -1), plain(x.movedim(1, -1)))


# --- precision ------------------------------------------------------------------------------------


@every_norm
@pytest.mark.parametrize("parameters", [*FLOATS, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
def test_dtypes(case: Case, dtype: torch.dtype, parameters: torch.dtype) -> None:
    """y as x, to its final rounding; the stream as the residual; parameters as they are."""
    norm = stirred(case, parameters)
    x = randn(*case.shape, seed=1, dtype=dtype)
    y = norm(x)
    assert y.dtype == dtype
    accurate("y", y, reference(case, norm, x))
    for residual in (torch.float32, dtype):
        y, stream = norm(x, randn(*case.shape, seed=2, dtype=residual))
        assert (y.dtype, stream.dtype) == (dtype, residual)
        accurate("y of the sum", y, reference(case, norm, stream))


@every_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(case: Case, dtype: torch.dtype) -> None:
    norm = stirred(case, torch.float32)
    x, residual = (randn(*case.shape, seed=s, dtype=dtype).requires_grad_() for s in (1, 2))
    inputs = [x, residual, *norm.parameters()]

    def run() -> list[Tensor]:
        y, stream = norm(x, residual, 0.5)
        return [y, stream, *torch.autograd.grad(y.square().sum() + stream.sum(), inputs)]

    plain = run()
    with torch.autocast("cpu", torch.bfloat16):
        under = run()
    for a, b in zip(plain, under, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


LARGE = ["LayerNorm", "UnbiasedLayerNorm", "RMSNorm", "L2Norm", "ScaleNorm"]


@pytest.mark.parametrize("magnitude", [1e3, 1e9, 1e14, 1e18, 1e20, 1e30, 1e37], ids="{:.0e}".format)
@pytest.mark.parametrize("dim", [8, 768])
@pytest.mark.parametrize("name", LARGE)
def test_large_rows(name: str, dim: int, magnitude: float) -> None:
    """Values to CLOSE, gradients to CLOSE of the terms that cancel in them: weight * dy / std."""
    case = CASES[name]
    norm = stirred(case, torch.float32, dim)
    x = (randn(16, dim, seed=1) * magnitude).float().requires_grad_()
    dy = randn(16, dim, seed=7, dtype=torch.float32)
    y = norm(x)
    p = {k: Var(numpy(v)) for k, v in norm.named_parameters()}
    leaf = Var(numpy(x))
    want = case.equation(leaf, p)
    tape.backward(want, numpy(dy))
    # ScaleNorm's values are those of its weight, about sqrt(dim), times others of at most 1
    scale = float(norm.weight.detach()) if isinstance(norm, ScaleNorm) else 1.0
    accurate("y", y / max(1.0, scale / 6), want.value / max(1.0, scale / 6))
    y.backward(dy)
    weight = (
        numpy(norm.weight) if isinstance(norm, LayerNorm | UnbiasedLayerNorm | RMSNorm) else 1.0
    )
    rows = numpy(x)
    centred = rows if name not in LARGE[:2] else rows - rows.mean(-1, keepdims=True)
    terms = np.abs(numpy(dy) * weight).max(-1) / np.sqrt((centred**2).mean(-1))
    accurate_rows("gradient", grad(x), leaf.grad, terms)


@pytest.mark.parametrize("name", ["LayerNorm", "UnbiasedLayerNorm", "ChannelsFirstLayerNorm"])
def test_a_mean_of_1e4_and_a_spread_of_1e_minus_2(name: str) -> None:
    norm = stirred(CASES[name], torch.float32, 768)
    x = (1e4 + 1e-2 * randn(16, 768, 3, seed=1)).float()
    x = x if name == "ChannelsFirstLayerNorm" else x.movedim(1, -1)
    s = x[..., None] if name == "ChannelsFirstLayerNorm" else x  # its equation reads (B, C, H, W)
    accurate("y", norm(s), reference(CASES[name], norm, s))


@pytest.mark.parametrize("name", ["BatchNorm", "GroupNorm"])
def test_a_large_mean_over_tokens(name: str) -> None:
    """The mean of many tokens is kept as one float32 number: off by half a unit, 2^-11 at 1e4.

    Divided by sqrt(1e-4 + eps) that is 0.047 of a normalized value, times the weight.
    """
    norm = stirred(CASES[name], torch.float32, 256)
    x = (1e4 + 1e-2 * randn(3, 50, 256, seed=1)).float()
    p = {k: Var(numpy(v)) for k, v in norm.named_parameters()}
    mask = np.ones((3, 50), dtype=np.bool_)
    want = masked_equation(name, Var(numpy(x)), mask, p).value
    bound = 2.0**-11 / math.sqrt(1e-4 + 1e-5) * norm.get_parameter("weight").abs().max().item()
    assert np.abs(numpy(norm(x)) - want).max() <= bound + CLOSE


@pytest.mark.parametrize("value", [0.1, 1e4 + 0.3, 1e18, 1e30], ids="{:.0e}".format)
@pytest.mark.parametrize("dim", [3, 768])
@pytest.mark.parametrize("name", LARGE)
def test_constant_rows(name: str, dim: int, value: float) -> None:
    """Exactly the bias where the mean is subtracted, the weight where it is not."""
    norm = stirred(CASES[name], torch.float32, dim)
    x = torch.full((2, dim), value).requires_grad_()
    y = norm(x)
    if isinstance(norm, LayerNorm | UnbiasedLayerNorm):
        assert torch.equal(y, norm.get_parameter("bias").expand(2, dim))
    else:
        close("y", y, reference(CASES[name], norm, x), CLOSE)
    y.sum().backward()
    assert grad(x).isfinite().all()


@every_norm
def test_zero_rows_are_finite_and_so_are_their_gradients(case: Case) -> None:
    norm = stirred(case, torch.float32)
    x = randn(*case.shape, seed=1, dtype=torch.float32)
    x[0] = 0.0
    x.requires_grad_()
    y = norm(x)
    bias = getattr(norm, "bias", None)
    if case.shape == TOKENS and not norm.crosses_tokens:
        want = torch.zeros(D) if bias is None else bias
        assert torch.equal(y[0], want.expand_as(y[0]))
    assert y.isfinite().all()
    y.square().sum().backward()
    for t in (x, *norm.parameters()):
        assert grad(t).isfinite().all()


def test_rms_norm_passes_its_cast_on() -> None:
    """Llama's order, formula by formula, to the last bit."""
    x = randn(64, 256, seed=1, dtype=torch.bfloat16)
    norm = RMSNorm(256, cast="llama").to(torch.bfloat16)
    nn.init.normal_(norm.get_parameter("weight"), 1.0, 0.3)
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(norm(x), norm.weight * normed.to(torch.bfloat16))


# --- norms that cross tokens ----------------------------------------------------------------------

VALID = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()
CROSSING = ["BatchNorm", "GroupNorm", "GroupNorm, 3 groups"]


def masked_equation(name: str, x: Var, valid: Array, p: Parameters) -> Var:
    mask = valid.astype(np.bool_)
    if name == "BatchNorm":
        return norms.batch_norm(x, mask, p["weight"], p["bias"], 1e-5)
    groups, eps = (3, 1e-2) if "3" in name else (1, 1e-5)
    return norms.group_norm(x, mask, groups, p["weight"], p["bias"], eps)


@pytest.mark.parametrize("name", CROSSING)
@pytest.mark.parametrize("padding", [0.0, 1e3, math.nan, math.inf])
def test_what_is_in_the_padding_never_matters(name: str, padding: float) -> None:
    """Values at real tokens, all gradients and the running statistics; the reference is padded
    with zeros. What the padding holds afterwards is anybody's."""
    norm = stirred(CASES[name])
    x = randn(*TOKENS, seed=1)
    x[~VALID] = padding
    x.requires_grad_()
    dy = randn(*TOKENS, seed=7) * VALID[..., None]
    y = norm(x, valid=VALID)

    p = {k: Var(numpy(t)) for k, t in norm.named_parameters()}
    leaf = Var(np.where(VALID[..., None].numpy(), numpy(x), 0.0))
    want = masked_equation(name, leaf, VALID.numpy(), p)
    close("y", y[VALID], want.value[VALID.numpy()], EXACT)
    torch.where(VALID[..., None], y, 0.0).backward(dy)
    tape.backward(want, numpy(dy))
    close("gradient of x", grad(x)[VALID], leaf.grad[VALID.numpy()], EXACT)
    for k, t in norm.named_parameters():
        close(f"gradient of {k}", grad(t), p[k].grad, EXACT)
    assert all(b.isfinite().all() for b in norm.buffers())


@pytest.mark.parametrize("name", CROSSING)
def test_padding_of_the_sum_never_matters_either(name: str) -> None:
    norm = stirred(CASES[name])
    x, residual = randn(*TOKENS, seed=1), randn(*TOKENS, seed=2)
    clean, _ = norm(x, residual, 0.5, 2.0, VALID)
    x[~VALID], residual[~VALID] = math.nan, math.inf
    y, _ = norm(x, residual, 0.5, 2.0, VALID)
    assert torch.equal(y[VALID], clean[VALID])


def test_a_sample_of_padding_only_harms_no_other() -> None:
    valid = VALID.clone()
    valid[2] = False
    for name in CROSSING:
        x = randn(*TOKENS, seed=1)
        whole = stirred(CASES[name])(x, valid=valid)
        without = stirred(CASES[name])(x[:2], valid=valid[:2])
        close(name, whole[:2][valid[:2]], numpy(without[valid[:2]]), EXACT)
        assert whole.isfinite().all()


@pytest.mark.parametrize("valid", [None, VALID], ids=["all", "padded"])
@pytest.mark.parametrize("momentum", [0.1, 0.3])
def test_running_statistics_are_those_of_torch(valid: Tensor | None, momentum: float) -> None:
    """nn.BatchNorm1d sees the real tokens as one batch; two steps, then evaluation."""
    ours = BatchNorm(D, momentum=momentum).double()
    theirs = nn.BatchNorm1d(D, momentum=momentum).double()
    real = torch.ones(TOKENS[:2], dtype=torch.bool) if valid is None else valid
    for step in range(2):
        x = 3.0 + 2.0 * randn(*TOKENS, seed=step)
        close("training", ours(x, valid=valid)[real], numpy(theirs(x[real])), EXACT)
    for name in ("running_mean", "running_var"):
        close(name, ours.get_buffer(name), numpy(theirs.get_buffer(name)), EXACT)
    ours.eval()
    theirs.eval()
    before = {k: b.clone() for k, b in ours.named_buffers()}
    x = randn(*TOKENS, seed=9)
    close("evaluation", ours(x, valid=valid)[real], numpy(theirs(x[real])), EXACT)
    assert all(torch.equal(b, before[k]) for k, b in ours.named_buffers())


def test_running_statistics_in_bfloat16_and_under_no_grad() -> None:
    norm = BatchNorm(D).to(torch.bfloat16)
    x = 3.0 + randn(*TOKENS, seed=1, dtype=torch.bfloat16)
    with torch.no_grad():
        norm(x)
    # 0.1 * mean, rounded when the mean is stored and when it is added: 2^-8 each
    close("mean", norm.running_mean, 0.1 * numpy(x).mean((0, 1)), 2.0**-7)


@pytest.mark.parametrize("norm", [BatchNorm, GroupNorm])
def test_a_causal_stack_refuses_what_crosses_tokens(norm: Callable[[int], Norm]) -> None:
    with pytest.raises(ValueError, match="statistics over several tokens: in a causal stack"):
        decoder(8, 2, 1, schemes.pre_norm, norm=norm)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", schemes.names())
@pytest.mark.parametrize("norm", [BatchNorm, GroupNorm])
def test_padding_changes_nothing_in_an_encoder(norm: Any, name: str, training: bool) -> None:
    """The same real tokens with four more padded ones behind them."""
    torch.manual_seed(0)
    stack = encoder(8, 2, 2, schemes.parse(name), norm=norm).double()
    x = randn(3, 5, 8, seed=1)
    stack(x, Context(valid=VALID))  # running statistics away from their start
    wide = torch.cat([x, 1e3 * randn(3, 4, 8, seed=2)], dim=1)
    valid = torch.cat([VALID, torch.zeros(3, 4, dtype=torch.bool)], dim=1)
    outputs, buffers = [], []
    for u, mask in ((x, VALID), (wide, valid)):
        copied = copy.deepcopy(stack).train(training)
        outputs.append(copied(u, Context(valid=mask))[:, :5][VALID])
        buffers.append(list(copied.buffers()))
    close("real tokens", outputs[1], numpy(outputs[0]), EXACT)
    for a, b in zip(*buffers, strict=True):
        close("running statistics", a, numpy(b), EXACT)


# --- AddNorm --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.25])
@every_norm
def test_add_norm_is_the_sum_and_its_norm(case: Case, scale: float) -> None:
    """y, h = addnorm(x, residual), and y, x = addnorm(x)."""
    addnorm = AddNorm(D, case.make, scale).double()
    x, residual = (randn(*case.shape, seed=s) for s in (1, 2))
    y, h = addnorm(x, residual)
    assert torch.equal(h, residual + x)
    close("y", y, scale * reference(case, addnorm.norm, h), EXACT)
    y, h = addnorm(x, residual, 0.5, torch.full(case.factor, 3.0).double())
    assert torch.equal(h, 0.5 * residual + 3.0 * x)
    close("y", y, scale * reference(case, addnorm.norm, h), EXACT)
    y, h = addnorm(x)
    assert h is x
    close("y", y, scale * reference(case, addnorm.norm, x), EXACT)
    y, h = addnorm(x, gain=2.0)
    assert torch.equal(h, 2.0 * x)
    close("y", y, scale * reference(case, addnorm.norm, h), EXACT)


def test_add_norm_with_the_defaults() -> None:
    addnorm = AddNorm(D)
    assert isinstance(addnorm.norm, LayerNorm)
    assert addnorm.scale == 1.0
    assert "scale=0.5" in repr(AddNorm(D, scale=0.5))


def test_add_norm_is_the_boundary_of_other_peoples_blocks() -> None:
    """h = h + f(norm(h)), written twice: as everybody does, and with the add and norm in one."""
    torch.manual_seed(0)
    f = [nn.Linear(D, D).double() for _ in range(3)]
    norm = [AddNorm(D).double() for _ in range(4)]
    x = randn(*TOKENS, seed=1)
    h = x
    for i in range(3):
        h = h + f[i](norm[i].norm(h))
    want = norm[3].norm(h)
    y, h = norm[0](x)
    for i in range(3):
        y, h = norm[i + 1](f[i](y), h)
    close("y", y, numpy(want), EXACT)


def test_add_norm_hands_valid_to_the_norm() -> None:
    addnorm = AddNorm(D, BatchNorm).double()
    x, residual = randn(*TOKENS, seed=1), randn(*TOKENS, seed=2)
    padded = torch.where(VALID[..., None], x, 1e3)
    for arguments in ((), (residual,)):
        clean, _ = addnorm(x, *arguments, valid=VALID)
        y, _ = addnorm(padded, *arguments, valid=VALID)
        close("y", y[VALID], numpy(clean[VALID]), EXACT)


def test_hooks_on_the_norm_fire_with_and_without_residual() -> None:
    addnorm, calls = AddNorm(D), []
    addnorm.norm.register_forward_hook(lambda m, inputs, output: calls.append(len(inputs)))
    x = torch.ones(2, D)
    addnorm(x)
    addnorm(x, x)
    assert len(calls) == 2


def test_foreign_norms() -> None:
    """Anybody's module takes part: the addition first, then the module, its parameters found."""
    addnorm = AddNorm(D, norm=nn.LayerNorm).double()
    assert isinstance(addnorm.norm, Foreign)
    assert [k for k, _ in addnorm.named_parameters()] == ["norm.module.weight", "norm.module.bias"]
    x, residual = (randn(*TOKENS, seed=s).requires_grad_() for s in (1, 2))
    y, h = addnorm(x, residual, 0.5, 2.0)
    ours, h_ours = AddNorm(D).double()(x, residual, 0.5, 2.0)
    assert torch.equal(h, h_ours)
    close("y", y, numpy(ours), EXACT)
    dy = randn(*TOKENS, seed=7)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (x, residual), dy),
        torch.autograd.grad(y, (x, residual), dy),
        strict=True,
    ):
        close("gradient", theirs, numpy(mine), EXACT)
    y, h = addnorm(x)
    assert h is x
    close("y", y, numpy(nn.functional.layer_norm(x, (D,))), EXACT)


def test_a_foreign_norm_reads_the_stream_and_answers_as_x() -> None:
    addnorm = AddNorm(D, norm=nn.LayerNorm)
    x, h = randn(*TOKENS, seed=1, dtype=torch.bfloat16), randn(*TOKENS, seed=2, dtype=torch.float32)
    y, stream = addnorm(x, h)
    assert (y.dtype, stream.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(y, nn.functional.layer_norm(h + x.float(), (D,)).bfloat16())


def test_as_norm_wraps_once() -> None:
    norm = LayerNorm(D)
    assert as_norm(norm) is norm
    wrapped = as_norm(nn.LayerNorm(D))
    assert as_norm(wrapped) is wrapped
