"""Conversations: files of turns, each of somebody and with a text."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from addnorm import reading
from addnorm.data.sources import DataError
from addnorm.words import a_few

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES: Final = (SYSTEM, USER, ASSISTANT)
MESSAGES, CONVERSATIONS = "messages", "conversations"
SPEAKERS = {
    MESSAGES: {"system": SYSTEM, "developer": SYSTEM, "user": USER, "assistant": ASSISTANT},
    CONVERSATIONS: {
        "system": SYSTEM,
        "human": USER,
        "user": USER,
        "gpt": ASSISTANT,
        "chatgpt": ASSISTANT,
        "assistant": ASSISTANT,
    },
}
"""Key of the list of turns -> what a role is called there -> the role."""
FIELDS = {MESSAGES: ("role", "content"), CONVERSATIONS: ("from", "value")}
"""Key of the list of turns -> the keys of a turn's role and of its text."""
LINES, CORPUS = ".jsonl", (".yml", ".yaml")
EXAMPLE = (
    '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
)
FORMATS = (
    f"a .jsonl of objects such as {EXAMPLE}, or with ShareGPT's conversations, from and value; a "
    ".yml of the chatterbot corpus; or a folder of such files"
)
TOLD = 5  # bad lines that a message has


class Turn(NamedTuple):
    """What one of them says: ``role`` is system, user or assistant."""

    role: str
    text: str


Dialogue = tuple[Turn, ...]
"""The turns in their order; a text of the system stands only before all others."""


def read_dialogues(path: str | Path) -> list[Dialogue]:
    """All conversations of a file, or of the files of a folder, in their order.

    A ``DataError`` names the lines that are wrong, and what was expected there.
    """
    place = reading.place(path, DataError)
    files = [place]
    if place.is_dir():
        files = sorted(p for p in place.rglob("*") if may_hold_dialogues(p))
        if not files:
            raise DataError(f"{path} has no file of conversations: {FORMATS}")
    elif not may_hold_dialogues(place):
        raise DataError(f"{path} is none of the formats for conversations: {FORMATS}")
    dialogues: list[Dialogue] = []
    errors: list[str] = []
    for file in files:
        for one in _of_lines(file) if file.suffix.lower() == LINES else _of_corpus(file):
            if isinstance(one, DataError):
                errors.append(str(one))
            else:
                dialogues.append(one)
    if errors:
        raise DataError(a_few(errors, TOLD, "\n"))
    if not dialogues:
        raise DataError(f"{path} holds no conversation: {FORMATS}")
    return dialogues


def may_hold_dialogues(file: Path) -> bool:
    """Whether a file is called as one of conversations is."""
    return file.suffix.lower() in (LINES, *CORPUS)


def to_object(dialogue: Sequence[Turn]) -> dict[str, Any]:
    """The conversation as an object of a .jsonl, in OpenAI's shape."""
    role, content = FIELDS[MESSAGES]
    return {MESSAGES: [{role: turn.role, content: turn.text} for turn in dialogue]}


# --- lines of JSON --------------------------------------------------------------------------------


def _of_lines(file: Path) -> Iterator[Dialogue | DataError]:
    """A conversation for each line that is not empty, or what is wrong with it, not raised, so that
    one message can name several lines."""
    for number, line in enumerate(reading.lines(file, DataError), 1):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        try:
            yield _of_object(reading.json_value(line, where, DataError), where)
        except DataError as error:
            yield error


def _of_object(value: Any, where: str) -> Dialogue:
    """The conversation that an object of JSON is; ``where`` names its line in a ``DataError``."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object, got {reading.in_words(value)}")
    key = next((name for name in FIELDS if name in value), None)
    if key is None:
        keys = ", ".join(value) or "nothing"
        raise DataError(f"{where}: the object has {keys}, and no messages; one is {EXAMPLE}")
    turns = reading.field(value, key, list, where, DataError)
    return _checked(
        [_turn(turn, key, f"{where}: turn {i}") for i, turn in enumerate(turns, 1)], where
    )


def _turn(value: Any, key: str, where: str) -> Turn:
    """One turn of a list that stands under ``key``, by which its own keys are called; ``where``
    names it in a ``DataError``."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object, got {reading.in_words(value)}")
    role, content = FIELDS[key]
    speaker = reading.field(value, role, str, where, DataError)
    if speaker not in SPEAKERS[key]:
        names = ", ".join(SPEAKERS[key])
        raise DataError(f"{where}: {role!r} is {speaker!r}, expected one of {names}")
    text = _joined(value.get(content), where) if content in value else None
    if text is None:
        text = reading.field(value, content, str, where, DataError)
    return Turn(SPEAKERS[key][speaker], text)


def _joined(content: Any, where: str) -> str | None:
    """The text of a content that is a list of parts, as OpenAI's may be, put together; None: it is
    no list. A part that is no text, such as a picture, is a ``DataError``."""
    if not isinstance(content, list):
        return None
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else part
        if kind != "text" or not isinstance(part.get("text"), str):
            raise DataError(f"{where}: a part of the content is no text, but {kind!r}")
        texts.append(part["text"])
    return "".join(texts)


def _checked(turns: Sequence[Turn], where: str) -> Dialogue:
    """The turns as a conversation, or a ``DataError`` where it cannot be learned from: no turn is
    empty, the system's comes first, one is the assistant's."""
    for i, turn in enumerate(turns, 1):
        if not turn.text.strip():
            raise DataError(f"{where}: turn {i} is empty")
        if turn.role == SYSTEM and i > 1:
            raise DataError(f"{where}: turn {i} is the system's, which stands before all others")
    if ASSISTANT not in {turn.role for turn in turns}:
        raise DataError(f"{where}: no turn is the assistant's, so that there is none to learn")
    return tuple(turns)


# --- the chatterbot corpus ------------------------------------------------------------------------


def _of_corpus(file: Path) -> Iterator[Dialogue | DataError]:
    """``conversations``: lists of texts, the user's and the assistant's in turn; what is wrong with
    one is yielded in its place, not raised.

    Every scalar of YAML is taken for the text that stands there: "yes" and 42 are no others.
    """
    import yaml

    try:
        root = yaml.compose(reading.text(file, DataError), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
        yield DataError(f"{file}{line}: not YAML: {error.problem or error}")
        return
    except (yaml.YAMLError, RecursionError) as error:
        yield DataError(f"{file}: not YAML: {error}")
        return
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    lists = [value for key, value in pairs if key.value == CONVERSATIONS]
    if not lists or not isinstance(lists[0], yaml.SequenceNode):
        yield DataError(f"{file} has no list of {CONVERSATIONS}, as the chatterbot corpus has them")
        return
    for node in lists[0].value:
        try:
            where = f"{file}:{node.start_mark.line + 1}"
            if not isinstance(node, yaml.SequenceNode):
                raise DataError(f"{where}: expected a list of texts, each after a dash")
            yield _checked(
                [
                    Turn((USER, ASSISTANT)[i % 2], _scalar(part, file, yaml.ScalarNode))
                    for i, part in enumerate(node.value)
                ],
                where,
            )
        except DataError as error:
            yield error


def _scalar(node: Any, file: Path, scalar: type[Any]) -> str:
    """The text of a node of YAML, a ``DataError`` if it is no text. ``scalar``: PyYAML's class of
    such nodes, since it is imported only where a corpus is read."""
    if not isinstance(node, scalar):
        raise DataError(
            f"{file}:{node.start_mark.line + 1}: expected a text: one with a colon or a bracket "
            "needs quotes"
        )
    return str(node.value)
