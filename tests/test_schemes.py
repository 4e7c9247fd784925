"""One generic test over every registered scheme, and what it rejects when the code is broken."""

import io
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from addnorm import ops, schemes
from addnorm.branches import MLP, Attention, Parallel
from addnorm.context import Context, Here
from addnorm.init import InitRule
from addnorm.joins import Hyper, LearnedGain, Slerp, unit
from addnorm.norms import LayerNorm, ScaleNorm
from addnorm.stream import Add, AddNorm, Plain, Scheme, Site, Stack, Stream, Sublayer, Wiring
from tests.nets import (
    BATCH,
    DECODER_OF_BOTH,
    DIM,
    ENCODER_OF_BOTH,
    TIME,
    GrowingCache,
    Layout,
    build,
    compare_with_reference,
    decoder,
    encoder,
    gradients,
    inputs,
    rejects,
    stir,
)

NAMES = schemes.names()
LAYOUTS = [decoder(2), decoder(5), encoder(2), ENCODER_OF_BOTH, DECODER_OF_BOTH]
# Mix-LN: 6 blocks, of which floor(0.25 * 6) = 1 is post-norm; by sublayers it would be 3 of 12.
CASES = [(n, layout) for n in NAMES for layout in LAYOUTS] + [("mix_ln", decoder(6))]

by_name = pytest.mark.parametrize("name", NAMES)
SIDES = [(4, "encoder"), (3, "decoder")]


def test_fifteen_designs_are_registered() -> None:
    expected = (
        "no_residual no_norm pre_norm post_norm sandwich output_norm deepnorm rezero layer_scale "
        "residual_dual mix_ln ln_scaling sub_ln hyper_connections ngpt"
    )
    assert sorted(NAMES) == sorted(expected.split())


# --- equality with the straight-line references ---------------------------------------------------


@pytest.mark.parametrize(("name", "layout"), CASES, ids=lambda v: getattr(v, "name", v))
def test_equals_the_reference(name: str, layout: Layout) -> None:
    compare_with_reference(name, schemes.parse(name), layout)


@pytest.mark.parametrize("frac", [0.0, 0.5, 1.0])
def test_mix_ln_at_other_fractions(frac: float) -> None:
    compare_with_reference("mix_ln", schemes.mix_ln(frac), decoder(5), frac=frac)


@pytest.mark.parametrize("n", [1, 2])
def test_hyper_connections_with_other_numbers_of_streams(n: int) -> None:
    compare_with_reference("hyper_connections", schemes.hyper_connections(n), decoder(2), n=n)


def test_parallel_equals_its_reference() -> None:
    compare_with_reference("parallel_pre_norm", schemes.parallel(schemes.pre_norm), decoder(2))


@by_name
def test_drop_path_in_evaluation_is_the_design_itself(name: str) -> None:
    if name == "no_residual":
        with pytest.raises(schemes.SchemeError, match="residual"):
            build("drop_path(no_residual)", decoder(2))
        return
    layout = decoder(2)
    torch.manual_seed(0)
    base = stir(build(name, layout))
    torch.manual_seed(0)
    dropped = build(f"drop_path({name}, p=0.5)", layout).eval()
    renamed = {k.replace("join.", "join.base."): v for k, v in base.state_dict().items()}
    dropped.load_state_dict(renamed)
    x, ctx = inputs(layout, dtype=torch.float32)
    assert torch.equal(base(x, ctx), dropped(x, ctx))


@by_name
def test_with_layer_scale_weighs_the_branch(name: str) -> None:
    """The gain does what scaling what writes (the out norm, or out and down) would do."""
    layout = decoder(2)
    torch.manual_seed(0)
    base = stir(build(name, layout).double())
    torch.manual_seed(0)
    scaled = build(f"with_layer_scale({name}, init=0.5)", layout).double()
    state = {k.replace("join.", "join.base."): v for k, v in base.state_dict().items()}
    gains = {k: v for k, v in scaled.state_dict().items() if k not in state}
    assert len(gains) == 2 * layout.blocks
    scaled.load_state_dict(state | gains)
    with torch.no_grad():
        for sub in base.sublayers():
            last = sub.out if sub.out is not None else getattr(sub.branch, "out", None)
            for p in (last if last is not None else sub.branch.down).parameters():
                p.mul_(0.5)
    x, ctx = inputs(layout)
    torch.testing.assert_close(scaled(x, ctx), base(x, ctx), rtol=1e-12, atol=1e-12)


