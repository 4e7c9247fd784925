"""``addnorm chat``: a session through a pipe, and one at a terminal; ``addnorm eval`` on
conversations."""

import io
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from addnorm import GPT, GPTConfig, Tokenizer, generate
from addnorm.cli import main
from addnorm.cli.output import STEERING
from addnorm.data.chat import END, ROLE_MARKS, TOKENS, ChatTokenizer
from addnorm.data.dialogues import Turn, read_dialogues, to_object
from addnorm.generation import Writing, lay_out_for_decoding
from addnorm.uses.dialogue_scores import score_rows
from addnorm.words import figure
from tests.nets import stir

CHAT = ChatTokenizer(Tokenizer.bytes().with_special([*ROLE_MARKS.values(), END]), TOKENS)
GREETING = [Turn("assistant", "hello")]
OPTIONS = ["--seed", "5", "--max-new-tokens", "8", "--temperature", "1", "--top-p", "1"]


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"dim": 16, "n_layers": 1, "n_heads": 2, "tied": False}
    net = GPT(GPTConfig(vocab_size=261, context_length=40, **shape))
    stir(net)
    with torch.no_grad():
        assert net.head is not None
        net.head.weight[97:123].normal_(std=0.5).add_(0.3)
    lay_out_for_decoding(net)
    return net.eval()


