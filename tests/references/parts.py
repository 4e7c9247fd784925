"""The branches of a Transformer block: activation, attention, MLP (and the norms they use).

A branch takes its parameters as a mapping from local names ("q.weight", "up.bias", ...). Linear
weights are stored (out, in): y = x W^T + b.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from .norms import layer_norm, rms_norm
from .tape import Operand, Var, as_var, erf, softmax, where

__all__ = ["attention", "gelu", "layer_norm", "linear", "mlp", "rms_norm"]


def gelu(x: Operand) -> Var:
    """GELU (Hendrycks and Gimpel 2016), exact: x Phi(x) = x (1 + erf(x / sqrt 2)) / 2."""
    x = as_var(x)
    return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))


def linear(p: Mapping[str, Var], name: str, x: Var) -> Var:
    """Linear map y = x W^T + b."""
    return x @ p[f"{name}.weight"].swapaxes(0, 1) + p[f"{name}.bias"]


def attention(
    p: Mapping[str, Var], x: Operand, source: Operand, heads: int, causal: bool, eps: float
) -> Var:
    """Multi-head attention (Vaswani et al. 2017).

    Queries come from x, keys and values from source (x itself for self-attention). Head h uses the
    h-th contiguous chunk of width head_dim of each projection; its output is
    softmax(q k^T / sqrt(head_dim)) v, the softmax of each query taken over the keys it sees
    (causal: key j is visible to query i iff j <= i). The concatenated heads pass the inner
    LayerNorm, if there is one, and the output projection.
    """
    x, source = as_var(x), as_var(source)
    q, k, v = linear(p, "q", x), linear(p, "k", source), linear(p, "v", source)
    size, queries, width = q.shape
    keys = k.shape[1]
    head_dim = width // heads
    q = q.reshape((size, queries, heads, head_dim)).transpose((0, 2, 1, 3))  # (B, H, T, hd)
    k = k.reshape((size, keys, heads, head_dim)).transpose((0, 2, 1, 3))  # (B, H, S, hd)
    v = v.reshape((size, keys, heads, head_dim)).transpose((0, 2, 1, 3))  # (B, H, S, hd)
    logits = q @ k.swapaxes(-1, -2) / math.sqrt(head_dim)  # (B, H, T, S)
    if causal:
        visible = np.arange(keys)[None, :] <= np.arange(queries)[:, None]  # (T, S)
        logits = where(visible, logits, -np.inf)
    o = softmax(logits) @ v  # (B, H, T, hd)
    o = o.transpose((0, 2, 1, 3)).reshape((size, queries, width))  # (B, T, D)
    if "inner.weight" in p:
        o = layer_norm(o, p["inner.weight"], p["inner.bias"], eps)
    return linear(p, "out", o)


def mlp(p: Mapping[str, Var], x: Operand, eps: float) -> Var:
    """down(inner(gelu(up(x)))), the inner LayerNorm only if there is one."""
    z = gelu(linear(p, "up", as_var(x)))  # (B, T, hidden)
    if "inner.weight" in p:
        z = layer_norm(z, p["inner.weight"], p["inner.bias"], eps)
    return linear(p, "down", z)
