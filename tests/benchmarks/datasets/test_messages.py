"""Messages of programs: catalogues made by hand, since a test takes nothing from the network."""

import io
import struct
import tarfile
from pathlib import Path

import pytest

from benchmarks.datasets import debian, messages, npm
from benchmarks.datasets.messages import Message, clean, diagnostics, of_debian, running, split
from tests.benchmarks.datasets.debs import package


def catalogue(pairs: dict[str, str]) -> bytes:
    """A .mo."""
    texts = [text.encode() for text in (*pairs, *pairs.values())]
    place = 28 + 8 * len(texts)
    table = b""
    for text in texts:
        table += struct.pack("<2I", len(text), place)
        place += len(text) + 1
    head = struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 4 * len(texts), 0, 0)
    return head + table + b"\0".join(texts) + b"\0"


def test_the_list_is_pinned_and_has_what_is_held_out() -> None:
    packages = debian.read_list(messages.LIST)
    names = [p.name for p in packages]
    assert len(set(names)) == len(names) > 40
    assert {messages.TEST, messages.VAL} <= {*names}
    assert all(len(p.sha256) == 64 for p in packages)


def test_messages_are_those_of_all_catalogues_of_a_language(tmp_path: Path) -> None:
    places = [f"usr/share/locale/{name}.mo" for name in ("de/LC_MESSAGES/a", "de/LC_MESSAGES/b")]
    contents = [catalogue({"Open it": "Öffne es"}), catalogue({"a\0b": "eins\0zwei"})]
    other = catalogue({"Open it": "打开"})
    files = {**dict(zip(places, contents, strict=True)), places[0].replace("de", "zh_CN", 1): other}
    rows = [*of_debian(package(tmp_path, files), "x", "de")]
    pairs = [("Open it", "Öffne es"), ("a", "eins"), ("b", "zwei")]
    assert rows == [Message(*pair, "x") for pair in pairs]


def test_messages_of_the_compiler_are_found_by_their_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        'x: diag(1, 1 /* Error */, "Key_1", "Say \\"{0}\\"."),\n'
        'y: diag(2, 3 /* Message */, "Key_2", "No text", true),\n'
    )
    assert diagnostics(code) == [("Key_1", 'Say "{0}".'), ("Key_2", "No text")]
    archive = tmp_path / "typescript-5.9.3.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in (
            ("typescript.js", code),
            ("zh-cn/diagnosticMessages.generated.json", '{"Key_1": "说“{0}”。", "Key_9": "x"}'),
        ):
            info = tarfile.TarInfo(f"package/lib/{name}")
            info.size = len(content.encode())
            tar.addfile(info, io.BytesIO(content.encode()))
    row = Message('Say "{0}".', "说“{0}”。", "typescript")
    assert messages.of_typescript(archive, "zh-cn") == [row]
    with pytest.raises(SystemExit, match="SHA-512"):
        npm.archive(messages.TYPESCRIPT, messages.SHA512, tmp_path)


def test_what_says_nothing_is_left_out() -> None:
    good = [
        ("cannot open '%s'\n", "kann »%s« nicht öffnen\n"),
        ("usage: add [<options>] <pathspec>", "Aufruf: add [<Optionen>] <Pfadangabe>"),
        ("a line that goes on\nin the next", "eine Zeile, die\nweitergeht"),
    ]
    bad = [
        ("Author", "Autor"),
        ("%s: %d", "%s: %d"),
        ("the same text", "the same text"),
        ("  -a  one\n  -b  two", "  -a  eins\n  -b  zwei"),
        ("a <b>bold</b> word", "ein <b>fettes</b> Wort"),
        ("cannot open '%s'\n", "öffnen geht nicht: »%s«\n"),
        ("a text much longer than the other one", "Text"),
        ("word " * 100, "Wort " * 100),
    ]
    rows = clean((Message(*pair, "x") for pair in good + bad), "de")
    assert [row.source for row in rows] == [" ".join(source.split()) for source, _ in good]
    assert rows[0].target == "kann »%s« nicht öffnen"
    mixed = [Message("open a file", "打开文件", "x"), Message("close a file", "a file", "x")]
    assert clean(mixed, "zh") == mixed[:1]
    assert clean(mixed, "de") == mixed[1:]
    assert running("a\n\nb") == ""


def test_what_is_like_something_held_out_is_not_learned() -> None:
    test = "Can't find the working copy of '%s'"
    near = [
        "can't find the working copy of “{0}”!",
        "Can't find the working copy of '%s' at 12",
        "Can't find a working copy of '%s'",
    ]
    new = ["Can't find the branch", "of the working class there is no copy in this place"]
    val = ["unable to read the archive", "Can't find THE working copy of %d"]
    rows = [
        *(Message(source, "x", "git") for source in [*near, val[0], *new]),
        *(Message(source, "x", messages.VAL) for source in val),
        Message(test, "x", messages.TEST),
    ]
    sides = split(rows)
    assert [row.source for row in sides["train"]] == new
    assert [row.source for row in sides["val"]] == val[:1]
    assert [row.source for row in sides["test"]] == [test]
    lines = messages.summary("de", 20, len(rows), sides)
    assert lines[0].startswith("de: 20 messages, of which 9 are clean; 5 of these are left out")
