"""The references checked on their own: every gradient, and identities the equations must satisfy.

Tolerance of the gradient checks. The central difference (L(t + h) - L(t - h)) / 2h differs from
L'(t) by h^2 |L'''| / 6 (truncation) plus K u |L| / h (rounding), with u = 1.1e-16 and K the number
of roundings that one forward pass accumulates, some 10^2 to 10^3. With h = 1e-5 and losses of order
one the rounding is below 1e-8. A norm over standardised data of spread s has third derivatives of
order 6 / s^3; s stays above 0.15 here, so L''' < 2000 and the truncation is below 4e-8. A margin of
an order of magnitude gives 5e-7, relative to the largest gradient entry where that exceeds one. A
wrong term in a gradient shows at the order of 1e-2 or more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import pytest

from tests.references import attention as naive
from tests.references import norms, parts, schemes, tape
from tests.references.init import init_std, init_value
from tests.references.tape import Array, Var

STEP = 1e-5
TOLERANCE = 5e-7
EXACT = 1e-12  # two float64 evaluations of one formula: some 10^3 roundings of 1.1e-16 each

Arrays = dict[str, Array]


def central_difference(loss: Callable[[], float], x: Array) -> Array:
    """Central difference of `loss` in every entry of `x`, which `loss` reads; `x` is restored."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        before = x[index]
        x[index] = before + STEP
        above = loss()
        x[index] = before - STEP
        below = loss()
        x[index] = before
        gradient[index] = (above - below) / (2.0 * STEP)
    return gradient


def assert_gradient(actual: Array, expected: Array, what: str) -> None:
    """Compare a gradient with its central difference, to the tolerance derived above."""
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(actual, expected, rtol=0.0, atol=TOLERANCE * scale, err_msg=what)


def check_gradients(forward: Callable[..., Var], inputs: Arrays) -> None:
    """Check the gradient of sum(forward(**inputs) * random cotangent) in every input."""
    leaves = {name: Var(value) for name, value in inputs.items()}
    y = forward(**leaves)
    cotangent = np.random.default_rng(0).normal(size=y.shape)
    tape.backward(y, cotangent)

    def loss() -> float:
        value = forward(**{name: Var(value) for name, value in inputs.items()}).value
        return float((value * cotangent).sum())

    for name, value in inputs.items():
        assert_gradient(leaves[name].grad, central_difference(loss, value), name)


# ---------------------------------------------------------------------------------------- tape


def away_from_zero(rng: np.random.Generator, *shape: int) -> Array:
    """Entries of random sign and of modulus between 0.5 and 1.5, so that no kink is near."""
    return np.array(rng.choice([-1.0, 1.0], size=shape) * rng.uniform(0.5, 1.5, size=shape))


MASK = np.array([[True, False, True], [False, True, True]])

UNARY: dict[str, Callable[[Var], Var]] = {
    "neg": lambda a: -a,
    "radd": lambda a: 2.0 + a,
    "rsub": lambda a: 2.0 - a,
    "rmul": lambda a: 3.0 * a,
    "rtruediv": lambda a: 3.0 / a,
    "left_array": lambda a: np.arange(6.0).reshape(2, 3) - a,
    "square": lambda a: a**2,
    "cube": lambda a: a**3,
    "inverse_square": lambda a: a**-2,
    "shared": lambda a: a * a + a,
    "exp": tape.exp,
    "tanh": tape.tanh,
    "erf": tape.erf,
    "sigmoid": tape.sigmoid,
    "absolute": tape.absolute,
    "relu": lambda a: tape.maximum(a, 0.0),
    "log": lambda a: tape.log(a**2),
    "sqrt": lambda a: tape.sqrt(a**2),
    "softmax": tape.softmax,
    "softmax_first": lambda a: tape.softmax(a, 0),
    "softmax_masked": lambda a: tape.softmax(tape.where(MASK, a, -np.inf)),
    "sum": lambda a: a.sum(),
    "sum_axis": lambda a: a.sum(0),
    "sum_axes": lambda a: a.sum((0, 1)),
    "sum_keepdims": lambda a: a.sum(-1, keepdims=True),
    "mean": lambda a: a.mean(),
    "mean_axis": lambda a: a.mean(1),
    "mean_keepdims": lambda a: a.mean((0, -1), keepdims=True),
    "reshape": lambda a: a.reshape((3, 1, 2)),
    "transpose": lambda a: a.reshape((1, 2, 3)).transpose((2, 0, 1)),
    "swapaxes": lambda a: a.swapaxes(0, 1),
    "index_int": lambda a: a[1],
    "index_slice": lambda a: a[:, 1:],
    "index_step": lambda a: a[::-1, ::2],
    "index_newaxis": lambda a: a[..., None, 1:],
}

BINARY: dict[str, Callable[[Var, Var], Var]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "truediv": lambda a, b: a / b,
}

JOIN: dict[str, Callable[[Var, Var], Var]] = {
    "where": lambda a, b: tape.where(MASK, a, b),
    "concatenate_first": lambda a, b: tape.concatenate([a, b, a], 0),
    "concatenate_last": lambda a, b: tape.concatenate([a, b], -1),
    "stack_first": lambda a, b: tape.stack([a, b], 0),
    "stack_last": lambda a, b: tape.stack([a, b, a], -1),
}


