"""Any model of ours from disk and to disk: ``addnorm.load`` and ``addnorm.save``.

What is in a folder, and who reads it, is for the register to say (``addnorm.files.register``). Here
is what lies around such folders: a run that keeps its model in one, and an adapter that was trained
beside a model. So this file stands right of both rooms, and by importing it every format of this
package is registered.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from addnorm.adapt import adapted
from addnorm.adapt import peft_files as adapters
from addnorm.data.chat import ChatTokenizer
from addnorm.data.tokenizer import Tokenizer
from addnorm.files import (
    bert,
    chat,
    classifier,
    decisions,
    folders,
    gpt,
    gpt_classifier,
    recurrent,
    register,
    seq2seq,
    sounds,
    speech,
    vision,
)
from addnorm.files.folders import CONFIG, WeightsError
from addnorm.files.register import Loaded, ModelKind, kind_of
from addnorm.models.gpt import GPT

__all__ = [
    "Loaded",
    "ModelKind",
    "chat_tokenizer",
    "holds_run_or_adapter",
    "is_ours",
    "kind_of",
    "load",
    "model_folder",
    "save",
]

RUN = "model"
"""Where a run keeps the model that it made."""
PUBLISHED = ("gpt2", "bert", "marian", "whisper", "vit", "deit")
"""What a config.json of others says as model_type."""
BASE, ADAPTER = "base", "adapter"
"""Where a model and its adapter are that cannot be one: a prefix, a prompt or a bottleneck."""

KINDS = (
    *(gpt.KIND, gpt_classifier.KIND, classifier.KIND, bert.KIND, seq2seq.KIND, recurrent.KIND),
    decisions.KIND,
    speech.KIND,
    sounds.KIND,
    vision.KIND,
)
for _kind in KINDS:
    register.register(_kind)


def load(
    path_or_id: str | os.PathLike[str], *, dtype: torch.dtype | None = torch.float32
) -> Loaded:
    """``Loaded(model, tokenizer, labels, card)``, the model in evaluation mode.

    From a folder that ``save`` or ``GPT.save_pretrained`` wrote, a folder in GPT-2's format, the
    folder of a run, with an adapter or without, or a model of the Hugging Face hub. ``dtype`` None
    keeps what is stored. What is damaged or not understood is a ``WeightsError``, which says where
    and what to do.
    """
    folder = model_folder(path_or_id)
    if not _has_adapter_beside(folder):
        return register.read(folder, dtype)
    loaded = register.read(folder / BASE, dtype)
    adapters.load(loaded.model, folder / ADAPTER)
    loaded.model.to(dtype).eval()
    return loaded


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    tokenizer: Tokenizer | None = None,
    labels: Sequence[str] | None = None,
) -> None:
    """Write a model for ``load``: whole, with checksums, and what belongs to it beside it.

    A GPT is written in GPT-2's format where that can say what it is, else in ours (to choose, use
    ``GPT.save_pretrained``), a classifier with its tokenizer and ``labels``, the names of its
    classes. Of a GPT with an adapter the adapter is in a sub-folder, and beside it the model with
    the updates in its weights, or, if the adapter is not an update, the model without it. A
    ``WeightsError`` where the folder holds a model of the other of these two forms, or what is of
    no kind that can be written.
    """
    path = Path(folder).expanduser()
    adapter = adapted(model)
    apart = adapter is not None and not adapter.low_rank()
    if path.is_dir() and (path / CONFIG if apart else path / BASE).exists():
        raise WeightsError(f"{path} holds another model: delete it, or choose another folder")
    if adapter is None:
        kind_of(model).write(model, path, tokenizer, labels)
        return
    if not isinstance(model, GPT):
        raise WeightsError(
            f"a {type(model).__name__} cannot be written with its adapter: merge it first "
            "(addnorm.adapt.merge), or write the adapter alone (addnorm.adapt.save)"
        )
    gpt.refuse_labels(labels)
    adapters.export(model, path, tokenizer=tokenizer)


def chat_tokenizer(
    path_or_id: str | os.PathLike[str], tokenizer: Tokenizer
) -> ChatTokenizer | None:
    """The tokenizer of what ``load`` reads there with the template of its conversations; None: it
    has none. One that cannot be used is a ``ChatError``."""
    folder = model_folder(path_or_id)
    return chat.read(folder / BASE if _has_adapter_beside(folder) else folder, tokenizer)


def holds_run_or_adapter(folder: Path) -> bool:
    """Whether a folder is not a model's own but a run's, or holds a model beside its adapter."""
    if (folder / CONFIG).exists():
        return False
    return (folder / RUN).is_dir() or _has_adapter_beside(folder)


def is_ours(model_type: object) -> bool:
    """Whether only addnorm writes this in a config.json, as it is no published format's."""
    return register.is_known(model_type) and model_type not in PUBLISHED


def model_folder(path_or_id: str | os.PathLike[str]) -> Path:
    """Where the model is that a folder or an id of the hub names: there, or in that of a run in
    it."""
    folder = folders.find(path_or_id)
    run = folder / RUN
    return run if not (folder / CONFIG).exists() and run.is_dir() else folder


def _has_adapter_beside(folder: Path) -> bool:
    return (folder / BASE).is_dir() and (folder / ADAPTER).is_dir()
