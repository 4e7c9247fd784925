"""Labels of pictures: by the command and from Python, whatever the file is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import addnorm
from addnorm.cli import main
from addnorm.data.images import ImageFrame
from addnorm.errors import Mendable
from addnorm.models.vision import ViT
from addnorm.models.vision_config import ViTConfig

Run = Callable[..., tuple[int, list[dict[str, Any]], str]]
SHADES = {"dark": 40, "light": 220}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that tells dark pictures from light ones, and some of both."""
    place = tmp_path_factory.mktemp("shades")
    config = ViTConfig(
        classes=2, height=4, width=4, channels=1, patch=4, dim=8, n_layers=1, n_heads=1,
        pooling="mean", scheme="no_norm",
    )  # fmt: skip
    model = ViT(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.front.embed.weight[0] = 1.0
        model.head.weight[:, 0] = torch.tensor([-1.0, 1.0])
    model.frame = ImageFrame(4, 4, 1)
    addnorm.save(model, place / "model", labels=[*SHADES])
    for name, shade in SHADES.items():
        for i, size in enumerate([(4, 4), (9, 30), (1, 1)]):
            file = place / "set" / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((*size, 3), shade + i, np.uint8)).save(file)
    (place / "bad.png").write_bytes((place / "set" / "dark" / "0.png").read_bytes()[:50])
    return place


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def words(*arguments: Any) -> tuple[int, list[dict[str, Any]], str]:
        capsys.readouterr()
        status = main([*map(str, arguments), "--json"])
        text = capsys.readouterr()
        return status, [json.loads(line) for line in text.out.splitlines()], text.err

    return words


def test_a_picture_by_its_name(folder: Path, run: Run) -> None:
    names = [str(folder / "set" / label / f"{i}.png") for i in range(3) for label in SHADES]
    status, answers, errors = run("predict", folder / "model", *names)
    assert (status, errors) == (0, "")
    assert [a["input"] for a in answers] == names
    assert [a["label"] for a in answers] == ["dark", "light"] * 3
    assert all(set(a) == {"input", "label", "probability"} for a in answers)
    _, (answer,), _ = run("predict", folder / "model", names[0], "--top", 2)
    assert [*answer["probabilities"]] == ["dark", "light"]
    assert addnorm.load(folder / "model").predict(names[:2])[1]["label"] == "light"


def test_what_cannot_be_used_has_its_place(folder: Path, run: Run) -> None:
    good = folder / "set" / "light" / "1.png"
    names = [folder / "bad.png", good, folder / "missing.png", folder / "set"]
    status, answers, _ = run("predict", folder / "model", *names, "--batch-size", 2)
    assert status == 1
    assert [a["input"] for a in answers] == list(map(str, names))
    assert answers[1]["label"] == "light"
    for i, words in ((0, "cut short"), (2, "No such file"), (3, "it is a folder")):
        assert set(answers[i]) == {"input", "error"}
        assert words in answers[i]["error"]


def test_lists_of_names_are_meant_from_where_they_stand(
    folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["set/dark/0.png", "set/light/0.png"]
    (folder / "names.txt").write_text("\n".join(names))
    objects: list[Any] = [{"image": names[1]}, names[0], {"file": names[0]}, {"text": "x"}, 3]
    (folder / "names.jsonl").write_text("\n".join(map(json.dumps, objects)))
    monkeypatch.chdir(tmp_path)
    status, answers, _ = run("predict", folder / "model", folder / "names.txt")
    assert (status, [a["label"] for a in answers]) == (0, ["dark", "light"])
    status, answers, _ = run("predict", folder / "model", folder / "names.jsonl")
    assert status == 1
    assert [a.get("label") for a in answers] == ["light", "dark", "dark", None, None]
    assert 'one looks like {"image": "cat.jpg"}' in answers[3]["error"]
    assert "expected an object" in answers[4]["error"]
    status, answers, errors = run("predict", folder / "model", names[0], "--files")
    assert status == 2 or "there is no file" in errors
    monkeypatch.chdir(folder)
    assert run("predict", "model", names[0], "--files")[2].count("--files has no effect") == 1


def test_evaluation(folder: Path, run: Run, tmp_path: Path) -> None:
    status, (figures,), _ = run("eval", folder / "model", folder / "set")
    assert status == 0
    assert (figures["accuracy"], figures["pictures"]) == (1.0, 6)
    assert figures["confusion"] == [[3, 0], [0, 3]]
    rows = ["image,label", f"{folder}/set/dark/0.png,light", f"{folder}/bad.png,dark"]
    rows += [f"{folder}/set/light/2.png,light", "missing.png,dark"]
    (tmp_path / "d.csv").write_text("\n".join(rows))
    _, (figures,), _ = run("eval", folder / "model", tmp_path / "d.csv", "--batch-size", 1)
    assert (figures["accuracy"], figures["pictures"], figures["unreadable"]) == (0.5, 2, 2)
    assert "2 pictures left out" in figures["remark"]
    assert any("missing.png" in error for error in figures["errors"])
    (tmp_path / "d.csv").write_text(f"image,label\n{folder}/bad.png,dark\n")
    assert "no picture can be read" in run("eval", folder / "model", tmp_path / "d.csv")[2]
    (tmp_path / "d.csv").write_text(f"image,label\n{folder}/bad.png,red\n")
    assert (
        "labels that the model does not know: red"
        in run("eval", folder / "model", tmp_path / "d.csv")[2]
    )


def test_a_model_without_classes_is_not_asked(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"height": 4, "width": 4, "patch": 4, "dim": 8, "n_heads": 1}
    for classes, words in ((0, "without a head"), (1, "it has one label")):
        addnorm.save(ViT(ViTConfig(classes=classes, n_layers=1, **sizes)), tmp_path / str(classes))
        with pytest.raises(Mendable, match=words):
            addnorm.load(tmp_path / str(classes)).use()
