"""What a resumed run may change, by what each setting says of itself, and the ways out."""

import dataclasses
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from addnorm import settings, train
from addnorm.cli import main
from addnorm.files import folders
from addnorm.settings import AT_RESUME, AtResume, SettingsError
from addnorm.tasks.chat import ChatSettings
from addnorm.tasks.classify import ClassifySettings
from addnorm.tasks.language import LanguageSettings
from addnorm.training.config import Config
from addnorm.training.display import Display
from addnorm.training.loop import Trainer
from addnorm.training.loop_settings import LoopSettings
from addnorm.training.resume import Resume
from addnorm.training.run_folder import read
from tests.test_settings import OTHER, classes, language
from tests.training.test_run_folder import files
from tests.training.test_training import ALONE, Toy, loop

DOCS = Path(__file__).parents[2] / "docs" / "training.md"
SAME = {"tokenizer": "bytes", "samples": 0, "eval_every": 0, "save_every": 2, "steps": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: a model from nothing, and one with an adapter beside it."""
    folder = tmp_path_factory.mktemp("resume")
    train(language(folder, **SAME), out=folder / "run", display=quiet())
    start = {"init_from": str(folder / "run" / "model"), "adapt.kind": "lora"}
    train(language(folder, **SAME, **start), out=folder / "lora", display=quiet())
    return folder


def quiet() -> Display:
    return Display(quiet=True)


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    return shutil.copytree(place / "run", tmp_path / "run")


def same(state: Mapping[str, Any]) -> Config:
    return Config.from_json(state["config"])


# --- marks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LoopSettings, LanguageSettings, ClassifySettings])
def test_every_setting_says_what_a_resume_may_do_with_it(kind: Any) -> None:
    silent = [f for f in dataclasses.fields(kind) if AT_RESUME not in f.metadata]
    for field in silent:  # then each of its own settings says it
        assert field.default_factory is not dataclasses.MISSING, field.name
        parts = dataclasses.fields(field.default_factory())
        assert all(AT_RESUME in part.metadata for part in parts), field.name


def test_what_says_nothing_is_kept() -> None:
    @dataclasses.dataclass(frozen=True)
    class New:
        thing: int = 3

    assert settings.at_resume(New()) == {"thing": AtResume.ANEW}


def test_the_docs_tell_it_of_every_setting() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ((?:`[^`|]+`,? ?)+)\|$", DOCS.read_text(), re.MULTILINE)
    told = {mark: set(re.findall(r"`([^`]+)`", keys)) for mark, keys in rows}
    marks: dict[str, AtResume] = {}
    kinds = (LanguageSettings, ClassifySettings, ChatSettings)
    for config in (Config(task=kind()) for kind in kinds):
        each = config.at_resume()
        for key, mark in each.items():
            part = key.partition(".")[0]
            alike = len({m for k, m in each.items() if k.startswith(f"{part}.")}) == 1
            marks[f"{part}.*" if "." in key and alike else key] = mark
    marks.pop("task")
    for mark in AtResume:
        assert told[mark.value] == {key for key, m in marks.items() if m is mark}


# --- a change -------------------------------------------------------------------------------------


def refused(config: Config, out: Path) -> str:
    before = files(out)
    with pytest.raises(SettingsError) as error:
        train(config, out=out, resume=True, display=quiet())
    assert files(out) == before
    return str(error.value)


@pytest.mark.parametrize(
    "key",
    [
        *("seed", "optimizer", "val_fraction", "document_mask", "tokens_per_step"),
        *("model.n_heads", "model.activation"),
        *("tokenizer", "data", "init_from"),
    ],
)
def test_a_change_that_would_make_another_run_is_refused(run: Path, place: Path, key: str) -> None:
    """With the key, both values, and a way that works; and nothing in the folder is changed."""
    value = OTHER[key] if key != "tokenizer" else "characters"
    if key in ("data", "init_from"):
        value = str(place / ("more.txt" if key == "data" else "run/model"))
    (place / "more.txt").write_text("another text, of which more is said below. " * 40)
    config = same(read(run))
    told = refused(config.changed({key: value, "steps": 4}), run)
    then = read(run)["config"][key]
    for said in (settings.assignment(key, value), settings.assignment(key, then)):
        assert said in told
    if key == "init_from":
        assert "it goes on with its own weights, so leave this out" in told
        return
    anew = key.startswith("model.") or key in ("val_fraction", "split", "tokenizer")
    assert ("new run that starts from scratch" in told) == anew
    follow(told, run.parent / "new", key, value)


def follow(told: str, out: Path, key: str, value: Any) -> None:
    """The command that a message tells trains a run with what was wanted, one step long."""
    command = shlex.split(told[told.index("addnorm train") :].replace("--out NEW", f"--out {out}"))
    assert main([*command[1:], "steps=1"]) == 0
    assert read(out)["config"][key] == value


@pytest.mark.parametrize(("key", "value"), [("adapt.rank", 2), ("adapt.kind", "none"), ("seed", 3)])
def test_the_way_out_of_a_run_with_an_adapter(
    place: Path, tmp_path: Path, key: str, value: Any
) -> None:
    run = shutil.copytree(place / "lora", tmp_path / "lora")
    told = refused(same(read(run)).changed({key: value, "steps": 4}), run)
    assert f"init_from={run}/model" in told
    follow(told, tmp_path / "new", key, value)


@pytest.mark.parametrize("kind", ["lora", "adapter"])
def test_an_adapter_begins_with_the_weights_that_a_run_has(
    run: Path, place: Path, tmp_path: Path, kind: str
) -> None:
    """A run without one has them, and one with a prefix has none but those that it began with."""
    told = refused(same(read(run)).changed({"adapt.kind": kind, "steps": 4}), run)
    assert f"init_from={run}/model" in told
    follow(told, tmp_path / "new", "adapt.kind", kind)
    start = {"init_from": str(place / "run" / "model"), "adapt.kind": "prefix"}
    train(language(place, **SAME, **start), out=tmp_path / "prefix", display=quiet())
    told = refused(
        same(read(tmp_path / "prefix")).changed({"adapt.kind": kind, "steps": 4}),
        tmp_path / "prefix",
    )
    assert "new run that starts from scratch" in told
    follow(told, tmp_path / "another", "adapt.kind", kind)


def test_a_prefix_is_no_part_of_weights_to_begin_from(place: Path, tmp_path: Path) -> None:
    """The run's folder has the model without it, which is the one that it began with."""
    start = {"init_from": str(place / "run" / "model"), "adapt.kind": "prefix"}
    config = language(place, **SAME, **start)
    train(config, out=tmp_path / "run", display=quiet())
    told = refused(config.changed({"seed": 3, "steps": 4}), tmp_path / "run")
    assert "new run that starts from scratch" in told
    follow(told, tmp_path / "new", "seed", 3)


def test_a_classifier_has_no_weights_to_begin_from(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "texts" / name).mkdir(parents=True)
        for i in range(20):
            (tmp_path / "texts" / name / f"{i}.txt").write_text(f"{name} and {name}, {i} times.")
    config = classes(tmp_path, steps=1)
    train(config, out=tmp_path / "run", display=quiet())
    told = refused(config.changed({"steps": 2, "rows_per_step": 5}), tmp_path / "run")
    assert "new run that starts from scratch" in told
    follow(told, tmp_path / "new", "rows_per_step", 5)


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 0.5, "beta2": 0.5, "clip": 0.1},
        {"schedule": "wsd", "decay": 0.9},
        {"micro_rows": 1, "dropout": 0.3, "z_loss": 0.1},
    ],
    ids=str,
)
def test_other_numbers_are_told(
    run: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"{key}={value}" for key, value in changes.items()]
    before = settings.defaults(LoopSettings) | read(run)["config"]
    assert main(["train", "--resume", str(run), "steps=3", *words]) == 0
    said = capsys.readouterr().out
    for key, value in changes.items():
        assert f"{key} {before[key]} then, {value} now" in said
    assert "the numbers are from here on those of the new settings" in said
    assert read(run)["config"] | changes == read(run)["config"]
    assert main(["train", "--resume", str(run), "steps=4"]) == 0
    assert "not the same as then" not in capsys.readouterr().out


