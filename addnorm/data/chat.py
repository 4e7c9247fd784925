"""How a conversation becomes ids: marks around turns, and what goes where there is no room.

A ``ChatTemplate`` says what stands before and after the text of each role. The ids of marks and of
texts are made apart: a mark may hold special tokens, a text is ordinary text whatever it holds, so
that nobody can write the end of his own turn or the beginning of another's.

What is too long for a context is cut by one rule, in training and in a conversation alike:

* the text of the system stays, and the oldest turns go first, whole;
* of a question that is too long by itself, the end stays;
* of an answer that is too long even then, the beginning is learned, and that it ends is not.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from addnorm import disk, reading
from addnorm.data.dialogues import ASSISTANT, ROLES, SYSTEM, USER, Turn
from addnorm.data.tokenizer import TextStream, Tokenizer
from addnorm.errors import Mendable

FILE = "chat.json"
"""The template's file in a model's folder."""
FORMAT = "addnorm_chat_1"


@final
class ChatError(Mendable):
    """A template that cannot be read or used; the message says why and what to do."""


class Marks(NamedTuple):
    """What stands before and after the text of a turn."""

    before: str
    after: str


@final
@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """The marks of a conversation.

    ``turns``: role -> its marks; without the system's there is no place for a text of the system.
    ``begin``: what stands before all turns. ``system``: the text of the system where a conversation
    has none of its own; None: there is none.
    """

    turns: Mapping[str, Marks]
    begin: str = ""
    system: str | None = None

    def __post_init__(self) -> None:
        if not {USER, ASSISTANT} <= self.turns.keys() <= {*ROLES}:
            raise ChatError(
                f"a template has marks for {USER}, {ASSISTANT} and perhaps {SYSTEM}; this one has "
                f"them for {', '.join(self.turns) or 'nobody'}"
            )
        if self.system is not None and SYSTEM not in self.turns:
            raise ChatError("a template with a text of the system needs marks for it")

    def text(self, turns: Sequence[Turn], opening: bool = False) -> str:
        """A conversation with its marks; with ``opening`` also the mark before the next answer. The
        template's own text of the system comes first where the turns have none."""
        if self.system is not None and not (turns and turns[0].role == SYSTEM):
            turns = [Turn(SYSTEM, self.system), *turns]
        parts = [self.begin]
        for turn in turns:
            before, after = self.turns[turn.role]
            parts += [before, turn.text, after]
        return "".join(parts) + (self.turns[ASSISTANT].before if opening else "")

    def to_json(self) -> dict[str, Any]:
        """What the file says."""
        turns = {role: list(marks) for role, marks in self.turns.items()}
        return {"format": FORMAT, "begin": self.begin, "system": self.system, "turns": turns}

    @classmethod
    def from_json(cls, card: Mapping[str, Any], where: object) -> "ChatTemplate":
        """What ``to_json`` gave; anything else is a ``ChatError``."""
        if card.get("format") != FORMAT:
            raise ChatError(f"{where}: 'format' must be {FORMAT!r}, got {card.get('format')!r}")
        system = card.get("system")
        if system is not None:
            reading.field(card, "system", str, where, ChatError)
        turns = {}
        for role, marks in reading.field(card, "turns", dict, where, ChatError).items():
            if not isinstance(marks, list) or [type(mark) for mark in marks] != [str, str]:
                raise ChatError(f"{where}: the marks of {role} must be two texts")
            turns[role] = Marks(*marks)
        begin = reading.field(card, "begin", str, where, ChatError)
        try:
            return cls(begin=begin, system=system, turns=turns)
        except ChatError as error:
            raise ChatError(f"{where}: {error}") from None

    def to_jinja(self) -> str:
        """The same for transformers, as a template of its ``apply_chat_template``."""

        def text(value: str) -> str:
            """A text as an expression of Jinja that writes it."""
            escapes = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
            return "{{ '" + "".join(escapes.get(c, c) for c in value) + "' }}"

        lines = [text(self.begin)] if self.begin else []
        if self.system is not None:
            lines.append("{% if not messages or messages[0]['role'] != 'system' %}")
            lines += [
                text("".join((self.turns[SYSTEM].before, self.system, self.turns[SYSTEM].after)))
            ]
            lines.append("{% endif %}")
        lines.append("{% for message in messages %}")
        for i, (role, (before, after)) in enumerate(self.turns.items()):
            lines.append("{% " + ("elif" if i else "if") + f" message['role'] == '{role}'" + " %}")
            lines.append(text(before) + "{{ message['content'] }}" + text(after))
        lines.append(
            "{% else %}{{ raise_exception('no such role: ' + message['role']) }}{% endif %}"
        )
        lines.append("{% endfor %}")
        lines.append(
            "{% if add_generation_prompt %}" + text(self.turns[ASSISTANT].before) + "{% endif %}"
        )
        return "".join(lines)


