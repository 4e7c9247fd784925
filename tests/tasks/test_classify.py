"""A second task on the same loop: classifying texts of a folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from addnorm import GPT, GPTConfig, Tokenizer, load, save, train
from addnorm.cli import main
from addnorm.data.sources import DataError
from addnorm.files.folders import WeightsError
from addnorm.models.classifier import BODIES, ClassifierConfig, TextClassifier
from addnorm.models.gpt_classifier import GPTClassifier
from addnorm.models.recurrent import CELLS, RecurrentConfig, RecurrentLM
from addnorm.records import read as records
from addnorm.settings import SettingsError
from addnorm.tasks.classify import ClassifySettings, ClassifyTask
from addnorm.tasks.overfit import overfit
from addnorm.tasks.targets import SeveralLabels
from addnorm.training.checkpoint import Checkpoints
from addnorm.training.config import Config
from addnorm.training.display import Display
from addnorm.training.loop_settings import LoopSettings
from tests.nets import stir
from tests.training.test_training import same

WORDS = {"animals": "cat dog cow hen fox", "plants": "oak ash elm fir fig", "stones": "jet opal"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, words in WORDS.items():
        (tmp_path / "texts" / name).mkdir(parents=True)
        for i in range(40):
            text = " ".join(rng.choice(words.split(), rng.integers(1, 6)))
            (tmp_path / "texts" / name / f"{i}.txt").write_text(f"{text} {i}")
    return tmp_path / "texts"


def config(folder: Path) -> Config:
    about = ClassifySettings(
        data=str(folder),
        rows_per_step=16,
        val_fraction=0.25,
        dropout=0.1,
        model=ClassifierConfig(
            vocab_size=1, classes=1, context_length=32, dim=16, n_layers=1, n_heads=2, pairs=99
        ),
    )
    return Config(
        task=about,
        loop=LoopSettings(steps=60, lr=1e-2, warmup=5, eval_every=20, save_every=20, threads=1),
    )


def test_it_learns_and_resumes(folder: Path, tmp_path: Path) -> None:
    """Without a change to the loop: accuracy is what counts, more is better, and a resumed run is
    the run."""
    quiet = Display(quiet=True)
    run = train(config(folder), out=tmp_path / "a", display=quiet)
    assert run.metrics["accuracy"] >= 0.9
    assert run.best is not None
    assert run.best >= run.metrics["accuracy"]
    model, tokenizer, classes, _ = load(run.folder)
    assert classes == tuple(sorted(WORDS))
    assert [c for c, _ in model.predict(["cat dog", "elm", "opal opal"], tokenizer, classes)] == [
        "animals",
        "plants",
        "stones",
    ]
    weights = run.folder / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(WeightsError):
        load(run.folder / "model")
    train(config(folder), out=tmp_path / "b", until=30, display=quiet)
    train(config(folder), out=tmp_path / "b", resume=True, display=quiet)
    a, b = (Checkpoints(tmp_path / n / "checkpoints").load() for n in "ab")
    assert same(a.tensors, b.tensors)
    assert "What is taken for what" in (tmp_path / "a" / "report.html").read_text()


def test_it_learns_several_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a file of lines: which kinds of things a text names, in one run with its own rows to
    hold out; it resumes, and is asked."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(160):
        names = sorted(rng.choice(list(WORDS), rng.integers(0, 3), replace=False).tolist())
        words = [str(rng.choice(WORDS[name].split())) for name in names]
        rows.append(json.dumps({"text": " ".join([*words, str(i)]), "label": names}))
    for name, part in (("train", rows[:128]), ("val", rows[128:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part))
    data = tmp_path / "train.jsonl"
    several = config(data).changed(
        {"val_data": str(tmp_path / "val.jsonl"), "steps": 80, "precision": "fp32"}
    )
    run = train(several, out=tmp_path / "a", display=Display(quiet=True))
    assert list(run.metrics) == ["accuracy", "micro_f1", "macro_f1", "val_loss"]
    assert run.metrics["micro_f1"] >= 0.9
    loaded = load(run.folder)
    (answer,) = loaded.predict(["oak 7 cat"])
    assert set(answer["labels"]) == {"animals", "plants"}
    assert main(["eval", str(run.folder), str(tmp_path / "val.jsonl"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    for name in ("accuracy", "micro_f1", "macro_f1"):
        assert figures[name] == pytest.approx(run.metrics[name])
    train(several, out=tmp_path / "b", until=40, display=Display(quiet=True))
    train(several, out=tmp_path / "b", resume=True, display=Display(quiet=True))
    a, b = (Checkpoints(tmp_path / n / "checkpoints").load() for n in "ab")
    assert same(a.tensors, b.tensors)
    with pytest.raises(SettingsError, match=r"val_fraction=0.25 has no effect"):
        several.changed({"val_fraction": 0.25})


@pytest.fixture(scope="module", params=["pre_norm", "deepnorm"])
def gpt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT with a head of its own for tokens, which the classifier leaves out."""
    torch.manual_seed(0)
    shape = {"context_length": 24, "dim": 16, "n_layers": 1, "n_heads": 2}
    model = GPT(GPTConfig(vocab_size=257, scheme=request.param, tied=False, **shape))
    path = tmp_path_factory.mktemp("gpt")
    stir(model).save_pretrained(path, tokenizer=Tokenizer.bytes())
    return path


