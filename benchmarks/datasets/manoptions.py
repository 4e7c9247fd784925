"""What the options of commands do: questions on man pages, as SQuAD json.

Source: the man pages (sections 1 and 8) of the Debian 12 packages in ``manoptions.txt``, taken with
apt-get at the versions and with the SHA-256 there (amd64). Licences: those of the packages, most of
them GPL-2+, GPL-3+ or LGPL, others MIT, BSD, Apache-2.0, the vim, curl, OpenSSL and PostgreSQL
licences; each stands in /usr/share/doc/PACKAGE/copyright of its package. Nothing of them is in this
repository, and what this script writes is under the same licences.

    python benchmarks/datasets/manoptions.py out/manoptions

writes train.json, val.json and test.json. A question asks for what an option of a command does; the
passage is a part of the page's list of options, some 1,200 characters of it; the answer is the
first sentence of the option's paragraph. Every fifth question asks for an option of the same page
that another passage has: it has no answer. The pages of a package are all on one side, which a hash
of its name decides; what has an answer that is on another side, word for word, is left out, as are
the options that every command has, --help and --version. It needs groff (apt-get install
groff-base), and about three minutes.
"""

import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from benchmarks.datasets.debian import deb, read_list
from benchmarks.datasets.shared_runs import runs_of_all, shared, words
from benchmarks.datasets.sides import fraction, side_of

LIST = Path(__file__).with_suffix(".txt")
SIDES = {"test": 0.2, "val": 0.1, "train": 0.7}
"""Side -> its share of the packages."""
PASSAGE = 1200
"""Characters from which on a new passage begins."""
ENTRY = 700
"""Characters of one option's paragraphs that are kept, the first one whole."""
WORDS = range(3, 41)
"""Of an answer."""
WITHOUT_ANSWER = 5
"""One in so many questions has none."""
COMMON = {"--help", "--version", "-h", "-?", "-V", "--usage"}
QUESTIONS = (
    "What does the option {option} of {command} do?",
    "What does {option} do in {command}?",
    "What is the option {option} of {command} for?",
    "{command}: what does {option} mean?",
)
OPTION = re.compile(r"(?<![\w-])--?[A-Za-z0-9?][\w-]*")
HEADER = re.compile(r" {2,14}(-{1,2}[A-Za-z0-9?]\S*(?:[ ,|=\[<]\S.*?)?)(?: {2,}(\S.*))?")
SENTENCE = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bcf)(?<!\bvs)[.!?](?=\s|$)")


@dataclass
class Option:
    """An option as its page has it: what it is called there, and the paragraphs on it."""

    header: str
    paragraphs: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """As one types them, the longest first."""
        return sorted(OPTION.findall(self.header), key=len, reverse=True)

    @property
    def text(self) -> str:
        """The header and its paragraphs, those that there is room for."""
        lines, size = [self.header], 0
        for paragraph in self.paragraphs:
            if size and size + len(paragraph) > ENTRY:
                break
            lines.append(f"    {paragraph}")
            size += len(paragraph)
        return "\n".join(lines)

    @property
    def answer(self) -> str:
        """The first sentence."""
        first = self.paragraphs[0]
        end = SENTENCE.search(first)
        return first[: end.end()] if end else first


@dataclass
class Page:
    """A man page: the command that it is about, and its options in their order."""

    command: str
    options: list[Option]


