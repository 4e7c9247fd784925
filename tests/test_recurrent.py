"""The layer-normalized LSTM and GRU: against the equations, and against nn.LSTM's interface.

Tolerance ``EXACT`` for two float64 evaluations of one formula, relative to the largest entry where
that exceeds one. A run here is at most 2 layers * 6 steps * some 30 operations on sums of at most
24 terms: below 10^4 roundings of 1.1e-16, 1e-12 if all had one sign. A norm multiplies what enters
it by 1 / std; most stds here are near one, the least is 0.06. A margin of ten for that gives 1e-11
(measured: 2e-13). A wrong term shows at 1e-2 or more.
"""

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pad_packed_sequence,
    unpad_sequence,
)

from addnorm.recurrent import LayerNormGRU, LayerNormLSTM
from tests.references import norms, tape
from tests.references.tape import Array, Var

EXACT = 1e-11
D, H, B, T = 5, 6, 3, 6

LSTM_NAMES = {
    "w_x": "input.weight",
    "w_h": "hidden.weight",
    "b": "bias",
    "g1": "hidden.norm.weight",
    "b1": "hidden.norm.bias",
    "g2": "input.norm.weight",
    "b2": "input.norm.bias",
    "g3": "cell.weight",
    "b3": "cell.bias",
}
GRU_NAMES = {
    "w_x": "input_gates.weight",
    "w_h": "hidden_gates.weight",
    "v": "input_new.weight",
    "u": "hidden_new.weight",
    "g1": "hidden_gates.norm.weight",
    "b1": "hidden_gates.norm.bias",
    "g2": "input_gates.norm.weight",
    "b2": "input_gates.norm.bias",
    "g3": "input_new.norm.weight",
    "b3": "input_new.norm.bias",
    "g4": "hidden_new.norm.weight",
    "b4": "hidden_new.norm.bias",
}

Model = LayerNormLSTM | LayerNormGRU
both = pytest.mark.parametrize("make", [LayerNormLSTM, LayerNormGRU])
deep = pytest.mark.parametrize("shape", [(1, False), (2, True)], ids=["1", "2-bidirectional"])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def double(make: type[Model], *args: Any, **options: Any) -> Model:
    """A float64 model whose every parameter is random: no norm at 1 and 0."""
    model = make(*args, **options).double()
    for p in model.parameters():
        nn.init.normal_(p, mean=0.5 if p.dim() == 1 else 0.0)
    return model


def parts(state: Any) -> tuple[Tensor, ...]:
    """The state as a tuple, for both models."""
    return (state,) if isinstance(state, Tensor) else tuple(state)


def whole(state: tuple[Tensor, ...]) -> Any:
    """The inverse of ``parts``: what the model takes as hx."""
    return state if len(state) > 1 else state[0]


def random_hx(make: type[Model], rows: int, batch: tuple[int, ...] = (B,)) -> Any:
    """A random hx in float64."""
    count = 2 if make is LayerNormLSTM else 1
    return whole(tuple(torch.randn(rows, *batch, H, dtype=torch.float64) for _ in range(count)))


def assert_close(actual: Tensor, expected: Tensor | Array, what: str = "") -> None:
    a, b = (t.detach().numpy() if isinstance(t, Tensor) else t for t in (actual, expected))
    scale = max(1.0, float(np.abs(b).max()))
    np.testing.assert_allclose(a, b, rtol=0.0, atol=EXACT * scale, err_msg=what)


# ---- the equations -----------------------------------------------------------------------------


def reference(model: Model, x: Var, hx: list[Var]) -> tuple[Var, list[Var], dict[str, Var]]:
    """Outputs (B, T, directions * H), each part of the last state, and the leaf of each parameter.

    ``hx`` holds the parts of the state, each (layers * directions, B, H).
    """
    lstm = isinstance(model, LayerNormLSTM)
    names = LSTM_NAMES if lstm else GRU_NAMES
    leaves = {n: Var(p.detach().numpy()) for n, p in model.named_parameters()}
    ends: list[list[Var]] = []
    for first in range(0, len(model.layers), model.directions):
        outputs = []
        for k in range(first, first + model.directions):
            order = slice(None, None, -1 if k > first else 1)
            p = {short: leaves.get(f"layers.{k}.{n}", 0.0) for short, n in names.items()}
            u, h, c = x[:, order], hx[0][k], hx[-1][k]
            y, *end = (
                norms.layer_norm_lstm(norms.LSTMWeights(**p), u, h, c, model.eps)
                if lstm
                else norms.layer_norm_gru(norms.GRUWeights(**p), u, h, model.eps)
            )
            outputs.append(y[:, order])
            ends.append(end)
        x = tape.concatenate(outputs, axis=-1)
    return x, [tape.stack(list(end), axis=0) for end in zip(*ends, strict=True)], leaves


