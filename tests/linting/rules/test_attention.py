"""Cosine attention, however queries and keys are made unit vectors: its factor is a temperature."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm import lint

WIDTH, HEADS = 24, 3


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def by_hand(x: Tensor) -> Tensor:
    return x / (x.pow(2).sum(-1, keepdim=True) + 1e-12).sqrt()


def unit_in_groups(x: Tensor) -> Tensor:
    """Two halves of a head, each of unit size."""
    return F.normalize(x.unflatten(-1, (2, -1)), dim=-1).flatten(-2)


def as_they_are(x: Tensor) -> Tensor:
    return x


def products(q: Tensor, k: Tensor, v: Tensor, factor: float) -> Tensor:
    return (q @ k.mT * factor).softmax(-1) @ v


def fused(q: Tensor, k: Tensor, v: Tensor, factor: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=factor)


Mix = Callable[[Tensor, Tensor, Tensor, float], Tensor]
Change = Callable[[Tensor], Tensor]


class Attention(nn.Module):
    """One pre-norm attention on vectors; queries and keys are changed before their product."""

    def __init__(self, queries: Change, keys: Change, mix: Mix, factor: float) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.queries, self.keys, self.mix, self.factor = queries, keys, mix, factor

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        y = self.mix(self.queries(q), self.keys(k), v, self.factor)
        out: Tensor = self.last(x + self.out(y.transpose(1, 2).flatten(2)))
        return out


def scale_of(queries: Change, keys: Change, mix: Mix, factor: float) -> list[str]:
    torch.manual_seed(0)
    report = lint(Attention(queries, keys, mix, factor), torch.randn(2, 7, WIDTH))
    return [f.severity for f in report.findings if f.rule == "attention-scale"]


@pytest.mark.parametrize("mix", [products, fused])
@pytest.mark.parametrize("change", [unit, by_hand, unit_in_groups])
@pytest.mark.parametrize("factor", [10.0, 1 / 0.07])
def test_unit_vectors_have_a_temperature(change: Change, mix: Mix, factor: float) -> None:
    assert scale_of(change, change, mix, factor) == []


@pytest.mark.parametrize(("queries", "keys"), [(unit, as_they_are), (as_they_are, unit)])
def test_of_one_side_alone_it_is_still_asked(queries: Change, keys: Change) -> None:
    assert scale_of(queries, keys, products, 10.0) == ["error"]


@pytest.mark.parametrize("mix", [products, fused])
def test_without_unit_vectors_a_factor_above_one_is_an_error(mix: Mix) -> None:
    assert scale_of(as_they_are, as_they_are, mix, 10.0) == ["error"]
