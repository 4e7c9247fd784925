"""The model as it was initialized: residual writers against depth, and scale by depth."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from addnorm.anatomy.specimen import bare_copy
from addnorm.anatomy.structure import PRODUCTS, Residual, Step, Structure
from addnorm.anatomy.trace import Value, record
from addnorm.linting.check import Check, Said
from addnorm.linting.report import Finding, Unknown
from addnorm.linting.subject import Subject
from addnorm.words import error_in_a_line

SUBLAYERS = 4  # below that no rule of depth can be told from another
ALIKE = 0.12  # relative error of a std from 64 weights is 1/sqrt(2 * 64) = 9 %
LOUDER = 1.6  # Xavier's rule on a packed q, k, v makes 1.4
EXPLODES = 1e3
SURE = 0.95  # of one key, where four and more are to be seen; nothing is known yet
GROWS = 30.0
LOUD = 4.0  # nats: uniform guessing has logits of std 0, a good start below 1


def init(subject: Subject) -> Said:
    """init-residual-scale and init-unstable."""
    model = bare_copy(subject.original).to(_dtype(subject.model))
    try:
        trace = record(lambda: subject.inputs.call(model), model)
    except (RuntimeError, ValueError, TypeError) as error:
        why = f"the model as it is does not run on the inputs: {error_in_a_line(error)}"
        for rule in ("init-residual-scale", "init-unstable"):
            yield Unknown(rule=rule, module="", why=why)
        return
    s = Structure(trace, model)
    if not s.chains:
        for rule in ("init-residual-scale", "init-unstable"):
            yield Unknown(rule=rule, module="", why="no residual stream was found")
        return
    for chain in s.chains:
        yield from _writers(s, chain)
        yield from _depth(s, chain)
    yield from _saturated(s)
    yield from _logits(s, model)


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _after(s: Structure, residual: Residual) -> Iterator[Step]:
    """The steps from the branch's last product to the stream; a learned factor counts as a gate."""
    value = residual.branch
    while steps := s.steps_into(value):
        step = steps[0]
        learned = step.op is not None and any(
            a.name for v in step.op.inputs if v is not step.source for a in s.trace.ancestors(v)
        )
        vector = step.kind == "scale" and learned
        yield replace(step, kind="gate") if vector else step
        value = step.source


