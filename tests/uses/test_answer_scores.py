"""Exact match and F1, case by case, by what SQuAD's evaluation does.

Each line was worked out from the rules by hand, with the words that are left on both sides.
"""

from fractions import Fraction

import pytest

from addnorm.uses.answer_scores import normalized, score


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("The  Cat", "cat"),  # case, an article, spaces
        ("U.S.A.", "usa"),  # punctuation goes and leaves no space
        ("well-known", "wellknown"),
        ("a-b", "ab"),  # so what is no word alone before is none after: no article goes
        ("the-end", "theend"),
        ("rock 'n' roll", "rock n roll"),
        ("an apple and a pear", "apple and pear"),  # articles are whole words only
        ("then another banana", "then another banana"),
        ("A, b", "b"),  # punctuation goes first, then the article
        ("$5,000.00", "500000"),
        ("snake_case", "snakecase"),  # _ is punctuation
        ("tab\tand\nline", "tab and line"),
        ("the a an", ""),
        ("...", ""),
        ("", ""),
        ("“the” end", "“ ” end"),  # only ASCII's punctuation goes; the article inside does
        ("5°C … now", "5°c … now"),
        ("l'été", "lété"),
        ("the_end", "theend"),
        ("THEÁ", "theá"),
    ],
)
def test_what_is_left_of_an_answer(text: str, left: str) -> None:
    assert normalized(text) == left


@pytest.mark.parametrize(
    ("answer", "right", "exact", "f1"),
    [
        ("in 1066", ["1066"], 0, Fraction(2, 3)),  # precision 1/2, recall 1
        ("1066", ["the 1066."], 1, 1),
        ("Paris, France", ["Paris"], 0, Fraction(2, 3)),
        ("France Paris", ["Paris France"], 0, 1),  # F1 knows no order
        ("a b b c", ["b b b"], 0, Fraction(2, 3)),  # a goes: b b c and b b b have two in common
        ("b", ["b b b"], 0, Fraction(1, 2)),  # 1/1 and 1/3
        ("red", ["green"], 0, 0),
        ("red", ["green", "red wine", "red"], 1, 1),  # the nearest of several
        ("red", ["green", "red wine"], 0, Fraction(2, 3)),
        ("", [], 1, 1),  # no answer, and there is none
        ("red", [], 0, 0),
        ("", ["red"], 0, 0),
        ("the", [], 1, 1),  # nothing is left of it
        ("", ["the", "red"], 0, 0),  # a right answer of which nothing is left does not count
        ("", ["the"], 1, 1),  # but where there is no other, there is none
        ("a b", ["b a"], 1, 1),
    ],
)
def test_how_right_an_answer_is(answer: str, right: list[str], exact: int, f1: Fraction) -> None:
    result = score(answer, right)
    assert result.exact_match == exact
    assert result.f1 == pytest.approx(float(f1), abs=1e-15)