def test_what_is_free_is_not_talked_about(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free = ["steps=3", "eval_every=1", "save_every=1", "keep=1", "watch_every=1", "samples=1"]
    free += ["nonfinite=skip", f"cache={tmp_path / 'other'}"]
    assert main(["train", "--resume", str(run), *free]) == 0
    said = capsys.readouterr().out
    assert "resumed at step 2 of 3" in said
    assert "not the same as then" not in said


def test_a_text_that_was_moved_is_the_same_text(run: Path, place: Path, tmp_path: Path) -> None:
    moved = shutil.copy(place / "text.txt", tmp_path / "moved.txt")
    assert main(["train", "--resume", str(run), "steps=3", f"data={moved}"]) == 0
    lora = shutil.copytree(place / "lora", tmp_path / "lora")
    model = shutil.copytree(place / "run" / "model", tmp_path / "base")
    assert main(["train", "--resume", str(lora), "steps=3", f"init_from={model}"]) == 0


def test_another_model_to_start_from_is_not_the_same(place: Path, tmp_path: Path) -> None:
    """Not even one whose tensors have the same shapes."""
    train(language(place, **SAME, **{"model.activation": "relu"}), out=tmp_path / "relu")
    lora = shutil.copytree(place / "lora", tmp_path / "lora")
    other = {"init_from": str(tmp_path / "relu" / "model"), "steps": 3}
    told = refused(same(read(lora)).changed(other), lora)
    assert "model was activation=gelu_tanh and is activation=relu (init_from=" in told
    follow(told, tmp_path / "new", "init_from", other["init_from"])
    train(language(place, **SAME, seed=9), out=tmp_path / "twin", display=quiet())
    for kind in ("lora", "none"):
        start = {"init_from": str(place / "run" / "model"), "adapt.kind": kind}
        then = language(place, **SAME, **start)
        train(then, out=tmp_path / f"run-{kind}", display=quiet())
        twin = {"init_from": str(tmp_path / "twin" / "model"), "steps": 3}
        told = refused(then.changed(twin), tmp_path / f"run-{kind}")
        assert "start was" in told
        assert "starts from those weights" in told
        follow(told, tmp_path / f"new-{kind}", "init_from", twin["init_from"])


def test_weights_to_begin_with_are_read_at_the_start_alone(place: Path, tmp_path: Path) -> None:
    """They may be gone by the time that a checkpoint says which they were."""
    start = shutil.copytree(place / "run" / "model", tmp_path / "start")
    task = language(place, **SAME, init_from=str(start)).build()
    before = task.facts()
    shutil.rmtree(start)
    assert task.facts() == before
    assert before["start"] == folders.identity(place / "run" / "model")


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:260", "characters"])
def test_a_text_that_grew_is_another_text(tmp_path: Path, tokenizer: str) -> None:
    """The tokenizer that was learned from it comes with the weights; but one of characters may not
    know all that are new."""
    config = language(tmp_path, **{**SAME, "tokenizer": tokenizer})
    train(config, out=tmp_path / "run", display=quiet())
    with (tmp_path / "text.txt").open("a") as text:
        text.write("<|endoftext|> and more of it.")
    told = refused(config.changed({"steps": 3}), tmp_path / "run")
    assert re.search(r"content was \w+ and is \w+: this would not be the run in", told)
    assert (f"init_from={tmp_path}/run/model --out NEW" in told) == (tokenizer != "characters")
    follow(told, tmp_path / "new", "data", str(tmp_path / "text.txt"))


def test_a_task_of_ones_own_keeps_what_its_loop_says(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(Toy(), loop=loop(steps=2), out=out, display=quiet())
    before = files(out)
    with pytest.raises(
        SettingsError, match=r"seed=5 would make .* begin a new run in another folder"
    ):
        train(Toy(), loop=loop(steps=4, seed=5), out=out, resume=True, display=quiet())
    with pytest.raises(
        SettingsError, match=r"optimizer=muon would make .*/run another run: it has optimizer=adamw"
    ):
        train(Toy(), loop=loop(steps=4, optimizer="muon"), out=out, resume=True, display=quiet())
    assert files(out) == before
    assert train(Toy(), loop=loop(steps=4), out=out, resume=True, display=quiet()).step == 4


def test_a_run_that_had_no_checkpoint_yet_keeps_its_settings_too(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyError):
        train(Falls(), loop=loop(), out=out, display=quiet())
    told = {"loop": loop(seed=3), "out": out, "display": quiet()}
    with pytest.raises(SettingsError, match=r"seed=3 would make .* another run"):
        train(Toy(), resume=True, **told)
    assert train(Toy(), loop=loop(steps=2), out=out, resume=True, display=quiet()).step == 2


class Falls(Toy):
    """In its second step."""

    def batch(self, split: str, seed: int, step: int, rank: int, world: int) -> Any:
        if step:
            raise KeyError(step)
        return super().batch(split, seed, step, rank, world)


def test_a_change_to_a_finished_run_needs_more_steps(run: Path) -> None:
    told = refused(same(read(run)).changed({"lr": 0.5}), run)
    assert "lr=0.5 has no effect: " in told
    assert "Say steps=N too" in told


def test_a_setting_that_an_older_run_did_not_know_was_what_it_is_by_itself(tmp_path: Path) -> None:
    """So that runs go on after a setting is new."""
    then = {
        key: value
        for key, value in Config(task=LanguageSettings()).to_json().items()
        if key != "document_mask"
    }
    now = Config(task=LanguageSettings())
    assert Resume.of(tmp_path, then, now, now.loop).notices() == []
    now = now.changed({"document_mask": True})
    with pytest.raises(SettingsError, match=r"document_mask=true would .* document_mask=false"):
        Resume.of(tmp_path, then, now, now.loop).notices()


@pytest.mark.parametrize(("then", "now", "scale"), [("fp32", "fp16", 2**16), ("fp16", "fp32", 1)])
def test_another_precision_has_its_own_scale(then: Any, now: Any, scale: float) -> None:
    """float16's gradients would vanish at float32's, which is 1."""
    before = Trainer(Toy(dtype=torch.float32), loop(precision=then), ALONE)
    before.step()
    after = Trainer(Toy(dtype=torch.float32), loop(precision=now), ALONE)
    differ = after.restore(before.tensors(), before.facts())
    assert differ == [f"precision {then} then, {now} now"]
    assert after.scale == scale
