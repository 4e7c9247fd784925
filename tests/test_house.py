"""The house keeps its shape: imports run one way, style rules hold, importing is quick."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from itertools import pairwise, product
from pathlib import Path

import pytest

import addnorm

ROOT = Path(addnorm.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# --- the rooms ------------------------------------------------------------------------------------

# What each room imports of the others: no more, and no less. Imports inside functions count; the
# face, addnorm/__init__.py, does not: it knows every room by name, and imports none of them before
# it is asked.
#
# To change it: an import that is new or gone changes the line of its room; a new room has its line
# below those of all that it imports. Then run this file: it names the arrows to draw or to erase in
# docs/architecture.md, which shows the shortest ways only,
# and in whose storeys a new room has a place.
GROUND = {  # every room may import these, so no arrow shows it
    "version": "",
    "words": "",
    "errors": "words",
    "checks": "errors",
    "reading": "errors",
    "records": "",
    "settings": "errors reading",
    "progress": "",
    "spread": "",
    "temporary": "",
    "disk": "",
    "hub": "errors reading words",
}
ROAD = {
    "ops": "",
    "data": "",
    "norms": "ops",
    "context": "",
    "masks": "",
    "init": "",
    "stream": "ops norms context masks init",
    "positions": "ops",
    "recurrent": "ops norms",
    "joins": "ops norms stream",
    "branches": "ops norms context masks init stream positions",
    "catalogue": "stream",
    "scheme_text": "stream catalogue",
    "explanation": "norms stream branches catalogue scheme_text",
    "schemes": "norms init stream joins catalogue scheme_text explanation",
    "generation": "ops context",
    "models": "data norms context init stream positions recurrent branches scheme_text schemes "
    "generation",
    "uses": "data generation",
    "files": "data positions schemes generation models uses",
    "adapt": "stream positions branches models files",
    "pretrained": "data models files adapt",
    "lm_eval": "data generation pretrained",
    "hf": "context stream models files",
    "export": "data models files hf",
    "compat": "norms context init stream branches scheme_text schemes",
    "pages": "",
    "anatomy": "",
    "linting": "anatomy",  # never models: it must work on anybody's
    "testing": "anatomy linting",
    "training": "norms stream positions files adapt pages",
    "tasks": "data schemes generation models uses files adapt pretrained training",
    "lab": "norms stream branches catalogue schemes",
    "cli": "ops data schemes models files pretrained hf generation export pages anatomy linting "
    "training tasks lab uses",
    "pytest_plugin": "cli linting",
    "__main__": "cli",
}
IMPORTS = {name: set(line.split()) for name, line in (GROUND | ROAD).items()}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def room(module: str) -> str:
    return module.split(".")[1]


def imported_modules(tree: ast.AST) -> set[str]:
    """The files of addnorm that a file imports, anywhere in it; not the packages around them."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            inner = {f"{node.module}.{a.name}" for a in node.names}
            if node.module == "addnorm":  # its public names are for others
                names |= inner
            else:
                names |= {name if name in MODULES else f"{node.module}" for name in inner}
        elif isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {str(a.value) for a in node.args if isinstance(a, ast.Constant)}
            for start in (a.values[0] for a in node.args if isinstance(a, ast.JoinedStr)):
                names |= {m for m in MODULES if m.startswith(str(ast.literal_eval(start)))}
    return {name for name in names if name.startswith("addnorm.")}


ARROWS = {
    name: imported_modules(ast.parse(path.read_text()))
    for name, path in MODULES.items()
    if name != "addnorm"
}


@pytest.mark.parametrize(
    "text",
    [
        *("import addnorm.ops.aten", "from addnorm.ops import aten as n"),
        *("from addnorm.ops.aten import A, B", "def f():\n    import addnorm.ops.aten"),
        *("importlib.import_module('addnorm.ops.aten')", "import_module(f'addnorm.ops.aten{a}')"),
    ],
)
def test_every_way_to_import_is_seen(text: str) -> None:
    assert imported_modules(ast.parse(f"import torch\n{text}")) == {"addnorm.ops.aten"}


