"""Examples that went wrong, the worst few of each use, and what a translator looked at: pictures
for ``addnorm.pages.run_pictures``, as JSON has them.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, final

from addnorm.data.pairs import Pair
from addnorm.data.passages import Span
from addnorm.data.squad import SquadQuestion
from addnorm.uses.answer_scores import AnswerScore
from addnorm.uses.edits import edits
from addnorm.words import plural

WORST = 5  # examples of a use
LETTERS = 300  # of a text in a table, and of what is compared of a translation
AROUND = 200  # of a passage on either side of what is marked
RIGHT, OURS = "right", "ours"
"""The marks of a text: what is right, and what the model says."""
LEGEND = "Shaded: what the model says; underlined: what is right."

Picture = dict[str, Any]


# --- translations ---------------------------------------------------------------------------------


def worst_translations(rows: Sequence[Pair], outputs: Sequence[str]) -> list[Picture]:
    """Of held-out pairs and what the model makes of their sources, in the same order: those of
    which the largest share of letters is wrong. Nothing if all are right."""
    wrong = [
        (distance(output, row.target), row, output)
        for row, output in zip(rows, outputs, strict=True)
        if output != row.target
    ]
    wrong.sort(key=lambda one: (-one[0], -len(one[1].target)))
    if not wrong:
        return []
    return [
        {
            "kind": "table",
            "title": "The worst translations",
            "caption": f"{len(wrong):,} of {plural(len(rows), 'held-out source')} get another "
            "translation than the right one; those of which most letters would have to change.",
            "heads": ["source", "right", "ours", "to change"],
            "rows": [
                [shortened(row.source), shortened(row.target), shortened(output), f"{share:.0%}"]
                for share, row, output in wrong[:WORST]
            ],
        }
    ]


def distance(a: str, b: str) -> float:
    """The letters to insert, to leave out and to replace that make one text of the other
    (Levenshtein 1966), over those of the longer one; of long texts their beginnings count."""
    a, b = a[:LETTERS], b[:LETTERS]
    return edits(a, b) / max(len(a), len(b), 1)


@final
class Look(NamedTuple):
    """What a model looked at: a share for each of ``target`` and each of ``source``."""

    source: list[str]
    target: list[str]
    shares: list[list[float]]


def attention(looks: Sequence[Look]) -> list[Picture]:
    """Where the tokens of a few translations come from."""
    if not looks:
        return []
    return [
        {
            "kind": "heat",
            "title": "What it looks at",
            "caption": "A row for each token that the model writes, a column for each of the "
            "source; the stronger the colour, the more it looks there, in the mean over heads "
            "and layers.",
            "maps": [
                {
                    "rows": look.target,
                    "columns": look.source,
                    "values": [[round(share, 4) for share in row] for row in look.shares],
                }
                for look in looks
            ],
        }
    ]


# --- answers --------------------------------------------------------------------------------------


def worst_answers(
    questions: Sequence[SquadQuestion], spans: Sequence[Span], scores: Sequence[AnswerScore]
) -> list[Picture]:
    """Held-out questions with what was answered and how right it is: the least right, and of
    these those of which the model is surest. Nothing if all are right."""
    rows = zip(questions, spans, scores, strict=True)
    wrong = [row for row in rows if row[2].exact_match < 1]
    wrong.sort(key=lambda row: (row[2].f1, -abs(row[1].score)))
    if not wrong:
        return []
    items = []
    for question, span, _ in wrong[:WORST]:
        marks = {}
        if question.answers:
            marks[RIGHT] = question.answers[0].start, question.answers[0].end
        if span.start is not None and span.end is not None:
            marks[OURS] = span.start, span.end
        absent = {RIGHT: "there is no answer", OURS: "the model says that there is no answer"}
        notes = [[name, words] for name, words in absent.items() if name not in marks]
        text = marked(question.context, marks)
        items.append({"head": question.question, "text": text, "notes": notes})
    return [
        {
            "kind": "passages",
            "title": "The worst answers",
            "caption": f"{len(wrong):,} of {plural(len(questions), 'held-out question')} not "
            f"answered to the word; the least right first. {LEGEND}",
            "items": items,
        }
    ]


def marked(text: str, marks: Mapping[str, tuple[int, int]]) -> list[list[str]]:
    """[part, names of its marks] of a text, of which what is far from all marks is left out;
    ``marks``: name -> the characters from where to where."""
    edges = sorted({0, len(text), *(edge for ends in marks.values() for edge in ends)})
    parts = []
    for start, end in pairwise(edges):
        names = [name for name, (a, b) in marks.items() if a <= start and end <= b]
        part = text[start:end]
        if not names:
            # beside a mark, and on the other side another or the edge of the text
            before = AROUND if start or not marks else 0
            after = AROUND if end < len(text) else 0
            if len(part) > before + after + len(" ... "):
                part = f"{part[:before]} ... {part[len(part) - after :]}"
        parts.append([part, " ".join(names)])
    return parts


# --- masked texts ---------------------------------------------------------------------------------


@final
class Filling(NamedTuple):
    """A masked text: ``parts`` are (what stands there, what the model fills in; None: it was not
    asked), one after the other, and ``nats`` what a masked token costs it."""

    parts: list[tuple[str, str | None]]
    nats: float


def worst_fillings(fillings: Sequence[Filling], count: int) -> list[Picture]:
    """Masked texts, the worst first, of ``count`` that were looked at."""
    if not fillings:
        return []
    items = []
    for filling in fillings:
        text: list[list[str]] = []
        for truth, guess in filling.parts:
            if guess is None:
                text.append([truth, ""])
            elif guess == truth:
                text += _apart(truth, f"{RIGHT} {OURS}")
            else:
                text += [*_apart(guess, OURS), *_apart(truth, RIGHT)]
        items.append({"head": "", "text": text, "notes": [["nats a token", f"{filling.nats:.2f}"]]})
    return [
        {
            "kind": "passages",
            "title": "What it fills in",
            "caption": f"Those of {plural(count, 'held-out text')} of which the masked tokens are "
            f"least probable to the model. {LEGEND}",
            "items": items,
        }
    ]


def _apart(text: str, marks: str) -> list[list[str]]:
    """A token's text with its marks, and before it the space that it begins with, without any."""
    word = text.lstrip(" ")
    return [[text[: len(text) - len(word)], ""], [word, marks]]


