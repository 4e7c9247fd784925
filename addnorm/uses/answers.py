"""What a passage says to a question: a stretch of it, or that it does not say."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from addnorm.data.passages import (
    LONGEST_ANSWER,
    PassageReader,
    PassageTokens,
    PassageWindow,
    Span,
    best_answer,
    best_spans,
    window_batch,
)
from addnorm.data.sources import DataError
from addnorm.data.squad import SquadQuestion, read_squad
from addnorm.data.tokenizer import Tokenizer, TokenizerError
from addnorm.errors import Mendable, value_in_short
from addnorm.progress import ProgressBar
from addnorm.uses.answer_scores import AnswerScore, score
from addnorm.uses.use import Answer, Unusable, Use, object_of

TOGETHER = 64  # windows that go through the model at once; a passage may have thousands
AT_LEAST_ONE = ("max_answer", "stride")  # the options that must be whole numbers from 1 on


class PassageQuestion(NamedTuple):
    """A question on a passage, and how a model reads both."""

    context: str
    question: str
    query: PassageTokens
    passage: PassageTokens


@final
class Answers(Use):
    """A model of which ``logits`` says of each token how well an answer begins, and ends, with it.

    ``logits``: (ids, valid, types), each (B, T), -> (B, T, 2).
    ``tokenizer``: the model's. ``length``: how many tokens it reads at once.

    Options: ``threshold``, the least score of an answer, which is by how much its logits are above
    those of no answer; ``max_answer``, how many tokens an answer has at most; ``stride``, how many
    tokens further each window of a long passage begins, None being half a window.
    """

    options = MappingProxyType({"threshold": 0.0, "max_answer": LONGEST_ANSWER, "stride": None})
    example = '{"context": "...", "question": "..."}'

    def __init__(self, logits: Callable[..., Tensor], tokenizer: Tokenizer, length: int) -> None:
        self.logits, self.reader = logits, PassageReader(tokenizer, length)
        self._last: tuple[str, PassageTokens] | None = None

    def with_defaults(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options, where some were chosen; a ``Mendable`` says which value makes no sense."""
        every = super().with_defaults(options)
        threshold = every["threshold"]
        if type(threshold) not in (int, float) or math.isnan(threshold):  # inf: never an answer
            raise Mendable(f"threshold must be a number, got {value_in_short(threshold)}")
        for name in AT_LEAST_ONE:
            value = every[name]
            if value is not None and (type(value) is not int or value < 1):
                raise Mendable(
                    f"{name} must be a whole number of at least 1, got {value_in_short(value)}"
                )
        return every

    def question(self, item: str | Mapping[str, Any]) -> PassageQuestion:
        """From an object, or from a text that is one in JSON; ``Unusable`` where a part is missing
        or empty, or where the question leaves too little room to the passage."""
        entry = object_of(item, self.example, "a text alone is no question on a passage")
        context, question = (_text(entry, name, self.example) for name in ("context", "question"))
        try:
            passage, query = self._passage(context), self.reader.tokens(question)
            if not len(passage.ids):
                raise Unusable("the context is empty: there is no answer in it")
            if not len(query.ids):
                raise Unusable("the question is empty")
            self.reader.windows(query, passage)  # only to see whether it can be read
        except (DataError, TokenizerError) as error:
            raise Unusable(str(error)) from None
        return PassageQuestion(context, question, query, passage)

    def _passage(self, context: str) -> PassageTokens:
        """Its tokens. Those of the last one are kept: questions on the same passage come one after
        the other, and a passage may be long."""
        if self._last is None or self._last[0] != context:
            self._last = context, self.reader.tokens(context)
        return self._last[1]

    def answers(
        self, questions: Sequence[PassageQuestion], options: Mapping[str, Any]
    ) -> list[list[Answer]]:
        """To each question one answer: question, answer, start, end (characters of the context) and
        score; without an answer "", None, None and a score below the threshold."""
        spans = self._spans(questions, options)
        return [
            [
                {
                    "question": one.question,
                    "answer": "" if span.start is None else one.context[span.start : span.end],
                    **span._asdict(),
                }
            ]
            for one, span in zip(questions, spans, strict=True)
        ]

    def _spans(
        self, questions: Sequence[PassageQuestion], options: Mapping[str, Any]
    ) -> list[Span]:
        """The answer to each question, in their order; a batch has windows of several questions.
        ``options`` are all there are."""
        rows = [self.reader.windows(q.query, q.passage, options["stride"]) for q in questions]
        every = [window for windows in rows for window in windows]
        scores = torch.cat([*self._scores(every, options["max_answer"])])
        parts = scores.split([len(windows) for windows in rows])
        return [
            best_answer(part, windows, one.passage, options["threshold"])
            for part, windows, one in zip(parts, rows, questions, strict=True)
        ]

    def _scores(self, windows: Sequence[PassageWindow], longest: int) -> Iterator[Tensor]:
        """What ``best_spans`` gives for answers of at most ``longest`` tokens, (windows, 4) on the
        CPU, a few windows at a time."""
        for first in range(0, len(windows), TOGETHER):
            part = windows[first : first + TOGETHER]
            batch = window_batch(part)
            logits = self.logits(batch["ids"], batch["valid"], batch["types"])
            yield best_spans(logits, part, longest).cpu()

    def line(self, answer: Answer) -> str:
        """The answer with its score, and the question."""
        words = " ".join(answer["answer"].split()) or "(no answer)"
        return f"{words}  [{answer['score']:.2f}]  {' '.join(answer['question'].split())}"

    def evaluate(
        self, data: Sequence[str], options: Mapping[str, Any], *, batch_size: int, bar: ProgressBar
    ) -> dict[str, Any]:
        """Exact match and F1 over all questions, as SQuAD has them, and over those that have an
        answer and those that have none, where there are both."""
        files = [read_squad(name) for name in data]
        rows = [question for file in files for question in file.questions]
        scores: list[AnswerScore] = []
        unusable = 0
        for first in range(0, len(rows), batch_size):
            part = rows[first : first + batch_size]
            items = [{"context": row.context, "question": row.question} for row in part]
            for row, (answer,) in zip(part, self.batch(items, options), strict=True):
                unusable += "error" in answer
                scores.append(score(answer.get("answer", ""), [a.text for a in row.answers]))
            bar.update(first + len(part), len(rows))
        figures = {**_means(scores), "questions": len(rows)}
        if unusable:
            figures["unusable"] = unusable
        if remarks := [remark for file in files if (remark := file.remark())]:
            figures["left_out"] = "; ".join(remarks)
        return {**figures, **_apart(rows, scores)}


