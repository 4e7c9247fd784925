"""Weights in and out: parity with transformers, every layout, every damage, nothing half done."""

import ast
import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import addnorm
from addnorm import disk, schemes
from addnorm.branches import ACTIVATIONS
from addnorm.data.tokenizer import Tokenizer
from addnorm.files import config_json, folders
from addnorm.files import gpt as gpt_files
from addnorm.files.gpt import WeightsError
from addnorm.models.gpt import GPT
from addnorm.models.gpt_config import MLPS, NORMS, POSITIONS, GPTConfig

WHY = "transformers is not installed: pip install 'addnorm[hf]'"
ODD: dict[str, Any] = {
    "vocab_size": 61,
    "n_positions": 37,
    "n_embd": 20,
    "n_layer": 3,
    "n_head": 5,
    "n_inner": 33,
    "bos_token_id": None,
    "eos_token_id": None,
}
"""No two sizes alike, none a power of two: what is transposed or split wrongly does not fit."""


@pytest.fixture(scope="session")
def hf() -> Any:
    transformers = pytest.importorskip("transformers", reason=WHY)
    transformers.utils.logging.disable_progress_bar()
    return transformers


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Waiting for the disk takes longer than all the rest; what would be waited for is noted."""
    synced: list[str] = []
    monkeypatch.setattr(disk, "sync", lambda path: synced.append(path.name))
    return synced


def published(hf: Any, seed: int = 0, **changes: Any) -> Any:
    """A GPT2LMHeadModel in evaluation mode. A norm's 1 and a bias's 0 would hide bugs: stirred."""
    torch.manual_seed(seed)
    model = hf.GPT2LMHeadModel(hf.GPT2Config(**{**ODD, **changes})).eval()
    return stir(model)


def stir(model: Any, size: float = 0.1) -> Any:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(size * torch.randn_like(p))
    return model


def tiny(**changes: Any) -> GPT:
    config = GPTConfig(
        vocab_size=61, context_length=37, dim=20, n_layers=3, n_heads=5, hidden=33, dropout=0.1
    )
    torch.manual_seed(1)
    model: GPT = stir(GPT(dataclasses.replace(config, **changes)).eval())
    return model


def ids(batch: int = 2, length: int = 31, seed: int = 0, vocab: int = 61) -> Tensor:
    return torch.randint(vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


def mangle(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """The folder with its tensors changed, and as from elsewhere: without checksums."""
    file = folder / "model.safetensors"
    state = load_file(file)
    changed = change(state)
    save_file(state if changed is None else changed, file, metadata={"format": "pt"})
    (folder / folders.CHECKSUMS).unlink(missing_ok=True)
    return folder


def reconfigure(folder: Path, **changes: Any) -> Path:
    card = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**card, **changes}))
    (folder / folders.CHECKSUMS).unlink(missing_ok=True)
    return folder


# --- parity with transformers ---------------------------------------------------------------------
#
# Both sides compute in float32 with kernels that add in another order. Logits of size 5 after some
# 1e3 roundings of 6e-8 relative differ by about 5 * sqrt(1e3) * 6e-8 = 1e-5 at most; what is
# measured is 1e-6. Gradients are compared with the largest of their tensor: element by element is
# meaningless, since a key's bias has gradient 0 in exact arithmetic.


def compare(hf: Any, theirs: Any, ours: GPT, x: Tensor) -> dict[str, float]:
    """Largest differences of logits, of the stream at every block, and of gradients by tensor."""
    stream: list[Tensor] = []
    for sub in ours.stack.sublayers()[::2]:
        sub.register_forward_pre_hook(lambda _, args: stream.append(args[0].settle()))
    ours.stack.register_forward_hook(lambda _, args, out: stream.append(out))
    a = theirs(x, labels=x, output_hidden_states=True)
    logits = ours(x)
    assert len(stream) == len(a.hidden_states) == ours.config.n_layers + 1
    pairs = zip(a.hidden_states, stream, strict=True)
    layers = [float((u - v).detach().abs().max()) for u, v in pairs]
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())
    a.loss.backward()
    loss.backward()
    mine: dict[str, Any] = {name: p.grad for name, p in ours.named_parameters()}
    parameters = dict(theirs.named_parameters())
    worst = 0.0
    for row in gpt_files.gpt2_rows(ours.config):
        name = row.theirs if row is gpt_files.UNTIED else f"transformer.{row.theirs}"
        want = parameters[name].grad
        gradient = torch.cat([mine[part] for part in row.ours])
        gradient = gradient.T if row.transposed else gradient
        worst = max(worst, float((gradient - want).abs().max() / want.abs().max()))
    return {
        "logits": float((a.logits - logits).detach().abs().max()),
        "layers": max(layers),
        "gradients": worst,
        "loss": abs(a.loss.item() - loss.item()),
    }


PUBLISHED: list[dict[str, Any]] = [
    {},
    {"n_inner": None},
    {"layer_norm_epsilon": 0.1},
    {"tie_word_embeddings": False},
    *({"activation_function": name} for name in config_json.GPT2_ACTIVATIONS),
]


@pytest.mark.parametrize("changes", PUBLISHED, ids=str)
def test_parity(hf: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    theirs = published(hf, **changes)
    theirs.save_pretrained(tmp_path)
    worst = compare(hf, theirs, GPT.from_pretrained(tmp_path), ids())
    print(changes, worst)
    assert worst["logits"] <= 1e-5
    assert worst["layers"] <= 1e-5
    assert worst["gradients"] <= 1e-4
    assert worst["loss"] <= 1e-5


@pytest.mark.slow
def test_parity_at_the_size_of_gpt2(hf: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = hf.GPT2LMHeadModel(hf.GPT2Config()).eval()
    theirs.save_pretrained(tmp_path)
    worst = compare(hf, theirs, GPT.from_pretrained(tmp_path), ids(1, 256, vocab=50257))
    print(worst)
    assert worst["logits"] <= 1e-5
    assert worst["layers"] <= 1e-5
    assert worst["gradients"] <= 1e-4


def test_greedy_tokens_agree_for_200_steps(hf: Any, tmp_path: Path) -> None:
    theirs = published(hf, n_positions=211)
    stir(theirs, 0.3)  # at the size of an init, the output is one token for ever
    theirs.save_pretrained(tmp_path)
    ours, x = GPT.from_pretrained(tmp_path), ids(1, 11)
    want = theirs.generate(
        x, attention_mask=torch.ones_like(x), max_new_tokens=200, do_sample=False, pad_token_id=0
    )
    with torch.no_grad():
        for _ in range(200):
            x = torch.cat([x, ours(x)[:, -1:].argmax(-1)], 1)
    assert torch.equal(x, want)
    assert len(x[0, 11:].unique()) > 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_there_and_back_is_the_identity_on_bits(
    hf: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    """addnorm -> save -> transformers -> save -> addnorm, and the other way round."""
    ours = tiny(eps=1e-6, activation="gelu").to(dtype)
    ours.save_pretrained(tmp_path / "a", format="gpt2")
    theirs = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert type(theirs) is hf.GPT2LMHeadModel
    assert theirs.lm_head.weight is theirs.transformer.wte.weight
    theirs.save_pretrained(tmp_path / "b")
    again = GPT.from_pretrained(tmp_path / "b", dtype=None)
    assert same_bits(again.state_dict(), ours.state_dict())
    assert again.config == ours.config
    assert "lm_head.weight" not in load_file(tmp_path / "a" / "model.safetensors")

    theirs = published(hf).to(dtype)
    theirs.save_pretrained(tmp_path / "c")
    GPT.from_pretrained(tmp_path / "c", dtype=None).save_pretrained(tmp_path / "d")
    back = hf.GPT2LMHeadModel.from_pretrained(tmp_path / "d")
    assert same_bits(back.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_a_padded_row_is_transformers_row_alone(hf: Any, tmp_path: Path, side: str) -> None:
    theirs = published(hf)
    theirs.save_pretrained(tmp_path)
    ours, lengths = GPT.from_pretrained(tmp_path), [13, 7, 1]
    x, valid = ids(3, 13, seed=5), torch.zeros(3, 13, dtype=torch.bool)
    for i, n in enumerate(lengths):
        start = {"left": 13 - n, "right": 0, "both": (13 - n) // 2}[side]
        valid[i, start : start + n] = True
    logits = ours(x, valid)
    for i in range(3):
        alone = theirs(x[i, valid[i]][None]).logits[0]
        torch.testing.assert_close(logits[i, valid[i]], alone, rtol=0, atol=1e-5)


# --- GPT-2's layouts ------------------------------------------------------------------------------


def gpt2_folder(path: Path) -> tuple[Path, GPT]:
    """As from elsewhere: GPT-2's names, no checksums."""
    model = tiny()
    model.save_pretrained(path, format="gpt2")
    return mangle(path, lambda state: None), model


