"""How the sublayers sit on the residual stream: proved on the operations, not guessed from code."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from addnorm.anatomy.outputs import tensors_in
from addnorm.anatomy.structure import Residual, Structure, TracedNorm, number
from addnorm.anatomy.trace import Call, Op, Value, altered
from addnorm.linting.check import Answers, decides
from addnorm.linting.rule import Case, Rule
from addnorm.linting.subject import Subject
from addnorm.temporary import hooked

FAR = 1e-3  # relative: float32 noise is 1e-6, a norm moves a random vector by several tenths
"""By more than this a block without its branches does not return its input."""

# --- the words ------------------------------------------------------------------------------------

_KEEP = "Keep the input for the sum: x = x + f(norm(x))."

WRONG_TENSOR = Rule(
    "residual-wrong-tensor",
    "a residual connection carries on something other than the stream",
    family="The residual stream",
    evidence={
        "norm_on_the_stream": "the norm through which the stream goes",
        "block_with_branches_zeroed_differs_from_x_by": "with zeros for what its branches add, how "
        "far the block's output is from its input",
        "and_from_norm_of_x_by": "and from the norm of its input",
        "sublayers_with_a_norm_of_their_own": "how many read the stream through a norm",
        "sublayers_on_a_normed_stream": "how many are added to what a norm gave",
        "scale_of_the_stream_changes_by": "the norm's output over its input, in size",
        "lost_write_of": "the module whose write is lost",
        "reads_it": "the module that has read it all the same",
        "share_of_the_stream": "the size of the write relative to the stream",
        "norm_of_the_branch": "the norm through which the branch reads",
        "what_is_added_to_differs_from_x_by": "how far what the branch is added to is from what it "
        "was computed from",
        "factor_of_the_branch": "what the branch is multiplied by before the sum",
        "factor_of_the_stream": "what the stream is multiplied by",
        "through_a_norm": "the projections that read the stream through a norm",
        "past_it": "those that read it without",
        "times_in_the_sum": "how often the stream is in it",
        "width": "the width of the stream",
        "block_with_branches_zeroed_differs_from_its_stream_by": "with zeros for what its branches "
        "add, how far the block's output is from its input, taken through its own norms",
        "residual_connections_inside": "how many the block has",
    },
    cases={
        "normed stream": Case(
            "error",
            "{norm_on_the_stream} normalizes the stream itself, and the sublayer reads and is "
            "added to the normed copy: norm(x) + f(norm(x)). With all branches zeroed the block "
            "returns norm(x), not x, so the identity path that makes pre-norm trainable is gone.",
            _KEEP,
        ),
        "normed now and then": Case(
            "error",
            "Some sublayers read the stream through a norm and are added to it; the others are "
            "added to the normed copy (as in {where}): norm(x) + f(norm(x)). Between them the "
            "identity path that makes pre-norm trainable is gone.",
            "Keep the input for the sum everywhere: x = x + f(norm(x)).",
        ),
        "lost write": Case(
            "error",
            "The sublayer added in {later} reads the stream with what {earlier} wrote, but is "
            "added to the stream without it: that write is lost to all later layers.",
            "Add to the same tensor that the sublayer read.",
        ),
        "normed operand": Case(
            "error",
            "The branch reads x through {norm_of_the_branch}, and is then added to "
            "{norm_on_the_stream} of x instead of to x: the identity path that makes pre-norm "
            "trainable is gone.",
            _KEEP,
        ),
        "scaled branch": Case(
            "error",
            "Before {norm} the branch is multiplied by {factor_of_the_branch:.3g} and the stream "
            "by 1: the deeper the stack, the faster it forgets its input. DeepNorm's factor "
            "belongs to the stream.",
            "Write norm(alpha * x + f(x)), not norm(x + alpha * f(x)).",
        ),
        "partly normed": Case(
            "error",
            "Some projections of one attention read the stream through the norm, and some without "
            "it ({projections}): the scale of the latter grows with depth while that of the others "
            "does not.",
            "Give all of queries, keys and values the normed stream.",
        ),
        "added twice": Case(
            "error",
            "The residual is added twice: both operands of an addition hold the stream {as_it_was} "
            "in full, so it doubles here at every layer.",
            "Add the sublayer's output once, in one place.",
        ),
        "something else": Case(
            "warning",
            "With every branch zeroed this block does not return its input (passed through its own "
            "norms): something else is written to the stream or taken from it.",
            "Look at what is added besides the sublayers' outputs.",
        ),
    },
)

# --- how it is measured ---------------------------------------------------------------------------


@decides(WRONG_TENSOR)
def wrong_tensor(subject: Subject) -> Answers:
    """Findings of residual connections that carry on something other than the stream; Unknown where
    there is none, or no attention."""
    s = subject.structure
    missing = "residual connection" if s.attentions else "attention"
    if not s.residuals or not s.attentions:  # sums of a recurrent state look like a stream
        yield WRONG_TENSOR.unknown(f"no {missing} was found")
        return
    zeroed = _blocks_without_branches(subject)
    normed: dict[str, TracedNorm] = {}
    for call, norm in _normed_streams(s):
        normed.setdefault(call.path, norm)
    for path, first in normed.items():
        yield WRONG_TENSOR("normed stream", path, **_without_branches(first, zeroed.get(path)))
    if not normed:
        yield from _now_and_then(s)
    for residual in s.residuals:
        yield from _lost_write(s, residual)
        yield from _normed_operand(s, residual)
        yield from _scaled_branch(s, residual)
        yield from _partly_normed(s, residual)
    yield from _twice(s)
    for path, (x, y) in zeroed.items():
        if path not in normed and x.shape == y.shape:
            yield from _not_the_input(s, path, x, y)


def _without_branches(norm: TracedNorm, block: tuple[Tensor, Tensor] | None) -> dict[str, Any]:
    """The evidence that a block gives the norm of what it takes, and not that itself."""
    evidence: dict[str, Any] = {"norm_on_the_stream": norm.path}
    if block is not None:
        x, y = block
        evidence["block_with_branches_zeroed_differs_from_x_by"] = _apart(y, x)
        if norm.module is not None:
            with torch.no_grad():
                evidence["and_from_norm_of_x_by"] = _apart(y, norm.module(x))
    return evidence


def _blocks_without_branches(subject: Subject) -> dict[str, tuple[Tensor, Tensor]]:
    """{path: (what a block took, what it gave)} when every branch of the model wrote zeros; its
    first floating-point tensors, of its first call. {} where the model does not run so."""
    s = subject.structure

    def zero(residual: Residual) -> Any:
        """A change for ``altered``: the branch's operands of the addition become zeros."""
        at = [i for i, a in enumerate(residual.add.args) if a is residual.branch]

        def change(args: tuple[Any, ...]) -> tuple[Any, ...]:
            new = list(args)
            for i in at:
                new[i] = torch.zeros_like(new[i])
            return tuple(new)

        return change

    blocks: dict[str, tuple[Tensor, Tensor]] = {}
    taken_by: dict[str, Tensor] = {}

    modules = dict(subject.model.named_modules())
    paths = {modules[path]: path for path in s.block_paths}

    def first(*tree: Any) -> Tensor | None:
        tensors = (t for t in tensors_in(*tree) if t.is_floating_point())
        return next((t.detach().clone() for t in tensors), None)

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        tensor = first(args, kwargs)
        if tensor is not None:
            taken_by.setdefault(paths[module], tensor)

    def after(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        path, tensor = paths[module], first(out)
        if tensor is not None and path in taken_by:
            blocks.setdefault(path, (taken_by[path], tensor))

    try:
        with hooked(paths, before=before, after=after):
            altered(
                lambda: subject.inputs.call(subject.model),
                {r.add: zero(r) for r in s.residuals if r.add.name in ("add", "sub")},
            )
    except (RuntimeError, ValueError, IndexError):
        return {}  # the model's flow depends on what is in its tensors; the structure still tells
    return blocks


def _apart(a: Tensor, b: Tensor) -> float:
    """How far a is from b, relative to b, but for a constant factor."""
    if a.shape != b.shape:
        return float("inf")
    a, b = a.detach().double().flatten(), b.detach().double().flatten()
    c = torch.dot(a, b) / torch.dot(b, b).clamp(min=1e-300)
    return float((a - c * b).norm() / (c * b).norm().clamp(min=1e-300))


def _normed_streams(s: Structure) -> Iterator[tuple[Call, TracedNorm]]:
    """(call, norm) of blocks that begin by normalizing the stream, or whose later sublayers do
    without a norm of their own although the block is not post-norm."""
    for call in s.block_calls():
        inside = [r for r in s.residuals if _in_call(s, r.add, call)]
        if not inside:
            continue
        first = inside[0]
        heads = [v for v in call.inputs if v in s.carried(first.fork)]
        for head in heads:
            norms = [n for n in s.norms_between(head, first.fork) if _in_call(s, n.op, call)]
            if norms and not s.own_norms(first):
                yield call, norms[0]
                break
        for before, after in pairwise(inside):
            if before.output not in s.carried(after.fork):
                continue
            norms = [
                n for n in s.norms_between(before.output, after.fork) if _in_call(s, n.op, call)
            ]
            if not norms or s.own_norms(after) or not s.own_norms(before):
                continue
            last = inside[-1]
            closing = [
                n
                for out in call.outputs
                if last.output in s.carried(out)
                for n in s.norms_between(last.output, out)
            ]
            if not closing:
                yield call, norms[0]


def _now_and_then(s: Structure) -> Answers:
    """Without blocks to go by: sublayers with a norm of their own and sublayers that have none and
    read a normed stream, in turns. A design may change from one to the other once, not at every
    layer."""
    if len({r.branch for r in s.residuals}) < len(s.residuals):
        return  # two streams, one normed and one not, get the same branches (ResiDual)
    kinds: list[tuple[str, TracedNorm]] = []
    for residual in s.residuals:
        before = s.previous(residual)
        own = s.own_norms(residual)
        stream = s.norms_between(before.output, residual.fork) if before is not None else []
        if own and not stream:
            kinds.append(("own", own[0]))
        elif stream and not own:
            kinds.append(("stream", stream[0]))
    turns = [b for a, b in pairwise(kinds) if a[0] == "own" and b[0] == "stream"]
    if len(turns) < 2:
        return
    norm = turns[0][1]
    raw, normed = (v.tensor.detach().double() for v in (norm.source, norm.output))
    share = float(normed.norm() / raw.norm())
    yield WRONG_TENSOR(
        "normed now and then",
        norm.path,
        words={"where": norm.path or "the model"},
        sublayers_with_a_norm_of_their_own=sum(k == "own" for k, _ in kinds),
        sublayers_on_a_normed_stream=sum(k == "stream" for k, _ in kinds),
        scale_of_the_stream_changes_by=share,
    )


def _in_call(s: Structure, op: Op, call: Call) -> bool:
    """Whether an operation ran in this call of a module, or deeper in it."""
    return call.first <= s.order(op) < call.last


def _lost_write(s: Structure, residual: Residual) -> Answers:
    """The finding that a later sublayer reads what this one wrote, but adds to the stream as it was
    before: the first such sublayer's."""
    out = residual.output
    if any(out in s.carried(r.stream) for r in s.residuals if r is not residual):
        return
    if any(out in r.inside and r.output.shape != out.shape for r in s.residuals):
        return  # inside a sublayer, of another shape than the stream: values with earlier ones
    before = s.carried(residual.stream)
    for later in s.residuals:
        if later is residual or out not in s.ancestors(later.branch):
            continue
        if later.fork in before and out not in s.carried(later.add.outputs[0]):
            if any(residual.branch in s.carried(r.stream) for r in s.residuals):
                return  # added elsewhere as well
            if sum(residual.branch in s.carried(r.branch) for r in s.residuals) > 1:
                return  # what every layer reads anew, as an injection of the model's input
            yield WRONG_TENSOR(
                "lost write",
                later.add.module,
                words={
                    "later": later.add.module or "the model",
                    "earlier": residual.add.module or "the one before",
                },
                lost_write_of=residual.add.module,
                reads_it=later.add.module,
                share_of_the_stream=residual.share,
            )
            return


def _normed_operand(s: Structure, residual: Residual) -> Answers:
    """The finding of norm(x) + f(norm(x)): a norm is on the way from the fork to the sum, and the
    branch has one of its own as well."""
    on_stream = [step.norm for step in residual.steps if step.norm is not None]
    own = s.own_norms(residual)
    if not on_stream or not own:
        return
    x, y = residual.fork.tensor, residual.stream.tensor
    yield WRONG_TENSOR(
        "normed operand",
        residual.add.module,
        norm_on_the_stream=on_stream[0].path,
        norm_of_the_branch=own[0].path,
        what_is_added_to_differs_from_x_by=_apart(y.detach(), x.detach()),
    )


def _scaled_branch(s: Structure, residual: Residual) -> Answers:
    """The finding of a constant above 1 on the branch before a post-norm: DeepNorm's, which belongs
    on the stream."""
    op = residual.branch.op
    if op is None or op.name != "mul" or any(step.kind == "scale" for step in residual.steps):
        return
    constants = [number(a) for a in op.args if not (isinstance(a, Value) and a in s.activations)]
    factor = constants[0] if constants else None
    learned = any(v.name for a in op.inputs for v in s.trace.ancestors(a) if a not in s.activations)
    if factor is None or factor <= 1.0 or learned:
        return
    after = [n for n in s.steps_from.get(residual.output, ()) if n.norm is not None]
    if after:
        yield WRONG_TENSOR(
            "scaled branch",
            residual.add.module,
            words={"norm": after[0].norm.path if after[0].norm else "the norm"},
            factor_of_the_branch=factor,
            factor_of_the_stream=1.0,
        )


def _partly_normed(s: Structure, residual: Residual) -> Answers:
    """The finding of an attention some of whose projections read the stream through a norm, and
    some do not."""
    readers = [(op, normed) for op, normed in s.readers(residual) if s.weighted(op)]
    projected = {v for op, ok in readers if ok for v in s.ancestors(op.outputs[0])}
    # what the norm itself reads, as an injection of the model's input, is no projection of them
    readers = [(op, ok) for op, ok in readers if ok or op.outputs[0] not in projected]
    normed = [op.module for op, ok in readers if ok]
    raw = [op.module for op, ok in readers if not ok]
    if not normed or not raw:
        return
    heads = [a for a in s.attentions if a.mix.outputs[0] in residual.inside]
    feeding = {op for a in heads for v in s.ancestors(a.mix.outputs[0]) if (op := v.op) is not None}
    if not heads or not all(op in feeding for op, _ in readers):
        return
    projections = ", ".join(sorted(set(raw))[:3])
    yield WRONG_TENSOR(
        "partly normed",
        residual.add.module,
        words={"projections": projections or "in one product"},
        through_a_norm=sorted(set(normed)),
        past_it=sorted(set(raw)),
    )


def _twice(s: Structure) -> Answers:
    """The finding of an addition of two values that both hold the same stream in full; of the first
    only."""
    points = {r.fork for r in s.residuals} | {r.output for r in s.residuals}
    sums = {r.add for r in s.residuals}
    for op in s.trace.ops:
        if op.name != "add" or op in sums or not op.outputs or op.outputs[0] not in s.live:
            continue
        moving = [v for v in op.inputs if v in s.activations]
        if len(moving) != 2 or moving[0].shape != moving[1].shape:
            continue
        left, right = (_unscaled_sources(s, v) for v in moving)
        both = left & right & points
        # Before any sublayer has written there is no stream yet, only embeddings.
        if not both or not (left | right) & {r.output for r in s.residuals}:
            continue
        at = max(both, key=lambda v: v.number)
        yield WRONG_TENSOR(
            "added twice",
            op.module,
            words={"as_it_was": f"as {at.op.module} left it" if at.op and at.op.module else ""},
            times_in_the_sum=2,
            width=op.outputs[0].shape[-1],
        )
        return


def _unscaled_sources(s: Structure, value: Value) -> set[Value]:
    """What is carried into a value, itself included, by views and sums alone: in full."""
    sources, todo = {value}, [value]
    while todo:
        for step in s.steps_into(todo.pop()):
            if step.kind in ("view", "shift", "add") and step.source not in sources:
                sources.add(step.source)
                todo.append(step.source)
    return sources


def _not_the_input(s: Structure, path: str, x: Tensor, y: Tensor) -> Answers:
    """The finding of the block at ``path`` that, with its branches zeroed, does not return its
    input through its own stream norms. ``x`` and ``y`` are what it took and gave then. Says nothing
    where what it should give cannot be computed, as behind a gate."""
    call = next(c for c in s.block_calls() if c.path == path)
    inside = [r for r in s.residuals if _in_call(s, r.add, call)]
    heads = [v for v in call.inputs if v.shape == tuple(x.shape)]
    if not inside or not heads or not call.outputs:
        return
    carried = s.carried(call.outputs[0])
    if heads[0] not in carried:
        return  # it has no stream of this shape: no-residual looks at that
    expected = x
    try:
        for step in s.way(heads[0], call.outputs[0]):
            if step.norm is not None:
                if step.norm.module is None or step.norm.source.shape != tuple(expected.shape):
                    return
                with torch.no_grad():
                    expected = step.norm.module(expected)
                if not isinstance(expected, Tensor):
                    return
            elif step.kind in ("gate", "scale") or step.source.shape != step.target.shape:
                return
    except (RuntimeError, TypeError):
        return
    apart = _apart(y, expected)
    if apart <= FAR or any(r.add.name not in ("add", "sub") for r in inside):
        return
    yield WRONG_TENSOR(
        "something else",
        path,
        block_with_branches_zeroed_differs_from_its_stream_by=apart,
        residual_connections_inside=len(inside),
    )