@both
@deep
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("with_state", [True, False], ids=["hx", "zeros"])
def test_equals_reference(
    make: type[Model], shape: tuple[int, bool], bias: bool, with_state: bool
) -> None:
    """Outputs, last states, and the gradients of the input, hx and every parameter."""
    layers, bidirectional = shape
    options = {"bias": bias, "bidirectional": bidirectional, "batch_first": True}
    model = double(make, D, H, layers, **options, eps=1e-3)
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    hx = parts(random_hx(make, len(model.layers)))
    hx = tuple((s if with_state else s * 0).requires_grad_() for s in hx)
    output, state = model(x, whole(hx) if with_state else None)
    outputs = (output, *parts(state))
    cotangents = [torch.randn_like(y) for y in outputs]
    torch.autograd.backward(outputs, cotangents)

    x_leaf, hx_leaves = Var(x.detach().numpy()), [Var(s.detach().numpy()) for s in hx]
    y, ends, leaves = reference(model, x_leaf, hx_leaves)
    loss = Var(0.0)
    for actual, expected, cotangent in zip(outputs, (y, *ends), cotangents, strict=True):
        assert_close(actual, expected.value, "forward")
        loss = loss + (expected * cotangent.numpy()).sum()
    tape.backward(loss, 1.0)

    leaf_pairs = [("input", x, x_leaf)]
    leaf_pairs += [(n, p, leaves[n]) for n, p in model.named_parameters()]
    if with_state:
        leaf_pairs += [("hx", s, leaf) for s, leaf in zip(hx, hx_leaves, strict=True)]
    for name, tensor, leaf in leaf_pairs:
        assert tensor.grad is not None, name
        assert tensor.grad.any(), name
        assert_close(tensor.grad, leaf.grad, f"gradient of {name}")


@both
@pytest.mark.parametrize("packed", [False, True])
def test_gradcheck(make: type[Model], packed: bool) -> None:
    """Central differences through everything at once, two directions, rows of lengths 2 and 1."""
    model = double(make, 2, 3, bidirectional=True)
    names, values = zip(*model.named_parameters(), strict=True)
    hx = tuple(torch.randn_like(s) for s in parts(model(torch.randn(1, 2, 2).double())[1]))

    def run(x: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
        state, p = leaves[: len(hx)], dict(zip(names, leaves[len(hx) :], strict=True))
        sequence = pack_padded_sequence(x, torch.tensor([2, 1])) if packed else x
        output, last = torch.func.functional_call(model, p, (sequence, whole(state)))
        return (output.data if packed else output, *parts(last))

    x = torch.randn(2, 2, 2, dtype=torch.float64)
    leaves = [t.detach().clone().requires_grad_() for t in (x, *hx, *values)]
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@both
def test_input_projection_is_outside_the_loop(make: type[Model]) -> None:
    """Products with the input are taken once per run, those with the state once per step."""
    model = make(D, H)
    calls: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[name] = calls.get(name, 0) + 1

        return hook

    for name, part in model.layers[0].named_children():
        part.register_forward_hook(count(name))
    model(torch.randn(T, B, D))
    assert calls == {n: 1 if n.startswith("input") else T for n in calls}
    assert len(calls) == len(list(model.layers[0].children()))


# ---- the interface of nn.LSTM and nn.GRU -------------------------------------------------------


def describe(value: Any) -> Any:
    """Types, shapes, dtypes, and what a PackedSequence carries beside its data."""
    if isinstance(value, PackedSequence):
        order = [None if t is None else t.tolist() for t in value[1:]]
        return ("packed", describe(value.data), order)
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype)
    return tuple(describe(v) for v in value)