def renamed(rename: Callable[[str], str]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {rename(name): t for name, t in state.items()}


def with_buffers(state: dict[str, Tensor]) -> None:
    for i in range(3):
        state[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 37, 37).tril()
        state[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    state["lm_head.weight"] = state["transformer.wte.weight"].clone()


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "GPT2LMHeadModel": lambda state: None,
    "GPT2Model, as on the hub": renamed(lambda n: n.removeprefix("transformer.")),
    "with masks and a copy of the head, before 2023": with_buffers,
    "DistributedDataParallel": renamed(lambda n: f"module.{n}"),
    "torch.compile around DDP": renamed(lambda n: f"_orig_mod.module.{n}"),
    "DDP around torch.compile": renamed(lambda n: f"module._orig_mod.{n}"),
    "blocks compiled one by one": renamed(lambda n: n.replace(".attn.", "._orig_mod.attn.")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture) -> None:
    folder, model = gpt2_folder(tmp_path)
    mangle(folder, LAYOUTS[layout])
    with caplog.at_level(logging.INFO, "addnorm"):
        loaded = GPT.from_pretrained(folder)
    assert same_bits(loaded.state_dict(), model.state_dict())
    assert loaded.config == model.config
    assert not loaded.training
    ignored = gpt_files.load(folder)[1].ignored
    if "masks" in layout:
        assert len(ignored) == 7
        assert "ignored 7 causal masks or copies (transformer.h.0.attn.bias" in caplog.text
    else:
        assert not ignored
        assert "ignored" not in caplog.text
    assert "without checksums" in caplog.text


def test_a_head_that_is_not_the_embedding_is_not_dropped(tmp_path: Path) -> None:
    folder, _ = gpt2_folder(tmp_path)
    head = torch.randn(61, 20)
    mangle(folder, lambda state: {**state, "lm_head.weight": head})
    with pytest.raises(WeightsError, match=r'lm_head.weight is not wte.weight.*"tie_word_emb'):
        GPT.from_pretrained(folder)
    loaded = GPT.from_pretrained(reconfigure(folder, tie_word_embeddings=False))
    assert loaded.head is not None
    assert torch.equal(loaded.head.weight, head)


def test_two_names_for_one_tensor(tmp_path: Path) -> None:
    folder, _ = gpt2_folder(tmp_path)
    mangle(folder, lambda s: {**s, "wte.weight": torch.zeros(61, 20)})
    with pytest.raises(WeightsError, match=r"wte.weight and transformer.wte.weight|are both wte"):
        GPT.from_pretrained(folder)


def shard(folder: Path, suffix: str = "safetensors") -> Path:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    names = sorted(state)
    parts = [names[:9], names[9:20], names[20:]]
    places: dict[str, str] = {}
    for i, part in enumerate(parts, 1):
        file = f"{stem}-{i:05}-of-00003.{suffix}"
        tensors = {n: state[n] for n in part}
        save_file(tensors, folder / file) if suffix != "bin" else torch.save(tensors, folder / file)
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards(tmp_path: Path, suffix: str) -> None:
    folder, model = gpt2_folder(tmp_path)
    loaded, report = gpt_files.load(shard(folder, suffix))
    assert same_bits(loaded.state_dict(), model.state_dict())
    assert len(report.files) == 3


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_of_tensors(tmp_path: Path, zipped: bool) -> None:
    folder, model = gpt2_folder(tmp_path)
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["transformer.wte.weight"]  # shares its memory, as it used to
    (folder / "model.safetensors").unlink()
    bin = folder / "pytorch_model.bin"
    torch.save(state, bin, _use_new_zipfile_serialization=zipped)
    assert same_bits(GPT.from_pretrained(folder).state_dict(), model.state_dict())
    bin.write_bytes(bin.read_bytes()[:-2000])
    with pytest.raises(WeightsError, match=r"pytorch_model.bin .*(truncated|damaged)"):
        GPT.from_pretrained(folder)
    torch.save({"model": state}, bin)
    with pytest.raises(WeightsError, match="model is a dict; expected a dictionary of tensors"):
        GPT.from_pretrained(folder)
    torch.save([1], bin)
    with pytest.raises(WeightsError, match="the whole is a list"):
        GPT.from_pretrained(folder)


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


def test_a_pickle_runs_no_code(tmp_path: Path) -> None:
    folder, _ = gpt2_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save({"wte.weight": Bomb(tmp_path / "boom")}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"refused: .*more than tensors.*safetensors") as error:
        GPT.from_pretrained(folder)
    assert not (tmp_path / "boom").exists()
    assert "weights_only" not in str(error.value), "torch's advice is to run the code"


@pytest.mark.parametrize(
    "content", [b"", b"<html>404</html>", b"text", b"\x80\x02.", b"PK\x03\x04"]
)
def test_a_pickle_that_is_none(tmp_path: Path, content: bytes) -> None:
    folder, _ = gpt2_folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(WeightsError, match=r"model.bin is truncated or damaged.*: get it") as error:
        GPT.from_pretrained(folder)
    assert "weights_only" not in str(error.value)


# --- GPT-2's options ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False is not implemented"),
        ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn=True is not"),
        ({"add_cross_attention": True}, "add_cross_attention=True is not"),
        ({"is_decoder": True}, "is_decoder=True is not"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder=True is not"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads={'0': .1.} is not"),
        ({"quantization_config": {"bits": 4}}, "quantization_config=.* is not"),
        (
            {"activation_function": "tanh"},
            "activation_function='tanh' is not implemented, only gelu",
        ),
        ({"alibi": True}, "alibi=True is not an option of GPT-2 as transformers defines it"),
        ({"resid_pdrop": 0.2}, r"resid_pdrop=0.2, embd_pdrop=0.1.*\(..., dropout=0.2\)"),
        ({"model_type": "llama"}, "model_type is 'llama', expected gpt2 or addnorm_gpt"),
        ({"n_embd": 21}, "n_heads=5 does not divide dim=21"),
        ({"n_layer": "3"}, "n_layers must be a whole number"),
        ({"layer_norm_epsilon": None}, "eps must be a number of at least 0, got None"),
        ({"layer_norm_epsilon": 10**400}, "eps must be a number of at least 0, got 1000"),
        ({"resid_pdrop": "0.1", "embd_pdrop": "0.1", "attn_pdrop": "0.1"}, r"got '0.1'"),
        ({"layer_norm_epsilon": True}, "eps must be a number of at least 0, got True"),
        ({"tie_word_embeddings": 1}, "tied must be true or false, got 1"),
        ({"model_type": ["gpt2"]}, r"model_type is \['gpt2'\], expected gpt2 or addnorm_gpt"),
        ({"activation_function": {}}, "activation_function={} is not implemented"),
        ({"addnorm_tokenizer": 5}, "'addnorm_tokenizer' is the number 5, expected a text"),
        ({"n_positions": 10**12}, "context_length must be at most"),
    ],
    ids=lambda v: str(next(iter(v))) if isinstance(v, dict) else "",
)
def test_options_that_we_do_not_implement_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder, _ = gpt2_folder(tmp_path)
    with pytest.raises(WeightsError, match=message) as error:
        GPT.from_pretrained(reconfigure(folder, **changes))
    assert "config.json" in str(error.value)


