"""Every named design: a function from where a sublayer sits to what is there.

Reads like the literature review. In the equations x is the stream, f a branch (attention or MLP),
N a norm, L the number of blocks; "final N" is a norm at the end of the stack. A design with a
parameter is a function that returns the scheme: ``mix_ln(0.25)``. Schemes compose as functions do:
``drop_path(mix_ln(0.25), p=0.1)``, from text by ``parse``. docs/schemes.md says what each is for,
what is measured, and how to add one.
"""

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from addnorm.catalogue import SchemeError, combinator, design, names, search
from addnorm.explanation import explain
from addnorm.init import PLAIN, Init, plain
from addnorm.joins import (
    Collapse,
    DropPath,
    Dual,
    Expand,
    Fork,
    Hyper,
    JoinsParallel,
    LearnedGain,
    OpensParallel,
    Rejoin,
    Replace,
    Scaled,
    Slerp,
    Unit,
    unit,
)
from addnorm.norms import Norm, as_norm
from addnorm.scheme_text import parse
from addnorm.stream import Add, AddNorm, Scheme, Site, Wiring

__all__ = [
    "SchemeError",
    "deepnorm",
    "drop_path",
    "explain",
    "fan_in",
    "has_norms",
    "hyper_connections",
    "layer_scale",
    "ln_scaling",
    "mix_ln",
    "names",
    "ngpt",
    "no_norm",
    "no_residual",
    "output_norm",
    "parallel",
    "parse",
    "post_norm",
    "pre_norm",
    "residual_dual",
    "rezero",
    "sandwich",
    "search",
    "sub_ln",
    "with_layer_scale",
]

# --- rules of initialization ----------------------------------------------------------------------

WRITERS = ("out", "down")  # what writes to the stream


def xavier(role: str, n_in: int, n_out: int) -> float:
    """sqrt(2 / (fan_in + fan_out)) (Glorot & Bengio 2010); tokens get 1 / sqrt(dim)."""
    return n_in**-0.5 if role in ("embed", "head") else math.sqrt(2.0 / (n_in + n_out))


def one_by_fan_in(role: str, n_in: int, n_out: int) -> float:
    """1 / sqrt(fan_in): a branch keeps the scale of its input at any width; tokens get 1."""
    return 1.0 if role == "embed" else n_in**-0.5


def gpt2_init(blocks: int) -> Init:
    """Normal, std 0.02; the two writers of each block divided by sqrt(2 * blocks)."""
    factor = (2.0 * blocks) ** -0.5
    text = f"normal, std 0.02; out and down / sqrt(2 * {blocks})"
    return Init(text, plain, dict.fromkeys(WRITERS, factor))


def xavier_init(gain: float = 1.0) -> Init:
    """Xavier normal; v, out, gate, up and down times ``gain``, q and k not."""
    scaled = ("v", "out", "gate", "up", "down")
    text = "Xavier normal" + ("" if gain == 1.0 else f"; v, out, gate, up, down * {gain:.4g}")
    return Init(text, xavier, dict.fromkeys(scaled, gain))


@final
@dataclass(frozen=True)
class UnitRows:
    """nGPT: the side of each matrix that meets the stream has unit length."""

    text: str = "normal, then unit length along the stream's side"

    def std(self, role: str, shape: tuple[int, ...]) -> float:
        """The root mean square of an entry."""
        return shape[self._side(role)] ** -0.5

    def __call__(self, role: str, weight: Tensor) -> None:
        nn.init.normal_(weight, std=self.std(role, tuple(weight.shape)))
        self.restore(role, weight, 0)

    def restore(self, role: str, weight: Tensor, step: int) -> None:
        """Back onto the sphere after an optimizer step."""
        with torch.no_grad():
            weight.copy_(unit(weight, dim=self._side(role)))

    @staticmethod
    def _side(role: str) -> int:
        return 0 if role in WRITERS else 1


# --- parts ----------------------------------------------------------------------------------------


def _norm(s: Site) -> AddNorm:
    return AddNorm(s.dim, s.norm)


def _out(s: Site) -> Norm:
    return as_norm(s.norm(s.dim))


def _additions(s: Site) -> float:
    """How often a stack that is alone adds to its stream: the papers' 2L for blocks of attention
    and MLP, their 3M where cross-attention stands between, L where a block is one branch."""
    return sum(s.depths) * s.total / s.blocks


