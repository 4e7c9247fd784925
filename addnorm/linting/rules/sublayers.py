"""What branches compute: nothing, one sign only, or what one matrix would."""

from collections import defaultdict

from addnorm.anatomy.structure import LINEAR, PRODUCTS, VIEWS, Residual, Structure, factors
from addnorm.anatomy.trace import Op, Value
from addnorm.linting.check import Answers, decides
from addnorm.linting.rule import Case, Rule
from addnorm.linting.subject import Subject

DEAD = 1e-6  # relative to the stream; randomised branches write 1e-3 and more

# --- the words ------------------------------------------------------------------------------------


def _adds(what: str) -> Case:
    """A case of a branch that adds ``what`` to the stream."""
    return Case(
        "error",
        f"This branch adds {what} although none of its weights is zero: it cannot learn, and its "
        "parameters are useless.",
        "Look for a factor of zero, a mask that drops everything, or an output that was "
        "overwritten.",
    )


DEAD_BRANCH = Rule(
    "dead-branch",
    "a sublayer that adds nothing, or whose result nobody reads",
    family="Branches",
    evidence={
        "branch_over_stream": "the size of what the branch adds, relative to the stream",
        "spread_over_tokens": "how much of it differs from token to token, relative to all of it",
        "computed_and_not_used": "the modules whose results reach no output",
        "count": "how many there are",
    },
    cases={
        "nothing": _adds("nothing"),
        "one vector": _adds("the same vector to every token"),
        "thrown away": Case(
            "error",
            "What {names} computes reaches no output: the branch is computed and thrown away.",
            "Add it to the stream, or remove it.",
        ),
    },
)

ONE_SIGNED_BRANCH = Rule(
    "one-signed-branch",
    "a sublayer that can only add values of one sign",
    family="Branches",
    evidence={
        "smallest": "the smallest value that the branch adds",
        "largest": "the largest",
        "entries": "how many values there are",
    },
    cases={
        "one sign": Case(
            "error",
            "None of the {entries} values that this branch adds is {sign}: it can only push the "
            "stream in one direction, and the stream drifts with depth.",
            "Do not put an activation after the last projection of a branch.",
        ),
    },
)

_NOTHING_BETWEEN = (
    "{first} and {second} follow each other with nothing nonlinear between them: "
    "{widths[0]} -> {widths[1]} -> {widths[2]} amounts to one matrix of "
    "{widths[0]} x {widths[2]}, at the cost of two."
)
_ACTIVATION = "Put the activation (GELU, ReLU, SwiGLU) between them."

LINEAR_MLP = Rule(
    "linear-mlp",
    "two matrices in a row with nothing nonlinear between",
    family="Branches",
    evidence={
        "widths": "the widths before, between and after the two",
        "first": "the module of the first",
        "second": "the module of the second",
    },
    cases={
        "in a branch": Case("error", _NOTHING_BETWEEN, _ACTIVATION),
        "elsewhere": Case("warning", _NOTHING_BETWEEN, _ACTIVATION),
    },
)

# --- how it is measured ---------------------------------------------------------------------------


@decides(DEAD_BRANCH, ONE_SIGNED_BRANCH, LINEAR_MLP)
def branches(subject: Subject) -> Answers:
    """Findings of branches that add nothing, one vector or one sign only, that are thrown away, or
    that have two matrices in a row; the copy's weights are random where they would be constant."""
    s = subject.structure
    for residual in s.residuals:
        b = residual.branch.tensor.detach().double()
        if not bool(residual.stream.tensor.any()):
            continue  # a recurrent state's beginning, not a stream
        relative = residual.share
        rows = b.reshape(-1, b.shape[-1])
        spread = float((rows - rows.mean(0)).norm() / rows.norm().clamp(min=1e-300))
        if relative < DEAD or (spread < DEAD and _varies(residual.fork)):
            yield DEAD_BRANCH(  # the copy's weights are not zero, see ``Specimen``
                "nothing" if relative < DEAD else "one vector",
                _branch_module(s, residual),
                branch_over_stream=relative,
                spread_over_tokens=spread,
            )
        elif float(b.min()) >= 0.0 or float(b.max()) <= 0.0:
            yield ONE_SIGNED_BRANCH(
                "one sign",
                _branch_module(s, residual),
                words={"sign": "negative" if float(b.min()) >= 0.0 else "positive"},
                smallest=float(b.min()),
                largest=float(b.max()),
                entries=b.numel(),
            )
    yield from _thrown_away(s)
    yield from _linear(s)


