"""SQuAD's json: both versions, what is left out, and where something is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from addnorm.data.sources import DataError
from addnorm.data.squad import SquadAnswer, read_squad

CONTEXT = "The lamp is red. It stands on a table."


def question(**changes: Any) -> dict[str, Any]:
    answers = [{"text": "red", "answer_start": 12}]
    entry = {"id": "q1", "question": "What colour?", "answers": answers, **changes}
    return {key: value for key, value in entry.items() if value != "absent"}


def squad_file(folder: Path, *questions: Any, **more: Any) -> Path:
    paragraph = {"context": CONTEXT, "qas": list(questions), **more}
    file = folder / "squad.json"
    article = {"title": "Lamps", "paragraphs": [paragraph]}
    file.write_text(json.dumps({"version": "v2.0", "data": [article]}))
    return file


def test_both_versions(tmp_path: Path) -> None:
    plausible = [{"text": "table", "answer_start": 32}]
    file = squad_file(
        tmp_path,
        question(),
        question(id=7, is_impossible=False),
        question(id="no", is_impossible=True, answers=[], plausible_answers=plausible),
        question(id="plausible", is_impossible=True, answers=plausible),
        question(id="two", answers=[{"text": t, "answer_start": 10} for t in ("is red", "s red")]),
    )
    data = read_squad(file)
    assert [q.id for q in data.questions] == ["q1", "7", "no", "plausible", "two"]
    first, _, no, uncertain, two = data.questions
    assert (first.title, first.context, first.question) == ("Lamps", CONTEXT, "What colour?")
    assert first.answers == (SquadAnswer("red", 12),)
    assert CONTEXT[first.answers[0].start : first.answers[0].end] == "red"
    assert no.answers == uncertain.answers == ()
    assert two.answers == (SquadAnswer("s red", 10),), "the one that stands there"
    assert (data.wrong_answers, data.dropped_questions) == (1, 0)


def test_answers_that_stand_elsewhere(tmp_path: Path) -> None:
    starts = (11, -26, 900)
    bad = [question(id=str(i), answers=[{"text": "red", "answer_start": i}]) for i in starts]
    data = read_squad(squad_file(tmp_path, *bad, question()))
    assert [q.id for q in data.questions] == ["q1"]
    assert (data.wrong_answers, data.dropped_questions) == (3, 3)
    assert "3 answers do not stand where answer_start says, and 3 questions have no other" in (
        data.remark()
    )
    assert "data[0].paragraphs[0].qas[0]" in data.remark()
    assert read_squad(squad_file(tmp_path, question())).remark() == ""
    with pytest.raises(DataError, match="no question that can be used: 3 answers all stand"):
        read_squad(squad_file(tmp_path, *bad))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("text", "qas[0] is the text 'text', expected an object"),
        (question(id="absent"), "qas[0]: 'id' is missing, expected a text"),
        (question(id=True), "qas[0]: 'id' is true, expected a text"),
        (question(question="absent"), "qas[0] (q1): 'question' is missing"),
        (question(question=" "), "qas[0] (q1): the question is empty"),
        (question(answers="absent"), "qas[0] (q1): 'answers' is missing"),
        (question(answers=[]), "qas[0] (q1): 'answers' is empty, expected an answer, or"),
        (question(answers=[], is_impossible=False), "'answers' is empty, expected an answer"),
        (question(answers="red"), "'answers' is the text 'red', expected a list"),
        (question(answers=["red"]), "answers[0] is the text 'red', expected an object"),
        (question(answers=[{"text": "red"}]), "answers[0]: 'answer_start' is missing"),
        (question(answers=[{"text": "", "answer_start": 1}]), "answers[0]: 'text' is empty"),
        (
            question(answers=[{"text": "red", "answer_start": "12"}]),
            "'answer_start' is the text '12', expected a whole number",
        ),
        (question(is_impossible="no"), "'is_impossible' is the text 'no', expected true or"),
    ],
)
def test_what_is_wrong_with_a_question(tmp_path: Path, entry: Any, words: str) -> None:
    file = squad_file(tmp_path, entry)
    with pytest.raises(DataError) as failure:
        read_squad(file)
    assert str(failure.value).startswith(f"{file}: data[0].paragraphs[0].")
    assert words in str(failure.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("[]", "holds a list, expected a JSON object"),
        ('{"data": [', "is not valid JSON"),
        ("{}", ": 'data' is missing"),
        ('{"data": []}', "has no question that can be used"),
        ('{"data": [3]}', "data[0] is the number 3, expected an object"),
        ('{"data": [{"title": 3, "paragraphs": []}]}', "data[0]: 'title' is the number 3"),
        ('{"data": [{"title": "a"}]}', "data[0]: 'paragraphs' is missing"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', "paragraphs[0]: 'context' is missing"),
        ('{"data": [{"paragraphs": [{"context": ""}]}]}', "paragraphs[0]: 'qas' is missing"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "squad.json"
    file.write_text(content)
    with pytest.raises(DataError) as failure:
        read_squad(file)
    assert str(file) in str(failure.value)
    assert words in str(failure.value)


def test_another_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"read from SQuAD's json, a \.json file"):
        read_squad(tmp_path / "data.csv")
    with pytest.raises(DataError, match="cannot read"):
        read_squad(tmp_path / "none.json")
