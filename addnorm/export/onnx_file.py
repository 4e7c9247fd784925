"""A file for ONNX runtimes: any batch, any length, with or without a cache of keys and values."""

import dataclasses
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from addnorm import disk
from addnorm.export.check import (
    ExportError,
    Tell,
    Written,
    file_path,
    measured_copy,
    reason,
    silent,
    sizes,
)
from addnorm.export.onnx_check import compare, needs_runtime
from addnorm.export.onnx_graph import Graph
from addnorm.models.gpt import GPT
from addnorm.version import __version__

INLINE = 1_700_000_000
"""Bytes of weights from which on they go into a file of their own: protobuf ends at 2 GiB."""

BEGINS = b"\x08"
"""The first byte of a graph, which no text has: protobuf's mark of the format's version."""

EXPONENTS = (0x7F80_0000, 0x7FF0_0000_0000_0000)
"""The bits of a float32 and of a float64 that hold the exponent."""


def gpt_to_onnx(
    model: GPT,
    path: str | os.PathLike[str],
    *,
    with_cache: bool = False,
    with_valid: bool = False,
    tell: Tell = silent,
) -> Written:
    """Write a graph in float32, run it with ONNX Runtime, compare, and only then name it ``path``.

    Inputs are ``ids`` (B, T) int64; ``with_valid`` also ``valid`` (B, P + T) bool, True = real
    token; ``with_cache`` also ``past.i.key`` and ``past.i.value`` (B, heads, P, width) of the i-th
    attention. Outputs are ``logits`` (B, T, vocab_size) and ``present.i.key``, ``present.i.value``.
    """
    if with_cache and model.front:
        raise ExportError(
            "a past holds tokens, and this model has a prompt in front of them: without a cache "
            "(with_cache, --with-cache) the prompt is part of the graph"
        )
    needs_runtime()
    path = graph_path(Path(path))
    ours = measured_copy(model)
    graph = Graph(ours, with_cache, with_valid)
    tell("tracing the model")
    program = _exported(graph)
    program.model.metadata_props.update(_properties(model))
    with disk.scratch(path) as work:
        new = work / path.name
        tell("writing the graph")
        save(program, new)
        del program
        check = compare(graph, new, tell)
        files = [new.with_name(new.name + ".data"), new]  # the graph last: it names the other
        files = [file for file in files if file.exists()]
        disk.publish(*files, to=path.parent)
    names = ["ids", *(["valid"] if with_valid else []), *(["past"] if with_cache else [])]
    what = f"an ONNX graph with the inputs {', '.join(names)}"
    paths = [path.with_name(file.name) for file in reversed(files)]
    return Written(path, what, sizes(*paths), check)


def graph_path(path: Path) -> Path:
    """The path of a file to write, refused where it cannot be one, and where something that is not
    an earlier graph of this name would be lost."""
    path = file_path(path, ".onnx", begins=BEGINS)
    beside = path.with_name(f"{path.name}.data")
    if beside.exists() and not path.exists():
        raise ExportError(
            f"{beside} is there already, without a graph that it belongs to: it was left as it is. "
            "Give another name, or delete it first"
        )
    return path


# --- exporting ------------------------------------------------------------------------------------


def _exported(graph: Graph) -> Any:
    """The graph as a program of torch.onnx, which ``save`` writes: sizes named, the head's table
    once, and no path of this machine in it. An ``ExportError`` where torch cannot."""
    inputs, dynamic = graph.example()
    input_names = ["ids", *(["valid"] if graph.with_valid else []), *graph.names("past")]
    output_names = ["logits", *graph.names("present")]
    with torch.no_grad(), quiet():
        try:
            program = torch.export.export(graph, inputs, dynamic_shapes=dynamic, strict=False)
            without_bits(program)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=input_names,
                output_names=output_names,
                verbose=False,
            )
        except Exception as error:  # torch's exporters raise whatever the failing part raises
            raise ExportError(f"torch cannot export this model to ONNX: {reason(error)}") from error
    assert exported is not None
    _name_axes(exported, graph)
    if graph.gpt.head is None:
        tie(exported, "gpt.tokens.weight", graph.gpt.tokens.weight.detach())
    for node in exported.model.graph.all_nodes():
        module = node.metadata_props.get("namespace")  # the rest is files of this machine
        node.metadata_props.clear()
        node.metadata_props.update({} if module is None else {"namespace": module})
    return exported


