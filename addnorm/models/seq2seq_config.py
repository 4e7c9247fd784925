"""What a sequence-to-sequence model is, in one frozen value."""

from dataclasses import dataclass
from typing import final

from addnorm import schemes
from addnorm.branches import ACTIVATIONS
from addnorm.checks import check_known, check_whole, is_number
from addnorm.errors import Mendable, value_in_short
from addnorm.models.gpt_config import NORMS, check_heads

POSITIONS = ("learned", "sinusoidal", "halves")
"""``halves`` is the sinusoidal code with all sines before all cosines, as Marian has it."""


@final
@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig:
    """What a sequence-to-sequence model is, checked when it is made."""

    vocab_size: int
    """How many ids a source may have; at least 2."""
    target_vocab_size: int | None = None
    """How many ids a target may have; None: both sides share a vocabulary, and its table."""
    start_id: int = 0
    """The id that every target begins with."""
    end_id: int = 1
    """The id that every target ends with."""
    pad_id: int = 0
    """The id that fills up rows."""
    context_length: int = 256
    """The most tokens of a source, and of a target; at least 1."""
    dim: int = 256
    """The width of both streams; a multiple of ``n_heads``."""
    encoder_layers: int = 3
    """Blocks of the encoder; at least 1."""
    decoder_layers: int = 3
    """Blocks of the decoder; at least 1."""
    n_heads: int = 4
    """Heads of each attention; at least 1."""
    hidden: int | None = None
    """The width inside the MLP; None: 4 * dim."""
    scheme: str = "pre_norm"
    """Where the norms are: a scheme by name (addnorm schemes lists them), or in words."""
    norm: str = "layer"
    """The norm of the streams, such as layer or rms."""
    eps: float = 1e-5
    """Of every norm that has one; at least 0."""
    position: str = "learned"
    """The position code of both sides: learned, sinusoidal, halves."""
    scale_embedding: bool = False
    """Whether tokens are multiplied by the root of ``dim``: beside sines, which are as large as 1,
    and a scheme that begins with small tokens, they are lost for long without it."""
    activation: str = "gelu"
    """The MLP's: gelu, gelu_tanh, relu, relu2, silu."""
    tied: bool = True
    """Whether the head is the table of the target's tokens."""
    logits_bias: bool = False
    """Whether a learned number is added to the logit of each token."""
    dropout: float = 0.0
    """After the embedding and on branch outputs, in [0, 1)."""
    attention_dropout: float = 0.0
    """On attention weights, in [0, 1)."""
    hidden_dropout: float = 0.0
    """Inside the MLP, in [0, 1)."""

    def __post_init__(self) -> None:
        check_whole("vocab_size", self.vocab_size, least=2)
        if self.target_vocab_size is not None:
            check_whole("target_vocab_size", self.target_vocab_size, least=2)
        for name in ("context_length", "dim", "encoder_layers", "decoder_layers", "n_heads"):
            check_whole(name, getattr(self, name))
        if self.hidden is not None:
            check_whole("hidden", self.hidden)
        for name in ("start_id", "end_id", "pad_id"):
            check_whole(name, getattr(self, name), least=0)
            if getattr(self, name) >= self.targets:
                raise Mendable(
                    f"{name}={getattr(self, name)} is outside the target's {self.targets} ids"
                )
        for name in ("scale_embedding", "tied", "logits_bias"):
            if type(getattr(self, name)) is not bool:
                short = value_in_short(getattr(self, name))
                raise Mendable(f"{name} must be true or false, got {short}")
        for name in ("dropout", "attention_dropout", "hidden_dropout"):
            value = getattr(self, name)
            if not (is_number(value) and 0.0 <= value < 1.0):
                raise Mendable(f"{name} must be in [0, 1), got {value_in_short(value)}")
        if not (is_number(self.eps) and self.eps >= 0):
            raise Mendable(f"eps must be a number of at least 0, got {value_in_short(self.eps)}")
        check_known("norm", self.norm, NORMS)
        check_known("position", self.position, POSITIONS)
        check_known("activation", self.activation, ACTIVATIONS)
        check_heads(self.n_heads, self.dim)
        schemes.parse(self.scheme)

    @property
    def targets(self) -> int:
        """How many ids a target may have."""
        return self.vocab_size if self.target_vocab_size is None else self.target_vocab_size
