"""Rules that change one thing in the input and look who notices: what comes before it, other
samples, other places."""

import math
import re
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from addnorm.anatomy.arguments import constant
from addnorm.anatomy.influence import (
    Influence,
    argument_values,
    optional_arguments,
    output_in_training,
)
from addnorm.anatomy.inputs import Inputs
from addnorm.anatomy.masks import MaskReading, as_mask
from addnorm.anatomy.module_influence import ModuleInfluence, axes_of
from addnorm.anatomy.outputs import as_tuple, largest
from addnorm.anatomy.structure import PRODUCTS, TracedAttention, factors, within
from addnorm.linting.check import Check, Said, on_influence
from addnorm.linting.report import Finding, Severity, Unknown
from addnorm.linting.rules import masks, modes
from addnorm.linting.subject import Subject
from addnorm.temporary import hooked
from addnorm.words import a_few, plural

# --- the future -----------------------------------------------------------------------------------


def _claims(s: Influence) -> str | None:
    """What the model itself says of being causal, if it does."""
    model = s.specimen.model
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) is True and s.arguments.memory is None:
        return None
    if getattr(config, "is_decoder", None) is True:
        return "its config says is_decoder=True"
    kind = type(model).__name__
    if re.search(r"GPT|Causal(?!ity)|Autoregressive|LanguageModel|(?<!Masked)(?<!Span)LM$", kind):
        return f"its class is called {kind}"
    if callable(getattr(model, "generate", None)) and s.arguments.kind == "ids":
        rows = s.arguments.rows.get(s.arguments.main)
        if rows is not None and rows <= s.base.shape[-1] and s.base.dim() == 3:
            return "it has a generate method and a head over the vocabulary"
    return None


def _own_flag(s: Influence, found: Sequence[ModuleInfluence]) -> str | None:
    """A module on the way to one of these that says it is causal."""
    modules = dict(s.model.named_modules())
    for one in found:
        parts = one.path.split(".")
        for depth in range(len(parts), -1, -1):
            path = ".".join(parts[:depth])
            for name in ("causal", "is_causal"):
                if path in modules and getattr(modules[path], name, None) is True:
                    return f"{path or 'the model'} says {name}=True"
    return None


