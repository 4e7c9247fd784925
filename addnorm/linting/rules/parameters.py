"""Parameters: which are read, which learn, which are copies, and what the optimizer does."""

import copy
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from addnorm.anatomy.structure import LOOKUPS, PRODUCTS, Structure, factors, uniform
from addnorm.anatomy.trace import Value, record
from addnorm.linting.check import Check, Said
from addnorm.linting.report import Finding
from addnorm.linting.subject import Subject
from addnorm.temporary import hooked

OPTIMIZER_RULES = (
    "decay-on-norm",
    "not-in-optimizer",
    "duplicated-in-optimizer",
    "frozen-in-optimizer",
)


def unused(subject: Subject) -> Said:
    """unused-parameter and unused-norm: what the forward never reads, or what gets no gradient."""
    s = subject.structure
    read = s.trace.parameters()
    missing = [n for n, p in subject.model.named_parameters() if n not in read]
    known = {id(p) for n, p in subject.model.named_parameters() if n in read}
    missing = [n for n in missing if id(subject.model.get_parameter(n)) not in known]
    training = _read_in_training(subject) if missing else set()
    owners: dict[str, list[str]] = defaultdict(list)
    for name in missing:
        owners[name.rpartition(".")[0]].append(name)
    for owner, names in owners.items():
        module = subject.model.get_submodule(owner)
        count = sum(subject.model.get_parameter(n).numel() for n in names)
        norm = _normalizes(module, [subject.model.get_parameter(n) for n in names])
        late = all(n in training for n in names)
        if late:
            yield Finding(
                rule="unused-parameter",
                severity="note",
                module=owner,
                evidence={"parameters": names, "numbers": count},
                message=f"Read in training only: {', '.join(names[:3])}.",
                remedy="Nothing, if it is intended (masking, distillation).",
            )
            continue
        yield Finding(
            rule="unused-norm" if norm else "unused-parameter",
            severity="error" if norm else "warning",
            module=owner,
            evidence={"parameters": names, "numbers": count},
            message=(
                f"{owner} is a norm that the forward never calls: what it should normalize is not."
                if norm
                else f"The forward never reads {', '.join(names[:3])}: {count} numbers are saved, "
                "sent between processes and decayed for nothing, and DDP waits for their gradient."
            ),
            remedy="Call it where it belongs, or remove it.",
        )
    yield from _without_gradient(subject, set(missing))


def _read_in_training(subject: Subject) -> set[str]:
    """The parameters that a forward in training mode reads."""
    model = copy.deepcopy(subject.model).train()
    try:
        with torch.random.fork_rng(devices=[]):
            return record(lambda: subject.inputs.call(model), model).parameters()
    except (RuntimeError, ValueError, TypeError, IndexError):
        return set()


def _normalizes(module: nn.Module, parameters: list[nn.Parameter]) -> bool:
    """Whether a module that was never called would normalize rows of its width."""
    if any(p.dim() != 1 for p in parameters) or list(module.children()):
        return False
    width = max(p.numel() for p in parameters)
    x = torch.randn(4, 3, width, generator=torch.Generator().manual_seed(0)).to(parameters[0])
    probe = copy.deepcopy(module).eval()
    try:
        with torch.no_grad():
            for p in probe.parameters():
                p.zero_()
            shift = probe(x)
            for p in probe.parameters():
                p.fill_(1.0)
            small, large = probe(x) - shift, probe(x * 100.0) - shift
    except (RuntimeError, TypeError, ValueError):
        return False
    if not isinstance(small, Tensor) or small.shape != x.shape:
        return False
    return bool(torch.allclose(small, large, rtol=1e-2, atol=1e-3)) and float(small.std()) > 0.1


