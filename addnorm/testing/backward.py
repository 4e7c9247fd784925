"""Its gradients, against those of the equation and of what people forget in them."""

from typing import NamedTuple

import torch
from torch import Tensor

from addnorm.linting.findings import Unknown
from addnorm.testing.kit import (
    ALIKE,
    Answers,
    Checks,
    Kit,
    NormKind,
    Width,
    all_off_by,
    finding,
    off_by,
    unit,
)

# Gradients ----------------------------------------------------------------------------------------


def _gradients(kit: Kit) -> Answers:
    """Findings on the gradients of input, weight and bias, in every dtype in which it runs and at
    every width; Unknown where the formula is another."""
    if not kit.right:
        yield Unknown(rule="gradient", module="", why="it is another function: so is its gradient")
        return
    double = kit.first.probe.like.dtype == torch.float64
    for dtype in dict.fromkeys([torch.float64] * double + [torch.float32, *kit.dtypes]):
        if dtype in kit.dead:
            continue
        for w in kit.measured:
            if w.dim > 1:
                yield from _gradients_at(kit, w, dtype)


def _gradients_at(kit: Kit, w: Width, dtype: torch.dtype) -> Answers:
    """The gradients at one width in one dtype. A parameter's is told once: ``kit.wrong`` gets its
    role, so that another dtype does not repeat it."""
    module = kit.typed(w.module, dtype)
    for p in module.parameters():
        p.requires_grad_(True)
    name = str(dtype).removeprefix("torch.")
    weight, _ = kit.affine(w, module)
    # Rows enough that a sum over them in bfloat16 loses its digits, in a 3-D shape whose axes all
    # differ.
    x = kit.rows(16 * 24, w.dim, dtype, 8).view(16, 24, w.dim).requires_grad_()
    hat = kit.answer(x.detach())
    # dy has a part along xhat, one along ones and noise: each term of the gradient is of its size.
    noise = kit.rows(16 * 24, w.dim, torch.float64, 9, mean=0.0).view_as(hat)
    scale = 1.0 if weight is None else weight.sign()
    dy = ((hat + 0.8) * scale + 0.5 * noise).to(dtype)
    y = module(x)
    if not y.requires_grad:
        yield finding(
            "gradient-missing",
            "error",
            {"dtype": name},
            "The output has no gradient: it is detached from its input.",
            "Compute without no_grad and detach.",
        )
        return
    gain, shift = kit.gain_name(w), kit.bias_name(w)
    parameters = dict(module.named_parameters())
    roles = {role: n for role, n in (("weight", gain), ("bias", shift)) if n is not None}
    variables = [x, *(parameters[n] for n in roles.values())]
    grads = torch.autograd.grad(y, variables, dy.to(y.dtype), allow_unused=True)
    dyd = dy.double()
    yield from _input_gradient(kit, w, name, x, grads[0], dyd, weight, hat)
    for role, grad in zip(roles, grads[1:], strict=True):
        terms = dyd * hat if role == "weight" else dyd
        findings = list(_parameter_gradient(role, grad, terms, dtype, w))
        if findings and role not in kit.wrong:  # in the widest dtype that shows it
            kit.wrong.add(role)
            yield from findings


