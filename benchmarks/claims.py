"""Claims of the literature about Add & Norm at initialization, measured again.

    python benchmarks/claims.py [--seeds 101 102 103] [--widths 64 128] [--threads 2]

prints the table of docs/schemes_measured.md. Everything is a decoder of 6 to 48 blocks (4 heads,
MLP 4 * width with ReLU, no biases, LayerNorm without parameters, weights of std 1 / sqrt(fan_in)
times the design's own factors) on the task of ``addnorm.lab.measurement``: 8 sequences of 32 random
tokens, embedding std 1, cross-entropy of random next tokens. Where a claim needs something else,
its function says so.
"""

import argparse
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from addnorm import LayerNorm, RMSNorm, Stack, schemes
from addnorm.branches import MLP, Attention
from addnorm.joins import Replace
from addnorm.lab.measurement import LabRun, LabTask, draw, exponent, follow, observe
from addnorm.lab.setup import Setup
from addnorm.stream import Scheme, Site, Wiring
from addnorm.temporary import fixed_seed

DEPTHS = (6, 12, 24, 48)
HEADS, TOKENS, BATCH = 4, 32, 8

Bare = partial(LayerNorm, affine=False)
QKNorm = partial(RMSNorm, affine=False)

# Under std 1 / sqrt(fan_in). "pre" has no factors, "gpt2" divides its writers by sqrt(2L).
DESIGNS: dict[str, Scheme] = {
    "pre": schemes.fan_in(schemes.pre_norm, factors=False),
    "gpt2": schemes.fan_in(schemes.pre_norm),
    **{
        name: schemes.fan_in(schemes.parse(name))
        for name in ("post_norm", "deepnorm", "sandwich", "ln_scaling", "output_norm")
    },
}

# --- measuring ------------------------------------------------------------------------------------


def setup(width: int) -> Setup:
    """The task's shape."""
    return Setup(width=width, heads=HEADS, tokens=TOKENS, batch=BATCH)


def build(
    scheme: Scheme,
    width: int,
    depth: int,
    *,
    norm: Callable[[int], nn.Module] = Bare,
    qk_norm: Callable[[int], nn.Module] | None = None,
) -> Stack:
    """The decoder under measurement."""
    attention = partial(Attention, width, HEADS, causal=True, bias=False, qk_norm=qk_norm)
    mlp = partial(MLP, width, 4 * width, "relu", bias=False)
    return Stack([("attn", attention), ("mlp", mlp)] * depth, width, scheme, norm=norm)


@functools.cache
def run(design: str, width: int, depth: int, seed: int, factor: float = 1.0) -> LabRun:
    """Stream and gradients of one design; all weights times ``factor``. "+qk" adds QK-norm."""
    name, _, qk = design.partition("+")
    with fixed_seed(seed):
        task = draw(setup(width))
        stack = build(DESIGNS[name], width, depth, qk_norm=QKNorm if qk else None)
    with torch.no_grad():
        for p in stack.parameters():
            p.mul_(factor)
    return observe(stack, task, seed)


def mean_square(design: str, width: int, depth: int, seed: int, factor: float = 1.0) -> float:
    """Of the stream after the last block."""
    return run(design, width, depth, seed, factor).stream[-1] ** 2


def slope(value: Callable[[int], float]) -> float:
    """The exponent of a value that depends on the number of blocks."""
    fitted = exponent(DEPTHS, [value(depth) for depth in DEPTHS])
    return math.nan if fitted is None else fitted


def farthest(values: Sequence[float], target: float) -> float:
    """The value that is farthest from where it should be."""
    return max(values, key=lambda v: abs(v - target))


