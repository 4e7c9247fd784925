"""The stream, its sublayers, norms and attentions are found however a program is written.

Four hosts: everything in one forward without a module; hidden states and residual handed on as a
pair, the addition deferred into the norm; a post-norm encoder with channels-first products and
torch's attention; a pre-norm block in the usual style. Each has its mistakes, and is clean without.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from addnorm import GPT, GPTConfig
from addnorm.linting.rules import (
    attention,
    embeddings,
    init,
    no_residual,
    norm_inline,
    norm_placement,
    optimizer_groups,
    parameters,
    residual,
    sublayers,
)
from addnorm.linting.run import _subject
from addnorm.linting.subject import Subject
from tests.linting.asking import checks_of

CHECKS = checks_of(
    no_residual,
    residual,
    norm_placement,
    sublayers,
    attention,
    init,
    norm_inline,
    parameters,
    embeddings,
    optimizer_groups,
)
DIM, HEADS, LAYERS, VOCAB = 24, 3, 3, 61


class Functional(nn.Module):
    """A GPT as one function: no blocks to go by, norms by hand, attention by einsum."""

    def __init__(self, wrong=""):
        super().__init__()
        self.wrong = wrong

        def matrices(rows, columns, scale=1.0):
            made = (torch.randn(rows, columns) * 0.02 * scale for _ in range(LAYERS))
            return nn.ParameterList(nn.Parameter(w) for w in made)

        self.tokens = nn.Parameter(torch.randn(VOCAB, DIM) * 0.02)
        self.places = nn.Parameter(torch.randn(32, DIM) * 0.02)
        small = 1 / math.sqrt(2 * LAYERS)
        self.qkv, self.out = matrices(DIM, 3 * DIM), matrices(DIM, DIM, small)
        self.up, self.down = matrices(DIM, 4 * DIM), matrices(4 * DIM, DIM, small)
        self.g1, self.g2 = (
            nn.ParameterList(nn.Parameter(torch.ones(DIM)) for _ in range(LAYERS)) for _ in "12"
        )
        self.final = nn.Parameter(torch.ones(DIM))

    def norm(self, x, gain):
        wrong = self.wrong
        if wrong == "tokens":
            mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        elif wrong == "batch":
            mean, var = x.mean((0, 1), keepdim=True), x.var((0, 1), keepdim=True, unbiased=False)
        else:
            mean = x.mean(-1, keepdim=True)
            var = x.var(-1, keepdim=True, unbiased=wrong == "unbiased")
        if wrong == "eps":
            return gain * (x - mean) / (var.sqrt() + 1e-6)
        if wrong == "variance":
            return gain * (x - mean) / (var + 1e-5)
        return gain * (x - mean) / torch.sqrt(var + 1e-5)

    def forward(self, ids):
        wrong, t = self.wrong, ids.shape[1]
        here = torch.arange(t)
        x = F.embedding(ids + here if wrong == "on ids" else ids, self.tokens) + self.places[:t]
        for i in range(LAYERS):
            u = self.norm(x, self.g1[i])
            q, k, v = (u @ self.qkv[i]).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            a = torch.einsum("bhtd,bhsd->bhts", q, k)
            scale = {"no scale": 1.0, "width": DIM, "twice": (DIM // HEADS) ** 2}
            a = a / math.sqrt(scale.get(wrong, DIM // HEADS))
            a = a.masked_fill(here[:, None] < here, -1e9)
            if wrong != "no softmax":
                a = a.softmax(-2 if wrong == "queries" else -1)
            if wrong == "outside":
                a = a / math.sqrt(DIM // HEADS)
            y = torch.einsum("bhts,bhsd->bthd", a, v).flatten(2) @ self.out[i]
            x = y if wrong == "no residual" else x + y
            if wrong == "normed":
                x = self.norm(x, self.g2[i])
                u = x
            else:
                u = self.norm(x, self.g1[i] if wrong == "shared" else self.g2[i])
            h = u @ self.up[i]
            y = (h if wrong == "linear" else F.gelu(h)) @ self.down[i]
            y = F.relu(y) if wrong == "one sign" else y
            x = y if wrong == "no residual of the MLP" else x + y
        if wrong != "no final norm":
            x = self.norm(x, self.final)
        return x @ self.tokens.T


class RMS(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(DIM))

    def forward(self, x, residual=None):
        x = x if residual is None else x + residual
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        return (y, x) if residual is not None else y


class PairBlock(nn.Module):
    def __init__(self, wrong):
        super().__init__()
        self.wrong, self.n1, self.n2 = wrong, RMS(), RMS()
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM, False), nn.Linear(DIM, DIM, False)
        self.gate_up, self.down = nn.Linear(DIM, 8 * DIM, False), nn.Linear(4 * DIM, DIM, False)

    def forward(self, h, residual):
        h, residual = (self.n1(h), h) if residual is None else self.n1(h, residual)
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(h).chunk(3, -1))
        scale = 1.0 if self.wrong == "no scale" else None
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        h = self.out(y.transpose(1, 2).flatten(2))
        h, residual = (self.n2(h), h) if self.wrong == "no residual" else self.n2(h, residual)
        gate, up = self.gate_up(h).chunk(2, -1)
        return self.down(F.silu(gate) * up), residual


class Pairs(nn.Module):
    """(hidden states, residual) from layer to layer, as serving engines do it."""

    def __init__(self, wrong=""):
        super().__init__()
        self.wrong = wrong
        self.tokens, self.places = nn.Embedding(VOCAB, DIM), nn.Embedding(32, DIM)
        self.blocks = nn.ModuleList(PairBlock(wrong) for _ in range(LAYERS))
        self.norm, self.head = RMS(), nn.Linear(DIM, VOCAB, bias=False)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * LAYERS) if last else 0.02)

    def forward(self, ids):
        h, residual = self.tokens(ids) + self.places.weight[: ids.shape[1]], None
        for block in self.blocks:
            h, residual = block(h, residual)
        return self.head(
            h + residual if self.wrong == "no final norm" else self.norm(h, residual)[0]
        )


class ChannelsBlock(nn.Module):
    def __init__(self, wrong):
        super().__init__()
        self.wrong = wrong
        self.attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        self.n1, self.n2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.up, self.down = nn.Conv1d(DIM, 4 * DIM, 1), nn.Conv1d(4 * DIM, DIM, 1)

    def forward(self, x):
        wrong = self.wrong
        y = self.attention(x, x, x, need_weights=False)[0]
        x = self.n1(y if wrong == "no residual" else x + y)
        h = self.up(x.transpose(1, 2))
        y = self.down(h if wrong == "linear" else F.relu(h)).transpose(1, 2)
        if wrong in ("one sign", "dead"):
            y = F.relu(y) if wrong == "one sign" else y * 0
        if wrong == "alpha on the branch":
            return self.n2(x + 2.2 * y)
        z = (self.n1 if wrong == "shared" else self.n2)(x + y)
        return F.layer_norm(z, (DIM,)) if wrong == "two norms" else z


class Channels(nn.Module):
    """A post-norm encoder with torch's attention and an MLP of convolutions of one place."""

    def __init__(self, wrong=""):
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, DIM)
        self.places = nn.Parameter(torch.randn(1, 32, DIM) * 0.02)
        self.blocks = nn.Sequential(*(ChannelsBlock(wrong) for _ in range(LAYERS)))
        self.head = nn.Linear(DIM, 5)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places[:, : tokens.shape[1]]
        return self.head(self.blocks(x).mean(1))


