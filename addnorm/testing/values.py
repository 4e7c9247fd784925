"""What it computes: the formula, its eps, weight and bias."""

import math
from typing import Any

import torch

from addnorm.anatomy.norms.formulas import ACCEPT, EXACT, Match
from addnorm.linting.findings import Finding
from addnorm.testing.kit import (
    Answers,
    Checks,
    Function,
    Kit,
    NormOfSum,
    Width,
    all_off_by,
    finding,
)

# Formula ------------------------------------------------------------------------------------------

_KNOWN_MISTAKES = {
    "norm-unbiased-variance": (
        "It divides by n - 1 (unbiased variance) instead of n: outputs are sqrt((n-1)/n) of what "
        "they should be, and one feature gives NaN.",
        "Use the biased variance: mean((x - mean)^2), correction=0.",
    ),
    "norm-eps-outside-sqrt": (
        "eps is added to the root instead of under it: small rows come out differently, and the "
        "root of zero has no gradient.",
        "Write sqrt(variance + eps).",
    ),
}

_OTHER_KINDS = {
    "mean-not-removed": (
        "The mean is not subtracted: this is RMSNorm, not LayerNorm.",
        "Subtract x.mean(-1, keepdim=True), or check it with kind='rms'.",
    ),
    "mean-removed": (
        "The mean is subtracted: this is LayerNorm, not RMSNorm.",
        "Leave the mean in, or check it with kind='layer'.",
    ),
    "sum-not-mean": (
        "It divides by the length of the row, sqrt(sum(x^2)): outputs are 1/sqrt(n) of RMSNorm's.",
        "Take the mean of the squares.",
    ),
    "unknown-formula": (
        "It divides by the {formula}, not by the root of a mean square.",
        "LayerNorm and RMSNorm take the root of the mean of squares.",
    ),
}
"""Of formulas that are no mistake in themselves: what is wrong, and what to do."""


def _formula(kit: Kit) -> Answers:
    """Findings on the formula that it follows, at every width."""
    for w in kit.measured:
        yield from _formula_at(kit, w)


def _formula_at(kit: Kit, w: Width) -> Answers:
    """The formula at one width, and what is wrong with it; ends at the first thing that makes all
    further comparison senseless."""
    if w.reach.axes != (-1,):
        yield from _axes_at(w)
        return
    if w.dim == 1:
        return
    m = w.match
    assert m is not None
    evidence = {
        "dim": w.dim,
        "formula": m.formula.name,
        "distance": m.distance,
        "next_formula": m.runner_up,
        "next_distance": m.runner_up_distance,
        "eps": m.eps,
    }
    if m.distance >= ACCEPT:
        yield finding(
            "unknown-formula",
            "error",
            evidence,
            f"It follows no formula that is known; the nearest is '{m.formula.name}', off by "
            f"{m.distance:.2g}.",
            "Compare with addnorm.testing.reference on the same inputs.",
        )
        return
    yield from _mistakes_at(m, evidence)
    yield from _kind_at(kit, m, evidence)
    if not math.isnan(m.factor) and abs(m.factor - 1.0) > max(EXACT, 10 * m.distance):
        yield finding(
            "constant-factor",
            "error",
            {**evidence, "factor": m.factor},
            f"Outputs are {m.factor:.6g} times what they should be, for a weight of one.",
            "Remove the factor, or put it into the weight.",
        )
    if m.distance > EXACT:
        yield finding(
            "norm-low-precision",
            "error",
            evidence,
            f"Even of {w.probe.like.dtype} inputs the result has about "
            f"{-math.log2(m.distance):.0f} bits: something inside is cast to 16 bits.",
            "Compute mean and variance in float32 at least.",
        )
        return
    yield from _eps_at(kit, w, m, evidence)


def _axes_at(w: Width) -> Answers:
    """Findings on statistics over nothing at all, or over more or other axes than the features."""
    if not w.reach.axes:
        yield finding(
            "norm-not-normalizing",
            "error",
            {"dim": w.dim, "elements_that_share_statistics": 1},
            "No output depends on another feature than its own: nothing is normalized.",
            "Divide by a statistic of the row.",
        )
        return
    names = {-3: "the batch", -2: "the positions", -1: "the features"}
    over = " and ".join(names[a] for a in w.reach.axes)
    shape, axes = [3, 5, w.dim], list(w.reach.axes)
    for rule in ("norm-batch-dependent", "norm-wrong-axis") if -3 in axes else ("norm-wrong-axis",):
        yield finding(
            rule,
            "error",
            {"dim": w.dim, "input_shape": shape, "statistics_over_axes": axes},
            f"For inputs (batch, positions, features) statistics are taken over {over}.",
            "Reduce over the last axis alone: dim=-1, keepdim=True.",
        )


def _mistakes_at(m: Match, evidence: dict[str, Any]) -> Answers:
    """Findings on a formula that is known to be wrong; ``evidence`` is that of each."""
    for mistake in m.formula.mistakes:
        if mistake in _KNOWN_MISTAKES:
            message, remedy = _KNOWN_MISTAKES[mistake]
            yield finding(mistake, "error", evidence, message, remedy)
    if set(m.formula.mistakes) <= set(_KNOWN_MISTAKES):
        return
    rule = "norm-not-normalizing"
    if not m.formula.centred and m.formula.spread in ("variance", "unbiased"):
        rule = "mean-not-removed"
    elif m.formula.summed and m.formula.form in ("inside", "outside"):
        rule = "sum-not-mean"
    yield finding(
        rule,
        "error",
        evidence,
        f"It computes: {m.formula.name}.",
        "LayerNorm is (x - mean) / sqrt(mean((x - mean)^2) + eps), RMSNorm "
        "x / sqrt(mean(x^2) + eps).",
    )


