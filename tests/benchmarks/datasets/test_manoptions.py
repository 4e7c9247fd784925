"""Questions on the options of man pages: what is read of a page, and what is on which side."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from addnorm.data.squad import read_squad
from benchmarks.datasets import debian, manoptions
from benchmarks.datasets.manoptions import LIST, Option, Page, article, options

PAGE = """\
LAMP(1)                                       LAMP(1)

DESCRIPTION
       Lights a lamp. -x is no header here.

OPTIONS
       -c, --colour=NAME
              Lights it in a colour, e.g. red. White by
              default, as ever.

              -n is inside, too.

       -q     Says nothing.
       -r|--repeat <n>  Lights it again and again.

       --bare

   More
       --dim, -d
           Less light

SEE ALSO
       candle(1)
"""


def test_the_options_of_a_page() -> None:
    assert [(o.header, o.names[0], o.answer, len(o.paragraphs)) for o in options(PAGE)] == [
        ("-c, --colour=NAME", "--colour", "Lights it in a colour, e.g. red.", 3),
        ("-q", "-q", "Says nothing.", 1),
        ("-r|--repeat <n>", "--repeat", "Lights it again and again.", 1),
        ("--dim, -d", "--dim", "Less light", 1),
    ]


def page(command: str, count: int = 30) -> Page:
    """A page whose answers are its own."""
    entries = [
        Option(f"--o{i}", [f"Does what {command} can do with {i}. {'And more. ' * 12}"])
        for i in range(count)
    ]
    return Page(command, [*entries, Option("--help", ["Prints this help and exits at once."])])


def test_an_article(tmp_path: Path) -> None:
    one = article("tools", page("tool"))
    file = tmp_path / "squad.json"
    file.write_text(json.dumps({"data": [one]}))
    data = read_squad(file)
    assert data.remark() == "", "every answer stands where it should"
    assert len({q.context for q in data.questions}) > 2
    assert max(len(q.context) for q in data.questions) < 2 * manoptions.PASSAGE
    answerable = [q for q in data.questions if q.answers]
    others = [q for q in data.questions if not q.answers]
    assert 0.15 < len(others) / len(data.questions) < 0.25
    assert len(answerable) == 30, "each once, and none for --help"
    for q in data.questions:
        (name,) = re.findall(r"--o\d+", q.question)
        assert "tool" in q.question
        assert (f"{name}\n" in q.context) == bool(q.answers)
        if q.answers:
            assert q.answers[0].text == f"Does what tool can do with {name[3:]}."


def test_an_option_that_a_passage_has_twice_is_not_asked_for() -> None:
    texts = ["Lights the lamp in the hall.", "Lights the lamp in the yard."]
    one: Any = article("tools", Page("tool", [Option("--lamp", [text]) for text in texts]))
    assert one is None


def test_sides_share_no_package_and_no_answer() -> None:
    pages = {f"package{i}": [page(f"command{i}")] for i in range(40)}
    shared = Option("--shared", ["Says the same words in every one of them."])
    for (one,) in pages.values():
        one.options.append(shared)
    sides = manoptions.split(pages)
    manoptions.drop_shared(sides)
    titles = {side: {str(a["title"]) for a in articles} for side, articles in sides.items()}
    assert sum(map(len, titles.values())) == len(set().union(*titles.values())) == 40
    assert all(titles.values())
    answers = {side: {*manoptions.answers(articles)} for side, articles in sides.items()}
    assert not answers["train"] & (answers["val"] | answers["test"])
    assert not answers["val"] & answers["test"]
    assert shared.answer in answers["test"]


def test_the_list_is_pinned() -> None:
    packages = debian.read_list(LIST)
    assert len({p.name for p in packages}) == len(packages) > 90
    assert all(re.fullmatch("[0-9a-f]{64}", p.sha256) for p in packages)


def test_a_package_that_was_changed(tmp_path: Path) -> None:
    package = debian.Package("lamp", "1:2.0", "0" * 64)
    (tmp_path / "lamp_1%3a2.0_all.deb").write_bytes(b"another")
    with pytest.raises(SystemExit, match=r"has the SHA-256 .*, and manoptions\.txt has 0000"):
        debian.deb(package, tmp_path, LIST)
