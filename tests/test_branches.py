"""The branches against naive loops and equations: attention, MLPs, masks, the cache, dtypes.

Tolerance ``EXACT`` for two float64 evaluations of one formula, relative to the largest entry where
that exceeds one. An entry passes four sums of at most 24 terms (projection, logits, weights times
values, projection), each good to 24 * 1.1e-16 of its largest partial sum, which is below ten times
its value here; the exponential turns an absolute error of a logit (at most some 10) into a relative
one of its weight, another factor of ten. 4 * 24 * 1.1e-16 * 100 = 1.1e-12.
A wrong mask, scale or head shows at 1e-3 or more. Measured: 8e-15.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from addnorm import ops
from addnorm.branches import (
    ACTIVATIONS,
    MLP,
    Attention,
    CrossAttention,
    GatedMLP,
    MultiHead,
    Parallel,
)
from addnorm.context import Context, Here, Memory
from addnorm.init import Init, reset_parameters
from addnorm.norms import LayerNorm, RMSNorm
from addnorm.positions import ALiBi, AttentionPosition, RoPE
from addnorm.stream import Stack, Wiring
from tests.nets import GrowingCache
from tests.references import attention as naive
from tests.references import norms, parts, tape
from tests.references.tape import Array, Mask, Var

EXACT = 1e-12
DIM = 12
EPS = 1e-3  # of the norms on heads and inside: large enough to be seen where it is forgotten

# Always the same examples: a test that fails once in a hundred runs tells nobody anything.
examples = partial(settings, deadline=None, derandomize=True, database=None)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def random(module: Any) -> Any:
    """In float64 and with every parameter random: no norm at 1, no bias at 0, no logit near 0."""
    module.double()
    with torch.no_grad():
        for p in module.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=1.5 * p.shape[1] ** -0.5)
            else:
                p.add_(0.3 * torch.randn_like(p))
    return module


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def near(actual: Tensor, want: Any, tolerance: float = EXACT) -> None:
    """The largest difference is within the tolerance of the largest value, of 1 if that is more."""
    want = torch.as_tensor(want)
    assert actual.shape == want.shape
    error, largest = (actual - want).abs().max().item(), want.abs().max().item()
    assert error <= tolerance * max(1.0, largest), f"off by {error:.3g} of {largest:.3g}"


def gradients(module: nn.Module, y: Tensor, *others: Tensor) -> dict[str, Tensor]:
    """The gradients of a fixed random functional of y, of the parameters and of other tensors."""
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=y.dtype)
    leaves_by_name = dict(module.named_parameters()) | {
        f"input {i}": t for i, t in enumerate(others)
    }
    return dict(
        zip(
            leaves_by_name,
            torch.autograd.grad(y, list(leaves_by_name.values()), cotangent),
            strict=True,
        )
    )


def leaves(x: Tensor, ctx: Context) -> list[Tensor]:
    """What may need a gradient besides parameters, now requiring it."""
    across = (None, None) if ctx.memory is None else (ctx.memory.x, ctx.memory.bias)
    tensors = (x, ctx.bias, *across)
    return [t.requires_grad_() for t in tensors if t is not None]


def replaced(ctx: Context, name: str, value: Tensor) -> Context:
    """With one field that has a name as in errors: ``memory.bias`` is a field of the memory."""
    outer, _, inner = name.partition(".")
    if not inner:
        return ctx._replace(**{outer: value})
    assert ctx.memory is not None
    return ctx._replace(memory=ctx.memory._replace(**{inner: value}))


def call(module: nn.Module, x: Tensor, ctx: Context) -> Tensor:
    """A stack or a branch, whichever it is."""
    y: Tensor = module(x, ctx if isinstance(module, Stack) else Here(ctx))
    return y


def bare(*makes: Any, dim: int = DIM) -> Stack:
    """Sublayers with plain addition and without norms: x + f(x)."""
    return Stack([(f"kind{i}", make) for i, make in enumerate(makes)], dim, lambda site: Wiring())


# --- one attention and one call of it -------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Everything that attention can be asked for. A mask is given by its axes, "" = there is none,
    "1" = one entry that stands for all."""

    batch: int = 2
    time: int = 5
    memory: int = 0  # tokens to attend to across, 0 = self-attention
    heads: tuple[int, int] = (4, 4)  # of the queries, of keys and values
    head_dim: int = 4
    causal: bool = False
    window: int | None = None
    qk_norm: bool = False
    softcap: float | None = None  # also: plain products instead of PyTorch's attention
    scale: float | None = None
    code: str = ""  # "rope", "alibi"
    positions: str = ""
    valid: bool = False
    attend: str = ""
    bias: str = ""
    inner: bool = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, T, S)."""
        return self.batch, self.heads[0], self.time, self.memory or self.time

    def sizes(self, axes: str) -> tuple[int, ...]:
        return tuple({**dict(zip("BHTS", self.shape, strict=True)), "1": 1}[a] for a in axes)

    def build(self, **more: Any) -> MultiHead:
        options: dict[str, Any] = {
            "n_kv_heads": self.heads[1],
            "head_dim": self.head_dim,
            "qk_norm": partial(RMSNorm, eps=EPS) if self.qk_norm else None,
            "softcap": self.softcap,
            "scale": self.scale,
            "inner": partial(LayerNorm, eps=EPS) if self.inner else None,
            **more,
        }
        if self.memory:
            return CrossAttention(DIM, self.heads[0], **options)
        codes: dict[str, Callable[[], AttentionPosition | None]] = {
            "rope": lambda: RoPE(self.head_dim),
            "alibi": lambda: ALiBi(self.heads[0]),
            "": lambda: None,
        }
        options |= {"causal": self.causal, "window": self.window, "position": codes[self.code]()}
        return Attention(DIM, self.heads[0], **options)

    def call(self) -> tuple[Tensor, Context]:
        """An input, and a Context with the masks in the fields that belong to what is attended."""
        ctx, of = Context(), ""
        if self.memory:
            ctx, of = Context(memory=Memory(draw(self.batch, self.memory, DIM))), "memory."
        if self.valid:
            ctx = replaced(ctx, f"{of}valid", torch.rand(self.sizes("BS")) > 0.2)
        if self.attend:
            ctx = replaced(ctx, f"{of}attend", torch.rand(self.sizes(self.attend)) > 0.3)
        if self.bias:
            ctx = replaced(ctx, f"{of}bias", draw(*self.sizes(self.bias)))
        if self.positions:
            ctx = ctx._replace(positions=torch.randint(0, 50, self.sizes(self.positions)))
        return draw(self.batch, self.time, DIM), ctx


def masks(ctx: Context) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Valid, attend and bias of what is attended to."""
    attended = ctx if ctx.memory is None else ctx.memory
    return attended.valid, attended.attend, attended.bias


def full(mask: Tensor | None) -> Any:
    """With four axes, in NumPy: where there are three, the heads are missing."""
    if mask is None:
        return None
    return (mask[:, None] if mask.dim() == 3 else mask).numpy()


def sight(case: Case, ctx: Context) -> Mask:
    """Which query may see which key, (B, H, T, S), all masks together."""
    valid, attend, _ = masks(ctx)
    i, j = np.arange(case.shape[2])[:, None], np.arange(case.shape[3])[None, :]
    mask = np.ones(case.shape, dtype=bool)
    if case.causal:
        mask &= j <= i
    if case.window is not None:
        mask &= j > i - case.window
    if valid is not None:
        mask &= valid.numpy()[:, None, None, :]
    if attend is not None:
        mask &= full(attend)
    return mask


