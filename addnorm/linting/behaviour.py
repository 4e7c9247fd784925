"""Rules that change one thing in the input and look who notices.

Two means: *from outside*, one token, sample or padded place is changed and the output compared;
*from inside*, every module is run again on what it received, with one place changed, which tells
the module at fault apart from those that pass its mistake on. Copies run in float64 where they can;
what counts as a change is measured against a rerun without one.
"""

import copy
import re
import warnings
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from addnorm.linting.inputs import (
    CannotMakeInputs,
    MaskRole,
    Reading,
    Roles,
    argument_names,
    as_mask,
    constant,
    find_roles,
    floats_of,
    mask_reading,
    mask_values,
    pad_ids,
    perturbed,
    quietly,
    signature,
    word_ids,
)
from addnorm.linting.report import Finding, Severity, Unknown
from addnorm.linting.subject import Check, Inputs, Said, Subject, main_output

SMALL = 40_000_000  # parameters up to which a float64 copy is made
POINTWISE = (
    nn.Linear,
    nn.Embedding,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Dropout,
    nn.Identity,
    nn.GELU,
    nn.ReLU,
    nn.SiLU,
    nn.Tanh,
)
"""Torch's own modules that treat each place by itself: not run again, to save time."""

FORMAT = re.compile(
    r"return|output|cache|past|label|loss|target|interpolate|is_causal$|verbose|debug|checkpoint|"
    r"dict$|log|store|need_weights|average_attn|cross_attn_head|training|deterministic|seq_len"
)
"""Switches of the output's form, of speed or of training: no effect on the numbers is no fault."""


# --- what is measured once for all rules ----------------------------------------------------------


@dataclass(frozen=True)
class Local:
    """What one module lets through when one place of one sample of its own input changes."""

    path: str
    order: int
    place: int
    """The place that was changed."""
    places: int
    before: tuple[int, ...]
    """Places of the same sample before it that moved."""
    after: tuple[int, ...]
    other_same: bool
    """The same place of other samples moved."""
    other_else: bool
    """Other places of other samples moved."""
    order_matters: float | None
    """Largest change at the last place when the earlier ones are permuted, over the output's
    largest value; None where it was not measured."""
    largest: float
    """The largest change outside of the place itself, over the output's largest value."""

    @property
    def mixes(self) -> bool:
        """Places of a sample see one another here."""
        return bool(self.before or self.after)

    full: bool
    """Every earlier place sees a changed one, in the middle as well as at the end."""
    uneven: bool
    """Places before and after are not treated alike: exchanging two of them shows between them."""

    @property
    def sees(self) -> str:
        """In a word."""
        if self.full and self.after:
            return "all"
        if self.before:
            return "some of what comes after"
        return "the past" if self.after else "itself"


@dataclass
class Study:
    """The copy that is probed, the call, and who is who in it."""

    subject: Subject
    model: nn.Module
    inputs: Inputs
    roles: Roles
    names: Mapping[str, str]
    exact: bool
    """The copy runs in float64."""
    given: Inputs
    """The call before padding was taken out of it."""
    pads: tuple[int, ...] = ()
    """Ids that stand for padding, as the model says or the inputs show."""
    found: dict[str, Any] = field(default_factory=dict)

    def run(self, inputs: Inputs | None = None, seed: int = 0) -> Tensor:
        """The main output, in evaluation mode under a fixed RNG."""
        with quietly(self.model):
            torch.manual_seed(seed)
            return main_output((inputs or self.inputs).call(self.model)).detach()

    @cached_property
    def base(self) -> Tensor:
        """The output without any change."""
        return self.run()

    @cached_property
    def noise(self) -> float:
        """How far two runs of the same call differ."""
        return _largest(self.run() - self.base)

    @cached_property
    def floor(self) -> float:
        """What is surely a change: ten times the rerun's, and above rounding.

        Places that nothing reaches come out bit for bit the same, whatever the depth; the second
        term only forgives kernels that sum in another order.
        """
        rounding = (1e-11 if self.exact else 1e-5) * (_largest(self.base) + 1e-30)
        return max(10 * self.noise, rounding)

    def name(self, argument: str) -> str:
        """As its author calls it."""
        return self.names.get(argument, argument)

    def change(self, name: str, where: Any, base: Inputs | None = None) -> Inputs:
        """The call with other values at ``where`` of one argument."""
        return perturbed(
            base or self.inputs, name, where, self.roles.rows.get(name), set(self.roles.special)
        )

    def grid(self, change: Tensor) -> Tensor:
        """(samples, places) of a change in the output; the largest over the rest."""
        r = self.roles
        assert r.out_batch is not None
        assert r.out_time is not None
        flat = change.nan_to_num().abs().movedim((r.out_batch, r.out_time), (0, 1))
        return flat.flatten(2).amax(-1) if flat.dim() > 2 else flat

    def at(self, sample: Any, place: Any) -> tuple[Any, ...]:
        """The index of one token in the main input."""
        where = [sample, place] if self.roles.batch == 0 else [place, sample]
        return tuple(where)

    @property
    def places(self) -> int:
        """The length of the main input."""
        shape = self.inputs.tensors()[self.roles.main].shape
        return shape[self.roles.time] if self.roles.time is not None else 0

    @property
    def samples(self) -> int:
        """The batch of the main input."""
        return self.inputs.tensors()[self.roles.main].shape[self.roles.batch]

    @cached_property
    def sees(self) -> Tensor | None:
        """(changed place, place): the change of one sample's output; None without such axes."""
        if self.roles.out_time is None or self.roles.out_batch is None or self.places < 2:
            return None
        if self.base.shape[self.roles.out_time] != self.places:
            return None
        n = self.places
        small = sum(p.numel() for p in self.model.parameters()) <= SMALL
        some = {1, n // 4, n // 2, 3 * n // 4, n - 2, n - 1} if small else {1, n // 2, n - 1}
        chosen = range(n) if n <= 12 and small else sorted(some)
        rows = torch.zeros(n, n, dtype=self.base.dtype)
        for t in chosen:
            new = self.run(self.change(self.roles.main, self.at(0, t)))
            rows[t] = self.grid(new - self.base)[0]
        return rows

    @cached_property
    def local(self) -> list[Local]:
        """Every module whose places see one another, or other samples, innermost ones included."""
        return _local(self)

    def innermost(self, wrong: Callable[[Local], bool]) -> list[Local]:
        """Modules of which it holds, and of none inside them: there it happens."""
        paths = {one.path for one in self.local if wrong(one)}
        return [
            one
            for one in self.local
            if one.path in paths
            and not any(p != one.path and p.startswith(one.path + ".") for p in paths)
        ]

    @cached_property
    def mixers(self) -> list[Local]:
        """The innermost modules in which places of one sample see one another."""
        return self.innermost(lambda one: one.mixes)


def study(subject: Subject) -> Study:
    """Made once per subject."""
    kept = vars(subject)
    if "_study" not in kept:
        kept["_study"] = _study(subject)
    made: Study = kept["_study"]
    return made


def _study(subject: Subject) -> Study:
    model, inputs, exact = copy.deepcopy(subject.model), subject.inputs, False
    parameters = signature(model)
    if "use_cache" in parameters and "use_cache" not in (inputs.kwargs or {}):
        uncached = Inputs(inputs.args, {**(inputs.kwargs or {}), "use_cache": False})
        if _runs(model, uncached):  # modules are run again here: a cache would grow
            inputs = uncached
    if sum(p.numel() for p in model.parameters()) <= SMALL:
        try:
            twice = copy.deepcopy(model).double()
            wide = Inputs(*_cast(inputs, torch.float64))
            with quietly(twice):
                exact = main_output(wide.call(twice)).isfinite().any().item() is True
            if exact:
                model, inputs = twice, wide
        except Exception:  # a model that insists on another type is probed in its own
            exact = False
    roles = find_roles(model, inputs)
    pads = _pads(model, inputs, roles)
    plain = _unpadded(model, inputs, roles, pads)
    if plain is not inputs:
        roles = find_roles(model, plain)
    names = argument_names(model, inputs)
    return Study(subject, model, plain, roles, names, exact, inputs, pads)


def _pads(model: nn.Module, inputs: Inputs, roles: Roles) -> tuple[int, ...]:
    """Ids that mean padding: by ``padding_idx`` and the like, or as lines end in runs of them."""
    found = set(pad_ids(model))
    for name in roles.rows:
        ids = inputs.tensors()[name]
        if ids.dim() == 2 and ids.shape[1] > 2:
            found |= {int(line[-1]) for line in ids if bool((line[-2:] == line[-1]).all())}
    return tuple(sorted(found))


def _unpadded(model: nn.Module, inputs: Inputs, roles: Roles, pads: Sequence[int]) -> Inputs:
    """The call with words in the place of padding, and masks that hide nothing."""
    plain = inputs
    generator = torch.Generator().manual_seed(2)
    for name, rows in roles.rows.items():
        ids = inputs.tensors()[name]
        padded = torch.isin(ids, torch.tensor(pads, dtype=ids.dtype, device=ids.device))
        if bool(padded.any()):
            words = torch.tensor(word_ids(rows, {*roles.special, *pads}))
            drawn = words[torch.randint(len(words), ids.shape, generator=generator)].to(ids)
            plain = plain.replaced(name, torch.where(padded, drawn, ids))
    for mask in roles.masks:
        if mask.reading is not None and not mask.square:
            value = inputs.tensors()[mask.name]
            whole = torch.ones(value.shape, dtype=torch.bool, device=value.device)
            kept = as_mask(whole, mask.reading, value.dtype, floats_of(model))
            if not torch.equal(kept, value):
                plain = plain.replaced(mask.name, kept)
    if plain is inputs:
        return inputs
    try:
        with quietly(model):
            fine = bool(main_output(plain.call(model)).isfinite().all())
    except Exception:  # the model wants its padding
        fine = False
    return plain if fine else inputs


def _cast(inputs: Inputs, dtype: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any] | None]:
    args, kwargs = torch.utils._pytree.tree_map_only(
        Tensor,
        lambda t: t.to(dtype) if t.is_floating_point() else t,
        (inputs.args, inputs.kwargs),
    )
    return args, kwargs


