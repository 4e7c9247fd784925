"""Texts without labels beside those that have one, so that a few labels go further.

Of each of these texts somebody says the label, and the model learns to say the same of the text
with a share of its tokens left out. With a batch of B texts with labels, and per_text * B without:

    loss = mean of CE(label, model(text))
         + weight * mean of [max p >= sure] CE(argmax p, model(text with tokens left out))
    sure = confidence * (1 - label_smoothing)

since a model that is trained with smoothing aims at no more than about 1 - label_smoothing.

p is what the model itself finds of the whole text at that step, without dropout and without a
gradient: consistency (FixMatch: Sohn et al. 2020, arXiv 2001.07685, section 2.2, and its
fixmatch.py; on texts UDA, Xie et al. 2020, arXiv 1904.12848). Or p is what a model found of it that
was trained before, the teacher: self-training (Lee 2013, "Pseudo-Label"; with noise for the
student, Xie et al. 2020, arXiv 1911.04252). Where a text may have several labels, each is judged by
itself.
"""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from addnorm.data.labelled import read_unlabelled
from addnorm.data.order import order_key, shuffled
from addnorm.data.rows import padded, part_of, thinned
from addnorm.data.sources import DataError
from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable
from addnorm.files import folders
from addnorm.models.texts import TextFrame, text_ids
from addnorm.pretrained import load, model_folder
from addnorm.progress import ProgressBar
from addnorm.settings import AtResume, SettingsError, setting
from addnorm.tasks.labelled_texts import LabelledTexts
from addnorm.tasks.targets import KINDS, Targets
from addnorm.tasks.texts import expanded
from addnorm.temporary import evaluation_mode
from addnorm.training.task import Batch
from addnorm.words import plural

FORMAT = 1  # changes whenever the same teacher would say something else of the same texts
READ_AT_ONCE = 64  # texts that the teacher reads
FILE = "probabilities.npy"
NOISED = "noised"
"""The column of a batch that is there if texts without labels are."""


@final
class AnyText:
    """Every text but the empty one, to ask for with ``in``."""

    def __contains__(self, value: object) -> bool:
        return value != ""

    def __iter__(self) -> Iterator[str]:  # in words
        return iter(["FILE"])


WITH_TEXTS = {"data": AnyText()}


@final
@dataclass(frozen=True, kw_only=True)
class Unlabelled:
    """The settings of texts without labels."""

    data: str = setting("", AtResume.IF_SAME)
    """Texts without labels: a .txt with a text a line, a .csv, .tsv or .jsonl with text, a folder.
    Those that are held out too are left out."""
    teacher: str = setting("", AtResume.IF_SAME, WITH_TEXTS)
    """The run, or a model's folder, that says their labels once, before the first step; none: the
    model itself says them at each step."""
    confidence: float = setting(0.95, AtResume.WITH_NOTICE, WITH_TEXTS)
    """A label that is less probable is not learned, where 1 is the most that label_smoothing
    leaves: the probability must be confidence * (1 - label_smoothing)."""
    weight: float = setting(1.0, AtResume.WITH_NOTICE, WITH_TEXTS)
    """How much they count beside the texts with labels, whose mean loss counts 1."""
    per_text: int = setting(3, AtResume.BY_TUNING, WITH_TEXTS)
    """How many of them there are in a step for each text with a label."""
    noise: float = setting(0.3, AtResume.WITH_NOTICE, WITH_TEXTS)
    """The mean share of their tokens left out where the label is learned."""

    def __post_init__(self) -> None:
        if not 0.0 < self.confidence <= 1.0:
            raise Mendable(f"confidence must be above 0 and at most 1, got {self.confidence:g}")
        if self.weight <= 0.0:
            raise Mendable(f"weight must be above 0, got {self.weight:g}")
        if self.per_text < 1:
            raise Mendable(f"per_text must be at least 1, got {self.per_text}")
        if not 0.0 <= self.noise <= 0.5:
            raise Mendable(f"noise must be in [0, 0.5], got {self.noise:g}")

    def sure(self, label_smoothing: float) -> float:
        """The probability that a label must have to be learned, in a training with so much
        smoothing."""
        return self.confidence * (1.0 - label_smoothing)


# --- the texts, and what a teacher says of them ---------------------------------------------------


