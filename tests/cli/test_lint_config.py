"""What pyproject.toml says to lint, and what is wrong with it."""

from pathlib import Path

import pytest

from addnorm.cli.lint_config import LintConfig, read_config
from addnorm.errors import Mendable
from addnorm.linting import Ignore


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, in the folder above the current one."""
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    return tmp_path / "pyproject.toml"


def test_all_of_it(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (table.parent / "model.py").touch()
    table.write_text(
        '[tool.addnorm.lint]\ntargets = ["model.py:make", "package.module:NAME"]\ncausal = true\n'
        'ignore = ["double-norm", {rule = "no-residual", module = "h.*", reason = "why"}]\n'
    )
    ignores = (
        Ignore(rule="double-norm", where=str(table)),
        Ignore(rule="no-residual", module="h.*", reason="why", where=str(table)),
    )
    # a file is named from the folder of the table, wherever one stands
    names = (str(table.parent / "model.py:make"), "package.module:NAME")
    assert read_config(Path.cwd()) == LintConfig(names, True, ignores)
    monkeypatch.chdir(table.parent)
    assert read_config(Path.cwd()).targets == ("model.py:make", "package.module:NAME")


@pytest.mark.parametrize("text", ["", "[tool.other]\nx = 1\n", "[tool.addnorm.lint]\n"])
def test_none_of_it(table: Path, text: str) -> None:
    table.write_text(text)
    assert read_config(Path.cwd()) == LintConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = ", "pyproject.toml: Invalid value"),
        ("target = 1", "has no key target; did you mean targets?"),
        ("xyz = 1", "has no key xyz; there are targets, causal, ignore"),
        ('targets = "m.py"', "targets must be a list, got 'm.py'"),
        ("targets = [1]", "targets has names such as model.py:make, got 1"),
        ('causal = "yes"', "causal must be true or false, got 'yes'"),
        ("ignore = [1]", "ignore has names of rules, or .*, got 1"),
        ("ignore = [{rule = 1}]", "ignore has names of rules"),
        ('ignore = [{module = "a"}]', "an entry of ignore needs a rule"),
        ('ignore = [{rule = "a", modul = "a"}]', "has no key modul; did you mean module"),
    ],
)
def test_what_is_wrong_with_it(table: Path, text: str, words: str) -> None:
    table.write_text(f"[tool.addnorm.lint]\n{text}\n")
    with pytest.raises(Mendable, match=words):
        read_config(Path.cwd())


def test_a_table_that_is_none(table: Path) -> None:
    table.write_text("[tool.addnorm]\nlint = 1\n")
    with pytest.raises(Mendable, match=r"\[tool.addnorm.lint\] must be a table, got 1"):
        read_config(Path.cwd())
