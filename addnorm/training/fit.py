"""A training from its first step to its last, in a folder or without one.

``Course`` says what comes when: steps, evaluations, saves, and the way back where numbers broke.
What else happens, a line on a terminal or a number in a file, an ``Observer`` does. Where a state
is saved is a ``Keeper``'s: ``fit`` keeps it in memory, ``run.py`` in a run's folder.
"""

import math
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, NamedTuple, final

import torch
from torch import nn

from addnorm.records import Record
from addnorm.training.checkpoint import CheckpointError, Snapshot
from addnorm.training.loop import Diverged, Outcome, Trainer
from addnorm.training.loop_settings import LoopSettings
from addnorm.training.parallel import World, start
from addnorm.training.task import Task
from addnorm.version import __version__


@final
class Stopped(Exception):
    """A signal, by its ``number``, asked the training to end; it was saved after ``step``."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.step = number, step


class Observer(ABC):  # noqa: B024 - a moment that does not matter to one needs no words
    """Watches a training and changes nothing of it. Each method is a moment, and does nothing
    unless a subclass says what.

    Every process has observers of its own, and comes to the same moments as the others: one that
    gathers over processes may. An error ends the training, as one of the training itself would.
    """

    def begins(self, course: "Course") -> None:
        """The first step of this call is next."""
        return None

    def before_step(self, course: "Course") -> Record:
        """A step is next; returns what is to be added to its record. After a rollback the step is
        taken, and this is called, again."""
        return {}

    def before_part(self, course: "Course", index: int) -> None:
        """Part ``index`` of the step's batch is about to go through the model."""
        return None

    def stepped(self, course: "Course", record: Record) -> None:
        """A step was taken."""
        return None

    def improved(self, course: "Course") -> None:
        """An evaluation was better than all before; ``evaluated`` follows."""
        return None

    def evaluated(self, course: "Course", record: Record) -> None:
        """An evaluation was made, over all that is held out if ``record["whole"]``."""
        return None

    def sampled(self, course: "Course", texts: Sequence[str]) -> None:
        """The model was asked what it does."""
        return None

    def restored(self, course: "Course", snapshot: Snapshot) -> None:
        """The training took up an earlier state, at a resume or a rollback."""
        return None

    def said(self, text: str) -> None:
        """There is something for the user to know."""
        return None

    def ended(self, course: "Course") -> None:
        """No step follows, whatever the reason: ``course.failure`` says it, if there is one.
        Observers are told in the opposite order, what began last first."""
        return None


class Keeper(ABC):
    """Where the state of a training is saved."""

    @abstractmethod
    def save(self, course: "Course") -> bool:
        """Save the state as it is; False: it went wrong, the user was told, and training goes on.
        All processes call it."""

    @abstractmethod
    def load(self, course: "Course") -> Snapshot | None:
        """The last state that was saved, if there is one."""


@final
class InMemory(Keeper):
    """The last state, where a rollback may ask for it."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None

    def save(self, course: "Course") -> bool:
        """A copy, since the tensors go on changing; none where no rollback can ask for it."""
        if course.loop.nonfinite != "rollback":
            return True
        snapshot = course.snapshot(course.trainer.tensors())
        copies = {
            group: {name: t.clone() for name, t in tensors.items()}
            for group, tensors in snapshot.tensors.items()
        }
        self.snapshot = Snapshot(snapshot.step, copies, snapshot.facts)
        return True

    def load(self, course: "Course") -> Snapshot | None:
        """What ``save`` copied."""
        return self.snapshot


class Fit(NamedTuple):
    """What came of a training without a folder."""

    model: nn.Module
    """As it is after the last step, in training mode; of several processes, this one's part."""
    step: int
    metrics: dict[str, float]
    """Of the last evaluation."""
    best: float | None
    """The best value of the task's metric at an evaluation."""


def fit(
    task: Task,
    loop: LoopSettings | None = None,
    observers: Sequence[Observer] = (),
    *,
    until: int | None = None,
) -> Fit:
    """Train without a folder: nothing is written, and nothing said but to the observers.

    ``until`` stops after that step. Torch's random numbers and its number of threads are afterwards
    those of the training.
    """
    loop = loop or LoopSettings()
    course = Course(Trainer(task, loop, joined(loop)), InMemory(), observers)
    course.run(until)
    return Fit(course.trainer.raw, course.trainer.done, course.metrics, course.best)


def joined(loop: LoopSettings) -> World:
    """The processes of a training, among which this one takes its place, with the number of threads
    that the settings give it: torch's own is changed, for good."""
    world = start(loop.device)
    if loop.threads is not None:
        torch.set_num_threads(loop.threads)
    return world


