"""Padding that changes the output of real tokens, and masks that make NaN."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.attention_hosts import (
    HEADS,
    VOCAB,
    Encoder,
    Padded,
    W,
    bert,
    built,
    edited,
    gpt2,
    llama,
    no_mask,
    t5,
)
from tests.linting.asking import CHECKS_ON_CHANGES, ask, the

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")


@pytest.mark.parametrize(
    ("build", "works"),
    [
        (lambda: Encoder(pass_padding=False), False),
        (lambda: Encoder(pool="mean"), True),
        (lambda: edited(bert(), "bert.encoder.layer.0.attention.self", no_mask), True),
    ],
)
def test_padding_that_is_noticed(build: Callable[[], nn.Module], works: bool) -> None:
    said = ask(built(build), "padding-leak", "ignored-argument")
    finding = the(said, "padding-leak")
    assert finding.severity == "error"
    assert finding.evidence["mask_has_an_effect"] is works
    assert len(said) == 1 + (not works)


def finds(**options: Any) -> nn.Module:
    """An encoder that takes id 0 for padding, and no mask."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Encoder(**options)
            self.inner.tokens.padding_idx = 0

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, x == 0)

    return Inner()


def test_padding_that_a_model_finds_by_itself() -> None:
    rules = ("padding-leak", "mask-nan", "ignored-argument")
    assert not ask(built(finds, pool="real mean"), *rules)
    assert not ask(built(finds), *rules)
    assert the(ask(built(finds, pool="mean"), *rules), "padding-leak").severity == "error"
    never = built(finds, pool="mean", pass_padding=False)
    assert the(ask(never, *rules), "padding-leak").severity == "warning"


@pytest.mark.parametrize("given", [True, False])
def test_a_mask_the_wrong_way_round(given: bool) -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Encoder()

        def forward(self, x: Tensor, key_padding_mask: Tensor) -> Tensor:
            return self.inner(x, ~key_padding_mask)

    ids = torch.randint(1, VOCAB, (3, 9))
    hidden = torch.arange(9) >= torch.tensor([9, 6, 4])[:, None]
    inputs = {"x": ids, "key_padding_mask": hidden} if given else None
    finding = the(ask(built(Wrong), "padding-leak", inputs=inputs), "padding-leak")
    assert finding.severity == ("error" if given else "warning")
    assert "wrong way round" in finding.message


def test_padding_in_the_users_inputs_is_in_nobodys_way() -> None:
    """It is taken out before anything else is asked: it would hide what is looked for."""
    ids = torch.randint(1, VOCAB, (3, 9))
    hidden = torch.arange(9) >= torch.tensor([4, 9, 6])[:, None]
    given = {"x": ids * ~hidden, "padding_mask": hidden}
    blind = built(Encoder, positions=False)
    assert the(ask(blind, "position-blind", inputs=given), "position-blind").severity == "error"
    rules = [rule for check in CHECKS_ON_CHANGES for rule in check.names]
    assert not ask(built(Encoder), *rules, inputs=given)


@pytest.mark.parametrize(
    "build", [Encoder, lambda: Encoder(pool="real mean"), bert, gpt2, llama, t5]
)
def test_padding_that_is_not(build: Callable[[], nn.Module]) -> None:
    assert not ask(built(build), "padding-leak", "ignored-argument", "mask-nan")


def test_one_mask_for_the_encoder_and_one_for_its_readers() -> None:
    """Each alone lets the other side see the padding; that is how torch means them."""
    bare = built(lambda: nn.Transformer(W, HEADS, 1, 1, 32, batch_first=True))
    assert not ask(bare, "padding-leak", "mask-nan", "ignored-argument")


@pytest.mark.parametrize(
    ("build", "severity"),
    [
        (lambda: Padded(float("-inf")), "error"),  # one sample's NaN is in every gradient
        (lambda: Padded(float("-inf"), "causal"), "error"),
        (
            lambda: edited(
                bert(), "bert.encoder.layer.1", lambda m, f: f() / (f().abs().sum() < 1e9)
            ),
            None,
        ),
    ],
)
def test_nan_of_masks(build: Callable[[], nn.Module], severity: str | None) -> None:
    said = ask(built(build), "mask-nan")
    if severity is None:
        assert not said
    else:
        finding = the(said, "mask-nan")
        assert finding.severity == severity
        assert finding.module.startswith("h.0")


def test_nan_in_its_own_rows_only_is_a_warning() -> None:
    class Marked(Padded):
        def forward(self, idx: Tensor, valid: Tensor, scale: bool = False) -> Tensor:
            y = super().forward(idx, valid, scale)
            mark = torch.where(valid.bool().any(1), 0.0, float("nan")).to(y)
            return y + mark[:, None, None]

    finding = the(ask(built(Marked, fill=-1e9), "mask-nan"), "mask-nan")
    assert finding.severity == "warning"
    assert finding.evidence["parameters_with_nan_gradient"] == 0


@pytest.mark.parametrize("mask", ["none", "causal"])
def test_finite_masks_make_no_nan(mask: str) -> None:
    assert not ask(
        built(Padded, fill=-1e9, mask=mask), "mask-nan", "padding-leak", "ignored-argument"
    )


def test_what_only_float64_would_overflow_is_no_finding() -> None:
    """The probe runs in float64, where the lowest number is -inf once it is cast to float32."""

    class Cast(Encoder):
        def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
            h = self.tokens(x)
            scores = h @ h.transpose(1, 2)
            if padding_mask is not None:
                lowest = torch.finfo(h.dtype).min
                scores = scores.masked_fill(padding_mask[:, None, :], lowest)
            return self.head(h + scores.softmax(-1, dtype=torch.float32).to(h.dtype) @ h)

    assert not ask(built(Cast, p=0.0), "mask-nan")
