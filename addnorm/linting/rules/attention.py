"""Attention as the products and the softmax that it is: its scale, and whether weights sum to 1."""

import math
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from addnorm.anatomy.structure import Structure, TracedAttention, factors, number, uniform
from addnorm.anatomy.trace import Op, Value
from addnorm.linting.check import Answers, decides
from addnorm.linting.findings import Finding
from addnorm.linting.rule import Case, Rule
from addnorm.linting.subject import Subject

NEAR = 1e-3  # relative: constants are exact, and float32 has 1e-7
SUM = 1e-3  # by more than this a sum of weights is not 1

# --- the words ------------------------------------------------------------------------------------

USUAL = "softmax(q k^T / sqrt(d)) v, with d the width of one head"

SCALE = Rule(
    "attention-scale",
    "1/sqrt(d) is missing, doubled, misplaced or of the wrong width",
    family="Attention",
    evidence={
        "factor_before_the_softmax": "what q k^T is multiplied by, by all constants together",
        "expected": "1/sqrt(width of one head)",
        "head_width": "the width of one head",
        "factor_after_the_softmax": "what the attention weights are multiplied by",
        "query_over_key_std": "the std of the queries' weights over that of the keys'",
        "logits_std": "the std of the logits, scaled as they are",
    },
    cases={
        "after the softmax": Case(
            "error",
            "The weights are multiplied by {factor_after_the_softmax:.4g} after the softmax, so "
            "they sum to {factor_after_the_softmax:.4g} and not to 1.",
            f"Scale inside the softmax: {USUAL}.",
        ),
        "after the softmax only": Case(
            "error",
            "The weights are multiplied by {factor_after_the_softmax:.4g} after the softmax, so "
            "they sum to {factor_after_the_softmax:.4g} and not to 1, while the logits stay "
            "unscaled.",
            f"Scale inside the softmax: {USUAL}.",
        ),
        "in the initialization": Case(
            "note",
            "The logits are not divided by sqrt(d); the queries' weights are initialized "
            "{times:.3g} times smaller than the keys', which does the same at the beginning (as in "
            "T5).",
            "Nothing, if this is intended: the initialization has to stay as it is.",
        ),
        "missing": Case(
            "error",
            "The logits q k^T are not divided by sqrt(d) = {root:.3g}: they grow with the head's "
            "width, the softmax saturates, and its gradient vanishes.",
            f"Use {USUAL}.",
        ),
        "twice": Case(
            "error",
            "The logits are multiplied by 1/d = {factor_before_the_softmax:.4g}: 1/sqrt(d) is "
            "applied twice, so attention starts almost uniform and learns slowly.",
            f"Use {USUAL}.",
        ),
        "1/d": Case(
            "warning",
            "The logits are multiplied by 1/d = {factor_before_the_softmax:.4g}: muP's scale, or "
            "1/sqrt(d) squared by mistake.",
            f"Use {USUAL}; keep 1/d only with muP's initialization.",
        ),
        "above 1": Case(
            "error",
            "The logits are multiplied by {factor_before_the_softmax:.4g} where they should be "
            "divided by {root:.4g}: the softmax saturates.",
            f"Use {USUAL}.",
        ),
        "another width": Case(
            "error",
            "The logits are divided by sqrt({width}), {whose}, where the width of one head is "
            "{head_width}: attention starts {times:.3g} times too flat.",
            f"Use {USUAL}.",
        ),
        "unusual": Case(
            "note",
            "The logits are multiplied by {factor_before_the_softmax:.4g}; 1/sqrt(d) is "
            "{expected:.4g}.",
            "Nothing, if the configuration says so (Gemma 2's query_pre_attn_scalar, Granite's "
            f"multiplier); else use {USUAL}.",
        ),
        "far off": Case(
            "warning",
            "The logits are multiplied by {factor_before_the_softmax:.4g}; 1/sqrt(d) is "
            "{expected:.4g}.",
            "Nothing, if the configuration says so (Gemma 2's query_pre_attn_scalar, Granite's "
            f"multiplier); else use {USUAL}.",
        ),
    },
)


def _not_one(why: str) -> str:
    return (
        "The attention weights of a query sum to {smallest_sum:.3g} to {largest_sum:.3g}, not to "
        f"1: {why}. The output's scale then depends on the length of the text."
    )


