"""The mistakes of a norm, by name.

A mistake that lint finds too has lint's name here. Where one rule of lint sums up what can be told
apart with the norm alone, the names are finer, and each says to which rule it belongs.
"""

from dataclasses import dataclass
from typing import final

from addnorm.linting.rule import Rule
from addnorm.linting.rules.norm_axes import BATCH_DEPENDENT, WRONG_AXIS
from addnorm.linting.rules.norm_formula import EPS_OUTSIDE_SQRT, NOT_NORMALIZING, UNBIASED_VARIANCE
from addnorm.linting.rules.norm_gradient import BAD_GRADIENT
from addnorm.linting.rules.norm_precision import LOW_PRECISION


@final
@dataclass(frozen=True)
class Mistake:
    """One that a norm may have."""

    name: str
    finds: str
    """What is wrong, in a line, as a clause."""
    rule: Rule | None = None
    """The rule by which lint finds it, in a model; none if it does not."""


_OWN = (
    Mistake("unknown-formula", "it follows no formula that is known", NOT_NORMALIZING),
    Mistake("mean-not-removed", "the mean stays in, where LayerNorm is asked for", NOT_NORMALIZING),
    Mistake("mean-removed", "the mean is subtracted, where RMSNorm is asked for"),
    Mistake("sum-not-mean", "it divides by the root of a sum, not of a mean", NOT_NORMALIZING),
    Mistake("constant-factor", "outputs are a constant times what they should be"),
    Mistake("eps-missing", "there is no eps: a row of zeros gives NaN", NOT_NORMALIZING),
    Mistake("eps-size", "eps is another than the one claimed"),
    Mistake("eps-of-dtype", "eps is another one in another dtype"),
    Mistake("affine", "weight and bias enter in another way"),
    Mistake("weight-ignored", "the weight does not enter the output"),
    Mistake("bias-ignored", "the bias does not enter the output"),
    Mistake("output-dtype", "the output has another dtype than the input"),
    Mistake("precision", "outputs are further off than rounding explains"),
    Mistake("cancellation", "a difference of squares loses the digits", LOW_PRECISION),
    Mistake("cast-order", "the value is cast back before the weight is multiplied"),
    Mistake("gradient-missing", "no gradient arrives", BAD_GRADIENT),
    Mistake("gradient-detached-statistics", "mean and variance are held constant", BAD_GRADIENT),
    Mistake("gradient-dropped-variance-term", "the term of the variance is missing", BAD_GRADIENT),
    Mistake("gradient-dropped-mean-term", "the term of the mean is missing", BAD_GRADIENT),
    Mistake("gradient-precision", "the gradient is further off than rounding explains"),
    Mistake("gradient-weight", "the gradient of the weight is wrong", BAD_GRADIENT),
    Mistake(
        "gradient-weight-low-precision",
        "the gradient of the weight is summed with too few digits",
    ),
    Mistake("gradient-bias", "the gradient of the bias is wrong", BAD_GRADIENT),
    Mistake(
        "gradient-bias-low-precision", "the gradient of the bias is summed with too few digits"
    ),
    Mistake("overflow", "large values come out wrong"),
    Mistake("tiny-row", "tiny values come out wrong"),
    Mistake("zero-row", "a row of zeros comes out wrong, or has no gradient"),
    Mistake("constant-row", "a constant row comes out wrong, or has no gradient"),
    Mistake("one-feature", "a row of one feature comes out wrong"),
    Mistake("strides", "numbers that lie otherwise in memory give another result"),
    Mistake("leading-shapes", "more or fewer axes give another result"),
    Mistake("empty-batch", "a batch of nothing does not give nothing"),
    Mistake("writes-inputs", "it writes into what belongs to its caller"),
    Mistake("nondeterministic", "the same input gives another result the second time"),
    Mistake("autocast", "it fails under autocast, or takes its statistics in 16 bits there"),
    Mistake("compile", "compiled, it breaks the graph or gives another result"),
    Mistake("stream-dtype", "the sum has another dtype than the residual"),
    Mistake("stream-wrong", "the stream is not x + residual"),
    Mistake("stream-rounding", "the norm is taken of the sum before it is rounded"),
    Mistake("norm-not-of-sum", "what is normalized is not x + residual"),
    Mistake("gradient-stream-dropped", "the gradient that arrives through the stream is dropped"),
    Mistake("gradient-x", "the gradient of x is wrong, with a residual"),
    Mistake("gradient-residual", "the gradient of the residual is wrong"),
)

_SHARED = (
    NOT_NORMALIZING,
    WRONG_AXIS,
    UNBIASED_VARIANCE,
    EPS_OUTSIDE_SQRT,
    BATCH_DEPENDENT,
    BAD_GRADIENT,
    LOW_PRECISION,
)

MISTAKES = {
    mistake.name: mistake
    for mistake in (*(Mistake(rule.name, rule.finds, rule) for rule in _SHARED), *_OWN)
}
"""All of them by name, those of lint first."""
