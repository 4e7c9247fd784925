"""The machine that looks for holes in the tests: what it changes, whom it asks, what it writes."""

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.mutants import trace
from benchmarks.mutants.__main__ import main
from benchmarks.mutants.child import Job, Slot
from benchmarks.mutants.choice import sample
from benchmarks.mutants.mutations import Mutation, functions, mutations, parses, required_parameters
from benchmarks.mutants.page import read, verdicts, write
from benchmarks.mutants.project import ROOT, Project
from benchmarks.mutants.reach import Reach


def changes(source: str, kind: str | None = None) -> list[str]:
    """The line of each mutant after its change; every one parses and has as many lines."""
    every = mutations(source, "x.py")
    for m in every:
        assert parses(m, source), m
        assert m.applied(source).count("\n") == source.count("\n"), m
    return [m.after for m in every if kind in (None, m.kind)]


# --- what is changed ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "line", "after"),
    [
        ("comparison", "x = a < b", ["x = a <= b", "x = a >= b"]),
        ("comparison", "x = a == b != c", ["x = a != b != c", "x = a == b == c"]),
        ("comparison", "x = a is not None", ["x = a is None"]),
        ("comparison", "x = (a) not in b", ["x = (a) in b"]),
        ("arithmetic", "x = a + b * c", ["x = a - b * c", "x = a + b / c"]),
        ("arithmetic", "x = a ** 2 // b", ["x = a * 2 // b", "x = a ** 2 * b"]),
        ("arithmetic", "x += a", ["x -= a"]),
        ("arithmetic", "x = mask & (x | y)", ["x = mask | (x | y)", "x = mask & (x & y)"]),
        ("boolean", "x = a and b or c", ["x = a or b or c", "x = a and b and c"]),
        ("not", "x = not (a or b)", ["x = (a or b)"]),
        ("sign", "x = -a + ~b", ["x = a + ~b", "x = -a + b"]),
        ("constant", "x = 0, 1, 7, -1", ["x = 1, 1, 7, -1", "x = 0, 0, 7, -1"]),
        ("constant", "x = True, 1e-5, 0.0", ["x = False, 1e-5, 0.0", "x = True, 2e-05, 0.0"]),
        ("condition", "x = a if b > c else d", ["x = a if False else d", "x = a if True else d"]),
        ("condition", "x = [a for a in b if a]", ["x = [a for a in b if True]"]),
        ("arguments", "f(a, b, *c)", ["f(b, a, *c)"]),
        ("arguments", "f(a, g(b), c)", ["f(g(b), a, c)", "f(a, c, g(b))"]),
        ("slice", "x = a[1:n, ::2]", ["x = a[:n, ::2]", "x = a[1:, ::2]", "x = a[1:n, ::]"]),
        ("opposite", "x = min(a.argmax(), b)", ["x = max(a.argmax(), b)"]),
        ("opposite", "x = torch.any(a) or a.all(0)", ["x = torch.all(a) or a.all(0)"]),
        ("keyword", "x = f(a, k=1, m=2)", ["x = f(a, m=2)", "x = f(a, k=1)"]),
        ("statement", "a.b = 1", ["pass"]),
        ("statement", "a[0], b.c = f()", []),  # one of several targets: not seen as a deletion
        ("statement", "a.append(1)", ["pass"]),
        ("statement", "x = f()", []),
    ],
)
def test_each_kind_of_change(kind: str, line: str, after: list[str]) -> None:
    """The first ones are compared: most lines hold other places of the same kind behind them."""
    assert changes(line + "\n", kind)[: len(after)] == after
    assert after or not changes(line + "\n", kind)


