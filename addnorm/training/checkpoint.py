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
import hashlib
import json
import math
import os
import re
import shutil
import socket
import threading
import traceback
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor

from addnorm.disk import difference, sync
from addnorm.errors import Mendable
from addnorm.training.divided import Parts, write
from addnorm.training.parallel import World

__all__ = ["CheckpointError", "Checkpoints", "Snapshot"]

STATE = "state.json"
CHECKSUMS = "checksums.json"
LOCK = ".lock"
LEFT_BEHIND = (".saving-step-", ".deleted-step-")
"""How the names begin of what a save or a deletion that was cut off leaves."""
WHOLE, DIVIDED = 1, 2  # formats: whether some tensors are in parts
SHARD = 2 * 1000**3  # bytes of tensors in one file; a larger tensor has a file to itself
FLOAT = "$float"
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What can be saved, and what safetensors calls it."""
WRITTEN = re.compile(
    rf"{re.escape(STATE)}|{re.escape(CHECKSUMS)}"
    r"|[a-z][a-z0-9_]*(-of-process)?(-\d{5}-of-\d{5})?\.safetensors"
)
"""The names of the files of a checkpoint."""


@final
class CheckpointError(Mendable):
    """A checkpoint that cannot be written or read; the message says what, where and what to do."""


@final
@dataclass(frozen=True)
class Snapshot:
    """All that a run is at one moment, between two optimizer steps: host memory only.

    ``tensors``: group -> name -> tensor. A group becomes a file, so that its name is of lowercase
    letters, digits and ``_``. ``facts``: what JSON can hold, with nan and the infinities, which
    are stored as ``{"$float": "nan"}``. A tuple comes back as a list.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    facts: Mapping[str, Any]


