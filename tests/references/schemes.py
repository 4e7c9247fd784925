"""One function per residual/normalisation design, each a plain loop over its published equation.

Sublayer i has the branch f_i; a block begins at every self-attention. Every place that carries a
norm N has its own parameters. Shapes: the stream x is (B, T, d).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .parts import attention, layer_norm, mlp
from .tape import Array, Var, absolute, backward, sqrt, stack, tanh


@dataclass
class Net:
    """The parameters and the shape of one stack of sublayers.

    `kinds` names the branches in order ("attn", "cross" or "mlp"); `depths` is (N encoder blocks,
    M decoder blocks), 0 for a side that does not exist; `memory` is what cross-attention reads.
    """

    params: dict[str, Var]
    kinds: list[str]
    heads: int
    causal: bool
    memory: Var | None
    side: Literal["encoder", "decoder"]
    depths: tuple[int, int]
    eps: float = 1e-5

    def f(self, i: int, u: Var) -> Var:
        """The branch of sublayer i applied to u."""
        start = f"subs.{i}.branch."
        p = {k.removeprefix(start): v for k, v in self.params.items() if k.startswith(start)}
        if self.kinds[i] == "attn":
            return attention(p, u, u, self.heads, self.causal, self.eps)
        if self.kinds[i] == "cross":
            if self.memory is None:
                raise ValueError(f"sublayer {i} is a cross-attention, but there is no memory")
            return attention(p, u, self.memory, self.heads, False, self.eps)
        if self.kinds[i] == "mlp":
            return mlp(p, u, self.eps)
        raise ValueError(f"unknown kind of sublayer: {self.kinds[i]!r}")

    def norm(self, prefix: str, x: Var) -> Var:
        """The LayerNorm whose parameters are `prefix`.weight and `prefix`.bias."""
        return layer_norm(
            x, self.params[f"{prefix}.weight"], self.params[f"{prefix}.bias"], self.eps
        )


def no_residual(net: Net, x: Var) -> Var:
    """Control without residual connections: x <- f_i(N(x)); y = x."""
    for i in range(len(net.kinds)):
        x = net.f(i, net.norm(f"subs.{i}.pre.norm", x))
    return x


def no_norm(net: Net, x: Var) -> Var:
    """Control without norms: x <- x + f_i(x); y = x."""
    for i in range(len(net.kinds)):
        x = x + net.f(i, x)
    return x


def pre_norm(net: Net, x: Var) -> Var:
    """Pre-LN (Radford et al. 2019; Xiong et al. 2020): x <- x + f_i(N(x)); y = N_final(x)."""
    for i in range(len(net.kinds)):
        x = x + net.f(i, net.norm(f"subs.{i}.pre.norm", x))
    return net.norm("final.norm", x)


def post_norm(net: Net, x: Var) -> Var:
    """Post-LN (Vaswani et al. 2017): x <- N(x + f_i(x)); y = x."""
    for i in range(len(net.kinds)):
        x = net.norm(f"subs.{i}.post.norm", x + net.f(i, x))
    return x


def sandwich(net: Net, x: Var) -> Var:
    """Sandwich-LN (Ding et al. 2021, CogView; Kim et al. 2025, Peri-LN).

    x <- x + N_out(f_i(N_pre(x))); y = N_final(x).
    """
    for i in range(len(net.kinds)):
        v = net.f(i, net.norm(f"subs.{i}.pre.norm", x))
        x = x + net.norm(f"subs.{i}.out", v)
    return net.norm("final.norm", x)


def output_norm(net: Net, x: Var) -> Var:
    """Norm on the branch output (Liu et al. 2022, Swin v2; OLMo team 2025, OLMo 2).

    x <- x + N_out(f_i(x)); y = N_final(x).
    """
    for i in range(len(net.kinds)):
        x = x + net.norm(f"subs.{i}.out", net.f(i, x))
    return net.norm("final.norm", x)


def deepnorm(net: Net, x: Var) -> Var:
    """DeepNorm (Wang et al. 2022): x <- N_post(alpha x + f_i(x)); y = x.

    alpha is (2N)^(1/4) for an encoder alone, (2M)^(1/4) for a decoder alone, and in an
    encoder-decoder 0.81 (N^4 M)^(1/16) for the encoder and (3M)^(1/4) for the decoder.
    """
    n, m = net.depths
    if net.side == "encoder":
        alpha = (2 * n) ** (1 / 4) if m == 0 else 0.81 * (n**4 * m) ** (1 / 16)
    else:
        alpha = (2 * m) ** (1 / 4) if n == 0 else (3 * m) ** (1 / 4)
    for i in range(len(net.kinds)):
        x = net.norm(f"subs.{i}.post.norm", alpha * x + net.f(i, x))
    return x


def rezero(net: Net, x: Var) -> Var:
    """ReZero (Bachlechner et al. 2020): x <- x + g_i f_i(x), g_i a scalar; y = x."""
    for i in range(len(net.kinds)):
        x = x + net.params[f"subs.{i}.join.gain"] * net.f(i, x)
    return x


def layer_scale(net: Net, x: Var) -> Var:
    """LayerScale (Touvron et al. 2021, CaiT): x <- x + diag(lambda_i) f_i(N(x)); y = N_final(x)."""
    for i in range(len(net.kinds)):
        v = net.f(i, net.norm(f"subs.{i}.pre.norm", x))
        x = x + net.params[f"subs.{i}.join.gain"] * v
    return net.norm("final.norm", x)


def residual_dual(net: Net, x: Var) -> Var:
    """ResiDual (Xie et al. 2023): a post-norm stream x and a plain sum d, x_0 = d_0 = the input.

    v = f_i(x); x <- N_post(x + v); d <- d + v; y = x + N_exit(d).
    """
    d = x
    for i in range(len(net.kinds)):
        v = net.f(i, x)
        x = net.norm(f"subs.{i}.post.norm", x + v)
        d = d + v
    return x + net.norm("exit.norm", d)


def mix_ln(net: Net, x: Var, frac: float = 0.25) -> Var:
    """Mix-LN (Li et al. 2024): the first floor(frac L) of L blocks post-norm, the rest pre-norm.

    Post: x <- N_post(x + f_i(x)). Pre: x <- x + f_i(N_pre(x)). y = N_final(x).
    """
    post_blocks = math.floor(frac * net.kinds.count("attn"))
    for i in range(len(net.kinds)):
        block = net.kinds[: i + 1].count("attn")  # 1, ..., L
        if block <= post_blocks:
            x = net.norm(f"subs.{i}.post.norm", x + net.f(i, x))
        else:
            x = x + net.f(i, net.norm(f"subs.{i}.pre.norm", x))
    return net.norm("final.norm", x)


def ln_scaling(net: Net, x: Var) -> Var:
    """LayerNorm scaling (Sun et al. 2025, "The Curse of Depth").

    x <- x + f_i(N(x) / sqrt(l)), l = 1, ..., L the block of sublayer i; y = N_final(x), unscaled.
    """
    for i in range(len(net.kinds)):
        block = net.kinds[: i + 1].count("attn")  # 1, ..., L
        x = x + net.f(i, net.norm(f"subs.{i}.pre.norm", x) / math.sqrt(block))
    return net.norm("final.norm", x)


def sub_ln(net: Net, x: Var) -> Var:
    """Sub-LN (Wang et al. 2022, Magneto): x <- x + f_i(N(x)); y = N_final(x).

    Each branch has an inner norm: attention before its output projection, the MLP before `down`.
    """
    for i in range(len(net.kinds)):
        if f"subs.{i}.branch.inner.weight" not in net.params:
            raise ValueError(f"the branch of sublayer {i} has no inner norm")
        x = x + net.f(i, net.norm(f"subs.{i}.pre.norm", x))
    return net.norm("final.norm", x)


def hyper_connections(net: Net, x: Var, n: int = 4) -> Var:
    """Dynamic hyper-connections (Zhu et al. 2024): a stream H of n rows per token, all x at first.

    Hbar = LN(H) per row
    A = alpha + alpha_scale tanh(Hbar alpha_fn) = (A_m | A_r), the first column and the others
    B = beta + beta_scale tanh(Hbar beta_fn)
    v = f_i(N_pre(A_m^T H))
    H <- A_r^T H + B v^T

    y = N_final(sum of the rows of H).
    """
    h = stack([x] * n, axis=2)  # (B, T, n, d)
    for i in range(len(net.kinds)):
        p = {
            name: net.params[f"subs.{i}.join.{name}"]
            for name in ("alpha", "alpha_scale", "alpha_fn", "beta", "beta_scale", "beta_fn")
        }
        hbar = net.norm(f"subs.{i}.join.norm", h)  # (B, T, n, d)
        a = p["alpha"] + p["alpha_scale"] * tanh(hbar @ p["alpha_fn"])  # (B, T, n, n+1)
        b = p["beta"] + p["beta_scale"] * tanh((hbar * p["beta_fn"]).sum(-1))  # (B, T, n)
        a_m, a_r = a[..., :1], a[..., 1:]  # (B, T, n, 1), (B, T, n, n)
        u = (a_m.swapaxes(-1, -2) @ h)[..., 0, :]  # (B, T, d)
        v = net.f(i, net.norm(f"subs.{i}.pre.norm", u))  # (B, T, d)
        h = a_r.swapaxes(-1, -2) @ h + b[..., :, None] * v[..., None, :]
    return net.norm("final.norm", h.sum(2))


def _unit(x: Var) -> Var:
    """Project on the unit sphere: x / ||x||_2 over the last axis."""
    return x / sqrt((x**2).sum(-1, keepdims=True))


def ngpt(net: Net, x: Var) -> Var:
    """Normalised Transformer, nGPT (Loshchilov et al. 2024): a stream h on the unit sphere.

    h_0 = unit(x); h <- unit(h + a * (unit(f_i(h)) - h)), a = |alpha| 0.05 sqrt(d) elementwise;
    y = h.
    """
    h = _unit(x)
    for i in range(len(net.kinds)):
        a = absolute(net.params[f"subs.{i}.join.alpha"]) * (0.05 * math.sqrt(x.shape[-1]))
        h = _unit(h + a * (_unit(net.f(i, h)) - h))
    return h


def parallel_pre_norm(net: Net, x: Var) -> Var:
    """Parallel block (Wang and Komatsuzaki 2021, GPT-J): attention and MLP share one norm.

    Per block: u = N(x); x <- x + f_attn(u) + f_mlp(u); y = N_final(x).
    """
    for i in range(0, len(net.kinds), 2):
        if net.kinds[i : i + 2] != ["attn", "mlp"]:
            raise ValueError("a parallel block is an attention and an MLP, in this order")
        u = net.norm(f"subs.{i}.pre.norm", x)
        x = x + net.f(i, u) + net.f(i + 1, u)
    return net.norm("final.norm", x)


REFERENCES: dict[str, Callable[..., Var]] = {
    "no_residual": no_residual,
    "no_norm": no_norm,
    "pre_norm": pre_norm,
    "post_norm": post_norm,
    "sandwich": sandwich,
    "output_norm": output_norm,
    "deepnorm": deepnorm,
    "rezero": rezero,
    "layer_scale": layer_scale,
    "residual_dual": residual_dual,
    "mix_ln": mix_ln,
    "ln_scaling": ln_scaling,
    "sub_ln": sub_ln,
    "hyper_connections": hyper_connections,
    "ngpt": ngpt,
    "parallel_pre_norm": parallel_pre_norm,
}


@dataclass
class Result:
    """Output of a stack and the gradients of sum(y * cotangent)."""

    y: Array
    grads: dict[str, Array]
    dx: Array
    dmemory: Array | None


def run(
    name: str,
    params: Mapping[str, Array],
    x: Array,
    kinds: Sequence[str],
    *,
    heads: int,
    causal: bool,
    memory: Array | None = None,
    side: Literal["encoder", "decoder"],
    depths: tuple[int, int],
    cotangent: Array,
    eps: float = 1e-5,
    **arguments: float,
) -> Result:
    """Output and gradients of the design `name`; a parameter it does not use has gradient 0.

    `arguments` go to the design (`frac` of `mix_ln`, `n` of `hyper_connections`).
    """
    net = Net(
        params={key: Var(value) for key, value in params.items()},
        kinds=list(kinds),
        heads=heads,
        causal=causal,
        memory=None if memory is None else Var(memory),
        side=side,
        depths=depths,
        eps=eps,
    )
    leaf = Var(x)
    y = REFERENCES[name](net, leaf, **arguments)
    backward(y, np.asarray(cotangent, dtype=np.float64))
    return Result(
        y=y.value,
        grads={key: var.grad for key, var in net.params.items()},
        dx=leaf.grad,
        dmemory=None if net.memory is None else net.memory.grad,
    )
