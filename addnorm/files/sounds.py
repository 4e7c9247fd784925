"""A folder of a classifier of sounds: weights, settings, the names of the classes."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from addnorm import reading
from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable
from addnorm.files import folders
from addnorm.files.folders import CONFIG, SAFETENSORS, WeightsError
from addnorm.files.own import filled, model_tensors
from addnorm.files.register import Loaded, ModelKind
from addnorm.models.sounds import SoundClassifier, SoundConfig
from addnorm.temporary import evaluation_mode
from addnorm.uses.sound_labels import SoundLabels

MODEL_TYPE = "addnorm_sounds"
NAMES = "classes_by_name"


def read(folder: Path, dtype: torch.dtype | None) -> Loaded:
    """The model and the names of its classes; ``dtype`` None keeps what is stored."""
    with reading.system_errors(folder, WeightsError):
        file = folder / CONFIG
        card = folders.read_json(file)
        labels = reading.field(card, NAMES, list, file, WeightsError)
        fields = {f.name for f in dataclasses.fields(SoundConfig)}
        try:
            config = SoundConfig(**{k: v for k, v in card.items() if k in fields})
        except (Mendable, TypeError) as error:
            raise WeightsError(f"{file}: {error}") from None
        if [type(name) for name in labels] != [str] * config.classes:
            raise WeightsError(f"{file}: {NAMES} must be {config.classes} texts")
        model = filled(partial(SoundClassifier, config), folder, dtype)
    return Loaded(model.eval(), None, tuple(labels), card)


def write(
    model: SoundClassifier,
    folder: Path,
    tokenizer: Tokenizer | None,
    labels: Sequence[str] | None,
) -> None:
    """Write the folder that ``read`` takes; there is no tokenizer, but a name for each class."""
    if labels is None or len(labels) != model.config.classes:
        raise WeightsError(
            f"a classifier of sounds is written with the names of its {model.config.classes} "
            "classes: give labels=..."
        )

    state = model_tensors(model)

    def fill(work: Path) -> None:
        """All files of the folder, which is empty."""
        save_file(state, work / SAFETENSORS)
        card = {
            "model_type": MODEL_TYPE,
            NAMES: list(labels),
            **dataclasses.asdict(model.config),
        }
        folders.write_json(work / CONFIG, card)

    folders.write(folder, fill)


def use(loaded: Loaded) -> SoundLabels:
    """What one asks of such a model: the label of a sound."""
    model, labels = loaded.model, loaded.labels
    assert isinstance(model, SoundClassifier)
    assert labels is not None
    device = next(model.parameters()).device

    def probabilities(features: Tensor, valid: Tensor) -> Tensor:
        """(sounds, labels) in float32 on the CPU."""
        with evaluation_mode(model.modules()), torch.inference_mode():
            logits: Tensor = model(features.to(device), valid.to(device))
            return logits.float().softmax(-1).cpu()

    return SoundLabels(probabilities, labels, model.config.n_mels, model.config.frames)


KIND = ModelKind(
    (MODEL_TYPE,),
    SoundClassifier,
    "a classifier of sounds",
    read,
    write,
    use,
)
