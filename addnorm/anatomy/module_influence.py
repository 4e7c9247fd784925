"""The influence of a change inside a model: every module by itself.

Each module is run again on what it received, with one place changed, and its own output compared;
that tells the module at fault apart from those that only pass its mistake on.
"""

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from addnorm.anatomy.outputs import first_float, largest, tensors_in
from addnorm.anatomy.twins import call_key, twin_key
from addnorm.temporary import hooked

Edit = Callable[[Tensor], Tensor]
"""What is done to each tensor of a call: the new one, which may be the old one."""

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


@final
@dataclass(frozen=True)
class ModuleInfluence:
    """What one module lets through when one place of one sample of its own input changes."""

    path: str
    order: int
    """The how-manieth module it is that was measured; inner ones come before those around them."""
    place: int
    """The place that was changed."""
    places: int
    """How many there are."""
    before: tuple[int, ...]
    """Places of the same sample before it that moved."""
    after: tuple[int, ...]
    """Those after it."""
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


def module_influences(
    model: nn.Module,
    run: Callable[[], Any],
    *,
    samples: int,
    lengths: Sequence[int] | None,
    exact: bool,
    steady: bool,
) -> list[ModuleInfluence]:
    """What each module of ``model`` that takes and gives back places lets through, as ``run`` calls
    it; inner modules come before those around them.

    ``samples`` is the size of the batch; ``lengths`` are the numbers of places to expect, see
    ``axes_of``; ``exact`` says that the model runs in float64, ``steady`` that two runs give the
    same, so that what a module returned need not be computed again to compare with.
    """
    watch = _Watch(model, samples, lengths, exact, steady)
    with hooked(watch.paths, before=watch.before, after=watch.after):
        run()
    return watch.influences


def axes_of(t: Any, samples: int, places: Collection[int] | None) -> tuple[int, int] | None:
    """(batch, time) axes of features (B, T, D) or (T, B, D) with this many ``samples``; None for
    what is no such tensor. ``places`` are the lengths to expect, the likeliest first, None if any
    may come."""
    if not isinstance(t, Tensor) or not t.is_floating_point() or t.dim() != 3:
        return None
    for n in (None,) if places is None else places:
        for b, p in ((0, 1), (1, 0)):
            fits = t.shape[b] == samples and t.shape[p] > 1 and n in (None, t.shape[p])
            if fits and (t.shape[p] != samples or b == 0):
                return b, p
    return None


@final
@dataclass(frozen=True)
class _Rerun:
    """A call of a module that can be made again with some of its tensors edited."""

    module: nn.Module
    args: Any
    kwargs: Any
    samples: int
    places: int
    out_axes: tuple[int, int]
    """Batch and time in the output."""

    def output(self, edit: Edit = lambda t: t) -> Tensor | None:
        """The first floating-point tensor of the output, None for none, with every tensor that goes
        in edited. Always from the same random state, which is the caller's to put back."""
        torch.manual_seed(0)
        edited: dict[int, Tensor] = {}  # one tensor passed twice stays one tensor

        def changed(t: Tensor) -> Tensor:
            if id(t) not in edited:
                edited[id(t)] = edit(t.clone())  # it may write into what it gets
            return edited[id(t)]

        tree = (self.args, self.kwargs)
        args, kwargs = torch.utils._pytree.tree_map_only(Tensor, changed, tree)
        return first_float(self.module.forward(*args, **kwargs))

    def poked(self, place: int, generator: torch.Generator) -> Tensor | None:
        """The output with noise on one place of sample 0, in every tensor that has places; None as
        of ``output``."""

        def poke(t: Tensor) -> Tensor:
            """With noise of the tensor's own size; as it is where it has no such places."""
            axes = axes_of(t, self.samples, [self.places])
            if axes is None:
                return t
            new = t.clone()
            spot = new.movedim(axes, (0, 1))[0, place]  # a view
            noise = torch.randn(spot.shape, generator=generator, dtype=torch.float64).to(spot)
            spot += noise * t.std().clamp(min=1e-3)
            return new

        return self.output(poke)

    def reordered(self, order: Tensor) -> Tensor | None:
        """The output with the places of every sample in another order, the place of each by its
        number; None as of ``output``."""

        def reorder(t: Tensor) -> Tensor:
            axes = axes_of(t, self.samples, [self.places])
            return t if axes is None else t.index_select(axes[1], order.to(t.device))

        return self.output(reorder)

    def change(self, new: Tensor, base: Tensor) -> Tensor:
        """(samples, places) of a change in the output; the largest over the rest."""
        return (new - base).nan_to_num().abs().movedim(self.out_axes, (0, 1)).amax(-1)

    def order_matters(self, base: Tensor, scale: float) -> float | None:
        """The largest change at the last place when the earlier ones are permuted, over ``scale``;
        None where that does not run."""
        n = self.places
        turned = self.reordered(torch.tensor([*reversed(range(n - 1)), n - 1]))
        if turned is None or turned.shape != base.shape:
            return None
        last = (turned - base).movedim(self.out_axes, (0, 1))[:, n - 1]
        return largest(last) / scale  # what the last place itself adds is the same in both

    def uneven(self, base: Tensor, floor: float) -> bool:
        """Whether the middle place moves by more than ``floor`` from ``base``, the output as it
        was, when its two neighbours are exchanged."""
        place, swap = self.places // 2, torch.arange(self.places)
        after = min(place + 1, self.places - 1)
        swap[place - 1], swap[after] = after, place - 1
        new = self.reordered(swap)
        if new is None:
            return False
        return largest((new - base).movedim(self.out_axes, (0, 1))[:, place]) > floor


