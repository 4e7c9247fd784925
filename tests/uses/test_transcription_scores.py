"""Error rates of transcripts: jiwer's figures, over texts as they are spoken; distances."""

import numpy as np
import pytest

from addnorm.uses.edits import edits
from addnorm.uses.transcription_scores import error_rates, plain


def slow(a: str, b: str) -> int:
    """Levenshtein's distance by its recursion."""
    if not a or not b:
        return len(a) + len(b)
    return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))


@pytest.mark.parametrize(
    ("a", "b", "count"), [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)]
)
def test_edits(a: str, b: str, count: int) -> None:
    assert edits(a, b) == edits(b, a) == count
    assert edits(a.split(), b.split()) == (a != b)


def test_edits_are_the_recursion() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        a, b = ("".join(rng.choice(list("abc"), rng.integers(6))) for _ in range(2))
        assert edits(a, b) == slow(a, b)


def test_plain_is_what_is_spoken() -> None:
    assert plain("  Hello, WORLD -- it\u2019s 'me'!  ") == "hello world it's me"
    assert plain("Grüße: zéro; ноль. नमस्ते 你好。") == "grüße zéro ноль नमस्ते 你好"
    assert plain("e\u0301") == "é"
    assert plain("?!") == ""


def test_error_rates_are_those_of_jiwer() -> None:
    jiwer = pytest.importorskip("jiwer")
    rng = np.random.default_rng(1)
    words = ["one", "two", "three", "for", "four"]
    right = [" ".join(rng.choice(words, rng.integers(1, 6))) for _ in range(20)]
    ours = [" ".join(rng.choice(words, rng.integers(0, 6))) for _ in range(20)]
    rates = error_rates(ours, right)
    assert rates["wer"] == pytest.approx(jiwer.wer(right, ours))
    assert rates["cer"] == pytest.approx(jiwer.cer(right, ours))
    assert error_rates(["Pound, KEY!"], ["pound key"]) == {"wer": 0.0, "cer": 0.0}
    assert error_rates(["a b c"], ["a"])["wer"] == 2.0
