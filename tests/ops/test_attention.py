"""Who computes attention: the definition, torch's kernels, and which of them serves a call.

That what they compute is attention is shown in test_branches, against loops. ``EXACT`` is that of
test_branches: two float64 evaluations of one formula.
"""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from addnorm import ops
from addnorm.ops import AttentionCall, AttentionKernel, Declined, attend, attention
from tests.test_branches import EXACT

B, H, T, S, D = 2, 4, 5, 7, 8


@pytest.fixture(autouse=True)
def _no_matrix_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this runs must not matter."""
    torch.manual_seed(0)
    monkeypatch.setattr(attention, "MATRIX_UNITS", False)


def call(dtype: torch.dtype = torch.float64, kv: int = H, **options: Any) -> AttentionCall:
    """A call whose tensors want gradients."""
    sizes = ((B, H, T, D), (B, kv, S, D), (B, kv, S, D))
    q, k, v = (torch.randn(s, dtype=torch.float64).to(dtype).requires_grad_() for s in sizes)
    return AttentionCall(q, k, v, D**-0.5, **options)


def tally() -> Counter[tuple[str, str, str]]:
    """What ``explain`` says, to be compared."""
    return Counter({(r.operation, r.implementation, r.why): r.calls for r in ops.explain().rows})


@contextmanager
def counted() -> Iterator[Counter[tuple[str, str]]]:
    """Which kernels served the calls of attention within it, and why; complete when it ends."""
    before, during = tally(), Counter[tuple[str, str]]()
    yield during
    during.update({row[1:]: n for row, n in (tally() - before).items() if row[0] == "attention"})


NARROW = "aten in float32: for bfloat16"
CAPPED = "it has no softcap"


@pytest.mark.parametrize(
    ("dtype", "options", "served"),
    [
        (torch.float32, {}, ("aten", NARROW)),
        (torch.float64, {"causal": False}, ("aten", NARROW)),
        (torch.bfloat16, {}, ("aten in float32", "offered first")),
        (torch.float32, {"softcap": 2.0}, ("reference", f"{NARROW}; aten: {CAPPED}")),
        (
            torch.bfloat16,
            {"softcap": 2.0},
            ("reference", f"aten in float32: {CAPPED}; aten: {CAPPED}"),
        ),
    ],
    ids=str,
)
def test_explain_says_who_served_attention_and_why(
    dtype: torch.dtype, options: dict[str, Any], served: tuple[str, str]
) -> None:
    with counted() as counts:
        y = attend(call(dtype, **options))
    assert y.dtype == dtype
    assert counts == {served: 1}
    name, why = served
    assert f"attention, {name}: {tally()['attention', name, why]} calls ({why})" in str(
        ops.explain()
    )


@pytest.mark.parametrize(
    ("heads", "tokens", "units", "grad", "why"),
    [
        (64, 128, False, True, ""),
        (32, 256, False, True, ""),
        (64, 128, True, True, "for CPUs without matrix units"),
        (64, 128, False, False, "where gradients are wanted"),
        (65, 100, False, True, "for short texts and small heads"),
        (64, 129, False, True, "for short texts and small heads"),
    ],
)
def test_short_attention_is_wide_where_that_is_faster(
    heads: int, tokens: int, units: bool, grad: bool, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CPUs without matrix units, with gradients; under autocast as well. What it says then is
    float32's answer for the same bfloat16 queries, keys and values, rounded once."""
    monkeypatch.setattr(attention, "MATRIX_UNITS", units)
    q, k, v = (
        torch.randn(1, 2, n, heads, dtype=torch.bfloat16, requires_grad=True)
        for n in (5, tokens, tokens)
    )
    mask = torch.rand(1, 1, 5, tokens) < 0.5
    bias = torch.randn(2, 5, tokens)
    narrow = AttentionCall(q, k, v, 0.1, mask, bias)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16), counted() as counts:
        y = attend(narrow)
    assert y.dtype == torch.bfloat16
    assert list(counts) == [
        ("aten", f"aten in float32: {why}") if why else ("aten in float32", "offered first")
    ]
    want = attend(narrow._replace(q=q.float(), k=k.float(), v=v.float())).bfloat16()
    assert torch.equal(y, want) == (not why)
    assert (y - want).abs().max() <= 0.02 * want.abs().max()