def test_changes_of_a_function() -> None:
    source = (
        "def f(a, *, b: int | None = 3, c=True):\n"
        "    while a:\n"
        "        if not b:\n"
        "            continue\n"
        "        a -= 1\n"
        "    return a\n"
    )
    every = {(m.kind, m.after) for m in mutations(source, "x.py")}
    assert ("default", "def f(a, *, b: int | None = None, c=True):") in every
    assert ("constant", "def f(a, *, b: int | None = 3, c=False):") in every
    assert ("condition", "while True:") in every
    assert ("condition", "if False:") in every
    assert ("statement", "pass") in every
    assert ("return", "return None") in every
    assert Counter(m.within for m in mutations(source, "x.py"))["head"] == 3
    assert {m.function for m in mutations(source, "x.py")} == {"f"}
    lines = {m.before: m.lines for m in mutations(source, "x.py")}
    assert (lines["while a:"], lines["if not b:"]) == ((2, 2), (3, 3))  # of their heads


def test_what_no_test_can_notice_is_left_alone() -> None:
    source = '''"""Text: 1 < 2."""
import warnings
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    x = 1
Kind = Literal["a", "b"] | None
Table = dict[str, tuple[int, int]]


@decorated(maxsize=4)
def f(a: "Literal[1]" = ...) -> tuple[int, int]:
    """1 + 1."""
    assert a > 0, 1
    if isinstance(a, int | float):
        raise ValueError(f"{a + 1} is more than {2}")
    warnings.warn("n" + str(1), stacklevel=2)
    for _ in zip(a, a, strict=True):
        yield "n" + a, f"{a + 1}"


class C:
    def __repr__(self):
        return f"C({self.a + 1})"
'''
    assert changes(source) == ["if False:", "if True:", "pass"]  # the last: no warning


def test_a_change_over_several_lines_keeps_those_below_in_place() -> None:
    source = (
        "def f():\n    g(\n        a,  # why\n        k=(\n            1\n        ),\n    )\n"
        "    h = i\n"
    )
    for m in mutations(source, "x.py"):
        after = m.applied(source)
        assert after.splitlines()[7].startswith("    h ="), m
        ast.parse(after)
    kinds = {m.kind for m in mutations(source, "x.py")}
    assert kinds == {"statement", "constant", "keyword"}


def test_bytes_and_characters_are_not_mixed_up() -> None:
    assert changes('é = "→", ö < ü\n', "comparison") == ['é = "→", ö <= ü', 'é = "→", ö >= ü']


def test_a_keyword_without_a_default_is_not_dropped() -> None:
    package = ["class C:\n    def __init__(self, a, *, b, c=1): ...\n", "def f(k): ...\n"]
    required = required_parameters(package)
    source = "x = C(a=1, b=2, c=3) + f(k=4) + g(n=5)\n"
    after = [m.after for m in mutations(source, "x.py", required) if m.kind == "keyword"]
    assert after == ["x = C(a=1, b=2) + f(k=4) + g(n=5)", "x = C(a=1, b=2, c=3) + f(k=4) + g()"]


def test_a_mutant_keeps_its_name_while_its_line_stays() -> None:
    """Wherever the line moves within its function, and whatever the comment behind it says."""
    before = "def f(a):\n    return a + 1  # one\n"
    later = "import x\n\n\ndef f(a):\n    x.y(a)\n\n    return a + 1\n"
    keys = {m.key for m in mutations(before, "x.py")}
    assert len(keys) == 2
    assert keys < {m.key for m in mutations(later, "x.py")}
    assert not keys & {m.key for m in mutations(before.replace("f(", "g("), "x.py")}
    twice = mutations("def f(a):\n    g(a, 1)\n    g(a, 1)\n", "x.py")
    assert len({m.key for m in twice}) == len(twice)


def test_functions_and_what_they_mention() -> None:
    source = (
        "class C:\n    def f(self):\n        return LIMIT\n\n\n"
        "def g():\n    def h():\n        C()\n"
    )
    assert [(name, body) for name, body, _ in functions(source)] == [
        *[("C.f", (3, 3)), ("g", (7, 8)), ("g.h", (8, 8))],
    ]
    assert "LIMIT" in next(functions(source))[2]


def test_every_file_gives_the_same_number() -> None:
    sources = {"a.py": "x = f(1)\n", "b.py": "".join(f"x{i} = f({i})\n" for i in range(9))}
    places = {file: mutations(source, file) for file, source in sources.items()}
    few = sample(places, sources, 2, seed=0)
    assert Counter(m.file for m in few) == {"a.py": 1, "b.py": 1}
    more = sample(places, sources, 6, seed=0)
    assert Counter(m.file for m in more) == {"a.py": 1, "b.py": 5}
    assert more[:2] == few
    assert sample(places, sources, 6, seed=1) != more


