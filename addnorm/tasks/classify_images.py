"""Classifying pictures: which label a picture has, by a Vision Transformer."""

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from addnorm.data.augment import Augment, mixed, shares, varied
from addnorm.data.decoding import Ahead
from addnorm.data.image_sets import FORMATS
from addnorm.data.images import ImageFrame
from addnorm.data.sources import DataError
from addnorm.errors import Mendable
from addnorm.files import folders, vision
from addnorm.models.vision import ViT, patch_attention
from addnorm.models.vision_config import ViTConfig
from addnorm.pretrained import load, model_folder
from addnorm.settings import (
    AT_RESUME,
    HIDDEN,
    NEEDS,
    AtResume,
    SettingsError,
    check_effect,
    setting,
)
from addnorm.tasks import image_examples, mistakes
from addnorm.tasks.beginnings import FROM_NOTHING
from addnorm.tasks.labelled_images import Colours, LabelledImages, read_labelled_images
from addnorm.tasks.targets import OneLabel
from addnorm.tasks.texts import expanded
from addnorm.temporary import evaluation_mode
from addnorm.training.config import NOTHING, TaskSettings, register
from addnorm.training.memory import MODULES, Needs, counted
from addnorm.training.parallel import here
from addnorm.training.task import Batch, Task

EVAL_ROWS = 128  # pictures that go through the model at once in an evaluation
SOURCES = {"content": ["data", "val_data"], "classes": ["data"], "frame": ["data"]}
SOURCES |= {"rows_per_step": ["rows_per_step"], "start": ["init_from"], "model": ["init_from"]}
"""Fact of the task -> the settings that it comes from."""
BY_HEART: dict[str, Any] = {"label_smoothing": 0.0, "dropout": 0.0, "augment.crop": 1.0}
BY_HEART |= {f"augment.{name}": 0.0 for name in ("shift", "turn", "flip", "erase", "mixup")}
Fits = Literal["pad", "crop", "stretch"]
Key = tuple[str, int, int, int, int]