def biased(q: Array, k: Array, v: Array, bias: Array, mask: Mask, softcap: float | None) -> Array:
    """naive.attention with any bias in place of ALiBi's, all masks already in ``seen``."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)
    z = np.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(q.shape[-1])
    if softcap is not None:
        z = softcap * np.tanh(z / softcap)
    z = z + bias
    e = np.exp(z - z.max()) * mask  # (B, H, T, S)
    total = e.sum(-1, keepdims=True)
    return np.einsum("bhts,bhsd->bhtd", e / np.where(total > 0, total, 1.0), v)


def linear(layer: nn.Linear, x: Array, heads: int = 0) -> Array:
    """x W^T + b; with heads as (B, heads, T, head_dim)."""
    y: Array = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    return y.reshape(*y.shape[:2], heads, -1).transpose(0, 2, 1, 3) if heads else y


def turned(x: Array, positions: Array) -> Array:
    """naive.rope, which has one row of positions for all samples."""
    if positions.ndim == 1:
        return naive.rope(x, positions)
    rows = np.broadcast_to(positions, (len(x), positions.shape[1]))
    return np.stack([naive.rope(sample, row) for sample, row in zip(x, rows, strict=True)])


def expected(
    case: Case,
    branch: Any,
    x: Tensor,
    ctx: Context,
    first: tuple[Array, float, float] | None = None,
) -> Array:
    """What the loops say. ``first``: the values to mix in, their factor and that of its own."""
    q_heads, kv_heads = case.heads
    source = x if ctx.memory is None else ctx.memory.x
    q = linear(branch.q, x.numpy(), q_heads)
    k = linear(branch.k, source.numpy(), kv_heads)
    v = linear(branch.v, source.numpy(), kv_heads)
    if case.qk_norm:
        q = naive.qk_norm(q, branch.q_norm.weight.detach().numpy(), EPS)
        k = naive.qk_norm(k, branch.k_norm.weight.detach().numpy(), EPS)
    if first is not None:
        v = naive.value_residual(v, *first)
    if case.code == "rope":
        at = np.arange(case.time) if ctx.positions is None else ctx.positions.numpy()
        q, k = turned(q, at), turned(k, at)
    if case.scale is not None:
        q = q * (case.scale * math.sqrt(case.head_dim))
    valid, attend, bias = masks(ctx)
    slopes = naive.alibi_slopes(q_heads) if case.code == "alibi" else None
    if bias is None and (slopes is None or case.causal):
        y = naive.attention(
            q,
            k,
            v,
            causal=case.causal,
            window=case.window,
            valid=None if valid is None else valid.numpy(),
            attend=full(attend),
            slopes=slopes,
            softcap=case.softcap,
        )
    else:
        added = np.zeros(case.shape) if bias is None else full(bias)
        if slopes is not None:
            distance = np.abs(np.arange(case.time)[:, None] - np.arange(case.time))
            added = added - slopes[:, None, None] * distance
        y = biased(q, k, v, added, sight(case, ctx), case.softcap)
    y = y.transpose(0, 2, 1, 3).reshape(case.batch, case.time, -1)
    if case.inner:
        w, b = branch.inner.weight.detach().numpy(), branch.inner.bias.detach().numpy()
        y = norms.layer_norm(y, w, b, EPS).value
    return linear(branch.out, y)


OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "one token": {"time": 1, "causal": True},
    "causal": {"causal": True},
    "grouped": {"heads": (4, 2)},
    "one key head": {"heads": (4, 1), "causal": True},
    "window": {"causal": True, "window": 2},
    "window of itself": {"causal": True, "window": 1},
    "qk_norm": {"qk_norm": True},
    "scale": {"scale": 0.8},
    "rope": {"code": "rope"},
    "rope at (T,)": {"code": "rope", "positions": "T"},
    "rope at (B, T)": {"code": "rope", "positions": "BT", "causal": True},
    "alibi": {"code": "alibi", "causal": True},
    "alibi both ways": {"code": "alibi"},
    "valid": {"valid": True},
    "valid, causal": {"valid": True, "causal": True},
    "attend (T, S)": {"attend": "TS"},
    "attend (B, T, S)": {"attend": "BTS", "batch": 4},
    "attend (B, H, T, S)": {"attend": "BHTS"},
    "attend (B, 1, 1, S)": {"attend": "B11S", "causal": True},
    "bias (T, S)": {"bias": "TS"},
    "bias (B, T, S)": {"bias": "BTS", "batch": 4},
    "bias (B, H, T, S)": {"bias": "BHTS"},
    "bias, causal": {"bias": "TS", "causal": True},
    "inner": {"inner": True},
}
TOGETHER: dict[str, Any] = {
    "time": 12,
    "heads": (4, 2),
    "causal": True,
    "window": 7,
    "qk_norm": True,
    "scale": 0.8,
    "valid": True,
    "attend": "BTS",
    "bias": "BHTS",
    "inner": True,
}
OPTIONS["everything, rope"] = TOGETHER | {"code": "rope", "positions": "BT"}
OPTIONS["everything, alibi"] = TOGETHER | {"code": "alibi"}

ACROSS: dict[str, dict[str, Any]] = {
    name: options | {"memory": 3}
    for name, options in OPTIONS.items()
    if not options.keys() & {"causal", "code"}
}
ACROSS["one of memory"] = {"memory": 1}
ACROSS["everything"] = {
    "memory": 9,
    **{k: v for k, v in TOGETHER.items() if k not in ("causal", "window")},
}


def cases(options: dict[str, dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("case", [Case(**o) for o in options.values()], ids=list(options))


path = pytest.mark.parametrize("softcap", [None, 2.0], ids=["fused", "plain"])


@st.composite
def combined(draw: Any, across: bool = False, causal: bool | None = None) -> Case:
    """Any combination that has a meaning."""
    causal = draw(st.booleans()) if causal is None else causal
    axes = st.sampled_from(["", "", "TS", "BTS", "BHTS", "1TS", "11TS", "B11S", "1HT1"])
    own: dict[str, Any] = {}
    if across:
        own["memory"] = draw(st.sampled_from([5, 7, 2, 1]))
    else:
        own["causal"] = causal
        own["window"] = draw(st.sampled_from([None, 4, 6, 2, 1])) if causal else None
        own["code"] = draw(st.sampled_from(["", "rope", "alibi"]))
        own["positions"] = draw(st.sampled_from(["", "T", "BT", "1T"]))
    return Case(
        batch=draw(st.integers(1, 3)),
        time=draw(st.sampled_from([6, 7, 5, 3, 1])),
        heads=draw(st.sampled_from([(1, 1), (2, 2), (2, 1), (4, 2), (3, 1), (6, 3)])),
        head_dim=draw(st.sampled_from([2, 4, 6])),
        qk_norm=draw(st.booleans()),
        softcap=draw(st.sampled_from([None, 1.5])),
        scale=draw(st.sampled_from([None, 0.7])),
        valid=draw(st.booleans()),
        attend=draw(axes),
        bias=draw(axes),
        inner=draw(st.booleans()),
        **own,
    )


# --- attention: equality with the loops -----------------------------------------------------------


def equals_the_loops(case: Case) -> None:
    torch.manual_seed(0)
    branch = random(case.build())
    x, ctx = case.call()
    with torch.no_grad():
        near(branch(x, Here(ctx)), expected(case, branch, x, ctx))


@cases(OPTIONS)
@path
def test_attention_equals_the_loops(case: Case, softcap: float | None) -> None:
    equals_the_loops(replace(case, softcap=softcap))


@cases(ACROSS)
@path
def test_cross_attention_equals_the_loops(case: Case, softcap: float | None) -> None:
    equals_the_loops(replace(case, softcap=softcap))


def test_the_cases_leave_something_to_get_wrong() -> None:
    """A query that sees one key has the same output whatever its logit is."""
    alone = ("one token", "window of itself", "one of memory")
    for name, options in [*OPTIONS.items(), *ACROSS.items()]:
        case = Case(**options)
        several = sight(case, case.call()[1]).sum(-1) > 1
        assert several.mean() >= 0.5 or name in alone, name


@examples(max_examples=150)
@given(combined() | combined(across=True))
def test_any_combination_equals_the_loops(case: Case) -> None:
    equals_the_loops(case)


def test_the_reference_with_a_bias_is_the_loops() -> None:
    """``biased`` given ALiBi's bias, and all masks at once, against naive.attention."""
    case = Case(heads=(4, 2), causal=True, window=3, valid=True, attend="BTS")
    _, ctx = case.call()
    q, k, v = draw(2, 4, 5, 4).numpy(), draw(2, 2, 5, 4).numpy(), draw(2, 2, 5, 4).numpy()
    slopes = naive.alibi_slopes(4)
    assert ctx.valid is not None
    for softcap in (None, 2.0):
        loops = naive.attention(
            q,
            k,
            v,
            causal=True,
            window=3,
            valid=ctx.valid.numpy(),
            attend=full(ctx.attend),
            slopes=slopes,
            softcap=softcap,
        )
        signed = -slopes[:, None, None] * (np.arange(5)[:, None] - np.arange(5))
        near(torch.tensor(biased(q, k, v, signed, sight(case, ctx), softcap)), loops)