def _writers(s: Structure, chain: Sequence[Residual]) -> Iterator[Finding]:
    """std of each branch's last matrix against that of its others."""
    if len(chain) < SUBLAYERS:
        return
    parameters = dict(s.model.named_parameters())
    own = [r for r in chain if s.own_norms(r)]
    if len(own) * 2 <= len(chain):
        return  # post-norm: the stream is normalized anyway
    ratios: list[tuple[str, float]] = []
    by_width: list[float] = []
    for residual in chain:
        writers: list[str] = []
        others: list[str] = []
        carried = s.carried(residual.branch)
        for value in residual.inside:
            op = value.op
            if op is None or op.name not in PRODUCTS or not s.weighted(op):
                continue
            names = [n for n in s.weights(op) if n in parameters and parameters[n].dim() > 1]
            (writers if op.outputs[0] in carried else others).extend(names)
        if len(set(writers)) != 1 or not others:
            return
        if any(step.kind in ("norm", "gate") for step in _after(s, residual)):
            return  # the branch's scale is set behind its last matrix
        w = parameters[writers[0]].detach().float()
        stds = [float(parameters[n].detach().float().std()) for n in others]
        if min(stds) == 0 or w.numel() < 64:
            return
        if max(stds) > (1 + 2 * ALIKE) * min(stds):
            return  # stds by width (Xavier, Kaiming): a smaller one need not be for depth
        width = residual.output.shape[-1]
        ratios.append((writers[0], float(w.std()) / statistics.median(stds)))
        by_width.append(ratios[-1][1] * math.sqrt(w.numel()) / width)
    values = [r for _, r in ratios]
    if min(values) == 0.0:
        return  # zero-initialized writers: identity at the beginning
    if all(abs(v - 1.0) <= ALIKE for v in by_width):
        return  # torch's own rule: 1/sqrt of a matrix's inputs, of which an MLP's last has more
    usual = 1 / math.sqrt(len(chain))
    told: dict[str, float | str | list[float]] = {
        "sublayers": len(chain),
        "writers_std_over_others": [round(v, 4) for v in values],
        "usual_1_over_sqrt_sublayers": usual,
        "first_writer": ratios[0][0],
    }
    scaled = [abs(v - usual) <= ALIKE * usual for v in values]
    plain = [abs(v - 1.0) <= ALIKE for v in values]

    def found(severity: str, message: str) -> Finding:
        return Finding(
            rule="init-residual-scale",
            severity=severity,  # type: ignore[arg-type]
            module=ratios[0][0].rpartition(".")[0],
            evidence={**told},
            message=message,
            remedy="GPT-2's rule: the last matrix of every branch gets the usual std divided by "
            "sqrt(number of branches), 2 per layer.",
        )

    if all(scaled):
        return
    if all(plain):
        growth = chain[-1].output.rms() / max(chain[0].fork.rms(), 1e-30)
        told["stream_rms_end_over_start"] = growth
        yield found(
            "note",
            f"The {len(chain)} matrices that write to the stream have the same std as all others: "
            f"the stream's variance grows with every branch ({growth:.3g} times in RMS here). "
            "GPT-2 divides their std by sqrt(branches); many later models do not.",
        )
    elif any(scaled) and any(plain):
        which = ", ".join(n for (n, _), p in zip(ratios, plain, strict=True) if p)
        yield found(
            "warning",
            "Some of the matrices that write to the stream are scaled by depth and some are not "
            f"({which[:160]}): for those the scaling was lost.",
        )
    elif all(abs(v - 1 / len(chain)) <= ALIKE / len(chain) for v in values):
        yield found(
            "warning",
            "The matrices that write to the stream are scaled by "
            f"1/{len(chain)}, not 1/sqrt({len(chain)}): the branches hardly count at first.",
        )
    elif all(abs(v - usual * math.sqrt(2)) <= ALIKE * usual for v in values):
        yield found(
            "warning",
            "The matrices that write to the stream are scaled by 1/sqrt(layers); each layer writes "
            "twice, so GPT-2's rule is 1/sqrt(2 * layers).",
        )
    elif min(values) > LOUDER:
        yield found(
            "warning",
            "The matrices that write to the stream have "
            f"{statistics.median(values):.3g} times the std of the branches' other matrices: every "
            "branch drowns out the stream.",
        )


def _depth(s: Structure, chain: Sequence[Residual]) -> Iterator[Finding]:
    """RMS of the stream and of its gradient, from the first sublayer to the last."""
    outputs = [r.output for r in chain]
    rms = [v.rms() for v in outputs]
    grads = _gradients(s, outputs)
    told = {"rms": [float(f"{v:.3g}") for v in rms]}
    if grads:
        told["gradient_rms"] = [float(f"{v:.3g}") for v in grads]
    module = chain[-1].add.module

    def found(severity: str, message: str, remedy: str) -> Finding:
        return Finding(
            rule="init-unstable",
            severity=severity,  # type: ignore[arg-type]
            module=module,
            evidence={"sublayers": len(chain), **told},
            message=message,
            remedy=remedy,
        )

    if not all(math.isfinite(v) for v in (*rms, *grads)):
        first = next((r for r, v in zip(chain, rms, strict=True) if not math.isfinite(v)), chain[0])
        yield found(
            "error",
            "The stream or its gradient is not finite before a single step; first in "
            f"{first.add.module}.",
            "Look at the initialization and at divisions, logarithms and masks there.",
        )
        return
    growth = math.prod(
        after / max(before, 1e-30)
        for a, b, before, after in zip(chain, chain[1:], rms, rms[1:], strict=False)
        if not s.norms_between(a.output, b.fork)  # a norm on the stream sets its scale anew
    )
    if growth > EXPLODES or growth < 1 / EXPLODES:
        yield found(
            "error",
            f"The stream's RMS changes by a factor of {growth:.3g} in {len(chain)} sublayers: "
            "at this depth it explodes or vanishes at initialization.",
            "Scale the branches' last matrices down with depth, or normalize the branches.",
        )
    elif growth > GROWS and growth ** (1 / max(len(chain) - 1, 1)) > 1.3:
        yield found(
            "warning",
            f"The stream's RMS grows by a factor of {growth:.3g} in {len(chain)} sublayers, "
            "exponentially.",
            "Scale the branches' last matrices down with depth, or normalize the branches.",
        )
    if len(grads) > 1 and min(grads) > 0:
        # times the RMS: what a change by one percent does, which a change of scale leaves alone
        ratio = grads[0] * rms[0] / max(grads[-1] * rms[-1], 1e-300)
        if ratio > EXPLODES or ratio < 1 / EXPLODES:
            yield found(
                "error",
                f"Relative to the stream, the gradient at the first sublayer is {ratio:.3g} "
                "times that at the last: lower layers will not train, or all will diverge.",
                "Pre-norm, a smaller initialization of the branches, or DeepNorm's factors.",
            )
        elif ratio > GROWS or ratio < 1 / GROWS:
            yield found(
                "warning",
                f"Relative to the stream, the gradient at the first sublayer is {ratio:.3g} "
                "times that at the last.",
                "Warm up slowly, or choose pre-norm or DeepNorm's factors at this depth.",
            )


