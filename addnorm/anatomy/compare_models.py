"""Where two models part: the first module whose output differs, and the first gradient.

Both are run on the same inputs, in float64 where they can be. Taps are the outputs of modules, in
the order in which they are ready, so that inner modules come before those around them. A difference
counts if it is above what rounding does: every parameter is changed by a unit in its last place,
and what that moves, tap by tap, is the floor.
"""

import copy
import difflib
import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from addnorm.anatomy.difference_report import (
    ALONE,
    Difference,
    Gradient,
    Parting,
    inside_any,
    outermost,
)
from addnorm.anatomy.inputs import Inputs, inputs_from
from addnorm.anatomy.make_inputs import CannotMakeInputs, make_inputs
from addnorm.anatomy.signature import parameters_of
from addnorm.anatomy.specimen import enliven
from addnorm.anatomy.trace import Op, Trace, Value, record
from addnorm.errors import Mendable
from addnorm.temporary import hooked, isolated
from addnorm.words import error_in_a_line

SLACK = 100.0
"""What differs by more than this many times the floor counts: the floor is one draw of rounding."""
LEAST = 1e4
"""And by more than this many units of the dtype: sums in another order, through a few dozen
layers."""


@final
class NotComparable(Mendable):
    """The two cannot be run on the same inputs; says why."""


def diff(
    a: nn.Module,
    b: nn.Module,
    inputs: Any = None,
    *,
    weights: Literal["copied", "own"] = "copied",
) -> Difference:
    """The first place where ``b`` differs from ``a``, forward and backward.

    ``inputs`` as for ``lint``; made up from the signature of ``a`` if not given. With ``copied``
    weights, ``b`` is given those of ``a``, by name and shape or else by order and shape, so that
    what remains is how the two are wired; parameters that are constant at the start are made random
    first. With ``own`` both are compared as they are. Copies are run; the models stay as they are.
    ``NotComparable`` where they cannot be run on the same inputs.
    """
    with isolated():
        for dtype in (torch.float64, torch.float32):
            # Hooks stay: they are part of what is compared.
            left, right = (copy.deepcopy(m).eval().to(dtype) for m in (a, b))
            pairs, unpaired = _paired_names(left, right)
            if weights == "copied":
                enliven(left)
                _copy_weights(left, right, pairs)
            try:
                call = make_inputs(left) if inputs is None else _cast(inputs_from(inputs), dtype)
                one = _Run(left, call)
            except CannotMakeInputs as error:
                raise NotComparable(str(error)) from None
            except Exception as error:
                if dtype is torch.float64:
                    continue  # something in it insists on float32
                raise NotComparable(f"A does not run: {error_in_a_line(error)}") from None
            try:
                two = _run_of_b(right, call)
            except Exception as error:
                if dtype is torch.float64:
                    continue
                raise NotComparable(
                    f"B does not run on the inputs of A, which are {_shapes_text(call)}: its "
                    f"{_forward_text(right)} ended in {error_in_a_line(error)}. Two models are "
                    "compared on the same input, so both must accept it"
                ) from None
            break
        _nudge(left)
        rounded = _Run(left, call)
        return _difference(one, two, rounded, pairs, unpaired, weights)


def _shapes_text(inputs: Inputs) -> str:
    """Names, sizes and dtypes of what is passed."""
    shapes = (
        f"{'' if name.isdecimal() else name + ' '}{tuple(t.shape)} of "
        f"{str(t.dtype).removeprefix('torch.')}"
        for name, t in inputs.tensors().items()
    )
    return ", ".join(shapes) or "no tensors"


def _forward_text(model: nn.Module) -> str:
    """``forward(...)`` with the names of its first six parameters, for a message."""
    parameters = parameters_of(model.forward)
    names = ["..."] if parameters is None else list(parameters)
    return f"forward({', '.join(names[:6])}{', ...' if names[6:] else ''})"


