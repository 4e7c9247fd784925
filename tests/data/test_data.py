"""Text to windows of tokens: nothing lost, nothing twice, the same again, and flat in memory."""

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import types
from collections import Counter
from io import StringIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from addnorm.data import cuts, order, packing, shards, sources, windows
from addnorm.data import prepared as prepared_file
from addnorm.data.prepared import Prepared
from addnorm.data.shards import prepare
from addnorm.data.sources import DataError, Source, Texts, open_source
from addnorm.data.tokenizer import Tokenizer
from addnorm.data.windows import Windows
from addnorm.progress import ProgressBar
from tests.references import bpe

END = "<|endoftext|>"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SAMPLE = """The cat sat on the mat; the hat that the cat had sat on was flat.
We'll say it's the cat's, they've said, and I'm sure she'd know. 12 123 1234!

日本語の日本は日本。 Ünïcödé ünïcödé 🙂🙂 🙂
    def the(cat):\r\n\treturn cat + "the"   # the   cat.\n\n\n   .\n .
"""
# What splits text into words in GPT-4 and most models since; punctuation takes newlines with it.
GPT4_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ODD = [*"\n \r.'1²_ié日🙂\u3000\x1f\x85\u0301", "the", "'s", "e\u0301", "cat.\n\n", "a.\n", "  a"]
quick = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
texts = st.lists(st.sampled_from([*ODD, SAMPLE[:80]]), max_size=40).map("".join)


@pytest.fixture(scope="module")
def small():
    """A BPE with GPT-2's words."""
    return Tokenizer.train(SAMPLE * 2, vocab_size=330)


@pytest.fixture(scope="module")
def modern(small, tmp_path_factory):
    """A BPE with GPT-4's words, and merges that go from punctuation into the next line."""
    folder = tmp_path_factory.mktemp("modern")
    small.save(folder)
    (folder / "addnorm_tokenizer.json").unlink()
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    newline = "\u010a"  # GPT-2's way of writing it
    model, end = data["model"], data["added_tokens"][0]
    tokens = sorted(model["vocab"].keys() - {END}, key=model["vocab"].__getitem__)
    for pair in ([".", newline], [f".{newline}", newline], [newline, newline]):
        if "".join(pair) not in tokens:
            tokens.append("".join(pair))
            model["merges"].append(pair)
    model["vocab"] = {token: i for i, token in enumerate(tokens)}
    data["added_tokens"] = [{**end, "id": len(tokens)}]
    data["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": GPT4_WORDS},
                "behavior": "Isolated",
                "invert": False,
            },
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": False,
            },
        ],
    }
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    return Tokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def composed(small, tmp_path_factory):
    """A BPE with GPT-2's words of the text in NFC, as Pythia's."""
    folder = tmp_path_factory.mktemp("composed")
    small.save(folder)
    (folder / "addnorm_tokenizer.json").unlink()
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    data["normalizer"] = {"type": "NFC"}
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    return Tokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def kinds(small, modern, composed):
    return {
        "composed": composed,
        "bpe": small,
        "modern": modern,
        "characters": Tokenizer.characters(SAMPLE + "".join(ODD)),
        "bytes": Tokenizer.bytes(),
    }


def stored(prepared: Prepared, name: str) -> list[list[int]]:
    """The ids of each document of a split, end-of-text tokens included."""
    tokens = prepared.split(name)
    ends = [*tokens.starts[1:].tolist(), len(tokens)]
    return [tokens.read(a, b).tolist() for a, b in zip(tokens.starts.tolist(), ends, strict=True)]


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def documents(path: Path | str) -> list[str]:
    return list(open_source(str(path)).documents())


# --- sources --------------------------------------------------------------------------------------


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


