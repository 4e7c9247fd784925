"""What a kernel of Add & Norm is: the call that it is offered, and what it gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from addnorm.ops.reference import Cast, Kind, Scale


class Spec(NamedTuple):
    """The constants of one call: everything that is not a tensor with a gradient."""

    kind: Kind
    eps: float
    weight_offset: float
    cast: Cast


class Call(NamedTuple):
    """What a kernel may look at when it decides whether to serve."""

    x: Tensor
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    keep: Scale
    gain: Scale
    spec: Spec


Made = tuple[Tensor, Tensor, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Kernel:
    """A fast implementation.

    ``declines(call)`` returns None to serve the call or the reason why not.
    ``forward(call)``, without gradients, returns ``(normed, stream, saved)``, where ``saved`` are
    tensors for backward, or the reason why it cannot serve these values.
    ``backward(dy, dstream, stream, saved, weight, bias, spec)`` returns the gradients of the stream
    (including ``dstream``, None where nobody else reads it), the weight and the bias. The chain
    through keep and gain is done here.
    """

    name: str
    declines: Callable[[Call], str | None]
    forward: Callable[[Call], Made | str]
    backward: Callable[
        [Tensor, Tensor | None, Tensor, tuple[Tensor, ...], Tensor | None, Tensor | None, Spec],
        tuple[Tensor, Tensor | None, Tensor | None],
    ]
