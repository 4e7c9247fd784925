"""What each argument of a call is to the model, found by changing it and looking who notices.

Which are token ids (what is looked up in a table), which axes are batch and time, how a mask is
read, which of two sequences is the memory of the other. Names count only as what an author claims.
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from addnorm.anatomy.inputs import Inputs
from addnorm.anatomy.masks import MaskReading, as_mask, floats_of, is_mask
from addnorm.anatomy.outputs import main_output
from addnorm.anatomy.signature import FEATURES, SHOWN, SOURCE, argument_names
from addnorm.anatomy.token_ids import lookups_of, special_ids, table_rows, word_ids


class NoSequence(ValueError):
    """No argument is a sequence that the model can be asked about."""


@contextmanager
def quietly(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, no warnings, a fixed RNG; all put back afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


# --- what each argument is to the model -----------------------------------------------------------


def perturbed(
    inputs: Inputs, name: str, where: Any, rows: int | None, special: set[int], seed: int = 0
) -> Inputs:
    """The call with other values at ``where`` (an index) of one argument."""
    value = inputs.tensors()[name].clone()
    old = value[where]
    if value.is_floating_point():
        noise = torch.randn(old.shape, generator=torch.Generator().manual_seed(seed + 5)).to(old)
        value[where] = old + noise * value.float().std(correction=0).clamp(min=0.1).to(old)
    else:
        words = word_ids(rows or int(value.max()) + 1, special)
        place = {w: i for i, w in enumerate(words)}
        step = 1 + seed % max(len(words) - 1, 1)
        moved = [words[(place.get(v, 0) + step) % len(words)] for v in old.reshape(-1).tolist()]
        value[where] = torch.tensor(moved, dtype=value.dtype, device=value.device).reshape(
            old.shape
        )
    return inputs.replaced(name, value)


def mask_reading(
    model: nn.Module, inputs: Inputs, name: str, tables: Mapping[str, int] | None = None
) -> MaskReading | None:
    """How a mask is read, measured: which of two tokens is still seen where one is marked.

    Everything is kept but one place: where that token is not seen and another is, 1 keeps; where
    it alone is seen, 1 drops. None: neither, the mask is without effect or not of that kind.
    """
    value = inputs.tensors()[name]
    keys = value.shape[-1]
    fed = [
        (other, axis)
        for other, tensor in inputs.tensors().items()
        if other != name and not is_mask(other, tensor)
        for axis in range(min(tensor.dim(), 2))
        if tensor.shape[axis] == keys and tensor.dim() >= 2
    ]
    fed.sort(key=lambda pair: pair[1] != 1)
    floats = floats_of(model)
    special = special_ids(model)
    for other, axis in fed:
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
                    moves.append(_observed(base, new, keys))
            except Exception:  # foreign code that does not take this mask
                continue
            if moves[1] and not moves[0]:
                return "keep" if reading == "keep" else "additive"
            if moves[0] and not moves[1] and reading == "keep":
                return "drop"
    return None


def _observed(base: Tensor, new: Tensor, keys: int) -> bool:
    """Whether the last place of the output, or all of it where it has no such axis, moved."""
    axes = [a for a in range(1, base.dim()) if base.shape[a] == keys]
    if axes:
        base, new = base.select(axes[0], keys - 1), new.select(axes[0], keys - 1)
    scale = float(base.nan_to_num().abs().max()) + 1e-30
    change = (base - new).nan_to_num().abs().max()
    return bool(change > 1e3 * torch.finfo(base.dtype).eps * scale)


ArgumentKind = Literal["ids", "features", "image", "wave"]


@dataclass(frozen=True)
class MaskArgument:
    """An argument that says which places may be seen."""

    name: str
    of: str
    """The argument whose places it speaks of."""
    reading: MaskReading | None
    """Measured; None: no place could be hidden with it."""
    square: bool
    """It speaks of pairs of places, (T, T) in its last axes."""


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
    """Ids that are no words."""
    unclear: tuple[str, ...] = ()
    """What could not be told, and why."""


def find_arguments(model: nn.Module, inputs: Inputs) -> Arguments:
    """Who is who in a call that runs. The model is called: give a copy."""
    with quietly(model):
        return _arguments(model, inputs)


def _arguments(model: nn.Module, inputs: Inputs) -> Arguments:
    rows, out = lookups_of(model, inputs)
    base, special = main_output(out), special_ids(model)
    found: dict[str, _Carried] = {}
    unclear: list[str] = []
    names = argument_names(model, inputs)
    masks = []
    for name, value in inputs.tensors().items():
        said = names.get(name, name).lower()
        if is_mask(name, value) or (value.dim() and is_mask(said, value)):
            masks.append(name)
            continue
        kind: ArgumentKind
        if name in rows and value.dim() == 2:
            kind = "ids"
        elif value.is_floating_point() and value.dim() in (2, 3, 4):
            kind = {2: "wave", 3: "features", 4: "image"}[value.dim()]  # type: ignore[assignment]
            if re.search(r"ids?$|idx|tokens?$", said) and rows == {}:
                unclear.append(f"{said} sounds like token ids but is {value.dtype}")
        else:
            continue
        if re.search(r"label", said):
            continue
        try:
            found[name] = _carried(model, inputs, name, kind, base, rows, set(special))
        except Exception as error:  # foreign code that takes these values and no others
            unclear.append(f"changing {said} failed: {type(error).__name__}: {error}"[:200])
    if not found:
        raise NoSequence(
            "no argument is a sequence of token ids, features or pixels that can be changed; "
            f"the arguments are {', '.join(inputs.tensors()) or 'no tensors'}"
            + "".join(f"; {u}" for u in unclear)
        )
    main = max(found, key=lambda n: (found[n].moves, found[n].score, _decoder_like(names, n)))
    if found[main].axes[1] is None and base.dim() > 2:
        # Where the decoder's own input is without effect, the output has its places all the same.
        length = {n: inputs.tensors()[n].shape[1] for n in found if found[n].kind == "ids"}
        fits = [n for n in length if _decoder_like(names, n) and length[n] == base.shape[1]]
        if fits and base.shape[1] != length.get(main):
            main = fits[0]
    others = [n for n in found if n != main]
    memory = next((n for n in others if found[n].moves or SOURCE.search(names.get(n, n))), None)
    if memory is None and (
        names.get(main, main).startswith(("decoder", "tgt", "trg")) or _reads_two(model)
    ):
        memory = next((n for n in others if not _BESIDE.search(names.get(n, n))), None)
    if memory is None:
        memory = next((n for n in others if _memory_like(names.get(n, n))), None)
    own = found[main]
    batch, time_ = (0, 1) if own.kind in ("ids", "features") else (0, None)
    mixed, positions = own.mixed, None
    if time_ is not None:
        same = inputs
        for name in found:  # all of them: rows of another memory would tell the rows apart
            same = constant(same, name)
        positions = _position_axis(model, same, own)
        time_first = mixed == 0 and (
            positions == 0 or (positions is None and own.kind == "features" and not rows)
        )
        if time_first:
            batch, time_ = 1, 0
    spoken = tuple(
        MaskArgument(
            name,
            _mask_of(inputs, name, [main, *others]),
            mask_reading(model, inputs, name, rows),
            _is_square(inputs.tensors()[name]),
        )
        for name in masks
    )
    return Arguments(
        main,
        own.kind,
        batch,
        time_,
        own.axes[batch],
        None if time_ is None else own.axes[time_],
        mixed,
        positions,
        memory,
        spoken,
        rows,
        frozenset(special),
        tuple(unclear),
    )


_CROSS = re.compile(
    r"cross|(enc|dec|src|memory|context|image|vision|visual)_?(dec_?)?att|multihead_attn|"
    r"xatt|memory|co_?att"
)


_BESIDE = re.compile(r"type|segment|pos(ition)?s?(_|$)|label|mask|length|step")


def _reads_two(model: nn.Module) -> bool:
    """Something in it is called after attention to a second sequence, or a memory."""
    called = {name for path, _ in model.named_parameters() for name in path.split(".")}
    called |= {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(m).__name__) for m in model.modules()}
    return any(_CROSS.search(name.lower()) for name in called)


def _memory_like(name: str) -> bool:
    """Called so that a decoder would read it."""
    return bool(SHOWN.search(name.lower()) or FEATURES.search(name.lower())) and not (
        _BESIDE.search(name.lower())
    )


@dataclass(frozen=True)
class _Carried:
    """Where the axes of one argument are in the output."""

    kind: ArgumentKind
    axes: tuple[int | None, int | None]
    score: float
    """How much of a change at one place is seen at that place."""
    moves: bool
    mixed: int | None


def _carried(
    model: nn.Module,
    inputs: Inputs,
    name: str,
    kind: ArgumentKind,
    base: Tensor,
    rows: Mapping[str, int],
    special: set[int],
) -> _Carried:
    value = inputs.tensors()[name]
    n0, n1 = value.shape[0], value.shape[1] if value.dim() > 1 else 1
    single = kind in ("ids", "features")
    points = [(0, 1), (n0 - 1, n1 // 2), (n0 // 2, n1 - 2)] if single else [(0, -1), (n0 - 1, -1)]
    floor = 1e3 * torch.finfo(base.dtype).eps * (float(base.nan_to_num().abs().max()) + 1e-30)
    shares: dict[tuple[int, int], list[float]] = {}
    changes = []
    for i, j in points:
        where = (i, j % n1) if single else (i,)
        new = main_output(perturbed(inputs, name, where, rows.get(name), special).call(model))
        if new.shape != base.shape:
            raise ValueError("the output's shape depends on the values")
        change = (new - base).nan_to_num().abs()
        changes.append(((i, j % n1), change))
        total = float(change.sum())
        for a, (n, index) in enumerate(((n0, i), (n1, j % n1))):
            for o in range(base.dim()):
                if base.shape[o] == n and total > 0 and (single or a == 0):
                    shares.setdefault((a, o), []).append(
                        float(change.select(o, index).sum()) / total
                    )
    moves = any(float(c.max()) > floor for _, c in changes)
    mean = {pair: sum(v) / len(v) for pair, v in shares.items()}
    best: tuple[int | None, int | None] = (None, None)
    top = -1.0
    for o0 in (None, *range(base.dim())):
        for o1 in (None, *range(base.dim())):
            if o0 is not None and o0 == o1:
                continue
            if any(o is not None and (a, o) not in mean for a, o in enumerate((o0, o1))):
                continue
            total = sum(
                mean[a, o] - 0.5 / n
                for a, (o, n) in enumerate(((o0, n0), (o1, n1)))
                if o is not None
            )
            if total > top + 1e-9:
                best, top = (o0, o1), total
    mixed = None
    if best[0] is not None and best[1] is not None:
        seen = [False, False]  # along axis 0, along axis 1
        for (i, j), change in changes:
            grid = change.movedim((best[0], best[1]), (0, 1)).flatten(2).amax(-1) > floor
            alone = grid.clone()
            alone[i, j] = False
            seen[0] |= bool(alone[:, j].any())
            seen[1] |= bool(alone[i].any())
        mixed = {(True, False): 0, (False, True): 1}.get((seen[0], seen[1]))
    score = 0.0
    if best[0] is not None and best[1] is not None:
        score = min(mean[0, best[0]], mean[1, best[1]])
    return _Carried(kind, best, score, moves, mixed)


def _decoder_like(names: Mapping[str, str], name: str) -> bool:
    return bool(re.search(r"decoder|tgt|trg|target", names.get(name, name).lower()))


def constant(inputs: Inputs, name: str) -> Inputs:
    """The call with the same token everywhere in one argument."""
    value = inputs.tensors()[name]
    if value.is_floating_point():
        if value.dim() == 3:  # not one number: a norm would make zeros of it
            return inputs.replaced(name, value[:1, :1].expand_as(value).clone())
        return inputs.replaced(name, torch.full_like(value, 0.7))
    return inputs.replaced(name, torch.full_like(value, int(value.reshape(-1)[-1])))


def _position_axis(model: nn.Module, same: Inputs, own: _Carried) -> int | None:
    if own.axes[0] is None or own.axes[1] is None:
        return None
    out = main_output(same.call(model)).nan_to_num()
    floor = 1e3 * torch.finfo(out.dtype).eps * (float(out.abs().max()) + 1e-30)
    varied = [
        out.shape[o] > 1 and float((out - out.select(o, 0).unsqueeze(o)).abs().max()) > floor
        for o in own.axes
        if o is not None
    ]
    return {(True, False): 0, (False, True): 1}.get((varied[0], varied[1]))


def _is_square(mask: Tensor) -> bool:
    return (
        mask.dim() >= 2
        and mask.shape[-2] > 1
        and mask.shape[-1] > 1
        and (mask.dim() > 2 or mask.shape[-2] == mask.shape[-1])
    )


def _mask_of(inputs: Inputs, mask: str, others: Sequence[str]) -> str:
    keys = inputs.tensors()[mask].shape[-1]
    for name in others:
        if keys in inputs.tensors()[name].shape[:2]:
            return name
    return others[0]
