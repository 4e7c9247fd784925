"""The ``addnorm`` command.

Each subcommand is a module beside this one with a dataclass of its options and a function
``run(options) -> exit status``; it and the library that reads its
options are imported when it is called, so that help comes at once.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, final

from addnorm.cli import output
from addnorm.cli.failures import reported
from addnorm.cli.refusal import Refusal
from addnorm.cli.threads import choose_waiting
from addnorm.errors import unknown_name
from addnorm.version import __version__


@final
@dataclass(frozen=True)
class Command:
    """One subcommand: ``addnorm.cli.<name>`` holds its ``Options`` and ``run``, and, where words
    have to be put in order before they are read, ``arrange(words) -> words``."""

    name: str
    summary: str


COMMANDS = (
    Command("train", "train a model on your own texts, labels, pairs, recordings, conversations"),
    Command("generate", "continue a prompt"),
    Command("chat", "talk with a model that has learned from conversations"),
    Command("predict", "ask a trained model: a label, a translation, an answer, what is said"),
    Command("eval", "measure how good a model is on data that it has not seen"),
    Command("export", "write a model for transformers, ONNX runtimes or llama.cpp, and check it"),
    Command("lint", "find what is wired wrong in any Transformer, before training"),
    Command("schemes", "list, explain and measure the designs of Add & Norm"),
)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    output.prepare_streams()
    return reported(lambda: _run(list(sys.argv[1:] if args is None else args)))


def _run(words: list[str]) -> int:
    """Run one command and return its exit status; ``words`` are those behind ``addnorm``. What it
    raises is for ``reported`` to say."""
    first = words[0] if words else "--help"
    if first in ("-h", "--help"):
        print(_help())
        return 0
    if first == "--version":
        return _version(words[1:])
    command = next((c for c in COMMANDS if c.name == first), None)
    if command is None:
        message = unknown_name("command", first, [c.name for c in COMMANDS])
        raise Refusal(f"{message}\n\n{_help()}")
    from addnorm.cli.arguments import read

    choose_waiting()
    module: Any = import_module(f"addnorm.cli.{command.name}")
    prog = f"addnorm {command.name}"
    arrange = getattr(module, "arrange", list)
    status: int = module.run(read(module.Options, arrange(words[1:]), prog, module.__doc__))
    return status


def _version(words: list[str]) -> int:
    """Print the version at once; with ``--verbose``, the one word that may follow, what takes torch
    and seconds. Returns the exit status."""
    if not words:
        print(f"addnorm {__version__}")
        return 0
    if words != ["--verbose"]:
        raise Refusal(f"--version is followed by --verbose or by nothing, not {' '.join(words)!r}")
    choose_waiting()
    status: int = import_module("addnorm.cli.version").run()
    return status


def _help() -> str:
    width = max(len(c.name) for c in COMMANDS)
    commands = "\n".join(f"  {c.name:{width}}  {c.summary}" for c in COMMANDS)
    return (
        "usage: addnorm COMMAND ...\n\n"
        "The residual stream you can choose, measure and trust.\n\n"
        f"commands:\n{commands}\n\n"
        "addnorm COMMAND --help lists the options of a command, addnorm --version the version;\n"
        "with --verbose also whether the kernels of this machine compute what they should."
    )