ROLE_MARKS = {role: f"<|{role}|>" for role in ROLES}
END = "<|end|>"
TOKENS = ChatTemplate(turns={role: Marks(mark, END) for role, mark in ROLE_MARKS.items()})
"""A token before each turn and one after it: they are added to a tokenizer that lacks them."""


def words_template(end: str) -> ChatTemplate:
    """Marks of ordinary text and ``end``, a special token that is there already: for models whose
    table of tokens must stay what it is. A role is named where the turn before has ended, and there
    no text of a turn can stand."""
    names = {SYSTEM: "System:\n", USER: "User:\n", ASSISTANT: "Assistant:\n"}
    return ChatTemplate(turns={role: Marks(name, end) for role, name in names.items()})


class Prompt(NamedTuple):
    """A conversation as a model reads it before an answer.

    ``ids``: what it reads; ``answer``: how many ids the answer may have; ``left_out``: how many of
    the turns had no room; ``cut``: whether the beginning of the last one had none.
    """

    ids: list[int]
    answer: int
    left_out: int
    cut: bool


class ChatRow(NamedTuple):
    """A part of a conversation to learn from: ``ids``, of which those with ``target`` are
    predicted from all before them."""

    ids: NDArray[np.int64]
    target: NDArray[np.bool_]


class TurnIds(NamedTuple):
    """A turn in ids, its marks apart."""

    role: str
    before: list[int]
    text: list[int]
    after: list[int]

    @property
    def ids(self) -> list[int]:
        """Marks and text in their order."""
        return self.before + self.text + self.after

    def with_end(self, most: int) -> "TurnIds":
        """With as much of the end of its text as ``most`` ids have room for beside the marks, which
        stay; so it may have more, if the marks alone have."""
        room = max(most - len(self.before) - len(self.after), 0)
        return self._replace(text=self.text[max(len(self.text) - room, 0) :])

    def with_beginning(self, most: int) -> "TurnIds":
        """With the beginning of its text, and without its end, if it has more than ``most`` ids."""
        if len(self.ids) <= most:
            return self
        return self._replace(text=self.text[: max(most - len(self.before), 0)], after=[])


