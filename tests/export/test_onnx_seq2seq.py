"""A translator as two ONNX graphs: what they write is what the model writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from addnorm.data.tokenizer import Tokenizer
from addnorm.data.tokenizer.pair import pair
from addnorm.export import CheckFailed, ExportError, onnx_function, to_onnx
from addnorm.models.seq2seq import Seq2Seq
from addnorm.models.seq2seq_config import Seq2SeqConfig
from tests.nets import stir


def tiny(**changes: Any) -> Seq2Seq:
    sizes = {"vocab_size": 41, "context_length": 13, "dim": 12, "n_heads": 3}
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    config = Seq2SeqConfig(**{**sizes, **layers, "start_id": 3, "pad_id": 3, **changes})
    torch.manual_seed(0)
    return stir(Seq2Seq(config), 0).eval()


def greedy(folder: Path, ids: torch.Tensor, mask: torch.Tensor, steps: int) -> np.ndarray[Any, Any]:
    """As a user would with the two files alone."""
    onnxruntime = pytest.importorskip("onnxruntime")
    encoder, decoder = (
        onnxruntime.InferenceSession(str(folder / f"{part}_model.onnx"))
        for part in ("encoder", "decoder")
    )
    mask_in = mask.long().numpy()
    (memory,) = encoder.run(None, {"input_ids": ids.numpy(), "attention_mask": mask_in})
    target = np.full((len(ids), 1), 3)
    for _ in range(steps):
        feed = {"encoder_hidden_states": memory, "encoder_attention_mask": mask_in}
        (logits,) = decoder.run(None, {"input_ids": target, **feed})
        target = np.concatenate([target, logits[:, -1:].argmax(-1)], 1)
    return target


def test_a_folder_for_optimum(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = tiny(scheme="post_norm", position="halves", activation="silu")
    result = to_onnx(model, tmp_path / "m")
    assert result.check is not None
    assert result.check.difference < 1e-5  # 5e-7 was measured
    assert "decoder 3 x 7 x 6" in str(result.check)
    names = ["config.json", "decoder_model.onnx", "encoder_model.onnx", "generation_config.json"]
    assert sorted(result.files) == names
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model_type"] == "marian"
    ids = torch.randint(41, (3, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[0, 4:] = False
    ours = torch.full((3, 1), 3)
    with torch.no_grad():
        for _ in range(6):
            logits = model(ids, ours, mask)
            ours = torch.cat([ours, logits[:, -1:].argmax(-1)], 1)
    assert greedy(tmp_path / "m", ids, mask, 6).tolist() == ours.tolist()


def test_what_is_wrong_or_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    file, folder = tmp_path / "file", tmp_path / "m"
    file.write_text("mine")
    with pytest.raises(ExportError, match="is a file, and file would be a folder"):
        to_onnx(tiny(), file)
    with pytest.raises(ExportError, match="keeps no cache"):
        to_onnx(tiny(), folder, with_cache=True)
    with pytest.raises(ExportError, match="always take a mask"):
        to_onnx(tiny(), folder, with_valid=True)
    both = pair(Tokenizer.bytes(), Tokenizer.bytes())
    with pytest.raises(ExportError, match="the tokenizer of the source has 257 tokens"):
        to_onnx(tiny(), folder, tokenizer=both)
    right = onnx_function._exported

    def wrong(function: onnx_function.TensorFunction) -> object:
        program = right(function)
        function.model.tokens = torch.nn.Embedding(257, 12)  # the file keeps the old one
        return program

    monkeypatch.setattr(onnx_function, "_exported", wrong)
    with pytest.raises(CheckFailed, match=r"encoder 1 x 1: logits differ by"):
        to_onnx(tiny(vocab_size=257), folder, tokenizer=both)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
