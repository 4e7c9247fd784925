"""The lines that a run writes are those that are read again."""

import json
from pathlib import Path
from typing import Any

from addnorm.records import objects, read
from addnorm.training.sinks import JSONLines


def test_the_last_line_of_a_step_counts(tmp_path: Path) -> None:
    """Of steps and of evaluations each for itself, in the order of the steps."""
    file = tmp_path / "metrics.jsonl"
    records: list[dict[str, Any]] = [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 2, "val_loss": 5.0, "whole": False},
        {"step": 3, "loss": 3.0},
        {"step": 2, "loss": 2.5},
        {"step": 2, "val_loss": 6.0, "whole": False},
    ]
    file.write_text("".join(json.dumps(r) + "\n" for r in records) + "\xff not json\n")
    records_read = read(file)
    assert [r["step"] for r in records_read] == [1, 2, 2, 3]
    assert {r["loss"] for r in records_read if "loss" in r} == {1.0, 2.5, 3.0}
    assert [r["val_loss"] for r in records_read if "whole" in r] == [6.0]


def test_a_text_may_hold_what_unicode_takes_for_the_end_of_a_line(tmp_path: Path) -> None:
    """Lines end with a newline and nothing else, here and where samples are read."""
    file, odd = tmp_path / "lines.jsonl", "a\u0085b\u2028c\u2029d\x0be\x0cf\x1cg\rh\ni"
    sink = JSONLines(file)
    sink.write({"step": 1, "name": odd})
    sink.write({"step": 2, "name": odd})
    sink.close()
    assert [r["name"] for r in read(file)] == [odd, odd]
    assert [record["step"] for record in objects(file)] == [1, 2]
