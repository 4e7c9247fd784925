"""Which implementation serves a call of an operation, and why.

An operation has a definition and kernels. Each call is offered to the kernels in order; one that
does not serve it raises ``Declined`` with the reason, and the definition serves what all declined.
``explain()`` says afterwards who served and who declined: a kernel that silently never runs looks
exactly like one that brings nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, final

import torch

REFERENCE = "reference"
FIRST = "offered first"


@final
class Declined(Exception):
    """Raised by a kernel that does not serve a call. The message is the reason, a few words that
    are the same for all such calls: ``explain`` counts by it."""


class Named(Protocol):
    """A kernel, as far as it matters here."""

    @property
    def name(self) -> str:
        """What ``explain`` calls it."""


K = TypeVar("K", bound=Named)
T = TypeVar("T")


@final
class Offers(Generic[K]):
    """The kernels of one operation in the order in which a call is offered to them, and how many
    calls each of them served."""

    def __init__(self, operation: str, *kernels: K) -> None:
        self.operation = operation
        self.kernels = list(kernels)
        self.calls: Counter[tuple[str, str]] = Counter()
        OPERATIONS[operation] = self

    def register(self, kernel: K) -> Callable[[], None]:
        """Offer a kernel, before all others. Returns a function that withdraws it."""
        self.kernels.insert(0, kernel)
        return lambda: self.kernels.remove(kernel)

    @contextmanager
    def only(self, *kernels: K) -> Iterator[None]:
        """Within it calls are offered to these kernels and no others, in all threads."""
        before = self.kernels[:]
        self.kernels[:] = kernels
        try:
            yield
        finally:
            self.kernels[:] = before

    def serve(self, attempt: Callable[[K], T], definition: Callable[[], T]) -> T:
        """What ``attempt`` gives with the first kernel for which it does not raise ``Declined``, or
        else ``definition``; and a count of it for ``explain``. Other errors go through."""
        refusals: list[str] = []
        for kernel in self.kernels:
            try:
                result = attempt(kernel)
            except Declined as refusal:
                refusals.append(f"{kernel.name}: {refusal}")
            else:
                self._count(kernel.name, refusals or [FIRST])
                return result
        self._count(REFERENCE, refusals or ["no kernel is registered"])
        return definition()

    def _count(self, implementation: str, why: list[str]) -> None:
        if not torch.compiler.is_compiling():
            self.calls[implementation, "; ".join(why)] += 1


OPERATIONS: dict[str, Offers[Any]] = {}
"""All operations by name; each ``Offers`` puts itself here when it is made."""


def register(kernel: Any) -> Callable[[], None]:
    """Offer a kernel of any operation, before those already registered. Returns a function that
    withdraws it."""
    return OPERATIONS[kernel.operation].register(kernel)


@contextmanager
def reference_only(*operations: str) -> Iterator[None]:
    """Within it the definition serves every call of these operations, or of all, in all threads."""
    with ExitStack() as stack:
        for operation in operations or OPERATIONS:
            stack.enter_context(OPERATIONS[operation].only())
        yield


@final
@dataclass(frozen=True)
class KernelCalls:
    """One row of ``explain()``."""

    operation: str
    implementation: str
    why: str
    calls: int


@final
@dataclass(frozen=True)
class KernelUse:
    """Which implementation served how many calls since the process began, and why."""

    rows: list[KernelCalls] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.rows:
            return "No operation has been called in eager mode yet."
        lines = [f"{r.operation}, {r.implementation}: {r.calls} calls ({r.why})" for r in self.rows]
        return "\n".join([*lines, "Calls inside torch.compile are the compiler's, not counted."])


def explain() -> KernelUse:
    """Which implementation served the calls of all operations so far, and why not another; those
    inside of ``torch.compile`` are not counted."""
    return KernelUse(
        [
            KernelCalls(operation, implementation, why, calls)
            for operation, offers in OPERATIONS.items()
            for (implementation, why), calls in offers.calls.most_common()
        ]
    )