def main(arguments: Sequence[str] | None = None) -> int:
    """Take, cut, split, write; print what there is."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path, help="the folder for train.json, val.json, test.json")
    parser.add_argument("--debs", type=Path, help="where the packages are, or are put [out/debs]")
    parser.add_argument("--packages", type=int, help="only the first N of the list, for a trial")
    args = parser.parse_args(arguments)
    packages = read_list(LIST)[: args.packages]
    debs = args.debs or args.out / "debs"
    pages = {package.name: pages_of(deb(package, debs, LIST)) for package in packages}
    sides = split(pages)
    drop_shared(sides)
    args.out.mkdir(parents=True, exist_ok=True)
    for side, articles in sides.items():
        content = {"version": f"manoptions {side}", "data": articles}
        (args.out / f"{side}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        questions = [qa for _, qa in every_question(articles)]
        empty = sum(qa["is_impossible"] for qa in questions)
        print(f"{side}: {len(articles)} pages, {len(questions)} questions, {empty} without answer")
    for side in ("val", "test"):
        own, learned = (runs_of_all(map(words, answers(sides[s]))) for s in (side, "train"))
        share = shared(own, learned).share
        print(f"of the 5-grams of the answers of {side}, {share:.1%} are in those of train")
    return 0


# --- from the packages to their pages -------------------------------------------------------------


def pages_of(file: Path) -> list[Page]:
    """The pages of a package that have options, each text once."""
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(["dpkg-deb", "-x", str(file.resolve()), name], check=True)
        root = Path(name) / "usr" / "share" / "man"
        paths = [p for s in ("man1", "man8") for p in sorted((root / s).glob("*.gz"))]
        sources = {p: gzip.decompress(p.read_bytes()) for p in paths if not p.is_symlink()}
        once = {source: path for path, source in reversed(sources.items())}
        with ThreadPoolExecutor(2) as pool:
            texts = dict(zip(once.values(), pool.map(rendered, once), strict=True))
    pages = [
        Page(path.name.removesuffix(".gz").rsplit(".", 1)[0], options(texts[path]))
        for path in sorted(texts)
    ]
    return [page for page in pages if page.options]


def rendered(source: bytes) -> str:
    """A page as a terminal shows it, each paragraph in one line."""
    command = ["groff", "-mandoc", "-Tutf8", "-P-cbou", "-rLL=3000n", "-rHY=0", "-Kutf8"]
    result = subprocess.run(command, input=source, capture_output=True, check=False)
    return result.stdout.decode("utf-8", "replace")


def options(text: str) -> list[Option]:
    """The options that a page explains: a line that begins with one, and behind it or below,
    further to the right, what it does."""
    entries: list[Option] = []
    depth = -1  # of the header above; -1: none
    for line in text.splitlines():
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        header = HEADER.fullmatch(line)
        if header is not None and (depth < 0 or indent <= depth):
            entries.append(Option(" ".join(header[1].split())))
            if header[2]:
                entries[-1].paragraphs.append(" ".join(header[2].split()))
            depth = indent
        elif indent <= depth or not indent:
            depth = -1
        elif depth >= 0:
            entries[-1].paragraphs.append(" ".join(line.split()))
    return [option for option in entries if option.paragraphs and option.names]


# --- from the pages to questions ------------------------------------------------------------------


def split(pages: dict[str, list[Page]]) -> dict[str, list[dict[str, object]]]:
    """Side -> articles; a package is on one side."""
    sides: dict[str, list[dict[str, object]]] = {side: [] for side in SIDES}
    for name in sorted(pages):
        sides[side_of(name, SIDES)] += [
            entries for page in pages[name] if (entries := article(name, page))
        ]
    return sides


def article(package: str, page: Page) -> dict[str, object] | None:
    """A page in SQuAD's form; None, if nothing can be asked about it."""
    paragraphs = []
    chunks = passages(page.options)
    for number, chunk in enumerate(chunks):
        context = "\n".join(option.text for option in chunk)
        often = Counter(name for option in chunk for name in {*option.names})
        start, qas = 0, []
        for option in chunk:
            name = next((n for n in option.names if often[n] == 1 and n not in COMMON), None)
            answer = option.answer
            if name is not None and len(answer.split()) in WORDS:
                at = start + len(option.header) + len("\n    ")
                key = f"{package}/{page.command}/{number}/{name}"
                entries = [{"text": answer, "answer_start": at}]
                qas.append(posed(key, name, page.command, entries))
            start += len(option.text) + 1
        others = [o for i, c in enumerate(chunks) if i != number for o in c]
        missing = len(qas) // (WITHOUT_ANSWER - 1)
        qas += list(absent(others, context, f"{package}/{page.command}/{number}", missing))
        if qas:
            paragraphs.append({"context": context, "qas": qas})
    return {"title": page.command, "paragraphs": paragraphs} if paragraphs else None


def absent(
    others: Iterable[Option], context: str, where: str, count: int
) -> Iterator[dict[str, object]]:
    """Questions for options that a passage does not have."""
    here = {*OPTION.findall(context)}
    names = [o.names[0] for o in others if not here & {*o.names} and not COMMON & {*o.names}]
    command = where.split("/")[1]
    for name in sorted({*names}, key=lambda n: fraction(f"{where}/{n}"))[:count]:
        yield posed(f"{where}/{name}/none", name, command, [])


def posed(key: str, name: str, command: str, entries: list[dict[str, object]]) -> dict[str, object]:
    """A question in SQuAD's form, in one of several wordings, which a hash chooses."""
    wording = QUESTIONS[int(fraction(key) * len(QUESTIONS))]
    question = wording.format(option=name, command=command)
    return {"id": key, "question": question, "answers": entries, "is_impossible": not entries}


def passages(options: Sequence[Option]) -> list[list[Option]]:
    """Options one after the other, as many as a passage has room for."""
    chunks: list[list[Option]] = []
    size = PASSAGE
    for option in options:
        if size >= PASSAGE:
            chunks.append([])
            size = 0
        chunks[-1].append(option)
        size += len(option.text) + 1
    return chunks


def drop_shared(sides: dict[str, list[dict[str, object]]]) -> None:
    """Take out of train what val or test have the answer of, and out of val what test has."""
    taken_answers: set[tuple[str, ...]] = set()
    for side in ("test", "val", "train"):
        own = {words(text) for text in answers(sides[side])}
        for paragraph, qa in list(every_question(sides[side])):
            if any(words(answer["text"]) in taken_answers for answer in qa["answers"]):
                paragraph["qas"].remove(qa)
        taken_answers |= own


def every_question(articles: Sequence[dict[str, object]]) -> Iterator[tuple[Any, Any]]:
    """(paragraph, question)."""
    for one in articles:
        for paragraph in cast(list[Any], one["paragraphs"]):
            for qa in paragraph["qas"]:
                yield paragraph, qa


def answers(articles: Sequence[dict[str, object]]) -> list[str]:
    """The texts of all answers."""
    return [answer["text"] for _, qa in every_question(articles) for answer in qa["answers"]]


if __name__ == "__main__":
    sys.exit(main())
