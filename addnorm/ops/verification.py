"""Whether the kernels of this machine compute what is defined, measured on this machine.

Each kernel gets the same random calls, and so does the definition in the dtype of the call, which
serves where all decline. Outputs and gradients are compared with the definition in float64.

**Terms.** An entry is a sum of terms, some of them sums again, and no way of computing it is exact
to a few roundings of the *entry*: terms cancel. What can be asked is a few roundings of what the
same formula gives with the absolute value of every term, here called the entry's terms.

**Roundings.** An error is |computed - float64| / (terms * u), where u is half the distance of 1 and
the next number in the coarsest dtype that the entry was stored in on its way. What may be expected
is the number of times it was stored so, plus ``ROUNDINGS`` in the dtype of the statistics.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from addnorm.ops import attention, dispatch
from addnorm.ops.attention import AttentionCall, AttentionKernel
from addnorm.ops.kernel import NormCall, NormKernel, NormSpec
from addnorm.ops.offers import REFERENCE, Declined, Offers
from addnorm.ops.reference import (
    Cast,
    NormKind,
    Scale,
    accumulate_dtype,
    centred,
    limit,
    normalize,
    normalize_backward,
    settle,
    settle_backward,
)
from addnorm.words import a_few, error_in_a_line

ROUNDINGS = 64
"""Of the statistics' dtype: six standard deviations of what adding up 1024 numbers of one sign one
after the other costs, sqrt(1024 / 9). Sums in blocks, and ten operations in a row, cost less."""

EPS = 1e-3  # large enough to be seen where it is misplaced
VERIFIED_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@final
@dataclass(frozen=True)
class VerificationRow:
    """How far one implementation is from the definition in one dtype, at worst.

    ``error`` is in roundings, as is ``bound``, up to which it is ``ok``; ``where`` says in which
    tensor of which call. ``calls`` is the number of those that it served.
    """

    operation: str
    implementation: str
    device: str
    dtype: str
    calls: int
    error: float
    bound: float
    where: str

    @property
    def ok(self) -> bool:
        """Whether nothing is off by more than may be expected; NaN never is."""
        return self.error <= self.bound


@final
@dataclass(frozen=True)
class Verification:
    """What ``verify`` measured; prints as a table."""

    rows: list[VerificationRow]
    idle: list[str]
    """Kernels that declined every call, and why."""

    @property
    def ok(self) -> bool:
        """Whether every implementation is within its bound."""
        return all(row.ok for row in self.rows)

    def __str__(self) -> str:
        head = ("operation", "kernel", "device", "dtype", "calls", "error", "bound", "", "at worst")
        table = [head] + [
            (
                *(r.operation, r.implementation, r.device, r.dtype, f"{r.calls}"),
                *(f"{r.error:.2f}", f"{r.bound:.2f}", "ok" if r.ok else "WRONG", r.where),
            )
            for r in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                f"{cell:{'>' if 4 <= n <= 6 else '<'}{widths[n]}}" for n, cell in enumerate(r)
            )
            for r in table
        ]
        return "\n".join([*(line.rstrip() for line in lines), *self.idle])


def verify(*devices: str) -> Verification:
    """Compare every kernel of ``add_norm`` and of attention with the definition in float64, on
    random calls of several shapes, dtypes and options, forward and backward. Takes seconds.

    Without devices, the CPU and the GPU if there is one.
    """
    devices = devices or ("cpu", *(("cuda",) if torch.cuda.is_available() else ()))
    rows: list[VerificationRow] = []
    idle: list[str] = []
    for device in devices:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device, enabled=False),
        ):
            for operation in (
                Operation(dispatch.OFFERS, norm_cases, compare_norm),
                Operation(attention.OFFERS, attention_cases, compare_attention),
            ):
                for kernel in [*operation.offers.kernels, None]:
                    served, reasons = _look_at(operation, kernel, device)
                    rows += served
                    if not served:
                        name = f"{operation.offers.operation}, {kernel.name}"
                        idle.append(f"{name}: no call on {device} ({a_few(reasons, 9, '; ')})")
    return Verification(rows, idle)


class Quantity(NamedTuple):
    """One tensor of a call: as computed, in float64, and the sum of its absolute terms."""

    name: str
    computed: Tensor
    exact: Tensor
    terms: Tensor
    dtype: torch.dtype
    """The dtype that the tensor has to have."""
    coarsest: torch.dtype
    """The coarsest dtype that it is rounded to on its way."""
    times: int
    """How often it is rounded to that dtype."""

    def error(self) -> float:
        """The largest error, in roundings to the coarsest dtype."""
        if self.computed.shape != self.exact.shape or self.computed.dtype != self.dtype:
            return torch.inf
        off = (self.computed.detach().cpu().double() - self.exact).abs()
        u = torch.finfo(self.coarsest).eps / 2
        # 0 / 0 is not an error, and NaN must not get lost
        worst = torch.where(off == 0, off, off / (u * self.terms)).amax()
        return torch.inf if worst.isnan() else float(worst)

    def bound(self, wide: torch.dtype) -> float:
        """Up to which error it may be trusted, in roundings to the coarsest dtype, with statistics
        in ``wide``."""
        u = torch.finfo(self.coarsest).eps / 2
        if self.coarsest == torch.float64:
            return 2.0 * ROUNDINGS  # what it is compared with has as many
        within = ROUNDINGS * torch.finfo(wide).eps / 2 / u
        return within if self.coarsest == wide else self.times + within


VerificationCase = tuple[str, Any]
"""What a call is, in words, and the call: a ``NormCall`` or an ``AttentionCall``."""


class Operation(NamedTuple):
    """An operation with the calls that its kernels get, and how what they give is compared:
    ``compare(kernel, call)`` yields each tensor with the bound of its error."""

    offers: Offers[Any]
    cases: Callable[[torch.dtype], list[VerificationCase]]
    compare: Callable[[Any, Any], Iterator[tuple[Quantity, float]]]


def _look_at(
    operation: Operation, kernel: Any, device: str
) -> tuple[list[VerificationRow], list[str]]:
    """(one row for each dtype in which the kernel served a call on this device, its reasons where
    it did not); ``kernel`` None is the definition. A call that fails counts with an infinite
    error."""
    rows, reasons = [], dict[str, None]()
    for dtype in VERIFIED_DTYPES:
        calls, worst = 0, (0.0, 1.0, "")
        for about, call in operation.cases(dtype):
            try:
                for quantity, bound in operation.compare(kernel, _on(device, call)):
                    error = quantity.error()
                    if error / bound >= worst[0] / worst[1]:
                        worst = error, bound, f"{quantity.name}, {about}"
            except Declined as refusal:
                reasons[str(refusal)] = None
                continue
            except Exception as failure:
                worst = torch.inf, 1.0, f"{about}: {error_in_a_line(failure)}"
            calls += 1
        if calls:
            name = REFERENCE if kernel is None else kernel.name
            short = str(dtype).removeprefix("torch.")
            rows.append(
                VerificationRow(operation.offers.operation, name, device, short, calls, *worst)
            )
    return rows, list(reasons)


def _on(device: str, call: Any) -> Any:
    """A ``NormCall`` or ``AttentionCall`` with its tensors on a device; those of floats want
    gradients, in place where they are there already."""
    return call._replace(
        **{
            name: t.to(device).requires_grad_(t.is_floating_point())
            for name, t in call._asdict().items()
            if isinstance(t, Tensor)
        }
    )


def _exact(t: Any) -> Any:
    """A tensor in float64 on the CPU; everything else as it is."""
    return t.detach().cpu().double() if isinstance(t, Tensor) else t


def _absolute(t: Any) -> Any:
    return None if t is None else abs(t)


def coarsest(*dtypes: torch.dtype) -> torch.dtype:
    """The one with the fewest digits."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def random(*shape: int, seed: int) -> Tensor:
    """Standard normal float64 numbers, always the same."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64)


# --- add_norm -------------------------------------------------------------------------------------


class CallOptions(NamedTuple):
    """What makes one call of add_norm different from another.

    ``stream`` is the residual's dtype: "as x", "wide" (that of the statistics), or "none" for no
    residual. ``keep`` and ``gain`` are numbers, or shapes of learned factors. ``offset`` is the
    weight's, ``mean`` that of a row in its deviations; ``huge``: one row is.
    """

    shape: tuple[int, ...]
    stream: str = "as x"
    affine: bool = True
    keep: float | tuple[int, ...] = 1.0
    gain: float | tuple[int, ...] = 1.0
    offset: float = 0.0
    cast: Cast = "fp32"
    mean: float = 0.0
    huge: bool = False


NORM_OPTIONS: dict[str, CallOptions] = {
    "x alone": CallOptions((5, 1000), stream="none", affine=False),
    "weight and bias": CallOptions((64, 256), stream="none"),
    "numbers as factors": CallOptions((2, 7, 96), keep=0.5, gain=-2.0),
    "learned factors": CallOptions((2, 3, 64), keep=(64,), gain=(2, 1, 1), offset=1.0),
    "wide stream": CallOptions((16, 48), stream="wide", gain=(48,)),
    "many rows": CallOptions((1024, 8), keep=(), gain=(1,)),
    "a mean of 3 deviations": CallOptions((16, 512), stream="none", mean=3.0),
    "a mean of 100 deviations": CallOptions((16, 512), stream="none", mean=100.0),
    "rounded before the weight": CallOptions((16, 96), stream="none", cast="llama"),
    "one huge row": CallOptions((4, 64), stream="none", huge=True),
}


def norm_cases(dtype: torch.dtype) -> list[VerificationCase]:
    """Calls of ``add_norm`` in a dtype, each with what it is."""
    return [
        (f"{kind}, {about}", _norm_call(dtype, kind, options))
        for kind in ("layer", "rms")
        for about, options in NORM_OPTIONS.items()
        if not (options.huge and dtype == torch.float16)  # it has no such numbers
    ]


def _norm_call(dtype: torch.dtype, kind: NormKind, options: CallOptions) -> NormCall:
    """A call on random tensors, always the same. Weights and learned factors are around 1."""
    shape, width = options.shape, options.shape[-1:]
    x = random(*shape, seed=1) + options.mean
    wide = accumulate_dtype(x.to(dtype))
    if options.huge:
        x[1] *= 1024 * limit(wide)
    residual = None
    if options.stream != "none":
        residual = random(*shape, seed=2).to(wide if options.stream == "wide" else dtype)

    def factor(value: float | tuple[int, ...], seed: int) -> Scale:
        return value if isinstance(value, float) else (1 + random(*value, seed=seed) / 3).to(wide)

    weight = (1 - options.offset + random(*width, seed=3) / 3).to(dtype) if options.affine else None
    bias = random(*width, seed=4).to(dtype) if options.affine else None
    keep, gain = factor(options.keep, 5), factor(options.gain, 6)
    spec = NormSpec(kind, EPS, options.offset, options.cast)
    return NormCall(x.to(dtype), residual, weight, bias, keep, gain, spec)


def compare_norm(kernel: NormKernel | None, call: NormCall) -> Iterator[tuple[Quantity, float]]:
    """The outputs and gradients of one call by a kernel (None: by the definition), each beside its
    float64 value, and the bound of its error.

    The tensors of ``call`` are leaves that want gradients. A kernel that refuses the call raises
    its ``Declined``.
    """
    compute = dispatch.by_definition if kernel is None else lambda c: dispatch.by_kernel(kernel, c)
    normed, stream = compute(call)
    dy = (1 + random(*call.x.shape, seed=7)).to(normed)  # sums that are not near 0
    dstream = None if stream is call.x else random(*call.x.shape, seed=8).to(stream)
    leaves = {name: t for name, t in call._asdict().items() if isinstance(t, Tensor)}
    outputs, cotangents = ([normed], [dy]) if dstream is None else ([normed, stream], [dy, dstream])
    gradients = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
    exact, terms = _norm_exact(call, stream, dy, dstream)
    llama = call.spec.cast == "llama"
    x, s = call.x.dtype, (call.x if call.residual is None else call.residual).dtype
    # How often each is rounded on its way, and to which dtypes besides its own. All that goes back
    # through the sum is a gradient of the stream, rounded, added to that of the stream's other
    # readers, rounded, and multiplied by a factor or by the other one, rounded.
    times: dict[str, tuple[int, tuple[torch.dtype, ...]]] = {
        "normed": (1 + llama, (x,)),
        "stream": (1, (s,)),
        "x": (3, (s, x)),
        "residual": (3, (s,)),
        "weight": (1 + llama, (x,) if llama else ()),
        "bias": (1, ()),
        "keep": (3, (s,)),
        "gain": (3, (s,)),
    }
    computed = [("normed", normed, x), ("stream", stream, s)]
    computed += [(name, t, t.dtype) for name, t in zip(leaves, gradients, strict=True)]
    for name, t, dtype in computed:
        often, dtypes = times[name]
        title = f"gradient of {name}" if name in leaves else name
        coarsest_dtype = coarsest(dtype, *dtypes)
        quantity = Quantity(title, t, exact[name], terms[name], dtype, coarsest_dtype, often)
        yield quantity, quantity.bound(accumulate_dtype(stream))


def _norm_exact(
    call: NormCall, stream: Tensor, dy: Tensor, dstream: Tensor | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(values, terms), by the names of ``compare_norm``: everything that a call gives in float64,
    from the stream as it was stored, and the sums of its absolute terms."""
    x, residual, weight, bias, keep, gain = (_exact(t) for t in call[:-1])
    s, dy, dstream = _exact(stream), _exact(dy), _exact(dstream)
    spec = call.spec._replace(cast="fp32")._asdict()
    d, dweight, dbias = normalize_backward(dy, s, weight, **spec)
    d = d if dstream is None else d + dstream
    exact = {
        "normed": normalize(s, weight, bias, **spec, dtype=torch.float64),
        "stream": settle(x, residual, keep, gain),
        "weight": dweight,
        "bias": dbias,
        **settle_backward(d, x, residual, keep, gain)._asdict(),
    }
    rows = tuple(range(s.dim() - 1))
    centre, r, unit = centred(s, call.spec.kind, call.spec.eps)
    size = (centre * r).abs()
    size = size + _mean(size)  # of x^: an error of the mean is one of every entry
    w = torch.ones(()) if weight is None else (weight + call.spec.weight_offset).abs()
    g = dy.abs() * w
    d = (g + _mean(g) + size * _mean(g * size)) * (r / unit)
    d = d if dstream is None else d + dstream.abs()
    x, residual, bias, keep, gain = map(_absolute, (x, residual, bias, keep, gain))
    terms = {
        "normed": w * size if bias is None else w * size + bias,
        "stream": settle(x, residual, keep, gain),
        "weight": (dy.abs() * size).sum(rows),
        "bias": dy.abs().sum(rows),
        **settle_backward(d, x, residual, keep, gain)._asdict(),
    }
    return exact, terms


