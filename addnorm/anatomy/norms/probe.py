"""One module under the probes: a norm is read in three steps, each a measurement.

Which parameters scale its output and which shift it: by changing them, so that what remains is the
bare normalization whatever the weights hold. Which elements share statistics: by changing one
input. And by which formula, see ``formulas``.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from addnorm.anatomy.norms.formulas import ACCEPT, Match, nearest
from addnorm.anatomy.outputs import first_tensor
from addnorm.temporary import undisturbed

SCALES = (1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 1e3)
"""The sizes of probed rows: from where any eps rules to where none is seen."""


# --- calling a module as the model calls it -----------------------------------------------------


@final
@dataclass(frozen=True)
class ProbeCall:
    """How a module was called: its arguments with the place of the main tensor."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: int | str
    """Where the main tensor is: an index of ``args`` or a name of ``kwargs``."""
    shape: tuple[int, ...]
    """That of the main tensor, and of the output."""

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> "ProbeCall | None":
        """The call, without gradients, if its first floating-point tensor comes back in the same
        shape; else None."""
        places: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        tensors = [(p, v) for p, v in places if isinstance(v, Tensor) and v.is_floating_point()]
        result = first_tensor(out)
        if not tensors or result is None:
            return None
        place, x = tensors[0]
        if x.dim() < 1 or x.shape != result.shape or not result.is_floating_point():
            return None
        plain = tuple(v.detach() if isinstance(v, Tensor) else v for v in args)
        by_name = {k: v.detach() if isinstance(v, Tensor) else v for k, v in kwargs.items()}
        return ProbeCall(plain, by_name, place, tuple(x.shape))

    def __call__(self, module: nn.Module, x: Tensor, others: float = 0.0) -> Tensor:
        """``module`` on ``x``; further tensors of the same shape (what is added, a gate) become
        ``others``, and what broadcasts otherwise is as it was. A ``ValueError`` if the output is
        not of x's shape."""

        def put(place: int | str, value: Any) -> Any:
            """What stands in the place of an argument, floats in the dtype of x."""
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
    def takes_one_tensor(self) -> bool:
        """The input is the only tensor: any shape may be asked."""
        values = [*self.args, *self.kwargs.values()]
        return sum(isinstance(v, Tensor) for v in values) == 1


