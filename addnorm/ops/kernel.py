"""What a kernel of Add & Norm is: the call that it is offered, and what it gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

from torch import Tensor

from addnorm.ops.reference import Cast, NormKind, Scale


class NormSpec(NamedTuple):
    """The constants of one call: everything that is not a tensor with a gradient."""

    kind: NormKind
    eps: float
    weight_offset: float
    cast: Cast


class NormCall(NamedTuple):
    """The arguments of ``add_norm``, which a kernel looks at to decide whether it serves."""

    x: Tensor
    """(..., D)."""
    residual: Tensor | None
    """Of the same shape; None: the stream is gain * x."""
    weight: Tensor | None
    """(D,)."""
    bias: Tensor | None
    """(D,)."""
    keep: Scale
    """The factor on ``residual``: a number, or a tensor that broadcasts to it."""
    gain: Scale
    """The factor on ``x``: a number, or a tensor that broadcasts to it."""
    spec: NormSpec
    """Which norm it is."""


class NormOutput(NamedTuple):
    """What a kernel's forward gives."""

    normed: Tensor
    """In the dtype of x."""
    stream: Tensor
    """keep * residual + gain * x, in the dtype of the residual."""
    statistics: tuple[Tensor, ...]
    """What its backward reads again."""


@final
@dataclass(frozen=True)
class NormKernel:
    """A fast implementation of ``add_norm``.

    ``name``: what ``ops.explain()`` calls it.
    ``forward``: ``forward(call)`` is called without gradients, and raises ``Declined`` with the
    reason if this kernel does not serve the call, at once or after a look at its values.
    ``backward``: ``backward(dy, dstream, stream, statistics, weight, bias, spec)`` returns the
    gradients of the stream (including ``dstream``, None where nobody else reads it), the weight
    and the bias. The chain through keep and gain is not the kernel's.
    """

    operation: ClassVar[str] = "add_norm"

    name: str
    forward: Callable[[NormCall], NormOutput]
    backward: Callable[
        [Tensor, Tensor | None, Tensor, tuple[Tensor, ...], Tensor | None, Tensor | None, NormSpec],
        tuple[Tensor, Tensor | None, Tensor | None],
    ]
