"""Arguments of forward that change nothing, an encoder's output among them."""

import re
from typing import Any

import torch
from torch import Tensor

from addnorm.anatomy.influence import Influence, optional_arguments
from addnorm.anatomy.inputs import Inputs
from addnorm.anatomy.outputs import largest
from addnorm.anatomy.signature import signature
from addnorm.linting.check import Answers, on_influence
from addnorm.linting.findings import Finding
from addnorm.linting.rule import Case, Rule
from addnorm.linting.rules.paddings import is_conditional, paddings
from addnorm.linting.subject import Subject

# --- the words ------------------------------------------------------------------------------------

FAMILY = "Who sees whom"
_NO_EFFECT = "the argument {argument!r} has no effect: {given}"
_BELIEVED = " in the output. Whoever passes it believes that it does something."
_USE = (
    "Use {argument!r} in forward (is it passed on to every layer?), or take it out of the "
    "signature."
)

IGNORED = Rule(
    "ignored-argument",
    "an argument of forward that changes nothing",
    family=FAMILY,
    evidence={
        "argument": "the name of the argument",
        "given": "what it was given",
        "noise_floor": "how much the output moves where nothing was changed",
        "change": "how much it moved, beyond that",
    },
    cases={
        "mask": Case("error", f"{_NO_EFFECT} hides nothing{_BELIEVED}", _USE),
        "values": Case("warning", f"{_NO_EFFECT} changes nothing{_BELIEVED}", _USE),
        "switch": Case("note", f"{_NO_EFFECT} changes nothing{_BELIEVED}", _USE),
    },
)

MEMORY = Rule(
    "ignores-memory",
    "a decoder that does not read its encoder",
    family=FAMILY,
    evidence={
        "argument": "the input of the encoder, or its output",
        "change_in_output": "of the decoder, when that is changed",
        "noise_floor": "how much it moves where nothing was changed",
    },
    cases={
        "not read": Case(
            "error",
            "the decoder's output does not depend on {argument!r}: whatever the encoder reads, the "
            "decoder says the same.",
            "Take keys and values of the cross-attention from the encoder's output, add its result "
            "to the stream, and check what masks hide there.",
        ),
    },
)

# --- the arguments --------------------------------------------------------------------------------

FORMAT = re.compile(
    r"return|output|cache|past|label|loss|target|interpolate|is_causal$|verbose|debug|checkpoint|"
    r"dict$|log|store|need_weights|average_attn|cross_attn_head|training|deterministic|seq_len"
)
"""Switches of the output's form, of speed or of training: no effect on the numbers is no fault."""


@on_influence(IGNORED, MEMORY)
def arguments(s: Influence, _: Subject) -> Answers:
    """Findings of arguments that change nothing when they are given other values: a memory that is
    not read, and all others."""
    if s.arguments.memory is not None and s.memory_moves <= s.floor:
        yield MEMORY(
            "not read",
            "",
            argument=s.name(s.arguments.memory),
            change_in_output=s.memory_moves,
            noise_floor=s.floor,
        )
    for mask in paddings(s):
        if not mask.works:
            yield _ignored(s, "mask", mask.name, "a mask that hides places")
    yield from _other_inputs(s)
    yield from _square_masks(s)
    yield from _token_types(s)
    yield from _switches(s)


def _other_inputs(s: Influence) -> Answers:
    """Findings of arguments of the call, but for main input, memory and masks, of which other
    values change nothing."""
    r = s.arguments
    others = {r.main, r.memory, *(m.name for m in r.masks)}
    for name, value in s.inputs.tensors().items():
        if name in others or FORMAT.search(s.name(name)) or not value.dim():
            continue
        if _changes_nothing(s, s.inputs.replaced(name, _other_value(value))):
            yield _ignored(s, "values", s.name(name), "other values")


def _square_masks(s: Influence) -> Answers:
    """Findings of masks of pairs of places, where the output stays the same when the first key's
    entries are turned round."""
    for role in s.arguments.masks:
        if not role.square:
            continue
        value = s.inputs.tensors()[role.name]
        if value.is_floating_point():
            continue
        try:
            less = value.clone()
            less[..., 0] = 1 - less[..., 0].long()
            new = s.run(s.inputs.replaced(role.name, less.to(value.dtype)))
        except Exception:
            continue
        if largest(new - s.base) <= s.floor and bool(new.isfinite().all()):
            yield _ignored(s, "mask", s.name(role.name), "a mask that hides places")


def _token_types(s: Influence) -> Answers:
    """Findings of optional token types or segments, where ones instead of zeros change nothing."""
    main = s.inputs.tensors()[s.arguments.main]
    if main.dim() != 2 or s.arguments.kind != "ids":
        return
    for name in optional_arguments(s, re.compile(r"token_type|segment")):
        try:
            zeros = s.run(_with(s, name, torch.zeros_like(main)))
            ones = s.run(_with(s, name, torch.ones_like(main)))
        except Exception:  # one type only
            continue
        if _alike(s, zeros, ones):
            yield _ignored(s, "values", name, "ones instead of zeros")


def _switches(s: Influence) -> Answers:
    """Findings of booleans with a default, not given and no ``FORMAT``, of which the opposite
    changes nothing."""
    for name, parameter in signature(s.model).items():
        if type(parameter.default) is not bool or FORMAT.search(name):
            continue
        if name in s.names.values() or name in (s.inputs.kwargs or {}) or is_conditional(s, name):
            continue
        if _changes_nothing(s, _with(s, name, not parameter.default)):
            yield _ignored(s, "switch", name, f"{not parameter.default}")


def _with(s: Influence, name: str, value: Any) -> Inputs:
    """The call with one argument more."""
    return Inputs(s.inputs.args, {**(s.inputs.kwargs or {}), name: value})


def _changes_nothing(s: Influence, call: Inputs) -> bool:
    """Whether a call runs, and its output is that of the plain call up to ``s.floor``: ten times
    what two plain calls differ by, and no less than rounding."""
    try:
        new = s.run(call)
    except Exception:
        return False
    return _alike(s, new, s.base)


def _alike(s: Influence, a: Tensor, b: Tensor) -> bool:
    """Whether two outputs differ by no more than ``s.floor``, and are finite at the same places."""
    if a.shape != b.shape or not torch.equal(a.isfinite(), b.isfinite()):
        return False
    return largest(a - b) <= s.floor


def _other_value(value: Tensor) -> Tensor:
    """Other values of the same kind; ids stay ids that the table has."""
    if value.dtype is torch.bool:
        return ~value
    return value.flip(-1) + 1.0 if value.is_floating_point() else value.flip(-1)


def _ignored(s: Influence, case: str, name: str, value: str) -> Finding:
    """The finding of an argument by its author's ``name``; ``value`` says in words what it was
    given."""
    return IGNORED(case, "", argument=name, given=value, noise_floor=s.floor, change=0.0)