@final
class ChatTokenizer:
    """A tokenizer and a template: conversations to ids, and ids of answers to text.

    ``tokenizer``: the model's, with all tokens that the marks need; ``template``: the marks.

    For generation it is a tokenizer whose ``eos_id`` ends an answer, and which has no bytes for
    other special tokens: no answer has them. For files it is one that has its template beside it.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self.tokenizer, self.template = tokenizer, template
        special = set(tokenizer.special.values())
        end = self._mark(template.turns[ASSISTANT].after)
        if not end or end[0] not in special:
            raise ChatError(
                "the mark after an answer must begin with a special token of the tokenizer, as no "
                f"text can be taken for one: it is {template.turns[ASSISTANT].after!r}, and there "
                f"are {', '.join(tokenizer.special) or 'none'}"
            )
        self.eos_id: int = end[0]
        self._hidden = special - {self.eos_id}  # the special tokens that no answer may have

    # ------------------------------------------------------------------------ as a tokenizer

    @property
    def identity(self) -> str:
        """The tokenizer's."""
        return self.tokenizer.identity

    @property
    def vocab_size(self) -> int:
        """The tokenizer's."""
        return self.tokenizer.vocab_size

    def encode(self, text: str) -> list[int]:
        """Ordinary text."""
        return self.tokenizer.encode(text)

    def stream(self) -> TextStream:
        """The tokenizer's."""
        return self.tokenizer.stream()

    def token_bytes(self, id: int) -> bytes:
        """The bytes of an id, a ``ValueError`` for marks that are not written."""
        if id in self._hidden:
            raise ValueError(f"id {id} is a mark between turns")
        return self.tokenizer.token_bytes(id)

    def save(self, folder: str | Path) -> None:
        """The tokenizer's files, and the template beside them; where transformers reads the
        tokenizer, it finds the template too."""
        folder = Path(folder)
        self.tokenizer.save(folder)
        disk.write_text(folder / FILE, _json(self.template.to_json()))
        config = folder / "tokenizer_config.json"
        if config.exists():
            card = reading.json_object(config, ChatError)
            card["chat_template"] = self.template.to_jinja()
            disk.write_text(config, _json(card))

    # ------------------------------------------------------------------------------- turns to ids

    def prompt(self, turns: Sequence[Turn], context: int, most: int) -> Prompt:
        """What the model reads before it answers with at most ``most`` ids, for which up to half of
        what the text of the system leaves of the context is kept free."""
        head, pieces = self._parts(turns, context)
        opening = self._mark(self.template.turns[ASSISTANT].before)
        room = context - len(head)
        room -= min(most, room // 2) + len(opening)
        recent = _recent(pieces, room)
        cut = bool(pieces) and not recent
        if cut:
            recent = [pieces[-1].with_end(room)]
        ids = head + _joined(recent) + opening
        # and one more, since the last id of an answer is written and not read
        return Prompt(ids, min(most, context + 1 - len(ids)), len(pieces) - len(recent), cut)

    def rows(self, dialogue: Sequence[Turn], context: int) -> list[ChatRow]:
        """A conversation in parts of at most ``context`` ids and one more: each answer is learned
        in one of them, with as many of the turns before it as have room there."""
        head, pieces = self._parts(dialogue, context)
        room = context + 1 - len(head)  # the last id of a row is a target only
        answers = [i for i, piece in enumerate(pieces) if piece.role == ASSISTANT]
        # of each answer: the turn behind the answer before, where the part that ends in it begins
        starts = [0, *(i + 1 for i in answers)]
        rows: list[ChatRow] = []
        k = 0
        while k < len(answers):
            last = k  # answers k to last are learned in one row: as many as fit
            while last + 1 < len(answers) and _size(pieces[starts[k] : starts[last + 2]]) <= room:
                last += 1
            part = pieces[starts[k] : starts[last + 1]]
            if _size(part) > room:
                part = _squeezed(part, room)
            history = _recent(pieces[: starts[k]], room - _size(part))
            rows.append(_row(head + _joined(history), part))
            k = last + 1
        return rows

    def _parts(self, turns: Sequence[Turn], context: int) -> tuple[list[int], list[TurnIds]]:
        """(ids of what stays at the beginning, the turns after it): the template's beginning and
        the text of the system, the conversation's or else the template's. A ``ChatError`` where so
        little of the context is left that a question and an answer have no room."""
        system = self.template.system
        if turns and turns[0].role == SYSTEM:
            system, turns = turns[0].text, turns[1:]
        head = self._mark(self.template.begin)
        if system is not None:
            head = head + self._piece(Turn(SYSTEM, system)).ids
        marks = sum(len(self._piece(Turn(role, "")).ids) for role in (USER, ASSISTANT))
        if 2 * len(head) > context or context - len(head) < 2 * (marks + 1):
            raise ChatError(
                f"a context of {context} tokens has no room for a conversation: what stands before "
                f"it, the text of the system included, has {len(head)}, at most half of the "
                f"context, and the marks of a question and an answer have {marks}"
            )
        return head, [self._piece(turn) for turn in turns]

    def _piece(self, turn: Turn) -> TurnIds:
        """A turn in ids, its text as ordinary text; a ``ChatError`` where the template has no marks
        for its role."""
        if turn.role not in self.template.turns:
            raise ChatError("the template of this model has no place for a text of the system")
        before, after = self.template.turns[turn.role]
        text = self.tokenizer.encode(turn.text)
        return TurnIds(turn.role, self._mark(before), text, self._mark(after))

    def _mark(self, mark: str) -> list[int]:
        """The ids of a mark, in which the names of special tokens stand for them."""
        return self.tokenizer.encode(mark, allow_special=True)


# --- pieces ---------------------------------------------------------------------------------------


def _size(pieces: Sequence[TurnIds]) -> int:
    """How many ids they have, marks included."""
    return sum(len(piece.ids) for piece in pieces)


def _joined(pieces: Sequence[TurnIds]) -> list[int]:
    """The ids of all of them, marks included."""
    return [id for piece in pieces for id in piece.ids]


def _recent(pieces: Sequence[TurnIds], room: int) -> list[TurnIds]:
    """The last of them, whole, as many as ``room`` ids hold; none if the very last is too long."""
    first = len(pieces)
    while first and (room := room - len(pieces[first - 1].ids)) >= 0:
        first -= 1
    return list(pieces[first:])


def _squeezed(part: Sequence[TurnIds], room: int) -> list[TurnIds]:
    """Turns that end in an answer and are too long by themselves, cut to ``room`` ids. Of what
    stands before the answer there is as much as the answer leaves, or at least half of the room:
    whole turns, or the end of the last; then as much of the answer's beginning as still fits."""
    *questions, answer = part
    free = max(room - len(answer.ids), room // 2)
    recent = _recent(questions, free)
    if questions and not recent:
        recent = [questions[-1].with_end(free)]
    return [*recent, answer.with_beginning(room - _size(recent))]


def _row(head: Sequence[int], part: Sequence[TurnIds]) -> ChatRow:
    """The ids of ``head``, which is only read, and of the turns after it, ``part``, of which the
    answers are learned: their texts, and the first id behind each, which ends it, if the answer has
    its end."""
    ids, target = list(head), [False] * len(head)
    for piece in part:
        ids += piece.ids
        learned = len(piece.text) + bool(piece.after) if piece.role == ASSISTANT else 0
        target += [False] * len(piece.before) + [True] * learned
        target += [False] * (len(ids) - len(target))
    return ChatRow(np.array(ids, np.int64), np.array(target))


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
