"""What each argument of a call is to the model, found by changing it and looking who notices.

Which are token ids (what is looked up in a table), which axes are batch and time, how a mask is
read, which of two sequences is the memory of the other. Names count only as what an author claims.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from addnorm.anatomy.inputs import Inputs
from addnorm.anatomy.masks import MaskReading, as_mask, floats_of, is_mask
from addnorm.anatomy.outputs import main_output
from addnorm.anatomy.signature import FEATURES, SHOWN, SOURCE, argument_names
from addnorm.anatomy.token_ids import lookups_of, special_ids, table_rows, word_ids
from addnorm.temporary import undisturbed
from addnorm.words import error_in_a_line

MOVED = 1e3
"""An output moves if it does by more than this many units of its dtype, relative to its largest
value: sums in another order move it by a few dozen, a change that is seen by far more."""


@final
class NoSequence(ValueError):
    """No argument is a sequence that the model can be asked about."""


# --- what each argument is to the model -----------------------------------------------------------


def perturbed(
    inputs: Inputs, name: str, where: Any, rows: int | None, special: set[int], seed: int = 0
) -> Inputs:
    """The call with other values at ``where`` (an index) of one argument, named as in
    ``Inputs.tensors``.

    Numbers get noise of their own size; ids become other words of a table with ``rows`` rows (None:
    up to the largest id that is there), none of them ``special``. The same ``seed`` gives the same.
    """
    value = inputs.tensors()[name].clone()
    old = value[where]
    if value.is_floating_point():
        noise = torch.randn(old.shape, generator=torch.Generator().manual_seed(seed + 5)).to(old)
        value[where] = old + noise * value.float().std(correction=0).clamp(min=0.1).to(old)
    else:
        words = word_ids(rows or int(value.max()) + 1, special)
        place = {w: i for i, w in enumerate(words)}
        step = 1 + seed % max(len(words) - 1, 1)
        new_ids = [words[(place.get(v, 0) + step) % len(words)] for v in old.reshape(-1).tolist()]
        value[where] = torch.tensor(new_ids, dtype=value.dtype, device=value.device).reshape(
            old.shape
        )
    return inputs.replaced(name, value)


def mask_reading(
    model: nn.Module, inputs: Inputs, name: str, tables: Mapping[str, int] | None = None
) -> MaskReading | None:
    """How a mask is read, measured: which of two tokens is still seen where one is marked.

    Everything is kept but one place: where that token is not seen and another is, 1 keeps; where
    it alone is seen, 1 drops. None: neither, the mask is without effect or not of that kind.
    ``tables`` is what ``table_rows`` says of this call; None: it is measured. The caller has the
    model ``undisturbed``: here it is only called, on calls that it may refuse.
    """
    value = inputs.tensors()[name]
    keys = value.shape[-1]
    maskable = [  # (argument, axis) that may be what the mask speaks of
        (other, axis)
        for other, tensor in inputs.tensors().items()
        if other != name and not is_mask(other, tensor)
        for axis in range(min(tensor.dim(), 2))
        if tensor.shape[axis] == keys and tensor.dim() >= 2
    ]
    maskable.sort(key=lambda pair: pair[1] != 1)  # (batch, time) is more usual
    floats = floats_of(model)
    special = special_ids(model)
    for other, axis in maskable:
        tables = table_rows(model, inputs) if tables is None else tables
        rows = tables.get(other)
        for reading in ("keep", "additive"):
            keep = torch.ones(value.shape, dtype=torch.bool)
            keep[..., 0] = False
            masked = inputs.replaced(name, as_mask(keep, reading, value.dtype, floats))
            try:
                base = main_output(masked.call(model))
                if not bool(base.isfinite().any()):
                    continue
                moves = []
                for place in (0, 1):
                    where = tuple([slice(None)] * axis + [place])
                    new = main_output(perturbed(masked, other, where, rows, special).call(model))
                    moves.append(_output_moved(base, new, keys))
            except Exception:  # foreign code that does not take this mask
                continue
            if moves[1] and not moves[0]:
                return "keep" if reading == "keep" else "additive"
            if moves[0] and not moves[1] and reading == "keep":
                return "drop"
    return None


def _output_moved(base: Tensor, new: Tensor, keys: int) -> bool:
    """Whether the last of ``keys`` places moved from the output ``base`` to ``new``, or any of it
    where no axis has as many."""
    axes = [a for a in range(1, base.dim()) if base.shape[a] == keys]
    if axes:
        base, new = base.select(axes[0], keys - 1), new.select(axes[0], keys - 1)
    scale = float(base.nan_to_num().abs().max()) + 1e-30
    change = (base - new).nan_to_num().abs().max()
    return bool(change > MOVED * torch.finfo(base.dtype).eps * scale)


ArgumentKind = Literal["ids", "features", "image", "wave"]
"""Token ids (B, T), vectors (B, T, D), an image (B, C, H, W) or a wave (B, samples of sound)."""


@final
@dataclass(frozen=True)
class MaskArgument:
    """An argument that says which places may be seen."""

    name: str
    of: str
    """The argument whose places the mask speaks of."""
    reading: MaskReading | None
    """How the mask is read, measured; None: no place could be hidden with it."""
    square: bool
    """The mask speaks of pairs of places, (T, T) in its last axes."""


@final
@dataclass(frozen=True)
class Arguments:
    """What each argument is to the model, found by changing them."""

    main: str
    """Named as in ``Inputs.tensors``: that whose places the output has; a decoder's own input."""
    kind: ArgumentKind
    batch: int = 0
    time: int | None = 1
    """Axes of the main input. Time is None for images and waves."""
    out_batch: int | None = None
    out_time: int | None = None
    """The output's axes that carry them; None: none does."""
    mixed: int | None = None
    """The axis of the main input along which tokens notice one another, if it is only one."""
    positions: int | None = None
    """The axis along which equal tokens come out different: there positions were added."""
    memory: str | None = None
    """The encoder's input, or the memory."""
    masks: tuple[MaskArgument, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)
    """For each argument of token ids the rows of its table."""
    special: frozenset[int] = frozenset()
    """Ids that are not words."""
    unclear: tuple[str, ...] = ()
    """What could not be made out, and why."""


