"""Adapters: what they begin as, what they may change, what they compute, and how they are kept."""

import copy
import dataclasses
import io
import json
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from addnorm import GPT, GPTConfig, schemes, train
from addnorm.adapt import (
    Adapt,
    adapt,
    adapted,
    export,
    folded,
    load,
    merge,
    save,
    state,
    unmerge,
    why_not_peft,
)
from addnorm.adapt.adalora import AdaLoRA
from addnorm.adapt.parts import LoRA
from addnorm.context import Here
from addnorm.export import ExportError, to_gguf, to_onnx
from addnorm.files.folders import WeightsError
from addnorm.generation.beyond_context import window_start
from addnorm.generation.choices import ScoredRow, score_rows
from addnorm.generation.decode import generate_ids
from addnorm.generation.likelihood import token_logprobs
from addnorm.models.transformer import EncoderDecoder
from addnorm.settings import SettingsError
from addnorm.tasks.language import LanguageSettings
from addnorm.training.config import Config
from addnorm.training.display import Display
from addnorm.training.loop_settings import LoopSettings

EVERY = ("q", "k", "v", "out", "up", "down")
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 3, "targets": EVERY},
    "adalora": {"init_rank": 4, "target_rank": 2, "steps": 12, "targets": EVERY},
    "prefix": {"length": 5},
    "prompt": {"length": 5},
    "adapter": {"width": 6},
}
FOLDED = ("lora", "adalora")
DESIGNS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "ngpt": {"scheme": "ngpt"},
    "post": {"scheme": "post_norm", "position": "alibi", "attention_softcap": 5.0},
    "llama": {"norm": "rms", "position": "rope", "n_kv_heads": 1, "mlp": "gated", "window": 6},
}
# float32 rounds at 6e-8; sums of up to 96 products in ten layers, the updates as large as the
# weights: ten times what the largest difference was, 3e-6 of the largest logit
ROUNDING = 3e-5


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def gpt(seed: int = 1, **changes: Any) -> GPT:
    """A small model whose weights are large enough for every part to matter."""
    torch.manual_seed(seed)
    choices: dict[str, Any] = {
        **{"vocab_size": 31, "context_length": 32, "dim": 24, "n_layers": 2, "n_heads": 2},
        **changes,
    }
    model = GPT(GPTConfig(**choices))
    if choices.get("scheme") != "ngpt":  # whose weights are on a sphere
        shake(model.parameters(), 0.1)
    return model.eval()


@torch.no_grad()
def shake(parameters: Any, by: float = 0.3) -> None:
    for p in parameters:
        p.add_(by * torch.randn_like(p))


def ids(rows: int = 2, length: int = 9) -> Tensor:
    return torch.randint(31, (rows, length), generator=torch.Generator().manual_seed(5))


def adapted_gpt(kind: str, design: str = "gpt2", **more: Any) -> GPT:
    """An adapted model whose adapter is far from where it begins."""
    model = gpt(**DESIGNS[design])
    adapter = adapt(model, kind, **{**KINDS[kind], **more})
    shake(adapter.parameters())
    return model


def close(actual: Tensor, want: Tensor, tolerance: float = ROUNDING) -> None:
    actual, want = actual.detach(), want.detach()
    torch.testing.assert_close(actual, want, rtol=0, atol=tolerance * float(want.abs().max()))


