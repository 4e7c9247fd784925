"""The task of translating: it learns and resumes, its loss and figures are the definition's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import addnorm
from addnorm.data.sources import DataError
from addnorm.models.seq2seq import Seq2Seq
from addnorm.models.seq2seq_config import Seq2SeqConfig
from addnorm.settings import SettingsError
from addnorm.tasks.overfit import overfit
from addnorm.tasks.translate import TranslateSettings, TranslateTask
from addnorm.training.checkpoint import Checkpoints
from addnorm.training.config import Config
from addnorm.training.display import Display
from addnorm.training.loop_settings import LoopSettings
from tests.training.test_training import same

QUIET = Display(quiet=True)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Letters, each of which is another one: what a small model learns in seconds."""
    rng, file = np.random.default_rng(0), tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    words = {"".join(rng.choice(list("abcd"), rng.integers(1, 6))) for _ in range(500)}
    table = str.maketrans("abcd", "wxyz")
    file.write_text(
        "source\ttarget\n" + "".join(f"{w}\t{w.translate(table)}\n" for w in sorted(words))
    )
    return file


def config(pairs: Path, **changes: Any) -> Config:
    about = TranslateSettings(
        data=str(pairs),
        val_fraction=0.2,
        tokenizer="characters",
        target_tokenizer="bytes",
        rows_per_step=32,
        score_pairs=40,
        beams=2,
        dropout=0.0,
        model=Seq2SeqConfig(
            vocab_size=2, context_length=12, dim=32, encoder_layers=1, decoder_layers=1, n_heads=2
        ),
    )
    loop = LoopSettings(steps=220, lr=3e-3, warmup=10, eval_every=110, save_every=60, threads=1)
    return Config(task=about, loop=loop).changed(changes)


def task_of(pairs: Path, **changes: Any) -> TranslateTask:
    task = config(pairs, **changes).build()
    assert isinstance(task, TranslateTask)
    return task


@pytest.mark.parametrize("scheme", ["pre_norm", "post_norm"])
def test_it_learns_and_resumes(pairs: Path, tmp_path: Path, scheme: str) -> None:
    pytest.importorskip("sacrebleu")
    sines = {"model.position": "halves", "model.scale_embedding": True}
    wishes = config(pairs, **{"model.scheme": scheme, **(sines if scheme == "post_norm" else {})})
    run = addnorm.train(wishes, out=tmp_path / "a", display=QUIET)
    assert run.metrics["exact_match"] > 0.8
    assert run.metrics["chrf"] > 80
    assert run.metrics["val_loss"] < 1.5
    loaded = addnorm.load(run.folder)
    assert loaded.card["model_type"] == ("marian" if scheme == "post_norm" else "addnorm_seq2seq")
    answers = loaded.predict(["abcd", "dd"], beams=1)
    assert sum(a["output"] == w for a, w in zip(answers, ["wxyz", "zz"], strict=True)) >= 1
    samples = (run.folder / "samples.jsonl").read_text()
    assert "→" in samples
    assert (run.folder / "report.html").exists()
    if scheme == "pre_norm":
        addnorm.train(wishes, out=tmp_path / "b", until=80, display=QUIET)
        addnorm.train(wishes, out=tmp_path / "b", resume=True, display=QUIET)
        a, b = (Checkpoints(tmp_path / n / "checkpoints").load() for n in "ab")
        assert same(a.tensors, b.tensors)
        again = config(pairs).changed({"init_from": str(run.folder / "model"), "steps": 3})
        changes = {"model.dim": 32}  # chosen, though the folder says it
        with pytest.raises(SettingsError, match=r"init_from=.*leave out model.dim"):
            again.changed(changes).build()
        plain = Config(task=TranslateSettings(data=str(pairs), init_from=str(run.folder / "model")))
        task = plain.build()
        assert isinstance(task, TranslateTask)
        assert task.model().config.dim == 32
        assert task.facts()["start"]


def test_the_loss_is_the_definition(pairs: Path) -> None:
    task = task_of(pairs, label_smoothing=0.2)
    model = task.model().eval()
    batch = task.batch("train", 1, 2, 0, 1)
    total, count, parts = task.loss(model, batch)
    nll = smooth = tokens = 0.0
    for source, valid, target, labels in zip(
        *(batch[n] for n in ("source", "valid", "target", "labels")), strict=True
    ):
        real = labels >= 0
        logits = model(source[valid][None], target[real][None])[0]
        logprobs = F.log_softmax(logits, -1).detach()
        nll -= float(logprobs.gather(1, labels[real][:, None]).sum())
        smooth -= float(logprobs.mean(-1).sum())
        tokens += int(real.sum())
        assert int(target[0]) == task.start
        assert labels[real][:-1].tolist() == target[real][1:].tolist()
        assert int(labels[real][-1]) == task.config.end_id
    assert int(count) == tokens
    assert float(parts["nll"]) == pytest.approx(nll, rel=1e-5)
    assert float(total.detach()) == pytest.approx(0.8 * nll + 0.2 * smooth, rel=1e-5)


