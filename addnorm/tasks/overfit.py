"""``--overfit N``: whether a model can learn N rows of the user's own data by heart.

Before a night of training is spent, a minute shows whether data, model and loss fit together: a
model that cannot learn a handful of rows will not learn many. The rows are the first ones of the
training; all that keeps a model from learning by heart, dropout or smoothed labels, is left out;
the learning rate rises quickly and stays. It passes where the loss comes down to almost nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from addnorm.settings import SettingsError
from addnorm.training.config import Config
from addnorm.training.fit import joined
from addnorm.training.loop import Diverged, Outcome, Trainer
from addnorm.training.task import Batch, Task
from addnorm.words import a_few

STEPS = 500  # at the most, in about a minute
WARMUP = 10  # steps
LEARNED = 0.05  # the loss of a target whose probability is 0.95
SHARE = 0.02  # of the first loss: windows of text may begin alike and go on differently
STEADY = 20  # steps in a row: a single low loss may be luck
FALLING = 0.9  # a loss that is below this share of what it was a fifth of the steps before


@final
@dataclass(frozen=True)
class Overfit:
    """What came of it: the loss of the rows at the ``first`` and the ``last`` step, and the
    ``reason`` why they were not learned, empty where they were."""

    rows: int
    steps: int
    first: float
    last: float
    reason: str = ""

    def __str__(self) -> str:
        loss = f"the loss of {self.rows} rows went from {self.first:.4g} to {self.last:.4g}"
        text = f"{loss} in {self.steps} steps"
        return f"overfit: FAIL: {text}. {self.reason}" if self.reason else f"overfit: PASS: {text}"


@final
class FewRows(Task):
    """The first rows of another task, the same in every step.

    ``task``: the other. ``rows``: how many, at most those of a step; more are a ``SettingsError``.
    ``seed``: the run's, by which it is decided which rows come first.
    """

    def __init__(self, task: Task, rows: int, seed: int) -> None:
        self.task, self.best, self.unit = task, task.best, task.unit
        batch = task.batch("train", seed, 0, 0, 1)
        available = len(next(iter(batch.values())))
        if available < rows:
            raise SettingsError(
                f"--overfit {rows}: a step has {available} rows. Ask for at most as many, or for "
                "more in a step"
            )
        self.rows = {name: t[:rows] for name, t in batch.items()}

    def model(self) -> nn.Module:
        """The model of the task."""
        return self.task.model()

    def batch(self, split: str, seed: int, step: int, rank: int, world: int) -> Batch:
        """The same rows in every step."""
        return {name: t[rank::world] for name, t in self.rows.items()}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The loss of the task."""
        return self.task.loss(model, batch)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The evaluation of the task."""
        return self.task.evaluate(model)


def overfit(
    config: Config,
    rows: int,
    steps: int = STEPS,
    progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> Overfit:
    """Learn the first ``rows`` rows by heart, in ``steps`` steps at the most, with the user's
    settings but for what keeps a model from it (the head of this file). Nothing is written.

    ``progress`` is told (steps done, most steps, the loss). That it fails is no error but what is
    returned; a ``SettingsError`` is raised where there are not so many rows, or settings are wrong.
    """
    if rows < 1:
        raise SettingsError(f"--overfit must be at least 1, got {rows}")
    changes = {"steps": steps, "warmup": WARMUP, "schedule": "constant", "weight_decay": 0.0}
    plain = config.changed(changes, config.task.by_heart())
    trainer = Trainer(FewRows(plain.build(), rows, plain.loop.seed), plain.loop, joined(plain.loop))
    losses: list[float] = []
    for step in range(steps):
        try:
            outcome = trainer.step()
        except Diverged as error:
            first = losses[0] if losses else math.nan
            return Overfit(rows, step, first, math.nan, str(error))
        losses.append(outcome.loss)
        progress(step + 1, steps, f"loss {outcome.loss:.4f}")
        if reason := _dead_end(outcome, trainer):
            return Overfit(rows, step + 1, losses[0], losses[-1], reason)
        if max(losses[-STEADY:]) < _goal(losses[0]) and len(losses) >= STEADY:
            return Overfit(rows, step + 1, losses[0], losses[-1])
    return Overfit(rows, steps, losses[0], losses[-1], _reason(losses, trainer))


def _goal(first: float) -> float:
    """The loss below which rows are learned whose first loss was ``first``."""
    return max(LEARNED, SHARE * first)


def _dead_end(outcome: Outcome, trainer: Trainer) -> str:
    """Why no further step can help; empty if one may."""
    if not outcome.count:
        return f"None of these rows has {trainer.task.unit} to learn: look at the data"
    if outcome.grad_norm == 0.0:
        return "The gradient is 0: the loss does not depend on what is trained"
    return ""


def _reason(losses: list[float], trainer: Trainer) -> str:
    """Where to look, in sentences, by how the loss went, step by step, and by which parameters of
    the trained model have a share in it."""
    idle = _without_gradient(trainer)
    part = len(losses) // 5
    words = []
    if losses[-1] >= losses[0]:
        words.append("It did not fall: the learning rate may be far too large or too small")
    elif losses[-1] < FALLING * losses[-1 - part]:
        words.append("It was still falling: a larger lr, or more capacity, may do it")
    else:
        words.append(
            "It no longer falls: two rows with the same input and different targets, a target that "
            "the input does not tell, or a model too small for them"
        )
    if idle:
        words.append(f"No gradient reaches {a_few(idle, 3)}")
    return ". ".join(words)


def _without_gradient(trainer: Trainer) -> list[str]:
    """The names of the trained parameters that the loss of the next batch does not depend on. Its
    gradients are computed for that, and none are left behind."""
    model = trainer.raw
    model.zero_grad(set_to_none=True)
    total, _, _ = trainer.task.loss(model, trainer.on_device(trainer.batch()))
    total.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    idle = [
        name for name, p in trained.items() if p.grad is None or not bool(torch.any(p.grad != 0))
    ]
    model.zero_grad(set_to_none=True)
    return idle
