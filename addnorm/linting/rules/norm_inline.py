"""Norms that are no modules: computed by hand or by a function in a larger module's forward.

They cannot be called alone, so they are read off the operations that ran: over which axes the
statistics go, whether they are biased, where eps stands, and whether rows come out of one size.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch

from addnorm.anatomy.norms.find import find_norms
from addnorm.anatomy.structure import NORM_OPS, Structure, TracedNorm, number, within
from addnorm.anatomy.trace import Op, Value
from addnorm.linting.check import Answers, decides
from addnorm.linting.findings import Finding
from addnorm.linting.rules.norm_axes import BATCH_DEPENDENT, WRONG_AXIS
from addnorm.linting.rules.norm_formula import EPS_OUTSIDE_SQRT, NOT_NORMALIZING, UNBIASED_VARIANCE
from addnorm.linting.subject import Subject

MOMENTS = {"mean", "var", "std", "var_mean", "std_mean", "sum", "linalg_vector_norm", "norm"}
"""Operations that take a statistic of rows."""
SPREAD = 0.2  # of the rows' RMS: eps makes less where variances are alike, a sum makes 1 and more
LOUD = 2.0  # a normalized row has an RMS of at most 1, smaller where eps counts or norms are L2


@decides(NOT_NORMALIZING, WRONG_AXIS, UNBIASED_VARIANCE, EPS_OUTSIDE_SQRT, BATCH_DEPENDENT)
def inline(subject: Subject) -> Answers:
    """Findings by the rules of norm modules of norms that have no module, and lie in none that is a
    norm."""
    s = subject.structure
    modules = [n.path for n in find_norms(subject.specimen)]
    for norm in s.norms:
        if norm.module is not None or norm.output not in s.live:
            continue
        if any(path and within(norm.op.module, path) for path in modules):
            continue
        yield from (_torch_operation(s, norm) if norm.op.name in NORM_OPS else _by_hand(s, norm))


def _torch_operation(s: Structure, norm: TracedNorm) -> Iterator[Finding]:
    """Findings of a norm that is one operation of torch: batch normalization, or a layer norm over
    several axes or, by its size, over another axis than the stream's width."""
    if "batch_norm" in norm.op.name:
        inside = bool(s.block(norm.op.module)) or norm.output in s.inside_branches
        yield BATCH_DEPENDENT(
            "function in a block" if inside else "function",
            norm.path,
            words={"where": norm.path or "The model"},
            function=norm.op.name,
            input_shape=list(norm.source.shape),
        )
        return
    shape = norm.op.args[1] if len(norm.op.args) > 1 else None
    if not isinstance(shape, list | tuple) or not all(isinstance(n, int) for n in shape):
        return
    width = s.width
    if len(shape) > 1 or (width and shape[0] != width and norm.source.shape[-2:-1] == (width,)):
        yield _wrong_axis(norm, [-len(shape) + i for i in range(len(shape))], list(shape))


def _by_hand(s: Structure, norm: TracedNorm) -> Iterator[Finding]:
    """Findings of x / sqrt(mean(x^2) + eps) and its like: of its axes or, where these are right, of
    its variance, its eps and the sizes of its rows."""
    statistic = next((v for v in norm.op.inputs if _is_smaller(v, norm.source)), None)
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
            yield BATCH_DEPENDENT(
                "by hand", norm.path, words=_where(norm), **_shape(norm), axes=dims
            )
        return
    yield from _unbiased_moments(norm, moments)
    yield from _eps_behind_root(norm, chain)
    yield from _row_sizes(s, norm)


def _of_the_inputs(s: Structure, norm: TracedNorm) -> bool:
    """Whether it is what the caller gave that is normalized, before the model computed anything."""
    return not set(s.trace.inputs).isdisjoint(s.carried(norm.source))


def _is_smaller(value: Value, source: Value) -> bool:
    """Whether it can be a statistic of ``source``: it holds fewer numbers."""
    return value is not source and value.tensor.numel() < source.tensor.numel()


def _chain(statistic: Value, source: Value) -> list[Op]:
    """The operations from the rows to the statistic, the last first: backwards while values are
    smaller than ``source``, so that what is done to whole rows is not among them."""
    ops: list[Op] = []
    todo = [statistic]
    for value in todo:
        op = value.op
        if op is not None and op not in ops:
            ops.append(op)
            todo.extend(v for v in op.inputs if _is_smaller(v, source))
    return ops


def _dims(op: Op) -> list[int] | None:
    """The axes over which a reduction goes, as it was given them; None: none were given."""
    for argument in (*op.args[1:], op.kwargs.get("dim")):
        if isinstance(argument, list | tuple) and argument:
            if all(isinstance(d, int) for d in argument):
                return [int(d) for d in argument]
        elif isinstance(argument, int) and not isinstance(argument, bool):
            return [argument]
    return None


def _where(norm: TracedNorm) -> dict[str, Any]:
    return {"where": norm.path or "the model"}


def _shape(norm: TracedNorm) -> dict[str, Any]:
    return {"input_shape": list(norm.source.shape)}


def _wrong_axis(norm: TracedNorm, dims: list[int], sizes: list[int]) -> Finding:
    words = _where(norm) | {"sizes": sizes}
    return WRONG_AXIS("by hand", norm.path, words=words, **_shape(norm), axes=dims)


def _unbiased_moments(norm: TracedNorm, moments: list[Op]) -> Iterator[Finding]:
    """The finding of the first variance or deviation, among ``moments``, that divides by n - 1,
    which is what torch does by itself."""
    for op in moments:
        if op.name not in ("var", "std", "var_mean", "std_mean"):
            continue
        correction = op.kwargs.get("correction", 1)
        unbiased = [a for a in op.args[1:] if isinstance(a, bool)]
        n = norm.source.shape[-1]
        if (unbiased and unbiased[0]) or (not unbiased and correction not in (0, None)):
            percent = 100 * (1 - math.sqrt((n - 1) / n))
            words = _where(norm) | {"n_less_1": n - 1, "percent": percent}
            yield UNBIASED_VARIANCE("by hand", norm.path, words=words, **_shape(norm), n=n)
            return


def _eps_behind_root(norm: TracedNorm, chain: list[Op]) -> Iterator[Finding]:
    """The finding of an eps that is added behind the root; ``chain`` has the last operation
    first."""
    roots = [op for op in chain if op.name in ("sqrt", "std", "linalg_vector_norm", "norm")]
    roots += [op for op in chain if op.name == "pow" and number(op.args[1]) == 0.5]
    if not roots:
        return
    root = roots[0]
    after = chain[: chain.index(root)]
    for op in after:
        constants = [number(a) for a in op.args[1:]]
        # a larger one is no eps, but a part of the formula
        eps = next((c for c in constants if c is not None and 0 < abs(c) < 0.1), None)
        if op.name == "add" and eps is not None and root.name in ("sqrt", "std", "pow"):
            words = _where(norm)
            yield EPS_OUTSIDE_SQRT("by hand", norm.path, words=words, **_shape(norm), eps=eps)
            return


def _row_sizes(s: Structure, norm: TracedNorm) -> Iterator[Finding]:
    """The finding of a norm whose rows do not come out of one size, whatever gain they are
    multiplied by."""
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
        yield NOT_NORMALIZING(
            "rows of unlike size, by hand",
            norm.path,
            words=_where(norm),
            **_shape(norm),
            smallest_row_rms=float(size.min()),
            largest_row_rms=float(size.max()),
        )
