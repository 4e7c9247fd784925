"""The influence of a change: who in a model notices it, measured from two sides.

*From outside*, one token, sample or padded place is changed and the output compared; *from inside*,
every module is run again on what it received, with one place changed, which tells the module at
fault apart from those that pass its mistake on. Copies run in float64 where they can; what counts
as a change is measured against a rerun without one.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn

from addnorm.anatomy.arguments import Arguments, find_arguments, perturbed
from addnorm.anatomy.inputs import Inputs, cast_floats
from addnorm.anatomy.masks import as_mask, floats_of
from addnorm.anatomy.module_influence import ModuleInfluence, module_influences
from addnorm.anatomy.outputs import largest, main_output
from addnorm.anatomy.signature import argument_names, signature
from addnorm.anatomy.specimen import Specimen, once
from addnorm.anatomy.structure import Structure, TracedAttention, factors
from addnorm.anatomy.token_ids import pad_ids, word_ids
from addnorm.anatomy.trace import Value, record
from addnorm.temporary import undisturbed

SMALL = 40_000_000  # parameters up to which a float64 copy is made


# --- what is measured -----------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class AttentionReach:
    """How far an attention looks, by its recorded weights."""

    path: str
    ahead: float
    """The share of the pairs (query, later key) that get weight."""
    behind: float
    """The share of the pairs (query, earlier key) that do."""
    flat: bool
    """What lies ahead gets one and the same weight in every row, and what lies behind does not: it
    was filled, with a number too large to hide it."""


@final
@dataclass
class Influence:
    """What a change in a call does to the output, and who is who in the call.

    Made by ``influence_of``. What it measures it measures when it is first asked, once.
    """

    specimen: Specimen
    """The specimen, with the trace and the structure."""
    model: nn.Module
    """A copy of the specimen's, in float64 where it runs in that."""
    inputs: Inputs
    """The call, with words in the place of padding where the model takes them."""
    arguments: Arguments
    names: Mapping[str, str]
    """The names of the arguments that are given by place, {"0": "idx"}."""
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
        with undisturbed(self.model, seed=seed, gradients=False):
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
        """An argument, named as in ``Inputs.tensors``, as its author calls it."""
        return self.names.get(argument, argument)

    def change(self, name: str, where: Any, base: Inputs | None = None) -> Inputs:
        """The call, or ``base``, with other values at ``where`` (an index) of one argument."""
        rows, special = self.arguments.rows.get(name), set(self.arguments.special)
        return perturbed(base or self.inputs, name, where, rows, special)

    def grid(self, change: Tensor) -> Tensor:
        """(samples, places) of a change in the output; the largest over the rest. Only for an
        output with both axes."""
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
        """(changed place, place): the change of one sample's output; None without such axes.

        Of a long or large model only some places are changed; the rows of the others are zeros.
        """
        batch, time = self.arguments.out_batch, self.arguments.out_time
        if time is None or batch is None or self.places < 2:
            return None
        if self.base.shape[time] != self.places:
            return None
        n = self.places
        small = sum(p.numel() for p in self.model.parameters()) <= SMALL
        some = {1, n // 4, n // 2, 3 * n // 4, n - 2, n - 1} if small else {1, n // 2, n - 1}
        changes_at = range(n) if n <= 12 and small else sorted(some)
        rows = torch.zeros(n, n, dtype=self.base.dtype)
        if not small and self.samples >= len(changes_at):  # one place in each sample, all at once
            together = self.inputs
            for sample, t in enumerate(changes_at):
                together = self.change(self.arguments.main, self.at(sample, t), together)
            grid = self.grid(self.run(together) - self.base)
            for sample, t in enumerate(changes_at):
                rows[t] = grid[sample]
            if not bool((rows.tril(-1) > self.floor).any()):
                return rows  # else samples may have seen one another
        for t in changes_at:
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
        return module_influences(
            self.model,
            self.run,
            samples=self.samples,
            lengths=_lengths(self),
            exact=self.exact,
            steady=self.noise == 0 and torch.equal(self.base, self.other_seed),
        )

    def innermost(self, wrong: Callable[[ModuleInfluence], bool]) -> list[ModuleInfluence]:
        """Modules of which ``wrong`` holds, and of none inside them: there it happens."""
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
    def over_samples(self) -> list[TracedAttention]:
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
            with undisturbed(twice, gradients=False):
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
    """Ids that mean padding, sorted: by ``padding_idx`` and the like, or as a line ends in two of
    them."""
    ids_of_pads = set(pad_ids(model))
    for name in arguments.rows:
        ids = inputs.tensors()[name]
        if ids.dim() == 2 and ids.shape[1] > 2:
            ids_of_pads |= {int(line[-1]) for line in ids if bool((line[-2:] == line[-1]).all())}
    return tuple(sorted(ids_of_pads))


def _unpadded(
    model: nn.Module, inputs: Inputs, arguments: Arguments, pads: Sequence[int]
) -> Inputs:
    """The call with words in the place of the ids ``pads``, and masks that hide nothing; ``inputs``
    itself where nothing was hidden, or the model does not take another."""
    plain = inputs
    generator = torch.Generator().manual_seed(2)
    for name, rows in arguments.rows.items():
        ids = inputs.tensors()[name]
        padded = torch.isin(ids, torch.tensor(pads, dtype=ids.dtype, device=ids.device))
        if bool(padded.any()):
            words = torch.tensor(word_ids(rows, {*arguments.special, *pads}))
            draws = words[torch.randint(len(words), ids.shape, generator=generator)].to(ids)
            plain = plain.replaced(name, torch.where(padded, draws, ids))
    for mask in arguments.masks:
        if mask.reading is not None and not mask.square:
            value = inputs.tensors()[mask.name]
            whole = torch.ones(value.shape, dtype=torch.bool, device=value.device)
            open_mask = as_mask(whole, mask.reading, value.dtype, floats_of(model))
            if not torch.equal(open_mask, value):
                plain = plain.replaced(mask.name, open_mask)
    if plain is inputs:
        return inputs
    try:
        with undisturbed(model, gradients=False):
            fine = bool(main_output(plain.call(model)).isfinite().all())
    except Exception:  # the model wants its padding
        fine = False
    return plain if fine else inputs


def _runs(model: nn.Module, inputs: Inputs) -> bool:
    """Whether the model takes the call, and a floating-point tensor comes out."""
    try:
        with undisturbed(model, gradients=False):
            main_output(inputs.call(model))
    except Exception:
        return False
    return True


def output_in_training(model: nn.Module, inputs: Inputs, seed: int = 0) -> Tensor:
    """The output in training mode, in which the model stays: give a copy."""
    with undisturbed(seed=seed, gradients=False):
        model.train()
        return main_output(inputs.call(model)).detach()


def optional_arguments(influence: Influence, pattern: re.Pattern[str]) -> list[str]:
    """Names of arguments of the signature that are not given, have a default and a name in which
    ``pattern`` is."""
    present = {*influence.names.values(), *(influence.inputs.kwargs or {})}
    return [
        name
        for name, p in signature(influence.model).items()
        if name not in present and p.default is not p.empty and pattern.search(name)
    ]


def argument_values(influence: Influence, name: str) -> list[Value]:
    """The values of the specimen's trace that are this argument: one, or none that is recorded."""
    trace = influence.specimen.trace
    names = list(influence.specimen.inputs.tensors())
    return [v for n, v in zip(names, trace.inputs, strict=False) if n == name]


def _attention_reaches(influence: Influence) -> list[AttentionReach]:
    """Of every attention with as many queries as keys, at least three, both from the main input."""
    reaches = []
    structure = influence.specimen.structure
    own = structure.trace.descendants(*argument_values(influence, influence.arguments.main))
    for one in structure.attentions:
        q, k = factors(one.scores)
        weights = one.table()
        n = weights.shape[-1]
        if weights.shape[-2] != n or n < 3 or q not in own or k not in own:
            continue
        if influence.arguments.kind in ("ids", "features") and n != influence.places:
            continue
        rows = weights.double().reshape(-1, n, n)
        weighted = (rows.abs() > 1e-12).any(0)  # -inf and -1e9 give zeros
        later, earlier = torch.ones_like(weighted).triu(1), torch.ones_like(weighted).tril(-1)
        top, low = rows[:, : n - 2], rows[:, 2:]  # rows with two later keys, with two earlier ones
        ahead = [row[:, i + 1 :] for i, row in enumerate(top.unbind(1))]
        behind = [row[:, : i + 2] for i, row in enumerate(low.unbind(1))]
        reaches.append(
            AttentionReach(
                one.path,
                float(weighted[later].double().mean()),
                float(weighted[earlier].double().mean()),
                bool(weighted[later].any())
                and max(_unlike(t) for t in ahead) < 1e-6 < max(_unlike(t) for t in behind),
            )
        )
    return reaches


def _unlike(rows: Tensor) -> float:
    """How much the weights of a row differ, over the largest."""
    return float((rows.amax(-1) - rows.amin(-1)).max() / rows.abs().max().clamp(min=1e-30))


def _over_samples(influence: Influence) -> list[TracedAttention]:
    """The attentions with a key for each sample, measured by a second trace with one sample less;
    [] where the model does not run so, or has other attentions then."""
    structure = influence.specimen.structure
    candidates = [
        (i, a)
        for i, a in enumerate(structure.attentions)
        if a.table().shape[-2:] == (influence.samples, influence.samples)
    ]
    if influence.samples < 2 or not candidates:
        return []
    fewer = influence.specimen.inputs
    for name, value in fewer.tensors().items():
        axis = influence.arguments.batch
        if value.dim() > axis and value.shape[axis] == influence.samples:
            fewer = fewer.replaced(name, value.narrow(axis, 0, influence.samples - 1))
    model = influence.specimen.model
    with undisturbed(model, gradients=False):
        try:
            trace = record(lambda: fewer.call(model), model)
        except Exception:  # a model that knows its batch
            return []
    less = Structure(trace, model).attentions
    if len(less) != len(structure.attentions):
        return []
    return [a for i, a in candidates if less[i].table().shape[-1] == influence.samples - 1]


# --- from inside: every module by itself ----------------------------------------------------------


def _lengths(influence: Influence) -> list[int] | None:
    """How many places tensors inside have: those of the sequences, or a few more or fewer (a class
    token, a shift). None where a front end decides."""
    arguments = influence.arguments
    if arguments.time is None:
        return None
    tensors = [
        influence.inputs.tensors()[n] for n in (arguments.main, arguments.memory) if n is not None
    ]
    if any(t.is_floating_point() for t in tensors) and arguments.rows:
        return None
    own = [t.shape[arguments.time] for t in tensors if t.dim() > arguments.time]
    return [n + more for more in (0, 1, -1, 2) for n in own if n + more > 1]
