"""A conformance kit for norms: give it yours, and it names what is wrong with it.

    report = check_norm(my_layer_norm, kind="layer")
    assert report.ok, report.findings

``check_norm`` takes a module or a function, ``check_add_norm`` the fused addition and norm. Both
compare with the equation in float64, forward and backward, on inputs chosen to tell one mistake
from another: the answer is the name of the nearest wrong formula and its distance. See
docs/testing.md.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from addnorm.linting.report import Report
from addnorm.testing import backward, conduct, precision, sums, values
from addnorm.testing.kit import TESTED_DTYPES, Kit, NormKind, NormOfSum, as_module, reference

__all__ = ["check_add_norm", "check_norm", "reference"]

_NORM_CHECKS = (
    *conduct.FIRST,
    *values.CHECKS,
    *precision.CHECKS,
    *backward.CHECKS,
    *conduct.CHECKS,
)


def check_norm(
    norm: Callable[..., Tensor] | nn.Module,
    kind: NormKind = "layer",
    *,
    dim: int | Sequence[int] | None = None,
    eps: float | None = None,
    weight: Tensor | bool | None = None,
    bias: Tensor | bool | None = None,
    dtypes: Sequence[torch.dtype] = TESTED_DTYPES,
    device: str | torch.device = "cpu",
    backend: str | None = "inductor",
) -> Report:
    """Whether ``norm`` is LayerNorm or RMSNorm, and what it is if it is not.

    A module is called as ``norm(x)``. A function is called as ``norm(x, weight=, bias=, eps=)``
    with those that are among its arguments (``gamma``, ``beta``, ``scale``, ``epsilon`` and the
    like are understood); ``weight`` and ``bias`` as tensors are the values to call it with, False
    leaves them out. ``dim`` is the width, or several; a module's is read from its parameters.
    ``eps`` is what it is claimed to use (a module's attribute, a function's argument, where not
    given). ``backend`` is torch.compile's, None leaves compilation out.
    """
    module, eps, widths = as_module(norm, kind, dim, eps, weight, bias, device)
    kit = Kit(module, kind, widths, eps, tuple(dtypes), torch.device(device), backend)
    return kit.report(_NORM_CHECKS)


def check_add_norm(
    fn: Callable[..., tuple[Tensor, Tensor]] | nn.Module,
    kind: NormKind = "layer",
    *,
    dim: int | Sequence[int] | None = None,
    eps: float | None = None,
    weight: Tensor | bool | None = None,
    bias: Tensor | bool | None = None,
    dtypes: Sequence[torch.dtype] = TESTED_DTYPES,
    device: str | torch.device = "cpu",
    backend: str | None = "inductor",
) -> Report:
    """Whether ``fn(x, residual, ...)`` returns ``(norm(x + residual), x + residual)``.

    A module is called as ``fn(x, residual)``, a function with ``weight=``, ``bias=`` and ``eps=``
    where it takes them. The norm is checked as ``check_norm`` does, with a residual of zeros; then
    the sum: its rounding, what it is that is normalized, and the gradients that arrive through
    either output and through both.
    """
    module, eps, widths = as_module(fn, kind, dim, eps, weight, bias, device, pair=True)
    kit = Kit(
        NormOfSum(module), kind, widths, eps, tuple(dtypes), torch.device(device), backend, module
    )
    return kit.report((*_NORM_CHECKS, *sums.CHECKS))