def _runs(model: nn.Module, inputs: Inputs) -> bool:
    try:
        with quietly(model):
            main_output(inputs.call(model))
    except Exception:
        return False
    return True


def _largest(t: Tensor) -> float:
    return float(t.nan_to_num().abs().max()) if t.numel() else 0.0


def _decided(*rules: str) -> Callable[[Callable[[Study], Said]], Check]:
    """A rule on the study; where there can be no study, an Unknown for each of its names."""

    def wrap(rule: Callable[[Study], Said]) -> Check:
        def run(subject: Subject) -> Said:
            try:
                s = study(subject)
            except CannotMakeInputs as error:
                for name in rules:
                    yield Unknown(rule=name, module="", why=str(error))
                return
            yield from rule(s)

        return Check(rules, run)

    return wrap


# --- from inside: every module by itself ----------------------------------------------------------


def _axes(t: Any, samples: int, places: Collection[int] | None) -> tuple[int, int] | None:
    """(batch, time) axes of features (B, T, D) or (T, B, D); ``places`` are the lengths to expect,
    the likeliest first, None if any may come."""
    if not isinstance(t, Tensor) or not t.is_floating_point() or t.dim() != 3:
        return None
    for n in (None,) if places is None else places:
        for b, p in ((0, 1), (1, 0)):
            fits = t.shape[b] == samples and t.shape[p] > 1 and n in (None, t.shape[p])
            if fits and (t.shape[p] != samples or b == 0):
                return b, p
    return None


def _lengths(s: Study) -> list[int] | None:
    """How many places tensors inside have: those of the sequences, or a few more or fewer (a class
    token, a shift). None where a front end decides."""
    r = s.roles
    if r.time is None:
        return None
    fed = [s.inputs.tensors()[n] for n in (r.main, r.memory) if n is not None]
    if any(t.is_floating_point() for t in fed) and r.rows:
        return None
    own = [t.shape[r.time] for t in fed if t.dim() > r.time]
    return [n + more for more in (0, 1, -1, 2) for n in own if n + more > 1]


