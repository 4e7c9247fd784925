"""Masks: who may look at what, and what is added to the logits there.

A boolean mask says what *may* happen: ``valid`` (B, S) True = real token, ``attend`` (T, S),
(B, T, S) or (B, H, T, S) True = may look. A ``bias`` of the same shapes is added to the attention
logits.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def visible(
    shape: tuple[int, int, int, int],
    device: torch.device,
    valid: Tensor | None,
    attend: Tensor | None,
    *,
    causal: bool = False,
    window: int | None = None,
    first: int | Tensor | None = None,
    of: str = "",
) -> Tensor | None:
    """Who may look at what, all masks together, broadcastable to ``shape``, (B, H, T, S); None if
    everything is visible. A ``ValueError`` where a mask has another shape.

    ``window``: with ``causal``, how many keys a query sees, its own included; None: all.
    ``first`` is the place of the first query among the keys: unless given, the T queries are the
    last of the S keys. ``of`` stands before the name of a mask in messages.
    """
    batch, _, new, total = shape
    parts = []
    if valid is not None:
        if valid.shape != (batch, total):
            raise ValueError(
                f"{of}valid must have shape (B, S) = ({batch}, {total}), one entry per key, "
                f"got {tuple(valid.shape)}"
            )
        parts.append(valid[:, None, None, :])
    if attend is not None:
        parts.append(full_shape(f"{of}attend", attend, shape))
    if causal:
        i = (total - new if first is None else first) + torch.arange(new, device=device)[:, None]
        j = torch.arange(total, device=device)[None, :]
        parts.append(j <= i)
        if window is not None:
            parts.append(j > i - window)
    if not parts:
        return None
    mask = parts[0]
    for part in parts[1:]:
        mask = mask & part
    return mask


def full_shape(name: str, mask: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """A mask (T, S), (B, T, S) or (B, H, T, S) as four axes that broadcast to ``shape``, (B, H, T,
    S); else a ``ValueError`` that calls it ``name``."""
    if mask.dim() not in (2, 3, 4):
        raise ValueError(
            f"{name} must be (T, S), (B, T, S) or (B, H, T, S), got {mask.dim()} axes: "
            f"{tuple(mask.shape)}"
        )
    full = mask[:, None] if mask.dim() == 3 else mask[(None,) * (4 - mask.dim())]
    axes = ("B (batch)", "H (heads)", "T (queries)", "S (keys)")
    for axis, size, want in zip(axes, full.shape, shape, strict=True):
        if size not in (1, want):
            raise ValueError(
                f"{name}: axis {axis} has {size} entries, expected {want} or 1; "
                f"(B, H, T, S) = {shape}, got {tuple(mask.shape)}"
            )
    return full


def split_bias(
    name: str, bias: Tensor, mask: Tensor | None, shape: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor]:
    """(what may be looked at, what is added there): an additive mask says the first by -inf.

    ``mask``: what may be looked at as far as other masks say, None: everything. The bias that is
    returned is finite, 0 where it was -inf; ``name`` and ``shape`` are as of ``full_shape``.
    """
    bias = full_shape(name, bias, shape)
    finite = bias != -math.inf
    return finite if mask is None else mask & finite, bias.masked_fill(~finite, 0.0)


def longer_masks(
    more: int, total: int, mask: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """``mask`` and ``bias`` of ``total`` keys, made longer for ``more`` keys that stand before them
    and that every query sees, with nothing added. None stays None."""
    if mask is not None:
        mask = F.pad(mask.expand(*mask.shape[:-1], total), (more, 0), value=True)
    if bias is not None:
        bias = F.pad(bias.expand(*bias.shape[:-1], total), (more, 0))
    return mask, bias


# --- guards ---------------------------------------------------------------------------------------


def check_masks(
    valid: Tensor | None, attend: Tensor | None, bias: Tensor | None, of: str = ""
) -> None:
    """Raise where a mask says the opposite of what it seems to mean: a ``TypeError`` for its dtype,
    a ``ValueError`` for its values. ``of`` stands before its name. Shapes are not checked here.

    PyTorch's ``key_padding_mask`` and ``attn_mask`` are True where a token must *not* be seen.
    Values are looked at, which a compiler cannot trace and a GPU has to be waited for.
    """
    if valid is not None:
        _check_bool(f"{of}valid", valid, "real token")
        _check_padding(f"{of}valid", valid)
    if attend is not None:
        _check_bool(f"{of}attend", attend, "may look")
        t, s = (1, 1, *attend.shape)[-2:]  # a mask of too few axes is the branch's to name
        if t == s > 1 and torch.equal(attend, attend.new_ones(t, s).triu(1).expand_as(attend)):
            raise ValueError(
                f"{of}attend looks inverted: every token sees only those after it. True means may "
                "look; pass ~mask for a mask that is True where looking is forbidden"
            )
    if bias is not None and not bias.is_floating_point():
        raise TypeError(
            f"{of}bias is added to the attention logits and must be floating point, got "
            f"{bias.dtype}; what may be seen goes into attend"
        )


def _check_padding(name: str, valid: Tensor) -> None:
    """Raise a ``ValueError`` that names ``name`` if ``valid`` is what an inverted mask of
    right-padded rows of unlike length looks like: the longest row has no real token, and the others
    begin with padding and end in tokens."""
    if valid.dim() != 2 or valid.numel() == 0:
        return  # the branch names what is wrong with the shape
    some, every = valid.any(-1), valid.all(-1)
    mixed = some & ~every
    trailing = ~valid[..., 0] & valid[..., -1]
    if (~some).any() and mixed.any() and not every.any() and trailing[mixed].all():
        raise ValueError(
            f"{name} looks inverted: a row has no real token and the others end in them. True "
            "means real token; pass ~mask for a mask that is True at padding"
        )


def _check_bool(name: str, mask: Tensor, meaning: str) -> None:
    """Raise a ``TypeError`` unless a mask is boolean; ``meaning`` says in the message what True
    is."""
    if mask.dtype != torch.bool:
        raise TypeError(
            f"{name} must be boolean, True = {meaning}, got {mask.dtype}; numbers to add to the "
            "attention logits go into Context.bias"
        )
