"""How much memory a training needs at least, told before it is asked for.

A lower bound: weights, their gradients and the optimizer's states, and the part of a micro-batch
that grows fastest. What it refuses could not have worked; what it lets through may still be too
large.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from addnorm.settings import SettingsError
from addnorm.training.loop_settings import LoopSettings
from addnorm.training.parallel import World

COUNTED = 64  # layers up to which a model is built to be counted; a deeper one is extrapolated
MODULES = 100_000
"""Bytes of a layer's modules, without parameters: 125,000 were measured, and this is a lower
bound."""
CGROUP = Path("/sys/fs/cgroup/memory.max")  # what a container may have


class Needs(NamedTuple):
    """What one process needs that holds the whole model."""

    parameters: int  # how many numbers
    trained: int  # how many of them have a gradient
    modules: int  # bytes of the modules themselves, without their parameters
    batch: int  # bytes, of the rows that it has and those that go through the model at once
    because: str  # the settings that decide it, as one writes them: the end of the message


def counted(make: Callable[[int], nn.Module], layers: int) -> tuple[int, int]:
    """(numbers in all parameters, those in the trained ones) of the model that ``make`` builds with
    so many layers, on the meta device. A deep model's follow from two shallow ones, since all
    layers have as many and its modules alone would take long."""
    try:
        if layers <= COUNTED:
            return _count(make(layers))
        few, more = _count(make(COUNTED - 1)), _count(make(COUNTED))
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        return 1 << 62, 1 << 62  # a size that torch cannot count: more than any machine has
    first, second = (b + (layers - COUNTED) * (b - a) for a, b in zip(few, more, strict=True))
    return first, second


def _count(model: nn.Module) -> tuple[int, int]:
    ps = list(model.parameters())
    return sum(p.numel() for p in ps), sum(p.numel() for p in ps if p.requires_grad)


def check(needs: Needs, loop: LoopSettings, world: World) -> None:
    """Raise a ``SettingsError`` if a process needs more than its device or this machine has, free
    or not. ``loop`` says how many numbers the optimizer keeps, and whether FSDP divides them among
    the processes of ``world``."""
    states = 1 if loop.optimizer == "muon" else 2  # of the optimizer, for each trained number
    divided = world.size if loop.parallel == "fsdp" else 1
    # Of 4 bytes each: the weights, and for the trained ones the gradient and the states.
    training = 4 * (needs.parameters + (1 + states) * needs.trained) // divided
    model = 4 * needs.parameters + needs.modules  # whole, in the process's own memory first
    if world.device.type == "cpu":
        required = {"this machine": max(training + needs.modules, model) + needs.batch}
    else:
        required = {str(world.device): training + needs.batch, "this machine": model}
    for place, need in required.items():
        total = _total_memory(world.device if place != "this machine" else torch.device("cpu"))
        if total is not None and need > total:
            raise SettingsError(
                f"this training needs at least {need / 1e9:,.0f} GB of memory "
                f"({needs.parameters:,} parameters, {needs.batch / 1e9:,.1f} GB for the rows at "
                f"once), and {place} has {total / 1e9:,.0f}. What decides it: {needs.because}"
            )


def _total_memory(device: torch.device) -> int | None:
    """Bytes of memory that a device has, whether free or not: of a CPU the machine's, or less where
    the container may have less. None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type != "cpu":
        return None
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None
    try:
        limit = CGROUP.read_text().strip()
    except OSError:
        return memory
    return min(memory, int(limit)) if limit.isdecimal() else memory