def _local(s: Study) -> list[Local]:
    found: list[Local] = []
    samples, lengths = s.samples, _lengths(s)
    paths = {module: path for path, module in s.model.named_modules() if path}
    busy = False
    counts: dict[str, int] = {}

    def again(module: nn.Module, args: Any, kwargs: Any, edit: Callable[[Tensor], Tensor]) -> Any:
        nonlocal busy
        busy = True
        try:
            torch.manual_seed(0)
            edited: dict[int, Tensor] = {}  # one tensor passed twice stays one tensor

            def changed(t: Tensor) -> Tensor:
                if id(t) not in edited:
                    edited[id(t)] = edit(t)
                return edited[id(t)]

            args, kwargs = torch.utils._pytree.tree_map_only(Tensor, changed, (args, kwargs))
            return module.forward(*args, **kwargs)
        finally:
            busy = False

    def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        path = paths.get(module)
        if busy or path is None or type(module) in POINTWISE or counts.get(path, 0) >= 2:
            return
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        placed = [(t, _axes(t, samples, lengths)) for t in leaves]
        first = next(((t, a) for t, a in placed if a is not None), None)
        result = _first(out)
        if first is None or result is None:
            return
        n = first[0].shape[first[1][1]]
        out_axes = _axes(result, samples, [n])
        if out_axes is None:
            return
        counts[path] = counts.get(path, 0) + 1
        place = n // 2
        spots = [place]
        generator = torch.Generator().manual_seed(len(found))

        def poke(t: Tensor) -> Tensor:
            axes = _axes(t, samples, [n])
            if axes is None:
                return t
            new = t.clone()
            spot = new.movedim(axes, (0, 1))[0, spots[0]]  # a view
            noise = torch.randn(spot.shape, generator=generator, dtype=torch.float64).to(spot)
            spot += noise * t.std().clamp(min=1e-3)
            return new

        shuffled = torch.tensor([*reversed(range(n - 1)), n - 1])

        def shuffle(t: Tensor) -> Tensor:
            axes = _axes(t, samples, [n])
            return t if axes is None else t.index_select(axes[1], shuffled.to(t.device))

        swap = torch.arange(n)
        swap[place - 1], swap[min(place + 1, n - 1)] = min(place + 1, n - 1), place - 1

        def exchange(t: Tensor) -> Tensor:
            axes = _axes(t, samples, [n])
            return t if axes is None else t.index_select(axes[1], swap.to(t.device))

        state = torch.get_rng_state()
        try:
            base = _first(again(module, args, kwargs, lambda t: t))
            new = _first(again(module, args, kwargs, poke))
            if base is None or new is None or new.shape != base.shape:
                return
            scale = _largest(base) + 1e-30
            floor = (1e-11 if s.exact else 1e-5) * scale
            moved = (new - base).nan_to_num().abs().movedim(out_axes, (0, 1)).amax(-1)
            grid = moved > floor
            mine, others = grid[0], grid[1:]
            before = tuple(t for t in range(place) if mine[t])
            after = tuple(t for t in range(place + 1, n) if mine[t])
            elsewhere = others.clone()
            elsewhere[:, place] = False
            order = None
            if before or after or bool(others.any()):
                turned = _first(again(module, args, kwargs, shuffle))
                if turned is not None and turned.shape == base.shape:
                    last = (turned - base).movedim(out_axes, (0, 1))[:, n - 1]
                    # what the last place itself adds is the same in both
                    order = _largest(last) / scale
            moved[0, place] = 0.0
            full = len(before) == place > 0 and bool(after)
            uneven = False
            if full:
                spots[0] = n - 1
                new = _first(again(module, args, kwargs, poke))
                if new is not None:
                    late = (new - base).nan_to_num().abs().movedim(out_axes, (0, 1)).amax(-1)
                    full = bool((late[0, : n - 1] > floor).all())
                if order is not None and order < 1e-6:
                    new = _first(again(module, args, kwargs, exchange))
                    if new is not None:
                        middle = (new - base).movedim(out_axes, (0, 1))[:, place]
                        uneven = _largest(middle) > max(floor, 1e-6 * scale)
            found.append(
                Local(
                    path,
                    len(found),
                    place,
                    n,
                    before,
                    after,
                    bool(others[:, place].any()),
                    bool(elsewhere.any()),
                    order,
                    float(moved.max()) / scale,
                    full,
                    uneven,
                )
            )
        except Exception:  # a module that cannot be run by itself says nothing
            return
        finally:
            torch.set_rng_state(state)

    hooks = [m.register_forward_hook(hook, with_kwargs=True) for m in paths]
    try:
        s.run()
    finally:
        for handle in hooks:
            handle.remove()
    return found


def _first(out: Any) -> Tensor | None:
    for leaf in torch.utils._pytree.tree_leaves(_opened(out)):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf
    return None


def _opened(out: Any) -> Any:
    return tuple(out.values()) if hasattr(out, "values") and not isinstance(out, Tensor) else out


def _listed(found: Sequence[Local]) -> str:
    paths = list(dict.fromkeys(one.path for one in found))
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(repr(p) for p in paths[:3]) + more


# --- the future -----------------------------------------------------------------------------------


def _claims(s: Study) -> str | None:
    """What the model itself says of being causal, if it does."""
    model = s.subject.model
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False) is True and s.roles.memory is None:
        return None
    if getattr(config, "is_decoder", None) is True:
        return "its config says is_decoder=True"
    kind = type(model).__name__
    if re.search(r"GPT|Causal(?!ity)|Autoregressive|LanguageModel|(?<!Masked)(?<!Span)LM$", kind):
        return f"its class is called {kind}"
    if callable(getattr(model, "generate", None)) and s.roles.kind == "ids":
        rows = s.roles.rows.get(s.roles.main)
        if rows is not None and rows <= s.base.shape[-1] and s.base.dim() == 3:
            return "it has a generate method and a head over the vocabulary"
    return None


def _own_flag(s: Study, found: Sequence[Local]) -> str | None:
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


