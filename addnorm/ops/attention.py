"""Attention: its definition, the one door to it, and the kernels that serve it faster.

    y = softmax(scale * q k^T + bias, over the keys that the mask shows) v

``attend`` is the door. Each call is offered to the kernels in order; what all decline is computed
by the definition, as plain products. Inside ``torch.compile`` the choice is the same, since torch's
attention is a word that the compiler knows; only the counting is left out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor

from addnorm.ops.offers import Declined, Offers
from addnorm.ops.reference import accumulate_dtype, without_autocast

MATRIX_UNITS = torch.cpu._is_amx_tile_supported()  # whether this CPU multiplies bfloat16 itself


class AttentionCall(NamedTuple):
    """The arguments of ``attend``."""

    q: Tensor
    """Queries, (B, H, T, D)."""
    k: Tensor
    """Keys, (B, Hkv, S, D), where Hkv divides H: a key head serves H / Hkv query heads."""
    v: Tensor
    """Values, (B, Hkv, S, D)."""
    scale: float
    """The factor on q k^T."""
    mask: Tensor | None = None
    """Boolean, True = may look; broadcasts to (B, H, T, S)."""
    bias: Tensor | None = None
    """Added to the logits; broadcasts to (B, H, T, S)."""
    causal: bool = False
    """A query sees its own key and those before it. For T = S, and in place of a mask."""
    softcap: float | None = None
    """A logit z becomes softcap * tanh(z / softcap), before bias and mask."""
    dropout: float = 0.0
    """On the weights, in [0, 1)."""


@final
@dataclass(frozen=True)
class AttentionKernel:
    """A fast implementation of ``attend``.

    ``name``: what ``ops.explain()`` calls it.
    ``forward``: ``forward(call)`` returns (B, H, T, D) in q's dtype, differentiable, or raises
    ``Declined`` with the reason if this kernel does not serve the call. Every query of the call
    sees some key.
    """

    operation: ClassVar[str] = "attention"

    name: str
    forward: Callable[[AttentionCall], Tensor]


def attend(call: AttentionCall) -> Tensor:
    """softmax(scale * q k^T + bias, where the mask is True) v; a query that sees no key gets 0."""
    sees_some_key = None
    if call.mask is not None:
        sees_some_key = call.mask.any(-1, keepdim=True)
        # a softmax over nothing is NaN, and so is its gradient
        call = call._replace(mask=call.mask | ~sees_some_key)
    y = OFFERS.serve(lambda kernel: kernel.forward(call), lambda: reference(call))
    return y if sees_some_key is None else y.masked_fill(~sees_some_key, 0.0)


def reference(call: AttentionCall) -> Tensor:
    """The definition, in float32 or better, (B, H, T, D) in q's dtype; for queries that see some
    key."""
    q, k, v = call.q, call.k, call.v
    wide = accumulate_dtype(q)
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    with without_autocast(q):
        logits = q.to(wide) @ k.to(wide).transpose(-1, -2) * call.scale  # (B, H, T, S)
        if call.softcap is not None:
            logits = call.softcap * torch.tanh(logits / call.softcap)
        if call.bias is not None:
            logits = logits + call.bias.to(wide)
        mask = _mask(call)
        if mask is not None:
            logits = logits.masked_fill(~mask, -math.inf)
        weights = F.dropout(logits.softmax(-1), call.dropout)
        return (weights @ v.to(wide)).to(q.dtype)


def _mask(call: AttentionCall) -> Tensor | None:
    """What each query may see, None: everything; with ``causal`` itself and what is before it."""
    if not call.causal:
        return call.mask
    q, k = call.q, call.k
    return torch.ones(q.shape[-2], k.shape[-2], device=q.device).tril().bool()


# --- torch's kernels ------------------------------------------------------------------------------


def fused(call: AttentionCall) -> Tensor:
    """An ``AttentionKernel.forward``: PyTorch's fused attention, in the dtype of the queries;
    ``Declined`` for a softcap."""
    if call.softcap is not None:
        raise Declined("it has no softcap")
    attn_mask = call.mask
    if call.bias is not None:
        mask = _mask(call)
        attn_mask = call.bias.to(call.q.dtype)
        if mask is not None:
            attn_mask = attn_mask.masked_fill(~mask, -math.inf)
    return F.scaled_dot_product_attention(
        call.q,
        call.k,
        call.v,
        attn_mask=attn_mask,
        dropout_p=call.dropout,
        is_causal=call.causal and attn_mask is None,
        scale=call.scale,
        enable_gqa=call.q.shape[1] != call.k.shape[1],
    )


def fused_wide(call: AttentionCall) -> Tensor:
    """PyTorch's fused attention in float32 for bfloat16 queries: with short texts, small heads and
    gradients, on CPUs without matrix units, it is 1.2 to 4 times faster so (docs/log.md)."""
    q, k, v = call.q, call.k, call.v
    if q.dtype != torch.bfloat16:
        raise Declined("for bfloat16")
    if q.device.type != "cpu":
        raise Declined("for CPUs")
    if MATRIX_UNITS:
        raise Declined("for CPUs without matrix units")
    if not torch.is_grad_enabled():
        raise Declined("where gradients are wanted")
    if q.shape[-1] > 64 or max(q.shape[-2], k.shape[-2]) * q.shape[-1] > 128 * 64:
        raise Declined("for short texts and small heads")
    with without_autocast(q):
        return fused(call._replace(q=q.float(), k=k.float(), v=v.float())).to(q.dtype)


OFFERS = Offers(
    "attention", AttentionKernel("aten in float32", fused_wide), AttentionKernel("aten", fused)
)
"""In this order; ``ops.register`` puts others before them."""
