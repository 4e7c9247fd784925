"""What a command's MODEL may be: a folder, a run's folder, a model of the Hugging Face hub."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from addnorm.cli import Refusal
from addnorm.errors import Mendable

if TYPE_CHECKING:
    from addnorm.data.tokenizer import Tokenizer
    from addnorm.models.gpt import GPT

RUN = "model"
"""Where a run keeps the model that it made."""


@dataclass(frozen=True)
class Place:
    """Where a model computes, and with which data type."""

    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Data type of weights and activations; bfloat16 halves memory, and may be faster."""
    device: str = "auto"
    """Where to compute, such as cpu, cuda, cuda:1 or mps; auto: an accelerator if there is one."""


CPU = Place(device="cpu")


def open_model(target: str, place: Place = CPU) -> "tuple[GPT, Tokenizer | None]":
    """The model, in evaluation mode, and its tokenizer if there is one beside it.

    ``target``: a folder with config.json and weights, the folder of a run, or an id of the hub.
    A ``Mendable`` says what is wrong with it.
    """
    import torch

    from addnorm.adapt import load
    from addnorm.data.tokenizer import Tokenizer
    from addnorm.files import folders
    from addnorm.models.gpt import GPT

    folder = folders.find(target)
    run = folder / RUN
    if not (folder / folders.CONFIG).exists() and run.is_dir():
        folder = run
    adapter = None
    if (folder / "base").is_dir() and (folder / "adapter").is_dir():
        folder, adapter = folder / "base", folder / "adapter"
    dtype = getattr(torch, place.dtype)
    model = GPT.from_pretrained(folder, dtype=dtype)
    if adapter is not None:
        load(model, adapter)
        model.to(dtype).eval()
    model = model.to(_device(place.device))
    if not any((folder / name).exists() for name in folders.TOKENIZERS):
        return model, None
    try:
        return model, Tokenizer.from_pretrained(folder)
    except Mendable as error:
        raise Refusal(f"the tokenizer beside the model cannot be read: {error}") from None


def with_tokenizer(target: str, place: Place) -> "tuple[GPT, Tokenizer]":
    """The model and its tokenizer; a ``Refusal`` if there is no tokenizer beside the model."""
    model, tokenizer = open_model(target, place)
    if tokenizer is None:
        raise Refusal(
            f"{target} has no tokenizer: put its tokenizer.json there, or GPT-2's vocab.json and "
            "merges.txt, or save the model with tokenizer=..."
        )
    return model, tokenizer


def _device(name: str) -> str:
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return "cpu" if found is None else found.type
    there = ("cpu",) if found is None else ("cpu", found.type)
    if name.partition(":")[0] not in there:
        raise Refusal(f"there is no device {name!r} here, only {' and '.join(there)}")
    return name
