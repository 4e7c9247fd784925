"""Modes: randomness in evaluation, none in training, and modules in different modes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from addnorm.anatomy.influence import Influence, output_in_training
from addnorm.anatomy.outputs import as_tuple, largest, tensors_in
from addnorm.linting.check import Answers, on_influence
from addnorm.linting.rule import Case, Rule
from addnorm.linting.subject import Subject
from addnorm.temporary import hooked

# --- the words ------------------------------------------------------------------------------------

DROPOUT = Rule(
    "dropout-in-eval",
    "randomness that ignores eval(), or modules in different modes",
    family="Who sees whom",
    evidence={
        "difference_of_two_eval_runs": "the largest difference of two outputs in evaluation mode",
        "output_size": "the largest number in the output",
        "dropout_configured": "the probability where it is set first",
        "places_configured": "at how many places one is set",
        "difference_of_two_train_runs": "the largest difference of two outputs in training mode",
        "modules_in_another_mode": "how many modules are not in the mode of the whole",
        "first": "the outermost of them",
    },
    cases={
        "random in evaluation": Case(
            "error",
            "in evaluation mode two runs on the same input differ: something is random and ignores "
            "eval(){where}. Validation and generation are noisy, and worse than the model itself.",
            "Use nn.Dropout, or pass training=self.training to F.dropout and "
            "dropout_p=self.dropout if self.training else 0.0 to scaled_dot_product_attention.",
        ),
        "never applied": Case(
            "warning",
            "dropout is configured ({name}: {dropout_configured}) and nothing is random in "
            "training mode: it is never applied.",
            "Call the dropout in forward, pass training=self.training, or configure 0.",
        ),
        "mixed modes": Case(
            "note",
            "the model is in {mode} mode and {modules_in_another_mode} of its modules are in "
            "{other} mode ({few}).",
            "Call model.{mode}() last, unless these parts are frozen on purpose.",
        ),
    },
)

# --- modes ----------------------------------------------------------------------------------------


@on_influence(DROPOUT)
def dropout(s: Influence, subject: Subject) -> Answers:
    """Findings of modules in another mode than the whole, of randomness in evaluation, and of
    dropout that is never applied; Unknown where runs differ for a reason that is not torch's."""
    yield from _mixed_modes(subject.original)
    one, two = s.base, s.other_seed
    difference = largest(one - two) if one.shape == two.shape else float("inf")
    if difference > 0 and s.noise == 0:
        path = _first_random(s)
        yield DROPOUT(
            "random in evaluation",
            path,
            words={"where": f", in {path!r}" if path else ""},
            difference_of_two_eval_runs=difference,
            output_size=largest(one),
        )
    elif s.noise > 0:
        yield DROPOUT.unknown(
            f"two runs from the same random state differ by {s.noise:.3g}: the randomness is "
            "not torch's, or memory is read that was never written"
        )
    else:
        yield from _never_applied(s)


def _never_applied(s: Influence) -> Answers:
    """The finding of a model in which dropout is set, and whose outputs in training mode are all
    the same."""
    configured = _dropout_places(s.model)
    if not configured:
        return
    try:
        outs = [s.training_base, output_in_training(s.training_copy, s.inputs, seed=1)]
    except Exception as error:
        why = f"in training mode the model does not run on these inputs: {error}"
        yield DROPOUT.unknown(why[:300])
        return
    if outs[0].shape == outs[1].shape and largest(outs[0] - outs[1]) == 0:
        name, (path, p) = next(iter(configured.items()))
        yield DROPOUT(
            "never applied",
            path,
            words={"name": name},
            dropout_configured=p,
            places_configured=len(configured),
            difference_of_two_train_runs=0.0,
        )


def _dropout_places(model: nn.Module) -> dict[str, tuple[str, float]]:
    """{place: (path of its module, probability)} of where dropout is set: a dropout's own path, or
    that of an attribute called so."""
    places: dict[str, tuple[str, float]] = {}
    for path, module in model.named_modules():
        if isinstance(module, _DropoutNd):
            if 0 < module.p < 1:
                places[path] = (path, module.p)
            continue
        for name, value in vars(module).items():
            if "drop" in name.lower() and type(value) is float and 0 < value < 1:
                places[f"{path}.{name}" if path else name] = (path, value)
    return places


def _mixed_modes(original: nn.Module) -> Answers:
    """The finding of a user's model with modules in another mode than the whole, of which the
    outermost are named."""
    odd = [p for p, m in original.named_modules() if m.training != original.training]
    if odd:
        tops = [p for p in odd if not any(p.startswith(o + ".") for o in odd)]
        mode, other = ("train", "eval") if original.training else ("eval", "train")
        few = f"{', '.join(tops[:3])}{', ...' if len(tops) > 3 else ''}"
        yield DROPOUT(
            "mixed modes",
            tops[0],
            words={"mode": mode, "other": other, "few": few},
            modules_in_another_mode=len(odd),
            first=tops[:6],
        )


def _first_random(s: Influence) -> str:
    """The path of the first module whose output differs between two RNG states though its inputs
    do not; "" if there is none, or none but the model."""
    runs: list[list[tuple[str, list[Tensor], list[Tensor]]]] = []
    paths = {module: path for path, module in s.model.named_modules()}

    def copies(*tree: Any) -> list[Tensor]:
        return [t.detach().clone() for t in tensors_in(*tree)]

    def look(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        runs[-1].append((paths[module], copies(args, kwargs), copies(as_tuple(out))))

    for seed in (1, 2):
        runs.append([])
        with hooked(paths, after=look):
            s.run(seed=seed)

    def same(a: list[Tensor], b: list[Tensor]) -> bool:
        return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    for one, two in zip(*runs, strict=False):  # inner modules come before those around them
        if one[0] == two[0] and same(one[1], two[1]) and not same(one[2], two[2]):
            return one[0]
    return ""