@pytest.mark.parametrize(
    ("make", "torchs"), [(LayerNormLSTM, nn.LSTM), (LayerNormGRU, nn.GRU)], ids=["lstm", "gru"]
)
@deep
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["batched", "unbatched", "no rows", "packed", "packed unsorted"])
def test_returns_what_torch_returns(
    make: type[Model],
    torchs: Callable[..., nn.RNNBase],
    shape: tuple[int, bool],
    batch_first: bool,
    kind: str,
) -> None:
    layers, bidirectional = shape
    options: dict[str, Any] = {
        "num_layers": layers,
        "bidirectional": bidirectional,
        "batch_first": batch_first,
    }
    ours, theirs = make(D, H, **options), torchs(D, H, **options)
    rows = 0 if kind == "no rows" else B
    x: Any = torch.randn(T, D) if kind == "unbatched" else torch.randn(T, rows, D)
    if x.dim() == 3 and batch_first:
        x = x.transpose(0, 1)
    if kind.startswith("packed"):
        lengths = [6, 4, 1] if kind == "packed" else [1, 6, 4]
        x = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=kind == "packed")
    expected = theirs(x)
    assert describe(ours(x)) == describe(expected)
    assert describe(ours(x, expected[1])) == describe(expected)


@both
def test_batch_first_and_unbatched_are_the_same_sequence(make: type[Model]) -> None:
    model = double(make, D, H, 2, bidirectional=True)
    x, hx = torch.randn(T, B, D, dtype=torch.float64), random_hx(make, 4)
    output, state = model(x, hx)
    model.batch_first = True
    first, first_state = model(x.transpose(0, 1), hx)
    assert torch.equal(first.transpose(0, 1), output)
    one, one_state = model(x[:, 1], whole(tuple(s[:, 1] for s in parts(hx))))
    assert_close(one, output[:, 1])
    for a, b, c in zip(parts(state), parts(first_state), parts(one_state), strict=True):
        assert torch.equal(a, b)
        assert_close(c, a[:, 1])


@both
@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_packed_is_each_row_alone(make: type[Model], enforce_sorted: bool, seed: int) -> None:
    """Two layers, both directions: outputs, states at each row's true end, all gradients."""
    generator = torch.Generator().manual_seed(seed)
    rows = 5
    lengths = torch.randint(1, T + 1, (rows,), generator=generator)
    lengths[seed] = T
    if enforce_sorted:
        lengths = lengths.sort(descending=True).values
    model = double(make, D, H, 2, bidirectional=True, batch_first=True)
    x = torch.randn(rows, T, D, dtype=torch.float64, requires_grad=True)
    hx = random_hx(make, 4, (rows,))
    for s in parts(hx):
        s.requires_grad_()
    leaves = [x, *parts(hx), *model.parameters()]

    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=enforce_sorted)
    output, state = model(packed, hx)
    padded, out_lengths = pad_packed_sequence(output, batch_first=True)
    assert torch.equal(out_lengths, lengths)
    together = [*unpad_sequence(padded, lengths, batch_first=True), *parts(state)]

    alone = [
        model(x[b, :n], whole(tuple(s[:, b] for s in parts(hx))))
        for b, n in enumerate(lengths.tolist())
    ]
    ends = zip(*(parts(state) for _, state in alone), strict=True)
    apart = [*(y for y, _ in alone), *(torch.stack(end, 1) for end in ends)]

    cotangents = [torch.randn_like(y) for y in apart]
    for a, b in zip(together, apart, strict=True):
        assert_close(a, b, "forward")
    actual = torch.autograd.grad(together, leaves, cotangents)
    for a, b in zip(actual, torch.autograd.grad(apart, leaves, cotangents), strict=True):
        assert_close(a, b, "gradient")


@both
@pytest.mark.parametrize("garbage", [1e30, math.nan])
def test_padding_influences_nothing(make: type[Model], garbage: float) -> None:
    """Bit for bit, forward and backward; the gradient at padding is exactly zero."""
    model = double(make, D, H, 2, bidirectional=True)
    lengths = torch.tensor([2, 6, 3])
    padding = torch.arange(T)[:, None] >= lengths  # (T, B)
    clean = torch.randn(T, B, D, dtype=torch.float64)

    def run(fill: float) -> list[Tensor]:
        x = clean.masked_fill(padding[..., None], fill).requires_grad_()
        output, state = model(pack_padded_sequence(x, lengths, enforce_sorted=False))
        y = (output.data, *parts(state))
        grads = torch.autograd.grad(sum(t.square().sum() for t in y), [x, *model.parameters()])
        assert not grads[0][padding].any()
        assert grads[0][~padding].all()
        return [*y, *grads]

    for a, b in zip(run(0.0), run(garbage), strict=True):
        assert torch.equal(a, b)


