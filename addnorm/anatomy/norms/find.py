"""Which modules of a model are norms, by measurement or by what their author calls them."""

import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import nn

from addnorm.anatomy.inputs import Inputs
from addnorm.anatomy.norms.formulas import ACCEPT, FormulaKind, Match
from addnorm.anatomy.norms.probe import Probe, ProbeCall, Reach
from addnorm.anatomy.specimen import Specimen, once
from addnorm.anatomy.twins import call_key, twin_key
from addnorm.temporary import hooked, undisturbed
from addnorm.words import error_in_a_line

# --- finding them ---------------------------------------------------------------------------------

_TORCH_NORMS = tuple(
    c
    for c in (
        nn.LayerNorm,
        getattr(nn, "RMSNorm", None),
        nn.GroupNorm,
        nn.modules.batchnorm._NormBase,
        nn.LocalResponseNorm,
    )
    if c is not None
)
"""Torch's own classes of norms; older versions have no RMSNorm."""


_WORD = re.compile(r"norm|(?<![a-z])ln(?![a-z])|layernorm|rms")
"""In the name of a class or an attribute, in lower case: its author calls it a norm."""


@final
@dataclass(frozen=True)
class MeasuredNorm:
    """What was measured of one module."""

    path: str
    call: ProbeCall
    claims: tuple[str, ...]
    """Who calls it a norm: "class", "attribute"."""
    probe: Probe | None
    """One for all modules that are alike; None: it does not run on inputs of our own."""
    reach: Reach
    match: Match | None
    """The nearest formula; None: it takes no statistics, or could not be probed."""
    normalizes: bool
    """The output keeps its size where the input's changes."""
    saturates: bool
    """The output is bounded, as that of tanh."""
    failed: str = ""
    """Why there is no probe."""


@once
def measured_norms(specimen: Specimen) -> list[MeasuredNorm]:
    """The norms of a model, each with its probe, in the order of its modules."""
    with undisturbed():
        return list(_measured(specimen.model, specimen.inputs))


