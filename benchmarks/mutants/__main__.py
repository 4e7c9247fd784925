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
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.mutants.choice import all_mutations, difference, sample
from benchmarks.mutants.copies import Bench
from benchmarks.mutants.page import read, write
from benchmarks.mutants.project import Project
from benchmarks.mutants.reach import measure
from benchmarks.mutants.trials import figures, run


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
    mutants_by_file = {f: ms for f, ms in places.items() if not args.only or f in args.only}
    if args.again:
        survivors = {key for key, lines in past.items() if lines[-1]["outcome"] == "survived"}
        todo = [m for ms in mutants_by_file.values() for m in ms if m.key in survivors]
    else:
        todo = [
            m for m in sample(mutants_by_file, sources, args.count, args.seed) if m.key not in past
        ]
    print(f"{len(todo)} mutants to run; {results} has {len(past)}", flush=True)
    if todo:
        with Bench(project, args.workers) as bench:
            reach = measure(bench, args.tests, sources)
            run(bench, reach, todo, args.budget, results)
    last = Counter(lines[-1]["outcome"] for lines in read(results).values())
    print(f"\n{last.total()} mutants: {figures(last)}")


def _parser() -> argparse.ArgumentParser:
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser("python -m benchmarks.mutants", description=about)
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


if __name__ == "__main__":
    main()
