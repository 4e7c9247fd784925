"""What a command's options are called is read from their dataclass, once."""

import re
from importlib import import_module
from typing import Any, get_args

import pytest

from addnorm.cli import COMMANDS, main
from addnorm.cli.arguments import option_values


def commands() -> list[tuple[list[str], Any]]:
    """Each command, or each form of one, and the class of its options."""
    kinds = {c.name: import_module(f"addnorm.cli.{c.name}").Options for c in COMMANDS}
    return [
        ([name, form.__name__.lower()] if get_args(kind) else [name], form)
        for name, kind in kinds.items()
        for form in get_args(kind) or (kind,)
    ]


@pytest.mark.parametrize(("words", "kind"), commands(), ids=lambda x: str(x))
def test_the_options_are_those_of_the_help(
    words: list[str], kind: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them, each with what stands after it."""
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    text = capsys.readouterr().out
    values = option_values(kind)
    in_help = set(re.findall(r"(?<=[\s│,])--?[a-z][a-z-]*", text)) - {"-h", "--help"}
    assert {*values} <= in_help
    for word, value in values.items():
        after = {None: r"[,\s]", "VALUE": r" [A-Z\[]"}.get(value) or f" {re.escape(str(value))}"
        assert re.search(rf"(?<=[\s│,]){word}{after}", text), (word, value)


def test_flags_take_no_value() -> None:
    from addnorm.cli.lint import Options

    assert [word for word, value in option_values(Options).items() if value is None] == [
        *("--causal", "--no-causal", "--notes", "-v", "--json", "--watch", "--rules"),
    ]
    assert option_values(Options)["--weights"] == "{copied,own}"
