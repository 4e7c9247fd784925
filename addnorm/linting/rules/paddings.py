"""The padding masks of a model: those that it is given, and those that could be made."""

import re
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from addnorm.anatomy.arguments import MaskArgument, mask_reading
from addnorm.anatomy.influence import Influence, optional_arguments
from addnorm.anatomy.inputs import Inputs
from addnorm.anatomy.masks import MaskReading, as_mask, mask_values
from addnorm.anatomy.module_influence import axes_of
from addnorm.anatomy.outputs import first_float, largest
from addnorm.anatomy.signature import signature
from addnorm.anatomy.specimen import once
from addnorm.temporary import hooked, undisturbed


@final
@dataclass(frozen=True)
class Padding:
    """A padding mask and a call in which it is given."""

    role: MaskArgument
    inputs: Inputs
    name: str
    """As its author calls it, while ``role.name`` is as in ``Inputs.tensors``."""
    works: bool
    """Hiding a place with it has an effect."""

    def hiding(self, s: Influence, *hidden: list[int]) -> Inputs:
        """The call with places of sample 0, and of those after it, hidden: a list for each."""
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
    def claimed(self) -> MaskReading:
        """The reading that its type and its name suggest."""
        if self.inputs.tensors()[self.role.name].is_floating_point():
            return "additive"
        return "drop" if re.search(r"padding_mask|pad_mask", self.name) else "keep"


_PADDING = re.compile(r"mask|valid|padding|^pad_|^keep$")
"""Names of optional arguments that may be padding masks."""


_PLAIN = {"attention", "attn", "mask", "key", "padding", "pad", "src", "tgt", "valid", "decoder"}
"""Words in such a name that are no other argument."""


_NO_PADDING = re.compile(
    r"head|causal|look|bool_masked|mask_time|loss|pixel|token_mask|memory_mask|position|prefix"
)
"""Names of masks of something else."""


@once
def paddings(s: Influence) -> list[Padding]:
    """The padding masks: those that are given, and optional ones that could be made."""
    masks = []
    for role in s.arguments.masks:
        if not role.square:
            works = role.reading is not None or _hides(s, role, s.inputs, s.name(role.name))
            masks.append(Padding(role, s.inputs, s.name(role.name), works))
    for name in optional_arguments(s, _PADDING):
        if _NO_PADDING.search(name) or name in ("attn_mask", "tgt_mask") or is_conditional(s, name):
            continue
        mask = _optional_mask(s, name, _owner(s, name))
        if mask is not None:
            masks.append(mask)
    return masks


def _owner(s: Influence, name: str) -> str:
    """The argument whose places an optional mask hides."""
    main, memory = s.arguments.main, s.arguments.memory
    of_memory = re.search(r"src|source|memory|enc|context", name) or (
        name == "attention_mask" and s.name(main).startswith("decoder")
    )
    return memory if memory is not None and of_memory else main


def is_conditional(s: Influence, name: str) -> bool:
    """Whether an argument speaks of another that is not given either: ``context_mask`` of
    ``context``. By names alone; a switch is no such other."""
    words = [w for w in name.split("_") if w not in _PLAIN and len(w) > 2]
    return any(
        word in other.split("_") and not _PADDING.search(other)
        for other in optional_arguments(s, re.compile(""))
        for word in words
        if other != name and type(signature(s.model)[other].default) is not bool
    )


def _optional_mask(s: Influence, name: str, of: str) -> Padding | None:
    """An optional mask ``name`` for the argument ``of``, given the first value that has an effect,
    otherwise the first with which the model runs; None: it runs with none, or cannot be asked."""
    tensor = s.inputs.tensors()[of]
    if tensor.dim() < 2 or (s.arguments.kind in ("image", "wave") and of == s.arguments.main):
        return None
    if tensor.is_floating_point() and s.arguments.rows:
        return None  # frames beside tokens: what a place is there, the front end decides
    batch, places = s.samples, tensor.shape[1 if s.arguments.batch == 0 else 0]
    idle: Padding | None = None
    for value in mask_values(batch, places, s.base.dtype):
        other = ~value if value.dtype is torch.bool else 1 - value
        for mask in (value, other):  # a mask of all ones hides all where 1 drops
            call = Inputs(s.inputs.args, {**(s.inputs.kwargs or {}), name: mask})
            try:
                out = s.run(call)
                if out.shape != s.base.shape or not bool(out.isfinite().all()):
                    continue
                with undisturbed(s.model, gradients=False):
                    reading = mask_reading(s.model, call, name, s.arguments.rows)
                role = MaskArgument(name, of, reading, False)
                works = reading is not None or _hides(s, role, call, name)
            except Exception:  # not this kind of mask
                continue
            if works:
                return Padding(role, call, name, True)
            idle = idle or Padding(role, call, name, False)
    return idle


def _hides(s: Influence, role: MaskArgument, inputs: Inputs, name: str) -> bool:
    """Whether the mask ``role`` of the call ``inputs``, by its author's ``name``, has any effect;
    numbers that are not finite are one. False: it has none, or does not run."""
    padding = Padding(role, inputs, name, True)
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


# --- padding without a mask -----------------------------------------------------------------------


@final
@dataclass(frozen=True)
class OwnPadding:
    """An id of padding that the model is to find by itself: there is no mask to give."""

    id: int
    obeys: bool
    """Some attention does not see it."""
    change: float
    """How much real places change with what the padding's embedding holds."""


@once
def own_paddings(s: Influence) -> list[OwnPadding]:
    """Those of a model that takes ids and no padding mask.

    What the padding's embedding holds is changed; where it is hidden nobody notices.
    """
    r = s.arguments
    if r.kind == "ids" and r.main in r.rows and s.places > 4 and not paddings(s):
        return [_own_padding(s, pad) for pad in s.pad_ids if pad < r.rows[r.main]]
    return []


def padded_ids(s: Influence, pad: int, *hidden: list[int]) -> Inputs:
    """The call with padding at these places of sample 0, and of those after it."""
    ids = s.inputs.tensors()[s.arguments.main].clone()
    for sample, places in enumerate(hidden):
        ids[s.at(sample, places)] = pad
    return s.inputs.replaced(s.arguments.main, ids)


def _own_padding(s: Influence, pad: int) -> OwnPadding:
    """What the model does with the id ``pad`` in the last two places of sample 0: its embedding is
    changed on the way, and the modules that mix places and the output are looked at."""
    n = s.places
    hidden = [n - 2, n - 1]
    call = padded_ids(s, pad, hidden)
    ids = call.tensors()[s.arguments.main]
    paths = {m.path for m in s.mixers}
    mixers = {module: path for path, module in s.model.named_modules() if path in paths}
    embeddings = [module for module in s.model.modules() if isinstance(module, nn.Embedding)]

    def run(noise: float) -> tuple[Tensor, dict[str, Tensor]]:
        """(the output, path of a mixer -> its first output), with that much added to the padding's
        embedding."""
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
    difference = new - base
    if s.matrix is None:
        return OwnPadding(pad, obeys, largest(difference))
    return OwnPadding(pad, obeys, float(s.grid(difference)[0][: n - 2].max()))
