"""What a BERT is, in one frozen value: the choices of ``BertConfig``, and the published shapes."""

from dataclasses import dataclass
from typing import final

from addnorm import schemes
from addnorm.branches import ACTIVATIONS
from addnorm.checks import check_known, check_whole, is_number
from addnorm.errors import Mendable, value_in_short
from addnorm.models.gpt_config import NORMS, check_heads, check_pairs

HEADS = ("none", "masked", "classify", "answer", "tokens")
POOLINGS = ("first", "mean", "none")
POSITIONS = ("learned", "rope")


@final
@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """What a BERT is, checked when it is made. The defaults are those of BERT-base."""

    vocab_size: int
    """How many ids there are; at least 1."""
    context_length: int = 512
    """The most tokens that one call reads; at least 1."""
    dim: int = 768
    """The width of the residual stream; a multiple of ``n_heads``."""
    n_layers: int = 12
    """Blocks of attention and MLP; at least 1."""
    n_heads: int = 12
    """Heads of each attention; at least 1."""
    types: int = 2
    """How many types of tokens there are, such as question and passage; at least 1."""
    head: str = "masked"
    """What is computed from the hidden states: masked, classify, answer, tokens; none: they are the
    output."""
    labels: int = 2
    """What the heads classify and tokens choose from; at least 1."""
    several: bool = False
    """With the head classify: whether a text may have several labels, each for itself."""
    pooling: str = "first"
    """What stands for a whole text, with the heads classify and none: its first token or the mean
    over its tokens, through a linear layer and tanh; none: no such layer, and no head classify."""
    scheme: str = "post_norm"
    """Where the norms are: a scheme by name (addnorm schemes lists them), or in words."""
    norm: str = "layer"
    """The norm of the stream, of the embedding and in the head masked, by the names of a GPT's."""
    eps: float = 1e-12
    """Of every norm that has one; at least 0."""
    position: str = "learned"
    """The position code: learned, rope; rope needs heads of an even width."""
    activation: str = "gelu"
    """The MLP's, and of the head masked: gelu, gelu_tanh, relu, relu2, silu."""
    hidden: int | None = None
    """The width inside the MLP; None: 4 * dim."""
    dropout: float = 0.0
    """After the embedding and on branch outputs, in [0, 1)."""
    attention_dropout: float = 0.0
    """On attention weights, in [0, 1); above 0 it keeps CPUs from fused attention."""
    head_dropout: float = 0.0
    """Before the heads classify and tokens, in [0, 1)."""

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "context_length", "dim", "n_layers", "n_heads", "types", "labels")
        for name in (*sizes, *(() if self.hidden is None else ("hidden",))):
            check_whole(name, getattr(self, name))
        if not (is_number(self.eps) and self.eps >= 0):
            raise Mendable(f"eps must be a number of at least 0, got {value_in_short(self.eps)}")
        for name in ("dropout", "attention_dropout", "head_dropout"):
            value = getattr(self, name)
            if not (is_number(value) and 0.0 <= value < 1.0):
                raise Mendable(f"{name} must be in [0, 1), got {value_in_short(value)}")
        if type(self.several) is not bool:
            raise Mendable(f"several must be true or false, got {value_in_short(self.several)}")
        check_known("head", self.head, HEADS)
        check_known("pooling", self.pooling, POOLINGS)
        check_known("norm", self.norm, NORMS)
        check_known("position", self.position, POSITIONS)
        check_known("activation", self.activation, ACTIVATIONS)
        if self.head == "classify" and self.pooling == "none":
            raise Mendable("the head classify reads what pooling makes: first or mean, not none")
        check_heads(self.n_heads, self.dim)
        if self.position == "rope":
            check_pairs(self.dim // self.n_heads)
        schemes.parse(self.scheme)


PRESETS = {
    "bert-tiny": (128, 2, 2),
    "bert-mini": (256, 4, 4),
    "bert-small": (512, 4, 8),
    "bert-medium": (512, 8, 8),
    "bert-base": (768, 12, 12),
    "bert-large": (1024, 24, 16),
}
"""(dim, n_layers, n_heads) of Devlin et al. 2019 and, the smaller ones, of Turc et al. 2019 (arXiv
1908.08962)."""
