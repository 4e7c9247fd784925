"""Which of several continuations a language model finds most probable.

The score of a choice is the log-probability of its tokens after its context. Context and choice are
put together as they are and become ids together; the choice's are those beyond as many as the
context has alone, which is how lm-evaluation-harness counts them (Gao et al. 2021). An empty
context is the tokenizer's end-of-text token. What does not fit the model is cut on the left. Sums
favour short choices, so the best one is also asked for per token and per byte.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch

from addnorm import reading
from addnorm.errors import Mendable, value_in_short
from addnorm.generation.decode import LanguageModel
from addnorm.generation.text import TokenizerLike, check_tokenizer
from addnorm.ops.reference import accumulate_dtype
from addnorm.temporary import evaluation_mode

EXAMPLE = '{"context": "...", "choices": ["...", "..."], "gold": 0}'


class Question(NamedTuple):
    """A context, what may follow it, and which of that is right, counted from 0."""

    context: str
    choices: tuple[str, ...]
    gold: int
    where: str = ""
    """Where it is from, for messages."""


@final
@dataclass(frozen=True)
class Scores:
    """What the choices of each question score.

    ``loglikelihoods``, ``tokens``, ``bytes``: of each choice its log-probability and its length;
    ``gold``: which is right; ``cut``: how many choices were cut on the left.
    """

    loglikelihoods: list[list[float]]
    tokens: list[list[int]]
    bytes: list[list[int]]
    gold: list[int]
    cut: int

    def accuracy(self, lengths: Sequence[Sequence[int]] | None = None) -> float:
        """The share of questions whose right choice scores best, each score divided by its length,
        if ``lengths`` are given, ``tokens`` or ``bytes``; of two that are equal the first is
        taken."""
        right = 0
        for i, scores in enumerate(self.loglikelihoods):
            values = [s / lengths[i][k] if lengths else s for k, s in enumerate(scores)]
            right += values.index(max(values)) == self.gold[i]
        return right / len(self.gold)

    def to_json(self) -> dict[str, Any]:
        """All figures, as ``addnorm eval --json`` prints them."""
        return {
            "accuracy": self.accuracy(),
            "accuracy_per_token": self.accuracy(self.tokens),
            "accuracy_per_byte": self.accuracy(self.bytes),
            "questions": len(self.gold),
            "cut": self.cut,
            "loglikelihoods": self.loglikelihoods,
        }


def read_questions(file: Path) -> list[Question]:
    """One object a line; a ``Mendable`` says which line is wrong, and how."""
    questions = []
    for number, line in enumerate(reading.lines(file), 1):
        if line.strip():
            where = f"{file}:{number}"
            questions.append(_question(reading.json_value(line, where), where))
    if not questions:
        raise Mendable(f"{file} holds no question: a line is an object such as {EXAMPLE}")
    return questions


def _question(value: Any, where: str) -> Question:
    """The question that the JSON of a line says; a ``Mendable`` that names the line, by ``where``,
    if it says none."""
    if not isinstance(value, dict):
        raise Mendable(f"{where}: expected an object, got {value_in_short(value)}")
    for name in ("context", "choices", "gold"):
        if name not in value:
            raise Mendable(f"{where}: the object has no {name}; one looks like {EXAMPLE}")
    context, choices, gold = value["context"], value["choices"], value["gold"]
    if not isinstance(context, str):
        raise Mendable(f"{where}: context must be a text, got {value_in_short(context)}")
    texts = isinstance(choices, list) and all(isinstance(c, str) and c for c in choices)
    if not texts or len(choices) < 2:
        raise Mendable(
            f"{where}: choices must be at least two texts that are not empty, got "
            f"{value_in_short(choices)}"
        )
    if type(gold) is not int or not 0 <= gold < len(choices):
        raise Mendable(
            f"{where}: gold must be the place of a choice, 0 to {len(choices) - 1}, got "
            f"{value_in_short(gold)}"
        )
    return Question(context, tuple(choices), gold, where)


class ScoredRow(NamedTuple):
    """The ids of a context and what follows it, of which the last ``scored`` are scored."""

    ids: list[int]
    scored: int
    name: str = "a row"
    """What a message calls what is scored."""


class RowScore(NamedTuple):
    """What a model finds of the scored end of a row."""

    value: float
    """Its log-probability."""
    greedy: bool
    """Whether each of its tokens is the most probable one at its place."""


def score_rows(
    model: LanguageModel,
    rows: Sequence[ScoredRow],
    *,
    batch_size: int = 8,
    progress: Callable[[int, int], None] = lambda count, total: None,
) -> list[RowScore]:
    """The score of each row, in their order; what does not fit the model is cut on the left.
    ``batch_size`` of them go through the model at once, and ``progress`` is called with how many
    are done, and of how many. A ``Mendable`` where a scored end does not fit; a
    ``FloatingPointError`` where the model computes NaN."""
    if batch_size < 1:
        raise Mendable(f"batch_size must be at least 1, got {batch_size}")
    limit = model.config.context_length + 1  # the last token is not read, only scored
    for row in rows:
        if row.scored >= limit:
            raise Mendable(
                f"{row.name} of {row.scored} tokens does not fit the model's context of {limit - 1}"
            )
    rows = [row._replace(ids=row.ids[-limit:]) for row in rows]
    # the longest first, as _batch takes them: little padding, and what lacks memory fails at once
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))
    scores = [RowScore(0.0, False)] * len(rows)
    for first in range(0, len(rows), batch_size):
        places = order[first : first + batch_size]
        for place, score in zip(places, _batch(model, [rows[i] for i in places]), strict=True):
            scores[place] = score
        progress(first + len(places), len(rows))
    return scores


def score_choices(
    model: LanguageModel,
    questions: Sequence[Question],
    *,
    tokenizer: TokenizerLike,
    batch_size: int = 8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Score every choice; ``batch_size`` of them go through the model at once, and ``progress`` is
    called with how many are done, and of how many. A ``Mendable`` where a choice does not fit the
    model or adds no token; a ``FloatingPointError`` where the model computes NaN."""
    check_tokenizer(model, tokenizer)
    rows = [
        _row(question, choice, tokenizer) for question in questions for choice in question.choices
    ]
    scores = score_rows(model, rows, batch_size=batch_size, progress=progress)
    rest = iter(zip(scores, rows, strict=True))
    parts = [[next(rest) for _ in question.choices] for question in questions]
    return Scores(
        [[score.value for score, _ in part] for part in parts],
        [[row.scored for _, row in part] for part in parts],
        [[len(choice.encode()) for choice in question.choices] for question in questions],
        [question.gold for question in questions],
        sum(len(row.ids) > model.config.context_length + 1 for row in rows),
    )


