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
from addnorm.linting.check import Answers, on_influence
from addnorm.linting.findings import Finding, Unknown
from addnorm.linting.rule import Case, Rule
from addnorm.linting.rules.paddings import Padding, own_paddings, padded_ids, paddings
from addnorm.linting.subject import Subject
from addnorm.temporary import hooked, undisturbed

# --- the words ------------------------------------------------------------------------------------

_SO_FAR = " What the model says about a text depends on how far its batch was padded."
_STILL = "tokens hidden by {argument} still change the output of real ones"
_EMBEDDING = (
    "id {padding_id} is padding, and the values of its embedding change the output of real tokens"
)
_HIDE = (
    "Hide padding from every attention, and leave it out of means, maxima and last-token pooling."
)
_PASS = (
    "Pass the mask to every attention, and leave padded positions out of means, maxima and "
    "last-token pooling."
)
_INVERTED = (
    "{argument} is read the wrong way round: {value_that_is_kept} keeps a token and "
    "{value_that_should_be_kept} hides it. The model attends to the padding and to nothing else."
)
_INVERT = (
    "Invert the mask where it is used: key_padding_mask of torch.nn is True for what is hidden, a "
    "boolean mask of scaled_dot_product_attention for what is kept."
)

PADDING_LEAK = Rule(
    "padding-leak",
    "padded tokens change the output of real ones",
    family="Who sees whom",
    evidence={
        "change_at_real_positions": "how much they move when a hidden token is changed",
        "noise_floor": "how much they move where nothing was changed",
        "output_size": "the largest number in the output",
        "argument": "the mask",
        "mask_has_an_effect": "whether anything changes with it",
        "reading": "what the mask holds: keep, drop or additive; claimed: by its name only",
        "padding_id": "the id of padding, of a model that takes no mask",
        "hidden_from_some_attention": "whether one does not see it",
        "value_that_is_kept": "the value of the mask where a token is attended to",
        "value_that_should_be_kept": "by the inputs, or by the argument's name",
        "seen_in_the_inputs": "whether the inputs say so",
    },
    cases={
        "not obeyed by all": Case(
            "error",
            f"{_STILL}: some layer, pooling or norm does not obey the mask.{_SO_FAR}",
            _PASS,
        ),
        "no effect": Case("error", f"{_STILL}; the mask has no effect at all.{_SO_FAR}", _PASS),
        "behind attention": Case(
            "error",
            f"{_EMBEDDING}: attention does not see it, but some later step (a mean, a maximum, the "
            f"last position) does.{_SO_FAR}",
            _HIDE,
        ),
        "no mask": Case(
            "warning", f"{_EMBEDDING}: nothing hides it, and forward takes no mask.{_SO_FAR}", _HIDE
        ),
        "inverted, by the inputs": Case("error", _INVERTED, _INVERT),
        "inverted, by its name": Case("warning", _INVERTED, _INVERT),
    },
)

_NAN = "{case} ({argument}) gives NaN in {where}. A softmax over nothing but -inf is 0/0"
_SELF = (
    "Let every query see at least itself, fill with a large finite number instead of -inf, or set "
    "the rows that see nothing to zero after the softmax."
)

MASK_NAN = Rule(
    "mask-nan",
    "a mask that hides everything gives NaN",
    family="Who sees whom",
    evidence={
        "argument": "the mask, or the id of padding",
        "case": "what is hidden",
        "nan_at_hidden_positions": "how many numbers of the output",
        "nan_at_real_positions": "how many",
        "parameters_with_nan_gradient": "how many, of the outputs at real positions",
    },
    cases={
        "gradients": Case(
            "error", f"{_NAN}, and one such sample in a batch ruins every weight.", _SELF
        ),
        "real positions": Case("error", f"{_NAN}.", _SELF),
        "hidden positions": Case("warning", f"{_NAN}.", _SELF),
    },
)

# --- padding that is seen -------------------------------------------------------------------------


@on_influence(PADDING_LEAK)
def padding(s: Influence, _: Subject) -> Answers:
    """Findings of padding that real places notice, with a mask or without, and of masks that are
    read the wrong way round; Unknown where the model does not run with places hidden."""
    for own in own_paddings(s):
        if own.change > s.floor:
            yield PADDING_LEAK(
                "behind attention" if own.obeys else "no mask",
                "",
                padding_id=own.id,
                change_at_real_positions=own.change,
                noise_floor=s.floor,
                hidden_from_some_attention=own.obeys,
            )
    for mask in paddings(s):
        answer = _inverted(s, mask) or _leak(s, mask)
        if answer is not None:
            yield answer