@pytest.mark.parametrize("kind", ["none", "lora"])
def test_a_gpt_learns_to_classify(folder: Path, tmp_path: Path, gpt: Path, kind: str) -> None:
    """All of it, or a head and an adapter; a resumed run is the run, and what is saved is what was
    measured."""
    loop = LoopSettings(
        steps=40, lr=1e-2, warmup=5, eval_every=20, save_every=20, threads=1, precision="fp32"
    )
    about = ClassifySettings(
        data=str(folder), init_from=str(gpt), rows_per_step=16, val_fraction=0.25
    )
    settings = Config(task=about, loop=loop).changed({"adapt.kind": kind})
    task = settings.build()
    assert isinstance(task, ClassifyTask)
    model, start = task.model(), GPT.from_pretrained(gpt)
    assert isinstance(model, GPTClassifier)
    assert torch.equal(model.gpt.tokens.weight, start.tokens.weight)
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    assert trained["head.weight"]
    assert trained["gpt.tokens.weight"] == (kind == "none")
    quiet = Display(quiet=True)
    run = train(settings, out=tmp_path / "a", display=quiet)
    train(settings, out=tmp_path / "b", until=20, display=quiet)
    train(settings, out=tmp_path / "b", resume=True, display=quiet)
    a, b = (Checkpoints(tmp_path / n / "checkpoints").load() for n in "ab")
    assert same(a.tensors, b.tensors)
    loaded = load(run.folder)
    assert isinstance(loaded.model, GPTClassifier)
    assert loaded.labels == tuple(sorted(WORDS))
    loss = task.evaluate(loaded.model)["val_loss"]
    assert loss == pytest.approx(run.metrics["val_loss"], rel=1e-4)
    losses = [r["loss"] for r in records(run.folder / "metrics.jsonl") if "loss" in r]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_what_a_classifier_cannot_begin_as(folder: Path, tmp_path: Path, gpt: Path) -> None:
    recurrent = RecurrentLM(RecurrentConfig(vocab_size=257, context_length=8, dim=8, n_layers=1))
    save(recurrent, tmp_path / "m", tokenizer=Tokenizer.bytes())
    plain = Config(task=ClassifySettings(data=str(folder), val_fraction=0.25))
    for changes, message in (
        (
            {"init_from": str(tmp_path / "m")},
            "it is a recurrent language model, and a classifier cannot",
        ),
        ({"init_from": str(tmp_path / "none")}, "init_from=.*none"),
        ({"adapt.kind": "lora"}, "say which with init_from"),
        ({"init_from": str(gpt), "adapt.kind": "prefix"}, "is adapted by lora or adalora"),
        ({"init_from": str(gpt), "tokenizer": "bpe:300"}, "tokenizer=bpe:300 has no effect"),
        ({"init_from": str(gpt), "model.dim": 8}, "model.dim=8 has no effect"),
        ({"init_from": str(gpt), "adapt.kind": "lora", "adapt.targets": "x"}, "adapt: "),
    ):
        with pytest.raises(SettingsError, match=message):
            plain.changed(changes).build()


