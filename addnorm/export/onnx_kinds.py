"""``to_onnx``: any model that can be an ONNX graph, by its kind."""

import os
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from addnorm.data.tokenizer import Tokenizer
from addnorm.data.tokenizer.pair import TokenizerPair
from addnorm.export.check import ExportError, Tell, Written, silent
from addnorm.export.onnx_decisions import decisions_to_onnx
from addnorm.export.onnx_file import gpt_to_onnx
from addnorm.export.onnx_image import image_to_onnx
from addnorm.export.onnx_seq2seq import seq2seq_to_onnx
from addnorm.export.onnx_text import text_to_onnx
from addnorm.models.bert import Bert
from addnorm.models.classifier import TRANSFORMER, TextClassifier
from addnorm.models.decisions import DecisionModel
from addnorm.models.gpt import GPT
from addnorm.models.gpt_classifier import GPTClassifier
from addnorm.models.seq2seq import Seq2Seq
from addnorm.models.vision import ViT

ONNX_MODELS = (GPT, Bert, TextClassifier, GPTClassifier, Seq2Seq, ViT, DecisionModel)
"""The classes of models that can be ONNX graphs."""


def to_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    tokenizer: Tokenizer | TokenizerPair | None = None,
    labels: Sequence[str] | None = None,
    with_cache: bool = False,
    with_valid: bool = False,
    tell: Tell = silent,
) -> Written:
    """Write a graph in float32, run it with ONNX Runtime, compare, and only then name it ``path``:
    a file, or for a sequence-to-sequence model a folder of two graphs.

    ``tokenizer``: goes into that folder; a file does not hold one.
    ``labels``: what the places of a classifier's logits are called, for the file to say.
    ``with_cache``: a GPT's keys and values are inputs and outputs.
    ``with_valid``: the graph takes a mask of the tokens that are no padding; that of a
    sequence-to-sequence model always does.

    docs/export.md says what the inputs and outputs are.
    """
    if isinstance(model, GPT):
        return gpt_to_onnx(model, path, with_cache=with_cache, with_valid=with_valid, tell=tell)
    if not isinstance(model, ONNX_MODELS):
        names = ", ".join(kind.__name__ for kind in ONNX_MODELS)
        raise ExportError(f"a {type(model).__name__} cannot be an ONNX graph, only {names}")
    if isinstance(model, TextClassifier) and model.config.body != TRANSFORMER:
        raise ExportError(
            f"a {type(model).__name__} on {model.config.body} cannot be an ONNX graph, only one on "
            "a Transformer: of texts of unlike length each goes through the cells by itself"
        )
    if with_cache:
        raise ExportError(
            f"the graph of a {type(model).__name__} keeps no cache, only a GPT's does: leave out "
            "with_cache"
        )
    if isinstance(model, ViT):
        if with_valid:
            raise ExportError("a picture has no padding: leave out with_valid")
        return image_to_onnx(model, Path(path), labels=labels, tell=tell)
    if isinstance(model, DecisionModel):
        if with_valid:
            raise ExportError(
                "the graph of a DecisionModel takes no mask, as nothing sees what comes after it: "
                "fill rows up at their ends, and leave out with_valid"
            )
        return decisions_to_onnx(model, Path(path), tell=tell)
    if not isinstance(model, Seq2Seq):
        return text_to_onnx(model, Path(path), labels=labels, with_valid=with_valid, tell=tell)
    if with_valid:
        raise ExportError(
            "the graphs of a Seq2Seq always take a mask of what is no padding: leave out with_valid"
        )
    return seq2seq_to_onnx(model, Path(path), tokenizer=tokenizer, tell=tell)
