"""What a run writes into its folder, and when: each file that is told of is an observer's.

A full disk stops nothing: it is told once, and written again as soon as there is room. What could
not be written at the end makes the run fail, after all that could be was.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from addnorm import disk, settings
from addnorm.files import folders
from addnorm.pages import run as page
from addnorm.records import Record
from addnorm.settings import SettingsError
from addnorm.training import run_folder as places
from addnorm.training.checkpoint import CheckpointError, Checkpoints, Snapshot
from addnorm.training.config import Config
from addnorm.training.fit import Course, Keeper, Observer
from addnorm.training.loop_settings import LoopSettings
from addnorm.training.parallel import by_the_first
from addnorm.training.sinks import JSONLines, Sink, open_sinks
from addnorm.version import __version__


@final
class Unwritten(Exception):
    """The run came to its end, but not all that is to be told of it could be written."""


@final
class Disk:
    """A run's folder, whose disk may be full: ``unwritten`` are the names in it that found no room
    when they were last written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unwritten: set[str] = set()

    def write(self, name: str, work: Callable[[], object], course: Course) -> None:
        """Do ``work``, which writes ``name``. A full disk, or weights that cannot be written, is
        told, once until it works again, and raises nothing."""
        try:
            work()
        except (OSError, folders.WeightsError) as error:
            message = str(error)
            if isinstance(error, OSError):
                reason = error.strerror or error
                message = f"{self.folder / name} could not be written: {reason}"
            if name not in self.unwritten:
                course.say(f"{message}\ntraining goes on")
            self.unwritten.add(name)
        else:
            self.unwritten.discard(name)

    def check(self, course: Course) -> None:
        """Raise if something is not written at the end."""
        if self.unwritten:
            raise Unwritten(
                f"step {course.trainer.done} is done and saved, but the disk of {self.folder} did "
                f"not take all of {', '.join(sorted(self.unwritten))}"
            )


@final
class Numbers(Observer):
    """Every record into metrics.jsonl, and into the sinks that the settings name."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.sinks: list[Sink] = []

    def open(self, names: Sequence[str], config: Mapping[str, Any], first: int) -> None:
        """Open metrics.jsonl and the sinks called ``names``; step ``first`` is the next to come,
        and ``config`` all settings, as JSON, for a sink that shows them. Before this call, and on
        the other processes, records go nowhere."""
        self.sinks = open_sinks(tuple(names), self.disk.folder, dict(config), first)

    def stepped(self, course: Course, record: Record) -> None:
        """A line."""
        for sink in self.sinks:
            self.disk.write(sink.name, partial(sink.write, record), course)

    def evaluated(self, course: Course, record: Record) -> None:
        """A line too."""
        self.stepped(course, record)

    def ended(self, course: Course) -> None:
        """Everything on the disk."""
        for sink in self.sinks:
            self.disk.write(sink.name, sink.close, course)


@final
class Samples(Observer):
    """What the model does, at every evaluation, into samples.jsonl; on one process only."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    def evaluated(self, course: Course, record: Record) -> None:
        """Ask, write, and let the other observers know."""
        if course.world.size > 1:
            return
        with course.trainer.looking() as model:
            texts = course.task.sample(model)
        if texts:
            self.disk.write(places.SAMPLES, partial(self._write, record["step"], texts), course)
            for observer in course.observers:
                observer.sampled(course, texts)

    def _write(self, step: int, texts: Sequence[str]) -> None:
        with closing(JSONLines(self.disk.folder / places.SAMPLES)) as samples:
            samples.write({"step": step, "samples": texts})


@final
class Pictures(Observer):
    """What the last evaluation showed, into pictures.json."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    def evaluated(self, course: Course, record: Record) -> None:
        """If the task shows something."""
        if course.world.first and (pictures := course.task.pictures()):
            text = json.dumps({"step": record["step"], "pictures": pictures}, ensure_ascii=False)
            file = self.disk.folder / places.PICTURES
            self.disk.write(places.PICTURES, partial(disk.write_text, file, text + "\n"), course)


@final
class BestModel(Observer):
    """The model of the best evaluation, into best/."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    def improved(self, course: Course) -> None:
        """This one."""
        write_model(self.disk, "best", course, course.trainer.weights(keep=course.world.first))


def write_model(disk: Disk, name: str, course: Course, weights: Mapping[str, Tensor]) -> None:
    """Write the model in its users' format into ``name`` of the folder, on the first process only.

    ``weights`` are its whole tensors. With several processes they go into a new model, since the
    one that is trained may have only a part of each; the random numbers that drew it are put back.
    """
    if not course.world.first:
        return
    model = course.trainer.raw
    if course.world.size > 1:
        state = torch.get_rng_state()
        model = course.task.model()
        torch.set_rng_state(state)
        model.load_state_dict(weights)
    disk.write(name, partial(course.task.save, model, disk.folder / name), course)