@pytest.mark.parametrize("name", UNARY)
def test_unary_gradients(name: str) -> None:
    """VJPs of the operations on one operand."""

    def forward(a: Var) -> Var:
        return UNARY[name](a)

    check_gradients(forward, {"a": away_from_zero(np.random.default_rng(1), 2, 3)})


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3), (2, 3)),
        ((2, 3), (3,)),
        ((2, 1), (1, 3)),
        ((), (2, 3)),
        ((1,), ()),
        ((3,), (2, 1, 1)),
    ],
)
def test_binary_gradients(name: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """VJPs of the arithmetic operations: broadcasting is summed back in both operands."""
    rng = np.random.default_rng(2)
    a, b = (away_from_zero(rng, *shape) for shape in shapes)
    check_gradients(BINARY[name], {"a": a, "b": b})


@pytest.mark.parametrize("name", JOIN)
def test_join_gradients(name: str) -> None:
    """VJPs of the operations that select from or join two operands."""
    rng = np.random.default_rng(3)
    check_gradients(JOIN[name], {"a": rng.normal(size=(2, 3)), "b": rng.normal(size=(2, 3))})


@pytest.mark.parametrize(
    "shapes",
    [((2, 3), (3, 4)), ((2, 2, 3), (3, 4)), ((2, 3), (5, 3, 1)), ((2, 1, 1, 3), (4, 3, 2))],
)
def test_matmul_gradients(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """VJPs of the matrix product: the batch axes broadcast."""
    rng = np.random.default_rng(4)
    a, b = (rng.normal(size=shape) for shape in shapes)
    check_gradients(lambda a, b: a @ b, {"a": a, "b": b})


def test_where_broadcasts_its_constants() -> None:
    """A scalar alternative of `where` receives the summed gradient."""
    a, b = Var(np.ones((2, 3))), Var(2.0)
    tape.backward(tape.where(MASK, a, b), np.full((2, 3), 5.0))
    np.testing.assert_array_equal(a.grad, np.where(MASK, 5.0, 0.0))
    assert float(b.grad) == 5.0 * int((~MASK).sum())


def test_backward_starts_from_zero() -> None:
    """A second pass over one graph gives the same gradient, not the double."""
    a = Var([1.0, 2.0])
    y = (a**2).sum()
    tape.backward(y, 1.0)
    tape.backward(y, 1.0)
    np.testing.assert_array_equal(a.grad, [2.0, 4.0])


# --------------------------------------------------------------------------------- norms, parts


def normal(seed: int, *shapes: tuple[int, ...]) -> list[Array]:
    """Standard normal arrays of the given shapes."""
    rng = np.random.default_rng(seed)
    return [np.array(rng.normal(size=shape)) for shape in shapes]


VALID = np.array([[True, True, False], [True, False, False]])

NORMS: dict[str, tuple[Callable[..., Var], dict[str, tuple[int, ...]]]] = {
    "layer_norm": (
        lambda x, w, b: norms.layer_norm(x, w, b, 1e-5),
        {"x": (2, 3, 4), "w": (4,), "b": (4,)},
    ),
    "layer_norm_unbiased": (
        lambda x, w, b: norms.layer_norm_unbiased(x, w, b, 1e-3),
        {"x": (2, 3, 4), "w": (4,), "b": (4,)},
    ),
    "rms_norm": (lambda x, w: norms.rms_norm(x, w, 1e-5, 1.0), {"x": (2, 3, 4), "w": (4,)}),
    "l2_norm": (lambda x: norms.l2_norm(x, 1e-3), {"x": (2, 3, 4)}),
    "scale_norm": (lambda x, g: norms.scale_norm(x, g, 1e-5), {"x": (2, 3, 4), "g": ()}),
    "scale_norm_floor": (lambda x, g: norms.scale_norm(x, g, 100.0), {"x": (2, 4), "g": ()}),
    "dyt": (norms.dyt, {"x": (2, 3, 4), "alpha": (), "w": (4,), "b": (4,)}),
    "channels_first_layer_norm": (
        lambda x, w, b: norms.channels_first_layer_norm(x, w, b, 1e-5),
        {"x": (2, 5, 2, 3), "w": (5,), "b": (5,)},
    ),
    "batch_norm": (
        lambda x, w, b: norms.batch_norm(x, VALID, w, b, 1e-5),
        {"x": (2, 3, 4), "w": (4,), "b": (4,)},
    ),
    "group_norm": (
        lambda x, w, b: norms.group_norm(x, VALID, 2, w, b, 1e-5),
        {"x": (2, 3, 6), "w": (6,), "b": (6,)},
    ),
    "add_norm": (
        lambda r, x, keep, gain: sum(
            norms.add_norm(lambda s: norms.rms_norm(s, 1.0, 1e-5), r, x, keep, gain), Var(0.0)
        ),
        {"r": (2, 3, 4), "x": (2, 3, 4), "keep": (), "gain": (4,)},
    ),
    "gelu": (parts.gelu, {"x": (3, 4)}),
}


@pytest.mark.parametrize("name", NORMS)
def test_norm_gradients(name: str) -> None:
    """Gradients of every normalisation in its input and in its parameters."""
    forward, shapes = NORMS[name]
    check_gradients(forward, dict(zip(shapes, normal(5, *shapes.values()), strict=True)))


def test_layer_norm_is_rms_norm_of_centred_input() -> None:
    """LN(x) = RMS(x - mean), for the variance is the mean square of the centred input."""
    x, w, b = normal(6, (2, 3, 8), (8,), (8,))
    centred = x - x.mean(-1, keepdims=True)
    expected = norms.rms_norm(centred, w, 1e-5).value + b
    np.testing.assert_allclose(norms.layer_norm(x, w, b, 1e-5).value, expected, atol=EXACT)


def test_layer_norm_output_moments() -> None:
    """With eps = 0 the output has mean 0 and biased (or unbiased) variance 1."""
    (x,) = normal(7, (5, 8))
    biased = norms.layer_norm(x, 1.0, 0.0, 0.0).value
    unbiased = norms.layer_norm_unbiased(x, 1.0, 0.0, 0.0).value
    np.testing.assert_allclose(biased.mean(-1), 0.0, atol=EXACT)
    np.testing.assert_allclose(biased.var(-1), 1.0, atol=EXACT)
    np.testing.assert_allclose(unbiased.var(-1, ddof=1), 1.0, atol=EXACT)


def test_l2_norm_is_rms_norm() -> None:
    """The two spellings of the projection on the sphere of radius sqrt(d) agree, with eps."""
    (x,) = normal(8, (5, 8))
    expected = norms.rms_norm(x, 1.0, 0.1).value
    np.testing.assert_allclose(norms.l2_norm(x, 0.1).value, expected, atol=EXACT)


def test_rms_norm_offset() -> None:
    """An offset of one is the same as a weight that is larger by one."""
    x, w = normal(9, (5, 8), (8,))
    expected = norms.rms_norm(x, 1.0 + w, 1e-5).value
    np.testing.assert_allclose(norms.rms_norm(x, w, 1e-5, 1.0).value, expected, atol=EXACT)


def test_scale_norm() -> None:
    """The output has norm g above the floor; below it (and at 0) the map is linear: g x / eps."""
    (x,) = normal(10, (5, 8))
    lengths = np.linalg.norm(norms.scale_norm(x, 3.0, 1e-5).value, axis=-1)
    np.testing.assert_allclose(lengths, 3.0, atol=EXACT)
    zero = Var(np.zeros(4))
    tape.backward(norms.scale_norm(zero, 3.0, 0.5), np.ones(4))
    np.testing.assert_allclose(zero.grad, 6.0, atol=EXACT)


def test_channels_first_layer_norm_is_layer_norm_of_channels_last() -> None:
    """Normalising axis 1 is normalising the last axis of the permuted array."""
    x, w, b = normal(11, (2, 5, 2, 3), (5,), (5,))
    last = norms.layer_norm(x.transpose(0, 2, 3, 1), w, b, 1e-5).value
    first = norms.channels_first_layer_norm(x, w, b, 1e-5).value
    np.testing.assert_allclose(first, last.transpose(0, 3, 1, 2), atol=EXACT)


def test_batch_norm_statistics_are_those_of_the_valid_tokens() -> None:
    """Mean and biased variance of the gathered valid tokens; the padding may hold anything."""
    (x,) = normal(12, (2, 3, 4))
    x[~VALID] = np.nan
    mean, var = norms.batch_statistics(x, VALID)
    np.testing.assert_allclose(mean.value, x[VALID].mean(0), atol=EXACT)
    np.testing.assert_allclose(var.value, x[VALID].var(0), atol=EXACT)
    y = norms.batch_norm(x, VALID, 1.0, 0.0, 0.0).value[VALID]
    np.testing.assert_allclose(y.mean(0), 0.0, atol=EXACT)
    np.testing.assert_allclose(y.var(0), 1.0, atol=EXACT)


def test_group_norm_of_one_token_is_layer_norm_of_each_group() -> None:
    """With one valid token the statistics of a group are those of its channels at that token."""
    x, w, b = normal(13, (2, 3, 6), (6,), (6,))
    valid = np.array([[False, True, False], [True, False, False]])
    x[~valid] = np.nan
    y = norms.group_norm(x, valid, 2, w, b, 1e-5).value[valid]  # (2, 6)
    token = x[valid].reshape(2, 2, 3)
    expected = norms.layer_norm(token, 1.0, 0.0, 1e-5).value.reshape(2, 6) * w + b
    np.testing.assert_allclose(y, expected, atol=EXACT)


def test_group_norm_of_single_channels_is_batch_norm_of_one_sample() -> None:
    """Groups of one channel see what BatchNorm sees in a batch of one sample."""
    x, w, b = normal(14, (1, 3, 4), (4,), (4,))
    group = norms.group_norm(x, VALID[:1], 4, w, b, 1e-5).value
    batch = norms.batch_norm(x, VALID[:1], w, b, 1e-5).value
    np.testing.assert_allclose(group, batch, atol=EXACT)


def test_add_norm_returns_the_stream() -> None:
    """Stream = keep residual + gain x, and y is its norm."""
    r, x, gain = normal(15, (2, 3, 4), (2, 3, 4), (4,))
    y, stream = norms.add_norm(lambda s: norms.layer_norm(s, 2.0, 1.0, 1e-5), r, x, 0.5, gain)
    np.testing.assert_allclose(stream.value, 0.5 * r + gain * x, atol=EXACT)
    expected = norms.layer_norm(0.5 * r + gain * x, 2.0, 1.0, 1e-5).value
    np.testing.assert_allclose(y.value, expected, atol=EXACT)


LSTM_SHAPES: dict[str, tuple[int, ...]] = {
    **{"w_x": (12, 2), "w_h": (12, 3), "b": (12,), "g1": (12,), "b1": (12,), "g2": (12,)},
    **{"b2": (12,), "g3": (3,), "b3": (3,)},
}
GRU_SHAPES: dict[str, tuple[int, ...]] = {
    **{"w_x": (6, 2), "w_h": (6, 3), "v": (3, 2), "u": (3, 3), "g1": (6,), "b1": (6,)},
    **{"g2": (6,), "b2": (6,), "g3": (3,), "b3": (3,), "g4": (3,), "b4": (3,)},
}


def test_lstm_gradients() -> None:
    """Gradients of the layer-normalised LSTM in every weight, the input and the initial state."""

    def forward(x: Var, h: Var, c: Var, **weights: Var) -> Var:
        outputs, _, last_c = norms.layer_norm_lstm(norms.LSTMWeights(**weights), x, h, c, 1e-2)
        return outputs + last_c[:, None]

    shapes = {**LSTM_SHAPES, "x": (2, 3, 2), "h": (2, 3), "c": (2, 3)}
    check_gradients(forward, dict(zip(shapes, normal(16, *shapes.values()), strict=True)))


def test_gru_gradients() -> None:
    """Gradients of the layer-normalised GRU in every weight, the input and the initial state."""

    def forward(x: Var, h: Var, **weights: Var) -> Var:
        return norms.layer_norm_gru(norms.GRUWeights(**weights), x, h, 1e-2)[0]

    shapes = {**GRU_SHAPES, "x": (2, 3, 2), "h": (2, 3)}
    check_gradients(forward, dict(zip(shapes, normal(17, *shapes.values()), strict=True)))


def test_lstm_gates() -> None:
    """With zero norm gains the bias alone sets the gates i, f, g, o: one step by hand."""
    p = {name: np.zeros(shape) for name, shape in LSTM_SHAPES.items()}
    p["b"] = np.repeat([0.3, -0.7, 1.1, 0.9], 3)
    p["g3"] = np.ones(3)
    x, h, c = normal(18, (1, 1, 2), (1, 3), (1, 3))
    outputs, last_h, last_c = norms.layer_norm_lstm(norms.LSTMWeights(**p), x, h, c, 1e-5)
    i, f, _, o = (1 / (1 + np.exp(-np.array([0.3, -0.7, 1.1, 0.9])))).tolist()
    cell = f * c + i * math.tanh(1.1)
    hidden = o * np.tanh((cell - cell.mean()) / np.sqrt(cell.var() + 1e-5))
    np.testing.assert_allclose(last_c.value, cell, atol=EXACT)
    np.testing.assert_allclose(last_h.value, hidden, atol=EXACT)
    np.testing.assert_array_equal(outputs.value[:, -1], last_h.value)


def test_gru_gates() -> None:
    """With zero gains the biases alone set r (first half), z (second) and n: one step by hand."""
    p = {name: np.zeros(shape) for name, shape in GRU_SHAPES.items()}
    p["b1"] = np.repeat([0.4, -0.6], 3)
    p["b3"], p["b4"] = np.full(3, 0.2), np.full(3, 0.8)
    x, h = normal(19, (1, 1, 2), (1, 3))
    _, last = norms.layer_norm_gru(norms.GRUWeights(**p), x, h, 1e-5)
    r, z = (1 / (1 + np.exp(-np.array([0.4, -0.6])))).tolist()
    expected = (1 - z) * h + z * math.tanh(0.2 + r * 0.8)
    np.testing.assert_allclose(last.value, expected, atol=EXACT)


# -------------------------------------------------------------------------------------- schemes

DIM, HEADS, HIDDEN, MEMORY = 4, 2, 5, 3
BLOCK = ["attn", "mlp"]

# The places of the norms of one sublayer, the shapes of its join, and the norms of the stack.
PLACES: dict[str, list[str]] = {
    "no_residual": ["pre.norm"],
    "no_norm": [],
    "pre_norm": ["pre.norm"],
    "post_norm": ["post.norm"],
    "sandwich": ["pre.norm", "out"],
    "output_norm": ["out"],
    "deepnorm": ["post.norm"],
    "rezero": [],
    "layer_scale": ["pre.norm"],
    "residual_dual": ["post.norm"],
    "mix_ln": ["pre.norm", "post.norm"],
    "ln_scaling": ["pre.norm"],
    "sub_ln": ["pre.norm"],
    "hyper_connections": ["pre.norm", "join.norm"],
    "ngpt": [],
    "parallel_pre_norm": ["pre.norm"],
}
JOINS: dict[str, dict[str, tuple[int, ...]]] = {
    "rezero": {"gain": ()},
    "layer_scale": {"gain": (DIM,)},
    "ngpt": {"alpha": (DIM,)},
    "hyper_connections": {
        **{"alpha": (2, 3), "alpha_scale": (), "alpha_fn": (DIM, 3)},
        **{"beta": (2,), "beta_scale": (), "beta_fn": (DIM,)},
    },
}
WITHOUT_FINAL = {"no_residual", "no_norm", "post_norm", "deepnorm", "rezero", "ngpt"}
ARGUMENTS: dict[str, dict[str, float]] = {"mix_ln": {"frac": 0.5}, "hyper_connections": {"n": 2}}


def make_params(name: str, kinds: list[str], seed: int = 20) -> Arrays:
    """Random parameters of every name that the design uses, none of them near a kink."""
    rng = np.random.default_rng(seed)
    params: Arrays = {}

    def linear(prefix: str, out: int, width: int) -> None:
        params[f"{prefix}.weight"] = rng.normal(size=(out, width)) / math.sqrt(width)
        params[f"{prefix}.bias"] = 0.3 * rng.normal(size=out)

    def norm(prefix: str, width: int) -> None:
        params[f"{prefix}.weight"] = 1.0 + 0.3 * rng.normal(size=width)
        params[f"{prefix}.bias"] = 0.3 * rng.normal(size=width)

    for i, kind in enumerate(kinds):
        branch = f"subs.{i}.branch"
        if kind == "mlp":
            linear(f"{branch}.up", HIDDEN, DIM)
            linear(f"{branch}.down", DIM, HIDDEN)
        else:
            source = MEMORY if kind == "cross" else DIM
            for role, width in {"q": DIM, "k": source, "v": source, "out": DIM}.items():
                linear(f"{branch}.{role}", DIM, width)
        if name == "sub_ln":
            norm(f"{branch}.inner", HIDDEN if kind == "mlp" else DIM)
        for place in PLACES[name]:
            norm(f"subs.{i}.{place}", DIM)
        for join, shape in JOINS.get(name, {}).items():
            params[f"subs.{i}.join.{join}"] = np.array(0.6 + 0.2 * rng.normal(size=shape))
    if name == "residual_dual":
        norm("exit.norm", DIM)
    elif name not in WITHOUT_FINAL:
        norm("final.norm", DIM)
    return params


def run(
    name: str,
    params: Mapping[str, Array],
    x: Array,
    kinds: list[str],
    *,
    memory: Array | None = None,
    **arguments: float,
) -> schemes.Result:
    """One design as a causal decoder, with the cotangent fixed by the shape of x."""
    blocks = kinds.count("attn")
    return schemes.run(
        name,
        params,
        x,
        kinds,
        heads=HEADS,
        causal=True,
        memory=memory,
        side="decoder",
        depths=(0 if memory is None else blocks, blocks),
        cotangent=np.random.default_rng(21).normal(size=x.shape),
        **arguments,
    )


def check_scheme(name: str, kinds: list[str], memory: Array | None) -> None:
    """Check every gradient that `run` returns against central differences of the plain output."""
    params = make_params(name, kinds)
    (x,) = normal(22, (1, 3, DIM))
    result = run(name, params, x, kinds, memory=memory, **ARGUMENTS.get(name, {}))
    cotangent = np.random.default_rng(21).normal(size=x.shape)
    blocks = kinds.count("attn")

    def loss() -> float:
        net = schemes.Net(
            params={key: Var(value) for key, value in params.items()},
            kinds=kinds,
            heads=HEADS,
            causal=True,
            memory=None if memory is None else Var(memory),
            side="decoder",
            depths=(0 if memory is None else blocks, blocks),
        )
        y = schemes.REFERENCES[name](net, Var(x), **ARGUMENTS.get(name, {}))
        return float((y.value * cotangent).sum())

    assert result.grads.keys() == params.keys()
    for key, value in params.items():
        assert_gradient(result.grads[key], central_difference(loss, value), key)
    assert_gradient(result.dx, central_difference(loss, x), "dx")
    if memory is not None:
        assert result.dmemory is not None
        assert_gradient(result.dmemory, central_difference(loss, memory), "dmemory")


@pytest.mark.parametrize("name", schemes.REFERENCES)
def test_scheme_gradients(name: str) -> None:
    """Every parameter gradient and dx of every design, on two blocks of width 4."""
    check_scheme(name, BLOCK * 2, None)


def test_scheme_gradients_with_memory() -> None:
    """The same with cross-attention, and the gradient in the memory."""
    (memory,) = normal(23, (1, 2, MEMORY))
    check_scheme("pre_norm", ["attn", "cross", "mlp"], memory)


@pytest.mark.parametrize("name", schemes.REFERENCES)
def test_scheme_uses_every_parameter(name: str) -> None:
    """Only the norms of the other kind of block in Mix-LN and the key biases have gradient 0.

    A key bias shifts all logits of a query equally, which the softmax cancels; the shared norm of
    a parallel block is that of its attention.
    """
    kinds = BLOCK * 2
    (x,) = normal(24, (1, 3, DIM))
    result = run(name, make_params(name, kinds), x, kinds, memory=None, **ARGUMENTS.get(name, {}))
    unused = {key for key, grad in result.grads.items() if np.abs(grad).max() < EXACT}
    expected = {f"subs.{i}.branch.k.bias" for i in (0, 2)}
    if name == "mix_ln":
        places = {"subs.0.pre", "subs.1.pre", "subs.2.post", "subs.3.post"}
        expected |= {f"{place}.norm.{end}" for place in places for end in ("weight", "bias")}
    if name == "parallel_pre_norm":
        expected |= {f"subs.{i}.pre.norm.{end}" for i in (1, 3) for end in ("weight", "bias")}
    assert unused == expected


@pytest.mark.parametrize("name", schemes.REFERENCES)
def test_scheme_is_causal(name: str) -> None:
    """A change of the last token leaves the outputs of the others as they are, and only those."""
    kinds = BLOCK * 2
    params = make_params(name, kinds)
    (x,) = normal(25, (1, 3, DIM))
    before = run(name, params, x, kinds, memory=None, **ARGUMENTS.get(name, {})).y
    x[:, -1] = [1.0, -2.0, 0.5, 3.0]
    after = run(name, params, x, kinds, memory=None, **ARGUMENTS.get(name, {})).y
    np.testing.assert_array_equal(before[:, :-1], after[:, :-1])
    assert np.abs(before[:, -1] - after[:, -1]).max() > 1e-3


def test_zero_gains_leave_the_stream_alone() -> None:
    """With zero gains ReZero is the identity and LayerScale the final norm of the input."""
    kinds = BLOCK * 2
    (x,) = normal(26, (2, 3, DIM))
    for name in ("rezero", "layer_scale"):
        params = make_params(name, kinds)
        for i in range(len(kinds)):
            params[f"subs.{i}.join.gain"][...] = 0.0
        y = run(name, params, x, kinds).y
        if name == "rezero":
            np.testing.assert_array_equal(y, x)
        else:
            w, b = params["final.norm.weight"], params["final.norm.bias"]
            np.testing.assert_allclose(y, norms.layer_norm(x, w, b, 1e-5).value, atol=EXACT)


def test_designs_that_reduce_to_pre_norm() -> None:
    """Neutral settings give pre-norm: unit gains, no post-norm block, one block, one static row."""
    kinds = BLOCK
    (x,) = normal(27, (2, 3, DIM))
    params = make_params("pre_norm", kinds)
    for i in range(len(kinds)):
        params[f"subs.{i}.join.gain"] = np.ones(DIM)
        params[f"subs.{i}.join.alpha"] = np.ones((1, 2))
        params[f"subs.{i}.join.alpha_fn"] = np.ones((DIM, 2))
        params[f"subs.{i}.join.beta"] = np.ones(1)
        params[f"subs.{i}.join.beta_fn"] = np.ones(DIM)
        for end in ("alpha_scale", "beta_scale"):
            params[f"subs.{i}.join.{end}"] = np.array(0.0)
        for end in ("weight", "bias"):
            params[f"subs.{i}.join.norm.{end}"] = np.ones(DIM)
    expected = run("pre_norm", params, x, kinds)
    cases: dict[str, dict[str, float]] = {
        **{"layer_scale": {}, "mix_ln": {"frac": 0.9}, "ln_scaling": {}},
        "hyper_connections": {"n": 1},
    }
    for name, arguments in cases.items():
        result = run(name, params, x, kinds, memory=None, **arguments)
        np.testing.assert_allclose(result.y, expected.y, atol=EXACT, err_msg=name)
        np.testing.assert_allclose(result.dx, expected.dx, atol=EXACT, err_msg=name)


def test_mix_ln_counts_blocks() -> None:
    """Of three blocks of three sublayers, floor(0.4 * 3) = 1 is post-norm."""
    kinds = ["attn", "cross", "mlp"] * 3
    x, memory = normal(28, (1, 3, DIM), (1, 2, MEMORY))
    params = make_params("mix_ln", kinds)
    result = run("mix_ln", params, x, kinds, memory=memory, frac=0.4)
    post = {i for i in range(9) if result.grads[f"subs.{i}.post.norm.weight"].any()}
    pre = {i for i in range(9) if result.grads[f"subs.{i}.pre.norm.weight"].any()}
    assert (post, pre) == ({0, 1, 2}, {3, 4, 5, 6, 7, 8})


def test_ln_scaling_divides_by_the_root_of_the_block() -> None:
    """Folding 1/sqrt(block) in the weights of each pre-norm turns LN scaling into pre-norm."""
    kinds = ["attn", "cross", "mlp"] * 3
    x, memory = normal(29, (1, 3, DIM), (1, 2, MEMORY))
    params = make_params("ln_scaling", kinds)
    scaled = run("ln_scaling", params, x, kinds, memory=memory).y
    for i in range(9):
        for end in ("weight", "bias"):
            params[f"subs.{i}.pre.norm.{end}"] /= math.sqrt([1, 1, 1, 2, 2, 2, 3, 3, 3][i])
    np.testing.assert_allclose(
        scaled, run("pre_norm", params, x, kinds, memory=memory).y, atol=EXACT
    )


@pytest.mark.parametrize(
    ("side", "depths", "alpha"),
    [
        ("encoder", (8, 0), 2.0),
        ("decoder", (0, 8), 2.0),
        ("encoder", (2, 16), 0.81 * 2**0.5),
        ("decoder", (4, 27), 3.0),
    ],
)
def test_deepnorm_alpha(
    side: Literal["encoder", "decoder"], depths: tuple[int, int], alpha: float
) -> None:
    """The published alpha, read off one sublayer that adds alpha x and a known constant."""
    (x,) = normal(30, (1, 3, DIM))
    params = make_params("deepnorm", ["mlp"])
    params["subs.0.branch.down.weight"][...] = 0.0
    y = schemes.run(
        "deepnorm",
        params,
        x,
        ["mlp"],
        heads=HEADS,
        causal=False,
        side=side,
        depths=depths,
        cotangent=np.ones_like(x),
    ).y
    w, b = params["subs.0.post.norm.weight"], params["subs.0.post.norm.bias"]
    expected = norms.layer_norm(alpha * x + params["subs.0.branch.down.bias"], w, b, 1e-5).value
    np.testing.assert_allclose(y, expected, atol=EXACT)


Branch = Callable[[Array], Array]
Norm = Callable[[str, Array], Array]


def unit(x: Array) -> Array:
    """Rows of x divided by their length."""
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), dtype=np.float64)