def test_every_room_imports_what_the_table_says() -> None:
    """Both ways: an import that is not in the table, and a word in the table that no file uses."""
    actual: dict[str, set[str]] = {room(name): set() for name in ARROWS}
    for name, imported in ARROWS.items():
        assert imported <= MODULES.keys(), f"{name} imports what is no file: {imported}"
        actual[room(name)] |= {room(other) for other in imported} - {room(name)}
    assert actual.keys() == IMPORTS.keys(), "a new room has no line, or a line has no room"
    for here, others in actual.items():
        ground = set() if here in GROUND else GROUND.keys()
        assert others - ground == IMPORTS[here], f"the line of {here}"


def test_the_table_of_rooms_has_no_way_back() -> None:
    above: set[str] = set()
    for name, imported in IMPORTS.items():
        assert imported <= above, f"{name} would import {sorted(imported - above)}, further down"
        above.add(name)


def beyond(start: str, arrows: Mapping[str, set[str]]) -> set[str]:
    """What is imported, directly or not."""
    modules: set[str] = set()
    todo = [start]
    while todo:
        more = arrows.get(todo.pop(), set()) - modules
        modules |= more
        todo += more
    return modules


def circles(arrows: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """The groups of those that import each other, directly or not."""
    reached = {name: beyond(name, arrows) for name in arrows}
    return {
        frozenset(other for other in reached[name] if name in reached[other])
        for name in arrows
        if name in reached[name]
    }


def test_no_file_is_imported_by_what_it_imports() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == {frozenset("bc")}
    assert not circles(ARROWS)


SINGLE_DOORS = {  # package -> the files that import it, and no other
    "transformers": {"hf.py"},
    "peft": set[str](),
    "tyro": {"cli/arguments.py"},
    "lm_eval": {"lm_eval.py"},
}


def packages(tree: ast.AST) -> set[str]:
    """What a file imports of others, anywhere in it: the first part of each name."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names.add(str(node.module))
        elif isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            names |= {str(a.value) for a in node.args if isinstance(a, ast.Constant)}
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(
    "text",
    [
        *("import transformers", "def f():\n    from transformers.utils import logging"),
        *("import_module('transformers')", "__import__('transformers.utils')"),
    ],
)
def test_every_way_to_import_a_package_is_seen(text: str) -> None:
    assert packages(ast.parse(text)) == {"transformers"}


@pytest.mark.parametrize("name", SINGLE_DOORS)
def test_a_package_is_imported_in_one_place(name: str) -> None:
    """One file knows what it needs, and how it changes from one version to the next."""
    users = {p for p in FILES if name in packages(ast.parse(p.read_text()))}
    assert {str(path.relative_to(ROOT)) for path in users} == SINGLE_DOORS[name]


# --- the drawings of the rooms --------------------------------------------------------------------


def arrows_of(text: str) -> set[tuple[str, str]]:
    """The arrows of lines like ``a ──► b, c ──► d``: here four."""
    arrows = set()
    for line in text.splitlines():
        groups = [group.replace(",", " ").split() for group in line.split("──►")]
        arrows |= {arrow for pair in pairwise(groups) for arrow in product(*pair)}
    return arrows


def test_the_rooms_are_drawn_as_they_are() -> None:
    """Without what goes by way of another room: that would be a thicket."""
    assert arrows_of("a ──► b, c ──► d") == {("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")}
    shortest = {
        (other, name)
        for name, imported in IMPORTS.items()
        for other in imported - set().union(*(beyond(via, IMPORTS) for via in imported))
        if name not in GROUND
    }
    picture = arrows_of(pictures()[1])
    assert not shortest - picture, "to be drawn"
    assert not picture - shortest, "to be erased"


def pictures() -> list[str]:
    """The drawings of the rooms: the storeys, and the arrows."""
    text = (ROOT.parent / "docs" / "architecture.md").read_text()
    return text.partition("## The rooms")[2].split("```")[1::2]


def test_every_room_stands_above_what_it_imports() -> None:
    """In the picture of the storeys, line above line; each room once, the ground at the bottom."""
    places = [
        (word, line)
        for line, text in enumerate(pictures()[0].splitlines())
        for word in re.findall(r"\w+", text)
        if word in IMPORTS
    ]
    storey = dict(places)
    assert sorted(word for word, _ in places) == sorted(IMPORTS), "each room stands there once"
    for name, imported in IMPORTS.items():
        over = [other for other in imported if storey[other] <= storey[name]]
        assert name in GROUND or not over, f"{name} imports {over}, which stand not below it"
        assert name in GROUND or storey[name] < min(storey[other] for other in GROUND)


def test_the_road_in_contributing_is_real() -> None:
    road = arrows_of((ROOT.parent / "CONTRIBUTING.md").read_text())
    assert road, "it is found"
    assert road <= {(other, name) for name, imported in IMPORTS.items() for other in imported}


# --- the READMEs of the wings ---------------------------------------------------------------------

WINGS = sorted(path.parent for path in ROOT.glob("*/__init__.py"))


@pytest.mark.parametrize("wing", WINGS, ids=lambda p: p.name)
def test_the_readme_of_a_wing_names_its_files(wing: Path) -> None:
    """All of them, and none that is not there; and what the table above says that it may import."""
    text = (wing / "README.md").read_text(encoding="utf-8")
    files = {str(path.relative_to(wing)) for path in wing.rglob("*.py")}
    mentions = set(re.findall(r"`([\w/]+\.py)`", text))
    folders = tuple(re.findall(r"`(\w+/)`", text))  # one whose files are all of a kind
    missing = {file for file in files - mentions if not file.endswith("__init__.py")}
    missing = {file for file in missing if not file.startswith(folders)}
    assert not missing, f"{wing.name}/README.md has to name these"
    elsewhere = {
        file for file in mentions if (ROOT / file).exists() or (ROOT.parent / file).exists()
    }
    assert not mentions - files - elsewhere, f"{wing.name}/README.md names what is gone"
    rooms = re.search(r"^May import: (.*?)\.(?:\s|$)", text, re.MULTILINE | re.DOTALL)
    assert rooms, f"{wing.name}/README.md says what the room may import"
    assert set(re.findall(r"`(\w+)`", rooms[1])) == IMPORTS[wing.name]


# --- the environment ------------------------------------------------------------------------------


def reads_environment(tree: ast.AST) -> bool:
    """Whether there is a way from here to the environment, by an attribute or by an import."""
    names: set[str] = set()
    for part in ast.walk(tree):
        if isinstance(part, ast.Attribute):
            names.add(part.attr)
        elif isinstance(part, ast.ImportFrom) and part.module in ("os", "posix", "nt"):
            names |= {a.name for a in part.names}
        elif isinstance(part, ast.Call) and ast.unparse(part.func) == "getattr":
            names |= {str(ast.literal_eval(a)) for a in part.args if isinstance(a, ast.Constant)}
    return not names.isdisjoint(("environ", "environb", "getenv", "getenvb", "*"))


@pytest.mark.parametrize(
    "text",
    [
        *("import os; os.environ['A']", "import os as o; o.getenv('A')", "from os import environ"),
        *("from os import getenv as path", "from os import *", "import os; getattr(os, 'environ')"),
        *("from os import path, environb", "def f():\n    from os import environ as e"),
    ],
)
def test_every_way_to_the_environment_is_seen(text: str) -> None:
    assert reads_environment(ast.parse(text))
    assert not reads_environment(ast.parse("import os\nfrom os import path\nos.path.join(path)"))


# --- hardware -------------------------------------------------------------------------------------

HARDWARE = re.compile(
    r"""["'](cpu|cuda|mps)["':]|torch\.(cpu|cuda|backends)|device\.type|\.is_cuda"""
)


@pytest.mark.parametrize(
    "name",
    [
        *("norms", "stream", "positions", "recurrent", "joins", "branches"),
        *("catalogue", "scheme_text", "explanation", "schemes"),
    ],
)
def test_the_road_knows_no_hardware(name: str) -> None:
    """What a processor is better at is for ops to choose."""
    assert HARDWARE.search((ROOT / "ops" / "attention.py").read_text()), "the search finds it"
    match = HARDWARE.search((ROOT / f"{name}.py").read_text())
    assert not match, f"{name}.py looks at {match[0]}"


# --- style ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_style(path: Path) -> None:
    """Parts in, not flags in; architecture never from the environment; every public part told."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a file says what it is"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if any(ast.unparse(d) == "overload" for d in node.decorator_list):
                continue  # the implementation is told
            assert ast.get_docstring(node), f"{node.name} has no docstring"
    for part in ast.walk(tree):
        if isinstance(part, ast.FunctionDef):
            names = [a.arg for a in part.args.args + part.args.kwonlyargs]
            # hf.py implements transformers' interface, which has one
            flags = [n for n in names if n.startswith("use_") and path.name != "hf.py"]
            assert not flags, f"{part.name}: a use_ flag"
    # threads.py tells OpenMP how to wait, which no result depends on
    assert path.name == "threads.py" or not reads_environment(tree)


def test_a_model_is_one_file_of_less_than_350_lines() -> None:
    for path in (ROOT / "models").glob("*.py"):
        assert len(path.read_text().splitlines()) < 350, path


def test_every_extra_that_is_named_can_be_installed() -> None:
    """In messages, documents and tests; pip installs the rest and only warns where one is not."""
    top = ROOT.parent
    extras = tomllib.loads((top / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    texts = [*top.glob("*.md"), *top.glob("docs/**/*.md"), top / "pyproject.toml", top / "Makefile"]
    texts += [
        *FILES,
        *ROOT.rglob("*.md"),
        *top.glob("tests/**/*.py"),
        *top.glob("benchmarks/**/*.py"),
    ]
    mentions: dict[str, Path] = {}
    for path in texts:
        for mention in re.findall(r"addnorm\[([\w, -]+)\]", path.read_text(encoding="utf-8")):
            mentions |= {name.strip(): path for name in mention.split(",")}
    assert {"hf", "export", "log", "data", "dev"} <= mentions.keys(), "the search finds them"
    unknown = {name: path for name, path in mentions.items() if name not in extras}
    assert not unknown


# --- names ----------------------------------------------------------------------------------------

# Who meets one of these alone has to read what is on the right of it to know what it is. Not here:
# what is a noun or an imperative too (cut, read, run, split), what has an opposite (left, hidden),
# and what names the step of a computation (scaled, rounded, padded).
PARTICIPLES = re.compile(
    r"_*(allowed|asked|begun|brought|built|called|caught|chosen|done|drawn|found|given|gone|got|"
    r"heard|held|kept|known|lost|made|meant|met|moved|named|needed|said|saved|seen|sent|shown|"
    r"stored|taken|thought|told|tried|understood|used|wanted|written)_*"
)
STILL_THERE = Path(__file__).parent / "participles.txt"
"""File of the package, or tests or benchmarks whole, and how many it has. It only shrinks."""


def new_names(tree: ast.AST) -> Iterator[str]:
    """Every name that is given in a file: of variables, arguments, attributes, functions."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case ast.arg(arg=name) | ast.FunctionDef(name=name):
                yield name
            case ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)):
                yield name
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield name


