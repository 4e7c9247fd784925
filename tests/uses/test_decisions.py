"""What a model that acts is told, what it answers, and what is reached by it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import addnorm
from addnorm.cli import main
from addnorm.data.episodes import read_episodes, to_go
from addnorm.errors import Mendable
from addnorm.models.decisions import DecisionConfig, DecisionModel
from addnorm.progress import ProgressBar
from addnorm.uses import environments
from addnorm.uses.decisions import Decisions
from addnorm.uses.use import Unusable
from tests.nets import stir
from tests.worlds import Doors, Slope, doors_at_random

TINY: dict[str, Any] = {"dim": 12, "n_layers": 1, "n_heads": 2, "context_length": 3, "longest": 9}
PAST: dict[str, Any] = {"states": [0, 3, 1, 2], "actions": [1, 0, 1], "rewards": [2, 0, 0.5]}


def model(seed: int = 0, **changes: Any) -> DecisionModel:
    torch.manual_seed(seed)
    config = DecisionConfig(
        **{"states": 4, "actions": 3, "quartiles": (0.0, 6.0), **TINY, **changes}
    )
    return stir(DecisionModel(config), seed).eval()


def vectors(**changes: Any) -> DecisionModel:
    kinds = {"state_kind": "vector", "action_kind": "vector", "states": 2, "actions": 1}
    return model(**{**kinds, **changes})


def evaluation(use: Decisions, batch_size: int = 4, **options: Any) -> dict[str, Any]:
    with ProgressBar(hidden=True) as bar:
        how = use.with_defaults(options)
        return use.evaluate([], how, batch_size=batch_size, bar=bar)


def test_what_is_known_of_the_past() -> None:
    """The last steps that there is room for, with what was still to come at each of them."""
    use = Decisions(model())
    one = use.question({"return_to_go": 4, **PAST})
    assert one.to_go == [4.5, 4.5, 4]  # what is wanted now, and what came since
    assert one.states == [3, 1, 2]
    assert one.actions == [0, 1]
    assert one.time == 3
    listed = use.question({"return_to_go": [6.5, 4.5, 4.5, 4], **PAST})
    assert listed == one
    assert use.question(json.dumps({"return_to_go": 4, **PAST})) == one
    begin = use.question({"return_to_go": 1, "states": [2]})
    assert (begin.to_go, begin.states, begin.actions, begin.time) == ([1], [2], [], 0)
    clone = Decisions(model(returns=False)).question(PAST)
    assert clone.to_go == [0.0] * 3


def test_the_answer_is_what_the_model_says() -> None:
    """By hand: the window's last state, whatever else is in the batch."""
    net = model()
    items = [{"return_to_go": 4, **PAST}, {"return_to_go": 1, "states": [2]}]
    with torch.no_grad():
        returns, states = torch.tensor([[4.5, 4.5, 4]]), torch.tensor([[3, 1, 2]])
        actions, times = torch.tensor([[0, 1, 0]]), torch.tensor([[1, 2, 3]])
        logits = net(returns, states, actions, times)[0, -1]
    use = Decisions(net)
    answers = use.predict(items)
    assert answers[0] == {"action": int(logits.argmax())}
    assert use.predict(items[1:]) == answers[1:]
    assert use.line(answers[0]) == str(int(logits.argmax()))
    draws = [use.predict(items[:1], temperature=2.0, seed=i)[0]["action"] for i in range(400)]
    share = np.bincount(draws, minlength=3) / 400
    # three standard deviations of 400 draws are at most 0.075
    assert share == pytest.approx(torch.softmax(logits / 2, -1).numpy(), abs=0.075)
    many = [{**items[1], "return_to_go": i} for i in range(20)]
    both = [use.predict(many, temperature=2.0, seed=1, batch_size=n) for n in (3, 20)]
    assert both[0] == both[1]
    assert len({answer["action"] for answer in both[0]}) > 1


def test_actions_of_numbers_stay_where_the_data_was() -> None:
    net = vectors()
    net.actions.low.fill_(-0.001)
    net.actions.high.fill_(0.001)
    entry = {"return_to_go": 0, "states": [[0.5, 1], [2, 3]], "actions": [[7]], "rewards": [1]}
    [answer] = Decisions(net).predict([entry])
    assert abs(answer["action"][0]) == pytest.approx(0.001)
    with pytest.raises(Mendable, match="temperature has no effect"):
        Decisions(net).predict([entry], temperature=1.0)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("left", "a text alone says nothing of states: give objects such as"),
        ('{"states": [', "not valid JSON"),
        ({"return_to_go": 1}, "'states' is missing"),
        ({"return_to_go": 1, "states": []}, "has 0 states, 0 actions, 0 rewards"),
        ({"states": [0]}, "has no return_to_go; one looks like"),
        ({**PAST, "return_to_go": "much"}, r"return_to_go\[0\] is the text 'much'"),
        ({**PAST, "return_to_go": [1, 2]}, "return_to_go has 2 numbers, and there are 4 states"),
        ({**PAST, "return_to_go": math.nan}, "expected a finite number"),
        ({**PAST, "return_to_go": 1, "states": [0, 1, 2]}, "3 states, 3 actions, 3 rewards: there"),
        ({"return_to_go": 1, "states": [4]}, r"states\[0\] is 4, and the model knows those from"),
        ({"return_to_go": 1, "states": [[1.0]]}, "states must be whole numbers"),
        ({"return_to_go": 1, "states": [-1]}, r"states\[0\] is the number -1"),
    ],
)
def test_what_cannot_be_asked(entry: Any, message: str) -> None:
    use = Decisions(model())
    with pytest.raises(Unusable, match=message):
        use.question(entry)
    right, wrong = use.predict([{"return_to_go": 1, "states": [0]}, entry])
    assert set(right) == {"action"}
    assert wrong["input"] == entry