# --- what the articles compare with ---------------------------------------------------------------


@design("x <- f(N(x))", "an ablation: the branches alone", 2017)
def no_residual(s: Site) -> Wiring:
    """Nothing carries the signal past a branch, forward or backward. Initialized as pre_norm."""
    if s.kind in ("embed", "head"):
        return Wiring(init=gpt2_init(s.blocks))
    return Wiring(pre=_norm(s), join=Replace(), init=gpt2_init(s.blocks))


@design("x <- x + f(x)", "an ablation: the residual connections alone", 2017)
def no_norm(s: Site) -> Wiring:
    """Nothing bounds what a branch reads. Initialized as pre_norm."""
    return Wiring(init=gpt2_init(s.blocks))


# --- where the norm sits --------------------------------------------------------------------------


@design("x <- x + f(N(x)); final N", "Xiong et al. 2020, arXiv 2002.04745; GPT-2", 2019)
def pre_norm(s: Site) -> Wiring:
    """The stream is never normalized, so gradients pass it unchanged; trains without warmup. Its
    variance grows with depth, which GPT-2's division by sqrt(2L) holds flat at init."""
    if s.kind == "embed":
        return Wiring(init=gpt2_init(s.blocks))
    return Wiring(pre=_norm(s), init=gpt2_init(s.blocks))


@design("x <- N(x + f(x))", "Vaswani et al. 2017, arXiv 1706.03762; BERT", 2017)
def post_norm(s: Site) -> Wiring:
    """The stream itself is normalized, by every sublayer. Needs warmup; fails when deep."""
    if s.kind in ("embed", "head"):
        return Wiring(init=xavier_init())
    return Wiring(post=_norm(s), init=xavier_init())


@design(
    "x <- x + N(f(N(x))); final N",
    "CogView, Ding et al. 2021, arXiv 2105.13290; Peri-LN, Kim et al. 2025, 2502.02732; Gemma 2",
    2021,
)
def sandwich(s: Site) -> Wiring:
    """What is added has the same size everywhere, so the stream's variance grows linearly whatever
    the weights are."""
    if s.kind == "embed":
        return Wiring(init=PLAIN)
    return Wiring(pre=_norm(s), out=None if s.kind == "head" else _out(s), init=PLAIN)


@design(
    "x <- x + N(f(x)); final N",
    "Swin v2, Liu et al. 2022, arXiv 2111.09883; OLMo 2, 2501.00656",
    2022,
)
def output_norm(s: Site) -> Wiring:
    """A branch reads the raw stream; both papers pair it with QK-norm, without which the deep
    attention saturates."""
    if s.kind == "head":
        return Wiring(pre=_norm(s), init=PLAIN)
    return Wiring(out=None if s.kind == "embed" else _out(s), init=PLAIN)


@design(
    "the first floor(frac * L) blocks x <- N(x + f(x)), the others x <- x + f(N(x)); final N",
    "Mix-LN, Li et al. 2024, arXiv 2412.13795",
    2024,
)
def mix_ln(frac: float = 0.25) -> Scheme:
    """Post-norm where pre-norm's gradients are too large, pre-norm where post-norm's vanish."""
    if not 0.0 <= frac <= 1.0:
        raise SchemeError(f"mix_ln: frac is a share of the blocks, 0 to 1, got {frac}")

    def scheme(s: Site) -> Wiring:
        early = s.kind != "head" and s.block < math.floor(frac * s.blocks)
        return replace((post_norm if early else pre_norm)(s), init=PLAIN)

    return scheme


@design(
    "x <- x + f(N(x) / sqrt(l)), l the block's number from 1; final N",
    "LayerNorm Scaling, Sun et al. 2025, arXiv 2502.05795",
    2025,
)
def ln_scaling(s: Site) -> Wiring:
    """Damps what deep blocks read, so that the variance grows slowly and they stay in use. Not to
    be combined with GPT-2's division by sqrt(2L), say the authors: hence std 0.02 throughout."""
    if s.kind in ("embed", "head"):
        return replace(pre_norm(s), init=PLAIN)
    return Wiring(pre=AddNorm(s.dim, s.norm, scale=(s.block + 1) ** -0.5), init=PLAIN)