NOT_NORMALIZED = Rule(
    "attention-not-normalized",
    "attention weights do not sum to one",
    family="Attention",
    evidence={
        "smallest_sum": "the smallest sum of a query's weights over the keys",
        "largest_sum": "the largest",
        "sum_over_queries_is_one": "whether the weights of each key sum to one instead",
    },
    cases={
        "over the queries": Case(
            "error",
            _not_one("the softmax runs over the queries instead of the keys"),
            "softmax(..., dim=-1) on scores of shape (..., queries, keys).",
        ),
        "over the queries, decayed": Case(
            "note",
            _not_one("the softmax runs over the queries instead of the keys"),
            "softmax(..., dim=-1) on scores of shape (..., queries, keys).",
        ),
        "sink": Case(
            "note",
            _not_one("a part of each row goes to a sink that adds no value"),
            "Nothing, if the sink is intended.",
        ),
        "decays": Case(
            "note",
            _not_one("decays replace the softmax, as in a state-space model or linear attention"),
            "Nothing, if that is the design.",
        ),
        "no softmax": Case(
            "error",
            _not_one("no softmax normalizes them"),
            "Use a softmax over the keys, unless the design is intended.",
        ),
        "masked afterwards": Case(
            "error",
            _not_one("weights are masked after the softmax and not renormalized"),
            "Mask the logits with -inf before the softmax.",
        ),
        "changed afterwards": Case(
            "error",
            _not_one("something changes them after the softmax"),
            "Leave the softmax's output as it is (dropout belongs to training).",
        ),
    },
)

# --- the scale ------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Factor:
    """What one side is multiplied by on its way."""

    constant: float = 1.0
    """The product of all constants."""
    applied: tuple[float, ...] = ()
    """Each of them."""
    learned: bool = False
    """A parameter is among the factors, so that the constant alone says nothing."""
    normed: bool = False
    """The side comes out of a norm."""

    def __mul__(self, other: "Factor") -> "Factor":
        """Both, one after the other or of two sides of a product."""
        return Factor(
            self.constant * other.constant,
            self.applied + other.applied,
            self.learned or other.learned,
            self.normed or other.normed,
        )


@decides(SCALE)
def scales(subject: Subject) -> Answers:
    """Findings of attentions that are not scaled by 1/sqrt(d) once, before the softmax; Unknown
    where there is no attention."""
    s = subject.structure
    if not s.attentions:
        yield SCALE.unknown("no attention was found")
        return
    for attention in s.attentions:
        finding = _scale(s, attention, subject)
        if finding is not None:
            yield finding


def _scale(s: Structure, attention: TracedAttention, subject: Subject) -> Finding | None:
    """The finding of one attention; None where the factor is right, or cannot be told from right,
    as where it is learned, or queries and keys are normed or made one size."""
    dim = factors(attention.scores)[0].shape[-1]
    right = 1 / math.sqrt(dim)
    before, after = _factors(s, attention)
    c = before.constant

    def finding(case: str, words: dict[str, Any] | None = None, **more: float) -> Finding:
        """The finding with the evidence of every case, and more."""
        return SCALE(
            case,
            attention.path,
            words=words,
            factor_before_the_softmax=c,
            expected=right,
            head_width=dim,
            factor_after_the_softmax=after.constant,
            **more,
        )

    if abs(after.constant - 1.0) > NEAR and not after.learned:
        return finding("after the softmax only" if abs(c - 1.0) < NEAR else "after the softmax")
    if before.learned or before.normed or _close(c, right) or _of_one_size(attention):
        return None
    if _close(c, 1.0):
        ratio = _weights_ratio(s, attention, subject)
        if ratio is not None and ratio < 2.0 / math.sqrt(dim) and dim > 4:
            times = 1 / max(ratio, 1e-9)
            return finding("in the initialization", {"times": times}, query_over_key_std=ratio)
        return finding("missing", {"root": math.sqrt(dim)})
    if _close(c, 1.0 / dim):
        applied = [a for a in _merged(before.applied) if abs(a - 1.0) > NEAR]
        return finding("twice" if len(applied) >= 2 else "1/d")
    if c > 1.0 + NEAR:
        scores = attention.scores.outputs[0].tensor.detach().double()
        return finding("above 1", {"root": math.sqrt(dim)}, logits_std=float(scores.std()) * c)
    widths = {s.width: "the model's width", attention.weights.shape[-1]: "the number of keys"}
    for n, whose in widths.items():
        if n > 1 and n != dim and _close(c, 1 / math.sqrt(n)):
            times = math.sqrt(n / dim)
            return finding("another width", {"width": n, "whose": whose, "times": times})
    return finding("unusual" if 0.1 < c / right < 10 else "far off")


def _of_one_size(attention: TracedAttention) -> bool:
    """Whether all queries have one length, and all keys: the logits are cosines, whatever makes
    them so, and their factor is a temperature that no width gives."""
    q, k = (v.tensor.detach().double() for v in factors(attention.scores))
    for sizes in (q.norm(dim=-1), k.norm(dim=-2)):
        largest, smallest = float(sizes.max()), float(sizes.min())
        if sizes.shape[-1] < 2 or largest - smallest > NEAR * largest:
            return False
    return True