@both
def test_a_state_continues_its_sequence(make: type[Model]) -> None:
    """Two runs joined by the state are one run; hx = zeros is the default."""
    model = double(make, D, H, 2)
    x = torch.randn(T, B, D, dtype=torch.float64)
    output, state = model(x)
    assert torch.equal(model(x, whole(tuple(s * 0 for s in parts(state))))[0], output)
    first, middle = model(x[:4])
    second, last = model(x[4:], middle)
    assert_close(torch.cat((first, second)), output)
    for a, b in zip(parts(last), parts(state), strict=True):
        assert_close(a, b)
    assert not torch.allclose(second, model(x[4:])[0])  # it does depend on the state


@both
def test_save_and_load(make: type[Model]) -> None:
    model, other = make(D, H, 2, bidirectional=True), make(D, H, 2, bidirectional=True)
    x = torch.randn(T, B, D)
    assert not torch.equal(model(x)[0], other(x)[0])
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(model(x)[0], other(x)[0])
    assert torch.equal(model(x)[0], copy.deepcopy(model)(x)[0])


# ---- init and dropout --------------------------------------------------------------------------


@pytest.mark.parametrize("again", [False, True], ids=["made", "reset"])
@both
def test_init_figures(make: type[Model], again: bool) -> None:
    size, hidden = 120, 60
    model = make(size, hidden)
    before = [p.detach().clone() for p in model.parameters()]
    if again:
        for p in model.parameters():
            nn.init.constant_(p, 7.0)
        model.reset_parameters()
    layer = model.layers[0]
    bound = math.sqrt(6 / (size + hidden))
    for name, p in layer.named_parameters():
        if name.endswith("norm.weight") or name == "cell.weight":
            assert (p == 1).all(), name
        elif name == "bias":
            expected = torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat_interleave(hidden)  # i, f, g, o
            assert torch.equal(p, expected)
        elif p.dim() == 1:
            assert (p == 0).all(), name
        elif name.startswith("hidden"):
            for gate in torch.split(p, hidden):
                # One QR in float32: an error of a few hundred roundings of 6e-8.
                torch.testing.assert_close(gate @ gate.T, torch.eye(hidden), rtol=0.0, atol=2e-5)
        else:
            # The std of n uniform values is within sqrt(0.2 / n) of its mean; n >= 7200: 0.5%.
            assert p.abs().max() <= bound, name
            assert p.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03), name
    fresh = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert fresh == [again and p.dim() == 2 for p in before]


@both
def test_bias_false_removes_every_additive_parameter(make: type[Model]) -> None:
    model, full = make(D, H, bias=False), make(D, H)
    names = {n for n, _ in model.named_parameters()}
    assert names == {n for n, _ in full.named_parameters() if not n.endswith("bias")}
    assert len(names) < len(list(full.parameters()))


@both
def test_dropout_acts_between_layers_only(make: type[Model]) -> None:
    """With p = 1 the second layer sees zeros: its output is there, but says nothing of x."""
    model = double(make, D, H, 2, dropout=1.0)
    x, other = torch.randn(2, T, B, D, dtype=torch.float64)
    (a, a_state), (b, b_state) = model(x), model(other)
    assert torch.equal(a, b)
    assert a.any()
    for s, t in zip(parts(a_state), parts(b_state), strict=True):
        assert not torch.equal(s[0], t[0])
        assert torch.equal(s[1], t[1])
    model.eval()
    without = make(D, H, 2).double()
    without.load_state_dict(model.state_dict())
    assert torch.equal(model(x)[0], without(x)[0])


@both
def test_dropout_with_one_layer_warns(make: type[Model]) -> None:
    with pytest.warns(UserWarning, match="does nothing with num_layers=1") as record:
        make(D, H, dropout=0.1)
    assert record[0].filename == __file__


# ---- dtypes and devices ------------------------------------------------------------------------


