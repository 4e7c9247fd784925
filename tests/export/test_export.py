"""addnorm export: every format read by another program, damage noticed, refusals by name."""

import copy
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from addnorm import schemes
from addnorm.cli import main
from addnorm.data.tokenizer import Tokenizer
from addnorm.export import (
    CheckFailed,
    ExportError,
    check,
    gguf_file,
    onnx_file,
    to_gguf,
    to_hf,
    to_onnx,
)
from addnorm.export.onnx_check import compare
from addnorm.export.onnx_graph import Graph
from addnorm.files import folders
from addnorm.files import gpt as gpt_files
from addnorm.files.gpt import WeightsError
from addnorm.models.gpt import GPT
from addnorm.models.gpt_config import NORMS, POSITIONS, GPTConfig
from tests.nets import stir
from tests.whole.test_docs import ROOT

WHY = "pip install 'addnorm[export,hf]'"
CONTEXT = 20


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def transformers() -> Any:
    pytest.importorskip("accelerate", reason=WHY)
    return pytest.importorskip("transformers", reason=WHY)


@pytest.fixture
def gguf() -> Any:
    return pytest.importorskip("gguf", reason=WHY)


@pytest.fixture(scope="module")
def ort() -> Any:
    pytest.importorskip("onnx", reason=WHY)
    pytest.importorskip("onnxscript", reason=WHY)
    return pytest.importorskip("onnxruntime", reason=WHY)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train("the quick brown fox didn't jump over 1234 lazy dogs, the fox " * 3, 280)


def gpt(seed: int = 0, **changes: Any) -> GPT:
    """Odd in every size, and away from its init: a norm's 1 and a bias's 0 hide bugs."""
    small = GPTConfig(
        vocab_size=283, context_length=CONTEXT, dim=12, n_layers=2, n_heads=3, hidden=20
    )
    torch.manual_seed(seed)
    return stir(GPT(dataclasses.replace(small, **changes)), seed).eval()


def ids(batch: int, length: int, size: int = 283) -> Tensor:
    return torch.randint(size, (batch, length), generator=torch.Generator().manual_seed(5))


def close(actual: Tensor, want: Tensor, tolerance: float = 1e-5) -> None:
    """Two programs in float32: some 1e3 roundings of 6e-8, relative to the largest logit."""
    assert actual.shape == want.shape
    assert (actual - want).abs().max() <= tolerance * max(1.0, want.abs().max())


def nothing_in(folder: Path) -> bool:
    return not folder.exists() or not list(folder.iterdir())


def rolled(t: Tensor) -> Tensor:
    """The same shape, and the rows one further."""
    return torch.roll(t, 1, 0)


# --- the comparison -------------------------------------------------------------------------------


def test_a_comparison_takes_no_nan_no_other_shape_and_nothing_too_far() -> None:
    want = torch.tensor([[2.0, -200.0]])
    comparison = check.Comparison("somebody", 1e-3)
    comparison.add("a", want + 0.19, want)  # 0.19 of 200 is within a thousandth
    with pytest.raises(CheckFailed, match=r"somebody, b: .* differ by 1\.1e-03 \(allowed 1e-03"):
        comparison.add("b", want + 0.22, want)
    with pytest.raises(CheckFailed, match="differ by nan"):
        comparison.add("c", want * float("nan"), want)
    with pytest.raises(CheckFailed, match=r"shape \(1, 1\) instead of \(1, 2\)"):
        comparison.add("d", want[:, :1], want)
    with pytest.raises(CheckFailed):  # below 1 it is the difference itself
        comparison.add("e", torch.tensor([1.1e-3]), torch.tensor([0.0]))
    result = comparison.result()
    assert result.inputs == "a"
    assert result.difference == pytest.approx(0.19 / 200, rel=1e-4)


def test_all_positions_and_both_ends_of_the_vocabulary_are_compared() -> None:
    model = gpt()
    assert check.shapes(model) == [(1, 1), (3, 1), (1, 7), (3, 7), (1, CONTEXT)]
    assert check.shapes(gpt(context_length=1)) == [(1, 1), (3, 1)]
    endless = gpt(position="rope", dim=24, context_length=100_000)
    assert check.shapes(endless)[-1] == (1, check.LONGEST)
    for batch, length in check.shapes(model)[1:]:
        ids = check.draw(model, batch, length)
        assert ids.shape == (batch, length)
        assert ids.min() == 0
        assert ids.max() == 282


def test_what_is_not_finite_is_not_exported(tmp_path: Path) -> None:
    model = gpt()
    with torch.no_grad():
        model.positions.weight[3, 4] = float("nan")
    with pytest.raises(ExportError, match=r"positions\.weight of the model holds values that"):
        to_hf(model, tmp_path / "a")
    assert nothing_in(tmp_path)


# --- hf -------------------------------------------------------------------------------------------