def test_the_files_that_are_named_are_there() -> None:
    project = Project()
    assert len(project.paths()) >= 25
    for pattern in project.files:
        assert list(ROOT.glob(pattern)), pattern
    for file in project.paths():
        if not file.endswith("__init__.py"):
            assert project.near(file), f"no tests mirror {file}"
    for names in (*project.mirrors.values(), project.left_out):
        assert all((ROOT / name).exists() for name in names), names


# --- whom it asks ---------------------------------------------------------------------------------

SOURCE = """LIMIT = 3


def f(a, k=LIMIT + 1):
    return a + LIMIT


def g(a):
    return a - 1


def h(a):
    return -a


g(LIMIT)
"""


def report(tests: dict[str, tuple[float, list[int], list[str]]], **more: Any) -> dict[str, Any]:
    """What is measured of a test file: name -> seconds, lines of m.py, fixtures."""
    lines = {name: {"p/m.py": hex(sum(1 << n for n in row[1]))} for name, row in tests.items()}
    return {
        "collecting": 0.5,
        "failed": [],
        "fixtures": {"fixture": 4.0},
        "tests": {name: row[0] for name, row in tests.items() if name},
        "leans": {name: row[2] for name, row in tests.items()},
        "lines": {**lines, "fixture": {"p/m.py": hex(1 << 13)}},
        **more,
    }


@pytest.fixture
def reach(tmp_path: Path) -> Reach:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_m.py").touch()
    reports = {
        "tests/test_m.py": report(
            {
                "": (0.0, [1, 4, 8, 9, 12, 16], []),
                "tests/test_m.py::f": (0.3, [5], []),
                "tests/test_m.py::long": (3.0, [5], []),
                "tests/test_m.py::g": (0.2, [9], []),
                "tests/test_m.py::broken": (0.1, [5], []),
            },
            failed=[("tests/test_m.py::broken", "assert 0")],
        ),
        "tests/test_other.py": report(
            {
                "tests/test_other.py::quick": (0.1, [5], []),
                "tests/test_other.py::one": (0.5, [], ["fixture"]),
                "tests/test_other.py::two": (0.6, [], ["fixture"]),
            }
        ),
    }
    return Reach(Project(tmp_path), reports, {"p/m.py": SOURCE})


def stages(reach: Reach, after: str, budget: float = 90.0) -> list[list[str]]:
    """The names of the tests of the first mutant with this line, by stage."""
    m = next(m for m in mutations(SOURCE, "p/m.py") if m.after == after)
    selection = reach.selection(m, budget)
    return [[t.name.split("::")[1] for t in stage] for stage in selection.stages]


def test_the_tests_that_run_the_line_are_asked(reach: Reach) -> None:
    """Of the mirroring file first, then of others, then those that take long."""
    assert stages(reach, "return a - LIMIT") == [["f"], ["quick"], ["long"]]
    assert stages(reach, "def f(a, k=LIMIT - 1):") == [["f"], ["quick"], ["long"]]
    assert reach.failing == {"tests/test_m.py::broken": "assert 0"}


def test_what_a_fixture_runs_counts_for_all_that_lean_on_it(reach: Reach) -> None:
    """It is paid once: 4 + 0.5 + 0.6 seconds."""
    m = next(m for m in mutations(SOURCE, "p/m.py") if m.after == "return a")
    selection = reach.selection(m, 90.0)
    assert [t.name for t in selection.stages[2]] == [
        f"tests/test_other.py::{n}" for n in ("one", "two")
    ]
    assert selection.seconds == pytest.approx([0, 0, 5.1])
    assert not stages(reach, "return a", budget=4.4)[2]
    assert stages(reach, "return a", budget=4.6)[2] == ["one"]
    assert stages(reach, "return a", budget=5.2)[2] == ["one", "two"]


