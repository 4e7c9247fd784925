"""Which tests reach a line, and how long they take."""

import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.mutants import trace
from benchmarks.mutants.child import Job, Result, Slot
from benchmarks.mutants.copies import Bench, Steps
from benchmarks.mutants.mutations import Mutation, functions
from benchmarks.mutants.project import Project

QUICK = 2.0  # seconds: slower tests come last, whatever file they are in
LONGEST = 1800.0  # seconds: for all tests of one file, when they are measured


@dataclass(frozen=True)
class Test:
    """What was measured of one test."""

    name: str
    seconds: float
    fixtures: tuple[str, ...]  # of wider scope, that it leans on
    lines: Mapping[str, int]  # by file, as bits

    @property
    def file(self) -> str:
        """The file it is in."""
        return self.name.split("::")[0]


@dataclass(frozen=True)
class Selection:
    """The tests of one mutant."""

    stages: list[list[Test]]
    seconds: list[float]  # what each stage takes on the code as it is
    cut: int  # tests that reach it, but are beyond the budget
    reached: bool  # whether any test is known to reach it


class Reach:
    """Which tests run which lines, and how long they take."""

    def __init__(
        self, project: Project, reports: Mapping[str, Any], sources: Mapping[str, str]
    ) -> None:
        self.project, self.sources = project, sources
        self.functions = [(file, *f) for file, text in sources.items() for f in functions(text)]
        self.tests: dict[str, Test] = {}
        self.fixtures: dict[str, float] = {}
        self.collecting: dict[str, float] = {}
        self.imported: dict[str, int] = {}
        self.failing: dict[str, str] = {}
        for file, report in reports.items():
            self._add(file, report)

    def _add(self, file: str, report: Any) -> None:
        self.collecting[file] = report["collecting"]
        self.fixtures |= {f"{file} {name}": s for name, s in report["fixtures"].items()}
        failing = dict(report["failed"])
        self.failing |= failing
        lines = {
            context: {f: int(n, 16) for f, n in files.items()}
            for context, files in report["lines"].items()
        }
        trace.add_lines({"": self.imported}, {"": lines.get("", {})})
        for name, seconds in report["tests"].items():
            if name not in failing:
                leans = report["leans"].get(name, [])
                own: dict[str, int] = {}
                for context in (name, *leans):
                    trace.add_lines({"": own}, {"": lines.get(context, {})})
                fixtures = tuple(f"{file} {f}" for f in leans)
                self.tests[name] = Test(name, seconds, fixtures, own)

    def reaching(self, m: Mutation) -> tuple[set[str], set[str]]:
        """The tests that may notice, and the nearest among them: those that run the line itself."""
        lines = _mask(*m.lines)
        if m.within == "outside":
            nearest = self._mentioning(m)
            return nearest | self._whole(m.file), nearest
        if m.within == "head":
            for file, name, body, _ in self.functions:
                if file == m.file and name == m.function:
                    lines |= _mask(*body)
        nearest = self._running(m.file, lines)
        if m.within == "body" and lines & self.imported.get(m.file, 0):
            return nearest | self._whole(m.file), nearest  # it runs while the file is imported
        return nearest, nearest

    def _running(self, file: str, lines: int) -> set[str]:
        return {t.name for t in self.tests.values() if t.lines.get(file, 0) & lines}

    def _whole(self, file: str) -> set[str]:
        """Those that run anything of a file once it is imported."""
        bodies = [_mask(*body) for f, _, body, _ in self.functions if f == file]
        return self._running(file, functools.reduce(int.__or__, bodies, 0))

    def _mentioning(self, m: Mutation) -> set[str]:
        """Those that run a function that mentions the name which a line outside of all assigns."""
        match = re.match(r"\s*(\w+)\s*[:=]", self.sources[m.file].splitlines()[m.lines[0] - 1])
        tests: set[str] = set()
        for file, _, body, names in self.functions:
            if match and match[1] in names:
                tests |= self._running(file, _mask(*body))
        return tests

    def selection(self, m: Mutation, budget: float) -> Selection:
        """A mutant's tests: quick and near ones, quick ones, slow ones, as far as the budget goes.

        Where none is known to reach it, those of the files that mirror it.
        """
        mirrors = self.project.near(m.file)
        names, nearest = self.reaching(m)
        reached = bool(names)
        if not reached:
            names = nearest = {t.name for t in self.tests.values() if t.file in mirrors}
        stages: list[list[Test]] = [[], [], []]
        for test in sorted((self.tests[n] for n in names), key=lambda t: (t.seconds, t.name)):
            near = test.file in mirrors and test.name in nearest
            stages[2 if self._cost([test]) > QUICK else 0 if near else 1].append(test)
        stages[2].sort(key=lambda t: (t.file not in mirrors, t.seconds))
        costs, cut = [], 0
        for i, stage in enumerate(stages):
            affordable, cost = self._affordable(stage, budget)
            cut += len(stage) - len(affordable)
            budget -= cost
            stages[i] = self._by_file(affordable)
            costs.append(cost)
        return Selection(stages, costs, cut, reached)

    def _affordable(self, tests: Sequence[Test], budget: float) -> tuple[list[Test], float]:
        """Those within a budget, the first ones first, and what they cost together: a fixture that
        several lean on is paid once."""
        within: list[Test] = []
        cost, fixtures = 0.0, set[str]()
        for test in tests:
            more = test.seconds + sum(self.fixtures[f] for f in {*test.fixtures} - fixtures)
            if cost + more <= budget:
                within.append(test)
                cost += more
                fixtures.update(test.fixtures)
        return within, cost

    def _cost(self, tests: Sequence[Test]) -> float:
        return self._affordable(tests, math.inf)[1]

    def _by_file(self, tests: list[Test]) -> list[Test]:
        """File by file, so that what their tests share is set up once; the quickest file first."""
        files: dict[str, list[Test]] = {}
        for test in tests:
            files.setdefault(test.file, []).append(test)
        return [t for group in sorted(files.values(), key=self._cost) for t in group]


