"""Folders in our own format: weights by the names of our parameters, settings by their fields."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from addnorm.errors import Mendable, value_in_short
from addnorm.files import folders
from addnorm.files.config_json import refuse_options
from addnorm.files.folders import WeightsError
from addnorm.files.tensors import state_of
from addnorm.version import __version__
from addnorm.words import a_few

Model = TypeVar("Model", bound=nn.Module)
Config = TypeVar("Config")


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model as they are written: without wrappers in their names, finite, on the
    CPU."""
    return {
        name.replace("_orig_mod.", ""): folders.finite("the model", name, t.detach())
        .cpu()
        .contiguous()
        for name, t in model.state_dict().items()
    }


def checked_tensors(model: nn.Module, empty: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """``model_tensors``; a ``WeightsError`` where they are not those of ``empty``, which makes the
    model of its config, as with an adapter in it."""
    tensors = model_tensors(model)
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in empty().state_dict().items()}
    odd = [
        n for n in tensors.keys() | shapes if n not in tensors or tensors[n].shape != shapes.get(n)
    ]
    if odd:
        raise WeightsError(
            f"{a_few(sorted(odd))} of the model are not what its config says: merge adapters and "
            "undo other changes before saving"
        )
    return tensors


def filled(empty: Callable[[], Model], folder: Path, dtype: torch.dtype | None) -> Model:
    """The model that ``empty`` makes, with the weights of a folder; ``dtype`` None keeps what is
    stored. A ``WeightsError`` where they are another's."""
    with torch.device("meta"):
        model = empty()
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    model.load_state_dict(state_of(folder, shapes, dtype), strict=True, assign=True)
    return model


def config_of(
    config: Callable[..., Config],
    card: Mapping[str, Any],
    file: Path,
    model_type: str,
    noun: str,
    **values: Any,
) -> Config:
    """The choices in a config.json, all of which must be there; a ``WeightsError`` names the file.
    ``config``: their dataclass. ``noun``: what such a model is. ``values``: fields that JSON has in
    another form."""
    if card.get("model_type") != model_type:
        raise WeightsError(
            f"{file.parent} is not {noun}: model_type is {value_in_short(card.get('model_type'))}"
        )
    names = [f.name for f in dataclasses.fields(config)]  # type: ignore[arg-type]
    if absent := [name for name in names if name not in card]:
        raise WeightsError(f"{file}: {', '.join(absent)} missing")
    try:
        refuse_options(card, names, f"addnorm {__version__}", {})
        return config(**{name: card[name] for name in names} | values)
    except Mendable as error:  # ours, or what the config says of a value
        raise WeightsError(f"{file}: {error}") from None
