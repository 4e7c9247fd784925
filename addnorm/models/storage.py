"""What the models know of the disk: that each kind of them has a storage, and how to ask for it.

A room that reads models builds them, so it imports them, and they cannot import it, not even late,
without a circle of files. The package's face, which knows every room by its name, says here where
the storage of a model is; it is imported when the first model is read or written. So this file
imports nothing, and models do no more than ask.
"""

from collections.abc import Callable
from typing import Any, Protocol


class Storage(Protocol):
    """Reads and writes the models of one class."""

    def load(self, path_or_id: Any, **options: Any) -> tuple[Any, Any]:
        """The model, and a report of what was found; the options are the kind's."""
        ...

    def save(self, model: Any, path: Any, **options: Any) -> None:
        """Write the folder that ``load`` reads."""
        ...


_PLACES: dict[str, Callable[[], Storage]] = {}


def place(model: str, storage: Callable[[], Storage]) -> None:
    """Say where the storage of a class of models is; it is asked for when it is first needed."""
    _PLACES[model] = storage


def of(model: str) -> Storage:
    """The storage of a class of models."""
    return _PLACES[model]()
