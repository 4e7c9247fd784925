"""Over what the statistics of norms run: features, or also positions and samples."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import nn

from addnorm.anatomy.norms.find import (
    MeasuredNorm,
    batch_and_time,
    feature_axis,
    in_convolutions,
    measured_norms,
    over_features,
)
from addnorm.linting.check import Check, Said
from addnorm.linting.report import Severity
from addnorm.linting.rules.norm_cases import (
    NormCase,
    class_of,
    findings_of,
    reach_in_training,
    responds_globally,
)
from addnorm.linting.subject import Subject


def check_axes(subject: Subject) -> Said:
    """Over what the statistics run: features, or also positions and samples."""
    cases: list[NormCase] = []
    for k in measured_norms(subject.specimen):
        if k.probe is not None:
            cases += _axis_cases(subject, k)
    yield from findings_of(cases)


@final
@dataclass(frozen=True)
class _Axes:
    """Over which axes of its input the statistics of a norm go, and what stands on each. All are
    counted from the end."""

    shape: tuple[int, ...]
    evaluated: tuple[int, ...]
    trained: tuple[int, ...]
    """While training: BatchNorm takes statistics there, and stored ones in evaluation."""
    batch: int | None
    time: int | None
    features: int

    @property
    def more(self) -> tuple[int, ...]:
        """What is added in training."""
        return tuple(a for a in self.trained if a not in self.evaluated)

    @property
    def over_samples(self) -> bool:
        """In evaluation, too."""
        return self.batch is not None and self.batch in self.evaluated

    @property
    def evidence(self) -> dict[str, Any]:
        return {
            "input_shape": list(self.shape),
            "statistics_over_axes": list(self.evaluated),
            "statistics_over_axes_in_training": list(self.trained),
            "feature_axis": self.features,
        }

    def in_words(self, axes: Sequence[int]) -> str:
        """What stands on some of them."""
        names = {self.batch: "the samples of the batch", self.time: "the positions"}
        names.pop(None, None)
        names.setdefault(self.features, "the features")
        return " and ".join(names.get(a, f"axis {a}") for a in axes)


def _axes(subject: Subject, k: MeasuredNorm, trained: tuple[int, ...]) -> _Axes:
    batch, time = batch_and_time(subject.specimen, k.path)
    if batch is None:  # the custom, where it could not be seen
        batch = -len(k.call.shape) if len(k.call.shape) > 1 else None
        batch = None if batch == time else batch
    features = feature_axis(subject.specimen, k)
    return _Axes(k.call.shape, k.reach.axes, trained, batch, time, features)


def _declares_it(module: nn.Module) -> bool:
    """Whether its class says that it is no norm over features."""
    return isinstance(module, nn.GroupNorm | nn.modules.batchnorm._NormBase) or bool(
        re.search(r"batch|group|instance", type(module).__name__.lower())
    )


def _axis_cases(subject: Subject, k: MeasuredNorm) -> Iterator[NormCase]:
    evaluated, trained = k.reach.axes, reach_in_training(k).axes
    on_features = not evaluated or over_features(subject.specimen, k) or responds_globally(k)
    if on_features and not set(trained) - set(evaluated):
        return
    a = _axes(subject, k, trained)
    name = class_of(subject, k)
    declared = _declares_it(subject.model.get_submodule(k.path))
    front = in_convolutions(subject.specimen, k.path)
    severity: Severity = "note" if front else "warning" if declared else "error"
    every = a.evaluated or a.more
    if a.more or a.over_samples:
        yield _batch_case(k, a, name, severity)
        if declared or not a.evaluated:
            return
    if on_features or (declared and a.batch in every):
        return
    if not declared or not front or a.evaluated:
        yield _axis_case(k, a, name, severity)


def _batch_case(k: MeasuredNorm, a: _Axes, name: str, severity: Severity) -> NormCase:
    only = bool(a.more) and not a.over_samples
    every = a.evaluated or a.more
    return NormCase(
        "norm-batch-dependent",
        severity,
        k.path,
        (name, a.evaluated, a.trained),
        a.evidence | {"only_in_training": only},
        f"{name} takes its statistics over {a.in_words(a.trained if only else a.evaluated)}"
        + (" while training, and other ones in evaluation" if only else "")
        + ": the output for one sample depends on the others in its batch, padding counts, a "
        "batch of one behaves differently"
        + (", and training sees the future." if a.time in every else "."),
        "Normalize each token over its features: torch.nn.LayerNorm or torch.nn.RMSNorm.",
    )


def _axis_case(k: MeasuredNorm, a: _Axes, name: str, severity: Severity) -> NormCase:
    return NormCase(
        "norm-wrong-axis",
        severity,
        k.path,
        (name, a.evaluated),
        a.evidence,
        f"{name} takes its statistics over {a.in_words(a.evaluated)} (axes {list(a.evaluated)} of "
        f"an input of shape {list(a.shape)}), while a token's features lie on axis {a.features}: "
        + (
            "a token's output depends on later tokens."
            if a.time in a.evaluated
            else "elements other than one token's features decide its size."
        ),
        f"Take mean and variance over axis {a.features} alone.",
    )


CHECKS: tuple[Check, ...] = (Check(("norm-wrong-axis", "norm-batch-dependent"), check_axes),)
