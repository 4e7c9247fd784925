"""The model as it was initialized: residual writers against depth, and scale by depth."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from addnorm.anatomy.specimen import bare_copy
from addnorm.anatomy.structure import PRODUCTS, Residual, Step, Structure
from addnorm.anatomy.trace import Value, record
from addnorm.linting.check import Answers, decides
from addnorm.linting.findings import Finding
from addnorm.linting.rule import Case, Rule
from addnorm.linting.subject import Subject
from addnorm.words import error_in_a_line

SUBLAYERS = 4  # below that no rule of depth can be told from another
ALIKE = 0.12  # relative error of a std from 64 weights is 1/sqrt(2 * 64) = 9 %
LOUDER = 1.6  # Xavier's rule on a packed q, k, v makes 1.4
EXPLODES = 1e3  # from the first sublayer to the last: an error; from GROWS on a warning
SURE = 0.95  # of one key, where four and more are to be seen; nothing is known yet
GROWS = 30.0
LOUD = 4.0  # nats: uniform guessing has logits of std 0, a good start below 1

# --- the words ------------------------------------------------------------------------------------

FAMILY = "Parameters and their initialization"
_GPT2 = (
    "GPT-2's rule: the last matrix of every branch gets the usual std divided by sqrt(number of "
    "branches), 2 per layer."
)

RESIDUAL_SCALE = Rule(
    "init-residual-scale",
    "last matrices of branches that are not scaled by depth like the rest",
    family=FAMILY,
    evidence={
        "sublayers": "how many write to the stream",
        "writers_std_over_others": "the std of each branch's last matrix over the median of its "
        "others",
        "usual_1_over_sqrt_sublayers": "what GPT-2's rule makes of that",
        "first_writer": "the last matrix of the first branch",
        "stream_rms_end_over_start": "the RMS of the stream after the last sublayer over that "
        "before the first",
    },
    cases={
        "unscaled": Case(
            "note",
            "The {sublayers} matrices that write to the stream have the same std as all others: "
            "the stream's variance grows with every branch ({stream_rms_end_over_start:.3g} times "
            "in RMS here). GPT-2 divides their std by sqrt(branches); many later models do not.",
            _GPT2,
        ),
        "some unscaled": Case(
            "warning",
            "Some of the matrices that write to the stream are scaled by depth and some are not "
            "({which}): for those the scaling was lost.",
            _GPT2,
        ),
        "1/branches": Case(
            "warning",
            "The matrices that write to the stream are scaled by 1/{sublayers}, not "
            "1/sqrt({sublayers}): the branches hardly count at first.",
            _GPT2,
        ),
        "1/sqrt(layers)": Case(
            "warning",
            "The matrices that write to the stream are scaled by 1/sqrt(layers); each layer writes "
            "twice, so GPT-2's rule is 1/sqrt(2 * layers).",
            _GPT2,
        ),
        "louder": Case(
            "warning",
            "The matrices that write to the stream have {times:.3g} times the std of the branches' "
            "other matrices: every branch drowns out the stream.",
            _GPT2,
        ),
    },
)

_GROWS = "Scale the branches' last matrices down with depth, or normalize the branches."

UNSTABLE = Rule(
    "init-unstable",
    "a stream, gradient or logits that are too large or small before training",
    family=FAMILY,
    evidence={
        "sublayers": "how many there are",
        "rms": "the RMS of the stream after each of them",
        "gradient_rms": "that of the gradient there",
        "mean_largest_weight": "the largest attention weight of a query, averaged over queries",
        "std_of_the_scores": "the std of the scores before the softmax",
        "std_of_the_logits": "the std of the logits around the mean of their row",
        "classes": "how many logits a row has",
        "uniform_loss": "the loss of logits that are all the same",
    },
    cases={
        "not finite": Case(
            "error",
            "The stream or its gradient is not finite before a single step; first in {first}.",
            "Look at the initialization and at divisions, logarithms and masks there.",
        ),
        "stream explodes": Case(
            "error",
            "The stream's RMS changes by a factor of {growth:.3g} in {sublayers} sublayers: at "
            "this depth it explodes or vanishes at initialization.",
            _GROWS,
        ),
        "stream grows": Case(
            "warning",
            "The stream's RMS grows by a factor of {growth:.3g} in {sublayers} sublayers, "
            "exponentially.",
            _GROWS,
        ),
        "gradient explodes": Case(
            "error",
            "Relative to the stream, the gradient at the first sublayer is {ratio:.3g} times that "
            "at the last: lower layers will not train, or all will diverge.",
            "Pre-norm, a smaller initialization of the branches, or DeepNorm's factors.",
        ),
        "gradient grows": Case(
            "warning",
            "Relative to the stream, the gradient at the first sublayer is {ratio:.3g} times that "
            "at the last.",
            "Warm up slowly, or choose pre-norm or DeepNorm's factors at this depth.",
        ),
        "saturated attention": Case(
            "warning",
            "Before training a query gives {percent:.3g} % of its attention to one key: the "
            "softmax is saturated, and almost no gradient passes through it.",
            "A smaller initialization of queries and keys (std 0.02, or 1/sqrt(width)), or a norm "
            "on both.",
        ),
        "large logits": Case(
            "warning",
            "Before training the logits over {classes} classes have a std of "
            "{std_of_the_logits:.3g}: the loss starts near {loss:.3g} instead of "
            "{uniform_loss:.3g}, and the first steps only undo it.",
            "Initialize the head (with tied weights: the embedding) with std 0.02, or "
            "1/sqrt(width).",
        ),
    },
)

# --- the model as it is ---------------------------------------------------------------------------


@decides(RESIDUAL_SCALE, UNSTABLE)
def init(subject: Subject) -> Answers:
    """Findings of the user's model with its own weights, not with those that probes give the copy;
    Unknown where it does not run, or has no residual stream."""
    model = bare_copy(subject.original).to(_dtype(subject.model))
    try:
        trace = record(lambda: subject.inputs.call(model), model)
    except (RuntimeError, ValueError, TypeError) as error:
        why = f"the model as it is does not run on the inputs: {error_in_a_line(error)}"
        yield from (rule.unknown(why) for rule in (RESIDUAL_SCALE, UNSTABLE))
        return
    s = Structure(trace, model)
    if not s.chains:
        why = "no residual stream was found"
        yield from (rule.unknown(why) for rule in (RESIDUAL_SCALE, UNSTABLE))
        return
    for chain in s.chains:
        yield from _scaling(s, chain)
        yield from _depth(s, chain)
    yield from _saturated(s)
    yield from _logits(s)


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


# --- the matrices that write to the stream --------------------------------------------------------


@final
@dataclass(frozen=True)
class _Writer:
    """The last matrix of a branch."""

    name: str
    ratio: float
    """Its std over the median of the branch's other matrices."""
    by_width: float
    """The same, if torch's rule had been followed: 1 then."""


