"""One call of a model: what it is given."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn


@final
@dataclass(frozen=True)
class Inputs:
    """One call of a model: ``model(*args, **kwargs)``."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None

    def call(self, model: nn.Module) -> Any:
        """What the model returns; inputs are cloned first, for a model may write into them."""
        copies = torch.utils._pytree.tree_map_only(Tensor, Tensor.clone, (self.args, self.kwargs))
        args, kwargs = copies
        return model(*args, **(kwargs or {}))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are passed: "0", "1" ... by place, else by name."""
        values = {str(i): value for i, value in enumerate(self.args)} | (self.kwargs or {})
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def replaced(self, name: str, value: Any) -> "Inputs":
        """A new call with another value of one argument, named as in ``tensors``: a name of digits
        is a place, which must be there, any other may be new."""
        if name.isdecimal():
            args = list(self.args)
            args[int(name)] = value
            return Inputs(tuple(args), self.kwargs)
        return Inputs(self.args, {**(self.kwargs or {}), name: value})


def inputs_from(batch: Any) -> Inputs:
    """What a user gave as a call: a tensor, a tuple of positional or a dict of keyword arguments;
    a ``TypeError`` for anything else."""
    if isinstance(batch, Inputs):
        return batch
    if isinstance(batch, Tensor):
        return Inputs((batch,))
    if isinstance(batch, Mapping):  # a tokenizer's BatchEncoding is a mapping and no dict
        if not batch or not all(isinstance(name, str) for name in batch):
            raise TypeError("inputs as a dict are keyword arguments: names to values, at least one")
        return Inputs((), dict(batch))
    if isinstance(batch, tuple | list):
        return Inputs(tuple(batch))
    raise TypeError(
        "inputs must be a tensor, a tuple of positional arguments or a dict of keyword arguments, "
        f"got {type(batch).__name__}"
    )


def cast_floats(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """A new call with the floating-point tensors in another type, those in lists and dicts too."""
    args, kwargs = torch.utils._pytree.tree_map_only(
        Tensor,
        lambda t: t.to(dtype) if t.is_floating_point() else t,
        (inputs.args, inputs.kwargs),
    )
    return Inputs(args, kwargs)
