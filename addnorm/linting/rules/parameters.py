"""Parameters: which are read, which learn, which are copies, and which are made in forward."""

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from addnorm.anatomy.structure import uniform
from addnorm.anatomy.towers import Towers
from addnorm.anatomy.trace import record
from addnorm.linting.check import Answers, decides
from addnorm.linting.findings import Finding
from addnorm.linting.rule import Case, Rule
from addnorm.linting.subject import Subject
from addnorm.temporary import fixed_seed, hooked
from addnorm.words import a_few

# --- the words ------------------------------------------------------------------------------------

FAMILY = "Parameters and their initialization"
_CALL_IT = "Call it where it belongs, or remove it."

UNUSED = Rule(
    "unused-parameter",
    "a parameter that the forward never reads, or that gets no gradient",
    family=FAMILY,
    evidence={
        "parameters": "those of one module",
        "numbers": "how many numbers they hold",
        "read_by_the_forward": "whether they are read, and only get no gradient",
    },
    cases={
        "never read": Case(
            "warning",
            "The forward never reads {few}: {numbers} numbers are saved, sent between processes "
            "and decayed for nothing, and DDP waits for their gradient.",
            _CALL_IT,
        ),
        "read in training": Case(
            "note",
            "Read in training only: {few}.",
            "Nothing, if it is intended (masking, distillation).",
        ),
        "no gradient": Case(
            "warning",
            "The forward reads {few}, but no output has a gradient with respect to {them}: never "
            "trained.",
            "Look for detach(), no_grad(), argmax, a result that is thrown away, or freeze it on "
            "purpose with requires_grad_(False).",
        ),
    },
)

UNUSED_NORM = Rule(
    "unused-norm",
    "a norm that is built and never called",
    family="The residual stream",
    evidence={"parameters": "the norm's", "numbers": "how many numbers they hold"},
    cases={
        "never called": Case(
            "error",
            "{module} is a norm that the forward never calls: what it should normalize is not.",
            _CALL_IT,
        ),
    },
)

IDENTICAL = Rule(
    "identical-layers",
    "layers that start with the same random numbers",
    family=FAMILY,
    evidence={
        "like": "the first of the layers",
        "copies": "those that are like it",
        "numbers_equal": "how many numbers each has in common with it",
    },
    cases={
        "copies": Case(
            "warning",
            "{members} members of {stack} start with the same {numbers_equal} numbers (deep copies "
            "of one, as torch.nn.TransformerEncoder makes them): each is random, but not "
            "independent of the others, and that slows the beginning of training.",
            "Initialize the parameters again after building the stack: for p in "
            "model.parameters(): if p.dim() > 1: nn.init.xavier_uniform_(p).",
        ),
    },
)

IN_FORWARD = Rule(
    "module-in-forward",
    "a module made again in every forward",
    family=FAMILY,
    evidence={
        "parameters_made_in_one_forward": "how many there are",
        "which": "the first of them, with class and shape",
        "parameters_before": "how many the model has before it is called",
        "parameters_after": "how many after one call",
    },
    cases={
        "made": Case(
            "error",
            "Every forward of {where} makes new parameters ({few}): they are random each time, no "
            "optimizer knows them, and nothing of them is saved.",
            "Make the module in __init__ and call it in forward.",
        ),
    },
)

# --- what is read ---------------------------------------------------------------------------------


@decides(UNUSED, UNUSED_NORM)
def unused(subject: Subject) -> Answers:
    """Findings, by module, of parameters that the forward never reads, or that get no gradient."""
    model, read = subject.model, subject.structure.trace.parameters()
    shared = {id(p) for n, p in model.named_parameters() if n in read}  # a tied one has two names
    unread = [n for n, p in model.named_parameters() if n not in read and id(p) not in shared]
    towers = Towers(model, subject.inputs, unread)
    for path in towers.paths:
        why = f"{path} does not run: it may wait for {a_few(towers.inputs, 3)}, which was not given"
        yield UNUSED.unknown(why, path)
        yield UNUSED_NORM.unknown(why, path)
    missing = [name for name in unread if not towers.explain(name)]
    in_training = _read_in_training(subject) if missing else set()
    for owner, names in _by_owner(missing).items():
        parameters = [model.get_parameter(n) for n in names]
        evidence: dict[str, Any] = {
            "parameters": names,
            "numbers": sum(p.numel() for p in parameters),
        }
        few = {"few": ", ".join(names[:3])}
        if all(n in in_training for n in names):
            yield UNUSED("read in training", owner, words=few, **evidence)
        elif _normalizes(model.get_submodule(owner), parameters):
            yield UNUSED_NORM("never called", owner, **evidence)
        else:
            yield UNUSED("never read", owner, words=few, **evidence)
    yield from _without_gradient(subject, set(unread))