@design(
    "x <- x + W_out N(g(N(x))), the branch f being W_out g; final N",
    "Magneto, Wang et al. 2022, arXiv 2210.06423",
    2022,
)
def sub_ln(s: Site) -> Wiring:
    """A second norm inside the branch, before what it writes is projected. Xavier gains of
    sqrt(ln 2L) for one stack, sqrt(ln(3M) ln(2N) / 3) and sqrt(ln 3M) for encoder and decoder. 2L
    counts the sublayers: it is 3L where blocks have three; one alone counts as two, as ln 1 = 0."""
    n, m = s.depths
    if n and m:
        square = math.log(3 * m) * math.log(2 * n) / 3 if s.side == "encoder" else math.log(3 * m)
    else:
        square = math.log(max(_additions(s), 2))
    w = replace(pre_norm(s), init=xavier_init(math.sqrt(square)))
    return w if s.kind in ("embed", "head") else replace(w, inner=s.norm)


# --- how the branch is weighed --------------------------------------------------------------------


@design(
    "x <- N(alpha * x + f(x)); v, out, up, down initialized by beta",
    "DeepNet, Wang et al. 2022, arXiv 2203.00555",
    2022,
)
def deepnorm(s: Site) -> Wiring:
    """Bounds how far one step moves the model, at any depth. One stack of S sublayers: alpha =
    S^1/4, beta = (4S)^-1/4, which the paper has for L blocks of two, (2L)^1/4 and (8L)^-1/4. N
    encoder and M decoder blocks: 0.81 (N^4 M)^1/16 and 0.87 (N^4 M)^-1/16 in the encoder, (3M)^1/4
    and (12M)^-1/4 in the decoder."""
    n, m = s.depths
    if not (n and m):
        alpha, beta = _additions(s) ** 0.25, (4 * _additions(s)) ** -0.25
    elif s.side == "encoder":
        alpha, beta = 0.81 * (n**4 * m) ** 0.0625, 0.87 * (n**4 * m) ** -0.0625
    else:
        alpha, beta = (3 * m) ** 0.25, (12 * m) ** -0.25
    if s.kind in ("embed", "head"):
        return Wiring(init=xavier_init(beta))
    return Wiring(post=_norm(s), join=Scaled(alpha), init=xavier_init(beta))


@design("x <- x + a * f(x), a = 0 at init", "Bachlechner et al. 2020, arXiv 2003.04887", 2020)
def rezero(s: Site) -> Wiring:
    """Exactly the identity at first. One scalar a sublayer, as in the paper's equation; its code
    shares one between the two sublayers of a block."""
    if s.kind in ("embed", "head"):
        return Wiring(init=xavier_init())
    return Wiring(join=LearnedGain(Add(), (1,), 0.0), init=xavier_init())


@design(
    "x <- x + diag(g) f(N(x)), g = init at first; final N",
    "CaiT, Touvron et al. 2021, arXiv 2103.17239",
    2021,
)
def layer_scale(init: float = 1e-4) -> Scheme:
    """Nearly the identity at first, and each channel of each branch finds its own weight."""
    base = with_layer_scale(pre_norm, init)
    return lambda s: replace(base(s), init=PLAIN)


@design(
    "x <- N(x + v), d <- d + v with v = f(x), d_0 = x_0; y = x + N(d)",
    "ResiDual, Xie et al. 2023, arXiv 2304.14802",
    2023,
)
def residual_dual(s: Site) -> Wiring:
    """Post-norm for what the branches read, and a second, un-normalized stream for the gradient."""
    if s.kind == "embed":
        return Wiring(enter=Fork(), init=xavier_init())
    if s.kind == "head":
        return Wiring(exit=Rejoin(_out(s)), init=xavier_init())
    return Wiring(post=_norm(s), join=Dual(), init=xavier_init())


# --- other streams --------------------------------------------------------------------------------


@design(
    "u = A_m^T H, H <- A_r^T H + B^T f(N(u)) on n streams H; final N of their sum",
    "dynamic hyper-connections, Zhu et al. 2024, arXiv 2409.19606",
    2024,
)
def hyper_connections(n: int = 4) -> Scheme:
    """The mixtures A and B are learned and depend on the token; at init they are pre-norm's."""
    if n < 1:
        raise SchemeError(
            f"hyper_connections: n, the number of streams, must be at least 1, got {n}"
        )

    def scheme(s: Site) -> Wiring:
        w = pre_norm(s)
        if s.kind == "embed":
            return replace(w, enter=Expand(n))
        return replace(w, exit=Collapse()) if s.kind == "head" else replace(w, join=Hyper(s, n))

    return scheme


