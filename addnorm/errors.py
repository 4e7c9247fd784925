"""What a user can mend has one base class, so that it is never mistaken for a bug of ours; and the
checks of single values that every room needs."""

from collections.abc import Iterable
from typing import TypeGuard

from addnorm.words import did_you_mean

LONGEST = 60  # characters of a value in a message
MOST = 1 << 28
"""No size is larger: two of them, multiplied, still count the bytes of a tensor in 64 bits."""


class Mendable(ValueError):
    """What was asked cannot be done as asked; the message says what is wrong and what to do.

    The command line tells exactly these without a traceback. Whatever else is raised, another
    ``ValueError`` included, is a bug of ours and shown as one.
    """


def check_whole(name: str, value: object, least: int = 1) -> None:
    """A size is a whole number, from ``least`` up to ``MOST``."""
    if type(value) is not int or value < least:
        raise Mendable(
            f"{name} must be a whole number of at least {least}, got {value_in_short(value)}"
        )
    if value > MOST:
        raise Mendable(f"{name} must be at most {MOST}, got {value_in_short(value)}")


def check_known(what: str, name: object, names: Iterable[str]) -> None:
    """Raise if a name is not one of these."""
    known_names = list(names)
    if name not in known_names:
        raise Mendable(unknown_name(what, name, known_names))


def unknown_name(what: str, name: object, names: Iterable[object]) -> str:
    """The message for a name that is not known, with the near ones, or else with all there are."""
    known_names = list(names)
    listed = f"there are {', '.join(map(str, known_names))}" if known_names else "there is none"
    return f"unknown {what} {value_in_short(name)}; {did_you_mean(name, known_names) or listed}"


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number that a float can hold, inf and nan being none, nor True and False."""
    return isinstance(value, int | float) and type(value) is not bool and -1e300 < value < 1e300


def value_in_short(value: object) -> str:
    """A value as Python writes it, cut to what a message can bear."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
