"""From logits to a token: the distribution is the reference's, and the draws follow it."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from addnorm.errors import Mendable
from addnorm.generation import sampling as module
from addnorm.generation.sampling import (
    Sampling,
    Uniforms,
    choose,
    distribution,
    draw,
    masked,
    penalized,
)
from tests.references import sampling as reference

VOCAB = 40
PROMPT, OUTPUT = [3, 3, 7, 11], [7, 5, 5, 5, 20]  # 7 is in both
BANNED = [0, 5, 39]

ALONE: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"temperature": 0.0},
    {"top_k": 5},
    {"top_k": 100},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"min_p": 0.2},
    {"repetition_penalty": 1.8},
    {"repetition_penalty": 0.7},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.8},
    {"banned": BANNED},
]
TOGETHER: dict[str, Any] = {
    "temperature": 1.3,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.05,
    "repetition_penalty": 1.3,
    "presence_penalty": 0.4,
    "frequency_penalty": 0.3,
    "banned": BANNED,
}
OPTIONS = [*ALONE, TOGETHER]


def logits(seed: int = 0, vocab: int = VOCAB, scale: float = 2.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(vocab, generator=g, dtype=torch.float64)


def told(
    vocab: int = VOCAB, banned: list[int] | None = None, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """What the sampler is told of PROMPT, OUTPUT and the banned ids."""
    seen = torch.zeros(1, vocab, dtype=torch.bool)
    seen[0, PROMPT + OUTPUT] = True
    counts = torch.bincount(torch.tensor(OUTPUT), minlength=vocab)[None].to(dtype)
    if banned is None:
        return seen, counts, None
    allowed = torch.ones(1, vocab, dtype=torch.bool)
    allowed[0, banned] = False
    return seen, counts, allowed


def ours(x: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    options = dict(options)
    history = told(x.shape[-1], options.pop("banned", None))
    return distribution(x[None], Sampling(**options), *history)[0]


def theirs(x: torch.Tensor, options: dict[str, Any]) -> np.ndarray:
    return reference.distribution(x.numpy(), PROMPT + OUTPUT, generated=OUTPUT, **options)


# --- the distribution -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_the_distribution_is_the_references(options: dict[str, Any], seed: int) -> None:
    """In float64 both sides do the same some 100 operations: 1e-10 leaves room for a factor 1e4."""
    x = logits(seed)
    got, want = ours(x, options).numpy(), theirs(x, options)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)
    assert ((got > 0) == (want > 0)).all()


@settings(deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.none() | st.integers(1, VOCAB),
    top_p=st.none() | st.floats(0.05, 0.99),
    min_p=st.none() | st.floats(0.0, 0.6),
    repetition_penalty=st.floats(0.5, 2.0),
    presence_penalty=st.floats(-1.0, 1.0),
    frequency_penalty=st.floats(-1.0, 1.0),
    banned=st.lists(st.integers(0, VOCAB - 2), max_size=20),
)
def test_any_combination_is_the_references(seed: int, **options: Any) -> None:
    """Random logits are nowhere within 1e-13 of a border, where either answer would be right."""
    x = logits(seed)
    np.testing.assert_allclose(ours(x, options).numpy(), theirs(x, options), rtol=0, atol=1e-10)


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_top_p_over_a_large_flat_vocabulary(top_p: float) -> None:
    """Where more than the tokens that are looked at first are needed."""
    x = logits(1, vocab=3000, scale=0.1)
    options = {"top_p": top_p}
    got = ours(x, options).numpy()
    assert (got > 0).sum() > module.ENOUGH
    np.testing.assert_allclose(got, theirs(x, options), rtol=0, atol=1e-10)


def test_ties() -> None:
    """At top-k's border all stay, at top-p's the lower ids, at temperature 0 the lowest."""
    x = torch.tensor([1.0, 2.0, 1.0, 2.0, 0.0, 1.0], dtype=torch.float64).log1p()[None]
    p = distribution(x, Sampling(top_k=3))[0]
    assert p.nonzero().flatten().tolist() == [0, 1, 2, 3, 5]
    # probabilities 2/13, 3/13, 2/13, 3/13, 1/13, 2/13: 3 + 3 + 2 + 2 = 10 of 13 reach 0.7
    p = distribution(x, Sampling(top_p=0.7))[0]
    assert p.nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert distribution(x, Sampling(temperature=0.0))[0].tolist() == [0, 1, 0, 0, 0, 0]
    assert choose(x, Sampling(temperature=0.0), None).tolist() == [1]


def test_float32_and_bfloat16_logits_are_computed_in_float32() -> None:
    """Between float32 and float64, 1e-6; a bfloat16 softmax would be off by 1e-3."""
    x = logits(3).bfloat16()
    for low in (x, x.float()):
        got = distribution(low[None], Sampling(temperature=0.7, min_p=0.01))[0]
        assert got.dtype == torch.float32
        want = theirs(x.double(), {"temperature": 0.7, "min_p": 0.01})
        np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-3, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_temperatures_stay_finite(temperature: float, dtype: torch.dtype) -> None:
    x = logits(4).to(dtype)[None] * 100
    p = distribution(x, Sampling(temperature=temperature))
    assert p.isfinite().all()
    assert p.sum().item() == pytest.approx(1.0)
    if temperature < 1:
        assert p.argmax() == x.argmax()
        assert p.max() > 0.999
    else:
        assert p.max().item() == pytest.approx(1 / VOCAB)


def test_rows_have_nothing_to_do_with_each_other() -> None:
    x = torch.stack([logits(seed) for seed in range(6)])
    sampling = Sampling(temperature=0.8, top_k=9, top_p=0.8, min_p=0.02)
    together = distribution(x, sampling)
    for row, p in zip(x, together, strict=True):
        assert torch.equal(p, distribution(row[None], sampling)[0])


@pytest.mark.parametrize("options", [{"top_p": 0.9}, {"top_p": 0.6, "top_k": 2000, "min_p": 1e-4}])
def test_rows_of_a_large_vocabulary_are_each_the_references(options: dict[str, Any]) -> None:
    """Flat ones need more tokens than are looked at first, the peaked ones beside them do not."""
    rows = [logits(i, vocab=3000, scale=scale) for i, scale in enumerate((0.1, 8.0, 0.1, 2.0))]
    together = distribution(torch.stack(rows), Sampling(**options)).numpy()
    kept = (together > 0).sum(-1)
    assert min(kept[0], kept[2]) > module.ENOUGH > max(kept[1], 1)
    for row, p in zip(rows, together, strict=True):
        np.testing.assert_allclose(
            p, reference.distribution(row.numpy(), [], **options), rtol=0, atol=1e-10
        )


# --- the draw -------------------------------------------------------------------------------------

DRAWS = 20_000


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_draws_follow_the_distribution(options: dict[str, Any]) -> None:
    """Goodness of fit to the reference, every row drawn from a generator of its own.

    One run in 10^4 of a right sampler would fail; the seeds are fixed.
    """
    x = logits(2)
    want = theirs(x, options)
    rest = {name: value for name, value in options.items() if name != "banned"}
    sampling = Sampling(**rest)
    history = told(banned=options.get("banned"))
    seen, counts_before, allowed = history
    z = masked(penalized(x[None], sampling, seen, counts_before), allowed).expand(DRAWS // 50, -1)
    uniforms = Uniforms(range(len(z)), torch.device("cpu"))
    counts = torch.zeros(VOCAB, dtype=torch.long)
    for _ in range(50):
        counts += torch.bincount(choose(z, sampling, uniforms.now()), minlength=VOCAB)
        uniforms.advance()
    assert counts.sum() == DRAWS
    assert counts[want == 0].sum() == 0
    assert reference.chi_square_p(counts.numpy(), want) > 1e-4


def test_the_test_of_draws_can_fail() -> None:
    """One probability wrong by 6 % is found in ten times as many draws."""
    want = theirs(logits(2), {})
    wrong = want.copy()
    wrong[want.argmax()] *= 1.06
    wrong /= wrong.sum()
    counts = np.random.default_rng(0).multinomial(DRAWS * 10, wrong)
    assert reference.chi_square_p(counts, want) < 1e-4


def test_what_has_no_probability_is_never_drawn() -> None:
    """Not at either end of [0, 1), and not where the sum rounds."""
    p = torch.zeros(1, 50, dtype=torch.float32)
    p[0, [3, 4, 9]] = torch.tensor([0.1, 0.2, 0.7])
    ends = torch.tensor([0.0, 1e-320, 0.1, 0.3, 1 - 2**-53], dtype=torch.float64)
    drawn = draw(p.expand(5, -1), ends)
    assert set(drawn.tolist()) <= {3, 4, 9}
    assert drawn[0] == 3
    assert drawn[-1] == 9
    for size in (1 / 3, 0.1, 1e-30, 7.3e5):  # sums that 1 - 2^-53 times rounds back up to
        q = torch.zeros(1, 9, dtype=torch.float64)
        q[0, 2] = size
        assert draw(q, ends[-1:]).item() == 2


def test_a_rows_numbers_depend_on_its_seed_alone() -> None:
    def numbers(uniforms: Uniforms, n: int) -> torch.Tensor:
        found = []
        for _ in range(n):
            assert torch.equal(uniforms.now(), uniforms.now())
            found.append(uniforms.now())
            uniforms.advance()
        return torch.stack(found, 1)

    device = torch.device("cpu")
    n = module.BLOCK + 10
    together = Uniforms([5, 6, 7], device)
    first = numbers(together, 10)
    together.keep([2, 0])
    rest = numbers(together, n)
    for row, seed in ((0, 7), (1, 5)):
        alone = numbers(Uniforms([seed], device), 10 + n)[0]
        assert torch.equal(alone[:10], first[{7: 2, 5: 0}[seed]])
        assert torch.equal(alone[10:], rest[row])
    assert first.unique().numel() == 30
    assert ((first >= 0) & (first < 1)).all()


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 .greedy. or more, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be finite"),
        ({"top_k": 0}, "top_k must be a whole number of at least 1, got 0"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"min_p": -0.1}, "min_p must be between 0 and 1"),
        (
            {"repetition_penalty": 0.0},
            r"repetition_penalty must be between 1e-06 and 1e\+06, 1 for",
        ),
        ({"repetition_penalty": 1e300}, "repetition_penalty must be between"),
        (
            {"presence_penalty": 1e300},
            r"presence_penalty must be between -1e\+06 and 1e\+06, 0 for",
        ),
        ({"presence_penalty": -1e39}, "presence_penalty must be between"),
        ({"frequency_penalty": 1e38}, "frequency_penalty must be between"),
        ({"temperature": 10**400}, "temperature must be finite"),
        ({"top_k": 10**400}, "top_k must be finite"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Mendable, match=message):
        Sampling(**options)


def test_numbers_may_be_numpys_and_large() -> None:
    x = logits(0)[None]
    for options in ({"temperature": 2, "top_k": 7, "top_p": 0.75}, {"temperature": 10**30}):
        want = distribution(x, Sampling(**options))
        theirs = {
            name: np.array(value, "f4" if name != "top_k" else "i8")[()]
            for name, value in options.items()
        }
        assert torch.equal(distribution(x, Sampling(**theirs)), want)


@pytest.mark.parametrize("size", [1e6, -1e6, 1e-6])
def test_the_largest_penalties_stay_finite(size: float) -> None:
    """Of ids that came a million times, in float32: what is left is a distribution."""
    options = {"repetition_penalty": abs(size), "presence_penalty": size, "frequency_penalty": size}
    seen, counts, _ = told(dtype=torch.float32)
    p = distribution(logits(0).float()[None], Sampling(**options), seen, counts * 1e6)
    assert p.isfinite().all()
    assert p.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("options", [{"temperature": "0"}, {"temperature": None}, {"top_k": True}])
def test_what_is_no_number_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="must be a number"):
        Sampling(**options)


def test_a_top_p_that_rounding_never_reaches_keeps_everything() -> None:
    """Some rows of probabilities of float32 add up to less than 1 - 1e-12; which, depends on how a
    processor sums."""
    x = torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    short = x[x.softmax(-1).double().sum(-1) < 1 - 1e-12]
    assert len(short) > 0
    assert bool((distribution(short, Sampling(top_p=1 - 1e-12)) > 0).all())


def test_a_draw_is_a_share_of_what_there_is() -> None:
    """Of probabilities that add up to a half, 0.4 falls to the first, 0.6 to the second."""
    p = torch.tensor([[0.25, 0.25]]).expand(2, 2)
    assert draw(p, torch.tensor([0.4, 0.6], dtype=torch.float64)).tolist() == [0, 1]
