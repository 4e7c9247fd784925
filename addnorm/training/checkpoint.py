"""Checkpoints of a training run on disk: one is there whole or not at all, and every byte is known.

A checkpoint is a folder ``step-00000100`` with safetensors files, one or more for each group of
tensors, or one for each process of a group that is spread over processes; ``state.json`` with the
facts of the run and which file holds which tensor, or which parts of it; and
``checksums.json`` with the size and sha256 of both and a checksum of its own. Nothing is pickled.

It is written to a hidden folder beside, brought down to the disk, renamed, and read back; only then
are older ones deleted. So there is no moment at which a crash, of the process or of the machine,
leaves less than the last whole checkpoint. That files must be synced before the rename that shows
them is told by Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014).
"""

import contextlib
import re
import shutil
import threading
import traceback
import uuid
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, final

from torch.distributed.tensor import DTensor

from addnorm.disk import sync
from addnorm.training import checkpoint_file
from addnorm.training.checkpoint_file import CheckpointError, Snapshot
from addnorm.training.checkpoint_parts import Parts, write_parts
from addnorm.training.folder_lock import FolderLock
from addnorm.training.parallel import World

__all__ = ["CheckpointError", "Checkpoints", "Snapshot"]

LOCK = ".lock"
ATTEMPTS = 10  # to lock a folder that other runs remove as they end unused
LEFT_BEHIND = (".saving-step-", ".deleted-step-")
"""How the names begin of what a save or a deletion that was cut off leaves."""


