"""Copies of the tree, one for each worker, and what runs in them."""

import compileall
import contextlib
import functools
import gc
import importlib
import py_compile
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from benchmarks.mutants import trace
from benchmarks.mutants.child import Job, Result, Slot
from benchmarks.mutants.project import Project

NOT_COPIED = (".git", ".venv", "out", "build", "dist", "__pycache__", ".*_cache", ".hypothesis")
T = TypeVar("T")
Steps = Generator[Job, Result, T]  # hands out runs of pytest, is told how each ended, and returns


class Bench:
    """Copies of the tree in a temporary folder, one for each worker, and what runs in them."""

    def __init__(self, project: Project, workers: int) -> None:
        self.project, self.workers = project, workers
        self.slots: list[Slot] = []

    def __enter__(self) -> "Bench":
        self.folder = Path(tempfile.mkdtemp(prefix="mutants-")).resolve()
        support = self.folder / "support"
        support.mkdir()
        shutil.copy(trace.__file__, support / "sitecustomize.py")
        for i in range(self.workers):
            slot = Slot(self.folder / f"slot{i}", self.project.package, support)
            if self.slots:
                shutil.copytree(self.slots[0].tree, slot.tree, symlinks=True)
            else:
                ignore = shutil.ignore_patterns(*NOT_COPIED)
                shutil.copytree(self.project.root, slot.tree, symlinks=True, ignore=ignore)
                # By what a file holds and not by its time: a mutant may be as long and as old.
                checked = py_compile.PycInvalidationMode.CHECKED_HASH
                compileall.compile_dir(slot.tree, quiet=2, invalidation_mode=checked)
            self.slots.append(slot)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in self.project.warm:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
        gc.collect()
        gc.freeze()  # pytest collects garbage often, and each child would look through all of this
        return self

    def __exit__(self, *_: object) -> None:
        for slot in self.slots:
            slot.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def work(self, trials: Iterable[Callable[[Slot], Steps[T]]]) -> Iterator[T]:
        """Let each slot take the next trial whenever it is free; what they return, as they end."""
        queue = iter(trials)
        running: dict[Slot, Steps[T]] = {}
        while True:
            returned: list[T] = []
            for slot in self.slots:
                if slot in running:
                    if (result := slot.poll()) is None:
                        continue
                    steps = running.pop(slot)
                    step = functools.partial(steps.send, result)
                elif (trial := next(queue, None)) is not None:
                    steps = trial(slot)
                    step = functools.partial(next, steps)
                else:
                    continue
                try:
                    slot.start(step())
                    running[slot] = steps
                except StopIteration as end:
                    returned.append(end.value)
            yield from returned
            if not running and not returned:
                return
            time.sleep(0.02)