def _kind_at(kit: Kit, m: Match, evidence: dict[str, Any]) -> Answers:
    """The finding of a formula that may be right elsewhere, and is another than the one asked
    for."""
    rule: str | None = None
    if m.formula.kind not in (kit.kind, "other"):
        rule = "mean-not-removed" if kit.kind == "layer" else "mean-removed"
    elif not m.formula.mistakes and m.formula.summed:
        rule = "sum-not-mean"
    elif not m.formula.mistakes and m.formula.kind == "other":
        rule = "unknown-formula"
    if rule is not None:
        message, remedy = _OTHER_KINDS[rule]
        yield finding(rule, "error", evidence, message.format(formula=m.formula.name), remedy)


def _eps_at(kit: Kit, w: Width, m: Match, evidence: dict[str, Any]) -> Answers:
    """The finding of an eps that is missing, or another than the one claimed; ``evidence`` is the
    formula's."""
    if m.formula.form == "bare" or "norm-not-normalizing" in m.formula.mistakes:
        return
    claimed = kit.claimed
    with torch.no_grad():
        zeros = w.probe.bare(torch.zeros_like(w.probe.normal(0)))
    if m.eps == 0.0 and not bool(zeros.isfinite().all()):
        yield finding(
            "eps-missing",
            "error",
            evidence | ({} if claimed is None else {"claimed_eps": claimed}),
            "There is no eps: a row of zeros is divided by zero.",
            "Add eps under the root.",
        )
    # The reading of eps is as exact as the arithmetic inside: float32 on rows of 1e-6.
    elif claimed is not None and abs(m.eps - claimed) > 1e-2 * claimed + 1e-18:
        yield finding(
            "eps-size",
            "error",
            {**evidence, "claimed_eps": claimed},
            f"eps is {m.eps:.4g} and not {claimed:.4g} as claimed.",
            "Pass eps through unchanged (and not its square, nor another default).",
        )


def _eps_by_dtype(kit: Kit) -> Answers:
    """Findings of an eps that is another one in another dtype; notes where none was claimed, since
    torch's RMSNorm does the same."""
    if not kit.right:
        return
    for dtype in kit.dtypes:
        eps = kit.eps_in(dtype)
        if abs(eps - kit.used_eps) > 0.05 * kit.used_eps:
            like = kit.first.probe.like.dtype
            yield finding(
                "eps-of-dtype",
                "warning" if kit.claimed is not None else "note",
                {str(dtype).removeprefix("torch."): eps, str(like): kit.used_eps},
                f"eps is {eps:.3g} in {dtype} and {kit.used_eps:.3g} in {like}: the same weights "
                "give another function in another dtype.",
                "Give eps as a number.",
            )


def _affine(kit: Kit) -> Answers:
    """Findings on a weight or bias that is not used as in w * xhat + b; then ``kit.misused`` says
    so to checks that compare with the reference."""
    w = kit.first
    if isinstance(w.module, Function | NormOfSum):
        inner = w.module.pair if isinstance(w.module, NormOfSum) else w.module
        if isinstance(inner, Function):
            unused = {
                "weight": inner.weight is not None and w.probe.gain is None and w.dim > 1,
                "bias": inner.bias is not None and not w.probe.shifts,
            }
            for name in (n for n, yes in unused.items() if yes and w.match is not None):
                kit.misused = True
                yield _ignored(name)
    if not kit.right or w.probe.gain is None:
        return
    dtype = w.probe.like.dtype
    module = kit.typed(w.module, dtype)
    weight, bias = kit.affine(w, module)
    x = kit.rows(32, w.dim, dtype, 3)
    with torch.no_grad():
        y = module(x)
    hat = kit.answer(x)
    assert weight is not None
    zero = torch.zeros_like(weight) if bias is None else bias
    family = {
        "weight * xhat + bias": hat * weight + zero,
        "weight * (xhat + bias)": (hat + zero) * weight,
        "weight left out": hat + zero,
        "bias left out": hat * weight,
        "(1 + weight) * xhat + bias": hat * (weight + 1) + zero,
    }
    off = all_off_by(y, family)
    best = min(off, key=lambda n: off[n])
    # The right one is at the accuracy of the formula; one that is nearer by far is meant.
    if off["weight * xhat + bias"] > 10 * max(off[best], 1e-6):
        kit.misused = True
        yield finding(
            "affine",
            "error",
            {f"distance of {n}": d for n, d in off.items()},
            f"Weight and bias enter as {best}.",
            "The norm is weight * xhat + bias.",
        )


def _ignored(name: str) -> Finding:
    """The finding of a "weight" or "bias" that does not enter the output."""
    return finding(
        f"{name}-ignored",
        "error",
        {"output_change": 0.0},
        f"The {name} does not enter the output as it should: y = weight * xhat + bias.",
        f"Use the {name}.",
    )


CHECKS: Checks = (("formula", _formula), ("eps-of-dtype", _eps_by_dtype), ("affine", _affine))
