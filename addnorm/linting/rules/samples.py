"""Whether the samples of a batch see each other, and whether batch and time are swapped."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from addnorm.anatomy.influence import Influence, argument_values, output_in_training
from addnorm.anatomy.module_influence import ModuleInfluence
from addnorm.anatomy.outputs import largest
from addnorm.anatomy.structure import TracedAttention, factors, within
from addnorm.linting.check import Answers, on_influence
from addnorm.linting.findings import Finding
from addnorm.linting.rule import Case, Rule
from addnorm.linting.subject import Subject
from addnorm.words import a_few

# --- the words ------------------------------------------------------------------------------------

LEAK = Rule(
    "batch-leak",
    "one sample's output depends on the others in its batch",
    family="Who sees whom",
    evidence={
        "change_in_other_samples": "how much the others move when one sample is changed",
        "noise_floor": "how much they move where nothing was changed",
        "mode": "of the model: eval or train",
        "modules": "the first of those in which it happens",
        "batch_norms": "how many there are",
    },
    cases={
        "in evaluation": Case(
            "error",
            "changing one sample changes the output of the others in its batch{where}. Results "
            "depend on who else is in the batch, and evaluation is not reproducible.",
            "Normalize, pool and attend within a sample: no mean, norm, softmax or reshape that "
            "runs over the batch axis.",
        ),
        "in training": Case(
            "warning",
            "in training mode, and only there, the output of one sample depends on the others in "
            "its batch{where}. Small or padded batches train another model than the one that is "
            "evaluated.",
            "Use a norm over features (LayerNorm, RMSNorm) in the stream.",
        ),
    },
)

_SWAPPED = (
    "batch and time are swapped: a token's output does not depend on the other tokens of its own "
    "sample, but on the tokens at the same position of the other samples{where}. It trains on "
    "noise, and what it says of a sample depends on its neighbours."
)
_TRANSPOSE = (
    "Build the layers with batch_first=True, or transpose to (time, batch, features) before them "
    "and back after them"
)
_UNLESS = f"{_TRANSPOSE}. If you do pass (time, batch), all is well: ignore this rule."

SWAPPED = Rule(
    "batch-time-swapped",
    "attention runs over the batch instead of the text",
    family="Who sees whom",
    evidence={
        "samples": "how many there are",
        "positions": "how many a sample has",
        "same_position_of_other_samples_moves": "when a token is changed",
        "other_positions_of_same_sample_move": "when a token is changed",
        "positions_added_along_axis": "the axis of the argument along which position codes differ; "
        "-1 if that was not seen",
        "modules": "the first of those in which it happens",
        "attentions": "how many there are",
        "attentions_over_the_batch": "how many have the samples as keys",
        "argument": "the input whose samples see each other",
        "change_in_other_samples": "how much the others move when one sample of it is changed",
        "noise_floor": "how much they move where nothing was changed",
    },
    cases={
        "everywhere": Case("error", _SWAPPED, f"{_TRANSPOSE}."),
        "everywhere, of a causal model": Case("error", _SWAPPED, _UNLESS),
        "everywhere, by the inputs": Case("warning", _SWAPPED, _UNLESS),
        "in attention": Case(
            "error",
            "batch and time are swapped: the keys of the attention in {module!r} are the samples "
            "of the batch (with one sample less there is one key less), so that positions of one "
            "sample do not see each other there, and positions of different samples do. What it "
            "says about a sample depends on the others in its batch.",
            "Remove the transpose of batch and time before it, or build it with the batch_first "
            "that its input has.",
        ),
        "in cross-attention": Case(
            "error",
            "batch and time are swapped where {argument!r} is read: {module!r} mixes the same "
            "position of different samples, and not the positions of one.",
            "Build these layers with batch_first=True as well, or transpose before and after them.",
        ),
    },
)

SURELY = 1e3
"""By how many times the noise other samples must move in training mode: statistics of a batch move
them by far more, rounding by less."""

# --- the samples ----------------------------------------------------------------------------------


@on_influence(LEAK, SWAPPED)
def samples(s: Influence, subject: Subject) -> Answers:
    """Findings of samples that notice one another, or see one another in place of their own tokens;
    Unknown where the batch or the output does not let it be seen."""
    if s.samples < 2:
        yield from (rule.unknown("the inputs hold one sample only") for rule in (LEAK, SWAPPED))
        return
    if s.base.shape == (s.samples, s.samples):
        why = "the output compares every sample with every other (contrastive models do)"
        yield LEAK.unknown(why)
        return
    swapped = _swapped(s, subject)
    if swapped is not None:
        yield swapped
    else:
        yield from _attention_over_samples(s)
        yield from _leaks(s)
    yield from _memory_leaks(s)


def _swapped(s: Influence, subject: Subject) -> Finding | None:
    """The finding of a model in which a token sees the other samples, and not the other tokens of
    its own; None: it is not so."""
    r = s.arguments
    if r.time is None or r.batch != 0:
        return None
    crossing = s.innermost(lambda m: m.other_same and not m.mixes and not m.other_else)
    if r.mixed != 0 and not (r.out_time is None and crossing and not s.mixers):
        return None
    case = "everywhere, by the inputs"
    if r.positions == 1 or r.out_time is None:
        case = "everywhere"
    elif subject.causal is not None:
        case = "everywhere, of a causal model"
    first = crossing[0].path if crossing else ""
    return SWAPPED(
        case,
        first,
        words={"where": f"; {first!r} mixes along the batch" if first else ""},
        samples=s.samples,
        positions=s.places,
        same_position_of_other_samples_moves=True,
        other_positions_of_same_sample_move=False,
        positions_added_along_axis=-1 if r.positions is None else r.positions,
        modules=[m.path for m in crossing[:6]] or ["(the model)"],
    )


def _attention_over_samples(s: Influence) -> Answers:
    """One finding of the attentions that run over the samples, where others may not."""
    across = [a for a in _attentions_across(s, memory=False) if a.path]
    crossing = [m for m in s.module_influences if m.other_same or m.other_else]
    paths = [a.path for a in across if any(within(a.path, m.path) for m in crossing)]
    if paths:
        yield SWAPPED(
            "in attention",
            paths[0],
            samples=s.samples,
            attentions=len(s.specimen.structure.attentions),
            attentions_over_the_batch=len(s.over_samples),
            modules=list(dict.fromkeys(paths))[:6],
        )


def _attentions_across(s: Influence, *, memory: bool) -> list[TracedAttention]:
    """The attentions over the samples: with ``memory`` those of the encoder, whose queries do not
    come from the main input, else the others."""
    own = s.specimen.trace.descendants(*argument_values(s, s.arguments.main))
    return [
        a
        for a in s.over_samples
        if memory == (s.arguments.memory is not None and factors(a.scores)[0] not in own)
    ]


def _memory_leaks(s: Influence) -> Answers:
    """The finding of a model whose samples see each other where the encoder's input is read."""
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
    as_long = [m for m in s.module_influences if m.places == places]
    crossing = [m for m in as_long if m.other_same and not m.mixes and not m.other_else]
    across = _attentions_across(s, memory=True)
    if r.batch == 0 and crossing and (across or not any(m.mixes for m in as_long)):
        inner = s.innermost(lambda m: m in crossing)
        yield SWAPPED(
            "in cross-attention",
            inner[0].path,
            argument=s.name(r.memory),
            change_in_other_samples=size,
            noise_floor=s.floor,
            modules=[m.path for m in inner[:6]],
        )
        return
    yield _leak(s, s.innermost(lambda m: m in as_long and (m.other_same or m.other_else)), size)