def _mean(t: Tensor) -> Tensor:
    return t.mean(-1, keepdim=True)


# --- attention ------------------------------------------------------------------------------------


def attention_cases(dtype: torch.dtype) -> list[VerificationCase]:
    """Calls of ``attend`` in a dtype, each with what it is. Every query sees some key."""

    def call(
        b: int, heads: tuple[int, int], t: int, s: int, width: int, **more: Any
    ) -> AttentionCall:
        """A call on random tensors: batch, (heads, key heads), queries, keys, width of a head."""
        h, kv = heads
        sizes = ((b, h, t, width), (b, kv, s, width), (b, kv, s, width))
        q, k, v = (random(*size, seed=n).to(dtype) for n, size in enumerate(sizes))
        return AttentionCall(q, k, v, width**-0.5, **more)

    mask = random(2, 1, 7, 19, seed=5) > 0
    mask[..., 0] = True
    bias = random(4, 7, 19, seed=6).float()
    causal = {"causal": True, "bias": random(2, 24, 24, seed=6).float()}
    return [
        ("all to all", call(2, (4, 4), 5, 9, 16)),
        ("causal", call(2, (4, 4), 33, 33, 32, causal=True)),
        ("causal, with a bias", call(1, (2, 2), 24, 24, 64, **causal)),
        ("masked, grouped heads", call(2, (4, 2), 7, 19, 8, mask=mask)),
        ("masked, with a bias", call(2, (4, 4), 7, 19, 8, mask=mask, bias=bias)),
        ("many keys", call(1, (1, 1), 2, 2048, 64)),
        ("capped", call(2, (4, 2), 7, 19, 8, mask=mask, softcap=2.0)),
    ]


