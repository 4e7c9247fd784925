"""Norms: found by feeding them inputs, and judged by the formula that they follow.

A norm is read in three steps, each a measurement. Which parameters scale its output and which shift
it: by changing them, so that what remains is the bare normalization whatever the weights hold.
Which elements share statistics: by changing one input. And by which formula: the bare output is
compared with a family of right and wrong formulas evaluated in float64, at row sizes from 1e-8 to
1e3, so that eps tells where it stands. The nearest formula wins and its distance is evidence.
"""

import copy
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from addnorm.linting.report import Finding, Severity, Unknown
from addnorm.linting.subject import Check, Inputs, Said, Subject

Kind = Literal["layer", "rms", "other"]
Spread = Literal["variance", "unbiased", "square", "unbiased square", "deviation", "absolute"]
Form = Literal["inside", "outside", "clamp", "no root", "times", "total", "bare"]

SCALES = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 1e3)
"""The sizes of probed rows: from where any eps rules to where none is seen."""

ACCEPT = 2e-2
"""How far (relative, worst row) a formula may be off and still be the one that is meant: five
units of bfloat16, so that a norm computed in bfloat16 is named by its formula and then by that."""


# --- the family of formulas -----------------------------------------------------------------------


@dataclass(frozen=True)
class Formula:
    """``factor * (x or x - mean) / denominator`` over the last axis, right or wrong."""

    name: str
    kind: Kind
    centred: bool
    spread: Spread
    form: Form
    summed: bool = False
    """The spread is a sum over the features, not their mean."""
    mistakes: tuple[str, ...] = ()
    """What is wrong with it, by rule."""

    def numerator(self, x: Tensor) -> Tensor:
        """What is divided."""
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
    spreads: tuple[Spread, ...] = ("variance", "unbiased")
    for form in forms:
        for spread in spreads:
            told = f"divided by the deviation ({spread}, eps {form}), mean not subtracted"
            yield Formula(told, "other", False, spread, form, False, flat)
        told = f"LayerNorm with a sum of squares instead of their mean (eps {form})"
        yield Formula(told, "layer", True, "variance", form, True, flat)
    names: dict[Spread, str] = {
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
    factor: float
    """A constant in front, 1 where none was needed; nan where one per feature was."""
    distance: float
    """Relative error of the worst row."""
    runner_up: str
    runner_up_distance: float


def nearest(x: Tensor, y: Tensor, claimed_eps: float | None = None) -> Match:
    """Which formula makes ``y`` from ``x``, both (scales, rows, n) in float64.

    First without a factor, then with a constant one, then with one per feature: a norm is excused
    by a factor only where nothing fits without.
    """
    best: Match | None = None
    for mode in ("none", "constant", "feature"):
        if mode == "feature" and x.shape[0] * x.shape[1] < 8:
            break
        found = _nearest(x, y, claimed_eps, mode)
        if best is None or found.distance < 0.5 * best.distance:
            best = found
        if best.distance < 1e-3:
            break
    assert best is not None
    return best


def _nearest(x: Tensor, y: Tensor, claimed_eps: float | None, mode: str) -> Match:
    tried: list[tuple[float, Formula, float, float]] = []
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
            tried.append((d, formula, eps, number))
    least = min(t[0] for t in tried)
    # The first within rounding of the best: where formulas coincide, the right one is meant.
    bound = 4.0 * least + 1e-9
    order = {f.name: i for i, f in enumerate(FAMILY)}
    chosen = min((t for t in tried if t[0] <= bound), key=lambda t: (order[t[1].name], t[0]))
    others = [t for t in tried if t[1] is not chosen[1]]
    second = min(others, key=lambda t: t[0])
    return Match(chosen[1], chosen[2], chosen[3], chosen[0], second[1].name, second[0])


def _distance(y: Tensor, c: Tensor) -> float:
    """The relative difference of the worst row."""
    off = (y - c).norm(dim=-1)
    size = torch.maximum(y.norm(dim=-1), c.norm(dim=-1)).clamp(min=1e-300)
    worst = (off / size).max()
    return float(worst) if bool(worst.isfinite()) else math.inf


# --- calling a module as the model calls it -----------------------------------------------------


@dataclass(frozen=True)
class Call:
    """How a module was called: its arguments with the place of the main tensor."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: int | str
    shape: tuple[int, ...]

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> "Call | None":
        """The call, if its first floating-point tensor comes back in the same shape."""
        places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        tensors = [(p, v) for p, v in places if isinstance(v, Tensor) and v.is_floating_point()]
        result = first_tensor(out)
        if not tensors or result is None:
            return None
        place, x = tensors[0]
        if x.dim() < 1 or x.shape != result.shape or not result.is_floating_point():
            return None
        kept = tuple(v.detach() if isinstance(v, Tensor) else v for v in args)
        named = {k: v.detach() if isinstance(v, Tensor) else v for k, v in kwargs.items()}
        return Call(kept, named, place, tuple(x.shape))

    def __call__(self, module: nn.Module, x: Tensor, others: float = 0.0) -> Tensor:
        """``module`` on ``x``; further tensors of the same shape (what is added, a gate) become
        ``others``, and what broadcasts otherwise is as it was."""

        def put(place: int | str, value: Any) -> Any:
            if place == self.place:
                return x
            if not isinstance(value, Tensor):
                return value
            if value.is_floating_point():
                if tuple(value.shape) == self.shape:
                    return torch.full_like(x, others)
                return value.to(x.dtype)
            return value

        args = [put(i, v) for i, v in enumerate(self.args)]
        kwargs = {k: put(k, v) for k, v in self.kwargs.items()}
        out = first_tensor(module(*args, **kwargs))
        if out is None or out.shape != x.shape:
            raise ValueError("the output is not of the input's shape")
        return out

    @property
    def lonely(self) -> bool:
        """The input is the only tensor: any shape may be asked."""
        values = [*self.args, *self.kwargs.values()]
        return sum(isinstance(v, Tensor) for v in values) == 1


def first_tensor(out: Any) -> Tensor | None:
    """The first tensor of an output."""
    for leaf in torch.utils._pytree.tree_leaves(out):
        if isinstance(leaf, Tensor):
            return leaf
    return None


@contextmanager
def _quiet(seed: int = 0) -> Iterator[None]:
    """A fixed seed inside, the caller's state outside; what a module warns of is not our answer."""
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        yield


def _normal(shape: Sequence[int], like: Tensor, seed: int, offset: float = 0.7) -> Tensor:
    """Standard normal rows, each shifted by its own multiple of ``offset``."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=g, dtype=torch.float64)
    shift = torch.randn(*shape[:-1], 1, generator=g, dtype=torch.float64)
    return (x + offset * (shift.sign() + 0.3 * shift)).to(like)


# --- one module under the probes ------------------------------------------------------------------


class Probe:
    """A module, called as its model calls it, with its affine part taken off."""

    def __init__(self, module: nn.Module, call: Call):
        """Raises whatever the module raises where it cannot be called."""
        self.call = call
        self.claimed_eps = claimed_eps(module)
        self.module, self.like = _runnable(module, call)
        self.others = 0.0
        self.shape = self._wider()
        self.feature_axis: int | None = None
        with _quiet(), torch.no_grad():
            x = self.normal(1)
            if not bool(self.raw(x).abs().sum() > 0):
                self.others = 1.0
            self._separate()

    def normal(self, seed: int, offset: float = 0.7) -> Tensor:
        """Random rows in the shape that the module sees."""
        return _normal(self.shape, self.like, seed, offset)

    def raw(self, x: Tensor) -> Tensor:
        """The module's output, with its own weights."""
        return self.call(self.module, x, self.others)

    def _wider(self) -> tuple[int, ...]:
        """The shape seen, with leading axes of less than four made four where the module takes
        that: over one element no statistics can be told from none, over two all are +1 and -1."""
        seen = self.call.shape
        wide = tuple(max(4, s) if i < len(seen) - 1 else s for i, s in enumerate(seen))
        if wide == seen or not self.call.lonely:
            return seen
        try:
            with _quiet(), torch.no_grad():
                self.call(self.module, _normal(wide, self.like, 0))
        except Exception:
            return seen
        return wide

    def _separate(self) -> None:
        """Which parameter scales and which shifts, by moving them; then: gain 1, bias 0.

        The module is affine in both, so that two steps of equal length move the output alike.
        """
        self.gain: nn.Parameter | Tensor | None = None
        self.shifts: list[Tensor] = []
        self.offset = 0.0
        self.affine_known = True
        x, other = self.normal(2), 1.7 * self.normal(3)
        held = list(self.module.named_parameters())
        gains: list[Tensor] = []
        for _, p in held:
            if not p.is_floating_point() or not p.numel():
                continue
            before = p.detach().clone()
            y0, z0 = self.raw(x), self.raw(other)
            p.data.add_(1.0)
            y1, z1 = self.raw(x), self.raw(other)
            p.data.add_(1.0)
            y2 = self.raw(x)
            p.data.copy_(before)
            step, step2, step_other = y1 - y0, y2 - y1, z1 - z0
            size = float(step.norm())
            if size == 0 or not math.isfinite(size):
                continue
            linear = float((step2 - step).norm()) < 1e-4 * size + 1e-5 * float(y0.norm())
            if not linear:
                continue
            if float((step - step_other).norm()) < 1e-4 * size:
                self.shifts.append(p)
            else:
                gains.append(p)
        for b in self.shifts:
            b.data.zero_()
        if gains:
            self.gain = gains[0]
            self.feature_axis = self._axis_of(self.gain, x)
            self._trivial_gain(x)
        elif self.shifts:
            self.feature_axis = self._axis_of(self.shifts[0], x)
        # A parameter that enters in another way: the factor in front is not to be had.
        odd = {id(p) for _, p in held} - {id(p) for p in (*gains, *self.shifts)}
        self.affine_known = not odd

    def _axis_of(self, p: Tensor, x: Tensor) -> int | None:
        """The axis along which a parameter's entries lie, from the end."""
        if p.numel() == 1:
            return None
        before = p.detach().clone()
        y0 = self.raw(x)
        p.data.view(-1)[-1] += 1.0
        moved = (self.raw(x) - y0).abs() > 0
        p.data.copy_(before)
        axes = [
            a - x.dim()
            for a in range(x.dim())
            if x.shape[a] > 1
            and int(moved.any(dim=tuple(i for i in range(x.dim()) if i != a)).sum()) == 1
        ]
        return axes[-1] if axes else None

    def _trivial_gain(self, x: Tensor) -> None:
        """Set the gain so that it multiplies by 1, if it does so as w or as 1 + w."""
        assert self.gain is not None
        before = self.gain.detach().clone()
        self.gain.data.fill_(0.0)
        at0 = self.raw(x)
        self.gain.data.fill_(1.0)
        at1 = self.raw(x)
        unit = at1 - at0
        ratio = float((at0 * unit).sum() / (unit * unit).sum())
        fits = float((at0 - ratio * unit).norm()) <= 1e-4 * float(unit.norm())
        if fits and min(abs(ratio), abs(ratio - 1.0)) < 1e-4:
            self.offset = float(round(ratio))
            self.gain.data.fill_(1.0 - self.offset)
            self.bare_by_setting = True
        else:
            self.gain.data.copy_(before)
            self.bare_by_setting = False

    def bare(self, x: Tensor) -> Tensor:
        """The normalization alone."""
        if self.gain is None or self.bare_by_setting:
            return self.raw(x)
        before = self.gain.detach().clone()
        self.gain.data.fill_(1.0)
        one = self.raw(x)
        self.gain.data.fill_(0.0)
        zero = self.raw(x)
        self.gain.data.copy_(before)
        return one - zero

    @property
    def is_bare(self) -> bool:
        """The module, as it now stands, multiplies by 1 and adds 0."""
        return self.affine_known and (self.gain is None or self.bare_by_setting)

    # Who shares statistics ------------------------------------------------------------------------

    def reach(self, train: bool = False) -> "Reach":
        """The axes along which a change of one element is felt."""
        shape = self.shape
        x = self.normal(4)
        sizes: dict[int, int] = {}
        middle, first = tuple(s // 2 for s in shape), (0,) * len(shape)
        # Both ways: a row of two is +1 and -1 unless the larger of them changes.
        for at, by in ((middle, 30.0), (middle, -30.0), (first, -30.0), (first, 30.0)):
            moved = x.clone()
            moved[at] = moved[at] + by
            y0, y1 = self._fresh(x, train), self._fresh(moved, train)
            touched = ((y1 - y0).abs() > 1e-7 * y0.abs().max().clamp(min=1e-30)).cpu()
            for a in range(len(shape)):
                rest = tuple(i for i in range(len(shape)) if i != a)
                along = touched.any(dim=rest) if rest else touched
                along[at[a]] = False
                if bool(along.any()):
                    axis = a - len(shape)
                    sizes[axis] = max(sizes.get(axis, 0), int(along.sum()) + 1)
        axes = tuple(sorted(sizes))
        return Reach(axes, tuple(sizes[a] for a in axes))

    def _fresh(self, x: Tensor, train: bool) -> Tensor:
        # The same seed each time: what is random inside is the same for all inputs.
        with _quiet(), torch.no_grad():
            if not train:
                return self.bare(x)
            return self.call(copy.deepcopy(self.module).train(), x, self.others)

    # Which formula --------------------------------------------------------------------------------

    def rows(self, x: Tensor, reach: "Reach", most: int = 16) -> Tensor:
        """(rows, n): the elements that share statistics, one set a row."""
        axes = [a % x.dim() for a in reach.axes]
        for i, (a, size) in enumerate(zip(axes, reach.sizes, strict=True)):
            if size < x.shape[a] and size > 0 and x.shape[a] % size == 0:  # groups along this axis
                x = x.unflatten(a, (x.shape[a] // size, size))
                axes = [b + 1 if b >= a and j >= i else b for j, b in enumerate(axes)]
        rest = [i for i in range(x.dim()) if i not in axes]
        flat = x.permute(*rest, *axes).reshape(-1, math.prod(x.shape[a] for a in axes))
        few = max(4, min(most, 4096 // flat.shape[1]))
        return flat[:: max(1, len(flat) // few)][:few]

    def match(self, reach: "Reach", seen: dict[Any, Match] | None = None) -> Match:
        """The formula; ``seen`` remembers answers, for a model's norms are mostly alike."""
        xs, ys = [], []
        with torch.no_grad():
            for i, scale in enumerate(SCALES):
                x = scale * self.normal(10 + i)
                xs.append(self.rows(x, reach).double().cpu())
                ys.append(self.rows(self.bare(x), reach).double().cpu())
        x, y = torch.stack(xs), torch.stack(ys)
        key = (self.shape, reach, self.like.dtype, self.claimed_eps, y.numpy().tobytes())
        if seen is None:
            return self._match(x, y)
        if key not in seen:
            seen[key] = self._match(x, y)
        return seen[key]

    def _match(self, x: Tensor, y: Tensor) -> Match:
        found = nearest(x, y, self.claimed_eps)
        if found.distance > ACCEPT:
            # Something inside of 16 bits: rows that are neither tiny nor huge still tell.
            usual = nearest(x[5:9], y[5:9], self.claimed_eps)
            if usual.distance < ACCEPT and usual.distance > 1e-5:
                return usual
        return found

    def idle(self) -> bool:
        """Whether it gives back what it gets and has nothing to give it with."""
        x = self.normal(9)
        with torch.no_grad():
            return not any(True for _ in self.module.parameters()) and torch.equal(self.raw(x), x)

    def invariant(self) -> bool:
        """Whether the output keeps its size where the input's changes, and is not constant."""
        with torch.no_grad():
            x = self.normal(5)
            y = self.bare(x)
            size = float(y.norm())
            if not math.isfinite(size) or size == 0:
                return False
            for c in (0.1, 10.0, 1000.0):
                if float((self.bare(c * x) - y).norm()) > 2e-2 * size:
                    return False
            return float((self.bare(self.normal(6)) - y).norm()) > 1e-2 * size


class Reach(NamedTuple):
    """Who shares statistics with one element."""

    axes: tuple[int, ...]
    """From the end, sorted; none: every element is on its own."""
    sizes: tuple[int, ...]
    """How many elements along each of them."""


def _runnable(module: nn.Module, call: Call) -> tuple[nn.Module, Tensor]:
    """A copy in float64 if it runs in that, otherwise float32, and a tensor of its kind."""
    held = next((t for t in (*module.parameters(), *module.buffers())), None)
    device = held.device if held is not None else torch.device("cpu")
    error: Exception | None = None
    for dtype in (torch.float64, torch.float32):
        try:
            made = copy.deepcopy(module).to(dtype).eval()
            for p in made.parameters():
                p.requires_grad_(True)
            like = torch.zeros((), dtype=dtype, device=device)
            with _quiet(), torch.no_grad():
                out = call(made, _normal(call.shape, like, 0))
            if out.is_floating_point():
                return made, like
        except Exception as e:
            error = e
    raise error if error is not None else ValueError("the output is not floating point")


def claimed_eps(module: nn.Module) -> float | None:
    """The eps that a module says it has."""
    for name in (
        "eps",
        "epsilon",
        "variance_epsilon",
        "norm_eps",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "rms_norm_eps",
    ):
        value = getattr(module, name, None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


# --- finding them ---------------------------------------------------------------------------------

_TORCH_NORMS = tuple(
    c
    for c in (
        nn.LayerNorm,
        getattr(nn, "RMSNorm", None),
        nn.GroupNorm,
        nn.modules.batchnorm._NormBase,
        nn.LocalResponseNorm,
    )
    if c is not None
)
_WORD = re.compile(r"norm|(?<![a-z])ln(?![a-z])|layernorm|rms")


@dataclass(frozen=True)
class FoundNorm:
    """A module that normalizes, or that its author calls a norm."""

    path: str
    module: nn.Module = field(repr=False, compare=False)
    kind: Kind
    """"layer": the mean is subtracted; "rms": divided by its length, up to a constant (RMSNorm, L2
    norm, ScaleNorm); "other": all else, such as statistics over several axes or pointwise ones."""
    dim: int
    """How many features."""
    axis: int
    """Where they are, from the end: -1 is the last axis."""
    normalizes: bool
    """Measured: the output's size does not follow the input's."""
    claims: tuple[str, ...] = ()
    """Why it is taken for what it is not measured to be: "class", "attribute"."""
    formula: str = ""
    """The nearest formula."""
    eps: float = 0.0
    """The eps that it was measured to have."""
    reach: tuple[int, ...] = ()
    """The axes that share statistics, from the end."""


@dataclass(frozen=True)
class _Known:
    """What was measured of one module."""

    path: str
    call: Call
    claims: tuple[str, ...]
    probe: Probe | None
    reach: Reach
    match: Match | None
    normalizes: bool
    saturates: bool
    failed: str = ""


@dataclass
class _Measured:
    inputs: Inputs
    norms: list[_Known]
    longer: dict[str, tuple[int, ...]] | None = None
    """The shapes with two batches in one, once asked for."""
    shorter: dict[str, tuple[int, ...]] | None = None
    """The shapes with one position less."""


_MEASURED: "WeakKeyDictionary[nn.Module, _Measured]" = WeakKeyDictionary()


def find_norms(subject: Subject) -> list[FoundNorm]:
    """The norms of a model, the innermost where one holds another, in the order of its modules.

    A module counts if it is called, gives back the shape of its input, has no parameter that does
    not broadcast over it, and either normalizes by measurement or is called a norm by its author.
    """
    modules = dict(subject.model.named_modules())
    found = []
    for k in _measure(subject):
        axis = _feature_axis(subject, k)
        kind: Kind = "other"
        if k.match is not None and _over_features(subject, k) and k.match.distance < ACCEPT:
            kind = k.match.formula.kind
        found.append(
            FoundNorm(
                path=k.path,
                module=modules[k.path],
                kind=kind,
                dim=k.call.shape[axis],
                axis=axis,
                normalizes=k.normalizes,
                claims=k.claims,
                formula="" if k.match is None else k.match.formula.name,
                eps=0.0 if k.match is None else k.match.eps,
                reach=k.reach.axes,
            )
        )
    return found


def _feature_axis(subject: Subject, k: _Known) -> int:
    """Where the parameters lie; without them the axis that is neither batch nor sequence, where
    that could be seen; else the last."""
    if k.probe is not None and k.probe.feature_axis is not None:
        return k.probe.feature_axis
    batch, time = _batch_and_time(subject, k.path)
    if batch is not None and time is not None:
        left = [a for a in range(-len(k.call.shape), 0) if a not in (batch, time)]
        if len(k.reach.axes) == 1 and k.reach.axes[0] in left:
            return k.reach.axes[0]
        if left:
            return left[-1]
    return -1


def _measure(subject: Subject) -> list[_Known]:
    return _measured_of(subject).norms


def _measured_of(subject: Subject) -> _Measured:
    held = _MEASURED.get(subject.model)
    if held is None or held.inputs is not subject.inputs:
        with _quiet():
            held = _Measured(subject.inputs, list(_measured(subject.model, subject.inputs)))
        _MEASURED[subject.model] = held
    return held


def calls_of(model: nn.Module, inputs: Inputs) -> dict[str, Call]:
    """How each module is first called, where it gives back the shape of its input."""
    calls: dict[str, Call] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            if path not in calls:
                call = Call.of(args, kwargs, out)
                if call is not None:
                    calls[path] = call

        return hook

    handles = [
        m.register_forward_hook(note(path), with_kwargs=True) for path, m in model.named_modules()
    ]
    try:
        with torch.no_grad():
            inputs.call(model)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _measured(model: nn.Module, inputs: Inputs) -> Iterator[_Known]:
    calls = calls_of(model, inputs)
    modules = dict(model.named_modules())
    norms: dict[str, _Known] = {}
    seen: dict[Any, Match] = {}
    dull: set[Any] = set()  # what was measured not to be a norm, by class and shape
    for path in sorted(calls, key=lambda p: (-p.count(".") - (p != ""), p)):
        module, call = modules[path], calls[path]
        below = f"{path}." if path else ""
        if isinstance(module, nn.Identity) or any(p.startswith(below) for p in norms):
            continue
        if "parametrizations" in path.split(".") or not _broadcasts(module, call.shape):
            continue
        claims = _claims(path, module)
        has_state = any(True for _ in module.parameters()) or any(True for _ in module.buffers())
        key = None if claims or has_state else (type(module), call.shape, repr(module))
        if key in dull:
            continue
        known = _look(path, module, call, claims, seen)
        if known is not None:
            norms[path] = known
        elif key is not None:
            dull.add(key)
    yield from (norms[path] for path in modules if path in norms)


def _broadcasts(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether every parameter could be a factor or a shift of a tensor of this shape."""
    for p in module.parameters():
        lengths = [s for s in p.shape if s != 1]
        if not lengths:
            continue
        if len(lengths) == 1 and lengths[0] in shape:
            continue
        if p.dim() > len(shape) or any(
            s not in (1, t) for s, t in zip(p.shape, shape[len(shape) - p.dim() :], strict=True)
        ):
            return False
    return True


def _claims(path: str, module: nn.Module) -> tuple[str, ...]:
    """Who calls it a norm."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(module).__name__).lower()
    here = path.rpartition(".")[2].lower()
    if here.isdecimal():  # an entry of a list is called as the list is
        here = path.rpartition(".")[0].rpartition(".")[2].lower()
    by_class = isinstance(module, _TORCH_NORMS) or (
        _WORD.search(name) is not None and not isinstance(module, nn.Dropout)
    )
    # A library's own layer under such a name is what its class says: Dropout after a norm, GELU.
    own = type(module).__module__.startswith("torch.nn.")
    by_attribute = _WORD.search(here) is not None and not own and not _container(module)
    return tuple(n for n, yes in (("class", by_class), ("attribute", by_attribute)) if yes)


def _container(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential)


def _look(
    path: str, module: nn.Module, call: Call, claims: tuple[str, ...], seen: dict[Any, Match]
) -> _Known | None:
    try:
        probe = Probe(module, call)
        with _quiet():
            reach = probe.reach()
            if not reach.axes:
                reach = Reach((), ())
            normalizes = bool(reach.axes) and probe.invariant()
            if not normalizes and not claims:
                return None
            if claims == ("attribute",) and probe.idle():
                return None  # a norm that was switched off
            match = probe.match(reach, seen) if reach.axes else None
            if not claims and match is not None and _no_norm(match):
                return None
            return _Known(path, call, claims, probe, reach, match, normalizes, _saturates(probe))
    except Exception as e:
        if not claims:
            return None
        why = f"{type(e).__name__}: {e}".splitlines()[0][:200]
        return _Known(path, call, claims, None, Reach((), ()), None, False, False, why)


def _no_norm(match: Match) -> bool:
    """What nobody calls a norm is none if it follows no norm's formula (shares of a sum, say)."""
    return match.distance >= ACCEPT or "norm-not-normalizing" in match.formula.mistakes


def _saturates(probe: Probe) -> bool:
    """Whether the output is bounded though the input is not, as tanh and erf are."""
    with torch.no_grad():
        x = probe.normal(7, offset=0.0)
        small, large = probe.bare(10.0 * x).abs().max(), probe.bare(1e4 * x).abs().max()
    return bool(large < 5.0 * small)


# --- the axes of the model ------------------------------------------------------------------------


def _batch_and_time(subject: Subject, path: str) -> tuple[int | None, int | None]:
    """The axes (from the end) that grow with the batch and shrink with the sequence, measured."""
    held = _measured_of(subject)
    if held.longer is None or held.shorter is None:
        tensors = subject.inputs.tensors()
        main = next((t for t in tensors.values() if t.dim()), None)
        batch = 0 if main is None else main.shape[0]
        length = 0 if main is None or main.dim() < 2 else main.shape[1]
        longer = shorter = subject.inputs
        for name, t in tensors.items():
            if t.dim() and t.shape[0] == batch:
                longer = longer.replaced(name, torch.cat([t, t]))
            if t.dim() in (2, 3) and t.shape[1] == length and length > 2:
                shorter = shorter.replaced(name, t[:, :-1])
        held.longer, held.shorter = _shapes(subject, longer), _shapes(subject, shorter)
    seen = next(k for k in held.norms if k.path == path).call.shape

    def changed(new: tuple[int, ...] | None) -> int | None:
        if new is None or len(new) != len(seen):
            return None
        axes = [i for i in range(-len(seen), 0) if new[i] != seen[i]]
        return axes[0] if len(axes) == 1 else None

    first, second = changed(held.longer.get(path)), changed(held.shorter.get(path))
    # Inputs with the sequence first: what grew by concatenation there is the sequence.
    return first, second if second != first else None


def _shapes(subject: Subject, inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """The shapes that modules see of other inputs, none where the model does not take them."""
    if inputs is subject.inputs:
        return {}
    try:
        with _quiet():
            return {path: call.shape for path, call in calls_of(subject.model, inputs).items()}
    except Exception:
        return {}


def _in_convolutions(subject: Subject, path: str) -> bool:
    """Whether a convolution stands beside it or above it in a parent that has no attention: the
    front end of a speech or image model, where statistics over positions are the custom."""
    parts = path.split(".")
    modules = dict(subject.model.named_modules())
    for depth in (1, 2):
        if len(parts) < depth:
            break
        parent = modules[".".join(parts[:-depth])]
        kernels = any(
            p.dim() >= 3 and name.count(".") <= depth for name, p in parent.named_parameters()
        )
        if kernels:
            return True
    return False


# --- the rules ------------------------------------------------------------------------------------


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


def _class(subject: Subject, k: _Known) -> str:
    return type(subject.model.get_submodule(k.path)).__qualname__


def _numbers(k: _Known) -> dict[str, Any]:
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
    for k in _measure(subject):
        if k.probe is None:
            yield Unknown(
                rule="norm-not-normalizing",
                module=k.path,
                why=f"it is called a norm, but does not run on inputs of our own: {k.failed}",
            )
            continue
        cases += _formula_cases(subject, k)
    yield from _joined(cases)


def _formula_cases(subject: Subject, k: _Known) -> Iterator[_Case]:
    assert k.probe is not None
    name = _class(subject, k)
    m = k.match
    if not k.reach.axes:
        yield from _pointwise_cases(subject, k, name)
        return
    assert m is not None
    if not _over_features(subject, k):
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
                "grows 10-fold, and it follows no norm that is known: the size of its input goes "
                "on into what reads it.",
                "Divide by a statistic of the input: sqrt(mean(x^2) + eps), or the standard "
                "deviation after the mean is subtracted.",
            )
        return
    for rule in m.formula.mistakes:
        yield _formula_case(k, rule, name, key)


def _formula_case(k: _Known, rule: str, name: str, key: tuple[Any, ...]) -> _Case:
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
            f"{m.eps:.3g} come out differently than from any LayerNorm or RMSNorm with an eps, and "
            "the root of zero has no gradient: a constant row gives NaN in backward.",
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


def _eps_cases(k: _Known, name: str) -> Iterator[_Case]:
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


def _pointwise_cases(subject: Subject, k: _Known, name: str) -> Iterator[_Case]:
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
            "training as well, as a frozen BatchNorm does: it normalizes only what is distributed "
            "as the data were that they come from.",
            "Nothing, if the weights before it are frozen too; to train from scratch, LayerNorm.",
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


def _responds_globally(k: _Known) -> bool:
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


def _train_reach(k: _Known) -> Reach:
    assert k.probe is not None
    try:
        return k.probe.reach(train=True)
    except Exception:
        return Reach((), ())


def _over_features(subject: Subject, k: _Known) -> bool:
    """Whether the statistics run over the feature axis and no other."""
    assert k.probe is not None
    return k.reach.axes == (_feature_axis(subject, k),)


def check_axes(subject: Subject) -> Said:
    """Over what the statistics run: features, or also positions and samples."""
    cases: list[_Case] = []
    for k in _measure(subject):
        if k.probe is not None:
            cases += _axis_cases(subject, k)
    yield from _joined(cases)


def _axis_cases(subject: Subject, k: _Known) -> Iterator[_Case]:
    assert k.probe is not None
    name = _class(subject, k)
    evaluated, trained = k.reach.axes, _train_reach(k).axes
    more = tuple(a for a in trained if a not in evaluated)
    over_features = not evaluated or _over_features(subject, k) or _responds_globally(k)
    if over_features and not more:
        return
    module = subject.model.get_submodule(k.path)
    batch, time = _batch_and_time(subject, k.path)
    if batch is None:  # the custom, where it could not be seen
        batch = -len(k.call.shape) if len(k.call.shape) > 1 else None
        batch = None if batch == time else batch
    named = {batch: "the samples of the batch", time: "the positions"}
    features = _feature_axis(subject, k)
    named.pop(None, None)
    named.setdefault(features, "the features")

    def told(axes: Sequence[int]) -> str:
        return " and ".join(named.get(a, f"axis {a}") for a in axes)

    declared = isinstance(module, nn.GroupNorm | nn.modules.batchnorm._NormBase) or bool(
        re.search(r"batch|group|instance", type(module).__name__.lower())
    )
    front = _in_convolutions(subject, k.path)
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
            + ": what one sample gives depends on the others beside it, padding counts, a batch of "
            "one behaves differently"
            + (", and training sees the future." if time in every else "."),
            "Normalize each token over its features: torch.nn.LayerNorm or torch.nn.RMSNorm.",
        )
        if declared or not evaluated:
            return
    if over_features or (declared and batch in every):
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
                else "other elements than one token's features decide its size."
            ),
            f"Take mean and variance over axis {features} alone.",
        )


# Gradients ----------------------------------------------------------------------------------------


def check_gradient(subject: Subject) -> Said:
    """Backward against differences of forward."""
    cases: list[_Case] = []
    for k in _measure(subject):
        if k.probe is None:
            continue
        try:
            with _quiet():
                cases += _gradient_cases(subject, k)
        except Exception as e:
            yield Unknown(
                rule="norm-bad-gradient",
                module=k.path,
                why=f"backward could not be run: {type(e).__name__}: {e}".splitlines()[0][:240],
            )
    yield from _joined(cases)


def _gradient_cases(subject: Subject, k: _Known) -> Iterator[_Case]:
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


def _gradient_case(k: _Known, name: str, off: dict[str, float], what: str) -> _Case:
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
    for k in _measure(subject):
        if k.probe is None or k.match is None or k.match.distance > ACCEPT:
            continue
        if k.match.formula.kind == "other" or not k.reach.axes:
            continue
        try:
            with _quiet(), torch.no_grad():
                cases += _precision_cases(subject, k)
        except Exception as e:
            yield Unknown(
                rule="norm-low-precision",
                module=k.path,
                why=f"it does not run in bfloat16: {type(e).__name__}: {e}".splitlines()[0][:240],
            )
    yield from _joined(cases)


def statistics_error(y: Tensor, ref: Tensor) -> float:
    """The part of the error that a whole row shares, over rows (root mean square).

    ``ref`` is the right answer rounded as ``y`` is: rounding the outputs has a share in it, since
    equal inputs of a row are rounded alike. What is left is a statistic that was rounded: it moves
    the whole row by one factor.
    """
    along = (y * ref).sum(-1) / (ref * ref).sum(-1).clamp(min=1e-300) - 1.0
    return float(along.detach().square().mean().sqrt())


def _precision_cases(subject: Subject, k: _Known) -> Iterator[_Case]:
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
            f"{name} computes with about {-math.log2(m.distance):.0f} bits even where it is given "
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
                f"{name} loses its digits in float32 where the mean is large beside the deviation, "
                "as mean(x^2) - mean(x)^2 does (it may even turn negative: NaN)",
            )
    u = 2.0**-9
    found = error(torch.bfloat16, 0.0, True)
    # A rounded statistic is off by up to u, evenly: u / sqrt(3), and half of that where it is its
    # square that is rounded. With float32 statistics a few outputs fall to the other side of a
    # tie: some 2^-24 / u of them, which is nothing.
    if found > 0.25 * u:
        low = any(
            t.dtype in (torch.bfloat16, torch.float16)
            for t in (*subject.original.parameters(), *subject.original.buffers())
        )
        yield _precision_case(
            k,
            "warning" if low else "note",
            name,
            {
                "row_error_in_bfloat16": found,
                "of_bfloat16_statistics": u / math.sqrt(3),
            },
            f"{name} takes its statistics in the dtype of its input: in bfloat16 every row is off "
            f"by {found / u:.2g} units as a whole",
        )


def _precision_case(
    k: _Known, severity: Severity, name: str, evidence: dict[str, Any], what: str
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
