"""The family of right and wrong formulas of norms, in float64, and which of them made an output.

A formula is compared at row sizes from 1e-8 to 1e3, so that eps tells where it stands. The nearest
one wins, and its distance is evidence.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

FormulaKind = Literal["layer", "rms", "other"]
"""With the mean subtracted, divided by a length without that, or neither."""


SpreadKind = Literal["variance", "unbiased", "square", "unbiased square", "deviation", "absolute"]
"""How the spread of a row is taken: a mean of squares, by n or n - 1, or of absolute values."""


Form = Literal["inside", "outside", "clamp", "no root", "times", "total", "bare"]
"""How the spread enters: eps inside or outside its root, or as its least value; without a root;
as a factor; a plain sum in its place; or not at all."""

ACCEPT = 2e-2
"""How far (relative, worst row) a formula may be off and still be the one that is meant: five
units of bfloat16, so that a norm computed in bfloat16 is named by its formula and then by that."""

EXACT = 1e-4
"""How far it may be off where nothing is rounded to 16 bits inside: float16 is by 5e-4, bfloat16 by
4e-3, float32 by far less."""


# --- the family of formulas -----------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Formula:
    """``factor * (x or x - mean) / denominator`` over the last axis, right or wrong."""

    name: str
    kind: FormulaKind
    centred: bool
    spread: SpreadKind
    form: Form
    summed: bool = False
    """The spread is a sum over the features, not their mean."""
    mistakes: tuple[str, ...] = ()
    """What is wrong with it, by rule."""

    def numerator(self, x: Tensor) -> Tensor:
        """What is divided by the spread: x, or x without its mean."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def squared_spread(self, x: Tensor) -> Tensor:
        """The square of what it is divided by, without eps, (..., 1)."""
        n = x.shape[-1]
        c = x - x.mean(-1, keepdim=True)
        match self.spread:
            case "variance":
                s = (c * c).mean(-1, keepdim=True)
            case "unbiased":
                s = (c * c).sum(-1, keepdim=True) / max(n - 1, 1)
            case "square":
                s = (x * x).mean(-1, keepdim=True)
            case "unbiased square":
                s = (x * x).sum(-1, keepdim=True) / max(n - 1, 1)
            case "deviation":
                s = c.abs().mean(-1, keepdim=True).square()
            case "absolute":
                s = x.abs().mean(-1, keepdim=True).square()
        return s * n if self.summed else s

    def __call__(self, x: Tensor, eps: float) -> Tensor:
        """The formula of rows x (..., n), of the same shape; with an eps of 0 it may be NaN."""
        num = self.numerator(x)
        if self.form == "bare":
            return num
        if self.form == "total":
            return num / (x.sum(-1, keepdim=True) + eps)
        s = self.squared_spread(x)
        match self.form:
            case "inside":
                return num / (s + eps).sqrt()
            case "outside":
                return num / (s.sqrt() + eps)
            case "clamp":
                return num / s.sqrt().clamp(min=max(eps, 1e-300))
            case "no root":
                return num / (s + eps)
            case "times":
                return num * (s + eps).sqrt()

    def eps_from(self, x: Tensor, y: Tensor) -> Tensor:
        """The eps that makes each row of ``y`` as long as it is, 0 where none does, (...)."""
        num = self.numerator(x)
        s = self.squared_spread(x).squeeze(-1)
        factor = (num * y).sum(-1) / (num * num).sum(-1)
        if self.form == "times":
            eps = factor.square() - s
        else:
            d = factor.reciprocal()
            match self.form:
                case "inside":
                    eps = d.square() - s
                case "outside":
                    eps = d - s.sqrt()
                case "clamp":
                    eps = torch.where(d > s.sqrt() * 1.001, d, 0.0)
                case "no root":
                    eps = d - s
                case "total":
                    eps = d - x.sum(-1)
                case _:
                    eps = torch.zeros_like(d)
        return torch.where(eps.isfinite() & (eps > 0), eps, 0.0)