@pytest.mark.parametrize("heads", [3, 6, 12, 16])
@path
def test_alibi_is_exact_in_float64(heads: int, softcap: float | None) -> None:
    """Slopes that float32 cannot hold, 2^(-1/2) among those of 12 and 16 heads, are not rounded."""
    for causal in (False, True):
        equals_the_loops(
            Case(heads=(heads, heads), code="alibi", causal=causal, softcap=softcap, time=9)
        )


@pytest.mark.parametrize("factors", [(0.5, 0.5), (0.3, 0.9)])
@path
def test_value_residual_in_a_stack_of_three(
    factors: tuple[float, float], softcap: float | None
) -> None:
    """The second and the third attention mix in the values of the first, and not one another's."""
    case = Case(heads=(4, 2), code="rope", causal=True, softcap=softcap)
    stack = random(bare(*[lambda **rules: case.build(value_residual=factors, **rules)] * 3))
    x, ctx = case.call()
    with torch.no_grad():
        actual = stack(x, ctx)
    h, first = x, None
    for sub in stack.sublayers():
        v = linear(sub.branch.v, h.numpy(), 2)
        mixed = None if first is None else (first, *factors)
        h = h + torch.tensor(expected(case, sub.branch, h, ctx, mixed))
        first = v if first is None else first
    near(actual, h)


# --- attention: who computes it -------------------------------------------------------------------


@examples(max_examples=60)
@given(combined() | combined(across=True))
def test_both_ways_of_computing_agree(case: Case) -> None:
    """Output and every gradient."""
    torch.manual_seed(0)
    branch = random(replace(case, softcap=None).build())
    x, ctx = case.call()
    inputs = leaves(x, ctx)
    y = branch(x, Here(ctx))
    with ops.reference_only("attention"):
        z = branch(x, Here(ctx))
    near(y, z)
    want = gradients(branch, z, *inputs)
    for name, g in gradients(branch, y, *inputs).items():
        # gradients pass as many sums again, over batch and time besides
        near(g, want[name], 10 * EXACT)


# --- attention: who sees nothing, and what nobody sees --------------------------------------------

BLIND = {
    "a row of padding": Case(valid=True),
    "padding on the left, causal": Case(valid=True, causal=True),
    "padding on the left, window": Case(valid=True, causal=True, window=2, heads=(4, 2)),
    "attend": Case(attend="TS"),
    "attend (B, H, T, S)": Case(attend="BHTS", qk_norm=True),
    "with a bias": Case(attend="BTS", valid=True, bias="TS"),
    "with alibi": Case(attend="BTS", code="alibi", causal=True),
    "across": Case(memory=3, valid=True),
    "across, attend": Case(memory=3, attend="BTS", bias="BHTS"),
}


def blinded(case: Case) -> tuple[Tensor, Context]:
    """A call in which the first sample, or its first queries, see nothing."""
    x, ctx = case.call()
    valid, attend, _ = masks(ctx)
    if valid is not None:
        valid[:] = True
        valid[0, : 3 if case.causal else None] = False
    if attend is not None:
        attend[..., 0, :] = False
    return x, ctx


@pytest.mark.parametrize("case", BLIND.values(), ids=list(BLIND))
@path
def test_a_query_that_sees_nothing_gets_nothing(case: Case, softcap: float | None) -> None:
    """Exactly 0, so that only the bias of the output projection is left, and no NaN anywhere."""
    case = replace(case, softcap=softcap)
    branch = random(case.build(dropout=0.2))
    x, ctx = blinded(case)
    blind = torch.tensor(~sight(case, ctx).any((1, 3)))  # (B, T), blind in all heads
    assert blind.any()
    assert not blind.all()
    inputs = leaves(x, ctx)
    for _ in ("training, with dropout", "evaluation"):
        y = branch(x, Here(ctx))
        assert (y[blind] == branch.out.bias).all()
        assert (y[~blind] != branch.out.bias).any(-1).all()
        grads = gradients(branch, y, *inputs)
        assert all(g.isfinite().all() for g in grads.values())
        # nothing of a blind query's own is used: for self-attention its key still may be
        if case.memory:
            assert (grads["input 0"][blind] == 0).all()
        branch.eval()


@path
def test_nothing_at_all_to_see(softcap: float | None) -> None:
    """A batch of padding: only the bias of the output has a gradient, and none is NaN."""
    case = Case(softcap=softcap)
    branch = random(case.build())
    x, _ = case.call()
    y = branch(x, Here(Context(valid=torch.zeros(2, 5, dtype=torch.bool))))
    assert (y == branch.out.bias).all()
    alive = {name for name, g in gradients(branch, y).items() if (g != 0).any()}  # NaN != 0
    assert alive == {"out.bias"}


@path
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("blind", [False, True], ids=["some keys", "all keys"])
def test_a_bias_of_minus_infinity_is_a_mask(
    blind: bool, causal: bool, softcap: float | None
) -> None:
    """Additive masks are full of it: the same output as ``attend``, and no NaN in any gradient."""
    branch = random(Case(causal=causal, softcap=softcap).build())
    x = draw(2, 5, DIM)
    may = torch.ones(5, 5).bool()
    may[2:, 1] = False
    may[0] = not blind
    y = branch(x, Here(Context(bias=torch.zeros(5, 5, dtype=x.dtype).masked_fill(~may, -math.inf))))
    near(y, branch(x, Here(Context(attend=may))))
    assert all(g.isfinite().all() for g in gradients(branch, y).values())


@path
@pytest.mark.parametrize("code", ["", "rope", "alibi"])
def test_what_is_masked_does_not_matter(code: str, softcap: float | None) -> None:
    """Not to the last bit: a masked key weighs exp(-inf) = 0, whatever finite thing it holds."""
    branch = random(Case(code=code, softcap=softcap, heads=(4, 2)).build())
    x = draw(3, 6, DIM).requires_grad_()
    valid = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 1, 0]]).bool()
    ctx = Context(valid=valid)
    y = branch(x, Here(ctx))
    other = torch.where(valid[..., None], x, 1e3 * draw(3, 6, DIM))
    assert torch.equal(branch(other, Here(ctx))[valid], y[valid])
    assert not torch.equal(branch(other, Here())[valid], branch(x, Here())[valid])
    (g,) = torch.autograd.grad(y[valid].square().sum(), x)
    assert (g[~valid] == 0).all()
    assert (g[valid] != 0).any(-1).all()


@path
@pytest.mark.parametrize("window", [None, 2])
def test_the_future_does_not_matter(window: int | None, softcap: float | None) -> None:
    branch = random(Case(causal=True, window=window, softcap=softcap, code="rope").build())
    x = draw(2, 6, DIM).requires_grad_()
    for t in range(6):
        (g,) = torch.autograd.grad(branch(x, Here())[:, t].square().sum(), x)
        reach = (g != 0).any(-1).any(0)
        first = 0 if window is None else max(0, t - window + 1)
        assert reach.tolist() == [first <= j <= t for j in range(6)]


