"""GPT: tokens and positions in front, a causal stack on any Add & Norm scheme, a head.

With ``GPT.preset("gpt2")`` this is the published GPT-2, parameter for parameter; every field of
``GPTConfig`` is one choice, and all combinations work unless the config says why not.

    ids ──▶ tokens + positions ──▶ Stack([attention, MLP] * n_layers) ──▶ head ──▶ logits

References: Radford et al. 2019 (GPT-2); Vaswani et al. 2017 (arXiv 1706.03762); Press & Wolf 2017
(1608.05859) for the tied head; Gemma 2 (2408.00118) for capped logits.
"""

import dataclasses
import os
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm import schemes
from addnorm.branches import Attention
from addnorm.checks import check_known
from addnorm.context import Cache, Context
from addnorm.errors import Mendable
from addnorm.generation.decode import IdWriter
from addnorm.init import InitRule
from addnorm.models import storage
from addnorm.models.gpt_config import MLPS, PRESETS, GPTConfig
from addnorm.models.ids import check_ids
from addnorm.positions import ALiBi, AttentionPosition, Learned, RoPE, Sinusoidal
from addnorm.stream import Stack


@final
class GPT(nn.Module, IdWriter):
    """A decoder-only language model: ``model(ids) -> logits``, (B, T) -> (B, T, vocab_size).

    ``config``: all of its choices; ``GPT.preset(name)`` has the published ones.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.tokens = nn.Embedding(c.padded_vocab_size, c.dim)
        self.positions = _positions(c)
        attention = partial(
            Attention,
            c.dim,
            c.n_heads,
            causal=True,
            window=c.window,
            position=_attention_position(c),
            n_kv_heads=c.n_kv_heads,
            qk_norm=None if c.qk_norm is None else c.norm_rule(c.qk_norm),
            softcap=c.attention_softcap,
            bias=c.bias,
            dropout=c.dropout,
            out_dropout=c.dropout,
        )
        mlp = partial(
            MLPS[c.mlp],
            c.dim,
            c.hidden or 4 * c.dim,
            c.activation,
            bias=c.bias,
            out_dropout=c.dropout,
        )
        self.stack = Stack(
            [("attn", attention), ("mlp", mlp)] * c.n_layers,
            c.dim,
            schemes.parse(c.scheme),
            norm=c.norm_rule(c.norm),
        )
        self.head = None if c.tied else nn.Linear(c.dim, c.padded_vocab_size, bias=False)
        self.prompt: nn.Module | None = None
        """An adapter's: (B, T, D), the embeddings of a text -> the same with ``front`` more before
        it. They take places as tokens do; ``config.context_length`` is without them."""
        self.front = 0
        self.tokenizer_identity: str | None = None  # of the tokenizer it was saved with
        self.reset_parameters()

    @staticmethod
    def preset(name: str, **changes: Any) -> GPTConfig:
        """A published shape: gpt2, gpt2-medium, gpt2-large, gpt2-xl; any field can be changed."""
        check_known("preset", name, PRESETS)
        dim, layers, heads = PRESETS[name]
        config = GPTConfig(
            vocab_size=50257, context_length=1024, dim=dim, n_layers=layers, n_heads=heads
        )
        return dataclasses.replace(config, **changes)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = torch.float32,
        dropout: float | None = None,
    ) -> "GPT":
        """A folder of GPT-2's or ours, or a model of the Hugging Face hub, in evaluation mode.

        ``dtype`` None keeps what is stored. ``dropout`` replaces the folder's. What is not exactly
        understood is refused with a ``WeightsError``; see docs/gpt2.md.
        """
        model: GPT = storage.of("GPT").load(path_or_id, dtype=dtype, dropout=dropout)[0]
        return model

    def save_pretrained(
        self,
        path: str | os.PathLike[str],
        *,
        format: str | None = None,
        tokenizer: Any = None,
    ) -> None:
        """Write a folder for ``from_pretrained``, the tokenizer beside the weights if given.

        ``format``: "gpt2" for transformers, refused with the reason where GPT-2 cannot be this
        model; "addnorm" for any design; None takes GPT-2's wherever it can.
        """
        storage.of("GPT").save(self, path, format=format, tokenizer=tokenizer)

    def init_rules(self) -> dict[str, tuple[str, InitRule]]:
        """Parameter -> (role, the scheme's rule), for the two ends; the stack knows its own."""
        embed, head = self.stack.inits["embed"], self.stack.inits["head"]
        rules = {"tokens.weight": ("embed", embed)}
        if isinstance(self.positions, Learned):
            rules["positions.weight"] = ("embed", embed)
        if self.head is not None:
            rules["head.weight"] = ("head", head)
        return rules

    def reset_parameters(self) -> None:
        """Fill the tables at the two ends by the scheme's rule."""
        for name, (role, rule) in self.init_rules().items():
            rule(role, self.get_parameter(name))

    def forward(
        self,
        ids: Tensor,
        valid: Tensor | None = None,
        *,
        cache: Cache | None = None,
        last: int | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Logits of the next token at every place, or only at the ``last`` of them.

        ``valid`` (B, S) is True for real tokens, wherever the padding is; positions count real
        tokens only. With a cache ``ids`` are the new tokens and S counts the cached ones too, and
        may go on to tokens that are still to come. ``documents`` (B, T) numbers what each token is
        a part of: tokens of different documents do not see one another.
        """
        if last is not None and last < 0:
            raise Mendable(f"last must be the number of places at the end, at least 0, got {last}")
        h = self.hidden(ids, valid, cache=cache, documents=documents)
        return self.logits(h if last is None else h[:, max(h.shape[1] - last, 0) :])

    def hidden(
        self,
        ids: Tensor,
        valid: Tensor | None = None,
        *,
        cache: Cache | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """(B, T) -> (B, T, dim): what the head reads. The arguments are those of ``forward``, and
        are checked here."""
        past = 0 if cache is None else cache.length(0)  # with what is in front of the text
        begins = not isinstance(past, Tensor) and past == 0
        self._check(ids, past if begins else past - self.front)
        if valid is not None and valid.dtype != torch.bool:  # positions are counted by it
            raise TypeError(f"valid must be boolean, True = real token, got {valid.dtype}")
        h = self.tokens(ids)  # (B, T, D)
        order = None
        if self.front and valid is not None:
            order = _behind_padding(valid, self.front)
            valid = F.pad(valid, (self.front, 0), value=True).gather(1, order)
        if begins and self.prompt is not None:
            h = self.prompt(h)  # (B, front + T, D)
            if order is not None:
                order = order[:, : h.shape[1], None].clamp(max=h.shape[1] - 1)
                h = h.gather(1, order.expand_as(h))
            if cache is not None:
                cache.lead(self.front)
        if self.positions is not None:
            place = _places(h, valid, past)
            if isinstance(self.positions, Sinusoidal):
                # Vaswani et al. 2017: tokens are scaled up to the size of the code
                h = h * self.config.dim**0.5 + self.positions(place).to(h.dtype)
            else:
                h = h + self.positions(place)
        h = F.dropout(h, self.config.dropout, self.training)
        attend = None
        if documents is not None:  # of which each sees what is in front
            alike = documents[:, :, None] == documents[:, None, :]
            attend = F.pad(alike, (self.front, 0, self.front, 0), value=True)
        states: Tensor = self.stack(h, Context(valid=valid, attend=attend, cache=cache))
        return states[:, h.shape[1] - ids.shape[1] :]

    def logits(self, h: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, vocab_size): what pads the vocabulary never leaves the model."""
        table = self.tokens.weight if self.head is None else self.head.weight
        logits = F.linear(h.to(table.dtype), table)
        if self.config.softcap is not None:
            logits = self.config.softcap * torch.tanh(logits / self.config.softcap)
        return logits[..., : self.config.vocab_size]

    def after_step(self, step: int) -> None:
        """Call after every optimizer step; ``step`` counts from 1."""
        self.stack.after_step(step)
        for name, (role, _) in self.init_rules().items():
            care, weight = self.stack.cares[role], self.get_parameter(name)
            if care is not None and weight.requires_grad:
                care(role, weight, step)

    def _check(self, ids: Tensor, past: int | Tensor) -> None:
        """Raise where ids are not those of ``check_ids``, or stand beyond the table of positions.
        ``past``: how many tokens of a cache stand before them."""
        c = self.config
        check_ids(ids, c.vocab_size)
        if not isinstance(past, Tensor) and c.position == "learned":  # a tensor: while compiling
            length = past + ids.shape[1]
            if length > c.context_length:
                prompt = f", which a prompt of {self.front} leaves" if self.front else ""
                raise Mendable(
                    f"a sequence of {length} tokens is longer than the context of "
                    f"{c.context_length}{prompt}"
                )


def _positions(c: GPTConfig) -> Learned | Sinusoidal | None:
    if c.position == "learned":
        return Learned(c.context_length, c.dim)
    return Sinusoidal(c.dim) if c.position == "sinusoidal" else None


def _attention_position(c: GPTConfig) -> AttentionPosition | None:
    if c.position == "rope":
        return RoPE(c.dim // c.n_heads, c.rope_base)
    return ALiBi(c.n_heads) if c.position == "alibi" else None


def _behind_padding(valid: Tensor, front: int) -> Tensor:
    """Which of the places (B, front + S), what is in front and then those of ``valid`` (B, S),
    comes at each place, so that the padding before a row's first token is before what is in front:
    the two stand side by side, as in a row without padding. A row's first token has to be among
    those of the first call."""
    place = torch.arange(front + valid.shape[1], device=valid.device)
    padding = (valid.cumsum(1) == 0).sum(1, keepdim=True)  # (B, 1)
    rest = torch.where(place < padding + front, place - padding, place)
    return torch.where(place < padding, place + front, rest)


def _places(h: Tensor, valid: Tensor | None, past: int | Tensor) -> Tensor:
    """The number of each new place of h (B, T, D) among the real ones of its row: (T,) or (B, T);
    ``past`` of them are before."""
    slots = past + torch.arange(h.shape[1], device=h.device)
    return slots if valid is None else (valid.cumsum(1) - 1).clamp(min=0).index_select(1, slots)