@design(
    "h <- unit(h + |a| * (unit(f(h)) - h)), a = 0.05 at init; what enters is put on the sphere",
    "nGPT, Loshchilov et al. 2024, arXiv 2410.01131",
    2024,
)
def ngpt(s: Site) -> Wiring:
    """Stream and weights live on the unit sphere: call ``model.after_step(step)`` after every
    optimizer step. What the paper does inside the branches (normed queries and keys, learned
    scales) is the branch's to choose."""
    init = UnitRows()
    if s.kind == "embed":
        return Wiring(enter=Unit(), init=init, care=init.restore)
    if s.kind == "head":
        return Wiring(init=init, care=init.restore)
    return Wiring(join=Slerp(s.dim), init=init, care=init.restore)


# --- combinators ----------------------------------------------------------------------------------


@combinator("f left out for a sample with probability p * l / L", "Huang et al. 2016", 2016)
def drop_path(base: Scheme, p: float = 0.1) -> Scheme:
    """Stochastic depth around any design: the last block's probability is p, the first's p / L."""
    if not 0.0 <= p < 1.0:
        raise SchemeError(f"drop_path: p is a probability below 1, got {p}")

    def scheme(s: Site) -> Wiring:
        w = base(s)
        if s.kind in ("embed", "head"):
            return w
        join = w.join or Add()
        if not join.keeps:
            raise SchemeError("drop_path: without a residual, a dropped branch leaves nothing")
        return replace(w, join=DropPath(join, p * (s.block + 1) / s.blocks))

    return scheme


@combinator("f * diag(g), g = init at first", "CaiT, Touvron et al. 2021", 2021)
def with_layer_scale(base: Scheme, init: float = 1e-4) -> Scheme:
    """A learned factor per channel on every branch of any design."""

    def scheme(s: Site) -> Wiring:
        w = base(s)
        if s.kind in ("embed", "head"):
            return w
        return replace(w, join=LearnedGain(w.join or Add(), (s.dim,), init))

    return scheme


@combinator(
    "x <- x + f_1(u) + f_2(u) + ..., u what the block's first branch reads",
    "GPT-J, Wang & Komatsuzaki 2021; PaLM, Chowdhery et al. 2022, arXiv 2204.02311",
    2021,
)
def parallel(base: Scheme) -> Scheme:
    """The branches of a block side by side. The base must add to the stream and not normalize it
    in between."""

    def scheme(s: Site) -> Wiring:
        w = base(s)
        if s.kind in ("embed", "head"):
            return w
        join = w.join or Add()
        if w.post is not None or not join.defers:
            raise SchemeError(
                "parallel: the base must be x <- x + f(...) without a norm after the addition"
            )
        if s.place == 0:
            return replace(w, join=OpensParallel(join))
        return replace(w, pre=None, join=JoinsParallel(join))

    return scheme


@combinator("the base standard deviation of the weights is 1 / sqrt(fan_in)", "this library", 2026)
def fan_in(base: Scheme, factors: bool = True) -> Scheme:
    """A width-aware init: at small width, 0.02 makes every branch negligible and all designs look
    alike. The design's own factors (by depth, by role) stay unless ``factors=False``."""

    def scheme(s: Site) -> Wiring:
        w = base(s)
        if not isinstance(w.init, Init):
            return w  # unit rows are width-aware already
        factors_left = dict(w.init.factors) if factors else {}
        text = "normal, std 1 / sqrt(fan_in)"
        for role, factor in factors_left.items():
            text += f"; {role} * {factor:.4g}" if factor != 1.0 else ""
        return replace(w, init=Init(text, one_by_fan_in, factors_left))

    return scheme


# --- questions ------------------------------------------------------------------------------------


def has_norms(scheme: Scheme) -> bool:
    """Whether a scheme puts the configured norm anywhere: else it is of no matter which that is.
    Asked with a decoder of one block, whose norm notes that it was made."""
    widths = []

    def norm(dim: int) -> nn.Module:
        widths.append(dim)
        return nn.LayerNorm(dim)

    for index, kind in enumerate(("embed", "attn", "mlp", "head"), start=-1):
        wiring = scheme(
            Site(kind, index, 2, 0, 1, 8, norm, depths=(0, 1), place=int(kind == "mlp"))
        )
        if wiring.inner is not None:
            wiring.inner(8)
    return bool(widths)
