"""The command ``addnorm lint``: its options, what it prints in all, and the exit status."""

import json
import re
import time
from pathlib import Path

import pytest

from addnorm.cli import lint as command
from addnorm.cli import main
from addnorm.cli import target as target_module
from addnorm.linting import Report
from addnorm.linting.check import rules_by_name
from tests.model_files import GOOD, write

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
    chosen = tuple(c for c in run.CHECKS if wanted & set(c.names))
    monkeypatch.setattr(run, "CHECKS", chosen)


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
        "nothing found by 5 rules; 1 rule could not decide; 3 ignored"
    )


@pytest.mark.usefixtures("few")
def test_a_right_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", f"{write(tmp_path, GOOD)}:make", "--ignore", "no-residual"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "made-up inputs (3, 7, 8)" in " ".join(lines[:2])
    assert lines[-1] == "nothing found by 6 rules"


@pytest.mark.usefixtures("few")
def test_the_models_of_a_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["lint"]) == 2
    assert "targets under [tool.addnorm.lint] in pyproject.toml" in capsys.readouterr().err
    write(tmp_path, GOOD, "good.py")
    write(tmp_path, BAD, "bad.py")
    table = '[tool.addnorm.lint]\ntargets = ["good.py:make", "bad.py:make"]\n'
    Path("pyproject.toml").write_text(table)
    assert main(["lint"]) == 1
    out = capsys.readouterr().out
    assert out.index("Sequential: 280") < out.index("Net: 2,160")
    assert main(["lint", "--format", "github"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "::error file=bad.py,line=13,title=addnorm%3A one-signed-branch in down::" in "".join(
        lines
    )
    assert main(["lint", "--format", "sarif"]) == 1
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert {r["ruleId"] for r in run["results"]} >= {"linear-mlp", "unused-norm"}
    rules = ("linear-mlp", "one-signed-branch", "unused-norm")
    lines = [
        f'{{rule = "{rule}", reason = "a test of {rule}"}}' for rule in (*rules, "dead-branch")
    ]
    Path("pyproject.toml").write_text(f"{table}ignore = [{', '.join(lines)}]\n")
    assert main(["lint"]) == 0
    out = capsys.readouterr().out
    assert out.count("by pyproject.toml: a test of unused-norm") == 2  # unused for the good one
    assert "ignore of dead-branch" in out


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
    monkeypatch.setattr(target_module, "MANY", 279)
    assert main(["lint", target]) == 0
    assert capsys.readouterr().err == says
    monkeypatch.setattr(target_module, "MANY", 280)
    # Half of what the pretended lint takes; loading the file takes a few milliseconds.
    monkeypatch.setattr(target_module, "PATIENCE", 0.1)
    assert main(["lint", target]) == 0
    assert says in capsys.readouterr().err


def test_causal_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from addnorm import linting

    asked = []

    def lint(model: object, inputs: object, *, causal: bool | None, **_: object) -> Report:
        asked.append(causal)
        return Report(facts={"model": "Net", "parameters": 1, "seconds": 0.0})

    monkeypatch.setattr(linting, "lint", lint)
    target = write(tmp_path, GOOD)
    for words in ([], ["--causal"], ["--no-causal"]):
        assert main(["lint", target, *words]) == 0
    assert asked == [None, True, False]
    monkeypatch.chdir(tmp_path)
    Path("pyproject.toml").write_text("[tool.addnorm.lint]\ncausal = true\n")
    for words in ([], ["--no-causal"]):
        assert main(["lint", target, *words]) == 0
    assert asked[3:] == [True, False]
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
    _, first, second, advice, *_ = command._reason_in_full(why).splitlines()
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


def test_rules_are_listed_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", "--rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(rules_by_name())
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
            ["--zzz", "a.py"],
            "unknown option --zzz; addnorm lint --help lists them",
        ),
        (["a.py", "--json", "--format", "sarif"], "--json and --format sarif exclude each other"),
        (["--watch", "somebody/model"], "--watch is for code"),
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
