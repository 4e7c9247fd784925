"""Norms that are no modules: computed by hand or by a function in a larger module's forward.

They cannot be called alone, so they are read off the operations that ran: over which axes the
statistics go, whether they are biased, where eps stands, and whether rows come out of one size.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch

from addnorm.anatomy.norms.find import find_norms
from addnorm.anatomy.structure import NORMS, NormCall, Structure, number, within
from addnorm.anatomy.trace import Op, Value
from addnorm.linting.check import Check, Said
from addnorm.linting.report import Finding
from addnorm.linting.subject import Subject

MOMENTS = {"mean", "var", "std", "var_mean", "std_mean", "sum", "linalg_vector_norm", "norm"}
GRAVE = ("norm-wrong-axis", "norm-not-normalizing", "norm-batch-dependent")
SPREAD = 0.2  # of the rows' RMS: eps makes less where variances are alike, a sum makes 1 and more
LOUD = 2.0  # a normalized row has an RMS of at most 1, smaller where eps counts or norms are L2


def inline(subject: Subject) -> Said:
    """The rules of norm modules, for norms without a module."""
    s = subject.structure
    modules = [n.path for n in find_norms(subject.specimen)]
    for norm in s.norms:
        if norm.module is not None or norm.output not in s.live:
            continue
        if any(path and within(norm.op.module, path) for path in modules):
            continue
        yield from (_function(s, norm) if norm.op.name in NORMS else _by_hand(s, norm))


def _function(s: Structure, norm: NormCall) -> Iterator[Finding]:
    """F.layer_norm and its like: over what?"""
    if "batch_norm" in norm.op.name:
        inside = bool(s.block(norm.op.module)) or norm.output in s.inside_branches
        yield Finding(
            rule="norm-batch-dependent",
            severity="error" if inside else "note",
            module=norm.path,
            evidence={"function": norm.op.name, "input_shape": list(norm.source.shape)},
            message=f"{norm.path or 'The model'} calls batch normalization in its forward: each "
            "channel is normalized over all tokens of all samples, so in training a token's output "
            "depends on who shares its batch.",
            remedy="Layer normalization: mean and variance of one token over its features.",
        )
        return
    shape = norm.op.args[1] if len(norm.op.args) > 1 else None
    if not isinstance(shape, list | tuple) or not all(isinstance(n, int) for n in shape):
        return
    width = s.width
    if len(shape) > 1 or (width and shape[0] != width and norm.source.shape[-2:-1] == (width,)):
        yield _wrong_axis(norm, [-len(shape) + i for i in range(len(shape))], list(shape))


def _by_hand(s: Structure, norm: NormCall) -> Iterator[Finding]:
    """x / sqrt(mean(x^2) + eps) and its like."""
    statistic = next((v for v in norm.op.inputs if _derived(v, norm.source)), None)
    if statistic is None:
        return
    chain = _chain(statistic, norm.source)
    moments = [op for op in chain if op.name in MOMENTS]
    if not moments:
        return
    dims = _dims(moments[0])
    rank = len(norm.source.shape)
    if dims is not None and {d % rank for d in dims} != {rank - 1}:
        over = [norm.source.shape[d] for d in dims]
        if _of_the_inputs(s, norm):
            return  # a series normalized over its own time before anything reads it (RevIN)
        yield _wrong_axis(norm, dims, over)
        if rank > 2 and 0 in {d % rank for d in dims}:
            yield _finding(
                "norm-batch-dependent",
                norm,
                "takes its statistics over the samples of a batch too: what one sample gives "
                "depends on who shares its batch.",
                "Take mean and variance over the last axis, features, for each token by itself.",
                axes=dims,
            )
        return
    yield from _biased(norm, moments)
    yield from _eps(norm, chain)
    yield from _sizes(s, norm)


def _of_the_inputs(s: Structure, norm: NormCall) -> bool:
    """Whether it is what the caller gave that is normalized, before the model computed anything."""
    return not set(s.trace.inputs).isdisjoint(s.carried(norm.source))


def _derived(value: Value, source: Value) -> bool:
    return value is not source and value.tensor.numel() < source.tensor.numel()


def _chain(statistic: Value, source: Value) -> list[Op]:
    """The operations from the rows to the statistic, the last first."""
    found: list[Op] = []
    todo = [statistic]
    for value in todo:
        op = value.op
        if op is not None and op not in found:
            found.append(op)
            todo.extend(v for v in op.inputs if _derived(v, source))
    return found


def _dims(op: Op) -> list[int] | None:
    for argument in (*op.args[1:], op.kwargs.get("dim")):
        if isinstance(argument, list | tuple) and argument:
            if all(isinstance(d, int) for d in argument):
                return [int(d) for d in argument]
        elif isinstance(argument, int) and not isinstance(argument, bool):
            return [argument]
    return None


def _finding(rule: str, norm: NormCall, message: str, remedy: str, **evidence: Any) -> Finding:
    where = norm.path or "the model"
    return Finding(
        rule=rule,
        severity="error" if rule in GRAVE else "warning",
        module=norm.path,
        evidence={"input_shape": list(norm.source.shape), **evidence},
        message=f"The norm computed in {where} {message}",
        remedy=remedy,
    )


def _wrong_axis(norm: NormCall, dims: list[int], sizes: list[int]) -> Finding:
    return _finding(
        "norm-wrong-axis",
        norm,
        f"takes its statistics over axes {dims} of size {sizes}, not over the features alone: "
        "tokens (or samples) are mixed, and the result depends on the length of the text.",
        "Take mean and variance over the last axis, features, for each token by itself.",
        axes=dims,
    )


def _biased(norm: NormCall, moments: list[Op]) -> Iterator[Finding]:
    for op in moments:
        if op.name not in ("var", "std", "var_mean", "std_mean"):
            continue
        given = op.kwargs.get("correction", 1)
        unbiased = [a for a in op.args[1:] if isinstance(a, bool)]
        n = norm.source.shape[-1]
        if (unbiased and unbiased[0]) or (not unbiased and given not in (0, None)):
            yield _finding(
                "norm-unbiased-variance",
                norm,
                f"divides by n - 1 = {n - 1} where layer normalization divides by n: outputs are "
                f"{100 * (1 - math.sqrt((n - 1) / n)):.2g} % smaller, and published weights do not "
                "fit.",
                "x.var(-1, unbiased=False).",
                n=n,
            )
            return


def _eps(norm: NormCall, chain: list[Op]) -> Iterator[Finding]:
    """An addition of a constant behind the root."""
    roots = [op for op in chain if op.name in ("sqrt", "std", "linalg_vector_norm", "norm")]
    roots += [op for op in chain if op.name == "pow" and number(op.args[1]) == 0.5]
    if not roots:
        return
    root = roots[0]
    after = chain[: chain.index(root)]
    for op in after:
        constants = [number(a) for a in op.args[1:]]
        eps = next((c for c in constants if c is not None and 0 < abs(c) < 0.1), None)
        if op.name == "add" and eps is not None and root.name in ("sqrt", "std", "pow"):
            yield _finding(
                "norm-eps-outside-sqrt",
                norm,
                f"adds eps = {eps:g} to the standard deviation, not to the variance inside the "
                "root: rows of small variance come out differently, and the gradient of the root "
                "is infinite where a row is constant.",
                "(x - mean) / sqrt(var + eps).",
                eps=eps,
            )
            return


def _sizes(s: Structure, norm: NormCall) -> Iterator[Finding]:
    """Whether the rows come out of one size, whatever gain they are multiplied by."""
    y = norm.output.tensor.detach().double()
    before = norm.source.op
    if before is not None and before.name == "mul":
        for v in before.inputs:
            if v not in s.activations and v.tensor.numel() == y.shape[-1]:
                y = y / v.tensor.detach().double().reshape(-1)
    if y.dim() < 2 or y.shape[-1] < 2:
        return
    size = y.reshape(-1, y.shape[-1]).square().mean(-1).sqrt()
    size = size[size > 0]
    if len(size) < 2 or not torch.isfinite(size).all():
        return
    if float(size.std() / size.mean()) > SPREAD or float(size.median()) > LOUD:
        yield _finding(
            "norm-not-normalizing",
            norm,
            f"leaves rows with an RMS from {float(size.min()):.3g} to {float(size.max()):.3g}, "
            "which is not one for all.",
            "Divide by sqrt(mean of squares + eps), not by a sum or a variance.",
            smallest_row_rms=float(size.min()),
            largest_row_rms=float(size.max()),
        )


CHECKS = (
    Check(
        (
            "norm-not-normalizing",
            "norm-wrong-axis",
            "norm-unbiased-variance",
            "norm-eps-outside-sqrt",
            "norm-batch-dependent",
        ),
        inline,
    ),
)
