"""Sublayers that the residual stream does not go around."""

from collections import defaultdict

from addnorm.anatomy.skips import joins_streams
from addnorm.anatomy.structure import PRODUCTS, Structure, factors, within
from addnorm.anatomy.trace import Op, Value
from addnorm.linting.check import Answers, decides
from addnorm.linting.rule import Case, Rule
from addnorm.linting.subject import Subject

# --- the words ------------------------------------------------------------------------------------


def _nothing_around(what: str, it: str) -> Case:
    """A case of a sublayer that is called ``what``, with the pronoun for it."""
    return Case(
        "error",
        f"No residual connection goes around the {what} in {{names}}: what comes before reaches "
        f"what comes after only through {it}. Deep stacks of such layers lose the signal and its "
        "gradient.",
        "Add the sublayer's input to its output: x = x + sublayer(norm(x)), or "
        "norm(x + sublayer(x)).",
    )


NO_RESIDUAL = Rule(
    "no-residual",
    "a sublayer that the residual stream does not go around",
    family="The residual stream",
    evidence={
        "outside_of_every_residual": "the modules that nothing goes around",
        "count": "how many there are",
        "residual_connections_in_the_model": "how many were found elsewhere",
        "shape": "the shape of what the first of them gives",
    },
    cases={
        "attention": _nothing_around("attention", "it"),
        "products": _nothing_around("products with weights", "them"),
    },
)

# --- how it is measured ---------------------------------------------------------------------------


@decides(NO_RESIDUAL)
def no_residual(subject: Subject) -> Answers:
    """Findings of blocks, one for each, with attentions or products that the stream does not go
    around; Unknown where there is no attention."""
    s = subject.structure
    if not s.attentions:
        yield NO_RESIDUAL.unknown("no attention was found in the forward")
        return
    outside = _outside(s)
    blocks: dict[str, list[str]] = defaultdict(list)
    for path in outside:
        blocks[s.block(path) or path.rpartition(".")[0]].append(path)
    for block, paths in blocks.items():
        attention_too = any(a.path in paths for a in s.attentions)
        yield NO_RESIDUAL(
            "attention" if attention_too else "products",
            block or paths[0],
            words={"names": ", ".join(paths[:3])},
            outside_of_every_residual=paths[:8],
            count=len(paths),
            residual_connections_in_the_model=len(s.residuals),
            shape=list(outside[paths[0]].outputs[0].shape),
        )


def _outside(s: Structure) -> dict[str, Op]:
    """Module -> the first attention or product in it that nothing goes around."""
    lists = {path.rpartition(".")[0] for path in s.block_paths if path[-1:].isdecimal()}
    scopes = lists or s.block_paths
    outside: dict[str, Op] = {}
    for attention in s.attentions:
        out = attention.mix.outputs[0]
        if out not in s.inside_branches and out in s.live and _only_way(s, attention.mix):
            outside.setdefault(attention.path, attention.mix)
    mixes = {a.mix.outputs[0] for a in s.attentions}
    for op in s.trace.ops:
        if op.name not in PRODUCTS or not s.weighted(op) or op.outputs[0] in s.inside_branches:
            continue
        inside = any(within(op.module, scope) for scope in scopes) and bool(scopes)
        if not inside and not _between_attentions(s, op, mixes):
            continue
        if not s.ancestors(op.outputs[0]) & mixes or op.outputs[0] not in s.live:
            continue
        if _cuts(s, op) and not joins_streams(s, op):
            outside.setdefault(op.module, op)
    return outside


def _between_attentions(s: Structure, op: Op, mixes: set[Value]) -> bool:
    """Whether an operation reads one of the attentions' results, ``mixes``, and feeds another."""
    out = op.outputs[0]
    return bool(s.ancestors(out) & mixes) and bool(s.trace.descendants(out) & (mixes - {out}))


def _cuts(s: Structure, op: Op) -> bool:
    """Whether the stream goes through it, and it is no head: what only enters branches (keys of a
    memory, modulations) or is carried to the result cuts nothing."""
    todo, reached = [op.outputs[0]], {op.outputs[0]}
    results, onwards = set(s.results), False
    while todo and not onwards:
        value = todo.pop()
        if value in results:
            return False
        for reader in value.readers:
            for v in reader.outputs:
                if v in reached or v in s.inside_branches:
                    continue
                reached.add(v)
                onwards = onwards or reader.name in PRODUCTS
                todo.append(v)
    onwards = onwards or any(r.stream in reached or r.fork in reached for r in s.residuals)
    return onwards and _only_way(s, op) and _could_be_added(s, op)


def _could_be_added(s: Structure, op: Op) -> bool:
    """Whether the stream is as wide afterwards as before: where patches are merged it is not."""
    out = op.outputs[0]
    before = [r.output for r in s.residuals if r.output in s.ancestors(out)]
    after = [r.fork for r in s.residuals if out in s.ancestors(r.fork)]
    if not before or not after:
        return True
    last, first = (
        max(before, key=lambda v: v.number),
        min(after, key=lambda v: v.number),
    )
    return last.shape == first.shape


def _only_way(s: Structure, op: Op) -> bool:
    """Whether what an operation reads reaches the results through it alone."""
    out = op.outputs[0]
    sources = []
    todo = [v for v in op.inputs if v in s.activations]
    passed = set(todo)
    while todo:  # back to where the stream was last added to, through at most the projections
        value = todo.pop()
        steps = [x for x in s.steps_into(value) if x.kind != "add"]
        before = [x.source for x in steps]
        if not before and value.op is not None and value.op.name in PRODUCTS:
            before = [v for v in factors(value.op) if v in s.activations]
            if any(r.output in before for r in s.residuals) or value in s.inside_branches:
                before = []
        if not before:
            sources.append(value)
        for v in before:
            if v not in passed:
                passed.add(v)
                todo.append(v)
    targets = {v for v in s.results if out in s.ancestors(v)}
    gone = {out}
    reached, todo = set(sources), list(sources)
    while todo:
        for reader in todo.pop().readers:
            for v in reader.outputs:
                if v not in reached and v not in gone:
                    reached.add(v)
                    todo.append(v)
    return bool(targets) and not targets <= reached
