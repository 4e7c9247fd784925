"""A text classifier's folder: weights, settings, the names of the classes, the tokenizer."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from addnorm import reading
from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable, value_in_short
from addnorm.files import folders
from addnorm.files.folders import CONFIG, SAFETENSORS, WeightsError
from addnorm.files.tensors import DTYPES, entries
from addnorm.models.classifier import ClassifierConfig, TextClassifier

KIND = "addnorm_classifier"


def save(model: TextClassifier, folder: Path, tokenizer: Tokenizer, classes: Sequence[str]) -> None:
    """A folder that ``load`` reads: weights, settings, the names of the classes, the tokenizer."""

    def fill(work: Path) -> None:
        state = {name: t.contiguous() for name, t in model.state_dict().items()}
        save_file(state, work / SAFETENSORS)
        told = {
            "model_type": KIND,
            "classes_by_name": list(classes),
            **dataclasses.asdict(model.config),
        }
        folders.write_json(work / CONFIG, told)
        tokenizer.save(work)

    folders.write(folder, fill)


def load(folder: Path) -> tuple[TextClassifier, Tokenizer, list[str]]:
    """(model in evaluation mode, its tokenizer, the names of its classes), checked."""
    with reading.system_errors(folder, WeightsError):
        config, classes = _read(folder)
        with torch.device("meta"):
            model = TextClassifier(config)
        shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        stored = entries(folder)
        for name in sorted(shapes.keys() | stored.keys()):
            want, got = shapes.get(name), stored[name].shape if name in stored else None
            if want != got or stored[name].dtype not in DTYPES.values():
                raise WeightsError(
                    f"{folder}: the weights and {CONFIG} belong to different models: {name} is "
                    f"{got and stored[name].dtype} {got}, expected {want}"
                )
        files = sorted({entry.file for entry in stored.values()})
        folders.seal(folder, files)
        state = {
            name: folders.finite(entry.file, name, entry.read()).float().clone()
            for name, entry in stored.items()
        }
        model.load_state_dict(state, strict=True, assign=True)
    tokenizer = Tokenizer.from_pretrained(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise WeightsError(
            f"{folder} has the tokenizer of another model: it has {tokenizer.vocab_size} tokens, "
            f"and the model's vocabulary is {config.vocab_size}"
        )
    return model.eval(), tokenizer, classes


def _read(folder: Path) -> tuple[ClassifierConfig, list[str]]:
    """What the folder's config.json says: the settings, and the names of the classes."""
    file = folder / CONFIG
    told = folders.read_json(file)
    if told.get("model_type") != KIND:
        raise WeightsError(
            f"{folder} is not a text classifier: model_type is "
            f"{value_in_short(told.get('model_type'))}"
        )
    for name in ("vocab_size", "classes"):
        reading.field(told, name, int, file, WeightsError)
    classes = reading.field(told, "classes_by_name", list, file, WeightsError)
    fields = {f.name for f in dataclasses.fields(ClassifierConfig)}
    try:
        config = ClassifierConfig(**{k: v for k, v in told.items() if k in fields})
    except Mendable as error:
        raise WeightsError(f"{file}: {error}") from None
    if [type(name) for name in classes] != [str] * config.classes:
        raise WeightsError(f"{file}: classes_by_name must be {config.classes} texts")
    return config, classes