def calls_of(model: nn.Module, inputs: Inputs) -> dict[str, ProbeCall]:
    """Path -> how the module is first called, of those that give back the shape of their input."""
    calls: dict[str, ProbeCall] = {}

    paths = {module: path for path, module in model.named_modules()}

    def note(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if paths[module] not in calls:
            call = ProbeCall.of(args, kwargs, out)
            if call is not None:
                calls[paths[module]] = call

    with hooked(paths, after=note), torch.no_grad():
        inputs.call(model)
    return calls


def _measured(model: nn.Module, inputs: Inputs) -> Iterator[MeasuredNorm]:
    """``measured_norms`` without its memory. Modules are probed from the innermost outwards, and
    one that holds a norm is none itself; twins that are called alike share one probe."""
    calls = calls_of(model, inputs)
    modules = dict(model.named_modules())
    norms: dict[str, MeasuredNorm] = {}
    matches: dict[Any, Match] = {}
    alike: dict[Hashable, MeasuredNorm | None] = {}
    for path in sorted(calls, key=lambda p: (-p.count(".") - (p != ""), p)):
        module, call = modules[path], calls[path]
        below = f"{path}." if path else ""
        if isinstance(module, nn.Identity) or any(p.startswith(below) for p in norms):
            continue
        if "parametrizations" in path.split(".") or not _broadcasts(module, call.shape):
            continue
        claims = _claims(path, module)
        key = (twin_key(module), call_key(call.args, call.kwargs), claims)
        if key not in alike:
            alike[key] = _measured_norm(path, module, call, claims, matches)
        norm = alike[key]
        if norm is not None:
            norms[path] = replace(norm, path=path, call=call)
    yield from (norms[path] for path in modules if path in norms)


def _broadcasts(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether every parameter could be a factor or a shift of a tensor of this shape."""
    for p in module.parameters():
        lengths = [s for s in p.shape if s != 1]
        if not lengths:
            continue
        if len(lengths) == 1 and lengths[0] in shape:
            continue
        if p.dim() > len(shape) or any(
            s not in (1, t) for s, t in zip(p.shape, shape[len(shape) - p.dim() :], strict=True)
        ):
            return False
    return True


def _claims(path: str, module: nn.Module) -> tuple[str, ...]:
    """Who calls it a norm: "class", "attribute", both or none."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(module).__name__).lower()
    attribute = path.rpartition(".")[2].lower()
    if attribute.isdecimal():  # an entry of a list is called as the list is
        attribute = path.rpartition(".")[0].rpartition(".")[2].lower()
    by_class = isinstance(module, _TORCH_NORMS) or (
        _WORD.search(name) is not None and not isinstance(module, nn.Dropout)
    )
    # A library's own layer under such a name is what its class says: Dropout after a norm, GELU.
    own = type(module).__module__.startswith("torch.nn.")
    by_attribute = _WORD.search(attribute) is not None and not own and not _is_container(module)
    return tuple(n for n, yes in (("class", by_class), ("attribute", by_attribute)) if yes)


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential)


def _measured_norm(
    path: str,
    module: nn.Module,
    call: ProbeCall,
    claims: tuple[str, ...],
    matches: dict[Any, Match],
) -> MeasuredNorm | None:
    """One module under probes; None: it is no norm. ``claims`` is as of ``MeasuredNorm``,
    ``matches`` the memory of ``Probe.match``, which is filled here. What is called a norm and
    cannot be probed is one, with the reason in ``failed``."""
    try:
        probe = Probe(module, call)
        with undisturbed():
            reach = probe.reach()
            normalizes = bool(reach.axes) and probe.invariant()
            if not normalizes and not claims:
                return None
            if claims == ("attribute",) and probe.idle():
                return None  # a norm that was switched off
            match = probe.match(reach, matches) if reach.axes else None
            if not claims and match is not None and _follows_no_norm(match):
                return None
            return MeasuredNorm(
                path, call, claims, probe, reach, match, normalizes, _saturates(probe)
            )
    except Exception as e:
        if not claims:
            return None
        why = error_in_a_line(e)
        return MeasuredNorm(path, call, claims, None, Reach((), ()), None, False, False, why)


def _follows_no_norm(match: Match) -> bool:
    """Whether no norm's formula made the output (but shares of a sum, say): then what nobody calls
    a norm is none."""
    return match.distance >= ACCEPT or "norm-not-normalizing" in match.formula.mistakes


def _saturates(probe: Probe) -> bool:
    """Whether the output is bounded though the input is not, as tanh and erf are."""
    with torch.no_grad():
        x = probe.normal(7, offset=0.0)
        # inputs of 10 saturate most such functions; a root would grow 30-fold from there
        small, large = probe.bare(10.0 * x).abs().max(), probe.bare(1e4 * x).abs().max()
    return bool(large < 5.0 * small)


def feature_axis(specimen: Specimen, norm: MeasuredNorm) -> int:
    """The axis of the features: where the parameters lie; without them the axis that is neither
    batch nor sequence, where that could be seen; else the last."""
    if norm.probe is not None and norm.probe.feature_axis is not None:
        return norm.probe.feature_axis
    batch, time = batch_and_time(specimen, norm.path)
    if batch is not None and time is not None:
        axes_left = [a for a in range(-len(norm.call.shape), 0) if a not in (batch, time)]
        if len(norm.reach.axes) == 1 and norm.reach.axes[0] in axes_left:
            return norm.reach.axes[0]
        if axes_left:
            return axes_left[-1]
    return -1


def over_features(specimen: Specimen, norm: MeasuredNorm) -> bool:
    """Whether the statistics run over the feature axis and no other."""
    assert norm.probe is not None
    return norm.reach.axes == (feature_axis(specimen, norm),)


@final
@dataclass(frozen=True)
class FoundNorm:
    """A module that normalizes, or that its author calls a norm."""

    path: str
    module: nn.Module = field(repr=False, compare=False)
    kind: FormulaKind
    """"layer": the mean is subtracted; "rms": divided by its length, up to a constant (RMSNorm, L2
    norm, ScaleNorm); "other": all else, such as statistics over several axes or pointwise ones."""
    dim: int
    """How many features the norm is over."""
    axis: int
    """The axis of the features, from the end: -1 is the last."""
    normalizes: bool
    """Measured: the output's size does not follow the input's."""
    claims: tuple[str, ...] = ()
    """Why it is taken for what it is not measured to be: "class", "attribute"."""
    formula: str = ""
    """The name of the nearest formula."""
    eps: float = 0.0
    """The eps that it was measured to have."""
    reach: tuple[int, ...] = ()
    """The axes that share statistics, from the end."""


def find_norms(specimen: Specimen) -> list[FoundNorm]:
    """The norms of a model, the innermost where one holds another, in the order of its modules.

    A module counts if it is called, gives back the shape of its input, has no parameter that does
    not broadcast over it, and either normalizes by measurement or is called a norm by its author.
    """
    modules = dict(specimen.model.named_modules())
    norms = []
    for norm in measured_norms(specimen):
        axis = feature_axis(specimen, norm)
        kind: FormulaKind = "other"
        if (
            norm.match is not None
            and over_features(specimen, norm)
            and norm.match.distance < ACCEPT
        ):
            kind = norm.match.formula.kind
        norms.append(
            FoundNorm(
                path=norm.path,
                module=modules[norm.path],
                kind=kind,
                dim=norm.call.shape[axis],
                axis=axis,
                normalizes=norm.normalizes,
                claims=norm.claims,
                formula="" if norm.match is None else norm.match.formula.name,
                eps=0.0 if norm.match is None else norm.match.eps,
                reach=norm.reach.axes,
            )
        )
    return norms


# --- the axes of the model ------------------------------------------------------------------------


def batch_and_time(specimen: Specimen, path: str) -> tuple[int | None, int | None]:
    """(the axis that grows with the batch, the axis that shrinks with the sequence) of what the
    norm at ``path`` is given, from the end, measured; None where no single axis does."""
    longer, shorter = _other_shapes(specimen)
    shape = next(norm for norm in measured_norms(specimen) if norm.path == path).call.shape

    def changed(new: tuple[int, ...] | None) -> int | None:
        if new is None or len(new) != len(shape):
            return None
        axes = [i for i in range(-len(shape), 0) if new[i] != shape[i]]
        return axes[0] if len(axes) == 1 else None

    first, second = changed(longer.get(path)), changed(shorter.get(path))
    # Inputs with the sequence first: what grew by concatenation there is the sequence.
    return first, second if second != first else None


Shapes = dict[str, tuple[int, ...]]  # path of a module -> shape of what it is given


@once
def _other_shapes(specimen: Specimen) -> tuple[Shapes, Shapes]:
    """(the shapes that modules see with two batches in one, those with one position less), by path;
    {} where there is no such call, or the model does not take it."""
    tensors = specimen.inputs.tensors()
    main = next((t for t in tensors.values() if t.dim()), None)
    batch = 0 if main is None else main.shape[0]
    length = 0 if main is None or main.dim() < 2 else main.shape[1]
    longer = shorter = specimen.inputs
    for name, t in tensors.items():
        if t.dim() and t.shape[0] == batch:
            longer = longer.replaced(name, torch.cat([t, t]))
        if t.dim() in (2, 3) and t.shape[1] == length and length > 2:
            shorter = shorter.replaced(name, t[:, :-1])
    return _shapes(specimen, longer), _shapes(specimen, shorter)


def _shapes(specimen: Specimen, inputs: Inputs) -> Shapes:
    """The shapes that modules see of other inputs, none where the model does not take them."""
    if inputs is specimen.inputs:
        return {}
    try:
        with undisturbed():
            return {path: call.shape for path, call in calls_of(specimen.model, inputs).items()}
    except Exception:
        return {}


def in_convolutions(specimen: Specimen, path: str) -> bool:
    """Whether the module at a path stands near a convolution, by kernels in its parent or the one
    around that, no deeper than itself: in the front end of a speech or image model, where
    statistics over positions are the custom."""
    parts = path.split(".")
    modules = dict(specimen.model.named_modules())
    for depth in (1, 2):
        if len(parts) < depth:
            break
        parent = modules[".".join(parts[:-depth])]
        kernels = any(
            p.dim() >= 3 and name.count(".") <= depth for name, p in parent.named_parameters()
        )
        if kernels:
            return True
    return False
