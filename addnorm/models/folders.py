"""A folder of weights on disk: found, listed, verified and written, never half.

Nothing here knows a model. ``addnorm.models.weights`` knows what the names mean.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from addnorm.errors import Mendable

CONFIG = "config.json"
CHECKSUMS = "addnorm_checksums.json"
SAFETENSORS = "model.safetensors"
# In the order of preference, which is that of transformers; an index names the parts of the file.
PICKLE = "pytorch_model.bin"
WEIGHTS = (SAFETENSORS, f"{SAFETENSORS}.index.json", PICKLE, f"{PICKLE}.index.json")
CARD = "addnorm_tokenizer.json"
TOKENIZERS = (CARD, "characters.json", "tokenizer.json", "vocab.json", "added_tokens.json")
BESIDE_A_TOKENIZER = ("merges.txt", "tokenizer_config.json", "special_tokens_map.json")


class WeightsError(Mendable):
    """A folder that cannot be loaded or written as asked; the message says what and where."""


@dataclass(frozen=True)
class Entry:
    """One tensor in a file, not read yet."""

    file: str
    dtype: str  # as torch calls it: "float32"
    shape: tuple[int, ...]
    read: Callable[[], Tensor]  # may share memory with the file: copy what is to stay


# --- finding --------------------------------------------------------------------------------------


def find(path_or_id: str | os.PathLike[str]) -> Path:
    """A folder here, or else a model of the Hugging Face hub, downloaded or from its cache."""
    try:
        path = Path(path_or_id).expanduser()
        if path.is_dir():
            return path
    except (RuntimeError, OSError) as error:  # no such user; a name too long, a folder of others
        raise WeightsError(f"{path_or_id} cannot be looked for: {error}") from None
    if path.exists():
        raise WeightsError(f"{path} is a file: give the folder that holds it and a {CONFIG}")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(path_or_id)):
        raise WeightsError(f"there is no folder {path}")
    from huggingface_hub import snapshot_download

    def download(*weights: str) -> Path:
        wanted = [CONFIG, CHECKSUMS, *TOKENIZERS, *BESIDE_A_TOKENIZER, *weights]
        return Path(snapshot_download(str(path_or_id), allow_patterns=wanted))

    # What can go wrong between here and a server has no common base class.
    try:
        here = download("model*.safetensors", f"{SAFETENSORS}.index.json")
        if not any((here / name).exists() for name in WEIGHTS[:2]):
            here = download("pytorch_model*.bin", f"{PICKLE}.index.json")
    except Exception as error:
        raise WeightsError(
            f"there is no folder {str(path_or_id)!r} here, and as a model of the Hugging Face hub "
            f"it could not be had ({type(error).__name__}: {error}). Without a network, download "
            f"{CONFIG} and {SAFETENSORS} elsewhere and give the folder that holds them"
        ) from error
    return here


def read_json(file: Path) -> dict[str, Any]:
    """One of the folder's JSON files, which must hold an object."""
    if not file.exists():
        held = ", ".join(sorted(p.name for p in file.parent.iterdir())) or "nothing"
        raise WeightsError(f"{file.parent} has no {file.name}; it holds {held}")
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{file} is not JSON, perhaps cut off: {error}") from None
    if not isinstance(told, dict):
        raise WeightsError(f"{file} holds a JSON {type(told).__name__}, expected an object")
    return told


# --- listing --------------------------------------------------------------------------------------


def entries(folder: Path) -> dict[str, Entry]:
    """Every stored tensor by its name in the file. Headers are read here, the values are not."""
    for name in WEIGHTS:
        if (folder / name).exists():
            break
    else:
        held = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise WeightsError(f"{folder} has no weights ({' or '.join(WEIGHTS)}); it holds {held}")
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
    found: dict[str, Entry] = {}
    for shard, held_by in shards.items():
        for tensor, entry in held_by.items():
            if places.get(tensor) != shard:
                raise WeightsError(f"{folder / shard} holds {tensor}, which {name} does not say")
            found[tensor] = entry
    return found


def _open(file: Path) -> dict[str, Entry]:
    if file.stat().st_size < 1024 and file.read_bytes().startswith(b"version https://git-lfs"):
        raise WeightsError(f"{file} is a pointer of Git LFS, not the weights: run `git lfs pull`")
    return _open_safetensors(file) if file.suffix == ".safetensors" else _open_pickle(file)


