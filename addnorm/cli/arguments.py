"""What commands share: how their options are declared and read.

This file is the only one that knows which library reads the command line.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, UseAppendAction, arg
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
)

__all__ = ["Positional", "UseAppendAction", "arg", "optional", "read"]

Options = TypeVar("Options")


def optional(metavar: str) -> Any:
    """How help shows an option that has no value unless it is used: ``--top-k K``."""
    return arg(metavar=metavar, help_behavior_hint="")


def read(kind: type[Options], args: Sequence[str], prog: str, description: str) -> Options:
    """The options of a command from its arguments; exits with status 2 if they do not fit.

    ``kind`` is a dataclass, whose fields may be dataclasses; defaults, types and docstrings of the
    fields make the options. Options of nested dataclasses have no prefix.
    """
    config = (OmitArgPrefixes, FlagCreatePairsOff)
    rules = ConstructorRegistry()
    rules.primitive_rule(_path_rule)
    return tyro.cli(
        kind, args=args, prog=prog, description=description, config=config, registry=rules
    )


def _path_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    """Paths that are not empty: --out "$FOLDER" with an unset FOLDER would mean the current one."""
    if info.type is not Path:
        return None

    def path(words: list[str]) -> Path:
        if not words[0]:
            raise ValueError('the path is empty; "." is the current folder')
        return Path(words[0])

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=path,
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda value: [str(value)],
    )
