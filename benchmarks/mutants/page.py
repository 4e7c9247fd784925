"""What became of the mutants, read again, and the page that says so: docs/mutants.md."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.mutants.mutations import Mutation

Lines = dict[str, Any]  # of the file of results
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
