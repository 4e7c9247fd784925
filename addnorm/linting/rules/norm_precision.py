"""Norms that compute in fewer digits than they need."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import final

import torch
from torch import Tensor

from addnorm.anatomy.norms.find import MeasuredNorm, measured_norms
from addnorm.anatomy.norms.formulas import ACCEPT, EXACT
from addnorm.anatomy.norms.probe import statistics_error
from addnorm.linting.check import Answers, decides
from addnorm.linting.rule import Case, Rule
from addnorm.linting.rules.norm_cases import LIKE, NormCase, class_of, joined, measured_once
from addnorm.linting.subject import Subject
from addnorm.temporary import undisturbed
from addnorm.words import error_in_a_line

# --- the words ------------------------------------------------------------------------------------


def _imprecise(what: str) -> Case:
    """A case whose message says what the norm does; ``what`` may have blanks."""
    return Case(
        "warning",
        f"{{norm}} {what}: the error enters every layer and does not average out.",
        "Take mean and variance in float32 (x.float(), two passes) and cast the result back.",
    )


LOW_PRECISION = Rule(
    "norm-low-precision",
    "a norm takes its statistics with too few digits",
    family="Norms by themselves",
    evidence={
        "relative_error_in_float64": "how far outputs are from the formula's, in float64",
        "formula": "the formula that the norm follows",
        "relative_error_at_mean_1000_std_1": "the same in float32, for rows of that mean and std",
        "of_a_two_pass_variance": "what it is if the mean is subtracted before squaring",
        "of_a_difference_of_squares": "what it is for mean(x^2) - mean(x)^2",
        "row_error_in_bfloat16": "by how much a row as a whole is too large or too small",
        "of_bfloat16_statistics": "what that is if mean and variance are rounded to bfloat16",
        **LIKE,
    },
    cases={
        "16 bits in float64": _imprecise(
            "computes with about {bits:.0f} bits even if its input is float64: something inside is "
            "cast to a 16-bit format"
        ),
        "a difference of squares": _imprecise(
            "loses digits in float32 where the mean is large compared with the deviation, as "
            "mean(x^2) - mean(x)^2 does (it may even turn negative: NaN)"
        ),
        "rounded statistics": _imprecise(
            "takes its statistics in the dtype of its input: in bfloat16 every row as a whole is "
            "off by {units:.2g} units in the last place"
        ),
    },
)

# --- how it is measured ---------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _Imprecision:
    """One way in which digits are lost."""

    case: str
    evidence: Mapping[str, float | str]
    words: Mapping[str, float] = field(default_factory=dict)


@decides(LOW_PRECISION)
def precision(subject: Subject) -> Answers:
    """Findings of norms that follow their formula in fewer digits than it needs; Unknown where one
    does not run in bfloat16."""
    cases: list[NormCase] = []
    results: dict[int, list[_Imprecision]] = {}
    for k in measured_norms(subject.specimen):
        if k.probe is None or k.match is None or k.match.distance > ACCEPT:
            continue
        if k.match.formula.kind == "other" or not k.reach.axes:
            continue
        try:
            with undisturbed(gradients=False):
                losses = measured_once(k, partial(_imprecisions, subject), results)
        except Exception as e:
            why = f"it does not run in bfloat16: {error_in_a_line(e)}"
            yield LOW_PRECISION.unknown(why, k.path)
            continue
        name = class_of(subject, k)
        for one in losses:
            words = {"norm": name, **one.words}
            finding = LOW_PRECISION(one.case, k.path, words=words, **one.evidence)
            cases.append(NormCase(finding, (name, one.case)))
    yield from joined(cases)


def _imprecisions(subject: Subject, k: MeasuredNorm) -> list[_Imprecision]:
    """The ways in which one norm loses digits; [] where its affine part could not be taken off."""
    probe, m = k.probe, k.match
    assert probe is not None
    assert m is not None
    if not probe.is_bare or math.isnan(m.factor) or math.prod(k.reach.sizes) < 16:
        return []  # of a few elements, a rounded statistic looks like rounded outputs
    if m.distance > EXACT:
        return [
            _Imprecision(
                "16 bits in float64",
                {"relative_error_in_float64": m.distance, "formula": m.formula.name},
                {"bits": -math.log2(m.distance)},
            )
        ]
    losses = [_cancellation(k)] if m.formula.centred else []
    if _in_16_bits(subject, k):  # else what it would do in bfloat16 is no fault of the model
        losses.append(_rounded_statistics(k))
    return [loss for loss in losses if loss is not None]


def _cancellation(k: MeasuredNorm) -> _Imprecision | None:
    """Digits that are lost where the mean is large; None: no more than must be.

    Rounding the mean costs mean/std * u, the difference of squares (mean/std)^2 * u, with
    u = 2^-24; the bound is half way between the two on a logarithmic scale.
    """
    far, u = 1e3, 2.0**-24
    y, ref = _outputs(k, torch.float32, far)
    error = float(((y - ref).norm(dim=-1) / ref.norm(dim=-1)).max())
    error = error if math.isfinite(error) else math.inf
    if error <= far**1.5 * u:
        return None
    evidence = {
        "relative_error_at_mean_1000_std_1": error,
        "of_a_two_pass_variance": far * u,
        "of_a_difference_of_squares": far**2 * u,
    }
    return _Imprecision("a difference of squares", evidence)


def _rounded_statistics(k: MeasuredNorm) -> _Imprecision | None:
    """Whole rows that are off in bfloat16; None: they are not.

    A rounded statistic is off by up to u, evenly: u / sqrt(3), and half of that where it is its
    square that is rounded. With float32 statistics a few outputs fall to the other side of a
    tie: some 2^-24 / u of them, which is nothing.
    """
    u = 2.0**-9
    y, ref = _outputs(k, torch.bfloat16, 0.0)
    error = statistics_error(y, ref.to(torch.bfloat16).double())
    if not error > 0.25 * u:
        return None
    evidence = {"row_error_in_bfloat16": error, "of_bfloat16_statistics": u / math.sqrt(3)}
    return _Imprecision("rounded statistics", evidence, {"units": error / u})


def _outputs(k: MeasuredNorm, dtype: torch.dtype, mean: float) -> tuple[Tensor, Tensor]:
    """(a norm's rows in a dtype, for inputs around a mean; what its formula says of them), both
    computed, then compared, as float64."""
    probe, m = k.probe, k.match
    assert probe is not None
    assert m is not None
    module = copy.deepcopy(probe.module).to(dtype)
    xs, ys = [], []
    for seed in range(4):
        x = (probe.normal(30 + seed, 0.0) + mean).to(dtype)
        y = probe.call(module, x, probe.others)
        xs.append(probe.rows(x, k.reach).double())
        ys.append(probe.rows(y, k.reach).double())
    x64, y64 = torch.cat(xs), torch.cat(ys)
    return y64, m.formula(x64, m.eps) * (1.0 if math.isnan(m.factor) else m.factor)


def _in_16_bits(subject: Subject, k: MeasuredNorm) -> bool:
    """Whether the user's model holds or computes in 16 bits: in its parameters or buffers, in what
    the norm is given, or by autocast."""
    held = (*subject.original.parameters(), *subject.original.buffers())
    given = torch.utils._pytree.tree_leaves((k.call.args, k.call.kwargs))
    return any(
        isinstance(t, Tensor) and t.dtype in (torch.bfloat16, torch.float16)
        for t in (*held, *given)
    ) or any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))
