"""Modules that are the same up to their weights: what is measured of one holds for all of them."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

_SMALL = 1_000_000  # numbers in a buffer up to which it is compared by what it holds


def sort_of(module: nn.Module) -> Hashable:
    """Equal for modules of one class whose settings, shapes, buffers and children are equal.

    Whatever is no plain setting (a function put on an instance, an object of its own) is equal to
    itself only.
    """
    held = vars(module)
    plain = tuple(
        (name, _told(value))
        for name, value in sorted(held.items())
        if name not in ("_parameters", "_buffers", "_modules") and "hooks" not in name
    )
    weights = tuple(
        (name, None if p is None else (tuple(p.shape), p.dtype))
        for name, p in module._parameters.items()
    )
    buffers = tuple((name, _told(b)) for name, b in module._buffers.items())
    children = tuple(
        (name, None if child is None else sort_of(child)) for name, child in module._modules.items()
    )
    return type(module), plain, weights, buffers, children


def _told(value: Any) -> Hashable:
    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device):
        return type(value), value
    if isinstance(value, tuple | list | set | frozenset):
        return type(value), tuple(_told(v) for v in value)
    if isinstance(value, dict):
        return dict, tuple((str(k), _told(v)) for k, v in value.items())
    if isinstance(value, Tensor) and value.numel() <= _SMALL:
        kept = value.detach().cpu().contiguous()
        return tuple(value.shape), value.dtype, kept.reshape(-1).view(torch.uint8).numpy().tobytes()
    return id(value)


def given_as(args: Any, kwargs: Any) -> Hashable:
    """What a module was called with, up to the numbers in its tensors."""
    leaves, tree = torch.utils._pytree.tree_flatten((args, kwargs))
    return str(tree), tuple(
        (tuple(v.shape), v.dtype) if isinstance(v, Tensor) else _told(v) for v in leaves
    )
