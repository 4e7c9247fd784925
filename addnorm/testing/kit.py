"""What is checked, as a module, what was measured of it, and the equation it is held against."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from addnorm.anatomy.norms.formulas import ACCEPT, EXACT, Match
from addnorm.anatomy.norms.probe import Probe, ProbeCall, Reach, claimed_eps
from addnorm.anatomy.signature import parameters_of
from addnorm.linting.check import Answers as Answers
from addnorm.linting.findings import Finding, Severity, Unknown
from addnorm.linting.report import Report, gathered
from addnorm.linting.rule import Undeclared
from addnorm.temporary import undisturbed
from addnorm.testing.mistake_names import MISTAKES
from addnorm.words import first_line

NormKind = Literal["layer", "rms"]


TESTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_NAMES = {
    "weight": ("weight", "gamma", "scale", "gain", "w", "g"),
    "bias": ("bias", "beta", "shift", "b"),
    "eps": ("eps", "epsilon"),
    "residual": ("residual", "res", "skip", "r"),
}
"""What a function may call its arguments."""


def reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, kind: NormKind, eps: float
) -> Tensor:
    """The equation over the last axis, in float64 (Ba et al. 2016; Zhang & Sennrich 2019 with eps
    under the root); weight and bias (dim,), None to leave out."""
    x = x.double()
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    y = x / ((x * x).mean(-1, keepdim=True) + eps).sqrt()
    if weight is not None:
        y = y * weight.double()
    return y if bias is None else y + bias.double()


# --- what is checked, as a module -----------------------------------------------------------------


@final
class Function(nn.Module):
    """A function with the parameters that it takes, as a module.

    ``fn``: the function, called with x, a residual if it is given one, and the rest by name.
    ``names``: role -> the argument that has it, of those that it takes; the keys of ``_NAMES``.
    ``eps``: what it is called with. ``pair``: it is a fused addition and norm.
    The parameters are made by ``at``: as it is made here, it has none.
    """

    def __init__(self, fn: Callable[..., Any], names: dict[str, str], eps: float, pair: bool):
        super().__init__()
        self.fn, self.names, self.eps, self.pair = fn, names, eps, pair
        self.weight: nn.Parameter | None
        self.bias: nn.Parameter | None
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        self.fixed: dict[str, Tensor] = {}  # role -> the user's own value, for its width

    def at(self, dim: int) -> "Function":
        """A copy with parameters of a width: random ones, the same at each call, but the user's own
        where they fit."""
        other = copy.copy(self)
        other._parameters = {}
        for i, name in enumerate(("weight", "bias")):
            value = self.fixed.get(name)
            if name not in self.names:
                other.register_parameter(name, None)
                continue
            if value is None or value.shape != (dim,):
                g = torch.Generator().manual_seed(100 * dim + i)
                value = torch.randn(dim, generator=g) * 0.5 + (1.0 if name == "weight" else 0.0)
            other.register_parameter(name, nn.Parameter(value.detach().clone()))
        return other

    def forward(self, x: Tensor, *residual: Tensor) -> Any:
        """What the function returns, of x and of a residual if it is for a pair."""
        kwargs: dict[str, Any] = {}
        if self.weight is not None:
            kwargs[self.names["weight"]] = self.weight
        if self.bias is not None:
            kwargs[self.names["bias"]] = self.bias
        if "eps" in self.names:
            kwargs[self.names["eps"]] = self.eps
        return self.fn(x, *residual, **kwargs)


@final
class NormOfSum(nn.Module):
    """The norm of a fused addition and norm: with nothing to add."""

    def __init__(self, pair: nn.Module):
        super().__init__()
        self.pair = pair

    def at(self, dim: int) -> "NormOfSum":
        """The norm at another width."""
        return NormOfSum(self.pair.at(dim)) if isinstance(self.pair, Function) else self

    def forward(self, x: Tensor) -> Tensor:
        return both(self.pair(x, torch.zeros_like(x)))[0]


def both(out: Any) -> tuple[Tensor, Tensor]:
    """The two outputs of an addition and norm."""
    if not (isinstance(out, tuple | list) and len(out) == 2):
        raise TypeError(f"expected (normed, stream), got {type(out).__name__}")
    return out[0], out[1]


def as_module(
    norm: Callable[..., Any] | nn.Module,
    kind: NormKind,
    dim: int | Sequence[int] | None,
    eps: float | None,
    weight: Tensor | bool | None,
    bias: Tensor | bool | None,
    device: str | torch.device,
    pair: bool = False,
) -> tuple[nn.Module, float | None, tuple[int, ...]]:
    """(norm or function as a module of one tensor, or of two with ``pair``, a copy; the eps that it
    claims, None where nothing says; the widths to try). The arguments are those of ``check_norm``;
    a ``ValueError`` where they make no sense."""
    if kind not in ("layer", "rms"):
        raise ValueError(f"kind must be 'layer' or 'rms', got {kind!r}")
    if isinstance(norm, nn.Module):
        own = _width_of(norm)
        widths = _widths(dim, 64 if own is None else own)
        return copy.deepcopy(norm).to(device), claimed_eps(norm) if eps is None else eps, widths
    parameters = parameters_of(norm) or {}  # a builtin says nothing: then it takes x alone
    names = _roles(parameters)
    if weight is False:
        names.pop("weight", None)
    if bias is False:
        names.pop("bias", None)
    if "eps" in names and eps is None:
        default = parameters[names["eps"]].default
        eps = float(default) if isinstance(default, int | float) else 1e-5
    wrapper = Function(norm, names, 0.0 if eps is None else eps, pair)
    for role, value in (("weight", weight), ("bias", bias)):
        if isinstance(value, Tensor):
            if role not in names:
                raise ValueError(f"a {role} is given, but the function has no argument for it")
            wrapper.fixed[role] = value
    fixed = next((len(v) for v in wrapper.fixed.values()), None)
    return wrapper.to(device), eps, _widths(dim, (64, 100) if fixed is None else fixed)


def _roles(parameters: Iterable[str]) -> dict[str, str]:
    """{role: the argument after the first that has it}; the roles are the keys of ``_NAMES``."""
    others = list(parameters)[1:]
    first = {role: next((n for n in names if n in others), None) for role, names in _NAMES.items()}
    return {role: name for role, name in first.items() if name is not None}


def _widths(dim: int | Sequence[int] | None, default: int | Sequence[int]) -> tuple[int, ...]:
    widths = default if dim is None else dim
    return (widths,) if isinstance(widths, int) else tuple(widths)


def _width_of(norm: nn.Module) -> int | None:
    """How many features a module is for, from its parameters, else as it says; None: unknown."""
    for p in norm.parameters():
        if p.numel() > 1:
            return p.numel()
    for name in ("normalized_shape", "dim", "hidden_size", "d_model", "features"):
        width = getattr(norm, name, None)
        width = width[-1] if isinstance(width, tuple | list) and width else width
        if isinstance(width, int) and width > 0:
            return width
    return None


# --- the kit --------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Width:
    """What was measured at one width."""

    dim: int
    module: nn.Module
    """With random values where gain and shifts would be ones and zeros."""
    probe: Probe
    """Of a copy in float64 or float32, with gain 1 and no shift."""
    reach: Reach
    match: Match | None
    """The formula it follows; None: it takes no statistics."""


@final
class Kit:
    """One norm under examination.

    ``module``, ``eps`` and ``widths`` are what ``as_module`` gives, ``eps`` as it is claimed;
    ``backend`` is torch.compile's, None: it is not compiled. ``pair`` is the fused addition and
    norm where ``module`` is the norm of one, else None.

    ``report`` fills what follows: checks read and write ``dead``, ``wrong``, ``misused`` and
    ``spoilt`` in their order, which is that of the table of checks.
    """

    def __init__(
        self,
        module: nn.Module,
        kind: NormKind,
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
        self.measured: list[Width] = []
        self.dead: set[torch.dtype] = set()
        """Those in which it does not run."""
        self.wrong: set[str] = set()
        """The parameters whose gradients were found wrong."""
        self.misused = False
        """Weight or bias do not enter as they should."""
        self.spoilt = ""
        """Why nothing more can be compared."""
        self._eps: dict[torch.dtype, float] = {}

    def report(self, checks: Sequence[tuple[str, Callable[["Kit"], Answers]]]) -> Report:
        """Measure, then run the checks in order; once something is ``spoilt``, the rest is unknown.

        What the norm raises becomes a finding by the name of the check.
        """
        began = time.monotonic()
        answers: list[Finding | Unknown] = []
        with undisturbed():
            try:
                self._measure()
            except Exception as e:
                answers.append(raised("call", e, f"an input of shape (3, 5, {self.widths[0]})"))
                return gathered(answers, ("call",), self._facts(began))
            # What differs from call to call cannot be compared with anything.
            if self._is_random():
                self.spoilt = "the output differs from call to call: nothing can be compared"
                answers.append(
                    finding(
                        "nondeterministic",
                        "error",
                        {"calls": 3, "what": "output"},
                        "The same input gives another output the second time.",
                        "Sum in a fixed order (no atomic additions), and draw no random numbers.",
                    )
                )
            for name, check in checks:
                if self.spoilt:
                    answers.append(Unknown(rule=name, module="", why=self.spoilt))
                    continue
                try:
                    answers += list(check(self))
                except Undeclared:
                    raise  # the check is wrong, not the norm
                except Exception as e:
                    answers.append(raised(name, e, f"the inputs of the check '{name}'"))
        return gathered(answers, [name for name, _ in checks], self._facts(began))

    def _facts(self, began: float) -> dict[str, Any]:
        """What the report says besides findings; ``began`` is by ``time.monotonic``."""
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
        """The module with that many features: a function's is made, a module of the user's has one
        width and is given back as it is."""
        if isinstance(self.subject, Function | NormOfSum):
            return self.subject.at(dim).to(self.device)
        return self.subject

    def _measure(self) -> None:
        """Fill ``measured``, a ``Width`` for each; an eps that nobody claims is measured, too."""
        for dim in self.widths:
            module = self.of_width(dim)
            x = torch.zeros(3, 5, dim, device=self.device)
            if not any(p.is_floating_point() for p in module.parameters()):
                # The probe learns the device from it.
                module.register_buffer("_device", torch.zeros(1, device=self.device))
            probe = Probe(module, ProbeCall((x,), {}, 0, (3, 5, dim)))
            probe.claimed_eps = self.claimed
            reach = probe.reach()
            match = probe.match(reach) if reach.axes else None
            self._enliven(module, probe)
            self.measured.append(Width(dim, module, probe, reach, match))
            if self.eps is None and match is not None and match.distance < ACCEPT:
                self.eps = match.eps

    def _is_random(self) -> bool:
        """Whether three calls give outputs that are not equal to the bit; NaN counts as equal."""
        module = self.typed(self.first.module, torch.float32)
        with torch.no_grad():
            ys = [module(self.rows(512, self.first.dim, torch.float32, 15)) for _ in range(3)]
        return any(not torch.equal(y.nan_to_num(), ys[0].nan_to_num()) for y in ys)

    def _enliven(self, module: nn.Module, probe: Probe) -> None:
        """Give ``module``, of which ``probe`` has a copy, random values for ones and zeros in its
        gain and shifts, in place: they would hide what is done to them."""
        g = torch.Generator().manual_seed(1)
        for (_, p), (_, q) in zip(
            module.named_parameters(), probe.module.named_parameters(), strict=True
        ):
            shift = any(q is b for b in probe.shifts)
            if (q is probe.gain or shift) and bool((p == p.flatten()[0]).all()) and p.numel() > 1:
                noise = 0.5 * torch.randn(p.shape, generator=g)
                p.data.copy_(noise + (0.0 if shift else 1.0 - probe.offset))

    @property
    def first(self) -> Width:
        return self.measured[0]

    @property
    def right(self) -> bool:
        """The formula is the one asked for: what follows may compare with the reference."""
        name = {"layer": "LayerNorm", "rms": "RMSNorm"}[self.kind]
        return not self.misused and all(
            w.reach.axes == (-1,)
            and w.match is not None
            and w.match.formula.name == name
            and w.match.distance < EXACT
            and abs(w.match.factor - 1.0) < EXACT
            for w in self.measured
        )

    @property
    def used_eps(self) -> float:
        """The eps that was measured; what is wrong with it is said once."""
        match = self.first.match
        return match.eps if match is not None else (self.eps or 0.0)

    def eps_in(self, dtype: torch.dtype) -> float:
        """The eps that it uses in a dtype, measured once: some norms take the dtype's own (torch's
        RMSNorm without one)."""
        if dtype == self.first.probe.like.dtype or not self.right:
            return self.used_eps
        if dtype not in self._eps:
            self._eps[dtype] = self._read_eps(dtype)
        return self._eps[dtype]

    def _read_eps(self, dtype: torch.dtype) -> float:
        """``eps_in``, measured on rows so small that eps rules; ``used_eps`` where it is the same
        up to rounding, or cannot be measured."""
        w = self.first
        assert w.match is not None
        if not w.probe.is_bare or w.dim < 2:
            return self.used_eps
        size = 1e-5 if dtype == torch.float32 else 1e-3
        x = (size * self.rows(32, w.dim, torch.float64, 4)).to(dtype)
        try:
            with torch.no_grad():
                y = bare_at(self, w, dtype)(x)
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
        """The reference in float64, with the eps that the norm uses in ``dtype``; None: in that of
        x."""
        return reference(x, weight, bias, self.kind, self.eps_in(dtype or x.dtype))

    def typed(self, module: nn.Module, dtype: torch.dtype) -> nn.Module:
        """A copy in a dtype, in evaluation mode."""
        return copy.deepcopy(module).to(dtype).eval()

    def affine(self, w: Width, module: nn.Module) -> tuple[Tensor | None, Tensor | None]:
        """(weight as it multiplies, bias), float64 and (dim,), of ``module``, which has the
        parameters of ``w.module`` in another dtype or a wrapper; None for one that it has not."""
        by_name = dict(w.probe.module.named_parameters())
        here = dict(module.named_parameters())
        gain = next((n for n, p in by_name.items() if p is w.probe.gain), None)
        shift = next((n for n, p in by_name.items() if any(p is b for b in w.probe.shifts)), None)
        weight = None if gain is None else here[gain].detach().double() + w.probe.offset
        bias = None if shift is None else here[shift].detach().double()
        return weight, bias

    def gain_name(self, w: Width) -> str | None:
        """The parameter that multiplies."""
        return next((n for n, p in w.probe.module.named_parameters() if p is w.probe.gain), None)

    def bias_name(self, w: Width) -> str | None:
        """The parameter that is added."""
        parameters = w.probe.module.named_parameters()
        return next((n for n, p in parameters if any(p is b for b in w.probe.shifts)), None)

    def rows(self, rows: int, dim: int, dtype: torch.dtype, seed: int, mean: float = 0.5) -> Tensor:
        """Normal rows around ``mean``."""
        g = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, dim, generator=g, dtype=torch.float64) + mean
        return x.to(device=self.device, dtype=dtype)


def finding(
    mistake: str, severity: Severity, evidence: dict[str, Any], message: str, remedy: str
) -> Finding:
    """A mistake that is among the ``MISTAKES``, else an ``Undeclared``; what is not finite in the
    evidence becomes text, as JSON has no number for it."""
    if mistake not in MISTAKES:
        raise Undeclared(f"{mistake!r} is none of the mistakes of testing/mistake_names.py")
    return _finding(mistake, severity, evidence, message, remedy)


def _finding(
    name: str, severity: Severity, evidence: dict[str, Any], message: str, remedy: str
) -> Finding:
    """``finding`` by any name; what is not finite in the evidence becomes text."""
    finite = {
        key: str(v) if isinstance(v, float) and not math.isfinite(v) else v
        for key, v in evidence.items()
    }
    return Finding(
        rule=name, severity=severity, module="", evidence=finite, message=message, remedy=remedy
    )


def raised(check: str, e: Exception, on: str) -> Finding:
    """The finding that the norm raised ``e`` in a check, by the check's name; ``on`` says for which
    input."""
    return _finding(
        check,
        "error",
        {"exception": type(e).__name__, "says": first_line(str(e))},
        f"It raises {type(e).__name__} for {on}.",
        "Let it run, or refuse such inputs with a message of your own and leave this check out.",
    )


def unit(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number: the relative error of one rounding."""
    return torch.finfo(dtype).eps / 2


