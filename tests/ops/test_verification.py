"""``ops.verify`` passes what is right and nothing that is wrong.

A right kernel is made of the definition's own parts; each wrong one differs from it in one place.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from addnorm import ops
from addnorm.ops import (
    AttentionCall,
    AttentionKernel,
    Declined,
    NormCall,
    NormKernel,
    NormOutput,
    attention,
    dispatch,
    verification,
    verify,
)
from addnorm.ops.reference import (
    accumulate_dtype,
    normalize,
    normalize_backward,
    settle,
    standardize,
)
from addnorm.ops.verification import Verification, VerificationRow

Forward = Callable[[NormCall], NormOutput]


def forward(call: NormCall) -> NormOutput:
    stream = settle(call.x, call.residual, call.keep, call.gain)
    y = normalize(stream, call.weight, call.bias, **call.spec._asdict(), dtype=call.x.dtype)
    return NormOutput(y, stream, ())


def backward(
    dy: Any, dstream: Any, stream: Any, statistics: Any, weight: Any, bias: Any, spec: Any
):
    d, dweight, dbias = normalize_backward(dy, stream, weight, **spec._asdict())
    d = d.to(stream.dtype)
    return (
        d if dstream is None else d + dstream,
        None if weight is None else dweight.to(weight.dtype),
        None if bias is None else dbias.to(bias.dtype),
    )


@contextmanager
def nothing_but(*kernels: Any) -> Iterator[None]:
    """Of both operations these kernels are left."""
    norms = [k for k in kernels if k.operation == "add_norm"]
    attentions = [k for k in kernels if k.operation == "attention"]
    with dispatch.OFFERS.only(*norms), attention.OFFERS.only(*attentions):
        yield


@pytest.fixture
def two_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in which errors of the formula show, and one in which errors of rounding do."""
    monkeypatch.setattr(verification, "VERIFIED_DTYPES", (torch.float32, torch.bfloat16))


def judged(kernel: Any) -> dict[str, VerificationRow]:
    """The rows of one kernel by dtype; those of the definition are right."""
    with nothing_but(kernel):
        result = verify("cpu")
    mine = {row.dtype: row for row in result.rows if row.implementation == kernel.name}
    assert result.ok == all(row.ok for row in mine.values())
    assert ("WRONG" in str(result)) == (not result.ok)
    return mine


def test_what_serves_on_this_machine_is_right() -> None:
    before = ops.explain()
    result = verify()
    assert result.ok, f"\n{result}"
    assert ops.explain() == before, "what was verified served nobody"
    served = {(r.operation, r.implementation) for r in result.rows}
    assert {("add_norm", "aten"), ("attention", "aten")} <= served
    for operation in ("add_norm", "attention"):
        rows = [
            r for r in result.rows if (r.operation, r.implementation) == (operation, "reference")
        ]
        assert {r.dtype for r in rows if r.device == "cpu"} == {
            *("float32", "bfloat16", "float16", "float64")
        }
        for row in rows:
            calls = (
                verification.norm_cases if operation == "add_norm" else verification.attention_cases
            )
            assert row.calls == len(calls(getattr(torch, row.dtype)))


