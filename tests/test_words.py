"""Phrases that many messages share."""

import pytest

from addnorm.checks import check_known
from addnorm.errors import Mendable, unknown_name
from addnorm.words import (
    a_few,
    did_you_mean,
    error_in_a_line,
    figure,
    first_line,
    near_names,
    plural,
)


def test_near_names() -> None:
    assert near_names("warmpu", ["warmup", "steps"]) == ["warmup"]
    assert near_names("dim", ["model.dim", "steps"]) == ["model.dim"]
    assert near_names("ab1", ["ab2", "ab3", "ab4", "ab5"]) == ["ab5", "ab4", "ab3"], "three"
    assert near_names("net.py", ["nets.py", "ten.txt"], cutoff=0.75) == ["nets.py"]
    assert near_names(None, ["none"]) == ["none"], "whatever a file has for a name"


def test_did_you_mean() -> None:
    assert did_you_mean("rellu", ["relu", "rrelu", "tanh"]) == "did you mean relu or rrelu?"
    assert did_you_mean("xyz", ["relu"]) == ""
    assert did_you_mean("--frobnicate", ["--notes"]) == "", "a hint that is none only misleads"


def test_an_unknown_name() -> None:
    assert unknown_name("sink", "wandn", ["wandb"]) == "unknown sink 'wandn'; did you mean wandb?"
    assert unknown_name("sink", "x", ["a", "b"]) == "unknown sink 'x'; there are a, b"
    assert unknown_name("sink", "x", ()) == "unknown sink 'x'; there is none"
    assert len(unknown_name("sink", "x" * 1000, ["a"])) < 100
    check_known("sink", "a", ["a", "b"])
    for name in ("c", None, ["a"]):
        with pytest.raises(Mendable, match="unknown sink"):
            check_known("sink", name, ["a", "b"])


def test_a_few_of_many() -> None:
    assert a_few(["a", "b", "c"]) == "a, b, c"
    assert a_few("abcd") == "a, b, c and 1 more"
    assert a_few(range(5), 2, "; ") == "0; 1 and 3 more"
    assert a_few(range(2001), 1) == "0 and 2,000 more"
    assert a_few([]) == ""


def test_plural() -> None:
    assert [plural(n, "step") for n in (0, 1, 2, 1234)] == [
        *("0 steps", "1 step", "2 steps", "1,234 steps")
    ]


def test_an_error_in_a_line() -> None:
    assert first_line("\n  first \nsecond") == "first"
    assert first_line(" \n") == ""
    assert first_line("abcdef", 3) == "abc"
    assert error_in_a_line(ValueError("one\ntwo")) == "ValueError: one"
    assert error_in_a_line(KeyError()) == "KeyError"
    assert error_in_a_line(ValueError("x" * 999), 240) == "ValueError: " + "x" * 240


def test_a_figure_has_no_digits_that_say_nothing() -> None:
    assert [figure(x) for x in (0.5, -2, 999.99, 1e3, 123456.7, 3.21e6, 3.2e-7)] == [
        *("0.5000", "-2.0000", "999.9900", "1,000", "123,457", "3.21e+06", "0.0000")
    ]