def _varies(value: Value) -> bool:
    """Whether its vectors differ from token to token: only then must those of a branch."""
    rows = value.tensor.detach().double().reshape(-1, value.shape[-1])
    return len(rows) > 1 and float((rows - rows.mean(0)).norm()) > DEAD * float(rows.norm())


def _branch_module(s: Structure, residual: Residual) -> str:
    """The innermost module around the branch's last product."""
    last = [v.op for v in residual.inside if v.op is not None and v.op.name in PRODUCTS]
    return max(last, key=s.order).module if last else residual.add.module


def _thrown_away(s: Structure) -> Answers:
    """Findings, by block, of attentions and products with weights whose result nobody reads."""
    paths: dict[str, Op] = {}
    for op in s.trace.ops:
        if op.name in PRODUCTS and op.outputs[0] in s.activations and op.outputs[0] not in s.live:
            block = s.block(op.module)
            if block:
                paths.setdefault(op.module, op)
    last: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        last[s.block(path)].append(path)
    for block, inside in last.items():
        yield DEAD_BRANCH(
            "thrown away",
            block,
            words={"names": ", ".join(inside[:3])},
            computed_and_not_used=inside[:8],
            count=len(inside),
        )


def _linear(s: Structure) -> Answers:
    """Findings of two products with weights in a row and nothing nonlinear between, unless the
    inner width says that a factorized matrix is meant."""
    for op in s.trace.ops:
        if op.name not in PRODUCTS or not s.weighted(op) or op.outputs[0] not in s.live:
            continue
        out = op.outputs[0]
        ends, mixed = [], False
        for value in s.carried_on(out):
            for step in s.steps_from.get(value, ()):
                mixed = mixed or step.kind in ("norm", "gate", "add")
            for reader in value.readers:
                if not any(v in s.live for v in reader.outputs):
                    continue
                if reader.name in PRODUCTS:
                    ends.append((reader, value))
                elif reader.name not in _CARRYING:
                    mixed = True
        seconds = [r for r, v in ends if s.weighted(r)]
        if mixed or len(seconds) != len(ends) or len({s.order(r) for r in seconds}) != 1:
            continue
        second = seconds[0]
        first_widths, second_widths = _widths(s, op), _widths(s, second)
        if first_widths is None or second_widths is None:
            continue
        (start, hidden), (read, end) = first_widths, second_widths
        if read != hidden:
            continue
        if hidden < min(start, end):
            continue  # a factorized matrix: fewer parameters, on purpose
        in_branch = out in s.inside_branches and second.outputs[0] in s.inside_branches
        yield LINEAR_MLP(
            "in a branch" if in_branch else "elsewhere",
            _common_path(op.module, second.module),
            widths=[start, hidden, end],
            first=op.module,
            second=second.module,
        )


_CARRYING = PRODUCTS | LINEAR | VIEWS | {"mul", "div", "alias"}


def _widths(s: Structure, op: Op) -> tuple[int, int] | None:
    """(in, out) of a product with weights; None: it is no plain matrix, such as a convolution over
    several places."""
    pair = factors(op)
    if op.name.endswith("convolution"):
        weight = pair[1]
        pointwise = all(n == 1 for n in weight.shape[2:]) and weight not in s.activations
        return (weight.shape[1], weight.shape[0]) if pointwise else None
    if len(pair) != 2 or any(len(v.shape) < 2 for v in pair):
        return None
    if pair[0] in s.activations:
        return pair[1].shape[-2], pair[1].shape[-1]
    return pair[0].shape[-1], pair[0].shape[-2]


def _common_path(a: str, b: str) -> str:
    """The path of the innermost module around both."""
    left, right = a.split("."), b.split(".")
    depth = 0
    while depth < min(len(left), len(right)) and left[depth] == right[depth]:
        depth += 1
    return ".".join(left[:depth])
