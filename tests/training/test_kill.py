"""kill -9 at random moments of a training: every resume goes on bit by bit, nothing is lost."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from addnorm.records import read
from addnorm.training import checkpoint
from addnorm.training.checkpoint import Checkpoints
from addnorm.training.display import Display
from addnorm.training.run import train
from tests.training.test_training import Toy, loop, same

STEPS, EVERY = 240, 3


def task() -> Toy:
    return Toy(rows=4, dropout=0.2, dtype=torch.float32)


def train_slowly(folder: Path, resume: bool) -> None:
    """In a child: saving takes long, and says when it begins and when it is done."""
    sync = checkpoint.sync

    def slow(path: Path) -> None:
        time.sleep(0.004)
        sync(path)

    checkpoint.sync = slow
    save = Checkpoints._write

    def marked(self: Checkpoints, *order: Any) -> None:
        (folder / "saving").touch()
        save(self, *order)
        (folder / "now").write_text(str(self.steps()[-1]))
        (folder / "now").rename(folder / "saved")
        (folder / "saving").unlink()

    Checkpoints._write = marked
    options = loop(steps=STEPS, save_every=EVERY, eval_every=0, watch_every=0, micro_rows=2)
    train(task(), loop=options, out=folder, resume=resume, display=Display(quiet=True))


def killed(tmp_path: Path, kills: int, seed: int) -> tuple[int, int]:
    """(kills, those inside of a save), after which the run was resumed to its end."""
    rng = random.Random(seed)
    folder = tmp_path / "run"
    folder.mkdir()
    done = inside = 0
    while done < kills:
        (folder / "saving").unlink(missing_ok=True)
        before = int((folder / "saved").read_text()) if (folder / "saved").exists() else 0
        child = os.fork()
        if child == 0:
            try:
                train_slowly(folder, resume=(folder / "run.json").exists())
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0.02, 0.25))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break  # it was done before
        done += 1
        inside += (folder / "saving").exists()
        steps = Checkpoints(folder / "checkpoints").steps()
        if before:
            assert steps, "nothing is left"
            assert Checkpoints(folder / "checkpoints").load().step >= before
    child = os.fork()
    if child == 0:
        try:
            train_slowly(folder, resume=(folder / "run.json").exists())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return done, inside


def check(tmp_path: Path) -> None:
    options = loop(steps=STEPS, save_every=0, eval_every=0, watch_every=0, micro_rows=2)
    train(task(), loop=options, out=tmp_path / "straight", display=Display(quiet=True))
    a, b = (Checkpoints(tmp_path / n / "checkpoints").load() for n in ("straight", "run"))
    assert same(a.tensors, b.tensors)
    losses = [
        {r["step"]: r["loss"] for r in read(tmp_path / n / "metrics.jsonl") if "loss" in r}
        for n in ("straight", "run")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == STEPS


def test_killed_a_few_times(tmp_path: Path) -> None:
    done, _ = killed(tmp_path, 5, seed=1)
    assert done == 5
    check(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_fifty_moments(tmp_path: Path) -> None:
    """In rounds, since a run ends at last; at least 20 of the kills between the first byte of a
    save and its rename."""
    done = inside = round_ = 0
    while done < 50 or inside < 20:
        folder = tmp_path / str(round_)
        folder.mkdir()
        d, i = killed(folder, 25, seed=100 + round_)
        check(folder)
        done, inside, round_ = done + d, inside + i, round_ + 1
    print(f"{done} kills, {inside} of them inside a save")
