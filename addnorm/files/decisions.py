"""The folder of a model that acts: weights and settings."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from addnorm import reading
from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable, value_in_short
from addnorm.files import folders
from addnorm.files.config_json import refuse_options
from addnorm.files.folders import CONFIG, SAFETENSORS, WeightsError
from addnorm.files.register import Loaded, ModelKind
from addnorm.files.tensors import state_of
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
    state = {
        name: folders.finite("the model", name, t.detach()).cpu().contiguous()
        for name, t in model.state_dict().items()
    }

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
        with torch.device("meta"):
            model = DecisionModel(config)
        shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        model.load_state_dict(state_of(folder, shapes, dtype), strict=True, assign=True)
    return Loaded(model.eval(), None, None, card)


def _config(card: Mapping[str, Any], file: Path) -> DecisionConfig:
    """The choices in config.json, all of which must be there; a ``WeightsError`` names the file."""
    if card.get("model_type") != DECISIONS_TYPE:
        raise WeightsError(
            f"{file.parent} is not a model that acts: model_type is "
            f"{value_in_short(card.get('model_type'))}"
        )
    names = [f.name for f in dataclasses.fields(DecisionConfig)]
    if absent := [name for name in names if name not in card]:
        raise WeightsError(f"{file}: {', '.join(absent)} missing")
    quartiles = tuple(reading.field(card, "quartiles", list, file, WeightsError))
    try:
        refuse_options(card, names, f"addnorm {__version__}", {})
        return DecisionConfig(**{name: card[name] for name in names} | {"quartiles": quartiles})
    except Mendable as error:  # ours, or what DecisionConfig says of a value
        raise WeightsError(f"{file}: {error}") from None


def _use(loaded: Loaded) -> Decisions:
    """What one asks of such a model: an action, or to act in an environment."""
    assert isinstance(loaded.model, DecisionModel)
    return Decisions(loaded.model)


KIND = ModelKind((DECISIONS_TYPE,), DecisionModel, "a model that acts", read, write, _use)