def constants(
    name: str, kinds: list[str], side: str, depths: tuple[int, int] | None = None
) -> set[tuple[float, float]]:
    """What each sublayer multiplies the stream by, and the gain of what it writes."""
    make = lambda **_: nn.Identity()  # noqa: E731
    stack = Stack([(k, make) for k in kinds], DIM, schemes.parse(name), side=side, depths=depths)
    subs = stack.sublayers()
    return {(getattr(s.join, "keep", 1.0), s.init.factors["down"]) for s in subs}


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_constants_by_depth_follow_the_number_of_sublayers(side: str) -> None:
    """S = 2L and 3M are the papers', to the last bit; nothing in them is about pairs."""
    for blocks in (1, 4, 9):
        for kinds in (["both"], ["attn", "mlp"], ["attn", "cross", "mlp"], ["attn", *["mlp"] * 4]):
            s = blocks * len(kinds)
            want = {(s**0.25, (4 * s) ** -0.25)}
            assert constants("deepnorm", kinds * blocks, side) == want
            want = {(1.0, math.log(max(s, 2)) ** 0.5)}
            assert constants("sub_ln", kinds * blocks, side) == want
    uneven = ["attn", "mlp", "attn", "cross", "mlp"]
    assert constants("deepnorm", uneven, side) == {(5**0.25, 20**-0.25)}
    # a part of a stack, told how deep the whole is
    depths = (12, 0) if side == "encoder" else (0, 12)
    part = constants("deepnorm", ["attn", "mlp"] * 3, side, depths)
    assert part == constants("deepnorm", ["attn", "mlp"] * 12, side)


@pytest.mark.parametrize("kinds", [["both"], ["attn", "mlp"], ["attn", "cross", "mlp"]])
def test_constants_of_an_encoder_decoder_are_the_papers(kinds: list[str]) -> None:
    """N = 4, M = 3 in blocks, whatever is in them."""
    encoder, decoder = (constants("deepnorm", kinds * n, r, (4, 3)) for n, r in SIDES)
    assert encoder == {(0.81 * (4**4 * 3) ** (1 / 16), 0.87 * (4**4 * 3) ** (-1 / 16))}
    assert decoder == {((3 * 3) ** 0.25, (12 * 3) ** -0.25)}
    encoder, decoder = (constants("sub_ln", kinds * n, r, (4, 3)) for n, r in SIDES)
    assert encoder == {(1.0, (math.log(9) * math.log(8) / 3) ** 0.5)}
    assert decoder == {(1.0, math.log(9) ** 0.5)}


# --- gradients ------------------------------------------------------------------------------------


@by_name
def test_every_parameter_has_a_gradient(name: str) -> None:
    """In at least one of three seeds, in each of two layouts. The exceptions, at init only:

    a key bias shifts all logits of a query alike; what is inside a ReZero branch is weighed by 0;
    the dynamic part of hyper-connections is scale * tanh(0).
    """
    alive: set[str] = set()
    parameters: set[str] = set()
    for layout in (decoder(2), DECODER_OF_BOTH):
        for seed in range(3):
            torch.manual_seed(seed)
            stack = build(name, layout).double()
            grads = gradients(stack, *inputs(layout, seed))
            assert len(grads) == len(list(stack.parameters()))
            largest = max(g.abs().max().item() for g in grads.values())
            alive |= {k for k, g in grads.items() if g.abs().max() > 1e-12 * largest}
            parameters |= set(grads)
    dead = {k for k in parameters - alive if not k.endswith("branch.k.bias")}
    if name == "rezero":
        assert dead == {k for k in parameters if ".branch." in k and not k.endswith("k.bias")}
    elif name == "hyper_connections":
        assert dead == {k for k in parameters if "_scale" in k or "join.norm" in k}
    else:
        assert not dead


