"""The documents hold: their code runs, their tables are the register's, their links lead on."""

import ast
import re
from pathlib import Path

import pytest

from addnorm import schemes
from addnorm.catalogue import combinators, entry
from addnorm.linting.check import CHECKS

ROOT = Path(__file__).parents[2]
WINGS = sorted((ROOT / "addnorm").glob("*/README.md"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *WINGS])


def title(path: Path) -> str:
    """Without what stands before it on this machine."""
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> list[str]:
    """The Python at the left margin; what is indented belongs to a list and is a fragment."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def blocks_with_output(path: Path) -> list[tuple[str, str | None]]:
    """Each block with what it prints, if that is said in a block of ``text`` right below it."""
    pattern = r"^```python\n(.*?)^```$(?:\s+^```text\n(.*?)^```$)?"
    return re.findall(pattern, path.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", DOCUMENTS, ids=title)
def test_the_code_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And prints what is said."""
    names: dict[str, object] = {}
    rules = [*CHECKS]
    try:
        for block, output in blocks_with_output(path):
            exec(compile(block, str(path), "exec"), names)
            printed = capsys.readouterr().out
            assert not output or printed == output
    finally:
        CHECKS[:] = rules  # without those that a document has added


@pytest.mark.parametrize("path", DOCUMENTS, ids=title)
def test_what_is_quoted_is_in_the_code(path: Path) -> None:
    """A block of ``python FILE`` is a part of that file, whatever its indentation."""
    pattern = r"^```python (\S+\.py)\n(.*?)^```$"
    for name, quote in re.findall(pattern, path.read_text(), re.MULTILINE | re.DOTALL):
        assert stripped(quote) in stripped((ROOT / name).read_text()), f"{name} has no\n{quote}"


def stripped(code: str) -> str:
    """Lines without what stands around them, each between two line ends."""
    return "".join(f"\n{line.strip()}\n" for line in code.splitlines())


@pytest.mark.parametrize("path", DOCUMENTS, ids=title)
def test_a_place_that_is_named_is_there(path: Path) -> None:
    """``file.py: name`` is a name in a file of the package, or a method in a class."""
    for file, name in re.findall(r"`([\w/]+\.py): ([\w.]+)`", path.read_text()):
        body = ast.parse((ROOT / "addnorm" / file).read_text()).body
        for part in name.split("."):
            body = next((inner for inner in body if part in names_of(inner)), None)
            assert body, f"{path.name} names {part} in {file}"
            body = getattr(body, "body", [])


def names_of(statement: ast.stmt) -> set[str]:
    """What a statement defines."""
    if isinstance(statement, ast.Assign):
        return {t.id for target in statement.targets for t in ast.walk(target) if "id" in t._fields}
    if isinstance(statement, ast.AnnAssign):
        return {ast.unparse(statement.target)}
    return {getattr(statement, "name", "")}


def test_both_readmes_show_the_same_code() -> None:
    def code(name: str) -> list[str]:
        return [re.sub(r"#.*|\"\"\".*?\"\"\"", "", b) for b in blocks(ROOT / name)]

    assert len(code("README.md")) >= 5
    assert code("README.md") == code("README.zh-CN.md")


@pytest.mark.parametrize("path", DOCUMENTS, ids=title)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_table_of_schemes_is_the_register() -> None:
    text = (ROOT / "docs" / "schemes.md").read_text().replace("&#124;", "|")
    for name in [*schemes.names(), *combinators()]:
        design = entry(name)
        row = next(line for line in text.splitlines() if line.startswith(f"| `{design.usage()}`"))
        assert design.equation in row
        assert design.paper in row
    listed = re.findall(r"^\| `(\w+)", text, re.MULTILINE)
    assert listed[: len(schemes.names())] == schemes.names()


FROM_TEN = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty"
NUMBERS = f"zero one two three four five six seven eight nine {FROM_TEN}"
CHINESE = "一二三四五六七八九十"  # up to 十九, where they add up


def number(word: str) -> int:
    """Of a word in English or Chinese."""
    if word.isascii():
        return NUMBERS.split().index(word.lower())
    return sum(CHINESE.index(c) + 1 for c in word.replace("两", "二"))


def counted(name: str, pattern: str) -> list[int]:
    """The number words that a document has where the pattern has its groups."""
    text = " ".join((ROOT / name).read_text().split())
    match = re.search(pattern, text)
    assert match, f"{name} does not count the designs"
    return [number(word) for word in match.groups()]


def test_the_documents_count_the_designs() -> None:
    """What the register itself calls an ablation is no published design."""
    papers = [entry(name).paper for name in schemes.names()]
    ablations = sum(paper.startswith("an ablation") for paper in papers)
    published = len(papers) - ablations
    every = [len(papers), published, ablations]
    readme = r"(\w+) published designs run on one stack, and (\w+) ablations"
    assert counted("README.md", readme) == [published, ablations]
    chinese = r"(\w{1,2})种已发表的设计和(\w)种消融"
    assert counted("README.zh-CN.md", chinese) == [published, ablations]
    listed = r"(\w+) are named, (\w+) published designs and (\w+) ablations"
    assert counted("docs/schemes.md", listed) == every
    changes = r"(\w+) named schemes \((\w+) published designs, (\w+) ablations\)"
    assert counted("CHANGELOG.md", changes) == every


def test_nobody_is_sent_to_an_index_that_has_no_addnorm() -> None:
    """Before the first release the name is free there, and anybody's to take."""
    released = re.search(r"^## \[\d", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    names = [
        path.name for path in DOCUMENTS if re.search(r"pip install addnorm\b", path.read_text())
    ]
    assert released or not names


def test_the_picture_of_the_house_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in (ROOT / "addnorm").iterdir():
        if path.name.startswith(("_", "py.typed")):
            continue
        assert path.stem in text, f"docs/architecture.md does not mention {path.name}"
