"""Training: one step is the large batch's, a resumed run is the run, and what happens when numbers
break. The tasks here are tiny; what they learn is not the point, that it is the same is."""

import errno
import json
import math
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from addnorm import GPT, GPTConfig, Stack, schemes, train
from addnorm.branches import MLP
from addnorm.data.prepared import Tokens
from addnorm.errors import Mendable
from addnorm.records import read
from addnorm.settings import SettingsError
from addnorm.tasks.language import LanguageSettings, LanguageTask
from addnorm.training import checkpoint_file, parallel
from addnorm.training import loop as loop_module
from addnorm.training.checkpoint import CheckpointError, Checkpoints
from addnorm.training.config import Config
from addnorm.training.display import Display, step_line
from addnorm.training.fit import Course, InMemory, Observer, Stopped
from addnorm.training.loop import Diverged, Trainer
from addnorm.training.loop_settings import LoopSettings
from addnorm.training.optim import factor, roles
from addnorm.training.parallel import World
from addnorm.training.stream_rms import stream_rms
from addnorm.training.task import Batch, Best, Task
from tests.nets import stir

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
DIM = 8


class Net(nn.Module):
    """A stack with a norm, a matrix, a bias and a dropout."""

    def __init__(self, dropout: float = 0.0, scheme: str = "pre_norm") -> None:
        super().__init__()
        self.enter = nn.Linear(DIM, DIM)
        self.stack = Stack(
            [("mlp", lambda **k: MLP(DIM, 16, "gelu", **k))] * 2, DIM, schemes.parse(scheme)
        )
        self.drop = nn.Dropout(dropout)
        self.steps: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.stack(self.drop(self.enter(x)))

    def after_step(self, step: int) -> None:
        self.steps.append(step)
        self.stack.after_step(step)


class Namesakes(nn.Module):
    """Parts that are called what wrappers call what they wrap, and tensors of one shape that only
    such a name tells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(DIM, DIM))
        self.module = nn.Linear(DIM, DIM)
        self.text_module = nn.Linear(DIM, DIM)
        self.text_ = nn.Linear(DIM, DIM)
        self._orig_mod = nn.ModuleDict({"module": nn.Linear(DIM, DIM)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.module(x @ self.weight).tanh()
        x = F.dropout(self.text_(self.text_module(x).tanh()), 0.3, self.training)
        return self._orig_mod["module"](x)


class Toy(Task):
    """Regression on vectors; how many of a row's targets count differs wildly between rows."""

    best = Best("error", "min")

    def __init__(self, rows: int = 12, dropout: float = 0.0, dtype: Any = torch.float64) -> None:
        self.rows, self.dropout, self.dtype = rows, dropout, dtype
        self.asked: list[int] = []
        self.spoil: Mapping[int, float] = {}
        self.empty: tuple[int, ...] = ()  # steps without a target
        self.single: tuple[int, ...] = ()  # and with the first one alone

    def model(self) -> nn.Module:
        return stir(Net(self.dropout)).to(self.dtype)

    def batch(self, split: str, seed: int, step: int, rank: int, world: int) -> Batch:
        self.asked.append(step)
        g = torch.Generator().manual_seed(1000 * seed + step + (7 << 30) * (split == "val"))
        x = torch.randn(self.rows, 5, DIM, generator=g, dtype=self.dtype)
        y = torch.randn(self.rows, 5, DIM, generator=g, dtype=self.dtype)
        share = torch.rand(self.rows, 1, generator=g) ** 3
        counts = torch.rand(self.rows, 5, generator=g) < share  # some rows have no target at all
        counts[0, 0] = True
        if step in self.spoil and split == "train":
            value = self.spoil[step]
            (y if math.isfinite(value) else x)[3, 2, 1] = value
            counts[3, 2] = True
        if step in (*self.empty, *self.single) and split == "train":
            counts[:] = False
            counts[0, 0] = step in self.single
        return {k: v[rank::world] for k, v in {"x": x, "y": y, "counts": counts}.items()}

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        error = (model(batch["x"]) - batch["y"]).square().mean(-1)
        # not multiplied by the mask: NaN times 0 is NaN
        chosen = error[batch["counts"]]
        return chosen.sum(), batch["counts"].sum(), {"largest": chosen.detach().sum() * 2}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            total, count, _ = self.loss(model, self.batch("val", 0, 0, 0, 1))
        return {"error": float(total / count)}


class Named(Toy):
    """The same of a model whose names are not what they seem."""

    def model(self) -> nn.Module:
        return stir(Namesakes()).to(self.dtype)


def quiet() -> Display:
    return Display(quiet=True)


SETTINGS: dict[str, Any] = {
    "steps": 12,
    "precision": "fp32",
    "warmup": 3,
    "eval_every": 4,
    "save_every": 4,
    "threads": 1,
    "lr": 1e-2,
}


def loop(**changes: Any) -> LoopSettings:
    return LoopSettings(**{**SETTINGS, **changes})


