"""One architecture in a process of its own: whatever it does, there is a result."""

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.survey.architectures import Architecture
from benchmarks.survey.examine import examined


class Blocks(nn.Module):
    """Two pre-norm sublayers, and nothing that tells one position from the next."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(29, 16)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.inner = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(2)
        )
        self.head = nn.Linear(16, 29)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        for norm, inner in zip(self.norms, self.inner, strict=True):
            x = x + inner(norm(x))
        logits: Tensor = self.head(x)
        return logits


class Refusing(nn.Linear):
    """A model that takes no input at all."""

    def __init__(self) -> None:
        super().__init__(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError(f"not {x.shape}")


def no_model() -> nn.Module:
    raise ValueError("there is no such model\nand more of it")


def dead_process() -> nn.Module:
    os._exit(3)


def never_ready() -> nn.Module:
    while True:
        torch.zeros(9).sum()


def architecture(make: Callable[[], nn.Module]) -> Architecture:
    return Architecture(f"a {make.__name__}", "a family", make)


def test_a_model_is_linted() -> None:
    result = examined(architecture(Blocks))
    assert (result.state, result.why) == ("linted", "")
    assert result.questions > 30
    assert [finding["rule"] for finding in result.findings] == ["position-blind"]
    assert "no-residual" in {unknown["rule"] for unknown in result.unknown}  # it has no attention


@pytest.mark.parametrize(
    ("make", "state", "why"),
    [
        (no_model, "not built", "ValueError: there is no such model"),
        (Refusing, "no inputs", "no inputs were found"),
        (dead_process, "killed", "exit status 3"),
        (never_ready, "over 1 s", "exit status -24"),
    ],
)
def test_what_cannot_be_linted(make: Callable[[], nn.Module], state: str, why: str) -> None:
    result = examined(architecture(make), seconds=1)
    assert result.state == state
    assert result.why.startswith(why)
    assert not result.findings
