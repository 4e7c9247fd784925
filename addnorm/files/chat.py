"""The template of a model's conversations, as its folder has it.

Ours is chat.json. A ``chat_template`` of transformers is a program in Jinja, which can do anything:
it is run on a few conversations, in a sandbox, and where all that it does is to put the same marks
around every turn, these are read off. What does more is refused.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from addnorm import reading
from addnorm.data.chat import FILE, ChatError, ChatTemplate, ChatTokenizer, Marks
from addnorm.data.dialogues import ASSISTANT, SYSTEM, USER, Turn
from addnorm.data.tokenizer import Tokenizer
from addnorm.words import error_in_a_line

JINJA = "chat_template.jinja"
TOKENIZER_CONFIG = "tokenizer_config.json"
NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
"""What a template may call tokens, as tokenizer_config.json has them."""
QUESTION, ANSWER, NEXT, TEXT = (f"<0{word}0>" for word in ("question", "answer", "next", "system"))
"""Texts that no mark holds: what stands around them in a template's output are its marks."""
PROBES = (
    ((USER, "Who?"), (ASSISTANT, "You"), (USER, "I?"), (ASSISTANT, "Yes."), (USER, "No")),
    ((USER, " two  words\n"), (ASSISTANT, "\n\nlines \n")),
    ((SYSTEM, " Be kind.\n"), (USER, "<b>"), (ASSISTANT, "'quoted'"), (USER, "\u4f60\u597d")),
)
"""Conversations with spaces, lines and signs of their own, on which a template must do as ours."""
SHOWN = 60  # characters of what a template gives, in a message


def read(folder: Path, tokenizer: Tokenizer) -> ChatTokenizer | None:
    """The tokenizer of a model's folder with its template; None: the folder has none.

    One that cannot be used is a ``ChatError``.
    """
    template = _template(folder)
    if template is None:
        return None
    try:
        return ChatTokenizer(tokenizer, template)
    except ChatError as error:
        raise ChatError(f"{folder}: {error}") from None


def _template(folder: Path) -> ChatTemplate | None:
    """The template of a folder: chat.json, else chat_template.jinja, else what
    tokenizer_config.json has; None if there is none of them. One that cannot be used is a
    ``ChatError``."""
    file, jinja, config = (folder / name for name in (FILE, JINJA, TOKENIZER_CONFIG))
    if os.path.lexists(file):
        return ChatTemplate.from_json(reading.json_object(file, ChatError), file)
    card = reading.json_object(config, ChatError) if os.path.lexists(config) else {}
    if os.path.lexists(jinja):
        return from_jinja(reading.text(jinja, ChatError), _tokens(card), jinja)
    source = card.get("chat_template")
    if isinstance(source, list):  # several, by name
        by_name = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = by_name.get("default")
    if source is None:
        return None
    if not isinstance(source, str):
        raise ChatError(f"{config}: 'chat_template' is {reading.in_words(source)}, expected a text")
    return from_jinja(source, _tokens(card), f"{config}: chat_template")


