"""What programs say, in English and in German or Chinese: pairs for a translator.

Sources: the catalogues (.mo) of the Debian 12 packages in ``messages.txt``, taken with apt-get at
the versions and with the SHA-256 there (amd64), and the messages of the compiler in npm's package
typescript 5.9.3, taken with npm and with the SHA-512 below. Licences: those of the packages, most
of them GPL, LGPL or FDL, others Apache-2.0 (subversion, TypeScript), the PostgreSQL licence, MIT;
each stands in /usr/share/doc/PACKAGE/copyright of its package. Nothing of them is in this
repository, and what this script writes is under the same licences.

    python benchmarks/datasets/messages.py out/messages

writes de/ and zh/, each with train.tsv, val.tsv and test.tsv: English, a tab, the translation. Test
is one whole package, subversion, and val another, dpkg. Their translators were others than those of
the rest, and what they speak of (files, repositories, versions, packages) is in the rest too: of a
package about something else one would measure which of its nouns a model has never seen.

Left out: what is not translated or marked as fuzzy; a translation that is its source, or is in
another script; sources of less than two words, since nothing says what they mean; tables and lists,
which are lines that begin with spaces; markup; a side of more than 300 characters; a translation
that is much longer or shorter than its source. Of a source that is translated in several ways one
is taken, in the order of the list. What stands in test, exactly or nearly, is left out of train and
val, and what stands in val out of train: sources that are alike in their words, whatever their
case, marks and numbers, or of whose runs of five letters, taken together, more than half are in
both. It needs about 100 MB and two minutes.
"""

import argparse
import json
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from addnorm.data.pairs import read_pairs
from benchmarks.datasets import npm
from benchmarks.datasets.debian import contents, deb, read_list
from benchmarks.datasets.shared_runs import letters, runs, runs_of_all, shared, words

LIST = Path(__file__).with_suffix(".txt")
TEST, VAL = "subversion", "dpkg"
LANGUAGES = {"de": ("de", "de"), "zh": ("zh_CN", "zh-cn")}
"""Language -> its name in Debian, and in TypeScript."""
TYPESCRIPT = "typescript@5.9.3"
SHA512 = "jl1vZzPDinLr9eUt3J/t7V6FgNEw9QjvBPdysz9KfQDD41fQrC2Y4vKQdiaUpFT4bXlb1RHhLpp8wtm6M5TgSw=="
MOST = 300
"""Characters of a side."""
LENGTHS = {"de": (0.5, 2.5), "zh": (0.1, 1.1)}
"""Characters of a translation to one of its source, from and to."""
NEAR = 0.5
"""Of the runs of two sources together, the share in both from which on they are nearly the same."""
MARKUP = re.compile(r"</\w|<\w+/>|&\w+;|<(?:b|i|tt|big|small|span|a) ?[^<>]*>", re.IGNORECASE)
WORD = re.compile(r"[A-Za-z]{2,}")
PLACE = re.compile(r"%[\d$.*+#-]*(?:l|ll|h|z|j)?[a-zA-Z]|\{\d+\}")
"""Where a program fills something in."""
HAN = re.compile(r"[\u4e00-\u9fff]")


class Message(NamedTuple):
    """A source, what it is in the other language, and whose it is."""

    source: str
    target: str
    package: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Take, clean, split, write; print what there is."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path, help="the folder for de/ and zh/")
    parser.add_argument("--archives", type=Path, help="where they are, or are put [out/debs]")
    args = parser.parse_args(arguments)
    archives = args.archives or args.out / "debs"
    packages = {p.name: deb(p, archives, LIST) for p in read_list(LIST)}
    compiler = npm.archive(TYPESCRIPT, SHA512, archives)
    for language, names in LANGUAGES.items():
        messages = [m for p, f in packages.items() for m in of_debian(f, p, names[0])]
        messages += of_typescript(compiler, names[1])
        rows = clean(messages, language)
        sides = split(rows)
        folder = args.out / language
        folder.mkdir(parents=True, exist_ok=True)
        for side, some in sides.items():
            content = "".join(f"{row.source}\t{row.target}\n" for row in some)
            (folder / f"{side}.tsv").write_text(content, encoding="utf-8")
        print("\n".join(summary(language, len(messages), len(rows), sides)), flush=True)
    return 0


# --- from the packages to their messages ----------------------------------------------------------


def of_debian(file: Path, package: str, language: str) -> Iterator[Message]:
    """Those of all catalogues in a .deb."""
    name = re.compile(rf"(?:.*/)?locale/{language}/LC_MESSAGES/[^/]+\.mo")
    with tempfile.NamedTemporaryFile(suffix=".mo") as catalogue:
        for _, content in contents(file, name):
            Path(catalogue.name).write_bytes(content)
            for row in read_pairs(catalogue.name).rows:
                yield Message(row.source, row.target, package)


