"""One run of pytest in a process forked from a warm one, on a copy of the tree.

The warm process has imported torch and its like, but never the package that is tested: each child
imports that from its own copy, with whatever was changed there.
"""

import contextlib
import json
import math
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

from benchmarks.mutants.trace import VARIABLE, Tracer, add_lines

WAITING = 60.0  # seconds on the clock, beyond twice those: for a mutant that waits for ever
MEMORY = 8 << 30  # bytes: a mutant that asks for no end of it must not take the machine down
SIDE_BY_SIDE = ("tests", "benchmarks")  # packages that the warm process may have from elsewhere


@dataclass(frozen=True)
class Job:
    """What a child is to run."""

    tests: tuple[str, ...]  # node ids, in this order; or whole files, where they are traced
    seconds: float  # of processor time, for each process: an endless loop ends there
    trace: tuple[str, ...] = ()  # the files whose lines are noted


@dataclass(frozen=True)
class Result:
    """How it ended."""

    outcome: str  # "survived", "killed" (a test failed, or Python died), "timeout"
    test: str = ""  # the one that failed, or was running
    message: str = ""
    number: int = 0  # of tests that began
    report: Mapping[str, Any] | None = None  # of a traced run


class Slot:
    """A copy of the tree, and at most one child that works there."""

    def __init__(self, folder: Path, package: str, support: Path) -> None:
        self.folder, self.tree = folder, folder / "tree"
        self.package, self.support = package, support
        self.pid, self.until, self.job = 0, 0.0, Job((), 0.0)

    def write(self, file: str, text: str) -> None:
        """Put a text into a file of the copy."""
        (self.tree / file).write_text(text)

    def start(self, job: Job) -> None:
        """Fork a child for it."""
        for name in ("tmp", "notes"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir()
        self.job, self.until = job, time.monotonic() + WAITING + 2 * job.seconds
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _child(self, job)

    def poll(self) -> Result | None:
        """The result, once there is one."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        late = pid == 0 and time.monotonic() > self.until
        if pid == 0 and not late:
            return None
        if late:
            self.stop()
        else:
            self._sweep()
        return self.result(late, status)

    def stop(self) -> None:
        """End the child, if one runs."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._sweep()

    def _sweep(self) -> None:
        """End what a child that ended has left running."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.pid = 0

    def result(self, late: bool, status: int) -> Result:
        """What a child that ended has left in its notes."""
        notes = self.folder / "notes"
        started = notes / "started"
        lines = started.read_text().splitlines() if started.exists() else []
        last = lines[-1] if lines else ""
        if late or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
            return Result("timeout", last, f"over {self.job.seconds:.0f} s", len(lines))
        if not (notes / "report.json").exists():
            output = (notes / "output").read_text(errors="replace").splitlines()
            why = output[-1] if output else f"status {status}"
            return Result("killed", last, f"the process died: {why}", len(lines))
        report = json.loads((notes / "report.json").read_text())
        if report["failed"] and not self.job.trace:
            test, message = report["failed"][0]
            return Result("killed", test, message, len(lines))
        return Result("survived", number=len(lines), report=report)


# --- in the child ---------------------------------------------------------------------------------


def _child(slot: Slot, job: Job) -> NoReturn:
    """Run the tests of a job, leave a report in the notes, and end."""
    leave = os._exit
    try:
        os.setsid()
        _enter(slot)
        files = {test.split("::")[0]: None for test in job.tests}
        arguments = ["-x"] if not job.trace else []
        arguments += ["-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist"]
        arguments += [f"--basetemp={slot.folder / 'tmp' / 'pytest'}", f"--rootdir={slot.tree}"]
        # What the warm process has imported, pytest cannot look into for asserts.
        arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        arguments += ["--hypothesis-seed=0", "--tb=short", *files]
        plugin = Tracing(slot, job) if job.trace else Runner(slot, job)
        pytest.main(arguments, plugins=[plugin])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        leave(0)


def _enter(slot: Slot) -> None:
    """Make the copy the place where everything is imported from, here and in what is started."""
    seconds = math.ceil(slot.job.seconds)
    for what, limit in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_DATA, MEMORY),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, resource.getrlimit(what)[1]))
    os.chdir(slot.tree)
    output = os.open(slot.folder / "notes" / "output", os.O_WRONLY | os.O_CREAT)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for here, there in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(here, there)
    os.environ.update(
        PYTHONPATH=f"{slot.support}{os.pathsep}{slot.tree}",
        TMPDIR=str(slot.folder / "tmp"),
        HYPOTHESIS_STORAGE_DIRECTORY=str(slot.folder / "tmp" / "hypothesis"),
        TORCHINDUCTOR_CACHE_DIR=str(slot.folder.parent / "inductor"),
        OMP_NUM_THREADS="1",
    )
    tempfile.tempdir = None
    sys.dont_write_bytecode = False  # pytest keeps its version of the test files
    elsewhere = [p for p in sys.path if (Path(p or ".") / slot.package / "__init__.py").exists()]
    sys.path[:] = [str(slot.tree), *(p for p in sys.path if p and p not in elsewhere)]
    for name in list(sys.modules):
        assert name.split(".")[0] != slot.package, f"{name} was imported before the fork"
        if name.split(".")[0] in SIDE_BY_SIDE:
            del sys.modules[name]
    # Else a process that is spawned would first import what the warm process was started as.
    sys.modules["__main__"] = ModuleType("__main__")


class Runner:
    """Runs the tests of a job in its order, and notes which one failed."""

    def __init__(self, slot: Slot, job: Job) -> None:
        self.notes, self.tests = slot.folder / "notes", job.tests
        self.report: dict[str, Any] = {"failed": []}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        place = {test: i for i, test in enumerate(self.tests)}
        items[:] = sorted(
            (item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid]
        )

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        with (self.notes / "started").open("a") as file:
            file.write(nodeid + "\n")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.report["failed"].append((report.nodeid, _message(report)))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.report["failed"].append((report.nodeid, _message(report)))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        (self.notes / "report.json").write_text(json.dumps(self.report))


def _message(report: pytest.TestReport | pytest.CollectReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else report.longreprtext
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    return (lines[0] if crash is not None else lines[-1]).strip()[:200]


class Tracing(Runner):
    """Runs whole files and notes for each test its lines, its seconds, and what it leans on.

    What a fixture of wider scope ran is noted under the fixture's name, since only the first test
    that asks for it pays; it belongs to all that ask for it. Caches of functions are emptied before
    each test for the same reason.
    """

    def __init__(self, slot: Slot, job: Job) -> None:
        super().__init__(slot, job)
        self.tree, self.package = slot.tree, slot.package
        self.tracer = Tracer([str(slot.tree / f) for f in job.trace], str(self.notes))
        self.time_at_start = _seconds()
        self.report |= {"tests": {}, "fixtures": {}, "leans": {}, "collecting": 0.0}
        self.set_up: dict[int, str] = {}
        self.in_fixtures = 0.0
        self.tracer.start()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        self.report["collecting"] = _seconds() - self.time_at_start

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._empty_caches()
        self.in_fixtures, start = 0.0, _seconds()
        self.tracer.switch(item.nodeid)
        result = yield
        self.tracer.switch("")
        seconds = _seconds() - start - self.in_fixtures
        self.report["tests"][item.nodeid] = seconds
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        fixtures = item._fixtureinfo.name2fixturedefs  # type: ignore[attr-defined]
        every = [id(fixture) for group in fixtures.values() for fixture in group]
        leans = [self.set_up[i] for i in every if i in self.set_up]
        self.report["leans"][item.nodeid] = leans

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Iterator[None]:
        if fixturedef.scope == "function":
            return (yield)
        name = f"fixture {fixturedef.baseid}::{fixturedef.argname} {len(self.report['fixtures'])}"
        self.set_up[id(fixturedef)] = name
        before, start, already = self.tracer.switch(name), _seconds(), self.in_fixtures
        try:
            return (yield)
        finally:
            seconds = _seconds() - start
            self.report["fixtures"][name] = seconds - (self.in_fixtures - already)
            self.in_fixtures = already + seconds
            self.tracer.switch(before)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        sys.settrace(None)
        lines = self.tracer.masks()
        for path in self.notes.glob("*.json"):
            add_lines(lines, json.loads(path.read_text()))
        self.report["lines"] = {
            context: {os.path.relpath(f, self.tree): hex(n) for f, n in files.items()}
            for context, files in lines.items()
        }
        os.environ.pop(VARIABLE)
        super().pytest_sessionfinish()

    def _empty_caches(self) -> None:
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] in (self.package, "tests"):
                for value in list(vars(module).values()):
                    if callable(clear := getattr(value, "cache_clear", None)):
                        clear()


def _seconds() -> float:
    """Processor time of this process and those it started and that ended: what else the machine
    does is not in it."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in usages)