def copied(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    """What a step does not change: on the CPU, ``tensors`` are the trainer's own."""
    return {g: {n: t.clone() for n, t in of.items()} for g, of in trainer.tensors().items()}


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return copied(trainer)["model"]


# --- a step ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("micro", [1, 5, 11])
def test_accumulation_is_the_large_batch(dtype: torch.dtype, bound: float, micro: int) -> None:
    """Relative to the largest of each tensor; with rows that have few targets or none."""
    whole, parts = (
        Trainer(Toy(dtype=dtype), loop(micro_rows=m, optimizer="adamw", clip=0.0), ALONE)
        for m in (None, micro)
    )
    for trainer in (whole, parts):
        total, count, _ = trainer._accumulate(trainer.batch())
        trainer.found = total / count, trainer._norm(count)
        trainer._divide(count)
    for a, b in zip(whole.found, parts.found, strict=True):
        assert a == pytest.approx(b, rel=bound)
    for p, q in zip(whole.raw.parameters(), parts.raw.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() <= bound * p.grad.abs().max()


def test_the_gradient_is_that_of_the_mean() -> None:
    """Against autograd on the mean over all targets, the definition."""
    task = Toy()
    trainer = Trainer(task, loop(micro_rows=4), ALONE)
    model = task.model()
    model.load_state_dict(trainer.raw.state_dict())
    total, count, _ = task.loss(model, task.batch("train", 0, 0, 0, 1))
    (total / count).backward()
    _, targets, _ = trainer._accumulate(trainer.batch())
    norm = trainer._norm(targets)
    trainer._divide(targets)
    want = torch.cat([p.grad.flatten() for p in model.parameters()])
    got = torch.cat([p.grad.flatten() for p in trainer.raw.parameters()])
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    assert norm == pytest.approx(float(want.norm()), rel=1e-12)


def test_clipping_and_the_learning_rate() -> None:
    """One step of SGD-like size: AdamW's first step is lr * sign(g), whatever the clip; so the
    clip is looked at in AdamW's memory."""
    task = Toy()
    trainer = Trainer(task, loop(clip=1e-3, beta1=0.0, warmup=0), ALONE)
    outcome = trainer.step()
    assert outcome.grad_norm > 1e-3
    state = trainer.tensors()["optimizer"]
    clipped = torch.cat([t.flatten() for n, t in state.items() if n.endswith("exp_avg")])
    assert float(clipped.norm()) == pytest.approx(1e-3, rel=1e-6)
    first = factor(0, 12, 0, "cosine", 0.1, 0.2)
    assert outcome.lr == pytest.approx(1e-2 * first)
    assert trainer.raw.steps == [1]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "constant"])
