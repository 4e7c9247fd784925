"""What norms compute, found by feeding them inputs, and judged by the formula that they follow."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from addnorm.anatomy.norms.find import MeasuredNorm, measured_norms, over_features
from addnorm.anatomy.norms.formulas import ACCEPT
from addnorm.anatomy.norms.probe import Probe
from addnorm.linting.check import Check, Said
from addnorm.linting.report import Unknown
from addnorm.linting.rules.norm_cases import (
    NormCase,
    class_of,
    findings_of,
    reach_in_training,
    responds_globally,
)
from addnorm.linting.subject import Subject

UNLIKE = 0.2  # rows of a right norm differ in RMS by eps alone; divided by a sum, by 1 and more


def _numbers(k: MeasuredNorm) -> dict[str, Any]:
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


def check_formula(subject: Subject) -> Said:
    """What the norms compute."""
    cases: list[NormCase] = []
    for k in measured_norms(subject.specimen):
        if k.probe is None:
            yield Unknown(
                rule="norm-not-normalizing",
                module=k.path,
                why=f"it is called a norm, but does not run on inputs of our own: {k.failed}",
            )
            continue
        cases += _formula_cases(subject, k)
    yield from findings_of(cases)


def _formula_cases(subject: Subject, k: MeasuredNorm) -> Iterator[NormCase]:
    assert k.probe is not None
    name = class_of(subject, k)
    m = k.match
    if not k.reach.axes:
        yield from _pointwise_cases(subject, k, name)
        return
    assert m is not None
    if not over_features(subject.specimen, k):
        return  # norm-wrong-axis and norm-batch-dependent speak of it
    fits = m.distance < ACCEPT
    if fits and not m.formula.mistakes:
        yield from _eps_cases(k, name)
        return
    key = (name, m.formula.name if fits else "")
    if not fits:
        if not k.normalizes and not responds_globally(k):
            ratio = _growth(k.probe)
            yield NormCase(
                "norm-not-normalizing",
                "warning",
                k.path,
                key,
                {
                    "output_rms_ratio_at_10x_input": ratio,
                    "nearest_formula": m.formula.name,
                    "distance": m.distance,
                },
                f"{name} is called a norm, but its output grows {ratio:.3g}-fold where its input "
                "grows 10-fold, and it follows no known norm: the size of its input is passed on "
                "to what reads it.",
                "Divide by a statistic of the input: sqrt(mean(x^2) + eps), or the standard "
                "deviation after the mean is subtracted.",
            )
        elif k.normalizes and k.claims and k.call.takes_one_tensor and not responds_globally(k):
            yield _unlike_case(k, name, key)
        return
    for rule in m.formula.mistakes:
        yield _formula_case(k, rule, name, key)


def _unlike_case(k: MeasuredNorm, name: str, key: tuple[Any, ...]) -> NormCase:
    """The input's scale is taken out, but by no known formula."""
    assert k.probe is not None
    assert k.match is not None
    with torch.no_grad():
        rows = k.probe.rows(k.probe.bare(k.probe.normal(5)), k.reach).double()
    sizes = rows.square().mean(-1).sqrt()
    spread = float(sizes.std() / sizes.mean().clamp(min=1e-300)) if len(sizes) > 1 else 0.0
    return NormCase(
        "norm-not-normalizing",
        "warning" if spread > UNLIKE else "note",
        k.path,
        key,
        {
            "nearest_formula": k.match.formula.name,
            "distance": k.match.distance,
            "spread_of_the_rows_rms": spread,
            "mean_of_the_rows": float(rows.mean()),
        },
        f"{name} is called a norm and follows no known one; the nearest, "
        f"{k.match.formula.name}, is {k.match.distance:.2g} away. Its rows "
        + (
            "come out with different sizes, so that some tokens are loud and some faint to what "
            "reads them."
            if spread > UNLIKE
            else f"have the mean {float(rows.mean()):.2g} and all the same size."
        ),
        "Divide by sqrt(mean(x^2) + eps), for a LayerNorm after the mean is subtracted; nothing, "
        "if another norm is intended.",
    )


