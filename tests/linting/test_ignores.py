"""Ignores: in comments and as an argument, what they leave out, and those that are of no use."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from addnorm.errors import Mendable
from addnorm.linting import Ignore, lint
from addnorm.linting.places import forward_line, modules_around

CODE = """\
import torch
from torch import nn

class Pair(nn.Module):{whole}
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16){layers}

    def forward(self, x):
        text = "# addnorm: ignore[linear-mlp] no comment"
        return self.down(self.up(x))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.pairs = nn.ModuleList([Pair() for _ in range(2)])
        self.norm = nn.LayerNorm(16){norm}

    def forward(self, x):
        for pair in self.pairs:
            x = x + pair(self.norm(x))
        return x
"""
NONE = {"whole": "", "layers": "", "norm": ""}
INPUTS = torch.randn(2, 7, 16)
RULES = ("linear-mlp", "shared-norm", "missing-final-norm", "no-residual")

Code = Callable[..., ModuleType]


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Code:
    """Makes a module of ``CODE`` with these comments in it."""

    def module(**comments: str) -> ModuleType:
        file = tmp_path / "net.py"
        file.write_text(CODE.format(**{**NONE, **{k: f"  # {v}" for k, v in comments.items()}}))
        spec = importlib.util.spec_from_file_location("net_of_the_test", file)
        assert spec is not None
        assert spec.loader is not None
        content = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "net_of_the_test", content)
        spec.loader.exec_module(content)
        return content

    return module


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks of three rules alone."""
    from addnorm.linting import run

    monkeypatch.setattr(run, "CHECKS", [c for c in run.CHECKS if {*RULES} & {*c.names}])


def test_a_finding_names_its_line(code: Code) -> None:
    report = lint(code().Net(), INPUTS)
    (finding,) = (f for f in report.findings if f.rule == "linear-mlp")
    text = Path(finding.file).read_text().splitlines()[finding.line - 1]
    assert text == "    def forward(self, x):"
    assert Path(finding.file).name == "net.py"
    assert finding.line == 9
    assert finding.evidence["also_in"] == ["pairs.1.down"] or finding.module.startswith("pairs")


@pytest.mark.parametrize("place", ["whole", "layers"])
def test_a_comment_in_the_class(code: Code, place: str) -> None:
    module = code(**{place: "addnorm: ignore[linear-mlp] low rank is meant"})
    report = lint(module.Net(), INPUTS)
    assert "linear-mlp" not in {f.rule for f in report.findings}
    (one,) = report.ignored  # of both layers, once
    assert one.finding.rule == "linear-mlp"
    assert one.finding.evidence["also_in"]
    assert one.ignore.reason == "low rank is meant"
    line = 4 if place == "whole" else 7
    assert one.ignore.where.endswith(f"net.py:{line}")
    assert report.unused_ignores == ()
    assert '"low rank is meant"' in report.to_json()


def test_a_comment_in_a_class_around_it_and_in_another(code: Code) -> None:
    report = lint(code(norm="addnorm: ignore[linear-mlp, shared-norm]").Net(), INPUTS)
    assert {one.finding.rule for one in report.ignored} == {"linear-mlp", "shared-norm"}
    # the norm is not inside of a pair
    report = lint(code(layers="addnorm: ignore[shared-norm]").Net(), INPUTS)
    assert "shared-norm" in {f.rule for f in report.findings}
    assert [(i.rule, i.where[-8:]) for i in report.unused_ignores] == [("shared-norm", "net.py:7")]


def test_an_ignore_that_does_nothing_is_told(code: Code) -> None:
    words = "addnorm: ignore[linear-mlp,double-norm,no-such-rule,future-leak]"
    report = lint(code(whole=words).Net(), INPUTS)
    # future-leak did not run, so nobody knows
    assert {i.rule for i in report.unused_ignores} == {"double-norm", "no-such-rule"}


def test_ignores_of_the_caller(code: Code) -> None:
    model = code().Net()
    first = Ignore(rule="linear-mlp", module="pairs.0*", reason="r", where="w")
    report = lint(model, INPUTS, ignore=[first, "shared-norm", "double-norm"])
    assert {one.finding.rule for one in report.ignored} == {"linear-mlp", "shared-norm"}
    (left,) = (f for f in report.findings if f.rule == "linear-mlp")
    assert left.module.startswith("pairs.1")
    assert "also_in" not in left.evidence
    assert [i.rule for i in report.unused_ignores] == ["double-norm"]
    assert report.checked == lint(model, INPUTS).checked
    with pytest.raises(Mendable, match="did you mean linear-mlp"):
        lint(model, INPUTS, ignore=["linear-mpl"])


def test_what_could_not_be_decided_is_ignored_with_its_rule() -> None:
    alone = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    unknown = {u.rule for u in lint(alone, torch.randn(2, 4)).unknown}
    assert "no-residual" in unknown  # without an attention it cannot tell
    rule = "no-residual"
    report = lint(alone, torch.randn(2, 4), ignore=[rule])
    assert {u.rule for u in report.unknown} == unknown - {rule}
    assert (report.ignored, report.unused_ignores) == ((), ())
    report = lint(alone, torch.randn(2, 4), ignore=[Ignore(rule=rule, module="0")])
    assert {u.rule for u in report.unknown} == unknown


def test_where_a_module_is_written(code: Code) -> None:
    model = nn.Sequential(code().Net(), nn.Linear(16, 2))
    pairs = model.get_submodule("0.pairs.0")
    assert [type(m).__name__ for m in modules_around(model, "0.pairs.0.up.weight")] == (
        ["Linear", "Pair", "ModuleList", "Net", "Sequential"]
    )
    assert next(modules_around(model, "0.pairs.0")) is pairs
    assert forward_line(model, "0.pairs.0.up")[1] == 9
    assert forward_line(model, "0.pairs")[1] == 19
    assert forward_line(model, "1") == forward_line(model, "") == ("", 0)