def test_every_option_of_transformers_is_decided(hf: Any) -> None:
    """A new version with a new option fails here, and not in somebody's logits."""
    options = json.loads(hf.GPT2Config().to_json_string(use_diff=False))
    config = config_json.from_gpt2(options, None)
    assert config == GPT.preset("gpt2", dropout=0.1)
    decided_names = {*config_json.FIELDS, *config_json.UNTOLD, *config_json.EXACT}
    undecided = options.keys() - decided_names - config_json.BOOKKEEPING
    assert undecided == set(), "read, refuse or declare bookkeeping"


def test_the_configuration_on_the_hub() -> None:
    """As openai-community/gpt2 and distilgpt2 have it, written by transformers of 2019."""
    content = """{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256,
        "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2",
        "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
        "resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true,
        "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}},
        "_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
        "vocab_size": 50257}"""
    assert config_json.from_gpt2(json.loads(content), None) == GPT.preset("gpt2", dropout=0.1)


def test_a_missing_option(tmp_path: Path) -> None:
    folder, _ = gpt2_folder(tmp_path)
    card = json.loads((folder / "config.json").read_text())
    del card["n_layer"]
    (folder / "config.json").write_text(json.dumps(card))
    with pytest.raises(WeightsError, match=r"config.json: n_layer missing"):
        GPT.from_pretrained(folder)


