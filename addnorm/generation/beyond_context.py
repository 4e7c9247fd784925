"""What a text still sees of itself once it is longer than the model's context.

A row of n tokens sees all of them while n <= context_length. After that it
sees a window that ends in the last one and begins at ``window_start(n, context_length)``: when the
window would exceed the context, its older half is given up and the rest is read anew. This depends
on n alone, so that going on from a text gives what not stopping would have given.
"""

from typing import Literal

Beyond = Literal["slide", "extend", "error"]
"""What happens beyond the context: the window slides; or the row goes on growing, for a model that
can; or it is refused beforehand."""


def window_start(n: int, context: int) -> int:
    """The first of n tokens that is still seen."""
    rest = max(context // 2, 1)
    step = context + 1 - rest
    return 0 if n <= context else step * -(-(n - context) // step)
