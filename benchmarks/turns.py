"""Two things timed beside each other: in turns, so that what the machine does else meets both."""

import statistics
import time
from collections.abc import Callable, Sequence


def in_turns(runs: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each of two, once a round, in turns of who goes first."""
    seconds: list[list[float]] = [[], []]
    for i in range(rounds):
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            start = time.perf_counter()
            runs[which]()
            seconds[which].append(time.perf_counter() - start)
    return seconds


def rates_in_words(seconds: Sequence[Sequence[float]], tokens: int, digits: int = 0) -> str:
    """Tokens per second of both, medians over the rounds, and the ratio: the median of the rounds'
    ratios, with the lowest and the highest."""
    mine, other = (tokens / statistics.median(s) for s in seconds)
    ratios = sorted(b / a for a, b in zip(*seconds, strict=True))
    return (
        f"{mine:9.{digits}f} {other:9.{digits}f}   {statistics.median(ratios):.2f} "
        f"[{ratios[0]:.2f}, {ratios[-1]:.2f}]"
    )