@on_influence("future-leak", "no-causal-mask")
def _future(s: Influence, subject: Subject) -> Said:
    if subject.causal is False:
        return
    sees, own = s.matrix, s.places
    inside = [m for m in s.mixers if m.places == own or s.arguments.kind in ("image", "wave")]
    if sees is None and not inside:
        if subject.causal:
            why = (
                "the output has no axis of positions, and no module inside was found in which "
                "positions see one another"
            )
            for rule in ("future-leak", "no-causal-mask"):
                yield Unknown(rule=rule, module="", why=why)
        return
    if sees is not None:
        moved = sees > s.floor
        pairs = [(t, u) for t in range(own) for u in range(t) if bool(moved[t].any())]
        leaks = [(t, u) for t, u in pairs if moved[t, u]]
        past = bool(moved.triu(1).any())
        if not leaks:
            return
        reach = max(t - u for t, u in leaks)
        share = len(leaks) / len(pairs)
        size = float(sees.tril(-1).max() / sees.max().clamp(min=1e-30))
    else:
        leaking = [m for m in inside if m.before]
        if not leaking:
            return
        past = any(m.after for m in inside)
        reach = max(m.place - min(m.before) for m in leaking)
        share = max(len(m.before) / m.place for m in leaking)
        size = max(m.largest for m in leaking)
    full = [m for m in inside if m.full and m.after and not m.uneven]
    partial = [m for m in inside if m.before and (m.uneven or not (m.full and m.after))]
    causal = [m for m in inside if m.after and not m.before]
    evidence: dict[str, Any] = {
        "share_of_earlier_positions_that_move": round(share, 4),
        "positions_reached_back": reach,
        "largest_change_before_over_at_token": size,
        "noise_floor": s.floor,
        "modules_that_see_all": len(full),
        "modules_that_see_some_future": len(partial),
        "modules_that_see_the_past_only": len(causal),
    }
    attentions = s.attention_reaches
    if attentions:
        evidence |= {
            "attentions": len(attentions),
            "attentions_that_look_ahead": sum(e.ahead > 0 for e in attentions),
        }
    # Only an attention can lack a mask. One that is no softmax over places (a linear one) is not
    # recorded as weights, but as a module that multiplies what it computed.
    open_attentions = [e for e in attentions if min(e.ahead, e.behind) > 0.9 and not e.flat]
    linear = [m.path for m in full if _multiplies(s, m.path)]
    if attentions:
        nothing_masked = len(open_attentions) == len(attentions) and share > 0.9
    else:
        nothing_masked = not causal and not partial and bool(linear)
    upside_down = not past and (share == 1.0 or bool(partial))
    claim = _claims(s) or _own_flag(s, [*full, *partial])
    said = "you said that the model is causal (causal=True)" if subject.causal else claim
    if subject.causal is None:
        lopsided = [m for m in partial if m.uneven or (len(m.after) > len(m.before) and not m.full)]
        if nothing_masked and claim is None:
            return  # an encoder
        if not causal and not lopsided and not upside_down and claim is None:
            return  # windows that look both ways
        few = len(causal) < len(full) + len(partial) and not upside_down
        if claim is None and few and (not lopsided or full):
            return
        said = said or "most of it looks at the past only"
    if nothing_masked:
        blind = [e.path for e in open_attentions] or linear
        masked = _with_causal_mask(s)
        if masked is not None:
            yield Finding(
                rule="no-causal-mask",
                severity="note",
                module="",
                evidence={**evidence, "leaks_with_mask_given": False},
                message=f"{said}, and without a mask every position sees every other; with a "
                f"causal {masked} it does not. So every caller has to pass the mask.",
                remedy=f"Pass {masked} in training and in generation, or build it in forward.",
            )
            return
        yield Finding(
            rule="no-causal-mask",
            severity="error",
            module=blind[0],
            evidence={**evidence, "modules": [path or "(the model)" for path in blind[:6]]},
            message=f"{said}, but every position sees every other"
            + (f", from {blind[0]!r} on" if blind[0] else "")
            + ". Trained to predict the next token it copies the answer: the loss falls to nearly "
            "nothing, and what it generates is worthless.",
            remedy="Mask attention so that position t sees positions up to t: "
            "scaled_dot_product_attention(..., is_causal=True), or fill scores above the diagonal "
            "with -inf before the softmax.",
        )
        return
    if upside_down:
        found = partial
        what = "positions see only what comes after them: the mask is upside down"
    else:
        found = sorted([*partial, *full], key=lambda m: m.order)
        what = "a position's output changes with tokens that come after it" + (
            f", up to {reach} later" if reach < own - 1 or sees is None else ""
        )
    local_reach = max((m.place - min(m.before) for m in found), default=reach)
    first = min(found, key=lambda m: m.order) if found else None
    where = f" It happens in {_listed(found)}" if found else " No module alone does it"
    if found:
        where += f", which reaches {plural(local_reach, 'position')} ahead"
        where += f", while {len(causal)} others look at the past only." if causal else "."
    else:
        where += ": it is in the forward of the model itself."
    yield Finding(
        rule="future-leak",
        severity="error",
        module=first.path if first else "",
        evidence={
            **evidence,
            "module_reaches_ahead": local_reach,
            "modules": [m.path for m in found[:6]] or ["(the model)"],
        },
        message=f"{said}, but {what}.{where} In training it peeks at the answer; in generation "
        "there is none to peek at.",
        remedy="Mask what comes after: tril (diagonal 0) on attention scores; pad convolutions, "
        "shifts and pooling on the left only; no mean, max or norm over positions.",
    )


def _listed(found: Sequence[ModuleInfluence]) -> str:
    return a_few(dict.fromkeys(repr(one.path) for one in found))


def _multiplies(s: Influence, path: str) -> bool:
    """Whether two results are multiplied in it, as queries and keys are."""
    structure = s.specimen.structure
    return any(
        within(op.module, path) and all(v in structure.activations for v in factors(op))
        for op in s.specimen.trace.ops
        if op.name in ("bmm", "baddbmm", "mm")
    )


def _with_causal_mask(s: Influence) -> str | None:
    """The optional argument with which the model becomes causal, if there is one."""
    if s.matrix is None:
        return None
    n = s.places
    for name in optional_arguments(s, re.compile("mask")):
        if "pad" in name or re.search("memory|src_key|encoder", name):
            continue
        past = torch.ones(n, n, dtype=torch.bool).tril()
        floats = s.base.dtype
        readings: tuple[MaskReading, ...] = ("drop", "keep", "additive")
        for reading in readings:
            value = as_mask(past, reading, torch.bool, floats)
            given = Inputs(s.inputs.args, {**(s.inputs.kwargs or {}), name: value})
            try:
                base = s.run(given)
                if not bool(base.isfinite().all()):
                    continue
                new = s.run(s.change(s.arguments.main, s.at(0, n - 1), given))
            except Exception:
                continue
            grid = s.grid(new - base)[0]
            if not bool((grid[: n - 1] > s.floor).any()) and bool(grid[n - 1] > s.floor):
                return name
    return None