# --- which text goes where ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bpe", "modern", "characters", "bytes"])
@pytest.mark.parametrize("rule", ["documents", "tail"])
def test_each_document_is_there_once_and_whole(tmp_path, kinds, kind, rule):
    tokenizer = kinds[kind]
    texts = [SAMPLE[a : a + 5 * a + 7] for a in range(40)]
    prepared = prepare(Texts(texts), tokenizer, tmp_path, split=rule)
    begin = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    if rule == "tail":
        cuts = [int(len(text) * 0.9) for text in texts]
        expected = {
            "train": [text[:cut] for text, cut in zip(texts, cuts, strict=True)],
            "val": [text[cut:] for text, cut in zip(texts, cuts, strict=True)],
        }
    else:
        hashes = [hashlib.blake2b(text.encode(), digest_size=8).hexdigest() for text in texts]
        val = [int(h, 16) < 0.1 * 2**64 for h in hashes]
        assert 0 < sum(val) < 20
        expected = {
            "train": [text for text, v in zip(texts, val, strict=True) if not v],
            "val": [text for text, v in zip(texts, val, strict=True) if v],
        }
    for name, parts in expected.items():
        assert stored(prepared, name) == [begin + tokenizer.encode(part) for part in parts]
        tokens, told = prepared.split(name), prepared.summary.splits[name]
        assert tokens.documents == told.documents == len(parts) == len(tokens.starts)
        assert tokens.bytes == told.bytes == sum(len(part.encode()) for part in parts)
        assert len(tokens) == told.tokens
    assert prepared.summary.rule == rule
    assert f"{len(prepared.split('val')):,} tokens" in str(prepared.summary)


def test_auto_keeps_documents_whole_if_there_are_enough(tmp_path):
    def rule(texts):
        return prepare(Texts(texts), Tokenizer.bytes(), tmp_path).summary.rule

    assert rule([f"text {i} of a few" for i in range(19)]) == "tail"
    assert rule([f"text {i} of a few" for i in range(20)]) == "documents"
    assert rule(["the same text again"] * 20) == "tail"


def test_more_documents_move_none_and_copies_stay_together(tmp_path):
    tokenizer = Tokenizer.bytes()

    def sides(texts):
        prepared = prepare(Texts(texts), tokenizer, tmp_path, split="documents", val_fraction=0.3)
        return [
            {tokenizer.decode(ids[1:]) for ids in stored(prepared, n)} for n in ("train", "val")
        ]

    few = [f"document {i}" for i in range(30)]
    train, val = sides(few)
    more_train, more_val = sides(few[::-1] + [f"new {i}" for i in range(70)] + few)
    assert train | val == {*few}
    assert train < more_train
    assert val < more_val
    assert not more_train & more_val


def test_no_side_is_empty(tmp_path):
    for fraction in (1e-9, 0.999999):
        source = Texts([f"document {i}" for i in range(5)] * 2)
        prepared = prepare(
            source, Tokenizer.bytes(), tmp_path, split="documents", val_fraction=fraction
        )
        counts = [prepared.split(name).documents for name in ("train", "val")]
        assert sorted(counts) == [2, 8]
        assert (counts[0] > counts[1]) == (fraction < 0.5)
    with pytest.raises(DataError, match=r"texts is one document: split it by tail"):
        prepare(Texts(["one"]), Tokenizer.bytes(), tmp_path, split="documents")
    with pytest.raises(DataError, match=r"texts is copies of one document"):
        prepare(Texts(["one"] * 30), Tokenizer.bytes(), tmp_path, split="documents")
    with pytest.raises(DataError, match=r"too short to split.* nothing is left for train"):
        prepare(Texts(["a"]), Tokenizer.bytes(), tmp_path)


@pytest.mark.parametrize(
    ("kind", "train", "val"), [("gpt2", 301_966, 36_059), ("characters", 1_003_854, 111_540)]
)
def test_shakespeare_has_the_tokens_that_nanogpt_counts(tmp_path, kind, train, val):
    path = SHARED / "tinyshakespeare.txt"
    if not path.exists() or not (SHARED / "gpt2").is_dir():
        pytest.skip(f"needs {path} and GPT-2's vocab.json and merges.txt beside it")
    gpt2 = kind == "gpt2"
    made = Tokenizer.from_pretrained(SHARED / "gpt2") if gpt2 else Tokenizer.characters(path)
    prepared = prepare(open_source(str(path)), made, tmp_path)
    # nanoGPT's readme; and our end-of-text token in front, where the tokenizer has one
    assert [len(prepared.split(name)) for name in ("train", "val")] == [train + gpt2, val + gpt2]
    text = path.read_text(encoding="utf-8")
    assert stored(prepared, "val")[0][gpt2:] == made.encode(text[int(len(text) * 0.9) :])


