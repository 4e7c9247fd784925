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


# --- a scheme with a name -------------------------------------------------------------------------


@final
class NamedScheme:
    """A scheme of the register: called as any function Site -> Wiring, printed as the text from
    which ``schemes.parse`` makes it, and found again by it when it is pickled.

    ``function``: what is called. ``design``: its name in the register. ``arguments``: those with
    which that was called, by name; None where the design is a scheme itself.
    """

    def __init__(
        self, function: Callable[[Site], Wiring], design: str, arguments: dict[str, Any] | None
    ) -> None:
        self.function, self.design, self.arguments = function, design, arguments
        self.__doc__ = function.__doc__

    def __call__(self, site: Site) -> Wiring:
        return self.function(site)

    def __repr__(self) -> str:
        if self.arguments is None:
            return self.design
        parameters = entry(self.design).parameters()
        words = [
            repr(value) if parameters[name][1] is inspect.Parameter.empty else f"{name}={value!r}"
            for name, value in self.arguments.items()
        ]
        return f"{self.design}({', '.join(words)})"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _registered_scheme, (self.design, self.arguments)


def _registered_scheme(design: str, arguments: dict[str, Any] | None) -> Any:
    """The scheme of a design, called with arguments if it has any."""
    function = entry(design).function
    return function if arguments is None else function(**arguments)


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
        value = NamedScheme(function, name, None) if plain else _family(function)
        where[name] = SchemeEntry(name, value, equation, paper, year, plain)
        return cast(F, value)

    return add


def _family(function: F) -> F:
    """A function that returns a scheme, which knows how it was made; a ``SchemeError`` where it is
    called with a Site, as if it were a scheme itself."""
    name = function.__name__
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], Site):
            raise SchemeError(f"{name} is a family, to be called first: {entry(name).usage()}")
        scheme = function(*args, **kwargs)
        binding = signature.bind(*args, **kwargs)
        binding.apply_defaults()
        return NamedScheme(scheme, name, dict(binding.arguments))

    return cast(F, call)


# --- other names ----------------------------------------------------------------------------------

ALIASES = {
    **dict.fromkeys(["gpt2", "llama", "pre_ln"], "pre_norm"),
    **dict.fromkeys(["bert", "post_ln"], "post_norm"),
    **dict.fromkeys(["peri_ln", "gemma2"], "sandwich"),
    **dict.fromkeys(["olmo2", "swin2"], "output_norm"),
    "magneto": "sub_ln",
    "deepnet": "deepnorm",
    "gpt_j": "parallel(pre_norm)",
}
"""What papers and models call a design -> its text here. Only where the norms sit and how branches
are added: ``llama`` does not choose RMSNorm."""


def search(word: str) -> list[str]:
    """The names of designs and combinators of which their name, an alias, their equation, their
    paper or what is said of them has this word, in small or capital letters; "" has all."""
    word = word.lower()
    names = []
    for name, one in (_designs | _combinators).items():
        aliases = [alias for alias, text in ALIASES.items() if text.split("(")[0] == name]
        texts = (name, *aliases, one.equation, one.paper, inspect.getdoc(one.function) or "")
        if word in " ".join(texts).lower():
            names.append(name)
    return names


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
        raise SchemeError(unknown_name("scheme", name, [*entries, *ALIASES]))
    return entries[name]
