"""Which lines of a few files are run, and under which name: that of the test running now.

Nothing but the standard library, since a copy of this file, named ``sitecustomize.py``, is also
what Python imports first in the processes that a test starts: they go on under the test's name, and
leave what they ran in a folder when they end.
"""

import atexit
import json
import os
import sys
import threading
import uuid
from pathlib import Path
from types import FrameType
from typing import Any

VARIABLE = "MUTANTS_TRACE"  # of the environment: what the processes of a test are to do


class Tracer:
    """Notes lines, as bits of one whole number for each name and file."""

    def __init__(self, files: list[str], folder: str, context: str = "") -> None:
        self.files, self.folder, self.context = files, folder, context
        self.pid = os.getpid()
        self.lines: dict[str, dict[str, set[int]]] = {}
        self.switch(context)

    def start(self) -> None:
        """Trace this thread and those it starts; a forked process says what it ran at its end."""
        threading.settrace(self._call)
        sys.settrace(self._call)
        leave = os._exit

        def leave_lines(status: int) -> None:
            if os.getpid() != self.pid:
                self.dump()
            leave(status)

        os._exit = leave_lines  # type: ignore[assignment]

    def switch(self, context: str) -> str:
        """Note under another name; returns the one before."""
        before, self.context = self.context, context
        self.now = self.lines.setdefault(context, {file: set() for file in self.files})
        order = {"files": self.files, "folder": self.folder, "context": context}
        os.environ[VARIABLE] = json.dumps(order)
        return before

    def masks(self) -> dict[str, dict[str, int]]:
        """Name, then file, then the lines; what has none is left out."""
        return {
            context: {file: sum(1 << n for n in lines) for file, lines in files.items() if lines}
            for context, files in self.lines.items()
        }

    def dump(self) -> None:
        """Leave what this process ran."""
        path = Path(self.folder) / f"{uuid.uuid4().hex}.json"
        path.write_text(json.dumps(self.masks()))

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        lines = self.now.get(frame.f_code.co_filename)
        if lines is None:
            return None
        add = lines.add
        add(frame.f_lineno)

        def line(frame: FrameType, event: str, arg: Any) -> Any:
            add(frame.f_lineno)
            return line

        return line


def add_lines(into: dict[str, dict[str, int]], more: dict[str, dict[str, int]]) -> None:
    """Add the lines of one process to those of another."""
    for context, files in more.items():
        here = into.setdefault(context, {})
        for file, lines in files.items():
            here[file] = here.get(file, 0) | lines


if __name__ == "sitecustomize" and VARIABLE in os.environ:
    _tracer = Tracer(**json.loads(os.environ[VARIABLE]))
    _tracer.start()
    atexit.register(_tracer.dump)
