"""Small models around a norm, for the tests that find norms and those that judge them."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from addnorm.anatomy.inputs import Inputs
from addnorm.anatomy.specimen import Specimen

WIDTH, VOCAB = 24, 13
IDS = torch.arange(14).view(2, 7) % VOCAB


def specimen_of(model: nn.Module, inputs: Inputs | Tensor) -> Specimen:
    """As lint makes it: what is constant by initialization is random."""
    probe = copy.deepcopy(model).eval()
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in probe.parameters():
            if bool((p == p.flatten()[0]).all()):
                p.add_(0.5 * torch.randn(p.shape, generator=g))
    return Specimen(probe, inputs if isinstance(inputs, Inputs) else Inputs((inputs,)))


def mean(x: Tensor, axis: Any = -1) -> Tensor:
    return x.mean(axis, keepdim=True)


def var(x: Tensor, axis: Any = -1, correction: int = 0) -> Tensor:
    return x.var(axis, keepdim=True, correction=correction)


def standard(x: Tensor, axis: Any = -1) -> Tensor:
    return (x - mean(x, axis)) / (var(x, axis) + 1e-5).sqrt()


class LayerNorm(nn.Module):
    """By hand, of any body."""

    def __init__(self, body: Callable[[Tensor], Tensor], dim: int = WIDTH):
        super().__init__()
        self.body = body
        self.gamma = nn.Parameter(torch.ones(dim))
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * self.body(x) + self.beta


class Bare(nn.Module):
    """Without parameters, and nobody calls it anything."""

    def __init__(self, body: Callable[[Tensor], Tensor]):
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Host(nn.Module):
    """A stream with two norms of one class."""

    def __init__(self, norm: nn.Module, dim: int = WIDTH):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, dim)
        self.before = norm
        self.mix = nn.Linear(dim, dim)
        self.act = nn.GELU()
        self.drop = nn.Dropout(0.1)
        self.final = copy.deepcopy(norm)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.drop(self.act(self.mix(self.before(x))))
        return self.final(x)


class ChannelsFirst(Host):
    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.mix(self.before(x.transpose(1, 2)).transpose(1, 2))
        return self.final(x.transpose(1, 2)).transpose(1, 2)


class FlaggedNorm(LayerNorm):
    """Right or wrong by a setting, a buffer or a function of one instance."""

    def __init__(self) -> None:
        super().__init__(standard)
        self.wrong = False
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        wrong = self.shift + float(self.wrong)
        return self.gamma * ((1 - wrong) * self.body(x) + wrong * x) + self.beta
