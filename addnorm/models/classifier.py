"""A text classifier: tokens and positions, an encoder on any scheme, the mean, a linear head.

    ids ──▶ tokens + positions ──▶ Stack([attention, MLP] * n_layers) ──▶ mean of real tokens
        ──▶ head ──▶ logits (B, classes)

Every token sees every real one. The mean over tokens stands for the text, as in fastText (Joulin et
al. 2017, arXiv 1607.01759) and most sentence encoders; it needs no token of its own.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from addnorm import schemes
from addnorm.models.transformer import encoder
from addnorm.positions import Learned
from addnorm.stream import Context


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """What a classifier is."""

    vocab_size: int
    classes: int
    context_length: int = 256
    dim: int = 128
    n_layers: int = 2
    n_heads: int = 4
    scheme: str = "pre_norm"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "classes", "context_length", "dim", "n_layers", "n_heads"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.dim % self.n_heads:
            raise ValueError(f"{self.n_heads} heads do not divide the width {self.dim}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        schemes.parse(self.scheme)


class TextClassifier(nn.Module):
    """(B, T) ids, of which ``valid`` are real -> logits (B, classes)."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        c = self.config = config
        self.tokens = nn.Embedding(c.vocab_size, c.dim)
        self.positions = Learned(c.context_length, c.dim)
        self.stack = encoder(
            c.dim, c.n_heads, c.n_layers, schemes.parse(c.scheme), dropout=c.dropout
        )
        self.head = nn.Linear(c.dim, c.classes)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, valid: Tensor) -> Tensor:
        """Padding may be anywhere; positions count real tokens."""
        place = (valid.cumsum(1) - 1).clamp(min=0)  # (B, T)
        h = self.tokens(ids) + self.positions(place)
        h = F.dropout(h, self.config.dropout, self.training)
        h = self.stack(h, Context(valid=valid))  # (B, T, D)
        real = valid.to(h.dtype)[..., None]
        return self.head((h * real).sum(1) / real.sum(1).clamp(min=1.0))

    def after_step(self, step: int) -> None:
        """Call after every optimizer step; ``step`` counts from 1."""
        self.stack.after_step(step)
