"""What is said in a recording."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from addnorm import reading
from addnorm.checks import is_number
from addnorm.data.audio import RATE, Samples, log_mel, read_sound
from addnorm.data.decoding import Decoders
from addnorm.data.recordings import Recording, read_recordings
from addnorm.data.rows import padded_frames
from addnorm.data.sources import DataError
from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable, value_in_short
from addnorm.generation.ctc import CTCText, Prefix, greedy, prefix_beams
from addnorm.generation.search import SearchRules, SourceModel, search, stacked
from addnorm.progress import ProgressBar
from addnorm.temporary import evaluation_mode
from addnorm.uses.character_model import CharacterModel
from addnorm.uses.transcription_scores import error_rates
from addnorm.uses.use import Answer, Unusable, Use, text_of
from addnorm.words import a_few, plural

FILE = ("audio_filepath", "audio", "input")
"""Under what an object names a file of sound."""
HOP = 160  # samples in a frame of the features
IGNORED = -100


class Frames(NamedTuple):
    """What a model's encoder makes of sounds, as ``models.frames`` has it."""

    x: Tensor
    valid: Tensor | None


class Recognizer(Protocol):
    """A model that hears, such as ``models.speech.Speech``."""

    rules: SearchRules
    """The ids that begin and end its texts; the one that begins them is CTC's blank."""
    prefix: tuple[int, ...]
    ctc: Any
    decoder: Any

    @property
    def config(self) -> Any: ...

    def encode(self, features: Tensor, valid: Tensor | None = None) -> Any: ...

    def frame_logits(self, frames: Any) -> Tensor: ...

    def decode(self, ids: Tensor, frames: Any) -> Tensor: ...

    def bind_frames(self, frames: Any) -> SourceModel: ...

    def parameters(self) -> Any: ...

    def modules(self) -> Any: ...


class HeardSpeech(NamedTuple):
    """A sound as a model hears it."""

    name: str
    features: Tensor
    """(mels, frames)."""


