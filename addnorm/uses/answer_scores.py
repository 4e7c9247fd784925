"""How right an answer is, by the rules of SQuAD's evaluation: exact match and F1.

Two answers are the same if they are after this: lower case; no ASCII punctuation, which leaves no
space behind; no articles, which do; single spaces. F1 is the harmonic mean of the shares of the
words that they have in common, each as often as it is in both. Of several right answers the nearest
counts, and those that are nothing after all this do not; where there is none, only the empty answer
is right. So do Rajpurkar et al. 2018 (arXiv 1806.03822) with evaluate-v2.0.py, which gives figures
of 1.1 as well.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


class AnswerScore(NamedTuple):
    """From 0 to 1: whether an answer is right, and how much of it."""

    exact_match: float
    f1: float


def normalized(text: str) -> str:
    """An answer as it is compared."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def score(answer: str, right: Sequence[str]) -> AnswerScore:
    """How right an ``answer`` is, where the texts in ``right`` are; "" says that there is none, and
    so does a ``right`` that is empty."""
    words = normalized(answer).split()
    golds = [gold for text in right if (gold := normalized(text).split())] or [[]]
    return AnswerScore(
        max(float(words == gold) for gold in golds),
        max(_f1(words, gold) for gold in golds),
    )


def _f1(words: list[str], gold: list[str]) -> float:
    """From 0 to 1, of an answer and a right one in normalized words; no words at all are right only
    where both have none."""
    if not words or not gold:
        return float(words == gold)
    common = sum((Counter(words) & Counter(gold)).values())
    return 2 * common / (len(words) + len(gold))