class Block(nn.Module):
    def __init__(self, wrong):
        super().__init__()
        self.wrong = wrong
        self.n1, self.n2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.q, self.k, self.v, self.out = (nn.Linear(DIM, DIM) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

    def attend(self, u, raw):
        split = {"q": self.q(u), "k": self.k(raw), "v": self.v(raw)}
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in split.values())
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))

    def forward(self, x):
        wrong, u = self.wrong, self.n1(x)
        y = self.attend(u, x if wrong == "queries only" else u)
        if wrong == "norm of x":
            x = u + y
        elif wrong == "twice":
            x = x + (x + y)
        elif wrong == "lost":
            return x + self.mlp(self.n2(x + y))
        else:
            x = x + y
        if wrong == "not read":
            self.mlp(self.n2(x))
            return x
        return x + self.mlp(self.n2(x))


class Usual(nn.Module):
    """Pre-norm blocks; ids, learned places, a final norm, an untied head."""

    def __init__(self, wrong=""):
        super().__init__()
        self.wrong = wrong
        self.tokens, self.places = nn.Embedding(VOCAB, DIM), nn.Embedding(32, DIM)
        self.blocks = nn.ModuleList(Block(wrong) for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, VOCAB, bias=False)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                last = name.endswith(("out.weight", "mlp.2.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * LAYERS) if last else 0.02)
        if wrong == "some writers":
            for block in self.blocks:
                nn.init.normal_(block.get_parameter("out.weight"), std=0.02)
        if wrong == "loud":
            for block in self.blocks:
                for name in ("q.weight", "k.weight"):
                    nn.init.normal_(block.get_parameter(name), std=3.0)

    def forward(self, ids):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


FAULTS = [
    (Functional, "tokens", "norm-wrong-axis"),
    (Functional, "batch", "norm-batch-dependent"),
    (Functional, "unbiased", "norm-unbiased-variance"),
    (Functional, "eps", "norm-eps-outside-sqrt"),
    (Functional, "variance", "norm-not-normalizing"),
    (Functional, "on ids", "positions-on-ids"),
    (Functional, "no scale", "attention-scale"),
    (Functional, "width", "attention-scale"),
    (Functional, "twice", "attention-scale"),
    (Functional, "outside", "attention-scale"),
    (Functional, "no softmax", "attention-not-normalized"),
    (Functional, "queries", "attention-not-normalized"),
    (Functional, "no residual", "no-residual"),
    (Functional, "no residual of the MLP", "no-residual"),
    (Functional, "normed", "residual-wrong-tensor"),
    (Functional, "shared", "shared-norm"),
    (Functional, "linear", "linear-mlp"),
    (Functional, "one sign", "one-signed-branch"),
    (Functional, "no final norm", "missing-final-norm"),
    (Pairs, "no scale", "attention-scale"),
    (Pairs, "no residual", "no-residual"),
    (Pairs, "no final norm", "missing-final-norm"),
    (Pairs, "no final norm", "unused-norm"),
    (Channels, "no residual", "no-residual"),
    (Channels, "linear", "linear-mlp"),
    (Channels, "one sign", "one-signed-branch"),
    (Channels, "dead", "dead-branch"),
    (Channels, "shared", "shared-norm"),
    (Channels, "two norms", "double-norm"),
    (Channels, "alpha on the branch", "residual-wrong-tensor"),
    (Usual, "queries only", "residual-wrong-tensor"),
    (Usual, "norm of x", "residual-wrong-tensor"),
    (Usual, "twice", "residual-wrong-tensor"),
    (Usual, "lost", "residual-wrong-tensor"),
    (Usual, "not read", "dead-branch"),
    (Usual, "some writers", "init-residual-scale"),
    (Usual, "loud", "init-unstable"),
]


def looked_at(model) -> Subject:
    ids = torch.randint(VOCAB - 8, (2, 7), generator=torch.Generator().manual_seed(1))
    subject = _subject(model, ids, True, None)
    assert isinstance(subject, Subject), subject
    return subject


def said(model) -> list:
    subject = looked_at(model)
    return [one for check in CHECKS for one in check.run(subject)]


@pytest.mark.parametrize("host", [Functional, Pairs, Channels, Usual])
def test_a_correct_program_is_clean_and_wholly_understood(host):
    torch.manual_seed(0)
    model = host()
    assert said(model) == []
    structure = looked_at(model).structure
    assert len(structure.residuals) == 2 * LAYERS
    assert len(structure.attentions) == LAYERS


@pytest.mark.parametrize(("host", "wrong", "rule"), FAULTS)
def test_a_mistake_is_named(host, wrong, rule):
    torch.manual_seed(0)
    found = said(host(wrong))
    assert rule in {f.rule for f in found if hasattr(f, "severity")}, found


def test_post_norm_streams_are_normed_between_sublayers():
    torch.manual_seed(0)
    s = looked_at(Channels()).structure
    for one in s.residuals[1:]:
        before = s.previous(one)
        assert before is not None
        assert len(s.norms_between(before.output, one.fork)) == 1
        assert s.own_norms(one) == []


def test_deep_post_norm_with_torchs_initialization_is_not_called_unstable_for_its_scale():
    """The first norm sets the stream's scale: the gradient there is compared relative to it."""
    torch.manual_seed(0)
    model = Channels()
    with torch.no_grad():
        model.tokens.weight.mul_(0.02)
    assert not [f for f in said(model) if getattr(f, "rule", "") == "init-unstable"]


@pytest.mark.parametrize("scheme", ["hyper_connections", "residual_dual"])
def test_streams_of_other_designs_are_no_mistake(scheme):
    """Hyper-connections compute from the stream how its parts are mixed, which is no sublayer;
    ResiDual has two streams, one normed."""
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=VOCAB,
        context_length=32,
        dim=DIM,
        n_layers=2,
        n_heads=HEADS,
        scheme=scheme,
    )
    found = {getattr(f, "rule", "") for f in said(GPT(config)) if hasattr(f, "severity")}
    assert not found & {"no-residual", "residual-wrong-tensor", "dead-branch"}


def test_layers_that_are_equal_because_they_are_zero_are_no_copies():
    class Zeros(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            for p in self.parameters():
                nn.init.zeros_(p)

        def forward(self, x):
            for layer in self.layers:
                x = x + layer(x)
            return x

    subject = _subject(Zeros(), torch.randn(2, 3, 4), None, None)
    assert isinstance(subject, Subject)
    assert list(parameters.copies.run(subject)) == []
    assert [f.rule for f in parameters.copies.run(looked_at(copied()))] == ["identical-layers"]


def copied():
    model = Usual()
    for block in model.blocks[1:]:
        block.load_state_dict(model.blocks[0].state_dict())
    return model


# --- what looks like a mistake and is none: each was a false alarm once ---------------------------


def rules_of(model, *inputs, causal=None):
    subject = _subject(model, inputs, causal, None)
    assert isinstance(subject, Subject), subject
    found = [one for check in CHECKS for one in check.run(subject)]
    return {f.rule for f in found if getattr(f, "severity", "note") != "note"}


@pytest.mark.parametrize("layers", [2, 3])
def test_torchs_own_initialization_is_no_scaling_by_depth(layers):
    """1/sqrt(inputs): of two layers an MLP's last matrix has by chance the std of GPT-2's rule."""
    torch.manual_seed(0)
    model = Usual()
    model.blocks = model.blocks[:layers]
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    assert "init-residual-scale" not in {getattr(f, "rule", "") for f in said(model)}


def test_masks_that_are_added_to_scores_are_no_stream():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 48, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 2, nn.LayerNorm(DIM), enable_nested_tensor=False)
    hidden = torch.zeros(2, 5, dtype=torch.bool)
    hidden[1, 3:] = True
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    subject = _subject(
        model,
        {"src": torch.randn(2, 5, DIM), "mask": causal, "src_key_padding_mask": hidden},
        None,
        None,
    )
    assert isinstance(subject, Subject)
    assert len(subject.structure.residuals) == 4
    found = [one for check in CHECKS for one in check.run(subject)]
    assert {f.rule for f in found if hasattr(f, "severity")} <= {"identical-layers"}


def test_scores_of_the_layer_before_are_no_stream():
    """Residual attention (RealFormer): the logits are added up from layer to layer."""

    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Block("") for _ in range(LAYERS))
            self.norm = nn.LayerNorm(DIM)

        def forward(self, x):
            total = 0
            for block in self.blocks:
                u = block.n1(x)
                parts = (block.q(u), block.k(u), block.v(u))
                q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in parts)
                total = total + q @ k.transpose(-2, -1) / math.sqrt(DIM // HEADS)
                y = (total.softmax(-1) @ v).transpose(1, 2).flatten(2)
                x = x + block.out(y)
                x = x + block.mlp(block.n2(x))
            return self.norm(x)

    torch.manual_seed(0)
    assert not rules_of(Scores(), torch.randn(2, 7, DIM))


def test_a_scale_inside_the_product_counts():
    class Inside(Block):
        def attend(self, u, raw):
            q, k, v = (f(u).unflatten(-1, (HEADS, -1)) for f in (self.q, self.k, self.v))
            q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (q, k, v))
            mask = torch.zeros(1, u.shape[1], u.shape[1])
            a = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=1 / math.sqrt(DIM // HEADS))
            y = (a.softmax(-1) @ v).unflatten(0, (-1, HEADS)).transpose(1, 2).flatten(2)
            return self.out(y)

    torch.manual_seed(0)
    model = nn.Sequential(Inside(""), Inside(""), nn.LayerNorm(DIM))
    assert not rules_of(model, torch.randn(2, 7, DIM))


def test_positions_between_two_norms_are_something():
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Sequential(nn.Linear(9, DIM), nn.LayerNorm(DIM))
            self.places = nn.Parameter(torch.randn(7, DIM))
            self.blocks = nn.Sequential(Block(""), Block(""))
            self.before, self.norm = nn.LayerNorm(DIM), nn.LayerNorm(DIM)

        def forward(self, x):
            return self.norm(self.blocks(self.before(self.patch(x) + self.places)))

    torch.manual_seed(0)
    assert "double-norm" not in rules_of(Patches(), torch.randn(2, 7, 9))


def test_merging_of_patches_cannot_have_a_residual():
    class Merging(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Block(""), nn.Linear(2 * DIM, DIM), Block("")])
            self.norm = nn.LayerNorm(DIM)

        def forward(self, x):
            x = self.layers[0](x)
            x = self.layers[1](x.unflatten(1, (-1, 2)).flatten(2))
            return self.norm(self.layers[2](x))

    torch.manual_seed(0)
    assert "no-residual" not in rules_of(Merging(), torch.randn(2, 8, DIM))


