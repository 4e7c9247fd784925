"""Classifying pictures: learned, resumed, asked, shown; rows that depend on their numbers alone."""

import base64
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import addnorm
from addnorm.cli import main
from addnorm.data.sources import DataError
from addnorm.models.vision import ViT
from addnorm.models.vision_config import ViTConfig
from addnorm.settings import SettingsError
from addnorm.tasks import Config, labelled_images, train
from addnorm.tasks.classify_images import ClassifyImagesTask
from addnorm.tasks.recipes import RECIPES
from addnorm.training.checkpoint import Checkpoints
from addnorm.training.display import Display
from tests.nets import stir
from tests.training.test_training import same

SHAPES = ("bar", "box", "dot")
TINY: dict[str, Any] = {
    "model.height": 8,
    "model.width": 8,
    "model.dim": 16,
    "model.n_layers": 1,
    "model.n_heads": 2,
    "rows_per_step": 16,
    "steps": 60,
    "warmup": 5,
    "lr": 1e-2,
    "muon_lr": 1e-2,
    "eval_every": 30,
    "save_every": 30,
    "threads": 1,
    "precision": "fp32",
    "device": "cpu",
    "label_smoothing": 0.0,
}


def drawing(name: str, rng: np.random.Generator) -> np.ndarray:
    """A red bar, a green frame or a blue dot somewhere on grey."""
    image = rng.integers(90, 110, (12, 12, 3)).astype(np.uint8)
    y, x = rng.integers(0, 6, 2)
    if name == "bar":
        image[y : y + 2, :] = (220, 30, 30)
    elif name == "box":
        image[y : y + 6, x : x + 6] = (30, 200, 30)
    else:
        image[y + 2 : y + 4, x + 2 : x + 4] = (30, 30, 230)
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place, rng = tmp_path_factory.mktemp("shapes") / "set", np.random.default_rng(0)
    for name in SHAPES:
        (place / name).mkdir(parents=True)
        for i in range(30):
            Image.fromarray(drawing(name, rng)).save(place / name / f"{i}.png")
    return place


def config(place: Path, **changes: Any) -> Config:
    return RECIPES["classify_images"]().changed({**TINY, "data": str(place), **changes})


def task(place: Path, **changes: Any) -> ClassifyImagesTask:
    result = config(place, **changes).build()
    assert isinstance(result, ClassifyImagesTask)
    return result


