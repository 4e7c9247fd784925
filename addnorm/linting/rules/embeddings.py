"""Embeddings: whether head and embedding are one tensor, and what is done to ids before them."""

import torch
from torch import Tensor, nn

from addnorm.anatomy.structure import LOOKUPS, PRODUCTS, Structure, factors, uniform
from addnorm.anatomy.trace import Value
from addnorm.linting.check import Check, Said
from addnorm.linting.report import Finding
from addnorm.linting.subject import Subject


def ties(subject: Subject) -> Said:
    """untied-weights: an embedding and a head that are copies of each other, or should be one."""
    s = subject.structure
    named = dict(subject.original.named_parameters(remove_duplicate=False))
    tables = {name for name in s.tables if name in named}
    heads = _heads(s)
    config = getattr(subject.original, "config", None)
    wanted = bool(getattr(config, "tie_word_embeddings", False))
    for head in sorted(heads & set(named)):
        for table in sorted(tables - {head}):
            a, b = named[table], named[head]
            if a.shape != b.shape or a is b or a.data_ptr() == b.data_ptr():
                continue
            equal = torch.equal(a, b) and not uniform(a)
            if not equal and not (wanted and _is_claimed(subject.original, a, b)):
                continue
            apart = float((a.detach() - b.detach()).abs().max())
            yield Finding(
                rule="untied-weights",
                severity="error",
                module=head.rpartition(".")[0],
                evidence={
                    "embedding": table,
                    "head": head,
                    "largest_difference": apart,
                    "declared_tied": wanted,
                },
                message=(
                    f"{head} has the same values as {table} but is a separate tensor: the weights "
                    "were copied, not shared, and the first step pulls them apart."
                    if equal
                    else f"The configuration says that {head} and {table} are tied; they are two "
                    "tensors with different numbers."
                ),
                remedy="head.weight = embedding.weight, after loading and after any .to() or "
                "copy of one of them.",
            )


def _is_claimed(model: nn.Module, table: Tensor, head: Tensor) -> bool:
    """Whether these two are what the model itself calls its input and output embeddings."""
    found = []
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        try:
            module = getattr(model, getter)()
        except (AttributeError, NotImplementedError, TypeError):
            return False
        found.append(getattr(module, "weight", None))
    return found[0] is table and found[1] is head


def _heads(s: Structure) -> set[str]:
    """The weights of products that are carried to a result."""
    found: set[str] = set()
    for result in s.results:
        for value in s.carried(result):
            if value.op is not None and value.op.name in PRODUCTS and s.weighted(value.op):
                found |= s.weights(value.op)
    return found


def positions(subject: Subject) -> Said:
    """positions-on-ids: something is added to token numbers before they are looked up."""
    s = subject.structure
    ids = [v for v in s.trace.inputs if not v.tensor.is_floating_point()]
    ids = [v for v in ids if v.tensor.dtype != torch.bool]
    for op in s.trace.ops:
        if op.name in LOOKUPS and op.inputs[0] not in s.activations:
            index = op.inputs[1] if len(op.inputs) > 1 else None
        elif op.name in PRODUCTS and s.weighted(op):
            index = next((v for v in factors(op) if v in s.activations), None)
        else:
            continue
        if index is None:
            continue
        for source in ids:
            carried = s.carried(index)
            if source not in carried:
                continue
            way = s.way(source, index)
            for step in way:
                if step.op is None or step.op.name not in ("add", "sub", "mul"):
                    continue
                others = [v for v in step.op.inputs if v is not step.source]
                varying = [v for v in others if v.tensor.numel() > 1 and not uniform(v.tensor)]
                if varying:
                    yield _added(s, op.module, step.op.module, source, varying[0])
                    return


def _added(s: Structure, reader: str, at: str, source: Value, other: Value) -> Finding:
    t = other.tensor.detach().double()
    return Finding(
        rule="positions-on-ids",
        severity="error",
        module=at or reader,
        evidence={
            "added_from": float(t.min()),
            "added_to": float(t.max()),
            "shape": list(other.shape),
            "largest_id": float(source.tensor.max()),
        },
        message=f"Numbers from {float(t.min()):.3g} to {float(t.max()):.3g} are added to the token "
        f"ids before {reader or 'the model'} reads them: token 5 at position 2 becomes token 7 at "
        "position 0. Ids are names, not amounts.",
        remedy="Look the ids up first, then add the position codes to the vectors.",
    )


CHECKS = (Check(("untied-weights",), ties), Check(("positions-on-ids",), positions))