@final
class Checkpoints:
    """The checkpoints of one run: ``folder/step-00000100`` and so on, the newest ``keep`` of them.

    Reading needs nothing but the folder. Writing needs the folder's lock, which is taken by
    ``lock`` or else by the first ``save`` and given back by ``close`` or by the end of the process,
    whatever ends it: a second run that writes to the same folder is refused.

    With ``background``, ``save`` copies the tensors and returns, and one thread writes; the
    interpreter does not exit before it is done. The disk needs room for ``keep`` + 1.
    """

    def __init__(self, folder: Path, keep: int = 2, background: bool = True) -> None:
        if keep < 1:
            raise CheckpointError(f"keep is {keep}: at least one checkpoint has to stay")
        self.folder = Path(folder)
        self.keep = keep
        self.background = background
        self._follows = False  # whether this run wrote or read what is in the folder
        self._lock: _Lock | None = None
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
        plan = _plan(snapshot, copy=self.background)
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
        told = False

        def parts(work: Path) -> dict[str, tuple[dict[str, Any], Parts]]:
            return {group: write(work, group, spread[group], world) for group in sorted(spread)}

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
            nonlocal told
            told = True
            world.share(work)
            written = parts(work)
            files = {name: of for found, _ in written.values() for name, of in found.items()}
            plan = _plan(
                snapshot, copy=False, parts={g: places for g, (_, places) in written.items()}
            )
            return files | _put_all(work, plan)

        failure = ""
        try:
            self._begin(snapshot.step)
            self._follows = True
            size = sum(t.nbytes for held in snapshot.tensors.values() for t in held.values())
            self._write(snapshot.step, size, fill)
        except CheckpointError as error:
            failure = str(error)
        if not told:
            world.share(None)
        world.share(failure)
        if failure:
            raise CheckpointError(failure)

    def _begin(self, step: int) -> None:
        """See that this step may be written here."""
        self.wait()
        self.lock()
        later = [there for there in self.steps() if there >= step]
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
        """Keep other runs from writing here, from now on; the folder is made if there is none."""
        if self._lock is not None and self._lock.held():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _Lock(self.folder / LOCK)
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be written to: {error}") from error

    def close(self) -> None:
        """Wait for what is being written, and let others write here."""
        try:
            self.wait()
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, by name, oldest first."""
        return sorted({step for step, _ in self._found()})

    def load(self, step: int | None = None) -> Snapshot:
        """The checkpoint of a step, or the newest one that is whole.

        Every byte is compared with the checksums first. If the newest is damaged, a warning says
        what is wrong with it and the one before is taken; if none is whole, CheckpointError says
        what is wrong with each.
        """
        while True:
            found = self._found()
            wrong = []
            for (number, _), path in sorted(found.items(), reverse=True):
                if step not in (None, number):
                    continue
                try:
                    snapshot = _read(path, number)
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
            if self._found() == found:
                break
        raise self._none(step)

    def verify(self, step: int) -> None:
        """Compare every byte of a checkpoint with its checksums; raises what is wrong."""
        found = {again: path for (number, again), path in self._found().items() if number == step}
        if not found:
            raise self._none(step)
        _examine(found[max(found)], step)

    def strangers(self) -> list[Path]:
        """What lies inside of checkpoints and was not written with them, by its name."""
        try:
            return [
                path
                for step in self._found().values()
                for path in ([step] if step.is_symlink() else sorted(step.iterdir()))
                if not WRITTEN.fullmatch(path.name) or path.is_dir()
            ]
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be read: {error}") from error

    def clear(self) -> None:
        """Delete every checkpoint, for a run that begins anew; none if there are ``strangers``."""
        self.lock()
        try:
            if wrong := self.strangers():
                raise CheckpointError(
                    f"{wrong[0]} was not written with the checkpoint it is in: move it elsewhere"
                )
            for path in self._found().values():
                self._delete(path)
            for left in self._folders():
                if left.name.startswith(LEFT_BEHIND):
                    shutil.rmtree(left, ignore_errors=True)
        except OSError as error:
            raise CheckpointError(f"{self.folder} could not be cleared: {error}") from error

    def _none(self, step: int | None) -> CheckpointError:
        held = ", ".join(map(str, self.steps())) or "none"
        asked = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        return CheckpointError(f"{self.folder} has {asked}; it has {held}")

    def _found(self) -> dict[tuple[int, int], Path]:
        """(step, how often it was saved before) -> folder.

        A step that is saved again goes to ``step-00000100.1``: a rename cannot replace a folder,
        and there would be a moment with neither.
        """
        name = re.compile(r"step-(\d{8,})(?:\.(\d+))?")
        named = [(name.fullmatch(path.name), path) for path in self._folders()]
        return {(int(m[1]), int(m[2] or 0)): path for m, path in named if m}

    def _folders(self) -> list[Path]:
        try:
            return [path for path in self.folder.iterdir() if path.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be read: {error}") from error

    # --- writing ----------------------------------------------------------------------------------

    def _write_behind(self, plan: "_Plan") -> None:
        try:
            self._write_plan(plan)
        except Exception as error:
            self._failure = error
            self._untold.append(str(error))
            # The error may wait for long, and must not keep the copies that its frames hold.
            del plan
            for told in (error, error.__cause__):
                if told is not None:
                    traceback.clear_frames(told.__traceback__)

    def _write_plan(self, plan: "_Plan") -> None:
        self._write(plan.step, plan.size, partial(_put_all, plan=plan))

    def _write(self, new: int, size: int, fill: Callable[[Path], dict[str, Any]]) -> None:
        """Show a checkpoint of what ``fill`` writes into an empty folder, and tells of each file;
        ``size`` is about how many bytes.

        By hand, and not by ``disk.scratch`` and ``disk.show``: the next save knows by its name what
        a crash left here, and what is shown is read again and taken back if it is wrong.
        """
        if self._lock is not None and self._lock.sure:
            # Nobody else writes here, so what a save or a deletion left behind is nobody's.
            for left in self._folders():
                if left.name.startswith(LEFT_BEHIND):
                    shutil.rmtree(left, ignore_errors=True)
        again = max((n + 1 for step, n in self._found() if step == new), default=0)
        path = self.folder / (f"step-{new:08d}" + (f".{again}" if again else ""))
        work = self.folder / f".saving-{path.name}-{uuid.uuid4().hex[:8]}"
        shown = False
        try:
            work.mkdir()
            _put(work / CHECKSUMS, [_sealed(fill(work))])
            sync(work)
            work.rename(path)
            shown = True
            sync(self.folder)
            _examine(path, new)  # from the disk, before anything older goes
        except BaseException as error:
            with contextlib.suppress(OSError):
                if shown:
                    self._delete(path)
            shutil.rmtree(work, ignore_errors=True)
            if not isinstance(error, OSError | CheckpointError):
                raise
            raise CheckpointError(
                f"step {new} could not be saved: {error}. It needs {size:,} bytes and "
                f"{_free(self.folder)} are free. The checkpoints before it are as they were"
            ) from error
        found = self._found()
        newest = dict(sorted(found))  # step -> its last saving
        kept = [step for step in newest if step <= new][-self.keep :]
        try:
            # A future that was given up goes first: it must not be taken for the newest.
            for step, again in sorted(found, reverse=True):
                if step not in kept or again != newest[step]:
                    self._delete(found[step, again])
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
    """The run is over and nobody has asked how its last save went."""
    for text in untold:
        warnings.warn(f"the last checkpoint failed: {text}", stacklevel=2)


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free:,}"
    except OSError:
        return "an unknown number"


# --- the format -----------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """What is to be written, the caller's no more."""

    step: int
    files: dict[str, dict[str, Tensor]]  # file -> name -> tensor
    state: bytes
    size: int


