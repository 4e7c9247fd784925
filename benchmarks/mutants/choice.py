"""Which mutants are run: every place of every file, and a fair choice among them."""

import difflib
import hashlib
import itertools
import sys
from collections.abc import Mapping

from benchmarks.mutants.mutations import Mutation, mutations, parses, required_parameters
from benchmarks.mutants.project import Project


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