def test_what_happens_in_an_episode() -> None:
    """Each state, return and time that the model is told, by a model that writes them down."""
    net = model()
    diary = []

    class Diary:
        config, actions = net.config, net.actions
        parameters, modules = net.parameters, net.modules

        def __call__(self, returns: Any, observations: Any, actions: Any, times: Any) -> Any:
            diary.append([t.tolist() for t in (returns, observations, actions, times)])
            wish = torch.full((*observations.shape, 3), -9.0)
            wish[..., 2] = 9.0  # always door 2
            return wish

    outcome = evaluation(Decisions(Diary()), env="tests.worlds:Doors", returns=[5.0], episodes=1)
    assert outcome["return_mean"] == [6.0]
    assert outcome["steps_mean"] == [3.0]
    assert diary == [
        [[[5.0]], [[0]], [[0]], [[0]]],
        [[[5.0, 3.0]], [[0, 1]], [[2, 0]], [[0, 1]]],
        [[[5.0, 3.0, 1.0]], [[0, 1, 2]], [[2, 2, 0]], [[0, 1, 2]]],
    ]


def test_an_evaluation_does_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Doors, "steps", 5)  # more than the window
    monkeypatch.setattr(Doors, "actions", 3)
    use = Decisions(model(states=6))
    wish = {"env": "tests.worlds:Doors", "episodes": 3, "temperature": 1.0}
    every = [evaluation(use, size, **wish) for size in (1, 4, 100)]
    assert every[0] == every[1] == every[2]
    assert every[0]["return_asked"] == [0.0, 6.0]  # what it has learned from
    assert every[0]["return_std"][0] > 0
    assert evaluation(use, seed=1, **wish) != every[0]
    short = evaluation(use, max_steps=2, **wish)
    assert short["given_up"] == 6
    assert short["steps_mean"] == [2.0, 2.0]
    clone = evaluation(Decisions(model(states=6, returns=False)), **wish)
    assert clone["return_asked"] == [None]
    assert len(clone["return_mean"]) == 1


HERE = "tests.uses.test_decisions"
ONLY = Doors()


def only() -> Doors:
    """The same each time."""
    return ONLY


