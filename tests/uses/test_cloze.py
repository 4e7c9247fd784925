"""Labels by the word that a language model expects: by the definition, and by transformers."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import addnorm
from addnorm.adapt import adapt
from addnorm.cli import main
from addnorm.errors import Mendable
from addnorm.models.gpt import GPT, GPTConfig
from addnorm.progress import ProgressBar
from addnorm.uses.cloze import Cloze, checked_words, parts, read_words
from tests.generation.test_likelihood import BYTES, CHARACTERS, PAIRS
from tests.nets import stir

WORDS = {"cat": ["cat", "naïve mat"], "dog": "sat"}
TEXTS = ["The mat", "", "12, 123 café 🙂 sat down."]
CONTEXT = 48


def gpt(vocab_size: int) -> GPT:
    torch.manual_seed(0)
    shape = {"context_length": CONTEXT, "dim": 24, "n_layers": 2, "n_heads": 3}
    return stir(GPT(GPTConfig(vocab_size=vocab_size, **shape))).eval()


@pytest.fixture(scope="module")
def model() -> GPT:
    return gpt(300)


@pytest.fixture(scope="module")
def folder(model: GPT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "gpt"
    model.save_pretrained(path, tokenizer=PAIRS)
    return path


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("words") / "words.json"
    file.write_text(json.dumps(WORDS))
    return str(file)


@pytest.mark.parametrize(
    ("before", "pattern", "after"),
    [
        ("\nA mat: {}. It was", "\nA mat: {text}. It was", " {}"),
        ("{}; on the", "{text}; on the {word}.", " {}."),
        ("{}", "{text}\n{word} sat", "\n{} sat"),
    ],
)
def test_the_same_as_transformers_says(
    model: GPT, folder: Path, before: str, pattern: str, after: str
) -> None:
    """By the formulas of the two papers, from the log-probabilities of another program."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)

    @cache
    def score(text: str, word: str) -> float:
        first = PAIRS.encode(before.format(text))
        ids = PAIRS.encode(before.format(text) + after.format(word))
        begin = [] if first else [PAIRS.eos_id]
        with torch.no_grad():
            p = theirs(torch.tensor([begin + ids])).logits[0].double().log_softmax(-1)
        row = begin + ids
        return sum(float(p[j - 1, row[j]]) for j in range(len(begin) + len(first), len(row)))

    def shares(text: str) -> Tensor:
        of_cat = [math.exp(score(text, word)) for word in WORDS["cat"]]
        values = torch.tensor([sum(of_cat) / 2, math.exp(score(text, "sat"))])
        return values / values.sum()

    for calibrated in (False, True):
        for size in (1, 32):
            cloze = Cloze(model, PAIRS, pattern, WORDS, calibrated=calibrated, batch_size=size)
            for text, p in zip(TEXTS, cloze.probabilities(TEXTS), strict=True):
                want = shares(text) / (shares("") if calibrated else 1)
                assert p.tolist() == pytest.approx((want / want.sum()).tolist(), rel=1e-4)
    assert cloze.cut == 0


def test_words_of_one_token_are_a_softmax_over_logits() -> None:
    model = gpt(257)
    cloze = Cloze(model, BYTES, "{text}={word}", {"a": "x", "b": "y", "c": "z"})
    with torch.no_grad():
        logits = model(torch.tensor([BYTES.encode("mat=")]))[0, -1, BYTES.encode("xyz")]
    want = logits.softmax(-1).tolist()
    assert cloze.probabilities(["mat"])[0].tolist() == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(
    "text",
    ["abc " * 40, "日本語の文章" * 12, "mat on the cat. " * 500],
    ids=["short", "wide", "long"],
)
def test_a_long_text_loses_its_beginning_and_no_more(model: GPT, text: str) -> None:
    cloze = Cloze(model, PAIRS, "Text: {text} It was", WORDS)
    p = cloze.probabilities(["The mat", text])
    assert cloze.cut == 1
    start = next(  # from the end, since the text is long
        i
        for i in range(len(text) - 1, 0, -1)
        if len(PAIRS.encode(f"Text: {text[i - 1 :]} It was naïve mat")) > CONTEXT + 1
    )
    ends = [cloze.probabilities([text[i:]])[0] for i in range(start, start + 8)]
    assert any(torch.allclose(end, p[1], atol=1e-6) for end in ends)


def test_an_adapter_counts(tmp_path: Path, folder: Path) -> None:
    """A GPT with a prefix is saved, loaded and used as any other."""
    model = addnorm.load(folder).model
    plain = Cloze(model, PAIRS, "{text} It was", WORDS).probabilities(TEXTS)
    for part in adapt(model, "prefix", length=3).parts.values():
        stir(part)
    addnorm.save(model, tmp_path / "adapted", tokenizer=PAIRS)
    for of_disk in (model, addnorm.load(tmp_path / "adapted").model):
        p = Cloze(of_disk, PAIRS, "{text} It was", WORDS).probabilities(TEXTS)
        assert not torch.allclose(p, plain, atol=1e-3)
    assert torch.allclose(p, Cloze(model, PAIRS, "{text} It was", WORDS).probabilities(TEXTS))


# --- patterns and words ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "want"),
    [
        ("{text} It was", ("", " It was", " ", "")),
        ("{text}\nMood:\n", ("", "\nMood:", "\n", "")),
        ("a {b} {text}总之很{word}!", ("a {b} ", "总之很", "", "!")),
        ("{text}  {word}", ("", "", "  ", "")),
    ],
)
def test_parts_of_a_pattern(pattern: str, want: tuple[str, ...]) -> None:
    assert parts(pattern) == want


