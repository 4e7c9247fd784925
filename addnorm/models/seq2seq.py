"""A sequence to another: tokens and positions, an encoder and a decoder on any scheme, a head.

    source ──▶ tokens + positions ──▶ encoder ──▶ memory
                                                    │
    target ──▶ tokens + positions ──▶ decoder ◀─────┘ ──▶ head ──▶ logits of the next target token

With ``scheme="post_norm"`` and ``position="halves"`` this is MarianMT, parameter for parameter;
``Seq2Seq.from_pretrained`` reads its folders.

References: Vaswani et al. 2017 (arXiv 1706.03762); Press & Wolf 2017 (1608.05859) for the tied head
and the table that both sides share; Junczys-Dowmunt et al. 2018 (1804.00344), Marian.
"""

import os
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm import schemes
from addnorm.context import Cache
from addnorm.errors import Mendable
from addnorm.generation.search import SearchRules, search, stacked
from addnorm.init import InitRule
from addnorm.models import storage
from addnorm.models.gpt_config import norm_rule
from addnorm.models.ids import check_sequence
from addnorm.models.seq2seq_config import Seq2SeqConfig
from addnorm.models.targets import TargetModel
from addnorm.models.transformer import EncoderDecoder
from addnorm.positions import Learned, Sinusoidal
from addnorm.temporary import evaluation_mode


