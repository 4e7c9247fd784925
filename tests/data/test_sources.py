"""Where text comes from: every document is read once, whole, and in the same order."""

import errno
import os
import re
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from addnorm.data import sources
from addnorm.data.preparation import prepare
from addnorm.data.sources import DataError, Texts, open_source
from addnorm.data.tokenizer import Tokenizer
from tests.data.samples import END, quick, write


def documents(path: Path | str) -> list[str]:
    return list(open_source(str(path)).documents())


def by_lines(text: str) -> list[str]:
    """The documents of a text file, written another way."""
    found, held = [], ""
    for line in re.findall(r"[^\n]*\n|[^\n]+", text.removeprefix("\ufeff")):
        if line.removesuffix("\n").removesuffix("\r") == END:
            found.append(held)
            held = ""
        else:
            held += line
    return [document for document in [*found, held] if document.strip()]


pieces_of_files = st.lists(
    st.sampled_from(
        [END, f"{END}\n", f"{END}\r\n", "\n", "\r", " ", "a", "é🙂", "a long line of text\n"]
    ),
    min_size=1,
    max_size=20,
)


@quick
@given(pieces=pieces_of_files, chunk=st.integers(1, 9), part=st.integers(1, 30))
def test_documents_of_a_file_wherever_it_is_cut(tmp_path, pieces, chunk, part):
    text = "".join(pieces)
    path = write(tmp_path / "a.txt", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "CHUNK", chunk)
        patch.setattr(sources, "PART", part)
        parts = list(open_source(str(path)).parts())
        found = documents(path)
    assert all(text for text, _ in parts)
    # A document of many parts is not looked at as a whole, and may be all whitespace.
    assert [d for d in found if d.strip()] == by_lines(text)
    assert all(len(d) >= part for d in found if not d.strip())
    begins = True
    for text, ends in parts:
        assert ends or len(text) >= part, "only long documents come in parts"
        begins = ends
    assert begins or not parts


def test_a_file_is_one_document_unless_lines_say_otherwise(tmp_path):
    inside = f"one {END} two\n {END}\n{END}."
    assert documents(write(tmp_path / "a.txt", inside)) == [inside]
    two = f"\ufeffone\r\n{END}\r\ntwo{END}\n\n{END}\n \n{END}"
    assert documents(write(tmp_path / "b.txt", two)) == ["one\r\n", f"two{END}\n\n"]


def test_a_folder_is_its_text_in_order_of_names(tmp_path):
    write(tmp_path / "b.md", "b")
    write(tmp_path / "a" / "z.txt", f"z1\n{END}\nz2")
    write(tmp_path / "a" / "data.jsonl", '{"text": "j1"}\n\n{"text": "j2", "n": 1}')
    write(tmp_path / "LICENSE", "no suffix")
    write(tmp_path / "odd.xyz", b"\xff\xfe\x00")
    write(tmp_path / "late.xyz", b"a" * 9000 + b"\xff")
    write(tmp_path / "zeros.xyz", b"a\0b")
    write(tmp_path / "image.png", "only called so")
    write(tmp_path / "empty.txt", "")
    write(tmp_path / ".hidden" / "a.txt", "hidden")
    write(tmp_path / ".hidden.txt", "hidden")
    (tmp_path / "broken.txt").symlink_to("nowhere")
    assert documents(tmp_path) == ["no suffix", "j1", "j2", "z1\n", "z2", "b"]


