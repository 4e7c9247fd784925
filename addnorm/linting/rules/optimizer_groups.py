"""The groups of an optimizer: what they decay, and which parameters they miss or have twice."""

from collections import defaultdict

from addnorm.linting.check import Check, Said
from addnorm.linting.report import Finding
from addnorm.linting.subject import Subject

OPTIMIZER_RULES = (
    "decay-on-norm",
    "not-in-optimizer",
    "duplicated-in-optimizer",
    "frozen-in-optimizer",
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


CHECKS = (Check(OPTIMIZER_RULES, optimizer),)
