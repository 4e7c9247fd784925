"""What commands share: how their options are declared and read.

This file is the only one that knows which library reads the command line.
"""

from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, UseAppendAction, arg
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
)

__all__ = ["Positional", "UseAppendAction", "arg", "option_values", "optional", "read"]

Options = TypeVar("Options")
POSITIONAL = get_args(Positional[int])[1]
"""What marks the type of an argument that stands alone."""


def optional(metavar: str) -> Any:
    """How help shows an option that has no value unless it is used: ``--top-k K``."""
    return arg(metavar=metavar, help_behavior_hint="")


def option_values(kind: type) -> dict[str, str | None]:
    """Every option of a command as it is written, such as ``--top-k``, and what stands after it as
    help shows it, such as ``K``, or VALUE where help shows its type; None: it takes no value.

    Of the arguments that stand alone there are none. ``kind`` is as in ``read``.
    """
    values: dict[str, str | None] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        marks = getattr(hint, "__metadata__", ())
        bare = get_args(hint)[0] if marks else hint
        if isinstance(bare, type) and is_dataclass(bare):
            values |= option_values(bare)
        elif POSITIONAL not in marks:
            display: Any = next((m for m in marks if isinstance(m, type(arg()))), arg())
            choices = get_args(bare) if get_origin(bare) is Literal else ()
            metavar = display.metavar or (f"{{{','.join(choices)}}}" if choices else "VALUE")
            word = f"--{(display.name or name).replace('_', '-')}"
            for spelling in (word, *(display.aliases or ())):
                values[spelling] = None if bare is bool else metavar
    return values


def read(kind: type[Options], args: Sequence[str], prog: str, description: str) -> Options:
    """The options of a command from its arguments; exits with status 2 if they do not fit, and with
    0 once it has printed help. ``prog`` and ``description`` are for help.

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
    """How tyro makes a Path of a word, None for another type: an empty one is refused, since --out
    "$FOLDER" with an unset FOLDER would mean the current folder."""
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
