"""Whether anything tells the model where its tokens stand."""

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from addnorm.anatomy.arguments import with_constant
from addnorm.anatomy.influence import Influence, argument_values
from addnorm.anatomy.module_influence import ModuleInfluence, axes_of
from addnorm.anatomy.outputs import as_tuple, largest
from addnorm.anatomy.structure import PRODUCTS
from addnorm.linting.check import Answers, on_influence
from addnorm.linting.findings import Finding
from addnorm.linting.rule import Case, Rule
from addnorm.linting.subject import Subject
from addnorm.temporary import hooked

# --- the words ------------------------------------------------------------------------------------

_NOTHING = "nothing tells the model where the tokens of {argument!r} stand: "
_PERMUTED = (
    _NOTHING + "permuted tokens give the same outputs, permuted: the order of words, patches or "
    "frames means nothing."
)
_ONE_WAY = (
    _NOTHING + "the same token looks the same at every position, and the first attention's output "
    "at the last position is the same in whatever order the earlier ones stand. A causal mask "
    "conveys order to deeper layers only, and indirectly."
)
_BARE = " With bare layers, positions are up to the caller."
_ADD = (
    "Add positions: learned or sinusoidal ones to the embeddings, or rotary or relative ones in "
    "attention."
)
_BEFORE = " Add them before you call it."

BLIND = Rule(
    "position-blind",
    "nothing tells the model where its tokens stand",
    family="Who sees whom",
    evidence={
        "argument": "the input whose tokens they are",
        "positions": "how many it has",
        "equal_tokens_differ_by_position": "whether any module tells them apart",
        "difference_after_permutation": "of the outputs, permuted as the inputs were",
        "change_at_last_position": "of the first attention, when the positions before are permuted",
    },
    cases={
        "permuted": Case("error", _PERMUTED, _ADD),
        "by the mask only": Case("warning", _ONE_WAY, _ADD),
        "of vectors": Case("note", _PERMUTED + _BARE, _ADD + _BEFORE),
        "of vectors, by the mask only": Case("note", _ONE_WAY + _BARE, _ADD + _BEFORE),
    },
)

# --- positions ------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _Side:
    """An argument of which positions may be told."""

    name: str
    value: Tensor
    axis: int
    """That of its positions, if it has any."""
    sequence: bool
    """It comes as a sequence of ids or of vectors, and is not cut into one inside."""
    features: bool
    """It comes as vectors: whoever makes them gives them positions."""
    places: int | None
    """How many positions; None: unknown."""


@on_influence(BLIND)
def positions(s: Influence, _: Subject) -> Answers:
    """Findings of inputs whose order means nothing, main input and memory, where equal tokens come
    out alike; Unknown where nothing shows it."""
    r = s.arguments
    names = [r.main]
    if r.memory is not None and s.memory_moves > s.floor:
        names.append(r.memory)  # the order of what is not read is nobody's
    if r.positions is not None:
        names.remove(r.main)
    for name in names:
        yield from _side_positions(s, _side(s, name))


def _side(s: Influence, name: str) -> _Side:
    """An argument as ``_Side``; vectors beside token ids that a convolution reads are no sequence,
    but cut into frames inside."""
    rows = s.arguments.rows
    value = s.inputs.tensors()[name]
    axis = 1 if s.arguments.batch == 0 else 0
    vectors = name not in rows and value.is_floating_point() and value.dim() == 3
    frames = _frames(s, name) if vectors and rows else 0
    sequence = name in rows or (vectors and not frames)
    places = value.shape[axis] if sequence else frames or None
    return _Side(name, value, axis, sequence, vectors and not frames, places)


def _side_positions(s: Influence, side: _Side) -> Answers:
    """The finding of one argument whose order means nothing, if nothing speaks against it: equal
    tokens that come out different, outputs that follow the order, modules that do."""
    varied, observed = _varied(s, side.name, side.places)
    if varied:
        return
    mixers = [m for m in s.mixers if side.places in (None, m.places)]
    permuted = _permuted(s, side)
    everywhere = permuted is not None and permuted <= max(s.floor, _rounding(s))
    if not everywhere:
        if not mixers or any(m.order_matters is None for m in mixers):
            if not observed and (permuted is None or _one_way(s)):
                yield BLIND.unknown(
                    "no module was found in which positions see one another, so that it could not "
                    "be measured whether their order matters"
                )
            return
        if _order_matters(s, side):
            return
        if not _one_way(s) and permuted is not None:
            return  # the order shows in the output, wherever it comes in
    yield _blind(s, side, mixers[0] if mixers else None, permuted)


