"""A model that reads a text once as a file for ONNX runtimes: a BERT, whatever its head, or a
classifier."""

from collections.abc import Sequence
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from addnorm import disk
from addnorm.export.check import Comparison, Tell, Written, sizes
from addnorm.export.onnx_check import ALLOWED, needs_runtime, padding, runtime
from addnorm.export.onnx_file import graph_path
from addnorm.export.onnx_function import (
    BATCH,
    Sizes,
    TensorFunction,
    plain_copy,
    properties,
    write_function,
)
from addnorm.models.bert import Bert
from addnorm.models.classifier import TextClassifier
from addnorm.models.gpt_classifier import GPTClassifier

TextModel = Bert | TextClassifier | GPTClassifier


@final
class TextFunction(TensorFunction):
    """``ids`` -> what the model says of them.

    ``model``: a ``TextModel``. ``types``: how many token types there are, 0: it takes none.
    ``with_valid``: it also takes a mask of the tokens that are no padding.
    """

    def __init__(self, model: TextModel, types: int, with_valid: bool) -> None:
        names = ["ids", *(["valid"] if with_valid else []), *(["token_types"] if types else [])]
        bare = isinstance(model, Bert) and model.config.head == "none"
        axes = dict.fromkeys(names, (BATCH, "length"))
        super().__init__(model, axes, "hidden" if bare else "logits", model.config.context_length)
        self.vocab_size, self.types = model.config.vocab_size, types

    def forward(self, *tensors: Tensor) -> Tensor:
        """The model's own, with a mask of ones where the graph takes none."""
        inputs = dict(zip(self.axes, tensors, strict=True))
        inputs.setdefault("valid", torch.ones_like(inputs["ids"], dtype=torch.bool))
        logits: Tensor = self.model(**inputs)
        return logits

    def draw(self, sizes: Sizes, rng: torch.Generator) -> dict[str, Tensor]:
        """Ids from the whole vocabulary, the first row padded on the left, the second behind."""
        shape = (sizes.batch, *sizes.lengths)
        return {
            "ids": torch.randint(self.vocab_size, shape, generator=rng),
            "valid": padding(*shape),
            "token_types": torch.randint(max(self.types, 1), shape, generator=rng),
        }


def text_to_onnx(
    model: nn.Module,
    path: Path,
    *,
    labels: Sequence[str] | None,
    with_valid: bool,
    tell: Tell,
) -> Written:
    """Write a graph in float32, run it with ONNX Runtime, compare, and only then name it ``path``.

    Inputs are ``ids`` (B, T) int64; ``with_valid`` also ``valid`` (B, T) bool, True = real token;
    where a BERT looks for an answer, also ``token_types`` (B, T) int64. The output is ``logits``,
    what the model's head says, or without one ``hidden``.
    """
    needs_runtime()
    path = graph_path(path)
    plain = plain_copy(model)
    assert isinstance(plain, TextModel)
    types = plain.config.types if isinstance(plain, Bert) and plain.kind == "answer" else 0
    function = TextFunction(plain, types, with_valid)
    comparison = Comparison(runtime(), ALLOWED)
    several = plain.several if isinstance(plain, GPTClassifier) else None
    about = properties(plain.config, labels=labels, several=several)
    with disk.scratch(path) as work:
        new = work / path.name
        write_function(function, new, about, comparison, tell)
        files = [file for file in (new.with_name(f"{new.name}.data"), new) if file.exists()]
        disk.publish(*files, to=path.parent)
    paths = [path.with_name(file.name) for file in reversed(files)]
    what = f"an ONNX graph with the inputs {', '.join(function.axes)}"
    return Written(path, what, sizes(*paths), comparison.result())