@final
class RunFolder(Observer, Keeper):
    """The folder of a run: settings, run.json, checkpoints, the model, the report.

    ``config`` is None for a task that was written in Python, of which ``loop`` are the settings
    known. ``anew``: what an earlier run left in the folder is deleted. ``resumes``, which
    ``run.py`` sets: the run is gone on with, and nothing in the folder changes before its first
    step went well. ``comparison`` is what the task has to compare the result with.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        config: Config | None,
        loop: LoopSettings,
        numbers: Numbers,
        anew: bool,
    ) -> None:
        self.checkpoints, self.config, self.numbers = checkpoints, config, numbers
        self.disk, self.folder = numbers.disk, numbers.disk.folder
        self.anew, self.resumes = anew, False
        self.is_ours = False  # whether it is this training's to write to
        self.first_step = 1
        self.comparison: dict[str, Any] = {}
        self.toml = config.to_toml() if config else settings.to_toml(loop)
        self.json = config.to_json() if config else settings.to_json(loop)
        self.defaults = config.defaults() if config else settings.defaults_to_json(loop)

    # --- moments ----------------------------------------------------------------------------------

    def begins(self, course: Course) -> None:
        """A new run takes the folder."""
        self.first_step = course.trainer.done + 1
        if not self.resumes:
            self._take(course)

    def stepped(self, course: Course, record: Record) -> None:
        """A step of the resumed run went well: its new settings hold."""
        if not self.is_ours:
            self._take(course)

    def evaluated(self, course: Course, record: Record) -> None:
        """At the end, what there is to compare the result with."""
        if record["whole"]:
            self.compare(course)

    def ended(self, course: Course) -> None:
        """Whatever ended the run: its last save is done, and it is told."""
        try:
            self.checkpoints.wait()
        finally:
            if course.world.first and self.is_ours:
                self.disk.write(places.STATE, partial(self._write_state, course), course)
                self.disk.write(page.NAME, partial(page.write, self.folder), course)
            self.checkpoints.close()

    def compare(self, course: Course) -> None:
        """Ask the task what to compare the result with."""
        if course.world.first:
            self.comparison = course.task.beside()

    def _take(self, course: Course) -> None:
        """Make the folder this training's: clear it of an earlier run if that is wished, write the
        settings and a first run.json, open the sinks. All processes must call it, once."""

        def take() -> None:
            """The part of the first process."""
            if self.anew:
                places.clear(self.checkpoints)
            try:
                self._write_state(course)  # first: by it the folder is known as a run's
                disk.write_text(self.folder / places.SETTINGS, self.toml)
            except OSError as error:
                raise SettingsError(f"cannot write to {self.folder}: {error.strerror}") from None
            names = self.config.sinks if self.config else ()
            self.numbers.open(names, self.json, self.first_step)

        by_the_first(course.world, take)
        self.is_ours = True

    # --- saving -----------------------------------------------------------------------------------

    def load(self, course: Course) -> Snapshot | None:
        """The newest checkpoint. The first process waits for its save in the background and reads
        first; the others wait for that, and read then."""
        self.checkpoints.wait()  # the first process alone has one under way
        if not by_the_first(course.world, lambda: bool(self.checkpoints.steps())):
            return None
        if not course.world.first:
            course.world.wait()
            return self.checkpoints.load()
        snapshot = self.checkpoints.load()
        course.world.wait()
        return snapshot

    def save(self, course: Course) -> bool:
        """Save a checkpoint, the model in its users' format, and run.json; True unless the
        checkpoint failed, which the user was told, or, after the last step, raised."""
        trainer = course.trainer
        state = course.snapshot(trainer.parts() if trainer.divided else trainer.tensors())
        snapshot = Snapshot(state.step, state.tensors, {**state.facts, "config": self.json})
        weights = snapshot.tensors["model"]
        if trainer.divided:
            weights = trainer.weights(keep=course.world.first)
        write_model(self.disk, "model", course, weights)
        if trainer.divided:
            went_well = self._save_part(snapshot, course)
        else:
            went_well = not course.world.first or self._save_whole(snapshot, course)
        if went_well and course.world.first:
            self.disk.write(places.STATE, partial(self._write_state, course), course)
        return went_well

    def _save_whole(self, snapshot: Snapshot, course: Course) -> bool:
        """Write all, on the first process, tried twice, since the first error may be of the save
        before. Whether it went well, as far as is known yet: the disk is written to behind."""
        try:
            self.checkpoints.save(snapshot)
        except CheckpointError as error:  # of the save before, which was written behind
            course.say(f"{error}\ntraining goes on, and saves again now")
            try:
                self.checkpoints.save(snapshot)
            except CheckpointError as again:
                self._survive(again, course)
                return False
        return True

    def _save_part(self, snapshot: Snapshot, course: Course) -> bool:
        """Write this process's part, on all of them at once; whether it went well, which is the
        same on all."""
        try:
            self.checkpoints.save_divided(snapshot, course.world)
        except CheckpointError as error:
            self._survive(error, course)
            return False
        return True

    def _survive(self, error: CheckpointError, course: Course) -> None:
        """Tell that a save failed; after the last step, where none follows, raise it."""
        if course.trainer.done >= course.loop.steps:
            raise error
        course.say(f"{error}\ntraining goes on; the next save is in its turn")

    def _write_state(self, course: Course) -> None:
        """run.json. ``run_folder.KEYS`` are what makes it one of ours; a resume reads "config" and
        "finished", the page (``pages/run.py``) shows the rest."""
        trainer, task = course.trainer, course.task
        state = {
            "addnorm": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
            "device": str(course.world.device),
            "precision": trainer.precision,
            "processes": course.world.size,
            "threads": torch.get_num_threads(),
            "command": " ".join(sys.argv),
            "written": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "step": trainer.done,
            "tokens": trainer.seen,
            "skipped": trainer.skipped,
            "rollbacks": trainer.rollbacks,
            "finished": trainer.done >= course.loop.steps,
            "elapsed_s": round(course.elapsed(), 3),
            "best": course.best,
            "metric": task.best.metric,
            "metrics": course.metrics,
            "failure": course.failure,
            **self.comparison,
            "facts": task.facts(),
            "noun": task.noun,
            "unit": task.unit,
            "commands": dict(task.commands),
            "config": self.json,
            "defaults": self.defaults,
        }
        text = json.dumps(state, indent=2, ensure_ascii=False) + "\n"
        disk.write_text(self.folder / places.STATE, text)
