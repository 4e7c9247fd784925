"""The house keeps its shape: imports run one way, style rules hold, importing is quick."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import addnorm

ROOT = Path(addnorm.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

GROUND = {"errors", "reading"}  # every room stands on it

# Room -> what it may import of the others. The order is that of the road.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "reading": set(),
    "ops": set(),
    "data": set(),
    "norms": {"ops"},
    "stream": {"ops", "norms"},
    "positions": {"ops"},
    "recurrent": {"ops", "norms"},
    "joins": {"ops", "norms", "stream"},
    "branches": {"ops", "norms", "stream", "positions"},
    "catalogue": {"norms", "stream", "branches"},
    "schemes": {"norms", "stream", "joins", "catalogue"},
    "generation": {"ops", "data", "stream", "branches"},
    "models": {"data", "norms", "stream", "positions", "branches", "schemes", "generation"},
    "adapt": {"stream", "positions", "branches", "models"},
    "hf": {"stream", "schemes", "models", "generation"},
    "export": {"data", "models", "hf"},
    "compat": {"norms", "stream", "joins", "branches", "schemes"},
    "page": set(),
    "observe": set(),
    "linting": {"observe"},  # never models: it must work on anybody's
    "testing": {"linting"},
    "training": {
        *(
            "data",
            "norms",
            "stream",
            "positions",
            "schemes",
            "models",
            "adapt",
            "generation",
            "page",
        ),
    },
    "lab": {"norms", "stream", "branches", "catalogue", "schemes", "models", "page", "training"},
    "cli": {
        "adapt",
        "data",
        "schemes",
        "models",
        "generation",
        "export",
        "page",
        "linting",
        "training",
        "lab",
    },
    "__main__": {"cli"},
}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            parts = node.module.split(".")
            if parts[0] == "addnorm":
                found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("addnorm.")}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        return  # the lazily resolved public names
    assert here in ALLOWED, f"{here} is a new room: give it a place on the road"
    wrong = (
        imported_rooms(ast.parse(path.read_text())) - ALLOWED[here] - GROUND - {here, "__version__"}
    )
    assert not wrong, f"{here} may import {sorted(ALLOWED[here])}, not {sorted(wrong)}"


def test_the_table_of_rooms_has_no_way_back() -> None:
    placed: set[str] = set()
    for name, allowed in ALLOWED.items():
        assert allowed <= placed, f"{name} would import {sorted(allowed - placed)}, further down"
        placed.add(name)


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
    texts += [*FILES, *ROOT.rglob("*.md"), *top.glob("tests/**/*.py"), *top.glob("benchmarks/*.py")]
    named: dict[str, Path] = {}
    for path in texts:
        for mention in re.findall(r"addnorm\[([\w, -]+)\]", path.read_text(encoding="utf-8")):
            named |= {name.strip(): path for name in mention.split(",")}
    assert {"hf", "export", "log", "data", "dev"} <= named.keys(), "the search finds them"
    unknown = {name: path for name, path in named.items() if name not in extras}
    assert not unknown


# --- importing ------------------------------------------------------------------------------------


def test_every_public_name_resolves() -> None:
    for name in addnorm.__all__:
        assert getattr(addnorm, name) is not None
    assert set(addnorm.__all__) == set(addnorm._PUBLIC)
    assert set(addnorm.__all__) <= set(dir(addnorm))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        addnorm.nothing  # noqa: B018


def test_importing_loads_nothing_before_it_is_used() -> None:
    code = (
        "import sys, addnorm; assert 'torch' not in sys.modules; addnorm.LayerNorm;"
        "assert 'torch' in sys.modules;"
        "bad = {'transformers', 'peft', 'wandb', 'triton', 'onnx', 'rich'} & set(sys.modules);"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)
