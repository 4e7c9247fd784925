"""The ``addnorm`` command.

Each subcommand is a module beside this one with a dataclass of its options and a function
``run(options) -> exit status``; it is imported when it is called, so that help comes at once. This
file is the only one that knows which library reads the command line.
"""

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, UseAppendAction, arg

from addnorm import __version__
from addnorm.cli.threads import choose_waiting

__all__ = ["Positional", "Refusal", "UseAppendAction", "arg", "main", "read"]

Options = TypeVar("Options")


class Refusal(Exception):
    """What was asked cannot be done: the message goes to stderr; the exit status is 2, if it was
    the asking that was wrong."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Command:
    """One subcommand: ``addnorm.cli.<name>`` holds its ``Options`` and ``run``."""

    name: str
    summary: str


COMMANDS = (
    Command("train", "train a model of your own on your own text"),
    Command("generate", "write on after a prompt"),
    Command("eval", "how probable a model finds a text: perplexity, bits per byte"),
    Command("export", "write a model for transformers, ONNX runtimes or llama.cpp, and check it"),
    Command("lint", "what is wired wrong in a Transformer, anybody's, before training"),
    Command("schemes", "list, explain and measure the designs of Add & Norm"),
)


def read(kind: type[Options], args: Sequence[str], prog: str, description: str) -> Options:
    """The options of a command from its arguments; exits with status 2 if they do not fit.

    ``kind`` is a dataclass, whose fields may be dataclasses; defaults, types and docstrings of the
    fields make the options. Options of nested dataclasses have no prefix.
    """
    config = (OmitArgPrefixes, FlagCreatePairsOff)
    return tyro.cli(kind, args=args, prog=prog, description=description, config=config)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = list(sys.argv[1:] if args is None else args)
    first = given[0] if given else "--help"
    if first in ("-h", "--help"):
        print(_help())
        return 0
    if first == "--version":
        print(f"addnorm {__version__}")
        return 0
    command = next((c for c in COMMANDS if c.name == first), None)
    try:
        if command is None:
            raise Refusal(f"no command {first!r}\n\n{_help()}")
        choose_waiting()
        module: Any = import_module(f"addnorm.cli.{command.name}")
        prog = f"addnorm {command.name}"
        words = getattr(module, "arranged", list)(given[1:])
        status: int = module.run(read(module.Options, words, prog, module.__doc__))
    except Refusal as refusal:
        print(f"addnorm: {refusal}", file=sys.stderr)
        return refusal.status
    except BrokenPipeError:  # the reader, such as head, had enough
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        print("addnorm: interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # the one place: a bug of ours, told without a wall of text
        log = Path(tempfile.gettempdir()) / f"addnorm-error-{os.getpid()}.txt"
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        print(
            f"addnorm: this is a bug in addnorm: {type(error).__name__}: {error}\n"
            f"What led to it is in {log}; please report it with the command you gave",
            file=sys.stderr,
        )
        return 70
    return status


def _help() -> str:
    width = max(len(c.name) for c in COMMANDS)
    commands = "\n".join(f"  {c.name:{width}}  {c.summary}" for c in COMMANDS)
    return (
        "usage: addnorm COMMAND ...\n\n"
        "The residual stream you can choose, measure and trust.\n\n"
        f"commands:\n{commands}\n\n"
        "addnorm COMMAND --help tells its options; addnorm --version the version."
    )