def _permuted(s: Influence, side: _Side) -> float | None:
    """How far the output is from its own permutation when all positions but the last are turned
    round; for a side that is not the main one, from what it was. None: it was not measured."""
    r = s.arguments
    if not side.sequence or side.places is None or side.places <= 2:
        return None
    turned = torch.tensor([*reversed(range(side.places - 1)), side.places - 1])
    new = s.run(s.inputs.replaced(side.name, side.value.index_select(side.axis, turned)))
    if side.name != r.main or r.out_time is None:
        return largest(new - s.base)
    if s.matrix is None:
        return None
    return largest(new - s.base.index_select(r.out_time, turned))


def _order_matters(s: Influence, side: _Side) -> bool:
    """Whether the order of positions matters to some module in which they see one another."""
    limit = 1e-12 if s.exact else 1e-4  # of sums in another order
    mixers = [m for m in s.module_influences if m.mixes and side.places in (None, m.places)]
    return any((m.order_matters or 0.0) > limit for m in mixers)


def _blind(
    s: Influence, side: _Side, first: ModuleInfluence | None, permuted: float | None
) -> Finding:
    """The finding of one argument, ``side``; ``first`` is the first module in which positions see
    one another, ``permuted`` as ``_permuted`` has it."""
    by_mask = _one_way(s) and side.name == s.arguments.main
    if side.features:
        case = "of vectors, by the mask only" if by_mask else "of vectors"
    else:
        case = "by the mask only" if by_mask else "permuted"
    evidence: dict[str, Any] = {
        "argument": s.name(side.name),
        "positions": side.places or (first.places if first else 0),
        "equal_tokens_differ_by_position": False,
    }
    if permuted is not None:
        evidence["difference_after_permutation"] = permuted
    if first is not None and first.order_matters is not None:
        evidence["change_at_last_position"] = first.order_matters
    return BLIND(case, first.path if first else "", **evidence)


def _frames(s: Influence, side: str) -> int:
    """How many frames convolutions over several places make of an argument, before any other
    product; 0: there are none."""
    todo = argument_values(s, side)
    reached = set(todo)
    frames = 0
    while todo:
        for op in todo.pop().readers:
            if op.name in PRODUCTS:
                kernels = [v for v in op.inputs if v.name and len(v.shape) > 2]
                if not any(max(k.shape[2:]) > 1 for k in kernels):
                    continue
                frames = math.prod(op.outputs[0].shape[2:])
            for v in op.outputs:
                if v not in reached:
                    reached.add(v)
                    todo.append(v)
    return frames


def _rounding(s: Influence) -> float:
    """Sums over places in another order: their number times the rounding of what is summed.

    Parts of a model may compute in float32 in a float64 copy; their rounding, 6e-8 relative, goes
    through a few dozen sums. A position code is never that small.
    """
    return 1e-5 * (largest(s.base) + 1e-30)


def _one_way(s: Influence) -> bool:
    """Whether no position sees what comes after it, as under a causal mask."""
    if s.matrix is not None:
        return not bool((s.matrix.tril(-1) > s.floor).any())
    return bool(s.mixers) and not any(m.before for m in s.mixers)


def _varied(s: Influence, side: str, places: int | None) -> tuple[bool, bool]:
    """(some module holds different vectors where all tokens are equal, some module holds vectors
    of as many places); (False, False) where the model does not run on equal tokens."""
    verdicts: list[bool] = []
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
            verdicts.append(bool((different > rows.shape[0] // 2).float().mean() > 0.6))

    inner = [module for path, module in s.model.named_modules() if path]
    try:
        same = s.inputs
        for name in {side, s.arguments.main}:
            same = with_constant(same, name)
        with hooked(inner, after=look):
            s.run(same)
    except Exception:
        return False, False
    return any(verdicts), bool(verdicts)
