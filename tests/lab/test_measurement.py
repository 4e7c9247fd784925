"""What the lab measures at initialization: against hand-written formulas, plain autograd and known
laws; and what it says of it, as JSON."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from addnorm import schemes
from addnorm.branches import ACTIVATIONS
from addnorm.lab.measurement import (
    UNSCALED,
    LabDesign,
    LabReport,
    LabRun,
    build,
    compare,
    conditions,
    draw,
    everything,
    exponent,
    follow,
    measure,
    observe,
    resolve,
)
from addnorm.lab.setup import Setup
from addnorm.spread import Spread
from addnorm.temporary import fixed_seed
from benchmarks import claims

SMALL = Setup(width=16, depths=(1, 2, 3), heads=2, tokens=6, batch=3, seeds=2)


# --- one run --------------------------------------------------------------------------------------


def test_one_block_without_norm_by_hand() -> None:
    """x1 = x + Attention(x), x2 = x1 + MLP(x1), written out; stream, gradients and loss."""
    setup = replace(SMALL, heads=2)
    with fixed_seed(5):
        task = draw(setup)
        stack = build(resolve("no_norm", setup), setup, 1)
    run = observe(stack, task)
    attention, mlp = (sub.branch for sub in stack.sublayers())

    x0 = task.x.detach().requires_grad_()
    q, k, v = (
        linear(x0).unflatten(-1, (2, 8)).transpose(1, 2)
        for linear in (attention.q, attention.k, attention.v)
    )
    logits = q @ k.transpose(-1, -2) / math.sqrt(8)
    logits = logits + torch.full((6, 6), -math.inf).triu(1)
    x1 = x0 + attention.out((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
    x2 = x1 + mlp.down(F.gelu(mlp.up(x1)))
    loss = F.cross_entropy((x2 @ task.head.T).flatten(0, 1), task.targets.flatten())
    d0, d2, dw = torch.autograd.grad(loss, [x0, x2, mlp.down.weight])

    def rms(x: torch.Tensor) -> float:
        return x.square().mean().sqrt().item()

    # float32 on both sides, some hundred roundings of 6e-8 relative
    assert run.stream == pytest.approx([rms(x0), rms(x1), rms(x2)], rel=1e-5)
    assert run.gradient == pytest.approx([rms(d0), rms(d2)], rel=1e-5)
    assert run.mlp_gradient == pytest.approx([dw.norm().item()], rel=1e-5)
    assert run.loss == pytest.approx(loss.item(), rel=1e-5)
    assert run.stream[0] < run.stream[1] < run.stream[2]


def test_the_task_is_as_declared() -> None:
    setup = Setup(width=256, tokens=50, batch=40)
    with fixed_seed(0):
        task = draw(setup)
    assert task.x.shape == (40, 50, 256)
    assert task.targets.shape == (40, 50)
    # 65 * 256 draws: a standard deviation is known to 1 / sqrt(2 * 16640) = 0.5%; tokens repeat
    # unevenly, which adds about as much.
    assert task.x.std().item() == pytest.approx(1.0, rel=0.03)
    assert task.head.std().item() * 16 == pytest.approx(1.0, rel=0.03)
    assert len(task.x.detach().flatten(0, 1).unique(dim=0)) == 65
    # What is to be predicted is the next token: equal targets are followed by equal vectors.
    following, told = task.x.detach()[:, 1:], task.targets[:, :-1]
    for k in range(65):
        assert len(following[told == k].unique(dim=0)) == 1
    # A random token cannot be predicted: the loss of the embedding itself is above log 65.
    assert task.loss(task.x).item() > math.log(65)


@pytest.mark.parametrize("text", [*everything(), "parallel(pre_norm)", "drop_path(post_norm, 0.5)"])
def test_looking_changes_nothing(text: str) -> None:
    """Output and MLP gradients are those of the stack nobody looks at, and no hook stays."""
    setup = replace(SMALL, depths=(2,))
    with fixed_seed(3):
        task = draw(setup)
        stack = build(resolve(text, setup), setup, 2)
    with fixed_seed(4):  # drop_path draws
        y, points = follow(stack, task.x)
    with fixed_seed(4):
        run = observe(stack, task)
    with fixed_seed(4):
        plain = stack(task.x)
    # The additions are the same, done elsewhere: the last digit may differ.
    torch.testing.assert_close(y, plain, rtol=1e-5, atol=1e-6)
    task.loss(plain).backward()
    downs = [sub.branch.down.weight.grad for sub in stack.sublayers()[1::2]]
    assert run.mlp_gradient == pytest.approx([g.norm().item() for g in downs], rel=1e-4, abs=1e-9)
    assert len(points) == len(run.stream) == 5
    assert len(run.gradient) == 3
    if text not in ("residual_dual", "ngpt"):  # there x enters by a second way, or rescaled
        assert task.x.grad is not None
        entering = task.x.grad.square().mean().sqrt().item()
        assert run.gradient[0] == pytest.approx(entering, rel=1e-4)
    for sub in stack.sublayers():
        assert not sub._forward_hooks
        assert not sub._forward_pre_hooks


def test_no_hook_stays_after_an_error() -> None:
    stack = build(resolve("pre_norm", SMALL), SMALL, 1)
    with pytest.raises(ValueError, match="reads"):
        follow(stack, torch.zeros(1, 2, 3))
    assert not any(sub._forward_hooks or sub._forward_pre_hooks for sub in stack.sublayers())


def test_hyper_connections_begin_as_pre_norm() -> None:
    """Mean of the streams and sum of their gradients: equal to pre-norm's up to eps of the norms
    (1e-5 relative to a mean square near 1) and rounding."""
    hyper = measure(resolve("hyper_connections", SMALL), SMALL, 3, 0)
    pre = measure(resolve("pre_norm", SMALL), SMALL, 3, 0)
    assert hyper.stream == pytest.approx(pre.stream, rel=1e-4)
    assert hyper.gradient == pytest.approx(pre.gradient, rel=1e-4)
    assert hyper.mlp_gradient == pytest.approx(pre.mlp_gradient, rel=1e-4)


def test_draws_depend_on_the_seed_alone() -> None:
    scheme = resolve("pre_norm", SMALL)
    state = torch.get_rng_state()
    one = measure(scheme, SMALL, 2, 1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert measure(scheme, SMALL, 2, 1) == one
    assert measure(scheme, SMALL, 2, 2).loss != one.loss


def test_embedding_and_weights_are_not_the_same_draws() -> None:
    """They come from one generator, one after the other: seeding it anew for the model would fill
    the first query weight with the embedding's numbers."""
    scheme = resolve("pre_norm", SMALL)
    with fixed_seed(0):
        task = draw(SMALL)
        stack = build(scheme, SMALL, 1)
    drawn = set(task.x.detach().flatten().tolist())
    q = (stack.sublayers()[0].branch.q.weight * 4.0).flatten().tolist()  # back to std 1
    assert not drawn & set(q)
    assert measure(scheme, SMALL, 1, 0) == observe(stack, task, 0)


