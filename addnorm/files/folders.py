"""A folder of weights on disk: found, verified and written, never half.

Nothing here knows a model. ``addnorm.files.tensors`` lists the tensors in its files, and
``addnorm.files.gpt`` knows what their names mean.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from torch import Tensor

from addnorm import disk, hub, reading
from addnorm.data.tokenizer.pair import TARGET
from addnorm.errors import Mendable

log = logging.getLogger(__name__)

CONFIG = "config.json"
CHECKSUMS = "addnorm_checksums.json"
SAFETENSORS = "model.safetensors"
# In the order of preference, which is that of transformers; an index names the parts of the file.
PICKLE = "pytorch_model.bin"
WEIGHTS = (SAFETENSORS, f"{SAFETENSORS}.index.json", PICKLE, f"{PICKLE}.index.json")
CARD = "addnorm_tokenizer.json"
TOKENIZERS = (
    *(CARD, "characters.json", "tokenizer.json", "vocab.json", "added_tokens.json"),
    "vocab.txt",
)
"""Of a tokenizer those files that have its ids, by each of which a folder is known to have one."""
CHAT = ("chat.json", "chat_template.jinja")
"""Marks between the turns of a conversation, which a tokenizer needs where it is used for those."""
OF_TOKENIZERS = (
    *TOKENIZERS,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    *CHAT,
)
"""All files of a tokenizer."""
GENERATION = "generation_config.json"
PREPROCESSOR = "preprocessor_config.json"
"""How a picture or a sound becomes what a model reads."""
OF_PAIRS = ("source.spm", "target.spm", "target_vocab.json")
"""Of a model that reads one language and writes another."""
OF_OUR_TOKENIZERS = (CARD, "characters.json", "tokenizer.json", "tokenizer_config.json")
WRITTEN = (
    *(CONFIG, CHECKSUMS, SAFETENSORS, GENERATION, PREPROCESSOR, *OF_OUR_TOKENIZERS, "chat.json"),
    *(*OF_PAIRS, "vocab.json", *(f"{TARGET}{name}" for name in OF_OUR_TOKENIZERS)),
)
"""What saves of models write, of whatever kind, so that a run can be cleared of it: one that stays
would be taken for the next model's."""
ADVICE = (
    f"Without a network, download {CONFIG} and {SAFETENSORS} elsewhere and use the folder that "
    "holds them"
)


@final
class WeightsError(Mendable):
    """A folder that cannot be loaded or written as asked; the message says what and where."""


# --- finding --------------------------------------------------------------------------------------


def find(path_or_id: str | os.PathLike[str]) -> Path:
    """A folder here, or else that of a model of the Hugging Face hub, downloaded or from its cache,
    with safetensors where there are some, else with pickles; a ``WeightsError`` if there is
    none."""
    folder = hub.local_folder(path_or_id, WeightsError)
    if folder is not None:
        return folder

    def download(*weights: str) -> Path:
        files = (CONFIG, GENERATION, PREPROCESSOR, CHECKSUMS, *OF_TOKENIZERS, *OF_PAIRS, *weights)
        return hub.download(str(path_or_id), files, WeightsError, ADVICE)

    folder = download("model*.safetensors", f"{SAFETENSORS}.index.json")
    if any((folder / name).exists() for name in WEIGHTS[:2]):
        return folder
    return download("pytorch_model*.bin", f"{PICKLE}.index.json")


def read_json(file: Path) -> dict[str, Any]:
    """One of the folder's JSON files, which must hold an object."""
    if not os.path.lexists(file):
        raise WeightsError(f"{file.parent} has no {file.name}; it holds {content(file.parent)}")
    return reading.json_object(file, WeightsError)


def content(folder: Path) -> str:
    """The names of what is in a folder, for a message."""
    with reading.system_errors(folder, WeightsError):
        return ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"


def identity(folder: Path) -> str:
    """A short hash of the weights in a folder, whatever they are called there; a ``WeightsError``
    if there are none. The files are read whole for it."""
    first = next((name for name in WEIGHTS if (folder / name).exists()), None)
    if first is None:
        raise WeightsError(f"{folder} has no weights; it holds {content(folder)}")
    parts = sorted(folder.glob("*.safetensors" if first.startswith(SAFETENSORS) else "*.bin"))
    files = [folder / first] if first in (SAFETENSORS, PICKLE) else parts
    with reading.system_errors(folder, WeightsError):
        digests = " ".join(disk.digest(file) for file in files)
    return hashlib.sha256(digests.encode()).hexdigest()[:16]