@final
class Transcription(Use):
    """A recognizer of speech, asked for what is said in files of sound.

    By CTC, ``beams`` beginnings are followed, and a language model of characters (``lm``: what
    ``addnorm.load`` gives) adds ``lm_weight`` times what it finds probable, and ``lm_bonus`` for
    each character. Where the model has a decoder too, it judges the best texts again:
    ``ctc_weight`` times CTC's log-probability and the rest of 1 times its own. A model without CTC,
    such as Whisper, writes by its decoder alone.

    ``model``: hears. ``tokenizer``: that of its texts. ``whole``: it hears sounds of its greatest
    length only, so that shorter ones are followed by silence.
    """

    options = MappingProxyType(
        {"beams": None, "lm": None, "lm_weight": 0.5, "lm_bonus": 0.5, "ctc_weight": 0.5}
    )
    example = '{"audio_filepath": "a.wav"}'
    file_keys = FILE

    def __init__(self, model: Recognizer, tokenizer: Tokenizer, whole: bool = False) -> None:
        self.model, self.tokenizer, self.whole = model, tokenizer, whole

    def with_defaults(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """With the language model as one of this recognizer's characters."""
        how = super().with_defaults(options)
        by_ctc = self.model.ctc is not None
        for name in ("lm", "lm_weight", "lm_bonus", "ctc_weight"):
            needs = "CTC" if not by_ctc else "lm" if name[:3] == "lm_" and how["lm"] is None else ""
            needs = needs or ("a decoder" if name[0] == "c" and self.model.decoder is None else "")
            if name in options and needs:
                raise Mendable(f"{name}={options[name]} has no effect without {needs}")
            if name != "lm" and not is_number(how[name]):
                raise Mendable(f"{name} must be a number, got {value_in_short(how[name])}")
        if not 0 <= how["ctc_weight"] <= 1:
            raise Mendable(f"ctc_weight must be from 0 to 1, got {how['ctc_weight']:g}")
        how["beams"] = how["beams"] or (BEAMS if by_ctc else 1)
        if how["lm"] is not None:
            model, tokenizer = how["lm"].model, how["lm"].tokenizer
            how["lm"] = CharacterModel(model, tokenizer, self._characters())
        return how

    def _characters(self) -> list[str]:
        """What each id stands for; "" for what is no part of a text."""
        count = self.tokenizer.vocab_size
        own = [self.tokenizer.decode([i]) for i in range(count)]
        return own + [""] * (self.model.config.vocab_size - count)

    def question(self, item: str | Mapping[str, Any]) -> HeardSpeech:
        """The sound in a file."""
        name = text_of(item, FILE, self.example)
        try:
            sound = read_sound(reading.place(name, DataError))
        except DataError as error:
            raise Unusable(str(error)) from None
        return self.as_heard(name, sound.samples)

    def as_heard(self, name: str, samples: Samples) -> HeardSpeech:
        """A sound at 16 kHz as features; one that is too long is ``Unusable``."""
        c = self.model.config
        if len(samples) > c.frames * HOP:
            raise Unusable(
                f"{name} is {len(samples) / RATE:.1f} seconds long, and the model hears "
                f"{c.frames * HOP / RATE:g}: cut it, where nobody speaks"
            )
        if self.whole:
            samples = np.pad(samples, (0, c.frames * HOP - len(samples)))
        return HeardSpeech(name, log_mel(samples, c.n_mels))

    def answers(
        self, questions: Sequence[HeardSpeech], options: Mapping[str, Any]
    ) -> list[list[Answer]]:
        """input, text; one answer to each sound."""
        texts = self.texts([question.features for question in questions], options)
        return [
            [{"input": question.name, "text": text}]
            for question, text in zip(questions, texts, strict=True)
        ]

    def texts(self, features: Sequence[Tensor], options: Mapping[str, Any]) -> list[str]:
        """What is said in sounds, which go through the model together."""
        model = self.model
        batch = padded_frames(features)
        device = next(model.parameters()).device
        with evaluation_mode(model.modules()), torch.inference_mode():
            valid = None if self.whole else batch["valid"].to(device)
            frames = model.encode(batch["features"].to(device), valid)
            if model.ctc is None:
                rows = self._by_decoder(frames, options["beams"])
            else:
                rows = self._by_ctc(frames, options)
        return [self.tokenizer.decode([i for i in row if self._is_text(i)]) for row in rows]

    def _is_text(self, id: int) -> bool:
        return id < self.tokenizer.vocab_size and id != self.model.rules.end

    def _by_decoder(self, frames: Any, beams: int) -> list[Sequence[int]]:
        """The best text of each sound that the decoder finds."""
        rules, prefix, count = self.model.rules, list(self.model.prefix), len(frames.x)
        room = self.model.config.context_length - len(prefix)
        results = search(
            self.model.bind_frames(frames),
            count,
            rules,
            max_new_tokens=min(rules.most or room, room),
            beams=beams,
            prefixes=[prefix] * count,
        )
        return [best.ids[len(prefix) :] for best, *_ in results]

    def _by_ctc(self, frames: Any, options: Mapping[str, Any]) -> list[Sequence[int]]:
        """The best text of each sound by CTC, and by the decoder where there is one."""
        logits = self.model.frame_logits(frames).double()
        if not bool(logits.isfinite().all()):
            raise FloatingPointError(
                "the logits are not finite: the weights or the activations hold NaN or overflow"
            )
        count = self.tokenizer.vocab_size
        blank = self.model.rules.start
        others = [i for i in range(count, logits.shape[-1]) if i != blank]
        logits[..., others] = -torch.inf  # the end is no sound
        logprobs = logits.log_softmax(-1).cpu().numpy()
        lengths = [logits.shape[1]] * len(logits)
        if frames.valid is not None:
            lengths = frames.valid.sum(1).tolist()
        rows: list[Sequence[int]] = []
        for i, length in enumerate(lengths):
            sound = logprobs[i, :length]
            if options["beams"] == 1 and options["lm"] is None:
                rows.append(greedy(sound, blank))
                continue
            weight, bonus = (
                (0.0, 0.0)
                if options["lm"] is None
                else (
                    options["lm_weight"],
                    options["lm_bonus"],
                )
            )
            best = prefix_beams(sound, blank, options["beams"], options["lm"], weight, bonus)
            rows.append(self._judged(best, frames, i, options["ctc_weight"]))
        return rows

    def _judged(self, texts: Sequence[CTCText], frames: Any, row: int, ctc_weight: float) -> Prefix:
        """The best of some texts of a sound by the decoder too, if there is one. A text that is too
        long for it is judged by CTC."""
        room = self.model.config.context_length - 1
        judged = [text for text in texts if len(text.ids) <= room]
        if self.model.decoder is None or not judged:
            return texts[0].ids
        rules = self.model.rules
        ids = stacked([[rules.start, *text.ids] for text in judged], rules.pad)
        labels = stacked([[*text.ids, rules.end] for text in judged], IGNORED)
        device = frames.x.device
        one = type(frames)(
            frames.x[row : row + 1].expand(len(judged), -1, -1),
            None if frames.valid is None else frames.valid[row : row + 1].expand(len(judged), -1),
        )
        logits = self.model.decode(ids.to(device), one).double()
        nats = F.cross_entropy(
            logits.flatten(0, 1),
            labels.to(device).flatten(),
            ignore_index=IGNORED,
            reduction="none",
        )
        own = nats.view(len(judged), -1).sum(1).neg().tolist()
        scores = [
            # what a language model added counts in full
            ctc_weight * text.ctc + (1 - ctc_weight) * nats_of_text + text.score - text.ctc
            for text, nats_of_text in zip(judged, own, strict=True)
        ]
        return judged[int(np.argmax(scores))].ids

    def line(self, answer: Answer) -> str:
        """The text, or what stands for none."""
        return answer["text"] or "(nothing)"

    def evaluate(
        self, data: Sequence[str], options: Mapping[str, Any], *, batch_size: int, bar: ProgressBar
    ) -> dict[str, Any]:
        """``wer`` and ``cer`` of all recordings; of one that cannot be used nothing counts as
        heard, and ``errors`` says why."""
        rows = [row for name in data for row in read_recordings(name).rows]
        with Decoders(self._of_recording) as decoders:
            outcomes = list(decoders.outcomes(rows))
        errors = [str(outcome.error) for outcome in outcomes if outcome.error is not None]
        sounds = [None if outcome.error else outcome.sure().features for outcome in outcomes]
        texts = self.transcripts(sounds, options, batch_size, bar)
        figures: dict[str, Any] = error_rates(texts, [row.text for row in rows])
        figures["recordings"] = len(rows)
        if errors:
            figures |= {"unreadable": len(errors), "errors": errors}
            noun = plural(len(errors), "recording")
            figures["remark"] = f"{noun} taken for heard as nothing: {a_few(errors)}"
        return figures

    def _of_recording(self, row: Recording) -> HeardSpeech:
        """A recording that is to be measured."""
        sound = read_sound(row.file, start=row.start, length=row.length)
        return self.as_heard(str(row.file), sound.samples)

    def transcripts(
        self,
        sounds: Sequence[Tensor | None],
        options: Mapping[str, Any],
        batch_size: int,
        bar: ProgressBar,
    ) -> list[str]:
        """The text of each sound (mels, frames), in their order, "" for None. Sounds of like length
        go through the model together."""
        texts = [""] * len(sounds)
        order = sorted((sound.shape[1], i) for i, sound in enumerate(sounds) if sound is not None)
        for first in range(0, len(order), batch_size):
            places = [i for _, i in order[first : first + batch_size]]
            batch = [sound for i in places if (sound := sounds[i]) is not None]
            for i, text in zip(places, self.texts(batch, options), strict=True):
                texts[i] = text
            bar.update(first + len(places), len(order))
        return texts


BEAMS = 8
"""Beginnings that are followed by CTC, where nobody says how many."""