def _mask(first: int, last: int) -> int:
    return sum(1 << n for n in range(first, last + 1))


def measure(bench: Bench, only: Sequence[str] | None, sources: Mapping[str, str]) -> Reach:
    """Which tests reach what: from the records where they hold, else by running the tests."""
    project, reports = bench.project, dict[str, Any]()
    todo: list[tuple[str, Path]] = []
    for test, record in _records(project, only, sources):
        if record.exists():
            reports[test] = json.loads(record.read_text())
        else:
            todo.append((test, record))
    trials = (_measuring(test, record, tuple(sources)) for test, record in todo)
    for i, (test, record, result) in enumerate(bench.work(trials)):
        if result.report is None:
            print(f"left out, it cannot be measured: {test}: {result.message} ({result.test})")
            continue
        for old in record.parent.glob(f"{Path(test).stem}-*.json"):
            old.unlink()
        record.write_text(json.dumps(result.report))
        reports[test] = result.report
        print(f"[{i + 1}/{len(todo)}] measured {test}: {result.number} tests", flush=True)
    reach = Reach(project, {test: reports[test] for test in sorted(reports)}, sources)
    for name, why in sorted(reach.failing.items()):
        print(f"left out, it fails on the code as it is: {name}: {why}")
    seconds = sum(t.seconds for t in reach.tests.values()) + sum(reach.fixtures.values())
    print(f"{len(reach.tests)} tests of {len(reports)} files, {seconds:.0f} s", flush=True)
    return reach


def _records(
    project: Project, only: Sequence[str] | None, sources: Mapping[str, str]
) -> Iterator[tuple[str, Path]]:
    """Each test file, and where its measurements are, once made: a name that changes with the file,
    with the package, and with what all tests share."""
    tests = sorted(project.root.glob("tests/**/test_*.py"))
    shared = [p for p in sorted((project.root / "tests").rglob("*.py")) if p not in tests]
    package = sorted((project.root / project.package).rglob("*.py"))
    tools = [Path(__file__).with_name(f"{name}.py") for name in ("child", "trace")]
    common = _digest([*package, *shared, *tools], *sources)
    folder = project.out / "reach"
    folder.mkdir(parents=True, exist_ok=True)
    for path in tests:
        test = path.relative_to(project.root).as_posix()
        if test in only if only else test not in project.left_out:
            yield test, folder / f"{path.stem}-{_digest([path], common)}.json"


def _digest(files: Iterable[Path], *words: str) -> str:
    digest = hashlib.sha1("\0".join(words).encode())
    for file in files:
        digest.update(f"\0{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _measuring(
    test: str, record: Path, files: tuple[str, ...]
) -> Callable[[Slot], Steps[tuple[str, Path, Result]]]:
    def steps(_: Slot) -> Steps[tuple[str, Path, Result]]:
        return test, record, (yield Job((test,), LONGEST, files))

    return steps
