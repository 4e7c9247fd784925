"""A picture from a file, as it is displayed, and as a model reads it.

Whatever a file holds becomes 8 bits of red, green and blue: a rotation in its EXIF data is obeyed,
what is transparent is laid on white, CMYK, palettes, grey and 16 bit are converted, of an animation
the first picture counts. What cannot be converted without a guess is refused with the reason.
"""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from addnorm import reading
from addnorm.checks import check_known, check_whole, is_number
from addnorm.data.sources import DataError
from addnorm.errors import Mendable, value_in_short
from addnorm.words import error_in_a_line

ImageValues = NDArray[np.uint8]
"""(height, width, 3), as displayed."""

EXTRA: Final = "reading pictures needs Pillow: pip install 'addnorm[image]'"
SUFFIXES: Final = (
    *(".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".tga", ".ico", ".avif"),
)
"""What the names of files of pictures end with."""
MOST_PIXELS: Final = 80_000_000
"""Of one picture: a file of a few bytes can hold one that fills the memory."""
WHITE: Final = 255


@final
class ImageError(DataError):
    """A picture that cannot be read; the message begins with its name."""


def pillow() -> Any:
    """Pillow's module ``Image``; an ``ImageError`` names the extra that brings it."""
    try:
        from PIL import Image as module
    except ImportError:
        raise ImageError(EXTRA) from None
    return module


def is_image_name(name: str | os.PathLike[str]) -> bool:
    """Whether a file is one of a picture, by its name."""
    return os.fspath(name).lower().endswith(SUFFIXES)


def read_image(file: str | os.PathLike[str]) -> ImageValues:
    """The picture in a file, as it is displayed; an ``ImageError`` says why there is none."""
    place = reading.place(file, ImageError)
    return decode_image(reading.raw(place, ImageError), str(file))


def decode_image(content: bytes, name: str) -> ImageValues:
    """The picture that a file of these bytes holds; ``name`` is what messages call it."""
    library = pillow()
    if not content:
        raise ImageError(f"{name} is empty")
    start = content[: len(reading.POINTER)].decode(errors="replace")
    reading.check_no_pointer(Path(name), start, ImageError)
    try:
        with library.open(io.BytesIO(content)) as opened:
            width, height = opened.size
            if width * height > MOST_PIXELS:
                raise _too_large(name, f"{width} x {height}")
            opened.load()
            return _displayed(opened, name)
    except (ImageError, MemoryError):
        raise
    except (library.DecompressionBombError, library.DecompressionBombWarning):
        raise _too_large(name, "even more") from None
    except library.UnidentifiedImageError:
        raise ImageError(f"{name} is not a picture that Pillow can read") from None
    except Exception as error:  # what reading garbage raises has no common base
        raise ImageError(f"{name} is damaged or cut short: {error_in_a_line(error, 80)}") from None


def _too_large(name: str, size: str) -> ImageError:
    return ImageError(
        f"{name} has {size} pixels, more than the {MOST_PIXELS:,} that are read: make it smaller "
        "first"
    )


def _displayed(opened: Any, name: str) -> ImageValues:
    """A picture of Pillow's as it is displayed."""
    from PIL import Image, ImageOps

    turned = ImageOps.exif_transpose(opened)
    if turned.mode in ("I", "F"):
        raise ImageError(
            f"{name} has {'whole numbers of 32 bits' if turned.mode == 'I' else 'fractions'} for "
            "pixels, and nothing says which of them is white: save it with 8 or 16 bits"
        )
    if turned.mode.startswith("I;16"):
        grey = np.asarray(turned).astype(np.uint16) >> 8
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if turned.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in turned.info:
        clear = turned.convert("RGBA")
        paper = Image.new("RGBA", clear.size, (WHITE, WHITE, WHITE, WHITE))
        turned = Image.alpha_composite(paper, clear)
    return np.array(turned.convert("RGB"))


def image_from_array(values: NDArray[Any], name: str) -> ImageValues:
    """A picture from an array (height, width) or (height, width, 1, 3 or 4), of 8 bits, of 16, of
    fractions from 0 to 1, or of truth values; ``name`` is what the message calls another."""
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)):
        raise ImageError(
            f"{name} has the shape {values.shape}: a picture is (height, width) or (height, width, "
            "3)"
        )
    if 0 in values.shape:
        raise ImageError(f"{name} has no pixels: its shape is {values.shape}")
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * 255
    elif values.dtype == np.uint16:
        values = (values >> 8).astype(np.uint8)
    elif np.issubdtype(values.dtype, np.floating):
        low, high = float(values.min()), float(values.max())
        if not 0.0 <= low <= high <= 1.0:
            raise ImageError(
                f"{name} has fractions from {low:g} to {high:g} for pixels: they must be from 0 to "
                "1, or whole numbers from 0 to 255"
            )
        values = np.rint(values * 255.0).astype(np.uint8)
    elif values.dtype != np.uint8:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 255:
            raise ImageError(f"{name} has numbers from {low} to {high} for pixels, not 0 to 255")
        values = values.astype(np.uint8)
    if values.ndim == 2:
        return np.repeat(values[..., None], 3, axis=2)
    if values.shape[2] == 4:
        alpha = values[..., 3:].astype(np.float64) / 255.0
        blended = values[..., :3] * alpha + WHITE * (1.0 - alpha)
        return np.rint(blended).astype(np.uint8)
    return np.ascontiguousarray(values)


