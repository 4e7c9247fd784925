"""What a model or module returns: the tensor that it is about, and all that are in it."""

from typing import Any

import torch
from torch import Tensor


def main_output(out: Any) -> Tensor:
    """The tensor that a model's output is about: ``logits``, ``last_hidden_state``, else the first
    floating-point tensor in it; a ``ValueError`` where there is none."""
    for name in ("logits", "prediction_logits", "last_hidden_state"):
        value = out.get(name) if isinstance(out, dict) else getattr(out, name, None)
        if isinstance(value, Tensor):
            return value
    for leaf in torch.utils._pytree.tree_leaves(out):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf
    raise ValueError(
        f"the model returned {type(out).__name__}, with no floating-point tensor in it"
    )


def first_tensor(out: Any) -> Tensor | None:
    """The first tensor of an output, of any dtype; None: there is none."""
    for leaf in torch.utils._pytree.tree_leaves(out):
        if isinstance(leaf, Tensor):
            return leaf
    return None


def first_float(out: Any) -> Tensor | None:
    """The first floating-point tensor of an output, objects with values included; None: there is
    none."""
    for leaf in torch.utils._pytree.tree_leaves(as_tuple(out)):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf
    return None


def as_tuple(out: Any) -> Any:
    """An output as a tuple, where it is an object with values."""
    return tuple(out.values()) if hasattr(out, "values") and not isinstance(out, Tensor) else out


def tensors_in(*tree: Any) -> list[Tensor]:
    """All tensors in what a function is given or gives."""
    return [t for t in torch.utils._pytree.tree_leaves(tree) if isinstance(t, Tensor)]


def largest(t: Tensor) -> float:
    """The largest absolute value, NaN left out."""
    return float(t.nan_to_num().abs().max()) if t.numel() else 0.0