def test_what_is_called_text_and_is_not_is_an_error(tmp_path):
    write(tmp_path / "a.txt", "a")
    path = write(tmp_path / "sub" / "b.txt", b"ab\nc\xe4 latin")
    with pytest.raises(DataError, match=f"{path} is not UTF-8 .byte 4 is 0xe4.: convert"):
        documents(tmp_path)
    with pytest.raises(DataError, match=r"byte 4 is 0xe4"):
        open_source(str(path)).identity()
    with pytest.raises(DataError, match=r"byte 0 is 0xff.: it looks like UTF-16"):
        documents(write(tmp_path / "c.txt", "text".encode("utf-16")))
    with pytest.raises(DataError, match=r"byte 3 is 0xe2"):  # cut short within a character
        documents(write(tmp_path / "d.txt", "abc€".encode()[:-1]))
    with pytest.raises(DataError, match=r"a .gz file is not text: unpack"):
        documents(write(tmp_path / "e.gz", b"\x1f\x8b\x08"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": 1', r"is not valid JSON: Expecting ',' delimiter at character 10 of 10"),
        ("[" * 100_000, "has lists or objects more than 100 deep inside each other"),
        (f'{{"text": "a", "id": {"1" * 5000}}}', "has a number of thousands of digits"),
        ('["text"]', r'expected an object, found \["text"\]'),
        (
            '{"body": "b", "id": 1}',
            r"no key 'text', only 'body', 'id'. Name another as a.jsonl#KEY",
        ),
        ('{"text": null}', r"'text' is null, not a text"),
        (r'{"text": "ab\ud800"}', r"'text' has half of a surrogate pair at character 2"),
    ],
)
def test_errors_in_json_lines(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl", '{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=f"a.jsonl, line 3:? {message}"):
        documents(path)


def test_what_cannot_be_read_in_a_folder_is_not_left_out_in_silence(tmp_path, monkeypatch):
    write(tmp_path / "a.txt", "a")
    for name in ("odd", "odd.md"):  # of which only the first is opened to see what it is
        (tmp_path / name).symlink_to("/proc/self/mem")
        with pytest.raises(DataError, match=f"cannot read {tmp_path / name}: Input/output error"):
            documents(tmp_path)
        (tmp_path / name).unlink()

    walk = os.walk

    def refused(top, onerror):
        yield from walk(top)
        onerror(PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "sub")))

    monkeypatch.setattr(os, "walk", refused)
    with pytest.raises(DataError, match=f"cannot read {tmp_path / 'sub'}: Permission denied"):
        documents(tmp_path)


def test_a_file_of_a_folder_that_changes_is_not_left_out_in_silence(tmp_path, monkeypatch):
    write(tmp_path / "a.txt", "a")
    path = write(tmp_path / "notes", "text")
    check = sources._File._check

    def grown(self, file):  # while it is being read
        if self.path == path:
            with path.open("a") as opened:
                opened.write("more")
        check(self, file)

    monkeypatch.setattr(sources._File, "_check", grown)
    with pytest.raises(DataError, match=r"notes was changed while it was being read"):
        documents(path.parent)


def test_json_lines_by_another_key(tmp_path):
    path = write(
        tmp_path / "a.jsonl", '{"text": "t", "b": "x\u2028\\ny"}\r\n{"b": "", "text": "u"}'
    )
    assert documents(path) == ["t", "u"]
    assert documents(f"{path}#b") == ["x\u2028\ny"]
    assert open_source(str(path)).identity() != open_source(f"{path}#b").identity()
    with pytest.raises(DataError, match=r"no key after the #"):
        open_source(f"{path}#")


def test_identity_is_of_the_content(tmp_path):
    def identity(path):
        return open_source(str(path)).identity()

    one, two = write(tmp_path / "1" / "a.txt", "text"), write(tmp_path / "2" / "b.txt", "text")
    os.utime(two, (1, 1))
    assert identity(one) == identity(two)
    assert re.fullmatch("[0-9a-f]{64}", identity(one))
    assert identity(tmp_path / "1") != identity(tmp_path / "2"), "names are relative to the folder"
    two.rename(tmp_path / "2" / "a.txt")
    assert identity(tmp_path / "1") == identity(tmp_path / "2")
    write(tmp_path / "2" / "a.txt", "texT")
    assert identity(tmp_path / "1") != identity(tmp_path / "2")
    assert identity(one) != identity(tmp_path / "2" / "a.txt")
    assert Texts(["ab", "c"]).identity() != Texts(["a", "bc"]).identity()
    assert Texts(["a", "b"]).identity() != Texts(["b", "a"]).identity()


def test_the_standard_library():
    source = open_source("stdlib")
    found = list(source.documents())
    assert 8e6 < sum(len(text.encode()) for text in found) < 20e6  # 12 MB in 3.11
    assert sum("import unittest" in text for text in found) < 20, "its tests are left out"
    assert source.identity() == open_source("stdlib").identity()


