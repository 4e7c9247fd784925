"""One call of a model: what it is given, and which tensor its output is about."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


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
        named = {str(i): value for i, value in enumerate(self.args)} | (self.kwargs or {})
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def replaced(self, name: str, value: Any) -> "Inputs":
        """With another value of one argument, named as in ``tensors``."""
        if name.isdecimal():
            args = list(self.args)
            args[int(name)] = value
            return Inputs(tuple(args), self.kwargs)
        return Inputs(self.args, {**(self.kwargs or {}), name: value})


def main_output(out: Any) -> Tensor:
    """The tensor that a model's output is about: ``logits``, ``last_hidden_state``, else the first
    floating-point tensor in it."""
    for name in ("logits", "prediction_logits", "last_hidden_state"):
        found = out.get(name) if isinstance(out, dict) else getattr(out, name, None)
        if isinstance(found, Tensor):
            return found
    for leaf in torch.utils._pytree.tree_leaves(out):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf
    raise ValueError(
        f"the model returned {type(out).__name__}, with no floating-point tensor in it"
    )