def finite(file: str, name: str, t: Tensor) -> Tensor:
    """The tensor itself, if every value in it is finite; ``file`` and ``name`` say in the error
    where it is from."""
    wrong = ~torch.isfinite(t)
    if wrong.any():
        raise WeightsError(
            f"{file}: {int(wrong.sum())} of {t.numel()} values of {name} are not finite, the first "
            f"at {wrong.nonzero()[0].tolist()}"
        )
    return t


# --- verifying and writing ------------------------------------------------------------------------


def verify(folder: Path) -> frozenset[str] | None:
    """The names of the files that are as they were written; None: the folder has no checksums, as
    one from elsewhere. Raises where a file is not the one that was written."""
    seal = folder / CHECKSUMS
    if not os.path.lexists(seal):
        return None
    sums = read_json(seal)
    if not sums:
        raise WeightsError(f"{seal} names no file: it is damaged. Get it again, or delete it")
    for name in sums:
        want = reading.field(sums, name, dict, seal, WeightsError)
        where = f"{seal}: {name}"
        size = reading.field(want, "bytes", int, where, WeightsError)
        sha = reading.field(want, "sha256", str, where, WeightsError)
        if Path(name).name != name:
            raise WeightsError(f"{seal} names {name!r}, a file outside of the folder")
        _compare(folder / name, size, sha)
    return frozenset(sums)


def seal(folder: Path, files: Sequence[str]) -> tuple[bool, list[str]]:
    """(whether checksums vouch for all that is read, the names of what they leave out), where the
    weights are in ``files``. A ``WeightsError`` where a file is not the one that was written; what
    is left out of config.json and weights is warned of."""
    intact = verify(folder)
    if intact is None:
        return False, []
    names = (*OF_TOKENIZERS, *OF_PAIRS, GENERATION, PREPROCESSOR)
    beside = [n for n in names if os.path.lexists(folder / n)]
    unsealed = [name for name in (CONFIG, *files, *beside) if name not in intact]
    if not intact.issuperset((CONFIG, *files)):  # a tokenizer may be put there later
        log.warning(
            "%s says nothing about %s, which may not be as it was written: get the folder again, "
            "or delete that file if you mean it",
            folder / CHECKSUMS,
            " and ".join(unsealed),
        )
    return not unsealed, unsealed


def _compare(file: Path, size: int, sha: str) -> None:
    """Raise unless a file has the size and sha256 that CHECKSUMS names."""
    with reading.system_errors(file, WeightsError):
        if not file.exists():
            raise WeightsError(f"{file} is missing, and {CHECKSUMS} says that it was written")
        wrong = disk.wrong_size(file, size)
        if wrong is not None:
            raise WeightsError(f"{file} {wrong}")
        if disk.digest(file) == sha:
            return
    raise WeightsError(
        f"{file} is not what was written: its sha256 differs from the one in {CHECKSUMS}. A bit "
        "has flipped, or the file was changed. Get it again; if you changed it yourself and mean "
        f"it, delete {CHECKSUMS}"
    )


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """The sizes and sha256 of these files, beside them."""
    files = {name: folder / name for name in sorted(names)}
    sums = {n: {"bytes": f.stat().st_size, "sha256": disk.digest(f)} for n, f in files.items()}
    write_json(folder / CHECKSUMS, sums)


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write a value as JSON, indented, and not as ASCII."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder hold what ``fill`` writes into an empty one, and the checksums of it.

    A new folder appears whole or not at all. In one that exists, each file is replaced whole, the
    checksums last: a crash in between leaves a folder that ``verify`` refuses.
    """
    if folder.exists() and not folder.is_dir():
        raise WeightsError(f"{folder} is a file: give a folder")
    try:
        with disk.scratch(folder) as work:
            fill(work)
            write_checksums(work, [file.name for file in work.iterdir()])
            names = {file.name for file in work.iterdir()}
            if SAFETENSORS in names:  # safetensors lets nobody but the owner read it
                shutil.copymode(work / CHECKSUMS, work / SAFETENSORS)
            other = [n for n in TOKENIZERS if n not in names and (folder / n).exists()]
            if CARD in names and other:
                raise WeightsError(
                    f"{folder} holds another tokenizer's {other[0]}: delete it first"
                )
            if not folder.exists():
                disk.show(work, folder)
                return
            files = sorted(work.iterdir(), key=lambda file: file.name == CHECKSUMS)
            disk.publish(*files, to=folder)
    except SafetensorError as error:  # the disk is full, say, in safetensors' words
        raise WeightsError(f"{folder} could not be written: {error}") from error