def participles(text: str) -> int:
    return sum(bool(PARTICIPLES.fullmatch(name)) for name in new_names(ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        *("found = 1", "a, *found = b", "a._found = 1", "found: int", "if (found := 1): pass"),
        *("for found in a: pass", "[found for found in a]", "with a as found: pass"),
        *("def found(): pass", "def f(found): pass", "lambda *found: a", "import a as _found"),
        *("try: a\nexcept E as found: pass", "match a:\n case [1, *found]: pass"),
        *("match a:\n case found: pass", "class A:\n found: int"),
    ],
)
def test_every_way_to_give_a_name_is_seen(text: str) -> None:
    assert participles(text) == 1
    assert not participles("found_names = a.found(found)")


def test_a_name_is_a_noun() -> None:
    """Files that have fewer than they are listed with are named too: write the new number."""
    lines = STILL_THERE.read_text().splitlines()
    listed = {name: int(count) for count, name in map(str.split, lines)}
    counted = {str(p.relative_to(ROOT.parent)): participles(p.read_text()) for p in FILES}
    counted = {name: count for name, count in counted.items() if count}
    for top in ("tests", "benchmarks"):  # whole: their files move
        paths = (ROOT.parent / top).rglob("*.py")
        most = listed.pop(top)
        now = sum(participles(path.read_text()) for path in paths)
        assert now <= most, f"{top} has {now} names that are participles, {most} are allowed"
    assert counted == listed, f"{STILL_THERE.name} lists the files that have some, and how many"


