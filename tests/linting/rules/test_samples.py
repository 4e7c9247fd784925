"""Samples that see each other, and batches that stand where time should."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import addnorm
from addnorm.linting.findings import Finding
from tests.attention_hosts import (
    HEADS,
    BatchCentre,
    Encoder,
    Patches,
    Pictures,
    TinyGPT,
    Transformer,
    W,
    bert,
    built,
    edited,
)
from tests.linting.asking import ask, the

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")


@pytest.mark.parametrize(
    ("build", "module"),
    [
        (lambda: TinyGPT(at=1, extra=BatchCentre()), "h.1.extra"),
        (lambda: Encoder(drop=lambda h: h - h.mean(0)), ""),
        (
            lambda: edited(
                bert(),
                "bert.encoder.layer.1.output.LayerNorm",
                lambda m, f: f() / f().std(0, keepdim=True),
            ),
            "bert.encoder.layer.1.output.LayerNorm",
        ),
    ],
)
def test_samples_that_notice_one_another(build: Callable[[], nn.Module], module: str) -> None:
    finding = the(ask(built(build), "batch-leak", "batch-time-swapped"), "batch-leak")
    assert (finding.severity, finding.module) == ("error", module)


def test_in_training_only() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(W)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x.transpose(1, 2)).transpose(1, 2)

    finding = the(ask(built(TinyGPT, at=1, extra=Norm()), "batch-leak"), "batch-leak")
    assert (finding.severity, finding.module) == ("warning", "h.1.extra.norm")


@pytest.mark.parametrize(
    ("build", "module"),
    [
        (lambda: TinyGPT(mask="none", swapped=True), "h.0.attn"),
        (lambda: Encoder(batch_first=False), "encoder.layers.0.self_attn"),
        (lambda: Encoder(batch_first=False, pool="mean"), "encoder.layers.0.self_attn"),
        (lambda: Encoder(batch_first=False, positions=False), "encoder.layers.0.self_attn"),
        (
            lambda: edited(
                edited(bert(), "bert.encoder.layer.0", _crossed), "bert.encoder.layer.1", _crossed
            ),
            "bert.encoder.layer.0",
        ),
    ],
)
def test_batch_and_time_swapped(build: Callable[[], nn.Module], module: str) -> None:
    said = ask(built(build), "batch-leak", "batch-time-swapped")
    finding = the(said, "batch-time-swapped")
    assert finding.module.startswith(module)
    assert len(said) == 1


def _crossed(module: Any, forward: Callable[..., Any]) -> Any:
    return forward(forward.__closure__ and _turned(forward)).transpose(0, 1)


def _turned(forward: Any) -> Tensor:
    cells = dict(zip(forward.__code__.co_freevars, forward.__closure__, strict=True))
    return cells["args"].cell_contents[0].transpose(0, 1)


def test_swapped_in_the_encoder_of_a_pair_only() -> None:
    model = built(Transformer)
    for layer in model.get_submodule("inner.encoder.layers").children():
        layer.self_attn.batch_first = False
    said = ask(model, "batch-leak", "batch-time-swapped", causal=True)
    finding = the(said, "batch-time-swapped")
    assert finding.module == "inner.encoder.layers.0.self_attn"
    assert finding.evidence["argument"] == "src"
    assert len(said) == 1


@pytest.mark.parametrize("pool", ["class", "mean", ""])
@pytest.mark.parametrize("swapped", [(), (0, 1), (1,)])
@pytest.mark.parametrize("sound", [False, True])
def test_patches_that_attend_over_the_batch(
    sound: bool, swapped: tuple[int, ...], pool: str
) -> None:
    """Even where the class token then sees nothing of its picture."""
    kind = Patches if sound else Pictures
    said = ask(
        built(kind, swapped=swapped, pool=pool, sound=sound), "batch-leak", "batch-time-swapped"
    )
    assert {one.rule for one in said} == (
        {"batch-leak", "batch-time-swapped"} if swapped else set()
    )
    for one in said:
        assert isinstance(one, Finding)
        assert (one.severity, one.module) == ("error", f"h.{swapped[0]}.attn")


def test_one_block_of_tokens_that_attends_over_the_batch() -> None:
    said = ask(built(TinyGPT, at=1, swapped=True), "batch-leak", "batch-time-swapped")
    assert the(said, "batch-time-swapped").module == "h.1.attn"
    assert the(said, "batch-leak").module == "h.1.attn"


def test_time_first_is_no_fault_where_it_is_meant() -> None:
    layer = nn.TransformerEncoderLayer(W, HEADS, 32)
    model = built(lambda: nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    rules = ("batch-leak", "batch-time-swapped", "future-leak", "no-causal-mask")
    assert not ask(model, *rules)
    assert not ask(model, *rules, inputs=torch.randn(9, 2, W))


def test_a_table_of_samples_against_samples_is_no_leak() -> None:
    """CLIP's: each image's score with each text of the batch."""

    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.text = nn.Linear(12, 8), nn.Embedding(31, 8)

        def forward(self, images: Tensor, ids: Tensor) -> Tensor:
            return self.image(images) @ self.text(ids).mean(1).T

    report = addnorm.lint(Pairs(), (torch.randn(3, 12), torch.randint(31, (3, 7))))
    assert "batch-leak" not in {f.rule for f in report.findings}
    assert "compares every sample" in str([u.why for u in report.unknown if u.rule == "batch-leak"])
