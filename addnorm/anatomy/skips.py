"""Skips as in a U-net: an early state of the stream laid beside the late one, and both made one.

The product that does so is neither a sublayer nor a head. What comes after it is the stream again,
and what came before reaches it by two ways, of which one is short.
"""

from addnorm.anatomy.structure import PRODUCTS, Structure, factors
from addnorm.anatomy.trace import Op, Value


def joins_streams(s: Structure, op: Op) -> bool:
    """Whether an operation is a product with weights that makes one stream out of several states of
    it, each as wide as the result, that stand side by side."""
    if op.name not in PRODUCTS or not s.weighted(op):
        return False
    width = op.outputs[0].shape[1 if "convolution" in op.name else -1]
    points = {v for r in s.residuals for v in (r.fork, r.output)}
    parts, axis = _parts(s, next(v for v in factors(op) if v in s.activations))
    return len(parts) > 1 and all(
        part.shape[axis] == width and not points.isdisjoint(s.carried(part)) for part in parts
    )


def _parts(s: Structure, value: Value) -> tuple[list[Value], int]:
    """What was concatenated to ``value``, and along which axis, with nothing but views and norms
    since; none where it was not."""
    while value.op is not None:
        steps = s.steps_into(value)
        if value.op.name == "cat":
            parts = [step.source for step in steps]
            shapes = {part.shape for part in parts}
            if len(parts) < len(value.op.inputs) or len(shapes) != 1:
                break
            one = next(iter(shapes))
            return parts, next(i for i, n in enumerate(value.shape) if n != one[i])
        if len(steps) != 1 or steps[0].kind not in ("view", "norm"):
            break
        value = steps[0].source
    return [], 0