def test_a_text_has_the_tokens_that_nanogpts_preparation_counts(tmp_path):
    """Its first nine tenths and its last one, each encoded for itself by GPT-2's tokenizer: here by
    the reference and a vocabulary that it learned; and our end-of-text token in front."""
    merges = bpe.train([SAMPLE], merges=1000, min_frequency=2)
    (tmp_path / "gpt2").mkdir()
    bpe.write(tmp_path / "gpt2", merges)
    vocab = json.loads((tmp_path / "gpt2/vocab.json").read_text(encoding="utf-8"))
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    text = "".join(SAMPLE[i:] + SAMPLE[:i] for i in range(0, 200, 7))
    (tmp_path / "text.txt").write_bytes(text.encode())
    tokenizer = Tokenizer.from_pretrained(tmp_path / "gpt2")
    prepared = prepare(open_source(str(tmp_path / "text.txt")), tokenizer, tmp_path / "cache")
    cut = int(len(text) * 0.9)
    for name, part in (("train", text[:cut]), ("val", text[cut:])):
        want = [vocab[END], *bpe.encode(part, vocab, ranks)]
        assert len(prepared.split(name)) == len(want)
        assert stored(prepared, name) == [want]


# --- text to ids ----------------------------------------------------------------------------------


class Parts(Source):
    """One document and another, in parts as given."""

    name = "parts"

    def __init__(self, parts: list[str]):
        self._parts = [part for part in parts if part]

    def parts(self):
        for i, part in enumerate(self._parts):
            yield part, i == len(self._parts) - 1
        yield "another", True

    def identity(self):
        return hashlib.sha256(json.dumps(self._parts).encode()).hexdigest()


@pytest.mark.parametrize("kind", ["bpe", "modern", "characters", "bytes"])
@pytest.mark.parametrize("rule", ["documents", "tail"])
@settings(quick, max_examples=30)
@given(parts=st.lists(texts, min_size=1, max_size=5), margin=st.sampled_from([6, 12]))
def test_a_document_in_parts_has_the_ids_of_the_whole(tmp_path, kinds, kind, rule, parts, margin):
    """The margin is small, so that short texts are cut."""
    whole = "".join(parts)
    if len(whole) < 10 or whole == "another":
        return
    tokenizer = kinds[kind]
    shutil.rmtree(tmp_path, ignore_errors=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "MARGIN", margin)
        patch.setattr(packing, "BATCH", 30)
        prepared = prepare(Parts(parts), tokenizer, tmp_path, split=rule, val_fraction=0.3)
    begin = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    found = stored(prepared, "train") + stored(prepared, "val")
    if rule == "documents":
        expected = [whole, "another"]
    else:
        pairs = [(text, int(len(text) * (1 - 0.3))) for text in (whole, "another")]
        expected = [text[:cut] for text, cut in pairs] + [text[cut:] for text, cut in pairs]
    assert sorted(found) == sorted(begin + tokenizer.encode(text) for text in expected)


def test_long_documents_are_cut_where_it_does_not_show(kinds, monkeypatch):
    text = SAMPLE * 20
    for kind in ("bpe", "modern"):
        encoder = packing.encoder_for(kinds[kind])
        place = encoder.cut(text)
        assert len(text) - 2 * cuts.MARGIN < place <= len(text) - cuts.MARGIN
        assert text[place].isspace()
    # Between a full stop and a newline lies a word of GPT-4: only the other places are harmless.
    assert isinstance(packing.encoder_for(kinds["bpe"]), packing._ByWords)
    assert isinstance(encoder, packing._ByPairs)
    monkeypatch.setattr(cuts, "TRIES", 50)
    stops = "a.\n" * 1000
    assert packing.encoder_for(kinds["bpe"]).cut(stops) > 0
    assert encoder.cut(stops) == 0
    assert encoder.cut(f"a b{stops[:700]}") == 1


@pytest.mark.parametrize("kind", ["bpe", "modern", "composed", "characters", "bytes"])
def test_one_long_part_is_cut_too(tmp_path, kinds, monkeypatch, kind):
    monkeypatch.setattr(packing, "ENCODING_LIMIT", 100)
    monkeypatch.setattr(cuts, "MARGIN", 15)
    tokenizer, pieces = kinds[kind], []
    encode = Tokenizer.encode_batch

    def count(self, texts):
        pieces.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(Tokenizer, "encode_batch", count)
    text = SAMPLE * 9
    prepared = prepare(Texts([text]), tokenizer, tmp_path)
    assert all(len(piece) <= 100 for piece in pieces)
    cut = int(len(text) * 0.9)
    begin = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    assert stored(prepared, "train") == [begin + encode(tokenizer, [text[:cut]])[0]]
    assert stored(prepared, "val") == [begin + encode(tokenizer, [text[cut:]])[0]]


def test_what_cannot_be_cut_is_cut_anywhere_in_the_end(kinds, monkeypatch):
    monkeypatch.setattr(packing, "ENCODING_LIMIT", 5000)
    encoder = packing.encoder_for(kinds["bpe"])
    assert encoder.cut("x" * 4999) == 0
    assert encoder.cut("x" * 5000) == 5000


