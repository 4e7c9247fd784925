"""addnorm.hf: our models through transformers' Auto classes, generate, Trainer and peft."""

import copy
import dataclasses
import importlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

WHY = "transformers is not installed: pip install 'addnorm[hf]'"
transformers = pytest.importorskip("transformers", reason=WHY)

from addnorm import schemes  # noqa: E402
from addnorm.data.tokenizer import Tokenizer  # noqa: E402
from addnorm.files import folders  # noqa: E402
from addnorm.files.gpt import WeightsError  # noqa: E402
from addnorm.hf import AddnormConfig, AddnormForCausalLM, AfterStep  # noqa: E402
from addnorm.models.gpt import GPT  # noqa: E402
from addnorm.models.gpt_config import NORMS, POSITIONS, GPTConfig  # noqa: E402

transformers.utils.logging.disable_progress_bar()
Auto = transformers.AutoModelForCausalLM


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def config(**changes: Any) -> GPTConfig:
    small = GPTConfig(vocab_size=61, context_length=48, dim=16, n_layers=2, n_heads=4)
    return dataclasses.replace(small, **{"scheme": "sandwich", **changes})


def gpt(seed: int = 0, size: float = 0.1, **changes: Any) -> GPT:
    torch.manual_seed(seed)
    model = GPT(config(**changes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(size * torch.randn_like(p))
    return model


def ids(batch: int = 2, length: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(61, (batch, length), generator=torch.Generator().manual_seed(seed))


def greedy(model: GPT, x: Tensor, steps: int) -> Tensor:
    with torch.no_grad():
        for _ in range(steps):
            x = torch.cat([x, model(x)[:, -1:].argmax(-1)], 1)
    return x


def same_bits(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    u, v = a.state_dict(), b.state_dict()
    return u.keys() == v.keys() and all(torch.equal(u[k], v[k]) for k in u)


# --- folders --------------------------------------------------------------------------------------

DESIGNS: list[dict[str, Any]] = [
    *({"scheme": name} for name in schemes.names()),
    *({"position": name} for name in POSITIONS),
    *({"norm": name} for name in NORMS),
    {"n_kv_heads": 2, "qk_norm": "rms", "window": 3, "softcap": 3.0, "attention_softcap": 5.0},
    {"tied": False, "vocab_multiple": 16, "mlp": "gated", "bias": False},
    {"scheme": "drop_path(parallel(pre_norm), 0.1)", "dropout": 0.1},
]


@pytest.mark.parametrize("changes", DESIGNS, ids=str)
def test_auto_classes_load_any_design(tmp_path: Path, changes: dict[str, Any]) -> None:
    """transformers builds on the meta device and fills in the file: whatever a model computed when
    it was made and held outside of the file (a table of positions in a buffer) would be garbage."""
    ours = gpt(**changes)
    ours.save_pretrained(tmp_path / "a", format="addnorm")
    theirs = Auto.from_pretrained(tmp_path / "a")
    assert type(theirs) is AddnormForCausalLM
    assert not theirs.training
    x = ids()
    assert torch.equal(theirs(x).logits, ours(x))
    assert not dict(theirs.named_buffers())
    assert theirs.gpt.config == ours.config

    theirs.save_pretrained(tmp_path / "b")
    again = GPT.from_pretrained(tmp_path / "b")
    assert same_bits(again, ours)
    assert again.config == ours.config
    back = Auto.from_pretrained(tmp_path / "b")
    assert torch.equal(back(x).logits, ours(x))

    # cached, uncached, ours
    want = greedy(ours, x, 12)
    for cached in (True, False):
        continuation = theirs.generate(x, max_new_tokens=12, do_sample=False, use_cache=cached)
        assert torch.equal(continuation, want), f"use_cache={cached}"


def test_what_gpt2_can_express_needs_no_addnorm(tmp_path: Path) -> None:
    gpt(scheme="pre_norm").save_pretrained(tmp_path)
    assert type(Auto.from_pretrained(tmp_path)) is transformers.GPT2LMHeadModel
    with pytest.raises(WeightsError, match=r"in GPT-2's format: .*AddnormForCausalLM.of"):
        AddnormForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    ours = gpt().to(dtype)
    ours.save_pretrained(tmp_path / "a")
    theirs = Auto.from_pretrained(tmp_path / "a")
    assert theirs.dtype == dtype
    assert same_bits(theirs.gpt, ours)
    theirs.save_pretrained(tmp_path / "b")
    assert same_bits(GPT.from_pretrained(tmp_path / "b", dtype=None), ours)
    assert Auto.from_pretrained(tmp_path / "a", dtype=torch.float32).dtype == torch.float32


def test_tied_weights_are_one_and_stored_once(tmp_path: Path) -> None:
    theirs = AddnormForCausalLM.of(gpt())
    theirs.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "gpt.tokens.weight" in names
    assert not any("head" in name for name in names)
    loaded = Auto.from_pretrained(tmp_path)
    assert loaded.get_output_embeddings() is None
    assert loaded.get_input_embeddings() is loaded.gpt.tokens
    assert AddnormForCausalLM.of(gpt(tied=False)).get_output_embeddings() is not None


def test_shards_of_transformers_are_read(tmp_path: Path) -> None:
    theirs = AddnormForCausalLM.of(gpt())
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert same_bits(GPT.from_pretrained(tmp_path), theirs.gpt)
    assert same_bits(Auto.from_pretrained(tmp_path), theirs)


def test_of_shares_the_parameters() -> None:
    ours = gpt(scheme="pre_norm").train()
    theirs = AddnormForCausalLM.of(ours)
    assert theirs.gpt is ours
    assert theirs.training
    assert theirs.config.gpt() == ours.config


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    letters = Tokenizer.characters("to be or not")
    gpt().save_pretrained(tmp_path / "a", tokenizer=letters)
    theirs = Auto.from_pretrained(tmp_path / "a")
    assert theirs.gpt.tokenizer_identity == letters.identity
    theirs.save_pretrained(tmp_path / "b")
    assert GPT.from_pretrained(tmp_path / "b").tokenizer_identity == letters.identity
    of = AddnormForCausalLM.of(GPT.from_pretrained(tmp_path / "b"))
    of.save_pretrained(tmp_path / "c")
    Tokenizer.characters("something else").save(tmp_path / "c")
    with pytest.raises(WeightsError, match="tokenizer of another model"):
        Auto.from_pretrained(tmp_path / "c")


# --- nothing is made up ---------------------------------------------------------------------------


def change(folder: Path, name: str, value: Tensor | None) -> None:
    state = load_file(folder / "model.safetensors")
    state.pop(name) if value is None else state.update({name: value})
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    theirs = AddnormForCausalLM.of(gpt())
    theirs.save_pretrained(tmp_path)
    change(tmp_path, "gpt.stack.final.norm.weight", torch.ones(16))
    with pytest.raises(WeightsError, match="not what was written"):
        Auto.from_pretrained(tmp_path)
    (tmp_path / folders.CHECKSUMS).unlink()
    change(tmp_path, "gpt.stack.final.norm.weight", None)
    with pytest.raises(WeightsError, match=r"missing from .*: stack.final.norm.weight"):
        Auto.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [None, torch.ones(17)], ids=["missing", "wrong shape"])
def test_transformers_fills_no_gap(
    tmp_path: Path, value: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where our check does not see the file first, as with a model of the hub."""
    monkeypatch.setattr("addnorm.hf.gpt_files.check", lambda folder: GPT_REPORT)
    theirs = AddnormForCausalLM.of(gpt())
    theirs.save_pretrained(tmp_path)
    change(tmp_path, "gpt.stack.final.norm.weight", value)
    with pytest.raises(WeightsError, match=r"weights do not fit the model: .*stack.final.norm"):
        Auto.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


class GPT_REPORT:
    format = "addnorm_gpt"


def test_loading_info_is_still_told(tmp_path: Path) -> None:
    AddnormForCausalLM.of(gpt()).save_pretrained(tmp_path)
    model, info = Auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is AddnormForCausalLM
    assert not info["missing_keys"]


def test_saving_twice_renews_the_checksums(tmp_path: Path) -> None:
    AddnormForCausalLM.of(gpt(0)).save_pretrained(tmp_path)
    second = AddnormForCausalLM.of(gpt(1))
    second.save_pretrained(tmp_path)
    assert same_bits(Auto.from_pretrained(tmp_path), second)
    sums = json.loads((tmp_path / folders.CHECKSUMS).read_text())
    assert set(sums) == {"config.json", "model.safetensors"}


# --- configuration and init -----------------------------------------------------------------------


def test_the_configuration_is_gptconfig_and_speaks_transformers_names() -> None:
    fields = dataclasses.asdict(config(n_kv_heads=2, hidden=20))
    theirs = transformers.AutoConfig.for_model("addnorm_gpt", **fields)
    assert theirs.gpt() == config(n_kv_heads=2, hidden=20)
    assert (theirs.hidden_size, theirs.num_hidden_layers, theirs.num_attention_heads) == (16, 2, 4)
    assert (theirs.num_key_value_heads, theirs.intermediate_size) == (2, 20)
    assert theirs.max_position_embeddings == 48
    assert theirs.tie_word_embeddings is True
    by_their_names = AddnormConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2)
    assert by_their_names.gpt() == GPT.preset("gpt2", dim=32, n_layers=3, n_heads=2)
    assert AddnormConfig().gpt() == GPT.preset("gpt2")
    with pytest.raises(ValueError, match="unknown scheme 'sandwhich'; did you mean sandwich"):
        AddnormConfig(scheme="sandwhich")


def test_a_field_can_be_changed_while_loading(tmp_path: Path) -> None:
    gpt().save_pretrained(tmp_path)
    assert Auto.from_pretrained(tmp_path, dropout=0.25).gpt.config.dropout == 0.25


@pytest.mark.parametrize("scheme", ["pre_norm", "deepnorm", "rezero", "hyper_connections", "ngpt"])
def test_init_is_the_schemes(scheme: str) -> None:
    """transformers' post_init would draw every Linear and Embedding again, at 0.02."""
    torch.manual_seed(3)
    ours = GPT(config(scheme=scheme))
    torch.manual_seed(3)
    theirs = Auto.from_config(AddnormConfig(**dataclasses.asdict(config(scheme=scheme))))
    assert same_bits(theirs.gpt, ours)
    theirs.init_weights()
    assert same_bits(theirs.gpt, ours)


# --- forward --------------------------------------------------------------------------------------


def test_labels_are_shifted_and_masked() -> None:
    theirs, x = AddnormForCausalLM.of(gpt(vocab_multiple=16)), ids()
    labels = x.clone()
    labels[0, 3:6] = -100
    out = theirs(x, labels=labels)
    want = F.cross_entropy(out.logits[:, :-1].reshape(-1, 61), labels[:, 1:].reshape(-1))
    torch.testing.assert_close(out.loss, want, rtol=1e-6, atol=0)
    summed = theirs(x, labels=labels, num_items_in_batch=7).loss
    torch.testing.assert_close(summed, want * 13 / 7, rtol=1e-6, atol=0)
    assert isinstance(theirs(x, labels=labels, return_dict=False), tuple)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_is_the_row_alone(side: str) -> None:
    theirs, x = AddnormForCausalLM.of(gpt()), ids(2, 9)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, : 4 if side == "left" else None] = 0
    if side == "right":
        mask[1, :5] = 1
    alone = theirs(x[1, mask[1].bool()][None]).logits[0]
    both = theirs(x, attention_mask=mask).logits[1, mask[1].bool()]
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-6)  # another order of the same sums


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"inputs_embeds": torch.zeros(1, 2, 16)}, "does not support inputs_embeds"),
        ({"output_attentions": True}, "does not support output_attentions"),
        ({"output_hidden_states": True}, "does not support output_hidden_states"),
        ({"logits_to_keep": torch.tensor([1])}, "does not support logits_to_keep that names place"),
        ({"logits_to_keep": 1, "labels": ids()}, "does not support logits_to_keep beside labels"),
        ({"input_ids": None}, "needs input_ids"),
        ({"attention_mask": torch.ones(2, 1, 9, 9)}, "attention_mask must be .B, S., got .2, 1, 9"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_what_is_not_supported_is_refused_by_name(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AddnormForCausalLM.of(gpt())(**{"input_ids": ids(), **inputs})


def test_generate_asks_for_the_last_logits_only() -> None:
    theirs, x = AddnormForCausalLM.of(gpt()), ids()
    assert torch.equal(theirs(x, logits_to_keep=3).logits, theirs(x).logits[:, -3:])
    shapes: list[Any] = []
    theirs.register_forward_hook(lambda *args: shapes.append(tuple(args[-1].logits.shape)))
    theirs.generate(x, max_new_tokens=2, do_sample=False)
    assert shapes == [(2, 1, 61)] * 2


def test_attention_has_one_implementation(tmp_path: Path) -> None:
    gpt().save_pretrained(tmp_path)
    assert Auto.from_pretrained(tmp_path, attn_implementation="sdpa").config._attn_implementation
    with pytest.raises(ValueError, match="attn_implementation='eager': addnorm has its own"):
        Auto.from_pretrained(tmp_path, attn_implementation="eager")


# --- generate -------------------------------------------------------------------------------------


def test_generate_left_padded_batch() -> None:
    theirs = AddnormForCausalLM.of(gpt(position="rope", size=0.3))
    short, long = ids(1, 3, seed=1), ids(1, 8, seed=2)
    x = torch.cat([torch.cat([torch.zeros(1, 5, dtype=torch.long), short], 1), long])
    mask = torch.ones_like(x)
    mask[0, :5] = 0
    continuation = theirs.generate(x, attention_mask=mask, max_new_tokens=20, do_sample=False)
    assert torch.equal(continuation[:1, 5:], greedy(theirs.gpt, short, 20))
    assert torch.equal(continuation[1:], greedy(theirs.gpt, long, 20))


def test_generate_stops_where_the_tokenizer_says(tmp_path: Path) -> None:
    ours = gpt(vocab_size=300)
    with torch.no_grad():
        ours.stack.final.norm.bias.copy_(100 * ours.tokens.weight[256])  # says nothing else
    ours.save_pretrained(tmp_path, tokenizer=Tokenizer.bytes())
    theirs = Auto.from_pretrained(tmp_path)
    assert theirs.generate(ids(1, 3), max_new_tokens=9, do_sample=False).shape == (1, 4)


def test_generate_beams_and_samples() -> None:
    """Beams reorder the cache between the steps."""
    theirs, x = AddnormForCausalLM.of(gpt(size=0.3)), ids(2, 5)
    how = {"max_new_tokens": 15, "attention_mask": torch.ones_like(x)}
    beams = [
        theirs.generate(x, num_beams=3, do_sample=False, use_cache=cached, **how)
        for cached in (True, False)
    ]
    assert torch.equal(*beams)
    samples = []
    for cached in (True, False):
        torch.manual_seed(0)
        samples.append(theirs.generate(x, do_sample=True, top_k=0, use_cache=cached, **how))
    assert torch.equal(*samples)
    assert not torch.equal(samples[0], beams[0])


def test_the_cache_may_be_carried_on() -> None:
    theirs, x = AddnormForCausalLM.of(gpt(scheme="hyper_connections")), ids(2, 12)
    whole = theirs(x).logits
    first = theirs(x[:, :7], use_cache=True)
    rest = theirs(x[:, 7:], past_key_values=first.past_key_values)
    assert theirs(x).past_key_values is None
    assert rest.past_key_values.get_seq_length() == 12
    both = torch.cat([first.logits, rest.logits], 1)
    torch.testing.assert_close(both, whole, rtol=0, atol=1e-6)  # another order of the same sums


def test_a_static_cache_is_refused() -> None:
    with pytest.raises(ValueError, match=r"StaticCache is not supported, .* leave cache_implement"):
        AddnormForCausalLM.of(gpt()).generate(
            ids(), max_new_tokens=3, cache_implementation="static"
        )


@pytest.mark.parametrize("do_sample", [True, False])
def test_generate_raises_on_what_is_not_finite(do_sample: bool) -> None:
    """transformers would choose a token from NaN: the first, or an error of multinomial."""
    ours = gpt(position="learned")
    theirs, x = AddnormForCausalLM.of(ours), ids(3, 5)
    theirs.generate(x, max_new_tokens=3, do_sample=do_sample)
    with torch.no_grad():
        ours.positions.weight[6] = float("nan")  # met by the second new token
    with pytest.raises(FloatingPointError, match=r"logits of rows \[0, 1, 2\] are not finite"):
        theirs.generate(x, max_new_tokens=3, do_sample=do_sample)
    assert not theirs(torch.cat([x, x], 1)).logits.isfinite().all()  # forward itself says it


def test_a_sequence_beyond_the_context_is_an_error() -> None:
    theirs = AddnormForCausalLM.of(gpt())
    with pytest.raises(ValueError, match="49 tokens is longer than the context of 48"):
        theirs.generate(ids(), max_new_tokens=41, do_sample=False)


def test_pipeline(tmp_path: Path) -> None:
    """What a stranger types, from nothing but a folder."""
    text = "to be or not to be, that is the question: " * 20
    bpe = Tokenizer.train(text, vocab_size=300)
    gpt(vocab_size=300).save_pretrained(tmp_path, tokenizer=bpe)
    pipe = transformers.pipeline("text-generation", model=str(tmp_path), device="cpu")
    answer = pipe("to be or", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    want = greedy(GPT.from_pretrained(tmp_path), torch.tensor([bpe.encode("to be or")]), 5)
    assert answer == bpe.decode(want[0].tolist())


# --- Trainer --------------------------------------------------------------------------------------


def train(model: Any, folder: Path, callbacks: list[Any], **arguments: Any) -> Any:
    data = [{"input_ids": row, "labels": row} for row in ids(16, 8)]
    base: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**{**base, **arguments}),
        train_dataset=data,
        callbacks=callbacks,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("scheme", ["pre_norm", "ngpt"])
def test_trainer(tmp_path: Path, scheme: str) -> None:
    theirs = AddnormForCausalLM.of(GPT(config(scheme=scheme)))
    before = copy.deepcopy(theirs)
    steps: list[int] = []
    theirs.gpt.register_forward_hook(lambda *_: steps.append(0))
    trainer = train(theirs, tmp_path, [AfterStep()], save_strategy="steps", save_steps=3)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == len(steps) == 3
    assert all(0 < loss < 10 for loss in losses)
    assert all(
        not torch.equal(p, q) for p, q in zip(theirs.parameters(), before.parameters(), strict=True)
    )
    if scheme == "ngpt":
        length = theirs.gpt.tokens.weight.detach().norm(dim=1)
        torch.testing.assert_close(length, torch.ones(61), rtol=1e-6, atol=0)
        length = theirs.gpt.stack.subs[0].branch.q.weight.detach().norm(dim=1)
        torch.testing.assert_close(length, torch.ones(16), rtol=1e-6, atol=0)
    # what the Trainer saved is a folder like any other, and it goes on from there
    assert same_bits(GPT.from_pretrained(tmp_path / "checkpoint-3"), theirs.gpt)
    trainer.args.max_steps = 4
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert trainer.state.global_step == 4


def test_forgetting_after_step_raises(tmp_path: Path) -> None:
    theirs = AddnormForCausalLM.of(GPT(config(scheme="ngpt")))
    with pytest.raises(RuntimeError, match=r"model.after_step\(step\) was not called"):
        train(theirs, tmp_path, [])


def test_after_step_counts_from_one_and_sees_through_wrappers() -> None:
    theirs = AddnormForCausalLM.of(gpt())
    steps: list[int] = []
    theirs.gpt.after_step = steps.append
    state = transformers.TrainerState(global_step=0)
    AfterStep().on_optimizer_step(None, state, None, model=torch.nn.Sequential(theirs))
    assert steps == [1]


def test_the_trainer_gives_the_number_of_items(tmp_path: Path) -> None:
    """With accumulation, the loss must be divided by the tokens of the whole step."""
    torch.manual_seed(0)
    theirs = AddnormForCausalLM.of(GPT(config()))
    other = copy.deepcopy(theirs)
    train(theirs, tmp_path, [], max_steps=1, gradient_accumulation_steps=2, optim="sgd")
    train(other, tmp_path, [], max_steps=1, per_device_train_batch_size=8, optim="sgd")
    for p, q in zip(theirs.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-7)  # rounding of one step of 1e-2


# --- gradient checkpointing -----------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["sandwich", "hyper_connections", "residual_dual", "ngpt"])
@pytest.mark.parametrize("every", [1, 2])
def test_gradient_checkpointing(scheme: str, every: int) -> None:
    theirs = AddnormForCausalLM.of(gpt(scheme=scheme, n_layers=3, dropout=0.1)).train()
    calls: list[int] = []
    for sub in theirs.gpt.stack.sublayers():
        sub.branch.register_forward_hook(lambda *_: calls.append(1))
    grads = []
    for on in (False, True):
        if on:
            theirs.activation_checkpointing_enable(every_n_layers=every)
            assert theirs.is_activation_checkpointing
        theirs.zero_grad()
        torch.manual_seed(5)
        theirs(ids(), labels=ids()).loss.backward()
        grads.append([p.grad.clone() for p in theirs.parameters()])
        assert len(calls) == (6 + (6 if every == 1 else 4) if on else 6)
        calls.clear()
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    theirs.activation_checkpointing_disable()
    assert not theirs.is_activation_checkpointing
    theirs(ids(), labels=ids()).loss.backward()
    assert len(calls) == 6


def test_checkpointing_writes_no_cache_twice_and_survives_a_copy() -> None:
    theirs = AddnormForCausalLM.of(gpt()).train()
    theirs.activation_checkpointing_enable()
    for model in (theirs, theirs.eval()):
        out = model(ids(), labels=ids(), use_cache=True)
        out.loss.backward()
        assert out.past_key_values.get_seq_length() == 9
    other = copy.deepcopy(theirs).train()
    with torch.no_grad():
        for p in theirs.parameters():
            p.zero_()
    other.zero_grad()
    other(ids(), labels=ids()).loss.backward()
    assert all(
        p.grad is not None and p.grad.any()
        for p in other.gpt.stack.subs[0].branch.parameters()
        if p.dim() > 1
    )


def test_reentrant_checkpointing_is_refused() -> None:
    with pytest.raises(ValueError, match="'use_reentrant': False"):
        AddnormForCausalLM.of(gpt()).activation_checkpointing_enable({"use_reentrant": True})


# --- another vocabulary ---------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [40, 61, 63, 70])
@pytest.mark.parametrize("multiple", [None, 16])
def test_resize_token_embeddings(
    tmp_path: Path, tied: bool, size: int, multiple: int | None
) -> None:
    ours = gpt(tied=tied, vocab_multiple=8)  # 61 of 64 rows
    with torch.no_grad():
        ours.tokens.weight[61:] = 99.0  # what pads a table means nothing
    theirs, x = AddnormForCausalLM.of(ours), ids() % 40
    before, mean = theirs(x).logits, ours.tokens.weight[:61].mean(0)
    table = theirs.resize_token_embeddings(size, pad_to_multiple_of=multiple)
    assert table is ours.tokens
    assert ours.config.vocab_size == theirs.config.vocab_size == size
    assert (
        len(table.weight) == table.num_embeddings == -(-size // (multiple or 8)) * (multiple or 8)
    )
    after = theirs(x).logits
    assert after.shape[-1] == size
    common = min(size, 61)
    torch.testing.assert_close(after[..., :common], before[..., :common], rtol=0, atol=1e-6)
    for row in table.weight[61:]:
        torch.testing.assert_close(row, mean)
    theirs(ids(2, 3) % 40 + size - 40, labels=ids(2, 3) % size).loss.backward()
    theirs.save_pretrained(tmp_path)
    assert torch.equal(GPT.from_pretrained(tmp_path)(x), after)
    assert torch.equal(Auto.from_pretrained(tmp_path)(x).logits, after)


def test_new_tokens_keep_the_schemes_constraint() -> None:
    for mean in (True, False):
        theirs = AddnormForCausalLM.of(GPT(config(scheme="ngpt")))
        theirs.resize_token_embeddings(70, mean_resizing=mean)
        length = theirs.gpt.tokens.weight.detach().norm(dim=1)
        torch.testing.assert_close(length, torch.ones(70), rtol=1e-6, atol=0)
    theirs = AddnormForCausalLM.of(GPT(config(scheme="pre_norm")))
    theirs.resize_token_embeddings(2000, mean_resizing=False)
    assert float(theirs.gpt.tokens.weight[61:].detach().std()) == pytest.approx(0.02, rel=0.02)
    assert theirs.resize_token_embeddings() is theirs.gpt.tokens


# --- peft -----------------------------------------------------------------------------------------


@pytest.fixture
def peft() -> Any:
    return pytest.importorskip("peft", reason="peft is not installed: pip install peft")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("scheme", ["sandwich", "ngpt"])
def test_lora_trains_and_merges(peft: Any, tmp_path: Path, scheme: str) -> None:
    AddnormForCausalLM.of(GPT(config(scheme=scheme))).save_pretrained(tmp_path / "base")
    base = Auto.from_pretrained(tmp_path / "base")
    frozen = {name: p.clone() for name, p in base.gpt.named_parameters()}
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q", "v", "branch.out", "up", "down"]
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(base, lora)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * 5 * 2
    assert all("lora_" in name for name in trainable)
    x = ids()
    start = model(input_ids=x).logits
    train(model, tmp_path, [AfterStep()], max_steps=5)
    model.eval()
    tuned = model(input_ids=x).logits
    assert (tuned - start).abs().max() > 1e-2
    continuation = model.generate(input_ids=x, max_new_tokens=4, do_sample=False)
    assert continuation.shape == (2, 13)

    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(
        Auto.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    )
    torch.testing.assert_close(again(input_ids=x).logits, tuned, rtol=0, atol=1e-6)
    assert torch.equal(
        Auto.from_pretrained(tmp_path / "adapter")(x).logits, again(input_ids=x).logits
    )
    with pytest.raises(WeightsError, match="merge adapters and undo other changes"):
        base.gpt.save_pretrained(tmp_path / "not")

    merged = model.merge_and_unload()
    assert type(merged) is AddnormForCausalLM
    torch.testing.assert_close(merged(x).logits, tuned, rtol=0, atol=1e-6)  # logits are below 10
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(GPT.from_pretrained(tmp_path / "merged")(x), merged(x).logits)
    changes = {
        n
        for n, p in merged.gpt.named_parameters()
        if not torch.allclose(p, frozen[n], rtol=0, atol=1e-6)
    }
    assert changes == {
        n
        for n in frozen
        if n.split(".")[-2] in ("q", "v", "out", "up", "down")
        and n.endswith("weight")
        and "branch" in n
    }


# --- what the document says ---------------------------------------------------------------------


def test_the_code_of_the_document_runs() -> None:
    """Also those blocks that whole/test_docs.py leaves out because they need transformers."""
    text = (Path(__file__).parent.parent / "docs" / "gpt2.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python(?: hf)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/gpt2.md", "exec"), names)
    assert names["made"].shape == (1, 11)
    shutil.rmtree(names["folder"])


# --- without transformers -------------------------------------------------------------------------


def test_without_transformers_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "addnorm.hf")
    with pytest.raises(ImportError, match=r"addnorm.hf needs transformers .*'addnorm\[hf\]'"):
        importlib.import_module("addnorm.hf")