@functools.cache
def update(design: str, width: int, depth: int, seed: int, sign: bool) -> float:
    """RMS change of the logits after one step on all weights of the stack, divided by the learning
    rate. SGD at 1e-4, or steps of the gradient's sign at 1e-6; float64, so that it is no rounding.
    """
    with fixed_seed(seed):
        task = draw(setup(width))
        stack = build(DESIGNS[design], width, depth).double()
    task = LabTask(task.x.detach().double(), task.head.double(), task.targets)
    weights = list(stack.parameters())
    y = stack(task.x)
    grads = torch.autograd.grad(task.loss(y), weights)
    rate = 1e-6 if sign else 1e-4
    with torch.no_grad():
        for p, g in zip(weights, grads, strict=True):
            p.sub_(rate * (g.sign() if sign else g))
        change = task.logits(stack(task.x)) - task.logits(y)
    return change.square().mean().sqrt().item() / rate


@functools.cache
def ranks(width: int, seed: int, skip: bool) -> list[float]:
    """||X - 1 mean(X)^T|| / ||X|| after each of 12 attentions that see every token, without MLP and
    norm, with or without the residual connection; the mean over sequences."""

    def bare(s: Site) -> Wiring:
        w = schemes.no_norm(s)
        return replace(w, join=Replace()) if s.kind == "attn" and not skip else w

    attention = partial(Attention, width, HEADS, bias=False)
    with fixed_seed(seed):
        task = draw(setup(width))
        scheme = schemes.fan_in(bare, factors=False)
        stack = Stack([("attn", attention)] * 12, width, scheme, side="encoder").double()
    with torch.no_grad():
        _, points = follow(stack, task.x.double())
    return [_rank(p.h) for p in points[1:]]


def _rank(x: Tensor) -> float:
    rest = x - x.mean(1, keepdim=True)
    return (rest.norm(dim=(1, 2)) / x.norm(dim=(1, 2))).mean().item()


@functools.cache
def collapse(design: str, width: int, depth: int, seed: int) -> tuple[float, float]:
    """Mean cosine between different tokens of the stream after the last block, and the norm of the
    loss's gradient for the last attention's query weight."""
    with fixed_seed(seed):
        task = draw(setup(width))
        stack = build(DESIGNS[design], width, depth)
    y, points = follow(stack, task.x)
    unit = nn.functional.normalize(points[-1].h.detach(), dim=-1)
    cosines = unit @ unit.transpose(1, 2)  # (B, T, T)
    off = (cosines.sum((1, 2)) - TOKENS) / (TOKENS * (TOKENS - 1))
    attention = stack.sublayers()[-2].branch
    assert isinstance(attention, Attention)
    (grad,) = torch.autograd.grad(task.loss(y), attention.q.weight)
    return off.mean().item(), grad.norm().item()


