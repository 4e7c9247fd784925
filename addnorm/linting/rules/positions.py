"""Whether anything tells the model where its tokens stand."""

import math
from typing import Any

import torch
from torch import nn

from addnorm.anatomy.arguments import constant
from addnorm.anatomy.influence import (
    Influence,
    argument_values,
)
from addnorm.anatomy.module_influence import axes_of
from addnorm.anatomy.outputs import as_tuple, largest
from addnorm.anatomy.structure import PRODUCTS
from addnorm.linting.check import Check, Said, on_influence
from addnorm.linting.report import Finding, Severity, Unknown
from addnorm.linting.subject import Subject
from addnorm.temporary import hooked


@on_influence("position-blind")
def _positions(s: Influence, _: Subject) -> Said:
    r = s.arguments
    sides = [r.main]
    if r.memory is not None and s.memory_moves > s.floor:
        sides.append(r.memory)  # the order of what is not read is nobody's
    if r.positions is not None:
        sides.remove(r.main)
    for side in sides:
        yield from _side_positions(s, side)


def _side_positions(s: Influence, side: str) -> Said:
    r = s.arguments
    value = s.inputs.tensors()[side]
    axis = 1 if r.batch == 0 else 0
    vectors = side not in r.rows and value.is_floating_point() and value.dim() == 3
    frames = _frames(s, side) if vectors and r.rows else 0
    sequence = side in r.rows or (vectors and not frames)
    places = value.shape[axis] if sequence else frames or None
    varied, seen = _varied(s, side, places)
    if varied:
        return
    mixers = [m for m in s.mixers if places is None or m.places == places]
    permuted: float | None = None
    if sequence and places is not None and places > 2:
        turned = torch.tensor([*reversed(range(places - 1)), places - 1])
        new = s.run(s.inputs.replaced(side, value.index_select(axis, turned)))
        if side != r.main or r.out_time is None:
            permuted = largest(new - s.base)
        elif s.matrix is not None:
            permuted = largest(new - s.base.index_select(r.out_time, turned))
    blind_all = permuted is not None and permuted <= max(s.floor, _rounding(s))
    if not blind_all:
        if any(m.order_matters is None for m in mixers) or not mixers:
            if seen or (permuted is not None and not _one_way(s)):
                return
            yield Unknown(
                rule="position-blind",
                module="",
                why="no module was found in which positions see one another, so that it could not "
                "be measured whether their order matters",
            )
            return
        limit = 1e-12 if s.exact else 1e-4  # of sums in another order
        here = [m for m in s.module_influences if m.mixes and places in (None, m.places)]
        if any((m.order_matters or 0.0) > limit for m in here):
            return
        if not _one_way(s) and permuted is not None:
            return  # the order shows in the output, wherever it comes in
    features = vectors and not frames  # whoever makes the vectors gives them positions
    one_way = _one_way(s)
    severity: Severity = "error"
    if features:
        severity = "note"
    elif one_way and side == r.main:
        severity = "warning"
    first = mixers[0] if mixers else None
    evidence: dict[str, Any] = {
        "argument": s.name(side),
        "positions": places or (first.places if first else 0),
        "equal_tokens_differ_by_position": False,
    }
    if permuted is not None:
        evidence["difference_after_permutation"] = permuted
    if first is not None and first.order_matters is not None:
        evidence["change_at_last_position"] = first.order_matters
    what = (
        "the same token looks the same at every position, and the first attention's output at the "
        "last position is the same in whatever order the earlier ones stand. A causal mask conveys "
        "order to deeper layers only, and indirectly"
        if one_way and side == r.main
        else "permuted tokens give the same outputs, permuted: the order of words, patches or "
        "frames means nothing"
    )
    yield Finding(
        rule="position-blind",
        severity=severity,
        module=first.path if first else "",
        evidence=evidence,
        message=f"nothing tells the model where the tokens of {s.name(side)!r} stand: {what}."
        + (" With bare layers, positions are up to the caller." if features else ""),
        remedy="Add positions: learned or sinusoidal ones to the embeddings, or rotary or relative "
        "ones in attention." + (" Add them before you call it." if features else ""),
    )


def _frames(s: Influence, side: str) -> int:
    """How many frames convolutions over several places make of an argument, before any other
    product; 0: there are none."""
    todo = argument_values(s, side)
    seen = set(todo)
    frames = 0
    while todo:
        for op in todo.pop().readers:
            if op.name in PRODUCTS:
                kernels = [v for v in op.inputs if v.name and len(v.shape) > 2]
                if not any(max(k.shape[2:]) > 1 for k in kernels):
                    continue
                frames = math.prod(op.outputs[0].shape[2:])
            for v in op.outputs:
                if v not in seen:
                    seen.add(v)
                    todo.append(v)
    return frames


def _rounding(s: Influence) -> float:
    """Sums over places in another order: their number times the rounding of what is summed.

    Parts of a model may compute in float32 in a float64 copy; their rounding, 6e-8 relative, goes
    through a few dozen sums. A position code is never that small.
    """
    return 1e-5 * (largest(s.base) + 1e-30)


def _one_way(s: Influence) -> bool:
    if s.matrix is not None:
        return not bool((s.matrix.tril(-1) > s.floor).any())
    return bool(s.mixers) and not any(m.before for m in s.mixers)


def _varied(s: Influence, side: str, places: int | None) -> tuple[bool, bool]:
    """(some module holds different vectors where all tokens are equal, one was seen)."""
    found: list[bool] = []
    samples = s.samples

    def look(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        for leaf in torch.utils._pytree.tree_leaves((args, kwargs, as_tuple(out))):
            axes = axes_of(leaf, samples, None if places is None else [places])
            if axes is None:
                continue
            rows = leaf.movedim(axes, (0, 1))[0]  # (places, features)
            scale = largest(rows) + 1e-30
            different = (torch.cdist(rows.double(), rows.double()) > 1e-6 * scale).sum(1)
            # a class token differs from the others; positions make each differ from most
            found.append(bool((different > rows.shape[0] // 2).float().mean() > 0.6))

    inner = [module for path, module in s.model.named_modules() if path]
    try:
        same = s.inputs
        for name in {side, s.arguments.main}:
            same = constant(same, name)
        with hooked(inner, after=look):
            s.run(same)
    except Exception:
        return False, False
    return any(found), bool(found)


CHECKS: tuple[Check, ...] = (_positions,)
