"""One lint of one model: the copy that is probed, the checks, and nothing left behind."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from addnorm.anatomy.inputs import Inputs, inputs_from
from addnorm.anatomy.make_inputs import CannotMakeInputs, make_inputs
from addnorm.anatomy.norms.find import find_norms
from addnorm.anatomy.specimen import Specimen, bare_copy, enliven
from addnorm.errors import Mendable, value_in_short
from addnorm.linting.check import CHECKS, Check, rules_by_name, rules_named
from addnorm.linting.findings import WHOLE, Finding, Ignore, Unknown
from addnorm.linting.ignores import Ignores
from addnorm.linting.places import forward_line
from addnorm.linting.report import Report, gathered
from addnorm.linting.rule import Undeclared
from addnorm.linting.subject import Subject
from addnorm.temporary import isolated
from addnorm.words import error_in_a_line

GUARDS = {"causal": {"future-leak", "no-causal-mask", "batch-leak", "batch-time-swapped"}}
"""What a training script may ask at any step -> the rules of that."""
Progress = Callable[[int, int, str], None]
"""Told (checks done, checks in all, the first rule of the next); "" at the end."""


def lint(
    model: nn.Module,
    inputs: Any = None,
    *,
    causal: bool | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    guard: Literal["causal"] | None = None,
    ignore: Iterable[str | Ignore] = (),
    progress: Progress | None = None,
) -> Report:
    """What is wired wrong in ``model``, with evidence.

    ``inputs`` is a tensor, a tuple of positional arguments or a dict of keyword arguments; made up
    from the model's signature if not given. ``causal`` says whether a position may see what comes
    after it (True: it must not); with None only what the model itself claims is checked.
    ``optimizer`` adds the rules about parameter groups. ``guard="causal"`` asks only the rules by
    which a causal model sees what it must not, other samples and what comes later: for a training
    script, at any step. ``ignore`` has names of rules whose findings are meant, or ``Ignore``s;
    ``report.ignored`` lists what they left out, and comments ``# addnorm: ignore[rule] reason`` in
    the model's code do the same. ``progress`` is told (done, of, rule).

    The model, its mode, hooks and gradients and all random number generators are left as they were:
    a copy is probed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"lint takes a torch.nn.Module, got {type(model).__name__}")
    causal = _checked_guard(guard, causal)
    wishes = [i if isinstance(i, Ignore) else Ignore(rule=i, where="ignore=") for i in ignore]
    rules_named(wish.rule for wish in wishes)
    began = time.perf_counter()
    with isolated():
        subject = _subject(model, inputs, causal, optimizer)
        if isinstance(subject, Unknown):
            return Report(unknown=(subject,), facts=_facts(model, began))
        said: list[Finding | Unknown] = []
        checked: list[str] = []
        checks = _checks(guard, optimizer)
        for i, check in enumerate(checks):
            if progress is not None:
                progress(i, len(checks), check.names[0])
            said.extend(_run(check, subject))
            checked.extend(check.names)
        if progress is not None:
            progress(len(checks), len(checks), "")
        found = {
            "inputs_made_up": inputs is None,
            "residual_connections": len(subject.structure.residuals),
            "attentions": len(subject.structure.attentions),
            "blocks": len(subject.structure.block_paths),
            "norms": len(find_norms(subject.specimen)),
            "operations": len(subject.trace.ops),
            "inputs": {n: list(t.shape) for n, t in subject.inputs.tensors().items()},
        }
    ignores = Ignores(model, wishes)
    rest, exemptions = ignores.sorted_out(_placed(answer, model) for answer in said)
    report = gathered(rest, checked, {**_facts(model, began), **found})
    unused = ignores.unused(checked, rules_by_name())
    return replace(report, ignored=tuple(exemptions), unused_ignores=unused)


def _checked_guard(guard: str | None, causal: bool | None) -> bool | None:
    """Whether the model must be causal, by what the caller says; a ``Mendable`` where a guard is
    none, or both words exclude each other."""
    if guard is None:
        return causal
    if guard not in GUARDS:
        raise Mendable(f"guard must be {' or '.join(GUARDS)}, got {value_in_short(guard)}")
    if causal is False:
        raise Mendable("guard='causal' asks whether a causal model leaks: leave causal=False out")
    return True


def _checks(guard: str | None, optimizer: torch.optim.Optimizer | None) -> list[Check]:
    """The checks that a lint runs."""
    return [
        check
        for check in CHECKS
        if (optimizer is not None or not check.asks_optimizer)
        and (guard is None or GUARDS[guard] & {*check.names})
    ]


def _placed(answer: Finding | Unknown, model: nn.Module) -> Finding | Unknown:
    """A finding with where its module is written."""
    if isinstance(answer, Unknown):
        return answer
    file, line = forward_line(model, answer.module)
    return replace(answer, file=file, line=line)


def _run(check: Check, subject: Subject) -> list[Finding | Unknown]:
    """Run one check; if the model breaks it, the answer is that it could not decide. Somebody
    else's forward may raise anything; nothing is swallowed, since the error is the reason given."""
    try:
        return list(check.run(subject))
    except Undeclared:
        raise  # the check is wrong, not the model
    except Exception as error:
        why = f"the probe failed on this model: {error_in_a_line(error)}"
        return [replace(rule.unknown(why), broke=True) for rule in check.rules]


def _subject(
    model: nn.Module, inputs: Any, causal: bool | None, optimizer: torch.optim.Optimizer | None
) -> Subject | Unknown:
    """A copy to probe with a call that was tried on it; an Unknown of ``WHOLE`` says why there
    is none. The arguments are those of ``lint``."""
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        why = "the model has no values (meta device): build it on the CPU"
        return Unknown(rule=WHOLE, module="", why=why)
    try:
        probed = _copy(model)
    except (RuntimeError, TypeError) as error:
        return Unknown(rule=WHOLE, module="", why=f"the model cannot be copied: {error}")
    try:
        given = make_inputs(probed) if inputs is None else _widened(inputs_from(inputs), model)
        with torch.no_grad():
            given.call(probed)
    except CannotMakeInputs as error:
        return Unknown(rule=WHOLE, module="", why=str(error))
    except Exception as error:
        return Unknown(
            rule=WHOLE,
            module="",
            why=f"the model does not run on the inputs given: {type(error).__name__}: {error}",
        )
    return Subject(model, Specimen(probed, given), causal, optimizer)


HALVES = (torch.float16, torch.bfloat16)  # too coarse to measure in: probed in float32


def _widened(inputs: Inputs, model: nn.Module) -> Inputs:
    """The inputs for the copy of a 16-bit model, which is in float32: their 16-bit tensors too."""
    if not any(p.dtype in HALVES for p in model.parameters()):
        return inputs
    for name, t in inputs.tensors().items():
        if t.dtype in HALVES:
            inputs = inputs.replaced(name, t.float())
    return inputs


def _copy(model: nn.Module) -> nn.Module:
    """In evaluation mode, in at least float32, without the user's hooks, and with parameters that
    are constant by initialization made random, so that no branch is dead by design."""
    probed = bare_copy(model)
    if any(p.dtype in HALVES for p in probed.parameters()):
        probed.float()
    enliven(probed)
    return probed


def _facts(model: nn.Module, began: float) -> dict[str, Any]:
    """What the report says of the model besides findings; ``began`` is by ``perf_counter``."""
    sizes = [p.numel() for p in model.parameters()]
    return {
        "model": type(model).__name__,
        "parameters": int(math.fsum(sizes)),
        "seconds": round(time.perf_counter() - began, 2),
    }
