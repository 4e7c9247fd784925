"""``addnorm.compat`` against ``torch.nn``: same weights, same masks, same numbers, same names.

Tolerances, relative to the largest value of the tensor compared. Both sides evaluate one formula in
different orders: an output is a chain of some 10 sums of 16 to 32 terms, a gradient twice that, so
10^2 to 10^3 roundings. In float64 (unit 1.1e-16) that is below 1e-13, and 1e-12 leaves a factor of
ten; in float32 (6e-8) roundings add up like their square root, below 2e-6, and 1e-5 leaves a factor
of five. A mask of the wrong sign, a swapped matrix or a misplaced norm shows at 1e-2 or more.
"""

import copy
import inspect
import math
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm import compat, ops
from addnorm.init import init_table
from addnorm.joins import Scaled
from addnorm.models.transformer import EncoderDecoder
from addnorm.norms import BatchNorm, LayerNorm
from addnorm.schemes import deepnorm, names, parse, pre_norm
from addnorm.stream import Site, Sublayer, Wiring

DIM, HEADS, HIDDEN, BATCH = 16, 4, 32, 3
SOURCE, TARGET = 6, 5
DOUBLE = torch.float64
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
EPS = 1e-3  # not the default, so that a layer_norm_eps that gets lost is seen

LAYOUTS = [(True, True), (False, True), (False, False)]  # batch_first, and whether there is a batch

SCHEMES = [
    *names(),
    "drop_path(sandwich, p=0.5)",
    "with_layer_scale(post_norm)",
    "parallel(pre_norm)",
    "fan_in(deepnorm)",
]

# --- helpers --------------------------------------------------------------------------------------


