"""What a Vision Transformer is, in one frozen value: ``ViTConfig``, and the published shapes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from addnorm import schemes
from addnorm.branches import ACTIVATIONS
from addnorm.checks import check_known, check_whole, is_number
from addnorm.errors import Mendable, value_in_short
from addnorm.models.fronts import PATCHES, check_front
from addnorm.models.gpt_config import NORMS, check_heads
from addnorm.norms import BatchNorm, GroupNorm, Norm

POOLINGS = ("class", "mean")
DISTILLATIONS = ("none", "token", "head")
VISION_NORMS: dict[str, Callable[..., Norm]] = {**NORMS, "batch": BatchNorm, "group": GroupNorm}
"""Every token of a picture may see every other, so that norms across tokens are possible."""
WITHOUT_EPS = ("dyt",)


@final
@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """What a Vision Transformer is, checked when it is made. The defaults are those of ViT-Base/16
    for 224 x 224 pixels."""

    classes: int = 1000
    """What the head chooses from; 0: there is no head, and the hidden states are the output."""
    height: int = 224
    """Of the pictures, in pixels; at least a patch."""
    width: int = 224
    """Of the pictures, in pixels; at least a patch."""
    channels: int = 3
    """Of the pictures: 3 for colours, 1 for grey; at least 1."""
    patch: int = 16
    """The height of a patch, in pixels, and its width, if ``patch_width`` says no other."""
    patch_width: int | None = None
    """The width of a patch; None: it is square."""
    dim: int = 768
    """The width of the residual stream; a multiple of ``n_heads``."""
    n_layers: int = 12
    """Blocks of attention and MLP; at least 1."""
    n_heads: int = 12
    """Heads of each attention; at least 1."""
    embedding: str = PATCHES
    """How pixels become patches, one of ``fronts.EMBEDDINGS``."""
    pooling: str = "class"
    """What the head reads: class, a learned token; mean, that of all patches, and no such token."""
    distillation: str = "none"
    """DeiT's second token: none; token, of which the head reads nothing; head, which has a head of
    its own, and the mean of both heads counts."""
    scheme: str = "pre_norm"
    """Where the norms are: any text for ``schemes.parse``; LayerScale and stochastic depth stand in
    it too, as in ``drop_path(layer_scale(0.1), p=0.1)``."""
    norm: str = "layer"
    """The norm of the stream, a key of ``VISION_NORMS``; batch and group are for comparison."""
    eps: float = 1e-6
    """Of every norm that has one; at least 0."""
    activation: str = "gelu"
    """The MLP's: gelu, gelu_tanh, relu, relu2, silu."""
    hidden: int | None = None
    """The width inside the MLP; None: 4 * dim."""
    dropout: float = 0.0
    """After the front and on branch outputs, in [0, 1)."""
    attention_dropout: float = 0.0
    """On attention weights, in [0, 1); above 0 it keeps CPUs from fused attention."""

    def __post_init__(self) -> None:
        check_whole("classes", self.classes, least=0)
        for name in ("height", "width", "channels", "patch", "dim", "n_layers", "n_heads"):
            check_whole(name, getattr(self, name))
        for name in ("patch_width", "hidden"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name))
        if not (is_number(self.eps) and self.eps >= 0):
            raise Mendable(f"eps must be a number of at least 0, got {value_in_short(self.eps)}")
        for name in ("dropout", "attention_dropout"):
            value = getattr(self, name)
            if not (is_number(value) and 0.0 <= value < 1.0):
                raise Mendable(f"{name} must be in [0, 1), got {value_in_short(value)}")
        check_known("pooling", self.pooling, POOLINGS)
        check_known("distillation", self.distillation, DISTILLATIONS)
        check_known("norm", self.norm, VISION_NORMS)
        check_known("activation", self.activation, ACTIVATIONS)
        check_heads(self.n_heads, self.dim)
        if self.distillation != "none" and self.pooling != "class":
            raise Mendable(
                "a token for distillation stands beside that of the class: pooling=class"
            )
        if self.distillation == "head" and not self.classes:
            raise Mendable("distillation=head is a second head, and there is no first: classes=0")
        check_front(self.size, self.patches, self.embedding)
        schemes.parse(self.scheme)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.height, self.width

    @property
    def patches(self) -> tuple[int, int]:
        """Height and width of a patch."""
        return self.patch, self.patch if self.patch_width is None else self.patch_width

    @property
    def tokens(self) -> int:
        """How many tokens stand before the patches."""
        return (self.pooling == "class") + (self.distillation != "none")

    @property
    def length(self) -> int:
        """How many tokens a picture is, all together."""
        return self.tokens + (self.height // self.patch) * (self.width // self.patches[1])


PRESETS = {
    "deit-tiny": (192, 12, 3),
    "deit-small": (384, 12, 6),
    "vit-base": (768, 12, 12),
    "vit-large": (1024, 24, 16),
    "vit-huge": (1280, 32, 16),
}
"""(dim, n_layers, n_heads) of Dosovitskiy et al. 2021 and, the smaller ones, of Touvron et al. 2021
(arXiv 2012.12877); patches of 16, in the huge one of 14."""
