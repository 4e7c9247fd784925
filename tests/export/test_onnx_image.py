"""Vision Transformers as ONNX graphs: checked, with what a program has to know beside them."""

import json
from pathlib import Path

import pytest
import torch

import addnorm
from addnorm.cli import main
from addnorm.data.images import ImageFrame
from addnorm.export import ExportError, to_onnx
from addnorm.models.vision import ViT
from addnorm.models.vision_config import ViTConfig
from tests.nets import stir


def tiny(**changes: object) -> ViT:
    torch.manual_seed(0)
    sizes = {"height": 8, "width": 12, "patch": 4, "dim": 12, "n_layers": 1, "n_heads": 3}
    return stir(ViT(ViTConfig(**{"classes": 3, **sizes, **changes})), 0).eval()


def test_a_classifier_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = tiny(embedding="convolutions", pooling="mean", scheme="layer_scale(0.1)", channels=1)
    model.frame = ImageFrame(8, 12, 1, "crop", (0.25,), (0.5,))
    addnorm.save(model, tmp_path / "m", labels=["a", "b", "c"])
    file = tmp_path / "b.onnx"
    assert main(["export", "onnx", str(tmp_path / "m"), "--out", str(file)]) == 0
    assert "an ONNX graph with the input pixels" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(file))
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["addnorm.labels"]) == ["a", "b", "c"]
    frame = json.loads(about["addnorm.frame"])
    assert (frame["fit"], frame["mean"], frame["height"]) == ("crop", [0.25], 8)
    x = torch.randn(5, 1, 8, 12)
    logits = torch.from_numpy(session.run(None, {"pixels": x.numpy()})[0])
    with torch.no_grad():
        assert (logits - model(x)).abs().max() < 1e-5
    assert main(["export", "onnx", str(tmp_path / "m"), "--out", str(file), "--with-valid"]) == 2
    assert "has no padding" in capsys.readouterr().err
    with pytest.raises(ExportError, match="keeps no cache"):
        to_onnx(model, file, with_cache=True)


@pytest.mark.slow  # seconds for each
@pytest.mark.parametrize("changes", [{"classes": 0}, {"distillation": "head"}, {"norm": "batch"}])
def test_every_kind(changes: dict[str, object], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    result = to_onnx(tiny(**changes), tmp_path / "b.onnx")
    assert result.check is not None
    assert result.check.difference < 1e-5
