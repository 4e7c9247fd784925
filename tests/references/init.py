"""How everything begins: published deviations of what is drawn, published values of what is not."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from .tape import Array


def init_std(
    scheme: str,
    role: str,
    shape: tuple[int, int],
    *,
    side: Literal["encoder", "decoder"],
    N: int,
    M: int,
    blocks: int,
) -> float:
    """Standard deviation of one weight matrix of shape (out, in).

    `role` is one of q, k, v, out, up, gate, down, or embed and head for the tables at the two ends,
    of shape (tokens, dim); `side` is the stack the matrix belongs to; N and M are the encoder and
    decoder blocks, 0 for a side that does not exist; `blocks` those of the stack at hand.

    * pre_norm, no_norm, no_residual, hyper_connections (Radford et al. 2019, GPT-2): 0.02, and
      0.02 / sqrt(2 blocks) for out and down.
    * sandwich, output_norm, ln_scaling, mix_ln, layer_scale: 0.02.
    * post_norm, rezero, residual_dual (Glorot and Bengio 2010): sqrt(2 / (in + out)).
    * deepnorm (Wang et al. 2022) and sub_ln (Wang et al. 2022, Magneto): the same times a gain that
      is 1 for q and k, and for the others `_deepnorm_gain`, `_sub_ln_gain`.
    * ngpt (Loshchilov et al. 2024): unit vectors along the model dimension, so that an entry has
      the root mean square 1 / sqrt(model dimension).

    The tables of the ends are never scaled by depth. Where the matrices are Xavier's they are those
    of the Transformer's published code, N(0, 1 / dim), since Xavier's rule would make them the
    smaller the more tokens there are; elsewhere they have the design's 0.02.
    """
    if role not in {"q", "k", "v", "out", "up", "gate", "down", "embed", "head"}:
        raise ValueError(f"unknown role: {role!r}")
    ends = role in {"embed", "head"}
    xavier = 1 / math.sqrt(shape[1]) if ends else math.sqrt(2 / (shape[0] + shape[1]))
    unscaled = ends or role in {"q", "k"}
    match scheme:
        case "pre_norm" | "no_norm" | "no_residual" | "hyper_connections":
            return 0.02 / math.sqrt(2 * blocks) if role in {"out", "down"} else 0.02
        case "sandwich" | "output_norm" | "ln_scaling" | "mix_ln" | "layer_scale":
            return 0.02
        case "post_norm" | "rezero" | "residual_dual":
            return xavier
        case "deepnorm":
            return xavier if unscaled else xavier * _deepnorm_gain(side, N, M)
        case "sub_ln":
            return xavier if unscaled else xavier * _sub_ln_gain(side, N, M)
        case "ngpt":
            return 1 / math.sqrt(shape[0] if role in {"out", "down"} else shape[1])
        case _:
            raise ValueError(f"no published initialisation for {scheme!r}")


def _deepnorm_gain(side: str, n: int, m: int) -> float:
    """Gain beta of DeepNorm (Wang et al. 2022).

    (8N)^(-1/4) for an encoder alone, (8M)^(-1/4) for a decoder alone; in an encoder-decoder
    0.87 (N^4 M)^(-1/16) for the encoder and (12M)^(-1/4) for the decoder.
    """
    if side == "encoder":
        return math.pow(8 * n, -1 / 4) if m == 0 else 0.87 * math.pow(n**4 * m, -1 / 16)
    return math.pow(8 * m, -1 / 4) if n == 0 else math.pow(12 * m, -1 / 4)


def _sub_ln_gain(side: str, n: int, m: int) -> float:
    """Gain gamma of Magneto (Wang et al. 2022).

    sqrt(ln 2N) for an encoder alone, sqrt(ln 2M) for a decoder alone; in an encoder-decoder
    sqrt(ln(3M) ln(2N) / 3) for the encoder and sqrt(ln 3M) for the decoder.
    """
    if side == "encoder":
        return math.sqrt(math.log(2 * n) * (1 if m == 0 else math.log(3 * m) / 3))
    return math.sqrt(math.log(2 * m if n == 0 else 3 * m))


def init_value(scheme: str, parameter: str, sublayer: int, shape: tuple[int, ...]) -> Array:
    """What a parameter is filled with that is not drawn.

    `parameter` is "weight" or "bias" of a norm, "bias" of a matrix, or a join's, such as
    "join.alpha"; `sublayer` counts from 0.

    * Norms are LayerNorms (Ba et al. 2016): weight 1, bias 0. Biases of matrices: 0.
    * rezero (Bachlechner et al. 2020): the scalar of each sublayer is 0.
    * layer_scale (Touvron et al. 2021): 1e-4 in every channel.
    * hyper_connections (Zhu et al. 2024, eq. 14) on n streams: A_m picks stream (sublayer mod n),
      A_r is the identity, B all ones; the weights of the dynamic part are 0, their scales 0.01.
    * ngpt (Loshchilov et al. 2024): the step is stored at the scale 1 / sqrt(dim).
    """
    match scheme, parameter:
        case _, "weight":
            return np.ones(shape)
        case _, "bias":
            return np.zeros(shape)
        case "rezero", "join.gain":
            return np.zeros(shape)
        case "layer_scale", "join.gain":
            return np.full(shape, 1e-4)
        case "hyper_connections", "join.alpha":
            n = shape[0]
            picked = np.arange(n) == sublayer % n
            return np.concatenate([picked[:, None], np.eye(n)], axis=1)
        case "hyper_connections", "join.beta":
            return np.ones(shape)
        case "hyper_connections", "join.alpha_fn" | "join.beta_fn":
            return np.zeros(shape)
        case "hyper_connections", "join.alpha_scale" | "join.beta_scale":
            return np.full(shape, 0.01)
        case "ngpt", "join.alpha":
            return np.full(shape, 1 / math.sqrt(shape[0]))
        case _:
            raise ValueError(f"no published value of {parameter!r} for {scheme!r}")