@path
def test_masked_memory_does_not_matter(softcap: float | None) -> None:
    branch = random(Case(memory=4, softcap=softcap).build())
    x, memory = draw(2, 5, DIM), draw(2, 4, DIM).requires_grad_()
    valid = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0]]).bool()
    y = branch(x, Here(Context(memory=Memory(memory, valid))))
    other = torch.where(valid[..., None], memory, 1e3 * draw(2, 4, DIM))
    assert torch.equal(branch(x, Here(Context(memory=Memory(other, valid)))), y)
    (g,) = torch.autograd.grad(y.square().sum(), memory)
    assert (g[~valid] == 0).all()
    assert (g[valid] != 0).any(-1).all()


def test_cross_attention_leaves_the_masks_of_its_own_tokens_alone() -> None:
    """They are about the keys of self-attention, whose number is another."""
    case = Case(memory=3, attend="BTS", bias="TS")
    branch = random(case.build())
    x, ctx = case.call()
    ctx = replaced(ctx, "memory.valid", padded([3, 2], 3))
    own = ctx._replace(valid=torch.rand(2, 5) > 0.5, attend=torch.ones(5, 5).tril().bool())
    own = own._replace(bias=draw(5, 5), positions=torch.arange(5))
    assert torch.equal(branch(x, Here(own)), branch(x, Here(ctx)))


# --- gradients against the equations --------------------------------------------------------------


def against_the_tape(
    branch: nn.Module, definition: Callable[[dict[str, Var], list[Var]], Var], *inputs: Tensor
) -> None:
    """Output and gradients of parameters and inputs equal those of tests/references/parts.py."""
    variables = {name: Var(p.detach().numpy()) for name, p in branch.named_parameters()}
    theirs = [Var(t.numpy()) for t in inputs]
    want = definition(variables, theirs)
    ours = [t.clone().requires_grad_() for t in inputs]
    y = branch(ours[0], Here(Context(memory=Memory(ours[1]) if len(ours) > 1 else None)))
    near(y.detach(), want.value)
    cotangent = draw(*y.shape)
    y.backward(cotangent)
    tape.backward(want, cotangent.numpy())
    for name, p in branch.named_parameters():
        assert p.grad is not None
        # some twenty terms more are summed, over batch and time, and as many pass on the way back;
        # a key bias has gradient 0 in exact arithmetic, which `near` compares with 1
        near(p.grad, variables[name].grad, 10 * EXACT)
    for leaf, variable in zip(ours, theirs, strict=True):
        assert leaf.grad is not None
        near(leaf.grad, variable.grad, 10 * EXACT)


inner = pytest.mark.parametrize("inner", [None, partial(LayerNorm, eps=EPS)], ids=["", "inner"])


@path
@inner
@pytest.mark.parametrize("causal", [False, True])
def test_attention_gradients(causal: bool, inner: Any, softcap: float | None) -> None:
    # the plain products without a cap that shows
    softcap = None if softcap is None else 1e9
    branch = random(Attention(DIM, 4, causal=causal, inner=inner, softcap=softcap))
    against_the_tape(
        branch, lambda p, x: parts.attention(p, x[0], x[0], 4, causal, EPS), draw(2, 5, DIM)
    )


@path
@inner
def test_cross_attention_gradients(inner: Any, softcap: float | None) -> None:
    softcap = None if softcap is None else 1e9
    branch = random(CrossAttention(DIM, 4, inner=inner, softcap=softcap))
    against_the_tape(
        branch,
        lambda p, x: parts.attention(p, x[0], x[1], 4, False, EPS),
        draw(2, 5, DIM),
        draw(2, 3, DIM),
    )


@inner
def test_mlp_gradients(inner: Any) -> None:
    branch = random(MLP(DIM, 20, inner=inner))
    against_the_tape(branch, lambda p, x: parts.mlp(p, x[0], EPS), draw(2, 5, DIM))


@inner
def test_gated_mlp_gradients(inner: Any) -> None:
    """SwiGLU: down(inner(silu(gate(u)) * up(u))), silu(z) = z sigmoid(z)."""

    def definition(p: dict[str, Var], x: list[Var]) -> Var:
        z = parts.linear(p, "gate", x[0])
        a = z * tape.sigmoid(z) * parts.linear(p, "up", x[0])
        if inner is not None:
            a = parts.layer_norm(a, p["inner.weight"], p["inner.bias"], EPS)
        return parts.linear(p, "down", a)

    against_the_tape(random(GatedMLP(DIM, 20, inner=inner)), definition, draw(2, 5, DIM))


def finite_differences(branch: nn.Module, x: Tensor, ctx: Context) -> None:
    names = [name for name, _ in branch.named_parameters()]
    fields = {"bias": ctx.bias}
    if ctx.memory is not None:
        fields |= {"memory.x": ctx.memory.x, "memory.bias": ctx.memory.bias}
    leaves_by_name = {k: v.requires_grad_() for k, v in fields.items() if v is not None}

    def run(x: Tensor, *rest: Tensor) -> Tensor:
        varied = ctx
        for name, value in zip(leaves_by_name, rest, strict=False):
            varied = replaced(varied, name, value)
        state = dict(zip(names, rest[len(leaves_by_name) :], strict=True))
        return torch.func.functional_call(branch, state, (x, Here(varied)))

    parameters = [p.detach().requires_grad_() for p in branch.parameters()]
    assert torch.autograd.gradcheck(
        run, (x.requires_grad_(), *leaves_by_name.values(), *parameters)
    )


SMALL: dict[str, Any] = {"time": 3, "heads": (2, 1), "head_dim": 2}


@path
@pytest.mark.parametrize(
    "case",
    [
        Case(**OPTIONS["everything, rope"] | SMALL),
        Case(**OPTIONS["everything, alibi"] | SMALL),
        Case(**ACROSS["everything"] | SMALL | {"memory": 2}),
    ],
    ids=["rope", "alibi", "across"],
)
def test_gradients_are_those_of_finite_differences(case: Case, softcap: float | None) -> None:
    """Of the input, of the memory, of a learned bias and of every parameter; a query is blind."""
    case = replace(case, softcap=softcap, inner=False)
    x, ctx = blinded(case)
    finite_differences(random(case.build()), x, ctx)


# --- multilayer perceptrons -----------------------------------------------------------------------


def _gelu_tanh(z: float) -> float:
    return 0.5 * z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


FORMULAS: dict[str, Callable[[float], float]] = {
    "gelu": lambda z: z * 0.5 * (1 + math.erf(z / math.sqrt(2))),
    "gelu_tanh": _gelu_tanh,
    "relu": lambda z: max(z, 0.0),
    "relu2": lambda z: max(z, 0.0) ** 2,
    "silu": lambda z: z / (1 + math.exp(-z)),
}


def test_every_activation_has_a_formula_here() -> None:
    assert set(ACTIVATIONS) == set(FORMULAS)


activation = pytest.mark.parametrize("activation", FORMULAS)


@activation
@inner
@pytest.mark.parametrize("kind", [MLP, GatedMLP])
def test_perceptrons_are_their_formulas(kind: Any, inner: Any, activation: str) -> None:
    branch = random(kind(DIM, 20, activation, inner=inner))
    u = draw(2, 5, DIM)
    up = linear(branch.up, u.numpy())
    through = np.vectorize(FORMULAS[activation])
    a = through(up) if kind is MLP else through(linear(branch.gate, u.numpy())) * up
    if inner is not None:
        w, b = branch.inner.weight.detach().numpy(), branch.inner.bias.detach().numpy()
        a = norms.layer_norm(a, w, b, EPS).value
    with torch.no_grad():
        want = linear(branch.down, a)
        near(branch(u), want)
        near(branch(u, Here(Context(valid=torch.ones(2, 5, dtype=torch.bool)))), want)


