"""What a project's pyproject.toml says to lint:

[tool.addnorm.lint]
targets = ["model.py:make"]     # what ``addnorm lint`` examines where it is given no target
causal = true
ignore = [
    "double-norm",
    {rule = "attention-scale", module = "blocks.*", reason = "queries are normalized"},
]
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from addnorm import reading
from addnorm.cli.refusal import Refusal
from addnorm.errors import value_in_short
from addnorm.linting.findings import Ignore
from addnorm.linting.report_text import seen_from_here
from addnorm.words import did_you_mean

FILE = "pyproject.toml"
TABLE = "tool.addnorm.lint"
KEYS = ("targets", "causal", "ignore")
OF_AN_IGNORE = ("rule", "module", "reason")


@final
@dataclass(frozen=True)
class LintConfig:
    """What stands in the table, or what holds without one."""

    targets: tuple[str, ...] = ()
    """Files in it are named from where one is."""
    causal: bool | None = None
    ignore: tuple[Ignore, ...] = ()


def read_config(folder: Path) -> LintConfig:
    """That of the nearest pyproject.toml in a folder or above it; a ``Refusal`` says what is wrong
    with the table."""
    place = folder.resolve()
    files = (above / FILE for above in (place, *place.parents))
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return LintConfig()
    try:
        content: Any = tomllib.loads(reading.text(file))
    except tomllib.TOMLDecodeError as error:
        raise Refusal(f"{file}: {error}") from None
    for key in TABLE.split("."):
        content = content.get(key, {}) if isinstance(content, dict) else {}
    where = f"{file}, [{TABLE}]"
    _check_keys(content, KEYS, where)
    causal = content.get("causal")
    if causal not in (None, True, False):
        raise Refusal(f"{where}: causal must be true or false, got {value_in_short(causal)}")
    targets = [_target(word, file) for word in _several(content, "targets", where)]
    ignore = [_ignore(entry, where, str(file)) for entry in _several(content, "ignore", where)]
    return LintConfig(tuple(targets), causal, tuple(ignore))


def _several(content: dict[str, Any], key: str, where: str) -> list[Any]:
    """The list under a key, empty where there is none."""
    entries = content.get(key, [])
    if not isinstance(entries, list):
        raise Refusal(f"{where}: {key} must be a list, got {value_in_short(entries)}")
    return entries


def _target(word: Any, file: Path) -> str:
    """A target, its file named from the folder of the table."""
    if not isinstance(word, str) or not word:
        raise Refusal(
            f"{file}, [{TABLE}]: targets has names such as model.py:make, got "
            f"{value_in_short(word)}"
        )
    place = word.partition(":")[0]
    here = seen_from_here(str(file.parent / word))
    return here if (file.parent / place).exists() else word


def _ignore(entry: Any, where: str, file: str) -> Ignore:
    """An ignore from the name of a rule, or from a table with it."""
    if isinstance(entry, str):
        return Ignore(rule=entry, where=file)
    if not isinstance(entry, dict) or not all(isinstance(v, str) for v in entry.values()):
        raise Refusal(
            f'{where}: ignore has names of rules, or {{rule = "...", module = "...", reason = '
            f'"..."}}, got {value_in_short(entry)}'
        )
    _check_keys(entry, OF_AN_IGNORE, f"{where}: an entry of ignore")
    if "rule" not in entry:
        raise Refusal(f"{where}: an entry of ignore needs a rule, got {value_in_short(entry)}")
    return Ignore(**entry, where=file)


def _check_keys(content: Any, keys: tuple[str, ...], where: str) -> None:
    if not isinstance(content, dict):
        raise Refusal(f"{where} must be a table, got {value_in_short(content)}")
    for key in content:
        if key not in keys:
            hint = did_you_mean(key, keys) or f"there are {', '.join(keys)}"
            raise Refusal(f"{where} has no key {key}; {hint}")