def is_grey(image: ImageValues) -> bool:
    """Whether a picture has no colour."""
    return bool((image[..., :1] == image[..., 1:]).all())


def to_png(image: ImageValues) -> bytes:
    """A picture (height, width, 3) as the bytes of a PNG."""
    content = io.BytesIO()
    pillow().fromarray(image).save(content, "PNG")
    return content.getvalue()


# --- as a model reads it --------------------------------------------------------------------------

Fit = Literal["pad", "crop", "stretch"]
FITS = ("pad", "crop", "stretch")
RESAMPLINGS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
"""What a way of resizing is called -> Pillow's number of it, which preprocessor_config.json has."""


@final
@dataclass(frozen=True)
class ImageFrame:
    """How a picture of any size becomes the pixels that a model reads, checked when it is made.

    ``fitted`` gives 8 bits (channels, height, width), ``pixels`` what the model is called with.
    """

    height: int
    """Of what the model reads, in pixels."""
    width: int
    """Of what the model reads, in pixels."""
    channels: int = 3
    """3 for colours, 1 for grey."""
    fit: str = "pad"
    """What becomes of a picture of another shape: pad, borders in the colour of its own; crop, the
    middle of it; stretch."""
    mean: tuple[float, ...] = (0.5,)
    """Of each channel, what is subtracted where black is 0 and white 1; one number for all."""
    std: tuple[float, ...] = (0.5,)
    """Of each channel, what is divided by; one number for all."""
    resampling: str = "bilinear"
    """How it is made larger or smaller, a key of ``RESAMPLINGS``; never with holes or teeth."""
    whole: tuple[int, int] | None = None
    """Height and width to which a picture is brought before its middle is taken; None: those
    above."""

    def __post_init__(self) -> None:
        check_whole("height", self.height)
        check_whole("width", self.width)
        if self.channels not in (1, 3):
            raise Mendable(f"channels must be 1 or 3, got {value_in_short(self.channels)}")
        check_known("fit", self.fit, FITS)
        check_known("resampling", self.resampling, RESAMPLINGS)
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, self.channels) or not all(map(is_number, numbers)):
                raise Mendable(
                    f"{name} must be one number, or one for each of {self.channels} channels, got "
                    f"{value_in_short(numbers)}"
                )
        if min(self.std) <= 0:
            raise Mendable(f"std must be above 0, got {value_in_short(self.std)}")
        if self.whole is not None and (self.whole[0] < self.height or self.whole[1] < self.width):
            raise Mendable(
                f"a picture brought to {self.whole} has no middle of {self.height} x {self.width}"
            )

    def fitted(self, image: ImageValues) -> ImageValues:
        """(channels, height, width), 8 bits."""
        library = pillow()
        picture = library.fromarray(image)
        if self.channels == 1:
            picture = picture.convert("L")
        how = RESAMPLINGS[self.resampling]
        height, width = self.whole or (self.height, self.width)
        rows, columns = image.shape[:2]
        if self.fit == "stretch" or rows * width == columns * height:
            if picture.size != (width, height):
                picture = picture.resize((width, height), how)
        elif self.fit == "crop":
            scale = max(height / rows, width / columns)
            picture = picture.resize(_size(rows, columns, scale, (height, width), max), how)
        else:
            scale = min(height / rows, width / columns)
            paper = library.new(picture.mode, (width, height), _border(picture))
            picture = picture.resize(_size(rows, columns, scale, (height, width), min), how)
            paper.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
            picture = paper
        top, left = (picture.height - self.height) // 2, (picture.width - self.width) // 2
        if (top, left) != (0, 0) or picture.size != (self.width, self.height):
            picture = picture.crop((left, top, left + self.width, top + self.height))
        values = np.array(picture)
        return (
            values[None] if self.channels == 1 else np.ascontiguousarray(values.transpose(2, 0, 1))
        )

    def pixels(self, fitted: ImageValues | Tensor) -> Tensor:
        """What the model is called with, float32, of (..., channels, height, width) in 8 bits."""
        t = fitted if isinstance(fitted, Tensor) else torch.from_numpy(fitted)
        mean, std = (torch.tensor(n).view(-1, 1, 1) for n in (self.mean, self.std))
        return (t.to(torch.float32) / 255.0 - mean) / std

    def to_preprocessor(self) -> dict[str, Any]:
        """As transformers' preprocessor_config.json has it, with the fit beside it."""
        height, width = self.whole or (self.height, self.width)
        card: dict[str, Any] = {
            "image_processor_type": "ViTImageProcessor"
            if self.whole is None
            else "DeiTImageProcessor",
            "do_resize": True,
            "size": {"height": height, "width": width},
            "resample": RESAMPLINGS[self.resampling],
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": self._each(self.mean),
            "image_std": self._each(self.std),
            "addnorm_fit": self.fit,
        }
        if self.whole is not None:
            card |= {
                "do_center_crop": True,
                "crop_size": {"height": self.height, "width": self.width},
            }
        return card

    def _each(self, numbers: Sequence[float]) -> list[float]:
        return list(numbers) * (self.channels if len(numbers) == 1 else 1)