def distance(scheme: Scheme, width: int, seed: int, eps: float) -> float:
    """Largest difference of the logits from pre-norm's with the same weights, relative to the
    largest logit; 12 blocks, float64."""
    norm = partial(LayerNorm, affine=False, eps=eps)
    with fixed_seed(seed):
        task = draw(setup(width))
        plain = build(DESIGNS["pre"], width, 12, norm=norm).double()
        other = build(schemes.fan_in(scheme, factors=False), width, 12, norm=norm).double()
    loaded = other.load_state_dict(plain.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    assert all(".join." in k for k in loaded.missing_keys)
    x, head = task.x.detach().double(), task.head.double()
    with torch.no_grad():
        want, actual = plain(x) @ head.T, other(x) @ head.T
    return ((actual - want).abs().max() / want.abs().max()).item()


def mixing(seed: int, sinkhorn: int) -> float:
    """Largest absolute row or column sum of a product of 64 random 4 x 4 matrices: I + 0.3 * normal
    for 0 iterations, otherwise exp(normal) with that many Sinkhorn iterations (rows, columns)."""
    g = torch.Generator().manual_seed(seed)
    product = torch.eye(4, dtype=torch.float64)
    for _ in range(64):
        m = torch.randn(4, 4, generator=g, dtype=torch.float64)
        if sinkhorn:
            m = m.exp()
            for _ in range(sinkhorn):
                m = m / m.sum(1, keepdim=True)
                m = m / m.sum(0, keepdim=True)
        else:
            m = torch.eye(4, dtype=torch.float64) + 0.3 * m
        product = m @ product
    return max(product.abs().sum(0).max().item(), product.abs().sum(1).max().item())


@functools.cache
def attention_at(width: int, seed: int, factor: float, qk_norm: bool) -> tuple[float, float]:
    """Largest |logit| / sqrt(head_dim) and mean entropy / log(tokens) of an attention that sees
    every token, its query and key weights times ``factor``."""
    with fixed_seed(seed):
        task = draw(setup(width))
        a = Attention(width, HEADS, bias=False, qk_norm=QKNorm if qk_norm else None)
        for linear in (a.q, a.k):
            nn.init.normal_(linear.weight, std=factor / math.sqrt(width))
    with torch.no_grad():
        logits = a.queries(task.x) @ a.keys(task.x).transpose(-1, -2) * a.scale
        p = logits.softmax(-1)
        entropy = -torch.xlogy(p, p).sum(-1).mean().item() / math.log(TOKENS)
    return logits.abs().max().item() / math.sqrt(a.head_dim), entropy


FACTORS = (1.0, 2.0, 5.0, 10.0, 30.0)


def entropy_change(width: int, seed: int) -> float:
    """Largest relative change of the entropy over ``FACTORS``, with QK-norm."""
    plain = attention_at(width, seed, 1.0, True)[1]
    return max(abs(attention_at(width, seed, f, True)[1] / plain - 1.0) for f in FACTORS)


def first_to_last(design: str, width: int, depth: int, seed: int) -> float:
    """The first MLP's gradient over the last one's."""
    g = run(design, width, depth, seed).mlp_gradient
    return g[0] / g[-1]


def last(design: str, width: int, depth: int, seed: int) -> float:
    """The last MLP's gradient."""
    return run(design, width, depth, seed).mlp_gradient[-1]


def evenness(design: str, width: int, seed: int) -> float:
    """The largest MLP gradient over the smallest, 48 blocks."""
    g = run(design, width, 48, seed).mlp_gradient
    return max(g) / min(g)


def smallest_step(width: int, seed: int) -> float:
    """By which factor pre-norm's first / last gradient grows from one depth to the next, at
    least."""
    r = [first_to_last("pre", width, depth, seed) for depth in DEPTHS]
    return min(b / a for a, b in itertools.pairwise(r))


# --- the claims -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One measured quantity of a claim."""

    claim: str
    what: str
    theory: str
    low: float
    high: float
    value: Callable[[int, int], float]  # (width, seed)
    by_width: bool = True

    def band(self) -> str:
        """What the literature notes expect, written down before this was measured."""
        if self.low == -math.inf:
            return f"<= {self.high:g}"
        return f">= {self.low:g}" if self.high == math.inf else f"{self.low:g} .. {self.high:g}"


INF = math.inf


def rows() -> list[Row]:
    """All that is measured, in the order of the table."""

    def ratio_48_6(design: str) -> Callable[[int, int], float]:
        return lambda w, s: mean_square(design, w, 48, s) / mean_square(design, w, 6, s)

    def update_slope(design: str, sign: bool) -> Callable[[int, int], float]:
        return lambda w, s: slope(lambda depth: update(design, w, depth, s, sign))

    def scaled(design: str) -> Callable[[int, int], float]:
        return lambda w, s: mean_square(design, w, 48, s, 4.0) / mean_square(design, w, 48, s)

    def last_slope(design: str) -> Callable[[int, int], float]:
        return lambda w, s: slope(lambda depth: last(design, w, depth, s))

    def early(design: str) -> Callable[[int, int], float]:
        return lambda w, s: (
            run(design, w, 48, s).mlp_gradient[0] / run(design, w, 6, s).mlp_gradient[0]
        )

    return [
        Row("D1", "last MLP gradient, exponent, post", "0", -0.15, 0.35, last_slope("post_norm")),
        Row("D1", "the same, pre", "-1/2", -0.65, -0.25, last_slope("pre")),
        Row(
            "D1",
            "post / pre at L = 48",
            "sqrt(L)",
            4,
            INF,
            lambda w, s: last("post_norm", w, 48, s) / last("pre", w, 48, s),
        ),
        Row(
            "D1",
            "first / last MLP gradient, post, L = 48",
            "near 0",
            0.625,
            2.5,
            lambda w, s: first_to_last("post_norm", w, 48, s),
        ),
        Row(
            "D2",
            "(mean square - 1) / L, pre, farthest from 1 over L",
            "1/2 .. 3/2",
            0.5,
            1.5,
            lambda w, s: farthest([(mean_square("pre", w, d, s) - 1) / d for d in DEPTHS], 1.0),
        ),
        Row(
            "D2",
            "mean square, post, farthest from 1 over L",
            "1",
            0.99,
            1.01,
            lambda w, s: farthest([mean_square("post_norm", w, d, s) for d in DEPTHS], 1.0),
        ),
        Row(
            "D3",
            "first / last MLP gradient, pre, L = 48",
            "> 1, grows",
            3,
            INF,
            lambda w, s: first_to_last("pre", w, 48, s),
        ),
        Row("D3", "its smallest growth from one L to the next", "> 1", 1, INF, smallest_step),
        Row(
            "D4",
            "largest / smallest MLP gradient, L = 48, deepnorm",
            "1",
            -INF,
            1.3,
            lambda w, s: evenness("deepnorm", w, s),
        ),
        Row("D4", "the same, pre", "> 1", 3, INF, lambda w, s: evenness("pre", w, s)),
        Row(
            "D5",
            "change by one SGD step, exponent, deepnorm",
            "0",
            -0.2,
            0.2,
            update_slope("deepnorm", False),
        ),
        Row("D5", "the same, post", "> 0", 1.0, INF, update_slope("post_norm", False)),
        Row("D5", "the same, pre", "none stated", 0.3, 0.9, update_slope("pre", False)),
        Row(
            "D5b",
            "change by one sign step, exponent, deepnorm",
            "not 0",
            0.3,
            0.65,
            update_slope("deepnorm", True),
        ),
        Row("D5b", "the same, post", "> 0", 1.1, INF, update_slope("post_norm", True)),
        Row(
            "D6",
            "mean square / (1 + 2L), sandwich, farthest from 1 over L",
            "1",
            0.8,
            1.2,
            lambda w, s: farthest(
                [mean_square("sandwich", w, d, s) / (1 + 2 * d) for d in DEPTHS], 1.0
            ),
        ),
        Row(
            "D6",
            "mean square, all weights * 4, L = 48, sandwich",
            "1",
            0.9,
            1.1,
            scaled("sandwich"),
        ),
        Row("D6", "the same, pre", "256", 5, INF, scaled("pre")),
        Row(
            "D7",
            "mean square, L = 48 over L = 6, ln_scaling",
            "slow growth",
            -INF,
            2,
            ratio_48_6("ln_scaling"),
        ),
        Row("D7", "the same, pre", "7", 6, INF, ratio_48_6("pre")),
        Row("D8", "the same, writers / sqrt(2L)", "1", -INF, 1.1, ratio_48_6("gpt2")),
        Row(
            "D8",
            "last MLP gradient, exponent, writers / sqrt(2L)",
            "0",
            -0.1,
            0.1,
            last_slope("gpt2"),
        ),
        Row(
            "D9",
            "rank residual after 4 attentions, no skip",
            "0, doubly exp.",
            -INF,
            1e-3,
            lambda w, s: ranks(w, s, False)[3],
        ),
        Row("D9", "after 12, with skip", "> 0", 0.2, INF, lambda w, s: ranks(w, s, True)[11]),
        Row(
            "D10",
            "token cosine at the end, post, least of L = 24, 48",
            "1",
            0.95,
            INF,
            lambda w, s: min(collapse("post_norm", w, d, s)[0] for d in (24, 48)),
        ),
        Row(
            "D10",
            "the same, L = 24, writers / sqrt(2L)",
            "below 1",
            -INF,
            0.2,
            lambda w, s: collapse("gpt2", w, 24, s)[0],
        ),
        Row(
            "D10",
            "the same, L = 24, deepnorm",
            "below 1",
            -INF,
            0.2,
            lambda w, s: collapse("deepnorm", w, 24, s)[0],
        ),
        Row(
            "D10",
            "last query gradient, post / pre, L = 24",
            "0",
            -INF,
            0.1,
            lambda w, s: collapse("post_norm", w, 24, s)[1] / collapse("pre", w, 24, s)[1],
        ),
        Row(
            "D12",
            "hyper_connections - pre, eps 1e-5",
            "0",
            -INF,
            1e-3,
            lambda w, s: distance(schemes.hyper_connections(4), w, s, 1e-5),
        ),
        Row(
            "D12",
            "the same, eps 1e-12",
            "0",
            -INF,
            1e-6,
            lambda w, s: distance(schemes.hyper_connections(4), w, s, 1e-12),
        ),
        Row(
            "D12",
            "LayerScale at 1 - pre, eps 1e-5",
            "0",
            -INF,
            1e-6,
            lambda w, s: distance(schemes.with_layer_scale(schemes.pre_norm, 1.0), w, s, 1e-5),
        ),
        Row(
            "D13",
            "gain of 64 free 4 x 4 mixtures",
            "explodes",
            100,
            INF,
            lambda _, s: mixing(s, 0),
            False,
        ),
        Row(
            "D13",
            "the same, doubly stochastic, 3 iterations",
            "1",
            -INF,
            1.05,
            lambda _, s: mixing(s, 3),
            False,
        ),
        Row("D13", "the same, 20 iterations", "1", -INF, 1.05, lambda _, s: mixing(s, 20), False),
        Row(
            "D14",
            "largest abs(logit) / sqrt(head_dim), QK-norm, q, k * 1 .. 30",
            "<= 1",
            -INF,
            1 + 1e-4,
            lambda w, s: max(attention_at(w, s, f, True)[0] for f in FACTORS),
        ),
        Row("D14", "change of the entropy, QK-norm", "0", -INF, 0.01, entropy_change),
        Row(
            "D14",
            "entropy / log T, q, k * 30, no QK-norm",
            "0",
            -INF,
            0.05,
            lambda w, s: attention_at(w, s, 30.0, False)[1],
        ),
        Row(
            "D15",
            "first MLP gradient, L = 48 over L = 6, output_norm",
            "grows",
            10,
            INF,
            early("output_norm"),
        ),
        Row("D15", "the same, with QK-norm", "1", -INF, 2, early("output_norm+qk")),
    ]


def table(widths: Sequence[int], seeds: Sequence[int]) -> str:
    """The markdown table."""
    heads = " | ".join(f"width {w}" for w in widths)
    lines = [
        f"| # | measured | theory | {heads} | band | inside |",
        "|---" * (5 + len(widths)) + "|",
    ]
    for row in rows():
        cells, inside, total = [], 0, 0
        for width in widths if row.by_width else widths[:1]:
            values = [row.value(width, seed) for seed in seeds]
            inside += sum(row.low <= v <= row.high for v in values)
            total += len(values)
            low, high = min(values), max(values)
            cells.append(f"{statistics.median(values):.3g} [{low:.3g}, {high:.3g}]")
        cells += ["the same"] * (len(widths) - len(cells))
        verdict = "yes" if inside == total else f"**{inside} of {total}**"
        measured = " | ".join(cells)
        lines.append(
            f"| {row.claim} | {row.what} | {row.theory} | {measured} | {row.band()} | {verdict} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table and what it was measured with."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--threads", type=int, default=2, help="1 on a machine with other work")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    started = time.perf_counter()
    print(table(args.widths, args.seeds))
    seconds = time.perf_counter() - started
    line = f"torch {torch.__version__}, seeds {args.seeds}, {args.threads} thread(s)"
    print(f"\n{line}, {seconds:.0f} s")


if __name__ == "__main__":
    main()
