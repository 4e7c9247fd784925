"""A model made fit for probing: a copy, a call that works, and what was measured once."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any, Protocol, TypeVar, final

import torch
from torch import nn

from addnorm.anatomy.inputs import Inputs
from addnorm.anatomy.structure import Structure, uniform
from addnorm.anatomy.trace import Trace, record

Owner = TypeVar("Owner", bound="Remembers")
Result = TypeVar("Result")


class Remembers(Protocol):
    """What measurements are kept with."""

    @property
    def memo(self) -> dict[Any, Any]:
        """What was measured, by the function that measures it."""


@final
@dataclass(frozen=True)
class Specimen:
    """A model that may be run, altered and run again, and a call with which it runs."""

    model: nn.Module
    """A deep copy in evaluation mode, float32 or float64, in which parameters that are constant by
    initialization (zeros above all) are random: branches that are dead by design are alive here.
    Who changes it (mode, weights, hooks) puts it back."""
    inputs: Inputs
    memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """What was measured once and is shared, see ``once``."""

    @cached_property
    def trace(self) -> Trace:
        """All operations of one forward of ``model`` on ``inputs``, with gradients enabled."""
        return record(lambda: self.inputs.call(self.model), self.model)

    @cached_property
    def structure(self) -> Structure:
        """The stream, sublayers, norms and attentions found in the trace."""
        return Structure(self.trace, self.model)


def once(measure: Callable[[Owner], Result]) -> Callable[[Owner], Result]:
    """A measurement that is made at the first call for an owner and remembered in its ``memo``:
    later calls give the same object, which nobody may change."""

    @wraps(measure)
    def remembered(owner: Owner) -> Result:
        if remembered not in owner.memo:
            owner.memo[remembered] = measure(owner)
        result: Result = owner.memo[remembered]
        return result

    return remembered


def bare_copy(model: nn.Module) -> nn.Module:
    """A deep copy in evaluation mode without gradients and without the user's hooks; raises what
    copying raises."""
    bare = copy.deepcopy(model).eval()
    bare.zero_grad(set_to_none=True)
    for module in bare.modules():
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        ):
            for key, hook in list(hooks.items()):
                if not str(getattr(hook, "__module__", "")).startswith("torch."):
                    del hooks[key]  # torch's own compute weights (weight_norm)
    return bare


def enliven(model: nn.Module) -> None:
    """Give random values to parameters that are one number by initialization, zeros above all, so
    that what they would hide is seen; the same on every call."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.is_floating_point() and p.numel() and uniform(p):
                # about as large as weights are, so that nothing is hidden and nothing explodes
                noise = torch.randn(p.shape, generator=generator) * 0.2
                p.add_(noise.to(p) if p.numel() > 1 else torch.full_like(p, 0.3))
