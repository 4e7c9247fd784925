"""Encoder, decoder and encoder-decoder on any scheme, from (B, T, dim) to (B, T, dim).

What comes before (tokens, positions) and after (a head) is the caller's. The published Transformer
(Vaswani et al. 2017) is ``EncoderDecoder(512, 8, 6, schemes.post_norm, activation="relu")``.
"""

from collections.abc import Callable
from functools import partial
from typing import TypedDict, Unpack, final

from torch import Tensor, nn

from addnorm.branches import MLP, Attention, CrossAttention, HeadOptions
from addnorm.context import Cache, Context, Memory
from addnorm.norms import LayerNorm
from addnorm.positions import AttentionPosition
from addnorm.scheme_text import as_scheme
from addnorm.stream import MakeBranch, Scheme, Stack


class BlockOptions(TypedDict, total=False):
    """The options that ``encoder``, ``decoder`` and ``EncoderDecoder`` share."""

    hidden: int | None
    """The width inside the MLP; None, the default: 4 * dim."""
    norm: Callable[[int], nn.Module]
    """dim -> norm; the default is LayerNorm."""
    activation: str
    """The MLP's, a key of ``branches.ACTIVATIONS``; "gelu" by default."""
    bias: bool
    """Whether the linear layers have biases; True by default."""
    dropout: float
    """On the outputs of branches, in [0, 1); 0 by default."""
    attention_dropout: float
    """On attention weights, that of ``dropout`` by default; above 0 it keeps CPUs from fused
    attention."""
    hidden_dropout: float
    """Inside the MLP, that of ``dropout`` by default."""
    position: AttentionPosition | None
    """A position code inside self-attention; None by default."""


def encoder(
    dim: int,
    n_heads: int,
    n_layers: int,
    scheme: Scheme | str,
    *,
    depths: tuple[int, int] | None = None,
    **options: Unpack[BlockOptions],
) -> Stack:
    """Blocks of self-attention and MLP in which every token sees every real one.

    ``dim``: the width of the stream.
    ``n_heads``: heads of each attention; divides ``dim``.
    ``n_layers``: blocks.
    ``scheme``: a function Site -> Wiring, such as ``schemes.pre_norm``, or its name.
    ``depths``: the blocks of encoder and decoder where both exist; None: there is no decoder.
    ``options``: as in ``BlockOptions``.
    """
    attention, _, mlp = _makes(dim, n_heads, causal=False, **options)
    return Stack(
        [("attn", attention), ("mlp", mlp)] * n_layers,
        dim,
        as_scheme(scheme),
        norm=options.get("norm", LayerNorm),
        side="encoder",
        depths=depths,
    )


def decoder(
    dim: int,
    n_heads: int,
    n_layers: int,
    scheme: Scheme | str,
    *,
    cross: bool = False,
    depths: tuple[int, int] | None = None,
    **options: Unpack[BlockOptions],
) -> Stack:
    """Blocks of causal self-attention, attention to ``Context.memory`` if ``cross``, and MLP.

    ``dim``: the width of the stream.
    ``n_heads``: heads of each attention; divides ``dim``.
    ``n_layers``: blocks.
    ``scheme``: a function Site -> Wiring, such as ``schemes.pre_norm``, or its name.
    ``depths``: the blocks of encoder and decoder where both exist; None: there is no encoder.
    ``options``: as in ``BlockOptions``.
    """
    attention, memory, mlp = _makes(dim, n_heads, causal=True, **options)
    between = [("cross", memory)] if cross else []
    return Stack(
        [("attn", attention), *between, ("mlp", mlp)] * n_layers,
        dim,
        as_scheme(scheme),
        norm=options.get("norm", LayerNorm),
        side="decoder",
        depths=depths,
    )


@final
class EncoderDecoder(nn.Module):
    """An encoder and a decoder that looks at the encoder's output.

    ``dim``: the width of both streams.
    ``n_heads``: heads of each attention; divides ``dim``.
    ``n_layers``: the blocks of each, or (encoder, decoder). DeepNorm and Sub-LN take their
    constants from both.
    ``scheme``: a function Site -> Wiring, such as ``schemes.post_norm``, or its name.
    ``options``: as in ``BlockOptions``, for both.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        n_layers: int | tuple[int, int],
        scheme: Scheme | str,
        **options: Unpack[BlockOptions],
    ) -> None:
        super().__init__()
        depths = (n_layers, n_layers) if isinstance(n_layers, int) else n_layers
        self.encoder = encoder(dim, n_heads, depths[0], scheme, depths=depths, **options)
        self.decoder = decoder(
            dim, n_heads, depths[1], scheme, cross=True, depths=depths, **options
        )

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        source_valid: Tensor | None = None,
        target_valid: Tensor | None = None,
    ) -> Tensor:
        """(B, S, dim), (B, T, dim) -> (B, T, dim); the masks are True for real tokens."""
        memory = self.encode(source, source_valid)
        return self.decode(target, memory, target_valid, source_valid)

    def encode(self, source: Tensor, valid: Tensor | None = None) -> Tensor:
        """What the decoder will look at."""
        encoded: Tensor = self.encoder(source, Context(valid=valid))
        return encoded

    def decode(
        self,
        target: Tensor,
        memory: Tensor,
        valid: Tensor | None = None,
        memory_valid: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """One pass of the decoder over ``target`` (B, T, dim), beside the ``memory`` that
        ``encode`` made; both masks are True for real tokens. With a cache ``target`` holds the new
        tokens only."""
        ctx = Context(valid=valid, memory=Memory(memory, memory_valid), cache=cache)
        decoded: Tensor = self.decoder(target, ctx)
        return decoded

    def after_step(self, step: int) -> None:
        """Call after every optimizer step; ``step`` counts from 1."""
        self.encoder.after_step(step)
        self.decoder.after_step(step)


def _makes(
    dim: int, n_heads: int, *, causal: bool, **options: Unpack[BlockOptions]
) -> tuple[MakeBranch, MakeBranch, MakeBranch]:
    """What makes the branches of a block, called once for each: (self-attention, attention to the
    memory, MLP). ``causal`` and a position code are for the first alone."""
    bias, dropout = options.get("bias", True), options.get("dropout", 0.0)
    heads: HeadOptions = {
        "bias": bias,
        "dropout": options.get("attention_dropout", dropout),
        "out_dropout": dropout,
    }
    position = options.get("position")
    attention = partial(Attention, dim, n_heads, causal=causal, position=position, **heads)
    mlp = partial(
        MLP,
        dim,
        options.get("hidden") or 4 * dim,
        options.get("activation", "gelu"),
        bias=bias,
        dropout=options.get("hidden_dropout", dropout),
        out_dropout=dropout,
    )
    return attention, partial(CrossAttention, dim, n_heads, **heads), mlp