# --- the same weights -----------------------------------------------------------------------------


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers; what is shared stands under each of its names."""
    by_name = dict(model.named_parameters(remove_duplicate=False))
    return by_name | dict(model.named_buffers(remove_duplicate=False))


def _paired_names(
    a: nn.Module, b: nn.Module
) -> tuple[dict[str, str], tuple[tuple[str, ...], tuple[str, ...]]]:
    """({name in A: name in B}, (names left in A, names left in B)).

    By name and shape, then by order and shape; parameters and buffers.
    """
    left, right = _named_tensors(a), _named_tensors(b)
    pairs = {n: n for n, t in left.items() if n in right and right[n].shape == t.shape}
    rest_a = [n for n in left if n not in pairs]
    rest_b = [n for n in right if n not in pairs]
    shapes = [[tuple(t[n].shape) for n in rest] for t, rest in ((left, rest_a), (right, rest_b))]
    for i, j, size in _matching(*shapes):
        pairs |= dict(zip(rest_a[i : i + size], rest_b[j : j + size], strict=True))
    partners = set(pairs.values())
    alone = (
        tuple(n for n in left if n not in pairs),
        tuple(n for n in right if n not in partners),
    )
    return pairs, alone


def _matching(a: Sequence[Hashable], b: Sequence[Hashable]) -> Sequence[tuple[int, int, int]]:
    """(start in a, start in b, length) of what both have in the same order; the last one, which
    difflib adds, has length 0."""
    return difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()


def _copy_weights(a: nn.Module, b: nn.Module, pairs: dict[str, str]) -> None:
    """Give ``b`` the weights of ``a``, in place, by pairs of names. Parameters only: buffers are
    tables and masks, in which the two may differ on purpose."""
    left, right = _named_tensors(a), dict(b.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, other in pairs.items():
            if other in right and isinstance(left[name], nn.Parameter):
                right[other].copy_(left[name])


def _nudge(model: nn.Module) -> None:
    """Move every parameter, in place, a unit in its last place up or down, at random."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.is_floating_point():
                sign = torch.randint(2, p.shape, generator=generator).to(p) * 2 - 1
                p.mul_(1 + sign * torch.finfo(p.dtype).eps)


def _cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """The call with its floating-point tensors in ``dtype``, and no tensor's autograd history."""

    def cast(t: Tensor) -> Tensor:
        return t.detach().to(dtype) if t.is_floating_point() else t

    args, kwargs = tree_map_only(Tensor, cast, (inputs.args, inputs.kwargs))
    return Inputs(args, kwargs)


# --- running --------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _Tap:
    """One call of one module."""

    path: str
    number: int
    """The how-manieth call of this module it is."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def key(self) -> tuple[str, int]:
        return self.path, self.number

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(t.shape) for t in self.outputs)


@final
class _Run:
    """One forward and backward, with what every module took and returned.

    Making one runs the model, and lets through whatever its forward raises.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.inputs = inputs
        self.taps: list[_Tap] = []  # in the order in which the calls end
        # key of a tap -> key of the call around it; None for the model's own
        self.parents: dict[tuple[str, int], tuple[str, int] | None] = {}
        counts: Counter[str] = Counter()
        stack: list[tuple[tuple[str, int], tuple[Tensor, ...]]] = []  # (key, inputs), outer first

        paths = {module: path for path, module in model.named_modules()}

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            key = paths[module], counts[paths[module]]
            counts[paths[module]] += 1
            self.parents[key] = stack[-1][0] if stack else None
            stack.append((key, _copies((args, kwargs))))

        def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            (path, number), arguments = stack.pop()
            self.taps.append(_Tap(path, number, arguments, _copies(out)))

        with hooked(paths, before=enter, after=leave):
            self.trace: Trace = record(lambda: inputs.call(model), model)
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        self.gradients = self._backward()

    def _backward(self) -> dict[str, Tensor]:
        """Gradients of a random projection of all floating-point outputs, by parameter.

        Zeros for a parameter that none of them depends on; {} if no output has a gradient.
        """
        outs = [t for t in self.trace.outputs if t.is_floating_point() and t.requires_grad]
        trainable = {n: p for n, p in self.parameters.items() if p.requires_grad}
        if not outs or not trainable:
            return {}
        generator = torch.Generator().manual_seed(2)
        weights = [torch.randn(o.shape, generator=generator).to(o) for o in outs]
        grads = torch.autograd.grad(outs, list(trainable.values()), weights, allow_unused=True)
        return {
            name: torch.zeros_like(p) if g is None else g
            for (name, p), g in zip(trainable.items(), grads, strict=True)
        }

    def operations(self, key: tuple[str, int]) -> "list[_Operation]":
        """What ran in one call of one module, in order, its children's calls included; [] if the
        trace has no such call."""
        calls = [c for c in self.trace.calls if c.path == key[0]]
        if len(calls) <= key[1]:
            return []
        call = calls[key[1]]
        return [_operation(op) for op in self.trace.ops[call.first : call.last]]

    def uses(self) -> list[str]:
        """The parameters in the order in which the forward reads them first."""
        first: dict[str, int] = {}
        for i, op in enumerate(self.trace.ops):
            for value in op.inputs:
                if value.name in self.gradients:
                    first.setdefault(value.name, i)
        return sorted(first, key=lambda name: first[name])


