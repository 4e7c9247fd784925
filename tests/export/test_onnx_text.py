"""Models that read a text once as ONNX graphs: checked, refused, and nothing left behind."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import addnorm
from addnorm import Bert, BertConfig, GPTConfig
from addnorm.cli import main
from addnorm.data.tokenizer import Tokenizer
from addnorm.export import CheckFailed, onnx_function, to_onnx
from addnorm.models.classifier import ClassifierConfig, TextClassifier
from addnorm.models.gpt_classifier import GPTClassifier
from tests.nets import stir


def tiny(head: str) -> Bert:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=61, context_length=13, dim=12, n_layers=1, n_heads=3, head=head, labels=3
    )
    return stir(Bert(config), 0).eval()


def test_a_classifier_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    config = ClassifierConfig(
        vocab_size=257, classes=3, context_length=13, dim=12, n_layers=1, n_heads=3, pairs=97
    )
    model = stir(TextClassifier(config), 0).eval()
    labels = ["bad", "fair", "good"]
    addnorm.save(model, tmp_path / "m", tokenizer=Tokenizer.bytes(), labels=labels)
    file = tmp_path / "b.onnx"
    assert main(["export", "onnx", str(tmp_path / "m"), "--out", str(file), "--with-valid"]) == 0
    text = capsys.readouterr().out
    assert "with the inputs ids, valid" in text
    assert "1 x 1, 3 x 1, 3 x 7, 1 x 13" in text
    about = onnxruntime.InferenceSession(str(file)).get_modelmeta().custom_metadata_map
    assert json.loads(about["addnorm.labels"]) == labels
    assert json.loads(about["addnorm.config"])["pairs"] == 97
    assert main(["export", "onnx", str(tmp_path / "m"), "--out", str(file), "--with-cache"]) == 2
    assert "keeps no cache" in capsys.readouterr().err
    assert main(["export", "hf", str(tmp_path / "m"), "--out", str(tmp_path / "hf")]) == 2
    assert "is a text classifier" in capsys.readouterr().err


def test_a_gpt_with_a_head(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    config = GPTConfig(vocab_size=61, context_length=13, dim=12, n_layers=1, n_heads=3)
    model = stir(GPTClassifier(config, 4, several=True), 0).eval()
    result = to_onnx(model, tmp_path / "g.onnx", with_valid=True, labels=list("abcd"))
    assert result.check is not None
    assert result.check.difference < 1e-5  # 2e-7 was measured
    session = onnxruntime.InferenceSession(str(tmp_path / "g.onnx"))
    about = session.get_modelmeta().custom_metadata_map
    assert about["addnorm.several"] == "true"
    ids, valid = torch.randint(61, (2, 5)), torch.ones(2, 5, dtype=torch.bool)
    valid[1, 3:] = False  # what stands there is not seen
    feed = {"ids": ids.numpy(), "valid": valid.numpy()}
    other = {"ids": ids.masked_fill(~valid, 7).numpy(), "valid": valid.numpy()}
    assert (session.run(None, feed)[0] == session.run(None, other)[0]).all()


@pytest.mark.slow  # seconds for each head
@pytest.mark.parametrize("head", ["none", "masked", "tokens", "classify", "answer"])
def test_every_head_of_a_bert(head: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    result = to_onnx(tiny(head), tmp_path / "b.onnx", with_valid=True)
    assert result.check is not None
    assert result.check.difference < 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "b.onnx"))
    assert session.get_outputs()[0].name == ("hidden" if head == "none" else "logits")


def test_what_differs_is_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    right = onnx_function._exported

    def wrong(function: onnx_function.TensorFunction) -> object:
        program = right(function)
        function.model.head = nn.Linear(12, 2)  # the file keeps the old one
        return program

    monkeypatch.setattr(onnx_function, "_exported", wrong)
    with pytest.raises(CheckFailed, match=r"1 x 1: logits differ by"):
        to_onnx(tiny("answer"), tmp_path / "b.onnx")
    assert not list(tmp_path.iterdir())
