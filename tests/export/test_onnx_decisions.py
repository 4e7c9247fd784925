"""A model that acts as an ONNX graph: checked against ONNX Runtime, of every kind, and refused."""

from pathlib import Path

import pytest
import torch

import addnorm
from addnorm.cli import main
from addnorm.models.decisions import DecisionConfig, DecisionModel
from tests.nets import stir


def model(kind: str, returns: bool) -> DecisionModel:
    torch.manual_seed(0)
    config = DecisionConfig(
        states=5, actions=3, state_kind=kind, action_kind=kind, returns=returns, context_length=7,
        dim=12, n_layers=1, n_heads=3, return_mean=-5.0, return_scale=3.0, longest=20,
    )  # fmt: skip
    return stir(DecisionModel(config), 0).eval()


@pytest.mark.parametrize(
    ("kind", "returns"),
    [("number", True), pytest.param("vector", False, marks=pytest.mark.slow)],
)
def test_a_graph(
    kind: str, returns: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    net, file = model(kind, returns), tmp_path / "acts.onnx"
    addnorm.save(net, tmp_path / "run")
    assert main(["export", "onnx", str(tmp_path / "run"), "--out", str(file)]) == 0
    assert "checked by onnxruntime" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(file))
    names = [one.name for one in session.get_inputs()]
    assert names == [*(["returns"] if returns else []), "states", "actions", "times"]
    assert session.get_outputs()[0].name == ("logits" if kind == "number" else "action")
    shape = (2, 4)
    rng = torch.Generator().manual_seed(1)
    numbers, vectors = torch.randint(3, shape, generator=rng), torch.randn(*shape, 5, generator=rng)
    tensors = {
        "returns": torch.randn(shape, generator=rng) * 3 - 5,
        "states": numbers if kind == "number" else vectors,
        "actions": numbers if kind == "number" else vectors[..., :3],
        "times": torch.arange(4).expand(shape),
    }
    feed = {name: tensors[name].numpy() for name in names}
    with torch.no_grad():
        ours = net(*tensors.values())
    theirs = torch.from_numpy(session.run(None, feed)[0])
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)  # as the check allows


def test_a_mask_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    addnorm.save(model("number", True), tmp_path / "run")
    words = ["export", "onnx", str(tmp_path / "run"), "--out", str(tmp_path / "x.onnx")]
    assert main([*words, "--with-valid"]) == 2
    assert "fill rows up at their ends" in capsys.readouterr().err
    assert main([*words, "--with-cache"]) == 2
    assert not (tmp_path / "x.onnx").exists()
