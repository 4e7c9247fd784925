"""What a user can mend has one base class, so that it is never mistaken for a bug of ours."""

from collections.abc import Iterable

from addnorm.words import did_you_mean

LONGEST = 60  # characters of a value in a message


class Mendable(ValueError):
    """What was asked cannot be done as asked; the message says what is wrong and what to do.

    The command line tells exactly these without a traceback. Whatever else is raised, another
    ``ValueError`` included, is a bug of ours and shown as one.
    """


def unknown_name(what: str, name: object, names: Iterable[object]) -> str:
    """The message for a name that is not known, with the near ones, or else with all there are."""
    known_names = list(names)
    listed = f"there are {', '.join(map(str, known_names))}" if known_names else "there is none"
    return f"unknown {what} {value_in_short(name)}; {did_you_mean(name, known_names) or listed}"


def value_in_short(value: object) -> str:
    """A value as Python writes it, cut to what a message can bear."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
