"""How the threads of this process wait for each other.

Torch computes with OpenMP, whose threads spin while they wait: 15 ms and more, as GNU's library
comes. Where another program wants the same cores, they spin away the time of the very thread that
they wait for, and training gets ten times slower and more. A thread that sleeps at once leaves its
core to others, but waking it costs on a quiet machine. So threads spin shortly where nothing else
runs, and not at all where something does; docs/log.md has the measurements. OpenMP reads this once,
when torch is loaded: hence this file imports nothing heavy.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

QUIET = {"GOMP_SPINCOUNT": "3000"}
BUSY = {"OMP_WAIT_POLICY": "PASSIVE"}
OF_THE_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
LOOKS, PAUSE = 10, 0.003  # 30 ms: torch takes seconds to load
LOADAVG = Path("/proc/loadavg")


def choose_waiting() -> None:
    """Say how OpenMP waits, unless the user has said it or torch is loaded already."""
    if "torch" in sys.modules or any(name in os.environ for name in OF_THE_USER):
        return
    os.environ.update(waiting(running_beside(), _usable(), os.cpu_count() or 1))


def waiting(beside: Sequence[int], usable: int, cores: int) -> dict[str, str]:
    """The variables to set, QUIET or BUSY: BUSY where in most looks there were fewer idle cores
    than this process uses. ``beside``: how many other threads ran at each look, empty where nothing
    could be seen, and then nothing is set. ``usable``: cores that this process may use, of the
    ``cores`` of the machine."""
    if not beside:
        return {}
    crowded = [count + usable > cores for count in beside]
    return BUSY if 2 * sum(crowded) > len(crowded) else QUIET


def running_beside() -> list[int]:
    """How many threads other than this one ran or wanted to, at each of LOOKS looks; empty where
    the system does not tell, as Linux does."""
    counts = []
    for _ in range(LOOKS):
        try:
            running = LOADAVG.read_text().split()[3].partition("/")[0]
        except (OSError, IndexError):
            return []
        counts.append(int(running) - 1)
        time.sleep(PAUSE)
    return counts


def _usable() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1
