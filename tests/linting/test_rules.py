"""Rules, checks and pages agree; every page's program has the mistake, and mended has it not."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from addnorm.linting import Report, rules, run
from addnorm.linting.rules import norm_axes, norm_formula, norm_gradient, norm_precision

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "addnorm" / "linting" / "pages"
NORMS = (norm_formula, norm_axes, norm_gradient, norm_precision)


def programs(rule: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", rules.page(rule), re.MULTILINE | re.DOTALL)


def test_rules_checks_and_pages_are_the_same() -> None:
    checked = {rule for check in run.CHECKS for rule in check.rules}
    assert set(rules.RULES) == checked
    assert {path.stem for path in PAGES.iterdir()} == checked


@pytest.mark.parametrize("rule", rules.RULES)
def test_a_page_is_found_in_its_program_and_not_in_the_mended_one(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The checks of this rule alone, and no counting of norms where no rule asks for them: all
    # checks on all programs would take minutes.
    chosen = tuple(c for c in run.CHECKS if rule in c.rules)
    monkeypatch.setattr(run, "CHECKS", chosen)
    if not any(set(chosen) & set(family.CHECKS) for family in NORMS):
        monkeypatch.setattr(run, "find_norms", lambda specimen: [])
    faulty, mended = programs(rule)
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    with torch.random.fork_rng():
        exec(compile(faulty, f"{rule}, faulty", "exec"), names)
        found: Report = names.pop("report")
        assert rule in {f.rule for f in found.findings}, found
        exec(compile(mended, f"{rule}, mended", "exec"), names)
        found = names.pop("report")
    assert rule not in {f.rule for f in found.findings}, found
    assert rule not in {u.rule for u in found.unknown} | {"lint"}, found


@pytest.mark.parametrize("rule", rules.RULES)
def test_a_page_says_all_that_a_page_must(rule: str) -> None:
    text = rules.page(rule)
    lines = text.splitlines()
    assert lines[0] == f"# {rule}"
    assert 15 <= len(lines) <= 55
    for part in ("**How it is decided.**", "**A program that has it:**", "\nFixed:\n"):
        assert part in text
    assert "**Severity and exceptions.**" in text
    assert f"--ignore {rule}" in text
    assert not [line for line in lines if len(line) > 100 and "http" not in line]


def test_an_unknown_rule_is_told_with_near_ones() -> None:
    with pytest.raises(rules.UnknownRule, match="did you mean double-norm"):
        rules.page("doublenorm")
    with pytest.raises(rules.UnknownRule, match=r"unknown rule '\.\./rules'"):
        rules.page("../rules")


def test_each_rule_is_told_in_a_line() -> None:
    for rule, finds in rules.RULES.items():
        assert 20 <= len(finds) <= 80, rule
        assert not finds.endswith("."), rule


def test_the_pages_are_shipped(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="it builds the wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {f"addnorm/linting/pages/{rule}.md" for rule in rules.RULES} <= held