def _without_gradient(subject: Subject, missing: set[str]) -> Iterator[Finding]:
    """Parameters that are read, but that no output depends on differentiably."""
    s = subject.structure
    outs = [t for t in s.trace.outputs if t.requires_grad and t.is_floating_point()]
    named = [
        (n, p) for n, p in subject.model.named_parameters() if p.requires_grad and n not in missing
    ]
    if not outs or not named:
        return
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(o.shape, generator=generator).to(o) for o in outs]
    grads = torch.autograd.grad(
        outs, [p for _, p in named], cotangents, allow_unused=True, retain_graph=True
    )
    owners: dict[str, list[str]] = defaultdict(list)
    for (name, _), grad in zip(named, grads, strict=True):
        if grad is None:
            owners[name.rpartition(".")[0]].append(name)
    for owner, names in owners.items():
        yield Finding(
            rule="unused-parameter",
            severity="warning",
            module=owner,
            evidence={"parameters": names, "read_by_the_forward": True},
            message=f"The forward reads {', '.join(names[:3])}, but no output has a gradient with "
            f"respect to {'it' if len(names) == 1 else 'them'}: never trained.",
            remedy="Look for detach(), no_grad(), argmax, a result that is thrown away, or freeze "
            "it on purpose with requires_grad_(False).",
        )


def copies(subject: Subject) -> Said:
    """identical-layers: siblings that start with the same random numbers."""
    model = subject.original
    groups: dict[tuple[str, type], list[tuple[str, nn.Module]]] = defaultdict(list)
    for path, module in model.named_modules():
        parent, _, last = path.rpartition(".")
        if last.isdecimal() and any(p.dim() > 1 for p in module.parameters()):
            groups[parent, type(module)].append((path, module))
    for (parent, _), members in groups.items():
        same = [
            path
            for path, module in members[1:]
            if module is not members[0][1] and _same_numbers(members[0][1], module)
        ]
        if not same:
            continue
        numbers = sum(p.numel() for p in members[0][1].parameters())
        yield Finding(
            rule="identical-layers",
            severity="warning",
            module=parent,
            evidence={"like": members[0][0], "copies": same, "numbers_equal": numbers},
            message=f"{len(same) + 1} members of {parent or 'the model'} start with the same "
            f"{numbers} numbers (deep copies of one, as torch.nn.TransformerEncoder makes them): "
            "each is random, but not independent of the others, and that slows the beginning of "
            "training.",
            remedy="Initialize the parameters again after building the stack: for p in "
            "model.parameters(): if p.dim() > 1: nn.init.xavier_uniform_(p).",
        )


def _same_numbers(a: nn.Module, b: nn.Module) -> bool:
    left, right = dict(a.named_parameters()), dict(b.named_parameters())
    random = [n for n, p in left.items() if p.numel() > 1 and not uniform(p)]
    return (
        bool(random)
        and left.keys() == right.keys()
        and all(left[n] is not right[n] for n in random)
        and all(left[n].shape == right[n].shape and torch.equal(left[n], right[n]) for n in random)
    )


def made_in_forward(subject: Subject) -> Said:
    """module-in-forward: parameters that are born while the model runs."""
    owners: dict[str, list[str]] = defaultdict(list)
    stack: list[str] = []

    def born(module: nn.Module, name: str, parameter: Any) -> None:
        if isinstance(parameter, Tensor):
            made = f"{type(module).__name__}.{name}{list(parameter.shape)}"
            owners[stack[-1] if stack else ""].append(made)

    model = copy.deepcopy(subject.model)
    paths = {module: path for path, module in model.named_modules()}

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        stack.append(paths[module])

    def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        stack.pop()

    before = len(list(model.parameters()))
    inside = hooked(paths, before=enter, after=leave)
    with inside, torch.random.fork_rng(devices=[]), torch.no_grad():
        subject.inputs.call(model)  # lazy modules make theirs once
        again = len(list(model.parameters()))
        with register_module_parameter_registration_hook(born):
            subject.inputs.call(model)
    for path, made in owners.items():
        yield Finding(
            rule="module-in-forward",
            severity="error",
            module=path,
            evidence={
                "parameters_made_in_one_forward": len(made),
                "which": made[:6],
                "parameters_before": before,
                "parameters_after": again,
            },
            message=f"Every forward of {path or 'the model'} makes new parameters "
            f"({', '.join(made[:2])}): they are random each time, no optimizer knows them, and "
            "nothing of them is saved.",
            remedy="Make the module in __init__ and call it in forward.",
        )


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