def _tokens(card: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that a template can name, in text, from tokenizer_config.json; those that it has
    not are left out."""
    contents = {}
    for name in NAMES:
        token = card.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            contents[name] = text
    return contents


# --- Jinja ----------------------------------------------------------------------------------------


def from_jinja(source: str, tokens: Mapping[str, str], where: object) -> ChatTemplate:
    """The template that a ``chat_template`` amounts to, or a ``ChatError``.

    ``source``: the program. ``tokens``: what it may name. ``where`` it stands, for messages.
    """
    jinja = _Jinja(source, tokens, where)
    before_first, after_user = jinja.parts([(USER, QUESTION)])
    turns = [(USER, QUESTION), (ASSISTANT, ANSWER)]
    _, between, after_answer = jinja.parts(turns)
    _, _, behind, _ = jinja.parts([*turns, (USER, NEXT)])
    before_answer = jinja.rest(between, after_user)
    before_user = jinja.rest(behind, after_answer)
    opened = jinja.render([(USER, QUESTION)], opening=True)
    if opened not in (before_first + QUESTION + after_user + more for more in ("", before_answer)):
        raise ChatError(f"{where}: it puts another mark before an answer to come than before one")
    if not before_first.endswith(before_user):
        raise ChatError(f"{where}: the first question has other marks than the next one")
    begin, system = before_first.removesuffix(before_user), None
    marks = {USER: Marks(before_user, after_user), ASSISTANT: Marks(before_answer, after_answer)}
    if jinja.takes([(SYSTEM, TEXT), (USER, QUESTION)]):
        before_text, after_text, _ = jinja.parts([(SYSTEM, TEXT), (USER, QUESTION)])
        if not after_text.endswith(before_user):
            raise ChatError(f"{where}: the text of the system is no turn of its own")
        after_text = after_text.removesuffix(before_user)
        if before_text.startswith(begin):
            marks[SYSTEM] = Marks(before_text.removeprefix(begin), after_text)
        # without a text of the system there stands one of the template's own: marks and all
        elif begin.startswith(before_text) and begin.endswith(after_text):
            system = begin[len(before_text) : len(begin) - len(after_text)]
            begin, marks[SYSTEM] = "", Marks(before_text, after_text)
        else:
            raise ChatError(f"{where}: a conversation with a text of the system begins otherwise")
    template = ChatTemplate(turns=marks, begin=begin, system=system)
    for probe in PROBES:
        if probe[0][0] != SYSTEM or SYSTEM in marks:
            jinja.compare(template, probe)
    return template


Pairs = Sequence[tuple[str, str]]


@final
class _Jinja:
    """A template of Jinja, as transformers runs it; ``where`` it stands is named in messages."""

    def __init__(self, source: str, tokens: Mapping[str, str], where: object) -> None:
        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = refuse
        self._tokens, self._where = tokens, where
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ChatError(f"{where} is not Jinja: {error_in_a_line(error)}") from None

    def render(self, turns: Pairs, opening: bool = False) -> str:
        """What it makes of a conversation, with the mark before an answer to come if ``opening``;
        a ``ChatError`` where it refuses, or fails in another way."""
        messages = [{"role": role, "content": text} for role, text in turns]
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=opening, **self._tokens
            )
        except Exception as error:  # whatever somebody else's program does
            raise ChatError(f"{self._where} fails: {error_in_a_line(error)}") from None

    def takes(self, turns: Pairs) -> bool:
        """Whether it makes anything of a conversation, and does not refuse it or fail."""
        try:
            self.render(turns)
        except ChatError:
            return False
        return True

    def parts(self, turns: Pairs) -> list[str]:
        """What stands before, between and after the texts: one more than there are turns. Each text
        must come once, else it is a ``ChatError``, so let none be part of another."""
        rest = self.render(turns)
        parts = []
        for _, text in turns:
            before, _, after = rest.partition(text)
            if text not in rest or text in after:
                raise ChatError(f"{self._where}: it does not write each turn once, in its place")
            parts.append(before)
            rest = after
        return [*parts, rest]

    def rest(self, marks: str, first: str) -> str:
        """What follows the mark ``first`` in ``marks``, which stand between two texts; a
        ``ChatError`` where they do not begin with it."""
        if not marks.startswith(first):
            raise ChatError(
                f"{self._where}: the mark after the last turn, {first[:SHOWN]!r}, is not the one "
                "between turns"
            )
        return marks.removeprefix(first)

    def compare(self, template: ChatTemplate, probe: Pairs) -> None:
        """Raise a ``ChatError`` where it makes another text of the conversation ``probe`` than
        ``template`` does. A program that writes no mark before an answer to come is no other: that
        mark is ours to put."""
        for opening in (False, True):
            ours = template.text([Turn(*turn) for turn in probe], opening)
            theirs = self.render(probe, opening)
            if theirs not in (ours, template.text([Turn(*turn) for turn in probe])):
                raise ChatError(
                    f"{self._where}: it does more than putting marks around turns. A conversation "
                    f"becomes {theirs[-SHOWN:]!r}, and with marks alone {ours[-SHOWN:]!r}"
                )