@activation
@pytest.mark.parametrize("kind", [MLP, GatedMLP])
def test_perceptron_gradients_are_those_of_finite_differences(kind: Any, activation: str) -> None:
    finite_differences(random(kind(3, 4, activation)), draw(1, 2, 3), Context())


@pytest.mark.parametrize("kind", [MLP, GatedMLP])
def test_a_function_of_ones_own_is_an_activation(kind: Any) -> None:
    branch, module = random(kind(DIM, 20, torch.tanh)), kind(DIM, 20, nn.Tanh()).double()
    module.load_state_dict(branch.state_dict())
    u = draw(2, 5, DIM)
    assert torch.equal(branch(u), module(u))
    assert "activation=tanh" in repr(branch)
    assert "activation=Tanh" in repr(module)
    before = linear(branch.up if kind is MLP else branch.gate, u.numpy())
    a = np.tanh(before) * (1.0 if kind is MLP else linear(branch.up, u.numpy()))
    near(branch(u).detach(), linear(branch.down, a))


@pytest.mark.parametrize("make", [Attention, CrossAttention])
def test_attention_without_biases(make: Any) -> None:
    branch = make(DIM, 4, bias=False)
    assert [n for n, _ in branch.named_parameters() if "bias" in n] == []
    x = torch.randn(2, 5, DIM)
    assert (branch(0 * x, Here(Context(memory=Memory(0 * x)))) == 0).all()


@pytest.mark.parametrize("kind", [MLP, GatedMLP])
def test_perceptrons_without_biases(kind: Any) -> None:
    branch = kind(DIM, 20, bias=False)
    assert [n for n, _ in branch.named_parameters() if "bias" in n] == []
    assert (branch(torch.zeros(2, 5, DIM)) == 0).all()


# --- several branches side by side ----------------------------------------------------------------


def test_parallel_is_the_sum() -> None:
    """Of branches that all read the same input, with the scheme's rules passed on to each."""
    roles: Counter[str] = Counter()

    def init(role: str, weight: Tensor) -> None:
        roles[role] += 1

    makes = [partial(Attention, DIM, 4, causal=True), partial(MLP, DIM, 20)]
    branch = random(Parallel(*makes, partial(GatedMLP, DIM, 16), inner=LayerNorm, init=init))
    assert roles == {"q": 1, "k": 1, "v": 1, "out": 1, "up": 2, "down": 2, "gate": 1}
    attention, mlp, gated = branch.branches
    assert [b.inner.dim for b in branch.branches] == [DIM, 20, 16]
    u, ctx = draw(2, 5, DIM), Context(valid=torch.rand(2, 5) > 0.3)
    near(branch(u, Here(ctx)), attention(u, Here(ctx)) + mlp(u, Here(ctx)) + gated(u, Here(ctx)))
    alone = random(Parallel(makes[1]))
    assert torch.equal(alone(u, Here(ctx)), alone.branches[0](u, Here(ctx)))
    with pytest.raises(ValueError, match="at least one branch"):
        Parallel()


def test_parallel_reads_the_values_of_the_first_attention() -> None:
    """Where a sublayer holds two attentions, the first in the stack is the first of the two."""
    make = partial(Attention, DIM, 2, value_residual=(0.5, 0.5))
    stack = random(bare(partial(Parallel, make, make), make))
    both, last = (sub.branch for sub in stack.sublayers())
    x = draw(1, 4, DIM)
    h = x + both(x, Here(offers={}))
    taps = {"v0": both.branches[0].values(x)}
    near(stack(x), h + last(h, Here(taps=taps)))


# --- dropout --------------------------------------------------------------------------------------

DROPPING: dict[str, Callable[..., nn.Module]] = {
    "attention": partial(Attention, DIM, 2, causal=True),
    "attention, plain": partial(Attention, DIM, 2, causal=True, softcap=5.0),
    "across": partial(CrossAttention, DIM, 2),
    "across, plain": partial(CrossAttention, DIM, 2, softcap=5.0),
    "mlp": partial(MLP, DIM, 20),
    "gated": partial(GatedMLP, DIM, 20),
}


@pytest.mark.parametrize("where", ["dropout", "out_dropout"])
@pytest.mark.parametrize("make", DROPPING.values(), ids=list(DROPPING))
def test_dropout_acts_in_training_and_keeps_the_mean(
    make: Callable[..., nn.Module], where: str
) -> None:
    """What follows either dropout is linear, so that the mean over many draws is the evaluation's.

    Tolerance: the mean of n = 4000 draws is normal with a standard error that the draws tell; five
    of them for 36 entries. At p = 0.3 a scale of 1 or (1 - p) for 1 / (1 - p) would be off by 30 %.
    """
    p, n = 0.3, 4000
    branch = random(make(**{where: p}))
    silent = make().double()
    silent.load_state_dict(branch.state_dict())
    x = draw(1, 3, DIM)
    memory = draw(1, 4, DIM)
    ctx = Context(memory=Memory(memory))
    want = silent(x, Here(ctx))[0].detach()
    branch.eval()
    assert torch.equal(branch(x, Here(ctx))[0], want)
    branch.train()
    many = Context(memory=Memory(memory.expand(n, -1, -1)))
    with torch.no_grad():
        y = branch(x.expand(n, -1, -1), Here(many))
    error = y.std(0) / n**0.5
    assert (error > 0).all()
    assert ((y.mean(0) - want).abs() < 5 * error).all()
    assert (error < 0.06 * want.abs().max()).all()  # so that 30 % would show
    # only what is dropped last leaves zeros: a share p of them, within 5 standard errors
    zeros = (y == 0).double().mean().item()
    share = p if where == "out_dropout" else 0.0
    assert abs(zeros - share) <= 5 * (share * (1 - share) / y.numel()) ** 0.5


# --- masks that are wrong -------------------------------------------------------------------------

B, H, T, S, M = 2, 4, 5, 5, 3
WRONG = {
    "valid of another length": ("valid", (B, 4), ["(B, S) = (2, 5)", "got (2, 4)"]),
    "valid of another batch": ("valid", (3, S), ["(B, S) = (2, 5)", "got (3, 5)"]),
    "valid without a batch": ("valid", (S,), ["(B, S) = (2, 5)", "got (5,)"]),
    "attend, keys": ("attend", (T, 4), ["axis S (keys) has 4", "expected 5 or 1", "got (5, 4)"]),
    "attend, queries": ("attend", (4, S), ["axis T (queries) has 4", "expected 5 or 1"]),
    "attend, heads": ("attend", (B, 3, T, S), ["axis H (heads) has 3", "expected 4 or 1"]),
    "attend, batch": ("attend", (4, T, S), ["axis B (batch) has 4", "expected 2 or 1"]),
    "attend, one axis": ("attend", (S,), ["(T, S), (B, T, S) or (B, H, T, S)", "1 axes", "(5,)"]),
    "attend, five axes": ("attend", (1, B, H, T, S), ["5 axes", "(1, 2, 4, 5, 5)"]),
    "valid without any": ("valid", (), ["(B, S) = (2, 5)", "got ()"]),
    "attend without any": ("attend", (), ["(T, S), (B, T, S) or (B, H, T, S)", "0 axes", "()"]),
    "bias, keys": ("bias", (B, T, 4), ["axis S (keys) has 4", "expected 5 or 1", "got (2, 5, 4)"]),
    "bias, one axis": ("bias", (S,), ["(T, S), (B, T, S) or (B, H, T, S)", "1 axes", "(5,)"]),
    "memory.valid": ("memory.valid", (B, S), ["(B, S) = (2, 3)", "got (2, 5)"]),
    "memory.attend": ("memory.attend", (T, S), ["axis S (keys) has 5", "expected 3 or 1"]),
    "memory.attend, one axis": ("memory.attend", (M,), ["1 axes", "(3,)"]),
    "memory.bias": ("memory.bias", (B, H, 4, M), ["axis T (queries) has 4", "expected 5 or 1"]),
}