_IDLE = frozenset(("alias", "detach", "lift_fresh"))  # the same value by another name
_COPIES = frozenset(
    (
        *("clone", "contiguous", "copy", "view", "_unsafe_view", "reshape", "_reshape_alias"),
        *("expand", "unsqueeze", "squeeze"),
    )
)
"""They pass the same numbers on in the same order."""
_MOVES = frozenset(
    (
        *("t", "transpose", "permute", "slice", "select", "split", "split_with_sizes", "unbind"),
        *("chunk", "narrow", "as_strided", "diagonal", "unfold", "cat", "stack"),
    )
)
"""They bring the numbers to other places."""
_WHERE_IT_LIES = frozenset(
    ("device", "layout", "pin_memory", "memory_format", "non_blocking", "generator")
)
"""Arguments that change no number."""


@final
@dataclass(frozen=True)
class _Operation:
    """An operation and its constants; two that are equal do the same."""

    name: str
    args: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...] = ()
    """Keyword arguments, those left out with what the operation takes for them."""
    explicit: frozenset[str] = field(default=frozenset(), compare=False)
    """The options that were not left out."""
    module: str = field(default="", compare=False)

    def text(self, other: "_Operation | None" = None) -> str:
        """The operation as ``name(constants)``, so that it can be told apart from ``other``, of
        the same name: numbers have 17 digits where 6 would look alike."""
        options = dict(self.options)
        theirs = dict(other.options) if other is not None else options
        names = [n for n, v in self.options if n in self.explicit or theirs.get(n) != v]
        for digits in (6, 17):
            parts = [_constant_text(a, digits) for a in self.args]
            parts += [f"{n}={_constant_text(options[n], digits)}" for n in names]
            text = f"{self.name}({', '.join(parts)})"
            if other is None or digits == 17 or self.args == other.args:
                break
            if [_constant_text(a, digits) for a in other.args] != parts[: len(self.args)]:
                break
        return text