def test_it_takes_nobodys_random_numbers_and_no_setting_changes_it() -> None:
    state = torch.get_rng_state()
    with nothing_but(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        under = verify("cpu")
    assert torch.equal(torch.get_rng_state(), state)
    with nothing_but(), torch.inference_mode():
        assert verify("cpu") == under
    assert under.ok


@pytest.mark.usefixtures("two_dtypes")
def test_a_right_kernel_passes() -> None:
    """And where it serves everything, it is named in every row."""
    rows = judged(NormKernel("right", forward, backward))
    assert all(row.ok for row in rows.values())
    assert {row.calls for row in rows.values()} == {len(verification.norm_cases(torch.float32))}
    rows = judged(AttentionKernel("right", attention.reference))
    assert all(row.ok for row in rows.values())
    assert {row.calls for row in rows.values()} == {
        len(verification.attention_cases(torch.float32))
    }


def spec_with(**changes: Any) -> Forward:
    return lambda call: forward(call._replace(spec=call.spec._replace(**changes)))


def normed_by(norm: Callable[[Tensor, NormCall], Tensor]) -> Forward:
    """Another x^ of the stream in the precision of the statistics, affine as it should be."""

    def wrong(call: NormCall) -> NormOutput:
        stream = settle(call.x, call.residual, call.keep, call.gain)
        y = norm(stream.to(accumulate_dtype(stream)), call)
        if call.weight is not None:
            y = y * (call.weight.to(y.dtype) + call.spec.weight_offset)
        if call.bias is not None:
            y = y + call.bias.to(y.dtype)
        return NormOutput(y.to(call.x.dtype), stream, ())

    return wrong


def mean(t: Tensor) -> Tensor:
    return t.mean(-1, keepdim=True)


def eps_outside(s: Tensor, call: NormCall) -> Tensor:
    s = s - mean(s) if call.spec.kind == "layer" else s
    return s / (mean(s * s).sqrt() + call.spec.eps)


def unbiased(s: Tensor, call: NormCall) -> Tensor:
    s = s - mean(s) if call.spec.kind == "layer" else s
    n = s.shape[-1]
    return s * torch.rsqrt(mean(s * s) * n / (n - 1) + call.spec.eps)


def moments(s: Tensor, call: NormCall) -> Tensor:
    if call.spec.kind == "rms":
        return standardize(s, "rms", call.spec.eps)
    variance = (mean(s * s) - mean(s) ** 2).clamp(min=0.0)
    return (s - mean(s)) * torch.rsqrt(variance + call.spec.eps)


def squares_that_overflow(s: Tensor, call: NormCall) -> Tensor:
    s = s - mean(s) if call.spec.kind == "layer" else s
    return s / (mean((s * 1e8) ** 2) + call.spec.eps * 1e16).sqrt() * 1e8


def of_the_unrounded_sum(call: NormCall) -> NormOutput:
    wide = torch.float32 if call.x.dtype != torch.float64 else torch.float64
    x = call.x.to(wide)
    residual = None if call.residual is None else call.residual.to(wide)
    right, wrong = forward(call), forward(call._replace(x=x, residual=residual))
    return right._replace(normed=wrong.normed.to(call.x.dtype))


def rounded_twice(call: NormCall) -> NormOutput:
    if call.weight is None:
        return forward(call)
    y = standardize(settle(*call[:2], *call[4:6]), call.spec.kind, call.spec.eps)
    y = y.to(call.x.dtype) * (call.weight + call.spec.weight_offset).to(call.x.dtype)
    y = y if call.bias is None else y + call.bias
    return forward(call)._replace(normed=y.to(call.x.dtype))


def changed(**by: Callable[[Tensor], Tensor]) -> Forward:
    def wrong(call: NormCall) -> NormOutput:
        right = forward(call)
        return right._replace(**{name: f(getattr(right, name)) for name, f in by.items()})

    return wrong


def broken(call: NormCall) -> NormOutput:
    raise RuntimeError("no such instruction\non this processor")


FORWARDS: dict[str, tuple[Forward, str]] = {
    "eps left out": (spec_with(eps=0.0), "normed"),
    "eps outside the root": (normed_by(eps_outside), "normed"),
    "the offset left out": (spec_with(weight_offset=0.0), "normed.*learned factors"),
    "the other kind": (
        lambda c: spec_with(kind="rms" if c.spec.kind == "layer" else "layer")(c),
        "",
    ),
    "unbiased": (normed_by(unbiased), "normed"),
    "E[x^2] - E[x]^2": (normed_by(moments), "normed, layer, a mean of 100"),
    "squares that overflow": (normed_by(squares_that_overflow), "normed.*one huge row"),
    "of the unrounded sum": (of_the_unrounded_sum, "normed"),
    "rounded twice": (rounded_twice, "normed"),
    "a bias left out": (lambda c: forward(c._replace(bias=None)), "normed"),
    "gain left out of the stream": (lambda c: forward(c._replace(gain=1.0)), ""),
    "1e-5 too large": (changed(normed=lambda y: y * (1 + 1e-5)), "normed"),
    "one entry is NaN": (
        changed(normed=lambda y: y.index_fill(0, torch.tensor([0]), torch.nan)),
        "",
    ),
    "a row too few": (changed(normed=lambda y: y[1:]), ""),
    "a wider output": (changed(normed=lambda y: y.to(torch.float64)), "normed"),
    "it raises": (broken, "RuntimeError: no such instruction$"),
}


@pytest.mark.usefixtures("two_dtypes")
@pytest.mark.parametrize(("wrong", "where"), FORWARDS.values(), ids=FORWARDS)
def test_a_wrong_forward_is_seen(wrong: Forward, where: str) -> None:
    rows = judged(NormKernel("ours", wrong, backward))
    bad = [row for row in rows.values() if not row.ok]
    assert bad
    assert any(re.search(where, row.where) for row in bad), [row.where for row in bad]


def parts_of(dy: Any, stream: Any, spec: Any, weight: Any) -> tuple[Tensor, Tensor, Tensor]:
    """x^, 1 / root and g, without a thought of huge rows."""
    s = stream.to(accumulate_dtype(stream))
    s = s - mean(s) if spec.kind == "layer" else s
    r = torch.rsqrt(mean(s * s) + spec.eps)
    g = (
        dy.to(s.dtype)
        if weight is None
        else dy.to(s.dtype) * (weight.to(s.dtype) + spec.weight_offset)
    )
    return s * r, r, g


def own_d(formula: Callable[[Tensor, Tensor, Tensor, str], Tensor]) -> Any:
    """A backward with another gradient of the stream."""

    def wrong(
        dy: Any, dstream: Any, stream: Any, statistics: Any, weight: Any, bias: Any, spec: Any
    ):
        _, dweight, dbias = backward(dy, dstream, stream, statistics, weight, bias, spec)
        d = formula(*parts_of(dy, stream, spec, weight), spec.kind).to(stream.dtype)
        return d if dstream is None else d + dstream, dweight, dbias

    return wrong


def dstream_left_out(dy: Any, dstream: Any, *rest: Any) -> Any:
    return backward(dy, None, *rest)


def weight_left_out(
    dy: Any, dstream: Any, stream: Any, statistics: Any, w: Any, bias: Any, spec: Any
):
    d, _, dbias = backward(dy, dstream, stream, statistics, None, bias, spec)
    return d, backward(dy, dstream, stream, statistics, w, bias, spec)[1], dbias


def summed_in_the_dtype_of_x(
    dy: Any, dstream: Any, stream: Any, statistics: Any, weight: Any, bias: Any, spec: Any
):
    """One row after the other, as a loop does it."""
    d, dweight, dbias = backward(dy, dstream, stream, statistics, weight, bias, spec)
    if bias is not None:
        total = torch.zeros_like(bias)
        for row in dy.reshape(-1, dy.shape[-1]):
            total += row
        dbias = total
    return d, dweight, dbias


def without_mean(xhat: Tensor, r: Tensor, g: Tensor, kind: str) -> Tensor:
    return r * (g - xhat * mean(g * xhat))


def without_product(xhat: Tensor, r: Tensor, g: Tensor, kind: str) -> Tensor:
    return r * (g - mean(g)) if kind == "layer" else r * g


def with_a_cube(xhat: Tensor, r: Tensor, g: Tensor, kind: str) -> Tensor:
    """Right, until the cube underflows."""
    d = r * g - (xhat / r) * r**3 * mean(g * (xhat / r))
    return d - r * mean(g) if kind == "layer" else d


BACKWARDS: dict[str, tuple[Any, str]] = {
    "the gradient of other readers left out": (dstream_left_out, "gradient of (x|residual)"),
    "the weight left out": (weight_left_out, "gradient of (x|residual)"),
    "without the mean of g": (own_d(without_mean), "gradient of (x|residual), layer"),
    "without the product with x^": (own_d(without_product), "gradient of (x|residual)"),
    "with the cube of 1 / root": (own_d(with_a_cube), "gradient of x, (layer|rms), one huge row"),
    "summed in the dtype of x": (summed_in_the_dtype_of_x, "gradient of bias.*many rows"),
}


@pytest.mark.usefixtures("two_dtypes")
@pytest.mark.parametrize(("wrong", "where"), BACKWARDS.values(), ids=BACKWARDS)
def test_a_wrong_backward_is_seen(wrong: Any, where: str) -> None:
    rows = judged(NormKernel("ours", forward, wrong))
    bad = [row for row in rows.values() if not row.ok]
    assert bad
    assert any(re.search(where, row.where) for row in bad), [row.where for row in bad]


class HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return t.view_as(t)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> Tensor:
        return d / 2


def attending(**changes: Any) -> Callable[[AttentionCall], Tensor]:
    def wrong(call: AttentionCall) -> Tensor:
        return attention.reference(
            call._replace(**{k: f(getattr(call, k)) for k, f in changes.items()})
        )

    return wrong


def heads_in_another_order(call: AttentionCall) -> Tensor:
    group = call.q.shape[1] // call.k.shape[1]
    return attention.reference(
        call._replace(k=call.k.repeat(1, group, 1, 1), v=call.v.repeat(1, group, 1, 1))
    )


def half(t: Tensor) -> Tensor:
    return HalfGradient.apply(t)


ATTENTIONS: dict[str, tuple[Callable[[AttentionCall], Tensor], str]] = {
    "no scale": (attending(scale=lambda _: 1.0), ""),
    "a mask left out": (attending(mask=lambda _: None), "masked|capped"),
    "the order left out": (attending(causal=lambda _: False), "causal"),
    "a bias left out": (attending(bias=lambda _: None), "bias"),
    "a cap left out": (attending(softcap=lambda _: None), "capped"),
    "the cap of another": (attending(softcap=lambda c: c and c * 1.01), "capped"),
    "heads in another order": (heads_in_another_order, "grouped|capped"),
    "half a gradient of q": (attending(q=half), "gradient of q"),
    "half a gradient of k": (attending(k=half), "gradient of k"),
    "half a gradient of v": (attending(v=half), "gradient of v"),
    "1e-4 too large": (lambda c: attention.reference(c) * (1 + 1e-4), "output"),
    "rounded to bfloat16": (lambda c: attention.reference(c).bfloat16().to(c.q), "output"),
    "NaN": (lambda c: attention.reference(c) * torch.nan, ""),
}


@pytest.mark.usefixtures("two_dtypes")
@pytest.mark.parametrize(("wrong", "where"), ATTENTIONS.values(), ids=ATTENTIONS)
def test_a_wrong_attention_is_seen(wrong: Callable[[AttentionCall], Tensor], where: str) -> None:
    rows = judged(AttentionKernel("ours", wrong))
    bad = [row for row in rows.values() if not row.ok]
    assert bad
    assert any(re.search(where, row.where) for row in bad), [row.where for row in bad]


@pytest.mark.usefixtures("two_dtypes")
def test_a_kernel_that_declines_everything_is_named_with_its_reasons() -> None:
    def never(call: Any) -> Any:
        raise Declined("for left-handed numbers")

    with nothing_but(NormKernel("picky", never, backward), AttentionKernel("choosy", never)):
        result = verify("cpu")
    assert {row.implementation for row in result.rows} == {"reference"}
    assert result.ok, "who serves nothing is not wrong"
    assert result.idle == [
        "add_norm, picky: no call on cpu (for left-handed numbers)",
        "attention, choosy: no call on cpu (for left-handed numbers)",
    ]
    assert str(result).endswith("\n".join(result.idle))


@pytest.mark.usefixtures("two_dtypes")
def test_a_wrong_kernel_beside_a_right_one() -> None:
    """It is judged by itself: that another is offered first does not hide it."""
    kernels = (
        NormKernel("right", forward, backward),
        NormKernel("wrong", spec_with(eps=0.0), backward),
    )
    with nothing_but(*kernels):
        result = verify("cpu")
    assert not result.ok
    assert {row.implementation for row in result.rows if not row.ok} == {"wrong"}


def test_the_table() -> None:
    rows = [
        VerificationRow(
            "add_norm", "aten", "cpu", "float32", 17, 3.257, 64.0, "normed, rms, x alone"
        ),
        VerificationRow(
            "attention", "ours", "cpu", "bfloat16", 7, torch.inf, 2.004, "output, causal"
        ),
    ]
    assert str(Verification(rows, ["attention, other: no call on cpu (for GPUs)"])).split("\n") == [
        "operation  kernel  device  dtype     calls  error  bound         at worst",
        "add_norm   aten    cpu     float32      17   3.26  64.00  ok     normed, rms, x alone",
        "attention  ours    cpu     bfloat16      7    inf   2.00  WRONG  output, causal",
        "attention, other: no call on cpu (for GPUs)",
    ]
    assert not Verification(rows, []).ok
    assert Verification(rows[:1], []).ok
    assert not replace(rows[0], error=torch.nan).ok