def test_elsewhere_than_on_cpus_nothing_is_widened() -> None:
    q, k, v = (torch.empty(B, H, T, D, device="meta", dtype=torch.bfloat16) for _ in range(3))
    with counted() as counts:
        assert attend(AttentionCall(q, k, v, 1.0)).shape == (B, H, T, D)
    assert list(counts) == [("aten", "aten in float32: for CPUs")]


ALLOWED = torch.tensor([[True] * S, [False] * S, *([[True, False] * 3 + [True]] * 3)])

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "masked, and one query sees nothing": {"mask": ALLOWED},
    "bias": {"bias": torch.linspace(-2, 2, H * T * S).view(H, T, S)},
    "both": {"mask": ALLOWED, "bias": torch.linspace(-2, 2, T * S).view(T, S)},
    "grouped": {"kv": 2},
}


def results(arguments: AttentionCall) -> list[Tensor]:
    """The output and the gradients of q, k and v."""
    y = attend(arguments)
    return [
        y,
        *torch.autograd.grad(y, arguments[:3], torch.linspace(-1, 1, y.numel()).view_as(y).to(y)),
    ]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_definition_is_softmax_of_what_is_allowed(
    options: dict[str, Any], softcap: float | None
) -> None:
    """Query by query, over the keys that it may see, without a mask or a -inf."""
    arguments = call(softcap=softcap, **options)
    group = H // arguments.k.shape[1]
    mask = (torch.ones(T, S) if arguments.mask is None else arguments.mask).bool()
    bias = torch.zeros(H, T, S) if arguments.bias is None else arguments.bias.expand(H, T, S)
    want = torch.zeros(B, H, T, D, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            for t in range(T):
                keys = arguments.k[b, h // group, mask[t]]
                logits = keys @ arguments.q[b, h, t] * arguments.scale
                if softcap is not None:
                    logits = softcap * torch.tanh(logits / softcap)
                weights = (logits + bias[h, t, mask[t]]).softmax(-1)
                want[b, h, t] = weights @ arguments.v[b, h // group, mask[t]]
    with ops.reference_only("attention"):
        actual = results(arguments)
    cotangent = torch.linspace(-1, 1, want.numel()).view_as(want).double()
    for a, b in zip(
        actual, [want, *torch.autograd.grad(want, arguments[:3], cotangent)], strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=EXACT)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_compiled_the_same_kernel_serves_and_nothing_is_counted(options: dict[str, Any]) -> None:
    """To the bit, also where float32 is chosen and where all kernels decline."""
    for dtype, more in (
        (torch.float32, {}),
        (torch.bfloat16, {}),
        (torch.float32, {"softcap": 2.0}),
    ):
        arguments = call(dtype, **options, **more)
        torch.compiler.reset()
        compiled = torch.compile(attend, backend="eager", fullgraph=True)
        with counted() as counts:
            y = compiled(arguments)
        assert not counts
        assert torch.equal(y, attend(arguments))


def test_a_kernel_from_elsewhere_is_offered_first() -> None:
    def ours(arguments: AttentionCall) -> Tensor:
        if arguments.dropout:
            raise Declined("without dropout")
        return math.pi * attention.reference(arguments)

    withdraw = ops.register(AttentionKernel("ours", ours))
    with counted() as counts:
        served = attend(call())
        attend(call(dropout=0.5))
    withdraw()
    assert counts == {("ours", "offered first"): 1, ("aten", f"ours: without dropout; {NARROW}"): 1}
    torch.manual_seed(0)
    torch.testing.assert_close(served, math.pi * attend(call()), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(
    ("only", "norm", "attending"),
    [
        ((), "reference", "reference"),
        (("add_norm",), "reference", "aten"),
        (("attention",), "aten", "reference"),
    ],
    ids=str,
)
def test_reference_only_may_be_of_one_operation(
    only: tuple[str, ...], norm: str, attending: str
) -> None:
    before = tally()
    with ops.reference_only(*only):
        ops.add_norm(torch.randn(2, 8), eps=1e-5)
        attend(call())
    served = {row[:2] for row in tally() - before}
    assert served == {("add_norm", norm), ("attention", attending)}
