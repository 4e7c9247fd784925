"""The records of a run: what they are, and how metrics.jsonl and samples.jsonl are read again."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
"""What was measured at one step or one evaluation: ``step``, ``tokens`` and ``elapsed_s`` are there
always, ``whole`` in those of evaluations."""


def objects(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of one a line; none if it is not there, an ``OSError`` if it cannot be
    read. A line that a kill cut off is passed over, and so is what is no object."""
    if not file.exists():
        return
    # Not splitlines: a text may hold what Unicode takes for the end of a line.
    for line in file.read_bytes().split(b"\n"):
        try:
            value = json.loads(line.decode(errors="replace"))
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def read(file: Path) -> list[dict[str, Any]]:
    """The records of ``metrics.jsonl``, sorted by step; of a step that was done again the last one
    of training and the last evaluation count. An evaluation is what has "whole"."""
    latest: dict[tuple[int, str], dict[str, Any]] = {}
    for record in objects(file):
        if isinstance(record.get("step"), int):
            latest[record["step"], "eval" if "whole" in record else "train"] = record
    return [latest[key] for key in sorted(latest)]
