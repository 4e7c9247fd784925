"""Initialization: what is measured is what the paper's rule says, for every design and layout."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from addnorm import GPT, GPTConfig, init_table, schemes
from addnorm.branches import MLP, Attention, CrossAttention, GatedMLP
from addnorm.init import Init, plain, reset_parameters
from addnorm.models.transformer import decoder as make_decoder
from addnorm.stream import Scheme, Site, Stack, Wiring
from tests.nets import DECODER_OF_BOTH, ENCODER_OF_BOTH, Layout, decoder, encoder, rejects
from tests.references.init import init_std, init_value

NAMES = schemes.names()
LAYOUTS = [encoder(2), encoder(6), decoder(2), decoder(6), ENCODER_OF_BOTH, DECODER_OF_BOTH]
WIDTH, HIDDEN = 128, 512


def large(scheme: Scheme, layout: Layout) -> Stack:
    """Wide enough for the estimate: 128 * 128 draws give the std to 1 / sqrt(2 * 16384) = 0.55 %,
    so 2 % is 3.6 standard errors for the smallest matrix."""
    makes = {
        "attn": partial(Attention, WIDTH, 4),
        "cross": partial(CrossAttention, WIDTH, 4),
        "mlp": partial(GatedMLP, WIDTH, HIDDEN),
    }
    branches = [(kind, makes[kind]) for kind in layout.kinds]
    return Stack(branches, WIDTH, scheme, side=layout.side, depths=layout.depths)


def check_init(name: str, scheme: Scheme, layout: Layout) -> None:
    """Every weight of every sublayer within 2 % of the published standard deviation."""
    torch.manual_seed(0)
    stack = large(scheme, layout)
    roles = set()
    for sub in stack.sublayers():
        for path, role in sub.roles.items():
            weight = sub.branch.get_parameter(path).detach()
            want = init_std(
                name,
                role,
                tuple(weight.shape),
                side=layout.side,
                N=layout.depths[0],
                M=layout.depths[1],
                blocks=layout.blocks,
            )
            actual = weight.double().square().mean().sqrt().item()
            assert abs(actual / want - 1) < 0.02, (
                f"{path} ({role}): {actual:.5f} instead of {want:.5f}"
            )
            # the mean of n draws has a standard error of std / sqrt(n)
            assert abs(weight.double().mean().item()) < 4 * want * weight.numel() ** -0.5
            roles.add(role)
        for path, p in sub.branch.named_parameters():
            if path.endswith("bias"):
                assert not p.any(), f"{path} must start at 0"
    assert roles == {"q", "k", "v", "out", "up", "gate", "down"}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda v: v.name)
@pytest.mark.parametrize("name", NAMES)
def test_init_is_the_papers(name: str, layout: Layout) -> None:
    check_init(name, schemes.parse(name), layout)


@pytest.mark.parametrize("name", NAMES)
def test_reset_parameters_repeats_the_rule(name: str) -> None:
    """A model built without memory and filled later is the model built at once."""

    def build_again() -> Stack:
        return make_decoder(24, 4, 2, schemes.parse(name))

    torch.manual_seed(0)
    want = build_again()
    with torch.device("meta"):
        actual = build_again()
    actual.to_empty(device="cpu")
    with torch.no_grad():
        for p in actual.parameters():
            p.fill_(float("nan"))
    torch.manual_seed(0)
    reset_parameters(actual)
    for (k, a), (_, b) in zip(want.named_parameters(), actual.named_parameters(), strict=True):
        assert b.isfinite().all(), k
        if b.dim() < 2 or ".join." in k:  # constants; random weights come in another order
            assert torch.equal(a, b), k
        else:
            assert 0.8 < b.std() / a.std() < 1.25, k  # 24 * 24 draws: 3 % a standard error


def whole(scheme: str, blocks: int = 3) -> GPT:
    """With tables of 512 * 128 and 128 * 128 draws, of whose deviation 2 % are 3.6 standard errors,
    and 6 sublayers, more than hyper-connections have streams."""
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=512,
        context_length=128,
        dim=WIDTH,
        n_layers=blocks,
        n_heads=4,
        scheme=scheme,
        tied=False,
    )
    return GPT(config)


def deviation(weight: Tensor) -> float:
    """The root mean square; in the mean, normal draws are 0."""
    wide = weight.detach().double()
    assert abs(wide.mean().item()) < 4 * wide.std().item() * wide.numel() ** -0.5
    return wide.square().mean().sqrt().item()


TABLES = {"tokens.weight": "embed", "positions.weight": "embed", "head.weight": "head"}
PART = re.compile(r"(?:stack\.subs\.(\d+)\.)?.*?(join\.(?:\w+)|weight|bias)")


def check_start(name: str, path: str, p: Tensor) -> None:
    """A parameter that is not drawn is equal to what the paper fills it with."""
    place, part = PART.fullmatch(path.replace("join.norm.", "norm.").replace("base.", "")).groups()
    want = init_value(name, part, int(place or 0), tuple(p.shape))
    assert torch.equal(p, torch.from_numpy(want).float()), path


@pytest.mark.parametrize("name", NAMES)
def test_what_no_branch_draws_begins_as_published(name: str) -> None:
    """Tables, norms, joins, biases: nothing of a model is left out."""
    for path, p in whole(name).named_parameters():
        if path in TABLES:
            role, shape = TABLES[path], tuple(p.shape)
            want = init_std(name, role, shape, side="decoder", N=0, M=3, blocks=3)
            assert deviation(p) == pytest.approx(want, rel=0.02), path
            if name == "ngpt":
                torch.testing.assert_close(p.norm(dim=1), torch.ones(len(p)))
        elif p.dim() == 1 or ".branch." not in path:
            check_start(name, path, p)


@pytest.mark.parametrize("gain", [0.3, 1e-4])
def test_combinators_begin_as_they_say(gain: float) -> None:
    """A gain as given, on top of what the base begins with."""
    for base, around in (("rezero", "{}"), ("hyper_connections(3)", "drop_path({}, 0.1)")):
        model = whole(around.format(f"with_layer_scale({base}, {gain})"))
        for path, p in model.stack.named_parameters():
            if "join" not in path or "join.norm" in path.replace("base.", ""):
                continue
            outermost = path.count("base.") == around.count("drop_path")
            if path.endswith("gain") and outermost:
                assert torch.equal(p, torch.full((WIDTH,), gain)), path
            else:
                check_start(base.partition("(")[0], f"stack.{path}", p)


@pytest.mark.parametrize("base", ["pre_norm", "deepnorm"])
def test_fan_in_says_how_both_ends_begin(base: str) -> None:
    """Tokens are the stream itself and get 1; the head is a matrix that reads it."""
    model = whole(f"fan_in({base})")
    for path, role in TABLES.items():
        want = 1.0 if role == "embed" else WIDTH**-0.5
        assert deviation(model.get_parameter(path)) == pytest.approx(want, rel=0.02), path
    factor = {"pre_norm": 6**-0.5, "deepnorm": 24**-0.25}[base]
    mlp = model.stack.sublayers()[1].branch
    up = 1.0 if base == "pre_norm" else factor
    assert deviation(mlp.up.weight) == pytest.approx(up * WIDTH**-0.5, rel=0.02)
    assert deviation(mlp.down.weight) == pytest.approx(factor * HIDDEN**-0.5, rel=0.02)


# --- the table ------------------------------------------------------------------------------------


def test_the_table_lists_every_parameter_with_its_rule() -> None:
    stack = large(schemes.deepnorm, decoder(2))
    rows = {row.name: row for row in init_table(stack)}
    assert list(rows) == [name for name, _ in stack.named_parameters()]
    v = rows["subs.0.branch.v.weight"]
    assert v.role == "v"
    assert v.declared == pytest.approx((2 / (2 * WIDTH)) ** 0.5 * 16**-0.25)
    assert v.measured == pytest.approx(v.declared, rel=0.02)
    norm = rows["subs.0.post.norm.weight"]
    assert (norm.role, norm.declared, norm.mean, norm.measured) == ("", None, 1.0, 0.0)
    gain = {row.name: row for row in init_table(large(schemes.rezero, decoder(2)))}
    assert gain["subs.0.join.gain"].measured == 0.0  # one number has a spread as well
    assert "v, out, gate, up, down * 0.5" in v.rule


def test_the_table_works_on_any_model() -> None:
    rows = init_table(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    assert {row.declared for row in rows} == {None}
    assert "self_attn.in_proj_weight" in {row.name for row in rows}


def test_fan_in_replaces_the_base_and_keeps_the_factors() -> None:
    stack = large(schemes.parse("fan_in(pre_norm)"), decoder(8))
    rows = {row.name: row for row in init_table(stack)}
    assert rows["subs.0.branch.q.weight"].declared == pytest.approx(WIDTH**-0.5)
    assert rows["subs.1.branch.down.weight"].declared == pytest.approx(HIDDEN**-0.5 / 4)
    plain_rows = init_table(large(schemes.parse("fan_in(pre_norm, factors=False)"), decoder(8)))
    down = next(r for r in plain_rows if r.name == "subs.1.branch.down.weight")
    assert down.declared == pytest.approx(HIDDEN**-0.5)
    assert down.measured == pytest.approx(HIDDEN**-0.5, rel=0.02)


# --- broken on purpose ----------------------------------------------------------------------------


def rule_instead(base: Scheme, rule: Callable[[Site], Init]) -> Scheme:
    def scheme(s: Site) -> Wiring:
        return replace(base(s), init=rule(s))

    return scheme


def values_forgotten(s: Site) -> Init:
    """DeepNorm whose v projection is not scaled: diverged at epoch 50 where it was published."""
    right = schemes.deepnorm(s).init
    assert isinstance(right, Init)
    return replace(right, factors={k: f for k, f in right.factors.items() if k != "v"})


def code_instead_of_text(s: Site) -> Init:
    """Sub-LN with the constant of one stack in the encoder of two."""
    return schemes.sub_ln(replace(s, depths=(s.depths[0], 0))).init


def queries_too(s: Site) -> Init:
    """DeepNorm that scales q and k as well."""
    right = schemes.deepnorm(s).init
    assert isinstance(right, Init)
    beta = right.factors["v"]
    return replace(right, factors={**right.factors, "q": beta, "k": beta})


def one_writer_a_block(s: Site) -> Init:
    """GPT-2's rule with sqrt(blocks) where it has sqrt(2 * blocks)."""
    return Init("", plain, dict.fromkeys(("out", "down"), s.blocks**-0.5))


