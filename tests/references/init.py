"""Published standard deviations of the weight matrices at initialisation."""

from __future__ import annotations

import math
from typing import Literal


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

    `role` is one of q, k, v, out, up, gate, down; `side` is the stack the matrix belongs to; N and
    M are the encoder and decoder blocks, 0 for a side that does not exist; `blocks` those of the
    stack at hand.

    * pre_norm, no_norm, no_residual, hyper_connections (Radford et al. 2019, GPT-2): 0.02, and
      0.02 / sqrt(2 blocks) for out and down.
    * sandwich, output_norm, ln_scaling, mix_ln, layer_scale: 0.02.
    * post_norm, rezero, residual_dual (Glorot and Bengio 2010): sqrt(2 / (in + out)).
    * deepnorm (Wang et al. 2022) and sub_ln (Wang et al. 2022, Magneto): the same times a gain that
      is 1 for q and k, and for the others `_deepnorm_gain`, `_sub_ln_gain`.
    * ngpt (Loshchilov et al. 2024): unit vectors along the model dimension, so that an entry has
      the root mean square 1 / sqrt(model dimension).
    """
    if role not in {"q", "k", "v", "out", "up", "gate", "down"}:
        raise ValueError(f"unknown role: {role!r}")
    xavier = math.sqrt(2 / (shape[0] + shape[1]))
    match scheme:
        case "pre_norm" | "no_norm" | "no_residual" | "hyper_connections":
            return 0.02 / math.sqrt(2 * blocks) if role in {"out", "down"} else 0.02
        case "sandwich" | "output_norm" | "ln_scaling" | "mix_ln" | "layer_scale":
            return 0.02
        case "post_norm" | "rezero" | "residual_dual":
            return xavier
        case "deepnorm":
            return xavier if role in {"q", "k"} else xavier * _deepnorm_gain(side, N, M)
        case "sub_ln":
            return xavier if role in {"q", "k"} else xavier * _sub_ln_gain(side, N, M)
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