def _input_gradient(
    kit: Kit,
    w: Width,
    name: str,
    x: Tensor,
    grad: Tensor | None,
    dy: Tensor,
    weight: Tensor | None,
    hat: Tensor,
) -> Answers:
    """The finding of a gradient of x that is not the right one, by the nearest of wrong ones.

    ``name`` is the dtype's; ``grad`` is what backward gave, None for nothing; ``dy`` is what came
    from above, in float64; ``hat`` is the output of the reference without weight and bias.
    """
    r = reciprocal_deviation(kit, x.detach())
    family = input_gradient_candidates(dy if weight is None else dy * weight, hat, r, kit.kind)
    if weight is not None:
        right = input_gradient_candidates(dy, hat, r, kit.kind)[RIGHT]
        family["the weight is left out"] = Candidate("norm-bad-gradient", right.gradient)
    have = torch.zeros_like(x) if grad is None else grad
    off = all_off_by(have, {what: candidate.gradient for what, candidate in family.items()})
    # Relative to r * g, which the other terms may cancel (of two features nearly all): roundings of
    # g, of the products and of the result, at most 8 units of the dtype; float32 sums, n + 10.
    # xhat and r are as exact as x - mean is, which loses mean|x| / deviation.
    dtype = x.dtype
    v = unit(torch.float64 if dtype == torch.float64 else torch.float32)
    cancelled = float((x.detach().double().abs().mean(-1, keepdim=True) * r).max())
    bound = 8 * unit(dtype) + (w.dim + 10) * v * (1 + cancelled)
    if w.match is not None:
        bound += 10 * w.match.distance  # what is computed in float32 whatever it is given
    g = dy if weight is None else dy * weight
    bound *= float((r * g).norm() / family[RIGHT].gradient.norm().clamp(min=1e-300))
    if off[RIGHT] <= bound:
        return
    best = min(off, key=lambda n: off[n])
    if best == RIGHT:
        best, rule = "less precise than rounding explains", "gradient-precision"
    elif off[best] > ALIKE:
        best, rule = "like none that is known", "norm-bad-gradient"
    else:
        rule = family[best].mistake
    yield finding(
        rule,
        "error",
        {"dtype": name, "dim": w.dim, "bound": bound}
        | {f"distance: {what}": d for what, d in sorted(off.items(), key=lambda i: i[1])[:4]},
        f"The gradient of x in {name} is off by {off[RIGHT]:.2g}: {best}.",
        "dx = r * (g - mean(g) - xhat * mean(g * xhat)) with g = dy * weight"
        + ("." if kit.kind == "layer" else "; for RMSNorm without mean(g)."),
    )


RIGHT = "right"
"""The key of the right one among candidates."""


class Candidate(NamedTuple):
    """What a gradient of x may be."""

    mistake: str
    """That of ``mistake_names`` which it is; "" of the right one."""
    gradient: Tensor


def reciprocal_deviation(kit: Kit, x: Tensor) -> Tensor:
    """1 / sqrt(variance + eps) of each row, for RMSNorm of its mean square; (..., 1), float64."""
    eps = kit.eps_in(x.dtype)
    x = x.double()
    if kit.kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    return ((x * x).mean(-1, keepdim=True) + eps).rsqrt()


def input_gradient_candidates(
    g: Tensor, hat: Tensor, r: Tensor, kind: NormKind
) -> dict[str, Candidate]:
    """What a gradient of x may be: the right one, under ``RIGHT`` and first, and wrong ones by what
    is wrong.

    g = dy * weight; ``hat`` is the normalized x; r is 1 / sqrt(variance + eps).
    """
    n = hat.shape[-1]
    mean = g.mean(-1, keepdim=True)
    along = (g * hat).mean(-1, keepdim=True)
    layer, rms = r * (g - mean - hat * along), r * (g - hat * along)
    wrong = {
        "statistics are held constant (detached)": Candidate("gradient-detached-statistics", r * g),
        "the term of the variance is dropped": Candidate(
            "gradient-dropped-variance-term",
            r * (g - mean),
        ),
        "not divided by the deviation": Candidate(
            "norm-bad-gradient",
            (layer if kind == "layer" else rms) / r,
        ),
        "sums instead of means": Candidate(
            "norm-bad-gradient",
            r * (g - (n * mean if kind == "layer" else 0.0) - n * hat * along),
        ),
        "a sign is wrong": Candidate(
            "norm-bad-gradient",
            r * (g - (mean if kind == "layer" else 0.0) + hat * along),
        ),
        "nothing": Candidate("gradient-missing", torch.zeros_like(g)),
    }
    if kind == "layer":
        wrong["the term of the mean is dropped (RMSNorm's gradient)"] = Candidate(
            "gradient-dropped-mean-term",
            rms,
        )
        return {RIGHT: Candidate("", layer), **wrong}
    other = "it has a term of the mean (LayerNorm's gradient)"
    wrong[other] = Candidate("norm-bad-gradient", layer)
    return {RIGHT: Candidate("", rms), **wrong}


