"""Functions of the standard library: files made by hand, since a test takes nothing from a net."""

from pathlib import Path

from benchmarks.datasets import debian, stdlib
from benchmarks.datasets.shared_runs import NEAR, runs, runs_of_all, shared
from benchmarks.datasets.stdlib import Function, bodies, functions, labelled, row_words, split

SOURCE = '''
def short(x):
    return x

class A:
    @property
    def long(self) -> int:
        """It says."""
        def inner():
            a = 1
            b = 2
            c = 3
            d = 4
            return a + b + c + d
        return inner()

if True:
    async def other():
        # why
        async for x in y:
            one(x)
            two(x)
            three(x)
        return x
'''


def test_the_list_is_pinned() -> None:
    packages = debian.read_list(stdlib.LIST)
    assert len({p.name for p in packages}) == len(packages) == 6
    assert all(len(p.sha256) == 64 for p in packages)


def test_bodies_are_of_the_outermost_functions_and_have_no_name() -> None:
    first, second = bodies(SOURCE)
    assert first.splitlines()[0] == '        """It says."""'
    assert first.splitlines()[-1] == "        return inner()"
    assert second.splitlines()[0] == "        async for x in y:"
    assert len(second.splitlines()) == 5


def test_functions_of_packages(tmp_path: Path) -> None:
    for name in ("one/a.py", "one/sub/b.py", "one/test/c.py", "two/d.py", "module.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(SOURCE.replace("one(x)", f"call({name!r})"))
    rows = functions(tmp_path)
    assert [(row.label, row.file) for row in rows] == [
        *[("one", "one/a.py")] * 2,
        *[("one", "one/sub/b.py")] * 2,
        *[("two", "two/d.py")] * 2,
    ]
    assert labelled(rows) == [], "no package has enough files"
    many = [Function(f"text {i % 13}", "three", f"three/{i}.py") for i in range(26)]
    assert labelled([*rows, *many]) == many[:13], "each text once"
    both = [row._replace(label="four") for row in many]
    assert labelled([*both[:12], *many]) == [many[12]], "what two packages have says nothing"


def test_a_file_is_on_one_side_and_what_is_learned_is_not_asked_for() -> None:
    words = [f"w{i}" for i in range(400)]
    rows = [Function(" ".join(words[i : i + 40]), "p", f"f{i % 30}") for i in range(0, 360, 5)]
    sides = split(rows)
    files = {side: {row.file for row in some} for side, some in sides.items()}
    assert not files["train"] & (files["val"] | files["test"])
    assert not files["val"] & files["test"]
    learned = runs_of_all(map(row_words, sides["train"]))
    assert all(shared(runs(row_words(r)), learned).share <= NEAR for r in sides["test"])
    other = [row._replace(text=f"{row.file} {row.text[:9]}") for row in rows]
    assert sum(map(len, split(other).values())) == len(other), "what is new is kept"
