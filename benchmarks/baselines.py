"""What people would use instead of a classifier of ours: TF-IDF or vectors of texts, scikit-learn.

A baseline is the best of its settings on val, asked once for test. Nothing is chosen by test.
"""

import csv
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from benchmarks.embeddings import EMBEDDINGS

SIDES = ("train", "val", "test")
FEATURES: dict[str, dict[str, Any]] = {
    "words": {"token_pattern": r"\w+|[^\w\s]", "ngram_range": (1, 1)},
    "words and pairs": {"token_pattern": r"\w+|[^\w\s]", "ngram_range": (1, 2)},
    "1 to 3 characters": {"analyzer": "char", "ngram_range": (1, 3)},
    "2 to 5 characters in words": {"analyzer": "char_wb", "ngram_range": (2, 5)},
}
STRENGTHS = (1.0, 10.0, 100.0)
NEIGHBOURS = (1, 3, 5, 10, 20, 50)


class Rows(NamedTuple):
    """The texts of a file, with what is right, and what they have in common with others."""

    texts: list[str]
    labels: list[str]
    groups: list[str]


class Candidate(NamedTuple):
    """A setting of a baseline."""

    what: str
    model: Any
    """Of scikit-learn."""
    features: tuple[Any, Any, Any]
    """Of the texts to learn from, of val, of test."""


def read(file: Path) -> Rows:
    """A table with a first line: text, label, and perhaps a third column, of which equal cells are
    a group; without it each text is one."""
    csv.field_size_limit(sys.maxsize)
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        others = [name for name in reader.fieldnames or () if name not in ("text", "label")]
        rows = list(reader)
    groups = [row[others[0]] if others else str(i) for i, row in enumerate(rows)]
    return Rows([row["text"] for row in rows], [row["label"] for row in rows], groups)


def tfidf(sides: dict[str, Rows], most: int | None = None) -> dict[str, Any]:
    """TF-IDF and logistic regression. ``most``: how many of each kind of setting are tried; None:
    all."""
    return best(_tfidf(sides, most), sides)


def _tfidf(sides: dict[str, Rows], most: int | None) -> Iterator[Candidate]:
    for name, sublinear in list(product(FEATURES, (True, False)))[:most]:
        vectorizer = TfidfVectorizer(min_df=2, sublinear_tf=sublinear, **FEATURES[name])
        x = vectorizer.fit_transform(sides["train"].texts)
        val, test = (vectorizer.transform(sides[side].texts) for side in ("val", "test"))
        for strength in STRENGTHS[:most]:
            what = f"{name}, {'log tf' if sublinear else 'tf'}, C {strength:g}"
            model = LogisticRegression(C=strength, max_iter=2000)
            yield Candidate(what, model, (x, val, test))


def embedding(
    sides: dict[str, Rows], name: str, models: Path, most: int | None = None
) -> dict[str, Any]:
    """Vectors of a published model: the nearest class by its mean, the nearest texts, or logistic
    regression. ``models``: the folder for the model; ``most`` as in ``tfidf``."""
    return best(_embedding(sides, name, models, most), sides)


def _embedding(
    sides: dict[str, Rows], name: str, models: Path, most: int | None
) -> Iterator[Candidate]:
    embed = EMBEDDINGS[name]
    train, val, test = (embed(sides[side].texts, models) for side in SIDES)
    yield Candidate(f"{name}, nearest mean", NearestCentroid(), (train, val, test))
    # of vectors of length 1 the nearest is the one with the largest cosine
    for k in [k for k in NEIGHBOURS if k <= len(train)][:most]:
        yield Candidate(f"{name}, {k} nearest", KNeighborsClassifier(k), (train, val, test))
    for strength in STRENGTHS[:most]:
        model = LogisticRegression(C=strength, max_iter=2000)
        yield Candidate(f"{name}, regression, C {strength:g}", model, (train, val, test))


def best(candidates: Iterator[Candidate], sides: dict[str, Rows]) -> dict[str, Any]:
    """The first of those that are right of most of val: ``what`` it is, its accuracy on ``val``,
    its ``answers`` to test, and the ``minutes`` that all took."""
    begin = time.time()
    entry: dict[str, Any] = {"val": -1.0}
    for what, model, (train, val, test) in candidates:
        model.fit(train, sides["train"].labels)
        accuracy = float(model.score(val, sides["val"].labels))
        print(f"  {what}: {accuracy:.2%} of val", flush=True)
        if accuracy > entry["val"]:
            answers = [str(answer) for answer in model.predict(test)]
            entry = {"what": what, "val": accuracy, "answers": answers}
    return {**entry, "minutes": (time.time() - begin) / 60}
