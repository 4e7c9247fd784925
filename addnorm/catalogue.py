"""The register of designs: from a name to a scheme, and where it comes from.

``schemes.py`` fills it with two decorators.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast, final, get_type_hints

from addnorm.errors import Mendable, unknown_name
from addnorm.stream import Site, Wiring

F = TypeVar("F", bound=Callable[..., Any])


@final
class SchemeError(Mendable):
    """A text that names no scheme, or a scheme that cannot be built as asked."""


# --- the register ---------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class SchemeEntry:
    """One function of schemes.py and where it comes from."""

    name: str
    function: Callable[..., Any]
    equation: str
    paper: str
    year: int
    plain: bool  # the function is the scheme itself; otherwise it returns one

    def parameters(self) -> dict[str, tuple[Any, Any]]:
        """Name -> (type, default or inspect.Parameter.empty); none for a plain scheme."""
        if self.plain:
            return {}
        hints = get_type_hints(self.function)
        signature = inspect.signature(self.function)
        return {n: (hints[n], p.default) for n, p in signature.parameters.items()}

    def usage(self) -> str:
        """How the entry is written in the text of a scheme: its name and arguments."""
        if not self.parameters():
            return self.name
        arguments = [
            n if default is inspect.Parameter.empty else f"{n}={default}"
            for n, (_, default) in self.parameters().items()
        ]
        return f"{self.name}({', '.join(arguments)})"


_designs: dict[str, SchemeEntry] = {}
_combinators: dict[str, SchemeEntry] = {}


def design(equation: str, paper: str, year: int) -> Callable[[F], F]:
    """Register a design: a function Site -> Wiring, or one that returns such a function."""
    return _register(_designs, equation, paper, year)


def combinator(equation: str, paper: str, year: int) -> Callable[[F], F]:
    """Register a function from a scheme to a scheme."""
    return _register(_combinators, equation, paper, year)


def _register(
    where: dict[str, SchemeEntry], equation: str, paper: str, year: int
) -> Callable[[F], F]:
    """A decorator that puts a function into ``where`` by its name, with what is said of it. One
    that returns a Wiring is a scheme itself; any other returns a scheme, and comes back guarded by
    ``_family``."""

    def add(function: F) -> F:
        plain = get_type_hints(function)["return"] is Wiring
        name = function.__name__
        guarded = function if plain else _family(function)
        where[name] = SchemeEntry(name, guarded, equation, paper, year, plain)
        return guarded

    return add


def _family(function: F) -> F:
    """A function that returns a scheme, as it is, but for a ``SchemeError`` where it is called with
    a Site, as if it were a scheme itself."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], Site):
            usage = entry(function.__name__).usage()
            raise SchemeError(f"{function.__name__} is a family, to be called first: {usage}")
        return function(*args, **kwargs)

    return cast(F, guarded)


def names() -> list[str]:
    """The designs, in the order of schemes.py."""
    return list(_designs)


def combinators() -> list[str]:
    """The functions from a scheme to a scheme, in the order of schemes.py."""
    return list(_combinators)


def entry(name: str) -> SchemeEntry:
    """What is registered under a name, design or combinator; else a ``SchemeError``."""
    entries = _designs | _combinators
    if name not in entries:
        raise SchemeError(unknown_name("scheme", name, entries))
    return entries[name]
