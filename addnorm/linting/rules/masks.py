"""Rules about arguments: masks that do not hide or make NaN, and what is without effect."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from addnorm.anatomy.arguments import MaskArgument, mask_reading
from addnorm.anatomy.influence import Influence, optional_arguments
from addnorm.anatomy.inputs import Inputs, cast_floats
from addnorm.anatomy.masks import as_mask, floats_of, mask_values
from addnorm.anatomy.module_influence import axes_of
from addnorm.anatomy.outputs import first_float, largest, main_output
from addnorm.anatomy.signature import signature
from addnorm.anatomy.specimen import once
from addnorm.linting.check import Check, Said, on_influence
from addnorm.linting.report import Finding, Severity, Unknown
from addnorm.linting.subject import Subject
from addnorm.temporary import hooked, undisturbed

# --- masks ----------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _Padding:
    """A padding mask and the call in which it is given."""

    role: MaskArgument
    inputs: Inputs
    said: str
    """Its name in the signature."""
    works: bool
    """Hiding a place with it has an effect."""

    def hiding(self, s: Influence, *hidden: list[int]) -> Inputs:
        """The call with places of sample 0, and of those after it, hidden."""
        value = self.inputs.tensors()[self.role.name]
        keep = torch.ones(value.shape, dtype=torch.bool)
        for sample, places in enumerate(hidden):
            where: tuple[Any, ...] = (sample, *[slice(None)] * (keep.dim() - 2), places)
            keep[where] = False
        reading = self.role.reading or self.claimed
        mask = as_mask(keep, reading, value.dtype, s.base.dtype)
        if mask.is_floating_point():
            mask = mask.clamp(min=-1e9)  # -inf where nothing is left would be our own NaN
        return self.inputs.replaced(self.role.name, mask)

    @property
    def claimed(self) -> Any:
        """The reading its name suggests."""
        if self.inputs.tensors()[self.role.name].is_floating_point():
            return "additive"
        return "drop" if re.search(r"padding_mask|pad_mask", self.said) else "keep"


_PADDING = re.compile(r"mask|valid|padding|^pad_|^keep$")


_PLAIN = {"attention", "attn", "mask", "key", "padding", "pad", "src", "tgt", "valid", "decoder"}


_NO_PADDING = re.compile(
    r"head|causal|look|bool_masked|mask_time|loss|pixel|token_mask|memory_mask|position|prefix"
)


@once
def _paddings(s: Influence) -> list[_Padding]:
    """The padding masks: those that are given, and optional ones that could be made."""
    found = []
    for role in s.arguments.masks:
        if not role.square:
            works = role.reading is not None or _hides(s, role, s.inputs, s.name(role.name))
            found.append(_Padding(role, s.inputs, s.name(role.name), works))
    sequences = [n for n in (s.arguments.main, s.arguments.memory) if n is not None]
    for name in optional_arguments(s, _PADDING):
        if _NO_PADDING.search(name) or name in ("attn_mask", "tgt_mask") or _conditional(s, name):
            continue
        of = sequences[0]
        if len(sequences) > 1 and (
            re.search(r"src|source|memory|enc|context", name)
            or (name == "attention_mask" and s.name(of).startswith("decoder"))
        ):
            of = sequences[1]
        made = _made_mask(s, name, of)
        if made is not None:
            found.append(made)
    return found


def _conditional(s: Influence, name: str) -> bool:
    """It speaks of another argument that is not given either: ``context_mask`` of ``context``."""
    words = [w for w in name.split("_") if w not in _PLAIN and len(w) > 2]
    return any(
        word in other.split("_") and not _PADDING.search(other)
        for other in optional_arguments(s, re.compile(""))
        for word in words
        if other != name and type(signature(s.model)[other].default) is not bool
    )


def _made_mask(s: Influence, name: str, of: str) -> _Padding | None:
    tensor = s.inputs.tensors()[of]
    if tensor.dim() < 2 or (s.arguments.kind in ("image", "wave") and of == s.arguments.main):
        return None
    if tensor.is_floating_point() and s.arguments.rows:
        return None  # frames beside tokens: what a place is there, the front end decides
    batch, places = s.samples, tensor.shape[1 if s.arguments.batch == 0 else 0]
    ran: _Padding | None = None
    for value in mask_values(batch, places, s.base.dtype):
        other = ~value if value.dtype is torch.bool else 1 - value
        for mask in (value, other):  # a mask of all ones hides all where 1 drops
            given = Inputs(s.inputs.args, {**(s.inputs.kwargs or {}), name: mask})
            try:
                out = s.run(given)
                if out.shape != s.base.shape or not bool(out.isfinite().all()):
                    continue
                with undisturbed(s.model, gradients=False):
                    reading = mask_reading(s.model, given, name, s.arguments.rows)
                role = MaskArgument(name, of, reading, False)
                works = reading is not None or _hides(s, role, given, name)
            except Exception:  # not this kind of mask
                continue
            if works:
                return _Padding(role, given, name, True)
            ran = ran or _Padding(role, given, name, False)
    return ran


def _hides(s: Influence, role: MaskArgument, inputs: Inputs, said: str) -> bool:
    """Whether the mask has any effect."""
    padding = _Padding(role, inputs, said, True)
    last = inputs.tensors()[role.name].shape[-1] - 1
    try:
        one = s.run(padding.hiding(s, [last]))
        two = s.run(padding.hiding(s, [0, last]))
        none = s.run(padding.hiding(s, []))
    except Exception:
        return False
    if not (bool(one.isfinite().all()) and bool(two.isfinite().all())):
        return True
    return max(largest(one - none), largest(two - none)) > s.floor


def _padded_ids(s: Influence, pad: int, *hidden: list[int]) -> Inputs:
    """The call with padding at these places of sample 0, and of those after it."""
    ids = s.inputs.tensors()[s.arguments.main].clone()
    for sample, places in enumerate(hidden):
        ids[s.at(sample, places)] = pad
    return s.inputs.replaced(s.arguments.main, ids)


@once
def _own_masks(s: Influence) -> list[tuple[int, bool, float]]:
    """(pad id, some attention does not see it, change at real places) for padding that the model
    is to find in the ids by itself: there is no mask to give.

    What the padding's embedding holds is changed; where it is hidden nobody notices.
    """
    found: list[tuple[int, bool, float]] = []
    r = s.arguments
    if r.kind == "ids" and r.main in r.rows and s.places > 4 and not _paddings(s):
        for pad in s.pad_ids:
            if pad < r.rows[r.main]:
                found.append(_pad_seen(s, pad))
    return found


def _pad_seen(s: Influence, pad: int) -> tuple[int, bool, float]:
    n = s.places
    hidden = [n - 2, n - 1]
    call = _padded_ids(s, pad, hidden)
    ids = call.tensors()[s.arguments.main]
    paths = {m.path for m in s.mixers}
    mixers = {module: path for path, module in s.model.named_modules() if path in paths}
    embeddings = [module for module in s.model.modules() if isinstance(module, nn.Embedding)]

    def run(noise: float) -> tuple[Tensor, dict[str, Tensor]]:
        taps: dict[str, Tensor] = {}

        def disturb(module: nn.Module, args: Any, kwargs: Any, out: Any) -> Any:
            index = args[0] if args else None
            if isinstance(index, Tensor) and index.shape == ids.shape and torch.equal(index, ids):
                wave = torch.arange(out.shape[-1], device=out.device).to(out).cos()
                return out + noise * (ids == pad)[..., None] * wave
            return None

        def tap(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            leaf = first_float(out)
            if leaf is not None:
                taps.setdefault(mixers[module], leaf)

        with hooked(embeddings, after=disturb), hooked(mixers, after=tap):
            return s.run(call), taps

    (base, before), (new, after) = run(0.0), run(1.0)
    obeys = False
    for path, old in before.items():
        axes = axes_of(old, s.samples, [n])
        if axes is not None and after[path].shape == old.shape:
            real = (after[path] - old).movedim(axes, (0, 1))[0, : n - 2]
            obeys |= largest(real) <= s.floor
    change = new - base
    moved = largest(change) if s.matrix is None else float(s.grid(change)[0][: n - 2].max())
    return pad, obeys, moved


def _silent_padding(s: Influence) -> Said:
    for pad, obeys, moved in _own_masks(s):
        if moved <= s.floor:
            continue
        yield Finding(
            rule="padding-leak",
            severity="error" if obeys else "warning",
            module="",
            evidence={
                "padding_id": pad,
                "change_at_real_positions": moved,
                "noise_floor": s.floor,
                "hidden_from_some_attention": obeys,
            },
            message=f"id {pad} is padding, and the values of its embedding change the output of "
            "real tokens"
            + (
                ": attention does not see it, but some later step (a mean, a maximum, the last "
                "position) does"
                if obeys
                else ": nothing hides it, and forward takes no mask"
            )
            + ". What the model says about a text depends on how far its batch was padded.",
            remedy="Hide padding from every attention, and leave it out of means, maxima and "
            "last-token pooling.",
        )


def _wrong_way(s: Influence, padding: _Padding) -> Finding | None:
    """The mask is read against what was given, or against what its name means everywhere."""
    reading = padding.role.reading
    if reading not in ("keep", "drop"):
        return None
    kept: bool | None = None
    sure = False
    value = s.padded_inputs.tensors().get(padding.role.name)
    if value is not None and not value.is_floating_point():
        lines = value.bool().flatten(1)
        whole = {bool(line[0]) for line in lines if bool((line == line[0]).all())}
        if len(whole) == 1 and bool((lines != lines[:, :1]).any()):
            kept, sure = whole.pop(), True  # the longest sample of a batch has no padding
    if kept is None and padding.said == "attention_mask":
        kept = True
    if kept is None and padding.said.endswith("key_padding_mask"):
        kept = False
    if kept is None or kept == (reading == "keep"):
        return None
    return Finding(
        rule="padding-leak",
        severity="error" if sure else "warning",
        module="",
        evidence={
            "argument": padding.said,
            "value_that_is_kept": int(reading == "keep"),
            "value_that_should_be_kept": int(kept),
            "seen_in_the_inputs": sure,
        },
        message=f"{padding.said} is read the wrong way round: {int(not kept)} keeps a token and "
        f"{int(kept)} hides it. The model attends to the padding and to nothing else.",
        remedy="Invert the mask where it is used: key_padding_mask of torch.nn is True for what "
        "is hidden, a boolean mask of scaled_dot_product_attention for what is kept.",
    )


@on_influence("padding-leak")
def _padding(s: Influence, _: Subject) -> Said:
    yield from _silent_padding(s)
    for padding in _paddings(s):
        wrong = _wrong_way(s, padding)
        if wrong is not None:
            yield wrong
            continue
        of = padding.role.of
        value = s.inputs.tensors()[of]
        axis = 1 if s.arguments.batch == 0 else 0
        n = value.shape[axis]
        if n < 4 or value.dim() < 2:
            continue
        pooled = of != s.arguments.main or s.matrix is None
        hidden = [n - 2, n - 1] if pooled else [0, n - 2, n - 1]
        sees = s.matrix
        one_way = sees is not None and not bool((sees.tril(-1) > s.floor).any())
        if not pooled and not one_way:
            hidden = [n - 2, n - 1]  # what pools at the first place is not asked to do without
        try:
            masked = padding.hiding(s, hidden)
            base = s.run(masked)
            where = [0, hidden] if axis == 1 else [hidden, 0]
            new = s.run(s.change(of, tuple(where), masked))
        except Exception as error:
            yield Unknown(
                rule="padding-leak",
                module="",
                why=f"with positions hidden by {padding.said} the model does not run: {error}"[
                    :300
                ],
            )
            continue
        if pooled:
            moved = largest(new - base)
        else:
            real = [t for t in range(n) if t not in hidden]
            moved = float(s.grid(new - base)[0][real].max())
        if moved <= s.floor or _together(s, padding, hidden, tuple(where)):
            continue
        yield Finding(
            rule="padding-leak",
            severity="error",
            module="",
            evidence={
                "argument": padding.said,
                "change_at_real_positions": moved,
                "output_size": largest(base),
                "noise_floor": s.floor,
                "mask_has_an_effect": padding.works,
                "reading": padding.role.reading or f"{padding.claimed} (claimed)",
            },
            message=f"tokens hidden by {padding.said} still change the output of real ones"
            + (
                "; the mask has no effect at all"
                if not padding.works
                else ": some layer, pooling or norm does not obey the mask"
            )
            + ". What the model says about a text depends on how far its batch was padded.",
            remedy="Pass the mask to every attention, and leave padded positions out of means, "
            "maxima and last-token pooling.",
        )


def _together(s: Influence, padding: _Padding, hidden: list[int], where: tuple[Any, ...]) -> bool:
    """Nothing leaks if all masks of this argument are given: one for the encoder, say, and one for
    those who read it."""
    others = [p for p in _paddings(s) if p.role.of == padding.role.of and p is not padding]
    if not others or padding.role.of == s.arguments.main:
        return False
    call = padding.hiding(s, hidden)
    for other in others:
        value = other.hiding(s, hidden).tensors()[other.role.name]
        given = Inputs(call.args, {**(call.kwargs or {})})
        call = given.replaced(other.role.name, value)
    try:
        return largest(s.run(s.change(padding.role.of, where, call)) - s.run(call)) <= s.floor
    except Exception:  # they do not go together
        return False


@on_influence("mask-nan")
def _nan(s: Influence, _: Subject) -> Said:
    ways: list[tuple[str, str, Callable[..., Inputs]]] = [
        (p.said, p.role.of, partial(p.hiding, s)) for p in _paddings(s) if p.works
    ]
    ways += [
        (f"id {pad}", s.arguments.main, partial(_padded_ids, s, pad))
        for pad, obeys, _ in _own_masks(s)
        if obeys
    ]
    for said, of, hide in ways:
        value = s.inputs.tensors()[of]
        axis = 1 if s.arguments.batch == 0 else 0
        n = value.shape[axis]
        cases = {"one sample hidden altogether": list(range(n))}
        if n > 3:
            cases["left padding of one sample"] = [0, 1]
        if _all_finite(s, hide, list(cases.values()), n):
            continue
        for case, hidden in cases.items():
            try:
                counted = _count_nan(s, hide(hidden), [hidden], n)
            except Exception as error:  # a model may refuse such a mask, and says so itself
                if case.startswith("left"):
                    yield Unknown(
                        rule="mask-nan", module="", why=f"{case} does not run: {error}"[:300]
                    )
                continue
            own, elsewhere, gradients, first = counted
            if not (own or elsewhere or gradients):
                continue
            worse = elsewhere or gradients
            what = [f"{own} of the outputs of hidden positions"] * bool(own)
            what += [f"{elsewhere} outputs of real positions"] * bool(elsewhere)
            what += [f"the gradients of {gradients} parameters"] * bool(gradients)
            yield Finding(
                rule="mask-nan",
                severity="error" if worse else "warning",
                module=first,
                evidence={
                    "argument": said,
                    "case": case,
                    "nan_at_hidden_positions": own,
                    "nan_at_real_positions": elsewhere,
                    "parameters_with_nan_gradient": gradients,
                },
                message=f"{case} ({said}) gives NaN in {', '.join(what)}. A softmax over "
                "nothing but -inf is 0/0"
                + (", and one such sample in a batch ruins every weight." if gradients else "."),
                remedy="Let every query see at least itself, fill with a large finite number "
                "instead of -inf, or set the rows that see nothing to zero after the softmax.",
            )
            break


def _all_finite(
    s: Influence, hide: Callable[..., Inputs], cases: Sequence[list[int]], n: int
) -> bool:
    """Whether there is no NaN anywhere with every case at once, each in a sample of its own."""
    if s.samples < len(cases):
        return False
    try:
        return not any(_count_nan(s, hide(*cases), cases, n)[:3])
    except Exception:  # one of them may run all the same
        return False


def _count_nan(
    s: Influence, inputs: Inputs, hidden: Sequence[list[int]], n: int
) -> tuple[int, int, int, str]:
    """NaN at hidden places (by sample), at real ones, parameters with NaN gradients; the first
    module."""
    model = s.specimen.model  # in the type it will run in: the float64 copy may overflow otherwise
    if s.exact:
        inputs = cast_floats(inputs, floats_of(model))
    first: list[str] = []
    paths = {module: path for path, module in model.named_modules()}

    def look(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        leaf = first_float(out)
        if not first and leaf is not None and bool(leaf.isnan().any()):
            first.append(paths[module])

    needed = [(p, p.requires_grad) for p in model.parameters()]
    kept = [p.grad for p, _ in needed]
    try:
        with hooked(paths, after=look), undisturbed(model, gradients=True):
            for p, _ in needed:
                p.requires_grad_(p.is_floating_point())
            out = main_output(inputs.call(model))
            real = torch.ones_like(out, dtype=torch.bool)
            r = s.arguments
            if r.out_batch is not None:
                rows = real.movedim(r.out_batch, 0)
                for sample, places in enumerate(hidden):
                    if r.out_time is not None and out.shape[r.out_time] == n:
                        grid = real.movedim((r.out_batch, r.out_time), (0, 1))
                        grid[sample, places] = False
                    elif len(places) == n:
                        rows[sample] = False
            nan = out.isnan()
            own, elsewhere = int((nan & ~real).sum()), int((nan & real).sum())
            loss = torch.where(real, out, 0.0).square().sum()
            gradients = torch.autograd.grad(
                loss, [p for p, _ in needed if p.requires_grad], allow_unused=True
            )
            bad = sum(g is not None and bool(g.isnan().any()) for g in gradients)
    finally:
        for (p, grad), old in zip(needed, kept, strict=True):
            p.requires_grad_(grad)
            p.grad = old
    return own, elsewhere, bad, first[0] if first else ""


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
    for padding in _paddings(s):
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
        if name in s.names.values() or name in (s.inputs.kwargs or {}) or _conditional(s, name):
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


CHECKS: tuple[Check, ...] = (_padding, _nan, _arguments)