def compare_attention(
    kernel: AttentionKernel | None, call: AttentionCall
) -> Iterator[tuple[Quantity, float]]:
    """The output and the gradients of q, k and v of one call by a kernel (None: by the definition),
    each beside its float64 value, and the bound of its error; ``call`` is as of ``compare_norm``.
    """
    y = (attention.reference if kernel is None else kernel.forward)(call)
    dy = random(*y.shape, seed=7).to(y)
    leaves = call[:3]
    gradients = torch.autograd.grad(y, leaves, dy)
    exact_call = call._replace(**{name: _exact(t) for name, t in call._asdict().items()})
    q, k, v = (t.requires_grad_() for t in exact_call[:3])
    if call.mask is not None:
        exact_call = exact_call._replace(mask=call.mask.cpu())
    exact_y = attention.reference(exact_call)
    exact = (exact_y.detach(), *torch.autograd.grad(exact_y, (q, k, v), _exact(dy)))
    terms = _attention_terms(exact_call, _exact(dy))
    # The weights and the output; the weights, the output, their gradient and, where heads share
    # keys, the gradients of each head as well.
    times = (2, 6, 6, 6)
    names = ("output", "gradient of q", "gradient of k", "gradient of v")
    computed = (y, *gradients)
    for row in zip(names, computed, exact, terms, times, strict=True):
        quantity = Quantity(*row[:4], call.q.dtype, call.q.dtype, row[4])
        yield quantity, quantity.bound(accumulate_dtype(call.q))


