"""What a classifier has learned before: its head, replay, and the pull of elastic weight
consolidation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import addnorm
from addnorm import GPTConfig, Tokenizer, train
from addnorm.adapt import Adapt
from addnorm.errors import Mendable
from addnorm.models.bert import Bert
from addnorm.models.bert_config import BertConfig
from addnorm.models.classifier import ClassifierConfig, TextClassifier
from addnorm.models.gpt_classifier import GPTClassifier
from addnorm.tasks import earlier
from addnorm.tasks.bodies import Pretrained
from addnorm.tasks.classify import ClassifySettings, ClassifyTask
from addnorm.tasks.targets import OneLabel, SeveralLabels
from addnorm.training.checkpoint import Checkpoints
from addnorm.training.config import Config
from addnorm.training.display import Display
from addnorm.training.loop import Trainer
from addnorm.training.loop_settings import LoopSettings
from tests.nets import stir
from tests.training.test_training import ALONE, same

TOPICS = {
    "first": {"animals": "cat dog cow hen fox", "plants": "oak ash elm fir fig"},
    "second": {"stones": "jet opal ruby onyx", "metals": "tin zinc iron gold"},
}
SHAPE = {"context_length": 16, "dim": 16, "n_layers": 1, "n_heads": 2}
QUIET = Display(quiet=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of two topics, and a classifier that has learned the first."""
    folder = tmp_path_factory.mktemp("topics")
    rng = np.random.default_rng(0)
    for topic, words in TOPICS.items():
        rows = []
        for i in range(60):
            name = list(words)[i % 2]
            text = " ".join(rng.choice(words[name].split(), rng.integers(2, 5)))
            rows.append(json.dumps({"text": f"{text} {i}", "label": name}))
        (folder / f"{topic}.jsonl").write_text("\n".join(rows))
    first = config(folder, data=str(folder / "first.jsonl"), init_from=None)
    train(
        first.changed({f"model.{k}": v for k, v in SHAPE.items()}), out=folder / "a", display=QUIET
    )
    return folder


def config(place: Path, **changes: Any) -> Config:
    about = ClassifySettings(
        data=str(place / "second.jsonl"),
        init_from=str(place / "a"),
        rows_per_step=8,
        dropout=0.0,
        token_dropout=0.1,
        val_fraction=0.2,
        cache=place / "cache",
    )
    loop = LoopSettings(
        steps=60, lr=1e-2, warmup=3, eval_every=60, save_every=30, threads=1, precision="fp32"
    )
    return Config(task=about, loop=loop).changed(changes)


def again(place: Path, **changes: Any) -> Config:
    return config(place, **{"earlier.data": str(place / "first.jsonl"), **changes})


def test_it_keeps_what_it_knew_and_resumes(place: Path, tmp_path: Path) -> None:
    settings = again(place, **{"earlier.anchor": 1.0, "earlier.replay": 0.4})
    run = train(settings, out=tmp_path / "b", display=QUIET)
    loaded = addnorm.load(run.folder)
    assert loaded.labels == ("animals", "metals", "plants", "stones")
    rows = [
        json.loads(line)
        for topic in TOPICS
        for line in (place / f"{topic}.jsonl").read_text().splitlines()
    ]
    answers = loaded.predict([row["text"] for row in rows])
    right = [a["label"] == row["label"] for a, row in zip(answers, rows, strict=True)]
    assert np.mean(right[:60]) >= 0.9  # what it has learned before
    assert np.mean(right[60:]) >= 0.8
    record = (run.folder / "metrics.jsonl").read_text()
    assert '"anchor"' in record
    train(settings, out=tmp_path / "c", until=30, display=QUIET)
    train(settings, out=tmp_path / "c", resume=True, display=QUIET)
    b, c = (Checkpoints(tmp_path / n / "checkpoints").load() for n in "bc")
    assert same(b.tensors, c.tensors)


def test_rows_of_a_step(place: Path) -> None:
    """A quarter of them are earlier ones, whoever reads them; held out there are none."""
    task = again(place, **{"earlier.texts": 10}).build()
    assert isinstance(task, ClassifyTask)
    assert len(task.earlier) == 10
    alone = task.batch("train", 3, 5, 0, 1)
    first = {task.targets.classes.index(name) for name in TOPICS["first"]}
    assert [int(label) in first for label in alone["label"]] == [False, False, False, True] * 2
    for rank in range(3):
        part = task.batch("train", 3, 5, rank, 3)
        assert all(torch.equal(part[name], t[rank::3]) for name, t in alone.items())
    assert not first & set(task.batch("val", 3, 0, 0, 1)["label"].tolist())
    line = next(line for line in task.introduction() if "not to be forgotten" in line)
    assert "10 texts learned before" in line


@pytest.mark.parametrize("share", [0.0, 0.25, 0.3, 0.9])
def test_every_row_has_its_turn(share: float) -> None:
    kinds: dict[bool, list[int]] = {True: [], False: []}
    for n in range(200):
        is_earlier, i = earlier.replayed(n, share)
        kinds[is_earlier].append(i)
    assert all(order == list(range(len(order))) for order in kinds.values())
    assert abs(len(kinds[True]) - 200 * share) <= 1


def small(kind: str) -> nn.Module:
    if kind == "bert":
        more = {"vocab_size": 300, "head": "classify", "labels": 2}
        return Bert(BertConfig(**SHAPE, **more))
    if kind == "gpt":
        return GPTClassifier(GPTConfig(vocab_size=300, **SHAPE), 2)
    return TextClassifier(ClassifierConfig(vocab_size=300, classes=2, **SHAPE))


