"""Rules, checks and pages agree; every page's program has the mistake, and mended has it not."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from addnorm.linting import Report, run
from addnorm.linting.check import CHECKS, UnknownRule, rules_by_name, rules_named
from addnorm.linting.rule import FAMILIES, Rule
from addnorm.linting.rules import norm_axes, norm_formula, norm_gradient, norm_precision
from tests.linting.asking import cases_by_test, checks_of

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "addnorm" / "linting" / "pages"
NORMS = checks_of(norm_formula, norm_axes, norm_gradient, norm_precision)
RULES = rules_by_name()


def programs(rule: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", RULES[rule].page, re.MULTILINE | re.DOTALL)


def test_every_rule_has_a_page_and_every_page_a_rule() -> None:
    assert {path.stem for path in PAGES.iterdir()} == RULES.keys()
    assert {rule.family for rule in RULES.values()} == set(FAMILIES)


@pytest.mark.parametrize("rule", RULES)
def test_a_page_is_found_in_its_program_and_not_in_the_mended_one(
    rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The checks of this rule alone, and no counting of norms where no rule asks for them: all
    # checks on all programs would take minutes.
    chosen = [c for c in CHECKS if rule in c.names]
    monkeypatch.setattr(run, "CHECKS", chosen)
    if not any(check in NORMS for check in chosen):
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


@pytest.mark.parametrize("rule", RULES)
def test_a_page_says_all_that_a_page_must(rule: str) -> None:
    text = RULES[rule].page
    lines = text.splitlines()
    assert lines[0] == f"# {rule}"
    assert 15 <= len(lines) - len(RULES[rule].evidence) <= 60
    for part in ("**How it is decided.**", "**A program that has it:**", "\nFixed:\n"):
        assert part in text
    assert "**Severity and exceptions.**" in text
    assert f"--ignore {rule}" in text
    assert text.endswith(f"\n\n{RULES[rule].evidence_table}\n"), "declared otherwise in the code"
    free = ("http", "| `")  # addresses, and rows of tables
    assert not [line for line in lines if len(line) > 100 and not any(t in line for t in free)]


def test_an_unknown_rule_is_told_with_near_ones() -> None:
    with pytest.raises(UnknownRule, match="did you mean double-norm"):
        rules_named(["shared-norm", "doublenorm"])
    with pytest.raises(UnknownRule, match=r"unknown rule '\.\./rules'"):
        rules_named(["../rules"])


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_is_declared_in_words(rule: Rule) -> None:
    assert 20 <= len(rule.finds) <= 80
    assert not rule.finds.endswith(".")
    assert rule.cases
    for case in rule.cases.values():
        for text in (case.message, case.remedy):
            assert len(text) > 20
            assert text[-1] in ".)"
    for what in rule.evidence.values():
        assert what
        assert not what.endswith(".")


def test_findings_are_made_by_rules_alone() -> None:
    """Whoever made one by hand could misspell the rule."""
    for path in (ROOT / "addnorm" / "linting" / "rules").glob("*.py"):
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        names = {ast.unparse(function) for function in calls}
        assert not names & {"Finding", "Unknown"}, path


NEVER = {("mask-nan", "real positions"): "such NaN has always come with NaN gradients"}
"""Case -> why no test says it. It only gets shorter."""


def test_every_case_is_said_in_some_test() -> None:
    """To list a new one: pytest tests/linting --write-said."""
    listed = [case for cases in cases_by_test().values() for case in cases]
    declared = {(rule.name, case) for rule in RULES.values() for case in rule.cases}
    assert set(listed) == declared - NEVER.keys()
    assert len(listed) == len(set(listed))


def test_the_manual_lists_all_rules() -> None:
    """By family, with how grave they may be."""
    lines = []
    for rule in RULES.values():
        family = f"| **{rule.family}** | | |"
        lines += [family] if family not in lines else []
        link = f"[`{rule.name}`](../addnorm/linting/pages/{rule.name}.md)"
        lines.append(f"| {link} | {rule.finds} | {', '.join(rule.severities)} |")
    table = "\n".join(["| rule | finds | severity |", "|---|---|---|", *lines, ""])
    assert f"\n\n{table}\n" in (ROOT / "docs" / "lint.md").read_text(), table


def test_the_pages_are_shipped(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="it builds the wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {f"addnorm/linting/pages/{rule}.md" for rule in RULES} <= held
