"""What a command prints, whatever is at the other end: a terminal, a pipe, a full disk.

A character that a stream's encoding lacks is written as an escape, and so is, at a terminal, one
that would control it: whatever a model writes is shown. A pipe or a file gets characters as they
are.
"""

import codecs
import errno
import io
import json
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What a disk refuses to write with, whoever wrote the program."""

STEERING = {c: f"\\u{c:04x}" for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}
"""Control characters -> an escape that Python and JSON read alike."""


def prepare_streams() -> None:
    """A stream that is closed takes everything, and one of any encoding every character."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (it stays)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def legible(text: str, stream: TextIO | None = None) -> str:
    """The text as it may go to a stream, stdout if none is named."""
    stream = sys.stdout if stream is None else stream
    return text.translate(STEERING) if stream.isatty() else text


def json_line(value: Any) -> str:
    """JSON for stdout, in characters that its encoding has."""
    encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name
    return legible(json.dumps(value, ensure_ascii=encoding != "utf-8"))


def say(message: str) -> None:
    """One message to stderr, as long as anybody listens there."""
    try:
        print(f"addnorm: {legible(message, sys.stderr)}", file=sys.stderr, flush=True)
    except OSError:
        give_up(sys.stderr)


def give_up(stream: TextIO) -> None:
    """What is left in a stream goes nowhere; else the interpreter stumbles over it at its end."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a disk that took no more is behind an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def memory_is_short(error: Exception) -> bool:
    """Whether there was no room for a tensor, on the machine or on its accelerator."""
    names = {kind.__name__ for kind in type(error).__mro__}  # torch need not be loaded for this
    return not names.isdisjoint({"MemoryError", "OutOfMemoryError"}) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )
