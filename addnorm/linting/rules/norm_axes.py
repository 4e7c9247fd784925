"""Over what the statistics of norms run: features, or also positions and samples."""

import re
from collections.abc import Iterator, Mapping, Sequence
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
from addnorm.linting.check import Answers, decides
from addnorm.linting.rule import Case, Rule
from addnorm.linting.rules.norm_cases import (
    LIKE,
    NormCase,
    class_of,
    joined,
    reach_in_training,
    responds_globally,
)
from addnorm.linting.subject import Subject

# --- the words ------------------------------------------------------------------------------------

_AXES = {
    "input_shape": "the shape of what is normalized",
    "statistics_over_axes": "the axes over which mean and variance go, counted from the end",
    "statistics_over_axes_in_training": "the same in training mode",
    "feature_axis": "the axis on which a token's features lie",
    "axes": "the axes over which mean and variance go, of a norm without a module",
    **LIKE,
}


def _graded(message: str, remedy: str) -> Mapping[str, Case]:
    """The cases of a module, all with the same words, graver or less by what it says of itself and
    where it stands."""
    return {
        "unexpected": Case("error", message, remedy),
        "declared by its class": Case("warning", message, remedy),
        "among convolutions": Case("note", message, remedy),
    }


_FUNCTION = (
    "{where} calls batch normalization in its forward: each channel is normalized over all tokens "
    "of all samples, so in training a token's output depends on who shares its batch."
)
_LAYER = "Layer normalization: mean and variance of one token over its features."

BATCH_DEPENDENT = Rule(
    "norm-batch-dependent",
    "a norm takes its statistics over the batch",
    family="Norms by themselves",
    evidence={
        **_AXES,
        "only_in_training": "whether it does so in training mode only",
        "function": "the function of torch that is called, where it is no module",
    },
    cases={
        **_graded(
            "{norm} takes its statistics over {what}{when}: the output for one sample depends on "
            "the others in its batch, padding counts, a batch of one behaves differently{and_so}.",
            "Normalize each token over its features: torch.nn.LayerNorm or torch.nn.RMSNorm.",
        ),
        "by hand": Case(
            "error",
            "The norm computed in {where} takes its statistics over the samples of a batch too: "
            "what one sample gives depends on who shares its batch.",
            "Take mean and variance over the last axis, features, for each token by itself.",
        ),
        "function in a block": Case("error", _FUNCTION, _LAYER),
        "function": Case("note", _FUNCTION, _LAYER),
    },
)
WHILE_TRAINING = " while training, and other ones in evaluation"
SEES_THE_FUTURE = ", and training sees the future"

WRONG_AXIS = Rule(
    "norm-wrong-axis",
    "a norm takes its statistics over positions, or more than one token",
    family="Norms by themselves",
    evidence=_AXES,
    cases={
        **_graded(
            "{norm} takes its statistics over {what} (axes {statistics_over_axes} of an input of "
            "shape {input_shape}), while a token's features lie on axis {feature_axis}: {and_so}.",
            "Take mean and variance over axis {feature_axis} alone.",
        ),
        "by hand": Case(
            "error",
            "The norm computed in {where} takes its statistics over axes {axes} of size {sizes}, "
            "not over the features alone: tokens (or samples) are mixed, and the result depends on "
            "the length of the text.",
            "Take mean and variance over the last axis, features, for each token by itself.",
        ),
    },
)
LATER_TOKENS = "a token's output depends on later tokens"
OTHER_ELEMENTS = "elements other than one token's features decide its size"

# --- how it is measured ---------------------------------------------------------------------------


@decides(WRONG_AXIS, BATCH_DEPENDENT)
def axes(subject: Subject) -> Answers:
    """Findings of norms whose statistics run over positions or samples, and not over features
    alone."""
    cases: list[NormCase] = []
    for k in measured_norms(subject.specimen):
        if k.probe is not None:
            cases += _axis_cases(subject, k)
    yield from joined(cases)


@final
@dataclass(frozen=True)
class _Axes:
    """Over which axes of its input the statistics of a norm go, and what stands on each. All are
    counted from the end."""

    shape: tuple[int, ...]
    evaluated: tuple[int, ...]
    """In evaluation mode."""
    trained: tuple[int, ...]
    """While training: BatchNorm takes statistics there, and stored ones in evaluation."""
    batch: int | None
    """The axis of the samples; None: there is none."""
    time: int | None
    """That of the positions; None: it was not seen."""
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
        """That which both rules declare of a module."""
        return {
            "input_shape": list(self.shape),
            "statistics_over_axes": list(self.evaluated),
            "statistics_over_axes_in_training": list(self.trained),
            "feature_axis": self.features,
        }

    def in_words(self, axes: Sequence[int]) -> str:
        """What stands on some of the axes: "the positions and the features"."""
        names = {self.batch: "the samples of the batch", self.time: "the positions"}
        names.pop(None, None)
        names.setdefault(self.features, "the features")
        return " and ".join(names.get(a, f"axis {a}") for a in axes)


def _measured_axes(subject: Subject, k: MeasuredNorm, trained: tuple[int, ...]) -> _Axes:
    """What stands on each axis of the norm's input; ``trained``: over which it takes statistics in
    training mode. Where no axis was seen to grow with the batch, the first one counts as the
    samples, as is the custom, unless it is the positions."""
    batch, time = batch_and_time(subject.specimen, k.path)
    if batch is None:
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
    """What is wrong with the axes of one norm: samples among them, or others than features.

    A norm whose class says what it is (BatchNorm, GroupNorm) is told once, and by the first.
    """
    evaluated, trained = k.reach.axes, reach_in_training(k).axes
    on_features = not evaluated or over_features(subject.specimen, k) or responds_globally(k)
    if on_features and not set(trained) - set(evaluated):
        return
    a = _measured_axes(subject, k, trained)
    name = class_of(subject, k)
    declared = _declares_it(subject.model.get_submodule(k.path))
    front = in_convolutions(subject.specimen, k.path)
    case = "declared by its class" if declared else "unexpected"
    case = "among convolutions" if front else case
    statistics_axes = a.evaluated or a.more
    if a.more or a.over_samples:
        yield _with_samples(k, a, name, case)
        if declared or not a.evaluated:
            return
    if on_features or (declared and a.batch in statistics_axes):
        return
    yield _other_axes(k, a, name, case)


def _with_samples(k: MeasuredNorm, a: _Axes, name: str, case: str) -> NormCase:
    """The finding of a norm of class ``name`` whose statistics take in other samples. ``case``: a
    key of ``BATCH_DEPENDENT.cases``; an unknown one raises there."""
    only = bool(a.more) and not a.over_samples
    words = {
        "norm": name,
        "what": a.in_words(a.trained if only else a.evaluated),
        "when": WHILE_TRAINING if only else "",
        "and_so": SEES_THE_FUTURE if a.time in (a.evaluated or a.more) else "",
    }
    evidence = a.evidence | {"only_in_training": only}
    finding = BATCH_DEPENDENT(case, k.path, words=words, **evidence)
    return NormCase(finding, (name, a.evaluated, a.trained))


def _other_axes(k: MeasuredNorm, a: _Axes, name: str, case: str) -> NormCase:
    """The finding of a norm of class ``name`` whose statistics run over more or other axes than
    that of the features. ``case``: a key of ``WRONG_AXIS.cases``; an unknown one raises there."""
    words = {
        "norm": name,
        "what": a.in_words(a.evaluated),
        "and_so": LATER_TOKENS if a.time in a.evaluated else OTHER_ELEMENTS,
    }
    return NormCase(WRONG_AXIS(case, k.path, words=words, **a.evidence), (name, a.evaluated))