def test_what_runs_at_import_is_asked_of_all_that_run_the_file(reach: Reach) -> None:
    """Those that run a function which mentions the name come first, where it is a name."""
    assert stages(reach, "return a + 1") == [["g"], ["quick", "f"], ["long", "one", "two"]]
    assert stages(reach, "LIMIT = 4") == [["f"], ["quick", "g"], ["long", "one", "two"]]
    assert stages(reach, "pass") == [[], ["quick", "g", "f"], ["long", "one", "two"]]


def test_a_budget_cuts_off_the_last(reach: Reach) -> None:
    m = next(m for m in mutations(SOURCE, "p/m.py") if m.after == "return a - LIMIT")
    selection = reach.selection(m, 0.35)
    assert [t.name for stage in selection.stages for t in stage] == ["tests/test_m.py::f"]
    assert (selection.cut, selection.reached) == (2, True)


def test_where_none_reaches_it_the_mirroring_file_is_asked(reach: Reach) -> None:
    m = Mutation("p/m.py", "n", "constant", "1", "2", 0, 0, 1, "2", (99, 99), "body")
    selection = reach.selection(m, 90.0)
    assert [[t.name.split("::")[1] for t in s] for s in selection.stages] == [
        ["g", "f"],
        [],
        ["long"],
    ]
    assert not selection.reached


# --- the processes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "late", "notes", "outcome", "test", "message"),
    [
        (0, False, {"report.json": '{"failed": []}'}, "survived", "", ""),
        (0, False, {"report.json": '{"failed": [["t::a", "no"]]}'}, "killed", "t::a", "no"),
        (11, False, {"output": "x\nFatal\n"}, "killed", "t::b", "the process died: Fatal"),
        (11, False, {"output": ""}, "killed", "t::b", "the process died: status 11"),
        (24, False, {"output": ""}, "timeout", "t::b", "over 3 s"),  # 24 is SIGXCPU
        (0, True, {"output": ""}, "timeout", "t::b", "over 3 s"),
    ],
)
def test_how_a_process_ended(
    tmp_path: Path,
    status: int,
    late: bool,
    notes: dict[str, str],
    outcome: str,
    test: str,
    message: str,
) -> None:
    slot = Slot(tmp_path, "tiny", tmp_path)
    slot.job = Job(("t::a", "t::b"), 3.0)
    (tmp_path / "notes").mkdir()
    for name, text in {"started": "t::a\nt::b\n", **notes}.items():
        (tmp_path / "notes" / name).write_text(text)
    result = slot.result(late, status)
    assert (result.outcome, result.test, result.message) == (outcome, test, message)
    assert result.number == 2


