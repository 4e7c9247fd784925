"""What every layer reads anew beside the stream is no write that was lost."""

import pytest
import torch
from torch import Tensor, nn

from addnorm import lint

WIDTH = 24


class Layer(nn.Module):
    """A pre-norm attention or MLP whose branch may read something added to the stream."""

    def __init__(self, attends: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        inner = nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH))
        attention = nn.MultiheadAttention(WIDTH, 3, batch_first=True)
        self.inner: nn.Module = attention if attends else inner
        self.attends = attends

    def branch(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.inner(y, y, y, need_weights=False)[0] if self.attends else self.inner(y)


class Stack(nn.Module):
    """Two attentions and two MLPs, and a final norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(attends=i % 2 == 0) for i in range(4))
        self.last = nn.LayerNorm(WIDTH)
        self.inject, self.gate = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def injection(self, x: Tensor) -> Tensor:
        """What is added to what each layer reads."""
        inject: Tensor = self.inject(x)
        return inject

    def forward(self, x: Tensor) -> Tensor:
        injection = self.injection(x)
        for layer in self.layers:
            x = x + layer.branch(x + injection)
        out: Tensor = self.last(x)
        return out


class Gated(Stack):
    """The injection is as large as a number of each position says."""

    def injection(self, x: Tensor) -> Tensor:
        inject: Tensor = self.inject(x) * self.gate(x).sigmoid()
        return inject


class Deep(Stack):
    """The injection comes out of an MLP of its own."""

    def injection(self, x: Tensor) -> Tensor:
        inject: Tensor = self.inject(torch.tanh(self.inject(x)))
        return inject


class Lost(Stack):
    """Each MLP reads what the attention wrote, and is added to the stream without it."""

    def forward(self, x: Tensor) -> Tensor:
        for attend, mlp in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = x + mlp.branch(x + attend.branch(x))
        out: Tensor = self.last(x)
        return out


class Past(Stack):
    """The values of the first attention are made of the stream as it is."""

    def forward(self, x: Tensor) -> Tensor:
        first = self.layers[0]
        y = first.norm(x)
        x = x + first.inner(y, y, x, need_weights=False)[0]
        for layer in self.layers[1:]:
            x = x + layer.branch(x)
        out: Tensor = self.last(x)
        return out


class Values(nn.Module):
    """Attentions whose values are mixed with those of the first, head by head."""

    def __init__(self, lerp: bool) -> None:
        super().__init__()
        self.lerp = lerp
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(4))
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(3))
        self.outs = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.mixes = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor | None = None
        for i, (qkv, out) in enumerate(zip(self.qkv, self.outs, strict=True)):
            y = self.norms[i](x)
            q, k, v = qkv(y).unflatten(-1, (3, 3, -1)).permute(2, 0, 3, 1, 4)
            if first is None:
                first = v
            else:
                mix = self.mixes[i - 1](y).sigmoid()[:, None]
                v = first.lerp(v, mix) if self.lerp else v + mix * first
            mixed = (q @ k.mT / (WIDTH / 3) ** 0.5).softmax(-1) @ v
            x = x + out(mixed.transpose(1, 2).flatten(2))
        last: Tensor = self.norms[3](x)
        return last


def wrong_tensors(model: nn.Module) -> set[str]:
    torch.manual_seed(0)
    report = lint(model, torch.randn(2, 7, WIDTH))
    return {f.severity for f in report.findings if f.rule == "residual-wrong-tensor"}


@pytest.mark.parametrize("stack", [Stack, Gated, Deep])
def test_an_injection_is_no_lost_write(stack: type[Stack]) -> None:
    assert wrong_tensors(stack()) == set()


@pytest.mark.parametrize("lerp", [True, False])
def test_values_mixed_with_the_first_ones_are_inside_a_sublayer(lerp: bool) -> None:
    assert wrong_tensors(Values(lerp)) == set()


@pytest.mark.parametrize("stack", [Lost, Past])
def test_a_write_that_is_lost_and_values_past_the_norm_are_told(stack: type[Stack]) -> None:
    assert wrong_tensors(stack()) == {"error"}