ONE_SUBLAYER: dict[str, Callable[[Array, Branch, Norm, Arrays], Array]] = {
    "no_residual": lambda x, f, n, p: f(n("subs.0.pre.norm", x)),
    "no_norm": lambda x, f, n, p: x + f(x),
    "pre_norm": lambda x, f, n, p: n("final.norm", x + f(n("subs.0.pre.norm", x))),
    "post_norm": lambda x, f, n, p: n("subs.0.post.norm", x + f(x)),
    "sandwich": lambda x, f, n, p: n("final.norm", x + n("subs.0.out", f(n("subs.0.pre.norm", x)))),
    "output_norm": lambda x, f, n, p: n("final.norm", x + n("subs.0.out", f(x))),
    "rezero": lambda x, f, n, p: x + p["subs.0.join.gain"] * f(x),
    "residual_dual": lambda x, f, n, p: n("subs.0.post.norm", x + f(x)) + n("exit.norm", x + f(x)),
    "ngpt": lambda x, f, n, p: unit(
        unit(x) + 0.1 * np.abs(p["subs.0.join.alpha"]) * (unit(f(unit(x))) - unit(x))
    ),  # 0.05 sqrt(4) = 0.1
}


@pytest.mark.parametrize("name", ONE_SUBLAYER)
def test_one_sublayer_by_hand(name: str) -> None:
    """One MLP sublayer written out in plain NumPy."""
    (x,) = normal(43, (2, 3, DIM))
    p = make_params(name, ["mlp"])
    if name == "ngpt":
        p["subs.0.join.alpha"] *= -1.0

    def f(u: Array) -> Array:
        z = u @ p["subs.0.branch.up.weight"].T + p["subs.0.branch.up.bias"]
        z = z * (1.0 + np.vectorize(math.erf)(z / math.sqrt(2.0))) / 2.0
        return np.asarray(z @ p["subs.0.branch.down.weight"].T + p["subs.0.branch.down.bias"])

    def n(prefix: str, u: Array) -> Array:
        standard = (u - u.mean(-1, keepdims=True)) / np.sqrt(u.var(-1, keepdims=True) + 1e-5)
        return np.asarray(standard * p[f"{prefix}.weight"] + p[f"{prefix}.bias"])

    expected = ONE_SUBLAYER[name](x, f, n, p)
    np.testing.assert_allclose(run(name, p, x, ["mlp"]).y, expected, atol=EXACT)


