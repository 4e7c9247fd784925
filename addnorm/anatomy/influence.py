"""The influence of a change: who in a model notices it, measured from two sides.

*From outside*, one token, sample or padded place is changed and the output compared; *from inside*,
every module is run again on what it received, with one place changed, which tells the module at
fault apart from those that pass its mistake on. Copies run in float64 where they can; what counts
as a change is measured against a rerun without one.
"""

import copy
import re
import warnings
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from addnorm.anatomy.arguments import Arguments, find_arguments, perturbed, quietly
from addnorm.anatomy.inputs import Inputs, cast_floats
from addnorm.anatomy.masks import as_mask, floats_of
from addnorm.anatomy.outputs import first_float, largest, main_output, tensors_in
from addnorm.anatomy.signature import argument_names, signature
from addnorm.anatomy.specimen import Specimen, once
from addnorm.anatomy.structure import Attention, Structure, factors
from addnorm.anatomy.token_ids import pad_ids, word_ids
from addnorm.anatomy.trace import Value, record
from addnorm.anatomy.twins import call_key, twin_key

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


# --- what is measured -----------------------------------------------------------------------------


@dataclass(frozen=True)
class ModuleInfluence:
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


@dataclass(frozen=True)
class AttentionReach:
    """How far an attention looks, by its recorded weights."""

    path: str
    ahead: float
    """The share of the pairs (query, later key) that get weight."""
    behind: float
    flat: bool
    """What lies ahead gets one and the same weight in every row, and what lies behind does not: it
    was filled, with a number too large to hide it."""


