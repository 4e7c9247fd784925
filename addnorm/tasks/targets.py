"""What a text's labels are to a loss and to a measure: one of several, or any of several."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from addnorm.models.texts import shares
from addnorm.tasks.labelled_texts import Text
from addnorm.training.task import Best
from addnorm.uses.label_sets import THRESHOLD, agreement

Labels = tuple[int, ...]
"""The numbers of a text's labels."""


class Targets(ABC):
    """How labels are learned and measured.

    ``classes``: the labels by their numbers.
    """

    best: ClassVar[Best]
    several: ClassVar[bool]

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)

    @abstractmethod
    def tensor(self, labels: Sequence[Labels]) -> Tensor:
        """A batch's labels as the loss takes them, rows first."""

    @abstractmethod
    def loss(
        self,
        logits: Tensor,
        targets: Tensor,
        smoothing: float = 0.0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Summed over texts, of logits (B, classes) and what ``tensor`` gives. ``smoothing``: the
        share of a target's weight that goes elsewhere. ``mask``: which targets count, as
        ``pseudo_labels`` has it; None: all."""

    @abstractmethod
    def pseudo_labels(self, p: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
        """(targets, mask) of probabilities (B, classes): what they say, as ``loss`` takes it,
        and where that is at least as probable as ``confidence``, of the same shape."""

    @abstractmethod
    def sample(self, p: Tensor, generator: torch.Generator) -> Tensor:
        """Labels drawn from probabilities (B, classes), as ``loss`` takes them."""

    @abstractmethod
    def right(self, logits: Tensor, targets: Tensor) -> Tensor:
        """How many texts have the right labels."""

    @abstractmethod
    def mean(self, sums: Tensor, windows: Tensor) -> Tensor:
        """Probabilities (texts, classes) from ``sums``, which add them up over the windows of each
        text; ``windows`` (texts,) is how many these are."""

    @abstractmethod
    def metrics(self, p: Tensor, labels: Sequence[Labels]) -> dict[str, float]:
        """How good probabilities (texts, classes) are, ``val_loss`` and the metric of ``best``
        among the figures; ``labels`` are the right ones."""

    @abstractmethod
    def answer(self, p: Sequence[float]) -> Labels:
        """The labels that one says by the probabilities of a text."""

    @abstractmethod
    def without_a_model(self, texts: Sequence[Text]) -> str:
        """What can be said of these texts by labels alone, in words."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of each class."""
        return shares(logits, self.several)

    def names(self, labels: Labels) -> str:
        """The labels in words."""
        return ", ".join(self.classes[i] for i in labels) or "none"


@final
class OneLabel(Targets):
    """Each text has one label: softmax and cross-entropy."""

    best = Best("accuracy", "max")
    several = False

    def tensor(self, labels: Sequence[Labels]) -> Tensor:
        """(B,)"""
        return torch.tensor([i for (i,) in labels])

    def loss(
        self,
        logits: Tensor,
        targets: Tensor,
        smoothing: float = 0.0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy; a share of the weight goes to all classes alike."""
        if mask is None:
            return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
        nll = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
        return (nll * mask).sum()

    def pseudo_labels(self, p: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
        """(B,) each: the most probable class."""
        most = p.max(-1)
        return most.indices, most.values >= confidence

    def sample(self, p: Tensor, generator: torch.Generator) -> Tensor:
        """(B,)"""
        return torch.multinomial(p, 1, generator=generator)[:, 0]

    def right(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Where the right class is the most probable."""
        return (logits.argmax(-1) == targets).sum()

    def mean(self, sums: Tensor, windows: Tensor) -> Tensor:
        """Divided by what they sum to, so that they sum to 1 however the rounding was."""
        return sums / sums.sum(-1, keepdim=True)

    def metrics(self, p: Tensor, labels: Sequence[Labels]) -> dict[str, float]:
        """accuracy, and the loss without smoothing."""
        targets = self.tensor(labels)
        right = (p.argmax(-1) == targets).double().mean()
        loss = F.nll_loss(p.clamp(min=torch.finfo(p.dtype).tiny).log(), targets)
        return {"accuracy": float(right), "val_loss": float(loss)}

    def answer(self, p: Sequence[float]) -> Labels:
        """The most probable, of equal ones the first."""
        return (int(np.argmax(p)),)

    def without_a_model(self, texts: Sequence[Text]) -> str:
        """How often the most frequent one is right."""
        often = np.bincount([i for text in texts for i in text.labels]).max() / len(texts)
        return f"the most frequent class is right for {often:.1%}"


@final
class SeveralLabels(Targets):
    """Each text has any number of labels: a sigmoid and a binary cross-entropy for each label."""

    best = Best("micro_f1", "max")
    several = True

    def tensor(self, labels: Sequence[Labels]) -> Tensor:
        """(B, classes), 1 for the labels of each text."""
        targets = torch.zeros(len(labels), len(self.classes))
        for i, of_text in enumerate(labels):
            targets[i, list(of_text)] = 1.0
        return targets

    def loss(
        self,
        logits: Tensor,
        targets: Tensor,
        smoothing: float = 0.0,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The mean over labels, summed over texts; a share of the weight goes to yes and no
        alike."""
        targets = targets * (1.0 - smoothing) + 0.5 * smoothing
        weight = None if mask is None else mask.to(logits)
        nll = F.binary_cross_entropy_with_logits(logits, targets, weight, reduction="sum")
        return nll / len(self.classes)

    def pseudo_labels(self, p: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
        """(B, classes) each: yes or no of each label by itself."""
        return (p >= THRESHOLD).to(p.dtype), torch.maximum(p, 1.0 - p) >= confidence

    def sample(self, p: Tensor, generator: torch.Generator) -> Tensor:
        """(B, classes), each label by itself."""
        return torch.bernoulli(p, generator=generator)

    def right(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Where all labels are right."""
        return ((self.probabilities(logits) >= THRESHOLD) == (targets > 0.5)).all(-1).sum()

    def mean(self, sums: Tensor, windows: Tensor) -> Tensor:
        """Of each label by itself."""
        return sums / windows[:, None]

    def metrics(self, p: Tensor, labels: Sequence[Labels]) -> dict[str, float]:
        """Those of ``agreement``, and the loss without smoothing."""
        targets = self.tensor(labels).double()
        loss = F.binary_cross_entropy(p.clamp(0.0, 1.0), targets)
        return {**agreement(p >= THRESHOLD, targets > 0.5), "val_loss": float(loss)}

    def answer(self, p: Sequence[float]) -> Labels:
        """All that are probable enough."""
        return tuple(i for i, share in enumerate(p) if share >= THRESHOLD)

    def without_a_model(self, texts: Sequence[Text]) -> str:
        """How many labels there are of a text."""
        mean = sum(len(text.labels) for text in texts) / len(texts)
        return f"a text has {mean:.2g} of the labels"


KINDS: Mapping[bool, Any] = {False: OneLabel, True: SeveralLabels}
"""Whether a text may have several labels -> how they are learned."""