@pytest.mark.parametrize("kind", ["bpe", "composed"])
@settings(quick, max_examples=150)
@given(rows=st.lists(st.lists(texts | st.text(max_size=9), max_size=4), min_size=1, max_size=4))
def test_remembered_words_have_the_ids_of_the_text(kinds, kind, rows):
    tokenizer = kinds[kind]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "REMEMBERED", 40)
        encoder = packing.encoder_for(tokenizer)
        assert isinstance(encoder, packing._ByWords)
        for batch in rows:
            found = [np.frombuffer(ids, "<u2").tolist() for ids in encoder.encode(batch)]
            assert found == tokenizer.encode_batch(batch)


def test_words_are_forgotten_but_not_those_in_use(kinds, monkeypatch):
    monkeypatch.setattr(packing, "REMEMBERED", 1000)
    encoder = packing.encoder_for(kinds["bpe"])
    encode, asked = encoder._pairs.encode, []

    def count(new):
        asked.extend(new)
        return encode(new)

    monkeypatch.setattr(encoder._pairs, "encode", count)
    for i in range(100):
        encoder.encode(["the cat" + "".join(f" {chr(97 + j) * (i % 50 + 1)}" for j in range(20))])
    assert asked.count(" cat") == 1
    assert asked.count(" aaaaaaa") == 2
    assert sum(map(len, encoder._recent)) + sum(map(len, encoder._older)) < 5000