def find_arguments(model: nn.Module, inputs: Inputs) -> Arguments:
    """Who is who in a call that runs. The model is called: give a copy."""
    with undisturbed(model, gradients=False):
        return _arguments(model, inputs)


def _arguments(model: nn.Module, inputs: Inputs) -> Arguments:
    """``find_arguments`` on the model itself. Raises NoSequence."""
    rows, out = lookups_of(model, inputs)
    base, special = main_output(out), special_ids(model)
    names = argument_names(model, inputs)
    masks, kinds, unclear = _candidates(inputs, names, rows)
    sequences: dict[str, _Sequence] = {}
    for name, kind in kinds.items():
        try:
            sequences[name] = _sequence(model, inputs, name, kind, base, rows, special)
        except Exception as error:  # foreign code that takes these values and no others
            label = names.get(name, name).lower()
            unclear.append(f"changing {label} failed: {error_in_a_line(error)}")
    if not sequences:
        raise NoSequence(
            "no argument is a sequence of token ids, features or pixels that can be changed; "
            f"the arguments are {', '.join(inputs.tensors()) or 'no tensors'}"
            + "".join(f"; {u}" for u in unclear)
        )
    main = _main(inputs, names, sequences, base)
    others = [n for n in sequences if n != main]
    own, positions = sequences[main], None
    batch, time_ = (0, 1) if own.kind in ("ids", "features") else (0, None)
    if time_ is not None:
        positions = _position_axis(model, inputs, sequences, own)
        # Tokens notice one another along axis 0. It is time if positions lie along it too, or if
        # nothing is known of these and vectors come in; else the model has swapped the two axes.
        time_first = own.mixed == 0 and (
            positions == 0 or (positions is None and own.kind == "features" and not rows)
        )
        if time_first:
            batch, time_ = 1, 0
    return Arguments(
        main=main,
        kind=own.kind,
        batch=batch,
        time=time_,
        out_batch=own.axes[batch],
        out_time=None if time_ is None else own.axes[time_],
        mixed=own.mixed,
        positions=positions,
        memory=_memory(model, names, sequences, main),
        masks=tuple(
            MaskArgument(
                name,
                _mask_of(inputs, name, [main, *others]),
                mask_reading(model, inputs, name, rows),
                _is_square(inputs.tensors()[name]),
            )
            for name in masks
        ),
        rows=rows,
        special=frozenset(special),
        unclear=tuple(unclear),
    )


