"""Worker threads: order and values do not depend on timing, errors have their places."""

import threading
import time
from collections.abc import Iterator

import pytest

from addnorm.data.decoding import Ahead, Decoders, workers
from addnorm.errors import Mendable


def test_the_order_is_that_of_the_items() -> None:
    """The first ones take longest, so that the threads finish in another order."""
    ends = list[int]()

    def decode(n: int) -> int:
        time.sleep(0.02 if n % 4 == 0 else 0.0)
        ends.append(n)
        if n % 7 == 3:
            raise Mendable(f"{n} is bad")
        return n * n

    with Decoders(decode, 4) as decoders:
        outcomes = list(decoders.outcomes(range(40)))
    assert [o.item for o in outcomes] == list(range(40))
    assert ends != list(range(40)), "they did finish in another order"
    assert all(o.value == o.item**2 for o in outcomes if o.error is None)
    assert [str(o.error) for o in outcomes if o.error] == [f"{n} is bad" for n in range(3, 40, 7)]
    assert decoders.rate("numbers").startswith("40 numbers decoded, ")
    with pytest.raises(Mendable, match="3 is bad"):
        outcomes[3].sure()
    assert outcomes[4].sure() == 16


def test_items_are_taken_as_they_are_needed() -> None:
    taken_numbers = list[int]()

    def numbers() -> Iterator[int]:
        for n in range(1000):
            taken_numbers.append(n)
            yield n

    def same(n: int) -> int:
        return n

    with Decoders(same, 2) as decoders:
        stream = decoders.outcomes(numbers())
        assert next(stream).value == 0
        assert len(taken_numbers) < 20
        stream.close()


def test_a_bug_is_no_outcome() -> None:
    def inverse(n: int) -> int:
        return 1 // n

    with Decoders(inverse, 2) as decoders, pytest.raises(ZeroDivisionError):
        list(decoders.outcomes([1, 0, 1]))
    assert workers() >= 1


def test_what_comes_next_is_computed_ahead() -> None:
    calls, ready = list[int](), threading.Event()

    def compute(key: int) -> int:
        calls.append(key)
        if key == 2:
            ready.set()
        return key * 10

    ahead = Ahead(compute, lambda key: key + 1, depth=2)
    assert ahead(0) == 0
    assert ready.wait(5)
    assert [ahead(key) for key in (1, 2, 7, 8, 1, 8)] == [10, 20, 70, 80, 10, 80]
    assert calls.count(1) == 2, "asked for again, it is computed again"
    assert calls.count(2) <= 2
