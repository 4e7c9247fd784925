"""How it behaves: extremes, strides, shapes, its inputs, autocast, compilation."""

import math
from contextlib import suppress

import torch
from torch import Tensor, nn

from addnorm.anatomy.norms.probe import statistics_error
from addnorm.linting.findings import Unknown
from addnorm.testing.kit import (
    Answers,
    Checks,
    Function,
    Kit,
    NormOfSum,
    Width,
    bare_at,
    close,
    finding,
    unit,
)
from addnorm.testing.precision import rounding_bound
from addnorm.words import first_line

# Extremes -----------------------------------------------------------------------------------------


def _extremes(kit: Kit) -> Answers:
    """Findings on rows of very large and very small values, and on rows without a variance, in
    every dtype in which it runs; none where the formula is another."""
    w = kit.first
    if not kit.right or w.dim == 1:
        return
    for dtype in kit.dtypes:
        if dtype in kit.dead:
            continue
        name = str(dtype).removeprefix("torch.")
        module = kit.typed(w.module, dtype)
        weight, bias = kit.affine(w, module)
        # Float16 ends at 65504; a float32 sum of squares carries bfloat16 up to about 1e17.
        top = 2e4 if dtype == torch.float16 else 1e17
        base = kit.rows(16, w.dim, torch.float64, 11, mean=0.0).clamp(-3, 3)
        tiny = 1e-7 if dtype == torch.float16 else 1e-8
        cases = {"overflow": top * base, "tiny-row": tiny * base}
        for rule, xd in cases.items():
            x = xd.to(dtype)
            with torch.no_grad():
                y = module(x)
            ref = kit.answer(x, weight, bias)
            excess = float(
                ((y.double() - ref).abs() / rounding_bound(x, ref, weight, bias, kit)).max()
            )
            if not excess <= 1.0:
                size = float(x.double().abs().max())
                yield finding(
                    rule,
                    "error",
                    {
                        "dtype": name,
                        "largest_input": size,
                        "not_finite": int((~y.isfinite()).sum()),
                        "error_over_bound": excess,
                    },
                    f"Rows of {name} values up to {size:.2g} come out wrong: something is squared "
                    "or cast where it does not fit.",
                    "Square in float32; do not cast eps or the variance to the input's dtype.",
                )
        yield from _flat_rows(kit, w, dtype, module, bias)


def _flat_rows(
    kit: Kit, w: Width, dtype: torch.dtype, module: nn.Module, bias: Tensor | None
) -> Answers:
    """Findings on rows without a variance, forward and backward: the output must be the bias, None
    for 0. ``module`` is the norm in that dtype."""
    name = str(dtype).removeprefix("torch.")
    cases = {"zero-row": 0.0} | ({"constant-row": 3.3} if kit.kind == "layer" else {})
    for rule, value in cases.items():
        x = torch.full((4, w.dim), value, device=kit.device, dtype=dtype, requires_grad=True)
        y = module(x)
        finite = bool(y.isfinite().all())
        back = True
        if y.requires_grad:
            (dx,) = torch.autograd.grad(y.sum(), x, allow_unused=True)
            back = dx is None or bool(dx.isfinite().all())
        expected = torch.zeros(w.dim, dtype=torch.float64) if bias is None else bias
        # x - mean may be n float32 roundings of 3.3, divided by sqrt(eps).
        slack = (
            (w.dim + 10)
            * unit(torch.float32)
            * abs(value)
            / math.sqrt(max(kit.eps_in(dtype), 1e-12))
        )
        slack = 4 * slack * _largest(kit.affine(w, module)[0]) + 4 * unit(dtype) * _largest(bias)
        near = finite and float((y.detach().double() - expected).abs().max()) <= slack + 1e-30
        if finite and back and near:
            continue
        result = "NaN" if not finite else "NaN in backward" if not back else "not the bias"
        yield finding(
            rule,
            "error",
            {"dtype": name, "value": value, "finite": finite, "finite_backward": back},
            f"A row of {value:g} ({name}) gives {result}.",
            "Put eps under the root, in float32: sqrt(variance + eps); sqrt(0) has no gradient.",
        )


def _largest(t: Tensor | None) -> float:
    """The largest absolute value of a weight or bias; 1 where there is none."""
    return 1.0 if t is None else float(t.abs().max())


