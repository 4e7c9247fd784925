"""Small stacks for the tests, and the comparison with the straight-line references."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from addnorm import schemes
from addnorm.branches import MLP, Attention, CrossAttention
from addnorm.context import Context, Memory
from addnorm.stream import MakeBranch, Scheme, Stack
from tests.references.schemes import Result, run

DIM, HEADS, HIDDEN, BATCH, TIME, MEMORY = 24, 4, 40, 3, 7, 5


@dataclass(frozen=True)
class Layout:
    """Which stack: (blocks of the encoder, of the decoder), and which of the two it is."""

    name: str
    side: str
    depths: tuple[int, int]

    @property
    def cross(self) -> bool:
        return self.side == "decoder" and self.depths[0] > 0

    @property
    def blocks(self) -> int:
        return self.depths[0 if self.side == "encoder" else 1]

    @property
    def kinds(self) -> list[str]:
        return ["attn", *(["cross"] if self.cross else []), "mlp"] * self.blocks


def decoder(depth: int) -> Layout:
    return Layout(f"decoder{depth}", "decoder", (0, depth))


def encoder(depth: int) -> Layout:
    return Layout(f"encoder{depth}", "encoder", (depth, 0))


# The two sides of an encoder-decoder with N != M.
ENCODER_OF_BOTH = Layout("encoder of 3+2", "encoder", (3, 2))
DECODER_OF_BOTH = Layout("decoder of 3+2", "decoder", (3, 2))


def build(scheme: Scheme | str, layout: Layout, **options: Any) -> Stack:
    """A stack of that layout at the size all tests use."""
    makes: dict[str, MakeBranch] = {
        "attn": partial(Attention, DIM, HEADS, causal=layout.side == "decoder"),
        "cross": partial(CrossAttention, DIM, HEADS),
        "mlp": partial(MLP, DIM, HIDDEN),
    }
    return Stack(
        [(kind, makes[kind]) for kind in layout.kinds],
        DIM,
        schemes.parse(scheme) if isinstance(scheme, str) else scheme,
        side=layout.side,
        depths=layout.depths,
        **options,
    )


def inputs(layout: Layout, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    """x, and a Context with a memory where the layout has one."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, TIME, DIM, generator=g, dtype=torch.float64).to(dtype)
    if not layout.cross:
        return x, Context()
    memory = torch.randn(BATCH, MEMORY, DIM, generator=g, dtype=torch.float64).to(dtype)
    return x, Context(memory=Memory(memory))


def stir(stack: Stack, seed: int = 0) -> Stack:
    """Move every parameter away from its init: a norm's 1, a bias's 0 and a gain's 0 hide bugs."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in stack.parameters():
            noise = torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype)
            p.add_(0.2 * noise)
    return stack


def compare_with_reference(
    name: str, scheme: Scheme, layout: Layout, tolerance: float = 1e-10, **arguments: float
) -> None:
    """Output and all gradients equal those of tests/references/schemes.py, in float64.

    Tolerance: both sides round at 1.1e-16 relative; some 1e4 operations feed an entry and the
    condition of these nets is below 1e2, which gives 1e-10 relative to the largest value.
    """
    torch.manual_seed(1)
    stack = stir(build(scheme, layout).double())
    x, ctx = inputs(layout)
    x.requires_grad_()
    if ctx.memory is not None:
        ctx.memory.x.requires_grad_()
    y = stack(x, ctx)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
    y.backward(cotangent)
    expected = reference(
        name,
        {k: p.detach().numpy() for k, p in stack.named_parameters()},
        x.detach().numpy(),
        layout.kinds,
        heads=HEADS,
        causal=layout.side == "decoder",
        memory=None if ctx.memory is None else ctx.memory.x.detach().numpy(),
        side=layout.side,
        depths=layout.depths,
        cotangent=cotangent.numpy(),
        **arguments,
    )
    close("output", y.detach(), expected.y, tolerance)
    assert x.grad is not None
    close("gradient of x", x.grad, expected.dx, tolerance)
    if ctx.memory is not None:
        close("gradient of the memory", ctx.memory.x.grad, expected.dmemory, tolerance)
    for k, p in stack.named_parameters():
        assert p.grad is not None, f"{k} has no gradient"
        # A key bias has gradient 0 in exact arithmetic: compare with the key weight's scale.
        scale = expected.grads[k.replace("k.bias", "k.weight")]
        close(f"gradient of {k}", p.grad, expected.grads[k], tolerance, scale)


def reference(name: str, *arguments: Any, **options: Any) -> Result:
    """``run``, where a parameter that the design has and the stack lacks is a failed check."""
    try:
        return run(name, *arguments, **options)
    except KeyError as missing:
        raise AssertionError(f"{name}: the stack has no parameter {missing}") from None


def close(what: str, actual: Tensor, want: Any, tolerance: float, scale: Any = None) -> None:
    """Largest difference within ``tolerance`` of the largest value (of ``scale``)."""
    assert actual.shape == want.shape, f"{what}: {tuple(actual.shape)} instead of {want.shape}"
    error = np.abs(actual.numpy() - want).max()
    largest = np.abs(want if scale is None else scale).max()
    assert error <= tolerance * max(largest, 1e-3), f"{what}: off by {error:.3g} of {largest:.3g}"


def gradients(stack: Stack, x: Tensor, ctx: Context) -> dict[str, Tensor]:
    """Every parameter's gradient of a fixed random functional of the output."""
    stack.zero_grad()
    y = stack(x, ctx)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=y.dtype)
    y.backward(cotangent)
    return {k: p.grad.clone() for k, p in stack.named_parameters() if p.grad is not None}


class GrowingCache:
    """The simplest ``Cache``: keys and values appended by concatenation."""

    def __init__(self) -> None:
        self._own: dict[Hashable, tuple[Tensor, Tensor]] = {}
        self._memory: dict[Hashable, tuple[Tensor, Tensor]] = {}

    def lead(self, places: int) -> None:
        """Nothing is to be done: what is appended is counted."""

    def length(self, key: Hashable) -> int:
        """How many tokens this sublayer has seen."""
        return self._own[key][0].shape[-2] if key in self._own else 0

    def update(self, key: Hashable, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, Hkv, T, D) and return all."""
        if key in self._own:
            old_k, old_v = self._own[key]
            k, v = torch.cat((old_k, k), -2), torch.cat((old_v, v), -2)
        self._own[key] = (k, v)
        return k, v

    def memory(
        self, key: Hashable, make: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Made at the first call and kept."""
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]


def rejects(check: Callable[[], object]) -> bool:
    """Whether a check fails, for the tests that break the code on purpose."""
    try:
        check()
    except AssertionError:
        return True
    return False
