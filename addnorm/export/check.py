"""What all formats share: the comparison of logits and of tokenizers, and which paths may be
written to. Until it is compared, a file stands in a folder of ``disk.scratch``.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable
from addnorm.files import folders
from addnorm.models.gpt import GPT
from addnorm.words import error_in_a_line

EXPORT_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
"""Of weights in files."""

TEXTS = (
    "The quick brown fox, 1234 of them, jumped  over\n\n\ttwo lazy dogs; didn't they?",
    "naïve café, Ünïcode, 中文字符, かな, 🙂🙃 and \u00a0 spaces \u2003 of all kinds",
    "def f(x):\n    return x**2  # a comment\r\n",
)
"""By which tokenizers are compared."""

LONGEST = 2048
"""Tokens in the longest comparison of a model without a table of positions, which has no end."""

Tell = Callable[[str], None]
"""Is called with what is being done, where that may take a while."""


@final
class ExportError(Mendable):
    """What was asked cannot be written; the message says why, and nothing was written."""


@final
class CheckFailed(RuntimeError):
    """What was written is not the model: it was thrown away."""


@final
@dataclass(frozen=True)
class LogitsCheck:
    """Who computed logits from what was written, and how far they are from the model's.

    ``difference`` is the largest, relative to the largest logit if that is above 1.
    """

    by: str
    inputs: str
    difference: float
    tolerance: float

    def __str__(self) -> str:
        return (
            f"{self.by}, {self.inputs}: logits differ by {self.difference:.1e} "
            f"(allowed {self.tolerance:.0e})"
        )


@final
@dataclass(frozen=True)
class Written:
    """One export: the files and their sizes, and what is known of them."""

    path: Path
    what: str  # as "a folder for transformers", for the line that says what was written
    files: dict[str, int]  # name -> bytes
    check: LogitsCheck | None  # None: nobody could
    remarks: tuple[str, ...] = ()  # what else a user has to know, a line each


# --- comparing ------------------------------------------------------------------------------------


@final
class Comparison:
    """Collects the largest difference over several inputs; raises ``CheckFailed`` at the first that
    is more than ``tolerance``.

    ``by`` is who computes the other logits, for messages. NaN on either side is a difference.
    """

    def __init__(self, by: str, tolerance: float) -> None:
        self.by, self.tolerance, self.difference = by, tolerance, 0.0
        self.inputs: list[str] = []

    def add_all(self, ours: GPT, theirs: Callable[[Tensor], Tensor], tell: Tell) -> None:
        """Compare at all ``shapes``; ``theirs`` are somebody else's logits as a function of ids,
        ``ours`` is the model that they should be of, as ``measured_copy`` gives it."""
        for batch, length in shapes(ours):
            name = f"{batch} x {length}"
            tell(f"checking with {self.by}: {name}")
            ids = draw(ours, batch, length)
            self.add(name, theirs(ids), logits(ours, ids))

    def add(self, name: str, theirs: Tensor, ours: Tensor) -> None:
        """Compare the logits for one input; ``name`` is what messages call it, such as "3 x 7".
        ``CheckFailed`` if they differ by more than ``tolerance``."""
        if theirs.shape != ours.shape:
            raise CheckFailed(
                f"{self.by}, {name}: logits of shape {tuple(theirs.shape)} instead of "
                f"{tuple(ours.shape)}"
            )
        difference = apart(theirs, ours)
        if not difference <= self.tolerance:
            raise CheckFailed(
                f"{self.by}, {name}: logits differ by {difference:.1e} "
                f"(allowed {self.tolerance:.0e})"
            )
        self.inputs.append(name)
        self.difference = max(self.difference, difference)

    def add_texts(self, ours: Tokenizer, theirs: Callable[[str], list[int]]) -> None:
        """Compare the ids that both tokenizers give for ``TEXTS``; ``theirs`` is somebody else's,
        text -> ids. ``CheckFailed`` at the first text with others."""
        for text in TEXTS:
            if theirs(text) != ours.encode(text):
                raise CheckFailed(f"{self.by}: the tokenizer splits {text!r} differently")
        self.inputs.append(f"{len(TEXTS)} texts")

    def result(self) -> LogitsCheck:
        """The result of the comparison."""
        return LogitsCheck(self.by, ", ".join(self.inputs), self.difference, self.tolerance)


def apart(theirs: Tensor, ours: Tensor) -> float:
    """The largest difference, relative to the largest of ``ours`` where that is above 1."""
    scale = max(1.0, ours.abs().max().item())
    return (theirs.double() - ours.double()).abs().max().item() / scale


def shapes(model: GPT) -> list[tuple[int, int]]:
    """(B, T) to compare at: one token, a few, and every position that the model has a code for."""
    c = model.config
    full = c.context_length if c.position == "learned" else min(c.context_length, LONGEST)
    return list(dict.fromkeys([(1, 1), (3, 1), (1, min(7, full)), (3, min(7, full)), (1, full)]))


def draw(model: GPT, batch: int, length: int) -> Tensor:
    """Ids (B, T) from the whole vocabulary, its two ends among them where there is room; the same
    for the same model and shape."""
    size = model.config.vocab_size
    ids = torch.randint(size, (batch, length), generator=torch.Generator().manual_seed(length))
    ends = torch.tensor([size - 1, 0])[: ids.numel()]
    ids.view(-1)[: len(ends)] = ends
    return ids


def logits(model: GPT, ids: Tensor, valid: Tensor | None = None) -> Tensor:
    """The model's own, which everything is compared with."""
    with torch.no_grad():
        return model(ids, valid)


