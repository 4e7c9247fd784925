"""How well a model foretells the actions of episodes."""

from collections.abc import Mapping
from typing import Any, NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from addnorm.data.episodes import Steps
from addnorm.progress import ProgressBar
from addnorm.temporary import evaluation_mode


@final
class Foretold(NamedTuple):
    """What a model makes of the steps of episodes: one entry for each step."""

    places: NDArray[np.int64]
    """Which step it is."""
    losses: Tensor
    """Of what was done, as ``action_losses`` has them."""
    actions: Tensor
    """What the model would have done: numbers, or vectors."""
    right: Tensor | None
    """Whether that is what was done; None of vectors."""

    def figures(self) -> dict[str, float]:
        """``val_loss``, the mean of the losses, and ``accuracy`` where there is one."""
        figures = {"val_loss": float(self.losses.double().mean())}
        if self.right is not None:
            figures["accuracy"] = float(self.right.double().mean())
        return figures


def action_losses(output: Tensor, actions: Tensor, spread: Tensor | None) -> Tensor:
    """(B, T): the surprise of each action in nats; of vectors the mean square of what is off, in
    units of their ``spread``, which is None of numbers."""
    if spread is None:
        flat = F.cross_entropy(output.float().flatten(0, 1), actions.flatten(), reduction="none")
        return flat.view(actions.shape)
    return ((output.float() - actions) / spread.to(output.device)).square().mean(-1)


def foretell(
    model: nn.Module,
    steps: Steps,
    firsts: NDArray[np.int64],
    length: int,
    spread: Tensor | None,
    batch_size: int,
    bar: ProgressBar,
) -> Foretold:
    """What a model makes of the windows of ``length`` that begin with the steps ``firsts``,
    ``batch_size`` of them at once; ``spread`` as ``action_losses`` has it."""
    device = next(model.parameters()).device
    places, parts = [], []
    for first in range(0, len(firsts), batch_size):
        few = firsts[first : first + batch_size]
        batch = {n: t.to(device) for n, t in tensors(steps.windows(few, length)).items()}
        with evaluation_mode(model.modules()), torch.inference_mode():
            output = model(batch["returns"], batch["states"], batch["actions"], batch["times"])
            loss = action_losses(output, batch["actions"], spread)
        ours = output.argmax(-1) if spread is None else output
        valid = batch["valid"]
        parts.append([t[valid].cpu() for t in (loss, ours, batch["actions"])])
        places.append((few[:, None] + np.arange(length))[valid.cpu().numpy()])
        bar.update(first + len(few), len(firsts))
    losses, ours, actions = (torch.cat(part) for part in zip(*parts, strict=True))
    right = ours == actions if spread is None else None
    return Foretold(np.concatenate(places), losses, ours, right)


def tensors(windows: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """Windows of ``Steps`` as a model reads them: what is no whole number in float32."""
    return {
        name: torch.from_numpy(a.astype(np.float32) if a.dtype == np.float64 else a)
        for name, a in windows.items()
    }
