"""A classifier of sounds: the encoder of frames, the mean and the largest over time, a linear head.

    features (B, mels, frames) ──▶ FrameEncoder ──▶ mean and maximum over real frames ──▶ head
        ──▶ logits (B, classes)

As the classifier of texts (``models.classifier``), with frames in the place of tokens.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from addnorm.checks import check_whole
from addnorm.models.frames import FrameConfig, FrameEncoder
from addnorm.positions import Learned


@final
@dataclass(frozen=True, kw_only=True)
class SoundConfig(FrameConfig):
    """What a classifier of sounds is, checked when it is made."""

    classes: int
    """How many classes there are; at least 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("classes", self.classes)


@final
class SoundClassifier(nn.Module):
    """``model(features, valid) -> logits``.

    ``config``: all of its choices.
    """

    def __init__(self, config: SoundConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = FrameEncoder(config)
        self.head = nn.Linear(2 * config.dim, config.classes)
        rule = self.encoder.stack.inits
        if isinstance(self.encoder.positions, Learned):
            rule["embed"]("embed", self.encoder.positions.weight)
        rule["head"]("head", self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor, valid: Tensor | None = None) -> Tensor:
        """``valid`` (B, frames) is True for real frames of the features (B, mels, frames)."""
        x, real = self.encoder(features, valid)
        if real is None:
            real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        mean = x.masked_fill(~real[..., None], 0.0).sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        most = x.masked_fill(~real[..., None], torch.finfo(x.dtype).min).amax(1)
        return self.head(torch.cat([mean, most], -1).to(self.head.weight.dtype))

    def after_step(self, step: int) -> None:
        """Call after every optimizer step; ``step`` counts from 1."""
        self.encoder.stack.after_step(step)