def test_dropout(tmp_path: Path) -> None:
    folder, _ = gpt2_folder(tmp_path)
    assert GPT.from_pretrained(folder).config.dropout == 0.1
    assert GPT.from_pretrained(folder, dropout=0.0).config.dropout == 0.0
    reconfigure(folder, embd_pdrop=0.3)
    assert GPT.from_pretrained(folder, dropout=0.2).config.dropout == 0.2
    tiny(scheme="sandwich").save_pretrained(tmp_path / "own")
    assert GPT.from_pretrained(tmp_path / "own", dropout=0.2).config.dropout == 0.2


def test_unknown_options_that_say_nothing_pass(tmp_path: Path) -> None:
    folder, model = gpt2_folder(tmp_path)
    reconfigure(folder, alibi=False, later=None, n_ctx=37, task_specific_params={"a": {"b": 1}})
    assert GPT.from_pretrained(folder).config == model.config


# --- dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype_on_disk", [torch.float64, torch.float32, torch.float16, torch.bfloat16]
)
def test_dtypes(tmp_path: Path, dtype_on_disk: torch.dtype) -> None:
    model = tiny().to(dtype_on_disk)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype_on_disk)[6:]
    loaded, report = gpt_files.load(tmp_path)
    assert report.dtypes == [str(dtype_on_disk)[6:]]
    assert same_bits(loaded.state_dict(), model.float().state_dict())
    assert {p.dtype for p in GPT.from_pretrained(tmp_path, dtype=None).parameters()} == {
        dtype_on_disk
    }
    half = GPT.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_a_dtype_that_is_too_narrow(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model.tokens.weight[3, 4] = 1e5
    model.save_pretrained(tmp_path)
    message = (
        r"1 of 1220 values of wte.weight as torch.float16 are not finite, the first at \[3, 4\]"
    )
    with pytest.raises(WeightsError, match=message):
        GPT.from_pretrained(tmp_path, dtype=torch.float16)


# --- damage ---------------------------------------------------------------------------------------


def cut(folder: Path, by: int = 100) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-by])


def flip(folder: Path, place: int = -1000) -> None:
    """One bit: of a value it makes another finite value, of a header something unreadable."""
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(bytes(data))


def poison(state: dict[str, Tensor]) -> None:
    state["transformer.h.1.mlp.c_fc.weight"][2, 3] = float("nan")


