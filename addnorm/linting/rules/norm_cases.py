"""What rules about norms share: findings of like modules joined into one, and what is measured for
more than one rule."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, final

import torch

from addnorm.anatomy.norms.find import MeasuredNorm
from addnorm.anatomy.norms.probe import Reach
from addnorm.linting.report import Finding, Severity
from addnorm.linting.subject import Subject


@final
@dataclass
class NormCase:
    """One finding to be, before the alike are joined."""

    rule: str
    severity: Severity
    path: str
    key: tuple[Any, ...]
    evidence: dict[str, Any]
    message: str
    remedy: str


def cases_of(
    k: MeasuredNorm, cases: Iterable[NormCase], seen: dict[int, list[NormCase]]
) -> list[NormCase]:
    """The cases of a module, measured only on the first of those that are alike."""
    key = id(k.probe)
    if key not in seen:
        seen[key] = list(cases)
    return [replace(case, path=k.path) for case in seen[key]]


def findings_of(cases: Iterable[NormCase]) -> Iterator[Finding]:
    """One finding for modules of one class with one fault."""
    groups: dict[tuple[Any, ...], list[NormCase]] = {}
    for case in cases:
        groups.setdefault((case.rule, case.severity, *case.key), []).append(case)
    for same in groups.values():
        first = same[0]
        evidence: dict[str, Any] = {k: _finite(v) for k, v in first.evidence.items()}
        if len(same) > 1:
            evidence |= {"modules": len(same), "also": [c.path for c in same[1:6]]}
        yield Finding(
            rule=first.rule,
            severity=first.severity,
            module=first.path,
            evidence=evidence,
            message=first.message,
            remedy=first.remedy,
        )


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
            share = length / (length.mean(axis, keepdim=True) + 1e-6)
            for whole in (x * share, x * share + x):
                if float((y - whole).norm()) < 1e-3 * float(y.norm()):
                    return True
    return False
