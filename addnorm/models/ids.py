"""What ids a model reads."""

import torch
from torch import Tensor

from addnorm.errors import Mendable


def check_ids(ids: Tensor, vocab_size: int) -> None:
    """Raise a ``Mendable`` if they are not whole numbers of shape (B, T), each of the vocabulary:
    on a GPU one beyond it would be an error without a message. While compiling, values are not
    looked at."""
    if ids.dim() != 2 or ids.dtype not in (torch.int32, torch.int64):
        raise Mendable(
            "ids must be whole numbers of shape (B, T) in int64 or int32, got "
            f"{tuple(ids.shape)} in {ids.dtype}"
        )
    if not torch.compiler.is_compiling() and ids.numel():
        low, high = (int(v) for v in ids.aminmax())
        if low < 0 or high >= vocab_size:
            wrong = high if high >= vocab_size else low
            raise Mendable(f"id {wrong} is outside the vocabulary of {vocab_size}")


def check_sequence(
    ids: Tensor, vocab_size: int, context: int, what: str, past: int | Tensor = 0
) -> None:
    """Raise where ids are of another shape or type, longer than the context, or not below
    ``vocab_size``. ``what``: source or target, for the message. ``past``: how many tokens of a
    cache stand before them."""
    if ids.dim() != 2 or ids.dtype not in (torch.int32, torch.int64):
        raise Mendable(
            f"{what} must be whole numbers of shape (B, T) in int64 or int32, got "
            f"{tuple(ids.shape)} in {ids.dtype}"
        )
    if not isinstance(past, Tensor) and past + ids.shape[1] > context:  # a tensor: while compiling
        raise Mendable(
            f"a {what} of {past + ids.shape[1]} tokens is longer than the context of {context}"
        )
    if not torch.compiler.is_compiling() and ids.numel():
        low, high = (int(v) for v in ids.aminmax())
        if low < 0 or high >= vocab_size:
            raise Mendable(
                f"id {high if high >= vocab_size else low} of the {what} is outside its vocabulary "
                f"of {vocab_size}"
            )
