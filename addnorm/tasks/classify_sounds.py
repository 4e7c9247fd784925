"""Classifying sounds, such as single words: which label a recording has."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from addnorm.data.audio import log_mel
from addnorm.data.recordings import LABELLED, HeardSound, read_labelled_sounds
from addnorm.data.rows import padded_frames
from addnorm.data.sources import DataError
from addnorm.files import sounds
from addnorm.models.sounds import SoundClassifier, SoundConfig
from addnorm.settings import (
    AT_RESUME,
    HIDDEN,
    INSIDE,
    AtResume,
    SettingsError,
    check_effect,
    setting,
)
from addnorm.tasks import mistakes
from addnorm.tasks.beginnings import WITH_EPS, SchemesWithNorms
from addnorm.tasks.labelled_texts import Text
from addnorm.tasks.recorded import Clips, Variation, read_clips, step_features
from addnorm.tasks.sound_examples import worst_labels
from addnorm.tasks.targets import OneLabel
from addnorm.temporary import evaluation_mode
from addnorm.training.config import NOTHING, TaskSettings, register
from addnorm.training.memory import MODULES, Needs, counted
from addnorm.training.parallel import here
from addnorm.training.task import Batch, Task

EVAL_ROWS = 32  # sounds that go through the model at once in an evaluation
SLOWEST = 0.5  # a speed below which nobody understands
SOURCES = {"content": ["data", "val_data"], "classes": ["data"], "rows_per_step": ["rows_per_step"]}
"""Fact of a task -> the settings that it comes from."""
BY_HEART: dict[str, Any] = {"dropout": 0.0, "speed": 0.0, "noise": 0.0, "masks": False}
BY_HEART |= {"label_smoothing": 0.0}


@final
@register
@dataclass(frozen=True, kw_only=True)
class ClassifySoundsSettings(TaskSettings):
    """The settings of a training of sounds' labels, apart from the loop's."""

    name = "classify_sounds"
    data: str = setting("", AtResume.IF_SAME)
    """Sounds with labels: a folder with one sub-folder of sounds for each class, or a .jsonl with
    audio_filepath and label."""
    val_data: str = setting("", AtResume.IF_SAME)
    """Sounds with labels to hold out, in one of these formats; by itself a share of data."""
    val_fraction: float = setting(0.1, AtResume.ANEW, {"val_data": ("",)})
    """How many of the sounds are held out, chosen by a hash of each."""
    rows_per_step: int = setting(32, AtResume.BY_TUNING)
    """Sounds in one optimizer step, over all micro-batches and processes."""
    dropout: float = setting(0.1, AtResume.WITH_NOTICE)
    """Behind the front and in branches."""
    speed: float = setting(0.1, AtResume.WITH_NOTICE)
    """Two of three sounds are this share faster, or slower; 0: none."""
    noise: float = setting(0.5, AtResume.WITH_NOTICE)
    """The share of sounds with noise, and a loudness, of their own."""
    masks: bool = setting(True, AtResume.WITH_NOTICE)
    """Hide some bands and some stretches of time of each sound (SpecAugment)."""
    label_smoothing: float = setting(0.1, AtResume.WITH_NOTICE)
    """The share of a target's weight that goes to all classes alike."""
    model: SoundConfig = field(
        default_factory=lambda: SoundConfig(classes=1, encoder_layers=3, dim=96),
        metadata={
            HIDDEN: ("classes", "dropout"),
            INSIDE: {
                "norm": ({"scheme": SchemesWithNorms()},),
                "eps": ({"scheme": SchemesWithNorms(), "norm": WITH_EPS},),
            },
            AT_RESUME: AtResume.ANEW,
        },
    )

    def __post_init__(self) -> None:
        check_effect(self)
        if not 0.0 < self.val_fraction < 1.0:
            raise SettingsError(
                f"val_fraction must be between 0 and 1, both excluded, got {self.val_fraction:g}"
            )
        for name in ("dropout", "label_smoothing"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise SettingsError(f"{name} must be in [0, 1), got {getattr(self, name):g}")
        if not 0.0 <= self.noise <= 1.0:
            raise SettingsError(f"noise must be a share, got {self.noise:g}")
        if not 0.0 <= self.speed <= SLOWEST:
            raise SettingsError(f"speed must be from 0 to {SLOWEST:g}, got {self.speed:g}")
        if self.rows_per_step < 1:
            raise SettingsError(f"rows_per_step must be at least 1, got {self.rows_per_step}")

    def by_heart(self) -> Mapping[str, Any]:
        """Sounds as they are, no dropout, and targets that can be met."""
        return BY_HEART

    def sources(self, fact: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
        """The settings behind a fact."""
        return SOURCES.get(fact, [])

    def build(self, choices: Mapping[str, Any] = NOTHING) -> "ClassifySoundsTask":
        """Read the sounds, and make the task of them; all ``choices`` count."""
        if not self.data:
            raise SettingsError(f"data is not set: {LABELLED}")
        words = f"data={self.data}" + (f", val_data={self.val_data}" if self.val_data else "")
        where = self.data, self.val_data, self.val_fraction, self.model.frames
        try:
            clips = read_clips(*where, read_labelled_sounds, _content)
        except DataError as error:
            raise DataError(f"{words}: {error}") from None
        classes = sorted({clip.text for clip in clips.train})
        if len(classes) < 2:
            raise DataError(f"{words}: nothing to tell apart: the only label is {classes[0]}")
        for clip in clips.val:
            if clip.text not in classes:
                raise DataError(
                    f"{words}: no sound to learn from has the label {clip.text!r} of {clip.file}"
                )
        config = replace(self.model, classes=len(classes), dropout=self.dropout)
        return ClassifySoundsTask(self, config, clips, classes)


def _content(sound: HeardSound) -> str:
    """A hash of what is heard, whatever the file is called."""
    return hashlib.sha256(np.ascontiguousarray(sound.sound.samples).tobytes()).hexdigest()


@final
class ClassifySoundsTask(Task):
    """Which label a sound has.

    ``settings``: those of the training. ``config``: the model's choices. ``clips``: what there is
    to learn from, and what is held out. ``classes``: the labels by their numbers.
    """

    noun = "A classifier of sounds"
    unit = "sounds"
    best = OneLabel.best

    def __init__(
        self,
        settings: ClassifySoundsSettings,
        config: SoundConfig,
        clips: Clips,
        classes: Sequence[str],
    ) -> None:
        self.settings, self.config, self.clips = settings, config, clips
        self.targets = OneLabel(classes)
        numbers = {name: i for i, name in enumerate(classes)}
        self.sides = {"train": clips.train, "val": clips.val}
        self.labels = {
            side: [(numbers[clip.text],) for clip in some] for side, some in self.sides.items()
        }
        self._shares: Tensor | None = None  # (sounds, classes) of the last evaluation
        self._orders: dict[tuple[str, int, int], NDArray[np.int64]] = {}

    def needs(self, micro_rows: int | None, processes: int) -> Needs:
        """Weights, the features of a step, and what every layer keeps of the stream."""
        c, size = self.config, self.settings.rows_per_step
        parameters, trained = counted(self._empty, c.encoder_layers)
        own = -(-size // processes)
        frames = sum(clip.frames for clip in self.clips.train) // len(self.clips.train)
        batch = own * frames * (4 * c.n_mels + 1)
        rows = min(micro_rows or own, own)
        batch += rows * (frames // c.strides) * 4 * 4 * c.encoder_layers * c.dim
        because = ", ".join(f"model.{n}={getattr(c, n)}" for n in ("dim", "encoder_layers"))
        because += f", rows_per_step={size}, micro_rows={micro_rows}"
        return Needs(parameters, trained, c.encoder_layers * MODULES, batch, because)

    def _empty(self, layers: int) -> SoundClassifier:
        """The model without memory, with so many layers."""
        with torch.device("meta"):
            return SoundClassifier(replace(self.config, encoder_layers=layers))

    def model(self) -> SoundClassifier:
        """A new classifier."""
        return SoundClassifier(self.config)

    def batch(self, split: str, seed: int, step: int, rank: int, world: int) -> Batch:
        """Rows rank, rank + world, ... of the step's, in an order of each epoch's own; how each
        sounds is drawn from (seed, epoch, its number). All are filled up to the longest of the
        step, so that a row is the same on any number of processes."""
        clips, size, s = self.sides[split], self.settings.rows_per_step, self.settings
        rows = [self._place(split, seed, n) for n in range(step * size, (step + 1) * size)]
        features, longest = step_features(
            [clips[i] for _, i in rows],
            [(seed, epoch, i) for epoch, i in rows],
            self.config,
            Variation(s.speed, s.noise, s.masks) if split == "train" else None,
            rank,
            world,
        )
        labels = self.targets.tensor([self.labels[split][i] for _, i in rows[rank::world]])
        return {**padded_frames(features, longest), "label": labels}

    def _place(self, split: str, seed: int, number: int) -> tuple[int, int]:
        """(epoch, which clip) of the row of this number."""
        n = len(self.sides[split])
        epoch, i = divmod(number, n)
        key = split, seed, epoch
        if key not in self._orders:
            self._orders = {k: v for k, v in self._orders.items() if k[2] >= epoch - 1}
            self._orders[key] = np.random.default_rng([seed, epoch]).permutation(n)
        return epoch, int(self._orders[key][i])

    def row(self, split: str, seed: int, step: int) -> Batch:
        """One, as of a process among as many as there are rows."""
        return self.batch(split, seed, step, 0, self.settings.rows_per_step)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Summed over sounds; ``accuracy`` counts those whose label it finds."""
        logits = model(batch["features"], batch["valid"]).float()
        labels = batch["label"]
        loss = self.targets.loss(logits, labels, self.settings.label_smoothing)
        count = torch.tensor(len(labels), device=logits.device)
        return loss, count, {"accuracy": self.targets.right(logits, labels)}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """On all that was held out. The probabilities are kept for ``pictures``."""
        device = next(model.parameters()).device
        world, clips = here(device), self.clips.val
        p = torch.zeros(len(clips), len(self.targets.classes), dtype=torch.float64)
        order = sorted(range(len(clips)), key=lambda i: (clips[i].frames, i))
        step = EVAL_ROWS * world.size
        with evaluation_mode(model.modules()), torch.no_grad():
            for first in range(0, len(order), step):
                # A process without a row computes one all the same: a sharded model needs them all.
                mine = order[first : first + step][world.rank :: world.size]
                features = [self._features(i) for i in mine or order[:1]]
                batch = {n: t.to(device) for n, t in padded_frames(features).items()}
                logits = model(batch["features"], batch["valid"])
                if mine:
                    p[mine] = self.targets.probabilities(logits.double()).cpu()
        self._shares = p = world.total(p)
        return self.targets.metrics(p, self.labels["val"])

    def _features(self, number: int) -> Tensor:
        """Of a held-out sound."""
        return log_mel(self.clips.val[number].samples, self.config.n_mels)

    def pictures(self) -> list[dict[str, Any]]:
        """What is taken for what, and the worst errors, of the last ``evaluate``."""
        if self._shares is None:
            return []
        names = [clip.file.name for clip in self.clips.val]
        labels = self.labels["val"]
        texts = [Text(name, label) for name, label in zip(names, labels, strict=True)]
        p = self._shares
        return [
            *mistakes.confusion(self.targets, texts, p, "sound"),
            *worst_labels(self.targets.classes, names, [i for (i,) in labels], p, self._features),
        ]

    def save(self, model: nn.Module, folder: Path) -> None:
        """For ``addnorm.load`` and ``addnorm predict``."""
        assert isinstance(model, SoundClassifier)
        sounds.write(model, folder, None, self.targets.classes)

    def facts(self) -> dict[str, Any]:
        """The sounds, the classes and what the model is."""
        content = hashlib.sha256()
        for name in ("train", "val"):
            for clip in self.sides[name]:
                content.update(clip.values.tobytes() + clip.text.encode() + b"|")
        return {
            "content": content.hexdigest()[:16],
            "classes": list(self.targets.classes),
            "rows_per_step": self.settings.rows_per_step,
            "model": {k: v for k, v in asdict(self.config).items() if k != "dropout"},
        }

    def introduction(self) -> list[str]:
        """The data and the model."""
        c = self.config
        parameters, _ = counted(self._empty, c.encoder_layers)
        texts = [
            Text(clip.text, label)
            for clip, label in zip(self.clips.val, self.labels["val"], strict=True)
        ]
        return [
            f"{self.settings.data}: {len(self.targets.classes)} classes, "
            f"{len(self.clips.train):,} sounds to learn from, {len(texts):,} held out; "
            f"{self.targets.without_a_model(texts)}",
            *self.clips.remarks,
            f"model: {parameters:,} parameters, {c.scheme}, {c.encoder_layers} layers of width "
            f"{c.dim}",
        ]
