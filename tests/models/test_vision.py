"""Vision Transformers: fronts, pooling, sizes, and that designs do what their papers say."""

from typing import Any

import pytest
import torch
from torch import nn

from addnorm.errors import Mendable
from addnorm.init import reset_parameters
from addnorm.models.fronts import PatchFront
from addnorm.models.vision import ViT, patch_attention
from addnorm.models.vision_config import PRESETS, ViTConfig
from addnorm.norms import BatchNorm, GroupNorm

SIZES: dict[str, Any] = {"classes": 3, "height": 8, "width": 12, "patch": 4, "dim": 16}


def tiny(**changes: Any) -> ViT:
    torch.manual_seed(0)
    return ViT(ViTConfig(**{**SIZES, "n_layers": 2, "n_heads": 2, **changes}))


def pictures(count: int = 3, channels: int = 3) -> torch.Tensor:
    return torch.randn(count, channels, 8, 12, generator=torch.Generator().manual_seed(1))


def test_a_patch_is_a_linear_layer_of_its_pixels() -> None:
    front, x = PatchFront((8, 12), (4, 3), 3, 16, tokens=2), pictures()
    h, tokens = front(x), front.tokens
    assert tokens is not None
    assert h.shape == (3, 2 + 2 * 4, 16)
    patch = x[1, :, 4:8, 6:9].flatten()  # the second row, the third column
    want = front.embed.weight.flatten(1) @ patch + front.embed.bias + front.positions[2 + 4 + 2]
    assert torch.allclose(h[1, 2 + 4 + 2], want, atol=1e-5)
    assert torch.allclose(h[2, 1], tokens[1] + front.positions[1])
    assert not torch.equal(tokens[0], tokens[1])


def test_convolutions_see_as_many_patches() -> None:
    torch.manual_seed(0)
    front = PatchFront((8, 12), (4, 4), 1, 16, tokens=0, embedding="convolutions")
    x = pictures(channels=1)
    h = front.patches(x)
    assert h.shape == (3, 6, 16)
    sizes = [float(t.detach().square().mean().sqrt()) for t in (h, front.positions)]
    assert 0.5 < sizes[0] / sizes[1] < 2, "patches begin as large as their positions"
    x[0, 0, 0, 0] += 1  # each patch sees its own pixels, and few around it
    changed = (front.patches(x) - h).abs().amax(-1) > 0
    assert changed.tolist() == [[True, *[False] * 5], *[[False] * 6] * 2]


def test_positions_of_another_size() -> None:
    front = PatchFront((8, 12), (4, 4), 3, 16, tokens=1)
    assert torch.equal(front.positions_for((2, 3)), front.positions)
    wide = front.positions_for((4, 6))
    assert wide.shape == (1 + 24, 16)
    assert torch.equal(wide[0], front.positions[0])
    larger = torch.randn(2, 3, 16, 24)
    with pytest.raises(
        Mendable, match=r"pictures of 16 x 24 pixels, .* positions of 8 x 12: bring"
    ):
        front(larger)
    assert front(larger, interpolate=True).shape == (2, 25, 16)
    with pytest.raises(
        Mendable, match=r"pixels must be \(B, 3, height, width\), got \(2, 1, 8, 12\)"
    ):
        front(torch.zeros(2, 1, 8, 12))
    with pytest.raises(Mendable, match="a picture of 3 x 12 pixels has no patch of 4 x 4"):
        front(torch.zeros(2, 3, 3, 12), interpolate=True)


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, 7),
        ({"pooling": "mean"}, 6),
        ({"distillation": "token"}, 8),
        ({"distillation": "head"}, 8),
        ({"classes": 0, "patch_width": 6}, 5),
    ],
    ids=str,
)
def test_what_the_head_reads(changes: dict[str, Any], length: int) -> None:
    model: Any = tiny(**changes).eval()
    assert model.config.length == length
    h = model.hidden(pictures())
    assert h.shape == (3, length, 16)
    logits = model(pictures())
    if not model.config.classes:
        assert torch.equal(logits, h)
        return
    want = model.head(h.mean(1) if changes.get("pooling") else h[:, 0])
    if changes.get("distillation") == "head":
        want = (want + model.distilled_head(h[:, 1])) / 2
    assert torch.allclose(logits, want, atol=1e-6)