def optimizer(subject: Subject) -> Said:
    """decay-on-norm, not-in-optimizer, duplicated-in-optimizer, frozen-in-optimizer."""
    given = subject.optimizer
    if given is None:
        return
    names = {id(p): n for n, p in subject.original.named_parameters()}
    held: dict[int, int] = defaultdict(int)
    strangers, frozen = 0, []
    decayed: list[str] = []
    biases: list[str] = []
    norms = _norm_parameters(subject)
    decay = 0.0
    for group in given.param_groups:
        for p in group["params"]:
            held[id(p)] += 1
            name = names.get(id(p))
            if name is None:
                strangers += 1
                continue
            if not p.requires_grad:
                frozen.append(name)
            if group.get("weight_decay", 0.0) and held[id(p)] == 1:
                decay = float(group["weight_decay"])
                if name in norms:
                    decayed.append(name)
                elif p.dim() == 1 and name.endswith("bias"):
                    biases.append(name)
    if decayed:
        yield Finding(
            rule="decay-on-norm",
            severity="warning",
            module=decayed[0].rpartition(".")[0],
            evidence={
                "weight_decay": decay,
                "norm_parameters_decayed": len(decayed),
                "biases_decayed": len(biases),
                "first": decayed[:6],
            },
            message=f"{len(decayed)} gains and biases of norms are decayed towards zero with "
            f"{decay:g}. They do not regularize anything there: a smaller gain is undone by the "
            "next matrix or shrinks the branch.",
            remedy="Use two parameter groups: weight_decay=0 for everything of one dimension.",
        )
    trainable = {n: p for n, p in subject.original.named_parameters() if p.requires_grad}
    missing = [n for n, p in trainable.items() if id(p) not in held]
    if missing or strangers:
        part = len(missing) / max(len(trainable), 1)
        yield Finding(
            rule="not-in-optimizer",
            severity="warning" if part > 0.5 and not strangers else "error",
            module=missing[0].rpartition(".")[0] if missing else "",
            evidence={
                "missing": missing[:8],
                "missing_count": len(missing),
                "of": len(trainable),
                "in_the_optimizer_but_not_in_the_model": strangers,
            },
            message=(
                f"{len(missing)} of {len(trainable)} trainable parameters are in no group "
                f"({', '.join(missing[:3])}): they keep their initial values."
                if missing
                else ""
            )
            + (
                f" {strangers} tensors in the optimizer do not belong to this model: the optimizer "
                "was made before the model was changed, wrapped or copied."
                if strangers
                else ""
            ),
            remedy="Make the optimizer last, from this model's parameters; freeze what should "
            "stay with requires_grad_(False).",
        )
    twice = [names.get(key, "?") for key, count in held.items() if count > 1]
    if twice:
        yield Finding(
            rule="duplicated-in-optimizer",
            severity="error",
            module=twice[0].rpartition(".")[0],
            evidence={"parameters": twice[:8], "count": len(twice)},
            message=f"In the optimizer more than once: {', '.join(twice[:3])}. Every step updates "
            "it as many times.",
            remedy="Collect parameters by identity: model.parameters() yields each once.",
        )
    if frozen:
        yield Finding(
            rule="frozen-in-optimizer",
            severity="warning",
            module=frozen[0].rpartition(".")[0],
            evidence={"parameters": frozen[:8], "count": len(frozen)},
            message=f"{len(frozen)} frozen parameters are in the optimizer: they get no gradient, "
            "and if they are unfrozen later, they start without momentum.",
            remedy="Give the optimizer [p for p in model.parameters() if p.requires_grad].",
        )


def _norm_parameters(subject: Subject) -> set[str]:
    """The gains and biases of norms, found where they are applied."""
    s = subject.structure
    found = {name for norm in s.norms for name in norm.parameters}
    own = dict(subject.original.named_parameters())
    return {n for n in found if n in own and own[n].squeeze().dim() <= 1}


CHECKS = (
    Check(("unused-parameter", "unused-norm"), unused),
    Check(("identical-layers",), copies),
    Check(("module-in-forward",), made_in_forward),
    Check(("untied-weights",), ties),
    Check(("positions-on-ids",), positions),
    Check(OPTIMIZER_RULES, optimizer),
)
