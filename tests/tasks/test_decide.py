"""The task of acting: it learns and resumes, reaches what it is asked for, and clones."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import addnorm
from addnorm.cli import main
from addnorm.data.sources import DataError
from addnorm.models.decisions import DecisionConfig
from addnorm.settings import SettingsError
from addnorm.tasks.decide import DecideSettings, DecideTask
from addnorm.tasks.overfit import overfit
from addnorm.training.checkpoint import Checkpoints
from addnorm.training.config import Config
from addnorm.training.display import Display
from addnorm.training.loop_settings import LoopSettings
from tests.nets import stir
from tests.training.test_training import same
from tests.worlds import doors_at_random

QUIET = Display(quiet=True)
ENV = "tests.worlds:Doors"


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return doors_at_random(tmp_path_factory.mktemp("doors") / "doors.jsonl")


def config(doors: Path, **changes: Any) -> Config:
    about = DecideSettings(
        data=str(doors),
        dropout=0.0,
        rows_per_step=32,
        episodes=20,
        model=DecisionConfig(states=1, actions=1, context_length=3, dim=16, n_layers=1, n_heads=2),
    )
    loop = LoopSettings(
        steps=200, lr=1e-2, warmup=10, eval_every=100, save_every=60, threads=1, precision="fp32"
    )
    return Config(task=about, loop=loop).changed(changes)


def task_of(doors: Path, **changes: Any) -> DecideTask:
    task = config(doors, **changes).build()
    assert isinstance(task, DecideTask)
    return task


@pytest.mark.parametrize("scheme", ["pre_norm", "post_norm"])
def test_it_reaches_what_it_is_asked_for(doors: Path, tmp_path: Path, scheme: str) -> None:
    """Of one who takes any door it learns to bring as many coins as are wanted; and goes on where
    it stopped."""
    wish = {"env": ENV, "returns": "0,3,6", "dropout": 0.1, "model.scheme": scheme}
    wishes = config(doors, **wish, **{"steps": 300})
    run = addnorm.train(wishes, out=tmp_path / "a", display=QUIET)
    assert run.metrics["reached"] > 5
    loaded = addnorm.load(run.folder)
    how = {"env": ENV, "returns": [0.0, 3.0, 6.0], "temperature": 0.0}
    use = loaded.use()
    outcome = use.evaluate([], use.with_defaults(how), batch_size=8, bar=_bar())
    assert outcome["return_mean"] == pytest.approx([0.0, 3.0, 6.0], abs=0.5)
    assert loaded.predict([{"return_to_go": 6, "states": [0]}]) == [{"action": 2}]
    late = {"return_to_go": 0, "states": [0, 1], "actions": [2], "rewards": [2]}
    assert loaded.predict([late]) == [{"action": 0}]
    page = (run.folder / "report.html").read_text()
    assert "What it reaches, and what was asked" in page
    assert "asked 6: reached" in page
    assert "What surprises it most" in page
    if scheme == "pre_norm":
        addnorm.train(wishes, out=tmp_path / "b", until=80, display=QUIET)
        addnorm.train(wishes, out=tmp_path / "b", resume=True, display=QUIET)
        a, b = (Checkpoints(tmp_path / n / "checkpoints").load() for n in "ab")
        assert same(a.tensors, b.tensors)


def _bar() -> Any:
    from addnorm.progress import ProgressBar

    return ProgressBar(hidden=True)


def test_without_returns_it_clones(doors: Path, tmp_path: Path) -> None:
    """All that is done, or what the best tenth does."""
    clone = {"model.returns": "false", "env": ENV, "episodes": 60, "steps": 120}
    run = addnorm.train(config(doors, **clone), out=tmp_path / "all", display=QUIET)
    assert run.metrics["reached"] == pytest.approx(3.0, abs=0.9)  # 60 sums, of a deviation of 1.4
    assert run.metrics["val_loss"] > np.log(3) - 0.05  # nothing tells which door comes
    assert "What it reaches" not in (run.folder / "report.html").read_text()
    best = config(doors, **clone, best_share=0.1)
    task = best.build()
    assert isinstance(task, DecideTask)
    assert min(episode.total for episode in task.episodes["train"]) >= 5
    assert any("the best 0.1 of them" in line for line in task.introduction())
    assert addnorm.train(best, out=tmp_path / "best", display=QUIET).metrics["reached"] > 4.5


def test_a_step_by_hand(doors: Path) -> None:
    """The loss of a batch from the definition, and the rows of any number of processes."""
    task = task_of(doors)
    torch.manual_seed(0)
    model = task.model().eval()
    batch = task.batch("train", 1, 2, 0, 1)
    total, count, parts = task.loss(model, batch)
    logits = model(batch["returns"], batch["states"], batch["actions"], batch["times"])
    nll = -F.log_softmax(logits, -1).gather(-1, batch["actions"][..., None])[..., 0]
    assert total.item() == pytest.approx(float((nll * batch["valid"]).sum().detach()), rel=1e-5)
    assert count == batch["valid"].sum()
    right = (logits.argmax(-1) == batch["actions"]) & batch["valid"]
    assert parts["accuracy"] == right.sum()
    shares = [task.batch("train", 1, 2, rank, 3) for rank in range(3)]
    for name, rows in batch.items():
        joined = torch.empty_like(rows)
        for rank, share in enumerate(shares):
            joined[rank::3] = share[name]
        assert torch.equal(joined, rows)
    assert task.row("train", 1, 2)["states"].shape == (1, 3)
    other = {**batch, "actions": batch["actions"].where(batch["valid"], torch.tensor(1))}
    assert task.loss(model, other)[0].item() == pytest.approx(total.item(), rel=1e-6)


def test_vectors(tmp_path: Path) -> None:
    """The action is the state's first number, in other units: it is learned, and the loss is in
    units of the spread."""
    rng, lines = np.random.default_rng(0), []
    for _ in range(60):
        states = rng.normal(size=(4, 2)) * [100, 1e-3] + [500, 0]
        actions = (states[:, :1] - 500) * 3
        lines.append(
            {"states": states.tolist(), "actions": actions.tolist(), "rewards": [1, 0, 0, 1]}
        )
    file = tmp_path / "slope.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changes = {"steps": 120, "env": "tests.worlds:Slope", "episodes": 1, "returns": "0"}
    task = task_of(file)
    assert task.config.state_kind == task.config.action_kind == "vector"
    assert task.spread is not None
    assert task.spread.item() == pytest.approx(300, rel=0.2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("addnorm.uses.decisions.MOST_STEPS", 3)
        run = addnorm.train(config(file, **changes), out=tmp_path / "run", display=QUIET)
    assert run.metrics["val_loss"] < 0.05
    assert "accuracy" not in run.metrics
    [answer] = addnorm.load(run.folder).predict([{"return_to_go": 2, "states": [[550, 0]]}])
    assert answer["action"][0] == pytest.approx(150, abs=60)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ""}, "data is not set: a .jsonl file with an episode a line"),
        ({"states": 2}, "states=2: in .* there are 3"),
        ({"actions": 0}, "actions must be at least 1, got 0"),
        ({"best_share": 0.0}, "best_share must be above 0 and at most 1, got 0"),
        ({"val_fraction": 1.0}, "val_fraction must be between 0 and 1, both excluded"),
        ({"returns": "1,2"}, "returns has no effect without env"),
        ({"env": ENV, "returns": "1,x"}, "returns must be numbers, got 1, x"),
        ({"env": ENV, "returns": "nan"}, "returns must be finite"),
        ({"env": ENV, "returns": "1", "model.returns": False}, "returns has no effect with model"),
        ({"env": "no.such:x"}, "there is no module no.such"),
        ({"model.states": 3}, "unknown setting 'model.states'"),
        ({"val_fraction": 1e-9}, "has too few episodes: of 300, .* none is left to hold out"),
    ],
)
def test_what_makes_no_sense_is_refused(doors: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((SettingsError, DataError, ValueError), match=message):
        config(doors, **changes).build()


def test_episodes_held_out_in_a_file_of_their_own(doors: Path, tmp_path: Path) -> None:
    file = tmp_path / "val.jsonl"
    file.write_text(
        '{"states": [5], "actions": [1], "rewards": [0]}\n' + doors.read_text().splitlines()[0]
    )
    task = task_of(doors, val_data=str(file))
    assert len(task.episodes["val"]) == 2
    assert task.config.states == 6
    assert "1 episode of " in task.introduction()[2]
    file.write_text('{"states": [[5]], "actions": [1], "rewards": [0]}\n')
    with pytest.raises(DataError, match=r"states are of one kind in .* and of another in"):
        task_of(doors, val_data=str(file))


def test_more_states_than_the_data_shows(doors: Path) -> None:
    task = task_of(doors, states=9)
    assert (task.config.states, task.config.actions) == (9, 3)
    assert task.config.quartiles[0] == 0.0
    assert task.config.quartiles[-1] == 6.0
    assert task.config.longest == 3


def test_rows_are_learned_by_heart(doors: Path) -> None:
    outcome = overfit(config(doors, dropout=0.2, env=ENV), 8)
    assert str(outcome).startswith("overfit: PASS")


@pytest.mark.slow
def test_a_killed_run_goes_on(doors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--recipe", "decide", "--data", str(doors), "--prove-resume", "threads=1"]
    assert main([*words, "model.dim=16", "device=cpu"]) == 0
    assert "PASS" in capsys.readouterr().out


def test_what_surprises_it(tmp_path: Path) -> None:
    """The first line of the table, from every held-out action by hand; each kind once."""
    rng, lines = np.random.default_rng(1), []
    for i in range(30):
        actions = rng.integers(3, size=4).tolist()
        lines.append({"states": [i, 40 + i, i, i], "actions": actions, "rewards": [0, 1, 0, 2]})
    file = tmp_path / "episodes.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *lines]))
    task = task_of(file, val_fraction=0.4)
    torch.manual_seed(0)
    model = stir(task.model(), 0).eval()
    losses = {}
    for episode in task.episodes["val"]:
        to_go, times = torch.tensor([[3.0, 3, 2, 2]]), torch.arange(4)[None]
        states, actions = (torch.from_numpy(a)[None] for a in episode[:2])
        for part in (slice(0, 3), slice(3, 4)):
            inputs = (t[:, part] for t in (to_go, states, actions, times))
            with torch.no_grad():
                log_p = model(*inputs)[0].log_softmax(-1)
            for row, i in zip(log_p, range(4)[part], strict=True):
                words = f"{states[0, i]}, step {i + 1}", f"{to_go[0, i]:g}", str(int(actions[0, i]))
                losses[*words, str(int(row.argmax()))] = -float(row[actions[0, i]])
    task.evaluate(model)
    [table] = task.pictures()
    worst = sorted(losses.items(), key=lambda pair: -pair[1])[:5]
    assert [tuple(row[:4]) for row in table["rows"]] == [words for words, _ in worst]
    assert [row[4] for row in table["rows"]] == pytest.approx([v for _, v in worst], abs=1e-3)
