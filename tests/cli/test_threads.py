"""How the command has its threads wait: chosen by what else runs, before torch is loaded."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from addnorm.cli import threads
from addnorm.cli.threads import BUSY, QUIET, choose_waiting, running_beside, waiting


@pytest.mark.parametrize(
    ("beside", "usable", "cores", "answer"),
    [
        ([0, 0, 0, 0], 2, 2, QUIET),
        ([1, 1, 1, 1], 2, 2, BUSY),
        ([0, 1, 0, 0], 2, 2, QUIET),  # a glimpse of something short
        ([3, 0, 2, 1], 2, 2, BUSY),
        ([1, 1, 1, 1], 2, 4, QUIET),  # two cores of the machine are left to others
        ([3, 3, 3, 3], 2, 4, BUSY),
        ([], 2, 2, {}),  # a system that does not tell
    ],
)
def test_threads_sleep_where_others_want_the_cores(
    beside: list[int], usable: int, cores: int, answer: dict[str, str]
) -> None:
    assert waiting(beside, usable, cores) == answer


def test_what_runs_beside_is_counted_without_this_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "LOADAVG", tmp_path / "loadavg")
    assert running_beside() == []  # no such file: another system
    (tmp_path / "loadavg").write_text("0.50 0.60 0.70 4/321 12345\n")
    assert running_beside() == [3] * threads.LOOKS
    (tmp_path / "loadavg").write_text("")
    assert running_beside() == []


def test_what_the_user_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for name in threads.OF_THE_USER:
        monkeypatch.setenv(name, "as it was")
        before = dict(os.environ)
        choose_waiting()
        assert dict(os.environ) == before
        monkeypatch.delenv(name)


def test_nothing_is_set_once_torch_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in threads.OF_THE_USER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "torch", sys)
    choose_waiting()
    assert not set(threads.OF_THE_USER) & set(os.environ)


@pytest.mark.parametrize("settings", [QUIET, BUSY], ids=["quiet", "busy"])
def test_openmp_heeds_it(settings: dict[str, str]) -> None:
    """From the command to OpenMP itself, which prints what it read when torch loads it."""
    code = (
        "from addnorm.cli import main, threads\n"
        f"threads.waiting = lambda *counts: {settings!r}\n"
        "main(['train', '--print-config'])"
    )
    free = {name: v for name, v in os.environ.items() if name not in threads.OF_THE_USER}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**free, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    told = dict(re.findall(r"(\w+) = '([^']*)'", result.stderr))
    if "GOMP_SPINCOUNT" not in told:
        pytest.skip("this torch has another OpenMP than GNU's")
    assert told["GOMP_SPINCOUNT"] == settings.get("GOMP_SPINCOUNT", "0")