def test_hyper_connections_with_equal_rows_are_pre_norm() -> None:
    """A_m = e_k, A_r = I, B = 1, no dynamic part: all n rows carry the pre-norm stream.

    Their sum is n times it, so the final norm sees n x: the same as pre-norm up to eps / n^2.
    """
    kinds = BLOCK * 2
    (x,) = normal(32, (1, 3, DIM))
    params = make_params("hyper_connections", kinds)
    for i in range(len(kinds)):
        alpha = np.concatenate([np.eye(2)[:, [i % 2]], np.eye(2)], axis=1)
        params[f"subs.{i}.join.alpha"] = alpha
        params[f"subs.{i}.join.beta"] = np.ones(2)
        for end in ("alpha_scale", "beta_scale"):
            params[f"subs.{i}.join.{end}"] = np.array(0.0)
    hyper = run("hyper_connections", params, x, kinds, n=2).y
    # d LN / d eps = |y| / (2 var) < 10 here, and eps changes by 7.5e-6.
    np.testing.assert_allclose(hyper, run("pre_norm", params, x, kinds).y, atol=1e-4)


def test_hyper_connections_width_mixing_is_transposed() -> None:
    """One sublayer with different rows, by hand: row j of A_r^T H is sum_k A_r[k, j] H_k."""
    params = make_params("hyper_connections", ["mlp", "mlp"])
    params["subs.0.join.alpha_scale"] = params["subs.0.join.beta_scale"] = np.array(0.0)
    params["subs.1.join.alpha_scale"] = params["subs.1.join.beta_scale"] = np.array(0.0)
    (x,) = normal(33, (1, 1, DIM))
    y = run("hyper_connections", params, x, ["mlp", "mlp"], n=2).y[0, 0]

    def branch(i: int, u: Array) -> Array:
        p = {key.removeprefix(f"subs.{i}."): value for key, value in params.items()}
        z = norms.layer_norm(u, p["pre.norm.weight"], p["pre.norm.bias"], 1e-5).value
        z = parts.gelu(p["branch.up.weight"] @ z + p["branch.up.bias"]).value
        return np.asarray(p["branch.down.weight"] @ z + p["branch.down.bias"], dtype=np.float64)

    rows = [x[0, 0], x[0, 0]]
    for i in range(2):
        a, b = params[f"subs.{i}.join.alpha"], params[f"subs.{i}.join.beta"]
        v = branch(i, a[0, 0] * rows[0] + a[1, 0] * rows[1])
        rows = [a[0, j + 1] * rows[0] + a[1, j + 1] * rows[1] + b[j] * v for j in range(2)]
    w, bias = params["final.norm.weight"], params["final.norm.bias"]
    expected = norms.layer_norm(rows[0] + rows[1], w, bias, 1e-5).value
    np.testing.assert_allclose(y, expected, atol=EXACT)