@dataclass
class Influence:
    """The copy that is probed, the call, and who is who in it."""

    specimen: Specimen
    model: nn.Module
    inputs: Inputs
    arguments: Arguments
    names: Mapping[str, str]
    exact: bool
    """The copy runs in float64."""
    padded_inputs: Inputs
    """The call before padding was taken out of it."""
    pad_ids: tuple[int, ...] = ()
    """Ids that stand for padding, as the model says or the inputs show."""
    memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """What was measured once and is shared, see ``once``."""

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
    def other_seed(self) -> Tensor:
        """The output for the same inputs, from another random state."""
        return self.run(seed=1)

    @cached_property
    def noise(self) -> float:
        """How far two runs of the same call differ."""
        if torch.equal(self.base, self.other_seed):
            return 0.0
        return largest(self.run() - self.base)

    @cached_property
    def training_copy(self) -> nn.Module:
        """A copy in training mode; running statistics are updated in it."""
        return copy.deepcopy(self.model).train()

    @cached_property
    def training_base(self) -> Tensor:
        """The output of ``training_copy``."""
        return output_in_training(self.training_copy, self.inputs)

    @cached_property
    def floor(self) -> float:
        """What is surely a change: ten times the rerun's, and above rounding.

        Places that nothing reaches come out bit for bit the same, whatever the depth; the second
        term only forgives kernels that sum in another order.
        """
        rounding = (1e-11 if self.exact else 1e-5) * (largest(self.base) + 1e-30)
        return max(10 * self.noise, rounding)

    def name(self, argument: str) -> str:
        """As its author calls it."""
        return self.names.get(argument, argument)

    def change(self, name: str, where: Any, base: Inputs | None = None) -> Inputs:
        """The call with other values at ``where`` of one argument."""
        rows, special = self.arguments.rows.get(name), set(self.arguments.special)
        return perturbed(base or self.inputs, name, where, rows, special)

    def grid(self, change: Tensor) -> Tensor:
        """(samples, places) of a change in the output; the largest over the rest."""
        batch, time = self.arguments.out_batch, self.arguments.out_time
        assert batch is not None
        assert time is not None
        flat = change.nan_to_num().abs().movedim((batch, time), (0, 1))
        return flat.flatten(2).amax(-1) if flat.dim() > 2 else flat

    def at(self, sample: Any, place: Any) -> tuple[Any, ...]:
        """The index of one token in the main input."""
        where = [sample, place] if self.arguments.batch == 0 else [place, sample]
        return tuple(where)

    @property
    def places(self) -> int:
        """The length of the main input."""
        shape = self.inputs.tensors()[self.arguments.main].shape
        return shape[self.arguments.time] if self.arguments.time is not None else 0

    @property
    def samples(self) -> int:
        """The batch of the main input."""
        return self.inputs.tensors()[self.arguments.main].shape[self.arguments.batch]

    @cached_property
    def matrix(self) -> Tensor | None:
        """(changed place, place): the change of one sample's output; None without such axes."""
        batch, time = self.arguments.out_batch, self.arguments.out_time
        if time is None or batch is None or self.places < 2:
            return None
        if self.base.shape[time] != self.places:
            return None
        n = self.places
        small = sum(p.numel() for p in self.model.parameters()) <= SMALL
        some = {1, n // 4, n // 2, 3 * n // 4, n - 2, n - 1} if small else {1, n // 2, n - 1}
        chosen = range(n) if n <= 12 and small else sorted(some)
        rows = torch.zeros(n, n, dtype=self.base.dtype)
        if not small and self.samples >= len(chosen):  # one place in each sample, all at once
            together = self.inputs
            for sample, t in enumerate(chosen):
                together = self.change(self.arguments.main, self.at(sample, t), together)
            grid = self.grid(self.run(together) - self.base)
            for sample, t in enumerate(chosen):
                rows[t] = grid[sample]
            if not bool((rows.tril(-1) > self.floor).any()):
                return rows  # else samples may have seen one another
        for t in chosen:
            new = self.run(self.change(self.arguments.main, self.at(0, t)))
            rows[t] = self.grid(new - self.base)[0]
        return rows

    @cached_property
    def memory_moves(self) -> float:
        """How far the output moves where all of the memory is another."""
        name = self.arguments.memory
        if name is None:
            return 0.0
        everywhere = tuple([slice(None)] * self.inputs.tensors()[name].dim())
        return largest(self.run(self.change(name, everywhere)) - self.base)

    @cached_property
    def module_influences(self) -> list[ModuleInfluence]:
        """Every module whose places see one another, or other samples, innermost ones included."""
        return _module_influences(self)

    def innermost(self, wrong: Callable[[ModuleInfluence], bool]) -> list[ModuleInfluence]:
        """Modules of which it holds, and of none inside them: there it happens."""
        paths = {one.path for one in self.module_influences if wrong(one)}
        return [
            one
            for one in self.module_influences
            if one.path in paths
            and not any(p != one.path and p.startswith(one.path + ".") for p in paths)
        ]

    @cached_property
    def mixers(self) -> list[ModuleInfluence]:
        """The innermost modules in which places of one sample see one another."""
        return self.innermost(lambda one: one.mixes)

    @cached_property
    def attention_reaches(self) -> list["AttentionReach"]:
        """The attentions of the main sequence to itself."""
        return _attention_reaches(self)

    @cached_property
    def over_samples(self) -> list[Attention]:
        """Attentions whose keys are the samples of the batch: with one sample less there is one
        key less."""
        return _over_samples(self)


@once
def influence_of(specimen: Specimen) -> Influence:
    """Who is who in the call, and a copy to change it in. Raises NoSequence where nothing in the
    call is a sequence."""
    model, inputs, exact = copy.deepcopy(specimen.model), specimen.inputs, False
    parameters = signature(model)
    if "use_cache" in parameters and "use_cache" not in (inputs.kwargs or {}):
        uncached = Inputs(inputs.args, {**(inputs.kwargs or {}), "use_cache": False})
        if _runs(model, uncached):  # modules are run again here: a cache would grow
            inputs = uncached
    if sum(p.numel() for p in model.parameters()) <= SMALL:
        try:
            twice = copy.deepcopy(model).double()
            wide = cast_floats(inputs, torch.float64)
            with quietly(twice):
                exact = main_output(wide.call(twice)).isfinite().any().item() is True
            if exact:
                model, inputs = twice, wide
        except Exception:  # a model that insists on another type is probed in its own
            exact = False
    arguments = find_arguments(model, inputs)
    pads = _pads(model, inputs, arguments)
    plain = _unpadded(model, inputs, arguments, pads)
    if plain is not inputs:
        arguments = find_arguments(model, plain)
    names = argument_names(model, inputs)
    return Influence(specimen, model, plain, arguments, names, exact, inputs, pads)


def _pads(model: nn.Module, inputs: Inputs, arguments: Arguments) -> tuple[int, ...]:
    """Ids that mean padding: by ``padding_idx`` and the like, or as lines end in runs of them."""
    found = set(pad_ids(model))
    for name in arguments.rows:
        ids = inputs.tensors()[name]
        if ids.dim() == 2 and ids.shape[1] > 2:
            found |= {int(line[-1]) for line in ids if bool((line[-2:] == line[-1]).all())}
    return tuple(sorted(found))


def _unpadded(
    model: nn.Module, inputs: Inputs, arguments: Arguments, pads: Sequence[int]
) -> Inputs:
    """The call with words in the place of padding, and masks that hide nothing."""
    plain = inputs
    generator = torch.Generator().manual_seed(2)
    for name, rows in arguments.rows.items():
        ids = inputs.tensors()[name]
        padded = torch.isin(ids, torch.tensor(pads, dtype=ids.dtype, device=ids.device))
        if bool(padded.any()):
            words = torch.tensor(word_ids(rows, {*arguments.special, *pads}))
            drawn = words[torch.randint(len(words), ids.shape, generator=generator)].to(ids)
            plain = plain.replaced(name, torch.where(padded, drawn, ids))
    for mask in arguments.masks:
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


def _runs(model: nn.Module, inputs: Inputs) -> bool:
    try:
        with quietly(model):
            main_output(inputs.call(model))
    except Exception:
        return False
    return True


def output_in_training(model: nn.Module, inputs: Inputs, seed: int = 0) -> Tensor:
    """The output in training mode, in which the model stays: give a copy."""
    with torch.random.fork_rng(devices=[]), torch.no_grad(), without_warnings():
        model.train()
        torch.manual_seed(seed)
        return main_output(inputs.call(model)).detach()


@contextmanager
def without_warnings() -> Iterator[None]:
    """What a model warns of is not our answer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def optional_arguments(s: Influence, pattern: re.Pattern[str]) -> list[str]:
    """Arguments of the signature that are not given and are called so."""
    given = {*s.names.values(), *(s.inputs.kwargs or {})}
    return [
        name
        for name, p in signature(s.model).items()
        if name not in given and p.default is not p.empty and pattern.search(name)
    ]


def argument_values(s: Influence, name: str) -> list[Value]:
    """The values of the trace that are this argument."""
    trace = s.specimen.trace
    given = list(s.specimen.inputs.tensors())
    return [v for n, v in zip(given, trace.inputs, strict=False) if n == name]


def _attention_reaches(s: Influence) -> list[AttentionReach]:
    found = []
    structure = s.specimen.structure
    own = structure.trace.descendants(*argument_values(s, s.arguments.main))
    for one in structure.attentions:
        q, k = factors(one.scores)
        seen = one.table()
        n = seen.shape[-1]
        if seen.shape[-2] != n or n < 3 or q not in own or k not in own:
            continue
        if s.arguments.kind in ("ids", "features") and n != s.places:
            continue
        rows = seen.double().reshape(-1, n, n)
        given = (rows.abs() > 1e-12).any(0)  # -inf and -1e9 give zeros
        later, earlier = torch.ones_like(given).triu(1), torch.ones_like(given).tril(-1)
        top, low = rows[:, : n - 2], rows[:, 2:]  # rows with two later keys, with two earlier ones
        ahead = [row[:, i + 1 :] for i, row in enumerate(top.unbind(1))]
        behind = [row[:, : i + 2] for i, row in enumerate(low.unbind(1))]
        found.append(
            AttentionReach(
                one.path,
                float(given[later].double().mean()),
                float(given[earlier].double().mean()),
                bool(given[later].any())
                and max(_unlike(t) for t in ahead) < 1e-6 < max(_unlike(t) for t in behind),
            )
        )
    return found


def _unlike(rows: Tensor) -> float:
    """How much the weights of a row differ, over the largest."""
    return float((rows.amax(-1) - rows.amin(-1)).max() / rows.abs().max().clamp(min=1e-30))


def _over_samples(s: Influence) -> list[Attention]:
    structure = s.specimen.structure
    found = [
        (i, a)
        for i, a in enumerate(structure.attentions)
        if a.table().shape[-2:] == (s.samples, s.samples)
    ]
    if s.samples < 2 or not found:
        return []
    fewer = s.specimen.inputs
    for name, value in fewer.tensors().items():
        axis = s.arguments.batch
        if value.dim() > axis and value.shape[axis] == s.samples:
            fewer = fewer.replaced(name, value.narrow(axis, 0, s.samples - 1))
    model = s.specimen.model
    with quietly(model):
        try:
            trace = record(lambda: fewer.call(model), model)
        except Exception:  # a model that knows its batch
            return []
    less = Structure(trace, model).attentions
    if len(less) != len(structure.attentions):
        return []
    return [a for i, a in found if less[i].table().shape[-1] == s.samples - 1]


# --- from inside: every module by itself ----------------------------------------------------------


def axes_of(t: Any, samples: int, places: Collection[int] | None) -> tuple[int, int] | None:
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


def _lengths(s: Influence) -> list[int] | None:
    """How many places tensors inside have: those of the sequences, or a few more or fewer (a class
    token, a shift). None where a front end decides."""
    r = s.arguments
    if r.time is None:
        return None
    fed = [s.inputs.tensors()[n] for n in (r.main, r.memory) if n is not None]
    if any(t.is_floating_point() for t in fed) and r.rows:
        return None
    own = [t.shape[r.time] for t in fed if t.dim() > r.time]
    return [n + more for more in (0, 1, -1, 2) for n in own if n + more > 1]


def _module_influences(s: Influence) -> list[ModuleInfluence]:
    found: list[ModuleInfluence] = []
    samples, lengths = s.samples, _lengths(s)
    paths = {module: path for path, module in s.model.named_modules() if path}
    sorts = {module: twin_key(module) for module in paths}
    apart: set[Hashable] = set()  # modules of which one was seen to treat each place by itself
    steady = s.noise == 0 and torch.equal(s.base, s.other_seed)
    versions: dict[nn.Module, list[int]] = {}
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
                    edited[id(t)] = edit(t.clone())  # it may write into what it gets
                return edited[id(t)]

            args, kwargs = torch.utils._pytree.tree_map_only(Tensor, changed, (args, kwargs))
            return module.forward(*args, **kwargs)
        finally:
            busy = False

    def written(args: Any, kwargs: Any) -> list[int]:
        return [t._version for t in tensors_in(args, kwargs)]

    def before_it(module: nn.Module, args: Any, kwargs: Any) -> None:
        if not busy:
            versions[module] = written(args, kwargs)

    def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        path = paths.get(module)
        if busy or path is None or type(module) in POINTWISE or counts.get(path, 0) >= 2:
            return
        kind = (sorts[module], call_key(args, kwargs))
        if kind in apart:
            return
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        placed = [(t, axes_of(t, samples, lengths)) for t in leaves]
        first = next(((t, a) for t, a in placed if a is not None), None)
        result = first_float(out)
        if first is None or result is None:
            return
        n = first[0].shape[first[1][1]]
        out_axes = axes_of(result, samples, [n])
        if out_axes is None:
            return
        counts[path] = counts.get(path, 0) + 1
        place = n // 2
        spots = [place]
        generator = torch.Generator().manual_seed(len(found))

        def poke(t: Tensor) -> Tensor:
            axes = axes_of(t, samples, [n])
            if axes is None:
                return t
            new = t.clone()
            spot = new.movedim(axes, (0, 1))[0, spots[0]]  # a view
            noise = torch.randn(spot.shape, generator=generator, dtype=torch.float64).to(spot)
            spot += noise * t.std().clamp(min=1e-3)
            return new

        shuffled = torch.tensor([*reversed(range(n - 1)), n - 1])

        def shuffle(t: Tensor) -> Tensor:
            axes = axes_of(t, samples, [n])
            return t if axes is None else t.index_select(axes[1], shuffled.to(t.device))

        swap = torch.arange(n)
        swap[place - 1], swap[min(place + 1, n - 1)] = min(place + 1, n - 1), place - 1

        def exchange(t: Tensor) -> Tensor:
            axes = axes_of(t, samples, [n])
            return t if axes is None else t.index_select(axes[1], swap.to(t.device))

        state = torch.get_rng_state()
        try:
            base: Tensor | None = result
            if not steady or versions.get(module) != written(args, kwargs):
                base = first_float(again(module, args, kwargs, lambda t: t))
            new = first_float(again(module, args, kwargs, poke))
            if base is None or new is None or new.shape != base.shape:
                return
            scale = largest(base) + 1e-30
            floor = (1e-11 if s.exact else 1e-5) * scale
            moved = (new - base).nan_to_num().abs().movedim(out_axes, (0, 1)).amax(-1)
            grid = moved > floor
            mine, others = grid[0], grid[1:]
            before = tuple(t for t in range(place) if mine[t])
            after = tuple(t for t in range(place + 1, n) if mine[t])
            elsewhere = others.clone()
            elsewhere[:, place] = False
            order = None
            if not (before or after or bool(others.any())):
                apart.add(kind)
            else:
                turned = first_float(again(module, args, kwargs, shuffle))
                if turned is not None and turned.shape == base.shape:
                    last = (turned - base).movedim(out_axes, (0, 1))[:, n - 1]
                    # what the last place itself adds is the same in both
                    order = largest(last) / scale
            moved[0, place] = 0.0
            full = len(before) == place > 0 and bool(after)
            uneven = False
            if full:
                spots[0] = n - 1
                new = first_float(again(module, args, kwargs, poke))
                if new is not None:
                    late = (new - base).nan_to_num().abs().movedim(out_axes, (0, 1)).amax(-1)
                    full = bool((late[0, : n - 1] > floor).all())
                if order is not None and order < 1e-6:
                    new = first_float(again(module, args, kwargs, exchange))
                    if new is not None:
                        middle = (new - base).movedim(out_axes, (0, 1))[:, place]
                        uneven = largest(middle) > max(floor, 1e-6 * scale)
            found.append(
                ModuleInfluence(
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

    hooks = [m.register_forward_pre_hook(before_it, with_kwargs=True) for m in paths]
    hooks += [m.register_forward_hook(hook, with_kwargs=True) for m in paths]
    try:
        s.run()
    finally:
        for handle in hooks:
            handle.remove()
    return found
