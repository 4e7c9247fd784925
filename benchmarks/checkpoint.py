"""What a save of a divided model takes: put together on one process, or each process its part.

    python benchmarks/checkpoint.py --processes 2 --layers 6

One step of AdamW on a GPT under FSDP2, then one save in each way; told are the resident memory of
each process at its highest over what it was before, when training could go on, and when the
checkpoint was on the disk.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from addnorm.models.gpt import GPT
from addnorm.models.gpt_config import GPTConfig
from addnorm.training.checkpoint import Checkpoints, Snapshot
from addnorm.training.loop import Trainer
from addnorm.training.loop_settings import LoopSettings
from addnorm.training.parallel import here
from addnorm.training.task import Batch, Best, Task

VOCABULARY, CONTEXT = 8000, 16


class Noise(Task):
    """Random ids: only the sizes count."""

    best = Best("loss", "min")

    def __init__(self, layers: int) -> None:
        self.layers = layers

    def model(self) -> GPT:
        return GPT(
            GPTConfig(
                vocab_size=VOCABULARY,
                context_length=CONTEXT,
                dim=768,
                n_layers=self.layers,
                n_heads=12,
            )
        )

    def batch(self, split: str, seed: int, step: int, rank: int, world: int) -> Batch:
        return {"ids": torch.randint(VOCABULARY, (2, CONTEXT))}

    def loss(
        self, model: torch.nn.Module, batch: Batch
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return model(batch["ids"]).square().sum(), torch.tensor(batch["ids"].numel()), {}

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        return {"loss": 0.0}


def resident() -> float:
    """Megabytes of this process; Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def part(rank: int, processes: int, layers: int, folder: Path, how: str) -> None:
    """One process's."""
    torch.set_num_threads(1)
    store = f"file://{folder}/{how}.rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes)
    settings = LoopSettings(parallel="fsdp", precision="fp32", device="cpu")
    trainer = Trainer(Noise(layers), settings, here(torch.device("cpu")))
    trainer.step()
    before = highest = resident()
    end_of_part = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not end_of_part.wait(0.005):
            highest = max(highest, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    checkpoints = Checkpoints(folder / how)
    dist.barrier()
    start = time.perf_counter()
    if how == "divided":
        checkpoints.save_divided(Snapshot(1, trainer.parts(), {}), trainer.world)
    else:
        snapshot = Snapshot(1, trainer.tensors(), {})
        if trainer.world.first:
            checkpoints.save(snapshot)
    goes_on = time.perf_counter() - start
    checkpoints.close()
    dist.barrier()
    there = time.perf_counter() - start
    end_of_part.set()
    watcher.join()
    count = sum(p.numel() for p in trainer.raw.parameters())
    print(
        f"{how:8} process {rank}: {12 * count / 1e6:,.0f} MB of weights and states, "
        f"+{highest - before:,.0f} MB, goes on after {goes_on:.1f} s, on disk after {there:.1f}",
        flush=True,
    )
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Both ways, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--layers", type=int, default=6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for how in ("together", "divided"):
            arguments = (args.processes, args.layers, Path(name), how)
            torch.multiprocessing.spawn(part, args=arguments, nprocs=args.processes)


if __name__ == "__main__":
    main()