def _one_feature(kit: Kit) -> Answers:
    """The finding of a function, whose width can be chosen, that is wrong for rows of one feature:
    LayerNorm gives the bias there, RMSNorm weight times sign, plus the bias."""
    if not isinstance(kit.subject, Function | NormOfSum) or not kit.right:
        return
    inner = kit.subject.pair if isinstance(kit.subject, NormOfSum) else kit.subject
    if not isinstance(inner, Function) or inner.fixed:
        return
    module = kit.of_width(1)
    x = torch.tensor([[2.0], [-3.0]], device=kit.device)
    weight = bias = None
    if isinstance(module, NormOfSum):
        weight, bias = module.pair.weight, module.pair.bias
    else:
        weight, bias = module.weight, module.bias
    ref = kit.answer(x, weight, bias)  # type: ignore[arg-type]
    with torch.no_grad():
        y = module(x)
    off = float((y.double() - ref).abs().max())
    if not off < 1e-5 * (1 + float(ref.abs().max())):
        yield finding(
            "one-feature",
            "error",
            {"difference": off if math.isfinite(off) else str(off)},
            "Rows of one feature come out wrong.",
            "The variance of one number is 0, not NaN: correction=0, and eps under the root.",
        )


def _strides(kit: Kit) -> Answers:
    """Findings on inputs and gradients with the same numbers, but other strides: each has to give
    the same result as in order."""
    w = kit.first
    if w.reach.axes != (-1,):
        return
    module = kit.typed(w.module, torch.float32)
    x = kit.rows(12, w.dim, torch.float32, 12)
    with torch.no_grad():
        base = module(x)
    padded = torch.full((24, w.dim + 3), 7.0, device=kit.device)
    padded[::2, 1:-2] = x
    views = {
        "transposed": (x.t().contiguous().t(), base),
        "every other row of a wider tensor": (padded[::2, 1:-2], base),
        "expanded": (x[:1].expand(12, -1), base[:1].expand(12, -1)),
        "permuted": (
            x.view(3, 4, w.dim).transpose(0, 1).contiguous().transpose(0, 1),
            base.view(3, 4, w.dim),
        ),
    }
    for what, (view, expected) in views.items():
        yield from _unequal_output(module, view, expected, "strides", f"an input that is {what}")
    # An expanded gradient is what y.sum().backward() sends.
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    if y.requires_grad:
        ones = torch.ones((), device=kit.device).expand(y.shape)
        (thin,) = torch.autograd.grad(y, leaf, ones, retain_graph=True, allow_unused=True)
        (full,) = torch.autograd.grad(
            y, leaf, torch.ones_like(y), retain_graph=True, allow_unused=True
        )
        g = torch.randn_like(y)
        (plain,) = torch.autograd.grad(y, leaf, g, retain_graph=True, allow_unused=True)
        (turned,) = torch.autograd.grad(y, leaf, g.t().contiguous().t(), allow_unused=True)
        for what, a, b in (("expanded", thin, full), ("transposed", turned, plain)):
            if a is not None and b is not None and not close(a, b):
                # dx of a constant dy may be all rounding: an absolute comparison then.
                if float((a - b).abs().max()) < 1e-4 * float(plain.abs().max()):
                    continue
                yield finding(
                    "strides",
                    "error",
                    {"gradient": what, "difference": float((a - b).abs().max())},
                    f"A gradient that is {what} gives another result than the same numbers "
                    "in order.",
                    "Call .contiguous() on dy, or read its strides.",
                )


def _unequal_output(
    module: nn.Module, x: Tensor, expected: Tensor, mistake: str, what: str
) -> Answers:
    """The finding, by the name ``mistake``, if ``x`` does not give the output that is expected: a
    warning if it is refused. ``what`` names the input in the middle of a sentence."""
    try:
        with torch.no_grad():
            y = module(x)
    except Exception as e:
        yield finding(
            mistake,
            "warning",
            {"exception": type(e).__name__, "says": first_line(str(e))},
            f"It refuses {what}.",
            "Accept it, with .contiguous() or .reshape(-1, dim) where need be.",
        )
        return
    if y.shape != expected.shape or not (y.numel() == 0 or close(y, expected)):
        yield finding(
            mistake,
            "error",
            {"case": what, "difference": float((y - expected).abs().max())}
            if y.shape == expected.shape
            else {"case": what, "shape": list(y.shape), "expected": list(expected.shape)},
            f"{what[0].upper()}{what[1:]} gives another result than the same numbers in rows.",
            "Address elements by their strides, and flatten all axes but the last.",
        )


