"""An early state of the stream beside a late one: a U-net's skip, whatever product joins them."""

import pytest
import torch
from torch import Tensor, nn

from addnorm import lint

WIDTH = 24


class Block(nn.Module):
    """Attention and MLP, pre-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, 3, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Net(nn.Module):
    """Four blocks; the last two begin with ``join`` of the stream and an early state."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.joins = nn.ModuleList(self.joiner() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 11)

    def joiner(self) -> nn.Module:
        return nn.Linear(2 * WIDTH, WIDTH)

    def join(self, joiner: nn.Module, x: Tensor, early: Tensor) -> Tensor:
        joined: Tensor = joiner(torch.cat([x, early], -1))
        return joined

    def forward(self, x: Tensor) -> Tensor:
        early = []
        for i, block in enumerate(self.blocks):
            if i < 2:
                early.append(x)
            else:
                x = self.join(self.joins[i - 2], x, early.pop())
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class Channels(Net):
    """Channels first, by a convolution of one."""

    def joiner(self) -> nn.Module:
        return nn.Conv1d(2 * WIDTH, WIDTH, 1)

    def join(self, joiner: nn.Module, x: Tensor, early: Tensor) -> Tensor:
        joined: Tensor = joiner(torch.cat([early.mT, x.mT], 1)).mT
        return joined


class Normed(Net):
    """Both are normalized together before they are joined."""

    def joiner(self) -> nn.Module:
        return nn.Sequential(nn.LayerNorm(2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH))


class Alone(Net):
    """Only the stream itself goes through a matrix."""

    def joiner(self) -> nn.Module:
        return nn.Linear(WIDTH, WIDTH)

    def join(self, joiner: nn.Module, x: Tensor, early: Tensor) -> Tensor:
        joined: Tensor = joiner(x)
        return joined


class Sublayer(Net):
    """What stands beside the stream is no state of it, but what a sublayer made."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))

    def join(self, joiner: nn.Module, x: Tensor, early: Tensor) -> Tensor:
        return super().join(joiner, self.inner(x), self.inner(early))


class Endless(Net):
    """Skips are right; the head reads the stream without a norm."""

    def forward(self, x: Tensor) -> Tensor:
        self.norm = nn.Identity()
        return super().forward(x)


def stream_findings(net: type[Net]) -> set[str]:
    torch.manual_seed(0)
    report = lint(net(), torch.randn(2, 7, WIDTH))
    rules = {"no-residual", "missing-final-norm", "residual-wrong-tensor"}
    return {f.rule for f in report.findings if f.rule in rules}


@pytest.mark.parametrize("net", [Net, Channels, Normed])
def test_a_skip_is_a_way_of_the_stream(net: type[Net]) -> None:
    assert stream_findings(net) == set()


@pytest.mark.parametrize("net", [Alone, Sublayer])
def test_without_a_skip_nothing_goes_around_the_product(net: type[Net]) -> None:
    assert "no-residual" in stream_findings(net)


def test_the_end_of_a_net_with_skips_still_needs_a_norm() -> None:
    assert stream_findings(Endless) == {"missing-final-norm"}
