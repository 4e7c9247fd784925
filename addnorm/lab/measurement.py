"""What a design does to signal and gradient at initialization, before any training.

A causal decoder of ``Setup``'s shape reads random tokens through an embedding of standard
deviation 1 and predicts the next, random too, through a head of standard deviation 1 / sqrt(width),
with the cross-entropy as loss and no position code. The same draws serve every design and depth.
Measured, as plain numbers:

* the root mean square of the residual stream, entering and after every sublayer;
* that of the loss's gradient with respect to the stream, entering and after every block;
* the Frobenius norm of the loss's gradient with respect to each MLP's ``down`` weight;
* how these grow with the number of blocks L: the slope of log(value) against log(L).

The stream is the settled one, keep * h + gain * v. Where a design has n streams side by side
(hyper-connections), their mean is shown and the sum of their gradients, which is the gradient of
moving them all alike; both are pre-norm's where the streams are equal. Of ResiDual's two streams
it is the one that the branches read.
"""

import ast
import math
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from addnorm import schemes
from addnorm.branches import MLP, Attention
from addnorm.catalogue import SchemeEntry, combinators, entry
from addnorm.lab.setup import Setup
from addnorm.norms import RMSNorm
from addnorm.spread import Spread
from addnorm.stream import Scheme, Stack, Stream
from addnorm.temporary import fixed_seed, hooked
from addnorm.version import __version__

VOCABULARY = 65  # the characters of tiny Shakespeare; here the tokens are random
UNSCALED = "fan_in(pre_norm, factors=False)"
"""Pre-norm as it was before GPT-2 divided the std of what writes to the stream."""
LABELS = {UNSCALED: "pre_norm, writers unscaled"}

# --- one run --------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class LabRun:
    """What one seed gave at one depth. Lists run from the entrance of the stack to its end."""

    depth: int  # blocks
    seed: int
    loss: float  # of the next tokens, before any training
    stream: list[float]  # RMS of the residual, 2 * depth + 1: entering, after every sublayer
    gradient: list[float]  # RMS of d loss / d residual, depth + 1: entering, after every block
    mlp_gradient: list[float]  # norm of d loss / d W_down, depth