@final
class Course:
    """One process's part in a training, as far as this call takes it.

    ``trainer``: takes the steps. ``keeper``: saves. ``observers``: are told, in this order.
    ``stop`` is asked after each step: the number of a signal that wants the training to end, or 0.
    ``metrics`` are of the last evaluation, ``best`` is the best value of the task's metric so far,
    ``failure`` what ended the training other than its last step, in words.
    """

    def __init__(
        self,
        trainer: Trainer,
        keeper: Keeper,
        observers: Sequence[Observer] = (),
        stop: Callable[[], int] = lambda: 0,
    ) -> None:
        self.trainer, self.keeper, self.stop = trainer, keeper, stop
        self.task, self.loop, self.world = trainer.task, trainer.loop, trainer.world
        self.observers = tuple(observers)
        self.earlier = 0.0  # seconds of earlier calls
        self.begin = perf_counter()
        self.metrics: dict[str, float] = {}
        self.best: float | None = None
        self.last_save = -1  # the step that it was after
        self.failure = ""

    def run(self, until: int | None = None) -> None:
        """Train until the last step, or until step ``until`` if that is earlier.

        Raises ``Stopped`` at a signal and ``Diverged`` where numbers broke, once the observers were
        told that it ended; what goes wrong while they are told does not hide it.
        """
        self._announce()
        try:
            for observer in self.observers:
                observer.begins(self)
            self._steps(until)
        except BaseException as error:
            self.failure = str(error) if isinstance(error, Diverged | Stopped) else repr(error)
            try:
                self.end()
            except CheckpointError as other:  # of the save before: what ended the run is raised
                self.say(str(other))
            raise
        self.end()

    def end(self) -> None:
        """Tell the observers that no step follows, the last one first: all of them, whatever goes
        wrong with one; the first error is raised then."""
        failures: list[Exception] = []
        for observer in reversed(self.observers):
            try:
                observer.ended(self)
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def say(self, text: str) -> None:
        """One thing for the user to know."""
        for observer in self.observers:
            observer.said(text)

    def _steps(self, until: int | None) -> None:
        """Steps, each with the evaluation and the save that are due after it; None: to the last.
        The order matters: a save holds what the evaluation found."""
        trainer, loop = self.trainer, self.loop
        while trainer.done < min(loop.steps, until or loop.steps):
            record = self._step()
            for observer in self.observers:
                observer.stepped(self, record)
            number = self._signal()
            last = trainer.done == loop.steps
            if last or (loop.eval_every and trainer.done % loop.eval_every == 0):
                self._evaluate(last)
            due = loop.save_every and trainer.done % loop.save_every == 0
            if last or number or due or trainer.done == until:
                self._save()
            if number and not last:
                raise Stopped(number, trainer.done)

    def _signal(self) -> int:
        """The number of a signal that any process got, else 0: all ask after each step, so that all
        end at the same."""
        numbers = self.world.gather(self.stop())
        return max(number for number in numbers if isinstance(number, int))

    # --- a step -----------------------------------------------------------------------------------

    def _step(self) -> Record:
        """Take one step; returns its record. With nonfinite=rollback, a step whose numbers broke
        goes back to the last save, and the step taken is the one after that."""
        numbers = {k: v for o in self.observers for k, v in o.before_step(self).items()}
        begin = perf_counter()
        try:
            outcome = self.trainer.step(self._before_part)
        except Diverged as error:
            if self.loop.nonfinite != "rollback":
                raise
            self._roll_back(error)
            return self._step()
        return {**self._numbers(outcome, perf_counter() - begin), **numbers}

    def _before_part(self, index: int) -> None:
        for observer in self.observers:
            observer.before_part(self, index)

    def _numbers(self, o: Outcome, seconds: float) -> dict[str, Any]:
        """The record of a step that took so many ``seconds``, without what observers add. Sinks,
        display and page read its keys; a step without targets has no loss, and only one that was
        left out has "skipped"."""
        of_targets = {"loss": o.loss, **o.parts, "grad_norm": o.grad_norm} if o.count else {}
        record: dict[str, Any] = {
            **self._record_head(),
            **of_targets,
            "lr": o.lr,
            "tokens_per_s": o.count / max(seconds, 1e-9),
        }
        if o.skipped:
            record["skipped"] = True
        return record

    def elapsed(self) -> float:
        """Seconds of training, those of earlier calls too."""
        return self.earlier + perf_counter() - self.begin

    def _record_head(self) -> dict[str, Any]:
        """What every record begins with. "tokens" are the targets of all steps so far, whatever the
        task calls them, and "elapsed_s" the seconds of ``elapsed``."""
        return {
            "step": self.trainer.done,
            "tokens": self.trainer.seen,
            "elapsed_s": round(self.elapsed(), 3),
        }

    def _roll_back(self, error: Diverged) -> None:
        """Take up the last save, past the data at which ``error`` arose; raises ``Diverged`` if
        there is none or this was done too often."""
        trainer, times = self.trainer, self.trainer.rollbacks + 1
        snapshot = self.keeper.load(self)
        if snapshot is None:
            raise Diverged(f"{error}. There is no checkpoint to go back to yet") from error
        if times > self.loop.most_rollbacks:
            raise Diverged(
                f"{error}. This is after {times - 1} rollbacks, so the run stops"
            ) from error
        trainer.rewind(snapshot.tensors, snapshot.facts["trainer"])
        self._tell_restored(snapshot)
        self.say(
            f"{error}\nrollback {times}: back to step {trainer.done}, on with the data after it"
        )

    # --- evaluations ------------------------------------------------------------------------------

    def _evaluate(self, last: bool) -> None:
        """Evaluate on a glance, and after the last step on everything too. Which weights are the
        best is always decided by the glance: values of the two cannot be compared."""
        with self.trainer.looking() as model:
            glance = self.task.glance(model)
            metrics = self.task.evaluate(model) if last else glance
        value = glance[self.task.best.metric]
        if self.task.best.better(value, self.best):
            self.best = value
            for observer in self.observers:
                observer.improved(self)
        self.metrics = metrics
        record = {**self._record_head(), **metrics, "whole": last}
        for observer in self.observers:
            observer.evaluated(self, record)

    # --- state ------------------------------------------------------------------------------------

    def snapshot(self, tensors: Any) -> Snapshot:
        """The state at this moment, of which ``tensors`` are the groups of tensors, as
        ``Trainer.tensors`` or ``Trainer.parts`` has them. The facts are JSON; ``restore``,
        ``run.py`` and ``tasks/prove.py`` read them by these keys."""
        facts = {
            "trainer": self.trainer.facts(),
            "task": self.task.facts(),
            "best": self.best,
            "metrics": self.metrics,
            "elapsed_s": self.elapsed(),
            "versions": versions(),
        }
        return Snapshot(self.trainer.done, tensors, facts)

    def restore(self, snapshot: Snapshot) -> list[str]:
        """Take up a state, as ``snapshot`` gave it, and tell the observers; returns what is not the
        same as then, in words. What ``Trainer.restore`` raises is raised."""
        facts = snapshot.facts
        differences = self.trainer.restore(snapshot.tensors, facts["trainer"])
        self.best, self.metrics = facts["best"], dict(facts["metrics"])
        self.earlier, self.last_save = facts["elapsed_s"], self.trainer.done
        self._tell_restored(snapshot)
        now = versions()
        return differences + [
            f"{name} {then} then, {now[name]} now"
            for name, then in facts["versions"].items()
            if now.get(name) != then
        ]

    def _tell_restored(self, snapshot: Snapshot) -> None:
        for observer in self.observers:
            observer.restored(self, snapshot)

    def _save(self) -> None:
        """Once for each step, however many reasons there are."""
        if self.last_save != self.trainer.done and self.keeper.save(self):
            self.last_save = self.trainer.done

    # --- words ------------------------------------------------------------------------------------

    def _announce(self) -> None:
        """Say what is about to be trained, and which settings could not be taken as they are."""
        t, loop = self.trainer, self.loop
        rows = len(next(iter(t.batch().values())))
        micro = min(loop.micro_rows or rows, rows)
        lines = self.task.introduction()
        if loop.parallel == "fsdp" and self.world.size == 1:
            lines.append("parallel=fsdp divides a model among processes: there is one")
        lines.append(
            f"{t.precision} on {self.world.device}, {self.world.size} process(es) of "
            f"{torch.get_num_threads()} thread(s), {math.ceil(rows / max(micro, 1))} "
            f"micro-batch(es) of {micro} rows; {t.why}"
        )
        if t.warmup < loop.warmup:
            lines.append(f"warmup={loop.warmup} is longer than the run: shortened to {t.warmup}")
        for line in lines:
            self.say(line)


def versions() -> dict[str, str]:
    """Package -> version, of those by which the numbers may differ."""
    return {"addnorm": __version__, "torch": str(torch.__version__)}
