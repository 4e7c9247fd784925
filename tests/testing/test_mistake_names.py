"""The mistakes of a norm have one name each, and lint's where lint finds the same one."""

import ast
import re
from pathlib import Path

import pytest
import torch

from addnorm import testing
from addnorm.linting.rule import Undeclared
from addnorm.testing import kit
from addnorm.testing.mistake_names import MISTAKES, Mistake

ROOT = Path(__file__).parents[2]
FILES = sorted(Path(testing.__file__).parent.glob("*.py"))


def row(mistake: Mistake) -> str:
    rule = "" if mistake.rule is None else mistake.rule.name
    return f"| `{mistake.name}` | {mistake.finds} | {f'`{rule}`' if rule else ''} |"


def test_the_manual_lists_them() -> None:
    text = (ROOT / "docs" / "testing.md").read_text()
    listed = [line for line in text.splitlines() if re.match(r"\| `[a-z-]+` \|", line)]
    assert listed == [row(mistake) for mistake in MISTAKES.values()]


def test_a_name_that_is_not_declared_cannot_be_said() -> None:
    with pytest.raises(Undeclared, match="'wrong-axes'"):
        kit.finding("wrong-axes", "error", {"axis": 0}, "It is wrong.", "Mend it.")


def test_a_mistake_in_a_check_is_no_fault_of_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(_: kit.Kit) -> kit.Answers:
        yield kit.finding("wrong-axes", "error", {"axis": 0}, "It is wrong.", "Mend it.")

    monkeypatch.setattr(testing, "_NORM_CHECKS", (("axes", wrong),))
    with pytest.raises(Undeclared):
        testing.check_norm(torch.nn.LayerNorm(8))


def test_every_name_is_used() -> None:
    texts = {
        node.value
        for path in FILES
        if path.name != "mistake_names.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    parts = {f"gradient-{a}{b}" for a in ("weight", "bias") for b in ("", "-low-precision")}
    parts |= {"gradient-x", "gradient-residual", "weight-ignored", "bias-ignored"}
    assert MISTAKES.keys() - texts == parts, "these are put together from parts"
