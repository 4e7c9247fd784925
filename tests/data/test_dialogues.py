"""Conversations from files: every shape, and each line that is wrong by its number."""

import json
from pathlib import Path
from typing import Any

import pytest

from addnorm.data.dialogues import Turn, read_dialogues, to_object
from addnorm.data.sources import DataError

TALK = (Turn("user", "Hi\u2028there"), Turn("assistant", "Hello.\nYes?"))


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def jsonl(path: Path, *objects: Any) -> Path:
    path.write_text("\n".join(json.dumps(one, ensure_ascii=False) for one in objects) + "\n")
    return path


def test_every_shape_is_the_same_conversation(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Hello.\n"}, {"type": "text", "text": "Yes?"}]
    openai = {"messages": [message("user", TALK[0].text), message("assistant", parts)], "id": 3}
    shared = {
        "conversations": [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": TALK[0].text},
            {"from": "gpt", "value": TALK[1].text, "weight": 1},
        ]
    }
    jsonl(tmp_path / "b.jsonl", openai, to_object(TALK), shared)
    (tmp_path / "a.yml").write_text(
        "categories: [ai]\nconversations:\n- - yes\n  - '42'\n  - 3.0\n  - no # not said\n"
    )
    (tmp_path / "notes.txt").write_text("not a conversation")
    corpus, *others = read_dialogues(tmp_path)
    assert [turn.text for turn in corpus] == ["yes", "42", "3.0", "no"]
    assert [turn.role for turn in corpus] == ["user", "assistant"] * 2
    assert others == [TALK, TALK, (Turn("system", "Be kind."), *TALK)]
    assert read_dialogues(tmp_path / "b.jsonl") == others


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("{", "x.jsonl:2 is not valid JSON"),
        ("[1]", "x.jsonl:2: expected an object, got a list"),
        ('{"text": "a"}', r'x.jsonl:2: the object has text, and no messages; one is {"messages"'),
        ('{"messages": "a"}', "x.jsonl:2: 'messages' is the text 'a', expected a list"),
        ('{"messages": [3]}', "x.jsonl:2: turn 1: expected an object, got the number 3"),
        ('{"messages": [{"content": "a"}]}', "x.jsonl:2: turn 1: 'role' is missing"),
        ({"messages": [message("bot", "a")]}, "turn 1: 'role' is 'bot', expected one of system, "),
        ({"messages": [message("user", None)]}, "turn 1: 'content' is null, expected a text"),
        (
            {"messages": [message("user", [{"type": "image"}])]},
            "turn 1: a part of .* no text, but 'im",
        ),
        (
            {"messages": [message("user", "a"), message("assistant", " ")]},
            "x.jsonl:2: turn 2 is empty",
        ),
        (
            {"messages": [message("user", "a"), message("system", "b")]},
            "turn 2 is the system's, which",
        ),
        ({"messages": [message("user", "a")]}, "x.jsonl:2: no turn is the assistant's"),
        ({"conversations": [{"from": "gpt"}]}, "x.jsonl:2: turn 1: 'value' is missing"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, error: str) -> None:
    file = tmp_path / "x.jsonl"
    text = line if isinstance(line, str) else json.dumps(line)
    file.write_text(f"{json.dumps(to_object(TALK))}\n{text}\n\n")
    with pytest.raises(DataError, match=error):
        read_dialogues(file)


def test_several_bad_lines_are_named(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text("{}\n" * 7)
    with pytest.raises(DataError) as error:
        read_dialogues(file)
    assert [f"x.jsonl:{n}:" in str(error.value) for n in range(1, 8)] == [True] * 5 + [False] * 2
    assert "and 2 more" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "x.yml:2: not YAML"),
        ("- a", "x.yml has no list of conversations"),
        ("conversations: a", "x.yml has no list of conversations"),
        ("", "x.yml has no list of conversations"),
        ("conversations:\n- - a\n  - b\n- c", "x.yml:4: expected a list of texts"),
        ("conversations:\n- - a\n  - b: c", "x.yml:3: expected a text: one with a colon"),
        ("conversations:\n- - a", "x.yml:2: no turn is the assistant's"),
        ("conversations: []", "x.yml holds no conversation"),
    ],
)
def test_a_bad_corpus_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.yml").write_text(f"{text}\n")
    with pytest.raises(DataError, match=message):
        read_dialogues(tmp_path / "x.yml")


def test_what_is_no_file_of_conversations(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no file of conversations: a \.jsonl of objects"):
        read_dialogues(tmp_path)
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(DataError, match="none of the formats for conversations"):
        read_dialogues(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl"):
        read_dialogues(tmp_path / "none.jsonl")
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"a\.jsonl holds no conversation"):
        read_dialogues(tmp_path / "a.jsonl")
