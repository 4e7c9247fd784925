"""Models over several processes."""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from addnorm.norms import Norm
from addnorm.stream import Stack


def shard(
    model: nn.Module, mesh: DeviceMesh | None = None, *, dtype: torch.dtype | None = None
) -> nn.Module:
    """FSDP2 over every sublayer of every ``Stack`` in the model, in place.

    ``dtype`` (say bfloat16) is what the branches compute in; None leaves the parameters' own. Two
    things are then kept out of it: the norms, whose parameters stay as they are, and the residual
    stream, which FSDP2 would cast on entry of each sublayer since a Stream is a pytree of tensors.
    A branch casts its own input.
    """
    whole = MixedPrecisionPolicy(cast_forward_inputs=False)
    branches = MixedPrecisionPolicy(param_dtype=dtype, cast_forward_inputs=False)
    for stack in (m for m in model.modules() if isinstance(m, Stack)):
        for sub in stack.sublayers():
            if dtype is not None:
                for norm in [m for m in sub.modules() if isinstance(m, Norm)]:
                    if any(p is not None for p in norm.parameters()):
                        fully_shard(norm, mesh=mesh, mp_policy=whole)
            fully_shard(sub, mesh=mesh, mp_policy=branches)
    fully_shard(model, mesh=mesh, mp_policy=whole)
    return model
