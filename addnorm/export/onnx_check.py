"""An ONNX graph runs as the model does: ONNX Runtime, at shapes that it was not traced with."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from addnorm.export.check import (
    CheckFailed,
    Comparison,
    LogitsCheck,
    Tell,
    draw,
    logits,
    needs,
    reason,
    shapes,
)
from addnorm.export.onnx_graph import Graph

ALLOWED = 1e-4
"""Runtimes fuse and reorder more than two programs in PyTorch do: 1e-6 was measured at GPT-2's
shape, but not by those to come."""

STEPS = 16
"""Tokens of the greedy continuation by which a cache is checked."""


def compare(graph: Graph, file: Path, tell: Tell) -> LogitsCheck:
    """Compare the file with the model that ``graph`` is made of: at all ``shapes``, padded where
    the graph has ``valid``, and in steps if it has a cache. ``CheckFailed`` if it cannot be
    loaded."""
    session = opened(file, tell)
    comparison = Comparison(runtime(), ALLOWED)
    by = comparison.by
    for batch, length in shapes(graph.gpt):
        tell(f"checking with {by}: {batch} x {length}")
        ids = draw(graph.gpt, batch, length)
        valid = padding(batch, length) if graph.with_valid else None
        theirs, _ = _run(graph, session, ids, valid, graph.empty(batch))
        comparison.add(f"{batch} x {length}", theirs, logits(graph.gpt, ids, valid))
    if graph.with_cache:
        tell(f"checking with {by}: greedy steps")
        _compare_steps(graph, session, comparison)
    return comparison.result()


def needs_runtime() -> None:
    """An ``ExportError`` where a package is missing that writes or checks graphs."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        needs(package, "addnorm export onnx")


def runtime() -> str:
    """What runs graphs here, and its version."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def opened(file: Path, tell: Tell) -> Any:
    """A session of ONNX Runtime, which has loaded the graph; ``CheckFailed`` if it cannot."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; what it says of its own optimizations is not for users
    tell(f"loading the graph with {runtime()}")
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes are made in C++, without a common base
        raise CheckFailed(f"{runtime()} cannot load the graph: {reason(error)}") from error


def _run(
    graph: Graph, session: Any, ids: Tensor, valid: Tensor | None, past: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run the graph once in its ``session``; returns (logits, the past of the next call by its
    names). ``past``: of this call, as the one before returned it, or ``graph.empty``."""
    feed = {"ids": ids.numpy(), **{name: t.numpy() for name, t in past.items()}}
    if valid is not None:
        feed["valid"] = valid.numpy()
    logits, *present = (torch.from_numpy(t) for t in session.run(None, feed))
    return logits, dict(zip(graph.names("past"), present, strict=True))


def padding(batch: int, length: int) -> Tensor:
    """Row 0 padded on the left, row 1 on the right, where there is room; the others are full."""
    valid = torch.ones(batch, length, dtype=torch.bool)
    padded = min(2, length - 1)
    if padded:
        valid[0, :padded] = False
        valid[1:2, -padded:] = False
    return valid


def _compare_steps(graph: Graph, session: Any, comparison: Comparison) -> None:
    """Add to ``comparison`` a prompt, then greedy tokens one by one, then two at once: each as the
    model has it without any cache. In its report they are one line."""
    batch, room = 3, graph.gpt.config.context_length
    prompt = min(5, max(1, room // 2))
    valid = torch.ones(batch, room, dtype=torch.bool) if graph.with_valid else None
    if valid is not None:
        valid[0, : min(2, prompt - 1)] = False
    so_far = ids = draw(graph.gpt, batch, prompt)
    past = graph.empty(batch)
    steps = max(0, min(STEPS, room - prompt - 2))
    for step in range(steps + 1):
        mask = None if valid is None else valid[:, : so_far.shape[1]]
        theirs, past = _run(graph, session, ids, mask, past)
        ours = logits(graph.gpt, so_far, mask)[:, -ids.shape[1] :]
        comparison.add(f"cached step {step}", theirs, ours)
        ids = ours[:, -1:].argmax(-1)
        if step == steps - 1:  # the last call gets two, the same token twice
            ids = ids.repeat(1, 2)
        so_far = torch.cat((so_far, ids), 1)
    # One entry in the report for all steps, in place of one for each.
    comparison.inputs = [name for name in comparison.inputs if not name.startswith("cached")]
    comparison.inputs.append(f"{steps} greedy steps of 3 rows with the cache")