def _family() -> Iterator[Formula]:
    """All formulas, the right ones first: where several coincide, the first is meant."""
    yield Formula("LayerNorm", "layer", True, "variance", "inside")
    yield Formula("RMSNorm", "rms", False, "square", "inside")
    yield Formula("L2 norm (clamped)", "rms", False, "square", "clamp", summed=True)
    yield Formula("L2 norm (eps inside)", "rms", False, "square", "inside", summed=True)
    yield Formula("L2 norm (eps added)", "rms", False, "square", "outside", summed=True)
    yield Formula("RMSNorm (clamped)", "rms", False, "square", "clamp")
    yield Formula("LayerNorm (clamped)", "layer", True, "variance", "clamp")

    flat, outside = ("norm-not-normalizing",), ("norm-eps-outside-sqrt",)
    unbiased = ("norm-unbiased-variance",)
    out, more = ", eps outside the root", ", unbiased variance"
    yield Formula("LayerNorm" + out, "layer", True, "variance", "outside", False, outside)
    yield Formula("RMSNorm" + out, "rms", False, "square", "outside", False, outside)
    yield Formula("LayerNorm" + more, "layer", True, "unbiased", "inside", False, unbiased)
    both = (*unbiased, *outside)
    yield Formula("LayerNorm" + more + out, "layer", True, "unbiased", "outside", False, both)
    yield Formula(
        "LayerNorm" + more + " (clamped)", "layer", True, "unbiased", "clamp", False, unbiased
    )
    less = "RMSNorm, divided by n - 1"
    yield Formula(less, "rms", False, "unbiased square", "inside", False, unbiased)
    yield Formula(less + out, "rms", False, "unbiased square", "outside", False, both)
    # After those with a root: of two features the mean deviation is the standard deviation.
    yield Formula("mean absolute value", "other", False, "absolute", "outside")
    yield Formula("mean absolute deviation", "other", True, "deviation", "outside")

    around = "centred, but the spread is taken around zero"
    yield Formula(around, "other", True, "square", "inside", False, flat)
    forms: tuple[Form, ...] = ("inside", "outside")
    spreads: tuple[SpreadKind, ...] = ("variance", "unbiased")
    for form in forms:
        for spread in spreads:
            name = f"divided by the deviation ({spread}, eps {form}), mean not subtracted"
            yield Formula(name, "other", False, spread, form, False, flat)
        name = f"LayerNorm with a sum of squares instead of their mean (eps {form})"
        yield Formula(name, "layer", True, "variance", form, True, flat)
    names: dict[SpreadKind, str] = {
        "variance": "variance",
        "unbiased": "unbiased variance",
        "square": "mean square",
    }
    for centred in (True, False):
        for spread, name in names.items():
            for summed in (False, True) if spread != "unbiased" else (False,):
                what = f"the sum behind the {name}" if summed else f"the {name}"
                x = "x - mean" if centred else "x"
                divided, times = f"{x} divided by {what}, no root", f"{x} times the root of {what}"
                yield Formula(divided, "other", centred, spread, "no root", summed, flat)
                yield Formula(times, "other", centred, spread, "times", summed, flat)
    yield Formula("x divided by its sum", "other", False, "square", "total", False, flat)
    yield Formula("only the mean is subtracted", "other", True, "variance", "bare", False, flat)
    yield Formula("x as it came", "other", False, "square", "bare", False, flat)


FAMILY = tuple(_family())


class Match(NamedTuple):
    """The formula that fits best."""

    formula: Formula
    eps: float
    """With which it fits best; 0 where none was needed."""
    factor: float
    """A constant in front, 1 where none was needed; nan where one per feature was."""
    distance: float
    """Relative error of the worst row."""
    runner_up: str
    runner_up_distance: float


def nearest(x: Tensor, y: Tensor, claimed_eps: float | None = None) -> Match:
    """Which formula makes ``y`` from ``x``, both (scales, rows, n) in float64, small scales first.

    First without a factor, then with a constant one, then with one per feature: a norm is excused
    by a factor only where nothing fits without. ``claimed_eps`` is tried beside those that are read
    off the rows; None: nobody claims one.
    """
    best: Match | None = None
    for mode in ("none", "constant", "feature"):
        if mode == "feature" and x.shape[0] * x.shape[1] < 8:
            break  # of few rows, a factor for each feature would explain anything
        match = _nearest(x, y, claimed_eps, mode)
        if best is None or match.distance < 0.5 * best.distance:
            best = match
        if best.distance < 1e-3:
            break  # near enough: a factor has nothing to explain
    assert best is not None
    return best


def _nearest(x: Tensor, y: Tensor, claimed_eps: float | None, mode: str) -> Match:
    """``nearest`` with one kind of factor in front, the ``mode``: "none", "constant" or
    "feature"."""
    fits: list[tuple[float, Formula, float, float]] = []  # (distance, formula, eps, factor)
    for formula in FAMILY:
        factor: Tensor | float = 1.0
        if mode != "none":
            # From the largest rows, where eps has no say.
            big = formula(x[-2:], 0.0)
            over = (0, 1, 2) if mode == "constant" else (0, 1)
            weight = (big * big).sum(-1, keepdim=True).clamp(min=1e-300)  # rows count alike
            factor = (y[-2:] * big / weight).sum(over) / (big * big / weight).sum(over)
            if not bool(torch.as_tensor(factor).isfinite().all()):
                continue
        bare = y / factor
        candidates = {0.0}
        if formula.form != "bare":
            # Where rows are small eps is seen best; to five digits the readings are often one.
            read = formula.eps_from(x[:6], bare[:6]).median(-1).values
            candidates |= set({f"{float(e):.4e}": float(e) for e in read}.values())
            if claimed_eps is not None:
                candidates.add(claimed_eps)
        for eps in candidates:
            d = _distance(bare, formula(x, eps))
            number = float("nan") if mode == "feature" else float(factor)
            fits.append((d, formula, eps, number))
    least = min(t[0] for t in fits)
    # The first within rounding of the best: where formulas coincide, the right one is meant.
    bound = 4.0 * least + 1e-9
    order = {f.name: i for i, f in enumerate(FAMILY)}
    best = min((t for t in fits if t[0] <= bound), key=lambda t: (order[t[1].name], t[0]))
    others = [t for t in fits if t[1] is not best[1]]
    second = min(others, key=lambda t: t[0])
    return Match(best[1], best[2], best[3], best[0], second[1].name, second[0])


def _distance(y: Tensor, c: Tensor) -> float:
    """The relative difference of the worst row; infinite where something is NaN."""
    off = (y - c).norm(dim=-1)
    size = torch.maximum(y.norm(dim=-1), c.norm(dim=-1)).clamp(min=1e-300)
    worst = (off / size).max()
    return float(worst) if bool(worst.isfinite()) else math.inf
