"""A training without a folder, and the observers that watch it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from addnorm.records import Record, read
from addnorm.training.checkpoint import Snapshot
from addnorm.training.fit import Course, Observer, fit
from addnorm.training.loop import Diverged, Trainer
from addnorm.training.run import train
from addnorm.training.stream_rms import StreamRMS
from addnorm.training.task import Batch
from tests.training.test_training import ALONE, Toy, loop, quiet


class Diary(Observer):
    """Every moment, by its name and what comes with it."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def begins(self, course: Course) -> None:
        self.lines.append(("begins", course.trainer.done))

    def before_step(self, course: Course) -> Record:
        self.lines.append(("before_step", course.trainer.done))
        return {"mine": course.trainer.done}

    def before_part(self, course: Course, index: int) -> None:
        self.lines.append(("before_part", index))

    def stepped(self, course: Course, record: Record) -> None:
        self.lines.append(("stepped", record["step"], record["mine"]))

    def improved(self, course: Course) -> None:
        self.lines.append(("improved", course.trainer.done))

    def evaluated(self, course: Course, record: Record) -> None:
        self.lines.append(("evaluated", record["step"], record["whole"]))

    def sampled(self, course: Course, texts: Sequence[str]) -> None:
        self.lines.append(("sampled", len(texts)))

    def restored(self, course: Course, snapshot: Snapshot) -> None:
        self.lines.append(("restored", snapshot.step))

    def ended(self, course: Course) -> None:
        self.lines.append(("ended", course.failure))


def test_moments_come_in_order() -> None:
    diary = Diary()
    fit(Toy(rows=4), loop(steps=2, eval_every=1, micro_rows=2), [diary])
    step = [("before_step", 0), ("before_part", 0), ("before_part", 1), ("stepped", 1, 0)]
    want = [("begins", 0), *step, ("improved", 1), ("evaluated", 1, False)]
    assert diary.lines[: len(want)] == want
    assert diary.lines[-2:] == [("evaluated", 2, True), ("ended", "")]


def test_without_a_folder_it_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit; and nothing is written, or said."""

    losses: list[float] = []

    class Losses(Observer):
        def stepped(self, course: Course, record: Record) -> None:
            losses.append(record["loss"])

    train(Toy(dropout=0.3), loop=loop(eval_every=3), out=tmp_path / "run", display=quiet())
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    result = fit(Toy(dropout=0.3), loop(eval_every=3), [Losses()])
    records = read(tmp_path / "run" / "metrics.jsonl")
    assert [r["loss"] for r in records if "loss" in r] == losses
    assert result.step == 12
    whole = next(r for r in records if r.get("whole"))
    assert result.metrics == {name: whole[name] for name in result.metrics}
    assert result.best == min(r["error"] for r in records if "whole" in r)
    assert not list((tmp_path / "empty").iterdir())


def test_a_rollback_in_memory_is_that_of_a_run(tmp_path: Path) -> None:
    options = loop(nonfinite="rollback")  # it saves after step 4
    for where in (None, tmp_path / "run"):
        task, diary = Toy(dropout=0.3), Diary()
        task.spoil = {6: math.nan}
        if where is None:
            alone = fit(task, options, [diary]).model.state_dict()
            lines = diary.lines
        else:
            train(task, loop=options, out=where, display=quiet(), observers=[diary])
            assert diary.lines == lines
    assert ("restored", 4) in lines
    task = Toy(dropout=0.3)
    task.spoil = {6: math.nan}

    class End(Observer):
        def ended(self, course: Course) -> None:
            state = course.trainer.raw.state_dict()
            assert all(torch.equal(t, alone[name]) for name, t in state.items())

    train(task, loop=options, out=tmp_path / "again", display=quiet(), observers=[End()])


def test_a_rollback_before_the_first_save() -> None:
    task = Toy()
    task.spoil = {1: math.nan}
    with pytest.raises(Diverged, match="no checkpoint to go back to yet"):
        fit(task, loop(nonfinite="rollback", save_every=0))


def test_an_observer_that_fails_ends_the_training_and_all_are_told() -> None:
    class Broken(Observer):
        def stepped(self, course: Course, record: Record) -> None:
            if record["step"] == 3:
                raise ZeroDivisionError("of the observer")

        def ended(self, course: Course) -> None:
            raise KeyError("at the end too")

    first, last = Diary(), Diary()
    with pytest.raises(KeyError, match="at the end") as error:
        fit(Toy(), loop(), [first, Broken(), last])
    assert isinstance(error.value.__context__, ZeroDivisionError)
    for diary in (first, last):
        assert diary.lines[-1] == ("ended", "ZeroDivisionError('of the observer')")


def test_the_stream_is_measured_when_asked() -> None:
    steps: list[int] = []

    class Steps(Observer):
        def stepped(self, course: Course, record: Record) -> None:
            if "stream_rms" in record:
                steps.append(record["step"])
                assert all(value > 0 for value in record["stream_rms"])

    fit(Toy(), loop(), [StreamRMS(5), Steps()])
    assert steps == [1, 6, 11]
    fit(Toy(), loop(), [StreamRMS(0), Steps()])
    assert steps == [1, 6, 11]


def test_the_next_batch_is_there_before_it_is_asked_for() -> None:
    """Each is read once, the one after the last step never; what was read for a step that does not
    come is not used."""
    task = Toy()
    trainer = Trainer(task, loop(steps=3), ALONE)
    trainer.step()
    assert task.asked == [0, 1]
    state = trainer.tensors(), trainer.facts()
    trainer.step()
    trainer.step()
    assert task.asked == [0, 1, 2]
    trainer.rewind({g: dict(t) for g, t in state[0].items()}, state[1])
    assert trainer.position == 4
    trainer.batch()
    assert task.asked == [0, 1, 2, 4]


def test_data_that_cannot_be_read_fails_in_its_own_step() -> None:
    class Short(Toy):
        def batch(self, split: str, seed: int, step: int, rank: int, world: int) -> Batch:
            if split == "train" and step == 3:
                raise IndexError("there is no more")
            return super().batch(split, seed, step, rank, world)

    diary = Diary()
    with pytest.raises(IndexError, match="no more"):
        fit(Short(), loop(), [diary])
    assert [line[1] for line in diary.lines if line[0] == "stepped"] == [1, 2, 3]
