"""The benchmark of topics in turn: which reviews are of a topic, what each arm is given, what the
figures mean."""

from pathlib import Path
from typing import Any

import pytest

from addnorm.data.labelled import Labelled
from addnorm.training.config import Config
from benchmarks import bert, continual


def test_topics() -> None:
    assert continual.topic_of("这家酒店不错") == "hotels"
    assert continual.topic_of("在酒店看书") is None
    assert continual.topic_of("不错") is None
    assert [continual.order(seed)[0] for seed in (0, 1, 2, 3)] == [*continual.TOPICS, "hotels"]


def test_summary() -> None:
    after = [{"a": 0.9, "b": 0.5}, {"a": 0.7, "b": 0.8}]
    one = continual.summary(["a", "b"], after, apart=False)
    assert one["accuracy"] == pytest.approx(0.75)
    assert one["forgotten"] == pytest.approx(0.2)
    apart = continual.summary(["a", "b"], after, apart=True)
    assert apart["accuracy"] == pytest.approx(0.85)
    assert apart["forgotten"] == 0.0


def test_arms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configs: dict[str, Config] = {}

    def train(config: Config, out: Path, **rest: Any) -> None:
        configs[out.name] = config

    words = [of_topic[0] for of_topic in continual.TOPICS.values()]
    rows = [Labelled(f"{words[i % 3]} {i}", "pos" if i % 2 else "neg") for i in range(60)]
    for side in ("train", "test"):
        bert.write(tmp_path / f"{side}.csv", rows)
    monkeypatch.setattr("benchmarks.trainings.train", train)
    monkeypatch.setattr(continual, "accuracy", lambda model, data: 0.75)
    out = tmp_path / "out"
    command = [str(tmp_path), "--out", str(out), "--seeds", "1", "2", "--tiny", "--kept", "4"]
    assert continual.main(command) == 0
    assert "| EWC | 75.0 ± 0.0 | 0.0 ± 0.0 | no difference |" in capsys.readouterr().out
    last = {arm: configs[f"{arm}-2-1".replace(" ", "-")].to_json() for arm in continual.ARMS}
    begins = {arm: Path(values["init_from"]).parent.name for arm, values in last.items()}
    assert begins == {
        "in turn": "in-turn-1-1",
        "replay": "replay-1-1",
        "EWC": "EWC-1-1",
        "both": "both-1-1",
        "LoRA": "first-1",
    }
    assert [values["earlier.replay"] for values in last.values()] == [0.0, 0.25, 0.0, 0.25, 0.0]
    assert [values["earlier.anchor"] for values in last.values()] == [0.0, 0.0, 1e3, 1e3, 0.0]
    texts = Path(last["replay"]["earlier.data"]).read_text().splitlines()[1:]
    assert len(texts) == 8
    assert not set(texts) & set(Path(last["replay"]["data"]).read_text().splitlines())
    assert configs["at-once-1"].loop.steps == 12
    monkeypatch.setattr("benchmarks.trainings.train", lambda *a, **k: pytest.fail("trained again"))
    assert continual.main(command) == 0
