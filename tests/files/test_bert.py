"""BERT on disk: equal to transformers', in and out; layouts, damage, refusals; its use."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import addnorm
from addnorm import Bert, BertConfig, Tokenizer
from addnorm.cli import main
from addnorm.errors import Mendable
from addnorm.files import bert, folders
from addnorm.files.folders import WeightsError

ODD: dict[str, Any] = {
    "vocab_size": 61,
    "max_position_embeddings": 23,
    "hidden_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "intermediate_size": 33,
    "type_vocab_size": 3,
}
"""No two sizes alike, none a power of two: what is transposed or split wrongly does not fit."""
NAMES = {0: "bad", 1: "good", 2: "so-so"}
KINDS: dict[str, dict[str, Any]] = {
    "BertModel": {},
    "BertForMaskedLM": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
    "BertForPreTraining": {},
    "BertForSequenceClassification": {"id2label": NAMES, "hidden_act": "relu"},
    "BertForTokenClassification": {"id2label": NAMES},
    "BertForQuestionAnswering": {},
}
TEXTS = ["a cat sat on a mat", "the dogs sing", "what a day"] * 2


@pytest.fixture(scope="session")
def hf() -> Any:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    return transformers


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=100, kind="wordpiece")


def published(hf: Any, kind: str, **changes: Any) -> Any:
    """In evaluation mode. A norm's 1 and a bias's 0 would hide bugs: stirred."""
    torch.manual_seed(0)
    model = getattr(hf, kind)(hf.BertConfig(**{**ODD, **KINDS[kind], **changes})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def tiny(**changes: Any) -> Bert:
    config = BertConfig(vocab_size=61, context_length=13, dim=20, n_layers=2, n_heads=5)
    torch.manual_seed(1)
    return Bert(dataclasses.replace(config, **changes)).eval()


def reconfigure(folder: Path, **changes: Any) -> Path:
    card = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**card, **changes}))
    (folder / folders.CHECKSUMS).unlink(missing_ok=True)
    return folder


def output(kind: str, model: Any, x: Tensor, valid: Tensor | None, types: Tensor | None) -> Tensor:
    outputs = model(x, attention_mask=None if valid is None else valid.long(), token_type_ids=types)
    if kind == "BertForQuestionAnswering":
        return torch.stack([outputs.start_logits, outputs.end_logits], -1)
    name = {"BertModel": "last_hidden_state", "BertForPreTraining": "prediction_logits"}
    return outputs[name.get(kind, "logits")]


@pytest.mark.parametrize("kind", KINDS)
def test_parity_both_ways(hf: Any, tmp_path: Path, kind: str) -> None:
    """float32 kernels that add in another order: outputs of size 5 after 1e3 roundings of 6e-8
    differ by 1e-5 at most."""
    theirs = published(hf, kind)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Bert.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours", format="bert")
    counterpart = kind.replace("ForPreTraining", "ForMaskedLM")
    again = getattr(hf, counterpart).from_pretrained(tmp_path / "ours").eval()
    draw = torch.Generator().manual_seed(2)
    x = torch.randint(61, (3, 17), generator=draw)
    types = torch.randint(3, (3, 17), generator=draw)
    valid = torch.ones(3, 17, dtype=torch.bool)
    valid[0, 11:], valid[1, :4] = False, False  # on the right; on the left
    with torch.no_grad():
        for mask, kinds in ((None, None), (valid, None), (valid, types)):
            want, logits = output(kind, theirs, x, mask, kinds), ours(x, mask, kinds)
            assert logits.shape == want.shape
            assert (logits - want).abs().max() < 1e-5
            assert (output(counterpart, again, x, mask, kinds) - want).abs().max() < 1e-5
        if kind == "BertModel":
            pooled = theirs(x, attention_mask=valid.long()).pooler_output
            assert (ours.pooled(ours(x, valid)) - pooled).abs().max() < 1e-5
    bits = load_file(tmp_path / "theirs" / "model.safetensors")
    for name, t in load_file(tmp_path / "ours" / "model.safetensors").items():
        assert torch.equal(bits[name], t)
    if "id2label" in KINDS[kind]:
        assert ours.labels == tuple(NAMES.values())
        assert again.config.id2label == NAMES


def test_gradients_agree(hf: Any, tmp_path: Path) -> None:
    kind = "BertForSequenceClassification"
    theirs = published(hf, kind)
    theirs.save_pretrained(tmp_path)
    ours = Bert.from_pretrained(tmp_path)
    x = torch.randint(1, 61, (4, 9), generator=torch.Generator().manual_seed(0))
    # without id 0, of which transformers learns nothing
    output(kind, theirs, x, None, None).square().sum().backward()
    ours(x).square().sum().backward()
    by_name = {bert._bare(name): p.grad for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        want = by_name[bert.published_name(name, ours.config)]
        # a key's bias has gradient 0 in exact arithmetic
        assert (p.grad - want).abs().max() <= 1e-4 * max(want.abs().max(), 1e-2), name


def test_layouts(hf: Any, tmp_path: Path) -> None:
    """The old names, buffers, copies, no prefix, and what pre-training leaves: read or told."""
    theirs = published(hf, "BertForPreTraining")
    theirs.save_pretrained(tmp_path)
    reconfigure(tmp_path, architectures=["BertForMaskedLM"], position_embedding_type="absolute")
    state, file = {}, tmp_path / "model.safetensors"
    for name, t in load_file(file).items():
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        state[old.replace("LayerNorm.bias", "LayerNorm.beta").removeprefix("bert.")] = t
    state["embeddings.position_ids"] = torch.arange(23)[None]
    state["cls.predictions.decoder.weight"] = state["embeddings.word_embeddings.weight"].clone()
    state["cls.predictions.decoder.bias"] = state.pop("cls.predictions.bias")
    save_file(state, file)
    ours, report = bert.load(tmp_path)
    x = torch.randint(61, (2, 9))
    with torch.no_grad():
        assert (ours(x) - theirs(x).prediction_logits).abs().max() < 1e-5
    assert len(report.ignored) == 6  # position_ids, the copy, seq_relationship, the pooler
    assert "not read: embeddings.position_ids" in str(report)
    fine = Bert.from_pretrained(tmp_path, head="classify", labels=["no", "yes"])
    assert torch.equal(fine.pooler.weight, theirs.bert.pooler.dense.weight)
    state["cls.predictions.decoder.weight"] += 1
    save_file(state, file)
    with pytest.raises(WeightsError, match=r"decoder\.weight is not embeddings\.word_embeddings"):
        Bert.from_pretrained(tmp_path)


def test_another_head(hf: Any, tmp_path: Path) -> None:
    theirs = published(hf, "BertModel")
    theirs.save_pretrained(tmp_path)
    model, report = bert.load(tmp_path, head="classify", labels=["a", "b", "c"], dropout=0.25)
    assert torch.equal(model.pooler.weight, theirs.pooler.dense.weight)
    assert sorted(report.new) == ["head.bias", "head.weight"]
    assert model.config.dropout == model.config.head_dropout == 0.25
    assert model.labels == ("a", "b", "c")
    model.save_pretrained(tmp_path / "fine")
    same = Bert.from_pretrained(tmp_path / "fine", labels=["a", "b", "c"])
    assert torch.equal(same.head.weight, model.head.weight)
    other, report = bert.load(tmp_path / "fine", labels=["a", "c"])
    assert other.config.labels == 2
    assert "head.weight" in report.new
    assert bert.load(tmp_path / "fine", head="masked")[1].new[0].startswith("decoder.")
    with pytest.raises(WeightsError, match="say what the new head classify chooses from"):
        Bert.from_pretrained(tmp_path, head="classify")
    with pytest.raises(WeightsError, match="the head masked has no labels"):
        Bert.from_pretrained(tmp_path, head="masked", labels=["a"])


@pytest.mark.parametrize(
    "changes",
    [
        {"scheme": "pre_norm", "norm": "rms", "head": "masked"},
        {"position": "rope", "head": "tokens", "dim": 24, "n_heads": 3},
        {"scheme": "deepnorm", "head": "classify", "pooling": "mean"},
        {"scheme": "hyper_connections(2)", "head": "answer", "activation": "relu2"},
    ],
)
def test_our_format_there_and_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = tiny(**changes)
    with pytest.raises(WeightsError, match="BERT's format cannot say what this model is"):
        model.save_pretrained(tmp_path, format="bert")
    model.save_pretrained(tmp_path)
    again = Bert.from_pretrained(tmp_path)
    x = torch.randint(61, (2, 9))
    assert again.config == model.config
    assert torch.equal(again(x), model(x))
    card = json.loads((tmp_path / "config.json").read_text())
    assert card["model_type"] == "addnorm_bert"


CONFIGS = {
    "cross-attention": ({"add_cross_attention": True}, "add_cross_attention=True is not"),
    "decoder": ({"is_decoder": True}, "is_decoder=True is not implemented"),
    "relative": ({"position_embedding_type": "relative_key"}, "positions are added"),
    "untied": ({"tie_word_embeddings": False}, "the decoder of a BERT is its embedding"),
    "activation": ({"hidden_act": "mish"}, "hidden_act='mish' is not implemented"),
    "unknown": ({"mixture": 4}, "mixture=4 is not an option of BERT as transformers defines it"),
    "architecture": ({"architectures": ["BertLMHeadModel"]}, "is not read, only one of BertModel"),
    "depth": ({"num_hidden_layers": 4}, r"encoder\.layer\.3.* are missing from the weights"),
    "shallow": ({"num_hidden_layers": 2}, "has no place for"),
    "width": ({"intermediate_size": 34}, r"branch\.up\.weight has shape \(33, 20\), expected"),
    "number": ({"hidden_size": "20"}, "dim must be a whole number"),
    "head": ({"architectures": ["BertForQuestionAnswering"]}, "qa_outputs.* are missing"),
}


@pytest.fixture(scope="module")
def masked(hf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masked")
    published(hf, "BertForMaskedLM").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_not_understood_is_refused(masked: Path, tmp_path: Path, name: str) -> None:
    changes, message = CONFIGS[name]
    folder = Path(shutil.copytree(masked, tmp_path / "m"))
    with pytest.raises(WeightsError, match=message):
        addnorm.load(reconfigure(folder, **changes))


def test_damage(masked: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(masked, tmp_path / "m"))
    file = folder / "model.safetensors"
    state = load_file(file)
    save_file({**state, "embeddings.LayerNorm.weight": torch.ones(20)}, file)
    with pytest.raises(WeightsError, match=r"are both embeddings\.LayerNorm\.weight"):
        Bert.from_pretrained(folder)
    state["cls.predictions.bias"][3] = torch.nan
    save_file(state, file)
    with pytest.raises(WeightsError, match=r"1 of 61 values of decoder\.bias are not finite"):
        Bert.from_pretrained(folder)
    save_file({n: t.to(torch.int8) for n, t in state.items()}, file)
    with pytest.raises(WeightsError, match="Quantized or packed ones are not read"):
        Bert.from_pretrained(folder)
    file.unlink()
    torch.save(load_file(masked / "model.safetensors"), folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin, and a BERT is read from model"):
        Bert.from_pretrained(folder)
    tiny().save_pretrained(tmp_path / "sealed")
    changed = tmp_path / "sealed" / "model.safetensors"
    data = bytearray(changed.read_bytes())
    data[-9] ^= 1
    changed.write_bytes(data)
    with pytest.raises(WeightsError, match="is not what was written"):
        Bert.from_pretrained(tmp_path / "sealed")


def test_asked_for_labels(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "m")
    model = tiny(head="classify", labels=3, vocab_size=tokenizer.vocab_size)
    addnorm.save(model, folder, tokenizer=tokenizer, labels=("x", "y", "z"))
    loaded = addnorm.load(folder)
    long = " ".join(TEXTS)
    alone = loaded.predict(["", "a cat", long])
    assert [one["input"] for one in alone] == ["", "a cat", long]
    begin, end = tokenizer.role_id("cls"), tokenizer.role_id("sep")
    x = torch.tensor([[begin, *tokenizer.encode("a cat"), end]])
    with torch.no_grad():
        p = loaded.model(x).softmax(-1).max().item()
    assert alone[1]["probability"] == pytest.approx(p, abs=1e-6)
    assert main(["predict", folder, "a cat", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == alone[1]["label"]
    (tmp_path / "d.csv").write_text("text,label\na cat,x\nno dog,y\n")
    assert main(["eval", folder, str(tmp_path / "d.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["texts"] == 2
    assert main(["lint", folder]) == 0
    assert main(["generate", folder, "a"]) == 2


def test_not_asked(tokenizer: Tokenizer, tmp_path: Path) -> None:
    addnorm.save(tiny(), tmp_path / "m", tokenizer=None)
    with pytest.raises(Mendable, match="a BERT with the head masked, of which nothing is asked"):
        addnorm.load(tmp_path / "m").use()
    addnorm.save(tiny(head="classify", labels=1), tmp_path / "one", tokenizer=tokenizer)
    with pytest.raises(Mendable, match="answers with 1 numbers"):
        addnorm.load(tmp_path / "one").use()
    addnorm.save(tiny(head="classify"), tmp_path / "bare")
    with pytest.raises(Mendable, match="it has no tokenizer"):
        addnorm.load(tmp_path / "bare").use()
    with pytest.raises(WeightsError, match="chooses from 2 labels: give as many names"):
        addnorm.save(tiny(head="classify"), tmp_path / "x", labels=["a"])
    with pytest.raises(WeightsError, match="with the head masked has no labels"):
        addnorm.save(tiny(), tmp_path / "x", labels=["a"])
    with pytest.raises(WeightsError, match="format is 'bert', 'addnorm' or None"):
        tiny().save_pretrained(tmp_path / "x", format="gpt2")
