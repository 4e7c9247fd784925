"""What norms compute, found by feeding them inputs, and judged by the formula that they follow."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from addnorm.anatomy.norms.find import MeasuredNorm, measured_norms, over_features
from addnorm.anatomy.norms.formulas import ACCEPT
from addnorm.anatomy.norms.probe import Probe
from addnorm.linting.check import Answers, decides
from addnorm.linting.rule import Case, Rule
from addnorm.linting.rules.norm_cases import (
    FIT,
    LIKE,
    NormCase,
    class_of,
    joined,
    reach_in_training,
    responds_globally,
)
from addnorm.linting.subject import Subject

UNLIKE = 0.2  # rows of a right norm differ in RMS by eps alone; divided by a sum, by 1 and more

# --- the words ------------------------------------------------------------------------------------

_RIGHT = (
    "LayerNorm is (x - mean) / sqrt(mean((x - mean)^2) + eps), RMSNorm is "
    "x / sqrt(mean(x^2) + eps), each over the features of one token."
)
_NEAREST = (
    "{norm} is called a norm and follows no known one; the nearest, {nearest_formula}, is "
    "{distance:.2g} away. Its rows "
)
_TO_NO_FORMULA = (
    "Divide by sqrt(mean(x^2) + eps), for a LayerNorm after the mean is subtracted; nothing, if "
    "another norm is intended."
)
_POINTWISE = (
    "{norm} is called a norm, but every output depends on its own input alone and grows with it "
    "({output_rms_ratio_at_10x_input:.3g}-fold at 10-fold inputs): no statistics are taken."
)

NOT_NORMALIZING = Rule(
    "norm-not-normalizing",
    "what is called a norm does not normalize",
    family="Norms by themselves",
    evidence={
        **FIT,
        "nearest_formula": "the known formula that is nearest, where it follows none",
        "output_rms_ratio_at_10x_input": "how much larger outputs are for inputs ten times as "
        "large",
        "spread_of_the_rows_rms": "the std of the rows' RMS over its mean",
        "mean_of_the_rows": "the mean of all outputs",
        "not_finite_of_zero_rows": "how many outputs of rows of zeros are not finite",
        "elements_that_share_statistics": "how many elements one output depends on",
        "buffers": "the stored numbers that scale and shift",
        "input_shape": "the shape of what is normalized",
        "smallest_row_rms": "the smallest RMS of a row that comes out",
        "largest_row_rms": "the largest",
        **LIKE,
    },
    cases={
        "grows": Case(
            "warning",
            "{norm} is called a norm, but its output grows "
            "{output_rms_ratio_at_10x_input:.3g}-fold where its input grows 10-fold, and it "
            "follows no known norm: the size of its input is passed on to what reads it.",
            "Divide by a statistic of the input: sqrt(mean(x^2) + eps), or the standard "
            "deviation after the mean is subtracted.",
        ),
        "rows of unlike size": Case(
            "warning",
            _NEAREST + "come out with different sizes, so that some tokens are loud and some faint "
            "to what reads them.",
            _TO_NO_FORMULA,
        ),
        "no known formula": Case(
            "note",
            _NEAREST + "have the mean {mean_of_the_rows:.2g} and all the same size.",
            _TO_NO_FORMULA,
        ),
        "a sum for a mean": Case(
            "warning",
            "{norm} is called a norm and computes: {formula}. Its outputs are {factor:.3g} of "
            "LayerNorm's.",
            _RIGHT,
        ),
        "another formula": Case(
            "error",
            "{norm} is called a norm and computes: {formula}. What reads it does not get rows of "
            "mean 0 and size 1.",
            _RIGHT,
        ),
        "no eps": Case(
            "warning",
            "{norm} has no eps: a row of zeros (padding, a dead token) gives NaN, and one NaN "
            "spoils the whole batch's gradient.",
            "Add an eps under the root: sqrt(mean(x^2) + eps).",
        ),
        "stored numbers": Case(
            "note",
            "{norm} scales and shifts each feature by stored numbers ({names}), in training as "
            "well, as a frozen BatchNorm does: it normalizes only inputs that are distributed like "
            "the data from which those numbers come.",
            "Nothing, if the weights before it are frozen too; to train from scratch, use "
            "LayerNorm.",
        ),
        "pointwise, and its class is called a norm": Case(
            "error",
            _POINTWISE,
            "Divide by a statistic of the features, or name it for what it is.",
        ),
        "pointwise": Case(
            "warning",
            _POINTWISE,
            "Divide by a statistic of the features, or name it for what it is.",
        ),
        "rows of unlike size, by hand": Case(
            "error",
            "The norm computed in {where} leaves rows with an RMS from {smallest_row_rms:.3g} to "
            "{largest_row_rms:.3g}, which is not one for all.",
            "Divide by sqrt(mean of squares + eps), not by a sum or a variance.",
        ),
    },
)

UNBIASED_VARIANCE = Rule(
    "norm-unbiased-variance",
    "a norm divides by n - 1 instead of n",
    family="Norms by themselves",
    evidence={
        **FIT,
        "output_factor": "sqrt((n - 1) / n): what outputs are multiplied by, compared with "
        "LayerNorm's",
        "input_shape": "the shape of what is normalized",
        "n": "the number of features",
        **LIKE,
    },
    cases={
        "module": Case(
            "warning",
            "{norm} divides by n - 1, the unbiased variance (torch's std and var do unless told "
            "otherwise): its outputs are {output_factor:.6f} of LayerNorm's, so that weights "
            "trained with either do not carry over, and one feature gives NaN.",
            "Take the biased variance: x.var(-1, keepdim=True, correction=0).",
        ),
        "by hand": Case(
            "warning",
            "The norm computed in {where} divides by n - 1 = {n_less_1} where layer normalization "
            "divides by n: outputs are {percent:.2g} % smaller, and published weights do not fit.",
            "x.var(-1, unbiased=False).",
        ),
    },
)

EPS_OUTSIDE_SQRT = Rule(
    "norm-eps-outside-sqrt",
    "a norm adds eps to the root, not under it",
    family="Norms by themselves",
    evidence={**FIT, "input_shape": "the shape of what is normalized", **LIKE},
    cases={
        "module": Case(
            "warning",
            "{norm} adds eps = {eps:.3g} to the root, not under it: rows with a deviation near "
            "{eps:.3g} come out differently than with LayerNorm or RMSNorm, whatever their eps, "
            "and the root of zero has no gradient: a constant row gives NaN in backward.",
            "Write (variance + eps).sqrt(), not variance.sqrt() + eps or std + eps.",
        ),
        "by hand": Case(
            "warning",
            "The norm computed in {where} adds eps = {eps:g} to the standard deviation, not to the "
            "variance inside the root: rows of small variance come out differently, and the "
            "gradient of the root is infinite where a row is constant.",
            "(x - mean) / sqrt(var + eps).",
        ),
    },
)

# --- how it is measured ---------------------------------------------------------------------------


def _fit_evidence(k: MeasuredNorm) -> dict[str, Any]:
    """How well the norm follows its nearest formula: the evidence that ``FIT`` declares."""
    assert k.match is not None
    m = k.match
    return {
        "formula": m.formula.name,
        "distance": m.distance,
        "next_formula": m.runner_up,
        "next_distance": m.runner_up_distance,
        "eps": m.eps,
        "features": int(math.prod(k.reach.sizes)),
    }


@decides(NOT_NORMALIZING, UNBIASED_VARIANCE, EPS_OUTSIDE_SQRT)
def formula(subject: Subject) -> Answers:
    """Findings of norms that follow a wrong formula or none; Unknown of those that could not be
    probed."""
    cases: list[NormCase] = []
    for k in measured_norms(subject.specimen):
        if k.probe is None:
            why = f"it is called a norm, but does not run on inputs of our own: {k.failed}"
            yield NOT_NORMALIZING.unknown(why, k.path)
            continue
        cases += _formula_cases(subject, k)
    yield from joined(cases)


def _formula_cases(subject: Subject, k: MeasuredNorm) -> Iterator[NormCase]:
    """What is wrong with the formula of one norm; nothing if its statistics run over other axes
    than the features, of which other rules speak."""
    assert k.probe is not None
    name = class_of(subject, k)
    m = k.match
    if not k.reach.axes:
        yield from _pointwise_cases(k, name)
        return
    assert m is not None
    if not over_features(subject.specimen, k):
        return  # norm-wrong-axis and norm-batch-dependent speak of it
    fits = m.distance < ACCEPT
    if fits and not m.formula.mistakes:
        yield from _eps_cases(k, name)
        return
    if not fits:
        if not k.normalizes and not responds_globally(k):
            finding = NOT_NORMALIZING(
                "grows",
                k.path,
                words={"norm": name},
                output_rms_ratio_at_10x_input=_growth(k.probe),
                nearest_formula=m.formula.name,
                distance=m.distance,
            )
            yield NormCase(finding, (name, ""))
        elif k.normalizes and k.claims and k.call.takes_one_tensor and not responds_globally(k):
            yield _unlike_case(k, name)
        return
    for mistake in m.formula.mistakes:
        yield _formula_case(k, mistake, name)


def _unlike_case(k: MeasuredNorm, name: str) -> NormCase:
    """The finding of a norm of class ``name`` that takes the input's scale out, but by no known
    formula."""
    assert k.probe is not None
    assert k.match is not None
    with torch.no_grad():
        rows = k.probe.rows(k.probe.bare(k.probe.normal(5)), k.reach).double()
    sizes = rows.square().mean(-1).sqrt()
    spread = float(sizes.std() / sizes.mean().clamp(min=1e-300)) if len(sizes) > 1 else 0.0
    finding = NOT_NORMALIZING(
        "rows of unlike size" if spread > UNLIKE else "no known formula",
        k.path,
        words={"norm": name},
        nearest_formula=k.match.formula.name,
        distance=k.match.distance,
        spread_of_the_rows_rms=spread,
        mean_of_the_rows=float(rows.mean()),
    )
    return NormCase(finding, (name, ""))


def _formula_case(k: MeasuredNorm, mistake: str, name: str) -> NormCase:
    """The finding of one mistake, a rule's name, of the formula that a norm of class ``name``
    follows."""
    assert k.match is not None
    m, n = k.match, math.prod(k.reach.sizes)
    words: dict[str, Any] = {"norm": name}
    if mistake == UNBIASED_VARIANCE.name:
        factor = math.sqrt((n - 1) / n)
        numbers = _fit_evidence(k) | {"output_factor": factor}
        finding = UNBIASED_VARIANCE("module", k.path, words=words, **numbers)
    elif mistake == EPS_OUTSIDE_SQRT.name:
        finding = EPS_OUTSIDE_SQRT("module", k.path, words=words, **_fit_evidence(k))
    elif m.formula.summed and m.formula.form in ("inside", "outside"):
        words["factor"] = 1 / math.sqrt(n)
        finding = NOT_NORMALIZING("a sum for a mean", k.path, words=words, **_fit_evidence(k))
    else:
        finding = NOT_NORMALIZING("another formula", k.path, words=words, **_fit_evidence(k))
    return NormCase(finding, (name, m.formula.name))


def _growth(probe: Probe) -> float:
    """How much larger outputs are for inputs ten times as large."""
    with torch.no_grad():
        x = probe.normal(5)
        return float(probe.bare(10.0 * x).norm() / probe.bare(x).norm().clamp(min=1e-300))


def _eps_cases(k: MeasuredNorm, name: str) -> Iterator[NormCase]:
    """The finding of a norm of class ``name`` with which a row of zeros, such as padding gives,
    does not come out finite."""
    assert k.probe is not None
    with torch.no_grad():
        bad = int((~k.probe.bare(torch.zeros_like(k.probe.normal(0))).isfinite()).sum())
    if bad:
        numbers = _fit_evidence(k) | {"not_finite_of_zero_rows": bad}
        finding = NOT_NORMALIZING("no eps", k.path, words={"norm": name}, **numbers)
        yield NormCase(finding, (name, "no eps"))


def _pointwise_cases(k: MeasuredNorm, name: str) -> Iterator[NormCase]:
    """The finding of a module of class ``name`` that is called a norm and takes no statistics,
    unless it is bounded or takes them in training."""
    assert k.probe is not None
    if k.saturates or reach_in_training(k).axes:
        return  # a bounded one stands in for a norm (DyT); BatchNorm takes its statistics then
    ratio = _growth(k.probe)
    buffers = [n for n, b in k.probe.module.named_buffers() if b.numel() in k.call.shape]
    if buffers:
        finding = NOT_NORMALIZING(
            "stored numbers",
            k.path,
            words={"norm": name, "names": ", ".join(buffers)},
            output_rms_ratio_at_10x_input=ratio,
            buffers=buffers,
        )
        yield NormCase(finding, (name, "stored numbers"))
        return
    finding = NOT_NORMALIZING(
        "pointwise, and its class is called a norm" if "class" in k.claims else "pointwise",
        k.path,
        words={"norm": name},
        output_rms_ratio_at_10x_input=ratio,
        elements_that_share_statistics=1,
    )
    yield NormCase(finding, (name, "pointwise"))
