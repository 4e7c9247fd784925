"""Speech to text: an encoder of frames, and two ways to say what was heard.

    features (B, mels, frames) ──▶ FrameEncoder ──▶ memory ──▶ CTC head ──▶ logits of each frame
                                                      │
                   ids ──▶ tokens + positions ──▶ decoder ──▶ logits of the next token

CTC (Graves et al. 2006) says a token or nothing at each frame; the decoder writes one token after
the other, as a translator does. A model has one of them or both, which then learn together and
correct each other (Watanabe et al. 2017, "Hybrid CTC/Attention Architecture"). Without CTC, with
``strides=2``, ``kernel=0``, ``position="learned"`` and ``pre_norm``, this is Whisper (Radford et
al. 2022, arXiv 2212.04356), whose folders ``addnorm.load`` reads.
"""

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from addnorm import schemes
from addnorm.checks import check_whole
from addnorm.context import Cache, Context, Memory
from addnorm.errors import Mendable, value_in_short
from addnorm.generation.search import SearchRules, search, stacked
from addnorm.init import InitRule
from addnorm.models.frames import EncodedFrames, FrameConfig, FrameEncoder
from addnorm.models.gpt_config import norm_rule
from addnorm.models.ids import check_sequence
from addnorm.models.targets import TargetModel
from addnorm.models.transformer import decoder
from addnorm.positions import Learned
from addnorm.temporary import evaluation_mode