def _factors(s: Structure, attention: TracedAttention) -> tuple[Factor, Factor]:
    """(what the logits are multiplied by, what the weights are after the softmax); without a
    softmax all of it counts as before."""
    q, k = factors(attention.scores)
    scores, soft = attention.scores.outputs[0], _softmax(attention)
    before, after = _along(s, q, None) * _along(s, k, None), Factor()
    if soft is not None:
        before = before * _along(s, soft.inputs[0], scores)
        after = _along(s, attention.weights, soft.outputs[0])
    else:
        before = before * _along(s, attention.weights, scores)
    alpha = number(attention.scores.kwargs.get("alpha", 1.0))
    if alpha is not None and alpha != 1.0:  # baddbmm(mask, q, k, alpha=1 / sqrt(d))
        before = before * Factor(alpha, (alpha,))
    return before, after


def _merged(applied: tuple[float, ...]) -> list[float]:
    """The constants that were meant, of those that were applied.

    Torch's attention gives the root of its scale to each of queries and keys: that is one. A soft
    cap divides and multiplies by the same: that is none.
    """
    constants: list[float] = []
    for a in applied:
        inverse = next((b for b in constants if abs(a * b - 1.0) < NEAR), None)
        if inverse is not None:
            constants.remove(inverse)
        elif a in constants:
            constants[constants.index(a)] = a * a
        else:
            constants.append(a)
    return constants


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= NEAR * abs(b)


def _softmax(attention: TracedAttention) -> Op | None:
    """The last softmax from the scores to the weights; None: nothing normalizes them."""
    softmaxes = [op for op in attention.between if op.name in ("_softmax", "_safe_softmax")]
    if attention.weights.op is not None and attention.weights.op.name.endswith("softmax"):
        softmaxes.append(attention.weights.op)
    return softmaxes[-1] if softmaxes else None


def _along(s: Structure, value: Value, start: Value | None) -> Factor:
    """The factors on the way back from a value, to ``start``; None: to whatever computed it. Norms
    count on the latter way only."""
    total, way = Factor(), set()
    while value is not start and value not in way:
        way.add(value)
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
    """What a mul or div multiplies its operand ``carried`` by: a constant, or something learned; 1
    where it is not one number throughout."""
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
        fixed = number(other)
        if fixed is None:
            return Factor()
        constant = fixed
    if op.name == "div":
        constant = 1.0 / constant if constant else math.inf
    return Factor(constant, (constant,))


def _weights_ratio(s: Structure, attention: TracedAttention, subject: Subject) -> float | None:
    """std of the queries' weights over that of the keys', as the user's model has them; None where
    one of the two is made without weights, or all of its weights are zeros."""
    parameters = dict(subject.original.named_parameters())

    def std(value: Value) -> float | None:
        products = [v.op for v in s.carried(value) if v.op is not None and s.weighted(v.op)]
        names = {name for op in products for name in s.weights(op)}
        stds = [float(parameters[n].detach().float().std()) for n in names if n in parameters]
        return max(stds) if stds else None

    a, b = (std(value) for value in factors(attention.scores))
    return a / b if a is not None and b else None


# --- the sum of the weights -----------------------------------------------------------------------


@decides(NOT_NORMALIZED)
def sums(subject: Subject) -> Answers:
    """Findings of attentions whose weights of a query do not sum to one, unless ``SCALE`` says why;
    Unknown where there is no attention."""
    s = subject.structure
    if not s.attentions:
        yield NOT_NORMALIZED.unknown("no attention was found")
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
        down = bool(((weights.sum(-2) - 1.0).abs() <= SUM).all())
        yield NOT_NORMALIZED(
            _sum_case(s, attention, soft, down, weights),
            attention.path,
            smallest_sum=float(total[used].min()),
            largest_sum=float(total[used].max()),
            sum_over_queries_is_one=down,
        )


def _sum_case(
    s: Structure, attention: TracedAttention, soft: Op | None, down: bool, weights: Tensor
) -> str:
    """The case of weights that do not sum to one; those of each key do if ``down``. ``soft`` is the
    softmax that made them, None if there is none."""
    sinks = soft is not None and soft.outputs[0].shape[-1] > attention.weights.shape[-1]
    decayed = soft is None and any(
        op.name == "mul" and sum(v in s.activations for v in op.inputs) > 1
        for op in attention.between
    )
    if down:
        return "over the queries, decayed" if sinks or decayed else "over the queries"
    if sinks:
        return "sink"
    if decayed:
        return "decays"
    if soft is None:
        return "no softmax"
    return "masked afterwards" if _masked_after(soft, weights) else "changed afterwards"


def _masked_after(soft: Op, weights: Tensor) -> bool:
    """Whether weights are zero that were not when they came out of the softmax ``soft``; False
    where the two cannot be compared."""
    before = soft.outputs[0].tensor
    if before.numel() != weights.numel():
        return False
    return bool(((weights == 0) & (before.reshape(weights.shape) > 0)).any())
