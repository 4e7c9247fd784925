"""Processes beside that of the tests, which start quickly.

They are forked from a process that has imported torch and done nothing else, since that takes
longer than all that they do.
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import torch

multiprocessing.set_forkserver_preload(
    ["torch", "torch._dynamo", "torch.distributed.fsdp", "addnorm.training.run"]
)


def begin(work: Callable[..., None], *args: Any) -> BaseProcess:
    """Call ``work(*args)`` in a new process; it may be ended by a signal."""
    process = multiprocessing.get_context("forkserver").Process(target=work, args=args)
    process.start()
    return process


def run_side_by_side(work: Callable[..., None], number: int, *args: Any) -> None:
    """Call ``work(rank, *args)`` in so many processes, and wait; raises what one of them raises."""
    torch.multiprocessing.start_processes(work, args=args, nprocs=number, start_method="forkserver")