def off_by(y: Tensor, ref: Tensor, size: float | None = None) -> float:
    """The difference of two tensors as wholes, relative to the second or, if it is not None, to
    ``size``; infinite where one is NaN."""
    size = float(ref.double().norm()) if size is None else size
    d = float((y.detach().double() - ref.detach().double()).norm()) / max(size, 1e-300)
    return d if math.isfinite(d) else math.inf


ALIKE = 0.1
"""A wrong candidate is named as the one that was computed if it is nearer than this, relative to
the right one's size: those of a family differ from each other by several tenths."""


def all_off_by(have: Tensor, family: dict[str, Tensor]) -> dict[str, float]:
    """The distance to each of a family, relative to its first, which is the right one."""
    size = float(next(iter(family.values())).double().norm())
    return {what: off_by(have, value, size) for what, value in family.items()}


# What several checks do ---------------------------------------------------------------------------


def close(y: Tensor, base: Tensor) -> bool:
    """Equal but for the order of float32 sums: 1e-5 of the largest, or two units of the dtype."""
    bound = (1e-5 + 4 * unit(y.dtype)) * float(base.abs().max().clamp(min=1e-30))
    return y.shape == base.shape and bool(((y - base).abs() <= bound).all())


def bare_at(kit: Kit, w: Width, dtype: torch.dtype) -> nn.Module:
    """A copy of the module at a width, in a dtype, with gain one and no bias, as the probe left it:
    only where ``w.probe.is_bare``."""
    module = kit.typed(w.module, dtype)
    bare = dict(w.probe.module.named_parameters())
    with torch.no_grad():
        for n, p in module.named_parameters():
            p.copy_(bare[n])
    return module


Checks = tuple[tuple[str, Callable[[Kit], Answers]], ...]
"""By name."""
