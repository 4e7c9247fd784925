"""Sound as an encoder reads it: moments of log-mel energies, fewer of them, on any scheme.

    features (B, mels, frames) ──▶ two convolutions, the last of stride 2 ──▶ + positions
        ──▶ Stack([attention, (convolution,) MLP] * n_layers) ──▶ (B, frames / strides, dim)

With ``strides=2``, ``position="learned"`` and ``pre_norm`` this is Whisper's encoder (Radford et
al. 2022, arXiv 2212.04356). With ``kernel`` above 0 there is a convolution over time beside each
attention, as in the Conformer (Gulati et al. 2020, 2005.08100, section 2.2), with a LayerNorm where
that has one over the batch: a row is the same whatever it is read with.
"""

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm import schemes
from addnorm.branches import ACTIVATIONS, MLP, Attention
from addnorm.checks import check_known, check_whole, is_number
from addnorm.context import Context, Here
from addnorm.errors import Mendable, value_in_short
from addnorm.init import PLAIN, InitRule
from addnorm.models.gpt_config import NORMS, check_heads, check_pairs, norm_rule
from addnorm.norms import LayerNorm, as_norm
from addnorm.positions import Learned, RoPE, Sinusoidal
from addnorm.stream import Stack

POSITIONS = ("rope", "learned", "sinusoidal")
STRIDES = (2, 4)


