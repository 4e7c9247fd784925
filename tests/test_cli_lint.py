"""The command ``addnorm lint``: what a target may be, what is said, and the exit status."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from addnorm import cli
from addnorm.cli import lint as command
from addnorm.cli import main
from addnorm.linting import Finding, Report, Unknown
from addnorm.linting.rules import RULES

GOOD = """
from torch import nn

def make():
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
"""
BAD = """
import torch
from torch import nn

print("loading")

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        return x + self.down(self.up(x)).relu()

def make():
    print("making")
    return Net(), torch.randn(2, 7, 16)

def train(data):
    return data

def main():
    print("training")
"""


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two quick checks in place of all."""
    from addnorm.linting import parameters, run, wiring

    chosen = tuple(
        c
        for c in (*wiring.CHECKS, *parameters.CHECKS)
        if {"no-residual", "linear-mlp", "unused-norm"} & set(c.rules)
    )
    monkeypatch.setattr(run, "CHECKS", chosen)


def write(folder: Path, text: str, name: str = "net.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


# --- what is said ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("few")
def test_a_faulty_model_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = write(tmp_path, BAD)
    assert main(["lint", target]) == 1
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[0].startswith("Net: 2,160 parameters, 1 residual connection, 0 attentions")
    assert "inputs (2, 7, 16)" in lines[0]
    assert "made-up" not in lines[0]
    at = next(i for i, line in enumerate(lines) if line.startswith("error    linear-mlp"))
    assert "nothing nonlinear" in lines[at + 1]
    assert any(line.startswith("  seen  widths=[16,64,16]  first=up") for line in lines[at:])
    assert any(line.startswith("  fix   Put the activation") for line in lines[at:])
    assert any(line.startswith("error    unused-norm  norm") for line in lines)
    assert any(line.startswith("  no-residual: no attention was found") for line in lines)
    assert lines[-2] == "3 errors by 6 rules; 1 rule could not decide"
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in told.out
    # What the user's program prints is not among it.
    assert "loading" in told.err
    assert "making" in told.err
    assert "loading" not in told.out

    assert main(["lint", f"{target}:make", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert found["target"] == f"{target}:make"
    assert {f["rule"] for f in found["findings"]} == {
        "linear-mlp",
        "one-signed-branch",
        "unused-norm",
    }

    ignored = ["linear-mlp", "unused-norm", "one-signed-branch"]
    words = [w for rule in ignored for w in ("--ignore", rule)]
    assert main(["lint", *words, target]) == 0
    assert " ".join(capsys.readouterr().out.split()).endswith(
        "nothing found by 2 rules; 1 rule could not decide; "
        "ignored: linear-mlp, unused-norm, one-signed-branch"
    )


@pytest.mark.usefixtures("few")
def test_a_right_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", f"{write(tmp_path, GOOD)}:make", "--ignore", "no-residual"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "made-up inputs (3, 7, 8)" in lines[0]
    assert lines[-1] == "nothing found by 5 rules; ignored: no-residual"


def report() -> Report:
    many = [f"layers.{i}.norm" for i in range(1, 6)]
    return Report(
        (
            Finding(
                rule="double-norm",
                severity="warning",
                module="layers.0.norm",
                evidence={"change": 0.123456, "wrong": True, "also_in": many, "list": [1, 2.5] * 4},
                message="layers.0.norm is second.",
                remedy="Remove one of them.",
            ),
            Finding(
                rule="position-blind",
                severity="note",
                module="",
                evidence={"name": "with spaces"},
                message="nothing tells " + "the model " * 30,
                remedy="Nothing, if meant.",
            ),
        ),
        (Unknown(rule="mask-nan", module="a.b", why="it does not run"),),
        ("double-norm", "position-blind", "mask-nan"),
        {"model": "Net", "parameters": 12, "seconds": 0.25},
    )


@pytest.mark.parametrize("width", [60, 100])
def test_output_fits_its_terminal(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    found = command.Found("x", torch.nn.Linear(1, 1))
    console = Console(width=width, force_terminal=False, highlight=False, markup=False)
    command.print_report(report(), found, console)
    folded = capsys.readouterr().out
    lines = folded.splitlines()
    assert max(map(len, lines)) <= width
    assert lines == [line.rstrip() for line in lines]
    assert "warning  double-norm  layers.0.norm and 5 more" in lines
    assert "  layers.0.norm is second." in lines
    assert "change=0.123  wrong=yes" in folded
    assert "list=[1,2.5,1,2.5,+4]" in folded
    (note,) = [line for line in lines if line.startswith("note ")]
    assert note.startswith("note     position-blind  (the model)  Nothing tells")
    assert note.endswith("…")
    assert "Nothing, if meant." not in folded
    assert "  mask-nan (a.b): it does not run" in lines
    assert "1 warning, 1 note by 3 rules; 1 rule could not decide" in lines

    command.print_report(report(), found, console, notes=True)
    whole = capsys.readouterr().out
    assert "  fix   Nothing, if meant." in whole
    assert 'name="with spaces"' in whole


def test_colours_at_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    found = command.Found("x", torch.nn.Linear(1, 1))
    command.print_report(report(), found, Console(width=80, force_terminal=True))
    assert "\x1b[1;33mwarning" in capsys.readouterr().out


def test_causal_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from addnorm import linting

    asked = []

    def lint(model: object, inputs: object, *, causal: bool | None, progress: object) -> Report:
        asked.append(causal)
        return Report(facts={"model": "Net", "parameters": 1, "seconds": 0.0})

    monkeypatch.setattr(linting, "lint", lint)
    target = write(tmp_path, GOOD)
    for words in ([], ["--causal"], ["--no-causal"]):
        assert main(["lint", target, *words]) == 0
    assert asked == [None, True, False]
    assert main(["lint", target, "--causal", "--no-causal"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_what_cannot_be_looked_at_is_not_called_fine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def forward(self, x):\n"
        "        raise RuntimeError('never')\n"
        "model = Net()\n"
    )
    assert main(["lint", write(tmp_path, text)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "could not be looked at" in told.err
    assert "return (model, inputs)" in told.err
    assert main(["lint", write(tmp_path, text), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["unknown"][0]["rule"] == "lint"


def test_rules_are_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "--rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(RULES)
    assert max(map(len, lines)) <= 100
    assert main(["lint", "--explain", "double-norm"]) == 0
    assert capsys.readouterr().out.startswith("# double-norm\n")


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no target"),
        (["--explain", "duble-norm"], "near it: double-norm"),
        (["x.py", "--ignore", "future-leek"], "near it: future-leak"),
        (["nothing.py:make"], "there is no file nothing.py"),
        (["no_such_module:make"], "there is no module no_such_module"),
        (["torch.nn:Lineer"], "near it: Linear"),
        (["torch.nn:Linear"], "needs arguments (in_features, out_features)"),
        (["math:pi"], "math:pi is a float: no model, nor a function"),
        (["os:getcwd"], "os:getcwd returned str; expected a torch.nn.Module"),
    ],
)
def test_wrong_use_is_told(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", *words]) == 2
    told = capsys.readouterr()
    assert says in told.err
    assert told.out == ""
    assert len(told.err.splitlines()) <= 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("from torch import nn\na = nn.Linear(2, 2)\nb = nn.Linear(2, 2)\n", ":b  (a model)"),
        ("def one():\n    return 1\ndef two():\n    return 2\n", ":two  (a function)"),
        ("x = 1\n", "has no model and no function"),
        ("def make():\n    return 3\n", "returned int"),
        ("def broken(:\n", "net.py:1: SyntaxError"),
        ("raise SystemExit(3)\n", "ends the program (exit status 3)"),
        ("import no_such_thing\n", "ModuleNotFoundError: No module named 'no_such_thing'"),
    ],
)
def test_files_without_one_model_are_told(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", write(tmp_path, text)]) == 2
    assert says in capsys.readouterr().err


def test_a_factory_that_raises_is_told_in_two_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "import torch\n\n"
        "def parts():\n"
        "    return torch.nn.MultiheadAttention(50, 4)\n\n"
        "def make(width=50):\n"
        "    return parts()\n"
    )
    target = write(tmp_path, text)
    assert main(["lint", f"{target}:make"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("AssertionError: embed_dim must be divisible by num_heads")
    assert second == f"  {target}:4, in parts: return torch.nn.MultiheadAttention(50, 4)"


# --- what a target may be -------------------------------------------------------------------------


def test_a_file_may_import_what_lies_beside_it_and_name_a_model(tmp_path: Path) -> None:
    write(tmp_path, "WIDTH = 8\n", "sizes.py")
    text = (
        "from dataclasses import dataclass\n"
        "from torch import nn\n"
        "import sizes\n"
        "@dataclass\n"
        "class Config:\n"
        "    width: 'int' = sizes.WIDTH\n"
        "class Holder:\n"
        "    model = nn.Linear(Config().width, 3)\n"
        "net = nn.Linear(sizes.WIDTH, 2)\n"
        "alias = net\n"
        "def main():\n"
        "    return 7\n"
    )
    target = write(tmp_path, text)
    paths = list(sys.path)
    assert command.open_target(target).model.out_features == 2
    assert command.open_target(f"{target}:Holder.model").model.out_features == 3
    assert sys.path == paths


def test_a_module_is_looked_for_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, GOOD, "my_nets_for_lint.py")
    monkeypatch.chdir(tmp_path)
    assert len(command.open_target("my_nets_for_lint:make").model) == 3


def test_a_class_of_a_tutorial_is_taken(tmp_path: Path) -> None:
    text = (
        "from torch import nn\n"
        "class Block(nn.Module):\n"
        "    def __init__(self, width):\n"
        "        super().__init__()\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.block = Block(3)\n"
        "def train():\n"
        "    raise RuntimeError('not to be called')\n"
    )
    assert type(command.open_target(write(tmp_path, text)).model).__name__ == "Net"


def test_our_folders_and_runs_are_opened(tmp_path: Path) -> None:
    from addnorm import GPT, GPTConfig

    model = GPT(GPTConfig(vocab_size=31, context_length=16, dim=8, n_layers=1, n_heads=2))
    model.save_pretrained(tmp_path / "run" / "model")
    for folder in (tmp_path / "run", tmp_path / "run" / "model"):
        assert isinstance(command.open_target(str(folder)).model, GPT)


def test_a_folder_of_transformers_with_and_without_weights(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=31, hidden_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.BertForMaskedLM(config)
    model.save_pretrained(tmp_path / "whole")
    config.architectures = ["BertForMaskedLM"]
    config.save_pretrained(tmp_path / "config")
    whole = command.open_target(str(tmp_path / "whole"))
    assert type(whole.model).__name__ == "BertForMaskedLM"
    weight = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(whole.model.state_dict()[weight], model.state_dict()[weight])
    assert not whole.note
    bare = command.open_target(str(tmp_path / "config"))
    assert type(bare.model).__name__ == "BertForMaskedLM"
    assert "No weights there" in bare.note


def test_without_transformers_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["lint", str(tmp_path)]) == 2
    assert "pip install 'addnorm[hf]'" in capsys.readouterr().err


def test_folders_that_hold_no_model_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lint", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    assert main(["lint", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "transformers cannot load" in told
    assert len(told.splitlines()) <= 2


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from addnorm.cli import main\n"
        "try: main(['lint', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--explain RULE" in done.stdout
    assert any(c.name == "lint" for c in cli.COMMANDS)
