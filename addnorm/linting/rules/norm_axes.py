"""Over what the statistics of norms run: features, or also positions and samples."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

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


def _axis_cases(subject: Subject, k: MeasuredNorm) -> Iterator[NormCase]:
    assert k.probe is not None
    name = class_of(subject, k)
    evaluated, trained = k.reach.axes, reach_in_training(k).axes
    more = tuple(a for a in trained if a not in evaluated)
    on_features = not evaluated or over_features(subject.specimen, k) or responds_globally(k)
    if on_features and not more:
        return
    module = subject.model.get_submodule(k.path)
    batch, time = batch_and_time(subject.specimen, k.path)
    if batch is None:  # the custom, where it could not be seen
        batch = -len(k.call.shape) if len(k.call.shape) > 1 else None
        batch = None if batch == time else batch
    named = {batch: "the samples of the batch", time: "the positions"}
    features = feature_axis(subject.specimen, k)
    named.pop(None, None)
    named.setdefault(features, "the features")

    def told(axes: Sequence[int]) -> str:
        return " and ".join(named.get(a, f"axis {a}") for a in axes)

    declared = isinstance(module, nn.GroupNorm | nn.modules.batchnorm._NormBase) or bool(
        re.search(r"batch|group|instance", type(module).__name__.lower())
    )
    front = in_convolutions(subject.specimen, k.path)
    evidence: dict[str, Any] = {
        "input_shape": list(k.call.shape),
        "statistics_over_axes": list(evaluated),
        "statistics_over_axes_in_training": list(trained),
        "feature_axis": features,
    }
    severity: Severity = "note" if front else "warning" if declared else "error"
    every = evaluated or more
    if more or (batch is not None and batch in evaluated):
        only = bool(more) and (batch is None or batch not in evaluated)
        yield NormCase(
            "norm-batch-dependent",
            severity,
            k.path,
            (name, evaluated, trained),
            evidence | {"only_in_training": only},
            f"{name} takes its statistics over {told(trained if only else evaluated)}"
            + (" while training, and other ones in evaluation" if only else "")
            + ": the output for one sample depends on the others in its batch, padding counts, a "
            "batch of one behaves differently"
            + (", and training sees the future." if time in every else "."),
            "Normalize each token over its features: torch.nn.LayerNorm or torch.nn.RMSNorm.",
        )
        if declared or not evaluated:
            return
    if on_features or (declared and batch in every):
        return
    if not declared or not front or evaluated:
        yield NormCase(
            "norm-wrong-axis",
            severity,
            k.path,
            (name, evaluated),
            evidence,
            f"{name} takes its statistics over {told(evaluated)} (axes {list(evaluated)} of an "
            f"input of shape {list(k.call.shape)}), while a token's features lie on axis "
            f"{features}: "
            + (
                "a token's output depends on later tokens."
                if time in evaluated
                else "elements other than one token's features decide its size."
            ),
            f"Take mean and variance over axis {features} alone.",
        )


CHECKS: tuple[Check, ...] = (Check(("norm-wrong-axis", "norm-batch-dependent"), check_axes),)