def test_what_cannot_be_opened_is_said(tmp_path):
    write(tmp_path / "shakespeare.txt", "To be")
    with pytest.raises(DataError, match=r"shakspeare.txt; did you mean shakespeare.txt\?"):
        open_source(str(tmp_path / "shakspeare.txt"))
    with pytest.raises(DataError, match=r"there is no .*: not even the folder"):
        open_source(str(tmp_path / "no" / "a.txt"))
    with pytest.raises(DataError, match=r"a.txt is empty"):
        open_source(str(write(tmp_path / "a.txt", "")))
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "a.png", "")
    with pytest.raises(DataError, match=r"no text in this folder"):
        open_source(str(tmp_path / "folder"))
    with pytest.raises(DataError, match=r"neither a file nor a folder"):
        open_source(os.devnull)
    blank = open_source(str(write(tmp_path / "blank.txt", f" \n{END}\n\n")))
    with pytest.raises(DataError, match=r"blank.txt: no text in it"):
        prepare(blank, Tokenizer.bytes(), tmp_path / "cache")
    with pytest.raises(DataError, match=r"texts: no text"):
        Texts(["", " "])
    with pytest.raises(DataError, match=r"document 1 has half of a surrogate pair"):
        Texts(["a", "\ud800"])


def test_a_file_that_changes_is_not_taken_for_one(tmp_path):
    path = write(tmp_path / "a.txt", "before")
    source = open_source(str(path))
    source.identity()
    write(path, "afterwards")
    with pytest.raises(DataError, match=r"a.txt was changed while it was being read"):
        list(source.documents())
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*a.txt: No such file"):
        list(source.documents())


class Hub:
    """What ``datasets`` and ``huggingface_hub`` answer, without a network."""

    def __init__(self, patch):
        self.asked, self.error = [], None
        self.rows: list[dict[str, object]] = [{"text": "a", "body": "b"}, {"text": " "}]
        patch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=self.load))
        import huggingface_hub

        patch.setattr(huggingface_hub, "HfApi", lambda: self)
        self.sha = "abc"

    def dataset_info(self, name):
        if self.error:
            raise self.error
        return self

    def load(self, *args, **options):
        self.asked.append((args, options))
        return iter(self.rows)


def test_the_hub(monkeypatch):
    hub = Hub(monkeypatch)
    options = {"split": "train", "revision": "abc", "streaming": True}
    assert documents("hf:user/name") == ["a"]
    assert hub.asked.pop() == (("user/name", None), options)
    hub.rows = [{"body": "b"}]
    assert documents("hf:name:config:test#body") == ["b"]
    assert hub.asked.pop() == (("name", "config"), {**options, "split": "test"})
    assert documents("hf:name::test#body") == ["b"]
    assert hub.asked.pop() == (("name", None), {**options, "split": "test"})
    names = ["hf:name", "hf:name#body", "hf:name:c", "hf:name:c:test", "hf:other"]
    identities = {open_source(name).identity() for name in names}
    hub.sha = "def"
    identities |= {open_source(name).identity() for name in names}
    assert len(identities) == 2 * len(names)


def test_errors_of_the_hub(monkeypatch):
    hub = Hub(monkeypatch)
    for bad in ("hf:", "hf:a:b:c:d", "hf:a#"):
        with pytest.raises(DataError, match=r"expected hf:NAME or hf:NAME:CONFIG:SPLIT#COLUMN"):
            open_source(bad)
    hub.rows = [{"body": "b", "id": 3}]
    with pytest.raises(DataError, match=r"no column 'text', only 'body', 'id'. .* hf:a:b#COLUMN"):
        documents("hf:a:b#text")
    with pytest.raises(DataError, match=r"row 1: 'id' is 3, not a text"):
        documents("hf:a#id")
    hub.error = OSError("no route")
    with pytest.raises(DataError, match=r"could not be read .* .OSError: no route"):
        open_source("hf:a").identity()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        DataError, match=r"needs the datasets package .*pip install 'addnorm\[data\]'"
    ):
        open_source("hf:a")
