"""A run: a folder that holds everything of one training, from its settings to its report.

DIR/config.toml      every setting, as resolved
DIR/run.json         what the run is and how far it came
DIR/metrics.jsonl    every step's numbers, every evaluation's
DIR/checkpoints/     to go on from
DIR/model/           for ``addnorm.load`` and the commands, as of the last save
DIR/best/            the same where an evaluation was better than the last
DIR/samples.jsonl    what the model wrote at evaluations
DIR/pictures.json    what the last of them showed, if the task has pictures of it
DIR/report.html

``train`` is ``fit`` with such a folder: whose it is, what a resume takes up, who watches.
"""

import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from addnorm import settings
from addnorm.errors import Mendable
from addnorm.settings import SettingsError
from addnorm.training import run_folder as places
from addnorm.training.checkpoint import CheckpointError, Checkpoints
from addnorm.training.config import Config, usual
from addnorm.training.display import Display
from addnorm.training.fit import Course, Observer, joined
from addnorm.training.loop import Trainer
from addnorm.training.loop_settings import LoopSettings
from addnorm.training.parallel import World, by_the_first
from addnorm.training.resume import Resume
from addnorm.training.run_observers import BestModel, Disk, Numbers, Pictures, RunFolder, Samples
from addnorm.training.sinks import check_installed
from addnorm.training.stream_rms import StreamRMS
from addnorm.training.task import Task


@final
@dataclass(frozen=True)
class Run:
    """What came of a training."""

    folder: Path
    step: int
    finished: bool
    """False: it ended before its last step, and can be gone on with."""
    metrics: dict[str, float]
    """Of the last evaluation."""
    best: float | None
    """The best value of the task's metric at an evaluation."""


def _work(task_or_config: Task | Config | None) -> Task | Config:
    """What is trained; a ``Mendable`` where a file stands for it."""
    if isinstance(task_or_config, str | Path):
        raise Mendable(
            f"train takes a Config or a Task; a file of text is a setting: "
            f"addnorm.train(data={str(task_or_config)!r})"
        )
    return Config(task=usual()) if task_or_config is None else task_or_config


def train(
    task_or_config: Task | Config | None = None,
    *,
    out: str | Path = "out/run",
    loop: LoopSettings | None = None,
    resume: bool = False,
    overwrite: bool = False,
    display: Display | None = None,
    observers: Sequence[Observer] = (),
    until: int | None = None,
    **changes: Any,
) -> Run:
    """Train, evaluate, save; returns the ``Run`` whose folder is ``out``.

    A ``Config`` (see ``addnorm.tasks.recipes``) says everything; a ``Task`` of one's own comes with
    ``loop``. ``changes`` are settings by key, dots as in ``**{"model.dim": 64}``. ``resume`` goes
    on with the run in ``out``, with the same settings but for those that say of themselves that
    they may change; ``overwrite`` replaces it. ``observers`` watch, beside those that every run
    has. ``until`` stops after that step, saved, to be gone on with.
    """
    work = _work(task_or_config)
    if isinstance(work, Config):
        if loop is not None:
            raise TypeError("a Config holds the loop's settings: give loop with a Task only")
        work = work.changed(changes)
        config, loop = work, work.loop
    else:
        config, loop = None, settings.changed(loop or LoopSettings(), changes)
    world = joined(loop)
    checkpoints = Checkpoints(Path(out) / places.CHECKPOINTS, keep=loop.keep)

    def claim() -> Mapping[str, Any]:
        """The run.json of the run in the folder, {} if there is none, once the folder is this
        run's and the settings may be."""
        check_installed(config.sinks if config else ())
        state = places.claim(checkpoints, resume=resume, overwrite=overwrite).state
        if resume and state:  # before anything takes long
            Resume.of(Path(out), state["config"], config, loop).notices()
        return state

    try:
        state = by_the_first(world, claim)
        task = work if isinstance(work, Task) else built(work, world)
        numbers = Numbers(Disk(Path(out)))
        keeper = RunFolder(checkpoints, config, loop, numbers, anew=not resume)
        course = Course(
            Trainer(task, loop, world),
            keeper,
            (
                *(keeper, numbers, Samples(numbers.disk), Pictures(numbers.disk)),
                *(BestModel(numbers.disk), StreamRMS(loop.watch_every), *observers),
                display or Display(quiet=not world.first),
            ),
        )
        return _run(course, keeper, state if resume else None, until)
    finally:
        with suppress(CheckpointError):  # of a save: the session has told it
            checkpoints.close()