def _scaling(s: Structure, chain: Sequence[Residual]) -> Iterator[Finding]:
    """The finding of a stream whose branches' last matrices are not scaled by depth like their
    others."""
    writers = _writers(s, chain)
    case = _scaling_case(writers) if writers else None
    if case is None:
        return
    evidence: dict[str, Any] = {
        "sublayers": len(chain),
        "writers_std_over_others": [round(w.ratio, 4) for w in writers],
        "usual_1_over_sqrt_sublayers": 1 / math.sqrt(len(chain)),
        "first_writer": writers[0].name,
    }
    words: dict[str, Any] = {}
    if case == "unscaled":
        growth = chain[-1].output.rms() / max(chain[0].fork.rms(), 1e-30)
        evidence["stream_rms_end_over_start"] = growth
    elif case == "some unscaled":
        words["which"] = ", ".join(w.name for w in writers if _near(w.ratio, 1.0))[:160]
    elif case == "louder":
        words["times"] = statistics.median(w.ratio for w in writers)
    yield RESIDUAL_SCALE(case, writers[0].name.rpartition(".")[0], words=words, **evidence)


def _near(ratio: float, expected: float) -> bool:
    """Equal up to what a std from few weights is off by."""
    return abs(ratio - expected) <= ALIKE * expected


