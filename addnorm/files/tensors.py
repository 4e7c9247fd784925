"""The tensors in a folder's files, listed and not read yet: safetensors and torch's pickles."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from addnorm import reading
from addnorm.files.folders import (
    CONFIG,
    SAFETENSORS,
    WEIGHTS,
    WeightsError,
    content,
    finite,
    read_json,
    seal,
)
from addnorm.words import first_line


@final
@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file, not read yet."""

    file: str
    dtype: str  # as torch calls it: "float32"
    shape: tuple[int, ...]
    read: Callable[[], Tensor]  # may share memory with the file: copy what is to stay


def entries(folder: Path) -> dict[str, StoredTensor]:
    """Every stored tensor by its name in the file. Headers are read here, the values are not, but
    for those of pickles. A ``WeightsError`` where there are no weights, or an index and its files
    do not say the same."""
    for name in WEIGHTS:
        if os.path.lexists(folder / name):
            break
    else:
        raise WeightsError(
            f"{folder} has no weights ({' or '.join(WEIGHTS)}); it holds {content(folder)}"
        )
    if not name.endswith(".index.json"):
        return _open(folder / name)
    places = read_json(folder / name).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise WeightsError(f"{folder / name} has no weight_map from tensors to files")
    shards = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:
            raise WeightsError(f"{folder / name} names {shard!r}, a file outside of the folder")
        if not (folder / shard).exists():
            first = next(tensor for tensor, file in places.items() if file == shard)
            raise WeightsError(
                f"{folder / name} says that {first} is in {shard}, which is missing: download it"
            )
        shards[shard] = _open(folder / shard)
    for tensor, shard in places.items():
        if tensor not in shards[shard]:
            raise WeightsError(
                f"{folder / name} says that {tensor} is in {shard}, which does not hold it: the "
                "index belongs to other files"
            )
    by_name: dict[str, StoredTensor] = {}
    for shard, held_by in shards.items():
        for tensor, entry in held_by.items():
            if places.get(tensor) != shard:
                raise WeightsError(f"{folder / shard} holds {tensor}, which {name} does not say")
            by_name[tensor] = entry
    return by_name


def state_of(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype | None
) -> dict[str, Tensor]:
    """The values of a model whose tensors are stored by their own names, as tensors of their own:
    all of them, checked, and nothing besides. ``shapes``: of the model's tensors, by name.
    ``dtype`` None keeps what is stored. A ``WeightsError`` says what is wrong."""
    tensors = entries(folder)
    for name in sorted(shapes.keys() | tensors.keys()):
        want, shape = shapes.get(name), tensors[name].shape if name in tensors else None
        if want != shape or tensors[name].dtype not in SAFETENSORS_DTYPES.values():
            raise WeightsError(
                f"{folder}: the weights and {CONFIG} belong to different models: {name} is "
                f"{shape and tensors[name].dtype} {shape}, expected {want}"
            )
    seal(folder, sorted({entry.file for entry in tensors.values()}))
    state = {}
    for name, entry in tensors.items():
        t = finite(entry.file, name, entry.read())
        if dtype is not None:
            t = finite(entry.file, f"{name} as {dtype}", t.to(dtype))
        state[name] = t.clone()
    return state


def _open(file: Path) -> dict[str, StoredTensor]:
    """The tensors in one file of either format. A pointer of Git LFS, which is what a clone without
    it has instead of the file, is refused by that name."""
    with reading.system_errors(file, WeightsError), file.open("rb") as opened:
        start = opened.read(len(reading.POINTER)).decode(errors="replace")
    reading.check_no_pointer(file, start, WeightsError)
    return _open_safetensors(file) if file.suffix == ".safetensors" else _open_pickle(file)


