"""Perturb one token, one sample, one pad, the encoder's input, and see who notices.

Every rule is shown faulty models in three styles (written out, torch.nn, transformers with one line
changed), which it must find and name, and their correct twins, of which it must say nothing.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import addnorm
from addnorm.anatomy import influence
from addnorm.anatomy.inputs import inputs_from
from addnorm.anatomy.make_inputs import make_inputs
from addnorm.anatomy.specimen import Specimen
from addnorm.linting.report import Finding, Unknown
from addnorm.linting.rules import arguments, future, masks, modes, positions, samples
from addnorm.linting.subject import Subject
from tests.attention_hosts import (
    HEADS,
    LONGEST,
    OPEN,
    SMALL,
    VOCAB,
    BatchCentre,
    Block,
    Captioner,
    Conv,
    Encoder,
    Fourier,
    Inline,
    Listener,
    MeanOverTime,
    Patches,
    Pictures,
    TinyGPT,
    Told,
    Transformer,
    W,
    bert,
    built,
    edited,
    gpt2,
    llama,
    t5,
)

CHECKS = (
    *future.CHECKS,
    *samples.CHECKS,
    *masks.CHECKS,
    *arguments.CHECKS,
    *positions.CHECKS,
    *modes.CHECKS,
)

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")


def ask(
    model: nn.Module, *rules: str, inputs: Any = None, causal: bool | None = None
) -> list[Finding | Unknown]:
    """What is said of these rules, the subject made as lint makes it."""
    probe = copy.deepcopy(model).eval()
    with torch.no_grad():
        for p in probe.parameters():
            if p.is_floating_point() and bool((p == p.flatten()[0]).all()):
                p.add_(0.1 * torch.randn_like(p))
    call = make_inputs(copy.deepcopy(probe)) if inputs is None else inputs_from(inputs)
    subject = Subject(model, Specimen(probe, call), causal)
    said = [one for check in CHECKS if {*check.rules} & {*rules} for one in check.run(subject)]
    return [one for one in said if one.rule in rules]


def the(said: list[Finding | Unknown], rule: str) -> Finding:
    found = [one for one in said if one.rule == rule]
    assert len(found) == 1, said
    assert isinstance(found[0], Finding), found
    assert all(not isinstance(v, float) or math.isfinite(v) for v in found[0].evidence.values())
    return found[0]


# --- the future -----------------------------------------------------------------------------------


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


# --- samples --------------------------------------------------------------------------------------


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


# --- padding --------------------------------------------------------------------------------------


def _no_mask(module: Any, forward: Callable[..., Any]) -> Any:
    return forward(attention_mask=None)


@pytest.mark.parametrize(
    ("build", "works"),
    [
        (lambda: Encoder(pass_padding=False), False),
        (lambda: Encoder(pool="mean"), True),
        (lambda: edited(bert(), "bert.encoder.layer.0.attention.self", _no_mask), True),
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
    rules = [rule for check in CHECKS for rule in check.rules]
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


class Padded(nn.Module):
    """Two own layers that take what is to be kept."""

    def __init__(self, fill: float, mask: str = "none", ignore: bool = False) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, W), nn.Embedding(LONGEST, W)
        self.h = nn.ModuleList(Block(mask=mask, fill=fill) for _ in range(2))
        self.ignore = ignore

    def forward(self, idx: Tensor, valid: Tensor, scale: bool = False) -> Tensor:
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))
        if scale and not self.ignore:
            x = 2 * x
        for block in self.h:
            x = block(x, None if self.ignore else valid.bool())
        return x


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


# --- arguments ------------------------------------------------------------------------------------


def _no_types(module: Any, forward: Callable[..., Any]) -> Any:
    return forward(token_type_ids=None)


@pytest.mark.parametrize(
    ("build", "arguments"),
    [
        (lambda: Padded(-1e9, ignore=True), {"valid", "scale"}),
        (lambda: Encoder(pass_padding=False), {"padding_mask"}),
        (lambda: edited(bert(), "bert.embeddings", _no_types), {"token_type_ids"}),
        (lambda: edited(gpt2(), "transformer", _no_mask), {"attention_mask"}),
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


# --- positions ------------------------------------------------------------------------------------


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


# --- randomness -----------------------------------------------------------------------------------


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


# --- the probe ------------------------------------------------------------------------------------


@pytest.fixture(params=[TinyGPT, lambda: Encoder(pool="mean"), bert])
def subject(request: pytest.FixtureRequest) -> Subject:
    model = built(request.param)
    probe = copy.deepcopy(model).eval()
    return Subject(model, Specimen(probe, make_inputs(probe)))


def test_nothing_is_left_behind(subject: Subject) -> None:
    def state(model: nn.Module) -> list[Any]:
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        flags = [(p.requires_grad, p.grad) for p in model.parameters()]
        return [hooks, [m.training for m in model.modules()], flags]

    models = (subject.original, subject.model)
    before = [copy.deepcopy(m.state_dict()) for m in models]
    states, rng = [state(m) for m in models], torch.get_rng_state()
    for check in CHECKS:
        list(check.run(subject))
    assert torch.equal(rng, torch.get_rng_state())
    assert [state(m) for m in models] == states
    for model, old in zip(models, before, strict=True):
        for name, value in model.state_dict().items():
            assert torch.equal(value, old[name]), name


def test_inputs_of_the_user_are_taken_as_they_are() -> None:
    model = built(TinyGPT, mask="off by one")
    for given in (torch.randint(0, VOCAB, (5, 5)), {"idx": torch.randint(0, VOCAB, (2, 16))}):
        assert the(ask(model, "future-leak", inputs=given), "future-leak").module
    one = ask(model, "batch-leak", inputs=torch.randint(0, VOCAB, (1, 8)))
    assert [type(u) for u in one] == [Unknown]


def test_no_sequence_is_an_unknown() -> None:
    said = ask(nn.Linear(4, 3), "future-leak", "batch-leak", inputs=torch.tensor(1.0).expand(4))
    assert said
    assert all(isinstance(one, Unknown) for one in said)


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
