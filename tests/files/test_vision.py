"""Vision Transformers on disk: equal to transformers', in and out; damage, refusals."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import addnorm
from addnorm.data.images import ImageFrame
from addnorm.files import folders
from addnorm.files.folders import WeightsError
from addnorm.models.vision import ViT
from addnorm.models.vision_config import ViTConfig

ODD: dict[str, Any] = {
    "hidden_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "intermediate_size": 33,
    "num_labels": 7,
    "layer_norm_eps": 1e-5,
    "num_channels": 3,
    "hidden_act": "gelu_new",
}
"""No two sizes alike, none a power of two: what is transposed or split wrongly does not fit."""
SHAPES: dict[str, dict[str, Any]] = {
    "square": {"image_size": 15, "patch_size": 5},
    "oblong": {"image_size": [14, 9], "patch_size": [7, 3], "hidden_act": "relu"},
    "with a rest": {"image_size": [13, 17], "patch_size": 4, "qkv_bias": False},
}
CLASSES = (
    *("ViTModel", "ViTForImageClassification", "DeiTModel", "DeiTForImageClassification"),
    "DeiTForImageClassificationWithTeacher",
)


@pytest.fixture(scope="session")
def hf() -> Any:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    return transformers


def published(hf: Any, kind: str, **changes: Any) -> Any:
    """In evaluation mode. A norm's 1 and a bias's 0 would hide bugs: stirred."""
    torch.manual_seed(0)
    config = getattr(hf, f"{kind.partition('T')[0]}TConfig")(**{**ODD, **changes})
    model = getattr(hf, kind)(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def output(model: Any, x: torch.Tensor, **options: Any) -> torch.Tensor:
    outputs = model(pixel_values=x, **options)
    return outputs["logits"] if "logits" in outputs else outputs["last_hidden_state"]


def tiny(**changes: Any) -> ViT:
    torch.manual_seed(1)
    sizes = {"height": 12, "width": 12, "patch": 4, "dim": 20, "n_layers": 2, "n_heads": 5}
    return ViT(ViTConfig(**{"classes": 3, **sizes, **changes})).eval()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", CLASSES)
def test_parity_both_ways(hf: Any, tmp_path: Path, kind: str, shape: str) -> None:
    """float32 kernels that add in another order: outputs of size 5 after 1e3 roundings of 6e-8
    differ by 1e-5 at most."""
    theirs = published(hf, kind, **SHAPES[shape])
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = addnorm.load(tmp_path / "theirs")
    size: Any = loaded.model.config.size
    x = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(2))
    addnorm.save(loaded.model, tmp_path / "ours")
    again = getattr(hf, kind).from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        want = output(theirs, x)
        assert loaded.model(x).shape == want.shape
        assert (loaded.model(x) - want).abs().max() < 1e-5
        assert (output(again, x) - want).abs().max() < 1e-5
    assert addnorm.load(tmp_path / "ours").card["model_type"] == theirs.config.model_type
    if SHAPES[shape].get("qkv_bias", True):
        bits = load_file(tmp_path / "theirs" / "model.safetensors")
        for name, t in load_file(tmp_path / "ours" / "model.safetensors").items():
            assert torch.equal(bits[name], t)
    labels = tuple(f"LABEL_{i}" for i in range(7))
    assert loaded.labels == (None if kind.endswith("Model") else labels)


def test_positions_between_the_learned_ones(hf: Any, tmp_path: Path) -> None:
    for kind in ("ViTForImageClassification", "DeiTForImageClassification"):
        theirs = published(hf, kind, **SHAPES["square"])
        theirs.save_pretrained(tmp_path / kind)
        ours = addnorm.load(tmp_path / kind).model
        for size in ((20, 15), (25, 40), (10, 10)):
            x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(3))
            with torch.no_grad():
                want = output(theirs, x, interpolate_pos_encoding=True)
                assert (ours(x, interpolate=True) - want).abs().max() < 1e-5


def test_gradients_agree(hf: Any, tmp_path: Path) -> None:
    theirs = published(hf, "ViTForImageClassification", **SHAPES["square"])
    theirs.save_pretrained(tmp_path / "a")
    ours = addnorm.load(tmp_path / "a").model
    x = torch.randn(3, 3, 15, 15, generator=torch.Generator().manual_seed(4))
    output(theirs, x).square().sum().backward()
    ours(x).square().sum().backward()
    their_gradient = theirs.vit.embeddings.patch_embeddings.projection.weight.grad
    scale = their_gradient.abs().max()
    assert (ours.front.embed.weight.grad - their_gradient).abs().max() < 1e-5 * scale
    position = theirs.vit.embeddings.position_embeddings.grad
    assert (ours.front.positions.grad - position[0]).abs().max() < 1e-5 * position.abs().max()


@pytest.mark.parametrize(
    "changes",
    [
        {"scheme": "drop_path(layer_scale(0.1), p=0.2)", "embedding": "convolutions"},
        {"pooling": "mean", "channels": 1, "norm": "batch"},
        {"scheme": "post_norm", "patch_width": 3, "distillation": "head"},
        {"classes": 0, "norm": "rms", "channels": 2},
    ],
    ids=str,
)
def test_any_design_comes_back_as_it_was(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = tiny(**changes)
    if model.config.channels != 2:
        model.frame = ImageFrame(12, 12, model.config.channels, "pad", (0.25,), (0.75,))
    labels = ["a", "b", "ü"] if model.config.classes else None
    addnorm.save(model, tmp_path / "a", labels=labels)
    loaded = addnorm.load(tmp_path / "a")
    assert loaded.card["model_type"] == "addnorm_vit"
    one, other = model.state_dict(), loaded.model.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert loaded.model.config == model.config
    assert loaded.labels == (None if labels is None else tuple(labels))
    if model.frame is not None:
        assert dataclasses.astuple(loaded.model.frame)[:4] == (12, 12, model.config.channels, "pad")
        assert loaded.model.frame.mean == (0.25,) * model.config.channels
    with pytest.raises(WeightsError, match="reads no text"):
        addnorm.save(model, tmp_path / "b", tokenizer=addnorm.Tokenizer.bytes())


def test_the_frame_of_transformers(tmp_path: Path) -> None:
    """ViT's and DeiT's own, as their folders have it."""
    model = tiny()
    addnorm.save(model, tmp_path / "a")
    (tmp_path / "a" / folders.CHECKSUMS).unlink()
    file = tmp_path / "a" / folders.PREPROCESSOR
    assert json.loads(file.read_text())["addnorm_fit"] == "stretch"
    card = {"size": {"height": 12, "width": 12}, "image_mean": [0.5, 0.4, 0.3], "resample": 2}
    file.write_text(json.dumps({"image_processor_type": "ViTImageProcessor", **card}))
    frame: Any = addnorm.load(tmp_path / "a").model.frame
    assert (frame.fit, frame.mean, frame.whole) == ("stretch", (0.5, 0.4, 0.3), None)
    file.write_text(json.dumps({"size": 16, "crop_size": 12, "do_center_crop": True}))
    frame = addnorm.load(tmp_path / "a").model.frame
    assert (frame.whole, frame.fit) == ((16, 16), "stretch")
    file.write_text(json.dumps({"do_rescale": False}))
    with pytest.raises(WeightsError, match=r"preprocessor_config\.json: do_rescale=false"):
        addnorm.load(tmp_path / "a")


def reconfigure(folder: Path, **changes: Any) -> Path:
    card = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**card, **changes}))
    (folder / folders.CHECKSUMS).unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["ViTForMaskedImageModeling"]}, "is not read, only one of ViTModel"),
        ({"num_attention_heads": 3}, "n_heads=3 does not divide dim=20"),
        ({"hidden_act": "mish"}, "hidden_act='mish' is not implemented"),
        ({"image_size": [1, 2, 3]}, "must be a number, or two"),
        ({"patch_size": 13}, "there is no patch of 13"),
        (
            {"image_size": 16},
            r"position_embeddings has shape \(1, 10, 20\), expected \(1, 17, 20\)",
        ),
        ({"num_hidden_layers": 1}, "no place for"),
        ({"num_hidden_layers": 3}, "are missing from the weights"),
        ({"rotary": True}, "rotary=True is not an option of vit"),
        ({"id2label": {"0": "a", "1": "b"}}, "classifier.weight has shape"),
        ({"qkv_bias": "no"}, "qkv_bias='no' is not true or false"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    addnorm.save(tiny(), tmp_path / "a", labels=["a", "b", "c"])
    with pytest.raises(WeightsError, match=message):
        addnorm.load(reconfigure(tmp_path / "a", **changes))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    model = tiny()
    with pytest.raises(WeightsError, match="give as many names, all different"):
        addnorm.save(model, tmp_path / "a", labels=["a", "a", "b"])
    addnorm.save(model, tmp_path / "a", labels=["a", "b", "c"])
    file = tmp_path / "a" / "model.safetensors"
    good = load_file(file)
    (tmp_path / "a" / folders.CHECKSUMS).unlink()
    for name, value, message in (
        ("classifier.bias", torch.full((3,), float("nan")), "not finite"),
        ("classifier.bias", torch.zeros(3, dtype=torch.int8), "I8: weights are"),
    ):
        save_file({**good, name: value}, file)
        with pytest.raises(WeightsError, match=message):
            addnorm.load(tmp_path / "a")
