"""Texts without labels in a training: what is learned of them, and that they are divided as the
others are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from addnorm import train
from addnorm.cli import main
from addnorm.data.sources import DataError
from addnorm.errors import Mendable
from addnorm.settings import SettingsError
from addnorm.tasks.classify import ClassifySettings, ClassifyTask
from addnorm.tasks.targets import OneLabel, SeveralLabels
from addnorm.tasks.unlabelled import Unlabelled
from addnorm.training.checkpoint import Checkpoints
from addnorm.training.config import Config
from addnorm.training.display import Display
from addnorm.training.loop import Trainer
from addnorm.training.loop_settings import LoopSettings
from tests.training.test_training import ALONE, same

WORDS = {"animals": "cat dog cow hen fox", "plants": "oak ash elm fir fig"}
SMALL = {"model.context_length": 16, "model.dim": 16, "model.n_layers": 1, "model.n_heads": 2}
QUIET = Display(quiet=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few texts with labels, and more without."""
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(160):
        name = list(WORDS)[i % 2]
        rows.append((" ".join(rng.choice(WORDS[name].split(), rng.integers(2, 6))), name))
    sides = {"few": rows[:12], "val": rows[12:60]}
    for side, part in sides.items():
        lines = [json.dumps({"text": text, "label": name}) for text, name in part]
        (folder / f"{side}.jsonl").write_text("\n".join(lines))
    # with some that are held out
    (folder / "more.txt").write_text("\n".join(text for text, _ in rows[50:]))
    return folder


def config(place: Path, **changes: Any) -> Config:
    about = ClassifySettings(
        data=str(place / "few.jsonl"),
        val_data=str(place / "val.jsonl"),
        rows_per_step=6,
        cache=place / "cache",
    )
    loop = LoopSettings(
        steps=30, lr=1e-2, warmup=4, eval_every=30, save_every=15, threads=1, precision="fp32"
    )
    more = {"unlabelled.data": str(place / "more.txt"), "unlabelled.per_text": 2}
    return Config(task=about, loop=loop).changed({**SMALL, **more}, changes)


def task_of(place: Path, **changes: Any) -> ClassifyTask:
    task = config(place, **changes).build()
    assert isinstance(task, ClassifyTask)
    return task


@pytest.fixture(scope="module")
def teacher(place: Path) -> Path:
    return train(
        config(place, **{"unlabelled.data": ""}), out=place / "teacher", display=QUIET
    ).folder


def test_the_loss_is_that_of_the_paper(place: Path) -> None:
    """By loops, as FixMatch writes it; for several labels each by itself."""
    wish = {"unlabelled.weight": 0.7, "dropout": 0.0}
    task = task_of(place, **wish)
    torch.manual_seed(0)
    model, batch = task.model(), task.batch("train", 3, 0, 0, 1)
    plain = batch["plain"].flatten(0, 1), batch["plain_valid"].flatten(0, 1)
    with torch.no_grad():
        confidence = float(model(*plain).softmax(-1).amax(-1).quantile(0.4))
        task = task_of(
            place, **wish, **{"unlabelled.confidence": confidence / 0.9}
        )  # smoothing 0.1
        loss, count, parts = task.loss(model, batch)
        own = F.cross_entropy(
            model(batch["ids"], batch["valid"]), batch["label"], label_smoothing=0.1
        )
        others, sure = [], 0
        for row in range(6):
            for j in range(2):
                plain, noised = (
                    model(batch[name][row, j][None], batch[f"{name}_valid"][row, j][None])[0]
                    for name in ("plain", "noised")
                )
                p = plain.softmax(-1)
                sure += int(p.max() >= confidence)
                one = -noised.log_softmax(-1)[p.argmax()]
                others.append(one if p.max() >= confidence else torch.tensor(0.0))
    assert 0 < sure < 12
    expected = own + 0.7 * torch.stack(others).mean()
    torch.testing.assert_close(loss / count, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts["sure"] / count, torch.tensor(sure / 12))


def test_what_probabilities_say() -> None:
    p = torch.tensor([[0.7, 0.3], [0.45, 0.55], [0.04, 0.96]])
    labels, mask = OneLabel("ab").pseudo_labels(p, 0.7)
    assert labels.tolist() == [0, 1, 1]
    assert mask.tolist() == [True, False, True]
    several = SeveralLabels("ab")
    labels, mask = several.pseudo_labels(p, 0.9)
    assert labels.tolist() == [[1, 0], [0, 1], [0, 1]]
    assert mask.tolist() == [[False, False], [False, False], [True, True]]
    logits = torch.tensor([[9.0, -9.0], [9.0, 9.0], [0.0, 0.0]])
    # of the only text that counts both labels are even
    assert several.loss(logits, labels, mask=mask).item() == pytest.approx(np.log(2))


