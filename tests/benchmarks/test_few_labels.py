"""The benchmark of few labels: what each arm is given, what the table says, what is not done
twice."""

import json
from pathlib import Path
from typing import Any

import pytest

from addnorm.data.labelled import Labelled
from addnorm.training.config import Config
from benchmarks import bert, few_labels

ROWS = [Labelled(f"text number {i} of them", "neg" if i % 2 else "pos") for i in range(80)]


def test_table() -> None:
    values = {"plain": [0.7, 0.71, 0.72], "better": [0.8, 0.82, 0.81], "other": [0.7, 0.8, 0.6]}
    lines = few_labels.table(values).splitlines()[2:]
    assert lines == [
        "| plain | 71.0 ± 2.5 |  |  |",
        "| better | 81.0 ± 2.5 | 10.0 ± 2.5 | > |",
        "| other | 70.0 ± 24.8 | -1.0 ± 26.2 | no difference |",
    ]
    assert few_labels.verdict([-0.1, -0.11]) == "<"
    assert few_labels.verdict([0.1]) == "one seed"


def test_arms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configs: dict[str, Config] = {}

    def train(config: Config, out: Path, **rest: Any) -> None:
        configs[out.name] = config
        out.mkdir()
        (out / "run.json").write_text(json.dumps({"elapsed_s": 60.0}))

    for side in ("train", "val"):
        bert.write(tmp_path / f"{side}.csv", ROWS)
    monkeypatch.setattr("benchmarks.trainings.train", train)
    monkeypatch.setattr(few_labels, "accuracy", lambda model, data: 0.75)
    command = [str(tmp_path), "--out", str(tmp_path / "out"), "--labels", "8", "--seeds", "1", "2"]
    command += ["--tiny", "--set", "lr=0.5"]
    assert few_labels.main(command) == 0
    assert "| plain | 75.0 ± 0.0 |  |  |" in capsys.readouterr().out
    assert configs.keys() == {f"scratch-{arm}-{seed}" for arm in few_labels.ARMS for seed in (1, 2)}
    data = [configs[f"scratch-plain-{seed}"].to_json()["data"] for seed in (1, 2)]
    texts = [Path(file).read_text().splitlines() for file in data]
    assert [len(lines) for lines in texts] == [9, 9]  # with the first line
    assert texts[0] != texts[1]
    assert "unlabelled.teacher" not in configs["scratch-plain-1"].to_json()
    teachers = {
        arm: Path(configs[f"scratch-{arm}-2"].to_json()["unlabelled.teacher"]).name
        for arm in few_labels.ARMS[1:]
    }
    assert teachers == {
        "consistency": "",
        "self-training": "scratch-plain-2",
        "both": "scratch-consistency-2",
    }
    assert {config.loop.lr for config in configs.values()} == {0.5}
    monkeypatch.setattr("benchmarks.trainings.train", lambda *a, **k: pytest.fail("trained again"))
    assert few_labels.main(command) == 0