def attention_forgotten(s: Site) -> Init:
    """GPT-2's rule matched by a name that misses the attention's projection."""
    return Init("", plain, {"down": (2 * s.blocks) ** -0.5})


@pytest.mark.parametrize(
    ("name", "rule", "layout"),
    [
        ("deepnorm", values_forgotten, decoder(2)),
        ("sub_ln", code_instead_of_text, ENCODER_OF_BOTH),
        ("deepnorm", queries_too, decoder(2)),
        ("pre_norm", one_writer_a_block, decoder(2)),
        ("pre_norm", attention_forgotten, decoder(2)),
    ],
    ids=lambda v: getattr(v, "__name__", None) or getattr(v, "name", v),
)
def test_a_wrong_rule_is_rejected(name: str, rule: Callable[[Site], Init], layout: Layout) -> None:
    base = schemes.parse(name)
    check_init(name, base, layout)
    assert rejects(lambda: check_init(name, rule_instead(base, rule), layout))


def test_the_fan_in_of_a_convolution_is_all_that_it_reads() -> None:
    """(channels out, channels in, height, width)."""
    rule = schemes.parse("fan_in(pre_norm)")(Site("mlp", 0, 1, 0, 1, 8, nn.LayerNorm)).init
    assert isinstance(rule, Init)
    assert rule.std("up", (16, 8, 3, 5)) == (8 * 3 * 5) ** -0.5


def test_custom_rules_are_called_once_per_weight() -> None:
    calls: list[tuple[str, tuple[int, ...]]] = []

    def rule(role: str, weight: Tensor) -> None:
        calls.append((role, tuple(weight.shape)))
        nn.init.zeros_(weight)

    scheme = lambda s: Wiring(init=rule)  # noqa: E731
    Stack([("mlp", partial(MLP, 8, 16))], 8, scheme)
    assert calls == [("up", (16, 8)), ("down", (8, 16))]


def test_a_gain_of_one_is_not_spoken_of() -> None:
    assert schemes.xavier_init(1.0).text == "Xavier normal"
    assert schemes.xavier_init(0.5).text == "Xavier normal; v, out, gate, up, down * 0.5"
