"""Several processes: the same losses and weights as one, and one decision when numbers break."""

import errno
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from addnorm.records import read
from addnorm.training import checkpoint_file, checkpoint_parts
from addnorm.training.checkpoint import CheckpointError, Checkpoints, Snapshot
from addnorm.training.display import Display
from addnorm.training.loop import Diverged, Trainer
from addnorm.training.parallel import World, here
from addnorm.training.run import train
from tests.processes import run_side_by_side
from tests.training.test_training import (
    ALONE,
    MATRICES,
    Named,
    Namesakes,
    Toy,
    loop,
    names_by_optimizer,
    same,
    small,
    weights,
)

CPU = torch.device("cpu")
STEPS = 6


def run(task: Toy, world: World, **changes: Any) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of a few steps, and the weights after them."""
    trainer = Trainer(task, loop(steps=STEPS, micro_rows=2, **changes), world)
    losses = [trainer.step().loss for _ in range(STEPS)]
    return losses, trainer.tensors()["model"]


def sparse() -> Toy:
    """With steps that have no target, and one that has a single one: of the first process."""
    task = Toy()
    task.empty, task.single = (0, 4), (2,)
    return task


def part(rank: int, folder: Path) -> None:
    """Everything that needs two processes, since starting them is what takes long."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    world = here(CPU)
    found: dict[str, Any] = {}
    quiet = Display(quiet=True)
    for how in ("ddp", "fsdp"):
        found[how] = run(Toy(), world, parallel=how)
        found[f"{how} sparse"] = run(sparse(), world, parallel=how)
        found[f"{how} muon"] = run(Toy(), world, parallel=how, optimizer="muon")
        muon = Trainer(Toy(), loop(parallel=how, optimizer="muon"), world)
        found[f"{how} names"] = names_by_optimizer(muon)

        # stopped, and gone on with on as many processes
        options = loop(steps=STEPS, parallel=how, device="cpu", save_every=0)
        train(Named(), loop=options, out=folder / f"{how} whole", display=quiet)
        train(Named(), loop=options, out=folder / f"{how} parts", until=3, display=quiet)
        train(Named(), loop=options, out=folder / f"{how} parts", resume=True, display=quiet)

    # what dropout leaves out of as many rows
    trainer, zeros = Trainer(Toy(dropout=0.5), loop(), world), []
    trainer.raw.drop.register_forward_hook(lambda module, args, out: zeros.append(out == 0))
    trainer.step()
    found["dropout"] = zeros[0]

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
    task = small(folder / str(rank)).task.build()
    trainer = Trainer(task, loop(parallel="fsdp"), world)
    with trainer.looking() as model:
        found["val_loss"] = task.evaluate(model)["val_loss"], task.glance(model)["val_loss"]

    # a whole run on two processes, to be gone on with on one
    train(Toy(), loop=loop(device="cpu"), out=folder / "both", until=8, display=quiet)
    out = folder / "sharded"
    train(Toy(), loop=loop(parallel="fsdp", device="cpu"), out=out, until=8, display=quiet)

    # a disk that is full for one process only; then there is room again
    trainer = Trainer(Toy(), loop(parallel="fsdp"), world)
    checkpoints = Checkpoints(folder / "full")
    found["full"] = []
    for step, full in ((1, False), (2, rank == 1), (3, False)):
        with pytest.MonkeyPatch.context() as patch:
            if full:
                patch.setattr(checkpoint_parts._File, "write", no_room)
            try:
                checkpoints.save_divided(Snapshot(step, trainer.parts(), {}), world)
            except CheckpointError as error:
                found["full"].append(str(error))
        dist.barrier()
        found["full"].append(sorted(p.name for p in checkpoints.folder.iterdir()))
    checkpoints.close()
    torch.save(found, folder / f"found-{rank}.pt")
    dist.barrier()  # gloo's threads do not take it well if the other process leaves first
    dist.destroy_process_group()