def _leaks(s: Influence) -> Answers:
    """The finding of a model whose other samples move when all of sample 0 in the main input is
    changed, in evaluation or, if not there, in training; Unknown where that cannot be seen."""
    r = s.arguments
    crossing = s.innermost(lambda m: m.other_same or m.other_else)
    if r.out_batch is None and r.time is not None:
        if crossing:
            yield _leak(s, crossing, 0.0)
        elif not s.module_influences:
            yield LEAK.unknown(
                "the output has no axis of samples, and no module inside could be run alone"
            )
        return
    axis = 0 if r.out_batch is None else r.out_batch
    if s.base.dim() == 0 or s.base.shape[axis] != s.samples:
        yield LEAK.unknown("the output has no axis as long as the batch")
        return
    changed = s.change(r.main, tuple([slice(None)] * r.batch + [0]))
    size = _other_change(s.base, s.run(changed), axis)
    # The output may be read where nothing arrives.
    if size > s.floor or _attentions_across(s, memory=False):
        yield _leak(s, crossing, size / (largest(s.base) + 1e-30))
        return
    try:
        size = _other_change(s.training_base, output_in_training(s.training_copy, changed), axis)
    except Exception as error:  # a model that does not run in training mode has no such mistake
        why = f"in training mode the model does not run on these inputs: {error}"
        yield LEAK.unknown(why[:300])
        return
    yield from _leaks_in_training(s, size)


def _other_change(base: Tensor, new: Tensor, axis: int) -> float:
    """How much the samples after the first, along ``axis``, moved."""
    if new.shape != base.shape:
        return 0.0
    return largest((new - base).nan_to_num().abs().movedim(axis, 0)[1:])


def _leaks_in_training(s: Influence, size: float) -> Answers:
    """A finding if the other samples moved by ``size``, and that is far more than they move from
    one run in training mode to the next without a change."""
    if size <= SURELY * s.floor:
        return
    again = output_in_training(s.training_copy, s.inputs)
    floor = max(10 * largest(again - s.training_base), s.floor)
    if size > SURELY * floor:
        norms = [p for p, m in s.model.named_modules() if isinstance(m, _NormBase)]
        first = norms[0] if norms else ""
        yield LEAK(
            "in training",
            first,
            words={"where": f": {first!r} takes its statistics over the batch" if norms else ""},
            change_in_other_samples=size,
            noise_floor=floor,
            mode="train",
            batch_norms=len(norms),
        )


def _leak(s: Influence, modules: Sequence[ModuleInfluence], size: float) -> Finding:
    """The finding in evaluation, in these modules; ``size`` is the change in the output, 0 where
    only the modules show it."""
    listed = a_few(dict.fromkeys(repr(m.path) for m in modules))
    return LEAK(
        "in evaluation",
        modules[0].path if modules else "",
        words={"where": f"; it happens in {listed}" if modules else ""},
        change_in_other_samples=size or max(m.largest for m in modules),
        noise_floor=s.floor,
        mode="eval",
        modules=[m.path for m in modules[:6]] or ["(the model)"],
    )