@final
class Seq2Seq(nn.Module):
    """``model(source, target, valid) -> logits``: (B, S), (B, T) -> (B, T, target ids).

    ``config``: all of its choices.
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        c = self.config = config
        self.tokens = nn.Embedding(c.vocab_size, c.dim)
        shared = c.target_vocab_size is None
        self.target_tokens = None if shared else nn.Embedding(c.targets, c.dim)
        self.positions, self.target_positions = (
            Learned(c.context_length, c.dim) if c.position == "learned" else Sinusoidal(c.dim)
            for _ in range(2)
        )
        self.body = EncoderDecoder(
            c.dim,
            c.n_heads,
            (c.encoder_layers, c.decoder_layers),
            schemes.parse(c.scheme),
            hidden=c.hidden,
            norm=norm_rule(c.norm, c.eps),
            activation=c.activation,
            dropout=c.dropout,
            attention_dropout=c.attention_dropout,
            hidden_dropout=c.hidden_dropout,
        )
        self.head = None if c.tied else nn.Linear(c.dim, c.targets, bias=False)
        self.logits_bias = nn.Parameter(torch.zeros(c.targets)) if c.logits_bias else None
        self.rules = SearchRules(
            start=c.start_id, end=c.end_id, pad=c.pad_id, banned=((c.start_id,),)
        )
        self.reset_parameters()

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = torch.float32,
        dropout: float | None = None,
    ) -> "Seq2Seq":
        """A folder of MarianMT's or ours, or a model of the Hugging Face hub, in evaluation mode.

        ``dtype`` None keeps what is stored. ``dropout`` replaces the folder's. What is not exactly
        understood is refused with a ``WeightsError``.
        """
        storage_of = storage.of("Seq2Seq")
        model: Seq2Seq = storage_of.load(path_or_id, dtype=dtype, dropout=dropout)[0]
        return model

    def save_pretrained(
        self,
        path: str | os.PathLike[str],
        *,
        format: str | None = None,
        tokenizer: Any = None,
    ) -> None:
        """Write a folder for ``from_pretrained``, the tokenizer beside the weights if given: one
        for both sides, or a ``TokenizerPair``.

        ``format``: "marian" for transformers, refused with the reason where Marian cannot be this
        model; "addnorm" for any; None takes Marian's wherever it can.
        """
        storage.of("Seq2Seq").save(self, path, format=format, tokenizer=tokenizer)

    @property
    def context_length(self) -> int:
        """The most tokens of a source, and of a target."""
        return self.config.context_length

    def init_rules(self) -> dict[str, tuple[str, InitRule]]:
        """Parameter -> (role, the scheme's rule), for the tables; the stacks know their own."""
        encoder, decoder = self.body.encoder.inits, self.body.decoder.inits
        shared = self.target_tokens is None
        rules = {"tokens.weight": ("embed", (decoder if shared else encoder)["embed"])}
        if not shared:
            rules["target_tokens.weight"] = ("embed", decoder["embed"])
        if self.config.position == "learned":
            rules["positions.weight"] = ("embed", encoder["embed"])
            rules["target_positions.weight"] = ("embed", decoder["embed"])
        if self.head is not None:
            rules["head.weight"] = ("head", decoder["head"])
        return rules

    def reset_parameters(self) -> None:
        """Fill the tables by the scheme's rule; no token is favoured."""
        for name, (role, rule) in self.init_rules().items():
            rule(role, self.get_parameter(name))
        if self.logits_bias is not None:
            nn.init.zeros_(self.logits_bias)

    def forward(
        self,
        source: Tensor | None,
        target: Tensor | None,
        valid: Tensor | None = None,
        *,
        memory: Tensor | None = None,
        cache: Cache | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Logits of what follows each token of the target, which begins with ``start_id``.

        ``valid`` (B, S) is True for real tokens of the source. Positions count padding too, as in
        Marian: let it stand at the end. What pads a target stands behind all that is real.

        Without a target it returns the memory (B, S, D) of the source, and with that ``memory`` no
        source is needed; then ``target`` may hold the new tokens behind a ``cache``. ``last``: only
        the logits at so many places at the end.
        """
        if memory is None:
            if source is None:
                raise Mendable("there must be a source, or the memory of one")
            memory = self._encode(source, valid)
        if target is None:
            return memory
        return self._decode(target, memory, valid, cache, last)

    def _encode(self, source: Tensor, valid: Tensor | None) -> Tensor:
        """The memory of sources, (B, S, D)."""
        check_sequence(source, self.config.vocab_size, self.config.context_length, "source")
        h = self._embedded(source, self.tokens, self.positions, 0)
        return self.body.encode(h, valid)

    def _decode(
        self,
        target: Tensor,
        memory: Tensor,
        valid: Tensor | None,
        cache: Cache | None,
        last: int | None,
    ) -> Tensor:
        """Logits (B, T, target ids) of targets beside the memory of their sources, of which
        ``valid`` are real; with ``last`` only those at so many places at the end. With a cache
        ``target`` are the new tokens, which stand behind those that are there."""
        past = 0 if cache is None else cache.length(0)
        check_sequence(target, self.config.targets, self.config.context_length, "target", past)
        table = self.tokens if self.target_tokens is None else self.target_tokens
        h = self._embedded(target, table, self.target_positions, past)
        h = self.body.decode(h, memory, None, valid, cache)
        h = h if last is None else h[:, max(h.shape[1] - last, 0) :]
        weight = table.weight if self.head is None else self.head.weight
        bias = None if self.logits_bias is None else self.logits_bias.to(weight.dtype)
        return F.linear(h.to(weight.dtype), weight, bias)

    def bind(self, source: Tensor, valid: Tensor | None = None) -> "TargetModel":
        """The language model of the targets of these sources, which are read once."""
        return TargetModel(self, self(source, None, valid), valid)

    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int | None = None,
        *,
        beams: int = 1,
        length_penalty: float = 1.0,
        valid: Tensor | None = None,
    ) -> Tensor:
        """(B, S) -> (B, T): the start, the best target that was found, its end, padding.

        What ``generate(num_beams=beams, length_penalty=length_penalty)`` of transformers gives.
        ``max_new_tokens``: the most after the start; None: what the folder says, or the context.
        ``valid`` (B, S) is True for real tokens; None: for all that are not padding.
        """
        rules = self.rules
        if valid is None and rules.pad != rules.end:
            valid = ids != rules.pad
        if valid is not None and bool(valid.all()):
            valid = None
        most = rules.most or self.config.context_length
        with evaluation_mode(self.modules()), torch.inference_mode():
            sources = self.bind(ids, valid)
        results = search(
            sources,
            len(ids),
            rules,
            max_new_tokens=most if max_new_tokens is None else max_new_tokens,
            beams=beams,
            length_penalty=length_penalty,
        )
        # transformers takes a padding of 0 for none where it searches
        fill = rules.pad if beams == 1 else rules.pad or rules.end
        return stacked([[rules.start, *best.ids] for best, *_ in results], fill).to(ids.device)

    def attention(self, source: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, S), (B, T) -> (B, T, S): how much what follows each token of a target takes from each
        of its source, the mean over the decoder's heads and layers. ``valid``: as in ``forward``.
        """
        weights: list[Tensor] = []
        branches = [sub.branch for sub in self.body.decoder.sublayers() if sub.site.kind == "cross"]
        handles = [
            branch.register_forward_pre_hook(lambda b, args: weights.append(b.weights(*args)))
            for branch in branches
        ]
        try:
            with evaluation_mode(self.modules()), torch.inference_mode():
                self(source, target, valid)
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack([w.float().mean(1) for w in weights]).mean(0)

    def after_step(self, step: int) -> None:
        """Call after every optimizer step; ``step`` counts from 1."""
        self.body.after_step(step)
        # A table that both sides share, and the head, are the decoder's, as in init_rules.
        cares = {"embed": self.body.encoder.cares, "target": self.body.decoder.cares}
        for name, (role, _) in self.init_rules().items():
            of_source = name.startswith("positions") or (
                name.startswith("tokens") and self.target_tokens is not None
            )
            care = cares["embed" if of_source else "target"][role]
            weight = self.get_parameter(name)
            if care is not None and weight.requires_grad:
                care(role, weight, step)

    def _embedded(
        self,
        ids: Tensor,
        table: nn.Embedding,
        positions: Learned | Sinusoidal,
        past: int | Tensor,
    ) -> Tensor:
        """Tokens and their places, (B, T, D). ``table``, ``positions``: those of their side;
        ``past``: how many tokens of a cache stand before them."""
        h = table(ids)
        if self.config.scale_embedding:
            h = h * self.config.dim**0.5
        place = past + torch.arange(ids.shape[1], device=ids.device)
        if isinstance(positions, Learned):
            code = positions(place)
        else:  # in float64 the code of a place in the hundreds is right to the last bit of float32
            wide = place.to(torch.float32 if ids.device.type == "mps" else torch.float64)
            code = positions(wide)
            if self.config.position == "halves":
                code = torch.cat((code[..., ::2], code[..., 1::2]), -1)
        return F.dropout(h + code.to(h.dtype), self.config.dropout, self.training)