@pytest.mark.parametrize("inside", ["a branch", "a stack"])
@pytest.mark.parametrize(("name", "shape", "words"), WRONG.values(), ids=list(WRONG))
def test_a_mask_of_a_wrong_shape_is_named(
    name: str, shape: tuple[int, ...], words: list[str], inside: str
) -> None:
    """Which mask, which axis, what was expected and what came."""
    make = partial(CrossAttention if name.startswith("memory") else Attention, DIM, H)
    module: nn.Module = make() if inside == "a branch" else bare(make)
    mask = torch.randn(shape) if name.endswith("bias") else torch.ones(shape, dtype=torch.bool)
    ctx = replaced(Context(memory=Memory(torch.randn(B, M, DIM))), name, mask)
    with pytest.raises(ValueError, match=f"^{name}") as raised:
        call(module, torch.randn(B, T, DIM), ctx)
    for part in words:
        assert part in str(raised.value)


def test_a_mask_for_the_new_tokens_alone_is_wrong_with_a_cache() -> None:
    """``valid`` is about keys, of which there are more than there are new tokens."""
    branch, cache = Attention(DIM, H, causal=True), GrowingCache()
    branch(torch.randn(B, 3, DIM), Here(Context(cache=cache, valid=torch.ones(B, 3).bool())))
    with pytest.raises(ValueError, match=r"\(B, S\) = \(2, 5\), one entry per key, got \(2, 2\)"):
        branch(torch.randn(B, 2, DIM), Here(Context(cache=cache, valid=torch.ones(B, 2).bool())))


MASKS = {
    "valid": (B, S),
    "attend": (T, S),
    "memory.valid": (B, M),
    "memory.attend": (B, T, M),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8])
@pytest.mark.parametrize("name", MASKS)
def test_a_mask_of_numbers_is_refused(name: str, dtype: torch.dtype) -> None:
    stack = bare(partial(Attention, DIM, H), partial(CrossAttention, DIM, H))
    ctx = Context(memory=Memory(torch.randn(B, M, DIM)))
    mask = torch.ones(MASKS[name])
    stack(torch.randn(B, T, DIM), replaced(ctx, name, mask.bool()))
    with pytest.raises(TypeError, match=rf"^{name} must be boolean, True = .*, got {dtype}"):
        stack(torch.randn(B, T, DIM), replaced(ctx, name, mask.to(dtype)))


@path
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
@pytest.mark.parametrize("name", MASKS)
def test_no_branch_takes_a_mask_of_numbers_in_silence(
    name: str, dtype: torch.dtype, softcap: float | None
) -> None:
    """Outside a Stack it is PyTorch that complains."""
    make = CrossAttention if name.startswith("memory") else Attention
    mask = torch.ones(MASKS[name], dtype=dtype)
    ctx = replaced(Context(memory=Memory(torch.randn(B, M, DIM))), name, mask)
    with pytest.raises((TypeError, RuntimeError)):
        make(DIM, H, softcap=softcap)(torch.randn(B, T, DIM), Here(ctx))


@pytest.mark.parametrize("name", ["bias", "memory.bias"])
def test_a_boolean_bias_is_refused(name: str) -> None:
    """Added to the logits it would be 0 and 1: a mask in the wrong field, masking nothing."""
    stack = bare(partial(Attention, DIM, H), partial(CrossAttention, DIM, H))
    mask = torch.ones(T, S if name == "bias" else M).tril().bool()
    ctx = replaced(Context(memory=Memory(torch.randn(B, M, DIM))), name, mask)
    with pytest.raises(TypeError, match=name):
        stack(torch.randn(B, T, DIM), ctx)


# --- masks that say the opposite ------------------------------------------------------------------


def padded(lengths: list[int], size: int, left: bool = False) -> Tensor:
    """True for real tokens."""
    number = torch.arange(size).flip(0) if left else torch.arange(size)
    return number < torch.tensor(lengths)[:, None]


def run_with_mask(name: str, mask: Tensor) -> None:
    """A forward of a stack with that mask, whatever its size is."""
    axes = mask.shape
    batch = axes[0] if "valid" in name or mask.dim() > 2 else 1
    s = axes[-1]
    t = axes[-2] if "attend" in name else s
    heads = axes[1] if mask.dim() == 4 else 1
    if name.startswith("memory"):
        stack = bare(partial(CrossAttention, 4, heads, head_dim=2), dim=4)
        ctx = Context(memory=Memory(torch.zeros(batch, s, 4)))
    else:
        stack = bare(partial(Attention, 4, heads, head_dim=2), dim=4)
        ctx = Context()
    with torch.no_grad():
        assert stack(torch.zeros(batch, t, 4), replaced(ctx, name, mask)).isfinite().all()


sides = st.sampled_from(["", "memory."])


@examples(max_examples=60)
@given(sides, st.integers(2, 9), st.data())
def test_a_key_padding_mask_is_recognized(side: str, size: int, data: Any) -> None:
    """PyTorch's: True at padding, of a right-padded batch whose longest row is full."""
    some = data.draw(st.lists(st.integers(1, size - 1), min_size=1, max_size=4))
    lengths = data.draw(st.permutations([*some, size]))
    mask = padded(lengths, size)
    with pytest.raises(ValueError, match=rf"^{side}valid looks inverted.*~mask"):
        run_with_mask(f"{side}valid", ~mask)
    run_with_mask(f"{side}valid", mask)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (1, 1)])
@pytest.mark.parametrize("side", ["", "memory."])
def test_a_causal_mask_of_what_is_forbidden_is_recognized(side: str, lead: tuple[int, ...]) -> None:
    for size in (2, 3, 8):
        forbidden = torch.ones(*lead, size, size).triu(1).bool()
        with pytest.raises(ValueError, match=rf"^{side}attend looks inverted.*~mask"):
            run_with_mask(f"{side}attend", forbidden)
        run_with_mask(f"{side}attend", ~forbidden)


@examples(max_examples=100)
@given(sides, st.integers(1, 9), st.booleans(), st.data())
def test_a_padded_batch_with_a_full_row_is_legitimate(
    side: str, size: int, left: bool, data: Any
) -> None:
    lengths = data.draw(st.lists(st.integers(0, size), max_size=4))
    at = data.draw(st.integers(0, len(lengths)))
    run_with_mask(f"{side}valid", padded([*lengths[:at], size, *lengths[at:]], size, left))


@pytest.mark.parametrize("side", ["", "memory."])
def test_a_batch_padded_on_either_side_is_legitimate(side: str) -> None:
    """One row of no token, one that ends in tokens, and one that begins with them."""
    run_with_mask(f"{side}valid", torch.tensor([[0, 0, 0], [0, 1, 1], [1, 1, 0]]).bool())


@examples(max_examples=30)
@given(sides, st.integers(1, 4), st.integers(1, 9), st.booleans())
def test_all_padding_and_no_padding_are_legitimate(
    side: str, batch: int, size: int, real: bool
) -> None:
    run_with_mask(f"{side}valid", torch.full((batch, size), real))


@examples(max_examples=100)
@given(
    sides,
    st.sampled_from([(), (1,), (2,), (2, 1), (1, 2), (2, 2)]),
    st.integers(1, 5),
    st.integers(1, 5),
    st.data(),
)
def test_what_may_be_looked_at_is_anybodys_choice(
    side: str, lead: tuple[int, ...], queries: int, keys: int, data: Any
) -> None:
    """All but the one pattern, everything after oneself and nothing else."""
    keys = keys if side else queries
    count = math.prod(lead) * queries * keys
    entries = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    mask = torch.tensor(entries).reshape(*lead, queries, keys)
    forbidden = torch.ones(queries, keys).triu(1).bool()
    assume(queries != keys or queries == 1 or not torch.equal(mask, forbidden.expand_as(mask)))
    run_with_mask(f"{side}attend", mask)


