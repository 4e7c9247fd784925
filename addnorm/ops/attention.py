"""Attention, and who computes it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from addnorm.ops.reference import accumulate_dtype, without_autocast

MATRIX_UNITS = torch.cpu._is_amx_tile_supported()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor | None,
    bias: Tensor | None,
    *,
    scale: float,
    causal: bool = False,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(scale * q k^T + bias, over what is allowed) v; a query that sees nothing gets 0.

    q (B, H, T, D), k and v (B, Hkv, S, D); ``allowed`` boolean and ``bias`` broadcast to
    (B, H, T, S); ``causal`` is for T = S without another mask. The one place where it is decided
    who computes this: PyTorch's fused attention, or plain products where it lacks the feature.
    """
    seen = None
    if allowed is not None:
        seen = allowed.any(-1, keepdim=True)
        allowed = allowed | ~seen  # a softmax over nothing is NaN, and so is its gradient
    if softcap is None and _faster_wide(q, k):
        with without_autocast(q):
            y = _fused_attention(
                q.float(), k.float(), v.float(), allowed, bias, scale, causal, dropout
            ).to(q.dtype)
    elif softcap is None:
        y = _fused_attention(q, k, v, allowed, bias, scale, causal, dropout)
    else:
        y = _plain_attention(q, k, v, allowed, bias, scale, causal, softcap, dropout)
    return y if seen is None else y.masked_fill(~seen, 0.0)


def _faster_wide(q: Tensor, k: Tensor) -> bool:
    """Whether bfloat16 is better attended to in float32: short texts and small heads with their
    gradients, on CPUs without matrix units, are 1.2 to 4 times faster so (docs/log.md)."""
    if q.dtype != torch.bfloat16 or q.device.type != "cpu" or MATRIX_UNITS:
        return False
    tokens = max(q.shape[-2], k.shape[-2])
    return torch.is_grad_enabled() and q.shape[-1] <= 64 and tokens * q.shape[-1] <= 128 * 64


def _fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor | None,
    bias: Tensor | None,
    scale: float,
    causal: bool,
    dropout: float,
) -> Tensor:
    mask = allowed
    if bias is not None:
        if causal:
            allowed = torch.ones(q.shape[-2], k.shape[-2], device=q.device).tril().bool()
        mask = bias.to(q.dtype)
        if allowed is not None:
            mask = mask.masked_fill(~allowed, -math.inf)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal and mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor | None,
    bias: Tensor | None,
    scale: float,
    causal: bool,
    softcap: float,
    dropout: float,
) -> Tensor:
    wide = accumulate_dtype(q)
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    with without_autocast(q):
        logits = q.to(wide) @ k.to(wide).transpose(-1, -2) * scale  # (B, H, T, S)
        logits = softcap * torch.tanh(logits / softcap)
        if bias is not None:
            logits = logits + bias.to(wide)
        if causal:
            allowed = torch.ones(logits.shape[-2:], device=q.device).tril().bool()
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -math.inf)
        weights = F.dropout(logits.softmax(-1), dropout)
        return (weights @ v.to(wide)).to(q.dtype)