def with_unlabelled(
    texts: LabelledTexts, settings: Unlabelled, label_smoothing: float, cache: Path
) -> LabelledTexts:
    """The same with the texts without labels that the settings name, none of them held out, each
    once; and with what the teacher says of them, if there is one, kept in ``cache``.
    ``label_smoothing``: that of the training."""
    if not settings.data:
        return texts
    words = f"unlabelled.data={settings.data}"
    try:
        every = read_unlabelled(expanded("unlabelled.data", settings.data))
    except DataError as error:
        raise DataError(f"{words}: {error}") from None
    apart = {text for text, _ in texts.val}
    unlabelled = [text for text in dict.fromkeys(every) if text not in apart]
    if not unlabelled:
        raise DataError(f"{words}: all of its {plural(len(every), 'text')} are held out")
    less = len(every) - len(unlabelled)
    remark = f"{settings.data}: {plural(len(unlabelled), 'text')} without labels" + (
        f"; {less:,} more are left out, which are held out or stand there twice" if less else ""
    )
    texts = replace(texts, unlabelled=unlabelled, remarks=[*texts.remarks, remark])
    if not settings.teacher:
        return texts
    shares = _teacher_shares(texts, settings.teacher, cache)
    verdict = _verdict(texts, settings, settings.sure(label_smoothing), shares)
    return replace(texts, shares=shares, remarks=[*texts.remarks, verdict])


def _verdict(texts: LabelledTexts, settings: Unlabelled, sure: float, shares: Tensor) -> str:
    """How many labels the teacher finds as probable as ``sure``, in a sentence; an error if
    none."""
    targets: Targets = KINDS[texts.several](texts.classes)
    labels, mask = targets.pseudo_labels(shares, sure)
    if not mask.any():
        raise SettingsError(
            f"unlabelled.teacher={settings.teacher} finds no label as probable as {sure:.3g} in "
            f"any of {plural(len(shares), 'text')}, which is unlabelled.confidence="
            f"{settings.confidence:g} of what label_smoothing leaves; the most probable has "
            f"{float(shares.max()):.3g}: lower the confidence, or train the teacher for longer"
        )
    if texts.several:
        words = f"{int(mask.sum()):,} of {mask.numel():,} answers, yes or no for each label"
    else:
        counts = Counter(texts.classes[i] for i in labels[mask].tolist())
        each = ", ".join(f"{name} {counts[name]:,}" for name in texts.classes)
        words = f"the label of {int(mask.sum()):,} of them: {each}"
    return f"{settings.teacher} is sure of {words}"


def _teacher_shares(texts: LabelledTexts, teacher: str, cache: Path) -> Tensor:
    """Probabilities (texts without labels, classes) in float32, from ``cache`` if they are there;
    so every start of a training, and every process of it, learns the same."""
    words = f"unlabelled.teacher={teacher}"
    try:
        identity = folders.identity(model_folder(teacher))
    except Mendable as error:
        raise SettingsError(f"{words}: {error}") from None
    card = json.dumps([FORMAT, identity, texts.classes, texts.unlabelled])
    folder = cache / f"teacher-{hashlib.sha256(card.encode()).hexdigest()[:16]}"
    if folder.exists():
        try:
            return _stored_shares(folder)
        except (Mendable, OSError, ValueError) as error:
            warnings.warn(f"{error}. The teacher is asked again", stacklevel=2)
    shares = _answers(texts, teacher, words)
    try:
        folders.write(folder, lambda work: np.save(work / FILE, shares))
    except OSError as error:
        if not folder.is_dir():  # else somebody else was faster
            raise DataError(f"cannot write to {cache}: {error.strerror}") from None
    return _stored_shares(folder)


def _stored_shares(folder: Path) -> Tensor:
    """What is stored there; a ``Mendable`` unless it is what was written, to the byte."""
    if not folders.verify(folder):
        raise folders.WeightsError(f"{folder / folders.CHECKSUMS} is missing")
    return torch.from_numpy(np.load(folder / FILE, allow_pickle=False))


def _answers(texts: LabelledTexts, teacher: str, words: str) -> NDArray[np.float32]:
    """What the teacher finds of each text, classes in their order here."""
    try:
        loaded = load(teacher)
        use = loaded.use()
    except Mendable as error:
        raise SettingsError(f"{words}: {error}") from None
    if "top" not in use.options:
        raise SettingsError(f"{words} is no classifier of texts")
    names = loaded.labels or ()
    if set(names) != set(texts.classes):
        raise SettingsError(
            f"{words} knows the labels {', '.join(names) or 'none'}, and the texts to learn from "
            f"have {', '.join(texts.classes)}: it must know these and no others"
        )
    rows = []
    with ProgressBar("the teacher reads", len(texts.unlabelled), patience=2.0) as bar:
        for first in range(0, len(texts.unlabelled), READ_AT_ONCE):
            part = texts.unlabelled[first : first + READ_AT_ONCE]
            try:
                answers = use.predict(part, batch_size=READ_AT_ONCE, top=len(names))
            except FloatingPointError as error:
                raise SettingsError(f"{words}: {error}") from None
            rows += [
                [answer["probabilities"][name] for name in texts.classes] for answer in answers
            ]
            bar.advance(len(part))
    return np.array(rows, np.float32)


# --- in a training --------------------------------------------------------------------------------