QKV = "transformer.h.0.attn.c_attn.weight"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (cut, r"model.safetensors is truncated: [\d,]+ bytes, and [\d,]+ or more"),
    "cut in the header": (lambda f: cut(f, 49_000), "truncated: 260 bytes"),
    "a bit of the header flipped": (lambda f: flip(f, 9), "model.safetensors has a damaged header"),
    "another file": (
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 99),
        "model.safetensors does not begin as a safetensors file does",
    ),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "does not begin as"),
    "a pointer of Git LFS": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/1"),
        "is only a pointer of Git LFS: run `git lfs pull`",
    ),
    "wrong dtype": (
        lambda f: mangle(f, lambda s: {**s, QKV: s[QKV].to(torch.int32)}),
        r"model.safetensors: h.0.attn.c_attn.weight is I32: weights are float64, float32,",
    ),
    "wrong shape": (
        lambda f: mangle(f, lambda s: {**s, QKV: s[QKV][:, :-1].contiguous()}),
        r"h.0.attn.c_attn.weight has shape \(20, 59\), expected \(20, 60\)",
    ),
    "transposed, as nn.Linear stores": (
        lambda f: mangle(f, lambda s: {**s, QKV: s[QKV].T.contiguous()}),
        r"has shape \(60, 20\), expected \(20, 60\): it is stored as nn.Linear has it",
    ),
    "missing tensor": (
        lambda f: mangle(f, lambda s: {k: v for k, v in s.items() if "h.1.ln_2" not in k}),
        r"missing from model.safetensors: h.1.ln_2.weight, h.1.ln_2.bias. The file was cut",
    ),
    "extra tensor": (
        lambda f: mangle(f, lambda s: {**s, "transformer.h.0.attn.lora_A": torch.zeros(2)}),
        r"model.safetensors holds h.0.attn.lora_A, which the model of config.json has no place for",
    ),
    "wrong vocabulary": (
        lambda f: reconfigure(f, vocab_size=64),
        "wte.weight has 61 tokens, and the vocabulary of config.json is 64",
    ),
    "config of another depth": (
        lambda f: reconfigure(f, n_layer=2),
        "config.json is of a model of 2 blocks, and the weights beside it have 3",
    ),
    "config of an absurd depth": (
        lambda f: reconfigure(f, n_layer=10**8),
        "config.json is of a model of 100000000 blocks",
    ),
    "index naming a missing shard": (
        lambda f: (shard(f) / "model-00002-of-00003.safetensors").unlink(),
        r"index.json says that transformer.h.\S+ is in model-00002-of-00003.safetensors, which is",
    ),
    "index of other shards": (
        lambda f: shutil.copy(
            shard(f) / "model-00001-of-00003.safetensors", f / "model-00002-of-00003.safetensors"
        ),
        "which does not hold it: the index belongs to other files",
    ),
    "index without a map": (
        lambda f: (shard(f) / "model.safetensors.index.json").write_text("{}"),
        "index.json has no weight_map",
    ),
    "index that leaves the folder": (
        lambda f: (shard(f) / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"wte.weight": "../model.safetensors"}})
        ),
        "names '../model.safetensors', a file outside of the folder",
    ),
    "not a number": (
        lambda f: mangle(f, poison),
        r"1 of 660 values of h.1.mlp.c_fc.weight are not finite, the first at \[2, 3\]",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "has no weights .model.safetensors or .*; it holds config.json$",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json; it holds model.safe"),
    "config cut": (
        lambda f: (f / "config.json").write_text('{"model_type": "gp'),
        "config.json is not valid JSON: .* It is damaged or cut short",
    ),
    "config of another kind": (
        lambda f: (f / "config.json").write_text("[1]"),
        "config.json holds a list, expected a JSON object",
    ),
    "tokenizer of another model": (
        lambda f: (f / "vocab.json").write_text(json.dumps({"a": 0, "vocab": 61})),
        "vocab.json is the tokenizer of another model: it has 62 tokens, and the model's voc.* 61$",
    ),
    "added tokens": (
        lambda f: (f / "tokenizer.json").write_text(
            json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 61}]})
        ),
        "tokenizer.json is the tokenizer of another model: it has 62 tokens",
    ),
    "bytes, more than there are": (
        lambda f: Tokenizer.bytes().save(f),
        "addnorm_tokenizer.json is the tokenizer of another model: it has 257 tokens",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_in_a_folder_from_elsewhere(tmp_path: Path, damage: str) -> None:
    folder, _ = gpt2_folder(tmp_path / "m")
    do, message = DAMAGES[damage]
    GPT.from_pretrained(folder)
    do(folder)
    with pytest.raises(WeightsError, match=message) as error:
        GPT.from_pretrained(folder)
    assert str(folder) in str(error.value) or "model.safetensors" in str(error.value)


def test_ten_damages_have_ten_messages(tmp_path: Path) -> None:
    """Each is told by its own words and by no other's."""
    ten = """truncated;a bit of the header flipped;wrong dtype;wrong shape;missing tensor;extra
        tensor;wrong vocabulary;index naming a missing shard;config of another depth;tokenizer of
        another model"""
    names = " ".join(ten.split()).split(";")
    assert len(names) == 10
    for i, damage in enumerate(names):
        folder, _ = gpt2_folder(tmp_path / str(i))
        DAMAGES[damage][0](folder)
        with pytest.raises(WeightsError) as error:
            GPT.from_pretrained(folder)
        matches = [name for name in names if re.search(DAMAGES[name][1], str(error.value))]
        assert matches == [damage]


OWN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (cut, "model.safetensors is truncated: "),
    "a bit flipped": (flip, "model.safetensors is not what was written: its sha256 differs.*A bit"),
    "config changed": (
        lambda f: (f / "config.json").write_text(
            (f / "config.json").read_text().replace("1e-05", "2e-05")
        ),
        "config.json is not what was written.*you changed it yourself and mean it, delete addnorm_",
    ),
    "config longer": (
        lambda f: (f / "config.json").write_text((f / "config.json").read_text() + "\n"),
        "config.json is too long: ",
    ),
    "sharded since": (shard, "model.safetensors is missing, and addnorm_checksums.json says"),
    "of another depth": (
        lambda f: reconfigure(f, n_layers=4),
        "config.json is of a model of 4 blocks, and the weights beside it have 3",
    ),
    "of another vocabulary": (
        lambda f: reconfigure(f, vocab_size=70),
        "tokens.weight has 64 tokens, and the vocabulary of config.json is 70, padded to 80",
    ),
    "of another scheme": (
        lambda f: reconfigure(f, scheme="pre_norm"),
        "holds stack.subs.0.out.bias, .* and 9 more, which the model of config.json has no place",
    ),
    "of a newer addnorm": (
        lambda f: reconfigure(f, warp="tachyon"),
        "warp='tachyon' is not an option of addnorm",
    ),
    "of an older addnorm": (
        lambda f: (f / "config.json").write_text(json.dumps({"model_type": "addnorm_gpt"})),
        "config.json: vocab_size, context_length, .* missing",
    ),
    "of an unknown scheme": (
        lambda f: reconfigure(f, scheme="sandwhich"),
        "config.json: unknown scheme 'sandwhich'; did you mean sandwich",
    ),
    "quantized": (
        lambda f: reconfigure(f, quantization_config={"bits": 4}),
        "quantization_config={'bits': 4} is not implemented",
    ),
}


