"""Recognizing speech: what is said in recordings, by CTC, and by a decoder beside it."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from addnorm.data.audio import log_mel
from addnorm.data.recordings import SPOKEN, HeardSound, read_recordings
from addnorm.data.rows import padded_frames
from addnorm.data.sources import DataError, Texts
from addnorm.data.tokenizer import Tokenizer
from addnorm.files import speech
from addnorm.generation.search import stacked
from addnorm.models.speech import Speech, SpeechConfig, SpeechLogits
from addnorm.progress import ProgressBar
from addnorm.settings import (
    AT_RESUME,
    HIDDEN,
    INSIDE,
    AtResume,
    SettingsError,
    check_effect,
    setting,
)
from addnorm.tasks.beginnings import WITH_EPS, SchemesWithNorms
from addnorm.tasks.examples import Picture
from addnorm.tasks.paired_texts import buckets
from addnorm.tasks.recorded import Clip, Clips, Variation, read_clips, step_features
from addnorm.tasks.sound_examples import worst_transcripts
from addnorm.tasks.texts import check, chosen, expanded
from addnorm.temporary import evaluation_mode
from addnorm.training.config import NOTHING, TaskSettings, register
from addnorm.training.memory import MODULES, Needs, counted
from addnorm.training.parallel import here, sum_dtype
from addnorm.training.task import Batch, Best, Task
from addnorm.uses.transcription import Transcription
from addnorm.uses.transcription_scores import error_rates, plain
from addnorm.words import plural

EVAL_ROWS = 16  # recordings that go through the model at once in an evaluation
POOL = 20  # batches whose rows are sorted by length together
IGNORED = -100  # what F.cross_entropy passes over
MOST_SAMPLES = 100
SLOWEST = 0.5  # a speed below which nobody understands
GREEDY: dict[str, Any] = {"beams": 1}
SOURCES = {
    "content": ["data", "val_data", "plain"],
    "tokenizer": ["tokenizer"],
    "rows_per_step": ["rows_per_step"],
}
"""Fact of a task -> the settings that it comes from."""


@final
class AtLeastOne:
    """The numbers from 1 on, to ask for with ``in``."""

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, int) and value >= 1

    def __iter__(self) -> Iterator[str]:  # in words
        return iter(["1 or more"])


WITH_DECODER = {"model.decoder_layers": AtLeastOne()}


@final
@register
@dataclass(frozen=True, kw_only=True)
class TranscribeSettings(TaskSettings):
    """The settings of a recognizer's training, apart from the loop's."""

    name = "transcribe"
    data: str = setting("", AtResume.IF_SAME)
    """Recordings with their texts: a folder with metadata.csv and wavs/ as LJSpeech has them, or a
    .jsonl manifest with audio_filepath and text."""
    val_data: str = setting("", AtResume.IF_SAME)
    """Recordings to hold out, in one of these formats; by itself a share of data."""
    val_fraction: float = setting(0.1, AtResume.ANEW, {"val_data": ("",)})
    """How many of the recordings are held out, chosen by a hash of what is said in each."""
    plain: bool = setting(True, AtResume.ANEW)
    """Learn texts in lower case and without punctuation, as they are spoken."""
    tokenizer: str = setting("characters", AtResume.IF_SAME)
    """characters, bytes, bpe:SIZE (learned from the training texts), or a folder or hub id."""
    rows_per_step: int = setting(16, AtResume.BY_TUNING)
    """Recordings in one optimizer step, of like length, over all micro-batches and processes."""
    dropout: float = setting(0.1, AtResume.WITH_NOTICE)
    """Behind the front and in branches."""
    speed: float = setting(0.1, AtResume.WITH_NOTICE)
    """Two of three recordings are this share faster, or slower; 0: none."""
    noise: float = setting(0.5, AtResume.WITH_NOTICE)
    """The share of recordings with noise, and a loudness, of their own."""
    masks: bool = setting(True, AtResume.WITH_NOTICE)
    """Hide some bands and some stretches of time of each recording (SpecAugment)."""
    label_smoothing: float = setting(0.1, AtResume.WITH_NOTICE, WITH_DECODER)
    """The decoder's: the share of a target's weight that goes to all tokens alike."""
    ctc_weight: float = setting(0.3, AtResume.WITH_NOTICE, WITH_DECODER)
    """The share of CTC in the loss, beside the decoder's."""
    glance_clips: int = setting(50, AtResume.WITH_NOTICE)
    """Held-out recordings that evaluations before the last one hear."""
    samples: int = setting(3, AtResume.FREELY)
    """Held-out recordings to write down at evaluations, for whoever watches."""
    cache: Path = setting(Path("~/.cache/addnorm/data"), AtResume.FREELY)
    """Where learned tokenizers are kept."""
    model: SpeechConfig = field(
        default_factory=lambda: SpeechConfig(vocab_size=2),
        metadata={
            HIDDEN: ("vocab_size", "dropout", "start_id", "end_id", "pad_id", "ctc"),
            INSIDE: {
                "norm": ({"scheme": SchemesWithNorms()},),
                "eps": ({"scheme": SchemesWithNorms(), "norm": WITH_EPS},),
                "context_length": ({"decoder_layers": AtLeastOne()},),
            },
            AT_RESUME: AtResume.ANEW,
        },
    )

    def __post_init__(self) -> None:
        check_effect(self)
        check(self.tokenizer, self.val_fraction, self.dropout)
        if not 0.0 <= self.label_smoothing < 1.0:
            raise SettingsError(f"label_smoothing must be a share, got {self.label_smoothing:g}")
        if not 0.0 <= self.noise <= 1.0:
            raise SettingsError(f"noise must be a share, got {self.noise:g}")
        if not 0.0 < self.ctc_weight < 1.0:
            raise SettingsError(f"ctc_weight must be between 0 and 1, got {self.ctc_weight:g}")
        if not 0.0 <= self.speed <= SLOWEST:
            raise SettingsError(f"speed must be from 0 to {SLOWEST:g}, got {self.speed:g}")
        for name in ("rows_per_step", "glance_clips"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.samples <= MOST_SAMPLES:
            raise SettingsError(f"samples must be from 0 to {MOST_SAMPLES}, got {self.samples}")

    def by_heart(self) -> Mapping[str, Any]:
        """No dropout, sounds as they are, and targets that can be met."""
        heart: dict[str, Any] = {"dropout": 0.0, "speed": 0.0, "noise": 0.0, "masks": False}
        return heart | ({"label_smoothing": 0.0} if self.model.decoder_layers else {})

    def sources(self, fact: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Sequence[str]:
        """The settings behind a fact."""
        return SOURCES.get(fact, [])

    def build(self, choices: Mapping[str, Any] = NOTHING) -> "TranscribeTask":
        """Read the recordings, and make the task of them; all ``choices`` count."""
        if not self.data:
            raise SettingsError(f"data is not set: {SPOKEN}")
        words = f"data={self.data}" + (f", val_data={self.val_data}" if self.val_data else "")
        try:
            clips = read_clips(
                self.data,
                self.val_data,
                self.val_fraction,
                self.model.frames,
                read_recordings,
                _spoken,
            )
        except DataError as error:
            raise DataError(f"{words}: {error}") from None
        if self.plain:
            clips = replace(clips, train=_plain(clips.train), val=_plain(clips.val))
        texts = [clip.text for clip in clips.train]
        tokenizer = chosen(
            self.tokenizer,
            texts=lambda: texts,
            decides=lambda: [Texts(texts).identity()],
            cache=expanded("cache", self.cache),
            characters=lambda: texts + [clip.text for clip in clips.val],
        )
        size = tokenizer.vocab_size
        config = replace(
            self.model,
            vocab_size=size + 2,
            end_id=size,
            start_id=size + 1,
            pad_id=size + 1,
            dropout=self.dropout,
        )
        task = TranscribeTask(self, config, tokenizer, clips)
        for name, rows in task.splits.items():
            if not rows:
                raise DataError(f"{words}: no recording for {name} can be used: {task.long[name]}")
        return task


def _spoken(sound: HeardSound) -> str:
    """What is said, however it is written."""
    return plain(sound.row.text)


def _plain(clips: Sequence[Clip]) -> list[Clip]:
    """With texts as they are spoken."""
    return [clip._replace(text=plain(clip.text)) for clip in clips]


class SpokenRow(NamedTuple):
    """A recording as the task sees it."""

    clip: Clip
    ids: NDArray[np.int64]
    """Of its text."""


@final
class TranscribeTask(Task):
    """What is said in a recording.

    ``settings``: those of the training. ``config``: the model's choices. ``tokenizer``: of its
    texts. ``clips``: what there is to learn from, and what is held out.

    ``splits`` are the recordings that can be learned, ``long`` says of each split which cannot. It
    is for the caller to refuse a split that is empty.
    """

    best = Best("cer", "min")
    noun = "A recognizer of speech"
    unit = "tokens"

    def __init__(
        self, settings: TranscribeSettings, config: SpeechConfig, tokenizer: Tokenizer, clips: Clips
    ) -> None:
        self.settings, self.config, self.tokenizer = settings, config, tokenizer
        self.clips = clips
        sides: dict[str, Sequence[Clip]] = {"train": clips.train, "val": clips.val}
        self.splits: dict[str, list[SpokenRow]] = {}
        self.long: dict[str, str] = {}
        for name, side in sides.items():
            self.splits[name], self.long[name] = self._rows(side)
        self._lengths = {
            name: np.array([row.clip.frames for row in rows], np.int64)
            for name, rows in self.splits.items()
        }
        self._epochs: dict[tuple[str, int, int], list[NDArray[np.int64]]] = {}
        self._sounds: dict[int, Tensor] = {}  # the features of held-out recordings
        self._pictures: list[Picture] = []
        self._alarm = ""

    def _rows(self, clips: Sequence[Clip]) -> tuple[list[SpokenRow], str]:
        """(the recordings with their texts as ids, how many are left out and why, "" if none is).
        CTC needs a frame for each token, and one between two that are the same."""
        rows, fast, long = [], 0, 0
        for clip in clips:
            ids = np.array(self.tokenizer.encode(clip.text), np.int64)
            frames = -(-clip.frames // self.config.strides)
            least = len(ids) + int((ids[1:] == ids[:-1]).sum())
            if least > frames or not len(ids):
                fast += 1
            elif self.config.decoder_layers and len(ids) + 1 > self.config.context_length:
                long += 1
            else:
                rows.append(SpokenRow(clip, ids))
        words = []
        if fast:
            words.append(
                f"{plural(fast, 'recording')} with more tokens than the encoder has frames "
                "(model.strides=2 has twice as many)"
            )
        if long:
            words.append(
                f"{plural(long, 'recording')} with more than {self.config.context_length} tokens "
                "(model.context_length)"
            )
        return rows, ", ".join(words)

    # --- for the loop -----------------------------------------------------------------------------

    def needs(self, micro_rows: int | None, processes: int) -> Needs:
        """Weights, the features of a step, and what every layer keeps of the stream, for rows of
        mean length."""
        c, size = self.config, self.settings.rows_per_step
        layers = c.encoder_layers + c.decoder_layers
        parameters, trained = counted(self._empty, c.encoder_layers)
        own = -(-size // processes)
        rows = min(micro_rows or own, own)
        frames = int(self._lengths["train"].mean())
        batch = own * frames * (4 * c.n_mels + 1)
        # float32: the stream after two sublayers and what these read, in each layer
        batch += rows * (frames // c.strides) * 4 * 4 * c.encoder_layers * c.dim
        names = ("dim", "encoder_layers", "decoder_layers", "hidden")
        because = ", ".join(f"model.{n}={getattr(c, n)}" for n in names)
        because += f", rows_per_step={size}, micro_rows={micro_rows}"
        return Needs(parameters, trained, layers * MODULES, batch, because)

    def _empty(self, layers: int) -> Speech:
        """The model without memory, with so many layers of the encoder."""
        with torch.device("meta"):
            return Speech(replace(self.config, encoder_layers=layers))

    def model(self) -> Speech:
        """A new recognizer."""
        return Speech(self.config)

    def batch(self, split: str, seed: int, step: int, rank: int, world: int) -> Batch:
        """Every world-th recording of the step's, from rank on; none where the last step of an
        epoch has fewer than there are processes.

        How each sounds is drawn from (seed, epoch, its number); all are filled up to the longest of
        the step, so that a row is the same on any number of processes. ``features``, ``valid``;
        ``ids``, which a decoder reads, and ``labels``, the same one token further.
        """
        epoch, place = divmod(step, self._steps(split))
        numbers = self._epoch(split, seed, epoch)[place]
        rows = [self.splits[split][i] for i in numbers]
        s = self.settings
        sounds, longest = step_features(
            [row.clip for row in rows],
            [(seed, epoch, int(i)) for i in numbers],
            self.config,
            Variation(s.speed, s.noise, s.masks) if split == "train" else None,
            rank,
            world,
        )
        return self._padded(rows[rank::world], sounds, longest)

    def row(self, split: str, seed: int, step: int) -> Batch:
        """One, as of a process among as many as there are rows."""
        return self.batch(split, seed, step, 0, self.settings.rows_per_step)

    def _steps(self, split: str) -> int:
        """Batches of an epoch."""
        return -(-len(self.splits[split]) // self.settings.rows_per_step)

    def _epoch(self, split: str, seed: int, epoch: int) -> list[NDArray[np.int64]]:
        """The batches of an epoch, each the numbers of its rows. They are kept for the steps to
        come, and those of epochs before the last one thrown away."""
        key = split, seed, epoch
        if key not in self._epochs:
            self._epochs = {k: v for k, v in self._epochs.items() if k[2] >= epoch - 1}
            size = self.settings.rows_per_step
            self._epochs[key] = buckets(self._lengths[split], size, POOL, seed, epoch)
        return self._epochs[key]

    def _padded(self, rows: Sequence[SpokenRow], sounds: Sequence[Tensor], frames: int) -> Batch:
        """Recordings and their ``sounds`` as one batch of ``frames`` frames or more."""
        c = self.config
        if not rows:
            empty = torch.zeros(0, 1, dtype=torch.int64)
            features = torch.zeros(0, c.n_mels, frames)
            valid = torch.zeros(0, frames, dtype=torch.bool)
            return {"features": features, "valid": valid, "ids": empty, "labels": empty}
        return {
            **padded_frames(sounds, frames),
            "ids": stacked([[c.start_id, *row.ids.tolist()] for row in rows], c.pad_id),
            "labels": stacked([[*row.ids.tolist(), c.end_id] for row in rows], IGNORED),
        }

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Nats of the texts and their ends, by CTC, or by CTC and the decoder: a weighted mean of
        both (Watanabe et al. 2017, equation 14). ``ctc`` is CTC's part. A text that a fast version
        of its sound has no frames for counts nothing there."""
        ctc, text = self._nats(model, batch, self.settings.label_smoothing)
        count = (batch["labels"] != IGNORED).sum()
        if text is None:
            return ctc, count, {}
        share = self.settings.ctc_weight
        return share * ctc + (1 - share) * text, count, {"ctc": ctc.detach()}

    def _nats(
        self, model: nn.Module, batch: Batch, smoothing: float
    ) -> tuple[Tensor, Tensor | None]:
        """(of all texts by CTC, by the decoder; None: there is none)."""
        ids = batch["ids"] if self.config.decoder_layers else None
        logits = model(batch["features"], ids, batch["valid"])
        by_frame, by_token = logits if isinstance(logits, SpeechLogits) else (logits, None)
        frames = batch["valid"][:, :: self.config.strides].sum(1)
        labels = batch["labels"]
        tokens = (labels != IGNORED).sum(1) - 1
        ctc = F.ctc_loss(
            by_frame.float().log_softmax(-1).transpose(0, 1),
            labels[:, : max(int(tokens.max()) if len(tokens) else 0, 1)].clamp(min=0),
            frames,
            tokens.clamp(min=0),
            blank=self.config.start_id,
            reduction="none",
            zero_infinity=True,
        ).sum()
        if by_token is None:
            return ctc, None
        text = F.cross_entropy(
            by_token.float().flatten(0, 1),
            labels.flatten(),
            reduction="sum",
            ignore_index=IGNORED,
            label_smoothing=smoothing,
        )
        return ctc, text

    # --- what is held out -------------------------------------------------------------------------

    def glance(self, model: nn.Module) -> dict[str, float]:
        """Nats per token, and the error rates by the best row of frames, of the first held-out
        recordings."""
        rows = self.splits["val"][: self.settings.glance_clips]
        return {**self._loss(model, rows), **self._scores(model, rows, GREEDY, False)}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Nats per token of all that was held out, and the error rates, as ``addnorm eval`` has
        them. Every process hears all of them, since a sharded model is the work of all at once."""
        rows = self.splits["val"]
        return {**self._loss(model, rows), **self._scores(model, rows, {}, True)}

    def _scores(
        self, model: nn.Module, rows: Sequence[SpokenRow], options: Mapping[str, Any], show: bool
    ) -> dict[str, float]:
        """``wer`` and ``cer``; with ``show`` the worst are kept for ``pictures``."""
        if not isinstance(model, Speech):
            return {}
        use = Transcription(model, self.tokenizer)
        with ProgressBar("listening", patience=2.0) as bar:
            sounds = [self._features(i) for i in range(len(rows))]
            how = use.with_defaults(options)
            outputs = use.transcripts(sounds, how, EVAL_ROWS, bar)
        references = [row.clip.text for row in rows]
        self._alarm = _alarm(outputs, references)
        if show:
            names = [row.clip.file.name for row in rows]
            self._pictures = worst_transcripts(names, references, outputs, sounds)
        return error_rates(outputs, references)

    def _features(self, number: int) -> Tensor:
        """Of a held-out recording, computed once."""
        if number not in self._sounds:
            clip = self.splits["val"][number].clip
            self._sounds[number] = log_mel(clip.samples, self.config.n_mels)
        return self._sounds[number]

    def _loss(self, model: nn.Module, rows: Sequence[SpokenRow]) -> dict[str, float]:
        """``val_loss``: nats per token of the first held-out recordings, weighted as in training
        and without smoothing. By all processes together: each must call it, and gets the same."""
        device = next(model.parameters()).device
        world = here(device)
        sums = torch.zeros(2, dtype=torch.float64)
        step = EVAL_ROWS * world.size
        order = sorted(range(len(rows)), key=lambda i: (rows[i].clip.frames, i))
        share = self.settings.ctc_weight
        with evaluation_mode(model.modules()), torch.no_grad():
            for first in range(0, len(order), step):
                # A process without a row computes one all the same: a sharded model needs them all.
                mine = order[first : first + step][world.rank :: world.size]
                places = mine or order[:1]
                sounds = [self._features(i) for i in places]
                batch = self._padded([rows[i] for i in places], sounds, 1)
                batch = {name: t.to(device) for name, t in batch.items()}
                ctc, text = self._nats(model, batch, 0.0)
                if mine:
                    nats = ctc if text is None else share * ctc + (1 - share) * text
                    sums[0] += nats.cpu().double()
                    sums[1] += (batch["labels"] != IGNORED).sum().cpu()
        nats_sum, count = world.total(sums.to(sum_dtype(device))).tolist()
        return {"val_loss": float(nats_sum / count)}

    def alarm(self) -> str:
        """Whether the model says nothing, or always the same."""
        return self._alarm

    def pictures(self) -> list[Picture]:
        """The worst transcripts of the last evaluation of all, with their spectrograms."""
        return self._pictures

    def sample(self, model: nn.Module) -> list[str]:
        """What is heard in the first held-out recordings, with what was said."""
        rows = self.splits["val"][: self.settings.samples]
        if not isinstance(model, Speech) or not rows:
            return []
        use = Transcription(model, self.tokenizer)
        sounds = [self._features(i) for i in range(len(rows))]
        with ProgressBar(hidden=True) as bar:
            outputs = use.transcripts(sounds, use.with_defaults(GREEDY), EVAL_ROWS, bar)
        return [
            f"{row.clip.file.name}\n→ {output or '(nothing)'}\n= {row.clip.text}"
            for row, output in zip(rows, outputs, strict=True)
        ]

    # --- for whoever uses it ----------------------------------------------------------------------

    def save(self, model: nn.Module, folder: Path) -> None:
        """For ``addnorm.load`` and ``addnorm predict``."""
        assert isinstance(model, Speech)
        speech.write(model, folder, self.tokenizer, None)

    def facts(self) -> dict[str, Any]:
        """The recordings, the tokenizer and what the model is."""
        content = hashlib.sha256()
        for rows in self.splits.values():
            for row in rows:
                content.update(row.clip.values.tobytes() + row.ids.tobytes() + b"|")
            content.update(b"||")
        return {
            "content": content.hexdigest()[:16],
            "tokenizer": self.tokenizer.identity,
            "rows_per_step": self.settings.rows_per_step,
            "model": {k: v for k, v in asdict(self.config).items() if k != "dropout"},
        }

    def introduction(self) -> list[str]:
        """The data, what is left out of it, and the model."""
        c = self.config
        parameters, _ = counted(self._empty, c.encoder_layers)
        train, val = (self.splits[name] for name in ("train", "val"))
        minutes = sum(row.clip.frames for row in train) / 6000
        lines = [
            f"{self.settings.data}: {len(train):,} recordings to learn from, {minutes:.1f} minutes,"
            f" {len(val):,} held out; a step is {self.settings.rows_per_step} of them, an epoch "
            f"{self._steps('train'):,} steps",
            *self.clips.remarks,
        ]
        lines += [
            f"left out of what is {what}: {self.long[name]}"
            for name, what in (("train", "learned from"), ("val", "held out"))
            if self.long[name]
        ]
        decoder = f" and a decoder of {c.decoder_layers}" if c.decoder_layers else ""
        lines.append(
            f"model: {parameters:,} parameters, {c.scheme}, {c.encoder_layers} layers of width "
            f"{c.dim} with CTC{decoder}, {self.tokenizer.vocab_size} tokens"
        )
        return lines


def _alarm(outputs: Sequence[str], references: Sequence[str]) -> str:
    """In words, where a model says nothing at all, or the same of everything."""
    if not any(outputs):
        return (
            "Every frame is blank: nothing is heard in any held-out recording. At the beginning "
            "CTC learns this first; if it stays so for more than a few hundred steps, try a lower "
            "lr, a longer warmup, or --overfit 8"
        )
    if len(outputs) > 2 and len(set(outputs)) == 1 and len(set(references)) > 1:
        return (
            f"The same is heard in every held-out recording ({outputs[0][:60]!r}): the model does "
            "not listen yet"
        )
    return ""