@final
@register
@dataclass(frozen=True, kw_only=True)
class ClassifyImagesSettings(TaskSettings):
    """The settings of a training of pictures' labels, apart from the loop's."""

    name = "classify_images"
    data: str = setting("", AtResume.IF_SAME)
    """Pictures with labels: a folder with one sub-folder of pictures for each class, a .csv, .tsv
    or .jsonl with image and label, MNIST's idx files, an .npz with images and labels, or a .zip."""
    val_data: str = setting("", AtResume.IF_SAME)
    """Pictures with labels to hold out, in one of these formats; by itself a share of data."""
    init_from: str | None = setting(None, AtResume.IF_SAME)
    """A folder or hub id of a Vision Transformer to start from, with a new head; none: one from
    scratch."""
    val_fraction: float = setting(0.1, AtResume.ANEW, {"val_data": ("",)})
    """How many of the pictures are held out, rows_of_process by a hash of each."""
    rows_per_step: int = setting(64, AtResume.BY_TUNING)
    """Pictures in one optimizer step, over all micro-batches and processes."""
    colours: Colours = setting("auto", AtResume.ANEW, FROM_NOTHING)
    """Whether pictures are read in grey or in colours; auto: in grey, if all of them are grey."""
    fit: Fits = setting("pad", AtResume.ANEW, FROM_NOTHING)
    """What becomes of a picture of another shape than the model reads: pad, borders in its own
    colour; crop, the middle of it; stretch."""
    dropout: float = setting(0.0, AtResume.WITH_NOTICE)
    """After the front and on branch outputs. Whole branches are left out by a scheme such as
    drop_path(pre_norm, p=0.1)."""
    label_smoothing: float = setting(0.0, AtResume.WITH_NOTICE)
    """The share of a target's weight that goes to all classes alike."""
    augment: Augment = field(default_factory=Augment)
    """How the pictures to learn from are varied."""
    model: ViTConfig = field(
        default_factory=lambda: ViTConfig(
            classes=2, height=32, width=32, patch=4, dim=128, n_layers=6, n_heads=4
        ),
        metadata={
            HIDDEN: ("classes", "channels", "dropout", "attention_dropout", "distillation"),
            AT_RESUME: AtResume.ANEW,
            NEEDS: (FROM_NOTHING,),
        },
    )

    def __post_init__(self) -> None:
        check_effect(self)
        if not 0.0 < self.val_fraction < 1.0:
            raise SettingsError(
                f"val_fraction must be between 0 and 1, both excluded, got {self.val_fraction:g}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise SettingsError(f"dropout must be in [0, 1), got {self.dropout:g}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise SettingsError(f"label_smoothing must be in [0, 1), got {self.label_smoothing:g}")
        if self.rows_per_step < 1:
            raise SettingsError(f"rows_per_step must be at least 1, got {self.rows_per_step}")
        if self.augment.mixup and self.rows_per_step < 2:
            raise SettingsError("augment.mixup mixes the pictures of a step: rows_per_step is 1")
        c = self.model
        if self.init_from is None and (c.height % c.patch or c.width % c.patches[1]):
            raise SettingsError(
                f"patches of {c.patches[0]} x {c.patches[1]} pixels do not divide a picture of "
                f"{c.height} x {c.width}, and the rest would not be looked at: choose "
                "model.height, model.width and model.patch that fit"
            )

    def by_heart(self) -> Mapping[str, Any]:
        """Pictures as they are, no dropout, and targets that can be met."""
        return BY_HEART

    def sources(self, fact: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
        """The settings behind a fact."""
        return SOURCES.get(fact, [])

    def build(self, choices: Mapping[str, Any] = NOTHING) -> "ClassifyImagesTask":
        """Read the pictures, and make the task of them; all ``choices`` count."""
        if not self.data:
            raise SettingsError(f"data is not set: {FORMATS}")
        start = None if self.init_from is None else _Start(self.init_from)
        if start is None:
            frame = ImageFrame(self.model.height, self.model.width, 3, self.fit)
        else:
            frame = start.model.image_frame()
        held_out = expanded("val_data", self.val_data) if self.val_data else None
        words = f"data={self.data}" + (f", val_data={self.val_data}" if self.val_data else "")
        try:
            images = read_labelled_images(
                expanded("data", self.data),
                held_out,
                self.val_fraction,
                frame,
                self.colours if start is None else None,
                centred=start is None,
            )
        except DataError as error:
            raise DataError(f"{words}: {error}") from None
        config = replace(
            self.model if start is None else start.model.config,
            classes=len(images.classes),
            channels=images.frame.channels,
            dropout=self.dropout,
            attention_dropout=0.0,
        )
        return ClassifyImagesTask(self, config, images, start)


@final
class _Start:
    """A model that others made, read once; a ``SettingsError`` if it is no Vision Transformer."""

    def __init__(self, init_from: str) -> None:
        try:
            self.identity = folders.identity(model_folder(init_from))
            model = load(init_from).model
            if not isinstance(model, ViT):
                raise Mendable("it is no Vision Transformer")
            model.image_frame()
        except Mendable as error:
            raise SettingsError(f"init_from={init_from}: {error}") from None
        self.model = model

    def fill(self, model: ViT) -> None:
        """Take over all weights but those of the heads, which are new."""
        body = {n: t for n, t in self.model.state_dict().items() if "head" not in n}
        model.load_state_dict(body, strict=False)


@final
class ClassifyImagesTask(Task):
    """Which label a picture has.

    ``settings``: those of the training. ``config``: the model's choices. ``images``: what there is
    to learn from, and what is held out. ``start``: the model to start from; None: a new one.
    """

    noun = "A classifier of pictures"
    unit = "pictures"
    best = OneLabel.best

    def __init__(
        self,
        settings: ClassifyImagesSettings,
        config: ViTConfig,
        images: LabelledImages,
        start: _Start | None = None,
    ) -> None:
        self.settings, self.config, self.images = settings, config, images
        self.start = start
        self.targets = OneLabel(images.classes)
        self.sides = {"train": images.train, "val": images.val}
        self._shares: Tensor | None = None  # (pictures, classes) of the last evaluation
        self._looks: list[image_examples.ImageLook] = []
        self._orders: dict[tuple[int, int, int], NDArray[np.int64]] = {}
        # what is decoded for each step is decoded while the step before it is computed
        self._ahead: Ahead[Key, Batch] | None = None
        if images.train.fitted is None:
            self._ahead = Ahead(self._batch, lambda key: (*key[:2], key[2] + 1, *key[3:]))

    def counts(self) -> tuple[int, int]:
        """Parameters, and those that are trained: all."""
        return counted(self._empty, self.config.n_layers)

    def _empty(self, layers: int) -> ViT:
        """The model with ``layers`` layers, on the meta device."""
        with torch.device("meta"):
            return ViT(replace(self.config, n_layers=layers))

    def needs(self, micro_rows: int | None, processes: int) -> Needs:
        """Weights, the pixels of a step, and of each micro-batch what every layer keeps."""
        c, size = self.config, self.settings.rows_per_step
        parameters, trained = self.counts()
        own = -(-size // processes)
        batch = own * c.channels * c.height * c.width * 4
        # in float32, and two of them a layer at the least: one after attention, one after the MLP
        batch += min(micro_rows or own, own) * c.length * 4 * 2 * c.n_layers * c.dim
        names = ("height", "width", "patch", "dim", "n_layers")
        because = ", ".join(f"model.{n}={getattr(c, n)}" for n in names)
        because += f", rows_per_step={size}, micro_rows={micro_rows}"
        return Needs(parameters, trained, c.n_layers * MODULES, batch, because)

    def model(self) -> nn.Module:
        """A new one, or with the weights that there are and a new head."""
        model = ViT(self.config)
        if self.start is not None:
            self.start.fill(model)
        model.frame = self.images.frame
        return model

    def batch(self, split: str, seed: int, step: int, rank: int, world: int) -> Batch:
        """Rows rank, rank + world, ... of the step's, in an order of each epoch's own; those to
        learn from varied by seed and number. With mixup also ``other``, the label of what a picture
        is mixed with, the next of the step, and ``share``, how much of it is its own."""
        key = split, seed, step, rank, world
        return self._batch(key) if self._ahead is None else self._ahead(key)

    def _batch(self, key: Key) -> Batch:
        split, seed, step, rank, world = key
        rows, size = self.sides[split], self.settings.rows_per_step
        numbers = range(step * size, (step + 1) * size)
        augment = self.settings.augment
        mixes = split == "train" and augment.mixup > 0
        own = list(range(rank, size, world))
        partners = [(i + 1) % size for i in own] if mixes else []
        needed_rows = sorted({*own, *partners})
        places = {i: self._place(len(rows), seed, numbers[i]) for i in needed_rows}
        pictures = torch.from_numpy(rows.at([*places.values()]))
        if split == "train":
            pictures = varied(pictures, [numbers[i] for i in needed_rows], seed, augment)
        at = {i: n for n, i in enumerate(needed_rows)}
        labels = torch.from_numpy(rows.labels[[places[i] for i in own]])
        batch = {"label": labels}
        rows_of_process = pictures[[at[i] for i in own]]
        if mixes:
            share = shares([numbers[i] for i in own], seed, augment)
            rows_of_process = mixed(
                rows_of_process.float(), pictures[[at[i] for i in partners]].float(), share
            )
            others = torch.from_numpy(rows.labels[[places[i] for i in partners]])
            batch |= {"other": others, "share": share}
        return {"pixels": self.images.frame.pixels(rows_of_process), **batch}

    def _place(self, n: int, seed: int, number: int) -> int:
        """Which of ``n`` rows is the one of that number. The orders of epochs are kept for the
        steps to come, and those before the last one thrown away."""
        epoch, i = divmod(number, n)
        key = n, seed, epoch
        order = self._orders.get(key)
        if order is None:  # another thread may throw it away meanwhile: it is asked for once
            order = np.random.default_rng([seed, epoch]).permutation(n)
            self._orders = {k: v for k, v in self._orders.items() if k[2] >= epoch - 1}
            self._orders[key] = order
        return int(order[i])

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Summed over pictures; ``accuracy`` counts those whose label it finds, of mixed ones that
        of the larger share."""
        logits = model(batch["pixels"]).float()
        labels, smoothing = batch["label"], self.settings.label_smoothing
        if "share" in batch:
            nll = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
            other = F.cross_entropy(
                logits, batch["other"], reduction="none", label_smoothing=smoothing
            )
            loss = (batch["share"] * nll + (1.0 - batch["share"]) * other).sum()
        else:
            loss = self.targets.loss(logits, labels, smoothing)
        count = torch.tensor(len(labels), device=logits.device)
        return loss, count, {"accuracy": self.targets.right(logits, labels)}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """On all that was held out. The probabilities are kept, since ``pictures`` shows what the
        last evaluation found, and so is what it looks at in a few."""
        device = next(model.parameters()).device
        world, rows, frame = here(device), self.images.val, self.images.frame
        p = torch.zeros(len(rows), len(self.targets.classes), dtype=torch.float64)
        step = EVAL_ROWS * world.size
        places = image_examples.chosen_places(rows)
        with evaluation_mode(model.modules()), torch.no_grad():
            for first in range(0, len(rows), step):
                # A process without a row computes one all the same: a sharded model needs them all.
                part = range(first, min(first + step, len(rows)))[world.rank :: world.size]
                pixels = frame.pixels(rows.at(list(part) or [0])).to(device)
                logits = model(pixels)
                if part:
                    p[list(part)] = self.targets.probabilities(logits.double()).cpu()
            pixels = frame.pixels(rows.at(places)).to(device)
            looks = patch_attention(model, pixels).double().cpu().numpy()
        self._shares = p = world.total(p)
        self._looks = [
            image_examples.ImageLook(i, shares_of_one)
            for i, shares_of_one in zip(places, looks, strict=True)
        ]
        return self.targets.metrics(p, [(int(i),) for i in rows.labels])

    def pictures(self) -> list[dict[str, Any]]:
        """What is taken for what, the worst errors and what it looks at, of the last ``evaluate``;
        nothing before."""
        if self._shares is None:
            return []
        rows, p = self.images.val, self._shares
        return [
            *mistakes.confusion(self.targets, rows.texts(), p, "picture"),
            *image_examples.worst_images(self.targets, rows, p),
            *image_examples.image_looks(self.targets, rows, p, self._looks),
        ]

    def save(self, model: nn.Module, folder: Path) -> None:
        """For ``addnorm.load`` and ``addnorm predict``; where that is possible, for transformers
        too."""
        assert isinstance(model, ViT)
        model.frame = self.images.frame
        vision.write(model, folder, None, self.targets.classes)

    def facts(self) -> dict[str, Any]:
        """The pictures, the classes, how they become pixels, and what the model is."""
        model = {k: v for k, v in asdict(self.config).items() if not k.endswith("dropout")}
        return {
            "content": self.images.identity,
            "classes": list(self.targets.classes),
            "frame": list(astuple(self.images.frame)),
            "rows_per_step": self.settings.rows_per_step,
            "model": model,
            **({} if self.start is None else {"start": self.start.identity}),
        }

    def introduction(self) -> list[str]:
        """The data and the model."""
        c, (parameters, _) = self.config, self.counts()
        train, val = self.images.train, self.images.val
        colours = "grey" if c.channels == 1 else "in colours"
        return [
            f"{self.settings.data}: {len(self.targets.classes)} classes, {len(train):,} pictures "
            f"to learn from, {len(val):,} held out; {self.targets.without_a_model(val.texts())}",
            *self.images.remarks,
            f"model: {parameters:,} parameters, {c.scheme}, {c.n_layers} layers of width {c.dim}, "
            f"{c.length} tokens of {c.patches[0]} x {c.patches[1]} pixels, {colours}",
        ]