@by_name
def test_after_one_step_every_parameter_has_a_gradient(name: str) -> None:
    """What has none at init must get one as soon as training has moved the rest."""
    torch.manual_seed(0)
    stack = build(name, decoder(2)).double()
    optimizer = torch.optim.SGD(stack.parameters(), lr=0.05)
    x, ctx = inputs(decoder(2))
    for step in (1, 2):
        gradients(stack, x, ctx)
        optimizer.step()
        stack.after_step(step)
    grads = gradients(stack, x, ctx)
    dead = [k for k, g in grads.items() if not k.endswith("k.bias") and g.abs().max() < 1e-14]
    assert not dead


# --- the same through every machinery -------------------------------------------------------------


@by_name
def test_save_and_load(name: str) -> None:
    torch.manual_seed(0)
    stack = stir(build(name, decoder(2)))
    file = io.BytesIO()
    torch.save(stack.state_dict(), file)
    file.seek(0)
    torch.manual_seed(1)
    other = build(name, decoder(2))
    other.load_state_dict(torch.load(file, weights_only=True))
    x, ctx = inputs(decoder(2), dtype=torch.float32)
    assert torch.equal(stack(x, ctx), other(x, ctx))


@by_name
@pytest.mark.parametrize("layout", [decoder(2), DECODER_OF_BOTH], ids=lambda v: v.name)
def test_with_cache_as_without(name: str, layout: Layout) -> None:
    """Token by token and in chunks. Same operations on other shapes: float64 rounding, 1e-12."""
    torch.manual_seed(0)
    stack = stir(build(name, layout).double()).eval()
    x, ctx = inputs(layout)
    want = stack(x, ctx)
    for cuts in ([1] * TIME, [3, 1, 3]):
        ctx = ctx._replace(cache=GrowingCache())
        actual = torch.cat([stack(part, ctx) for part in x.split(cuts, 1)], 1)
        torch.testing.assert_close(actual, want, rtol=1e-12, atol=1e-12)


@by_name
def test_activation_checkpointing_changes_no_bit(name: str) -> None:
    layout = DECODER_OF_BOTH
    torch.manual_seed(0)
    stack = stir(build(name, layout))
    x, ctx = inputs(layout, dtype=torch.float32)
    want = gradients(stack, x, ctx)
    stack.subs = nn.ModuleList(checkpoint_wrapper(sub) for sub in stack.sublayers())
    actual = {
        k.replace("._checkpoint_wrapped_module", ""): g for k, g in gradients(stack, x, ctx).items()
    }
    assert want.keys() == actual.keys()
    assert all(torch.equal(want[k], actual[k]) for k in want)


def compiled_equals_eager(name: str, backend: str, tolerance: float, depth: int = 2) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    stack = stir(build(name, decoder(depth)))
    x, ctx = inputs(decoder(depth), dtype=torch.float32)
    with ops.reference_only("add_norm"):  # which is what the compiler sees
        want, want_y = gradients(stack, x, ctx), stack(x, ctx)
    compiled = torch.compile(stack, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(x, ctx), want_y, rtol=tolerance, atol=tolerance)
    actual = gradients(compiled, x, ctx)
    for k, g in want.items():
        scale = max(g.abs().max().item(), want[k.replace("k.bias", "k.weight")].abs().max().item())
        error = (actual[f"_orig_mod.{k}"] - g).abs().max().item()
        assert error <= tolerance * scale, f"{k}: off by {error / scale:.2g}"


@by_name
def test_compiles_in_one_graph(name: str) -> None:
    """aot_eager runs the same kernels, reassociated by functionalization: float32 rounding."""
    compiled_equals_eager(name, "aot_eager", 1e-5)


needs_compiler = pytest.mark.skipif(
    not any(shutil.which(c) for c in ("c++", "g++", "clang++")),
    reason="inductor needs a C++ compiler, and none is on PATH",
)


