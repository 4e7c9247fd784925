"""A model's template: ours, and those of transformers that put the same marks around each turn."""

import json
from pathlib import Path
from typing import Any

import pytest

from addnorm import Tokenizer
from addnorm.data.chat import END, ROLE_MARKS, TOKENS, ChatError, ChatTemplate, ChatTokenizer, Marks
from addnorm.data.dialogues import Turn
from addnorm.files.chat import from_jinja, read
from addnorm.files.folders import write_json

TALK = [
    Turn("system", "Be."),
    Turn("user", "Who?"),
    Turn("assistant", "I'm it."),
    Turn("user", "?"),
]
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}"
)
OPENING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}"
)
ENDS = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
FIRST = (
    "{{ bos_token }}"
    "{% for m in messages %}{{ '[' + m.role + ']' + m.content + '</s>' }}{% endfor %}"
)
EACH = "{% for m in messages %}{{ (X) + '[' + m.role + ']' + m.content + '</s>' }}{% endfor %}"
MERGED = (
    "{% for m in messages %}{{ ('' if messages[0].role == 'system' and loop.index0 == 1 else "
    "'[' + m.role + ']') + m.content + '</s>' }}{% endfor %}"
)


def chatml(role: str) -> Marks:
    return Marks(f"<|im_start|>{role}\n", "<|im_end|>\n")


ALL = {role: chatml(role) for role in ROLE_MARKS}


@pytest.mark.parametrize(
    ("source", "template"),
    [
        (CHATML + OPENING, ChatTemplate(turns=ALL)),
        (CHATML, ChatTemplate(turns=ALL)),
        (DEFAULT + CHATML + OPENING, ChatTemplate(turns=ALL, system="Help.")),
        (ENDS, ChatTemplate(turns=dict.fromkeys(ROLE_MARKS, Marks("", "</s>")))),
        (FIRST, ChatTemplate(turns={r: Marks(f"[{r}]", "</s>") for r in ROLE_MARKS}, begin="<s>")),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}" + ENDS,
            ChatTemplate(turns=dict.fromkeys(("user", "assistant"), Marks("", "</s>"))),
        ),
    ],
    ids=["chatml", "without opening", "default system", "only ends", "begins", "no system"],
)
def test_simple_templates_are_read_off(source: str, template: ChatTemplate) -> None:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    assert from_jinja(source, tokens, "x") == template
    assert from_jinja(template.to_jinja(), {}, "x") == template, "and so is what we write"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for m in messages", "x is not Jinja: TemplateSyntaxError"),
        ("{{ messages[7].content }}", "x fails: UndefinedError"),
        ("{{ ''.__class__.mro() }}", "x fails: SecurityError"),
        ("hello", "does not write each turn once"),
        (CHATML.replace("message['content'] +", "message['content'] | trim +"), "does more than"),
        (CHATML + "{{ eos_token }}", "the mark after the last turn, .* is not the one between"),
        (CHATML + OPENING.replace("assistant", "bot"), "another mark before an answer to come"),
        (EACH.replace("X", "'^' if loop.first else '*'"), "the first question has other marks"),
        (
            "{{ '^' if messages[0].role != 'system' else '' }}" + EACH.replace("X", "''"),
            "otherwise",
        ),
        (MERGED, "the text of the system is no turn of its own"),
    ],
)
def test_templates_that_do_more_are_refused(source: str, reason: str) -> None:
    with pytest.raises(ChatError, match=reason):
        from_jinja(source, {"eos_token": "</s>"}, "x")


def test_where_a_template_stands(tmp_path: Path) -> None:
    """chat.json counts before a file of Jinja, and this before what the tokenizer's card says."""
    tokenizer = Tokenizer.train(["a b"], vocab_size=257).with_special([*ROLE_MARKS.values(), END])
    tokenizer.save(tmp_path)
    assert read(tmp_path, tokenizer) is None
    file = tmp_path / "tokenizer_config.json"
    card = json.loads(file.read_text())
    end = ENDS.replace("eos_token", "'<|end|>'")
    write_json(file, {**card, "chat_template": [{"name": "default", "template": end}]})
    chat = read(tmp_path, tokenizer)
    assert chat is not None
    assert chat.template.turns["user"] == Marks("", END)
    write_json(file, {**card, "eos_token": {"content": END}, "chat_template": 3})
    with pytest.raises(ChatError, match="'chat_template' is the number 3, expected a text"):
        read(tmp_path, tokenizer)
    (tmp_path / "chat_template.jinja").write_text("{{ '' }}" + ENDS)
    chat = read(tmp_path, tokenizer)
    assert chat is not None
    assert chat.eos_id == tokenizer.special[END]
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    with pytest.raises(ChatError, match=r"must begin with a special token .* it is '<\|im_end\|>"):
        read(tmp_path, tokenizer)
    write_json(tmp_path / "chat.json", TOKENS.to_json())
    chat = read(tmp_path, tokenizer)
    assert chat is not None
    assert chat.template == TOKENS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "x"}, "'format' must be 'addnorm_chat_1', got 'x'"),
        ({"system": 3}, "'system' is the number 3"),
        ({"turns": []}, "'turns' is a list"),
        ({"turns": {"user": ["a"]}}, "the marks of user must be two texts"),
        ({"turns": {"user": ["a", "b"]}}, "has marks for user, assistant and perhaps system; this"),
        ({"begin": None}, "'begin' is null"),
    ],
)
def test_a_bad_file_is_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_json(tmp_path / "chat.json", {**TOKENS.to_json(), **changes})
    with pytest.raises(ChatError, match=rf"chat\.json: .*{message}"):
        read(tmp_path, Tokenizer.bytes())


def test_transformers_makes_the_same_ids(tmp_path: Path) -> None:
    """Of what we save, template and tokenizer, where no text holds a special token."""
    transformers = pytest.importorskip("transformers")
    plain = Tokenizer.train(["Who? I'm it. Be. " * 9], vocab_size=280)
    marked = ChatTemplate(turns=TOKENS.turns, system="Hel'p\n\\{{", begin="<|system|>")
    for template in (TOKENS, marked):
        tokenizer = plain.with_special([*ROLE_MARKS.values(), END])
        chat = ChatTokenizer(tokenizer, template)
        chat.save(tmp_path)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        for turns in (TALK, TALK[1:]):
            messages = [{"role": t.role, "content": t.text} for t in turns]
            encoding = theirs.apply_chat_template(messages, add_generation_prompt=True)
            assert encoding["input_ids"] == chat.prompt(turns, 500, 10).ids
            assert template.text(turns, True) == theirs.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        again = read(tmp_path, tokenizer)
        assert again is not None
        assert again.template == template
