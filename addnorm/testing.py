"""A conformance kit for norms: give it yours, and it names what is wrong with it.

    report = check_norm(my_layer_norm, kind="layer")
    assert report.ok, report.findings

``check_norm`` takes a module or a function, ``check_add_norm`` the fused addition and norm. Both
compare with the equation in float64, forward and backward, on inputs chosen to tell one mistake
from another: the answer is the name of the nearest wrong formula and its distance. See
docs/testing.md.
"""

import copy
import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from addnorm.linting.norms import (
    ACCEPT,
    Call,
    Match,
    Probe,
    Reach,
    claimed_eps,
    statistics_error,
)
from addnorm.linting.report import Finding, Report, Severity, Unknown, gathered

Kind = Literal["layer", "rms"]
Said = Iterator[Finding | Unknown]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_NAMES = {
    "weight": ("weight", "gamma", "scale", "gain", "w", "g"),
    "bias": ("bias", "beta", "shift", "b"),
    "eps": ("eps", "epsilon"),
    "residual": ("residual", "res", "skip", "r"),
}
"""What a function may call its arguments."""


def reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, kind: Kind, eps: float
) -> Tensor:
    """The equation, in float64 (Ba et al. 2016; Zhang & Sennrich 2019 with eps under the root)."""
    x = x.double()
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    y = x / ((x * x).mean(-1, keepdim=True) + eps).sqrt()
    if weight is not None:
        y = y * weight.double()
    return y if bias is None else y + bias.double()


def check_norm(
    norm: Callable[..., Tensor] | nn.Module,
    kind: Kind = "layer",
    *,
    dim: int | Sequence[int] | None = None,
    eps: float | None = None,
    weight: Tensor | bool | None = None,
    bias: Tensor | bool | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
    device: str | torch.device = "cpu",
    backend: str | None = "inductor",
) -> Report:
    """Whether ``norm`` is LayerNorm or RMSNorm, and what it is if it is not.

    A module is called as ``norm(x)``. A function is called as ``norm(x, weight=, bias=, eps=)``
    with those that are among its arguments (``gamma``, ``beta``, ``scale``, ``epsilon`` and the
    like are understood); ``weight`` and ``bias`` as tensors are the values to call it with, False
    leaves them out. ``dim`` is the width, or several; a module's is read from its parameters.
    ``eps`` is what it is claimed to use (a module's attribute, a function's argument, where not
    given). ``backend`` is torch.compile's, None leaves compilation out.
    """
    module, eps, widths = _as_module(norm, kind, dim, eps, weight, bias, device)
    kit = _Kit(module, kind, widths, eps, tuple(dtypes), torch.device(device), backend)
    return kit.report(_NORM_CHECKS)


def check_add_norm(
    fn: Callable[..., tuple[Tensor, Tensor]] | nn.Module,
    kind: Kind = "layer",
    *,
    dim: int | Sequence[int] | None = None,
    eps: float | None = None,
    weight: Tensor | bool | None = None,
    bias: Tensor | bool | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
    device: str | torch.device = "cpu",
    backend: str | None = "inductor",
) -> Report:
    """Whether ``fn(x, residual, ...)`` returns ``(norm(x + residual), x + residual)``.

    A module is called as ``fn(x, residual)``, a function with ``weight=``, ``bias=`` and ``eps=``
    where it takes them. The norm is checked as ``check_norm`` does, with a residual of zeros; then
    the sum: its rounding, what it is that is normalized, and the gradients that arrive through
    either output and through both.
    """
    module, eps, widths = _as_module(fn, kind, dim, eps, weight, bias, device, pair=True)
    kit = _Kit(
        _NormOfSum(module), kind, widths, eps, tuple(dtypes), torch.device(device), backend, module
    )
    return kit.report((*_NORM_CHECKS, *_SUM_CHECKS))


# --- what is checked, as a module -----------------------------------------------------------------


class _Function(nn.Module):
    """A function with the parameters that it takes."""

    def __init__(self, fn: Callable[..., Any], names: dict[str, str], eps: float, pair: bool):
        super().__init__()
        self.fn, self.names, self.eps, self.pair = fn, names, eps, pair
        self.weight: nn.Parameter | None
        self.bias: nn.Parameter | None
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        self.fixed: dict[str, Tensor] = {}

    def at(self, dim: int) -> "_Function":
        """The same with parameters of another width."""
        made = copy.copy(self)
        made._parameters = {}
        for i, name in enumerate(("weight", "bias")):
            value = self.fixed.get(name)
            if name not in self.names:
                made.register_parameter(name, None)
                continue
            if value is None or value.shape != (dim,):
                g = torch.Generator().manual_seed(100 * dim + i)
                value = torch.randn(dim, generator=g) * 0.5 + (1.0 if name == "weight" else 0.0)
            made.register_parameter(name, nn.Parameter(value.detach().clone()))
        return made

    def forward(self, x: Tensor, *residual: Tensor) -> Any:
        kwargs: dict[str, Any] = {}
        if self.weight is not None:
            kwargs[self.names["weight"]] = self.weight
        if self.bias is not None:
            kwargs[self.names["bias"]] = self.bias
        if "eps" in self.names:
            kwargs[self.names["eps"]] = self.eps
        return self.fn(x, *residual, **kwargs)


class _NormOfSum(nn.Module):
    """The norm of a fused addition and norm: with nothing to add."""

    def __init__(self, pair: nn.Module):
        super().__init__()
        self.pair = pair

    def at(self, dim: int) -> "_NormOfSum":
        """The same of another width."""
        return _NormOfSum(self.pair.at(dim)) if isinstance(self.pair, _Function) else self

    def forward(self, x: Tensor) -> Tensor:
        return _both(self.pair(x, torch.zeros_like(x)))[0]


def _both(out: Any) -> tuple[Tensor, Tensor]:
    if not (isinstance(out, tuple | list) and len(out) == 2):
        raise TypeError(f"expected (normed, stream), got {type(out).__name__}")
    return out[0], out[1]


def _as_module(
    norm: Callable[..., Any] | nn.Module,
    kind: Kind,
    dim: int | Sequence[int] | None,
    eps: float | None,
    weight: Tensor | bool | None,
    bias: Tensor | bool | None,
    device: str | torch.device,
    pair: bool = False,
) -> tuple[nn.Module, float | None, tuple[int, ...]]:
    if kind not in ("layer", "rms"):
        raise ValueError(f"kind must be 'layer' or 'rms', got {kind!r}")
    if isinstance(norm, nn.Module):
        known = _width_of(norm)
        asked = known if dim is None else dim
        asked = 64 if asked is None else asked
        wide = (asked,) if isinstance(asked, int) else tuple(asked)
        made = copy.deepcopy(norm).to(device)
        return made, claimed_eps(norm) if eps is None else eps, wide
    names: dict[str, str] = {}
    parameters: dict[str, inspect.Parameter] = {}
    with suppress(TypeError, ValueError):  # a builtin says nothing: then it takes x alone
        parameters = dict(inspect.signature(norm).parameters)
    for role, known_names in _NAMES.items():
        found = next((n for n in known_names if n in list(parameters)[1:]), None)
        if found is not None:
            names[role] = found
    if weight is False:
        names.pop("weight", None)
    if bias is False:
        names.pop("bias", None)
    if "eps" in names and eps is None:
        default = parameters[names["eps"]].default
        eps = float(default) if isinstance(default, int | float) else 1e-5
    wrapped = _Function(norm, names, 0.0 if eps is None else eps, pair)
    for role, value in (("weight", weight), ("bias", bias)):
        if isinstance(value, Tensor):
            if role not in names:
                raise ValueError(f"a {role} is given, but the function has no argument for it")
            wrapped.fixed[role] = value
    given = next((len(v) for v in wrapped.fixed.values()), None)
    asked = dim if dim is not None else (given if given is not None else (64, 100))
    wide = (asked,) if isinstance(asked, int) else tuple(asked)
    return wrapped.to(device), eps, wide


def _width_of(norm: nn.Module) -> int | None:
    """How many features a module is for, from its parameters, else as it says."""
    for p in norm.parameters():
        if p.numel() > 1:
            return p.numel()
    for name in ("normalized_shape", "dim", "hidden_size", "d_model", "features"):
        said = getattr(norm, name, None)
        said = said[-1] if isinstance(said, tuple | list) and said else said
        if isinstance(said, int) and said > 0:
            return said
    return None


# --- the kit --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Width:
    """What was measured at one width."""

    dim: int
    module: nn.Module
    probe: Probe
    reach: Reach
    match: Match | None