def quietly(make: Callable[[], Any]) -> Any:
    """PyTorch warns when it is built with its defaults, and when it makes a nested tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def randomize(module: nn.Module) -> None:
    """Norms and biases begin at 1 and 0, where an exchange would not be seen."""
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p) * 0.3)


def build(name: str, where: Any, *, norm: bool = False, n: int = 2, **options: Any) -> Any:
    """A class of torch.nn or of addnorm.compat, by its name, at the size of these tests."""
    options = {"dropout": 0.0, "layer_norm_eps": EPS, **copy.deepcopy(options)}
    if name.endswith("Layer"):
        module = getattr(where, name)(DIM, HEADS, HIDDEN, **options)
        return module.to(
            options.get("dtype")
        )  # PyTorch leaves an activation's parameters as they are
    if name == "Transformer":
        return quietly(lambda: where.Transformer(DIM, HEADS, n, n + 1, HIDDEN, **options))
    layer = build(name + "Layer", where, **options)
    last = nn.LayerNorm(DIM, dtype=options.get("dtype")) if norm else None
    return quietly(lambda: getattr(where, name)(layer, n, last))


def pair(name: str, **options: Any) -> tuple[Any, Any]:
    """PyTorch's and ours with the same weights, carried over by ``load_state_dict``."""
    torch.manual_seed(0)
    theirs, ours = build(name, nn, **options), build(name, compat, **options)
    randomize(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


@cache
def small_pair(name: str, batch_first: bool) -> tuple[Any, Any]:
    """One for all masks."""
    return pair(name, n=1, batch_first=batch_first, dtype=DOUBLE)


def inputs(name: str, batch_first: bool, batched: bool, dtype: torch.dtype) -> list[Tensor]:
    """What the class reads: one sequence, or two of different lengths."""
    lengths = {
        "TransformerEncoderLayer": [SOURCE],
        "TransformerEncoder": [SOURCE],
        "TransformerDecoderLayer": [TARGET, SOURCE],
        "TransformerDecoder": [TARGET, SOURCE],
        "Transformer": [SOURCE, TARGET],
    }[name]
    if not batched:
        return [torch.randn(t, DIM, dtype=dtype) for t in lengths]
    shapes = [(BATCH, t, DIM) if batch_first else (t, BATCH, DIM) for t in lengths]
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def grads_by_their_name(ours: nn.Module) -> dict[str, Tensor]:
    """The gradients under PyTorch's names: what is saved while they stand where the weights do."""
    weights = [p.data for p in ours.parameters()]
    for p in ours.parameters():
        assert p.grad is not None
        p.data = p.grad
    grads = {name: g.clone() for name, g in ours.state_dict().items()}
    for p, w in zip(ours.parameters(), weights, strict=True):
        p.data = w
    return grads


def assert_close(actual: Tensor, expected: Tensor, what: str, scale: float = 0.0) -> None:
    assert actual.shape == expected.shape, what
    assert actual.dtype == expected.dtype, what
    scale = scale or expected.abs().max().item()
    error = (actual - expected).abs().max().item()
    assert error <= TOLERANCE[actual.dtype] * scale, f"{what}: {error:.2e} of {scale:.2e}"


def compare(theirs: nn.Module, ours: nn.Module, xs: list[Tensor], **masks: Any) -> None:
    """Outputs, and the gradients of every input and parameter."""
    results = []
    for module in (theirs, ours):
        leaves = [x.clone().requires_grad_() for x in xs]
        with warnings.catch_warnings():
            if module is theirs:  # a boolean mask beside a floating one is deprecated there
                warnings.filterwarnings("ignore", "Support for mismatched")
            y = module(*leaves, **masks)
        cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
        module.zero_grad()
        (y * cotangent).sum().backward()
        results.append((y, [x.grad for x in leaves]))
    assert_close(results[1][0], results[0][0], "output")
    for i, (actual, expected) in enumerate(zip(results[1][1], results[0][1], strict=True)):
        assert actual is not None
        assert_close(actual, expected, f"gradient of input {i}")
    grads = grads_by_their_name(ours)
    expected_grads = {name: p.grad for name, p in theirs.named_parameters()}
    assert list(grads) == list(expected_grads)
    # of the largest of all: that of one weight may be a sum over all tokens that nearly cancels
    scale = max(g.abs().max().item() for g in expected_grads.values() if g is not None)
    for name, expected in expected_grads.items():
        assert expected is not None
        assert_close(grads[name], expected, f"gradient of {name}", scale)


LAYERS = ["TransformerEncoderLayer", "TransformerDecoderLayer"]
STACKS = ["TransformerEncoder", "TransformerDecoder", "Transformer"]
ALL = [*LAYERS, *STACKS]

# --- equality with torch.nn -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_the_signatures_are_theirs(name):
    def parameters_of(function: Any) -> list[tuple[Any, ...]]:
        return [
            (p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()
        ]

    theirs, ours = getattr(nn, name), getattr(compat, name)
    assert parameters_of(theirs.forward) == parameters_of(ours.forward)
    own = parameters_of(ours.__init__)
    assert own[: len(parameters_of(theirs.__init__))] == parameters_of(theirs.__init__)
    added = own[len(parameters_of(theirs.__init__)) :]
    own_names = ("scheme", "depths") if name in STACKS[:2] else ("scheme",)
    assert added == [(a, None, inspect.Parameter.KEYWORD_ONLY) for a in own_names]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize(
    "activation",
    ["relu", "gelu", F.silu, nn.GELU(approximate="tanh"), nn.PReLU()],
    ids=["relu", "gelu", "function", "module", "module with a parameter"],
)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_equals_theirs(name, activation, norm_first, bias, dtype):
    options = {"activation": activation, "norm_first": norm_first, "bias": bias, "dtype": dtype}
    for batch_first, batched in LAYOUTS:
        theirs, ours = pair(name, **options, batch_first=batch_first)
        compare(theirs, ours, inputs(name, batch_first, batched, dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("name", STACKS)
def test_a_stack_equals_theirs(name, norm_first, bias, dtype):
    for batch_first, batched in LAYOUTS:
        for norm in (True, False) if name != "Transformer" else (False,):
            options = {"norm_first": norm_first, "bias": bias, "batch_first": batch_first}
            theirs, ours = pair(name, norm=norm, dtype=dtype, **options)
            compare(theirs, ours, inputs(name, batch_first, batched, dtype))


def causal(t: int, s: int) -> Tensor:
    return torch.ones(t, s, dtype=torch.bool).triu(1)


def some(*shape: int) -> Tensor:
    """A boolean mask that leaves every query something to look at."""
    mask = torch.rand(shape) < 0.4
    mask[..., 0] = False
    return mask


def added(mask: Tensor) -> Tensor:
    """The same with numbers, on what is left as well."""
    return torch.randn(mask.shape, dtype=DOUBLE).masked_fill(mask, -math.inf)


def look(kind: str, t: int, s: int, batch: int) -> tuple[Tensor | None, bool | None]:
    """A mask for T queries and S keys and the hint that goes with it."""
    return {
        "none": lambda: (None, None),
        "bool": lambda: (some(t, s), None),
        "float": lambda: (added(some(t, s)), None),
        "finite": lambda: (torch.randn(t, s, dtype=DOUBLE), None),
        "bool by head": lambda: (some(batch * HEADS, t, s), None),
        "float by head": lambda: (added(some(batch * HEADS, t, s)), None),
        "causal": lambda: (causal(t, s), None),
        "causal, hinted": lambda: (causal(t, s), True),
        "causal, hint denied": lambda: (causal(t, s), False),
        "float causal, hinted": lambda: (
            torch.zeros(t, s, dtype=DOUBLE).masked_fill(causal(t, s), -math.inf),
            True,
        ),
    }[kind]()


def pad(kind: str, s: int, batch: int, batched: bool) -> Tensor | None:
    """A key padding mask."""
    mask = torch.arange(s) >= torch.tensor([s, s - 1, s - 3])[:batch, None]
    if not batched:
        mask = torch.arange(s) >= s - 2
    float_mask = torch.randn(mask.shape, dtype=DOUBLE).masked_fill(mask, -math.inf)
    return {"none": None, "bool": mask, "float": float_mask}[kind]


KINDS = [
    "none",
    "bool",
    "float",
    "finite",
    "bool by head",
    "float by head",
    "causal",
    "causal, hinted",
    "causal, hint denied",
    "float causal, hinted",
]


@pytest.mark.parametrize("padding", ["none", "bool", "float"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ALL)
def test_every_mask_means_what_it_means_there(name, kind, padding):
    for batch_first, batched in LAYOUTS:
        batch = BATCH if batched else 1
        theirs, ours = small_pair(name, batch_first)
        torch.manual_seed(2)
        own = TARGET if "Decoder" in name else SOURCE
        mask, hint = look(kind, own, own, batch)
        padded = pad(padding, own, batch, batched)
        if name == "TransformerEncoderLayer":
            masks = {"src_mask": mask, "is_causal": bool(hint)}
        elif name == "TransformerEncoder":
            masks = {"mask": mask, "is_causal": hint}
        elif name == "Transformer":
            masks = {"src_mask": mask, "src_is_causal": hint}
        else:
            masks = {"tgt_mask": mask, "tgt_key_padding_mask": padded}
            masks["tgt_is_causal"] = bool(hint) if name in LAYERS else hint
        if "Decoder" not in name:
            masks["src_key_padding_mask"] = padded
        if name != "TransformerEncoder" and name != "TransformerEncoderLayer":
            memory_mask, memory_hint = look(kind, TARGET, SOURCE, batch)
            masks["memory_mask"] = memory_mask
            masks["memory_is_causal"] = bool(memory_hint)
            masks["memory_key_padding_mask"] = pad(padding, SOURCE, batch, batched)
        if name == "Transformer":
            tgt_mask, masks["tgt_is_causal"] = look(kind, TARGET, TARGET, batch)
            masks["tgt_mask"] = tgt_mask
            masks["tgt_key_padding_mask"] = pad(padding, TARGET, batch, batched)
        compare(theirs, ours, inputs(name, batch_first, batched, DOUBLE), **masks)


def test_padding_is_left_out_of_statistics_however_it_is_written():
    def batch_norms(s: Site) -> Wiring:
        return pre_norm(replace(s, norm=BatchNorm))

    torch.manual_seed(0)
    layer = build("TransformerEncoderLayer", compat, batch_first=True, dtype=DOUBLE)
    encoder = compat.TransformerEncoder(layer, 2, scheme=batch_norms)
    (x,) = inputs("TransformerEncoder", True, True, DOUBLE)
    padding = pad("bool", SOURCE, BATCH, True)
    assert padding is not None
    expected = encoder(x, src_key_padding_mask=padding)
    x = x.masked_fill(padding[..., None], 100.0)
    for mask in (padding, torch.zeros(padding.shape).masked_fill(padding, -math.inf)):
        y = encoder(x, src_key_padding_mask=mask)
        assert_close(y[~padding], expected[~padding], "real tokens")


def test_a_learned_mask_receives_its_gradient():
    theirs, ours = pair("TransformerEncoderLayer", batch_first=True, dtype=DOUBLE)
    (x,) = inputs("TransformerEncoderLayer", True, True, DOUBLE)
    start, keys = added(some(SOURCE, SOURCE)), pad("float", SOURCE, BATCH, True)
    results = []
    for module in (theirs, ours):
        mask = start.clone().requires_grad_()
        module(x, src_mask=mask, src_key_padding_mask=keys).square().sum().backward()
        assert mask.grad is not None
        results.append(mask.grad)
    assert_close(results[1], results[0], "gradient of the mask")


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_dropout_is_in_the_same_places(name, batch_first):
    """The same random numbers drop the same entries. For a batch of one: with more, PyTorch draws
    them in the order of its memory, (T, B, D) whatever ``batch_first`` says."""
    theirs, ours = pair(name, batch_first=batch_first, dropout=0.3, dtype=DOUBLE)
    xs = [x[:1] if batch_first else x[:, :1] for x in inputs(name, batch_first, True, DOUBLE)]
    results = []
    for module in (theirs, ours):
        torch.manual_seed(3)
        results.append(module(*xs))
    assert_close(results[1], results[0], "output")
    assert not torch.allclose(results[1], ours.eval()(*xs))


# --- evaluation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", ["TransformerEncoderLayer", "TransformerEncoder"])
def test_evaluation_equals_theirs_at_real_tokens(name, grad):
    """Without gradients PyTorch's fast path runs. Its encoder makes a nested tensor of the input
    and gives zeros where the padding was; ours computes there what training would."""
    theirs, ours = pair(name, batch_first=True, dtype=DOUBLE)
    theirs.eval(), ours.eval()
    (x,) = inputs(name, True, True, DOUBLE)
    padding = pad("bool", SOURCE, BATCH, True)
    assert padding is not None
    with torch.set_grad_enabled(grad):
        expected = quietly(lambda: theirs(x, src_key_padding_mask=padding))
        y = ours(x, src_key_padding_mask=padding)
    assert_close(y[~padding], expected[~padding], "real tokens")
    if name == "TransformerEncoder" and not grad:
        assert not expected[padding].any()
    else:
        assert_close(y[padding], expected[padding], "padding")
    assert (y[padding] != 0).all()


@pytest.mark.parametrize("scheme", [None, *SCHEMES])
def test_training_without_dropout_equals_evaluation_to_the_last_bit(scheme):
    torch.manual_seed(0)
    if scheme is not None and scheme.startswith("drop_path"):
        scheme = "drop_path(sandwich, p=0.0)"
    model = compat.Transformer(DIM, HEADS, 2, 2, HIDDEN, 0.0, batch_first=True, scheme=scheme)
    xs = inputs("Transformer", True, True, torch.float32)
    masks = {
        "src_key_padding_mask": pad("bool", SOURCE, BATCH, True),
        "memory_key_padding_mask": pad("bool", SOURCE, BATCH, True),
        "tgt_mask": causal(TARGET, TARGET),
    }
    trained = model.train()(*xs, **masks)
    with torch.no_grad():
        assert torch.equal(model.eval()(*xs, **masks), trained)


def test_defaults_and_evaluation_do_not_warn():
    xs = torch.randn(4, 2, DIM)
    with pytest.warns(UserWarning, match="batch_first"):
        nn.Transformer(DIM, HEADS, 1, 1, HIDDEN)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = compat.Transformer(DIM, HEADS, 1, 1, HIDDEN)
        encoder = compat.TransformerEncoder(compat.TransformerEncoderLayer(DIM, HEADS, HIDDEN), 2)
        batch_first = compat.TransformerEncoderLayer(DIM, HEADS, HIDDEN, batch_first=True)
        padding = torch.tensor([[False] * 4, [False, False, True, True]])
        for module in (model, encoder, batch_first):
            module.eval()
        with torch.no_grad():
            model(xs, xs)
            encoder(xs, src_key_padding_mask=padding)
            compat.TransformerEncoder(batch_first, 2).eval()(
                xs.transpose(0, 1), src_key_padding_mask=padding
            )


# --- what differs on purpose ----------------------------------------------------------------------


@pytest.mark.parametrize("what", ["mask", "float mask", "padding"])
def test_a_token_that_may_look_at_nothing_gets_a_finite_number(what):
    """PyTorch's fast path gives NaN; its other path what ours gives."""
    theirs, ours = pair("TransformerEncoderLayer", batch_first=True)
    (x,) = inputs("TransformerEncoderLayer", True, True, torch.float32)
    mask = torch.zeros(SOURCE, SOURCE, dtype=torch.bool)
    mask[1] = True
    padding = torch.zeros(BATCH, SOURCE, dtype=torch.bool)
    padding[0] = True
    masks = {
        "mask": {"src_mask": mask},
        "float mask": {"src_mask": torch.zeros(SOURCE, SOURCE).masked_fill(mask, -math.inf)},
        "padding": {"src_key_padding_mask": padding},
    }[what]
    compare(theirs, ours, [x], **masks)
    with torch.no_grad():
        trained = ours(x, **masks)
        assert torch.equal(ours.eval()(x, **masks), trained)
        assert trained.isfinite().all()
        assert theirs.eval()(x, **masks).isnan().any()


def test_the_mask_counts_and_not_the_hint():
    theirs, ours = pair("TransformerEncoderLayer", dtype=DOUBLE)
    (x,) = inputs("TransformerEncoderLayer", False, True, DOUBLE)
    mask = some(SOURCE, SOURCE)
    expected = theirs(x, src_mask=mask)
    assert_close(ours(x, src_mask=mask, is_causal=True), expected, "output")
    assert not torch.allclose(theirs(x, src_mask=mask, is_causal=True), expected)
    for module in (theirs, ours):
        with pytest.raises(RuntimeError, match="is_causal"):
            module(x, is_causal=True)


def test_state_dict_holds_copies_of_what_is_one_matrix_there():
    _, ours = pair("TransformerEncoderLayer")
    before = copy.deepcopy(ours.state_dict())
    ours.state_dict()["self_attn.in_proj_weight"].zero_()
    assert torch.equal(
        ours.state_dict()["self_attn.in_proj_weight"], before["self_attn.in_proj_weight"]
    )
    ours.state_dict()["linear1.weight"].zero_()
    assert not ours.state_dict()["linear1.weight"].any()


def test_missing_names_are_told_as_ours():
    theirs, ours = pair("TransformerEncoder")
    state = theirs.state_dict()
    del state["layers.1.self_attn.in_proj_bias"]
    keys = ours.load_state_dict(state, strict=False)
    assert keys.missing_keys == [f"stack.subs.2.branch.{part}.bias" for part in "qkv"]
    assert keys.unexpected_keys == []


@pytest.mark.parametrize("scheme", [None, "deepnorm"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_custom_part_keeps_its_weights(part, scheme):
    """``nn.Transformer`` draws every matrix of it again."""
    for where in (compat, nn):
        custom = build(f"Transformer{part.title()}", where)
        before = copy.deepcopy(custom.state_dict())
        options: dict[str, Any] = {f"custom_{part}": custom}
        if where is compat:
            options["scheme"] = scheme
        model = build("Transformer", where, **options)
        assert type(getattr(model, part)) is type(custom)
        same = [torch.equal(v, before[k]) for k, v in getattr(model, part).state_dict().items()]
        assert all(same) == (where is compat)
        xs = inputs("Transformer", False, True, torch.float32)
        assert model(*xs).shape == xs[1].shape


def test_a_mask_the_wrong_way_round_is_refused():
    theirs, ours = pair("TransformerEncoderLayer", batch_first=True)
    (x,) = inputs("TransformerEncoderLayer", True, True, torch.float32)
    sees_later_ones = {"src_mask": ~causal(SOURCE, SOURCE)}
    padding = torch.ones(BATCH, SOURCE, dtype=torch.bool)  # meant: True is a real token
    padding[1:, -2:] = False
    for masks in (sees_later_ones, {"src_key_padding_mask": padding}):
        assert theirs(x, **masks).isfinite().all()
        with pytest.raises(ValueError, match="looks inverted"):
            ours(x, **masks)


def test_an_optimizer_has_other_parameters():
    theirs, ours = pair("TransformerEncoderLayer")
    state = torch.optim.Adam(theirs.parameters()).state_dict()
    with pytest.raises(ValueError, match="doesn't match the size"):
        torch.optim.Adam(ours.parameters()).load_state_dict(state)
    assert {n.split(".")[0] for n, _ in ours.named_parameters()} == {"stack"}


def test_activations_beyond_theirs():
    with pytest.raises(RuntimeError, match="relu/gelu"):
        nn.TransformerEncoderLayer(DIM, HEADS, activation="silu")
    torch.manual_seed(0)
    by_name = build("TransformerEncoderLayer", compat, activation="silu")
    function = build("TransformerEncoderLayer", compat, activation=F.silu)
    function.load_state_dict(by_name.state_dict())
    (x,) = inputs("TransformerEncoderLayer", False, True, torch.float32)
    assert torch.equal(by_name(x), function(x))
    options = {"activation": nn.PReLU(), "dtype": DOUBLE}
    theirs_state = nn.TransformerEncoderLayer(DIM, HEADS, **options).state_dict()
    ours_state = compat.TransformerEncoderLayer(DIM, HEADS, **options).state_dict()
    assert (theirs_state["activation.weight"].dtype, ours_state["activation.weight"].dtype) == (
        torch.float32,
        DOUBLE,
    )


def test_what_is_refused_says_what_to_do():
    layer = compat.TransformerEncoderLayer(DIM, HEADS, HIDDEN)
    x = torch.randn(SOURCE, BATCH, DIM)
    with pytest.raises(TypeError, match=r"addnorm\.compat\.TransformerEncoderLayer"):
        compat.TransformerEncoder(nn.TransformerEncoderLayer(DIM, HEADS), 2)
    with pytest.raises(TypeError, match=r"addnorm\.compat\.TransformerDecoderLayer"):
        compat.TransformerDecoder(layer, 2)
    with pytest.raises(TypeError, match="boolean or floating point"):
        layer(x, torch.zeros(SOURCE, SOURCE, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(12, T, S\)"):
        layer(x, torch.zeros(HEADS, SOURCE, SOURCE))
    with pytest.raises(ValueError, match="valid must have shape"):
        layer(x, src_key_padding_mask=torch.zeros(SOURCE, BATCH, dtype=torch.bool))
    with pytest.raises(ValueError, match="activation"):
        compat.TransformerEncoderLayer(DIM, HEADS, activation="rleu")
    with pytest.raises(ValueError, match="leave norm_first out"):
        compat.Transformer(DIM, HEADS, 1, 1, HIDDEN, norm_first=True, scheme="pre_norm")
    with pytest.raises(ValueError, match="leave norm out"):
        compat.TransformerEncoder(layer, 2, nn.LayerNorm(DIM), scheme="pre_norm")
    decoder = compat.TransformerDecoderLayer(DIM, HEADS, HIDDEN)
    with pytest.raises(ValueError, match="one batch"):
        decoder(x, torch.randn(SOURCE, 1, DIM))
    with pytest.raises(RuntimeError, match="batch number"):
        compat.Transformer(DIM, HEADS, 1, 1, HIDDEN)(x, torch.randn(SOURCE, 1, DIM))
    with pytest.raises(RuntimeError, match="feature number"):
        compat.Transformer(DIM, HEADS, 1, 1, HIDDEN)(x, x[..., :8])
    nested = quietly(lambda: torch.nested.nested_tensor([torch.randn(3, DIM), torch.randn(2, DIM)]))
    with pytest.raises(TypeError, match="nested"):
        layer(nested)


@pytest.mark.parametrize("scheme", ["hyper_connections", "residual_dual", "ngpt"])
def test_a_layer_alone_has_no_ends(scheme):
    layer = compat.TransformerEncoderLayer(DIM, HEADS, HIDDEN, 0.0, scheme=scheme)
    x = torch.randn(SOURCE, BATCH, DIM)
    with pytest.raises(RuntimeError, match="a layer alone has no ends"):
        layer(x)
    assert compat.TransformerEncoder(layer, 1)(x).shape == x.shape


# --- state_dict -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["gelu", nn.PReLU()], ids=["gelu", "module"])
@pytest.mark.parametrize("name", ALL)
def test_names_order_and_shapes_are_theirs_both_ways(name, activation, norm_first, bias):
    options = {"activation": activation, "norm_first": norm_first, "bias": bias}
    theirs = build(name, nn, norm=True, **options)
    ours = build(name, compat, norm=True, **options)
    randomize(ours)
    shapes = {k: v.shape for k, v in ours.state_dict().items()}
    assert list(shapes.items()) == [(k, v.shape) for k, v in theirs.state_dict().items()]
    theirs.load_state_dict(ours.state_dict(), strict=True)
    again = build(name, compat, norm=True, **options)
    again.load_state_dict(theirs.state_dict(), strict=True)
    for p, q in zip(again.parameters(), ours.parameters(), strict=True):
        assert torch.equal(p, q)
    for bad in ("gone", "surplus"):
        state = theirs.state_dict()
        if bad == "gone":
            del state[next(reversed(state))]
        else:
            state["linear3.weight"] = torch.zeros(1)
        with pytest.raises(RuntimeError, match="key"):
            again.load_state_dict(state, strict=True)


def test_inside_another_module_and_by_our_own_names():
    outer = nn.ModuleDict({"a": build("Transformer", compat), "b": nn.Linear(2, 2)})
    twin = nn.ModuleDict({"a": build("Transformer", nn), "b": nn.Linear(2, 2)})
    twin.load_state_dict(outer.state_dict(), strict=True)
    outer.load_state_dict(twin.state_dict(), strict=True)
    layer = build("TransformerEncoderLayer", compat)
    randomize(layer)
    other = build("TransformerEncoderLayer", compat)
    other.load_state_dict(dict(layer.named_parameters()), strict=True)
    for p, q in zip(layer.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def test_a_replaced_projection_keeps_its_own_names():
    """in_proj is made of three matrices, or not at all."""

    class Wrapped(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base = base

    theirs, ours = pair("TransformerEncoder")
    ours.stack.subs[0].branch.v = Wrapped(ours.stack.subs[0].branch.v)
    state = ours.state_dict()
    assert set(theirs.state_dict()) - set(state) == {
        "layers.0.self_attn.in_proj_weight",
        "layers.0.self_attn.in_proj_bias",
    }
    assert "stack.subs.0.branch.v.base.weight" in state
    ours.load_state_dict(state, strict=True)


@pytest.mark.parametrize("name", STACKS)
def test_the_plain_attributes_are_theirs(name):
    theirs, ours = build(name, nn, batch_first=True), build(name, compat, batch_first=True)
    plain = {k: v for k, v in vars(theirs).items() if isinstance(v, int) and k[0] != "_"}
    plain.pop("use_nested_tensor", None)  # there is none
    assert plain.items() <= vars(ours).items()


def test_copies_and_compiled_models_compute_the_same():
    _, ours = pair("Transformer", dtype=DOUBLE, batch_first=True)
    xs = inputs("Transformer", True, True, DOUBLE)
    expected = ours(*xs)
    twin = copy.deepcopy(ours)
    assert torch.equal(twin(*xs), expected)
    assert list(twin.state_dict()) == list(ours.state_dict())
    randomize(twin)
    twin.load_state_dict(ours.state_dict(), strict=True)  # the copy's hooks act on the copy
    assert torch.equal(twin(*xs), expected)
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    with ops.reference_only("add_norm"):  # which is what the compiler sees
        assert torch.equal(compiled(*xs), ours(*xs))


@pytest.mark.parametrize("scheme", [None, "deepnorm", "mix_ln(0.5)", "ngpt"])
def test_a_model_pickles(scheme):
    model = compat.Transformer(DIM, HEADS, 2, 2, HIDDEN, 0.0, scheme=scheme)
    xs = inputs("Transformer", False, True, torch.float32)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(*xs), model(*xs))
    assert list(again.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("scheme", [None, "deepnorm"])
@pytest.mark.parametrize("name", ALL)
def test_device_and_dtype(name, scheme):
    options = {"scheme": scheme}
    random = torch.get_rng_state()
    meta = build(name, compat, device="meta", dtype=DOUBLE, **options)
    assert torch.equal(torch.get_rng_state(), random)  # nothing was made elsewhere and moved
    assert {(p.device.type, p.dtype) for p in meta.parameters()} == {("meta", DOUBLE)}
    real = build(name, compat, dtype=DOUBLE, **options)
    assert {(p.device.type, p.dtype) for p in real.parameters()} == {("cpu", DOUBLE)}
    meta.load_state_dict(real.state_dict(), strict=True, assign=True)
    xs = inputs(name, False, True, DOUBLE)
    assert torch.equal(meta(*xs), real(*xs))
    with torch.device("meta"):
        assert all(p.is_meta for p in build(name, compat, **options).parameters())


# --- schemes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", STACKS)
def test_every_scheme_learns_and_is_saved(name, scheme):
    torch.manual_seed(0)
    options = {"scheme": scheme, "batch_first": True, "dtype": DOUBLE}
    model = build(name, compat, **options)  # float32 ends at 1e-45, and no_residual goes below
    xs = [x.requires_grad_() for x in inputs(name, True, True, DOUBLE)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in (1, 2):
        y = model(*xs)
        (y * torch.randn_like(y)).sum().backward()
        optimizer.step()
        model.after_step(step)
    assert y.isfinite().all()
    for name_, p in model.named_parameters():
        assert p.grad is not None, name_
    for x in xs:
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert x.grad.any()
    twin = build(name, compat, **options)
    twin.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(twin.eval()(*xs), model.eval()(*xs))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_that_of_our_own_encoder_decoder(scheme):
    """What compat adds is only shapes, masks and names: with the weights of an ``EncoderDecoder``
    of the same scheme the numbers are the same to the last bit, so the sites and depths are."""
    torch.manual_seed(0)
    expected = EncoderDecoder(
        DIM,
        HEADS,
        (2, 3),
        parse(scheme),
        hidden=HIDDEN,
        activation="relu",
        norm=partial(LayerNorm, eps=EPS),
    ).double()
    ours = build("Transformer", compat, scheme=scheme, batch_first=True, dtype=DOUBLE)
    ours.encoder.stack.load_state_dict(expected.encoder.state_dict())
    ours.decoder.stack.load_state_dict(expected.decoder.state_dict())
    src, tgt = inputs("Transformer", True, True, DOUBLE)
    padding = pad("bool", SOURCE, BATCH, True)
    assert padding is not None
    y = ours.eval()(
        src,
        tgt,
        tgt_mask=causal(TARGET, TARGET),
        src_key_padding_mask=padding,
        memory_key_padding_mask=padding,
    )
    assert_close(y, expected.eval()(src, tgt, source_valid=~padding), "output")


@pytest.mark.parametrize("given_to", ["the layer", "the stack"])
@pytest.mark.parametrize(("scheme", "norm_first"), [("pre_norm", True), ("post_norm", False)])
@pytest.mark.parametrize("name", ["TransformerEncoder", "TransformerDecoder"])
def test_pre_and_post_norm_are_their_norm_first(name, scheme, norm_first, given_to):
    """With the final norm that pre-norm needs, and without the one that post-norm does not."""
    theirs = build(name, nn, norm=norm_first, norm_first=norm_first, dtype=DOUBLE)
    randomize(theirs)
    if given_to == "the layer":
        ours = build(name, compat, scheme=scheme, dtype=DOUBLE)
    else:
        layer = build(name + "Layer", compat, dtype=DOUBLE)
        ours = getattr(compat, name)(layer, 2, scheme=scheme)
    if norm_first:
        theirs.norm.eps = EPS
    ours.load_state_dict(theirs.state_dict(), strict=True)
    compare(theirs, ours, inputs(name, False, True, DOUBLE))


@pytest.mark.parametrize(("scheme", "norm_first"), [("pre_norm", True), ("post_norm", False)])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_alone_has_no_norm_at_the_end(name, scheme, norm_first):
    theirs = build(name, nn, norm_first=norm_first, dtype=DOUBLE)
    randomize(theirs)
    ours = build(name, compat, scheme=scheme, dtype=DOUBLE)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    compare(theirs, ours, inputs(name, False, True, DOUBLE))


def test_transformer_with_a_scheme_ends_as_the_scheme_says():
    theirs = build("Transformer", nn, norm_first=True, dtype=DOUBLE)
    randomize(theirs)
    ours = build("Transformer", compat, scheme="pre_norm", dtype=DOUBLE)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    compare(theirs, ours, inputs("Transformer", False, True, DOUBLE))
    double = set(build("Transformer", compat).state_dict())
    single = set(build("Transformer", compat, scheme="post_norm").state_dict())
    ends = {f"{stack}.norm.{p}" for stack in ("encoder", "decoder") for p in ("weight", "bias")}
    assert double - single == ends
    assert single < double


def test_a_scheme_sees_where_each_sublayer_is():
    sites: list[Site] = []

    def spy(s: Site) -> Wiring:
        sites.append(s)
        return pre_norm(s)

    compat.Transformer(DIM, HEADS, 2, 3, HIDDEN, scheme=spy)
    places = [(s.side, s.kind, s.index, s.block, s.blocks) for s in sites if s.depths == (2, 3)]
    encoder = [("attn", "mlp")[i % 2] for i in range(4)]
    decoder = [("attn", "cross", "mlp")[i % 3] for i in range(9)]
    assert places == [
        ("encoder", "embed", -1, -1, 2),
        *[("encoder", kind, i, i // 2, 2) for i, kind in enumerate(encoder)],
        ("encoder", "head", 4, 2, 2),
        ("decoder", "embed", -1, -1, 3),
        *[("decoder", kind, i, i // 3, 3) for i, kind in enumerate(decoder)],
        ("decoder", "head", 9, 3, 3),
    ]


def keeps(module: Any) -> set[float]:
    return {m.keep for m in module.modules() if isinstance(m, Scaled)}


def test_deepnorm_constants_are_those_of_the_encoder_decoder():
    """Table 1 of arXiv 2203.00555, for 2 encoder and 3 decoder blocks."""
    model = build("Transformer", compat, scheme=deepnorm)
    assert keeps(model.encoder) == {0.81 * (2**4 * 3) ** 0.0625}
    assert keeps(model.decoder) == {(3 * 3) ** 0.25}
    layer = build("TransformerDecoderLayer", compat)
    alone = compat.TransformerDecoder(layer, 3, scheme="deepnorm")
    assert keeps(alone) == keeps(model.decoder)  # three blocks of three sublayers either way
    encoder_layer = build("TransformerEncoderLayer", compat)
    alone = compat.TransformerEncoder(encoder_layer, 2, scheme="deepnorm")
    assert keeps(alone) == {(2 * 2) ** 0.25}
    stack = compat.TransformerEncoder(encoder_layer, 2, scheme="deepnorm", depths=(2, 3))
    assert keeps(stack) == keeps(model.encoder)


def test_the_guard_of_after_step_holds():
    model = compat.Transformer(DIM, HEADS, 1, 1, HIDDEN, 0.0, scheme="ngpt")
    xs = inputs("Transformer", False, True, torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(*xs).sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="after_step"):
        model(*xs)
    model.after_step(1)
    model(*xs)
    w = model.encoder.stack.subs[0].branch.q.weight
    # a row of 16 squares, each rounded in float32
    torch.testing.assert_close(w.norm(dim=1), torch.ones(DIM), rtol=0, atol=16 * 6e-8)


def test_weights_of_another_design_carry_over_by_name():
    """Pre-norm weights in a sandwich: everything but its output norms has a name in common."""
    theirs = build("TransformerEncoder", nn, norm=True, norm_first=True)
    ours = build("TransformerEncoder", compat, scheme="sandwich")
    keys = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert keys.unexpected_keys == []
    expected = [f"stack.subs.{i}.out.{p}" for i in range(4) for p in ("weight", "bias")]
    assert keys.missing_keys == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("pre_norm", "ln_scaling"),
        ("pre_norm", "mix_ln(0.5)"),
        ("post_norm", "deepnorm"),
        ("post_norm", "no_residual"),
    ],
)
def test_a_state_dict_does_not_know_its_design(one, other):
    """As docs/compat.md warns: all keys match, and it is another function."""
    torch.manual_seed(0)
    ours = build("TransformerEncoder", compat, scheme=one)
    randomize(ours)
    twin = build("TransformerEncoder", compat, scheme=other)
    twin.load_state_dict(ours.state_dict(), strict=True)
    xs = inputs("TransformerEncoder", False, True, torch.float32)
    assert not torch.allclose(twin(*xs), ours(*xs), rtol=0.05)


# --- init -----------------------------------------------------------------------------------------

# The standard deviation of n uniform draws is known to sqrt(0.2 / n), of n normal ones to
# sqrt(0.5 / n): below 0.3 % for the smallest matrix here, 256 x 256, so 3 % is ten times that. A
# bias of 1024 entries: 1.4 %, one of 256: 2.8 %, hence 15 % for biases, five times that.
BIG = {"d_model": 256, "nhead": 4, "dim_feedforward": 1024}


@pytest.mark.parametrize("name", [*LAYERS, "Transformer"])
def test_init_is_distributed_as_theirs(name):
    torch.manual_seed(0)
    shape = {**BIG, "num_encoder_layers": 2, "num_decoder_layers": 2} if name not in LAYERS else BIG
    theirs = quietly(lambda: getattr(nn, name)(**shape)).state_dict()
    ours = getattr(compat, name)(**shape).state_dict()
    for key, expected in theirs.items():
        actual = ours[key]
        if expected.std() == 0:  # norms, and the biases of attention
            assert torch.equal(actual, expected), key
            continue
        tolerance = 0.03 if expected.dim() > 1 else 0.15
        for statistic in (torch.std, lambda t: t.abs().max()):
            ratio = (statistic(actual) / statistic(expected)).item()
            assert abs(ratio - 1) < tolerance, (key, ratio)
        assert abs(actual.mean()) < 5 * expected.std() / math.sqrt(expected.numel()), key


@pytest.mark.parametrize("scheme", [None, "pre_norm", "deepnorm", "sub_ln", "fan_in(mix_ln(0.5))"])
def test_init_is_what_the_scheme_declares(scheme):
    torch.manual_seed(0)
    model = compat.Transformer(256, 4, 2, 2, 1024, scheme=scheme)
    rows = [row for row in init_table(model) if row.role]
    assert {row.role for row in rows} == {"q", "k", "v", "out", "up", "down"}
    assert len(rows) == 2 * 6 + 2 * 10
    for row in rows:
        assert row.declared is not None
        assert abs(row.measured / row.declared - 1) < 0.03, row
    biases = [p for n, p in model.named_parameters() if n.endswith(("up.bias", "down.bias"))]
    assert all(bool(b.any()) == (scheme is None) for b in biases)


def test_transformer_draws_each_layer_by_itself():
    model = compat.Transformer(DIM, HEADS, 3, 3, HIDDEN)
    for state in (model.encoder.state_dict(), model.decoder.state_dict()):
        random_names = [
            k for k in state if k.startswith("layers.0.") and state[k].unique().numel() > 1
        ]
        assert {k.split(".")[2] for k in random_names} >= {"self_attn", "linear1", "linear2"}
        assert len(random_names) in (6, 8)  # matrices, and the biases of linear1 and linear2
        for key in random_names:
            assert not torch.equal(state[key], state[key.replace("layers.0.", "layers.1.")])


def test_an_encoder_of_a_layer_is_clones_of_it():
    """All layers equal at first, as in PyTorch; whatever was done to the layer is cloned, too."""
    layer = build("TransformerEncoderLayer", compat, activation=nn.PReLU()).eval()
    randomize(layer)
    layer.stack.subs[1].branch.up.weight.requires_grad_(False)
    encoder = compat.TransformerEncoder(layer, 3)
    state, own = encoder.state_dict(), layer.state_dict()
    for i in range(3):
        for key, value in own.items():
            assert torch.equal(state[f"layers.{i}.{key}"], value)
    assert len({p.data_ptr() for p in [*layer.parameters(), *encoder.parameters()]}) == 4 * len(
        list(layer.parameters())
    )
    subs = [m for m in encoder.modules() if isinstance(m, Sublayer)]
    assert [s.site.index for s in subs] == list(range(6))
    assert [s.site.block for s in subs] == [0, 0, 1, 1, 2, 2]
    assert not any(s.training for s in subs)
    assert not any(s.branch.up.weight.requires_grad for s in subs[1::2])
    state = compat.TransformerEncoder(layer, 3, scheme="post_norm").state_dict()
    key = "self_attn.in_proj_weight"
    assert not torch.equal(state[f"layers.0.{key}"], state[f"layers.1.{key}"])


def test_generate_square_subsequent_mask():
    expected = nn.Transformer.generate_square_subsequent_mask(4, dtype=DOUBLE)
    assert torch.equal(
        compat.Transformer.generate_square_subsequent_mask(4, dtype=DOUBLE), expected
    )
