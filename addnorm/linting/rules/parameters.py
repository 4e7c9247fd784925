"""Parameters: which are read, which learn, which are copies, and which are made in forward."""

import copy
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from addnorm.anatomy.structure import uniform
from addnorm.anatomy.trace import record
from addnorm.linting.check import Check, Said
from addnorm.linting.report import Finding
from addnorm.linting.subject import Subject
from addnorm.temporary import hooked


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


CHECKS = (
    Check(("unused-parameter", "unused-norm"), unused),
    Check(("identical-layers",), copies),
    Check(("module-in-forward",), made_in_forward),
)