class _Kit:
    """One norm under examination."""

    def __init__(
        self,
        module: nn.Module,
        kind: Kind,
        widths: tuple[int, ...],
        eps: float | None,
        dtypes: tuple[torch.dtype, ...],
        device: torch.device,
        backend: str | None,
        pair: nn.Module | None = None,
    ):
        self.subject, self.kind, self.widths = module, kind, widths
        self.claimed, self.dtypes, self.device = eps, dtypes, device
        self.backend, self.pair = backend, pair
        self.eps = eps
        self.measured: list[_Width] = []
        self.dead: set[torch.dtype] = set()
        self.wrong: set[str] = set()
        """The parameters whose gradients were found wrong."""
        self.misused = False
        """Weight or bias do not enter as they should."""
        self.spoilt = ""
        """Why nothing more can be compared."""
        self._eps: dict[torch.dtype, float] = {}

    def report(self, checks: Sequence[tuple[str, Callable[["_Kit"], Said]]]) -> Report:
        began = time.monotonic()
        said: list[Finding | Unknown] = []
        devices = range(torch.cuda.device_count())
        with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a norm warns of is no answer of the kit
            torch.manual_seed(0)
            try:
                self._measure()
            except Exception as e:
                said.append(_raised("call", e, f"an input of shape (3, 5, {self.widths[0]})"))
                return gathered(said, ("call",), self._facts(began))
            # What differs from call to call cannot be compared with anything.
            if self._moves():
                self.spoilt = "the output differs from call to call: nothing can be compared"
                said.append(
                    _finding(
                        "nondeterministic",
                        "error",
                        {"calls": 3, "what": "output"},
                        "The same input gives another output the second time.",
                        "Sum in a fixed order (no atomic additions), and draw no random numbers.",
                    )
                )
            for name, check in checks:
                if self.spoilt:
                    said.append(Unknown(rule=name, module="", why=self.spoilt))
                    continue
                try:
                    said += list(check(self))
                except Exception as e:
                    said.append(_raised(name, e, f"the inputs of the check '{name}'"))
        return gathered(said, [name for name, _ in checks], self._facts(began))

    def _facts(self, began: float) -> dict[str, Any]:
        first = next((w for w in self.measured if w.match is not None), None)
        return {
            "kind": self.kind,
            "widths": list(self.widths),
            "formula": None if first is None or first.match is None else first.match.formula.name,
            "eps": self.eps,
            "dtypes": [str(d) for d in self.dtypes],
            "seconds": time.monotonic() - began,
        }

    def of_width(self, dim: int) -> nn.Module:
        """The module with that many features."""
        if isinstance(self.subject, _Function | _NormOfSum):
            return self.subject.at(dim).to(self.device)
        return self.subject

    def _measure(self) -> None:
        for dim in self.widths:
            module = self.of_width(dim)
            x = torch.zeros(3, 5, dim, device=self.device)
            held = [p for p in module.parameters() if p.is_floating_point()]
            if not held:
                module.register_buffer("_device", torch.zeros(1, device=self.device))
            probe = Probe(module, Call((x,), {}, 0, (3, 5, dim)))
            probe.claimed_eps = self.claimed
            reach = probe.reach()
            match = probe.match(reach) if reach.axes else None
            self._enliven(module, probe)
            self.measured.append(_Width(dim, module, probe, reach, match))
            if self.eps is None and match is not None and match.distance < ACCEPT:
                self.eps = match.eps

    def _moves(self) -> bool:
        module = self.typed(self.first.module, torch.float32)
        with torch.no_grad():
            ys = [module(self.rows(512, self.first.dim, torch.float32, 15)) for _ in range(3)]
        return any(not torch.equal(y.nan_to_num(), ys[0].nan_to_num()) for y in ys)

    def _enliven(self, module: nn.Module, probe: Probe) -> None:
        """Random values for ones and zeros, which would hide what is done to them."""
        g = torch.Generator().manual_seed(1)
        for (_, p), (_, q) in zip(
            module.named_parameters(), probe.module.named_parameters(), strict=True
        ):
            shift = any(q is b for b in probe.shifts)
            if (q is probe.gain or shift) and bool((p == p.flatten()[0]).all()) and p.numel() > 1:
                noise = 0.5 * torch.randn(p.shape, generator=g)
                p.data.copy_(noise + (0.0 if shift else 1.0 - probe.offset))

    @property
    def first(self) -> _Width:
        return self.measured[0]

    @property
    def right(self) -> bool:
        """The formula is the one asked for: what follows may compare with the reference."""
        name = {"layer": "LayerNorm", "rms": "RMSNorm"}[self.kind]
        return not self.misused and all(
            w.reach.axes == (-1,)
            and w.match is not None
            and w.match.formula.name == name
            and w.match.distance < 1e-4
            and abs(w.match.factor - 1.0) < 1e-4
            for w in self.measured
        )

    @property
    def used_eps(self) -> float:
        """The eps that was measured; what is wrong with it is said once."""
        match = self.first.match
        return match.eps if match is not None else (self.eps or 0.0)

    def eps_in(self, dtype: torch.dtype) -> float:
        """The eps in a dtype: some norms take the dtype's own (torch's RMSNorm without one)."""
        if dtype == self.first.probe.like.dtype or not self.right:
            return self.used_eps
        if dtype not in self._eps:
            self._eps[dtype] = self._read_eps(dtype)
        return self._eps[dtype]

    def _read_eps(self, dtype: torch.dtype) -> float:
        w = self.first
        assert w.match is not None
        if not w.probe.is_bare or w.dim < 2:
            return self.used_eps
        size = 1e-5 if dtype == torch.float32 else 1e-3
        x = (size * self.rows(32, w.dim, torch.float64, 4)).to(dtype)
        try:
            with torch.no_grad():
                y = _bare(self, w, dtype)(x)
        except Exception:  # said where the dtype is tried
            return self.used_eps
        read = float(w.match.formula.eps_from(x.double(), y.double()).median())
        # A row is known to one unit of the dtype, its square to two, and far less of their mean.
        if abs(read - self.used_eps) <= 0.05 * max(self.used_eps, size**2):
            return self.used_eps
        own = torch.finfo(dtype).eps
        return own if abs(read - own) < 0.05 * own else read

    def answer(
        self,
        x: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """The reference, with the eps of x's dtype."""
        return reference(x, weight, bias, self.kind, self.eps_in(dtype or x.dtype))

    def typed(self, module: nn.Module, dtype: torch.dtype) -> nn.Module:
        """A copy in a dtype, in evaluation mode."""
        return copy.deepcopy(module).to(dtype).eval()

    def affine(self, w: _Width, module: nn.Module) -> tuple[Tensor | None, Tensor | None]:
        """Weight (as it multiplies) and bias of a copy of ``w.module``, of shape (dim,)."""
        by_name = dict(w.probe.module.named_parameters())
        here = dict(module.named_parameters())
        gain = next((n for n, p in by_name.items() if p is w.probe.gain), None)
        shift = next((n for n, p in by_name.items() if any(p is b for b in w.probe.shifts)), None)
        weight = None if gain is None else here[gain].detach().double() + w.probe.offset
        bias = None if shift is None else here[shift].detach().double()
        return weight, bias

    def gain_name(self, w: _Width) -> str | None:
        """The parameter that multiplies."""
        return next((n for n, p in w.probe.module.named_parameters() if p is w.probe.gain), None)

    def bias_name(self, w: _Width) -> str | None:
        """The parameter that is added."""
        named = w.probe.module.named_parameters()
        return next((n for n, p in named if any(p is b for b in w.probe.shifts)), None)

    def rows(self, rows: int, dim: int, dtype: torch.dtype, seed: int, mean: float = 0.5) -> Tensor:
        """Normal rows around ``mean``."""
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, dim, generator=g, dtype=torch.float64) + mean
        return x.to(device=self.device, dtype=dtype)


def _finding(
    rule: str, severity: Severity, evidence: dict[str, Any], message: str, remedy: str
) -> Finding:
    finite = {
        name: str(v) if isinstance(v, float) and not math.isfinite(v) else v
        for name, v in evidence.items()
    }
    return Finding(
        rule=rule, severity=severity, module="", evidence=finite, message=message, remedy=remedy
    )


def _raised(rule: str, e: Exception, on: str) -> Finding:
    return _finding(
        rule,
        "error",
        {"exception": type(e).__name__, "says": str(e).splitlines()[0][:200] if str(e) else ""},
        f"It raises {type(e).__name__} for {on}.",
        "Let it run, or refuse such inputs with a message of your own and leave this check out.",
    )