@_decided("future-leak", "no-causal-mask")
def _future(s: Study) -> Said:
    if s.subject.causal is False:
        return
    sees, own = s.sees, s.places
    inside = [m for m in s.mixers if m.places == own or s.roles.kind in ("image", "wave")]
    if sees is None and not inside:
        if s.subject.causal:
            why = (
                "the output has no axis of places, and no module inside was found in which places "
                "see one another"
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
    nothing_masked = not causal and not partial and (bool(full) or share == 1.0)
    upside_down = not past and (share == 1.0 or bool(partial))
    claim = _claims(s) or _own_flag(s, [*full, *partial])
    said = "causal=True was given" if s.subject.causal else claim
    if s.subject.causal is None:
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
        masked = _with_causal_mask(s)
        if masked is not None:
            yield Finding(
                rule="no-causal-mask",
                severity="note",
                module="",
                evidence={**evidence, "leaks_with_mask_given": False},
                message=f"{said}, and without a mask every position sees every other; with a "
                f"causal {masked} it does not. The mask is the caller's to give, every time.",
                remedy=f"Pass {masked} in training and in generation, or build it in forward.",
            )
            return
        yield Finding(
            rule="no-causal-mask",
            severity="error",
            module=full[0].path if full else "",
            evidence={**evidence, "modules": [m.path for m in full[:6]] or ["(the model)"]},
            message=f"{said}, but every position sees every other"
            + (f", from {full[0].path!r} on" if full else "")
            + ". Trained on next tokens it copies the answer: the loss falls to nearly nothing, "
            "and what it generates is worthless.",
            remedy="Mask attention so that position t sees positions up to t: "
            "scaled_dot_product_attention(..., is_causal=True), or fill scores above the diagonal "
            "with -inf before the softmax.",
        )
        return
    if upside_down:
        found = partial
        what = "positions see only what comes after them: the mask is upside down"
    else:
        found = [*partial, *(full if causal or partial else [])]
        what = "a position's output changes with tokens that come after it" + (
            f", up to {reach} later" if reach < own - 1 or sees is None else ""
        )
    local_reach = max((m.place - min(m.before) for m in found), default=reach)
    first = min(found, key=lambda m: m.order) if found else None
    where = f" It happens in {_listed(found)}" if found else " No module alone does it"
    if found:
        where += f", which reaches {local_reach} position{'s' * (local_reach > 1)} ahead"
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


def _with_causal_mask(s: Study) -> str | None:
    """The optional argument with which the model becomes causal, if there is one."""
    if s.sees is None:
        return None
    n = s.places
    for name in _optional(s, re.compile("mask")):
        if "pad" in name or re.search("memory|src_key|encoder", name):
            continue
        past = torch.ones(n, n, dtype=torch.bool).tril()
        floats = s.base.dtype
        readings: tuple[Reading, ...] = ("drop", "keep", "additive")
        for reading in readings:
            value = as_mask(past, reading, torch.bool, floats)
            given = Inputs(s.inputs.args, {**(s.inputs.kwargs or {}), name: value})
            try:
                base = s.run(given)
                if not bool(base.isfinite().all()):
                    continue
                new = s.run(s.change(s.roles.main, s.at(0, n - 1), given))
            except Exception:
                continue
            grid = s.grid(new - base)[0]
            if not bool((grid[: n - 1] > s.floor).any()) and bool(grid[n - 1] > s.floor):
                return name
    return None


# --- other samples --------------------------------------------------------------------------------


@_decided("batch-leak", "batch-time-swapped")
def _samples(s: Study) -> Said:
    if s.samples < 2:
        for rule in ("batch-leak", "batch-time-swapped"):
            yield Unknown(rule=rule, module="", why="the inputs hold one sample only")
        return
    swapped = yield from _swapped(s)
    if not swapped:
        yield from _leaks(s)
    yield from _memory_samples(s)


def _swapped(s: Study) -> Generator[Finding | Unknown, None, bool]:
    r = s.roles
    if r.time is None:
        return False
    crossing = s.innermost(lambda m: m.other_same and not m.mixes and not m.other_else)
    if r.batch != 0 or not (r.mixed == 0 or (r.out_time is None and crossing and not s.mixers)):
        return False
    sure = r.positions == 1 or r.out_time is None
    first = crossing[0].path if crossing else ""
    severity: Severity = "error" if sure or s.subject.causal is not None else "warning"
    yield Finding(
        rule="batch-time-swapped",
        severity=severity,
        module=first,
        evidence={
            "samples": s.samples,
            "positions": s.places,
            "same_position_of_other_samples_moves": True,
            "other_positions_of_same_sample_move": False,
            "positions_added_along_axis": -1 if r.positions is None else r.positions,
            "modules": [m.path for m in crossing[:6]] or ["(the model)"],
        },
        message="batch and time are swapped: a token's output does not depend on the other tokens "
        "of its own sample, but on the tokens at the same position of the other samples"
        + (f"; {first!r} mixes along the batch" if first else "")
        + ". It trains on noise, and what it says of a sample depends on its neighbours.",
        remedy="Build the layers with batch_first=True, or transpose to (time, batch, features) "
        "before them and back after them"
        + ("." if sure else ". If you do pass (time, batch), all is well: ignore this rule."),
    )
    return True


def _memory_samples(s: Study) -> Said:
    """The same of the encoder's input."""
    r = s.roles
    if r.memory is None or r.out_batch is None or s.base.dim() == 0:
        return
    value = s.inputs.tensors()[r.memory]
    if value.dim() <= r.batch or value.shape[r.batch] != s.samples:
        return
    changed = s.run(s.change(r.memory, tuple([slice(None)] * r.batch + [0])))
    size = _largest((changed - s.base).movedim(r.out_batch, 0)[1:])
    if size <= s.floor:
        return
    places = value.shape[1 - r.batch]
    here = [m for m in s.local if m.places == places]
    crossing = [m for m in here if m.other_same and not m.mixes and not m.other_else]
    if r.batch == 0 and crossing and not any(m.mixes for m in here):
        inner = s.innermost(lambda m: m in crossing)
        yield Finding(
            rule="batch-time-swapped",
            severity="error",
            module=inner[0].path,
            evidence={
                "argument": s.name(r.memory),
                "change_in_other_samples": size,
                "noise_floor": s.floor,
                "modules": [m.path for m in inner[:6]],
            },
            message=f"batch and time are swapped where {s.name(r.memory)!r} is read: "
            f"{inner[0].path!r} mixes the same position of different samples, and not the "
            "positions of one.",
            remedy="Build these layers with batch_first=True as well, or transpose before and "
            "after them.",
        )
        return
    found = s.innermost(lambda m: m in here and (m.other_same or m.other_else))
    yield _batch_finding("error", found, size, s, "")


def _leaks(s: Study) -> Said:
    r = s.roles
    if r.out_batch is None and r.time is not None:
        found = s.innermost(lambda m: m.other_same or m.other_else)
        if found:
            yield _batch_finding("error", found, 0.0, s, "")
        elif not s.local:
            yield Unknown(
                rule="batch-leak",
                module="",
                why="the output has no axis of samples, and no module inside could be run alone",
            )
        return
    axis = 0 if r.out_batch is None else r.out_batch
    if s.base.dim() == 0 or s.base.shape[axis] != s.samples:
        yield Unknown(
            rule="batch-leak", module="", why="the output has no axis as long as the batch"
        )
        return

    changed = s.change(r.main, tuple([slice(None)] * r.batch + [0]))

    def others(run: Callable[[Inputs], Tensor]) -> tuple[float, float]:
        base, again, new = run(s.inputs), run(s.inputs), run(changed)
        if new.shape != base.shape:
            return 0.0, 0.0
        moved = (new - base).nan_to_num().abs().movedim(axis, 0)
        return _largest(moved[1:]), max(10 * _largest(again - base), s.floor)

    size, floor = others(lambda call: s.base if call is s.inputs else s.run(call))
    if size > floor:
        found = s.innermost(lambda m: m.other_same or m.other_else)
        yield _batch_finding("error", found, size / (_largest(s.base) + 1e-30), s, "")
        return
    try:
        trained = copy.deepcopy(s.model)  # running statistics are updated in it
        size, floor = others(lambda call: _trained(trained, call))
    except Exception as error:  # a model that does not run in training mode has no such mistake
        yield Unknown(
            rule="batch-leak",
            module="",
            why=f"in training mode the model does not run on these inputs: {error}"[:300],
        )
        return
    if size > 1e3 * floor:
        norms = [p for p, m in s.model.named_modules() if isinstance(m, _NormBase)]
        yield Finding(
            rule="batch-leak",
            severity="warning",
            module=norms[0] if norms else "",
            evidence={
                "change_in_other_samples": size,
                "noise_floor": floor,
                "mode": "train",
                "batch_norms": len(norms),
            },
            message="in training mode, and only there, the output of one sample depends on the "
            "others in its batch"
            + (f": {norms[0]!r} takes its statistics over the batch" if norms else "")
            + ". Small or padded batches train another model than the one that is evaluated.",
            remedy="Use a norm over features (LayerNorm, RMSNorm) in the stream.",
        )


def _batch_finding(
    severity: Severity, found: Sequence[Local], size: float, s: Study, mode: str
) -> Finding:
    first = found[0].path if found else ""
    return Finding(
        rule="batch-leak",
        severity=severity,
        module=first,
        evidence={
            "change_in_other_samples": size or max(m.largest for m in found),
            "noise_floor": s.floor,
            "mode": mode or "eval",
            "modules": [m.path for m in found[:6]] or ["(the model)"],
        },
        message="changing one sample changes the output of the others in its batch"
        + (f"; it happens in {_listed(found)}" if found else "")
        + ". Results depend on who else is in the batch, and evaluation is not reproducible.",
        remedy="Normalize, pool and attend within a sample: no mean, norm, softmax or reshape that "
        "runs over the batch axis.",
    )


def _trained(model: nn.Module, inputs: Inputs, seed: int = 0) -> Tensor:
    """The output in training mode, in which the model stays: give a copy."""
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _hushed():
        model.train()
        torch.manual_seed(seed)
        return main_output(inputs.call(model)).detach()


@contextmanager
def _hushed() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- masks ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Padding:
    """A padding mask and the call in which it is given."""

    role: MaskRole
    inputs: Inputs
    said: str
    """Its name in the signature."""
    works: bool
    """Hiding a place with it has an effect."""

    def hiding(self, s: Study, hidden: Any) -> Inputs:
        """The call with places of sample 0 hidden; ``hidden`` indexes the last axis."""
        value = self.inputs.tensors()[self.role.name]
        keep = torch.ones(value.shape, dtype=torch.bool)
        keep[(0, *[slice(None)] * (keep.dim() - 2), hidden)] = False
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


def _optional(s: Study, pattern: re.Pattern[str]) -> list[str]:
    """Arguments of the signature that are not given and are called so."""
    given = {*s.names.values(), *(s.inputs.kwargs or {})}
    return [
        name
        for name, p in signature(s.model).items()
        if name not in given and p.default is not p.empty and pattern.search(name)
    ]


_PADDING = re.compile(r"mask|valid|padding|^pad_|^keep$")
_PLAIN = {"attention", "attn", "mask", "key", "padding", "pad", "src", "tgt", "valid", "decoder"}
_NO_PADDING = re.compile(
    r"head|causal|look|bool_masked|mask_time|loss|pixel|token_mask|memory_mask|position|prefix"
)


def _paddings(s: Study) -> list[_Padding]:
    """The padding masks: those that are given, and optional ones that could be made."""
    if "paddings" in s.found:
        kept: list[_Padding] = s.found["paddings"]
        return kept
    found = []
    for role in s.roles.masks:
        if not role.square:
            works = role.reading is not None or _hides(s, role, s.inputs, s.name(role.name))
            found.append(_Padding(role, s.inputs, s.name(role.name), works))
    sequences = [n for n in (s.roles.main, s.roles.memory) if n is not None]
    for name in _optional(s, _PADDING):
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
    s.found["paddings"] = found
    return found


def _conditional(s: Study, name: str) -> bool:
    """It speaks of another argument that is not given either: ``context_mask`` of ``context``."""
    words = [w for w in name.split("_") if w not in _PLAIN and len(w) > 2]
    return any(
        word in other.split("_") and not _PADDING.search(other)
        for other in _optional(s, re.compile(""))
        for word in words
        if other != name and type(signature(s.model)[other].default) is not bool
    )


def _made_mask(s: Study, name: str, of: str) -> _Padding | None:
    tensor = s.inputs.tensors()[of]
    if tensor.dim() < 2 or (s.roles.kind in ("image", "wave") and of == s.roles.main):
        return None
    if tensor.is_floating_point() and s.roles.rows:
        return None  # frames beside tokens: what a place is there, the front end decides
    batch, places = s.samples, tensor.shape[1 if s.roles.batch == 0 else 0]
    ran: _Padding | None = None
    for value in mask_values(batch, places, s.base.dtype):
        other = ~value if value.dtype is torch.bool else 1 - value
        for mask in (value, other):  # a mask of all ones hides all where 1 drops
            given = Inputs(s.inputs.args, {**(s.inputs.kwargs or {}), name: mask})
            try:
                out = s.run(given)
                if out.shape != s.base.shape or not bool(out.isfinite().all()):
                    continue
                with quietly(s.model):
                    reading = mask_reading(s.model, given, name, s.roles.rows)
                role = MaskRole(name, of, reading, False)
                works = reading is not None or _hides(s, role, given, name)
            except Exception:  # not this kind of mask
                continue
            if works:
                return _Padding(role, given, name, True)
            ran = ran or _Padding(role, given, name, False)
    return ran


def _hides(s: Study, role: MaskRole, inputs: Inputs, said: str) -> bool:
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
    return max(_largest(one - none), _largest(two - none)) > s.floor


def _padded_ids(s: Study, pad: int, hidden: Sequence[int]) -> Inputs:
    """The call with padding at these places of sample 0 of the main input."""
    ids = s.inputs.tensors()[s.roles.main].clone()
    ids[s.at(0, list(hidden))] = pad
    return s.inputs.replaced(s.roles.main, ids)


def _own_masks(s: Study) -> list[tuple[int, bool, float]]:
    """(pad id, some attention does not see it, change at real places) for padding that the model
    is to find in the ids by itself: there is no mask to give.

    What the padding's embedding holds is changed; where it is hidden nobody notices.
    """
    if "own_masks" in s.found:
        kept: list[tuple[int, bool, float]] = s.found["own_masks"]
        return kept
    found: list[tuple[int, bool, float]] = []
    r = s.roles
    if r.kind == "ids" and r.main in r.rows and s.places > 4 and not _paddings(s):
        for pad in s.pads:
            if pad < r.rows[r.main]:
                found.append(_pad_seen(s, pad))
    s.found["own_masks"] = found
    return found


def _pad_seen(s: Study, pad: int) -> tuple[int, bool, float]:
    n = s.places
    hidden = [n - 2, n - 1]
    call = _padded_ids(s, pad, hidden)
    ids = call.tensors()[s.roles.main]
    mixers = {m.path for m in s.mixers}

    def run(noise: float) -> tuple[Tensor, dict[str, Tensor]]:
        taps: dict[str, Tensor] = {}

        def look(module: nn.Module, args: Any, out: Any) -> Any:
            index = args[0] if args else None
            if isinstance(index, Tensor) and index.shape == ids.shape and torch.equal(index, ids):
                wave = torch.arange(out.shape[-1], device=out.device).to(out).cos()
                return out + noise * (ids == pad)[..., None] * wave
            return None

        def tap(path: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, out: Any) -> None:
                leaf = _first(out)
                if leaf is not None:
                    taps.setdefault(path, leaf)

            return hook

        handles = [
            m.register_forward_hook(look) for m in s.model.modules() if isinstance(m, nn.Embedding)
        ]
        handles += [
            m.register_forward_hook(tap(p)) for p, m in s.model.named_modules() if p in mixers
        ]
        try:
            return s.run(call), taps
        finally:
            for handle in handles:
                handle.remove()

    (base, before), (new, after) = run(0.0), run(1.0)
    obeys = False
    for path, old in before.items():
        axes = _axes(old, s.samples, [n])
        if axes is not None and after[path].shape == old.shape:
            real = (after[path] - old).movedim(axes, (0, 1))[0, : n - 2]
            obeys |= _largest(real) <= s.floor
    change = new - base
    moved = _largest(change) if s.sees is None else float(s.grid(change)[0][: n - 2].max())
    return pad, obeys, moved


def _silent_padding(s: Study) -> Said:
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
            message=f"id {pad} is padding, and what its embedding holds changes the output of real "
            "tokens"
            + (
                ": attention does not see it, but some later step (a mean, a maximum, the last "
                "place) does"
                if obeys
                else ": nothing hides it, and there is no mask to give"
            )
            + ". What the model says of a text depends on how far its batch was padded.",
            remedy="Hide padding from every attention, and leave it out of means, maxima and "
            "last-token pooling.",
        )


