"""A Vision Transformer as a file for ONNX runtimes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from addnorm import disk
from addnorm.export.check import Comparison, Tell, Written, sizes
from addnorm.export.onnx_check import ALLOWED, needs_runtime, runtime
from addnorm.export.onnx_file import graph_path
from addnorm.export.onnx_function import (
    BATCH,
    Sizes,
    TensorFunction,
    plain_copy,
    properties,
    write_function,
)
from addnorm.models.vision import ViT


@final
class ImageFunction(TensorFunction):
    """``pixels`` -> what the model says of them. ``model``: the model."""

    def __init__(self, model: ViT) -> None:
        axes = {"pixels": (BATCH, "", "", "")}
        name = "logits" if model.config.classes else "hidden"
        super().__init__(model, axes, name, model.config.length)
        self.shape = (model.config.channels, *model.config.size)

    def forward(self, *tensors: Tensor) -> Tensor:
        """(B, channels, height, width) -> (B, classes)."""
        logits: Tensor = self.model(*tensors)
        return logits

    def draw(self, sizes: Sizes, rng: torch.Generator) -> dict[str, Tensor]:
        """Noise."""
        return {"pixels": torch.randn(sizes.batch, *self.shape, generator=rng)}


def image_to_onnx(model: ViT, path: Path, *, labels: Sequence[str] | None, tell: Tell) -> Written:
    """Write a graph in float32, run it with ONNX Runtime, compare, and only then name it ``path``.

    The input is ``pixels`` (B, channels, height, width) float32, of which the file says under
    ``addnorm.frame`` how a picture becomes them. The output is ``logits`` (B, classes), or without
    a head ``hidden`` (B, tokens, dim).
    """
    needs_runtime()
    path = graph_path(path)
    plain = plain_copy(model)
    assert isinstance(plain, ViT)
    comparison = Comparison(runtime(), ALLOWED)
    pictures = plain.config.channels in (1, 3)
    frame = dataclasses.asdict(plain.image_frame()) if pictures else None
    about = properties(plain.config, labels=labels, frame=frame)
    with disk.scratch(path) as work:
        new = work / path.name
        write_function(ImageFunction(plain), new, about, comparison, tell)
        files = [file for file in (new.with_name(f"{new.name}.data"), new) if file.exists()]
        disk.publish(*files, to=path.parent)
    paths = [path.with_name(file.name) for file in reversed(files)]
    return Written(path, "an ONNX graph with the input pixels", sizes(*paths), comparison.result())