def _formula_case(k: MeasuredNorm, rule: str, name: str, key: tuple[Any, ...]) -> NormCase:
    assert k.match is not None
    m, n = k.match, math.prod(k.reach.sizes)
    if rule == "norm-unbiased-variance":
        return NormCase(
            rule,
            "warning",
            k.path,
            key,
            {**_numbers(k), "output_factor": math.sqrt((n - 1) / n)},
            f"{name} divides by n - 1, the unbiased variance (torch's std and var do unless told "
            f"otherwise): its outputs are {math.sqrt((n - 1) / n):.6f} of LayerNorm's, so that "
            "weights trained with either do not carry over, and one feature gives NaN.",
            "Take the biased variance: x.var(-1, keepdim=True, correction=0).",
        )
    if rule == "norm-eps-outside-sqrt":
        return NormCase(
            rule,
            "warning",
            k.path,
            key,
            _numbers(k),
            f"{name} adds eps = {m.eps:.3g} to the root, not under it: rows with a deviation near "
            f"{m.eps:.3g} come out differently than with LayerNorm or RMSNorm, whatever their eps, "
            "and the root of zero has no gradient: a constant row gives NaN in backward.",
            "Write (variance + eps).sqrt(), not variance.sqrt() + eps or std + eps.",
        )
    summed = m.formula.summed and m.formula.form in ("inside", "outside")
    return NormCase(
        rule,
        "warning" if summed else "error",
        k.path,
        key,
        _numbers(k),
        f"{name} is called a norm and computes: {m.formula.name}. "
        + (
            f"Its outputs are {1 / math.sqrt(n):.3g} of LayerNorm's."
            if summed
            else "What reads it does not get rows of mean 0 and size 1."
        ),
        "LayerNorm is (x - mean) / sqrt(mean((x - mean)^2) + eps), RMSNorm is "
        "x / sqrt(mean(x^2) + eps), each over the features of one token.",
    )


def _growth(probe: Probe) -> float:
    with torch.no_grad():
        x = probe.normal(5)
        return float(probe.bare(10.0 * x).norm() / probe.bare(x).norm().clamp(min=1e-300))


def _eps_cases(k: MeasuredNorm, name: str) -> Iterator[NormCase]:
    """A row of zeros: what padding gives."""
    assert k.probe is not None
    with torch.no_grad():
        bad = int((~k.probe.bare(torch.zeros_like(k.probe.normal(0))).isfinite()).sum())
    if bad:
        yield NormCase(
            "norm-not-normalizing",
            "warning",
            k.path,
            (name, "zeros"),
            {**_numbers(k), "not_finite_of_zero_rows": bad},
            f"{name} has no eps: a row of zeros (padding, a dead token) gives NaN, and one NaN "
            "spoils the whole batch's gradient.",
            "Add an eps under the root: sqrt(mean(x^2) + eps).",
        )


def _pointwise_cases(subject: Subject, k: MeasuredNorm, name: str) -> Iterator[NormCase]:
    assert k.probe is not None
    if k.saturates or reach_in_training(k).axes:
        return
    ratio = _growth(k.probe)
    stored = [n for n, b in k.probe.module.named_buffers() if b.numel() in k.call.shape]
    if stored:
        yield NormCase(
            "norm-not-normalizing",
            "note",
            k.path,
            (name, "stored"),
            {"output_rms_ratio_at_10x_input": ratio, "buffers": stored},
            f"{name} scales and shifts each feature by stored numbers ({', '.join(stored)}), in "
            "training as well, as a frozen BatchNorm does: it normalizes only inputs that are "
            "distributed like the data from which those numbers come.",
            "Nothing, if the weights before it are frozen too; to train from scratch, use "
            "LayerNorm.",
        )
        return
    yield NormCase(
        "norm-not-normalizing",
        "error" if "class" in k.claims else "warning",
        k.path,
        (name, "pointwise"),
        {"output_rms_ratio_at_10x_input": ratio, "elements_that_share_statistics": 1},
        f"{name} is called a norm, but every output depends on its own input alone and grows with "
        f"it ({ratio:.3g}-fold at 10-fold inputs): no statistics are taken.",
        "Divide by a statistic of the features, or name it for what it is.",
    )


CHECKS: tuple[Check, ...] = (
    Check(
        ("norm-not-normalizing", "norm-unbiased-variance", "norm-eps-outside-sqrt"), check_formula
    ),
)
