"""Sets of labels: what is answered, and how it is measured."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from addnorm.errors import Mendable
from addnorm.progress import ProgressBar
from addnorm.uses.label_sets import LabelSets

LABELS = ("digit", "long", "upper")


def probabilities(texts: Any) -> Tensor:
    rows = [
        [0.9 if any(c.isdigit() for c in t) else 0.1, 0.5 if len(t) > 3 else 0.4, 0.2]
        for t in texts
    ]
    return torch.tensor(rows, dtype=torch.double)


USE = LabelSets(probabilities, LABELS)


def test_every_label_for_itself() -> None:
    answers = USE.predict(["a1bcd", "abcd", {"text": "a"}, {"txt": "a"}])
    assert [list(a) for a in answers[:3]] == [["input", "labels", "probabilities"]] * 3
    assert [a["labels"] for a in answers[:3]] == [["digit", "long"], ["long"], []]
    assert answers[0]["probabilities"] == {"digit": 0.9, "long": 0.5, "upper": 0.2}
    assert list(answers[2]["probabilities"]) == ["long", "upper", "digit"]
    assert "no text" in answers[3]["error"]
    assert [USE.line(a) for a in answers[:3]] == [
        "digit 90.0%, long 50.0%",
        "long 50.0%",
        "none (long 40.0%)",
    ]
    (answer,) = USE.predict(["a1bcd"], top=1)
    assert answer["probabilities"] == {"digit": 0.9}
    assert answer["labels"] == ["digit", "long"]
    assert USE.line(answer) == "digit 90.0%"


def evaluation(file: Path, size: int) -> dict[str, Any]:
    with ProgressBar(hidden=True) as bar:
        return USE.evaluate([str(file)], USE.with_defaults({}), batch_size=size, bar=bar)


def test_an_evaluation_as_scikit_learn_defines_it(tmp_path: Path) -> None:
    """By hand: digit 1 right and 1 missed, long 2 right and 1 too many, upper never."""
    file = tmp_path / "a.jsonl"
    file.write_text(
        '{"text": "a1bcd", "label": ["digit", "long"]}\n{"text": "abcd", "label": ["digit"]}\n'
        '{"text": "abcde", "label": "long"}\n{"text": "a", "label": []}\n'
    )
    for size in (1, 3):
        assert evaluation(file, size) == {
            "accuracy": 0.75,
            "micro_f1": pytest.approx(2 * 3 / (4 + 4)),
            "macro_f1": pytest.approx((2 / 3 + 4 / 5 + 0) / 3),
            "texts": 4,
            "f1_by_label": {"digit": pytest.approx(2 / 3), "long": 0.8, "upper": 0.0},
            "texts_by_label": {"digit": 2, "long": 2, "upper": 0},
            "labels": list(LABELS),
        }
    (tmp_path / "a.csv").write_text("text,label\nabc,long|high\n")
    with pytest.raises(Mendable, match="does not know: high; it knows digit, long, upper"):
        evaluation(tmp_path / "a.csv", 1)