def test_schedules_by_their_definition(schedule: Any) -> None:
    steps, warmup, floor, decay = 100, 10, 0.1, 0.25
    got = [factor(s, steps, warmup, schedule, floor, decay) for s in range(steps)]
    assert got[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert all(a >= b - 1e-12 for a, b in pairwise(got[10:]))
    assert got[-1] == pytest.approx(1.0 if schedule == "constant" else floor)
    middle = {
        "cosine": floor + 0.9 * 0.5 * (1 + math.cos(math.pi * 46 / 90)),
        "linear": floor + 0.9 * (1 - 46 / 90),
        "wsd": 1.0,
        "constant": 1.0,
    }
    assert got[55] == pytest.approx(middle[schedule])
    if schedule == "wsd":
        assert got[74] == 1.0
        assert got[75] == pytest.approx(floor + 0.9 * (1 - 1 / 25))
    assert factor(0, 5, 5, schedule, floor, decay) == 0.2  # all of it a warmup


def test_roles() -> None:
    """By the module that owns a parameter: a norm's gain, a bias and a join's factor are small."""
    config = GPTConfig(
        vocab_size=11, context_length=8, dim=8, n_layers=1, n_heads=2, scheme="hyper_connections"
    )
    found = roles(GPT(config))
    assert found["tokens.weight"] == found["positions.weight"] == "table"
    for name, role in found.items():
        if ".join." in name or "norm" in name or name.endswith("bias"):
            assert role == "small", name
    assert found["stack.subs.0.branch.q.weight"] == "matrix"
    assert set(found) == {n for n, _ in GPT(config).named_parameters()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_norms_and_biases_are_not_decayed(optimizer: Any) -> None:
    """With no gradient at all, an optimizer moves what is decayed, and nothing else: each by its
    own learning rate."""
    rate = {"muon_lr": 3e-2} if optimizer == "muon" else {}
    trainer = Trainer(Toy(), loop(optimizer=optimizer, weight_decay=0.5, **rate), ALONE)
    before = weights(trainer)
    for p in trainer.raw.parameters():
        p.grad = torch.zeros_like(p)
    for one in trainer.optimizers:
        one.step()
    role = roles(trainer.raw)
    for name, now in weights(trainer).items():
        lr = 3e-2 if optimizer == "muon" and name.startswith("stack") else 1e-2
        factor_ = 1.0 if role[name] == "small" else 1 - lr * 0.5
        torch.testing.assert_close(now, before[name] * factor_, rtol=1e-12, atol=0)


MATRICES = {f"stack.subs.{i}.branch.{side}.weight" for i in (0, 1) for side in ("up", "down")}
"""Of the net's stack."""


def names_by_optimizer(trainer: Trainer) -> dict[str, set[str]]:
    """Kind of optimizer -> the names of what it trains."""
    names = {id(p): n for n, p in trainer.raw.named_parameters()}
    return {
        type(one).__name__: {names[id(p)] for g in one.param_groups for p in g["params"]}
        for one in trainer.optimizers
    }


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_who_trains_what(optimizer: Any) -> None:
    """Muon the matrices of the stack, and AdamW the rest: every parameter once."""
    trainer = Trainer(Toy(), loop(optimizer=optimizer), ALONE)
    names = {n for n, _ in trainer.raw.named_parameters()}
    muon = {"Muon": MATRICES} if optimizer == "muon" else {}
    assert names_by_optimizer(trainer) == {"AdamW": names - muon.get("Muon", set()), **muon}


class Slopes(Toy):
    """A task that is linear in the parameters, so that the gradients are what it says they are: of
    a matrix one whose singular values are 1/2 to 1."""

    def batch(self, split: str, seed: int, step: int, rank: int, world: int) -> Batch:
        g = torch.Generator().manual_seed(step)
        slopes = {}
        for name, p in Net().named_parameters():
            t = torch.randn(p.shape, generator=g, dtype=torch.float64)
            if p.dim() == 2:
                u, s, v = torch.linalg.svd(t, full_matrices=False)
                t = u * torch.linspace(0.5, 1.0, len(s), dtype=torch.float64) @ v
            slopes[name] = t[None]
        return slopes

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        parts = [(p * batch[n][0]).sum() for n, p in model.named_parameters()]
        return torch.stack(parts).sum(), torch.tensor(1), {}


def by_adamw(p: Tensor, slopes: list[Tensor], rates: list[float], decay: float) -> Tensor:
    """The algorithm in torch's documentation of AdamW."""
    beta1, beta2, eps = 0.8, 0.7, 1e-8
    m = v = torch.zeros_like(p)
    for t, (g, lr) in enumerate(zip(slopes, rates, strict=True), 1):
        p = p - lr * decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        p = p - lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps)
    return p


def by_muon(p: Tensor, slopes: list[Tensor], rates: list[float], decay: float) -> Tensor:
    """The algorithm in torch's documentation of Muon, with Nesterov's momentum, and the step
    scaled to the size of AdamW's."""
    momentum, a, b, c = 0.95, 3.4445, -4.7750, 2.0315
    m = torch.zeros_like(p)
    for g, lr in zip(slopes, rates, strict=True):
        m = momentum * m + g
        x = g + momentum * m
        x = (x.T if x.shape[0] > x.shape[1] else x) / x.norm()
        for _ in range(5):
            square = x @ x.T
            x = a * x + (b * square + c * square @ square) @ x
        x = x.T if p.shape[0] > p.shape[1] else x
        p = p - lr * decay * p - lr * 0.2 * math.sqrt(max(p.shape)) * x
    return p


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_three_steps_by_the_formula(optimizer: Any) -> None:
    """Each parameter by its optimizer's, in float64, at its learning rate and with its decay. Muon
    computes in bfloat16: each of the 15 products of its iteration is off by up to 2**-9 of its
    size, and the polynomial carries that on with a slope between -1.6 and 2 where its values come
    to lie: 15 * 2**-9 = 3 % of the way, of which a third is seen."""
    lr, muon_lr, decay = 1e-2, 3e-2, 0.3
    how = {"lr": lr, "warmup": 2, "beta1": 0.8, "beta2": 0.7, "weight_decay": decay, "clip": 0.0}
    how |= {"optimizer": optimizer} | ({"muon_lr": muon_lr} if optimizer == "muon" else {})
    trainer = Trainer(
        Slopes(), LoopSettings(steps=3, precision="fp32", schedule="constant", **how), ALONE
    )
    before, role = weights(trainer), roles(trainer.raw)
    rows = [trainer.task.batch("train", 0, step, 0, 1) for step in range(3)]
    for row in rows:
        norm = torch.cat([t.flatten() for t in row.values()]).norm()
        assert trainer.step().grad_norm == pytest.approx(float(norm), rel=1e-12)
    for name, now in weights(trainer).items():
        slopes = [row[name][0] for row in rows]
        decays = 0.0 if role[name] == "small" else decay
        if optimizer == "muon" and name in MATRICES:
            rates = [muon_lr / 2, muon_lr, muon_lr]
            want = by_muon(before[name], slopes, rates, decays)
            assert (now - want).norm() <= 0.03 * (now - before[name]).norm()
        else:
            want = by_adamw(before[name], slopes, [lr / 2, lr, lr], decays)
            torch.testing.assert_close(now, want, rtol=1e-12, atol=1e-14)


def test_float16s_scale_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """It doubles after so many steps without an overflow, counted anew from each."""
    monkeypatch.setattr(loop_module, "GROWS_AFTER", 5)
    task = Toy(dtype=torch.float32)
    task.spoil = {7: math.inf}
    trainer = Trainer(task, loop(precision="fp16", steps=13), ALONE)
    trainer.scale = 2.0**8
    scales = []
    for _ in range(13):
        trainer.step()
        scales.append(math.log2(trainer.scale))
    assert scales == [8] * 4 + [9] * 3 + [8] * 5 + [9]


def test_float16_recovers_from_overflow() -> None:
    """A loss scale that is too large skips steps, halves, and then trains."""
    trainer = Trainer(Toy(dtype=torch.float32), loop(precision="fp16", steps=40), ALONE)
    trainer.scale = 2.0**40
    outcomes = [trainer.step() for _ in range(40)]
    assert outcomes[0].skipped
    assert not outcomes[-1].skipped
    assert trainer.skipped == sum(o.skipped for o in outcomes)
    assert trainer.scale == 2.0 ** (40 - trainer.skipped)


# --- when numbers break ---------------------------------------------------------------------------


def test_stopping_names_the_first_module(tmp_path: Path) -> None:
    task = Toy()
    task.spoil = {5: math.nan}
    with pytest.raises(Diverged, match=r"step 5: loss nan .*first module.* is enter \(Linear\)"):
        train(task, loop=loop(), out=tmp_path / "run", display=quiet())
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [4]
    lines = read(tmp_path / "run" / "metrics.jsonl")
    assert max(r["step"] for r in lines) == 5


def test_a_weight_that_is_broken_is_named() -> None:
    trainer = Trainer(Toy(), loop(), ALONE)
    with torch.no_grad():
        trainer.raw.get_parameter("stack.subs.1.branch.up.weight")[0, 0] = math.inf
    with pytest.raises(Diverged, match=r"the parameter stack.subs.1.branch.up.weight, before"):
        trainer.step()


def test_a_backward_that_is_broken_is_named() -> None:
    """sqrt at 0 has a finite value and no finite slope."""

    class Root(Toy):
        def loss(self, model: nn.Module, batch: Batch) -> Any:
            out = model(batch["x"])
            return (out - out.detach()).square().sum().sqrt(), batch["counts"].sum(), {}

    with pytest.raises(Diverged, match="it is the backward pass that breaks"):
        Trainer(Root(), loop(), ALONE).step()


def test_skipping_is_as_if_the_step_had_not_been() -> None:
    """Weights and optimizer are untouched, the step is counted, the next one is taken."""
    task = Toy()
    task.spoil = {2: math.inf}
    trainer = Trainer(task, loop(nonfinite="skip"), ALONE)
    trainer.step()
    trainer.step()
    before = copied(trainer)
    outcome = trainer.step()
    assert outcome.skipped
    assert not math.isfinite(outcome.loss)
    assert same(before, trainer.tensors())
    assert (trainer.done, trainer.skipped) == (3, 1)
    assert trainer.raw.steps == [1, 2]
    assert not trainer.step().skipped


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_without_targets_is_left_out(tmp_path: Path, precision: Any) -> None:
    """There is no mean over nothing: as if the step had not been, and no NaN is written; the first
    one that there is tells nothing of how many targets are usual."""
    task = Toy(dtype=torch.float32)
    task.empty = (0, 2)
    trainer = Trainer(task, loop(precision=precision, spike=5.0), ALONE)
    forgets = {"done", "skipped"}
    for taken in (False, True, False, True):
        before, remembered = copied(trainer), trainer.facts()
        outcome = trainer.step()
        assert outcome.skipped is not taken
        assert same(before, trainer.tensors()) is not taken
        now = {k: v for k, v in trainer.facts().items() if k not in forgets}
        assert (now == {k: v for k, v in remembered.items() if k not in forgets}) is not taken
    assert (trainer.done, trainer.skipped) == (4, 2)
    assert trainer.raw.steps == [2, 4]
    assert all(p.grad is None for p in trainer.raw.parameters())

    run = train(task, loop=loop(precision=precision), out=tmp_path / "run", display=Display())
    assert run.finished
    records = [r for r in read(run.folder / "metrics.jsonl") if "whole" not in r]
    assert [r["step"] for r in records if r.get("skipped")] == [1, 3]
    assert all(("loss" in r) == ("grad_norm" in r) == ("skipped" not in r) for r in records)
    values = [v for r in records for v in r.values() if isinstance(v, float)]
    assert all(map(math.isfinite, values))
    assert json.loads((run.folder / "run.json").read_text())["skipped"] == 2


def test_a_step_without_targets_is_told_so() -> None:
    """In a line, and on a terminal by the last step that had some, if there was one."""
    empty = {"step": 1, "tokens": 0, "lr": 1e-3, "tokens_per_s": 0.0, "elapsed_s": 1.0}
    empty["skipped"] = True
    assert "no targets" in step_line(empty, 12, "words")
    assert step_line(empty, 12, "words").endswith("SKIPPED")
    display = Display()
    display._console = Console(file=StringIO(), force_terminal=True, width=80)
    course = Course(Trainer(Toy(), loop(steps=12), ALONE), InMemory())
    display.begins(course)
    display.stepped(course, empty)
    display.stepped(course, {**empty, "step": 2, "loss": 2.75, "grad_norm": 1.0})
    display.stepped(course, {**empty, "step": 3})
    display.ended(course)
    shown = display._console.file.getvalue()
    assert "2.7500" in shown
    assert "3/12" in shown


def test_spikes_are_left_out_and_do_not_count_as_usual() -> None:
    """The median is of steps that were taken: a spike does not make the next one look normal."""
    task = Toy()
    trainer = Trainer(task, loop(spike=5.0, steps=40, lr=0.0), ALONE)
    for _ in range(20):
        assert not trainer.step().skipped
    task.spoil = dict.fromkeys(range(21, 37), 1e5)  # the data of step 20 is read already
    assert [trainer.step().skipped for _ in range(17)] == [False] + [True] * 16
    assert len(trainer.recent) == 21
    assert not trainer.step().skipped


def test_rollback_goes_back_and_past_the_data(tmp_path: Path) -> None:
    task = Toy()
    task.spoil = {6: math.nan}
    run = train(task, loop=loop(nonfinite="rollback"), out=tmp_path / "run", display=quiet())
    assert run.finished
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    assert told["rollbacks"] == 1
    # 0..6 as usual; back to step 4, whose data is now that of step 7; the last step, 11, has 14
    used = [s for s in task.asked if s]
    assert max(used) == 14
    task.spoil = dict.fromkeys(range(6, 40), math.nan)
    with pytest.raises(Diverged, match="after 3 rollbacks, so the run stops"):
        train(task, loop=loop(nonfinite="rollback"), out=tmp_path / "other", display=quiet())


# --- resuming -------------------------------------------------------------------------------------


def same(a: Mapping[str, Mapping[str, Tensor]], b: Mapping[str, Mapping[str, Tensor]]) -> bool:
    return a.keys() == b.keys() and all(
        a[g].keys() == b[g].keys() and all(torch.equal(a[g][n], b[g][n]) for n in a[g]) for g in a
    )


@pytest.mark.parametrize(
    ("kind", "empty", "changes"),
    [
        pytest.param(Toy, (), {"optimizer": "adamw"}, id="adamw"),
        pytest.param(Toy, (), {"optimizer": "muon", "spike": 1.5}, id="muon"),
        pytest.param(Toy, (), {"precision": "fp16"}, id="float16"),
        pytest.param(Toy, (0, 5, 9), {}, id="steps without targets"),
        pytest.param(Named, (), {}, id="names"),
    ],
)
def test_a_resumed_run_is_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, empty: Any, changes: Any
) -> None:
    """Weights, optimizer, random numbers, every loss and all that is remembered, to the bit; with
    dropout. float16's scale grows once before the checkpoint, and once after it."""
    monkeypatch.setattr(loop_module, "GROWS_AFTER", 5)
    monkeypatch.setattr(loop_module, "LOSS_SCALE", 2.0**8)

    def task() -> Toy:
        found: Toy = kind(dropout=0.3, dtype=torch.float32)
        found.empty = empty
        return found

    options = {"loop": loop(micro_rows=5, **changes), "display": quiet()}
    train(task(), out=tmp_path / "whole", **options)

    class Fall(Exception):
        pass

    step = Trainer.step

    def falling(self: Trainer, *args: Any) -> Any:
        if self.done == 10:
            raise Fall
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", falling)
        with pytest.raises(Fall):
            train(task(), out=tmp_path / "parts", **options)
    assert Checkpoints(tmp_path / "parts" / "checkpoints").steps() == [4, 8]
    train(task(), out=tmp_path / "parts", resume=True, **options)
    a, b = (Checkpoints(tmp_path / n / "checkpoints").load() for n in ("whole", "parts"))
    assert same(a.tensors, b.tensors)
    assert a.facts["trainer"] == b.facts["trainer"]
    losses = [
        [r["loss"] for r in read(tmp_path / n / "metrics.jsonl") if "loss" in r]
        for n in ("whole", "parts")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 12 - len(empty)
    if "precision" in changes:
        assert a.facts["trainer"]["scale"] == 2.0**10


def test_what_is_saved_has_the_names_of_the_model(tmp_path: Path) -> None:
    """Every tensor of it, and its optimizer's, under the name by which the model knows it."""
    train(Named(), loop=loop(steps=2), out=tmp_path / "run", display=quiet())
    model = Namesakes().state_dict()
    found = Checkpoints(tmp_path / "run" / "checkpoints").load().tensors
    assert {name: t.shape for name, t in found["model"].items()} == {
        name: t.shape for name, t in model.items()
    }
    states = ("exp_avg", "exp_avg_sq", "step")
    assert found["optimizer"].keys() == {f"{name}.{key}" for name in model for key in states}


def test_looking_changes_nothing(tmp_path: Path) -> None:
    """Neither measuring the stream nor evaluating touches what training depends on."""
    found = []
    for watch, every in ((0, 0), (1, 1)):
        task = Toy(dropout=0.3, dtype=torch.float32)
        out = tmp_path / f"run{watch}"
        train(task, loop=loop(watch_every=watch, eval_every=every), out=out, display=quiet())
        found.append(Checkpoints(out / "checkpoints").load())
    assert same(found[0].tensors, found[1].tensors)
    with_it = [r for r in read(tmp_path / "run1" / "metrics.jsonl") if "stream_rms" in r]
    assert len(with_it) == 12
    assert all(len(r["stream_rms"]) == 2 and min(r["stream_rms"]) > 0 for r in with_it)


def test_random_numbers_drawn_while_looking_are_given_back() -> None:
    trainer = Trainer(Toy(dropout=0.3), loop(), World(0, 1, torch.device("cpu")))
    before = torch.get_rng_state()
    with trainer.looking() as model:
        assert not model.training
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_gpus_random_numbers_are_part_of_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    device, states = torch.device("cuda", 1), {torch.device("cuda", 1): torch.arange(4)}
    monkeypatch.setattr(torch.cuda, "get_rng_state", states.__getitem__)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, at: states.update({at: state}))
    found = loop_module.random_state(device)
    assert found["cuda"] is states[device]
    assert loop_module.random_state(torch.device("cpu")).keys() == {"cpu"}
    states[device] = torch.zeros(1)
    loop_module.set_random_state(found, device)
    assert torch.equal(states[device], torch.arange(4))