@both
def test_autocast_keeps_state_and_statistics_wide(make: type[Model]) -> None:
    model = make(D, H, 2, bidirectional=True)
    x = torch.randn(T, B, D)
    dtypes: dict[str, set[torch.dtype]] = {"in": set(), "out": set()}

    def hook(module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        product = args[0]
        assert torch.equal(product, product.bfloat16().float())  # a bfloat16 matrix product
        dtypes["in"].add(product.dtype)
        dtypes["out"].add(out.dtype)

    norms = [part for name, part in model.named_modules() if name.endswith("norm")]
    hooks = [norm.register_forward_hook(hook) for norm in norms]
    with torch.autocast("cpu", torch.bfloat16):
        output, state = model(x)
    for handle in hooks:
        handle.remove()
    assert dtypes == {"in": {torch.float32}, "out": {torch.float32}}
    assert output.dtype == torch.float32  # the dtype of the input
    for s in parts(state):
        assert s.dtype == torch.float32
        assert (s != s.bfloat16().float()).any()  # and was never rounded on the way
    # A gate reads two normed products, rounded by at most 2^-9 of some 3: 1e-2. Over two layers of
    # six steps the difference stays of that order; a wrong cast of a statistic shows at 1.
    assert (output - model(x)[0]).abs().max() < 0.1
    output.sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.dtype == torch.float32, name
        assert p.grad.isfinite().all(), name


@both
def test_dtypes_without_autocast(make: type[Model]) -> None:
    """Output like the input, state in float32 or better; float64 stays, under autocast too."""
    x = torch.randn(T, B, D)
    output, state = make(D, H, 2).bfloat16()(x.bfloat16())
    assert output.dtype == torch.bfloat16
    assert {s.dtype for s in parts(state)} == {torch.float32}
    model = double(make, D, H, 2)
    expected = model(x.double())[0]
    with torch.autocast("cpu", torch.bfloat16):
        output, state = model(x.double())
    assert torch.equal(output, expected)
    assert {s.dtype for s in parts(state)} == {torch.float64}


@both
def test_meta_device(make: type[Model]) -> None:
    with torch.device("meta"):
        model = make(D, H, 2, bidirectional=True)
        output, state = model(torch.empty(T, B, D))
    assert output.device.type == "meta"
    assert output.shape == (T, B, 2 * H)
    assert all(s.shape == (4, B, H) for s in parts(state))
    real = model.to_empty(device="cpu")
    real.reset_parameters()
    assert real(torch.randn(T, B, D))[0].isfinite().all()


# ---- errors say what is wrong ------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(T, B, D + 1), ValueError, r"has 6 features .* input_size is 5"),
        (torch.zeros(D), ValueError, r"must be \(T, B, input_size\) or unbatched"),
        (torch.zeros(0, B, D), ValueError, "no time steps"),
        (torch.zeros(T, B, D, dtype=torch.long), TypeError, "embed token ids first"),
        (pack_padded_sequence(torch.zeros(T, B, 2), [6, 2, 1]), ValueError, "has 2 features"),
    ],
    ids=["features", "dimensions", "empty", "integers", "packed"],
)
def test_wrong_input(make: type[Model], x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"{make.__name__}: the input.*{message}"):
        make(D, H)(x)


@both
@pytest.mark.parametrize("kind", ["batched", "unbatched", "packed"])
def test_wrong_hx(make: type[Model], kind: str) -> None:
    model = make(D, H, 2)
    x: Any = torch.zeros(T, D) if kind == "unbatched" else torch.zeros(T, B, D)
    if kind == "packed":
        x = pack_padded_sequence(x, [6, 2, 1])
    expected = r"\(2, 6\)" if kind == "unbatched" else r"\(2, 3, 6\)"
    state = parts(model(x)[1])
    wrong = whole((*state[:-1], state[-1][..., :-1]))
    name = "c_0" if make is LayerNormLSTM else "h_0"
    with pytest.raises(ValueError, match=f"{name} in hx must have shape {expected}.*, got"):
        model(x, wrong)


def test_lstm_needs_both_parts_of_hx() -> None:
    with pytest.raises(ValueError, match=r"hx must be \(h_0, c_0\), got 1 parts"):
        LayerNormLSTM(D, H)(torch.zeros(T, B, D), torch.zeros(1, B, H))


@both
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "must be at least 1, got 5, 6 and 0"),
        ({"num_layers": 2, "dropout": 1.5}, "between 0 and 1, got 1.5"),
    ],
)
def test_wrong_options(make: type[Model], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(D, H, **options)