def _candidates(
    inputs: Inputs, names: Mapping[str, str], rows: Mapping[str, int]
) -> tuple[list[str], dict[str, ArgumentKind], list[str]]:
    """(the masks, what may be a sequence -> of which kind, what cannot be made out and why);
    ``names`` are those of arguments given by place, ``rows`` those of tables by argument."""
    masks: list[str] = []
    kinds: dict[str, ArgumentKind] = {}
    unclear: list[str] = []
    of_dim: dict[int, ArgumentKind] = {2: "wave", 3: "features", 4: "image"}
    for name, value in inputs.tensors().items():
        label = names.get(name, name).lower()
        if is_mask(name, value) or (value.dim() and is_mask(label, value)):
            masks.append(name)
        elif name in rows and value.dim() == 2:
            kinds[name] = "ids"
        elif value.is_floating_point() and value.dim() in of_dim:
            kinds[name] = of_dim[value.dim()]
            if re.search(r"ids?$|idx|tokens?$", label) and rows == {}:
                unclear.append(f"{label} sounds like token ids but is {value.dtype}")
        if name in kinds and "label" in label:
            del kinds[name]
    return masks, kinds, unclear


def _main(
    inputs: Inputs, names: Mapping[str, str], sequences: "Mapping[str, _Sequence]", base: Tensor
) -> str:
    """The argument, among ``sequences``, whose places the output has; ``base`` is that output,
    ``names`` those of arguments given by place."""

    def rank(name: str) -> tuple[bool, float, bool]:
        return sequences[name].moves, sequences[name].score, _decoder_like(names, name)

    main = max(sequences, key=rank)
    if sequences[main].axes[1] is None and base.dim() > 2:
        # Where the decoder's own input is without effect, the output has its places all the same.
        length = {n: inputs.tensors()[n].shape[1] for n, s in sequences.items() if s.kind == "ids"}
        fits = [n for n in length if _decoder_like(names, n) and length[n] == base.shape[1]]
        if fits and base.shape[1] != length.get(main):
            return fits[0]
    return main


def _memory(
    model: nn.Module, names: Mapping[str, str], sequences: "Mapping[str, _Sequence]", main: str
) -> str | None:
    """The argument that a decoder reads beside its own, ``main``; None: there is none. By what
    moves the output or is called a source, then by a decoder's names, then by the name of a memory:
    one with which the output does not move may still be it."""
    others = {n: names.get(n, n) for n in sequences if n != main}
    for name, label in others.items():
        if sequences[name].moves or SOURCE.search(label):
            return name
    if names.get(main, main).startswith(("decoder", "tgt", "trg")) or _reads_two(model):
        for name, label in others.items():
            if not _BESIDE.search(label):
                return name
    return next((name for name, label in others.items() if _memory_like(label)), None)


_CROSS = re.compile(
    r"cross|(enc|dec|src|memory|context|image|vision|visual)_?(dec_?)?att|multihead_attn|"
    r"xatt|memory|co_?att"
)
"""In names of parts of a model, in lower case, that attend to a second sequence."""


