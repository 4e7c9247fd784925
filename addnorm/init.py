"""Initialization: the rules that fill weights, and a table of what they filled.

A rule is stated where the parameter is made, never by matching parameter names.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, final, runtime_checkable

from torch import Tensor, nn

InitRule = Callable[[str, Tensor], None]
"""``rule(role, weight)`` fills a weight in place; roles are q k v out up gate down embed head."""


@runtime_checkable
class DeclaredRule(Protocol):
    """An init rule that can say what it does, for the init table."""

    text: str

    def std(self, role: str, shape: tuple[int, ...]) -> float:
        """The standard deviation of a weight of shape (fan_out, fan_in)."""


@final
@dataclass(frozen=True)
class Init:
    """The usual rule: a normal distribution whose standard deviation follows from role and shape.

    std = base(role, fan_in, fan_out) * factors.get(role, 1)
    """

    text: str
    base: Callable[[str, int, int], float]
    factors: Mapping[str, float] = field(default_factory=dict)

    def std(self, role: str, shape: tuple[int, ...]) -> float:
        """What is declared for a weight of shape (fan_out, fan_in)."""
        return self.base(role, math.prod(shape[1:]), shape[0]) * self.factors.get(role, 1.0)

    def __call__(self, role: str, weight: Tensor) -> None:
        nn.init.normal_(weight, std=self.std(role, tuple(weight.shape)))


def plain(role: str, fan_in: int, fan_out: int) -> float:
    """0.02 for everything, as in GPT and BERT."""
    return 0.02


PLAIN = Init("normal, std 0.02", plain)


# --- what was initialized, and how --------------------------------------------------------------


@runtime_checkable
class Declares(Protocol):
    """A module that knows by which rule its weights were filled."""

    def init_rules(self) -> dict[str, tuple[str, InitRule]]:
        """Parameter -> (role, rule)."""


def reset_parameters(model: nn.Module) -> None:
    """Fill every parameter anew, in place: for a model built on the meta device and emptied.

    Children before parents, since a parent knows better: a branch re-fills its Linears by the
    scheme's rule, a model its embedding.
    """
    for child in model.children():
        reset_parameters(child)
    reset = getattr(model, "reset_parameters", None)
    if reset is not None:
        reset()


class InitRow(NamedTuple):
    """One parameter in the init table."""

    name: str
    shape: tuple[int, ...]
    role: str  # "" where no rule of a scheme applies
    rule: str
    declared: float | None  # the standard deviation that the rule states
    measured: float  # root mean square about the mean
    mean: float


def init_table(model: nn.Module) -> list[InitRow]:
    """Every parameter of a model with the rule that filled it and what is measured now.

    Works on any module; only what ``Declares`` has a rule.
    """
    declared = {
        f"{prefix}.{name}".lstrip("."): rule
        for prefix, module in model.named_modules()
        if isinstance(module, Declares)
        for name, rule in module.init_rules().items()
    }
    rows = []
    for name, p in model.named_parameters():
        role, rule = declared.get(name, ("", None))
        wide = p.detach().double()
        rows.append(
            InitRow(
                name,
                tuple(p.shape),
                role,
                "" if rule is None else getattr(rule, "text", "custom"),
                rule.std(role, tuple(p.shape)) if isinstance(rule, DeclaredRule) else None,
                wide.std(correction=0).item(),
                wide.mean().item(),
            )
        )
    return rows
