"""A norm's formula is read from what it does, and what does not normalize is no norm."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from addnorm.anatomy.norms.find import find_norms
from addnorm.anatomy.norms.formulas import FAMILY, nearest
from tests.norm_hosts import IDS, WIDTH, Bare, Host, specimen_of


def test_other_modules_are_no_norms() -> None:
    class Softmax(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.softmax(-1)

    shares = Bare(lambda x: x / x.sum(-1, keepdim=True))
    others = (nn.GELU(), nn.Identity(), nn.Dropout(0.5), nn.Linear(WIDTH, WIDTH))
    for module in (Softmax(), shares, *others):
        assert find_norms(specimen_of(Host(module), IDS)) == []


@settings(max_examples=10, deadline=None)
@given(
    dim=st.integers(3, 200),
    power=st.floats(-11, -3),
    formula=st.sampled_from([f for f in FAMILY if f.mistakes or f in FAMILY[:2]]),
    seed=st.integers(0, 1000),
)
def test_any_formula_of_any_width_and_eps_is_recognized(dim, power, formula, seed) -> None:
    """Up to what no input can tell apart: a bound that no row is below, for one."""
    assume(formula.form != "clamp" or power > -7)  # the smallest rows have a deviation of 1e-8
    g = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-8, 3, 12, dtype=torch.float64)[:, None, None]
    x = scales * (torch.randn(12, 4, dim, generator=g, dtype=torch.float64) + 0.7)
    eps = 10.0**power
    match = nearest(x, formula(x, eps))
    assert match.distance < 1e-6
    assert match.formula.mistakes == formula.mistakes
    if formula.form != "bare":
        assert match.eps == pytest.approx(eps, rel=1e-3)
