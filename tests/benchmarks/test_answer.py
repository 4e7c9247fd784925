"""The benchmark of answers: the baseline by hand, and its intervals."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from addnorm.data.squad import SquadAnswer, SquadQuestion
from benchmarks import answer

CONTEXT = (
    "-a, --all\n    Shows all of them. Even more.\n-A, --almost\n    Shows most, e.g. all but two"
)


def question(text: str, *right: str) -> SquadQuestion:
    answers = tuple(SquadAnswer(part, CONTEXT.index(part)) for part in right)
    return SquadQuestion(text, "page", CONTEXT, text, answers)


def test_sentences_and_words() -> None:
    assert answer.sentences(CONTEXT) == [
        "-a, --all",
        "Shows all of them.",
        "Even more.",
        "-A, --almost",
        "Shows most, e.g.",
        "all but two",
    ]
    assert answer.words("What does --almost of Git-Tag do, or -A?") == (
        ["what", "does", "--almost", "of", "git-tag", "do", "or", "-A"]
    )


@pytest.mark.parametrize(
    ("text", "nearest", "after"),
    [
        ("What does -A do?", "-A, --almost", "Shows most, e.g."),
        ("What does --all do?", "-a, --all", "Shows all of them."),
        ("all but two", "all but two", "all but two"),  # the last has none after it
    ],
)
def test_the_sentence_that_is_picked(text: str, nearest: str, after: str) -> None:
    learn = [question("x"), question("y")._replace(context="What does it do?")]
    for shift, want in enumerate((nearest, after)):
        assert answer.Picker(learn, shift).guess(question(text)).text == want


def test_the_threshold_is_tuned() -> None:
    """Questions that share no word with the passage have no answer, and this is learned on val."""
    val = [question("--all", "Shows all of them."), question("nothing of it")]
    test = [question("-A", "Shows most, e.g."), question("other words", "Even more."), question("")]
    scores = answer.baseline(answer.Picker(val, 1), val, test)
    assert scores.tolist() == [[1, 1], [0, 0], [1, 1]]


def test_excerpts_hold_their_answers() -> None:
    long = "word " * 200 + CONTEXT + " word" * 200
    answers = (SquadAnswer("Shows most", long.index("Shows most")),)
    rows = [SquadQuestion(f"q{i}", "page", long, f"q{i}", answers if i else ()) for i in range(30)]
    texts = answer.excerpts(rows)
    assert texts == answer.excerpts(rows)
    questions, _, passages = zip(*(text.partition("\n") for text in texts), strict=True)
    assert sorted(questions) == sorted(row.question for row in rows) != list(questions)
    assert all(part in long and len(part) <= answer.EXCERPT for part in passages)
    assert all("S" in part for one, part in zip(questions, passages, strict=True) if one != "q0")
    assert len({part.index("Shows most") for part in passages if "Shows most" in part}) > 10


def test_intervals_are_over_groups() -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(size=50)
    values, groups = means.repeat(20), [str(i) for i in range(50) for _ in range(20)]
    low, high = answer.interval(values, groups)
    error = means.std() / 50**0.5  # of the mean of 50, whatever stands in each twenty times
    # the quantiles of 2,000 draws are off by some 3 % of the width
    assert low == pytest.approx(means.mean() - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(means.mean() + 1.96 * error, abs=0.3 * error)
    assert answer.interval(np.ones(9), list("aabbccddd")) == (1.0, 1.0)


def test_what_is_done_is_kept(tmp_path: Path) -> None:
    test = [question("--all", "Shows all of them.")]
    args = argparse.Namespace(data=tmp_path, out=tmp_path, set=["steps=5"])
    settings = {
        "data": str(tmp_path / "train.json"),
        "val_data": str(tmp_path / "val.json"),
        "init_from": str(tmp_path / "bert"),
        **answer.FINETUNING,
        "steps": "5",
    }
    record = {"settings": settings, "ids": ["--all"], "scores": [[1.0, 1.0]]}
    (tmp_path / "seed3.json").write_text(json.dumps(record))
    scores = answer.ours(args, tmp_path / "bert", 3, test)
    assert scores.tolist() == [[1.0, 1.0]]
    text = answer.verdict("another", scores, scores * 0, test)
    assert text == (
        "ours beside another: EM +1.0000 [+1.0000, +1.0000]: more; "
        "F1 +1.0000 [+1.0000, +1.0000]: more"
    )
    with pytest.raises(SystemExit, match="is of other settings or data"):
        answer.ours(args, tmp_path / "scratch", 3, test)
