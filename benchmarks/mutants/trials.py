"""One mutant after the other: its tests are run until one fails."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.mutants.child import Job, Result, Slot
from benchmarks.mutants.copies import Bench, Steps
from benchmarks.mutants.mutations import Mutation
from benchmarks.mutants.reach import Reach, Selection


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
        start, number, result = time.monotonic(), 0, Result("survived")
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
        seconds = round(time.monotonic() - start, 1)
        about = (result.outcome, result.test, result.message)
        return Outcome(m, *about, seconds, number, tests.cut, tests.reached)

    return steps


def run(bench: Bench, reach: Reach, todo: Sequence[Mutation], budget: float, results: Path) -> None:
    """Run mutants, and add a line to the results for each as it ends."""
    command, root = ["git", "describe", "--always", "--dirty"], bench.project.root
    git = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    results.parent.mkdir(parents=True, exist_ok=True)
    witnesses, counts, start = Witnesses(), Counter[str](), time.monotonic()
    trials = (_trial(m, reach.selection(m, budget), reach, witnesses) for m in todo)
    with results.open("a") as file:
        for outcome in bench.work(trials):
            file.write(outcome.line(git.stdout.strip()) + "\n")
            file.flush()
            counts[outcome.outcome] += 1
            count = counts.total()
            left = (time.monotonic() - start) / count * (len(todo) - count)
            minutes = f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
            _progress(outcome, f"[{count}/{len(todo)}] {figures(counts)}; {minutes} left")


def figures(counts: Counter[str]) -> str:
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
