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
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar, cast, final

import torch
from torch import Tensor

from addnorm import disk, settings
from addnorm.errors import Mendable
from addnorm.files import folders
from addnorm.pages import run as page
from addnorm.settings import SettingsError
from addnorm.training import folder as places
from addnorm.training.checkpoint import CheckpointError, Checkpoints, Snapshot
from addnorm.training.config import Config, usual
from addnorm.training.display import Display
from addnorm.training.loop import Diverged, Outcome, Trainer
from addnorm.training.loop_settings import LoopSettings
from addnorm.training.parallel import World, start
from addnorm.training.resume import Resume
from addnorm.training.sinks import JSONLines, Record, Sink, installed, open_sinks
from addnorm.training.task import Task
from addnorm.version import __version__

Result = TypeVar("Result")


@final
@dataclass(frozen=True)
class Run:
    """What came of a training."""

    folder: Path
    step: int
    finished: bool  # False: stopped before its last step, to be gone on with
    metrics: dict[str, float]  # of the last evaluation
    best: float | None  # the best value of the task's metric


@final
class Stopped(Exception):
    """A signal asked the run to end; it was saved."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.step = number, step


@final
class Unwritten(Exception):
    """The run came to its end, but not all that is to be told of it could be written."""


def train(
    task_or_config: Task | Config | None = None,
    *,
    out: str | Path = "out/run",
    loop: LoopSettings | None = None,
    resume: bool = False,
    overwrite: bool = False,
    display: Display | None = None,
    until: int | None = None,
    **changes: Any,
) -> Run:
    """Train, evaluate, save; returns the ``Run`` whose folder is ``out``.

    A ``Config`` (see ``addnorm.tasks.recipes``) says everything; a ``Task`` of one's own comes
    with ``loop``. ``changes`` are settings by key, dots as in ``**{"model.dim": 64}``. ``resume``
    goes on with the run in ``out``, with the same settings but for those that say of themselves
    that they may change; ``overwrite`` replaces it. ``until`` stops after that step, saved, to be
    gone on with.
    """
    given = Config(task=usual()) if task_or_config is None else task_or_config
    if isinstance(given, Config):
        if loop is not None:
            raise TypeError("a Config holds the loop's settings: give loop with a Task only")
        config = given.changed(changes)
        task: Task | None = None
        loop = config.loop
    else:
        task, config = given, None
        loop = settings.changed(loop or LoopSettings(), changes)
    world = start(loop.device)
    if loop.threads is not None:
        torch.set_num_threads(loop.threads)
    display = display or Display(quiet=not world.first)
    sinks = () if config is None else config.sinks
    checkpoints = Checkpoints(Path(out) / places.CHECKPOINTS, keep=loop.keep)

    def claim() -> Mapping[str, Any]:
        installed(sinks)
        state = places.claim(checkpoints, resume=resume, overwrite=overwrite).state
        if resume and state:  # before anything takes long
            Resume.of(Path(out), state["config"], config, loop).notices()
        return state

    try:
        state = by_the_first(world, claim)
        if task is None:
            assert config is not None
            task = built(config, world)
        session = _Session(task, config, loop, world, checkpoints, display)
        return session.run(state if resume else None, until)
    finally:
        with suppress(CheckpointError):  # of a save: the session has told it
            checkpoints.close()


def by_the_first(world: World, work: Callable[[], Result]) -> Result:
    """What the first process does while the others wait, for all of them; so is its failure."""
    result, failure = None, None
    if world.first:
        try:
            result = work()
        except Exception as error:
            failure = error
    told = world.share((result, failure and (str(failure), isinstance(failure, Mendable))))
    if failure is not None:
        raise failure
    result, wrong = cast(tuple[Result, tuple[str, bool] | None], told)
    if wrong is not None:
        raise (SettingsError if wrong[1] else RuntimeError)(f"on the first process: {wrong[0]}")
    return result


def built(config: Config, world: World) -> Task:
    """The task; the first process reads and tokenizes, the others find it done."""
    tasks: list[Task] = []
    by_the_first(world, lambda: tasks.append(config.build()))
    return tasks[0] if tasks else config.build()


@final
class _Session:
    """One process's part in one call of ``train``."""

    def __init__(
        self,
        task: Task,
        config: Config | None,
        loop: LoopSettings,
        world: World,
        checkpoints: Checkpoints,
        display: Display,
    ) -> None:
        self.task, self.config, self.loop, self.world = task, config, loop, world
        self.checkpoints, self.display = checkpoints, display
        self.folder = checkpoints.folder.parent
        self.trainer = Trainer(task, loop, world)
        self.sinks: list[Sink] = []
        self.owns_folder = False  # whether the folder is this session's to write to
        self.first = 1  # its first step
        self.earlier = 0.0  # seconds of earlier sessions
        self.begun = perf_counter()
        self.metrics: dict[str, float] = {}
        self.best: float | None = None
        self.saved = -1
        self.failure = ""
        self.unwritten: set[str] = set()
        self.beside: dict[str, Any] = {}
        self.told: dict[str, Any] = config.to_json() if config else settings.to_json(loop)
        self.defaults = config.defaults() if config else settings.defaults_to_json(LoopSettings)

    def run(self, state: Mapping[str, Any] | None, until: int | None = None) -> Run:
        """Until the last step, ``until`` one before it, or a signal; ``state`` is the run.json of a
        run to go on with."""
        resumes = state is not None and self._resume(state)
        if resumes and self.trainer.done >= self.loop.steps:
            return self._nothing_left(state or {})
        self._announce()
        self.first = self.trainer.done + 1
        if not resumes:
            self._enter(anew=state is None)
        try:
            with _signals() as asked, self.display.training(self.loop.steps, self.trainer.done):
                self._steps(asked, until)
        except BaseException as error:
            self.failure = str(error) if isinstance(error, Diverged | Stopped) else repr(error)
            try:
                self._close()
            except CheckpointError as other:  # of the save before; what ended the run is told
                self.display.say(str(other))
            raise
        self._close()
        if self.unwritten:
            raise Unwritten(
                f"step {self.trainer.done} is done and saved, but the disk of {self.folder} did "
                f"not take all of {', '.join(sorted(self.unwritten))}"
            )
        finished = self.trainer.done >= self.loop.steps
        return Run(self.folder, self.trainer.done, finished, self.metrics, self.best)

    def _nothing_left(self, state: Mapping[str, Any]) -> Run:
        """A finished run is left as it is, unless it fell before it could say that it is done."""
        if state and (changes := self._change(state["config"]).changes()):
            words = ", ".join(settings.assignment(key, now) for key, (_, now) in changes.items())
            raise SettingsError(
                f"{words} has no effect: {self.folder} is finished, all of its {self.loop.steps} "
                "steps are done. Say steps=N too, with a larger N"
            )
        self.display.say(
            f"{self.folder} is finished: all of its {self.loop.steps} steps are done. steps=N with "
            "a larger N goes on"
        )
        if not state.get("finished") and self.world.first:
            self.owns_folder, self.beside = True, self.task.beside()
        self._close()
        return Run(self.folder, self.trainer.done, True, self.metrics, self.best)

    def _enter(self, anew: bool) -> None:
        """From here on the folder is this session's: what an earlier run left goes, if this one
        begins ``anew``, and the settings are those of now."""

        def take() -> None:
            if anew:
                places.clear(self.checkpoints)
            try:
                self._write_config()
            except OSError as error:
                raise SettingsError(f"cannot write to {self.folder}: {error.strerror}") from None
            names = self.config.sinks if self.config else ()
            self.sinks = open_sinks(names, self.folder, self.told, self.first)

        by_the_first(self.world, take)
        self.owns_folder = True

    def _steps(self, asked: Callable[[], int], until: int | None) -> None:
        trainer, loop = self.trainer, self.loop
        while trainer.done < min(loop.steps, until or loop.steps):
            record = self._one()
            if not self.owns_folder:  # a step of the resumed run went well: its new settings hold
                self._enter(anew=False)
            self._record(record)
            self.display.step(record)
            number = self._agreed(asked())
            last = trainer.done == loop.steps
            if last or (loop.eval_every and trainer.done % loop.eval_every == 0):
                evaluation = self._evaluate(last)
                self._record(evaluation)
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
        return self._numbers(outcome, perf_counter() - begun, stream)

    def _numbers(self, o: Outcome, seconds: float, stream: list[float]) -> dict[str, Any]:
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
            self._written(places.SAMPLES, partial(self._write_samples, texts))
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

    def _record(self, record: Record) -> None:
        for sink in self.sinks:
            self._written(sink.name, partial(sink.write, record))

    def _write_samples(self, texts: list[str]) -> None:
        with closing(JSONLines(self.folder / places.SAMPLES)) as samples:
            samples.write({"step": self.trainer.done, "samples": texts})

    def _write_config(self) -> None:
        self._write_state()  # first: by it the folder is known as a run's
        text = self.config.to_toml() if self.config else settings.to_toml(self.loop)
        self._put(places.SETTINGS, text)

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
            "noun": self.task.noun,
            "unit": self.task.unit,
            "commands": dict(self.task.commands),
            "config": self.told,
            "defaults": self.defaults,
        }
        self._put(places.STATE, json.dumps(told, indent=2, ensure_ascii=False) + "\n")

    def _put(self, name: str, text: str) -> None:
        """A file of the run's, whole or as it was."""
        disk.write_text(self.folder / name, text)

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
        self._written(places.STATE, self._write_state)

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
            self._written(places.STATE, self._write_state)

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

    def _resume(self, state: Mapping[str, Any]) -> bool:
        """Take up the newest checkpoint; False if the run had come to none."""
        if not self.checkpoints.steps():
            if state.get("finished"):
                raise SettingsError(
                    f"{self.folder} is finished, and its checkpoints are gone: there is nothing to "
                    "go on from. Its model, if it is there, can begin a new run (init_from)"
                )
            self.display.say("the run was stopped before its first checkpoint: it begins anew")
            return False
        snapshot = self._loaded()
        facts = snapshot.facts
        change = self._change(facts["config"])
        notices = change.notices()
        change.compare(facts["task"], json.loads(json.dumps(self.task.facts())))
        self._leaves_steps(facts)
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
        numbers = "agree to rounding, not to the bit"
        if notices:
            numbers = "are from here on those of the new settings"
        if changes := [*notices, *differ]:
            self.display.say(
                f"not the same as then: {'; '.join(changes)}. The data goes on where it was; the "
                f"numbers {numbers}"
            )
        return True

    def _change(self, then: Mapping[str, Any]) -> Resume:
        return Resume.of(self.folder, then, self.config, self.loop)

    def _leaves_steps(self, facts: Mapping[str, Any]) -> None:
        """Raise if the run is past the steps it is to have, as an unfinished one is at its last."""
        done, steps, before = facts["trainer"]["done"], self.loop.steps, facts["config"]["steps"]
        if steps < done or (steps == done and steps != before):
            raise SettingsError(
                f"steps={steps} leaves nothing to do: {self.folder} is at step {done} of {before}. "
                f"Say steps=N with N above {done}, or nothing, to keep {before}"
            )

    def _announce(self) -> None:
        t = self.trainer
        rows = len(next(iter(t.batch().values())))
        micro = min(self.loop.micro_rows or rows, rows)
        lines = self.task.told()
        if self.loop.parallel == "fsdp" and self.world.size == 1:
            lines.append("parallel=fsdp divides a model among processes: there is one")
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

    def _close(self) -> None:
        """Whatever ended the run: its numbers are written, its last save is done, it is told."""
        for sink in self.sinks:
            self._written(sink.name, sink.close)
        try:
            self.checkpoints.wait()
        finally:
            if self.world.first and self.owns_folder:
                self._written(places.STATE, self._write_state)
                self._written(page.NAME, partial(page.write, self.folder))
            self.checkpoints.close()


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