@pytest.mark.parametrize("kind", ["own", "gpt", "bert"])
def test_a_head_goes_on(kind: str, tmp_path: Path) -> None:
    """What it says of the labels that it knows is what it said, under whatever number."""
    torch.manual_seed(0)
    model = stir(small(kind)).eval()
    words = "pytorch trains a model of words, and a word is a row of numbers " * 9
    tokenizer = Tokenizer.train([words], vocab_size=100, kind="wordpiece")
    addnorm.save(model, tmp_path, tokenizer=tokenizer, labels=["x", "b"])
    body = Pretrained(str(tmp_path), 3, False, 0.0, Adapt(), names=["a", "b", "x"])
    ids = torch.randint(5, 90, (2, 7))
    valid = torch.ones_like(ids, dtype=torch.bool)
    grown = body.model().eval()
    torch.testing.assert_close(grown(ids, valid)[:, [2, 1]], model(ids, valid))
    trained = {name: p.requires_grad for name, p in grown.named_parameters()}
    assert all(trained.values())
    new = Pretrained(str(tmp_path), 2, False, 0.0, Adapt()).model().eval()
    assert not torch.allclose(new(ids, valid), model(ids, valid))


class Line(nn.Module):
    """Logits that are a product, so that gradients follow."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2, bias=False)

    def forward(self, ids: Tensor, valid: Tensor) -> Tensor:
        return self.head(ids.float() * valid)


@pytest.mark.parametrize("several", [False, True])
def test_fisher_by_the_definition(several: bool) -> None:
    """Of logits W x, d log p(y) / d W is (y - p) x'; the labels are those that were drawn."""
    torch.manual_seed(0)
    model, targets = Line(), (SeveralLabels if several else OneLabel)("ab")
    texts = torch.randint(-3, 4, (6, 3))
    batches = [{"ids": x[None], "valid": torch.ones(1, 3)} for x in texts]
    fisher = earlier.fisher_of(model, batches, targets)["head.weight"]
    generator, want = torch.Generator().manual_seed(0), torch.zeros(2, 3)
    for x in texts.float():
        p = targets.probabilities(model.head(x))[None].detach()
        y = targets.sample(p, generator)
        hot = y[0] if several else nn.functional.one_hot(y[0], 2)
        score = torch.outer(hot - p[0], x) / (2 if several else 1)  # of a loss that is a mean
        want += score.square() * (2 if several else 1) / len(texts)
    torch.testing.assert_close(fisher, want)


def test_the_pull_by_the_definition() -> None:
    model = Line()
    start = {"head.weight": torch.zeros(2, 3)}
    anchor = earlier.Anchor(4.0, {"head.weight": torch.full((2, 3), 0.5)}, start)
    with torch.no_grad():
        model.head.weight.fill_(3.0)
    penalty = anchor.penalty(nn.Sequential(model)[0])
    assert float(penalty.detach()) == pytest.approx(4.0 / 2 * 6 * 0.5 * 9.0)
    wrapped = nn.Module()
    wrapped.module = model  # as DistributedDataParallel has it
    assert float(anchor.penalty(wrapped).detach()) == float(penalty.detach())


def test_rows_by_label() -> None:
    old, new = torch.tensor([[1.0], [2.0]]), torch.zeros(3, 1)
    rows = earlier.rows_by_label(old, new, ["x", "b"], ["a", "b", "x"])
    assert rows.tolist() == [[0.0], [2.0], [1.0]]


def test_the_pull_is_the_same_in_parts(place: Path) -> None:
    """Of the mean loss it is added once, however many micro-batches there are; at the beginning,
    nothing pulls."""
    gradients = []
    for changes in ({}, {"micro_rows": 3}):
        settings = again(place, **{"earlier.anchor": 50.0, **changes})
        trainer = Trainer(settings.build(), settings.loop, ALONE)
        assert trainer.step().parts["anchor"] == 0.0
        _, count, parts = trainer._accumulate(trainer.batch())
        trainer._divide(count)
        assert parts["anchor"] > 0.0
        gradients.append([p.grad.clone() for p in trainer.raw.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"earlier.texts": 0}, r"earlier\.texts=0: texts must be at least 1"),
        ({"earlier.replay": 1.0}, r"earlier\.replay=1.0: replay must be"),
        ({"earlier.anchor": -1.0}, r"anchor must not be negative"),
        ({"earlier.data": "", "earlier.texts": 9}, r"has no effect with earlier\.data="),
        ({"init_from": None}, r"is what a classifier has learned before: say which with init_from"),
        ({"earlier.anchor": 1.0, "parallel": "fsdp"}, r"parallel=ddp, not fsdp"),
        ({"earlier.anchor": 1.0, "adapt.kind": "lora"}, r"no effect beside an adapter"),
        ({"earlier.data": "/nowhere.csv"}, r"earlier\.data=/nowhere.csv: "),
    ],
    ids=str,
)
def test_what_is_refused(place: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Mendable, match=message):
        again(place, **changes).build()


def test_a_model_without_labels(place: Path, tmp_path: Path) -> None:
    gpt = addnorm.GPT(GPTConfig(vocab_size=257, **SHAPE))
    addnorm.save(gpt, tmp_path, tokenizer=Tokenizer.bytes())
    with pytest.raises(Mendable, match="it has learned no labels"):
        again(place, init_from=str(tmp_path)).build()
