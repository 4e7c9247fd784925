"""A third task on the loop: answers in conversations, from scratch, from weights, beside one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from addnorm import GPT, GPTConfig, Tokenizer, load, train
from addnorm.cli import main
from addnorm.data.chat import TOKENS
from addnorm.data.dialogues import Turn, to_object
from addnorm.data.sources import DataError
from addnorm.files import chat as chat_files
from addnorm.records import objects
from addnorm.settings import SettingsError
from addnorm.tasks.chat import ChatSettings, ChatTask, split_dialogues
from addnorm.tasks.overfit import overfit
from addnorm.training.checkpoint import Checkpoints
from addnorm.training.config import Config
from addnorm.training.display import Display
from addnorm.training.loop_settings import LoopSettings
from tests.nets import stir
from tests.training.test_training import same

COLOURS = ["red", "green", "blue", "pink", "grey", "gold"]
QUIET = Display(quiet=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Who says a colour hears it again; some go on for long."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(60):
        turns = [Turn("system", "Echo.")] if i % 7 == 0 else []
        for _ in range(12 if i % 10 == 0 else rng.integers(1, 3)):
            word = str(rng.choice(COLOURS))
            turns += [Turn("user", f"say {word} {i}"), Turn("assistant", word)]
        lines.append(json.dumps(to_object(turns)))
    path = tmp_path / "talk.jsonl"
    path.write_text("\n".join(lines))
    return path


def config(file: Path, **changes: Any) -> Config:
    about = ChatSettings(
        data=str(file),
        rows_per_step=8,
        val_fraction=0.25,
        dropout=0.1,
        samples=2,
        cache=file.parent / "cache",
        model=GPTConfig(vocab_size=1, context_length=48, dim=16, n_layers=1, n_heads=2),
    )
    loop = LoopSettings(steps=12, lr=1e-2, warmup=2, eval_every=6, save_every=6, threads=1)
    return Config(task=about, loop=loop).changed(changes)


def build(file: Path, **changes: Any) -> ChatTask:
    task = config(file, **changes).build()
    assert isinstance(task, ChatTask)
    return task


def test_it_trains_resumes_and_is_loaded(file: Path, tmp_path: Path) -> None:
    """Without a change to the loop; the template lies beside the model."""
    run = train(config(file), out=tmp_path / "a", display=QUIET)
    train(config(file), out=tmp_path / "b", until=6, display=QUIET)
    train(config(file), out=tmp_path / "b", resume=True, display=QUIET)
    a, b = (Checkpoints(tmp_path / n / "checkpoints").load() for n in "ab")
    assert same(a.tensors, b.tensors)
    assert run.metrics["perplexity"] == pytest.approx(np.exp(run.metrics["val_loss"]))
    assert run.metrics["val_loss"] < run.metrics["bits_per_byte"] * np.log(2) * 2
    _, tokenizer, labels, card = load(run.folder)
    assert labels is None
    chat = chat_files.read(run.folder / "model", tokenizer)
    assert chat is not None
    assert chat.template == TOKENS
    assert card["eos_token_id"] == chat.eos_id == tokenizer.special["<|end|>"]
    samples = [r["samples"] for r in objects(run.folder / "samples.jsonl")][-1]
    assert len(samples) == 2
    assert all(text.startswith("> say ") for text in samples)
    assert "A model of conversations" in (run.folder / "report.html").read_text()
    assert main(["generate", str(run.folder), "say", "--max-new-tokens", "3"]) == 0


def test_a_file_of_its_own_is_held_out(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is measured on it at the end ``addnorm eval`` measures too."""
    lines = file.read_text().split("\n")
    others = tmp_path / "others.jsonl"
    others.write_text("\n".join(lines[40:]))
    file.write_text("\n".join([*lines[:40], lines[41]]))
    changes = {"val_data": str(others), "steps": 2, "precision": "fp32"}
    one = config(file, **changes)
    lines = one.build().introduction()
    assert "41 conversations to learn from, 20 held out" in lines[0]
    assert any("1 conversation of" in line and "begins as one of" in line for line in lines)
    run = train(one, out=tmp_path / "run", display=QUIET)
    capsys.readouterr()
    assert main(["eval", str(run.folder), str(others), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["conversations"] == 20
    for name in ("perplexity", "bits_per_byte"):
        assert figures[name] == pytest.approx(run.metrics[name], rel=1e-6)
    others.write_text("{}")
    with pytest.raises(DataError, match=r"val_data=.*others\.jsonl: .*others\.jsonl:1: the obj"):
        one.build()


def test_rows_are_a_function_of_seed_and_step(file: Path) -> None:
    """Each once in an epoch, in another order in the next, however many processes there are."""
    task = build(file)
    rows = task.rows["train"]
    n = len(rows)
    texts = []
    for step in range(n):  # eight epochs
        alone = task.batch("train", 3, step, 0, 1)
        for rank in range(3):
            part = task.batch("train", 3, step, rank, 3)
            assert torch.equal(part["ids"], alone["ids"][rank::3])
            assert torch.equal(part["target"], alone["target"][rank::3])
        texts += [
            (tuple(i[i > 0].tolist()), t.nonzero().tolist())
            for i, t in zip(alone["ids"], alone["target"], strict=True)
        ]
    want = sorted((tuple(r.ids.tolist()), np.argwhere(r.target).tolist()) for r in rows)
    epochs = [texts[i : i + n] for i in range(0, len(texts), n)]
    assert len(epochs) == 8
    assert all(sorted(epoch) == want for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert len(rows) > len(task.dialogues["train"]), "long ones are cut"
    assert any("longer ones" in line for line in task.introduction())


def test_the_loss_is_that_of_answers_and_their_ends(file: Path) -> None:
    """Row by row, without padding, and of all that is held out."""
    task = build(file)
    model = stir(task.model()).eval()
    batch = task.batch("train", 1, 0, 0, 1)
    total, count = 0.0, 0
    for ids, target in zip(batch["ids"], batch["target"], strict=True):
        last = int(target.nonzero().max())
        logits = model(ids[None, :last])[0].detach()
        nll = F.cross_entropy(logits, ids[1 : last + 1], reduction="none")
        total += float(nll[target[1 : last + 1]].sum())
        count += int(target.sum())
        answers = task.chat.tokenizer.decode(ids[target].tolist())
        assert {*answers.split("<|end|>")} <= {*COLOURS, ""}
    loss, number, _ = task.loss(model, batch)
    assert int(number) == count
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
    with torch.no_grad():
        each = [task.loss(model, task_batch(row)) for row in task.rows["val"]]
    nats = sum(float(part[0]) for part in each)
    tokens = sum(int(part[1]) for part in each)
    metrics = task.evaluate(model)
    assert metrics["val_loss"] == pytest.approx(nats / tokens, rel=1e-5)
    size = sum(
        len(turn.text) for d in task.dialogues["val"] for turn in d if turn.role == "assistant"
    )
    assert metrics["bits_per_byte"] == pytest.approx(nats / np.log(2) / size, rel=1e-5)
    assert task.glance(model)["val_loss"] == pytest.approx(metrics["val_loss"])
    (worst,) = task.pictures()
    assert len(worst["rows"]) == 5
    assert all(f" {right} " in f"{question} " for question, right, *_ in worst["rows"])
    nats = [row[3] for row in worst["rows"]]
    assert nats == sorted(nats, reverse=True)


def task_batch(row: Any) -> dict[str, torch.Tensor]:
    return {"ids": torch.from_numpy(row.ids)[None], "target": torch.from_numpy(row.target)[None]}


def test_conversations_that_begin_alike_are_on_one_side() -> None:
    talks = [
        (Turn("system", str(i)), Turn("user", f" Who  is {i // 3}?"), Turn("assistant", str(i)))
        for i in range(60)
    ]
    talks[1] = (Turn("user", "who is 0?"), *talks[1][2:])
    splits = split_dialogues(talks, 0.3)
    sides = [{t[-2].text.lower().strip() for t in splits[name]} for name in ("train", "val")]
    assert sides[0].isdisjoint({" ".join(s.split()) for s in sides[1]})
    assert {*splits["val"]} <= {*split_dialogues(talks, 0.6)["val"]}
    with pytest.raises(DataError, match=r"of 60 conversations none is left to hold out with val_f"):
        split_dialogues(talks, 1e-9)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a byte-level BPE and no marks, in GPT-2's format, with rows to spare."""
    tokenizer = Tokenizer.train(["say red green blue pink grey gold " * 9], vocab_size=270)
    shape = {"dim": 16, "n_layers": 1, "n_heads": 2, "context_length": 96}
    folder = tmp_path_factory.mktemp("gpt2") / "model"
    torch.manual_seed(3)
    GPT(GPTConfig(vocab_size=tokenizer.vocab_size + 1, **shape)).save_pretrained(
        folder, tokenizer=tokenizer
    )
    return folder


def test_from_a_model_without_marks(file: Path, gpt2: Path, tmp_path: Path) -> None:
    """Tokens follow those that it has, whose rows stay; the new ones are like the others."""
    old = GPT.from_pretrained(gpt2)
    size = Tokenizer.from_pretrained(gpt2).vocab_size
    task = build(file, init_from=str(gpt2))
    assert task.config.vocab_size == task.chat.vocab_size == size + 4
    torch.manual_seed(0)
    model = task.model()
    table, rows = model.tokens.weight.detach(), old.tokens.weight.detach()[:size]
    assert torch.equal(table[:size], rows)
    assert (table[size:] - rows.mean(0)).abs().max() < rows.std(0).max()
    assert len({tuple(row.tolist()) for row in table[size:]}) == 4
    ids = torch.tensor([[5, 7, 9]])
    torch.testing.assert_close(model.eval()(ids)[..., :size], old(ids)[..., :size])
    assert any("gets 4 tokens for the marks" in line for line in task.introduction())
    run = train(config(file, init_from=str(gpt2), steps=2), out=tmp_path / "a", display=QUIET)
    again = build(file, init_from=str(run.folder / "model"))
    assert again.config == task.config
    assert again.chat.template == TOKENS
    assert not any("marks" in line for line in again.introduction())
    words = build(file, init_from=str(run.folder / "model"), template="words")
    assert words.chat.eos_id == words.chat.tokenizer.eos_id
    with pytest.raises(SettingsError, match="tokenizer=bytes is not its tokenizer"):
        build(file, init_from=str(gpt2), tokenizer="bytes")


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_an_adapter_leaves_the_table_of_tokens(
    file: Path, gpt2: Path, tmp_path: Path, kind: str
) -> None:
    """So the marks are words; what is saved has its template."""
    changes = {"init_from": str(gpt2), "adapt.kind": kind, "steps": 2}
    run = train(config(file, **changes), out=tmp_path / kind, display=QUIET)
    place = run.folder / "model" / ("base" if kind == "prefix" else "")
    chat = chat_files.read(place, Tokenizer.from_pretrained(gpt2))
    assert chat is not None
    assert chat.template.turns["user"] == ("User:\n", "<|endoftext|>")
    assert load(run.folder).tokenizer.identity == chat.identity
    with pytest.raises(SettingsError, match=rf"adapt\.kind={kind} trains no table of tokens"):
        build(file, template="tokens", **changes)


def test_what_is_wrong_with_the_settings(file: Path, gpt2: Path) -> None:
    for changes, message in (
        ({"data": ""}, "data is not set: a .jsonl of conversations"),
        ({"rows_per_step": 0}, "rows_per_step must be at least 1"),
        ({"samples": -1}, "samples must be between 0 and 100"),
        ({"tokenizer": "characters", "template": "words"}, "a token that ends a text, and this"),
        ({"adapt.kind": "lora"}, "say which with init_from"),
    ):
        with pytest.raises(SettingsError, match=message):
            build(file, **changes)
    with pytest.raises(DataError, match=r"no room for a conversation.*model\.context_length=8, "):
        build(file, **{"model.context_length": 8})
    talk = file.read_text()
    file.write_text('{"messages": 3}')
    with pytest.raises(DataError, match=r"data=.*talk\.jsonl: .*talk\.jsonl:1: 'messages' is the"):
        build(file)
    (gpt2 / "chat_template.jinja").write_text("hello")
    file.write_text(talk)
    with pytest.raises(SettingsError, match="template=tokens gives it other marks"):
        build(file, init_from=str(gpt2))
    (gpt2 / "chat_template.jinja").unlink()


def test_characters_and_any_scheme(file: Path) -> None:
    """Marks are tokens beside the characters; a scheme that acts after each step is trained."""
    changes = {"tokenizer": "characters", "model.scheme": "deepnorm", "steps": 1}
    task = build(file, **changes)
    assert task.chat.vocab_size == task.chat.eos_id + 1
    assert {*task.chat.tokenizer.special} == {"<|system|>", "<|user|>", "<|assistant|>", "<|end|>"}


def test_it_learns_rows_by_heart(file: Path) -> None:
    outcome = overfit(config(file, rows_per_step=4, **{"model.dim": 32}), 4)
    assert not outcome.reason
