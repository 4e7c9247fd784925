"""Twins are modules that differ in their weights only."""

from torch import nn

from addnorm.anatomy.twins import twin_key
from tests.norm_hosts import FlaggedNorm, Host


def test_alike_are_those_that_differ_in_their_weights_only() -> None:
    one, two = Host(FlaggedNorm()), Host(FlaggedNorm())
    two.load_state_dict(
        {k: v + (0.1 if "shift" not in k else 0) for k, v in one.state_dict().items()}
    )
    assert twin_key(one.before) == twin_key(one.final)
    two.before.body = one.before.body
    assert twin_key(one.before) == twin_key(two.before)
    assert twin_key(nn.LayerNorm(8)) != twin_key(nn.LayerNorm(8, eps=1e-6))
    assert twin_key(nn.Linear(8, 8)) != twin_key(nn.Linear(8, 8, bias=False))
    assert twin_key(nn.Sequential(nn.Dropout(0.1))) != twin_key(nn.Sequential(nn.Dropout(0.2)))
    assert twin_key(nn.ReLU()) != twin_key(nn.GELU())
