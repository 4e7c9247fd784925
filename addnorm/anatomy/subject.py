"""What the rules look at: a copy of the model, made fit for probing, and a call that works."""

import copy
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from addnorm.anatomy.inputs import Inputs
from addnorm.anatomy.structure import Structure, uniform
from addnorm.anatomy.trace import Trace, record


@dataclass(frozen=True)
class Subject:
    """A model under examination."""

    original: nn.Module
    """The user's own. Read only: rules look at its weights and never call it."""
    model: nn.Module
    """A deep copy in evaluation mode, float32 or float64, in which parameters that are constant by
    initialization (zeros above all) are random: branches that are dead by design are alive here.
    A rule that changes it (mode, weights, hooks) puts it back."""
    inputs: Inputs
    causal: bool | None = None
    """True: position t must not see what comes after; False: it may; None: nobody said."""
    optimizer: torch.optim.Optimizer | None = None
    memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What rules have measured and share, by the name of the measurement."""

    @cached_property
    def trace(self) -> Trace:
        """All operations of one forward of ``model`` on ``inputs``, with gradients enabled."""
        return record(lambda: self.inputs.call(self.model), self.model)

    @cached_property
    def structure(self) -> Structure:
        """The stream, sublayers, norms and attentions found in the trace."""
        return Structure(self.trace, self.model)


def bare_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode without gradients and without the user's hooks."""
    made = copy.deepcopy(model).eval()
    made.zero_grad(set_to_none=True)
    for module in made.modules():
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        ):
            for key, hook in list(hooks.items()):
                if not str(getattr(hook, "__module__", "")).startswith("torch."):
                    del hooks[key]  # torch's own compute weights (weight_norm)
    return made


def enliven(model: nn.Module) -> None:
    """Give random values to parameters that are one number by initialization, zeros above all, so
    that what they would hide is seen; the same on every call."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.is_floating_point() and p.numel() and uniform(p):
                noise = torch.randn(p.shape, generator=generator) * 0.2
                p.add_(noise.to(p) if p.numel() > 1 else torch.full_like(p, 0.3))


@contextmanager
def left_alone() -> Iterator[None]:
    """Random number generators, default dtype and the like are as before afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