def _wrong_way(s: Study, padding: _Padding) -> Finding | None:
    """The mask is read against what was given, or against what its name means everywhere."""
    reading = padding.role.reading
    if reading not in ("keep", "drop"):
        return None
    kept: bool | None = None
    sure = False
    value = s.given.tensors().get(padding.role.name)
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


@_decided("padding-leak")
def _padding(s: Study) -> Said:
    yield from _silent_padding(s)
    for padding in _paddings(s):
        wrong = _wrong_way(s, padding)
        if wrong is not None:
            yield wrong
            continue
        of = padding.role.of
        value = s.inputs.tensors()[of]
        axis = 1 if s.roles.batch == 0 else 0
        n = value.shape[axis]
        if n < 4 or value.dim() < 2:
            continue
        pooled = of != s.roles.main or s.sees is None
        hidden = [n - 2, n - 1] if pooled else [0, n - 2, n - 1]
        sees = s.sees
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
                why=f"with places hidden by {padding.said} the model does not run: {error}"[:300],
            )
            continue
        if pooled:
            moved = _largest(new - base)
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
                "output_size": _largest(base),
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
            + ". What the model says of a text depends on how far its batch was padded.",
            remedy="Give the mask to every attention, and leave padded places out of means, "
            "maxima and last-token pooling.",
        )