@final
class Checkpoints:
    """The checkpoints of one run: ``folder/step-00000100`` and so on.

    ``folder``: where they are; it is made by the first save. ``keep``: how many stay, the newest
    ones; the disk needs room for one more. ``background``: ``save`` copies the tensors and returns,
    and one thread writes; the interpreter does not exit before it is done.

    Reading needs nothing but the folder. Writing needs the folder's lock, which is taken by
    ``lock`` or else by the first ``save`` and given back by ``close`` or by the end of the process,
    whatever ends it: a second run that writes to the same folder is refused.
    """

    def __init__(self, folder: Path, keep: int = 2, background: bool = True) -> None:
        if keep < 1:
            raise CheckpointError(f"keep is {keep}: at least one checkpoint has to stay")
        self.folder = Path(folder)
        self.keep = keep
        self.background = background
        self._follows = False  # whether this run wrote or read what is in the folder
        self._lock: FolderLock | None = None
        self._new_folders: list[Path] = []
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None  # of the last save, until it is raised
        # Its words apart: the error knows the frames it went through, and so this object.
        self._untold: list[str] = []
        weakref.finalize(self, _tell, self._untold)

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint, read it back, delete those beyond ``keep``.

        In the background the caller may change its tensors as soon as this returns. The save before
        is waited for; if that one failed, its error is raised here and nothing is begun: call
        again. After an error the checkpoints from before are as they were, and training can go on.

        Later steps than this one are of a future that was given up for an earlier checkpoint; they
        are deleted too. A run that has loaded nothing here has no business with them and is
        refused.
        """
        self._begin(snapshot.step)
        plan = checkpoint_file.plan(snapshot, copy=self.background)
        self._follows = True
        if not self.background:
            self._write_plan(plan)
            return
        # Not a daemon: the interpreter waits for it at exit.
        self._thread = threading.Thread(
            target=self._write_behind, args=(plan,), name=f"checkpoint {plan.step}", daemon=False
        )
        self._thread.start()

    def save_divided(self, snapshot: Snapshot, world: World) -> None:
        """``save`` for tensors that are spread over processes: each writes its own part, at once.

        All processes must call it, with the same folder on a disk that all of them see; an error is
        that of all of them. What is not spread is written by the first.
        """
        spread = {
            group: tensors
            for group, tensors in snapshot.tensors.items()
            if any(isinstance(t, DTensor) for t in tensors.values())
        }
        # What goes from the first process to all: the hidden folder to write to, or None if it came
        # to none; then what went wrong, "" if nothing did. Each is shared once, whatever happens.
        shared = False  # whether the folder was

        def parts(work: Path) -> dict[str, tuple[dict[str, Any], Parts]]:
            # Sorted: all processes write the groups in the same order, or they wait for ever.
            return {
                group: write_parts(work, group, spread[group], world) for group in sorted(spread)
            }

        if not world.first:
            work = world.share(None)
            if isinstance(work, Path):
                with contextlib.suppress(OSError):  # which the first one tells
                    parts(work)
            failure = world.share(None)
            if failure:
                raise CheckpointError(str(failure))
            return

        def fill(work: Path) -> dict[str, Any]:
            """As ``_write`` asks for; here the others learn where to write their parts."""
            nonlocal shared
            shared = True
            world.share(work)
            of_groups = parts(work)
            files = {name: sums for group, _ in of_groups.values() for name, sums in group.items()}
            plan = checkpoint_file.plan(
                snapshot, copy=False, parts={g: places for g, (_, places) in of_groups.items()}
            )
            return files | checkpoint_file.write_plan(work, plan)

        failure = ""
        try:
            self._begin(snapshot.step)
            self._follows = True
            size = sum(t.nbytes for group in snapshot.tensors.values() for t in group.values())
            self._write(snapshot.step, size, fill)
        except CheckpointError as error:
            failure = str(error)
        if not shared:
            world.share(None)
        world.share(failure)
        if failure:
            raise CheckpointError(failure)

    def _begin(self, step: int) -> None:
        """See that this step may be written here: the save before is done, which raises its error,
        the folder is locked, and no later step is another run's."""
        self.wait()
        self.lock()
        later = [other for other in self.steps() if other >= step]
        if later and not self._follows:
            raise CheckpointError(
                f"{self.folder} holds step {later[-1]} of another run, and this one saves step "
                f"{step}: resume from there, or give this run another folder"
            )

    def wait(self) -> None:
        """Until the save in the background is done; raises what went wrong with it, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            self._untold.clear()
            raise failure

    def lock(self) -> None:
        """Keep other runs from writing here, from now on; the folder is made if there is none. A
        CheckpointError says who writes here already; again is as good as once."""
        if self._lock is not None and self._lock.is_held():
            return
        try:
            absent = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
            self._lock = self._new_lock()
            self._new_folders = absent
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be written to: {error}") from error

    def _new_lock(self) -> FolderLock:
        """A lock on the folder, which is made. Another run that ends unused may remove both while
        this one takes hold of them; then it is tried again."""
        for _ in range(ATTEMPTS):
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                lock = FolderLock(self.folder / LOCK)
                if lock.is_held():
                    return lock
                lock.release()
        raise CheckpointError(f"{self.folder} is removed again and again by other runs")

    def close(self) -> None:
        """Wait for what is being written, and let others write here. Folders that only the lock
        made, for a run that never began, are gone again."""
        try:
            self.wait()
        finally:
            if self._lock is not None:
                with contextlib.suppress(OSError):
                    self._remove_unused(self._lock)
                self._lock.release()
                self._lock = None

    def _remove_unused(self, lock: FolderLock) -> None:
        """Remove the folders that ``lock`` was the reason to make, if nothing else is in them or
        beside them; while it is held, so that no other run has begun to write there."""
        beside = list(self.folder.parent.iterdir())
        inside = [path.name for path in self.folder.iterdir()]
        if self._new_folders and lock.is_held() and beside == [self.folder] and inside == [LOCK]:
            (self.folder / LOCK).unlink()
            for path in self._new_folders:  # the innermost first
                path.rmdir()

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, by name, oldest first."""
        return sorted({step for step, _ in self._checkpoints()})

    def load(self, step: int | None = None) -> Snapshot:
        """The checkpoint of a step, or the newest one that is whole.

        Every byte is compared with the checksums first. If the newest is damaged, a warning says
        what is wrong with it and the one before is taken; if none is whole, CheckpointError says
        what is wrong with each.
        """
        while True:  # again if the run that writes here replaced them all in the meantime
            checkpoints = self._checkpoints()
            wrong = []
            for (number, _), path in sorted(checkpoints.items(), reverse=True):
                if step not in (None, number):
                    continue
                try:
                    snapshot = checkpoint_file.read(path, number)
                except CheckpointError as error:
                    if path.exists():  # else its run has just deleted it, and has newer ones
                        wrong.append(str(error))
                    continue
                for text in wrong:
                    warnings.warn(f"{text}. Taking {path.name} instead", stacklevel=2)
                self._follows = True
                return snapshot
            if wrong:
                raise CheckpointError("\n".join(["no checkpoint is whole:", *wrong]))
            if self._checkpoints() == checkpoints:
                break
        raise self._missing(step)

    def verify(self, step: int) -> None:
        """Compare every byte of a checkpoint with its checksums; raises what is wrong."""
        savings = {n: path for (number, n), path in self._checkpoints().items() if number == step}
        if not savings:
            raise self._missing(step)
        checkpoint_file.examine(savings[max(savings)], step)

    def strangers(self) -> list[Path]:
        """What lies inside of checkpoints and was not written with them, by its name."""
        try:
            return [
                path
                for step in self._checkpoints().values()
                for path in ([step] if step.is_symlink() else sorted(step.iterdir()))
                if not checkpoint_file.WRITTEN.fullmatch(path.name) or path.is_dir()
            ]
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be read: {error}") from error

    def clear(self) -> None:
        """Delete every checkpoint, for a run that begins anew; a CheckpointError, and nothing is
        deleted, if there are ``strangers``."""
        self.lock()
        try:
            if wrong := self.strangers():
                raise CheckpointError(
                    f"{wrong[0]} was not written with the checkpoint it is in: move it elsewhere"
                )
            for path in self._checkpoints().values():
                self._delete(path)
            for left in self._folders():
                if left.name.startswith(LEFT_BEHIND):
                    shutil.rmtree(left, ignore_errors=True)
        except OSError as error:
            raise CheckpointError(f"{self.folder} could not be cleared: {error}") from error

    def _missing(self, step: int | None) -> CheckpointError:
        """The error where there is no checkpoint of a step; None: where there is none at all."""
        steps = ", ".join(map(str, self.steps())) or "none"
        what = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        return CheckpointError(f"{self.folder} has {what}; it has {steps}")

    def _checkpoints(self) -> dict[tuple[int, int], Path]:
        """(step, how often it was saved before) -> folder.

        A step that is saved again goes to ``step-00000100.1``: a rename cannot replace a folder,
        and there would be a moment with neither.
        """
        name = re.compile(r"step-(\d{8,})(?:\.(\d+))?")
        matches = [(name.fullmatch(path.name), path) for path in self._folders()]
        return {(int(m[1]), int(m[2] or 0)): path for m, path in matches if m}

    def _folders(self) -> list[Path]:
        """All folders beside the checkpoints, hidden ones and strangers' too; none if the folder
        around them is not there."""
        try:
            return [path for path in self.folder.iterdir() if path.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be read: {error}") from error

    # --- writing ----------------------------------------------------------------------------------

    def _write_behind(self, plan: checkpoint_file.Plan) -> None:
        """What the thread does. An error waits in ``_failure`` for the next ``wait``; its words, in
        ``_untold``, for the end of this object, if nobody waits any more."""
        try:
            self._write_plan(plan)
        except Exception as error:
            self._failure = error
            self._untold.append(str(error))
            # The error may wait for long, and must not keep the copies that its frames hold.
            del plan
            for one in (error, error.__cause__):
                if one is not None:
                    traceback.clear_frames(one.__traceback__)

    def _write_plan(self, plan: checkpoint_file.Plan) -> None:
        self._write(plan.step, plan.size, partial(checkpoint_file.write_plan, plan=plan))

    def _write(self, new: int, size: int, fill: Callable[[Path], dict[str, Any]]) -> None:
        """Write step ``new``, read it back, and delete the older ones beyond ``keep``.

        ``fill`` writes all files but checksums.json into the empty folder that it is given, and
        returns file -> size and sha256, as ``checkpoint_file.write_file`` does. ``size``: about how
        many bytes, for the message.

        By hand, and not by ``disk.scratch`` and ``disk.show``: the next save knows by its name what
        a crash left here, and what is shown is read again and taken back if it is wrong.
        """
        if self._lock is not None and self._lock.sure:
            # Nobody else writes here, so what a save or a deletion left behind is nobody's.
            for left in self._folders():
                if left.name.startswith(LEFT_BEHIND):
                    shutil.rmtree(left, ignore_errors=True)
        again = max((n + 1 for step, n in self._checkpoints() if step == new), default=0)
        path = self.folder / (f"step-{new:08d}" + (f".{again}" if again else ""))
        work = self.folder / f".saving-{path.name}-{uuid.uuid4().hex[:8]}"
        visible = False
        try:
            work.mkdir()
            checkpoint_file.write_file(
                work / checkpoint_file.CHECKSUMS, [checkpoint_file.sealed(fill(work))]
            )
            sync(work)
            work.rename(path)
            visible = True
            sync(self.folder)
            checkpoint_file.examine(path, new)  # from the disk, before anything older goes
        except BaseException as error:
            with contextlib.suppress(OSError):
                if visible:
                    self._delete(path)
            shutil.rmtree(work, ignore_errors=True)
            if not isinstance(error, OSError | CheckpointError):
                raise
            raise CheckpointError(
                f"step {new} could not be saved: {error}. It needs {size:,} bytes and "
                f"{_free(self.folder)} are free. The checkpoints before it are as they were"
            ) from error
        checkpoints = self._checkpoints()
        newest = dict(sorted(checkpoints))  # step -> its last saving
        to_keep = [step for step in newest if step <= new][-self.keep :]
        try:
            # A future that was given up goes first: it must not be taken for the newest.
            for step, again in sorted(checkpoints, reverse=True):
                if step not in to_keep or again != newest[step]:
                    self._delete(checkpoints[step, again])
        except OSError as error:
            raise CheckpointError(
                f"step {new} is saved and whole, but older ones could not be deleted: {error}"
            ) from error

    def _delete(self, path: Path) -> None:
        """Hidden first: half of it must not look like a checkpoint."""
        hidden = self.folder / f".deleted-{path.name}-{uuid.uuid4().hex[:8]}"
        path.rename(hidden)
        try:
            sync(self.folder)
        finally:
            shutil.rmtree(hidden)


def _tell(untold: list[str]) -> None:
    """Warn of a last save that failed when the run is over and nobody has asked how it went."""
    for text in untold:
        warnings.warn(f"the last checkpoint failed: {text}", stacklevel=2)


def _free(folder: Path) -> str:
    """The bytes that are free on a folder's disk, for a message."""
    try:
        return f"{shutil.disk_usage(folder).free:,}"
    except OSError:
        return "an unknown number"
