"""The plugin of pytest, in a project of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(16, 64), nn.Linear(64, 16), norm

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())

def good():
    return Net(nn.LayerNorm(16)), torch.randn(2, 7, 16)

def bad():
    net = Net(nn.LayerNorm(16))
    net.unused = nn.LayerNorm(16)
    return net, torch.randn(2, 7, 16)

def broken():
    return Net(nn.LayerNorm(3)), torch.randn(2, 7, 16)
"""
TESTS = """
import pytest
from model import bad, broken, good

@pytest.mark.parametrize("make", [good, bad, broken])
def test_wiring(lint, make):
    model, inputs = make()
    assert "unused-norm" in lint(model, inputs).checked

def test_options(lint):
    model, inputs = bad()
    assert lint(model, inputs, guard="causal").ok
    assert lint(model, inputs, ignore=["unused-norm"]).ignored

def test_warnings(lint):
    model, inputs = good()
    lint(model, inputs, warnings=True)
"""


def run(folder: Path, *options: str) -> tuple[int, str]:
    """(status, what it prints) of pytest in a folder, with this plugin and no other."""
    words = ["-m", "pytest", "-q", "-p", "addnorm.pytest_plugin", "-p", "no:cacheprovider"]
    process = subprocess.run(
        [sys.executable, *words, *options],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{folder}",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_ADDOPTS": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return process.returncode, process.stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with models and tests of them."""
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "test_model.py").write_text(TESTS)
    return tmp_path


def test_the_fixture(project: Path) -> None:
    status, out = run(project)
    assert status == 1
    ends = [line.split(" - ")[0] for line in out.splitlines() if line.startswith("FAILED")]
    assert ends == [
        "FAILED test_model.py::test_wiring[bad]",
        "FAILED test_model.py::test_wiring[broken]",
    ]
    assert "error    unused-norm  unused" in out
    assert "It could not be examined: the model does not run on the inputs given" in out
    assert "Traceback" not in out


def test_the_table_of_the_project(project: Path) -> None:
    (project / "pyproject.toml").write_text(
        '[tool.addnorm.lint]\ntargets = ["model.py:good", "model.py:bad", "model.py:gone"]\n'
    )
    status, out = run(project, "--addnorm-lint", "-k", "model.py", "--deselect", "test_model.py")
    assert status == 1
    assert "1 passed" in out
    assert "FAILED pyproject.toml::model.py:bad" in out
    assert "there is no 'gone' in it; there are Net, good, bad, broken" in out
    with (project / "pyproject.toml").open("a") as file:
        file.write('ignore = [{rule = "unused-norm", reason = "for later"}]\n')
    status, out = run(project, "--addnorm-lint", "-k", "bad")
    assert (status, "2 passed" in out) == (0, True)  # the fixture too goes by the table
    status, out = run(project, "-k", "good")
    assert (status, "1 passed" in out) == (0, True)  # without the option there are no more tests