def _inverted(s: Influence, mask: Padding) -> Finding | None:
    """The finding of a mask that is read against the inputs, or against what its name means
    everywhere; None: it is not, or nothing says how it should be read."""
    reading = mask.role.reading
    if reading not in ("keep", "drop"):
        return None
    keeps, sure = _keeping_value(s, mask)
    if keeps is None or keeps == (reading == "keep"):
        return None
    return PADDING_LEAK(
        "inverted, by the inputs" if sure else "inverted, by its name",
        "",
        argument=mask.name,
        value_that_is_kept=int(reading == "keep"),
        value_that_should_be_kept=int(keeps),
        seen_in_the_inputs=sure,
    )


def _keeping_value(s: Influence, mask: Padding) -> tuple[bool | None, bool]:
    """(the value that should keep a token, whether the inputs show it); (None, False): nothing
    says."""
    value = s.padded_inputs.tensors().get(mask.role.name)
    if value is not None and not value.is_floating_point():
        lines = value.bool().flatten(1)
        whole = {bool(line[0]) for line in lines if bool((line == line[0]).all())}
        if len(whole) == 1 and bool((lines != lines[:, :1]).any()):
            return whole.pop(), True  # the longest sample of a batch has no padding
    if mask.name == "attention_mask":
        return True, False
    return (False if mask.name.endswith("key_padding_mask") else None), False


def _leak(s: Influence, mask: Padding) -> Finding | Unknown | None:
    """What real places do when a place that the mask hides is changed; None: nothing, or there are
    too few places to hide some."""
    of = mask.role.of
    value = s.inputs.tensors()[of]
    axis = 1 if s.arguments.batch == 0 else 0
    n = value.shape[axis]
    if n < 4 or value.dim() < 2:
        return None
    pooled = of != s.arguments.main or s.matrix is None
    hidden = _hidden_places(s, n, pooled)
    where: tuple[Any, ...] = (0, hidden) if axis == 1 else (hidden, 0)
    try:
        masked = mask.hiding(s, hidden)
        base = s.run(masked)
        new = s.run(s.change(of, where, masked))
    except Exception as error:
        why = f"with positions hidden by {mask.name} the model does not run: {error}"
        return PADDING_LEAK.unknown(why[:300])
    if pooled:
        change = largest(new - base)
    else:
        real = [t for t in range(n) if t not in hidden]
        change = float(s.grid(new - base)[0][real].max())
    if change <= s.floor or _hidden_by_all(s, mask, hidden, where):
        return None
    return PADDING_LEAK(
        "not obeyed by all" if mask.works else "no effect",
        "",
        argument=mask.name,
        change_at_real_positions=change,
        output_size=largest(base),
        noise_floor=s.floor,
        mask_has_an_effect=mask.works,
        reading=mask.role.reading or f"{mask.claimed} (claimed)",
    )


def _hidden_places(s: Influence, n: int, pooled: bool) -> list[int]:
    """Which places of n to hide, to see who reads them all the same: the last two, and in a causal
    model the first as well, since there only later places could read it.

    ``pooled``: the output has no places of this argument; the first is then left alone.
    """
    one_way = s.matrix is not None and not bool((s.matrix.tril(-1) > s.floor).any())
    if one_way and not pooled:
        return [0, n - 2, n - 1]
    return [n - 2, n - 1]  # what pools at the first place is not asked to do without


def _hidden_by_all(s: Influence, mask: Padding, hidden: list[int], where: tuple[Any, ...]) -> bool:
    """Whether nothing leaks if, beside ``mask``, all other masks of its argument are given: one for
    the encoder, say, and one for those who read it. ``where`` is the index of the hidden places."""
    others = [p for p in paddings(s) if p.role.of == mask.role.of and p is not mask]
    if not others or mask.role.of == s.arguments.main:
        return False
    call = mask.hiding(s, hidden)
    for other in others:
        value = other.hiding(s, hidden).tensors()[other.role.name]
        call = Inputs(call.args, {**(call.kwargs or {})}).replaced(other.role.name, value)
    try:
        return largest(s.run(s.change(mask.role.of, where, call)) - s.run(call)) <= s.floor
    except Exception:  # they do not go together
        return False