def _plan(snapshot: Snapshot, *, copy: bool, parts: Mapping[str, Parts] | None = None) -> _Plan:
    """``parts``: of the groups that are written already, where the parts of each tensor are."""
    step, parts = snapshot.step, parts or {}
    if step < 0:
        raise CheckpointError(f"step {step} is below 0")
    files: dict[str, dict[str, Tensor]] = {}
    places: dict[str, dict[str, Any]] = {}  # group -> name -> file, or shape and parts
    for group, tensors in snapshot.tensors.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*", group):
            raise CheckpointError(
                f"{group!r} cannot be the name of a group: lowercase letters, digits and _"
            )
        for name in tensors:
            if not isinstance(name, str) or name == "__metadata__":
                raise CheckpointError(f"{group} has a tensor {name!r}: give it another name")
        if group in parts:
            places[group] = {
                name: {"shape": list(t.shape), "parts": parts[group].get(name, [])}
                for name, t in tensors.items()
            }
            continue
        held = {name: _owned(t, f"{group}: {name}", copy) for name, t in tensors.items()}
        where: dict[str, str] = {}
        shards = _shards(held)
        for i, names in enumerate(shards):
            part = f"-{i + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
            files[file := f"{group}{part}.safetensors"] = {name: held[name] for name in names}
            where |= dict.fromkeys(names, file)
        places[group] = {name: where[name] for name in held}
    told = {"format": DIVIDED if parts else WHOLE, "step": step, "tensors": places}
    told["facts"] = _encoded(snapshot.facts, "facts")
    state = (json.dumps(told, indent=2) + "\n").encode()
    size = len(state) + sum(t.nbytes for held in files.values() for t in held.values())
    return _Plan(step, files, state, size)


def _put_all(work: Path, plan: _Plan) -> dict[str, Any]:
    """The plan's files; returns what is recorded of each."""
    told = {name: _put(work / name, _safetensors(ts)) for name, ts in plan.files.items()}
    return told | {STATE: _put(work / STATE, [plan.state])}


def _owned(t: Tensor, where: str, copy: bool) -> Tensor:
    if t.device.type != "cpu" or t.layout != torch.strided or t.dtype not in DTYPES:
        kind = f"{t.dtype} on {t.device}, {t.layout}"
        raise CheckpointError(f"{where} is {kind}: give a dense CPU tensor of a plain dtype")
    t = t.detach()
    return t.clone(memory_format=torch.contiguous_format) if copy else t


