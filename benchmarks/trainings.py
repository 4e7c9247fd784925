"""Trainings of benchmarks, which go on where they were stopped."""

import json
import sys
from pathlib import Path

from addnorm import train
from addnorm.training.config import Config
from addnorm.training.display import Display
from addnorm.training.fit import Stopped
from addnorm.training.run import Run


def whole_run(config: Config, out: Path) -> Run:
    """The run in this folder, from its beginning or from where it is to its end; nothing is shown.
    One that is stopped ends the program, and says how to go on."""
    there = (out / "run.json").exists()
    try:
        return train(config, out=out, resume=there, display=Display(quiet=True))
    except Stopped as stop:
        sys.exit(f"{out} is saved at step {stop.step}: the same command goes on")


def minutes(out: Path) -> float:
    """How long the run in this folder has taken, all its parts together."""
    return float(json.loads((out / "run.json").read_text())["elapsed_s"]) / 60