def test_the_loss_of_several_labels_by_the_definition() -> None:
    targets, logits = SeveralLabels("abc"), torch.tensor([[2.0, -1.0, 0.0]], dtype=torch.double)
    y = targets.tensor([(0, 2)]).double()
    p = 1 / (1 + (-logits).exp())
    smooth = y * 0.8 + 0.1
    want = -(smooth * p.log() + (1 - smooth) * (1 - p).log()).sum() / 3
    torch.testing.assert_close(targets.loss(logits, y, 0.2), want)
    assert targets.right(logits, y) == 1  # a probability of one half is enough


def test_every_epoch_has_every_text_once(folder: Path) -> None:
    task = config(folder).changed({"token_dropout": 0.0}).task.build()
    assert isinstance(task, ClassifyTask)
    rows = task.splits["train"]
    n = len(rows)
    seen = []
    for step in range(n):  # 16 epochs
        alone = task.batch("train", 3, step, 0, 1)
        parts = [task.batch("train", 3, step, rank, 3) for rank in range(3)]
        for rank, part in enumerate(parts):
            assert torch.equal(part["label"], alone["label"][rank::3])
        seen += [
            (tuple(ids[valid].tolist()), int(label))
            for ids, valid, label in zip(alone["ids"], alone["valid"], alone["label"], strict=True)
        ]
    want = sorted((tuple(row.ids.tolist()), *row.labels) for row in rows)
    epochs = [seen[i : i + n] for i in range(0, len(seen), n)]
    assert len(epochs) == 16
    assert all(sorted(epoch) == want for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_evaluation_by_the_definition(folder: Path) -> None:
    task = config(folder).task.build()
    assert isinstance(task, ClassifyTask)
    model = stir(task.model()).eval()
    assert not any("longer than" in line for line in task.introduction())
    long = task.splits["val"][0]  # one text that takes five windows, the last where it ends
    task.splits["val"][0] = long._replace(ids=np.arange(90, dtype=np.int64) % 7 + 40)
    assert any("1 text longer than the 32 tokens" in line for line in task.introduction())
    right, loss = 0, 0.0
    with torch.no_grad():
        for row in task.splits["val"]:
            starts = [0, 14, 29, 44, 58] if len(row.ids) == 90 else [0]
            probabilities = []
            for start in starts:
                ids = torch.from_numpy(row.ids[start : start + 32])[None]
                logits = model(ids, torch.ones_like(ids, dtype=torch.bool))
                probabilities.append(logits.double().softmax(-1))
            p = torch.cat(probabilities).mean(0)
            (label,) = row.labels
            right += int(p.argmax()) == label
            loss -= float(p[label].log())
    found = task.evaluate(model)
    n = len(task.splits["val"])
    assert found["accuracy"] == right / n
    assert found["val_loss"] == pytest.approx(loss / n, rel=1e-5)


def test_what_is_learned_from_is_varied_and_a_function_of_its_place(folder: Path) -> None:
    task = config(folder).changed({"token_dropout": 0.25}).task.build()
    assert isinstance(task, ClassifyTask)
    # one text, ten contexts long, each token once
    task.splits["train"] = [task.splits["train"][0]._replace(ids=np.arange(320, dtype=np.int64))]
    batches = [task.batch("train", 1, step, 0, 1) for step in range(40)]
    again = task.batch("train", 1, 7, 0, 1)
    assert all(torch.equal(again[name], t) for name, t in batches[7].items())
    rows = [b["ids"][i][b["valid"][i]] for b in batches for i in range(len(b["ids"]))]
    assert all(bool((row[1:] > row[:-1]).all()) for row in rows), "in the text's order"
    assert all(int(row[-1] - row[0]) < 32 for row in rows), "from one window"
    starts = torch.stack([row[0] for row in rows])
    assert int(starts.min()) < 20
    assert int(starts.max()) > 270
    lengths = torch.tensor([float(len(row)) for row in rows])
    # 32 * (1 - rate), rate uniform in [0, 0.5]: mean 24, deviation 5, 640 rows: 0.2 of the mean's
    assert float(lengths.mean()) == pytest.approx(24.0, abs=1.0)
    assert float(lengths.max()) == 32


def test_smoothing_belongs_to_learning_only(folder: Path) -> None:
    task = config(folder).changed({"label_smoothing": 0.3}).task.build()
    plain = config(folder).changed({"label_smoothing": 0.0}).task.build()
    assert isinstance(task, ClassifyTask)
    model = stir(task.model()).eval()
    batch = task.batch("train", 1, 0, 0, 1)
    logits = model(batch["ids"], batch["valid"])
    uniform = -logits.log_softmax(-1).mean(-1).sum()
    right = F.cross_entropy(logits, batch["label"], reduction="sum")
    torch.testing.assert_close(task.loss(model, batch)[0], 0.7 * right + 0.3 * uniform)
    assert task.evaluate(model) == plain.evaluate(model)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("token_dropout", 0.6, r"token_dropout must be in \[0, 0.5\], got 0.6"),
        ("label_smoothing", 1.0, r"label_smoothing must be in \[0, 1\), got 1"),
    ],
)
def test_shares_are_checked(key: str, value: float, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        ClassifySettings(**{key: value})


def tiny(**changes: Any) -> TextClassifier:
    config = ClassifierConfig(
        vocab_size=11, classes=3, context_length=12, dim=8, n_heads=2, **changes
    )
    return stir(TextClassifier(config)).double().eval()


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("pairs", [0, 50])
@pytest.mark.parametrize("places", [[3, 4, 5, 6], [0, 1, 2, 3], [1, 2, 5, 6]])
def test_padding_changes_nothing(places: list[int], pairs: int, body: str) -> None:
    """Before, after and between."""
    model, ids = tiny(pairs=pairs, body=body), torch.tensor([[1, 5, 7, 2]])
    alone = model(ids, torch.ones_like(ids, dtype=torch.bool))
    padded, valid = torch.full((1, 7), 9), torch.zeros(1, 7, dtype=torch.bool)
    padded[:, places], valid[:, places] = ids, True
    torch.testing.assert_close(model(padded, valid), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("body", BODIES)
def test_a_text_without_a_token_has_an_answer(body: str) -> None:
    ids = torch.zeros(1, 4, dtype=torch.long)
    assert tiny(body=body)(ids, torch.zeros_like(ids, dtype=torch.bool)).isfinite().all()


@pytest.mark.parametrize("body", CELLS)
def test_a_recurrent_body_reads_on_from_token_to_token(body: str) -> None:
    """What it computes of each token, from the cell alone, is what the head has the mean and the
    maximum of; the order of the tokens tells."""
    model, ids = tiny(body=body), torch.tensor([[1, 5, 7, 2], [7, 5, 1, 2]])
    logits = model(ids, torch.ones_like(ids, dtype=torch.bool))
    for row, logit in zip(ids, logits, strict=True):
        states, _ = model.recurrence.cell(model.tokens(row[None]))
        pooled = torch.cat([states.mean(1), states.amax(1)], -1)
        torch.testing.assert_close(model.head(pooled)[0], logit, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(logits[0], logits[1])
    assert model.positions is None


def test_pairs_tell_the_order_of_neighbours() -> None:
    """Two texts of the same tokens, whose positions say nothing: only pairs tell them apart."""
    texts = torch.tensor([[1, 2, 3, 4], [1, 3, 2, 4]])
    for pairs, alike in ((0, True), (1000, False)):
        model = tiny(pairs=pairs)
        with torch.no_grad():
            model.positions.weight.zero_()
        a, b = model(texts, torch.ones_like(texts, dtype=torch.bool))
        assert torch.allclose(a, b, atol=1e-12) == alike


def test_the_largest_value_of_each_feature_counts() -> None:
    """One token that stands out is seen however long the text: head = identity of the maxima."""
    model = tiny()
    seen = []
    model.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    stacked = torch.randn(1, 5, 8, dtype=torch.float64)
    model.stack.forward = lambda h, ctx: stacked
    valid = torch.tensor([[True, True, False, True, True]])
    model(torch.ones(1, 5, dtype=torch.long), valid)
    real = stacked[:, valid[0]]
    torch.testing.assert_close(seen[0], torch.cat([real.mean(1), real.amax(1)], -1))


def test_a_recurrent_classifier_is_trained_and_asked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one on a Transformer: it learns, goes on where it stopped, is asked, measured and linted,
    and learns rows by heart; what only a Transformer has is refused."""
    recurrent = config(folder).changed({"model.body": "layer_norm_lstm", "steps": 40})
    run = train(recurrent, out=tmp_path / "a", until=20, display=Display(quiet=True))
    assert main(["train", "--resume", str(tmp_path / "a"), "model.body=gru"]) == 2
    assert "model.body=gru" in capsys.readouterr().err
    assert main(["train", "--resume", str(tmp_path / "a")]) == 0
    assert "layer_norm_lstm, 1 layers of width 16" in capsys.readouterr().out
    train(recurrent, out=tmp_path / "b", display=Display(quiet=True))
    a, b = (Checkpoints(tmp_path / n / "checkpoints").load() for n in "ab")
    assert same(a.tensors, b.tensors)
    assert main(["predict", str(run.folder), "cat dog", "opal opal", "--json"]) == 0
    answers = [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()]
    assert answers == ["animals", "stones"]
    assert main(["eval", str(run.folder), str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] > 0.8
    assert main(["lint", str(run.folder)]) == 0
    capsys.readouterr()
    assert main(["export", "onnx", str(run.folder), "--out", str(tmp_path / "x.onnx")]) == 2
    assert "only one on a Transformer" in capsys.readouterr().err
    outcome = overfit(config(folder).changed({"model.body": "gru"}), 4)
    assert str(outcome).startswith("overfit: PASS")
    for changes, message in (
        ({"model.scheme": "post_norm"}, "model.scheme=post_norm has no effect with model.body=gru"),
        ({"model.n_heads": 8}, "model.n_heads=8 has no effect with model.body=gru"),
        ({"optimizer": "muon"}, "optimizer=muon is for the matrices"),
        ({"model.body": "lstn"}, "unknown body 'lstn'; did you mean lstm"),
    ):
        with pytest.raises(SettingsError, match=message):
            config(folder).changed({"model.n_heads": 4, "model.body": "gru", **changes})


@pytest.mark.parametrize("pairs", [-1, 2.5, True])
def test_pairs_are_a_number(pairs: Any) -> None:
    with pytest.raises(ValueError, match="pairs must be a whole number of at least 0"):
        ClassifierConfig(vocab_size=11, classes=3, pairs=pairs)


def test_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="data is not set"):
        ClassifySettings().build()
    with pytest.raises(DataError, match="is not a folder or file"):
        ClassifySettings(data=str(tmp_path / "none")).build()
    (tmp_path / "one").mkdir()
    with pytest.raises(DataError, match=r"has 1 sub-folder\(s\)"):
        ClassifySettings(data=str(tmp_path)).build()
    (tmp_path / "two").mkdir()
    with pytest.raises(DataError):
        ClassifySettings(data=str(tmp_path)).build()