def _gradients(s: Structure, at: list[Value]) -> list[float]:
    """RMS of the gradient of a random projection of the outputs; nothing where none flows."""
    outs = [t for t in s.trace.outputs if t.requires_grad and t.is_floating_point()]
    wanted = [v.tensor for v in at if v.tensor.requires_grad]
    if not outs or len(wanted) != len(at):
        return []
    generator = torch.Generator().manual_seed(0)
    cotangents = [
        torch.randn(o.shape, generator=generator, dtype=torch.float32).to(o) for o in outs
    ]
    try:
        found = torch.autograd.grad(outs, wanted, cotangents, allow_unused=True, retain_graph=True)
    except RuntimeError:
        return []
    if any(g is None for g in found):
        return []
    return [float(g.detach().double().square().mean().sqrt()) for g in found if g is not None]


def _saturated(s: Structure) -> Iterator[Finding]:
    """Attention that looks at one key only, before it has learned at which."""
    for attention in s.attentions:
        weights = attention.table().double()
        seen = weights[(weights > 0).sum(-1) >= 4]
        if len(seen) == 0:
            continue
        top = float(seen.max(-1).values.mean())
        if top > SURE:
            scores = attention.scores.outputs[0].tensor.detach().double()
            yield Finding(
                rule="init-unstable",
                severity="warning",
                module=attention.path,
                evidence={"mean_largest_weight": top, "std_of_the_scores": float(scores.std())},
                message=f"Before training a query gives {100 * top:.3g} % of its attention to one "
                "key: the softmax is saturated, and almost no gradient passes through it.",
                remedy="A smaller initialization of queries and keys (std 0.02, or "
                "1/sqrt(width)), or a norm on both.",
            )


def _logits(s: Structure, model: nn.Module) -> Iterator[Finding]:
    """Scores over a vocabulary must start near each other."""
    rows = {v.shape[0]: name for name, v in s.tables.items()}
    for leaf in (t for t in tree_leaves(s.results) if isinstance(t, Value)):
        t = leaf.tensor.detach()
        if t.dim() < 2 or t.shape[-1] not in rows or not t.is_floating_point():
            continue
        if leaf.op is None or not any(
            v.op is not None and v.op.name in PRODUCTS for v in s.carried(leaf)
        ):
            continue
        std = float(_centred(t.double()).std())
        if std > LOUD:
            path = next(
                v.op.module for v in s.carried(leaf) if v.op is not None and v.op.name in PRODUCTS
            )
            yield Finding(
                rule="init-unstable",
                severity="warning",
                module=path,
                evidence={
                    "std_of_the_logits": std,
                    "classes": t.shape[-1],
                    "uniform_loss": math.log(t.shape[-1]),
                },
                message=f"Before training the logits over {t.shape[-1]} classes have a std of "
                f"{std:.3g}: the loss starts near {_expected(t):.3g} instead of "
                f"{math.log(t.shape[-1]):.3g}, and the first steps only undo it.",
                remedy="Initialize the head (with tied weights: the embedding) with std 0.02, or "
                "1/sqrt(width).",
            )


def _centred(t: Tensor) -> Tensor:
    return t - t.mean(-1, keepdim=True)


def _expected(t: Tensor) -> float:
    """The mean loss for targets drawn uniformly."""
    return float((t.double().logsumexp(-1) - t.double().mean(-1)).mean())


CHECKS = (Check(("init-residual-scale", "init-unstable"), init),)