def no_room(self: Any, data: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def gone_on(rank: int, folder: Path) -> None:
    """On three processes what two have saved, each of which has its part of what was loaded."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=3
    )
    saved = Checkpoints(folder / "checkpoints").load(8)
    trainer = Trainer(Toy(), loop(parallel="fsdp"), here(CPU))
    trainer.restore(saved.tensors, saved.facts["trainer"])
    now = trainer.tensors()
    assert same({k: v for k, v in now.items() if k != "random"}, without_random(saved))
    quiet = Display(quiet=True)
    options = loop(parallel="fsdp", device="cpu")
    train(Toy(), loop=options, out=folder, resume=True, display=quiet)
    dist.barrier()
    dist.destroy_process_group()


def without_random(snapshot: Snapshot) -> dict[str, Any]:
    return {k: v for k, v in snapshot.tensors.items() if k != "random"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("processes")
    run_side_by_side(part, 2, folder)
    return [torch.load(folder / f"found-{rank}.pt") for rank in range(2)], folder


@pytest.mark.parametrize("task", [Toy, sparse])
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_the_same_as_one_process(found: Any, how: str, task: Any) -> None:
    """AdamW in float64: sums in another order differ by 1e-16, which six of its steps may enlarge
    where a gradient is nearly 0; the targets of a row are spread unevenly."""
    losses, weights = run(task(), ALONE)
    assert sum(map(math.isnan, losses)) == (2 if task is sparse else 0)
    for each in found[0]:
        mine = each[how if task is Toy else f"{how} sparse"]
        assert mine[0] == pytest.approx(losses, rel=1e-10, nan_ok=True)
        assert mine[1].keys() == weights.keys()
        for name, t in weights.items():
            torch.testing.assert_close(mine[1][name], t, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_muon_on_two_processes(found: Any, how: str) -> None:
    """Its iteration is in bfloat16. Under DDP each process does the whole of it on the same
    gradients, as one process does. Under FSDP its products are rounded otherwise, and of the eight
    directions of each matrix one is nothing but rounding, since a LayerNorm takes the mean out: of
    the way that the matrix went, sqrt(1/8) may be another one."""
    begin = weights(Trainer(Toy(), loop(), ALONE))
    losses, after = run(Toy(), ALONE, optimizer="muon")
    for each in found[0]:
        mine = each[f"{how} muon"]
        for name, t in after.items():
            if how == "ddp":
                torch.testing.assert_close(mine[1][name], t, rtol=1e-8, atol=1e-10)
            elif name in MATRICES:
                assert (mine[1][name] - t).norm() <= 8**-0.5 * (t - begin[name]).norm(), name
        if how == "ddp":
            assert mine[0] == pytest.approx(losses, rel=1e-10)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_every_process_trains_what_one_does(found: Any, how: str) -> None:
    want = names_by_optimizer(Trainer(Toy(), loop(optimizer="muon"), ALONE))
    assert want["Muon"] == MATRICES
    for each in found[0]:
        assert each[f"{how} names"] == want


def test_dropout_is_another_on_each_process(found: Any) -> None:
    """Or each would leave the same places out of its rows."""
    first, second = (each["dropout"] for each in found[0])
    assert first.shape == second.shape
    assert first.any()
    assert not torch.equal(first, second)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_a_resumed_run_on_two_processes_is_the_run(found: Any, how: str) -> None:
    """To the bit, with dropout, of a model whose names hold those of wrappers."""
    whole, parts = (
        Checkpoints(found[1] / f"{how} {n}" / "checkpoints") for n in ("whole", "parts")
    )
    assert parts.steps() == [3, STEPS]
    a, b = whole.load(), parts.load()
    assert a.tensors["model"].keys() == Namesakes().state_dict().keys()
    assert same(a.tensors, b.tensors)
    assert a.facts["trainer"] == b.facts["trainer"]


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
    task = small(tmp_path).task.build()
    trainer = Trainer(task, loop(), ALONE)
    with trainer.looking() as model:
        want = task.evaluate(model)["val_loss"], task.glance(model)["val_loss"]
    for each in found[0]:
        assert each["val_loss"] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("name", ["both", "sharded"])
def test_from_two_processes_to_one(found: Any, tmp_path: Path, name: str) -> None:
    """What was loaded is what was saved, whatever the model was wrapped in; the run ends as one
    that was never on two."""
    folder = shutil.copytree(found[1] / name, tmp_path / name)
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


# --- checkpoints of a divided model ---------------------------------------------------------------


def test_each_process_writes_what_it_holds(found: Any) -> None:
    """Under the model's own names; no file has more than its part; safetensors can be read."""
    folder = found[1] / "sharded" / "checkpoints" / "step-00000008"
    names = {n for n, _ in Toy().model().named_parameters()}
    parts = [
        load_file(folder / f"model-of-process-0000{rank}-of-00002.safetensors") for rank in (1, 2)
    ]
    for part in parts:
        assert part.keys() == names
    for name, p in Toy().model().named_parameters():
        rows = [len(part[name]) for part in parts]
        assert sum(rows) == len(p), name
        assert max(rows) <= (len(p) + 1) // 2, name
    listed = set(json.loads((folder / "checksums.json").read_text())["files"])
    assert listed == {p.name for p in folder.iterdir()} - {"checksums.json"}


def test_a_part_that_is_damaged_is_found(found: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(found[1] / "sharded", tmp_path / "run") / "checkpoints"
    file = folder / "step-00000008" / "optimizer-of-process-00002-of-00002.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.warns(UserWarning, match="of-process-00002-of-00002.* is not what was written"):
        assert Checkpoints(folder).load().step == 4
    file.unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors is missing"):
        Checkpoints(folder).load(8)


def test_a_part_that_nobody_tells_of_is_missed(
    found: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever wrote it so: what is not there must not be read as zeros."""
    folder = shutil.copytree(found[1] / "sharded", tmp_path / "run") / "checkpoints"
    examine = checkpoint_file.examine

    def forgetful(path: Path, step: int) -> dict[str, Any]:
        state = examine(path, step)
        state["tensors"]["model"]["enter.weight"]["parts"].pop()
        return state

    monkeypatch.setattr(checkpoint_file, "examine", forgetful)
    with pytest.raises(CheckpointError, match="does not tell of every part of model"):
        Checkpoints(folder).load(8)


def test_a_disk_that_is_full_for_one_is_told_to_all(found: Any) -> None:
    first, second = (each["full"] for each in found[0])
    assert first == second
    one, told, still, three = first
    assert one == still == [".lock", "step-00000001"]
    assert "step 2 could not be saved: process 2: [Errno 28] No space left on device" in told
    assert three == [".lock", "step-00000001", "step-00000003"]


def test_from_two_processes_to_three(found: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(found[1] / "sharded", tmp_path / "run")
    run_side_by_side(gone_on, 3, folder)
    train(Toy(), loop=loop(), out=tmp_path / "one", display=Display(quiet=True))
    a, b = (
        [r["loss"] for r in read(f / "metrics.jsonl") if "loss" in r]
        for f in (folder, tmp_path / "one")
    )
    assert len(a) == 12
    assert a == pytest.approx(b, rel=1e-9)
    assert Checkpoints(folder / "checkpoints").load().facts["trainer"]["processes"] == 3