def _scaling_case(writers: Sequence[_Writer]) -> str | None:
    """The case of ``RESIDUAL_SCALE``; None: as it should be, or by another rule that is known."""
    ratios = [w.ratio for w in writers]
    usual = 1 / math.sqrt(len(writers))
    if min(ratios) == 0.0:
        return None  # zero-initialized writers: identity at the beginning
    if all(_near(w.by_width, 1.0) for w in writers):
        return None  # torch's rule: 1/sqrt of a matrix's inputs, of which an MLP's last has more
    scaled = [_near(r, usual) for r in ratios]
    plain = [_near(r, 1.0) for r in ratios]
    if all(scaled):
        return None
    if all(plain):
        return "unscaled"
    if any(scaled) and any(plain):
        return "some unscaled"
    if all(_near(r, 1 / len(writers)) for r in ratios):
        return "1/branches"
    if all(abs(r - usual * math.sqrt(2)) <= ALIKE * usual for r in ratios):
        return "1/sqrt(layers)"
    return "louder" if min(ratios) > LOUDER else None


def _writers(s: Structure, chain: Sequence[Residual]) -> list[_Writer]:
    """One for each branch; none where the stds of a branch can't be told to be meant for depth."""
    if len(chain) < SUBLAYERS:
        return []
    own = [r for r in chain if s.own_norms(r)]
    if len(own) * 2 <= len(chain):
        return []  # post-norm: the stream is normalized anyway
    writers = []
    for residual in chain:
        writer = _writer(s, residual)
        if writer is None:
            return []
        writers.append(writer)
    return writers


def _writer(s: Structure, residual: Residual) -> _Writer | None:
    """The last matrix of a branch, against its others; None where the two cannot be compared."""
    parameters = dict(s.model.named_parameters())
    last: list[str] = []
    others: list[str] = []
    carried = s.carried(residual.branch)
    for value in residual.inside:
        op = value.op
        if op is None or op.name not in PRODUCTS or not s.weighted(op):
            continue
        names = [n for n in s.weights(op) if n in parameters and parameters[n].dim() > 1]
        (last if op.outputs[0] in carried else others).extend(names)
    if len(set(last)) != 1 or not others:
        return None
    if any(step.kind in ("norm", "gate") for step in _after(s, residual)):
        return None  # the branch's scale is set behind its last matrix
    w = parameters[last[0]].detach().float()
    stds = [float(parameters[n].detach().float().std()) for n in others]
    if min(stds) == 0 or w.numel() < 64:
        return None
    if max(stds) > (1 + 2 * ALIKE) * min(stds):
        return None  # stds by width (Xavier, Kaiming): a smaller one need not be for depth
    ratio = float(w.std()) / statistics.median(stds)
    # Torch's rule makes the ratio sqrt(outputs / inputs) of this matrix, which is taken out here.
    return _Writer(last[0], ratio, ratio * math.sqrt(w.numel()) / residual.output.shape[-1])


def _after(s: Structure, residual: Residual) -> Iterator[Step]:
    """The steps from the stream back to the branch's last product, by the first way where there are
    several; a learned factor counts as a gate."""
    value = residual.branch
    while steps := s.steps_into(value):
        step = steps[0]
        learned = step.op is not None and any(
            a.name for v in step.op.inputs if v is not step.source for a in s.trace.ancestors(v)
        )
        vector = step.kind == "scale" and learned
        yield replace(step, kind="gate") if vector else step
        value = step.source


# --- through the depth ----------------------------------------------------------------------------


