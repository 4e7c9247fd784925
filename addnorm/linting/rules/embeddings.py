"""Embeddings: whether head and embedding are one tensor, and what is done to ids before them."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from addnorm.anatomy.structure import LOOKUPS, PRODUCTS, Step, Structure, factors, uniform
from addnorm.anatomy.trace import Op, Value
from addnorm.linting.check import Answers, decides
from addnorm.linting.findings import Finding
from addnorm.linting.rule import Case, Rule
from addnorm.linting.subject import Subject

# --- the words ------------------------------------------------------------------------------------

_TIE = "head.weight = embedding.weight, after loading and after any .to() or copy of one of them."

TIES = Rule(
    "untied-weights",
    "embedding and head that should be one tensor and are two",
    family="Parameters and their initialization",
    evidence={
        "embedding": "the table that ids are looked up in",
        "head": "the matrix that makes the logits",
        "largest_difference": "between an element of one and the same of the other",
        "declared_tied": "whether the configuration says that they are one",
    },
    cases={
        "copied": Case(
            "error",
            "{head} has the same values as {embedding} but is a separate tensor: the weights were "
            "copied, not shared, and the first step pulls them apart.",
            _TIE,
        ),
        "declared": Case(
            "error",
            "The configuration says that {head} and {embedding} are tied; they are two tensors "
            "with different numbers.",
            _TIE,
        ),
    },
)

ON_IDS = Rule(
    "positions-on-ids",
    "positions are added to token ids before they are looked up",
    family="Who sees whom",
    evidence={
        "added_from": "the smallest number that is added",
        "added_to": "the largest",
        "shape": "of what is added",
        "largest_id": "the largest id in the inputs",
    },
    cases={
        "added": Case(
            "error",
            "Numbers from {added_from:.3g} to {added_to:.3g} are added to the token ids before "
            "{reader} reads them: token 5 at position 2 becomes token 7 at position 0. Ids are "
            "names, not amounts.",
            "Look the ids up first, then add the position codes to the vectors.",
        ),
    },
)

# --- head and embedding ---------------------------------------------------------------------------


@decides(TIES)
def ties(subject: Subject) -> Answers:
    """Findings of pairs of an embedding and a head that are copies of each other, or should be one
    tensor and are two; by the weights of the user's model."""
    s = subject.structure
    parameters = dict(subject.original.named_parameters(remove_duplicate=False))
    tables = {name for name in s.tables if name in parameters}
    config = getattr(subject.original, "config", None)
    declared = bool(getattr(config, "tie_word_embeddings", False))
    for head in sorted(_heads(s) & set(parameters)):
        for table in sorted(tables - {head}):
            a, b = parameters[table], parameters[head]
            if a.shape != b.shape or a is b or a.data_ptr() == b.data_ptr():
                continue
            equal = torch.equal(a, b) and not uniform(a)
            if not equal and not (declared and _is_claimed(subject.original, a, b)):
                continue
            yield TIES(
                "copied" if equal else "declared",
                head.rpartition(".")[0],
                embedding=table,
                head=head,
                largest_difference=float((a.detach() - b.detach()).abs().max()),
                declared_tied=declared,
            )


def _is_claimed(model: nn.Module, table: Tensor, head: Tensor) -> bool:
    """Whether ``table`` and ``head`` are what the model itself calls its input and output
    embeddings, as models of transformers do; False where it does not say."""
    weights = []
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        try:
            module = getattr(model, getter)()
        except (AttributeError, NotImplementedError, TypeError):
            return False
        weights.append(getattr(module, "weight", None))
    return weights[0] is table and weights[1] is head


def _heads(s: Structure) -> set[str]:
    """The names of the weights of products that are carried to a result."""
    names: set[str] = set()
    for result in s.results:
        for value in s.carried(result):
            if value.op is not None and value.op.name in PRODUCTS and s.weighted(value.op):
                names |= s.weights(value.op)
    return names


# --- ids ------------------------------------------------------------------------------------------


@decides(ON_IDS)
def positions(subject: Subject) -> Answers:
    """The finding that something is added to token ids before they are looked up; of the first such
    place only."""
    s = subject.structure
    ids = [v for v in s.trace.inputs if not v.tensor.is_floating_point()]
    ids = [v for v in ids if v.tensor.dtype != torch.bool]
    for op, index in _lookups(s):
        carried = s.carried(index)
        for source in ids:
            for step in s.way(source, index) if source in carried else ():
                other = _varying(step)
                if step.op is not None and other is not None:
                    yield _added(op.module, step.op.module, source, other)
                    return


def _lookups(s: Structure) -> Iterator[tuple[Op, Value]]:
    """(operation, what picks) of each place where something computed picks rows of a table, or
    multiplies a matrix, as one-hot vectors do."""
    for op in s.trace.ops:
        if op.name in LOOKUPS and op.inputs[0] not in s.activations:
            if len(op.inputs) > 1:
                yield op, op.inputs[1]
        elif op.name in PRODUCTS and s.weighted(op):
            index = next((v for v in factors(op) if v in s.activations), None)
            if index is not None:
                yield op, index


def _varying(step: Step) -> Value | None:
    """What a step adds or multiplies, if that is not one number throughout; else None."""
    if step.op is None or step.op.name not in ("add", "sub", "mul"):
        return None
    others = [v for v in step.op.inputs if v is not step.source]
    return next((v for v in others if v.tensor.numel() > 1 and not uniform(v.tensor)), None)


def _added(reader: str, at: str, source: Value, other: Value) -> Finding:
    """The finding: the module ``at`` adds ``other`` to the ids ``source``, and the module
    ``reader`` looks up the sum."""
    t = other.tensor.detach().double()
    return ON_IDS(
        "added",
        at or reader,
        words={"reader": reader or "the model"},
        added_from=float(t.min()),
        added_to=float(t.max()),
        shape=list(other.shape),
        largest_id=float(source.tensor.max()),
    )
