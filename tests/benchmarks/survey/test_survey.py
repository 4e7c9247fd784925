"""What the survey found that is true, measured without lint."""

from typing import Any

import pytest
import torch

x_transformers = pytest.importorskip("x_transformers")

WORDS, LENGTH = 61, 9


def decoder(**options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    layers = x_transformers.Decoder(dim=24, depth=2, heads=3, attn_dim_head=8, **options)
    wrapper = x_transformers.TransformerWrapper(
        num_tokens=WORDS, max_seq_len=16, attn_layers=layers
    )
    model: torch.nn.Module = wrapper.eval()
    return model


def share_moved(model: torch.nn.Module, **call: Any) -> float:
    """How far the logits before the last token move when that changes, over the logits' size."""
    ids = torch.arange(2 * LENGTH).reshape(2, LENGTH)
    other = ids.clone()
    other[:, -1] += 20
    with torch.no_grad():
        before, after = (model(i, **call)[:, :-1] for i in (ids, other))
    return float((before - after).abs().max() / before.std())


ORTHOGONAL = ("attn_orthog_projected_values", "attn_orthog_projected_values_per_head")
FLOAT32_NOISE = 1e-5  # of 2 layers in float32, by far; the defects are above 1e-2


@pytest.mark.parametrize("option", ORTHOGONAL)
def test_values_made_orthogonal_see_the_future(option: str) -> None:
    """``orthog_project`` packs all but the batch into one axis, so that the projection is taken
    over the whole text and not for each position."""
    model = decoder(**{option: True})
    assert share_moved(model) > 1e-2
    assert share_moved(decoder()) < FLOAT32_NOISE


@pytest.mark.parametrize("option", ORTHOGONAL)
def test_values_made_orthogonal_see_the_padding(option: str) -> None:
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[:, -1] = False
    assert share_moved(decoder(**{option: True}), mask=mask) > 1e-2
    assert share_moved(decoder(), mask=mask) < FLOAT32_NOISE
