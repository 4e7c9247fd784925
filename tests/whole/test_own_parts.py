"""A norm and two joins of somebody else's: each a few lines outside the package, in a Stack."""

import inspect
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from addnorm import schemes
from addnorm.branches import MLP, Attention
from addnorm.joins import LearnedGain, Weighing
from addnorm.norms import Settled
from addnorm.stream import Add, AddNorm, Join, Plain, Scheme, Site, Stack, Stream, Wiring

DIM = 8
EXACT = 1e-12  # both sides round 1e3 times at 1.1e-16, at values of about 1


class PeakNorm(Settled):
    """y = weight * x / (max |x| + 1)."""

    weight: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim, weight=((dim,), 1.0))

    def normalize(self, s: Tensor, valid: Tensor | None) -> Tensor:
        return self.weight.to(s.dtype) * s / (s.abs().amax(-1, keepdim=True) + 1)


class Highway(Plain):
    """g * x + (1 - g) * f(x), g = sigmoid(gate)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(dim))

    def write(self, carry: Tensor, v: Tensor, taps: dict[str, Tensor]) -> Stream:
        g = self.gate.sigmoid().to(carry.dtype)
        return Stream(g * carry + (1 - g) * v, taps=taps)


class Bounded(Weighing):
    """f(x) / (1 + mean |f(x)|), then as the base has it."""

    def factor(self, v: Tensor) -> Tensor:
        return 1 / (1 + v.abs().mean(-1, keepdim=True))


def wired(s: Site, join: Callable[[], Join]) -> Wiring:
    """x <- join(x, f(N(x))), and the final norm."""
    if s.kind == "embed":
        return Wiring()
    return Wiring(pre=AddNorm(s.dim, PeakNorm), join=None if s.kind == "head" else join())


SCHEMES: dict[str, Scheme] = {
    "highway": lambda s: wired(s, lambda: Highway(s.dim)),
    "bounded": lambda s: wired(s, lambda: Bounded(Add())),  # which leaves its factor on the stream
    "gained": lambda s: wired(s, lambda: Bounded(LearnedGain(Add(), (s.dim,), 0.5))),
}


def norm(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return p[f"{name}.norm.weight"] * x / (x.abs().max(-1, keepdim=True).values + 1)


def mlp(p: dict[str, Tensor], name: str, u: Tensor) -> Tensor:
    h = nn.functional.gelu(u @ p[f"{name}.up.weight"].T + p[f"{name}.up.bias"])
    return h @ p[f"{name}.down.weight"].T + p[f"{name}.down.bias"]


def by_hand(p: dict[str, Tensor], x: Tensor, scheme: str) -> Tensor:
    """Two sublayers and the final norm, as the docstrings above say it."""
    for at in ("subs.0", "subs.1"):
        f = mlp(p, f"{at}.branch", norm(p, f"{at}.pre", x))
        if scheme == "highway":
            g = torch.sigmoid(p[f"{at}.join.gate"])
            x = g * x + (1 - g) * f
            continue
        if scheme == "gained":
            gain = p[f"{at}.join.base.gain"]
        x = x + (gain if scheme == "gained" else 1.0) * f / (1 + f.abs().mean(-1, keepdim=True))
    return norm(p, "final", x)


@pytest.mark.parametrize("name", SCHEMES)
def test_output_and_gradients_are_those_of_the_definition(name: str) -> None:
    torch.manual_seed(0)
    stack = Stack([("mlp", partial(MLP, DIM, 12))] * 2, DIM, SCHEMES[name]).double()
    with torch.no_grad():
        for p in stack.parameters():
            p.add_(0.3 * torch.randn_like(p))  # a gate of 0 and a weight of 1 hide mistakes
    x, cotangent = torch.randn(2, 3, 5, DIM, dtype=torch.float64).unbind(0)
    leaves = {"x": x.requires_grad_(), **dict(stack.named_parameters())}
    actual, want = stack(x), by_hand(leaves, x, name)
    torch.testing.assert_close(actual, want, rtol=0, atol=EXACT)
    mine = torch.autograd.grad(actual, list(leaves.values()), cotangent)
    theirs = torch.autograd.grad(want, list(leaves.values()), cotangent)
    for leaf, g, w in zip(leaves, mine, theirs, strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=EXACT, msg=leaf)


@pytest.mark.parametrize("name", SCHEMES)
def test_they_work_with_attention_and_with_combinators(name: str) -> None:
    """In a causal stack, under autocast, with stochastic depth on top; the stream stays float32."""
    makes = [("attn", partial(Attention, DIM, 2, causal=True)), ("mlp", partial(MLP, DIM, 12))]
    stack = Stack(makes, DIM, schemes.drop_path(SCHEMES[name], p=0.5))
    with torch.autocast("cpu", torch.bfloat16):
        y = stack(torch.randn(4, 5, DIM))
    assert y.dtype == torch.float32
    y.sum().backward()
    assert all(p.grad is not None for p in stack.parameters())


def test_the_norm_keeps_the_policy_of_dtypes() -> None:
    """Statistics in float32, y as x is, the stream as the residual is: nothing of its own."""
    n, x, residual = PeakNorm(DIM), torch.randn(3, DIM).bfloat16(), torch.randn(3, DIM)
    y, stream = n(x, residual)
    assert (y.dtype, stream.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(y, n(residual + x.float()).bfloat16())


@pytest.mark.parametrize("part", [PeakNorm, Highway, Bounded])
def test_a_part_is_a_few_lines(part: type) -> None:
    assert len(inspect.getsource(part).splitlines()) < 15
