"""Where norms sit on the stream: two in a row, none at the end, one at several places."""

from collections import defaultdict

from addnorm.anatomy.skips import joins_streams
from addnorm.anatomy.structure import PRODUCTS, Residual, Structure, TracedNorm, factors, within
from addnorm.anatomy.trace import Op, Value
from addnorm.linting.check import Answers, decides
from addnorm.linting.rule import Case, Rule
from addnorm.linting.subject import Subject

# --- the words ------------------------------------------------------------------------------------

DOUBLE_NORM = Rule(
    "double-norm",
    "two norms with nothing between them",
    family="The residual stream",
    evidence={
        "first_norm": "the norm whose output the second one reads",
        "relative_change_by_the_second": "how far the second's output is from the first's",
    },
    cases={
        "in a row": Case(
            "warning",
            "{module} normalizes what {first_norm} has just normalized, with nothing between them. "
            "The second undoes the first one's gain and bias, and costs a pass over memory.",
            "Remove one: a post-norm stack ends normalized and needs no final norm.",
        ),
    },
)

_GROWS = (
    "The sublayers are pre-norm, so nothing ever normalizes the stream itself, and {how}: its "
    "scale grows with depth and during training, and so do the logits."
)
_FINAL = "Put a norm after the last block (GPT-2's ln_f)."

MISSING_FINAL_NORM = Rule(
    "missing-final-norm",
    "a pre-norm stack whose end is read without a norm",
    family="The residual stream",
    evidence={
        "sublayers": "how many write to this stream",
        "with_a_norm_of_their_own": "how many of them read it through a norm of their own",
        "rms_after_the_first_sublayer": "the RMS of the stream after the first of them",
        "rms_at_the_end": "the RMS of the stream after the last",
    },
    cases={
        "read": Case("error", _GROWS.format(how="{reader} reads its end without a norm"), _FINAL),
        "returned": Case(
            "warning",
            _GROWS.format(how="its end is returned without a norm"),
            f"{_FINAL} If the caller normalizes the output, ignore this.",
        ),
    },
)

SHARED_NORM = Rule(
    "shared-norm",
    "one norm at several places",
    family="The residual stream",
    evidence={
        "places": "at how many places the norm is called",
        "parameters": "its parameters",
        "whole_layer_is_shared": "whether the matrices around it are used as often",
    },
    cases={
        "with its layer": Case(
            "note",
            "The layer around {module} is used {places} times with the same weights, its norms "
            "among them, as in ALBERT.",
            "Nothing, if the sharing is intended.",
        ),
        "alone": Case(
            "error",
            "{module} is one norm at {places} places: its gain and bias get the sum of different "
            "gradients, and no place gets a scale of its own.",
            "One norm for each place.",
        ),
    },
)

# --- how it is measured ---------------------------------------------------------------------------


@decides(DOUBLE_NORM, MISSING_FINAL_NORM, SHARED_NORM)
def norms_on_the_way(subject: Subject) -> Answers:
    """Findings of norms on the stream: two in a row, none at the end, one at several places."""
    s = subject.structure
    yield from _double(s)
    yield from _missing_final(s)
    yield from _shared(s)


def _double(s: Structure) -> Answers:
    """Findings of norms that read what another norm gave, by views alone, if nothing else reads
    that."""
    outputs = {n.output: n for n in s.norms}
    forks = {r.fork for r in s.residuals} | {r.stream for r in s.residuals}
    for second in outputs.values():
        value, shape = second.source, second.source.shape
        while value not in outputs:
            steps = s.steps_into(value)
            how = steps[0].op if len(steps) == 1 and steps[0].kind == "view" else None
            if how is None or how.name in ("cat", "stack") or value.shape != shape:
                break
            value = steps[0].source
        first = outputs.get(value)
        if first is None or first is second:
            continue
        if _inside(first, second) or _inside(second, first):
            continue
        if value in forks or len(_other_readers(s, value, second)) > 0:
            continue
        x, y = (n.output.tensor.detach().double() for n in (first, second))
        change = float((y - x).norm() / x.norm().clamp(min=1e-300)) if x.shape == y.shape else 1.0
        yield DOUBLE_NORM(
            "in a row",
            second.path,
            first_norm=first.path,
            relative_change_by_the_second=change,
        )


