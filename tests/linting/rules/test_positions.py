"""Models that nothing tells where their tokens stand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from addnorm.linting.findings import Finding
from tests.attention_hosts import (
    HEADS,
    SMALL,
    VOCAB,
    Captioner,
    Encoder,
    Listener,
    TinyGPT,
    Transformer,
    W,
    bert,
    built,
    edited,
    gpt2,
    llama,
    t5,
)
from tests.linting.asking import ask, the

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")


def _unplaced(module: Any, forward: Callable[..., Any]) -> Any:
    return torch.zeros_like(forward())


@pytest.mark.parametrize(
    ("build", "severity"),
    [
        (lambda: TinyGPT(positions=False), "warning"),
        (lambda: TinyGPT(positions=False, mask="none"), "error"),
        (lambda: Encoder(positions=False), "error"),
        (lambda: Encoder(positions=False, pool="mean"), "error"),
        (lambda: edited(bert(), "bert.embeddings.position_embeddings", _unplaced), "error"),
        (lambda: edited(gpt2(), "transformer.wpe", _unplaced), "warning"),
        (lambda: edited(llama(), "model.rotary_emb", lambda m, f: _still(f())), "warning"),
    ],
)
def test_models_without_positions(build: Callable[[], nn.Module], severity: str) -> None:
    finding = the(ask(built(build), "position-blind"), "position-blind")
    assert finding.severity == severity


def _still(rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    cos, sin = rotation
    return torch.ones_like(cos), torch.zeros_like(sin)


def vit(kind: str = "ViT") -> nn.Module:
    t = pytest.importorskip("transformers")
    config = getattr(t, f"{kind}Config")(
        image_size=16,
        patch_size=4,
        **{k: v for k, v in SMALL.items() if k not in ("vocab_size", "max_position_embeddings")},
    )
    return getattr(t, f"{kind}ForImageClassification")(config)


def test_patches_without_positions() -> None:
    model = built(vit)
    assert not ask(model, "position-blind")

    class Nothing(nn.Module):
        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return x

    name = next(n for n, p in model.named_parameters() if "position" in n)
    owner = model.get_submodule(name.rpartition(".")[0])
    shape = owner.position_embeddings.shape
    del owner.position_embeddings
    owner.register_buffer("position_embeddings", torch.zeros(shape))
    finding = the(ask(model, "position-blind"), "position-blind")
    assert finding.severity == "error"


@pytest.mark.parametrize("build", [TinyGPT, Encoder, Transformer, bert, gpt2, llama, t5])
def test_models_with_positions(build: Callable[[], nn.Module]) -> None:
    assert not ask(built(build), "position-blind")


def test_bare_layers_are_a_note() -> None:
    layer = nn.TransformerEncoderLayer(W, HEADS, 32, batch_first=True)
    model = built(lambda: nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    assert the(ask(model, "position-blind"), "position-blind").severity == "note"


@pytest.mark.parametrize("inputs", [None, (3, 7), (3, 9)])
def test_what_the_caller_makes_vectors_of_is_his_to_place(inputs: Any) -> None:
    given = None
    if inputs is not None:
        given = (torch.randint(0, VOCAB, (3, 7)), torch.randn(*inputs, 20))
    said = ask(built(Captioner), "position-blind", inputs=given, causal=True)
    assert all(isinstance(one, Finding) and one.severity == "note" for one in said)


def test_what_the_model_cuts_into_frames_is_its_own() -> None:
    given = (torch.randint(0, VOCAB, (3, 7)), torch.randn(3, 33, 20))
    finding = the(ask(built(Listener), "position-blind", inputs=given), "position-blind")
    assert (finding.severity, finding.evidence["argument"]) == ("error", "features")