def test_a_character_that_the_tokenizer_does_not_have(tmp_path):
    tokenizer = Tokenizer.characters("abc ")
    with pytest.raises(
        DataError, match=r"texts: not in this tokenizer's vocabulary .*'x' \(U\+0078"
    ):
        prepare(Texts(["abc abx"]), tokenizer, tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_large_vocabularies_need_four_bytes(tmp_path, kinds, monkeypatch):
    small = prepare(Texts([SAMPLE]), kinds["modern"], tmp_path / "small")
    encode = Tokenizer.encode_batch

    def large(self, texts):
        return [[i + 70_000 for i in ids] for ids in encode(self, texts)]

    monkeypatch.setattr(Tokenizer, "vocab_size", 71_000)
    monkeypatch.setattr(Tokenizer, "encode_batch", large)
    prepared = prepare(Texts([SAMPLE]), kinds["modern"], tmp_path / "large")
    for name in ("train", "val"):
        one, two = small.split(name), prepared.split(name)
        (eos, *ids), (same, *more) = one.read(0, len(one)), two.read(0, len(two))
        assert [i + 70_000 for i in map(int, ids)] == [*map(int, more)]
        assert eos == same
        assert one.read(0, 1).dtype == np.dtype("<u2")
        assert two.read(0, 1).dtype == np.dtype("<u4")


# --- on disk --------------------------------------------------------------------------------------


@pytest.fixture
def sample(tmp_path):
    """A prepared data set in several shards."""
    source = Texts([SAMPLE * (i + 1) for i in range(30)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD", 10_000)
        return source, prepare(source, Tokenizer.bytes(), tmp_path / "cache")


def test_tokens_are_read_across_files(sample):
    _, prepared = sample
    tokens = prepared.split("train")
    assert len([*prepared.folder.glob("train-0*.bin")]) > 5
    whole = np.concatenate([np.array(ids) for ids in stored(prepared, "train")])
    assert len(whole) == len(tokens)
    for start in (0, 9_999, 10_000, 10_001, len(tokens) - 10):
        for stop in (start, start + 1, start + 10, 20_000, 20_001, 35_000, len(tokens)):
            if start <= stop <= len(tokens):
                found = tokens.read(start, stop)
                assert type(found) is np.ndarray
                assert np.array_equal(found, whole[start:stop]), (start, stop)
    assert np.shares_memory(tokens.read(0, 10_000), tokens.read(0, 1)), "no copy within a file"
    for start, stop in ((-1, 3), (3, 2), (0, len(tokens) + 1)):
        with pytest.raises(IndexError, match=r"tokens .* of the"):
            tokens.read(start, stop)
    data = pickle.dumps(tokens)
    assert len(data) < 10_000, "files are mapped again, not copied"
    assert np.array_equal(pickle.loads(data).read(0, len(tokens)), whole)
    with pytest.raises(ValueError, match=r"no split 'test', only 'train' and 'val'"):
        prepared.split("test")


def test_what_was_prepared_is_found_again(sample, monkeypatch, tmp_path):
    source, prepared = sample
    assert not prepared.reused
    assert Prepared.open(prepared.folder).summary == prepared.summary

    def prepare_again(source, tokenizer, **options):
        return prepare(source, tokenizer, prepared.folder.parent, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "encoder_for", lambda tokenizer: pytest.fail("tokenized again"))
        found = prepare_again(Texts(list(source.documents()), name="else"), Tokenizer.bytes())
    assert found.reused
    assert found.folder == prepared.folder
    others = [
        prepare_again(Texts([*source.documents(), "one more"]), Tokenizer.bytes()),
        prepare_again(source, Tokenizer.characters(SAMPLE)),
        prepare_again(source, Tokenizer.bytes(), val_fraction=0.2),
        prepare_again(source, Tokenizer.bytes(), split="tail"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "eos_id", None)
        others.append(prepare_again(source, Tokenizer.bytes()))
    assert not any(other.reused for other in others)
    assert len({prepared.folder, *(other.folder for other in others)}) == 6


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("name", ["train-00001.bin", "val-starts.bin", "meta.json"])
@pytest.mark.parametrize("harm", [flip, cut_short, Path.unlink])
def test_damage_is_found(sample, monkeypatch, full, name, harm):
    source, prepared = sample
    monkeypatch.setattr(prepared_file, "FULL", 10**9 if full else 0)
    Prepared.open(prepared.folder)
    harm(prepared.folder / name)
    told = f"{prepared.folder} .*{name}"
    if harm is not Path.unlink or name != "meta.json":
        told += ".*[Dd]elete the folder"
    with pytest.raises(DataError, match=told):
        prepare(source, Tokenizer.bytes(), prepared.folder.parent)
    if name != "meta.json":
        with pytest.raises(DataError, match=told):
            prepared.verify()


def test_a_large_data_set_is_opened_by_samples_and_verified_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared_file, "SAMPLE", 4)
    prepared = prepare(Texts(["abcdefg " * 1000]), Tokenizer.bytes(), tmp_path)
    path = prepared.folder / "train-00000.bin"
    data = bytearray(path.read_bytes())
    data[10] ^= 1  # between the first sample and the second
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train-00000.bin is not what was written"):
        Prepared.open(prepared.folder)
    monkeypatch.setattr(prepared_file, "FULL", 100)
    opened = Prepared.open(prepared.folder)
    with pytest.raises(DataError, match=r"train-00000.bin is not what was written"):
        opened.verify()
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train-00000.bin is not what was written"):
        Prepared.open(prepared.folder)


def test_a_figure_that_was_changed_is_found(sample):
    _, prepared = sample
    path = prepared.folder / "meta.json"
    path.write_text(path.read_text().replace('"documents": ', '"documents": 1'))
    with pytest.raises(DataError, match=r"meta.json is not what was written. Delete the folder"):
        Prepared.open(prepared.folder)


def test_another_format_is_refused(sample):
    _, prepared = sample
    meta = json.loads((prepared.folder / "meta.json").read_text())
    del meta["checksum"]
    meta["format"] = 99
    meta["checksum"] = prepared_file.checksum(meta)
    write(prepared.folder / "meta.json", json.dumps(meta))
    with pytest.raises(DataError, match=r"has format 99, this version of addnorm reads 1"):
        Prepared.open(prepared.folder)


CRASH = """
import os, sys
from pathlib import Path
from addnorm.data import shards
from addnorm.data.sources import Texts
from addnorm.data.tokenizer import Tokenizer

left = int(sys.argv[2])

def fsync(file):
    global left
    left -= 1
    if left < 0:
        os._exit(9)  # as after SIGKILL: no handler, no finally

os.fsync = fsync
source = Texts([f"document {i} of some" for i in range(50)])
shards.prepare(source, Tokenizer.bytes(), Path(sys.argv[1]))
"""


@pytest.mark.parametrize("syncs", [0, 2, 5])
def test_a_crash_leaves_nothing_that_is_taken_for_finished(tmp_path, syncs):
    done = subprocess.run([sys.executable, "-c", CRASH, tmp_path, str(syncs)])
    assert done.returncode == 9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".")
    source = Texts([f"document {i} of some" for i in range(50)])
    assert not prepare(source, Tokenizer.bytes(), tmp_path).reused
    assert left.exists(), "it may belong to somebody who is still writing"
    shutil.rmtree(next(p for p in tmp_path.iterdir() if p != left))
    for path in (*left.iterdir(), left):
        os.utime(path, (1, 1))
    prepare(source, Tokenizer.bytes(), tmp_path)
    assert len([*tmp_path.iterdir()]) == 1, "what was abandoned is cleared away"


def test_an_error_leaves_nothing(tmp_path):
    class Broken(Parts):
        seen = 0

        def parts(self):
            yield "some text", True
            self.seen += 1
            if self.seen == 2:  # while tokenizing
                raise OSError("the disk is gone")
            yield "more text", True

    with pytest.raises(OSError, match=r"the disk is gone"):
        prepare(Broken([]), Tokenizer.bytes(), tmp_path)
    assert [*tmp_path.iterdir()] == []

    class Growing(Broken):
        def parts(self):
            self.seen += 1
            yield "some text " * self.seen, True

    with pytest.raises(DataError, match=r"parts was changed while it was being read"):
        prepare(Growing([]), Tokenizer.bytes(), tmp_path)
    assert [*tmp_path.iterdir()] == []
    with pytest.MonkeyPatch.context() as patch:
        full = OSError(28, "No space left on device")
        patch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(full))
        with pytest.raises(DataError, match=f"cannot write to {tmp_path}: No space left"):
            prepare(Texts(["some text"]), Tokenizer.bytes(), tmp_path)
    assert [*tmp_path.iterdir()] == []
    file = write(tmp_path / "file", "")
    with pytest.raises(DataError, match=f"cannot write to {file}: "):
        prepare(Texts(["some text"]), Tokenizer.bytes(), file)


def test_two_at_once_both_end_well(tmp_path, monkeypatch):
    both = threading.Barrier(2, timeout=20)
    found = []
    encoder = shards.encoder_for

    def together(tokenizer):
        both.wait()  # neither has finished
        return encoder(tokenizer)

    monkeypatch.setattr(shards, "encoder_for", together)
    source = Texts([SAMPLE])
    threads = [
        threading.Thread(target=lambda: found.append(prepare(source, Tokenizer.bytes(), tmp_path)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.folder for p in found] == [found[0].folder] * 2
    assert [*tmp_path.iterdir()] == [found[0].folder]
    assert sorted(p.reused for p in found) == [False, True]
    assert stored(found[0], "val") == stored(found[1], "val")


def test_workers_change_no_byte(tmp_path, kinds, monkeypatch):
    monkeypatch.setattr(packing, "BATCH", 2000)
    source = Texts([SAMPLE * (i + 1) for i in range(20)])
    one = prepare(source, kinds["bpe"], tmp_path / "1")
    two = prepare(source, kinds["bpe"], tmp_path / "2", workers=2)
    for path in one.folder.iterdir():
        assert path.read_bytes() == (two.folder / path.name).read_bytes()
    with pytest.raises(DataError, match=r"texts: not in this tokenizer's vocabulary"):
        prepare(source, Tokenizer.characters("abc"), tmp_path / "3", workers=1)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"val_fraction": 0}, "val_fraction is 0: more than 0 and less than 1"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0"),
        ({"split": "random"}, "no split 'random', only 'auto', 'documents', 'tail'"),
        ({"workers": 0}, "workers is 0: at least 1"),
    ],
)
def test_wrong_options_are_named(tmp_path, option, message):
    with pytest.raises(ValueError, match=message):
        prepare(Texts(["text"]), Tokenizer.bytes(), tmp_path, **option)


