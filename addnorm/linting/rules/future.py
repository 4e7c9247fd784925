"""What sees what comes after it, in a model that is causal or says that it is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from addnorm.anatomy.influence import Influence, optional_arguments
from addnorm.anatomy.inputs import Inputs
from addnorm.anatomy.masks import MaskReading, as_mask
from addnorm.anatomy.module_influence import ModuleInfluence
from addnorm.anatomy.structure import factors, within
from addnorm.linting.check import Answers, on_influence
from addnorm.linting.findings import Finding
from addnorm.linting.rule import Case, Rule
from addnorm.linting.subject import Subject
from addnorm.words import a_few, plural

# --- the words ------------------------------------------------------------------------------------

_EVIDENCE = {
    "share_of_earlier_positions_that_move": "of the outputs before a changed token, how many move",
    "positions_reached_back": "how far before it one still moves",
    "largest_change_before_over_at_token": "the largest of their changes over the largest at all",
    "noise_floor": "how much an output moves where nothing was changed",
    "modules_that_see_all": "how many modules let every position see every other",
    "modules_that_see_some_future": "how many let some see some of what comes later",
    "modules_that_see_the_past_only": "how many are as they should be",
    "attentions": "how many there are",
    "attentions_that_look_ahead": "how many of them have weights for later keys",
    "modules": "the first of those in which it happens",
}

LEAK = Rule(
    "future-leak",
    "a causal model in which something sees what comes later",
    family="Who sees whom",
    evidence=_EVIDENCE
    | {"module_reaches_ahead": "how many positions ahead such a module looks at most"},
    cases={
        "ahead": Case(
            "error",
            "{claim}, but a position's output changes with tokens that come after it{far}. {where} "
            "In training it peeks at the answer; in generation there is none to peek at.",
            "Mask what comes after: tril (diagonal 0) on attention scores; pad convolutions, "
            "shifts and pooling on the left only; no mean, max or norm over positions.",
        ),
        "upside down": Case(
            "error",
            "{claim}, but positions see only what comes after them: the mask is upside down. "
            "{where} In training it peeks at the answer; in generation there is none to peek at.",
            "Mask what comes after: tril (diagonal 0) on attention scores; pad convolutions, "
            "shifts and pooling on the left only; no mean, max or norm over positions.",
        ),
    },
)

NO_MASK = Rule(
    "no-causal-mask",
    "a causal model without any causal mask",
    family="Who sees whom",
    evidence=_EVIDENCE
    | {"leaks_with_mask_given": "whether something still leaks if the caller passes a mask"},
    cases={
        "up to the caller": Case(
            "note",
            "{claim}, and without a mask every position sees every other; with a causal {mask} it "
            "does not. So every caller has to pass the mask.",
            "Pass {mask} in training and in generation, or build it in forward.",
        ),
        "none": Case(
            "error",
            "{claim}, but every position sees every other{where}. Trained to predict the next "
            "token it copies the answer: the loss falls to nearly nothing, and what it generates "
            "is worthless.",
            "Mask attention so that position t sees positions up to t: "
            "scaled_dot_product_attention(..., is_causal=True), or fill scores above the diagonal "
            "with -inf before the softmax.",
        ),
    },
)

# --- the future -----------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _Leaks:
    """How far it is seen what comes later, and by which modules."""

    share: float
    """Of earlier positions that move."""
    reach: int
    """The furthest of them, in positions before the change."""
    size: float
    """The largest change among them over the largest of all."""
    past: bool
    """Something sees what comes before it, as it should."""
    full: list[ModuleInfluence]
    """Modules in which every position sees every other."""
    partial: list[ModuleInfluence]
    """Those in which some positions see some of what comes later."""
    causal: list[ModuleInfluence]
    """Those that look at the past only."""

    @property
    def upside_down(self) -> bool:
        return not self.past and (self.share == 1.0 or bool(self.partial))


@on_influence(LEAK, NO_MASK)
def future(s: Influence, subject: Subject) -> Answers:
    """One finding at most, if something moves before a token that is changed in a model that is
    causal, by the user's word, its own or its modules'; Unknown where the user says so and it
    cannot be seen."""
    if subject.causal is False:
        return
    frames = s.arguments.kind in ("image", "wave")
    inside = [m for m in s.mixers if m.places == s.places or frames]
    if s.matrix is None and not inside:
        if subject.causal:
            why = (
                "the output has no axis of positions, and no module inside was found in which "
                "positions see one another"
            )
            yield from (rule.unknown(why) for rule in (LEAK, NO_MASK))
        return
    leaks = _leaks(s, inside)
    if leaks is None:
        return
    unmasked = _unmasked(s, leaks)
    claim = _model_claim(s) or _module_claim(s, [*leaks.full, *leaks.partial])
    if subject.causal:
        claim = "you said that the model is causal (causal=True)"
    elif claim is None:
        if unmasked or not _looks_causal(leaks):
            return
        claim = "most of it looks at the past only"
    yield _no_mask(s, leaks, claim, unmasked) if unmasked else _leak(s, leaks, claim)


def _leaks(s: Influence, inside: Sequence[ModuleInfluence]) -> _Leaks | None:
    """What is seen of the future at the output or, if that has no positions, in the modules
    ``inside`` that mix positions; None: nothing."""
    if s.matrix is not None:
        moves = s.matrix > s.floor
        pairs = [(t, u) for t in range(s.places) for u in range(t) if bool(moves[t].any())]
        leaking = [(t, u) for t, u in pairs if moves[t, u]]
        if not leaking:
            return None
        past = bool(moves.triu(1).any())
        reach = max(t - u for t, u in leaking)
        share = len(leaking) / len(pairs)
        size = float(s.matrix.tril(-1).max() / s.matrix.max().clamp(min=1e-30))
    else:
        modules = [m for m in inside if m.before]
        if not modules:
            return None
        past = any(m.after for m in inside)
        reach = max(m.place - min(m.before) for m in modules)
        share = max(len(m.before) / m.place for m in modules)
        size = max(m.largest for m in modules)
    return _Leaks(
        share,
        reach,
        size,
        past,
        full=[m for m in inside if m.full and m.after and not m.uneven],
        partial=[m for m in inside if m.before and (m.uneven or not (m.full and m.after))],
        causal=[m for m in inside if m.after and not m.before],
    )


def _unmasked(s: Influence, leaks: _Leaks) -> list[str]:
    """The paths of what has no mask, if nothing has one; otherwise none.

    Only an attention can lack a mask. One that is no softmax over places (a linear one) is not
    recorded as weights, but as a module that multiplies what it computed.
    """
    attentions = s.attention_reaches
    # nearly all pairs, since a few weights may round to zero
    without = [e.path for e in attentions if min(e.ahead, e.behind) > 0.9 and not e.flat]
    if attentions:
        return without if len(without) == len(attentions) and leaks.share > 0.9 else []
    if leaks.causal or leaks.partial:
        return []
    return [m.path for m in leaks.full if _multiplies(s, m.path)]


def _looks_causal(leaks: _Leaks) -> bool:
    """Whether a model that claims nothing is causal but for some leak, going by its modules."""
    if leaks.upside_down:
        return True
    lopsided = [
        m for m in leaks.partial if m.uneven or (len(m.after) > len(m.before) and not m.full)
    ]
    if not leaks.causal and not lopsided:
        return False  # windows that look both ways
    if len(leaks.causal) >= len(leaks.full) + len(leaks.partial):
        return True
    return bool(lopsided) and not leaks.full


def _evidence(s: Influence, leaks: _Leaks) -> dict[str, Any]:
    """The evidence that both rules declare, but for the modules."""
    evidence: dict[str, Any] = {
        "share_of_earlier_positions_that_move": round(leaks.share, 4),
        "positions_reached_back": leaks.reach,
        "largest_change_before_over_at_token": leaks.size,
        "noise_floor": s.floor,
        "modules_that_see_all": len(leaks.full),
        "modules_that_see_some_future": len(leaks.partial),
        "modules_that_see_the_past_only": len(leaks.causal),
    }
    attentions = s.attention_reaches
    if attentions:
        evidence["attentions"] = len(attentions)
        evidence["attentions_that_look_ahead"] = sum(e.ahead > 0 for e in attentions)
    return evidence


def _no_mask(s: Influence, leaks: _Leaks, claim: str, unmasked: Sequence[str]) -> Finding:
    """The finding of a model none of whose attentions has a mask: ``unmasked`` are their paths, at
    least one. ``claim`` says why it counts as causal, in words that begin a sentence."""
    evidence = _evidence(s, leaks)
    mask = _with_causal_mask(s)
    if mask is not None:
        words = {"claim": claim, "mask": mask}
        return NO_MASK("up to the caller", "", words=words, **evidence, leaks_with_mask_given=False)
    first = unmasked[0]
    return NO_MASK(
        "none",
        first,
        words={"claim": claim, "where": f", from {first!r} on" if first else ""},
        **evidence,
        modules=[path or "(the model)" for path in unmasked[:6]],
    )


def _leak(s: Influence, leaks: _Leaks, claim: str) -> Finding:
    """The finding of a model in which only some parts look ahead; ``claim`` as in ``_no_mask``."""
    words = {"claim": claim}
    if leaks.upside_down:
        case, modules = "upside down", leaks.partial
    else:
        case = "ahead"
        modules = sorted([*leaks.partial, *leaks.full], key=lambda m: m.order)
        far = leaks.reach < s.places - 1 or s.matrix is None
        words["far"] = f", up to {leaks.reach} later" if far else ""
    reach = max((m.place - min(m.before) for m in modules), default=leaks.reach)
    if modules:
        listed = a_few(dict.fromkeys(repr(m.path) for m in modules))
        words["where"] = (
            f"It happens in {listed}, which reaches {plural(reach, 'position')} ahead"
            + (f", while {len(leaks.causal)} others look at the past only" * bool(leaks.causal))
            + "."
        )
    else:
        words["where"] = "No module alone does it: it is in the forward of the model itself."
    return LEAK(
        case,
        min(modules, key=lambda m: m.order).path if modules else "",
        words=words,
        **_evidence(s, leaks),
        module_reaches_ahead=reach,
        modules=[m.path for m in modules[:6]] or ["(the model)"],
    )


def _model_claim(s: Influence) -> str | None:
    """What the model says of being causal, in words that begin a sentence; None: nothing."""
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


def _module_claim(s: Influence, inside: Sequence[ModuleInfluence]) -> str | None:
    """What one of these modules, or one around it, says of being causal; None: nothing."""
    modules = dict(s.model.named_modules())
    for one in inside:
        parts = one.path.split(".")
        for depth in range(len(parts), -1, -1):
            path = ".".join(parts[:depth])
            for name in ("causal", "is_causal"):
                if path in modules and getattr(modules[path], name, None) is True:
                    return f"{path or 'the model'} says {name}=True"
    return None


def _multiplies(s: Influence, path: str) -> bool:
    """Whether two activations are multiplied in a module, as queries and keys are."""
    structure = s.specimen.structure
    return any(
        within(op.module, path) and all(v in structure.activations for v in factors(op))
        for op in s.specimen.trace.ops
        if op.name in ("bmm", "baddbmm", "mm")
    )


def _with_causal_mask(s: Influence) -> str | None:
    """The optional argument with which the model becomes causal when it is given a causal mask, as
    it reads one; None: there is none, or the output has no places to see it at."""
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
            call = Inputs(s.inputs.args, {**(s.inputs.kwargs or {}), name: value})
            try:
                base = s.run(call)
                if not bool(base.isfinite().all()):
                    continue
                new = s.run(s.change(s.arguments.main, s.at(0, n - 1), call))
            except Exception:
                continue
            grid = s.grid(new - base)[0]
            if not bool((grid[: n - 1] > s.floor).any()) and bool(grid[n - 1] > s.floor):
                return name
    return None
