"""A text classifier: tokens and positions, an encoder on any scheme, the mean, a linear head.

    ids ──▶ tokens + pairs + positions ──▶ Stack([attention, MLP] * n_layers) ──▶ mean and maximum
        over real tokens ──▶ head ──▶ logits (B, classes)

Every token sees every real one. In place of the stack, and of the positions, there may be an LSTM
or GRU, with layer normalization or without, for comparison: then each sees those before it. The
mean over tokens stands for the text, as in fastText (Joulin et al. 2017, arXiv 1607.01759) and most
sentence encoders, and beside it the largest value of each feature (Collobert et al. 2011, arXiv
1103.0398), in which one telling word is not diluted by all the others. Each pair of neighbours may
have a row in a table, shared by pairs of the same hash, as fastText has it: few texts suffice for
what a phrase alone tells. A text longer than the context is judged by windows of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm import schemes
from addnorm.checks import check_known, check_whole, is_number
from addnorm.context import Context
from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable, value_in_short
from addnorm.models import texts as judging
from addnorm.models.gpt_config import check_heads
from addnorm.models.recurrent import CELLS, Recurrence
from addnorm.models.transformer import encoder
from addnorm.positions import Learned
from addnorm.stream import Stack

TRANSFORMER = "transformer"
BODIES = (TRANSFORMER, *CELLS)


@final
@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """What a text classifier is, checked when it is made."""

    vocab_size: int
    """How many ids there are; at least 1."""
    classes: int
    """How many classes there are; at least 1."""
    context_length: int = 256
    """The most tokens that one call reads; at least 1."""
    dim: int = 128
    """The width of the residual stream, a multiple of ``n_heads``, or of the state."""
    body: str = TRANSFORMER
    """What reads the tokens: transformer, or lstm, gru, layer_norm_lstm, layer_norm_gru."""
    n_layers: int = 2
    """Blocks of attention and MLP, or recurrent layers; at least 1."""
    n_heads: int = 4
    """Heads of each attention of a Transformer; at least 1."""
    several: bool = False
    """Whether a text may have several classes, or none; else they exclude each other."""
    pairs: int = 0
    """Rows of the table of neighbours; 0: there is none."""
    scheme: str = "pre_norm"
    """Where the norms of a Transformer are: a scheme by name (addnorm schemes lists them), or in
    words."""
    dropout: float = 0.0
    """After the embedding, inside the MLP and on branch outputs, or between recurrent layers; in
    [0, 1)."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "classes", "context_length", "dim", "n_layers", "n_heads"):
            check_whole(name, getattr(self, name))
        check_whole("pairs", self.pairs, least=0)
        if type(self.several) is not bool:
            raise Mendable(f"several must be true or false, got {value_in_short(self.several)}")
        check_known("body", self.body, BODIES)
        if self.body == TRANSFORMER:
            check_heads(self.n_heads, self.dim)
        if not (is_number(self.dropout) and 0.0 <= self.dropout < 1.0):
            raise Mendable(f"dropout must be in [0, 1), got {value_in_short(self.dropout)}")
        schemes.parse(self.scheme)


@final
class TextClassifier(nn.Module):
    """(B, T) ids, of which ``valid`` are real -> logits (B, classes).

    ``config``: all of its choices.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        c = self.config = config
        self.tokens = nn.Embedding(c.vocab_size, c.dim)
        self.pairs = nn.Embedding(c.pairs, c.dim) if c.pairs else None
        self.positions: Learned | None = None
        self.stack: Stack | None = None
        self.recurrence: Recurrence | None = None
        if c.body == TRANSFORMER:
            self.positions = Learned(c.context_length, c.dim)
            self.stack = encoder(
                c.dim,
                c.n_heads,
                c.n_layers,
                schemes.parse(c.scheme),
                dropout=c.dropout,
                attention_dropout=0.0,
            )
        else:
            self.recurrence = Recurrence(c.body, c.dim, c.n_layers, c.dropout)
        self.head = nn.Linear(2 * c.dim, c.classes)
        nn.init.normal_(self.tokens.weight, std=0.02)  # as in BERT and GPT-2
        if self.pairs is not None:
            nn.init.zeros_(self.pairs.weight)  # most are rare: they begin as what their tokens are
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, valid: Tensor) -> Tensor:
        """Padding may be anywhere; positions count real tokens. A row without any is judged by
        zeros."""
        h = self.tokens(ids)
        if self.positions is not None:
            h = h + self.positions((valid.cumsum(1) - 1).clamp(min=0))
        if self.pairs is not None:
            h = h + self.pairs(self._pair(ids, valid))
        h = F.dropout(h, self.config.dropout, self.training)
        if self.recurrence is not None:
            h, _ = self.recurrence(h, valid)  # (B, T, D)
        elif self.stack is not None:
            h = self.stack(h, Context(valid=valid))  # (B, T, D)
        h = h.masked_fill(~valid[..., None], 0.0)
        mean = h.sum(1) / valid.sum(1, keepdim=True).clamp(min=1)
        most = h.masked_fill(~valid[..., None], torch.finfo(h.dtype).min).amax(1)
        most = most.masked_fill(~valid.any(1, keepdim=True), 0.0)
        return self.head(torch.cat([mean, most], -1))

    def _pair(self, ids: Tensor, valid: Tensor) -> Tensor:
        """(B, T): the row of ``pairs`` for each token and the real one before it, by a hash, so
        that other pairs may have the same. What it is at padding does not matter."""
        first = torch.full_like(ids[:, :1], self.config.vocab_size)  # stands before every text
        count = valid.cumsum(1)  # (B, T): real tokens up to each
        by_place = torch.cat([first, first.expand_as(ids)], 1)  # (B, 1 + T)
        by_place = by_place.scatter(1, count * valid, ids.where(valid, first))
        left = by_place.gather(1, count - valid.long())
        mixed = left * 0x9E3779B1 + ids * 0x85EBCA77  # Knuth's and another odd multiplier
        return (mixed ^ (mixed >> 15)) % self.config.pairs

    def after_step(self, step: int) -> None:
        """Call after every optimizer step; ``step`` counts from 1."""
        if self.stack is not None:
            self.stack.after_step(step)

    def predict(
        self, texts: Sequence[str], tokenizer: Tokenizer, classes: Sequence[str]
    ) -> list[tuple[str, float]]:
        """(the most probable class, its probability) of each text. ``classes``: their names by
        their numbers, which the model does not know."""
        best = self.probabilities(texts, tokenizer).max(-1)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(classes[i], p) for i, p in pairs]

    def probabilities(self, texts: Sequence[str], tokenizer: Tokenizer) -> Tensor:
        """(texts, classes) in float32 on the CPU: of each text the mean over its windows. They go
        through the model together, however many they are."""
        if not texts:
            return torch.zeros(0, self.config.classes)
        frame = judging.TextFrame(self.config.context_length)
        return judging.probabilities(self, texts, tokenizer, frame, self.config.several)
