"""The folder of a model that acts: weights and settings."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from addnorm import reading
from addnorm.data.tokenizer import Tokenizer
from addnorm.files import folders
from addnorm.files.folders import CONFIG, SAFETENSORS, WeightsError
from addnorm.files.own import config_of, filled, model_tensors
from addnorm.files.register import Loaded, ModelKind
from addnorm.models.decisions import DecisionConfig, DecisionModel
from addnorm.uses.decisions import Decisions
from addnorm.version import __version__

DECISIONS_TYPE = "addnorm_decisions"


def write(
    model: DecisionModel,
    folder: Path,
    tokenizer: Tokenizer | None,
    labels: Sequence[str] | None,
) -> None:
    """Write the folder that ``read`` takes. ``tokenizer`` and ``labels`` must be None: it reads no
    text, and its actions have no names."""
    if tokenizer is not None or labels is not None:
        raise WeightsError("a model that acts has no tokenizer and no labels: leave them out")
    card = {
        "model_type": DECISIONS_TYPE,
        "addnorm_version": __version__,
        **dataclasses.asdict(model.config),
        "dtype": str(model.times.weight.dtype).removeprefix("torch."),
    }
    state = model_tensors(model)

    def fill(work: Path) -> None:
        """Both files of the folder, which is empty."""
        folders.write_json(work / CONFIG, card)
        save_file(state, work / SAFETENSORS)

    folders.write(folder, fill)


def read(folder: Path, dtype: torch.dtype | None) -> Loaded:
    """The model; a ``WeightsError`` where it is damaged. ``dtype`` None keeps what is stored."""
    with reading.system_errors(folder, WeightsError):
        card = folders.read_json(folder / CONFIG)
        config = _config(card, folder / CONFIG)
        model = filled(partial(DecisionModel, config), folder, dtype)
    return Loaded(model.eval(), None, None, card)


def _config(card: Mapping[str, Any], file: Path) -> DecisionConfig:
    """The choices in config.json; a ``WeightsError`` names the file."""
    values: dict[str, Any] = {}
    if "quartiles" in card:
        values["quartiles"] = tuple(reading.field(card, "quartiles", list, file, WeightsError))
    return config_of(DecisionConfig, card, file, DECISIONS_TYPE, "a model that acts", **values)


def _use(loaded: Loaded) -> Decisions:
    """What one asks of such a model: an action, or to act in an environment."""
    assert isinstance(loaded.model, DecisionModel)
    return Decisions(loaded.model)


KIND = ModelKind((DECISIONS_TYPE,), DecisionModel, "a model that acts", read, write, _use)
