"""Attention as the products and the softmax that it is: its scale, and whether weights sum to 1."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from torch import Tensor

from addnorm.anatomy.structure import Attention, Structure, factors, number, uniform
from addnorm.anatomy.trace import Op, Value
from addnorm.linting.check import Check, Said
from addnorm.linting.report import Finding, Unknown
from addnorm.linting.subject import Subject

NEAR = 1e-3  # relative: constants are exact, and float32 has 1e-7
SUM = 1e-3


@final
@dataclass(frozen=True)
class Factor:
    """What one side is multiplied by on its way."""

    constant: float = 1.0
    applied: tuple[float, ...] = ()
    learned: bool = False
    normed: bool = False

    def __mul__(self, other: "Factor") -> "Factor":
        return Factor(
            self.constant * other.constant,
            self.applied + other.applied,
            self.learned or other.learned,
            self.normed or other.normed,
        )


def scales(subject: Subject) -> Said:
    """attention-scale: 1/sqrt(d) once, before the softmax."""
    s = subject.structure
    if not s.attentions:
        yield Unknown(rule="attention-scale", module="", why="no attention was found")
        return
    for attention in s.attentions:
        yield from _scale(s, attention, subject)


def _scale(s: Structure, attention: Attention, subject: Subject) -> Iterator[Finding]:
    q, k = factors(attention.scores)
    dim = q.shape[-1]
    soft = _softmax(attention)
    before = _along(s, q, None) * _along(s, k, None)
    after = Factor()
    if soft is not None:
        before = before * _along(s, soft.inputs[0], attention.scores.outputs[0])
        after = _along(s, attention.weights, soft.outputs[0])
    else:
        before = before * _along(s, attention.weights, attention.scores.outputs[0])
    right = 1 / math.sqrt(dim)
    alpha = number(attention.scores.kwargs.get("alpha", 1.0))
    if alpha is not None and alpha != 1.0:  # baddbmm(mask, q, k, alpha=1 / sqrt(d))
        before = before * Factor(alpha, (alpha,))
    c = before.constant
    told = {
        "factor_before_the_softmax": c,
        "expected": right,
        "head_width": dim,
        "factor_after_the_softmax": after.constant,
    }
    where = attention.path

    def found(message: str, remedy: str, severity: str = "error", **more: float) -> Finding:
        return Finding(
            rule="attention-scale",
            severity=severity,  # type: ignore[arg-type]
            module=where,
            evidence={**told, **more},
            message=message,
            remedy=remedy,
        )

    usual = "softmax(q k^T / sqrt(d)) v, with d the width of one head"
    if abs(after.constant - 1.0) > NEAR and not after.learned:
        yield found(
            f"The weights are multiplied by {after.constant:.4g} after the softmax, so they sum to "
            f"{after.constant:.4g} and not to 1"
            + (", while the logits stay unscaled." if abs(c - 1.0) < NEAR else "."),
            f"Scale inside the softmax: {usual}.",
        )
        return
    if before.learned or before.normed or _close(c, right):
        return
    scores = attention.scores.outputs[0].tensor.detach().double()
    std = float(scores.std()) * c
    if _close(c, 1.0):
        ratio = _weights_ratio(s, q, k, subject)
        if ratio is not None and ratio < 2.0 / math.sqrt(dim) and dim > 4:
            yield found(
                "The logits are not divided by sqrt(d); the queries' weights are initialized "
                f"{1 / max(ratio, 1e-9):.3g} times smaller than the keys', which does the same at "
                "the beginning (as in T5).",
                "Nothing, if this is intended: the initialization has to stay as it is.",
                "note",
                query_over_key_std=ratio,
            )
            return
        yield found(
            f"The logits q k^T are not divided by sqrt(d) = {math.sqrt(dim):.3g}: they grow with "
            "the head's width, the softmax saturates, and its gradient vanishes.",
            f"Use {usual}.",
        )
    elif _close(c, 1.0 / dim):
        doubled = len([a for a in _merged(before.applied) if abs(a - 1.0) > NEAR]) >= 2
        yield found(
            f"The logits are multiplied by 1/d = {c:.4g}: "
            + (
                "1/sqrt(d) is applied twice, so attention starts almost uniform and learns slowly."
                if doubled
                else "muP's scale, or 1/sqrt(d) squared by mistake."
            ),
            f"Use {usual}" + ("." if doubled else "; keep 1/d only with muP's initialization."),
            "error" if doubled else "warning",
        )
    elif c > 1.0 + NEAR:
        yield found(
            f"The logits are multiplied by {c:.4g} where they should be divided by "
            f"{math.sqrt(dim):.4g}: the softmax saturates.",
            f"Use {usual}.",
            logits_std=std,
        )
    else:
        width = s.width
        names = {width: "the model's width", attention.weights.shape[-1]: "the number of keys"}
        for n, name in names.items():
            if n > 1 and n != dim and _close(c, 1 / math.sqrt(n)):
                yield found(
                    f"The logits are divided by sqrt({n}), {name}, where the width of one head is "
                    f"{dim}: attention starts {math.sqrt(n / dim):.3g} times too flat.",
                    f"Use {usual}.",
                )
                return
        yield found(
            f"The logits are multiplied by {c:.4g}; 1/sqrt(d) is {right:.4g}.",
            "Nothing, if the configuration says so (Gemma 2's query_pre_attn_scalar, Granite's "
            f"multiplier); else use {usual}.",
            "note" if 0.1 < c / right < 10 else "warning",
        )


def _merged(applied: tuple[float, ...]) -> list[float]:
    """Torch's attention gives the root of its scale to each of queries and keys: that is one. A
    soft cap divides and multiplies by the same: that is none."""
    found: list[float] = []
    for a in applied:
        inverse = next((b for b in found if abs(a * b - 1.0) < NEAR), None)
        if inverse is not None:
            found.remove(inverse)
        elif a in found:
            found[found.index(a)] = a * a
        else:
            found.append(a)
    return found


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= NEAR * abs(b)


def _softmax(attention: Attention) -> Op | None:
    found = [op for op in attention.between if op.name in ("_softmax", "_safe_softmax")]
    if attention.weights.op is not None and attention.weights.op.name.endswith("softmax"):
        found.append(attention.weights.op)
    return found[-1] if found else None


def _along(s: Structure, value: Value, start: Value | None) -> Factor:
    """The factors on the way back from a value, to ``start`` or to whatever computed it."""
    total, seen = Factor(), set()
    while value is not start and value not in seen:
        seen.add(value)
        op = value.op
        steps = s.steps_into(value)
        if start is not None:
            steps = [step for step in steps if start in s.ancestors(step.source)]
        if start is not None and not steps and op is not None:
            # a soft cap, c * tanh(x / c), goes on behind its tanh
            through = [v for v in op.inputs if start in s.ancestors(v) and v.shape == value.shape]
            if len(through) == 1:
                value = through[0]
                continue
        if not steps or op is None:
            break
        step = steps[0]
        if step.kind == "norm":
            total = total * Factor(normed=start is None)
        elif op.name in ("mul", "div") and step.kind in ("scale", "gate"):
            total = total * _factor(s, op, step.source)
        value = step.source
    return total


def _factor(s: Structure, op: Op, carried: Value) -> Factor:
    others = [a for a in op.args if a is not carried]
    if not others:
        return Factor()
    other = others[0]
    if isinstance(other, Value):
        if any(v.name in s.parameters for v in s.ancestors(other)):
            return Factor(learned=True)
        t = other.tensor
        if t.numel() == 0 or not uniform(t):
            return Factor()  # positions' cosines and the like
        constant = float(t.flatten()[0])
    else:
        found = number(other)
        if found is None:
            return Factor()
        constant = found
    if op.name == "div":
        constant = 1.0 / constant if constant else math.inf
    return Factor(constant, (constant,))


def _weights_ratio(s: Structure, q: Value, k: Value, subject: Subject) -> float | None:
    """std of the queries' weights over that of the keys', as the user's model has them."""
    parameters = dict(subject.original.named_parameters())

    def std(value: Value) -> float | None:
        products = [v.op for v in s.carried(value) if v.op is not None and s.weighted(v.op)]
        names = {name for op in products for name in s.weights(op)}
        stds = [float(parameters[n].detach().float().std()) for n in names if n in parameters]
        return max(stds) if stds else None

    a, b = std(q), std(k)
    return a / b if a is not None and b else None


