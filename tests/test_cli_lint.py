"""The command ``addnorm lint``: what a target may be, what is said, and the exit status."""

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

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


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide as it may be, whatever terminal runs the tests."""
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three quick checks in place of all."""
    from addnorm.linting import run

    wanted = {"no-residual", "linear-mlp", "unused-norm"}
    chosen = tuple(c for c in run.CHECKS if wanted & set(c.rules))
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
    assert "made-up inputs (3, 7, 8)" in " ".join(lines[:2])
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


@pytest.mark.usefixtures("few")
def test_columns_count_in_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = write(tmp_path, BAD)
    for columns, widest in (("60", 60), ("300", 100), ("7", 40)):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["lint", target]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert widest - 15 < max(map(len, lines)) <= widest
        # Seconds stand before what they were spent on, so that they never end up alone on a line.
        header = lines[: lines.index("")]
        assert re.search(r"; \d+\.\ds on inputs \(2, 7, 16\)$", " ".join(header))
        assert not [line for line in header if re.fullmatch(r"[\d.]+s|.* \(2,( 7,)?", line)]


@pytest.mark.parametrize("width", range(40, 101, 3))
def test_a_shape_is_not_broken(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    found = replace(report(), facts={**report().facts, "inputs": {"ids": [3, 7], "x": [3, 11, 8]}})
    console = Console(width=width, force_terminal=False, highlight=False, markup=False)
    command.print_report(found, command.Found("x", torch.nn.Linear(1, 1)), console)
    lines = capsys.readouterr().out.splitlines()
    header = lines[: lines.index("")]
    assert "(3, 7), x (3, 11, 8)" in " ".join(header)
    assert any("(3, 7)" in line for line in header)
    assert any("(3, 11, 8)" in line for line in header)
    assert max(map(len, header)) <= width


def unused(module: str, **more: Any) -> Finding:
    return Finding(
        rule="unused-parameter",
        severity="warning",
        module=module,
        evidence={"parameters": [f"{module}.weight", f"{module}.bias"], **more},
        message=f"The forward never reads {module}.weight.",
        remedy="Remove it.",
    )


def test_what_lies_in_a_dead_branch_is_one_line_below_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    dead = Finding(
        rule="dead-branch",
        severity="error",
        module="layers.0.mlp",
        evidence={"branch_over_stream": 0.0, "also_in": ["layers.1.mlp"]},
        message="This branch adds nothing.",
        remedy="Look for a factor of zero.",
    )
    milder = replace(dead, severity="warning", module="attn", evidence={"x": 1})
    inside = (
        unused("layers.0.mlp.up", also_in=["layers.1.mlp.up"]),
        unused("layers.0.mlp"),
        unused("layers.0.mlp.down", read_by_the_forward=True),
    )
    outside = (
        unused("layers.0.mlp2"),  # another module whose name begins alike
        unused("layers.1.mlp.gate", also_in=["layers.2.mlp.gate"]),  # partly
        unused("attn.q"),  # inside of what is no error
    )
    found = Report((dead, milder, *inside, *outside), (), ("dead-branch",), report().facts)
    console = Console(width=100, force_terminal=False, highlight=False, markup=False)
    command.print_report(found, command.Found("x", torch.nn.Linear(1, 1)), console)
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if "unused-parameter" in line and "explain" not in line]
    assert told == [
        "warning  unused-parameter  layers.0.mlp2",
        "warning  unused-parameter  layers.1.mlp.gate and 1 more",
        "warning  unused-parameter  attn.q",
    ]
    at = lines.index("error    dead-branch  layers.0.mlp and 1 more")
    assert lines[at + 3] == (
        "  and 6 parameters inside it are never read, 2 parameters inside it are read and never "
        "trained"
    )
    assert any(line.startswith("1 error, 7 warnings") for line in lines)  # none is lost
    assert len(json.loads(found.to_json())["findings"]) == 8


