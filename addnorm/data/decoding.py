"""Decoding of files in worker threads, pictures and sound alike: the order and the values of what
comes out do not depend on which thread was quicker.

Threads, since the decoders of both let go of Python's lock while they work::

    with Decoders(read_image) as decoders:
        for outcome in decoders.outcomes(files):
            ...
    decoders.rate("pictures")  # "1,200 pictures decoded, 3,400 a second"
"""

import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, NamedTuple, Self, TypeVar, final

from addnorm.errors import Mendable

Item = TypeVar("Item")
Value = TypeVar("Value")
Key = TypeVar("Key", bound=Hashable)

AHEAD = 4  # items in work for each thread, so that none waits for the reader
MOST = 8  # threads: more than that wait for the disk


def workers() -> int:
    """How many threads decode: as many as there are processors for this process, up to ``MOST``."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(count or 1, MOST))


class DecodedItem(NamedTuple, Generic[Item, Value]):
    """What came of one item: its ``value``, or the ``error`` that says why there is none."""

    item: Item
    value: Value | None
    error: Mendable | None

    def sure(self) -> Value:
        """The value, or the error raised."""
        if self.error is not None:
            raise self.error
        assert self.value is not None
        return self.value


@final
class Decoders(Generic[Item, Value]):
    """Threads that call ``decode`` on items; ``count`` of them, None: as many as ``workers`` says.

    What of ``decode`` is a ``Mendable`` is an outcome; anything else it raises ends the whole. Use
    as a context, so that the threads end.
    """

    def __init__(self, decode: Callable[[Item], Value], count: int | None = None) -> None:
        self._decode = decode
        self._count = workers() if count is None else count
        self._pool = ThreadPoolExecutor(self._count, thread_name_prefix="addnorm-decode")
        self.items, self.seconds = 0, 0.0
        """How many were decoded, and how long that took, from the first to the last."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def outcomes(self, items: Iterable[Item]) -> Iterator[DecodedItem[Item, Value]]:
        """One for each item, in their order; a few items are in work at a time, however many there
        are."""
        start, waiting = time.perf_counter(), deque[Future[DecodedItem[Item, Value]]]()
        try:
            for item in items:
                waiting.append(self._pool.submit(self._outcome, item))
                if len(waiting) > AHEAD * self._count:
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)
        finally:
            self.seconds += time.perf_counter() - start
            for future in waiting:
                future.cancel()

    def _next(self, waiting: "deque[Future[DecodedItem[Item, Value]]]") -> DecodedItem[Item, Value]:
        outcome = waiting.popleft().result()
        self.items += 1
        return outcome

    def _outcome(self, item: Item) -> DecodedItem[Item, Value]:
        try:
            return DecodedItem(item, self._decode(item), None)
        except Mendable as error:
            return DecodedItem(item, None, error)

    def rate(self, noun: str) -> str:
        """How quickly it went, in words; ``noun`` is what was decoded, in the plural."""
        per_second = self.items / max(self.seconds, 1e-9)
        return f"{self.items:,} {noun} decoded, {per_second:,.0f} a second"


@final
class Ahead(Generic[Key, Value]):
    """A pure function whose values are computed in a thread before they are asked for.

    ``compute``: key -> value, the same whenever it is called. ``next_key``: what will probably be
    asked for after a key. ``depth``: how many keys ahead. A value is given once; who asks in
    another order gets the same values, only later.
    """

    def __init__(
        self, compute: Callable[[Key], Value], next_key: Callable[[Key], Key], depth: int = 2
    ) -> None:
        self._compute, self._next_key, self._depth = compute, next_key, depth
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="addnorm-ahead")
        self._futures: OrderedDict[Key, Future[Value]] = OrderedDict()

    def __call__(self, key: Key) -> Value:
        """The value of a key; those of the keys after it are begun."""
        future = self._futures.pop(key, None)
        ahead, upcoming = key, list[Key]()
        for _ in range(self._depth):
            ahead = self._next_key(ahead)
            upcoming.append(ahead)
        for old in [k for k in self._futures if k not in upcoming]:
            self._futures.pop(old).cancel()
        for new in upcoming:
            if new not in self._futures:
                self._futures[new] = self._pool.submit(self._compute, new)
        return self._compute(key) if future is None else future.result()
