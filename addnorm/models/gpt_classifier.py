"""A text classifier on a GPT: its hidden state at the last real token, and a linear head.

    ids ──▶ GPT without its head ──▶ h at the last real token ──▶ head ──▶ logits (B, classes)

Of a causal model only the last token has seen the whole text (Radford et al. 2018, "Improving
Language Understanding by Generative Pre-Training"). With GPT-2's choices this is transformers'
GPT2ForSequenceClassification. A text that is longer than the context is judged by windows of it.
"""

import dataclasses
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from addnorm.checks import check_whole
from addnorm.data.tokenizer import Tokenizer
from addnorm.models import texts as judging
from addnorm.models.gpt import GPT
from addnorm.models.gpt_config import GPTConfig


@final
class GPTClassifier(nn.Module):
    """(B, T) ids, of which ``valid`` are real -> logits (B, classes).

    ``config``: the choices of the GPT; a head for tokens is left out. ``classes``: how many there
    are. ``several``: whether a text may have several classes, or none; else they exclude each
    other.
    """

    def __init__(self, config: GPTConfig, classes: int, several: bool = False) -> None:
        super().__init__()
        check_whole("classes", classes)
        self.config = dataclasses.replace(config, tied=True)  # so that there is no second table
        self.several = several
        self.gpt = GPT(self.config)
        self.head = nn.Linear(config.dim, classes, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)  # as everything in GPT-2

    @property
    def frame(self) -> judging.TextFrame:
        """How much of a text it reads at once."""
        return judging.TextFrame(self.config.context_length)

    def forward(self, ids: Tensor, valid: Tensor | None = None) -> Tensor:
        """Padding may be anywhere, and positions count real tokens; of a row that is padding alone
        the first place is taken."""
        h = self.gpt.hidden(ids, valid)  # (B, T, D)
        place = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        if valid is not None:
            place = place.masked_fill(~valid, 0)
        last = h[torch.arange(h.shape[0], device=h.device), place.amax(1)]  # (B, D)
        return self.head(last.to(self.head.weight.dtype))

    def after_step(self, step: int) -> None:
        """Call after every optimizer step; ``step`` counts from 1."""
        self.gpt.after_step(step)

    def probabilities(self, texts: Sequence[str], tokenizer: Tokenizer) -> Tensor:
        """(texts, classes) in float32 on the CPU: of each text the mean over its windows. They go
        through the model together, however many they are."""
        if not texts:
            return torch.zeros(0, self.head.out_features)
        return judging.probabilities(self, texts, tokenizer, self.frame, self.several)