def _open_safetensors(file: Path) -> dict[str, StoredTensor]:
    """The tensors in a safetensors file, which is 8 bytes with the header's length, the header in
    JSON, and the values; one that is cut off is refused before safetensors maps it."""
    with reading.system_errors(file, WeightsError), file.open("rb") as opened:
        size = file.stat().st_size
        length = int.from_bytes(opened.read(8), "little")
        if length < 2 or length > 100_000_000:  # the format's own limit
            raise WeightsError(
                f"{file} does not begin as a safetensors file does: it is damaged or something else"
            )
        raw = opened.read(length)
    ends = [] if len(raw) < length else _ends(file, raw)
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise WeightsError(
            f"{file} is truncated: {size:,} bytes, and {expected:,} or more were written. Get the "
            "file again"
        )
    by_name = {}
    try:
        tensors = safe_open(file, framework="pt")
        for name in tensors.keys():  # noqa: SIM118 (not a dictionary)
            part, read = tensors.get_slice(name), partial(tensors.get_tensor, name)
            dtype = SAFETENSORS_DTYPES.get(part.get_dtype(), part.get_dtype())
            by_name[name] = StoredTensor(file.name, dtype, tuple(part.get_shape()), read)
    except SafetensorError as error:
        raise _damaged_header(file, error) from None
    return by_name


def _ends(file: Path, header: bytes) -> list[int]:
    """Where the values of each tensor end, in bytes behind the header, by its own account; a
    ``WeightsError`` where the ``header`` of the file is damaged."""
    try:
        tensors = reading.json_value(header.decode(), "it")
    except ValueError as error:
        raise _damaged_header(file, error) from None
    if not isinstance(tensors, dict):
        raise _damaged_header(file, "it holds no object")
    ends = []
    for name, info in tensors.items():
        if name == "__metadata__":
            continue
        place = info.get("data_offsets") if isinstance(info, dict) else None
        if not isinstance(place, list) or [type(offset) for offset in place] != [int, int]:
            raise _damaged_header(file, f"{name} has no place")
        ends.append(place[1])
    return ends


def _damaged_header(file: Path, why: object) -> WeightsError:
    """The error for a header that cannot be used; ``why`` stands in it in parentheses."""
    return WeightsError(f"{file} has a damaged header ({why}): get the file again")


SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""What safetensors calls the dtypes that hold weights; any other keeps its name, to be refused."""


def _open_pickle(file: Path) -> dict[str, StoredTensor]:
    """The tensors in a .bin of torch.save, whose values are read here. By ``weights_only`` that is
    tensors and plain containers, never code; anything else is a ``WeightsError``."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # what reading garbage raises has no common base
        raise WeightsError(_why_refused(file, error)) from None
    wrong = {} if isinstance(content, dict) else {"the whole": content}
    wrong = wrong or {k: v for k, v in content.items() if not _plain(v)}
    if wrong:
        name, value = next(iter(wrong.items()))
        raise WeightsError(
            f"{file}: {name} is a {type(value).__name__}; expected a dictionary of tensors alone, "
            "none of them sparse"
        )
    return {
        str(name): StoredTensor(
            file.name, str(t.dtype).removeprefix("torch."), tuple(t.shape), t.contiguous
        )
        for name, t in content.items()
    }


def _why_refused(file: Path, error: Exception) -> str:
    """The message for what torch.load raised, in our words: torch's own advise to read the file
    without its guard."""
    match = re.search(r"GLOBAL (\S+)", str(error))
    if match is not None:
        return (
            f"{file} was refused: it holds more than tensors ({match[1]}), which may run any code "
            f"when read. Ask for {SAFETENSORS} instead"
        )
    first = "" if isinstance(error, UnpicklingError) else first_line(str(error))
    return (
        f"{file} is truncated or damaged, or was not written by torch.save "
        f"({type(error).__name__}{first and ': '}{first}): get it again, or ask for {SAFETENSORS}"
    )


def _plain(value: object) -> bool:
    """Whether a value is a tensor that has its entries in memory, one after the other."""
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