@pytest.mark.parametrize("pattern", ["", "It was", "{text}{text}", "{word} {text}", "{word}"])
def test_no_pattern(pattern: str) -> None:
    with pytest.raises(Mendable, match=r"a pattern has \{text\} once"):
        parts(pattern)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": "x"}, "w: expected an object with at least two labels"),
        (["a", "b"], "w: expected an object with at least two labels"),
        ({"a": "x", "b": []}, "w: b must have a word or a list of words"),
        ({"a": " ", "b": "x"}, "w: a must have a word or a list of words"),
        ({"a": "x", "b": ["y", 3]}, "w: b must have a word or a list of words"),
        ({"a": "x", "b": ["y", " x"]}, "w: 'x' stands for a and for b"),
        ({"a": ["x", "x"], "b": "y"}, "w: 'x' stands for a and for a"),
    ],
)
def test_no_words(value: Any, message: str) -> None:
    with pytest.raises(Mendable, match=message):
        checked_words(value, "w")


def test_words_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "words.json"
    file.write_text('{"1": " gut ", "2": ["übel"]}', encoding="utf-8")
    assert read_words(file) == {"1": ("gut",), "2": ("übel",)}
    file.write_text('{"a": "x",')
    with pytest.raises(Mendable, match=r"words.json is not valid JSON"):
        read_words(file)


def test_what_does_not_fit_or_cannot_be_read(model: GPT) -> None:
    with pytest.raises(Mendable, match="with its longest word, and the model reads 48: shorten it"):
        Cloze(model, PAIRS, "A mat. " * 30 + "{text}", WORDS)
    small = gpt(CHARACTERS.vocab_size)
    use = Cloze(small, CHARACTERS, "{text} {word}", {"a": "cat", "b": "mat"}).use()
    answers = use.predict(["The cat", "Ж", "", {"text": "sat"}, {"text": 3}])
    assert ["error" in answer for answer in answers] == [False, True, True, False, True]
    assert "at least one token before the word" in answers[2]["error"]
    together = Cloze(model, PAIRS, "{text}t{word}", {"a": "he", "b": "cat"}).use()
    (answer,) = together.predict(["on "])
    assert "the word 'he' adds no token" in answer["error"]


# --- the commands ---------------------------------------------------------------------------------


def test_predict_and_eval(
    model: GPT, folder: Path, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--pattern", "{text} It was", "--words", words, "--calibrated", "--json"]
    long = "mat " * 90
    texts = [*TEXTS, long]
    cloze = Cloze(model, PAIRS, "{text} It was", WORDS, calibrated=True)
    want = cloze.use().predict(texts, top=2)
    assert main(["predict", str(folder), *texts, "--top", "2", *options]) == 0
    out, err = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    for answer, wish in zip(answers, want, strict=True):
        assert answer.keys() == wish.keys()
        assert answer["label"] == wish["label"]
        assert answer["probability"] == pytest.approx(wish["probability"], abs=1e-5)
    assert "1 text does not fit the model's context of 48 tokens" in err

    data = tmp_path / "data.jsonl"
    gold = ["cat", "dog", "cat", "dog"]
    lines = [json.dumps({"text": t, "label": g}) for t, g in zip(texts, gold, strict=True)]
    data.write_text("\n".join(lines))
    assert main(["eval", str(folder), str(data), *options]) == 0
    out, err = capsys.readouterr()
    figures = json.loads(out)
    right = sum(w["label"] == g for w, g in zip(want, gold, strict=True))
    assert figures["accuracy"] == right / 4
    assert figures["labels"] == ["cat", "dog"]
    assert "1 text does not fit" in err
    with ProgressBar("evaluating") as bar:
        again = cloze.use().evaluate([str(data)], {"top": None}, batch_size=3, bar=bar)
    assert again == figures


def test_what_the_commands_refuse(
    folder: Path, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.csv"
    data.write_text("text,label\na,cat\nb,mouse\n")
    both = ["--pattern", "{text} It was", "--words", words]
    here, there = [["predict", str(folder), "a"], ["eval", str(folder), str(data)]]
    for command in (here, there):
        for options, message in (
            (["--pattern", "{text}"], "--pattern and --words belong together: give both"),
            (["--words", words], "--pattern and --words belong together: give both"),
            (["--calibrated"], "--calibrated has no effect without --pattern and --words"),
            (["--pattern", "It was", "--words", words], "a pattern has {text} once"),
            (["--pattern", "{text}", "--words", f"{words}x"], "words.jsonx"),
            ([*both, "--beams", "2"], "beams"),
        ):
            assert main([*command, *options]) == 2
            assert message in capsys.readouterr().err
    assert main(here) == 2
    assert "addnorm predict with --pattern and --words labels one" in capsys.readouterr().err
    assert main([*there, *both]) == 2
    assert "labels that the model does not know: mouse; it knows cat, dog" in (
        capsys.readouterr().err
    )
    assert main([*there, *both, "--stride", "2"]) == 2
    assert "--stride has no effect: with --pattern" in capsys.readouterr().err
    assert main(["eval", str(folder), "--choices", str(data), *both]) == 2
    assert "leave out one of them" in capsys.readouterr().err