def _constant_text(value: Any, digits: int) -> str:
    """A constant of an operation as text; floats with so many significant digits."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(_constant_text(v, digits) for v in value) + "]"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return str(value).removeprefix("torch.")


def _operation(op: Op) -> _Operation:
    """An operation with its numbers: eps, axes, factors, kinds. A "·" stands for a tensor; one that
    holds a single number and was not computed is a constant."""

    def constant(value: Any) -> Any:
        """An argument with "·" for tensors, numbers for those that hold one, and tuples for
        lists."""
        if isinstance(value, Value):
            t = value.tensor
            alone = t.numel() == 1 and not value.name and value.op is None
            return float(t.item()) if alone and not t.is_complex() else "·"
        if isinstance(value, list | tuple):
            return tuple(constant(v) for v in value)
        return value

    options = {n: constant(v) for n, v in op.kwargs.items() if n not in _WHERE_IT_LIES}
    explicit = frozenset(options)
    for argument in getattr(getattr(op.place[0], "_schema", None), "arguments", ()):
        if argument.kwarg_only and argument.default_value is not None:
            options.setdefault(argument.name, constant(argument.default_value))
    for name in _WHERE_IT_LIES:
        options.pop(name, None)
    args = tuple(constant(a) for a in op.args)
    return _Operation(op.name, args, tuple(sorted(options.items())), explicit, op.module)


def _copies(tree: Any) -> tuple[Tensor, ...]:
    """The floating-point and boolean tensors as they are now; later writes do not reach them."""
    leaves = [t for t in tree_leaves(tree) if isinstance(t, Tensor)]
    return tuple(
        t.detach().clone() for t in leaves if t.is_floating_point() or t.dtype is torch.bool
    )


def _run_of_b(model: nn.Module, inputs: Inputs) -> _Run:
    """B on the inputs of A; by place where it does not know the names of A's keyword arguments.
    Lets through what its forward raises."""
    try:
        return _Run(model, inputs)
    except TypeError:
        if not inputs.kwargs:
            raise
        return _Run(model, Inputs((*inputs.args, *inputs.kwargs.values())))


# --- comparing ------------------------------------------------------------------------------------


def _distance(x: Tensor, y: Tensor) -> float:
    """The largest difference over the largest finite value of x; infinite where the shapes, or the
    places of NaN and infinities, are not the same."""
    if x.shape != y.shape:
        return math.inf
    if x.numel() == 0 or torch.equal(x, y):
        return 0.0
    x, y = x.double(), y.double()
    if not torch.equal(x.isfinite(), y.isfinite()) or not torch.equal(x.isnan(), y.isnan()):
        return math.inf
    real = x.isfinite()
    if bool((x[~real].nan_to_num() != y[~real].nan_to_num()).any()):
        return math.inf  # masks of -inf that differ
    if not bool(real.any()):
        return 0.0
    size = float(x[real].abs().max())
    return float((x[real] - y[real]).abs().max()) / max(size, 1e-300)


def _largest_distance(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> float:
    """Over pairs of tensors; infinite where one side has more of them."""
    if len(xs) != len(ys):
        return math.inf
    return max((_distance(x, y) for x, y in zip(xs, ys, strict=True)), default=0.0)


def _aligned(one: _Run, two: _Run) -> tuple[list[tuple[_Tap, _Tap]], Literal["path", "order"]]:
    """(pairs of taps, in the order of A; how they were paired): by path where most paths are the
    same, else by order."""
    by_key = {tap.key: tap for tap in two.taps}
    by_path = [(tap, by_key[tap.key]) for tap in one.taps if tap.key in by_key]
    if 2 * len(by_path) > min(len(one.taps), len(two.taps)):
        return by_path, "path"
    shapes = [[tap.shapes for tap in run.taps] for run in (one, two)]
    pairs = []
    for i, j, n in _matching(*shapes):
        pairs += list(zip(one.taps[i : i + n], two.taps[j : j + n], strict=True))
    return pairs, "order"


def _difference(
    one: _Run,
    two: _Run,
    rounded: _Run,
    pairs: dict[str, str],
    unpaired: tuple[tuple[str, ...], tuple[str, ...]],
    weights: Literal["copied", "own"],
) -> Difference:
    """What the runs of A (``one``) and B (``two``) show. ``rounded`` is A with its parameters
    nudged: how far a tap moved there is what rounding does. ``pairs`` and ``unpaired`` are as of
    ``_paired_names``, ``weights`` as of ``diff``."""
    taps, by = _aligned(one, two)
    dtype = next((p.dtype for p in one.parameters.values() if p.is_floating_point()), torch.float32)
    floors = {
        tap.key: _floor(_largest_distance(tap.outputs, again.outputs), dtype)
        for tap, again in zip(one.taps, rounded.taps, strict=False)
        if tap.key == again.key
    }
    least = _floor(0.0, dtype)
    paths = [dict.fromkeys(t.path for t in run.taps) for run in (one, two)]
    by_path = by == "path"
    only = (
        tuple(p for p in paths[0] if by_path and p not in paths[1]),
        tuple(p for p in paths[1] if by_path and p not in paths[0]),
    )
    apart = [(a, b, _largest_distance(a.outputs, b.outputs)) for a, b in taps]
    forward = None
    for agree, (a, b, distance) in enumerate(apart):
        if distance > floors.get(a.key, least):
            both = {x.key: (x, y) for x, y in taps}
            forward = _parting(one, two, both, a, b, floors, least, agree, only)
            break
    return Difference(
        forward,
        _first_gradient(one, two, rounded, pairs, dtype),
        len(taps),
        by,
        str(dtype).removeprefix("torch."),
        weights,
        len(pairs),
        unpaired,
        only,
        {n: list(t.shape) for n, t in one.inputs.tensors().items()},
        max((d for _, _, d in apart), default=0.0),
    )


def _floor(rounding: float, dtype: torch.dtype) -> float:
    """Up to which distance two tensors agree, if nudged parameters move one by ``rounding``."""
    worst = max(SLACK * rounding, LEAST * torch.finfo(dtype).eps)
    return worst if math.isfinite(worst) else math.inf


def _parting(
    one: _Run,
    two: _Run,
    taps: dict[tuple[str, int], tuple[_Tap, _Tap]],
    a: _Tap,
    b: _Tap,
    floors: dict[tuple[str, int], float],
    least: float,
    agree: int,
    only: tuple[Sequence[str], Sequence[str]],
) -> Parting:
    """Whose doing it is: the module's, if it was given the same, else that of the one around it.

    ``a`` and ``b`` are the first taps that differ, after ``agree`` pairs that do not. ``floors`` is
    by key of a tap, and ``least`` the floor of the others. ``only`` are the paths of modules that
    were called only in A, only in B.
    """
    floor = floors.get(a.key, least)
    key: tuple[str, int] | None = a.key
    x, y = a, b
    while key is not None:
        if key in taps:
            x, y = taps[key]
            if _largest_distance(x.inputs, y.inputs) <= floor or one.parents.get(key) is None:
                break
        key = one.parents.get(key)
    return Parting(
        x.path,
        y.path,
        a.path,
        _largest_distance(x.inputs, y.inputs),
        _largest_distance(x.outputs, y.outputs),
        floor,
        agree,
        tuple(_changes(one.operations(x.key), two.operations(y.key), only)),
    )


def _changes(
    a: Sequence[_Operation],
    b: Sequence[_Operation],
    only: tuple[Sequence[str], Sequence[str]] = ((), ()),
    most: int = 5,
) -> Iterator[str]:
    """How two sequences of operations differ: the first few that only one of them has.

    What computes comes before what moves numbers about, and what only copies or reshapes them is
    left out unless there is nothing else. ``only`` are the paths of modules that only A, only B
    calls: where the rest is the same, each is one line. ``most`` is the number of lines per model.
    """
    tops = [outermost(paths) for paths in only]
    rest = [
        [o for o in ops if o.name not in _IDLE | _COPIES and not inside_any(o.module, top)]
        for ops, top in zip((a, b), tops, strict=True)
    ]
    if rest[0] == rest[1] and any(tops):
        for sign, ops, top in zip("-+", (a, b), tops, strict=True):
            for path in top:
                n = sum(
                    inside_any(o.module, [path]) and o.name not in _IDLE | _COPIES | _MOVES
                    for o in ops
                )
                if n:
                    yield f"{sign} {path}{ALONE}{n} operation{'' if n == 1 else 's'}"
        return
    for left_out in (_IDLE | _COPIES, _IDLE):
        sequences = [[o for o in ops if o.name not in left_out] for ops in (a, b)]
        if sequences[0] != sequences[1]:
            break
    sides: dict[str, list[tuple[bool, str]]] = {"-": [], "+": []}
    matcher = difflib.SequenceMatcher(None, sequences[0], sequences[1], autojunk=False)
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag != "equal":
            x, y = sequences[0][i:j], sequences[1][k:m]
            sides["-"] += [(o.name in _MOVES, o.text(_namesake(o, n, y))) for n, o in enumerate(x)]
            sides["+"] += [(o.name in _MOVES, o.text(_namesake(o, n, x))) for n, o in enumerate(y)]
    for sign, texts in sides.items():
        lines = [text for _, text in sorted(texts, key=lambda t: t[0])]
        yield from (f"{sign} {op}" for op in lines[:most])
        if len(lines) > most:
            yield f"{sign} and {len(lines) - most} more"


def _namesake(op: _Operation, place: int, others: Sequence[_Operation]) -> _Operation | None:
    """The operation at its place in the other model, if it is one of the same name."""
    other = others[place] if place < len(others) else None
    return other if other is not None and other.name == op.name else None


def _first_gradient(
    one: _Run, two: _Run, rounded: _Run, pairs: dict[str, str], dtype: torch.dtype
) -> Gradient | None:
    """The first parameter, from the outputs backwards, whose gradients differ by more than
    rounding, which is read off ``rounded``; None: all agree. ``pairs`` are names in A and in B."""
    agree = 0
    for name in reversed(one.uses()):
        other = pairs.get(name)
        if other is None or other not in two.gradients:
            continue
        mine = one.gradients[name]
        distance = _distance(mine, two.gradients[other])
        floor = _floor(_distance(mine, rounded.gradients[name]), dtype)
        # A gradient of zero, such as that of a key's bias, is rounding through and through.
        if _is_rounding(mine, one, dtype) and _is_rounding(two.gradients[other], one, dtype):
            continue
        if distance > floor:
            return Gradient(name, other, distance, floor, agree)
        agree += 1
    return None


def _is_rounding(grad: Tensor, run: _Run, dtype: torch.dtype) -> bool:
    """Whether a gradient is nothing beside the largest of all gradients of a run."""
    largest = max((float(g.abs().max()) for g in run.gradients.values() if g.numel()), default=0.0)
    size = float(grad.abs().max()) if grad.numel() else 0.0
    return size < LEAST * torch.finfo(dtype).eps * largest