_BESIDE = re.compile(r"type|segment|pos(ition)?s?(_|$)|label|mask|length|step")
"""Names of what is said of a sequence beside it, and is no sequence itself."""


def _reads_two(model: nn.Module) -> bool:
    """Something in it is called after attention to a second sequence, or a memory."""
    parts = {name for path, _ in model.named_parameters() for name in path.split(".")}
    parts |= {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(m).__name__) for m in model.modules()}
    return any(_CROSS.search(name.lower()) for name in parts)


def _memory_like(name: str) -> bool:
    """Called so that a decoder would read it."""
    return bool(SHOWN.search(name.lower()) or FEATURES.search(name.lower())) and not (
        _BESIDE.search(name.lower())
    )


Change = tuple[tuple[int, int], Tensor]
"""The place that was changed, (index on axis 0, on axis 1), and by how much the output moved."""
Axes = tuple[int | None, int | None]
"""The axes of the output that are axis 0 and axis 1 of an argument; None: none is."""


@final
@dataclass(frozen=True)
class _Sequence:
    """Where the axes of one argument are in the output."""

    kind: ArgumentKind
    axes: Axes
    score: float
    """How much of a change at one place is seen at that place, from 0 to 1."""
    moves: bool
    """The output depends on it."""
    mixed: int | None
    """As in ``Arguments``."""


