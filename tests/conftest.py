"""What holds for all tests."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """``fsync`` takes 10 ms, thousands of times, and what it is for no test can see: that a machine
    may lose power. When it is called, and what follows if it fails, is tested with others in its
    place; programs that tests start have the real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which also refuses what is not open
        yield