# --- files ----------------------------------------------------------------------------------------


def test_a_file_has_less_than_600_lines() -> None:
    large = {name for name, p in MODULES.items() if len(p.read_text().splitlines()) >= 600}
    assert not large, "these are too large: what can be a file of its own?"


# --- functions ------------------------------------------------------------------------------------

LINES, BRANCHES = 60, 15
LONG: set[str] = set()
"""Functions of more lines or branches. It only gets shorter."""


def functions(tree: ast.AST, where: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    """All functions in a file by their names, methods and inner ones too."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            name = f"{where}.{child.name}"
            if isinstance(child, ast.FunctionDef):
                yield name, child
            yield from functions(child, name)
        else:
            yield from functions(child, where)


def branches(tree: ast.AST) -> int:
    """The ways on from every fork, those of inner functions apart; as ruff's PLR0912 counts."""
    total = 0
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            continue
        total += branches(child)
        match child:
            case ast.If(orelse=others):
                is_elif = len(others) == 1 and isinstance(others[0], ast.If)
                total += 1 + (bool(others) and not is_elif)
            case ast.For(orelse=others) | ast.While(orelse=others):
                total += 1 + bool(others)
            case ast.Try(orelse=others, finalbody=last, handlers=handlers):
                total += len(handlers) + bool(others) + bool(last)
            case ast.Match(cases=cases):
                total += len(cases)
    return total


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("if a: pass", 1),
        ("if a: pass\nelif b: pass\nelse: pass", 3),
        ("if a:\n if b: pass\nelse: pass", 3),
        ("for a in b:\n if c: pass", 2),
        ("while a: pass\nelse: pass", 2),
        ("try: a\nexcept A: a\nexcept B: b\nelse: c\nfinally: d", 4),
        ("match a:\n case 1: pass\n case _: pass", 2),
        ("def f():\n if a: pass", 0),
        ("with a:\n b = c if d else [e for e in f if e]", 0),
    ],
)
def test_branches_are_counted(text: str, number: int) -> None:
    assert branches(ast.parse(text)) == number


