"""The addition in front of the norm: its rounding, what is normalized, gradients into both."""

import torch
from torch import Tensor, nn

from addnorm.testing.backward import RIGHT, input_gradient_candidates, reciprocal_deviation
from addnorm.testing.kit import (
    ALIKE,
    Answers,
    Checks,
    Function,
    Kit,
    NormOfSum,
    Width,
    all_off_by,
    both,
    finding,
    unit,
)
from addnorm.testing.precision import rounding_bound

# --- the sum --------------------------------------------------------------------------------------


def _pair_at(kit: Kit, dim: int, dtype: torch.dtype) -> nn.Module:
    """The fused addition and norm itself, at a width and in a dtype."""
    assert kit.pair is not None
    pair = kit.pair.at(dim).to(kit.device) if isinstance(kit.pair, Function) else kit.pair
    return kit.typed(pair, dtype)


def _nearest_of(have: Tensor, family: dict[str, Tensor]) -> tuple[str, dict[str, float]]:
    """(the name of the nearest of a family, the distance to each); the right one is its first."""
    off = all_off_by(have, family)
    return min(off, key=lambda k: off[k]), off


def _sum(kit: Kit) -> Answers:
    """Findings on the stream, and on what it is that is normalized, in every dtype in which it
    runs; where the norm by itself is wrong, on the stream in the first of them only."""
    w = kit.first
    for dtype in kit.dtypes:
        if dtype in kit.dead:
            continue
        name = str(dtype).removeprefix("torch.")
        pair = _pair_at(kit, w.dim, dtype)
        x, res = kit.rows(48, w.dim, dtype, 21), kit.rows(48, w.dim, dtype, 22, mean=-1.0)
        originals = (x.clone(), res.clone())
        with torch.no_grad():
            y, stream = both(pair(x, res))
        for what, now, old in (("x", x, originals[0]), ("residual", res, originals[1])):
            if not torch.equal(now, old):
                yield finding(
                    "writes-inputs",
                    "error",
                    {"what": what, "elements": int((now != old).sum())},
                    f"It writes into {what}, which belongs to its caller.",
                    "Allocate the stream; no in-place addition.",
                )
        x, res = originals
        if stream.dtype != dtype:
            yield finding(
                "stream-dtype",
                "error",
                {"residual": name, "stream": str(stream.dtype).removeprefix("torch.")},
                f"The stream of {name} inputs is {stream.dtype}.",
                "Store the stream in the residual's dtype.",
            )
        total = x.double() + res.double()
        family = {
            "x + residual": total,
            "x": x.double(),
            "residual": res.double(),
            "x - residual": x.double() - res.double(),
            "residual - x": res.double() - x.double(),
            "the normed output": y.double(),
            "normed + residual": y.double() + res.double(),
        }
        best, off = _nearest_of(stream, family)
        # One rounding to the dtype; sums in float32 are exact or as near.
        if best != "x + residual" or off[best] > 2 * unit(dtype):
            yield finding(
                "stream-wrong",
                "error",
                {"dtype": name} | {f"distance: {t}": d for t, d in off.items()},
                f"The stream is {best}, off by {off[best]:.2g}, and not x + residual"
                f" (off by {off['x + residual']:.2g}).",
                "stream = x + residual, in float32, rounded once to the residual's dtype.",
            )
        if kit.right and best == "x + residual":
            yield from _of_the_sum(kit, w, pair, x, res, y, stream)
        if not kit.right:
            return


