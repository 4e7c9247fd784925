"""A model without a cache as a file for ONNX runtimes: a function of tensors, of which every size
that may be another is free."""

import copy
import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from addnorm.export.check import LONGEST, Comparison, ExportError, Tell, reason
from addnorm.export.onnx_check import opened
from addnorm.export.onnx_file import quiet, save, tie, without_bits
from addnorm.version import __version__

BATCH = "batch"


class Sizes(NamedTuple):
    """How large the inputs of one call are."""

    batch: int
    lengths: tuple[int, ...]
    """Of each kind of length that there is, as those of a source and of a target."""

    def __str__(self) -> str:
        return " x ".join(map(str, (self.batch, *self.lengths)))


class TensorFunction(nn.Module, ABC):
    """What a graph computes, and what its tensors are called.

    ``model``: does the work, and is not changed.
    ``axes``: input -> what its sizes are called, as in ("batch", "length"); "": it is always the
    same.
    ``output``: the name of what comes out.
    ``context``: the most of each length.
    """

    def __init__(
        self, model: nn.Module, axes: Mapping[str, tuple[str, ...]], output: str, context: int
    ) -> None:
        super().__init__()
        self.model, self.axes, self.output = model, dict(axes), output
        self.context = min(context, LONGEST)

    @abstractmethod
    def forward(self, *tensors: Tensor) -> Tensor:
        """From the inputs, in the order of ``axes``."""

    @abstractmethod
    def draw(self, sizes: Sizes, rng: torch.Generator) -> dict[str, Tensor]:
        """Inputs by their names; others than those of ``axes`` are passed over."""

    def inputs(self, sizes: Sizes) -> tuple[Tensor, ...]:
        """The same for the same sizes, in the order of ``axes``."""
        tensors = self.draw(sizes, torch.Generator().manual_seed(sum(sizes.lengths)))
        return tuple(tensors[name] for name in self.axes)

    @property
    def lengths(self) -> list[str]:
        """What the sizes beside the batch are called, each once."""
        names = dict.fromkeys(name for sizes in self.axes.values() for name in sizes)
        return [name for name in names if name not in (BATCH, "")]

    def sizes(self) -> list[Sizes]:
        """What is compared: one token, a few, all that the model reads; alone and in a batch."""
        few = tuple(min(7 - i, self.context) for i in range(len(self.lengths)))
        one, full = (tuple(n for _ in few) for n in (1, self.context))
        return list(dict.fromkeys([Sizes(1, one), Sizes(3, one), Sizes(3, few), Sizes(1, full)]))


def plain_copy(model: nn.Module) -> nn.Module:
    """The model as it is exported and compared: in float32, on the CPU, not training."""
    plain = copy.deepcopy(model).cpu().float().eval()
    broken = [name for name, p in plain.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        raise ExportError(f"{broken[0]} of the model holds values that are not finite")
    return plain


def properties(config: Any, **more: Any) -> dict[str, str]:
    """What a file says of its model: every choice by its name, the norms' eps among them, and what
    else there is of ``more``. Texts stand there as they are, all else as JSON."""
    values = {"config": dataclasses.asdict(config), **more}
    words = {
        f"addnorm.{name}": value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
        if value is not None
    }
    return {"addnorm.version": __version__, **words}


def write_function(
    function: TensorFunction,
    file: Path,
    about: Mapping[str, str],
    comparison: Comparison,
    tell: Tell,
    part: str = "",
) -> None:
    """Trace, write ``file``, run it with ONNX Runtime, and add to the comparison how far it is from
    the function. ``about``: what stands in the file beside the graph. ``part``: what messages call
    it, where it is one of several."""
    tell(f"tracing the {part or 'model'}")
    program = _exported(function)
    program.model.metadata_props.update(about)
    tell("writing the graph")
    save(program, file)
    del program
    session = opened(file, tell)
    for sizes in function.sizes():
        name = f"{part} {sizes}".strip()
        tell(f"checking with {comparison.by}: {name}")
        inputs = function.inputs(sizes)
        feed = {name: t.numpy() for name, t in zip(function.axes, inputs, strict=True)}
        with torch.no_grad():
            ours = function(*inputs)
        comparison.add(name, torch.from_numpy(session.run(None, feed)[0]), ours)


def _exported(function: TensorFunction) -> Any:
    """The graph as a program of torch.onnx, which ``save`` writes, traced with every size free that
    may be another, and these named. An ``ExportError`` where torch cannot."""
    # sizes of 0 and 1 would be taken for constants, two that are the same for one
    most = min(5, function.context)
    lengths = tuple(max(2, most - i) for i in range(len(function.lengths)))
    inputs = function.inputs(Sizes(2, lengths if most > 1 else (1,) * len(lengths)))
    anything = torch.export.Dim.DYNAMIC
    free = tuple(
        {i: anything for i, name in enumerate(names) if name} for names in function.axes.values()
    )
    with torch.no_grad(), quiet():
        try:
            program = torch.export.export(function, inputs, dynamic_shapes=(free,), strict=False)
            without_bits(program)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=list(function.axes),
                output_names=[function.output],
                verbose=False,
            )
        except Exception as error:  # torch's exporters raise whatever the failing part raises
            raise ExportError(f"torch cannot export this model to ONNX: {reason(error)}") from error
    assert exported is not None
    by_size = {}
    for tensor, names in zip(exported.model.graph.inputs, function.axes.values(), strict=True):
        by_size.update({size: n for size, n in zip(tensor.shape, names, strict=True) if n})
    exported.rename_axes(by_size)
    for name, table in function.named_parameters():
        if name.endswith("tokens.weight"):
            tie(exported, name, table.detach())
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()  # files of this machine
    return exported