def steps(model: nn.Module, count: int, lr: float = 1e-2) -> list[float]:
    """A short training on one batch."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    x, losses = ids(4, 12), []
    for step in range(1, count + 1):
        loss = F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        model.after_step(step)
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


# --- what an adapter begins as --------------------------------------------------------------------


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("kind", KINDS)
def test_at_first_only_what_is_in_front_changes_anything(kind: str, design: str) -> None:
    model = gpt(**DESIGNS[design])
    before = model(ids())
    targets = {"targets": ("q", "gate")} if kind in FOLDED and design == "llama" else {}
    adapter = adapt(model, kind, **{**KINDS[kind], **targets})
    after = model(ids())
    if kind in ("prefix", "prompt"):
        assert (after - before).abs().max() > 1e-4 * before.abs().max()
    else:
        assert torch.equal(after, before)
    assert adapted(model) is adapter
    per_block = {"lora": 6, "adalora": 6, "prefix": 1, "prompt": 0.5, "adapter": 2}[kind]
    assert len(adapter.parts) == 2 * (2 if targets else per_block)


def test_how_many_parameters() -> None:
    """By hand: rank * (in + out) for each update; keys and values; two matrices and two biases."""
    counts = {"lora": 2 * 3 * (4 * 48 + 2 * 120), "prefix": 2 * 2 * 5 * 24}
    counts["prompt"] = 5 * 24
    counts["adapter"] = 4 * (2 * 24 * 6 + 6 + 24)
    counts["adalora"] = 2 * 4 * (4 * 48 + 2 * 120 + 6)
    for kind, count in counts.items():
        model = gpt()
        adapter = adapt(model, kind, **KINDS[kind])
        assert sum(p.numel() for p in adapter.parameters()) == count
        assert f"{kind}: {count:,} parameters" in str(adapter)
        assert {id(p) for p in model.parameters() if p.requires_grad} == {
            id(p) for p in adapter.parameters()
        }


@pytest.mark.parametrize("design", ["gpt2", "ngpt"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_moves_the_adapter_alone(kind: str, design: str) -> None:
    """To the last bit, with schemes too that restore their weights after every step."""
    model = gpt(**DESIGNS[design])
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapter = adapt(model, kind, **KINDS[kind])
    own = {name: p.detach().clone() for name, p in model.named_parameters() if name not in base}
    losses = steps(model, 12)
    assert losses[-1] < losses[0]
    for name, p in model.named_parameters():
        if name in base:
            assert torch.equal(p, base[name]), name
            assert p.grad is None
            assert not p.requires_grad
        else:
            if not name.endswith("lora_E"):  # which may be pruned
                assert not torch.equal(p, own[name]), name
    assert len(adapter.parameters()) == len(own)


def test_every_parameter_of_an_adapter_has_a_gradient() -> None:
    for kind in KINDS:
        model = adapted_gpt(kind)
        model(ids()).square().sum().backward()
        for p in adapted(model).parameters():
            assert p.grad is not None
            assert p.grad.abs().max() > 0


# --- what it computes -----------------------------------------------------------------------------


def test_low_rank_by_the_equation() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(5, 7).double(), torch.randn(3, 5).double()
    one, two = LoRA(linear, 2, 1.5, 0.0), AdaLoRA(linear, 3, 1.5, 0.0, 0.1)
    shake([*one.parameters(), *two.parameters()])
    # 12 products of float64 each
    w, bias = linear.weight, linear.bias
    want = x @ (w + 1.5 * one.lora_B @ one.lora_A).T + bias
    torch.testing.assert_close(one(x), want, rtol=0, atol=1e-14)
    want = x @ (w + 1.5 * two.lora_B @ torch.diag(two.lora_E) @ two.lora_A).T + bias
    torch.testing.assert_close(two(x), want, rtol=0, atol=1e-14)


def test_scale_is_alpha_by_rank() -> None:
    scales = {
        part.scale
        for kind in FOLDED
        for part in adapted(adapted_gpt(kind, alpha=6.0)).low_rank().values()
    }
    assert scales == {6.0 / 3, 6.0 / 4}


def test_dropout_acts_in_training_on_the_update_alone() -> None:
    model = adapted_gpt("lora", dropout=0.5)
    x = ids()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    for part in adapted(model).low_rank().values():
        nn.init.zeros_(part.lora_B)
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_prefix_by_the_equation(window: int | None, softcap: float | None) -> None:
    """softmax over the prefix, whatever the window, and over the tokens that may be seen."""
    model = gpt(window=window, attention_softcap=softcap, n_kv_heads=1, position="rope").double()
    adapt(model, "prefix", length=4)
    branch: Any = model.stack.subs[2].branch
    shake(branch.prefix.parameters())
    u = torch.randn(2, 7, 24, dtype=torch.float64)
    q, k, v = branch.queries(u), branch.keys(u), branch.values(u)
    q, k = (branch.position.rotate(t, torch.arange(7)) for t in (q, k))
    own = [t.weight.detach().numpy() for t in (branch.prefix.keys, branch.prefix.values)]
    out = np.zeros((2, 7, 24))
    for b in range(2):
        for h in range(2):  # both query heads read the one key head
            for i in range(7):
                first = 0 if window is None else max(0, i - window + 1)
                ks = np.concatenate((own[0], k[b, 0, first : i + 1].detach().numpy()))
                vs = np.concatenate((own[1], v[b, 0, first : i + 1].detach().numpy()))
                logits = ks @ q[b, h, i].detach().numpy() / math.sqrt(12)
                if softcap is not None:
                    logits = softcap * np.tanh(logits / softcap)
                e = np.exp(logits - logits.max())
                out[b, i, 12 * h : 12 * (h + 1)] = e @ vs / e.sum()
    want = branch.out(torch.from_numpy(out))
    # a softmax of up to 11 terms in float64
    torch.testing.assert_close(branch(u, Here()), want, rtol=0, atol=1e-13)


def test_a_bottleneck_by_the_equation() -> None:
    model = adapted_gpt("adapter").double()
    branch: Any = model.stack.subs[1].branch
    a, u = branch.adapter, torch.randn(2, 3, 24, dtype=torch.float64)
    v = branch.down(F.gelu(branch.up(u), approximate="tanh"))
    want = v + F.gelu(v @ a.down.weight.T + a.down.bias) @ a.up.weight.T + a.up.bias
    torch.testing.assert_close(branch(u, Here()), want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_changes_nothing(kind: str, design: str) -> None:
    """And padding neither: rows of two lengths get what each gets alone, read anew every time.

    The choices agree exactly: the two best logits are never so near as rounding."""
    targets = {"targets": ("q", "down")} if kind in FOLDED else {}
    model = adapted_gpt(kind, design, **targets)
    long, short = ids(2, 9)
    padded = torch.stack((long, torch.cat((torch.zeros(4, dtype=torch.long), short[:5]))))
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1, :4] = False
    actual = model.generate(padded, 12, temperature=0, valid=valid)
    for row, start in ((0, long), (1, short[:5])):
        x = start[None]
        for _ in range(12):
            with torch.no_grad():
                x = torch.cat((x, model(x)[:, -1:].argmax(-1)), 1)
        assert torch.equal(actual[row, 9:], x[0, -12:])


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rope", "alibi", "none"])
def test_a_prompt_by_the_equation(position: str) -> None:
    """The embeddings of as many more tokens, which have the first positions."""
    plain = gpt(position=position).double()
    model = copy.deepcopy(plain)
    adapter = adapt(model, "prompt", length=4)
    shake(adapter.parameters())
    assert model.config.context_length == 28
    h = torch.cat((model.prompt.table.weight.expand(2, -1, -1), plain.tokens(ids())), 1)
    if position == "sinusoidal":
        h = h * 24**0.5
    if plain.positions is not None:
        h = h + plain.positions(torch.arange(13))
    want = plain.logits(plain.stack(h))[:, 4:]
    # the same sums in float64
    torch.testing.assert_close(model(ids()), want, rtol=0, atol=1e-13)
    padded = torch.stack((F.pad(ids()[0], (3, 2)), F.pad(ids()[1], (1, 4))))
    valid = torch.stack([F.pad(torch.ones(9, dtype=torch.bool), p) for p in ((3, 2), (1, 4))])
    actual = model(padded, valid)[valid].view_as(want)
    torch.testing.assert_close(actual, want, rtol=0, atol=1e-12)


def test_each_document_sees_the_prompt_and_no_other_document() -> None:
    model = gpt(position="none").double()
    shake(adapt(model, "prompt", length=3).parameters())
    x, documents = ids(), torch.tensor([[0] * 4 + [1] * 5] * 2)
    packed = model(x, documents=documents)
    torch.testing.assert_close(packed[:, :4], model(x[:, :4]), rtol=0, atol=1e-12)
    torch.testing.assert_close(packed[:, 4:], model(x[:, 4:]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_behind_a_prompt_the_window_slides_in_what_it_leaves(position: str) -> None:
    """Every token is chosen from what ``window_start`` leaves of a context of 7, and the prompt."""
    model = gpt(position=position, context_length=12)
    shake(adapt(model, "prompt", length=5).parameters())
    actual = model.generate(ids(1, 4), 9, temperature=0)[0]
    for n in range(4, 13):
        window = actual[None, window_start(n, 7) : n]
        with torch.no_grad():
            assert int(model(window)[0, -1].argmax()) == actual[n]
    if position == "learned":
        with pytest.raises(ValueError, match="8 tokens is longer than the context of 7, which a p"):
            model(ids(1, 8))
        model(ids(1, 7))


def test_what_is_measured_of_a_text_fits_behind_a_prompt() -> None:
    """As by one forward of as many tokens as there is room for, and one more to be scored."""
    model = gpt(context_length=14)
    shake(adapt(model, "prompt", length=5).parameters())
    row = ids(1, 20)[0].tolist()
    with torch.no_grad():
        want = model(torch.tensor([row[-10:-1]])).log_softmax(-1)
    last = float(want[0, -1, row[-1]])
    [score] = score_rows(model, [ScoredRow(row, 1)])
    assert abs(score.value - last) < 1e-4
    assert abs(float(token_logprobs(model, row, stride=1)[-1]) - last) < 1e-4


def test_a_prompt_begins_as_tokens_of_the_vocabulary_or_of_a_text() -> None:
    class Letters:
        def encode(self, text: str) -> list[int]:
            return [ord(letter) - ord("a") for letter in text]

    model = gpt(vocab_multiple=32)
    adapt(model, "prompt", length=7)
    rows: Any = model.prompt.table.weight
    alike = (rows[:, None] == model.tokens.weight[:31]).all(-1)
    assert alike.any(1).all()
    assert alike.any(0).sum() > 2
    model = gpt()
    adapt(model, "prompt", length=5, text="cab", tokenizer=Letters())
    assert torch.equal(model.prompt.table.weight, model.tokens.weight[[2, 0, 1, 2, 0]])
    for text, tokenizer, message in (
        ("cab", None, "text needs the model's tokenizer"),
        ("abcdef", Letters(), "has 6 tokens, and length=5: give length 6 or more"),
        ("", Letters(), "text must be words"),
    ):
        model = gpt()
        with pytest.raises(ValueError, match=message):
            adapt(model, "prompt", length=5, text=text, tokenizer=tokenizer)
        assert adapted(model) is None
        assert all(p.requires_grad for p in model.parameters())


def test_what_cannot_hold_a_prompt_says_so(tmp_path: Path) -> None:
    model = adapted_gpt("prompt")
    with pytest.raises(WeightsError, match="a prompt in front of its text, which is no part"):
        model.save_pretrained(tmp_path / "model")
    with pytest.raises(ExportError, match=r"without a cache .* is part of the graph"):
        to_onnx(model, tmp_path / "m.onnx", with_cache=True)
    pytest.importorskip("transformers", reason="transformers is not installed")
    from addnorm.hf import AddnormForCausalLM

    with pytest.raises(ValueError, match="which transformers would count as tokens"):
        AddnormForCausalLM.of(model)
    later = AddnormForCausalLM.of(gpt())
    adapt(later.gpt, "prompt", length=5)
    with pytest.raises(NotImplementedError, match="transformers does not know of it"):
        later(input_ids=ids(), use_cache=True)
    pytest.importorskip("gguf", reason="gguf is not installed")
    with pytest.raises(ExportError, match="a prompt in front of its text"):
        to_gguf(model, tmp_path / "m.gguf", tokenizer=None)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_a_graph_has_in_it_what_is_in_front(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    outcome = to_onnx(adapted_gpt(kind), tmp_path / "m.onnx", with_valid=True)
    assert outcome.check is not None  # which compares it with the model


def test_positions_are_kept_or_shifted() -> None:
    """A prefix whose values are 0 and whose keys are far off is none at all; then only the
    positions can make a difference."""
    plain = gpt()
    for positions, offset in (("kept", 0), ("shifted", 5)):
        model = gpt()
        adapter = adapt(model, "prefix", length=5, positions=positions)
        for part in adapter.parts.values():
            nn.init.zeros_(part.values.weight)
        offset_model = copy.deepcopy(plain)
        with torch.no_grad():
            offset_model.positions.weight.copy_(plain.positions.weight.roll(-offset, 0))
        for m in (model, offset_model):
            for sub in m.stack.sublayers()[::2]:  # no attention, so that no prefix is seen
                nn.init.zeros_(sub.branch.out.weight)
        close(model(ids()), offset_model(ids()))
    with pytest.raises(ValueError, match="position 32 is outside the 32 learned ones"):
        model(ids(1, 28))


def test_compiled_it_is_the_same() -> None:
    model = adapted_gpt("lora")
    shake(adapt(sub := gpt(), "prefix").parameters())
    shake(adapt(soft := gpt(), "prompt").parameters())
    for m in (model, sub, soft):
        torch._dynamo.reset()
        compiled: Any = torch.compile(m, backend="eager", fullgraph=True)
        close(compiled(ids()), m(ids()))
        want = m.generate(ids(), 5, temperature=0)
        assert torch.equal(generate_ids(compiled, ids(), 5, temperature=0), want)


# --- into the weights, and copies -----------------------------------------------------------------


@pytest.mark.parametrize("design", ["gpt2", "ngpt", "post"])
@pytest.mark.parametrize("kind", FOLDED)
def test_merged_is_unmerged(kind: str, design: str) -> None:
    model = gpt(**DESIGNS[design])
    shake(adapt(model, kind, **KINDS[kind]).parameters(), 0.1)
    exact = copy.deepcopy(model).double()
    apart = exact(ids())
    merge(exact)
    close(exact(ids()), apart, 1e-14)  # float64 rounds at 1e-16

    before = {name: t.clone() for name, t in model.state_dict().items()}
    apart = model(ids())
    merge(model)
    merge(model)
    close(model(ids()), apart, 1e-6)
    assert not torch.equal(
        model.stack.subs[0].branch.q.weight, before["stack.subs.0.branch.q.weight"]
    )
    with pytest.raises(RuntimeError, match="merged and cannot be trained"):
        model.train()(ids())
    close(folded(model.eval())(ids()), apart)
    unmerge(model)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(model(ids()), apart)

    plain = folded(model)
    assert adapted(plain) is None
    assert adapted(model) is not None
    assert plain.state_dict().keys() == gpt(**DESIGNS[design]).state_dict().keys()
    assert all(p.requires_grad for p in plain.parameters())
    close(plain(ids()), apart)
    plain.after_step(1)  # the class's own again


def test_merging_in_bfloat16_adds_in_float32() -> None:
    model = adapted_gpt("lora").bfloat16()
    part = adapted(model).low_rank()["stack.subs.0.branch.q"]
    a, b = part.lora_A.float(), part.lora_B.float()
    want = (part.weight.float() + part.scale * b @ a).bfloat16()
    model(ids())
    merge(model)
    assert torch.equal(part.weight, want)


def through_a_file(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": through_a_file,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", [*KINDS, "shifted"])
def test_a_copy_is_the_model_and_of_its_own(
    kind: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It computes, trains, prunes and merges as the model does, to the bit, and the model stays."""
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    model = adapted_gpt("prefix", positions="shifted") if kind == "shifted" else adapted_gpt(kind)
    steps(model, 2)
    before, base = model(ids()), copy.deepcopy(model.state_dict())
    monkeypatch.setattr(RemovableHandle, "next_id", 0)  # as in another process, from a file
    other = COPIES[way](model)
    # the first hooks of an observer's, numbered there as the adapter's were here
    watch = [sub.branch.register_forward_hook for sub in other.stack.sublayers()]
    for register in [other.positions.register_forward_pre_hook] if kind == "shifted" else watch:
        register(lambda *_: None).remove()
    assert torch.equal(other(ids()), before)
    assert torch.equal(
        other.generate(ids(), 5, temperature=0), model.generate(ids(), 5, temperature=0)
    )
    assert other.state_dict().keys() == base.keys()
    assert str(adapted(other)) == str(adapted(model))

    losses = steps(other, 6)
    assert not torch.equal(other(ids()), before)
    assert torch.equal(model(ids()), before)
    assert all(torch.equal(t, base[name]) for name, t in model.state_dict().items())
    assert steps(model, 6) == losses
    assert torch.equal(other(ids()), model(ids()))
    assert adapted(other).ranks() == adapted(model).ranks()
    if kind == "adalora":
        assert sum(adapted(other).ranks().values()) < 4 * 12  # the copy was pruned too
    if kind in FOLDED:
        assert torch.equal(folded(other)(ids()), folded(model)(ids()))
        merge(other)
        again = COPIES[way](other)
        unmerge(again)
        assert torch.equal(again(ids()), model(ids()))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("adalora", ("lora_A", "lora_B")),
        ("prefix", ("keys.weight", "values.weight")),
        ("adapter", ("down.weight",)),
    ],
)
def test_what_begins_small_has_a_deviation_of_two_hundredths(
    kind: str, names: tuple[str, ...]
) -> None:
    model = gpt()
    adapt(model, kind, **KINDS[kind])
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    for end in names:
        values = torch.cat([p.flatten() for n, p in parameters.items() if n.endswith(end)])
        # five standard errors of a deviation, 1 / sqrt(2 n) each
        assert abs(float(values.std()) / 0.02 - 1) < 5 * (2 * len(values)) ** -0.5