def test_what_other_processes_run_is_noted_too(tmp_path: Path) -> None:
    """In a thread, in a forked process, in one that ends by itself; under the name it was given."""
    (tmp_path / "sitecustomize.py").write_text(Path(trace.__file__).read_text())
    file = tmp_path / "module.py"
    file.write_text("def f():\n    a = 1\n    return a\n\n\ndef g():\n    return 2\n")
    order = {"files": [str(file)], "folder": str(tmp_path), "context": "test"}
    code = (
        "import os, threading, module\n"
        "threading.Thread(target=module.f).start()\n"
        "if os.fork() == 0:\n    module.g()\n    os._exit(0)\n"
        "os.wait()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    subprocess.run(command, check=True, env={**env, trace.VARIABLE: json.dumps(order)})
    notes = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert len(notes) == 2
    lines: dict[str, dict[str, int]] = {}
    for note in notes:
        trace.add_lines(lines, note)
    bits = lines["test"][str(file)]
    assert {n for n in range(1, 9) if bits >> n & 1} == {1, 2, 3, 6, 7}
    for path in tmp_path.glob("*.json"):
        path.unlink()
    subprocess.run(command, check=True, env=env)  # without the order, nothing
    assert not list(tmp_path.glob("*.json"))


# --- all together ---------------------------------------------------------------------------------

TINY = {
    "tiny/__init__.py": "",
    "tiny/sums.py": (
        "def larger(a, b):\n    return max(a, b)\n\n\n"
        "def next_to(a):\n    return a + 1\n\n\n"
        "def before(a):\n    return a - 1\n"
    ),
    "tiny/table.py": "FIRST = [5][0]\n",
    "tests/test_table.py": (
        "from tiny import table\n\n\ndef test_first():\n    assert table.FIRST == 5\n"
    ),
    "tiny/idle.py": "def idle():\n    while False:\n        pass\n",
    "tests/__init__.py": "",
    "tests/test_sums.py": (
        "import pathlib, subprocess, sys\n"
        "import pytest\n"
        "from tiny import sums\n\n\n"
        "@pytest.fixture(scope='module')\n"
        "def largest():\n    return sums.larger(1, 2)\n\n\n"
        "def test_one_thing_of_it(largest):\n    assert largest > 0\n\n\n"
        "def test_larger(largest):\n    assert largest == 2\n\n\n"
        "def test_nothing():\n    sums.next_to(1)\n\n\n"
        "def test_which_is_wrong():\n    assert sums.next_to(1) == 3\n\n\n"
        "def test_once():\n"
        "    sums.next_to(1)\n"
        "    assert not pathlib.Path('once').exists()\n"
        "    pathlib.Path('once').touch()\n\n\n"
        "def test_elsewhere():\n"
        "    code = 'from tiny.sums import before; assert before(1) == 0'\n"
        "    subprocess.run([sys.executable, '-c', code], check=True)\n\n\n"
        "@pytest.mark.slow\n"
        "def test_slow():\n    assert sums.next_to(1) == 2\n"
    ),
    "tests/test_idle.py": "from tiny.idle import idle\n\n\ndef test_idle():\n    idle()\n",
    "pyproject.toml": (
        "[tool.pytest.ini_options]\naddopts = '--strict-markers'\n"
        "markers = ['slow: not asked']\nfilterwarnings = ['error']\n"
    ),
    "docs/mutants.md": "# Of tiny\n\n## The figures\n\nold\n\n## Survivors\n\n",
}
COMMAND = """
import sys
from pathlib import Path
from benchmarks.mutants.__main__ import main
from benchmarks.mutants.project import Project
warm = ("hypothesis", "xdist.plugin", "anyio.pytest_plugin", "typeguard")
project = Project(Path(sys.argv[1]), "tiny", ("tiny/*.py",), {}, (), warm, patience=1.0)
for words in sys.argv[2:]:
    main([*words.split(), "--workers", "1"], project)
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    for name, text in TINY.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(scope="module")
def output(tiny: Path) -> str:
    """What is printed by two mutants, then all, then the survivors again."""
    command = [sys.executable, "-c", COMMAND, str(tiny), "--count 2", "--count 99", "--again"]
    process = subprocess.run([*command, "--write"], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def results(tiny: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (tiny / "out/mutants/results.jsonl").read_text().splitlines()]


def test_who_notices(tiny: Path, output: str) -> None:
    """Each place is asked of those tests that reach it."""
    first = {(line["function"], line["after"]): line for line in results(tiny)[:8]}
    assert {place: (line["outcome"], line["test"]) for place, line in first.items()} == {
        ("idle", "while True:"): ("timeout", "tests/test_idle.py::test_idle"),
        ("", "FIRST = [6][0]"): ("killed", "tests/test_table.py::test_first"),
        ("", "FIRST = [5][1]"): ("killed", "tests/test_table.py"),
        ("larger", "return min(a, b)"): ("killed", "tests/test_sums.py::test_larger"),
        ("next_to", "return a - 1"): ("survived", ""),
        ("next_to", "return a + 0"): ("survived", ""),
        ("before", "return a + 1"): ("killed", "tests/test_sums.py::test_elsewhere"),
        ("before", "return a - 0"): ("killed", "tests/test_sums.py::test_elsewhere"),
    }
    for line in first.values():
        assert line["reached"] == (line["file"] != "tiny/table.py"), "it has no function"
        assert not line["cut"]
    assert first["", "FIRST = [5][1]"]["message"] == "IndexError: list index out of range"


def test_tests_that_fail_without_a_change_are_not_asked(output: str) -> None:
    assert (
        "left out, it fails on the code as it is: tests/test_sums.py::test_which_is_wrong" in output
    )
    assert "left out from now on, tests/test_sums.py::test_once fails without a change" in output


def test_what_is_done_is_not_done_again(tiny: Path, output: str) -> None:
    assert [line for line in output.splitlines() if "mutants to run" in line] == [
        f"{n} mutants to run; {tiny / 'out/mutants/results.jsonl'} has {m}"
        for n, m in ((2, 0), (6, 2), (2, 8))
    ]
    assert output.count("measured tests/") == 3  # once for each file
    again = results(tiny)[8:]
    assert [line["function"] for line in again] == ["next_to", "next_to"]


def test_nothing_is_changed_where_the_code_is(tiny: Path, output: str) -> None:
    for name, text in TINY.items():
        if name.startswith("tiny/"):
            assert (tiny / name).read_text() == text
    assert not (tiny / "once").exists()


def test_the_page_keeps_what_was_judged(tiny: Path, output: str) -> None:
    page = tiny / "docs/mutants.md"
    text = page.read_text()
    assert "| `tiny/idle.py` | 1 | 1 | 0 | 1 | 0 | 0 | 100.0% | 100.0% |" in text
    assert "| all | 8 | 8 | 5 | 1 | 2 | 0 | 75.0% | 75.0% |" in text
    assert "old" not in text
    sources = {f"tiny/{name}.py": TINY[f"tiny/{name}.py"] for name in ("idle", "sums", "table")}
    places: dict[str, list[Mutation]] = {f: mutations(s, f) for f, s in sources.items()}
    plus, zero = (m.key for m in places["tiny/sums.py"] if m.function == "next_to")
    assert verdicts(text) == {plus: "Not judged", zero: "Not judged"}
    edited = text.replace("Not judged.", "Equivalent:\n  because of that.", 1)
    edited = edited.replace("Not judged.", "Hole: closed by `test_x`.")
    one, two = verdicts(edited)
    assert verdicts(edited) == {one: "Equivalent", two: "Hole"}
    page.write_text(edited)
    past = read(tiny / "out/mutants/results.jsonl")
    past[two].append({**past[two][-1], "outcome": "killed", "test": "test_x"})
    write(page, past, places)
    after = page.read_text()
    assert after.split("## Survivors")[1] == edited.split("## Survivors")[1]
    assert "| all | 8 | 8 | 6 | 1 | 1 | 1 | 85.7% | 100.0% |" in after
    assert "Not counted" not in after
    page.write_text(text)


def test_a_judgement_that_does_not_hold_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"p/m.py": mutations(SOURCE, "p/m.py")}
    key = places["p/m.py"][0].key
    page = tmp_path / "mutants.md"
    page.write_text(
        "## The figures\n\n## Survivors\n\n"
        f"- `{key}` x. Equivalent: no.\n\n- `00000000` x. Hole: no.\n"
    )
    first = {"key": key, "outcome": "survived", "commit": "one"}
    last = {"key": key, "outcome": "killed", "test": "t::a", "commit": "two"}
    write(page, {key: [first, last], "00000001": [first]}, places)
    output = capsys.readouterr().out
    assert f"{key}: judged equivalent, and yet t::a notices" in output
    assert "00000000: its line has changed" in output
    assert "First run at one; the last of each at two, one." in page.read_text()
    assert "Not counted, since their line has changed: 1." in page.read_text()


def test_a_mutant_is_shown(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = Project(tiny, "tiny", ("tiny/*.py",))
    key = mutations(TINY["tiny/sums.py"], "tiny/sums.py")[0].key
    main(["--show", key], project)
    assert "-    return max(a, b)\n+    return min(a, b)\n" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="12345678 is no mutant"):
        main(["--show", "12345678"], project)


def test_a_file_that_is_not_mutated_is_no_answer(tiny: Path) -> None:
    project = Project(tiny, "tiny", ("tiny/*.py",))
    with pytest.raises(SystemExit, match=r"nope\.py: only these are mutated:\ntiny/__init__.py\n"):
        main(["--only", "nope.py"], project)
