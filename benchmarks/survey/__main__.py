"""Survey one third; what is there already is not run again.

python -m benchmarks.survey --out out/survey                 # the first third
python -m benchmarks.survey --out out/survey --only gemma    # of it, what has this in its name
python -m benchmarks.survey --out out/survey --again         # what has a finding, once more
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.survey.architectures import Architecture, all_architectures
from benchmarks.survey.examine import SECONDS, Result, build, examined
from benchmarks.survey.page import figures, judgements
from benchmarks.survey.verdicts import unjudged, verdicts


def main() -> None:
    """Run what was asked for, a line of JSON for each architecture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for the results")
    parser.add_argument("--third", type=int, choices=(1, 2, 3), default=1)
    parser.add_argument("--only", default="", help="only names that contain this")
    parser.add_argument("--every-class", action="store_true", help="not one of each claim only")
    parser.add_argument("--build", action="store_true", help="build, and do not lint")
    parser.add_argument("--again", action="store_true", help="those with findings once more")
    parser.add_argument("--stop", type=float, default=0, help="after so many minutes")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="of CPU, for each")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / (f"third{args.third}" + (".built" if args.build else "") + ".jsonl")
    there = results(path)
    if args.again:
        there = {n: r for n, r in there.items() if r["state"] == "linted" and not grave(r)}
    rest = [
        a
        for a in all_architectures(every_class=args.every_class)
        if a.third == args.third and args.only in a.name and a.name not in there
    ]
    rest.sort(key=lambda a: hashlib.sha256(a.name.encode()).digest())  # what is first is a sample
    began = time.monotonic()
    with path.open("a") as lines:
        for number, architecture in enumerate(rest, start=1):
            if args.stop and time.monotonic() - began > 60 * args.stop:
                print(f"stopped after {args.stop:g} minutes; the same command goes on")
                break
            result = examined(architecture, build if args.build else None, args.seconds)
            lines.write(json.dumps(result.line()) + "\n")
            lines.flush()
            _tell(number, len(rest), architecture, result)
    if not args.build:
        sys.exit(_conclude(list(results(path).values())))


def _conclude(outcomes: list[dict[str, Any]]) -> int:
    """Print the figures; 1 where a finding has no verdict, else 0."""
    table = verdicts()
    print("", *figures(outcomes), "", *judgements(outcomes, table), sep="\n")
    rest = unjudged(table, outcomes)
    for name, finding in rest:
        print(f"no verdict: {name}: {finding['severity']} {finding['rule']} at {finding['module']}")
    return int(bool(rest))


def results(path: Path) -> dict[str, dict[str, Any]]:
    """The last line of each architecture in a file of results, by its name."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return {line["name"]: line for line in lines}


def grave(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Its errors and warnings."""
    return [f for f in result["findings"] if f["severity"] != "note"]


def _tell(number: int, of: int, architecture: Architecture, result: Result) -> None:
    marks = ", ".join(f"{f['severity']} {f['rule']}" for f in grave(result.line()))
    why = result.why.partition("\n")[0]
    line = f"{number}/{of} {architecture.name}: {result.state} {why} {result.seconds} s {marks}"
    print(line, flush=True)


if __name__ == "__main__":
    main()
