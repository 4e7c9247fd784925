"""How precisely it computes, against float64: by dtype, at large means, and where it casts."""

import torch
from torch import Tensor

from addnorm.anatomy.norms.probe import statistics_error
from addnorm.linting.findings import Unknown
from addnorm.testing.kit import Answers, Checks, Kit, Width, bare_at, finding, off_by, unit
from addnorm.words import error_in_a_line


def _precision(kit: Kit) -> Answers:
    """Findings on the error of the outputs, in every dtype and at every width; Unknown where the
    formula is another."""
    if not kit.right:
        yield Unknown(
            rule="precision", module="", why="it is another function: precision has no meaning"
        )
        return
    for dtype in kit.dtypes:
        for w in kit.measured:
            if w.dim > 1:
                yield from _precision_at(kit, w, dtype)


# Precision ----------------------------------------------------------------------------------------


def rounding_bound(
    x: Tensor, ref: Tensor, weight: Tensor | None, bias: Tensor | None, kit: Kit
) -> Tensor:
    """How far an output may be off, element by element.

    With u the unit of x's dtype and v that of float32 (float64's for float64), n features:
    rounding the output costs u |y|; rounding xhat before the weight (Llama's order) and the product
    before the bias cost u |w xhat| each; a sum of n terms, added one after the other in the worst
    case, is off by n v relative to the sum of their sizes: for the mean that is n v mean|x|, for
    the mean square n v; ten more roundings of subtraction, root and product. The factor 2 covers
    the second-order terms.
    """
    u = unit(x.dtype)
    v = unit(torch.float64 if x.dtype == torch.float64 else torch.float32)
    n = x.shape[-1]
    xd = x.double()
    hat = kit.answer(x).abs()
    gain = torch.ones_like(hat) if weight is None else weight.abs().expand_as(hat)
    centred = xd - xd.mean(-1, keepdim=True) if kit.kind == "layer" else xd
    root = ((centred * centred).mean(-1, keepdim=True) + kit.eps_in(x.dtype)).sqrt()
    mean = xd.abs().mean(-1, keepdim=True) / root if kit.kind == "layer" else 0.0
    statistics = (n + 10) * v * gain * (hat + mean)
    if kit.kind == "layer":  # the error of the mean, squared into the variance
        statistics = statistics + gain * hat * ((n + 10) * v * mean) ** 2
    outputs = u * (ref.abs() + 2 * gain * hat)
    tiny = torch.finfo(x.dtype).tiny
    return 2 * (outputs + statistics) + 2 * tiny


def _precision_at(kit: Kit, w: Width, dtype: torch.dtype) -> Answers:
    """The error at one width in one dtype. A dtype in which the norm does not run goes into
    ``kit.dead``, and later checks leave it out."""
    module = kit.typed(w.module, dtype)
    name = str(dtype).removeprefix("torch.")
    x = kit.rows(64, w.dim, dtype, 5)
    try:
        with torch.no_grad():
            y = module(x)
    except Exception as e:
        kit.dead.add(dtype)
        yield Unknown(
            rule="precision",
            module="",
            why=f"it does not run in {name}: {error_in_a_line(e)}",
        )
        return
    if y.dtype != dtype:
        yield finding(
            "output-dtype",
            "error",
            {"input": name, "output": str(y.dtype).removeprefix("torch.")},
            f"The output of {name} inputs (and {name} parameters) is {y.dtype}.",
            "Cast the result back: .to(x.dtype).",
        )
    weight, bias = kit.affine(w, module)
    ref = kit.answer(x, weight, bias)
    low = dtype in (torch.bfloat16, torch.float16)
    shared = _shared_error(kit, w, dtype) if low and w.dim >= 16 else None
    u = unit(dtype)
    # A rounded statistic moves whole rows, by u / sqrt(3) and more; float32 ones by next to 0.
    if shared is not None and shared > 0.25 * u:
        emulated = _rounded_statistics_error(kit, w, dtype)
        yield finding(
            "norm-low-precision",
            "error",
            {
                "dtype": name,
                "dim": w.dim,
                "row_error": shared,
                "row_error_of_statistics_in_this_dtype": emulated,
                "row_error_of_float32_statistics": unit(torch.float32),
            },
            f"Statistics in {name}: whole rows are off by {shared:.2g}, as with mean and variance "
            f"rounded to {name} ({emulated:.2g}).",
            "Compute mean and variance in float32 and cast the result back.",
        )
        return
    excess = float(((y.double() - ref).abs() / rounding_bound(x, ref, weight, bias, kit)).max())
    if not excess <= 1.0:  # NaN as well
        yield finding(
            "precision",
            "error",
            {"dtype": name, "dim": w.dim, "error_over_bound": excess, "relative": off_by(y, ref)},
            f"In {name} an output is {excess:.3g} times as far from the float64 reference as "
            "rounding explains.",
            "Keep statistics and products in float32 until the last cast.",
        )
    if low and weight is not None:
        yield from _cast_order(kit, x, y, weight, bias, dtype)


