"""Pictures of what a classifier gets wrong, by hand."""

import torch

from addnorm.tasks.labelled_texts import Text
from addnorm.tasks.mistakes import pictures
from addnorm.tasks.targets import OneLabel, SeveralLabels

TEXTS = [Text("one", (0,)), Text("two", (1,)), Text("three", (1,)), Text("x" * 400, (2,))]
P = torch.tensor([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]])


def test_one_label() -> None:
    matrix, worst = pictures(OneLabel(["a", "b", "c"]), TEXTS, P.double())
    assert matrix["values"] == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert "2 of 4 held-out texts right" in matrix["caption"]
    assert [row[1:3] for row in worst["rows"]] == [["c", "b"], ["b", "a"]]
    assert worst["rows"][1] == ["two", "b", "a", "a 60.0%"]
    assert worst["rows"][0][0] == f"{'x' * 300} ..."
    assert worst["rows"][0][3] == "b 80.0%"


def test_of_one_label_the_probability_of_what_is_said_decides() -> None:
    texts = [Text("unsure", (0,)), Text("sure", (0,))]
    p = torch.tensor([[0.0, 0.55, 0.45], [0.3, 0.7, 0.0]]).double()
    _, worst = pictures(OneLabel(["a", "b", "c"]), texts, p)
    assert [row[3] for row in worst["rows"]] == ["b 70.0%", "b 55.0%"]


def test_nothing_wrong() -> None:
    (matrix,) = pictures(OneLabel(["a", "b", "c"]), TEXTS[:1], P[:1].double())
    assert matrix["values"][0] == [1, 0, 0]


def test_many_labels() -> None:
    names = [f"l{i}" for i in range(20)]
    texts = [Text("t", (i,)) for i in range(20)]
    p = torch.eye(20).roll(1, 0).double()
    p[5:] = torch.eye(20)[5:]
    pairs, worst = pictures(OneLabel(names), texts, p)
    assert pairs["rows"][0] == ["l0", "l19", 1, 1]
    assert len(pairs["rows"]) == 5
    assert "5 of 20 held-out texts wrong" in pairs["caption"]
    assert len(worst["rows"]) == 5


def test_several_labels() -> None:
    texts = [Text("one", (0, 1)), Text("two", ()), Text("three", (2,))]
    p = torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.1, 0.6], [0.1, 0.0, 0.9]])
    each, worst = pictures(SeveralLabels(["a", "b", "c"]), texts, p.double())
    assert each["rows"] == [["a", 1, 0, 0, 1.0], ["b", 1, 1, 0, 0.0], ["c", 1, 0, 1, 0.6667]]
    assert worst["rows"] == [["one", "a, b", "a", "b 20.0%"], ["two", "none", "c", "c 60.0%"]]
