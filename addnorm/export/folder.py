"""A folder for transformers: ``AutoModelForCausalLM.from_pretrained(folder)`` loads it.

GPT-2's format needs nothing of ours. Every other design is written in addnorm's own, which
transformers knows after ``import addnorm.hf``.
"""

import copy
import os
from pathlib import Path

import torch

from addnorm import disk
from addnorm.data.tokenizer import Tokenizer
from addnorm.export.check import (
    CheckFailed,
    Comparison,
    ExportError,
    LogitsCheck,
    Tell,
    Written,
    leave_alone,
    logits,
    measured_copy,
    reason,
    silent,
    sizes,
)
from addnorm.files import folders
from addnorm.files import gpt as gpt_files
from addnorm.files.gpt import WeightsError
from addnorm.models.gpt import GPT

ALLOWED = 1e-5
"""Some 1e4 roundings of 6e-8 on the way of a logit, many of them in another order: 2e-6 was
measured at GPT-2's shape. There, gelu without its tanh gives 3e-4, eps 1e-6 for 1e-5 gives 3e-3."""


def to_hf(
    model: GPT,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    tokenizer: Tokenizer | None = None,
    dtype: torch.dtype | None = None,
    tell: Tell = silent,
) -> Written:
    """Write a folder, load it with transformers, compare, and only then name it ``path``.

    ``format`` is that of ``GPT.save_pretrained``: "gpt2", "addnorm", or None for GPT-2's where it
    can say what the model is. ``dtype`` None stores the weights as they are.
    """
    path = Path(path).expanduser()
    model_as_stored = model if dtype is None else copy.deepcopy(model).to(dtype)
    ours = measured_copy(model_as_stored)
    with disk.scratch(path) as work:
        new = work / "folder"
        tell("writing the weights")
        try:
            gpt_files.save(model_as_stored, new, format=format, tokenizer=tokenizer)
            kind = folders.read_json(new / folders.CONFIG)["model_type"]
            files = [file for file in sorted(new.iterdir()) if file.name != folders.CHECKSUMS]
            leave_alone(path, [*files, new / folders.CHECKSUMS])
            check, remarks = _compare(new, ours, tokenizer, tell)
            folders.write(path, lambda empty: _move(files, empty))
        except WeightsError as error:
            raise ExportError(str(error)) from None
    format_name = (
        "GPT-2's format" if kind == "gpt2" else "addnorm's own format: import addnorm.hf first"
    )
    names = [path / file.name for file in files]
    return Written(path, f"a folder for transformers, {format_name}", sizes(*names), check, remarks)


def _compare(
    new: Path, ours: GPT, tokenizer: Tokenizer | None, tell: Tell
) -> tuple[LogitsCheck, tuple[str, ...]]:
    """(check, remarks) of the folder ``new`` beside the model, as transformers reads it, or where
    that is not installed as we do. ``CheckFailed`` if it is not the model."""
    remarks: tuple[str, ...] = ()
    with_transformers = True
    try:
        from addnorm import hf

        by, theirs = hf.VERSION, hf.reader(new)
    except ImportError as error:
        with_transformers = False
        again = GPT.from_pretrained(new)
        by, theirs = "addnorm", lambda ids: logits(again, ids)
        remarks = (f"NOT CHECKED with transformers, only read back by addnorm itself: {error}",)
    except Exception as error:  # transformers raises whatever the failing part raises
        raise CheckFailed(f"transformers cannot load the folder: {reason(error)}") from error
    comparison = Comparison(by, ALLOWED)
    comparison.add_all(ours, theirs, tell)
    if tokenizer is not None and tokenizer.kind == "bpe" and with_transformers:
        comparison.add_texts(tokenizer, hf.encoder(new))  # transformers has no other kind
    return comparison.result(), remarks


def _move(files: list[Path], to: Path) -> None:
    """Move files into a folder, under their names."""
    for file in files:
        file.replace(to / file.name)