def test_ngpt_stays_on_the_sphere() -> None:
    """Every output token has unit length; with alpha = 0 it is the normalised input."""
    kinds = BLOCK * 2
    (x,) = normal(34, (2, 3, DIM))
    params = make_params("ngpt", kinds)
    lengths = np.linalg.norm(run("ngpt", params, x, kinds).y, axis=-1)
    np.testing.assert_allclose(lengths, 1.0, atol=EXACT)
    for i in range(len(kinds)):
        params[f"subs.{i}.join.alpha"][...] = 0.0
    expected = x / np.linalg.norm(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(run("ngpt", params, x, kinds).y, expected, atol=EXACT)


def test_malformed_nets_are_refused() -> None:
    """Missing memory, missing inner norm, unknown kinds and a wrong parallel block raise."""
    (x,) = normal(35, (1, 3, DIM))
    for name, kinds, message in [
        ("no_norm", ["cross"], "no memory"),
        ("no_norm", ["conv"], "unknown kind"),
        ("sub_ln", ["mlp"], "no inner norm"),
        ("parallel_pre_norm", ["mlp", "attn"], "parallel block"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(name, make_params("pre_norm", kinds), x, kinds)


# ------------------------------------------------------------------------------------ attention


@pytest.mark.parametrize("causal", [False, True])
def test_two_attentions_agree(causal: bool) -> None:
    """The loops and the matrix products compute one function (identity projections)."""
    (x,) = normal(36, (2, 5, 6))
    p = {f"{role}.weight": Var(np.eye(6)) for role in ("q", "k", "v", "out")}
    p |= {f"{role}.bias": Var(np.zeros(6)) for role in ("q", "k", "v", "out")}
    matrix = parts.attention(p, x, x, 2, causal, 1e-5).value
    heads = x.reshape(2, 5, 2, 3).transpose(0, 2, 1, 3)
    loops = naive.attention(heads, heads, heads, causal=causal)
    np.testing.assert_allclose(loops.transpose(0, 2, 1, 3).reshape(2, 5, 6), matrix, atol=EXACT)


def test_grouped_heads_are_repeated_heads() -> None:
    """Query head h reads the key/value head h // group."""
    q, k, v = normal(37, (1, 4, 3, 2), (1, 2, 3, 2), (1, 2, 3, 2))
    expected = naive.attention(q, k.repeat(2, axis=1), v.repeat(2, axis=1))
    np.testing.assert_array_equal(naive.attention(q, k, v), expected)


def test_last_queries_see_the_same_keys() -> None:
    """Decoding the last two queries against all keys gives the last two rows of the full pass."""
    q, k, v = normal(38, (1, 2, 5, 4), (1, 2, 5, 4), (1, 2, 5, 4))
    slopes = naive.alibi_slopes(2)
    for window in (None, 2):
        full = naive.attention(q, k, v, causal=True, window=window, slopes=slopes, softcap=2.0)
        last = naive.attention(
            q[:, :, 3:], k, v, causal=True, window=window, slopes=slopes, softcap=2.0
        )
        np.testing.assert_array_equal(last, full[:, :, 3:])


def test_masks_agree() -> None:
    """Window, key validity and the general mask say the same where they mean the same."""
    q, k, v = normal(39, (1, 2, 5, 4), (1, 2, 5, 4), (1, 2, 5, 4))
    i, j = np.arange(5)[:, None], np.arange(5)[None, :]
    np.testing.assert_array_equal(
        naive.attention(q, k, v, window=2), naive.attention(q, k, v, attend=(j == i) | (j == i - 1))
    )
    valid = np.array([[False, True, True, False, True]])
    by_valid = naive.attention(q, k, v, causal=True, valid=valid)
    by_attend = naive.attention(q, k, v, attend=(j <= i) & valid)
    np.testing.assert_array_equal(by_valid, by_attend)
    np.testing.assert_array_equal(by_valid[:, :, 0], 0.0)  # query 0 sees key 0 only, not valid
    np.testing.assert_array_equal(naive.attention(q, k, v, window=1), v)


def test_bias_and_cap_by_hand() -> None:
    """One query at position 1, two keys: cap after the scale, signed distance as the bias."""
    q, k = np.full((1, 1, 1, 4), 1.0), np.array([[[[3.0] * 4, [1.0] * 4]]])
    v = np.array([[[[1.0], [0.0]]]])
    logits = [2.0 * math.tanh(6.0 / 2.0) - 0.5, 2.0 * math.tanh(2.0 / 2.0)]
    expected = 1.0 / (1.0 + math.exp(logits[1] - logits[0]))
    y = naive.attention(q, k, v, slopes=np.array([0.5]), softcap=2.0)
    np.testing.assert_allclose(y, expected, atol=EXACT)


def test_alibi_slopes() -> None:
    """The published slopes of 8 heads, and of 12: those of 8 and every other one of 16."""
    np.testing.assert_array_equal(naive.alibi_slopes(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_array_equal(naive.alibi_slopes(1), [2.0**-8])
    twelve = naive.alibi_slopes(12)
    np.testing.assert_array_equal(twelve[:8], naive.alibi_slopes(8))
    np.testing.assert_array_equal(twelve[8:], naive.alibi_slopes(16)[0:8:2])


def test_rope_is_relative() -> None:
    """A shift of all positions leaves q . k; position 0 is the identity; width 2 is a rotation."""
    q, k = normal(40, (1, 6), (1, 6))

    def product(i: float, j: float) -> float:
        turned = naive.rope(q, np.array([i])) * naive.rope(k, np.array([j]))
        return float(turned.sum())

    assert product(7.0, 3.0) == pytest.approx(product(11.0, 7.0), abs=EXACT)
    assert abs(product(7.0, 3.0) - product(7.0, 4.0)) > 1e-3
    np.testing.assert_array_equal(naive.rope(q, np.array([0.0])), q)
    turned = naive.rope(np.array([[1.0, 0.0]]), np.array([0.3]))
    np.testing.assert_allclose(turned, [[math.cos(0.3), math.sin(0.3)]], atol=EXACT)


def test_rope_pairs_the_halves() -> None:
    """Channel j turns with channel j + hd/2, slower with j, and with no other."""
    x = np.zeros((1, 8))
    x[0, 1] = 1.0
    angle = 2.0 * 10000.0 ** (-2 / 8)
    expected = np.zeros((1, 8))
    expected[0, 1], expected[0, 5] = math.cos(angle), math.sin(angle)
    np.testing.assert_allclose(naive.rope(x, np.array([2.0])), expected, atol=EXACT)


def test_qk_norm_and_value_residual() -> None:
    """QK-norm is the RMS norm of each head; the value residual is a weighted sum."""
    x, w, v = normal(41, (1, 2, 3, 4), (4,), (1, 2, 3, 4))
    expected = norms.rms_norm(x, w, 1e-5).value
    np.testing.assert_allclose(naive.qk_norm(x, w, 1e-5), expected, atol=EXACT)
    np.testing.assert_array_equal(naive.value_residual(v, x, 0.25, 0.5), 0.25 * x + 0.5 * v)


def test_sinusoidal() -> None:
    """Interleaved sines and cosines; an odd width drops the last cosine."""
    table = naive.sinusoidal(3, 5)
    assert table.shape == (3, 5)
    np.testing.assert_array_equal(table[0], [0.0, 1.0, 0.0, 1.0, 0.0])
    np.testing.assert_allclose(table[2, :2], [math.sin(2.0), math.cos(2.0)], atol=EXACT)
    assert table[2, 4] == pytest.approx(math.sin(2.0 / 10000.0**0.8), abs=EXACT)


# ----------------------------------------------------------------------------------------- init


@pytest.mark.parametrize(
    ("scheme", "role", "side", "depths", "expected"),
    [
        ("pre_norm", "q", "decoder", (0, 8), 0.02),
        ("pre_norm", "down", "decoder", (0, 8), 0.005),
        ("hyper_connections", "out", "encoder", (8, 0), 0.005),
        ("sandwich", "down", "decoder", (0, 8), 0.02),
        ("post_norm", "down", "decoder", (0, 8), 0.2),
        ("deepnorm", "k", "encoder", (2, 0), 0.2),
        ("deepnorm", "v", "encoder", (2, 0), 0.1),
        ("deepnorm", "up", "decoder", (0, 2), 0.1),
        ("deepnorm", "gate", "encoder", (2, 16), 0.2 * 0.87 / math.sqrt(2.0)),
        ("deepnorm", "out", "decoder", (1, 108), 0.2 / 6.0),
        ("sub_ln", "q", "decoder", (0, 3), 0.2),
        ("sub_ln", "down", "encoder", (4, 0), 0.2 * math.sqrt(math.log(8))),
        ("sub_ln", "down", "decoder", (0, 3), 0.2 * math.sqrt(math.log(6))),
        ("sub_ln", "v", "encoder", (4, 3), 0.2 * math.sqrt(math.log(9) * math.log(8) / 3)),
        ("sub_ln", "v", "decoder", (4, 3), 0.2 * math.sqrt(math.log(9))),
        ("pre_norm", "embed", "decoder", (0, 8), 0.02),
        ("post_norm", "head", "decoder", (0, 8), 1 / math.sqrt(18)),
        ("deepnorm", "embed", "decoder", (0, 8), 1 / math.sqrt(18)),
        ("sub_ln", "head", "encoder", (4, 3), 1 / math.sqrt(18)),
        ("ngpt", "embed", "decoder", (0, 8), 1 / math.sqrt(18)),
        ("ngpt", "up", "decoder", (0, 8), 1 / math.sqrt(18)),
        ("ngpt", "down", "decoder", (0, 8), 1 / math.sqrt(32)),
    ],
)
def test_init_std(
    scheme: str,
    role: str,
    side: Literal["encoder", "decoder"],
    depths: tuple[int, int],
    expected: float,
) -> None:
    """Published values by hand, for a matrix (32, 18): its Xavier deviation is 0.2."""
    n, m = depths
    blocks = n if side == "encoder" else m
    std = init_std(scheme, role, (32, 18), side=side, N=n, M=m, blocks=blocks)
    assert std == pytest.approx(expected, rel=EXACT)


def test_init_covers_every_design() -> None:
    """Every design has a published deviation (a parallel block that of pre-norm)."""
    for name in set(schemes.REFERENCES) - {"parallel_pre_norm"}:
        assert init_std(name, "up", (8, 4), side="decoder", N=0, M=2, blocks=2) > 0.0
    with pytest.raises(ValueError, match="unknown role"):
        init_std("pre_norm", "bias", (8, 4), side="decoder", N=0, M=2, blocks=2)
    with pytest.raises(ValueError, match="no published"):
        init_std("parallel_pre_norm", "up", (8, 4), side="decoder", N=0, M=2, blocks=2)


def test_init_value() -> None:
    """Sublayer 6 of a hyper-connected stack reads stream 6 mod 4 = 2."""
    alpha = init_value("hyper_connections", "join.alpha", 6, (4, 5))
    rows = [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 1, 0], [0, 0, 0, 0, 1]]
    np.testing.assert_array_equal(alpha, rows)
    assert init_value("ngpt", "join.alpha", 0, (4,)).tolist() == [0.5] * 4
    assert init_value("rezero", "join.gain", 0, (1,)).tolist() == [0.0]
    with pytest.raises(ValueError, match="no published value"):
        init_value("pre_norm", "join.gain", 0, (4,))
