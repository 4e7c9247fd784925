"""A run: a folder that holds everything of one training, from its settings to its report.

DIR/config.toml      every setting, as resolved
DIR/run.json         what the run is and how far it came
DIR/metrics.jsonl    every step's numbers, every evaluation's
DIR/checkpoints/     to go on from
DIR/model/           for ``GPT.from_pretrained`` and ``addnorm generate``, as of the last save
DIR/best/            the same where an evaluation was better than the last
DIR/samples.jsonl    what the model wrote at evaluations
DIR/report.html
"""

import json
import os
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from addnorm import __version__
from addnorm.models import folders
from addnorm.training import config as settings
from addnorm.training import report
from addnorm.training.checkpoint import CheckpointError, Checkpoints, Snapshot
from addnorm.training.config import ConfigError
from addnorm.training.display import Display
from addnorm.training.loop import Diverged, Outcome, Trainer
from addnorm.training.loop_settings import Loop
from addnorm.training.parallel import World, start
from addnorm.training.recipes import Config
from addnorm.training.sinks import JSONLines, Record, Sink, installed, open_sinks
from addnorm.training.task import Task


@dataclass(frozen=True)
class Run:
    """What came of a training."""

    folder: Path
    step: int
    finished: bool  # False: stopped before its last step, to be gone on with
    metrics: dict[str, float]  # of the last evaluation
    best: float | None  # the best value of the task's metric