def _depth(s: Structure, chain: Sequence[Residual]) -> Iterator[Finding]:
    """Findings of a stream whose RMS, or whose gradient's, grows or falls too much from the first
    sublayer to the last, or is not finite."""
    outputs = [r.output for r in chain]
    rms = [v.rms() for v in outputs]
    grads = _gradients(s, outputs)
    evidence: dict[str, Any] = {
        "sublayers": len(chain),
        "rms": [float(f"{v:.3g}") for v in rms],
    }
    if grads:
        evidence["gradient_rms"] = [float(f"{v:.3g}") for v in grads]
    module = chain[-1].add.module
    if not all(math.isfinite(v) for v in (*rms, *grads)):
        first = next((r for r, v in zip(chain, rms, strict=True) if not math.isfinite(v)), chain[0])
        yield UNSTABLE("not finite", module, words={"first": first.add.module}, **evidence)
        return
    growth = math.prod(
        after / max(before, 1e-30)
        for a, b, before, after in zip(chain, chain[1:], rms, rms[1:], strict=False)
        if not s.norms_between(a.output, b.fork)  # a norm on the stream sets its scale anew
    )
    if growth > EXPLODES or growth < 1 / EXPLODES:
        yield UNSTABLE("stream explodes", module, words={"growth": growth}, **evidence)
    # by a factor at each sublayer: a variance that only adds up grows as a power of depth
    elif growth > GROWS and growth ** (1 / max(len(chain) - 1, 1)) > 1.3:
        yield UNSTABLE("stream grows", module, words={"growth": growth}, **evidence)
    if len(grads) > 1 and min(grads) > 0:
        # times the RMS: what a change by one percent does, which a change of scale leaves alone
        ratio = grads[0] * rms[0] / max(grads[-1] * rms[-1], 1e-300)
        if ratio > EXPLODES or ratio < 1 / EXPLODES:
            yield UNSTABLE("gradient explodes", module, words={"ratio": ratio}, **evidence)
        elif ratio > GROWS or ratio < 1 / GROWS:
            yield UNSTABLE("gradient grows", module, words={"ratio": ratio}, **evidence)


def _gradients(s: Structure, at: list[Value]) -> list[float]:
    """RMS of the gradient of a random projection of the outputs, at each of ``at``; [] if it does
    not reach all of them."""
    outs = [t for t in s.trace.outputs if t.requires_grad and t.is_floating_point()]
    streams = [v.tensor for v in at if v.tensor.requires_grad]
    if not outs or len(streams) != len(at):
        return []
    generator = torch.Generator().manual_seed(0)
    cotangents = [
        torch.randn(o.shape, generator=generator, dtype=torch.float32).to(o) for o in outs
    ]
    try:
        grads = torch.autograd.grad(outs, streams, cotangents, allow_unused=True, retain_graph=True)
    except RuntimeError:
        return []
    if any(g is None for g in grads):
        return []
    return [float(g.detach().double().square().mean().sqrt()) for g in grads if g is not None]


# --- attention and logits -------------------------------------------------------------------------


def _saturated(s: Structure) -> Iterator[Finding]:
    """Findings of attentions that look at one key only, before they have learned at which."""
    for attention in s.attentions:
        weights = attention.table().double()
        wide = weights[(weights > 0).sum(-1) >= 4]
        if len(wide) == 0:
            continue
        top = float(wide.max(-1).values.mean())
        if top > SURE:
            scores = attention.scores.outputs[0].tensor.detach().double()
            yield UNSTABLE(
                "saturated attention",
                attention.path,
                words={"percent": 100 * top},
                mean_largest_weight=top,
                std_of_the_scores=float(scores.std()),
            )


def _logits(s: Structure) -> Iterator[Finding]:
    """Findings of outputs with as many columns as a table has rows: scores over a vocabulary, which
    must start near each other."""
    rows = {v.shape[0]: name for name, v in s.tables.items()}
    for leaf in (t for t in tree_leaves(s.results) if isinstance(t, Value)):
        t = leaf.tensor.detach()
        if t.dim() < 2 or t.shape[-1] not in rows or not t.is_floating_point():
            continue
        products = [v.op for v in s.carried(leaf) if v.op is not None and v.op.name in PRODUCTS]
        std = float(_centred_rows(t.double()).std()) if leaf.op is not None and products else 0.0
        if std > LOUD:
            yield UNSTABLE(
                "large logits",
                products[0].module,
                words={"loss": _expected_loss(t)},
                std_of_the_logits=std,
                classes=t.shape[-1],
                uniform_loss=math.log(t.shape[-1]),
            )


def _centred_rows(t: Tensor) -> Tensor:
    return t - t.mean(-1, keepdim=True)


def _expected_loss(t: Tensor) -> float:
    """The mean cross-entropy of logits for targets drawn uniformly."""
    return float((t.double().logsumexp(-1) - t.double().mean(-1)).mean())