def measured_copy(model: GPT) -> GPT:
    """A copy of the model as it is compared: in float32, on the CPU, not training, its tables
    without the padding of the vocabulary, which is not exported. An ``ExportError`` where it holds
    NaN or infinities."""
    plain = copy.deepcopy(model).cpu().float().eval()
    size = plain.config.vocab_size
    with torch.no_grad():
        plain.tokens.weight = nn.Parameter(plain.tokens.weight[:size].clone())
        if plain.head is not None:
            plain.head.weight = nn.Parameter(plain.head.weight[:size].clone())
    plain.config = dataclasses.replace(plain.config, vocab_multiple=1)
    broken = [name for name, p in plain.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        raise ExportError(f"{broken[0]} of the model holds values that are not finite")
    return plain


def reason(error: BaseException) -> str:
    """An error in one line for a message: that of the error from which all others were raised."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error_in_a_line(error)


# --- writing --------------------------------------------------------------------------------------


def file_path(path: Path, suffix: str, begins: bytes) -> Path:
    """The path of a file to write, refused where it cannot be one, and where a file of another kind
    would be lost: one that does not begin with the bytes ``begins``, as all of this kind do.
    ``suffix``, as ".onnx", is only for messages: the path stays what it is, but for a ~."""
    path = path.expanduser()
    if path.is_dir():
        raise ExportError(
            f"{path} is a folder: give the file to write, such as {path / 'model'}{suffix}"
        )
    if path.exists():
        with path.open("rb") as file:
            head = file.read(len(begins))
        if head not in (b"", begins):
            other = path.with_suffix(suffix)
            name = "another name" if other == path else f"another name, such as {other},"
            raise ExportError(
                f"{path} exists and is not a {suffix} file: it was left as it is. Give "
                f"{name} or delete it first"
            )
    return path


def leave_alone(folder: Path, files: Iterable[Path]) -> None:
    """Refuse to replace what is in the folder under the names of these files, if it was not put
    there by addnorm, whose checksums name what was."""
    try:
        ours = {folders.CHECKSUMS, *folders.read_json(folder / folders.CHECKSUMS)}
    except folders.WeightsError:  # there are none, or they are somebody else's
        ours = set()
    foreign = sorted(f.name for f in files if f.name not in ours and (folder / f.name).exists())
    if foreign:
        raise ExportError(
            f"{folder} holds {', '.join(foreign)} that addnorm did not write: nothing was changed. "
            "Give another folder, or delete them first"
        )


def needs(package: str, what: str) -> Any:
    """An optional package, imported, or an ``ExportError`` of one line that names the extra;
    ``what`` needs it, as a user calls that."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ExportError(
            f"{what} needs {package} ({error}): pip install 'addnorm[export]'"
        ) from None


def sizes(*files: Path) -> dict[str, int]:
    """The size of each file in bytes, by its name."""
    return {file.name: file.stat().st_size for file in files}


def silent(_: str) -> None:
    """A ``Tell`` for nobody."""


def human(size: float) -> str:
    """A number of bytes for people."""
    power = min(int(math.log(max(size, 1), 1000)), 4)
    return f"{size:.0f} bytes" if not power else f"{size / 1000**power:.1f} {' kMGT'[power]}B"