def _shapes(kit: Kit) -> Answers:
    """Findings on more and fewer axes than the usual two, and on empty batches."""
    w = kit.first
    if w.reach.axes != (-1,):
        return
    module = kit.typed(w.module, torch.float32)
    x = kit.rows(24, w.dim, torch.float32, 13)
    with torch.no_grad():
        base = module(x)
    for shape in ((24,), (4, 6), (2, 3, 4)):
        what = f"an input of {len(shape) + 1} axes"
        expected = base.view(*shape, w.dim)
        view = x.view(*shape, w.dim)
        yield from _unequal_output(module, view, expected, "leading-shapes", what)
    yield from _unequal_output(module, x[0], base[0], "leading-shapes", "an input of 1 axis")
    for empty in ((0,), (2, 0)):
        nothing = x.new_zeros(*empty, w.dim)
        what = f"an empty batch {empty}"
        yield from _unequal_output(module, nothing, nothing, "empty-batch", what)


def _batch(kit: Kit) -> Answers:
    """Findings on a row that depends on others, in evaluation or in training."""
    w = kit.first
    if w.reach.axes != (-1,):
        return
    trained = w.probe.reach(train=True).axes
    if trained != (-1,):
        yield finding(
            "norm-batch-dependent",
            "error",
            {"axes": list(w.reach.axes), "axes_in_training": list(trained)},
            "In training mode a row's output depends on other rows.",
            "Take statistics of the row alone, in training as in evaluation.",
        )
    module = kit.typed(w.module, torch.float32)
    x = kit.rows(24, w.dim, torch.float32, 13)
    with torch.no_grad():
        base, alone = module(x), module(x[5:6])
    if not close(alone, base[5:6]):
        yield finding(
            "norm-batch-dependent",
            "error",
            {"difference": float((alone - base[5:6]).abs().max())},
            "A row alone gives another result than among 24.",
            "Let no row read what belongs to another.",
        )


def _writes(kit: Kit) -> Answers:
    """Whether it writes into its input, its parameters or the gradient that it is given; then
    ``kit.spoilt`` ends all further checks."""
    w = kit.first
    for dtype in kit.dtypes:
        if dtype in kit.dead:
            continue
        module = kit.typed(w.module, dtype)
        x = kit.rows(6, w.dim, dtype, 14)
        before = [t.detach().clone() for t in (x, *module.parameters())]
        leaf = x.requires_grad_()
        y = module(leaf)
        dy = torch.ones_like(y)
        if y.requires_grad:
            with suppress(RuntimeError):  # torch may itself have seen what was overwritten
                torch.autograd.grad(y, leaf, dy, allow_unused=True)
        names = ["x", *(n for n, _ in module.named_parameters()), "the gradient of y"]
        now = [x, *module.parameters(), dy]
        for name, old, new in zip(names, [*before, torch.ones_like(dy)], now, strict=True):
            if not torch.equal(old, new.detach()):
                kit.spoilt = f"it writes into {name}: nothing can be compared"
                yield finding(
                    "writes-inputs",
                    "error",
                    {"what": name, "elements": int((old != new.detach()).sum())},
                    f"It writes into {name}, which belongs to its caller.",
                    "Allocate the output; no in-place operation on arguments.",
                )
                return


def _deterministic(kit: Kit) -> Answers:
    """The finding of gradients that differ from call to call; ``Kit.report`` has compared outputs
    before."""
    w = kit.first
    module = kit.typed(w.module, torch.float32)

    def grads_of_a_run() -> list[Tensor]:
        """Those of x and of parameters, on the same numbers each time; [] if there are none."""
        x = kit.rows(512, w.dim, torch.float32, 15).requires_grad_()
        y = module(x)
        if not y.requires_grad:
            return []
        variables = [x, *(p for p in module.parameters() if p.requires_grad)]
        grads = torch.autograd.grad(y, variables, torch.ones_like(y), allow_unused=True)
        return [g for g in grads if g is not None]

    first = grads_of_a_run()
    for _ in range(2):
        for i, (a, b) in enumerate(zip(first, grads_of_a_run(), strict=True)):
            if not torch.equal(a, b) and not bool(a.isnan().any()):
                yield finding(
                    "nondeterministic",
                    "warning",
                    {"what": "gradient", "which": i, "difference": float((a - b).abs().max())},
                    "The same input gives another gradient the second time.",
                    "Sum in a fixed order: no atomic additions.",
                )
                return