def unit(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number: the relative error of one rounding."""
    return torch.finfo(dtype).eps / 2


def _off(y: Tensor, ref: Tensor, size: float | None = None) -> float:
    """The difference of two tensors as wholes, relative to the second or to ``size``."""
    size = float(ref.double().norm()) if size is None else size
    d = float((y.detach().double() - ref.detach().double()).norm()) / max(size, 1e-300)
    return d if math.isfinite(d) else math.inf


def _offs(have: Tensor, family: dict[str, Tensor]) -> dict[str, float]:
    """The distance to each of a family, relative to its first, which is the right one."""
    size = float(next(iter(family.values())).double().norm())
    return {told: _off(have, value, size) for told, value in family.items()}


# Formula ------------------------------------------------------------------------------------------

_RULES = {
    "norm-unbiased-variance": (
        "unbiased-variance",
        "It divides by n - 1 (unbiased variance) instead of n: outputs are sqrt((n-1)/n) of what "
        "they should be, and one feature gives NaN.",
        "Use the biased variance: mean((x - mean)^2), correction=0.",
    ),
    "norm-eps-outside-sqrt": (
        "eps-outside-root",
        "eps is added to the root instead of under it: small rows come out differently, and the "
        "root of zero has no gradient.",
        "Write sqrt(variance + eps).",
    ),
}


def _formula(kit: _Kit) -> Said:
    for w in kit.measured:
        yield from _formula_at(kit, w)


def _formula_at(kit: _Kit, w: _Width) -> Said:
    m = w.match
    where = {"dim": w.dim}
    if not w.reach.axes:
        yield _finding(
            "not-normalizing",
            "error",
            {**where, "elements_that_share_statistics": 1},
            "No output depends on another feature than its own: nothing is normalized.",
            "Divide by a statistic of the row.",
        )
        return
    if w.reach.axes != (-1,):
        names = {-3: "the batch", -2: "the positions", -1: "the features"}
        over = " and ".join(names[a] for a in w.reach.axes)
        for rule in ("batch-dependence", "wrong-axis") if -3 in w.reach.axes else ("wrong-axis",):
            yield _finding(
                rule,
                "error",
                {**where, "input_shape": [3, 5, w.dim], "statistics_over_axes": list(w.reach.axes)},
                f"For inputs (batch, positions, features) statistics are taken over {over}.",
                "Reduce over the last axis alone: dim=-1, keepdim=True.",
            )
        return
    if w.dim == 1:
        return
    assert m is not None
    told = {
        **where,
        "formula": m.formula.name,
        "distance": m.distance,
        "next_formula": m.runner_up,
        "next_distance": m.runner_up_distance,
        "eps": m.eps,
    }
    if m.distance >= ACCEPT:
        yield _finding(
            "unknown-formula",
            "error",
            told,
            f"It follows no formula that is known; the nearest is '{m.formula.name}', off by "
            f"{m.distance:.2g}.",
            "Compare with addnorm.testing.reference on the same inputs.",
        )
        return
    for mistake in m.formula.mistakes:
        if mistake in _RULES:
            rule, message, remedy = _RULES[mistake]
            yield _finding(rule, "error", told, message, remedy)
    if m.formula.mistakes and not set(m.formula.mistakes) <= set(_RULES):
        rule = "not-normalizing"
        if not m.formula.centred and m.formula.spread in ("variance", "unbiased"):
            rule = "mean-not-removed"
        elif m.formula.summed and m.formula.form in ("inside", "outside"):
            rule = "sum-not-mean"
        elif m.formula.form in ("bare", "times", "no root"):
            rule = "not-normalizing"
        yield _finding(
            rule,
            "error",
            told,
            f"It computes: {m.formula.name}.",
            "LayerNorm is (x - mean) / sqrt(mean((x - mean)^2) + eps), RMSNorm "
            "x / sqrt(mean(x^2) + eps).",
        )
    if m.formula.kind != kit.kind and m.formula.kind != "other":
        if kit.kind == "layer":
            yield _finding(
                "mean-not-removed",
                "error",
                told,
                "The mean is not subtracted: this is RMSNorm, not LayerNorm.",
                "Subtract x.mean(-1, keepdim=True), or check it with kind='rms'.",
            )
        else:
            yield _finding(
                "mean-removed",
                "error",
                told,
                "The mean is subtracted: this is LayerNorm, not RMSNorm.",
                "Leave the mean in, or check it with kind='layer'.",
            )
    elif not m.formula.mistakes and m.formula.summed:
        yield _finding(
            "sum-not-mean",
            "error",
            told,
            "It divides by the length of the row, sqrt(sum(x^2)): outputs are 1/sqrt(n) of "
            "RMSNorm's.",
            "Take the mean of the squares.",
        )
    elif not m.formula.mistakes and m.formula.kind == "other":
        yield _finding(
            "unknown-formula",
            "error",
            told,
            f"It divides by the {m.formula.name}, not by the root of a mean square.",
            "LayerNorm and RMSNorm take the root of the mean of squares.",
        )
    if not math.isnan(m.factor) and abs(m.factor - 1.0) > max(1e-4, 10 * m.distance):
        yield _finding(
            "constant-factor",
            "error",
            {**told, "factor": m.factor},
            f"Outputs are {m.factor:.6g} times what they should be, for a weight of one.",
            "Remove the factor, or put it into the weight.",
        )
    if m.distance > 1e-4:
        yield _finding(
            "low-precision-statistics",
            "error",
            told,
            f"Even of {w.probe.like.dtype} inputs the result has about "
            f"{-math.log2(m.distance):.0f} bits: something inside is cast to 16 bits.",
            "Compute mean and variance in float32 at least.",
        )
        return
    yield from _eps_at(kit, w, m, told)


def _eps_at(kit: _Kit, w: _Width, m: Match, told: dict[str, Any]) -> Said:
    if m.formula.form == "bare" or "norm-not-normalizing" in m.formula.mistakes:
        return
    claimed = kit.claimed
    with torch.no_grad():
        zeros = w.probe.bare(torch.zeros_like(w.probe.normal(0)))
    if m.eps == 0.0 and not bool(zeros.isfinite().all()):
        yield _finding(
            "eps-missing",
            "error",
            told | ({} if claimed is None else {"claimed_eps": claimed}),
            "There is no eps: a row of zeros is divided by zero.",
            "Add eps under the root.",
        )
    # The reading of eps is as exact as the arithmetic inside: float32 on rows of 1e-6.
    elif claimed is not None and abs(m.eps - claimed) > 1e-2 * claimed + 1e-18:
        yield _finding(
            "eps-size",
            "error",
            {**told, "claimed_eps": claimed},
            f"eps is {m.eps:.4g} and not {claimed:.4g} as claimed.",
            "Pass eps through unchanged (and not its square, nor another default).",
        )


def _eps_by_dtype(kit: _Kit) -> Said:
    if not kit.right:
        return
    for dtype in kit.dtypes:
        eps = kit.eps_in(dtype)
        if abs(eps - kit.used_eps) > 0.05 * kit.used_eps:
            like = kit.first.probe.like.dtype
            yield _finding(
                "eps-of-dtype",
                "warning" if kit.claimed is not None else "note",
                {str(dtype).removeprefix("torch."): eps, str(like): kit.used_eps},
                f"eps is {eps:.3g} in {dtype} and {kit.used_eps:.3g} in {like}: the same weights "
                "give another function in another dtype.",
                "Give eps as a number.",
            )


def _affine(kit: _Kit) -> Said:
    """Whether weight and bias are used as w * xhat + b."""
    w = kit.first
    if isinstance(w.module, _Function | _NormOfSum):
        inner = w.module.pair if isinstance(w.module, _NormOfSum) else w.module
        if isinstance(inner, _Function):
            lost = {
                "weight": inner.weight is not None and w.probe.gain is None and w.dim > 1,
                "bias": inner.bias is not None and not w.probe.shifts,
            }
            for name in (n for n, yes in lost.items() if yes and w.match is not None):
                kit.misused = True
                yield _ignored(name)
    if not kit.right or w.probe.gain is None:
        return
    dtype = w.probe.like.dtype
    module = kit.typed(w.module, dtype)
    weight, bias = kit.affine(w, module)
    x = kit.rows(32, w.dim, dtype, 3)
    with torch.no_grad():
        y = module(x)
    hat = kit.answer(x)
    assert weight is not None
    zero = torch.zeros_like(weight) if bias is None else bias
    family = {
        "weight * xhat + bias": hat * weight + zero,
        "weight * (xhat + bias)": (hat + zero) * weight,
        "weight left out": hat + zero,
        "bias left out": hat * weight,
        "(1 + weight) * xhat + bias": hat * (weight + 1) + zero,
    }
    off = _offs(y, family)
    best = min(off, key=lambda n: off[n])
    # The right one is at the accuracy of the formula; one that is nearer by far is meant.
    if off["weight * xhat + bias"] > 10 * max(off[best], 1e-6):
        kit.misused = True
        yield _finding(
            "affine",
            "error",
            {f"distance of {n}": d for n, d in off.items()},
            f"Weight and bias enter as {best}.",
            "The norm is weight * xhat + bias.",
        )


def _ignored(name: str) -> Finding:
    return _finding(
        f"{name}-ignored",
        "error",
        {"output_change": 0.0},
        f"The {name} does not enter the output as it should: y = weight * xhat + bias.",
        f"Use the {name}.",
    )


# Precision ----------------------------------------------------------------------------------------


def _bound(x: Tensor, ref: Tensor, weight: Tensor | None, bias: Tensor | None, kit: _Kit) -> Tensor:
    """How far an output may be off, element by element.

    With u the unit of x's dtype and v that of float32 (float64's for float64), n features:
    rounding the output costs u |y|; rounding xhat before the weight (Llama's order) and the product
    before the bias cost u |w xhat| each; a sum of n terms, added one after the other in the worst
    case, is off by n v relative to the sum of their sizes: for the mean that is n v mean|x|, for
    the mean square n v; ten more roundings of subtraction, root and product. The factor 2 covers
    the second-order terms.
    """
    u = unit(x.dtype)
    v = unit(torch.float64 if x.dtype == torch.float64 else torch.float32)
    n = x.shape[-1]
    xd = x.double()
    hat = kit.answer(x).abs()
    gain = torch.ones_like(hat) if weight is None else weight.abs().expand_as(hat)
    centred = xd - xd.mean(-1, keepdim=True) if kit.kind == "layer" else xd
    root = ((centred * centred).mean(-1, keepdim=True) + kit.eps_in(x.dtype)).sqrt()
    mean = xd.abs().mean(-1, keepdim=True) / root if kit.kind == "layer" else 0.0
    statistics = (n + 10) * v * gain * (hat + mean)
    if kit.kind == "layer":  # the error of the mean, squared into the variance
        statistics = statistics + gain * hat * ((n + 10) * v * mean) ** 2
    outputs = u * (ref.abs() + 2 * gain * hat)
    tiny = torch.finfo(x.dtype).tiny
    return 2 * (outputs + statistics) + 2 * tiny


def _precision(kit: _Kit) -> Said:
    if not kit.right:
        yield Unknown(
            rule="precision", module="", why="it is another function: precision has no meaning"
        )
        return
    for dtype in kit.dtypes:
        for w in kit.measured:
            if w.dim > 1:
                yield from _precision_at(kit, w, dtype)


def _precision_at(kit: _Kit, w: _Width, dtype: torch.dtype) -> Said:
    module = kit.typed(w.module, dtype)
    name = str(dtype).removeprefix("torch.")
    x = kit.rows(64, w.dim, dtype, 5)
    try:
        with torch.no_grad():
            y = module(x)
    except Exception as e:
        kit.dead.add(dtype)
        yield Unknown(
            rule="precision",
            module="",
            why=f"it does not run in {name}: {type(e).__name__}: {e}".splitlines()[0][:200],
        )
        return
    if y.dtype != dtype:
        yield _finding(
            "output-dtype",
            "error",
            {"input": name, "output": str(y.dtype).removeprefix("torch.")},
            f"The output of {name} inputs (and {name} parameters) is {y.dtype}.",
            "Cast the result back: .to(x.dtype).",
        )
    weight, bias = kit.affine(w, module)
    ref = kit.answer(x, weight, bias)
    low = dtype in (torch.bfloat16, torch.float16)
    shared = _shared_error(kit, w, dtype) if low and w.dim >= 16 else None
    u = unit(dtype)
    # A rounded statistic moves whole rows, by u / sqrt(3) and more; float32 ones by next to 0.
    if shared is not None and shared > 0.25 * u:
        emulated = _emulated(kit, w, dtype)
        yield _finding(
            "low-precision-statistics",
            "error",
            {
                "dtype": name,
                "dim": w.dim,
                "row_error": shared,
                "row_error_of_statistics_in_this_dtype": emulated,
                "row_error_of_float32_statistics": unit(torch.float32),
            },
            f"Statistics in {name}: whole rows are off by {shared:.2g}, as with mean and variance "
            f"rounded to {name} ({emulated:.2g}).",
            "Compute mean and variance in float32 and cast the result back.",
        )
        return
    excess = float(((y.double() - ref).abs() / _bound(x, ref, weight, bias, kit)).max())
    if not excess <= 1.0:
        yield _finding(
            "precision",
            "error",
            {"dtype": name, "dim": w.dim, "error_over_bound": excess, "relative": _off(y, ref)},
            f"In {name} an output is {excess:.3g} times as far from the float64 reference as "
            "rounding explains.",
            "Keep statistics and products in float32 until the last cast.",
        )
    if low and weight is not None:
        yield from _cast_order(kit, x, y, weight, bias, dtype)


def _bare(kit: _Kit, w: _Width, dtype: torch.dtype) -> nn.Module:
    """A copy with gain one and no bias, as the probe left it."""
    module = kit.typed(w.module, dtype)
    held = dict(w.probe.module.named_parameters())
    with torch.no_grad():
        for n, p in module.named_parameters():
            p.copy_(held[n])
    return module


def _shared_error(kit: _Kit, w: _Width, dtype: torch.dtype) -> float | None:
    if not w.probe.is_bare:
        return None
    module = _bare(kit, w, dtype)
    x = kit.rows(256, w.dim, dtype, 6, mean=0.3)
    with torch.no_grad():
        y = module(x).double()
    ref = kit.answer(x).to(dtype).double()
    return statistics_error(y, ref)


def _emulated(kit: _Kit, w: _Width, dtype: torch.dtype) -> float:
    """The same error of a norm with mean and variance rounded to the dtype."""
    x = kit.rows(256, w.dim, dtype, 6, mean=0.3)
    xd = x.double()
    if kit.kind == "layer":
        xd = xd - xd.mean(-1, keepdim=True).to(dtype).double()
    square = (xd * xd).mean(-1, keepdim=True).to(dtype).double()
    y = xd * (square + kit.eps_in(dtype)).rsqrt().to(dtype).double()
    ref = kit.answer(x)
    return statistics_error(y.to(dtype).double(), ref.to(dtype).double())


def _cast_order(
    kit: _Kit, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Said:
    hat = kit.answer(x)
    zero = 0.0 if bias is None else bias
    once = (hat * weight + zero).to(dtype)
    first = (hat.to(dtype).double() * weight).to(dtype)
    twice = first if bias is None else (first.double() + zero).to(dtype)
    same = {
        "rounded once, at the end": float((y == once).double().mean()),
        "rounded before the weight": float((y == twice).double().mean()),
    }
    # A product of two 8-bit numbers is exact in float32: all are equal under one of the orders but
    # for the ties that float32 statistics decide otherwise.
    if same["rounded before the weight"] > 0.98 > same["rounded once, at the end"]:
        yield _finding(
            "cast-order",
            "note",
            {"dtype": str(dtype).removeprefix("torch."), **same},
            "The normalized value is cast back before the weight is multiplied (Llama's and T5's "
            "order; torch casts once, at the end): up to one unit in the last place.",
            "Nothing, if it is for weights that were trained so.",
        )


def _large_mean(kit: _Kit) -> Said:
    """Rows of deviation 1 around 1000 and 10000, where a difference of squares has no digits."""
    if not kit.right or kit.kind != "layer" or torch.float32 not in kit.dtypes:
        return
    for w in kit.measured:
        if w.dim < 16:
            continue
        module = kit.typed(w.module, torch.float32)
        weight, bias = kit.affine(w, module)
        for far in (1e3, 1e4):
            x = kit.rows(32, w.dim, torch.float32, 7, mean=far)
            with torch.no_grad():
                y = module(x)
            ref = kit.answer(x, weight, bias)
            found = _off(y, ref)
            # The mean is off by far * v, once; a difference of squares by far^2 * v: the bound is
            # half way on a logarithmic scale.
            v = unit(torch.float32)
            if found > far**1.5 * v:
                yield _finding(
                    "cancellation",
                    "error",
                    {
                        "mean_over_deviation": far,
                        "dim": w.dim,
                        "relative_error": found,
                        "of_two_passes": far * v,
                        "of_a_difference_of_squares": far**2 * v,
                    },
                    f"Rows around {far:g} of deviation 1 come out wrong by {found:.2g}, as with "
                    "mean(x^2) - mean(x)^2 in float32.",
                    "Subtract the mean first, then square (or use Welford's method).",
                )
                break


# Gradients ----------------------------------------------------------------------------------------


def _gradients(kit: _Kit) -> Said:
    if not kit.right:
        yield Unknown(rule="gradient", module="", why="it is another function: so is its gradient")
        return
    double = kit.first.probe.like.dtype == torch.float64
    for dtype in dict.fromkeys([torch.float64] * double + [torch.float32, *kit.dtypes]):
        if dtype in kit.dead:
            continue
        for w in kit.measured:
            if w.dim > 1:
                yield from _gradients_at(kit, w, dtype)


def _gradients_at(kit: _Kit, w: _Width, dtype: torch.dtype) -> Said:
    module = kit.typed(w.module, dtype)
    for p in module.parameters():
        p.requires_grad_(True)
    name = str(dtype).removeprefix("torch.")
    weight, _ = kit.affine(w, module)
    # Rows enough that a sum over them in bfloat16 loses its digits, in a 3-D shape whose axes all
    # differ.
    x = kit.rows(16 * 24, w.dim, dtype, 8).view(16, 24, w.dim).requires_grad_()
    hat = kit.answer(x.detach())
    # dy has a part along xhat, one along ones and noise: each term of the gradient is of its size.
    noise = kit.rows(16 * 24, w.dim, torch.float64, 9, mean=0.0).view_as(hat)
    scale = 1.0 if weight is None else weight.sign()
    dy = ((hat + 0.8) * scale + 0.5 * noise).to(dtype)
    y = module(x)
    if not y.requires_grad:
        yield _finding(
            "gradient-missing",
            "error",
            {"dtype": name},
            "The output has no gradient: it is detached from its input.",
            "Compute without no_grad and detach.",
        )
        return
    gain, shift = kit.gain_name(w), kit.bias_name(w)
    held = dict(module.named_parameters())
    named = [("weight", gain), ("bias", shift)]
    wanted = [x, *(held[n] for _, n in named if n is not None)]
    got = list(torch.autograd.grad(y, wanted, dy.to(y.dtype), allow_unused=True))
    dyd = dy.double()
    yield from _input_gradient(kit, w, name, x, got[0], dyd, weight, hat)
    index = 1
    for role, n in named:
        if n is None:
            continue
        terms = dyd * hat if role == "weight" else dyd
        found = list(_parameter_gradient(role, got[index], terms, dtype, w))
        index += 1
        if found and role not in kit.wrong:  # in the widest dtype that shows it
            kit.wrong.add(role)
            yield from found


def _input_gradient(
    kit: _Kit,
    w: _Width,
    name: str,
    x: Tensor,
    got: Tensor | None,
    dy: Tensor,
    weight: Tensor | None,
    hat: Tensor,
) -> Said:
    r = _reciprocal(kit, x.detach())
    family = gradients(dy if weight is None else dy * weight, hat, r, kit.kind)
    if weight is not None:
        right = gradients(dy, hat, r, kit.kind)[_RIGHT]
        family["the weight is left out"] = ("gradient-wrong", right)
    have = torch.zeros_like(x) if got is None else got
    off = _offs(have, {told: value for told, (_, value) in _pairs(family).items()})
    # Relative to r * g, which the other terms may cancel (of two features nearly all): roundings of
    # g, of the products and of the result, at most 8 units of the dtype; float32 sums, n + 10.
    # xhat and r are as exact as x - mean is, which loses mean|x| / deviation.
    dtype = x.dtype
    v = unit(torch.float64 if dtype == torch.float64 else torch.float32)
    lost = float((x.detach().double().abs().mean(-1, keepdim=True) * r).max())
    bound = 8 * unit(dtype) + (w.dim + 10) * v * (1 + lost)
    if w.match is not None:
        bound += 10 * w.match.distance  # what is computed in float32 whatever it is given
    g = dy if weight is None else dy * weight
    bound *= float((r * g).norm() / _pairs(family)[_RIGHT][1].norm().clamp(min=1e-300))
    if off[_RIGHT] <= bound:
        return
    best = min(off, key=lambda n: off[n])
    if best == _RIGHT:
        best, rule = "less precise than rounding explains", "gradient-precision"
    elif off[best] > 0.1:
        best, rule = "like none that is known", "gradient-wrong"
    else:
        rule = _pairs(family)[best][0]
    yield _finding(
        rule,
        "error",
        {"dtype": name, "dim": w.dim, "bound": bound}
        | {f"distance: {told}": d for told, d in sorted(off.items(), key=lambda i: i[1])[:4]},
        f"The gradient of x in {name} is off by {off[_RIGHT]:.2g}: {best}.",
        "dx = r * (g - mean(g) - xhat * mean(g * xhat)) with g = dy * weight"
        + ("." if kit.kind == "layer" else "; for RMSNorm without mean(g)."),
    )


_RIGHT = "right"


def _pairs(family: dict[str, Any]) -> dict[str, tuple[str, Tensor]]:
    return {k: v if isinstance(v, tuple) else ("", v) for k, v in family.items()}


def _reciprocal(kit: _Kit, x: Tensor) -> Tensor:
    eps = kit.eps_in(x.dtype)
    x = x.double()
    if kit.kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    return ((x * x).mean(-1, keepdim=True) + eps).rsqrt()


def gradients(g: Tensor, hat: Tensor, r: Tensor, kind: Kind) -> dict[str, Any]:
    """The right gradient of x and wrong ones, by what is wrong, as (rule, value); g = dy * weight.

    r is 1 / sqrt(variance + eps).
    """
    n = hat.shape[-1]
    mean = g.mean(-1, keepdim=True)
    along = (g * hat).mean(-1, keepdim=True)
    layer, rms = r * (g - mean - hat * along), r * (g - hat * along)
    wrong = {
        "statistics are held constant (detached)": ("gradient-detached-statistics", r * g),
        "the term of the variance is dropped": (
            "gradient-dropped-variance-term",
            r * (g - mean),
        ),
        "not divided by the deviation": (
            "gradient-wrong",
            (layer if kind == "layer" else rms) / r,
        ),
        "sums instead of means": (
            "gradient-wrong",
            r * (g - (n * mean if kind == "layer" else 0.0) - n * hat * along),
        ),
        "a sign is wrong": (
            "gradient-wrong",
            r * (g - (mean if kind == "layer" else 0.0) + hat * along),
        ),
        "nothing": ("gradient-missing", torch.zeros_like(g)),
    }
    if kind == "layer":
        wrong["the term of the mean is dropped (RMSNorm's gradient)"] = (
            "gradient-dropped-mean-term",
            rms,
        )
        return {_RIGHT: layer, **wrong}
    wrong["it has a term of the mean (LayerNorm's gradient)"] = ("gradient-wrong", layer)
    return {_RIGHT: rms, **wrong}


def _parameter_gradient(
    role: str, got: Tensor | None, terms: Tensor, dtype: torch.dtype, w: _Width
) -> Said:
    """``terms`` (batch, positions, dim) summed over batch and positions."""
    right = terms.sum((0, 1))
    n = terms.shape[0] * terms.shape[1]
    name = str(dtype).removeprefix("torch.")
    if got is not None and got.numel() != right.numel():
        yield _finding(
            f"gradient-{role}",
            "error",
            {"shape": list(got.shape), "expected": list(right.shape)},
            f"The gradient of the {role} has shape {tuple(got.shape)}.",
            "Sum over all axes but the last.",
        )
        return
    have = torch.zeros_like(right) if got is None else got.reshape(-1)
    family = {
        _RIGHT: right,
        "averaged over the rows instead of summed": right / n,
        "summed over the first sample only": terms[0].sum(0),
        "summed over the last sample only": terms[-1].sum(0),
        "summed over the first position only": terms[:, 0].sum(0),
        "averaged over the batch": right / terms.shape[0],
        "summed over the features too": torch.full_like(right, float(terms.sum())),
        "nothing": torch.zeros_like(right),
    }
    off = _offs(have, family)
    v = unit(torch.float64 if dtype == torch.float64 else torch.float32)
    # One rounding of dy * xhat in each term (n of them, of random sign, so that they are 1/sqrt(n)
    # of a unit in a sum of one sign) and one of the result; n + 10 roundings of a float32 sum. Half
    # of the terms' sum may cancel: twice that. xhat is rounded too in half the kernels: 4 units.
    size = float(terms.abs().sum((0, 1)).norm() / right.norm())
    bound = 4 * unit(dtype) + (n + w.dim + 20) * v * size
    if w.match is not None:
        bound += 10 * w.match.distance * size
    if off[_RIGHT] <= bound:
        return
    best = min(off, key=lambda k: off[k])
    low = dtype in (torch.bfloat16, torch.float16)
    running = _running(terms, right, dtype) if low else 0.0
    if low and (best == _RIGHT or off[_RIGHT] <= 2 * running):
        yield _finding(
            f"gradient-{role}-low-precision",
            "warning",
            {
                "dtype": name,
                "rows": n,
                "relative_error": off[_RIGHT],
                "bound": bound,
                "of_a_running_sum": running,
            },
            f"The gradient of the {role} is off by {off[_RIGHT]:.2g} in {name}: the sum over "
            f"{n} rows was accumulated in {name}.",
            "Accumulate it in float32.",
        )
        return
    told = best if best != _RIGHT and off[best] < 0.1 else "unlike any known"
    yield _finding(
        f"gradient-{role}",
        "error",
        {"dtype": name, "bound": bound}
        | {f"distance: {t}": d for t, d in sorted(off.items(), key=lambda i: i[1])[:4]},
        f"The gradient of the {role} in {name} is off by {off[_RIGHT]:.2g}: {told}.",
        "Sum dy * xhat (for the bias dy) over all axes but the last, in float32.",
    )


def _running(terms: Tensor, right: Tensor, dtype: torch.dtype) -> float:
    """The error of adding the rows one after the other in a dtype."""
    total = torch.zeros_like(right).to(dtype)
    for row in terms.flatten(0, 1).to(dtype):
        total = total + row
    return _off(total, right)


# Extremes -----------------------------------------------------------------------------------------


def _extremes(kit: _Kit) -> Said:
    w = kit.first
    if not kit.right or w.dim == 1:
        return
    for dtype in kit.dtypes:
        if dtype in kit.dead:
            continue
        name = str(dtype).removeprefix("torch.")
        module = kit.typed(w.module, dtype)
        weight, bias = kit.affine(w, module)
        # Float16 ends at 65504; a float32 sum of squares carries bfloat16 up to about 1e17.
        top = 2e4 if dtype == torch.float16 else 1e17
        base = kit.rows(16, w.dim, torch.float64, 11, mean=0.0).clamp(-3, 3)
        tiny = 1e-7 if dtype == torch.float16 else 1e-8
        cases = {"overflow": top * base, "tiny-row": tiny * base}
        for rule, xd in cases.items():
            x = xd.to(dtype)
            with torch.no_grad():
                y = module(x)
            ref = kit.answer(x, weight, bias)
            excess = float(((y.double() - ref).abs() / _bound(x, ref, weight, bias, kit)).max())
            if not excess <= 1.0:
                size = float(x.double().abs().max())
                yield _finding(
                    rule,
                    "error",
                    {
                        "dtype": name,
                        "largest_input": size,
                        "not_finite": int((~y.isfinite()).sum()),
                        "error_over_bound": excess,
                    },
                    f"Rows of {name} values up to {size:.2g} come out wrong: something is squared "
                    "or cast where it does not fit.",
                    "Square in float32; do not cast eps or the variance to the input's dtype.",
                )
        yield from _flat_rows(kit, w, dtype, module, bias)


def _flat_rows(
    kit: _Kit, w: _Width, dtype: torch.dtype, module: nn.Module, bias: Tensor | None
) -> Said:
    """Rows without a variance, forward and backward."""
    name = str(dtype).removeprefix("torch.")
    cases = {"zero-row": 0.0} | ({"constant-row": 3.3} if kit.kind == "layer" else {})
    for rule, value in cases.items():
        x = torch.full((4, w.dim), value, device=kit.device, dtype=dtype, requires_grad=True)
        y = module(x)
        finite = bool(y.isfinite().all())
        back = True
        if y.requires_grad:
            (dx,) = torch.autograd.grad(y.sum(), x, allow_unused=True)
            back = dx is None or bool(dx.isfinite().all())
        wanted = torch.zeros(w.dim, dtype=torch.float64) if bias is None else bias
        # x - mean may be n float32 roundings of 3.3, divided by sqrt(eps).
        slack = (
            (w.dim + 10)
            * unit(torch.float32)
            * abs(value)
            / math.sqrt(max(kit.eps_in(dtype), 1e-12))
        )
        slack = 4 * slack * _largest(kit.affine(w, module)[0]) + 4 * unit(dtype) * _largest(bias)
        near = finite and float((y.detach().double() - wanted).abs().max()) <= slack + 1e-30
        if finite and back and near:
            continue
        what = "NaN" if not finite else "NaN in backward" if not back else "not the bias"
        yield _finding(
            rule,
            "error",
            {"dtype": name, "value": value, "finite": finite, "finite_backward": back},
            f"A row of {value:g} ({name}) gives {what}.",
            "Put eps under the root, in float32: sqrt(variance + eps); sqrt(0) has no gradient.",
        )


def _largest(t: Tensor | None) -> float:
    return 1.0 if t is None else float(t.abs().max())


def _one_feature(kit: _Kit) -> Said:
    """A row of one: LayerNorm gives the bias, RMSNorm the sign."""
    if not isinstance(kit.subject, _Function | _NormOfSum) or not kit.right:
        return
    inner = kit.subject.pair if isinstance(kit.subject, _NormOfSum) else kit.subject
    if not isinstance(inner, _Function) or inner.fixed:
        return
    module = kit.of_width(1)
    x = torch.tensor([[2.0], [-3.0]], device=kit.device)
    weight = bias = None
    if isinstance(module, _NormOfSum):
        weight, bias = module.pair.weight, module.pair.bias
    else:
        weight, bias = module.weight, module.bias
    ref = kit.answer(x, weight, bias)  # type: ignore[arg-type]
    with torch.no_grad():
        y = module(x)
    off = float((y.double() - ref).abs().max())
    if not off < 1e-5 * (1 + float(ref.abs().max())):
        yield _finding(
            "one-feature",
            "error",
            {"difference": off if math.isfinite(off) else str(off)},
            "Rows of one feature come out wrong.",
            "The variance of one number is 0, not NaN: correction=0, and eps under the root.",
        )


# Memory, shapes and modes -------------------------------------------------------------------------


def _close(y: Tensor, base: Tensor) -> bool:
    """Equal but for the order of float32 sums: 1e-5 of the largest, or two units of the dtype."""
    bound = (1e-5 + 4 * unit(y.dtype)) * float(base.abs().max().clamp(min=1e-30))
    return y.shape == base.shape and bool(((y - base).abs() <= bound).all())


def _strides(kit: _Kit) -> Said:
    """The same numbers, lying elsewhere."""
    w = kit.first
    if w.reach.axes != (-1,):
        return
    module = kit.typed(w.module, torch.float32)
    x = kit.rows(12, w.dim, torch.float32, 12)
    with torch.no_grad():
        base = module(x)
    padded = torch.full((24, w.dim + 3), 7.0, device=kit.device)
    padded[::2, 1:-2] = x
    views = {
        "transposed": (x.t().contiguous().t(), base),
        "every other row of a wider tensor": (padded[::2, 1:-2], base),
        "expanded": (x[:1].expand(12, -1), base[:1].expand(12, -1)),
        "permuted": (
            x.view(3, 4, w.dim).transpose(0, 1).contiguous().transpose(0, 1),
            base.view(3, 4, w.dim),
        ),
    }
    for told, (view, wanted) in views.items():
        yield from _same(module, view, wanted, "strides", f"an input that is {told}")
    # An expanded gradient is what y.sum().backward() sends.
    held = x.clone().requires_grad_()
    y = module(held)
    if y.requires_grad:
        ones = torch.ones((), device=kit.device).expand(y.shape)
        (thin,) = torch.autograd.grad(y, held, ones, retain_graph=True, allow_unused=True)
        (full,) = torch.autograd.grad(
            y, held, torch.ones_like(y), retain_graph=True, allow_unused=True
        )
        g = torch.randn_like(y)
        (plain,) = torch.autograd.grad(y, held, g, retain_graph=True, allow_unused=True)
        (turned,) = torch.autograd.grad(y, held, g.t().contiguous().t(), allow_unused=True)
        for told, a, b in (("expanded", thin, full), ("transposed", turned, plain)):
            if a is not None and b is not None and not _close(a, b):
                # dx of a constant dy may be all rounding: an absolute comparison then.
                if float((a - b).abs().max()) < 1e-4 * float(plain.abs().max()):
                    continue
                yield _finding(
                    "strides",
                    "error",
                    {"gradient": told, "difference": float((a - b).abs().max())},
                    f"A gradient that is {told} gives another result than the same numbers "
                    "in order.",
                    "Call .contiguous() on dy, or read its strides.",
                )


def _same(module: nn.Module, x: Tensor, wanted: Tensor, rule: str, told: str) -> Said:
    try:
        with torch.no_grad():
            y = module(x)
    except Exception as e:
        yield _finding(
            rule,
            "warning",
            {"exception": type(e).__name__, "says": str(e).splitlines()[0][:200] if str(e) else ""},
            f"It refuses {told}.",
            "Accept it, with .contiguous() or .reshape(-1, dim) where need be.",
        )
        return
    if y.shape != wanted.shape or not (y.numel() == 0 or _close(y, wanted)):
        same = y.shape == wanted.shape
        yield _finding(
            rule,
            "error",
            {"case": told, "difference": float((y - wanted).abs().max())}
            if same
            else {"case": told, "shape": list(y.shape), "expected": list(wanted.shape)},
            f"{told[0].upper()}{told[1:]} gives another result than the same numbers in rows.",
            "Address elements by their strides, and flatten all axes but the last.",
        )


def _shapes(kit: _Kit) -> Said:
    w = kit.first
    if w.reach.axes != (-1,):
        return
    module = kit.typed(w.module, torch.float32)
    x = kit.rows(24, w.dim, torch.float32, 13)
    with torch.no_grad():
        base = module(x)
    for shape in ((24,), (4, 6), (2, 3, 4)):
        told = f"an input of {len(shape) + 1} axes"
        wanted = base.view(*shape, w.dim)
        yield from _same(module, x.view(*shape, w.dim), wanted, "leading-shapes", told)
    yield from _same(module, x[0], base[0], "leading-shapes", "an input of 1 axis")
    for empty in ((0,), (2, 0)):
        nothing = x.new_zeros(*empty, w.dim)
        yield from _same(module, nothing, nothing, "empty-batch", f"an empty batch {empty}")


def _batch(kit: _Kit) -> Said:
    """A row alone, and among others; and while training."""
    w = kit.first
    if w.reach.axes != (-1,):
        return
    trained = w.probe.reach(train=True).axes
    if trained != (-1,):
        yield _finding(
            "batch-dependence",
            "error",
            {"axes": list(w.reach.axes), "axes_in_training": list(trained)},
            "In training mode a row's output depends on other rows.",
            "Take statistics of the row alone, in training as in evaluation.",
        )
    module = kit.typed(w.module, torch.float32)
    x = kit.rows(24, w.dim, torch.float32, 13)
    with torch.no_grad():
        base, alone = module(x), module(x[5:6])
    if not _close(alone, base[5:6]):
        yield _finding(
            "batch-dependence",
            "error",
            {"difference": float((alone - base[5:6]).abs().max())},
            "A row alone gives another result than among 24.",
            "Let no row read what belongs to another.",
        )


def _writes(kit: _Kit) -> Said:
    w = kit.first
    for dtype in kit.dtypes:
        if dtype in kit.dead:
            continue
        module = kit.typed(w.module, dtype)
        x = kit.rows(6, w.dim, dtype, 14)
        before = [t.detach().clone() for t in (x, *module.parameters())]
        leaf = x.requires_grad_()
        y = module(leaf)
        dy = torch.ones_like(y)
        if y.requires_grad:
            with suppress(RuntimeError):  # torch may itself have seen what was overwritten
                torch.autograd.grad(y, leaf, dy, allow_unused=True)
        names = ["x", *(n for n, _ in module.named_parameters()), "the gradient of y"]
        now = [x, *module.parameters(), dy]
        for name, old, new in zip(names, [*before, torch.ones_like(dy)], now, strict=True):
            if not torch.equal(old, new.detach()):
                kit.spoilt = f"it writes into {name}: nothing can be compared"
                yield _finding(
                    "writes-inputs",
                    "error",
                    {"what": name, "elements": int((old != new.detach()).sum())},
                    f"It writes into {name}, which belongs to its caller.",
                    "Allocate the output; no in-place operation on arguments.",
                )
                return


def _deterministic(kit: _Kit) -> Said:
    w = kit.first
    module = kit.typed(w.module, torch.float32)

    def once() -> list[Tensor]:
        x = kit.rows(512, w.dim, torch.float32, 15).requires_grad_()
        y = module(x)
        if not y.requires_grad:
            return []
        wanted = [x, *(p for p in module.parameters() if p.requires_grad)]
        found = torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)
        return [g for g in found if g is not None]

    first = once()
    for _ in range(2):
        for i, (a, b) in enumerate(zip(first, once(), strict=True)):
            if not torch.equal(a, b) and not bool(a.isnan().any()):
                yield _finding(
                    "nondeterministic",
                    "warning",
                    {"what": "gradient", "which": i, "difference": float((a - b).abs().max())},
                    "The same input gives another gradient the second time.",
                    "Sum in a fixed order: no atomic additions.",
                )
                return


def _autocast(kit: _Kit) -> Said:
    if not kit.right:
        return
    w = kit.first
    kind = kit.device.type
    if not torch.amp.is_autocast_available(kind):
        yield Unknown(rule="autocast", module="", why=f"{kind} has no autocast")
        return
    module = _bare(kit, w, torch.float32) if w.probe.is_bare else None
    if module is None or w.dim < 16:
        return
    for dtype in (torch.float32, torch.bfloat16):
        x = kit.rows(64, w.dim, dtype, 16)
        try:
            with torch.no_grad(), torch.autocast(kind, dtype=torch.bfloat16):
                y = module(x)
        except Exception as e:
            yield _finding(
                "autocast",
                "error",
                {"input": str(dtype), "exception": type(e).__name__, "says": str(e)[:200]},
                f"Under autocast it raises {type(e).__name__} for {dtype} inputs and float32 "
                "parameters.",
                "Cast the parameters to the dtype that you compute in.",
            )
            continue
        ref = kit.answer(x)
        shared = statistics_error(y.double(), ref.to(y.dtype).double())
        if shared > 0.25 * unit(torch.bfloat16):
            yield _finding(
                "autocast",
                "error",
                {"input": str(dtype), "row_error": shared, "output": str(y.dtype)},
                "Under autocast the statistics are taken in bfloat16.",
                "Compute in float32 explicitly: x.float(), under autocast(enabled=False).",
            )


def _compiles(kit: _Kit) -> Said:
    if kit.backend is None:
        yield Unknown(rule="compile", module="", why="it was not asked for: backend=None")
        return
    w = kit.first
    module = kit.typed(w.module, torch.float32)
    x = kit.rows(6, w.dim, torch.float32, 17)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=kit.backend)
    eager = x.clone().requires_grad_()
    wanted = module(eager)
    g = torch.randn_like(wanted)
    try:
        held = x.clone().requires_grad_()
        y = compiled(held)
        pairs = [("output", y, wanted)]
        if wanted.requires_grad:
            (a,) = torch.autograd.grad(y, held, g)
            (b,) = torch.autograd.grad(wanted, eager, g)
            pairs.append(("gradient", a, b))
    except Exception as e:
        told = " ".join(f"{type(e).__name__}: {e}".split())[:300]
        if isinstance(e, torch._dynamo.exc.Unsupported):
            yield _finding(
                "compile",
                "warning",
                {"exception": type(e).__name__, "says": told},
                "torch.compile(fullgraph=True) breaks the graph here: the norm is not fused with "
                "what stands beside it.",
                "Register the kernel with torch.library.custom_op, with a fake implementation.",
            )
        else:
            yield Unknown(rule="compile", module="", why=f"the compiler did not run: {told}")
        return
    finally:
        torch._dynamo.reset()
    for what, have, right in pairs:
        if not _close(have.detach(), right.detach()):
            yield _finding(
                "compile",
                "error",
                {"what": what, "difference": float((have - right).detach().abs().max())},
                f"Compiled, the {what} is another one.",
                "Check what the code reads while it is traced: shapes, flags, global state.",
            )


_NORM_CHECKS: tuple[tuple[str, Callable[[_Kit], Said]], ...] = (
    ("writes-inputs", _writes),
    ("formula", _formula),
    ("eps-of-dtype", _eps_by_dtype),
    ("affine", _affine),
    ("precision", _precision),
    ("large-mean", _large_mean),
    ("gradient", _gradients),
    ("extremes", _extremes),
    ("one-feature", _one_feature),
    ("strides", _strides),
    ("leading-shapes", _shapes),
    ("batch-dependence", _batch),
    ("determinism", _deterministic),
    ("autocast", _autocast),
    ("compile", _compiles),
)


# --- the sum --------------------------------------------------------------------------------------


def _pair_at(kit: _Kit, dim: int, dtype: torch.dtype) -> nn.Module:
    assert kit.pair is not None
    pair = kit.pair.at(dim).to(kit.device) if isinstance(kit.pair, _Function) else kit.pair
    return kit.typed(pair, dtype)


def _nearest_of(have: Tensor, family: dict[str, Tensor]) -> tuple[str, dict[str, float]]:
    off = _offs(have, family)
    return min(off, key=lambda k: off[k]), off


def _sum(kit: _Kit) -> Said:
    """The stream, and what it is that is normalized."""
    w = kit.first
    for dtype in kit.dtypes:
        if dtype in kit.dead:
            continue
        name = str(dtype).removeprefix("torch.")
        pair = _pair_at(kit, w.dim, dtype)
        x, res = kit.rows(48, w.dim, dtype, 21), kit.rows(48, w.dim, dtype, 22, mean=-1.0)
        kept = (x.clone(), res.clone())
        with torch.no_grad():
            y, stream = _both(pair(x, res))
        for told, now, old in (("x", x, kept[0]), ("residual", res, kept[1])):
            if not torch.equal(now, old):
                yield _finding(
                    "writes-inputs",
                    "error",
                    {"what": told, "elements": int((now != old).sum())},
                    f"It writes into {told}, which belongs to its caller.",
                    "Allocate the stream; no in-place addition.",
                )
        x, res = kept
        if stream.dtype != dtype:
            yield _finding(
                "stream-dtype",
                "error",
                {"residual": name, "stream": str(stream.dtype).removeprefix("torch.")},
                f"The stream of {name} inputs is {stream.dtype}.",
                "Store the stream in the residual's dtype.",
            )
        total = x.double() + res.double()
        family = {
            "x + residual": total,
            "x": x.double(),
            "residual": res.double(),
            "x - residual": x.double() - res.double(),
            "residual - x": res.double() - x.double(),
            "the normed output": y.double(),
            "normed + residual": y.double() + res.double(),
        }
        best, off = _nearest_of(stream, family)
        # One rounding to the dtype; sums in float32 are exact or as near.
        if best != "x + residual" or off[best] > 2 * unit(dtype):
            yield _finding(
                "stream-wrong",
                "error",
                {"dtype": name} | {f"distance: {t}": d for t, d in off.items()},
                f"The stream is {best}, off by {off[best]:.2g}, and not x + residual"
                f" (off by {off['x + residual']:.2g}).",
                "stream = x + residual, in float32, rounded once to the residual's dtype.",
            )
        if kit.right and best == "x + residual":
            yield from _of_the_sum(kit, w, pair, x, res, y, stream)
        if not kit.right:
            return


def _of_the_sum(
    kit: _Kit, w: _Width, pair: nn.Module, x: Tensor, res: Tensor, y: Tensor, stream: Tensor
) -> Said:
    dtype = x.dtype
    outer = _NormOfSum(pair)
    weight, bias = kit.affine(w, outer)

    def norm(s: Tensor) -> Tensor:
        return kit.answer(s, weight, bias, dtype)

    total = x.double() + res.double()
    family = {
        "norm(stream)": norm(stream),
        "norm(x + residual), before it is rounded": norm(total),
        "norm(x)": norm(x),
        "norm(residual)": norm(res),
        "norm(x) + residual": norm(x) + res.double(),
        "norm(residual) + x": norm(res) + x.double(),
        "norm(x) + norm(residual)": norm(x) + norm(res),
        "norm(x + residual) + residual": norm(total) + res.double(),
        "norm(x + 2 residual)": norm(total + res.double()),
    }
    best, off = _nearest_of(y, family)
    name = str(dtype).removeprefix("torch.")
    right = ("norm(stream)", "norm(x + residual), before it is rounded")
    if best not in right and off[best] < 0.5 * min(off[r] for r in right):
        yield _finding(
            "norm-not-of-sum",
            "error",
            {"dtype": name} | {f"distance: {t}": d for t, d in off.items()},
            f"What comes out is {best}, and not the norm of x + residual.",
            "Normalize the stream: norm(x + residual).",
        )
        return
    bound = _bound(stream, family["norm(stream)"], weight, bias, kit)
    excess = float(((y.double() - family["norm(stream)"]).abs() / bound).max())
    if best == right[1] and dtype in (torch.bfloat16, torch.float16):
        same = [float((y == family[r].to(dtype)).double().mean()) for r in right]
        if same[1] > same[0] + 0.05:
            yield _finding(
                "stream-rounding",
                "note",
                {"dtype": name, "equal_to_norm_of_stored": same[0], "of_unrounded": same[1]},
                "The norm is taken of the sum before it is rounded to the stored stream: who reads "
                "the stream later normalizes other numbers, by one rounding.",
                "Normalize the stored stream if recomputation must agree to the bit.",
            )
            return
    if not excess <= 1.0:
        yield _finding(
            "precision",
            "error",
            {"dtype": name, "error_over_bound": excess},
            f"With a residual, outputs in {name} are {excess:.3g} times as far off as rounding "
            "explains.",
            "Add in float32, round once, normalize in float32.",
        )


def _sum_gradients(kit: _Kit) -> Said:
    """Through the normed output, through the stream, and through both at once."""
    if not kit.right:
        return
    w = kit.first
    dtype = torch.float64 if kit.first.probe.like.dtype == torch.float64 else torch.float32
    pair = _pair_at(kit, w.dim, dtype)
    for p in pair.parameters():
        p.requires_grad_(True)
    weight, _ = kit.affine(w, _NormOfSum(pair))
    x = kit.rows(48, w.dim, dtype, 23).requires_grad_()
    res = kit.rows(48, w.dim, dtype, 24, mean=-1.0).requires_grad_()
    dy, ds = kit.rows(48, w.dim, dtype, 25), kit.rows(48, w.dim, dtype, 26, mean=0.2)
    total = (x + res).detach()
    hat = kit.answer(total)
    g = dy.double() if weight is None else dy.double() * weight
    through = gradients(g, hat, _reciprocal(kit, total), kit.kind)[_RIGHT]
    bound = 1e-4 if dtype == torch.float32 else 1e-6 + 10 * (w.match.distance if w.match else 0.0)
    for told, a, b in (("normed", 1.0, 0.0), ("stream", 0.0, 1.0), ("both outputs", 1.0, 1.0)):
        y, stream = _both(pair(x, res))
        outputs = [(o, k * d) for o, k, d in ((y, a, dy), (stream, b, ds)) if k]
        if not all(o.requires_grad for o, _ in outputs):
            yield _finding(
                "gradient-missing",
                "error",
                {"through": told},
                f"No gradient comes through {told}.",
                "Do not detach what is returned.",
            )
            continue
        got = torch.autograd.grad(
            [o for o, _ in outputs], [x, res], [d for _, d in outputs], allow_unused=True
        )
        right = a * through + b * ds.double()
        for argument, have in zip(("x", "residual"), got, strict=True):
            family = {
                _RIGHT: right,
                "nothing": torch.zeros_like(right),
                "the stream's gradient alone": ds.double(),
                "the normed output's gradient alone": through,
                "the normed output's gradient twice": a * 2 * through + b * ds.double(),
                "the stream's gradient twice": a * through + b * 2 * ds.double(),
            }
            best, off = _nearest_of(torch.zeros_like(right) if have is None else have, family)
            if off[_RIGHT] <= bound:
                continue
            missing = told == "both outputs" and best == "the normed output's gradient alone"
            half = best if off[best] < 0.1 else "like none that is known"
            yield _finding(
                "gradient-stream-dropped" if missing else f"gradient-{argument}",
                "error",
                {"through": told, "bound": bound} | {f"distance: {t}": d for t, d in off.items()},
                f"Through {told} the gradient of {argument} is off by {off[_RIGHT]:.2g}: {half}.",
                "ds = N'(dy) + dstream; x and residual both receive it whole.",
            )


_SUM_CHECKS: tuple[tuple[str, Callable[[_Kit], Said]], ...] = (
    ("sum", _sum),
    ("sum-gradient", _sum_gradients),
)