def test_a_trainers_weights_are_the_models() -> None:
    trainer = Trainer(Toy(), loop(), World(0, 1, torch.device("cpu")))
    state = trainer.raw.state_dict()
    found = trainer.weights()
    assert found.keys() == state.keys()
    assert all(torch.equal(t, state[name]) for name, t in found.items())
    assert trainer.weights(keep=False) == {}


def test_the_devices_of_a_machine_with_two(monkeypatch: pytest.MonkeyPatch) -> None:
    found = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert parallel._device("auto") == "cuda"
    assert parallel._device("cuda:1") == "cuda:1"
    assert parallel._device("cpu") == "cpu"
    with pytest.raises(SettingsError, match="there are auto, cuda, cuda:0, cuda:1, cpu"):
        parallel._device("cuda:2")


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_a_process_of_several_takes_its_own_device(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third of four, the second on its machine."""
    joined: list[str] = []
    chosen: list[int] = []
    monkeypatch.setattr(parallel, "_device", lambda asked: kind)
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(dist, "is_initialized", lambda: bool(joined))
    monkeypatch.setattr(dist, "init_process_group", joined.append)
    monkeypatch.setattr(dist, "destroy_process_group", joined.clear)
    monkeypatch.setattr(dist, "get_rank", lambda: 2)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(dist, "get_node_local_rank", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    own = torch.device("cuda", 1) if kind == "cuda" else torch.device("cpu")
    assert parallel.start() == parallel.here(own) == World(2, 4, own)
    assert joined == ["nccl" if kind == "cuda" else "gloo"]
    assert chosen == ([1] if kind == "cuda" else [])
    parallel.stop()
    assert joined == []
    parallel.stop()  # nothing is left to leave
    monkeypatch.setattr(dist, "is_torchelastic_launched", lambda: False)
    assert parallel.start() == World(0, 1, torch.device(kind))


def test_a_signal_saves_and_the_run_goes_on(tmp_path: Path) -> None:
    class Signal(Observer):
        def before_part(self, course: Course, index: int) -> None:
            if course.trainer.done == 6:
                signal.raise_signal(signal.SIGTERM)

    how: dict[str, Any] = {"out": tmp_path / "run", "display": quiet(), "observers": [Signal()]}
    with pytest.raises(Stopped) as stop:
        train(Toy(dropout=0.3), loop=loop(watch_every=0), **how)
    assert (stop.value.number, stop.value.step) == (signal.SIGTERM, 7)
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps()[-1] == 7
    run = train(Toy(dropout=0.3), loop=loop(), out=tmp_path / "run", resume=True, display=quiet())
    assert run.finished
    train(Toy(dropout=0.3), loop=loop(), out=tmp_path / "whole", display=quiet())
    a, b = (Checkpoints(tmp_path / n / "checkpoints").load() for n in ("whole", "run"))
    assert same(a.tensors, b.tensors)
    assert signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.Handlers.SIG_DFL)


def test_a_full_disk_stops_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The save of step 4 fails; it is told, step 8 is saved, the run ends as one without a fault.
    If the disk is full to the end, the run says so and fails."""
    put, full = checkpoint_file.write_file, {"until": 6}

    def putting(file: Path, parts: Any) -> Any:
        saving = int(threading.current_thread().name.removeprefix("checkpoint "))
        if saving < full["until"]:  # not what step the run is at, which goes on meanwhile
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(file, parts)

    monkeypatch.setattr(checkpoint_file, "write_file", putting)
    train(Toy(), loop=loop(), out=tmp_path / "run", display=Display())
    assert "No space left on device" in capsys.readouterr().out
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [8, 12]
    full["until"] = 100
    with pytest.raises(CheckpointError, match="No space left"):
        train(Toy(), loop=loop(), out=tmp_path / "other", display=quiet())
    monkeypatch.undo()
    train(Toy(), loop=loop(), out=tmp_path / "whole", display=quiet())
    a, b = (Checkpoints(tmp_path / n / "checkpoints").load() for n in ("run", "whole"))
    assert same(a.tensors, b.tensors)


def test_a_change_is_announced_or_refused(tmp_path: Path, capsys: Any) -> None:
    train(Toy(), loop=loop(steps=4), out=tmp_path / "run", display=quiet())
    train(
        Toy(),
        loop=loop(steps=8, precision="bf16"),
        out=tmp_path / "run",
        resume=True,
        display=Display(),
    )
    assert "not the same as then: precision fp32 then, bf16 now" in capsys.readouterr().out

    class Other(Toy):
        def facts(self) -> dict[str, Any]:
            return {"content": "other"}

    class First(Toy):
        def facts(self) -> dict[str, Any]:
            return {"content": "first"}

    train(First(), loop=loop(steps=4), out=tmp_path / "two", display=quiet())
    with pytest.raises(SettingsError, match="content was first and is other"):
        train(Other(), loop=loop(), out=tmp_path / "two", resume=True, display=quiet())
    with pytest.raises(SettingsError, match="holds a run already"):
        train(Toy(), loop=loop(), out=tmp_path / "two", display=quiet())
    with pytest.raises(SettingsError, match="holds no run to go on with"):
        train(Toy(), loop=loop(), out=tmp_path / "three", resume=True, display=quiet())
    train(Toy(), loop=loop(steps=2), out=tmp_path / "two", overwrite=True, display=quiet())
    assert len([r for r in read(tmp_path / "two" / "metrics.jsonl") if "loss" in r]) == 2


# --- a language model -----------------------------------------------------------------------------

TEXT = "the quick brown fox jumps over the lazy dog and comes back again to the old fence. " * 60


def small(tmp_path: Path, **changes: Any) -> Config:
    tmp_path.mkdir(exist_ok=True)
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    model = GPTConfig(vocab_size=1, context_length=16, dim=16, n_layers=2, n_heads=2)
    about = LanguageSettings(
        data=str(file),
        tokenizer="characters",
        tokens_per_step=128,
        samples=1,
        cache=tmp_path / "cache",
        model=model,
    )
    return Config(task=about, loop=loop(steps=30, eval_every=10)).changed(changes)


def test_a_language_model_learns(tmp_path: Path) -> None:
    run = train(small(tmp_path, lr=1e-2, steps=60), out=tmp_path / "run", display=quiet())
    records = read(run.folder / "metrics.jsonl")
    losses = [r["loss"] for r in records if "loss" in r]
    assert losses[0] == pytest.approx(math.log(27), abs=0.3)  # as many characters as there are
    assert run.metrics["val_loss"] < 2.0 < losses[0]
    assert run.metrics["perplexity"] == pytest.approx(math.exp(run.metrics["val_loss"]))
    assert records[-1]["tokens"] == 60 * 128
    model = GPT.from_pretrained(run.folder / "model")
    assert model.config.context_length == 16
    samples = (run.folder / "samples.jsonl").read_text().splitlines()
    assert len(samples) == 6


def test_samples_are_drawn_as_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the prompts in turn, by the likely tokens only, the same ones every time."""
    asked: list[dict[str, Any]] = []

    def generate(model: nn.Module, prompts: list[str], **options: Any) -> list[Any]:
        asked.append({"prompts": prompts, **options})
        return []

    task = small(tmp_path, samples=2).task.build()
    monkeypatch.setattr("addnorm.tasks.language.generate", generate)
    task.sample(task.model())
    assert asked[0].pop("tokenizer") is task.tokenizer
    said = {"max_new_tokens": 32, "temperature": 0.8, "top_p": 0.95, "seed": 0}
    assert {key: asked[0][key] for key in said} == said
    assert len(asked[0]["prompts"]) == 2


def test_tokens_are_kept_where_the_cache_is_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    config = small(tmp_path, tokenizer="bpe:270").changed({"cache": tmp_path / "kept"})
    config.task.build()
    assert {path.name.partition("-")[0] for path in (tmp_path / "kept").iterdir()} >= {"tokenizer"}
    assert len(list((tmp_path / "kept").iterdir())) >= 2
    assert not list(here.iterdir())


def test_the_parts_of_a_loss_add_up_to_it(tmp_path: Path) -> None:
    config = small(tmp_path, z_loss=0.1, steps=3, micro_rows=2)
    run = train(config, out=tmp_path / "run", display=quiet())
    steps = [r for r in read(run.folder / "metrics.jsonl") if "loss" in r]
    assert len(steps) == 3
    for r in steps:
        assert r["z"] > 0.1
        assert r["nll"] + r["z"] == pytest.approx(r["loss"], rel=1e-6)


def test_what_a_step_is_is_told(tmp_path: Path) -> None:
    task = small(tmp_path).task.build()
    epoch = len(task.windows("train", 0)) / 8
    assert (
        f"step: 8 rows of 16 tokens = 128 tokens; an epoch is {epoch:,.0f} steps"
        in task.introduction()
    )


def test_compressors_are_asked_for_their_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window of 8 MB, as by default, would do for a text this small; not for a larger one."""
    presets = []

    def compress(data: bytes, **options: Any) -> bytes:
        presets.append(options["preset"])
        return data

    monkeypatch.setattr("addnorm.tasks.language.lzma.compress", compress)
    found = small(tmp_path).task.build().beside()
    assert presets == [9]
    assert found["compressed"]["xz -9"] == 8.0


@pytest.mark.parametrize("tokenizer", ["characters", "bpe:270"])
def test_evaluation_by_the_definition(tmp_path: Path, tokenizer: str) -> None:
    """Every token but the first of the split is predicted once, in windows side by side; a byte is
    one of the text's, of which a token has more or, in another alphabet, a character has two."""
    text = "".join(f"пёс {i} bit a cat. " for i in range(200))
    config = small(tmp_path, tokenizer=tokenizer, split="tail")
    (tmp_path / "text.txt").write_text(text)
    task = config.task.build()
    model = task.model().eval()
    tokens = task.tokens["val"]
    ids = torch.from_numpy(tokens.read(0, len(tokens)).astype("int64"))
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 16):
            window = ids[start : start + 17]
            nats += float(F.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="sum"))
    held_out = task.tokenizer.decode([i for i in ids.tolist() if i != task.tokenizer.eos_id])
    assert text.endswith(held_out)
    assert len(held_out) == pytest.approx(len(text) / 10, abs=1)
    size = len(held_out.encode())
    assert abs(size - len(ids)) > 0.1 * size  # else one could pass for the other
    found = task.evaluate(model)
    assert found["val_loss"] == pytest.approx(nats / (len(ids) - 1), rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-6)


