"""Texts that a classifier has learned before, not to be forgotten while it learns others.

Replay: some of the rows of each step are of them. And elastic weight consolidation (Kirkpatrick et
al. 2017, "Overcoming catastrophic forgetting in neural networks", arXiv 1612.00796, equation 3):

    loss = mean loss + strength / 2 * sum over parameters of F * (parameter - parameter before)^2

F is the diagonal of the Fisher information of the model before, on what it had learned: the mean
over texts of (d log p(y | text) / d parameter)^2, y drawn from what the model says of the text.
Where a text may have several labels, whose loss is a mean over C of them, F is C times the mean
square of the gradient of that, so that it stays the curvature of the loss.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from addnorm.data.labelled import read_entries
from addnorm.data.rows import padded
from addnorm.data.sources import DataError
from addnorm.data.split import text_hash
from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable
from addnorm.files.register import Loaded
from addnorm.models.texts import TextFrame, text_ids
from addnorm.settings import AtResume, setting
from addnorm.tasks.labelled_texts import LabelledTexts, Text
from addnorm.tasks.targets import KINDS, Targets
from addnorm.tasks.texts import expanded
from addnorm.tasks.unlabelled import AnyText
from addnorm.temporary import evaluation_mode
from addnorm.words import plural

HEAD = "head."
"""What the names of the parameters begin with that have a row for each label."""
WRAPPERS = ("module.", "_orig_mod.")
"""What distribution and compilation put before the names of parameters."""
WITH_TEXTS = {"data": AnyText()}


@final
@dataclass(frozen=True, kw_only=True)
class Earlier:
    """The settings of what is not to be forgotten."""

    data: str = setting("", AtResume.IF_SAME)
    """Texts with labels from which the classifier of init_from has learned: its head goes on, with
    the labels that it has and those that data brings."""
    texts: int = setting(500, AtResume.ANEW, WITH_TEXTS)
    """How many of them are used, chosen by a hash of each."""
    replay: float = setting(0.25, AtResume.BY_TUNING, WITH_TEXTS)
    """The share of each step's texts that are of them."""
    anchor: float = setting(0.0, AtResume.WITH_NOTICE, WITH_TEXTS)
    """The strength of elastic weight consolidation, by which weights that matter to them stay where
    they are; 0: none. Such as 1000."""

    def __post_init__(self) -> None:
        if self.texts < 1:
            raise Mendable(f"texts must be at least 1, got {self.texts}")
        if not 0.0 <= self.replay < 1.0:
            raise Mendable(f"replay must be at least 0 and below 1, got {self.replay:g}")
        if self.anchor < 0.0:
            raise Mendable(f"anchor must not be negative, got {self.anchor:g}")


def with_earlier(texts: LabelledTexts, settings: Earlier) -> LabelledTexts:
    """The same with the texts that were learned before, none of them held out, and their labels
    among the classes. A ``DataError`` names what is wrong with them."""
    if not settings.data:
        return texts
    words = f"earlier.data={settings.data}"
    try:
        entries = read_entries(expanded("earlier.data", settings.data))
        rows = [
            (e.text, e.label_set().labels if texts.several else (e.one_label().label,))
            for e in entries
        ]
    except DataError as error:
        raise DataError(f"{words}: {error}") from None
    apart = {text for text, _ in texts.val}
    rows = [row for row in dict.fromkeys(rows) if row[0] not in apart]
    if not rows:
        raise DataError(f"{words}: all of its texts are held out")
    rows = sorted(rows, key=lambda row: text_hash(row[0]))[: settings.texts]
    classes = sorted({*texts.classes, *(name for _, names in rows for name in names)})
    places = {name: i for i, name in enumerate(classes)}
    moves = [places[name] for name in texts.classes]
    sides = [
        [Text(text, tuple(sorted(moves[i] for i in labels))) for text, labels in side]
        for side in (texts.train, texts.val)
    ]
    earlier = [Text(text, tuple(sorted(places[n] for n in names))) for text, names in rows]
    remark = f"{settings.data}: {plural(len(earlier), 'text')} learned before, not to be forgotten"
    return replace(
        texts,
        train=sides[0],
        val=sides[1],
        classes=classes,
        earlier=earlier,
        remarks=[*texts.remarks, remark],
    )


