"""Masks among the arguments of a model: how to tell them, and how to write one."""

import re
from typing import Literal

import torch
from torch import Tensor, nn

MASK = re.compile(r"mask|(^|_)(valid|keep|pad|padding|attend)(_|$)|padding")
"""In lower-case names of arguments that are masks."""


def is_mask(name: str, value: Tensor) -> bool:
    """Whether an argument is a mask: booleans; what is called so and holds 0 and 1; or zeros and
    large negative numbers, under such a name or without one ("0", "1": given by place)."""
    if value.dtype is torch.bool:
        return True
    low = name.lower()
    if not name.isdecimal() and not MASK.search(low):
        return False
    if value.is_floating_point():
        blocked = value[value != 0]  # no bias that is learned or computed is so far below 0
        return bool(value.numel()) and bool((blocked < -1e3).all()) and blocked.numel() > 0
    return not name.isdecimal() and bool(((value == 0) | (value == 1)).all())


MaskReading = Literal["keep", "drop", "additive"]
"""How a model reads a mask: 1 or True is seen; is hidden; or it is added, and -inf hides."""


def as_mask(keep: Tensor, reading: MaskReading, dtype: torch.dtype, floats: torch.dtype) -> Tensor:
    """``keep``, which is True for what may be seen, as a mask whose ``reading`` by the model is
    this: 1 keeps, 1 drops, or it is added, -inf for what is hidden. ``dtype`` is the mask's; one
    that is added has the model's ``floats`` instead."""
    if reading == "additive":
        return torch.zeros(keep.shape, dtype=floats).masked_fill(~keep, float("-inf"))
    marks = keep if reading == "keep" else ~keep
    return marks if dtype is torch.bool else marks.to(dtype)


def mask_values(batch: int, places: int, floats: torch.dtype) -> list[Tensor]:
    """Padding masks that keep everything, in the shapes and types people use."""
    whole = torch.ones(batch, places, dtype=torch.bool)
    shaped = [whole, whole[:, None, None, :], whole[:, None, :]]
    return [*(m.long() for m in shaped[:1]), *shaped, *(m.to(floats) for m in shaped[:1])]


def floats_of(model: nn.Module) -> torch.dtype:
    """The floating-point type of the model's weights."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
