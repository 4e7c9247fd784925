"""Position codes: against the loops, and what is true of them at any length."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from addnorm.branches import Attention
from addnorm.context import Context, Here
from addnorm.positions import ALiBi, Learned, RoPE, Sinusoidal
from tests.references import attention as naive

# Always the same examples: a test that fails once in a hundred runs tells nobody anything.
examples = partial(settings, deadline=None, derandomize=True, database=None)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def angle_error(position: float, dtype: torch.dtype) -> float:
    """How far an angle p * f may be off, f = exp(a) with a = -2j/d * log(base) in [-9.3, 0].

    In units of the rounding u of the dtype: a is good to 2 roundings of its size, the exponential
    makes that 2 |a| u of f and adds one, the product one more. f |a| <= 1/e, so the angle is off by
    at most p (2/e + 2) u, and a sine by that and its own rounding: p * 3 u + u.
    """
    return (3 * position + 1) * torch.finfo(dtype).eps / 2


# --- sinusoidal -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("length", [1, 7, 5000])
def test_sinusoidal_is_the_published_table(length: int, dim: int) -> None:
    want = torch.tensor(naive.sinusoidal(length, dim))
    code = Sinusoidal(dim)
    for dtype in (torch.float64, torch.float32):
        actual = code(torch.arange(length, dtype=dtype))
        assert (actual.shape, actual.dtype) == ((length, dim), dtype)
        # twice: the reference rounds as well, in float64
        assert (actual - want).abs().max() <= 2 * angle_error(length, dtype)
    whole = code(torch.arange(length))
    assert torch.equal(whole, actual)  # whole numbers are computed in float32
    assert torch.equal(code(torch.arange(length).to(torch.int32)), actual)


def test_sinusoidal_of_a_batch_of_positions() -> None:
    code, positions = Sinusoidal(7), torch.tensor([[0, 1, 2], [7, 7, 100]])
    actual = code(positions)
    assert actual.shape == (2, 3, 7)
    assert torch.equal(actual, torch.stack([code(row) for row in positions]))
    assert not torch.equal(actual[0], actual[1])


def test_sinusoidal_with_another_base() -> None:
    actual = Sinusoidal(4, base=100.0)(torch.tensor([3.0], dtype=torch.float64))
    want = [math.sin(3), math.cos(3), math.sin(0.3), math.cos(0.3)]
    assert actual[0].tolist() == pytest.approx(want, abs=2 * angle_error(3, torch.float64))


# --- learned --------------------------------------------------------------------------------------


def test_learned_is_a_row_for_each_position() -> None:
    code = Learned(9, 4)
    positions = torch.tensor([[0, 8, 3], [3, 3, 1]])
    assert torch.equal(code(positions), code.weight[positions])
    assert torch.equal(code(torch.arange(9)), code.weight)
    assert code(torch.arange(0)).shape == (0, 4)
    code(positions).sum().backward()
    assert code.weight.grad is not None
    assert code.weight.grad[:, 0].tolist() == [1, 1, 0, 3, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("positions", "number"), [([9], 9), ([0, 100], 100), ([-1], -1), ([[0, 1], [-3, 2]], -3)]
)
def test_a_position_that_was_not_learned_is_named(positions: list[int], number: int) -> None:
    with pytest.raises(ValueError, match=f"position {number} is outside the 9 learned ones"):
        Learned(9, 4)(torch.tensor(positions))


@pytest.mark.parametrize("std", [0.02, 0.5])
def test_learned_starts_at_its_std(std: float) -> None:
    """4096 draws give it to 1 / sqrt(2 * 4096) = 1.1 %; five such errors."""
    weight = Learned(64, 64, std=std).weight
    assert weight.std().item() == pytest.approx(std, rel=0.055)
    assert abs(weight.mean().item()) < 5 * std / 64


# --- rotary ---------------------------------------------------------------------------------------

widths = st.sampled_from([2, 4, 6, 16])


@pytest.mark.parametrize("head_dim", [2, 4, 6, 16])
@pytest.mark.parametrize("base", [10000.0, 500.0])
def test_rope_equals_the_loops(head_dim: int, base: float) -> None:
    x = torch.randn(2, 3, 5, head_dim, dtype=torch.float64)
    positions = torch.tensor([0, 1, 7, 500, 5000])
    want = torch.tensor(naive.rope(x.numpy(), positions.numpy(), base))
    code = RoPE(head_dim, base)
    for dtype in (torch.float64, torch.float32):
        actual = code.rotate(x.to(dtype), positions)
        assert actual.dtype == dtype
        # an entry is two products and a sum, of numbers below 4, with both factors off by an angle
        error = 2 * 4 * (2 * angle_error(5000, dtype) + 2 * torch.finfo(dtype).eps)
        assert (actual - want).abs().max() <= error


def test_rope_in_bfloat16_rounds_the_factors_and_not_the_angle() -> None:
    """At position 5000 an angle rounded to 8 bits would be anything; a factor is good to 2^-9."""
    x = torch.randn(1, 2, 3, 16, dtype=torch.float64).bfloat16()
    positions = torch.tensor([0, 300, 5000])
    actual = RoPE(16).rotate(x, positions)
    want = torch.tensor(naive.rope(x.double().numpy(), positions.numpy()))
    assert actual.dtype == torch.bfloat16
    # a factor, its product and the sum are each rounded, two of the first two: 5 * 2^-9 of 4
    assert (actual.double() - want).abs().max() <= 5 * 2**-9 * 4


@examples(max_examples=50)
@given(widths, st.lists(st.integers(0, 10**6), min_size=1, max_size=5))
def test_rope_keeps_the_length(head_dim: int, at: list[int]) -> None:
    """Of every pair, to the rounding of sine and cosine, whatever the angle."""
    x = torch.randn(2, 3, len(at), head_dim, dtype=torch.float64)
    y = RoPE(head_dim).rotate(x, torch.tensor(at))

    def lengths(z: Tensor) -> Tensor:
        return torch.hypot(*z.chunk(2, -1))

    # sin^2 + cos^2, two products, a sum and the hypotenuse: some ten roundings
    torch.testing.assert_close(lengths(y), lengths(x), rtol=10 * 2**-53, atol=0.0)


@examples(max_examples=50)
@given(widths, st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_rope_sees_only_the_distance(head_dim: int, i: int, j: int, shift: int) -> None:
    """<R_i q, R_j k> = <R_(i + shift) q, R_(j + shift) k>.

    The frequencies are the same on both sides, so that only the product p * f is rounded: four
    angles of at most 2000, each off by 2000 * 2^-53, times |q| |k|.
    """
    q = torch.randn(1, 1, 1, head_dim, dtype=torch.float64)
    k = torch.randn(1, 1, 1, head_dim, dtype=torch.float64)
    code = RoPE(head_dim)

    def product(i: int, j: int) -> Tensor:
        return (code.rotate(q, torch.tensor([i])) * code.rotate(k, torch.tensor([j]))).sum()

    error = 4 * 2000 * 2**-53 * (q.norm() * k.norm()).item() + 1e-14
    assert abs(product(i, j) - product(i + shift, j + shift)) <= error
    if i != j:  # ... and it does see it
        assert abs(product(i, j) - product(i, i)) > error


def test_rope_starts_where_it_is_and_turns_by_halves() -> None:
    x = torch.zeros(1, 1, 2, 8, dtype=torch.float64)
    x[..., 1] = 1.0
    y = RoPE(8).rotate(x, torch.tensor([0, 2]))
    assert torch.equal(y[0, 0, 0], x[0, 0, 0])
    angle = 2 * 10000 ** (-2 / 8)
    want = torch.zeros(8, dtype=torch.float64)
    want[1], want[5] = math.cos(angle), math.sin(angle)
    torch.testing.assert_close(y[0, 0, 1], want, rtol=0.0, atol=2 * angle_error(2, torch.float64))


def test_rope_at_positions_of_each_sample() -> None:
    x, code = torch.randn(3, 2, 4, 6), RoPE(6)
    positions = torch.tensor([[0, 1, 2, 3], [5, 6, 7, 8], [0, 0, 0, 1]])
    actual = code.rotate(x, positions)
    each = [code.rotate(x[b : b + 1], positions[b]) for b in range(3)]
    assert torch.equal(actual, torch.cat(each))
    assert torch.equal(code.rotate(x, positions[:1]), code.rotate(x, positions[0]))
    square = torch.randn(4, 2, 4, 6)  # as many samples as tokens: nothing may be taken for another
    rows = torch.arange(16).reshape(4, 4)
    want = torch.cat([code.rotate(square[b : b + 1], rows[b]) for b in range(4)])
    assert torch.equal(code.rotate(square, rows), want)


@pytest.mark.parametrize("head_dim", [1, 3, 7])
def test_rope_rotates_pairs(head_dim: int) -> None:
    with pytest.raises(ValueError, match=f"head_dim must be even, got {head_dim}"):
        RoPE(head_dim)


# --- ALiBi ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", range(1, 18))
def test_alibi_slopes_are_the_published_ones(heads: int) -> None:
    slopes = ALiBi(heads).slopes()
    np.testing.assert_allclose(slopes, naive.alibi_slopes(heads), rtol=1e-15)
    assert len(set(slopes)) == heads


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("heads", [1, 3, 8, 12])
def test_alibi_counts_the_distance_both_ways(heads: int, dtype: torch.dtype) -> None:
    """In the precision asked for: float32 does not hold 2^(-1/2), a slope of 12 heads."""
    code = ALiBi(heads)
    bias = code.bias(torch.tensor([2, 3]), torch.arange(5), dtype)
    assert (bias.shape, bias.dtype) == ((heads, 2, 5), dtype)
    distance = torch.tensor([[2, 1, 0, 1, 2], [3, 2, 1, 0, 1]])
    want = -torch.tensor(naive.alibi_slopes(heads))[:, None, None] * distance
    # the slope and the product are rounded, and the reference's own are
    torch.testing.assert_close(bias.double(), want, rtol=2 * torch.finfo(dtype).eps, atol=0.0)
    x = torch.randn(2, heads, 2, 4)
    assert torch.equal(code.rotate(x, torch.arange(2)), x)


# --- what holds for all ---------------------------------------------------------------------------

MADE: dict[str, Callable[[], nn.Module]] = {
    "sinusoidal": lambda: Sinusoidal(6),
    "learned": lambda: Learned(9, 6),
    "rope": lambda: RoPE(6),
    "alibi": lambda: ALiBi(6),
}


def output_of(code: nn.Module) -> Tensor:
    """Whatever it computes, on fixed positions."""
    positions = torch.arange(7)
    if isinstance(code, RoPE):
        ones = torch.ones(1, 1, 7, 6)
        return code.rotate(ones, positions)
    if isinstance(code, ALiBi):
        return code.bias(positions, positions, torch.float32)
    out: Tensor = code(positions)
    return out


@pytest.mark.parametrize("make", MADE.values(), ids=list(MADE))
def test_no_table_is_held(make: Callable[[], nn.Module]) -> None:
    """Neither as a buffer, persistent or not, nor as a plain attribute; nor made by a call."""
    code = make()
    output_of(code)
    for module in code.modules():
        assert list(module.buffers()) == []
        assert not [k for k, v in vars(module).items() if isinstance(v, Tensor)]
    assert set(code.state_dict()) == ({"weight"} if isinstance(code, Learned) else set())


@pytest.mark.parametrize("make", MADE.values(), ids=list(MADE))
def test_to_empty_loses_nothing_but_parameters(make: Callable[[], nn.Module]) -> None:
    want = make()
    with torch.device("meta"):
        code = make()
    code.to_empty(device="cpu")
    with torch.no_grad():
        for p in code.parameters():
            p.fill_(math.nan)
    if isinstance(code, Learned):
        assert output_of(code).isnan().all()
        code.reset_parameters()
        assert output_of(code).isfinite().all()
        code.load_state_dict(want.state_dict())
    assert torch.equal(output_of(code), output_of(want))
    assert torch.equal(output_of(want.to_empty(device="cpu")), output_of(code)) or isinstance(
        want, Learned
    )


@pytest.mark.parametrize("make", MADE.values(), ids=list(MADE))
def test_they_follow_their_input_to_its_device(make: Callable[[], nn.Module]) -> None:
    """What is computed on the way is made where the positions are."""
    code = make().to("meta")
    positions = torch.arange(7, device="meta")
    if isinstance(code, RoPE):
        out: Tensor = code.rotate(torch.ones(1, 1, 7, 6, device="meta"), positions)
    elif isinstance(code, ALiBi):
        out = code.bias(positions, positions, torch.float32)
    elif isinstance(code, Learned):
        return  # a lookup: its bounds need numbers
    else:
        out = code(positions)
    assert out.is_meta


def test_a_half_model_keeps_its_angles() -> None:
    """``.half()`` and ``.bfloat16()`` find no table to round."""
    positions = torch.arange(5000)
    assert torch.equal(Sinusoidal(6).bfloat16()(positions), Sinusoidal(6)(positions))
    x = torch.randn(1, 1, 5000, 6)
    assert torch.equal(RoPE(6).bfloat16().rotate(x, positions), RoPE(6).rotate(x, positions))


@pytest.mark.parametrize("shift", [1, 100])
def test_attention_with_rope_sees_only_the_distance(shift: int) -> None:
    """All positions moved alike change nothing; angles of 105 at most, see above, through logits
    and values of some 10: 4 * 105 * 2^-53 * 100 = 5e-12."""
    branch = Attention(12, 2, causal=True, position=RoPE(6)).double()
    for p in branch.parameters():
        nn.init.normal_(p, std=0.5)
    x, at = torch.randn(2, 5, 12, dtype=torch.float64), torch.arange(5)
    want = branch(x, Here())
    torch.testing.assert_close(branch(x, Here(Context(positions=at))), want, rtol=0.0, atol=0.0)
    shifted = branch(x, Here(Context(positions=at + shift)))
    torch.testing.assert_close(shifted, want, rtol=0.0, atol=5e-12)
    other = branch(x, Here(Context(positions=2 * at)))
    assert (other - want).abs().max() > 1e-3
