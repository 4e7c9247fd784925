"""Processes beside that of the tests, which start quickly."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch

LOADED = ["torch", "torch._dynamo", "torch.distributed.fsdp", "addnorm.training.run"]


def run_side_by_side(work: Callable[..., None], number: int, *args: Any) -> None:
    """Call ``work(rank, *args)`` in so many new processes, and wait; raises what one of them does.

    They are forked from a process that has imported torch and done nothing else, since that takes
    longer than all that they do.
    """
    multiprocessing.set_forkserver_preload(LOADED)
    torch.multiprocessing.start_processes(work, args=args, nprocs=number, start_method="forkserver")