@pytest.fixture(scope="module")
def folder(model: GPT, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "chat"
    model.save_pretrained(path, tokenizer=CHAT)
    return str(path)


def answer(model: GPT, turns: list[Turn], seed: int) -> str:
    """What the model says to these turns, by the documented rule."""
    prompt = CHAT.prompt(turns, 40, 8)
    words: dict[str, Any] = {"max_new_tokens": prompt.answer, "temperature": 1.0, "top_p": 1.0}
    return generate(model, [prompt.ids], tokenizer=CHAT, seed=seed, **words)[0].text


def turns_of(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_a_session_through_a_pipe(
    folder: str,
    model: GPT,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answers alone, each as the rule has it; what is saved can be learned from."""
    file = tmp_path / "talk.jsonl"
    lines = ["hello", "", "//x", f"/save {file}", "/reset", "again", f"/save {file}"]
    turns_of(monkeypatch, "\n".join(lines))
    assert main(["chat", folder, "--system", "Hm", *OPTIONS]) == 0
    turns = [Turn("system", "Hm")]
    answers = []
    for i, text in enumerate(("hello", "/x", "again")):
        turns = turns[:1] if text == "again" else turns
        turns += [Turn("user", text)]
        answers.append(answer(model, turns, 5 + i))
        turns += [Turn("assistant", answers[-1])]
    printed = capsys.readouterr()
    assert printed.out == "".join(f"{text}\n" for text in answers)
    assert f"saved 2 conversations in {file}" in printed.err
    first, second = read_dialogues(file)
    assert [turn.text for turn in first] == ["Hm", "hello", answers[0], "/x", answers[1]]
    assert second == tuple(turns)
    turns_of(monkeypatch, f"hello\n/save {file}\n")
    assert main(["chat", folder, *OPTIONS]) == 1, "a file that is not this session's stays"
    assert "is there already, and not from here" in capsys.readouterr().err
    assert len(read_dialogues(file)) == 2


def test_what_cannot_be_done_is_told(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns_of(monkeypatch, "/rest\n/save\n/save x.jsonl\n/help\n" + "ab " * 30 + "\nb\n")
    assert main(["chat", folder, *OPTIONS]) == 1
    printed = capsys.readouterr()
    assert "did you mean /reset?" in printed.err
    assert "/save is no command" in printed.err
    assert "there is nothing to save yet" in printed.err
    assert "/save FILE" in printed.out
    assert "of that turn only the end has room" in printed.err
    assert printed.err.count("its oldest turns go") == 1
    turns_of(monkeypatch, "")
    assert main(["chat", folder]) == 0
    assert capsys.readouterr().out == ""
    assert main(["chat", folder, "--system", "too long " * 5]) == 2
    assert "has no room for a conversation" in capsys.readouterr().err
    assert main(["chat", folder, "--max-new-tokens", "0"]) == 2
    capsys.readouterr()


def test_banned_words_and_stops(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vowels = list("aeiou")
    turns_of(monkeypatch, "hello\n")
    assert main(["chat", folder, *OPTIONS, "--banned-words", *vowels]) == 0
    out = capsys.readouterr().out
    assert not set(out) & set(vowels)
    turns_of(monkeypatch, "hello\n")
    assert main(["chat", folder, *OPTIONS, "--banned-words", *vowels, "--stop", out[2]]) == 0
    assert capsys.readouterr().out == out[: out.index(out[2])] + "\n"


def test_answers_that_match(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what makes no sense is refused before the first turn."""
    turns_of(monkeypatch, "hello\nagain\n")
    assert main(["chat", folder, *OPTIONS, "--regex", "(yes|no), [a-z]{2,4}"]) == 0
    answers = capsys.readouterr().out.splitlines()
    assert len(answers) == 2
    assert all(re.fullmatch("(yes|no), [a-z]{2,4}", text) for text in answers)
    for words, message in (
        (["--regex", "a("], "a("),
        (["--regex", "damn", "--banned-words", "damn"], "'damn'"),
        (["--temperature", "-1"], "temperature must"),
    ):
        turns_of(monkeypatch, "hello\n")
        assert main(["chat", folder, *words]) == 2
        printed = capsys.readouterr()
        assert message in printed.err
        assert printed.out == ""


def test_an_evaluation_of_conversations(
    folder: str, model: GPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answers alone, of a file or a folder; what is no conversation is refused."""
    talks = tmp_path / "talks"
    talks.mkdir()
    turns = [[Turn("user", "hi"), Turn("assistant", "ho")], [Turn("user", "b" * 60), *GREETING]]
    for i, some in enumerate(turns):
        (talks / f"{i}.jsonl").write_text(json.dumps(to_object(some)))
    assert main(["eval", folder, str(talks), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    rows = [row for some in turns for row in CHAT.rows(some, 40)]
    expected = score_rows(GPT.from_pretrained(folder), CHAT, rows)
    assert figures == {**expected.to_json(), "conversations": 2}
    assert figures["tokens"] == len("ho") + len("hello") + 2
    assert main(["eval", folder, *(str(talks / f"{i}.jsonl") for i in range(2))]) == 0
    assert f"perplexity {figure(expected.perplexity)}\n" in capsys.readouterr().out
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}')
    system = json.dumps(to_object([Turn("system", "x" * 50), *turns[0]]))
    (tmp_path / "long.jsonl").write_text(system)
    for words, message in (
        ([str(talks), str(tmp_path / "a.txt")], "a.txt is none of: a .jsonl of objects"),
        ([str(tmp_path / "bad.jsonl")], "bad.jsonl:1: the object has text, and no messages"),
        ([str(tmp_path / "long.jsonl")], "long.jsonl: a context of 40 tokens has no room"),
        ([str(talks), "--stride", "2"], "--stride has no effect: of a conversation the model"),
        ([str(talks), "--beams", "2"], "--beams has no effect"),
    ):
        assert main(["eval", folder, *words]) == 2
        assert message in capsys.readouterr().err
    model.save_pretrained(tmp_path / "plain", tokenizer=CHAT.tokenizer)
    assert main(["eval", str(tmp_path / "plain"), str(talks / "0.jsonl"), "--json"]) == 0
    assert "words" in json.loads(capsys.readouterr().out), "without a template it is a text"


def test_a_model_without_a_template(
    model: GPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "m", tokenizer=CHAT.tokenizer)
    assert main(["chat", str(tmp_path / "m")]) == 2
    message = capsys.readouterr().err
    assert "has no chat template" in message
    assert f"addnorm train --recipe chat --data talks.jsonl init_from={tmp_path / 'm'}" in message


def content(master: int) -> bytes:
    """All that was written to a terminal whose other end is closed; it may come in pieces."""
    pieces = []
    with suppress(OSError):  # at the end, on Linux
        while piece := os.read(master, 1 << 16):
            pieces.append(piece)
    return b"".join(pieces)


def test_a_session_at_a_terminal(folder: str, model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for each turn; Ctrl-C ends an answer, of which what was said counts."""
    master, slave = os.openpty()
    step = Writing.__next__
    calls = []

    def interrupted(self: Writing) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Writing, "__next__", interrupted)
    with os.fdopen(slave, "r+b", buffering=0) as line:
        keyboard = io.TextIOWrapper(io.FileIO(os.dup(line.fileno())))
        monkeypatch.setattr(sys, "stdin", keyboard)
        screen = io.TextIOWrapper(io.FileIO(os.dup(line.fileno()), "w"), write_through=True)
        monkeypatch.setattr(sys, "stdout", screen)
        os.write(master, b"hello\nwell\n\x04")
        assert main(["chat", folder, *OPTIONS]) == 0
        keyboard.close()
        screen.close()
    text = content(master).decode().replace("\r\n", "\n")
    os.close(master)
    first = answer(model, [Turn("user", "hello")], 5)[:3]
    turns = [Turn("user", "hello"), Turn("assistant", first), Turn("user", "well")]
    assert f"> {first}\n> {answer(model, turns, 6)}\n> \n".translate(STEERING) in text


@pytest.fixture(autouse=True)
def _no_readline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "readline", None)
    return
