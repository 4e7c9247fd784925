"""A run's folder: whose it is comes first, and what others put there is never deleted."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from addnorm import train
from addnorm.settings import SettingsError
from addnorm.tasks.recipes import chat, classify_text, translate
from addnorm.training import parallel
from addnorm.training import run_folder as places
from addnorm.training.checkpoint import CheckpointError, Checkpoints
from addnorm.training.config import Config
from addnorm.training.loop import Diverged, Trainer
from addnorm.training.parallel import World
from addnorm.training.run_folder import FolderKind, claim, clear, examine
from tests.training.test_training import Toy, loop, quiet, small

OPTIONS: dict[str, Any] = {"loop": loop(steps=2, save_every=1), "display": quiet()}


def files(folder: Path) -> dict[str, bytes]:
    """Every file below, but for the lock, which says who has it now."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


LEFT = {"run.json", "config.toml", "checkpoints", "checkpoints/.lock"}
"""What stays of a run that is to be replaced, to be replaced at last."""


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model's run of two steps."""
    folder = tmp_path_factory.mktemp("finished")
    train(small(folder, steps=2, save_every=1, eval_every=1), out=folder / "run", display=quiet())
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished / "run", tmp_path / "run")


# --- whose folder it is ---------------------------------------------------------------------------


def test_a_folder_is_what_its_run_json_says(run: Path) -> None:
    """And not what its other names say: a project may have checkpoints and a model of its own."""
    assert examine(run).kind is FolderKind.RUN
    state = json.loads((run / "run.json").read_text())
    odd = [{**state, "step": "two"}, {**state, "metrics": {"loss": "low"}}, [state], {}, "x", None]
    odd += [{k: v for k, v in state.items() if k != name} for name in places.KEYS]
    for told in odd:
        (run / "run.json").write_text(json.dumps(told))
        assert examine(run).kind is FolderKind.DAMAGED, told
    for text in ("", "{", '{"step": 2', "[" * 10**5, "\xff", "1" * 5000):
        (run / "run.json").write_text(text, encoding="latin-1")
        assert examine(run).kind is FolderKind.DAMAGED, text[:10]
    shutil.rmtree(run / "checkpoints")
    assert examine(run).kind is FolderKind.FOREIGN


