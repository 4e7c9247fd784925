"""A classifier on a GPT, in transformers' format and in ours."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import addnorm
from addnorm import GPTConfig, Tokenizer
from addnorm.errors import Mendable
from addnorm.files.folders import WeightsError
from addnorm.models.gpt_classifier import GPTClassifier
from tests.nets import stir

WHY = "transformers is the reference for its format"
BYTES, LABELS = Tokenizer.bytes(), ("bad", "good", "so-so")
SHAPE: dict[str, Any] = {"context_length": 19, "dim": 12, "n_layers": 3, "n_heads": 3}
ALLOWED = 1e-5  # in float32, as of GPT-2's logits: tests/files/test_gpt.py derives it


def classifier(several: bool = False, **changes: Any) -> GPTClassifier:
    torch.manual_seed(0)
    return stir(GPTClassifier(GPTConfig(vocab_size=257, **{**SHAPE, **changes}), 3, several)).eval()


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of 7, 5 and 1 tokens, padded by the id that ends a text."""
    ids, valid = torch.full((3, 7), 256), torch.zeros(3, 7, dtype=torch.bool)
    numbers = torch.Generator().manual_seed(1)
    for i, n in enumerate((7, 5, 1)):
        part = slice(7 - n, 7) if side == "left" else slice(0, n)
        ids[i, part] = torch.randint(0, 256, (n,), generator=numbers)
        valid[i, part] = True
    return ids, valid


@pytest.mark.parametrize("several", [False, True])
def test_transformers_reads_what_is_written(tmp_path: Path, several: bool) -> None:
    transformers = pytest.importorskip("transformers", reason=WHY)
    model = classifier(several)
    addnorm.save(model, tmp_path / "m", tokenizer=BYTES, labels=LABELS)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    assert type(theirs).__name__ == "GPT2ForSequenceClassification"
    assert [theirs.config.id2label[i] for i in range(3)] == list(LABELS)
    assert theirs.config.problem_type.startswith("multi" if several else "single")
    ids, valid = padded("right")
    with torch.no_grad():
        ours, reference = model(ids, valid), theirs(ids, attention_mask=valid).logits
        torch.testing.assert_close(ours, reference, atol=ALLOWED, rtol=ALLOWED)
        torch.testing.assert_close(model(ids[:1]), reference[:1], atol=ALLOWED, rtol=ALLOWED)
        left, places = padded("left")  # where positions count real tokens in both
        torch.testing.assert_close(model(left, places), ours, atol=ALLOWED, rtol=ALLOWED)


@pytest.mark.parametrize("labels", [2, 5])
def test_what_transformers_wrote_is_read(tmp_path: Path, labels: int) -> None:
    transformers = pytest.importorskip("transformers", reason=WHY)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=31, n_positions=11, n_embd=20, n_layer=2, n_head=5, num_labels=labels,
        pad_token_id=30,
    )  # fmt: skip
    theirs = stir(transformers.GPT2ForSequenceClassification(config)).eval()
    theirs.save_pretrained(tmp_path)
    model, tokenizer, names, _ = addnorm.load(tmp_path)
    assert isinstance(model, GPTClassifier)
    assert tokenizer is None
    assert names == tuple(f"LABEL_{i}" for i in range(labels))
    ids = torch.randint(0, 30, (4, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=ALLOWED, rtol=ALLOWED)
    with pytest.raises(Mendable, match=r"it has no tokenizer: put its tokenizer\.json there"):
        addnorm.load(tmp_path).use()
    with pytest.raises(WeightsError, match=r"score\.weight"):
        addnorm.GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize("several", [False, True])
def test_another_design_and_back(tmp_path: Path, several: bool) -> None:
    model = classifier(several, scheme="sandwich", norm="rms", position="rope", tied=False)
    addnorm.save(model, tmp_path / "m", tokenizer=BYTES, labels=LABELS)
    loaded = addnorm.load(tmp_path / "m")
    assert loaded.labels == LABELS
    ids, valid = padded("right")
    assert torch.equal(loaded.model(ids, valid), model(ids, valid))
    text = "x" * 30  # two windows of 19
    (answer,) = loaded.predict([text])
    assert answer["input"] == text
    assert set(answer) - {"input"} == (
        {"labels", "probabilities"} if several else {"label", "probability"}
    )
    assert len(model.probabilities([], BYTES)) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_type": "regression"}, "problem_type is 'regression', and addnorm has single"),
        ({"id2label": {"0": "a"}, "problem_type": None}, "which is a regression"),
        ({"id2label": {"0": "a", "1": "b"}}, r"names 2 labels, and score\.weight has 3 rows"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label must have a text for each number from 0"),
        ({"id2label": ["a"]}, "id2label"),
        ({"n_embd": 9}, "."),
    ],
)
def test_what_is_not_understood(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    addnorm.save(classifier(), tmp_path / "m", tokenizer=BYTES, labels=LABELS)
    card = json.loads((tmp_path / "m" / "config.json").read_text()) | changes
    (tmp_path / "m" / "addnorm_checksums.json").unlink()
    (tmp_path / "m" / "config.json").write_text(json.dumps(card))
    with pytest.raises(WeightsError, match=message):
        addnorm.load(tmp_path / "m")


def test_it_is_written_with_its_labels(tmp_path: Path) -> None:
    for labels in (None, ["a"]):
        with pytest.raises(WeightsError, match="the names of its 3 classes"):
            addnorm.save(classifier(), tmp_path / "m", tokenizer=BYTES, labels=labels)
    assert not (tmp_path / "m").exists()