# --- other samples --------------------------------------------------------------------------------


@on_influence("batch-leak", "batch-time-swapped")
def _samples(s: Influence, subject: Subject) -> Said:
    if s.samples < 2:
        for rule in ("batch-leak", "batch-time-swapped"):
            yield Unknown(rule=rule, module="", why="the inputs hold one sample only")
        return
    if s.base.shape == (s.samples, s.samples):
        why = "the output compares every sample with every other (contrastive models do)"
        yield Unknown(rule="batch-leak", module="", why=why)
        return
    swapped = yield from _swapped(s, subject)
    if not swapped:
        yield from _over_samples_found(s)
        yield from _leaks(s)
    yield from _memory_samples(s)


def _swapped(s: Influence, subject: Subject) -> Generator[Finding | Unknown, None, bool]:
    r = s.arguments
    if r.time is None:
        return False
    crossing = s.innermost(lambda m: m.other_same and not m.mixes and not m.other_else)
    if r.batch != 0 or not (r.mixed == 0 or (r.out_time is None and crossing and not s.mixers)):
        return False
    sure = r.positions == 1 or r.out_time is None
    first = crossing[0].path if crossing else ""
    severity: Severity = "error" if sure or subject.causal is not None else "warning"
    yield Finding(
        rule="batch-time-swapped",
        severity=severity,
        module=first,
        evidence={
            "samples": s.samples,
            "positions": s.places,
            "same_position_of_other_samples_moves": True,
            "other_positions_of_same_sample_move": False,
            "positions_added_along_axis": -1 if r.positions is None else r.positions,
            "modules": [m.path for m in crossing[:6]] or ["(the model)"],
        },
        message="batch and time are swapped: a token's output does not depend on the other tokens "
        "of its own sample, but on the tokens at the same position of the other samples"
        + (f"; {first!r} mixes along the batch" if first else "")
        + ". It trains on noise, and what it says of a sample depends on its neighbours.",
        remedy="Build the layers with batch_first=True, or transpose to (time, batch, features) "
        "before them and back after them"
        + ("." if sure else ". If you do pass (time, batch), all is well: ignore this rule."),
    )
    return True


def _over_samples_found(s: Influence) -> Said:
    """Some attentions run over the samples, others may not."""
    across = [a for a in _across(s, memory=False) if a.path]
    crossing = [m for m in s.module_influences if m.other_same or m.other_else]
    paths = [a.path for a in across if any(within(a.path, m.path) for m in crossing)]
    if not paths:
        return
    yield Finding(
        rule="batch-time-swapped",
        severity="error",
        module=paths[0],
        evidence={
            "samples": s.samples,
            "attentions": len(s.specimen.structure.attentions),
            "attentions_over_the_batch": len(s.over_samples),
            "modules": list(dict.fromkeys(paths))[:6],
        },
        message=f"batch and time are swapped: the keys of the attention in {paths[0]!r} are the "
        "samples of the batch (with one sample less there is one key less), so that positions of "
        "one sample do not see each other there, and positions of different samples do. What it "
        "says about a sample depends on the others in its batch.",
        remedy="Remove the transpose of batch and time before it, or build it with the "
        "batch_first that its input has.",
    )


def _across(s: Influence, *, memory: bool) -> list[TracedAttention]:
    """Those over the samples, of the encoder (their queries do not come from the main input), or
    the others."""
    own = s.specimen.trace.descendants(*argument_values(s, s.arguments.main))
    return [
        a
        for a in s.over_samples
        if memory == (s.arguments.memory is not None and factors(a.scores)[0] not in own)
    ]


