"""Man pages by section: pages made by hand, since a test takes nothing from the network."""

from benchmarks.datasets import debian, manpages
from benchmarks.datasets.manpages import Page, cleaned, page_words, split
from benchmarks.datasets.shared_runs import NEAR, runs, runs_of_all, shared


def test_a_page_does_not_say_its_section() -> None:
    lines = ["LS(1)   User Commands   LS(1)", "NAME", "     ls  - list, see dir(1) and glob (7ssl)"]
    page = "\n\n".join([*lines, "GNU   LS(1)"])
    assert cleaned(page) == "NAME\nls - list, see dir and glob"


def test_the_list_is_pinned() -> None:
    packages = debian.read_list(manpages.LIST)
    assert len(packages) > 100
    assert len({p.name for p in packages}) == len(packages)
    assert all(len(p.sha256) == 64 for p in packages)


def test_a_package_is_on_one_side_and_what_is_learned_is_not_asked_for() -> None:
    words = [f"w{i}" for i in range(400)]
    pages = [Page(" ".join(words[i : i + 40]), "1", f"package {i % 30}") for i in range(0, 360, 5)]
    sides = split(pages)
    packages = {side: {page.package for page in rows} for side, rows in sides.items()}
    assert not packages["train"] & (packages["val"] | packages["test"])
    assert not packages["val"] & packages["test"]
    learned = runs_of_all(map(page_words, sides["train"]))
    assert all(shared(runs(page_words(p)), learned).share <= NEAR for p in sides["test"])
    other = [Page(" ".join(f"{p.package} {w}" for w in words[:40]), "1", p.package) for p in pages]
    assert sum(map(len, split(other).values())) == len(other), "what is new is kept"
