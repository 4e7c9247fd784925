"""Arguments of forward that change nothing, an encoder's output among them."""

import re

import torch
from torch import Tensor

from addnorm.anatomy.influence import Influence, optional_arguments
from addnorm.anatomy.inputs import Inputs
from addnorm.anatomy.outputs import largest
from addnorm.anatomy.signature import signature
from addnorm.linting.check import Check, Said, on_influence
from addnorm.linting.report import Finding, Severity
from addnorm.linting.rules.paddings import is_conditional, paddings
from addnorm.linting.subject import Subject

FORMAT = re.compile(
    r"return|output|cache|past|label|loss|target|interpolate|is_causal$|verbose|debug|checkpoint|"
    r"dict$|log|store|need_weights|average_attn|cross_attn_head|training|deterministic|seq_len"
)
"""Switches of the output's form, of speed or of training: no effect on the numbers is no fault."""


@on_influence("ignored-argument", "ignores-memory")
def _arguments(s: Influence, _: Subject) -> Said:
    r = s.arguments
    if r.memory is not None and s.memory_moves <= s.floor:
        yield Finding(
            rule="ignores-memory",
            severity="error",
            module="",
            evidence={
                "argument": s.name(r.memory),
                "change_in_output": s.memory_moves,
                "noise_floor": s.floor,
            },
            message=f"the decoder's output does not depend on {s.name(r.memory)!r}: whatever "
            "the encoder reads, the decoder says the same.",
            remedy="Take keys and values of the cross-attention from the encoder's output, "
            "add its result to the stream, and check what masks hide there.",
        )
    for padding in paddings(s):
        if not padding.works:
            yield _ignored(s, padding.said, "error", "a mask that hides places", "hides nothing")
    known = {r.main, r.memory, *(m.name for m in r.masks)}
    for name, value in s.inputs.tensors().items():
        if name in known or FORMAT.search(s.name(name)) or not value.dim():
            continue
        try:
            changed = s.run(s.inputs.replaced(name, _other(value)))
        except Exception:
            continue
        if changed.shape == s.base.shape and largest(changed - s.base) <= s.floor:
            yield _ignored(s, s.name(name), "warning", "other values", "changes nothing")
    for role in r.masks:
        if role.square:
            value = s.inputs.tensors()[role.name]
            if value.dtype is torch.bool or not value.is_floating_point():
                try:
                    less = value.clone()
                    less[..., 0] = 1 - less[..., 0].long()
                    new = s.run(s.inputs.replaced(role.name, less.to(value.dtype)))
                except Exception:
                    continue
                if largest(new - s.base) <= s.floor and bool(new.isfinite().all()):
                    yield _ignored(
                        s, s.name(role.name), "error", "a mask that hides places", "hides nothing"
                    )
    for name in optional_arguments(s, re.compile(r"token_type|segment")):
        main = s.inputs.tensors()[r.main]
        if main.dim() != 2 or r.kind != "ids":
            continue
        pair = [torch.zeros_like(main), torch.ones_like(main)]
        outs = []
        try:
            for value in pair:
                given = Inputs(s.inputs.args, {**(s.inputs.kwargs or {}), name: value})
                outs.append(s.run(given))
        except Exception:  # one type only
            continue
        if largest(outs[0] - outs[1]) <= s.floor:
            yield _ignored(s, name, "warning", "ones instead of zeros", "changes nothing")
    for name, p in signature(s.model).items():
        if type(p.default) is not bool or FORMAT.search(name):
            continue
        if name in s.names.values() or name in (s.inputs.kwargs or {}) or is_conditional(s, name):
            continue
        given = Inputs(s.inputs.args, {**(s.inputs.kwargs or {}), name: not p.default})
        try:
            new = s.run(given)
        except Exception:
            continue
        if new.shape == s.base.shape and largest(new - s.base) <= s.floor:
            yield _ignored(s, name, "note", f"{not p.default}", "changes nothing")


def _other(value: Tensor) -> Tensor:
    if value.dtype is torch.bool:
        return ~value
    return value.flip(-1) + 1.0 if value.is_floating_point() else value.flip(-1)


def _ignored(s: Influence, name: str, severity: Severity, given: str, effect: str) -> Finding:
    return Finding(
        rule="ignored-argument",
        severity=severity,
        module="",
        evidence={"argument": name, "given": given, "noise_floor": s.floor, "change": 0.0},
        message=f"the argument {name!r} has no effect: {given} {effect} in the output. Whoever "
        "passes it believes that it does something.",
        remedy=f"Use {name!r} in forward (is it passed on to every layer?), or take it out of the "
        "signature.",
    )


CHECKS: tuple[Check, ...] = (_arguments,)