def replayed(number: int, share: float) -> tuple[bool, int]:
    """(whether the row of this number is an earlier text, how many of its kind were before it):
    earlier texts are evenly spread among the rows."""
    before = int(number * share)
    is_earlier = int((number + 1) * share) > before
    return is_earlier, before if is_earlier else number - before


def rows_by_label(
    old: Tensor, new: Tensor, labels: Sequence[str], classes: Sequence[str]
) -> Tensor:
    """``new`` (classes, ...) with the rows that ``old`` (labels, ...) has for labels of the same
    name."""
    new = new.clone()
    for i, label in enumerate(labels):
        if label in classes:
            new[classes.index(label)] = old[i].to(new)
    return new


def identity(rows: Sequence[tuple[bytes, tuple[int, ...]]]) -> str:
    """A short hash of texts in ids with their labels."""
    content = hashlib.sha256()
    for ids, labels in rows:
        content.update(ids + bytes((0xFF, *(i & 0xFF for i in labels))))
    return content.hexdigest()[:16]


# --- elastic weight consolidation -----------------------------------------------------------------


@final
class Anchor:
    """The pull of a model's parameters towards what they were.

    ``strength``: of the pull. ``fisher``, ``start``: parameter -> its importance, and what it was,
    of the same shape.
    """

    def __init__(
        self, strength: float, fisher: Mapping[str, Tensor], start: Mapping[str, Tensor]
    ) -> None:
        self.strength = strength
        self.pairs = {name: (fisher[name], start[name]) for name in fisher}

    def penalty(self, model: nn.Module) -> Tensor:
        """strength / 2 * sum of F * (parameter - parameter before)^2, in float32."""
        total: Tensor | None = None
        for name, p in model.named_parameters():
            for wrapper in WRAPPERS:
                name = name.replace(wrapper, "")
            if name not in self.pairs or not p.requires_grad:
                continue
            fisher, start = (t.to(p.device) for t in self.pairs[name])
            self.pairs[name] = fisher, start  # where the model is, from the second step on
            pull = (fisher * (p.float() - start).square()).sum()
            total = pull if total is None else total + pull
        assert total is not None
        return total * (0.5 * self.strength)


def anchor_of(
    strength: float,
    before: Loaded,
    texts: Sequence[Text],
    classes: Sequence[str],
    several: bool,
    tokenizer: Tokenizer,
    frame: TextFrame,
) -> Anchor:
    """For a model that begins as ``before`` and has ``classes``, by texts that it learned. Of a
    label that is new there is nothing to keep. ``several``: whether a text may have several."""
    labels = before.labels or ()
    targets: Targets = KINDS[several](labels)
    rows = [frame.around(text_ids(text, tokenizer)[: frame.room]) for text, _ in texts]
    fisher = fisher_of(before.model, [padded([row]) for row in rows], targets)
    start = {name: p.detach().float().clone() for name, p in before.model.named_parameters()}
    for name in fisher:
        if name.startswith(HEAD):
            shape = (len(classes), *fisher[name].shape[1:])
            for tensors in (fisher, start):
                tensors[name] = rows_by_label(tensors[name], torch.zeros(shape), labels, classes)
    return Anchor(strength, fisher, start)


def fisher_of(
    model: nn.Module, batches: Sequence[Mapping[str, Tensor]], targets: Targets
) -> dict[str, Tensor]:
    """Parameter -> the diagonal of its Fisher information, by batches of one text each."""
    generator = torch.Generator().manual_seed(0)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    with evaluation_mode(model.modules()), torch.enable_grad():
        for batch in batches:
            logits = model(batch["ids"], batch["valid"]).float()
            labels = targets.sample(targets.probabilities(logits.detach()), generator)
            loss = targets.loss(logits, labels)
            grads = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
            for name, g in zip(parameters, grads, strict=True):
                if g is not None:
                    sums[name] += g.float().square()
    factor = (len(targets.classes) if targets.several else 1) / len(batches)
    return {name: t * factor for name, t in sums.items()}
