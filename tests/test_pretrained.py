"""``addnorm.load`` and ``addnorm.save``: every model of ours, through one door each way."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import addnorm
from addnorm import GPT, GPTConfig, Tokenizer
from addnorm.adapt import adapt, adapted
from addnorm.files.folders import WeightsError
from addnorm.models.classifier import ClassifierConfig, TextClassifier
from tests.nets import stir

BYTES = Tokenizer.bytes()
IDS = torch.tensor([[1, 2, 3]])
LABELS = ["no", "perhaps", "yes"]


def gpt(**changes: Any) -> GPT:
    sizes = {"vocab_size": 257, "context_length": 16, "dim": 8, "n_layers": 2, "n_heads": 2}
    return stir(GPT(GPTConfig(**{**sizes, **changes}))).eval()


def classifier() -> TextClassifier:
    config = ClassifierConfig(vocab_size=257, classes=3, dim=8, n_layers=1, n_heads=2)
    return stir(TextClassifier(config)).eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS)


@pytest.mark.parametrize(("scheme", "kind"), [("pre_norm", "gpt2"), ("sandwich", "addnorm_gpt")])
def test_a_gpt_in_either_format(scheme: str, kind: str, tmp_path: Path) -> None:
    model = gpt(scheme=scheme)
    addnorm.save(model, tmp_path / "m", tokenizer=BYTES)
    loaded = addnorm.load(tmp_path / "m")
    assert torch.equal(logits(loaded.model), logits(model))
    assert not loaded.model.training
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.identity == BYTES.identity
    assert loaded.labels is None
    assert loaded.card == json.loads((tmp_path / "m" / "config.json").read_text())
    assert loaded.card["model_type"] == kind
    addnorm.save(model, tmp_path / "bare")
    assert addnorm.load(str(tmp_path / "bare")).tokenizer is None


def test_a_classifier(tmp_path: Path) -> None:
    model = classifier()
    addnorm.save(model, tmp_path / "m", tokenizer=BYTES, labels=LABELS)
    loaded = addnorm.load(tmp_path / "m")
    assert isinstance(loaded.model, TextClassifier)
    assert loaded.labels == tuple(LABELS)
    texts = ["to be", "", "x" * 600]
    assert torch.equal(loaded.model.probabilities(texts, BYTES), model.probabilities(texts, BYTES))
    half = addnorm.load(tmp_path / "m", dtype=torch.bfloat16).model
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    again = addnorm.load(tmp_path / "m", dtype=None).model
    assert {p.dtype for p in again.parameters()} == {torch.float32}


@pytest.mark.parametrize("labels", [None, ["no", "yes"]])
def test_a_classifier_needs_its_labels(labels: list[str] | None, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"the names of its 3 classes"):
        addnorm.save(classifier(), tmp_path / "m", tokenizer=BYTES, labels=labels)
    with pytest.raises(WeightsError, match=r"its tokenizer"):
        addnorm.save(classifier(), tmp_path / "m", labels=LABELS)
    assert not (tmp_path / "m").exists()


def test_a_language_model_has_no_labels(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no labels"):
        addnorm.save(gpt(), tmp_path / "m", labels=LABELS)
    model = gpt()
    adapt(model, "lora", rank=2)
    with pytest.raises(WeightsError, match="no labels"):
        addnorm.save(model, tmp_path / "m", labels=LABELS)
    assert not (tmp_path / "m").exists()


KINDS = {
    "lora": {"rank": 2},
    "adalora": {"init_rank": 3, "target_rank": 2, "steps": 5},
    "prefix": {"length": 2},
    "prompt": {"length": 2},
    "adapter": {"width": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_an_adapter(kind: str, tmp_path: Path) -> None:
    """In the weights where it is an update of them, else beside the model."""
    model = gpt()
    adapt(model, kind, **KINDS[kind])
    stir(model).eval()
    addnorm.save(model, tmp_path / "run" / "model", tokenizer=BYTES)
    loaded = addnorm.load(tmp_path / "run")
    torch.testing.assert_close(logits(loaded.model), logits(model), rtol=1e-4, atol=1e-5)
    assert (adapted(loaded.model) is None) == (kind in ("lora", "adalora"))
    assert loaded.tokenizer is not None
    assert not loaded.model.training
    half = addnorm.load(tmp_path / "run", dtype=torch.bfloat16).model
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_two_models_never_share_a_folder(tmp_path: Path) -> None:
    """What is read is what was written last, or it is refused to write."""
    whole, apart = gpt(), gpt()
    adapt(apart, "prefix", length=2)
    addnorm.save(whole, tmp_path / "a")
    with pytest.raises(WeightsError, match="holds another model"):
        addnorm.save(apart, tmp_path / "a")
    addnorm.save(apart, tmp_path / "b")
    with pytest.raises(WeightsError, match="holds another model"):
        addnorm.save(whole, tmp_path / "b")
    addnorm.save(gpt(scheme="sandwich"), tmp_path / "a")
    assert addnorm.load(tmp_path / "a").card["scheme"] == "sandwich"
    addnorm.save(apart, tmp_path / "b")


def test_an_adapted_classifier_is_refused(tmp_path: Path) -> None:
    model = classifier()
    adapt(model, "lora", rank=2)
    with pytest.raises(WeightsError, match="TextClassifier cannot be written with its adapter"):
        addnorm.save(model, tmp_path / "m", tokenizer=BYTES, labels=LABELS)


def test_a_compiled_model_is_told_to_be_taken_out(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="save the one inside"):
        addnorm.save(torch.compile(gpt()), tmp_path / "m")


def test_where_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no folder"):
        addnorm.load(tmp_path / "a" / "b")
    with pytest.raises(WeightsError, match=r"has no config\.json; it holds nothing"):
        addnorm.load(tmp_path)
