"""The words of the dictionary stand on one side each, and errors are counted as they are."""

import pytest

from benchmarks.datasets.cmudict import Spoken, entries, side
from benchmarks.translate import distance, error_rates

TEXT = """\
'bout B AW1 T
a AH0
a(2) EY1
abbot AE1 B AH0 T
abbot's AE1 B AH0 T S
d'artagnan D AH0 R T AE1 NG Y AH0 N # foreign french
read(2) R EH1 D
read R EH1 D
"""


def test_entries_are_words_and_phonemes_each_line_once() -> None:
    assert entries(TEXT) == [
        Spoken("a", "AH"),
        Spoken("a", "EY"),
        Spoken("abbot", "AE B AH T"),
        Spoken("abbot's", "AE B AH T S"),
        Spoken("d'artagnan", "D AH R T AE NG Y AH N"),
        Spoken("read", "R EH D"),
    ]
    assert entries(TEXT, stress=True)[1] == Spoken("a", "EY1")


def test_a_word_and_its_possessive_stand_on_one_side() -> None:
    words = [f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(600)]
    sides = [side(word) for word in words]
    assert all(
        side(f"{word}'s") == side(f"{word}'") == where
        for word, where in zip(words, sides, strict=True)
    )
    shares = {name: sides.count(name) / 600 for name in ("train", "val", "test")}
    assert shares["train"] == pytest.approx(0.88, abs=0.05)
    assert shares["test"] == pytest.approx(0.10, abs=0.05)


def test_errors_are_counted_against_the_nearest_way() -> None:
    assert distance("kitten", "sitting") == 3
    assert distance("", "abc") == distance("abc", "") == 3
    spoken = {"a": ["AH", "EY"], "abbot": ["AE B AH T"], "read": ["R EH D", "R IY D Z"]}
    outputs = {"a": "EY", "abbot": "AE B T", "read": "R IY D"}
    rates = error_rates(outputs, spoken)
    assert rates.per == pytest.approx((0 + 1 + 1) / (1 + 4 + 4))
    assert rates.wer == pytest.approx(2 / 3)