def built(config: Config, world: World) -> Task:
    """The task of a configuration. The first process builds it alone, and so reads, learns and
    tokenizes into the cache; the others then build their own, and find all that there."""
    tasks: list[Task] = []
    by_the_first(world, lambda: tasks.append(config.build()))
    return tasks[0] if tasks else config.build()


def _run(
    course: Course, keeper: RunFolder, state: Mapping[str, Any] | None, until: int | None
) -> Run:
    """Train, or leave a finished run as it is. ``state`` is the run.json of a run to go on with,
    empty if that was lost; None: the run is a new one. ``until``: as in ``train``."""
    if state is not None:
        keeper.resumes = _take_up(course, keeper, state)
    if keeper.resumes and course.trainer.done >= course.loop.steps:
        _leave_finished(course, keeper, state or {})
    else:
        with _signals() as course.stop:
            course.run(until)
        keeper.disk.check(course)
    finished = course.trainer.done >= course.loop.steps
    return Run(keeper.folder, course.trainer.done, finished, course.metrics, course.best)


def _take_up(course: Course, keeper: RunFolder, state: Mapping[str, Any]) -> bool:
    """Restore the newest checkpoint, if the settings allow it, and say what is not the same as
    then; False if the run had come to none, and begins anew. ``state``: its run.json, empty if that
    was lost. A ``SettingsError`` where the settings would make another run of it."""
    snapshot = keeper.load(course)
    if snapshot is None:
        if state.get("finished"):
            raise SettingsError(
                f"{keeper.folder} is finished, and its checkpoints are gone: there is nothing to "
                "go on from. Its model, if it is there, can begin a new run (init_from)"
            )
        course.say("the run was stopped before its first checkpoint: it begins anew")
        return False
    facts = snapshot.facts
    resume = Resume.of(keeper.folder, facts["config"], keeper.config, course.loop)
    notices = resume.notices()
    resume.compare(facts["task"], json.loads(json.dumps(course.task.facts())))
    _check_steps(course, keeper, facts)
    differences = course.restore(snapshot)
    course.say(f"resumed at step {course.trainer.done} of {course.loop.steps}")
    numbers = "agree to rounding, not to the bit"
    if notices:
        numbers = "are from here on those of the new settings"
    if changes := [*notices, *differences]:
        course.say(
            f"not the same as then: {'; '.join(changes)}. The data goes on where it was; the "
            f"numbers {numbers}"
        )
    return True


def _check_steps(course: Course, keeper: RunFolder, facts: Mapping[str, Any]) -> None:
    """Raise a ``SettingsError`` if ``steps`` was changed to a number that leaves no step to take.
    At its last step, and with the number it had, a run is finished and no error. ``facts``: of its
    newest checkpoint."""
    done, steps, before = facts["trainer"]["done"], course.loop.steps, facts["config"]["steps"]
    if steps < done or (steps == done and steps != before):
        raise SettingsError(
            f"steps={steps} leaves nothing to do: {keeper.folder} is at step {done} of {before}. "
            f"Say steps=N with N above {done}, or nothing, to keep {before}"
        )


def _leave_finished(course: Course, keeper: RunFolder, state: Mapping[str, Any]) -> None:
    """Say that the run is finished; other settings are an error, since no step follows to use them.
    If it was killed between its last save and the end, its run.json and report are written now."""
    resume = (
        Resume.of(keeper.folder, state["config"], keeper.config, course.loop) if state else None
    )
    if resume and (changes := resume.changes()):
        words = ", ".join(settings.assignment(key, now) for key, (_, now) in changes.items())
        raise SettingsError(
            f"{words} has no effect: {keeper.folder} is finished, all of its {course.loop.steps} "
            "steps are done. Say steps=N too, with a larger N"
        )
    course.say(
        f"{keeper.folder} is finished: all of its {course.loop.steps} steps are done. steps=N with "
        "a larger N goes on"
    )
    if not state.get("finished") and course.world.first:
        keeper.is_ours = True
        keeper.compare(course)
    course.end()


@contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """Within this context SIGINT and SIGTERM only ask to stop: what is yielded returns the number
    of the one that did, 0 if none. A second one raises KeyboardInterrupt. Python takes signals on
    the main thread alone; on another nothing is changed."""
    numbers: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return

    def note(number: int, frame: Any) -> None:
        if numbers:
            raise KeyboardInterrupt
        numbers.append(number)

    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: numbers[0] if numbers else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
