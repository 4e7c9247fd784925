"""One residual stream, and the sublayers that read and write it.

    x ──▶ enter ──▶ sublayer ──▶ sublayer ──▶ … ──▶ exit ──▶ final norm ──▶ y
                       │
                       └─ u = pre-norm(stream);  v = out-norm(branch(u));  stream = post-norm(join)

A *scheme* is a function from a ``Site`` (where a sublayer sits) to a ``Wiring`` (what is there).
Everything a published Add & Norm design decides is in that one return value; nothing here knows any
design by name. See docs/architecture.md for the picture and addnorm/schemes.py for the designs.

The seam. A sublayer does not add its output: it leaves it on the ``Stream`` beside the residual.
The next reader, an ``AddNorm``, does "add of sublayer i, then norm of sublayer i + 1" in one call
of ``ops.add_norm``. That is where a fused kernel goes, for every scheme at once, and what lets
``torch.compile`` fuse across the boundary of two blocks.

References: Vaswani et al. 2017 (arXiv 1706.03762), He et al. 2016 (1603.05027), Xiong et al. 2020
(2002.04745).
"""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple, Protocol, final

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from addnorm import ops
from addnorm.context import Context, Here
from addnorm.init import PLAIN, InitRule
from addnorm.masks import check_masks
from addnorm.norms import LayerNorm, as_norm, refuse_crossing
from addnorm.ops.reference import Scale, is_one

# --- what travels -------------------------------------------------------------------------------


class Stream(NamedTuple):
    """The residual, at most one branch output not yet added, and what later sublayers read again.

    Its value is ``keep * h + gain * v``. A learned factor is put here as a copy: the parameter
    itself may be gone (resharded) when the next sublayer adds.
    """

    h: Tensor  # (B, T, dim)
    v: Tensor | None = None  # a branch output that is not added yet
    keep: Scale = 1.0
    gain: Scale = 1.0
    taps: Mapping[str, Tensor] | None = None  # what later sublayers read again, by name

    def settle(self) -> Tensor:
        """The residual with nothing pending."""
        return self.h if self.v is None else ops.settle(self.v, self.h, self.keep, self.gain)


# --- what a scheme sees and says ----------------------------------------------------------------


@final
@dataclass(frozen=True)
class Site:
    """Where a sublayer sits: all that a scheme may depend on."""

    kind: str  # "embed", then "attn", "cross", "mlp" or what the branches are called, then "head"
    index: int  # among the sublayers: -1 for embed, total for head
    total: int  # sublayers of the stack
    block: int  # a block begins wherever the first kind of branch comes again
    blocks: int  # of the stack
    dim: int  # the width of the stream
    norm: Callable[[int], nn.Module]  # the configured factory, dim -> Norm
    side: str = "decoder"  # "encoder" or "decoder"; a decoder is causal
    depths: tuple[int, int] = (0, 0)  # blocks of the encoder and of the decoder, 0 = there is none
    place: int = 0  # within its block, 0 = the sublayer that opens it


@final
@dataclass(frozen=True)
class Wiring:
    """What a scheme decides for one site. None = nothing there."""

    pre: "AddNorm | None" = None  # the stream, normed, is what the branch reads; at head: the end
    inner: Callable[[int], nn.Module] | None = None  # a norm inside the branch, at its width
    out: nn.Module | None = None  # on the branch output, before it is added
    post: "AddNorm | None" = None  # on the stream, after it is added
    join: "Join | None" = None  # how the stream is read and written; None = plain addition
    init: InitRule = PLAIN  # fills the weights of the branch, at the ends those of the tables
    care: Callable[[str, Tensor, int], None] | None = None  # (role, weight, step) after each step
    enter: nn.Module | None = None  # at embed: (Stream, valid) -> Stream
    exit: nn.Module | None = None  # at head: (Stream, valid) -> Stream


Scheme = Callable[[Site], Wiring]
"""Called once for each site of a stack, in their order; makes new modules each time."""