def test_rows_of_all_processes_are_the_rows(tmp_path: Path) -> None:
    task = small(tmp_path).task.build()
    alone = task.batch("train", 0, 3, 0, 1)["ids"]
    for world in (2, 3):
        parts = [task.batch("train", 0, 3, rank, world)["ids"] for rank in range(world)]
        for rank, part in enumerate(parts):
            assert torch.equal(part, alone[rank::world])


def test_nothing_is_read_that_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process reads its own rows, and a look at the stream reads one: the step's first."""
    task = small(tmp_path).task.build()
    trainer = Trainer(task, loop(), ALONE)
    reads: list[int] = []
    read_ = Tokens.read

    def reading(self: Tokens, start: int, stop: int) -> Any:
        reads.append(start)
        return read_(self, start, stop)

    monkeypatch.setattr(Tokens, "read", reading)
    whole = task.batch("train", 0, 0, 0, 1)["ids"]
    assert len(reads) == len(whole) == 8
    reads.clear()
    assert [len(task.batch("train", 0, 0, rank, 3)["ids"]) for rank in (0, 2, 9)] == [3, 2, 0]
    assert len(reads) == 5
    reads.clear()
    stream_rms(Course(trainer, InMemory()))
    assert len(reads) == 1
    assert torch.equal(task.row("train", 0, 0)["ids"], whole[:1])