# --- init and other options -----------------------------------------------------------------------


def stds(text: str, setup: Setup) -> dict[str, float]:
    with fixed_seed(0):
        stack = build(resolve(text, setup), setup, 2)
    attention, mlp = (sub.branch for sub in stack.sublayers()[:2])
    layers = {"q": attention.q, "out": attention.out, "up": mlp.up, "down": mlp.down}
    return {name: linear.weight.std().item() for name, linear in layers.items()}


def test_init_fan_in_and_own() -> None:
    """64 * 64 draws know a standard deviation to 1 / sqrt(2 * 4096) = 1.1%: 5% is 4.5 of those."""
    half = 0.5  # GPT-2's 1 / sqrt(2L) at L = 2
    wide = Setup(depths=(2,))
    assert stds("pre_norm", wide) == pytest.approx(
        {"q": 1 / 8, "out": half / 8, "up": 1 / 8, "down": half / 16}, rel=0.05
    )
    assert stds(UNSCALED, wide) == pytest.approx(
        {"q": 1 / 8, "out": 1 / 8, "up": 1 / 8, "down": 1 / 16}, rel=0.05
    )
    assert stds("pre_norm", replace(wide, init="own")) == pytest.approx(
        {"q": 0.02, "out": half * 0.02, "up": 0.02, "down": half * 0.02}, rel=0.05
    )