class Join(nn.Module, ABC):
    """How a branch reads the stream, and how its output is written back."""

    defers: bool = False
    """Whether ``write`` leaves v pending and mentions it nowhere else: a factor can then wait on
    the stream for the next AddNorm instead of being multiplied here."""

    keeps: bool = True
    """Whether the stream survives when the branch says nothing."""

    normalizes: str = ""
    """What the join itself normalizes, in words, for ``explain``."""

    @abstractmethod
    def read(self, s: Stream, pre: "AddNorm | None", valid: Tensor | None) -> tuple[Tensor, Any]:
        """(the branch's input, what ``write`` of this forward is given as ``carry``). ``pre``, if
        there is one, normalizes what the branch reads; ``valid`` is (B, T), True = real token."""

    @abstractmethod
    def write(self, carry: Any, v: Tensor, taps: dict[str, Tensor]) -> Stream:
        """The stream after the branch said v. ``taps`` are to be passed on, more may be added to a
        copy of them."""

    def weigh(self, carry: Any, v: Tensor, gain: Scale, taps: dict[str, Tensor]) -> Stream:
        """``write`` of ``gain * v``. A join that defers leaves the factor on the stream, where the
        next ``AddNorm`` multiplies; for any other it is multiplied here."""
        if is_one(gain):
            return self.write(carry, v, taps)
        if not self.defers:
            return self.write(carry, ops.settle(v, None, gain=gain), taps)
        s = self.write(carry, v, taps)
        return s._replace(gain=s.gain * gain)  # a product, so never the parameter itself


class MakeBranch(Protocol):
    """How a Stack asks for a branch."""

    def __call__(
        self, *, inner: Callable[[int], nn.Module] | None, init: InitRule
    ) -> nn.Module: ...


# --- the parts of the road ----------------------------------------------------------------------


