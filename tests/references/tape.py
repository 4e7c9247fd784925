"""Reverse-mode automatic differentiation over NumPy float64 arrays.

A `Var` remembers the variables it was computed from and, for each of them, the vector-Jacobian
product (VJP) that maps the gradient of the loss with respect to the result to the gradient with
respect to that operand. `backward` walks the graph once, from the output to the leaves
(Linnainmaa 1970; Griewank and Walther 2008).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]
Operand: TypeAlias = "Var | Array | float"
Axis: TypeAlias = int | tuple[int, ...] | None
IndexItem: TypeAlias = int | slice | EllipsisType | None
Index: TypeAlias = IndexItem | tuple[IndexItem, ...]
Edge: TypeAlias = tuple["Var", Callable[[Array], Array]]

_erf = np.vectorize(math.erf, otypes=[np.float64])


class Var:
    """A float64 array together with how it was computed.

    `grad` is zero until `backward` has been called on a result that depends on this variable.
    """

    __array_ufunc__ = None  # makes `ndarray + Var` call `Var.__radd__`

    def __init__(self, value: npt.ArrayLike, edges: Sequence[Edge] = ()) -> None:
        """Hold `value`; `edges` lists the operands with their VJPs (none for a leaf)."""
        self.value: Array = np.asarray(value, dtype=np.float64)
        self.grad: Array = np.zeros(self.value.shape)
        self.edges: tuple[Edge, ...] = tuple(edges)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return self.value.shape

    def __add__(self, other: Operand) -> Var:
        """Sum a + b."""
        a, b = self, as_var(other)
        return Var(
            a.value + b.value,
            [(a, lambda g: sum_to(g, a.shape)), (b, lambda g: sum_to(g, b.shape))],
        )

    def __sub__(self, other: Operand) -> Var:
        """Difference a - b."""
        a, b = self, as_var(other)
        return Var(
            a.value - b.value,
            [(a, lambda g: sum_to(g, a.shape)), (b, lambda g: sum_to(-g, b.shape))],
        )

    def __mul__(self, other: Operand) -> Var:
        """Elementwise a * b."""
        a, b = self, as_var(other)
        return Var(
            a.value * b.value,
            [
                (a, lambda g: sum_to(g * b.value, a.shape)),
                (b, lambda g: sum_to(g * a.value, b.shape)),
            ],
        )

    def __truediv__(self, other: Operand) -> Var:
        """Elementwise a / b."""
        a, b = self, as_var(other)
        return Var(
            a.value / b.value,
            [
                (a, lambda g: sum_to(g / b.value, a.shape)),
                (b, lambda g: sum_to(-g * a.value / b.value**2, b.shape)),
            ],
        )

    def __radd__(self, other: Operand) -> Var:
        """Sum with a constant on the left."""
        return as_var(other) + self

    def __rsub__(self, other: Operand) -> Var:
        """Difference with a constant on the left."""
        return as_var(other) - self

    def __rmul__(self, other: Operand) -> Var:
        """Product with a constant on the left."""
        return as_var(other) * self

    def __rtruediv__(self, other: Operand) -> Var:
        """Quotient with a constant on the left."""
        return as_var(other) / self

    def __neg__(self) -> Var:
        """Negative -a."""
        return Var(-self.value, [(self, lambda g: -g)])

    def __pow__(self, exponent: float) -> Var:
        """Power a ** p for a constant p; d/da = p a^(p-1)."""
        return Var(
            self.value**exponent,
            [(self, lambda g: g * exponent * self.value ** (exponent - 1))],
        )

    def __matmul__(self, other: Operand) -> Var:
        """Matrix product over the last two axes; the leading axes broadcast."""
        a, b = self, as_var(other)
        return Var(
            a.value @ b.value,
            [
                (a, lambda g: sum_to(g @ b.value.swapaxes(-1, -2), a.shape)),
                (b, lambda g: sum_to(a.value.swapaxes(-1, -2) @ g, b.shape)),
            ],
        )

    def __getitem__(self, index: Index) -> Var:
        """Basic indexing (integers, slices, None, Ellipsis)."""

        def vjp(g: Array) -> Array:
            out = np.zeros_like(self.value)
            out[index] = g
            return out

        return Var(self.value[index], [(self, vjp)])

    def sum(self, axis: Axis = None, keepdims: bool = False) -> Var:
        """Sum over `axis` (all axes if None)."""
        shape = self.value.sum(axis=axis, keepdims=True).shape
        return Var(
            self.value.sum(axis=axis, keepdims=keepdims),
            [(self, lambda g: np.broadcast_to(g.reshape(shape), self.shape))],
        )

    def mean(self, axis: Axis = None, keepdims: bool = False) -> Var:
        """Arithmetic mean over `axis` (all axes if None)."""
        total = self.sum(axis, keepdims)
        return total * (total.value.size / self.value.size)

    def reshape(self, shape: tuple[int, ...]) -> Var:
        """Same elements in row-major order, new shape."""
        return Var(self.value.reshape(shape), [(self, lambda g: g.reshape(self.shape))])

    def transpose(self, axes: tuple[int, ...]) -> Var:
        """Permute the axes: axis i of the result is axis `axes[i]` of the operand."""
        inverse = tuple(axes.index(i) for i in range(len(axes)))
        return Var(self.value.transpose(axes), [(self, lambda g: g.transpose(inverse))])

    def swapaxes(self, first: int, second: int) -> Var:
        """Exchange two axes."""
        return Var(
            self.value.swapaxes(first, second),
            [(self, lambda g: g.swapaxes(first, second))],
        )


def as_var(x: Operand) -> Var:
    """`x` itself if it is a `Var`, else a new leaf holding it."""
    return x if isinstance(x, Var) else Var(x)


def sum_to(g: Array, shape: tuple[int, ...]) -> Array:
    """Adjoint of broadcasting `shape` to `g.shape`: sum over every axis that was stretched."""
    new = g.ndim - len(shape)
    stretched = tuple(i for i, n in enumerate(g.shape) if i < new or shape[i - new] != n)
    total: Array = np.sum(g, axis=stretched, keepdims=True)
    return total.reshape(shape)


def exp(x: Var) -> Var:
    """e^x."""
    y = np.exp(x.value)
    return Var(y, [(x, lambda g: g * y)])


def log(x: Var) -> Var:
    """Natural logarithm."""
    return Var(np.log(x.value), [(x, lambda g: g / x.value)])


def tanh(x: Var) -> Var:
    """Hyperbolic tangent; d/dx = 1 - tanh^2 x."""
    y = np.tanh(x.value)
    return Var(y, [(x, lambda g: g * (1.0 - y**2))])


def sqrt(x: Var) -> Var:
    """Square root; d/dx = 1 / (2 sqrt x)."""
    y = np.sqrt(x.value)
    return Var(y, [(x, lambda g: g / (2.0 * y))])


def erf(x: Var) -> Var:
    """Error function; d/dx = 2/sqrt(pi) e^(-x^2)."""
    return Var(
        _erf(x.value),
        [(x, lambda g: g * (2.0 / math.sqrt(math.pi)) * np.exp(-(x.value**2)))],
    )


def absolute(x: Var) -> Var:
    """|x|, with the subgradient 0 at 0."""
    return Var(np.abs(x.value), [(x, lambda g: g * np.sign(x.value))])


def maximum(x: Var, floor: float) -> Var:
    """max(x, floor) for a constant floor, with the subgradient 0 at the kink."""
    return Var(np.maximum(x.value, floor), [(x, lambda g: np.where(x.value > floor, g, 0.0))])


def where(mask: Mask, a: Operand, b: Operand) -> Var:
    """`a` where the constant mask is true, else `b`."""
    a, b = as_var(a), as_var(b)
    return Var(
        np.where(mask, a.value, b.value),
        [
            (a, lambda g: sum_to(np.where(mask, g, 0.0), a.shape)),
            (b, lambda g: sum_to(np.where(mask, 0.0, g), b.shape)),
        ],
    )


def concatenate(parts: Sequence[Var], axis: int) -> Var:
    """Join along an existing axis."""
    ends = np.cumsum([part.shape[axis] for part in parts])

    def piece(n: int) -> Callable[[Array], Array]:
        return lambda g: np.split(g, ends[:-1], axis=axis)[n]

    return Var(
        np.concatenate([part.value for part in parts], axis=axis),
        [(part, piece(n)) for n, part in enumerate(parts)],
    )


def stack(parts: Sequence[Var], axis: int) -> Var:
    """Join along a new axis."""

    def piece(n: int) -> Callable[[Array], Array]:
        return lambda g: np.take(g, n, axis=axis)

    return Var(
        np.stack([part.value for part in parts], axis=axis),
        [(part, piece(n)) for n, part in enumerate(parts)],
    )


def softmax(x: Var, axis: int = -1) -> Var:
    """e^(x - c) / sum e^(x - c); the constant c = max x cancels, also in the gradient."""
    e = exp(x - x.value.max(axis=axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def sigmoid(x: Var) -> Var:
    """1 / (1 + e^(-x)), written as (1 + tanh(x/2)) / 2, which cannot overflow."""
    return 0.5 * (1.0 + tanh(0.5 * x))


def backward(output: Var, cotangent: npt.ArrayLike) -> None:
    """Set `grad` to d sum(output * cotangent) / d variable in every variable of the graph."""
    order = _operands_first(output)
    for var in order:
        var.grad = np.zeros(var.shape)
    output.grad = np.broadcast_to(np.asarray(cotangent, dtype=np.float64), output.shape)
    for var in reversed(order):
        for operand, vjp in var.edges:
            operand.grad = operand.grad + vjp(var.grad)


def _operands_first(output: Var) -> list[Var]:
    """Every variable below `output`, each after all the variables it was computed from."""
    order: list[Var] = []
    ids: set[int] = set()
    todo: list[tuple[Var, bool]] = [(output, False)]
    while todo:
        var, operands_done = todo.pop()
        if operands_done:
            order.append(var)
        elif id(var) not in ids:
            ids.add(id(var))
            todo.append((var, True))
            todo.extend((operand, False) for operand, _ in var.edges)
    return order