class Stopped(Exception):
    """A signal asked the run to end; it was saved."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.step = number, step


class Unwritten(Exception):
    """The run came to its end, but not all that is to be told of it could be written."""


def train(
    task_or_config: Task | Config | None = None,
    *,
    out: str | Path = "out/run",
    loop: Loop | None = None,
    resume: bool = False,
    overwrite: bool = False,
    display: Display | None = None,
    until: int | None = None,
    **changes: Any,
) -> Run:
    """Train, evaluate, save; returns the ``Run`` whose folder is ``out``.

    A ``Config`` (see ``addnorm.training.recipes``) says everything; a ``Task`` of one's own comes
    with ``loop``. ``changes`` are settings by key, dots as in ``**{"model.dim": 64}``. ``resume``
    goes on with what is in ``out``; ``until`` stops after that step, saved, to be gone on with.
    """
    given = Config() if task_or_config is None else task_or_config
    if isinstance(given, Config):
        if loop is not None:
            raise TypeError("a Config holds the loop's settings: give loop with a Task only")
        config = given.changed(changes)
        task: Task | None = None
        loop = config.loop
    else:
        task, config = given, None
        loop = settings.changed(loop or Loop(), changes)
    world = start(loop.device)
    if loop.threads is not None:
        torch.set_num_threads(loop.threads)
    display = display or Display(quiet=not world.first)
    folder = Path(out)
    if config is not None and world.first:
        installed(config.sinks)
    prepared(folder, world, resume, overwrite)
    if task is None:
        assert config is not None
        task = built(config, world)
    return _Session(task, config, loop, world, folder, display).run(resume, until)


def built(config: Config, world: World) -> Task:
    """The task; the first process reads and tokenizes, the others find it done."""
    if world.first:
        task: Task = config.about.build()
        world.wait()
        return task
    world.wait()
    return config.about.build()


def prepared(folder: Path, world: World, resume: bool, overwrite: bool) -> None:
    """See that the folder fits what is asked, before anything takes long."""
    try:
        there = (folder / "run.json").exists() or (folder / "checkpoints").exists()
    except OSError as error:
        raise ConfigError(f"cannot look into {folder}: {error.strerror}") from None
    if resume and not there:
        raise ConfigError(f"{folder} holds no run to go on with")
    if world.first:
        if there and overwrite:
            for name in ("checkpoints", "model", "best", "tensorboard", "wandb"):
                shutil.rmtree(folder / name, ignore_errors=True)
            for name in ("run.json", "metrics.jsonl", "samples.jsonl", "report.html"):
                (folder / name).unlink(missing_ok=True)
        elif there and not resume:
            raise ConfigError(
                f"{folder} holds a run already: go on with it (--resume {folder}), choose another "
                "--out, or replace it (--overwrite)"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write to {folder}: {error.strerror}") from None
    world.wait()


class _Session:
    """One process's part in one call of ``train``."""

    def __init__(
        self,
        task: Task,
        config: Config | None,
        loop: Loop,
        world: World,
        folder: Path,
        display: Display,
    ) -> None:
        self.task, self.config, self.loop, self.world = task, config, loop, world
        self.folder, self.display = folder, display
        self.trainer = Trainer(task, loop, world)
        self.checkpoints = Checkpoints(folder / "checkpoints", keep=loop.keep)
        self.earlier = 0.0  # seconds of earlier sessions
        self.begun = perf_counter()
        self.metrics: dict[str, float] = {}
        self.best: float | None = None
        self.saved = -1
        self.failure = ""
        self.unwritten: set[str] = set()
        self.beside: dict[str, Any] = {}
        self.told: dict[str, Any] = config.to_json() if config else settings.to_json(loop)

    def run(self, resume: bool, until: int | None = None) -> Run:
        """Until the last step, ``until`` one before it, or a signal."""
        if resume:
            self._resume()
        if self.world.first:
            try:
                self._write_config()
            except OSError as error:
                raise ConfigError(f"cannot write to {self.folder}: {error.strerror}") from None
            self.checkpoints.lock()
        self._announce()
        sinks = (
            open_sinks(
                self.config.sinks if self.config else (),
                self.folder,
                self.told,
                self.trainer.done + 1,
            )
            if self.world.first
            else []
        )
        try:
            with _signals() as asked, self.display.training(self.loop.steps, self.trainer.done):
                self._steps(sinks, asked, until)
        except BaseException as error:
            self.failure = str(error) if isinstance(error, Diverged | Stopped) else repr(error)
            try:
                self._close(sinks)
            except CheckpointError as other:  # of the save before; what ended the run is told
                self.display.say(str(other))
            raise
        self._close(sinks)
        if self.unwritten:
            raise Unwritten(
                f"step {self.trainer.done} is done and saved, but the disk of {self.folder} did "
                f"not take all of {', '.join(sorted(self.unwritten))}"
            )
        finished = self.trainer.done >= self.loop.steps
        return Run(self.folder, self.trainer.done, finished, self.metrics, self.best)

    def _steps(self, sinks: list[Sink], asked: Callable[[], int], until: int | None) -> None:
        trainer, loop = self.trainer, self.loop
        while trainer.done < min(loop.steps, until or loop.steps):
            record = self._one()
            self._record_in(sinks, record)
            self.display.step(record)
            number = self._agreed(asked())
            last = trainer.done == loop.steps
            if last or (loop.eval_every and trainer.done % loop.eval_every == 0):
                evaluation = self._evaluate(last)
                self._record_in(sinks, evaluation)
                self.display.evaluation(evaluation)
            due = loop.save_every and trainer.done % loop.save_every == 0
            if last or number or due or trainer.done == until:
                self._save()
            if number and not last:
                raise Stopped(number, trainer.done)

    # --- a step -----------------------------------------------------------------------------------

    def _one(self) -> dict[str, Any]:
        """One step, and its record; goes back to the last checkpoint where that is asked for."""
        trainer, loop = self.trainer, self.loop
        watched = loop.watch_every and trainer.done % loop.watch_every == 0
        stream = trainer.stream() if watched else []
        begun = perf_counter()
        try:
            outcome = trainer.step()
        except Diverged as error:
            if loop.nonfinite != "rollback":
                raise
            self._roll_back(error)
            return self._one()
        return self._record(outcome, perf_counter() - begun, stream)

    def _record(self, o: Outcome, seconds: float, stream: list[float]) -> dict[str, Any]:
        of_targets = {"loss": o.loss, **o.parts, "grad_norm": o.grad_norm} if o.count else {}
        record: dict[str, Any] = {
            **self._place(),
            **of_targets,
            "lr": o.lr,
            "tokens_per_s": o.count / max(seconds, 1e-9),
        }
        if o.skipped:
            record["skipped"] = True
        if stream:
            record["stream_rms"] = stream
        return record

    def _elapsed(self) -> float:
        """Seconds of training, those of earlier sessions too."""
        return self.earlier + perf_counter() - self.begun

    def _place(self) -> dict[str, Any]:
        return {
            "step": self.trainer.done,
            "tokens": self.trainer.seen,
            "elapsed_s": round(self._elapsed(), 3),
        }

    def _roll_back(self, error: Diverged) -> None:
        trainer = self.trainer
        self.checkpoints.wait()
        times, at = trainer.rollbacks + 1, trainer.done + trainer.shift
        try:
            snapshot = self._loaded()
        except CheckpointError:
            raise Diverged(f"{error}. There is no checkpoint to go back to yet") from error
        if times > self.loop.most_rollbacks:
            raise Diverged(
                f"{error}. This is after {times - 1} rollbacks, so the run stops"
            ) from error
        trainer.restore(snapshot.tensors, snapshot.facts["trainer"])
        trainer.rollbacks = times
        trainer.shift = at + 1 - trainer.done  # past the data that did it
        self.display.say(
            f"{error}\nrollback {times}: back to step {trainer.done}, on with the data after it"
        )

    # --- evaluations ------------------------------------------------------------------------------

    def _evaluate(self, last: bool) -> dict[str, Any]:
        """A glance, or at the end everything; the glance decides which weights are the best."""
        texts: list[str] = []
        with self.trainer.looking() as model:
            glance = self.task.glance(model)
            found = self.task.evaluate(model) if last else glance
            if self.world.size == 1:
                texts = self.task.sample(model)
        value = glance[self.task.best.metric]
        if self.task.best.better(value, self.best):
            self.best = value
            self._export("best", self.trainer.weights(keep=self.world.first))
        self.metrics = found
        if last and self.world.first:
            self.beside = self.task.beside()
        if texts:
            self._written("samples.jsonl", partial(self._write_samples, texts))
            self.display.sample(texts[0])
        return {**self._place(), **found, "whole": last}

    # --- files ------------------------------------------------------------------------------------

    def _written(self, what: str, write: Callable[[], object]) -> None:
        """A full disk is told, once until it works again, and stops nothing."""
        try:
            write()
        except (OSError, folders.WeightsError) as error:
            told = str(error)
            if isinstance(error, OSError):
                told = f"{self.folder / what} could not be written: {error.strerror or error}"
            if what not in self.unwritten:
                self.display.say(f"{told}\ntraining goes on")
            self.unwritten.add(what)
        else:
            self.unwritten.discard(what)

    def _record_in(self, sinks: list[Sink], record: Record) -> None:
        for sink in sinks:
            self._written(sink.name, partial(sink.write, record))

    def _write_samples(self, texts: list[str]) -> None:
        with closing(JSONLines(self.folder / "samples.jsonl")) as samples:
            samples.write({"step": self.trainer.done, "samples": texts})

    def _write_config(self) -> None:
        text = self.config.to_toml() if self.config else settings.to_toml(self.loop)
        (self.folder / "config.toml").write_text(text, encoding="utf-8")
        self._write_state()

    def _write_state(self) -> None:
        told = {
            "addnorm": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
            "device": str(self.world.device),
            "precision": self.trainer.precision,
            "processes": self.world.size,
            "threads": torch.get_num_threads(),
            "command": " ".join(sys.argv),
            "written": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "step": self.trainer.done,
            "tokens": self.trainer.seen,
            "skipped": self.trainer.skipped,
            "rollbacks": self.trainer.rollbacks,
            "finished": self.trainer.done >= self.loop.steps,
            "elapsed_s": round(self._elapsed(), 3),
            "best": self.best,
            "metric": self.task.best.metric,
            "metrics": self.metrics,
            "failure": self.failure,
            **self.beside,
            "facts": self.task.facts(),
            "config": self.told,
        }
        work = self.folder / ".run.json"
        work.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        work.replace(self.folder / "run.json")

    def _save(self) -> None:
        if self.saved == self.trainer.done:
            return
        trainer = self.trainer
        snapshot = Snapshot(
            step=trainer.done,
            tensors=trainer.parts() if trainer.divided else trainer.tensors(),
            facts={
                "trainer": trainer.facts(),
                "task": self.task.facts(),
                "config": self.told,
                "best": self.best,
                "metrics": self.metrics,
                "elapsed_s": self._elapsed(),
                "versions": {"addnorm": __version__, "torch": str(torch.__version__)},
            },
        )
        if trainer.divided:
            self._export("model", trainer.weights(keep=self.world.first))
            self._save_divided(snapshot)
            return
        self._export("model", snapshot.tensors["model"])
        if not self.world.first:
            self.saved = trainer.done
            return
        try:
            self.checkpoints.save(snapshot)
        except CheckpointError as error:  # of the save before, which was written behind
            self.display.say(f"{error}\ntraining goes on, and saves again now")
            try:
                self.checkpoints.save(snapshot)
            except CheckpointError as again:
                if trainer.done >= self.loop.steps:
                    raise
                self.display.say(f"{again}\ntraining goes on; the next save is in its turn")
                return
        self.saved = trainer.done
        self._written("run.json", self._write_state)

    def _save_divided(self, snapshot: Snapshot) -> None:
        """Each process its part; what goes wrong on one is known to all."""
        try:
            self.checkpoints.save_divided(snapshot, self.world)
        except CheckpointError as error:
            if self.trainer.done >= self.loop.steps:
                raise
            self.display.say(f"{error}\ntraining goes on; the next save is in its turn")
            return
        self.saved = self.trainer.done
        if self.world.first:
            self._written("run.json", self._write_state)

    def _export(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """The model in its users' format; where it is spread over processes, from whole tensors."""
        if not self.world.first:
            return
        model = self.trainer.raw
        if self.world.size > 1:
            state = torch.get_rng_state()
            model = self.task.model()
            torch.set_rng_state(state)
            model.load_state_dict(weights)
        self._written(name, partial(self.task.save, model, self.folder / name))

    def _loaded(self) -> Snapshot:
        if self.world.first:
            snapshot = self.checkpoints.load()
            self.world.wait()
            return snapshot
        self.world.wait()
        return self.checkpoints.load()

    def _resume(self) -> None:
        if not self.checkpoints.steps():
            self.display.say("the run was stopped before its first checkpoint: it begins anew")
            return
        snapshot = self._loaded()
        facts = snapshot.facts
        now = self.task.facts()
        for name, value in facts["task"].items():
            if name in now and now[name] != value:
                raise ConfigError(
                    f"{name} was {value} and is {now[name]}: this would not be the same run. Give "
                    "it its old settings, or begin a new one with init_from"
                )
        differ = self.trainer.restore(snapshot.tensors, facts["trainer"])
        self.best, self.metrics = facts["best"], dict(facts["metrics"])
        self.earlier, self.saved = facts["elapsed_s"], self.trainer.done
        versions = {"addnorm": __version__, "torch": str(torch.__version__)}
        differ += [
            f"{name} {then} then, {versions[name]} now"
            for name, then in facts["versions"].items()
            if versions.get(name) != then
        ]
        self.display.say(f"resumed at step {self.trainer.done} of {self.loop.steps}")
        if differ:
            self.display.say(
                f"not the same as then: {'; '.join(differ)}. The data goes on where it was; the "
                "numbers agree to rounding, not to the bit"
            )

    def _announce(self) -> None:
        t = self.trainer
        rows = len(next(iter(t.batch().values())))
        micro = min(self.loop.micro_rows or rows, rows)
        lines = self.task.told()
        lines.append(
            f"{t.precision} on {self.world.device}, {self.world.size} process(es) of "
            f"{torch.get_num_threads()} thread(s), {-(-rows // max(micro, 1))} micro-batch(es) of "
            f"{micro} rows; {t.why}"
        )
        if t.warmup < self.loop.warmup:
            lines.append(
                f"warmup={self.loop.warmup} is longer than the run: shortened to {t.warmup}"
            )
        for line in lines:
            self.display.say(line)

    def _agreed(self, number: int) -> int:
        """A signal that any process got."""
        if self.world.size == 1:
            return number
        found = self.world.gather(number)
        return max(n for n in found if isinstance(n, int))

    def _close(self, sinks: list[Sink]) -> None:
        """Whatever ended the run: its numbers are written, its last save is done, it is told."""
        for sink in sinks:
            self._written(sink.name, sink.close)
        try:
            self.checkpoints.wait()
        finally:
            self.checkpoints.close()
            if self.world.first:
                self._written("run.json", self._write_state)
                self._written("report.html", partial(report.write, self.folder))


@contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """The number of the signal that asked to stop, 0 if none did; a second one stops at once."""
    got: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return

    def note(number: int, frame: Any) -> None:
        if got:
            raise KeyboardInterrupt
        got.append(number)

    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: got[0] if got else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
