"""Which of a few labels a sound has."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, final

from torch import Tensor

from addnorm import reading
from addnorm.data.audio import RATE, log_mel, read_sound
from addnorm.data.decoding import Decoders
from addnorm.data.recordings import Recording, read_labelled_sounds
from addnorm.data.rows import padded_frames
from addnorm.data.sources import DataError
from addnorm.errors import Mendable
from addnorm.progress import ProgressBar
from addnorm.uses.labels import check_labels, finite, label_answers, label_figures, label_line
from addnorm.uses.transcription import FILE, HOP, HeardSpeech
from addnorm.uses.use import Answer, Unusable, Use, text_of
from addnorm.words import a_few, plural


@final
class SoundLabels(Use):
    """A model of which ``probabilities(features, valid)`` is (sounds, labels), asked for the best
    label of files of sound. The option ``top`` adds, as ``probabilities``, that number of the most
    probable labels.

    ``n_mels``, ``frames``: bands of the features, and the most frames that the model hears.
    """

    options = MappingProxyType({"top": None})
    example = '{"audio_filepath": "a.wav"}'
    file_keys = FILE

    def __init__(
        self,
        probabilities: Callable[[Tensor, Tensor], Tensor],
        labels: Sequence[str],
        n_mels: int,
        frames: int,
    ) -> None:
        self.probabilities, self.labels = probabilities, tuple(labels)
        self.n_mels, self.frames = n_mels, frames

    def question(self, item: str | Mapping[str, Any]) -> HeardSpeech:
        """The sound in a file."""
        name = text_of(item, FILE, self.example)
        try:
            return self._read(Recording(reading.place(name, DataError), "", name))
        except DataError as error:
            raise Unusable(str(error)) from None

    def _read(self, row: Recording) -> HeardSpeech:
        """A sound as the model hears it; a ``DataError`` for one that it cannot hear."""
        samples = read_sound(row.file, start=row.start, length=row.length).samples
        if len(samples) > self.frames * HOP:
            raise DataError(
                f"{row.file} is {len(samples) / RATE:.1f} seconds long, and the model hears "
                f"{self.frames * HOP / RATE:g}: cut it"
            )
        return HeardSpeech(str(row.file), log_mel(samples, self.n_mels))

    def _shares(self, sounds: Sequence[HeardSpeech]) -> Tensor:
        """(sounds, labels), finite."""
        batch = padded_frames([sound.features for sound in sounds])
        return finite(self.probabilities(batch["features"], batch["valid"]))

    def answers(
        self, questions: Sequence[HeardSpeech], options: Mapping[str, Any]
    ) -> list[list[Answer]]:
        """input, label, probability, and with ``top`` probabilities; one answer to each sound."""
        names = [question.name for question in questions]
        return label_answers(names, self._shares(questions), self.labels, options["top"])

    def line(self, answer: Answer) -> str:
        """Labels with their probabilities in percent, in columns."""
        return label_line(answer)

    def evaluate(
        self, data: Sequence[str], options: Mapping[str, Any], *, batch_size: int, bar: ProgressBar
    ) -> dict[str, Any]:
        """Those of ``label_figures``, over all sounds that can be used; the others are named under
        ``errors``. A ``Mendable`` if none can."""
        rows = [row for name in data for row in read_labelled_sounds(name).rows]
        check_labels({row.text for row in rows}, self.labels)
        with Decoders(self._read) as decoders:
            outcomes = list(decoders.outcomes(rows))
        errors = [str(outcome.error) for outcome in outcomes if outcome.error is not None]
        good = [outcome for outcome in outcomes if outcome.error is None]
        if not good:
            raise Mendable(f"no sound can be used: {a_few(errors)}")
        answers: list[int] = []
        for first in range(0, len(good), batch_size):
            part = [outcome.sure() for outcome in good[first : first + batch_size]]
            answers += self._shares(part).argmax(-1).tolist()
            bar.update(len(answers), len(good))
        right = [outcome.item.text for outcome in good]
        figures = label_figures(right, answers, self.labels, "sounds")
        if errors:
            figures |= {"unreadable": len(errors), "errors": errors}
            figures["remark"] = f"{plural(len(errors), 'sound')} left out: {a_few(errors)}"
        return figures
