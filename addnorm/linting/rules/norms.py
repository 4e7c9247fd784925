"""Norms: found by feeding them inputs, and judged by the formula that they follow."""

import copy
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from addnorm.anatomy.norms.find import (
    MeasuredNorm,
    batch_and_time,
    feature_axis,
    in_convolutions,
    measured_norms,
    over_features,
)
from addnorm.anatomy.norms.formulas import ACCEPT
from addnorm.anatomy.norms.probe import Probe, Reach, statistics_error
from addnorm.linting.check import Check, Said
from addnorm.linting.report import Finding, Severity, Unknown
from addnorm.linting.subject import Subject
from addnorm.temporary import undisturbed
from addnorm.words import error_in_a_line

UNLIKE = 0.2  # rows of a right norm differ in RMS by eps alone; divided by a sum, by 1 and more


# --- the rules ------------------------------------------------------------------------------------


@final
@dataclass
class _Case:
    """One finding to be, before the alike are joined."""

    rule: str
    severity: Severity
    path: str
    key: tuple[Any, ...]
    evidence: dict[str, Any]
    message: str
    remedy: str


def _once(k: MeasuredNorm, cases: Iterable[_Case], seen: dict[int, list[_Case]]) -> list[_Case]:
    """The cases of a module, measured only on the first of those that are alike."""
    key = id(k.probe)
    if key not in seen:
        seen[key] = list(cases)
    return [replace(case, path=k.path) for case in seen[key]]


def _joined(cases: Iterable[_Case]) -> Iterator[Finding]:
    """One finding for modules of one class with one fault."""
    groups: dict[tuple[Any, ...], list[_Case]] = {}
    for case in cases:
        groups.setdefault((case.rule, case.severity, *case.key), []).append(case)
    for same in groups.values():
        first = same[0]
        evidence: dict[str, Any] = {k: _finite(v) for k, v in first.evidence.items()}
        if len(same) > 1:
            evidence |= {"modules": len(same), "also": [c.path for c in same[1:6]]}
        yield Finding(
            rule=first.rule,
            severity=first.severity,
            module=first.path,
            evidence=evidence,
            message=first.message,
            remedy=first.remedy,
        )