def test_a_function_can_be_seen_at_a_glance() -> None:
    """At most 60 lines and 15 branches."""
    long = {
        name
        for module, path in MODULES.items()
        for name, node in functions(ast.parse(path.read_text(encoding="utf-8")), module)
        if (node.end_lineno or 0) - node.lineno >= LINES or branches(node) > BRANCHES
    }
    assert not long - LONG, "these are too long: what can be a function of its own?"
    assert not LONG - long, "these are short by now: take them off the list"


# --- classes --------------------------------------------------------------------------------------

FIXED = {"Protocol", "NamedTuple", "Enum", "TypedDict"}  # what they are is in their base
OPEN = {
    "addnorm.compat.Transformer": "torch's is subclassed, and so is what stands in for it",
    "addnorm.data.sources.DataError": "an error has kinds",
    "addnorm.errors.Mendable": "an error has kinds",
}
"""Class that is neither abstract nor final -> why. It only gets shorter."""


def last_name(node: ast.expr) -> str:
    """What a base or a decorator is called, without its module and arguments."""
    while isinstance(node, ast.Subscript | ast.Call):
        node = node.value if isinstance(node, ast.Subscript) else node.func
    return node.attr if isinstance(node, ast.Attribute) else ast.unparse(node)


def is_settled(node: ast.ClassDef) -> bool:
    """Whether a class is abstract, final, or of a kind that says what it is."""
    bases = {last_name(base) for base in node.bases}
    methods = [m for m in node.body if isinstance(m, ast.FunctionDef)]
    marks = {last_name(d) for part in (node, *methods) for d in part.decorator_list}
    return bool(bases & {*FIXED, "ABC"} or marks & {"abstractmethod", "final"})


def test_every_class_is_abstract_or_final() -> None:
    """Nothing that works is altered from below: who reads a class knows all that it does."""
    unsettled = {
        f"{module_name(path)}.{node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and not is_settled(node)
    }
    assert unsettled == OPEN.keys()


