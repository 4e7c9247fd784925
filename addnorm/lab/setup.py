"""What a measurement of a design depends on, besides the design; cheap to import.

Commands read it for their options before torch is loaded. ``measurement`` measures.
"""

from dataclasses import dataclass
from typing import Literal, final

from addnorm.checks import check_whole
from addnorm.errors import Mendable, value_in_short

DEEPEST = 1000
"""Blocks: as many as the layers of DeepNet (Wang et al. 2022), the deepest that was published."""
MOST_SEEDS = 1000  # far more than medians and extremes need; a typing error is refused


@final
@dataclass(frozen=True)
class Setup:
    """What the measurement depends on, besides the design."""

    width: int = 64
    """Width of the stream."""
    depths: tuple[int, ...] = (6, 12, 24, 48)
    """Numbers of blocks; a block is one attention and one MLP."""
    heads: int = 4
    """Attention heads."""
    tokens: int = 32
    """Tokens in a sequence."""
    batch: int = 8
    """Sequences in the batch that is measured."""
    seeds: int = 3
    """How many times weights and data are drawn and measured."""
    first_seed: int = 0
    """The first seed; the others are the numbers after it."""
    init: Literal["fan_in", "own"] = "fan_in"
    """How weights start. fan_in: std 1/sqrt(fan_in) times the design's own factors.
    own: as published; a std of 0.02 at small width makes all designs look alike."""
    activation: Literal["gelu", "gelu_tanh", "relu", "relu2", "silu"] = "gelu"
    """Activation of the MLP, whose hidden width is 4 times the stream's."""
    qk_norm: bool = False
    """RMSNorm on queries and keys, per head."""

    def __post_init__(self) -> None:
        for name in ("width", "heads", "tokens", "batch", "seeds"):
            check_whole(name, getattr(self, name))
        depths = value_in_short(self.depths)
        if not self.depths or min(self.depths) < 1 or len(set(self.depths)) < len(self.depths):
            raise Mendable(f"depths must be different numbers of at least 1 block, got {depths}")
        if max(self.depths) > DEEPEST:
            raise Mendable(f"depths must be at most {DEEPEST:,} blocks, got {depths}")
        if self.seeds > MOST_SEEDS:
            raise Mendable(f"seeds must be at most {MOST_SEEDS:,}, got {self.seeds}")
        if self.width % self.heads:
            raise Mendable(f"{self.heads} heads do not divide the width {self.width}")
        if not 0 <= self.first_seed < 1 << 63:
            raise Mendable(
                f"first_seed must be from 0 to 2**63 - 1, got {value_in_short(self.first_seed)}"
            )

    def all_seeds(self) -> range:
        """The seeds themselves."""
        return range(self.first_seed, self.first_seed + self.seeds)
