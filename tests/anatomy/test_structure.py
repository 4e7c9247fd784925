"""The stream is found in the operations that ran, not by anybody's names."""

import pytest
import torch
from torch import nn

from addnorm.anatomy.inputs import Inputs
from addnorm.anatomy.specimen import Specimen


@pytest.mark.parametrize("depth", [1, 2, 6])
def test_the_stream_is_followed_at_any_depth(depth):
    """Fork, branch and addition of every sublayer, in order."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(24, 3, 48, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, depth, nn.LayerNorm(24), enable_nested_tensor=False)
    s = Specimen(model.eval(), Inputs((torch.randn(2, 5, 24),))).structure
    assert [r.add.module for r in s.residuals] == [f"layers.{i // 2}" for i in range(2 * depth)]
    for before, after in zip(s.residuals, s.residuals[1:], strict=False):
        assert s.previous(after) is before
        assert after.fork is before.output
        assert [n.path for n in s.own_norms(after)] != []
    assert s.previous(s.residuals[0]) is None
