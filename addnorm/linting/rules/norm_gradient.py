"""Gradients of norms, against differences of their outputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from addnorm.anatomy.norms.find import MeasuredNorm, measured_norms
from addnorm.anatomy.norms.formulas import ACCEPT, EXACT
from addnorm.anatomy.norms.probe import Probe
from addnorm.linting.check import Answers, decides
from addnorm.linting.rule import Case, Rule
from addnorm.linting.rules.norm_cases import LIKE, NormCase, class_of, joined, measured_once
from addnorm.linting.subject import Subject
from addnorm.temporary import undisturbed
from addnorm.words import error_in_a_line

# --- the words ------------------------------------------------------------------------------------


def _but(what: str) -> Case:
    """A case whose message says what the gradient is instead; ``what`` may have blanks."""
    return Case(
        "error",
        f"The gradient of {{norm}} is not that of its output, but {what}: training follows another "
        "function than the one that is computed.",
        "Do not detach (nor compute under no_grad) what the output depends on; a hand-written "
        "backward is dx = r * (g - mean(g) - xhat * mean(g * xhat)), g = dy * weight, "
        "for RMSNorm without mean(g).",
    )


BAD_GRADIENT = Rule(
    "norm-bad-gradient",
    "a norm's gradient is not that of its output",
    family="Norms by themselves",
    evidence={
        "relative_error_*": "how far the gradient is from differences of the output, in the "
        "direction that is named, where that is more than rounding",
        **LIKE,
    },
    cases={
        "detached": _but("nothing at all: the output is detached"),
        "of parameters": _but("wrong {parameters}"),
        "no mean, no variance": _but(
            "without the terms of mean and variance: the statistics are held constant"
        ),
        "no variance": _but(
            "without the term of the variance (or of the mean square): it is held constant"
        ),
        "no mean": _but("without the term of the mean: it is held constant"),
        "wrong": _but("wrong"),
    },
)

# --- how it is measured ---------------------------------------------------------------------------


@decides(BAD_GRADIENT)
def gradient(subject: Subject) -> Answers:
    """Findings of norms whose backward is not what differences of forward say; Unknown where
    backward does not run."""
    cases: list[NormCase] = []
    results: dict[int, _Errors] = {}
    for k in measured_norms(subject.specimen):
        if k.probe is None:
            continue
        try:
            with undisturbed():
                errors = measured_once(k, _errors, results)
        except Exception as e:
            why = f"backward could not be run: {error_in_a_line(e)}"
            yield BAD_GRADIENT.unknown(why, k.path)
            continue
        if errors.by_direction:
            cases.append(_gradient_case(k, class_of(subject, k), errors))
    yield from joined(cases)


@final
@dataclass(frozen=True)
class _Errors:
    """Where a gradient is wrong; directions are called as in ``_directions``."""

    by_direction: Mapping[str, float]
    """The relative error in each direction in which it is more than rounding; {"input": 1.0} if the
    output has no gradient at all."""
    parameters: tuple[str, ...]
    """The directions in which only a parameter is varied."""


def _errors(k: MeasuredNorm) -> _Errors:
    """Where a norm's gradient is not what differences of its output say, by directional
    derivatives: along the row itself, along ones, and at random.

    A norm's output does not move along the first (the second, for LayerNorm), which is where a
    gradient with forgotten terms says that it does; in a random direction the forgotten terms are
    one part in sqrt(n). Called within ``undisturbed``, which makes the draws the same each time.
    """
    assert k.probe is not None
    probe = k.probe
    x = probe.normal(20).requires_grad_()
    with torch.no_grad():
        hat = probe.raw(x).detach()
    # a part along the row, one along ones and one at random: each forgotten term shows in one
    cotangent = hat + 1.0 + 0.5 * torch.randn_like(hat)
    parameters = {n: p for n, p in probe.module.named_parameters() if p.is_floating_point()}
    with torch.enable_grad():
        out = probe.raw(x)
        variables = [x, *parameters.values()]
        if not out.requires_grad:
            return _Errors({"input": 1.0}, ())
        grads = torch.autograd.grad((out * cotangent).sum(), variables, allow_unused=True)
    # Where autograd says nothing, it says zero.
    gradients = {
        id(v): torch.zeros_like(v) if g is None else g
        for v, g in zip(variables, grads, strict=True)
    }
    # Float64 or float32 inside: rounding 1e-7 over a step of 1e-3, and its square; something of 16
    # bits inside: 4e-3 an element over a step of 0.05, which averages out over the elements.
    coarse = k.match is not None and EXACT < k.match.distance < ACCEPT
    step, bound = (0.05, 0.1) if coarse else (1e-3, 2e-2)
    errors: dict[str, float] = {}
    for where, (variable, v) in _directions(k, x, parameters).items():
        along = gradients[id(variable)] * v
        slope = _slope(probe, variable, v, cotangent, x.detach(), step)
        size = float(along.abs().sum()) + abs(slope)
        if size > 1e-8:  # else the direction is felt neither way
            error = abs(float(along.sum()) - slope) / size
            if error > bound:
                errors[where] = error
    return _Errors(errors, tuple(f"of {n}" for n in parameters))


def _directions(
    k: MeasuredNorm, x: Tensor, parameters: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """{name: (the tensor that is varied, the direction)}; the names are read by ``_case``."""
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


def _case(errors: _Errors) -> str:
    """The case of ``BAD_GRADIENT``: what the gradient forgets, from the directions in which it is
    off. There is at least one."""
    names = set(errors.by_direction)
    if names == {"input"}:
        return "detached"
    if names <= set(errors.parameters):
        return "of parameters"
    if {"along the centred row", "along ones"} <= names:
        return "no mean, no variance"
    if "along the centred row" in names:
        return "no variance"
    return "no mean" if "along ones" in names else "wrong"


def _slope(
    probe: Probe, variable: Tensor, v: Tensor, cotangent: Tensor, base: Tensor, step: float
) -> float:
    """The central difference of ``sum(cotangent * f)`` along ``v``, where ``f`` is the probe's
    output. ``base`` is the input; ``variable`` is it or a parameter, which is put back. ``step`` is
    relative to the variable's size."""
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


def _gradient_case(k: MeasuredNorm, name: str, errors: _Errors) -> NormCase:
    """The finding of a norm of class ``name``."""
    case, words = _case(errors), {"norm": name}
    if case == "of parameters":
        words["parameters"] = ", ".join(sorted(errors.by_direction))
    evidence = {
        f"relative_error_{where.replace(' ', '_')}": error
        for where, error in errors.by_direction.items()
    }
    finding = BAD_GRADIENT(case, k.path, words=words, **evidence)
    return NormCase(finding, (name, case, words.get("parameters")))