def test_a_recurrent_state_is_no_stream():
    class State(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.mix = nn.LayerNorm(DIM), nn.Linear(DIM, DIM)

        def forward(self, x):
            state = torch.zeros_like(x[:, 0])
            out = []
            for t in range(x.shape[1]):
                state = 0.5 * state + self.mix(self.norm(x[:, t]) + state)
                out.append(state)
            return torch.stack(out, 1)

    torch.manual_seed(0)
    assert not rules_of(State(), torch.randn(2, 5, DIM))


def test_a_series_may_be_normalized_over_its_own_time():
    """Reversible instance normalization: what the caller gave, before the model reads it."""

    class Series(nn.Module):
        def __init__(self, late):
            super().__init__()
            self.late, self.up = late, nn.Linear(6, DIM)
            self.blocks = nn.Sequential(Block(""), Block(""), nn.LayerNorm(DIM))

        def normed(self, x):
            return (x - x.mean(1, keepdim=True)) / (
                x.var(1, keepdim=True, correction=0) + 1e-5
            ) ** 0.5

        def forward(self, x):
            h = self.normed(self.up(x)) if self.late else self.up(self.normed(x))
            return self.blocks(h)

    torch.manual_seed(0)
    assert "norm-wrong-axis" not in rules_of(Series(late=False), torch.randn(2, 9, 6))
    assert "norm-wrong-axis" in rules_of(Series(late=True), torch.randn(2, 9, 6))