@needs_compiler
@pytest.mark.parametrize("name", ["pre_norm", "post_norm", "layer_scale", "hyper_connections"])
def test_compiles_with_inductor(name: str) -> None:
    """Fused kernels reorder sums of up to 72 terms: some 1e-6 each, over 2 sublayers and back."""
    compiled_equals_eager(name, "inductor", 1e-4, depth=1)


@needs_compiler
@pytest.mark.slow
@by_name
def test_every_scheme_compiles_with_inductor(name: str) -> None:
    """The same for two blocks, so that the seam between them is compiled too."""
    compiled_equals_eager(name, "inductor", 1e-4)


@by_name
def test_bfloat16_stays_within_its_rounding(name: str) -> None:
    """bfloat16 against float64 on the same rounded weights and input.

    A sublayer rounds about 8 times on the way to the stream (norm, q, k, v, heads, out or up, act,
    down; the sum), each by up to 2^-9 of the value; no part here amplifies by more than 2. So the
    error, relative to the largest value, is below 2 * 8 * n * 2^-9, n = 4 sublayers: 0.125.
    """
    layout = decoder(2)
    torch.manual_seed(0)
    stack = stir(build(name, layout)).bfloat16()
    x, ctx = inputs(layout, dtype=torch.bfloat16)
    actual = stack(x, ctx).double()
    want = stack.double()(x.double(), ctx)
    assert (actual - want).abs().max() <= 0.125 * want.abs().max()
    # ... and the mean error, which does not grow with the number of entries, a quarter of that.
    assert (actual - want).abs().mean() <= 0.03 * want.abs().max()


def test_parallel_equals_the_parallel_branch() -> None:
    """Two sublayers under parallel(pre_norm) = one sublayer holding both branches."""
    attention, mlp = partial(Attention, DIM, 4, causal=True), partial(MLP, DIM, 40)
    torch.manual_seed(0)
    two = stir(
        Stack([("attn", attention), ("mlp", mlp)] * 2, DIM, schemes.parse("parallel(pre_norm)"))
    )
    one = Stack([("both", partial(Parallel, attention, mlp))] * 2, DIM, schemes.pre_norm)
    renamed = {}
    for k, v in two.state_dict().items():
        for block in range(2):
            k = k.replace(f"subs.{2 * block}.branch.", f"SUBS.{block}.branch.branches.0.")
            k = k.replace(f"subs.{2 * block + 1}.branch.", f"SUBS.{block}.branch.branches.1.")
            k = k.replace(f"subs.{2 * block}.", f"SUBS.{block}.")
        renamed[k.replace("SUBS", "subs")] = v
    one.load_state_dict(renamed)
    x, ctx = inputs(decoder(2), dtype=torch.float32)
    torch.testing.assert_close(two(x, ctx), one(x, ctx))


@pytest.mark.parametrize("name", ["post_norm", "deepnorm", "ngpt", "residual_dual", "no_residual"])
def test_parallel_refuses_a_base_it_would_falsify(name: str) -> None:
    with pytest.raises(schemes.SchemeError, match="parallel"):
        build(f"parallel({name})", decoder(2))


def test_hyper_connections_start_as_pre_norm() -> None:
    """Four equal streams, summed: the final norm sees 4 x, so only eps can tell them apart. With
    eps 1e-12 it moves the result by eps / 2 / variance, far below 1e-10."""
    norm = partial(LayerNorm, eps=1e-12)
    torch.manual_seed(0)
    hyper = build("hyper_connections", decoder(5), norm=norm).double()
    torch.manual_seed(0)
    pre = build("pre_norm", decoder(5), norm=norm).double()
    x, ctx = inputs(decoder(5))
    assert (hyper(x, ctx) - pre(x, ctx)).abs().max() < 1e-10


def test_drop_path_drops_whole_samples_at_the_linear_rate() -> None:
    """x + f(x)/(1-p) or x, per sample; p * l / L. 4000 draws: the standard error is below 0.008."""
    stack = build("drop_path(pre_norm, p=0.4)", decoder(2))
    rates = [sub.join.p for sub in stack.sublayers()]
    assert rates == [0.2, 0.2, 0.4, 0.4]
    join = stack.sublayers()[-1].join
    x = torch.ones(4000, 1, 2)
    s = join.write(torch.zeros_like(x), x, {})
    values = s.settle()[:, 0]
    torch.testing.assert_close(values.unique(), torch.tensor([0.0, 1 / 0.6]))
    assert torch.equal(values[:, 0], values[:, 1])
    assert abs((values[:, 0] == 0).float().mean().item() - 0.4) < 0.03


