"""The groups of an optimizer: what they decay, and which parameters they miss or have twice."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import final

from torch.optim import Optimizer

from addnorm.linting.check import Answers, on_optimizer
from addnorm.linting.findings import Finding
from addnorm.linting.rule import Case, Rule
from addnorm.linting.subject import Subject

# --- the words ------------------------------------------------------------------------------------

FAMILY = "The optimizer (give it to `lint`)"

DECAY = Rule(
    "decay-on-norm",
    "weight decay on the gains and biases of norms",
    family=FAMILY,
    evidence={
        "weight_decay": "the decay of their group",
        "norm_parameters_decayed": "how many gains and biases of norms are decayed",
        "biases_decayed": "how many biases of other modules are",
        "first": "the first of these parameters of norms",
    },
    cases={
        "decayed": Case(
            "warning",
            "{norm_parameters_decayed} gains and biases of norms are decayed towards zero with "
            "{weight_decay:g}. They do not regularize anything there: a smaller gain is undone by "
            "the next matrix or shrinks the branch.",
            "Use two parameter groups: weight_decay=0 for everything of one dimension.",
        ),
    },
)

_MISSING = (
    "{missing_count} of {of} trainable parameters are in no group ({few}): they keep their initial "
    "values."
)
_FOREIGN = (
    "{in_the_optimizer_but_not_in_the_model} tensors in the optimizer do not belong to this model: "
    "the optimizer was made before the model was changed, wrapped or copied."
)
_LAST = (
    "Make the optimizer last, from this model's parameters; freeze what should stay with "
    "requires_grad_(False)."
)

MISSING = Rule(
    "not-in-optimizer",
    "trainable parameters that no optimizer group holds",
    family=FAMILY,
    evidence={
        "missing": "the first of the trainable parameters that are in no group",
        "missing_count": "how many there are",
        "of": "how many parameters are trainable",
        "in_the_optimizer_but_not_in_the_model": "how many tensors of the groups are not of the "
        "model",
    },
    cases={
        "some": Case("error", _MISSING, _LAST),
        "most": Case("warning", _MISSING, _LAST),
        "foreign": Case("error", _FOREIGN, _LAST),
        "some, and foreign": Case("error", f"{_MISSING} {_FOREIGN}", _LAST),
    },
)

TWICE = Rule(
    "duplicated-in-optimizer",
    "a parameter that the optimizer holds twice",
    family=FAMILY,
    evidence={"parameters": "the first of them", "count": "how many there are"},
    cases={
        "twice": Case(
            "error",
            "In the optimizer more than once: {few}. Every step updates it as many times.",
            "Collect parameters by identity: model.parameters() yields each once.",
        ),
    },
)

FROZEN = Rule(
    "frozen-in-optimizer",
    "frozen parameters in the optimizer",
    family=FAMILY,
    evidence={"parameters": "the first of them", "count": "how many there are"},
    cases={
        "frozen": Case(
            "warning",
            "{count} frozen parameters are in the optimizer: they get no gradient, and if they are "
            "unfrozen later, they start without momentum.",
            "Give the optimizer [p for p in model.parameters() if p.requires_grad].",
        ),
    },
)

# --- the groups -----------------------------------------------------------------------------------


@final
@dataclass
class _Groups:
    """What the groups of an optimizer hold, by the names in the model."""

    times: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """The id of a tensor, and how often it is there."""
    foreign: int = 0
    """How many tensors are not of the model."""
    frozen: list[str] = field(default_factory=list)
    decay: float = 0.0
    """The weight decay of the last group that has any."""
    decayed_norms: list[str] = field(default_factory=list)
    decayed_biases: list[str] = field(default_factory=list)
    """Those of other modules than norms."""


@on_optimizer(DECAY, MISSING, TWICE, FROZEN)
def groups_and_model(optimizer: Optimizer, subject: Subject) -> Answers:
    """Findings of parameters that the optimizer decays, misses, holds twice or holds though they
    are frozen; each names the first few."""
    names = {id(p): n for n, p in subject.original.named_parameters()}
    groups = _groups(optimizer, names, _norm_parameters(subject))
    if groups.decayed_norms:
        yield DECAY(
            "decayed",
            _owner(groups.decayed_norms),
            weight_decay=groups.decay,
            norm_parameters_decayed=len(groups.decayed_norms),
            biases_decayed=len(groups.decayed_biases),
            first=groups.decayed_norms[:6],
        )
    yield from _missing(subject, groups)
    twice = [names.get(key, "?") for key, count in groups.times.items() if count > 1]
    if twice:
        few = ", ".join(twice[:3])
        yield TWICE(
            "twice", _owner(twice), words={"few": few}, parameters=twice[:8], count=len(twice)
        )
    if groups.frozen:
        yield FROZEN(
            "frozen",
            _owner(groups.frozen),
            parameters=groups.frozen[:8],
            count=len(groups.frozen),
        )


def _groups(optimizer: Optimizer, names: dict[int, str], norms: set[str]) -> _Groups:
    """What the optimizer holds; ``names`` are the model's parameters by id, ``norms`` those of
    norms."""
    groups = _Groups()
    for group in optimizer.param_groups:
        for p in group["params"]:
            groups.times[id(p)] += 1
            name = names.get(id(p))
            if name is None:
                groups.foreign += 1
                continue
            if not p.requires_grad:
                groups.frozen.append(name)
            if group.get("weight_decay", 0.0) and groups.times[id(p)] == 1:
                groups.decay = float(group["weight_decay"])
                if name in norms:
                    groups.decayed_norms.append(name)
                elif p.dim() == 1 and name.endswith("bias"):
                    groups.decayed_biases.append(name)
    return groups


def _missing(subject: Subject, groups: _Groups) -> Iterator[Finding]:
    """Trainable parameters in no group, and tensors in groups that are not the model's. Where most
    are missing, it may be meant: only a part is trained."""
    trainable = {n: p for n, p in subject.original.named_parameters() if p.requires_grad}
    missing = [n for n, p in trainable.items() if id(p) not in groups.times]
    if not missing and not groups.foreign:
        return
    if not missing:
        case = "foreign"
    elif groups.foreign:
        case = "some, and foreign"
    else:
        case = "most" if len(missing) / len(trainable) > 0.5 else "some"
    yield MISSING(
        case,
        _owner(missing) if missing else "",
        words={"few": ", ".join(missing[:3])} if missing else {},
        missing=missing[:8],
        missing_count=len(missing),
        of=len(trainable),
        in_the_optimizer_but_not_in_the_model=groups.foreign,
    )


def _owner(names: list[str]) -> str:
    """The module of the first of these parameters."""
    return names[0].rpartition(".")[0]


def _norm_parameters(subject: Subject) -> set[str]:
    """The gains and biases of norms, found where they are applied."""
    s = subject.structure
    names = {name for norm in s.norms for name in norm.parameters}
    own = dict(subject.original.named_parameters())
    return {n for n in names if n in own and own[n].squeeze().dim() <= 1}