@pytest.mark.parametrize("by_teacher", [False, True], ids=["consistency", "teacher"])
def test_it_learns_and_resumes(
    place: Path, teacher: Path, tmp_path: Path, by_teacher: bool
) -> None:
    """A resumed run is the run, and a step is the same whoever takes it, and in which parts."""
    wish = {"unlabelled.confidence": 0.9, "unlabelled.teacher": str(teacher) if by_teacher else ""}
    settings = config(place, **wish)
    run = train(settings, out=tmp_path / "a", display=QUIET)
    assert run.metrics["accuracy"] >= 0.9
    train(settings, out=tmp_path / "b", until=15, display=QUIET)
    train(settings, out=tmp_path / "b", resume=True, display=QUIET)
    a, b = (Checkpoints(tmp_path / n / "checkpoints").load() for n in "ab")
    assert same(a.tensors, b.tensors)
    (place / "other.txt").write_text("cat\ndog\noak")
    other = {"unlabelled.data": str(place / "other.txt"), "unlabelled.confidence": 0.5}
    with pytest.raises(SettingsError, match="unlabelled was"):
        train(settings.changed(other), out=tmp_path / "b", resume=True, display=QUIET)

    task = task_of(place, **wish)
    alone = task.batch("train", 3, 5, 0, 1)
    names = {"plain", "plain_valid"} if not by_teacher else {"pseudo_label", "mask"}
    assert alone.keys() == {"ids", "valid", "label", "noised", "noised_valid", *names}
    assert {name: t.shape[:2] for name, t in alone.items() if name in names} == dict.fromkeys(
        names, (6, 2)
    )
    for rank in range(4):  # 6 rows: two processes have one, and two have two
        part = task.batch("train", 3, 5, rank, 4)
        assert all(torch.equal(part[name], t[rank::4]) for name, t in alone.items())
    assert task.row("train", 3, 5).keys() == {"ids", "valid", "label"}


def gradients(place: Path, **changes: Any) -> tuple[Mapping[str, Tensor], float]:
    settings = config(place, dropout=0.0, **{"unlabelled.confidence": 0.5}, **changes)
    trainer = Trainer(settings.build(), settings.loop, ALONE)
    total, count, _ = trainer._accumulate(trainer.batch())
    trainer._divide(count)
    return {n: p.grad for n, p in trainer.parameters().items() if p.grad is not None}, total / count


def test_gradients(place: Path) -> None:
    """In parts they are those of the whole batch; under autocast every weight that is learned has
    one, although the same weights were read without gradients just before."""
    whole, loss = gradients(place)
    parts, again = gradients(place, micro_rows=4)
    assert again == pytest.approx(loss, rel=1e-5)
    for name, g in whole.items():
        torch.testing.assert_close(parts[name], g, rtol=1e-4, atol=1e-6)
    half, _ = gradients(place, precision="bf16")
    assert half.keys() == whole.keys()
    for name, g in whole.items():
        if g.norm() > 1e-3:  # bfloat16 has 8 bits, and the model a few layers
            assert F.cosine_similarity(half[name].flatten(), g.flatten(), dim=0) > 0.98, name


def test_a_teacher_is_asked_once(
    place: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says is kept, and asked for again where the file was damaged; what it is sure of is
    told."""
    wish = {"unlabelled.teacher": str(teacher), "unlabelled.confidence": 0.6, "cache": tmp_path}
    task = task_of(place, **wish)
    lines = [line for line in task.introduction() if "is sure of" in line]
    assert len(lines) == 1
    assert "animals" in lines[0]
    batch = task.batch("train", 0, 0, 0, 1)
    monkeypatch.setattr("addnorm.tasks.unlabelled.load", lambda path: pytest.fail("asked again"))
    again = task_of(place, **wish).batch("train", 0, 0, 0, 1)
    assert all(torch.equal(t, again[name]) for name, t in batch.items())
    monkeypatch.undo()
    (file,) = tmp_path.glob("*/probabilities.npy")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="The teacher is asked again"):
        again = task_of(place, **wish).batch("train", 0, 0, 0, 1)
    assert all(torch.equal(t, again[name]) for name, t in batch.items())
    confidence = {"unlabelled.confidence": 1.0, "label_smoothing": 0.0}
    with pytest.raises(SettingsError, match=r"finds no label as probable .*the most probable has"):
        task_of(place, **{**wish, **confidence, "cache": tmp_path / "new"})
    assert Unlabelled(data="more.txt", confidence=0.8).sure(0.25) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unlabelled.confidence": 0.0}, r"unlabelled\.confidence=0.*above 0 and at most 1"),
        ({"unlabelled.weight": 0}, r"unlabelled\.weight=0: weight must be above 0"),
        ({"unlabelled.per_text": 0}, "per_text must be at least 1"),
        ({"unlabelled.noise": 0.6}, r"noise must be in \[0, 0.5\]"),
        ({"unlabelled.data": "", "unlabelled.noise": 0.2}, "has no effect with unlabelled.data="),
        ({"unlabelled.data": "/nowhere.txt"}, r"unlabelled\.data=/nowhere.txt: .* is not there"),
        ({"unlabelled.teacher": "/nowhere"}, r"unlabelled\.teacher=/nowhere: "),
    ],
    ids=str,
)
def test_what_is_refused(place: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Mendable, match=message):
        config(place, **changes).build()


def test_what_only_repeats_what_is_held_out(place: Path) -> None:
    with pytest.raises(DataError, match="all of its 48 texts are held out"):
        config(place, **{"unlabelled.data": str(place / "val.jsonl")}).build()


def test_labels_of_others(place: Path, teacher: Path, tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(20)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    wish = {"data": str(tmp_path / "d.jsonl"), "val_data": "", "unlabelled.teacher": str(teacher)}
    with pytest.raises(SettingsError, match=r"knows the labels animals, plants, and .* have a, b"):
        config(place, **wish).build()


def test_by_heart_without_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"{k}={v}" for k, v in config(place).to_json().items() if v not in (None, [])]
    words = [word for word in words if not word.startswith(("task=", "threads="))]
    assert main(["train", "--recipe", "classify_text", "--overfit", "4", *words]) == 0
    assert "overfit: PASS" in capsys.readouterr().out