class Terminal(StringIO):
    def isatty(self):
        return True


def test_progress_is_told(tmp_path, capsys, monkeypatch):
    def told(stderr=None, **options):
        with monkeypatch.context() as patch:
            if stderr is not None:
                patch.setattr(sys, "stderr", stderr)
            prepare(Texts([SAMPLE * 50], name="book"), Tokenizer.bytes(), tmp_path, **options)
        shutil.rmtree(tmp_path)
        return stderr.getvalue() if stderr else "".join(capsys.readouterr())

    assert told() == "", "it was soon over"
    assert told(progress=False, stderr=Terminal()) == ""
    monkeypatch.setattr(shards, "INTERVAL", 0.0)
    assert "tokenizing book: 0 of 0 MB\n" in told()
    assert told(progress=False) == ""
    encode = packing._ByBytes.encode
    shown = threading.Event()
    start = ProgressBar._start

    def started(self):
        start(self)
        shown.set()

    monkeypatch.setattr(ProgressBar, "_start", started)

    def slowly(self, texts):
        assert shown.wait(20)
        return encode(self, texts)

    monkeypatch.setattr(packing._ByBytes, "encode", slowly)
    monkeypatch.setattr(shards, "PATIENCE", 1000)
    assert "tokenizing book" in told(stderr=Terminal(), progress=True)
    monkeypatch.setattr(shards, "PATIENCE", 0.01)
    shown.clear()
    assert "tokenizing book" in told(stderr=Terminal())