def test_rows_of_a_step_do_not_depend_on_the_processes(pairs: Path) -> None:
    task = task_of(pairs)
    for step in (0, 3, 40):
        alone = task.batch("train", 5, step, 0, 1)
        for rank in range(3):
            part = task.batch("train", 5, step, rank, 3)
            for i, row in enumerate(part["labels"]):
                other = alone["labels"][rank::3][i]
                assert row[row >= 0].tolist() == other[other >= 0].tolist()


def test_evaluation_is_by_the_definition(pairs: Path) -> None:
    pytest.importorskip("sacrebleu")
    task = task_of(pairs, score_pairs=7)
    model = task.model().eval()
    figures = task.evaluate(model)
    nll = tokens = 0.0
    for row in task.splits["val"]:
        target = torch.from_numpy(row.target)[None]
        logits = model(torch.from_numpy(row.source)[None], target[:, :-1]).detach()
        nll += float(F.cross_entropy(logits[0], target[0, 1:], reduction="sum"))
        tokens += len(row.target) - 1
    assert figures["val_loss"] == pytest.approx(nll / tokens, rel=1e-5)
    assert figures.keys() == {"val_loss", "perplexity", "bleu", "chrf", "exact_match"}
    worst = task.pictures()[0]
    assert len(worst["rows"]) == 5
    rows = task.texts.val[:7]
    assert {(source, right) for source, right, *_ in worst["rows"]} <= {row[:2] for row in rows}
    for look in (looks := task._looks(model, rows, [row.target for row in rows])):
        assert look.source[-1] == look.target[-1] == "(end)"
        assert np.array(look.shares).shape == (len(look.target), len(look.source))
        assert np.allclose(np.sum(look.shares, 1), 1)
    assert len(looks) == 3
    assert not task._looks(model, rows, ["x" * 500] * 7)
    assert task.glance(model).keys() == {"val_loss"}
    assert task_of(pairs, score_pairs=0).evaluate(model).keys() == {"val_loss", "perplexity"}


def test_a_few_rows_are_learned_by_heart(pairs: Path) -> None:
    result = overfit(config(pairs, dropout=0.1, **{"model.attention_dropout": 0.1}), 8, 300)
    assert not result.reason, str(result)


def test_parameters_are_counted_without_building_the_model(pairs: Path) -> None:
    task = task_of(pairs, **{"model.encoder_layers": 3, "model.decoder_layers": 2})
    needs = task.needs(None, 1)
    assert needs.parameters == sum(p.numel() for p in task.model().parameters())
    deep = task_of(pairs, **{"model.decoder_layers": 200_000_000}).needs(None, 1)
    assert deep.parameters > 200_000_000 * 32 * 32
    assert "model.decoder_layers=200000000" in deep.because


def test_it_says_what_it_learns_from(pairs: Path, tmp_path: Path) -> None:
    lines = "\n".join(task_of(pairs, **{"model.context_length": 4}).introduction())
    assert "pairs to learn from" in lines
    assert "left out of the loss: a side is longer than 4 tokens (model.context_length)" in lines
    assert "translated at the end: 40 of" in lines
    assert "vocabularies of" in lines
    shared = task_of(pairs, target_tokenizer="")
    assert shared.config.target_vocab_size is None
    assert "a shared vocabulary of" in "\n".join(shared.introduction())


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"data": ""}, SettingsError, "data is not set: a .tsv"),
        ({"data": "/no/such.tsv"}, DataError, r"data=/no/such.tsv: there is no file"),
        ({"model.context_length": 1}, DataError, "all pairs for train are longer than the model's"),
        ({"tokenizer": "bpe:12"}, SettingsError, "tokenizer=bpe:12"),
        ({"target_tokenizer": "bpe:"}, SettingsError, "bpe:"),
        ({"init_from": "/no/such"}, SettingsError, "init_from=/no/such"),
        ({"rows_per_step": 0}, SettingsError, "rows_per_step must be at least 1, got 0"),
        ({"label_smoothing": 1.0}, SettingsError, r"label_smoothing must be in \[0, 1\), got 1"),
        ({"score_pairs": -1}, SettingsError, "score_pairs must be at least 0"),
        ({"samples": 101}, SettingsError, "samples must be from 0 to 100"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(
    pairs: Path, changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        config(pairs, **changes).build()


def test_other_processes_search_the_same(pairs: Path) -> None:
    """What is not a Seq2Seq itself, as behind a wrapper, has its loss alone."""
    task = task_of(pairs)
    model = task.model()

    class Wrapper(torch.nn.Module):
        def __init__(self, inner: Seq2Seq) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Any) -> Any:
            return self.inner(*args)

    assert task.evaluate(Wrapper(model)).keys() == {"val_loss", "perplexity"}
    assert task.sample(Wrapper(model)) == []