def sums(subject: Subject) -> Said:
    """attention-not-normalized: what a query takes of all keys must sum to one."""
    s = subject.structure
    if not s.attentions:
        yield Unknown(rule="attention-not-normalized", module="", why="no attention was found")
        return
    for attention in s.attentions:
        soft = _softmax(attention)
        if soft is not None and abs(_along(s, attention.weights, soft.outputs[0]).constant - 1) > (
            NEAR
        ):
            continue  # attention-scale says it
        weights = attention.table().double()
        total = weights.sum(-1)
        used = weights.abs().sum(-1) > 0  # a query that sees nothing takes nothing
        off = (total[used] - 1.0).abs()
        if not used.any() or float(off.max()) <= SUM:
            continue
        columns = weights.sum(-2)
        down = bool(((columns - 1.0).abs() <= SUM).all())
        sinks = soft is not None and soft.outputs[0].shape[-1] > attention.weights.shape[-1]
        decayed = soft is None and any(
            op.name == "mul" and sum(v in s.activations for v in op.inputs) > 1
            for op in attention.between
        )
        if down:
            what = "the softmax runs over the queries instead of the keys"
            remedy = "softmax(..., dim=-1) on scores of shape (..., queries, keys)."
        elif sinks:
            what = "a part of each row goes to a sink that adds no value"
            remedy = "Nothing, if the sink is intended."
        elif decayed:
            what = "decays replace the softmax, as in a state-space model or linear attention"
            remedy = "Nothing, if that is the design."
        elif soft is None:
            what = "no softmax normalizes them"
            remedy = "Use a softmax over the keys, unless the design is intended."
        elif _masked_after(soft, weights):
            what = "weights are masked after the softmax and not renormalized"
            remedy = "Mask the logits with -inf before the softmax."
        else:
            what = "something changes them after the softmax"
            remedy = "Leave the softmax's output as it is (dropout belongs to training)."
        yield Finding(
            rule="attention-not-normalized",
            severity="note" if sinks or decayed else "error",
            module=attention.path,
            evidence={
                "smallest_sum": float(total[used].min()),
                "largest_sum": float(total[used].max()),
                "sum_over_queries_is_one": down,
            },
            message=f"The attention weights of a query sum to {float(total[used].min()):.3g} to "
            f"{float(total[used].max()):.3g}, not to 1: {what}. The output's scale then depends on "
            "the length of the text.",
            remedy=remedy,
        )


def _masked_after(soft: Op, weights: Tensor) -> bool:
    before = soft.outputs[0].tensor
    if before.numel() != weights.numel():
        return False
    return bool(((weights == 0) & (before.reshape(weights.shape) > 0)).any())


CHECKS = (
    Check(("attention-scale",), scales),
    Check(("attention-not-normalized",), sums),
)
