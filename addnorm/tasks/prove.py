"""A proof, on the user's own settings, that a killed and resumed run equals the uninterrupted one.

A few steps are trained straight through; the same again, killed twice (kill -9, between the
micro-batches of a step) and resumed; and from the middle on with two processes. Weights,
optimizer, random numbers, the position in the data and the next batch must be the same, tensor by
tensor and to the bit; with another number of processes what was loaded must be, the documents must
come in the same order, and the next loss, in float32 and without dropout, must agree to 1e-5.

Each training is a process of its own, ``python -m addnorm.tasks.prove``, which reads what to do
from a file of JSON.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from addnorm.records import read
from addnorm.settings import SettingsError
from addnorm.training.checkpoint import Checkpoints, Snapshot
from addnorm.training.config import Config
from addnorm.training.display import Display
from addnorm.training.fit import Course, Observer
from addnorm.training.run import train
from addnorm.training.task import Batch

STEPS, SAVE_EVERY = 6, 2  # enough for kills between saves
KILLS = ((3, 0), (5, 1))  # (steps done, how many micro-batches of the next one are)
MIDDLE = 4  # the step after which the number of processes changes
LOST = {"random": "the random numbers", "optimizer": "the optimizer", "model": "the weights"}
"""Group of tensors in a checkpoint -> what it is, in the order in which they are compared."""
LOSS_TOLERANCE = 1e-5  # relative: float32 sums in another order
COMMAND = (sys.executable, "-m", "addnorm.tasks.prove")


@final
@dataclass(frozen=True)
class Proof:
    """What was compared, and the first thing that differs; None: nothing does."""

    compared: list[str]
    difference: str | None

    def __str__(self) -> str:
        lines = [f"  {line}" for line in self.compared]
        if self.difference is None:
            return "\n".join(["PASS: the resumed run equals the uninterrupted one", *lines])
        return "\n".join([f"FAIL: {self.difference}", *lines])


def prove(
    config: Config, say: Callable[[str], None] = print, command: Sequence[str] = COMMAND
) -> Proof:
    """Run the proof. ``say`` is told what is next; ``command`` is what trains, given the name of a
    file with an order, as ``_train`` writes it and ``child`` reads it."""
    compared: list[str] = []
    with tempfile.TemporaryDirectory(prefix="addnorm-proof-") as name:
        folder = Path(name)
        base = _proof_settings(config)
        say(f"1 of 4: {STEPS} steps straight through")
        _train(command, folder, "straight", base)
        for i, (step, micro) in enumerate(KILLS):
            say(f"{i + 2} of 4: killed in step {step}, after {micro} of its micro-batches")
            _train(command, folder, "killed", base, resume=i > 0, die=(step, micro))
        _train(command, folder, "killed", base, resume=True)
        ends = [Checkpoints(folder / n / "checkpoints").load() for n in ("straight", "killed")]
        difference = compare(*ends)
        tensors = sum(len(group) for group in ends[0].tensors.values())
        compared.append(f"{tensors} tensors of weights, optimizer and random state, to the bit")
        if difference is None:
            difference = _losses(folder)
            compared.append(f"the losses of {STEPS} steps, to the bit")
        if difference is None:
            a, b = (
                json.loads((folder / n / "next.json").read_text()) for n in ("straight", "killed")
            )
            compared.append("the ids of the next batch")
            if a != b:
                difference = "the next batch is another one: the position in the data was lost"
        if difference is None:
            say("4 of 4: from the middle on with two processes")
            difference, line = _two_processes(command, folder, base)
            compared.append(line)
    return Proof(compared, difference)


def compare(a: Snapshot, b: Snapshot) -> str | None:
    """The first thing in which two checkpoints differ, in words; None: they are the same."""
    if a.step != b.step:
        return f"one run ended at step {a.step}, the other at {b.step}"
    for group in a.tensors:
        if a.tensors[group].keys() != b.tensors[group].keys():
            odd = sorted(a.tensors[group].keys() ^ b.tensors[group].keys())[0]
            return f"{group}: only one of the runs has {odd}"
    # What is lost first is found first: the place in the data and the random numbers before the
    # optimizer, it before the weights, and what is only remembered last.
    # These are what ``Trainer.facts`` calls the steps done, the data left out, the targets seen.
    position = [n for n in a.facts["trainer"] if n in ("done", "shift", "seen")]
    for name in position:
        if a.facts["trainer"][name] != b.facts["trainer"][name]:
            return (
                f"the position in the data: {name} is {a.facts['trainer'][name]} in one run and "
                f"{b.facts['trainer'][name]} in the other"
            )
    for group, what in LOST.items():
        for name, t in a.tensors[group].items():
            if not torch.equal(t, b.tensors[group][name]):
                return f"{what}: {name} differs{_by(t, b.tensors[group][name])}"
    for name, value in a.facts["trainer"].items():
        if b.facts["trainer"][name] != value:
            return f"{name} is {value} in one run and {b.facts['trainer'][name]} in the other"
    return None


def _by(a: Tensor, b: Tensor) -> str:
    """The end of a sentence: by how much two tensors differ, if that can be said."""
    if a.shape != b.shape:
        return f": shape {tuple(a.shape)} and {tuple(b.shape)}"
    if not a.is_floating_point():
        return ""
    return f" by up to {float((a.double() - b.double()).abs().max()):.3g}"


def _losses(folder: Path) -> str | None:
    """The first step whose loss was another one in the killed run, in words; None: all agree."""
    a, b = (
        {r["step"]: r["loss"] for r in read(folder / n / "metrics.jsonl") if "loss" in r}
        for n in ("straight", "killed")
    )
    for step, loss in a.items():
        if b.get(step) != loss:
            return (
                f"the loss of step {step} is {loss!r} in one run and {b.get(step)!r} in the other"
            )
    return None


def _two_processes(
    command: Sequence[str], folder: Path, base: dict[str, Any]
) -> tuple[str | None, str]:
    """Train one step after MIDDLE on one process and, from a copy of its folder, on two. Returns
    (what differs or None, the line of the report). ``base`` are the settings."""
    # Dropout is another on another number of processes, and bfloat16 rounds a sum by its order.
    base = base | {"dropout": 0.0, "precision": "fp32"}
    _train(command, folder, "one", base, until=MIDDLE)
    shutil.copytree(folder / "one", folder / "two")
    _train(command, folder, "one", base, resume=True, until=MIDDLE + 1)
    _train(command, folder, "two", base, resume=True, until=MIDDLE + 1, processes=2)
    comparison = json.loads((folder / "two" / "loaded.json").read_text())
    line = "on two processes: what was loaded, the order of the data, the next loss"
    if comparison["differs"]:
        return f"two processes loaded something else: {comparison['differs']}", line
    if comparison["rows"] != comparison["alone"]:
        return "two processes read other data than one: some is replayed or skipped", line
    a, b = (
        next(r["loss"] for r in read(folder / n / "metrics.jsonl") if r["step"] == MIDDLE + 1)
        for n in ("one", "two")
    )
    if not abs(a - b) <= LOSS_TOLERANCE * abs(a):
        return f"the next loss on two processes is {b!r}, on one {a!r}", line
    return None, f"{line} ({abs(a - b) / abs(a):.1e} apart)"


def _proof_settings(config: Config) -> dict[str, Any]:
    """The user's settings, as JSON, with what the proof needs and without what only takes time.
    Where a training stops, ``until`` of ``_train`` says."""
    loop = config.loop
    changes: dict[str, Any] = {
        "steps": max(loop.steps, STEPS + 1),  # so that none of the trainings comes to its end
        "save_every": SAVE_EVERY,
        "keep": 8,  # all that there are: one in the middle is gone on from
        "eval_every": 0,
        "watch_every": 0,
    }
    if loop.micro_rows is None:
        rows = len(next(iter(config.build().batch("train", loop.seed, 0, 0, 1).values())))
        changes["micro_rows"] = max(1, rows // 2)  # so that there is a middle to be killed in
    return config.changed(changes).to_json() | {"sinks": []}


def _train(
    command: Sequence[str],
    folder: Path,
    name: str,
    config: Mapping[str, Any],
    *,
    resume: bool = False,
    until: int = STEPS,
    die: tuple[int, int] | None = None,
    processes: int = 1,
) -> None:
    """Train in the folder ``name`` of ``folder``, in processes of their own, as many as
    ``processes`` says, up to the step ``until``, and wait for them. ``command``: as in ``prove``.
    ``resume``: go on with what is there; else begin.

    ``die``: (step, micro-batches done) at which the only process kills itself, which is expected
    then; any other end than the expected one is a ``SettingsError`` with its last lines.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    order = {
        "config": dict(config),
        "out": str(folder / name),
        "resume": resume,
        "until": until,
        "die": die,
        "processes": processes,
        "port": port,
    }
    running = []
    for rank in range(processes):
        file = folder / f"order-{rank}.json"
        file.write_text(json.dumps(order | {"rank": rank}))
        running.append(
            subprocess.Popen(
                [*command, str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    outputs = [process.communicate()[0] for process in running]
    expected = -signal.SIGKILL if die else 0
    for process, text in zip(running, outputs, strict=True):
        if process.returncode != expected:
            last = "\n".join(text.strip().split("\n")[-8:])
            raise SettingsError(
                f"the training itself failed, before anything could be proved:\n{last}"
            )


# --- in the child ---------------------------------------------------------------------------------


def child(order: Mapping[str, Any]) -> None:
    """Train as the order of ``_train`` says, and die as it says. Beside the run it leaves
    next.json, the batch after the last step, or with several processes loaded.json, of
    ``LoadedState``."""
    out = Path(order["out"])
    observers: list[Observer] = []
    if order["processes"] > 1:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"tcp://127.0.0.1:{order['port']}",
            rank=order["rank"],
            world_size=order["processes"],
        )
        observers.append(LoadedState(out / "loaded.json"))
    if order["die"] is not None:
        observers.append(Death(*order["die"]))
    config = Config.from_json(order["config"])
    task = config.build()
    train(
        task,
        loop=config.loop,
        out=out,
        resume=order["resume"],
        until=order["until"],
        display=Display(quiet=True),
        observers=observers,
    )
    if order["processes"] == 1:
        trained = Checkpoints(out / "checkpoints").load().facts["trainer"]
        batch = task.batch("train", config.loop.seed, trained["done"] + trained["shift"], 0, 1)
        (out / "next.json").write_text(json.dumps(_plain(batch)))
    else:
        torch.distributed.destroy_process_group()


@final
class Death(Observer):
    """Kill -9 after ``step`` steps, in the next one, after ``parts`` of its micro-batches."""

    def __init__(self, step: int, parts: int) -> None:
        self.step, self.parts = step, parts

    def before_part(self, course: Course, index: int) -> None:
        """In that step, or the first after it that has as many micro-batches."""
        if course.trainer.done >= self.step and index >= self.parts:
            os.kill(os.getpid(), signal.SIGKILL)


@final
class LoadedState(Observer):
    """Writes to ``file`` whether what a resume took up is what the checkpoint holds ("differs": the
    first tensor that is not, or ""), and the rows that all processes together read next ("rows"),
    beside those that a single one would ("alone")."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def restored(self, course: Course, snapshot: Snapshot) -> None:
        """Compare, over all processes, of which the first writes the file."""
        trainer, world = course.trainer, course.world
        now = trainer.tensors()
        differs = [
            f"{group} {name}"
            for group in ("model", "optimizer")
            for name, t in snapshot.tensors[group].items()
            if not torch.equal(t, now[group][name])
        ]
        mine = _plain(trainer.batch())
        ranks = [rows for rows in world.gather(mine) if isinstance(rows, dict)]
        alone = _plain(course.task.batch("train", course.loop.seed, trainer.position, 0, 1))
        comparison = {
            "differs": differs[0] if differs else "",
            "rows": {k: sorted(row for rows in ranks for row in rows[k]) for k in alone},
            "alone": {k: sorted(v) for k, v in alone.items()},
        }
        if world.first:
            self.file.write_text(json.dumps(comparison))


def _plain(batch: Batch) -> dict[str, list[Any]]:
    return {name: t.tolist() for name, t in batch.items()}


if __name__ == "__main__":
    child(json.loads(Path(sys.argv[1]).read_text()))