def of_typescript(file: Path, language: str) -> list[Message]:
    """Those of the compiler: a file of each language has them under the keys of the source code."""
    names = ("typescript.js", f"{language}/diagnosticMessages.generated.json")
    pattern = re.compile("|".join(re.escape(f"package/lib/{name}") for name in names))
    texts = {name: content.decode() for name, content in npm.contents(file, pattern)}
    code, table = (texts[f"package/lib/{name}"] for name in names)
    targets: dict[str, str] = json.loads(table)
    return [
        Message(source, targets[key], "typescript")
        for key, source in diagnostics(code)
        if key in targets
    ]


def diagnostics(code: str) -> list[tuple[str, str]]:
    """(key, text) of each message that a source code of TypeScript's compiler declares."""
    call = re.compile(r'diag\(\d+, \d /\* \w+ \*/, ("[^"\n]+"), ("(?:[^"\\\n]|\\.)*")')
    return [(json.loads(key), json.loads(text)) for key, text in call.findall(code)]


# --- what is left out -----------------------------------------------------------------------------


def clean(messages: Iterable[Message], language: str) -> list[Message]:
    """Those that say something and are translated, each source once."""
    rows: dict[str, Message] = {}
    for message in messages:
        source, target = (running(side) for side in message[:2])
        if usable(source, target, language):
            rows.setdefault(source, Message(source, target, message.package))
    return list(rows.values())


def running(text: str) -> str:
    """A text in one line; none, if it is a table or a list."""
    lines = text.expandtabs().strip().split("\n")
    if any(line.startswith(" ") or not line.strip() for line in lines) or "   " in text.strip():
        return ""
    return " ".join(" ".join(lines).split())


def usable(source: str, target: str, language: str) -> bool:
    """Whether a pair says something, and one side what the other does, as far as one sees that."""
    least, most = LENGTHS[language]
    return (
        bool(target)
        and source != target
        and max(len(source), len(target)) <= MOST
        and len(WORD.findall(PLACE.sub(" ", source))) >= 2
        and least * len(source) <= len(target) <= most * len(source)
        and not MARKUP.search(source + target)
        and bool(HAN.search(target)) == (language == "zh")
        and "\x00" not in source + target
    )


def split(messages: Iterable[Message]) -> dict[str, list[Message]]:
    """A package on a side; what is like something held out is in no other side."""
    sides: dict[str, list[Message]] = {"train": [], "val": [], "test": []}
    for message in messages:
        side = {TEST: "test", VAL: "val"}.get(message.package, "train")
        sides[side].append(message)
    test = Known(row.source for row in sides["test"])
    sides["val"] = [row for row in sides["val"] if not test.has(row.source)]
    val = Known(row.source for row in sides["val"])
    sides["train"] = [
        row for row in sides["train"] if not (test.has(row.source) or val.has(row.source))
    ]
    return sides


class Known:
    """Sources, and whether another one is nearly one of them."""

    def __init__(self, sources: Iterable[str]) -> None:
        self.texts = {unmarked(source) for source in sources}
        self.runs = [runs(letters(text)) for text in self.texts]
        self.where: defaultdict[Any, list[int]] = defaultdict(list)
        for number, some in enumerate(self.runs):
            for run in some:
                self.where[run].append(number)

    def has(self, source: str) -> bool:
        """Alike in its words, or in more than half of the runs of both."""
        text = unmarked(source)
        if text in self.texts:
            return True
        own = runs(letters(text))
        both = Counter(number for run in own for number in self.where.get(run, ()))
        return any(
            count > NEAR * (len(own) + len(self.runs[number]) - count)
            for number, count in both.items()
        )


def unmarked(source: str) -> str:
    """Its words alone, in lower case, without numbers and places to fill."""
    return re.sub(r"\d+", "", " ".join(words(PLACE.sub(" ", source))))


def summary(
    language: str, every: int, candidates: int, sides: Mapping[str, Sequence[Message]]
) -> list[str]:
    """What there is, in lines. ``every``: messages before anything was left out; ``candidates``:
    those that are clean."""
    near = candidates - sum(map(len, sides.values()))
    lines = [
        f"{language}: {every:,} messages, of which {candidates:,} are clean; {near:,} of these are "
        "left out, since they are nearly the same as one that is held out"
    ]
    for side, rows in sides.items():
        packages = Counter(row.package for row in rows)
        most = ", ".join(f"{name} {count:,}" for name, count in packages.most_common(5))
        length = sum(len(row.source.split()) for row in rows) / len(rows)
        lines.append(
            f"  {side}: {len(rows):,} pairs of {len(packages)} packages ({most}), "
            f"{length:.1f} words a source"
        )
    units = letters if language == "zh" else words
    for noun, place, unit in (("sources", 0, words), ("translations", 1, units)):
        learned = runs_of_all(unit(row[place]) for row in sides["train"])
        for side in ("val", "test"):
            part = shared(runs_of_all(unit(row[place]) for row in sides[side]), learned)
            kind = "letters" if unit is letters else "words"
            lines.append(
                f"  {side}: {part.both:,} of {part.every:,} runs of five {kind} of its {noun} are "
                f"in train, {part.share:.1%}"
            )
    return lines


if __name__ == "__main__":
    sys.exit(main())