def test_what_a_start_leaves_that_fell_early_is_free(tmp_path: Path) -> None:
    assert examine(tmp_path / "not" / "there").kind is FolderKind.FREE
    assert examine(tmp_path).kind is FolderKind.FREE
    Checkpoints(tmp_path / "checkpoints").lock()
    (tmp_path / ".run.json").write_text("{")
    (tmp_path / "checkpoints" / ".saving-step-00000001-0123abcd").mkdir()
    assert examine(tmp_path).kind is FolderKind.FREE
    (tmp_path / "checkpoints" / "mine.pt").touch()
    assert examine(tmp_path).kind is FolderKind.FOREIGN


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name", ["checkpoints/mine.pt", "model/my_code.py", "wandb/x", "config.toml", "notes.txt"]
)
def test_a_project_is_not_trained_into(tmp_path: Path, name: str, overwrite: bool) -> None:
    """With --out . in it, say: refused with what is there, and nothing of it changes."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = files(tmp_path)
    with pytest.raises(SettingsError, match=f"is not empty and no run.*{name.partition('/')[0]}"):
        train(Toy(), out=tmp_path, overwrite=overwrite, **OPTIONS)
    assert files(tmp_path) == before


def test_a_run_whose_run_json_is_lost_is_left_alone_and_can_be_gone_on_with(tmp_path: Path) -> None:
    train(Toy(), out=tmp_path / "run", **OPTIONS)
    (tmp_path / "run" / "run.json").write_text("{")
    before = files(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(SettingsError, match=r"holds checkpoints of a run, but .*resume=True"):
            train(Toy(), out=tmp_path / "run", overwrite=overwrite, **OPTIONS)
    assert files(tmp_path) == before
    longer = {**OPTIONS, "loop": loop(steps=3)}
    assert train(Toy(), out=tmp_path / "run", resume=True, **longer).step == 3
    assert examine(tmp_path / "run").kind is FolderKind.RUN


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="file is a file: a run needs a folder"):
        train(Toy(), out=tmp_path / "file", **OPTIONS)


# --- replacing ------------------------------------------------------------------------------------


def classifier(folder: Path) -> Config:
    for name in ("one", "two"):
        (folder / "texts" / name).mkdir(parents=True)
        for i in range(20):
            (folder / "texts" / name / f"{i}.txt").write_text(f"{name} and {name}, {i} times.")
    shape = {"model.dim": 8, "model.n_layers": 1, "model.n_heads": 1, "model.pairs": 0}
    return classify_text().changed(
        {"data": str(folder / "texts"), "tokenizer": "bpe:260", "rows_per_step": 4, **shape}
    )


def talk(folder: Path) -> Config:
    answer = {"role": "assistant", "content": "hm"}
    lines = [{"messages": [{"role": "user", "content": str(i)}, answer]} for i in range(20)]
    (folder / "chat.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    shape = {"model.dim": 8, "model.n_layers": 1, "model.n_heads": 1, "model.context_length": 64}
    return chat().changed(
        {"data": str(folder / "chat.jsonl"), "tokenizer": "bytes", "rows_per_step": 4, **shape}
    )


def translator(folder: Path) -> Config:
    """One that is written in Marian's format, with a tokenizer for each side."""
    (folder / "pairs.tsv").write_text("".join(f"{i} a\t{i} b\n" for i in range(60)))
    shape = {"model.dim": 8, "model.encoder_layers": 1, "model.decoder_layers": 1}
    shape |= {"model.n_heads": 1, "model.context_length": 16}
    changes = {"data": str(folder / "pairs.tsv"), "rows_per_step": 4, "score_pairs": 0}
    changes |= {"tokenizer": "bytes", "target_tokenizer": "characters"}
    marian = {"model.scheme": "post_norm", "model.position": "halves"}
    return translate().changed({**changes, **shape, **marian})


SETTINGS_OF = {"chat": talk, "translate": translator, "classify": classifier}
"""Kind -> the settings of a small run on data in a folder; other kinds are language models."""


@pytest.mark.parametrize("kind", ["language", "lora", "prefix", *SETTINGS_OF])
def test_all_that_a_run_writes_is_known_by_name(finished: Path, tmp_path: Path, kind: str) -> None:
    """So that nothing of a run that is replaced is left to be taken for the next one's; of sinks,
    tests/training/test_sinks.py says it."""
    changes: dict[str, Any] = {"steps": 2, "save_every": 1, "eval_every": 1}
    if kind in ("lora", "prefix"):
        changes |= {"init_from": str(finished / "run" / "model"), "adapt.kind": kind}
    config = SETTINGS_OF.get(kind, small)(tmp_path)
    changes["cache"] = tmp_path / "cache"
    train(config.changed(changes), out=tmp_path / "run", display=quiet())
    for cut_off in (".model.0123abcd", "best/.base.0123abcd"):  # by a kill
        (tmp_path / "run" / cut_off).mkdir(parents=True)
        (tmp_path / "run" / cut_off / "config.json").touch()
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    clear(checkpoints)
    checkpoints.close()
    assert names(tmp_path / "run") == LEFT


def test_files_of_others_in_a_run_outlive_it(run: Path, finished: Path) -> None:
    mine = ("notes.txt", "checkpoints/mine.pt", "model/my_code.py", "wandb/mine", "best/a/b")
    mine += ("tensorboard/mine.csv",)
    for name in mine:
        (run / name).parent.mkdir(exist_ok=True, parents=True)
        (run / name).write_text(name)
    config = small(finished, steps=1)
    assert train(config, out=run, overwrite=True, display=quiet()).step == 1
    for name in mine:
        assert (run / name).read_text() == name
    assert Checkpoints(run / "checkpoints").steps() == [1]


@pytest.mark.parametrize(
    "name",
    ["checkpoints/step-00000002/mine.pt", "checkpoints/step-00000007/x/y", "samples.jsonl/x"],
)
def test_what_stands_in_the_way_is_named_before_anything_goes(
    run: Path, finished: Path, name: str
) -> None:
    (run / "samples.jsonl").unlink()
    (run / name).parent.mkdir(exist_ok=True, parents=True)
    (run / name).write_text("mine")
    before = files(run)
    with pytest.raises(SettingsError, match=f"in the way is .*{name.rpartition('/')[0]}"):
        train(small(finished, steps=1), out=run, overwrite=True, display=quiet())
    assert files(run) == before


@pytest.mark.parametrize(
    "wrong", [{"data": "no/such.txt"}, {"tokens_per_step": 10**13}, {"model.context_length": 10**5}]
)
def test_a_run_is_replaced_only_by_one_that_can_begin(
    run: Path, finished: Path, wrong: dict[str, Any]
) -> None:
    before = files(run)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        train(small(finished, **wrong), out=run, overwrite=True, display=quiet())
    assert files(run) == before
    assert examine(run).kind is FolderKind.RUN


def test_a_fall_between_two_deletions_leaves_a_run_that_can_be_replaced(
    run: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each of them: the folder is known as a run's to the end, with a stranger's file too."""
    (run / "notes.txt").touch()

    class Fall(BaseException):
        pass

    through, left, begun = Path.unlink, [0], 0

    def falling(self: Path, missing_ok: bool = False) -> None:
        if not left[0]:
            raise Fall
        left[0] -= 1
        through(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", falling)
    for count in range(100):
        left[0] = 1  # each time one file more
        checkpoints = Checkpoints(run / "checkpoints")
        claim(checkpoints, resume=False, overwrite=True)
        try:
            clear(checkpoints)
        except Fall:
            begun = count
        else:
            break
        finally:
            checkpoints.close()
    assert begun > 5
    assert sorted(files(run)) == ["config.toml", "notes.txt", "run.json"]


# --- one run at a time ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"resume": True}, {"overwrite": True}, {}])
def test_a_run_that_is_being_written_is_not_touched(run: Path, how: dict[str, Any]) -> None:
    """Not its checkpoints, nor its lock, nor its settings: its next resume goes by them."""
    living = Checkpoints(run / "checkpoints")
    living.lock()
    before = files(run)
    with pytest.raises((CheckpointError, SettingsError), match=r"being written to|holds a run"):
        train(Toy(), loop=loop(steps=50, lr=0.5), out=run, display=quiet(), **how)
    assert files(run) == before
    assert living._lock is not None
    assert living._lock.is_held()
    living.close()


def test_of_two_starts_in_one_folder_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second looked while the folder was still free, and comes for the lock when the first is
    at work, or done."""
    looked, may = threading.Event(), threading.Event()
    look = places.examine

    def slowly(folder: Path) -> places.FolderState:
        place = look(folder)
        if threading.current_thread().name == "second":
            looked.set()
            may.wait(60)
        return place

    monkeypatch.setattr(places, "examine", slowly)
    told: list[str] = []

    def second() -> None:
        try:
            claim(Checkpoints(tmp_path / "run" / "checkpoints"), resume=False, overwrite=False)
        except ValueError as error:
            told.append(str(error))

    for wait in (True, False):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        looked.clear()
        may.clear()
        thread = threading.Thread(target=second, name="second")
        thread.start()
        looked.wait(60)
        if wait:
            train(Toy(), out=tmp_path / "run", **OPTIONS)
        else:
            living = Checkpoints(tmp_path / "run" / "checkpoints")
            living.lock()
        may.set()
        thread.join()
    living.close()
    assert "holds a run already" in told[0]
    assert "is being written to by process" in told[1]


def test_two_things_at_once_are_refused(run: Path) -> None:
    before = files(run)
    with pytest.raises(SettingsError, match=r"--resume.*--overwrite.*exclude each other"):
        train(Toy(), out=run, resume=True, overwrite=True, **OPTIONS)
    assert files(run) == before


def test_what_fails_on_the_first_process_fails_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is left to wait for what will not come."""
    shared: list[object] = []

    def share(world: World, value: object) -> object:
        if world.first:
            shared.append(value)
        return shared[-1]

    monkeypatch.setattr(World, "share", share)

    def work_of(error: Exception | None) -> Callable[[], int]:
        def work() -> int:
            if error is not None:
                raise error
            return 3

        return work

    cpu = torch.device("cpu")
    first, second = World(0, 2, cpu), World(1, 2, cpu)
    for error, kind in ((SettingsError("no"), SettingsError), (KeyError("no"), RuntimeError)):
        with pytest.raises(type(error)):
            parallel.by_the_first(first, work_of(error))
        with pytest.raises(kind, match=r"on the first process: .*no"):
            parallel.by_the_first(second, work_of(None))
    assert parallel.by_the_first(first, work_of(None)) == 3
    assert parallel.by_the_first(second, work_of(SettingsError("not asked"))) == 3


# --- going on -------------------------------------------------------------------------------------


class Breaks(Toy):
    """Of which the gradient of a step cannot be had."""

    def loss(self, model: nn.Module, batch: Any) -> Any:
        raise KeyError("exp_avg")


@pytest.mark.parametrize(
    ("task", "changes", "error"),
    [
        (Breaks, {}, KeyError),
        (Toy, {"lr": 0.0, "compile": "true"}, SettingsError),
    ],
)
def test_a_resume_that_fails_changes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: type[Toy],
    changes: dict[str, Any],
    error: type[Exception],
) -> None:
    """In its first step, or before: the next one finds the run as it was, and goes on with it."""
    monkeypatch.setattr(Trainer, "_maybe_compiled", refusing)
    out = tmp_path / "run"
    train(Toy(), out=out, **OPTIONS)
    before = files(tmp_path)
    with pytest.raises(error):
        train(task(), loop=loop(steps=9, **changes), out=out, resume=True, display=quiet())
    assert files(tmp_path) == before
    assert train(Toy(), loop=loop(steps=3), out=out, resume=True, display=quiet()).step == 3


def refusing(trainer: Any) -> Any:
    if trainer.loop.compile == "true":
        raise SettingsError("the compiler does not work here")
    return trainer.model, "not compiled"


def test_numbers_that_break_in_the_first_step_of_a_resume_leave_the_run_as_it_was(
    tmp_path: Path,
) -> None:
    out, task = tmp_path / "run", Toy()
    train(Toy(), out=out, **OPTIONS)
    before = files(tmp_path)
    task.spoil = {2: float("nan")}
    with pytest.raises(Diverged):
        train(task, loop=loop(steps=9), out=out, resume=True, display=quiet())
    assert files(tmp_path) == before


def test_a_finished_run_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from addnorm.training.display import Display

    out = tmp_path / "run"
    train(small(tmp_path, steps=2), out=out, display=quiet())
    before = files(out)
    again = train(small(tmp_path, steps=2), out=out, resume=True, display=Display())
    assert (again.step, again.finished) == (2, True)
    assert "is finished: all of its 2 steps are done" in capsys.readouterr().out
    assert files(out) == before
    state = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**state, "finished": False}))  # it fell at the end
    train(small(tmp_path, steps=2), out=out, resume=True, display=quiet())
    now = json.loads((out / "run.json").read_text())
    assert now["finished"]
    assert now["compressed"] == state["compressed"]


@pytest.mark.parametrize("steps", [1, 2])
def test_steps_that_are_behind_the_run_are_refused(tmp_path: Path, steps: int) -> None:
    out = tmp_path / "run"
    train(Toy(), loop=loop(steps=4, save_every=1), out=out, until=2, display=quiet())
    before = files(tmp_path)
    with pytest.raises(
        SettingsError, match=rf"steps={steps} leaves nothing.*step 2 of 4.* above 2"
    ):
        train(Toy(), loop=loop(steps=steps), out=out, resume=True, display=quiet())
    assert files(tmp_path) == before


def test_a_finished_run_without_its_checkpoints_does_not_begin_anew(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(Toy(), out=out, **OPTIONS)
    shutil.rmtree(out / "checkpoints")
    before = files(out)
    with pytest.raises(SettingsError, match="is finished, and its checkpoints are gone"):
        train(Toy(), out=out, resume=True, **OPTIONS)
    assert files(out) == before