def _sequence(
    model: nn.Module,
    inputs: Inputs,
    name: str,
    kind: ArgumentKind,
    base: Tensor,
    rows: Mapping[str, int],
    special: set[int],
) -> _Sequence:
    """What changes of a few places of the argument ``name`` do to the output, which is ``base``
    without them; ``rows`` and ``special`` are as of ``Arguments``. Raises ValueError if the
    output's shape changes, and lets through what the model raises."""
    value = inputs.tensors()[name]
    sizes = value.shape[0], value.shape[1] if value.dim() > 1 else 1
    n0, n1 = sizes
    single = kind in ("ids", "features")  # else a whole sample is changed: it has no tokens yet
    points = [(0, 1), (n0 - 1, n1 // 2), (n0 // 2, n1 - 2)] if single else [(0, -1), (n0 - 1, -1)]
    floor = MOVED * torch.finfo(base.dtype).eps * (float(base.nan_to_num().abs().max()) + 1e-30)
    changes: list[Change] = []
    for i, j in points:
        where = (i, j % n1) if single else (i,)
        new = main_output(perturbed(inputs, name, where, rows.get(name), special).call(model))
        if new.shape != base.shape:
            raise ValueError("the output's shape depends on the values")
        changes.append(((i, j % n1), (new - base).nan_to_num().abs()))
    shares = _shares(changes, sizes, (0, 1) if single else (0,))
    axes, mixed, score = _axes(shares, sizes, base.dim()), None, 0.0
    if axes[0] is not None and axes[1] is not None:
        mixed = _mixed(changes, (axes[0], axes[1]), floor)
        score = min(shares[0, axes[0]], shares[1, axes[1]])
    moves = any(float(change.max()) > floor for _, change in changes)
    return _Sequence(kind, axes, score, moves, mixed)


def _shares(
    changes: Sequence[Change], sizes: tuple[int, int], along: Sequence[int]
) -> dict[tuple[int, int], float]:
    """(axis of the input, axis of the output of the same size) -> the share of a change that is at
    the index that was changed, on average over ``changes``; of the input's axes, whose ``sizes``
    these are, only those in ``along``."""
    shares: dict[tuple[int, int], list[float]] = {}
    for place, change in changes:
        total = float(change.sum())
        for a in along if total > 0 else ():
            for o in range(change.dim()):
                if change.shape[o] == sizes[a]:
                    here = float(change.select(o, place[a]).sum()) / total
                    shares.setdefault((a, o), []).append(here)
    return {pair: sum(v) / len(v) for pair, v in shares.items()}


def _axes(shares: Mapping[tuple[int, int], float], sizes: tuple[int, int], dims: int) -> Axes:
    """Which of ``dims`` axes of the output are the two of the input, of these ``sizes``: those
    where the changes are most at home, by ``_shares``."""
    best: Axes = (None, None)
    top = -1.0
    for pair in itertools.product((None, *range(dims)), repeat=2):
        if pair[0] is not None and pair[0] == pair[1]:
            continue
        homes = [(a, o) for a, o in enumerate(pair) if o is not None]
        if any(home not in shares for home in homes):
            continue
        # Spread evenly, 1/size of a change is at any index: half of that is no home.
        total = sum(shares[a, o] - 0.5 / sizes[a] for a, o in homes)
        if total > top + 1e-9:
            best, top = pair, total
    return best


def _mixed(changes: Sequence[Change], axes: tuple[int, int], floor: float) -> int | None:
    """The input's axis along which other places notice a change, by more than ``floor``; None:
    along none or both. ``axes`` are the output's axes that stand for the input's two."""
    along = [False, False]  # along axis 0, along axis 1
    for (i, j), change in changes:
        alone = change.movedim(axes, (0, 1)).flatten(2).amax(-1) > floor
        alone[i, j] = False
        along[0] |= bool(alone[:, j].any())
        along[1] |= bool(alone[i].any())
    return {(True, False): 0, (False, True): 1}.get((along[0], along[1]))


def _decoder_like(names: Mapping[str, str], name: str) -> bool:
    return bool(re.search(r"decoder|tgt|trg|target", names.get(name, name).lower()))


def with_constant(inputs: Inputs, name: str) -> Inputs:
    """The call with the same token everywhere in one argument, named as in ``Inputs.tensors``: the
    last id, the first vector, or one number."""
    value = inputs.tensors()[name]
    if value.is_floating_point():
        if value.dim() == 3:  # not one number: a norm would make zeros of it
            return inputs.replaced(name, value[:1, :1].expand_as(value).clone())
        return inputs.replaced(name, torch.full_like(value, 0.7))
    return inputs.replaced(name, torch.full_like(value, int(value.reshape(-1)[-1])))


def _position_axis(
    model: nn.Module, inputs: Inputs, sequences: Mapping[str, _Sequence], own: _Sequence
) -> int | None:
    """The axis of the argument ``own``, 0 or 1, along which equal tokens come out different; None:
    along none or both, or the output has not both of its axes."""
    if own.axes[0] is None or own.axes[1] is None:
        return None
    same = inputs
    for name in sequences:  # all of them: rows of another memory would tell the rows apart
        same = with_constant(same, name)
    out = main_output(same.call(model)).nan_to_num()
    floor = MOVED * torch.finfo(out.dtype).eps * (float(out.abs().max()) + 1e-30)
    varied = [
        out.shape[o] > 1 and float((out - out.select(o, 0).unsqueeze(o)).abs().max()) > floor
        for o in own.axes
        if o is not None
    ]
    return {(True, False): 0, (False, True): 1}.get((varied[0], varied[1]))


def _is_square(mask: Tensor) -> bool:
    """Whether it speaks of pairs of places in its last two axes, and is no (batch, places)."""
    return (
        mask.dim() >= 2
        and mask.shape[-2] > 1
        and mask.shape[-1] > 1
        and (mask.dim() > 2 or mask.shape[-2] == mask.shape[-1])
    )


def _mask_of(inputs: Inputs, mask: str, others: Sequence[str]) -> str:
    """The first of ``others`` that has as many places as a mask has keys, else the first."""
    keys = inputs.tensors()[mask].shape[-1]
    for name in others:
        if keys in inputs.tensors()[name].shape[:2]:
            return name
    return others[0]
