"""Classifying texts: which label a text has, or which labels."""

import hashlib
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from addnorm.adapt import APART, Adapt
from addnorm.data.labelled import FORMATS
from addnorm.data.rows import WINDOWS, padded, part_of, thinned
from addnorm.data.sources import DataError, Texts
from addnorm.data.tokenizer import Tokenizer
from addnorm.models.classifier import TRANSFORMER, ClassifierConfig
from addnorm.models.texts import text_ids
from addnorm.settings import (
    AT_RESUME,
    HIDDEN,
    INSIDE,
    NEEDS,
    AtResume,
    SettingsError,
    check_effect,
    setting,
)
from addnorm.tasks import mistakes
from addnorm.tasks.beginnings import FROM_NOTHING, OF_ADAPTER, check_adapter, with_clock
from addnorm.tasks.bodies import Body, OwnEncoder, Pretrained
from addnorm.tasks.earlier import Anchor, Earlier, anchor_of, identity, replayed, with_earlier
from addnorm.tasks.labelled_texts import LabelledTexts, Several, Text, read_texts
from addnorm.tasks.targets import KINDS, Targets
from addnorm.tasks.texts import check, chosen, expanded, refuse_muon
from addnorm.tasks.unlabelled import NOISED, Companions, Unlabelled, beside, with_unlabelled
from addnorm.temporary import evaluation_mode
from addnorm.training.config import NOTHING, TaskSettings, register
from addnorm.training.loop_settings import LoopSettings
from addnorm.training.memory import MODULES, Needs
from addnorm.training.parallel import here
from addnorm.training.task import Batch, Task
from addnorm.words import plural

EVAL_ROWS = 64  # windows that go through the model at once in an evaluation
SOURCES = {"content": ["data", "val_data"], "classes": ["data"], "tokenizer": ["tokenizer"]}
SOURCES |= {"rows_per_step": ["rows_per_step"], "start": ["init_from"], "model": ["init_from"]}
SOURCES |= {"earlier": ["earlier.data", "tokenizer"]}
SOURCES |= {"unlabelled": ["unlabelled.data", "unlabelled.teacher", "tokenizer"]}
"""Fact of a task -> the settings that it comes from."""
BY_HEART: dict[str, Any] = {"dropout": 0.0, "token_dropout": 0.0, "label_smoothing": 0.0}
BY_HEART |= {"unlabelled.data": "", "earlier.data": ""}