# --- broken on purpose ----------------------------------------------------------------------------
# Bugs that published implementations had, and some of our own, planted one at a time: the checks
# above must turn red. Each mutation returns a scheme that should have been the named one.


def alpha_on_the_branch(s: Site) -> Wiring:
    """DeepNorm as once published: alpha multiplies f(x) instead of x."""
    w = schemes.deepnorm(s)
    if s.kind in ("embed", "head"):
        return w
    return replace(w, join=_OnTheBranch(w.join.keep))


class _OnTheBranch(Plain):
    defers = True

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = keep

    def write(self, carry, v, taps):
        return Stream(carry, v, gain=self.keep, taps=taps)


def norm_never_called(s: Site) -> Wiring:
    return replace(schemes.deepnorm(s), post=None)


def by_sublayers(s: Site) -> Wiring:
    """Mix-LN that counts sublayers where the paper counts blocks."""
    early = s.kind != "head" and s.index < 0.25 * s.total
    return (schemes.post_norm if early else schemes.pre_norm)(s)


def residual_from_the_normed(s: Site) -> Wiring:
    """x <- N(x) + f(N(x))."""
    w = schemes.pre_norm(s)
    if s.kind in ("embed", "head"):
        return w
    return Wiring(pre=w.pre, join=_Normed())


class _Normed(Plain):
    defers = True

    def read(self, s, pre, valid):
        u, _ = super().read(s, pre, valid)
        return u, u

    def write(self, carry, v, taps):
        return Stream(carry, v, taps=taps)


def scaled_by_sublayer(s: Site) -> Wiring:
    w = schemes.ln_scaling(s)
    if s.kind in ("embed", "head"):
        return w
    return replace(w, pre=AddNorm(s.dim, s.norm, scale=(s.index + 1) ** -0.5))


def transposed_mixture(s: Site) -> Wiring:
    """Hyper-connections with A_r the wrong way round: invisible at init, where A_r = I."""
    w = schemes.hyper_connections(4)(s)
    if s.kind in ("embed", "head"):
        return w

    join = Hyper(s, 4)
    read = join.read

    def transposed(s, pre, valid):
        alpha = join.alpha
        del join.alpha
        join.alpha = torch.cat((alpha[:, :1], alpha[:, 1:].T), 1)
        try:
            return read(s, pre, valid)
        finally:
            del join.alpha
            join.alpha = alpha

    join.read = transposed
    return replace(w, join=join)


def step_without_its_sign(s: Site) -> Wiring:
    """nGPT without |alpha|: equal at init, where alpha is positive."""
    w = schemes.ngpt(s)
    if s.kind in ("embed", "head"):
        return w

    join = Slerp(s.dim)

    def signed(carry, v, taps):
        step = join.alpha * join.start * join.dim**0.5
        return Stream(unit(carry + step * (unit(v) - carry)), taps=taps)

    join.write = signed
    return replace(w, join=join)


def no_final_norm(s: Site) -> Wiring:
    return Wiring() if s.kind == "head" else schemes.sandwich(s)


MUTATIONS: list[tuple[str, Callable[[Site], Wiring], Layout]] = [
    ("deepnorm", alpha_on_the_branch, decoder(2)),
    ("deepnorm", norm_never_called, decoder(2)),
    ("mix_ln", by_sublayers, decoder(6)),
    ("pre_norm", residual_from_the_normed, decoder(2)),
    ("ln_scaling", scaled_by_sublayer, decoder(2)),
    ("hyper_connections", transposed_mixture, decoder(2)),
    ("ngpt", step_without_its_sign, decoder(2)),
    ("sandwich", no_final_norm, decoder(2)),
]


