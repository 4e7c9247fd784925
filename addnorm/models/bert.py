"""BERT: tokens, positions and types in front, an encoder on any Add & Norm scheme, a head.

    ids ──▶ norm(tokens + positions + types) ──▶ Stack([attention, MLP] * n_layers) ──▶ head

With ``post_norm`` and the defaults of ``BertConfig`` this is the published model, parameter for
parameter. Every token sees every real one. The heads: ``masked`` says which token stands at each
place, by the embedding's own table; ``classify`` reads one vector for the whole text; ``answer``
says of each token whether an answer begins, or ends, with it; ``tokens`` labels each token.

References: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers" (arXiv
1810.04805), and its code, https://github.com/google-research/bert, for what the paper leaves open:
the norm of the embedding, the transform before the decoder, the pooler.
"""

import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm import schemes
from addnorm.branches import ACTIVATIONS, MLP, Attention
from addnorm.checks import check_known
from addnorm.context import Context
from addnorm.errors import Mendable
from addnorm.init import InitRule
from addnorm.models import storage
from addnorm.models.bert_config import PRESETS, BertConfig
from addnorm.models.gpt_config import NORMS
from addnorm.norms import Norm
from addnorm.positions import Learned, RoPE
from addnorm.stream import Stack


@final
class Bert(nn.Module):
    """(B, T) ids -> what its head says: ``masked`` (B, T, vocab_size), ``classify`` (B, labels),
    ``answer`` (B, T, 2) for beginning and end, ``tokens`` (B, T, labels); ``none`` (B, T, dim).

    ``config``: all of its choices; ``Bert.preset(name)`` has the published ones.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = c = config
        norm = partial(NORMS[c.norm], **({} if c.norm == "dyt" else {"eps": c.eps}))
        self.tokens = nn.Embedding(c.vocab_size, c.dim)
        learned = c.position == "learned"
        self.positions = Learned(c.context_length, c.dim) if learned else None
        self.types = nn.Embedding(c.types, c.dim)
        self.norm: Norm = norm(c.dim)
        attention = partial(
            Attention,
            c.dim,
            c.n_heads,
            position=None if learned else RoPE(c.dim // c.n_heads),
            dropout=c.attention_dropout,
            out_dropout=c.dropout,
        )
        mlp = partial(MLP, c.dim, c.hidden or 4 * c.dim, c.activation, out_dropout=c.dropout)
        self.stack = Stack(
            [("attn", attention), ("mlp", mlp)] * c.n_layers,
            c.dim,
            schemes.parse(c.scheme),
            norm=norm,
            side="encoder",
        )
        # the other heads read every token, and have no use for a pooler
        pools = c.pooling != "none" and c.head in ("classify", "none")
        self.pooler = nn.Linear(c.dim, c.dim) if pools else None
        self.decoder = MaskedHead(c, norm) if c.head == "masked" else None
        outputs = {"classify": c.labels, "tokens": c.labels, "answer": 2}.get(c.head)
        self.head = None if outputs is None else nn.Linear(c.dim, outputs)
        self.labels: tuple[str, ...] | None = None  # what the places of its answer are called
        self.tokenizer_identity: str | None = None  # of the tokenizer it was saved with
        self.reset_parameters()

    @staticmethod
    def preset(name: str, **changes: Any) -> BertConfig:
        """A published shape: bert-tiny, -mini, -small, -medium, -base, -large; any field can be
        changed."""
        check_known("preset", name, PRESETS)
        dim, layers, heads = PRESETS[name]
        config = BertConfig(vocab_size=30522, dim=dim, n_layers=layers, n_heads=heads)
        return dataclasses.replace(config, **changes)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = torch.float32,
        dropout: float | None = None,
        head: str | None = None,
        labels: Sequence[str] | None = None,
    ) -> "Bert":
        """A folder of BERT's or ours, or a model of the Hugging Face hub, in evaluation mode.

        ``dtype`` None keeps what is stored. ``dropout`` replaces all of the folder's. ``head``
        another than the folder's is new, and ``labels`` are what it chooses from. What is not
        exactly understood is refused with a ``WeightsError``.
        """
        model: Bert = storage.of("Bert").load(
            path_or_id, dtype=dtype, dropout=dropout, head=head, labels=labels
        )[0]
        return model

    def save_pretrained(
        self,
        path: str | os.PathLike[str],
        *,
        format: str | None = None,
        tokenizer: Any = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        """Write a folder for ``from_pretrained``, the tokenizer beside the weights if given.

        ``format``: "bert" for transformers, refused with the reason where BERT cannot be this
        model; "addnorm" for any design; None takes BERT's wherever it can. ``labels``: the names of
        what the head chooses from; by default those it was loaded with.
        """
        storage.of("Bert").save(self, path, format=format, tokenizer=tokenizer, labels=labels)

    def init_rules(self) -> dict[str, tuple[str, InitRule]]:
        """Parameter -> (role, the scheme's rule), for the two ends; the stack knows its own."""
        embed, head = self.stack.inits["embed"], self.stack.inits["head"]
        tables = ["tokens", "types", *([] if self.positions is None else ["positions"])]
        rules = {f"{name}.weight": ("embed", embed) for name in tables}
        if self.head is not None:
            rules["head.weight"] = ("head", head)
        return rules

    def reset_parameters(self) -> None:
        """Fill the tables at the two ends by the scheme's rule, and the pooler as in the published
        BERT; the stack and the head for tokens have filled themselves."""
        for name, (role, rule) in self.init_rules().items():
            rule(role, self.get_parameter(name))
        for layer in (self.pooler, self.head):
            if layer is not None:
                nn.init.zeros_(layer.bias)
        if self.pooler is not None:
            nn.init.normal_(self.pooler.weight, std=0.02)  # as everything in the published BERT

    def forward(
        self,
        ids: Tensor,
        valid: Tensor | None = None,
        token_types: Tensor | None = None,
        *,
        at: Tensor | None = None,
    ) -> Tensor:
        """What the head says; without a head, the hidden states.

        ``valid`` (B, T) is True for real tokens, wherever the padding is; as in the published model
        positions count every place, padding too. ``token_types`` (B, T) are below ``types``; None:
        all 0. With the head masked, ``at`` (B, T) is True where a token is asked for: the logits
        (N, vocab_size) are of these N places in their order.
        """
        h = self.hidden(ids, valid, token_types)
        if self.decoder is not None:
            return self.decoder(h if at is None else h[at], self.tokens.weight)
        if at is not None:
            raise ValueError(f"at chooses places of the head masked, and this one is {self.kind}")
        if self.head is None:
            return h
        if self.config.head == "classify":
            h = self.pooled(h, valid)
        if self.config.head != "answer":
            h = F.dropout(h, self.config.head_dropout, self.training)
        return self.head(h.to(self.head.weight.dtype))

    @property
    def kind(self) -> str:
        """The name of its head."""
        return self.config.head

    def hidden(self, ids: Tensor, valid: Tensor | None, token_types: Tensor | None) -> Tensor:
        """(B, T) -> (B, T, dim): the stream at the end of the stack. The arguments are those of
        ``forward``, which are checked here."""
        self._check(ids, valid, token_types)
        types = torch.zeros_like(ids) if token_types is None else token_types
        h = self.tokens(ids) + self.types(types)  # (B, T, D)
        if self.positions is not None:
            h = h + self.positions(torch.arange(ids.shape[1], device=ids.device))
        h = F.dropout(self.norm(h, valid=valid), self.config.dropout, self.training)
        encoded: Tensor = self.stack(h, Context(valid=valid))
        return encoded

    def pooled(self, h: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, dim) -> (B, dim): what stands for each text, by ``config.pooling``. ``valid`` as
        in ``forward``; it matters to a mean only. A ``ValueError`` without a pooler."""
        if self.pooler is None:
            raise ValueError(f"this model has no pooler: its head is {self.kind}")
        if self.config.pooling == "first":
            one = h[:, 0]
        elif valid is None:
            one = h.mean(1)
        else:
            real = valid[..., None]
            one = h.masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp(min=1)
        return torch.tanh(self.pooler(one.to(self.pooler.weight.dtype)))

    def after_step(self, step: int) -> None:
        """Call after every optimizer step; ``step`` counts from 1."""
        self.stack.after_step(step)
        for name, (role, _) in self.init_rules().items():
            care, weight = self.stack.cares[role], self.get_parameter(name)
            if care is not None and weight.requires_grad:
                care(role, weight, step)

    def _check(self, ids: Tensor, valid: Tensor | None, token_types: Tensor | None) -> None:
        """Raise where the input is of another shape or type, longer than the context, or has ids
        that are not in the tables, which on a GPU would be an error without a message. While
        compiling, values are not looked at."""
        c = self.config
        if ids.dim() != 2 or ids.dtype not in (torch.int32, torch.int64):
            raise Mendable(
                "ids must be whole numbers of shape (B, T) in int64 or int32, got "
                f"{tuple(ids.shape)} in {ids.dtype}"
            )
        if valid is not None and valid.dtype != torch.bool:
            raise TypeError(f"valid must be boolean, True = real token, got {valid.dtype}")
        if token_types is not None and token_types.shape != ids.shape:
            raise Mendable(
                f"token_types must have the shape of ids, {tuple(ids.shape)}, got "
                f"{tuple(token_types.shape)}"
            )
        if ids.shape[1] > c.context_length:
            raise Mendable(
                f"a sequence of {ids.shape[1]} tokens is longer than the context of "
                f"{c.context_length}"
            )
        if torch.compiler.is_compiling():
            return
        checks = (("id", ids, c.vocab_size, "vocabulary"), ("type", token_types, c.types, "types"))
        for noun, numbers, size, whole in checks:
            if numbers is None or not numbers.numel():
                continue
            low, high = (int(v) for v in numbers.aminmax())
            if low < 0 or high >= size:
                wrong = high if high >= size else low
                raise Mendable(f"{noun} {wrong} is outside the {whole} of {size}")


@final
class MaskedHead(nn.Module):
    """Which token stands where: table @ norm(activation(transform(h))) + bias.

    ``config``: the model's.
    ``norm``: dim -> norm.

    The table is the embedding's, and comes with every call: it is no parameter of the head.
    """

    def __init__(self, config: BertConfig, norm: Any) -> None:
        super().__init__()
        self.act = ACTIVATIONS[config.activation]
        self.transform = nn.Linear(config.dim, config.dim)
        self.norm: Norm = norm(config.dim)
        self.bias = nn.Parameter(torch.empty(config.vocab_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As everything in the published BERT."""
        nn.init.normal_(self.transform.weight, std=0.02)
        nn.init.zeros_(self.transform.bias)
        nn.init.zeros_(self.bias)

    def forward(self, h: Tensor, table: Tensor) -> Tensor:
        """(..., dim) and the embedding's (vocab_size, dim) -> (..., vocab_size)."""
        h = self.norm(self.act(self.transform(h.to(self.transform.weight.dtype))))
        return F.linear(h.to(table.dtype), table, self.bias)
