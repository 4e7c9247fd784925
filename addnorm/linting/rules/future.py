"""What sees what comes after it, in a model that is causal or says that it is."""

import re
from collections.abc import Sequence
from typing import Any

import torch

from addnorm.anatomy.influence import (
    Influence,
    optional_arguments,
)
from addnorm.anatomy.inputs import Inputs
from addnorm.anatomy.masks import MaskReading, as_mask
from addnorm.anatomy.module_influence import ModuleInfluence
from addnorm.anatomy.structure import factors, within
from addnorm.linting.check import Check, Said, on_influence
from addnorm.linting.report import Finding, Unknown
from addnorm.linting.subject import Subject
from addnorm.words import a_few, plural


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


CHECKS: tuple[Check, ...] = (_future,)
