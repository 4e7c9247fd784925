"""Questions on passages, from SQuAD's json, 1.1 and 2.0.

    {"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [
        {"id": ..., "question": ..., "answers": [{"text": ..., "answer_start": 17}],
         "is_impossible": false}]}]}]}

Rajpurkar et al. 2016 (arXiv 1606.05250) and 2018 (arXiv 1806.03822): answers are stretches of the
passage; since 2.0 some questions have none, which ``is_impossible`` says.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

from addnorm import reading
from addnorm.data.sources import DataError
from addnorm.words import a_few, plural

SHOWN = 3  # of what was left out, in a message


class SquadAnswer(NamedTuple):
    """An answer: ``text`` stands in the passage from the character ``start`` on."""

    text: str
    start: int

    @property
    def end(self) -> int:
        """Where it ends: its last character and one more."""
        return self.start + len(self.text)


class SquadQuestion(NamedTuple):
    """A question on a passage, and the answers that are right; none: the passage has no answer."""

    id: str
    title: str
    context: str
    question: str
    answers: tuple[SquadAnswer, ...]


@final
@dataclass(frozen=True)
class SquadData:
    """What a file holds that can be used, and what was left out."""

    questions: list[SquadQuestion]
    wrong_answers: int = 0
    """Answers that do not stand in the passage where they should."""
    dropped_questions: int = 0
    """Questions without any other answer."""
    examples: tuple[str, ...] = ()
    """Where some of these answers are."""

    def remark(self) -> str:
        """What was left out, in a line; nothing, if nothing was."""
        if not self.wrong_answers:
            return ""
        answers = plural(self.wrong_answers, "answer")
        questions = plural(self.dropped_questions, "question")
        stand = "does not stand" if self.wrong_answers == 1 else "do not stand"
        have = "has" if self.dropped_questions == 1 else "have"
        return (
            f"{answers} {stand} where answer_start says, and {questions} {have} no other: left out "
            f"({a_few(self.examples, SHOWN)})"
        )


def read_squad(path: str | Path) -> SquadData:
    """A file of SQuAD's json; a ``DataError`` says where it is something else."""
    file = reading.place(path, DataError)
    if file.suffix.lower() != ".json":
        raise DataError(f"{path}: questions on passages are read from SQuAD's json, a .json file")
    articles = _list(reading.json_object(file, DataError), "data", str(file))
    questions: list[SquadQuestion] = []
    wrong: list[str] = []
    dropped = 0
    for where, title, context, item in _items(articles, str(file)):
        question, bad = _question(item, title, context, where)
        wrong += [where] * bad
        if bad and not question.answers:
            dropped += 1
        else:
            questions.append(question)
    if not questions:
        raise DataError(
            f"{file} has no question that can be used"
            + (
                f": {plural(dropped, 'answer')} all stand elsewhere than they say"
                if dropped
                else ""
            )
        )
    return SquadData(questions, len(wrong), dropped, tuple(wrong[:SHOWN]))


def _items(articles: Sequence[Any], file: str) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """(where it stands, title, context, the object) of every question in ``articles``, which are a
    file's "data"; a ``DataError`` where they are not SQuAD's. The object itself is not checked."""
    for i, article in enumerate(articles):
        where = f"{file}: data[{i}]"
        paragraphs = _list(_object(article, where), "paragraphs", where)
        title = article.get("title", "")
        if not isinstance(title, str):
            raise DataError(f"{where}: 'title' is {reading.in_words(title)}, expected a text")
        for j, paragraph in enumerate(paragraphs):
            at = f"{where}.paragraphs[{j}]"
            context = reading.field(_object(paragraph, at), "context", str, at, DataError)
            for k, item in enumerate(_list(paragraph, "qas", at)):
                place = f"{at}.qas[{k}]"
                yield place, title, context, _object(item, place)


def _question(
    item: dict[str, Any], title: str, context: str, where: str
) -> tuple[SquadQuestion, int]:
    """(the question with the answers that stand in the ``context`` where they say, how many do
    not). A ``DataError`` where ``item`` is no question of SQuAD's; ``where`` names it."""
    name = item.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int):
        was = "is missing" if "id" not in item else f"is {reading.in_words(name)}"
        raise DataError(f"{where}: 'id' {was}, expected a text")
    where = f"{where} ({name})"
    text = reading.field(item, "question", str, where, DataError)
    if not text.strip():
        raise DataError(f"{where}: the question is empty")
    impossible = item.get("is_impossible", False)
    if not isinstance(impossible, bool):
        raise DataError(
            f"{where}: 'is_impossible' is {reading.in_words(impossible)}, expected true or false"
        )
    if impossible:  # its answers, if it has any, are plausible and wrong
        return SquadQuestion(str(name), title, context, text, ()), 0
    answers = [_answer(a, f"{where}.answers[{i}]") for i, a in enumerate(_answers(item, where))]
    right = tuple(a for a in answers if a.start >= 0 and context[a.start : a.end] == a.text)
    return SquadQuestion(str(name), title, context, text, right), len(answers) - len(right)


def _answers(item: dict[str, Any], where: str) -> list[Any]:
    """What a question has as answers, unchecked; there must be one, as it is not marked as
    impossible, else it is a ``DataError``."""
    answers = _list(item, "answers", where)
    if not answers:
        raise DataError(
            f"{where}: 'answers' is empty, expected an answer, or \"is_impossible\": true where "
            "there is none"
        )
    return answers


def _answer(value: Any, where: str) -> SquadAnswer:
    """One answer as the file says it, a ``DataError`` that names ``where`` if it says none; whether
    the passage has it there is for the caller to see."""
    entry = _object(value, where)
    text = reading.field(entry, "text", str, where, DataError)
    if not text:
        raise DataError(f"{where}: 'text' is empty, expected words of the passage")
    return SquadAnswer(text, reading.field(entry, "answer_start", int, where, DataError))


def _object(value: Any, where: str) -> dict[str, Any]:
    """The value, if it is an object; a ``DataError`` that names ``where`` if not."""
    if not isinstance(value, dict):
        raise DataError(f"{where} is {reading.in_words(value)}, expected an object")
    return value


def _list(entry: dict[str, Any], key: str, where: str) -> list[Any]:
    """The list under a key of an object; a ``DataError`` that names ``where`` if there is none."""
    return reading.field(entry, key, list, where, DataError)
