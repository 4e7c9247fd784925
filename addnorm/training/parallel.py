"""Models over several processes: who is there, sums over all, DDP and FSDP2."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar, cast, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from addnorm.errors import Mendable
from addnorm.norms import Norm
from addnorm.settings import SettingsError
from addnorm.stream import Stack

Parallel = Literal["ddp", "fsdp"]
Result = TypeVar("Result")


@final
@dataclass(frozen=True)
class World:
    """This process among all of a run. What its methods exchange comes from all: each process must
    call them, in the same order, or the others wait for ever."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def gather(self, value: object) -> list[object]:
        """What each process has, in the order of ranks; small things only."""
        if self.size == 1:
            return [value]
        values: list[object] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def share(self, value: object) -> object:
        """What the first process has, for all; small things only."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(
            box, device=None if dist.get_backend() == "gloo" else self.device
        )
        return box[0]

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()


def sum_dtype(device: torch.device) -> torch.dtype:
    """For sums over processes: not every accelerator has float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def by_the_first(world: World, work: Callable[[], Result]) -> Result:
    """The result of ``work``, which the first process does while the others wait; all must call.

    If it fails, all fail: the first with its own error, the others with a ``SettingsError`` if a
    user can mend that, else with a ``RuntimeError``.
    """
    result, failure = None, None
    if world.first:
        try:
            result = work()
        except Exception as error:
            failure = error
    outcome = world.share((result, failure and (str(failure), isinstance(failure, Mendable))))
    if failure is not None:
        raise failure
    result, wrong = cast(tuple[Result, tuple[str, bool] | None], outcome)
    if wrong is not None:
        raise (SettingsError if wrong[1] else RuntimeError)(f"on the first process: {wrong[0]}")
    return result


def start(device: str = "auto") -> World:
    """Join the others, if torchrun started this process, and choose a device.

    ``device`` is as in the settings: "auto", or what torch calls it. A process group that exists
    already is used as it is; "cuda" is this process's own of the machine's GPUs.
    """
    kind = _device(device)
    if not dist.is_initialized() and dist.is_torchelastic_launched():
        dist.init_process_group("nccl" if kind.startswith("cuda") else "gloo")
    if not dist.is_initialized():
        return World(0, 1, torch.device(kind))
    if kind == "cuda":
        local = dist.get_node_local_rank()
        torch.cuda.set_device(local)
        return World(dist.get_rank(), dist.get_world_size(), torch.device("cuda", local))
    return World(dist.get_rank(), dist.get_world_size(), torch.device(kind))


def _device(wish: str) -> str:
    """The name of the device that a setting asks for, with "auto" resolved; a ``SettingsError`` if
    this machine does not have it."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    names = ["cpu"]
    if accelerator is not None:
        count = torch.accelerator.device_count()
        names = [accelerator.type, *(f"{accelerator.type}:{i}" for i in range(count)), "cpu"]
    if wish == "auto":
        return names[0]
    if wish not in names:
        raise SettingsError(f"device={wish} is not here: there are auto, {', '.join(names)}")
    return wish


def here(device: torch.device) -> World:
    """This process among those that are joined already, computing on ``device``."""
    if not dist.is_initialized():
        return World(0, 1, device)
    return World(dist.get_rank(), dist.get_world_size(), device)


def stop() -> None:
    """Leave the others."""
    if dist.is_initialized():
        dist.destroy_process_group()


def distributed_model(model: nn.Module, world: World, how: Parallel) -> nn.Module:
    """The module to call in training: the model itself if there is only one process; with "ddp" a
    wrapper around it, with "fsdp" the model again, its parameters divided in place."""
    if world.size == 1:
        return model
    if how == "fsdp":
        kind = world.device.type
        mesh = dist.device_mesh.init_device_mesh(kind, (world.size,))
        return shard(model, mesh)
    return DistributedDataParallel(model)


def whole(t: Tensor) -> Tensor:
    """A tensor that may be spread over processes, put together; all must ask."""
    return t.full_tensor() if isinstance(t, DTensor) else t


def put(target: Tensor, value: Tensor) -> None:
    """Copy a whole value into ``target``, in place; of one that is spread over processes, each
    takes its part, and all must call."""
    with torch.no_grad():
        if isinstance(target, DTensor):
            value = distribute_tensor(
                value.to(target.device), target.device_mesh, target.placements
            )
        target.copy_(value)


def shard(
    model: nn.Module, mesh: DeviceMesh | None = None, *, dtype: torch.dtype | None = None
) -> nn.Module:
    """FSDP2 over every sublayer of every ``Stack`` in the model, in place; the same is returned.
    ``mesh``: the processes that it is divided among; None: all.

    ``dtype`` (say bfloat16) is what the branches compute in; None leaves the parameters' own. Two
    things are then kept out of it: the norms, whose parameters stay as they are, and the residual
    stream, which FSDP2 would cast on entry of each sublayer since a Stream is a pytree of tensors.
    A branch casts its own input.
    """
    unchanged = MixedPrecisionPolicy(cast_forward_inputs=False)
    branches = MixedPrecisionPolicy(param_dtype=dtype, cast_forward_inputs=False)
    for stack in (m for m in model.modules() if isinstance(m, Stack)):
        for sub in stack.sublayers():
            if dtype is not None:
                for norm in [m for m in sub.modules() if isinstance(m, Norm)]:
                    if any(p is not None for p in norm.parameters()):
                        fully_shard(norm, mesh=mesh, mp_policy=unchanged)
            fully_shard(sub, mesh=mesh, mp_policy=branches)
    fully_shard(model, mesh=mesh, mp_policy=unchanged)
    return model
