"""AdaLoRA: an update of low rank whose triplets compete for the rank."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from addnorm.adapt.parts import STD, LowRank, Triplets
from addnorm.adapt.settings import Adapt
from addnorm.errors import Mendable

BETA = 0.85  # of both running means of importance, as in the paper


@final
class AdaLoRA(LowRank):
    """W + scale * B diag(E) A: E begins at 0; a triplet (column of B, value, row of A) may go.
    Zhang et al. 2023, arXiv 2303.10512.

    ``kept`` (rank,) is True for the triplets that the last pruning left. ``orthogonality`` is the
    weight of |A A' - 1|^2 + |B' B - 1|^2, whose gradient ``pull`` adds before each step.

    Importance of an entry: running means of |w * gradient|, and of how far it is from that mean;
    their product. Of a triplet: its value's, and the means over its row and its column.
    """

    kept: Tensor

    def __init__(
        self, linear: nn.Linear, rank: int, scale: float, dropout: float, orthogonality: float
    ) -> None:
        super().__init__(linear, rank, scale, dropout)
        self.orthogonality = orthogonality
        self.lora_E = nn.Parameter(self.weight.new_empty(rank))  # a vector: it is not decayed
        self.register_buffer("kept", torch.ones_like(self.lora_E, dtype=torch.bool))
        for name in "ABE":
            for what in ("sensitivity", "uncertainty"):
                self.register_buffer(f"{what}_{name}", torch.empty_like(self._factor(name)))
        self._begin()
        self._await_steps()

    def reading(self) -> Tensor:
        """The product E A: (rank, in_features)."""
        return self.lora_A * self.lora_E[:, None]

    def triplets(self) -> Triplets:
        """The triplets that the last pruning kept, and those that have grown again since."""
        mask = self.kept | (self.lora_E != 0)
        return Triplets(self.lora_A[mask], self.lora_E[mask], self.lora_B[:, mask])

    def reset_parameters(self) -> None:
        """The Linear's and the adapter's."""
        super().reset_parameters()
        self._begin()

    def _begin(self) -> None:
        """The adapter as it begins: no update, all triplets kept, nothing measured."""
        nn.init.normal_(self.lora_A, std=STD)
        nn.init.normal_(self.lora_B, std=STD)
        nn.init.zeros_(self.lora_E)
        for name, t in self.named_buffers():
            t.fill_(name == "kept")

    def _factor(self, name: str) -> Tensor:
        return self.get_parameter(f"lora_{name}")

    @torch.no_grad()
    def weigh(self) -> None:
        """Take the last gradients into the running means: to be called after every optimizer step
        and before ``zero_grad``; a ``RuntimeError`` where the gradients are gone."""
        for name in "ABE":
            w = self._factor(name)
            if w.grad is None:
                raise RuntimeError(
                    "adalora weighs by gradients and there are none: call model.after_step(step) "
                    "after the optimizer's step and before zero_grad"
                )
            now = (w * w.grad).abs()
            mean, far = (self.get_buffer(f"{s}_{name}") for s in ("sensitivity", "uncertainty"))
            mean.lerp_(now, 1 - BETA)
            far.lerp_((now - mean).abs(), 1 - BETA)

    def importance(self) -> Tensor:
        """The importance of each triplet: (rank,)."""
        a, b, e = (
            self.get_buffer(f"sensitivity_{name}") * self.get_buffer(f"uncertainty_{name}")
            for name in "ABE"
        )
        return e + a.mean(1) + b.mean(0)

    @torch.no_grad()
    def pull(self, weights: set[int]) -> None:
        """Add the gradient of the orthogonality to those of A and B, if they are among ``weights``,
        the ids of the parameters that an optimizer is about to move."""
        for w, rows in ((self.lora_A, True), (self.lora_B, False)):
            if id(w) in weights and w.grad is not None:
                # here, since it takes half a second, and whoever loads a model imports this file
                from torch.distributed.tensor import DTensor

                if isinstance(w, DTensor):
                    raise Mendable("adalora compares whole tensors: parallel=ddp, not fsdp")
                square = (w @ w.T if rows else w.T @ w) - torch.eye(
                    len(self.lora_E), dtype=w.dtype, device=w.device
                )
                # The gradient of |A A' - 1|^2 is 4 (A A' - 1) A, that of |B' B - 1|^2 alike.
                w.grad.add_(square @ w if rows else w @ square, alpha=4 * self.orthogonality)

    def __setstate__(self, state: dict[str, Any]) -> None:  # a copy is held orthogonal too
        super().__setstate__(state)
        self._await_steps()

    def _await_steps(self) -> None:
        _orthogonal.add(self)
        _watch_optimizers()


_orthogonal: "weakref.WeakSet[AdaLoRA]" = weakref.WeakSet()


def _before_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Add what keeps AdaLoRAs orthogonal to the gradients that an optimizer is about to step by:
    only here are they those of a mean loss, however it was summed, split and clipped."""
    weights = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for part in _orthogonal:
        part.pull(weights)


@cache
def _watch_optimizers() -> None:
    """Once, for the first AdaLoRA: torch calls the hook before every optimizer's step."""
    register_optimizer_step_pre_hook(_before_step)


@final
@dataclass(frozen=True)
class Pruning:
    """What AdaLoRA does after each step: all updates of a model compete, in all of its stacks."""

    settings: Adapt
    parts: tuple[AdaLoRA, ...]

    def __call__(self, step: int) -> None:
        _allocate(self.parts, self.settings, step)


@torch.no_grad()
def _allocate(parts: Sequence[AdaLoRA], settings: Adapt, step: int) -> None:
    """Keep the most important triplets of all updates together, fewer from time to time: by a
    cubic schedule from ``init_rank`` to ``target_rank`` a matrix, as in the paper (Zhang et al.
    2023, arXiv 2303.10512).

    ``step``: how many optimizer steps are done; this is called after each, while its gradients are
    there. Until ``last`` a triplet that was pruned goes on learning and can come back.
    """
    assert settings.steps is not None
    last = settings.steps - settings.tfinal
    if step <= last:
        for part in parts:
            part.weigh()
    due = settings.tinit < step <= last and (step == last or step % settings.delta_t == 0)
    if due:
        part_left = 1 - (step - settings.tinit) / (last - settings.tinit)
        mean = settings.target_rank + (settings.init_rank - settings.target_rank) * part_left**3
        scores = torch.cat([part.importance() for part in parts])
        mask = torch.zeros_like(scores, dtype=torch.bool)
        mask[scores.sort(descending=True, stable=True).indices[: int(mean * len(parts))]] = True
        for part, mine in zip(parts, mask.split([len(p.kept) for p in parts]), strict=True):
            part.kept.copy_(mine)
    if due or step > last:
        for part in parts:
            part.lora_E.masked_fill_(~part.kept, 0.0)
