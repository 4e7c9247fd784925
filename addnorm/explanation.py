"""What there is to say about a design: its papers, where it normalizes, what it costs, counted."""

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from addnorm.branches import MLP, Attention
from addnorm.catalogue import combinators, entry, names
from addnorm.norms import Norm
from addnorm.scheme_text import parse, tree
from addnorm.stream import Add, Stack, Sublayer


@final
@dataclass(frozen=True)
class SchemeExplanation:
    """What ``explain`` found: read off the wiring and counted on an instance without memory."""

    text: str
    equations: list[str]
    papers: list[str]
    notes: list[str]
    normalized: list[str]  # where, for each kind of site that differs
    joins: list[str]  # how branches are added, with the numbers at this depth, where not as x + f
    init: str
    final_norm: bool
    shape: dict[str, int]
    parameters: int  # of the whole stack
    extra_parameters: int  # beyond the branches: norms and joins
    matmul_flops: int  # forward, of one sequence
    elementwise: int  # entries written by everything else, forward
    saved_bytes: int  # kept for backward, float32

    def __str__(self) -> str:
        lines = [self.text, *(f"  {e}" for e in self.equations)]
        lines += [f"  paper: {p}" for p in self.papers]
        lines += [f"  {n}" for n in self.notes]
        lines += ["the stream is normalized:", *(f"  {n}" for n in self.normalized)]
        if self.joins:
            lines += ["branches are joined to it by:", *(f"  {n}" for n in self.joins)]
        lines += [f"init: {self.init}", f"final norm: {'yes' if self.final_norm else 'no'}"]
        shape = ", ".join(f"{k} {v}" for k, v in self.shape.items())
        lines += [
            f"counted for {shape}:",
            f"  {self.parameters:,} parameters, {self.extra_parameters:,} in norms and joins;",
            f"  forward: {self.matmul_flops:,} FLOPs in matrix products,",
            f"  {self.elementwise:,} entries written by everything else (reference norms, eager),",
            f"  {self.saved_bytes:,} bytes kept for backward in float32",
        ]
        return "\n".join(lines)


def explain(
    text: str, *, dim: int = 768, n_heads: int = 12, blocks: int = 12, tokens: int = 1024
) -> SchemeExplanation:
    """Everything there is to say about a design or a composition, named by ``text`` as for
    ``parse``, at a shape of your choice.

    Parameters, FLOPs and saved activations are counted on a decoder on the meta device: nothing is
    allocated and nothing is estimated.
    """
    wiring = parse(text)
    name = str(wiring)  # an alias is another text
    parts = [
        entry(part.id)
        for part in ast.walk(tree(name))
        if isinstance(part, ast.Name) and part.id in (*names(), *combinators())
    ]
    with torch.device("meta"):
        attention = partial(Attention, dim, n_heads, causal=True)
        stack = Stack(
            [("attn", attention), ("mlp", partial(MLP, dim, 4 * dim))] * blocks,
            dim,
            wiring,
        )
        x = torch.empty(1, tokens, dim)
    total = sum(p.numel() for p in stack.parameters())
    branch = sum(
        p.numel()
        for sub in stack.sublayers()
        for name, p in sub.branch.named_parameters()
        if not name.startswith("inner.")
    )
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        stack(x)
    with _Elementwise() as rest, torch.no_grad():
        stack(x)
    memory = _Saved(stack)
    with memory:
        stack(x.requires_grad_())
    rule = stack.sublayers()[0].init
    return SchemeExplanation(
        text=name if text == name else f"{text}: {name}",
        equations=[f"{p.name}: {p.equation}" for p in parts],
        papers=[f"{p.paper} ({p.year})" for p in parts],
        notes=[" ".join(inspect.getdoc(p.function).split()) for p in parts],  # type: ignore[union-attr]
        normalized=_normalized_sites(stack),
        joins=_joins(stack),
        init=getattr(rule, "text", "custom"),
        final_norm=stack.final is not None or _has_norm(stack.exit),
        shape={"dim": dim, "heads": n_heads, "blocks": blocks, "tokens": tokens},
        parameters=total,
        extra_parameters=total - branch,
        matmul_flops=flops.get_total_flops(),
        elementwise=rest.entries,
        saved_bytes=memory.bytes,
    )


def _normalized_sites(stack: Stack) -> list[str]:
    """Where the stream is normalized, a line for each run of blocks that agree, then the ends."""
    lines = _by_block(stack, _places)
    if stack.enter is not None and _has_norm(stack.enter):
        lines.append("what enters the stack")
    if stack.final is not None:
        lines.append("at the end, by the final norm")
    if _has_norm(stack.exit):
        lines.append("at the end, the second stream")
    return lines


def _joins(stack: Stack) -> list[str]:
    """How the branches are added, a line for each run of blocks that agree; nothing where all are
    as they come."""
    if all(isinstance(sub.join, Add) for sub in stack.sublayers()):
        return []
    return _by_block(stack, lambda sub: repr(sub.join).split("\n", 1)[0].removesuffix("("))


def _by_block(stack: Stack, say: Callable[[Sublayer], str]) -> list[str]:
    """What is said of sublayers, a line for each run of blocks that agree."""
    runs: list[tuple[int, int, str]] = []  # first block, last block, what is said
    for block in range(stack.sublayers()[-1].site.block + 1):
        texts: dict[str, list[str]] = {}
        for sub in stack.sublayers():
            if sub.site.block == block:
                texts.setdefault(say(sub), []).append(sub.site.kind)
        text = "; ".join(f"{' and '.join(kinds)}: {text}" for text, kinds in texts.items())
        if runs and runs[-1][2] == text:
            runs[-1] = (runs[-1][0], block, text)
        else:
            runs.append((block, block, text))
    lines = []
    for first, last, text in runs:
        which = f"block {first + 1}" if first == last else f"blocks {first + 1} to {last + 1}"
        lines.append(f"{which}: {text}")
    return lines


def _places(sub: Sublayer) -> str:
    """Where a sublayer has a norm, in words."""
    places = [
        "before the branch" if sub.pre is not None else "",
        "inside the branch" if getattr(sub.branch, "inner", None) is not None else "",
        "the branch's output" if sub.out is not None else "",
        "after the addition" if sub.post is not None else "",
        sub.join.normalizes,
    ]
    return ", ".join(p for p in places if p) or "nowhere"


def _has_norm(module: nn.Module | None) -> bool:
    return module is not None and any(isinstance(m, Norm) for m in module.modules())


@final
class _Elementwise(TorchDispatchMode):
    """Counts the entries written by everything that is neither a matrix product nor a view."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch for each operation; counts the first of its outputs."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and not any(p in name for p in ("mm", "bmm", "attention", "empty")):
            first = out[0] if isinstance(out, tuple) else out
            if isinstance(first, Tensor):
                self.entries += first.numel()
        return out


@final
class _Saved(saved_tensors_hooks):
    """Counts the bytes that autograd keeps, each storage once, parameters left out."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(self._pack, lambda t: t)
        self.bytes = 0
        self._storages = {p.untyped_storage()._cdata for p in module.parameters()}
        self._alive: list[Tensor] = []  # a freed storage's address must not come again

    def _pack(self, t: Tensor) -> Tensor:
        """Called with each tensor that autograd keeps; counts it, and returns it as it is."""
        storage = t.untyped_storage()
        if storage._cdata not in self._storages:
            self._storages.add(storage._cdata)
            self._alive.append(t)
            self.bytes += storage.nbytes()
        return t
