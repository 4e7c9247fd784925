"""lint as a whole: what it leaves behind, how it reports, and what it does not claim to know."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn

import addnorm
from addnorm.linting.findings import Finding, Unknown
from addnorm.linting.report import gathered


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / (d // self.heads) ** 0.5
        hidden = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        y = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, t, d))


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim), nn.Dropout(0.1)
        )

    def forward(self, x):
        x = x + self.attention(self.n1(x))
        return x + self.mlp(self.n2(x))


class LM(nn.Module):
    def __init__(self, block=Block):
        super().__init__()
        self.tokens, self.places = nn.Embedding(61, 24), nn.Embedding(32, 24)
        self.blocks = nn.ModuleList(block(24, 3) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 61, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
        for b in self.blocks:
            for name, w in b.named_parameters():
                if name in ("attention.out.weight", "mlp.2.weight"):
                    nn.init.normal_(w, std=0.02 / 6**0.5)

    def forward(self, ids):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class NoResidual(Block):
    def forward(self, x):
        x = self.attention(self.n1(x))
        return x + self.mlp(self.n2(x))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LM()


def test_a_correct_model_has_no_finding(model):
    report = addnorm.lint(model, causal=True)
    assert report.ok
    assert report.findings == ()
    assert report.unknown == ()
    assert report.facts["residual_connections"] == 6
    assert report.facts["attentions"] == 3
    assert report.facts["norms"] == 7


def numpy_state():
    return pickle.dumps(np.random.get_state())


def test_the_model_and_the_world_are_as_before(model):
    """Weights, gradients, mode, hooks, RNG of torch, NumPy and Python, and torch's settings."""
    calls = []
    model.blocks[1].register_forward_hook(lambda *_: calls.append(1))
    model.blocks[0].eval()
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    calls.clear()
    before = copy.deepcopy(model.state_dict())
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    hooks = {n: list(m._forward_hooks) for n, m in model.named_modules()}
    modes = {n: m.training for n, m in model.named_modules()}
    rng = torch.get_rng_state(), random.getstate(), numpy_state()
    addnorm.lint(model, causal=True, optimizer=torch.optim.AdamW(model.parameters()))
    assert torch.equal(rng[0], torch.get_rng_state())
    assert rng[1] == random.getstate()
    assert rng[2] == numpy_state()
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(torch.equal(grads[n], p.grad) for n, p in model.named_parameters())
    assert modes == {n: m.training for n, m in model.named_modules()}
    assert hooks == {n: list(m._forward_hooks) for n, m in model.named_modules()}
    assert calls == []
    assert torch.is_grad_enabled()


def test_a_mistake_is_found_with_its_evidence():
    torch.manual_seed(0)
    report = addnorm.lint(LM(NoResidual), causal=True)
    assert not report.ok
    (found,) = [f for f in report.findings if f.rule == "no-residual"]
    assert found.module == "blocks.0"
    assert found.evidence["also_in"] == ["blocks.1", "blocks.2"]
    assert found.message
    assert found.remedy
    assert "no-residual" in report.to_json()


def test_inputs_may_be_given_in_three_ways(model):
    ids = torch.randint(61, (2, 5))
    for inputs in (ids, (ids,), {"ids": ids}):
        assert addnorm.lint(model, inputs, causal=True).findings == ()


def test_half_precision_models_are_looked_at(model):
    report = addnorm.lint(model.to(torch.bfloat16), causal=True)
    assert report.ok, report.findings


def test_half_precision_inputs_go_with_half_precision_models():
    stack = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)).to(torch.bfloat16)
    report = addnorm.lint(stack, torch.randn(2, 5, 8, dtype=torch.bfloat16))
    assert "lint" not in {u.rule for u in report.unknown}, report.unknown


def test_a_model_without_values_is_told_so():
    with torch.device("meta"):
        model = LM()
    (unknown,) = addnorm.lint(model).unknown
    assert unknown.why == "the model has no values (meta device): build it on the CPU"


def test_what_cannot_be_run_is_unknown_and_not_fine():
    class Strange(nn.Module):
        def forward(self, mystery):
            raise RuntimeError("only on Tuesdays")

    report = addnorm.lint(Strange())
    assert report.findings == ()
    assert report.unknown
    assert "inputs" in report.unknown[0].why


def test_inputs_that_do_not_fit_are_told():
    report = addnorm.lint(LM(), torch.full((2, 5), 10**6))
    assert "does not run on the inputs given" in report.unknown[0].why


def test_a_model_is_asked_for():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module, got str"):
        addnorm.lint("gpt2")


def test_a_finding_without_evidence_is_refused():
    with pytest.raises(ValueError, match="evidence"):
        Finding(rule="r", severity="error", module="", evidence={}, message="m", remedy="r")
    with pytest.raises(ValueError, match="severity"):
        Finding(rule="r", severity="fatal", module="", evidence={"a": 1}, message="m", remedy="r")


def test_the_same_mistake_in_all_layers_is_told_once_and_the_gravest_comes_first():
    def found(rule, severity, module):
        return Finding(
            rule=rule, severity=severity, module=module, evidence={"n": 1}, message="m", remedy="r"
        )

    unknown = Unknown(rule="b", module="", why="w")
    said = [found("a", "note", "h.0.ln"), found("a", "note", "h.1.ln"), found("b", "error", "h.0")]
    report = gathered([*said, unknown, unknown], ["a", "b"], {})
    assert [f.rule for f in report.findings] == ["b", "a"]
    assert report.findings[1].evidence["also_in"] == ["h.1.ln"]
    assert len(report.unknown) == 1
    assert not report.ok
    assert report.without(["b"]).ok


def test_progress_is_told():
    told = []
    addnorm.lint(LM(), causal=True, progress=lambda done, of, rule: told.append((done, of, rule)))
    assert [done for done, _, _ in told] == list(range(len(told)))
    assert told[-1][0] == told[-1][1]
