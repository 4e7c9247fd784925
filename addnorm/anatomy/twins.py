"""Modules that are the same up to their weights: what is measured of one holds for all of them."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

_SMALL = 1_000_000  # numbers in a buffer up to which it is compared by what it holds


def twin_key(module: nn.Module) -> Hashable:
    """Equal for modules of one class whose settings, shapes, buffers and children are equal.

    Whatever is not a plain setting (a function put on an instance, an object of its own) is equal
    to itself only.
    """
    attributes = vars(module)
    plain = tuple(
        (name, _hashable(value))
        for name, value in sorted(attributes.items())
        if name not in ("_parameters", "_buffers", "_modules") and "hooks" not in name
    )
    weights = tuple(
        (name, None if p is None else (tuple(p.shape), p.dtype))
        for name, p in module._parameters.items()
    )
    buffers = tuple((name, _hashable(b)) for name, b in module._buffers.items())
    children = tuple(
        (name, None if child is None else twin_key(child))
        for name, child in module._modules.items()
    )
    return type(module), plain, weights, buffers, children


def _hashable(value: Any) -> Hashable:
    """Equal for settings that are equal, with tensors by their bytes; its id for anything else."""
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device):
        return type(value), value
    if isinstance(value, tuple | list | set | frozenset):
        return type(value), tuple(_hashable(v) for v in value)
    if isinstance(value, dict):
        return dict, tuple((str(k), _hashable(v)) for k, v in value.items())
    if isinstance(value, Tensor) and value.numel() <= _SMALL:
        numbers = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return tuple(value.shape), value.dtype, numbers.numpy().tobytes()
    return id(value)


def call_key(args: Any, kwargs: Any) -> Hashable:
    """Equal for calls of a module with the same arguments, up to the numbers in their tensors."""
    leaves, tree = torch.utils._pytree.tree_flatten((args, kwargs))
    return str(tree), tuple(
        (tuple(v.shape), v.dtype) if isinstance(v, Tensor) else _hashable(v) for v in leaves
    )