@final
class Companions:
    """Texts without labels as columns of a batch, ``per_text`` for each of its rows, so that they
    are divided among processes and micro-batches as the rows are; and the loss of them.

    ``settings``: those of the texts. ``sure``: how probable a label must be to be learned.
    ``texts``: where they are. ``tokenizer``: what makes ids of them. ``targets``: what labels are
    to a loss. ``identity`` is a short hash of them all, and of what a teacher finds of them.
    """

    def __init__(
        self,
        settings: Unlabelled,
        sure: float,
        texts: LabelledTexts,
        tokenizer: Tokenizer,
        targets: Targets,
    ) -> None:
        self.settings, self.sure, self.targets = settings, sure, targets
        rows = [text_ids(text, tokenizer) for text in texts.unlabelled]
        self.identity = _identity(rows, texts.shares)
        self.labels: Tensor | None = None  # by a teacher, of each row; and which of them count
        self.mask: Tensor | None = None
        if texts.shares is not None:
            labels, mask = targets.pseudo_labels(texts.shares, sure)
            some = mask.flatten(1).any(1) if mask.dim() > 1 else mask
            self.labels, self.mask = labels[some], mask[some]
            rows = [row for row, counts in zip(rows, some.tolist(), strict=True) if counts]
        self.rows: Sequence[NDArray[np.int64]] = rows
        self.longest = max(len(row) for row in rows)

    def columns(self, rows: range, seed: int, frame: TextFrame) -> Batch:
        """Those beside the rows of these numbers, counted from the first step: ``plain`` and
        ``noised`` (rows, per_text, T) with their ``_valid``, of the same part of each text; with a
        teacher ``pseudo_label`` and ``mask`` (rows, per_text, ...) instead of ``plain``."""
        per_text = self.settings.per_text
        numbers = np.arange(rows.start * per_text, rows.stop * per_text)
        places = self._places(numbers, seed)
        plain, noised = [], []
        for number, place in zip(numbers.tolist(), places.tolist(), strict=True):
            rng = np.random.default_rng([seed, number, 1])  # a stream beside that of the labelled
            part = part_of(self.rows[place], frame.room, rng)
            plain.append(frame.around(part))
            noised.append(frame.around(thinned(part, self.settings.noise, rng)))
        columns = {NOISED: noised} if self.labels is not None else {"plain": plain, NOISED: noised}
        batch = {}
        for name, parts in columns.items():
            both = padded(parts)
            batch[name], batch[f"{name}_valid"] = both["ids"], both["valid"]
        if self.labels is not None and self.mask is not None:
            batch["pseudo_label"], batch["mask"] = self.labels[places], self.mask[places]
        return {name: t.unflatten(0, (len(rows), per_text)) for name, t in batch.items()}

    def _places(self, numbers: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """Which texts come at these numbers: in each epoch all of them, in an order of its own."""
        n, places = len(self.rows), np.empty_like(numbers)
        for epoch in np.unique(numbers // n).tolist():
            now = numbers // n == epoch
            key = order_key(f"texts without labels, seed {seed}, epoch {epoch}")
            places[now] = shuffled(numbers[now] % n, n, key)
        return places

    def pseudo_labels(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(targets, mask) of all of a batch, flat: the teacher's, or what the model says."""
        if "pseudo_label" in batch:
            return batch["pseudo_label"].flatten(0, 1), batch["mask"].flatten(0, 1)
        with evaluation_mode(model.modules()), torch.no_grad():
            logits = model(batch["plain"].flatten(0, 1), batch["plain_valid"].flatten(0, 1))
        # else autocast hands its copies of the weights, which know no gradient, to the next forward
        torch.clear_autocast_cache()
        p = self.targets.probabilities(logits.float())
        return self.targets.pseudo_labels(p, self.sure)

    def loss(self, logits: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, share that counts), both as sums over the rows of the batch with labels."""
        share = 1.0 / self.settings.per_text
        loss = self.targets.loss(logits, labels, mask=mask) * (self.settings.weight * share)
        counts = mask.float().flatten(1).mean(1) if mask.dim() > 1 else mask.float()
        return loss, counts.sum() * share


def _identity(rows: Sequence[NDArray[np.int64]], shares: Tensor | None) -> str:
    """A short hash of texts in ids, and of a teacher's probabilities."""
    content = hashlib.sha256()
    for row in rows:
        content.update(row.tobytes() + b"\xff")
    content.update(b"" if shares is None else shares.numpy().tobytes())
    return content.hexdigest()[:16]


def beside(batch: Batch) -> tuple[Tensor, Tensor]:
    """(ids, valid) of the texts with labels, and behind them of those without, for one forward."""
    ids, valid = batch["ids"], batch["valid"]
    more, more_valid = batch[NOISED].flatten(0, 1), batch[f"{NOISED}_valid"].flatten(0, 1)
    length = max(ids.shape[1], more.shape[1])
    both = [
        torch.cat([F.pad(t, (0, length - t.shape[1])) for t in pair])
        for pair in ((ids, more), (valid, more_valid))
    ]
    return both[0], both[1]