def _autocast(kit: Kit) -> Answers:
    """Findings under autocast to bfloat16: it has to run, and to take its statistics in float32;
    Unknown on a device without autocast."""
    if not kit.right:
        return
    w = kit.first
    kind = kit.device.type
    if not torch.amp.is_autocast_available(kind):
        yield Unknown(rule="autocast", module="", why=f"{kind} has no autocast")
        return
    module = bare_at(kit, w, torch.float32) if w.probe.is_bare else None
    if module is None or w.dim < 16:
        return
    for dtype in (torch.float32, torch.bfloat16):
        x = kit.rows(64, w.dim, dtype, 16)
        try:
            with torch.no_grad(), torch.autocast(kind, dtype=torch.bfloat16):
                y = module(x)
        except Exception as e:
            yield finding(
                "autocast",
                "error",
                {"input": str(dtype), "exception": type(e).__name__, "says": first_line(str(e))},
                f"Under autocast it raises {type(e).__name__} for {dtype} inputs and float32 "
                "parameters.",
                "Cast the parameters to the dtype that you compute in.",
            )
            continue
        ref = kit.answer(x)
        shared = statistics_error(y.double(), ref.to(y.dtype).double())
        # as in ``precision``: a rounded statistic moves whole rows
        if shared > 0.25 * unit(torch.bfloat16):
            yield finding(
                "autocast",
                "error",
                {"input": str(dtype), "row_error": shared, "output": str(y.dtype)},
                "Under autocast the statistics are taken in bfloat16.",
                "Compute in float32 explicitly: x.float(), under autocast(enabled=False).",
            )


def _compiles(kit: Kit) -> Answers:
    """Output and gradient compiled as one graph, against those without; Unknown where the compiler
    itself does not run."""
    if kit.backend is None:
        yield Unknown(rule="compile", module="", why="it was not asked for: backend=None")
        return
    w = kit.first
    module = kit.typed(w.module, torch.float32)
    x = kit.rows(6, w.dim, torch.float32, 17)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=kit.backend)
    eager = x.clone().requires_grad_()
    expected = module(eager)
    g = torch.randn_like(expected)
    try:
        leaf = x.clone().requires_grad_()
        y = compiled(leaf)
        pairs = [("output", y, expected)]
        if expected.requires_grad:
            (a,) = torch.autograd.grad(y, leaf, g)
            (b,) = torch.autograd.grad(expected, eager, g)
            pairs.append(("gradient", a, b))
    except Exception as e:
        reason = " ".join(f"{type(e).__name__}: {e}".split())[:300]
        if isinstance(e, torch._dynamo.exc.Unsupported):
            yield finding(
                "compile",
                "warning",
                {"exception": type(e).__name__, "says": reason},
                "torch.compile(fullgraph=True) breaks the graph here: the norm is not fused with "
                "what stands beside it.",
                "Register the kernel with torch.library.custom_op, with a fake implementation.",
            )
        else:
            yield Unknown(rule="compile", module="", why=f"the compiler did not run: {reason}")
        return
    finally:
        torch._dynamo.reset()
    for what, have, right in pairs:
        if not close(have.detach(), right.detach()):
            yield finding(
                "compile",
                "error",
                {"what": what, "difference": float((have - right).detach().abs().max())},
                f"Compiled, the {what} is another one.",
                "Check what the code reads while it is traced: shapes, flags, global state.",
            )


FIRST: Checks = (("writes-inputs", _writes),)
"""Before all others: what is written to cannot be compared with."""

CHECKS: Checks = (
    ("extremes", _extremes),
    ("one-feature", _one_feature),
    ("strides", _strides),
    ("leading-shapes", _shapes),
    ("batch", _batch),
    ("determinism", _deterministic),
    ("autocast", _autocast),
    ("compile", _compiles),
)