def test_own_init_hides_the_designs_at_small_width() -> None:
    """Why fan_in is the default: with 0.02 at width 64 a sandwich without its norm on the output
    adds next to nothing, whatever the design."""
    own = Setup(depths=(4,), init="own")
    plain = "mix_ln(0.0)"  # pre-norm initialized with 0.02 throughout
    grown = {
        setup.init: measure(resolve(plain, setup), setup, 4, 0).stream[-1] ** 2
        for setup in (own, replace(own, init="fan_in"))
    }
    assert grown["own"] < 1.1  # the embedding's 1 and 8 branches of some 0.002
    assert grown["fan_in"] > 3.0


def test_qk_norm_and_activation_reach_the_branches() -> None:
    setup = replace(SMALL, qk_norm=True, activation="relu2")
    attention, mlp = (s.branch for s in build(resolve("pre_norm", setup), setup, 1).sublayers())
    assert attention.q_norm is not None
    assert attention.k_norm.dim == 8
    assert mlp.activation == "relu2"
    plain = build(resolve("pre_norm", SMALL), SMALL, 1).sublayers()[0].branch
    assert plain.q_norm is None


def test_every_activation_is_offered() -> None:
    offered = Setup.__annotations__["activation"].__args__
    assert set(offered) == set(ACTIVATIONS)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"depths": ()}, "depths must be"),
        ({"depths": (2, 0)}, "depths must be"),
        ({"depths": (2, 2)}, "depths must be"),
        ({"heads": 7}, "7 heads do not divide the width 64"),
        ({"seeds": 0}, "seeds must be a whole number of at least 1"),
        ({"first_seed": -1}, "first_seed"),
    ],
)
def test_a_setup_that_cannot_be_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Setup(**wrong)


def test_seeds_begin_where_they_are_told() -> None:
    report = compare(["rezero"], replace(SMALL, depths=(1,), first_seed=10, seeds=3))
    assert [run.seed for run in report.designs[0].runs] == [10, 11, 12]


def test_a_composition_that_cannot_be_built_is_refused_before_measuring() -> None:
    with pytest.raises(schemes.SchemeError, match="without a residual"):
        resolve("drop_path(no_residual)", SMALL)


# --- laws -----------------------------------------------------------------------------------------


def test_pre_norm_grows_with_depth_and_its_factors_hold_it() -> None:
    """Xiong et al. 2020, Lemma 2: a block adds between 1/2 and 3/2 to the mean square, for ReLU,
    whose second moment is 0.5; GELU's is 0.43, so a little less. The slope of 1 + L over 2 to 8 is
    0.79, of 1 + L/2 0.66 and of 1 + 3L/2 0.85; a tenth on both sides for the draws."""
    setup = Setup(depths=(2, 4, 8), tokens=16, batch=4, seeds=3)
    grown, held, post = compare([UNSCALED, "pre_norm", "post_norm"], setup).designs
    e = grown.exponent("stream_mean_square")
    assert e is not None
    assert 0.56 < e.low <= e.median <= e.high < 0.95
    for depth in setup.depths:
        assert 1 + 0.4 * depth < grown.value(depth, "stream_mean_square").median < 1 + 1.5 * depth
    flat = held.exponent("stream_mean_square")
    assert flat is not None
    assert abs(flat.median) < 0.1
    last, flat_last = grown.exponent("last_mlp_gradient"), held.exponent("last_mlp_gradient")
    assert last is not None
    assert flat_last is not None
    assert last.median < -0.2 < -0.1 < flat_last.median
    # LayerNorm's eps of 1e-5 is the only reason for not being 1 exactly.
    for depth in setup.depths:
        assert post.value(depth, "stream_mean_square").median == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("p", [-2.0, -0.5, 0.0, 1.0, 3.5])
def test_exponent_of_a_power_law(p: float) -> None:
    depths = (6, 12, 24, 48)
    assert exponent(depths, [0.3 * d**p for d in depths]) == pytest.approx(p, abs=1e-12)


def test_exponent_is_the_least_squares_slope() -> None:
    """In log 2: points (1, 0), (2, 1), (3, 5) have slope 2.5."""
    assert exponent([2, 4, 8], [1.0, 2.0, 32.0]) == pytest.approx(2.5)


@pytest.mark.parametrize("values", [[1.0, 0.0], [1.0, math.nan], [math.inf, 1.0], [1.0, -1.0]])
def test_no_exponent_where_there_is_none(values: list[float]) -> None:
    assert exponent([2, 4], values) is None
    assert exponent([2], [1.0]) is None


