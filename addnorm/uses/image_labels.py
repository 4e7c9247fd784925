"""Which of a few labels a picture has."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from addnorm.data.decoding import Decoders
from addnorm.data.image_sets import IMAGE, ImageEntry, read_image_set
from addnorm.data.images import ImageError, ImageFrame, ImageValues, read_image
from addnorm.errors import Mendable
from addnorm.progress import ProgressBar
from addnorm.uses.labels import check_labels, finite, label_answers, label_figures, label_line
from addnorm.uses.use import Answer, Unusable, Use, text_of
from addnorm.words import a_few, plural


class ImageQuestion(NamedTuple):
    """A picture, as the model reads it but for the mean."""

    name: str
    fitted: ImageValues


@final
class ImageLabels(Use):
    """A model of which ``probabilities(pixels)`` is (pictures, labels), asked for the best label.

    An input is the name of a file, or an object with one. The option ``top`` adds, as
    ``probabilities``, that number of the most probable labels. ``frame``: how a picture becomes
    pixels.
    """

    options = MappingProxyType({"top": None})
    example = '{"image": "cat.jpg"}'
    file_keys = IMAGE

    def __init__(
        self,
        probabilities: Callable[[Tensor], Tensor],
        labels: Sequence[str],
        frame: ImageFrame,
    ) -> None:
        self.probabilities, self.labels, self.frame = probabilities, tuple(labels), frame

    def question(self, item: str | Mapping[str, Any]) -> ImageQuestion:
        """The picture that an item names."""
        name = text_of(item, IMAGE, self.example)
        try:
            return ImageQuestion(name, self.frame.fitted(read_image(name)))
        except ImageError as error:
            raise Unusable(str(error)) from None

    def questions(self, items: Sequence[str | Mapping[str, Any]]) -> Iterator[Any]:
        """Read in several threads."""
        with Decoders(self.question) as decoders:
            for outcome in decoders.outcomes(items):
                error = outcome.error
                if error is not None and not isinstance(error, Unusable):
                    raise error
                yield outcome.value if error is None else error

    def answers(
        self, questions: Sequence[ImageQuestion], options: Mapping[str, Any]
    ) -> list[list[Answer]]:
        """input, label, probability, and with ``top`` probabilities; one answer to each picture. Of
        two labels that are equally probable the first comes first."""
        p = self._shares([question.fitted for question in questions])
        names = [question.name for question in questions]
        return label_answers(names, p, self.labels, options["top"])

    def line(self, answer: Answer) -> str:
        """Labels with their probabilities in percent, in columns."""
        return label_line(answer)

    def _shares(self, fitted: Sequence[ImageValues]) -> Tensor:
        """(pictures, labels), finite."""
        return finite(self.probabilities(self.frame.pixels(torch.from_numpy(np.stack(fitted)))))

    def evaluate(
        self, data: Sequence[str], options: Mapping[str, Any], *, batch_size: int, bar: ProgressBar
    ) -> dict[str, Any]:
        """Those of ``label_figures``, over all pictures that can be read; the names of the others
        are under ``errors``. A ``Mendable`` if none can."""
        entries = [entry for name in data for entry in read_image_set(name).entries]
        check_labels({entry.label for entry in entries}, self.labels)
        right, answers, errors = list[str](), list[int](), list[str]()
        with Decoders(self._read) as decoders:
            outcomes, count = decoders.outcomes(entries), 0
            while part := [one for _, one in zip(range(batch_size), outcomes, strict=False)]:
                errors += [str(one.error) for one in part if one.error is not None]
                good = [one for one in part if one.error is None]
                if good:
                    right += [one.item.label for one in good]
                    answers += self._shares([one.sure() for one in good]).argmax(-1).tolist()
                count += len(part)
                bar.update(count, len(entries))
        if not answers:
            raise Mendable(f"no picture can be read: {a_few(errors)}")
        figures = label_figures(right, answers, self.labels, "pictures")
        if errors:
            figures |= {"unreadable": len(errors), "errors": errors}
            figures["remark"] = f"{plural(len(errors), 'picture')} left out: {a_few(errors)}"
        return figures

    def _read(self, entry: ImageEntry) -> ImageValues:
        return self.frame.fitted(entry.read())