# --- conversations --------------------------------------------------------------------------------


@final
class Reply(NamedTuple):
    """A question, its answer, what the model says, and what a token of the answer costs it."""

    question: str
    right: str
    ours: str
    nats: float


def worst_replies(replies: Sequence[Reply], count: int) -> list[Picture]:
    """Answers of the model, the worst first, of ``count`` that were looked at."""
    if not replies:
        return []
    return [
        {
            "kind": "table",
            "title": "The worst answers",
            "caption": f"Those of {plural(count, 'held-out question')} whose right answer is "
            "least probable to the model, in nats a token.",
            "heads": ["question", "right", "ours", "nats"],
            "rows": [
                [shortened(r.question), shortened(r.right), shortened(r.ours), round(r.nats, 2)]
                for r in replies
            ],
        }
    ]


# --- decisions ------------------------------------------------------------------------------------


def worst_decisions(rows: Sequence[tuple[float, str, str, str, str]], count: int) -> list[Picture]:
    """Of ``count`` held-out actions those that surprise a model most: the loss, and in words the
    state, the return to go, what was done, and what the model would have done."""
    if not rows:
        return []
    return [
        {
            "kind": "table",
            "title": "What surprises it most",
            "caption": f"Those of {plural(count, 'held-out action')} that are least probable to "
            "the model, or furthest from its own; like moments once.",
            "heads": ["state", "return to go", "done", "ours", "loss"],
            "rows": [
                [state, to_go, action, ours, round(loss, 3)]
                for loss, state, to_go, action, ours in rows
            ],
        }
    ]


def reached_returns(outcome: Mapping[str, Any], totals: Sequence[float]) -> list[Picture]:
    """What a model reached in an environment, as ``uses.decisions`` gives it, against what it was
    asked for, beside the returns ``totals`` of the episodes that it learned from. Nothing for a
    model that is asked for none."""
    wishes = outcome["return_asked"]
    if wishes == [None]:
        return []
    mean = sum(totals) / len(totals)
    return [
        {
            "kind": "reached",
            "title": "What it reaches, and what was asked",
            "caption": f"The mean return of {plural(outcome['episodes'], 'episode')} in "
            f"{outcome['env']}, with their standard deviation, for each return that was asked for; "
            "on the thin line it is what was asked.",
            "asked": wishes,
            "reached": outcome["return_mean"],
            "spread": outcome["return_std"],
            "levels": [[mean, "mean of the data"], [max(totals), "best of the data"]],
        }
    ]


def shortened(text: str) -> str:
    """A text as a table has room for it."""
    return text if len(text) <= LETTERS else f"{text[:LETTERS]} ..."