def test_a_folder_that_transformers_loads(
    transformers: Any, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    model = gpt(vocab_multiple=64, eps=1e-3)
    messages: list[str] = []
    result = to_hf(model, tmp_path / "deep" / "a", tokenizer=tokenizer, tell=messages.append)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(result.path)
    assert type(theirs) is transformers.GPT2LMHeadModel
    x = ids(2, CONTEXT)
    close(theirs(x).logits, model(x))
    text = "the fox, didn't"
    assert transformers.AutoTokenizer.from_pretrained(result.path).encode(text) == tokenizer.encode(
        text
    )
    assert result.check is not None
    assert result.check.by == f"transformers {transformers.__version__}"
    assert result.check.inputs.endswith("1 x 20, 3 texts")
    assert 0 < result.check.difference < 1e-6
    assert result.files["model.safetensors"] == (result.path / "model.safetensors").stat().st_size
    assert messages[0] == "writing the weights"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a"]  # what it was made in is gone
    assert folders.verify(result.path)


@pytest.mark.parametrize("scheme", ["ngpt", "hyper_connections", "residual_dual"])
def test_a_folder_of_any_design(transformers: Any, tmp_path: Path, scheme: str) -> None:
    model = gpt(scheme=scheme, position="alibi", tied=False, vocab_multiple=64)
    result = to_hf(model, tmp_path / "a", dtype=torch.bfloat16)
    assert "import addnorm.hf first" in result.what
    again = GPT.from_pretrained(tmp_path / "a", dtype=None)
    assert again.tokens.weight.dtype == torch.bfloat16
    assert model.tokens.weight.dtype == torch.float32  # the caller's is as it was
    x = ids(2, 9)
    with torch.no_grad():
        want = copy.deepcopy(model).to(torch.bfloat16).float()(x)
    close(again.float()(x), want)


@pytest.mark.parametrize("theirs", ["config.json", "tokenizer.json", "addnorm_checksums.json"])
def test_somebody_elses_folder_is_left_as_it_is(
    transformers: Any, tmp_path: Path, tokenizer: Tokenizer, theirs: str
) -> None:
    """An export replaces an export, and nothing else; files of other names may be beside it."""
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / theirs).write_text("[]")
    with pytest.raises(ExportError, match=rf"holds {theirs} that addnorm did not write"):
        to_hf(gpt(), tmp_path, tokenizer=tokenizer)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "README.md": "mine",
        theirs: "[]",
    }
    (tmp_path / theirs).unlink()
    to_hf(gpt(), tmp_path, tokenizer=tokenizer)
    again = gpt(seed=1)
    to_hf(again, tmp_path, tokenizer=tokenizer)
    close(GPT.from_pretrained(tmp_path)(ids(1, 5)), again(ids(1, 5)), 0)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize("suffix", [".onnx", ".gguf"])
