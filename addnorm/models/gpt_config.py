"""What a GPT is, in one frozen value: the choices of ``GPTConfig``, and the published shapes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

from addnorm import schemes
from addnorm.branches import ACTIVATIONS, MLP, GatedMLP
from addnorm.checks import check_known, check_whole, is_number
from addnorm.errors import Mendable, value_in_short
from addnorm.norms import DyT, L2Norm, LayerNorm, Norm, RMSNorm, ScaleNorm

NORMS: dict[str, Callable[..., Norm]] = {
    "layer": LayerNorm,
    "layer_no_bias": partial(LayerNorm, bias=False),
    "rms": RMSNorm,
    "rms_llama": partial(RMSNorm, cast="llama"),
    "l2": L2Norm,
    "scale": ScaleNorm,
    "dyt": DyT,
}
POSITIONS = ("learned", "sinusoidal", "rope", "alibi", "none")
MLPS = {"plain": MLP, "gated": GatedMLP}


def check_heads(n_heads: int, dim: int) -> None:
    """Raise a ``Mendable`` unless the width is that of so many heads."""
    if dim % n_heads:
        raise Mendable(
            f"n_heads={n_heads} does not divide dim={dim}: each head is an equal part of the width"
        )


def check_pairs(width: int) -> None:
    """Raise a ``Mendable`` unless a head of this width can be rotated by RoPE."""
    if width % 2:
        raise Mendable(f"RoPE rotates pairs: the head's width {width} is odd")


@final
@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """What a GPT is, checked when it is made. The defaults are GPT-2's."""

    vocab_size: int
    """How many ids there are; at least 1."""
    context_length: int
    """The most tokens that one call reads; at least 1."""
    dim: int
    """The width of the residual stream; a multiple of ``n_heads``."""
    n_layers: int
    """Blocks of attention and MLP; at least 1."""
    n_heads: int
    """Query heads of each attention; at least 1."""
    scheme: str = "pre_norm"
    """Where the norms are: a scheme by name (addnorm schemes lists them), or in words."""
    norm: str = "layer"
    """The norm of the stream: layer, layer_no_bias, rms, rms_llama, l2, scale, dyt."""
    eps: float = 1e-5
    """Of every norm that has one; at least 0."""
    position: str = "learned"
    """The position code: learned, sinusoidal, rope, alibi, none."""
    rope_base: float = 10000.0
    """The base of RoPE's frequencies; above 0."""
    n_kv_heads: int | None = None
    """Key and value heads, a divisor of ``n_heads``; None: as many."""
    qk_norm: str | None = None
    """The norm of queries and keys, by the names of norm; None: none."""
    window: int | None = None
    """How many tokens each one sees, itself included; None: all before it."""
    attention_softcap: float | None = None
    """Caps the attention logits z: softcap * tanh(z / softcap); above 0; None: no cap."""
    mlp: str = "plain"
    """The MLP: plain, gated."""
    activation: str = "gelu_tanh"
    """The MLP's: gelu, gelu_tanh, relu, relu2, silu."""
    hidden: int | None = None
    """The width inside the MLP; None: 4 * dim."""
    bias: bool = True
    """Whether the linear layers of attention and MLP have biases."""
    tied: bool = True
    """Whether the head is the token embedding."""
    softcap: float | None = None
    """Caps the final logits, as attention_softcap; None: no cap."""
    vocab_multiple: int = 1
    """The tables have a multiple of this number of rows; no id or logit is beyond vocab_size."""
    dropout: float = 0.0
    """After the embedding, on attention weights and on branch outputs, in [0, 1)."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "dim", "n_layers", "n_heads"):
            check_whole(name, getattr(self, name))
        for name in ("n_kv_heads", "hidden", "window"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name))
        check_whole("vocab_multiple", self.vocab_multiple)
        for name in ("rope_base", "attention_softcap", "softcap"):
            value = getattr(self, name)
            capless = value is None and name != "rope_base"
            if not capless and not (is_number(value) and value > 0):
                raise Mendable(f"{name} must be a number above 0, got {value_in_short(value)}")
        if not (is_number(self.eps) and self.eps >= 0):
            raise Mendable(f"eps must be a number of at least 0, got {value_in_short(self.eps)}")
        for name in ("bias", "tied"):
            if type(getattr(self, name)) is not bool:
                short = value_in_short(getattr(self, name))
                raise Mendable(f"{name} must be true or false, got {short}")
        check_known("norm", self.norm, NORMS)
        check_known("position", self.position, POSITIONS)
        check_known("mlp", self.mlp, MLPS)
        check_known("activation", self.activation, ACTIVATIONS)
        if self.qk_norm is not None:
            check_known("qk_norm", self.qk_norm, NORMS)
        check_heads(self.n_heads, self.dim)
        if self.n_kv_heads is not None and self.n_heads % self.n_kv_heads:
            raise Mendable(f"n_kv_heads={self.n_kv_heads} do not divide n_heads={self.n_heads}")
        if self.position == "rope":
            check_pairs(self.dim // self.n_heads)
        if not (is_number(self.dropout) and 0.0 <= self.dropout < 1.0):
            raise Mendable(f"dropout must be in [0, 1), got {value_in_short(self.dropout)}")
        schemes.parse(self.scheme)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the tables: vocab_size rounded up to a multiple of vocab_multiple."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def norm_rule(self, name: str) -> Callable[[int], Norm]:
        """dim -> Norm, with this config's eps where the norm has one."""
        return norm_rule(name, self.eps)


def norm_rule(name: str, eps: float) -> Callable[[int], Norm]:
    """dim -> Norm, the one of this name in ``NORMS``, with ``eps`` where it has one."""
    return NORMS[name] if name == "dyt" else partial(NORMS[name], eps=eps)


PRESETS = {
    "gpt2": (768, 12, 12),
    "gpt2-medium": (1024, 24, 16),
    "gpt2-large": (1280, 36, 20),
    "gpt2-xl": (1600, 48, 25),
}
"""(dim, n_layers, n_heads) of Radford et al. 2019."""
