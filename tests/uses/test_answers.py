"""Answers to questions on passages: what is asked and answered, how it is measured, and that a
published model says what its own library says."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import addnorm
from addnorm import Bert, BertConfig, Tokenizer
from addnorm.cli import main
from addnorm.errors import Mendable
from addnorm.progress import ProgressBar
from addnorm.uses.answers import Answers

CONTEXT = "The lámp is red.  The Door, says Zoë, is blue and 16 feet high; the house is old."
QUESTIONS = ["What is red?", "How high is the door, and how old is the house?"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([CONTEXT, *QUESTIONS] * 3, 120, "wordpiece")


def copying(tokenizer: Tokenizer) -> Answers:
    """A model that answers with the passage from the question's second token to the word after it;
    without that token in the passage, that there is no answer."""

    def logits(ids: Tensor, valid: Tensor, types: Tensor) -> Tensor:
        scores = torch.zeros(*ids.shape, 2)
        for row, (tokens, kinds) in enumerate(zip(ids.tolist(), types.tolist(), strict=True)):
            places = [i for i, id in enumerate(tokens) if kinds[i] and id == tokens[2]]
            scores[row, places[0] if places else 0, 0] = 5.0
            scores[row, places[0] + 1 if places else 0, 1] = 3.0
        return scores

    return Answers(logits, tokenizer, 24)


def test_questions_and_answers(tokenizer: Tokenizer) -> None:
    use = copying(tokenizer)
    items = [
        {"context": CONTEXT, "question": "the is?", "id": 7},
        json.dumps({"question": "the high", "context": CONTEXT}),
        {"context": CONTEXT, "question": "the what"},
    ]
    for size in (1, 2, 32):
        answers = use.predict(items, batch_size=size)
        assert [list(a) for a in answers] == [["question", "answer", "start", "end", "score"]] * 3
        assert [a["answer"] for a in answers] == ["is red", "high;", ""]
        for answer in answers[:2]:
            assert answer["answer"] == CONTEXT[answer["start"] : answer["end"]]
        assert answers[2] == {
            "question": "the what",
            "answer": "",
            "start": None,
            "end": None,
            "score": -8.0,
        }
    assert [use.line(a) for a in answers[1:]] == [
        "high;  [8.00]  the high",
        "(no answer)  [-8.00]  the what",
    ]
    (answer,) = use.predict(items[:1], threshold=8.5)
    assert (answer["answer"], answer["score"]) == ("", 8.0)
    (answer,) = use.predict(items[2:], threshold=-math.inf)
    assert answer["answer"] != ""
    (answer,) = use.predict(items[:1], max_answer=1)
    assert (answer["answer"], answer["score"]) == ("is", 5.0)
    for stride in (1, 3, 1000):
        assert use.predict(items, stride=stride) == answers


def test_what_cannot_be_used(tokenizer: Tokenizer) -> None:
    use = copying(tokenizer)
    items: list[Any] = [
        "What is red?",
        "{broken",
        {"text": "a"},
        {"context": CONTEXT},
        {"context": 3, "question": "the is"},
        {"context": " ", "question": "the is"},
        {"context": CONTEXT, "question": "\n"},
        {"context": CONTEXT, "question": "the house " * 9},
        {"context": "\ud800", "question": "the is"},
        {"context": CONTEXT, "question": "the is"},
    ]
    answers = use.predict(items)
    assert [a["input"] for a in answers[:-1]] == items[:-1]
    assert answers[-1]["answer"] == "is red"
    words = [
        "a text alone is no question on a passage: give objects such as {",
        "is not valid JSON",
        "the object has text, and no context; one looks like",
        "the object has context, and no question",
        "context is not a text",
        "the context is empty: there is no answer in it",
        "the question is empty",
        "the question has 18 tokens, and the model reads 24",
        "half of a surrogate",
    ]
    for answer, part in zip(answers, words, strict=False):
        assert part in answer["error"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("threshold", math.nan, "threshold must be a number, got nan"),
        ("threshold", "much", "threshold must be a number, got 'much'"),
        ("max_answer", 0, "max_answer must be a whole number of at least 1, got 0"),
        ("stride", 2.5, "stride must be a whole number of at least 1, got 2.5"),
        ("beams", 4, "unknown option 'beams'"),
    ],
)
def test_options_are_checked(tokenizer: Tokenizer, name: str, value: Any, words: str) -> None:
    with pytest.raises(Mendable, match=words):
        copying(tokenizer).predict([], **{name: value})


def test_nothing_is_answered_by_nan(tokenizer: Tokenizer) -> None:
    use = Answers(lambda ids, valid, types: torch.full((*ids.shape, 2), torch.nan), tokenizer, 24)
    with pytest.raises(FloatingPointError, match="scores of an answer are not finite"):
        use.predict([{"context": CONTEXT, "question": "the is"}])


def squad(folder: Path, *questions: tuple[str, str]) -> str:
    """A file of questions with the answers that are right; an empty one: there is none."""
    qas = [
        {
            "id": str(i),
            "question": question,
            "answers": [{"text": a, "answer_start": CONTEXT.index(a)} for a in [answer] if a],
            "is_impossible": not answer,
        }
        for i, (question, answer) in enumerate(questions)
    ]
    file = folder / "squad.json"
    file.write_text(json.dumps({"data": [{"paragraphs": [{"context": CONTEXT, "qas": qas}]}]}))
    return str(file)


def test_an_evaluation_by_hand(tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = squad(
        tmp_path,
        ("the is", "is red."),  # the same but for punctuation
        ("the high", "feet high"),  # one word of two: 2/3
        ("the what", ""),
        ("the old", ""),
        ("the house " * 9, "old"),  # cannot be asked: nothing is answered
    )
    use = copying(tokenizer)
    for size in (1, 2, 32):
        with ProgressBar(hidden=True) as bar:
            figures = use.evaluate([data], use.with_defaults({}), batch_size=size, bar=bar)
        assert figures == {
            "exact_match": pytest.approx(2 / 5),
            "f1": pytest.approx((1 + 2 / 3 + 1) / 5),
            "questions": 5,
            "unusable": 1,
            "exact_match_answerable": pytest.approx(1 / 3),
            "f1_answerable": pytest.approx((1 + 2 / 3) / 3),
            "right_without_answer": 0.5,
            "without_answer": 2,
        }


def test_a_published_model_answers_as_its_library_does(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Windows made by their tokenizer, logits by their model, the best span by brute force."""
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=tokenizer.vocab_size,
        max_position_embeddings=29,
        hidden_size=20,
        num_hidden_layers=3,
        num_attention_heads=5,
        intermediate_size=33,
        initializer_range=0.3,
    )
    theirs = transformers.BertForQuestionAnswering(config).eval()
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    fast = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    loaded = addnorm.load(tmp_path)
    lines = [{"context": c, "question": q} for q in QUESTIONS for c in (CONTEXT, CONTEXT[:30])]
    ours = loaded.predict(lines, max_answer=6, threshold=-math.inf)
    for line, answer in zip(lines, ours, strict=True):
        context = line["context"]
        length = len(fast(line["question"], add_special_tokens=False)["input_ids"])
        room = 29 - length - 3
        batch = fast(
            line["question"],
            context,
            truncation="only_second",
            max_length=29,
            stride=room - room // 2,  # there it is what two windows have in common
            padding=True,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        assert (len(batch["input_ids"]) > 1) == (context == CONTEXT)
        kinds = [batch.sequence_ids(i) for i in range(len(batch["input_ids"]))]
        offsets = batch.pop("offset_mapping").tolist()
        batch.pop("overflow_to_sample_mapping")
        with torch.no_grad():
            logits = theirs(**batch)
        start, end = logits.start_logits, logits.end_logits
        null = min((start[:, 0] + end[:, 0]).tolist())
        spans = [
            (float(start[w, i] + end[w, j]), offsets[w][i][0], offsets[w][j][1])
            for w, kind in enumerate(kinds)
            for i in range(29)
            for j in range(i, min(i + 6, 29))
            if i < len(kind) and j < len(kind) and kind[i] == kind[j] == 1
        ]
        best = max(spans)
        assert answer["score"] == pytest.approx(best[0] - null, abs=1e-4)
        assert (answer["start"], answer["end"]) == best[1:]
        assert answer["answer"] == context[best[1] : best[2]]
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    options = ["--max-answer", "6", "--threshold=-inf", "--json"]
    assert main(["predict", str(tmp_path), str(file), *options]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [a["answer"] for a in printed] == [a["answer"] for a in ours]


def test_a_model_with_one_type_of_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=40,
        dim=20,
        n_layers=1,
        n_heads=5,
        head="answer",
        types=1,
        scheme="sandwich",
    )
    addnorm.save(Bert(config), tmp_path / "model", tokenizer=tokenizer)
    item = {"context": CONTEXT, "question": QUESTIONS[0]}
    (answer,) = addnorm.load(tmp_path / "model").predict([item], threshold=-100)
    assert answer["answer"] == CONTEXT[answer["start"] : answer["end"]] != ""
