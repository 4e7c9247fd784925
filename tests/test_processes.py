"""Several processes: the same losses and weights as one, and one decision when numbers break."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from addnorm.training.checkpoint import Checkpoints
from addnorm.training.display import Display
from addnorm.training.loop import Diverged, Trainer
from addnorm.training.parallel import World, here
from addnorm.training.run import train
from addnorm.training.sinks import read
from tests.test_training import ALONE, Toy, loop, small

CPU = torch.device("cpu")
STEPS = 6


def run(task: Toy, world: World, **changes: Any) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of a few steps, and the weights after them."""
    trainer = Trainer(task, loop(steps=STEPS, micro_rows=2, **changes), world)
    losses = [trainer.step().loss for _ in range(STEPS)]
    return losses, trainer.tensors()["model"]


def part(rank: int, folder: Path) -> None:
    """Everything that needs two processes, since starting them is what takes long."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    world = here(CPU)
    found: dict[str, Any] = {}
    for how in ("ddp", "fsdp"):
        found[how] = run(Toy(), world, parallel=how)
        found[f"{how} muon"] = run(Toy(dtype=torch.float32), world, parallel=how, optimizer="muon")

    # a row of rank 1 only: both stop, or both leave the step out
    task = Toy()
    task.spoil = {3: math.nan}
    try:
        run(task, world)
    except Diverged as error:
        found["stop"] = str(error)
    task = Toy()
    task.spoil = {3: math.nan}
    trainer = Trainer(task, loop(steps=STEPS, nonfinite="skip"), world)
    found["skip"] = [trainer.step().skipped for _ in range(STEPS)], trainer.tensors()["model"]

    # an evaluation whose last window is short, and whose windows are fewer than twice the rows
    task = small(folder / str(rank)).about.build()
    trainer = Trainer(task, loop(parallel="fsdp"), world)
    with trainer.looking() as model:
        found["val_loss"] = task.evaluate(model)["val_loss"], task.glance(model)["val_loss"]

    # a whole run on two processes, to be gone on with on one
    quiet = Display(quiet=True)
    train(Toy(), loop=loop(device="cpu"), out=folder / "both", until=8, display=quiet)
    out = folder / "sharded"
    train(Toy(), loop=loop(parallel="fsdp", device="cpu"), out=out, until=8, display=quiet)
    torch.save(found, folder / f"found-{rank}.pt")
    dist.barrier()  # gloo's threads do not take it well if the other process leaves first
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(part, args=(folder,), nprocs=2)
    return [torch.load(folder / f"found-{rank}.pt") for rank in range(2)], folder


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_the_same_as_one_process(found: Any, how: str) -> None:
    """AdamW in float64: sums in another order differ by 1e-16, which six of its steps may enlarge
    where a gradient is nearly 0; the targets of a row are spread unevenly."""
    losses, weights = run(Toy(), ALONE)
    for each in found[0]:
        assert each[how][0] == pytest.approx(losses, rel=1e-10)
        assert each[how][1].keys() == weights.keys()
        for name, t in weights.items():
            torch.testing.assert_close(each[how][1][name], t, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_muon_on_two_processes(found: Any, how: str) -> None:
    """Its iteration is in bfloat16, which rounds an update by 1 to 3 %; a step is 1e-3 large."""
    losses, weights = run(Toy(dtype=torch.float32), ALONE, optimizer="muon")
    for each in found[0]:
        assert each[f"{how} muon"][0] == pytest.approx(losses, rel=0.02)
        for name, t in weights.items():
            torch.testing.assert_close(each[f"{how} muon"][1][name], t, rtol=0.05, atol=5e-3)


def test_all_decide_together(found: Any) -> None:
    """NaN in the rows of one process only."""
    first, second = found[0]
    for each in (first, second):
        assert "step 3:" in each["stop"]
        assert "enter (Linear)" in each["stop"]
        assert each["skip"][0] == [False, False, False, True, False, False]
    for name, t in first["skip"][1].items():
        assert torch.equal(t, second["skip"][1][name])


def test_an_evaluation_is_the_work_of_all(found: Any, tmp_path: Path) -> None:
    task = small(tmp_path).about.build()
    trainer = Trainer(task, loop(), ALONE)
    with trainer.looking() as model:
        want = task.evaluate(model)["val_loss"], task.glance(model)["val_loss"]
    for each in found[0]:
        assert each["val_loss"] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("name", ["both", "sharded"])
def test_from_two_processes_to_one(found: Any, tmp_path: Path, name: str) -> None:
    """What was loaded is what was saved, whatever the model was wrapped in; the run ends as one
    that was never on two."""
    folder = found[1] / name
    saved = Checkpoints(folder / "checkpoints").load()
    assert saved.step == 8
    assert saved.facts["trainer"]["processes"] == 2
    trainer = Trainer(Toy(), loop(), ALONE)
    trainer.restore(saved.tensors, saved.facts["trainer"])
    now = trainer.tensors()
    for group in ("model", "optimizer"):
        assert now[group].keys() == saved.tensors[group].keys()
        for key, t in now[group].items():
            assert torch.equal(t, saved.tensors[group][key])
    train(Toy(), loop=loop(), out=folder, resume=True, display=Display(quiet=True))
    train(Toy(), loop=loop(), out=tmp_path / "one", display=Display(quiet=True))
    a, b = (
        [r["loss"] for r in read(f / "metrics.jsonl") if "loss" in r]
        for f in (folder, tmp_path / "one")
    )
    assert a == pytest.approx(b, rel=1e-9)