def _parameter_gradient(
    role: str, grad: Tensor | None, terms: Tensor, dtype: torch.dtype, w: Width
) -> Answers:
    """The finding of a gradient of weight or bias (``role``) that is not ``terms`` (batch,
    positions, dim) summed over batch and positions, by the nearest of wrong sums of them; ``grad``
    is what backward gave, None for nothing."""
    right = terms.sum((0, 1))
    if grad is not None and grad.numel() != right.numel():
        yield finding(
            f"gradient-{role}",
            "error",
            {"shape": list(grad.shape), "expected": list(right.shape)},
            f"The gradient of the {role} has shape {tuple(grad.shape)}.",
            "Sum over all axes but the last.",
        )
        return
    have = torch.zeros_like(right) if grad is None else grad.reshape(-1)
    off = all_off_by(have, _parameter_gradient_candidates(terms))
    bound = _sum_bound(terms, dtype, w)
    if off[RIGHT] <= bound:
        return
    best = min(off, key=lambda k: off[k])
    name = str(dtype).removeprefix("torch.")
    low = dtype in (torch.bfloat16, torch.float16)
    running = _running_sum_error(terms, right, dtype) if low else 0.0
    if low and (best == RIGHT or off[RIGHT] <= 2 * running):
        rows = terms.shape[0] * terms.shape[1]
        yield finding(
            f"gradient-{role}-low-precision",
            "warning",
            {
                "dtype": name,
                "rows": rows,
                "relative_error": off[RIGHT],
                "bound": bound,
                "of_a_running_sum": running,
            },
            f"The gradient of the {role} is off by {off[RIGHT]:.2g} in {name}: the sum over "
            f"{rows} rows was accumulated in {name}.",
            "Accumulate it in float32.",
        )
        return
    what = best if best != RIGHT and off[best] < ALIKE else "unlike any known"
    yield finding(
        f"gradient-{role}",
        "error",
        {"dtype": name, "bound": bound}
        | {f"distance: {t}": d for t, d in sorted(off.items(), key=lambda i: i[1])[:4]},
        f"The gradient of the {role} in {name} is off by {off[RIGHT]:.2g}: {what}.",
        "Sum dy * xhat (for the bias dy) over all axes but the last, in float32.",
    )


def _parameter_gradient_candidates(terms: Tensor) -> dict[str, Tensor]:
    """The right gradient of a parameter, under ``RIGHT`` and first, and wrong ones by what is
    wrong; ``terms`` as in ``_parameter_gradient``."""
    right = terms.sum((0, 1))
    return {
        RIGHT: right,
        "averaged over the rows instead of summed": right / (terms.shape[0] * terms.shape[1]),
        "summed over the first sample only": terms[0].sum(0),
        "summed over the last sample only": terms[-1].sum(0),
        "summed over the first position only": terms[:, 0].sum(0),
        "averaged over the batch": right / terms.shape[0],
        "summed over the features too": torch.full_like(right, float(terms.sum())),
        "nothing": torch.zeros_like(right),
    }


def _sum_bound(terms: Tensor, dtype: torch.dtype, w: Width) -> float:
    """How far the sum of n rows may be off, as a whole.

    One rounding of dy * xhat in each term (n of them, of random sign, so that they are 1/sqrt(n)
    of a unit in a sum of one sign) and one of the result; n + 10 roundings of a float32 sum. Half
    of the terms' sum may cancel: twice that. xhat is rounded too in half the kernels: 4 units.
    """
    n = terms.shape[0] * terms.shape[1]
    v = unit(torch.float64 if dtype == torch.float64 else torch.float32)
    size = float(terms.abs().sum((0, 1)).norm() / terms.sum((0, 1)).norm())
    bound = 4 * unit(dtype) + (n + w.dim + 20) * v * size
    if w.match is not None:
        bound += 10 * w.match.distance * size
    return bound


def _running_sum_error(terms: Tensor, right: Tensor, dtype: torch.dtype) -> float:
    """The error of adding the rows one after the other in a dtype, relative to ``right``."""
    total = torch.zeros_like(right).to(dtype)
    for row in terms.flatten(0, 1).to(dtype):
        total = total + row
    return off_by(total, right)


CHECKS: Checks = (("gradient", _gradients),)
