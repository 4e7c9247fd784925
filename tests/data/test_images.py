"""Pictures: every kind of file as it is displayed, refusals by name, and what a model reads."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from addnorm.data import images
from addnorm.data.images import ImageError, ImageFrame, decode_image, image_from_array, read_image
from addnorm.errors import Mendable

COLOURS = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
PICTURE = Image.fromarray(COLOURS)


def encoded(picture: Any, kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_colours_come_back(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert (decode_image(encoded(PICTURE, kind, **options), "x") == COLOURS).all()


def test_a_rotation_in_exif_is_obeyed() -> None:
    """The eight orientations of the EXIF standard, by what must be done to the stored pixels."""
    a = COLOURS
    displayed = {1: a, 2: a[:, ::-1], 3: a[::-1, ::-1], 4: a[::-1], 5: a.transpose(1, 0, 2)}
    displayed |= {
        6: np.rot90(a, -1),
        7: np.rot90(a.transpose(1, 0, 2), 2),
        8: np.rot90(a),
    }
    for orientation, want in displayed.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        assert (decode_image(encoded(PICTURE, exif=exif), "x") == want).all(), orientation


def test_what_is_transparent_lies_on_white() -> None:
    clear = PICTURE.convert("RGBA")
    clear.putalpha(Image.fromarray(np.array([[0, 255, 255, 255, 255, 255, 128]] * 5, np.uint8)))
    image = decode_image(encoded(clear), "x")
    assert (image[:, 0] == 255).all()
    assert (image[:, 1:6] == COLOURS[:, 1:6]).all()
    half = COLOURS[:, 6] * 128.0 / 255 + 255 * 127.0 / 255
    assert np.abs(image[:, 6] - half).max() <= 1
    palette = PICTURE.convert("P")
    first = palette.getpixel((0, 0))
    image = decode_image(encoded(palette, "GIF", transparency=first), "x")
    assert (image[0, 0] == 255).all()
    grey = Image.fromarray(np.array([[[9, 0], [9, 255]]], np.uint8), "LA")
    assert decode_image(encoded(grey), "x")[..., 0].tolist() == [[255, 9]]


def test_other_modes_become_colours() -> None:
    cmyk = Image.new("CMYK", (4, 3), (255, 0, 0, 0))  # all cyan: no red
    image = decode_image(encoded(cmyk, "TIFF"), "x")
    assert image.shape == (3, 4, 3)
    assert image[0, 0].tolist() == [0, 255, 255]
    deep = np.array([[0, 256, 65535]], np.uint16)
    assert decode_image(encoded(Image.fromarray(deep)), "x")[0, :, 1].tolist() == [0, 1, 255]
    assert decode_image(encoded(Image.fromarray(deep), "TIFF"), "x")[0, :, 1].tolist() == [
        0,
        1,
        255,
    ]
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert decode_image(encoded(bits), "x")[0, :, 2].tolist() == [0, 255]
    assert decode_image(encoded(Image.new("L", (1, 1), 7)), "x").tolist() == [[[7, 7, 7]]]


def test_what_is_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    png, jpeg = encoded(PICTURE), encoded(PICTURE.resize((99, 99)), "JPEG")
    fractions = Image.fromarray(np.zeros((2, 2), np.float32))
    for content, message in {
        b"": "f.png is empty",
        b"no picture": "f.png is not a picture that Pillow can read",
        png[:60]: "f.png is damaged or cut short",
        jpeg[: len(jpeg) // 2]: "f.png is damaged or cut short",
        png[:50] + b"\0" + png[51:]: "f.png is damaged or cut short",
        encoded(fractions, "TIFF"): "f.png has fractions for pixels",
        encoded(Image.new("1", (9_000, 8_900))): "f.png has 9000 x 8900 pixels, more than",
        encoded(Image.new("1", (10_000, 9_000))): "f.png has even more pixels, more than",
        b"version https://git-lfs.github.com/spec/v1": "only a pointer of Git LFS",
    }.items():
        with pytest.raises(ImageError, match=message):
            decode_image(content, "f.png")
    with pytest.raises(ImageError, match="No such file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="it is a folder"):
        read_image(tmp_path)


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ImageError, match=r"pip install 'addnorm\[image\]'"):
        decode_image(b"x", "f.png")


def test_arrays_of_every_type() -> None:
    grey = np.array([[0, 128, 255]], np.uint8)
    want = np.repeat(grey[..., None], 3, 2)
    for values in (
        *(grey, grey[..., None], grey.astype(np.int64), grey / 255.0, want),
        *(grey.astype(np.uint16) * 257, np.dstack([want, np.full((1, 3), 255)])),
    ):
        assert (image_from_array(values, "x") == want).all()
    assert image_from_array(grey > 100, "x")[0, :, 0].tolist() == [0, 255, 255]
    for values, message in (
        (np.zeros(3), "has the shape"),
        (np.zeros((2, 2, 2)), "has the shape"),
        (np.zeros((0, 2)), "no pixels"),
        (np.array([[1.5]]), "fractions from 1.5"),
        (np.array([[300]]), "numbers from 300"),
        (np.array([[np.nan]]), "fractions from nan"),
    ):
        with pytest.raises(ImageError, match=message):
            image_from_array(values, "x")


# --- as a model reads it --------------------------------------------------------------------------


def test_a_picture_of_any_shape_fits() -> None:
    white_left = np.zeros((4, 8, 3), np.uint8)
    white_left[:, :4] = 255
    pad, crop, stretch = (ImageFrame(8, 8, 3, fit).fitted(white_left) for fit in images.FITS)
    assert pad.shape == crop.shape == stretch.shape == (3, 8, 8)
    border = round(255 * 12 / 24)  # half of what is along the sides is white
    assert (pad[0, :2] == border).all()
    assert (pad[0, 3:5, :3] == 255).all()
    assert (pad[0, 3:5, 5:] == 0).all()
    assert (crop[0, :, :2] == 255).all()  # the middle, twice as large
    assert (crop[0, :, 6:] == 0).all()
    assert (stretch[0, :, :3] == 255).all()
    for shape in ((1, 1), (1, 9), (700, 3)):
        for fit in images.FITS:
            image = np.full((*shape, 3), 9, np.uint8)
            assert (ImageFrame(6, 5, 1, fit).fitted(image) == 9).all()
    untouched = ImageFrame(5, 7).fitted(COLOURS)
    assert (untouched == COLOURS.transpose(2, 0, 1)).all()
    middle = ImageFrame(1, 3, whole=(5, 7), fit="stretch").fitted(COLOURS)
    assert (middle == COLOURS[2:3, 2:5].transpose(2, 0, 1)).all()


def test_pixels_are_centred() -> None:
    frame = ImageFrame(1, 2, 3, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 2.0))
    fitted = np.array([[[0, 255]]] * 3, np.uint8)
    assert frame.pixels(fitted).tolist() == [[[0, 1]], [[-1, 1]], [[-0.5, 0]]]
    batch = torch.from_numpy(np.stack([fitted, fitted]))
    assert torch.equal(frame.pixels(batch)[1], frame.pixels(fitted))


def test_a_frame_is_what_transformers_does() -> None:
    """With Pillow behind it, as ours: the same to rounding."""
    transformers = pytest.importorskip("transformers")
    module = transformers.models.vit.image_processing_pil_vit
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8))
    frame = ImageFrame(16, 12, 3, "stretch", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic")
    card = {k: v for k, v in frame.to_preprocessor().items() if k != "addnorm_fit"}
    theirs = module.ViTImageProcessorPil(**card)(picture, return_tensors="pt")["pixel_values"][0]
    assert (frame.pixels(frame.fitted(np.asarray(picture))) - theirs).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"height": 0}, "height must be"),
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"fit": "fill"}, "unknown fit"),
        ({"mean": (0.1, 0.2)}, "mean must be one number"),
        ({"std": (0.0,)}, "std must be above 0"),
        ({"whole": (4, 4)}, "has no middle"),
        ({"resampling": "cubic"}, "did you mean bicubic"),
    ],
    ids=str,
)
def test_a_frame_that_makes_no_sense_is_refused(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(Mendable, match=message):
        ImageFrame(**{"height": 8, "width": 8, **choices})
