"""Fronts: what a model makes of an input that is no text, before its stack.

Vision Transformer (Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", arXiv 2010.11929) for
patches; Xiao et al. 2021, "Early Convolutions Help Transformers See Better" (arXiv 2106.14881) for
convolutions in their place.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm.checks import check_known, check_whole
from addnorm.errors import Mendable
from addnorm.init import PLAIN, InitRule
from addnorm.norms import ChannelsFirstLayerNorm

PATCHES, CONVOLUTIONS = "patches", "convolutions"
EMBEDDINGS = (PATCHES, CONVOLUTIONS)


@final
class PatchFront(nn.Module):
    """(B, channels, height, width) -> (B, tokens + rows * columns, dim): learned tokens, then the
    patches of the picture, row by row, all with learned positions.

    ``size``: height and width of the pictures. ``patch``: height and width of a patch; what a
    picture has beyond whole patches, on the right and at the bottom, is not looked at.
    ``channels``: of a picture. ``dim``: the width of the stream. ``tokens``: how many learned ones
    there are, which stand for the whole. ``embedding``: patches, a linear layer of each one's
    pixels; or convolutions, which halve the picture until a pixel stands for a patch, each followed
    by a norm and ReLU, and a linear layer behind: patches must then be square, their side a power
    of two, and divide the picture. ``dropout``: of what comes out. ``init``: the rule that fills
    tokens and positions, with the role embed.
    """

    def __init__(
        self,
        size: tuple[int, int],
        patch: tuple[int, int],
        channels: int,
        dim: int,
        *,
        tokens: int = 1,
        embedding: str = PATCHES,
        dropout: float = 0.0,
        init: InitRule = PLAIN,
    ) -> None:
        super().__init__()
        check_front(size, patch, embedding)
        self.init = init
        self.image_size, self.patch, self.channels = size, patch, channels
        self.grid = size[0] // patch[0], size[1] // patch[1]
        self.dropout = dropout
        self.embed: nn.Module
        if embedding == PATCHES:
            self.embed = nn.Conv2d(channels, dim, patch, stride=patch)
        else:
            self.embed = ConvolutionalStem(patch[0], channels, dim)
        self.tokens = nn.Parameter(torch.empty(tokens, dim)) if tokens else None
        self.positions = nn.Parameter(torch.empty(tokens + self.grid[0] * self.grid[1], dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Tokens and positions by the rule; tokens that begin alike would stay alike for long. The
        linear layer behind the pixels so that patches, of pixels with variance 1, begin as large
        as their positions: what is much smaller than the other is not seen for long."""
        for p in (self.tokens, self.positions):
            if p is not None:
                self.init("embed", p)
        with torch.no_grad():
            size = self.positions.square().mean().sqrt()
        if isinstance(self.embed, ConvolutionalStem):
            self.embed.fill(size)
        elif isinstance(self.embed, nn.Conv2d):
            _fill(self.embed, size)

    def patches(self, pixels: Tensor) -> Tensor:
        """(B, channels, height, width) -> (B, rows * columns, dim): without tokens and positions,
        for pictures of any size that has a patch."""
        if pixels.dim() != 4 or pixels.shape[1] != self.channels:
            raise Mendable(
                f"pixels must be (B, {self.channels}, height, width), got {tuple(pixels.shape)}"
            )
        if pixels.shape[-2] < self.patch[0] or pixels.shape[-1] < self.patch[1]:
            raise Mendable(
                f"a picture of {pixels.shape[-2]} x {pixels.shape[-1]} pixels has no patch of "
                f"{self.patch[0]} x {self.patch[1]}"
            )
        embedded: Tensor = self.embed(pixels.to(self.positions.dtype))
        return embedded.flatten(2).transpose(1, 2)

    def positions_for(self, grid: tuple[int, int]) -> Tensor:
        """(tokens + rows * columns, dim) of the positions: those of another ``grid`` (rows,
        columns) lie between those that were learned, by bicubic interpolation, as in the paper's
        code and in transformers."""
        if grid == self.grid:
            return self.positions
        tokens = len(self.positions) - self.grid[0] * self.grid[1]
        learned = self.positions[tokens:].unflatten(0, self.grid).permute(2, 0, 1)  # (D, R, C)
        between = F.interpolate(learned[None], grid, mode="bicubic", align_corners=False)[0]
        return torch.cat([self.positions[:tokens], between.flatten(1).T])

    def forward(self, pixels: Tensor, interpolate: bool = False) -> Tensor:
        """A picture of another size is a ``Mendable``, unless ``interpolate``: then its patches
        have positions in between."""
        height, width = pixels.shape[-2:]
        if not interpolate and (height, width) != self.image_size:
            raise Mendable(
                f"pictures of {height} x {width} pixels, and the model has learned the positions "
                f"of {self.image_size[0]} x {self.image_size[1]}: bring them to that size, or let "
                "positions be interpolated with interpolate=True"
            )
        h = self.patches(pixels)
        if self.tokens is not None:
            h = torch.cat([self.tokens.expand(h.shape[0], -1, -1), h], 1)
        h = h + self.positions_for((height // self.patch[0], width // self.patch[1]))
        return F.dropout(h, self.dropout, self.training)

    def extra_repr(self) -> str:
        return f"size={self.image_size}, patch={self.patch}, channels={self.channels}"


def check_front(size: Sequence[int], patch: Sequence[int], embedding: str) -> None:
    """Raise a ``Mendable`` unless pictures of ``size`` have patches of ``patch``, both (height,
    width), that ``embedding`` can make."""
    for name, length, part in zip(("height", "width"), size, patch, strict=True):
        check_whole(f"the {name} of a picture", length)
        check_whole(f"the {name} of a patch", part)
        if part > length:
            raise Mendable(
                f"patch_{name}={part} is more than {name}={length}: there is no patch of {part}"
            )
    check_known("embedding", embedding, EMBEDDINGS)
    if embedding == CONVOLUTIONS:
        side = patch[0]
        if patch[0] != patch[1] or side < 2 or side & (side - 1):
            raise Mendable(
                "convolutions halve a picture: patches must be square, and their side a power of "
                f"two, got {patch[0]} x {patch[1]}"
            )
        if size[0] % side or size[1] % side:
            raise Mendable(
                f"convolutions need pictures that patches of {side} divide, got {size[0]} x "
                f"{size[1]}"
            )


@final
class ConvolutionalStem(nn.Module):
    """(B, channels, height, width) -> (B, dim, height / patch, width / patch): convolutions of 3 x
    3 and stride 2, each followed by a norm over its channels and ReLU, and one of 1 x 1.

    The paper's norm is BatchNorm; this one does not mix pictures. The widths double up to ``dim``.

    ``patch``: a power of two. ``channels``, ``dim``: as in ``PatchFront``.
    """

    def __init__(self, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        halvings = patch.bit_length() - 1
        widths = [channels, *(max(1, dim >> (halvings - 1 - i)) for i in range(halvings))]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(ChannelsFirstLayerNorm(width) for width in widths[1:])
        self.project = nn.Conv2d(widths[-1], dim, 1)
        self.fill(torch.ones(()))

    def fill(self, size: Tensor) -> None:
        """As He et al. 2015, but that what comes out has the root mean square ``size``."""
        for layer in self.convolutions:
            assert isinstance(layer, nn.Conv2d)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        _fill(self.project, size * 2**0.5)  # ReLU leaves half of the square

    def forward(self, pixels: Tensor) -> Tensor:
        h = pixels
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            h = F.relu(norm(convolution(h)))
        return self.project(h)


def _fill(layer: nn.Conv2d, size: Tensor) -> None:
    """Normal, so that of inputs with variance 1 outputs of this size come; the bias 0."""
    nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
    with torch.no_grad():
        layer.weight.mul_(size)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
