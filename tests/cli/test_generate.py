"""The commands ``addnorm generate`` and ``addnorm eval``, from their arguments to what they say."""

import dataclasses
import io
import json
import math
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch

from addnorm import GPT, GPTConfig, Tokenizer, generate, perplexity
from addnorm.cli import main
from addnorm.cli.drawing import Drawing
from addnorm.cli.generate import Extent
from addnorm.generation import Limits, Sampling, Writing, lay_out_for_decoding
from tests.nets import stir

BYTES = Tokenizer.bytes()
PROMPT = "The cat"


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=257, context_length=40, dim=16, n_layers=2, n_heads=4, tied=False)
    made = stir(GPT(config))
    with torch.no_grad():
        made.head.weight.normal_(std=0.3)
    lay_out_for_decoding(made)  # as the command does, so that both round alike
    return made.eval()


@pytest.fixture(scope="module")
def folder(model: GPT, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "small"
    model.save_pretrained(path, tokenizer=BYTES)
    return str(path)


def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)


# --- generate -------------------------------------------------------------------------------------


def test_the_text_goes_to_stdout(
    folder: str, model: GPT, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", folder, PROMPT, "--seed", "3", "--max-new-tokens", "30"]) == 0
    want = generate(model, PROMPT, tokenizer=BYTES, seed=3, max_new_tokens=30)
    assert capsys.readouterr().out == PROMPT + want.text + "\n"


def test_every_option_reaches_the_library(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    init = Writing.__init__

    def spy(self: Writing, *args: Any, **options: Any) -> None:
        sampling, limits = args[3:]
        given.update(asdict(sampling) | asdict(limits) | options)
        init(self, *args, **options)

    monkeypatch.setattr(Writing, "__init__", spy)
    want: dict[str, Any] = {
        "max_new_tokens": 5,
        "temperature": 0.7,
        "top_k": 9,
        "top_p": 0.9,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "banned_words": ("x", "yz"),
        "regex": "[a-w]*",
        "seed": 4,
        "beyond": "error",
        "top_logprobs": 2,
    }
    words = ["generate", folder, PROMPT, "--json", "--no-eos"]
    for name, value in want.items():
        values = value if isinstance(value, tuple) else (value,)
        words += ["--" + name.replace("_", "-"), *map(str, values)]
    assert main(words) == 0
    assert given == want | {"eos": None, "stop": ()}
    assert main(["generate", folder, PROMPT, "--stop", "a", "b"]) == 0
    assert given["stop"] == ("a", "b")


def test_the_defaults_are_those_of_the_library() -> None:
    """The command states its own: its help is printed without importing torch."""
    ours = {f.name: f.default for kind in (Extent, Drawing) for f in fields(kind)}
    library = {f.name: f.default for kind in (Sampling, Limits) for f in fields(kind)}
    assert ours.pop("no_eos") is False
    assert library.pop("eos") == "tokenizer"
    assert ours.pop("seed") is None
    assert ours == library


def test_several_prompts_and_samples(
    folder: str, model: GPT, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ["--seed", "7", "--max-new-tokens", "12"]
    assert main(["generate", folder, "a", "bcd", "--samples", "2", *options]) == 0
    out = capsys.readouterr().out
    parts = out.split("--- ")[1:]
    assert len(parts) == 4
    for i, (part, prompt) in enumerate(zip(parts, ["a", "a", "bcd", "bcd"], strict=True)):
        alone = generate(model, prompt, tokenizer=BYTES, seed=7 + i, max_new_tokens=12)
        head, text = part.split("\n", 1)
        assert head.startswith(f"{i + 1} of 4: ")
        assert head.endswith(f"--seed {7 + i}")
        assert text.rstrip("\n") == (prompt + alone.text).rstrip("\n")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\n\nbcd\n")
    assert main(["generate", folder, "--file", str(prompts), "--samples", "2", *options]) == 0
    assert capsys.readouterr().out == out
    prompts.write_text("\ufeffa\r\n \nbcd", encoding="utf-8")  # as editors on Windows save it
    assert main(["generate", folder, "--file", str(prompts), "--samples", "2", *options]) == 0
    assert capsys.readouterr().out == out
    prompts.write_text("a\u2028b\x85\n", encoding="utf-8")
    assert main(["generate", folder, "--file", str(prompts), "--json", *options]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "a\u2028b\x85"


def test_json_is_the_result(folder: str, model: GPT, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--seed", "1", "--max-new-tokens", "9", "--top-logprobs", "2"]
    assert main(["generate", folder, PROMPT, "é", "--json", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    want = generate(model, [PROMPT, "é"], tokenizer=BYTES, seed=1, max_new_tokens=9, top_logprobs=2)
    for line, result in zip(lines, want, strict=True):
        assert json.loads(line) == json.loads(json.dumps(dataclasses.asdict(result)))
    assert "é" in lines[1]


def test_stdin_is_a_prompt(
    folder: str,
    model: GPT,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\nlines\n"))
    assert main(["generate", folder, "--temperature", "0", "--max-new-tokens", "5"]) == 0
    want = generate(model, "two\nlines", tokenizer=BYTES, temperature=0, max_new_tokens=5)
    assert capsys.readouterr().out == "two\nlines" + want.text + "\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufefftwo\nlines\n"))
    assert main(["generate", folder, "--temperature", "0", "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out == "two\nlines" + want.text + "\n"
    at_a_terminal(monkeypatch)  # nothing given: a text from its beginning
    assert main(["generate", folder, "--temperature", "0", "--max-new-tokens", "5"]) == 0
    want = generate(model, "", tokenizer=BYTES, temperature=0, max_new_tokens=5)
    assert capsys.readouterr().out == want.text + "\n"


def test_a_loop_is_told(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--regex", "(ab)*", "--no-eos", "--max-new-tokens"]
    assert main(["generate", folder, "a", *words, "30"]) == 0
    assert "addnorm: the text ends in a loop; try" in capsys.readouterr().err
    assert main(["generate", folder, "a", *words, "20"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["generate", folder, "a", "b", *words, "30"]) == 0
    assert "addnorm: 2 of 2 texts end in a loop" in capsys.readouterr().err


def test_what_there_is_when_interrupted(
    folder: str, model: GPT, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text so far, also what was held back because a stop string might have come."""
    so_far = generate(model, PROMPT, tokenizer=BYTES, temperature=0, max_new_tokens=9)
    stop = so_far.text.rstrip("\ufffd")[-1] + "\n\n"  # may come, and never does
    step = Writing._step
    calls: list[int] = []

    def interrupted(self: Writing) -> None:
        if len(calls) == 9:
            raise KeyboardInterrupt
        calls.append(1)
        step(self)

    monkeypatch.setattr(Writing, "_step", interrupted)
    words = ["generate", folder, PROMPT, "--temperature", "0", "--stop", stop]
    assert main([*words, "--max-new-tokens", "10"]) == 130
    told = capsys.readouterr()
    # all but a character of which only the first bytes are there
    assert told.out.rstrip("\n\ufffd") == PROMPT + so_far.text.rstrip("\ufffd")
    assert "interrupted" in told.err


def test_a_run_is_the_model_in_it(
    model: GPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save_pretrained(tmp_path / "run" / "model", tokenizer=BYTES)
    assert main(["generate", str(tmp_path / "run"), PROMPT, "--seed", "3"]) == 0
    want = generate(model, PROMPT, tokenizer=BYTES, seed=3)
    assert capsys.readouterr().out == PROMPT + want.text + "\n"


def test_numbers_that_are_not_finite(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = GPT.logits
    monkeypatch.setattr(GPT, "logits", lambda self, h: logits(self, h) * math.nan)
    assert main(["generate", folder, PROMPT]) == 1
    assert "addnorm: the logits are not finite at step 0 of row 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/at/all"], "there is no folder nowhere/at/all"),
        (["MODEL", "a", "--temperature", "-1"], "temperature"),
        (["MODEL", "a", "--regex", "(a"], "missing ), unterminated subpattern"),
        (["MODEL", "a", "--samples", "0"], "--samples must be at least 1"),
        (["MODEL", "a", "--file", "x"], "either after the model or from --file"),
        (["MODEL", "--file", "no.txt"], "cannot read no.txt"),
        (["MODEL", "a", "--top-logprobs", "3"], "--top-logprobs needs --json"),
        (["MODEL", "a", "--device", "abacus"], "there is no device 'abacus' here"),
        (["MODEL", "a" * 50, "--beyond", "error"], "exceed the context of 40"),
        (["MODEL", "a", "--seed", "9" * 20], f"the seed of row 0 is {'9' * 20}: give one from"),
        (["MODEL", "a", "--regex", "(" * 300 + "a" + ")" * 300], "nested 300 deep, and at most 50"),
        (["MODEL", "a", "--regex", "(a?){9999}"], "regex '(a?){9999}': it takes too much work"),
        (["MODEL", "a", "--presence-penalty", "1e300"], "presence_penalty must be between"),
        (["MODEL", "a", "--banned-words", "\udcff"], "holds half of a character"),
        (["MODEL", "a", "--stop", ""], "an empty stop string"),
        (["MODEL", "\udcff"], "half of a surrogate pair"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_line(
    folder: str,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_a_terminal(monkeypatch)
    assert main(["generate", *(folder if word == "MODEL" else word for word in words)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("addnorm: ")
    assert message in told.err


def test_a_model_without_a_tokenizer_or_with_a_broken_one(
    model: GPT, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    model.save_pretrained(bare)
    assert main(["generate", str(bare), "a"]) == 2
    assert "has no tokenizer: put its tokenizer.json there" in capsys.readouterr().err
    (bare / "merges.txt").write_text("")
    (bare / "vocab.json").write_text("{")
    assert main(["generate", str(bare), "a"]) == 2
    assert "addnorm: " in capsys.readouterr().err


# --- eval -----------------------------------------------------------------------------------------


def test_eval(
    folder: str,
    model: GPT,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = ["The cat sat on the mat. " * 10, "naïve café"]
    files = []
    for i, text in enumerate(texts):
        files.append(str(tmp_path / f"{i}.txt"))
        Path(files[-1]).write_text(text, encoding="utf-8")
    model = GPT.from_pretrained(folder)
    want = perplexity(model, texts, tokenizer=BYTES, context=30, stride=10, batch_size=4)
    words = ["eval", folder, *files, "--context", "30", "--stride", "10"]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{want}\n"
    assert main([*words, "--json", "--batch-size", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == want.tokens
    assert found["perplexity"] == pytest.approx(want.perplexity, rel=1e-5)  # float32, other batches
    assert found["bits_per_byte"] == pytest.approx(want.bits_per_byte, rel=1e-5)

    class Stdin:
        buffer = io.BytesIO(texts[1].encode())

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert main(["eval", folder, "-"]) == 0
    assert capsys.readouterr().out == f"{perplexity(model, texts[1], tokenizer=BYTES)}\n"
    Path(files[1]).write_text(f"\ufeff{texts[1]}", encoding="utf-8")
    Stdin.buffer = io.BytesIO(f"\ufeff{texts[1]}".encode())
    for name in (files[1], "-"):  # a byte order mark is no part of a text
        assert main(["eval", folder, name]) == 0
        assert capsys.readouterr().out == f"{perplexity(model, texts[1], tokenizer=BYTES)}\n"


def test_progress_is_told_up_to_the_end(model: GPT) -> None:
    told: list[tuple[int, int]] = []
    text = "The cat sat on the mat. " * 10
    found = perplexity(
        model,
        [text, "a"],
        tokenizer=BYTES,
        progress=lambda done, of: told.append((done, of)),
    )
    assert told[-1] == (found.tokens, found.tokens)
    assert len(told) > 5
    assert told == sorted(told)


def test_what_eval_refuses(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"ab\xff")
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    for words, message in (
        ([], "no data: give at least one file"),
        (["missing.txt"], "cannot read missing.txt"),
        ([str(text)], "is not UTF-8 (byte 2 is 0xff)"),
        ([str(empty)], "there is no token to score"),
        ([str(empty), "--stride", "99"], "stride must be between 1 and the context of 40"),
    ):
        assert main(["eval", folder, *words]) == 2
        assert message in capsys.readouterr().err
