"""The residual stream's size, layer by layer, while training."""

from typing import Any, final

from torch import Tensor, nn

from addnorm.records import Record
from addnorm.stream import Stack, Stream
from addnorm.temporary import hooked
from addnorm.training.fit import Course, Observer
from addnorm.training.parallel import whole


@final
class StreamRMS(Observer):
    """Measures the residual stream before every ``every``-th step (0: never): ``stream_rms``."""

    def __init__(self, every: int) -> None:
        self.every = every

    def before_step(self, course: Course) -> Record:
        """On one row of what the step learns from."""
        if not self.every or course.trainer.done % self.every:
            return {}
        values = stream_rms(course)
        return {"stream_rms": values} if values else {}


def stream_rms(course: Course) -> list[float]:
    """Root mean square of the residual stream after each sublayer, stack after stack, on one row of
    the next step; empty for a model without a Stack. All processes must ask."""
    trainer = course.trainer
    values: list[Tensor] = []

    def look(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if isinstance(out, Stream):
            values.append(whole(out.settle()).float().square().mean().sqrt())

    stacks = [module for module in trainer.raw.modules() if isinstance(module, Stack)]
    with hooked([sub for stack in stacks for sub in stack.sublayers()], after=look):
        trainer.run_only(course.task.row("train", course.loop.seed, trainer.position))
    return [float(value) for value in values]
