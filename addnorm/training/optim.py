"""Optimizers and schedules: who is decayed, who gets Muon, and how large a step is when.

Parameters are grouped by role, which is read off the module that owns them: norm gains, biases and
the small parameters of joins are never decayed, matrices and tables are. Muon (Jordan et al. 2024)
orthogonalizes the update of the matrices inside stacks; everything else keeps AdamW.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from addnorm.norms import Norm
from addnorm.positions import Learned
from addnorm.stream import Join, Stack
from addnorm.training.loop_settings import LoopSettings, Schedule

Role = Literal["matrix", "table", "small"]


def roles(model: nn.Module) -> dict[str, Role]:
    """Parameter -> role: "matrix" multiplies the stream, "table" holds a row per token or place,
    "small" is everything else. By the module that owns it, never by its name."""
    role_by_name: dict[str, Role] = {}
    for path, owner in model.named_modules():
        for name, p in owner.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            if isinstance(owner, Norm | Join) or p.dim() < 2:
                role_by_name[full] = "small"
            else:
                role_by_name[full] = (
                    "table" if isinstance(owner, nn.Embedding | Learned) else "matrix"
                )
    return role_by_name


def groups(
    model: nn.Module, loop: LoopSettings
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(groups for AdamW, groups for Muon), as torch's optimizers take them: what is decayed, what
    is not, and the matrices inside stacks, if Muon was asked for. None is empty, and parameters
    that are frozen are in none."""
    role = roles(model)
    inside = {
        id(p) for stack in model.modules() if isinstance(stack, Stack) for p in stack.parameters()
    }
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    muon: list[nn.Parameter] = []
    for name, p in model.named_parameters():  # a tied parameter comes once, by its first name
        if not p.requires_grad:
            continue
        if role[name] == "small":
            plain.append(p)
        elif loop.optimizer == "muon" and role[name] == "matrix" and id(p) in inside:
            muon.append(p)
        else:
            decayed.append(p)
    adamw = [
        {"params": decayed, "weight_decay": loop.weight_decay, "lr": loop.lr},
        {"params": plain, "weight_decay": 0.0, "lr": loop.lr},
    ]
    return (
        [g for g in adamw if g["params"]],
        [{"params": muon, "weight_decay": loop.weight_decay, "lr": loop.muon_lr}] if muon else [],
    )


def optimizers(model: nn.Module, loop: LoopSettings, *, fused: bool) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon beside it where it was asked for and there are matrices for it.

    Each group keeps under "peak" the learning rate that it begins with: the loop sets its "lr" to
    ``factor`` times that before every step. ``fused``: AdamW in one kernel of torch's; False
    where FSDP2 divides the parameters.
    """
    adamw, muon = groups(model, loop)
    every: list[torch.optim.Optimizer] = []
    if adamw:
        every.append(
            torch.optim.AdamW(adamw, lr=loop.lr, betas=(loop.beta1, loop.beta2), fused=fused)
        )
    if muon:
        # scaled to the size of AdamW's updates (Liu et al. 2025), so that one decay fits both
        every.append(torch.optim.Muon(muon, lr=loop.muon_lr, adjust_lr_fn="match_rms_adamw"))
    for one in every:
        for group in one.param_groups:
            group["peak"] = group["lr"]  # read by Trainer.step
    return every


def factor(
    step: int, steps: int, warmup: int, schedule: Schedule, floor: float, decay: float
) -> float:
    """The learning rate of a step, 0 to steps - 1, as a share of the largest; ``steps`` is how many
    the run has.

    All rise linearly over ``warmup`` steps. Then "constant" stays; "linear" and "cosine" fall to
    ``floor`` at the end; "wsd" (warmup, stable, decay; Hu et al. 2024) stays and falls linearly
    over the last ``decay`` of all steps.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    begin = warmup if schedule != "wsd" else max(warmup, steps - max(round(decay * steps), 1))
    if step < begin:
        return 1.0
    share = min((step - begin + 1) / max(steps - begin, 1), 1.0)
    if schedule == "cosine":
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * share))
    return floor + (1.0 - floor) * (1.0 - share)


def gradients(model: nn.Module) -> Iterator[Tensor]:
    """The gradients that there are."""
    for p in model.parameters():
        if p.grad is not None:
            yield p.grad