@pytest.mark.parametrize("damage", OWN)
def test_damage_in_a_folder_of_ours(tmp_path: Path, damage: str) -> None:
    tiny(scheme="sandwich", vocab_multiple=16).save_pretrained(tmp_path)
    do, message = OWN[damage]
    assert gpt_files.load(tmp_path)[1].verified
    do(tmp_path)
    with pytest.raises(WeightsError, match=message):
        GPT.from_pretrained(tmp_path)


def test_a_flipped_bit_in_gpt2s_format_of_ours(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    flip(tmp_path)
    with pytest.raises(WeightsError, match="A bit has flipped, or the file was changed"):
        GPT.from_pretrained(tmp_path)
    (tmp_path / folders.CHECKSUMS).unlink()  # what the message says
    GPT.from_pretrained(tmp_path)


SEALS: dict[str, tuple[str, str]] = {
    "empty": ("{}", "addnorm_checksums.json names no file: it is damaged"),
    "a number for a file": ('{"model.safetensors": 5}', "'model.safetensors' is the number 5, exp"),
    "no sha": ('{"config.json": {"bytes": 1}}', "config.json: 'sha256' is missing"),
    "a text for a size": ('{"config.json": {"bytes": "1", "sha256": ""}}', "'bytes' is the text"),
    "another folder's file": (
        '{"../config.json": {"bytes": 1, "sha256": ""}}',
        "names '../config.json', a file outside of the folder",
    ),
    "a folder": ('{"..": {"bytes": 1, "sha256": ""}}', "is not a file"),
    "a list": ("[]", "holds a list, expected a JSON object"),
}


@pytest.mark.parametrize("seal", SEALS)
def test_damaged_checksums(tmp_path: Path, seal: str) -> None:
    tiny().save_pretrained(tmp_path)
    content, message = SEALS[seal]
    (tmp_path / folders.CHECKSUMS).write_text(content)
    with pytest.raises(WeightsError, match=message):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "addnorm_tokenizer.json"])