def test_one_environment_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is asked for one episode after the other, and closed at the end."""
    closed = []
    monkeypatch.setattr(Doors, "close", lambda self: closed.append(self), raising=False)
    use = Decisions(model())
    wish = {"episodes": 4, "temperature": 1.0}
    one = evaluation(use, env=f"{HERE}:only", **wish)
    assert closed == [ONLY]
    several = evaluation(use, env="tests.worlds:Doors", **wish)
    assert {**one, "env": ""} == {**several, "env": ""}
    assert len(closed) == 5


def test_vectors_in_a_world_of_numbers() -> None:
    outcome = evaluation(
        Decisions(vectors()), env="tests.worlds:Slope", episodes=2, max_steps=3, returns=[-1]
    )
    assert outcome["given_up"] == 2
    assert outcome["return_mean"][0] < 0
    use = Decisions(vectors(actions=2))
    with pytest.raises(Mendable, match="an action of the environment has 1 numbers"):
        evaluation(use, env="tests.worlds:Slope", episodes=1)
    with pytest.raises(Mendable, match="has 2 numbers, and the model knows 3"):
        evaluation(Decisions(vectors(states=3)), env="tests.worlds:Slope", episodes=1)
    with pytest.raises(Mendable, match="several numbers, and the model knows whole numbers"):
        evaluation(Decisions(model()), env="tests.worlds:Slope", episodes=1)


class Old(Doors):
    """As it was before gymnasium."""

    def reset(self, *, seed: int | None = None) -> Any:
        return 0


class Half(Doors):
    """Whose steps are as they were."""

    def step(self, action: Any) -> Any:
        return 0, 0.0, True, {}


class Sudden(Doors):
    """Which breaks."""

    def step(self, action: Any) -> Any:
        raise KeyError("door")


class Endless(Doors):
    """Whose rewards are no numbers."""

    def step(self, action: Any) -> Any:
        return 0, math.nan, False, False, {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env": ""}, "env is not set"),
        ({"env": f"{HERE}:Old"}, r"reset\(\) of the environment must return \(state, info\)"),
        ({"env": f"{HERE}:Half"}, r"step\(\) of the environment must return \(state, reward, term"),
        ({"env": f"{HERE}:Endless"}, "the environment gives a reward of nan"),
        ({"env": f"{HERE}:model"}, "no environment, but DecisionModel: it has no reset"),
        ({"env": f"{HERE}:HERE"}, "is no function that makes an environment"),
        ({"env": f"{HERE}:Nothing"}, "there is no 'Nothing' in"),
        ({"env": "no.such.module:x"}, "there is no module no.such.module, neither here nor"),
        ({"returns": [1.0]}, "returns has no effect without env"),
        ({"env": "x:y", "returns": []}, "returns must be numbers"),
        ({"env": "x:y", "returns": [math.inf]}, "returns must be numbers, got"),
        ({"env": "os:system"}, "os:system makes no environment: TypeError"),
        ({"env": f"{HERE}:Sudden"}, "the environment fails at the action [012]: KeyError"),
        ({"episodes": 0}, "episodes must be a whole number of at least 1, got 0"),
        ({"temperature": -1}, "temperature must be a number from 0 on, got -1"),
        ({"beams": 1}, "unknown option 'beams'"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Mendable, match=message):
        evaluation(Decisions(model()), **options)


def test_a_state_that_was_never_seen() -> None:
    with pytest.raises(Mendable, match=r"in state 1, and the model knows those from 0 to 0: train"):
        evaluation(Decisions(model(states=1)), env="tests.worlds:Doors", episodes=1)
    with pytest.raises(Mendable, match="returns has no effect: this model was trained without"):
        evaluation(Decisions(model(returns=False)), env="tests.worlds:Doors", returns=[1.0])
    with pytest.raises(Mendable, match="env has no effect here"):
        Decisions(model()).predict([{"return_to_go": 1, "states": [0]}], env="x")


def test_how_well_actions_are_foretold(tmp_path: Path) -> None:
    """By hand, one window at a time."""
    file, net = doors_at_random(tmp_path / "doors.jsonl", 5), model(context_length=2)
    total = right = 0.0
    for row in read_episodes(str(file)).rows:
        returns, states, actions = (
            torch.from_numpy(a.copy())[None] for a in (to_go(row.rewards), row.states, row.actions)
        )
        for part in (slice(0, 2), slice(2, 3)):
            with torch.no_grad():
                times = torch.arange(3)[None, part]
                output = net(returns[:, part].float(), states[:, part], actions[:, part], times)
            log_p = output.log_softmax(-1).gather(-1, actions[:, part, None])
            total -= float(log_p.sum())
            right += float((output.argmax(-1) == actions[:, part]).sum())
    with ProgressBar(hidden=True) as bar:
        use = Decisions(net)
        figures = use.evaluate([str(file)], use.with_defaults({}), batch_size=3, bar=bar)
    assert figures["loss"] == pytest.approx(total / 15, abs=1e-5)
    assert figures["accuracy"] == pytest.approx(right / 15)
    assert (figures["actions"], figures["episodes"]) == (15, 5)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    addnorm.save(model(), run)
    (tmp_path / "asked.jsonl").write_text('{"return_to_go": 1, "states": [0]}\n{"states": [9]}\n')
    words = ["predict", run, str(tmp_path / "asked.jsonl"), '{"return_to_go": 1, "states": [1]}']
    assert main([*words, "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [set(line) for line in lines] == [{"action"}, {"input", "error"}, {"action"}]
    assert main([*words, "--temperature", "1", "--seed", "3"]) == 1
    capsys.readouterr()
    acting = ["eval", run, "--env", "tests.worlds:Doors", "--episodes", "2"]
    assert main([*acting, "--returns=-1,4.5", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["return_asked"] == [-1.0, 4.5]
    assert len(figures["return_mean"]) == len(figures["return_std"]) == 2
    assert main(acting) == 0
    assert "return_asked 0.0000 6.0000\n" in capsys.readouterr().out
    for more, message in (
        (["--returns", "a"], "--returns must be numbers with commas between, got 'a'"),
        (["--beams", "2"], "--beams has no effect"),
        ([str(tmp_path / "asked.jsonl")], "env stands in the place of data"),
    ):
        assert main([*acting, *more]) == 2
        assert message in capsys.readouterr().err
    assert main(["eval", run, "--env", "NoSuch-v0"]) == 2
    assert "NoSuch" in capsys.readouterr().err


def test_gymnasium(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "gymnasium", None)
        with pytest.raises(Mendable, match=r"needs gymnasium .*pip install 'addnorm\[decisions\]'"):
            environments.maker("Taxi-v3")
    pytest.importorskip("gymnasium")
    net = model(states=64, actions=4)
    outcome = evaluation(Decisions(net), env="FrozenLake8x8-v1", episodes=2, max_steps=5)
    assert outcome["return_asked"] == [0.0, 6.0]
    with pytest.raises(Mendable, match="gymnasium cannot make the environment No-v0: "):
        environments.maker("No-v0")()
    assert isinstance(environments.maker("tests.worlds:Slope")(), Slope)
