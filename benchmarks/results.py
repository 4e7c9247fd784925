"""A file of what was measured, so that a benchmark that was stopped goes on where it was."""

import json
from pathlib import Path
from typing import Any


class Results:
    """What was measured, by name, in a file of JSON; what is there is not measured again.

    ``file``: where it is kept. ``content``: name -> result.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.content: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def add(self, name: str, result: Any) -> None:
        """Keep a result, written at once: whole or not at all."""
        self.content[name] = result
        self.file.parent.mkdir(parents=True, exist_ok=True)
        work = self.file.with_suffix(".new")
        work.write_text(json.dumps(self.content))
        work.replace(self.file)

    def measured(self, name: str, measure: Any) -> None:
        """Have the result of ``measure()`` under this name, and print it if it is new."""
        if name not in self.content:
            self.add(name, measure())
            print(f"{name}: {self.content[name]}", flush=True)