def without_bits(program: torch.export.ExportedProgram) -> None:
    """Rewrite, in place, how norms take the power of two below a number: from its bits, which
    becomes log2, floor and exp2.

    ``safe_unit`` masks all but the exponent; ONNX has no view of a float as an integer. Nothing
    depends on the last bit: numerator and denominator are divided by the same number.
    """
    aten, graph = torch.ops.aten, program.graph_module.graph
    for back in list(graph.nodes):
        masked = back.args[0] if back.target is aten.view.dtype else None
        if masked is None or masked.target is not aten.__and__.Scalar:
            continue
        view, mask = masked.args
        if view.target is not aten.view.dtype or mask not in EXPONENTS:
            continue  # something else: the exporter will name it
        node = view.args[0]
        with graph.inserting_before(back):
            for operation in (aten.log2, aten.floor, aten.exp2):
                node = graph.call_function(operation.default, (node,))
                node.meta = dict(back.meta)
        back.replace_all_uses_with(node)
        for unused in (back, masked, view):
            graph.erase_node(unused)
    graph.lint()
    program.graph_module.recompile()


def _name_axes(exported: Any, graph: Graph) -> None:
    """Call the sizes that may be any number "batch", "length" and "past", in place: the exporter
    numbers them in the order of tracing."""
    axes: dict[str, tuple[str, ...]] = {"ids": ("batch", "length")}
    axes |= dict.fromkeys(graph.names("past"), ("batch", "", "past", ""))
    by_size = {}
    for graph_input in exported.model.graph.inputs:
        for size, name in zip(graph_input.shape, axes.get(graph_input.name, ()), strict=False):
            if name:
                by_size[size] = name
    exported.rename_axes(by_size)


def tie(exported: Any, name: str, table: Tensor) -> None:
    """Where a head is the table of the embedding, turn that in the graph, in place, so that the
    file holds it once: the exporter stores a turned copy for the head. ``name``: the table's."""
    import onnx_ir

    tensors = exported.model.graph.initializers
    for copy in list(tensors.values()):
        if name not in tensors or tuple(copy.shape) != tuple(table.T.shape):
            continue
        if torch.equal(torch.from_numpy(copy.const_value.numpy()), table.T):
            user = copy.uses()[0].node
            node = onnx_ir.node("Transpose", [tensors[name]], {"perm": [1, 0]})
            node.outputs[0].name = f"{copy.name}.again"
            node.outputs[0].type, node.outputs[0].shape = copy.type, copy.shape
            copy.replace_all_uses_with(node.outputs[0])
            user.graph.insert_before(user, node)
            del tensors[copy.name]


@contextmanager
def quiet() -> Iterator[None]:
    """Within it nothing is warned of: torch's exporter tells of its own deprecations and of
    packages that it does without. What is wrong with the graph is an error, or shows when it is
    compared."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _properties(model: GPT) -> dict[str, str]:
    """What the file says of the model: every choice by its name, the norms' eps among them."""
    properties = {
        "addnorm.version": __version__,
        "addnorm.config": json.dumps(dataclasses.asdict(model.config)),
    }
    if model.tokenizer_identity is not None:
        properties["addnorm.tokenizer"] = model.tokenizer_identity
    return properties


def save(program: Any, file: Path) -> None:
    """Write the graph; with more than INLINE bytes of weights, these go to FILE.data beside it."""
    weights = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
    with quiet():
        program.save(file, external_data=weights > INLINE)