def _together(s: Study, padding: _Padding, hidden: list[int], where: tuple[Any, ...]) -> bool:
    """Nothing leaks if all masks of this argument are given: one for the encoder, say, and one for
    those who read it."""
    others = [p for p in _paddings(s) if p.role.of == padding.role.of and p is not padding]
    if not others or padding.role.of == s.roles.main:
        return False
    call = padding.hiding(s, hidden)
    for other in others:
        value = other.hiding(s, hidden).tensors()[other.role.name]
        given = Inputs(call.args, {**(call.kwargs or {})})
        call = given.replaced(other.role.name, value)
    try:
        return _largest(s.run(s.change(padding.role.of, where, call)) - s.run(call)) <= s.floor
    except Exception:  # they do not go together
        return False


@_decided("mask-nan")
def _nan(s: Study) -> Said:
    ways: list[tuple[str, str, Callable[[list[int]], Inputs]]] = [
        (p.said, p.role.of, partial(p.hiding, s)) for p in _paddings(s) if p.works
    ]
    ways += [
        (f"id {pad}", s.roles.main, partial(_padded_ids, s, pad))
        for pad, obeys, _ in _own_masks(s)
        if obeys
    ]
    for said, of, hide in ways:
        value = s.inputs.tensors()[of]
        axis = 1 if s.roles.batch == 0 else 0
        n = value.shape[axis]
        cases = {"one sample hidden altogether": list(range(n))}
        if n > 3:
            cases["left padding of one sample"] = [0, 1]
        for case, hidden in cases.items():
            try:
                counted = _count_nan(s, hide(hidden), hidden, n)
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
                message=f"{case} ({said}) makes NaN: {', '.join(what)}. A softmax over "
                "nothing but -inf is 0/0"
                + (", and one such sample in a batch ruins every weight." if gradients else "."),
                remedy="Let every query see at least itself, fill with a large finite number "
                "instead of -inf, or set the rows that see nothing to zero after the softmax.",
            )
            break