def _size(
    rows: int, columns: int, scale: float, bounds: tuple[int, int], towards: Any
) -> tuple[int, int]:
    """(width, height) of a picture made larger or smaller by ``scale``, at least one pixel;
    ``towards`` is max or min, of what rounding says and the ``bounds`` (height, width)."""
    height, width = max(1, round(rows * scale)), max(1, round(columns * scale))
    return towards(width, bounds[1]), towards(height, bounds[0])


def _border(picture: Any) -> Any:
    """The mean colour along the four sides of a picture of Pillow's."""
    values = np.asarray(picture)
    sides = [values[0], values[-1], values[:, 0], values[:, -1]]
    mean = np.rint(np.concatenate(sides).mean(0)).astype(int)
    return int(mean) if mean.ndim == 0 else tuple(map(int, mean))


def frame_from_preprocessor(
    card: Mapping[str, Any], height: int, width: int, channels: int, where: object
) -> ImageFrame:
    """What a preprocessor_config.json of transformers says, for a model that reads ``channels`` of
    ``height`` x ``width``; ``where`` begins the messages. A ``DataError`` for what ours does not
    do."""
    if card.get("do_rescale", True) is not True:
        raise DataError(f"{where}: do_rescale=false is not implemented: white is 1 here")
    factor = card.get("rescale_factor", 1 / 255)
    if not is_number(factor) or abs(factor * 255 - 1) > 1e-3:
        raise DataError(f"{where}: rescale_factor={value_in_short(factor)}, expected 1/255")
    numbers = []
    for name, usual in (("image_mean", 0.5), ("image_std", 0.5)):
        value = card.get(name, usual)
        value = list(value) if isinstance(value, list | tuple) else [value]
        if not all(map(is_number, value)):
            raise DataError(f"{where}: {name}={value_in_short(value)} must be numbers")
        numbers.append(tuple(float(v) for v in value))
    mean, std = numbers
    if card.get("do_normalize", True) is not True:
        mean, std = (0.0,), (1.0,)
    fit, whole = card.get("addnorm_fit", "stretch"), None
    if card.get("do_center_crop") is True:
        whole, shortest = _card_size(card.get("size", 256))
        fit = "crop" if shortest else fit
    names = {number: name for name, number in RESAMPLINGS.items()}
    resampling = names.get(card.get("resample", 2))
    if resampling is None:
        raise DataError(
            f"{where}: resample={value_in_short(card['resample'])} is not a number of Pillow's"
        )
    try:
        return ImageFrame(height, width, channels, fit, mean, std, resampling, whole)
    except Mendable as error:
        raise DataError(f"{where}: {error}") from None


def _card_size(size: Any) -> tuple[tuple[int, int] | None, bool]:
    """(height and width of a size in preprocessor_config.json, None where it says neither; whether
    it is that of the shortest edge alone)."""
    if isinstance(size, dict) and isinstance(size.get("shortest_edge"), int):
        return (size["shortest_edge"], size["shortest_edge"]), True
    if isinstance(size, int):
        return (size, size), False
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return (int(size["height"]), int(size["width"])), False
    return None, False
