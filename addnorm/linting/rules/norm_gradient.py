"""Gradients of norms, against differences of their outputs."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from addnorm.anatomy.norms.find import MeasuredNorm, measured_norms
from addnorm.anatomy.norms.formulas import ACCEPT
from addnorm.anatomy.norms.probe import Probe
from addnorm.linting.check import Check, Said
from addnorm.linting.report import Unknown
from addnorm.linting.rules.norm_cases import NormCase, cases_of, class_of, findings_of
from addnorm.linting.subject import Subject
from addnorm.temporary import undisturbed
from addnorm.words import error_in_a_line


def check_gradient(subject: Subject) -> Said:
    """Backward against differences of forward."""
    cases: list[NormCase] = []
    seen: dict[int, list[NormCase]] = {}
    for k in measured_norms(subject.specimen):
        if k.probe is None:
            continue
        try:
            with undisturbed():
                cases += cases_of(k, _gradient_cases(subject, k), seen)
        except Exception as e:
            yield Unknown(
                rule="norm-bad-gradient",
                module=k.path,
                why=f"backward could not be run: {error_in_a_line(e)}",
            )
    yield from findings_of(cases)


def _gradient_cases(subject: Subject, k: MeasuredNorm) -> Iterator[NormCase]:
    """Directional derivatives along the row itself, along ones, and at random.

    A norm's output does not move along the first (the second, for LayerNorm), which is where a
    gradient with forgotten terms says that it does; in a random direction the forgotten terms
    are one part in sqrt(n).
    """
    assert k.probe is not None
    probe, name = k.probe, class_of(subject, k)
    x = probe.normal(20).requires_grad_()
    with torch.no_grad():
        hat = probe.raw(x).detach()
    cotangent = hat + 1.0 + 0.5 * torch.randn_like(hat)
    parameters = {n: p for n, p in probe.module.named_parameters() if p.is_floating_point()}
    with torch.enable_grad():
        out = probe.raw(x)
        variables = [x, *parameters.values()]
        if not out.requires_grad:
            yield _gradient_case(k, name, {"input": 1.0}, "nothing at all: the output is detached")
            return
        grads = torch.autograd.grad((out * cotangent).sum(), variables, allow_unused=True)
    # Where autograd says nothing, it says zero.
    gradients = {
        id(v): torch.zeros_like(v) if g is None else g
        for v, g in zip(variables, grads, strict=True)
    }
    # Float64 or float32 inside: rounding 1e-7 over a step of 1e-3, and its square; something of 16
    # bits inside: 4e-3 an element over a step of 0.05, which averages out over the elements.
    coarse = k.match is not None and 1e-4 < k.match.distance < ACCEPT
    step, bound = (0.05, 0.1) if coarse else (1e-3, 2e-2)
    errors: dict[str, float] = {}
    for where, (variable, v) in _directions(k, x, parameters).items():
        along = gradients[id(variable)] * v
        slope = _slope(probe, variable, v, cotangent, x.detach(), step)
        size = float(along.abs().sum()) + abs(slope)
        if size > 1e-8:
            error = abs(float(along.sum()) - slope) / size
            if error > bound:
                errors[where] = error
    if errors:
        yield _gradient_case(k, name, errors, _what_is_wrong(errors, parameters))


def _directions(
    k: MeasuredNorm, x: Tensor, parameters: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """What is varied, and how, by name."""
    base = x.detach()
    axes = [a % x.dim() for a in k.reach.axes] or [x.dim() - 1]
    directions = {
        "along the row": (x, base),
        "along ones": (x, torch.ones_like(base)),
        "at random": (x, torch.randn_like(base)),
        "along the centred row": (x, base - base.mean(axes, keepdim=True)),
    }
    for n, p in parameters.items():
        directions[f"of {n}"] = (p, torch.randn_like(p))
    return directions


def _what_is_wrong(errors: Iterable[str], parameters: Iterable[str]) -> str:
    """What the gradient forgets, from the directions in which it is off."""
    names = set(errors)
    if names <= {f"of {n}" for n in parameters}:
        return f"wrong {', '.join(sorted(names))}"
    if {"along the centred row", "along ones"} <= names:
        return "without the terms of mean and variance: the statistics are held constant"
    if "along the centred row" in names:
        return "without the term of the variance (or of the mean square): it is held constant"
    if "along ones" in names:
        return "without the term of the mean: it is held constant"
    return "wrong"


def _slope(
    probe: Probe, variable: Tensor, v: Tensor, cotangent: Tensor, base: Tensor, step: float
) -> float:
    """The central difference of ``sum(cotangent * f)`` along ``v``."""
    h = step * float(variable.detach().norm().clamp(min=1e-2) / v.norm())
    ends = []
    is_input = variable.shape == base.shape and not isinstance(variable, nn.Parameter)
    with torch.no_grad():
        before = variable.detach().clone()
        for sign in (1.0, -1.0):
            moved = before + sign * h * v
            if is_input:
                y = probe.raw(moved)
            else:
                variable.data.copy_(moved)
                y = probe.raw(base)
            ends.append(y.double())
        if not is_input:
            variable.data.copy_(before)
    return float(((ends[0] - ends[1]) * cotangent.double()).sum() / (2 * h))


def _gradient_case(k: MeasuredNorm, name: str, errors: dict[str, float], what: str) -> NormCase:
    return NormCase(
        "norm-bad-gradient",
        "error",
        k.path,
        (name, what),
        {f"relative_error_{where.replace(' ', '_')}": e for where, e in errors.items()},
        f"The gradient of {name} is not that of its output, but {what}: training follows another "
        "function than the one that is computed.",
        "Do not detach (nor compute under no_grad) what the output depends on; a hand-written "
        "backward is dx = r * (g - mean(g) - xhat * mean(g * xhat)), g = dy * weight, "
        "for RMSNorm without mean(g).",
    )


CHECKS: tuple[Check, ...] = (Check(("norm-bad-gradient",), check_gradient),)