def _of_the_sum(
    kit: Kit, w: Width, pair: nn.Module, x: Tensor, res: Tensor, y: Tensor, stream: Tensor
) -> Answers:
    """Findings if ``y``, which ``pair`` gave with ``stream`` for ``x`` and ``res``, is the norm of
    something else than the stored stream, or of the sum before it was rounded, or is less precise
    than rounding explains."""
    dtype = x.dtype
    outer = NormOfSum(pair)
    weight, bias = kit.affine(w, outer)

    def norm(s: Tensor) -> Tensor:
        return kit.answer(s, weight, bias, dtype)

    total = x.double() + res.double()
    family = {
        "norm(stream)": norm(stream),
        "norm(x + residual), before it is rounded": norm(total),
        "norm(x)": norm(x),
        "norm(residual)": norm(res),
        "norm(x) + residual": norm(x) + res.double(),
        "norm(residual) + x": norm(res) + x.double(),
        "norm(x) + norm(residual)": norm(x) + norm(res),
        "norm(x + residual) + residual": norm(total) + res.double(),
        "norm(x + 2 residual)": norm(total + res.double()),
    }
    best, off = _nearest_of(y, family)
    name = str(dtype).removeprefix("torch.")
    right = ("norm(stream)", "norm(x + residual), before it is rounded")
    if best not in right and off[best] < 0.5 * min(off[r] for r in right):
        yield finding(
            "norm-not-of-sum",
            "error",
            {"dtype": name} | {f"distance: {t}": d for t, d in off.items()},
            f"What comes out is {best}, and not the norm of x + residual.",
            "Normalize the stream: norm(x + residual).",
        )
        return
    bound = rounding_bound(stream, family["norm(stream)"], weight, bias, kit)
    excess = float(((y.double() - family["norm(stream)"]).abs() / bound).max())
    if best == right[1] and dtype in (torch.bfloat16, torch.float16):
        same = [float((y == family[r].to(dtype)).double().mean()) for r in right]
        if same[1] > same[0] + 0.05:  # of the outputs; the two right ones are equal in most
            yield finding(
                "stream-rounding",
                "note",
                {"dtype": name, "equal_to_norm_of_stored": same[0], "of_unrounded": same[1]},
                "The norm is taken of the sum before it is rounded to the stored stream: who reads "
                "the stream later normalizes other numbers, by one rounding.",
                "Normalize the stored stream if recomputation must agree to the bit.",
            )
            return
    if not excess <= 1.0:
        yield finding(
            "precision",
            "error",
            {"dtype": name, "error_over_bound": excess},
            f"With a residual, outputs in {name} are {excess:.3g} times as far off as rounding "
            "explains.",
            "Add in float32, round once, normalize in float32.",
        )


def _sum_gradients(kit: Kit) -> Answers:
    """Findings on the gradients of x and residual that come through the normed output, through the
    stream, and through both at once; none where the norm by itself is wrong."""
    if not kit.right:
        return
    w = kit.first
    dtype = torch.float64 if kit.first.probe.like.dtype == torch.float64 else torch.float32
    pair = _pair_at(kit, w.dim, dtype)
    for p in pair.parameters():
        p.requires_grad_(True)
    weight, _ = kit.affine(w, NormOfSum(pair))
    x = kit.rows(48, w.dim, dtype, 23).requires_grad_()
    res = kit.rows(48, w.dim, dtype, 24, mean=-1.0).requires_grad_()
    dy, ds = kit.rows(48, w.dim, dtype, 25), kit.rows(48, w.dim, dtype, 26, mean=0.2)
    total = (x + res).detach()
    hat = kit.answer(total)
    g = dy.double() if weight is None else dy.double() * weight
    r = reciprocal_deviation(kit, total)
    through = input_gradient_candidates(g, hat, r, kit.kind)[RIGHT].gradient
    bound = 1e-4 if dtype == torch.float32 else 1e-6 + 10 * (w.match.distance if w.match else 0.0)
    for what, a, b in (("normed", 1.0, 0.0), ("stream", 0.0, 1.0), ("both outputs", 1.0, 1.0)):
        y, stream = both(pair(x, res))
        outputs = [(o, k * d) for o, k, d in ((y, a, dy), (stream, b, ds)) if k]
        if not all(o.requires_grad for o, _ in outputs):
            yield finding(
                "gradient-missing",
                "error",
                {"through": what},
                f"No gradient comes through {what}.",
                "Do not detach what is returned.",
            )
            continue
        grads = torch.autograd.grad(
            [o for o, _ in outputs], [x, res], [d for _, d in outputs], allow_unused=True
        )
        right = a * through + b * ds.double()
        for argument, have in zip(("x", "residual"), grads, strict=True):
            family = {
                RIGHT: right,
                "nothing": torch.zeros_like(right),
                "the stream's gradient alone": ds.double(),
                "the normed output's gradient alone": through,
                "the normed output's gradient twice": a * 2 * through + b * ds.double(),
                "the stream's gradient twice": a * through + b * 2 * ds.double(),
            }
            best, off = _nearest_of(torch.zeros_like(right) if have is None else have, family)
            if off[RIGHT] <= bound:
                continue
            missing = what == "both outputs" and best == "the normed output's gradient alone"
            like = best if off[best] < ALIKE else "like none that is known"
            yield finding(
                "gradient-stream-dropped" if missing else f"gradient-{argument}",
                "error",
                {"through": what, "bound": bound} | {f"distance: {t}": d for t, d in off.items()},
                f"Through {what} the gradient of {argument} is off by {off[RIGHT]:.2g}: {like}.",
                "ds = N'(dy) + dstream; x and residual both receive it whole.",
            )


CHECKS: Checks = (("sum", _sum), ("sum-gradient", _sum_gradients))
