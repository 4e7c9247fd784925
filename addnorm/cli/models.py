"""What a command's MODEL may be: a folder, a run's folder, a model of the Hugging Face hub."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, final

from addnorm.cli.refusal import Refusal

if TYPE_CHECKING:
    from addnorm.data.tokenizer import Tokenizer
    from addnorm.generation.decode import LanguageModel
    from addnorm.models.gpt import GPT
    from addnorm.pretrained import Loaded, ModelKind


@final
@dataclass(frozen=True)
class Place:
    """Where a model computes, and with which data type."""

    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Data type of weights and activations; bfloat16 halves memory, and may be faster."""
    device: str = "auto"
    """Where to compute, such as cpu, cuda, cuda:1 or mps; auto: an accelerator if there is one."""


CPU = Place(device="cpu")


def open_model(target: str, place: Place = CPU) -> "Loaded":
    """A model of any kind, in evaluation mode, and what was kept with it.

    ``target``: a folder with config.json and weights, the folder of a run, or an id of the hub.
    ``place``: where it is to compute. A ``Mendable`` says what is wrong with either.
    """
    import torch

    from addnorm.pretrained import load

    loaded = load(target, dtype=getattr(torch, place.dtype))
    loaded.model.to(_device(place.device))
    return loaded


def kind_of_model(loaded: "Loaded") -> "ModelKind":
    """What is known of a model's kind."""
    from addnorm.pretrained import kind_of

    return kind_of(loaded.model)


def as_writer(loaded: "Loaded", target: str) -> "tuple[LanguageModel, Tokenizer]":
    """A language model of any kind and its tokenizer; a ``Refusal`` if it is none, or if there is
    no tokenizer beside it. ``target``: what the user called it, for messages."""
    from addnorm.data.tokenizer import Tokenizer

    if not kind_of_model(loaded).writes:
        raise _no_writer(loaded, target)
    if loaded.tokenizer is None:
        raise Refusal(
            f"{target} has no tokenizer: put its tokenizer.json there, or GPT-2's vocab.json and "
            "merges.txt, or save the model with tokenizer=..."
        )
    assert isinstance(loaded.tokenizer, Tokenizer)
    return cast("LanguageModel", loaded.model), loaded.tokenizer


def as_gpt(loaded: "Loaded", target: str) -> "tuple[GPT, Tokenizer | None]":
    """A ``GPT`` and its tokenizer, if there is one; a ``Refusal`` of any other kind. ``target``:
    what the user called it, for messages."""
    from addnorm.data.tokenizer import Tokenizer
    from addnorm.models.gpt import GPT

    kind = kind_of_model(loaded)
    if not kind.writes:
        raise _no_writer(loaded, target)
    if not isinstance(loaded.model, GPT):
        raise Refusal(
            f"{target} is {kind.noun}, and what this command writes is read by programs for "
            "Transformers only: it stays in addnorm's own format, for addnorm.load"
        )
    assert loaded.tokenizer is None or isinstance(loaded.tokenizer, Tokenizer)
    return loaded.model, loaded.tokenizer


def _no_writer(loaded: "Loaded", target: str) -> Refusal:
    """What a command for language models says to any other, with the one that serves it."""
    kind = kind_of_model(loaded)
    way = f": use addnorm predict {target}" if kind.use is not None else ""
    return Refusal(f"{target} is {kind.noun}, and this command needs a language model{way}")


def _device(name: str) -> str:
    """The device that torch is to be given: ``name``, or for auto the accelerator, if there is one.
    A Refusal of a kind that is not here; whether there is a cuda:7, torch says."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return "cpu" if accelerator is None else accelerator.type
    kinds = ("cpu",) if accelerator is None else ("cpu", accelerator.type)
    if name.partition(":")[0] not in kinds:
        raise Refusal(f"there is no device {name!r} here, only {' and '.join(kinds)}")
    return name