def test_z_loss(tmp_path: Path) -> None:
    task = small(tmp_path, z_loss=0.01).task.build()
    model = task.model()
    batch = task.batch("train", 0, 0, 0, 1)
    total, count, parts = task.loss(model, batch)
    logits = model(batch["ids"][:, :-1])
    want = F.cross_entropy(logits.flatten(0, 1), batch["ids"][:, 1:].flatten(), reduction="sum")
    z = 0.01 * logits.logsumexp(-1).square().sum()
    torch.testing.assert_close(total, want + z)
    torch.testing.assert_close(parts["nll"], want)
    assert int(count) == batch["ids"][:, 1:].numel()


def test_masked_documents_see_nothing_of_one_another(tmp_path: Path) -> None:
    """The loss of a row is that of its documents, each computed for itself at its own place."""
    config = small(tmp_path, document_mask=True, tokenizer="bytes")
    (tmp_path / "text.txt").write_text("\n<|endoftext|>\n".join(f"doc {i}." * 3 for i in range(90)))
    config = config.changed({"model.position": "rope"})  # which knows distances only
    task = config.task.build()
    model = stir(task.model()).double().eval()
    batch = task.batch("train", 0, 0, 0, 1)
    assert batch["documents"].shape == batch["ids"].shape
    assert any(len(row.unique()) > 1 for row in batch["documents"])
    want = 0.0
    with torch.no_grad():
        for ids, documents in zip(batch["ids"], batch["documents"], strict=True):
            for number in documents[:-1].unique():
                part = documents[:-1] == number
                logits = model(ids[:-1][part][None])[0].float()
                want += float(F.cross_entropy(logits, ids[1:][part], reduction="sum"))
        total, _, _ = task.loss(model, batch)
        plain, _, _ = task.loss(model, {"ids": batch["ids"]})
    assert float(total) == pytest.approx(want, rel=1e-5)
    assert float(plain) != pytest.approx(want, rel=1e-3)

    # held-out windows, side by side: a document that two of them share begins anew in the second
    tokens, losses = task.tokens["val"], []
    ids = torch.from_numpy(tokens.read(0, len(tokens)).astype("int64"))
    edges = sorted({*tokens.starts.tolist(), *range(0, len(ids) - 1, 16), len(ids) - 1})
    with torch.no_grad():
        for first, end in pairwise(edges):
            logits = model(ids[None, first:end])[0].float()
            losses.append(F.cross_entropy(logits, ids[first + 1 : end + 1], reduction="sum"))
        plain = replace(task.settings, document_mask=False)
        unmasked = LanguageTask(plain, task.writer, task.tokenizer, task.data).evaluate(model)
    nats = float(torch.stack(losses).sum()) / (len(ids) - 1)
    assert len(edges) > len(ids) / 16 + 3
    assert task.evaluate(model)["val_loss"] == pytest.approx(nats, rel=1e-5)
    assert unmasked["val_loss"] != pytest.approx(nats, rel=1e-3)
    whole = replace(task.settings, glance_tokens=len(ids))
    glance = LanguageTask(whole, task.writer, task.tokenizer, task.data).glance(model)
    assert glance["val_loss"] == pytest.approx(nats, rel=1e-5)


