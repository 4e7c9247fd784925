"""The choice that a model finds most probable: by the definition, and by transformers' numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import addnorm
from addnorm.cli import main
from addnorm.data.tokenizer import Tokenizer
from addnorm.errors import Mendable
from addnorm.generation.choices import Question, Scores, read_questions, score_choices
from addnorm.models.gpt import GPT, GPTConfig
from tests.generation.test_likelihood import BYTES, CHARACTERS, PAIRS, Hashed, definition
from tests.nets import stir

QUESTIONS = [
    Question("The cat sat", (" on the mat", " closed", "."), 1),
    Question("", ("the", "other things"), 0),
    Question("naïve caf", ("é was", "e"), 1),
    Question("The cat sat on the mat, and the café", (" was closed", " sat"), 0),
]


@pytest.mark.parametrize(("tokenizer", "small"), [(BYTES, 12), (PAIRS, 6)], ids=["bytes", "pairs"])
@pytest.mark.parametrize("size", [1, 3, 64])
def test_a_score_is_the_sum_over_the_tokens_of_the_choice(
    tokenizer: Tokenizer, small: int, size: int
) -> None:
    """Each from runs of the model on what is before the token, whatever the batch; and cut on the
    left, where it does not fit."""
    for context in (small, 64):
        model: Any = Hashed(tokenizer.vocab_size, context)
        scores = score_choices(model, QUESTIONS[:3], tokenizer=tokenizer, batch_size=size)
        cut = 0
        for i, question in enumerate(QUESTIONS[:3]):
            for k, choice in enumerate(question.choices):
                before = tokenizer.encode(question.context)
                ids = tokenizer.encode(question.context + choice)
                number = len(ids) - len(before)
                ids = ids if before else [tokenizer.eos_id or 0, *ids]
                cut += len(ids) > context + 1
                want = definition(model, ids[-context - 1 :], 10**6, 10**6)[-number:]
                assert scores.loglikelihoods[i][k] == pytest.approx(sum(want), abs=1e-9)
                assert scores.tokens[i][k] == number
                assert scores.bytes[i][k] == len(choice.encode())
        assert scores.cut == cut
        assert (cut > 0) == (context == small)


def test_the_same_as_transformers_says(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = stir(
        GPT(GPTConfig(vocab_size=300, context_length=48, dim=24, n_layers=2, n_heads=3))
    ).eval()
    model.save_pretrained(tmp_path / "model", tokenizer=PAIRS)
    file = tmp_path / "questions.jsonl"
    keys = ("context", "choices", "gold")
    file.write_text(
        "".join(json.dumps(dict(zip(keys, q[:3], strict=True))) + "\n" for q in QUESTIONS)
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    scores = score_choices(model, read_questions(file), tokenizer=PAIRS)
    for question, values in zip(QUESTIONS, scores.loglikelihoods, strict=True):
        for choice, value in zip(question.choices, values, strict=True):
            before = PAIRS.encode(question.context) or [PAIRS.eos_id]
            ids = before[: len(before) * (not question.context)]
            ids = ids + PAIRS.encode(question.context + choice)
            with torch.no_grad():
                p = theirs(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            want = sum(float(p[j - 1, ids[j]]) for j in range(len(before), len(ids)))
            assert value == pytest.approx(want, abs=1e-4)


def test_accuracies_by_hand() -> None:
    scores = Scores(
        [[-4.0, -3.0], [-2.0, -2.0]], [[4, 1], [1, 2]], [[1, 6], [2, 2]], gold=[0, 0], cut=0
    )
    assert scores.accuracy() == 0.5  # of equal ones the first
    assert scores.accuracy(scores.tokens) == 0.5
    assert scores.accuracy(scores.bytes) == 0.5
    assert scores.to_json()["accuracy_per_byte"] == 0.5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"q\.jsonl:2"),
        ("[1]", r"q\.jsonl:2: expected an object"),
        ('{"context": "a", "choices": ["b", "c"]}', r":2: the object has no gold"),
        ('{"context": 1, "choices": ["b", "c"], "gold": 0}', "context must be a text, got 1"),
        ('{"context": "a", "choices": ["b"], "gold": 0}', "at least two texts"),
        ('{"context": "a", "choices": ["b", ""], "gold": 0}', "not empty"),
        ('{"context": "a", "choices": ["b", "c"], "gold": 2}', "0 to 1, got 2"),
        ('{"context": "a", "choices": ["b", "c"], "gold": true}', "0 to 1, got True"),
    ],
)
def test_a_line_that_is_wrong(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(f'{{"context": "a", "choices": ["b", "c"], "gold": 1}}\n{line}\n')
    with pytest.raises(Mendable, match=message):
        read_questions(file)


def test_what_cannot_be_scored() -> None:
    model: Any = Hashed(300, 8)
    with pytest.raises(
        Mendable, match="a choice of 9 tokens does not fit the model's context of 8"
    ):
        score_choices(model, [Question("a", ("b" * 9, "c"), 0)], tokenizer=BYTES)
    characters: Any = Hashed(CHARACTERS.vocab_size, 8)
    with pytest.raises(Mendable, match="has no such token"):
        score_choices(characters, [Question("", ("T", "h"), 0)], tokenizer=CHARACTERS)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = GPTConfig(vocab_size=257, context_length=16, dim=8, n_layers=1, n_heads=2)
    addnorm.save(stir(GPT(config)), tmp_path / "m", tokenizer=BYTES)
    file = tmp_path / "q.jsonl"
    file.write_text(
        '{"context": "a long context of many letters", "choices": ["b", "cd"], "gold": 1}'
    )
    assert main(["eval", str(tmp_path / "m"), "--choices", str(file), "--json"]) == 0
    printed = capsys.readouterr()
    figures = json.loads(printed.out)
    assert set(figures) >= {"accuracy", "accuracy_per_token", "accuracy_per_byte"}
    assert [len(line) for line in figures["loglikelihoods"]] == [2]
    assert "2 choices do not fit the model's context of 16 tokens: cut on the left" in printed.err
    assert main(["eval", str(tmp_path / "m"), "--choices", str(file)]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert main(["eval", str(tmp_path / "m"), str(file), "--choices", str(file)]) == 2
    assert "--choices" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "m"), "--choices", str(file), "--stride", "3"]) == 2
    assert "--stride has no effect" in capsys.readouterr().err
