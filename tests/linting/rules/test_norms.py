"""Norms are found in any model and judged by the formula that they follow.

Each mistake as a one-line norm in a small model, whatever its weights hold, and the norms of other
libraries, which are right and of which nothing may be said above a note.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm import norms
from addnorm.anatomy.inputs import Inputs
from addnorm.anatomy.norms.find import find_norms
from addnorm.linting.findings import Finding, Unknown
from addnorm.linting.rules import norm_axes, norm_formula, norm_gradient, norm_precision
from addnorm.linting.subject import Subject
from tests.linting.asking import checks_of
from tests.norm_hosts import (
    IDS,
    VOCAB,
    WIDTH,
    Bare,
    ChannelsFirst,
    FlaggedNorm,
    Host,
    LayerNorm,
    mean,
    specimen_of,
    standard,
    var,
)

CHECKS = checks_of(norm_formula, norm_axes, norm_gradient, norm_precision)


def subject_of(model: nn.Module, inputs: Inputs | Tensor) -> Subject:
    return Subject(model, specimen_of(model, inputs))


def lint(model: nn.Module, inputs: Inputs | Tensor = IDS) -> list[Finding | Unknown]:
    subject = subject_of(model, inputs)
    before = {k: v.clone() for k, v in subject.model.state_dict().items()}
    state = torch.random.get_rng_state()
    said = [one for check in CHECKS for one in check.run(subject)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert not subject.model.training
    after = subject.model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert not any(m._forward_hooks for m in subject.model.modules())
    known = {rule for check in CHECKS for rule in check.names}
    for one in said:
        assert one.rule in known
        if isinstance(one, Finding):
            numbers = [v for v in one.evidence.values() if isinstance(v, float)]
            assert all(math.isfinite(v) for v in numbers)
    return said


def loud(said: list[Finding | Unknown]) -> set[tuple[str, str]]:
    """What is more than a note."""
    return {
        (one.rule, one.severity if isinstance(one, Finding) else "unknown")
        for one in said
        if isinstance(one, Unknown) or one.severity != "note"
    }


WRONG: dict[str, tuple[str, str, Callable[[Tensor], Tensor]]] = {
    "unbiased": (
        "norm-unbiased-variance",
        "warning",
        lambda x: (x - mean(x)) / (var(x, -1, 1) + 1e-5).sqrt(),
    ),
    "outside": (
        "norm-eps-outside-sqrt",
        "warning",
        lambda x: (x - mean(x)) / (var(x).sqrt() + 1e-6),
    ),
    "rms outside": (
        "norm-eps-outside-sqrt",
        "warning",
        lambda x: x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-8),
    ),
    "no root": (
        "norm-not-normalizing",
        "error",
        lambda x: (x - mean(x)) / (var(x) + 1e-5),
    ),
    "times": ("norm-not-normalizing", "error", lambda x: (x - mean(x)) * var(x).sqrt()),
    "centre only": ("norm-not-normalizing", "error", lambda x: x - mean(x)),
    "nothing": ("norm-not-normalizing", "error", lambda x: 1.0 * x),
    "mean kept": ("norm-not-normalizing", "error", lambda x: x / (var(x) + 1e-5).sqrt()),
    "by the total": (
        "norm-not-normalizing",
        "error",
        lambda x: x / (x.sum(-1, keepdim=True) + 1e-5),
    ),
    "sum": (
        "norm-not-normalizing",
        "warning",
        lambda x: (x - mean(x)) / ((x - mean(x)).square().sum(-1, keepdim=True) + 1e-5).sqrt(),
    ),
    "no eps": (
        "norm-not-normalizing",
        "warning",
        lambda x: (x - mean(x)) / var(x).sqrt(),
    ),
    "over time": ("norm-wrong-axis", "error", lambda x: standard(x, 1)),
    "over time too": ("norm-wrong-axis", "error", lambda x: standard(x, (1, 2))),
    "over the batch": ("norm-batch-dependent", "error", lambda x: standard(x, 0)),
    "over everything": ("norm-batch-dependent", "error", lambda x: standard(x, (0, 1, 2))),
    "detached": (
        "norm-bad-gradient",
        "error",
        lambda x: (x - mean(x).detach()) / (var(x).detach() + 1e-5).sqrt(),
    ),
    "variance detached": (
        "norm-bad-gradient",
        "error",
        lambda x: (x - mean(x)) / (var(x).detach() + 1e-5).sqrt(),
    ),
    "all detached": ("norm-bad-gradient", "error", lambda x: standard(x).detach()),
    "difference of squares": (
        "norm-low-precision",
        "warning",
        lambda x: (x - mean(x)) / (mean(x * x) - mean(x) ** 2 + 1e-5).sqrt(),
    ),
    "always in 16 bits": (
        "norm-low-precision",
        "warning",
        lambda x: standard(x.bfloat16()).to(x.dtype),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_norm_is_named(name: str) -> None:
    rule, severity, body = WRONG[name]
    said = lint(Host(LayerNorm(body)))
    assert (rule, severity) in loud(said), said
    expected = {rule}
    if name in ("over the batch", "over everything"):
        expected |= {"norm-wrong-axis"}
    assert {r for r, _ in loud(said)} == expected
    (found,) = [one for one in said if one.rule == rule and one.severity == severity]
    assert found.module == "before"
    assert found.evidence["modules"] == 2
    assert found.evidence["also"] == ["final"]


@pytest.mark.parametrize(
    ("formula", "severity"),
    [
        (lambda x: (x - mean(x)) / x.abs().sum(-1, keepdim=True), "note"),
        (lambda x: x / (x[..., :1] - x[..., 1:2]), "warning"),
        (lambda x: (x - x.amin(-1, True)) / (x.amax(-1, True) - x.amin(-1, True)), "note"),
    ],
)
def test_a_norm_of_no_known_formula_is_said_to_be_none(formula: Any, severity: str) -> None:
    class Norm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return formula(x)

    model = nn.Sequential(nn.Linear(24, 24), Norm(), nn.Linear(24, 24))
    found = [f for f in lint(model, torch.randn(3, 7, 24)) if isinstance(f, Finding)]
    assert [(f.rule, f.severity) for f in found] == [("norm-not-normalizing", severity)]
    assert float(found[0].evidence["distance"]) > 1e-3


def test_a_norm_that_would_follow_a_lower_type_is_told_where_there_is_one() -> None:
    """In a float32 model the statistics are in float32, whatever they would be elsewhere."""
    model = Host(LayerNorm(standard))
    assert not lint(model)
    subject = subject_of(model, IDS)
    low = Subject(copy.deepcopy(model).bfloat16(), subject.specimen)
    held = Subject(copy.deepcopy(model), subject.specimen)
    held.original.register_buffer("cache", torch.zeros(3, dtype=torch.float16))
    for one in (low, held):
        (found,) = [said for check in CHECKS for said in check.run(one)]
        assert isinstance(found, Finding)
        assert (found.rule, found.severity) == ("norm-low-precision", "warning")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loud(lint(model)) == {("norm-low-precision", "warning")}
    right = Host(LayerNorm(lambda x: standard(x.float()).to(x.dtype)))
    low = Subject(copy.deepcopy(right).bfloat16(), subject_of(right, IDS).specimen)
    assert not [said for check in CHECKS for said in check.run(low)]


@pytest.mark.parametrize("how", ["setting", "buffer", "function", "body"])
def test_one_of_many_that_is_not_like_the_others(how: str) -> None:
    """Modules that are alike are measured once; this one only looks alike."""
    model = Host(FlaggedNorm())
    assert not loud(lint(model))
    odd = model.final
    assert isinstance(odd, FlaggedNorm)
    match how:
        case "setting":
            odd.wrong = True
        case "buffer":
            odd.shift.fill_(1.0)
        case "function":
            odd.forward = lambda x: x * odd.gamma
        case _:
            odd.body = lambda x: x
    said = lint(model)
    assert {one.rule for one in said} == {"norm-not-normalizing"}
    assert {one.module for one in said} == {"final"}


def test_both_mistakes_of_the_annotated_transformer() -> None:
    said = lint(Host(LayerNorm(lambda x: (x - mean(x)) / (x.std(-1, keepdim=True) + 1e-6))))
    assert {r for r, _ in loud(said)} == {"norm-unbiased-variance", "norm-eps-outside-sqrt"}
    found = next(one for one in said if one.rule == "norm-eps-outside-sqrt")
    assert found.evidence["eps"] == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize("axis", [0, 1, (0, 1), (1, 2)])
def test_axes_are_known_without_parameters(axis: Any) -> None:
    rules = {r for r, _ in loud(lint(Host(Bare(lambda x: standard(x, axis)))))}
    assert "norm-wrong-axis" in rules
    assert ("norm-batch-dependent" in rules) is (axis in (0, (0, 1)))


def test_channels_first() -> None:
    good, bad = Bare(lambda x: standard(x, 1)), Bare(lambda x: standard(x, -1))
    assert not loud(lint(ChannelsFirst(good)))
    (norm, _) = find_norms(subject_of(ChannelsFirst(good), IDS).specimen)
    assert (norm.kind, norm.dim, norm.axis) == ("layer", WIDTH, -2)
    assert loud(lint(ChannelsFirst(bad))) == {("norm-wrong-axis", "error")}


def test_batch_norm_and_group_norm_in_the_stream() -> None:
    batch, group = nn.BatchNorm1d(WIDTH), nn.GroupNorm(1, WIDTH)
    said = lint(ChannelsFirst(batch))
    assert loud(said) == {("norm-batch-dependent", "warning")}
    assert said[0].evidence["only_in_training"]
    assert loud(lint(ChannelsFirst(group))) == {("norm-wrong-axis", "warning")}


class OnlyWhileTraining(LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        axis = (0, 1) if self.training else -1
        return self.gamma * standard(x, axis) + self.beta


def test_what_differs_in_training_only() -> None:
    said = lint(Host(OnlyWhileTraining(standard)))
    assert ("norm-batch-dependent", "error") in loud(said)
    assert next(s for s in said if s.rule == "norm-batch-dependent").evidence["only_in_training"]


class Residual(nn.Module):
    """Two inputs: what is normalized is their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a * (x + y - mean(x + y)) / ((x + y).std(-1, keepdim=True) + 1e-6) + self.b


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.add_norm = Residual()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.add_norm(x, self.mix(x))