@final
@dataclass(frozen=True, kw_only=True)
class SpeechConfig(FrameConfig):
    """What a recognizer is, checked when it is made."""

    vocab_size: int
    """How many ids a text may have, its start and end included; at least 2."""
    start_id: int = 0
    """The id that every text begins with, which to CTC means that nothing is said."""
    end_id: int = 1
    """The id that every text ends with."""
    pad_id: int = 0
    """The id that fills up rows."""
    context_length: int = 448
    """The most tokens that the decoder writes; at least 1."""
    decoder_layers: int = 0
    """Blocks of the decoder; 0: there is none."""
    ctc: bool = True
    """Whether there is a head for CTC."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("vocab_size", self.vocab_size, least=2)
        check_whole("context_length", self.context_length)
        check_whole("decoder_layers", self.decoder_layers, least=0)
        for name in ("start_id", "end_id", "pad_id"):
            check_whole(name, getattr(self, name), least=0)
            if getattr(self, name) >= self.vocab_size:
                raise Mendable(
                    f"{name}={getattr(self, name)} is outside the {self.vocab_size} ids of a text"
                )
        if type(self.ctc) is not bool:
            raise Mendable(f"ctc must be true or false, got {value_in_short(self.ctc)}")
        if not self.ctc and not self.decoder_layers:
            raise Mendable("ctc=false needs a decoder: set decoder_layers")

    @property
    def targets(self) -> int:
        """How many ids a text may have."""
        return self.vocab_size


class SpeechLogits(NamedTuple):
    """What a model with both heads says."""

    ctc: Tensor
    """(B, S, vocab_size), of what is said at each frame of the encoder."""
    text: Tensor
    """(B, T, vocab_size), of what follows each token."""


@final
class Speech(nn.Module):
    """``model(features, ids, valid) -> logits``, of the heads that it has.

    ``config``: all of its choices.
    """

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        c = self.config = config
        depths = (c.encoder_layers, c.decoder_layers) if c.decoder_layers else None
        self.encoder = FrameEncoder(c, depths)
        self.ctc = nn.Linear(c.dim, c.vocab_size) if c.ctc else None
        self.tokens: nn.Embedding | None = None
        self.target_positions: Learned | None = None
        self.decoder = None
        if c.decoder_layers:
            self.tokens = nn.Embedding(c.vocab_size, c.dim)
            self.target_positions = Learned(c.context_length, c.dim)
            self.decoder = decoder(
                c.dim,
                c.n_heads,
                c.decoder_layers,
                schemes.parse(c.scheme),
                cross=True,
                depths=depths,
                hidden=c.hidden,
                norm=norm_rule(c.norm, c.eps),
                activation=c.activation,
                dropout=c.dropout,
                attention_dropout=0.0,
            )
        self.rules = SearchRules(
            start=c.start_id, end=c.end_id, pad=c.pad_id, banned=((c.start_id,),)
        )
        self.prefix: tuple[int, ...] = ()
        """What every text begins with behind the start, which is no part of it."""
        self.reset_parameters()

    @property
    def context_length(self) -> int:
        """The most tokens of a text."""
        return self.config.context_length

    def init_rules(self) -> dict[str, tuple[str, InitRule]]:
        """Parameter -> (role, the rule of the scheme), for tables and heads, not for stacks."""
        rules: dict[str, tuple[str, InitRule]] = {}
        encoder = self.encoder.stack.inits
        if isinstance(self.encoder.positions, Learned):
            rules["encoder.positions.weight"] = ("embed", encoder["embed"])
        if self.ctc is not None:
            rules["ctc.weight"] = ("head", encoder["head"])
        if self.decoder is not None:
            rules["tokens.weight"] = ("embed", self.decoder.inits["embed"])
            rules["target_positions.weight"] = ("embed", self.decoder.inits["embed"])
        return rules

    def reset_parameters(self) -> None:
        """Fill tables and heads by the scheme's rule; no token is favoured."""
        for name, (role, rule) in self.init_rules().items():
            rule(role, self.get_parameter(name))
        if self.ctc is not None:
            nn.init.zeros_(self.ctc.bias)

    def forward(
        self,
        features: Tensor | None,
        ids: Tensor | None,
        valid: Tensor | None = None,
        *,
        memory: Tensor | None = None,
        cache: Cache | None = None,
        last: int | None = None,
    ) -> Tensor | SpeechLogits:
        """Logits of what follows each of ``ids`` (B, T), which begin with ``start_id``; of a model
        with CTC alone, or without ids, those of each frame; else both, as ``SpeechLogits``.

        ``valid`` (B, frames) is True for real frames of the features (B, mels, frames). With the
        ``memory`` (B, S, D) that ``encode`` made, no features are needed, only the decoder speaks,
        and ``valid`` (B, S) is the memory's; then ``ids`` may hold the new tokens behind a
        ``cache``. ``last``: only the logits at so many places at the end.
        """
        if memory is not None:
            if ids is None:
                raise Mendable("beside the memory there must be ids")
            return self.decode(ids, EncodedFrames(memory, valid), cache, last)
        if features is None:
            raise Mendable("there must be features, or the memory of some")
        frames = self.encode(features, valid)
        if self.decoder is None or ids is None:
            return self.frame_logits(frames)
        text = self.decode(ids, frames, cache, last)
        return text if self.ctc is None else SpeechLogits(self.frame_logits(frames), text)

    def encode(self, features: Tensor, valid: Tensor | None = None) -> EncodedFrames:
        """What the heads look at; ``valid`` as in ``forward``."""
        frames: EncodedFrames = self.encoder(features, valid)
        return frames

    def frame_logits(self, frames: EncodedFrames) -> Tensor:
        """CTC's, (B, S, vocab_size)."""
        if self.ctc is None:
            raise Mendable("this model has no head for CTC: give it the ids of a text")
        logits: Tensor = self.ctc(frames.x.to(self.ctc.weight.dtype))
        return logits

    def decode(
        self,
        ids: Tensor,
        frames: EncodedFrames,
        cache: Cache | None = None,
        last: int | None = None,
    ) -> Tensor:
        """The decoder's logits (B, T, vocab_size) beside what was heard; with a cache ``ids`` are
        the new tokens, which stand behind those that are there."""
        if self.decoder is None or self.tokens is None or self.target_positions is None:
            raise Mendable("this model has no decoder (decoder_layers=0): it takes no ids")
        past = 0 if cache is None else cache.length(0)
        check_sequence(ids, self.config.vocab_size, self.config.context_length, "text", past)
        place = past + torch.arange(ids.shape[1], device=ids.device)
        h = self.tokens(ids) + self.target_positions(place)
        h = F.dropout(h, self.config.dropout, self.training)
        h = self.decoder(h, Context(memory=Memory(frames.x, frames.valid), cache=cache))
        h = h if last is None else h[:, max(h.shape[1] - last, 0) :]
        return F.linear(h.to(self.tokens.weight.dtype), self.tokens.weight)

    def bind(self, features: Tensor, valid: Tensor | None = None) -> TargetModel:
        """The language model of the texts of these sounds, which are read once."""
        return self.bind_frames(self.encode(features, valid))

    def bind_frames(self, frames: EncodedFrames) -> TargetModel:
        """The same, of what ``encode`` made of them."""
        return TargetModel(self, *frames)

    def generate(
        self,
        features: Tensor,
        max_new_tokens: int | None = None,
        *,
        beams: int = 1,
        length_penalty: float = 1.0,
        valid: Tensor | None = None,
    ) -> Tensor:
        """(B, mels, frames) -> (B, T): the start, the prefix, the best text that the decoder finds,
        its end, padding. ``max_new_tokens``: the most behind the prefix; None: what the folder
        says, or the context."""
        rules, prefix = self.rules, list(self.prefix)
        room = self.config.context_length - len(prefix)
        most = min(rules.most or room, room)
        with evaluation_mode(self.modules()), torch.inference_mode():
            sounds = self.bind(features, valid)
        results = search(
            sounds,
            len(features),
            rules,
            max_new_tokens=most if max_new_tokens is None else max_new_tokens,
            beams=beams,
            length_penalty=length_penalty,
            prefixes=[prefix] * len(features),
        )
        return stacked([[rules.start, *best.ids] for best, *_ in results], rules.pad)

    def after_step(self, step: int) -> None:
        """Call after every optimizer step; ``step`` counts from 1."""
        self.encoder.stack.after_step(step)
        if self.decoder is not None:
            self.decoder.after_step(step)
        for name, (role, _) in self.init_rules().items():
            of_encoder = name.startswith(("encoder.", "ctc."))
            stack = self.encoder.stack if of_encoder else self.decoder
            care = None if stack is None else stack.cares[role]
            weight = self.get_parameter(name)
            if care is not None and weight.requires_grad:
                care(role, weight, step)
