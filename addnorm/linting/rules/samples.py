"""Whether the samples of a batch see each other, and whether batch and time are swapped."""

from collections.abc import Generator, Sequence

from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from addnorm.anatomy.influence import (
    Influence,
    argument_values,
    output_in_training,
)
from addnorm.anatomy.module_influence import ModuleInfluence
from addnorm.anatomy.outputs import largest
from addnorm.anatomy.structure import TracedAttention, factors, within
from addnorm.linting.check import Check, Said, on_influence
from addnorm.linting.report import Finding, Severity, Unknown
from addnorm.linting.subject import Subject
from addnorm.words import a_few


def _listed(found: Sequence[ModuleInfluence]) -> str:
    return a_few(dict.fromkeys(repr(one.path) for one in found))


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


CHECKS: tuple[Check, ...] = (_samples,)
