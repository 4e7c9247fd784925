"""Pictures with labels for a training: read, divided into what is learned from and what is held
out, and looked at for what a user should know before he trains on them.

A picture is held out by a hash of its file alone, or because it is in a set of its own for that.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from addnorm.data.decoding import Decoders
from addnorm.data.image_sets import ImageEntry, read_image_set
from addnorm.data.images import ImageFrame, ImageValues, is_grey
from addnorm.data.sources import DataError
from addnorm.progress import ProgressBar
from addnorm.tasks.labelled_texts import (
    LabelledRow,
    Text,
    check_known,
    check_labels,
    divided,
    unmeasured,
)
from addnorm.words import a_few, plural

IN_MEMORY = 2 << 30  # bytes of pictures; what is more is decoded whenever it is read
Colours = Literal["auto", "grey", "rgb"]


class _LookedAt(NamedTuple):
    """What is known of a picture after it was read once."""

    digest: str
    size: tuple[int, int]  # height and width, as displayed
    grey: bool
    fitted: ImageValues


@final
class ImageRows:
    """Pictures of a training with the numbers of their labels.

    ``entries``: where they are. ``labels``: the number of each one's. ``frame``: what a model reads
    of them. ``fitted``: all of that, (pictures, channels, height, width) in 8 bits; None: it is
    more than the memory should hold, and each is decoded when it is read.
    """

    def __init__(
        self,
        entries: Sequence[ImageEntry],
        labels: Sequence[int],
        frame: ImageFrame,
        fitted: ImageValues | None,
    ) -> None:
        self.labels = np.array(labels, np.int64)
        self.names = [entry.name for entry in entries]
        self.fitted, self._entries, self._frame = fitted, entries, frame
        self._decoders: Decoders[ImageEntry, ImageValues] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, places: Sequence[int] | NDArray[np.int64]) -> ImageValues:
        """(places, channels, height, width) in 8 bits, in their order."""
        if self.fitted is not None:
            return self.fitted[np.asarray(places, np.int64)]
        if self._decoders is None:
            self._decoders = Decoders(partial(_fitted, frame=self._frame))
        outcomes = self._decoders.outcomes(self._entries[i] for i in places)
        return np.stack([outcome.sure() for outcome in outcomes])

    def texts(self) -> list[Text]:
        """The names of the pictures with their labels, as ``tasks.targets`` takes both."""
        return [Text(name, (int(i),)) for name, i in zip(self.names, self.labels, strict=True)]


def _fitted(entry: ImageEntry, frame: ImageFrame) -> ImageValues:
    return frame.fitted(entry.read())


@final
@dataclass(frozen=True)
class LabelledImages:
    """What there is to learn from, and to measure on."""

    train: ImageRows
    val: ImageRows
    classes: Sequence[str]
    """The labels by their numbers."""
    frame: ImageFrame
    """How a picture becomes pixels, with the mean and the deviation of those to learn from."""
    identity: str
    """A short hash of all pictures with their labels."""
    remarks: Sequence[str] = field(default=())
    """What is odd about the pictures, in sentences."""


@final
class _Side:
    """The pictures of one file or folder that can be read, in their order."""

    def __init__(self, data: Path, frame: ImageFrame) -> None:
        listed = read_image_set(data)
        self.remarks = list(listed.remarks)
        self.entries, self.views = list[ImageEntry](), list[_LookedAt]()
        errors = list[str]()
        size = len(listed.entries) * frame.channels * frame.height * frame.width
        self.in_memory = size <= IN_MEMORY
        with Decoders(partial(_look, frame=frame, keep=self.in_memory)) as decoders:
            with ProgressBar("decoding", len(listed.entries), patience=2.0) as bar:
                for outcome in decoders.outcomes(listed.entries):
                    if outcome.error is None:
                        self.entries.append(outcome.item)
                        self.views.append(outcome.sure())
                    else:
                        errors.append(str(outcome.error))
                    bar.advance(1)
            self.rate = decoders.rate("pictures")
        if not self.entries:
            raise DataError(f"{data}: no picture can be read: {a_few(errors)}")
        if errors:
            self.remarks.append(
                f"{plural(len(errors), 'picture')} of {data} cannot be read and "
                f"{'is' if len(errors) == 1 else 'are'} left out: {a_few(errors, 5, '; ')}"
            )
        dots = [e.name for e, s in zip(self.entries, self.views, strict=True) if s.size == (1, 1)]
        if dots:
            self.remarks.append(f"{plural(len(dots), 'picture')} of a single pixel: {a_few(dots)}")

    def rows(self) -> list[LabelledRow]:
        """What the division and the checks take: of each picture its hash, label and name."""
        return [
            LabelledRow(view.digest, (entry.label,), entry.name)
            for entry, view in zip(self.entries, self.views, strict=True)
        ]


def _look(entry: ImageEntry, frame: ImageFrame, keep: bool) -> _LookedAt:
    """Read a picture; what the model reads of it is empty unless it is to ``keep``."""
    raw = entry.raw()
    image = entry.decode(raw)
    fitted = frame.fitted(image) if keep else np.empty(0, np.uint8)
    height, width = image.shape[:2]
    return _LookedAt(hashlib.sha256(raw).hexdigest(), (height, width), is_grey(image), fitted)


def read_labelled_images(
    data: Path,
    val_data: Path | None,
    val_fraction: float,
    frame: ImageFrame,
    colours: Colours | None,
    centred: bool = True,
) -> LabelledImages:
    """The pictures of ``data``, the share ``val_fraction`` of them held out; or all to learn from,
    if those to hold out are in ``val_data``. Files that are no pictures are left out, and told.

    ``frame``: what the model reads of them; ``colours`` says whether in grey: auto, if all of them
    are, None: as the frame says. ``centred``: its mean and deviation become those of the pictures
    to learn from. A ``DataError`` where nothing can be learned or measured.
    """
    if colours is not None:
        frame = _with_channels(frame, 1 if colours == "grey" else 3)
    sides = [_Side(data, frame), *([] if val_data is None else [_Side(val_data, frame)])]
    remarks = [remark for side in sides for remark in side.remarks]
    remarks.append("; ".join(side.rate for side in sides))
    if colours == "auto" and all(view.grey for side in sides for view in side.views):
        frame = _with_channels(frame, 1)
    rows, apart = sides[0].rows(), sides[-1].rows()
    classes = sorted({name for row in rows for name in row.labels})
    check_labels(data, rows, classes, "picture")
    if val_data is None:
        train, apart = divided(data, rows, val_fraction, "picture")
    else:
        train = rows
        check_known(apart, classes, data, "picture")
    remarks += _in_both(train, apart, val_data) + unmeasured(train, apart, classes, "picture")
    places = {name: i for i, name in enumerate(classes)}
    one = _image_rows(sides[0], train, places, frame)
    other = _image_rows(sides[-1], apart, places, frame)
    if centred:
        frame = _centred(frame, one)
    content = [(row.text, row.labels) for part in (train, apart) for row in part]
    identity = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
    return LabelledImages(one, other, classes, frame, identity, remarks)


def _with_channels(frame: ImageFrame, channels: int) -> ImageFrame:
    return ImageFrame(frame.height, frame.width, channels, frame.fit, resampling=frame.resampling)


def _in_both(
    train: Sequence[LabelledRow], val: Sequence[LabelledRow], val_data: Path | None
) -> list[str]:
    """A sentence on pictures that are learned from and held out too; nothing if there are none."""
    learned = {row.text for row in train}
    common = [row.where for row in val if row.text in learned]
    if not common:
        return []
    return [
        f"{plural(len(common), 'picture')} of {val_data} can be learned from too, and what is "
        f"measured on them is what was learned by heart: {a_few(common)}"
    ]


def _image_rows(
    side: _Side, rows: Sequence[LabelledRow], places: dict[str, int], frame: ImageFrame
) -> ImageRows:
    """Those of a side that are in ``rows``, in their order."""
    names = {row.where for row in rows}
    pairs = [(e, s) for e, s in zip(side.entries, side.views, strict=True) if e.name in names]
    fitted = None
    if side.in_memory:
        fitted = np.stack([view.fitted[: frame.channels] for _, view in pairs])
    labels = [places[entry.label] for entry, _ in pairs]
    return ImageRows([entry for entry, _ in pairs], labels, frame, fitted)


def _centred(frame: ImageFrame, rows: ImageRows) -> ImageFrame:
    """With the mean and the deviation of a picture's pixels, each channel's, of up to 2,000 of
    these pictures."""
    places = np.linspace(0, len(rows) - 1, min(len(rows), 2000)).round().astype(np.int64)
    values = rows.at(places).astype(np.float64) / 255.0
    mean, std = values.mean((0, 2, 3)), values.std((0, 2, 3))
    return ImageFrame(
        frame.height,
        frame.width,
        frame.channels,
        frame.fit,
        tuple(round(float(m), 4) for m in mean),
        tuple(max(round(float(s), 4), 0.01) for s in std),
        frame.resampling,
        frame.whole,
    )
