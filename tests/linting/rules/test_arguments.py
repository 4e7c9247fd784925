"""Arguments without effect, and decoders that do not read their encoder."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from addnorm.linting.findings import Finding
from tests.attention_hosts import (
    VOCAB,
    Captioner,
    Encoder,
    Padded,
    Transformer,
    W,
    bert,
    built,
    edited,
    gpt2,
    no_mask,
    t5,
)
from tests.linting.asking import ask, the

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")


def _no_types(module: Any, forward: Callable[..., Any]) -> Any:
    return forward(token_type_ids=None)


@pytest.mark.parametrize(
    ("build", "arguments"),
    [
        (lambda: Padded(-1e9, ignore=True), {"valid", "scale"}),
        (lambda: Encoder(pass_padding=False), {"padding_mask"}),
        (lambda: edited(bert(), "bert.embeddings", _no_types), {"token_type_ids"}),
        (lambda: edited(gpt2(), "transformer", no_mask), {"attention_mask"}),
    ],
)
def test_arguments_without_effect(build: Callable[[], nn.Module], arguments: set[str]) -> None:
    said = ask(built(build), "ignored-argument")
    assert {str(one.evidence["argument"]) for one in said if isinstance(one, Finding)} == arguments


@pytest.mark.parametrize(
    "build",
    [
        lambda: Transformer("zeros"),
        lambda: Transformer("itself"),
        lambda: edited(
            edited(t5(), "decoder.block.0.layer.1", lambda m, f: (_held(f), *f()[1:])),
            "decoder.block.1.layer.1",
            lambda m, f: (_held(f), *f()[1:]),
        ),
    ],
)
def test_a_decoder_that_does_not_look(build: Callable[[], nn.Module]) -> None:
    finding = the(ask(built(build), "ignores-memory", "ignored-argument"), "ignores-memory")
    assert finding.severity == "error"
    assert finding.evidence["argument"] in ("src", "input_ids")


@pytest.mark.parametrize("features", [True, False])
def test_a_captioner_that_reads_its_own_caption(features: bool) -> None:
    """Nobody calls it an encoder; it has attention to a second sequence and none is read."""

    class Words(Captioner):
        def forward(self, y: Tensor, x: Tensor) -> Tensor:
            return super().forward(y, self.tokens(x))

    rules = ("ignores-memory", "ignored-argument", "position-blind")
    kind, options = (Captioner, {}) if features else (Words, {"width": W})
    said = ask(built(kind, reads="itself", **options), *rules, causal=True)
    assert [one.rule for one in said] == ["ignores-memory"]
    assert said[0].evidence["argument"] == ("features" if features else "x")
    said = ask(built(kind, **options), *rules, causal=True)
    assert not [one for one in said if one.rule != "position-blind"]


def test_token_types_are_no_memory() -> None:
    class Typed(Transformer):
        def forward(self, src: Tensor, tgt: Tensor, token_type_ids: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(src, tgt)

    ids = torch.randint(4, VOCAB, (3, 7))
    given = {"src": ids[:, :5], "tgt": ids, "token_type_ids": torch.zeros_like(ids)}
    assert not ask(built(Typed), "ignores-memory", inputs=given)


def _held(forward: Any) -> Tensor:
    cells = dict(zip(forward.__code__.co_freevars, forward.__closure__, strict=True))
    return cells["args"].cell_contents[0]


class Switched(nn.Module):
    """With a switch of no effect, and one that spoils the output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Padded(-1e9)

    def forward(
        self, ids: Tensor, valid: Tensor, idle: bool = False, spoil: bool = False
    ) -> Tensor:
        out: Tensor = self.inner(ids, valid)
        return out * torch.nan if spoil else out


def test_an_output_that_is_spoiled_is_an_effect() -> None:
    findings = ask(built(Switched), "ignored-argument")
    assert {one.evidence["argument"] for one in findings if isinstance(one, Finding)} == {"idle"}