def _by_owner(names: Iterable[str]) -> dict[str, list[str]]:
    """The path of a module -> those of these parameters that are its own."""
    owners: dict[str, list[str]] = defaultdict(list)
    for name in names:
        owners[name.rpartition(".")[0]].append(name)
    return owners


def _read_in_training(subject: Subject) -> set[str]:
    """The names of parameters that a forward in training mode reads; none where it does not run."""
    model = copy.deepcopy(subject.model).train()
    try:
        with fixed_seed():
            return record(lambda: subject.inputs.call(model), model).parameters()
    except (RuntimeError, ValueError, TypeError, IndexError):
        return set()


def _normalizes(module: nn.Module, parameters: list[nn.Parameter]) -> bool:
    """Whether a module that was never called would normalize rows of its width, by calling a copy.
    ``parameters`` are its own; False where it cannot be told."""
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


def _without_gradient(subject: Subject, unread: set[str]) -> Iterator[Finding]:
    """Findings, by module, of parameters that are read, but that no output depends on
    differentiably; ``unread`` are the names of those that are not."""
    s = subject.structure
    outs = [t for t in s.trace.outputs if t.requires_grad and t.is_floating_point()]
    trained = {
        n: p for n, p in subject.model.named_parameters() if p.requires_grad and n not in unread
    }
    if not outs or not trained:
        return
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(o.shape, generator=generator).to(o) for o in outs]
    grads = torch.autograd.grad(
        outs, [*trained.values()], cotangents, allow_unused=True, retain_graph=True
    )
    without = [name for name, grad in zip(trained, grads, strict=True) if grad is None]
    for owner, names in _by_owner(without).items():
        words = {"few": ", ".join(names[:3]), "them": "it" if len(names) == 1 else "them"}
        yield UNUSED("no gradient", owner, words=words, parameters=names, read_by_the_forward=True)


# --- copies ---------------------------------------------------------------------------------------


@decides(IDENTICAL)
def copies(subject: Subject) -> Answers:
    """Findings of lists of modules of one class that start with the same random numbers."""
    siblings: dict[tuple[str, type], list[tuple[str, nn.Module]]] = defaultdict(list)
    for path, module in subject.original.named_modules():
        parent, _, last = path.rpartition(".")
        if last.isdecimal() and any(p.dim() > 1 for p in module.parameters()):
            siblings[parent, type(module)].append((path, module))
    for (parent, _), members in siblings.items():
        first, model = members[0]
        same = [
            path
            for path, module in members[1:]
            if module is not model and _has_equal_weights(model, module)
        ]
        if same:
            yield IDENTICAL(
                "copies",
                parent,
                words={"members": len(same) + 1, "stack": parent or "the model"},
                like=first,
                copies=same,
                numbers_equal=sum(p.numel() for p in model.parameters()),
            )


def _has_equal_weights(a: nn.Module, b: nn.Module) -> bool:
    """Whether the two have the same random numbers in parameters of their own; those that are one
    number throughout, and tied ones, show nothing."""
    left, right = dict(a.named_parameters()), dict(b.named_parameters())
    random = [n for n, p in left.items() if p.numel() > 1 and not uniform(p)]
    return (
        bool(random)
        and left.keys() == right.keys()
        and all(left[n] is not right[n] for n in random)
        and all(left[n].shape == right[n].shape and torch.equal(left[n], right[n]) for n in random)
    )


# --- made in forward ------------------------------------------------------------------------------


@decides(IN_FORWARD)
def made_in_forward(subject: Subject) -> Answers:
    """Findings, by module, of parameters that are made in the second forward: lazy modules make
    theirs in the first."""
    owners: dict[str, list[str]] = defaultdict(list)
    stack: list[str] = []

    def born(module: nn.Module, name: str, parameter: Any) -> None:
        if isinstance(parameter, Tensor):
            tensor = f"{type(module).__name__}.{name}{list(parameter.shape)}"
            owners[stack[-1] if stack else ""].append(tensor)

    model = copy.deepcopy(subject.model)
    paths = {module: path for path, module in model.named_modules()}

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        stack.append(paths[module])

    def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        stack.pop()

    before = len(list(model.parameters()))
    with hooked(paths, before=enter, after=leave), fixed_seed(), torch.no_grad():
        subject.inputs.call(model)  # lazy modules make theirs once
        after = len(list(model.parameters()))
        with register_module_parameter_registration_hook(born):
            subject.inputs.call(model)
    for path, tensors in owners.items():
        yield IN_FORWARD(
            "made",
            path,
            words={"where": path or "the model", "few": ", ".join(tensors[:2])},
            parameters_made_in_one_forward=len(tensors),
            which=tensors[:6],
            parameters_before=before,
            parameters_after=after,
        )
