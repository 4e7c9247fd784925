"""Where a run's numbers go: always to JSON lines, and to TensorBoard or Weights & Biases if asked.

A record is a flat mapping with at least ``step``, ``tokens`` and ``elapsed_s``. Values are what was
measured, NaN and the infinities included (as Python's json writes them), and each line is on its
way to the disk before the next step begins. After a resume a step may come again: the last line of
a step counts.
"""

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, final

from addnorm.errors import unknown_name
from addnorm.records import Record
from addnorm.settings import SettingsError


class Sink(Protocol):
    """Takes records until it is closed. An OSError stops nothing: the next record is offered."""

    name: str
    """What it writes, for messages."""

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


@final
class JSONLines:
    """A file of one object a line, appended to at once. What the system does not take, because the
    disk is full, raises an OSError, is kept and goes before the next line."""

    def __init__(self, file: Path) -> None:
        self.name = file.name
        self._to = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._waiting = b"\n" if _cut_off(file) else b""  # the line that a kill left

    def write(self, record: Record) -> None:
        """One line."""
        self._waiting += json.dumps(record, ensure_ascii=False).encode() + b"\n"
        self._flush()

    def close(self) -> None:
        """No more lines."""
        try:
            self._flush()
        finally:
            os.close(self._to)

    def _flush(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[os.write(self._to, self._waiting) :]


def _cut_off(file: Path) -> bool:
    """Whether the last line has no end; only that is read of it."""
    with file.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(size - 1, 0))
        return opened.read(1) not in (b"", b"\n")


@final
class TensorBoard:
    """Scalars by step, in the run's folder. What is there of ``first`` and later steps, which were
    given up for a checkpoint, is shown no more."""

    def __init__(self, folder: Path, first: int) -> None:
        self.name = "tensorboard"
        writer = _imported("tensorboard").SummaryWriter
        self._writer: Any = writer(str(folder / "tensorboard"), purge_step=first)

    def write(self, record: Record) -> None:
        """Every number of it; a list by its places."""
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Everything written."""
        self._writer.close()


@final
class WeightsAndBiases:
    """A run of wandb, offline where wandb is told so (``wandb offline``); a resumed run is the same
    one there. The step is a number like the others, since wandb's own cannot go back."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.name = "wandb"
        wandb = _imported("wandb")
        name = folder / "wandb" / "run-id"
        name.parent.mkdir(exist_ok=True)
        if not name.exists():
            # by it wandb finds the run again, and ``run_folder`` the folders that are this run's
            name.write_text(uuid.uuid4().hex[:8])
        try:
            self._run: Any = wandb.init(
                project="addnorm",
                id=name.read_text(),
                name=folder.name,
                dir=str(folder),
                config=dict(config),
                resume="allow",
            )
        except wandb.Error as error:
            raise SettingsError(
                f"sinks=wandb: {error}. `wandb login` or `wandb offline` may help"
            ) from None
        self._run.define_metric("*", step_metric="step")

    def write(self, record: Record) -> None:
        """Every number of it."""
        self._run.log({"step": record["step"], **dict(scalars(record))})

    def close(self) -> None:
        """Everything sent, or stored."""
        self._run.finish()


MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}
"""Name of a sink -> what it is imported from."""


def check_names(names: tuple[str, ...]) -> None:
    """Raise a ``SettingsError`` if one of the names is that of no sink."""
    for name in names:
        if name not in MODULES:
            raise SettingsError(f"sinks: {unknown_name('sink', name, MODULES)}")


def check_installed(names: tuple[str, ...]) -> None:
    """Raise a ``SettingsError`` if what a sink of these names needs is not installed: to be asked
    before anything takes long."""
    for name in names:
        _imported(name)


def _imported(name: str) -> Any:
    """The module that a sink writes with; a SettingsError if it is not installed."""
    try:
        return import_module(MODULES[name])
    except ImportError as error:
        raise SettingsError(
            f"sinks={name} needs {name} ({error}): pip install 'addnorm[log]'"
        ) from error


def open_sinks(
    names: tuple[str, ...], folder: Path, config: Mapping[str, Any], first: int
) -> list[Sink]:
    """The sinks asked for by ``names``, after the one that there always is. ``folder``: the run's.
    ``config``: its settings, which wandb shows. ``first``: the step to come."""
    kinds: dict[str, Callable[[], Sink]] = {
        "tensorboard": lambda: TensorBoard(folder, first),
        "wandb": lambda: WeightsAndBiases(folder, config),
    }
    sinks = [kinds[name]() for name in dict.fromkeys(names)]
    return [JSONLines(folder / "metrics.jsonl"), *sinks]


def scalars(record: Record) -> Iterator[tuple[str, float]]:
    """(name, number), lists by their places; what is no number is left out."""
    for name, value in record.items():
        if name == "step":
            continue
        for i, v in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(v, int | float) and not isinstance(v, bool):
                yield (name if i is None else f"{name}/{i:03d}"), float(v)