def _count_nan(s: Study, inputs: Inputs, hidden: list[int], n: int) -> tuple[int, int, int, str]:
    """NaN at hidden places, at real ones, parameters with NaN gradients; the first module."""
    model = s.subject.model  # in the type it will run in: the float64 copy may overflow otherwise
    if s.exact:
        floats = floats_of(model)
        inputs = Inputs(*_cast(inputs, floats))
    first: list[str] = []
    paths = {module: path for path, module in model.named_modules()}

    def hook(module: nn.Module, args: Any, out: Any) -> None:
        leaf = _first(out)
        if not first and leaf is not None and bool(leaf.isnan().any()):
            first.append(paths[module])

    modes = [(m, m.training) for m in model.modules()]
    needed = [(p, p.requires_grad) for p in model.parameters()]
    kept = [p.grad for p, _ in needed]
    handles = [m.register_forward_hook(hook) for m in paths]
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), _hushed():
            torch.manual_seed(0)
            model.eval()
            for p, _ in needed:
                p.requires_grad_(p.is_floating_point())
            out = main_output(inputs.call(model))
            real = torch.ones_like(out, dtype=torch.bool)
            r = s.roles
            if r.out_batch is not None:
                rows = real.movedim(r.out_batch, 0)
                if r.out_time is not None and out.shape[r.out_time] == n:
                    real.movedim((r.out_batch, r.out_time), (0, 1))[0, hidden] = False
                elif len(hidden) == n:
                    rows[0] = False
            nan = out.isnan()
            own, elsewhere = int((nan & ~real).sum()), int((nan & real).sum())
            loss = torch.where(real, out, 0.0).square().sum()
            gradients = torch.autograd.grad(
                loss, [p for p, _ in needed if p.requires_grad], allow_unused=True
            )
            bad = sum(g is not None and bool(g.isnan().any()) for g in gradients)
    finally:
        for handle in handles:
            handle.remove()
        for (p, grad), old in zip(needed, kept, strict=True):
            p.requires_grad_(grad)
            p.grad = old
        for module, training in modes:
            module.training = training
    return own, elsewhere, bad, first[0] if first else ""


