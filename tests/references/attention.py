"""A deliberately naive attention: Python loops over batch, head, query and key, forward only.

Absolute positions: the T queries are the last T of the S keys, so query t stands at
i = S - T + t and key j at j.
"""

from __future__ import annotations

import math

import numpy as np

from .tape import Array, Mask


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool = False,
    window: int | None = None,
    valid: Mask | None = None,
    attend: Mask | None = None,
    slopes: Array | None = None,
    softcap: float | None = None,
) -> Array:
    """Scaled dot-product attention with grouped heads, masks, ALiBi and a logit cap.

    q is (B, H, T, hd), k is (B, K, S, hd), v is (B, K, S, vd); query head h reads the key/value
    head h // (H / K) (Ainslie et al. 2023). The logit of query i and key j is computed in this
    order:

    1. scale: z = q . k / sqrt(hd) (Vaswani et al. 2017);
    2. cap: z <- c tanh(z / c), c = `softcap` (Gemma team 2024);
    3. bias: z <- z - slope_h (i - j), `slopes` (H,) (Press et al. 2021), i - j signed;
    4. mask: the key is left out unless all that apply agree: causal, j <= i; `window` w,
       i - w < j <= i (Beltagy et al. 2020), which implies causal; `valid` (B, S), true for a real
       token; `attend`, broadcastable to (B, H, T, S), true where the query may look.

    The output is softmax(z) v over the keys left in; a query that sees no key gives zeros.
    """
    size, heads, queries, head_dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    group = heads // kv_heads
    mask = np.broadcast_to(True if attend is None else attend, (size, heads, queries, keys))
    out = np.zeros((size, heads, queries, v.shape[-1]))
    for b in range(size):
        for h in range(heads):
            for t in range(queries):
                i = keys - queries + t
                logits: list[float] = []
                rows: list[Array] = []
                for j in range(keys):
                    if (causal or window is not None) and j > i:
                        continue
                    if window is not None and j <= i - window:
                        continue
                    if valid is not None and not valid[b, j]:
                        continue
                    if not mask[b, h, t, j]:
                        continue
                    z = float(np.dot(q[b, h, t], k[b, h // group, j])) / math.sqrt(head_dim)
                    if softcap is not None:
                        z = softcap * math.tanh(z / softcap)
                    if slopes is not None:
                        z = z - float(slopes[h]) * (i - j)
                    logits.append(z)
                    rows.append(v[b, h // group, j])
                if logits:
                    weights = [math.exp(z - max(logits)) for z in logits]
                    for weight, row in zip(weights, rows, strict=True):
                        out[b, h, t] += weight / sum(weights) * row
    return out


def rope(x: Array, positions: Array, base: float = 10000.0) -> Array:
    """Rotary position embedding (Su et al. 2021), in the half-split ("rotate_half") pairing.

    For x (..., T, hd) and positions (T,), the pair (x_j, x_{j + hd/2}) turns by the angle
    position base^(-2j/hd), j = 0, ..., hd/2 - 1.
    """
    length, width = x.shape[-2:]
    half = width // 2
    out = np.empty_like(x)
    for t in range(length):
        for j in range(half):
            angle = float(positions[t]) * base ** (-2 * j / width)
            first, second = x[..., t, j], x[..., t, j + half]
            out[..., t, j] = first * math.cos(angle) - second * math.sin(angle)
            out[..., t, j + half] = second * math.cos(angle) + first * math.sin(angle)
    return out


def qk_norm(x: Array, weight: Array, eps: float) -> Array:
    """RMS norm of every head of the queries or keys (Henry et al. 2020; Dehghani et al. 2023).

    x (B, H, T, hd) -> weight (hd,) * x / sqrt(mean x^2 + eps), the mean over one head.
    """
    root = np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)
    return np.asarray(weight * x / root, dtype=np.float64)


def value_residual(v: Array, first: Array, l1: float, l2: float) -> Array:
    """Value residual (Zhou et al. 2024): v <- l1 v0 + l2 v, v0 = `first` of the first layer."""
    return l1 * first + l2 * v


def alibi_slopes(heads: int) -> Array:
    """Slopes of the ALiBi heads (Press et al. 2021).

    For a power of two n the geometric sequence 2^(-8/n), 2^(-16/n), ..., 2^(-8). Otherwise those of
    the closest lower power of two, then every other one of the next power of two, from the first.
    """
    lower = 1
    while 2 * lower <= heads:
        lower = 2 * lower
    slopes = [2.0 ** (-8 * k / lower) for k in range(1, lower + 1)]
    between = [2.0 ** (-8 * k / (2 * lower)) for k in range(1, 2 * lower + 1, 2)]
    return np.array(slopes + between[: heads - lower])


def sinusoidal(length: int, dim: int) -> Array:
    """Sinusoidal positions (Vaswani et al. 2017), sine and cosine interleaved.

    P[t, 2j] = sin(t / 10000^(2j/dim)), P[t, 2j+1] = cos(t / 10000^(2j/dim)); an odd dim has no
    cosine for its last sine.
    """
    table = np.zeros((length, dim))
    for t in range(length):
        for c in range(dim):
            angle = t / 10000.0 ** (2 * (c // 2) / dim)
            table[t, c] = math.sin(angle) if c % 2 == 0 else math.cos(angle)
    return table
