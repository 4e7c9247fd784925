"""What ids a language model reads."""

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