def test_what_the_checksums_do_not_name_is_not_verified(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny(vocab_size=257)
    model.save_pretrained(tmp_path, tokenizer=Tokenizer.bytes())
    seal = json.loads((tmp_path / folders.CHECKSUMS).read_text())
    del seal[name]
    (tmp_path / folders.CHECKSUMS).write_text(json.dumps(seal))
    report = gpt_files.load(tmp_path)[1]
    assert not report.verified
    assert report.unsealed == [name]
    assert f"checksums agree, but not of {name}" in str(report)
    warned = f"says nothing about {name}" in caplog.text
    assert warned == (name != "addnorm_tokenizer.json"), "a tokenizer may be put there later"


def test_check_is_load_without_a_model(tmp_path: Path) -> None:
    folder, _ = gpt2_folder(tmp_path)
    assert gpt_files.check(folder).format == "gpt2"
    mangle(folder, poison)
    with pytest.raises(WeightsError, match="not finite"):
        gpt_files.check(folder)


# --- finding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./here", "../x", "a/b/c", ".hidden"])
def test_no_such_folder(name: str) -> None:
    with pytest.raises(WeightsError, match="there is no folder"):
        GPT.from_pretrained(name)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    gpt2_folder(tmp_path)
    with pytest.raises(WeightsError, match="is a file: give the folder that it is in"):
        GPT.from_pretrained(tmp_path / "model.safetensors")


def test_a_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for: safetensors, and pickles only where there are none."""
    folder, model = gpt2_folder(tmp_path)
    calls: list[list[str]] = []

    def download(repo: str, allow_patterns: list[str]) -> str:
        assert repo == "somebody/gpt2"
        calls.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert same_bits(GPT.from_pretrained("somebody/gpt2").state_dict(), model.state_dict())
    assert len(calls) == 1
    assert not any(".bin" in pattern for pattern in calls[0])
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="no weights"):
        GPT.from_pretrained("somebody/gpt2")
    assert "pytorch_model*.bin" in calls[-1]


def test_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = (
        r"there is no folder 'openai-community/gpt2' here, and it could not be downloaded from "
        r"the Hugging Face hub \(\w+: .*"
        r"Without a network, download config.json and model.safetensors elsewhere"
    )
    with pytest.raises(WeightsError, match=f"(?s){message}"):
        GPT.from_pretrained("openai-community/gpt2")


def test_nothing_but_hf_imports_transformers() -> None:
    for path in Path(addnorm.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            rooms = {name.split(".")[0] for name in names}
            assert path.name == "hf.py" or not rooms & {"transformers", "peft"}, path


# --- writing --------------------------------------------------------------------------------------

EXPRESSIBLE: list[dict[str, Any]] = [
    {},
    {"activation": "relu"},
    {"activation": "silu"},
    {"eps": 1e-3},
    {"n_kv_heads": 5},
    {"vocab_multiple": 64},
    {"hidden": None, "dropout": 0.0},
    {"scheme": " pre_norm "},
]
INEXPRESSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"scheme": "sandwich"}, "scheme is 'sandwich', GPT-2's 'pre_norm'"),
    ({"norm": "rms"}, "norm is 'rms', GPT-2's 'layer'"),
    ({"norm": "layer_no_bias"}, "norm is 'layer_no_bias'"),
    ({"position": "rope", "dim": 30}, "position is 'rope', GPT-2's 'learned'"),
    ({"qk_norm": "rms"}, "qk_norm is 'rms', GPT-2's None"),
    ({"window": 9}, "window is 9"),
    ({"attention_softcap": 3.0}, "attention_softcap is 3.0"),
    ({"softcap": 3.0}, "softcap is 3.0"),
    ({"mlp": "gated"}, "mlp is 'gated'"),
    ({"bias": False}, "bias is False"),
    ({"tied": False}, "tied is False"),
    ({"n_kv_heads": 1}, "n_kv_heads is 1, GPT-2's as many as n_heads, 5"),
    ({"activation": "relu2"}, "activation is 'relu2', GPT-2's one of"),
]


@pytest.mark.parametrize("changes", EXPRESSIBLE, ids=str)
def test_gpt2s_format_where_it_can(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = tiny(**changes)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gpt2"
    loaded = GPT.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids()), model(ids()))
    plain = {"vocab_multiple": 1, "n_kv_heads": None, "scheme": "pre_norm"}
    assert loaded.config == dataclasses.replace(model.config, **plain)
    assert loaded.tokens.weight.shape == (61, 20)


@pytest.mark.parametrize(("changes", "reason"), INEXPRESSIBLE, ids=str)
def test_our_format_where_gpt2s_cannot(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    model = tiny(**changes)
    with pytest.raises(WeightsError, match=f"cannot say what this model is: {reason}"):
        model.save_pretrained(tmp_path / "m", format="gpt2")
    assert not list(tmp_path.iterdir())
    model.save_pretrained(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model_type"] == "addnorm_gpt"
    loaded = GPT.from_pretrained(tmp_path / "m")
    assert same_bits(loaded.state_dict(), model.state_dict())
    assert loaded.config == model.config


def test_every_reason_is_said(tmp_path: Path) -> None:
    model = tiny(scheme="ngpt", tied=False, bias=False)
    with pytest.raises(WeightsError, match=r"'ngpt', .*; bias is False, .*; tied is False, "):
        model.save_pretrained(tmp_path, format="gpt2")
    with pytest.raises(WeightsError, match="format is 'gpt2', 'addnorm' or None, got 'hf'"):
        model.save_pretrained(tmp_path, format="hf")


OPTIONS: list[dict[str, Any]] = [
    *({"scheme": name} for name in schemes.names()),
    *({"norm": name} for name in NORMS),
    *({"position": name, "dim": 40} for name in POSITIONS),
    *({"mlp": name} for name in MLPS),
    *({"activation": name} for name in ACTIVATIONS),
    {"tied": False, "vocab_multiple": 16},
    {"qk_norm": "scale", "bias": False},
    {"scheme": "drop_path(parallel(pre_norm), 0.1)"},
]


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_our_format_there_and_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = tiny(**changes)
    model.save_pretrained(tmp_path, format="addnorm")
    loaded = GPT.from_pretrained(tmp_path)
    assert same_bits(loaded.state_dict(), model.state_dict())
    assert loaded.config == model.config
    assert torch.equal(loaded(ids()), model(ids()))
    assert all(p.requires_grad and not p.is_meta for p in loaded.parameters())
    loaded.train()(ids()).sum().backward()  # nothing is left of the meta device


def test_loading_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    before = torch.get_rng_state()
    GPT.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_model_does_not_depend_on_the_file(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    loaded = GPT.from_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as opened:  # in place, as some tools write
        opened.write(b"\0" * file.stat().st_size)
    assert same_bits(loaded.state_dict(), model.state_dict())


def test_what_is_not_finite_is_not_written(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model.stack.subs[2].branch.k.bias[3] = float("inf")
    with pytest.raises(
        WeightsError, match=r"h.1.attn.c_attn.bias are not finite, the first at .23"
    ):
        model.save_pretrained(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_changed_model_is_not_written(tmp_path: Path) -> None:
    model = tiny()
    model.stack.subs[0].branch.q = torch.nn.Sequential(model.stack.subs[0].branch.q)
    with pytest.raises(
        WeightsError, match=r"subs.0.branch.q.0.bias, .* are not what its config says"
    ):
        model.save_pretrained(tmp_path / "m")


def test_a_compiled_or_wrapped_model_is_written_under_its_own_names(tmp_path: Path) -> None:
    model = tiny()
    want = {name: t.clone() for name, t in model.state_dict().items()}
    compiled = torch.nn.Module()
    compiled._orig_mod = model.stack.subs[0]
    model.stack.subs[0] = compiled
    model.save_pretrained(tmp_path / "m")
    assert same_bits(GPT.from_pretrained(tmp_path / "m").state_dict(), want)


def test_two_tensors_of_a_model_do_not_fall_on_one_name(tmp_path: Path) -> None:
    """The second would take the place of the first without a word."""
    model = tiny()
    model.module = tiny()
    with pytest.raises(WeightsError, match=r"tokens.weight and module.tokens.weight .* both be to"):
        model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_new_folder_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(gpt_files, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        tiny().save_pretrained(tmp_path / "a" / "b")
    assert not list((tmp_path / "a").iterdir())


def test_files_are_on_the_disk_before_they_have_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: list[str]
) -> None:
    def noting(do: Callable[[Path, Path], Path]) -> Any:
        def noted(file: Path, to: Path) -> None:
            quick.append("RENAME")
            do(file, to)

        return noted

    monkeypatch.setattr(Path, "rename", noting(Path.rename))
    monkeypatch.setattr(Path, "replace", noting(Path.replace))
    tiny().save_pretrained(tmp_path / "m")
    at = quick.index("RENAME")
    assert sorted(quick[:3]) == ["addnorm_checksums.json", "config.json", "model.safetensors"]
    assert quick[at:] == ["RENAME", tmp_path.name]
    quick.clear()
    tiny().save_pretrained(tmp_path / "m")
    assert sorted(quick[:3]) == ["addnorm_checksums.json", "config.json", "model.safetensors"]
    assert quick[-4:] == ["RENAME", "RENAME", "RENAME", "m"]


def test_down_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real one
    synced_files: list[int] = []
    monkeypatch.setattr("os.fsync", synced_files.append)
    tiny().save_pretrained(tmp_path / "m")
    assert len(synced_files) == 5  # three files, the folder, and the one it is in


def test_an_existing_folder_keeps_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tiny()
    old.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "notes.txt").write_text("mine")
    new = stir(tiny())
    with monkeypatch.context() as patched:
        patched.setattr(gpt_files, "save_file", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            new.save_pretrained(tmp_path / "m")
    assert same_bits(GPT.from_pretrained(tmp_path / "m").state_dict(), old.state_dict())
    new.save_pretrained(tmp_path / "m")
    assert same_bits(GPT.from_pretrained(tmp_path / "m").state_dict(), new.state_dict())
    assert (tmp_path / "m" / "notes.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_fall_between_two_files_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny().save_pretrained(tmp_path / "m")
    new, replace, names = stir(tiny()), Path.replace, []

    def falls(file: Path, to: Path) -> Path:
        if file.name == folders.CHECKSUMS:
            raise KeyboardInterrupt
        names.append(to.name)
        return replace(file, to)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", falls)
        with pytest.raises(KeyboardInterrupt):
            new.save_pretrained(tmp_path / "m")
    assert sorted(names) == ["config.json", "model.safetensors"]
    with pytest.raises(WeightsError, match="is not what was written"):
        GPT.from_pretrained(tmp_path / "m")


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("")
    with pytest.raises(WeightsError, match="is a file: give a folder"):
        tiny().save_pretrained(tmp_path / "m")


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    """safetensors makes its files for their owner alone, umask or not."""
    tiny().save_pretrained(tmp_path / "m")
    modes = {file.stat().st_mode for file in (tmp_path / "m").iterdir()}
    assert len(modes) == 1


# --- the tokenizer beside the weights -------------------------------------------------------------


def test_a_tokenizer_is_saved_with_the_model(tmp_path: Path) -> None:
    letters = Tokenizer.characters("to be or not")
    model = tiny()
    model.save_pretrained(tmp_path, tokenizer=letters)
    assert Tokenizer.from_pretrained(tmp_path).identity == letters.identity
    loaded = GPT.from_pretrained(tmp_path)
    assert loaded.tokenizer_identity == model.tokenizer_identity == letters.identity
    assert set(json.loads((tmp_path / folders.CHECKSUMS).read_text())) == {
        "config.json",
        "model.safetensors",
        "characters.json",
        "addnorm_tokenizer.json",
    }
    loaded.save_pretrained(tmp_path / "again")  # the bond outlives a copy without the tokenizer
    assert GPT.from_pretrained(tmp_path / "again").tokenizer_identity == letters.identity


def test_a_tokenizer_of_the_same_size_but_another(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "a", tokenizer=Tokenizer.characters("to be or not"))
    tiny().save_pretrained(tmp_path / "b", tokenizer=Tokenizer.characters("to be xr nwt"))
    for name in ("characters.json", "addnorm_tokenizer.json"):
        shutil.copy(tmp_path / "b" / name, tmp_path / "a" / name)
    with pytest.raises(WeightsError, match="json is not what was written"):
        GPT.from_pretrained(tmp_path / "a")
    (tmp_path / "a" / folders.CHECKSUMS).unlink()
    with pytest.raises(
        WeightsError, match=r"tokenizer of another model: its identity is .* saved wi"
    ):
        GPT.from_pretrained(tmp_path / "a")


def test_a_tokenizer_that_is_too_large_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="has 257 tokens, and the model's vocabulary is 61"):
        tiny().save_pretrained(tmp_path / "m", tokenizer=Tokenizer.bytes())
    assert not list(tmp_path.iterdir())


def test_a_second_tokenizer_beside_the_first(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"holds another tokenizer's tokenizer.json: delete it"):
        tiny().save_pretrained(tmp_path, tokenizer=Tokenizer.characters("abc"))
    assert not (tmp_path / "characters.json").exists()


@pytest.mark.parametrize("format", ["gpt2", "addnorm"])
def test_the_end_of_a_text_is_told(tmp_path: Path, format: str) -> None:
    def eos(folder: Path, tokenizer: Tokenizer | None = None, vocab_size: int = 300) -> Any:
        tiny(vocab_size=vocab_size).save_pretrained(folder, format=format, tokenizer=tokenizer)
        return json.loads((folder / "config.json").read_text())["eos_token_id"]

    assert eos(tmp_path / "a", Tokenizer.bytes()) == 256
    assert eos(tmp_path / "b") is None
    assert eos(tmp_path / "c", vocab_size=50257) == 50256
    GPT.from_pretrained(tmp_path / "a")