def made(texts: list[str], setup: Setup, value: Any) -> LabReport:
    """A report of made-up runs: every number is value(design, depth, seed)."""
    designs = []
    for i, text in enumerate(texts):
        runs = [
            LabRun(d, s, 4.0, [v] * (2 * d + 1), [v] * (d + 1), [v] * d)
            for d in setup.depths
            for s in setup.all_seeds()
            for v in [value(i, d, s)]
        ]
        designs.append(
            LabDesign(text, text, ["x <- x & f(x)"], ["<A>, 2001.00001"], "init", "", runs)
        )
    return LabReport("addnorm schemes <x>", setup, {"torch": "2"}, designs)


def test_exponents_are_fitted_by_seed_and_then_spread() -> None:
    """Seed s grows as L^s: median 1, extremes 0 and 2; and the mean square as twice that."""
    setup = Setup(depths=(12, 3, 6), seeds=3)  # in any order
    (design,) = made(["a"], setup, lambda i, d, s: 2.0 * d**s).designs
    assert asdict(design.exponent("last_mlp_gradient")) == pytest.approx(
        {"median": 1.0, "low": 0.0, "high": 2.0}, abs=1e-12
    )
    assert design.exponent("stream_mean_square").median == pytest.approx(2.0)
    assert design.value(6, "first_mlp_gradient") == Spread(12.0, 2.0, 72.0)
    assert design.curve(3, "stream") == [Spread(6.0, 2.0, 18.0)] * 7


def test_no_exponent_where_one_seed_has_none() -> None:
    (design,) = made(["a"], SMALL, lambda i, d, s: 0.0 if (d, s) == (2, 1) else 1.0).designs
    assert design.exponent("last_mlp_gradient") is None


def test_rezero_has_no_exponent_and_says_why() -> None:
    (design,) = compare(["rezero"], replace(SMALL, seeds=1)).designs
    assert design.runs[0].mlp_gradient == [0.0]
    assert design.exponent("last_mlp_gradient") is None
    assert "exactly 0" in design.note
    assert math.isnan(design.value(2, "first_to_last").median)
    assert design.exponent("stream_mean_square").median == pytest.approx(0.0, abs=1e-6)


def test_notes_say_which_stream_is_shown() -> None:
    one = replace(SMALL, seeds=1, depths=(1,))
    hyper, dual, plain = compare(["hyper_connections(3)", "residual_dual", "no_norm"], one).designs
    assert "mean of the 3 streams" in hyper.note
    assert "normalized stream" in dual.note
    assert plain.note == ""


# --- as JSON --------------------------------------------------------------------------------------


def test_json_holds_everything() -> None:
    report = compare(["pre_norm", "drop_path(mix_ln(0.5), p=0.2)"], SMALL, "the command")
    told = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert set(told) == {"format", "model", "command", "setup", "versions", "designs"}
    assert told["format"] == "addnorm.schemes/1"
    assert told["command"] == "the command"
    assert Setup(**{**told["setup"], "depths": tuple(told["setup"]["depths"])}) == SMALL
    assert set(told["versions"]) == {"addnorm", "torch", "python", "machine"}
    assert [d["text"] for d in told["designs"]] == ["pre_norm", "drop_path(mix_ln(0.5), p=0.2)"]
    for design, given in zip(told["designs"], report.designs, strict=True):
        expected = {"text", "label", "equations", "papers", "init", "note", "runs"}
        assert set(design) == expected | {"exponents", "values", "curves"}
        assert len(design["runs"]) == 6
        for run, measured in zip(design["runs"], given.runs, strict=True):
            assert len(run["stream"]) == 2 * run["depth"] + 1
            assert len(run["gradient"]) == run["depth"] + 1
            assert len(run["mlp_gradient"]) == run["depth"]
            assert run["stream"] == pytest.approx(measured.stream, rel=1e-5)  # six digits
        for name, e in design["exponents"].items():
            assert e == pytest.approx(asdict(given.exponent(name)), rel=1e-5, abs=1e-9)
        for by_depth in [*design["values"].values(), *design["curves"].values()]:
            assert set(by_depth) == {"1", "2", "3"}
        for name, by_depth in design["curves"].items():
            for depth, columns in by_depth.items():
                curve = given.curve(int(depth), name)
                for column, values in columns.items():
                    wanted = [getattr(s, column) for s in curve]
                    assert values == pytest.approx(wanted, rel=1e-5)
    assert len(told["designs"][1]["equations"]) == 2