@dataclass(frozen=True, kw_only=True)
class FrameConfig(ABC):  # noqa: B024 (a part of others, and nothing alone)
    """What all models of sound choose: their encoder."""

    n_mels: int = 80
    """Bands of the log-mel features; at least 1."""
    frames: int = 3000
    """The most frames of features that one call reads, 100 a second; at least 1."""
    strides: int = 4
    """Frames of the features in one that the encoder reads: 2 or 4."""
    dim: int = 144
    """The width of the residual stream; a multiple of ``n_heads``."""
    encoder_layers: int = 6
    """Blocks of the encoder; at least 1."""
    n_heads: int = 4
    """Heads of each attention; at least 1."""
    hidden: int | None = None
    """The width inside the MLP; None: 4 * dim."""
    kernel: int = 15
    """Frames of the convolution beside each attention, an odd number; 0: there is none."""
    scheme: str = "pre_norm"
    """Where the norms are: a scheme by name (addnorm schemes lists them), or in words."""
    norm: str = "layer"
    """The norm of the stream, such as layer or rms."""
    eps: float = 1e-5
    """Of every norm that has one; at least 0."""
    position: str = "rope"
    """The position code of the encoder, one of ``POSITIONS``."""
    activation: str = "gelu"
    """The MLP's: gelu, gelu_tanh, relu, relu2, silu."""
    dropout: float = 0.0
    """Behind the front, inside the MLP and on branch outputs, in [0, 1)."""

    def __post_init__(self) -> None:
        for name in ("n_mels", "frames", "dim", "encoder_layers", "n_heads"):
            check_whole(name, getattr(self, name))
        if self.hidden is not None:
            check_whole("hidden", self.hidden)
        check_whole("kernel", self.kernel, least=0)
        if self.kernel and self.kernel % 2 == 0:
            raise Mendable(f"kernel must be odd, or 0 for none, got {self.kernel}")
        if self.strides not in STRIDES or type(self.strides) is not int:
            raise Mendable(f"strides must be 2 or 4, got {value_in_short(self.strides)}")
        if not (is_number(self.dropout) and 0.0 <= self.dropout < 1.0):
            raise Mendable(f"dropout must be in [0, 1), got {value_in_short(self.dropout)}")
        if not (is_number(self.eps) and self.eps >= 0):
            raise Mendable(f"eps must be a number of at least 0, got {value_in_short(self.eps)}")
        check_known("norm", self.norm, NORMS)
        check_known("position", self.position, POSITIONS)
        check_known("activation", self.activation, ACTIVATIONS)
        check_heads(self.n_heads, self.dim)
        if self.position == "rope":
            check_pairs(self.dim // self.n_heads)
        schemes.parse(self.scheme)

    @property
    def places(self) -> int:
        """The most frames that the encoder gives."""
        return -(-self.frames // self.strides)


@final
class FrameFront(nn.Module):
    """(B, mels, frames) -> (B, frames / strides, dim): two convolutions of width 3 with GELU.

    ``n_mels``: bands of the features.
    ``dim``: the width of the output.
    ``strides``: frames of the features in one of the output, 2 or 4.
    """

    def __init__(self, n_mels: int, dim: int, strides: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(n_mels, dim, 3, stride=strides // 2, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, stride=2, padding=1)

    def forward(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(frames of the output, which of them are real). ``valid`` (B, frames) is True for real
        frames; what is not real is taken for zeros, so that it changes nothing."""
        x = x.to(self.conv1.weight.dtype)
        for conv in (self.conv1, self.conv2):
            if valid is not None:
                x = x.masked_fill(~valid[:, None], 0.0)
                valid = valid[:, :: conv.stride[0]]
            x = F.gelu(conv(x))
        return x.transpose(1, 2), valid


@final
class TimeConvolution(nn.Module):
    """A branch: out(inner(silu(norm(depthwise(gate(u) * sigmoid(up(u))))))), the depthwise
    convolution over time.

    ``dim``: the width of input and output.
    ``kernel``: frames that it sees, an odd number.
    ``dropout``: on the output.
    ``inner``: a rule width -> norm, before the last matrix.
    ``init``: a rule (role, weight) that fills the matrices.
    """

    def __init__(
        self,
        dim: int,
        kernel: int,
        *,
        dropout: float = 0.0,
        inner: Callable[[int], nn.Module] | None = None,
        init: InitRule = PLAIN,
    ) -> None:
        super().__init__()
        self.dropout, self.init = dropout, init
        self.gate, self.up = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = LayerNorm(dim)
        self.inner = None if inner is None else as_norm(inner(dim))
        self.out = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices by the scheme's rule, biases 0; the convolution as torch fills it."""
        for role in ("gate", "up", "out"):
            self.init(role, getattr(self, role).weight)
            nn.init.zeros_(getattr(self, role).bias)

    def forward(self, u: Tensor, here: Here) -> Tensor:
        """(B, T, dim) -> (B, T, dim); padding is zeros to its neighbours."""
        u, valid = u.to(self.up.weight.dtype), here.ctx.valid
        a = self.gate(u) * self.up(u).sigmoid()
        if valid is not None:
            a = a.masked_fill(~valid[..., None], 0.0)
        a = self.depthwise(a.transpose(1, 2)).transpose(1, 2)
        a = F.silu(self.norm(a))
        if self.inner is not None:
            a = self.inner(a, valid=valid)
        return F.dropout(self.out(a.to(self.out.weight.dtype)), self.dropout, self.training)


class EncodedFrames(NamedTuple):
    """What an encoder made of sounds."""

    x: Tensor
    """(B, S, dim)."""
    valid: Tensor | None
    """(B, S), True for what is real; None: all is."""


@final
class FrameEncoder(nn.Module):
    """(B, mels, frames) features -> ``EncodedFrames``.

    ``config``: its choices.
    ``depths``: the blocks of encoder and decoder where both exist; None: there is no decoder.
    """

    def __init__(self, config: FrameConfig, depths: tuple[int, int] | None = None) -> None:
        super().__init__()
        c = self.config = config
        self.front = FrameFront(c.n_mels, c.dim, c.strides)
        self.positions: Learned | Sinusoidal | None = None
        if c.position != "rope":
            learned = c.position == "learned"
            self.positions = Learned(c.places, c.dim) if learned else Sinusoidal(c.dim)
        rope = RoPE(c.dim // c.n_heads) if c.position == "rope" else None
        attention = partial(Attention, c.dim, c.n_heads, position=rope, out_dropout=c.dropout)
        mlp = partial(
            MLP,
            c.dim,
            c.hidden or 4 * c.dim,
            c.activation,
            dropout=c.dropout,
            out_dropout=c.dropout,
        )
        convolution = partial(TimeConvolution, c.dim, c.kernel, dropout=c.dropout)
        between = [("conv", convolution)] if c.kernel else []
        self.stack = Stack(
            [("attn", attention), *between, ("mlp", mlp)] * c.encoder_layers,
            c.dim,
            schemes.parse(c.scheme),
            norm=norm_rule(c.norm, c.eps),
            side="encoder",
            depths=depths,
        )

    def forward(self, features: Tensor, valid: Tensor | None = None) -> EncodedFrames:
        """``valid`` (B, frames) is True for real frames, which stand before what fills a row up."""
        c = self.config
        if features.dim() != 3 or features.shape[1] != c.n_mels:
            raise Mendable(f"features must be (B, {c.n_mels}, frames), got {tuple(features.shape)}")
        if features.shape[2] > c.frames:
            raise Mendable(
                f"{features.shape[2]} frames are more than the {c.frames} that the model reads"
            )
        h, valid = self.front(features, valid)
        if self.positions is not None:
            h = h + self.positions(torch.arange(h.shape[1], device=h.device)).to(h.dtype)
        h = F.dropout(h, c.dropout, self.training)
        return EncodedFrames(self.stack(h, Context(valid=valid)), valid)