class LabTask(NamedTuple):
    """What stands before and after the stack."""

    x: Tensor  # (B, T, width), the embedded tokens
    head: Tensor  # (vocabulary, width)
    targets: Tensor  # (B, T)

    def logits(self, y: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, vocabulary)."""
        return y @ self.head.T

    def loss(self, y: Tensor) -> Tensor:
        """The mean cross-entropy of the next tokens."""
        return torch.nn.functional.cross_entropy(self.logits(y).flatten(0, 1), self.targets.ravel())


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it torch has one thread: products this small gain nothing from a second one and lose
    much on a busy machine; and the last digits then do not depend on how many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def draw(setup: Setup) -> LabTask:
    """Tokens, embedding and head, from torch's global generator. Called before ``build``, so that
    the same seed draws the same for every design and depth."""
    tokens = torch.randint(VOCABULARY, (setup.batch, setup.tokens + 1))
    embedding = torch.randn(VOCABULARY, setup.width)
    head = torch.randn(VOCABULARY, setup.width) / math.sqrt(setup.width)
    return LabTask(embedding[tokens[:, :-1]].requires_grad_(), head, tokens[:, 1:])


def build(scheme: Scheme, setup: Setup, depth: int) -> Stack:
    """The decoder under measurement, ``depth`` blocks of attention and MLP, from torch's global
    generator."""
    norm = RMSNorm if setup.qk_norm else None
    attention = partial(Attention, setup.width, setup.heads, causal=True, qk_norm=norm)
    mlp = partial(MLP, setup.width, 4 * setup.width, setup.activation)
    return Stack([("attn", attention), ("mlp", mlp)] * depth, setup.width, scheme)


def follow(stack: Stack, x: Tensor) -> tuple[Tensor, list[Stream]]:
    """(the stack's output, the settled streams: entering, then after every sublayer).

    Every sublayer is made to read a stream with nothing pending, so that each addition has a tensor
    of its own, to look at and to take gradients of. What is computed stays the same.
    """
    points: list[Stream] = []

    def settle(s: Stream) -> Stream:
        points.append(Stream(s.settle(), taps=s.taps))
        return points[-1]

    subs = stack.sublayers()

    def enter(sub: nn.Module, args: Any, kwargs: Any) -> Any:
        return (settle(args[0]), *args[1:]), kwargs

    def leave(sub: nn.Module, args: Any, kwargs: Any, out: Stream) -> Stream:
        return settle(out)

    with hooked(subs[:1], before=enter), hooked(subs, after=leave):
        return stack(x), points


def observe(stack: Stack, task: LabTask, seed: int = 0) -> LabRun:
    """Forward and backward once; ``seed`` is only noted down. ``stack`` is one of ``build``; no
    ``grad`` of its weights is written."""
    y, points = follow(stack, task.x)
    loss = task.loss(y)
    subs = stack.sublayers()
    # of the points: where a block begins, and the end of the last
    ends = [0, *(i for i, sub in enumerate(subs) if i and sub.site.place == 0), len(subs)]
    down: list[Tensor] = [s.branch.down.weight for s in subs if s.site.kind == "mlp"]  # type: ignore[misc,union-attr]
    grads = torch.autograd.grad(loss, [*(points[i].h for i in ends), *down])
    dx, dw = grads[: len(ends)], grads[len(ends) :]
    return LabRun(
        depth=len(ends) - 1,
        seed=seed,
        loss=loss.item(),
        stream=_numbers([_rms(p.h.mean(0) if p.h.dim() == 4 else p.h) for p in points]),
        gradient=_numbers([_rms(g.sum(0) if g.dim() == 4 else g) for g in dx]),
        mlp_gradient=_numbers([torch.linalg.vector_norm(g) for g in dw]),
    )


def measure(scheme: Scheme, setup: Setup, depth: int, seed: int) -> LabRun:
    """One design at one depth with one seed."""
    with fixed_seed(seed):
        task = draw(setup)
        return observe(build(scheme, setup, depth), task, seed)


def _rms(x: Tensor) -> Tensor:
    """The root mean square, as a tensor of no axes: read all at once, by ``_numbers``."""
    return torch.linalg.vector_norm(x.detach()) / math.sqrt(x.numel())


def _numbers(values: list[Tensor]) -> list[float]:
    return torch.stack(values).tolist()


# --- over depths and seeds ------------------------------------------------------------------------


def exponent(depths: Sequence[int], values: Sequence[float]) -> float | None:
    """The least-squares slope of log(value) against log(depth): p where value = c * depth^p.

    None where there is no such slope: fewer than two depths, or a value that is 0 or not finite.
    """
    if len(depths) < 2 or not all(0.0 < v < math.inf for v in values):
        return None
    at = [math.log(d) for d in depths]
    return statistics.linear_regression(at, [math.log(v) for v in values]).slope


QUANTITIES: dict[str, Callable[[LabRun], float]] = {
    "stream_mean_square": lambda run: run.stream[-1] ** 2,
    "last_mlp_gradient": lambda run: run.mlp_gradient[-1],
    "first_mlp_gradient": lambda run: run.mlp_gradient[0],
    "first_to_last": lambda run: _ratio(run.mlp_gradient[0], run.mlp_gradient[-1]),
}
"""What is told of a run in one number, and fitted against depth."""
CURVES = ("stream", "gradient")
"""What is told of a run along its depth."""


@final
@dataclass(frozen=True)
class LabDesign:
    """One design and what was measured of it."""

    text: str  # as ``parse`` reads it
    label: str
    equations: list[str]
    papers: list[str]
    init: str  # the rule at the largest depth
    note: str  # on what "the stream" is here, mostly empty
    runs: list[LabRun]

    def at(self, depth: int) -> list[LabRun]:
        """The runs of one depth, by seed."""
        return [run for run in self.runs if run.depth == depth]

    def curve(self, depth: int, which: str) -> list[Spread]:
        """``stream``, ``gradient`` or ``mlp_gradient`` at one depth, over the seeds."""
        lists = (getattr(run, which) for run in self.at(depth))
        return [Spread.over(values) for values in zip(*lists, strict=True)]

    def value(self, depth: int, quantity: str) -> Spread:
        """One of ``QUANTITIES`` at one depth."""
        return Spread.over([QUANTITIES[quantity](run) for run in self.at(depth)])

    def exponent(self, quantity: str) -> Spread | None:
        """The exponent of one of ``QUANTITIES`` against depth: fitted for each seed, then spread.
        None if one of the seeds has none."""
        slopes = []
        for seed in dict.fromkeys(run.seed for run in self.runs):
            mine = sorted((r for r in self.runs if r.seed == seed), key=lambda r: r.depth)
            slopes.append(
                exponent([r.depth for r in mine], [QUANTITIES[quantity](r) for r in mine])
            )
        finite = [s for s in slopes if s is not None]
        return Spread.over(finite) if len(finite) == len(slopes) else None


@final
@dataclass(frozen=True)
class LabReport:
    """Everything that was measured, and what it takes to measure it again."""

    command: str
    setup: Setup
    versions: dict[str, str]
    designs: list[LabDesign]

    def to_json(self) -> dict[str, Any]:
        """Plain data; a number that is not finite is None."""
        designs = [
            asdict(d)
            | {
                "exponents": {q: (e := d.exponent(q)) and asdict(e) for q in QUANTITIES},
                "values": {
                    q: {str(depth): asdict(d.value(depth, q)) for depth in self.setup.depths}
                    for q in QUANTITIES
                },
                "curves": {
                    which: {
                        str(depth): _columns(d.curve(depth, which)) for depth in self.setup.depths
                    }
                    for which in CURVES
                },
            }
            for d in self.designs
        ]
        report = {
            "format": "addnorm.schemes/1",
            "model": conditions(self.setup),
            "command": self.command,
            "setup": asdict(self.setup),
            "versions": self.versions,
            "designs": designs,
        }
        plain: dict[str, Any] = _plain(report)
        return plain


def _columns(curve: Sequence[Spread]) -> dict[str, list[float]]:
    return {name: [getattr(s, name) for s in curve] for name in ("median", "low", "high")}


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


def _plain(value: Any) -> Any:
    """The value, and all in it, with lists for tuples, six significant digits, and None for a
    number that JSON cannot say."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def conditions(setup: Setup) -> str:
    """In words, what was measured under which conditions."""
    init = {
        "fan_in": "init fan_in: std 1/sqrt(fan_in) times the design's own factors",
        "own": "init own: each design's as published",
    }[setup.init]
    seeds = ", ".join(map(str, setup.all_seeds()))
    return (
        f"Causal decoder at initialization, width {setup.width}, {setup.heads} heads, MLP "
        f"{4 * setup.width} {setup.activation}, QK-norm {'on' if setup.qk_norm else 'off'}, "
        f"LayerNorm, no position code; {init}; {setup.batch} sequences of {setup.tokens} "
        f"random tokens out of {VOCABULARY}, embedding std 1, head std 1/sqrt(width), loss the "
        f"cross-entropy of random next tokens; {'seed' if setup.seeds == 1 else 'seeds'} {seeds}."
    )


def versions() -> dict[str, str]:
    """Versions of everything that the last digits depend on."""
    return {
        "addnorm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, 1 thread",
    }


# --- which designs --------------------------------------------------------------------------------


def register() -> tuple[list[SchemeEntry], list[SchemeEntry]]:
    """The designs and the combinators that have a name."""
    return [entry(n) for n in schemes.names()], [entry(n) for n in combinators()]


def everything() -> list[str]:
    """All named designs; pre_norm also without GPT-2's division of its writers."""
    listed = schemes.names()
    listed.insert(listed.index("pre_norm") + 1, UNSCALED)
    return listed


def resolve(text: str, setup: Setup) -> Scheme:
    """The scheme of this text with the setup's init; a ``SchemeError`` if there is none that can be
    built, one block of which is tried on the meta device."""
    scheme = schemes.parse(text)
    if setup.init == "fan_in":
        scheme = schemes.fan_in(scheme)
    with torch.device("meta"):
        build(scheme, setup, 1)  # a composition may only turn out impossible at a site
    return scheme


def compare(
    texts: Sequence[str],
    setup: Setup,
    command: str = "",
    advance: Callable[[int], None] = lambda blocks: None,
) -> LabReport:
    """Measure designs, named as ``parse`` reads them, at each depth with each seed, on one thread.
    ``command`` is noted in the report; ``advance`` is told how many blocks each finished run
    had."""
    resolved = {text: resolve(text, setup) for text in texts}
    designs = []
    with one_thread():
        for text, scheme in resolved.items():
            runs = []
            for depth in setup.depths:
                for seed in setup.all_seeds():
                    runs.append(measure(scheme, setup, depth, seed))
                    advance(depth)
            designs.append(_design(text, scheme, setup, runs))
    return LabReport(command, setup, versions(), designs)


def _design(text: str, scheme: Scheme, setup: Setup, runs: list[LabRun]) -> LabDesign:
    """The ``runs`` of a design with what a reader must know of it; every name in ``text``, which
    ``parse`` can read, has an equation and a paper. ``scheme`` is that of ``resolve``, with the
    setup's init."""
    parts = [entry(n.id) for n in ast.walk(ast.parse(text.strip())) if isinstance(n, ast.Name)]
    with torch.device("meta"):
        stack = build(scheme, setup, max(setup.depths))
        end = follow(stack, torch.empty(1, 2, setup.width))[1][-1]
    notes = []
    if end.h.dim() == 4:
        notes.append(f"Shown: the mean of the {len(end.h)} streams, the sum of their gradients.")
    if end.taps is not None and "dual" in end.taps:
        notes.append("Shown: the normalized stream, which the branches read.")
    if all(v == 0.0 for run in runs for v in run.mlp_gradient):
        notes.append("The gradient of the branches' weights is exactly 0 at initialization.")
    return LabDesign(
        text=text,
        label=LABELS.get(text, text),
        equations=[p.equation for p in parts],
        papers=[f"{p.paper} ({p.year})" for p in parts],
        init=getattr(stack.sublayers()[0].init, "text", "custom"),
        note=" ".join(notes),
        runs=runs,
    )
