"""Texts with labels for a training: read, divided into what is learned from and what is held out,
and looked at for what a user should know before he trains on them.

A text is held out by a hash of it alone, or because it stands in a file of its own for that. A text
that comes twice stays on one side, and adding texts moves no other.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, final

from torch import Tensor

from addnorm import reading
from addnorm.data.labelled import FORMATS, SEPARATOR, Entry, class_folders, read_entries
from addnorm.data.sources import DataError
from addnorm.data.split import HASHES, text_hash
from addnorm.words import a_few, plural

Several = Literal["auto", "one", "several"]


class Text(NamedTuple):
    """A text, and the numbers of its labels, in rising order."""

    text: str
    labels: tuple[int, ...]


@final
@dataclass(frozen=True)
class LabelledTexts:
    """What there is to learn from, and to measure on."""

    train: Sequence[Text]
    val: Sequence[Text]
    classes: Sequence[str]
    """The labels by their numbers."""
    several: bool
    """Whether a text may have several labels, or none; else each has one."""
    remarks: Sequence[str] = field(default=())
    """What is odd about the texts, in sentences."""
    unlabelled: Sequence[str] = ()
    """Texts without labels to learn from too, each once, none of them held out."""
    shares: Tensor | None = None
    """(texts without labels, classes): how probable a teacher finds each label of each of them."""

    earlier: Sequence[Text] = ()
    """Texts that the model has learned before, not to be forgotten."""

    def content(self) -> list[str]:
        """All texts that may be learned from, with labels and without."""
        return [*(row.text for row in self.train), *self.unlabelled]


@final
@dataclass(frozen=True)
class LabelledRow:
    """A text, or what stands for something else, with its labels by name, and where it stands."""

    text: str
    labels: tuple[str, ...]
    where: str


def read_texts(
    data: Path, val_data: Path | None, val_fraction: float, labels: Several = "auto"
) -> LabelledTexts:
    """The texts of ``data``, the share ``val_fraction`` of them held out; or all to learn from, if
    those to hold out are in ``val_data``.

    ``labels``: whether a text has one or several; auto: several, if there is a list of them. A
    ``DataError`` where they cannot be read, or not be learned or measured.
    """
    entries = _entries(data)
    others = [] if val_data is None else _entries(val_data)
    several = labels == "several" or (
        labels == "auto" and any(isinstance(e.label, list) for e in (*entries, *others))
    )
    rows, apart = (_rows(part, several) for part in (entries, others))
    classes = sorted({name for row in rows for name in row.labels})
    check_labels(data, rows, classes)
    remarks = _remarks(entries, [*rows, *apart], several)
    if val_data is None:
        train, val = divided(data, rows, val_fraction)
    else:
        train, val = rows, apart
        check_known(apart, classes, data)
        learned = {row.text for row in train}
        if common := sum(row.text in learned for row in val):
            remarks.append(
                f"{plural(common, 'text')} of {val_data} stand in {data} too: what is measured on "
                "them is what was learned by heart"
            )
    remarks += unmeasured(train, val, classes)
    places = {name: i for i, name in enumerate(classes)}
    sides = [
        [Text(row.text, tuple(sorted(places[name] for name in row.labels))) for row in side]
        for side in (train, val)
    ]
    return LabelledTexts(sides[0], sides[1], classes, several, remarks)


def _entries(data: Path) -> list[Entry]:
    """The texts of a file or folder, with their labels as they stand there. A folder needs two
    classes here, which ``read_entries`` does not ask for: there is nothing to learn from one."""
    if not data.exists():
        raise DataError(f"{data} is not a folder or file: give {FORMATS}")
    if data.is_dir():
        with reading.system_errors(data, DataError):
            names = class_folders(data)
        if len(names) < 2:
            raise DataError(
                f"{data} has {len(names)} sub-folder(s): there must be one for each of at least "
                "two classes"
            )
    return read_entries(data)


def _rows(entries: Iterable[Entry], several: bool) -> list[LabelledRow]:
    """The entries with their labels as names: with ``several`` as many as there are, else exactly
    one; a ``DataError`` names the entry in which it is otherwise."""
    if several:
        return [LabelledRow(e.text, e.label_set().labels, e.where) for e in entries]
    return [LabelledRow(e.text, (e.one_label().label,), e.where) for e in entries]


def check_labels(
    data: Path, rows: Sequence[LabelledRow], classes: Sequence[str], noun: str = "text"
) -> None:
    """Raise a ``DataError`` if all rows have the same labels; ``noun``: what they are."""
    if len({frozenset(row.labels) for row in rows}) == 1:
        words = ", ".join(classes) or "none"
        raise DataError(
            f"{data} has nothing to tell apart: of all {noun}s, {len(rows)}, the label is {words}"
        )


def check_known(
    rows: Iterable[LabelledRow], classes: Sequence[str], data: Path, noun: str = "text"
) -> None:
    """Raise a ``DataError`` if one of the held-out ``rows`` has a label that is none of
    ``classes``, which no row of ``data``, all of which are learned from, has. ``noun``: what the
    rows are."""
    names = set(classes)
    for row in rows:
        if unknown := [name for name in row.labels if name not in names]:
            raise DataError(
                f"{row.where}: no {noun} in {data} has the label {unknown[0]!r}, so that it cannot "
                f"be learned; there are {a_few(classes, 5)}"
            )


def divided(
    data: Path, rows: Sequence[LabelledRow], val_fraction: float, noun: str = "text"
) -> tuple[list[LabelledRow], list[LabelledRow]]:
    """(to learn from, held out), in their order, by the hash of each text; but of every label there
    is a text to learn from: where all would be held out, the one with the greatest hash is not. A
    ``DataError`` where a side is empty; ``noun``: what the rows are."""
    hashes = {row.text: text_hash(row.text) for row in rows}
    apart = {text for text, number in hashes.items() if number / HASHES < val_fraction}
    learned = {name for row in rows if row.text not in apart for name in row.labels}
    only: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for name in row.labels:
            if name not in learned:
                only[name].append(row.text)
    apart -= {max(texts, key=hashes.__getitem__) for texts in only.values()}
    train, val = ([row for row in rows if (row.text in apart) is side] for side in (False, True))
    for part, what in ((train, "learn from"), (val, "hold out")):
        if not part:
            raise DataError(
                f"{data} has too few {noun}s: with val_fraction={val_fraction:g} none is left to "
                f"{what}"
            )
    return train, val


def _remarks(entries: Sequence[Entry], rows: Sequence[LabelledRow], several: bool) -> list[str]:
    """What is odd about the texts, in sentences: empty ones, the same text with different labels,
    and labels of a table that look like several in one. ``entries`` are those that are learned
    from, ``rows`` all, the held-out ones too."""
    remarks = []
    if empty := [row.where for row in rows if not row.text.strip()]:
        remarks.append(
            f"{plural(len(empty), 'text')} without a word, the first in {empty[0]}: it is kept, "
            "and the model learns what to say of an empty text"
        )
    labels: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for row in rows:
        labels[row.text].add(row.labels)
    if unclear := [text for text, of_it in labels.items() if len(of_it) > 1]:
        where = next(row.where for row in rows if row.text == unclear[0])
        remarks.append(
            f"{plural(len(unclear), 'text')} with different labels in different places, one of "
            f"them in {where}"
        )
    joined = [e for e in entries if e.table and SEPARATOR in str(e.label)]
    if joined and not several:
        remarks.append(
            f"{plural(len(joined), 'label')} with a {SEPARATOR} in it, the first in "
            f"{joined[0].where}: if they are several labels of a text, say labels=several"
        )
    return remarks


def unmeasured(
    train: Iterable[LabelledRow],
    val: Iterable[LabelledRow],
    classes: Sequence[str],
    noun: str = "text",
) -> list[str]:
    """A sentence on the labels that no held-out row has; nothing if there are none. ``noun``: what
    the rows are."""
    counts = Counter(name for row in train for name in row.labels)
    measured = {name for row in val for name in row.labels}
    rare = [f"{name} ({counts[name]})" for name in classes if name not in measured]
    if not rare:
        return []
    return [
        f"no held-out {noun} has the label {a_few(rare, 5)}, so that nobody will know how well it "
        f"is learned; in brackets, how many {noun}s there are to learn it from"
    ]
