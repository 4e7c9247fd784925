"""A BERT as a file for ONNX runtimes: any batch, any length up to the context."""

import copy
import dataclasses
import json
import os
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from addnorm import disk
from addnorm.export.check import (
    CheckFailed,
    Comparison,
    ExportError,
    Tell,
    Written,
    file_path,
    needs,
    reason,
    silent,
    sizes,
)
from addnorm.export.onnx_check import ALLOWED
from addnorm.export.onnx_file import BEGINS, quiet, save, without_bits
from addnorm.models.bert import Bert
from addnorm.version import __version__


@final
class EncoderGraph(nn.Module):
    """The model as a function of tensors alone; ``names``: what they are called, in order."""

    def __init__(self, model: Bert, names: tuple[str, ...]) -> None:
        super().__init__()
        self.bert, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.bert(**dict(zip(self.names, tensors, strict=True)))

    def inputs(self, batch: int, length: int) -> tuple[Tensor, ...]:
        """Inputs to trace and to compare with, in the order of ``names``: random ones, the same for
        the same shape. Of the first row the last two tokens are padding, where there are more."""
        rng = torch.Generator().manual_seed(length)
        c, shape = self.bert.config, (batch, length)
        valid = torch.ones(shape, dtype=torch.bool)
        valid[0, max(1, length - 2) :] = False
        tensors = {
            "ids": torch.randint(c.vocab_size, shape, generator=rng),
            "valid": valid,
            "token_types": torch.randint(c.types, shape, generator=rng),
        }
        return tuple(tensors[name] for name in self.names)


def bert_to_onnx(
    model: Bert,
    path: str | os.PathLike[str],
    *,
    with_valid: bool = False,
    tell: Tell = silent,
) -> Written:
    """Write a graph in float32, run it with ONNX Runtime, compare, and only then name it ``path``.

    Inputs are ``ids`` (B, T) int64; ``with_valid`` also ``valid`` (B, T) bool, True = real token;
    where an answer is looked for, also ``token_types`` (B, T) int64. The output is ``logits``, what
    the model's head says.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        needs(package, "addnorm export onnx")
    path = file_path(Path(path), ".onnx", begins=BEGINS)
    names = ["ids", *(["valid"] if with_valid else [])]
    names += ["token_types"] if model.config.head == "answer" else []
    graph = EncoderGraph(copy.deepcopy(model).cpu().float().eval(), tuple(names))
    tell("tracing the model")
    program = _exported(graph)
    with disk.scratch(path) as work:
        new = work / path.name
        tell("writing the graph")
        save(program, new)
        check = _compare(graph, new, tell)
        files = [file for file in (new.with_name(f"{new.name}.data"), new) if file.exists()]
        disk.publish(*files, to=path.parent)
    paths = [path.with_name(file.name) for file in reversed(files)]
    what = f"an ONNX graph with the inputs {', '.join(names)}"
    return Written(path, what, sizes(*paths), check.result())


def _exported(graph: EncoderGraph) -> Any:
    """The graph as a program of torch.onnx, which ``save`` writes, traced with every size free: at
    sizes above 1, as 0 and 1 would be taken for constants. An ``ExportError`` where torch
    cannot."""
    inputs = graph.inputs(2, min(5, graph.bert.config.context_length))
    anything = torch.export.Dim.DYNAMIC
    with torch.no_grad(), quiet():
        try:
            free = (tuple({0: anything, 1: anything} for _ in inputs),)
            program = torch.export.export(graph, inputs, dynamic_shapes=free, strict=False)
            without_bits(program)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=list(graph.names),
                output_names=["logits"],
                verbose=False,
            )
        except Exception as error:  # torch's exporters raise whatever the failing part raises
            raise ExportError(f"torch cannot export this model to ONNX: {reason(error)}") from error
    assert exported is not None
    by_size = zip(exported.model.graph.inputs[0].shape, ("batch", "length"), strict=True)
    exported.rename_axes(dict(by_size))
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()  # files of this machine
    config = json.dumps(dataclasses.asdict(graph.bert.config))
    exported.model.metadata_props.update({"addnorm.version": __version__, "addnorm.config": config})
    return exported


def _compare(graph: EncoderGraph, file: Path, tell: Tell) -> Comparison:
    """The comparison of the file with the model that ``graph`` is made of: one token, a few, all
    positions; in batches of 1 and 3, the first row padded. ``CheckFailed`` if they differ or it
    cannot be loaded."""
    import onnxruntime

    by = f"onnxruntime {onnxruntime.__version__}"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its classes are made in C++, without a common base
        raise CheckFailed(f"{by} cannot load the graph: {reason(error)}") from error
    comparison, full = Comparison(by, ALLOWED), graph.bert.config.context_length
    for batch, length in dict.fromkeys([(1, 1), (3, 1), (3, min(7, full)), (1, full)]):
        tell(f"checking with {by}: {batch} x {length}")
        inputs = graph.inputs(batch, length)
        feed = {name: t.numpy() for name, t in zip(graph.names, inputs, strict=True)}
        with torch.no_grad():
            ours = graph(*inputs)
        comparison.add(f"{batch} x {length}", torch.from_numpy(session.run(None, feed)[0]), ours)
    return comparison
