"""A text classifier's folder: weights, settings, the names of the classes, the tokenizer."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from addnorm import reading
from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable, value_in_short
from addnorm.files import folders
from addnorm.files.folders import CONFIG, SAFETENSORS, WeightsError
from addnorm.files.register import Beginning, Loaded, ModelKind
from addnorm.files.tensors import state_of
from addnorm.models.classifier import ClassifierConfig, TextClassifier
from addnorm.models.texts import TextFrame
from addnorm.uses.label_sets import LabelSets
from addnorm.uses.labels import Labels
from addnorm.uses.use import Use

CLASSIFIER_TYPE = "addnorm_classifier"


def write(
    model: TextClassifier,
    folder: Path,
    tokenizer: Tokenizer | None,
    labels: Sequence[str] | None,
) -> None:
    """Write the folder that ``read`` takes: weights, settings, names of the classes by their
    numbers, tokenizer. None for one of the last two is a ``WeightsError``."""
    count = model.config.classes
    if tokenizer is None or labels is None or len(labels) != count:
        raise WeightsError(
            f"a text classifier is written with its tokenizer and the names of its {count} "
            "classes: give tokenizer=... and labels=..."
        )

    def fill(work: Path) -> None:
        """All files of the folder, which is empty."""
        state = {name: t.contiguous() for name, t in model.state_dict().items()}
        save_file(state, work / SAFETENSORS)
        card = {
            "model_type": CLASSIFIER_TYPE,
            "classes_by_name": list(labels),
            **dataclasses.asdict(model.config),
        }
        folders.write_json(work / CONFIG, card)
        tokenizer.save(work)

    folders.write(folder, fill)


def read(folder: Path, dtype: torch.dtype | None) -> Loaded:
    """The model, its tokenizer and the names of its classes; a ``WeightsError`` where they do not
    belong together. ``dtype`` None keeps what is stored."""
    with reading.system_errors(folder, WeightsError):
        card, config, labels = _card(folder)
        with torch.device("meta"):
            model = TextClassifier(config)
        shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        state = state_of(folder, shapes, dtype)
        model.load_state_dict(state, strict=True, assign=True)
    tokenizer = Tokenizer.from_pretrained(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise WeightsError(
            f"{folder} has the tokenizer of another model: it has {tokenizer.vocab_size} tokens, "
            f"and the model's vocabulary is {config.vocab_size}"
        )
    return Loaded(model.eval(), tokenizer, labels, card)


def _card(folder: Path) -> tuple[dict[str, Any], ClassifierConfig, tuple[str, ...]]:
    """(what the folder's config.json says as it stands, the model's choices, the names of the
    classes); a ``WeightsError`` where it is not that of a text classifier."""
    file = folder / CONFIG
    card = folders.read_json(file)
    if card.get("model_type") != CLASSIFIER_TYPE:
        raise WeightsError(
            f"{folder} is not a text classifier: model_type is "
            f"{value_in_short(card.get('model_type'))}"
        )
    for name in ("vocab_size", "classes"):
        reading.field(card, name, int, file, WeightsError)
    labels = reading.field(card, "classes_by_name", list, file, WeightsError)
    fields = {f.name for f in dataclasses.fields(ClassifierConfig)}
    try:
        config = ClassifierConfig(**{k: v for k, v in card.items() if k in fields})
    except Mendable as error:
        raise WeightsError(f"{file}: {error}") from None
    if [type(name) for name in labels] != [str] * config.classes:
        raise WeightsError(f"{file}: classes_by_name must be {config.classes} texts")
    return card, config, tuple(labels)


def use(loaded: Loaded) -> Use:
    """What one asks of such a model: the label of a text, or its labels, as the config says. It has
    a tokenizer and names of its classes, as ``read`` sees to."""
    model, tokenizer, labels = loaded.model, loaded.tokenizer, loaded.labels
    assert isinstance(model, TextClassifier)
    assert isinstance(tokenizer, Tokenizer)
    assert labels is not None
    kind = LabelSets if model.config.several else Labels
    return kind(partial(model.probabilities, tokenizer=tokenizer), labels)


def _beginning(folder: Path, classes: int, several: bool, dropout: float) -> Beginning:
    """A classifier with the weights of the one there, but for its head, which is new."""
    loaded = read(folder, torch.float32)
    assert isinstance(loaded.model, TextClassifier)
    assert isinstance(loaded.tokenizer, Tokenizer)
    config = dataclasses.replace(
        loaded.model.config, classes=classes, several=several, dropout=dropout
    )
    model, weights = TextClassifier(config), loaded.model.state_dict()
    body = {name: t for name, t in weights.items() if not name.startswith("head.")}
    model.load_state_dict(body, strict=False)
    return Beginning(model, model.head, loaded.tokenizer, TextFrame(config.context_length))


KIND = ModelKind(
    (CLASSIFIER_TYPE,),
    TextClassifier,
    "a text classifier",
    read,
    write,
    use,
    classifier=_beginning,
)
