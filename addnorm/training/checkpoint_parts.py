"""Tensors that are spread over processes, written by the processes that hold them.

``torch.distributed.checkpoint`` plans who writes what and writes it, a safetensors file for each
process; here is what it leaves open: the name of the file, and what it holds down to the byte, told
from what was handed over and not from what came to the disk.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, final

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem

from addnorm.training.parallel import World

OFFSETS = "DCP_SHARDING_INFO"  # where the writer says which part of a tensor a file has
Parts = dict[str, list[tuple[str, list[int]]]]
"""Name of a tensor -> (file, where in the tensor its part begins)."""


def write_parts(
    folder: Path, group: str, tensors: Mapping[str, Tensor], world: World
) -> tuple[dict[str, Any], Parts]:
    """Write every process's part of ``tensors`` into ``folder``, in files that ``group`` begins the
    names of. Returns, of all processes, (file -> "bytes" and "sha256", name of a tensor -> parts).

    All processes must call it; an OSError is that of all of them.
    """
    disk = _Disk(f"{group}-of-process-{world.rank + 1:05d}-of-{world.size:05d}.safetensors")
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    writer.fs = disk
    try:
        dcp.save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:  # of every process, with what went wrong on each
        failures = [f"process {rank + 1}: {what[0]}" for rank, what in error.failures.items()]
        raise OSError("; ".join(failures)) from None
    files: dict[str, Any] = {}
    parts: Parts = {}
    for of_process in world.gather((disk.files, disk.parts)):
        theirs, pieces = cast(tuple[dict[str, Any], Parts], of_process)
        files |= theirs
        for name, places in pieces.items():
            parts.setdefault(name, []).extend(places)
    return files, parts


@final
class _Disk(FileSystem):
    """Where the writer writes: one file, under a name of ours. ``files`` and ``parts`` tell
    afterwards what was written, as ``write_parts`` returns it, of this process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.files: dict[str, Any] = {}
        self.parts: Parts = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        """A new file; what is written to it is noted."""
        with _File(Path(path).with_name(self.name), self) as opened:
            yield opened


@final
class _File(io.BufferedWriter):
    """A file that its disk knows the bytes of."""

    def __init__(self, path: Path, disk: _Disk) -> None:
        super().__init__(io.FileIO(path, "xb"))
        self._disk = disk

    def write(self, data: Any) -> int:
        """All of it: the writer gives a safetensors file at once, and then asks for it on disk."""
        disk, name = self._disk, self._disk.name
        # A safetensors file: 8 bytes with the length of its header, the header, the values.
        disk.files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        offsets = json.loads(header.pop("__metadata__")[OFFSETS])
        for tensor, entry in header.items():
            if 0 not in entry["shape"]:  # a process may have nothing of a short tensor
                disk.parts[tensor] = [(name, offsets[tensor]["saved_offsets"])]
        size = super().write(data)
        self.flush()  # the writer syncs the file next, and knows of no buffer
        return size
