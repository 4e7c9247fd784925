"""Which labels a text has, where it may have several or none."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor

from addnorm.data.labelled import read_label_sets
from addnorm.progress import ProgressBar
from addnorm.uses.labels import check_labels, finite
from addnorm.uses.use import Answer, Use, text_of

THRESHOLD = 0.5
"""The probability from which on a text has a label."""


@final
class LabelSets(Use):
    """A model of which ``probabilities(texts)`` is (texts, labels), each of them for itself.

    A text has the labels whose probability is at least ``THRESHOLD``. The option ``top`` keeps that
    number of the most probable labels in ``probabilities``; without it all are there.
    """

    options = MappingProxyType({"top": None})
    example = '{"text": "..."}'

    def __init__(
        self, probabilities: Callable[[Sequence[str]], Tensor], labels: Sequence[str]
    ) -> None:
        self.probabilities, self.labels = probabilities, tuple(labels)

    def question(self, item: str | Mapping[str, Any]) -> str:
        """The text of an item."""
        return text_of(item, ("text", "sentence", "input"), self.example)

    def answers(self, questions: Sequence[str], options: Mapping[str, Any]) -> list[list[Answer]]:
        """input, labels, probabilities; the most probable first. One answer to each text."""
        rows = []
        p = finite(self.probabilities(questions))
        for text, row in zip(questions, p.tolist(), strict=True):
            ranked = sorted(zip(self.labels, row, strict=True), key=lambda pair: -pair[1])
            labels = [label for label, p in ranked if p >= THRESHOLD]
            best = dict(ranked[: options["top"]])
            rows.append([{"input": text, "labels": labels, "probabilities": best}])
        return rows

    def line(self, answer: Answer) -> str:
        """The labels, each with its probability in percent; of a text that has none "none", and in
        brackets the label that is nearest to one."""
        count = max(len(answer["labels"]), 1)
        parts = [f"{label} {p:.1%}" for label, p in list(answer["probabilities"].items())[:count]]
        return ", ".join(parts) if answer["labels"] else f"none ({parts[0]})"

    def evaluate(
        self, data: Sequence[str], options: Mapping[str, Any], *, batch_size: int, bar: ProgressBar
    ) -> dict[str, Any]:
        """The figures of ``agreement``, and F1 of each label with how many texts have it."""
        rows = [row for name in data for row in read_label_sets(name)]
        check_labels({label for row in rows for label in row.labels}, self.labels)
        places = {label: i for i, label in enumerate(self.labels)}
        right = torch.zeros(len(rows), len(places), dtype=torch.bool)
        for i, row in enumerate(rows):
            right[i, [places[label] for label in row.labels]] = True
        parts = []
        for first in range(0, len(rows), batch_size):
            texts = [row.text for row in rows[first : first + batch_size]]
            parts.append(finite(self.probabilities(texts)) >= THRESHOLD)
            bar.update(first + len(texts), len(rows))
        answers = torch.cat(parts)
        each, counts = f1_by_label(answers, right).tolist(), right.sum(0).tolist()
        return {
            **agreement(answers, right),
            "texts": len(rows),
            "f1_by_label": dict(zip(self.labels, each, strict=True)),
            "texts_by_label": dict(zip(self.labels, counts, strict=True)),
            "labels": list(self.labels),
        }


def f1_by_label(answers: Tensor, right: Tensor) -> Tensor:
    """F1 of each label, (labels,) in float64, of the ``answers`` that were said and those that are
    ``right``, both boolean (texts, labels): 2 TP / (2 TP + FP + FN), and 0 where nobody says it and
    no text has it, as scikit-learn's f1_score with zero_division=0."""
    both = (answers & right).sum(0).double()
    return 2 * both / (answers.sum(0) + right.sum(0)).clamp(min=1)


def agreement(answers: Tensor, right: Tensor) -> dict[str, float]:
    """How well ``answers``, the labels that were said, agree with those that are ``right``, both
    boolean (texts, labels), of one text at least.

    ``accuracy``: the share of texts of which all labels are said and no other; ``micro_f1``: F1
    over all pairs of a text and a label; ``macro_f1``: the mean over labels of each one's F1.
    """
    both = (answers & right).sum().double()
    return {
        "accuracy": float((answers == right).all(-1).double().mean()),
        "micro_f1": float(2 * both / (answers.sum() + right.sum()).clamp(min=1)),
        "macro_f1": float(f1_by_label(answers, right).mean()),
    }