def test_a_file_of_another_kind_is_not_replaced(tmp_path: Path, suffix: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", "gguf"):
        pytest.importorskip(package, reason=WHY)
    begins = {".onnx": onnx_file.BEGINS, ".gguf": b"GGUF"}[suffix]
    export = {".onnx": to_onnx, ".gguf": partial(to_gguf, tokenizer=None)}[suffix]
    thesis, temporary, earlier = (tmp_path / name for name in ("thesis.tex", "tmp", "earlier"))
    thesis.write_text("\\documentclass{book}")
    temporary.touch()  # as mktemp leaves it
    earlier.write_bytes(begins + b"...")
    for path in (temporary, earlier, tmp_path / "new"):
        assert check.file_path(path, suffix, begins) == path
    with pytest.raises(ExportError, match=rf"exists and is not a {suffix} file.*/thesis{suffix}"):
        export(gpt(), thesis)
    assert thesis.read_text() == "\\documentclass{book}"


def test_weights_beside_a_graph_that_is_not_there_are_somebody_elses(
    ort: Any, tmp_path: Path
) -> None:
    (tmp_path / "a.onnx.data").write_text("mine")
    with pytest.raises(ExportError, match=r"a\.onnx\.data is there already, without a graph"):
        to_onnx(gpt(n_layers=1), tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx.data").read_text() == "mine"


def test_a_format_that_was_insisted_on(transformers: Any, tmp_path: Path) -> None:
    to_hf(gpt(), tmp_path / "ours", format="addnorm")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["scheme"] == "pre_norm"
    with pytest.raises(ExportError, match=r"cannot say .*: scheme is 'deepnorm', GPT-2's"):
        to_hf(gpt(scheme="deepnorm"), tmp_path / "theirs", format="gpt2")
    assert not (tmp_path / "theirs").exists()


def test_a_folder_without_transformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "addnorm.hf", raising=False)
    monkeypatch.delattr("addnorm.hf", raising=False)
    result = to_hf(gpt(), tmp_path / "a")
    assert result.check is not None
    assert result.check.by == "addnorm"
    (remark,) = result.remarks
    assert remark.startswith("NOT CHECKED with transformers, only read back by addnorm itself: ")
    assert "pip install 'addnorm[hf]'" in remark


def wrong_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """c_proj of the attention is square: written as nn.Linear has it, it has the right shape."""
    right = gpt_files.as_gpt2

    def turned(config: GPTConfig, ours: Any) -> dict[str, Tensor]:
        state = right(config, ours)
        name = "transformer.h.1.attn.c_proj.weight"
        return {**state, name: state[name].T}

    monkeypatch.setattr(gpt_files, "as_gpt2", turned)


def test_a_folder_that_is_wrong_is_thrown_away(
    monkeypatch: pytest.MonkeyPatch, transformers: Any, tmp_path: Path
) -> None:
    to_hf(gpt(seed=1), tmp_path / "a")
    before = (tmp_path / "a" / "model.safetensors").read_bytes()
    wrong_folder(monkeypatch)
    for name in ("a", "b"):
        with pytest.raises(CheckFailed, match=r"transformers .*: logits differ by"):
            to_hf(gpt(), tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == before
    assert folders.verify(tmp_path / "a")


def test_a_folder_that_transformers_cannot_load(
    monkeypatch: pytest.MonkeyPatch, transformers: Any, tmp_path: Path
) -> None:
    right = gpt_files.as_gpt2

    def short(config: GPTConfig, ours: Any) -> dict[str, Tensor]:
        state = right(config, ours)
        del state["transformer.h.1.ln_2.bias"]  # transformers would make one up
        return state

    monkeypatch.setattr(gpt_files, "as_gpt2", short)
    with pytest.raises(CheckFailed, match=r"cannot load the folder: .*missing_keys.*ln_2\.bias"):
        to_hf(gpt(), tmp_path / "a")
    assert nothing_in(tmp_path)


# --- gguf -----------------------------------------------------------------------------------------


def fields(gguf: Any, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What llama.cpp would find: values by key, tensors by name."""
    read = gguf.GGUFReader(path)
    values = {key: field.contents() for key, field in read.fields.items()}
    return values, {t.name: t for t in read.tensors}


def test_a_gguf_file_holds_what_llama_cpp_asks_for(
    transformers: Any, gguf: Any, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    model = gpt(eps=1e-3, vocab_multiple=64)
    result = to_gguf(model, tmp_path / "tiny.gguf", tokenizer=tokenizer)
    assert result.check is not None
    assert result.check.difference < 1e-6
    values, tensors = fields(gguf, result.path)
    wants = {
        "general.architecture": "gpt2",
        "general.name": "tiny",
        "general.file_type": 0,
        "gpt2.context_length": CONTEXT,
        "gpt2.embedding_length": 12,
        "gpt2.feed_forward_length": 20,
        "gpt2.block_count": 2,
        "gpt2.attention.head_count": 3,
        "gpt2.attention.layer_norm_epsilon": np.float32(1e-3),
        "gpt2.vocab_size": 283,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": tokenizer.eos_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {key: values[key] for key in wants} == wants
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == 283
    assert tokens[tokenizer.eos_id] == "<|endoftext|>"
    assert types[tokenizer.eos_id] == gguf.TokenType.CONTROL
    assert tokens[280:] == ["[PAD280]", "[PAD281]", "[PAD282]"]
    assert set(types[280:]) == {gguf.TokenType.UNUSED}
    assert set(types[: tokenizer.eos_id]) == {gguf.TokenType.NORMAL}

    # GGUF names sizes from the inside: {in, out} in llama.cpp is (out, in) here.
    assert list(tensors["blk.1.attn_qkv.weight"].shape) == [12, 36]
    assert list(tensors["blk.1.ffn_up.weight"].shape) == [12, 20]
    assert list(tensors["blk.1.ffn_down.weight"].shape) == [20, 12]
    assert list(tensors["token_embd.weight"].shape) == [12, 283]  # without what pads it
    assert list(tensors["position_embd.weight"].shape) == [12, CONTEXT]
    assert len(tensors) == 4 + 2 * 12  # the head is the embedding, once
    up = model.stack.sublayers()[3].branch.up.weight.detach().numpy()
    assert np.array_equal(tensors["blk.1.ffn_up.weight"].data, up)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_gguf_dtypes(
    transformers: Any,
    gguf: Any,
    tmp_path: Path,
    tokenizer: Tokenizer,
    dtype: Any,
    with_tokenizer: bool,
) -> None:
    model = gpt(hidden=None, context_length=31)
    tokenizer_or_none = tokenizer if with_tokenizer else None
    result = to_gguf(model, tmp_path / "a.gguf", tokenizer=tokenizer_or_none, dtype=dtype)
    values, tensors = fields(gguf, result.path)
    assert values["tokenizer.ggml.model"] == ("gpt2" if with_tokenizer else "none")
    assert values["gpt2.vocab_size"] == 283
    kinds = {t.tensor_type.name for t in tensors.values()}
    assert kinds == {"F32", dtype.upper()}
    assert tensors["position_embd.weight"].tensor_type.name == "F32"
    assert tensors["token_embd.weight"].tensor_type.name == dtype.upper()

    # The file's matrices are rounded once: with the same rounding the logits are the same.
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in rounded.named_parameters():
            if p.dim() == 2 and name != "positions.weight":
                p.copy_(p.to(check.EXPORT_DTYPES[dtype]))
    from addnorm import hf

    theirs = hf.reader(tmp_path, "a.gguf", vocab_size=None if with_tokenizer else 283)
    x = ids(2, 31)
    close(theirs(x), rounded(x))
    assert (theirs(x) - model(x)).abs().max() > 1e-4
    (remark,) = result.remarks
    assert remark.startswith(f"rounding the matrices to {dtype} moved the logits by ")


def change(monkeypatch: pytest.MonkeyPatch, name: str, how: Callable[[Tensor], Tensor]) -> None:
    """One tensor of the GGUF file is written otherwise."""
    right = gguf_file._tensors
    wrong = lambda model: [(n, how(t) if n == name else t) for n, t in right(model)]  # noqa: E731
    monkeypatch.setattr(gguf_file, "_tensors", wrong)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("blk.1.attn_output.weight", lambda t: t.T),  # square: the shape is right
        ("blk.0.ffn_up.weight", lambda t: t.T),
        ("blk.1.attn_qkv.weight", lambda t: t.view(3, 3, 4, 12).transpose(0, 1).reshape(36, 12)),
        ("blk.0.attn_qkv.bias", rolled),
        ("position_embd.weight", lambda t: torch.cat([t[:-2], t[-2:].flip(0)])),
        ("token_embd.weight", rolled),
        ("output_norm.weight", lambda t: t + 1),
    ],
)
def test_a_gguf_file_that_is_wrong_is_thrown_away(
    monkeypatch: pytest.MonkeyPatch,
    transformers: Any,
    gguf: Any,
    tmp_path: Path,
    name: str,
    how: Any,
) -> None:
    change(monkeypatch, name, how)
    with pytest.raises(CheckFailed):
        to_gguf(gpt(), tmp_path / "a.gguf", tokenizer=None)
    assert nothing_in(tmp_path)


def test_a_wrong_eps_or_tokenizer_in_a_gguf_file_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
    transformers: Any,
    gguf: Any,
    tmp_path: Path,
    tokenizer: Tokenizer,
) -> None:
    right = gguf.GGUFWriter.add_layer_norm_eps
    with monkeypatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_layer_norm_eps", lambda w, eps: right(w, 10 * eps))
        with pytest.raises(CheckFailed, match="logits differ"):
            to_gguf(gpt(eps=1e-3), tmp_path / "a.gguf", tokenizer=tokenizer)
    merges = gguf.GGUFWriter.add_token_merges
    with monkeypatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_token_merges", lambda w, m: merges(w, m[:9]))
        with pytest.raises(CheckFailed, match=r"the tokenizer splits \"The quick"):
            to_gguf(gpt(), tmp_path / "a.gguf", tokenizer=tokenizer)
    assert nothing_in(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"scheme": "post_norm"}, "scheme is 'post_norm', GPT-2's 'pre_norm'"),
        ({"position": "alibi", "tied": False}, "position is 'alibi', .*; tied is False"),
        ({"activation": "relu"}, "activation is 'relu', llama.cpp's 'gelu_tanh'"),
        ({"activation": "gelu"}, "activation is 'gelu', llama.cpp's 'gelu_tanh'"),
        ({"activation": "relu2"}, "activation is 'relu2', GPT-2's one of"),
        ({"norm": "rms"}, "norm is 'rms', GPT-2's 'layer'"),
    ],
)
def test_what_gguf_cannot_be(
    gguf: Any, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ExportError, match=f"llama.cpp's gpt2 cannot be this model: .*{reason}"):
        to_gguf(gpt(**changes), tmp_path / "a.gguf", tokenizer=None)
    assert nothing_in(tmp_path)


def test_numbers_that_f16_cannot_hold(gguf: Any, tmp_path: Path) -> None:
    model = gpt()
    with torch.no_grad():
        model.tokens.weight[7, 3] = 70_000.0
    with pytest.raises(ExportError, match=r"tokens\.weight has values that .*float16 cannot hold"):
        to_gguf(model, tmp_path / "a.gguf", tokenizer=None, dtype="f16")


def changed(tokenizer: Tokenizer, folder: Path, change: Callable[[Any], None]) -> Tokenizer:
    """The same with something else in its tokenizer.json."""
    tokenizer.save(folder)
    (folder / "addnorm_tokenizer.json").unlink()
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").unlink()
    return Tokenizer.from_pretrained(folder)


def other_words(content: dict[str, Any]) -> None:
    byte_level = {**content["pre_tokenizer"], "use_regex": False}
    digits = {"type": "Digits", "individual_digits": True}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, byte_level]}


def no_end(content: dict[str, Any]) -> None:
    content["added_tokens"][0]["content"] = "<end>"
    content["model"]["vocab"]["<end>"] = content["model"]["vocab"].pop("<|endoftext|>", 279)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t, f: Tokenizer.bytes(), "no tokenizer of kind 'bytes': .*--no-tokenizer"),
        (lambda t, f: Tokenizer.characters("abc"), "no tokenizer of kind 'characters'"),
        (lambda t, f: Tokenizer.train("a b c " * 9 + "xyz" * 50, 999), "tokens, and the model's"),
        (lambda t, f: changed(t, f, other_words), "splits texts in its own way .*Digits"),
        (lambda t, f: changed(t, f, no_end), "would take id 11 for one: name eos_token"),
        (
            lambda t, f: changed(t, f, lambda content: content.update(normalizer={"type": "NFC"})),
            r"its own way \(a normalizer\)",
        ),
    ],
    ids=["bytes", "characters", "larger", "words", "no end", "normalizer"],
)
def test_tokenizers_that_llama_cpp_has_not(
    gguf: Any, tmp_path: Path, tokenizer: Tokenizer, make: Any, message: str
) -> None:
    model = gpt(vocab_size=257 if "tokens, and" in message else 283)
    with pytest.raises(ExportError, match=f"(?s){message}"):
        to_gguf(model, tmp_path / "a.gguf", tokenizer=make(tokenizer, tmp_path / "tokenizer"))
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize("lacking", ["transformers", "accelerate"])
def test_a_gguf_file_that_nobody_can_check(
    monkeypatch: pytest.MonkeyPatch, gguf: Any, tmp_path: Path, lacking: str
) -> None:
    if lacking == "accelerate":
        pytest.importorskip("transformers", reason=WHY)
    monkeypatch.setitem(sys.modules, lacking, None)
    if lacking == "transformers":
        monkeypatch.delitem(sys.modules, "addnorm.hf", raising=False)
        monkeypatch.delattr("addnorm.hf", raising=False)
    result = to_gguf(gpt(), tmp_path / "a.gguf", tokenizer=None)
    assert result.check is None
    (remark,) = result.remarks
    assert remark.startswith("NOT CHECKED: ")
    assert "pip install 'addnorm[export,hf]'" in remark
    assert result.path.stat().st_size > 10_000


# --- onnx -----------------------------------------------------------------------------------------

PLAIN: dict[str, Any] = {"n_layers": 1, "tied": False, "vocab_multiple": 64}
CACHED: dict[str, Any] = {"n_layers": 1, "scheme": "residual_dual", "window": 9, "n_kv_heads": 1}


class Exported:
    """A model, what the exporter made of it, and a session of it."""

    def __init__(self, ort: Any, folder: Path, model: GPT, **options: bool) -> None:
        self.model, self.options, self.path = model, options, folder / "model.onnx"
        programs = []
        right = onnx_file._exported

        def noting(graph: Graph) -> Any:
            programs.append(right(graph))
            return programs[0]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(onnx_file, "_exported", noting)
            self.result = to_onnx(model, self.path, **options)
        self.program = programs[0]
        self.session = ort.InferenceSession(str(self.path), providers=["CPUExecutionProvider"])

    def run(self, **feed: Any) -> list[Tensor]:
        outputs = self.session.run(None, {name: np.asarray(value) for name, value in feed.items()})
        return [torch.from_numpy(t) for t in outputs]

    def again(self, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any], None]) -> None:
        """From now on an export takes what was made here, spoiled; tracing again takes seconds."""
        program = copy.copy(self.program)
        program.model = self.program.model.clone()
        spoil(program)
        monkeypatch.setattr(onnx_file, "_exported", lambda graph: program)


@pytest.fixture(scope="module")
def plain(ort: Any, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One token is of another order than the others, as happens in trained models."""
    model = gpt(**PLAIN)
    with torch.no_grad():
        model.tokens.weight[3] *= 1e25
    return Exported(ort, tmp_path_factory.mktemp("plain"), model)


@pytest.fixture(scope="module")
def cached(ort: Any, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("cached")
    return Exported(ort, folder, gpt(**CACHED), with_cache=True, with_valid=True)


def test_a_graph_takes_any_batch_and_any_length(plain: Exported) -> None:
    assert [i.name for i in plain.session.get_inputs()] == ["ids"]
    assert plain.session.get_inputs()[0].shape == ["batch", "length"]
    assert plain.session.get_outputs()[0].shape == ["batch", "length", 283]
    for batch, length in [(1, 1), (3, 1), (1, 7), (3, 7), (1, CONTEXT), (5, 11)]:
        x = ids(batch, length)
        x[x == 3] = 4
        (actual,) = plain.run(ids=x)
        close(actual, plain.model(x))
    assert plain.result.check is not None
    assert plain.result.check.difference < 1e-5
    assert [p.name for p in plain.path.parent.iterdir()] == ["model.onnx"]


def test_a_graph_holds_huge_rows(plain: Exported) -> None:
    """Their squares overflow float32: the norm divides by a power of two first, as in the model."""
    x = torch.tensor([[3, 5, 3], [7, 3, 1]])
    (actual,) = plain.run(ids=x)
    want = plain.model(x)
    assert want[0, 0].abs().max() > 0.1  # with overflow it would be the final norm's bias, alone
    assert (want[0, 0] - plain.model(torch.tensor([[4]]))[0, 0]).abs().max() > 0.1
    close(actual, want)


def test_a_graph_takes_no_more_than_the_model(plain: Exported) -> None:
    with pytest.raises(Exception, match="ONNXRuntimeError"):
        plain.run(ids=ids(1, CONTEXT + 1))
    with pytest.raises(Exception, match="ONNXRuntimeError"):
        plain.run(ids=[[283]])  # the model's table is padded to 320 rows, the graph's is not


def test_a_graph_says_what_it_is_and_not_where_it_was_made(plain: Exported) -> None:
    properties = plain.session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["addnorm.config"]) == dataclasses.asdict(plain.model.config)
    assert b"stack_trace" not in plain.path.read_bytes()
    assert str(ROOT).encode() not in plain.path.read_bytes()


def test_padding_wherever_it_is(cached: Exported) -> None:
    """A padded row has the logits of the row alone, without a graph and without padding."""
    x, valid = ids(3, 7), torch.ones(3, 7, dtype=torch.bool)
    valid[0, :3] = False
    valid[1, 5:] = False
    actual = cached.run(ids=x, valid=valid, **empty(3))[0]
    for row in range(3):
        alone = x[row, valid[row]][None]
        close(actual[row, valid[row]][None], cached.model(alone))


def empty(batch: int) -> dict[str, Any]:
    """A past of length 0 for CACHED."""
    nothing = np.zeros((batch, 1, 0, 4), np.float32)
    return {"past.0.key": nothing, "past.0.value": nothing}


def test_one_graph_serves_the_prompt_and_the_steps(cached: Exported) -> None:
    """Greedy decoding with the graph alone gives the model's own tokens; beyond the window too."""
    shapes = {i.name: i.shape for i in cached.session.get_inputs()}
    assert shapes["past.0.key"] == ["batch", 1, "past", 4]
    prompt, steps = ids(3, 4), CONTEXT - 4
    want = cached.model.generate(prompt, steps, temperature=0)
    so_far = x = prompt
    past = empty(3)
    for _ in range(steps):
        valid = torch.ones(so_far.shape, dtype=torch.bool)
        logits, key, value = cached.run(ids=x, valid=valid, **past)
        past = {"past.0.key": key, "past.0.value": value}
        x = logits[:, -1:].argmax(-1)
        so_far = torch.cat((so_far, x), 1)
    assert torch.equal(so_far, want)
    assert key.shape == (3, 1, CONTEXT - 1, 4)


def test_a_tied_head_is_in_the_file_once(cached: Exported, plain: Exported) -> None:
    onnx = pytest.importorskip("onnx")
    for exported, tables in ((cached, 1), (plain, 2)):
        tensors = onnx.load(exported.path).graph.initializer
        assert sum(283 in tensor.dims for tensor in tensors) == tables


def test_large_weights_go_into_a_file_of_their_own(
    monkeypatch: pytest.MonkeyPatch, ort: Any, plain: Exported, tmp_path: Path
) -> None:
    plain.again(monkeypatch, lambda program: None)
    monkeypatch.setattr(onnx_file, "INLINE", 1000)
    result = to_onnx(plain.model, tmp_path / "big.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert list(result.files) == ["big.onnx", "big.onnx.data"]
    assert result.files["big.onnx.data"] > 2 * 283 * 12 * 4
    session = ort.InferenceSession(str(tmp_path / "big.onnx"), providers=["CPUExecutionProvider"])
    x = ids(2, 5)
    close(torch.from_numpy(session.run(None, {"ids": x.numpy()})[0]), plain.model(x))


def spoiled(name: str) -> Callable[[Any], None]:
    """One tensor of the graph with its rows one further."""

    def spoil(program: Any) -> None:
        ir = pytest.importorskip("onnx_ir")
        tensor = program.model.graph.initializers[name]
        tensor.const_value = ir.tensor(np.roll(tensor.const_value.numpy(), 1, 0), name=name)

    return spoil


def test_a_graph_that_is_wrong_is_thrown_away(
    monkeypatch: pytest.MonkeyPatch, plain: Exported, cached: Exported, tmp_path: Path
) -> None:
    for exported, name in ((plain, "gpt.positions.weight"), (cached, "gpt.tokens.weight")):
        (tmp_path / "a.onnx").write_bytes(b"\x08the one before")
        exported.again(monkeypatch, spoiled(name))
        with pytest.raises(CheckFailed, match=r"onnxruntime .*: logits differ by"):
            to_onnx(exported.model, tmp_path / "a.onnx", **exported.options)
        assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]
        assert (tmp_path / "a.onnx").read_bytes() == b"\x08the one before"


def test_a_cache_that_is_wrong_shows_in_the_steps(cached: Exported) -> None:
    """A graph that forgets its past is right for every prompt."""
    graph = Graph(check.measured_copy(cached.model), True, True)
    assert "13 greedy steps of 3 rows" in compare(graph, cached.path, check.silent).inputs
    with pytest.MonkeyPatch.context() as patch:
        from addnorm.export import onnx_check

        right = onnx_check._run

        def run(*args: Any) -> Any:
            actual, past = right(*args)
            return actual, {name: torch.zeros_like(t) for name, t in past.items()}

        patch.setattr(onnx_check, "_run", run)
        with pytest.raises(CheckFailed, match="cached step 1: logits differ"):
            compare(graph, cached.path, check.silent)


class Choosy(nn.Module):
    """What no graph can hold: which way it goes depends on the values."""

    def forward(self, x: Tensor, *rest: Any) -> Any:
        return (x if x.sum() > 0 else -x), x


def test_what_torch_cannot_export_is_refused(ort: Any, tmp_path: Path) -> None:
    model = gpt(n_layers=1)
    model.stack.final = Choosy()
    with pytest.raises(ExportError, match=r"torch cannot export this model to ONNX: \w+: .*depend"):
        to_onnx(model, tmp_path / "a.onnx")
    assert nothing_in(tmp_path)


def test_a_graph_is_a_file(ort: Any, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"is a folder: give the file .*, such as .*/model\.onnx"):
        to_onnx(gpt(), tmp_path)


@pytest.mark.parametrize("lacking", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lacking: str) -> None:
    monkeypatch.setitem(sys.modules, lacking, None)
    for package in {"onnx", "onnxscript", "onnxruntime"} - {lacking}:
        monkeypatch.setitem(sys.modules, package, sys)
    with pytest.raises(ExportError) as refused:
        to_onnx(gpt(), tmp_path / "a.onnx")
    message = str(refused.value)
    assert message.startswith(f"addnorm export onnx needs {lacking} (")
    assert message.endswith("pip install 'addnorm[export]'")
    assert "\n" not in message
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ExportError, match=r"needs gguf \(.*\): pip install 'addnorm\[export\]'"):
        to_gguf(gpt(), tmp_path / "a.gguf", tokenizer=None)


DESIGNS: list[dict[str, Any]] = [
    *({"scheme": name} for name in schemes.names()),
    *({"position": name, "dim": 24} for name in POSITIONS),
    *({"norm": name} for name in NORMS),
    {"qk_norm": "rms", "window": 3, "softcap": 3.0, "attention_softcap": 5.0, "n_kv_heads": 1},
    {"tied": False, "vocab_multiple": 16, "mlp": "gated", "bias": False, "activation": "silu"},
    {"scheme": "drop_path(parallel(pre_norm), 0.1)", "dropout": 0.1, "activation": "relu2"},
    {"position": "alibi", "window": 2, "activation": "gelu", "context_length": 2},
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", DESIGNS, ids=str)
def test_a_graph_of_any_design(ort: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    """With everything, and where attention goes another way without masks, without as well."""
    model = gpt(**{"n_layers": 1, **changes})
    both = {"with_cache": True, "with_valid": True}
    masks = changes.keys() & {"position", "window", "attention_softcap"}
    for options in (both, {}) if masks else (both,):
        result = to_onnx(model, tmp_path / "a.onnx", **options)
        assert result.check is not None
        assert result.check.difference < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--with-cache", "--with-valid"])
def test_the_terminal_stays_clean(ort: Any, tmp_path: Path, option: str) -> None:
    """A new process, in which torch registers its operators and says so."""
    gpt(n_layers=1).save_pretrained(tmp_path / "m")
    words = ["export", "onnx", str(tmp_path / "m"), "--out", str(tmp_path / "a.onnx"), option]
    code = f"import sys; from addnorm.cli import main; sys.exit(main({words}))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0
    assert process.stderr == ""
    assert len(process.stdout.splitlines()) == 3


@pytest.mark.slow
def test_half_precision_is_exported_in_float32(ort: Any, tmp_path: Path) -> None:
    model = gpt(n_layers=1).to(torch.bfloat16)
    to_onnx(model, tmp_path / "a.onnx")
    assert model.tokens.weight.dtype == torch.bfloat16


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    gpt().save_pretrained(tmp_path / "run" / "model", tokenizer=tokenizer)
    return tmp_path / "run"


def test_the_command_writes_a_folder(
    transformers: Any, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", "hf", str(folder), "--out", str(out), "--dtype", "f16"]) == 0
    output = capfd.readouterr()
    lines = output.out.splitlines()
    assert lines[0] == f"{out}: a folder for transformers, GPT-2's format"
    assert any(line.split()[:1] == ["model.safetensors"] and line.endswith("kB") for line in lines)
    assert lines[-1].startswith(f"checked by transformers {transformers.__version__}, 1 x 1, ")
    assert "(allowed 1e-05)" in lines[-1]
    assert output.err == ""
    again = GPT.from_pretrained(out, dtype=None)
    assert again.tokens.weight.dtype == torch.float16
    with pytest.raises(WeightsError):
        GPT.from_pretrained(folder)  # it is the run's folder: the model is within


def test_the_command_writes_gguf(
    transformers: Any, gguf: Any, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "m.gguf"
    assert main(["export", "gguf", str(folder), "--out", str(out), "--dtype", "bf16"]) == 0
    output = capfd.readouterr()
    assert output.out.startswith(f"{out}: a GGUF file of architecture gpt2 in bf16\n  m.gguf")
    assert "checked by transformers" in output.out
    assert "3 texts" in output.out
    assert output.out.splitlines()[-1].startswith(
        "rounding the matrices to bf16 moved the logits by"
    )
    assert output.err == ""
    assert main(["export", "gguf", str(folder), "--out", str(out), "--no-tokenizer"]) == 0
    assert "in f32, without a tokenizer" in capfd.readouterr().out


def test_the_command_writes_onnx(
    monkeypatch: pytest.MonkeyPatch,
    cached: Exported,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    cached.model.save_pretrained(tmp_path / "m")
    cached.again(monkeypatch, lambda program: None)
    words = ["export", "onnx", str(tmp_path / "m"), "--out", str(tmp_path / "a.onnx")]
    assert main([*words, "--with-cache", "--with-valid"]) == 0
    output = capfd.readouterr()
    assert "an ONNX graph with the inputs ids, valid, past" in output.out
    assert "13 greedy steps of 3 rows with the cache: logits differ by" in output.out
    assert output.err == ""

    cached.again(monkeypatch, spoiled("gpt.positions.weight"))
    words[-1] = str(tmp_path / "b.onnx")
    assert main([*words, "--with-cache", "--with-valid"]) == 1
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.startswith("addnorm: the check failed, and nothing was written: onnxruntime ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "m"]


def test_the_command_fails_with_its_check(
    monkeypatch: pytest.MonkeyPatch,
    transformers: Any,
    gguf: Any,
    folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    wrong_folder(monkeypatch)
    change(monkeypatch, "blk.1.attn_output.weight", lambda t: t.T)
    for kind in ("hf", "gguf"):
        assert main(["export", kind, str(folder), "--out", str(tmp_path / "out")]) == 1
        output = capfd.readouterr()
        assert output.out == ""
        assert output.err.startswith(
            "addnorm: the check failed, and nothing was written: transform"
        )
        assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_the_command_refuses_by_name(
    monkeypatch: pytest.MonkeyPatch,
    gguf: Any,
    folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def refused(*words: str) -> str:
        assert main(["export", *words, "--out", str(tmp_path / "out")]) == 2
        output = capfd.readouterr()
        assert output.out == ""
        assert not (tmp_path / "out").exists()
        return output.err

    gpt(scheme="deepnorm").save_pretrained(tmp_path / "deep")
    deep = str(tmp_path / "deep")
    assert "addnorm: there is no folder" in refused("onnx", "no/such/folder")
    assert "scheme is 'deepnorm', GPT-2's 'pre_norm'" in refused("hf", deep, "--format", "gpt2")
    assert "scheme is 'deepnorm'" in refused("gguf", deep, "--no-tokenizer")
    assert "has no tokenizer, and llama.cpp needs the one" in refused("gguf", deep)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert refused("onnx", deep).count("\n") == 1
    (tmp_path / "out").write_text("a file")
    assert main(["export", "gguf", str(folder), "--out", str(tmp_path / "out" / "x.gguf")]) == 2
    assert "addnorm: cannot write" in capfd.readouterr().err
    with pytest.raises(SystemExit) as unknown:
        main(["export", "safetensors", deep])
    assert unknown.value.code == 2


# --- the document ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_document_runs(
    ort: Any,
    transformers: Any,
    gguf: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cached: Exported,
) -> None:
    """The blocks marked "python export"; tests/whole/test_docs.py has no need of the extra."""
    text = (ROOT / "docs" / "export.md").read_text()
    blocks = re.findall(r"^```python export\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/export.md", "exec"), names)
