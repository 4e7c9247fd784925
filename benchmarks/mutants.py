"""Looks for holes in the tests: breaks the code in one place at a time, and asks who notices.

    make mutants                                    # 400 mutants, evenly over the files
    make mutants MUTANTS='--only addnorm/norms.py'  # of one file
    make mutants MUTANTS='--show 1a2b3c4d'          # what one of them is
    make mutants MUTANTS=--again                    # run those that survived, once more
    make mutants MUTANTS=--write                    # the figures, into docs/mutants.md

Which tests run a line is measured first, once for each test file and state of the code, and kept in
out/mutants/reach. Each mutant is then run against the tests that reach it, the nearest and quickest
first, until one fails. Tests marked slow are left out. What became of a mutant is a line of
out/mutants/results.jsonl, and is not asked again: an interrupted run goes on where it was.
"""

import argparse
import compileall
import contextlib
import difflib
import functools
import gc
import hashlib
import importlib
import itertools
import json
import math
import py_compile
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import mutants_trace
from benchmarks.mutants_child import Job, Result, Slot
from benchmarks.mutations import Mutation, functions, mutations, parses, required_parameters

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = (".git", ".venv", "out", "build", "dist", "__pycache__", ".*_cache", ".hypothesis")
QUICK = 2.0  # seconds: slower tests come last, whatever file they are in
LONGEST = 1800.0  # seconds: for all tests of one file, when they are measured
T = TypeVar("T")
Steps = Generator[Job, Result, T]  # hands out runs of pytest, is told how each ended, and returns
Lines = dict[str, Any]  # of the file of results


@dataclass(frozen=True)
class Project:
    """What is mutated, and by which tests."""

    root: Path = ROOT
    package: str = "addnorm"
    files: tuple[str, ...] = (
        *("addnorm/stream.py", "addnorm/joins.py", "addnorm/schemes.py", "addnorm/norms.py"),
        *("addnorm/branches.py", "addnorm/masks.py", "addnorm/init.py", "addnorm/positions.py"),
        "addnorm/ops/*.py",
        *("addnorm/models/gpt*.py", "addnorm/generation/decode.py", "addnorm/generation/cache.py"),
        *("addnorm/generation/sampling.py", "addnorm/generation/likelihood.py"),
        *("addnorm/training/loop.py", "addnorm/training/optim.py"),
        *("addnorm/training/checkpoint.py", "addnorm/training/language.py"),
        *("addnorm/training/parallel.py", "addnorm/data/windows.py", "addnorm/adapt/*.py"),
    )
    # Test files that mirror a file, beside that of its own name and that of its folder's.
    mirrors: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "addnorm/stream.py": ("tests/test_schemes.py", "tests/whole/test_rules.py"),
            "addnorm/masks.py": ("tests/test_branches.py",),
            "addnorm/joins.py": ("tests/test_schemes.py", "tests/test_init.py"),
            "addnorm/schemes.py": ("tests/test_init.py", "tests/references/test_references.py"),
            "addnorm/ops/__init__.py": ("tests/ops/test_dispatch.py",),
            "addnorm/ops/aten.py": ("tests/ops/test_dispatch.py",),
            "addnorm/ops/reference.py": ("tests/ops/test_reference.py",),
            "addnorm/ops/attention.py": ("tests/test_branches.py",),
            "addnorm/ops/offers.py": ("tests/ops/test_dispatch.py", "tests/ops/test_attention.py"),
            "addnorm/models/gpt_config.py": ("tests/models/test_gpt.py",),
            "addnorm/training/parallel.py": ("tests/training/test_processes.py",),
            "addnorm/training/checkpoint.py": ("tests/training/test_kill.py",),
        }
    )
    # They judge the text of the code, or are about this tool: no test of what the code does.
    left_out: tuple[str, ...] = ("tests/test_house.py", "tests/benchmarks/test_mutants.py")
    # What each child would else import again; never the package itself.
    warm: tuple[str, ...] = (
        *("numpy", "torch", "torch._dynamo", "torch._inductor.compile_fx", "torch.optim.adamw"),
        *("hypothesis", "safetensors.torch", "tokenizers", "transformers", "tyro"),
        *("rich.progress", "xdist.plugin", "pytest_timeout", "anyio.pytest_plugin", "typeguard"),
    )
    patience: float = 10.0  # seconds beyond four times what the tests take: then they are stopped

    def paths(self) -> list[str]:
        """The files that are mutated, in order."""
        groups = [sorted(self.root.glob(pattern)) for pattern in self.files]
        return [p.relative_to(self.root).as_posix() for group in groups for p in group]

    def near(self, file: str) -> set[str]:
        """The test files that mirror a file."""
        path = Path("tests", *Path(file).parts[1:])
        names = {path.with_name(f"test_{n}.py").as_posix() for n in (path.stem, path.parent.name)}
        return {n for n in names | {*self.mirrors.get(file, ())} if (self.root / n).exists()}

    @property
    def out(self) -> Path:
        """Where the measurements and the results are."""
        return self.root / "out" / "mutants"