def _finite(value: Any) -> Any:
    """What JSON has a number for, otherwise its name."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _class(subject: Subject, k: MeasuredNorm) -> str:
    return type(subject.model.get_submodule(k.path)).__qualname__


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
    cases: list[_Case] = []
    for k in measured_norms(subject.specimen):
        if k.probe is None:
            yield Unknown(
                rule="norm-not-normalizing",
                module=k.path,
                why=f"it is called a norm, but does not run on inputs of our own: {k.failed}",
            )
            continue
        cases += _formula_cases(subject, k)
    yield from _joined(cases)


def _formula_cases(subject: Subject, k: MeasuredNorm) -> Iterator[_Case]:
    assert k.probe is not None
    name = _class(subject, k)
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
        if not k.normalizes and not _responds_globally(k):
            ratio = _growth(k.probe)
            yield _Case(
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
        elif k.normalizes and k.claims and k.call.takes_one_tensor and not _responds_globally(k):
            yield _unlike_case(k, name, key)
        return
    for rule in m.formula.mistakes:
        yield _formula_case(k, rule, name, key)


def _unlike_case(k: MeasuredNorm, name: str, key: tuple[Any, ...]) -> _Case:
    """The input's scale is taken out, but by no known formula."""
    assert k.probe is not None
    assert k.match is not None
    with torch.no_grad():
        rows = k.probe.rows(k.probe.bare(k.probe.normal(5)), k.reach).double()
    sizes = rows.square().mean(-1).sqrt()
    spread = float(sizes.std() / sizes.mean().clamp(min=1e-300)) if len(sizes) > 1 else 0.0
    return _Case(
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


def _formula_case(k: MeasuredNorm, rule: str, name: str, key: tuple[Any, ...]) -> _Case:
    assert k.match is not None
    m, n = k.match, math.prod(k.reach.sizes)
    if rule == "norm-unbiased-variance":
        return _Case(
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
        return _Case(
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
    return _Case(
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


def _eps_cases(k: MeasuredNorm, name: str) -> Iterator[_Case]:
    """A row of zeros: what padding gives."""
    assert k.probe is not None
    with torch.no_grad():
        bad = int((~k.probe.bare(torch.zeros_like(k.probe.normal(0))).isfinite()).sum())
    if bad:
        yield _Case(
            "norm-not-normalizing",
            "warning",
            k.path,
            (name, "zeros"),
            {**_numbers(k), "not_finite_of_zero_rows": bad},
            f"{name} has no eps: a row of zeros (padding, a dead token) gives NaN, and one NaN "
            "spoils the whole batch's gradient.",
            "Add an eps under the root: sqrt(mean(x^2) + eps).",
        )


def _pointwise_cases(subject: Subject, k: MeasuredNorm, name: str) -> Iterator[_Case]:
    assert k.probe is not None
    if k.saturates or _train_reach(k).axes:
        return
    ratio = _growth(k.probe)
    stored = [n for n, b in k.probe.module.named_buffers() if b.numel() in k.call.shape]
    if stored:
        yield _Case(
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
    yield _Case(
        "norm-not-normalizing",
        "error" if "class" in k.claims else "warning",
        k.path,
        (name, "pointwise"),
        {"output_rms_ratio_at_10x_input": ratio, "elements_that_share_statistics": 1},
        f"{name} is called a norm, but every output depends on its own input alone and grows with "
        f"it ({ratio:.3g}-fold at 10-fold inputs): no statistics are taken.",
        "Divide by a statistic of the features, or name it for what it is.",
    )


def _responds_globally(k: MeasuredNorm) -> bool:
    """Global response normalization (ConvNeXt V2): x times its channel's share of the length over
    all positions; it grows with x and is meant to."""
    assert k.probe is not None
    x = k.probe.normal(8)
    if x.dim() < 3:
        return False
    with torch.no_grad():
        y = k.probe.bare(x)
        for axis in {-1, 1 - x.dim()}:
            where = tuple(i for i in range(1, x.dim()) if i != axis % x.dim())
            length = x.norm(dim=where, keepdim=True)
            share = length / (length.mean(axis, keepdim=True) + 1e-6)
            for whole in (x * share, x * share + x):
                if float((y - whole).norm()) < 1e-3 * float(y.norm()):
                    return True
    return False


# Over which axes ----------------------------------------------------------------------------------


def _train_reach(k: MeasuredNorm) -> Reach:
    assert k.probe is not None
    try:
        return k.probe.reach(train=True)
    except Exception:
        return Reach((), ())


def check_axes(subject: Subject) -> Said:
    """Over what the statistics run: features, or also positions and samples."""
    cases: list[_Case] = []
    for k in measured_norms(subject.specimen):
        if k.probe is not None:
            cases += _axis_cases(subject, k)
    yield from _joined(cases)


def _axis_cases(subject: Subject, k: MeasuredNorm) -> Iterator[_Case]:
    assert k.probe is not None
    name = _class(subject, k)
    evaluated, trained = k.reach.axes, _train_reach(k).axes
    more = tuple(a for a in trained if a not in evaluated)
    on_features = not evaluated or over_features(subject.specimen, k) or _responds_globally(k)
    if on_features and not more:
        return
    module = subject.model.get_submodule(k.path)
    batch, time = batch_and_time(subject.specimen, k.path)
    if batch is None:  # the custom, where it could not be seen
        batch = -len(k.call.shape) if len(k.call.shape) > 1 else None
        batch = None if batch == time else batch
    named = {batch: "the samples of the batch", time: "the positions"}
    features = feature_axis(subject.specimen, k)
    named.pop(None, None)
    named.setdefault(features, "the features")

    def told(axes: Sequence[int]) -> str:
        return " and ".join(named.get(a, f"axis {a}") for a in axes)

    declared = isinstance(module, nn.GroupNorm | nn.modules.batchnorm._NormBase) or bool(
        re.search(r"batch|group|instance", type(module).__name__.lower())
    )
    front = in_convolutions(subject.specimen, k.path)
    evidence: dict[str, Any] = {
        "input_shape": list(k.call.shape),
        "statistics_over_axes": list(evaluated),
        "statistics_over_axes_in_training": list(trained),
        "feature_axis": features,
    }
    severity: Severity = "note" if front else "warning" if declared else "error"
    every = evaluated or more
    if more or (batch is not None and batch in evaluated):
        only = bool(more) and (batch is None or batch not in evaluated)
        yield _Case(
            "norm-batch-dependent",
            severity,
            k.path,
            (name, evaluated, trained),
            evidence | {"only_in_training": only},
            f"{name} takes its statistics over {told(trained if only else evaluated)}"
            + (" while training, and other ones in evaluation" if only else "")
            + ": the output for one sample depends on the others in its batch, padding counts, a "
            "batch of one behaves differently"
            + (", and training sees the future." if time in every else "."),
            "Normalize each token over its features: torch.nn.LayerNorm or torch.nn.RMSNorm.",
        )
        if declared or not evaluated:
            return
    if on_features or (declared and batch in every):
        return
    if not declared or not front or evaluated:
        yield _Case(
            "norm-wrong-axis",
            severity,
            k.path,
            (name, evaluated),
            evidence,
            f"{name} takes its statistics over {told(evaluated)} (axes {list(evaluated)} of an "
            f"input of shape {list(k.call.shape)}), while a token's features lie on axis "
            f"{features}: "
            + (
                "a token's output depends on later tokens."
                if time in evaluated
                else "elements other than one token's features decide its size."
            ),
            f"Take mean and variance over axis {features} alone.",
        )


# Gradients ----------------------------------------------------------------------------------------


def check_gradient(subject: Subject) -> Said:
    """Backward against differences of forward."""
    cases: list[_Case] = []
    seen: dict[int, list[_Case]] = {}
    for k in measured_norms(subject.specimen):
        if k.probe is None:
            continue
        try:
            with undisturbed():
                cases += _once(k, _gradient_cases(subject, k), seen)
        except Exception as e:
            yield Unknown(
                rule="norm-bad-gradient",
                module=k.path,
                why=f"backward could not be run: {error_in_a_line(e)}",
            )
    yield from _joined(cases)


def _gradient_cases(subject: Subject, k: MeasuredNorm) -> Iterator[_Case]:
    """Directional derivatives along the row itself, along ones, and at random.

    A norm's output does not move along the first (the second, for LayerNorm), which is where a
    gradient with forgotten terms says that it does; in a random direction the forgotten terms
    are one part in sqrt(n).
    """
    assert k.probe is not None
    probe, name = k.probe, _class(subject, k)
    x = probe.normal(20).requires_grad_()
    with torch.no_grad():
        hat = probe.raw(x).detach()
    seen = hat + 1.0 + 0.5 * torch.randn_like(hat)
    held = [(n, p) for n, p in probe.module.named_parameters() if p.is_floating_point()]
    with torch.enable_grad():
        out = probe.raw(x)
        wanted = [x, *(p for _, p in held)]
        if not out.requires_grad:
            yield _gradient_case(k, name, {"input": 1.0}, "nothing at all: the output is detached")
            return
        grads = torch.autograd.grad((out * seen).sum(), wanted, allow_unused=True)
    base = x.detach()
    axes = [a % x.dim() for a in k.reach.axes] or [x.dim() - 1]
    directions = {
        "along the row": (x, base),
        "along ones": (x, torch.ones_like(base)),
        "at random": (x, torch.randn_like(base)),
        "along the centred row": (x, base - base.mean(axes, keepdim=True)),
    }
    for n, p in held:
        directions[f"of {n}"] = (p, torch.randn_like(p))
    # Float64 or float32 inside: rounding 1e-7 over a step of 1e-3, and its square; something of 16
    # bits inside: 4e-3 an element over a step of 0.05, which averages out over the elements.
    coarse = k.match is not None and 1e-4 < k.match.distance < ACCEPT
    step, bound = (0.05, 0.1) if coarse else (1e-3, 2e-2)
    off: dict[str, float] = {}
    for told, (variable, v) in directions.items():
        i = next(j for j, w in enumerate(wanted) if w is variable)
        grad = grads[i]
        slope = _slope(probe, variable, v, seen, base, step)
        # Where autograd says nothing, it says zero.
        g = torch.zeros_like(variable) if grad is None else grad
        size = float((g * v).abs().sum()) + abs(slope)
        if size > 1e-8:
            wrong = abs(float((g * v).sum()) - slope) / size
            if wrong > bound:
                off[told] = wrong
    if not off:
        return
    names = set(off)
    if names <= {f"of {n}" for n, _ in held}:
        what = f"wrong {', '.join(sorted(names))}"
    elif {"along the centred row", "along ones"} <= names:
        what = "without the terms of mean and variance: the statistics are held constant"
    elif "along the centred row" in names:
        what = "without the term of the variance (or of the mean square): it is held constant"
    elif "along ones" in names:
        what = "without the term of the mean: it is held constant"
    else:
        what = "wrong"
    yield _gradient_case(k, name, off, what)


def _slope(
    probe: Probe, variable: Tensor, v: Tensor, seen: Tensor, base: Tensor, step: float
) -> float:
    """The central difference of ``sum(seen * f)`` along ``v``."""
    h = step * float(variable.detach().norm().clamp(min=1e-2) / v.norm())
    ends = []
    is_input = variable.shape == base.shape and not isinstance(variable, nn.Parameter)
    with torch.no_grad():
        kept = variable.detach().clone()
        for sign in (1.0, -1.0):
            moved = kept + sign * h * v
            if is_input:
                y = probe.raw(moved)
            else:
                variable.data.copy_(moved)
                y = probe.raw(base)
            ends.append(y.double())
        if not is_input:
            variable.data.copy_(kept)
    return float(((ends[0] - ends[1]) * seen.double()).sum() / (2 * h))


def _gradient_case(k: MeasuredNorm, name: str, off: dict[str, float], what: str) -> _Case:
    return _Case(
        "norm-bad-gradient",
        "error",
        k.path,
        (name, what),
        {f"relative_error_{where.replace(' ', '_')}": e for where, e in off.items()},
        f"The gradient of {name} is not that of its output, but {what}: training follows another "
        "function than the one that is computed.",
        "Do not detach (nor compute under no_grad) what the output depends on; a hand-written "
        "backward is dx = r * (g - mean(g) - xhat * mean(g * xhat)), g = dy * weight, "
        "for RMSNorm without mean(g).",
    )


# Precision ----------------------------------------------------------------------------------------


def check_precision(subject: Subject) -> Said:
    """Statistics in fewer digits than they need."""
    cases: list[_Case] = []
    seen: dict[int, list[_Case]] = {}
    for k in measured_norms(subject.specimen):
        if k.probe is None or k.match is None or k.match.distance > ACCEPT:
            continue
        if k.match.formula.kind == "other" or not k.reach.axes:
            continue
        try:
            with undisturbed(gradients=False):
                cases += _once(k, _precision_cases(subject, k), seen)
        except Exception as e:
            yield Unknown(
                rule="norm-low-precision",
                module=k.path,
                why=f"it does not run in bfloat16: {error_in_a_line(e)}",
            )
    yield from _joined(cases)


def _precision_cases(subject: Subject, k: MeasuredNorm) -> Iterator[_Case]:
    probe, m, name = k.probe, k.match, _class(subject, k)
    assert probe is not None
    assert m is not None
    n = math.prod(k.reach.sizes)

    def error(dtype: torch.dtype, mean: float, whole: bool) -> float:
        module = copy.deepcopy(probe.module).to(dtype)
        worst, xs, ys = 0.0, [], []
        for seed in range(4):
            x = (probe.normal(30 + seed, 0.0) + mean).to(dtype)
            y = probe.call(module, x, probe.others)
            rows, got = probe.rows(x, k.reach).double(), probe.rows(y, k.reach).double()
            xs.append(rows)
            ys.append(got)
        x64, y64 = torch.cat(xs), torch.cat(ys)
        ref = m.formula(x64, m.eps) * (1.0 if math.isnan(m.factor) else m.factor)
        if whole:
            return statistics_error(y64, ref.to(dtype).double())
        worst = float(((y64 - ref).norm(dim=-1) / ref.norm(dim=-1)).max())
        return worst if math.isfinite(worst) else math.inf

    if not probe.is_bare or math.isnan(m.factor) or n < 16:
        return  # of a few elements, a rounded statistic looks like rounded outputs
    if m.distance > 1e-4:
        yield _precision_case(
            k,
            "warning",
            name,
            {"relative_error_in_float64": m.distance, "formula": m.formula.name},
            f"{name} computes with about {-math.log2(m.distance):.0f} bits even if its input is "
            "float64: something inside is cast to a 16-bit format",
        )
        return
    if m.formula.centred:
        # Rounding the mean costs mean/std * u, the difference of squares (mean/std)^2 * u, with
        # u = 2^-24; the bound is half way between the two on a logarithmic scale.
        far, u = 1e3, 2.0**-24
        found, bound = error(torch.float32, far, False), far**1.5 * u
        if found > bound:
            yield _precision_case(
                k,
                "warning",
                name,
                {
                    "relative_error_at_mean_1000_std_1": found,
                    "of_a_two_pass_variance": far * u,
                    "of_a_difference_of_squares": far**2 * u,
                },
                f"{name} loses digits in float32 where the mean is large compared with the "
                "deviation, as mean(x^2) - mean(x)^2 does (it may even turn negative: NaN)",
            )
    if not _in_16_bits(subject, k):
        return  # what it would do in bfloat16 is no fault of a model that is in float32
    u = 2.0**-9
    found = error(torch.bfloat16, 0.0, True)
    # A rounded statistic is off by up to u, evenly: u / sqrt(3), and half of that where it is its
    # square that is rounded. With float32 statistics a few outputs fall to the other side of a
    # tie: some 2^-24 / u of them, which is nothing.
    if found > 0.25 * u:
        yield _precision_case(
            k,
            "warning",
            name,
            {
                "row_error_in_bfloat16": found,
                "of_bfloat16_statistics": u / math.sqrt(3),
            },
            f"{name} takes its statistics in the dtype of its input: in bfloat16 every row as a "
            f"whole is off by {found / u:.2g} units in the last place",
        )


def _in_16_bits(subject: Subject, k: MeasuredNorm) -> bool:
    """Whether the user's model holds or computes in 16 bits: in its parameters or buffers, in what
    the norm is given, or by autocast."""
    held = (*subject.original.parameters(), *subject.original.buffers())
    given = torch.utils._pytree.tree_leaves((k.call.args, k.call.kwargs))
    return any(
        isinstance(t, Tensor) and t.dtype in (torch.bfloat16, torch.float16)
        for t in (*held, *given)
    ) or any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))


def _precision_case(
    k: MeasuredNorm, severity: Severity, name: str, evidence: dict[str, Any], what: str
) -> _Case:
    return _Case(
        "norm-low-precision",
        severity,
        k.path,
        (name, *sorted(evidence)),
        evidence,
        f"{what}: the error enters every layer and does not average out.",
        "Take mean and variance in float32 (x.float(), two passes) and cast the result back.",
    )


CHECKS: tuple[Check, ...] = (
    Check(
        ("norm-not-normalizing", "norm-unbiased-variance", "norm-eps-outside-sqrt"), check_formula
    ),
    Check(("norm-wrong-axis", "norm-batch-dependent"), check_axes),
    Check(("norm-bad-gradient",), check_gradient),
    Check(("norm-low-precision",), check_precision),
)
