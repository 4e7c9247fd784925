"""Which of a few labels a text has."""

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor

from addnorm.data.labelled import read_labelled
from addnorm.errors import Mendable
from addnorm.progress import ProgressBar
from addnorm.uses.use import Answer, Use, text_of

UNKNOWN = 5  # labels that are shown in a message


@final
class Labels(Use):
    """A model of which ``probabilities(texts)`` is (texts, labels), asked for the most probable.

    The option ``top`` adds, as ``probabilities``, that number of the most probable labels.
    ``check``: raises ``Unusable`` for a text that the model cannot judge.
    """

    options = MappingProxyType({"top": None})
    example = '{"text": "..."}'

    def __init__(
        self,
        probabilities: Callable[[Sequence[str]], Tensor],
        labels: Sequence[str],
        check: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.probabilities, self.labels, self._check = probabilities, tuple(labels), check

    def question(self, item: str | Mapping[str, Any]) -> str:
        """The text of an item."""
        text = text_of(item, ("text", "sentence", "input"), self.example)
        self._check(text)
        return text

    def answers(self, questions: Sequence[str], options: Mapping[str, Any]) -> list[list[Answer]]:
        """input, label, probability, and with ``top`` probabilities; one answer to each text. Of
        two labels that are equally probable the first comes first."""
        p = finite(self.probabilities(questions))
        return label_answers(questions, p, self.labels, options["top"])

    def line(self, answer: Answer) -> str:
        """Labels with their probabilities in percent, in columns."""
        return label_line(answer)

    def evaluate(
        self, data: Sequence[str], options: Mapping[str, Any], *, batch_size: int, bar: ProgressBar
    ) -> dict[str, Any]:
        """Those of ``label_figures``, over all texts."""
        rows = [row for name in data for row in read_labelled(name)]
        check_labels({row.label for row in rows}, self.labels)
        answers = []
        for first in range(0, len(rows), batch_size):
            part = rows[first : first + batch_size]
            answers += finite(self.probabilities([row.text for row in part])).argmax(-1).tolist()
            bar.update(first + len(part), len(rows))
        return label_figures([row.label for row in rows], answers, self.labels, "texts")


def label_answers(
    names: Sequence[str], p: Tensor, labels: Sequence[str], top: int | None
) -> list[list[Answer]]:
    """One answer to each input, of which the probabilities are the rows of ``p``: input, label,
    probability, and with ``top`` probabilities."""
    rows = []
    for name, row in zip(names, p.tolist(), strict=True):
        ranked = sorted(zip(labels, row, strict=True), key=lambda pair: -pair[1])
        answer: Answer = {"input": name, "label": ranked[0][0], "probability": ranked[0][1]}
        if top is not None:
            answer["probabilities"] = dict(ranked[:top])
        rows.append([answer])
    return rows


def label_line(answer: Answer) -> str:
    """An answer of ``label_answers`` for a person."""
    ranked = answer.get("probabilities", {answer["label"]: answer["probability"]})
    width = max(map(len, ranked))
    return "  ".join(f"{label:{width}} {p:6.1%}" for label, p in ranked.items())


def label_figures(
    right_labels: Sequence[str], answers: Sequence[int], labels: Sequence[str], noun: str
) -> dict[str, Any]:
    """The share of right labels, over all inputs and of each label, and what was confused:
    ``confusion`` has a row for each label that is right and a column for each that was said.
    ``answers``: the places of what was said in ``labels``. ``noun``: what the inputs are, in the
    plural."""
    places = {label: i for i, label in enumerate(labels)}
    confusion = torch.zeros(len(places), len(places), dtype=torch.long)
    for label, place in zip(right_labels, answers, strict=True):
        confusion[places[label], place] += 1
    right, count = confusion.diagonal(), confusion.sum(1)
    return {
        "accuracy": float(right.sum() / count.sum()),
        noun: int(count.sum()),
        "accuracy_by_label": {
            label: float(right[i] / count[i]) for i, label in enumerate(labels) if count[i]
        },
        "labels": list(labels),
        "confusion": confusion.tolist(),
    }


def finite(probabilities: Tensor) -> Tensor:
    """The same (texts, labels), if no value in it is NaN or infinite; a ``FloatingPointError``
    names the first text that has one."""
    numbers = probabilities.isfinite().all(-1).tolist()
    if not all(numbers):
        raise FloatingPointError(
            f"the probabilities of input {numbers.index(False) + 1} are not finite: the weights "
            "or the activations hold NaN or overflow"
        )
    return probabilities


def check_labels(names: Collection[str], labels: Collection[str]) -> None:
    """Raise a ``Mendable`` if one of the names in some data is none of a model's ``labels``."""
    if unknown := sorted(set(names) - set(labels)):
        raise Mendable(
            f"the data has labels that the model does not know: {', '.join(unknown[:UNKNOWN])}"
            f"{' ...' if len(unknown) > UNKNOWN else ''}; it knows {', '.join(labels)}"
        )