def test_lora_begins_as_kaiming_has_it() -> None:
    """Uniform within 1 / sqrt(in), which is kaiming_uniform_ with a = sqrt(5)."""
    model = gpt()
    adapt(model, "lora", **KINDS["lora"])
    for part in model.modules():
        if isinstance(part, LoRA):
            share = part.lora_A.detach().abs() * part.in_features**0.5
            assert 0.9 < float(share.max()) <= 1.0


# --- adalora --------------------------------------------------------------------------------------


def test_adalora_that_is_not_pruned_raises_at_the_next_training_forward() -> None:
    for model in (adapted_gpt("adalora"), pickle.loads(pickle.dumps(adapted_gpt("adalora")))):
        model.train()(ids()).square().sum().backward()
        torch.optim.SGD(adapted(model).parameters(), lr=0.1).step()
        with pytest.raises(
            RuntimeError, match=r"after_step\(step\) was not called: .*adapter prunes"
        ):
            model(ids())
        model.after_step(1)
        model(ids())


def test_ranks_fall_by_the_schedule() -> None:
    """target + (init - target) (1 - (t - tinit) / (T - tfinal - tinit))^3 on average."""
    model = gpt()
    schedule = {
        "init_rank": 6,
        "target_rank": 2,
        "steps": 16,
        "tinit": 3,
        "tfinal": 4,
        "delta_t": 5,
    }
    adapter = adapt(model, "adalora", targets=("q", "up"), **schedule)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    sum_of_ranks, masks = 6 * 4, []
    for step in range(1, 17):
        loss = F.cross_entropy(model(ids()[:, :-1]).flatten(0, 1), ids()[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        model.after_step(step)
        optimizer.zero_grad()
        if 3 < step <= 12 and (step % 5 == 0 or step == 12):
            sum_of_ranks = int((2 + 4 * (1 - (step - 3) / 9) ** 3) * 4)
        assert sum(adapter.ranks().values()) == sum_of_ranks, step
        masks.append({name: part.kept.clone() for name, part in adapter.adalora().items()})
        if step >= 12:  # nothing comes back
            for name, part in adapter.adalora().items():
                assert torch.equal(part.kept, masks[11][name])
                assert torch.equal(part.lora_E != 0, part.kept)
    assert sum_of_ranks == 2 * 4
    assert len(set(adapter.ranks().values())) > 1  # they are shared out by importance


def test_importance_by_the_equation() -> None:
    """Zhang et al. 2023, equations 8 to 12, with two steps of gradients, in NumPy."""
    torch.manual_seed(0)
    part = AdaLoRA(nn.Linear(4, 5), 3, 1.0, 0.0, 0.1)
    scores = {}
    mean = dict.fromkeys("ABE", 0.0)
    far = dict.fromkeys("ABE", 0.0)
    for _ in range(2):
        for name in "ABE":
            w = getattr(part, f"lora_{name}")
            shake([w])
            w.grad = torch.randn_like(w)
            now = np.abs(w.detach().numpy() * w.grad.numpy())
            mean[name] = 0.85 * mean[name] + 0.15 * now
            far[name] = 0.85 * far[name] + 0.15 * np.abs(now - mean[name])
            scores[name] = mean[name] * far[name]
        part.weigh()
    want = scores["E"] + scores["A"].mean(1) + scores["B"].mean(0)
    np.testing.assert_allclose(part.importance().numpy(), want, rtol=1e-5)  # float32


def test_the_most_important_stay() -> None:
    model = gpt()
    adapter = adapt(model, "adalora", init_rank=3, target_rank=1, steps=1, targets=("q",))
    parts = list(adapter.adalora().values())
    for p in adapter.parameters():
        nn.init.ones_(p)
        p.grad = torch.zeros_like(p)
    for part, value in zip(parts, ([5.0, 1.0, 4.0], [2.0, 0.5, 3.0]), strict=True):
        part.lora_E.grad = torch.tensor(value)
    model.after_step(1)
    assert [part.kept.tolist() for part in parts] == [[True, False, True], [False] * 3]


def test_orthogonality_is_the_gradient_of_its_penalty() -> None:
    """SGD with lr 1 moves by the gradient; the loss here has none."""
    model = gpt().double()
    adapter = adapt(model, "adalora", steps=9, orthogonality=0.3, targets=("v",))
    shake(adapter.parameters())
    part = next(iter(adapter.adalora().values()))
    a, b = (t.detach().clone().requires_grad_() for t in (part.lora_A, part.lora_B))
    penalty = 0.3 * (
        (a @ a.T - torch.eye(12)).square().sum() + (b.T @ b - torch.eye(12)).square().sum()
    )
    penalty.backward()
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1.0)
    (0.0 * sum(p.sum() for p in adapter.parameters())).backward()
    other = copy.deepcopy(part)
    optimizer.step()  # which does not move the copy
    torch.testing.assert_close(a.detach() - part.lora_A, a.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(b.detach() - part.lora_B, b.grad, rtol=0, atol=1e-12)
    assert torch.equal(other.lora_A, a)
    other.lora_A.grad = torch.zeros_like(a)
    torch.optim.SGD([other.lora_A], lr=1.0).step()  # but this one does
    torch.testing.assert_close(other.lora_A, part.lora_A, rtol=0, atol=1e-12)


def test_between_prunings_what_grows_again_counts(tmp_path: Path) -> None:
    """In the model, merged and on disk; ``ranks`` are what the last pruning kept."""
    model = adapted_gpt("adalora", init_rank=3, delta_t=6)
    steps(model, 6)
    adapter = adapted(model)
    assert sum(adapter.ranks().values()) < 3 * 12
    steps(model, 1)  # of a clock that begins again
    assert any((part.lora_E[~part.kept] != 0).any() for part in adapter.adalora().values())
    save(model, tmp_path, format="peft")
    again = gpt()
    load(again, tmp_path)
    close(again(ids()), model(ids()))
    close(folded(model)(ids()), model(ids()))


# --- on disk --------------------------------------------------------------------------------------


def same_state(a: nn.Module, b: nn.Module) -> None:
    assert state(a).keys() == state(b).keys()
    assert all(torch.equal(t, state(b)[name]) for name, t in state(a).items())


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("kind", KINDS)
def test_our_format_keeps_everything(kind: str, design: str, tmp_path: Path) -> None:
    targets = {"targets": ("q", "down")} if kind in FOLDED else {}
    model = adapted_gpt(kind, design, **targets)
    if kind == "adalora":
        steps(model, 3)
    save(model, tmp_path, format="addnorm")
    again = gpt(**DESIGNS[design])
    adapter = load(again, tmp_path)
    assert adapter.settings == adapted(model).settings
    same_state(model, again)
    assert torch.equal(again(ids()), model(ids()))
    base = gpt(**DESIGNS[design]).state_dict().keys()
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == (
        model.state_dict().keys() - base
    )


@pytest.mark.parametrize("kind", FOLDED)
def test_pefts_format_gives_the_same_parts_back(kind: str, tmp_path: Path) -> None:
    model = adapted_gpt(kind, targets=("q", "v", "out", "down"))
    if kind == "adalora":
        steps(model, 12)
    save(model, tmp_path)
    assert (tmp_path / "adapter_config.json").exists()
    again = gpt()
    load(again, tmp_path)
    close(again(ids()), model(ids()))  # sums in another order
    one, two = adapted(model), adapted(again)
    assert one.settings == two.settings
    assert one.ranks() == two.ranks()
    save(model, tmp_path, format="addnorm")  # over the other: nothing of it stays
    assert {f.name for f in tmp_path.iterdir()} == {"adapter_model.safetensors"}


def test_a_merged_adapter_is_saved_as_it_is(tmp_path: Path) -> None:
    model = adapted_gpt("lora")
    before = model(ids())
    merge(model)
    save(model, tmp_path)
    again = gpt()
    load(again, tmp_path)
    close(again(ids()), before)


def test_a_whole_model(tmp_path: Path) -> None:
    for kind in KINDS:
        model = adapted_gpt(kind)
        want, random = model(ids()), torch.get_rng_state()
        export(model, tmp_path / kind)
        assert torch.equal(torch.get_rng_state(), random)  # a training goes on as if not saved
        if kind in FOLDED:
            again = GPT.from_pretrained(tmp_path / kind)
        else:
            with pytest.raises(WeightsError, match=r"no config\.json; it holds adapter, base"):
                GPT.from_pretrained(tmp_path / kind)
            again = GPT.from_pretrained(tmp_path / kind / "base")
            load(again, tmp_path / kind / "adapter")
        close(again(ids()), want)


@pytest.mark.parametrize("kind", FOLDED)
def test_a_folded_linear_says_its_widths(kind: str) -> None:
    made_of = folded(adapted_gpt(kind))
    linears = [m for m in made_of.modules() if isinstance(m, nn.Linear)]
    assert any(m.in_features != m.out_features for m in linears)
    for m in linears:
        assert m.weight.shape == (m.out_features, m.in_features)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_model_remembers_its_tokenizer(kind: str, tmp_path: Path) -> None:
    model = adapted_gpt(kind)
    model.tokenizer_identity = "0123456789abcdef"
    export(model, tmp_path)
    again = GPT.from_pretrained(tmp_path if kind in FOLDED else tmp_path / "base")
    assert again.tokenizer_identity == model.tokenizer_identity


# --- peft -----------------------------------------------------------------------------------------

PARITY = 1e-5


@pytest.fixture
def peft() -> Any:
    pytest.importorskip("transformers", reason="transformers is not installed")
    return pytest.importorskip("peft", reason="peft is not installed")


def theirs(tmp_path: Path) -> Any:
    """The same model as transformers' GPT2LMHeadModel."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    gpt().save_pretrained(tmp_path / "base")
    return transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base").eval()


quiet_peft = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    # peft 0.21 says so of every adapter of AdaLoRA, its own as well
    "ignore:The following rank_pattern keys did not match:RuntimeWarning",
)


@quiet_peft
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("lora", {"targets": ("q", "v")}),
        ("lora", {"targets": EVERY, "dropout": 0.1}),
        ("lora", {"targets": ("k", "out", "down"), "alpha": 5.0}),
        ("adalora", {"targets": ("v",)}),
        ("adalora", {"targets": EVERY}),
        ("prefix", {"positions": "shifted"}),
        ("prompt", {}),
    ],
)
def test_peft_reads_ours(peft: Any, kind: str, more: Any, tmp_path: Path) -> None:
    model = adapted_gpt(kind, **more)
    if kind == "adalora":
        steps(model, 12)
    save(model, tmp_path / "adapter", format="peft")
    other = peft.PeftModel.from_pretrained(theirs(tmp_path), tmp_path / "adapter").eval()
    close(other(input_ids=ids()).logits[:, -9:], model(ids()), PARITY)


def tunings(peft: Any) -> dict[str, Any]:
    lora = {"task_type": "CAUSAL_LM", "fan_in_fan_out": True}
    return {
        "lora": peft.LoraConfig(r=4, target_modules=["c_attn"], lora_dropout=0.1, **lora),
        "patterns": peft.LoraConfig(
            r=4,
            lora_alpha=6,
            target_modules=["c_attn", "c_fc", "c_proj"],
            rank_pattern={"attn.c_proj": 2, "h.1.mlp.c_proj": 3},
            alpha_pattern={"c_attn": 12},
            **lora,
        ),
        "rslora": peft.LoraConfig(r=4, use_rslora=True, target_modules=["c_proj"], **lora),
        "one layer": peft.LoraConfig(
            r=2, target_modules=["c_attn"], layers_to_transform=[1], **lora
        ),
        "adalora": peft.AdaLoraConfig(
            **{"init_r": 6, "target_r": 2, "total_step": 8, "tinit": 1, "tfinal": 2},
            target_modules=["c_attn", "c_fc"],
            **lora,
        ),
        "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    }


@quiet_peft
@pytest.mark.parametrize(
    "name", ["lora", "patterns", "rslora", "one layer", "adalora", "prefix", "prompt"]
)
def test_we_read_pefts(peft: Any, name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = peft.get_peft_model(theirs(tmp_path), tunings(peft)[name]).eval()
    optimizer = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], lr=3e-2)
    for step in range(1, 9):
        logits = other(input_ids=ids()[:, :-1]).logits[:, -8:]  # of a prompt too there are some
        F.cross_entropy(logits.flatten(0, 1), ids()[:, 1:].flatten()).backward()
        optimizer.step()
        if name == "adalora":
            other.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    other.save_pretrained(tmp_path / "adapter")
    model = gpt()
    before = model(ids())
    load(model, tmp_path / "adapter")
    want = other(input_ids=ids()).logits[:, -9:]
    assert (want - before).abs().max() > 0.01 * want.abs().max()
    close(model(ids()), want, PARITY)
    save(model, tmp_path / "again")  # and back
    again = gpt()
    load(again, tmp_path / "again")
    close(again(ids()), want, PARITY)


@quiet_peft
def test_ranks_that_are_not_said_are_those_of_peft(peft: Any) -> None:
    ours, theirs = Adapt(kind="adalora"), peft.AdaLoraConfig(total_step=10)
    assert (ours.init_rank, ours.target_rank) == (theirs.init_r, theirs.target_r)
    assert Adapt(kind="lora").rank == peft.LoraConfig().r


@quiet_peft
@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_what_is_in_front_is_described_as_peft_describes_it(
    kind: str, peft: Any, tmp_path: Path
) -> None:
    other = peft.get_peft_model(theirs(tmp_path), tunings(peft)[kind])
    other.save_pretrained(tmp_path / "theirs")
    model = gpt()
    load(model, tmp_path / "theirs")
    save(model, tmp_path / "ours", format="peft")
    want, actual = (
        json.loads((tmp_path / name / "adapter_config.json").read_text())
        for name in ("theirs", "ours")
    )
    shape = ("num_attention_heads", "num_layers", "token_dim", "num_virtual_tokens")
    shape += ("num_transformer_submodules", "peft_type", "task_type")
    assert {key: actual[key] for key in shape} == {key: want[key] for key in shape}


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_an_adapter_with_a_nan_is_not_written(kind: str, tmp_path: Path) -> None:
    model = adapted_gpt(kind)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).view(-1)[3] = torch.nan
    with pytest.raises(WeightsError, match=r"the adapter: 1 of .* not finite"):
        save(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@quiet_peft
@pytest.mark.parametrize("kind", FOLDED)
def test_other_designs_with_peft_on_addnorm_hf(peft: Any, kind: str, tmp_path: Path) -> None:
    from addnorm.hf import AddnormForCausalLM

    model = adapted_gpt(kind, "llama", targets=("q", "v", "gate"))
    save(model, tmp_path / "adapter", format="peft")
    base = AddnormForCausalLM.of(gpt(**DESIGNS["llama"])).eval()
    other = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    close(other(input_ids=ids()).logits, model(ids()), PARITY)
    other.save_pretrained(tmp_path / "theirs")
    again = gpt(**DESIGNS["llama"])
    load(again, tmp_path / "theirs")
    close(again(ids()), model(ids()), PARITY)


# --- training -------------------------------------------------------------------------------------

TEXT = "the quick brown fox jumps over the lazy dog and comes back again to the old fence. " * 60


def config(tmp_path: Path, **changes: Any) -> Config:
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    model = GPTConfig(vocab_size=1, context_length=16, dim=16, n_layers=2, n_heads=2)
    about = LanguageSettings(
        data=str(file),
        tokenizer="characters",
        tokens_per_step=128,
        samples=0,
        cache=tmp_path / "cache",
        model=model,
    )
    loop = LoopSettings(
        steps=8, precision="fp32", warmup=2, threads=1, lr=1e-2, eval_every=4, save_every=4
    )
    return Config(task=about, loop=loop).changed(changes)


KEYS = {
    "lora": {"adapt.rank": "3", "adapt.targets": "q,up", "dropout": "0.1"},
    "adalora": {"adapt.init_rank": "4", "adapt.target_rank": "2", "adapt.steps": "8"},
    "prefix": {"adapt.length": "3"},
    "prompt": {"adapt.length": "6", "adapt.text": "a fox", "lr": "0.05", "steps": "40"},
    "adapter": {"adapt.width": "5"},
}


def test_runs_and_their_resumption(tmp_path: Path) -> None:
    quiet = Display(quiet=True)
    first = train(config(tmp_path), out=tmp_path / "first", display=quiet)
    start = GPT.from_pretrained(first.folder / "model")
    for kind, keys in KEYS.items():
        settings = config(
            tmp_path, **{"init_from": str(first.folder / "model"), "adapt.kind": kind, **keys}
        )
        assert Config.from_json(settings.to_json()) == settings
        run = train(settings, out=tmp_path / kind, display=quiet)
        assert run.metrics["val_loss"] < first.metrics["val_loss"]
        folder = run.folder / "model"
        model = copy.deepcopy(start)
        load(model, folder / "adapter")
        if kind in FOLDED:
            close(GPT.from_pretrained(folder)(ids() % 20), model(ids() % 20))
        if kind == "adalora":
            assert sum(adapted(model).ranks().values()) == 2 * 4
        if kind not in (*FOLDED, "prompt"):
            continue
        part = tmp_path / f"{kind} in two"  # dropout, and what adalora has measured, go on
        train(settings, out=part, display=quiet, until=5)
        train(settings, out=part, display=quiet, resume=True)
        one, two = (
            load_file(f / "model/adapter/adapter_model.safetensors") for f in (run.folder, part)
        )
        assert all(torch.equal(t, two[name]) for name, t in one.items())


def test_settings_of_a_run_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"adapt.kind=lora .* say which with init_from"):
        config(tmp_path, **{"adapt.kind": "lora"}).task.build()
    with pytest.raises(SettingsError, match=r"adapt.rank=-1.*rank must be a whole number"):
        config(tmp_path, **{"adapt.kind": "lora", "adapt.rank": "-1"})
    gpt(vocab_size=31).save_pretrained(tmp_path / "start")
    from addnorm.data.tokenizer import Tokenizer

    Tokenizer.characters([TEXT]).save(tmp_path / "start")
    start = {"init_from": str(tmp_path / "start"), "adapt.kind": "lora", "adapt.targets": "w"}
    with pytest.raises(SettingsError, match="adapt: unknown targets 'w'"):
        config(tmp_path, **start).task.build().model()


def test_any_module_with_a_stack(tmp_path: Path) -> None:
    """An encoder-decoder: six updates, or a prefix at all three kinds of attention."""
    x, y = torch.randn(2, 5, 8), torch.randn(2, 4, 8)

    def new() -> EncoderDecoder:
        torch.manual_seed(0)
        return EncoderDecoder(8, 2, 1, schemes.ngpt).eval()

    for kind, count in (("lora", 6), ("adalora", 6), ("prefix", 3), ("adapter", 5)):
        model = new()
        before = model(x, y)
        adapter = adapt(model, kind, **({"steps": 3} if kind == "adalora" else {}))
        assert len(adapter.parts) == count
        assert torch.equal(model(x, y), before) is (kind != "prefix")
        shake(adapter.parameters())
        model.train()
        optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
        for step in (1, 2, 3):  # the second forward raises if after_step was not heeded
            model(x, y).square().sum().backward()
            optimizer.step()
            model.after_step(step)
            optimizer.zero_grad()
        assert (model.eval()(x, y) - before).abs().max() > 1e-3
        with pytest.raises(WeightsError, match="a EncoderDecoder, and peft knows GPT-2"):
            save(model, tmp_path, format="peft")
        save(model, tmp_path)
        again = new()
        load(again, tmp_path)
        assert torch.equal(again(x, y), model(x, y))


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("lara", {}, "unknown kind 'lara'; did you mean lora"),
        ("none", {}, "unknown kind 'none'"),
        ("lora", {"rang": 3}, "unknown setting 'rang'; did you mean .*rank"),
        ("lora", {"rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ("lora", {"rank": 2.0}, "rank must be a whole number"),
        ("lora", {"width": 3}, "width is a setting of adapter, not lora"),
        ("prefix", {"rank": 3}, "rank is a setting of lora, not prefix"),
        ("prefix", {"positions": "moved"}, "unknown positions 'moved'"),
        ("lora", {"alpha": 0.0}, "alpha must be positive"),
        ("lora", {"dropout": 1.0}, "dropout must be in"),
        ("lora", {"targets": ()}, "targets must be names"),
        ("lora", {"targets": "qv"}, "targets must be names"),
        (
            "lora",
            {"targets": ("gate",)},
            "unknown targets 'gate'; there are q, k, v, out, up, down",
        ),
        ("adalora", {}, "steps must be set with adalora"),
        ("adalora", {"steps": 5, "target_rank": 20}, "target_rank=20 is above init_rank=12"),
        ("adalora", {"steps": 5, "tinit": 3, "tfinal": 2}, "leave none of 5 steps"),
        ("adalora", {"steps": 5, "tinit": -1}, "tinit must be a whole number of at least 0"),
    ],
)
def test_settings_that_are_refused(kind: str, settings: dict[str, Any], message: str) -> None:
    model = gpt()
    with pytest.raises(ValueError, match=message):
        adapt(model, kind, **settings)
    assert adapted(model) is None
    assert all(p.requires_grad for p in model.parameters())


def test_models_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a Linear has no Stack of addnorm"):
        adapt(nn.Linear(3, 3), "lora")
    model = adapted_gpt("prefix")
    with pytest.raises(ValueError, match="has an adapter already: prefix: "):
        adapt(model, "lora")
    for what in (merge, unmerge, folded):
        with pytest.raises(ValueError, match="prefix is not an update of weights"):
            what(model)
        with pytest.raises(ValueError, match="the GPT has no adapter"):
            what(gpt())
    with pytest.raises(ValueError, match="the GPT has no adapter"):
        save(gpt(), tmp_path)
    with pytest.raises(ValueError, match="positions='shifted' is for models with learned"):
        adapt(gpt(position="rope"), "prefix", positions="shifted")
    with pytest.raises(ValueError, match="tokens of a GPT, and this is a EncoderDecoder"):
        adapt(EncoderDecoder(8, 2, 1, schemes.ngpt), "prompt")
    with pytest.raises(ValueError, match="length=32 leaves nothing of the context of 32 tokens"):
        adapt(gpt(), "prompt", length=32)
    model = gpt()
    adapt(model, "adalora", steps=5)
    with pytest.raises(RuntimeError, match="before zero_grad"):
        model.after_step(1)


def test_what_peft_cannot_say(tmp_path: Path) -> None:
    messages = {
        "positions are 'kept'": adapted_gpt("prefix"),
        "peft has no bottleneck": adapted_gpt("adapter"),
        "scheme is 'ngpt'": adapted_gpt("prefix", "ngpt"),
    }
    for reason, model in messages.items():
        assert any(reason in why for why in why_not_peft(model))
        with pytest.raises(WeightsError, match=f"peft's format cannot say .*{reason}"):
            save(model, tmp_path, format="peft")
        save(model, tmp_path)
        assert not (tmp_path / "adapter_config.json").exists()
    with pytest.raises(WeightsError, match="format is 'peft', 'addnorm' or None"):
        save(model, tmp_path, format="pefd")


def test_folders_that_are_refused(tmp_path: Path) -> None:
    """And then the model is what it was."""
    model, file = gpt(), tmp_path / "adapter_model.safetensors"

    def refused(message: str, into: nn.Module = model) -> None:
        with pytest.raises(WeightsError, match=message):
            load(into, tmp_path)
        assert adapted(into) is None
        assert (
            into.state_dict().keys() == gpt(**dataclasses.asdict(into.config)).state_dict().keys()
        )

    refused("has no adapter: there is no adapter_model.safetensors")
    save(adapted_gpt("lora"), tmp_path, format="addnorm")
    refused("another model: stack.subs.0.branch.k.lora_A is .3, 24., expected .3, 32", gpt(dim=32))
    refused("no matrix is stack.subs|expected none", gpt(n_layers=1))
    file.write_bytes(file.read_bytes()[:-9])
    refused("is damaged")
    save(adapted_gpt("lora"), tmp_path)
    refused("the model has no place for base_model.model.transformer.h.1", gpt(n_layers=1))
    refused("the model has no place for", gpt(scheme="post_norm", norm="rms"))
    config = tmp_path / "adapter_config.json"
    card = json.loads(config.read_text())
    for change, message in (
        ({"use_dora": True}, "use_dora: addnorm lacks this option of peft"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa': addnorm lacks"),
        (
            {"alpha_pattern": {"(": 3}},
            r"alpha_pattern '\(' is not a regular expression: missing \)",
        ),
        ({"alpha_pattern": {"c_attn": "3"}}, "alpha_pattern 'c_attn' is '3', not a number"),
        ({"alpha_pattern": [1]}, "alpha_pattern is a list, expected an object"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000.*, not a number"),
        ({"lora_dropout": "x"}, "lora_dropout is 'x', not a number"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA', expected one of LORA, ADALORA, PREFIX"),
    ):
        config.write_text(json.dumps(card | change))
        save_file(load_file(file), file)  # without our record
        refused(message)
    whole = load_file(file)
    first = next(iter(whole))
    again = first.removeprefix("base_model.model.")
    save_file(whole | {again: torch.zeros_like(whole[first])}, file)
    config.write_text(json.dumps(card))
    refused(f"{first} and {again} are both lora_A of h.0.attn.c_attn")
    save_file(whole, file)
    config.write_text(json.dumps({k: v for k, v in card.items() if k != "lora_alpha"}))
    refused("'lora_alpha' is missing")
    broken = load_file(file)
    next(iter(broken.values()))[0, 0] = math.nan
    save_file(broken, file)
    refused("1 of .* are not finite")
    save(adapted_gpt("prefix", positions="shifted"), tmp_path)
    refused(r"shape \(\d+, 96\), and 3 layers of width 24 need \(length, 144\)", gpt(n_layers=3))
    refused("a prefix of peft's is for GPT-2 only", gpt(position="rope"))
    save(adapted_gpt("prompt"), tmp_path)
    refused("a prompt of peft's is for GPT-2 only", gpt(position="rope"))
    refused("prompt.table.weight is .5, 24., expected .5, 32.", gpt(dim=32))
    refused("length=5 leaves nothing of the context of 5", gpt(context_length=5))
    save_file({"prompt": torch.zeros(5, 24)}, file)
    refused("there is prompt, expected prompt_embeddings alone")
