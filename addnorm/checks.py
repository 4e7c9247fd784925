"""Checks of single values: what a size, a number or a name may be; else a ``Mendable``."""

from collections.abc import Iterable
from typing import TypeGuard

from addnorm.errors import Mendable, unknown_name, value_in_short

MOST = 1 << 28
"""No size is larger: two of them, multiplied, still count the bytes of a tensor in 64 bits."""


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Raise unless a size is an ``int``, not True or False, from ``least`` up to ``MOST``; ``name``
    is what the message calls it."""
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


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number that a float can hold, inf and nan being none, nor True and False."""
    return isinstance(value, int | float) and type(value) is not bool and -1e300 < value < 1e300