def test_a_norm_of_a_sum() -> None:
    assert {r for r, _ in loud(lint(Pair()))} == {"norm-unbiased-variance", "norm-eps-outside-sqrt"}


class Global(nn.Module):
    """Global response normalization: it grows with its input and is meant to."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        length = x.norm(dim=1, keepdim=True)
        share = length / (length.mean(-1, keepdim=True) + 1e-6)
        return self.weight * (x * share) + self.bias + x


class Exponential(nn.Module):
    """A gain that is not a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.log_gain = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,)) * self.log_gain.exp()


class GlobalResponseNorm(Global):
    pass


class DynamicTanhNorm(nn.Module):
    """A stranger's, by its name a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), 0.5))
        self.weight, self.bias = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * torch.tanh(self.alpha * x) + self.bias


KNOWN: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "LayerNorm": ("layer", lambda: nn.LayerNorm(WIDTH)),
    "no affine": ("layer", lambda: nn.LayerNorm(WIDTH, elementwise_affine=False)),
    "RMSNorm": ("rms", lambda: nn.RMSNorm(WIDTH)),
    "ours": ("layer", lambda: norms.LayerNorm(WIDTH)),
    "1 + w": ("rms", lambda: norms.RMSNorm(WIDTH, weight_offset=1.0)),
    "ScaleNorm": ("rms", lambda: norms.ScaleNorm(WIDTH)),
    "L2": ("rms", lambda: norms.L2Norm(WIDTH)),
    "normalize": ("rms", lambda: Bare(lambda x: F.normalize(x, dim=-1))),
    "DyT": ("other", DynamicTanhNorm),
    "global response": ("other", GlobalResponseNorm),
    "exp(gain)": ("layer", Exponential),
    "by hand": ("layer", lambda: LayerNorm(standard)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_norms_are_right(name: str) -> None:
    kind, make = KNOWN[name]
    model = Host(make())
    assert not loud(lint(model))
    found = find_norms(subject_of(model, IDS).specimen)
    assert [(n.path, n.kind) for n in found] == [("before", kind), ("final", kind)]
    assert all((n.dim, n.axis) == (WIDTH, -1) for n in found)
    assert found[0].module is not model.before  # the copy's


def test_what_cannot_be_called_is_unknown() -> None:
    class StubbornNorm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if not bool((x[0, 0] == self.seen).all()):
                raise RuntimeError("not this input")
            return x

    norm = StubbornNorm()
    host = Host(nn.Identity())
    host.before = norm
    norm.seen = host.embed(IDS).detach()[0, 0]
    (one,) = lint(host)
    assert isinstance(one, Unknown)
    assert (one.rule, one.module) == ("norm-not-normalizing", "before")
    assert "not this input" in one.why


def tiny(family: str, **more: Any) -> tuple[nn.Module, Inputs]:
    """A tiny random model of transformers."""
    transformers = pytest.importorskip("transformers")
    size = {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    options = more if family == "ConvNextV2" else {**size, **more}
    config = getattr(transformers, f"{family}Config")(**options)
    model = getattr(transformers, f"{family}Model")(config)
    ids = torch.arange(18).view(2, 9) + 5
    calls = {
        "T5": {"input_ids": ids, "decoder_input_ids": ids[:, :6]},
        "Wav2Vec2": {"input_values": torch.randn(2, 800)},
        "ConvNextV2": {"pixel_values": torch.randn(2, 3, 32, 32)},
    }
    return model, Inputs((), calls.get(family, {"input_ids": ids}))


@pytest.mark.parametrize(
    ("family", "kinds", "more"),
    [
        ("Bert", {"layer": 3}, {}),
        ("Qwen3", {"rms": 5}, {"num_key_value_heads": 1, "head_dim": 8}),
        ("Gemma2", {"rms": 5}, {"num_key_value_heads": 1, "head_dim": 8}),
        ("T5", {"rms": 7}, {"d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}),
        (
            "Wav2Vec2",
            {"layer": 4, "other": 1},
            {
                "conv_dim": (16, 16),
                "conv_stride": (5, 2),
                "conv_kernel": (10, 3),
                "num_conv_pos_embeddings": 8,
                "num_conv_pos_embedding_groups": 2,
            },
        ),
        ("ConvNextV2", {"layer": 9}, {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
    ],
)
def test_norms_of_transformers(family: str, kinds: dict[str, int], more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, inputs = tiny(family, **more)
    assert not loud(lint(model, inputs))
    found = [n.kind for n in find_norms(subject_of(model, inputs).specimen)]
    assert {k: found.count(k) for k in kinds} == kinds
    assert len(found) == sum(kinds.values())


def test_norms_of_x_transformers() -> None:
    x = pytest.importorskip("x_transformers")
    layers = x.Decoder(dim=24, depth=1, heads=2, attn_dim_head=8, use_rmsnorm=True)
    model = x.TransformerWrapper(num_tokens=32, max_seq_len=16, attn_layers=layers)
    assert not loud(lint(model))
    assert [n.kind for n in find_norms(subject_of(model, IDS).specimen)] == ["rms"] * 3
