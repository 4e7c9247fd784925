"""One checkpoint on disk: which files it has, how they are written, and how they are read again."""

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from addnorm.disk import difference
from addnorm.errors import Mendable
from addnorm.training.checkpoint_parts import Parts

STATE = "state.json"
CHECKSUMS = "checksums.json"
WHOLE, DIVIDED = 1, 2  # formats: whether some tensors are in parts
SHARD = 2 * 1000**3  # bytes of tensors in one file; a larger tensor has a file to itself
FLOAT = "$float"
DTYPE_NAMES = {
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

    ``step``: how many steps are done. ``tensors``: group -> name -> tensor. A group becomes a file,
    so that its name is of lowercase letters, digits and ``_``. ``facts``: what JSON can hold, with
    nan and the infinities, which are stored as ``{"$float": "nan"}``. A tuple comes back as a list.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    facts: Mapping[str, Any]


class Plan(NamedTuple):
    """What is to be written. Once it is copied, nothing in it is the caller's any more."""

    step: int
    files: dict[str, dict[str, Tensor]]  # file -> name -> tensor
    state: bytes  # of state.json
    size: int  # bytes of all files together


def plan(snapshot: Snapshot, *, copy: bool, parts: Mapping[str, Parts] | None = None) -> Plan:
    """Which files a snapshot becomes, and what state.json says of them.

    ``copy``: of every tensor, so that the caller may go on changing its own. ``parts``: of the
    groups that are written already, where the parts of each tensor are.
    """
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
        own = {name: _owned(t, f"{group}: {name}", copy) for name, t in tensors.items()}
        where: dict[str, str] = {}
        shards = _shards(own)
        for i, names in enumerate(shards):
            part = f"-{i + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
            files[file := f"{group}{part}.safetensors"] = {name: own[name] for name in names}
            where |= dict.fromkeys(names, file)
        places[group] = {name: where[name] for name in own}
    content = {"format": DIVIDED if parts else WHOLE, "step": step, "tensors": places}
    content["facts"] = _encoded(snapshot.facts, "facts")
    state = (json.dumps(content, indent=2) + "\n").encode()
    size = len(state) + sum(t.nbytes for file in files.values() for t in file.values())
    return Plan(step, files, state, size)


def write_plan(work: Path, plan: Plan) -> dict[str, Any]:
    """Write the plan's files into the folder ``work``; returns file -> "bytes" and "sha256", as
    ``write_file`` gives them."""
    sums = {name: write_file(work / name, _safetensors(ts)) for name, ts in plan.files.items()}
    return sums | {STATE: write_file(work / STATE, [plan.state])}


def _owned(t: Tensor, where: str, copy: bool) -> Tensor:
    """The tensor, or a copy of it, that can be written; ``where`` names it in the error if not."""
    if t.device.type != "cpu" or t.layout != torch.strided or t.dtype not in DTYPE_NAMES:
        kind = f"{t.dtype} on {t.device}, {t.layout}"
        raise CheckpointError(f"{where} is {kind}: give a dense CPU tensor of a plain dtype")
    t = t.detach()
    return t.clone(memory_format=torch.contiguous_format) if copy else t


def _shards(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """The names, file by file, of SHARD bytes at most. The widest dtypes first, so that every
    tensor is aligned."""
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
            "dtype": DTYPE_NAMES[t.dtype],
            "shape": list(t.shape),
            "data_offsets": [begin, end],
        }
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    yield len(raw).to_bytes(8, "little")
    yield raw
    for t in tensors.values():
        yield t.contiguous().reshape(-1).view(torch.uint8).numpy().data


def write_file(file: Path, parts: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """A new file, down to the disk; returns as "bytes" and "sha256" what was to be in it: taken
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
        # Out of the machine's memory, so that reading back asks the disk. A request that
        # not every system grants.
        with contextlib.suppress(AttributeError, OSError):
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return {"bytes": size, "sha256": sha.hexdigest()}


def sealed(sums: Any) -> bytes:
    """checksums.json: what it says of the files, and the sha256 of that."""
    seal = hashlib.sha256(json.dumps(sums).encode()).hexdigest()
    return (json.dumps({"files": sums, "sha256": seal}, indent=2) + "\n").encode()


def examine(path: Path, step: int) -> dict[str, Any]:
    """What the state.json of a checkpoint says, which is of step ``step`` by its name; a
    CheckpointError unless every byte of it is the one that was written."""
    try:
        raw = (path / CHECKSUMS).read_bytes()
        sums = json.loads(raw)["files"]
        # The whole text, not the seal alone: it has bytes that say nothing.
        if raw != sealed(sums):
            raise ValueError("its own checksum differs")
        here = {file.name for file in path.iterdir()} - {CHECKSUMS}
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise CheckpointError(f"{path}: {CHECKSUMS} is missing or damaged ({error})") from None
    wrong = [f"{name} was not written with it" for name in sorted(here - sums.keys())]
    wrong += [text for name, want in sums.items() if (text := _compare(path / name, want))]
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
    """What is wrong with a file, in words that begin with its name; None if nothing. ``want`` are
    its "bytes" and "sha256" in checksums.json."""
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


def read(path: Path, step: int) -> Snapshot:
    """What was saved in the folder ``path``, which is of step ``step`` by its name, every byte
    compared; a CheckpointError says what is wrong with it."""
    state = examine(path, step)
    try:
        tensors = {g: _read_group(path, g, places) for g, places in state["tensors"].items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    return Snapshot(step, tensors, _decoded(state["facts"]))


def _read_group(path: Path, group: str, places: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a group by name, whole, those in parts put together, all of them copies.
    ``places``: name -> file, or {"shape", "parts"}; a CheckpointError where they lack a part."""
    contents: dict[str, list[tuple[str, list[int] | None]]] = {}  # file -> names, offsets
    for name, place in places.items():
        parts = [(place, None)] if isinstance(place, str) else place["parts"]
        for file, offsets in parts:
            contents.setdefault(file, []).append((name, offsets))
    whole: dict[str, Tensor] = {}
    missing: dict[str, int] = {}  # values of the tensors in parts
    for file, names in sorted(contents.items()):
        with safe_open(path / file, framework="pt") as opened:
            for name, offsets in names:
                part = opened.get_tensor(name)
                if offsets is None:
                    # A copy: this shares memory with the file, which will be deleted.
                    whole[name] = part.clone()
                    continue
                if name not in whole:
                    whole[name] = part.new_empty(places[name]["shape"])
                    missing[name] = whole[name].numel()
                at = [slice(a, a + n) for a, n in zip(offsets, part.shape, strict=True)]
                whole[name][tuple(at)] = part
                missing[name] -= part.numel()
    if any(missing.values()) or whole.keys() != places.keys():
        raise CheckpointError(f"{path}: {STATE} does not tell of every part of {group}")
    return {name: whole[name] for name in places}


def _encoded(value: Any, where: str) -> Any:
    """A fact as JSON knows it; nan and the infinities, which it does not, become {FLOAT: "nan"} and
    so on. ``where`` names it in the error if JSON cannot hold it."""
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
    """What ``_encoded`` was given, but that a tuple is a list now."""
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {FLOAT}:
            return float(value[FLOAT])
        return {key: _decoded(item) for key, item in value.items()}
    return value