@pytest.mark.parametrize(
    ("name", "mutant", "layout"), MUTATIONS, ids=[m[1].__name__ for m in MUTATIONS]
)
def test_a_wrong_wiring_is_rejected(name: str, mutant: Scheme, layout: Layout) -> None:
    assert rejects(lambda: compare_with_reference(name, mutant, layout))


def test_a_scale_norm_that_starts_at_one_is_rejected() -> None:
    """Another published bug: the gain is sqrt(dim) at first, so that rows have unit variance."""
    x = torch.randn(5, DIM)
    right, wrong = ScaleNorm(DIM), ScaleNorm(DIM)
    nn.init.ones_(wrong.weight)

    def check(norm: ScaleNorm) -> None:
        # RMS of a row is |g| / sqrt(dim) exactly, up to float32 rounding
        assert torch.allclose(norm(x).square().mean(-1), torch.ones(5), rtol=1e-5)

    check(right)
    assert rejects(lambda: check(wrong))


# --- what a stack refuses -------------------------------------------------------------------------


def test_a_name_is_not_a_scheme() -> None:
    with pytest.raises(TypeError, match="parse"):
        Stack([("mlp", lambda **_: nn.Identity())], DIM, "pre_norm")


def test_a_family_must_be_called() -> None:
    for family in (schemes.mix_ln, schemes.layer_scale, schemes.drop_path):
        with pytest.raises(schemes.SchemeError, match=rf"called first: {family.__name__}\("):
            build(family, decoder(2))


def test_parts_that_nothing_would_read_are_refused() -> None:
    def confused(s: Site) -> Wiring:
        return Wiring(post=AddNorm(s.dim, s.norm))

    with pytest.raises(ValueError, match="'post' at site 'embed'"):
        build(confused, decoder(2))


@pytest.mark.parametrize("shape", [(TIME, DIM), (BATCH, TIME, DIM + 1), (BATCH, DIM, TIME)])
def test_a_wrong_input_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"reads \(B, T, 24\)"):
        build("pre_norm", decoder(2))(torch.zeros(shape))


def test_a_site_by_itself_is_a_decoders_and_of_no_depth() -> None:
    site = Site("mlp", 0, 1, 0, 1, DIM, nn.LayerNorm)
    assert (site.side, site.depths, site.place) == ("decoder", (0, 0), 0)


def test_a_projection_shortcut_joins_two_widths() -> None:
    """x_out = W x + f(N(x)) where f changes the width (He et al. 2015)."""
    site = Site("mlp", 0, 1, 0, 1, DIM, nn.LayerNorm)
    shortcut = nn.Linear(DIM, 10, bias=False)
    wiring = Wiring(pre=AddNorm(DIM), join=Add(shortcut))

    class Narrow(nn.Module):
        def __init__(self, inner: object, init: InitRule) -> None:
            super().__init__()
            self.down = nn.Linear(DIM, 10)
            init("down", self.down.weight)

        def forward(self, u: torch.Tensor, here: Here) -> torch.Tensor:
            return self.down(u)

    sub = Sublayer(Narrow, wiring, site)
    x = torch.randn(2, 3, DIM)
    actual = sub(Stream(x), Context()).settle()
    want = x @ shortcut.weight.T + sub.branch.down(torch.nn.functional.layer_norm(x, (DIM,)))
    torch.testing.assert_close(actual, want)


def test_gains_compose() -> None:
    """Two layer scales multiply; drop_path around DeepNorm keeps alpha."""
    stack = build("with_layer_scale(with_layer_scale(pre_norm, 0.5), 0.25)", decoder(2))
    join = stack.sublayers()[0].join
    assert isinstance(join, LearnedGain)
    s = join.write(torch.zeros(1, 1, DIM), torch.ones(1, 1, DIM), {})
    torch.testing.assert_close(s.settle(), torch.full((1, 1, DIM), 0.125))
    stack = build("drop_path(deepnorm, 0.5)", decoder(2)).eval()
    s = stack.sublayers()[0].join.write(torch.ones(1, 1, DIM), torch.zeros(1, 1, DIM), {})
    torch.testing.assert_close(s.settle(), torch.full((1, 1, DIM), 4**0.25))
