"""The page of the designs: it says what was measured, and can be read by anyone, anywhere."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from addnorm.lab.measurement import UNSCALED, compare, conditions, everything
from addnorm.lab.setup import Setup
from addnorm.pages.numbers import number, slope, with_minus
from addnorm.pages.schemes import NAME, NUMBERS, Strip, render, write
from addnorm.spread import Spread
from tests.lab.test_measurement import SMALL, made
from tests.strict_html import Page


@pytest.fixture(scope="module")
def default_page() -> str:
    """A page of the default size, of made-up numbers: exploding, vanishing and in between."""
    texts = [*everything(), "drop_path(with_layer_scale(mix_ln(0.25), 0.1), p=0.1)"]
    return render(
        made(texts, Setup(), lambda i, d, s: float(d) ** (i / 4 - 1.5) * (1 + s / 9)).to_json()
    )


def test_page_is_well_formed_and_self_contained(default_page: str) -> None:
    read = Page(default_page)
    assert default_page.startswith("<!DOCTYPE html>")
    assert len(default_page.encode()) < 1_000_000
    forbidden = {"script", "link", "img", "iframe", "object", "embed", "base", "image", "form"}
    assert not forbidden & {tag for tag, _ in read.tags}
    for tag, attrs in read.tags:
        assert not {"src", "srcset", "xlink:href", "background"} & set(attrs)
        assert not [name for name in attrs if name.startswith("on")]
        if tag == "use":
            assert attrs["href"].startswith("#")
    for loader in ("url(", "@import", "@font-face"):
        assert loader not in default_page
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for attrs in read.all("a") + read.all("use"):
        target = attrs["href"]
        assert target.startswith("https://arxiv.org/abs/") or target[1:] in ids


def test_page_can_be_read_without_seeing_it(default_page: str) -> None:
    read = Page(default_page)
    assert read.all("html")[0]["lang"] == "en"
    assert "width=device-width" in read.all("meta")[1]["content"]
    assert "prefers-color-scheme:dark" in default_page
    told = [svg for svg in read.all("svg") if svg.get("role") == "img"]
    assert len(told) == 2 + 2 * 17
    assert all(len(svg["aria-label"]) > 60 for svg in told)
    assert all("aria-label" in s or s.get("aria-hidden") == "true" for s in read.all("svg"))
    headings = [int(tag[1]) for tag, _ in read.tags if tag in ("h1", "h2", "h3")]
    assert headings[0] == 1
    assert all(b <= a + 1 for a, b in pairwise(headings))
    assert all(th.get("scope") in ("row", "col") for th in read.all("th"))
    assert len(read.all("caption")) == 1


def test_page_tells_what_was_measured() -> None:
    report = compare(["deepnorm", UNSCALED], SMALL, "addnorm schemes deepnorm & more")
    text = render(report.to_json())
    read = Page(text)
    assert "addnorm schemes deepnorm & more" in read.words
    assert conditions(SMALL) in read.words
    assert f"torch {torch.__version__}" in read.words
    assert "x ← N(alpha * x + f(x))" in read.words
    assert '<a href="https://arxiv.org/abs/2203.00555">2203.00555</a>' in text
    assert "pre_norm, writers unscaled" in read.words
    for design in report.designs:
        e = design.exponent("stream_mean_square")
        assert with_minus(slope(e.median)) in read.words
        ends = [s.median for s in design.curve(3, "stream")]
        words = f"3 blocks: {number(ends[0])} to {number(ends[-1])}"
        assert any(words in svg.get("aria-label", "") for svg in read.all("svg"))


def test_page_escapes_what_it_is_given() -> None:
    report = made(["<script>alert(1)</script>"], SMALL, lambda i, d, s: 1.0)
    read = Page(render(report.to_json()))
    assert not read.all("script")
    assert "<script>alert(1)</script>" in read.words
    assert "<A>, 2001.00001" in read.words


@pytest.mark.parametrize("broken", [0.0, math.inf, math.nan])
def test_page_draws_around_what_has_no_place(broken: float) -> None:
    text = render(made(["a", "b"], SMALL, lambda i, d, s: broken if i else 2.0).to_json())
    for attrs in Page(text).all("path"):
        assert "nan" not in attrs["d"]
        assert "inf" not in attrs["d"]
    assert "not defined" in text


def test_strips_put_exponents_in_their_place() -> None:
    strip = Strip([Spread(0.0, -1.0, 1.0), None])
    assert strip.x(0.0) == pytest.approx(60.0)  # the middle of -1 .. 1 on 120
    assert strip.x(99.0) == strip.x(1.0) == pytest.approx(112.0)
    assert strip.row(None).count("<circle") == 0
    assert Strip([Spread(9.0, -9.0, 9.0)]).high == 3.0


def test_page_is_made_from_the_file(tmp_path: Path) -> None:
    """Of its numbers alone: whoever measured may be gone."""
    numbers = made(["a"], SMALL, lambda i, d, s: 1.0 + d).to_json()
    (tmp_path / NUMBERS).write_text(json.dumps(numbers))
    assert write(tmp_path) == tmp_path / NAME
    assert (tmp_path / NAME).read_text(encoding="utf-8") == render(numbers)
