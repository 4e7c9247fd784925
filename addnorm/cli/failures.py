"""How a command ends: the exit status, and what is said, for every way to fail.

The one place where errors are reported. What the user can mend is one message, a bug in addnorm is
reported as such, and no part of a command decides for itself which of the two an error is.
"""

import sys
import tempfile
import traceback
from collections.abc import Callable

from addnorm.cli import output
from addnorm.cli.refusal import Refusal
from addnorm.errors import Mendable
from addnorm.words import first_line


def reported(command: Callable[[], int]) -> int:
    """Run a command that returns its exit status; whatever it raises is said, and becomes one."""
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()  # here, where it can be told if it fails
    except BrokenPipeError:  # the reader, such as head, had enough
        output.give_up(sys.stdout)
        return 1
    except KeyboardInterrupt:
        output.say("interrupted")
        return 130  # 128 + SIGINT, as shells have it
    except Mendable as error:
        output.say(str(error))
        if output.disk_is_full(error):
            return 1
        return error.status if isinstance(error, Refusal) else 2
    except Exception as error:
        return _unexpected(error)


def _unexpected(error: Exception) -> int:
    """Say what an error is that no part of addnorm expects, the machine's lack of room or a bug,
    and return the exit status for it."""
    if isinstance(error, OSError) and output.disk_is_full(error):
        output.give_up(sys.stdout)
        output.say(f"cannot write {error.filename or 'the output'}: {error.strerror}")
        return 1
    if output.memory_is_short(error):
        output.say(f"there is not enough memory for this: {first_line(str(error))}")
        return 1
    output.say(
        f"this is a bug in addnorm: {type(error).__name__}: {error}\n{_report(error)}; please "
        "report it together with the command that you ran"
    )
    return 70  # EX_SOFTWARE of sysexits.h


def _report(error: Exception) -> str:
    """A sentence, without its period, that says where the traceback is: in a new file that nobody
    can have put there before, or, if none can be written, before the sentence itself."""
    text = "".join(traceback.format_exception(error))
    try:
        descriptor, name = tempfile.mkstemp(prefix="addnorm-error-", suffix=".txt")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return f"{text}This is the traceback"
    return f"The traceback is in {name}"
