"""Where numbers go: every value as it was, whatever ended the run; and the optional sinks."""

import errno
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from addnorm import train
from addnorm.files import gpt as gpt_files
from addnorm.records import read
from addnorm.settings import SettingsError
from addnorm.tasks.language import LanguageSettings
from addnorm.training.checkpoint import CheckpointError, Checkpoints
from addnorm.training.config import Config
from addnorm.training.display import Display
from addnorm.training.fit import Course
from addnorm.training.loop import Trainer
from addnorm.training.run_folder import clear
from addnorm.training.run_observers import Samples, Unwritten
from addnorm.training.sinks import JSONLines, open_sinks, scalars
from tests.training.test_run_folder import LEFT, names
from tests.training.test_training import small


def test_lines_are_there_at_once_and_hold_what_was_measured(tmp_path: Path) -> None:
    sink = JSONLines(tmp_path / "metrics.jsonl")
    sink.write({"step": 1, "loss": math.nan, "grad_norm": math.inf})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())  # before it is closed
    assert math.isnan(line["loss"])
    assert line["grad_norm"] == math.inf
    sink.close()


def test_a_line_that_a_kill_cut_off(tmp_path: Path) -> None:
    """It is passed over, and what comes after it is not glued to it."""
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"step": 1, "loss": 1.0}}\n{"[" * 100_000}\n{{"step": 2, "lo')
    sink = JSONLines(file)
    sink.write({"step": 2, "loss": 2.0})
    sink.close()
    assert [r["loss"] for r in read(file)] == [1.0, 2.0]


def full_disk(monkeypatch: pytest.MonkeyPatch, named: str, room: list[int]) -> None:
    """Of files whose name ends so, writes take ``room[0]`` bytes more, and then none."""
    write = os.write

    def limited(to: int, data: bytes) -> int:
        if not os.readlink(f"/proc/self/fd/{to}").endswith(named):
            return write(to, data)
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        n = write(to, data[: room[0]])
        room[0] -= n
        return n

    monkeypatch.setattr(os, "write", limited)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="files by number need /proc")
def test_a_full_disk_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, room = tmp_path / "metrics.jsonl", [20]
    full_disk(monkeypatch, file.name, room)
    sink = JSONLines(file)
    for step in (1, 2):
        with pytest.raises(OSError, match="No space left"):
            sink.write({"step": step, "loss": float(step)})
    room[0] = 1000
    sink.write({"step": 3, "loss": 3.0})
    sink.close()
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="files by number need /proc")
@pytest.mark.parametrize("again", [True, False])
def test_training_goes_on_beside_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], again: bool
) -> None:
    """Told once; every step is there if there was room before the end, and else the run fails."""
    room = [0]
    full_disk(monkeypatch, "metrics.jsonl", room)
    write_samples = Samples._write

    def room_again(self: Samples, *what: Any) -> None:
        room[0] = 10**6 if again else 0
        write_samples(self, *what)

    monkeypatch.setattr(Samples, "_write", room_again)
    config = small(tmp_path, steps=4, eval_every=3)
    if again:
        assert train(config, out=tmp_path / "run").finished
        lines = read(tmp_path / "run" / "metrics.jsonl")
        assert [r["step"] for r in lines if "loss" in r] == [1, 2, 3, 4]
    else:
        with pytest.raises(Unwritten, match=r"step 4 is done and saved.*metrics\.jsonl"):
            train(config, out=tmp_path / "run")
    assert capsys.readouterr().out.count("No space left on device\ntraining goes on") == 1
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_a_model_that_found_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """safetensors has an error of its own for it; whatever else goes wrong then is told as well."""

    def full(*args: Any, **kwargs: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(gpt_files, "save_file", full)
    with pytest.raises(Unwritten, match="did not take all of best, model"):
        train(small(tmp_path, steps=4, eval_every=2, save_every=2), out=tmp_path / "run")
    told = capsys.readouterr().out
    for name in ("model", "best"):
        said = f"{tmp_path / 'run' / name} could not be written: I/O error: No space left"
        assert told.count(said) == 1
    assert [f.name for f in (tmp_path / "run" / "checkpoints").glob("step-*")]


def test_what_ended_a_run_is_not_hidden_by_what_failed_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_room(self: Any) -> None:
        raise CheckpointError("step 2 could not be saved")

    def broken(self: Any, last: bool) -> None:
        monkeypatch.setattr(Checkpoints, "wait", no_room)
        raise ZeroDivisionError("the first to go wrong")

    monkeypatch.setattr(Course, "_evaluate", broken)
    with pytest.raises(ZeroDivisionError, match="the first"):
        train(small(tmp_path, steps=4, eval_every=2), out=tmp_path / "run")
    assert "step 2 could not be saved" in capsys.readouterr().out


def test_scalars() -> None:
    record = {"step": 3, "loss": 1.5, "skipped": True, "stream_rms": [1.0, 2.0], "name": "x"}
    assert list(scalars(record)) == [
        ("loss", 1.5),
        ("stream_rms/000", 1.0),
        ("stream_rms/001", 2.0),
    ]


# --- the libraries themselves ---------------------------------------------------------------------


def resumed(folder: Path, **changes: Any) -> Path:
    """A run of 12 steps, stopped after 6 and gone on with, that had gone on to 7 without saving."""
    config = small(folder, steps=12, eval_every=4, save_every=6, watch_every=5, **changes)
    out, quiet = folder / "run", Display(quiet=True)
    step = Trainer.step

    class Fall(Exception):
        pass

    def falling(self: Trainer, *args: Any) -> Any:
        if self.done == 7:
            raise Fall
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", falling)
        with pytest.raises(Fall):
            train(config, out=out, display=quiet)
    # what step 7 was before the fall must not be taken for what it is afterwards
    lr = {"lr": 2 * config.loop.lr}
    assert train(config.changed(lr), out=out, resume=True, display=quiet).finished
    return out


def wanted(out: Path) -> dict[str, dict[int, float]]:
    """Name -> step -> value, of all that metrics.jsonl holds."""
    found: dict[str, dict[int, float]] = {}
    # A step and its evaluation both have some: the evaluation, which is later, counts.
    for record in sorted(read(out / "metrics.jsonl"), key=lambda r: (r["step"], "whole" in r)):
        for name, value in scalars(record):
            found.setdefault(name, {})[record["step"]] = value
    assert {"loss", "lr", "val_loss", "stream_rms/003"} <= found.keys()
    assert list(found["loss"]) == list(range(1, 13))
    assert list(found["val_loss"]) == [4, 8, 12]
    return found


def test_tensorboards_own_reader_finds_every_scalar(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = resumed(tmp_path, sinks="tensorboard")
    want = wanted(out)
    events = accumulator.EventAccumulator(
        str(out / "tensorboard"), size_guidance={"scalars": 0}
    ).Reload()
    assert set(events.Tags()["scalars"]) == want.keys()
    for name, values in want.items():
        told = [(event.step, event.value) for event in events.Scalars(name)]
        if name not in ("tokens", "elapsed_s"):
            assert [step for step, _ in told] == list(values), name  # each once
        # float32 is what TensorBoard keeps
        assert dict(told) == pytest.approx(values, rel=1e-6), name


def test_wandb_offline_is_one_run_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network; both parts of a resumed run are of one run."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    # what listens at no port: whoever asks for a network gets an error
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    out = resumed(tmp_path, sinks="wandb")
    files = sorted((out / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    told: dict[str, dict[int, float]] = {}
    for file in files:
        runs, rows = stored(file)
        assert runs == {(out / "wandb" / "run-id").read_text()}
        for row in rows:
            for name, value in row.items():
                told.setdefault(name, {})[int(row["step"])] = value
    for name, values in wanted(out).items():
        assert told[name] == values, name
    mine = (out / "wandb" / "run-id").read_text()
    clear(Checkpoints(out / "checkpoints"))  # as --overwrite does
    # wandb's own process may write what it has to say of itself once more
    assert not [n for n in names(out) - LEFT if mine in n or "run" in Path(n).name]


def stored(file: Path) -> tuple[set[str], list[dict[str, float]]]:
    """The ids of the runs in a .wandb file, and the rows of their history: records of wandb's
    protocol in the form of LevelDB's log, a piece of which begins with 4 bytes of checksum, 2 of
    length and 1 that says whether it is whole (1), the first (2), a middle one (3) or the last."""
    from wandb.proto import wandb_internal_pb2

    data, place, held = file.read_bytes(), 7, b""
    runs: set[str] = set()
    rows: list[dict[str, float]] = []
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # what is left of a block holds no piece
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        held += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (2, 3):
            continue
        record = wandb_internal_pb2.Record()
        record.ParseFromString(held)
        held = b""
        if record.WhichOneof("record_type") == "run":
            runs.add(record.run.run_id)
        elif record.WhichOneof("record_type") == "history":
            items = [("/".join(i.nested_key) or i.key, i.value_json) for i in record.history.item]
            rows.append({name: json.loads(value) for name, value in items if name[0] != "_"})
    return runs, rows


def test_an_overwritten_run_leaves_no_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    config = small(tmp_path, steps=2, sinks="tensorboard")
    for _ in range(2):
        train(config, out=tmp_path / "run", overwrite=True, display=Display(quiet=True))
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    clear(Checkpoints(tmp_path / "run" / "checkpoints"))
    assert names(tmp_path / "run") == LEFT


# --- what is told first ---------------------------------------------------------------------------


def test_no_such_sink() -> None:
    with pytest.raises(
        SettingsError, match=r"sinks: unknown sink 'tensorbord'; did you mean tensorboard"
    ):
        Config(task=LanguageSettings(), sinks=("tensorbord",))


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb",) * 2]
)
def test_what_is_not_installed_is_told_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(LanguageSettings, "build", lambda self: pytest.fail("it was read"))
    with pytest.raises(SettingsError, match=rf"sinks={name} needs .*pip install 'addnorm\[log\]'"):
        train(small(tmp_path, sinks=name), out=tmp_path / "run", display=Display(quiet=True))
    assert not (tmp_path / "run").exists()


def test_what_wandb_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")

    def init(**given: Any) -> Any:
        raise wandb.errors.UsageError("no API key")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(SettingsError, match=r"sinks=wandb: no API key\. `wandb login` or"):
        open_sinks(("wandb",), tmp_path, {}, 1)