def _memory_samples(s: Influence) -> Said:
    """Whether samples see each other where the encoder's input is read."""
    r = s.arguments
    if r.memory is None or r.out_batch is None or s.base.dim() == 0:
        return
    value = s.inputs.tensors()[r.memory]
    if value.dim() <= r.batch or value.shape[r.batch] != s.samples:
        return
    changed = s.run(s.change(r.memory, tuple([slice(None)] * r.batch + [0])))
    size = largest((changed - s.base).movedim(r.out_batch, 0)[1:])
    if size <= s.floor:
        return
    places = value.shape[1 - r.batch]
    here = [m for m in s.module_influences if m.places == places]
    crossing = [m for m in here if m.other_same and not m.mixes and not m.other_else]
    across = _across(s, memory=True)
    if r.batch == 0 and crossing and (across or not any(m.mixes for m in here)):
        inner = s.innermost(lambda m: m in crossing)
        yield Finding(
            rule="batch-time-swapped",
            severity="error",
            module=inner[0].path,
            evidence={
                "argument": s.name(r.memory),
                "change_in_other_samples": size,
                "noise_floor": s.floor,
                "modules": [m.path for m in inner[:6]],
            },
            message=f"batch and time are swapped where {s.name(r.memory)!r} is read: "
            f"{inner[0].path!r} mixes the same position of different samples, and not the "
            "positions of one.",
            remedy="Build these layers with batch_first=True as well, or transpose before and "
            "after them.",
        )
        return
    found = s.innermost(lambda m: m in here and (m.other_same or m.other_else))
    yield _batch_finding(found, size, s)


def _leaks(s: Influence) -> Said:
    r = s.arguments
    if r.out_batch is None and r.time is not None:
        found = s.innermost(lambda m: m.other_same or m.other_else)
        if found:
            yield _batch_finding(found, 0.0, s)
        elif not s.module_influences:
            yield Unknown(
                rule="batch-leak",
                module="",
                why="the output has no axis of samples, and no module inside could be run alone",
            )
        return
    axis = 0 if r.out_batch is None else r.out_batch
    if s.base.dim() == 0 or s.base.shape[axis] != s.samples:
        yield Unknown(
            rule="batch-leak", module="", why="the output has no axis as long as the batch"
        )
        return
    changed = s.change(r.main, tuple([slice(None)] * r.batch + [0]))

    def others(base: Tensor, new: Tensor) -> float:
        if new.shape != base.shape:
            return 0.0
        return largest((new - base).nan_to_num().abs().movedim(axis, 0)[1:])

    size = others(s.base, s.run(changed))
    if size > s.floor or _across(s, memory=False):  # the output may be read where nothing arrives
        found = s.innermost(lambda m: m.other_same or m.other_else)
        yield _batch_finding(found, size / (largest(s.base) + 1e-30), s)
        return
    try:
        size = others(s.training_base, output_in_training(s.training_copy, changed))
    except Exception as error:  # a model that does not run in training mode has no such mistake
        yield Unknown(
            rule="batch-leak",
            module="",
            why=f"in training mode the model does not run on these inputs: {error}"[:300],
        )
        return
    if size <= 1e3 * s.floor:
        return
    again = output_in_training(s.training_copy, s.inputs)
    floor = max(10 * largest(again - s.training_base), s.floor)
    if size > 1e3 * floor:
        norms = [p for p, m in s.model.named_modules() if isinstance(m, _NormBase)]
        yield Finding(
            rule="batch-leak",
            severity="warning",
            module=norms[0] if norms else "",
            evidence={
                "change_in_other_samples": size,
                "noise_floor": floor,
                "mode": "train",
                "batch_norms": len(norms),
            },
            message="in training mode, and only there, the output of one sample depends on the "
            "others in its batch"
            + (f": {norms[0]!r} takes its statistics over the batch" if norms else "")
            + ". Small or padded batches train another model than the one that is evaluated.",
            remedy="Use a norm over features (LayerNorm, RMSNorm) in the stream.",
        )


def _batch_finding(found: Sequence[ModuleInfluence], size: float, s: Influence) -> Finding:
    first = found[0].path if found else ""
    return Finding(
        rule="batch-leak",
        severity="error",
        module=first,
        evidence={
            "change_in_other_samples": size or max(m.largest for m in found),
            "noise_floor": s.floor,
            "mode": "eval",
            "modules": [m.path for m in found[:6]] or ["(the model)"],
        },
        message="changing one sample changes the output of the others in its batch"
        + (f"; it happens in {_listed(found)}" if found else "")
        + ". Results depend on who else is in the batch, and evaluation is not reproducible.",
        remedy="Normalize, pool and attend within a sample: no mean, norm, softmax or reshape that "
        "runs over the batch axis.",
    )


# --- positions ------------------------------------------------------------------------------------


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


CHECKS: tuple[Check, ...] = (
    _future,
    _samples,
    *masks.CHECKS,
    _positions,
    *modes.CHECKS,
)