def test_fine_tuning_starts_from_the_weights(tmp_path: Path) -> None:
    first = train(small(tmp_path, steps=5), out=tmp_path / "run", display=quiet())
    start = str(first.folder / "model")
    task = small(tmp_path, init_from=start).task.build()
    model = GPT.from_pretrained(start)
    assert all(
        torch.equal(a, b)
        for a, b in zip(task.model().parameters(), model.parameters(), strict=True)
    )
    run = train(small(tmp_path, init_from=start, steps=5), out=tmp_path / "tuned", display=quiet())
    assert run.finished


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_compilers_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no C++ compiler\nmore")

    monkeypatch.setattr(loop_module.torch, "compile", broken)
    assert loop_module.compiler_failure(CPU) == "no C++ compiler"
    with pytest.raises(
        SettingsError, match="compile=true, but the compiler does not work here: no"
    ):
        Trainer(Toy(), loop(compile="true"), ALONE)


def test_config_of_a_gpt_with_any_scheme(tmp_path: Path) -> None:
    """Designs that care for their weights after each step, too."""
    config = small(tmp_path, **{"model.scheme": "ngpt", "steps": 4})
    assert train(config, out=tmp_path / "run", display=quiet()).finished


def test_a_file_is_no_config(tmp_path: Path) -> None:
    file = tmp_path / "my.txt"
    with pytest.raises(Mendable, match=re.escape(f"addnorm.train(data={str(file)!r})")):
        train(file)
