"""What a run shows while it goes: a live panel on a terminal, plain lines everywhere else."""

import math
import time
from collections.abc import Sequence
from typing import Any, final

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from addnorm.records import Record
from addnorm.training.fit import Course, Observer
from addnorm.words import figure

BLOCKS = "▁▂▃▄▅▆▇█"
EVERY = 5.0  # seconds between plain lines
CURVE = 48  # places of the loss curve
SHOWN = 300  # characters of a sample in the panel


@final
class Display(Observer):
    """Shows what a training has to say. ``quiet``: shows nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._console = Console(stderr=False, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None
        self._unit = ""
        self._bar = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(None), TimeRemainingColumn()
        )
        self._last: dict[str, Any] = {}  # the record of the last step that had targets
        self._stream: Sequence[float] = ()  # the stream's RMS, sublayer by sublayer
        self._first_stream: Sequence[float] = ()  # the same when it was first measured
        self._losses: list[float] = []
        self._evaluation = ""
        self._sample = ""
        self._last_line = 0.0  # when it was printed, by time.monotonic
        self._steps = 0

    def said(self, text: str) -> None:
        """One thing to know, above whatever is live."""
        if not self.quiet:
            self._console.print(text, soft_wrap=True)

    def begins(self, course: Course) -> None:
        """From here on there is a panel, on a terminal."""
        self._steps, self._unit = course.loop.steps, course.task.unit
        self._row = self._bar.add_task("", total=self._steps, completed=course.trainer.done)
        if not self.quiet and self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()

    def ended(self, course: Course) -> None:
        """No panel any more."""
        if self._live is not None:
            self._live.stop()
        self._live = None

    def stepped(self, course: Course, record: Record) -> None:
        """A step's numbers; the panel keeps those of the last step that had targets."""
        if self.quiet:
            return
        if "loss" in record:
            self._last = dict(record)
            self._losses.append(record["loss"])
        if record.get("stream_rms"):
            self._stream = record["stream_rms"]
            self._first_stream = self._first_stream or self._stream
        if self._live is not None:
            self._bar.update(self._row, completed=record["step"])
            self._live.update(self._panel() if self._last else self._bar)
        elif time.monotonic() - self._last_line >= EVERY or record["step"] in (1, self._steps):
            self._last_line = time.monotonic()
            self.said(step_line(record, self._steps, self._unit))

    def evaluated(self, course: Course, record: Record) -> None:
        """What an evaluation measured, and what is wrong by it."""
        names = [n for n in record if n not in ("step", "tokens", "elapsed_s", "whole")]
        self._evaluation = "  ".join(f"{n} {figure(record[n])}" for n in names)
        self.said(f"step {record['step']:>6}  {self._evaluation}")
        if alarm := course.task.alarm():
            self.said(f"step {record['step']:>6}  {alarm}")

    def sampled(self, course: Course, texts: Sequence[str]) -> None:
        """The first text that the model wrote."""
        self._sample = texts[0]

    def _panel(self) -> Panel:
        """What a terminal shows: the bar, the numbers of ``_last``, which must not be empty, and
        what was last measured and written beside."""
        r = self._last
        table = Table.grid(padding=(0, 2))
        table.add_row("loss", f"{r['loss']:.4f}", sparkline(thinned(self._losses, CURVE)))
        table.add_row("gradient norm", f"{r['grad_norm']:.3g}", f"lr {r['lr']:.2e}")
        speed, seen = f"{r['tokens_per_s']:,.0f}", f"{r['tokens']:,} {self._unit}"
        table.add_row(f"{self._unit}/s", speed, seen)
        if self._stream:
            table.add_row(
                "stream RMS",
                f"{self._stream[0]:.3g} to {self._stream[-1]:.3g}",
                f"{sparkline(self._stream)}  at the start {sparkline(self._first_stream)}",
            )
        if self._evaluation:
            table.add_row("held out", "", self._evaluation)
        parts: list[Any] = [self._bar, table]
        if self._sample:
            parts.append(Text(self._sample[:SHOWN].replace("\n", " ⏎ "), style="dim"))
        return Panel(Group(*parts), title="addnorm train", title_align="left")


def step_line(record: Record, steps: int, unit: str) -> str:
    """A step of ``steps`` in one line; one without targets has no loss. ``unit``: the task's."""
    numbers = "no targets"
    if "loss" in record:
        numbers = f"loss {record['loss']:.4f}  gradient {record['grad_norm']:.3g}"
    text = (
        f"step {record['step']:>6}/{steps}  {numbers}  lr {record['lr']:.2e}  "
        f"{record['tokens_per_s']:,.0f} {unit}/s  {record['elapsed_s']:.0f} s"
    )
    return text + ("  SKIPPED" if record.get("skipped") else "")


def sparkline(values: Sequence[float]) -> str:
    """Values as a row of blocks between their extremes; a space for what is not finite."""
    real = [v for v in values if math.isfinite(v)]
    low, high = min(real, default=0.0), max(real, default=0.0)
    span = (high - low) or 1.0
    return "".join(
        BLOCKS[round((v - low) / span * (len(BLOCKS) - 1))] if math.isfinite(v) else " "
        for v in values
    )


def thinned(values: Sequence[float], count: int) -> list[float]:
    """Means over at most ``count`` equal parts."""
    size = -(-len(values) // count) or 1
    parts = [values[i : i + size] for i in range(0, len(values), size)]
    return [sum(part) / len(part) for part in parts]
