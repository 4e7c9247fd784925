"""Pictures of what a classifier gets wrong: what is taken for what, and the worst errors read out.

They are tables of names and numbers, as JSON has them, for ``addnorm.pages.run_pictures``.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from addnorm.tasks.examples import shortened
from addnorm.tasks.labelled_texts import Text
from addnorm.tasks.targets import Targets
from addnorm.uses.label_sets import f1_by_label
from addnorm.words import plural

WORST = 10  # errors that are read out
SIDE = 12  # labels up to which a matrix is read at a glance
PAIRS = 20  # of labels, where there are more


def confusion(
    targets: Targets, texts: Sequence[Text], p: Tensor, noun: str = "text"
) -> list[dict[str, Any]]:
    """What is taken for what, where each has one label: a matrix or a table of the most frequent
    confusions, as ``pages.run_pictures`` reads it. ``texts``: what is held out, of which the labels
    count; ``p``: probabilities (texts, classes); ``noun``: what they are."""
    answers = [targets.answer(row) for row in p.tolist()]
    counts = Counter((text.labels, answer) for text, answer in zip(texts, answers, strict=True))
    few = len(targets.classes) <= SIDE
    return _matrix(targets, counts, noun) if few else _pairs(targets, counts, noun)


def pictures(targets: Targets, texts: Sequence[Text], p: Tensor) -> list[dict[str, Any]]:
    """Of held-out texts and the probabilities (texts, classes) that a model gives them: a matrix or
    a table of confusions, or where a text may have several labels a table of these; and the worst
    errors, if there are any. Each is an object as ``pages.run_pictures`` reads it."""
    answers = [targets.answer(row) for row in p.tolist()]
    if targets.several:
        return [_labels(targets, texts, answers), *_worst(targets, texts, p, answers)]
    return [*confusion(targets, texts, p), *_worst(targets, texts, p, answers)]


Counts = Counter[tuple[tuple[int, ...], tuple[int, ...]]]
"""(right labels, labels that are said) of a text -> how many texts."""


def _matrix(targets: Targets, counts: Counts, noun: str) -> list[dict[str, Any]]:
    """Every label against every other, where each text has one: for few of them. One picture, in
    a list as that of ``_pairs``."""
    places = range(len(targets.classes))
    right = sum(n for (label, answer), n in counts.items() if label == answer)
    return [
        {
            "kind": "matrix",
            "title": "What is taken for what",
            "caption": f"{right:,} of {plural(counts.total(), f'held-out {noun}')} right. A row "
            "for the label that is right, a column for the one that the model says; the stronger "
            "the colour, the larger the share of the row.",
            "corner": "right, said",
            "rows": targets.classes,
            "columns": targets.classes,
            "values": [[counts[(i,), (j,)] for j in places] for i in places],
        }
    ]


def _pairs(targets: Targets, counts: Counts, noun: str) -> list[dict[str, Any]]:
    """The PAIRS most frequent confusions, as one table, where the matrix would be too large;
    nothing if all is right."""
    totals: Counter[tuple[int, ...]] = Counter()
    for (label, _), n in counts.items():
        totals[label] += n
    wrong = [(label, answer, n) for (label, answer), n in counts.items() if label != answer]
    wrong.sort(key=lambda row: (-row[2], row[:2]))
    if not wrong:
        return []
    total = sum(n for *_, n in wrong)
    return [
        {
            "kind": "table",
            "title": "What is taken for what",
            "caption": f"{total:,} of {plural(counts.total(), f'held-out {noun}')} wrong; "
            f"the {PAIRS} most frequent confusions.",
            "heads": ["right", "said", f"{noun}s", "of"],
            "rows": [
                [targets.names(label), targets.names(answer), n, totals[label]]
                for label, answer, n in wrong[:PAIRS]
            ],
        }
    ]


def _labels(
    targets: Targets, texts: Sequence[Text], answers: Sequence[tuple[int, ...]]
) -> dict[str, Any]:
    """Of each label how often it is missed and how often said too much, where a text may have
    several; ``answers`` are the labels said of each text."""
    answer, right = (
        targets.tensor(labels) > 0.5 for labels in (answers, [text.labels for text in texts])
    )
    figures = zip(
        targets.classes,
        right.sum(0).tolist(),
        (right & ~answer).sum(0).tolist(),
        (answer & ~right).sum(0).tolist(),
        f1_by_label(answer, right).tolist(),
        strict=True,
    )
    return {
        "kind": "table",
        "title": "Each label",
        "caption": f"Of {plural(len(texts), 'held-out text')}: how many have the label, how "
        "many of these do not get it, how many get it and do not have it.",
        "heads": ["label", "texts", "missed", "too many", "F1"],
        "rows": [[name, n, missed, more, round(f1, 4)] for name, n, missed, more, f1 in figures],
    }


def _worst(
    targets: Targets, texts: Sequence[Text], p: Tensor, answers: Sequence[tuple[int, ...]]
) -> list[dict[str, Any]]:
    """The errors of which the model is surest, as one table; nothing if there are none. How sure:
    by the probability of the label that it says; of several labels also by how little it gives a
    right one."""
    errors = []
    for text, row, answer in zip(texts, p.tolist(), answers, strict=True):
        if text.labels != answer:
            # of several labels those that are missed, or said and not right; else the one said
            odd = {*text.labels} ^ {*answer} if targets.several else answer
            sureness, place = max((abs(row[i] - (i in text.labels)), i) for i in odd)
            errors.append((sureness, place, text, row, answer))
    if not errors:
        return []
    errors.sort(key=lambda error: -error[0])
    rows = []
    for _, place, text, row, answer in errors[:WORST]:
        names = [targets.names(text.labels), targets.names(answer)]
        rows.append([shortened(text.text), *names, f"{targets.classes[place]} {row[place]:.1%}"])
    return [
        {
            "kind": "table",
            "title": "The worst errors",
            "caption": f"{plural(len(errors), 'held-out text')} wrong, those first of which the "
            "model is surest.",
            "heads": ["text", "right", "said", "probability"],
            "rows": rows,
        }
    ]