def _row(question: Question, choice: str, tokenizer: TokenizerLike) -> ScoredRow:
    """A question's context with one of its choices, however long; a ``Mendable`` where the choice
    adds no token, or the context is empty and no token stands for that."""
    before = tokenizer.encode(question.context)
    ids = tokenizer.encode(question.context + choice)
    scored = len(ids) - len(before)
    if scored < 1:
        raise Mendable(
            f"{question.where or 'a question'}: the choice {choice!r} adds no token to its "
            "context: begin it with a space, or end the context earlier"
        )
    name = f"{question.where or 'a question'}: a choice"
    if before:
        return ScoredRow(ids, scored, name)
    if tokenizer.eos_id is None:
        raise Mendable(
            f"{question.where or 'a question'}: an empty context stands for the end of a text, and "
            "the model's tokenizer has no such token"
        )
    return ScoredRow([tokenizer.eos_id, *ids], scored, name)


def _batch(model: LanguageModel, rows: Sequence[ScoredRow]) -> list[RowScore]:
    """The scores of rows that fit the model; a ``FloatingPointError`` where one is not finite.
    ``rows``: the longest first, as they come; shorter ones are padded on the right, where a causal
    model does not look."""
    device = next(model.parameters()).device
    longest = len(rows[0].ids) - 1
    ids = torch.zeros(len(rows), longest + 1, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
    valid = torch.arange(longest) < torch.tensor([[len(row.ids) - 1] for row in rows])
    # From the longest row's end, how far back the first token is that is scored in any row.
    most = longest - min(len(row.ids) - 1 - row.scored for row in rows)
    ids, valid = ids.to(device), valid.to(device)
    targets = ids[:, -most:]
    with evaluation_mode(model.modules()), torch.inference_mode():
        logits = model(ids[:, :-1], valid, last=most)[:, -most:]
        best = (logits.argmax(-1) == targets).cpu()  # (B, most)
        logs = logits.to(accumulate_dtype(logits)).log_softmax(-1)
        logs = logs.gather(-1, targets[..., None])[..., 0].cpu().double()  # (B, most)
    scores = []
    for i, row in enumerate(rows):
        end = len(row.ids) - 1 - (longest - most)
        places = slice(end - row.scored, end)
        total = float(logs[i, places].sum())
        if total != total or abs(total) == float("inf"):
            raise FloatingPointError(
                "a likelihood is not finite: the weights or activations hold NaN or overflow"
            )
        scores.append(RowScore(total, bool(best[i, places].all())))
    return scores