@pytest.mark.parametrize("side", ["", "memory."])
def test_the_usual_masks_are_legitimate(side: str) -> None:
    for size in (1, 2, 3, 8):
        ones = torch.ones(size, size)
        for mask in (ones, ones.tril(), ones.triu(), ones.tril(-1), ones.tril().triu(-1)):
            run_with_mask(f"{side}attend", mask.bool())


# --- the cache ------------------------------------------------------------------------------------


def decoded(module: nn.Module, x: Tensor, ctx: Context, sizes: list[int]) -> Tensor:
    """The tokens of x in chunks of these sizes, with one cache."""
    cache, out, at = GrowingCache(), [], 0
    for size in sizes:
        end = at + size

        def cut(mask: Tensor | None, *spans: tuple[int, int]) -> Tensor | None:
            """From, to on the last axes; one that has a single entry stays."""
            for axis, (start, stop) in zip(range(-len(spans), 0), spans, strict=True):
                if mask is not None and mask.shape[axis] > 1:
                    mask = mask.narrow(axis, start, stop - start)
            return mask

        new, past, memory = (at, end), (0, end), ctx.memory
        if memory is not None:
            every = (0, memory.x.shape[1])
            memory = memory._replace(
                attend=cut(memory.attend, new, every), bias=cut(memory.bias, new, every)
            )
        step = ctx._replace(
            valid=cut(ctx.valid, past),
            attend=cut(ctx.attend, new, past),
            bias=cut(ctx.bias, new, past),
            positions=cut(ctx.positions, new),
            memory=memory,
            cache=cache,
        )
        out.append(call(module, x[:, at:end], step))
        at = end
    assert at == x.shape[1]
    return torch.cat(out, 1)


CACHED = {
    **{name: o | {"time": 8, "causal": True} for name, o in OPTIONS.items()},
    **{f"across, {name}": o | {"time": 8} for name, o in ACROSS.items()},
}


@cases(CACHED)
@path
def test_with_a_cache_as_without(case: Case, softcap: float | None) -> None:
    """Token by token and in chunks. Both ways sum the same terms, in other orders."""
    case = replace(case, softcap=softcap)
    branch = random(case.build())
    x, ctx = case.call()
    with torch.no_grad():
        want = branch(x, Here(ctx))
        for sizes in ([1] * 8, [8], [2, 3, 1, 2], [1, 7], [5, 1, 2]):
            near(decoded(branch, x, ctx, sizes), want)


@examples(max_examples=80)
@given(combined(causal=True) | combined(across=True), st.data())
def test_any_combination_in_any_chunks(case: Case, data: Any) -> None:
    torch.manual_seed(0)
    branch = random(case.build())
    x, ctx = case.call()
    cuts = data.draw(st.sets(st.integers(1, case.time - 1))) if case.time > 1 else set()
    ends = [0, *sorted(cuts), case.time]
    sizes = [b - a for a, b in itertools.pairwise(ends)]
    with torch.no_grad():
        near(decoded(branch, x, ctx, sizes), branch(x, Here(ctx)))


def mixing(**rules: Any) -> nn.Module:
    """A causal attention that mixes in the first one's values."""
    return Attention(
        DIM,
        4,
        n_kv_heads=2,
        head_dim=4,
        causal=True,
        position=RoPE(4),
        value_residual=(0.3, 0.9),
        **rules,
    )


@pytest.mark.parametrize("sizes", [[1] * 6, [2, 3, 1]])
def test_a_decoder_with_a_cache_makes_keys_of_its_memory_once(sizes: list[int]) -> None:
    """Values travel from the first attention in every step; memories of two sublayers, and of two
    branches in one sublayer, are kept apart."""
    across = partial(CrossAttention, DIM, 4)
    side_by_side = partial(Parallel, across, partial(Attention, DIM, 2, causal=True), across)
    stack = random(bare(mixing, across, mixing, side_by_side, mixing))
    x, ctx = Case(time=6, memory=3, valid=True).call()
    with torch.no_grad():
        want = stack(x, ctx)
        calls: Counter[str] = Counter()
        for name, module in stack.named_modules():
            module.register_forward_hook(lambda m, args, out, name=name: calls.update([name]))
        near(decoded(stack, x, ctx, sizes), want)
    for name, module in stack.named_modules():
        if isinstance(module, CrossAttention):
            assert (calls[f"{name}.k"], calls[f"{name}.v"]) == (1, 1)
            assert calls[f"{name}.q"] == len(sizes)


def test_parallel_branches_do_not_share_a_cache() -> None:
    make = partial(Attention, DIM, 4, causal=True)
    nested = partial(Parallel, make, partial(Parallel, make, make))
    stack = random(bare(nested, make, nested))
    x = draw(2, 6, DIM)
    with torch.no_grad():
        near(decoded(stack, x, Context(), [3, 1, 2]), stack(x))


def test_the_growing_cache() -> None:
    cache = GrowingCache()
    k, v = draw(2, 1, 5, 3), draw(2, 1, 5, 4)
    assert cache.length("a") == 0
    actual = cache.update("a", k[:, :, :2], v[:, :, :2])
    assert torch.equal(actual[0], k[:, :, :2])
    assert torch.equal(actual[1], v[:, :, :2])
    assert (cache.length("a"), cache.length("b")) == (2, 0)
    actual = cache.update("a", k[:, :, 2:], v[:, :, 2:])
    assert torch.equal(actual[0], k)
    assert torch.equal(actual[1], v)
    cache.update("b", k[:, :, :1], v[:, :, :1])
    assert (cache.length("a"), cache.length("b")) == (5, 1)
    calls = []

    def make() -> tuple[Tensor, Tensor]:
        calls.append(1)
        return k, v

    assert cache.memory("a", make) is cache.memory("a", make)
    assert len(calls) == 1
    cache.memory("b", make)
    assert len(calls) == 2
    assert cache.length("a") == 5  # what is remembered of the memory is not the tokens' own


# --- dtypes ---------------------------------------------------------------------------------------

KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Context]]] = {
    "attention": (
        lambda: Attention(
            DIM,
            4,
            n_kv_heads=2,
            head_dim=4,
            causal=True,
            qk_norm=RMSNorm,
            position=RoPE(4),
            inner=LayerNorm,
        ),
        lambda: Context(valid=padded([5, 3], 5)),
    ),
    "attention, plain": (
        lambda: Attention(
            DIM, 4, n_kv_heads=2, causal=True, window=3, softcap=5.0, position=ALiBi(4)
        ),
        lambda: Context(attend=torch.ones(2, 5, 5).tril(1).bool(), bias=torch.randn(5, 5)),
    ),
    "across": (
        lambda: CrossAttention(DIM, 4, qk_norm=RMSNorm),
        lambda: Context(memory=Memory(torch.randn(2, 3, DIM), padded([3, 2], 3))),
    ),
    "across, plain": (
        lambda: CrossAttention(DIM, 4, softcap=5.0),
        lambda: Context(memory=Memory(torch.randn(2, 3, DIM), bias=torch.randn(5, 3))),
    ),
    "mlp": (lambda: MLP(DIM, 20, inner=LayerNorm), Context),
    "gated": (lambda: GatedMLP(DIM, 20, "gelu_tanh"), Context),
    "parallel": (
        lambda: Parallel(partial(Attention, DIM, 4, causal=True), partial(MLP, DIM, 20)),
        Context,
    ),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_narrow_weights_read_a_wide_stream(kind: str) -> None:
    """The branch casts its own input (and the memory); what it says is as narrow as its weights.

    Against float32 with the same rounded weights. Some eight roundings to bfloat16 (half a unit,
    2^-9) lie between input and output: input, projection, norm, rotation (twice), weights times
    values, norm, projection. One of a query or key moves a logit of size 3 by 3 * 2^-9, and thus
    the output by as much: 8 * 3 * 2^-9 = 0.05 of the largest value.
    """
    make, call = KINDS[kind]
    branch = random(make()).bfloat16()
    wide = make()
    wide.load_state_dict(branch.state_dict())
    x, ctx = torch.randn(2, 5, DIM, requires_grad=True), call()
    y, want = branch(x, Here(ctx)), wide(x, Here(ctx))
    assert y.dtype == torch.bfloat16
    near(y.float(), want, 0.05)
    y.float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert x.grad.any()


class Softmaxes(TorchDispatchMode):
    """The dtypes that a softmax is given and those that products are given."""

    def __init__(self) -> None:
        super().__init__()
        self.softmax: list[torch.dtype] = []
        self.products: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if "softmax" in name:
            self.softmax.append(args[0].dtype)
        if name == "bmm":
            self.products.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@kinds
def test_autocast_says_bfloat16(kind: str) -> None:
    """As much as above: the weights are rounded as well, eight more of the same roundings."""
    make, call = KINDS[kind]
    branch = random(make()).float()
    x, ctx = torch.randn(2, 5, DIM), call()
    with torch.autocast("cpu", torch.bfloat16):
        y = branch(x, Here(ctx))
    assert y.dtype == torch.bfloat16
    near(y.float(), branch(x, Here(ctx)), 0.1)


@pytest.mark.parametrize("kind", ["attention, plain", "across, plain"])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_plain_attention_is_wide(kind: str, weights: torch.dtype) -> None:
    """Logits, softmax and mixing are in float32 under autocast and for bfloat16 weights."""
    make, call = KINDS[kind]
    branch = random(make()).to(weights)
    autocast = weights == torch.float32
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Softmaxes() as softmaxes:
        y = branch(torch.randn(2, 5, DIM), Here(call()))
    assert softmaxes.softmax == [torch.float32]
    assert softmaxes.products == [torch.float32] * 2
    assert y.dtype == torch.bfloat16


# --- compiled, and built without memory -----------------------------------------------------------


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@kinds
def test_compiles_in_one_graph(kind: str) -> None:
    """The same operations in the same precision, traced: a few roundings apart at most."""
    make, call = KINDS[kind]
    branch = random(make())
    x, ctx = draw(2, 5, DIM).requires_grad_(), call()
    ctx = ctx if ctx.memory is None else replaced(ctx, "memory.x", ctx.memory.x.double())
    compiled = torch.compile(branch, fullgraph=True, backend="aot_eager")
    y, want = compiled(x, Here(ctx)), branch(x, Here(ctx))
    near(y, want)
    eager = gradients(branch, want, x)
    for name, g in gradients(branch, y, x).items():
        near(g, eager[name], 10 * EXACT)


STDS = {"q": 0.1, "k": 0.2, "v": 0.3, "out": 0.4, "up": 0.5, "down": 0.6, "gate": 0.7}
WIDE = 64


@pytest.mark.parametrize(
    "make",
    [
        partial(Attention, WIDE, 4, qk_norm=LayerNorm, position=RoPE(16)),
        partial(CrossAttention, WIDE, 4, qk_norm=LayerNorm),
        partial(MLP, WIDE, WIDE),
        partial(GatedMLP, WIDE, WIDE),
        partial(Parallel, partial(MLP, WIDE, WIDE), partial(Attention, WIDE, 4)),
    ],
    ids=["attention", "across", "mlp", "gated", "parallel"],
)
def test_built_without_memory_and_filled_later(make: Callable[..., nn.Module]) -> None:
    """Finite, and by the rule. 4096 draws give a standard deviation to 1 / sqrt(2 * 4096) = 1.1 %:
    six such errors are 6.6 %, and the roles are at least 14 % apart."""
    rule = Init("by role", lambda role, fan_in, fan_out: STDS[role])
    with torch.device("meta"):
        branch = make(init=rule, inner=LayerNorm)
    assert all(p.is_meta for p in branch.parameters())
    branch.to_empty(device="cpu")
    with torch.no_grad():
        for p in branch.parameters():
            p.fill_(math.nan)
    reset_parameters(branch)
    for name, p in branch.named_parameters():
        role, kind = name.split(".")[-2:]
        if role in STDS and kind == "weight":
            assert p.std().item() == pytest.approx(STDS[role], rel=0.066), name
            assert abs(p.mean().item()) < 5 * STDS[role] / p.numel() ** 0.5, name
        else:
            assert (p == (1.0 if kind == "weight" else 0.0)).all(), name


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Attention, CrossAttention])
def test_heads_that_do_not_divide(make: Any) -> None:
    with pytest.raises(ValueError, match="5 heads do not divide the width 12: give head_dim"):
        make(12, 5)
    make(12, 5, head_dim=3)
    with pytest.raises(ValueError, match="3 key-value heads do not divide 4 query heads"):
        make(12, 4, n_kv_heads=3)
    with pytest.raises(ValueError, match="8 key-value heads do not divide 4 query heads"):
        make(16, 4, n_kv_heads=8)


@pytest.mark.parametrize(("window", "causal"), [(2, False), (0, True), (-1, True)])
def test_a_window_without_a_meaning(window: int, causal: bool) -> None:
    with pytest.raises(
        ValueError, match=f"needs causal=True; got window={window}, causal={causal}"
    ):
        Attention(12, 4, window=window, causal=causal)


@pytest.mark.parametrize("kind", [MLP, GatedMLP])
def test_an_unknown_activation_lists_what_is_near(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown activation 'rellu'; did you mean .*\brelu\b"):
        kind(12, 20, "rellu")
    with pytest.raises(ValueError, match="there are gelu, gelu_tanh, relu, relu2, silu"):
        kind(12, 20, "maxout")


def test_cross_attention_needs_a_memory() -> None:
    with pytest.raises(ValueError, match=r"cross-attention needs Context\(memory=Memory\("):
        CrossAttention(12, 4)(torch.randn(2, 5, 12), Here())
    with pytest.raises(ValueError, match="cross-attention needs"):
        CrossAttention(12, 4)(torch.randn(2, 5, 12), Here(Context(cache=GrowingCache())))


def test_a_value_residual_needs_a_stack() -> None:
    branch = Attention(12, 4, value_residual=(0.5, 0.5))
    with pytest.raises(ValueError, match="value_residual needs a Stack"):
        branch(torch.randn(2, 5, 12), Here())


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (RoPE(2), "RoPE for heads of 2 got heads of 8"),
        (RoPE(16), "RoPE for heads of 16 got heads of 8"),
        (ALiBi(1), "a position code for 1 heads in an attention of 2"),
        (ALiBi(3), "a position code for 3 heads in an attention of 2"),
    ],
    ids=["one pair", "rope", "one head", "alibi"],
)
def test_a_position_code_of_other_heads_is_refused(
    position: AttentionPosition, message: str
) -> None:
    """Those of one pair or of one head would broadcast, and compute something else in silence."""
    with pytest.raises(ValueError, match=message):
        Attention(16, 2, position=position)(torch.randn(2, 5, 16), Here())


def test_they_say_what_they_are() -> None:
    assert repr(Attention(12, 4, causal=True, window=3)).startswith(
        "Attention(\n  n_heads=4, head_dim=3, causal=True, window=3"
    )
    assert "n_heads=4, n_kv_heads=2, head_dim=3" in repr(CrossAttention(12, 4, n_kv_heads=2))
    assert "activation=relu2" in repr(MLP(12, 20, "relu2"))


def test_the_weights_of_cross_attention_are_those_that_it_uses() -> None:
    torch.manual_seed(0)
    branch = CrossAttention(12, 4, n_kv_heads=2, softcap=3.0).double()
    u, memory = torch.randn(2, 3, 12).double(), torch.randn(2, 5, 12).double()
    valid = torch.tensor([[True] * 5, [True, True, False, False, True]])
    here = Here(Context(memory=Memory(memory, valid, bias=torch.randn(3, 5).double())))
    weights = branch.weights(u, here)
    values = branch.values(memory).repeat_interleave(2, 1)
    heads = (weights @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(branch.out(heads), branch(u, here))
    assert not weights[1, ..., 2:4].any()