def _apart(rows: Sequence[SquadQuestion], scores: Sequence[AnswerScore]) -> dict[str, float]:
    """The mean scores of the questions with an answer, under ``exact_match_answerable`` and
    ``f1_answerable``, the share of those without for which none was given, and how many these are;
    nothing where all questions are of one of the two kinds."""
    answerable = [s for row, s in zip(rows, scores, strict=True) if row.answers]
    others = [s for row, s in zip(rows, scores, strict=True) if not row.answers]
    if not answerable or not others:
        return {}
    exact = _means(others)["exact_match"]
    figures = {f"{name}_answerable": value for name, value in _means(answerable).items()}
    return {**figures, "right_without_answer": exact, "without_answer": len(others)}


def _means(scores: Sequence[AnswerScore]) -> dict[str, Any]:
    """``exact_match`` and ``f1``, each the mean over questions; there must be one at least."""
    exact, f1 = zip(*scores, strict=True)
    return {"exact_match": sum(exact) / len(exact), "f1": sum(f1) / len(f1)}


def _text(entry: Mapping[str, Any], name: str, example: str) -> str:
    """The text that an input has under a name; ``Unusable`` where there is none. ``example``: what
    an object looks like, for the message."""
    if name not in entry:
        keys = ", ".join(map(str, entry)) or "nothing"
        raise Unusable(f"the object has {keys}, and no {name}; one looks like {example}")
    if not isinstance(entry[name], str):
        raise Unusable(f"{name} is not a text; an object looks like {example}")
    return str(entry[name])
