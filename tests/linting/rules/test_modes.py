"""Randomness in evaluation mode, and dropout that is never applied."""

from collections.abc import Callable

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from tests.attention_hosts import (
    Encoder,
    TinyGPT,
    built,
    edited,
    gpt2,
)
from tests.linting.asking import ask, the

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")


class Careless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.1)


@pytest.mark.parametrize(
    ("build", "module"),
    [
        (lambda: TinyGPT(at=1, extra=Careless()), "h.1.extra"),
        (lambda: Encoder(drop=lambda h: F.dropout(h, 0.1)), ""),
        (
            lambda: edited(gpt2(), "transformer.h.0.mlp", lambda m, f: F.dropout(f(), 0.1)),
            "transformer.h.0.mlp",
        ),
    ],
)
def test_randomness_that_does_not_listen(build: Callable[[], nn.Module], module: str) -> None:
    finding = the(ask(built(build), "dropout-in-eval"), "dropout-in-eval")
    assert (finding.severity, finding.module) == ("error", module)


def test_dropout_that_is_never_applied() -> None:
    class Unused(TinyGPT):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.2)

    finding = the(ask(built(Unused), "dropout-in-eval"), "dropout-in-eval")
    assert (finding.severity, finding.module) == ("warning", "drop")


def test_parts_in_another_mode() -> None:
    model = built(Encoder)
    model.get_submodule("encoder.layers.1").train()
    finding = the(ask(model, "dropout-in-eval"), "dropout-in-eval")
    assert (finding.severity, finding.module) == ("note", "encoder.layers.1")
