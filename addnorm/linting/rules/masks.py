"""Padding: what it changes though it is hidden, and where hiding everything gives NaN."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from addnorm.anatomy.influence import Influence
from addnorm.anatomy.inputs import Inputs, cast_floats
from addnorm.anatomy.masks import floats_of
from addnorm.anatomy.outputs import first_float, largest, main_output
from addnorm.linting.check import Check, Said, on_influence
from addnorm.linting.report import Finding, Unknown
from addnorm.linting.rules.paddings import Padding, own_masks, padded_ids, paddings
from addnorm.linting.subject import Subject
from addnorm.temporary import hooked, undisturbed


def _silent_padding(s: Influence) -> Said:
    for pad, obeys, moved in own_masks(s):
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


def _wrong_way(s: Influence, padding: Padding) -> Finding | None:
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
    for padding in paddings(s):
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


def _together(s: Influence, padding: Padding, hidden: list[int], where: tuple[Any, ...]) -> bool:
    """Nothing leaks if all masks of this argument are given: one for the encoder, say, and one for
    those who read it."""
    others = [p for p in paddings(s) if p.role.of == padding.role.of and p is not padding]
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
        (p.said, p.role.of, partial(p.hiding, s)) for p in paddings(s) if p.works
    ]
    ways += [
        (f"id {pad}", s.arguments.main, partial(padded_ids, s, pad))
        for pad, obeys, _ in own_masks(s)
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


CHECKS: tuple[Check, ...] = (_padding, _nan)
