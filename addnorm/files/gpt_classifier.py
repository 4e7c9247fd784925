"""A classifier on a GPT: transformers' GPT2ForSequenceClassification, and ours for other designs.

Both are a GPT's folder with another head, ``score.weight``, and the names of the labels in
config.json as transformers has them: ``id2label``, ``problem_type``.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from addnorm import reading
from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable, value_in_short
from addnorm.files import config_json, folders, gpt
from addnorm.files.folders import CONFIG, WeightsError
from addnorm.files.register import Beginning, Loaded, ModelKind, tokenizer_beside
from addnorm.models.gpt_classifier import GPTClassifier
from addnorm.uses.label_sets import LabelSets
from addnorm.uses.labels import Labels
from addnorm.uses.use import Use

HEAD = "score.weight"
PUBLISHED, OWN = "GPT2ForSequenceClassification", "AddnormForSequenceClassification"
PROBLEMS = {False: "single_label_classification", True: "multi_label_classification"}
"""Whether a text may have several labels -> what transformers calls that."""
UNNAMED = {"0": "LABEL_0", "1": "LABEL_1"}
"""The labels of a config.json of transformers that names none."""


def write(
    model: GPTClassifier,
    folder: Path,
    tokenizer: Tokenizer | None,
    labels: Sequence[str] | None,
) -> None:
    """Write the folder that ``read`` takes: in the published format where that can say what the GPT
    is, else in ours. None for tokenizer or labels is a ``WeightsError``."""
    count = model.head.out_features
    if tokenizer is None or labels is None or len(labels) != count:
        raise WeightsError(
            f"a text classifier is written with its tokenizer and the names of its {count} "
            "classes: give tokenizer=... and labels=..."
        )
    config, tensors = model.config, gpt.plain_tensors(model.gpt)
    eos = gpt.id_of_end(config, tokenizer)
    if gpt.why_not_gpt2(config):
        card = {**config_json.to_own(config, eos), "architectures": [OWN]}
    else:
        card = {**config_json.to_gpt2(config, eos), "architectures": [PUBLISHED]}
        tensors = gpt.as_gpt2(config, tensors)
    card |= {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": PROBLEMS[model.several],
        # transformers finds the last token by it, so it must be one that no text ends with
        "pad_token_id": eos,
    }
    gpt.write_folder(model.gpt, folder, card, {**tensors, HEAD: model.head.weight}, tokenizer)


def read(folder: Path, dtype: torch.dtype | None) -> Loaded:
    """The model, its tokenizer if there is one, and the names of its classes; a ``WeightsError``
    where they do not belong together. ``dtype`` None keeps what is stored."""
    card = folders.read_json(folder / CONFIG)
    labels, several = _labels(card, folder / CONFIG)
    body, _, head = gpt.load_with(folder, dtype=dtype, dropout=None, head=HEAD)
    assert head is not None
    if len(head) != len(labels):
        raise WeightsError(
            f"{folder / CONFIG} names {len(labels)} labels, and {HEAD} has {len(head)} rows"
        )
    with torch.device("meta"):
        model = GPTClassifier(body.config, len(labels), several)
    model.gpt = body
    model.head.load_state_dict({"weight": head}, assign=True)
    return Loaded(model.eval(), tokenizer_beside(folder), labels, card)


def _labels(card: Mapping[str, Any], file: Path) -> tuple[tuple[str, ...], bool]:
    """The names of the labels by their numbers, and whether a text may have several of them; a
    ``WeightsError`` names the file."""
    several = {problem: key for key, problem in PROBLEMS.items()} | {None: False}
    problem = card.get("problem_type")
    if not isinstance(problem, str | None) or problem not in several:
        raise WeightsError(
            f"{file}: problem_type is {value_in_short(problem)}, and addnorm has "
            f"{' and '.join(PROBLEMS.values())}"
        )
    names = reading.field({"id2label": UNNAMED, **card}, "id2label", dict, file, WeightsError)
    labels = [names.get(str(i)) for i in range(len(names))]
    if not labels or not all(isinstance(label, str) for label in labels):
        raise WeightsError(f"{file}: id2label must have a text for each number from 0")
    if len(labels) == 1 and problem is None:
        raise WeightsError(
            f"{file} has one label and no problem_type, which is a regression: addnorm has none"
        )
    return tuple(map(str, labels)), several[problem]


def use(loaded: Loaded) -> Use:
    """What one asks of such a model: the label of a text, or its labels, as the folder says. A
    ``Mendable`` where it has no tokenizer."""
    model, tokenizer, labels = loaded.model, loaded.tokenizer, loaded.labels
    assert isinstance(model, GPTClassifier)
    assert labels is not None
    if tokenizer is None:
        raise Mendable(
            "it has no tokenizer: put its tokenizer.json there, or GPT-2's vocab.json and "
            "merges.txt"
        )
    assert isinstance(tokenizer, Tokenizer)
    kind = LabelSets if model.several else Labels
    return kind(partial(model.probabilities, tokenizer=tokenizer), labels)


def _beginning(folder: Path, classes: int, several: bool, dropout: float) -> Beginning:
    """A classifier with the weights of the one there, but for its head, which is new."""
    tokenizer = tokenizer_beside(folder)
    if tokenizer is None:
        raise WeightsError(f"{folder} has no tokenizer, which would make ids of the texts")
    start, _, _ = gpt.load_with(folder, dtype=torch.float32, dropout=dropout, head=HEAD)
    model = GPTClassifier(start.config, classes, several)
    model.gpt.load_state_dict(start.state_dict())
    return Beginning(model, model.head, tokenizer, model.frame)


KIND = ModelKind(
    (f"gpt2/{PUBLISHED}", f"{config_json.GPT_TYPE}/{OWN}"),
    GPTClassifier,
    "a text classifier",
    read,
    write,
    use,
    classifier=_beginning,
)