@pytest.mark.parametrize("split", ["documents", "tail"])
def test_what_a_tokenizer_may_learn_from(tmp_path, split):
    """Exactly the text that training will see."""
    source = Texts([f"document {i} é {i * i}" for i in range(50)])
    prepared = prepare(source, Tokenizer.bytes(), tmp_path, split=split, val_fraction=0.2)
    tokens = prepared.split("train")
    ids = [i for i in tokens.read(0, len(tokens)).tolist() if i != 256]
    learned = "".join(shards.training_texts(source, split=split, val_fraction=0.2))
    assert learned == Tokenizer.bytes().decode(ids)


MEMORY = """
import sys
from pathlib import Path
from addnorm.data.shards import prepare
from addnorm.data.sources import open_source
from addnorm.data.tokenizer import Tokenizer

folder, kind = Path(sys.argv[1]), sys.argv[2]
text = (folder / "small.txt").read_text()
tokenizer = Tokenizer.bytes() if kind == "bytes" else Tokenizer.train(text, 1000, kind)
peaks = []
for name in ("small.txt", "large.txt"):
    prepare(open_source(str(folder / name)), tokenizer, folder / "cache")
    # not ru_maxrss, which begins with what the process had that started this one
    status = Path("/proc/self/status").read_text().splitlines()
    peaks.append(next(line.split()[1] for line in status if line.startswith("VmHWM")))
print(*peaks)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe"])
def test_memory_does_not_grow_with_the_text(tmp_path, kind):
    """One document of 60 MB after one of 4 MB: all that is in flight is in both."""
    generator = np.random.default_rng(0)
    words = [
        "".join(map(chr, generator.integers(97, 123, n))) for n in range(2, 12) for _ in range(99)
    ]
    line = " ".join(generator.choice(words, 700_000)) + "\n"
    write(tmp_path / "small.txt", line[: 4 << 20])
    write(tmp_path / "large.txt", line[: 4 << 20] * 15)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path, kind], check=True, capture_output=True, text=True
    )
    small, large = map(int, done.stdout.split())
    # The files of ids are written, not mapped; 30 MB is half of the text, and a quarter of its ids.
    assert large - small < 30 * 1024, (small, large)
    assert large < 400 * 1024


# --- windows --------------------------------------------------------------------------------------


class Counting:
    """Tokens whose id is their index; documents of 10."""

    name = "train"

    def __init__(self, length: int):
        self.ids = np.arange(length)
        self.starts = np.arange(0, length, 10)

    def __len__(self):
        return len(self.ids)

    def read(self, start, stop):
        assert 0 <= start <= stop <= len(self.ids)
        return self.ids[start:stop]


def test_the_order_is_a_permutation_for_any_number():
    for n in range(1, 2001):
        key = windows._key(0, n)[:-1]
        key = key if n % 100 == 0 else key[:16]  # the rounds are all alike: 8 of them show it
        places = order.shuffled(np.arange(n), n, key)
        assert np.array_equal(np.sort(places), np.arange(n)), n


def test_all_orders_are_equally_frequent():
    orders = 1200
    found = Counter(
        tuple(order.shuffled(np.arange(4), 4, windows._key(seed, epoch)[:-1]).tolist())
        for seed in range(12)
        for epoch in range(100)
    )
    assert len(found) == 24
    expected = orders / 24
    # Chi-square with 23 degrees of freedom: its mean is 23, and 1 in 100 000 is above 66.
    assert sum((count - expected) ** 2 / expected for count in found.values()) < 66


def test_places_and_neighbours_are_uniform():
    n, epochs = 1000, 400
    orders = np.array(
        [order.shuffled(np.arange(n), n, windows._key(7, e)[:-1]) for e in range(epochs)]
    )
    # Where window i goes, in 20 classes, for all i at once; then how far i and i + 1 are apart.
    # Chi-square with 19 degrees of freedom: 1 in 100 000 is above 59. The counts of one epoch are
    # not independent of each other, which makes the sum smaller, not larger.
    for i in (0, 1, 499, 998, 999):
        counts = np.bincount(orders[:, i] // (n // 20), minlength=20)
        assert ((counts - epochs / 20) ** 2 / (epochs / 20)).sum() < 59
    steps = ((orders[:, 1:] - orders[:, :-1]) % n).ravel()
    counts = np.bincount((steps - 1) * 20 // (n - 1), minlength=20)
    assert ((counts - steps.size / 20) ** 2 / (steps.size / 20)).sum() < 59


def test_the_order_never_changes():
    """A run that is resumed with a later version sees the data it would have seen."""
    starts = Windows(Counting(10_000), 64, 1337).starts(153, 5)
    assert starts.tolist() == [8573, 2557, 7320, 6488, 6296]


@quick
@given(length=st.integers(2, 300), context=st.integers(1, 40), seed=st.integers(0, 2**70))
def test_each_epoch_has_every_window_once(length, context, seed):
    if length < context + 1:
        return
    made = Windows(Counting(length), context, seed)
    assert len(made) >= max(1, length // context - 1)
    for epoch in range(3):
        starts = made.starts(epoch * len(made), len(made))
        assert {made.epoch(epoch * len(made) + i) for i in range(len(made))} == {epoch}
        offset = starts.min()
        assert np.array_equal(np.sort(starts), offset + context * np.arange(len(made)))
        assert 0 <= offset < context
        assert starts.max() + context + 1 <= length
        if length >= 2 * context:  # what is left out at the ends, together
            assert length - (len(made) * context + 1) < 2 * context


@pytest.mark.parametrize("length", [17, 18, 24, 31, 32, 33, 47, 48])
def test_short_splits_have_windows_too(length):
    starts = Windows(Counting(length), 16, 0).starts(0, 100)
    assert starts.min() >= 0
    assert starts.max() + 17 <= length
    offsets = {int(start) % 16 for start in starts}
    assert len(offsets) == 1 if length == 17 else len(offsets) > 1


@settings(quick, max_examples=25)
@given(cuts=st.lists(st.integers(0, 120), max_size=8))
def test_windows_do_not_depend_on_how_they_are_asked_for(cuts):
    made = Windows(Counting(500), 16, 3)
    whole = made.rows(0, 120)
    edges = sorted({0, 120, *cuts})
    found = [made.rows(a, b - a) for a, b in pairwise(edges)]
    assert np.array_equal(np.concatenate(found), whole)
    assert np.array_equal(whole, made.starts(0, 120)[:, None] + np.arange(17))
    assert whole.dtype == np.int64


def test_epochs_differ_in_order_and_offset():
    made = Windows(Counting(2000), 16, 3)
    n = len(made)
    epochs = [made.starts(e * n, n) for e in range(40)]
    assert len({starts.min() for starts in epochs}) > 10, "each at an offset of its own"
    assert len({tuple((starts - starts.min()).tolist()) for starts in epochs}) == 40
    assert not np.array_equal(epochs[0], Windows(Counting(2000), 16, 4).starts(0, n))
    assert np.array_equal(epochs[5], Windows(Counting(2000), 16, 3).starts(5 * n, n))
    seen = np.unique(made.rows(0, 40 * n))
    assert len(seen) > 1990, "what one epoch leaves out at the ends, another has"


def test_documents_of_a_window():
    made = Windows(Counting(500), 16, 3)
    assert np.array_equal(made.documents(5, 40), made.rows(5, 40) // 10)


def test_windows_of_what_was_prepared(sample):
    _, prepared = sample
    tokens = prepared.split("train")
    made = Windows(tokens, 100, 0)
    rows, starts = made.rows(0, len(made)), made.starts(0, len(made))
    whole = tokens.read(0, len(tokens))
    assert np.array_equal(rows, np.stack([whole[s : s + 101] for s in starts]))
    begins = rows == 256  # a document begins with the end of the one before
    found = made.documents(0, len(made))
    assert np.array_equal(np.diff(found, axis=1) > 0, begins[:, 1:])


def test_windows_that_cannot_be(sample):
    with pytest.raises(
        DataError, match=r"the train split has 16 tokens, fewer than .* context \+ 1 = 17"
    ):
        Windows(Counting(16), 16, 0)
    assert len(Windows(Counting(17), 16, 0)) == 1
    with pytest.raises(ValueError, match=r"context is 0"):
        Windows(Counting(16), 0, 0)
    with pytest.raises(ValueError, match=r"numbers start at 0"):
        Windows(Counting(100), 16, 0).rows(-1, 3)
    assert Windows(Counting(100), 16, 0).rows(3, 0).shape == (0, 17)
