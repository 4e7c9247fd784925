"""Varied pictures: a function of seed and row alone, and what each choice does."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from addnorm.data.augment import Augment, mixed, shares, varied
from addnorm.settings import SettingsError

PICTURES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 3, 9, 12), np.uint8))
ALL = Augment(crop=0.5, shift=0.1, turn=20.0, flip=0.5, erase=0.5)


def test_a_row_depends_on_its_number_alone() -> None:
    numbers = [5, 6, 7, 8, 9, 10]
    whole = varied(PICTURES, numbers, 3, ALL)
    parts = [varied(PICTURES[i::2], numbers[i::2], 3, ALL) for i in range(2)]
    for i, part in enumerate(parts):
        assert torch.equal(whole[i::2], part)
    assert torch.equal(whole, varied(PICTURES, numbers, 3, ALL))
    for other in (
        varied(PICTURES, numbers, 4, ALL),
        varied(PICTURES, [n + 1 for n in numbers], 3, ALL),
    ):
        assert all(not torch.equal(a, b) for a, b in zip(whole, other, strict=True))
    assert (whole >= 0).all()
    assert (whole <= 255).all()


def test_nothing_is_nothing() -> None:
    assert torch.equal(varied(PICTURES, range(6), 0, Augment()), PICTURES.float())
    assert (shares(range(6), 0, Augment()) == 1).all()
    assert varied(PICTURES[:0], [], 0, ALL).shape == (0, 3, 9, 12)


def test_flip_is_a_mirror() -> None:
    always = varied(PICTURES, range(6), 0, Augment(flip=1.0))
    assert torch.allclose(always, PICTURES.flip(-1).float(), atol=1e-2)
    half = varied(PICTURES[:1].expand(200, -1, -1, -1), range(200), 0, Augment(flip=0.5))
    count = sum(torch.allclose(p, PICTURES[0].float(), atol=1e-2) for p in half)
    assert 70 < count < 130  # 6 standard deviations of a fair coin are 42


def test_a_turn_keeps_distances() -> None:
    """In pixels, not in shares of a picture that is wider than high: a disc stays a disc."""
    y, x = np.mgrid[:60, :120]
    disc = 255.0 * (((y - 29.5) ** 2 + (x - 59.5) ** 2) < 400)
    picture = torch.from_numpy(disc).float().view(1, 1, 60, 120)
    turned = varied(picture, [0], 0, Augment(turn=90.0))
    assert not torch.equal(turned, picture)
    assert (turned - picture).abs().mean() < 0.01 * 255


def test_shift_and_crop_show_parts() -> None:
    ramp = torch.linspace(0, 255, 100).expand(1, 1, 100, 100)
    many = ramp.expand(300, -1, -1, -1)
    moved_pictures = varied(many, range(300), 1, Augment(shift=0.2))
    offsets = (moved_pictures[:, 0, 50, 50] - ramp[0, 0, 50, 50]) / 255
    assert (
        0.15 < offsets.abs().max() <= 0.2 * 100 / 99 + 1e-5
    )  # from centre to centre the ramp is 99 steps
    cropped = varied(many, range(300), 1, Augment(crop=0.25))
    span = (cropped[:, 0, 50, -1] - cropped[:, 0, 50, 0]) / 255
    least = np.sqrt(0.25 * 0.75)  # a quarter of the area, three quarters as wide as high
    assert least - 0.02 < span.min() < 0.6
    assert 0.95 < span.max() <= 1.0


def test_erased_is_noise_in_a_rectangle() -> None:
    blank = torch.zeros(100, 3, 20, 30)
    erased = varied(blank, range(100), 0, Augment(erase=1.0))
    areas = (erased.amax(1) > 0).float().mean((1, 2))
    assert 0.01 < areas.min() < 0.1
    assert 0.25 < areas.max() < 0.37
    quiet = varied(blank, range(100), 0, Augment(erase=0.3))
    assert 10 < int((quiet.flatten(1).amax(1) > 0).sum()) < 50


def test_mixup() -> None:
    share = shares(range(2000), 0, Augment(mixup=0.4))
    assert share.min() >= 0.5
    beta = np.maximum(b := np.random.default_rng(0).beta(0.4, 0.4, 20000), 1 - b)
    assert abs(float(share.mean()) - beta.mean()) < 0.02
    a, b = torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    assert mixed(a, b, torch.tensor([0.5, 0.75]))[:, 0, 0, 0].tolist() == [0.5, 0.75]
    assert torch.equal(shares([4, 5], 0, Augment(mixup=0.4)), share[4:6])


def test_places_are_those_of_grid_sample() -> None:
    """The centre of the picture stays where it is, whatever the turn."""
    dot = torch.zeros(1, 1, 11, 11)
    dot[..., 5, 5] = 255
    for seed in range(5):
        turned = varied(dot, [seed], 0, Augment(turn=180.0))
        assert turned[0, 0, 5, 5] > 254
    assert F.grid_sample(dot, torch.zeros(1, 1, 1, 2), align_corners=False).item() == 255


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"crop": 0.0}, r"augment.crop must be in \(0, 1\], got 0"),
        ({"shift": 0.6}, "augment.shift"),
        ({"turn": -1.0}, "augment.turn"),
        ({"flip": 1.5}, "augment.flip"),
        ({"erase": float("nan")}, "augment.erase"),
        ({"mixup": -0.1}, "augment.mixup"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Augment(**choices)
