"""Where a run's numbers go: always to JSON lines, and to TensorBoard or Weights & Biases if asked.

A record is a flat mapping with at least ``step``, ``tokens`` and ``elapsed_s``. Values are what was
measured, NaN and the infinities included (as Python's json writes them), and each line is on its
way to the disk before the next step begins. After a resume a step may come again: the last line of
a step counts.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from addnorm.training.config import ConfigError, unknown

Record = Mapping[str, Any]


class Sink(Protocol):
    """Takes records until it is closed."""

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


class JSONLines:
    """``metrics.jsonl``, one object a line, appended to and flushed."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("a", encoding="utf-8")
        if _cut_off(file):  # the line that a kill left
            self._file.write("\n")

    def write(self, record: Record) -> None:
        """One line."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """No more lines."""
        self._file.close()


def _cut_off(file: Path) -> bool:
    """Whether the last line has no end; only that is read of it."""
    with file.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(max(size - 1, 0))
        return opened.read(1) not in (b"", b"\n")


class TensorBoard:
    """Scalars by step, in the run's folder."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"sinks=tensorboard needs tensorboard ({error}): pip install 'addnorm[log]'"
            ) from error
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def write(self, record: Record) -> None:
        """Every number of it; a list by its places."""
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Everything written."""
        self._writer.close()


class WeightsAndBiases:
    """A run of wandb, offline where wandb is told so (``wandb offline``)."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                f"sinks=wandb needs wandb ({error}): pip install 'addnorm[log]'"
            ) from error
        self._run: Any = wandb.init(
            project="addnorm",
            name=folder.name,
            dir=str(folder),
            config=dict(config),
            resume="allow",
        )

    def write(self, record: Record) -> None:
        """Every number of it."""
        self._run.log(dict(scalars(record)), step=record["step"])

    def close(self) -> None:
        """Everything sent, or stored."""
        self._run.finish()


NAMES = ("tensorboard", "wandb")


def open_sinks(names: tuple[str, ...], folder: Path, config: Mapping[str, Any]) -> list[Sink]:
    """The sinks asked for, after the one that there always is."""
    found: list[Sink] = []
    for name in names:
        if name not in NAMES:
            raise ConfigError(unknown("sink", name, NAMES))
        found.append(
            TensorBoard(folder) if name == "tensorboard" else WeightsAndBiases(folder, config)
        )
    return [JSONLines(folder / "metrics.jsonl"), *found]


def scalars(record: Record) -> Iterator[tuple[str, float]]:
    """(name, number), lists by their places; what is no number is left out."""
    for name, value in record.items():
        if name == "step":
            continue
        for i, v in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(v, int | float) and not isinstance(v, bool):
                yield (name if i is None else f"{name}/{i:03d}"), float(v)


def read(file: Path) -> list[dict[str, Any]]:
    """The records of ``metrics.jsonl`` by step, the last of each kind counting; a line that a kill
    cut off is passed over."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            found[record["step"], "eval" if "whole" in record else "train"] = record
    return [found[key] for key in sorted(found)]