def main(argv: Sequence[str] | None = None, project: Project | None = None) -> None:
    """The command."""
    project = project or Project()
    args = _parser().parse_args(argv)
    results = args.results or project.out / "results.jsonl"
    sources = {file: (project.root / file).read_text() for file in project.paths()}
    if unknown := sorted({*args.only} - {*sources}):
        sys.exit(f"{', '.join(unknown)}: only these are mutated:\n" + "\n".join(sources))
    places = all_mutations(project, sources)
    if args.show:
        print(difference(args.show, places, sources))
        return
    past = read(results)
    if args.write:
        write(project.root / "docs" / "mutants.md", past, places)
        return
    wanted = {f: ms for f, ms in places.items() if not args.only or f in args.only}
    if args.again:
        survivors = {key for key, lines in past.items() if lines[-1]["outcome"] == "survived"}
        todo = [m for ms in wanted.values() for m in ms if m.key in survivors]
    else:
        todo = [m for m in sample(wanted, sources, args.count, args.seed) if m.key not in past]
    print(f"{len(todo)} mutants to run; {results} has {len(past)}", flush=True)
    if todo:
        with Bench(project, args.workers) as bench:
            reach = measure(bench, args.tests, sources)
            run(bench, reach, todo, args.budget, results)
    last = Counter(lines[-1]["outcome"] for lines in read(results).values())
    print(f"\n{last.total()} mutants: {_figures(last)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=400, help="mutants in all")
    parser.add_argument("--seed", type=int, default=0, help="of the choice among all places")
    parser.add_argument("--only", nargs="+", default=[], metavar="FILE", help="these files only")
    parser.add_argument("--tests", nargs="+", metavar="FILE", help="as if there were only these")
    parser.add_argument("--workers", type=int, default=2, help="processes beside each other")
    parser.add_argument("--budget", type=float, default=90, help="seconds of tests for a mutant")
    parser.add_argument("--results", type=Path, help="default: out/mutants/results.jsonl")
    parser.add_argument("--again", action="store_true", help="run those that survived, once more")
    parser.add_argument("--show", metavar="KEY", help="print the difference that a mutant makes")
    parser.add_argument("--write", action="store_true", help="bring docs/mutants.md up to date")
    return parser


# --- which mutants --------------------------------------------------------------------------------


def all_mutations(project: Project, sources: Mapping[str, str]) -> dict[str, list[Mutation]]:
    """Every place of every file."""
    package = [p.read_text() for p in sorted((project.root / project.package).rglob("*.py"))]
    required = required_parameters(package)
    return {file: mutations(source, file, required) for file, source in sources.items()}


def sample(
    places: Mapping[str, list[Mutation]], sources: Mapping[str, str], count: int, seed: int
) -> list[Mutation]:
    """In turns of the files, so that each gives the same number, as long as it has that many.

    A file's are in the order of a hash of seed and key, so that a line more in a file changes
    nothing for the others, and a larger count goes on where a smaller one ended.
    """

    def order(m: Mutation) -> str:
        return hashlib.sha1(f"{seed} {m.key}".encode()).hexdigest()

    queues = [
        (m for m in sorted(ms, key=order) if parses(m, sources[m.file])) for ms in places.values()
    ]
    turns = itertools.zip_longest(*queues)
    return list(itertools.islice((m for turn in turns for m in turn if m is not None), count))


def difference(key: str, places: Mapping[str, list[Mutation]], sources: Mapping[str, str]) -> str:
    """One mutant, as a difference from what is there."""
    for m in itertools.chain(*places.values()):
        if m.key == key:
            texts = (sources[m.file].splitlines(), m.applied(sources[m.file]).splitlines())
            lines = difflib.unified_diff(*texts, m.file, m.file, lineterm="")
            return "\n".join([f"{m.key}: {m.kind} in {m.function or 'the module'}", *lines])
    sys.exit(f"{key} is no mutant: the line may have changed since it had that name")


# --- the copies -----------------------------------------------------------------------------------


class Bench:
    """Copies of the tree in a temporary folder, one for each worker, and what runs in them."""

    def __init__(self, project: Project, workers: int) -> None:
        self.project, self.workers = project, workers
        self.slots: list[Slot] = []

    def __enter__(self) -> "Bench":
        self.folder = Path(tempfile.mkdtemp(prefix="mutants-")).resolve()
        support = self.folder / "support"
        support.mkdir()
        shutil.copy(mutants_trace.__file__, support / "sitecustomize.py")
        for i in range(self.workers):
            slot = Slot(self.folder / f"slot{i}", self.project.package, support)
            if self.slots:
                shutil.copytree(self.slots[0].tree, slot.tree, symlinks=True)
            else:
                ignore = shutil.ignore_patterns(*NOT_COPIED)
                shutil.copytree(self.project.root, slot.tree, symlinks=True, ignore=ignore)
                # By what a file holds and not by its time: a mutant may be as long and as old.
                checked = py_compile.PycInvalidationMode.CHECKED_HASH
                compileall.compile_dir(slot.tree, quiet=2, invalidation_mode=checked)
            self.slots.append(slot)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in self.project.warm:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
        gc.collect()
        gc.freeze()  # pytest collects garbage often, and each child would look through all of this
        return self

    def __exit__(self, *_: object) -> None:
        for slot in self.slots:
            slot.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def work(self, trials: Iterable[Callable[[Slot], Steps[T]]]) -> Iterator[T]:
        """Let each slot take the next trial whenever it is free; what they return, as they end."""
        queue = iter(trials)
        running: dict[Slot, Steps[T]] = {}
        while True:
            returned: list[T] = []
            for slot in self.slots:
                if slot in running:
                    if (result := slot.poll()) is None:
                        continue
                    steps = running.pop(slot)
                    step = functools.partial(steps.send, result)
                elif (trial := next(queue, None)) is not None:
                    steps = trial(slot)
                    step = functools.partial(next, steps)
                else:
                    continue
                try:
                    slot.start(step())
                    running[slot] = steps
                except StopIteration as end:
                    returned.append(end.value)
            yield from returned
            if not running and not returned:
                return
            time.sleep(0.02)


# --- which tests reach a line ---------------------------------------------------------------------


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
        mutants_trace.add_lines({"": self.imported}, {"": lines.get("", {})})
        for name, seconds in report["tests"].items():
            if name not in failing:
                leans = report["leans"].get(name, [])
                own: dict[str, int] = {}
                for context in (name, *leans):
                    mutants_trace.add_lines({"": own}, {"": lines.get(context, {})})
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
    tools = [Path(__file__).with_name(f"mutants_{name}.py") for name in ("child", "trace")]
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


# --- one mutant after the other -------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant."""

    mutation: Mutation
    outcome: str  # "killed", "timeout" or "survived"
    test: str  # that failed, or was running
    message: str
    seconds: float
    number: int  # of tests that began
    cut: int
    reached: bool

    def line(self, commit: str) -> str:
        """As a line of the file of results."""
        m = self.mutation
        about = {k: getattr(m, k) for k in ("key", "file", "function", "kind", "before", "after")}
        rest = {k: v for k, v in vars(self).items() if k != "mutation"}
        return json.dumps({**about, "line": m.lines[0], **rest, "commit": commit})


class Witnesses:
    """Which tests are good for a verdict. One that fails in the same company on the code as it is
    is good for none."""

    def __init__(self) -> None:
        self.good: set[str] = set()
        self.bad: set[str] = set()

    def exclude(self, clean: Result) -> None:
        """After a run without a change that ended badly."""
        if not clean.test:
            sys.exit(f"the tests do not run on the code as it is: {clean.message}")
        self.bad.add(clean.test)
        print(f"left out from now on, {clean.test} fails without a change: {clean.message}")


def _trial(
    m: Mutation, tests: Selection, reach: Reach, witnesses: Witnesses
) -> Callable[[Slot], Steps[Outcome]]:
    """Run a mutant's tests, stage by stage, until one fails."""
    source = reach.sources[m.file]

    def steps(slot: Slot) -> Steps[Outcome]:
        begun, number, result = time.monotonic(), 0, Result("survived")
        for stage, seconds in zip(tests.stages, tests.seconds, strict=True):
            imports = sum(reach.collecting[file] for file in {t.file for t in stage})
            limit = 4 * (seconds + imports) + reach.project.patience
            while names := tuple(t.name for t in stage if not witnesses.bad & {t.name, t.file}):
                slot.write(m.file, m.applied(source))
                result = yield Job(names, limit)
                slot.write(m.file, source)
                if result.outcome != "killed" or result.test in witnesses.good:
                    break
                last = names.index(result.test) if result.test in names else 0
                clean = yield Job(names[: last + 1], limit)
                if clean.outcome == "survived":
                    witnesses.good.add(result.test)
                    break
                witnesses.exclude(clean)
                result = Result("survived")
            number += result.number
            if result.outcome != "survived":
                break
        seconds = round(time.monotonic() - begun, 1)
        about = (result.outcome, result.test, result.message)
        return Outcome(m, *about, seconds, number, tests.cut, tests.reached)

    return steps


def run(bench: Bench, reach: Reach, todo: Sequence[Mutation], budget: float, results: Path) -> None:
    """Run mutants, and add a line to the results for each as it ends."""
    command, root = ["git", "describe", "--always", "--dirty"], bench.project.root
    git = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    results.parent.mkdir(parents=True, exist_ok=True)
    witnesses, counts, begun = Witnesses(), Counter[str](), time.monotonic()
    trials = (_trial(m, reach.selection(m, budget), reach, witnesses) for m in todo)
    with results.open("a") as file:
        for outcome in bench.work(trials):
            file.write(outcome.line(git.stdout.strip()) + "\n")
            file.flush()
            counts[outcome.outcome] += 1
            count = counts.total()
            left = (time.monotonic() - begun) / count * (len(todo) - count)
            minutes = f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
            _progress(outcome, f"[{count}/{len(todo)}] {_figures(counts)}; {minutes} left")


def _figures(counts: Counter[str]) -> str:
    late, survived = counts["timeout"], counts["survived"]
    return f"killed {counts['killed']}, timed out {late}, survived {survived}"


def _progress(outcome: Outcome, line: str) -> None:
    """A line that is written over on a terminal, and each survivor, which stays."""
    end, width = ("", 79) if sys.stdout.isatty() else ("\n", 0)
    if outcome.outcome == "survived":
        print(f"\r{_survivor(outcome):{width}}")
    print(f"\r{line:{width}}", end=end, flush=True)


def _survivor(outcome: Outcome) -> str:
    m = outcome.mutation
    why = "" if outcome.reached else ", none known to reach it"
    why += f", {outcome.cut} more beyond the budget" if outcome.cut else ""
    where = f"{m.file}:{m.lines[0]} {m.function} ({m.kind})"
    return f"{m.key} survived {outcome.number} tests{why}: {where}\n  - {m.before}\n  + {m.after}"


# --- the page -------------------------------------------------------------------------------------

FIGURES = "## The figures\n"
VERDICTS = ("Equivalent", "Hole")
UNJUDGED = "Not judged"
ENTRY = re.compile(r"^- `([0-9a-f]{8})`.*?(?=^- `|^#|\Z)", re.MULTILINE | re.DOTALL)


def read(results: Path) -> dict[str, list[Lines]]:
    """All that became of each mutant, the first run first."""
    past: dict[str, list[Lines]] = {}
    for text in results.read_text().split("\n") if results.exists() else ():
        if text:
            line = json.loads(text)
            past.setdefault(line["key"], []).append(line)
    return past


def verdicts(page: str) -> dict[str, str]:
    """Key -> verdict, of all mutants that a page names."""
    entries = {match[1]: match[0].split("```")[0] for match in ENTRY.finditer(page)}
    return {
        key: next((v for v in VERDICTS if re.search(rf"\.\s{v}:\s", text)), UNJUDGED)
        for key, text in entries.items()
    }


def write(
    page: Path, past: Mapping[str, list[Lines]], places: Mapping[str, list[Mutation]]
) -> None:
    """Bring the table up to date, and name each survivor that the page does not name; what somebody
    wrote of the others stays as it is."""
    text = page.read_text()
    judgement, there = verdicts(text), {m.key for ms in places.values() for m in ms}
    survivors = [
        next(line for line in lines if line["outcome"] == "survived")
        for key, lines in past.items()
        if key in there and any(line["outcome"] == "survived" for line in lines)
    ]
    text = text.rstrip("\n") + "\n"
    text += "".join(_entry(line) for line in survivors if line["key"] not in judgement)
    judgement = verdicts(text)
    head, rest = text.split(FIGURES)
    after = re.search(r"^## ", rest, re.MULTILINE)
    table = "\n".join([*_table(past, places, judgement), *_history(past, there)])
    page.write_text(f"{head}{FIGURES}\n{table}\n\n{rest[after.start() :] if after else ''}")
    for key, verdict in judgement.items():
        if key not in there:
            print(f"{key}: its line has changed; judge it anew, or drop it")
        elif verdict == "Equivalent" and key in past and past[key][-1]["outcome"] != "survived":
            print(f"{key}: judged equivalent, and yet {past[key][-1]['test']} notices")
    print(f"{page}: {sum(v == UNJUDGED for v in judgement.values())} survivors are not judged")


def _entry(line: Lines) -> str:
    where = f"{line['file']}, `{line['function']}`" if line["function"] else line["file"]
    code = f"  ```diff\n  - {line['before']}\n  + {line['after']}\n  ```\n"
    return f"\n- `{line['key']}` {where}. {UNJUDGED}.\n\n{code}"


def _table(
    past: Mapping[str, list[Lines]],
    places: Mapping[str, list[Mutation]],
    judgement: Mapping[str, str],
) -> Iterator[str]:
    """A row for each file that was asked, and one for all."""
    yield "| file | places | run | killed | timed out | survived | equivalent | first run | now |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    rows = []
    for file, all_of_it in places.items():
        keys = [m.key for m in all_of_it if m.key in past]
        if keys:
            equal = sum(judgement.get(key) == "Equivalent" for key in keys)
            first, last = (Counter(past[k][i]["outcome"] for k in keys) for i in (0, -1))
            figures = (last["killed"], last["timeout"], last["survived"], equal)
            rows.append((len(all_of_it), len(keys), *figures, len(keys) - first["survived"]))
            yield _row(f"`{file}`", rows[-1])
    if rows:
        yield _row("all", tuple(map(sum, zip(*rows, strict=True))))


def _history(past: Mapping[str, list[Lines]], there: set[str]) -> Iterator[str]:
    """At which commits, and what the table does not count."""
    if past:
        first, last = ({lines[i]["commit"]: None for lines in past.values()} for i in (0, -1))
        yield f"\nFirst run at {', '.join(first)}; the last of each at {', '.join(last)}."
    if missing := len({*past} - there):
        yield f"Not counted, since their line has changed: {missing}."


def _row(name: str, figures: tuple[int, ...]) -> str:
    """The shares are of those that are not equivalent."""
    *numbers, first = figures
    _, total, killed, late, _, equal = numbers
    shares = [
        f"{part / (total - equal):.1%}" if total > equal else "-" for part in (first, killed + late)
    ]
    return f"| {' | '.join(map(str, (name, *numbers, *shares)))} |"


if __name__ == "__main__":
    main()
