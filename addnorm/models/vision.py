"""Vision Transformer: patches in front, an encoder on any Add & Norm scheme, a head.

    pixels ──▶ PatchFront ──▶ Stack([attention, MLP] * n_layers) ──▶ class token, or mean ──▶ head

With ``pre_norm`` and the defaults of ``ViTConfig`` this is the published model, parameter for
parameter; with ``distillation`` DeiT. LayerScale and stochastic depth are parts of the scheme.

References: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words" (arXiv 2010.11929), and its
code, https://github.com/google-research/vision_transformer; Touvron et al. 2021, "Training
data-efficient image transformers & distillation through attention" (arXiv 2012.12877).
"""

import dataclasses
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from addnorm import schemes
from addnorm.branches import MLP, Attention
from addnorm.checks import check_known
from addnorm.context import Here
from addnorm.data.images import ImageFrame
from addnorm.models.fronts import PatchFront
from addnorm.models.vision_config import PRESETS, VISION_NORMS, WITHOUT_EPS, ViTConfig
from addnorm.stream import Stack


@final
class ViT(nn.Module):
    """(B, channels, height, width) pixels -> logits (B, classes); without a head the hidden states
    (B, tokens, dim).

    ``config``: all of its choices; ``ViT.preset(name)`` has the published ones.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = c = config
        norm = partial(VISION_NORMS[c.norm], **({} if c.norm in WITHOUT_EPS else {"eps": c.eps}))
        attention = partial(
            Attention, c.dim, c.n_heads, dropout=c.attention_dropout, out_dropout=c.dropout
        )
        mlp = partial(MLP, c.dim, c.hidden or 4 * c.dim, c.activation, out_dropout=c.dropout)
        self.stack = Stack(
            [("attn", attention), ("mlp", mlp)] * c.n_layers,
            c.dim,
            schemes.parse(c.scheme),
            norm=norm,
            side="encoder",
        )
        self.front = PatchFront(
            c.size,
            c.patches,
            c.channels,
            c.dim,
            tokens=c.tokens,
            embedding=c.embedding,
            dropout=c.dropout,
            init=self.stack.inits["embed"],
        )
        self.head = nn.Linear(c.dim, c.classes) if c.classes else None
        both = c.distillation == "head"
        self.distilled_head = nn.Linear(c.dim, c.classes) if both else None
        self.labels: tuple[str, ...] | None = None  # what the classes are called
        self.frame: ImageFrame | None = None  # how a picture becomes pixels
        self.reset_parameters()

    @staticmethod
    def preset(name: str, **changes: Any) -> ViTConfig:
        """A published shape: deit-tiny, deit-small, vit-base, vit-large, vit-huge; any field can be
        changed."""
        check_known("preset", name, PRESETS)
        dim, layers, heads = PRESETS[name]
        config = ViTConfig(
            dim=dim, n_layers=layers, n_heads=heads, patch=14 if name == "vit-huge" else 16
        )
        return dataclasses.replace(config, **changes)

    def reset_parameters(self) -> None:
        """The heads normal, std 0.02, the bias 0; front and stack have filled themselves."""
        for head in (self.head, self.distilled_head):
            if head is not None:
                nn.init.normal_(head.weight, std=0.02)
                nn.init.zeros_(head.bias)

    def forward(self, pixels: Tensor, interpolate: bool = False) -> Tensor:
        """``interpolate``: as in ``hidden``."""
        h = self.hidden(pixels, interpolate)
        if self.head is None:
            return h
        pooled = self.pooled(h).to(self.head.weight.dtype)
        logits: Tensor = self.head(pooled)
        if self.distilled_head is not None:
            logits = (logits + self.distilled_head(h[:, 1].to(pooled.dtype))) / 2
        return logits

    def hidden(self, pixels: Tensor, interpolate: bool = False) -> Tensor:
        """(B, channels, height, width) -> (B, tokens, dim): the stream at the end of the stack, the
        learned tokens first, then the patches row by row. Pictures of another size than the
        config's are refused, unless ``interpolate``: then positions lie between the learned
        ones."""
        encoded: Tensor = self.stack(self.front(pixels, interpolate))
        return encoded

    def pooled(self, h: Tensor) -> Tensor:
        """(B, tokens, dim) -> (B, dim): what stands for each picture, by ``config.pooling``."""
        return h[:, 0] if self.config.pooling == "class" else h.mean(1)

    def after_step(self, step: int) -> None:
        """Call after every optimizer step; ``step`` counts from 1."""
        self.stack.after_step(step)

    def image_frame(self) -> ImageFrame:
        """How a picture becomes pixels; where nobody has said it, as the published models do."""
        if self.frame is not None:
            return self.frame
        return ImageFrame(*self.config.size, self.config.channels, "stretch")


def patch_attention(model: nn.Module, pixels: Tensor) -> Tensor:
    """(B, rows, columns): how much of each patch reaches what the head reads, the class token or
    the mean, as attention says, in the mean over heads and layers; each sums to 1 at most.
    ``model`` is a ``ViT`` or a wrapper around one, and is called once with the ``pixels``."""
    vit = next(m for m in model.modules() if isinstance(m, ViT))
    weights: list[Tensor] = []

    def note(branch: nn.Module, arguments: tuple[Tensor, Here]) -> None:
        assert isinstance(branch, Attention)
        u, _ = arguments
        products = branch.queries(u) @ branch.keys(u).transpose(-1, -2)  # (B, H, T, T)
        weights.append((products.float() * branch.scale).softmax(-1).mean(1))

    attentions = [s.branch for s in vit.stack.sublayers() if isinstance(s.branch, Attention)]
    handles = [branch.register_forward_pre_hook(note) for branch in attentions]
    try:
        model(pixels)
    finally:
        for handle in handles:
            handle.remove()
    mean = torch.stack(weights).mean(0)  # (B, T, T)
    reading = mean[:, 0] if vit.config.pooling == "class" else mean.mean(1)
    return reading[:, vit.config.tokens :].unflatten(1, vit.front.grid)
