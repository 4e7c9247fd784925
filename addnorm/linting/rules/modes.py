"""Rules about modes: randomness in evaluation, none in training, parts in different modes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from addnorm.anatomy.influence import Influence, output_in_training
from addnorm.anatomy.outputs import as_tuple, largest, tensors_in
from addnorm.linting.check import Check, Said, on_influence
from addnorm.linting.report import Finding, Unknown
from addnorm.linting.subject import Subject
from addnorm.temporary import hooked

# --- modes ----------------------------------------------------------------------------------------


@on_influence("dropout-in-eval")
def _dropout(s: Influence, subject: Subject) -> Said:
    yield from _mixed_modes(subject.original)
    one, two = s.base, s.other_seed
    difference = largest(one - two) if one.shape == two.shape else float("inf")
    if difference > 0 and s.noise == 0:
        path = _first_random(s)
        yield Finding(
            rule="dropout-in-eval",
            severity="error",
            module=path,
            evidence={"difference_of_two_eval_runs": difference, "output_size": largest(one)},
            message="in evaluation mode two runs on the same input differ: something is random and "
            f"ignores eval(){f', in {path!r}' if path else ''}. Validation and generation are "
            "noisy, and worse than the model itself.",
            remedy="Use nn.Dropout, or pass training=self.training to F.dropout and "
            "dropout_p=self.dropout if self.training else 0.0 to scaled_dot_product_attention.",
        )
        return
    if s.noise > 0:
        yield Unknown(
            rule="dropout-in-eval",
            module="",
            why=f"two runs from the same random state differ by {s.noise:.3g}: the randomness is "
            "not torch's, or memory is read that was never written",
        )
        return
    configured = _configured(s.model)
    if not configured:
        return
    try:
        outs = [s.training_base, output_in_training(s.training_copy, s.inputs, seed=1)]
    except Exception as error:
        yield Unknown(
            rule="dropout-in-eval",
            module="",
            why=f"in training mode the model does not run on these inputs: {error}"[:300],
        )
        return
    if outs[0].shape == outs[1].shape and largest(outs[0] - outs[1]) == 0:
        name, (path, p) = next(iter(configured.items()))
        yield Finding(
            rule="dropout-in-eval",
            severity="warning",
            module=path,
            evidence={
                "dropout_configured": p,
                "places_configured": len(configured),
                "difference_of_two_train_runs": 0.0,
            },
            message=f"dropout is configured ({name}: {p}) and nothing is random in training mode: "
            "it is never applied.",
            remedy="Call the dropout in forward, pass training=self.training, or configure 0.",
        )


def _configured(model: nn.Module) -> dict[str, tuple[str, float]]:
    """Where dropout is set, by name: the module and the probability."""
    found: dict[str, tuple[str, float]] = {}
    for path, module in model.named_modules():
        if isinstance(module, _DropoutNd):
            if 0 < module.p < 1:
                found[path] = (path, module.p)
            continue
        for name, value in vars(module).items():
            if "drop" in name.lower() and type(value) is float and 0 < value < 1:
                found[f"{path}.{name}" if path else name] = (path, value)
    return found


def _mixed_modes(original: nn.Module) -> Said:
    odd = [p for p, m in original.named_modules() if m.training != original.training]
    if odd:
        tops = [p for p in odd if not any(p.startswith(o + ".") for o in odd)]
        mode, other = ("train", "eval") if original.training else ("eval", "train")
        yield Finding(
            rule="dropout-in-eval",
            severity="note",
            module=tops[0],
            evidence={"modules_in_another_mode": len(odd), "first": tops[:6]},
            message=f"the model is in {mode} mode and {len(odd)} of its modules are in {other} "
            f"mode ({', '.join(tops[:3])}{', ...' if len(tops) > 3 else ''}).",
            remedy=f"Call model.{mode}() last, unless these parts are frozen on purpose.",
        )


def _first_random(s: Influence) -> str:
    """The first module whose output differs between two RNG states though its inputs do not."""
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


CHECKS: tuple[Check, ...] = (_dropout,)