def _shared_error(kit: Kit, w: Width, dtype: torch.dtype) -> float | None:
    """By how much rows as a whole are off, see ``statistics_error``; None where weight and bias
    cannot be taken off."""
    if not w.probe.is_bare:
        return None
    module = bare_at(kit, w, dtype)
    x = kit.rows(256, w.dim, dtype, 6, mean=0.3)
    with torch.no_grad():
        y = module(x).double()
    ref = kit.answer(x).to(dtype).double()
    return statistics_error(y, ref)


def _rounded_statistics_error(kit: Kit, w: Width, dtype: torch.dtype) -> float:
    """What ``_shared_error`` is, on the same rows, for a norm that rounds mean and variance to the
    dtype."""
    x = kit.rows(256, w.dim, dtype, 6, mean=0.3)
    xd = x.double()
    if kit.kind == "layer":
        xd = xd - xd.mean(-1, keepdim=True).to(dtype).double()
    square = (xd * xd).mean(-1, keepdim=True).to(dtype).double()
    y = xd * (square + kit.eps_in(dtype)).rsqrt().to(dtype).double()
    ref = kit.answer(x)
    return statistics_error(y.to(dtype).double(), ref.to(dtype).double())


def _cast_order(
    kit: Kit, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Answers:
    """A note if ``y``, for ``x`` in a 16-bit dtype, are the outputs of a norm that rounds before it
    multiplies by the weight."""
    hat = kit.answer(x)
    zero = 0.0 if bias is None else bias
    once = (hat * weight + zero).to(dtype)
    first = (hat.to(dtype).double() * weight).to(dtype)
    twice = first if bias is None else (first.double() + zero).to(dtype)
    equal_shares = {
        "rounded once, at the end": float((y == once).double().mean()),
        "rounded before the weight": float((y == twice).double().mean()),
    }
    # A product of two 8-bit numbers is exact in float32: all are equal under one of the orders but
    # for the ties that float32 statistics decide otherwise.
    if equal_shares["rounded before the weight"] > 0.98 > equal_shares["rounded once, at the end"]:
        yield finding(
            "cast-order",
            "note",
            {"dtype": str(dtype).removeprefix("torch."), **equal_shares},
            "The normalized value is cast back before the weight is multiplied (Llama's and T5's "
            "order; torch casts once, at the end): up to one unit in the last place.",
            "Nothing, if it is for weights that were trained so.",
        )


def _large_mean(kit: Kit) -> Answers:
    """Findings on rows of deviation 1 around 1000 and 10000 in float32, where a difference of
    squares has no digits; one at each width at most, for LayerNorm alone."""
    if not kit.right or kit.kind != "layer" or torch.float32 not in kit.dtypes:
        return
    for w in kit.measured:
        if w.dim < 16:
            continue
        module = kit.typed(w.module, torch.float32)
        weight, bias = kit.affine(w, module)
        for far in (1e3, 1e4):
            x = kit.rows(32, w.dim, torch.float32, 7, mean=far)
            with torch.no_grad():
                y = module(x)
            ref = kit.answer(x, weight, bias)
            error = off_by(y, ref)
            # The mean is off by far * v, once; a difference of squares by far^2 * v: the bound is
            # half way on a logarithmic scale.
            v = unit(torch.float32)
            if error > far**1.5 * v:
                yield finding(
                    "cancellation",
                    "error",
                    {
                        "mean_over_deviation": far,
                        "dim": w.dim,
                        "relative_error": error,
                        "of_two_passes": far * v,
                        "of_a_difference_of_squares": far**2 * v,
                    },
                    f"Rows around {far:g} of deviation 1 come out wrong by {error:.2g}, as with "
                    "mean(x^2) - mean(x)^2 in float32.",
                    "Subtract the mean first, then square (or use Welford's method).",
                )
                break


CHECKS: Checks = (("precision", _precision), ("large-mean", _large_mean))
