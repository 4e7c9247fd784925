"""How far a command is: a bar on a terminal, elsewhere nothing or a line now and then."""

import sys
import threading
import time
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:  # rich is imported when a bar appears, which in a pipe is never
    from rich.progress import Progress, TaskID


@final
class ProgressBar:
    """A bar for as long as the ``with`` block runs; it is erased at the end.

    ``title``: what is done; ``total``: how much there is of it, None where that is not known.
    ``in_bytes``: what is counted are bytes. ``patience``: seconds to wait before the bar appears,
    so that what is soon over shows none. ``interval``: where stderr is not a terminal, seconds
    between lines that say how far it is, the first one at once if there is no patience; None: there
    are no lines. ``hidden``: nothing is shown anywhere.

        with ProgressBar("scoring", len(texts)) as bar:
            for text in texts:
                ...
                bar.advance()
    """

    def __init__(
        self,
        title: str = "",
        total: int | None = None,
        *,
        in_bytes: bool = False,
        patience: float = 0.0,
        interval: float | None = None,
        hidden: bool = False,
    ) -> None:
        self._title, self._total, self._amount, self._note = title, total, 0, ""
        self._in_bytes, self._patience, self._hidden = in_bytes, patience, hidden
        self._interval = interval
        self._next_line = time.monotonic() + (interval if interval and patience else 0.0)
        self._lock = threading.Lock()  # a bar that waits is made in the timer's thread
        self._timer: threading.Timer | None = None
        self._running = False
        self._bar: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> "ProgressBar":
        """Show the bar, now or after the patience; where stderr is no terminal, nothing yet."""
        self._running = True
        if self._hidden or not sys.stderr.isatty():
            return self
        self._interval = None  # on a terminal the bar says it, and no lines are written
        if self._patience:
            self._timer = threading.Timer(self._patience, self._start)
            self._timer.daemon = True
            self._timer.start()
        else:
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        """Erase the bar, and let none appear that is still waited for."""
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            self._running = False
            if self._bar is not None:
                self._bar[0].stop()

    def begin(self, title: str, total: int | None = None) -> None:
        """Something else is done from now on, of another total, None where that is not known;
        counted from 0."""
        with self._lock:
            self._title, self._total, self._amount = title, total, 0
            if self._bar is not None:
                progress, task = self._bar
                progress.reset(task, description=title, total=total)

    def update(self, amount: int, total: int | None = None, note: str = "") -> None:
        """``amount`` of the total is done, counted from the beginning. ``total``: another one from
        now on; None: as before. The note stands behind the bar, in place of the one before."""
        self._amount, self._note = amount, note
        self._total = self._total if total is None else total
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, completed=amount, total=self._total, note=note)
        elif self._interval is not None and time.monotonic() > self._next_line and not self._hidden:
            print(self._line(), file=sys.stderr, flush=True)
            self._next_line = time.monotonic() + self._interval

    def advance(self, count: int = 1) -> None:
        """``count`` more are done."""
        self.update(self._amount + count, note=self._note)

    def _line(self) -> str:
        """How far it is, in a line for where there is no terminal."""
        amounts = [self._amount] if self._total is None else [self._amount, self._total]
        if self._in_bytes:
            return f"{self._title}: {' of '.join(f'{n / 1e6:,.0f}' for n in amounts)} MB"
        return f"{self._title}: {' of '.join(f'{n:,}' for n in amounts)}"

    def _start(self) -> None:
        """Show the bar, unless all is done already: after the patience this runs in the timer's
        thread."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = [
            *(TextColumn("{task.description}", markup=False), BarColumn()),
            *([DownloadColumn()] if self._in_bytes else []),
            *(TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False)),
        ]
        with self._lock:
            if not self._running:  # it ended just now
                return
            progress = Progress(*columns, console=Console(stderr=True), transient=True)
            task = progress.add_task(
                self._title, total=self._total, completed=self._amount, note=self._note
            )
            progress.start()
            self._bar = progress, task