@dataclass(frozen=True, kw_only=True)
class RowSettings(TaskSettings, ABC):
    """The settings of a training on texts with labels, whatever reads the texts, apart from the
    loop's."""

    data: str = setting("", AtResume.IF_SAME)
    """Texts with labels: a folder with one sub-folder of texts for each class, a .csv or .tsv with
    the columns text and label, or a .jsonl with these keys."""
    val_data: str = setting("", AtResume.IF_SAME)
    """Texts with labels to hold out, in one of these formats; by itself a share of data."""
    labels: Several = setting("auto", AtResume.ANEW)
    """Whether a text has one label or several (in JSON a list, in a table a|b); auto: several, if
    there is a list."""
    init_from: str | None = setting(None, AtResume.IF_SAME)
    """A folder or hub id of a pretrained model, to which a head is added."""
    tokenizer: str = setting("bytes", AtResume.IF_SAME, FROM_NOTHING)
    """What makes tokens of the texts."""
    val_fraction: float = setting(0.1, AtResume.ANEW, {"val_data": ("",)})
    """How many of the texts are held out, chosen by a hash of each."""
    rows_per_step: int = setting(32, AtResume.BY_TUNING)
    """Texts in one optimizer step, over all micro-batches and processes."""
    dropout: float = setting(0.1, AtResume.WITH_NOTICE)
    """In embeddings and branches."""
    token_dropout: float = setting(0.3, AtResume.WITH_NOTICE)
    """The mean share of a text's tokens left out, others each time: few texts go further."""
    label_smoothing: float = setting(0.1, AtResume.WITH_NOTICE)
    """The share of a target's weight that goes to all classes alike."""
    unlabelled: Unlabelled = field(default_factory=Unlabelled)
    """Texts without labels, by which few labels go further."""
    earlier: Earlier = field(default_factory=Earlier)
    """What the classifier of init_from has learned before, and shall not forget."""
    cache: Path = setting(Path("~/.cache/addnorm/data"), AtResume.FREELY)
    """Where learned tokenizers, and what a teacher says, are kept."""

    def by_heart(self) -> Mapping[str, Any]:
        """Whole texts, no dropout, and targets that can be met."""
        return BY_HEART

    def sources(self, fact: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
        """The setting behind a fact."""
        return SOURCES.get(fact, [])


@final
@register
@dataclass(frozen=True, kw_only=True)
class ClassifySettings(RowSettings):
    """The settings of a classifier's training, apart from the loop's."""

    name = "classify"
    init_from: str | None = setting(None, AtResume.IF_SAME)
    """A folder or hub id of a pretrained model, such as a GPT-2, to which a head is added; none:
    a model of our own from scratch."""
    tokenizer: str = setting("bytes", AtResume.IF_SAME, FROM_NOTHING)
    """bytes, bpe:SIZE, wordpiece:SIZE or wordpiece-cased:SIZE (learned from the training texts), or
    a folder or hub id with one."""
    model: ClassifierConfig = field(
        default_factory=lambda: ClassifierConfig(vocab_size=1, classes=1),
        metadata={
            HIDDEN: ("vocab_size", "classes", "several", "dropout"),
            INSIDE: {name: ({"body": (TRANSFORMER,)},) for name in ("n_heads", "scheme")},
            AT_RESUME: AtResume.ANEW,
            NEEDS: (FROM_NOTHING,),
        },
    )
    adapt: Adapt = field(
        default_factory=Adapt,
        metadata={**OF_ADAPTER, HIDDEN: ("length", "positions", "text", "width")},
    )
    """What is trained, beside the head, instead of all of the model of init_from: lora, adalora."""

    def __post_init__(self) -> None:
        check_effect(self)
        check(self.tokenizer, self.val_fraction, self.dropout)
        check_rows(self)
        check_adapter(self.adapt, self.init_from)
        if self.adapt.kind in APART:
            raise SettingsError(
                f"adapt.kind={self.adapt.kind} is for language models: a classifier is adapted by "
                "lora or adalora"
            )
        if self.earlier.anchor and self.adapt.kind != "none":
            raise SettingsError(
                "earlier.anchor has no effect beside an adapter, which leaves all weights as they "
                "are: leave out one of them"
            )

    def beside(self, loop: LoopSettings) -> "ClassifySettings":
        """AdaLoRA's ranks fall by the clock of the run; a ``SettingsError`` for Muon without a
        Transformer's matrices, and for an anchor of divided weights."""
        check_anchor(self.earlier, loop)
        if self.init_from is None and self.model.body != TRANSFORMER:
            refuse_muon(loop)
        return with_clock(self, self.adapt, loop)

    def build(self, choices: Mapping[str, Any] = NOTHING) -> "ClassifyTask":
        """Read and tokenize the texts, and make the task of them; all ``choices`` count."""
        texts = texts_of(self)
        if self.init_from is not None:
            classes = len(texts.classes)
            names = texts.classes if texts.earlier else None
            body = Pretrained(
                self.init_from, classes, texts.several, self.dropout, self.adapt, names
            )
            return ClassifyTask(self, body, body.tokenizer, texts)
        tokenizer = chosen(
            self.tokenizer,
            texts=texts.content,
            decides=lambda: [Texts(texts.content()).identity()],
            cache=expanded("cache", self.cache),
        )
        config = replace(
            self.model,
            vocab_size=tokenizer.vocab_size,
            classes=len(texts.classes),
            several=texts.several,
            dropout=self.dropout,
        )
        return ClassifyTask(self, OwnEncoder(config), tokenizer, texts)


def check_rows(settings: RowSettings) -> None:
    """Raise a ``SettingsError`` if token_dropout, label_smoothing or rows_per_step makes no
    sense."""
    # a mean: a text loses up to twice that share of its tokens, which must not be above 1
    if not 0.0 <= settings.token_dropout <= 0.5:
        raise SettingsError(f"token_dropout must be in [0, 0.5], got {settings.token_dropout:g}")
    if not 0.0 <= settings.label_smoothing < 1.0:
        raise SettingsError(f"label_smoothing must be in [0, 1), got {settings.label_smoothing:g}")
    if settings.rows_per_step < 1:
        raise SettingsError(f"rows_per_step must be at least 1, got {settings.rows_per_step}")
    if settings.earlier.data and settings.init_from is None:
        raise SettingsError(
            f"earlier.data={settings.earlier.data} is what a classifier has learned before: say "
            "which with init_from"
        )


def check_anchor(earlier: Earlier, loop: LoopSettings) -> None:
    """Raise a ``SettingsError`` if the weights that are to stay where they are will be divided."""
    if earlier.anchor and loop.parallel == "fsdp":
        raise SettingsError("earlier.anchor compares whole weights: parallel=ddp, not fsdp")


def texts_of(settings: RowSettings) -> LabelledTexts:
    """The texts that ``data`` and ``val_data`` name, read and divided; a ``DataError`` begins with
    these settings."""
    if not settings.data:
        raise SettingsError(f"data is not set: {FORMATS}")
    held_out = expanded("val_data", settings.val_data) if settings.val_data else None
    words = f"data={settings.data}"
    words += f", val_data={settings.val_data}" if settings.val_data else ""
    try:
        data = expanded("data", settings.data)
        texts = read_texts(data, held_out, settings.val_fraction, settings.labels)
    except DataError as error:
        raise DataError(f"{words}: {error}") from None
    texts = with_earlier(texts, settings.earlier)
    more, cache = settings.unlabelled, expanded("cache", settings.cache)
    return with_unlabelled(texts, more, settings.label_smoothing, cache)


class Row(NamedTuple):
    """A text's ids, and the numbers of its labels."""

    ids: NDArray[np.int64]
    labels: tuple[int, ...]


@final
class ClassifyTask(Task):
    """Which labels a text has.

    ``settings``: those of the training. ``body``: what reads the texts. ``tokenizer``: what makes
    ids of them. ``texts``: what there is to learn from, and what is held out.
    """

    noun = "A classifier of texts"
    unit = "texts"
    commands = MappingProxyType(
        {
            "Ask it": 'addnorm predict {model} "What a fine day."',
            "How good it is on other texts": "addnorm eval {model} LABELLED.csv",
        }
    )

    def __init__(
        self, settings: RowSettings, body: Body, tokenizer: Tokenizer, texts: LabelledTexts
    ) -> None:
        self.settings, self.body, self.tokenizer, self.texts = settings, body, tokenizer, texts
        self.targets: Targets = KINDS[texts.several](texts.classes)
        self.best = self.targets.best
        sides = {"train": texts.train, "val": texts.val}
        self.splits = {name: _rows(side, tokenizer) for name, side in sides.items()}
        self.companions: Companions | None = None
        if texts.unlabelled:
            more = settings.unlabelled
            sure = more.sure(settings.label_smoothing)
            self.companions = Companions(more, sure, texts, tokenizer, self.targets)
        self.earlier = _rows(texts.earlier, tokenizer)
        self.anchor: Anchor | None = None
        if settings.earlier.anchor and body.before is not None:
            about = texts.earlier, texts.classes, texts.several, tokenizer, body.frame
            self.anchor = anchor_of(settings.earlier.anchor, body.before, *about)
        self._shares: Tensor | None = None  # probabilities (texts, classes) of the last evaluation
        self._orders: dict[tuple[int, int, int], NDArray[np.int64]] = {}

    def needs(self, micro_rows: int | None, processes: int) -> Needs:
        """Weights, the ids of a step, and of each micro-batch what every layer keeps."""
        c, size = self.body.config, self.settings.rows_per_step
        parameters, trained = self.body.counts()
        every = (*self.splits.values(), self.earlier)
        longest = max(len(row.ids) for rows in every for row in rows)
        texts = 1  # that go through the model for each row
        if self.companions is not None:
            longest = max(longest, self.companions.longest)
            texts += self.settings.unlabelled.per_text
        longest = min(longest, self.body.frame.context_length)
        own = -(-size // processes)
        batch = own * texts * longest * 9  # bytes: an id of 8, valid of 1
        # in float32, and two of them a layer at the least: one after attention, one after the MLP
        batch += min(micro_rows or own, own) * texts * longest * 4 * 2 * c.n_layers * c.dim
        because = f"{self.body.because()}, rows_per_step={size}, micro_rows={micro_rows}"
        return Needs(parameters, trained, c.n_layers * MODULES, batch, because)

    def model(self) -> nn.Module:
        """A new classifier, as the settings say."""
        return self.body.model()

    def batch(self, split: str, seed: int, step: int, rank: int, world: int) -> Batch:
        """Rows rank, rank + world, ... of the step's, in an order of each epoch's own.

        Of a text to learn from there is a part of the context's length from anywhere in it, less a
        share of its tokens: both are drawn from the row's number.
        """
        size, share = self.settings.rows_per_step, 0.0
        if split == "train" and self.earlier:
            share = self.settings.earlier.replay
        room, parts, labels = self.body.frame.room, [], []
        for n in range(step * size, (step + 1) * size):
            is_earlier, i = replayed(n, share)
            rows = self.earlier if is_earlier else self.splits[split]
            row = rows[self._order(len(rows), seed, i // len(rows))[i % len(rows)]]
            labels.append(row.labels)
            ids = row.ids[:room]
            if split == "train":
                ids = self._varied(row.ids, np.random.default_rng([seed, n]))
            parts.append(self.body.frame.around(ids))
        # filled up to the longest of the step, so that a row is the same on any number of processes
        batch = {**padded(parts), "label": self.targets.tensor(labels)}
        if split == "train" and self.companions is not None:
            numbers = range(step * size, (step + 1) * size)
            batch |= self.companions.columns(numbers, seed, self.body.frame)
        return {name: t[rank::world] for name, t in batch.items()}

    def _varied(self, ids: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """A part of a text that the model can read, from anywhere in it, less a share of its tokens
        which is ``token_dropout`` in the mean."""
        part = part_of(ids, self.body.frame.room, rng)
        return thinned(part, self.settings.token_dropout, rng)

    def row(self, split: str, seed: int, step: int) -> Batch:
        """One, as of a process among as many as there are rows, with its label alone."""
        batch = self.batch(split, seed, step, 0, self.settings.rows_per_step)
        return {name: batch[name] for name in ("ids", "valid", "label")}

    def _order(self, n: int, seed: int, epoch: int) -> NDArray[np.int64]:
        """The numbers of ``n`` rows as they come in an epoch. They are kept for the steps to come,
        and those of epochs before the last one thrown away."""
        key = n, seed, epoch
        if key not in self._orders:
            self._orders = {k: v for k, v in self._orders.items() if k[2] >= epoch - 1}
            self._orders[key] = np.random.default_rng([seed, epoch]).permutation(n)
        return self._orders[key]

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Summed over texts with labels, whose count divides what those without add;
        ``accuracy`` counts those whose labels it finds, ``sure`` is of those without the share
        whose label is learned."""
        labels, rows, companions = batch["label"], len(batch["ids"]), self.companions
        if companions is None or NOISED not in batch:
            logits = model(batch["ids"], batch["valid"]).float()
            more = None
        else:
            pseudo_labels, mask = companions.pseudo_labels(model, batch)
            logits = model(*beside(batch)).float()
            more = companions.loss(logits[rows:], pseudo_labels, mask)
        loss = self.targets.loss(logits[:rows], labels, self.settings.label_smoothing)
        parts = {"accuracy": self.targets.right(logits[:rows], labels)}
        if more is not None:
            loss, parts["sure"] = loss + more[0], more[1]
        if self.anchor is not None:  # for each text once, so that of the mean it is added once
            parts["anchor"] = self.anchor.penalty(model) * rows
            loss = loss + parts["anchor"]
        return loss, torch.tensor(rows, device=logits.device), parts

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """On all that was held out, each text by the mean over its windows. The probabilities are
        kept, since ``pictures`` shows what the last evaluation found."""
        device = next(model.parameters()).device
        world, rows = here(device), self.splits["val"]
        parts = [
            (i, part) for i, row in enumerate(rows) for part in self.body.frame.windows(row.ids)
        ]
        sums = torch.zeros(len(rows), len(self.targets.classes), dtype=torch.float64)
        step = EVAL_ROWS * world.size
        with evaluation_mode(model.modules()), torch.no_grad():
            for first in range(0, len(parts), step):
                # A process without a row computes one all the same: a sharded model needs them all.
                mine = parts[first : first + step][world.rank :: world.size]
                batch = padded([part for _, part in mine or parts[:1]])
                logits = model(batch["ids"].to(device), batch["valid"].to(device))
                if mine:
                    which = torch.tensor([i for i, _ in mine])
                    sums.index_add_(0, which, self.targets.probabilities(logits.double()).cpu())
        windows = torch.tensor([i for i, _ in parts]).bincount(minlength=len(rows))
        p = self.targets.mean(world.total(sums), windows)
        self._shares = p
        return self.targets.metrics(p, [row.labels for row in rows])

    def pictures(self) -> list[dict[str, Any]]:
        """What is taken for what, and the worst errors of the last ``evaluate``; nothing before."""
        if self._shares is None:
            return []
        return mistakes.pictures(self.targets, self.texts.val, self._shares)

    def save(self, model: nn.Module, folder: Path) -> None:
        """For ``addnorm.load`` and ``addnorm predict``."""
        self.body.save(model, folder, self.tokenizer, self.targets.classes)

    def facts(self) -> dict[str, Any]:
        """The texts, the classes, the tokenizer and what the model is."""
        content = hashlib.sha256()
        for name in ("train", "val"):
            for row in self.splits[name]:
                # 0xFF: the last byte of an id is never that, so that labels begin where ids end
                content.update(row.ids.tobytes() + bytes((0xFF, *(i & 0xFF for i in row.labels))))
        return {
            "content": content.hexdigest()[:16],
            "classes": self.targets.classes,
            "tokenizer": self.tokenizer.identity,
            "rows_per_step": self.settings.rows_per_step,
            "unlabelled": "" if self.companions is None else self.companions.identity,
            "earlier": self._earlier_identity(),
            **self.body.facts(),
        }

    def _earlier_identity(self) -> str:
        """A short hash of what was learned before; "" if nothing was."""
        rows = [(row.ids.tobytes(), row.labels) for row in self.earlier]
        return identity(rows) if rows else ""

    def introduction(self) -> list[str]:
        """The data and the model."""
        c, (parameters, trained) = self.body.config, self.body.counts()
        train, val = len(self.texts.train), len(self.texts.val)
        return [
            f"{self.settings.data}: {len(self.targets.classes)} classes, {train:,} texts to learn "
            f"from, {val:,} held out; {self.targets.without_a_model(self.texts.val)}",
            *self.texts.remarks,
            *self._longer(),
            *([] if trained == parameters else [f"only {trained:,} parameters are trained"]),
            f"model: {parameters:,} parameters, {self.body.design()}, {c.n_layers} layers of width "
            f"{c.dim}, {self.body.frame.room} tokens at a time",
        ]

    def _longer(self) -> list[str]:
        """What becomes of texts that are longer than the model reads at once, if there are some."""
        room = self.body.frame.room
        count = sum(len(row.ids) > room for rows in self.splits.values() for row in rows)
        if not count:
            return []
        return [
            f"{plural(count, 'text')} longer than the {room} tokens that are read at a time: in "
            f"each epoch another part is learned from, and at most {WINDOWS} parts are judged"
        ]


def _rows(texts: Sequence[Text], tokenizer: Tokenizer) -> list[Row]:
    """The texts in ids, whole, with their labels."""
    return [Row(text_ids(text, tokenizer), labels) for text, labels in texts]