def _shards(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """The names, file by file. The widest dtypes first, so that every tensor is aligned."""
    shards: list[list[str]] = []
    room = 0
    for name in sorted(tensors, key=lambda name: -tensors[name].element_size()):
        size = tensors[name].nbytes
        if not shards or size > room:
            shards.append([])
            room = SHARD
        shards[-1].append(name)
        room -= size
    return shards


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file: the header's length, the header, the values.

    The format knows no shared memory: tied tensors are written under each of their names.
    Not the library's own writer: it tells no sha256 of what it took from memory, only the file can
    be asked afterwards, which is too late to notice what went wrong on the way.
    """
    header: dict[str, Any] = {}
    end = 0
    for name, t in tensors.items():
        begin, end = end, end + t.nbytes
        header[name] = {
            "dtype": DTYPES[t.dtype],
            "shape": list(t.shape),
            "data_offsets": [begin, end],
        }
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    yield len(raw).to_bytes(8, "little")
    yield raw
    for t in tensors.values():
        yield t.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _put(file: Path, parts: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """A new file, down to the disk; returns the size and sha256 of what was to be in it: taken
    from memory, so that a disk that writes something else is found out."""
    size, sha = 0, hashlib.sha256()
    with file.open("xb", buffering=0) as opened:
        for part in parts:
            size += len(part)
            sha.update(part)
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(opened.fileno(), rest) :]
        os.fsync(opened.fileno())
        # Out of the machine's memory, so that reading back asks the disk. A wish, not to be had on
        # every system.
        with contextlib.suppress(AttributeError, OSError):
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return {"bytes": size, "sha256": sha.hexdigest()}


def _sealed(told: Any) -> bytes:
    """checksums.json: what it says of the files, and the sha256 of that."""
    seal = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    return (json.dumps({"files": told, "sha256": seal}, indent=2) + "\n").encode()


def _examine(path: Path, step: int) -> dict[str, Any]:
    """What state.json says, if every byte of the checkpoint is the one that was written."""
    try:
        raw = (path / CHECKSUMS).read_bytes()
        told = json.loads(raw)["files"]
        # The whole text, not the seal alone: it has bytes that say nothing.
        if raw != _sealed(told):
            raise ValueError("its own checksum differs")
        here = {file.name for file in path.iterdir()} - {CHECKSUMS}
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise CheckpointError(f"{path}: {CHECKSUMS} is missing or damaged ({error})") from None
    wrong = [f"{name} was not written with it" for name in sorted(here - told.keys())]
    wrong += [text for name, want in told.items() if (text := _compare(path / name, want))]
    if wrong:
        raise CheckpointError(f"{path} is damaged: {'; '.join(wrong)}")
    state: dict[str, Any] = json.loads((path / STATE).read_bytes())
    if state["format"] not in (WHOLE, DIVIDED):
        raise CheckpointError(
            f"{path} has format {state['format']}, and this addnorm reads {WHOLE} and {DIVIDED}: "
            "use the version that wrote it"
        )
    if state["step"] != step:
        raise CheckpointError(f"{path} is step {state['step']}: give it its name back")
    return state


def _compare(file: Path, want: Mapping[str, Any]) -> str | None:
    """What is wrong with a file, if anything."""
    try:
        wrong = difference(file, want["bytes"], want["sha256"])
        if wrong is not None:
            return f"{file.name} {wrong}"
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                pass
    except (OSError, SafetensorError) as error:
        return f"{file.name} cannot be read ({error})"
    return None


def _read(path: Path, step: int) -> Snapshot:
    state = _examine(path, step)
    tensors: dict[str, dict[str, Tensor]] = {}
    try:
        for group, places in state["tensors"].items():
            wanted: dict[str, list[tuple[str, list[int] | None]]] = {}  # file -> names, offsets
            for name, place in places.items():
                parts = [(place, None)] if isinstance(place, str) else place["parts"]
                for file, offsets in parts:
                    wanted.setdefault(file, []).append((name, offsets))
            held: dict[str, Tensor] = {}
            missing: dict[str, int] = {}  # values of the tensors in parts
            for file, names in sorted(wanted.items()):
                with safe_open(path / file, framework="pt") as opened:
                    for name, offsets in names:
                        part = opened.get_tensor(name)
                        if offsets is None:
                            # A copy: this shares memory with the file, which will be deleted.
                            held[name] = part.clone()
                            continue
                        if name not in held:
                            held[name] = part.new_empty(places[name]["shape"])
                            missing[name] = held[name].numel()
                        at = [slice(a, a + n) for a, n in zip(offsets, part.shape, strict=True)]
                        held[name][tuple(at)] = part
                        missing[name] -= part.numel()
            if any(missing.values()) or held.keys() != places.keys():
                raise CheckpointError(f"{path}: {STATE} does not tell of every part of {group}")
            tensors[group] = {name: held[name] for name in places}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return Snapshot(step, tensors, _decoded(state["facts"]))


def _encoded(value: Any, where: str) -> Any:
    """As JSON knows it. Numbers that it does not know become objects of one key."""
    if isinstance(value, float) and not math.isfinite(value):
        return {FLOAT: repr(float(value))}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_encoded(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key == FLOAT:
                raise CheckpointError(f"{where} has the key {key!r}: give strings, not {FLOAT!r}")
        return {key: _encoded(item, f"{where}[{key!r}]") for key, item in value.items()}
    raise CheckpointError(f"{where} is a {type(value).__name__}, which JSON cannot hold")


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {FLOAT}:
            return float(value[FLOAT])
        return {key: _decoded(item) for key, item in value.items()}
    return value


# --- one writer at a time -------------------------------------------------------------------------


_locked: set[int] = set()  # descriptors of this process


@final
class _Lock:
    """A file that this process alone has locked, with who that is written in it.

    ``flock``, since the kernel gives it back however a process ends: a number in a file would have
    to be asked for, may be another process by now, and means nothing on another machine.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self.sure = _flock(self._descriptor, file)
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        except BaseException:
            os.close(self._descriptor)
            raise
        _locked.add(self._descriptor)
        _watch_forks()
        self.release = weakref.finalize(self, _unlock, self._descriptor)

    def held(self) -> bool:
        """Whether it is still open, as after a fork it is not, and the file that others try."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self._file.stat())
        except OSError:
            return False


def _flock(descriptor: int, file: Path) -> bool:
    """Lock it or raise; False where files cannot be locked."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 1000).decode(errors="replace") or "another process"
        raise CheckpointError(
            f"{file.parent} is being written to by {holder}: stop that run or give this one "
            "another folder (within one process: close() the other Checkpoints first)"
        ) from None
    except (ImportError, OSError) as error:  # Windows; Lustre and others as some mount them
        warnings.warn(
            f"{file.parent} cannot be locked ({error}): see to it yourself that no other run "
            "writes there",
            stacklevel=4,
        )
        return False
    return True


def _unlock(descriptor: int) -> None:
    if descriptor in _locked:
        _locked.remove(descriptor)
        os.close(descriptor)


def _forked() -> None:
    """A forked child, such as a worker that loads data, must not hold the lock past its parent."""
    for descriptor in list(_locked):
        _unlock(descriptor)


@cache
def _watch_forks() -> None:
    """Once, for the first lock, where there are forks."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forked)
