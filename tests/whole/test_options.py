"""Options two and three at a time, in folders of all kinds: a known answer, and nothing is lost.

A case is drawn by its seed and its number (tests/options.py). To see one again, name it:
``pytest "tests/whole/test_options.py::test_pairs_of_options[1-123]"``.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from addnorm.tasks.recipes import RECIPES
from tests.options import BASES, Case, case, forms, report, settings, smallest
from tests.workplaces import Holder, material

SEED, QUICK, ALL = 1, 10, 500


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    material(folder)
    return folder


@pytest.fixture(scope="module")
def holder() -> Iterator[Holder]:
    folders = Holder()
    yield folders
    folders.close()


@pytest.mark.parametrize(
    "number", [n if n < QUICK else pytest.param(n, marks=pytest.mark.slow) for n in range(ALL)]
)
@pytest.mark.parametrize("seed", [SEED])
def test_pairs_of_options(
    source: Path, holder: Holder, tmp_path: Path, seed: int, number: int
) -> None:
    problem = report(case(seed, number), source, holder, tmp_path)
    assert not problem, problem


def test_every_option_is_drawn() -> None:
    """Whatever a command can be told is found, and so will be what is new."""
    phrases = [words for n in range(8 * ALL) for words in case(SEED, n).phrases]
    words_of_cases = {word.partition("=")[0] for words in phrases for word in words}
    words_of_options = [
        o.word for command in BASES for form in forms(command).values() for o in form
    ]
    # a setting is one of many of its recipe: what it is drawn from says whether it can be
    _, train = BASES["train"]
    pool = {o.name for n in range(ALL) for o in train(random.Random(n))[1]}
    assert {o.name for recipe in RECIPES for o in settings(recipe)} <= pool
    assert {"--seed", "--top-k", "--with-valid", "--resume"} <= {*words_of_options}
    assert {*words_of_options} - {""} <= words_of_cases


def test_what_fails_is_told_with_as_little_as_possible() -> None:
    phrases = (("--a",), ("--b", "1"), ("--c",))
    whole = Case(1, 2, ("eval", "run"), phrases, (), stdout="full", own_process=True)
    small = smallest(whole, lambda other: ("--b", "1") in other.phrases and other.stdout == "full")
    assert str(small) == "addnorm eval run --b 1; stdout: full"
