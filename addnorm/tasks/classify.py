"""Classifying texts: an encoder on a folder with one sub-folder of texts for each class."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from addnorm.data.rows import padded, windows
from addnorm.data.sources import DataError, Texts, open_source
from addnorm.data.split import HASHES, text_hash
from addnorm.data.tokenizer import Tokenizer
from addnorm.files import classifier
from addnorm.models.classifier import ClassifierConfig, TextClassifier
from addnorm.settings import AT_RESUME, HIDDEN, AtResume, SettingsError, check_effect, setting
from addnorm.tasks.texts import check, chosen, expanded
from addnorm.temporary import evaluation_mode
from addnorm.training.config import NOTHING, TaskSettings, register
from addnorm.training.memory import MODULES, Needs, counted
from addnorm.training.parallel import here
from addnorm.training.task import Batch, Best, Task

EVAL_ROWS = 64
SOURCES = {"content": "data", "classes": "data", "tokenizer": "tokenizer"}
SOURCES |= {"rows_per_step": "rows_per_step"}
"""Fact of a task -> the setting that it comes from."""


@final
@register
@dataclass(frozen=True, kw_only=True)
class ClassifySettings(TaskSettings):
    """The settings of a classifier's training, apart from the loop's."""

    name = "classify"
    data: str = setting("", AtResume.IF_SAME)
    """A folder with one sub-folder of texts for each class."""
    tokenizer: str = setting("bytes", AtResume.IF_SAME)
    """bytes, bpe:SIZE or wordpiece:SIZE (learned from the training texts), or a folder or hub id
    with one."""
    val_fraction: float = setting(0.1, AtResume.ANEW)
    """How many of the texts are held out, chosen by a hash of each."""
    rows_per_step: int = setting(32, AtResume.BY_TUNING)
    """Texts in one optimizer step, over all micro-batches and processes."""
    dropout: float = setting(0.1, AtResume.WITH_NOTICE)
    """In embeddings and branches."""
    token_dropout: float = setting(0.3, AtResume.WITH_NOTICE)
    """The mean share of a text's tokens left out, others each time: few texts go further."""
    label_smoothing: float = setting(0.1, AtResume.WITH_NOTICE)
    """The share of a target's weight that goes to all classes alike."""
    cache: Path = setting(Path("~/.cache/addnorm/data"), AtResume.FREELY)
    """Where learned tokenizers are kept."""
    model: ClassifierConfig = field(
        default_factory=lambda: ClassifierConfig(vocab_size=1, classes=1),
        metadata={
            HIDDEN: ("vocab_size", "classes", "dropout"),
            AT_RESUME: AtResume.ANEW,
        },
    )

    def __post_init__(self) -> None:
        check_effect(self)
        check(self.tokenizer, self.val_fraction, self.dropout)
        if not 0.0 <= self.token_dropout <= 0.5:
            raise SettingsError(f"token_dropout must be in [0, 0.5], got {self.token_dropout:g}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise SettingsError(f"label_smoothing must be in [0, 1), got {self.label_smoothing:g}")
        if self.rows_per_step < 1:
            raise SettingsError(f"rows_per_step must be at least 1, got {self.rows_per_step}")

    def by_heart(self) -> Mapping[str, Any]:
        """Whole texts, no dropout, and targets that can be met."""
        return {"dropout": 0.0, "token_dropout": 0.0, "label_smoothing": 0.0}

    def sources(self, fact: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
        """The setting behind a fact."""
        return [SOURCES[fact]] if fact in SOURCES else []

    def build(self, choices: Mapping[str, Any] = NOTHING) -> "ClassifyTask":
        """Read and tokenize the texts, and make the task of them; all ``choices`` count."""
        if not self.data:
            raise SettingsError("data is not set: a folder with one sub-folder of texts per class")
        try:
            train, val, classes = read_classes(expanded("data", self.data), self.val_fraction)
        except DataError as error:
            raise DataError(f"data={self.data}: {error}") from None
        texts = [text for text, _ in train]
        tokenizer = chosen(
            self.tokenizer,
            texts=lambda: texts,
            decides=lambda: [Texts(texts).identity()],
            cache=expanded("cache", self.cache),
        )
        config = replace(
            self.model,
            vocab_size=tokenizer.vocab_size,
            classes=len(classes),
            dropout=self.dropout,
        )
        splits = {"train": _rows(train, tokenizer), "val": _rows(val, tokenizer)}
        return ClassifyTask(self, config, tokenizer, classes, splits)


class Row(NamedTuple):
    """A text's ids, and its class."""

    ids: NDArray[np.int64]
    label: int


@final
class ClassifyTask(Task):
    """Which class a text is of."""

    best = Best("accuracy", "max")
    noun = "A classifier of texts"
    unit = "texts"

    def __init__(
        self,
        settings: ClassifySettings,
        config: ClassifierConfig,
        tokenizer: Tokenizer,
        classes: Sequence[str],
        splits: dict[str, list[Row]],
    ) -> None:
        self.settings, self.config, self.tokenizer = settings, config, tokenizer
        self.classes, self.splits = list(classes), splits
        self._orders: dict[tuple[int, int, int], NDArray[np.int64]] = {}

    def needs(self, micro_rows: int | None, processes: int) -> Needs:
        """Weights, the ids of a step, and of each micro-batch what every layer keeps."""
        c, size = self.config, self.settings.rows_per_step
        parameters, trained = counted(self._empty, c.n_layers)
        longest = max(len(row.ids) for rows in self.splits.values() for row in rows)
        longest = min(longest, c.context_length)
        own = -(-size // processes)
        batch = own * longest * 9
        batch += min(micro_rows or own, own) * longest * 4 * 2 * c.n_layers * c.dim
        names = ("context_length", "dim", "n_layers", "pairs")
        because = ", ".join(f"model.{n}={getattr(c, n)}" for n in names)
        because += f", rows_per_step={size}, micro_rows={micro_rows}"
        return Needs(parameters, trained, c.n_layers * MODULES, batch, because)

    def _empty(self, layers: int) -> TextClassifier:
        """The model with ``layers`` layers, on the meta device."""
        with torch.device("meta"):
            return TextClassifier(replace(self.config, n_layers=layers))

    def model(self) -> TextClassifier:
        """A new classifier, as the settings say."""
        return TextClassifier(self.config)

    def batch(self, split: str, seed: int, step: int, rank: int, world: int) -> Batch:
        """Rows rank, rank + world, ... of the step's, in an order of each epoch's own.

        Of a text to learn from there is a part of the context's length from anywhere in it, less a
        share of its tokens: both are drawn from the row's number.
        """
        rows, size = self.splits[split], self.settings.rows_per_step
        parts, labels = [], []
        for n in np.arange(step * size, (step + 1) * size)[rank::world]:
            ids, label = rows[self._order(len(rows), seed, n // len(rows))[n % len(rows)]]
            labels.append(label)
            if split == "train":
                parts.append(self._varied(ids, np.random.default_rng([seed, n])))
            else:
                parts.append(ids[: self.config.context_length])
        return {**padded(parts), "label": torch.tensor(labels)}

    def _varied(self, ids: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        start = rng.integers(max(len(ids) - self.config.context_length, 0) + 1)
        ids = ids[start : start + self.config.context_length]
        # a rate of its own for each text, so that whole ones are seen too
        keep = rng.random(len(ids)) >= rng.uniform(0, 2 * self.settings.token_dropout)
        return ids[keep] if keep.any() else ids

    def row(self, split: str, seed: int, step: int) -> Batch:
        """One, as of a process among as many as there are rows."""
        return self.batch(split, seed, step, 0, self.settings.rows_per_step)

    def _order(self, n: int, seed: int, epoch: int) -> NDArray[np.int64]:
        key = n, seed, epoch
        if key not in self._orders:
            self._orders = {k: v for k, v in self._orders.items() if k[2] >= epoch - 1}
            self._orders[key] = np.random.default_rng([seed, epoch]).permutation(n)
        return self._orders[key]

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Cross-entropy, summed over texts; ``right`` are those whose class it finds."""
        logits = model(batch["ids"], batch["valid"]).float()
        smoothing = self.settings.label_smoothing
        loss = F.cross_entropy(logits, batch["label"], reduction="sum", label_smoothing=smoothing)
        right = (logits.argmax(-1) == batch["label"]).sum()
        count = torch.tensor(len(logits), device=logits.device)
        return loss, count, {"accuracy": right}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """On all that was held out, each text by the mean over its windows."""
        device = next(model.parameters()).device
        world, rows = here(device), self.splits["val"]
        parts = [
            (i, part)
            for i, row in enumerate(rows)
            for part in windows(row.ids, self.config.context_length)
        ]
        sums = torch.zeros(len(rows), len(self.classes), dtype=torch.float64)
        step = EVAL_ROWS * world.size
        with evaluation_mode(model.modules()), torch.no_grad():
            for first in range(0, len(parts), step):
                # A process without a row computes one all the same: a sharded model needs them all.
                mine = parts[first : first + step][world.rank :: world.size]
                batch = padded([part for _, part in mine or parts[:1]])
                logits = model(batch["ids"].to(device), batch["valid"].to(device))
                if mine:
                    which = torch.tensor([i for i, _ in mine])
                    sums.index_add_(0, which, logits.double().softmax(-1).cpu())
        p = world.total(sums)
        p /= p.sum(-1, keepdim=True)
        labels = torch.tensor([row.label for row in rows])
        right = (p.argmax(-1) == labels).double().mean()
        loss = F.nll_loss(p.clamp(min=torch.finfo(p.dtype).tiny).log(), labels)
        return {"accuracy": float(right), "val_loss": float(loss)}

    def save(self, model: nn.Module, folder: Path) -> None:
        """For ``addnorm.load`` and ``addnorm predict``."""
        assert isinstance(model, TextClassifier)
        classifier.write(model, folder, self.tokenizer, self.classes)

    def facts(self) -> dict[str, Any]:
        """The texts, the classes, the tokenizer and what the model is."""
        model = {key: value for key, value in asdict(self.config).items() if key != "dropout"}
        content = hashlib.sha256()
        for name in ("train", "val"):
            for row in self.splits[name]:
                content.update(row.ids.tobytes() + bytes((0xFF, row.label & 0xFF)))
        return {
            "content": content.hexdigest()[:16],
            "classes": self.classes,
            "tokenizer": self.tokenizer.identity,
            "rows_per_step": self.settings.rows_per_step,
            "model": model,
        }

    def introduction(self) -> list[str]:
        """The data and the model."""
        parameters, _ = counted(self._empty, self.config.n_layers)
        train, val = (len(self.splits[name]) for name in ("train", "val"))
        often = np.bincount([row.label for row in self.splits["val"]]).max() / val
        return [
            f"{self.settings.data}: {len(self.classes)} classes, {train:,} texts to learn from, "
            f"{val:,} held out; the most frequent class is right for {often:.1%}",
            f"model: {parameters:,} parameters, {self.config.scheme}, {self.config.n_layers} "
            f"layers of width {self.config.dim}, {self.config.context_length} tokens at a time",
        ]


def read_classes(
    folder: Path, val_fraction: float
) -> tuple[list[tuple[str, int]], list[tuple[str, int]], list[str]]:
    """(to learn from, held out, names of classes): a text is held out by a hash of it alone."""
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder: give one that has a sub-folder of texts per class"
        )
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[:1] not in "._")
    if len(names) < 2:
        raise DataError(
            f"{folder} has {len(names)} sub-folder(s): there must be one for each of at least two "
            "classes"
        )
    train: list[tuple[str, int]] = []
    val: list[tuple[str, int]] = []
    for label, name in enumerate(names):
        for text in open_source(str(folder / name)).documents():
            (val if text_hash(text) / HASHES < val_fraction else train).append((text, label))
    for side, what in ((train, "learn from"), (val, "hold out")):
        if not side:
            raise DataError(
                f"{folder} has too few texts: with val_fraction={val_fraction:g} none is left to "
                f"{what}"
            )
    return train, val, names


def _rows(texts: Sequence[tuple[str, int]], tokenizer: Tokenizer) -> list[Row]:
    return [Row(np.array(tokenizer.encode(text) or [0], np.int64), label) for text, label in texts]
