"""Questions on passages as a task: what is learned, held out, measured and shown."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from addnorm import Bert, BertConfig, load, train
from addnorm.cli import main
from addnorm.data.passages import Span
from addnorm.data.sources import DataError
from addnorm.data.squad import SquadAnswer, SquadQuestion
from addnorm.settings import SettingsError
from addnorm.tasks.answer import AnswerSettings, AnswerTask, hold_out, marked
from addnorm.tasks.overfit import overfit
from addnorm.training.checkpoint import Checkpoints
from addnorm.training.config import Config
from addnorm.training.display import Display
from addnorm.training.loop_settings import LoopSettings
from addnorm.uses.answer_scores import score
from tests.nets import stir
from tests.training.test_training import same

COLOURS = ["red", "green", "blue", "white", "black"]
THINGS = ["lamp", "door", "roof", "gate", "wall", "desk"]


def squad(file: Path, articles: int, seed: int = 0) -> Path:
    """Passages that say of things which colour they have, and questions for one, or for none."""
    rng = np.random.default_rng(seed)
    data = []
    for i in range(articles):
        things, colours = rng.permutation(THINGS)[:4], rng.choice(COLOURS, 4)
        lines = [f"the {t} is {c}." for t, c in zip(things, colours, strict=True)]
        context = " ".join(lines)
        qas: list[Any] = []
        for n, (thing, colour) in enumerate(zip(things, colours, strict=True)):
            answers = [{"text": str(colour), "answer_start": context.index(lines[n]) + 12}]
            entry = {"id": f"{i}-{n}", "question": f"colour of the {thing}?", "answers": answers}
            qas.append(entry)
        absent = next(t for t in THINGS if t not in things)
        question = f"colour of the {absent}?"
        qas.append({"id": f"{i}-no", "question": question, "answers": [], "is_impossible": True})
        data.append({"title": f"room {i}", "paragraphs": [{"context": context, "qas": qas}]})
    file.write_text(json.dumps({"data": data}))
    return file


def config(folder: Path, **changes: Any) -> Config:
    about = AnswerSettings(
        data=str(squad(folder / "squad.json", 24)),
        tokenizer="wordpiece:120",
        rows_per_step=16,
        val_fraction=0.25,
        cache=folder / "cache",
        model=BertConfig(vocab_size=1, context_length=22, dim=16, n_layers=1, n_heads=2),
    )
    loop = LoopSettings(
        steps=12, lr=1e-2, warmup=2, eval_every=6, save_every=6, threads=1, precision="fp32"
    )
    return Config(task=about, loop=loop).changed(changes)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> AnswerTask:
    task = config(tmp_path_factory.mktemp("data")).build()
    assert isinstance(task, AnswerTask)
    return task


@pytest.mark.parametrize("scheme", ["pre_norm", "deepnorm"])
def test_it_trains_resumes_and_is_asked(
    scheme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under two schemes; what an evaluation of the training measured, the command measures too."""
    quiet = Display(quiet=True)
    options = config(tmp_path, **{"model.scheme": scheme})
    run = train(options, out=tmp_path / "a", display=quiet)
    train(options, out=tmp_path / "b", until=7, display=quiet)
    train(options, out=tmp_path / "b", resume=True, display=quiet)
    a, b = (Checkpoints(tmp_path / n / "checkpoints").load() for n in "ab")
    assert same(a.tensors, b.tensors)
    assert run.best is not None
    samples = (run.folder / "samples.jsonl").read_text().splitlines()
    assert len(json.loads(samples[-1])["samples"]) == 3
    task = options.build()
    assert isinstance(task, AnswerTask)
    loaded = load(run.folder)
    rows = task.splits["val"].questions
    answers = loaded.predict([{"context": q.context, "question": q.question} for q in rows])
    scores = [
        score(a["answer"], [r.text for r in q.answers]) for a, q in zip(answers, rows, strict=True)
    ]
    f1 = sum(s.f1 for s in scores) / len(scores)
    assert f1 == pytest.approx(run.metrics["f1"])
    file = squad(tmp_path / "other.json", 2, seed=5)
    assert main(["eval", str(run.folder), str(file), "--json", "--stride", "3"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["questions"] == 10
    assert {"exact_match", "f1", "f1_answerable", "right_without_answer"} <= figures.keys()


def test_it_learns_rows_by_heart(tmp_path: Path) -> None:
    outcome = overfit(config(tmp_path, **{"model.dim": 32}), 8)
    assert not outcome.reason, str(outcome)


def test_rows_are_windows_each_once_an_epoch(task: AnswerTask) -> None:
    rows = task.splits["train"]
    size = task.settings.rows_per_step
    assert rows.windows > len(rows) > 80, "the passages have several windows"
    rows_seen = []
    for step in range(2 * rows.windows // size):
        alone = task.batch("train", 3, step, 0, 1)
        for rank in range(3):
            part = task.batch("train", 3, step, rank, 3)
            assert torch.equal(part["start"], alone["start"][rank::3])
        for ids, start, end in zip(alone["ids"], alone["start"], alone["end"], strict=True):
            rows_seen.append((tuple(ids[ids != 0].tolist()), int(start), int(end)))
    first = rows_seen[: rows.windows]
    assert len({*first}) > 0.9 * rows.windows
    every = [rows.window(n) for n in range(rows.windows)]
    assert sorted(first) == sorted((tuple(w.ids.tolist()), *t) for w, t in every)
    assert first != rows_seen[rows.windows :]


def test_the_target_is_the_answer_or_cls(task: AnswerTask) -> None:
    """The tokens between the two places are the answer's; a question with an answer has a window
    with it."""
    rows = task.splits["train"]
    for i in range(len(rows)):
        question = rows.question(i)
        texts = {
            task.tokenizer.decode(w.ids[s : e + 1].tolist())
            for w, (s, e) in zip(question.windows, question.targets(), strict=True)
            if s
        }
        assert texts == {answer.text for answer in question.row.answers}


def test_loss_and_evaluation_by_the_definition(task: AnswerTask) -> None:
    model = stir(task.model()).eval().requires_grad_(False)
    batch = task.batch("train", 0, 0, 0, 1)
    total, count, parts = task.loss(model, batch)
    want, right = 0.0, 0
    for ids, valid, types, s, e in zip(*(batch[n] for n in batch), strict=True):
        logits = model(ids[None, valid], None, types[None, valid])[0].double()
        p = logits.log_softmax(0)
        want -= float(p[s, 0] + p[e, 1]) / 2
        right += [int(i) for i in logits.argmax(0)] == [int(s), int(e)]
    assert float(total) == pytest.approx(want, rel=1e-5)
    assert (int(count), int(parts["right"])) == (16, right)
    figures = task.evaluate(model)
    assert figures.keys() == task.glance(model).keys() == {"f1", "exact_match", "val_loss"}
    (worst,) = task.pictures()
    assert 1 <= len(worst["items"]) <= 5
    passages = {(q.question, q.context) for q in task.splits["val"].questions}
    for item in worst["items"]:  # the passages are short enough to be shown whole
        assert (item["head"], "".join(words for words, _ in item["text"])) in passages
    rows = task.splits["val"]
    losses = []
    for n in range(rows.windows):
        window, (s, e) = rows.window(n)
        ids, types = torch.from_numpy(window.ids)[None], torch.from_numpy(window.types)[None]
        p = model(ids, None, types)[0].double().log_softmax(0)
        losses.append(-float(p[s, 0] + p[e, 1]) / 2)
    assert figures["val_loss"] == pytest.approx(float(np.mean(losses)), rel=1e-5)


def question(title: str, context: str, number: int) -> SquadQuestion:
    return SquadQuestion(f"{title}{number}", title, context, f"what {number}?", ())


def test_whole_articles_are_held_out() -> None:
    rows = [question(f"t{i}", f"c{i}-{j}", j) for i in range(20) for j in range(5)]
    learn, val = hold_out(rows, 0.2)
    assert len(val) == 20
    assert sorted([*learn, *val]) == sorted(rows)
    assert not {r.title for r in learn} & {r.title for r in val}
    assert hold_out([*rows, question("t3", "c3-0", 9)], 0.2)[1] != val or "t3" not in {
        r.title for r in val
    }
    learn, val = hold_out([r for r in rows if r.title in ("t1", "t2")], 0.1)
    assert len(val) == 1, "of two articles a passage"
    assert not {r.context for r in learn} & {r.context for r in val}
    with pytest.raises(DataError, match="it has one passage: give more, or val_data=FILE"):
        hold_out([question("t", "c", i) for i in range(9)], 0.1)


def test_an_answer_is_marked_in_its_passage() -> None:
    context = f"{'x' * 300} the lamp is red. {'y' * 300}"
    row = SquadQuestion("1", "", context, "What?", (SquadAnswer("red", 313),) * 2)
    text = marked(row, Span(310, 316, 1.0))
    assert re.fullmatch(
        r"What\?\n\.\.\.x{190} the lamp \[\[is red\]\]\. y{198}\.\.\.\nright: red", text
    )
    nothing = marked(row._replace(context="short", answers=()), Span(None, None, -1.0))
    assert nothing == "What?\n(no answer) short\nright: (no answer)"


def test_from_a_bert_of_another_kind(tmp_path: Path, task: AnswerTask) -> None:
    """Its head is new; tokenizer and settings are its own, and the weights are in the facts."""
    size = task.tokenizer.vocab_size
    bert = Bert(BertConfig(vocab_size=size, context_length=30, dim=8, n_layers=1, n_heads=2))
    bert.save_pretrained(tmp_path / "bert", tokenizer=task.tokenizer)
    options = config(tmp_path)
    about = AnswerSettings(data=options.task.data, init_from=str(tmp_path / "bert"))
    other = about.build()
    model = other.model()
    assert torch.equal(model.tokens.weight, bert.tokens.weight)
    assert model.kind == "answer"
    assert other.config.context_length == 30
    assert other.tokenizer.identity == task.tokenizer.identity
    assert "start" in other.facts()
    assert "start" not in task.facts()
    with pytest.raises(SettingsError, match=r"tokenizer=.* has no effect|no effect"):
        AnswerSettings(init_from="x", tokenizer="wordpiece:200")
    with pytest.raises(SettingsError, match="init_from="):
        AnswerSettings(data=about.data, init_from=str(tmp_path / "none")).build()


def test_what_is_refused_or_remarked(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"data is not set: a \.json file"):
        AnswerSettings().build()
    with pytest.raises(DataError, match=r"data=.*cannot read"):
        AnswerSettings(data=str(tmp_path / "none.json")).build()
    with pytest.raises(SettingsError, match="samples must be between 0 and 20, got 99"):
        AnswerSettings(samples=99)
    with pytest.raises(SettingsError, match="rows_per_step must be at least 1, got 0"):
        AnswerSettings(rows_per_step=0)
    with pytest.raises(SettingsError, match="tokenizer=bytes: a tokenizer of kind 'bytes' has no"):
        config(tmp_path, tokenizer="bytes").build()
    file = squad(tmp_path / "val.json", 3)
    data = json.loads(file.read_text())
    qas = data["data"][0]["paragraphs"][0]["qas"]
    qas[0]["question"] = "colour of the lamp and of the door and of the roof and of the gate?"
    qas[1]["answers"][0]["answer_start"] += 1
    file.write_text(json.dumps(data))
    options = config(tmp_path, val_data=str(file))
    lines = options.build().introduction()
    assert "120 questions to learn from in" in lines[0]
    assert "13 held out, of which 23.1% have no answer" in lines[0]
    assert lines[1].startswith("val_data: 1 answer does not stand where answer_start says")
    assert lines[2].startswith("val: 1 question left out, as 0-0: the question has")