@pytest.mark.parametrize(
    ("text", "settled"),
    [
        ("class A: pass", False),
        ("@final\nclass A(B[int]): pass", True),
        ("@typing.final\n@dataclass(frozen=True)\nclass A: pass", True),
        ("class A(typing.Protocol[T]): pass", True),
        ("class A(ABC): pass", True),
        ("class A(B):\n @abstractmethod\n def f(self): ...", True),
        ("class A(B):\n @property\n def f(self): ...", False),
    ],
)
def test_what_is_settled(text: str, settled: bool) -> None:
    tree = ast.parse(text).body[0]
    assert isinstance(tree, ast.ClassDef)
    assert is_settled(tree) == settled


# --- tests ----------------------------------------------------------------------------------------

TESTS = ROOT.parent / "tests"
# Folders of tests that mirror no room, and what they mirror; None: what rooms have in common.
BESIDE = {"whole": None, "references": TESTS, "benchmarks": ROOT.parent}
OF_SEVERAL = {  # neither named after one file nor after its whole folder
    "test_house.py": "the shape of all files",
    "cli/test_options.py": "the options of all commands",
    "linting/rules/test_cases.py": "what rules of all families say, and no other test shows",
    "linting/rules/test_norms.py": "the families about one norm, from its axes to its precision",
    "linting/rules/test_wiring.py": "the seven families about how a model is wired",
    "tasks/test_register.py": "the set of tasks, with one from outside of the package",
    "training/test_kill.py": "checkpoints, folders and resumes, under kill -9",
    "training/test_processes.py": "parallel.py and checkpoint_parts.py, with the loop between them",
}


def mirrors(path: Path) -> bool:
    """Whether tests are named after a file or a folder of the package, in the same place."""
    folder, name = path.relative_to(TESTS).parent, path.stem.removeprefix("test_")
    place = BESIDE.get(next(iter(folder.parts), ""), ROOT)
    if place is None or name == folder.name:
        return True
    return (place / folder / name).is_dir() or (place / folder / f"{name}.py").exists()


def test_the_tests_mirror_the_package() -> None:
    """Room for room and file for file."""
    rooms = {path.name for path in ROOT.iterdir() if len([*path.rglob("*.py")]) > 1}
    folders = {path.parent.name for path in TESTS.glob("*/__init__.py")}
    assert folders == rooms | BESIDE.keys()
    others = {p.relative_to(TESTS).as_posix() for p in TESTS.rglob("test_*.py") if not mirrors(p)}
    assert others == OF_SEVERAL.keys(), "named after no file, or listed though it is"


NAMESAKES = {
    "Options": "each command has its own, and is found by it",
}
"""Name of several public classes -> why. It only gets shorter."""


def test_no_two_public_classes_have_one_name() -> None:
    """One name, one thing: what two rooms have is called after the room."""
    homes: dict[str, list[str]] = {}
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(name)
    several = {name: files for name, files in homes.items() if len(files) > 1}
    assert several.keys() == NAMESAKES.keys(), several
    assert {*map(room, several["Options"])} == {"cli"}


# --- importing ------------------------------------------------------------------------------------


def test_every_public_name_resolves() -> None:
    for name in addnorm.__all__:
        assert getattr(addnorm, name) is not None
    assert set(addnorm.__all__) == set(addnorm._PUBLIC)
    assert set(addnorm.__all__) <= set(dir(addnorm))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        addnorm.nothing  # noqa: B018


def test_importing_loads_nothing_before_it_is_used() -> None:
    """Nor more than is needed then: ``train`` alone may load what several processes need."""
    code = (
        "import sys, addnorm\n"
        "ours = {name for name in sys.modules if name.startswith('addnorm.')}\n"
        "assert ours == {'addnorm.models', 'addnorm.models.storage', 'addnorm.version'}, ours\n"
        "assert not {'torch', 'numpy'} & {*sys.modules}\n"
        "for name in {*addnorm.__all__} - {'train'}:\n"
        "    getattr(addnorm, name)\n"
        "slow = {'transformers', 'peft', 'wandb', 'triton', 'onnx', 'rich', 'tyro', 'sympy',\n"
        "    'huggingface_hub', 'torch.distributed.tensor', 'torch._dynamo'} & {*sys.modules}\n"
        "assert 'torch' in sys.modules and not slow, slow\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)