@torch.no_grad()
def _attention_terms(call: AttentionCall, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(the sums of absolute terms of the output, of the gradient of q, of k, of v). An error of a
    logit is one of every weight of its query, in proportion: so a weight counts with the terms of
    its logits."""
    shared = call.k.shape[1]
    group = call.q.shape[1] // shared
    q = call.q.abs()
    k, v = (t.repeat_interleave(group, 1).abs() for t in (call.k, call.v))
    weights = _weights(call)
    logits = call.scale * q @ k.mT
    logits = logits if call.bias is None else logits + call.bias.abs()
    weights = weights * (1 + logits + (weights * logits).sum(-1, keepdim=True))
    dweights = dy.abs() @ v.mT
    dlogits = weights * (dweights + (weights * dweights).sum(-1, keepdim=True)) * call.scale

    def over_group(t: Tensor) -> Tensor:
        return t.unflatten(1, (shared, group)).sum(2)

    return (
        weights @ v,
        dlogits @ k,
        over_group(dlogits.mT @ q),
        over_group(weights.mT @ dy.abs()),
    )


def _weights(call: AttentionCall) -> Tensor:
    """The weights (B, H, T, S), by attending to the rows of an identity."""
    b, kv, s, _ = call.k.shape
    one_hot = torch.eye(s, dtype=call.k.dtype).expand(b, kv, s, s)
    return attention.reference(call._replace(v=one_hot))