def test_a_large_or_slow_model_does_not_look_hung(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from addnorm import linting

    def lint(*given: object, **more: object) -> Report:
        time.sleep(0.2)
        return Report(facts={"model": "Net", "parameters": 1, "seconds": 0.0})

    monkeypatch.setattr(linting, "lint", lint)
    target = f"{write(tmp_path, GOOD)}:make"
    assert main(["lint", target]) == 0
    assert capsys.readouterr().err == ""
    says = f"addnorm: running {target} (280 parameters) many times; this may take minutes\n"
    monkeypatch.setattr(command, "MANY", 279)
    assert main(["lint", target]) == 0
    assert capsys.readouterr().err == says
    monkeypatch.setattr(command, "MANY", 280)
    # Half of what the pretended lint takes; loading the file takes a few milliseconds.
    monkeypatch.setattr(command, "PATIENCE", 0.1)
    assert main(["lint", target]) == 0
    assert says in capsys.readouterr().err


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
    assert "cannot be examined" in told.err
    assert "return (model, inputs)" in told.err
    # One error, told once, however many calls were tried.
    assert told.err.count("RuntimeError: never") == 1
    assert re.search(r"  x=.* and \d more: RuntimeError: never\nThe error is the same", told.err)
    assert main(["lint", write(tmp_path, text), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["unknown"][0]["rule"] == "lint"


def test_each_error_of_made_up_calls_is_told_once() -> None:
    why = (
        "no inputs were found with which Net.forward(x) runs; 9 kinds of call were tried, among "
        "them\n  x=ids (T=7): TypeError: a\n  x=image (1, 2, 2) (T=7): ValueError: b: c\n"
        "  x=ids (T=3): TypeError: a\nGive a batch of your own: lint(model, inputs=tensor)"
    )
    _, first, second, advice, *_ = command._undone(why).splitlines()
    assert first == "  x=ids (T=7) and 1 more: TypeError: a"
    assert second == "  x=image (1, 2, 2) (T=7): ValueError: b: c"
    assert advice.startswith("To use your own inputs")


FED = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, mask=None):
        y = x + 0
        return self.linear(y)

def make():
    return Net(), INPUTS
"""


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ("torch.randn(2, 5)", "((2, 5) of float32): RuntimeError: mat1 and mat2"),
        ("{'x': torch.ones(2, 5).long()}", "(x (2, 5) of int64): RuntimeError: "),
        ("3", "inputs must be a tensor, a tuple of positional arguments or a dict"),
    ],
)
def test_inputs_that_were_given_and_do_not_fit_are_told(
    inputs: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = write(tmp_path, FED.replace("INPUTS", inputs))
    assert main(["lint", target]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert "inputs of your own" not in told
    if "RuntimeError" in says:
        assert f"  {target}:12, in forward: return self.linear(y)" in told.splitlines()
        assert main(["lint", "--diff", target, target]) == 2
        assert f"{target}:make: its forward fails on the inputs" in capsys.readouterr().err


def test_a_model_without_values_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "from torch import nn\nmodel = nn.Linear(3, 3, device='meta')\n"
    target, good = write(tmp_path, text), write(tmp_path, GOOD, "good.py")
    for words in ([target], ["--diff", f"{good}:make", target]):
        assert main(["lint", *words]) == 2
        told = capsys.readouterr().err
        assert f"{target}:model has no values: 2 of its 2 parameters and buffers" in told
        assert "build the model on the CPU" in told


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
        (["--explain", "duble-norm"], "did you mean double-norm"),
        (["x.py", "--ignore", "future-leek"], "did you mean future-leak"),
        (["nothing.py:make"], "there is no file nothing.py"),
        (["a.py", "b.py"], "to compare two: addnorm lint --diff a.py b.py"),
        (["a.py", "b.py", "c.py"], "one target, got 3 (a.py, b.py, c.py)"),
        (
            ["--frobnicate", "a.py"],
            "unknown option --frobnicate; addnorm lint --help lists them",
        ),
        (["a.py", "--jsn"], "unknown option --jsn; did you mean --json?"),
        (["a.py", "--ignore"], "--ignore needs the name of a rule after it"),
        (["--explain", "--json"], "--explain needs the name of a rule after it"),
        (["--diff", "--json", "a.py"], "--diff takes exactly two targets"),
        (["--diff", "a.py", "b.py", "c.py"], "got a.py, b.py, c.py"),
        (["/no/such/place"], "/no/such/place is neither a file, nor a folder, nor a module"),
        (["no_such_module:make"], "there is no module no_such_module"),
        (["torch.nn:Lineer"], "did you mean Linear"),
        (["torch.nn:Linear"], "needs arguments (in_features, out_features)"),
        (["math:pi"], "math:pi is a float, neither a model nor a function"),
        (["os:getcwd"], "os:getcwd returned str; expected a torch.nn.Module"),
    ],
)
def test_wrong_use_is_told(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", *words]) == 2
    told = capsys.readouterr()
    assert says in told.err
    assert told.out == ""
    assert len(told.err.splitlines()) <= 3


def test_a_module_without_a_spec_is_none_to_look_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # as the installed command is
    assert main(["lint", "__main__"]) == 2
    assert "__main__ is neither a file, nor a folder, nor a module" in capsys.readouterr().err


OWN = """
from math import sin
from torch import nn
x = 5
layer = nn.Linear(2, 2)
class Net(nn.Sequential):
    part = nn.ReLU
def made(width):
    return Net(layer)
whole = made(2)
"""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nope", "there is no 'nope' in it; there are layer, Net, made, whole"),
        ("laier", "there is no 'laier' in it; did you mean layer?"),
        ("x", "net.py:x is an int, neither a model nor a function"),
        ("x.nope", "there is no 'nope' in it; there is no model, no function and no class in it"),
        ("whole.nope", "there is no 'nope' in it; there is 0"),
        ("Net.nope", "there is no 'nope' in it; there is no model"),
        ("~nobody-of-this-name/net.py:x", "cannot be looked for"),
        ("x" * 300 + ".py:x", "cannot be looked for"),
    ],
)
def test_what_is_not_in_a_file_is_told_with_what_is(
    name: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = name if ":" in name else f"{write(tmp_path, OWN)}:{name}"
    assert main(["lint", target]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("from torch import nn\na = nn.Linear(2, 2)\nb = nn.Linear(2, 2)\n", ":b  (a model)"),
        ("def one():\n    return 1\ndef two():\n    return 2\n", ":two  (a function)"),
        ("x = 1\n", "has no model and no function"),
        ("def make():\n    return 3\n", "returned int"),
        ("x = 1\n  y = (2\n", "net.py:2: IndentationError: unexpected indent\n  y = (2\n"),
        ("def broken(:\n", "SyntaxError: invalid syntax\n  def broken(:\n             ^\n"),
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


def test_an_error_in_a_library_is_told_by_the_line_that_called_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "import json\ndef read(text):\n    return json.loads(text)\n", "parts_of_it.py")
    text = "import parts_of_it\ndef make():\n    return parts_of_it.read('{')\n"
    assert main(["lint", write(tmp_path, text)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "JSONDecodeError: Expecting property name" in first
    assert second == f"  {tmp_path}/parts_of_it.py:3, in read: return json.loads(text)"
    # Neither what is installed nor another's folder is the user's own.
    for folder in ("mine/site-packages", "other"):
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder, "def fail():\n    raise KeyError(1)\n", "deep_in_it.py")
        text = (
            "import sys\n"
            f"sys.path.insert(0, {str(tmp_path / folder)!r})\n"
            "sys.modules.pop('deep_in_it', None)\n"
            "import deep_in_it\n"
            "sys.path.pop(0)\n"
            "deep_in_it.fail()\n"
        )
        target = write(tmp_path / "mine", text)
        assert main(["lint", target]) == 2
        first, second = capsys.readouterr().err.splitlines()
        assert first.endswith("KeyError: 1")
        assert second == f"  {target}:6, in <module>: deep_in_it.fail()"
    # Nothing of the user's own ran.
    text = "import functools, json\nmake = functools.partial(json.loads, '{')\n"
    assert main(["lint", f"{write(tmp_path, text)}:make"]) == 2
    assert "json/decoder.py:" in capsys.readouterr().err.splitlines()[1]


def test_a_path_that_leads_nowhere_is_told_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    def offline(*given: object, **more: object) -> str:
        raise OSError("no network\nand a second line\nand a third")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inner").mkdir()
    write(tmp_path / "inner", GOOD)
    for target, says in {
        "inner/nope": "inner/nope is neither a file, nor a folder, nor a module",
        "nope": "nope is neither a file, nor a folder, nor a module",
        "inner/nett": "inner/nett is neither a file, nor a folder, nor a module; did you mean",
        "json": "json is a module: name the model in it, json:NAME",
    }.items():
        assert main(["lint", target]) == 2
        first, second = capsys.readouterr().err.splitlines()
        assert first.startswith(f"addnorm: {says}")
        assert second.startswith(
            "It could not be downloaded from the Hugging Face hub either: OSError: no"
        )
        assert "second line" not in second
    for target in ("inner/net", "inner.net"):
        assert main(["lint", target]) == 2
        assert capsys.readouterr().err == (
            f"addnorm: {target} is not a folder; did you mean inner/net.py?\n"
        )


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


PARTS = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = Norm()

class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        raise RuntimeError("not this one")
"""


def test_of_several_classes_the_one_that_holds_the_others_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = "import torch\n" + PARTS.partition("class Broken")[0]
    found = command.open_target(write(tmp_path, whole))
    assert type(found.model).__name__ == "Net"
    assert found.name.endswith("net.py:Net")
    assert found.note == "Of 3 classes in the file, Net was chosen: it contains the others."
    command.print_report(report(), found, Console(width=100))
    assert found.note in capsys.readouterr().out.splitlines()[1]
    # One stands alone: it may be meant as well.
    assert main(["lint", write(tmp_path, "import torch\n" + PARTS)]) == 2
    told = capsys.readouterr().err
    assert "has several models; choose one of" in told
    assert "net.py:Broken  (a class)" in told


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
    for option in re.findall(r"(?<=[\s│,])--?[a-z][a-z-]*", done.stdout):
        assert option in (*command.FLAGS, *command.VALUED, "--diff", "-h", "--help"), option
    assert any(c.name == "lint" for c in cli.COMMANDS)