def test_layer_scale_and_stochastic_depth() -> None:
    """In their designs, as the papers have it: nearly the identity at first, and a picture whose
    branches are all left out is what the front made of it."""
    model = tiny(scheme="layer_scale(1e-5)").eval()
    front = model.front(pictures())
    assert torch.allclose(model.hidden(pictures()), model.stack.final.norm(front), atol=1e-3)
    model = tiny(scheme="drop_path(pre_norm, p=0.9)", n_layers=1).train()
    x = pictures(1).expand(200, -1, -1, -1)
    plain = model.stack.final.norm(model.front(x))
    left_out = (model.hidden(x) - plain).abs().amax((1, 2)) < 1e-5
    assert 140 < int(left_out.sum()) < 185  # both of two with probability 0.81


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_what_it_looks_at_is_a_row_of_its_attention(pooling: str) -> None:
    """Of what the label is read off, over all that it may look at: by hand, of one block."""
    model: Any = tiny(n_layers=1, pooling=pooling).eval()
    with torch.no_grad():
        for p in model.stack.subs[0].branch.parameters():
            p.mul_(20)
        shares = patch_attention(nn.Sequential(model), pictures())
        sub = model.stack.subs[0]
        u = sub.pre.norm(model.front(pictures()))
        q, k = (layer(u).unflatten(-1, (2, 8)) for layer in (sub.branch.q, sub.branch.k))
        weights = torch.einsum("bihd,bjhd->bhij", q, k).div(8**0.5).softmax(-1).mean(1)
    want = weights[:, 0, 1:] if pooling == "class" else weights.mean(1)
    assert shares.shape == (3, 2, 3)
    assert torch.allclose(shares.flatten(1), want, atol=1e-5)
    assert float(shares.std()) > 1e-3, "it looks at some more than at others"
    assert not model.stack.subs[0].branch._forward_pre_hooks, "nothing is left behind"


def test_norms_across_a_picture() -> None:
    for name, kind in (("batch", BatchNorm), ("group", GroupNorm)):
        model = tiny(norm=name, pooling="mean").train()
        assert sum(isinstance(m, kind) for m in model.modules()) == 5
        with torch.no_grad():
            alone, together = model(pictures()[:1]), model(pictures())
        same = torch.allclose(alone, together[:1], atol=1e-5)
        assert same == (name == "group"), "only BatchNorm depends on the other pictures"
        model.eval()
        assert torch.allclose(model(pictures()[:1]), model(pictures())[:1], atol=1e-5)


def test_a_model_without_memory_can_be_filled() -> None:
    with torch.device("meta"):
        model = ViT(ViTConfig(**SIZES, n_layers=1, n_heads=2, embedding="convolutions"))
    model.to_empty(device="cpu")
    for p in model.parameters():
        nn.init.constant_(p, float("nan"))
    reset_parameters(model)
    assert all(p.isfinite().all() for p in model.parameters())


def test_published_shapes() -> None:
    for name in PRESETS:
        config = ViT.preset(name, n_layers=1)
        with torch.device("meta"):
            assert ViT(config).head.out_features == 1000
    with torch.device("meta"):
        model = ViT(ViT.preset("vit-base"))
    assert sum(p.numel() for p in model.parameters()) == 86_567_656  # as transformers counts
    with pytest.raises(Mendable, match="did you mean vit-base"):
        ViT.preset("vit-bas")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 3}, "n_heads=3 does not divide dim=16"),
        ({"patch": 9}, "patch_height=9 is more than height=8: there is no patch of 9"),
        ({"patch_width": 13}, "patch_width=13 is more than width=12: there is no patch of 13"),
        ({"embedding": "convolutions", "patch_width": 2}, "patches must be square"),
        ({"embedding": "convolutions", "patch": 3}, "a power of two, got 3 x 3"),
        ({"embedding": "convolutions", "patch": 8}, "patches of 8 divide, got 8 x 12"),
        ({"pooling": "mean", "distillation": "token"}, "pooling=class"),
        ({"classes": 0, "distillation": "head"}, "there is no first"),
        ({"norm": "btach"}, "did you mean batch"),
        ({"classes": -1}, "classes must be a whole number of at least 0"),
        ({"channels": True}, "channels must be a whole number"),
        ({"eps": -1.0}, "eps must be"),
        ({"dropout": 1.0}, "dropout must be in"),
        ({"scheme": "pre_nrom"}, "did you mean pre_norm"),
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Mendable, match=message):
        tiny(**changes)
