"""What a model answers to an input, as a program reads it and as a person does."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final


class Prediction(ABC):
    """A model's answer to one input."""

    @abstractmethod
    def to_json(self, top: int | None) -> dict[str, Any]:
        """For a program; at most ``top`` of what there is to choose from, None: all of it."""

    @abstractmethod
    def line(self, top: int | None) -> str:
        """For a person, in one line; None: the most probable alone."""


@final
@dataclass(frozen=True)
class LabelPrediction(Prediction):
    """Which of a few labels an input has."""

    ranked: tuple[tuple[str, float], ...]
    """Every label with its probability, the most probable first."""

    @classmethod
    def of(cls, labels: Sequence[str], probabilities: Sequence[float]) -> "LabelPrediction":
        """From the probability of each label; of two that are equal the first comes first."""
        pairs = zip(labels, probabilities, strict=True)
        return cls(tuple(sorted(pairs, key=lambda pair: -pair[1])))

    def to_json(self, top: int | None) -> dict[str, Any]:
        """The most probable label, its probability, and those of all."""
        label, probability = self.ranked[0]
        return {
            "label": label,
            "probability": probability,
            "probabilities": dict(self.ranked[:top]),
        }

    def line(self, top: int | None) -> str:
        """Labels with their probabilities in percent, in columns."""
        width = max(len(label) for label, _ in self.ranked)
        return "  ".join(f"{label:{width}} {p:6.1%}" for label, p in self.ranked[: top or 1])