@_decided("ignored-argument", "ignores-memory")
def _arguments(s: Study) -> Said:
    r = s.roles
    if r.memory is not None:
        value = s.inputs.tensors()[r.memory]
        moved = _largest(s.run(s.change(r.memory, tuple([slice(None)] * value.dim()))) - s.base)
        if moved <= s.floor:
            yield Finding(
                rule="ignores-memory",
                severity="error",
                module="",
                evidence={
                    "argument": s.name(r.memory),
                    "change_in_output": moved,
                    "noise_floor": s.floor,
                },
                message=f"the decoder's output does not depend on {s.name(r.memory)!r}: whatever "
                "the encoder reads, the decoder says the same.",
                remedy="Take keys and values of the cross attention from the encoder's output, "
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
        if changed.shape == s.base.shape and _largest(changed - s.base) <= s.floor:
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
                if _largest(new - s.base) <= s.floor and bool(new.isfinite().all()):
                    yield _ignored(
                        s, s.name(role.name), "error", "a mask that hides places", "hides nothing"
                    )
    for name in _optional(s, re.compile(r"token_type|segment")):
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
        if _largest(outs[0] - outs[1]) <= s.floor:
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
        if new.shape == s.base.shape and _largest(new - s.base) <= s.floor:
            yield _ignored(s, name, "note", f"{not p.default}", "changes nothing")


def _other(value: Tensor) -> Tensor:
    if value.dtype is torch.bool:
        return ~value
    return value.flip(-1) + 1.0 if value.is_floating_point() else value.flip(-1)


def _ignored(s: Study, name: str, severity: Severity, given: str, effect: str) -> Finding:
    return Finding(
        rule="ignored-argument",
        severity=severity,
        module="",
        evidence={"argument": name, "given": given, "noise_floor": s.floor, "change": 0.0},
        message=f"the argument {name!r} is without effect: {given} {effect} in the output. Whoever "
        "passes it believes it does something.",
        remedy=f"Use {name!r} in forward (is it passed on to every layer?), or take it out of the "
        "signature.",
    )


# --- positions ------------------------------------------------------------------------------------


@_decided("position-blind")
def _positions(s: Study) -> Said:
    r = s.roles
    sides = [r.main] if r.memory is None else [r.main, r.memory]
    if r.positions is not None:
        sides.remove(r.main)
    for side in sides:
        yield from _side_positions(s, side)


def _side_positions(s: Study, side: str) -> Said:
    r = s.roles
    value = s.inputs.tensors()[side]
    axis = 1 if r.batch == 0 else 0
    sequence = side in r.rows or (value.is_floating_point() and value.dim() == 3)
    places = value.shape[axis] if sequence else None
    varied, seen = _varied(s, side, places)
    if varied:
        return
    mixers = [m for m in s.mixers if places is None or m.places == places]
    permuted: float | None = None
    if sequence and places is not None and places > 2:
        turned = torch.tensor([*reversed(range(places - 1)), places - 1])
        new = s.run(s.inputs.replaced(side, value.index_select(axis, turned)))
        if side != r.main or r.out_time is None:
            permuted = _largest(new - s.base)
        elif s.sees is not None:
            permuted = _largest(new - s.base.index_select(r.out_time, turned))
    blind_all = permuted is not None and permuted <= max(s.floor, _rounding(s))
    if not blind_all:
        if any(m.order_matters is None for m in mixers) or not mixers:
            if seen or (permuted is not None and not _one_way(s)):
                return
            yield Unknown(
                rule="position-blind",
                module="",
                why="no module was found in which places see one another, so that the forward "
                "could not be asked what it makes of their order",
            )
            return
        limit = 1e-9 if s.exact else 1e-4
        if any((m.order_matters or 0.0) > limit for m in s.local if m.mixes):
            return
        if not _one_way(s) and permuted is not None:
            return  # the order shows in the output, wherever it comes in
    features = r.kind == "features" and not r.rows
    one_way = _one_way(s)
    severity: Severity = "error"
    if features:
        severity = "note"
    elif one_way and side == r.main:
        severity = "warning"
    first = mixers[0] if mixers else None
    evidence: dict[str, Any] = {
        "argument": s.name(side),
        "positions": places or (first.places if first else 0),
        "equal_tokens_differ_by_position": False,
    }
    if permuted is not None:
        evidence["difference_after_permutation"] = permuted
    if first is not None and first.order_matters is not None:
        evidence["change_at_last_position"] = first.order_matters
    what = (
        "the same token looks the same at every position, and the first attention's output at the "
        "last position is the same in whatever order the earlier ones stand. A causal mask tells "
        "order to deeper layers only, and indirectly"
        if one_way and side == r.main
        else "permuted tokens give the same outputs, permuted: the order of words, patches or "
        "frames means nothing"
    )
    yield Finding(
        rule="position-blind",
        severity=severity,
        module=first.path if first else "",
        evidence=evidence,
        message=f"nothing tells the model where the tokens of {s.name(side)!r} stand: {what}."
        + (" For bare layers that is the caller's part." if features else ""),
        remedy="Add positions: learned or sinusoidal ones to the embeddings, or rotary or relative "
        "ones in attention." + (" Add them before you call it." if features else ""),
    )


def _rounding(s: Study) -> float:
    """Sums over places in another order: their number times the rounding of what is summed.

    Parts of a model may compute in float32 in a float64 copy; their rounding, 6e-8 relative, goes
    through a few dozen sums. A position code is never that small.
    """
    return 1e-5 * (_largest(s.base) + 1e-30)


def _one_way(s: Study) -> bool:
    if s.sees is not None:
        return not bool((s.sees.tril(-1) > s.floor).any())
    return bool(s.mixers) and not any(m.before for m in s.mixers)


def _varied(s: Study, side: str, places: int | None) -> tuple[bool, bool]:
    """(some module holds different vectors where all tokens are equal, one was seen)."""
    found: list[bool] = []
    samples = s.samples

    def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        for leaf in torch.utils._pytree.tree_leaves((args, kwargs, _opened(out))):
            axes = _axes(leaf, samples, None if places is None else [places])
            if axes is None:
                continue
            rows = leaf.movedim(axes, (0, 1))[0]  # (places, features)
            scale = _largest(rows) + 1e-30
            different = (torch.cdist(rows.double(), rows.double()) > 1e-6 * scale).sum(1)
            # a class token differs from the others; positions make each differ from most
            found.append(bool((different > rows.shape[0] // 2).float().mean() > 0.6))

    handles = [
        m.register_forward_hook(hook, with_kwargs=True) for p, m in s.model.named_modules() if p
    ]
    try:
        same = s.inputs
        for name in {side, s.roles.main}:
            same = constant(same, name)
        s.run(same)
    except Exception:
        return False, False
    finally:
        for handle in handles:
            handle.remove()
    return any(found), bool(found)


# --- modes ----------------------------------------------------------------------------------------


@_decided("dropout-in-eval")
def _dropout(s: Study) -> Said:
    yield from _mixed_modes(s)
    one, two = s.run(seed=1), s.run(seed=2)
    difference = _largest(one - two) if one.shape == two.shape else float("inf")
    if difference > 0 and s.noise == 0:
        path = _first_random(s)
        yield Finding(
            rule="dropout-in-eval",
            severity="error",
            module=path,
            evidence={"difference_of_two_eval_runs": difference, "output_size": _largest(one)},
            message="in evaluation mode two runs on the same input differ: something is random and "
            f"does not listen to eval(){f', in {path!r}' if path else ''}. Validation and "
            "generation are noisy and worse than the model is.",
            remedy="Use nn.Dropout, or pass training=self.training to F.dropout and "
            "dropout_p=self.dropout if self.training else 0.0 to scaled_dot_product_attention.",
        )
        return
    if s.noise > 0:
        yield Unknown(
            rule="dropout-in-eval",
            module="",
            why=f"two runs under the same RNG differ by {s.noise:.3g}: the randomness is not "
            "torch's, or memory is read that was never written",
        )
        return
    configured = _configured(s.model)
    if not configured:
        return
    model = copy.deepcopy(s.model)
    try:
        outs = [_trained(model, s.inputs, seed) for seed in (1, 2)]
    except Exception as error:
        yield Unknown(
            rule="dropout-in-eval",
            module="",
            why=f"in training mode the model does not run on these inputs: {error}"[:300],
        )
        return
    if outs[0].shape == outs[1].shape and _largest(outs[0] - outs[1]) == 0:
        name, (path, p) = next(iter(configured.items()))
        yield Finding(
            rule="dropout-in-eval",
            severity="warning",
            module=path,
            evidence={
                "dropout_configured": p,
                "places_configured": len(configured),
                "difference_of_two_train_runs": 0.0,
            },
            message=f"dropout is configured ({name}: {p}) and nothing is random in training mode: "
            "it is never applied.",
            remedy="Call the dropout in forward, pass training=self.training, or configure 0.",
        )


def _configured(model: nn.Module) -> dict[str, tuple[str, float]]:
    """Where dropout is set, by name: the module and the probability."""
    found: dict[str, tuple[str, float]] = {}
    for path, module in model.named_modules():
        if isinstance(module, _DropoutNd):
            if 0 < module.p < 1:
                found[path] = (path, module.p)
            continue
        for name, value in vars(module).items():
            if "drop" in name.lower() and type(value) is float and 0 < value < 1:
                found[f"{path}.{name}" if path else name] = (path, value)
    return found


def _mixed_modes(s: Study) -> Said:
    original = s.subject.original
    odd = [p for p, m in original.named_modules() if m.training != original.training]
    if odd:
        tops = [p for p in odd if not any(p.startswith(o + ".") for o in odd)]
        mode, other = ("train", "eval") if original.training else ("eval", "train")
        yield Finding(
            rule="dropout-in-eval",
            severity="note",
            module=tops[0],
            evidence={"modules_in_another_mode": len(odd), "first": tops[:6]},
            message=f"the model is in {mode} mode and {len(odd)} of its modules are in {other} "
            f"mode ({', '.join(tops[:3])}{', ...' if len(tops) > 3 else ''}).",
            remedy=f"Call model.{mode}() as the last thing, unless frozen parts are meant.",
        )


def _first_random(s: Study) -> str:
    """The first module whose output differs between two RNG states though its inputs do not."""
    runs: list[list[tuple[str, list[Tensor], list[Tensor]]]] = []
    for seed in (1, 2):
        seen: list[tuple[str, list[Tensor], list[Tensor]]] = []
        paths = {module: path for path, module in s.model.named_modules()}

        def hook(
            module: nn.Module,
            args: Any,
            kwargs: Any,
            out: Any,
            seen: list[tuple[str, list[Tensor], list[Tensor]]] = seen,
            paths: dict[nn.Module, str] = paths,
        ) -> None:
            def kept(tree: Any) -> list[Tensor]:
                leaves = torch.utils._pytree.tree_leaves(tree)
                return [t.detach().clone() for t in leaves if isinstance(t, Tensor)]

            seen.append((paths[module], kept((args, kwargs)), kept(_opened(out))))

        handles = [m.register_forward_hook(hook, with_kwargs=True) for m in paths]
        try:
            s.run(seed=seed)
        finally:
            for handle in handles:
                handle.remove()
        runs.append(seen)

    def same(a: list[Tensor], b: list[Tensor]) -> bool:
        return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    for one, two in zip(*runs, strict=False):  # inner modules come before those around them
        if one[0] == two[0] and same(one[1], two[1]) and not same(one[2], two[2]):
            return one[0]
    return ""


CHECKS: tuple[Check, ...] = (
    _future,
    _samples,
    _padding,
    _nan,
    _arguments,
    _positions,
    _dropout,
)