# --- NaN ------------------------------------------------------------------------------------------


@on_influence(MASK_NAN)
def nan(s: Influence, _: Subject) -> Answers:
    """Findings of NaN where everything, or the beginning, is hidden from a sample: one for each way
    of hiding."""
    ways: list[tuple[str, str, Callable[..., Inputs]]] = [
        (mask.name, mask.role.of, partial(mask.hiding, s)) for mask in paddings(s) if mask.works
    ]
    ways += [
        (f"id {own.id}", s.arguments.main, partial(padded_ids, s, own.id))
        for own in own_paddings(s)
        if own.obeys
    ]
    for name, of, hide in ways:
        n = s.inputs.tensors()[of].shape[1 if s.arguments.batch == 0 else 0]
        cases = {"one sample hidden altogether": list(range(n))}
        if n > 3:
            cases["left padding of one sample"] = [0, 1]
        if not _all_finite(s, hide, list(cases.values()), n):
            yield from _nan_cases(s, name, hide, cases, n)


def _nan_cases(
    s: Influence, name: str, hide: Callable[..., Inputs], cases: dict[str, list[int]], n: int
) -> Answers:
    """The first case that gives NaN, as a finding; cases that do not run are an Unknown or, where
    everything is hidden, nothing.

    ``name`` is that of the mask; ``hide`` makes the call with places of sample 0 hidden; ``cases``
    are these places by what is said of them; ``n`` is how many there are.
    """
    for case, hidden in cases.items():
        try:
            own, elsewhere, gradients, first = _count_nan(s, hide(hidden), [hidden], n)
        except Exception as error:  # a model may refuse such a mask, and says so itself
            if case.startswith("left"):
                yield MASK_NAN.unknown(f"{case} does not run: {error}"[:300])
            continue
        if not (own or elsewhere or gradients):
            continue
        what = [f"{own} of the outputs of hidden positions"] * bool(own)
        what += [f"{elsewhere} outputs of real positions"] * bool(elsewhere)
        what += [f"the gradients of {gradients} parameters"] * bool(gradients)
        worst = "real positions" if elsewhere else "hidden positions"
        yield MASK_NAN(
            "gradients" if gradients else worst,
            first,
            words={"where": ", ".join(what)},
            argument=name,
            case=case,
            nan_at_hidden_positions=own,
            nan_at_real_positions=elsewhere,
            parameters_with_nan_gradient=gradients,
        )
        return


def _all_finite(
    s: Influence, hide: Callable[..., Inputs], cases: Sequence[list[int]], n: int
) -> bool:
    """Whether it is sure that there is no NaN anywhere with every case at once, each in a sample of
    its own; the arguments are as in ``_nan_cases``. False where there are too few samples, or it
    does not run."""
    if s.samples < len(cases):
        return False
    try:
        return not any(_count_nan(s, hide(*cases), cases, n)[:3])
    except Exception:  # one of them may run all the same
        return False


def _count_nan(
    s: Influence, inputs: Inputs, hidden: Sequence[list[int]], n: int
) -> tuple[int, int, int, str]:
    """(NaN at hidden places, at real ones, parameters with a NaN gradient, the path of the first
    module that gives NaN, "" for none).

    ``hidden`` are the places that ``inputs`` hide in sample 0 and those after it, of ``n``.
    Gradients are those of the outputs at real places; those of the model are put back.
    """
    model = s.specimen.model  # in the type it will run in: the float64 copy may overflow otherwise
    if s.exact:
        inputs = cast_floats(inputs, floats_of(model))
    first: list[str] = []
    paths = {module: path for path, module in model.named_modules()}

    def look(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        leaf = first_float(out)
        if not first and leaf is not None and bool(leaf.isnan().any()):
            first.append(paths[module])

    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        with hooked(paths, after=look), undisturbed(model, gradients=True):
            for p in model.parameters():
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
                loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True
            )
            bad = sum(g is not None and bool(g.isnan().any()) for g in gradients)
    finally:
        for p, requires_grad, grad in before:
            p.requires_grad_(requires_grad)
            p.grad = grad
    return own, elsewhere, bad, first[0] if first else ""