@final
@dataclass
class _Watch:
    """Runs each module again when it has run, and keeps what that shows."""

    model: nn.Module
    samples: int
    lengths: Sequence[int] | None
    exact: bool
    steady: bool
    influences: list[ModuleInfluence] = field(default_factory=list)
    versions: dict[nn.Module, list[int]] = field(default_factory=dict)
    """How often each tensor that a module received had been written into."""
    counts: dict[str, int] = field(default_factory=dict)
    apart: set[Hashable] = field(default_factory=set)
    """Calls of modules of which a twin was seen to treat each place by itself."""
    busy: bool = False
    """A module is being run again."""

    def __post_init__(self) -> None:
        self.paths = {module: path for path, module in self.model.named_modules() if path}
        self.keys = {module: twin_key(module) for module in self.paths}

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A hook before every module but the model itself."""
        if not self.busy:
            self.versions[module] = [t._version for t in tensors_in(args, kwargs)]

    def after(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        """A hook after every module but the model itself. Each is measured twice at most, and one
        that cannot be run by itself not at all."""
        path = self.paths.get(module)
        if self.busy or path is None or type(module) in POINTWISE or self.counts.get(path, 0) >= 2:
            return
        key = (self.keys[module], call_key(args, kwargs))
        call = None if key in self.apart else self._rerun(module, args, kwargs, out)
        if call is None:
            return
        self.counts[path] = self.counts.get(path, 0) + 1
        state, self.busy = torch.get_rng_state(), True
        try:
            unchanged = self.versions.get(module) == [t._version for t in tensors_in(args, kwargs)]
            base = first_float(out) if self.steady and unchanged else call.output()
            one = None if base is None else self._influence(path, call, base)
            if one is not None:
                self.influences.append(one)
                if not (one.mixes or one.other_same or one.other_else):
                    self.apart.add(key)
        except Exception:  # a module that cannot be run by itself says nothing
            return
        finally:
            torch.set_rng_state(state)
            self.busy = False

    def _rerun(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> _Rerun | None:
        """The call of a module that gave ``out``, if it takes and gives back places; None
        otherwise."""
        placed = ((t, axes_of(t, self.samples, self.lengths)) for t in tensors_in(args, kwargs))
        places = next((t.shape[axes[1]] for t, axes in placed if axes is not None), None)
        if places is None:
            return None
        out_axes = axes_of(first_float(out), self.samples, [places])
        if out_axes is None:
            return None
        return _Rerun(module, args, kwargs, self.samples, places, out_axes)

    def _influence(self, path: str, call: _Rerun, base: Tensor) -> ModuleInfluence | None:
        """What one module lets through; ``base`` is its output as it was. None: the output of the
        changed call has another shape."""
        n, number = call.places, len(self.influences)
        place, generator = n // 2, torch.Generator().manual_seed(number)
        new = call.poked(place, generator)  # the middle place of sample 0
        if new is None or new.shape != base.shape:
            return None
        scale = largest(base) + 1e-30
        floor = (1e-11 if self.exact else 1e-5) * scale  # above rounding, as ``Influence.floor``
        change = call.change(new, base)
        own, others = change[0] > floor, change[1:] > floor
        before = tuple(t for t in range(place) if own[t])
        after = tuple(t for t in range(place + 1, n) if own[t])
        elsewhere = others.clone()
        elsewhere[:, place] = False
        order = None
        if before or after or bool(others.any()):
            order = call.order_matters(base, scale)
        change[0, place] = 0.0
        full = len(before) == place > 0 and bool(after)
        uneven = False
        if full:
            late = call.poked(n - 1, generator)
            if late is not None:
                full = bool((call.change(late, base)[0, : n - 1] > floor).all())
            if order is not None and order < 1e-6:  # else position codes tell places apart
                uneven = call.uneven(base, max(floor, 1e-6 * scale))
        return ModuleInfluence(
            path=path,
            order=number,
            place=place,
            places=n,
            before=before,
            after=after,
            other_same=bool(others[:, place].any()),
            other_else=bool(elsewhere.any()),
            order_matters=order,
            largest=float(change.max()) / scale,
            full=full,
            uneven=uneven,
        )
