"""A model that acts as a file for ONNX runtimes."""

from pathlib import Path
from typing import final

import torch
from torch import Tensor

from addnorm import disk
from addnorm.data.episodes import NUMBER
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
from addnorm.models.decisions import DecisionModel

ROW = (BATCH, "length")


@final
class DecisionFunction(TensorFunction):
    """Of each step of an episode what is done. ``model``: the model."""

    def __init__(self, model: DecisionModel) -> None:
        c = self.config = model.config
        vectors = {"states": c.state_kind != NUMBER, "actions": c.action_kind != NUMBER}
        axes: dict[str, tuple[str, ...]] = {"returns": ROW} if c.returns else {}
        axes |= {name: (*ROW, "") if vector else ROW for name, vector in vectors.items()}
        axes["times"] = ROW
        output = "action" if vectors["actions"] else "logits"
        super().__init__(model, axes, output, c.context_length)

    def forward(self, *tensors: Tensor) -> Tensor:
        """The model's own."""
        inputs = dict(zip(self.axes, tensors, strict=True))
        returns = inputs.get("returns")
        outputs: Tensor = self.model(returns, inputs["states"], inputs["actions"], inputs["times"])
        return outputs

    def draw(self, sizes: Sizes, rng: torch.Generator) -> dict[str, Tensor]:
        """Any states and actions, returns as the data has them, times one after the other."""
        c, (length,) = self.config, sizes.lengths
        shape = (sizes.batch, length)
        begin = torch.randint(c.longest, (sizes.batch, 1), generator=rng)
        tensors = {
            "returns": torch.randn(shape, generator=rng) * c.return_scale + c.return_mean,
            "times": begin + torch.arange(length),
        }
        for name, kind, size in (
            ("states", c.state_kind, c.states),
            ("actions", c.action_kind, c.actions),
        ):
            numbers = torch.randint(size, shape, generator=rng)
            vectors = torch.randn(*shape, size, generator=rng)
            tensors[name] = numbers if kind == NUMBER else vectors
        return tensors


def decisions_to_onnx(model: DecisionModel, path: Path, *, tell: Tell) -> Written:
    """Write a graph in float32, run it with ONNX Runtime, compare, and only then name it ``path``.

    Inputs are ``returns`` to go, (B, T) float32, unless the model reads none; ``states`` and
    ``actions``, (B, T) int64 or (B, T, width) float32; ``times`` (B, T) int64. The output are the
    ``logits`` of the actions at each step, or the ``action``. Rows are filled up at their ends.
    """
    needs_runtime()
    path = graph_path(path)
    plain = plain_copy(model)
    assert isinstance(plain, DecisionModel)
    function = DecisionFunction(plain)
    comparison = Comparison(runtime(), ALLOWED)
    with disk.scratch(path) as work:
        new = work / path.name
        write_function(function, new, properties(plain.config), comparison, tell)
        files = [file for file in (new.with_name(f"{new.name}.data"), new) if file.exists()]
        disk.publish(*files, to=path.parent)
    paths = [path.with_name(file.name) for file in reversed(files)]
    what = f"an ONNX graph with the inputs {', '.join(function.axes)}"
    return Written(path, what, sizes(*paths), comparison.result())