@final
class AddNorm(nn.Module):
    """Add & Norm, and THE SEAM: ``y, stream = addnorm(x, residual)``.

    stream = keep * residual + gain * x,  y = scale * norm(stream)

    Also for other people's models: ``h = x + f(norm(x))`` written as
    ``y, h = addnorm(f_out, h)`` at each boundary is the same computation in one call.

    Without a residual the stream is gain * x. ``valid`` (B, T), True = real token, is for norms
    whose statistics cross tokens.

    ``dim``: the width of the stream, the size of the last dimension.
    ``norm``: dim -> norm; anybody's module will do.
    ``scale``: a fixed factor on y; the stream does not get it.
    """

    def __init__(
        self, dim: int, norm: Callable[[int], nn.Module] = LayerNorm, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.norm = as_norm(norm(dim))
        self.scale = scale

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        keep: Scale = 1.0,
        gain: Scale = 1.0,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``(y, stream)``: y in the dtype of x, the stream in that of the residual."""
        if residual is None:
            stream = ops.settle(x, None, keep, gain)
            y = self.norm(stream, valid=valid)
        else:
            y, stream = self.norm(x, residual, keep, gain, valid)
        return (y if self.scale == 1.0 else y * self.scale), stream

    def extra_repr(self) -> str:
        return "" if self.scale == 1.0 else f"scale={self.scale:.6g}"


def read(s: Stream, pre: AddNorm | None, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """(what nearly every branch reads: the stream, normed if there is a norm; the settled stream,
    not normed)."""
    if pre is not None:
        return seam(pre, s, valid)
    h = s.settle()
    return h, h


def seam(norm: AddNorm, s: Stream, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Add what is pending and normalize: (normed, the settled stream)."""
    if s.v is None:
        normed, stream = norm(s.h, valid=valid)
    else:
        normed, stream = norm(s.v, s.h, s.keep, s.gain, valid)
    return normed, stream


def normed_stream(norm: AddNorm, s: Stream, valid: Tensor | None) -> Tensor:
    """``seam`` where its norm *is* the stream, or what leaves it: in the stream's dtype.

    A norm answers in the dtype of what a branch said, which autocast made narrow: made wide before
    the norm, it is not rounded on the way.
    """
    if s.v is not None:
        s = s._replace(v=s.v.to(s.h.dtype))
    return seam(norm, s, valid)[0]


class Plain(Join, ABC):
    """A join that reads the stream as nearly all do, and says only how f(x) is written to it."""

    def read(self, s: Stream, pre: AddNorm | None, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        return read(s, pre, valid)

    @abstractmethod
    def write(self, carry: Tensor, v: Tensor, taps: dict[str, Tensor]) -> Stream:
        """The stream after the branch said v. ``carry`` is the stream it read, not normed."""


@final
class Add(Plain):
    """x + f(x). ``shortcut`` takes the stream to the branch's width where the two differ, as the
    projection shortcut of He et al. 2015 does."""

    defers = True

    def __init__(self, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.shortcut = shortcut

    def write(self, carry: Tensor, v: Tensor, taps: dict[str, Tensor]) -> Stream:
        h = carry if self.shortcut is None else self.shortcut(carry)
        return Stream(h, v, taps=taps)


@final
class _RoleNotes:
    """``rule``, which fills a weight in place, and a note of the role for which it did: a branch
    says its roles to nobody but the rule that it is made with.

    A weight is known by its ``id``: ``roles`` is asked as soon as the branch is made, while its
    parameters are those that were filled.
    """

    def __init__(self, rule: InitRule) -> None:
        self.rule, self.by_weight = rule, dict[int, str]()

    def __call__(self, role: str, weight: Tensor) -> None:
        self.rule(role, weight)
        self.by_weight[id(weight)] = role

    def roles(self, branch: nn.Module) -> dict[str, str]:
        """Name in the branch -> role, of the weights that were filled by this rule."""
        roles = {name: self.by_weight.get(id(p)) for name, p in branch.named_parameters()}
        return {name: role for name, role in roles.items() if role is not None}


@final
class Sublayer(nn.Module):
    """One branch with everything its scheme puts around it: Stream -> Stream.

    ``make``: how the branch is made, ``make(inner=, init=)``.
    ``wiring``: what the scheme decided for this site; its modules become the sublayer's own.
    ``site``: where it sits; its index is the key of the branch in a cache.
    """

    def __init__(self, make: MakeBranch, wiring: Wiring, site: Site) -> None:
        super().__init__()
        self.site, self.init, self.care = site, wiring.init, wiring.care
        notes = _RoleNotes(wiring.init)
        self.branch = make(inner=wiring.inner, init=notes)
        self.roles = notes.roles(self.branch)
        self.pre, self.out, self.post = wiring.pre, wiring.out, wiring.post
        self.join = wiring.join or Add()

    def forward(self, s: Stream, ctx: Context) -> Stream:
        """The stream after this sublayer, its output still pending unless a norm comes after it.
        The taps go on, with what the branch offers under new names or old ones."""
        offers: dict[str, Tensor] = {}
        u, carry = self.join.read(s, self.pre, ctx.valid)
        v = self.branch(u, Here(ctx, self.site.index, s.taps, offers))
        if self.out is not None:
            v = self.out(v, valid=ctx.valid)
        s = self.join.write(carry, v, {**(s.taps or {}), **offers})
        if self.post is None:
            return s
        return Stream(normed_stream(self.post, s, ctx.valid), taps=s.taps)

    def init_rules(self) -> dict[str, tuple[str, InitRule]]:
        """Parameter -> (role, the rule that filled it)."""
        return {f"branch.{name}": (role, self.init) for name, role in self.roles.items()}

    def after_step(self, step: int) -> None:
        """What the scheme wants done to the branch's weights after every optimizer step; a frozen
        weight no optimizer has moved, and it stays what it is to the last bit."""
        if self.care is not None:
            for name, role in self.roles.items():
                weight = self.branch.get_parameter(name)
                if weight.requires_grad:
                    self.care(role, weight, step)


@final
class Stack(nn.Module):
    """Sublayers in a row on one stream: (B, T, dim) -> (B, T, dim), in the stream's dtype, which
    is that of x whatever the branches compute in.

    ``branches``: a list of (kind, make); ``make(inner=, init=)`` returns a module that is called
    as ``branch(u, here)``.
    ``dim``: the width of the stream.
    ``scheme``: a function Site -> Wiring; ``schemes.parse(name)`` returns one.
    ``norm``: dim -> norm, the norm that a scheme is given.
    ``side``: "encoder", or "decoder", which is causal.
    ``depths``: the blocks of encoder and decoder where both exist, as some designs depend on them;
    None: the other does not exist.
    """

    def __init__(
        self,
        branches: Sequence[tuple[str, MakeBranch]],
        dim: int,
        scheme: Scheme,
        *,
        norm: Callable[[int], nn.Module] = LayerNorm,
        side: str = "decoder",
        depths: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if side not in ("encoder", "decoder"):
            raise ValueError(f"side must be 'encoder' or 'decoder', got {side!r}")
        if not callable(scheme):
            raise TypeError(
                f"scheme must be a function Site -> Wiring, got {scheme!r}; "
                "a name becomes one by addnorm.schemes.parse(name)"
            )
        if not branches:
            raise ValueError("a Stack needs at least one branch")
        kinds = [kind for kind, _ in branches]
        starts = [kind == kinds[0] for kind in kinds]
        blocks, total = sum(starts), len(kinds)
        if depths is None:
            depths = (blocks, 0) if side == "encoder" else (0, blocks)
        self.dim = dim

        here = Site("embed", -1, total, -1, blocks, dim, norm, side, depths)
        first = _wire(scheme, here)
        self.subs = nn.ModuleList()
        for (kind, make), opens in zip(branches, starts, strict=True):
            here = replace(
                here,
                kind=kind,
                index=here.index + 1,
                block=here.block + opens,
                place=0 if opens else here.place + 1,
            )
            self.subs.append(Sublayer(make, _wire(scheme, here), here))
        last = _wire(scheme, replace(here, kind="head", index=total, block=blocks, place=0))
        self.enter, self.exit, self.final = first.enter, last.exit, last.pre
        # For the model around the stack: how embedding and head are initialized and cared for.
        self.inits = {"embed": first.init, "head": last.init}
        self.cares = {"embed": first.care, "head": last.care}
        if side == "decoder":
            refuse_crossing(self)
        self.followers: list[Callable[[int], None]] = []
        """An adapter's: called with the step in ``after_step``."""
        self.overdue = False  # whether an optimizer stepped since after_step was called
        self._await_steps()

    def sublayers(self) -> list[Sublayer]:
        """The sublayers, in their order."""
        return list(self.subs)  # type: ignore[arg-type]

    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """x (B, T, dim) through all sublayers. A ``RuntimeError`` in training where the optimizer
        stepped and an ``after_step`` that is needed was left out."""
        ctx = ctx or Context()
        self._check(x, ctx)
        s = Stream(x)
        if self.enter is not None:
            s = self.enter(s, ctx.valid)
        for sub in self.subs:
            s = sub(s, ctx)
        if self.exit is not None:
            s = self.exit(s, ctx.valid)
        return s.settle() if self.final is None else normed_stream(self.final, s, ctx.valid)

    def after_step(self, step: int) -> None:
        """Call after every optimizer step; ``step`` counts from 1."""
        for sub in self.sublayers():
            sub.after_step(step)
        for follower in self.followers:
            follower(step)
        self.overdue = False

    def follow(self, follower: Callable[[int], None]) -> None:
        """Have something called with the step at every ``after_step``."""
        self.followers.append(follower)
        self._await_steps()

    def _await_steps(self) -> None:
        """Where something is to be done after each step: have optimizers watched, so that the next
        training forward raises if it was left out."""
        if self.followers or any(sub.care is not None for sub in self.sublayers()):
            _careful.add(self)
            _watch_optimizers()

    def _check(self, x: Tensor, ctx: Context) -> None:
        """Raise on another shape, on a missed ``after_step`` and on masks that look inverted; the
        last not under a compiler, which cannot look at values."""
        if x.dim() != 3 or x.shape[-1] != self.dim:
            raise ValueError(
                f"a Stack of width {self.dim} reads (B, T, {self.dim}), got {tuple(x.shape)}"
            )
        if self.overdue and self.training and torch.is_grad_enabled():
            raise RuntimeError(
                "the optimizer stepped but model.after_step(step) was not called: this scheme "
                "keeps its weights on a constraint that every optimizer step leaves, or an adapter "
                "prunes after each step"
            )
        if not torch.compiler.is_compiling():
            check_masks(ctx.valid, ctx.attend, ctx.bias)
            if ctx.memory is not None:
                check_masks(*ctx.memory[1:], of="memory.")

    def __setstate__(self, state: dict[str, Any]) -> None:  # a copy needs the same care
        super().__setstate__(state)
        self._await_steps()


# --- guards -------------------------------------------------------------------------------------

_MEANINGLESS = {
    "embed": ("pre", "inner", "out", "post", "join", "exit"),
    "head": ("inner", "out", "post", "join", "enter"),
}


def _wire(scheme: Scheme, site: Site) -> Wiring:
    """What the scheme says of a site; a ``TypeError`` if that is no Wiring, a ``ValueError`` if it
    says something that nothing would read."""
    wiring = scheme(site)
    if not isinstance(wiring, Wiring):
        raise TypeError(
            f"a scheme is a function Site -> Wiring; this one returned a {type(wiring).__name__}"
        )
    for part in _MEANINGLESS.get(site.kind, ("enter", "exit")):
        if getattr(wiring, part) is not None:
            raise ValueError(
                f"the scheme put {part!r} at site {site.kind!r}: nothing reads it there"
            )
    return wiring


_careful: "weakref.WeakSet[Stack]" = weakref.WeakSet()  # all that need their after_step


def _note_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """After any optimizer step: the stacks whose weights it moved now await ``after_step``."""
    weights = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for stack in _careful:
        if any(id(p) in weights for p in stack.parameters()):
            stack.overdue = True


@cache
def _watch_optimizers() -> None:
    """Once, for the first such stack: torch calls the hook after every optimizer's step."""
    register_optimizer_step_post_hook(_note_step)
