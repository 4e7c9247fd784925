"""What changes for a moment and is put back: modes, gradients, random numbers, hooks."""

import random
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

Before = Callable[[nn.Module, Any, Any], Any]
"""A hook before a forward: of the module, its arguments and its keyword arguments. What it returns,
unless it is None, replaces ``(args, kwargs)``."""
After = Callable[[nn.Module, Any, Any, Any], Any]
"""A hook after a forward: of the module, its arguments, its keyword arguments and its output. What
it returns, unless it is None, replaces the output."""


@contextmanager
def hooked(
    modules: Iterable[nn.Module], *, before: Before | None = None, after: After | None = None
) -> Iterator[None]:
    """Hooks on every one of the modules, removed at the end, after an exception too."""
    with ExitStack() as handles:
        for module in modules:
            if before is not None:
                handles.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
            if after is not None:
                handles.enter_context(module.register_forward_hook(after, with_kwargs=True))
        yield


@contextmanager
def evaluation_mode(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Each of these modules in evaluation mode, but no others inside them; afterwards in the mode
    that it was in."""
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def fixed_seed(seed: int = 0) -> Iterator[None]:
    """Torch's random numbers follow from the seed; those of the caller go on afterwards as if there
    had been nothing."""
    # A GPU's generator that nobody uses yet is not touched, for that would set the GPU up.
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=gpus):
        if gpus:
            torch.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def undisturbed(
    model: nn.Module | None = None, *, seed: int = 0, gradients: bool | None = None
) -> Iterator[None]:
    """For running somebody's code: afterwards, torch's random numbers and the modes of all modules
    are as before.

    Inside, random numbers follow from ``seed``, what the code warns of is not heard, and ``model``
    is in evaluation mode. ``gradients``: whether operations are recorded for a backward; None: as
    the caller has it.
    """
    modes = [] if model is None else [(m, m.training) for m in model.modules()]
    recording = torch.is_grad_enabled() if gradients is None else gradients
    with fixed_seed(seed), torch.set_grad_enabled(recording), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if model is not None:
                model.eval()  # which a model may do in a way of its own
            yield
        finally:
            for module, training in modes:
                module.training = training


@contextmanager
def isolated() -> Iterator[None]:
    """``undisturbed`` with gradients, and Python's and NumPy's random numbers are as before too."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with undisturbed(gradients=True):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