def _normal(shape: Sequence[int], like: Tensor, seed: int, offset: float = 0.7) -> Tensor:
    """Standard normal rows, each shifted by its own multiple of ``offset``, in the dtype and on the
    device of ``like``; the same for the same seed."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=g, dtype=torch.float64)
    shift = torch.randn(*shape[:-1], 1, generator=g, dtype=torch.float64)
    return (x + offset * (shift.sign() + 0.3 * shift)).to(like)


# --- one module under the probes ------------------------------------------------------------------


@final
class Probe:
    """A module, called as its model calls it, with its affine part taken off."""

    def __init__(self, module: nn.Module, call: ProbeCall):
        """Copies the module, measures its affine part and takes it off; raises whatever the module
        raises where it cannot be called as in ``call``."""
        self.call = call
        self.claimed_eps = claimed_eps(module)
        self.module, self.like = _runnable(module, call)
        self.others = 0.0
        self._reaches: dict[bool, Reach] = {}
        self.shape = self._wider()
        self.feature_axis: int | None = None
        with undisturbed(gradients=False):
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
        shape = self.call.shape
        wide = tuple(max(4, s) if i < len(shape) - 1 else s for i, s in enumerate(shape))
        if wide == shape or not self.call.takes_one_tensor:
            return shape
        try:
            with undisturbed(gradients=False):
                self.call(self.module, _normal(wide, self.like, 0))
        except Exception:
            return shape
        return wide

    def _separate(self) -> None:
        """Which parameter scales and which shifts, by moving them; then: gain 1, bias 0.

        Sets ``gain``, ``shifts``, ``offset``, ``affine_known`` and ``feature_axis``.
        The module is affine in both, so that two steps of equal length move the output alike.
        """
        self.gain: nn.Parameter | Tensor | None = None
        self.shifts: list[Tensor] = []
        self.offset = 0.0
        self.affine_known = True
        x, other = self.normal(2), 1.7 * self.normal(3)
        parameters = list(self.module.named_parameters())
        gains: list[Tensor] = []
        for _, p in parameters:
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
            # relative: float32 is exact to 1e-7, and what is not affine is off by some tenths
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
        # A parameter that enters in another way: the factor in front cannot be isolated.
        odd = {id(p) for _, p in parameters} - {id(p) for p in (*gains, *self.shifts)}
        self.affine_known = not odd

    def _axis_of(self, p: Tensor, x: Tensor) -> int | None:
        """The axis along which a parameter's entries lie, from the end, found by changing the last
        of them for a moment; None: it has one entry, or the change is not felt at one index of any
        axis."""
        if p.numel() == 1:
            return None
        before = p.detach().clone()
        y0 = self.raw(x)
        p.data.view(-1)[-1] += 1.0
        changes = (self.raw(x) - y0).abs() > 0
        p.data.copy_(before)
        axes = [
            a - x.dim()
            for a in range(x.dim())
            if x.shape[a] > 1
            and int(changes.any(dim=tuple(i for i in range(x.dim()) if i != a)).sum()) == 1
        ]
        return axes[-1] if axes else None

    def _trivial_gain(self, x: Tensor) -> None:
        """Set the gain so that it multiplies by 1, if it does so as w or as 1 + w.

        Sets ``offset`` (0 or 1: what is added to w) and ``bare_by_setting``; a gain that enters in
        another way stays as it is, and ``bare`` takes it off.
        """
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
        """The output with a gain of 1: the normalization alone. The gain is changed meanwhile, and
        put back."""
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
        if train not in self._reaches:
            self._reaches[train] = self._reach(train)
        return self._reaches[train]

    def _reach(self, train: bool) -> "Reach":
        """``reach``, measured: one element is changed, in the middle and in the first place."""
        shape = self.shape
        x = self.normal(4)
        sizes: dict[int, int] = {}
        middle, first = tuple(s // 2 for s in shape), (0,) * len(shape)
        # Both ways: a row of two is +1 and -1 unless the larger of them changes.
        for at, by in ((middle, 30.0), (middle, -30.0), (first, -30.0), (first, 30.0)):
            x_changed = x.clone()
            x_changed[at] = x_changed[at] + by
            y0, y1 = self._output(x, train), self._output(x_changed, train)
            # above rounding; what shares a statistic moves by far more
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

    def _output(self, x: Tensor, train: bool) -> Tensor:
        """``bare``, or in training mode the output of a copy, whose statistics are thrown away."""
        # The same seed each time: what is random inside is the same for all inputs.
        with undisturbed(gradients=False):
            if not train:
                return self.bare(x)
            return self.call(copy.deepcopy(self.module).train(), x, self.others)

    # Which formula --------------------------------------------------------------------------------

    def rows(self, x: Tensor, reach: "Reach", most: int = 16) -> Tensor:
        """(rows, n): the elements that share statistics, one set a row; some of the rows, ``most``
        at most and fewer if they are long."""
        axes = [a % x.dim() for a in reach.axes]
        for i, (a, size) in enumerate(zip(axes, reach.sizes, strict=True)):
            if size < x.shape[a] and size > 0 and x.shape[a] % size == 0:  # groups along this axis
                x = x.unflatten(a, (x.shape[a] // size, size))
                axes = [b + 1 if b >= a and j >= i else b for j, b in enumerate(axes)]
        rest = [i for i in range(x.dim()) if i not in axes]
        flat = x.permute(*rest, *axes).reshape(-1, math.prod(x.shape[a] for a in axes))
        few = max(4, min(most, 4096 // flat.shape[1]))
        return flat[:: max(1, len(flat) // few)][:few]

    def match(self, reach: "Reach", matches: dict[Any, Match] | None = None) -> Match:
        """The nearest formula over the elements that share statistics, of which there must be some.
        Answers are kept in ``matches`` and taken from it, for a model's norms are mostly alike;
        None: they are not kept."""
        xs, ys = [], []
        with torch.no_grad():
            for i, scale in enumerate(SCALES):
                x = scale * self.normal(10 + i)
                xs.append(self.rows(x, reach).double().cpu())
                ys.append(self.rows(self.bare(x), reach).double().cpu())
        x, y = torch.stack(xs), torch.stack(ys)
        key = (self.shape, reach, self.like.dtype, self.claimed_eps, y.numpy().tobytes())
        if matches is None:
            return self._match(x, y)
        if key not in matches:
            matches[key] = self._match(x, y)
        return matches[key]

    def _match(self, x: Tensor, y: Tensor) -> Match:
        """The nearest formula of y from x, both (scales, rows, n)."""
        match = nearest(x, y, self.claimed_eps)
        if match.distance > ACCEPT:
            # Something inside of 16 bits: rows that are neither tiny nor huge still tell.
            usual = nearest(x[5:9], y[5:9], self.claimed_eps)
            if usual.distance < ACCEPT and usual.distance > 1e-5:
                return usual
        return match

    def idle(self) -> bool:
        """Whether the module has no parameters and returns its input."""
        x = self.normal(9)
        with torch.no_grad():
            return not any(True for _ in self.module.parameters()) and torch.equal(self.raw(x), x)

    def invariant(self) -> bool:
        """Whether the output keeps its size where the input's changes, up to what eps and 16 bits
        may move, and is not constant."""
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
    """The axes along which statistics are shared, from the end, sorted; none: every element is on
    its own."""
    sizes: tuple[int, ...]
    """How many elements share statistics along each of the axes."""


def _runnable(module: nn.Module, call: ProbeCall) -> tuple[nn.Module, Tensor]:
    """(a copy in float64 if it runs in that, otherwise float32; an empty tensor of its dtype and
    device). Raises what the module does where it runs in neither."""
    first = next((t for t in (*module.parameters(), *module.buffers())), None)
    device = first.device if first is not None else torch.device("cpu")
    error: Exception | None = None
    for dtype in (torch.float64, torch.float32):
        try:
            copied = copy.deepcopy(module).to(dtype).eval()
            for p in copied.parameters():
                p.requires_grad_(True)
            like = torch.zeros((), dtype=dtype, device=device)
            with undisturbed(gradients=False):
                out = call(copied, _normal(call.shape, like, 0))
            if out.is_floating_point():
                return copied, like
        except Exception as e:
            error = e
    raise error if error is not None else ValueError("the output is not floating point")


def claimed_eps(module: nn.Module) -> float | None:
    """The eps that a module says it has, by the names that are usual; None: it says nothing."""
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


def statistics_error(y: Tensor, ref: Tensor) -> float:
    """The part of the error that a whole row shares, over rows (root mean square).

    ``ref`` is the right answer rounded as ``y`` is: rounding the outputs has a share in it, since
    equal inputs of a row are rounded alike. What is left is a statistic that was rounded: it moves
    the whole row by one factor.
    """
    along = (y * ref).sum(-1) / (ref * ref).sum(-1).clamp(min=1e-300) - 1.0
    return float(along.detach().square().mean().sqrt())
