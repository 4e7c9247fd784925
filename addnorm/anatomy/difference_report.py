"""What was found where two models part, and how it is said."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, final

from addnorm.words import a_few


@final
@dataclass(frozen=True)
class Parting:
    """The first tap that differs, and the module in which it comes about."""

    module: str
    """The path in A; "" is the model itself. The innermost module whose inputs agree and whose
    output does not."""
    module_b: str
    tap: str
    """The tap in A at which it shows: that module itself, or the next one that it feeds."""
    before: float
    """The relative difference of what the module is given."""
    after: float
    """The relative difference of what the module returns; infinite where not even shapes agree."""
    floor: float
    """What counts as a difference there."""
    agree: int
    """Taps that agree before it."""
    operations: tuple[str, ...]
    """How the module's operations differ, constants included: "- " only in A, "+ " only in B."""


@final
@dataclass(frozen=True)
class Gradient:
    """The first parameter whose gradient differs, walking backwards from the outputs."""

    parameter: str
    """Its name in A."""
    parameter_b: str
    """Its name in B."""
    difference: float
    """Relative to the largest entry in A."""
    floor: float
    """Up to what difference they would agree."""
    agree: int
    """Parameters behind it, nearer to the outputs, whose gradients agree."""


@final
@dataclass(frozen=True)
class Difference:
    """What was found when two models were run side by side."""

    forward: Parting | None
    """None: all outputs agree."""
    backward: Gradient | None
    """None: all gradients agree, or there are none."""
    taps: int
    """Pairs of taps that were compared."""
    aligned_by: Literal["path", "order"]
    dtype: str
    weights: Literal["copied", "own"]
    paired: int
    """Parameters and buffers that correspond, by name and shape or else by order and shape."""
    unpaired: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """Parameters and buffers that are only in A, only in B."""
    only: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    """Modules that were called only in A, only in B."""
    inputs: dict[str, list[int]] = field(default_factory=dict)
    largest: float = 0.0
    """The largest relative difference of all taps."""

    @property
    def same(self) -> bool:
        """No difference above rounding, forward or backward."""
        return self.forward is None and self.backward is None

    def to_json(self) -> dict[str, Any]:
        """Every field, and ``same``; what is infinite is None."""
        fields = {"same": self.same, **asdict(self)}
        return dict(_finite(fields))

    def verdict(self) -> str:
        """Whether the models differ, and where first, in one line."""
        if self.forward is not None and self.forward.module:
            return f"They differ, first in {self.forward.module}."
        if self.forward is not None:
            alone = [o for o in self.forward.operations if ALONE in o]
            if alone:
                modules = "; ".join(
                    f"{o[2:]}, is only in {'A' if o[0] == '-' else 'B'}" for o in alone
                )
                return f"They differ: {modules}."
            return "They differ in the outermost forward, between the modules that it calls."
        if self.backward is not None:
            return f"Outputs agree; the gradient of {self.backward.parameter} differs."
        return f"No difference in {self.taps} outputs of modules and {self.paired} parameters."

    def lines(self) -> Iterator[tuple[str, str]]:
        """What there is to say, as (label, text); "" as the label continues the line before."""
        shapes = ", ".join(
            f"{'' if name.isdecimal() else name + ' '}{tuple(shape)}"
            for name, shape in self.inputs.items()
        )
        how = "B has the weights of A" if self.weights == "copied" else "each has its own weights"
        yield "run", f"inputs {shapes}; {self.dtype}; {how}"
        yield "taps", f"{self.taps} outputs of modules, paired by {self.aligned_by}"
        for which, names, paths in zip("AB", self.unpaired, self.only, strict=True):
            tops = outermost(paths)
            if paths:
                yield f"only in {which}", f"{_modules(tops)}, of the modules called"
            elsewhere = [n for n in names if not inside_any(n, tops)]
            if elsewhere:
                yield f"only in {which}", f"{_modules(elsewhere)}, of parameters and buffers"
        if self.forward is not None:
            f = self.forward
            other = f" (B: {f.module_b})" if f.module_b != f.module else ""
            place = f.module or "the outermost forward"
            yield "forward", f"{f.agree} outputs agree, then {place}{other}"
            yield (
                "",
                f"its inputs differ by {f.before:.2g}, its outputs by {_size_text(f.after)}",
            )
            yield "", f"seen at {f.tap or 'the output'}; rounding gives at most {f.floor:.1g} there"
            for line in f.operations:
                yield "", line
            if not f.operations:
                yield (
                    "",
                    "the same operations with the same constants in A and B: look at weights "
                    "and buffers",
                )
        else:
            yield "forward", f"all agree; the largest difference is {self.largest:.2g}"
        if self.backward is not None:
            yield "backward", self._backward(self.backward)
        else:
            yield "backward", "all gradients agree"

    def _backward(self, g: Gradient) -> str:
        """What a gradient that differs means, in a sentence or two; with a forward that differs it
        must."""
        other = f" ({g.parameter_b} in B)" if g.parameter_b != g.parameter else ""
        size = f"{_size_text(g.difference)}, where rounding gives at most {g.floor:.1g}"
        if self.forward is not None:
            return (
                "the gradients differ as well, as they must with a different forward: from the "
                f"outputs backwards, the first is that of {g.parameter}{other}, by {size}"
            )
        near = (
            f"the {g.agree} parameters nearer to the outputs agree"
            if g.agree
            else "no parameter is nearer to the outputs"
        )
        return (
            f"the forward is the same, and the gradient of {g.parameter}{other} is not: it differs "
            f"by {size}; {near}. Something between it and the outputs passes back another gradient "
            "(detach, no_grad, a hand-written backward)"
        )


ALONE = ", a module with "
"""Marks a line of ``Parting.operations`` about a module that only one of the two calls:
``compare_models`` writes it, ``verdict`` looks for it."""


def _size_text(difference: float) -> str:
    """A relative difference with two digits; an infinite one, as of two shapes, in words."""
    return f"{difference:.2g}" if math.isfinite(difference) else "more than a number says"


def _modules(names: Sequence[str]) -> str:
    return a_few((name or "(the model)" for name in names), 4)


def inside_any(path: str, tops: Sequence[str]) -> bool:
    """Whether a module's path is one of ``tops`` or lies in one of them."""
    return any(path == top or path.startswith(f"{top}.") for top in tops)


def outermost(paths: Sequence[str]) -> list[str]:
    """The paths that lie in none of the others."""
    return [p for p in paths if not inside_any(p, [q for q in paths if q != p])]


def _finite(fields: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(key, value) of all fields, None in the place of what is infinite or NaN: JSON has neither.
    Objects inside are gone through, lists are not, which hold no such numbers."""
    for key, value in fields.items():
        if isinstance(value, dict):
            value = dict(_finite(value))
        yield key, None if isinstance(value, float) and not math.isfinite(value) else value