def _open_safetensors(file: Path) -> dict[str, Entry]:
    """8 bytes: the header's length; the header, JSON; the values."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length < 2 or length > 100_000_000:  # the format's own limit
            raise WeightsError(
                f"{file} does not begin as a safetensors file does: it is damaged or something else"
            )
        raw = opened.read(length)
    try:
        told = {} if len(raw) < length else json.loads(raw)
        held = [info["data_offsets"][1] for name, info in told.items() if name != "__metadata__"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(f"{file} has a damaged header ({error}): get the file again") from None
    expected = 8 + length + max(held, default=0)
    if size < expected:
        raise WeightsError(
            f"{file} is truncated: {size:,} bytes, and {expected:,} or more were written. Get the "
            "file again"
        )
    found = {}
    try:
        tensors = safe_open(file, framework="pt")
        for name in tensors.keys():  # noqa: SIM118 (not a dictionary)
            part, read = tensors.get_slice(name), partial(tensors.get_tensor, name)
            dtype = DTYPES.get(part.get_dtype(), part.get_dtype())
            found[name] = Entry(file.name, dtype, tuple(part.get_shape()), read)
    except SafetensorError as error:
        raise WeightsError(f"{file} has a damaged header ({error}): get the file again") from None
    return found


DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""What safetensors calls the dtypes that hold weights; any other keeps its name, to be refused."""


def _open_pickle(file: Path) -> dict[str, Entry]:
    """A .bin of torch.save. ``weights_only``: tensors and plain containers, never code."""
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{file} was refused: it is damaged, or holds more than tensors, which may run any "
            f"code when read. Ask for {SAFETENSORS} instead. ({str(error).splitlines()[0]})"
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise WeightsError(
            f"{file} is truncated or damaged ({str(error).splitlines()[0]}): get the file again"
        ) from None
    wrong = {} if isinstance(held, dict) else {"the whole": held}
    wrong = wrong or {k: v for k, v in held.items() if not isinstance(v, Tensor)}
    if wrong:
        name, value = next(iter(wrong.items()))
        raise WeightsError(
            f"{file}: {name} is a {type(value).__name__}; expected a dictionary of tensors alone"
        )
    return {
        str(name): Entry(
            file.name, str(t.dtype).removeprefix("torch."), tuple(t.shape), t.contiguous
        )
        for name, t in held.items()
    }


def finite(file: str, name: str, t: Tensor) -> Tensor:
    """The tensor itself, if every value in it is a number."""
    wrong = ~torch.isfinite(t)
    if wrong.any():
        raise WeightsError(
            f"{file}: {int(wrong.sum())} of {t.numel()} values of {name} are not finite, the first "
            f"at {wrong.nonzero()[0].tolist()}"
        )
    return t


# --- verifying and writing ------------------------------------------------------------------------


def verify(folder: Path) -> bool:
    """Whether the folder has checksums; raises where a file is not the one that was written."""
    if not (folder / CHECKSUMS).exists():
        return False
    for name, want in read_json(folder / CHECKSUMS).items():
        file = folder / Path(name).name
        if not file.exists():
            raise WeightsError(f"{file} is missing, and {CHECKSUMS} says that it was written")
        if file.stat().st_size != want["bytes"]:
            raise WeightsError(
                f"{file} is {'truncated' if file.stat().st_size < want['bytes'] else 'too long'}: "
                f"{file.stat().st_size:,} bytes, and {want['bytes']:,} were written"
            )
        if digest(file) != want["sha256"]:
            raise WeightsError(
                f"{file} is not what was written: its sha256 differs from the one in {CHECKSUMS}. "
                "A bit has flipped, or the file was changed. Get it again; if you changed it "
                f"yourself and mean it, delete {CHECKSUMS}"
            )
    return True


def digest(file: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """The sizes and sha256 of these files, beside them."""
    files = {name: folder / name for name in sorted(names)}
    told = {n: {"bytes": f.stat().st_size, "sha256": digest(f)} for n, f in files.items()}
    write_json(folder / CHECKSUMS, told)


def write_json(file: Path, told: Mapping[str, Any]) -> None:
    """Readable JSON."""
    file.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder hold what ``fill`` writes into an empty one, and the checksums of it.

    A new folder appears whole or not at all. In one that exists, each file is replaced whole, the
    checksums last: a fall in between leaves a folder that ``verify`` refuses.
    """
    if folder.exists() and not folder.is_dir():
        raise WeightsError(f"{folder} is a file: give a folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"  # renamed within one disk
    work.mkdir()
    try:
        fill(work)
        write_checksums(work, [file.name for file in work.iterdir()])
        written = sorted(work.iterdir(), key=lambda file: file.name == CHECKSUMS)
        for path in (*written, work):
            sync(path)
        names = {file.name for file in written}
        if SAFETENSORS in names:  # which safetensors writes for one's own eyes
            shutil.copymode(work / CHECKSUMS, work / SAFETENSORS)
        other = [n for n in TOKENIZERS if n not in names and (folder / n).exists()]
        if CARD in names and other:
            raise WeightsError(f"{folder} holds another tokenizer's {other[0]}: delete it first")
        if not folder.exists():
            work.rename(folder)
            sync(folder.parent)
            return
        for file in written:
            file.replace(folder / file.name)
        sync(folder)
    except SafetensorError as error:  # the disk is full, say, in safetensors' words
        raise WeightsError(f"{folder} could not be written: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def sync(path: Path) -> None:
    """Down to the disk: a rename must not overtake what it renames."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot
    opened = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