def test_json_has_no_number_that_is_none() -> None:
    told = made(["a"], SMALL, lambda i, d, s: math.inf if d == 2 else 1.0).to_json()
    text = json.dumps(told, allow_nan=False)
    assert "null" in text
    assert told["designs"][0]["exponents"]["last_mlp_gradient"] is None
    assert told["designs"][0]["runs"][2]["stream"] == [None] * 5


def test_conditions_name_what_matters() -> None:
    told = conditions(SMALL)
    for part in (
        "width 16",
        "2 heads",
        "gelu",
        "QK-norm off",
        "init fan_in",
        "seeds 0, 1",
        "std 1",
    ):
        assert part in told
    assert "init own" in conditions(replace(SMALL, init="own"))
    assert "seed 4." in conditions(replace(SMALL, seeds=1, first_seed=4))


# --- the claims -----------------------------------------------------------------------------------


def test_update_is_the_directional_derivative() -> None:
    """The change of the logits by a small step, against central differences along the gradient.

    The step has error O(rate) = 1e-4 and the differences O(1e-8), relative to a change near 1.
    """
    with fixed_seed(9):
        task = draw(claims.setup(16))
        stack = claims.build(claims.DESIGNS["pre"], 16, 2).double()
    x, head = task.x.detach().double(), task.head.double()
    weights = list(stack.parameters())
    y = stack(x)
    loss = F.cross_entropy((y @ head.T).flatten(0, 1), task.targets.flatten())
    grads = torch.autograd.grad(loss, weights)
    for sign in (False, True):
        steps = [g.sign() if sign else g for g in grads]
        moved = []
        with torch.no_grad():
            for h in (1e-4, -2e-4, 1e-4):
                for p, d in zip(weights, steps, strict=True):
                    p.add_(h * d)
                moved.append(stack(x) @ head.T)
        derivative = ((moved[0] - moved[1]) / 2e-4).square().mean().sqrt().item()
        assert claims.update("pre", 16, 2, 9, sign) == pytest.approx(derivative, rel=1e-2)


def test_mixing_of_doubly_stochastic_matrices_does_not_grow() -> None:
    assert claims.mixing(0, 50) == pytest.approx(1.0, abs=1e-9)
    assert claims.mixing(0, 0) > 10.0


def test_rank_residual() -> None:
    x = torch.ones(2, 3, 4)
    assert claims._rank(x) == 0.0
    centred = torch.tensor([[[1.0], [-1.0]]])
    assert claims._rank(centred) == pytest.approx(1.0)
    assert claims.ranks(16, 0, False)[3] < claims.ranks(16, 0, True)[3]


def test_attention_logits_are_bounded_by_qk_norm_only() -> None:
    assert claims.attention_at(16, 0, 30.0, True)[0] <= 1.0 + 1e-6
    assert claims.attention_at(16, 0, 30.0, False)[0] > 10.0
    assert claims.attention_at(16, 0, 1e-3, False)[1] == pytest.approx(1.0, abs=1e-4)


def test_factors_reach_the_weights() -> None:
    """Without a norm before it, a branch of one linear map would give its square; here: more."""
    assert claims.mean_square("pre", 16, 6, 0, 4.0) > 10 * claims.mean_square("pre", 16, 6, 0)
    one = claims.run("output_norm", 16, 6, 0).loss
    assert claims.run("output_norm+qk", 16, 6, 0).loss != one


def test_equalities_are_measured_between_equal_weights() -> None:
    assert claims.distance(schemes.with_layer_scale(schemes.pre_norm, 1.0), 16, 0, 1e-5) < 1e-12
    assert claims.distance(schemes.with_layer_scale(schemes.pre_norm, 0.5), 16, 0, 1e-5) > 1e-2


def test_the_document_has_the_rows_of_the_script() -> None:
    """docs/schemes_measured.md shows what the script would print, row for row."""
    document = Path(claims.__file__).parent.parent / "docs" / "schemes_measured.md"
    lines = [line for line in document.read_text().splitlines() if line.startswith("| D")]
    shown = [tuple(cell.strip() for cell in line.split("|")[1:4]) for line in lines]
    assert shown == [(r.claim, r.what, r.theory) for r in claims.rows()]
    bands = [line.split("|")[6].strip() for line in lines]
    assert bands == [r.band() for r in claims.rows()]
