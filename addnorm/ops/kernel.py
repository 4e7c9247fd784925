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
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    keep: Scale
    gain: Scale
    spec: NormSpec


class NormOutput(NamedTuple):
    """What a kernel's forward gives; ``statistics`` are tensors that its backward reads again."""

    normed: Tensor
    stream: Tensor
    statistics: tuple[Tensor, ...]


@final
@dataclass(frozen=True)
class NormKernel:
    """A fast implementation of ``add_norm``.

    ``forward(call)`` is called without gradients, and raises ``Declined`` with the reason if this
    kernel does not serve the call, at once or after a look at its values.
    ``backward(dy, dstream, stream, statistics, weight, bias, spec)`` returns the gradients of the
    stream (including ``dstream``, None where nobody else reads it), the weight and the bias. The
    chain through keep and gain is not the kernel's.
    """

    operation: ClassVar[str] = "add_norm"

    name: str
    forward: Callable[[NormCall], NormOutput]
    backward: Callable[
        [Tensor, Tensor | None, Tensor, tuple[Tensor, ...], Tensor | None, Tensor | None, NormSpec],
        tuple[Tensor, Tensor | None, Tensor | None],
    ]
