"""The command ``addnorm train``, from its arguments to its folder, and what follows from it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from addnorm.cli import main
from addnorm.cli.train import Options
from addnorm.settings import help_texts
from addnorm.tasks.recipes import RECIPES
from addnorm.training.config import Config

TEXT = "the quick brown fox jumps over the lazy dog, and back again. " * 60
SMALL = [
    "tokens_per_step=64",
    "model.dim=16",
    "model.n_layers=1",
    "model.n_heads=2",
    "model.context_length=16",
    "samples=1",
    "threads=1",
    "precision=fp32",
]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text(TEXT)
    words = ["--data", str(tmp_path / "text.txt"), "--recipe", "char_cpu", *SMALL]
    return ["train", *words, f"cache={tmp_path / 'cache'}"]


@pytest.fixture(autouse=True)
def _threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_from_text_to_text(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train, list, go on for longer, generate, evaluate: as a user does it."""
    out = tmp_path / "runs" / "first"
    words = [*arguments, "--out", str(out), "steps=6", "eval_every=3", "save_every=2"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "1 documents" in told
    assert "step      6  val_loss" in told
    assert "finished 6 steps" in told
    assert f'Write with it: addnorm generate {out} "Once upon a time"\n' in told
    assert "bits per byte on held-out text" in told
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all({"step", "tokens", "elapsed_s"} <= line.keys() for line in lines)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "val_loss" in line] == [3, 6]
    assert "<html" in (out / "report.html").read_text()

    assert main(words) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main(["train", "--resume", str(out), "steps=8"]) == 0
    assert "resumed at step 6 of 8" in capsys.readouterr().out

    assert main(["train", "--list", "--out", str(out)]) == 0
    row = capsys.readouterr().out
    assert str(out) in row
    assert "finished    step       8" in row
    assert main(["generate", str(out), "the", "--max-new-tokens", "5", "--seed", "1"]) == 0
    assert capsys.readouterr().out.startswith("the")
    assert main(["eval", str(out), str(tmp_path / "text.txt")]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert main([*words, "--overwrite", "steps=2"]) == 0
    assert "finished 2 steps" in capsys.readouterr().out


def test_settings_from_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Recipe, file, --data and words, in this order; what is printed can be read again."""
    file = tmp_path / "mine.toml"
    file.write_text('steps = 7\nlr = 1e-4\ndata = "file.txt"\n[model]\nscheme = "deepnorm"\n')
    words = ["train", "--recipe", "char_cpu", "--config", str(file), "--data", "d.txt", "lr=0.5"]
    assert main([*words, "--print-config"]) == 0
    printed = tmp_path / "printed.toml"
    printed.write_text(capsys.readouterr().out)
    assert main(["train", "--config", str(printed), "--print-config"]) == 0
    assert capsys.readouterr().out == printed.read_text()
    want = RECIPES["char_cpu"]().changed(
        {"steps": 7, "lr": 0.5, "data": "d.txt", "model.scheme": "deepnorm"}
    )
    assert want.to_toml() == printed.read_text()
    assert main(["train", "--recipe", "classify_text", "--print-config"]) == 0
    printed.write_text(capsys.readouterr().out)
    assert main(["train", "--config", str(printed), "--print-config"]) == 0
    words = capsys.readouterr().out
    assert 'task = "classify"' in words
    for line in words.splitlines():  # each says what it is, in the tables too
        assert not line or line.startswith(("[", "# ")) or "  # " in line or "task" in line, line
    assert "# Texts without labels, by which few labels go further.\n[unlabelled]" in words
    assert "``" not in words
    assert isinstance(want, Config)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "char_gpu"], "unknown recipe 'char_gpu'; did you mean char_cpu?"),
        (["--data", "no/such.txt"], "no/such.txt"),
        (["stepps=4"], "unknown setting 'stepps'; did you mean steps"),
        (["steps"], "'steps' is not key=value"),
        (["steps=few"], "steps must be a whole number, got 'few'"),
        (["model.n_heads=7"], "model.n_heads=7 does not divide model.dim="),
        (["tokenizer=bpe:3"], "say how many tokens, at least 257"),
        (["tokenizer=nowhere/at/all"], "is not bytes, characters, bpe:SIZE, wordpiece:SIZE or"),
        (["--resume", "nowhere"], "is not the folder of a run"),
        (["--resume", "x", "--recipe", "char_cpu"], "leave out --recipe"),
        (["--config", "no.toml"], "cannot read no.toml"),
        (["init_from=nowhere/at/all"], "nowhere/at/all"),
        (["model.context_length=100000"], "fewer than a window"),
        (["data=no/such.txt"], "contradict each other: leave out one of them"),
        (["muon_lr=0.1", "optimizer=adamw"], "muon_lr=0.1 has no effect with optimizer=adamw"),
        (["sinks=tensorbord"], "unknown sink 'tensorbord'; did you mean tensorboard?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_message(
    arguments: list[str],
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = arguments
    if words[0] in ("--resume", "--recipe", "--data"):
        given = ["train", f"cache={tmp_path / 'cache'}"] if words[0] != "--data" else arguments
    if words[0] == "--resume":
        given = ["train"]
    assert (
        main([*given, *words, *([] if "--resume" in words else ["--out", str(tmp_path / "o")])])
        == 2
    )
    told = capsys.readouterr()
    assert told.err.startswith("addnorm: ")
    assert message in told.err
    assert "Traceback" not in told.err


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, on a text in which Unicode would see the ends of many lines."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "text.txt").write_text("\u0085 to be \u2028 or not. " * 300, encoding="utf-8")
    words = [*SMALL, "steps=4", f"data={folder / 'text.txt'}", f"cache={folder / 'cache'}"]
    assert main(["train", *words, "tokenizer=bytes", "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture
def run(first: Path, tmp_path: Path) -> Path:
    return shutil.copytree(first / "run", tmp_path / "runs" / "run")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--overwrite", "steps=6"], r"--resume continues .*--overwrite would replace it"),
        (["--out", "elsewhere", "steps=6"], "leave out --out elsewhere"),
        (["steps=2"], r"steps=2 leaves nothing to do: .* is at step 4 of 4\. Say steps=N with N"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_resume_cannot_be_asked_for(
    run: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    assert main(["train", "--resume", str(run), *words]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert {k: v for k, v in contents(run).items() if k.name != ".lock"} == {
        k: v for k, v in before.items() if k.name != ".lock"
    }


def test_a_finished_run_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(run), "--out", str(run)]) == 0
    told = capsys.readouterr().out
    assert "is finished: all of its 4 steps are done. steps=N" in told
    assert "gzip" in told  # what was compared at the end is still known


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"step": 4', "[" * 10**5, '{"best": "x"}'])
def test_a_run_json_that_is_none_of_ours(
    run: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Is told, and does not keep the runs beside it from being listed."""
    other = shutil.copytree(run, run.with_name("other"))
    (run / "run.json").write_text(text)
    assert main(["train", "--resume", str(run)]) == 2
    assert f"{run} is not the folder of a run: " in capsys.readouterr().err
    assert main(["train", "--list", "--out", str(run)]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(str(other))
    assert told.err.startswith(f"left out: {run} is not the folder of a run")
    (other / "run.json").unlink()
    assert main(["train", "--list", "--out", str(run)]) == 2
    assert "no runs in" in capsys.readouterr().err


def test_a_run_of_a_task_in_python_is_gone_on_with_there(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its settings are the loop's alone: the command would train something else."""
    state = json.loads((run / "run.json").read_text())
    del state["config"]["task"]
    (run / "run.json").write_text(json.dumps(state))
    assert main(["train", "--resume", str(run)]) == 2
    assert "is a run of a task written in Python" in capsys.readouterr().err


def test_a_project_is_not_replaced(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("checkpoints/mine.pt", "model/my_code.py", "wandb/mine"):
        (tmp_path / "project" / name).parent.mkdir(parents=True)
        (tmp_path / "project" / name).touch()
    before = contents(tmp_path / "project")
    for more in ([], ["--overwrite"]):
        assert main([*arguments, "--out", str(tmp_path / "project"), *more]) == 2
        told = capsys.readouterr().err
        assert "no run of addnorm's" in told
        assert f"such as --out {tmp_path / 'project' / 'run'}" in told
    assert contents(tmp_path / "project") == before


def test_numbers_that_break_end_with_status_1(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    assert main([*arguments, "--out", out, "lr=1e30", "clip=0", "steps=30", "warmup=0"]) == 1
    told = capsys.readouterr().err
    assert "are not both finite; " in told
    assert json.loads((tmp_path / "run" / "run.json").read_text())["failure"]


def test_a_bug_of_ours_is_told_and_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    def bug(self: Config) -> None:
        raise ZeroDivisionError("never thought of")

    monkeypatch.setattr(Config, "to_toml", bug)
    assert main([*arguments, "--print-config"]) == 70
    told = capsys.readouterr().err
    assert "this is a bug in addnorm: ZeroDivisionError: never thought of" in told
    log = Path(next(w for w in told.split() if w.endswith(".txt;")).rstrip(";"))
    assert "Traceback" in log.read_text()
    log.unlink()


def test_ctrl_c(arguments: list[str], tmp_path: Path) -> None:
    """In a process of its own: it saves, says how to go on, ends as interrupted programs do."""
    out = tmp_path / "run"
    words = [*arguments, "--out", str(out), "steps=100000", "eval_every=0", "save_every=0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "addnorm", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = out / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size > 2000):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"To continue: addnorm train --resume {out}" in told
    step = json.loads((out / "run.json").read_text())["step"]
    assert (out / "checkpoints" / f"step-{step:08}").is_dir()
    assert (out / "model" / "config.json").exists()


@pytest.mark.parametrize("kind", ["lora", "adalora", "prefix", "prompt", "adapter"])
def test_an_adapter_beside_a_model(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """Fine-tuned from a run's model, and generated from as any other."""
    first = tmp_path / "first"
    assert main([*arguments, "--out", str(first), "steps=2"]) == 0
    out = tmp_path / "adapted"
    words = ["--adapt", kind, "--out", str(out), "steps=4", f"init_from={first / 'model'}"]
    words += ["adapt.length=3"] if kind == "prompt" else []  # of the context's 16 places
    assert main([*arguments, *words, "lr=0.05", "eval_every=0", "clip=0"]) == 0
    assert f"only an adapter is trained: {kind}" in capsys.readouterr().out
    assert main(["generate", str(out), "the", "--temperature", "0", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("the")
    assert (out / "model" / "adapter").is_dir()


@pytest.mark.parametrize(
    ("name", "first", "message"),
    [
        ("a.csv", "text,label", "has the columns text, label: without --recipe a language model"),
        ("a.csv", "text,label", "addnorm train --recipe classify_text --data"),
        ("a.tsv", "source\ttarget", "addnorm train --recipe translate --data"),
        ("a.csv", "id,note", "Labels of texts need the columns text and label"),
        ("a.jsonl", '{"messages": []}', "addnorm train --recipe chat --data"),
        ("a.jsonl", '{"text": "", "label": "x"}', "a language model is trained, on its text alone"),
        ("a.jsonl", '{"text": "to"}', ""),
        ("a.txt", "text,label", ""),
    ],
)
def test_what_is_learned_of_a_table_is_said(
    name: str, first: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    file.write_text(f"{first}\n")
    assert main(["train", "--data", str(file), "--print-config"]) == 0
    remark = capsys.readouterr().err
    assert message in remark
    assert bool(remark) == bool(message)
    assert main(["train", "--data", str(file), "--recipe", "char_cpu", "--print-config"]) == 0
    assert not capsys.readouterr().err


def test_help_names_every_recipe() -> None:
    text = help_texts(Options)["recipe"].partition(": ")[2]
    assert sorted(text.rstrip(".").split(", ")) == sorted(RECIPES)
