"""The worst examples of each use, by hand."""

import random

import pytest

from addnorm.data.pairs import Pair
from addnorm.data.passages import Span
from addnorm.data.squad import SquadAnswer, SquadQuestion
from addnorm.tasks import examples
from addnorm.tasks.examples import Filling, Look, Reply, distance, marked
from addnorm.uses.answer_scores import AnswerScore


def slow_distance(a: str, b: str) -> int:
    """Levenshtein's recursion as it stands in textbooks."""
    if not a or not b:
        return len(a) + len(b)
    rest = slow_distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(rest, slow_distance(a[1:], b) + 1, slow_distance(a, b[1:]) + 1)


def test_distance() -> None:
    assert distance("kitten", "sitting") == pytest.approx(3 / 7)
    assert (distance("", ""), distance("", "ab"), distance("中文", "中文")) == (0.0, 1.0, 0.0)
    rng = random.Random(0)
    for _ in range(50):
        a, b = ("".join(rng.choices("ab", k=rng.randint(1, 5))) for _ in range(2))
        assert distance(a, b) == pytest.approx(slow_distance(a, b) / max(len(a), len(b)))


def test_translations() -> None:
    rows = [Pair(f"s{i}", f"target {i}", "a file") for i in range(8)]
    outputs = [*(f"target {i}"[: i + 1] for i in range(7)), "target 7"]
    (table,) = examples.worst_translations(rows, outputs)
    assert "7 of 8 held-out sources" in table["caption"]
    assert [row[0] for row in table["rows"]] == ["s0", "s1", "s2", "s3", "s4"]
    assert table["rows"][0] == ["s0", "target 0", "t", "88%"]
    assert examples.worst_translations(rows, [row.target for row in rows]) == []


def test_attention() -> None:
    (heat,) = examples.attention([Look(["a", "b"], ["x"], [[0.12344, 0.87656]])])
    assert heat["maps"] == [{"rows": ["x"], "columns": ["a", "b"], "values": [[0.1234, 0.8766]]}]
    assert examples.attention([]) == []


def test_answers() -> None:
    context = "red is warm, blue is cold"
    there = SquadQuestion("1", "t", context, "What is blue?", (SquadAnswer("cold", 21),))
    none = SquadQuestion("2", "t", context, "What is green?", ())
    spans = [Span(12, 25, 2.0), Span(0, 3, 5.0), Span(None, None, -9.0), Span(21, 25, 9.0)]
    scores = [AnswerScore(0.0, 0.5), *[AnswerScore(0.0, 0.0)] * 2, AnswerScore(1.0, 1.0)]
    (picture,) = examples.worst_answers([there, none, there, there], spans, scores)
    assert "3 of 4 held-out questions" in picture["caption"]
    silent, wrong, near = picture["items"]
    assert silent["text"] == [[context[:21], ""], ["cold", "right"]]
    assert silent["notes"] == [["ours", "the model says that there is no answer"]]
    assert wrong["text"] == [["red", "ours"], [context[3:], ""]]
    assert wrong["notes"] == [["right", "there is no answer"]]
    assert near["text"] == [[context[:12], ""], [" blue is ", "ours"], ["cold", "right ours"]]
    assert examples.worst_answers([there], spans[3:], scores[3:]) == []


def test_what_is_far_from_the_marks_is_left_out() -> None:
    text = "a" * 500 + "XY" + "b" * 500 + "Z" + "c" * 100
    start, first, middle, last, end = marked(text, {"right": (500, 502), "ours": (1002, 1003)})
    assert start == [" ... " + "a" * 200, ""]
    assert (first, last) == (["XY", "right"], ["Z", "ours"])
    assert middle == ["b" * 200 + " ... " + "b" * 200, ""]
    assert end == ["c" * 100, ""]
    (nothing,) = marked(text, {})
    assert len(nothing[0]) < 500


def test_fillings_and_replies() -> None:
    parts = [("the", None), (" cat", " cat"), (" sat", " ran"), ("##s", None)]
    (picture,) = examples.worst_fillings([Filling(list(parts), 1.5)], 7)
    (item,) = picture["items"]
    assert [part for part in item["text"] if part[1]] == [
        *(["cat", "right ours"], ["ran", "ours"], ["sat", "right"])
    ]
    assert "7 held-out texts" in picture["caption"]
    (table,) = examples.worst_replies([Reply("hi?", "yes", "no " * 200, 2.346)], 3)
    assert table["rows"][0][:2] == ["hi?", "yes"]
    assert len(table["rows"][0][2]) == 304
    assert table["rows"][0][3] == 2.35
    assert examples.worst_fillings([], 0) == examples.worst_replies([], 0) == []