@pytest.mark.parametrize("scheme", ["pre_norm", "drop_path(deepnorm, p=0.1)"])
def test_it_learns_and_is_asked(
    folder: Path, tmp_path: Path, scheme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A resumed run is the run; what is saved answers, and the page shows pictures."""
    quiet = Display(quiet=True)
    whole = config(folder, **{"model.scheme": scheme, "val_fraction": 0.2, "augment.mixup": 0.2})
    run = train(whole, out=tmp_path / "a", display=quiet)
    assert run.metrics["accuracy"] >= 0.8
    train(whole, out=tmp_path / "b", until=30, display=quiet)
    train(whole, out=tmp_path / "b", resume=True, display=quiet)
    a, b = (Checkpoints(tmp_path / n / "checkpoints").load().tensors for n in "ab")
    assert same(a, b)
    capsys.readouterr()
    assert main(["eval", str(run.folder), str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] >= 0.8
    names = [str(folder / name / "0.png") for name in SHAPES]
    assert main(["predict", str(run.folder), *names, "--json"]) == 0
    answers = [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()]
    assert sum(a == b for a, b in zip(answers, SHAPES, strict=True)) >= 2
    page = (run.folder / "report.html").read_text()
    assert "What is taken for what" in page
    assert "What it looks at" in page
    assert "data:image/png;base64," in page


def test_rows_are_those_of_their_numbers(folder: Path) -> None:
    changes = {"augment.mixup": 0.4, "augment.erase": 0.5, "augment.flip": 0.5}
    one = task(folder, **changes)
    whole = one.batch("train", 3, 5, 0, 1)
    assert set(whole) == {"pixels", "label", "other", "share"}
    assert whole["pixels"].shape == (16, 3, 8, 8)
    for rank in range(3):
        part = one.batch("train", 3, 5, rank, 3)
        for name, t in part.items():
            assert torch.equal(t, whole[name][rank::3]), name
    again = task(folder, **changes).batch("train", 3, 5, 0, 1)
    assert all(torch.equal(t, whole[name]) for name, t in again.items())
    assert not torch.equal(one.batch("train", 3, 6, 0, 1)["pixels"], whole["pixels"])
    assert torch.equal(whole["other"], whole["label"].roll(-1))
    held_out = one.batch("val", 3, 0, 0, 1)
    assert set(held_out) == {"pixels", "label"}
    rows = one.images.val
    places = [one._place(len(rows), 3, n) for n in range(16)]
    assert torch.equal(held_out["pixels"], one.images.frame.pixels(rows.at(places))), "as they are"
    assert held_out["label"].tolist() == rows.labels[places].tolist()
    plain = task(folder, **dict.fromkeys(("augment.shift", "augment.turn"), 0.0))
    batch = plain.batch("train", 0, 0, 0, 1)
    images = plain.images.train
    want = images.at([plain._place(len(images), 0, n) for n in range(16)])
    assert torch.equal(batch["pixels"], plain.images.frame.pixels(want))
    epoch = [plain._place(len(images), 0, n) for n in range(len(images))]
    assert sorted(epoch) == list(range(len(images)))


def test_what_does_not_fit_the_memory_is_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = task(folder)
    monkeypatch.setattr(labelled_images, "IN_MEMORY", 1000)
    outside = task(folder)
    assert outside.images.train.fitted is None
    assert outside.images.frame == inside.images.frame
    assert outside.facts() == inside.facts()
    for step in (0, 1, 2, 7, 1):
        one, other = (t.batch("train", 0, step, 0, 1) for t in (inside, outside))
        assert all(torch.equal(t, other[name]) for name, t in one.items())


def test_which_are_held_out_is_by_all_that_a_picture_is(tmp_path: Path) -> None:
    """Pictures that begin alike are not alike; the same one twice is on one side."""
    images = np.zeros((60, 9, 9), np.uint8)
    images[:, -1, -1] = np.arange(60) // 2 * 4
    np.savez(tmp_path / "d.npz", images=images, labels=np.arange(60) // 2 % 3)
    one = task(tmp_path / "d.npz", val_fraction=0.3)
    train_side, val_side = (
        {*side.at(range(len(side)))[:, 0, -1, -1].tolist()} for side in one.sides.values()
    )
    assert 10 < len(train_side) < 28
    assert not train_side & val_side
    more = np.concatenate([images, np.full((2, 9, 9), 77, np.uint8)])
    np.savez(tmp_path / "d.npz", images=more, labels=np.arange(62) // 2 % 3)
    again = task(tmp_path / "d.npz", val_fraction=0.3).images.val
    values = again.at(range(len(again)))[:, 0, -1, -1]
    assert val_side <= {*values.tolist()}, "more pictures move no other"


def test_mixed_labels_count_by_their_shares(folder: Path) -> None:
    one = task(folder, **{"augment.mixup": 1.0, "label_smoothing": 0.2})
    batch = one.batch("train", 0, 0, 0, 1)
    torch.manual_seed(0)
    model = one.model().eval()
    loss, count, parts = one.loss(model, batch)
    logits = model(batch["pixels"]).log_softmax(-1)
    p = torch.nn.functional.one_hot
    target = batch["share"][:, None] * p(batch["label"], 3)
    target = target + (1 - batch["share"])[:, None] * p(batch["other"], 3)
    target = 0.8 * target + 0.2 / 3
    assert torch.allclose(loss, -(target * logits).sum(), atol=1e-4)
    assert int(count) == 16
    assert 0 <= int(parts["accuracy"]) <= 16


def test_grey_pictures_are_read_in_grey(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 9, 9)).astype(np.uint8)
    labels = np.arange(40) % 2
    np.savez(tmp_path / "d.npz", images=images, labels=labels)
    assert task(tmp_path / "d.npz").config.channels == 1
    assert task(tmp_path / "d.npz", colours="rgb").config.channels == 3
    colours = np.repeat(images[..., None], 3, 3)
    colours[3, 0, 0, 1] ^= 255
    np.savez(tmp_path / "c.npz", images=colours, labels=labels)
    assert task(tmp_path / "c.npz").config.channels == 3
    grey = task(tmp_path / "c.npz", colours="grey")
    assert grey.config.channels == 1
    frame = grey.images.frame
    pixels = frame.pixels(grey.images.train.at(range(len(grey.images.train))))
    assert abs(float(pixels.mean())) < 1e-2
    assert abs(float(pixels.std()) - 1) < 1e-2


def test_what_is_odd_is_told(folder: Path, tmp_path: Path) -> None:
    rows = [f"{folder}/{name}/{i}.png,{name}" for i in range(20) for name in SHAPES[:2]]
    (tmp_path / "cut.png").write_bytes((folder / "bar" / "0.png").read_bytes()[:60])
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    rows += ["cut.png,bar", "missing.png,box", "dot.png,bar"]
    (tmp_path / "d.csv").write_text("\n".join(["image,label", *rows]))
    val = [f"{folder}/bar/0.png,bar", f"{folder}/box/29.png,box"]
    (tmp_path / "v.csv").write_text("\n".join(["image,label", *val]))
    one = task(tmp_path / "d.csv", val_data=str(tmp_path / "v.csv"))
    text = "\n".join(one.introduction())
    for words in (
        "2 pictures of ",
        "cannot be read and are left out",
        "cut.png is damaged or cut short",
        "missing.png: No such file",
        "1 picture of a single pixel: ",
        "1 picture of ",
        "learned by heart: ",
        "43 pictures decoded, ",
        "41 pictures to learn from, 2 held out",
    ):
        assert words in text, words
    (tmp_path / "d.csv").write_text("image,label\ncut.png,a\nmissing.png,b\n")
    with pytest.raises(DataError, match=r"data=.*d\.csv: .*no picture can be read"):
        task(tmp_path / "d.csv")
    (tmp_path / "d.csv").write_text("\n".join(["image,label", *rows[:-3:2]]))
    with pytest.raises(DataError, match="of all pictures, 20, the label is bar"):
        task(tmp_path / "d.csv")
    (tmp_path / "d.csv").write_text("\n".join(["image,label", *rows]))
    (tmp_path / "v.csv").write_text(f"image,label\n{folder}/dot/0.png,dot")
    with pytest.raises(DataError, match=r"no picture in .* has the label 'dot'"):
        task(tmp_path / "d.csv", val_data=str(tmp_path / "v.csv"))


def test_from_a_model_of_transformers(folder: Path, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"height": 8, "width": 8, "patch": 4, "dim": 12, "n_heads": 2}
    start = stir(ViT(ViTConfig(classes=7, n_layers=1, **sizes)))
    addnorm.save(start, tmp_path / "vit")
    assert addnorm.load(tmp_path / "vit").card["model_type"] == "vit"
    base = RECIPES["classify_images"]().changed(
        {"data": str(folder), "init_from": str(tmp_path / "vit"), "steps": 2, "device": "cpu"}
    )
    one = base.build()
    model = one.model()
    assert isinstance(model, ViT)
    assert torch.equal(model.front.positions, start.front.positions)
    assert model.head.out_features == 3
    assert dataclasses.astuple(model.frame)[:4] == (8, 8, 3, "stretch")
    assert model.frame.mean == (0.5,) * 3
    run = train(base, out=tmp_path / "run", display=Display(quiet=True))
    loaded = addnorm.load(run.folder)
    assert (loaded.card["model_type"], loaded.labels) == ("vit", SHAPES)
    shape = {"context_length": 4, "dim": 4, "n_layers": 1, "n_heads": 1}
    addnorm.save(addnorm.GPT(addnorm.GPTConfig(vocab_size=9, **shape)), tmp_path / "gpt")
    for place, words in (("gpt", "it is no Vision Transformer"), ("none", "none")):
        with pytest.raises(SettingsError, match=words):
            base.changed({"init_from": str(tmp_path / place)}).build()


def test_the_pictures_are_pictures(folder: Path) -> None:
    one = task(folder, val_fraction=0.3)
    torch.manual_seed(0)
    assert one.pictures() == []
    one.evaluate(one.model())
    by_title = {picture["title"]: picture for picture in one.pictures()}
    assert [*by_title] == ["What is taken for what", "The worst errors", "What it looks at"]
    assert "held-out pictures" in by_title["The worst errors"]["caption"]
    assert len(by_title["The worst errors"]["items"]) == 5
    for item in by_title["What it looks at"]["items"]:
        image = Image.open(io.BytesIO(base64.b64decode(item["png"])))
        assert image.size == (8, 8) == (item["width"], item["width"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ""}, "data is not set: a folder with a sub-folder of pictures"),
        ({"data": "/nowhere"}, "data=/nowhere: /nowhere is not a folder or file"),
        (
            {"model.patch": 3, "model.embedding": "patches"},
            "patches of 3 x 3 pixels do not divide a picture of 8 x 8",
        ),
        ({"model.height": 6, "model.embedding": "patches"}, "do not divide a picture of 6 x 8"),
        ({"val_fraction": 1.0}, "val_fraction must be between"),
        ({"dropout": -0.1}, "dropout must be in"),
        ({"label_smoothing": 1.0}, "label_smoothing must be in"),
        ({"rows_per_step": 0}, "rows_per_step must be at least 1"),
        ({"rows_per_step": 1, "augment.mixup": 0.5}, "mixes the pictures of a step"),
        ({"augment.crop": 2}, "augment.crop must be"),
        ({"init_from": "x"}, "init_from"),
    ],
    ids=str,
)
def test_what_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((SettingsError, DataError), match=message):
        config(folder, **changes).build()


def test_learned_by_heart(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"{key}={value}" for key, value in TINY.items() if key not in ("steps", "warmup")]
    words += [f"data={folder}", "augment.mixup=0.5", "augment.erase=1"]
    assert main(["train", "--recipe", "classify_images", "--overfit", "8", *words]) == 0
    assert "overfit: PASS" in capsys.readouterr().out


@pytest.mark.slow  # several processes
def test_a_killed_run_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"{key}={value}" for key, value in TINY.items() if key != "steps"]
    words += [f"data={folder}", "augment.mixup=0.5", "augment.crop=0.7"]
    assert main(["train", "--recipe", "classify_images", "--prove-resume", *words]) == 0
    assert "PASS" in capsys.readouterr().out
