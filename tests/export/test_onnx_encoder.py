"""A BERT as an ONNX graph: checked, refused, and nothing left behind."""

from pathlib import Path

import pytest
import torch

import addnorm
from addnorm import Bert, BertConfig
from addnorm.cli import main
from addnorm.export import CheckFailed, bert_to_onnx, onnx_encoder


def tiny(head: str) -> Bert:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=61, context_length=13, dim=12, n_layers=1, n_heads=3, head=head, labels=3
    )
    return Bert(config).eval()


def test_a_classifier_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    addnorm.save(tiny("classify"), tmp_path / "m")
    file = tmp_path / "b.onnx"
    assert main(["export", "onnx", str(tmp_path / "m"), "--out", str(file), "--with-valid"]) == 0
    text = capsys.readouterr().out
    assert "with the inputs ids, valid" in text
    assert "1 x 1, 3 x 1, 3 x 7, 1 x 13" in text
    assert main(["export", "onnx", str(tmp_path / "m"), "--out", str(file), "--with-cache"]) == 2
    assert "keeps no cache" in capsys.readouterr().err
    assert main(["export", "hf", str(tmp_path / "m"), "--out", str(tmp_path / "hf")]) == 2
    assert "is a BERT" in capsys.readouterr().err


def test_what_differs_is_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    result = bert_to_onnx(tiny("answer"), tmp_path / "a.onnx")
    assert "ids, token_types" in result.what
    right = onnx_encoder._exported

    def wrong(graph: onnx_encoder.EncoderGraph) -> object:
        program = right(graph)
        graph.bert.head = torch.nn.Linear(12, 2)  # the file keeps the old one
        return program

    monkeypatch.setattr(onnx_encoder, "_exported", wrong)
    with pytest.raises(CheckFailed, match=r"1 x 1: logits differ by"):
        bert_to_onnx(tiny("answer"), tmp_path / "b.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]
