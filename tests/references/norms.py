"""Normalisations written from their equations; every argument may carry a gradient.

A missing weight is passed as 1.0 and a missing bias as 0.0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .tape import Array, Mask, Operand, Var, as_var, maximum, sigmoid, sqrt, stack, tanh, where


def layer_norm(x: Operand, w: Operand, b: Operand, eps: float) -> Var:
    """LayerNorm over the last axis (Ba, Kiros and Hinton 2016).

    y = w * (x - mean) / sqrt(var + eps) + b, with the biased variance (division by d).
    """
    x = as_var(x)
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / sqrt(var + eps) * w + b


def layer_norm_unbiased(x: Operand, w: Operand, b: Operand, eps: float) -> Var:
    """LayerNorm as in "The Annotated Transformer" (Rush 2018).

    y = w * (x - mean) / (std + eps) + b, with the unbiased deviation (division by d - 1) and eps
    added outside the root.
    """
    x = as_var(x)
    mean = x.mean(-1, keepdims=True)
    std = sqrt(((x - mean) ** 2).sum(-1, keepdims=True) / (x.shape[-1] - 1))
    return (x - mean) / (std + eps) * w + b


def rms_norm(x: Operand, w: Operand, eps: float, weight_offset: float = 0.0) -> Var:
    """RMSNorm over the last axis (Zhang and Sennrich 2019).

    y = (weight_offset + w) * x / sqrt(mean x^2 + eps); the offset is 1 where w is stored as the
    difference from one (Gemma).
    """
    x = as_var(x)
    return (weight_offset + as_var(w)) * (x / sqrt((x**2).mean(-1, keepdims=True) + eps))


def l2_norm(x: Operand, eps: float) -> Var:
    """Projection on the sphere of radius sqrt(d): y = sqrt(d) x / sqrt(sum x^2 + d eps).

    The same function as RMSNorm without a weight: x / sqrt(mean x^2 + eps).
    """
    x = as_var(x)
    d = x.shape[-1]
    return float(np.sqrt(d)) * x / sqrt((x**2).sum(-1, keepdims=True) + d * eps)


def scale_norm(x: Operand, g: Operand, eps: float) -> Var:
    """ScaleNorm (Nguyen and Salazar 2019): y = g x / max(||x||_2, eps), g a scalar.

    max(||x||, eps) is written sqrt(max(||x||^2, eps^2)), which has a gradient at x = 0.
    """
    x = as_var(x)
    return x / sqrt(maximum((x**2).sum(-1, keepdims=True), eps**2)) * g


def dyt(x: Operand, alpha: Operand, w: Operand, b: Operand) -> Var:
    """Dynamic tanh (Zhu et al. 2025): y = w * tanh(alpha x) + b, alpha a scalar."""
    return tanh(as_var(alpha) * x) * w + b


def channels_first_layer_norm(x: Operand, w: Operand, b: Operand, eps: float) -> Var:
    """LayerNorm over the channels of an image batch (Liu et al. 2022, ConvNeXt).

    Every pixel of x (B, C, H, W) is normalised over C; w and b are (C,).
    """
    x = as_var(x)
    mean = x.mean(1, keepdims=True)  # (B, 1, H, W)
    var = ((x - mean) ** 2).mean(1, keepdims=True)  # (B, 1, H, W)
    weight, bias = as_var(w).reshape((-1, 1, 1)), as_var(b).reshape((-1, 1, 1))  # (C, 1, 1)
    return weight * ((x - mean) / sqrt(var + eps)) + bias


def batch_statistics(x: Operand, valid: Mask) -> tuple[Var, Var]:
    """Mean and biased variance of every channel of x (B, T, D) over the valid tokens (B, T)."""
    x, keep = as_var(x), valid[:, :, None]
    count = float(valid.sum())
    mean = where(keep, x, 0.0).sum((0, 1)) / count  # (D,)
    var = where(keep, (x - mean) ** 2, 0.0).sum((0, 1)) / count  # (D,)
    return mean, var


def batch_norm(x: Operand, valid: Mask, w: Operand, b: Operand, eps: float) -> Var:
    """BatchNorm over tokens (Ioffe and Szegedy 2015), in training mode, ignoring padding.

    y = w * (x - mean) / sqrt(var + eps) + b, with the `batch_statistics` of the valid tokens. The
    same map is applied to the padding, so compare there only what is wanted there.
    """
    x = as_var(x)
    mean, var = batch_statistics(x, valid)
    return (x - mean) / sqrt(var + eps) * w + b


def group_norm(x: Operand, valid: Mask, groups: int, w: Operand, b: Operand, eps: float) -> Var:
    """GroupNorm over tokens (Wu and He 2018), ignoring padding.

    For each sample and each group of D/groups consecutive channels of x (B, T, D), the mean and the
    biased variance are taken over the valid tokens (B, T) and the channels of the group; each
    sample needs at least one valid token. The same map is applied to the padding.
    """
    x = as_var(x)
    size, length, width = x.shape
    z = x.reshape((size, length, groups, width // groups))  # (B, T, G, D/G)
    keep = valid[:, :, None, None]  # (B, T, 1, 1)
    count: Array = valid.sum(1)[:, None, None, None] * float(width // groups)  # (B, 1, 1, 1)
    mean = where(keep, z, 0.0).sum((1, 3), keepdims=True) / count  # (B, 1, G, 1)
    var = where(keep, (z - mean) ** 2, 0.0).sum((1, 3), keepdims=True) / count  # (B, 1, G, 1)
    y = ((z - mean) / sqrt(var + eps)).reshape(x.shape)  # (B, T, D)
    return y * w + b


def add_norm(
    norm: Callable[[Var], Var], residual: Operand, x: Operand, keep: Operand, gain: Operand
) -> tuple[Var, Var]:
    """Weighted residual add and normalisation: stream = keep residual + gain x, y = norm(stream).

    Returns (y, stream).
    """
    stream = as_var(keep) * residual + as_var(gain) * x
    return norm(stream), stream


@dataclass
class LSTMWeights:
    """Weights of one layer of the layer-normalised LSTM, hidden width H, input width D."""

    w_x: Operand  # (4H, D)
    w_h: Operand  # (4H, H)
    b: Operand  # (4H,)
    g1: Operand  # (4H,), norm of W_h h
    b1: Operand  # (4H,)
    g2: Operand  # (4H,), norm of W_x x
    b2: Operand  # (4H,)
    g3: Operand  # (H,), norm of the cell
    b3: Operand  # (H,)


def layer_norm_lstm(
    p: LSTMWeights, x: Operand, h: Operand, c: Operand, eps: float
) -> tuple[Var, Var, Var]:
    """Layer-normalised LSTM, one layer, one direction (Ba, Kiros and Hinton 2016).

    (i, f, g, o) = LN(W_h h; g1, b1) + LN(W_x x; g2, b2) + b
    c <- sigmoid(f) * c + sigmoid(i) * tanh(g)
    h <- sigmoid(o) * tanh(LN(c; g3, b3))

    The first two norms are over the whole vector of 4H gate pre-activations. x is (B, T, D), h and
    c are (B, H). Returns (all h (B, T, H), last h, last c).
    """
    x, h, c = as_var(x), as_var(h), as_var(c)
    w_x, w_h = as_var(p.w_x).swapaxes(0, 1), as_var(p.w_h).swapaxes(0, 1)
    n = h.shape[-1]
    outputs = []
    for t in range(x.shape[1]):
        z = (
            layer_norm(h @ w_h, p.g1, p.b1, eps) + layer_norm(x[:, t] @ w_x, p.g2, p.b2, eps) + p.b
        )  # (B, 4H)
        i, f, g, o = z[:, :n], z[:, n : 2 * n], z[:, 2 * n : 3 * n], z[:, 3 * n :]
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(layer_norm(c, p.g3, p.b3, eps))
        outputs.append(h)
    return stack(outputs, axis=1), h, c


@dataclass
class GRUWeights:
    """Weights of one layer of the layer-normalised GRU, hidden width H, input width D."""

    w_x: Operand  # (2H, D)
    w_h: Operand  # (2H, H)
    v: Operand  # (H, D)
    u: Operand  # (H, H)
    g1: Operand  # (2H,), norm of W_h h
    b1: Operand  # (2H,)
    g2: Operand  # (2H,), norm of W_x x
    b2: Operand  # (2H,)
    g3: Operand  # (H,), norm of V x
    b3: Operand  # (H,)
    g4: Operand  # (H,), norm of U h
    b4: Operand  # (H,)


def layer_norm_gru(p: GRUWeights, x: Operand, h: Operand, eps: float) -> tuple[Var, Var]:
    """Layer-normalised GRU, one layer, one direction (Ba, Kiros and Hinton 2016).

    (r, z) = LN(W_h h; g1, b1) + LN(W_x x; g2, b2)
    n = tanh(LN(V x; g3, b3) + sigmoid(r) * LN(U h; g4, b4))
    h <- (1 - sigmoid(z)) * h + sigmoid(z) * n

    The first two norms are over the whole vector of 2H gate pre-activations. Its first half is r
    (the paper writes z first; the order only names the rows of the weights). x is (B, T, D), h is
    (B, H). Returns (all h (B, T, H), last h).
    """
    x, h = as_var(x), as_var(h)
    w_x, w_h = as_var(p.w_x).swapaxes(0, 1), as_var(p.w_h).swapaxes(0, 1)
    v, u = as_var(p.v).swapaxes(0, 1), as_var(p.u).swapaxes(0, 1)
    width = h.shape[-1]
    outputs = []
    for t in range(x.shape[1]):
        gates = layer_norm(h @ w_h, p.g1, p.b1, eps) + layer_norm(
            x[:, t] @ w_x, p.g2, p.b2, eps
        )  # (B, 2H)
        r, z = gates[:, :width], gates[:, width:]
        n = tanh(
            layer_norm(x[:, t] @ v, p.g3, p.b3, eps)
            + sigmoid(r) * layer_norm(h @ u, p.g4, p.b4, eps)
        )
        h = (1.0 - sigmoid(z)) * h + sigmoid(z) * n
        outputs.append(h)
    return stack(outputs, axis=1), h
