"""What rules about norms share: findings of like modules joined into one, and what is measured for
more than one rule."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar, final

import torch

from addnorm.anatomy.norms.find import MeasuredNorm
from addnorm.anatomy.norms.probe import Reach
from addnorm.linting.findings import Finding
from addnorm.linting.subject import Subject

T = TypeVar("T")

FIT = {
    "formula": "the formula that the norm follows",
    "distance": "how far its outputs are from that formula's, relative to them",
    "next_formula": "the formula that comes next",
    "next_distance": "how far its outputs are from that one's",
    "eps": "the eps that was measured",
    "features": "how many numbers share one mean and variance",
}
"""Evidence of a rule that goes by the formula."""

LIKE = {
    "modules": "how many modules of the class have the same mistake",
    "also": "some of the others",
}
"""Evidence of a rule whose findings are joined."""


@final
@dataclass(frozen=True)
class NormCase:
    """A finding before those of like modules are joined."""

    finding: Finding
    key: tuple[Any, ...]
    """Equal for modules of one class with one fault."""


def measured_once(
    k: MeasuredNorm, measure: Callable[[MeasuredNorm], T], results: dict[int, T]
) -> T:
    """What is measured of a module, on the first only of those that are alike: these share a probe,
    whose id is the key under which it is put into ``results``. Lets through what ``measure``
    raises."""
    key = id(k.probe)
    if key not in results:
        results[key] = measure(k)
    return results[key]


def joined(cases: Iterable[NormCase]) -> Iterator[Finding]:
    """One finding for the cases of one rule, severity and ``key``, the first module's, with the
    number of modules and some of their paths as evidence; what is not finite becomes text."""
    groups: dict[tuple[Any, ...], list[Finding]] = {}
    for case in cases:
        one = case.finding
        groups.setdefault((one.rule, one.severity, *case.key), []).append(one)
    for same in groups.values():
        first = same[0]
        evidence: dict[str, Any] = {k: _finite(v) for k, v in first.evidence.items()}
        if len(same) > 1:
            evidence |= {"modules": len(same), "also": [f.module for f in same[1:6]]}
        yield replace(first, evidence=evidence)


def _finite(value: Any) -> Any:
    """What JSON has a number for, otherwise its name."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def class_of(subject: Subject, k: MeasuredNorm) -> str:
    """The name of the norm's class."""
    return type(subject.model.get_submodule(k.path)).__qualname__


def reach_in_training(k: MeasuredNorm) -> Reach:
    """The axes over which statistics go while training; none where it does not run."""
    assert k.probe is not None
    try:
        return k.probe.reach(train=True)
    except Exception:
        return Reach((), ())


def responds_globally(k: MeasuredNorm) -> bool:
    """Global response normalization (ConvNeXt V2): x times its channel's share of the length over
    all positions; it grows with x and is meant to."""
    assert k.probe is not None
    x = k.probe.normal(8)
    if x.dim() < 3:
        return False
    with torch.no_grad():
        y = k.probe.bare(x)
        for axis in {-1, 1 - x.dim()}:
            where = tuple(i for i in range(1, x.dim()) if i != axis % x.dim())
            length = x.norm(dim=where, keepdim=True)
            share = length / (length.mean(axis, keepdim=True) + 1e-6)  # the paper's eps
            for whole in (x * share, x * share + x):
                if float((y - whole).norm()) < 1e-3 * float(y.norm()):
                    return True
    return False
