"""Labels of texts: what is answered, and how it is measured."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from addnorm.errors import Mendable
from addnorm.progress import ProgressBar
from addnorm.uses.labels import Labels

LABELS = ("long", "short", "odd")


def probabilities(texts: Any) -> Tensor:
    """short below four letters, long above; an empty text might be any."""
    rows = {True: [0.1, 0.7, 0.2], False: [0.6, 0.1, 0.3]}
    return torch.tensor([rows[len(t) < 4] if t else [1 / 3] * 3 for t in texts], dtype=torch.double)


LENGTH = Labels(probabilities, LABELS)


def test_the_most_probable_label_in_the_order_of_the_inputs() -> None:
    inputs = ["abc", {"text": "abcdef"}, {"sentence": ""}]
    for size in (1, 2, 32):
        answers = LENGTH.predict(inputs, batch_size=size)
        assert [list(a) for a in answers] == [["input", "label", "probability"]] * 3
        assert [(a["input"], a["label"]) for a in answers] == [
            ("abc", "short"),
            ("abcdef", "long"),
            ("", "long"),  # of equal ones the first
        ]
    assert answers[0]["probability"] == 0.7
    (answer,) = LENGTH.predict(["abc"], top=2)
    assert answer["probabilities"] == {"short": 0.7, "odd": 0.2}


def test_what_cannot_be_used_has_its_place() -> None:
    inputs = [{"words": "a"}, "abc", {"text": 3}, {}]
    answers = LENGTH.predict(inputs)
    assert [a.get("label") for a in answers] == [None, "short", None, None]
    assert answers[0] == {
        "input": {"words": "a"},
        "error": 'the object has words, and no text; one looks like {"text": "..."}',
    }
    assert "text is not a text" in answers[2]["error"]
    assert "has nothing" in answers[3]["error"]


def test_what_is_refused() -> None:
    with pytest.raises(Mendable, match="unknown option 'beams'"):
        LENGTH.predict(["a"], beams=4)
    with pytest.raises(Mendable, match="batch_size must be at least 1, got 0"):
        LENGTH.predict(["a"], batch_size=0)
    broken = Labels(lambda texts: torch.full((len(texts), 3), torch.nan), LABELS)
    with pytest.raises(FloatingPointError, match="input 1 are not finite"):
        broken.predict(["a"])


def evaluation(file: Path, size: int = 32) -> dict[str, Any]:
    every = LENGTH.with_defaults({})
    with ProgressBar(hidden=True) as bar:
        return LENGTH.evaluate([str(file)], every, batch_size=size, bar=bar)


def test_an_evaluation_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "data.tsv"
    file.write_text("label\ttext\nshort\tab\nshort\tabcde\nlong\tabcdef\nodd\tabc\n")
    for size in (1, 3):
        assert evaluation(file, size) == {
            "accuracy": 0.5,
            "texts": 4,
            "accuracy_by_label": {"long": 1.0, "short": 0.5, "odd": 0.0},
            "labels": ["long", "short", "odd"],
            "confusion": [[1, 0, 0], [1, 1, 0], [0, 1, 0]],
        }


def test_a_label_that_was_never_seen(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text("text,label\nab,tiny\n")
    with pytest.raises(Mendable, match="does not know: tiny; it knows long, short, odd"):
        evaluation(file)