def _inside(a: TracedNorm, b: TracedNorm) -> bool:
    """Whether one is a part of a module that is the other."""
    return b.module is not None and within(a.path, b.path)


def _other_readers(s: Structure, value: Value, besides: TracedNorm) -> list[Op]:
    """Who reads a value, and reaches a result, apart from one norm and from views on the way to
    it."""
    way = s.ancestors(besides.output)
    return [
        op
        for op in value.readers
        if any(v in s.live for v in op.outputs) and not any(v in way for v in op.outputs)
    ]


def _missing_final(s: Structure) -> Answers:
    """Findings of pre-norm streams that are read or returned at their end without a norm."""
    for chain in s.chains:
        last = chain[-1]
        own = [r for r in chain if s.own_norms(r)]
        normed_before = [
            r
            for r in chain[1:]
            if (p := s.previous(r)) is not None and s.norms_between(p.output, r.fork)
        ]
        if len(own) * 2 <= len(chain) or len(normed_before) * 2 > len(chain):
            continue
        ends = s.carried_on(last.output)
        if any(
            step.norm is not None for v in ends for step in s.steps_into(v) if step.source in ends
        ):
            continue
        read = [op for v in ends for op in v.readers if op.name in PRODUCTS and v in factors(op)]
        if any(joins_streams(s, op) for op in read):
            continue  # the stream goes on behind the skip
        rms = [r.output.rms() for r in (chain[0], last)]
        yield MISSING_FINAL_NORM(
            "read" if read else "returned",
            read[0].module if read else last.add.module,
            words={"reader": read[0].module or "a product"} if read else {},
            sublayers=len(chain),
            with_a_norm_of_their_own=len(own),
            rms_after_the_first_sublayer=rms[0],
            rms_at_the_end=rms[1],
        )


def _shared(s: Structure) -> Answers:
    """Findings of norms whose parameters are used at several places of the stream, alone or with
    their whole layer."""
    at: dict[frozenset[str], list[TracedNorm]] = defaultdict(list)
    for norm in s.norms:
        own = frozenset(name for name in norm.parameters if name) or _gains(s, norm)
        if own and norm.source not in {n.source for n in at[own]}:
            at[own].append(norm)
    times: dict[str, int] = defaultdict(int)
    for op in s.trace.ops:
        if op.name in PRODUCTS and s.weighted(op):
            for v in op.inputs:
                for name in s.names(v):
                    times[name] += 1
    for names, calls in at.items():
        if len(calls) < 2:
            continue
        block = s.block(calls[0].path)
        around = [n for name, n in times.items() if block and within(name, block)]
        whole = bool(around) and min(around) >= len(calls) // 2 and max(around) >= 2
        if not block:  # a recurrence calls its norm and its weights at every step, but its weights
            # not at the first, where the state is zeros
            whole = any(n >= max(len(calls) - 1, 2) for n in times.values())
        if _inside_one_branch(s, calls):
            continue
        yield SHARED_NORM(
            "with its layer" if whole else "alone",
            calls[0].path,
            places=len(calls),
            parameters=sorted(names),
            whole_layer_is_shared=whole,
        )


def _gains(s: Structure, norm: TracedNorm) -> frozenset[str]:
    """The vectors that a norm computed by hand is multiplied by, just before or just after."""
    gains: set[str] = set()
    before = [norm.source.op] if norm.source.op is not None else []
    for op in (*before, *norm.output.readers):
        if op.name == "mul" and len(op.outputs[0].shape) > 1:
            for v in op.inputs:
                if v.tensor.numel() == norm.output.shape[-1]:
                    gains |= s.names(v)
    return frozenset(gains)


def _inside_one_branch(s: Structure, calls: list[TracedNorm]) -> bool:
    """Whether none of these norms reads a stream: they are norms of queries and keys, or of one
    projection's parts, inside the branches that the first of them is in."""
    first = [r for r in s.residuals if calls[0].output in r.inside]
    return bool(first) and all(
        any(n.output in r.inside for r in first) and n.source not in _stream_values(s, first)
        for n in calls
    )


def _stream_values(s: Structure, residuals: list[Residual]) -> set[Value]:
    """What is carried into the forks of these, or on from there."""
    return {v for r in residuals for v in s.carried(r.fork)} | {
        v for r in residuals for v in s.carried_on(r.fork)
    }
