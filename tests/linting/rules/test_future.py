"""Models in which something sees what comes later, and models in which nothing does."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm.anatomy import influence
from tests.attention_hosts import (
    HEADS,
    OPEN,
    BatchCentre,
    Conv,
    Encoder,
    Fourier,
    Inline,
    MeanOverTime,
    TinyGPT,
    Told,
    Transformer,
    W,
    built,
    edited,
    gpt2,
    llama,
    t5,
)
from tests.linting.asking import ask, the

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")


LEAKS: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    "off by one": (lambda: TinyGPT(mask="off by one"), "h.0.attn", 1),
    "one layer unmasked": (lambda: TinyGPT(at=1, mask="none"), "h.1.attn", 3),
    "mean over time": (lambda: TinyGPT(at=0, extra=MeanOverTime()), "h.0.extra", 3),
    "convolution": (lambda: TinyGPT(at=2, extra=Conv(1, 2)), "h.2.extra", 2),
    "zero for minus infinity": (lambda: TinyGPT(fill=0.0), "h.0.attn", 3),
    "scrambled heads": (lambda: TinyGPT(scrambled=True), "h.0.attn", 3),
    "upside down": (lambda: TinyGPT(mask="upside down"), "h.0.attn", 3),
    "transformers": (
        lambda: edited(
            gpt2(),
            "transformer.h.1.ln_2",
            lambda m, f: f() - 0.1 * f().roll(-1, dims=1),
        ),
        "transformer.h.1.ln_2",
        1,
    ),
}


@pytest.mark.parametrize(
    ("name", "causal"),
    [*((name, True) for name in LEAKS), *((name, None) for name in ("off by one", "transformers"))],
)
def test_a_leak_is_found_where_it_happens(name: str, causal: bool | None) -> None:
    build, module, reach = LEAKS[name]
    said = ask(built(build), "future-leak", "no-causal-mask", causal=causal)
    finding = the(said, "future-leak")
    assert finding.severity == "error"
    assert finding.module == module
    assert finding.evidence["module_reaches_ahead"] == reach


@pytest.mark.parametrize("name", [*LEAKS, "batch", "clean"])
def test_a_large_model_is_asked_less_and_answers_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays in float32, and several places are changed at once, each in another sample."""
    monkeypatch.setattr(influence, "SMALL", 0)
    rules = ("future-leak", "no-causal-mask")
    if name in LEAKS:
        build, module, _ = LEAKS[name]
        assert the(ask(built(build), *rules, causal=True), "future-leak").module == module
    else:  # samples that notice one another are no future
        extra = BatchCentre() if name == "batch" else None
        assert not ask(built(TinyGPT, at=1, extra=extra), *rules, causal=True)


def test_one_of_many_modules_that_is_not_like_the_others() -> None:
    """What treats each place by itself is asked once for all that are alike."""

    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reach, self.inner = 0, nn.Linear(W, W)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x).roll(-self.reach, 1)

    model = built(lambda: TinyGPT(extra=Mixes()))
    for block in model.get_submodule("h").children():
        block.extra = copy.deepcopy(block.extra)
    assert not ask(model, "future-leak", "no-causal-mask", causal=True)
    model.get_submodule("h.2.extra").reach = 1
    assert the(ask(model, "future-leak", causal=True), "future-leak").module == "h.2.extra"


@pytest.mark.parametrize(
    "build",
    [
        lambda: TinyGPT(mask="none"),
        lambda: Encoder(mask=False),
        lambda: edited(gpt2(), "transformer", lambda m, f: f(attention_mask=OPEN)),
        lambda: Transformer("mask"),
    ],
)
def test_no_mask_at_all(build: Callable[[], nn.Module]) -> None:
    said = ask(built(build), "future-leak", "no-causal-mask", causal=True)
    assert the(said, "no-causal-mask").severity == "error"


AHEAD: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x - x.mean(1, keepdim=True),
    "largest": lambda x: x + x.amax(1, keepdim=True),
    "norm over tokens": lambda x: F.layer_norm(x.mT, x.shape[1:2]).mT,
    "turned": lambda x: x + x.flip(1),
    "shifted": lambda x: x + x.roll(-1, 1),
    "convolved": lambda x: x + F.avg_pool1d(x.mT, 5, 1, 2).mT,
}


@pytest.mark.parametrize("host", [Inline, Told])
@pytest.mark.parametrize("name", AHEAD)
def test_what_is_no_attention_lacks_no_mask(name: str, host: Any) -> None:
    """However far it reaches: the masks are where they belong."""
    said = ask(built(host, edit=AHEAD[name]), "future-leak", "no-causal-mask", causal=True)
    assert len(said) == 1
    assert the(said, "future-leak").evidence["attentions_that_look_ahead"] == 0
    clean = built(host, edit=lambda x: x - x.mean(-1, keepdim=True))
    assert not ask(clean, "future-leak", "no-causal-mask", causal=True)


def test_an_attention_in_the_model_itself_lacks_its_mask() -> None:
    model = built(Inline, edit=lambda x: x, causal=False)
    said = ask(model, "future-leak", "no-causal-mask", causal=True)
    assert (len(said), the(said, "no-causal-mask").severity) == (1, "error")
    said = ask(built(Fourier), "future-leak", "no-causal-mask", causal=True)
    assert (len(said), the(said, "future-leak").severity) == (1, "error")


def test_who_claims_to_be_causal_is_taken_at_his_word() -> None:
    rules = ("future-leak", "no-causal-mask")
    model = built(TinyGPT, mask="none")
    assert the(ask(model, *rules), "no-causal-mask").module == "h.0.attn"  # called a GPT
    assert not ask(model, *rules, causal=False)
    nameless = built(lambda: type("Net", (TinyGPT,), {})(mask="none"))
    assert not ask(nameless, *rules)
    nameless.get_submodule("h.0.attn").is_causal = True
    assert "is_causal=True" in the(ask(nameless, *rules), "no-causal-mask").message


def test_a_mask_that_is_the_callers_is_a_note() -> None:
    layer = nn.TransformerEncoderLayer(W, HEADS, 32, batch_first=True)
    model = built(lambda: nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    finding = the(ask(model, "no-causal-mask", "future-leak", causal=True), "no-causal-mask")
    assert finding.severity == "note"
    assert "mask" in finding.message


CAUSAL: dict[str, Callable[[], nn.Module]] = {
    "tutorial": TinyGPT,
    "finite fill": lambda: TinyGPT(fill=-1e9),
    "convolution to the left": lambda: TinyGPT(at=1, extra=Conv(3, 0)),
    "torch": lambda: Encoder(mask=True),
    "torch translator": Transformer,
    "gpt2": gpt2,
    "llama": llama,
    "t5": t5,
}


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_models_are_clean(name: str) -> None:
    rules = ("future-leak", "no-causal-mask", "batch-leak", "batch-time-swapped", "ignores-memory")
    model = built(CAUSAL[name])
    assert not ask(model, *rules, "dropout-in-eval", causal=True)


@pytest.mark.parametrize("name", ["tutorial", "torch", "t5"])
def test_they_are_clean_where_nobody_said_so(name: str) -> None:
    assert not ask(built(CAUSAL[name]), "future-leak", "no-causal-mask")
